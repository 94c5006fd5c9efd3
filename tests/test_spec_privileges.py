"""spec: privileges, devices and what a second process gets, as a container's own processes see it.
"""

from __future__ import annotations

import os
import pathlib
import re
import stat

import engine
import pytest
from container_help import box  # noqa: F401

pytestmark = pytest.mark.root
PROBE = "grep -E 'Cap(Eff|Bnd)|NoNewPrivs|Seccomp:' /proc/self/status"
DEFAULT, ALL = 0xA80425FB, engine.caps_mask(engine.capabilities_available())


def status(text):
    found = dict(re.findall(r"(\w+):\s+(\w+)", text.decode()))
    return int(found["CapEff"], 16), int(found["CapBnd"], 16), int(found["Seccomp"])


def host_device():
    """A node that this machine has and that can be opened by root."""
    for path in ("/dev/loop0", "/dev/vda", "/dev/kmsg", "/dev/tty0"):
        if os.path.exists(path):
            return path
    return pytest.skip("no device")


def test_privileged(box):  # noqa: F811
    script = f"{PROBE}; mount -t tmpfs x /mnt && echo mounted; grep ' /sys ' /proc/mounts; ls /dev"
    out, err, code, id = box.run(
        "sh", "-c", "mkdir -p /mnt; " + script, host={"Privileged": True})
    assert code == 0, err
    assert status(out) == (ALL, ALL, 0)
    lines = out.decode().splitlines()
    assert "mounted" in lines
    sys = next(line for line in lines if " /sys sysfs " in line)
    assert sys.split()[3].startswith("rw,")
    assert {device["path"][5:].split("/")[0] for device in engine.devices_all()} <= set(lines)
    host = box.inspect(id)["HostConfig"]
    assert (host["MaskedPaths"], host["ReadonlyPaths"]) == (None, None)
    assert host["SecurityOpt"] == ["label=disable"]
    v2 = engine.cgroup_probe().mode == "v2"
    assert host["CgroupnsMode"] == ("private" if v2 else "host")


def test_of_a_v1_hierarchy_only_its_own_cgroup_is_seen(box):  # noqa: F811
    if engine.cgroup_probe().mode == "v2" or "pids" not in engine.cgroup_probe().v1:
        pytest.skip("no v1")
    out, err, _, _ = box.run("cat", "/sys/fs/cgroup/pids/pids.max",
                             host={"CgroupnsMode": "host", "PidsLimit": 77})
    assert out == b"77\n", err
    out, _, _, id = box.run("cat", "/proc/self/cgroup", host={"CgroupnsMode": "host"})
    assert f":/engine/{id}".encode() in out


@pytest.mark.parametrize("asked, missing", [("rwm", 0), ("r", 1)])
def test_a_device_and_what_may_be_done_with_it(box, asked, missing):  # noqa: F811
    path = host_device()
    seen = os.stat(path)
    kind = "b" if stat.S_ISBLK(seen.st_mode) else "c"
    numbers = f"{os.major(seen.st_rdev)} {os.minor(seen.st_rdev)}"
    host = {"Devices": [{"PathOnHost": path, "PathInContainer": "/dev/in/side",
                         "CgroupPermissions": asked}]}
    script = (f"ls -l /dev/in/side | cut -c1; rm /dev/in/side; mknod /dev/in/x {kind} {numbers};"
              " : 2>/dev/null >>/dev/in/x && echo written")
    out, err, _, _ = box.run("sh", "-c", script, host=host)
    words = out.decode().split()
    assert words[0] == kind, err
    if missing:
        assert "written" not in words


def test_a_directory_of_devices(box):  # noqa: F811
    below = [name for name in ("/dev/net", "/dev/input", "/dev/snd") if os.path.isdir(name)]
    if not below or not engine.devices_below(below[0], below[0]):
        pytest.skip("no directory of devices")
    host = {"Devices": [{"PathOnHost": below[0], "PathInContainer": "/dev/many",
                         "CgroupPermissions": "rwm"}]}
    out, _, _, _ = box.run("find", "/dev/many", "-type", "c", "-o", "-type", "b", host=host)
    assert sorted(out.decode().split()) == sorted(
        device["path"] for device in engine.devices_below(below[0], "/dev/many"))


def test_device_cgroup_rules(box):  # noqa: F811
    script = "mknod /tmp/f c 10 229; : < /tmp/f && echo open"
    for rules, word in ((["c 10:* rwm"], b"open"), (None, b"")):
        if not os.path.exists("/dev/fuse"):
            pytest.skip("no fuse")
        out, _, _, _ = box.run(
            "sh", "-c", "mkdir -p /tmp; " + script, host={"DeviceCgroupRules": rules})
        assert out.strip() == word


@pytest.mark.parametrize(
    "host, text",
    [
        (
            {"Devices": [{"PathOnHost": "/dev/nosuch", "PathInContainer": "/dev/x",
                          "CgroupPermissions": "rwm"}]},
            'error gathering device information while adding custom device "/dev/nosuch":'
            " no such file or directory",
        ),
        (
            {"Devices": [{"PathOnHost": "/etc/passwd", "PathInContainer": "/dev/x",
                          "CgroupPermissions": "rwm"}]},
            'error gathering device information while adding custom device "/etc/passwd":'
            " not a device node",
        ),
        ({"DeviceCgroupRules": ["c 1:3"]}, "invalid device cgroup rule format: 'c 1:3'"),
        (
            {"DeviceRequests": [{"Count": -1, "Capabilities": [["gpu"]]}]},
            'could not select device driver "" with capabilities: [[gpu]]',
        ),
        (
            {"BlkioDeviceReadBps": [{"Path": "/dev/nosuch", "Rate": 1}]},
            "stat /dev/nosuch: no such file or directory",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_given(box, host, text):  # noqa: F811
    id = box.create("true", host=host)
    with pytest.raises(engine.EngineError) as told:
        box.client.post(f"/containers/{id}/start")
    assert str(told.value) == text
    assert box.inspect(id)["State"]["Status"] == "created"
    assert not [path for path in engine.cgroup_paths("engine/" + id).paths()
                if os.path.exists(path)]


def test_exec_with_privileges_keeps_the_filter(box):  # noqa: F811
    id = box.create("sleep", "60")
    box.containers.start(id)

    def run(privileged):
        made = box.client.post(f"/containers/{id}/exec", {}, {
            "Cmd": ["sh", "-c", PROBE + "; mount -t tmpfs x /sys || echo refused"],
            "AttachStdout": True, "Privileged": privileged})["Id"]
        sock = box.client.hijack(f"/exec/{made}/start", {}, body={})
        return frames(sock)[0]

    from container_help import frames

    out = run(True)
    assert status(out) == (ALL, ALL, 2) and b"refused" in out
    assert status(run(False)) == (DEFAULT & ALL, DEFAULT & ALL, 2)


def test_cgroup_parent(box):  # noqa: F811
    id = box.create("sleep", "60", host={"CgroupParent": "/../limits-test/inner"})
    box.containers.start(id)
    pid = box.inspect(id)["State"]["Pid"]
    try:
        text = pathlib.Path(f"/proc/{pid}/cgroup").read_text()
        assert f"/limits-test/inner/{id}\n" in text
        assert [row[1] for row in box.client.get(f"/containers/{id}/top")["Processes"]] == [
            str(pid)]
        box.containers.remove(id, force=True)
    finally:
        engine.cgroup_paths("limits-test").remove()


def test_who_could_look_into_a_new_process_is_not_joined(box):  # noqa: F811
    donor = box.create("sleep", "60", host={"Privileged": True})
    box.containers.start(donor)
    id = box.create("true", host={"PidMode": "container:" + donor})
    with pytest.raises(engine.Unsupported, match="joining the PID namespace"):
        box.containers.start(id)
