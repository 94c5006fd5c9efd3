"""Whole commands through the built file: the main job, many at once, and what is left of it."""

import os
import signal
import time

import pytest
from conftest import alive, descendants, launchers_of, mounts_of, wait_for

pytestmark = pytest.mark.root

RUN = ("run", "--rm", "--network", "none", "busybox")


def many(cli, count, at_once, *command):
    """Exit codes of `count` commands, `at_once` of them at a time; output checked to be empty."""
    waiting = list(range(count))
    running, codes = [], []
    while waiting or running:
        while waiting and len(running) < at_once:
            waiting.pop()
            running.append(cli.popen(*command))
        first = running.pop(0)
        out, err = first.communicate(timeout=120)
        assert (out, err) == (b"", b""), (out, err)
        codes.append(first.returncode)
    return codes


def left_of(cli):
    """What a store that holds one image and no container must not hold."""
    data, run = cli.roots.data, cli.roots.run
    left = {
        "containers": os.listdir(data + "/containers"),
        "tmp": os.listdir(data + "/tmp"),
        "run": os.listdir(run + "/containers"),
        "mounts": sorted(mounts_of(cli.roots.base)),
        "monitors": [
            pid
            for pid, stat in descendants().items()
            if stat[0] in ("engine:monitor", "engine:init") and stat[1] != "Z"
        ],
    }
    return {kind: found for kind, found in left.items() if found}


def nothing_left(cli):
    wait_for(lambda: not left_of(cli), timeout=20, what=f"an empty store, not {left_of(cli)}")
    assert cli("ps", "-aq").ok().out == ""


@pytest.mark.slow
def test_forty_cold(busybox):
    """No launcher and no run root: everybody wants to be the first."""
    for pid in launchers_of(busybox.roots.run):
        os.kill(pid, signal.SIGKILL)
    import shutil

    shutil.rmtree(busybox.roots.run)
    assert many(busybox, 40, 40, *RUN, "true") == [0] * 40
    nothing_left(busybox)
    assert len(launchers_of(busybox.roots.run)) == 1


@pytest.mark.slow
def test_forty_warm_eight_at_a_time(busybox):
    busybox(*RUN, "true").ok()
    assert many(busybox, 40, 8, *RUN, "true") == [0] * 40
    nothing_left(busybox)


@pytest.mark.slow
def test_killing_the_launcher_in_the_middle_loses_none(busybox):
    busybox(*RUN, "true").ok()
    running = [busybox.popen(*RUN, "sh", "-c", "sleep 0.2; exit 7") for _ in range(24)]
    for _ in range(3):
        time.sleep(0.3)
        for pid in launchers_of(busybox.roots.run):
            os.kill(pid, signal.SIGKILL)
    outs = [one.communicate(timeout=60) for one in running]
    assert [out for out in outs if out != (b"", b"")] == []
    assert [one.returncode for one in running] == [7] * 24
    nothing_left(busybox)


def test_the_main_job(cli, busybox_rootfs):
    """An image from a tar, a container from it, its output and its exit code."""
    cli("import", "-c", 'CMD ["sh", "-c", "echo default; exit 3"]', busybox_rootfs, "mine:1").ok()
    done = cli("run", "--name", "first", "--network", "none", "mine:1")
    assert (done.code, done.out, done.err) == (3, "default\n", "")
    assert cli("logs", "first").ok().out == "default\n"
    assert cli("ps", "-a", "--format", "{{.Names}} {{.Status}}").out.startswith("first Exited (3)")
    assert cli("start", "-a", "first").code == 3
    assert cli("logs", "first").ok().out == "default\n" * 2
    refused = cli("rmi", "mine:1")
    assert refused.code == 1 and "(must force)" in refused.err
    cli("rm", "first").ok()
    cli("rmi", "mine:1").ok()
    assert cli("images", "-q").ok().out == ""
    nothing_left(cli)


def test_the_clis_death_is_not_the_containers(busybox):
    client = busybox.popen(
        "run", "--name", "survivor", "--network", "none", "busybox", "sleep", "60"
    )
    wait_for(lambda: busybox("ps", "-q").out, what="the container")
    client.kill()
    client.communicate()
    time.sleep(0.2)
    state = (
        busybox("inspect", "-f", "{{.State.Status}} {{.State.Pid}}", "survivor").ok().out.split()
    )
    assert state[0] == "running" and alive(int(state[1]))


def test_a_hangup_leaves_detached_containers_alone(busybox):
    import pty

    pid, master = pty.fork()
    if pid == 0:
        argv = busybox.argv(
            "run", "-d", "--name", "dd", "--network", "none", "busybox", "sleep", "60"
        )
        shell = " ".join(argv) + "; sleep 60"
        os.execve("/bin/sh", ["sh", "-c", shell], busybox.environ())
    wait_for(lambda: busybox("ps", "-q").out, what="the container")
    os.close(master)
    os.kill(pid, signal.SIGHUP)
    os.waitpid(pid, 0)
    time.sleep(0.2)
    assert busybox("inspect", "-f", "{{.State.Status}}", "dd").ok().out == "running\n"


def test_every_event_of_a_life(busybox):
    begin = str(int(time.time()) - 1)
    busybox("run", "--name", "one", "--network", "none", "busybox", "true").ok()
    busybox("rename", "one", "two").ok()
    busybox("rm", "two").ok()
    seen = (
        busybox(
            "events",
            "--since",
            begin,
            "--until",
            "0s",
            "--filter",
            "type=container",
            "--format",
            "{{.Action}}",
        )
        .ok()
        .lines()
    )
    assert [action for action in seen if action != "attach"] == [
        "create",
        "start",
        "die",
        "rename",
        "destroy",
    ]


def test_a_callers_real_time_policy_is_not_the_containers(busybox):
    def real_time():
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))

    done = busybox("run", "--rm", "--network", "none", "busybox", "sh", "-c",
                   "cut -d')' -f2 /proc/self/stat | cut -d' ' -f40", preexec_fn=real_time)
    assert (done.code, done.out) == (0, "0\n"), done.err
