#!/usr/bin/env python3
"""What a container's monitor costs: private memory after its start, after lines and after execs.

    monitor_memory.py PYZ...          as root; needs a static busybox on this host

Each archive gets roots of its own. Private memory is Private_Clean and Private_Dirty of smaps, in
KiB, by kind of mapping: `heap` is malloc's, `anon` Python's own pools, `python` the interpreter's
data. Then what one `run --rm true` costs all processes below the launcher: page faults (most of
them copies of pages) and CPU time.
"""

from __future__ import annotations

import collections
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

PYTHON = "/usr/bin/python3"
LINES, EXECS, RUNS = 10_000, 20, 20
SCRIPT = f"i=0; while [ $i -lt {LINES} ]; do echo line $i of the log; i=$((i+1)); done; sleep 1000"


def private_kib(pid):
    """{kind of mapping: KiB}"""
    found, kind = collections.Counter(), ""
    with open(f"/proc/{pid}/smaps") as file:
        for line in file:
            head = re.match(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+\s*(.*)", line)
            if head:
                name = os.path.basename(head[1])
                kind = "anon" if not head[1] else "other"
                kind = "heap" if name == "[heap]" else kind
                # The interpreter is executed through a detached mount: its path is "/".
                kind = "python" if head[1] == "/" or name.startswith("python") else kind
            elif line.startswith(("Private_Clean:", "Private_Dirty:")):
                found[kind] += int(line.split()[1])
    return found


def stat_fields(pid):
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()


def parent_of(pid):
    return int(stat_fields(pid)[1])


def children_cost(pid):
    """(minor faults, CPU ms) of the children that a process has waited for."""
    fields = stat_fields(pid)
    ticks = int(fields[13]) + int(fields[14])
    return int(fields[8]), ticks * 1000 / os.sysconf("SC_CLK_TCK")


def show(what, pid):
    found = private_kib(pid)
    kinds = ", ".join(f"{name} {size}" for name, size in found.most_common())
    print(f"  {what:<18} {sum(found.values()):5} KiB  ({kinds})", flush=True)


def measure(pyz, work):
    def engine(*words):
        roots = ["--data-root", work + "/data", "--run-root", work + "/run"]
        done = subprocess.run([PYTHON, pyz, *roots, *words], stdout=subprocess.PIPE, check=True)
        return done.stdout.decode()

    engine("image", "from-host", "-t", "bench", "busybox", "sh", "sleep", "true")
    name = engine("run", "-d", "--network", "none", "bench", "sleep", "1000").strip()
    first = int(engine("inspect", "-f", "{{.State.Pid}}", name))
    time.sleep(1)
    show("started", parent_of(first))
    engine("rm", "-f", name)
    name = engine("run", "-d", "--network", "none", "bench", "sh", "-c", SCRIPT).strip()
    monitor = parent_of(int(engine("inspect", "-f", "{{.State.Pid}}", name)))
    while len(engine("logs", name).splitlines()) < LINES:
        time.sleep(0.2)
    time.sleep(1)
    show(f"{LINES} lines", monitor)
    for _ in range(EXECS):
        engine("exec", name, "true")
    time.sleep(1)
    show(f"and {EXECS} execs", monitor)
    launcher = parent_of(monitor)
    engine("rm", "-f", name)
    time.sleep(0.5)
    before = children_cost(launcher)
    for _ in range(RUNS):
        engine("run", "--rm", "--network", "none", "bench", "true")
    time.sleep(0.5)
    faults, cpu = (
        (now - then) / RUNS for now, then in zip(children_cost(launcher), before)
    )
    print(f"  run --rm true: {faults:.0f} page faults, {cpu:.1f} ms of CPU")


def main():
    for pyz in sys.argv[1:]:
        print(pyz)
        work = tempfile.mkdtemp(prefix="monitor-memory-")
        try:
            measure(os.path.abspath(pyz), work)
        finally:
            shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
