"""What registries answer when they refuse, as Docker tells it."""

from __future__ import annotations

import json

import engine
import pytest
from hypothesis import given
from hypothesis import strategies as st

NAME = engine.reference_parse("example.org/team/app:1")


def body(*errors):
    return json.dumps({"errors": list(errors)}).encode()


JSON = "application/json; charset=utf-8"


@pytest.mark.parametrize(("status", "data", "media", "text", "code"), [
    (404, body({"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}), JSON,
     "manifest unknown: manifest unknown", "MANIFEST_UNKNOWN"),
    (404, body({"code": "NAME_UNKNOWN"}), JSON,
     "name unknown: repository name not known to registry", "NAME_UNKNOWN"),
    (403, body({"code": "DENIED", "message": "no"}), "", "denied: no", "DENIED"),
    (401, b"", "", "unauthorized: authentication required", "UNAUTHORIZED"),
    (401, b'{"details": "who are you"}', JSON, "unauthorized: who are you", "UNAUTHORIZED"),
    (429, b"<html>", "text/html", "toomanyrequests: <html>", "TOOMANYREQUESTS"),
    (403, b"blocked by\nthe proxy", "text/plain", "denied: blocked by the proxy", "DENIED"),
    (404, b"<html>", "text/html; charset=utf-8", "unknown: <html>", "UNKNOWN"),
    (404, b"", "", "unknown: unknown error", "UNKNOWN"),
    (500, b"oops", "", "received unexpected HTTP status: 500 Reason", ""),
    (400, b"<html>\n\x1b[31mno", JSON, "error parsing HTTP 400 response body: no error details"
     ' found in HTTP response body: "<html>  [31mno"', ""),
    (404, body({"code": 5, "message": ["x"]}), JSON, "unknown: unknown error", "UNKNOWN"),
    (404, body({"code": "NO_SUCH", "message": "x"}), JSON, "unknown: x", "UNKNOWN"),
    (404, body("x", None), JSON, "error parsing HTTP 404", ""),
    (404, b"[]", JSON, "error parsing HTTP 404", ""),
    (404, b'{"errors": 5}', JSON, "error parsing HTTP 404", ""),
])
def test_refusals(status, data, media, text, code):
    refused = engine.registry_refusal(status, "Reason", data, media)
    assert str(refused).startswith(text)
    assert (refused.code, refused.answered) == (code, status)


@given(st.integers(300, 599), st.binary(max_size=300))
def test_a_refusal_is_one_printable_line(status, data):
    text = str(engine.registry_refusal(status, "Reason", data))
    assert text.isprintable() and len(text) < 1000


def test_what_is_not_there_is_404_and_named():
    for code, text in (
        ("DENIED", "pull access denied for example.org/team/app, repository does not exist or may"
                   " require 'docker login': denied: x"),
        ("MANIFEST_UNKNOWN", "manifest for example.org/team/app:1 not found: manifest unknown: x"),
        ("NAME_UNKNOWN", "repository example.org/team/app not found: name unknown: x"),
    ):
        told = engine.pull_refusal(engine.RegistryRefusal(code, "x", 404), NAME)
        assert (type(told), str(told)) == (engine.NotFound, text)
    other = engine.EngineError("x")
    assert engine.pull_refusal(other, NAME) is other


def test_when_the_next_endpoint_is_tried():
    refusal = engine.RegistryRefusal("DENIED", "x", 403)
    assert engine.may_go_on(refusal, is_mirror=True)
    assert not engine.may_go_on(refusal, is_mirror=False)
    assert engine.may_go_on(engine.RegistryRefusal("", "500", 500), is_mirror=False)
    assert engine.may_go_on(engine.HttpFailed("x"), is_mirror=False)
    assert not engine.may_go_on(engine.InvalidParameter("x"), is_mirror=False)
    assert not engine.may_go_on(engine.Cancelled("x"), is_mirror=True)
