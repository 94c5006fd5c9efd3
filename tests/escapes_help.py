"""What tests of escapes share: an engine with an image that has a Python in it, and its attacks.

An attack is a Python program that runs in a container and prints what it achieved. `den` is an
engine of its own for a whole file of tests, as making the image takes two seconds.

def test_x(den):
    assert den.attack("print(1)") == "1\\n"              # run --rm, stdout
    id = den.start("say('ready'); time.sleep(9)", "--cap-add", "SYS_PTRACE")
"""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import tempfile

import pytest
from conftest import SLOWNESS, Cli, Roots, end_launchers, rootfs_members, wait_for

TRACER = ("--cap-add", "SYS_PTRACE")
LINK, CHAR, BLOCK, FILE = tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.REGTYPE

#: Before each attack: libc, and whatever else they share.
PRELUDE = '''
import ctypes, errno, os, stat, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *args):
    result = getattr(libc, name)(*args)
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
def refused(function, *args):
    """The name of the error that it ends with, "" when it works."""
    try:
        function(*args)
        return ""
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error.errno))
def put(path, text):
    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
def say(*words):
    if words:
        sys.stdout.write(" ".join(map(str, words)) + "\\n")
        sys.stdout.flush()
'''

#: CVE-2019-5736, run by an interpreter that is not the container's own: a way to write to it.
EXE = PRELUDE + '''
fd = os.open("/proc/self/exe", os.O_RDONLY)
say("reached", refused(os.fchmod, fd, 0o755) or "changed",
    refused(os.utime, "/proc/self/fd/%d" % fd) or "touched",
    refused(os.open, "/proc/self/fd/%d" % fd, os.O_WRONLY) or "opened")
say(refused(os.setxattr, "/proc/self/fd/%d" % fd, "user.mine", b"1") or "marked")
'''
#: What it may answer. Below Linux 5.12 the interpreter is a sealed copy, whose mode is its own.
EXE_ANSWERS = {"reached", "EROFS", "ETXTBSY", "EPERM"}
if tuple(map(int, os.uname().release.split(".")[:2])) < (5, 12):
    EXE_ANSWERS |= {"changed", "touched", "ENOTSUP"}

#: Says which descriptors it has, but for the one that it looks with.
DESCRIPTORS = """
for name in sorted(os.listdir("/proc/self/fd"), key=int):
    try:
        say(name, os.readlink("/proc/self/fd/" + name))
    except FileNotFoundError:
        pass
"""
#: A shell's: where am I, and can I see a file of the host from there?
LOOK = 'for n in "" 1 2 3 4 5 6 7 8; do up="$up../"; cat ./$up{0} 2>/dev/null; done; echo "in $PWD"'
#: Descriptors that a process might have inherited; where each attempt takes seconds, some of them.
NUMBERS = range(3, 32, 1 if SLOWNESS == 1 else 5)


class Den(Cli):
    """The runner with the image `den`, a secret of the host, and attacks."""

    prelude = PRELUDE

    def __init__(self, pyz, roots):
        super().__init__(pyz, roots)
        #: A file of the host that no container has; its text is `word`.
        self.secret = os.path.join(roots.base, "secret")
        self.word = "the-host-" + os.urandom(8).hex()
        os.makedirs(roots.base, exist_ok=True)
        with open(self.secret, "w") as file:
            file.write(self.word)

    def attack(self, program, *options, image="den"):
        """What the program prints in a container of its own."""
        return self("run", "--rm", "--network", "none", *options, image, "python3", "-c",
                    PRELUDE + program).ok().out

    def start(self, program, *options, image="den"):
        """The id of a container that runs the program, once that has said `ready`."""
        id = self("run", "-d", "--network", "none", *options, image, "python3", "-c",
                  PRELUDE + program).ok().out.strip()
        wait_for(lambda: "ready" in self("logs", id).out, 20, "the program")
        return id


@pytest.fixture(scope="module")
def den(pyz, session_base):
    """An engine with an image of the host's python3 and some programs."""
    base = tempfile.mkdtemp(prefix="den-", dir=session_base)
    made = Den(pyz, Roots(base))
    programs = ("python3", "sh", "ls", "cat", "id", "true", "sleep")
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    made("image", "from-host", "-t", "den", *programs, env={"PATH": path}).ok()
    yield made
    ids = made("ps", "-aq").out.split()
    if ids:
        made("rm", "-f", *ids)
    end_launchers(made.roots.run)
    shutil.rmtree(base, ignore_errors=True)


def archive(*members):
    """A tar of (name, type, target, text or device numbers)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind, what in members:
            info = tarfile.TarInfo(name)
            info.type, info.mode, data = kind, 0o755, b""
            if kind == FILE:
                data = what.encode()
                info.size = len(data)
            elif kind == LINK:
                info.linkname = what
            else:
                (info.devmajor, info.devminor), info.mode = what, 0o666
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def image_with(den, tag, *members):
    """The tag of a busybox image in which these members of a tar take the place of what was there.
    """
    names = tuple(name for name, *_ in members)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for info, data in rootfs_members():
            if not (info.name.rstrip("/") + "/").startswith(tuple(name + "/" for name in names)):
                tar.addfile(info, io.BytesIO(data))
        with tarfile.open(fileobj=io.BytesIO(archive(*members))) as more:
            for info in more:
                tar.addfile(info, more.extractfile(info) if info.isfile() else None)
    den("import", "-", tag, input=out.getvalue()).ok()
    return tag
