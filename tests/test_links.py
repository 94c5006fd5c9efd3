import socket
import struct

import pytest
from kernel_help import in_child

MAC = bytes.fromhex("024200000001")


def linked(engine, by_fd=True):
    return engine.pair_message("vethtest", 7, "eth0", MAC, 1400, by_fd)


def test_a_pair_is_one_message_that_ends_with_whose_namespace_it_is(engine):
    for by_fd, kind in ((True, 28), (False, 19)):
        message = linked(engine, by_fd)
        assert struct.unpack_from("=I", message)[0] == len(message)
        assert struct.unpack("=HHI", message[-8:]) == (8, kind, 0)
        attrs = engine.nl_attrs(message[32:])
        assert attrs[3] == b"vethtest\0"
        assert attrs[10] == struct.pack("=I", 7)


@pytest.mark.root
def test_a_bridge_and_a_pair_into_a_namespace(engine):
    """In a namespace of this test's own: the other end goes into a second one."""

    def talk():
        engine.ns_unshare(engine.CLONE_NEWNET)
        outside = engine.netlink_open()
        engine.bridge_make(outside, "br", MAC, 0)
        bridge = engine.link_index("br")
        engine.ns_unshare(engine.CLONE_NEWNET)
        inside, fd = engine.netlink_open(), engine.ns_open("self", "network")
        messages = [
            engine.address_message(engine.ip_pack(text), length)
            for text, length in (("10.9.8.7", 24), ("fd00::7", 64))
        ]
        messages += [engine.up_message(), engine.route_message(engine.ip_pack("10.9.8.1"))]
        outer = engine.pair_message("vethtest", bridge, "eth0", MAC, 1400, True)
        plan = {
            "outer": outer.hex(),
            "ifname": "eth0",
            "sysctls": {},
            "inner": [message.hex() for message in messages],
        }
        engine.link_enter(outside, inside, plan, fd)
        again = ""
        try:
            engine.netlink_batch(outside, [outer[:-4] + struct.pack("=I", fd)])
        except OSError as refused:
            again = str(refused)
        index = socket.if_nametoindex("eth0")
        with open("/proc/net/route") as file:
            routes = [line.split()[:3] for line in file]
        return (
            sorted(
                f"{engine.ip_text(address)}/{length}"
                for address, length, scope in engine.link_addresses(inside, index)
                if scope == 0
            ),
            [str(prefix) for prefix in engine.routes_list(inside) if prefix.width == 32],
            ["eth0", "00000000", "0108090A"] in routes,
            again,
        )

    addresses, prefixes, has_route, again = in_child(talk)
    assert addresses == ["10.9.8.7/24", "fd00::7/64"]
    assert prefixes == ["10.9.8.0/24"]
    assert has_route
    assert "File exists" in again


@pytest.mark.root
def test_bridges_come_and_go(engine):
    def talk():
        engine.ns_unshare(engine.CLONE_NEWNET)
        sock = engine.netlink_open()
        out = [engine.bridge_make(sock, "other", MAC, 0), engine.bridge_make(sock, "other", MAC, 0)]
        out.append(engine.link_is_up("other"))
        engine.netlink_batch(sock, [engine.up_message(engine.link_index("other"))])
        out += [engine.link_is_up("other"), engine.link_delete(sock, "other")]
        return [*out, engine.link_delete(sock, "other"), engine.link_index("other")]

    assert in_child(talk) == [True, False, False, True, True, False, 0]


@pytest.mark.root
def test_loopback_comes_up(engine):
    def talk():
        engine.ns_unshare(engine.CLONE_NEWNET)
        engine.loopback_up()
        engine.loopback_up()
        server = socket.create_server(("127.0.0.1", 0))
        with socket.create_connection(server.getsockname(), timeout=5) as client:
            return client.getpeername()[0]

    assert in_child(talk) == "127.0.0.1"
