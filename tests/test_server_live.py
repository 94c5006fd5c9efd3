"""Containers through the server: what is given away to the monitor, over unix, tcp, TLS, WebSocket.
"""

from __future__ import annotations

import os
import socket
import ssl
import time
import warnings

import engine
import pytest
from container_help import box, frames  # noqa: F401
from door_help import Door
from test_websocket import frame
from tls_help import authority, issued

pytestmark = pytest.mark.root
UPGRADE = {"Connection": "Upgrade", "Upgrade": "tcp"}


@pytest.fixture
def door(box):  # noqa: F811
    cert, key = issued("server")
    tls = engine.tls_server(cert, key, authority().ca, verify=True)
    made = Door(box.roots, box.engine, tls=tls)
    made.box = box
    yield made
    for client in made.clients:
        client.close()
    box.clear()
    made.close()


def trusted(kind="client", ca="ca"):
    context = ssl.create_default_context(cafile=authority().ca)
    if kind:
        context.load_cert_chain(*issued(kind, ca))
    return context


@pytest.fixture(params=["unix", "tls"])
def client(door, request):
    """Makes clients, plain ones and such with TLS."""
    tls = trusted() if request.param == "tls" else None
    return lambda: door.raw(door.tcp if tls else door.unix, tls=tls)


def streams(data):
    """(stdout, stderr) of multiplexed bytes."""
    reader, out = engine.FrameReader(), {1: b"", 2: b""}
    for stream, part in reader.feed(data):
        out[stream] += part
    return out[1], out[2]


def test_attach_and_wait(door, client):
    id = door.box.create("sh", "-c", "read x; echo got $x; echo bad >&2; exit 3", OpenStdin=True,
                         StdinOnce=True)
    waiter = client()
    waiter.send(f"POST /containers/{id}/wait?condition=next-exit HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"200 OK" in waiter.head()                   # it is noted before the start
    attach = client()
    attach.send(f"POST /v1.42/containers/{id}/attach?stream=1&stdin=1&stdout=1&stderr=1 "
                "HTTP/1.1\r\n"
                "Host: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nhel")
    head = attach.head().decode()
    assert head.startswith("HTTP/1.1 101 UPGRADED\r\n")
    for line in ("Content-Type: application/vnd.docker.multiplexed-stream",
                 "Connection: Upgrade", "Upgrade: tcp"):
        assert line in head.split("\r\n")
    assert client().ask(f"/containers/{id}/start", "POST").status == 204
    attach.send("lo\n")
    assert streams(attach.rest()) == (b"got hello\n", b"bad\n")
    assert waiter.rest() == b'{"StatusCode":3}\n'


def test_half_close_ends_the_input_only(door):
    id = door.box.create("cat", OpenStdin=True, StdinOnce=True)
    attach = door.raw()
    attach.ask(f"/containers/{id}/attach?stream=1&stdin=1&stdout=1", "POST", **UPGRADE)
    door.raw().ask(f"/containers/{id}/start", "POST")
    attach.send(b"x" * 300000)
    attach.sock.shutdown(socket.SHUT_WR)
    out, _ = streams(attach.rest())
    assert out == b"x" * 300000


def test_input_may_come_with_the_request(door, client):
    """Any bytes, more than fit in a message to the monitor, before the answer was seen."""
    id = door.box.create("cat", OpenStdin=True, StdinOnce=True)
    door.box.client.post(f"/containers/{id}/start")
    early = bytes(range(256)) * 400
    one = client()
    one.send(f"POST /containers/{id}/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: x\r\n\r\n"
             .encode() + early)
    one.head()
    data = b""
    while len(data) < len(early):
        size = int.from_bytes(one.take(8)[4:], "big")
        data += one.take(size)
    assert data == early


def test_too_much_before_an_upgrade(door):
    """What comes behind chunks may have been read with them; a little of it is passed on."""
    id = door.box.create("sleep", "60")
    door.box.client.post(f"/containers/{id}/start")
    made = door.box.client.post(f"/containers/{id}/exec", body={"Cmd": ["cat"]})["Id"]
    one = door.raw()
    one.send(f"POST /exec/{made}/start HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
             "Transfer-Encoding: chunked\r\n\r\n")
    time.sleep(0.1)
    one.send(b"2\r\n{}\r\n0\r\n\r\n" + b"x" * 60000)
    reply = one.reply()
    assert (reply.status, reply.message) == (
        400, "too much was sent before the connection was upgraded")


def test_tls_half_close(door):
    """As Go's clients do it: close_notify, then the rest of the output."""
    id = door.box.create("cat", OpenStdin=True, StdinOnce=True)
    context = trusted()
    sock = socket.create_connection(door.tcp)
    link = engine.TlsLink(sock, context, name="localhost")
    link.handshake()
    near = link.start()
    query = f"/containers/{id}/attach?stream=1&stdin=1&stdout=1"
    near.sendall(f"POST {query} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    head = b""
    while b"\r\n\r\n" not in head:
        head += near.recv(1)
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Content-Type: application/vnd.docker.raw-stream\r\n" in head
    door.box.client.post(f"/containers/{id}/start")
    near.sendall(b"y" * 100000)
    near.shutdown(socket.SHUT_WR)
    out, _ = frames(near)
    assert out == b"y" * 100000


@pytest.mark.parametrize(
    "version, tty, kind",
    [("1.41", False, "raw"), ("1.42", False, "multiplexed"), ("1.51", True, "raw")],
)
def test_exec_and_its_content_types(door, client, version, tty, kind):
    id = door.box.create("sleep", "60")
    door.box.client.post(f"/containers/{id}/start")
    body = {"Cmd": ["sh", "-c", "echo out; echo err >&2"], "AttachStdout": True,
            "AttachStderr": True, "Tty": tty}
    one = client()
    made = one.ask(f"/v{version}/containers/{id}/exec", "POST", engine.json_text(body).encode())
    start = engine.json_text({"Tty": tty}).encode()
    one.send(f"POST /v{version}/exec/{made.json()['Id']}/start HTTP/1.1\r\nHost: x\r\n"
             f"Content-Type: application/json\r\nContent-Length: {len(start)}\r\n"
             "Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n".encode() + start)
    head = one.head().decode().split("\r\n")
    assert f"Content-Type: application/vnd.docker.{kind}-stream" in head
    assert "Api-Version: 1.51" in head
    data = one.rest()
    if tty:
        assert data == b"out\r\nerr\r\n"
    else:
        assert streams(data) == (b"out\n", b"err\n")


def ws_ask(client, target):
    client.send(f"GET {target} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
    return client.head()


def ws_messages(client):
    """What the server said, message by message, until its close."""
    while True:
        first, size = client.take(2)
        if size == 126:
            size = int.from_bytes(client.take(2), "big")
        data = client.take(size)
        yield first & 15, data
        if first & 15 == 8:
            return


@pytest.mark.parametrize("version, code", [("1.27", 1), ("1.51", 2)])
def test_attach_by_websocket(door, client, version, code):
    id = door.box.create("sh", "-c", "read x; echo got $x; echo err >&2", OpenStdin=True,
                         StdinOnce=True)
    query = "?stream=1&stdin=1&stdout=1&stderr=1"
    one = client()
    head = ws_ask(one, f"/v{version}/containers/{id}/attach/ws{query}")
    assert head.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
    one.send(frame(9, b"are you there"))
    door.box.client.post(f"/containers/{id}/start")
    one.send(frame(2, b"he", final=False) + frame(0, b"llo\n"))
    told = list(ws_messages(one))
    assert told[0] == (10, b"are you there")
    assert told[-1] == (8, b"\x03\xe8")
    assert {kind for kind, _ in told[1:-1]} == {code}
    assert b"".join(data for _, data in told[1:-1]) == b"got hello\nerr\n"


def test_websocket_leaves(door, client):
    """A client's close detaches it; one that just goes is noticed as well."""
    id = door.box.create("sh", "-c", "trap '' HUP; while :; do sleep 1; done", OpenStdin=True)
    door.box.client.post(f"/containers/{id}/start")
    for polite in (True, False):
        one = client()
        ws_ask(one, f"/containers/{id}/attach/ws?stream=1&stdin=1&stdout=1")
        if polite:
            one.send(frame(8, b"\x03\xe8"))
            assert list(ws_messages(one)) == [(8, b"\x03\xe8")]
        one.close()
        deadline = time.monotonic() + 5
        while door.server._open and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not door.server._open
    assert door.box.inspect(id)["State"]["Running"]


def test_no_websocket_without_a_handshake(door, client):
    id = door.box.create("true")
    reply = client().ask(f"/containers/{id}/attach/ws?stream=1")
    assert (reply.status, reply.message) == (400, "not websocket protocol")
    assert client().ask("/containers/nosuch/attach/ws?stream=1").status == 404


def test_attach_is_refused_as_in_docker(door, client):
    reply = client().ask("/containers/nosuch/attach?stream=1", "POST", **UPGRADE)
    assert (reply.status, reply.body) == (404, b"No such container: nosuch\r\n")
    assert reply.headers["content-type"] == "application/vnd.docker.raw-stream"
    id = door.box.create("true")
    with pytest.raises(engine.InvalidParameter, match="Invalid detach keys"):
        door.box.attach(id, detachKeys="nonsense")


def test_logs_end_with_the_container_or_the_client(door, client):
    id = door.box.create("sh", "-c", "echo one; sleep 0.5; echo two")
    door.box.client.post(f"/containers/{id}/start")
    reply = client().ask(f"/containers/{id}/logs?follow=1&stdout=1")
    assert streams(reply.body) == (b"one\ntwo\n", b"")
    id = door.box.create("sh", "-c", "echo one; sleep 60")
    door.box.client.post(f"/containers/{id}/start")
    before = len(os.listdir("/proc/self/fd"))
    one = client()
    one.send(f"GET /containers/{id}/logs?follow=1&stdout=1 HTTP/1.1\r\nHost: x\r\n\r\n")
    while b"one\n" not in one.held:
        one.more()
    one.close()
    deadline = time.monotonic() + 5
    while len(os.listdir("/proc/self/fd")) > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(os.listdir("/proc/self/fd")) <= before


def test_statistics_end_with_the_client(door, monkeypatch):
    monkeypatch.setattr(engine, "STATS_INTERVAL", 30)
    id = door.box.create("sleep", "60")
    door.box.client.post(f"/containers/{id}/start")
    one = door.raw().send(f"GET /containers/{id}/stats HTTP/1.1\r\nHost: x\r\n\r\n")
    one.head()
    one.sock.shutdown(socket.SHUT_WR)                   # as Go: who says no more has left
    assert one.rest().endswith(b"0\r\n\r\n")


def monitor_fds(id):
    """How many descriptors the monitor of a container has open."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if read(f"/proc/{pid}/comm") != b"engine:monitor\n":
            continue
        for child in read(f"/proc/{pid}/task/{pid}/children").split():
            if id.encode() in read(f"/proc/{int(child)}/cgroup"):
                return len(os.listdir(f"/proc/{pid}/fd"))
    raise AssertionError("no monitor")


def own_fds():
    """How many descriptors this process has open, but for the database's.

    SQLite keeps what it closes for the next connection, as closing would drop its locks.
    """
    links = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink("/proc/self/fd/" + fd))
        except FileNotFoundError:
            continue
    kept = [link for link in links if "/engine.db" in link]
    assert len([link for link in kept if "(deleted)" not in link]) < 40
    return len(links) - len(kept)


def read(path):
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def falls_to(count, most):
    """True once count() is no more than that; it may take some seconds."""
    deadline = time.monotonic() + 10
    while count() > most and time.monotonic() < deadline:
        time.sleep(0.02)
    return count() <= most


def settled(count):
    """What count() is, once it has been the same for half a second."""
    value, since = count(), time.monotonic()
    while time.monotonic() - since < 0.5:
        time.sleep(0.05)
        if count() != value:
            value, since = count(), time.monotonic()
    return value


def test_waiting_client_that_leaves_is_forgotten(door):
    id = door.box.create("sleep", "60")
    door.box.client.post(f"/containers/{id}/start")
    before = settled(lambda: monitor_fds(id))
    waiters = [door.raw() for _ in range(5)]
    for one in waiters:
        one.send(f"POST /containers/{id}/wait HTTP/1.1\r\nHost: x\r\n\r\n")
        one.head()
    assert monitor_fds(id) >= before + 5
    for one in waiters:
        one.close()
    assert falls_to(lambda: monitor_fds(id), before)


def test_clients_that_die_leave_nothing(door):
    """At any point of any request: no descriptor, thread, exec or container stays for it."""
    id = door.box.create("sh", "-c", "while :; do echo line; sleep 0.05; done", OpenStdin=True)
    door.box.client.post(f"/containers/{id}/start")
    tls = trusted()
    exec_body = engine.json_text({"Cmd": ["cat"], "AttachStdin": True, "AttachStdout": True})
    upgrade = "Connection: Upgrade\r\nUpgrade: tcp\r\n"
    shake = ("Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
             "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n")
    requests = [
        f"GET /containers/{id}/logs?follow=1&stdout=1 HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /events HTTP/1.1\r\nHost: x\r\n\r\n",
        f"GET /containers/{id}/stats HTTP/1.1\r\nHost: x\r\n\r\n",
        f"POST /containers/{id}/wait HTTP/1.1\r\nHost: x\r\n\r\n",
        f"POST /containers/{id}/attach?stream=1&stdout=1&stdin=1 HTTP/1.1\r\nHost: x\r\n"
        f"{upgrade}\r\n",
        f"GET /containers/{id}/attach/ws?stream=1&stdout=1 HTTP/1.1\r\nHost: x\r\n{shake}\r\n",
        "POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        "Content-Length: 500\r\n\r\n{",
        "GET /_ping HTTP/1.1\r\nHo",
    ]

    def once(n, request):
        over_tls = n % 2
        if "exec" in request:
            asker = door.raw()
            made = asker.ask(f"/containers/{id}/exec", "POST", exec_body.encode()).json()["Id"]
            asker.close()
            request = request.format(made)
        one = door.raw(door.tcp if over_tls else door.unix, tls=tls if over_tls else None)
        one.send(request)
        if n % 4 < 2:
            try:
                one.more()
            except OSError:
                pass                                    # half a request has no answer
        one.close()

    requests.append("POST /exec/{}/start HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                    f"{upgrade}Content-Length: 2\r\n\r\n{{{{}}}}")
    once(0, requests[0])
    assert falls_to(lambda: len(door.server._open), 0)
    before = own_fds(), len(os.listdir("/proc/self/task"))
    at_monitor = settled(lambda: monitor_fds(id))
    for n in range(8):
        for request in requests:
            if request[-2:] == "Ho" or request[-1] == "{":
                once(n // 2 * 4 + 2 + n % 2, request)   # what is not whole is not waited for
            else:
                once(n, request)
    assert falls_to(lambda: len(door.server._open), 0)
    for one in door.clients:
        one.close()
    assert falls_to(own_fds, before[0])
    assert falls_to(lambda: len(os.listdir("/proc/self/task")), before[1] + engine.ACCEPT_IDLE)
    assert falls_to(lambda: monitor_fds(id), at_monitor)
    assert [c.id for c in door.box.containers.all()] == [id]
    execs = door.box.inspect(id)["ExecIDs"] or []       # who died before the start started none
    assert not any(door.box.client.get(f"/exec/{each}/json")["Running"] for each in execs)


# ---------------------------------------------------------------- who may come in


def test_certificates(door):
    assert door.raw(door.tcp, tls=trusted()).ask("/_ping").body == b"OK"
    for kind, ca in ((None, ""), ("client", "other")):
        with pytest.raises((ssl.SSLError, OSError, AssertionError)):
            one = door.raw(door.tcp, tls=trusted(kind, ca))
            one.ask("/_ping")
    old = trusted()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises((ssl.SSLError, OSError)):
        door.raw(door.tcp, tls=old)
    plain = door.raw(door.tcp).send("GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n")
    assert plain.rest().endswith(b"Client sent an HTTP request to an HTTPS server.\n")
    web = door.raw(door.tcp, tls=trusted()).ask("/_ping", Origin="http://x")
    assert web.status == 200                            # it has shown who it is


def test_slow_handshakes_end(door, monkeypatch):
    monkeypatch.setattr(engine, "HEAD_TIME", 0.2)
    silent = door.raw(door.tcp)
    assert silent.rest() == b""
