"""firewalld: calls over D-Bus as a bus reads them, and when firewalld is asked at all."""

import socket
import struct
import threading

import engine
import pytest
from network_help import apart


class Bus(threading.Thread):
    """A bus with firewalld on it: notes calls, and answers them as `answers` say by method."""

    def __init__(self, path, **answers):
        super().__init__(daemon=True)
        self.calls, self.answers, self.is_over = [], answers, False
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.bind(path)
        self.sock.listen()
        self.start()

    def run(self):
        client, _ = self.sock.accept()
        with client:
            self.stream = client.makefile("rwb", buffering=0)
            self.serve()

    def serve(self):
        assert self.stream.read(1) == b"\0"
        assert self.stream.readline() == b"AUTH EXTERNAL 30\r\n"      # "0" in hexadecimal
        if self.answers.get("auth") == "no":
            self.stream.write(b"REJECTED EXTERNAL\r\n")
            return
        self.stream.write(b"OK 1234deadbeef\r\n")
        assert self.stream.readline() == b"BEGIN\r\n"
        while not self.is_over and (head := self.stream.read(16)):
            self.call(head)

    def call(self, head):
        order, kind, flags, version, size, serial, length = struct.unpack("<cBBBIII", head)
        assert (order, kind, flags, version) == (b"l", 1, 2, 1)
        fields = self.fields(self.stream.read(length + 7 & ~7)[:length])
        body, words, at = self.stream.read(size) if size else b"", [], 0
        while at < size:
            at = at + 3 & ~3
            (count,) = struct.unpack_from("<I", body, at)
            words.append(body[at + 4:at + 4 + count].decode())
            assert body[at + 4 + count] == 0
            at += 5 + count
        assert fields.get(8, "") == "s" * len(words)
        self.calls.append((fields[6], fields[1], fields[2], fields[3], *words))
        self.send(4, b"")                       # a signal that nobody asked for
        answer = self.answers.get(fields[3], "return")
        if answer == "end":
            self.stream.close()
            self.is_over = True
            return
        kind = 3 if answer == "error" else 2
        name = b"\4\1s\0" + struct.pack("<I", 3) + b"a.b\0" if kind == 3 else b""
        name += bytes(-len(name) % 8)
        self.send(kind, name + b"\5\1u\0" + struct.pack("<I", serial), b"\1\0\0\0x\0")

    def send(self, kind, fields, body=b""):
        self.stream.write(struct.pack("<cBBBIII", b"l", kind, 0, 1, len(body), 9, len(fields))
                          + fields + bytes(-len(fields) % 8) + body)

    @staticmethod
    def fields(data):
        out, at = {}, 0
        while at < len(data):
            at = at + 7 & ~7
            code, one, signature, zero = struct.unpack_from("<BBcB", data, at)
            assert (one, zero) == (1, 0)
            count = data[at + 4] if signature == b"g" else struct.unpack_from("<I", data, at + 4)[0]
            start = at + (5 if signature == b"g" else 8)
            out[code] = data[start:start + count].decode()
            assert data[start + count] == 0
            at = start + count + 1
        return out


@pytest.fixture
def bus(tmp_path, monkeypatch):
    """Makes a bus, with firewalld's table to be seen."""
    monkeypatch.setattr(engine, "nft_table_handle", lambda table: b"1")
    monkeypatch.setattr(engine, "_BUS_SOCKET", str(tmp_path / "bus"))
    monkeypatch.setattr(engine, "_BUS_TIMEOUT", 1.0)
    monkeypatch.setattr(engine.os, "geteuid", lambda: 0)
    return lambda **answers: Bus(str(tmp_path / "bus"), **answers)


FIREWALLD = ("org.fedoraproject.FirewallD1", "/org/fedoraproject/FirewallD1",
             "org.fedoraproject.FirewallD1.zone")


def test_bridges_are_trusted(bus):
    made = bus(addInterface="error")            # it knows them already
    assert engine.firewalld_trust(["engine0", "br-0123456789ab"])
    hello = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello")
    assert made.calls == [hello, (*FIREWALLD, "addInterface", "trusted", "engine0"),
                          (*FIREWALLD, "addInterface", "trusted", "br-0123456789ab")]


def test_a_bridge_that_goes(bus):
    made = bus()
    assert engine.firewalld_trust(["br0"], is_gone=True)
    assert made.calls[-1] == (*FIREWALLD, "removeInterface", "trusted", "br0")


@pytest.mark.parametrize("answers", [{"auth": "no"}, {"Hello": "end"}, {"addInterface": "end"}])
def test_a_bus_that_does_not_answer(bus, answers):
    bus(**answers)
    assert not engine.firewalld_trust(["br0"])


def test_without_a_bus(bus):
    assert not engine.firewalld_trust(["br0"])
    assert not engine.firewalld_trust([])


@pytest.mark.parametrize("data", [b"B" + bytes(15), b"l\2\0\1" + b"\xff" * 12, b"l\2"])
def test_hostile_answers(data):
    ours, theirs = socket.socketpair()
    theirs.sendall(data)
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(OSError):
        engine._bus_call(ours, 1, ("a.b", "/a", "a.b", "C"))


def test_fields_of_an_answer():
    assert engine._reply_serial(b"") == engine._reply_serial(b"\6\1s\0\xff\xff\xff\xff") == 0
    assert engine._reply_serial(b"\x08\1g\0\1s\0\0\5\1u\0\7\0\0\0") == 7


@pytest.mark.root
def test_its_table_is_another_one_after_a_reload():
    def inside():
        out = [engine.nft_table_handle("firewalld")]
        for _ in range(2):
            engine.nft_batch([engine.nft_table("firewalld")])
            out.append(engine.nft_table_handle("firewalld"))
            engine.nft_batch([engine.nft_table_delete("firewalld")])
        return [handle.hex() for handle in out]
    none, first, second = apart(inside)
    assert none == ""
    assert first != second
    assert first and second


def test_who_watches_tells_a_new_firewalld(tmp_path, monkeypatch):
    store = engine.Store(str(tmp_path / "d"), str(tmp_path / "r"))
    store.roots_make()
    told = []
    handles = iter([b"", b"1", b"1", b"2", b"3", b"3"])
    answers = iter([True, True, False, True])
    monkeypatch.setattr(engine, "firewall_dropped", list)
    monkeypatch.setattr(engine, "_table_is_whole", lambda store: True)
    monkeypatch.setattr(engine, "nft_table_handle", lambda table: next(handles))
    monkeypatch.setattr(engine, "firewalld_trust",
                        lambda bridges: told.append(bridges) or next(answers))
    seen, out = (), []
    for _ in range(6):
        seen = engine.firewall_heal(store, seen)
        out.append((seen[1], len(told)))
    assert out == [(b"", 0), (b"1", 1), (b"1", 1), (b"2", 2), (b"", 3), (b"3", 4)]
    assert told[0] == [engine.network_find(store, "bridge").bridge]
