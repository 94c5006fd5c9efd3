"""A server in this process on sockets of its own, and a raw client for it."""

from __future__ import annotations

import os
import socket
import threading
import time

import engine


class Reply:
    """A reply as it came over the wire: `.status`, `.headers` (lower case), `.body`, `.raw`."""

    def __init__(self, head, body):
        self.raw = head
        lines = head.decode("latin-1").split("\r\n")
        self.version, self.status, self.reason = (
            lines[0].split(" ", 2)[0],
            int(lines[0].split(" ")[1]),
            lines[0].split(" ", 2)[2],
        )
        self.headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])
        }
        self.body = body

    def json(self):
        return engine.json_parse(self.body)

    @property
    def message(self):
        return self.json()["message"]


class Raw:
    """One connection, read by the byte."""

    def __init__(self, address, timeout=10, tls=None):
        kind = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.sock = socket.socket(kind, socket.SOCK_STREAM)
        self.sock.settimeout(timeout)
        self.sock.connect(address)
        if tls is not None:
            self.sock = tls.wrap_socket(self.sock, server_hostname="localhost")
        self.held = b""

    def send(self, data):
        self.sock.sendall(data.encode() if isinstance(data, str) else data)
        return self

    def more(self):
        data = self.sock.recv(65536)
        self.held += data
        return bool(data)

    def head(self):
        while b"\r\n\r\n" not in self.held:
            assert self.more(), f"ended within a head: {self.held!r}"
        head, _, self.held = self.held.partition(b"\r\n\r\n")
        return head

    def take(self, size):
        while len(self.held) < size:
            assert self.more(), f"ended within a body: {self.held!r}"
        data, self.held = self.held[:size], self.held[size:]
        return data

    def rest(self):
        while self.more():
            pass
        data, self.held = self.held, b""
        return data

    def reply(self, method="GET"):
        """The next reply, its body read by its framing."""
        reply = Reply(self.head(), b"")
        if method == "HEAD" or reply.status in (100, 101, 204, 304):
            return reply
        if reply.headers.get("transfer-encoding") == "chunked":
            decoder = engine.ChunkDecoder()
            reply.body += decoder.feed(self.held)
            while not decoder.done:
                data = self.sock.recv(65536)
                assert data, "ended within chunks"
                reply.body += decoder.feed(data)
            self.held = decoder.rest
        elif "content-length" in reply.headers:
            reply.body = self.take(int(reply.headers["content-length"]))
        else:
            reply.body = self.rest()
        return reply

    def ask(self, target, method="GET", body=None, **headers):
        """Send a request, return the reply."""
        lines = [f"{method} {target} HTTP/1.1", "Host: x"]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
            headers.setdefault("content_type", "application/json")
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.send("\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b""))
        return self.reply(method)

    def close(self):
        self.sock.close()


class Door:
    """A running server: `.unix` and `.tcp` are its addresses, `.raw()` makes clients."""

    def __init__(self, roots, eng, tls=None):
        os.makedirs(roots.base, exist_ok=True)
        self.unix = os.path.join(roots.base, "s.sock")
        self.tcp = ("127.0.0.1", free_port())
        hosts = ["unix://" + self.unix, f"tcp://127.0.0.1:{self.tcp[1]}"]
        self.listeners = engine.listeners_open(hosts, tls=tls)
        self.server = engine.Server(eng, self.listeners)
        self.stop, self.stop_in = os.pipe()
        self.thread = threading.Thread(target=self.server.serve, args=(self.stop,))
        self.thread.start()
        self.clients = []

    def raw(self, address=None, **more):
        client = Raw(address or self.unix, **more)
        self.clients.append(client)
        return client

    def close(self):
        for client in self.clients:
            client.close()
        os.write(self.stop_in, b"x")
        self.thread.join(10)
        for listener in self.listeners:
            listener.close()
        assert self.server.drain(10), "a connection stayed open"
        deadline = time.monotonic() + 5
        while self.server.threads and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not self.server.threads, "a thread stayed"
        os.close(self.stop_in)
        os.close(self.stop)


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def empty_engine(roots):
    """An engine that has nothing."""
    store = engine.Store(roots.data, roots.run)
    store.roots_make()
    return engine.Engine(store)
