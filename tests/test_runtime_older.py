"""runtime: on an older kernel, played by a system call filter that everything here inherits."""

from __future__ import annotations

import json

import pytest
from conftest import PYTHON, TOP, Cli, end_launchers

pytestmark = pytest.mark.root

#: What Linux 5.10 does not know: (name, errno, arguments)
LINUX_5_10 = (
    ("mount_setattr", 38, []),
    ("close_range", 22, [{"index": 2, "value": 0, "op": "SCMP_CMP_NE"}]),
)
NO_OVERLAYFS = (("fsopen", 19, []),)

FILTERED = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
import engine
engine.seccomp_install(engine.seccomp_compile(json.loads(sys.argv[2])))
os.execv(sys.argv[3], sys.argv[3:])
"""


class OlderCli(Cli):
    """As Cli, where some system calls fail."""

    def __init__(self, pyz, roots, lacks):
        super().__init__(pyz, roots)
        rows = [
            {"names": [name], "action": "SCMP_ACT_ERRNO", "errnoRet": code, "args": args}
            for name, code, args in lacks
        ]
        self.profile = json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rows})

    def argv(self, *args):
        return [PYTHON, "-B", "-c", FILTERED, str(TOP), self.profile, *super().argv(*args)]


@pytest.fixture
def older(pyz, roots, busybox):
    """Makes an OlderCli on the roots of `busybox`."""
    yield lambda lacks: OlderCli(pyz, roots, lacks)
    end_launchers(roots.run)


def test_linux_5_10(older):
    cli = older(LINUX_5_10)
    script = "echo here; touch /file 2>/dev/null; exit 7"
    for options in ((), ("--read-only",), ("--init",), ("--tmpfs", "/scratch"), ("-t",)):
        done = cli("run", "--rm", "--network", "none", *options, "busybox", "sh", "-c", script)
        assert (done.code, done.out.strip()) == (7, "here"), (options, done)
    done = cli("run", "--rm", "--network=none", "--read-only", "busybox", "touch", "/file")
    assert done.code == 1 and "Read-only file system" in done.err
    script = "echo 1 >/proc/sys/vm/swappiness"
    done = cli("run", "--rm", "--network=none", "busybox", "sh", "-c", script)
    assert done.code == 1 and "Read-only file system" in done.err
    assert cli("ps", "-aq").out == ""


def test_without_overlayfs_one_line_says_so(older, engine):
    done = older(NO_OVERLAYFS)("run", "--rm", "--network", "none", "busybox", "true")
    assert done.code == 125 and done.out == ""
    assert done.err.startswith(f"docker: Error response from daemon: {engine.NO_OVERLAY}\n\nRun ")
    assert older(NO_OVERLAYFS)("ps", "-aq").out == ""
