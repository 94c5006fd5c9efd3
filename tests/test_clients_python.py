"""docker-py and aiodocker on the built engine.pyz: what their users write."""

from __future__ import annotations

import asyncio
import io
import socket
import tarfile
import threading
import time

import pytest
from clients_help import ours  # noqa: F401

docker = pytest.importorskip("docker")
aiodocker = pytest.importorskip("aiodocker")

pytestmark = pytest.mark.root
ALONE = {"network_mode": "none"}
VERSIONS = ("1.24", "1.30", "1.41", "1.42", "1.49", "1.51")


@pytest.fixture
def client(ours):  # noqa: F811
    made = docker.DockerClient("unix://" + ours.socket, timeout=30)
    yield made
    for container in made.containers.list(all=True):
        container.remove(force=True)
    made.close()


def test_what_everybody_does_first(client):
    assert client.ping() is True
    assert client.version()["ApiVersion"] == "1.51"
    assert client.api._version == "1.51"
    info = client.info()
    assert (info["Driver"], info["LoggingDriver"], info["OSType"]) == (
        "overlay2",
        "json-file",
        "linux",
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_versions(ours, version):  # noqa: F811
    client = docker.DockerClient("unix://" + ours.socket, version=version, timeout=30)
    out = client.containers.run("busybox", "echo hi", remove=version != "1.24", **ALONE)
    assert out == b"hi\n"
    container = client.containers.run("busybox", "cat", detach=True, stdin_open=True, **ALONE)
    assert container.status == "created" and client.containers.get(container.id).status == "running"
    assert container.exec_run(["sh", "-c", "echo a; exit 3"]) == (3, b"a\n")
    assert [c.id for c in client.containers.list()] == [container.id]
    assert client.images.get("busybox").tags == ["busybox:latest"]
    assert [image.tags for image in client.images.list()] == [["busybox:latest"]]
    container.stop(timeout=0)
    assert container.wait() == {"StatusCode": 137}
    container.remove()
    for left in client.containers.list(all=True):
        left.remove()
    client.close()


def test_run_and_its_errors(client):
    with pytest.raises(docker.errors.ContainerError) as failed:
        client.containers.run("busybox", ["sh", "-c", "echo bad >&2; exit 5"], **ALONE)
    assert (failed.value.exit_status, failed.value.stderr) == (5, b"bad\n")
    with pytest.raises(docker.errors.ImageNotFound, match="No such image: nosuch:latest"):
        client.api.create_container("nosuch", "true")
    with pytest.raises(docker.errors.NotFound, match="No such container: nosuch"):
        client.containers.get("nosuch")
    with pytest.raises(docker.errors.APIError, match="executable file not found") as failed:
        client.containers.run("busybox", "nosuchcommand", **ALONE)
    assert failed.value.status_code == 400
    client.containers.create("busybox", name="taken", **ALONE)
    with pytest.raises(docker.errors.APIError, match="is already in use") as failed:
        client.containers.create("busybox", name="taken", **ALONE)
    assert failed.value.status_code == 409


def test_logs_come_line_by_line(client):
    script = "echo one; echo two; echo bad >&2; sleep 0.3; echo three"
    container = client.containers.run("busybox", ["sh", "-c", script], detach=True, **ALONE)
    lines = list(container.logs(stream=True, follow=True))
    assert sorted(lines) == [b"bad\n", b"one\n", b"three\n", b"two\n"]
    assert lines[-1] == b"three\n"
    assert container.logs(stderr=False) == b"one\ntwo\nthree\n"
    assert container.logs(stdout=False) == b"bad\n"
    assert container.logs(tail=1) == b"three\n"
    assert container.logs(since=int(time.time()) + 100) == b""
    stamp, text = container.logs(tail=1, timestamps=True).split(b" ")
    assert stamp.endswith(b"Z") and text == b"three\n"


def test_attach_with_input(client):
    container = client.containers.create("busybox", "cat", stdin_open=True, **ALONE)
    sock = container.attach_socket(params={"stdin": 1, "stdout": 1, "stream": 1})
    container.start()
    sock._sock.sendall(b"typed\n")
    sock._sock.shutdown(socket.SHUT_WR)
    frame = b""
    while True:
        part = sock._sock.recv(100)
        if not part:
            break
        frame += part
    assert frame == b"\1\0\0\0\0\0\0\6typed\n"
    sock.close()
    container.stop(timeout=0)
    assert container.logs() == b"typed\n"


def test_exec_streams(client):
    container = client.containers.run("busybox", "sleep 100", detach=True, **ALONE)
    command = ["sh", "-c", "echo out; echo err >&2"]
    # The first output must not come with the reply's head: docker-py reads past its own buffer.
    outputs = {container.exec_run(command, demux=True).output for _ in range(20)}
    assert outputs == {(b"out\n", b"err\n")}
    stream = container.exec_run(["sh", "-c", "echo a; sleep 0.2; echo b"], stream=True)
    assert list(stream.output) == [b"a\n", b"b\n"]
    assert container.exec_run("tty", tty=True).output == b"/dev/pts/0\r\n"
    environment = container.exec_run(["sh", "-c", "echo $A; pwd; id -u"], environment={"A": "1"},
                                     workdir="/tmp", user="1000")
    assert environment.output == b"1\n/tmp\n1000\n"
    sock = container.exec_run("cat", stdin=True, socket=True).output
    sock._sock.sendall(b"through")
    sock._sock.shutdown(socket.SHUT_WR)
    assert sock._sock.recv(100) == b"\1\0\0\0\0\0\0\x07through"
    sock.close()
    made = client.api.exec_create(container.id, "tty", tty=True)["Id"]
    # frames, as the start did not say Tty
    assert client.api.exec_start(made) == b"/dev/pts/0\r\n"
    shown = client.api.exec_inspect(made)
    assert (shown["ExitCode"], shown["Running"], shown["ContainerID"]) == (0, False, container.id)
    made = client.api.exec_create(container.id, "cat", tty=True, stdin=True)["Id"]
    sock = client.api.exec_start(made, tty=True, socket=True)
    client.api.exec_resize(made, height=33, width=101)
    sock.close()


def test_life_of_a_container(client):
    container = client.containers.create(
        "busybox", "sleep 100", name="web", labels={"a": "b"}, tty=True, **ALONE
    )
    events = []
    stream = client.events(decode=True, filters={"container": "web"})
    reader = threading.Thread(target=lambda: events.extend(stream))
    reader.start()
    time.sleep(0.2)
    container.start()
    container.resize(height=20, width=60)
    container.pause()
    container.reload()
    assert container.status == "paused"
    container.unpause()
    container.rename("web2")
    container.rename("web")
    assert [name for name in container.top()["Titles"]][:2] == ["UID", "PID"]
    container.exec_run("touch /tmp/new")
    assert {"Path": "/tmp/new", "Kind": 1} in container.diff()
    found = client.containers.list(filters={"label": "a=b", "name": "web", "status": "running"})
    assert [c.name for c in found] == ["web"]
    waiter = threading.Thread(target=lambda: events.append(container.wait(condition="removed")))
    waiter.start()
    time.sleep(0.2)
    container.kill("TERM")
    container.restart(timeout=0)
    container.remove(force=True)
    waiter.join(10)
    stream.close()
    reader.join(10)
    assert {"StatusCode": 137} in events
    actions = [event["Action"] for event in events if "Action" in event]
    expected = "start resize pause unpause rename top kill die restart destroy"
    assert [action for action in expected.split() if action not in actions] == []
    assert client.containers.prune() == {"ContainersDeleted": None, "SpaceReclaimed": 0}


def test_top_shows_what_was_started(client):
    for _ in range(5):
        container = client.containers.run("busybox", "sleep 100", detach=True, **ALONE)
        assert [row[-1] for row in container.top()["Processes"]] == ["sleep 100"]
        container.remove(force=True)


def test_images(client):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        info = tarfile.TarInfo("file")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"text"))
    made = client.api.import_image_from_data(data.getvalue(), repository="own", tag="1")
    assert '{"status":"sha256:' in made
    image = client.images.get("own:1")
    assert image.tag("other", "2") is True
    image.reload()
    assert image.tags == ["other:2", "own:1"]
    assert client.images.list(filters={"reference": "own"})[0].id == image.id
    archive = b"".join(image.save(named="own:1"))
    client.images.remove("own:1")
    client.images.remove("other:2")
    with pytest.raises(docker.errors.ImageNotFound):
        client.images.get("own:1")
    assert client.images.load(archive)[0].tags == ["own:1"]
    assert client.images.get("own:1").history()[0]["Comment"] == "Imported from -"
    gone = client.api.remove_image("own:1")
    assert gone[0] == {"Untagged": "own:1"} and "Deleted" in gone[1]
    assert client.images.prune() == {"ImagesDeleted": None, "SpaceReclaimed": 0}


async def _aio_journey(path):
    client = aiodocker.Docker("unix://" + path)
    try:
        assert (await client.version())["Version"]
        config = {
            "Image": "busybox",
            "Cmd": ["sh", "-c", "read x; echo got $x; echo bad >&2"],
            "OpenStdin": True,
            "StdinOnce": True,
            "AttachStdin": True,
            "HostConfig": {"NetworkMode": "none"},
        }
        container = await client.containers.create(config, name="aio")
        stream = container.attach(stdin=True, stdout=True, stderr=True, logs=True)
        async with stream:
            await container.start()
            await stream.write_in(b"line\n")
            said = [await stream.read_out(), await stream.read_out()]
        assert sorted((message.stream, message.data) for message in said) == [
            (1, b"got line\n"),
            (2, b"bad\n"),
        ]
        assert (await container.wait())["StatusCode"] == 0
        assert await container.log(stdout=True) == ["got line\n"]
        await container.restart()
        run = await container.exec(["sh", "-c", "cat; exit 4"], stdin=True)
        async with run.start(detach=False) as pipe:
            await pipe.write_in(b"x")
            assert (await pipe.read_out()).data == b"x"
        shown = await container.show()
        assert shown["State"]["Running"] is True
        await container.delete(force=True)
        with pytest.raises(aiodocker.DockerError) as failed:
            await client.containers.get("aio")
        assert failed.value.status == 404
        assert (await client.images.inspect("busybox"))["RepoTags"] == ["busybox:latest"]
    finally:
        await client.close()


def test_aiodocker(ours):  # noqa: F811
    asyncio.run(asyncio.wait_for(_aio_journey(ours.socket), 30))


def test_limits_devices_and_privileges(client):
    asked = {
        "mem_limit": "64m",
        "memswap_limit": "96m",
        "mem_reservation": "32m",
        "cpu_shares": 512,
        "cpu_period": 100000,
        "cpu_quota": 50000,
        "cpuset_cpus": "0",
        "pids_limit": 99,
        "ulimits": [docker.types.Ulimit(name="nofile", soft=100, hard=200)],
        "cap_add": ["NET_ADMIN"],
        "cap_drop": ["CHOWN"],
        "devices": ["/dev/null:/dev/nothing:rw"],
        "device_cgroup_rules": ["c 10:229 rwm"],
        "group_add": ["77"],
        "oom_score_adj": 200,
        "sysctls": {"net.core.somaxconn": 9},
        "security_opt": ["no-new-privileges"],
        "shm_size": "1m",
        "ipc_mode": "shareable",
    }
    script = "ulimit -n; id -G; ls /dev/nothing; cat /proc/self/oom_score_adj; sleep 60"
    words = ["sh", "-c", script]
    container = client.containers.run("busybox", words, detach=True, **asked, **ALONE)
    logs = container.logs(stream=True)
    assert [next(logs) for _ in range(4)] == [b"100\n", b"0 77\n", b"/dev/nothing\n", b"200\n"]
    host = container.attrs["HostConfig"]
    assert (host["Memory"], host["MemorySwap"], host["CpuShares"]) == (64 << 20, 96 << 20, 512)
    assert container.update(mem_limit="80m", memswap_limit="90m", cpu_shares=3)["Warnings"] is None
    container.reload()
    host = container.attrs["HostConfig"]
    assert (host["Memory"], host["MemorySwap"], host["CpuShares"]) == (80 << 20, 90 << 20, 3)
    with pytest.raises(docker.errors.APIError, match="already set memoryswap limit") as failed:
        container.update(mem_limit="200m")
    assert failed.value.status_code == 409
    with pytest.raises(docker.errors.APIError, match="Minimum memory limit allowed") as failed:
        client.containers.run("busybox", "true", mem_limit="1m", **ALONE)
    assert failed.value.status_code == 400
    words = "grep Seccomp: /proc/self/status"
    out = client.containers.run("busybox", words, privileged=True, **ALONE)
    assert out.split() == [b"Seccomp:", b"0"]
