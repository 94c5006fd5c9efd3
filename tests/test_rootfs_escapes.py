"""rootfs: ways out of a container by what is mounted into it; each is tried, and shut."""

from __future__ import annotations

import os

import pytest
from escapes_help import BLOCK, CHAR, LINK, TRACER, archive, den, image_with  # noqa: F401

pytestmark = pytest.mark.root

WRITES = r"""
opened = []
for top in ("/proc", "/sys"):
    for at, directories, names in os.walk(top):
        if at == "/proc":
            directories[:] = [name for name in directories if not name.isdigit()
                              and name not in ("self", "thread-self")]
        for name in names:
            path = at + "/" + name
            mode = os.lstat(path).st_mode
            if stat.S_ISREG(mode) and mode & 0o222 and not refused(put, path, ""):
                opened.append(path)
        for name in directories:
            if not refused(os.mkdir, at + "/" + name + "/made"):
                opened.append("mkdir:" + at + "/" + name)
say(*opened)
"""


@pytest.mark.parametrize("options", [(), TRACER], ids=["plain", "tracer"])
def test_nothing_of_the_kernel_can_be_written_to(den, options):  # noqa: F811
    """Every file below /proc and /sys is opened for writing, by the container's root."""
    found = den.attack(WRITES, *options).split()
    #: As in Docker, whose list of masked paths knows nothing of them.
    as_docker = ("/proc/pressure/", "/proc/dynamic_debug/")
    assert [path for path in found if not path.startswith(as_docker)] == []


MASKED = r"""
for path in sys.argv[1:]:
    try:
        if os.path.isdir(path):
            say(*os.listdir(path))
        else:
            with open(path, "rb") as file:
                say(*file.read(1))
    except OSError as error:
        say(errno.errorcode[error.errno])
BIND, REMOUNT = 4096, 32
for name, *args in (
    ("umount2", b"/proc/keys", 2), ("umount2", b"/proc/sys", 2), ("umount2", b"/sys/firmware", 2),
    ("mount", None, b"/proc/sys", None, BIND | REMOUNT, None),
    ("mount", None, b"/sys", None, BIND | REMOUNT, None),
    ("mount", b"proc", b"/tmp", b"proc", 0, None),
    ("mount", b"sysfs", b"/tmp", b"sysfs", 0, None),
    ("mount", b"/proc", b"/tmp", None, BIND, None),
):
    say(refused(call, name, *args) or str(args))
"""
PATHS = ("/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
         "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi",
         "/sys/firmware", "/sys/devices/virtual/powercap")
#: A user namespace of its own, where the container may: there it is root once more.
ROOT_AGAIN = r"""
NEWNS, NEWCGROUP, NEWUSER = 0x20000, 0x2000000, 0x10000000
if not refused(call, "unshare", NEWUSER | NEWNS | NEWCGROUP):
    put("/proc/self/setgroups", "deny")
    put("/proc/self/uid_map", "0 0 1")
    put("/proc/self/gid_map", "0 0 1")
"""
UNCONFINED = (*TRACER, "--security-opt", "seccomp=unconfined")


@pytest.mark.parametrize("options", [(), TRACER, UNCONFINED], ids=["plain", "tracer", "unconfined"])
@pytest.mark.parametrize("before", ["", ROOT_AGAIN], ids=["", "user-namespace"])
def test_what_is_masked_stays_masked(den, options, before):  # noqa: F811
    """CVE-2025-31133: nothing shines through, and no mount can be taken off, changed or repeated.
    """
    program = f"sys.argv[1:] = {PATHS!r}\n{before}{MASKED}"
    assert set(den.attack(program, *options).split()) <= {"EPERM", "EINVAL", "EACCES", "ENOENT"}


RELEASE_AGENT = r"""
os.mkdir("/c")
names = [line.split()[0] for line in open("/proc/cgroups") if line[0] != "#"]
for options in [*names, "none,name=systemd", "none,name=mine"]:
    if refused(call, "mount", b"cgroup", b"/c", b"cgroup", 0, options.encode()):
        continue
    say("mounted", options)
    for name, text in (("release_agent", "\n"), ("devices.allow", "c 1:3 rwm")):
        if os.path.exists("/c/" + name) and not refused(put, "/c/" + name, text):
            say("written", options, name)
    call("umount2", b"/c", 2)
if not refused(call, "mount", b"cgroup2", b"/c", b"cgroup2", 0, None):
    say("mounted", *[name for name in os.listdir("/c") if len(name) == 64])
"""


@pytest.mark.parametrize("options", [(), TRACER, UNCONFINED], ids=["plain", "tracer", "unconfined"])
@pytest.mark.parametrize("before", ["", ROOT_AGAIN], ids=["", "user-namespace"])
def test_no_release_agent_can_be_set(den, options, before):  # noqa: F811
    """CVE-2022-0492: a hierarchy of cgroups, mounted once more, lets name a program of the host."""
    out = den.attack(before + RELEASE_AGENT, *options)
    assert "written" not in out
    if not before or options is not UNCONFINED:
        assert out == ""


NODES = r"""
made_at = "/made-" + os.uname().nodename
os.mkdir(made_at)
numbers = set()
for kind in ("block", "char"):
    for name in os.listdir("/sys/dev/" + kind):
        numbers.add((stat.S_IFBLK if kind == "block" else stat.S_IFCHR, *map(int, name.split(":"))))
numbers |= {(stat.S_IFCHR, 1, 1), (stat.S_IFCHR, 1, 4), (stat.S_IFCHR, 1, 11),
            (stat.S_IFCHR, 10, 237), (stat.S_IFBLK, 7, 0)}
#: null, zero, full, random, urandom, tty, console, ptmx
given = {(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)}
for at, made in ((made_at, True), ("/nodes", False), ("/dev/shm", True), ("/dev", True)):
    for kind, major, minor in sorted(numbers):
        path = "%s/%o-%d-%d" % (at, kind, major, minor)
        if made and refused(os.mknod, path, kind | 0o666, os.makedev(major, minor)):
            continue
        if kind == stat.S_IFCHR and ((major, minor) in given or major == 136):
            continue
        for flags in (os.O_RDONLY, os.O_WRONLY):
            why = refused(os.open, path, flags | os.O_NONBLOCK)
            if why not in ("EPERM", "EACCES", "ENOENT"):
                say(path, flags, why or "opened")
"""


@pytest.mark.parametrize("options", [(), TRACER], ids=["plain", "tracer"])
def test_no_device_of_the_host_can_be_opened(den, options):  # noqa: F811
    """Neither by a node that came with the image nor by one that the container makes."""
    numbers = {(CHAR, 1, 1), (CHAR, 1, 4), (CHAR, 1, 11), (CHAR, 10, 237), (BLOCK, 7, 0)}
    for kind, directory in ((BLOCK, "/sys/dev/block"), (CHAR, "/sys/dev/char")):
        numbers |= {(kind, *map(int, name.split(":"))) for name in os.listdir(directory)}
    letter = {CHAR: "20000", BLOCK: "60000"}
    name = "nodes-" + str(len(options))
    den("create", "--name", name, "--network", "none", *options, "den", "python3", "-c",
        den.prelude + NODES).ok()
    den("cp", "-", name + ":/", input=archive(*[
        (f"nodes/{letter[kind]}-{major}-{minor}", kind, (major, minor))
        for kind, major, minor in sorted(numbers)])).ok()
    assert den("start", "-a", name).ok().out == ""
    image = "of-" + name
    den("commit", name, image).ok()
    assert den.attack(NODES, *options, image=image) == ""


@pytest.mark.parametrize("way", ["/../../../..", "../../../../../../../../.."])
def test_links_in_the_image_lead_no_mount_astray(den, way):  # noqa: F811
    """CVE-2021-30465: what is mounted or made below a link is below what it is in the container."""
    made = "/tmp/" + den.word
    image = image_with(den, "links", ("out", LINK, way + "/tmp"), ("etc", LINK, way + "/tmp"),
                       ("dev", LINK, way + "/tmp"), ("sys", LINK, way + "/tmp"))
    done = den("run", "--rm", "--network", "none", "--tmpfs", "/out/" + den.word,
               "-w", f"/out/{den.word}/made", image,
               "sh", "-ec", f"grep -o ' {made} ' /proc/self/mountinfo; ls {made}; ls -A /out")
    assert done.ok().out.split() == [made, "made", den.word]
    assert not os.path.exists(made) and not os.path.exists("/tmp/hostname")


def test_proc_is_mounted_on_no_link(den):  # noqa: F811
    """CVE-2019-19921: where a link leads may change before what is in it is masked."""
    for name, kind in (("proc", "proc"), ("sys", "sysfs")):
        id = den("create", "--network", "none", "den", "true").ok().out.strip()
        os.symlink("/tmp", os.path.join(den.roots.data, "containers", id, "upper", name))
        done = den("start", id)
        assert done.code == 1
        assert f'filesystem "{kind}" must be mounted on ordinary directory' in done.err


@pytest.mark.parametrize(("path", "told"), [
    ("/proc", '"/proc" cannot be mounted because it is not of type proc'),
    ("/proc/sys", '"/proc/sys" cannot be mounted because it is inside /proc'),
    ("/proc/self/attr", "cannot be mounted because it is inside /proc"),
    ("/kernel/sys/kernel", '"/proc/sys/kernel" cannot be mounted because it is inside /proc'),
    ("/deep", "cannot be mounted because it is inside /proc"),
    ("/top", 'mountpoint "/" is on the top of rootfs'),
])
def test_nothing_is_mounted_over_proc(den, path, told):  # noqa: F811
    """CVE-2019-16884, CVE-2025-52881: what we would write to or mask there would be another's."""
    image = image_with(den, "way", ("kernel", LINK, "/tmp/../proc"), ("top", LINK, "/"),
                       ("deep", LINK, "/proc/1/task"))
    done = den("run", "--rm", "--network", "none", "--tmpfs", path, image, "true")
    assert done.code == 125 and told in done.err, done
