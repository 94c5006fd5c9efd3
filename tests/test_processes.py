"""processes: ps without a ps, compared with the host's where there is one."""

from __future__ import annotations

import os
import shutil
import subprocess
import time

import engine
import pytest


@pytest.fixture
def sleeper():
    process = subprocess.Popen(["sleep", "60"])
    yield process.pid
    process.kill()
    process.wait()


def rows(pid, arguments):
    table = engine.processes_table([pid], arguments)
    assert len(table["Processes"]) == 1
    return dict(zip(table["Titles"], table["Processes"][0]))


def test_default_columns(sleeper):
    table = engine.processes_table([sleeper], "")
    assert table["Titles"] == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    row = rows(sleeper, "")
    assert row["PID"] == str(sleeper) and row["PPID"] == str(os.getpid())
    assert row["CMD"] == "sleep 60" and row["TIME"] == "00:00:00"


@pytest.mark.parametrize(
    "arguments",
    [
        "-ef",
        "aux",
        "-el",
        "ax",
        "-e",
        "-o pid,ppid,user,uid,comm,args",
        "-eo pid,nlwp,pgid,sid,stat,tty,ni",
        "-o pid=P,pid,rss,vsz,%mem",
        "-opid,group,gid",
        "-efl",
        "-o pid,lstart,stime",
    ],
)
def test_as_ps_prints_it(sleeper, arguments):
    if not shutil.which("ps"):
        pytest.skip("no ps here")
    if arguments.startswith("-o pid=P"):
        with pytest.raises(engine.EngineError):
            engine.processes_table([sleeper], "-o pid=P")
        return
    out = subprocess.run(
        ["ps", *arguments.split(), "-q", str(sleeper)], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    table = engine.processes_table([sleeper], arguments)
    titles = out[0].split()
    assert table["Titles"] == titles
    want = out[1].split(None, len(titles) - 1)
    got = [word for cell in table["Processes"][0] for word in cell.split()]
    skip = {"C", "%CPU", "TIME", "SZ", "WCHAN", "F", "PRI", "RSS", "%MEM"}
    for title, one, other in zip(titles, " ".join(want).split(), got):
        if title not in skip:
            assert one.rstrip() == other, title


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("-o comm", "Couldn't find PID field in ps output"),
        ("-o nope,pid", 'ps: error: unknown user-defined format specifier "nope"'),
        ("-o", "ps: error: format specification must follow -o"),
        ("-Z", "ps: error: unsupported option (this engine reads /proc itself)"),
        ("-o comm=PID", 'specifying "comm=PID" is not allowed'),
    ],
)
def test_refused(arguments, text):
    with pytest.raises(engine.EngineError) as caught:
        engine.processes_table([os.getpid()], arguments)
    assert str(caught.value) == text


def test_own_heading_takes_the_rest(sleeper):
    assert rows(sleeper, "-o pid -o args=A,B")["A,B"] == "sleep 60"


def test_one_that_has_ended_is_left_out():
    assert engine.processes_table([999999999], "")["Processes"] == []


def test_without_a_cgroup_the_first_process_tells():
    script = "sleep 60 & exec sleep 61"
    first = subprocess.Popen(["sh", "-c", script], start_new_session=True)
    try:
        deadline = time.monotonic() + 5
        while len(engine.processes_beside(first.pid)) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        found = engine.processes_beside(first.pid)
        assert found[0] == first.pid and len(found) == 2 and os.getpid() not in found
    finally:
        os.killpg(first.pid, 9)
        first.wait()


@pytest.mark.root
def test_without_a_cgroup_the_pid_namespace_tells():
    unshare = ["unshare", "--pid", "--fork", "--kill-child", "sh", "-c", "sleep 60 & exec sleep 61"]
    outer = subprocess.Popen(unshare)
    children = f"/proc/{outer.pid}/task/{outer.pid}/children"
    try:
        deadline = time.monotonic() + 5
        found = []
        while len(found) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
            with open(children) as file:
                first = file.read().split()
            found = engine.processes_beside(int(first[0])) if first else []
        assert int(first[0]) in found and len(found) == 2 and outer.pid not in found
    finally:
        outer.kill()
        outer.wait()
