"""tables: columns as Go's tabwriter draws them, and the formats of a listing."""

from __future__ import annotations

import engine
import hypothesis.strategies as st
import pytest
from hypothesis import given

HEADERS = {"ID": "CONTAINER ID", "Names": "NAMES", "Ports": "PORTS"}
ROWS = [{"ID": "abc", "Names": "web", "Ports": "80/tcp"},
        {"ID": "0123456789abcdef", "Names": "日本", "Ports": ""}]


def written(form, rows=ROWS, **options):
    out: list[str] = []
    engine.format_rows(form, rows, HEADERS, out.append, **options)
    return out


def test_table():
    assert written("table {{.ID}}\\t{{.Names}}\t{{.Ports}}") == [
        "CONTAINER ID       NAMES     PORTS\n"
        "abc                web       80/tcp\n"
        "0123456789abcdef   日本      \n"]
    assert written("table {{upper .Names}}", []) == ["NAMES\n"]


def test_lines():
    assert written("{{.ID}}\\t{{.Names}}") == ["abc\tweb\n", "0123456789abcdef\t日本\n"]
    assert written("json")[0] == '{"ID":"abc","Names":"web","Ports":"80/tcp"}\n'
    assert written(" x ") == ["x\n", "x\n"]


def test_wrong_formats():
    out: list[str] = []
    for form in ("table {{.Nope}}", "{{.Nope}}", "table {{", "{{"):
        with pytest.raises(engine.TemplateError):
            engine.format_rows(form, ROWS, HEADERS, out.append, type_name="*x.Y")
    assert out == []


@pytest.mark.parametrize("text, want", [
    ("", ""), ("a\nb", "a\nb"), ("a\tb", "a         b"), ("\t\tb", " " * 20 + "b"),
    ("aaaaaaaaaa\tb\nc\td", "aaaaaaaaaa   b\nc            d"),
    ("a\tb\n\nc\td", "a         b\n\nc         d"),
    ("aaaaaaaaaaaa\tb\nplain\nc\td", "aaaaaaaaaaaa   b\nplain\nc         d"),
    ("a\tbbbbbbbbbbbb\tc\na\tb\na\tb\tc",
     "a         bbbbbbbbbbbb   c\na         b\na         b         c"),
    ("a\t", "a         "), ("é\tb", "é         b"), ("e\u0301\tb", "e\u0301         b"),
])
def test_columns(text, want):
    assert engine.columns_align(text) == want


def test_columns_width():
    assert engine.columns_align("a\tb", 20, 1) == "a" + " " * 19 + "b"


@pytest.mark.parametrize("text, width, want", [
    ("abcdef", 6, "abcdef"), ("abcdef", 5, "abcd…"), ("abcdef", 2, "a…"), ("abcdef", 1, "a"),
    ("abcdef", 0, ""), ("", 5, ""), ("日本語", 6, "日本語"), ("日本語", 5, "日本…"),
    ("日本語", 4, "日…"),
])
def test_ellipsis(text, width, want):
    assert engine.ellipsis(text, width) == want


@given(st.lists(st.lists(st.text(st.sampled_from("ab é日"), max_size=14), min_size=1, max_size=4)))
def test_columns_line_up(lines):
    drawn = engine.columns_align("\n".join("\t".join(cells) for cells in lines)).split("\n")
    assert [line.replace(" ", "") for line in drawn] == (
        ["".join(cells).replace(" ", "") for cells in lines] or [""])
    for above, below, one, two in zip(lines, lines[1:], drawn, drawn[1:]):
        if len(above) == len(below) == 2:       # one column: what follows starts at one place
            last = [engine.text_width(cells[1]) for cells in (above, below)]
            assert engine.text_width(one) - last[0] == engine.text_width(two) - last[1]
