"""curl on the built engine.pyz: what scripts and people who look closer do."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
from clients_help import api, ours  # noqa: F401

pytestmark = pytest.mark.root


@pytest.fixture
def curl(ours):  # noqa: F811
    """curl("/path", ...) -> bytes; options stand before the path."""
    if not shutil.which("curl"):
        pytest.skip("no curl: apt-get install curl")

    def run(path, *options, code=0, input=b""):
        done = subprocess.run(
            ["curl", "-sS", "--unix-socket", ours.socket, *options, "http://localhost" + path],
            input=input,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            timeout=30,
        )
        assert done.returncode == code, done.stderr
        return done.stdout

    return run


@pytest.fixture
def container(ours):  # noqa: F811
    """start("sh", "-c", ...) -> id of a container that runs."""
    made = []

    def start(*words, **config):
        body = {"Image": "busybox", "Cmd": words, "HostConfig": {"NetworkMode": "none"}, **config}
        made.append(api(ours, "POST", "/containers/create", body).json()["Id"])
        assert api(ours, "POST", f"/containers/{made[-1]}/start").status == 204
        return made[-1]

    yield start
    for id in made:
        api(ours, "DELETE", f"/containers/{id}?force=1")


def test_head_and_heads(curl):
    head = curl("/_ping", "--head").decode()
    assert head.startswith("HTTP/1.1 200 OK\r\n")
    for line in ("Api-Version: 1.51", "Builder-Version: 1", "Ostype: linux", "Swarm: inactive"):
        assert f"\r\n{line}\r\n" in head
    assert curl("/_ping") == b"OK"
    told = curl("/v1.41/containers/nosuch/json", "-i").decode()
    assert told.startswith("HTTP/1.1 404 Not Found\r\n")
    assert told.endswith('\r\n\r\n{"message":"No such container: nosuch"}\n')
    assert "\r\nContent-Type: application/json\r\n" in told


def test_create_start_logs_wait(curl):
    script = ["sh", "-c", "echo a; echo b >&2; sleep 0.5; exit 3"]
    config = {"Image": "busybox", "Cmd": script, "HostConfig": {"NetworkMode": "none"}}
    body = json.dumps(config)
    json_type = ("-H", "Content-Type: application/json")
    id = json.loads(curl("/containers/create?name=curl", *json_type, "-d", body))["Id"]
    assert curl(f"/containers/{id}/start", "-X", "POST", "-w", "%{http_code}") == b"204"
    followed = curl("/containers/curl/logs?stdout=1&stderr=1&follow=1", "-i")
    head, _, frames = followed.partition(b"\r\n\r\n")
    assert b"\r\nTransfer-Encoding: chunked" in head
    assert b"\r\nContent-Type: application/vnd.docker.multiplexed-stream" in head
    assert sorted((frames[:10], frames[10:])) == [b"\1\0\0\0\0\0\0\2a\n", b"\2\0\0\0\0\0\0\2b\n"]
    assert json.loads(curl("/containers/curl/wait", "-X", "POST")) == {"StatusCode": 3}
    assert curl("/containers/curl", "-X", "DELETE", "-w", "%{http_code}") == b"204"


def test_attach_in_the_old_way(curl, container):
    """Without an Upgrade the reply is 200, and its body ends with the connection."""
    id = container("sh", "-c", "sleep 0.5; echo late")
    got = curl(f"/containers/{id}/attach?stream=1&stdout=1", "-i", "-X", "POST")
    head, _, frames = got.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Content-Type: application/vnd.docker.raw-stream" in head
    assert frames == b"\1\0\0\0\0\0\0\5late\n"


def test_exec_upgraded_and_not(curl, container):
    id = container("sleep", "100")
    json_type = ("-H", "Content-Type: application/json")
    asked = '{"Cmd": ["echo", "hi"], "AttachStdout": true}'
    for options, status in (((), b"200 OK"),
                            (("-H", "Connection: Upgrade", "-H", "Upgrade: tcp"), b"101 UPGRADED")):
        made = json.loads(curl(f"/containers/{id}/exec", *json_type, "-d", asked))["Id"]
        got = curl(f"/exec/{made}/start", "-i", *json_type, *options, "-d", "{}")
        assert got.startswith(b"HTTP/1.1 " + status)
        assert got.endswith(b"\r\n\r\n\1\0\0\0\0\0\0\3hi\n")
        assert json.loads(curl(f"/exec/{made}/json"))["ExitCode"] == 0


def test_events_until_the_client_leaves(curl, container, ours):  # noqa: F811
    id = container("true")
    assert api(ours, "POST", f"/containers/{id}/wait").json()["StatusCode"] == 0
    query = ("-G", "--data-urlencode", f'filters={{"container":["{id}"]}}', "-d", "since=1")
    lines = curl("/events", *query, "-d", f"until={2**31}", "-m", "1", code=28)
    actions = [json.loads(line)["Action"] for line in lines.splitlines()]
    assert actions == ["create", "start", "die"]


def test_images_by_pipe(curl, busybox_tar):
    loaded = curl("/images/load", "-X", "POST", "-T", busybox_tar)      # with 100-continue
    assert json.loads(loaded) == {"stream": "Loaded image: busybox:latest\n"}
    with open(busybox_tar, "rb") as file:
        chunked = ("-H", "Transfer-Encoding: chunked", "-X", "POST", "--data-binary", "@-")
        loaded = curl("/images/load?quiet=1", *chunked, input=file.read())
    assert json.loads(loaded) == {"stream": "Loaded image: busybox:latest\n"}
    assert curl("/images/busybox/get").count(b"manifest.json") == 1
    told = curl("/images/busybox/tag?repo=curl&tag=1", "-X", "POST", "-w", "%{http_code}")
    assert told == b"201"
    assert json.loads(curl("/images/curl:1", "-X", "DELETE")) == [{"Untagged": "curl:1"}]
