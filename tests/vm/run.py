"""Runs the main job (smoke.sh) in small machines, two at a time: make test-vm.

    python3 tests/vm/run.py [-v] ENGINE [FLAVOUR...]

Prints a line for each flavour, what failed, and "N passed, N failed" over all. Without flavours:
all of them, which takes ten minutes once they are built. -v prints every check.
"""

from __future__ import annotations

import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from machine import FLAVOURS, HERE, machine_run

SECONDS = 900                   # of one script; emulated, it takes one to two minutes
SIDE_BY_SIDE = 2
COUNTS = re.compile(r"^(\d+) passed, (\d+) failed$", re.M)


def smoke(name, engine):
    """(flavour, passed, failed, seconds, output) of the script in a machine of that flavour."""
    parts, begin = [], time.monotonic()
    status = machine_run(
        FLAVOURS[name], os.path.join(HERE, "smoke.sh"), engine=engine, show=parts.append,
        seconds=SECONDS, name=name)
    text = b"".join(parts).decode("utf-8", "replace").replace("\r\n", "\n")
    counts = COUNTS.search(text)
    passed, failed = map(int, counts.groups()) if counts else (0, 0)
    if status and not failed:
        failed += 1
        text += f"FAIL  the script ended with status {status}\n"
    return name, passed, failed, time.monotonic() - begin, text


def report(name, passed, failed, seconds, text, *, every):
    print(f"{name:20} {passed:4} passed {failed:3} failed {seconds:5.0f} s  {FLAVOURS[name].about}")
    for line in text.splitlines():
        if every or not line.startswith("ok ") and not COUNTS.match(line):
            print("    " + line)
    sys.stdout.flush()


def main(argv):
    every = "-v" in argv
    engine, *names = (word for word in argv if word != "-v")
    unknown = sorted({*names} - {*FLAVOURS})
    if unknown:
        print(f"run.py: no flavour {', '.join(unknown)}; there is {', '.join(FLAVOURS)}")
        return 2
    sums = [0, 0]
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        for done in pool.map(lambda name: smoke(name, engine), names or FLAVOURS):
            report(*done, every=every)
            sums = [sums[0] + done[1], sums[1] + done[2]]
    print(f"{sums[0]} passed, {sums[1]} failed")
    return 1 if sums[1] or not sums[0] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
