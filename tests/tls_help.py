"""Certificates for tests, made by the system's openssl once a session."""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile

import pytest

NEW_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]


def openssl(*args, **options):
    done = subprocess.run(
        ["openssl", *args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options
    )
    assert done.returncode == 0, done.stdout.decode()
    return done.stdout.decode()


class Authority:
    """A CA in a directory: `.ca`, `.issue(name, extensions)` -> (certificate, key), all paths."""

    def __init__(self, base, name="ca"):
        self.base, self.name = base, name
        self.ca, self.key = f"{base}/{name}.pem", f"{base}/{name}-key.pem"
        subject = ["-subj", f"/CN=test {name}", "-days", "2"]
        openssl("req", "-x509", *NEW_KEY, "-keyout", self.key, "-out", self.ca, *subject)

    def issue(self, name, *extensions, days="2"):
        path = f"{self.base}/{self.name}-{name}"
        with open(path + ".ext", "w") as file:
            file.write("\n".join(extensions or ["basicConstraints=CA:FALSE"]) + "\n")
        openssl("req", "-new", *NEW_KEY, "-keyout", path + "-key.pem", "-out", path + ".csr",
                "-subj", "/CN=" + name)
        openssl("x509", "-req", "-in", path + ".csr", "-CA", self.ca, "-CAkey", self.key,
                "-CAcreateserial", "-days", days, "-extfile", path + ".ext",
                "-out", path + "-cert.pem")
        return path + "-cert.pem", path + "-key.pem"


def authority(name="ca"):
    """An Authority of this session."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    return _made(name)


@functools.cache
def _made(name):
    return Authority(tempfile.mkdtemp(prefix="pki-of-tests-", dir="/var/tmp"), name)


@functools.cache
def issued(kind, ca="ca"):
    """(certificate, key) of a kind: "server", "client", "names", "address", "bare", ..."""
    rows = {
        "server": ["subjectAltName=DNS:localhost,DNS:*.wild.example,IP:127.0.0.1,IP:::1"],
        "client": ["extendedKeyUsage=clientAuth"],
        "names": ["subjectAltName=DNS:a.example,DNS:b.example"],
        "address": ["subjectAltName=IP:10.0.0.1"],
        "purpose": ["subjectAltName=IP:127.0.0.1", "extendedKeyUsage=clientAuth"],
        "expired": ["subjectAltName=IP:127.0.0.1"],
        "bare": [],
    }
    return authority(ca).issue(kind, *rows[kind], days="-1" if kind == "expired" else "2")
