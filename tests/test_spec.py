"""spec: from a container to its OCI configuration and its start plan."""

from __future__ import annotations

import engine
import pytest


def container(host=None, layers=(), **config):
    one, two, _ = engine.create_check(
        {"Image": "x", "Cmd": ["sh", "-c", "true"], **config, "HostConfig": host or {}}
    )
    engine.create_verify(one, two)
    words = engine.command_words(one)
    one["Hostname"] = one["Hostname"] or "abc"
    return engine.record_new(
        id="c" * 64,
        name="web",
        image="sha256:" + "1" * 64,
        config=one,
        host=two,
        document={"Path": words[0], "Args": words[1:], "Layers": list(layers)},
    )


def spec(host=None, join=None, shm=None, files=None, **config):
    c = container(host, **config)
    return engine.spec_build(
        c, hostname=c.config["Hostname"], files=files or {}, join=join or {}, shm=shm
    )


def mount(made, target):
    return [m for m in made["mounts"] if m["destination"] == target]


def test_process():
    process = spec(
        {"GroupAdd": ["audio"], "OomScoreAdj": 5, "SecurityOpt": ["no-new-privileges"]},
        User="user:1",
        WorkingDir="/w",
        Env=["A=1", "PATH"],
        Hostname="h",
    )["process"]
    assert process["args"] == ["sh", "-c", "true"]
    assert process["env"] == ["HOSTNAME=h", "A=1"]
    assert process["cwd"] == "/w"
    assert process["user"]["username"] == "user:1" and process["user"]["groups"] == ["audio"]
    assert process["oomScoreAdj"] == 5 and process["noNewPrivileges"] is True
    assert process["terminal"] is False and process["init"] is False


def test_environment():
    config = container(Tty=True, Env=["TERM=vt100"]).config
    assert engine.environment_build(config, "h") == [
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOSTNAME=h",
        "TERM=vt100",
    ]


def test_capabilities_are_dockers(monkeypatch):
    monkeypatch.setattr(engine, "capabilities_available", lambda: list(engine.CAPABILITIES))
    caps = spec()["process"]["capabilities"]
    assert len(caps["bounding"]) == 14 and caps["effective"] == caps["bounding"]
    assert caps["inheritable"] == caps["ambient"] == []
    caps = spec({"CapDrop": ["ALL"], "CapAdd": ["net_raw"]})["process"]["capabilities"]
    assert caps["bounding"] == ["CAP_NET_RAW"]


def test_ulimits_console_and_init():
    process = spec(
        {
            "Ulimits": [{"Name": "nofile", "Soft": 1, "Hard": 2}],
            "ConsoleSize": [24, 80],
            "Init": True,
        }
    )["process"]
    assert process["rlimits"] == [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2}]
    assert process["consoleSize"] == {"height": 24, "width": 80}
    assert process["init"] is True


def test_mounts_in_order():
    targets = [m["destination"] for m in spec(files={"/etc/hosts": "/d/hosts"})["mounts"]]
    assert targets == [
        "/proc",
        "/dev",
        "/dev/pts",
        "/sys",
        "/sys/fs/cgroup",
        "/dev/mqueue",
        "/dev/shm",
        "/etc/hosts",
    ]


def test_shared_memory():
    assert "size=1048576" in mount(spec({"ShmSize": 1 << 20}), "/dev/shm")[0]["options"]
    assert mount(spec({"IpcMode": "none"}), "/dev/shm") == []
    assert mount(spec({"IpcMode": "host"}), "/dev/shm")[0]["source"] == "/dev/shm"
    other = {"destination": "/dev/shm", "type": "bind", "source": "/dev/shm", "options": []}
    assert mount(spec({"IpcMode": "container:x"}, shm=other), "/dev/shm") == [other]


def test_tmpfs_and_read_only():
    made = spec({"Tmpfs": {"/run/": "size=1m"}, "ReadonlyRootfs": True}, files={"/etc/hosts": "/d"})
    assert mount(made, "/run")[0]["options"] == ["noexec", "nosuid", "nodev", "size=1m"]
    assert made["root"]["readonly"] is True
    assert "ro" in mount(made, "/etc/hosts")[0]["options"]


@pytest.mark.parametrize(
    ("host", "kinds"),
    [
        ({}, {"mount", "network", "uts", "pid", "ipc", "cgroup"}),
        ({"NetworkMode": "host"}, {"mount", "uts", "pid", "ipc", "cgroup"}),
        (
            {"PidMode": "host", "IpcMode": "host", "UTSMode": "host", "CgroupnsMode": "host"},
            {"mount", "network"},
        ),
    ],
)
def test_namespaces(host, kinds):
    made = spec(host)
    assert {space["type"] for space in made["linux"]["namespaces"]} == kinds
    assert ("hostname" in made) is ("uts" in kinds)


def test_joined_namespaces():
    made = spec({"PidMode": "container:x"}, join={"pid": "/proc/9/ns/pid"})
    assert {"type": "pid", "path": "/proc/9/ns/pid"} in made["linux"]["namespaces"]


def test_sysctl():
    own = spec({"Sysctls": {"net.ipv4.ip_forward": "1"}})["linux"]["sysctl"]
    assert own["net.ipv4.ip_forward"] == "1"
    assert own["net.ipv4.ip_unprivileged_port_start"] == "0"
    assert spec({"NetworkMode": "host"})["linux"]["sysctl"] == {}


def test_seccomp():
    assert spec()["linux"]["seccomp"] == "default"
    assert "seccomp" not in spec({"SecurityOpt": ["seccomp=unconfined"]})["linux"]


def test_resources():
    made = engine.resources_build(
        container({"Memory": 1 << 30, "NanoCpus": 500000000, "PidsLimit": 7, "CpuShares": 9}).host
    )
    assert made["memory"] == {"limit": 1 << 30, "swap": 2 << 30}
    assert made["cpu"] == {"shares": 9, "period": 100000, "quota": 50000}
    assert made["pids"] == {"limit": 7}
    assert made["devices"][0] == {"allow": False, "type": "a", "access": "rwm"}
    assert {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"} in made["devices"]
    assert list(engine.resources_build(container().host)) == ["devices"]


def test_a_negative_period_is_what_go_makes_of_it(monkeypatch):
    monkeypatch.setattr(engine, "limit_is_kept", lambda field: True)
    made = engine.limits_build(container({"CpuRealtimePeriod": -1}).host)
    assert made["cpu"] == {"realtimePeriod": 18446744073709551615}


def test_swappiness_of_zero_is_a_value():
    host = {"MemorySwappiness": 0}
    c = container()
    c.host.update(host)
    assert engine.resources_build(c.host)["memory"] == {"swappiness": 0}


def plan(host=None, **config):
    c = container(host, **config)
    made = engine.spec_build(c, hostname="h", files={}, join={"pid": "/proc/9/ns/pid"})
    return engine.plan_build(c, made, bundle="/b", layers=["/l"], directory="/d")


def test_plan():
    made = plan({"PidMode": "container:x", "AutoRemove": True}, StopSignal="SIGINT", StopTimeout=0)
    assert made["join"] == [["pid", "/proc/9/ns/pid"]]
    assert made["clone_flags"] == (
        engine.CLONE_NEWNS | engine.CLONE_NEWNET | engine.CLONE_NEWUTS | engine.CLONE_NEWIPC
    )
    assert made["cgroupns"] is True and made["cgroup"] == "engine/" + "c" * 64
    assert (made["stop_signal"], made["stop_timeout"]) == (2, 0)
    assert (made["upper"], made["work"]) == ("/d/upper", "/d/work")
    assert made["auto_remove"] is True
    assert made["log"]["path"] == "/d/" + "c" * 64 + "-json.log"
    assert plan()["stop_timeout"] == 10
    assert engine.json_parse(engine.json_text(made)) == made


def test_attributes_of_log_lines():
    options = {"labels": "a,b", "env": "E", "tag": "{{.Name}}/{{.ID}}", "labels-regex": "^x"}
    made = plan(
        {"LogConfig": {"Config": options}},
        Labels={"a": "1", "c": "2", "xy": "3"},
        Env=["E=5", "F=6"],
    )
    assert engine.json_parse(made["log"]["attrs"]) == {
        "a": "1",
        "xy": "3",
        "E": "5",
        "tag": "web/" + "c" * 12,
    }
