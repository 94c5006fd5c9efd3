"""notices: the lines of the daemon's log."""

from __future__ import annotations

import json
import re

import engine
import pytest


@pytest.fixture
def log(capfd):
    yield lambda: capfd.readouterr().err
    engine.notices_close()


def test_nothing_before_it_is_opened(log):
    engine.notices_close()
    engine.notice("error", "nobody reads this")
    assert log() == ""


def test_text(log):
    engine.notices_open()
    engine.notice("info", "API listen on /run/x.sock")
    engine.notice("warn", "gone", path="/a-b.c", text='two "words"', count=3, empty="")
    engine.notice("debug", "too much")
    first, second = log().splitlines()
    when = r'time="\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}(Z|[+-]\d\d:\d\d)" '
    assert re.fullmatch(when + 'level=info msg="API listen on /run/x.sock"', first)
    assert re.fullmatch(
        when + r'level=warning msg=gone count=3 empty= path=/a-b.c text="two \\"words\\""', second
    )


def test_json(log):
    engine.notices_open("DEBUG", "json")
    engine.notice("debug", "a\nb", zone="z", error="e")
    line = log()
    assert line.count("\n") == 1
    row = json.loads(line)
    assert list(row) == ["error", "level", "msg", "time", "zone"]
    assert (row["level"], row["msg"], row["error"]) == ("debug", "a\nb", "e")


def test_levels(log):
    engine.notices_open("error")
    for level in engine.NOTICE_LEVELS:
        engine.notice(level, "x")
    assert re.findall("level=(\\w+)", log()) == ["panic", "fatal", "error"]
