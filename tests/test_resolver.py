"""resolver: packets as pure functions, then a server in namespaces of its own."""

import json
import os
import shutil
import socket
import struct
import subprocess
import threading
import time

import engine
import pytest
from hypothesis import given
from hypothesis import strategies as st
from network_help import apart

HOST = {"NetworkMode": "bridge", "Dns": [], "DnsSearch": [], "DnsOptions": []}


def query(name, kind=1, *, id=7, flags=0x100, edns=0):
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split(".") if part)
    more = struct.pack(">BHHIH", 0, 41, edns, 0, 0) if edns else b""
    return struct.pack(">6H", id, flags, 1, 0, 0, int(bool(edns))) + labels + b"\0" + struct.pack(
        ">HH", kind, 1) + more


def read(data):
    """(id, code, truncated, [(kind, data)]) of an answer as this module writes it."""
    id, flags, questions, answers, _, _ = struct.unpack_from(">6H", data)
    at = 12
    for _ in range(questions):
        while data[at]:
            at += data[at] + 1
        at += 5
    out = []
    for _ in range(answers):
        pointer, kind, place, ttl, size = struct.unpack_from(">HHHIH", data, at)
        assert (pointer, place, ttl) == (0xC00C, 1, 600)
        out.append((kind, data[at + 12:at + 12 + size]))
        at += 12 + size
    return id, flags & 15, bool(flags & 0x200), out


# ---- packets

@given(st.lists(st.text("abcXYZ019-_", min_size=1, max_size=63), min_size=1, max_size=3),
       st.integers(0, 65535), st.sampled_from([1, 12, 28, 255]), st.sampled_from([0, 512, 4096]))
def test_a_question_is_read_as_it_was_written(labels, id, kind, edns):
    asked = engine.dns_parse(query(".".join(labels), kind, id=id, edns=edns))
    assert (asked.id, asked.name, asked.kind, asked.size) == (
        id, ".".join(labels).lower(), kind, edns)


@given(st.binary(max_size=600))
def test_whatever_comes_is_survived(data):
    asked = engine.dns_parse(data)
    if asked:
        text = engine.dns_answer(asked, [(1, b"\1\2\3\4")] * 9, size=512)
        assert len(text) <= 512 + len(asked.text)
        assert engine.dns_parse(text) is None           # an answer is never answered


@given(st.data())
def test_questions_that_were_damaged_are_survived(data):
    packet = bytearray(query("some.name.example", edns=1232))
    for _ in range(data.draw(st.integers(1, 6))):
        packet[data.draw(st.integers(0, len(packet) - 1))] = data.draw(st.integers(0, 255))
    asked = engine.dns_parse(bytes(packet[:data.draw(st.integers(0, len(packet)))]))
    if asked:
        assert len(asked.name) < 255
        engine.dns_answer(asked, code=1)


def test_what_is_no_query_is_not_answered():
    for data in (b"", b"x" * 11, query("a", flags=0x8100)):
        assert engine.dns_parse(data) is None


@pytest.mark.parametrize("data", [
    struct.pack(">6H", 7, 0x100, 0, 0, 0, 0),
    struct.pack(">6H", 7, 0x100, 2, 0, 0, 0) + query("a")[12:],
    query("a")[:-1], query("a")[:12], query("a")[:12] + b"\xc0\x0c\0\1\0\1",
    query("a")[:12] + (b"\x3f" + b"a" * 63) * 4 + b"\0\0\1\0\1",
    query("a")[:12] + b"\x40" + b"a" * 64 + b"\0\0\1\0\1"])
def test_what_cannot_be_read_has_no_kind(data):
    assert engine.dns_parse(data).kind == 0


def test_answers_are_cut_to_what_was_asked_for():
    records = [(1, bytes([10, 0, 0, number])) for number in range(100)]
    plain, large = engine.dns_parse(query("web")), engine.dns_parse(query("web", edns=1232))
    small = engine.dns_answer(plain, records, size=512)
    assert len(small) <= 512
    assert read(small)[2] is True
    assert 20 < len(read(small)[3]) < 32
    assert len(engine.dns_answer(large, records, size=1232)) <= 1232
    whole = engine.dns_answer(plain, records)
    assert read(whole) == (7, 0, False, records)


def test_names_and_reverse_names():
    assert engine.dns_name("web.net") == b"\3web\3net\0"
    for bad in ("", "a..b", "x" * 64, ".".join(["x" * 60] * 5)):
        assert engine.dns_name(bad) == b""
    assert engine.dns_reverse("2.0.17.172.in-addr.arpa") == "172.17.0.2"
    assert engine.dns_reverse("2" + ".0" * 30 + ".f.ip6.arpa") == "f000::2"
    for bad in ("in-addr.arpa", "1.2.3.in-addr.arpa", "1.2.3.999.in-addr.arpa",
                "zz" + ".0" * 31 + ".ip6.arpa", "x"):
        assert engine.dns_reverse(bad) == ""


# ---- resolv.conf

def conf(monkeypatch, text, has_resolver, **host):
    monkeypatch.setattr(engine, "file_read", lambda path: text.encode())
    place = {"network": "n1", "name": "net", "names": ["x"] * has_resolver, "internal": False}
    text, told = engine.resolver_conf({**HOST, **host}, [place])
    assert told["names"] == [["n1", "net"]] * has_resolver
    return text, told["dns"]


def test_resolv_conf_with_a_resolver(monkeypatch):
    text, dns = conf(monkeypatch, "# x\nnameserver 127.0.0.53\nnameserver 1.1.1.1\nnameserver bad\n"
                     "search a b\noptions edns0\nsortlist 1.2.3.4\n", True)
    assert text == ("nameserver 127.0.0.11\nsearch a b\noptions edns0 ndots:0\n"
                    "sortlist 1.2.3.4\n")
    assert dns == {"servers": ["127.0.0.53", "1.1.1.1"], "inside": False, "ndots": False,
                   "forward": True}


def test_resolv_conf_as_asked_for(monkeypatch):
    text, dns = conf(monkeypatch, "nameserver 1.1.1.1\nsearch a\noptions edns0\n", True,
                     Dns=["9.9.9.9", "127.0.0.11"], DnsSearch=["."], DnsOptions=["ndots:2"])
    assert text == "nameserver 127.0.0.11\noptions ndots:2\n"
    assert dns == {"servers": ["9.9.9.9"], "inside": True, "ndots": True, "forward": True}


def test_resolv_conf_without_a_resolver(monkeypatch):
    host = "nameserver 127.0.0.53\nnameserver ::1\nnameserver 1.1.1.1\ndomain a\n"
    assert conf(monkeypatch, host, False)[0] == "nameserver 1.1.1.1\nsearch a\n"
    assert conf(monkeypatch, host, False, Dns=["127.0.0.1"])[0] == (
        "nameserver 127.0.0.1\nsearch a\n")
    monkeypatch.setattr(engine, "file_read", lambda path: host.encode())
    assert engine.resolver_conf({**HOST, "NetworkMode": "host"}, []) == (
        host, {"names": [], "dns": {}})


# ---- names of networks

def member(directory, id, names, ipv4="", ipv6="", **more):
    content = {"names": names, "ipv4": ipv4, "ipv6": ipv6, **more}
    (directory / (id + ".tmp")).write_text(json.dumps(content))
    os.rename(directory / (id + ".tmp"), directory / id.ljust(64, "0"))


def test_names_are_read_again_when_they_change(tmp_path):
    names = engine.NetworkNames(str(tmp_path / "none"), "net")
    names.refresh()
    assert names.addresses == {}
    names = engine.NetworkNames(str(tmp_path), "net")
    for number in range(1, 200):
        member(tmp_path, "a", ["one", "Web"], f"10.0.0.{number}")
        names.refresh()
        assert names.addresses["web"] == ([bytes([10, 0, 0, number])], [])
    member(tmp_path, "b", ["two", "web"], "10.0.1.1", "fd00::1")
    names.refresh()
    assert names.addresses["web"] == ([bytes([10, 0, 0, 199]), bytes([10, 0, 1, 1])],
                                      [b"\xfd" + bytes(14) + b"\1"])
    assert names.owners == {"10.0.0.199": "one", "10.0.1.1": "two", "fd00::1": "two"}
    os.unlink(tmp_path / "a".ljust(64, "0"))
    (tmp_path / "c".ljust(64, "0")).write_text("{")
    names.refresh()
    assert set(names.addresses) == {"two", "web"}


# ---- the server

class Place(engine.Loop):
    """What a resolver needs of a monitor, with a thread that runs its loop."""

    def __init__(self, run):
        import select
        import sys
        sys.modules.setdefault("select", select)
        super().__init__()
        self.store, self.id, self.resolver = engine.Store(run, run), "a".ljust(64, "0"), None

    def begin(self, plan):
        pin = os.open("/proc/self/ns/net", os.O_RDONLY)
        engine.resolver_begin(self, {"network": pin}, plan)
        thread = threading.Thread(target=self._serve, daemon=True)
        thread.start()

    def _serve(self):
        while True:
            for fd, events in self._poll.poll(0.05):
                if fd in self._handlers:
                    self._handlers[fd][1](events)
            self._timers_run()


def upstream(address, answer, port=5353, kind=socket.SOCK_DGRAM):
    """A name server that answers what answer(question) says; how often it was asked is counted."""
    sock = socket.socket(socket.AF_INET, kind)
    sock.bind((address, port))
    seen = []

    def udp():
        while True:
            data, client = sock.recvfrom(4096)
            seen.append(client)
            text = answer(data)
            if text:
                sock.sendto(text, client)

    def tcp():
        sock.listen(8)
        while True:
            client, _ = sock.accept()
            data = client.recv(4096)
            seen.append(data)
            text = answer(data[2:])
            client.sendall(struct.pack(">H", len(text))[:1])
            time.sleep(0.05)                # in two pieces
            client.sendall(struct.pack(">H", len(text))[1:] + text)

    threading.Thread(target=udp if kind == socket.SOCK_DGRAM else tcp, daemon=True).start()
    return seen


def ask(data, timeout=3.0, port=53):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(timeout)
        sock.connect(("127.0.0.11", port))
        sock.send(data)
        return sock.recv(4096)


def ask_tcp(*packets):
    with socket.create_connection(("127.0.0.11", 53), 3) as sock:
        for data in packets:
            sock.sendall(struct.pack(">H", len(data)) + data)
        out, got = [], b""
        while len(out) < len(packets):
            got += sock.recv(65536)
            while len(got) >= 2 and len(got) >= 2 + int.from_bytes(got[:2], "big"):
                size = 2 + int.from_bytes(got[:2], "big")
                out.append(got[2:size])
                got = got[size:]
        return out


def told(data, code=0, address=b"\1\2\3\4"):
    asked = engine.dns_parse(data)
    return engine.dns_answer(asked, [] if code else [(1, address)], code)


def served(tmp_path, function, dns, names=(("n1", "net"), ("n2", "other.net"))):
    """What function() returns where a resolver serves two networks."""
    for id, _ in names:
        (tmp_path / "networks" / id).mkdir(parents=True, exist_ok=True)

    def inside():
        place = Place(str(tmp_path))
        place.begin({"names": [*names], "dns": {"inside": False, "ndots": False, "forward": True,
                                                "port": 5353, **dns}})
        return function()
    return apart(inside)


@pytest.mark.root
def test_names_of_networks(tmp_path):
    def inside():
        one, two = tmp_path / "networks" / "n1", tmp_path / "networks" / "n2"
        member(one, "a", ["me"], "10.0.0.2", links=["one:db"])
        member(one, "b", ["one", "web", "b" * 12], "10.0.0.3", "fd00::3")
        member(one, "c", ["two", "web", "dotted.alias"], "10.0.0.4")
        member(two, "d", ["far", "one"], "10.1.0.5")
        return {
            "name": read(ask(query("one"))),
            "case": read(ask(query("ONE"))),
            "short id": read(ask(query("b" * 12))),
            "AAAA": read(ask(query("one", 28))),
            "no AAAA": read(ask(query("two", 28))),
            "MX": read(ask(query("two", 15))),
            "dotted": read(ask(query("dotted.alias"))),
            "link": read(ask(query("db"))),
            "with network": read(ask(query("one.net"))),
            "with dotted network": read(ask(query("one.other.net"))),
            "not in that network": read(ask(query("far.net"))),
            "reverse": read(ask(query("3.0.0.10.in-addr.arpa", 12))),
            "web": sorted(read(ask(query("web")))[3]),
            "firsts": {read(ask(query("web")))[3][0] for _ in range(4)},
            "tcp": [read(text) for text in ask_tcp(query("one"), query("two"))],
            "unknown": read(ask(query("nobody"))),
            "opcode": read(ask(query("one", flags=0x2900)))[1],
            "broken": read(ask(query("one")[:-1]))[1],
        }
    def record(*bytes_):
        return (1, bytes(bytes_))
    found = served(tmp_path, inside, {"servers": []})
    one, two = record(10, 0, 0, 3), record(10, 0, 0, 4)
    assert found == {
        "name": (7, 0, False, [one]), "case": (7, 0, False, [one]),
        "short id": (7, 0, False, [one]),
        "AAAA": (7, 0, False, [(28, b"\xfd" + bytes(14) + b"\3")]),
        "no AAAA": (7, 0, False, []), "MX": (7, 0, False, []),
        "dotted": (7, 0, False, [two]), "link": (7, 0, False, [one]),
        "with network": (7, 0, False, [one]),
        "with dotted network": (7, 0, False, [record(10, 1, 0, 5)]),
        "not in that network": (7, 2, False, []),
        "reverse": (7, 0, False, [(12, b"\3one\3net\0")]),
        "web": [one, two], "firsts": {one, two},
        "tcp": [(7, 0, False, [one]), (7, 0, False, [two])],
        "unknown": (7, 2, False, []), "opcode": 4, "broken": 1,
    }


@pytest.mark.root
def test_what_is_not_known_is_forwarded(tmp_path):
    def inside():
        member(tmp_path / "networks" / "n1", "b", ["one"], "10.0.0.3")
        upstream("127.0.0.61", lambda data: told(data, 2))                  # fails
        silent = upstream("127.0.0.62", lambda data: None)
        good = upstream("127.0.0.63", told)
        upstream("127.0.0.63", told, kind=socket.SOCK_STREAM)
        out = [read(ask(query("example.org", id=99), 9)),
               read(ask(query("one")))]
        before = len(good)
        out.append(read(ask(query("3.0.9.9.in-addr.arpa", 12), 9))[1])
        ports = {client[1] for client in good}
        return out, len(silent), before, len(ports), len(good), good[0][0]
    found = served(tmp_path, inside, {"servers": ["127.0.0.61", "127.0.0.62", "127.0.0.63"]})
    assert found == ([(99, 0, False, [(1, b"\1\2\3\4")]),
                      (7, 0, False, [(1, bytes([10, 0, 0, 3]))]), 0], 2, 1, 2, 2, "127.0.0.1")


@pytest.mark.root
def test_forwarding_by_tcp_and_forged_answers(tmp_path):
    def forge(data):
        return told(bytes([data[0] ^ 1]) + data[1:])

    def inside():
        upstream("127.0.0.61", told, kind=socket.SOCK_STREAM)
        upstream("127.0.0.61", forge)
        with pytest.raises(TimeoutError):
            ask(query("example.org"), 1)
        return [read(text) for text in ask_tcp(query("a.example", id=1), query("b.example", id=2))]
    answers = served(tmp_path, inside, {"servers": ["127.0.0.61"]})
    assert sorted(answers) == [(1, 0, False, [(1, b"\1\2\3\4")]), (2, 0, False, [(1, b"\1\2\3\4")])]


@pytest.mark.root
def test_who_only_has_internal_networks_asks_nobody_outside(tmp_path):
    def inside():
        seen = upstream("127.0.0.61", told)
        return read(ask(query("example.org")))[1], len(seen)
    assert served(tmp_path, inside, {"servers": ["127.0.0.61"], "forward": False}) == (2, 0)


@pytest.mark.root
def test_a_program_may_have_port_53_itself(tmp_path):
    def inside():
        member(tmp_path / "networks" / "n1", "b", ["one"], "10.0.0.3")
        own = upstream("0.0.0.0", lambda data: told(data, address=b"own!"), port=53)
        near = read(ask(query("one")))[3]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(3)
            sock.connect(("127.0.0.1", 53))
            sock.send(query("one"))
            return near, read(sock.recv(512))[3], len(own)
    assert served(tmp_path, inside, {"servers": []}) == (
        [(1, bytes([10, 0, 0, 3]))], [(1, b"own!")], 1)


@pytest.mark.root
def test_hostile_packets_do_not_end_it(tmp_path):
    def inside():
        import random
        member(tmp_path / "networks" / "n1", "b", ["one"], "10.0.0.3")
        chance = random.Random(5)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(("127.0.0.11", 53))
            for _ in range(3000):
                packet = bytearray(query("one.two.example", edns=4096))
                for _ in range(chance.randrange(5)):
                    packet[chance.randrange(len(packet))] = chance.randrange(256)
                sock.send(packet[:chance.randrange(len(packet) + 1)])
                sock.send(chance.randbytes(chance.randrange(200)))
        for _ in range(100):
            with socket.create_connection(("127.0.0.11", 53), 3) as sock:
                sock.sendall(chance.randbytes(chance.randrange(1, 300)))
        return read(ask(query("one")))[3]
    assert served(tmp_path, inside, {"servers": []}) == [(1, bytes([10, 0, 0, 3]))]


@pytest.mark.root
@pytest.mark.skipif(not shutil.which("dig"), reason="dig is not installed")
def test_dig_understands_the_answers(tmp_path):
    def inside():
        for number in range(60):
            member(tmp_path / "networks" / "n1", f"b{number}x", [f"one{number}", "web"],
                   f"10.0.0.{number}")
        def dig(*words):
            return subprocess.run(["dig", "@127.0.0.11", "+short", *words], capture_output=True,
                                  text=True).stdout.split()
        return len(dig("web")), len(dig("web", "+noedns")), len(dig("web", "+tcp")), \
            dig("-x", "10.0.0.7"), dig("one7", "AAAA")
    assert served(tmp_path, inside, {"servers": []}) == (60, 60, 60, ["one7.net."], [])
