"""engine: what it says of itself and of this host."""

from __future__ import annotations

import os

import engine
from container_help import bare_box  # noqa: F401


def test_version():
    made = engine.Engine(engine.Store("/nowhere", "/nowhere")).version()
    assert made["Version"] == engine.DOCKER_VERSION and made["ApiVersion"] == "1.51"
    assert made["Components"][0]["Name"] == "Engine"
    assert made["Components"][0]["Version"] == engine.DOCKER_VERSION
    assert engine.VERSION in made["Platform"]["Name"]
    assert made["KernelVersion"] == os.uname().release
    assert not os.path.exists("/nowhere")


def test_info(bare_box):  # noqa: F811
    bare_box.create("sh")
    made = bare_box.engine.info()
    assert made["Driver"] == "overlay2" and made["LoggingDriver"] == "json-file"
    assert made["CgroupDriver"] == "cgroupfs" and made["CgroupVersion"] in ("1", "2")
    assert (made["Containers"], made["ContainersStopped"], made["Images"]) == (1, 1, 2)
    assert made["NCPU"] == len(os.sched_getaffinity(0))
    assert made["MemTotal"] > 1 << 20
    assert made["DockerRootDir"] == bare_box.store.data
    assert made["ServerVersion"] == engine.DOCKER_VERSION
    assert isinstance(made["MemoryLimit"], bool)
    assert made["DriverStatus"][0][0] == "Backing Filesystem"


def test_the_id_stays(bare_box):  # noqa: F811
    one = bare_box.engine.info()["ID"]
    again = engine.Engine(engine.Store(bare_box.store.data, bare_box.store.run)).info()["ID"]
    assert one == again and one.count("-") == 4


def test_what_this_host_lacks(bare_box, monkeypatch):  # noqa: F811
    class Nothing:
        v1, v2, mode = {}, None, "none"

    monkeypatch.setattr(engine, "cgroup_probe", Nothing)
    made = bare_box.engine.info()
    assert made["MemoryLimit"] is False
    assert "WARNING: No memory limit support" in made["Warnings"]


def test_objects_are_made_once(bare_box):  # noqa: F811
    assert bare_box.engine.containers is bare_box.engine.containers


def test_a_kernel_without_overlayfs_is_told(bare_box, monkeypatch):  # noqa: F811
    assert not any(engine.NO_OVERLAY in text for text in bare_box.engine.info()["Warnings"] or ())
    monkeypatch.setattr(engine, "overlay_exists", lambda: False)
    assert "WARNING: " + engine.NO_OVERLAY in bare_box.engine.info()["Warnings"]
