"""printing: values as Go's fmt prints them."""

from __future__ import annotations

import engine
import hypothesis.strategies as st
import pytest
from hypothesis import given


@pytest.mark.parametrize("value, text", [
    (None, "<nil>"), (True, "true"), (False, "false"), (0, "0"), (-5, "-5"), ("a b", "a b"),
    ([], "[]"), (["a", 1, None], "[a 1 <nil>]"), ({}, "map[]"),
    ({"b": 1, "a": [2]}, "map[a:[2] b:1]"),
    ({"HostIp": "::", "HostPort": "80"}, "{:: 80}"), ({"B": {"x": None}}, "{map[x:<nil>]}"),
    ({"Labels": None, "Cmd": None, "Init": None}, "{map[] [] <nil>}"),
    (engine.MapValue({"B": 1}), "map[B:1]"), ({"Labels": {"A": "1"}}, "{map[A:1]}"),
    (1.0, "1"), (1.5, "1.5"), (100000.0, "100000"), (1e6, "1e+06"), (1234567.0, "1.234567e+06"),
    (1e20, "1e+20"), (1e-4, "0.0001"), (1.5e-5, "1.5e-05"), (-2.5, "-2.5"), (0.1, "0.1"),
    (1 / 3, "0.3333333333333333"), (float("inf"), "+Inf"), (float("-inf"), "-Inf"),
    (float("nan"), "NaN"), (0.0, "0"), (-0.0, "-0"),
])
def test_text(value, text):
    assert engine.go_text(value) == text


@pytest.mark.parametrize("form, values, text", [
    ("%v|%+v|%d|%s|%5d|%-5d|%05d|%x|%q|%t|%U|%c",
     ["a", 5, "s", 5, 42, 42, 42, 255, "q", True, 128512, 65],
     'a|5|%!d(string=s)|%!s(int=5)|   42|42   |00042|ff|"q"|true|U+1F600|A'),
    ("%e|%f|%.2f|%8.3f|%08.3f|%+.1f", [1.5, 1.5, 1.2345, 1.5, 3.14159, 2.0],
     "1.500000e+00|1.500000|1.23|   1.500|0003.142|+2.0"),
    ("%s|%d", [["a", "b"], [1, "a"]], "[a b]|[1 %!d(string=a)]"),
    ("%s", [{"a": 1, "b": "x"}], "map[a:%!s(int=1) b:x]"),
    ("%d %s", [1], "1 %!s(MISSING)"), ("%d", [1, 2, "x"], "1%!(EXTRA int=2, string=x)"),
    ("%", [], "%!(NOVERB)"), ("%%", [], "%"), ("%z", [1], "%!z(int=1)"),
    ("100%!", [], "100%!!(MISSING)"),
    ("%+d|% d|%#x|%#o|%x|% x|%X|%05s", [5, 5, 255, 8, "hi", "hi", "hi", "ab"],
     "+5| 5|0xff|010|6869|68 69|6869|000ab"),
    ("%#v", [{"a": [1, "x"]}], 'map[string]interface {}{"a":[]interface {}{1, "x"}}'),
    ("%*d|%-*d|%.*f", [5, 42, 4, 7, 2, 3.14159], "   42|7   |3.14"),
    ("%[2]d %[1]d", [1, 2], "2 1%!(EXTRA int=2)"),
    ("%5v|%-4s|", [[1, None], "é"], "[    1 <nil>]|é   |"),
    ("%T %T %T %T", [1, "a", None, 1.5], "int string <nil> float64"),
    ("%s %d", [None, None], "%!s(<nil>) %!d(<nil>)"),
    ("%*d", ["x", 1], "%!(BADWIDTH)1"),
])
def test_printf(form, values, text):
    assert engine.go_printf(form, values) == text


def test_print():
    assert engine.go_print([1, 2, "a", "b", 3, True]) == "1 2a b3 true".replace("a b", "ab")
    assert engine.go_print([]) == ""


def test_escapes():
    assert engine.escape_html("<a href=\"x\">'&'</a>") == (
        "&lt;a href=&#34;x&#34;&gt;&#39;&amp;&#39;&lt;/a&gt;")
    assert engine.escape_js("a'b\n</script>") == "a\\'b\\u000A\\u003C/script\\u003E"
    assert engine.escape_query("a b&c/é") == "a+b%26c%2F%C3%A9"


def test_fields():
    assert engine.field_value("Labels", None) is engine.NIL_MAP
    assert engine.field_value("Binds", None) is engine.NIL_LIST
    assert engine.field_value("Init", None) is engine.NIL
    assert isinstance(engine.field_value("Labels", {"A": "1"}), engine.MapValue)
    assert engine.is_map({}) and engine.is_map({"a": 1, "B": 2})
    assert not engine.is_map({"Ab1": 1})


@given(st.text(st.sampled_from("%+-# 0123456789.*[]vTdsqxXeEfgGUcbotz{}é"), max_size=20),
       st.lists(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
                | st.just([1]) | st.just({"a": 1}), max_size=4))
def test_printf_never_fails(form, values):
    assert len(engine.go_printf(form, values)) < 10**8


@given(st.text(st.characters()))
def test_bytes(text):
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    assert engine.go_string(engine.go_bytes(text)) == text
