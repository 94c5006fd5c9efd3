"""processes: ps without a ps, compared with the host's where there is one."""

from __future__ import annotations

import os
import shutil
import subprocess

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
