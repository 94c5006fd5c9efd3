"""options: key=value lists, environment files, filters, words of a command."""

from __future__ import annotations

import shlex

import engine
import hypothesis.strategies as st
import pytest
from hypothesis import given


def test_key_values():
    assert engine.key_values(["a=1", "b", "c=", "a=2=3"]) == {"a": "2=3", "b": "", "c": ""}


def test_env():
    environ = {"A": "1"}
    assert [engine.env_check(text, environ) for text in ("A", "B", "A=2", "C=")] == [
        "A=1", "B", "A=2", "C="]
    assert engine.env_merge(["A=1", "B=2"], ["B=3", "C=4", "A"]) == ["B=3", "C=4"]
    for bad in ("", "=x"):
        with pytest.raises(engine.InvalidParameter, match="^invalid environment variable: "):
            engine.env_check(bad, environ)


def test_labels():
    assert engine.label_check("a.b=c d") == "a.b=c d"
    for bad, message in (("=x", "invalid label '=x': empty name"),
                         ("", "invalid label '': empty name"),
                         ("a b=c", "label 'a b' contains whitespaces")):
        with pytest.raises(engine.InvalidParameter) as error:
            engine.label_check(bad)
        assert str(error.value) == message


def test_env_file():
    data = b"\xef\xbb\xbf# comment\r\n\n A=1\nB= x \r\nC\nD\n\tE='q'\n"
    assert engine.env_file_parse(data, {"C": "3"}) == ["A=1", "B= x ", "C=3", "E='q'"]
    assert engine.env_file_parse("A=1\nB") == ["A=1"]
    assert engine.env_file_parse(b"") == []


@pytest.mark.parametrize("data, message", [
    (b"A=1\n=x", "no variable name on line '=x'"),
    (b"a b=1", "variable 'a b' contains whitespaces"),
    (b"A=1\nB=\xff", "invalid utf8 bytes at line 2: [66 61 255]"),
    ("A=\udcff", "invalid utf8 bytes at line 1: [65 61 255]"),
])
def test_env_file_refused(data, message):
    with pytest.raises(engine.InvalidParameter) as error:
        engine.env_file_parse(data)
    assert str(error.value) == message


# -- filters ------------------------------------------------------------------

@pytest.mark.parametrize("text, want", [
    ("", {}), ("{}", {}), ("null", {}), ('{"a":null}', {"a": []}),
    ('{"label":["a=1","b","b"]}', {"label": ["a=1", "b"]}),
    ('{"label":{"a=1":true,"b":false}}', {"label": ["a=1"]}),
])
def test_filters(text, want):
    assert engine.filters_parse(text) == want


@pytest.mark.parametrize("text", [
    "x", "[]", "1", '{"a":1}', '{"a":[1]}', '{"a":{"b":1}}', '{"a":"b"}'])
def test_filters_refused(text):
    with pytest.raises(engine.InvalidParameter, match="^invalid filter$"):
        engine.filters_parse(text)


def test_filter_values():
    filters = {"name": ["web", "^db$"], "id": ["ab"], "bad": ["("]}
    assert engine.filter_match(filters, "name", "my-web-1")
    assert engine.filter_match(filters, "name", "db")
    assert not engine.filter_match(filters, "name", "db1")
    assert not engine.filter_match(filters, "bad", "x") and engine.filter_match(filters, "bad", "(")
    assert engine.filter_match(filters, "none", "x")
    assert engine.filter_prefix(filters, "id", "abc")
    assert not engine.filter_prefix(filters, "id", "xab")
    assert engine.filter_exact(filters, "id", "ab")
    assert not engine.filter_exact(filters, "id", "abc")
    engine.filters_check(filters, ("name", "id", "bad"))
    with pytest.raises(engine.InvalidParameter, match="^invalid filter 'bad'$"):
        engine.filters_check(filters, ("name", "id"))


def test_filter_bool():
    read = engine.filter_bool
    assert read({}, "d", True) and not read({}, "d", False)
    assert read({"d": ["1"]}, "d", False) and not read({"d": ["false"]}, "d", True)
    for values, shown in (([], "d"), (["x"], "d=[x]"), (["true", "0"], "d=[true 0]")):
        with pytest.raises(engine.InvalidParameter) as error:
            read({"d": values}, "d", False)
        assert str(error.value) == f"invalid filter '{shown}'"


def test_filter_labels():
    labels = {"a": "1", "b": "2"}
    for wanted, holds in ((["a"], True), (["a=1", "b"], True), (["a=2"], False), (["c"], False),
                          (["a", "c"], False), ([], True), (["a="], False)):
        assert engine.filter_labels({"label": wanted}, labels) is holds
    assert engine.filter_labels({}, None) and not engine.filter_labels({"label": ["a"]}, None)
    assert not engine.filter_labels({"label!": ["c"]}, labels, "label!")


# -- words --------------------------------------------------------------------

@pytest.mark.parametrize("text, want", [
    ('["a", "b c"]', (["a", "b c"], False)), ("[]", ([], False)),
    (" ['a'] ", (["/bin/sh", "-c", "['a']"], True)),
    ("a  b", (["/bin/sh", "-c", "a  b"], True)),
    (" ", ([], True)),
    ('["a"] x', (["/bin/sh", "-c", '["a"] x'], True)),
])
def test_command(text, want):
    assert engine.command_parse(text) == want
    with pytest.raises(engine.InvalidParameter, match="arrays must be comprised of strings only"):
        engine.command_parse('["a", 1]')


@pytest.mark.parametrize("text, words", [
    ("", []), (" a  b ", ["a", "b"]), ('a="b c" d', ["a=b c", "d"]), ("'a $X'b", ["a $Xb"]),
    ('"a\\"b\\n\\$X"', ['a"b\\n$X']), ("a\\ b \\\\", ["a b", "\\"]), ("''", [""]), ("a''b", ["ab"]),
    ("$X ${X} $X$Y ${Z:-d e} ${X:+y} ${Z:+y}", ["1", "1", "1", "d e", "y", ""]), ("$", ["$"]),
    ('"$X"', ["1"]),
    ("\\$X", ["$X"]), ("a\\", ["a\\"]),
])
def test_split(text, words):
    assert engine.shell_split(text, {"X": "1", "E": ""}) == words


def test_split_without_env():
    assert engine.shell_split("$X ${Y") == ["$X", "${Y"]


@pytest.mark.parametrize("text", ["'a", '"a', "a'b'\"", "${X", "${}", "${X:?y}", "${X-y}"])
def test_split_refused(text):
    with pytest.raises(engine.InvalidParameter):
        engine.shell_split(text, {})


@given(st.lists(st.text()))
def test_split_undoes_quoting(words):
    assert engine.shell_split(" ".join(map(shlex.quote, words))) == words
