"""launcher: one warm process that only forks."""

import os
import signal
import subprocess
import threading
import time

import pytest
from conftest import PYTHON, TOP, end_launchers, launchers_of, processes, wait_for

pytestmark = pytest.mark.root


def launchers(roots):
    return sorted(name for name in os.listdir(roots.run) if name.startswith("launcher-"))


def launcher_pid(roots):
    return launchers_of(roots.run)


def test_it_starts_by_itself_and_keeps_nothing_of_its_starter(busybox, tmp_path):
    read, write = os.pipe()
    os.set_inheritable(write, True)
    busybox("run", "--rm", "--network", "none", "busybox", "true", cwd=str(tmp_path),
            env={"SECRET": "x"}, pass_fds=(write,)).ok()
    os.close(write)
    (pid,) = launcher_pid(busybox.roots)
    base = f"/proc/{pid}"
    assert os.readlink(base + "/cwd") == "/"
    with open(base + "/environ", "rb") as file:
        assert [pair.partition(b"=")[0] for pair in file.read().split(b"\0") if pair] == [b"PATH"]
    assert os.getsid(pid) != os.getsid(0)
    fds = {fd: os.readlink(f"{base}/fd/{fd}") for fd in os.listdir(base + "/fd")}
    assert fds["0"] == fds["1"] == "/dev/null" and fds["2"] == busybox.roots.run + "/launcher.log"
    assert os.read(read, 1) == b"", "a descriptor of the starter stayed open"
    os.close(read)


def test_who_asks_a_moment_later_does_not_wait_for_all_that_it_prepares(engine, roots, monkeypatch):
    """It is started ahead of the question: launcher_ahead."""
    os.makedirs(roots.run)
    launcher = engine.Launcher(roots.run, "l.sock", engine.unix_listen(roots.run, "l.sock"))
    taken, question = [], b'{"role": "x", "is_brief": true}'
    monkeypatch.setattr(engine, "LAUNCHER_MOMENT", 30.0)
    monkeypatch.setattr(engine.Launcher, "_watch", lambda self: None)
    monkeypatch.setattr(engine.Launcher, "_take", lambda self, text, conn, fds: taken.append(text))

    def ask():
        time.sleep(0.1)
        sock = engine.unix_connect(roots.run, "l.sock")
        sock.send(question)
        sock.close()

    thread = threading.Thread(target=ask)
    thread.start()
    launcher.hurry()
    thread.join()
    assert taken == [question]


def test_its_interpreter_cannot_be_written_through(busybox):
    busybox("run", "--rm", "--network", "none", "busybox", "true").ok()
    (pid,) = launcher_pid(busybox.roots)
    with pytest.raises(OSError) as refused:
        os.close(os.open(f"/proc/{pid}/exe", os.O_WRONLY))
    assert refused.value.errno in (26, 30)      # ETXTBSY while it runs, EROFS always


def test_its_cgroup_is_a_leaf_of_its_own(busybox):
    busybox("run", "--rm", "--network", "none", "busybox", "true").ok()
    (pid,) = launcher_pid(busybox.roots)
    with open(f"/proc/{pid}/cgroup") as file:
        rows = [line.rstrip("\n").split(":", 2) for line in file]
    assert {row[2] for row in rows if row[1] or row[2] != "/"} == {"/engine/launcher"}


def test_its_death_touches_no_container(busybox):
    id = busybox("run", "-d", "--network", "none", "busybox", "sleep", "60").ok().out.strip()
    (pid,) = launcher_pid(busybox.roots)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not launcher_pid(busybox.roots), what="the launcher's end")
    assert busybox("inspect", "-f", "{{.State.Status}}", id).ok().out == "running\n"
    assert busybox("exec", id, "echo", "still there").ok().out == "still there\n"
    busybox("run", "--rm", "--network", "none", "busybox", "true").ok()
    assert busybox("stop", "-t", "0", id).ok().out.strip() == id


def test_other_limits_get_another_launcher(busybox):
    busybox("run", "--rm", "--network", "none", "busybox", "true").ok()
    assert len(launchers(busybox.roots)) == 1
    argv = busybox.argv("run", "--rm", "--network", "none", "busybox", "true")
    done = subprocess.run(["setpriv", "--no-new-privs", *argv], capture_output=True, text=True,
                          env=busybox.environ(), timeout=30)
    assert done.returncode == 0, done
    assert len(launchers(busybox.roots)) == 2


def test_many_at_once_start_one(busybox):
    runs = [busybox.popen("run", "--rm", "--network", "none", "busybox", "true") for _ in range(8)]
    outs = [run.communicate(timeout=60) for run in runs]
    assert [run.returncode for run in runs] == [0] * 8, outs
    # It may be rehearsing now, with a process that has its name for a moment.
    wait_for(lambda: len(launcher_pid(busybox.roots)) == 1, what="one launcher")


def test_monitors_have_no_connection_in_common(busybox):
    """Those asked for while the launcher starts wait together, and are forked one after another."""
    end_launchers(busybox.roots.run)
    runs = [busybox.popen("run", "-d", "--network", "none", "busybox", "sleep", "60")
            for _ in range(4)]
    outs = [run.communicate(timeout=60) for run in runs]
    assert [run.returncode for run in runs] == [0] * 4, outs
    seen = []
    for pid in launchers_of(names=("engine:monitor",)):
        links = (os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd"))
        seen += {link for link in links if link.startswith("socket:")}
    assert len(seen) >= 4 and len(seen) == len(set(seen)), seen
    busybox("rm", "-f", *(out.strip() for out, _ in outs)).ok()


def test_a_worker_that_fails_is_told_with_its_reason(engine, busybox, monkeypatch):
    store = engine.Store(busybox.roots.data, busybox.roots.run)
    busybox("run", "--rm", "--network", "none", "busybox", "true").ok()
    monkeypatch.setattr(engine, "launcher_name", lambda: launchers(busybox.roots)[0])
    with pytest.raises(engine.EngineError):
        engine.launcher_request(store, "no such role", {})
    with open(busybox.roots.run + "/launcher.log") as file:
        assert "KeyError" in file.read()


def test_it_leaves_when_idle(engine, roots, monkeypatch):
    """The loop itself, with a short patience, in a fork of this process."""
    os.makedirs(roots.run)
    listener = engine.unix_listen(roots.run, "launcher-x.sock")
    pid = os.fork()
    if pid == 0:
        engine.LAUNCHER_IDLE = 0.2
        engine.Launcher(roots.run, "launcher-x.sock", listener).serve()
        os._exit(0)
    listener.close()
    begin = time.monotonic()
    assert os.waitpid(pid, 0)[1] == 0
    assert 0.15 < time.monotonic() - begin < 5
    assert not os.path.exists(roots.run + "/launcher-x.sock")
    assert pid not in processes()


def test_nothing_of_the_first_callers_limits_signals_and_umask_stays(busybox):
    """Each container is as if somebody else had started the launcher."""
    first = "ulimit -S -n 100; ulimit -S -s 4096; umask 077; exec \"$@\""
    argv = busybox.argv("run", "--rm", "--network", "none", "busybox", "true")
    subprocess.run(["sh", "-c", first, "sh", *argv], env=busybox.environ(), check=True, timeout=30)
    argv = busybox.argv("run", "--rm", "--network", "none", "-u", "1000", "busybox", "sh", "-c",
                        "ulimit -n; ulimit -s; grep SigIgn /proc/self/status;"
                        " stat -c %a / /etc; id -u")
    done = subprocess.run(["sh", "-c", "umask 077; exec \"$@\"", "sh", *argv], timeout=30,
                          env=busybox.environ(), capture_output=True, text=True)
    with open("/proc/1/limits") as file:
        stack = next(line for line in file if line.startswith("Max stack"))[26:47].strip()
    lines = done.stdout.split("\n")
    assert int(lines[0]) > 100, done
    assert lines[1] == (str(int(stack) // 1024) if stack.isdigit() else stack), done
    assert lines[2:6] == ["SigIgn:\t0000000000000000", "755", "755", "1000"], done


def test_signals_that_belong_to_the_libc_are_left_alone(engine, roots, monkeypatch):
    """musl keeps 34 for itself; Python warns whoever puts it in a set."""
    import _signal

    given = {}

    def spawn(*args, **options):
        given.update(options)
        raise OSError("enough")

    plain = _signal.valid_signals() - {34}
    monkeypatch.setattr(_signal, "valid_signals", lambda: plain)
    monkeypatch.setattr(os, "posix_spawn", spawn)
    with pytest.raises(OSError, match="enough"):
        engine._launcher_start(engine.Store(roots.data, roots.run), "launcher-x.sock")
    assert given["setsigdef"] == plain - {signal.SIGKILL, signal.SIGSTOP}


def test_the_heap_of_a_settled_process_has_no_holes():
    """What is allocated afterwards lies in pools of its own, not among what was there before."""
    code = (
        "import engine, gc\n"
        "engine.syscalls_bind()\n"
        "gc.collect()\n"
        "holes = [bytes(67) for _ in range(1500)]\n"
        "holes = holes[::7]\n"
        "old = {id(each) >> 14 for each in holes}\n"
        "engine.heap_settle()\n"
        "new = [bytes(67) for _ in range(50)]\n"
        "new = {id(each) >> 14 for each in new}\n"
        "print(len(new & old), len(new))\n"
        "assert len(engine.heap_settle.plugs) < 100_000\n"
    )
    done = subprocess.run([PYTHON, "-c", code], cwd=TOP, stdout=subprocess.PIPE, check=True)
    assert done.stdout in (b"0 1\n", b"0 2\n")
