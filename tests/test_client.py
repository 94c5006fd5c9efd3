"""The client over the in-process transport: values, errors, streams, hijack, wait."""

from __future__ import annotations

import io
import os

import engine
import pytest

MADE = []


@pytest.fixture
def client(monkeypatch):
    monkeypatch.setattr(engine, "ROUTES", {})
    MADE.clear()
    return engine.ApiClient(engine.LocalTransport(lambda: MADE.append(1) or "engine"))


def test_values_and_queries(client):
    @engine.route("GET", "/x")
    def handler(eng, request):
        return [eng, request.query]

    assert MADE == []
    query = {"all": True, "no": False, "none": None, "n": 3, "list": ["a", "b"], "f": {"k": ["v"]}}
    assert client.get("/x", query) == [
        "engine",
        {"all": ["1"], "no": ["0"], "n": ["3"], "list": ["a", "b"], "f": ['{"k":["v"]}']},
    ]
    client.get("/x")
    assert MADE == [1]


def test_bodies(client):
    engine.route("POST", "/json")(lambda eng, request: request.body.json())
    engine.route("POST", "/raw")(lambda eng, request: request.body.read().decode())
    assert client.post("/json", body={"a": 1}) == {"a": 1}
    assert client.post("/raw", body=io.BytesIO(b"tar")) == "tar"


def test_errors_are_the_engines(client):
    @engine.route("GET", "/x")
    def handler(eng, request):
        raise engine.CommandNotFound("no such program")

    @engine.route("POST", "/same")
    def same(eng, request):
        raise engine.NotModified("already")

    with pytest.raises(engine.CommandNotFound, match="no such program") as caught:
        client.get("/x")
    assert caught.value.from_engine and caught.value.exit == 127
    client.post("/same")  # 304 is no failure
    with pytest.raises(engine.NotFound, match="page not found"):
        client.get("/nowhere")


def test_exit_codes_of_a_failed_start():
    assert engine.start_exit('custom device "/dev/no": no such file or directory') == 127
    assert engine.start_exit("exec: /x: permission denied: unknown") == 126
    assert engine.start_exit("write cpu.shares: invalid argument") is None


def test_a_transport_without_error_objects(monkeypatch):
    class Far:
        def send(self, request):
            return engine.Response(409, value={"message": "busy"})

    with pytest.raises(engine.Conflict, match="busy"):
        engine.ApiClient(Far()).get("/x")


def test_streams(client):
    closed = []

    @engine.route("GET", "/x")
    def handler(eng, request):
        def pieces():
            try:
                yield b'{"a":1}\n{"b"'
                yield b":2}\n"
                yield b'{"c":3}'
            finally:
                closed.append(1)

        return engine.Stream(pieces())

    assert list(client.lines("GET", "/x")) == [{"a": 1}, {"b": 2}, {"c": 3}]
    stream = client.stream("GET", "/x")
    assert next(stream).startswith(b'{"a"')
    stream.close()
    assert closed == [1, 1]


def test_hijack_and_wait(client):
    kept = []

    @engine.route("POST", "/attach")
    def attach(eng, request):
        sock, early = request.hijack()
        kept.append(os.dup(sock.fileno()))
        assert early == b""
        return engine.HIJACKED

    @engine.route("POST", "/containers/{id}/wait")
    def wait(eng, request):
        sock, head = request.take()
        assert (head, request.arg("condition")) == ("", "removed")
        kept.append(os.dup(sock.fileno()))
        return engine.HIJACKED

    @engine.route("POST", "/plain")
    def plain(eng, request):
        return {"not": "a stream"}

    sock = client.hijack("/attach")
    os.write(kept[0], b"hello")
    os.close(kept.pop())
    assert (sock.recv(100), sock.recv(100)) == (b"hello", b"")
    waiter = client.wait("x", "removed")
    assert waiter.fileno() >= 0
    os.write(kept[0], b'{"StatusCode":')
    os.write(kept[0], b"3}\n")
    os.close(kept.pop())
    assert waiter.result() == waiter.result() == {"StatusCode": 3}
    waiter = client.wait("x", "removed")
    os.close(kept.pop())
    with pytest.raises(engine.Unavailable):
        waiter.result()
    with pytest.raises(engine.EngineError, match="did not give"):
        client.hijack("/plain")


def test_wait_answered_at_once(client):
    engine.route("POST", "/containers/{id}/wait")(lambda eng, request: {"StatusCode": 5})
    waiter = client.wait("x")
    assert (waiter.fileno(), waiter.result()) == (-1, {"StatusCode": 5})
