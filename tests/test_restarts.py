"""restarts: policies and back-off as functions, and containers that come back."""

from __future__ import annotations

import os
import signal
import time

import conftest
import engine
import pytest
from container_help import NEVER, bare_box, box  # noqa: F401
from test_containers import LOOP

NAMES = ("no", "always", "unless-stopped", "on-failure")


def policy(name, most=0):
    return {"Name": name, "MaximumRetryCount": most}


def test_who_starts_again():
    for code in (0, 1, 137, 255):
        for count in (0, 1, 5):
            for stopped in (False, True):
                asked = {"code": code, "count": count, "stopped": stopped}
                wanted = [engine.restart_wanted(policy(name), **asked) for name in NAMES]
                assert wanted == [False, True, not stopped, code != 0], asked
                for most in (1, 2, 5):
                    limited = engine.restart_wanted(policy("on-failure", most), **asked)
                    assert limited == (code != 0 and count < most)


def test_the_back_off():
    delay, seen = 0.0, []
    for _ in range(14):
        delay = engine.restart_delay(delay, 0.0)
        seen.append(delay)
    assert seen == pytest.approx([0.1 * 2**n for n in range(10)] + [60.0] * 4)
    # Twice as long each time, never above the most, and anew after ten seconds.
    for before in seen:
        for ran in (0.0, 3.0, 9.999):
            assert engine.restart_delay(before, ran) == min(before * 2, 60.0)
        for ran in (10.0, 11.0, 1e6):
            assert engine.restart_delay(before, ran) == 0.1


def test_who_takes_over_waits_as_long():
    delay = 0.0
    for count in range(20):
        delay = engine.restart_delay(delay, 1.0)
        assert engine.restart_delay_after(count, 1.0) == pytest.approx(delay)
        assert engine.restart_delay_after(count, 10.0) == 0.1
    assert engine.restart_delay_after(10**9, 0.0) == 60.0


def test_the_state_of_a_policy():
    again = engine.Restarts(None, policy("on-failure", 2))
    assert again.ended(1, 0.5, False) and (again.count, again.pending) == (1, True)
    again.pending = False
    assert again.ended(1, 0.5, False) and again.count == 2
    again.pending = False
    assert not again.ended(1, 0.5, False) and not again.pending
    again = engine.Restarts(None, policy("always"))
    again.cancelled = True
    assert not again.ended(1, 0.5, False)
    assert engine.restarts_make(None, policy("no")) is None


@pytest.mark.parametrize(
    ("host", "text"),
    [
        (
            {"AutoRemove": True, "RestartPolicy": policy("always")},
            "can't create 'AutoRemove' container with restart policy",
        ),
        (
            {"RestartPolicy": policy("always", 2)},
            "invalid restart policy: maximum retry count can only be used with 'on-failure'",
        ),
        (
            {"RestartPolicy": policy("no", -1)},
            "invalid restart policy: maximum retry count can only be used with 'on-failure' and"
            " cannot be negative",
        ),
        (
            {"RestartPolicy": policy("on-failure", -1)},
            "invalid restart policy: maximum retry count cannot be negative",
        ),
        (
            {"RestartPolicy": policy("sometimes")},
            "invalid restart policy: unknown policy 'sometimes'; use one of 'no', 'always',"
            " 'on-failure', or 'unless-stopped'",
        ),
    ],
)
def test_what_docker_refuses(bare_box, host, text):  # noqa: F811
    with pytest.raises(engine.InvalidParameter) as refused:
        bare_box.create("true", host=host)
    assert str(refused.value) == text


# ---- containers that come back


def state(box, id):  # noqa: F811
    return box.inspect(id)["State"]["Status"]


def started(box, *command, most=0, policy_name="always", name="web", **config):  # noqa: F811
    id = box.create(
        *command, name=name, host={"RestartPolicy": policy(policy_name, most)}, **config
    )
    box.containers.start(id)
    return id


@pytest.mark.root
def test_on_failure_gives_up(box):  # noqa: F811
    id = started(box, "sh", "-c", "echo run; exit 3", policy_name="on-failure", most=2)
    conftest.wait_for(lambda: state(box, id) == "exited")
    seen = box.inspect(id)
    assert (seen["RestartCount"], seen["State"]["ExitCode"]) == (2, 3)
    assert box.logs(id).count(b"run") == 3
    assert box.actions() == ["create", *["start", "die"] * 3]
    # A start by the user begins anew.
    box.containers.start(id)
    conftest.wait_for(lambda: state(box, id) == "exited" and box.inspect(id)["RestartCount"] == 2)
    assert box.logs(id).count(b"run") == 6


@pytest.mark.root
def test_on_failure_leaves_a_success_alone(box):  # noqa: F811
    id = started(box, "true", policy_name="on-failure")
    conftest.wait_for(lambda: state(box, id) == "exited")
    assert box.inspect(id)["RestartCount"] == 0


@pytest.mark.root
def test_a_container_that_waits_for_its_restart(box):  # noqa: F811
    id = started(box, "sh", "-c", "exit 7")
    conftest.wait_for(lambda: box.inspect(id)["RestartCount"] >= 4)  # it waits 0.8 s now
    conftest.wait_for(lambda: state(box, id) == "restarting")
    seen = box.inspect(id)["State"]
    assert (seen["Running"], seen["Restarting"], seen["Pid"], seen["ExitCode"]) == (
        True, True, 0, 7,
    )
    assert seen["FinishedAt"] > seen["StartedAt"] > NEVER
    (row,) = box.containers.list()
    assert (row["State"], row["Status"]) == (
        "restarting", "Restarting (7) Less than a second ago",
    )
    assert [c["Id"] for c in box.containers.list(filters={"status": ["restarting"]})] == [id]
    text = f"Container {id} is restarting, wait until the container is running"
    for refused in (
        lambda: engine.exec_create(box.engine, "web", {"Cmd": ["true"]}),
        lambda: box.containers.pause("web"),
        lambda: box.containers.top("web"),
    ):
        with pytest.raises(engine.Conflict) as failure:
            refused()
        assert str(failure.value) == text
    with pytest.raises(engine.Conflict, match="container web is restarting, wait until"):
        box.attach("web")
    with pytest.raises(engine.NotModified):
        box.containers.start("web")
    with pytest.raises(engine.Conflict, match='cannot remove container "web": container is rest'
                       "arting: stop the container before removing or force remove"):
        box.containers.remove("web")
    box.containers.stop("web")
    seen = box.inspect(id)
    assert (seen["State"]["Status"], seen["State"]["Running"], seen["State"]["ExitCode"]) == (
        "exited", False, 7,
    )
    count = seen["RestartCount"]
    time.sleep(1.2)
    assert (state(box, id), box.inspect(id)["RestartCount"]) == ("exited", count)
    assert box.actions()[-2:] == ["die", "stop"]


@pytest.mark.root
@pytest.mark.parametrize("name", ["always", "unless-stopped"])
@pytest.mark.parametrize("how", ["stop", "kill", "signal"])
def test_who_is_stopped_stays_stopped(box, name, how):  # noqa: F811
    id = started(box, "sh", "-c", "trap 'exit 1' TERM; echo ready; while :; do sleep 0.02; done",
                 policy_name=name)
    conftest.wait_for(lambda: b"ready" in box.logs(id))
    if how == "stop":
        box.containers.stop(id)
    else:
        box.containers.kill(id, "TERM" if how == "signal" else "")
    conftest.wait_for(lambda: state(box, id) == "exited")
    time.sleep(0.3)
    assert (state(box, id), box.inspect(id)["RestartCount"]) == ("exited", 0)
    box.containers.start(id)
    os.kill(box.containers.find(id).pid, signal.SIGKILL)
    conftest.wait_for(lambda: box.inspect(id)["RestartCount"] == 1 and state(box, id) == "running")


@pytest.mark.root
def test_another_signal_than_the_stop_signal(box):  # noqa: F811
    """Sent by the user it counts as a stop for `unless-stopped`, but `always` goes on."""
    loop = ("sh", "-c", "trap 'exit 4' USR1; echo ready; while :; do sleep 0.02; done")
    for name, count in (("always", 1), ("unless-stopped", 0)):
        id = started(box, *loop, policy_name=name, name=name, StopSignal="SIGQUIT")
        conftest.wait_for(lambda id=id: b"ready" in box.logs(id))
        box.containers.kill(id, "USR1")
        conftest.wait_for(lambda id=id, count=count: box.inspect(id)["RestartCount"] == count
                          and state(box, id) == ("running" if count else "exited"))


@pytest.mark.root
def test_waits_with_restarts(box):  # noqa: F811
    id = started(box, "sh", "-c", "sleep 0.3; exit 5")
    assert box.client.wait(id, "next-exit").result()["StatusCode"] == 5
    gone = box.client.wait(id, "removed")
    # Between two runs `not-running` waits for the next end, as a restarting container runs.
    conftest.wait_for(lambda: state(box, id) == "restarting")
    count = box.inspect(id)["RestartCount"]
    assert box.client.wait(id, "not-running").result()["StatusCode"] == 5
    assert box.inspect(id)["RestartCount"] == count + 1
    box.containers.remove(id, force=True)
    assert gone.result()["StatusCode"] in (5, 137)


@pytest.mark.root
def test_a_wait_that_a_stop_ends(box):  # noqa: F811
    id = started(box, "sh", "-c", "exit 6")
    conftest.wait_for(lambda: box.inspect(id)["RestartCount"] >= 4)
    conftest.wait_for(lambda: state(box, id) == "restarting")
    waiter = box.client.wait(id, "not-running")
    box.containers.kill(id)
    assert waiter.result()["StatusCode"] == 6
    assert state(box, id) == "exited"


@pytest.mark.root
def test_restart_by_a_user_begins_anew(box):  # noqa: F811
    id = started(box, "sh", "-c", "sleep 0.05; exit 1")
    conftest.wait_for(lambda: box.inspect(id)["RestartCount"] >= 3)
    conftest.wait_for(lambda: state(box, id) == "restarting")
    box.containers.restart(id)
    assert box.inspect(id)["RestartCount"] <= 1
    conftest.wait_for(lambda: box.inspect(id)["RestartCount"] >= 2)


@pytest.mark.root
def test_what_cannot_be_started_again(box):  # noqa: F811
    id = started(box, "sh", "-c", "rm -f /gone; sleep 0.1; exit 9", name="one")
    layer = box.store.path("layers", "1")
    os.rename(layer, layer + "x")
    try:
        conftest.wait_for(lambda: state(box, id) == "exited")
        seen = box.inspect(id)["State"]
        assert seen["ExitCode"] == 9 and "No such file or directory" in seen["Error"]
    finally:
        os.rename(layer + "x", layer)


@pytest.mark.root
def test_an_attached_client_sees_one_run(box):  # noqa: F811
    out, _, code, id = box.run("sh", "-c", "echo one; exit 2", host={
        "RestartPolicy": policy("on-failure", 1)})
    assert (out, code) == (b"one\n", 2)
    conftest.wait_for(lambda: state(box, id) == "exited")
    assert box.logs(id) .count(b"one") == 2


def monitor_pid(box, id):  # noqa: F811
    return engine.monitor_call(box.store, id, {"verb": "hello"})["pid"]


@pytest.mark.root
def test_a_monitor_that_is_killed(box):  # noqa: F811
    id = started(box, *LOOP)
    first = monitor_pid(box, id)
    os.kill(first, signal.SIGKILL)
    conftest.wait_for(
        lambda: engine.record_get(box.store, id).restarts == 1 and state(box, id) == "running"
    )
    assert monitor_pid(box, id) != first
    assert box.actions()[-2:] == ["die", "start"]
    # The new one knows the policy and the count.
    os.kill(box.containers.find(id).pid, signal.SIGKILL)
    conftest.wait_for(lambda: box.inspect(id)["RestartCount"] == 2 and state(box, id) == "running")


@pytest.mark.root
def test_a_monitor_that_is_killed_while_it_waits(box):  # noqa: F811
    id = started(box, "sh", "-c", "exit 7")
    conftest.wait_for(lambda: box.inspect(id)["RestartCount"] >= 4)
    conftest.wait_for(lambda: state(box, id) == "restarting")
    count = box.inspect(id)["RestartCount"]
    os.kill(monitor_pid(box, id), signal.SIGKILL)
    conftest.wait_for(lambda: box.inspect(id)["RestartCount"] > count, 5)
    conftest.wait_for(lambda: state(box, id) == "restarting")
    box.containers.stop(id)
    assert state(box, id) == "exited"
