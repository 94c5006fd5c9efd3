"""cli_system: version, info, events."""

from __future__ import annotations

import engine
import pytest
from command_help import command_runner

SERVER = {
    "Platform": {"Name": "engine.pyz 0.1.0"},
    "Version": "28.5.2",
    "ApiVersion": "1.51",
    "MinAPIVersion": "1.24",
    "GitCommit": "abc",
    "GoVersion": "python3.11.2",
    "Os": "linux",
    "Arch": "amd64",
    "KernelVersion": "6.1",
    "BuildTime": "2026-05-07T21:09:36.000000000+00:00",
    "Components": [
        {
            "Name": "Engine",
            "Version": "28.5.2",
            "Details": {
                "ApiVersion": "1.51",
                "MinAPIVersion": "1.24",
                "GoVersion": "python3.11.2",
                "GitCommit": "abc",
                "BuildTime": "2026-05-07T21:09:36Z",
                "Os": "linux",
                "Arch": "amd64",
                "Experimental": "false",
                "PythonVersion": "3.11.2",
            },
        },
        {"Name": "runc", "Version": "built in", "Details": {"GitCommit": "", "B": "1"}},
    ],
}
INFO = {
    "Containers": 3,
    "ContainersRunning": 1,
    "ContainersPaused": 0,
    "ContainersStopped": 2,
    "Images": 4,
    "ServerVersion": "28.5.2",
    "Driver": "overlay2",
    "DriverStatus": [["Backing Filesystem", "extfs"]],
    "LoggingDriver": "json-file",
    "CgroupDriver": "cgroupfs",
    "CgroupVersion": "2",
    "Plugins": {
        "Volume": ["local"],
        "Network": ["bridge", "host"],
        "Authorization": None,
        "Log": ["json-file"],
    },
    "CDISpecDirs": ["/etc/cdi"],
    "Swarm": {"LocalNodeState": "inactive"},
    "Runtimes": {"runc": {"path": "runc"}},
    "DefaultRuntime": "runc",
    "InitBinary": "docker-init",
    "ContainerdCommit": {"ID": ""},
    "RuncCommit": {"ID": "x"},
    "InitCommit": {"ID": ""},
    "SecurityOptions": ["name=seccomp,profile=builtin", "name=cgroupns"],
    "KernelVersion": "6.1",
    "OperatingSystem": "Debian",
    "OSType": "linux",
    "Architecture": "x86_64",
    "NCPU": 2,
    "MemTotal": 1 << 30,
    "Name": "vm",
    "ID": "AA:BB",
    "DockerRootDir": "/var/lib/engine",
    "Debug": False,
    "HttpProxy": "",
    "Labels": ["a=b"],
    "ExperimentalBuild": False,
    "RegistryConfig": {"InsecureRegistryCIDRs": ["127.0.0.0/8"], "Mirrors": []},
    "LiveRestoreEnabled": True,
    "Warnings": ["WARNING: no swap limit support"],
}


class Fake:
    """A client that answers from a table, or refuses."""

    transport = engine.LocalTransport

    def __init__(self, answers):
        self.answers = answers
        self.asked = []

    def get(self, path, query=None):
        if path not in self.answers:
            raise engine.EngineError("no engine here")
        return engine.json_parse(engine.json_text(self.answers[path]))

    def lines(self, method, path, query=None, body=None):
        self.asked.append((path, {key: value for key, value in query.items() if value is not None}))
        return iter(self.answers[path])


@pytest.fixture(autouse=True)
def zone(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    engine.time.tzset()


@pytest.fixture
def run(monkeypatch, capsys):
    def client(answers=None):
        return Fake({"/version": SERVER, "/info": INFO} if answers is None else answers)

    return command_runner(monkeypatch, capsys, client)


# --- version ---


def test_version(run):
    code, out, err, _ = run("version")
    client, _, server = out.partition("\n\n")
    assert (code, err) == (0, "")
    assert client.startswith("Client: engine.pyz ")
    assert f"\n Version:           {engine.DOCKER_VERSION}\n API version:       1.51\n" in client
    assert server == (
        "Server: engine.pyz 0.1.0\n Engine:\n  Version:          28.5.2\n"
        "  API version:      1.51 (minimum version 1.24)\n  Go version:       python3.11.2\n"
        "  Git commit:       abc\n  Built:            Thu May  7 21:09:36 2026\n"
        "  OS/Arch:          linux/amd64\n  Experimental:     false\n"
        "  PythonVersion:    3.11.2\n"
        " runc:\n  Version:          built in\n  B:                1\n  GitCommit:        \n"
    )


def test_version_json(run):
    document = engine.json_parse(run("version", "-f", "json")[1])
    assert list(document) == ["Client", "Server"]
    assert document["Client"]["ApiVersion"] == "1.51"
    assert document["Server"]["Components"][0]["Details"]["BuildTime"] == "Thu May  7 21:09:36 2026"


@pytest.mark.parametrize(
    ("format", "text"),
    [
        ("{{.Server.APIVersion}}", "1.51"),
        ("{{.Client.APIVersion}} {{.Server.MinAPIVersion}}", "1.51 1.24"),
        ("{{range .Server.Components}}{{.Name}},{{end}}", "Engine,runc,"),
        ("{{(index .Server.Components 0).Details.GitCommit}}", "abc"),
        (
            '{{printf "%T %T %T" . .Client .Server}}',
            "system.versionInfo system.clientVersion *types.Version",
        ),
        ("Bogus", "Bogus"),
    ],
)
def test_version_templates(run, format, text):
    assert run("version", "--format", format)[:2] == (0, text + "\n")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (
            ("version", "-f", "{{.X"),
            64,
            "template parsing error: template: version:1: unclosed action",
        ),
        (
            ("version", "-f", "{{.Server.X}}"),
            1,
            'template: version:1:9: executing "version" at <.Server.X>: can\'t evaluate field X in '
            "type *types.Version",
        ),
        (
            ("version", "-f", "{{.X}}"),
            1,
            'template: version:1:2: executing "version" at <.X>: can\'t evaluate field X in '
            "type system.versionInfo",
        ),
        (("info", "-f", "{{.X"), 64, "template parsing error: template: :1: unclosed action"),
        (
            ("info", "-f", "{{.X}}"),
            1,
            'template: :1:2: executing "" at <.X>: can\'t evaluate field X in type '
            "system.dockerInfo",
        ),
        (("events", "--format", "{{.X"), 64, "Error parsing format: template: :1: unclosed action"),
        (
            ("events", "--format", "{{.X}}"),
            64,
            'Error parsing format: template: :1:2: executing "" at <.X>: can\'t '
            "evaluate field X in type *events.Message",
        ),
    ],
)
def test_bad_templates(run, words, code, message):
    assert run(*words)[:3] == (code, "", message)


def test_version_without_an_engine_shows_the_client(run):
    code, out, err, _ = run("version", answers={})
    assert (code, err) == (1, "no engine here")
    assert out.startswith("Client: ") and "Server" not in out


# --- info ---


def test_info(run):
    code, out, err, _ = run("info")
    assert (code, err) == (0, "WARNING: no swap limit support")
    _, _, server = out.partition("\n\n")
    assert (
        server
        == """Server:
 Containers: 3
  Running: 1
  Paused: 0
  Stopped: 2
 Images: 4
 Server Version: 28.5.2
 Storage Driver: overlay2
  Backing Filesystem: extfs
 Logging Driver: json-file
 Cgroup Driver: cgroupfs
 Cgroup Version: 2
 Plugins:
  Volume: local
  Network: bridge host
  Log: json-file
 CDI spec directories:
  /etc/cdi
 Swarm: inactive
 Runtimes: runc
 Default Runtime: runc
 Init Binary: docker-init
 containerd version: \n runc version: x
 init version: \n Security Options:
  seccomp
   Profile: builtin
  cgroupns
 Kernel Version: 6.1
 Operating System: Debian
 OSType: linux
 Architecture: x86_64
 CPUs: 2
 Total Memory: 1GiB
 Name: vm
 ID: AA:BB
 Docker Root Dir: /var/lib/engine
 Debug Mode: false
 Labels:
  a=b
 Experimental: false
 Insecure Registries:
  127.0.0.0/8
 Live Restore Enabled: true

"""
    )


def test_info_json(run):
    document = engine.json_parse(run("system", "info", "--format", "json")[1])
    assert document["Containers"] == 3
    assert document["ClientInfo"]["Plugins"] == []


def test_info_errors_are_there_for_templates_only(run):
    format = "{{.ServerErrors}} {{json .ClientErrors}} {{len .ServerErrors}}"
    assert run("info", "-f", format)[:2] == (0, "[] null 0\n")
    assert "Errors" not in run("info", "-f", "{{json .}}")[1]
    assert run("info", "-f", '{{printf "%T %T" . .Swarm}}')[1] == "system.dockerInfo swarm.Info\n"
    failed = run("info", "-f", "{{.Plugins.Nope}}")
    assert "<.Plugins.Nope>: can't evaluate field Nope in type system.PluginsInfo" in failed[2]


def test_info_templates(run):
    assert run(
        "info", "-f", "{{.HTTPProxy}}|{{.NCPU}}|{{.Swarm.LocalNodeState}}|{{.ClientInfo.Context}}"
    )[:2] == (0, "|2|inactive|default\n")


def test_info_without_an_engine(run):
    code, out, err, _ = run("info", answers={})
    assert (code, err) == (1, "no engine here")
    assert out.endswith("\nServer:\n")
    assert run("info", "-f", "{{.Images}}", answers={})[:3] == (1, "", "no engine here")
    assert run("info", "-f", "{{.ClientInfo.Debug}}", answers={})[1] == "false\n"


# --- events ---

EVENT = {
    "Type": "container",
    "Action": "start",
    "scope": "local",
    "time": 1764000000,
    "timeNano": 1764000000500000000,
    "id": "abc",
    "status": "start",
    "from": "busybox",
    "Actor": {"ID": "abc", "Attributes": {"name": "web", "image": "busybox"}},
}


def test_events(run):
    code, out, _, client = run(
        "events",
        "--since",
        "1700000000.5",
        "--until",
        "10",
        "-f",
        "type=container",
        "-f",
        "type=image",
        answers={"/events": [EVENT]},
    )
    assert (code, out) == (
        0,
        "2025-11-24T16:00:00.500000000Z container start abc (image=busybox, name=web)\n",
    )
    assert client.asked == [
        ("/events", {"since": "1700000000.500000000", "until": "10.000000000",
                     "filters": {"type": ["container", "image"]}})
    ]


def test_events_json(run):
    out = run("system", "events", "--format", "json", answers={"/events": [EVENT, EVENT]})[1]
    assert [engine.json_parse(line) for line in out.splitlines()] == [EVENT, EVENT]


def test_events_template(run):
    form = "{{.Time}} {{.ID}} {{.Status}} {{.Type}} {{.Actor.Attributes.name}} {{.Actor.Attributes.nope}}"  # noqa: E501
    assert run("events", "--format", form, answers={"/events": [EVENT]})[:2] == (
        0,
        "1764000000 abc start container web <no value>\n",
    )


def test_event_without_attributes():
    assert engine.event_text(
        {"Type": "daemon", "Action": "reload", "Actor": {"ID": "x"}, "time": 0}
    ) == ("daemon reload x\n")
