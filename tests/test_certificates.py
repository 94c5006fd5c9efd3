"""tls init: what it makes, for whom, and that a daemon and its clients trust each other by it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import conftest
import engine
import pytest
from tls_help import openssl


@pytest.fixture
def init(pyz, tmp_path):
    """init(*words, **environment) -> Result of `tls init` with a home of its own."""
    roots = conftest.Roots(tmp_path)

    def call(*words, **env):
        side = conftest.Cli(pyz, roots)
        side.argv = lambda *args: [sys.executable, str(pyz), *args]
        return side("tls", "init", *words, env={"HOME": str(tmp_path), **env})

    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    return call


def modes(directory):
    return {name: oct(os.stat(f"{directory}/{name}").st_mode & 0o777)
            for name in sorted(os.listdir(directory))
            if os.path.isfile(f"{directory}/{name}")}


def test_files_names_and_what_is_said(init, tmp_path):
    done = init("--name", "engine.example", "--name", "10.1.2.3").ok()
    near = tmp_path / ".docker"
    public, private = "0o644", "0o600"
    assert modes(near) == {"ca.pem": public, "cert.pem": public, "key.pem": private}
    assert modes(near / "server") == {"ca-key.pem": private, "ca.pem": public,
                                      "cert.pem": public, "key.pem": private}
    assert oct(os.stat(near / "server").st_mode & 0o777) == "0o700"
    assert sorted(os.listdir(near / "server")) == ["ca-key.pem", "ca.pem", "cert.pem", "key.pem"]
    for name in ("cert.pem", "server/cert.pem"):
        openssl("verify", "-x509_strict", "-CAfile", str(near / "ca.pem"), str(near / name))
    shown = openssl("x509", "-noout", "-text", "-in", str(near / "server/cert.pem"))
    for words in ("DNS:localhost", "IP Address:127.0.0.1", "IP Address:0:0:0:0:0:0:0:1",
                  "DNS:" + os.uname().nodename, "DNS:engine.example", "IP Address:10.1.2.3",
                  "TLS Web Server Authentication", "CA:FALSE"):
        assert words in shown
    shown = openssl("x509", "-noout", "-text", "-in", str(near / "cert.pem"))
    assert "TLS Web Client Authentication" in shown and "Subject Alternative" not in shown
    assert f"--tlscacert={near}/server/ca.pem" in done.out and "--tlsverify version" in done.out
    assert "engine.example, 10.1.2.3" in done.out


def test_nothing_is_replaced_unasked(init, tmp_path):
    init().ok()
    before = (tmp_path / ".docker/key.pem").read_bytes()
    refused = init()
    assert refused.code == 1 and "ca.pem is there already: --force" in refused.err
    assert (tmp_path / ".docker/key.pem").read_bytes() == before
    init("--force").ok()
    assert (tmp_path / ".docker/key.pem").read_bytes() != before


def test_directories(init, tmp_path):
    init("--server-dir", str(tmp_path / "srv"), DOCKER_CERT_PATH=str(tmp_path / "pems")).ok()
    assert (tmp_path / "pems/key.pem").exists() and (tmp_path / "srv/ca-key.pem").exists()
    assert not (tmp_path / ".docker").exists()
    same = init("--server-dir", str(tmp_path / "x"), DOCKER_CERT_PATH=str(tmp_path / "x"))
    assert same.code == 1 and "directory of their own" in same.err


def test_refusals(init, tmp_path):
    assert "neither a name nor an address" in init("--name", "a b").err
    assert "--days must be positive" in init("--days", "0").err
    (tmp_path / "bin").mkdir()
    gone = init(PATH=str(tmp_path / "bin"))
    assert (gone.code, gone.err) == (
        1, "tls init: certificates are made by openssl, which is not installed here\n")
    with open(tmp_path / "bin/openssl", "w") as file:
        file.write("#!/bin/sh\necho no entropy >&2\nexit 3\n")
    os.chmod(tmp_path / "bin/openssl", 0o755)
    bad = init(PATH=str(tmp_path / "bin"))
    assert (bad.code, bad.err) == (1, "openssl ecparam: no entropy\n")
    assert not os.path.exists(tmp_path / ".docker/ca.pem")
    assert os.listdir(tmp_path / ".docker/server") == []


def test_names_of_a_host(monkeypatch):
    monkeypatch.setattr(engine, "host_addresses", lambda: ["10.0.0.9", "fd00::9"])
    assert engine.certificate_names("a.b.example", ["c", "10.0.0.9"]) == [
        "DNS:a.b.example", "DNS:a", "DNS:localhost", "IP:127.0.0.1", "IP:::1", "IP:10.0.0.9",
        "IP:fd00::9", "DNS:c"]


def test_addresses_of_this_host():
    found = engine.host_addresses()
    assert all(engine.address_pack(each) for each in found)
    assert "127.0.0.1" not in found and "::1" not in found


@pytest.mark.root
def test_a_daemon_and_its_clients(init, pyz, roots, tmp_path):
    init().ok()
    pems = tmp_path / ".docker"
    flags = [f"--tls{flag}={pems}/server/{name}"
             for flag, name in (("cacert", "ca.pem"), ("cert", "cert.pem"), ("key", "key.pem"))]
    local = conftest.Cli(pyz, roots)
    with open(tmp_path / "log", "wb") as log:
        daemon = subprocess.Popen(
            local.argv("daemon", "-H", "tcp://127.0.0.1:24378", "--tlsverify", *flags),
            stdout=log, stderr=log, env=local.environ())
    env = {**local.environ(), "HOME": str(tmp_path)}
    words = ["-H", "tcp://127.0.0.1:24378", "--tlsverify", "version", "--format",
             "{{.Server.Version}}"]
    clients = [[sys.executable, str(pyz)], *([["docker"]] if shutil.which("docker") else [])]

    def ask(client):
        return subprocess.run([*client, *words], env=env, capture_output=True, text=True)

    try:
        conftest.wait_for(lambda: ask(clients[0]).returncode == 0, 20, "the daemon answers")
        for client in clients:
            assert ask(client).stdout == engine.DOCKER_VERSION + "\n"
        (pems / "cert.pem").unlink()
        for client in clients:
            refused = subprocess.run([*client, *words[:4]], env=env, capture_output=True, text=True)
            assert refused.returncode == 1 and "certificate required" in refused.stderr
    finally:
        daemon.terminate()
        daemon.wait(30)
    conftest.end_launchers(roots.run)
