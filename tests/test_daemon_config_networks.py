"""daemon_config: flags about networks, and what a daemon makes of the default bridge."""

import pytest


def made(engine, **given):
    asked = {key.replace("_", "-"): value for key, value in given.items()}
    return {**engine.CONFIGURATION, **asked}


@pytest.mark.parametrize("given, text", [
    ({"bip": "10.0.0.1"}, "parse bip failed: invalid CIDR address: 10.0.0.1"),
    ({"bip": "fd00::1/64"}, "parse bip failed"),
    ({"fixed-cidr-v6": "10.0.0.0/24"}, "parse fixed-cidr-v6 failed"),
    ({"bridge": "br9", "bip": "10.0.0.1/24"}, "You specified -b & --bip, mutually exclusive"),
    ({"mtu": -1}, "invalid default MTU: -1"),
    ({"default-gateway": "fd00::1"}, "default-gateway: fd00::1 is not an ip address"),
    ({"host-gateway-ips": ["x"]}, "x is not an ip address"),
])
def test_refusals(engine, given, text):
    with pytest.raises(engine.EngineError, match=text.replace("(", ".")):
        engine._networks_check(made(engine, **given))


@pytest.mark.parametrize("pool, text", [
    ({"base": "x", "size": 24}, 'invalid base prefix "x"'), ({}, 'invalid base prefix ""'),
    ({"base": "10.0.0.0/16", "size": 8}, "invalid pools size: 8"),
    ({"base": "10.0.0.0/16", "size": 33}, "invalid pools size: 33")])
def test_pools(engine, pool, text):
    with pytest.raises(engine.InvalidParameter, match=text):
        engine._pools_check(made(engine, **{"default-address-pools": [pool]}))


def test_pools_and_options_on_the_command_line(engine):
    pools, options = [], {}
    engine._add_pool(pools, "base=10.0.0.0/16, size=24")
    assert pools == [{"base": "10.0.0.0/16", "size": 24}]
    for text in ("10.0.0.0/16", "size=x", "what=1"):
        with pytest.raises(ValueError):
            engine._add_pool(pools, text)
    engine._add_network_opt(options, "bridge=com.docker.network.driver.mtu=1400")
    assert options == {"bridge": {"com.docker.network.driver.mtu": "1400"}}
    with pytest.raises(ValueError):
        engine._add_network_opt(options, "bridge=mtu")


def test_the_default_bridge_is_what_the_daemon_says_until_it_is_used(engine, roots, monkeypatch):
    monkeypatch.setattr(engine, "host_prefixes", lambda store: [])
    store = engine.Store(roots.data, roots.run)

    def pool():
        return engine.network_find(store, "bridge").pool(32)

    first = pool()
    assert engine.bridge_settle(store, made(engine)) and pool() == first
    assert engine.bridge_settle(store, made(engine, bip="10.9.0.1/24", fixed_cidr="10.9.0.64/26",
                                            default_gateway="10.9.0.7", icc=False))
    assert (pool()["subnet"], pool()["range"]) == ("10.9.0.0/24", "10.9.0.64/26")
    assert (pool()["gateway"], pool()["router"]) == ("10.9.0.1", "10.9.0.7")
    network = engine.network_find(store, "bridge")
    assert network.options["com.docker.network.bridge.enable_icc"] == "false"
    with store.write() as db:
        db.execute("INSERT INTO endpoints(container, network, position, config, id)"
                   " VALUES('c', ?, 0, '{}', 'e')", (network.id,))
    assert not engine.bridge_settle(store, made(engine))
    with store.write() as db:
        db.execute("DELETE FROM endpoints")
    assert engine.bridge_settle(store, made(engine, ipv6=True))
    assert pool()["subnet"] == "172.17.0.0/16"
    assert engine.network_find(store, "bridge").pool(128)["subnet"].startswith("fd")


def test_without_the_default_bridge(engine, roots, monkeypatch):
    monkeypatch.setattr(engine, "host_prefixes", lambda store: [])
    monkeypatch.setattr(engine, "bridge_end", lambda store, network: None)
    store = engine.Store(roots.data, roots.run)
    store.roots_make()
    before = engine.network_find(store, "bridge").id
    with store.write() as db:
        db.execute("INSERT INTO endpoints(container, network, position, config, id)"
                   " VALUES('c', ?, 0, '{}', '')", (before,))
    none = made(engine, bridge="none")
    held = engine.configuration_write(store.run, none)
    assert engine.bridge_settle(store, none)
    assert [network.name for network in engine.network_list(store)] == ["host", "none"]
    assert engine.network_get(store, "bridge") is None
    assert engine.bridge_settle(store, none)
    assert engine.endpoint_list(store, "c")[0].network == "bridge"
    with pytest.raises(engine.EngineError, match="unable to derive the IP value for host-gateway"):
        engine.extra_hosts(store, {"ExtraHosts": ["h:host-gateway"]})
    # With the daemon its decision ends.
    engine.os.close(held)
    assert engine.network_find(store, "bridge").pool(32)


def test_a_bridge_of_the_users_that_is_up_gets_its_rules(engine, roots, monkeypatch):
    begun = []
    monkeypatch.setattr(engine, "host_prefixes", lambda store: [])
    monkeypatch.setattr(engine, "bridge_end", lambda store, network: None)
    monkeypatch.setattr(engine, "bridge_address", lambda name, width: "10.66.0.1/24")
    monkeypatch.setattr(engine, "link_is_up", lambda name: name == "br9")
    monkeypatch.setattr(engine, "firewall_network_begin",
                        lambda store, network: begun.append(network.bridge))
    store = engine.Store(roots.data, roots.run)
    assert engine.bridge_settle(store, made(engine, bridge="br9"))
    assert begun == ["br9"]
    assert engine.bridge_settle(store, made(engine))
    assert begun == ["br9"]
