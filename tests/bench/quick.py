#!/usr/bin/env python3
"""Which functions the commands run that must start at once: FIRST and QUICK in build_zipapp.py.

    unshare -n quick.py PYZ [--check|--write]       as root; needs a static busybox on this host

Prints the names, as they stand there, or writes them. With --check only those that are missing:
each costs a start the reading of a whole section.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator

PYTHON = "/usr/bin/python3"
TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
#: Runs in the place of the archive's start, and marks in a file what it and its forks load. The
#: launcher that it starts does so too, until the first container is through.
WATCHED = """
import mmap, os, sys, zipimport
archive, log, own, *words = sys.argv[1:]
sys.argv[:] = [archive, *words]
__loader__ = zipimport.zipimporter(archive)
text = __loader__.get_source("__main__").replace("\\nstart()\\n", "\\n")
exec(compile(text, "__main__.py", "exec"), globals())
module = engine_load()
record, fd = CODE.record, os.open(log, os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, len(CODE.names))
seen = mmap.mmap(fd, len(CODE.names))
def watched(unit):
    seen[unit] = 1
    return record(unit)
CODE.record = watched
with open(log + ".names", "w") as file:
    file.writelines(name.replace("\\n", " ") * (kind != 115) + "\\n"
                    for name, kind in zip(CODE.names, CODE.kinds))
def instead(name, function):
    getattr(module, name)                   # it is loaded, and is not loaded again
    setattr(module, name, function)
if own:
    program = ["-c", own, archive, log + ".first", ""]
    instead("_program_words", lambda: program)
else:
    instead("heap_settle", lambda run: os._exit(0))
module.main_exit(sys.argv[1:])
"""


def loopback_up() -> None:
    """A registry can be reached in the network namespace that is ours."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, 0x8914, struct.pack("16sH22x", b"lo", 1))     # SIOCSIFFLAGS, IFF_UP


def names_seen(pyz: str) -> list[set[str]]:
    """Names of units that the first container needs of the launcher; those that `version` loads;
    what `ps` loads besides; what `run` and `exec` do; what a `pull` of what is there does."""
    work = tempfile.mkdtemp(prefix="quick-")
    log = work + "/log"
    roots = ["--data-root", work + "/data", "--run-root", work + "/run"]
    host = "127.0.0.1:5000"
    there = host + "/tools"
    run = ("run", "--rm", "--network", "none", "tools", "true")
    bridged = ("run", "--rm", "tools", "true")

    def engine(*words: str) -> str:
        done = subprocess.run([PYTHON, pyz, *roots, *words], stdout=subprocess.PIPE, check=True)
        return done.stdout.decode().strip()

    def launcher_end() -> None:
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/cmdline") as file:
                    words = file.read().split("\0")
            except OSError:
                continue                    # it is gone
            if "--role=launcher" in words and work + "/run" in words:
                os.kill(int(pid), signal.SIGKILL)

    def seen(*commands: tuple, before: Callable = lambda: None) -> set[str]:
        named = {"ENGINE_DATA_ROOT": roots[1], "ENGINE_RUN_ROOT": roots[3]}
        for words in commands:
            for flags, environment in ((roots, {}), ([], named)):
                before()
                subprocess.run([PYTHON, "-c", WATCHED, pyz, log, WATCHED, *flags, *words],
                               env={**os.environ, **environment}, stdout=subprocess.DEVNULL,
                               check=True)
        return marked(log)

    @contextlib.contextmanager
    def registry() -> Iterator[None]:
        loopback_up()
        command = [PYTHON, pyz, "registry", "serve", "-l", host, "--root", work + "/registry"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as served:
            served.stdout.readline()        # it listens
            try:
                yield
            finally:
                served.terminate()

    def marked(log: str) -> set[str]:
        with open(log, "rb") as marks, open(log + ".names") as names:
            found = {name.strip() for mark, name in zip(marks.read(), names) if mark}
        os.unlink(log)
        return found - {""}

    try:
        engine("image", "from-host", "-t", "tools", "busybox", "sleep", "true")
        engine(*run)                        # which starts the launcher
        engine(*bridged)                    # which makes the bridge
        name = engine("run", "-d", "--network", "none", "tools", "sleep", "1000")
        first = seen(("version",))
        second = seen(("ps",), ("ps", "--help")) - first
        third = seen(run, bridged, ("exec", name, "true"))
        engine("rm", "-f", name)
        third |= seen(run, before=launcher_end)
        with registry():
            engine("tag", "tools", there)
            engine("push", there)
            fourth = seen(("pull", there))
        return [marked(log + ".first"), first, second, third - first - second,
                fourth - first - second - third]
    finally:
        shutil.rmtree(work, ignore_errors=True)


def main(argv: list[str]) -> int:
    sys.path.insert(0, TOP)
    import build_zipapp

    known = [set(names.split()) if argv[1:] == ["--check"] else set()
             for names in (build_zipapp.FIRST, " ".join(build_zipapp.QUICK))]
    lists = ["\n".join(textwrap.wrap(" ".join(sorted(names - known[at > 0])), 100))
             for at, names in enumerate(names_seen(os.path.abspath(argv[0])))]
    if argv[1:] != ["--write"]:
        print("\n\n".join(lists))
        return 0
    with open(TOP + "/build_zipapp.py") as file:
        text = file.read()
    for head, tail, middle in (('FIRST = """\n', '"""\n', lists[0] + "\n"),
                               ('QUICK = ("""\n', '""")\n', '\n""", """\n'.join(lists[1:]) + "\n")):
        before, _, after = text.partition(head)
        text = before + head + middle + tail + after.partition(tail)[2]
    with open(TOP + "/build_zipapp.py", "w") as file:
        file.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
