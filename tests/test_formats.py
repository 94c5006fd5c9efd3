"""formats: JSON without the json module, sizes, ids, names, signals."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys

import engine
import hypothesis.strategies as st
import pytest
from hypothesis import given

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2**63, 2**64)
    | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))


# -- JSON ---------------------------------------------------------------------

@given(JSON)
def test_json_round_trip(value):
    text = engine.json_text(value)
    assert engine.json_parse(text) == engine.json_parse(text.encode()) == value
    assert text == json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    pretty = engine.json_pretty(value)
    assert engine.json_parse(pretty) == value
    assert pretty == json.dumps(value, ensure_ascii=False, indent=4)


def test_json_text():
    assert engine.json_text({"b": "<é>&\n", "a": (1, 2.5)}) == '{"b":"<é>&\\n","a":[1,2.5]}'
    assert engine.json_text("\udcff") == '"\\udcff"'
    assert engine.json_parse(engine.json_text({"\udcff": "é"}).encode()) == {"\udcff": "é"}
    assert engine.json_pretty({"a": [], "b": {}, "c": [{"d": 1}]}, "\t") == (
        '{\n\t"a": [],\n\t"b": {},\n\t"c": [\n\t\t{\n\t\t\t"d": 1\n\t\t}\n\t]\n}')


@pytest.mark.parametrize("bad", [
    "", " ", "{", "[", "[1,]", '{"a":1,}', "{'a':1}", "nul", "NaN", "-Infinity", "Infinity",
    "1e999", "-1e999", "[1] x", "1 2", '"a', '"\n"', '"\\x"', "01", "+1", ".5", "\ufeff1", b"\xff",
    b'"\xff"',
    '{"a"}', "[" * 10**5, '{"a":' * 10**5, "[" * 300 + "]" * 300, '["]]]]",' * 400 + "1",
    '["\\"",' * 400 + "1", "[{" * 10**5, '"\\\\"[' + "[" * 999,
])
def test_json_refused(bad):
    with pytest.raises(ValueError):
        engine.json_parse(bad)


@given(st.text(st.sampled_from('[]{}",:\\ 1truefalsn')))
def test_json_as_the_json_module(text):
    try:
        want = json.loads(text)
    except ValueError:
        with pytest.raises(ValueError):
            engine.json_parse(text)
    else:
        assert engine.json_parse(text) == want


def test_json_nesting_counts_no_brackets_in_texts():
    flat = json.dumps([{"a[": "[{" * 9, 'q"\\': "}"}] * 500)
    assert engine.json_parse(flat) == json.loads(flat)
    deep = "[" * engine.NESTING_MAX + "]" * engine.NESTING_MAX
    assert engine.json_parse(deep)


def test_json_text_refused():
    deep: list = []
    for _ in range(10**5):
        deep = [deep]
    circle: list = []
    circle.append(circle)
    for bad in (deep, circle, float("nan"), [float("inf")]):
        for write in (engine.json_text, engine.json_pretty):
            with pytest.raises(ValueError):
                write(bad)
    while deep:
        deep = deep.pop()
    with pytest.raises(TypeError):
        engine.json_text({"a": b"bytes"})


def test_formats_import_nothing():
    code = ("import sys; before = set(sys.modules); import engine;"
            "engine.json_parse(engine.json_text({'a': [1]})); engine.size_parse('64m');"
            "engine.reference_parse('a/b:c'); engine.signal_number('TERM');"
            "engine.name_random(); engine.time_rfc3339(engine.time_now());"
            "print(*sorted({'json', 're', 'datetime', 'random'} & set(sys.modules) - before))")
    done = subprocess.run([sys.executable, "-B", "-S", "-c", code], capture_output=True, text=True,
                          cwd=engine.__file__.rpartition("/")[0], check=True)
    assert done.stdout.strip() == ""


def test_quote():
    assert engine.quote('a"b\\\n\té\x00\x7f\u200b\U000e0001\udcff') == (
        '"a\\"b\\\\\\n\\té\\x00\\x7f\\u200b\\U000e0001\\xff"')


# -- sizes --------------------------------------------------------------------

@pytest.mark.parametrize("text, size", [
    ("0", 0), ("64", 64), ("64b", 64), ("64B", 64), ("64k", 65536), ("1kb", 1024), ("1KiB", 1024),
    ("1m", 2**20), ("1.5 GiB", 3 * 2**29), ("2 g", 2**31), ("1t", 2**40), ("1p", 2**50),
    ("1e3", 1000),
    (".5k", 512), ("5.k", 5120), ("-0", 0), ("+1k", 1024), ("1 ", 1),
])
def test_size_parse(text, size):
    assert engine.size_parse(text) == size


@pytest.mark.parametrize("text, message", [
    ("", "invalid size: ''"), ("x", "invalid size: 'x'"), ("-1", "invalid size: '-1'"),
    ("1x", "invalid suffix: 'x'"), ("1kx", "invalid suffix: 'kx'"), ("1bb", "invalid suffix: 'bb'"),
    ("1kibi", "invalid suffix: 'kibi'"), ("1bib", "invalid suffix: 'bib'"),
    ("1 m x", 'strconv.ParseFloat: parsing "1 m": invalid syntax'),
    ("a1", 'strconv.ParseFloat: parsing "a1": invalid syntax'),
    ("1_0", 'strconv.ParseFloat: parsing "1_0": invalid syntax'),
    ("1e99", "invalid size: '1e99'"), ("9e9p", "invalid size: '9e9p'"),
    ("٣", "invalid size: '٣'"), ("inf0", 'strconv.ParseFloat: parsing "inf0": invalid syntax'),
])
def test_size_refused(text, message):
    with pytest.raises(engine.InvalidParameter) as error:
        engine.size_parse(text)
    assert str(error.value) == message


@given(st.text(st.sampled_from("0123456789.kmgKiBb e-+x")))
def test_size_is_a_size_or_an_error(text):
    try:
        assert 0 <= engine.size_parse(text) < 2**63
    except engine.InvalidParameter:
        pass


@pytest.mark.parametrize("size, human, short, binary", [
    (0, "0B", "0B", "0B"), (999, "999B", "999B", "999B"), (1000, "1kB", "1kB", "1000B"),
    (1234567, "1.235MB", "1.23MB", "1.177MiB"), (1572864, "1.573MB", "1.57MB", "1.5MiB"),
    (123456789012, "123.5GB", "123GB", "115GiB"), (2**60, "1.153EB", "1.15EB", "1EiB"),
    (999999, "1000kB", "1e+03kB", "976.6KiB"),
])
def test_size_human(size, human, short, binary):
    assert engine.size_human(size) == human
    assert engine.size_human_short(size) == short
    assert engine.size_human_binary(size) == binary


# -- ids, names, signals ------------------------------------------------------

def test_ids():
    ids = {engine.id_new() for _ in range(50)}
    assert len(ids) == 50 and all(re.fullmatch("[0-9a-f]{64}", name) for name in ids)
    assert engine.id_short("sha256:" + "ab" * 32) == engine.id_short("ab" * 32) == "ab" * 6
    assert engine.is_hex("0af") and not any(map(engine.is_hex, ("", "0AF", "g", "a\n")))


def test_names():
    names = {engine.name_random() for _ in range(50)}
    assert len(names) > 40 and all(re.fullmatch("[a-z]+_[a-z]+", name) for name in names)
    taken: set[str] = set()

    def is_taken(name):
        taken.add(name)
        return len(taken) < 9

    name = engine.name_random(is_taken)
    assert re.fullmatch("[a-z]+_[a-z]+[0-9]+", name)
    with pytest.raises(engine.EngineError):
        engine.name_random(lambda name: True)
    words = [*engine.NAME_MOODS, *engine.NAME_PEOPLE]
    assert len(set(words)) == len(words)


@pytest.mark.parametrize("text, number", [
    ("TERM", 15), ("sigterm", 15), ("SIGKILL", 9), ("15", 15), ("64", 64), ("RTMIN", 34),
    ("SIGRTMIN+15", 49), ("RTMAX-14", 50), ("rtmax", 64), ("CLD", 17), ("iot", 6), ("poll", 29),
])
def test_signal_number(text, number):
    assert engine.signal_number(text) == number


@pytest.mark.parametrize("text", [
    "", "0", "65", "-1", "SIG", "SIGSIGTERM", "FOO", "RTMIN+16", "RTMAX-15", "RTMIN-1", "RTMAX+1",
    "RTMIN+", "1.5", "²", "99999999999999999999", "TERM ", "RTMIN+99999999999",
])
def test_signal_refused(text):
    with pytest.raises(engine.InvalidParameter) as error:
        engine.signal_number(text)
    assert str(error.value) == f"invalid signal: {text}"


@pytest.mark.parametrize("text, number", [
    ("term", 15), ("99", 99), ("-1", -1), ("+9", 9), ("0", None), ("", None), ("x", None),
])
def test_signals_that_no_kernel_has(text, number):
    if number is None:
        with pytest.raises(engine.InvalidParameter, match=f"^invalid signal: {text}$"):
            engine.signal_parse(text)
    else:
        assert engine.signal_parse(text) == number


@pytest.mark.parametrize("text, number", [
    ("7", 7), ("007", 7), ("+7", 7), ("-7", -7), ("", None), ("-", None), (" 7", None),
    ("1_0", None), ("\u00b2", None), ("9223372036854775808", None), ("9" * 20, None),
    ("-9223372036854775808", -1 << 63), ("0x1", None),
])
def test_go_int(text, number):
    assert engine.go_int(text) == number


def test_signal_names():
    for number in range(1, 65):
        name = engine.signal_name(number)
        if number not in (32, 33):
            assert engine.signal_number(name) == number
    assert [engine.signal_name(number) for number in (9, 34, 35, 64, 63, 32, 99)] == [
        "SIGKILL", "SIGRTMIN", "SIGRTMIN+1", "SIGRTMAX", "SIGRTMAX-1", "32", "99"]
    for known in signal.Signals:
        assert engine.SIGNALS.get(known.name[3:], known) == known


@pytest.mark.parametrize(
    "text, words",
    [
        (b'"\xff"', "invalid UTF-8 at byte 1"),
        ("9" * 5001, "number out of range"),
        ("[" + "9" * 5001 + "]", "number out of range"),
    ],
)
def test_json_errors_are_in_plain_words(text, words):
    with pytest.raises(ValueError, match="^" + words):
        engine.json_parse(text)
