"""endpoints: what a container is given in its networks, and what is refused."""

import pytest

MODES = ("none", "host")


@pytest.fixture
def store(engine, roots, monkeypatch):
    monkeypatch.setattr(engine, "host_prefixes", lambda store: [])
    return engine.Store(roots.data, roots.run)


def plan(engine, store, mode="bridge", endpoints=None, version="1.51", **config):
    return engine.endpoints_plan(
        store, {"MacAddress": "", "NetworkDisabled": False, **config}, {"NetworkMode": mode},
        {"EndpointsConfig": endpoints or {}}, version)


def test_a_container_gets_the_network_of_its_mode(engine, store):
    bridge = engine.network_find(store, "bridge").id
    assert plan(engine, store) == ([(bridge, engine.ENDPOINT_CONFIG)], [])
    rows, _ = plan(engine, store, "later", {"later": {"Aliases": ["a"], "Nonsense": 1}})
    assert rows == [("later", {**engine.ENDPOINT_CONFIG, "Aliases": ["a"]})]
    assert plan(engine, store, "none") == plan(engine, store, "container:x") == ([], [])


def test_several_networks_have_the_main_one_first(engine, store):
    rows, _ = plan(engine, store, "b", {"a": {}, "b": {}, "c": {}})
    assert [name for name, _ in rows] == ["b", "a", "c"]


@pytest.mark.parametrize("endpoint, text", [
    ({"IPAMConfig": {"IPv4Address": "1.2.3.4"}},
     "user specified IP address is supported on user defined networks only"),
    ({"IPAMConfig": {"IPv6Address": "fd00::1"}},
     "user specified IP address is supported on user defined networks only"),
    ({"Aliases": ["db"]},
     "network-scoped alias is supported only for containers in user defined networks"),
    ({"MacAddress": "nonsense"}, "invalid MAC address nonsense"),
    (None, "EndpointsConfig is nil"),
])
@pytest.mark.parametrize("mode", ["none", "host", "bridge"])
def test_what_a_network_cannot_have_is_refused(engine, store, mode, endpoint, text):
    with pytest.raises(engine.InvalidParameter, match=text):
        plan(engine, store, mode, {mode: endpoint})


@pytest.mark.parametrize("mode, text", [
    ("none", "private .none. mode"), ("host", "cannot be connected to any other network"),
    ("container:x", "cannot be connected to any other network")])
def test_who_shares_a_network_has_no_other(engine, store, mode, text):
    with pytest.raises(engine.InvalidParameter, match=text):
        plan(engine, store, mode, {"bridge": {}})


@pytest.mark.parametrize("address, text", [
    ("10.0.0.300", "invalid IPv4 address: 10.0.0.300"), ("0.0.0.0", "invalid IPv4 address"),
    ("fd00::1", "invalid IPv4 address: fd00::1"),
    ("10.1.0.9", "no configured subnet or ip-range contain the IP address 10.1.0.9"),
    ("10.0.0.9", "")])
def test_an_address_has_to_be_in_the_subnet(engine, address, text):
    pool = engine.pool_make(engine.prefix_parse("10.0.0.0/24"))
    document = engine.network_document(
        "bridge", pools=[pool], is_static=True, IPAM={"Config": [{"Subnet": "10.0.0.0/24"}]})
    network = engine.Network(("n", "n", "bridge", 1, document))
    bad = engine.endpoint_problems("n", {"IPAMConfig": {"IPv4Address": address}}, network)
    assert bad == [] if not text else text in bad[0]
    if not text:
        document["is_static"] = False
        bad = engine.endpoint_problems("n", {"IPAMConfig": {"IPv4Address": address}}, network)
        assert "only when connecting to networks with user configured subnets" in bad[0]


def test_the_old_mac_address_moves_to_the_main_network(engine, store):
    mac = "02:42:00:00:00:09"
    rows, warnings = plan(engine, store, MacAddress=mac)
    assert rows[0][1]["MacAddress"] == mac and "now deprecated" in warnings[0]
    rows, warnings = plan(engine, store, "n", {"n": {}}, "1.43", MacAddress=mac)
    assert rows[0][1]["MacAddress"] == mac and not warnings
    with pytest.raises(engine.InvalidParameter, match="must match the endpoint-specific"):
        plan(engine, store, "n", {"n": {"MacAddress": "02:42:00:00:00:01"}}, MacAddress=mac)


def one(name, **given):
    default = {"priority": 0, "internal": False, "gateway4": "1", "gateway6": ""}
    return {"name": name, **default, **given}


@pytest.mark.parametrize("attached, four, six", [
    ([one("b"), one("a")], "a", ""),
    ([one("b", priority=1), one("a")], "b", ""),
    ([one("b"), one("a", internal=True, gateway4="")], "b", ""),
    ([one("b", gateway6="1"), one("a")], "b", "b"),
    ([one("b", gateway6="1"), one("a", priority=9)], "a", "b"),
    ([], "", ""),
])
def test_whose_gateway_is_the_default_route(engine, attached, four, six):
    engine.routes_choose(attached)
    assert [name["name"] for name in attached if name["is_gateway4"]] == [four] * bool(four)
    assert [name["name"] for name in attached if name["is_gateway6"]] == [six] * bool(six)


@pytest.mark.parametrize("text, expected", [
    ("db", ("db", "db")), ("db:alias", ("db", "alias")), ("/db:/web/alias", ("db", "alias"))])
def test_links(engine, text, expected):
    assert engine.link_parse(text) == expected


def test_bad_links(engine):
    for text, why in (("", "empty string"), ("a:b:c", "bad format for links: a:b:c")):
        with pytest.raises(engine.InvalidParameter, match=why):
            engine.link_parse(text)


def test_variables_of_a_link(engine):
    config = {"ExposedPorts": {"53/udp": {}, "80/tcp": {}}, "Env": ["A=1", "PATH=/bin", "B"]}
    assert engine._link_environment("/web/my-db", "1.2.3.4", config) == [
        "MY_DB_PORT=tcp://1.2.3.4:80", "MY_DB_PORT_80_TCP=tcp://1.2.3.4:80",
        "MY_DB_PORT_80_TCP_ADDR=1.2.3.4", "MY_DB_PORT_80_TCP_PORT=80",
        "MY_DB_PORT_80_TCP_PROTO=tcp", "MY_DB_PORT_53_UDP=udp://1.2.3.4:53",
        "MY_DB_PORT_53_UDP_ADDR=1.2.3.4", "MY_DB_PORT_53_UDP_PORT=53",
        "MY_DB_PORT_53_UDP_PROTO=udp", "MY_DB_NAME=/web/my-db", "MY_DB_ENV_A=1"]
    ports = [line.partition("=") for line in engine._link_environment("/w/db", "1.2.3.4", {
        "ExposedPorts": {f"{port}/tcp": {} for port in (80, 81, 82, 90)}, "Env": None})]
    ranges = {name: value for name, _, value in ports if "START" in name or "END" in name}
    assert ranges == {
        "DB_PORT_80_TCP_START": "tcp://1.2.3.4:80", "DB_PORT_80_TCP_PORT_START": "80",
        "DB_PORT_80_TCP_END": "tcp://1.2.3.4:82", "DB_PORT_80_TCP_PORT_END": "82"}
