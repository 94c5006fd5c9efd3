"""documents: what a client's JSON may hold, and Go's words for what it may not."""

from __future__ import annotations

import engine
import pytest

TABLE = {
    "Name": ("string", "", False),
    "Words": ("words", None, False),
    "Count": ("int", 7, False),
    "Inner": ({"On": ("bool", False, False)}, {}, False),
    "Many": ([{"On": ("bool", False, False)}], None, False),
}


def test_every_field_is_there():
    full = {"Name": "", "Words": None, "Count": 7, "Inner": {"On": False}, "Many": None}
    assert engine.fields_check({}, TABLE, "X") == full
    given = {"NAME": "a", "words": "one", "count": None, "Inner": {"oN": True}, "Other": 1,
             "Many": [None, {"On": True}]}
    assert engine.fields_check(given, TABLE, "X") == {
        "Name": "a", "Words": ["one"], "Count": 7, "Inner": {"On": True},
        "Many": [{"On": False}, {"On": True}]}


@pytest.mark.parametrize(
    "value, kind",
    [(True, "bool"), ("", "string"), (1, "number"), ([], "array"), ({}, "object")],
)
def test_kinds(value, kind):
    assert engine.json_kind(value) == kind
