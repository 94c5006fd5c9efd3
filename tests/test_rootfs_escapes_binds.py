"""rootfs: ways out of a container by binds and volumes; each is tried, and shut."""

from __future__ import annotations

import os
import subprocess

import pytest
from escapes_help import LINK, TRACER, den, image_with  # noqa: F401

pytestmark = pytest.mark.root
RUN = ("run", "--rm", "--network", "none")


@pytest.fixture
def shared(den):  # noqa: F811
    """A volume that several containers have: (its name, its directory on the host)."""
    name = "shared-" + os.urandom(4).hex()
    den("volume", "create", name).ok()
    yield name, den("volume", "inspect", "-f", "{{.Mountpoint}}", name).ok().out.strip()
    den("volume", "rm", "-f", name).ok()


PATTERN = "/proc/sys/kernel/core_pattern"


@pytest.mark.parametrize("path", ["/proc", "/proc/sys", "/proc/self", PATTERN,
                                  "/way/proc/sys/kernel", "/way/self/attr/exec"])
def test_nothing_is_bound_over_proc(den, shared, path):  # noqa: F811
    """CVE-2019-16884, CVE-2025-52881: also where links of a volume lead there."""
    volume, directory = shared
    os.symlink("/proc/../proc", directory + "/proc")
    os.symlink("/proc/self", directory + "/self")
    source = den.secret if path.endswith(("pattern", "exec")) else directory
    done = den(*RUN, "-v", volume + ":/way", "-v", f"{source}:{path}", "den", "cat",
               "/proc/self/attr/exec", "/proc/sys/kernel/hostname", "/proc/sys/kernel/core_pattern")
    assert done.code in (125, 127) and den.word not in done.out, done
    assert done.code == 127 or "cannot be mounted because it is" in done.err, done


def test_files_that_tools_give_of_their_own_may_be_bound(den):  # noqa: F811
    for path in ("/proc/uptime", "/proc/meminfo"):
        assert den(*RUN, "-v", f"{den.secret}:{path}:ro", "den", "cat", path).ok().out == den.word


EXCHANGE = r"""
AT_FDCWD, number = -100, {"x86_64": 316, "aarch64": 276}[os.uname().machine]
os.mkdir("/vol/place")
os.symlink(sys.argv[1], "/vol/link")
libc.syscall.restype = ctypes.c_long
say("ready")
while True:
    libc.syscall(number, AT_FDCWD, b"/vol/place", AT_FDCWD, b"/vol/link", 2)  # RENAME_EXCHANGE
"""


@pytest.mark.parametrize("way", ["/../../../..", "../../../../../../../.."])
def test_a_mount_point_that_changes_while_it_is_mounted(den, shared, way):  # noqa: F811
    """CVE-2021-30465: in a volume that another container has too, a directory becomes a link."""
    outside = os.path.join(den.roots.base, "outside" + str(len(way)))
    os.mkdir(outside)
    volume = shared[0]
    id = den.start(f"sys.argv[1:] = [{way + outside!r}]\n{EXCHANGE}", *TRACER,
                   "-v", volume + ":/vol")
    before = subprocess.run(["cat", "/proc/self/mountinfo"], stdout=subprocess.PIPE, check=True)
    for number in range(12):
        den(*RUN, "-v", volume + ":/vol", "--tmpfs", f"/vol/place/tmp{number}",
            "-v", f"{den.secret}:/vol/place/file{number}", "den", "true")
        assert os.listdir(outside) == []
    after = subprocess.run(["cat", "/proc/self/mountinfo"], stdout=subprocess.PIPE, check=True)
    assert after.stdout == before.stdout
    den("rm", "-f", id).ok()


@pytest.mark.parametrize(("name", "target"), [
    ("console", PATTERN), ("pts", "/proc/self/attr"), ("null", PATTERN), ("pts", "/tmp"),
    ("null", "/etc/passwd"), ("ptmx", PATTERN),
])
def test_a_dev_that_is_anothers(den, shared, name, target):  # noqa: F811
    """CVE-2025-52565, CVE-2025-31133: what becomes the terminal or the mask is a link elsewhere."""
    volume, directory = shared
    os.symlink(target, f"{directory}/{name}")
    terminal = [] if name == "null" else ["-t"]
    done = den(*RUN, *terminal, "-v", volume + ":/dev", "den", "python3", "-c", den.prelude + (
        "say('mask', refused(put, '/proc/sys/kernel/core_pattern', ''))\n"
        "say('keys', len(open('/proc/keys').read()))\n"
        "for line in open('/proc/self/mountinfo'):\n"
        "    if line.split()[4] in ('/dev/console', '/proc/keys'):\n"
        "        say(line.split()[4], line.split(' - ')[1].split()[0])\n"
        "print(os.path.exists('/dev/console') and refused(os.stat, '/dev/console/x'))\n"))
    if done.code:
        assert done.code in (125, 126, 127) and "mask" not in done.out, done
    else:
        told = dict(line.split() for line in done.out.splitlines() if len(line.split()) == 2)
        assert told["mask"] == "EROFS" and told["keys"] == "0", done
        assert told.get("/dev/console", "devpts") == "devpts", done


def test_devices_of_a_volume(den, shared):  # noqa: F811
    """A node in a volume is as shut as one in the image."""
    volume, directory = shared
    for path, kind, number in (("mem", 0o020666, (1, 1)), ("kmsg", 0o020666, (1, 11)),
                               ("loop", 0o060666, (7, 0))):
        os.mknod(f"{directory}/{path}", kind, os.makedev(*number))
    out = den(*RUN, *TRACER, "-v", volume + ":/vol", "den", "python3", "-c", den.prelude
              + "for name in ('mem', 'kmsg', 'loop'):\n"
              "    say(refused(os.open, '/vol/' + name, os.O_RDONLY))").ok().out
    assert set(out.split()) <= {"EPERM", "EACCES"} and len(out.split()) == 3


def test_what_is_bound_read_only_stays_so(den, tmp_path):  # noqa: F811
    (tmp_path / "file").write_text("kept")
    program = den.prelude + (
        "say(refused(put, '/b/file', 'lost'), refused(os.unlink, '/b/file'),"
        " refused(call, 'mount', None, b'/b', None, 4096 | 32, None),"
        " refused(os.open, '/proc/self/root/b/../b/file', os.O_WRONLY))")
    out = den(*RUN, *TRACER, "-v", f"{tmp_path}:/b:ro", "den", "python3", "-c", program).ok().out
    assert out.split() == ["EROFS", "EROFS", "EPERM", "EROFS"]
    assert (tmp_path / "file").read_text() == "kept"


def test_links_of_the_image_in_what_a_volume_is_filled_from(den):  # noqa: F811
    """The content of a new volume comes from the image: links there are copied, not followed."""

    image = image_with(den, "fill", ("data", LINK, "/../../../.." + den.roots.base))
    done = den(*RUN, "-v", "filled:/data", image, "ls", "/data/")
    assert "secret" not in done.out and den.word not in done.out
    where = den("volume", "inspect", "-f", "{{.Mountpoint}}", "filled")
    assert where.code or "secret" not in os.listdir(where.out.strip())
    den("volume", "rm", "-f", "filled")
