"""network_settings: what `network create` is refused, in Docker's words, and what comes of it."""

import pytest


def check(engine, version="1.51", **body):
    asked = engine.network_check({"Name": "n", **body}, engine.CONFIGURATION, version)
    engine.driver_check(asked)
    return asked


def ipam(*configs, **more):
    return {"IPAM": {"Config": list(configs)}, **more}


def option(name, value, below="com.docker.network.bridge."):
    return {"Options": {below + name: value}}


@pytest.mark.parametrize("body, kind, text", [
    ({"Name": "host"}, "Forbidden", "operation is not permitted on predefined host network "),
    ({"Name": " "}, "InvalidParameter", "invalid name: name is empty"),
    ({"Driver": "nope"}, "NotFound", 'plugin "nope" not found'),
    ({"Driver": "overlay"}, "Forbidden", "This node is not a swarm manager"),
    ({"Driver": "host"}, "Forbidden", 'only one instance of "host" network is allowed'),
    ({"Scope": "swarm"}, "Forbidden", "cannot create a swarm scoped network when swarm is not"),
    ({"Ingress": True}, "Forbidden", "Ingress network can only be global scope network"),
    ({"EnableIPv4": False}, "InvalidParameter", "IPv4 or IPv6 must be enabled"),
    (ipam({"Subnet": "10.0.0.0"}), "InvalidParameter",
     "invalid network config:\ninvalid subnet 10.0.0.0: invalid CIDR block notation"),
    (ipam({"Subnet": "10.0.0.7/24"}), "InvalidParameter",
     "invalid subnet 10.0.0.7/24: it should be 10.0.0.0/24"),
    (ipam({"Subnet": "10.0.0.0/24", "Gateway": "10.0.1.1"}), "InvalidParameter",
     "invalid gateway 10.0.1.1: parent subnet 10.0.0.0/24 doesn't contain this address"),
    (ipam({"Subnet": "10.0.0.0/24", "Gateway": "fd00::1"}), "InvalidParameter",
     "invalid gateway fd00::1: parent subnet is an IPv4 block"),
    (ipam({"Subnet": "10.0.0.0/24", "AuxiliaryAddresses": {"a": "x"}}), "InvalidParameter",
     "invalid auxiliary address a: invalid address"),
    (ipam({"Subnet": "10.0.0.0/24", "IPRange": "10.0.0.0/16"}), "InvalidParameter",
     "invalid ip-range 10.0.0.0/16: CIDR block is bigger than its parent subnet 10.0.0.0/24"),
    (ipam({"Subnet": "10.0.0.0/24", "IPRange": "10.0.1.0/25"}), "InvalidParameter",
     "invalid ip-range 10.0.1.0/25: parent subnet 10.0.0.0/24 doesn't contain ip-range"),
    (ipam({"Subnet": "x/8"}, {"Subnet": "10.0.0.7/24"}), "InvalidParameter",
     "invalid network config:\n* invalid subnet x/8: invalid CIDR block notation\n"
     "* invalid subnet 10.0.0.7/24: it should be 10.0.0.0/24"),
    ({"IPAM": {"Driver": "mine"}}, "InvalidParameter", 'invalid ipam driver: "mine"'),
    (option("enable_icc", "perhaps"), "InvalidParameter",
     "failed to parse com.docker.network.bridge.enable_icc value: perhaps (strconv.ParseBool:"
     ' parsing "perhaps": invalid syntax)'),
    (option("mtu", "big", "com.docker.network.driver."), "InvalidParameter",
     "failed to parse com.docker.network.driver.mtu value: big (strconv.Atoi: parsing \"big\":"
     " invalid syntax)"),
    (option("mtu", "-1", "com.docker.network.driver."), "InvalidParameter",
     "invalid MTU number: -1"),
    (option("host_binding_ipv4", "x"), "InvalidParameter",
     "failed to parse com.docker.network.bridge.host_binding_ipv4 value: x (nil ip)"),
    (option("gateway_mode_ipv4", "x"), "InvalidParameter", "unknown gateway mode x"),
    (option("gateway_mode_ipv4", "isolated"), "EngineError", "only be used for an internal"),
    (option("gateway_mode_ipv4", "routed"), "Unsupported", "'routed' is not supported"),
    (option("gateway_mode_ipv6", "nat-unprotected"), "Unsupported", "is not supported by this"),
    (option("name", "much-too-long-a-name"), "InvalidParameter", "invalid bridge name"),
    ({"Driver": "macvlan", "Options": {"parent": "lo"}}, "EngineError",
     "loopback interface is not a valid macvlan parent link"),
    ({"Driver": "ipvlan", "Options": {"ipvlan_mode": "l9"}}, "EngineError",
     "requested ipvlan mode 'l9' is not valid, 'l2' mode is the ipvlan driver default"),
])
def test_refusals(engine, body, kind, text):
    with pytest.raises(engine.EngineError) as refused:
        check(engine, **body)
    assert type(refused.value).__name__ == kind
    assert text in str(refused.value)


def test_defaults(engine):
    asked = check(engine, Options={"unknown": "kept"})
    assert (asked["Driver"], asked["EnableIPv4"], asked["EnableIPv6"]) == ("bridge", True, False)
    assert asked["Options"] == {"unknown": "kept"}
    assert check(engine, version="1.47", EnableIPv4=False)["EnableIPv4"] is True


def test_default_options_of_a_daemon(engine):
    made = {**engine.CONFIGURATION, "default-network-opts": {
        "bridge": {"com.docker.network.enable_ipv6": "true", "a": "1"}}}
    asked = engine.network_check({"Name": "n", "Options": {"a": "2"}}, made, "1.51")
    assert asked["EnableIPv6"] is True and asked["Options"]["a"] == "2"
    assert engine.network_check({"Name": "n", "EnableIPv6": False}, made, "1.51")[
        "EnableIPv6"] is False


def build(engine, roots, *before, **body):
    store = engine.Store(roots.data, roots.run)
    with store.write() as db:
        for other in before:
            engine.network_insert(db, engine.network_build(
                db, check(engine, **other), engine.CONFIGURATION, []))
        return engine.network_build(db, check(engine, **body), engine.CONFIGURATION, [])


def test_a_network_of_which_nothing_was_said(engine, roots):
    network = build(engine, roots)
    assert network.bridge == "br-" + network.id[:12]
    assert network.document["IPAM"]["Config"] == [
        {"Subnet": "172.17.0.0/16", "Gateway": "172.17.0.1"}]
    assert network.document["is_static"] is False


def test_what_was_said_is_shown_as_it_was_said(engine, roots):
    network = build(engine, roots, **ipam({"Subnet": "10.0.0.0/24", "IPRange": "10.0.0.64/26"}))
    assert network.document["IPAM"]["Config"] == [
        {"Subnet": "10.0.0.0/24", "IPRange": "10.0.0.64/26"}]
    assert network.pool(32)["gateway"] == "10.0.0.64"


def test_both_families_and_a_gateway_of_the_containers(engine, roots):
    network = build(engine, roots, EnableIPv6=True, **ipam(
        {"Subnet": "fd00:1::/64"},
        {"Subnet": "10.0.0.0/24", "AuxiliaryAddresses": {"DefaultGatewayIPv4": "10.0.0.9"}}))
    assert network.pool(128)["gateway"] == "fd00:1::1"
    assert network.pool(32)["router"] == "10.0.0.9"


def test_a_subnet_of_one_family_is_said(engine, roots):
    network = build(engine, roots, EnableIPv6=True, **ipam({"Subnet": "fd00:1::/64"}))
    assert network.document["IPAM"]["Config"] == [
        {"Subnet": "fd00:1::/64"}, {"Subnet": "172.17.0.0/16", "Gateway": "172.17.0.1"}]
    assert engine.endpoint_problems("n", {"IPAMConfig": {"IPv6Address": "fd00:1::9"}}, network
                                    ) == []
    assert engine.endpoint_problems("n", {"IPAMConfig": {"IPv4Address": "172.17.0.9"}}, network) \
        == ["user specified IP address is supported only when connecting to networks with user"
            " configured subnets"]


def test_subnets_do_not_overlap(engine, roots):
    with pytest.raises(engine.Forbidden, match="Pool overlaps with other one on this address"):
        build(engine, roots, ipam({"Subnet": "10.0.0.0/16"}), **ipam({"Subnet": "10.0.7.0/24"}))
    with pytest.raises(engine.Forbidden, match="bridge driver doesn't support multiple subnets"):
        build(engine, roots, **ipam({"Subnet": "10.1.0.0/24"}, {"Subnet": "10.2.0.0/24"}))


def test_the_gateway_is_nobody_elses(engine, roots):
    with pytest.raises(engine.EngineError, match=r"secondary ip address \(a:10.0.0.1\)"):
        build(engine, roots, **ipam(
            {"Subnet": "10.0.0.0/24", "Gateway": "10.0.0.1",
             "AuxiliaryAddresses": {"a": "10.0.0.1"}}))


@pytest.mark.parametrize("gateway", ["10.0.0.0", "10.0.0.255"])
def test_an_address_that_is_nobodys(engine, roots, gateway):
    with pytest.raises(engine.EngineError, match="failed to allocate gateway .10.0.0.*already in"):
        build(engine, roots, **ipam({"Subnet": "10.0.0.0/24", "Gateway": gateway}))


def test_a_network_without_a_gateway(engine, roots):
    network = build(engine, roots, Internal=True, **option("gateway_mode_ipv4", "isolated"))
    assert network.pool(32)["gateway"] == ""


def test_a_range_without_an_address_for_the_gateway(engine, roots):
    with pytest.raises(engine.EngineError, match=r"failed to allocate gateway \(\): No available"):
        build(engine, roots, **ipam({"Subnet": "10.3.0.0/30", "IPRange": "10.3.0.3/32"}))
