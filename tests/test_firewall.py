"""firewall: what its table does with packets, between host, outside and containers."""

import os
import shutil
import socket
import subprocess

import engine
import pytest
from network_help import Net, apart, ask, ask_udp, ip


def install(networks, rows=(), **more):
    networks = [(bridge, [engine.prefix_parse(subnet)], *rest)
                for bridge, subnet, *rest in networks]
    engine.nft_batch(engine.firewall_messages("engine", networks, [*rows], **more))


def write(path, text):
    with open("/proc/sys/net/" + path, "w") as file:
        file.write(text)


def net_make(net):
    """Two networks and one that is internal, with containers, and somebody outside."""
    write("ipv4/ip_forward", "1")
    members = {}
    for number, bridge in ((1, "br-a"), (2, "br-b"), (3, "br-in")):
        net.bridge(bridge, f"10.{number}.0.1/24")
        write(f"ipv4/conf/{bridge}/route_localnet", "1")
        for host in (2, 3):
            name = f"{bridge[3:]}{host}"
            members[name] = net.member(name, f"10.{number}.0.{host}/24", bridge=bridge,
                                       gateway=f"10.{number}.0.1")
            members[name].serve(80)
            members[name].serve_udp(80)
    members["ext"] = net.member("ext", "192.0.2.2/24", host="192.0.2.1/24")
    members["ext"].serve(7)
    install([("br-a", "10.1.0.0/24", False, True, True),
             ("br-b", "10.2.0.0/24", False, False, True),
             ("br-in", "10.3.0.0/24", True, True, True)],
            [("tcp", "0.0.0.0", 8080, "10.1.0.2", 80, 1),
             ("udp", "0.0.0.0", 8080, "10.1.0.2", 80, 1),
             ("tcp", "192.0.2.1", 8081, "10.2.0.2", 80, 1),
             ("tcp", "127.0.0.1", 8082, "10.1.0.3", 80, 1),
             ("tcp", "0.0.0.0", 70, "10.1.0.3", 70, 21)])
    return members


@pytest.mark.root
@pytest.mark.skipif(not shutil.which("ip"), reason="ip is not installed")
@pytest.mark.parametrize("bridge_nf", ["0", "1"])
def test_published_ports_are_reached_from_everywhere(bridge_nf):
    def inside():
        with Net() as net:
            try:
                write("bridge/bridge-nf-call-iptables", bridge_nf)
            except FileNotFoundError:
                pass                        # no br_netfilter here
            members = net_make(net)
            ext, a2, a3, b2 = (members[name] for name in ("ext", "a2", "a3", "b2"))
            return {
                "outside": ext.run(ask, "192.0.2.1", 8080),
                "outside udp": ext.run(ask_udp, "192.0.2.1", 8080),
                "outside at": ext.run(ask, "192.0.2.1", 8081),
                "outside, of loopback": ext.run(ask, "192.0.2.1", 8082),
                "outside range": ext.run(ask, "192.0.2.1", 80),
                "outside range end": ext.run(ask, "192.0.2.1", 91),
                "loopback": ask("127.0.0.1", 8080),
                "loopback 2": ask("127.1.2.3", 8080),
                "loopback udp": ask_udp("127.0.0.1", 8080),
                "loopback at": ask("127.0.0.1", 8082),
                "host address": ask("192.0.2.1", 8080),
                "bridge address": ask("10.1.0.1", 8080),
                "itself": a2.run(ask, "192.0.2.1", 8080),
                "neighbour": a3.run(ask, "192.0.2.1", 8080),
                "neighbour by gateway": a3.run(ask, "10.1.0.1", 8080),
                "other network": b2.run(ask, "192.0.2.1", 8080),
            }
    assert apart(inside) == {
        "outside": "192.0.2.2",                         # the address that it came from
        "outside udp": "192.0.2.2",
        "outside at": "192.0.2.2",
        "outside, of loopback": "ConnectionRefusedError",
        "outside range": "192.0.2.2",
        "outside range end": "ConnectionRefusedError",
        "loopback": "10.1.0.1",
        "loopback 2": "10.1.0.1",
        "loopback udp": "10.1.0.1",
        "loopback at": "10.1.0.1",
        "host address": "192.0.2.1",
        "bridge address": "10.1.0.1",
        "itself": "10.1.0.1",
        "neighbour": "10.1.0.1",
        "neighbour by gateway": "10.1.0.1",
        "other network": "10.1.0.1",
    }


@pytest.mark.root
@pytest.mark.skipif(not shutil.which("ip"), reason="ip is not installed")
def test_networks_are_apart_and_masqueraded():
    def inside():
        with Net() as net:
            members = net_make(net)
            ext, a2, a3, b2, in2, in3 = (members[name] for name in (
                "ext", "a2", "a3", "b2", "in2", "in3"))
            ext.run(ip, "route", "add", "10.0.0.0/8", "via", "192.0.2.1")
            return {
                "neighbours": a3.run(ask, "10.1.0.2", 80),
                "out": a2.run(ask, "192.0.2.2", 7),
                "out of internal": in2.run(ask, "192.0.2.2", 7, 0.3),
                "within internal": in2.run(ask, "10.3.0.3", 80),
                "another network": b2.run(ask, "10.1.0.2", 80, 0.3),
                "into internal": a2.run(ask, "10.3.0.2", 80, 0.3),
                "from internal": in3.run(ask, "10.1.0.2", 80, 0.3),
                "outside, by its route": ext.run(ask, "10.1.0.2", 80, 0.3),
                "host to container": ask("10.3.0.2", 80),
            }
    assert apart(inside) == {
        "neighbours": "10.1.0.3",
        "out": "192.0.2.1",
        "out of internal": "TimeoutError",
        "within internal": "10.3.0.2",
        "another network": "TimeoutError",
        "into internal": "TimeoutError",
        "from internal": "TimeoutError",
        "outside, by its route": "TimeoutError",
        "host to container": "10.3.0.1",
    }


@pytest.mark.root
@pytest.mark.skipif(not shutil.which("ip"), reason="ip is not installed")
def test_a_container_does_not_reach_the_hosts_loopback():
    """CVE-2020-8558: with route_localnet a bridge would take packets for 127.0.0.1."""
    def inside():
        with Net() as net:
            members = net_make(net)
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.bind(("127.0.0.1", 999))
            sock.settimeout(0.5)

            def attack():
                ip("addr", "flush", "dev", "lo")
                ip("route", "replace", "127.0.0.0/8", "via", "10.1.0.1")
                write("ipv4/conf/all/route_localnet", "1")
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
                    out.sendto(b"x", ("127.0.0.1", 999))

            def told():
                try:
                    return sock.recv(10)
                except OSError:
                    return b""
            members["a2"].run(attack)
            safe = told()
            engine.nft_batch([engine.nft_table_delete("engine")])
            members["a2"].run(attack)
            return safe, told()
    assert apart(inside) == (b"", b"x")            # the second time without the table


@pytest.mark.root
@pytest.mark.skipif(not shutil.which("ip"), reason="ip is not installed")
def test_ipv6_ports():
    def inside():
        with Net() as net:
            write("ipv6/conf/all/forwarding", "1")
            net.bridge("br-a", "fd01::1/64")
            a2 = net.member("a2", "fd01::2/64", bridge="br-a", gateway="fd01::1")
            a2.serve(80, socket.AF_INET6)
            ext = net.member("ext", "fd02::2/64", host="fd02::1/64")
            ext.serve(7, socket.AF_INET6)
            install([("br-a", "fd01::/64", False, True, True)],
                    [("tcp", "::", 8080, "fd01::2", 80, 1),
                     ("tcp", "fd02::1", 70, "fd01::2", 70, 21)])
            for _ in range(30):
                if ext.run(ask, "fd02::1", 8080, 0.2) == "fd02::2":
                    break
            return (ext.run(ask, "fd02::1", 8080), ext.run(ask, "fd02::1", 80),
                    ask("fd02::1", 8080), a2.run(ask, "fd02::1", 8080),
                    a2.run(ask, "fd02::2", 7), ask("::1", 8080))
    assert apart(inside) == ("fd02::2", "fd02::2", "fd02::1", "fd01::1", "fd02::1",
                             "ConnectionRefusedError")


@pytest.mark.root
@pytest.mark.skipif(not shutil.which("ip"), reason="ip is not installed")
def test_interfaces_of_before_stay_apart():
    """Forwarding that was switched on for containers does not make a router of the host."""
    def inside():
        with Net() as net:
            write("ipv4/ip_forward", "1")
            one = net.member("eth1", "192.0.2.2/24", host="192.0.2.1/24", gateway="192.0.2.1")
            two = net.member("eth2", "198.51.100.2/24", host="198.51.100.1/24",
                             gateway="198.51.100.1")
            two.serve(7)
            free = one.run(ask, "198.51.100.2", 7)
            install([("br-a", "10.1.0.0/24", False, True, True)], before=["eth1", "eth2"])
            return free, one.run(ask, "198.51.100.2", 7, 0.3)
    assert apart(inside) == ("192.0.2.2", "TimeoutError")


@pytest.mark.root
@pytest.mark.skipif(not shutil.which("nft"), reason="nft is not installed")
def test_the_table_as_nft_shows_it():
    def inside():
        install([("br-a", "10.1.0.0/24", False, True, True)],
                [("tcp", "0.0.0.0", 9000, "10.1.0.2", 9000, 100),
                 ("tcp", "0.0.0.0", 8080, "10.1.0.2", 80, 1)])
        return subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True).stdout
    text = apart(inside)
    for line in ("iifname @bridges ip daddr 127.0.0.0/8 drop",
                 "ct state established,related accept",
                 "oifname @bridges ct status dnat accept",
                 "fib daddr type local jump ports",
                 "tcp . 0.0.0.0/0 . 9000-9099 : 10.1.0.2",
                 "tcp . 8080 : 10.1.0.2 . 80",
                 "dnat ip to meta l4proto . ip daddr . th dport map @at4"):
        assert line in text, line


@pytest.mark.root
@pytest.mark.skipif(not shutil.which("ip"), reason="ip is not installed")
def test_where_others_forward_nothing_the_held_socket_answers():
    def inside():
        with Net() as net:
            net_make(net)
            ext = net.member("ext2", "198.51.100.2/24", host="198.51.100.1/24")
            with socket.create_server(("", 8080)):
                install([("br-a", "10.1.0.0/24", False, True, True)],
                        [("tcp", "0.0.0.0", 8080, "10.1.0.2", 80, 1)], dropped=[2])
                return ext.run(ask, "198.51.100.1", 8080, 0.3), ask("127.0.0.1", 8080)
    assert apart(inside) == ("TimeoutError", "10.1.0.1")        # it accepts and says nothing


@pytest.mark.root
def test_forwarding_is_switched_on_and_off_again(tmp_path):
    def inside():
        store = engine.Store(str(tmp_path / "d"), str(tmp_path / "r"))
        store.roots_make()
        out = []
        for made in ({}, {"ip-forward-no-drop": True}, {"ip-forward": False}):
            held = engine.configuration_write(store.run, {**engine.CONFIGURATION, **made})
            with engine.firewall_lock(store):
                engine.forwarding_begin(store)
                with open("/proc/sys/net/ipv4/ip_forward") as file:
                    out.append((file.read().strip(), "eth7" in engine._marked(store)))
                engine.forwarding_end(store)
            os.close(held)
        with open("/proc/sys/net/ipv4/ip_forward") as file:
            return out, file.read().strip()

    def with_interface():
        with open("/proc/sys/net/ipv4/ip_forward", "w") as file:
            file.write("0")             # a new namespace begins as the host is
        if shutil.which("ip"):
            ip("link", "add", "eth7", "type", "bridge")
        return inside()
    assert apart(with_interface) == (
        [("1", bool(shutil.which("ip"))), ("1", False), ("0", False)], "0")


def test_rows_that_follow_each_other_are_one():
    rows = [("tcp", "::", port, "10.0.0.2", port, ) for port in (81, 80, 82)]
    rows += [("udp", "0.0.0.0", 80, "10.0.0.2", 80), ("tcp", "::", 90, "10.0.0.2", 83)]
    assert engine.firewall_rows(rows) == [
        ("tcp", "::", 80, "10.0.0.2", 80, 3), ("tcp", "::", 90, "10.0.0.2", 83, 1),
        ("udp", "0.0.0.0", 80, "10.0.0.2", 80, 1)]


def test_what_nf_tables_cannot_do_is_left_to_the_forwarder():
    assert engine.firewall_ports("t", [("tcp", "::", 80, "10.0.0.2", 80, 1)]) == []


@pytest.mark.root
@pytest.mark.skipif(not shutil.which("ip"), reason="ip is not installed")
def test_a_table_that_leaves_ipv6_alone():
    def inside():
        with Net() as net:
            for number in (1, 2):
                net.bridge(f"br{number}", f"fd0{number}::1/64", f"10.{number}.0.1/24")
            write("ipv6/conf/all/forwarding", "1")
            write("ipv4/ip_forward", "1")
            one = net.member("one", "10.1.0.2/24", bridge="br1", gateway="10.1.0.1")
            two = net.member("two", "fd02::2/64", bridge="br2", gateway="fd02::1")
            two.run(ip, "addr", "add", "10.2.0.2/24", "dev", "eth0")
            two.run(ip, "route", "add", "default", "via", "10.2.0.1")
            one.run(ip, "addr", "add", "fd01::2/64", "dev", "eth0", "nodad")
            one.run(ip, "route", "add", "default", "via", "fd01::1")
            two.serve(80, socket.AF_INET6)
            for _ in range(30):             # until its addresses are known to be nobody else's
                if one.run(ask, "fd02::2", 80, 0.2) == "fd01::2":
                    break
            out = []
            for has_v6 in (True, False):
                install([("br1", "10.1.0.0/24", False, True, True),
                         ("br2", "10.2.0.0/24", False, True, True)], has_v6=has_v6)
                out += [one.run(ask, "fd02::2", 80, 0.5), one.run(ask, "10.2.0.2", 80, 0.5)]
            return out
    assert apart(inside) == ["TimeoutError", "TimeoutError", "fd01::2", "TimeoutError"]


@pytest.mark.root
@pytest.mark.skipif(not shutil.which("ip"), reason="ip is not installed")
def test_a_daemon_that_wants_no_rules(tmp_path):
    """The table goes, and with it the way from 127.0.0.1 to a bridge; and comes back."""
    def inside():
        store = engine.Store(str(tmp_path / "d"), str(tmp_path / "r"))
        store.roots_make()
        name = engine.network_find(store, "bridge").bridge
        ip("link", "add", name, "type", "bridge")
        with store.write() as db:
            db.execute("INSERT INTO endpoints(container, network, position, config, id)"
                       " VALUES('c', 'n', 0, '{}', 'e')")
        out = []
        for made in ({}, {"iptables": False}, {"ip6tables": False}):
            held = engine.configuration_write(store.run, {**engine.CONFIGURATION, **made})
            engine.firewall_settle(store)
            with open(f"/proc/sys/net/ipv4/conf/{name}/route_localnet") as file:
                out.append((engine.nft_rules_count(engine.firewall_table(store)),
                            file.read().strip()))
            os.close(held)
        return out
    (whole, on), (none, off), (half, again) = apart(inside)
    assert (on, none, off, again) == ("1", 0, "0", "1")
    assert half == whole + 5                            # a rule for each chain that is a hook's


def test_a_daemon_without_use_for_a_table_makes_none(tmp_path, monkeypatch):
    store = engine.Store(str(tmp_path / "d"), str(tmp_path / "r"))
    store.roots_make()
    monkeypatch.setattr(engine, "nft_rules_count", lambda table: 0)
    monkeypatch.setattr(engine, "firewall_restore", None)
    engine.firewall_settle(store)
