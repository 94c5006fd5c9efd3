"""A server that answers requests as a test says, byte by byte."""

from __future__ import annotations

import os
import socket
import threading

PING = b"HTTP/1.1 200 OK\r\nApi-Version: 1.41\r\nServer: Docker/20.10 (linux)\r\n"
PING += b"Content-Length: 0\r\n\r\n"


def reply(status="200 OK", body=b"", kind="application/json", more=""):
    """The bytes of a reply with a length."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{more}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def chunked(*pieces, kind="application/json", end=b"0\r\n\r\n"):
    """The bytes of a reply in chunks."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head.encode() + b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces) + end


class Seen:
    """A request as it came: .method, .target, .headers (lower case), .body, and the socket."""

    def __init__(self, sock, line, headers, body, rest):
        self.method, self.target = line.decode().split(" ")[:2]
        self.sock, self.headers, self.body, self.rest = sock, headers, body, rest

    @property
    def line(self):
        return f"{self.method} {self.target}"


class Fake:
    """Listens; `answer(seen)` returns the bytes of a reply, or None: it did what was to be done,
    and the connection ends. `.seen` are the requests, `.connections` says how many came.
    """

    def __init__(self, answer, *, path=None, tls=None, ping=PING):
        self.answer, self.tls, self.ping = answer, tls, ping
        self.seen, self.connections = [], 0
        self.reads_body = True
        if path:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.bind(path)
            self.host = "unix://" + path
        else:
            self.sock = socket.socket()
            self.sock.bind(("127.0.0.1", 0))
            self.host = "tcp://127.0.0.1:%d" % self.sock.getsockname()[1]
        self.sock.listen(20)
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            try:
                sock, _ = self.sock.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self.serve, args=(sock,), daemon=True).start()

    def serve(self, sock):
        try:
            if self.tls:
                sock = self.tls.wrap_socket(sock, server_side=True)
            with sock:
                while self.one(sock):
                    pass
        except OSError:
            sock.close()

    def one(self, sock):
        data = b""
        while b"\r\n\r\n" not in data:
            more = sock.recv(65536)
            if not more:
                return False
            data += more
        head, _, rest = data.partition(b"\r\n\r\n")
        line, *fields = head.split(b"\r\n")
        pairs = (field.decode().partition(": ") for field in fields)
        headers = {name.lower(): value for name, _, value in pairs}
        body = b""
        if self.reads_body or b"load" not in line:
            body, rest = self.body(sock, headers, rest)
        seen = Seen(sock, line, headers, body, rest)
        if seen.target.endswith("/_ping") and self.ping is not None:
            sock.sendall(self.ping)
            return True
        self.seen.append(seen)
        answer = self.answer(seen)
        if answer is None:
            return False
        sock.sendall(answer)
        return True

    def body(self, sock, headers, data):
        if headers.get("transfer-encoding") == "chunked":
            out = b""
            while True:
                while b"\r\n" not in data:
                    data += sock.recv(65536)
                size, _, data = data.partition(b"\r\n")
                size = int(size, 16)
                while len(data) < size + 2:
                    data += sock.recv(65536)
                out, data = out + data[:size], data[size + 2:]
                if not size:
                    return out, data
        length = int(headers.get("content-length", 0))
        while len(data) < length:
            data += sock.recv(65536)
        return data[:length], data[length:]

    def close(self):
        self.sock.close()


def put_program(directory, name, text):
    """An executable file; its path."""
    path = os.path.join(str(directory), name)
    with open(path, "w") as file:
        file.write(text)
    os.chmod(path, 0o755)
    return path
