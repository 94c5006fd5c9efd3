"""WebSocket: the handshake, frames whole and in pieces, what breaks the protocol."""

from __future__ import annotations

import socket
import struct
import threading

import engine
import hypothesis
import pytest
from hypothesis import strategies as st

MASK = b"\x37\xfa\x21\x3d"


def frame(code, data=b"", mask=MASK, final=True, bits=0):
    """A client's frame."""
    head = bytes([(0x80 if final else 0) | bits | code])
    size, masked = len(data), 0x80 if mask else 0
    if size < 126:
        head += bytes([masked | size])
    elif size < 1 << 16:
        head += bytes([masked | 126]) + struct.pack(">H", size)
    else:
        head += bytes([masked | 127]) + struct.pack(">Q", size)
    return head + mask + bytes(byte ^ mask[n % 4] if mask else byte for n, byte in enumerate(data))


def head(**changes):
    fields = {
        "host": "x", "upgrade": "WebSocket", "connection": "keep-alive, Upgrade",
        "sec-websocket-version": "13", "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==", **changes}
    made = engine.Head()
    made.headers = {name.replace("_", "-"): text for name, text in fields.items() if text}
    return made


def test_handshake():
    """The key and its answer are those of RFC 6455 section 1.3."""
    reply = engine.websocket_upgrade(head()).decode()
    assert reply.startswith("HTTP/1.1 101 Switching Protocols\r\n")
    assert "\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in reply
    assert "Protocol" not in reply.partition("\r\n")[2]
    chosen = engine.websocket_upgrade(head(sec_websocket_protocol="a, b")).decode()
    assert "\r\nSec-WebSocket-Protocol: a\r\n" in chosen


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"upgrade": ""}, "not websocket protocol"),
        ({"connection": "close"}, "not websocket protocol"),
        ({"sec_websocket_version": "8"}, "missing or bad WebSocket Version"),
        ({"sec_websocket_key": "short"}, "mismatch challenge/response"),
    ],
)
def test_no_handshake(changes, text):
    changes = {name.replace("_", "-"): text for name, text in changes.items()}
    with pytest.raises(engine.InvalidParameter) as refused:
        engine.websocket_upgrade(head(**changes))
    assert (str(refused.value), refused.value.status) == (text, 400)


def test_frames_out():
    codec = engine.WebSocketCodec()
    assert codec.encode(b"hi") == b"\x82\x02hi"
    assert codec.encode(b"x" * 126)[:4] == b"\x82\x7e\x00\x7e"
    assert codec.encode(b"x" * 70000)[:10] == b"\x82\x7f" + struct.pack(">Q", 70000)
    assert engine.WebSocketCodec(False).encode(b"hi") == b"\x81\x02hi"
    assert codec.end() == b"\x88\x02\x03\xe8"
    assert codec.end() == codec.encode(b"late") == b""


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 200001])
@pytest.mark.parametrize("code", [1, 2])
def test_frames_in(size, code):
    codec = engine.WebSocketCodec()
    data = bytes(n % 251 for n in range(size))
    assert codec.feed(frame(code, data)) == data
    assert codec.replies() == b"" and not codec.ended


@hypothesis.given(
    st.lists(st.tuples(st.binary(max_size=300), st.booleans()), max_size=8),
    st.lists(st.integers(1, 40), min_size=1, max_size=30),
    st.binary(min_size=4, max_size=4),
)
def test_frames_in_pieces(messages, cuts, mask):
    """Fragments, pings between them and any cut of the stream give the same bytes."""
    stream, within = b"", False
    for data, final in messages:
        stream += frame(0 if within else 2, data, mask, final)
        within = not final
        stream += frame(9, data[:5], mask)
    codec = engine.WebSocketCodec()
    out = b""
    turn = 0
    while stream:
        size = cuts[turn % len(cuts)]
        out += codec.feed(stream[:size])
        stream = stream[size:]
        turn += 1
    assert out == b"".join(data for data, _ in messages)
    assert codec.replies() == b"".join(
        engine.websocket_frame(10, data[:5]) for data, _ in messages)
    assert not codec.ended


def test_close():
    codec = engine.WebSocketCodec()
    assert codec.feed(frame(2, b"a") + frame(8, b"\x03\xe9bye") + frame(2, b"b")) == b"a"
    assert (codec.replies(), codec.ended, codec.closed) == (b"\x88\x02\x03\xe9", True, True)
    assert codec.end() == b""
    first = engine.WebSocketCodec()
    first.end()
    first.feed(frame(8))
    assert (first.replies(), first.ended) == (b"", True)


@pytest.mark.parametrize(
    "wrong",
    [
        frame(2, b"x", mask=b""),
        frame(2, b"x", bits=0x40),
        frame(3, b"x"),
        frame(11),
        frame(0, b"x"),
        frame(2, b"x", final=False) + frame(2, b"y"),
        frame(9, b"x", final=False),
        frame(9, b"x" * 126),
        frame(8, b"x"),
        b"\x82\xff" + b"\xff" * 8 + MASK,
    ],
)
def test_broken_protocol(wrong):
    codec = engine.WebSocketCodec()
    codec.feed(wrong + b"more")
    assert (codec.replies(), codec.ended, codec.closed) == (b"\x88\x02\x03\xea", True, True)


@hypothesis.given(st.lists(st.binary(max_size=50), max_size=10))
def test_no_bytes_break_it(pieces):
    codec = engine.WebSocketCodec()
    for piece in pieces:
        assert len(codec.feed(piece)) <= len(piece)


def test_answers_to_a_client_that_takes_none_are_bounded():
    """It pings without end and reads nothing: from some point on nothing is read of it either."""
    client, served = socket.socketpair()
    near, far = socket.socketpair()
    relay = engine.Relay(served, near, engine.WebSocketCodec(), b"")
    thread = threading.Thread(target=relay.run)
    thread.start()
    pings = frame(9, b"x" * 100) * 600
    client.settimeout(1)
    sent = 0
    with pytest.raises(TimeoutError):
        while sent < 64 << 20:
            sent += client.send(pings)
    assert sent < 8 << 20
    client.close()
    thread.join(10)
    assert not thread.is_alive()
    for each in (served, near, far):
        each.close()
