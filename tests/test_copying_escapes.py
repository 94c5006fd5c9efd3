"""copying: ways out of a container by the files that go in and out; each is tried, and shut."""

from __future__ import annotations

import io
import os
import tarfile

import pytest
from escapes_help import FILE, LINK, TRACER, archive, den, image_with  # noqa: F401

pytestmark = pytest.mark.root

EXCHANGE = r"""
AT_FDCWD, number = -100, {"x86_64": 316, "aarch64": 276}[os.uname().machine]
os.makedirs("/race/place")
with open("/race/place/secret", "w") as file:
    file.write("inside")
os.symlink(sys.argv[1], "/race/link")
libc.syscall.restype = ctypes.c_long
say("ready")
while True:
    libc.syscall(number, AT_FDCWD, b"/race/place", AT_FDCWD, b"/race/link", 2)  # RENAME_EXCHANGE
"""


@pytest.mark.parametrize("way", ["", "/../../../../.."], ids=["absolute", "up"])
def test_a_path_that_changes_while_it_is_copied(den, way):  # noqa: F811
    """CVE-2018-15664: the directory of a path becomes a link to one of the host, again and again.
    """
    base = den.roots.base
    id = den.start(f"sys.argv[1:] = [{way + base!r}]\n{EXCHANGE}", *TRACER)
    come, gone = archive(("planted", FILE, "x")), set()
    for _ in range(12):
        done = den("cp", id + ":/race/place/secret", "-")
        if done.code == 0:
            with tarfile.open(fileobj=io.BytesIO(done.raw)) as tar:
                gone.add(tar.extractfile("secret").read())
        den("cp", "-", id + ":/race/place/", input=come)
        den("cp", den.secret, id + ":/race/place/planted-too")
        assert not os.path.exists(base + "/planted") and not os.path.exists(base + "/planted-too")
    assert gone == {b"inside"}
    den("rm", "-f", id).ok()


def test_links_of_an_archive_lead_nowhere_else(den):  # noqa: F811
    base = den.roots.base
    den("create", "--name", "in", "--network", "none", "den", "true").ok()
    for name, target in (("abs", base), ("up", "../../../../../../.." + base)):
        den("cp", "-", "in:/", input=archive((name, LINK, target),
                                             (name + "/planted", FILE, "x")))
        den("cp", den.secret, f"in:/{name}/planted")
        assert not os.path.exists(base + "/planted")
        assert den.word not in den("cp", f"in:/{name}/secret", "-").out
    den("cp", "in:/abs", base + "/copied").ok()
    assert os.path.islink(base + "/copied")
    os.unlink(base + "/copied")


def test_no_library_of_the_container_is_loaded(den):  # noqa: F811
    """CVE-2019-14271: names of users are looked up by libraries, and those could be its own."""
    folders = ("lib", "usr/lib", "lib64", "lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu",
               "lib/aarch64-linux-gnu", "usr/lib/aarch64-linux-gnu")
    names = ("libnss_files.so.2", "libnss_compat.so.2", "libnss_dns.so.2", "libc.so.6",
             "libnss_systemd.so.2", "ld-linux-x86-64.so.2", "libz.so.1")
    image = image_with(den, "libraries", ("etc/nsswitch.conf", FILE, "passwd: files compat"),
                       *[(f"{folder}/{name}", FILE, "none") for folder in folders
                         for name in names])
    id = den("run", "-d", "--network", "none", "-u", "user", image, "sleep", "600").ok().out.strip()
    for words in (("cp", den.secret, id + ":/tmp/in"), ("cp", "-a", den.secret, id + ":/tmp/too"),
                  ("cp", id + ":/etc/passwd", den.roots.base + "/passwd"), ("top", id),
                  ("exec", "-u", "user", id, "true"), ("commit", id, "committed"),
                  ("export", "-o", den.roots.base + "/whole", id)):
        den(*words).ok()
    den("rm", "-f", id).ok()
