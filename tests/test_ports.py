"""ports: what a container publishes, leases of the host's ports, and the forwarder of a monitor."""

import errno
import shutil
import socket
import threading
import types

import engine
import pytest
from network_help import Net, apart, ask, ask_udp

GATE = {"network": "n1", "id": "e" * 64, "driver": "bridge", "internal": False,
        "options": {}, "ipv4": "10.0.0.2", "ipv6": "", "is_gateway4": True, "is_gateway6": False}


def wanted(bindings, exposed=(), everything=False):
    return engine.ports_wanted({"ExposedPorts": {name: {} for name in exposed} or None},
                               {"PortBindings": bindings, "PublishAllPorts": everything})


def container(id="c1", **bindings):
    return types.SimpleNamespace(
        id=id, name="name-" + id, is_up=True, sole_network="",
        config={"ExposedPorts": None},
        host={"PublishAllPorts": False, "NetworkMode": "bridge", "PortBindings": {
            name.replace("_", "/"): value for name, value in bindings.items()}})


def binding(port="", ip=""):
    return {"HostIp": ip, "HostPort": port}


@pytest.fixture
def store(tmp_path):
    made = engine.Store(str(tmp_path / "data"), str(tmp_path / "run"))
    made.roots_make()
    return made


@pytest.fixture
def quiet(monkeypatch):
    """No table and no watch: leases alone."""
    monkeypatch.setattr(engine, "firewall_watch", lambda store: None)
    monkeypatch.setattr(engine, "firewall_publish", lambda store, rows: None)
    monkeypatch.setattr(engine, "firewall_unpublish", lambda store, rows: None)


@pytest.mark.parametrize(("text", "ends"), [("", (0, 0)), ("80", (80, 80)), ("80-90", (80, 90))])
def test_ports_of_the_host(text, ends):
    assert engine.port_parse(text) == ends


@pytest.mark.parametrize("text", ["x", "-", "1-", "-1", "90-80", "65536", "1-2-3", "+1", "0x10"])
def test_what_is_no_port(text):
    with pytest.raises(ValueError):
        engine.port_parse(text)


@pytest.mark.parametrize(("bindings", "text"), [
    ({"x/tcp": []}, 'invalid port specification: "x"'),
    ({"80-90/tcp": []}, 'invalid port specification: "80-90"'),
    ({"0/tcp": None}, 'invalid port specification: "0"'),
    ({"80/icmp": []}, 'invalid port specification: "80/icmp"'),
    ({"80/tcp": [{"HostPort": "99999"}]}, 'invalid port specification: "99999"'),
    ({"80/tcp": [{"HostPort": "9-1"}]}, 'invalid port specification: "9-1"'),
    ({"80/tcp": [{"HostIp": "nowhere"}]}, "invalid IP address: nowhere"),
    ({"80/tcp": {}}, "cannot unmarshal object into Go struct field HostConfig.PortBindings"),
    ({"80/tcp": [{"HostPort": 80}]}, "cannot unmarshal number"), ({"80/tcp": [1]}, "unmarshal")])
def test_bindings_that_are_none_are_refused(bindings, text):
    with pytest.raises(engine.InvalidParameter, match=text):
        engine.ports_check({"PortBindings": bindings})


def test_bindings_that_are_good():
    empty: dict = {"80/tcp": [None]}
    engine.ports_check({"PortBindings": empty})
    assert empty == {"80/tcp": [{"HostIp": "", "HostPort": ""}]}
    engine.ports_check({"PortBindings": None})
    engine.ports_check({"PortBindings": {"80": None, "1/udp": [], "2/sctp": [{}], "80/tcp": [
        {"HostIp": "::1", "HostPort": ""}, {"HostIp": "", "HostPort": "1-2"}]}})


def test_what_is_wanted():
    assert wanted({"80/tcp": [binding("8080")]}) == [("tcp", 80, "", 8080, 8080)]
    assert wanted({"80/tcp": [binding()], "81/udp": [binding("9000-9010"), binding("81", "::1")]}) \
        == [("udp", 81, "::1", 81, 81), ("tcp", 80, "", 0, 0), ("udp", 81, "", 9000, 9010)]
    assert wanted({"80/tcp": [binding("99"), binding("98", "127.0.0.1"), binding("98")],
                   "80/udp": [binding("5")], "7/sctp": [binding("9")]}) == [
        ("sctp", 7, "", 9, 9), ("tcp", 80, "", 98, 98), ("tcp", 80, "127.0.0.1", 98, 98),
        ("tcp", 80, "", 99, 99), ("udp", 80, "", 5, 5)]
    assert wanted({}, ["80/tcp", "53/udp"]) == []
    assert wanted({"80/tcp": [binding("1")]}, ["80/tcp", "53/udp"], True) == [
        ("tcp", 80, "", 1, 1), ("udp", 53, "", 0, 0)]
    assert wanted(None) == []


def test_a_lease_is_one_row_for_each_address(store, quiet):
    plan = engine.ports_start(store, container(**{"80_tcp": [binding("18080")]}), [GATE])
    assert plan == {"rows": [("tcp", "0.0.0.0", 18080, "10.0.0.2", 80, 1),
                             ("tcp", "::", 18080, "10.0.0.2", 80, 1)]}
    shown = engine.ports_show(store, container(**{"80_tcp": [], "81_tcp": []}))
    assert shown == {"81/tcp": None, "80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "18080"},
                                                {"HostIp": "::", "HostPort": "18080"}]}
    assert engine.ports_list(store, container(**{"80_tcp": []})) == [
        {"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 18080, "Type": "tcp"},
        {"IP": "::", "PrivatePort": 80, "PublicPort": 18080, "Type": "tcp"}]
    engine.ports_stop(store, "c1")
    assert store.rows("SELECT * FROM ports") == []


@pytest.mark.parametrize(("first", "second", "taken"), [
    ("", "", "0.0.0.0"), ("127.0.0.1", "", "127.0.0.1"), ("", "127.0.0.1", "0.0.0.0"),
    ("127.0.0.1", "127.0.0.1", "127.0.0.1"), ("::1", "::", "::1"), ("127.0.0.1", "127.0.0.2", ""),
    ("127.0.0.1", "::1", "")])
def test_leases_that_overlap_are_refused_in_dockers_words(store, quiet, first, second, taken):
    engine.ports_start(store, container("c1", **{"80_tcp": [binding("18080", first)]}), [GATE])
    engine.ports_start(store, container("c3", **{"80_udp": [binding("18080", second)]}), [GATE])
    other = container("c2", **{"80_tcp": [binding("18080", second)]})
    if not taken:
        engine.ports_start(store, other, [GATE])
        return
    with pytest.raises(engine.EngineError) as refused:
        engine.ports_start(store, other, [GATE])
    assert str(refused.value) == (
        "failed to set up container networking: driver failed programming external connectivity on"
        f" endpoint name-c2 ({'e' * 64}): Bind for {taken}:18080 failed:"
        " port is already allocated")
    assert store.rows("SELECT * FROM ports WHERE container='c2'") == []


def test_a_port_of_a_host_process_is_told(store, quiet):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(engine.EngineError, match=(
                rf"failed to bind host port for 0.0.0.0:{port}:10.0.0.2:80/tcp:"
                " address already in use$")):
            engine.ports_start(store, container(**{"80_tcp": [binding(str(port))]}), [GATE])
        with pytest.raises(engine.EngineError, match=(
                r"for 203.0.113.9:81:10.0.0.2:80/tcp: cannot assign requested address$")):
            engine.ports_start(store, container(**{"80_tcp": [binding("81", "203.0.113.9")]}),
                               [GATE])
        # Of a range the next one is taken.
        plan = engine.ports_start(
            store, container(**{"80_tcp": [binding(f"{port}-{port + 9}")]}), [GATE])
        assert plan["rows"][0][2] in range(port + 1, port + 10)
        with pytest.raises(engine.EngineError, match=rf"failed to bind host port {port} for"
                           rf" 127.0.0.1:{port}-[0-9]+:"):
            engine.ports_start(store, container("c2", **{
                "80_tcp": [binding(f"{port}-{plan['rows'][0][2]}", "127.0.0.1")]}), [GATE])


def test_random_ports_go_round(store, quiet):
    first, last = map(int, open("/proc/sys/net/ipv4/ip_local_port_range").read().split())
    got = []
    for number in range(5):
        plan = engine.ports_start(store, container(f"c{number}", **{"80_tcp": [binding()]}), [GATE])
        got.append(plan["rows"][0][2])
        assert {row[2] for row in plan["rows"]} == {got[-1]}
    assert len(set(got)) == 5
    assert all(first <= port <= last for port in got)
    engine.ports_stop(store, "c4")
    again = engine.ports_start(store, container("c9", **{"80_tcp": [binding()]}), [GATE])
    assert again["rows"][0][2] not in got
    engine.file_write(store.run_path("last-port"), b"%d" % last, 0o600)
    wrapped = engine.ports_start(store, container("c8", **{"80_tcp": [binding()]}), [GATE])
    assert wrapped["rows"][0][2] < last


def test_a_range_is_one_row_of_the_table(store, quiet):
    plan = engine.ports_start(store, container(**{
        f"{port}_tcp": [binding(str(port), "127.0.0.1")] for port in range(20000, 20100)}), [GATE])
    assert plan == {"rows": [("tcp", "127.0.0.1", 20000, "10.0.0.2", 20000, 100)]}


def test_where_nothing_is_published(store, quiet):
    c = container(**{"80_tcp": [binding("18080")]})
    assert engine.ports_start(store, c, []) == {}
    assert engine.ports_start(store, c, [{**GATE, "internal": True}]) == {}
    assert engine.ports_start(store, c, [{**GATE, "driver": "macvlan"}]) == {}
    assert engine.ports_start(store, container(), [GATE]) == {}


def test_a_networks_default_address(store, quiet):
    gate = {**GATE, "options": {"com.docker.network.bridge.host_binding_ipv4": "127.0.0.1"}}
    plan = engine.ports_start(store, container(**{"80_tcp": [binding("18080")]}), [gate])
    assert plan == {"rows": [("tcp", "127.0.0.1", 18080, "10.0.0.2", 80, 1)]}


def test_another_network_leads_ports_elsewhere(store, quiet):
    c = container(**{"80_tcp": [binding("18080")], "81_udp": [binding()]})
    before = engine.ports_start(store, c, [GATE])["rows"]
    assert engine.ports_change(store, c, [GATE]) == {"rows": before}
    after = engine.ports_change(store, c, [{**GATE, "ipv4": "10.9.0.9", "ipv6": "fd00::9"}])["rows"]
    assert [row[:3] for row in after] == [row[:3] for row in before]
    assert {row[3] for row in after} == {"10.9.0.9", "fd00::9"}
    assert engine.ports_change(store, c, [{**GATE, "internal": True}]) == {}
    assert engine.ports_rows(store, "c1") == []
    assert engine.ports_change(store, c, []) == {}
    assert len(engine.ports_change(store, c, [GATE])["rows"]) == 4


# ---- the forwarder

class Place(engine.Loop):
    """A loop in a thread."""

    def begin(self):
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def _serve(self):
        while True:
            for fd, events in self._poll.poll(0.05):
                if fd in self._handlers:
                    self._handlers[fd][1](events)
            self._timers_run()


def forwarded(rows, function):
    """What function(net, container) returns where a forwarder leads to a container."""
    def inside():
        with Net() as net:
            net.bridge("br-a", "10.0.0.1/24", "fd01::1/64")
            c = net.member("a2", "10.0.0.2/24", bridge="br-a", gateway="10.0.0.1")
            forwarder = engine.Forwarder(Place().begin(), rows)
            out = function(net, c)
            forwarder.close()
            return out
    return apart(inside)


@pytest.mark.root
@pytest.mark.skipif(not shutil.which("ip"), reason="ip is not installed")
def test_tcp_and_udp_are_forwarded():
    def inside(net, c):
        c.serve(80)
        c.serve_udp(80)
        ext = net.member("ext", "192.0.2.2/24", host="192.0.2.1/24")
        return (ask("127.0.0.1", 8080), ask("::1", 8080), ext.run(ask, "192.0.2.1", 8080),
                ask_udp("127.0.0.1", 8080), ask_udp("127.0.0.9", 8080),
                ext.run(ask_udp, "192.0.2.1", 8080), ask("127.0.0.1", 8081))
    rows = [("tcp", "0.0.0.0", 8080, "10.0.0.2", 80, 1), ("tcp", "::", 8080, "10.0.0.2", 80, 1),
            ("udp", "0.0.0.0", 8080, "10.0.0.2", 80, 1), ("tcp", "0.0.0.0", 8081, "10.0.0.2", 1, 1)]
    assert forwarded(rows, inside) == ("10.0.0.1", "10.0.0.1", "10.0.0.1", "10.0.0.1", "10.0.0.1",
                                       "10.0.0.1", "")


@pytest.mark.root
@pytest.mark.skipif(not shutil.which("ip"), reason="ip is not installed")
def test_ports_are_led_elsewhere():
    def inside():
        with Net() as net:
            net.bridge("br-a", "10.0.0.1/24")
            for number in (2, 3):
                c = net.member(f"a{number}", f"10.0.0.{number}/24", bridge="br-a")
                c.serve(80 + number)
                c.serve_udp(80 + number)
            place = types.SimpleNamespace(ports=None, loop=Place().begin())
            place.watch, place.after, place.unwatch = (
                place.loop.watch, place.loop.after, place.loop.unwatch)
            def rows(number):
                return [(kind, "127.0.0.1", 8080, f"10.0.0.{number}", 80 + number, 1)
                        for kind in ("tcp", "udp")]
            out = []
            for number in (2, 3):
                engine.ports_begin(place, {"ports": {"rows": rows(number)}})
                out += [ask("127.0.0.1", 8080), ask_udp("127.0.0.1", 8080)]
            engine.ports_begin(place, {"ports": {}})
            return [*out, ask("127.0.0.1", 8080), place.ports]
    assert apart(inside) == ["10.0.0.1"] * 4 + ["ConnectionRefusedError", None]


@pytest.mark.root
@pytest.mark.skipif(not shutil.which("ip"), reason="ip is not installed")
def test_much_goes_both_ways_and_ends_are_passed_on():
    size = 8 << 20

    def inside(net, c):
        listener = c.open()
        listener.bind(("", 80))
        listener.listen(1)
        got = []

        def echo():
            sock, _ = listener.accept()
            count = 0
            while True:
                data = sock.recv(1 << 16)
                if not data:
                    break
                count += len(data)
                sock.sendall(data)
            got.append(count)
            sock.sendall(b"end")
            sock.close()
        threading.Thread(target=echo, daemon=True).start()
        with socket.create_connection(("127.0.0.1", 8080), 10) as sock:
            def feed():
                sock.sendall(bytes(size))
                sock.shutdown(socket.SHUT_WR)
            threading.Thread(target=feed, daemon=True).start()
            back, tail = 0, b""
            while True:
                data = sock.recv(1 << 16)
                if not data:
                    return got, back, tail[-3:]
                back += len(data)
                tail = data
    assert forwarded([("tcp", "127.0.0.1", 8080, "10.0.0.2", 80, 1)], inside) == (
        [size], size + 3, b"end")


def test_a_port_that_somebody_has_taken_meanwhile():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(engine.EngineError, match="address already in use"):
            engine.Forwarder(Place(), [("tcp", "127.0.0.1", port - 1, "10.0.0.2", 80, 2)])
    with socket.socket() as free:           # and what was held before is let go of
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", port - 1))


def test_udp_clients_are_few_and_forgotten(monkeypatch):
    monkeypatch.setattr(engine, "UDP_CLIENTS", 4)
    target = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    target.bind(("127.0.0.1", 0))
    loop = Place()
    held = engine._bind("udp", "127.0.0.1", 0)
    port = engine.UdpPort(loop, held, target.getsockname())
    clients = []
    for _ in range(9):
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        client.connect(held.getsockname())
        client.send(b"x")
        port._asked()
        clients.append(client)
    assert len(port._clients) == 4
    for key in port._clients:
        port._clients[key][1] = 0.0
    port._sweep()
    assert port._clients == {}
    assert errno.EAGAIN == 11


def test_without_a_userland_proxy_ports_are_only_held(store, quiet, monkeypatch):
    held = engine.configuration_write(store.run, {**engine.CONFIGURATION, "userland-proxy": False})
    plan = engine._plan(store, [("tcp", "127.0.0.1", 0, "10.0.0.2", 80, 1)])
    assert plan["forward"] is False
    monitor = type("Monitor", (), {"ports": None})()
    engine.ports_begin(monitor, {"ports": plan})
    (sock,) = monitor.ports._held.values()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(sock.getsockname())
    with pytest.raises(OSError, match="in use"):
        socket.create_server(sock.getsockname())
    monitor.ports.loop = types.SimpleNamespace(unwatch=lambda fd: None)
    monitor.ports.close()
    engine.os.close(held)
