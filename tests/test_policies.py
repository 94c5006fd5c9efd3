"""policies: updates of limits and of a restart policy, and what a daemon starts at its start."""

from __future__ import annotations

import os
import pathlib
import signal
import threading
import time

import conftest
import engine
import pytest
from container_help import bare_box, box  # noqa: F401
from test_containers import LOOP
from test_restarts import NAMES, monitor_pid, policy, started, state

MIB = 1 << 20


def test_the_restart_policy(bare_box):  # noqa: F811
    id = bare_box.create("true", name="web")
    for name, most in (("always", 0), ("on-failure", 3), ("no", 0)):
        asked = {"Name": name, "MaximumRetryCount": most}
        assert bare_box.client.post("/containers/web/update", {}, {"RestartPolicy": asked}) == {
            "Warnings": None}
        assert bare_box.inspect(id)["HostConfig"]["RestartPolicy"] == asked
    assert bare_box.actions() == ["create", "update", "update", "update"]
    # An empty name changes nothing, nor do limits of 0.
    bare_box.client.post("/containers/web/update", {}, {
        "RestartPolicy": {"Name": ""}, "Memory": 0, "PidsLimit": None})
    assert bare_box.inspect(id)["HostConfig"]["RestartPolicy"]["Name"] == "no"


def test_what_is_refused(bare_box):  # noqa: F811
    id = bare_box.create("true", name="web", host={"AutoRemove": True})
    for kind, body, text in (
        ("Conflict", {"RestartPolicy": {"Name": "always"}},
         f"Cannot update container {id}: Restart policy cannot be updated because AutoRemove is"
         " enabled for the container"),
        ("InvalidParameter", {"RestartPolicy": {"Name": "odd"}},
         "invalid restart policy: unknown policy 'odd'; use one of 'no', 'always', 'on-failure',"
         " or 'unless-stopped'"),
        ("InvalidParameter", {"Memory": 5}, "Minimum memory limit allowed is 6MB"),
        ("InvalidParameter", {"OomKillDisable": True},
         "OomKillDisable cannot be changed by an update"),
    ):
        with pytest.raises(getattr(engine, kind)) as refused:
            bare_box.client.post("/containers/web/update", {}, body)
        assert str(refused.value) == text
    with pytest.raises(engine.NotFound, match="No such container: none"):
        bare_box.client.post("/containers/none/update", {}, {"RestartPolicy": {"Name": "no"}})


def test_limits_of_one_that_does_not_run(bare_box, monkeypatch):  # noqa: F811
    monkeypatch.setattr(engine, "limit_is_kept", lambda field: True)
    id = bare_box.create("true", name="web", host={"Memory": 64 * MIB})
    update = "/containers/web/update"
    body = {"Memory": 100 * MIB, "CpuShares": 512, "PidsLimit": 7, "NanoCpus": 500000000}
    assert bare_box.client.post(update, {}, body) == {"Warnings": None}
    host = bare_box.inspect(id)["HostConfig"]
    assert {**host, **body} == host and host["MemorySwap"] == 128 * MIB
    for body, text in (
        ({"Memory": 200 * MIB}, "Memory limit should be smaller than already set memoryswap limit,"
         " update the memoryswap at the same time"),
        ({"CpuQuota": 5000}, "Conflicting options: CPU Quota cannot be updated as NanoCPUs has"
         " already been set"),
    ):
        with pytest.raises(engine.Conflict) as refused:
            bare_box.client.post(update, {}, body)
        assert str(refused.value) == f"Cannot update container {id}: {text}"
    assert bare_box.inspect(id)["HostConfig"] == host
    bare_box.client.post(update, {}, {"PidsLimit": -1})
    assert bare_box.inspect(id)["HostConfig"]["PidsLimit"] == 0


@pytest.mark.root
def test_limits_of_one_that_runs(box):  # noqa: F811
    have = engine.controllers_find()
    if not {"cpu", "memory", "pids"} <= set(have):
        pytest.skip("controllers are missing")
    id = box.create("sleep", "60", name="web", host={"Memory": 64 * MIB})
    box.containers.start(id)
    group = engine.cgroup_paths(f"engine/{id}")

    def shown():
        files = (("memory.limit_in_bytes", "cpu.cfs_quota_us", "pids.max", "cpu.shares")
                 if group.v1("memory") else ("memory.max", "cpu.max", "pids.max", "cpu.weight"))
        paths = (group.v1(name) or group.v2 for name in ("memory", "cpu", "pids", "cpu"))
        return [pathlib.Path(path, file).read_text().split()[0]
                for path, file in zip(paths, files)]

    weights = ("1024", "512") if group.v1("cpu") else ("100", "59")
    free = "-1" if group.v1("cpu") else "max"
    assert shown() == [str(64 * MIB), free, "max", weights[0]]
    body = {"Memory": 100 * MIB, "CpuShares": 512, "PidsLimit": 7, "NanoCpus": 500000000}
    box.client.post("/containers/web/update", {}, body)
    assert shown() == [str(100 * MIB), "50000", "7", weights[1]]
    box.client.post("/containers/web/pause")
    box.client.post("/containers/web/update", {}, {"PidsLimit": 0})
    assert shown()[2] == "max"
    box.client.post("/containers/web/unpause")
    box.client.post("/containers/web/restart", {"t": 0})
    assert shown() == [str(100 * MIB), "50000", "max", weights[1]]
    assert box.actions().count("update") == 2
    kill = box.inspect(id)["HostConfig"]["OomKillDisable"]
    assert kill is (False if group.v1("memory") else None)


def _disk_of(path):
    """The node of the whole disk that a path lies on, or None."""
    number = os.stat(path).st_dev
    at = os.path.realpath(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    at = os.path.dirname(at) if os.path.exists(at + "/partition") else at
    node = "/dev/" + os.path.basename(at)
    return node if os.path.exists(at + "/dev") and os.path.exists(node) else None


@pytest.mark.root
@pytest.mark.parametrize(("field", "rate"), [("BlkioDeviceWriteBps", 1 << 20),
                                             ("BlkioDeviceWriteIOps", 6)])
def test_a_disk_is_written_to_as_fast_as_allowed(box, field, rate):  # noqa: F811
    disk = _disk_of(box.store.path("containers"))
    if "blkio" not in engine.controllers_find() or disk is None:
        pytest.skip("no disk, or no controller for it")
    words = ("dd", "if=/dev/zero", "of=/file", "bs=256k", "count=12", "oflag=direct")
    _, err, code, _ = box.run(*words)
    if code:
        pytest.skip(f"no O_DIRECT here: {err}")
    begin = time.monotonic()
    _, err, code, _ = box.run(*words, host={field: [{"Path": disk, "Rate": rate}]})
    assert code == 0, err
    assert time.monotonic() - begin > 1.5       # 3 MiB in 12 requests: 2 to 3 s


@pytest.mark.root
def test_what_the_kernel_refuses_is_undone(box):  # noqa: F811
    if engine.cgroup_paths("engine").v1("memory") is None:
        pytest.skip("v2 kills instead")
    script = "dd if=/dev/zero of=/dev/shm/x bs=1M count=20; echo; sleep 60"
    id = box.create("sh", "-c", script, name="web", host={"Memory": 64 * MIB})
    box.containers.start(id)
    conftest.wait_for(lambda: box.logs(id))
    path = pathlib.Path(engine.cgroup_paths(f"engine/{id}").v1("memory"), "memory.usage_in_bytes")
    conftest.wait_for(lambda: int(path.read_text()) > 20 * MIB)
    # Without swap nothing of a tmpfs can be given back.
    with pytest.raises(engine.EngineError, match="unable to set memory limit to 7340032") as told:
        box.client.post("/containers/web/update", {}, {"Memory": 7 * MIB, "MemorySwap": 7 * MIB})
    assert str(told.value).startswith(f"Cannot update container {id}: runc did not terminate")
    assert str(told.value).endswith("\n: unknown")
    assert box.inspect(id)["HostConfig"]["Memory"] == 64 * MIB


@pytest.mark.root
def test_a_policy_for_one_that_runs(box):  # noqa: F811
    id = box.create("sh", "-c", "sleep 0.3; exit 1", name="web")
    box.containers.start(id)
    box.client.post("/containers/web/update", {}, {"RestartPolicy": {"Name": "always"}})
    conftest.wait_for(lambda: box.inspect(id)["RestartCount"] >= 2)
    box.client.post("/containers/web/update", {}, {"RestartPolicy": {"Name": "no"}})
    conftest.wait_for(lambda: box.inspect(id)["State"]["Status"] == "exited")


def test_what_a_daemon_starts(bare_box, monkeypatch):  # noqa: F811
    """All but those that a user stopped; `always` even those, as dockerd does at its start."""
    asked = []
    monkeypatch.setattr(engine.Containers, "start", lambda self, id: asked.append(id))
    ids = {}
    for name in NAMES:
        for stopped in (0, 1):
            for code in (0, 255):
                id = bare_box.create("true", host={"RestartPolicy": policy(name)})
                ids[id] = (name, stopped, code)
                assert engine.record_move(
                    bare_box.store, id, ("created",), "exited", started=5, finished=6,
                    stopped=stopped, exit_code=code)
    bare_box.create("true", host={"RestartPolicy": policy("always")}, name="never")
    assert len(engine.containers_restore(bare_box.engine)) == len(asked)
    assert {ids[id] for id in asked} == {
        *(("always", stopped, code) for stopped in (0, 1) for code in (0, 255)),
        *(("unless-stopped", 0, code) for code in (0, 255)),
        *(("on-failure", stopped, 255) for stopped in (0, 1)),
    }


@pytest.mark.root
def test_after_a_reboot(box):  # noqa: F811
    id = started(box, *LOOP)
    c = box.containers.find(id)
    pid = monitor_pid(box, id)
    with box.store.write() as db:
        db.execute("UPDATE containers SET boot_id='before', restarts=3 WHERE id=?", (id,))
    os.kill(c.pid, signal.SIGSTOP)          # its monitor must not tell the end first
    os.kill(pid, signal.SIGSTOP)
    monitors_end = [c.pid, pid]
    # Nothing starts by itself, also not at a command.
    threading.Timer(0.5, lambda: [os.kill(one, signal.SIGKILL) for one in monitors_end]).start()
    assert box.containers.find(id).state == "exited"
    assert box.inspect(id)["State"]["ExitCode"] == 255
    assert engine.containers_restore(box.engine) == ["web"]
    assert (state(box, id), box.inspect(id)["RestartCount"]) == ("running", 0)
