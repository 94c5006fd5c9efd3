"""execs: second processes, attach, wait and logs."""

from __future__ import annotations

import json
import threading
import time
import traceback

import engine
import pytest
from container_help import bare_box, box, frames, received  # noqa: F401
from test_containers import LOOP, refused

pytestmark = pytest.mark.root

INSPECT = (
    "ID Running ExitCode ProcessConfig OpenStdin OpenStderr OpenStdout CanRemove ContainerID"
    " DetachKeys Pid"
).split()


@pytest.fixture
def web(box):  # noqa: F811
    id = box.create(*LOOP, name="web", Env=["C=container"], User="user", WorkingDir="/tmp")
    box.containers.start(id)
    return box


def execute(box, *command, stdin=None, ref="web", **asked):  # noqa: F811
    """(stdout, stderr, exit code) of an exec that ran to its end."""
    body = {"Cmd": list(command), "AttachStdout": True, "AttachStderr": True,
            "AttachStdin": stdin is not None, **asked}
    id = box.client.post(f"/containers/{ref}/exec", {}, body)["Id"]
    tty = asked.get("Tty", False)
    sock = box.client.hijack(f"/exec/{id}/start", {}, {"Detach": False, "Tty": tty})
    if stdin is not None:
        sock.sendall(stdin)
        sock.shutdown(1)
    out, err = frames(sock, tty)
    return out, err, box.client.get(f"/exec/{id}/json")["ExitCode"]


def test_exec(web):
    script = "echo $C $A $E; id -u; pwd; cat; echo err >&2; exit 5"
    out, err, code = execute(web, "sh", "-c", script, stdin=b"in\n", Env=["E=exec"])
    assert (out, err, code) == (b"container image exec\n1000\n/tmp\nin\n", b"err\n", 5)
    out, _, code = execute(web, "sh", "-c", "id -u; pwd", User="root", WorkingDir="/etc")
    assert (out, code) == (b"0\n/etc\n", 0)


def test_exec_with_a_terminal(web):
    out, _, code = execute(web, "sh", "-c", "tty; stty size; echo $TERM", Tty=True,
                           ConsoleSize=[33, 44])
    assert out == b"/dev/pts/0\r\n33 44\r\nxterm\r\n" and code == 0


def test_inspect(web):
    id = web.client.post("/containers/web/exec", {}, {"Cmd": ["sleep", "0.2"]})["Id"]
    shown = web.client.get(f"/exec/{id}/json")
    assert list(shown) == INSPECT
    assert (shown["Running"], shown["ExitCode"], shown["Pid"]) == (False, None, 0)
    assert shown["ProcessConfig"] == {
        "tty": False, "entrypoint": "sleep", "arguments": ["0.2"], "privileged": False,
        "user": "user",
    }
    assert web.inspect("web")["ExecIDs"] == [id]
    web.client.post(f"/exec/{id}/start", {}, {"Detach": True})
    assert web.client.get(f"/exec/{id}/json")["Running"] is True
    refused("Conflict", f"exec command {id} is already running", web.client.post,
            f"/exec/{id}/start", {}, {"Detach": True})
    deadline = time.monotonic() + 5
    while web.client.get(f"/exec/{id}/json")["Running"] and time.monotonic() < deadline:
        time.sleep(0.01)
    shown = web.client.get(f"/exec/{id}/json")
    assert shown["ExitCode"] == 0 and shown["Pid"] > 0
    refused("Conflict", f"exec command {id} has already run", web.client.post,
            f"/exec/{id}/start", {}, {"Detach": True})
    assert web.inspect("web")["ExecIDs"] is None


@pytest.mark.parametrize(
    ("command", "exit", "text"),
    [
        ("nosuch", 127, 'exec: "nosuch": executable file not found in $PATH: unknown'),
        ("/etc/passwd", 126, 'exec: "/etc/passwd": permission denied: unknown'),
    ],
)
def test_commands_that_cannot_run(web, command, exit, text):
    whole = "OCI runtime exec failed: exec failed: unable to start container process: " + text
    out, err, code = execute(web, command)
    assert (out.decode(), err, code) == (whole + "\r\n", b"", exit)
    id = web.client.post("/containers/web/exec", {}, {"Cmd": [command]})["Id"]
    with pytest.raises(engine.EngineError) as caught:
        web.client.post(f"/exec/{id}/start", {}, {"Detach": True})
    assert (str(caught.value), caught.value.exit) == (whole, exit)


def test_refused(web):
    post = web.client.post
    refused("InvalidParameter", "No exec command specified", post, "/containers/web/exec", {},
            {"Cmd": []})
    refused("InvalidParameter", "Invalid escape keys (ctrl-) provided", post,
            "/containers/web/exec", {}, {"Cmd": ["sh"], "DetachKeys": "ctrl-"})
    refused("InvalidParameter", "unable to find user x9: no matching entries in passwd file", post,
            "/containers/web/exec", {}, {"Cmd": ["sh"], "User": "x9"})
    refused("NotFound", "No such exec instance: abc", post, "/exec/abc/start", {}, {})
    refused("NotFound", "No such container: x", post, "/containers/x/exec", {}, {"Cmd": ["sh"]})
    web.containers.pause("web")
    refused("Conflict", "Container web is paused, unpause the container before exec", post,
            "/containers/web/exec", {}, {"Cmd": ["sh"]})
    web.containers.unpause("web")
    id = web.inspect("web")["Id"]
    web.containers.kill("web")
    refused("Conflict", f"container {id} is not running", post, "/containers/web/exec", {},
            {"Cmd": ["sh"]})


def test_a_large_environment(web):
    env = [f"A{n}=" + "x" * 100_000 for n in range(10)]
    out, _, code = execute(web, "sh", "-c", "echo ${#A0}${#A9}", Env=env)
    assert (out, code) == (b"100000100000\n", 0)


def test_events(web):
    execute(web, "sh", "-c", "exit 3")
    events = [event for event in engine.event_follow(web.store, 0, engine.time_now())
              if event["Action"].startswith("exec")]
    assert [event["Action"] for event in events] == [
        "exec_create: sh -c exit 3", "exec_start: sh -c exit 3", "exec_die"]
    assert events[2]["Actor"]["Attributes"]["exitCode"] == "3"
    assert len({event["Actor"]["Attributes"]["execID"] for event in events}) == 1


def test_old_records_are_swept(web, monkeypatch):
    monkeypatch.setattr(engine, "EXEC_SWEEP", 3)
    monkeypatch.setattr(engine, "EXEC_KEEP", -1.0)
    for _ in range(6):
        execute(web, "true")
    c = web.containers.find("web")
    assert len(engine.os.listdir(engine.exec_dir(web.store, c.id))) <= 4


# ---- attach and wait


def test_attach_to_stdin(box):  # noqa: F811
    id = box.create("cat", OpenStdin=True, StdinOnce=True)
    sock = box.attach(id, stdin=1)
    waiter = box.client.wait(id, "next-exit")
    box.containers.start(id)
    sock.sendall(b"one\ntwo\n")
    sock.shutdown(1)
    assert frames(sock) == (b"one\ntwo\n", b"")
    assert waiter.result() == {"StatusCode": 0}


def test_attach_with_what_was_logged(web):
    deadline = time.monotonic() + 5
    while b"ready" not in web.logs("web") and time.monotonic() < deadline:
        time.sleep(0.01)
    sock = web.attach("web", logs=1)
    web.containers.kill("web")
    assert frames(sock) == (b"ready\n", b"")
    assert frames(web.attach("web", logs=1, stream=0)) == (b"ready\n", b"")


def test_attach_refused(web):
    refused("InvalidParameter", "Invalid detach keys (ctrl-) provided", web.attach, "web",
            detachKeys="ctrl-")
    web.containers.pause("web")
    refused("Conflict", "container web is paused, unpause the container before attach", web.attach,
            "web")


def test_detach_keys(box):  # noqa: F811
    id = box.create("sh", OpenStdin=True, Tty=True)
    sock = box.attach(id, stdin=1, detachKeys="ctrl-a,x")
    box.containers.start(id)
    sock.sendall(b"echo hi\n")
    time.sleep(0.1)
    sock.sendall(b"\x01x")
    assert b"hi" in received(sock)
    assert box.inspect(id)["State"]["Running"]


def test_a_working_directory_that_is_relative(web):
    out, _, code = execute(web, "pwd", WorkingDir="etc")
    assert out == (b"OCI runtime exec failed: exec failed: Cwd must be an absolute path: unknown"
                   b"\r\n")
    assert code == 126


def test_an_exec_that_has_run_is_told_in_its_stream(web):
    id = web.client.post("/containers/web/exec", {}, {"Cmd": ["true"], "AttachStdout": True})["Id"]
    start = {"Detach": False, "Tty": False}
    assert frames(web.client.hijack(f"/exec/{id}/start", {}, start), False) == (b"", b"")
    out, _ = frames(web.client.hijack(f"/exec/{id}/start", {}, start), False)
    assert out == f"exec command {id} has already run\r\n".encode()
    refused("Conflict", f"exec command {id} has already run",
            web.client.post, f"/exec/{id}/start", {}, {"Detach": True})


def test_wait_for_one_that_has_just_removed_itself(box):  # noqa: F811
    for removes in (True, False):
        id = box.create("sh", "-c", "exit 3", name="brief", host={"AutoRemove": removes})
        box.containers.start(id)
        for ref in (id, id[:12], "brief"):
            assert box.client.wait(ref).result() == {"StatusCode": 3}
            assert box.client.wait(ref, "removed" if removes else "").result() == {"StatusCode": 3}
            time.sleep(0.05)
        if not removes:
            box.containers.remove(id)
            refused("NotFound", "No such container: " + id, box.client.wait, id)
    id = box.create(*LOOP, host={"AutoRemove": True})
    box.containers.start(id)
    box.containers.remove(id, force=True)
    refused("NotFound", "No such container: " + id, box.client.wait, id)


def test_wait(web):
    refused("InvalidParameter", 'invalid condition: "soon"', web.client.wait, "web", "soon")
    waiters = [web.client.wait("web", condition) for condition in ("not-running", "next-exit")]
    web.containers.kill("web")
    assert [waiter.result() for waiter in waiters] == [{"StatusCode": 137}] * 2
    assert web.client.wait("web").result() == {"StatusCode": 137}
    created = web.create("true")
    assert web.client.wait(created).result() == {"StatusCode": 0}
    later = web.client.wait(created, "next-exit")
    web.containers.start(created)
    assert later.result() == {"StatusCode": 0}


# ---- logs


def test_logs(box):  # noqa: F811
    id = box.run("sh", "-c", "echo a; echo b >&2; printf c")[3]
    whole = box.logs(id)
    assert b"a\n" in whole and b"b\n" in whole and whole.endswith(b"c")
    assert box.logs(id, stderr=0, tail=1)[8:] == b"c"
    first = box.logs(id, stderr=0, timestamps=1)[8:].split(b" ")[0]
    assert len(first) == len("2026-11-24T01:02:03.123456789Z")
    refused("InvalidParameter", "Bad parameters: you must choose at least one stream", box.logs, id,
            stdout=0, stderr=0)


def test_logs_raw_with_a_terminal(box):  # noqa: F811
    assert box.logs(box.run("echo", "hi", Tty=True)[3]) == b"hi\r\n"


def test_logs_none(box):  # noqa: F811
    id = box.run("echo", "hi", host={"LogConfig": {"Type": "none"}})[3]
    refused("Unsupported", "configured logging driver does not support reading", box.logs, id)
    assert box.inspect(id)["LogPath"] == ""


def test_follow_to_the_end(box):  # noqa: F811
    id = box.create("sh", "-c", "for i in 1 2 3; do echo $i; sleep 0.1; done; printf end")
    box.containers.start(id)
    out = []
    thread = threading.Thread(target=lambda: out.append(box.logs(id, follow=1)))
    thread.start()
    thread.join(10)
    text = b""
    data = out[0]
    while data:
        size = int.from_bytes(data[4:8], "big")
        text += data[8 : 8 + size]
        data = data[8 + size :]
    assert text == b"1\n2\n3\nend"


def test_follow_of_one_that_is_over(box):  # noqa: F811
    assert box.logs(box.run("echo", "hi")[3], follow=1)[8:] == b"hi\n"
    assert box.logs(box.create("true"), follow=1) == b""


def test_resize(box):  # noqa: F811
    id = box.create("sh", OpenStdin=True, Tty=True)
    refused("Conflict", f"container {id} is not running", box.client.post,
            f"/containers/{id}/resize", {"h": 10, "w": 20})
    sock = box.attach(id, stdin=1)
    box.containers.start(id)
    box.client.post(f"/containers/{id}/resize", {"h": 10, "w": 20})
    sock.sendall(b"stty size; exit\n")
    assert b"10 20" in received(sock)
    with pytest.raises(engine.InvalidParameter, match="invalid resize height"):
        box.client.post(f"/containers/{id}/resize", {"h": "x", "w": 20})


def test_records_are_json_on_disk(web):
    id = web.client.post("/containers/web/exec", {}, {"Cmd": ["true"]})["Id"]
    c = web.containers.find("web")
    with open(f"{engine.exec_dir(web.store, c.id)}/{id}.json") as file:
        assert json.load(file)["process"]["args"] == ["true"]


def test_an_exec_that_meets_a_pause_does_not_stop_the_monitor(web):
    """A pause between this side's look and the monitor's start: it must refuse by itself."""
    id = web.client.post("/containers/web/exec", {}, {"Cmd": ["true"]})["Id"]
    c = web.containers.find("web")
    web.containers.pause("web")
    document = engine.os.memfd_create("exec")
    message = {"verb": "exec", "id": id, "tty": False, "stdin": False, "stdout": False,
               "stderr": False}
    refused("Conflict", f"Container {c.id} is paused, unpause the container before exec",
            engine.monitor_call, web.store, c.id, message, [document])
    engine.os.close(document)
    web.containers.unpause("web")
    assert execute(web, "true")[2] == 0


def test_verbs_at_the_same_moment(box):  # noqa: F811
    """Many commands on one container: only clean refusals, and nothing stays behind."""
    stop = time.monotonic() + 3
    wrong = []

    def work(number):
        containers = engine.Containers(box.engine)
        turn = number
        while time.monotonic() < stop:
            turn += 1
            try:
                if turn % 6 == 0:
                    containers.create(box.body("sleep", "60"), name="one")
                elif turn % 6 == 5:
                    containers.remove("one", force=turn % 4 != 0)
                else:
                    verb = ("start", "pause", "unpause", "stop")[turn % 6 - 1]
                    getattr(containers, verb)(*(("one", 0) if verb == "stop" else ("one",)))
            except engine.EngineError as failure:
                if failure.status not in (304, 404, 409) and "is not paused" not in str(failure):
                    wrong.append(str(failure))
            except Exception:
                wrong.append(traceback.format_exc())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert wrong == [], wrong[0]
