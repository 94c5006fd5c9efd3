"""Runs the main job (smoke.sh), and in some flavours the tests of walls around containers
(isolation.sh), in small machines, two at a time: make test-vm.

    python3 tests/vm/run.py [-v] [--quick] ENGINE [FLAVOUR...]

Prints a line for each flavour, what failed, and "N passed, N failed" over all. Without flavours:
all of them, which takes half an hour once they are built. -v prints every check. --quick is what
`make test` runs: the main job in the two flavours that are quickest to build, and what shows that
limits hold under cgroup v2; where no machine can be had (no qemu, no mirror of Debian's), that is
told and nothing fails.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

from machine import CACHE, FLAVOURS, HERE, TOP, flavour_ready, machine_run

SMOKE, ISOLATION = "smoke.sh", "isolation.sh"
SECONDS = {SMOKE: 900, ISOLATION: 3000}     # of one script; emulated, it is ten times slower
SIDE_BY_SIDE = 2
#: MiB of a machine for the tests: a launcher of engine.py itself keeps what its compiler used (270
#: MiB; of engine.pyz: 28), and that of the file of tests before has not ended yet.
ISOLATION_MEMORY = 2048
QUICK = ("debian12-v2", "minimal")
ISOLATED = ("debian12-v2", "debian11", "minimal")
TESTS = ("rootfs_escapes", "init_escapes", "entering_escapes", "copying_escapes", "entering",
         "confine", "namespaces", "devices")
#: What v2 alone has: its limits, live updates, devices by BPF, the memory's end.
V2_TESTS = ("cgroups", "policies", "exhaustion", "spec_privileges")
V2_QUICK = ("policies.py::test_limits_of_one_that_runs", "cgroups.py::test_devices_of_this_kernel",
            "exhaustion.py::test_a_child_dies_and_the_container_lives")
#: What pytest is made of, in the last versions for the oldest Python of the machines; no wheel of
#: them holds machine code.
PYTEST = ("pytest==8.4.2", "pluggy==1.6.0", "iniconfig==2.1.0", "packaging==25.0", "attrs==25.4.0",
          "exceptiongroup==1.3.0", "tomli==2.2.1", "typing_extensions==4.15.0", "pygments==2.19.2",
          "hypothesis==6.141.1", "sortedcontainers==2.4.0")
COUNTS = re.compile(r"\b(\d+) (passed|failed|error)")


def pytest_folder():
    """The folder with pytest for the machines' Pythons, fetched once."""
    folder = os.path.join(CACHE, "pytest")
    if not os.path.exists(folder + "/ready"):
        shutil.rmtree(folder, ignore_errors=True)
        python = os.path.join(TOP, "tests", ".cache", "venv", "bin", "python")
        subprocess.run(
            [python if os.path.exists(python) else sys.executable, "-m", "pip", "install", "-q",
             "--disable-pip-version-check", "--target", folder, "--python-version", "3.9",
             "--only-binary=:all:", "--no-deps", *PYTEST], check=True)
        open(folder + "/ready", "w").close()
    return folder


def source_folder(work):
    """A copy of what the tests need: engine.py and the tests without what they made."""
    top = os.path.join(work, "source")
    os.makedirs(top)
    shutil.copy(os.path.join(TOP, "engine.py"), top)
    shutil.copytree(os.path.join(TOP, "tests"), top + "/tests",
                    ignore=shutil.ignore_patterns(".cache", "__pycache__", "vm", "bench", "data"))
    return top


def tests_of(name, quick):
    """The arguments of pytest in a flavour."""
    files = [test + ".py" for test in TESTS]
    if name == "debian12-v2":
        files = list(V2_QUICK) if quick else files + [test + ".py" for test in V2_TESTS]
    return " ".join(f"tests/test_{file}" for file in files)


def job_run(name, script, engine, quick=False):
    """(flavour, script, passed, failed, seconds, output) of a script in a machine."""
    parts, begin, flavour = [], time.monotonic(), FLAVOURS[name]
    with tempfile.TemporaryDirectory() as work:
        files, env = (), {}
        if script == ISOLATION:
            flavour = flavour._replace(memory=ISOLATION_MEMORY)
            files = (pytest_folder(), source_folder(work))
            env = {"TESTS": tests_of(name, quick)}
        status = machine_run(
            flavour, os.path.join(HERE, script), engine=engine, files=files, env=env,
            show=parts.append, seconds=SECONDS[script], name=name)
    text = b"".join(parts).decode("utf-8", "replace").replace("\r\n", "\n")
    lines = [line for line in text.splitlines() if COUNTS.search(line)]
    counts = {what: int(number) for number, what in COUNTS.findall(lines[-1] if lines else "")}
    passed, failed = counts.get("passed", 0), counts.get("failed", 0) + counts.get("error", 0)
    if status and not failed:
        failed += 1
        text += f"FAIL  the script ended with status {status}\n"
    return name, script, passed, failed, time.monotonic() - begin, text


def report(name, script, passed, failed, seconds, text, *, every):
    print(f"{name:18} {script:12} {passed:4} passed {failed:3} failed {seconds:5.0f} s  "
          + FLAVOURS[name].about)
    for line in text.splitlines():
        noise = line.startswith("ok ") or re.fullmatch(r"\d+ passed, \d+ failed", line)
        if every or not noise and (script == SMOKE or failed):
            print("    " + line)
    sys.stdout.flush()


def can_run(names):
    """True when all machines are there, or could be built."""
    try:
        for name in names:
            flavour_ready(FLAVOURS[name])
    except SystemExit:
        return False
    return True


def main(argv):
    given = [word for word in argv if word not in ("-v", "--quick")]
    engine, names = given[0], given[1:]
    unknown = sorted({*names} - {*FLAVOURS})
    if unknown:
        print(f"run.py: no flavour {', '.join(unknown)}; there is {', '.join(FLAVOURS)}")
        return 2
    jobs = [(name, SMOKE) for name in names or FLAVOURS]
    jobs += [(name, ISOLATION) for name in ISOLATED if name in (names or ISOLATED)]
    if "--quick" in argv:
        jobs = [*((name, SMOKE) for name in QUICK), ("debian12-v2", ISOLATION)]
        if not can_run(QUICK):
            print("small machines: skipped, as they cannot be built here")
            return 0
    sums = [0, 0]
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        for done in pool.map(lambda job: job_run(*job, engine, "--quick" in argv), jobs):
            report(*done, every="-v" in argv)
            sums = [sums[0] + done[2], sums[1] + done[3]]
    print(f"small machines: {sums[0]} passed, {sums[1]} failed")
    return 1 if sums[1] or not sums[0] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
