"""times: instants and durations as Go writes and reads them."""

from __future__ import annotations

import datetime
import os
import time

import engine
import hypothesis.strategies as st
import pytest
from hypothesis import given

NOW = 1_764_000_000 * engine.SECOND
UTC = datetime.timezone.utc


@pytest.fixture
def berlin():
    before = os.environ.get("TZ")
    os.environ["TZ"] = "CET-1CEST,M3.5.0,M10.5.0/3"
    time.tzset()
    yield
    if before is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = before
    time.tzset()


def test_texts(berlin):
    ns = NOW + 120_000_000
    assert engine.time_rfc3339(ns) == "2025-11-24T16:00:00.12Z"
    assert engine.time_rfc3339(NOW) == "2025-11-24T16:00:00Z"
    assert engine.time_fixed(ns) == "2025-11-24T16:00:00.120000000Z"
    assert engine.time_fixed_local(ns) == "2025-11-24T17:00:00.120000000+01:00"
    assert engine.time_text_local(ns) == "2025-11-24 17:00:00 +0100 CET"
    assert engine.time_rfc3339(None) == engine.TIME_ZERO == engine.time_rfc3339(engine.TIME_ZERO_NS)
    assert engine.time_rfc3339(0) == "1970-01-01T00:00:00Z"
    assert abs(engine.time_now() - time.time_ns()) < engine.SECOND


@given(st.datetimes(datetime.datetime(1, 1, 1), datetime.datetime(9999, 12, 31)),
       st.integers(0, 999))
def test_round_trip(when, nanos):
    seconds = (when - datetime.datetime(1970, 1, 1)) // datetime.timedelta(seconds=1)
    ns = seconds * engine.SECOND + when.microsecond * 1000 + nanos
    assert engine.time_parse(engine.time_rfc3339(ns)) == ns
    assert engine.time_parse(engine.time_fixed(ns)) == ns
    assert engine.time_fixed(ns)[:26] == when.isoformat(timespec="microseconds")


@pytest.mark.parametrize("text, want", [
    ("2025-11-24T16:00:00Z", 0), ("2025-11-24T17:00:00+01:00", 0), ("2025-11-24T10:30:00-05:30", 0),
    ("2025-11-24T16:00:00.5Z", 500_000_000), ("2025-11-24T16:00:00.1234567899Z", 123_456_789),
    ("2025-11-24T16:00Z", 0), ("2025-11-24T16Z", 0), ("2025-11-24Z", -16 * 3600 * engine.SECOND),
    ("2025-11-24T17:00:00", 0), ("2025-11-24T17:00", 0), ("2025-11-24T17", 0),
    ("2025-11-24", -17 * 3600 * engine.SECOND), ("2025-11-24T17:00:00.25", 250_000_000),
    ("1764000000", 0), ("1764000000.25", 250_000_000), ("1764000000.0000000019", 1),
    ("10m", -600 * engine.SECOND), ("1h30m", -5400 * engine.SECOND), ("-1s", engine.SECOND),
    ("0", -NOW), ("0s", 0), ("-5", -NOW - 5 * engine.SECOND),
])
def test_parse(berlin, text, want):
    assert engine.time_parse(text, NOW) - NOW == want


@pytest.mark.parametrize("text", [
    "", "x", "yesterday", "2025-13-01", "2025-02-30", "2023-02-29", "2025-00-10", "2025-01-00",
    "2025-01-01T24:00:00Z", "2025-01-01T23:60:00Z", "2025-01-01T23:00:61Z", "2025-1-1",
    "2025-01-01T00:00:00+25:00", "2025-01-01T00:00:00+0100", "2025-01-01 00:00:00", "1.x", "1.-5",
    "٢٠٢٥-01-01", "99999999999999999999", "1_000", "2025-01-01T00:00:00Z\n", "+", ".", "1e9", "--1",
])
def test_parse_refused(text):
    with pytest.raises(engine.InvalidParameter) as error:
        engine.time_parse(text, NOW)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text, ns, shown", [
    ("0", 0, "0s"), ("1ns", 1, "1ns"), ("1us", 1000, "1µs"), ("1µs", 1000, "1µs"),
    ("1μs", 1000, "1µs"),
    ("1.5ms", 1_500_000, "1.5ms"), ("1s", engine.SECOND, "1s"),
    ("90s", 90 * engine.SECOND, "1m30s"),
    ("1h", 3600 * engine.SECOND, "1h0m0s"), ("1h0m0.5s", 3600_500_000_000, "1h0m0.5s"),
    ("-1.25s", -1_250_000_000, "-1.25s"), ("+5m", 300 * engine.SECOND, "5m0s"),
    (".5s", 500_000_000, "500ms"),
    ("1.s", engine.SECOND, "1s"), ("100h", 360_000 * engine.SECOND, "100h0m0s"),
    ("1.123456789s", 1_123_456_789, "1.123456789s"), ("-0", 0, "0s"),
    ("2m0.000000001s", 120_000_000_001, "2m0.000000001s"),
])
def test_durations(text, ns, shown):
    assert engine.duration_parse(text) == ns
    assert engine.duration_text(ns) == shown


@given(st.integers(-2**62, 2**62))
def test_duration_round_trip(ns):
    assert engine.duration_parse(engine.duration_text(ns)) == ns


@pytest.mark.parametrize("text, message", [
    ("", 'time: invalid duration ""'), ("x", 'time: invalid duration "x"'),
    ("1", 'time: missing unit in duration "1"'), ("1s2", 'time: missing unit in duration "1s2"'),
    ("1x", 'time: unknown unit "x" in duration "1x"'), ("-", 'time: invalid duration "-"'),
    ("1..5s", 'time: invalid duration "1..5s"'), (".s", 'time: invalid duration ".s"'),
    ("1 s", 'time: unknown unit " s" in duration "1 s"'), ("٣s", 'time: invalid duration "٣s"'),
    ("3000000h", 'time: invalid duration "3000000h"'), ("--1s", 'time: invalid duration "--1s"'),
    ("9" * 50 + "s", f'time: invalid duration "{"9" * 50}s"'),
])
def test_duration_refused(text, message):
    with pytest.raises(engine.InvalidParameter) as error:
        engine.duration_parse(text)
    assert str(error.value) == message


@pytest.mark.parametrize("seconds, text", [
    (-5, "Less than a second"), (0.9, "Less than a second"), (1, "1 second"), (59.9, "59 seconds"),
    (60, "About a minute"), (119, "About a minute"), (120, "2 minutes"), (3599, "59 minutes"),
    (3600, "About an hour"), (5399, "About an hour"), (5400, "2 hours"), (47 * 3600, "47 hours"),
    (48 * 3600, "2 days"), (13 * 86400, "13 days"), (14 * 86400, "2 weeks"),
    (59 * 86400, "8 weeks"),
    (60 * 86400, "2 months"), (729 * 86400, "24 months"), (730 * 86400, "2 years"),
    (3660 * 86400, "10 years"),
])
def test_ago(seconds, text):
    assert engine.ago(seconds) == text


def test_exit_text():
    assert engine.exit_text(137, 125) == "Exited (137) 2 minutes ago"
