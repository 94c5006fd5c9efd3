"""The router: matching, versions, errors, bodies, hijack. No socket server is needed."""

from __future__ import annotations

import io
import os

import engine
import pytest


@pytest.fixture
def routes(monkeypatch):
    monkeypatch.setattr(engine, "ROUTES", {})


def call(method, path, **more):
    return engine.http_dispatch("the engine", engine.Request(method, path, **more))


def test_value_none_response_stream(routes):
    @engine.route("GET", "/a")
    def value(eng, request):
        return {"engine": eng}

    @engine.route("GET", "/b")
    def nothing(eng, request):
        return None

    @engine.route("GET", "/c")
    def whole(eng, request):
        return engine.Response(418, {"X": "y"}, b"tea")

    @engine.route("GET", "/d")
    def pieces(eng, request):
        return engine.Stream(iter([b"1", b"2"]), "text/plain")

    reply = call("GET", "/a")
    assert (reply.status, reply.value) == (200, {"engine": "the engine"})
    assert reply.data() == b'{"engine":"the engine"}\n'
    assert reply.headers["Content-Type"] == "application/json"
    assert call("GET", "/b").status == 204
    assert call("GET", "/c").data() == b"tea"
    assert list(call("GET", "/d").chunks) == [b"1", b"2"]


@pytest.mark.parametrize(
    "path, hit, params",
    [
        ("/images/json", "list", {}),
        ("/images/busybox/json", "inspect", {"name": "busybox"}),
        ("/images/localhost:5000/a/b:c/json", "inspect", {"name": "localhost:5000/a/b:c"}),
        ("/images/json/json", "inspect", {"name": "json"}),
        ("/images/a/b/tag/json", "inspect", {"name": "a/b/tag"}),
        ("/v1.24/images/json", "list", {}),
        ("/v1.51/images/x/json", "inspect", {"name": "x"}),
        ("/v1.51.0/images/x/json", "inspect", {"name": "x"}),
        ("/images/\udcffé/json", "inspect", {"name": "\ufffdé"}),
        ("/images/a/layers/7", "layer", {"name": "a", "n": "7"}),
    ],
)
def test_matching(routes, path, hit, params):
    for name, pattern in (
        ("inspect", "/images/{name}/json"),
        ("list", "/images/json"),
        ("layer", "/images/{name}/layers/{n}"),
    ):
        engine.route("GET", pattern)(lambda eng, request, name=name: [name, request.params])
    assert call("GET", path).value == [hit, params]


@pytest.mark.parametrize(
    "path, status, text",
    [
        ("/nowhere", 404, "page not found"),
        ("/", 404, "page not found"),
        ("/v1.51", 404, "page not found"),
        ("/v1.51/nowhere", 404, "page not found"),
        ("/v9.99/x", 400, "client version 9.99 is too new. Maximum supported API version is 1.51"),
        (
            "/v" + "9" * 5000 + "/x", 400,
            f"client version {'9' * 5000} is too new. Maximum supported API version is 1.51",
        ),
        (
            "/v1.51.1/x", 400,
            "client version 1.51.1 is too new. Maximum supported API version is 1.51",
        ),
    ],
)
def test_refusals(routes, path, status, text):
    engine.route("GET", "/x")(lambda eng, request: "ok")
    reply = call("GET", path)
    assert (reply.status, reply.value) == (status, {"message": text})


def test_too_old_a_client_is_told_without_json(routes):
    engine.route("GET", "/x")(lambda eng, request: "ok")
    reply = call("GET", "/v1.12/x")
    assert (reply.status, reply.headers["Content-Type"]) == (400, "text/plain; charset=utf-8")
    assert reply.body == (b"client version 1.12 is too old. Minimum supported API version is 1.24, "
                          b"please upgrade your client to a newer version\n")


@pytest.mark.parametrize(
    "path, clean",
    [("//a", "/a"), ("/a//b/", "/a/b/"), ("/a/../b", "/b"), ("/../x", "/x"), ("/a/./b", "/a/b")],
)
def test_unclean_paths_are_redirected(routes, path, clean):
    reply = call("GET", path)
    assert (reply.status, reply.headers) == (301, {"Location": clean})


@pytest.mark.parametrize(
    "error, status, text",
    [
        (lambda: engine.NotFound("No such container: x"), 404, "No such container: x"),
        (lambda: engine.Conflict("busy"), 409, "busy"),
        (
            lambda: OSError(28, "No space left on device", "/data/x"),
            500,
            "/data/x: no space left on device",
        ),
        (lambda: ValueError("bug\nhere"), 500, "ValueError: bug here"),
        (lambda: "\udcff".encode(), 400, "a text is not valid UTF-8"),
        (lambda: os.stat("a\0"), 400, "invalid argument: a text holds a NUL byte"),
    ],
)
def test_errors_become_replies(routes, error, status, text):
    @engine.route("POST", "/x")
    def handler(eng, request):
        raise error()

    reply = call("POST", "/x")
    assert (reply.status, reply.value["message"]) == (status, text)
    assert reply.error.status == status


def test_arguments():
    request = engine.Request(
        "GET",
        "/x",
        query={
            "all": ["1"],
            "no": ["False"],
            "n": ["12"],
            "bad": ["x"],
            "filters": ['{"a":["b"]}'],
        },
    )
    assert request.flag("all") and not request.flag("no") and not request.flag("absent")
    assert request.flag("absent", True)
    assert request.number("n") == 12 and request.number("absent", 3) == 3
    assert request.arg("absent", "z") == "z"
    assert request.filters() == {"a": ["b"]}
    with pytest.raises(engine.EngineError, match="invalid syntax"):
        request.number("bad")


def test_body():
    assert engine.Body({"a": 1}).json() == {"a": 1}
    assert engine.Body(reader=io.BytesIO(b' {"a": 1} ')).json() == {"a": 1}
    assert engine.Body(reader=io.BytesIO(b"")).json(optional=True) == {}
    for text in (b"", b"{", b"[1] 2"):
        with pytest.raises(engine.InvalidParameter, match="(invalid|after) JSON"):
            engine.Body(reader=io.BytesIO(text)).json()
    body = engine.Body(reader=io.BytesIO(b"tar"))
    assert (body.read(2), body.read(), body.read()) == (b"ta", b"r", b"")


def test_targets():
    assert engine.target_parse(
        "/v1.41/images/a%2Fb/json?all=1&filters=%7B%22a%22%3A1%7D&x=a+b&x"
    ) == ("/v1.41/images/a/b/json", {"all": ["1"], "filters": ['{"a":1}'], "x": ["a b", ""]})
    assert engine.percent_decode("%zz%4") == "%zz%4"
    for text in ("a/b c%", "\u00e9\u2603", "x:y@z", "\udcff"):
        assert engine.percent_decode(engine.percent_encode(text)) == text


def test_hijack_needs_a_connection(routes):
    @engine.route("POST", "/x")
    def handler(eng, request):
        request.hijack()
        return engine.HIJACKED

    assert call("POST", "/x").status == 400

    class Connection:
        def hijack(self, content_type):
            return content_type, b""

    assert call("POST", "/x", connection=Connection()) is engine.HIJACKED


def test_halves_of_characters_in_a_body():
    """Go's decoder reads U+FFFD for them; a byte that a client of ours sent stays what it was."""
    text = b'{"a\\uD800": ["x\\udbffy", 1, "\\ud83d\\ude00"], "b": "\\udcff"}'
    body = engine.Body(reader=io.BytesIO(text), content_type="application/json")
    assert body.json() == {"a\ufffd": ["x\ufffdy", 1, "\U0001f600"], "b": "\udcff"}
