"""relay: a stand-in runs a command, and nobody can tell but by the time that it takes."""

import os
import resource
import signal
import socket
import subprocess
import sys
import time

import pytest
from conftest import TOP, alive, descendants, end_launchers, launchers_of, wait_for

RUN = ("run", "--rm", "--network", "none", "busybox")


def waiting(cli):
    """Pids of stand-ins, those at work too."""
    return launchers_of(cli.roots.run, ("engine:command",))


@pytest.fixture
def warm(busybox):
    """An engine where a stand-in waits."""
    busybox(*RUN, "true").ok()
    wait_for(lambda: [name for name in os.listdir(busybox.roots.run)
                      if name.startswith("commands-")], what="a keeper")
    wait_for(lambda: waiting(busybox), what="a stand-in")
    return busybox


def at_work(cli, *words, **options):
    """(asker, pid of its stand-in) of a command that lasts."""
    wait_for(lambda: len(waiting(cli)) == 1, what="one stand-in")
    (stand_in,) = waiting(cli)
    asker = cli.popen(*words, **options)
    wait_for(lambda: open(f"/proc/{stand_in}/cmdline") and
             os.readlink(f"/proc/{stand_in}/cwd") == os.getcwd(), what="a stand-in at work")
    return asker, stand_in


# ---- who asks


@pytest.mark.parametrize("words, given, rest", [
    (["run", "-d", "x"], {}, ["run", "-d", "x"]),
    (["--run-root", "/r", "--data-root=/d", "exec", "a"], {"--run-root": "/r", "--data-root": "/d"},
     ["exec", "a"]),
    (["-H", "unix:///x", "run", "x"], {}, []),
    (["--data-root"], {"--data-root": ""}, []),
    ([], {}, []),
])
def test_only_roots_may_stand_before_the_command(engine, words, given, rest):
    assert engine._roots_given(words) == (given, rest)


@pytest.mark.parametrize("words", [
    ["images"], ["image", "run"], ["container", "ls"], ["container"], ["-D", "run", "x"], [],
])
def test_other_commands_go_the_long_way(engine, words, monkeypatch):
    monkeypatch.setattr(engine, "unix_connect", None)
    assert engine.relay(words) is None


@pytest.mark.root
@pytest.mark.parametrize("words, fits", [
    ("ps --all", True), ("run x ls", True), ("run --rm -d x", True), ("run -it x", False),
    ("run -i x", False), ("exec --tty a sh", False), ("run --interactive=true x", False),
    ("run --attach stdin x", False), ("start -a x", False), ("exec a sh -c date", True),
])
def test_a_terminals_input_is_for_the_users_own_process(engine, words, fits, monkeypatch):
    monkeypatch.setattr(os, "isatty", lambda fd: fd == 0)
    assert engine._is_plain(words.split()) == fits
    monkeypatch.setattr(os, "isatty", lambda fd: False)
    assert engine._is_plain(words.split())


@pytest.mark.root
@pytest.mark.parametrize("name", ["DOCKER_HOST", "DOCKER_CONTEXT", "ENGINE_DEBUG"])
def test_what_asks_for_more_goes_the_long_way(engine, name, monkeypatch):
    monkeypatch.setenv(name, "1")
    assert not engine._is_plain(["run", "x"])


def test_what_the_asker_loads_is_little():
    """The member holds `relay` and what it calls, and imports nothing that Python has not."""
    sys.path.insert(0, str(TOP))
    import build_zipapp

    code = build_zipapp.part_code((TOP / "engine.py").read_bytes(), "relay")
    assert len(code) < 24_000
    import marshal

    space = {"__name__": "engine", "__builtins__": __builtins__}
    exec(marshal.loads(code[16:]), space)
    assert space["relay"](["images"]) is None


@pytest.mark.root
@pytest.mark.parametrize("words, comes", [
    (RUN, True), (("run", "--help"), False), (("ps",), False),
])
def test_what_a_run_needs_is_started_before_the_engine_is_loaded(busybox, words, comes):
    """One launcher, the one that the engine itself would start; none for what needs none."""
    end_launchers(busybox.roots.run)
    wait_for(lambda: not launchers_of(busybox.roots.run))
    busybox(*words, *("true",) * (words == RUN))
    assert len(launchers_of(busybox.roots.run)) == comes


# ---- what the user sees


@pytest.mark.root
def test_output_and_exit_codes_are_the_same(warm):
    before = waiting(warm)
    done = warm(*RUN, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.code, done.out, done.err) == (7, "out\n", "err\n")
    wait_for(lambda: waiting(warm) and waiting(warm) != before, what="the next stand-in")
    assert warm(*RUN, "nothing").code == 127
    done = warm("run", "--rm", "absent")
    assert done.code == 125 and "Unable to find image" in done.err
    done = warm("run", "--nonsense")
    assert done.code == 125 and "Usage:" in done.err and os.path.basename(warm.pyz) in done.err
    id = warm("run", "-d", *RUN[2:], "sleep", "60").ok().out.strip()
    assert warm("exec", "-i", id, "cat", input="through").ok().out == "through"
    assert warm("exec", id, "sh", "-c", "exit 5").code == 5
    for words in (("ps", "-q", "--no-trunc"), ("ps", "--format", "{{.ID}} {{.Command}}"),
                  ("ps", "-x")):
        wait_for(lambda: waiting(warm), what="a stand-in")
        near, far = warm(*words), warm(*words, env={"ENGINE_PROFILE": "1"})
        assert (near.code, near.out) == (far.code, far.out) and (id[:12] in near.out or near.code)


@pytest.mark.root
def test_it_is_where_and_what_its_asker_is(warm, tmp_path):
    (tmp_path / "env").write_text("NAMED\nGIVEN=1\n")
    line = warm.argv("run", "--rm", "--network", "none", "--cidfile", "cid", "--env-file", "env",
                     "-e", "ALSO", "busybox", "env")
    done = subprocess.run(["sh", "-c", 'umask 077; exec "$@"', "-", *line], cwd=tmp_path,
                          env=warm.environ({"NAMED": "a b", "ALSO": "\udcff"}), timeout=30,
                          capture_output=True)
    assert done.returncode == 0, done
    assert {b"NAMED=a b", b"GIVEN=1", b"ALSO=\xff"} <= set(done.stdout.split(b"\n"))
    assert (tmp_path / "cid").stat().st_mode & 0o777 == 0o600


@pytest.mark.root
def test_it_has_its_askers_limits_and_nothing_of_them_comes_into_the_container(warm):
    def limit():
        resource.setrlimit(resource.RLIMIT_CORE, (4096, resource.getrlimit(4)[1]))
        os.nice(3)

    id = warm("create", *RUN[2:], "sleep", "60").ok().out.strip()
    asker, stand_in = at_work(warm, "start", "-a", id, preexec_fn=limit,
                              env={"SECRET": "x"})
    wait_for(lambda: resource.prlimit(stand_in, resource.RLIMIT_CORE)[0] == 4096, what="its limit")
    assert os.getpriority(os.PRIO_PROCESS, stand_in) == 3
    assert os.getpriority(os.PRIO_PROCESS, asker.pid) == 3
    pid = wait_for(lambda: int(warm("inspect", "-f", "{{.State.Pid}}", id).out), what="its process")
    assert os.getpriority(os.PRIO_PROCESS, pid) == 0
    for process in (pid, *launchers_of(warm.roots.run, ("engine:monitor",))):
        with open(f"/proc/{process}/environ", "rb") as file:
            assert b"SECRET" not in file.read()
    warm("kill", id).ok()
    assert asker.wait(30) == 137


@pytest.mark.root
def test_output_that_nobody_reads_ends_it_as_a_signal_does(warm):
    asker = warm.popen(*RUN, "yes")
    asker.stdout.read(10)
    asker.stdout.close()
    assert asker.wait(30) == -signal.SIGPIPE


@pytest.mark.root
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGRTMIN])
def test_signals_reach_the_container(warm, number):
    asker, _ = at_work(
        warm, *RUN, "sh", "-c", f"trap 'echo got; exit 9' {int(number)}; echo on; while :; do"
        " sleep 0.1; done")
    assert asker.stdout.readline() == b"on\n"
    asker.send_signal(number)
    assert asker.communicate(timeout=30)[0] == b"got\n"
    assert asker.returncode == 9


@pytest.mark.root
def test_who_does_not_pass_a_signal_on_ends_by_it(warm):
    id = warm("run", "-d", *RUN[2:], "sleep", "60").ok().out.strip()
    for number, code in ((signal.SIGINT, 130), (signal.SIGUSR1, -signal.SIGUSR1)):
        asker, _ = at_work(warm, "exec", id, "sleep", "30")
        wait_for(lambda: "sleep 30" in warm("top", id, "-o", "pid,args").out, what="the exec")
        asker.send_signal(number)
        asker.communicate(timeout=30)
        assert asker.returncode == code
        subprocess.run(["pkill", "-P", warm("inspect", "-f", "{{.State.Pid}}", id).out.strip()],
                       check=False)
        warm("exec", id, "pkill", "-f", "sleep 30")


# ---- who dies


@pytest.mark.root
def test_the_askers_death_is_the_stand_ins_and_not_the_containers(warm):
    asker, stand_in = at_work(warm, "run", "--name", "left", *RUN[2:], "sleep", "60")
    wait_for(lambda: warm("ps", "-q").out, what="the container")
    asker.kill()
    asker.communicate()
    wait_for(lambda: not alive(stand_in), what="the stand-in's end")
    assert warm("inspect", "-f", "{{.State.Status}}", "left").ok().out == "running\n"


@pytest.mark.root
def test_a_stand_in_that_is_killed_ends_its_asker_so(warm):
    asker, stand_in = at_work(warm, "run", "--name", "left", *RUN[2:], "sleep", "60")
    wait_for(lambda: warm("ps", "-q").out, what="the container")
    os.kill(stand_in, signal.SIGKILL)
    asker.communicate(timeout=30)
    assert asker.returncode == -signal.SIGKILL
    assert warm("inspect", "-f", "{{.State.Status}}", "left").ok().out == "running\n"


@pytest.mark.root
def test_a_keeper_that_died_is_missed_by_one_command(warm):
    (keeper,) = launchers_of(warm.roots.run, ("engine:commands",))
    os.kill(keeper, signal.SIGKILL)
    wait_for(lambda: not waiting(warm), what="its stand-in's end")
    assert warm(*RUN, "echo", "the long way").ok().out == "the long way\n"
    wait_for(lambda: waiting(warm), what="another stand-in")
    assert warm(*RUN, "echo", "again").ok().out == "again\n"


@pytest.mark.root
def test_a_stand_in_whose_keeper_was_gone_before_it_does_not_wait(engine):
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind("\0stand-in-%d" % os.getpid())
    listener.listen()
    pid = os.fork()
    if pid == 0:
        engine._stand_in(os.getpid(), None, listener, -1, os.memfd_create("hot"), None)
    try:
        wait_for(lambda: os.waitpid(pid, os.WNOHANG)[0] == pid, what="its end")
    finally:
        listener.close()


@pytest.mark.root
def test_a_database_that_was_replaced_is_not_the_one_that_was_opened_ahead(warm):
    file = os.path.join(warm.roots.data, "engine.db")
    (stand_in,) = waiting(warm)
    held = f"/proc/{stand_in}/fd"
    wait_for(lambda: file in [os.readlink(f"{held}/{fd}") for fd in os.listdir(held)])
    for end in ("-wal", "-shm", ""):
        if os.path.exists(file + end):
            os.rename(file + end, file + ".old" + end)
    assert "No such image: busybox" in warm("create", "--pull", "never", "busybox").err
    for end in ("-wal", "-shm", ""):
        os.unlink(file + end)
        os.rename(file + ".old" + end, file + end)
    assert warm(*RUN, "echo", "well").ok().out == "well\n"


@pytest.mark.root
def test_many_at_once(warm):
    runs = [warm.popen(*RUN, "sh", "-c", f"exit {number}") for number in range(20)]
    assert [run.communicate(timeout=60) for run in runs] == [(b"", b"")] * 20
    assert [run.returncode for run in runs] == list(range(20))


@pytest.mark.root
def test_too_much_goes_the_long_way(warm):
    much = {f"V{number}": "x" * 1000 for number in range(100)}
    assert warm(*RUN, "echo", "fine", env=much).ok().out == "fine\n"
    assert warm(*RUN[:-1], "-e", "V7", "busybox", "sh", "-c", "echo ${#V7}",
                env=much).ok().out == "1000\n"


@pytest.mark.root
def test_who_has_fewer_capabilities_has_no_stand_in(warm):
    before = waiting(warm)
    line = warm.argv("run", "--rm", "--network", "none", "busybox", "echo", "mine")
    done = subprocess.run(["setpriv", "--bounding-set=-sys_time", *line], env=warm.environ(),
                          timeout=30, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "mine\n"), done
    assert set(before) <= set(waiting(warm))


@pytest.mark.root
def test_a_keeper_leaves_when_nothing_comes(engine, roots, monkeypatch):
    """The loop itself, with a short patience, in a fork of this process."""
    os.makedirs(roots.run)
    store = engine.Store(roots.data, roots.run)
    monkeypatch.setattr(engine, "KEEPER_IDLE", 0.3)
    began = set(descendants())
    if not os.fork():
        try:
            engine.keeper_serve(store, lambda words: 0)
        finally:
            os._exit(0)
    os.wait()
    wait_for(lambda: [name for name in os.listdir(roots.run) if name.startswith("commands-")],
             what="its socket")
    begin = time.monotonic()
    wait_for(lambda: not [name for name in os.listdir(roots.run) if name.startswith("commands-")],
             what="its end")
    assert time.monotonic() - begin < 5
    wait_for(lambda: not [pid for pid in set(descendants()) - began if alive(pid)],
             what="the end of its stand-in")
