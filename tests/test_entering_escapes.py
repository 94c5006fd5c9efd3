"""entering: ways out of a container by who comes into it; each is tried, and shut."""

from __future__ import annotations

import os
import socket

import pytest
from conftest import wait_for
from escapes_help import (  # noqa: F401
    DESCRIPTORS,
    EXE,
    EXE_ANSWERS,
    FILE,
    LOOK,
    NUMBERS,
    TRACER,
    archive,
    den,
)

pytestmark = pytest.mark.root
IDLE = "say('ready'); time.sleep(600)"


@pytest.fixture(params=[(), TRACER], ids=["plain", "tracer"])
def room(den, request):  # noqa: F811
    """The id of a container that runs, with and without SYS_PTRACE."""
    id = den.start(IDLE, *request.param)
    yield id
    den("rm", "-f", id).ok()


def test_the_hosts_interpreter_cannot_be_written_to(den, room):  # noqa: F811
    """CVE-2019-5736: the container has replaced the program that is executed in it."""
    den("cp", "-", room + ":/", input=archive(("evil", FILE, "#!/proc/self/exe\n" + EXE))).ok()
    out = den("exec", room, "/evil").ok().out
    assert "reached" in out and len(out.split()) == 5
    assert set(out.split()) <= EXE_ANSWERS, out


def test_no_descriptor_of_the_host_is_a_working_directory(den, room):  # noqa: F811
    """CVE-2024-21626."""
    for number in NUMBERS:
        done = den("exec", "-w", f"/proc/self/fd/{number}", room, "sh", "-c",
                   LOOK.format(den.secret))
        assert den.word not in done.out, (number, done)
        # The root of the container itself is one that may be entered.
        assert done.code == 126 or done.out == "in /\n", (number, done)


@pytest.mark.parametrize("options", [(), ("-i",), ("-t",)], ids=" ".join)
def test_no_descriptor_is_inherited(den, room, options):  # noqa: F811
    out = den("exec", *options, room, "python3", "-c", den.prelude + DESCRIPTORS).ok().out
    assert [line.split()[0] for line in out.splitlines()] == ["0", "1", "2"]


WATCH = r"""
SECRET, me, got, looks = sys.argv[1], os.getpid(), set(), 0
libc.syscall.restype = ctypes.c_long
mine = int(next(line for line in open("/proc/self/status") if line[:6] == "CapEff").split()[1], 16)
def is_ours(fd):                            # on the container's own root mount
    with open("/proc/self/fdinfo/%d" % fd) as file:
        return [line for line in file if line[:6] == "mnt_id"] == ROOT
def stolen(pid):
    handle = libc.syscall(434, pid, 0)                          # pidfd_open(2)
    if handle >= 0:
        for number in range(48):
            fd = libc.syscall(438, handle, number, 0)           # pidfd_getfd(2)
            if fd >= 0:
                yield fd, number
                os.close(fd)
        os.close(handle)
ROOT = [line for line in open("/proc/self/fdinfo/%d" % os.open("/", os.O_PATH))
        if line[:6] == "mnt_id"]
def look(pid):
    at = "/proc/%d/" % pid
    for name in ("root", "cwd"):
        for up in ("", "../" * 9):
            if not refused(os.stat, at + name + "/" + up + SECRET[1:]):
                got.add(name)
    for line in open(at + "status"):
        if line[:6] in ("CapEff", "CapPrm") and int(line.split()[1], 16) & ~mine:
            got.add(line.strip())
    for fd, number in stolen(pid):
        name = os.readlink("/proc/self/fd/%d" % fd)
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            for up in ("", "../" * 9):
                if not refused(os.stat, "/proc/self/fd/%d/%s%s" % (fd, up, SECRET[1:])):
                    got.add("directory " + name)
        elif not is_ours(fd) and not name.startswith(("pipe:", "socket:", "/dev/", "anon_inode:")):
            got.add("descriptor %d %s" % (number, name))
    try:
        fd = os.open(at + "exe", os.O_RDONLY)
        path = "/proc/self/fd/%d" % fd
        copied = os.readlink(path)[:7] == "/memfd:"             # below Linux 5.12; it is sealed
        if not is_ours(fd) and not (refused(os.open, path, os.O_WRONLY)
                                    and (copied or refused(os.fchmod, fd, 0o755))):
            got.add("exe")
        os.close(fd)
    except OSError:
        pass
say("ready")
while not os.path.exists("/tmp/stop"):
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in (1, me):
            try:
                looks += 1
                look(int(name))
            except (OSError, IndexError):
                pass
say("looks", looks)
say(*got)
"""


def test_nothing_of_the_host_comes_in(den):  # noqa: F811
    """CVE-2016-9962: a tracer takes what it finds in each process that enters the container."""
    program = f"sys.argv[1:] = [{den.secret!r}]\n{WATCH}"
    id = den.start(program, *TRACER, "--security-opt", "seccomp=unconfined")
    for number in range(40):
        den("exec", *(["-t"] if number % 2 else []), id, "true").ok()
    den("exec", id, "python3", "-c", "open('/tmp/stop', 'w')")      # it may end with the other
    wait_for(lambda: "looks" in den("logs", id).out, 20)
    told = den("logs", id).ok().lines()
    assert told[0] == "ready" and int(told[1].split()[1]) > 0 and told[2:] == [], told
    den("rm", "-f", id).ok()




@pytest.mark.parametrize("target", ["/fifo", "/dev/zero", "/dev/tty", "/", "/proc/self/mem",
                                    "/proc/1/fd/0", "/etc/passwd"])
def test_files_that_are_read_may_be_anything(den, target):  # noqa: F811
    """The image's tables of users are the container's: who reads them neither hangs nor leaves."""
    id = den.start('os.mkfifo("/fifo")\nwriter = os.open("/fifo", os.O_RDWR)\n'
                   'refused(os.unlink, "/etc/passwd")\n'
                   f'os.symlink({target!r}, "/etc/passwd")\n' + IDLE)
    done = den("exec", "-u", "someone", id, "cat", "/proc/self/status", timeout=40)
    assert done.code in (1, 125, 126) and len(done.err.splitlines()) == 1, done
    den("exec", id, "true", timeout=40)
    den("rm", "-f", id).ok()


def test_a_successor_is_a_child_of_ours(engine):
    """A tracer that took the channel names a process of the host: nobody will wait for or kill it.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    if child == 0:
        os._exit(0)
    for named in (1, os.getppid(), 1 << 40, "x", None, -1, 0):
        born = engine.Born(ours)
        born.pid = child
        theirs.send(engine.json_text({"pid": named}).encode())
        with pytest.raises(engine.InitError, match="successor"):
            engine._ready_wait(ours, born, True)
        assert born.pid == child
    os.waitpid(child, 0)
