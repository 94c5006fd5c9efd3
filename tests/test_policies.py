"""policies: updates of a restart policy, and what a daemon starts at its start."""

from __future__ import annotations

import os
import signal
import threading

import conftest
import engine
import pytest
from container_help import bare_box, box  # noqa: F401
from test_containers import LOOP
from test_restarts import NAMES, monitor_pid, policy, started, state


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
        ("InvalidParameter", {"Memory": 5}, "update --memory is not supported by this engine yet"),
        ("InvalidParameter", {"NanoCpus": 5}, "update --cpus is not supported by this engine yet"),
    ):
        with pytest.raises(getattr(engine, kind)) as refused:
            bare_box.client.post("/containers/web/update", {}, body)
        assert str(refused.value) == text
    with pytest.raises(engine.NotFound, match="No such container: none"):
        bare_box.client.post("/containers/none/update", {}, {"RestartPolicy": {"Name": "no"}})


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
