"""networks: rows that are always there, subnets that nobody uses, leases that no two have."""

import threading

import pytest


@pytest.fixture
def store(engine, roots, monkeypatch):
    monkeypatch.setattr(engine, "host_prefixes", lambda store: [])
    return engine.Store(roots.data, roots.run)


def a_network(engine, subnet, **given):
    pool = engine.pool_make(engine.prefix_parse(subnet), **given)
    document = engine.network_document("bridge", pools=[pool], bridge="br-x")
    return engine.Network((engine.id_new(), "n", "bridge", 1, document)), pool


def lease(engine, store, network, pool, container="c", wanted=""):
    with store.write() as db:
        return engine.lease_take(db, network, pool, container, wanted)


def give_back(store, ago=0):
    with store.write() as db:
        db.execute("UPDATE leases SET released = strftime('%s', 'now') - ?", (ago,))


def test_three_networks_are_always_there(engine, store):
    names = {network.name: network.driver for network in engine.network_list(store)}
    assert names == {"bridge": "bridge", "host": "host", "none": "null"}
    bridge = engine.network_find(store, "bridge")
    assert bridge.pool(32) == {
        "subnet": "172.17.0.0/16", "range": "", "gateway": "172.17.0.1", "reserved": [],
        "is_chosen": True}
    assert bridge.bridge == "engine-" + engine.engine_tag(store)
    assert engine.network_find(store, bridge.id[:8]).id == bridge.id


def test_an_id_that_was_given_before_is_kept(engine, store):
    with store.write() as db:
        db.execute("INSERT INTO meta VALUES('network:none', 'f00')")
    assert engine.network_find(store, "none").id == "f00"


def test_what_is_not_there_is_told(engine, store):
    for ref in ("", "nosuch", "abc"):
        with pytest.raises(engine.NotFound, match=f"network {ref} not found"):
            engine.network_find(store, ref)


@pytest.mark.parametrize(
    ("taken", "expected"),
    [
        ([], "172.17.0.0/16"),
        (["172.17.5.0/24"], "172.18.0.0/16"),
        (["172.16.0.0/12"], "192.168.0.0/20"),
        (["172.16.0.0/12", "192.168.0.0/22"], "192.168.16.0/20"),
        (["172.16.0.0/12", "192.168.0.0/17"], "192.168.128.0/20"),
    ],
)
def test_a_subnet_is_free_of_the_hosts_routes(engine, store, taken, expected):
    with store.write() as db:
        made = engine.CONFIGURATION
        found = engine.subnet_choose(db, made, [engine.prefix_parse(text) for text in taken])
    assert str(found) == expected


def test_pools_end(engine, store):
    made = {**engine.CONFIGURATION, "default-address-pools": [{"base": "10.0.0.0/24", "size": 25}]}
    with store.write() as db:
        taken = []
        for expected in ("10.0.0.0/25", "10.0.0.128/25"):
            taken.append(engine.subnet_choose(db, made, taken))
            assert str(taken[-1]) == expected
        with pytest.raises(engine.InvalidParameter, match="fully subnetted"):
            engine.subnet_choose(db, made, taken)
        assert str(engine.subnet_choose(db, made, [], 128)).startswith("fd")


def test_leases_are_the_lowest_free_and_never_given_twice(engine, store):
    network, pool = a_network(engine, "10.0.0.0/29")
    assert pool["gateway"] == "10.0.0.1"
    assert [lease(engine, store, network, pool) for _ in range(5)] == [
        "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]
    with pytest.raises(engine.EngineError, match="no available IPv4 addresses on this network's"):
        lease(engine, store, network, pool)
    with store.write() as db:
        db.execute("UPDATE leases SET released = 1 WHERE address = ?",
                   (engine.ip_pack("10.0.0.4"),))
    assert lease(engine, store, network, pool) == "10.0.0.4"


def test_an_address_rests_before_it_is_given_again_unless_it_is_the_last(engine, store):
    network, pool = a_network(engine, "10.0.0.0/29")
    assert lease(engine, store, network, pool) == "10.0.0.2"
    give_back(store)
    assert lease(engine, store, network, pool) == "10.0.0.3"
    give_back(store, 60)
    assert lease(engine, store, network, pool) == "10.0.0.2"
    for _ in range(4):
        lease(engine, store, network, pool)
    give_back(store)
    assert lease(engine, store, network, pool) == "10.0.0.2"


def test_a_wanted_address_is_somebodys_or_the_gateway(engine, store):
    network, pool = a_network(engine, "10.0.0.0/24", reserved=["10.0.0.9"])
    assert lease(engine, store, network, pool, "a", "10.0.0.7") == "10.0.0.7"
    assert lease(engine, store, network, pool, "a", "10.0.0.7") == "10.0.0.7"
    for wanted in ("10.0.0.7", "10.0.0.1", "10.0.0.9", "10.0.0.0", "10.0.0.255"):
        with pytest.raises(engine.Forbidden, match="Address already in use"):
            lease(engine, store, network, pool, "b", wanted)


def test_a_range_and_reserved_addresses(engine, store):
    network, pool = a_network(
        engine, "10.0.0.0/24", span="10.0.0.128/30", reserved=["10.0.0.129"], gateway="10.0.0.254")
    assert [lease(engine, store, network, pool) for _ in range(3)] == [
        "10.0.0.128", "10.0.0.130", "10.0.0.131"]
    with pytest.raises(engine.EngineError):
        lease(engine, store, network, pool)


def test_ipv6(engine, store):
    network, pool = a_network(engine, "fd00::/64")
    assert pool["gateway"] == "fd00::1"
    assert lease(engine, store, network, pool, "c", "fd00::ffff:ffff:ffff:ffff")
    assert lease(engine, store, network, pool) == "fd00::2"


def test_many_threads_at_once(engine, store):
    network, pool = a_network(engine, "10.0.0.0/24")
    got = []

    def take():
        for _ in range(10):
            got.append(lease(engine, store, network, pool))
        store.release()

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(got)) == 80


def test_the_end_of_a_container_gives_all_back(engine, store):
    c = engine.record_new(id="c" * 64, name="c", image="i", config={}, document={},
                          host={"AutoRemove": False})
    network, pool = a_network(engine, "10.0.0.0/24")
    with store.write() as db:
        db.execute("INSERT INTO images VALUES('i', '', NULL, 0, 0, 0, '{}')")
    engine.record_insert(store, c, [("n", {})])
    lease(engine, store, network, pool, c.id)
    engine.record_move(store, c.id, ("created",), "running")
    with store.write() as db:
        db.execute("UPDATE endpoints SET id = 'e', ipv4 = '10.0.0.2'")
        db.execute("INSERT INTO ports VALUES('tcp', '0.0.0.0', 80, ?, 'n', '10.0.0.2', 80)",
                   (c.id,))
    engine.record_move(store, c.id, ("running",), "paused")
    assert store.row("SELECT released FROM leases") == (0,)
    engine.record_move(store, c.id, ("paused",), "exited")
    assert store.row("SELECT released > 0 FROM leases") == (1,)
    assert store.row("SELECT id, ipv4 FROM endpoints") == ("", "")
    assert store.rows("SELECT * FROM ports") == []
    engine.record_delete(store, c.id)
    assert store.rows("SELECT * FROM endpoints") == []


def test_names_are_files_that_go_with_their_container(engine, store):
    one = {"network": "n1", "names": ["a"], "ipv4": "10.0.0.2", "ipv6": "", "links": []}
    engine.names_write(store, "c", one)
    engine.names_write(store, "d", {**one, "names": []})
    path = store.run_path("networks", "n1", "c")
    assert b'"10.0.0.2"' in engine.file_read(path)
    engine.names_remove(store, "c")
    engine.names_remove(store, "c")
    with pytest.raises(FileNotFoundError):
        engine.file_read(path)
