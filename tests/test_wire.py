"""wire: heads with one reading or none, chunks and frames however they are cut."""

from __future__ import annotations

import struct

import engine
import hypothesis.strategies as st
import pytest
from hypothesis import given

REQUEST = b"GET /v1.51/info?x=1 HTTP/1.1\r\nHost: docker\r\nX-A: 1\r\nx-a:  2 \r\n\r\n"


def request(*lines: bytes, first: bytes = b"POST /x HTTP/1.1") -> bytes:
    return b"\r\n".join([first, b"Host: d", *lines, b"", b""])


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    parts, at = [], 0
    for size in sizes:
        parts.append(data[at:at + size])
        at += size
    return [*parts, data[at:]]


SIZES = st.lists(st.integers(0, 9), max_size=40)


# -- heads --------------------------------------------------------------------

def test_request():
    head = engine.head_parse(REQUEST)
    assert (head.method, head.target, head.version) == ("GET", "/v1.51/info?x=1", "1.1")
    assert head.headers == {"host": "docker", "x-a": "1, 2"}
    assert head.length is None and head.keeps_alive


def test_response():
    head = engine.head_parse(b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\n\r\n")
    assert (head.status, head.reason, head.length) == (101, "UPGRADED", None)
    assert engine.head_parse(b"HTTP/1.0 200 \r\nContent-Length: 5\r\n\r\n").length == 5
    assert engine.head_parse(b"HTTP/1.1 200\r\nTransfer-Encoding: Chunked\r\n\r\n").length == -1


@pytest.mark.parametrize("first, target", [
    (b"OPTIONS * HTTP/1.1", "*"), (b"GET http://docker/a/b HTTP/1.1", "/a/b"),
    (b"GET http://docker HTTP/1.1", "/")])
def test_targets(first, target):
    assert engine.head_parse(request(first=first)).target == target


@pytest.mark.parametrize("version, connection, keeps", [
    (b"1.1", b"", True), (b"1.1", b"Close", False), (b"1.1", b"Upgrade, close", False),
    (b"1.0", b"", False), (b"1.0", b"Keep-Alive", True)])
def test_keep_alive(version, connection, keeps):
    head = request(b"Connection: " + connection, first=b"GET / HTTP/" + version)
    assert engine.head_parse(head).keeps_alive is keeps


@pytest.mark.parametrize("bad", [
    request(b"Content-Length: 1", b"Content-Length: 1"),
    request(b"Content-Length: 1", b"content-length: 2"),
    request(b"Content-Length: 1, 1"), request(b"Content-Length: +1"), request(b"Content-Length:"),
    request(b"Content-Length: -1"), request(b"Content-Length: 0x1"),
    request(b"Content-Length: 1 1"),
    request(b"Content-Length: " + b"9" * 19), request(b"Content-Length: \xb2"),
    request(b"Content-Length: 1", b"Transfer-Encoding: chunked"),
    request(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
    request(b"Transfer-Encoding: chunked, identity"), request(b"Transfer-Encoding: xchunked"),
    request(b"Transfer-Encoding: chunked, chunked"), request(b"Transfer-Encoding:"),
    request(b"Transfer-Encoding: chunked", first=b"POST / HTTP/1.0"),
    request(b"Transfer-Encoding : chunked"), request(b"Content-Length : 3"),
    request(b" folded: 1"), request(b"A: 1", b"\tfolded"), request(b"no colon"), request(b": 1"),
    request(b"A: 1\rB: 2"), request(b"A: 1\nB: 2"), request(b"A: \0"), request(b"A: \x7f"),
    request(b"A\xe9: 1"), request(b"A(: 1"), request(b"A,B: 1"), request(b"Host: e"),
    request(first=b"GET  / HTTP/1.1"), request(first=b"GET / HTTP/1.1 "),
    request(first=b" GET / HTTP/1.1"), request(first=b"GET / HTTP/2.0"), request(first=b"GET /"),
    request(first=b"GET / HTTP/1.12"), request(first=b"G@T / HTTP/1.1"), request(first=b""),
    request(first=b"GET /a b HTTP/1.1"), request(first=b"GET x HTTP/1.1"),
    request(first=b"GET /\t HTTP/1.1"), request(first=b"GET /\xff HTTP/1.1"),
    request(first=b"CONNECT a:1 HTTP/1.1"), request(first=b"GET * HTTP/1.1"),
    request(first=b"A" * 21 + b" / HTTP/1.1"),
    b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 20 OK\r\n\r\n", b"HTTP/1.1 0200 OK\r\n\r\n", b"\r\n\r\n",
    b"HTTP/1.1 000 OK\r\n\r\n", b"HTTP/3 200 OK\r\n\r\n", b"", REQUEST[:-2],
    request(*[b"A%d: 1" % n for n in range(engine.HEAD_FIELDS_MAX)]),
    request(b"A: " + b"x" * engine.HEAD_MAX),
])
def test_heads_refused(bad):
    with pytest.raises(engine.EngineError) as refused:
        engine.head_parse(bad)
    assert refused.value.status in (400, 431, 501, 505)


def test_head_end():
    assert engine.head_end(REQUEST + b"body") == len(REQUEST)
    assert engine.head_end(REQUEST[:-1]) == -1
    assert engine.head_end(bytearray()) == -1
    for bad in (b"A" * engine.HEAD_MAX, b"GET / HTTP/1.1\nHost: a\n\n"):
        with pytest.raises(engine.InvalidParameter):
            engine.head_end(bad)


@given(st.binary(max_size=200))
def test_head_never_crashes(noise):
    for data in (noise, noise + b"\r\n\r\n", request(noise), request(b"A: " + noise)):
        try:
            head = engine.head_parse(data)
        except engine.EngineError as error:
            assert error.status in (400, 501)
        else:
            assert not set("".join(head.headers.values())) & set("\r\n\0")


NAME = st.text("abcXYZ-", min_size=1, max_size=8).map(lambda text: "X-" + text)
VALUE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xff, exclude_characters="\x7f"),
                max_size=20)


@given(st.dictionaries(NAME, VALUE, max_size=5))
def test_head_round_trip(headers):
    data = engine.request_head("PUT", "/x", dict(headers, Host="d"))
    parsed = engine.head_parse(data).headers
    assert set(parsed) == {name.lower() for name in headers} | {"host"}
    for name, value in headers.items():
        assert value.strip(" ") in parsed[name.lower()]


@pytest.mark.parametrize("value", ["a\r\nB: 1", "a\nb", "a\0", "\r"])
def test_head_text_refuses_injection(value):
    for headers in ({"A": value}, {value: "A"}):
        with pytest.raises(ValueError):
            engine.response_head(200, headers)
    with pytest.raises(ValueError):
        engine.request_head("GET", "/" + value, {})
    with pytest.raises(ValueError):
        engine.request_head("GET", "/ HTTP/1.1", {})


def test_response_head():
    assert engine.response_head(204, {"A": "b"}) == b"HTTP/1.1 204 No Content\r\nA: b\r\n\r\n"
    assert engine.response_head(299, {}, "1.0") == b"HTTP/1.0 299 Unknown\r\n\r\n"
    assert engine.head_text("X", [("A", "1"), ("A", "2")]) == b"X\r\nA: 1\r\nA: 2\r\n\r\n"


# -- chunked ------------------------------------------------------------------

@given(st.lists(st.binary(max_size=30), max_size=6), SIZES, st.binary(max_size=9))
def test_chunked_round_trip(parts, sizes, after):
    data = b"".join(map(engine.chunk_encode, parts)) + engine.CHUNK_END + after
    decoder = engine.ChunkDecoder()
    assert b"".join(map(decoder.feed, cut(data, sizes))) == b"".join(parts)
    assert decoder.done and decoder.rest == after


def test_chunked_extension_and_trailer():
    decoder = engine.ChunkDecoder()
    assert decoder.feed(b'3;a="b"\r\nabc\r\n00\r\nX-Sum: 1\r\n\r\nNEXT') == b"abc"
    assert decoder.done and decoder.rest == b"NEXT"


@pytest.mark.parametrize("bad", [
    b"\r\n", b"g\r\n", b"-1\r\n", b"0x3\r\n", b"3\nabc\r\n", b"3\r\nabcd\r\n",
    b"3\r\nabc\n0\r\n\r\n",
    b" 3\r\n", b"3 \r\n", b"+3\r\n", b"1_0\r\n", b"1" * 16 + b"\r\n", b"3;" + b"x" * 300,
    b"3;a\rb\r\n", b"3;\0\r\n", b"1" * 300, b"0\r\nbad trailer\r\n", b"0\r\n folded: 1\r\n",
    b"0\r\n" + b"A: " + b"x" * 200 + b"\r\n" + (b"B: " + b"x" * 200 + b"\r\n") * 50,
    b";\r\n", b"\xb2\r\n",
])
def test_chunked_refused(bad):
    decoder = engine.ChunkDecoder()
    with pytest.raises(engine.InvalidParameter):
        decoder.feed(bad)
    with pytest.raises(engine.InvalidParameter):
        decoder.feed(b"3\r\nabc\r\n")
    assert not decoder.done


@given(st.binary(max_size=100), SIZES)
def test_chunked_does_not_depend_on_cuts(data, sizes):
    def outcome(parts):
        decoder, out = engine.ChunkDecoder(), b""
        try:
            for part in parts:
                out += decoder.feed(part)
        except engine.InvalidParameter:
            return "refused"
        return out, decoder.done, decoder.rest
    assert outcome([data]) == outcome(cut(data, sizes))


# -- frames -------------------------------------------------------------------

FRAMES = st.lists(st.tuples(st.integers(0, 3), st.binary(min_size=1, max_size=30)), max_size=6)


@given(FRAMES, SIZES)
def test_frames_round_trip(frames, sizes):
    data = b"".join(engine.frame_header(stream, len(part)) + part for stream, part in frames)
    reader = engine.FrameReader()
    seen = [part for piece in cut(data, sizes) for part in reader.feed(piece)]
    assert reader.is_between
    for stream in range(4):
        assert (b"".join(part for number, part in seen if number == stream)
                == b"".join(part for number, part in frames if number == stream))


def test_frame_header():
    assert engine.frame_header(engine.FRAME_STDERR, 258) == b"\2\0\0\0\0\0\1\2"
    reader = engine.FrameReader()
    assert reader.feed(b"\1\0\0\0\0\0\0\0" + b"\1\0") == []
    assert not reader.is_between


def test_frame_unknown_stream():
    with pytest.raises(engine.EngineError, match="Unrecognized input header: 72"):
        engine.FrameReader().feed(b"HTTP/1.1")
    assert struct.calcsize(">BxxxL") == 8
