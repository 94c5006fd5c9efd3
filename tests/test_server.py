"""The server over raw sockets: framing, keep-alive, what is refused and how, who leaves early."""

from __future__ import annotations

import socket
import threading
import time

import engine
import hypothesis
import pytest
from door_help import Door, Raw, empty_engine
from hypothesis import strategies as st

GET = "GET /_ping HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture
def door(roots):
    made = Door(roots, empty_engine(roots))
    yield made
    made.close()


@pytest.fixture
def route(monkeypatch):
    """Registers routes for one test."""
    monkeypatch.setattr(engine, "ROUTES", {key: list(rows) for key, rows in engine.ROUTES.items()})
    return engine.route


# ---------------------------------------------------------------- replies


def test_replies_and_keep_alive(door):
    for address in (door.unix, door.tcp):
        client = door.raw(address)
        ping = client.ask("/_ping")
        assert (ping.status, ping.body, ping.headers["api-version"]) == (200, b"OK", "1.51")
        assert ping.headers["server"].startswith("Docker/28.5.2 (linux) engine.pyz/")
        version = client.ask("/v1.41/version").json()
        assert version["ApiVersion"] == engine.API_VERSION
        missing = client.ask("/nothing")
        assert (missing.status, missing.body) == (404, b'{"message":"page not found"}\n')
        assert client.ask("/_ping", "DELETE").message == "page not found"
        assert client.ask("/version/").status == 404
        head = client.ask("/_ping", "HEAD")
        assert (head.status, head.headers["content-length"]) == (200, "0")


def test_headers_as_dockerd_sends_them(door):
    headers = door.raw().ask("/_ping").headers
    assert {name: headers[name] for name in ("ostype", "docker-experimental", "builder-version")} \
        == {"ostype": "linux", "docker-experimental": "false", "builder-version": "1"}
    assert time.strptime(headers["date"], "%a, %d %b %Y %H:%M:%S GMT")
    assert headers["content-type"] == "text/plain; charset=utf-8"
    assert door.raw().ask("/version").headers["content-type"] == "application/json"


def test_http_dates():
    assert engine.http_date(0) == "Thu, 01 Jan 1970 00:00:00 GMT"
    assert engine.http_date(1796371205) == "Fri, 04 Dec 2026 08:00:05 GMT"


def test_versions(door):
    client = door.raw()
    assert client.ask("/v1.24/_ping").body == b"OK"
    late = client.ask("/v1.52/_ping")
    assert (late.status, late.message) == (
        400, "client version 1.52 is too new. Maximum supported API version is 1.51")
    early = client.ask("/v1.23/_ping")
    assert (early.status, early.body) == (
        400, b"client version 1.23 is too old. Minimum supported API version is 1.24, please "
        b"upgrade your client to a newer version\n")
    assert early.headers["content-type"] == "text/plain; charset=utf-8"
    assert client.ask("/v9.9/nothing").message == "page not found"
    moved = client.ask("//version/../_ping?a=b%20c")
    assert (moved.status, moved.headers["location"]) == (301, "/_ping?a=b%20c")
    assert (client.ask("/x", "OPTIONS").status, client.ask("*", "OPTIONS").status) == (200, 200)


def test_pipelined_requests(door):
    client = door.raw()
    client.send(GET + "\r\nGET /version HTTP/1.1\r\nHost: x\r\n\r\n" + GET)
    assert client.reply().body == b"OK"
    assert client.reply().json()["Version"] == engine.DOCKER_VERSION
    client.send("\r\n")
    assert client.reply().body == b"OK"


def test_old_http_and_close(door):
    client = door.raw().send("GET /_ping HTTP/1.0\r\n\r\n")
    assert client.reply().headers["connection"] == "close"
    assert client.rest() == b""
    client = door.raw()
    for _ in range(2):
        client.send("GET /_ping HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert client.reply().headers["connection"] == "keep-alive"
    assert client.ask("/_ping", Connection="close").body == b"OK"
    assert client.rest() == b""


def test_streams(door, route):
    route("GET", "/pieces")(lambda eng, request: engine.Stream(iter([b"one", b"", b"two"])))
    client = door.raw()
    for _ in range(2):
        reply = client.ask("/pieces")
        assert (reply.headers["transfer-encoding"], reply.body) == ("chunked", b"onetwo")
    old = door.raw().send("GET /pieces HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").reply()
    assert old.headers["connection"] == "close" and old.body == b"onetwo"


def test_stream_that_fails_has_no_end(door, route):
    def pieces():
        yield b"one"
        raise engine.NotFound("no more")

    route("GET", "/pieces")(lambda eng, request: engine.Stream(pieces()))
    client = door.raw().send("GET /pieces HTTP/1.1\r\nHost: x\r\n\r\n")
    assert client.rest().endswith(b"\r\n\r\n3\r\none\r\n")


# ---------------------------------------------------------------- bodies


@pytest.fixture
def echo(route):
    @route("POST", "/echo")
    def handler(eng, request):
        return engine.Response(200, {}, request.body.read())

    @route("POST", "/json")
    def value(eng, request):
        return [request.body.json(optional=request.flag("optional"))]

    @route("POST", "/deaf")
    def deaf(eng, request):
        return "ok"


def test_bodies(door, echo):
    client = door.raw()
    assert client.ask("/echo", "POST", b"x" * 200000).body == b"x" * 200000
    client.send("POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
                "5;a=b\r\nhello\r\n1\r\n!\r\n0\r\nTrailer: x\r\n\r\n" + GET + "\r\n")
    assert client.reply().body == b"hello!"
    assert client.reply().body == b"OK"
    assert client.ask("/echo", "POST").body == b""


def test_continue(door, echo):
    client = door.raw()
    head = "POST /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    client.send(head)
    assert client.reply().status == 100
    client.send("hi")
    assert client.reply().body == b"hi"
    client.send(head.replace("/echo", "/deaf"))         # nobody asks for it: it never comes
    reply = client.reply()
    assert (reply.body, reply.headers["connection"]) == (b'"ok"\n', "close")
    assert door.raw().ask("/echo", "POST", b"x", Expect="miracles").status == 417


def test_unread_bodies(door, echo):
    client = door.raw()
    assert client.ask("/deaf", "POST", b"x" * 100000).body == b'"ok"\n'
    assert client.ask("/_ping").body == b"OK"
    client.send(b"POST /deaf HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000\r\n\r\n")
    sender = threading.Thread(target=client.send, args=(b"x" * 2000000,))
    sender.start()
    reply = client.reply()
    sender.join()
    assert (reply.body, reply.headers["connection"]) == (b'"ok"\n', "close")
    assert client.rest() == b""


@pytest.mark.parametrize(
    "body, text",
    [
        (b"", "invalid JSON: got EOF while reading request body"),
        (b"{", "invalid JSON: unexpected EOF"),
        (b'{"a": "b', "invalid JSON: unexpected EOF"),
        (b"x", "invalid JSON: invalid character 'x' looking for beginning of value"),
        (b'{"a": ]}', "invalid JSON: invalid character ']' looking for beginning of value"),
        (b"{a}", "invalid JSON: invalid character 'a' looking for beginning of object key string"),
        (b'{"a" 1}', "invalid JSON: invalid character '1' after object key"),
        (b'{"a":[{}],"b":1 2}',
         "invalid JSON: invalid character '2' after object key:value pair"),
        (b'{"a":["]" 1]}', "invalid JSON: invalid character '1' after array element"),
        (b'{"a":tru}', "invalid JSON: invalid character '}' in literal true (expecting 'e')"),
        (b'"\\q"', "invalid JSON: invalid character 'q' in string escape code"),
        (b"\"\n\"", "invalid JSON: invalid character '\\n' in string literal"),
        (b"{} 1", "unexpected content after JSON"),
        (b"[" * 1000, "invalid JSON: JSON is nested too deeply"),
        (b"\xff", "invalid JSON: invalid UTF-8 at byte 0"),
    ],
)
def test_bad_json(door, echo, body, text):
    reply = door.raw().ask("/json", "POST", body)
    assert (reply.status, reply.message) == (400, text)


@pytest.mark.parametrize(
    "kind, text",
    [
        ("", "malformed Content-Type header (): mime: no media type"),
        ("text/plain",
         "unsupported Content-Type header (text/plain): must be 'application/json'"),
        ("a/", "malformed Content-Type header (a/): mime: expected token after slash"),
        ("application/json; x",
         "malformed Content-Type header (application/json; x): mime: invalid media parameter"),
    ],
)
def test_content_types(door, echo, kind, text):
    reply = door.raw().ask("/json", "POST", b"{}", content_type=kind)
    assert (reply.status, reply.message) == (400, text)


def test_content_type_of_nothing(door, echo):
    client = door.raw()
    assert client.ask("/json?optional=1", "POST").json() == [{}]
    assert client.ask("/json?optional=1", "POST", content_type="text/plain").status == 400
    good = "Application/JSON; charset=utf-8"
    assert client.ask("/json", "POST", b"[1]", content_type=good).json() == [[1]]


def test_json_is_bounded(door, echo, monkeypatch):
    monkeypatch.setattr(engine, "BODY_LIMIT", 1000)
    reply = door.raw().ask("/json", "POST", b"[" + b" " * 1000 + b"]")
    assert (reply.status, reply.message) == (413, "request body is too large")


def test_parameters(door, route):
    route("GET", "/args")(lambda eng, request: [request.arg("a"), request.flag("b")])
    client = door.raw()
    assert client.ask("/args?a=1&a=2&unknown=x&b").json() == ["1", False]
    assert client.ask("/args?a=%zz").message == 'invalid URL escape "%zz"'
    assert client.ask("/args?a=b;c").message == "invalid semicolon separator in query"
    assert client.ask("/args%2").status == 400


# ---------------------------------------------------------------- hostile shapes

BODY = "Content-Length: 4\r\n"
HOSTILE = {
    "no host": ("GET /_ping HTTP/1.1\r\n\r\n", 400),
    "two hosts": (GET + "Host: y\r\n\r\n", 400),
    "two lengths": (GET + "Content-Length: 1\r\nContent-Length: 1\r\n\r\nx", 400),
    "length list": (GET + "Content-Length: 1, 1\r\n\r\nx", 400),
    "signed length": (GET + "Content-Length: +1\r\n\r\nx", 400),
    "negative length": (GET + "Content-Length: -1\r\n\r\nx", 400),
    "hexadecimal length": (GET + "Content-Length: 0x1\r\n\r\nx", 400),
    "length of digits of elsewhere": (GET + "Content-Length: \u0661\r\n\r\nx", 400),
    "huge length": (GET + "Content-Length: 99999999999999999999\r\n\r\n", 400),
    "empty length": (GET + "Content-Length:\r\n\r\n", 400),
    "length and encoding": (GET + BODY + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "encoding and length": (GET + "Transfer-Encoding: chunked\r\n" + BODY + "\r\n0\r\n\r\n", 400),
    "two encodings": (GET + "Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n", 400),
    "encoding list": (GET + "Transfer-Encoding: gzip, chunked\r\n\r\n", 501),
    "unknown encoding": (GET + "Transfer-Encoding: xchunked\r\n\r\n", 501),
    "encoding in HTTP/1.0": ("GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "encoding with a tab": (GET + "Transfer-Encoding:\x0bchunked\r\n\r\n", 400),
    "space before a colon": (GET + "Content-Length : 4\r\n\r\nxxxx", 400),
    "folded line": (GET + "X: a\r\n b\r\n\r\n", 400),
    "line without a colon": (GET + "nonsense\r\n\r\n", 400),
    "no name": (GET + ": x\r\n\r\n", 400),
    "bare line feed": (GET + "A: b\nContent-Length: 4\r\n\r\nxxxx", 400),
    "bare line feeds": (GET.replace("\r\n", "\n") + "\n", 400),
    "bare carriage return": (GET + "A: b\rc\r\n\r\n", 400),
    "NUL": (GET + "A: \0\r\n\r\n", 400),
    "no method": (" /_ping HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "bad method": ("G(T /_ping HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "long method": ("X" * 30 + " /_ping HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "no target": ("GET HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "relative target": ("GET _ping HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "target with a space": ("GET /_ping x HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "fragment": ("GET /_ping#x HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "HTTP/0.9": ("GET /_ping\r\n\r\n", 400),
    "HTTP/2": ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "HTTP/1.2": ("GET /_ping HTTP/1.2\r\nHost: x\r\n\r\n", 505),
    "small letters": ("GET /_ping http/1.1\r\nHost: x\r\n\r\n", 400),
    "TLS": ("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "many fields": (GET + "A: b\r\n" * 200 + "\r\n", 431),
    "long field": (GET + "A: " + "b" * 300000 + "\r\n\r\n", 431),
    "endless head": ("GET /" + "a" * 300000, 431),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_heads(door, name):
    """Each has one answer, with its status, and ends the connection: nothing behind it is read."""
    text, status = HOSTILE[name]
    client = door.raw()
    client.send(text.encode() + b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n")
    reply = client.reply()
    assert (reply.status, reply.headers["connection"]) == (status, "close")
    assert reply.message
    assert client.rest() == b""
    assert door.raw().ask("/_ping").body == b"OK"


@pytest.mark.parametrize(
    "chunks",
    [
        "zz\r\nhello\r\n0\r\n\r\n", "5\r\nhelloX\r\n0\r\n\r\n", "5\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n", "0x5\r\nhello\r\n0\r\n\r\n", " 5\r\nhello\r\n0\r\n\r\n",
        "fffffffffffffffff\r\n", "5;" + "x" * 1000 + "\r\nhello\r\n0\r\n\r\n",
        "0\r\nTrailer\r\n\r\n", "0\r\n" + "T: x\r\n" * 5000, "-1\r\n",
    ],
)
def test_hostile_chunks(door, echo, chunks):
    client = door.raw()
    client.send("POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
    reply = client.reply()
    assert (reply.status, reply.headers["connection"]) == (400, "close")
    assert reply.message.startswith("malformed")
    assert client.rest() == b""


def test_body_that_breaks_off(door, echo):
    for head in ("Content-Length: 10\r\n\r\nhi", "Transfer-Encoding: chunked\r\n\r\n5\r\nhi"):
        client = door.raw().send("POST /echo HTTP/1.1\r\nHost: x\r\n" + head)
        client.sock.shutdown(socket.SHUT_WR)
        reply = client.reply()
        assert (reply.status, reply.message) == (400, "unexpected EOF")
        assert client.rest() == b""


@hypothesis.settings(max_examples=150, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(st.data())
def test_no_bytes_break_the_server(door, data):
    """Whatever comes: an answer with a sane status or none, and the server goes on."""
    lines = st.sampled_from(
        ["GET /_ping HTTP/1.1", "Host: x", "Content-Length: 3", "Transfer-Encoding: chunked",
         "Connection: close", "", "0", "3", "abc", "Expect: 100-continue", "\n", "\0", ": ", "A"])
    text = "\r\n".join(data.draw(st.lists(lines, max_size=12)))
    client = Raw(door.unix)
    client.send(text.encode() + data.draw(st.binary(max_size=20)))
    client.sock.shutdown(socket.SHUT_WR)
    answer = client.rest()
    client.close()
    if answer:
        assert answer[:9] == b"HTTP/1.1 " and answer[9:12] in (
            b"200", b"400", b"404", b"417", b"501", b"505", b"100"), answer


@pytest.mark.parametrize(
    "field",
    ["Origin: http://evil", "Sec-Fetch-Site: none", "Referer: http://x/",
     "User-Agent: Mozilla/5.0 (X11)"],
)
def test_web_pages(door, field):
    for address, status in ((door.tcp, 403), (door.unix, 200)):
        client = door.raw(address).send(GET + field + "\r\n\r\n")
        assert client.reply().status == status
    reply = door.raw(door.tcp).ask("/_ping", Host="evil.example", User_Agent="curl/8")
    assert reply.status == 400                         # two Host fields, by the helper
    client = door.raw(door.tcp).send("GET /_ping HTTP/1.1\r\nHost: evil.example\r\n\r\n")
    assert client.reply().status == 200


# ---------------------------------------------------------------- time, and who leaves


def test_slow_heads(door, monkeypatch):
    monkeypatch.setattr(engine, "HEAD_TIME", 0.4)
    client = door.raw().send(GET)
    began = time.monotonic()
    for _ in range(3):
        time.sleep(0.15)
        client.send("X")                                # each byte is in time, the head is not
    reply = client.reply()
    assert reply.status == 408 and time.monotonic() - began < 2
    assert client.rest() == b""


def test_idle_connections(roots, monkeypatch):
    monkeypatch.setattr(engine, "CONNECTION_IDLE", 0.3)
    door = Door(roots, empty_engine(roots))
    try:
        client = door.raw()
        assert client.ask("/_ping").body == b"OK"
        assert client.rest() == b""
        client = door.raw()
        assert client.rest() == b""
        client = door.raw().send("POST /containers/create HTTP/1.1\r\nHost: x\r\n"
                                 "Content-Type: application/json\r\nContent-Length: 9\r\n\r\n{")
        assert client.reply().status == 408
    finally:
        door.close()


def test_streams_outlive_the_timeouts(roots, route, monkeypatch):
    monkeypatch.setattr(engine, "CONNECTION_IDLE", 0.2)
    monkeypatch.setattr(engine, "SEND_STALL", 0.2)

    def pieces():
        time.sleep(0.5)
        for _ in range(64):
            yield b"x" * 65536

    route("GET", "/slow")(lambda eng, request: engine.Stream(pieces()))
    door = Door(roots, empty_engine(roots))
    try:
        client = door.raw().send("GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(1.2)                                 # nothing is read for longer than both
        assert client.reply().body == b"x" * (64 * 65536)
    finally:
        door.close()


def test_reader_that_stops_loses_a_reply(roots, route, monkeypatch):
    monkeypatch.setattr(engine, "SEND_STALL", 0.2)
    route("GET", "/big")(lambda eng, request: engine.Response(200, {}, b"x" * (1 << 25)))
    door = Door(roots, empty_engine(roots))
    try:
        client = door.raw().send("GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
        client.head()
        deadline = time.monotonic() + 5
        while door.server._open and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not door.server._open
        assert len(client.rest()) < 1 << 25
    finally:
        door.close()


def gone(door, count=0):
    """Waits until no more than `count` connections are open."""
    deadline = time.monotonic() + 5
    while len(door.server._open) > count and time.monotonic() < deadline:
        time.sleep(0.01)
    return len(door.server._open) <= count


@pytest.mark.parametrize("how", ["close", "half", "reset"])
@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_client_gone_from_a_quiet_stream(door, kind, how):
    client = Raw(getattr(door, kind))
    client.send("GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"200 OK" in client.head()
    if how == "half":
        client.sock.shutdown(socket.SHUT_WR)
        assert client.rest().endswith(b"0\r\n\r\n")
    elif how == "reset":
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
    assert gone(door)


def test_pipelined_bytes_do_not_end_a_stream(door):
    client = door.raw().send("GET /events HTTP/1.1\r\nHost: x\r\n\r\n" + GET + "\r\n")
    client.head()
    store = engine.Store(door.server.engine.store.data, door.server.engine.store.run)
    time.sleep(0.1)
    engine.event_emit(store, "container", "start", "1" * 64, {})
    while b'"start"' not in client.held:
        assert client.more()


def test_half_closed_request_is_answered(door):
    client = door.raw().send(GET + "\r\n")
    client.sock.shutdown(socket.SHUT_WR)
    assert client.reply().body == b"OK"
    assert client.rest() == b""


def test_many_connections_at_once(door):
    clients = [door.raw(door.tcp if n % 2 else door.unix) for n in range(500)]
    for client in clients:
        client.send(GET + "\r\n")
    assert [client.reply().body for client in clients] == [b"OK"] * 500
    for client in reversed(clients):
        assert client.ask("/containers/json").json() == []
    assert len(door.server.engine.store._open) == 0
    assert len(door.server.engine.store._free) <= engine.CONNECTIONS_KEPT
    for client in clients:
        client.close()
    assert gone(door)
    deadline = time.monotonic() + 5
    while door.server.threads > engine.ACCEPT_IDLE and time.monotonic() < deadline:
        time.sleep(0.01)
    assert door.server.threads <= engine.ACCEPT_IDLE


def test_no_thread_to_be_had(door, monkeypatch):
    class Full:
        @staticmethod
        def start_new_thread(*args):
            raise RuntimeError("can't start new thread")

    held = [door.raw() for _ in range(engine.ACCEPT_IDLE)]
    assert [client.ask("/_ping").body for client in held] == [b"OK"] * len(held)
    told = []
    door.server.log = lambda level, text: told.append(text)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_thread_module", lambda: Full)
        refused = door.raw()
        with pytest.raises((AssertionError, OSError)):
            for _ in range(10):
                refused = door.raw()
                refused.ask("/_ping")
    assert told and told[0].startswith("no more threads")
    assert door.raw().ask("/_ping").body == b"OK"


def test_end_waits_for_requests_and_ends_the_idle(door, route):
    started = threading.Event()

    @route("GET", "/slow")
    def slow(eng, request):
        started.set()
        time.sleep(0.3)
        return "done"

    idle = door.raw()
    idle.ask("/_ping")
    stream = door.raw().send("GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
    stream.head()
    busy = door.raw().send("GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
    started.wait(5)
    engine.os.write(door.stop_in, b"x")
    door.thread.join(5)
    assert door.server.drain(5)
    assert idle.rest() == b""
    assert stream.rest() == b"0\r\n\r\n"
    reply = busy.reply()
    assert (reply.json(), reply.headers["connection"]) == ("done", "close")


def test_mistakes_are_logged_and_end_the_connection(door, route):
    told = []
    door.server.log = lambda level, text: told.append((level, text))
    route("GET", "/odd")(lambda eng, request: engine.Response(200, {"X": "a\nb"}))
    client = door.raw().send("GET /odd HTTP/1.1\r\nHost: x\r\n\r\n")
    assert client.rest() == b""
    deadline = time.monotonic() + 5
    while not told and time.monotonic() < deadline:
        time.sleep(0.01)
    assert told == [("error", "ValueError: control character in an HTTP head")]


def test_debug_log_names_requests(door):
    told = []
    door.server.log, door.server.debug = lambda level, text: told.append((level, text)), True
    door.raw().ask("/_ping?a=1")
    assert told == [("debug", "Calling GET /_ping?a=1")]


def test_accept_survives_a_full_table(door, monkeypatch):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft == hard                                 # as far as it goes
    first = door.raw()
    assert first.ask("/_ping").body == b"OK"
    highest = max(int(fd) for fd in engine.os.listdir("/proc/self/fd"))
    waiting = socket.socket(socket.AF_UNIX)
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))
    try:
        waiting.connect(door.unix)
        time.sleep(0.2)                                 # it is tried, and tried again
        assert first.ask("/_ping").body == b"OK"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    waiting.settimeout(5)
    waiting.sendall(GET.encode() + b"\r\n")
    assert waiting.recv(100).startswith(b"HTTP/1.1 200 OK")
    waiting.close()


@hypothesis.given(st.binary(max_size=3000), st.lists(st.integers(1, 900), min_size=1, max_size=9),
                  st.lists(st.integers(0, 1200), min_size=1, max_size=9), st.booleans())
def test_bodies_are_read_in_any_pieces(data, cuts, sizes, is_chunked):
    class Sender:
        held = b""

        def __init__(self):
            self.pieces, at, turn = [], 0, 0
            while at < len(data):
                part = data[at:at + cuts[turn % len(cuts)]]
                self.pieces.append(engine.chunk_encode(part) if is_chunked else part)
                at, turn = at + len(part), turn + 1
            if is_chunked:
                self.pieces.append(engine.CHUNK_END + b"NEXT")

        def receive(self, size):
            piece = self.held or self.pieces.pop(0)
            self.held = piece[size:]
            return piece[:size]

    sender = Sender()
    reader = engine.BodyReader(sender, -1 if is_chunked else len(data), False)
    out, turn = [], 0
    while not reader.is_over:
        size = sizes[turn % len(sizes)] or -1
        out.append(reader.read(size))
        assert size < 0 or len(out[-1]) == size or reader.is_over
        turn += 1
    assert b"".join(out) == data and reader.read(10) == b""
    assert sender.held == (b"NEXT" if is_chunked else b"")


def test_a_client_that_speaks_tls_to_a_plain_port_is_not_kept_waiting(door):
    client = door.raw()
    client.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
    assert client.reply().status == 400
