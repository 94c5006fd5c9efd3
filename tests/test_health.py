"""health: the state machine as functions, and checks that run beside containers."""

from __future__ import annotations

import itertools
import os
import random
import signal
import time

import conftest
import engine
import pytest
from container_help import NEVER, bare_box, box  # noqa: F401
from test_containers import LOOP

SECOND = 10**9
STATES = ("starting", "healthy", "unhealthy")


def after(status, streak, code, early=False, retries=3):
    return engine.health_after(status, streak, code=code, early=early, retries=retries)


def test_one_success_is_health():
    for status, streak, early in itertools.product(STATES, (0, 2, 9), (True, False)):
        assert after(status, streak, 0, early) == ("healthy", 0)


def test_failures_in_a_row():
    """Whatever the results: unhealthy after `retries` failures that count, else as before."""
    draw = random.Random(7)
    for _ in range(500):
        retries = draw.randint(1, 5)
        grace = draw.randint(0, 4)  # so many checks begin in the start period
        status, streak, row = "starting", 0, 0
        for turn in range(20):
            code = draw.choice((0, 1, 2, -1, 137))
            early = turn < grace
            counts = not (early and status == "starting")
            row = 0 if code == 0 else row + counts
            before = status
            status, streak = after(status, streak, code, early, retries)
            assert streak == row
            if code == 0:
                assert status == "healthy"
            else:
                assert status == ("unhealthy" if counts and row >= retries else before)


def test_the_time_between_checks():
    plan = {"Interval": 30, "StartInterval": 5, "StartPeriod": 100}
    for status, ran in itertools.product(STATES, (0, 50, 99, 100, 10**6)):
        expected = 5 if status == "starting" and ran < 100 else 30
        assert engine.health_pause(plan, status, ran) == expected


@pytest.mark.parametrize(
    ("check", "shell", "words"),
    [
        (None, None, []),
        ([], None, []),
        (["NONE"], None, []),
        (["CMD", "a", "b c"], None, ["a", "b c"]),
        (["CMD-SHELL", "a b"], None, ["/bin/sh", "-c", "a b"]),
        (["CMD-SHELL", "a b"], ["bash", "-xc"], ["bash", "-xc", "a b"]),
        (["ODD", "a"], None, []),
    ],
)
def test_what_a_check_runs(check, shell, words):
    config = {"Healthcheck": None if check is None else {"Test": check}, "Shell": shell}
    assert engine.health_words(config) == words


def test_what_is_kept_of_output():
    out = engine.HealthOutput()
    out.write(1, b"a" * 4000)
    out.write(2, b"b" * 96)
    out.close()
    assert out.text() == "a" * 4000 + "b" * 96
    out.write(1, b"\xff")
    assert out.text().endswith("b...") and len(out.text()) == 4099


@pytest.mark.parametrize("field", ["Interval", "Timeout", "StartPeriod", "StartInterval"])
def test_what_docker_refuses(bare_box, field):  # noqa: F811
    check = {"Test": ["CMD", "true"], field: 999999}
    text = f"{field} in Healthcheck cannot be less than 1ms"
    with pytest.raises(engine.InvalidParameter, match=text):
        bare_box.create("true", Healthcheck=check)


def test_before_the_first_start(bare_box):  # noqa: F811
    id = bare_box.create("true", Healthcheck={"Test": ["CMD", "true"]})
    assert "Health" not in bare_box.inspect(id)["State"]
    assert bare_box.containers.list(everything=True, filters={"health": ["none"]})


def test_after_a_reboot_there_is_no_record(bare_box):  # noqa: F811
    id = bare_box.create("true", Healthcheck={"Test": ["CMD", "true"]})
    assert engine.record_move(bare_box.store, id, ("created",), "exited", started=5, finished=6)
    assert bare_box.inspect(id)["State"]["Health"] == {
        "Status": "unhealthy", "FailingStreak": 0, "Log": [],
    }


# ---- checks that run


def check(*command, **more):
    return {"Test": ["CMD-SHELL", *command], "Interval": 60 * 10**6, **more}


SLOW = {"Interval": SECOND}             # what comes right after a start is seen before a check ends


def started(box, check, *command, **config):  # noqa: F811
    id = box.create(*(command or LOOP), name="web", Healthcheck=check, **config)
    box.containers.start(id)
    return id


def health(box, id):  # noqa: F811
    return box.inspect(id)["State"]["Health"]


def statuses(box):  # noqa: F811
    return [text[15:] for text in box.actions() if text.startswith("health_status: ")]


@pytest.mark.root
def test_a_healthy_container(box):  # noqa: F811
    id = started(box, check("echo fine; echo also >&2"))
    conftest.wait_for(lambda: len(health(box, id)["Log"]) == 5)
    seen = health(box, id)
    assert (seen["Status"], seen["FailingStreak"]) == ("healthy", 0), seen
    for result in seen["Log"]:
        assert sorted(result["Output"].split()) == ["also", "fine"]
        assert (result["ExitCode"], result["End"] > result["Start"] > NEVER) == (0, True)
    starts = [result["Start"] for result in seen["Log"]]
    assert starts == sorted(starts)
    assert box.containers.list()[0]["Status"].endswith(" (healthy)")
    # The log keeps the last five.
    conftest.wait_for(lambda: health(box, id)["Log"][0]["Start"] > starts[0])
    assert len(health(box, id)["Log"]) == 5
    assert statuses(box) == ["healthy"]
    for status in ("healthy", "unhealthy", "starting", "none"):
        found = box.containers.list(filters={"health": [status]})
        assert [c["Id"] for c in found] == ([id] if status == "healthy" else [])


@pytest.mark.root
def test_before_the_first_check(box):  # noqa: F811
    id = started(box, check("true", **SLOW))
    assert health(box, id) == {"Status": "starting", "FailingStreak": 0, "Log": []}
    assert box.containers.list()[0]["Status"] == "Up Less than a second (health: starting)"
    assert box.containers.list(filters={"health": ["starting"]})


@pytest.mark.root
def test_the_execs_of_a_check(box):  # noqa: F811
    id = started(box, {"Test": ["CMD", "sh", "-c", "sleep 0.3"], "Interval": 50 * 10**6},
                 User="65534:65533")
    (exec_id,) = conftest.wait_for(lambda: box.inspect(id)["ExecIDs"])
    conftest.wait_for(lambda: box.client.get(f"/exec/{exec_id}/json")["Running"])
    seen = box.client.get(f"/exec/{exec_id}/json")
    assert (seen["Running"], seen["ContainerID"], seen["ProcessConfig"]) == (True, id, {
        "tty": False, "entrypoint": "sh", "arguments": ["-c", "sleep 0.3"], "privileged": False,
        "user": "65534:65533"})
    status = open(f"/proc/{seen['Pid']}/status").read()
    assert "\nUid:\t65534\t" in status and "\nGid:\t65533\t" in status
    conftest.wait_for(lambda: "healthy" in statuses(box))
    events = [event for event in engine.event_follow(box.store, 0, engine.time_now())
              if event["Action"].startswith("exec")][:3]
    assert [event["Action"] for event in events] == [
        "exec_create: sh -c sleep 0.3", "exec_start: sh -c sleep 0.3", "exec_die"]
    assert {event["Actor"]["Attributes"]["execID"] for event in events} == {exec_id}
    assert events[2]["Actor"]["Attributes"]["exitCode"] == "0"
    # Nothing piles up.
    assert len(box.inspect(id)["ExecIDs"] or []) <= 1


@pytest.mark.root
def test_an_unhealthy_container_that_recovers(box):  # noqa: F811
    id = started(box, check("test -e /tmp/good || { echo bad; exit 3; }", Retries=2))
    conftest.wait_for(lambda: health(box, id)["Status"] == "unhealthy")
    seen = health(box, id)
    assert seen["FailingStreak"] >= 2
    assert (seen["Log"][0]["ExitCode"], seen["Log"][0]["Output"]) == (3, "bad\n")
    assert box.containers.list()[0]["Status"].endswith(" (unhealthy)")
    cure = {"Cmd": ["sh", "-c", "mkdir -p /tmp; : > /tmp/good"]}
    exec_id = engine.exec_create(box.engine, id, cure)
    engine.exec_start(box.engine, exec_id, {"Detach": True}, None)
    conftest.wait_for(lambda: health(box, id)["Status"] == "healthy")
    assert health(box, id)["FailingStreak"] == 0
    conftest.wait_for(lambda: statuses(box) == ["unhealthy", "healthy"])


@pytest.mark.root
def test_a_check_that_takes_too_long(box):  # noqa: F811
    id = started(box, check("echo slow; sleep 60", Timeout=100 * 10**6, Retries=1))
    conftest.wait_for(lambda: health(box, id)["Log"])
    result = health(box, id)["Log"][0]
    assert result["ExitCode"] == -1
    assert result["Output"] == "Health check exceeded timeout (100ms): slow\n"
    assert health(box, id)["Status"] == "unhealthy"
    assert "exec_die" in box.actions()


@pytest.mark.root
def test_a_check_that_cannot_be_run(box):  # noqa: F811
    id = started(box, {"Test": ["CMD", "nothing-such"], "Interval": 50 * 10**6, "Retries": 1})
    conftest.wait_for(lambda: health(box, id)["Log"])
    result = health(box, id)["Log"][0]
    assert result["ExitCode"] == -1
    assert result["Output"] == (
        "OCI runtime exec failed: exec failed: unable to start container process: exec:"
        ' "nothing-such": executable file not found in $PATH: unknown')
    conftest.wait_for(lambda: len(health(box, id)["Log"]) == 3)
    assert not box.inspect(id)["ExecIDs"]


@pytest.mark.root
def test_much_output(box):  # noqa: F811
    id = started(box, check("head -c 100000 /dev/zero | tr '\\0' x"))
    conftest.wait_for(lambda: health(box, id)["Log"])
    assert health(box, id)["Log"][0]["Output"] == "x" * 4096 + "..."


@pytest.mark.root
def test_the_start_period(box):  # noqa: F811
    """Failures in it do not count, and checks are `StartInterval` apart until one succeeds."""
    id = started(box, {
        "Test": ["CMD-SHELL", "exit 1"], "Interval": 3600 * SECOND, "Retries": 1,
        "StartPeriod": 600 * SECOND, "StartInterval": 50 * 10**6})
    conftest.wait_for(lambda: len(health(box, id)["Log"]) == 5)
    seen = health(box, id)
    assert (seen["Status"], seen["FailingStreak"]) == ("starting", 0)
    assert statuses(box) == []


@pytest.mark.root
def test_pause_and_the_end(box):  # noqa: F811
    id = started(box, check("true", **SLOW))
    conftest.wait_for(lambda: health(box, id)["Status"] == "healthy")
    box.containers.pause(id)
    assert health(box, id)["Status"] == "unhealthy"
    assert box.containers.list()[0]["Status"].endswith("(Paused)")
    count = len(health(box, id)["Log"])
    assert count == 1
    box.containers.unpause(id)
    conftest.wait_for(lambda: health(box, id)["Status"] == "healthy")
    conftest.wait_for(lambda: statuses(box) == ["healthy", "healthy"])
    assert len(health(box, id)["Log"]) > count
    box.containers.kill(id)
    assert health(box, id)["Status"] == "unhealthy"
    last = health(box, id)["Log"]
    assert box.containers.list(everything=True, filters={"health": ["unhealthy"]})
    # Another start begins anew, with the log of before.
    box.containers.start(id)
    seen = health(box, id)
    assert (seen["Status"], seen["FailingStreak"], seen["Log"]) == ("starting", 0, last)
    conftest.wait_for(lambda: health(box, id)["Status"] == "healthy")
    conftest.wait_for(lambda: statuses(box) == ["healthy"] * 3)


@pytest.mark.root
def test_a_check_that_the_end_interrupts(box):  # noqa: F811
    id = started(box, check("sleep 60"))
    conftest.wait_for(lambda: box.inspect(id)["ExecIDs"])
    box.containers.kill(id)
    seen = health(box, id)
    assert (seen["Status"], seen["Log"]) == ("unhealthy", [])
    assert box.inspect(id)["ExecIDs"] is None


@pytest.mark.root
def test_a_check_that_a_pause_interrupts(box):  # noqa: F811
    id = started(box, check("sleep 0.5; exit 1", Retries=1))
    conftest.wait_for(lambda: box.inspect(id)["ExecIDs"])
    box.containers.pause(id)
    box.containers.unpause(id)
    conftest.wait_for(lambda: "exec_die" in box.actions())
    assert health(box, id)["Log"] == []
    conftest.wait_for(lambda: health(box, id)["Log"])
    assert health(box, id)["Log"][0]["ExitCode"] == 1


@pytest.mark.root
def test_checks_after_a_restart_by_policy(box):  # noqa: F811
    id = started(box, check("true"), "sh", "-c", "sleep 0.4; exit 1", HostConfig={
        "NetworkMode": "none", "RestartPolicy": {"Name": "always"}})
    conftest.wait_for(lambda: statuses(box) == ["healthy", "healthy"])
    assert box.inspect(id)["RestartCount"] >= 1


@pytest.mark.root
def test_the_image_says_how(box, monkeypatch):  # noqa: F811
    image = {**box.engine._images.config, "Healthcheck": check("echo image")}
    monkeypatch.setattr(type(box.engine._images), "config", image)
    id = started(box, {"Retries": 7})
    conftest.wait_for(lambda: health(box, id)["Log"])
    assert health(box, id)["Log"][0]["Output"] == "image\n"
    assert box.inspect(id)["Config"]["Healthcheck"] == {**check("echo image"), "Retries": 7}
    box.containers.remove(id, force=True)
    id = started(box, {"Test": ["NONE"]})
    assert "Health" not in box.inspect(id)["State"]


@pytest.mark.root
def test_a_check_whose_monitor_is_killed(box):  # noqa: F811
    id = started(box, check("sleep 60", **SLOW), HostConfig={
        "NetworkMode": "none", "RestartPolicy": {"Name": "always"}})
    (exec_id,) = conftest.wait_for(lambda: box.inspect(id)["ExecIDs"])
    conftest.wait_for(lambda: box.client.get(f"/exec/{exec_id}/json")["Running"])
    pid = box.client.get(f"/exec/{exec_id}/json")["Pid"]
    os.kill(engine.monitor_call(box.store, id, {"verb": "hello"})["pid"], signal.SIGKILL)
    conftest.wait_for(lambda: box.inspect(id)["State"]["Status"] == "running"
                      and box.inspect(id)["RestartCount"] == 1)
    conftest.wait_for(lambda: health(box, id)["Status"] == "starting")
    assert health(box, id) == {"Status": "starting", "FailingStreak": 0, "Log": []}
    assert exec_id not in (box.inspect(id)["ExecIDs"] or ())
    seen = box.client.get(f"/exec/{exec_id}/json")
    assert (seen["Running"], seen["ExitCode"]) == (False, 137)
    # This process is a subreaper, so the check is its child now, as it else is process 1's; the
    # container's first process is not gone before somebody has waited for that.
    os.waitpid(pid, 0)


@pytest.mark.root
def test_a_run_root_that_is_full(box):  # noqa: F811
    """The state cannot be written; the container lives on, and the next check is told."""
    id = started(box, check("true"))
    conftest.wait_for(lambda: health(box, id)["Status"] == "healthy")
    path = box.store.run_path("containers", id, "health")
    os.unlink(path)
    os.mkdir(path)                          # nothing can be renamed over it
    time.sleep(0.3)
    os.rmdir(path)
    conftest.wait_for(lambda: os.path.exists(path))
    assert health(box, id)["Status"] == "healthy"
    assert box.inspect(id)["State"]["Status"] == "running"
