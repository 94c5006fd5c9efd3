"""information: what /version and /info say of this host and of a daemon's configuration."""

from __future__ import annotations

import os

import engine
import pytest

COUNTS = {"Containers": 0, "ContainersRunning": 0, "ContainersPaused": 0, "ContainersStopped": 0,
          "Images": 0}  # fmt: skip
#: Every field of Docker 28's document that is there whatever the configuration.
FIELDS = """Architecture CDISpecDirs CPUSet CPUShares CgroupDriver CgroupVersion ContainerdCommit
    Containers ContainersPaused ContainersRunning ContainersStopped CpuCfsPeriod CpuCfsQuota Debug
    DefaultRuntime DockerRootDir Driver DriverStatus ExperimentalBuild GenericResources HttpProxy
    HttpsProxy ID IPv4Forwarding Images IndexServerAddress InitBinary InitCommit Isolation
    KernelVersion Labels LiveRestoreEnabled LoggingDriver MemTotal MemoryLimit NCPU NEventsListener
    NFd NGoroutines Name NoProxy OSType OSVersion OomKillDisable OperatingSystem PidsLimit Plugins
    RegistryConfig RuncCommit Runtimes SecurityOptions ServerVersion SwapLimit Swarm SystemTime
    Warnings""".split()


@pytest.fixture
def info(roots, monkeypatch):
    opened = []
    for name in ("HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)

    def run(**made):
        store = engine.Store(roots.data, roots.run)
        os.makedirs(roots.data, exist_ok=True)
        os.makedirs(roots.run, exist_ok=True)
        if made:
            made = {key.replace("_", "-"): value for key, value in made.items()}
            opened.append(engine.configuration_write(roots.run, made))
        return engine.info_build(store, "an-id", dict(COUNTS), 0)

    yield run
    for fd in opened:
        os.close(fd)


def test_version():
    made = engine.version_build()
    assert made["Version"] == engine.DOCKER_VERSION and made["ApiVersion"] == "1.51"
    assert made["Components"][0]["Name"] == "Engine"
    assert made["Components"][0]["Version"] == engine.DOCKER_VERSION
    assert made["Components"][0]["Details"]["EngineVersion"] == engine.VERSION
    assert made["Platform"]["Name"] == f"engine.pyz {engine.VERSION}"
    assert made["KernelVersion"] == os.uname().release


def test_without_a_daemon(info, roots):
    made = info()
    assert sorted(made) == sorted(FIELDS)
    assert made["Driver"] == "overlay2" and made["LoggingDriver"] == "json-file"
    assert made["CgroupDriver"] == "cgroupfs" and made["CgroupVersion"] in ("1", "2")
    assert made["NCPU"] == len(os.sched_getaffinity(0))
    assert made["MemTotal"] == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert made["DockerRootDir"] == roots.data
    assert made["ServerVersion"] == engine.DOCKER_VERSION
    assert made["DriverStatus"][0][0] == "Backing Filesystem"
    assert made["NGoroutines"] >= 1 and made["NFd"] >= 3
    assert made["LiveRestoreEnabled"] is True
    assert made["RegistryConfig"]["IndexConfigs"] == {
        "docker.io": {"Name": "docker.io", "Mirrors": [], "Secure": True, "Official": True}
    }
    assert "name=seccomp,profile=builtin" in made["SecurityOptions"]


def test_with_a_daemons_configuration(info):
    made = info(
        labels=["a=1"], debug=True, log_driver="none", live_restore=False, no_new_privileges=True,
        seccomp_profile="/p.json", http_proxy="http://me:secret@proxy:1/x", no_proxy="a,b",
        insecure_registries=["reg:5000", "10.0.0.0/8", "http://other"],
        registry_mirrors=["https://m/"], default_cgroupns_mode="host",
    )  # fmt: skip
    assert made["Labels"] == ["a=1"]
    assert (made["Debug"], made["LoggingDriver"]) == (True, "none")
    assert made["LiveRestoreEnabled"] is False
    assert made["SecurityOptions"] == ["name=seccomp,profile=/p.json", "name=no-new-privileges"]
    assert "WARNING: daemon is not using the default seccomp profile" in made["Warnings"]
    assert (made["HttpProxy"], made["NoProxy"]) == ("http://xxxxx:xxxxx@proxy:1/x", "a,b")
    registry = made["RegistryConfig"]
    assert registry["InsecureRegistryCIDRs"] == ["10.0.0.0/8", "::1/128", "127.0.0.0/8"]
    assert registry["Mirrors"] == ["https://m/"]
    assert registry["IndexConfigs"]["docker.io"]["Mirrors"] == ["https://m/"]
    for name in ("reg:5000", "other"):
        assert registry["IndexConfigs"][name] == {
            "Name": name, "Mirrors": [], "Secure": False, "Official": False,
        }  # fmt: skip


@pytest.mark.parametrize(
    ("made", "told"),
    [
        ({"hosts": ["tcp://0.0.0.0:2375"]}, "http://0.0.0.0:2375 without encryption."),
        ({"hosts": ["tcp://h:1"], "tls": True}, "https://h:1 without TLS client verification."),
        ({"hosts": ["tcp://h:1"], "tls": True, "tlsverify": True}, ""),
        ({"hosts": ["unix:///x", "fd://"]}, ""),
    ],
)
def test_open_sockets_are_warned_about(info, made, told):
    texts = [text for text in info(**made)["Warnings"] or () if "API is accessible" in text]
    assert len(texts) == bool(told)
    if told:
        assert texts[0].startswith("[DEPRECATION NOTICE]: API is accessible on " + told + "\n")
        assert texts[0].endswith("https://docs.docker.com/go/api-security/")


def test_proxies_of_the_environment(info, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://u:p@h")
    assert info()["HttpProxy"] == "http://xxxxx:xxxxx@h"


def test_what_this_host_lacks(info, monkeypatch):
    class Nothing:
        v1, v2, mode = {}, None, "none"

    monkeypatch.setattr(engine, "cgroup_probe", Nothing)
    monkeypatch.setattr(engine, "_sysctl_on", lambda name: False)
    made = info()
    assert made["MemoryLimit"] is False
    warned = [text[9:] for text in made["Warnings"]]
    assert warned[:7] == [
        "No memory limit support", "No swap limit support", "No oom kill disable support",
        "No cpu cfs quota support", "No cpu cfs period support", "No cpu shares support",
        "No cpuset support",
    ]  # fmt: skip
    assert warned[-1] == "IPv4 forwarding is disabled"


def test_a_kernel_without_overlayfs_is_told(info, monkeypatch):
    assert not any(engine.NO_OVERLAY in text for text in info()["Warnings"] or ())
    monkeypatch.setattr(engine, "overlay_exists", lambda: False)
    assert "WARNING: " + engine.NO_OVERLAY in info()["Warnings"]
