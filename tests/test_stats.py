"""stats: samples of a container, one, two, or a stream."""

from __future__ import annotations

import json
import os

import conftest
import engine
import pytest
from container_help import NEVER, bare_box, box  # noqa: F401
from test_containers import LOOP

CPU = {"cpu_usage": {"total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0},
       "throttling_data": {"periods": 0, "throttled_periods": 0, "throttled_time": 0}}
LISTS = ("io_service_bytes_recursive", "io_serviced_recursive", "io_queue_recursive",
         "io_service_time_recursive", "io_wait_time_recursive", "io_merged_recursive",
         "io_time_recursive", "sectors_recursive")


def test_the_machine_s_times():
    text = "cpu  1 2 3 4 5 6 7 100 200 300\ncpu0 1 0 0\ncpu1 0 2 3\nintr 5 6\ncpu9 1\n"
    tick = 10**9 // os.sysconf("SC_CLK_TCK")
    assert engine.stats_system(text) == (28 * tick, 2)


class V2:
    """A cgroup of version 2 that says what it is told."""

    def __init__(self, memory):
        self._memory = memory

    def v1(self, controller):
        return None

    def stats(self):
        return {
            "cpu_stats": {"cpu_usage": {"total_usage": 5000, "usage_in_kernelmode": 2000,
                                        "usage_in_usermode": 3000},
                          "throttling_data": CPU["throttling_data"]},
            "memory_stats": self._memory,
            "pids_stats": {"current": 3, "limit": 2**64 - 1},
            "blkio_stats": {"io_service_bytes_recursive": [], "io_serviced_recursive": []}}


def sample_of(bare_box, monkeypatch, memory):  # noqa: F811
    id = bare_box.create("true", name="web")
    c = engine.record_get(bare_box.store, id)
    c.state = "running"
    monkeypatch.setattr(engine, "cgroup_paths", lambda name: V2(memory))
    return engine.stats_sample(c)


def test_version_2(bare_box, monkeypatch):  # noqa: F811
    memory = {"usage": 4096, "limit": 2**64 - 1, "failcnt": 0,
              "stats": {"anon": 10, "inactive_file": 7, "percpu": 9}}
    seen = sample_of(bare_box, monkeypatch, memory)
    assert seen["memory_stats"]["usage"] == 4096
    assert seen["memory_stats"]["limit"] == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert "failcnt" not in seen["memory_stats"] and "max_usage" not in seen["memory_stats"]
    kept = seen["memory_stats"]["stats"]
    assert (kept["anon"], kept["inactive_file"], kept["slab"]) == (10, 7, 0)
    assert "percpu" not in kept and list(kept) == sorted(kept) and len(kept) == 31
    assert seen["blkio_stats"] == dict.fromkeys(LISTS)
    assert seen["cpu_stats"]["cpu_usage"]["total_usage"] == 5000
    assert seen["pids_stats"] == {"current": 3, "limit": 2**64 - 1}


def test_no_memory_controller(bare_box, monkeypatch):  # noqa: F811
    assert sample_of(bare_box, monkeypatch, {})["memory_stats"] == {}


def test_who_does_not_run(bare_box):  # noqa: F811
    id = bare_box.create("true", name="web")
    zeros = {
        "name": "/web", "id": id, "read": NEVER, "preread": NEVER, "pids_stats": {},
        "blkio_stats": dict.fromkeys(LISTS), "num_procs": 0, "storage_stats": {},
        "cpu_stats": CPU, "precpu_stats": CPU, "memory_stats": {}}
    assert bare_box.client.get("/containers/web/stats", {"stream": 0}) == zeros
    assert bare_box.client.get("/containers/web/stats", {"stream": 0, "one-shot": 1}) == zeros
    with pytest.raises(engine.NotFound, match="No such container: none"):
        bare_box.client.get("/containers/none/stats", {"stream": 0})
    with pytest.raises(engine.NotFound, match="No such container: none"):
        list(bare_box.client.stream("GET", "/containers/none/stats"))


@pytest.mark.root
def test_one_and_two_samples(box):  # noqa: F811
    box.containers.start(box.create("sh", "-c", "while :; do :; done", name="web",
                                    host={"Memory": 64 << 20}))
    once = box.client.get("/containers/web/stats", {"stream": 0, "one-shot": 1})
    assert (once["preread"], once["precpu_stats"]) == (NEVER, CPU)
    assert once["read"] > NEVER and once["pids_stats"]["current"] == 1
    two = box.client.get("/containers/web/stats", {"stream": 0})
    now, before = two["cpu_stats"], two["precpu_stats"]
    assert once["read"] < two["preread"] < two["read"]
    used = now["cpu_usage"]["total_usage"] - before["cpu_usage"]["total_usage"]
    system = now["system_cpu_usage"] - before["system_cpu_usage"]
    assert now["online_cpus"] == before["online_cpus"] == os.cpu_count()
    assert 0 < used <= 1.5e9 and 0.5e9 < system / now["online_cpus"] < 2e9
    memory = two["memory_stats"]
    if memory:                              # this host may have no memory controller
        assert 0 < memory["usage"] < memory["limit"] == 64 << 20
        assert list(memory["stats"]) == sorted(memory["stats"])
    assert list(two["blkio_stats"]) == list(LISTS)


@pytest.mark.root
def test_a_stream(box, monkeypatch):  # noqa: F811
    monkeypatch.setattr(engine, "STATS_INTERVAL", 0.05)
    id = box.create(*LOOP, name="web")
    box.containers.start(id)
    stream = box.client.stream("GET", "/containers/web/stats")
    first, second = (json.loads(next(stream)) for _ in range(2))
    assert first["preread"] == NEVER and first["precpu_stats"] == CPU
    assert second["preread"] == first["read"] and second["precpu_stats"] == first["cpu_stats"]
    # It goes on over the end and the next start, and ends with the container.
    box.containers.kill(id)
    conftest.wait_for(lambda: json.loads(next(stream))["read"] == NEVER)
    box.containers.start(id)
    conftest.wait_for(lambda: json.loads(next(stream))["read"] > NEVER)
    box.containers.remove(id, force=True)
    rest = list(stream)
    assert len(rest) <= 2


def test_traffic_of_interfaces_without_the_loopback():
    found = engine.links_stats(os.getpid())
    assert "lo" not in found
    for row in found.values():
        assert set(row) == {f"{way}_{what}" for way in ("rx", "tx") for what in engine.STATS_LINK}
    assert engine.links_stats(1 << 30) == {}
