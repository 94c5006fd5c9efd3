"""stats and update: what they print, by themselves and beside the docker CLI."""

from __future__ import annotations

import json
import shutil
import subprocess

import engine
import pytest
from container_help import box  # noqa: F401
from door_help import Door
from test_cli_containers import fake, run  # noqa: F401

IDS = ["a" * 64, "b" * 64]
CPU = {"cpu_usage": {"total_usage": 0}, "system_cpu_usage": 0, "online_cpus": 4}


def sample(name="web", id=IDS[0], used=0, **more):
    return {
        "name": "/" + name, "id": id, "pids_stats": {"current": 3}, "precpu_stats": CPU,
        "cpu_stats": {"cpu_usage": {"total_usage": used}, "system_cpu_usage": 4 * 10**9,
                      "online_cpus": 4},
        "memory_stats": {"usage": 3 << 20, "limit": 16 << 20,
                         "stats": {"total_inactive_file": 1 << 20, "inactive_file": 5}},
        "blkio_stats": {"io_service_bytes_recursive": [
            {"major": 8, "minor": 0, "op": "Read", "value": 1234567},
            {"major": 8, "minor": 0, "op": "write", "value": 1000},
            {"major": 8, "minor": 0, "op": "sync", "value": 7}]}, **more}


NONE = {"name": "/idle", "id": IDS[1], "pids_stats": {}, "cpu_stats": CPU, "precpu_stats": CPU,
        "memory_stats": {}, "blkio_stats": {"io_service_bytes_recursive": None}}
TABLE = """\
CONTAINER ID   NAME      CPU %     MEM USAGE / LIMIT   MEM %     NET I/O   BLOCK I/O      PIDS
aaaaaaaaaaaa   web       50.00%    2MiB / 16MiB        12.50%    0B / 0B   1.23MB / 1kB   3
bbbbbbbbbbbb   idle      0.00%     0B / 0B             0.00%     0B / 0B   0B / 0B        0
"""


def test_percent():
    assert engine.cpu_percent(sample(used=5 * 10**8)) == 50.0
    assert engine.cpu_percent(sample(used=0)) == 0.0
    still = {"cpu_usage": {"total_usage": 9}, "system_cpu_usage": 5, "online_cpus": 1}
    assert engine.cpu_percent({"cpu_stats": still, "precpu_stats": still}) == 0.0
    # Without a count the list of processors tells it.
    one = sample(used=10**9)
    del one["cpu_stats"]["online_cpus"]
    one["cpu_stats"]["cpu_usage"]["percpu_usage"] = [1, 2]
    assert engine.cpu_percent(one) == 50.0
    assert engine.cpu_percent(NONE) == 0.0


def test_memory():
    for memory, used in (
        ({}, 0),
        ({"usage": 10}, 10),
        ({"usage": 10, "stats": {"total_inactive_file": 4, "inactive_file": 3}}, 6),
        ({"usage": 10, "stats": {"inactive_file": 3}}, 7),
        ({"usage": 10, "stats": {"inactive_file": 30}}, 10),
    ):
        assert engine.memory_used(memory) == used


@pytest.fixture
def two(fake):  # noqa: F811
    fake.answers.update({
        ("GET", "/containers/json"): [{"Id": id} for id in IDS],
        ("GET", f"/containers/{IDS[0][:12]}/stats"): sample(used=5 * 10**8),
        ("GET", f"/containers/{IDS[1][:12]}/stats"): NONE,
        ("GET", "/containers/web/stats"): sample(used=5 * 10**8),
        ("GET", "/containers/none/stats"): engine.NotFound("No such container: none")})
    return fake


def test_a_table(two, run):  # noqa: F811
    assert run("stats", "--no-stream") == (0, TABLE, "")
    assert ("GET", "/containers/json", {}, None) in two.asked
    assert run("stats", "--no-stream", "-a")[1] == TABLE
    assert two.asked[3][2] == {"all": "1"}
    whole = run("container", "stats", "--no-stream", "--no-trunc")[1]
    assert whole.split("\n")[1].startswith(IDS[0])


def test_formats(two, run):  # noqa: F811
    first, second = run("stats", "--no-stream", "--format", "json")[1].splitlines()
    assert first == json.dumps({
        "BlockIO": "1.23MB / 1kB", "CPUPerc": "50.00%", "Container": "a" * 12, "ID": "a" * 12,
        "MemPerc": "12.50%", "MemUsage": "2MiB / 16MiB", "Name": "web", "NetIO": "0B / 0B",
        "PIDs": "3"}, separators=(",", ":"))
    assert json.loads(second)["Name"] == "idle"
    assert run("stats", "--no-stream", "--format", "{{.Container}}: {{.PIDs}}", "web", "web") == (
        0, "web: 3\n", "")
    assert run("stats", "--no-stream", "--format", "table {{.Name}}\t{{.CPUPerc}}", "web")[1] == (
        "NAME      CPU %\nweb       50.00%\n")


def test_one_that_is_not_there(two, run):  # noqa: F811
    assert run("stats", "--no-stream", "web", "none") == (
        1, "", "Error response from daemon: No such container: none\n")
    assert run("stats", "none") == (1, "", "Error response from daemon: No such container: none\n")


def test_networks_add_up(two, run):  # noqa: F811
    two.answers["GET", "/containers/web/stats"] = sample(networks={
        "eth0": {"rx_bytes": 1000, "tx_bytes": 1}, "eth1": {"rx_bytes": 500, "tx_bytes": 2}})
    assert run("stats", "--no-stream", "--format", "{{.NetIO}}", "web")[1] == "1.5kB / 3B\n"


def test_frames(two, run, monkeypatch):  # noqa: F811
    """Containers come and go; what has gone shows no values."""
    lines = [json.dumps(sample(used=5 * 10**8)).encode() + b"\n"]
    two.answers["GET", "/containers/web/stats"] = lambda request: engine.Stream(iter(lines))
    turns = iter(range(2))

    def sleep(seconds, next=next):
        if next(turns, None) is None:
            raise KeyboardInterrupt(2)
    monkeypatch.setattr(engine.time, "sleep", sleep)
    code, out, err = run("stats", "web", "--format", "{{.Name}} {{.PIDs}} {{.MemUsage}}")
    assert (code, err) == (130, "")
    frames = out.split("\033[J")
    assert len(frames) == 3 and frames[2].strip() == ""
    text = "web -- -- / --"
    assert frames[1] in (f"\033[H{text}\n\033[H{text} \033[K\n \033[K\n",)


def test_the_frame():
    assert engine.stats_frame("a\nb\n") == (
        "\033[Ha\nb\n\033[Ha \033[K\nb \033[K\n \033[K\n\033[J")


def test_update(fake, run):  # noqa: F811
    fake.answers.update({
        ("POST", "/containers/a/update"): {"Warnings": None},
        ("POST", "/containers/b/update"): {"Warnings": ["be careful"]},
        ("POST", "/containers/c/update"): engine.Conflict("no")})
    assert run("update", "--restart", "on-failure:3", "a", "b") == (0, "a\nb\nbe careful\n", "")
    policy = {"RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 3}}
    assert [body for _, _, _, body in fake.asked] == [policy, policy]
    assert run("container", "update", "-m", "6m", "--cpus", "1.5", "c") == (
        1, "", "Error response from daemon: no\n")
    assert fake.asked[-1][3] == {"Memory": 6 << 20, "NanoCpus": 1500000000}
    assert run("update", "a") == (
        1, "", "you must provide one or more flags when using this command\n")
    for text, what in (("on-failure:x", "maximum retry count must be an integer"),
                       (":3", "no policy provided before colon")):
        assert run("update", "--restart", text, "a") == (
            1, "", f"invalid restart policy format: {what}\n")


# ---- beside the docker CLI

needs_docker = pytest.mark.skipif(not shutil.which("docker"), reason="needs the docker CLI")


@pytest.fixture
def both(box, run):  # noqa: F811
    """(exit code, stdout, stderr) of a command by the docker CLI over a socket, and by ours."""
    door = Door(box.roots, box.engine)

    def both(*words):
        seen = subprocess.run(
            ["docker", "-H", f"unix://{door.unix}", *words], timeout=20, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        return (seen.returncode, seen.stdout, seen.stderr), box.command(*words)
    yield both
    box.clear()
    door.close()


@pytest.fixture
def run_local(box, capfd, monkeypatch):  # noqa: F811
    monkeypatch.setattr(engine, "client_local", lambda *roots: box.client)

    def command(*words):
        code = engine.cli_main(list(words))
        out, err = capfd.readouterr()
        return code, out, err
    box.command = command
    return command


@pytest.mark.root
@needs_docker
@pytest.mark.parametrize("words", [
    ("stats", "--no-stream", "--format", "{{.Name}} {{.ID}} {{.PIDs}} {{.NetIO}} {{.Container}}"),
    ("stats", "--no-stream", "--no-trunc", "--format", "table {{.ID}}\t{{.PIDs}}", "idle", "ended"),
    ("stats", "--no-stream", "none", "idle"),
    ("stats", "--no-stream", "ended"),
    ("stats", "--format", "{{.Nothing}}", "--no-stream", "ended"),
    ("update", "idle"),
    ("update", "--restart", "always", "idle", "none", "ended"),
    ("update", "--restart", "sometimes", "idle"),
    ("update", "--restart", "on-failure:x", "idle"),
    ("update", "--restart", ":1", "idle"),
    ("inspect", "idle", "-f", "{{json .HostConfig.RestartPolicy}}{{if .State.Health}}x{{end}}"),
])
def test_the_same_as_docker(box, both, run_local, words):  # noqa: F811
    box.containers.start(box.create("sleep", "1000", name="idle"))
    box.create("true", name="ended")
    docker, ours = both(*words)
    assert ours == docker
