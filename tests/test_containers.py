"""containers: create to remove, on real containers; errors word for word."""

from __future__ import annotations

import json
import os
import threading
import time

import engine
import pytest
from container_help import IMAGE, NEVER, bare_box, box  # noqa: F401

LOOP = ("sh", "-c", "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done")


def refused(kind, text, function, *args, **kwargs):
    with pytest.raises(getattr(engine, kind)) as caught:
        function(*args, **kwargs)
    assert str(caught.value) == text
    return caught.value


# ---- create


def test_create(bare_box):  # noqa: F811
    id = bare_box.create("echo", "hi", name="web", Env=["B=2"], Labels={"l": "1"})
    shown = bare_box.inspect("web")
    assert shown["Id"] == id and shown["Image"] == IMAGE
    assert shown["State"]["Status"] == "created" and shown["State"]["StartedAt"] == NEVER
    assert shown["Config"]["Env"] == ["B=2", "PATH=/bin", "A=image"]
    assert shown["Config"]["Hostname"] == id[:12]
    assert sorted(os.listdir(bare_box.store.path("containers", id))) == ["upper", "work"]
    assert bare_box.actions() == ["create"]


@pytest.mark.parametrize(
    ("body", "kind", "text"),
    [
        ({"Image": "nope"}, "NotFound", "No such image: nope:latest"),
        ({"Cmd": None, "Entrypoint": [""]}, "InvalidParameter", "no command specified"),
    ],
)
def test_create_refused_leaves_nothing(bare_box, body, kind, text):  # noqa: F811
    given = {**bare_box.body("sh"), **body}
    refused(kind, text, bare_box.client.post, "/containers/create", {}, given)
    assert os.listdir(bare_box.store.path("containers")) == []
    assert bare_box.containers.all() == []


def test_who_may_not_mount_is_told_before_anything_is_made(bare_box, monkeypatch):  # noqa: F811
    monkeypatch.setattr(engine, "capabilities_available", lambda: ["CAP_CHOWN"])
    text = "containers need root with CAP_SYS_ADMIN: this engine has no rootless mode yet"
    refused("Unsupported", text, bare_box.create, "sh")
    assert bare_box.containers.all() == []


def test_a_name_that_is_taken_leaves_nothing(bare_box):  # noqa: F811
    bare_box.create("sh", name="web")
    with pytest.raises(engine.Conflict):
        bare_box.create("sh", name="web")
    assert len(os.listdir(bare_box.store.path("containers"))) == 1


def test_remove_rename_prune_of_what_never_ran(bare_box):  # noqa: F811
    one = bare_box.create("sh", name="one", Labels={"keep": "1"})
    bare_box.create("sh", name="two")
    bare_box.containers.rename("two", "three")
    refused(
        "InvalidParameter",
        "Renaming a container with the same name as its current name",
        bare_box.containers.rename, "three", "/three",
    )
    refused(
        "InvalidParameter",
        "Error when allocating new name: Invalid container name (/a b), only"
        " [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed",
        bare_box.containers.rename, "three", "a b",
    )
    refused(
        "Conflict",
        f'Error when allocating new name: Conflict. The container name "/one" is already in use by'
        f' container "{one}". You have to remove (or rename) that container to be able to reuse'
        " that name.",
        bare_box.containers.rename, "three", "one",
    )
    refused(
        "InvalidParameter", "Neither old nor new names may be empty",
        bare_box.containers.rename, "three", "",
    )
    report = bare_box.containers.prune({"label!": ["keep"]})
    assert len(report["ContainersDeleted"]) == 1
    assert [c.name for c in bare_box.containers.all()] == ["one"]
    bare_box.containers.remove(one[:6])
    refused("NotFound", "No such container: one", bare_box.containers.remove, "one")
    assert bare_box.containers.prune({}) == {"ContainersDeleted": None, "SpaceReclaimed": 0}
    assert bare_box.actions() == [
        "create", "create", "rename", "destroy", "prune", "destroy", "prune",
    ]


def test_prune_until(bare_box):  # noqa: F811
    bare_box.create("sh")
    assert bare_box.containers.prune({"until": ["1h"]})["ContainersDeleted"] is None
    refused(
        "InvalidParameter", "more than one until filter specified",
        bare_box.containers.prune, {"until": ["1h", "2h"]},
    )


@pytest.mark.parametrize(
    ("verb", "kind", "text"),
    [
        ("stop", "NotModified", "container is already stopped"),
        ("kill", "Conflict", "cannot kill container: web: container {id} is not running"),
        ("pause", "Conflict", "container {id} is not running"),
        ("unpause", "EngineError", "Container {id} is not paused"),
        ("top", "Conflict", "container {id} is not running"),
    ],
)
def test_verbs_need_a_process(bare_box, verb, kind, text):  # noqa: F811
    id = bare_box.create("sh", name="web")
    refused(kind, text.format(id=id), getattr(bare_box.containers, verb), "web")


def test_bad_signals(bare_box):  # noqa: F811
    bare_box.create("sh", name="web")
    refused("InvalidParameter", "invalid signal: X", bare_box.containers.stop, "web", None, "X")
    refused(
        "InvalidParameter", "cannot kill container: web: invalid signal: X",
        bare_box.containers.kill, "web", "X",
    )
    refused(
        "InvalidParameter", "cannot kill container: web: the linux daemon does not support signal"
        " 99", bare_box.containers.kill, "web", "99",
    )


@pytest.mark.root
def test_a_stop_signal_that_no_kernel_has(box):  # noqa: F811
    """The process is killed, after two seconds as in Docker, and not asked in vain."""
    id = box.create("sleep", "60", StopSignal="99")
    box.containers.start(id)
    before = time.monotonic()
    box.containers.stop(id)
    assert 1.5 < time.monotonic() - before < 5
    assert box.containers.find(id).exit_code == 137
    box.containers.remove(id)


def test_files_of_the_network(bare_box, tmp_path):  # noqa: F811
    host = {"ExtraHosts": ["db:10.0.0.1", "six:::2"], "Dns": ["9.9.9.9"], "DnsSearch": ["a", "b"]}
    bare_box.create("sh", name="web", host=host, Hostname="h", Domainname="d.e")
    c = bare_box.containers.find("web")

    def write():
        resolv = engine.resolver_conf(c.host, [])[0]
        lines = engine.extra_hosts(bare_box.store, c.host)
        return engine.files_write(c, str(tmp_path), "h", resolv, [], lines)

    files = write()
    assert sorted(files) == ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf"]
    assert (tmp_path / "hostname").read_text() == "h\n"
    hosts = (tmp_path / "hosts").read_text()
    assert hosts.startswith("127.0.0.1\tlocalhost\n") and "10.0.0.1\tdb\n::2\tsix\n" in hosts
    lines = (tmp_path / "resolv.conf").read_text().splitlines()
    assert "nameserver 9.9.9.9" in lines and "search a b" in lines
    # The host's own file is the container's with its network only, and only as it stands.
    c.host.update(NetworkMode="host")
    write()
    assert (tmp_path / "hosts").read_text() == hosts
    c.host.update(ExtraHosts=None)
    write()
    with open("/etc/hosts") as file:
        assert (tmp_path / "hosts").read_text() == file.read()
    c.host.update(ExtraHosts=["x:host-gateway"])
    write()
    assert (tmp_path / "hosts").read_text().endswith(".0.1\tx\n")


# ---- containers that run


@pytest.mark.root
def test_run(box):  # noqa: F811
    out, err, code, id = box.run("sh", "-c", "echo out; echo err >&2; exit 3")
    assert (out, err, code) == (b"out\n", b"err\n", 3)
    state = box.inspect(id)["State"]
    assert (state["Status"], state["ExitCode"], state["Pid"]) == ("exited", 3, 0)
    assert state["StartedAt"] < state["FinishedAt"]
    assert box.logs(id).count(b"out\n") == 1
    assert box.actions() == ["create", "attach", "start", "die"]


@pytest.mark.root
def test_run_and_remove_leaves_nothing(box):  # noqa: F811
    assert box.run("true", host={"AutoRemove": True})[2] == 0
    for path in ("containers", "tmp"):
        deadline = time.monotonic() + 5
        while os.listdir(box.store.path(path)) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert os.listdir(box.store.path(path)) == []
    assert box.containers.all() == []
    assert box.actions() == ["create", "attach", "start", "die", "destroy"]


@pytest.mark.root
def test_what_the_process_sees(box):  # noqa: F811
    script = "hostname; id -u; id -G; pwd; echo $A $B $HOME; cat /etc/hostname; stat -c %a /.docke*"
    script += "; grep -o '^shm /dev/shm' /proc/mounts; test -L /dev/core; echo $?"
    out = box.run(
        "sh", "-c", script, host={"GroupAdd": ["extra", "4000"]}, User="user", Hostname="box",
        WorkingDir="/made/here", Env=["B=2"],
    )[0]
    assert out.decode().split("\n")[:-1] == [
        "box", "1000", "1000 29 2000 4000", "/made/here", "image 2 /home/user", "box",
        "755", "shm /dev/shm", str(int(not os.path.exists("/proc/kcore"))),
    ]


@pytest.mark.root
def test_a_terminal_has_the_size_that_was_asked_for(box):  # noqa: F811
    out, _, code, _ = box.run("stty", "size", host={"ConsoleSize": [30, 101]}, Tty=True)
    assert (out.strip(), code) == (b"30 101", 0)
    assert box.run("true", host={"ConsoleSize": [1 << 40, 1 << 63]}, Tty=True)[2] == 0


@pytest.mark.root
def test_the_null_device_of_the_host_stays_its_own(box):  # noqa: F811
    before = os.stat("/dev/null")
    out = box.run("sh", "-c", "readlink /proc/self/fd/0; echo x >/dev/stdout", User="user")[0]
    assert out == b"/dev/null\nx\n"
    after = os.stat("/dev/null")
    assert (after.st_uid, after.st_mode) == (before.st_uid, before.st_mode)


@pytest.mark.root
@pytest.mark.parametrize(
    ("command", "exit", "ending"),
    [
        ("nosuch", 127, 'exec: "nosuch": executable file not found in $PATH: unknown'),
        ("/nosuch", 127, 'exec: "/nosuch": stat /nosuch: no such file or directory: unknown'),
        ("/etc/passwd", 126, 'exec: "/etc/passwd": permission denied: unknown'),
        ("/etc", 126, 'exec: "/etc": is a directory: unknown: permission denied'),
    ],
)
def test_commands_that_cannot_run(box, command, exit, ending):  # noqa: F811
    id = box.create(command)
    with pytest.raises(engine.EngineError) as caught:
        box.containers.start(id)
    assert (caught.value.exit, caught.value.status) == (exit, 400)
    assert str(caught.value) == (
        "failed to create task for container: failed to create shim task: OCI runtime create"
        " failed: runc create failed: unable to start container process: error during container"
        " init: "
        + ending
    )
    state = box.inspect(id)["State"]
    assert (state["Status"], state["ExitCode"]) == ("created", exit)
    assert state["Error"] == str(caught.value)
    # It can be tried again, and goes when it was to be removed.
    with pytest.raises(engine.EngineError):
        box.containers.start(id)
    with pytest.raises(engine.EngineError):
        box.containers.start(box.create(command, host={"AutoRemove": True}))
    assert [c.id for c in box.containers.all()] == [id]


@pytest.mark.root
def test_a_working_directory_is_made_or_refused_at_create(box):  # noqa: F811
    refused("EngineError", "Cannot mkdir: /etc/passwd is not a directory", box.create, "true",
            WorkingDir="/etc/passwd")
    with pytest.raises(engine.EngineError, match=r"^lstat /.*/etc/passwd/x: not a directory$"):
        box.create("true", WorkingDir="/etc/passwd/x")
    for long in ("/" + "x" * 300, "/not/" + "x" * 300):
        with pytest.raises(engine.EngineError, match=r": file name too long$"):
            box.create("true", WorkingDir=long)
    assert not box.containers.all() and not os.listdir(box.store.path("containers"))
    id = box.create("pwd", WorkingDir="/brand/new", User="7", host={"ReadonlyRootfs": True})
    assert [change["Path"] for change in box.containers.changes(id)] == ["/brand", "/brand/new"]
    made = os.stat(box.store.path("containers", id, "upper", "brand", "new"))
    assert (made.st_uid, made.st_mode & 0o7777) == (0, 0o755)
    out, err, code, _ = box.run("pwd", WorkingDir="/brand/newer", host={"ReadonlyRootfs": True})
    assert (out, code) == (b"/brand/newer\n", 0), err


@pytest.mark.root
def test_a_sysctl_that_cannot_be_written_is_told_as_runc_does(box):  # noqa: F811
    start = ("failed to create task for container: failed to create shim task: OCI runtime create"
             " failed: runc create failed: unable to start container process: error during"
             " container init: ")
    for name, value, text in (
            ("net.ipv4.nosuch", "1", "open sysctl net.ipv4.nosuch file: openat2 fsmount:fscontext:"
             "proc/sys/net/ipv4/nosuch: no such file or directory: unknown"),
            ("net.ipv4.ip_forward", "x", 'failed to write sysctl net.ipv4.ip_forward = "x": write'
             " fsmount:fscontext:proc/sys/net/ipv4/ip_forward: invalid argument: unknown")):
        id = box.create("true", host={"Sysctls": {name: value}, "NetworkMode": "none"})
        refused("EngineError", start + text, box.containers.start, id)


@pytest.mark.root
def test_a_network_of_nobody(box):  # noqa: F811
    id = box.create("true", host={"NetworkMode": "container:later"})
    refused(
        "EngineError",
        "joining network namespace of container: No such container: later",
        box.containers.start, id,
    )
    box.create(*LOOP, name="later")
    box.containers.start("later")
    box.containers.start(id)


@pytest.mark.root
def test_unknown_user(box):  # noqa: F811
    id = box.create("true", User="nobody2")
    with pytest.raises(engine.EngineError, match="unable to find user nobody2: no matching entr"):
        box.containers.start(id)
    assert box.inspect(id)["State"]["ExitCode"] == 128


@pytest.mark.root
def test_life(box):  # noqa: F811
    id = box.create(*LOOP, name="web")
    box.containers.start("web")
    refused("NotModified", "container is already running", box.containers.start, "web")
    refused(
        "Conflict",
        'cannot remove container "web": container is running: stop the container before removing'
        " or force remove",
        box.containers.remove, "web",
    )
    shown = box.inspect(id)
    assert shown["State"]["Running"] and os.path.exists(f"/proc/{shown['State']['Pid']}")
    assert shown["GraphDriver"]["Data"]["MergedDir"] == f"/proc/{shown['State']['Pid']}/root"
    table = box.containers.top("web")
    assert table["Titles"][-1] == "CMD" and table["Processes"][0][0] == "root"

    box.containers.pause("web")
    assert box.inspect(id)["State"]["Status"] == "paused"
    refused("Conflict", f"Container {id} is already paused", box.containers.pause, "web")
    refused(
        "Conflict", "cannot start a paused container, try unpause instead",
        box.containers.start, "web",
    )
    refused(
        "Conflict",
        'cannot remove container "web": container is paused and must be unpaused first',
        box.containers.remove, "web",
    )
    box.containers.unpause("web")

    box.containers.rename("web", "web2")
    wait_for_log(box, id, b"ready")
    box.containers.stop("web2")
    assert box.inspect("web2")["State"]["ExitCode"] == 7
    box.containers.restart("web2")
    assert box.inspect("web2")["State"]["Running"]
    box.containers.restart("web2", 0)
    box.containers.kill("web2")
    assert box.inspect("web2")["State"]["ExitCode"] == 137
    box.containers.start("web2")
    box.containers.remove("web2", force=True)
    assert box.containers.all() == []
    actions = box.actions()
    assert actions[:6] == ["create", "start", "top", "pause", "unpause", "rename"]
    assert actions[6:12] == ["kill", "die", "stop", "start", "restart", "kill"]
    assert actions[-2:] == ["die", "destroy"]


def wait_for_log(box, id, text):  # noqa: F811
    deadline = time.monotonic() + 5
    while text not in box.logs(id):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.root
def test_stop_kills_what_does_not_listen(box):  # noqa: F811
    id = box.create("sleep", "100", StopTimeout=0)
    box.containers.start(id)
    box.containers.stop(id)
    assert box.inspect(id)["State"]["ExitCode"] == 137


@pytest.mark.root
def test_stop_signal_and_kill_by_signal(box):  # noqa: F811
    script = "trap 'exit 5' USR1; trap 'echo int' INT; echo ready; while :; do sleep 0.05; done"
    id = box.create("sh", "-c", script, StopSignal="USR1")
    box.containers.start(id)
    wait_for_log(box, id, b"ready")
    box.containers.kill(id, "INT")
    wait_for_log(box, id, b"int")
    box.containers.stop(id)
    assert box.inspect(id)["State"]["ExitCode"] == 5


@pytest.mark.root
def test_force_removes_a_paused_one(box):  # noqa: F811
    id = box.create(*LOOP)
    box.containers.start(id)
    box.containers.pause(id)
    box.containers.remove(id, force=True)
    assert box.containers.all() == []


@pytest.mark.root
def test_restart_keeps_what_is_removed_at_its_end(box):  # noqa: F811
    id = box.create(*LOOP, host={"AutoRemove": True})
    box.containers.start(id)
    box.containers.restart(id, 0)
    assert box.inspect(id)["State"]["Running"]
    box.containers.kill(id)
    assert box.containers.all() == []


@pytest.mark.root
def test_one_start_wins(box):  # noqa: F811
    id = box.create(*LOOP)
    results = []

    def start():
        try:
            engine.Containers(box.engine).start(id)
            results.append("started")
        except engine.EngineError as failure:
            results.append(f"{type(failure).__name__}: {failure}")

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["NotModified: container is already running"] * 5 + ["started"]


@pytest.mark.root
def test_a_start_at_work_is_waited_for(box):  # noqa: F811
    id = box.create(*LOOP)
    thread = threading.Thread(target=engine.Containers(box.engine).start, args=(id,))
    thread.start()
    deadline = time.monotonic() + 5
    while engine.record_get(box.store, id).state == "created" and time.monotonic() < deadline:
        time.sleep(0.001)
    box.containers.remove(id, force=True)
    thread.join()
    assert box.containers.all() == []


@pytest.mark.root
def test_changes(box):  # noqa: F811
    assert box.containers.changes(box.run("true")[3]) is None
    script = "mkdir /new; echo x >/new/f; rm /etc/group; echo x >>/etc/passwd; touch /tmp/a"
    id = box.run("sh", "-c", script)[3]
    got = {entry["Path"]: entry["Kind"] for entry in box.containers.changes(id)}
    assert got == {
        "/etc": 0, "/etc/group": 2, "/etc/passwd": 0, "/new": 1, "/new/f": 1, "/tmp": 0,
        "/tmp/a": 1,
    }


@pytest.mark.root
def test_shared_namespaces(box):  # noqa: F811
    donor = box.create(*LOOP, name="donor", host={"IpcMode": "shareable"}, Hostname="donor")
    refused(
        "Conflict",
        "cannot join network namespace of a non running container: container donor is created",
        box.containers.start,
        box.create("true", host={"NetworkMode": "container:donor"}),
    )
    box.containers.start(donor)
    script = "for n in net ipc pid; do readlink /proc/self/ns/$n; done; hostname;"
    script += "echo x >/dev/shm/x"
    modes = {
        "NetworkMode": "container:donor",
        "IpcMode": "container:donor",
        "PidMode": "container:donor",
    }
    out, err, code, id = box.run("sh", "-c", script, host=modes)
    pid = box.inspect("donor")["State"]["Pid"]
    assert (err, code) == (b"", 0)
    names = [os.readlink(f"/proc/{pid}/ns/{name}") for name in ("net", "ipc", "pid")]
    assert out.decode().split() == [*names, "donor"]
    assert os.path.exists(f"/proc/{pid}/root/dev/shm/x")
    assert box.inspect(id)["HostConfig"]["NetworkMode"] == "container:" + donor


@pytest.mark.root
def test_host_namespaces(box):  # noqa: F811
    script = "for n in net ipc pid uts; do readlink /proc/self/ns/$n; done; hostname"
    modes = {"NetworkMode": "host", "IpcMode": "host", "PidMode": "host", "UTSMode": "host"}
    out, err, code, _ = box.run("sh", "-c", script, host=modes)
    assert (err, code) == (b"", 0)
    names = [os.readlink(f"/proc/self/ns/{name}") for name in ("net", "ipc", "pid", "uts")]
    assert out.decode().split() == [*names, os.uname().nodename]


@pytest.mark.root
def test_read_only_and_tmpfs(box):  # noqa: F811
    host = {"ReadonlyRootfs": True, "Tmpfs": {"/run": "size=64k,mode=700"}, "ShmSize": 1 << 20}
    script = "touch /x; touch /run/x; touch /dev/shm/x; grep -E ' /(run|dev/shm) ' /proc/mounts"
    out, err, code, _ = box.run("sh", "-c", script, host=host)
    assert b"/x: Read-only file system" in err and code == 0
    assert b"size=64k,mode=700" in out and b"size=1024k" in out


@pytest.mark.root
def test_limits_are_kept(box):  # noqa: F811
    host = {"PidsLimit": 20, "Memory": 64 << 20}
    id = box.create(*LOOP, host=host)
    box.containers.start(id)
    cgroup = engine.cgroup_paths("engine/" + id)
    path = cgroup.v1("pids")
    if path:
        with open(path + "/pids.max") as file:
            assert file.read() == "20\n"
    assert cgroup.procs()


@pytest.mark.root
def test_init_reaps(box):  # noqa: F811
    out, _, code, _ = box.run("sh", "-c", "echo $$; exit 4", host={"Init": True})
    assert code == 4 and int(out) > 1


@pytest.mark.root
def test_a_large_environment_and_argument(box):  # noqa: F811
    big = "x" * 100_000
    out = box.run(
        "sh", "-c", "echo ${#A0} ${#A9} ${#0}", "y" * 100_000,
        Env=[f"A{n}={big}" for n in range(10)],
    )[0]
    assert out.split() == [b"100000", b"100000", b"100000"]


@pytest.mark.root
def test_forty_at_once(box):  # noqa: F811
    codes = []

    def some():
        for _ in range(5):
            codes.append(box.run("sh", "-c", "exit 3", host={"AutoRemove": True})[2])

    threads = [threading.Thread(target=some) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [3] * 40
    assert box.containers.all() == []
    deadline = time.monotonic() + 5
    while os.listdir(box.store.run_path("containers")) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert os.listdir(box.store.run_path("containers")) == []


@pytest.mark.root
def test_documents_on_disk(box):  # noqa: F811
    id = box.create(*LOOP)
    box.containers.start(id)
    with open(box.store.run_path("containers", id, "config.json")) as file:
        spec = json.load(file)
    assert spec["ociVersion"] and spec["process"]["args"] == list(LOOP)
