#!/usr/bin/env python3
"""Which functions the commands run that must start at once: QUICK in build_zipapp.py.

    unshare -n quick.py PYZ [--check|--write]       as root; needs a static busybox on this host

Prints the names, as QUICK has them, or writes them there. With --check only those that QUICK lacks:
each costs a start the reading of a whole section.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable

PYTHON = "/usr/bin/python3"
TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
#: Runs in the place of the archive's start, and writes down what it loads.
WATCHED = """
import sys, zipimport
archive, log = sys.argv[1:3]
sys.argv[:] = [archive, *sys.argv[3:]]
__loader__ = zipimport.zipimporter(archive)
text = __loader__.get_source("__main__").replace("\\nstart()\\n", "\\n")
exec(compile(text, "__main__.py", "exec"), globals())
module = engine_load()
record, seen = CODE.record, set()
def watched(unit):
    if CODE.kinds[unit] != 115:
        seen.add(CODE.names[unit])
    return record(unit)
CODE.record = watched
leave = os._exit
def left(code):
    with open(log, "a") as file:
        file.writelines(name + "\\n" for name in seen)
    leave(code)
os._exit = left
module.main_exit(sys.argv[1:])
"""


def names_seen(pyz: str) -> list[set[str]]:
    """Names of units that `version` loads; what `ps` loads besides; what `run` and `exec` do."""
    work = tempfile.mkdtemp(prefix="quick-")
    log = work + "/log"
    roots = ["--data-root", work + "/data", "--run-root", work + "/run"]
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
                subprocess.run([PYTHON, "-c", WATCHED, pyz, log, *flags, *words],
                               env={**os.environ, **environment}, stdout=subprocess.DEVNULL,
                               check=True)
        with open(log) as file:
            names = set(file.read().split())
        os.unlink(log)
        return names

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
        return [first, second, third - first - second]
    finally:
        shutil.rmtree(work, ignore_errors=True)


def main(argv: list[str]) -> int:
    sys.path.insert(0, TOP)
    import build_zipapp

    known = set(" ".join(build_zipapp.QUICK).split()) if argv[1:] == ["--check"] else set()
    lists = ["\n".join(textwrap.wrap(" ".join(sorted(names - known)), 100))
             for names in names_seen(os.path.abspath(argv[0]))]
    if argv[1:] != ["--write"]:
        print("\n\n".join(lists))
        return 0
    with open(TOP + "/build_zipapp.py") as file:
        before, _, after = file.read().partition('QUICK = ("""\n')
    with open(TOP + "/build_zipapp.py", "w") as file:
        middle = '\n""", """\n'.join(lists)
        file.write(before + 'QUICK = ("""\n' + middle + '\n""")\n'
                   + after.partition('""")\n')[2])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
