"""exhaustion: what is told when the memory of a container runs out."""

from __future__ import annotations

import contextlib
import os
import time

import engine
import pytest
from container_help import box  # noqa: F401

MIB = 1 << 20


class Watcher:
    """Stands for a monitor, and for its store."""

    id, main = "x", None

    def __init__(self):
        self.watched = {}
        self.cgroup = Group()
        self.store = self
        self.told = []

    @contextlib.contextmanager
    def write(self, durable):
        yield self

    def execute(self, statement, values):
        assert "oom_killed=1" in statement and values == ("x",)

    def emit(self, action, stdio):
        self.told.append(action)

    def watch(self, fd, events, call):
        self.watched[fd] = call

    def unwatch(self, fd):
        del self.watched[fd]


class Group:
    """Stands for a Cgroup of v2 whose kernel tells by a pipe."""

    def __init__(self):
        self.killed = 0
        self.read, self.write = os.pipe2(os.O_NONBLOCK)

    def v1(self, controller):
        return None

    def oom_count(self):
        return self.killed

    def oom_watch(self):
        return self.read


def test_each_death_is_told_once():
    monitor = Watcher()
    group = monitor.cgroup
    watch = engine.MemoryWatch(monitor, {})
    assert monitor.watched == {}
    watch.begin({"memory": {"limit": 7 * MIB}})
    for killed, known in ((0, 0), (1, 1), (1, 1), (2, 2)):
        group.killed = killed
        os.write(group.write, b"x")
        monitor.watched[group.read](1)
        assert len(monitor.told) == known
    monitor.watched[group.read](1)
    assert watch.end() is True
    assert (monitor.told, monitor.watched) == (["oom", "oom"], {})
    os.close(group.write)


def test_without_a_limit_it_is_counted_at_the_end():
    monitor = Watcher()
    watch = engine.MemoryWatch(monitor, {"memory": {"reservation": MIB}})
    monitor.cgroup.killed = 1
    assert (monitor.watched, watch.end(), monitor.told) == ({}, True, ["oom"])
    monitor.cgroup.killed = 0
    assert engine.MemoryWatch(monitor, {}).end() is False
    os.close(monitor.cgroup.read)
    os.close(monitor.cgroup.write)


@pytest.mark.root
def test_a_child_dies_and_the_container_lives(box):  # noqa: F811
    if "memory" not in engine.controllers_find():
        pytest.skip("no memory controller")
    script = "sh -c 'tail /dev/zero'; sleep 30"
    id = box.create("sh", "-c", script, host={"Memory": 16 * MIB, "MemorySwap": 16 * MIB})
    box.client.post(f"/containers/{id}/start")
    for _ in range(100):
        if box.inspect(id)["State"]["OOMKilled"]:
            break
        time.sleep(0.05)
    state = box.inspect(id)["State"]
    assert (state["OOMKilled"], state["Status"]) == (True, "running")
    assert "oom" in box.actions() and "die" not in box.actions()
    box.client.post(f"/containers/{id}/kill")
    state = box.inspect(id)["State"]
    assert (state["OOMKilled"], state["ExitCode"]) == (True, 137)
    box.client.post(f"/containers/{id}/start")
    assert box.inspect(id)["State"]["OOMKilled"] is False
