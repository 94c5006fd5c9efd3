"""Commands on containers against an engine that is a list of answers."""

from __future__ import annotations

import os
import socket
import struct
import threading

import engine
import pytest

HELP_OF_RUN = f"\n\nRun '{engine.program_name()} run --help' for more information\n"

ID = "a" * 64


class FakeTransport:
    """Answers requests by {(method, path): value, error or function}; keeps what was asked."""

    def __init__(self):
        self.answers = {}
        self.asked = []
        self.lock = threading.Lock()

    def hijack(self, request):
        return self.send(request)

    def expect(self, config):
        self.expected = config

    def send(self, request):
        with self.lock:
            self.asked.append(
                (
                    request.method,
                    request.path,
                    {k: v[0] for k, v in request.query.items()},
                    request.body.value,
                )
            )
        answer = self.answers.get((request.method, request.path))
        if callable(answer):
            answer = answer(request)
        if isinstance(answer, engine.EngineError):
            return engine.Response(answer.status, value={"message": str(answer)}, error=answer)
        if isinstance(answer, (socket.socket, engine.Stream, engine.Response)):
            return answer
        if answer is None and (request.method, request.path) not in self.answers:
            error = engine.NotFound("page not found")
            return engine.Response(404, value={"message": str(error)}, error=error)
        return engine.Response(200, value=answer)


@pytest.fixture
def fake(monkeypatch):
    transport = FakeTransport()
    monkeypatch.setattr(engine, "client_local", lambda data, run: engine.ApiClient(transport))
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    return transport


@pytest.fixture
def run(fake, capfd):
    def run(*words):
        code = engine.cli_main(list(words))
        out, err = capfd.readouterr()
        return code, out, err

    return run


def frame(stream, data):
    return struct.pack(">BxxxL", stream, len(data)) + data


def stream_of(*frames):
    """The near end of a connection on which the frames come, then its end."""
    near, far = socket.socketpair()
    far.sendall(b"".join(frames))
    far.close()
    return near


def answer_of(text):
    return stream_of(text)


def ready_to_run(fake, frames=(), status=0):
    fake.answers.update(
        {
            ("POST", "/containers/create"): {"Id": ID, "Warnings": []},
            ("POST", f"/containers/{ID}/attach"): lambda request: stream_of(*frames),
            ("POST", f"/containers/{ID}/wait"): lambda request: stream_of(
                b'{"StatusCode":%d}\n' % status
            ),
            ("POST", f"/containers/{ID}/start"): None,
            ("POST", f"/containers/{ID}/resize"): None,
        }
    )


def test_run_attaches_waits_starts(fake, run):
    ready_to_run(fake, (frame(1, b"out\n"), frame(2, b"err\n")), 7)
    assert run("run", "--rm", "--network", "none", "x", "sh", "-c", "exit 7") == (
        7,
        "out\n",
        "err\n",
    )
    assert [path for _, path, _, _ in fake.asked] == [
        "/containers/create",
        f"/containers/{ID}/attach",
        f"/containers/{ID}/wait",
        f"/containers/{ID}/start",
    ]
    _, _, query, body = fake.asked[0]
    assert (
        query == {} and body["Cmd"] == ["sh", "-c", "exit 7"] and body["HostConfig"]["AutoRemove"]
    )
    assert fake.asked[1][2] == {"stream": "1", "stdout": "1", "stderr": "1"}
    assert fake.asked[2][2] == {"condition": "removed"}


def test_run_detached(fake, run, tmp_path):
    ready_to_run(fake)
    cidfile = str(tmp_path / "cid")
    assert run("run", "-d", "--name", "n", "--cidfile", cidfile, "x") == (0, ID + "\n", "")
    assert [path for _, path, _, _ in fake.asked] == [
        "/containers/create",
        f"/containers/{ID}/start",
    ]
    assert fake.asked[0][2] == {"name": "n"}
    assert not any(fake.asked[0][3][key] for key in ("AttachStdin", "AttachStdout", "AttachStderr"))
    assert open(cidfile).read() == ID
    code, _, err = run("run", "--cidfile", cidfile, "x")
    assert (code, err) == (
        125,
        "docker: container ID file found, make sure the other container isn't "
        f"running or delete {cidfile}" + HELP_OF_RUN,
    )


@pytest.mark.parametrize(
    "error, code, text",
    [
        (engine.CommandNotFound("exec: nope: not found"), 127, "exec: nope: not found"),
        (
            engine.CannotInvoke("exec: /etc: permission denied"),
            126,
            "exec: /etc: permission denied",
        ),
        (engine.Conflict("taken"), 125, "taken"),
    ],
)
def test_run_fails_to_start(fake, run, error, code, text):
    ready_to_run(fake)
    fake.answers["POST", f"/containers/{ID}/start"] = error
    want = (code, "", f"docker: Error response from daemon: {text}" + HELP_OF_RUN)
    assert run("run", "--rm", "x") == want
    assert run("run", "x") == want


def test_run_without_image(fake, run, tmp_path):
    fake.answers["POST", "/containers/create"] = engine.NotFound("No such image: nope:latest")
    cidfile = tmp_path / "cid"
    fake.answers["POST", "/images/create"] = engine.NotFound("pull access denied for nope")
    assert run("run", "--cidfile", str(cidfile), "nope") == (
        125, "", "Unable to find image 'nope:latest' locally\n"
        "docker: Error response from daemon: pull access denied for nope" + HELP_OF_RUN)
    assert not cidfile.exists()
    assert run("run", "--pull", "never", "nope")[2] == (
        "docker: Error response from daemon: No such image: nope:latest" + HELP_OF_RUN
    )


@pytest.mark.parametrize(
    "words, code, text",
    [
        (
            ["run", "-m", "x", "y"],
            125,
            'invalid argument "x" for "-m, --memory" flag: invalid size: \'x\'',
        ),
        (
            ["run", "--rm", "--restart", "always", "y"],
            125,
            "docker: conflicting options: cannot specify both --restart and --rm",
        ),
        (
            ["run", "-d", "-a", "stdin", "y"],
            1,
            "conflicting options: cannot specify both --attach and --detach",
        ),
        (["create", "-p", "a", "y"], 125, "docker: invalid containerPort: a"),
        (
            ["run", "--pull", "x", "y"],
            125,
            'docker: invalid pull option: \'x\': must be one of "always", "missing" or "never"',
        ),
        (
            ["run", "--detach-keys", "ctrl-", "y"],
            1,
            "invalid detach keys (ctrl-): Unknown character: 'ctrl-'",
        ),
        (["start", "-a", "a", "b"], 1, "you cannot start and attach multiple containers at once"),
        (
            ["inspect", "--type", "foo", "a"],
            1,
            'unknown type: "foo": must be one of "config", "container", '
            '"image", "network", "node", "plugin", "secret", "service", "task", "volume"',
        ),
        (["rename", "a", " "], 1, "Error: Neither old nor new names may be empty"),
        (["rm", ""], 1, "container name cannot be empty"),
        (
            ["stop", "-t", "1", "--time", "2", "a"],
            1,
            "conflicting options: cannot specify both --timeout and --time",
        ),
    ],
)
def test_one_line_for_each_mistake(run, words, code, text):
    got = run(*words)
    told = got[2].partition("\n\nUsage:  ")[0].partition("\n\nRun ")[0].splitlines()[-1]
    assert (got[0], got[1], told) == (code, "", text)


def test_input_that_is_no_terminal(run, monkeypatch):
    monkeypatch.setattr(engine.os, "isatty", lambda fd: False)
    assert run("run", "-it", "x") == (1, "", "the input device is not a TTY\n")


def test_create_prints_warnings(fake, run):
    fake.answers["POST", "/containers/create"] = {"Id": ID, "Warnings": ["careful"]}
    assert run("create", "--platform", "linux/amd64", "x") == (0, ID + "\n", "WARNING: careful\n")
    assert fake.asked[0][2] == {"platform": "linux/amd64"}


def test_many_at_once(fake, run):
    for name in "abc":
        fake.answers["POST", f"/containers/{name}/stop"] = None
    fake.answers["POST", "/containers/b/stop"] = engine.NotFound("No such container: b")
    assert run("stop", "-t", "3", "-s", "INT", "a", "b", "c") == (
        1,
        "a\nc\n",
        "Error response from daemon: No such container: b\n",
    )
    assert sorted(fake.asked)[0] == (
        "POST",
        "/containers/a/stop",
        {"signal": "INT", "t": "3"},
        None,
    )


def test_rm(fake, run):
    fake.answers["DELETE", "/containers/a"] = None
    fake.answers["DELETE", "/containers/b"] = engine.NotFound("No such container: b")
    gone = "Error response from daemon: No such container: b\n"
    assert run("rm", "-f", "-v", "b", "a") == (0, "a\n", gone)
    assert ("DELETE", "/containers/a", {"v": "1", "force": "1"}, None) in fake.asked
    assert run("rm", "b") == (1, "", gone)


def test_start_names_what_failed(fake, run):
    fake.answers["POST", "/containers/a/start"] = engine.Response(304)
    for name in "bc":
        fake.answers["POST", f"/containers/{name}/start"] = engine.NotFound(
            f"No such container: {name}"
        )
    assert run("start", "b", "a") == (
        1,
        "a\n",
        "Error response from daemon: No such container: b\n"
        "Error: failed to start containers: b\n",
    )
    assert run("start", "b", "c")[2].splitlines()[-1] == "Error: failed to start containers: b, c"


def test_rename_says_which(fake, run):
    fake.answers["POST", "/containers/b/rename"] = engine.NotFound("No such container: b")
    assert run("rename", " b", "c") == (
        1,
        "",
        "Error response from daemon: No such container: b\n"
        "Error: failed to rename container named b\n",
    )


def test_a_wrong_platform(run):
    text = 'error parsing specified platform: "bogus": unknown operating system or architecture: '
    text += "invalid argument"
    assert run("run", "--platform", "bogus", "x") == (125, "", "docker: " + text + HELP_OF_RUN)
    assert run("create", "--platform", "bogus", "x") == (1, "", text + "\n")


def test_only_run_tells_the_command_s_own_failures(fake, run):
    ready_to_run(fake, (), 0)
    fake.answers["GET", "/containers/a/json"] = {
        "Id": ID,
        "Config": {"Tty": False, "OpenStdin": False},
        "HostConfig": {"AutoRemove": False},
    }
    missing = engine.CommandNotFound("no such program")
    fake.answers["POST", f"/containers/{ID}/start"] = missing
    told = (1, "", "Error response from daemon: no such program\n")
    assert run("start", "-a", "a") == told
    fake.answers["POST", "/containers/a/exec"] = {"Id": "e"}
    fake.answers["POST", "/exec/e/start"] = engine.CommandNotFound("no such program")
    assert run("exec", "-d", "a", "nope") == told


def test_start_attached(fake, run):
    ready_to_run(fake, (frame(1, b"again\n"),), 3)
    fake.answers["GET", "/containers/a/json"] = {
        "Id": ID,
        "Config": {"Tty": False, "OpenStdin": False},
        "HostConfig": {"AutoRemove": False},
    }
    assert run("start", "-ai", "a") == (3, "again\n", "")
    assert fake.asked[2][2] == {"condition": "next-exit"}


def test_attach(fake, run):
    state = {"Running": True, "Paused": False, "Restarting": False}
    found = {"Id": ID, "Config": {"Tty": False, "OpenStdin": False}, "State": state}
    fake.answers["GET", "/containers/a/json"] = found
    ready_to_run(fake, (frame(2, b"hello\n"),), 4)
    assert run("attach", "--no-stdin", "a") == (4, "", "hello\n")
    state["Running"] = False
    assert run("attach", "a") == (
        1,
        "",
        "You cannot attach to a stopped container, start it first\n",
    )
    state.update(Running=True, Paused=True)
    assert run("attach", "a") == (
        1,
        "",
        "You cannot attach to a paused container, unpause it first\n",
    )


def test_exec(fake, run):
    fake.answers.update(
        {
            ("POST", "/containers/a/exec"): {"Id": "e1"},
            ("POST", "/exec/e1/start"): lambda request: stream_of(frame(1, b"done\n")),
            ("GET", "/exec/e1/json"): {"ExitCode": 5},
        }
    )
    assert run("exec", "-e", "A=1", "-u", "0", "-w", "/", "a", "ls", "-l") == (5, "done\n", "")
    assert fake.asked[0][3] == {
        "Cmd": ["ls", "-l"],
        "Tty": False,
        "AttachStdin": False,
        "AttachStdout": True,
        "AttachStderr": True,
        "Privileged": False,
        "User": "0",
        "WorkingDir": "/",
        "Env": ["A=1"],
    }
    fake.answers["POST", "/exec/e1/start"] = None
    assert run("exec", "-d", "a", "ls") == (0, "", "")
    assert fake.asked[-1][3] == {"Detach": True, "Tty": False}
    fake.answers["POST", "/exec/e1/start"] = engine.CommandNotFound("OCI runtime exec failed: nope")
    assert run("exec", "a", "nope") == (127, "", "OCI runtime exec failed: nope\n")
    assert run("exec", "b", "ls")[2].startswith("Error response from daemon: ")


def test_logs(fake, run):
    fake.answers["GET", "/containers/a/json"] = {"Id": ID, "Config": {"Tty": False}}
    fake.answers["GET", f"/containers/{ID}/logs"] = lambda request: engine.Stream(
        iter([frame(1, b"a\n") + frame(2, b"b\n")[:5], frame(2, b"b\n")[5:]])
    )
    assert run("logs", "-n", "5", "--since", "2024-01-02T03:04:05.5Z", "a") == (0, "a\n", "b\n")
    query = fake.asked[-1][2]
    assert (
        query["tail"] == "5" and query["since"] == "1704164645.500000000" and "until" not in query
    )
    assert run("logs", "--since", "foo", "a")[2].startswith('invalid value for "since": ')


def test_wait_top_diff_rename_prune(fake, run, monkeypatch):
    fake.answers.update(
        {
            ("POST", "/containers/a/wait"): lambda request: stream_of(b'{"StatusCode":3}'),
            ("POST", "/containers/b/wait"): engine.NotFound("No such container: b"),
            ("GET", "/containers/a/top"): {"Titles": ["PID", "CMD"], "Processes": [["1", "sh"]]},
            ("GET", "/containers/a/changes"): [
                {"Path": "/x", "Kind": 0},
                {"Path": "/x/y", "Kind": 1},
                {"Path": "/z", "Kind": 2},
            ],
            ("POST", "/containers/a/rename"): None,
            ("POST", "/containers/prune"): {"ContainersDeleted": [ID], "SpaceReclaimed": 1500},
        }
    )
    assert run("wait", "a", "b") == (1, "3\n", "Error response from daemon: No such container: b\n")
    assert run("top", "a", "-o", "pid")[1].split() == ["PID", "CMD", "1", "sh"]
    assert fake.asked[-1][2] == {"ps_args": "-o pid"}
    assert run("diff", "a") == (0, "C /x\nA /x/y\nD /z\n", "")
    assert run("rename", "a", "c") == (0, "", "") and fake.asked[-1][2] == {"name": "c"}
    assert run("container", "prune", "-f", "--filter", "until=1h") == (
        0,
        f"Deleted Containers:\n{ID}\n\nTotal reclaimed space: 1.5kB\n",
        "",
    )
    assert fake.asked[-1][2] == {"filters": '{"until":["1h"]}'}
    monkeypatch.setattr(engine.sys, "stdin", open(os.devnull))
    code, out, _ = run("container", "prune")
    assert code == 0 and out.endswith("Are you sure you want to continue? [y/N] ")


def test_ps(fake, run):
    fake.answers["GET", "/containers/json"] = []
    assert run("ps", "-a", "-f", "name=x", "-n", "3")[1].startswith("CONTAINER ID   IMAGE")
    assert fake.asked[-1][2] == {"all": "1", "limit": "3", "filters": '{"name":["x"]}'}
    assert run("ps", "-lq") == (0, "", "") and fake.asked[-1][2] == {"limit": "1"}
    run("ps", "--format", "{{.Size}}")
    assert fake.asked[-1][2] == {"size": "1"}
    assert run("ps", "-q", "--format", "{{.ID}}")[2].startswith("WARNING: Ignoring custom format")


def test_inspect(fake, run):
    fake.answers[("GET", "/containers/a/json")] = {"Id": "1", "Name": "/a"}
    fake.answers[("GET", "/images/i/json")] = {"Id": "2"}
    fake.answers[("GET", "/networks/z")] = engine.Unsupported("networks: not yet")
    assert run("inspect", "-f", "{{.Id}}", "a", "i", "z") == (
        1,
        "1\n2\n",
        "Error: No such object: z\n",
    )
    assert run("container", "inspect", "i")[0] == 1
    assert run("inspect", "--type", "image", "i") == (
        0,
        '[\n    {\n        "Id": "2"\n    }\n]\n',
        "",
    )
    assert run("inspect", "-f", "{{", "a")[0] == 64


def test_port(fake, run):
    fake.answers["GET", "/containers/a/json"] = {
        "NetworkSettings": {
            "Ports": {
                "80/tcp": [
                    {"HostIp": "0.0.0.0", "HostPort": "8080"},
                    {"HostIp": "::", "HostPort": "8080"},
                ]
            }
        }
    }
    assert run("port", "a") == (0, "80/tcp -> 0.0.0.0:8080\n80/tcp -> [::]:8080\n", "")
    assert run("port", "a", "80") == (0, "0.0.0.0:8080\n[::]:8080\n", "")
    assert run("port", "a", "81/udp") == (1, "", "Error: No public port '81/udp' published for a\n")
    fake.answers["GET", "/containers/a/json"] = {"NetworkSettings": {"Ports": {}}}
    assert run("port", "a") == (0, "", "")
