"""monitor: one watcher per container; driven through the built file and its own protocol."""

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time

import pytest
from conftest import alive, descendants, launchers_of, processes, wait_for

pytestmark = pytest.mark.root

NONE = ("--network", "none")


@pytest.fixture
def store(engine, busybox):
    return engine.Store(busybox.roots.data, busybox.roots.run)


def monitors(cli):
    return [pid for pid, stat in descendants().items() if stat[0] == "engine:monitor"]


def state(cli, id):
    return cli("inspect", "-f", "{{json .State}}", id).ok().json()


def run(cli, *args):
    return cli("run", "-d", *NONE, *args).ok().out.strip()


def test_it_is_one_process_and_ends_with_its_container(busybox):
    id = run(busybox, "busybox", "sleep", "60")
    (pid,) = monitors(busybox)
    first = state(busybox, id)
    assert first["Running"] and first["Status"] == "running" and alive(first["Pid"])
    busybox("kill", id).ok()
    wait_for(lambda: not alive(pid), what="the monitor's end")
    last = state(busybox, id)
    assert (last["Status"], last["ExitCode"], last["Pid"]) == ("exited", 137, 0)
    assert first["StartedAt"] == last["StartedAt"] < last["FinishedAt"]
    assert os.listdir(busybox.roots.run + "/containers/" + id).count("monitor.sock") == 0


def test_its_death_is_the_containers_and_is_noticed_at_once(busybox):
    id = run(busybox, "busybox", "sleep", "60")
    payload = state(busybox, id)["Pid"]
    (pid,) = monitors(busybox)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not alive(payload), what="the payload's end")
    wait_for(lambda: state(busybox, id)["Status"] == "exited", what="the repair")
    last = state(busybox, id)
    assert (last["ExitCode"], last["Error"]) == (137, "monitor died")
    assert busybox("start", id).ok().out.strip() == id
    assert state(busybox, id)["Running"]


def test_its_death_without_a_launcher_is_repaired_by_the_next_command(busybox):
    id = run(busybox, "busybox", "sleep", "60")
    payload = state(busybox, id)["Pid"]
    for pid in launchers_of(busybox.roots.run) + monitors(busybox):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not alive(payload), what="the payload's end")
    assert state(busybox, id)["Status"] == "exited"
    assert state(busybox, id)["ExitCode"] == 137
    assert busybox("ps", "-q").ok().out == ""


def test_an_exec_whose_monitor_was_killed_did_not_succeed(busybox):
    id = run(busybox, "busybox", "sleep", "60")
    asker = busybox.popen("exec", id, "sleep", "20")
    wait_for(lambda: "sleep 20" in busybox("top", id).out, what="the exec")
    for pid in monitors(busybox):
        os.kill(pid, signal.SIGKILL)
    assert asker.wait(30) in (1, 137)
    # It was the monitor's child and is ours now; until it is reaped its pid namespace stays.
    wait_for(lambda: [os.waitpid(pid, 0) for pid, (name, state, parent, _) in processes().items()
                      if (name, state, parent) == ("sleep", "Z", os.getpid())], what="its end")


def test_an_exec_whose_run_root_is_gone_did_not_succeed(busybox):
    id = run(busybox, "busybox", "sleep", "60")
    shutil.rmtree(busybox.roots.run)
    done = busybox("exec", id, "true")
    assert (done.code, done.out) == (126, f"container {id} is not running\r\n")
    busybox("rm", "-f", id).ok()


@pytest.mark.parametrize("root", ["/proc/nope", "/dev/null/x"])
def test_a_run_with_a_bad_root_leaves_nothing_in_the_other_one(busybox, root):
    before = os.listdir(busybox.roots.run + "/containers")
    for name in ("ENGINE_DATA_ROOT", "ENGINE_RUN_ROOT"):
        roots = {"ENGINE_DATA_ROOT": busybox.roots.data, "ENGINE_RUN_ROOT": busybox.roots.run,
                 name: root}
        words = [busybox.python, busybox.pyz, "run", "--rm", *NONE, "busybox", "true"]
        done = subprocess.run(words, capture_output=True, text=True, check=False,
                              env=busybox.environ(roots))
        assert done.returncode == 125 and f"cannot use {root}" in done.stderr
    assert os.listdir(busybox.roots.run + "/containers") == before


def private_kib(pid):
    with open(f"/proc/{pid}/smaps_rollup") as file:
        fields = dict(line.split(":", 1) for line in file.read().splitlines()[1:])
    return sum(int(fields[name].split()[0]) for name in ("Private_Clean", "Private_Dirty"))


def test_at_rest_it_has_little_for_itself(busybox):
    """It shares the launcher's pages, also those that it looked at; see section sharing."""
    id = run(busybox, "busybox", "sh", "-c", "seq 10000; exec sleep 60")
    for _ in range(3):
        busybox("exec", id, "true").ok()
    (pid,) = monitors(busybox)
    wait_for(lambda: private_kib(pid) < 1200, what="memory given back")
    assert busybox("exec", id, "echo", "well").ok().out == "well\n"
    assert busybox("logs", "--tail", "1", id).ok().out == "10000\n"
    assert not [name for name in os.listdir(busybox.roots.run) if "rehearsal" in name]
    for process in (pid, *launchers_of(busybox.roots.run)):
        held = [os.readlink(f"/proc/{process}/fd/{fd}") for fd in os.listdir(f"/proc/{process}/fd")]
        assert not [path for path in held if "rehearsal" in path]


def test_what_nobody_recorded_does_not_run(engine, store, busybox, monkeypatch):
    id = busybox("create", *NONE, "busybox", "touch", "/ran").ok().out.strip()

    def refuse(containers, c, born, again):
        assert alive(born["pid"])
        raise engine.EngineError("disk full")

    monkeypatch.setattr(engine.Containers, "_running", refuse)
    with pytest.raises(engine.EngineError, match="disk full"):
        engine.Engine(store).containers.start(id)
    wait_for(lambda: not monitors(busybox), what="the monitor's end")
    last = state(busybox, id)
    assert (last["Status"], last["Error"], last["Pid"]) == ("created", "disk full", 0)
    assert "/ran" not in busybox("diff", id).ok().out
    assert busybox("start", "-a", id).ok().out == ""
    assert "A /ran" in busybox("diff", id).ok().out


def test_one_that_is_expected_in_vain_leaves_nothing(engine, store, busybox):
    assert busybox("run", *NONE, "nosuch", "true").code == 125
    busybox("run", *NONE, "--name", "one", "busybox", "true").ok()
    assert busybox("run", *NONE, "--name", "one", "busybox", "true").code == 125
    wait_for(lambda: not monitors(busybox), what="the monitors' end")
    (id,) = busybox("ps", "-aq", "--no-trunc").ok().out.split()
    assert set(os.listdir(busybox.roots.run + "/containers")) <= {id}


def test_the_expected_one_tells_events_of_the_container(busybox):
    busybox("run", *NONE, "--name", "one", "-l", "k=v", "busybox", "true").ok()
    seen = busybox("events", "--since", "60s", "--until", "0s", "-f", "container=one",
                   "--format", "{{.Action}} {{.Actor.Attributes.name}} {{.Actor.Attributes.k}}")
    assert seen.ok().out.split("\n")[:-1] == [
        f"{action} one v" for action in ("create", "attach", "start", "die")]


def test_its_death_removes_a_container_that_wanted_that(busybox):
    id = run(busybox, "--rm", "busybox", "sleep", "60")
    (pid,) = monitors(busybox)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: busybox("ps", "-aq").ok().out == "", what="the removal")
    assert not os.path.exists(busybox.roots.data + "/containers/" + id)


def test_two_starts_at_once_have_one_winner(busybox):
    id = busybox("create", *NONE, "busybox", "sleep", "60").ok().out.strip()
    both = [busybox.popen("start", id) for _ in range(4)]
    outs = [one.communicate(timeout=30) for one in both]
    assert [one.returncode for one in both] == [0] * 4, outs
    assert len(monitors(busybox)) == 1
    removes = [busybox.popen("rm", "-f", id) for _ in range(3)]
    outs = [one.communicate(timeout=30) for one in removes]
    assert outs.count((id.encode() + b"\n", b"")) >= 1, outs
    assert busybox("ps", "-aq").ok().out == ""


def test_an_armed_monitor_leaves_with_its_last_client(engine, busybox, store):
    id = busybox("create", *NONE, "busybox", "true").out.strip()
    ours, theirs = socket.socketpair()
    engine.monitor_call(
        store, id, {"verb": "attach", "stdout": True}, [theirs.fileno()], start=True
    )
    theirs.close()
    (pid,) = monitors(busybox)
    assert engine.monitor_call(store, id, {"verb": "hello"}) == {
        "ok": True,
        "pid": pid,
        "state": "armed",
    }
    ours.close()
    wait_for(lambda: not alive(pid), what="the armed monitor's end")
    assert state(busybox, id)["Status"] == "created"
    with pytest.raises(engine.NoMonitor):
        engine.monitor_call(store, id, {"verb": "hello"})


@pytest.mark.parametrize("condition", ["next-exit", "not-running", "removed"])
def test_waiting(engine, busybox, store, condition):
    id = busybox("create", "--rm", *NONE, "busybox", "sh", "-c", "exit 9").out.strip()
    ours, theirs = socket.socketpair()
    engine.monitor_call(
        store, id, {"verb": "wait", "condition": condition}, [theirs.fileno()], start=True
    )
    theirs.close()
    busybox("start", id).ok()
    assert json.loads(ours.recv(1000)) == {"StatusCode": 9}
    assert ours.recv(10) == b""
    ours.close()
    assert busybox("ps", "-aq").ok().out == ""


def test_who_waits_for_the_removal_hears_of_it_only_then(engine, busybox, store):
    id = busybox("create", *NONE, "busybox", "sh", "-c", "exit 4").out.strip()
    ours, theirs = socket.socketpair()
    engine.monitor_call(
        store, id, {"verb": "wait", "condition": "removed"}, [theirs.fileno()], start=True
    )
    theirs.close()
    busybox("start", id).ok()
    busybox("wait", id).ok()
    ours.settimeout(0.2)
    with pytest.raises(TimeoutError):
        ours.recv(100)
    busybox("rm", id).ok()
    ours.settimeout(5)
    assert json.loads(ours.recv(100)) == {"StatusCode": 4}
    ours.close()


def test_stop_is_a_signal_then_a_kill(busybox):
    trap = "trap 'echo got TERM; exit 5' TERM; while :; do sleep 0.05; done"
    id = run(busybox, "busybox", "sh", "-c", trap)
    time.sleep(0.2)
    busybox("stop", id).ok()
    assert state(busybox, id)["ExitCode"] == 5
    assert busybox("logs", id).ok().out == "got TERM\n"
    id = run(busybox, "busybox", "sh", "-c", "trap '' TERM; while :; do sleep 0.05; done")
    time.sleep(0.2)
    begin = time.monotonic()
    busybox("stop", "-t", "1", id).ok()
    assert 0.9 < time.monotonic() - begin < 5
    assert state(busybox, id)["ExitCode"] == 137


def test_pause_holds_everything_and_kill_frees(busybox):
    id = run(busybox, "busybox", "sh", "-c", "while :; do date +%s%N > /tmp/now; sleep 0.02; done")
    busybox("pause", id).ok()
    assert state(busybox, id)["Status"] == "paused"
    refused = busybox("exec", id, "true")
    assert refused.code == 1 and "is paused" in refused.err
    assert busybox("pause", id).code == 1
    busybox("unpause", id).ok()
    assert busybox("exec", id, "true").code == 0
    busybox("pause", id).ok()
    busybox("kill", id).ok()
    wait_for(
        lambda: state(busybox, id)["Status"] == "exited", what="the end of a killed paused one"
    )
    assert state(busybox, id)["ExitCode"] == 137


def test_the_end_of_the_first_process_is_everybodys(busybox):
    id = run(busybox, "busybox", "sh", "-c", "sleep 1000 & sleep 2000 & sleep 0.3")
    begin = time.monotonic()
    assert busybox("wait", id).ok().out == "0\n"
    assert time.monotonic() - begin < 10
    assert not [pid for pid in descendants() if b"sleep\x001000" in cmdline(pid)]


def test_the_end_with_a_shared_pid_namespace_too(busybox):
    id = run(busybox, "--pid", "host", "busybox", "sh", "-c", "sleep 1234 & sleep 0.3")
    busybox("wait", id).ok()
    wait_for(
        lambda: not [pid for pid in descendants() if b"sleep\x001234" in cmdline(pid)],
        what="the end of the background process",
    )


def cmdline(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return b""


def test_exec_has_its_own_streams_and_code(busybox):
    id = run(busybox, "busybox", "sleep", "60")
    done = busybox("exec", "-i", id, "sh", "-c", "cat; echo err >&2; exit 3", input=b"hello")
    assert (done.code, done.out, done.err) == (3, "hello", "err\n")
    assert busybox("exec", id, "no-such-program").code == 127
    assert busybox("exec", id, "/etc/passwd").code == 126
    done = busybox(
        "exec", "-e", "A=b", "-w", "/tmp", "-u", "user", id, "sh", "-c", "id -u; pwd; echo $A $HOME"
    ).ok()
    assert done.lines() == ["1000", "/tmp", "b /home/user"]
    busybox("exec", "-d", id, "sh", "-c", "sleep 0.1; echo done > /tmp/flag").ok()
    wait_for(
        lambda: busybox("exec", id, "cat", "/tmp/flag").out == "done\n", what="the detached exec"
    )


def test_forty_execs_at_once(busybox):
    id = run(busybox, "busybox", "sleep", "60")
    results = []

    def one(number):
        results.append((number, busybox("exec", id, "echo", str(number)).ok().out.strip()))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(40)]
    for at in range(0, 40, 8):
        for thread in threads[at : at + 8]:
            thread.start()
        for thread in threads[at : at + 8]:
            thread.join()
    assert sorted(results) == [(number, str(number)) for number in range(40)]


def test_unknown_verbs_and_states_are_refused(engine, busybox, store):
    id = run(busybox, "busybox", "sleep", "60")
    with pytest.raises(engine.InvalidParameter, match="unknown verb fly"):
        engine.monitor_call(store, id, {"verb": "fly"})
    with pytest.raises(engine.Conflict):
        engine.monitor_call(store, id, {"verb": "unpause"})
    with pytest.raises(engine.Conflict):
        engine.monitor_call(store, id, {"verb": "start", "plan": {}})
