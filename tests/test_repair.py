"""repair: monitors, starters and removers that died, and another boot."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import conftest
import engine
import pytest
from container_help import bare_box, box  # noqa: F401
from test_containers import LOOP

DEAD = "999999999 5"


def move(store, id, state, **fields):
    assert engine.record_move(store, id, ("created", "exited", "running"), state, **fields)


def test_a_start_whose_starter_died_is_undone(bare_box):  # noqa: F811
    id = bare_box.create("sh", name="web")
    move(bare_box.store, id, "starting", owner=DEAD)
    assert bare_box.containers.find("web").state == "created"
    move(bare_box.store, id, "starting", owner=DEAD, started=5)
    assert bare_box.containers.find("web").state == "exited"


def test_a_start_at_work_is_left_alone(bare_box, monkeypatch):  # noqa: F811
    monkeypatch.setattr(engine, "START_PATIENCE", 0.0)
    id = bare_box.create("sh", name="web")
    move(bare_box.store, id, "starting", owner=engine.owner_self())
    assert bare_box.containers.find("web").state == "starting"
    assert bare_box.inspect(id)["State"]["Status"] == "created"
    with pytest.raises(engine.NotModified):
        bare_box.containers.start(id)
    move_back = ("starting",)
    assert engine.record_move(bare_box.store, id, move_back, "created")


def test_a_removal_whose_remover_died_is_finished(bare_box):  # noqa: F811
    id = bare_box.create("sh", name="web")
    move(bare_box.store, id, "removing", owner=DEAD)
    with pytest.raises(engine.NotFound, match="No such container: web"):
        bare_box.containers.find("web")
    assert os.listdir(bare_box.store.path("containers")) == []
    assert os.listdir(bare_box.store.run_path("containers")) == []
    assert bare_box.actions()[-1] == "destroy"


def test_a_removal_at_work_is_left_alone(bare_box):  # noqa: F811
    id = bare_box.create("sh", name="web")
    move(bare_box.store, id, "removing", owner=engine.owner_self())
    with pytest.raises(engine.Conflict, match="removal of container web is already in progress"):
        bare_box.containers.remove("web")
    engine.container_dispose(bare_box.store, engine.record_get(bare_box.store, id))


def test_another_boot(bare_box):  # noqa: F811
    id = bare_box.create("sh", name="web")
    move(bare_box.store, id, "running", pid=os.getpid(), boot_id="before", started=5)
    gone = bare_box.create("sh", host={"AutoRemove": True})
    move(bare_box.store, gone, "running", pid=1, boot_id="before", started=5)
    assert [(c.name, c.state, c.exit_code) for c in bare_box.containers.all()] == [
        ("web", "exited", 255)
    ]


def test_orphans(bare_box):  # noqa: F811
    kept = bare_box.create("sh")
    old, young = (bare_box.store.path("containers", name) for name in ("f" * 64, "e" * 64))
    for path in (old, young):
        os.makedirs(path + "/upper")
    os.utime(old, (1, 1))
    os.makedirs(bare_box.store.path("tmp", "removed-" + "d" * 64))
    engine.orphans_remove(bare_box.store)
    assert os.listdir(bare_box.store.path("tmp")) == []
    assert sorted(os.listdir(bare_box.store.path("containers"))) == sorted([kept, "e" * 64])
    os.utime(young, (1, 1))
    engine.orphans_remove(bare_box.store)


@pytest.fixture
def web(box):  # noqa: F811
    id = box.create(*LOOP, name="web")
    box.containers.start(id)
    return box


def monitor_pid(box, id):  # noqa: F811
    return engine.monitor_call(box.store, id, {"verb": "hello"})["pid"]


@pytest.mark.root
def test_a_monitor_that_is_killed(web):
    c = web.containers.find("web")
    os.kill(monitor_pid(web, c.id), signal.SIGKILL)
    # The launcher sees it and repairs; so would the next command.
    deadline = time.monotonic() + 5
    while engine.record_get(web.store, c.id).state == "running" and time.monotonic() < deadline:
        time.sleep(0.01)
    now = engine.record_get(web.store, c.id)
    assert (now.state, now.exit_code, now.error) == ("exited", 137, "monitor died")
    assert not os.path.exists(f"/proc/{c.pid}/exe")
    conftest.wait_for(lambda: web.actions()[-1] == "die")
    web.containers.start("web")
    assert web.containers.find("web").state == "running"


@pytest.mark.root
def test_the_next_command_repairs_without_a_launcher(web):
    c = web.containers.find("web")
    below = conftest.descendants()
    launchers = [pid for pid, stat in below.items() if stat[0] == "engine:launcher"]
    monitor = monitor_pid(web, c.id)
    for pid in launchers:
        os.kill(pid, signal.SIGSTOP)
    try:
        os.kill(monitor, signal.SIGKILL)
        deadline = time.monotonic() + 5
        while os.path.exists(f"/proc/{c.pid}/exe") and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        shown = web.inspect("web")["State"]
        assert (shown["Status"], shown["ExitCode"]) == ("exited", 137)
    finally:
        for pid in launchers:
            os.kill(pid, signal.SIGCONT)


@pytest.mark.root
def test_a_killed_monitor_of_a_container_to_be_removed(box):  # noqa: F811
    id = box.create(*LOOP, host={"AutoRemove": True})
    box.containers.start(id)
    os.kill(monitor_pid(box, id), signal.SIGKILL)
    deadline = time.monotonic() + 5
    while engine.record_get(box.store, id) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert box.containers.all() == []
    assert os.listdir(box.store.path("containers")) == []


@pytest.mark.root
def test_the_launchers_death_touches_nothing(web):
    for pid, stat in conftest.descendants().items():
        if stat[0] == "engine:launcher":
            os.kill(pid, signal.SIGKILL)
    time.sleep(0.05)
    assert web.containers.find("web").state == "running"
    web.containers.stop("web", 1)
    assert web.containers.find("web").state == "exited"
    assert web.run("echo", "again")[0] == b"again\n"


@pytest.mark.root
def test_a_starter_that_is_killed(box):  # noqa: F811
    """kill -9 at some moment of a start: the next command finds a state that it can use."""
    script = (
        "import sys; sys.path.insert(0, {top!r}); sys.argv[0] = {top!r} + '/engine.py'\n"
        "import engine; e = engine.Engine(engine.Store({data!r}, {run!r}))\n"
        "e.containers.start({id!r})"
    )
    for delay in (0.0, 0.02, 0.04, 0.06, 0.08, 0.1, 0.12):
        id = box.create(*LOOP)
        text = script.format(
            top=str(conftest.TOP), data=box.store.data, run=box.store.run, id=id
        )
        process = subprocess.Popen([sys.executable, "-c", text])
        time.sleep(delay)
        process.kill()
        process.wait()
        deadline = time.monotonic() + 5
        while box.containers.find(id).state == "starting" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert box.containers.find(id).state in ("created", "running")
        box.containers.remove(id, force=True)


@pytest.mark.root
def test_what_a_monitor_killed_at_the_very_end_leaves_is_swept(bare_box):  # noqa: F811
    """The row of a --rm container is gone, its directory is on the way out, nobody cleared up."""
    store, id = bare_box.store, engine.id_new()
    trash = store.path("tmp", "removed-" + id)
    cgroup = engine.cgroup_paths("engine/" + id)
    cgroup.create()
    for path in (trash + "/upper/x", store.run_path("containers", id)):
        os.makedirs(path)
    assert engine.container_repair(store, id) is None
    assert not os.path.exists(trash)
    assert not os.path.exists(store.run_path("containers", id))
    assert [path for path in cgroup.paths() if os.path.exists(path)] == []


@pytest.mark.root
def test_a_list_sweeps_what_has_no_row(bare_box):  # noqa: F811
    """Nobody knows the id any more, so it is found by the directories."""
    store, ids = bare_box.store, sorted(engine.id_new() for _ in range(3))
    kept = bare_box.create("sh")
    cgroup = engine.cgroup_paths("engine/" + ids[0])
    cgroup.create()
    os.makedirs(store.run_path("containers", ids[0]))           # a killed monitor's
    os.makedirs(store.path("containers", ids[1], "upper"))      # a killed client's
    os.utime(store.path("containers", ids[1]), (1, 1))
    os.makedirs(store.path("containers", ids[2], "upper"))      # a create at work
    assert [c.id for c in bare_box.containers.all()] == [kept]
    assert os.listdir(store.run_path("containers")) == []
    assert sorted(os.listdir(store.path("containers"))) == sorted([kept, ids[2]])
    assert [path for path in cgroup.paths() if os.path.exists(path)] == []


@pytest.mark.root
@pytest.mark.root
def test_a_list_leaves_alone_what_is_just_being_created(box, monkeypatch):  # noqa: F811
    """Its monitor was asked for ahead and need not answer yet."""
    real = engine.record_insert

    def insert(store, c, endpoints):
        with monkeypatch.context() as patch:
            patch.setattr(engine, "_monitor_hello", lambda store, id: "")
            assert box.client.get("/containers/json", {"all": 1}) == []
        real(store, c, endpoints)

    monkeypatch.setattr(engine, "record_insert", insert)
    box.containers.expect(box.body("true"))
    _, _, code, id = box.run("true")
    assert code == 0 and os.path.isdir(box.store.path("containers", id, "upper"))
    # Of one that was not created after all nothing stays.
    monkeypatch.setattr(engine, "record_insert", real)
    box.containers.expect(box.body("true"))
    with pytest.raises(engine.NotFound):
        box.client.post("/containers/create", {}, {**box.body("true"), "Image": "nosuch"})
    conftest.wait_for(lambda: os.listdir(box.store.run_path("containers")) in ([], [id]))


def test_a_directory_without_a_row_is_swept_too(bare_box):  # noqa: F811
    """The monitor was killed after its row was gone and before the directory was moved away."""
    store, id = bare_box.store, engine.id_new()
    os.makedirs(store.path("containers", id, "upper"))
    os.makedirs(store.run_path("containers", id))
    assert engine.container_repair(store, id) is None
    assert os.listdir(store.path("containers")) == os.listdir(store.run_path("containers")) == []


@pytest.mark.root
def test_a_monitor_that_was_forked_ahead_of_a_start_that_fails(box, monkeypatch):  # noqa: F811
    """It holds the container's lock until it has its name, and goes without a start."""
    body = {**box.body("true"), "HostConfig": {"NetworkMode": "none", "Devices": [{}]}}
    id = box.client.post("/containers/create", {}, body)["Id"]
    directory = box.store.run_path("containers", id)
    seen = []
    real = engine.spec_build

    def build(*given, **named):
        answer = box.store.monitors[id]
        conftest.wait_for(lambda: os.path.exists(directory + "/monitor.sock"))
        seen.append(answer)
        return real(*given, **named)

    monkeypatch.setattr(engine, "spec_build", build)
    with pytest.raises(engine.EngineError, match="error gathering device information"):
        box.client.post(f"/containers/{id}/start")
    assert seen and not box.store.monitors
    conftest.wait_for(lambda: not os.path.exists(directory + "/monitor.sock"))
    with engine.container_lock(box.store, id, block=False):
        assert engine.record_get(box.store, id).state == "created"
