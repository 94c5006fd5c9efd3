"""The server over raw sockets: framing, keep-alive, what is refused and how."""

from __future__ import annotations

import engine
import pytest
from server_help import Door, empty_engine


@pytest.fixture
def door(roots):
    made = Door(roots, empty_engine(roots))
    yield made
    made.close()


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
        head = client.ask("/_ping", "HEAD")
        assert (head.status, head.headers["content-length"]) == (200, "0")


def test_pipelined_requests(door):
    client = door.raw()
    client.send("GET /_ping HTTP/1.1\r\nHost: x\r\n\r\nGET /version HTTP/1.1\r\nHost: x\r\n\r\n")
    assert client.reply().body == b"OK"
    assert client.reply().json()["Version"] == engine.DOCKER_VERSION


def test_old_http_and_close(door):
    client = door.raw().send("GET /_ping HTTP/1.0\r\n\r\n")
    assert client.reply().headers["connection"] == "close"
    assert client.rest() == b""
    client = door.raw()
    assert client.ask("/_ping", Connection="close").body == b"OK"
    assert client.rest() == b""
