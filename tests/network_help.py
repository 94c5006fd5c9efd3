"""Network namespaces for tests: hosts and containers of veth pairs, one process each.

    with Net() as net:                   # in a child of its own namespace: see `apart`
        outside = net.member("ext", "192.0.2.2/24", host="192.0.2.1/24")
        outside.run(function, *args)     # in that namespace
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading

import engine
from kernel_help import in_child


def ip(*words):
    """`ip` with these words, which must succeed."""
    subprocess.run(["ip", *words], check=True, capture_output=True)


def apart(function, *args):
    """What function(*args) returns in a network namespace of its own, whose loopback is up."""

    def inside():
        engine.sys_unshare(engine.CLONE_NEWNET)
        engine.loopback_up()
        return function(*args)

    return in_child(inside)


class Member:
    """A process that only holds a network namespace with lo and one end of a pair."""

    def __init__(self, name, address, host="", bridge="", gateway=""):
        reader, writer = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            try:
                engine.sys_unshare(engine.CLONE_NEWNET)
                engine.loopback_up()
                os.write(writer, b"x")
                signal.pause()
            finally:
                os._exit(1)
        os.close(writer)
        os.read(reader, 1)
        os.close(reader)
        self.address = address.partition("/")[0]
        ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", str(self.pid))
        if host:
            ip("addr", "add", host, "dev", name)
        if bridge:
            ip("link", "set", name, "master", bridge)
            ip("link", "set", name, "type", "bridge_slave", "hairpin", "on")
        ip("link", "set", name, "up")
        self.run(self._inside, address, gateway)

    @staticmethod
    def _inside(address, gateway):
        more = ("nodad",) if ":" in address else ()
        ip("addr", "add", address, "dev", "eth0", *more)
        ip("link", "set", "eth0", "up")
        if gateway:
            ip("route", "add", "default", "via", gateway)

    def run(self, function, *args):
        """What function(*args) returns in this namespace."""

        def inside():
            fd = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY)
            engine.sys_setns(fd, engine.CLONE_NEWNET)
            return function(*args)

        return in_child(inside)

    def open(self, kind=socket.SOCK_STREAM, family=socket.AF_INET):
        """A socket of this namespace."""
        here = os.open("/proc/self/ns/net", os.O_RDONLY)
        there = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY)
        engine.sys_setns(there, engine.CLONE_NEWNET)
        try:
            return socket.socket(family, kind)
        finally:
            engine.sys_setns(here, engine.CLONE_NEWNET)
            os.close(here)
            os.close(there)

    def serve(self, port, family=socket.AF_INET):
        """Answer each connection with the address that it seems to come from."""
        sock = self.open(family=family)
        sock.bind(("", port))
        sock.listen(16)

        def loop():
            while True:
                client, peer = sock.accept()
                client.sendall(peer[0].encode())
                client.close()

        threading.Thread(target=loop, daemon=True).start()

    def serve_udp(self, port):
        """Answer each datagram with the address that it seems to come from."""
        sock = self.open(socket.SOCK_DGRAM)
        sock.bind(("", port))

        def loop():
            while True:
                _, peer = sock.recvfrom(2048)
                sock.sendto(peer[0].encode(), peer)

        threading.Thread(target=loop, daemon=True).start()

    def end(self):
        """Let the namespace go."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


class Net:
    """This namespace as a host; members are let go at the end."""

    def __init__(self):
        self._members = []

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        for member in self._members:
            member.end()

    def bridge(self, name, *addresses):
        """A bridge with these addresses."""
        ip("link", "add", name, "type", "bridge")
        for address in addresses:
            ip("addr", "add", address, "dev", name, *(("nodad",) if ":" in address else ()))
        ip("link", "set", name, "up")

    def member(self, name, address, **how):
        """A further namespace: see Member."""
        self._members.append(Member(name, address, **how))
        return self._members[-1]


def ask(host, port, timeout=2.0, source=None):
    """What a server answers; the name of the error when it does not."""
    try:
        with socket.create_connection((host, port), timeout, source) as sock:
            sock.settimeout(timeout)
            return sock.recv(100).decode()
    except OSError as failure:
        return type(failure).__name__


def ask_udp(host, port, timeout=2.0):
    """What a server answers to a datagram; the name of the error when it does not."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(timeout)
            sock.connect((host, port))
            sock.send(b"?")
            return sock.recv(100).decode()
    except OSError as failure:
        return type(failure).__name__
