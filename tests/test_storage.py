"""storage: volumes, binds and tmpfs of whole containers, in this engine."""

from __future__ import annotations

import os
import pathlib

import engine
import pytest
from conftest import wait_for
from container_help import box  # noqa: F401

pytestmark = pytest.mark.root


def data(box, name):  # noqa: F811
    return pathlib.Path(engine.volume_path(box.store, name))


def shell(box, script, **host):  # noqa: F811
    out, err, code, id = box.run("sh", "-c", script, host=host)
    assert code == 0, err
    return out.decode().split("\n")[:-1], id


def test_a_volume_is_shared_with_the_host(box):  # noqa: F811
    shell(box, "echo from inside >/data/x", Binds=["data:/data"])
    assert (data(box, "data") / "x").read_text() == "from inside\n"
    (data(box, "data") / "y").write_text("from outside\n")
    lines, _ = shell(box, "cat /deep/er/y; touch /deep/er/z 2>/dev/null || echo no",
                     Binds=["data:/deep/er:ro"])
    assert lines == ["from outside", "no"]


def test_the_image_fills_an_empty_volume(box):  # noqa: F811
    source = pathlib.Path(box.store.path("layers", "1", "diff", "etc", "many"))
    source.mkdir(parents=True)
    (source / "file").write_text("x")
    (source / "blocks").write_bytes(bytes(1024))    # nothing is padded behind it
    os.link(source / "file", source / "second")
    os.symlink("/etc/passwd", source / "link")
    os.mkfifo(source / "fifo", 0o622)
    os.chown(source / "file", 7, 8)
    os.setxattr(source / "file", "user.colour", b"red")
    os.chown(source, 5, 6)
    os.chmod(source, 0o1770)
    os.utime(source, ns=(10 ** 18 + 1, 10 ** 18 + 2))
    shell(box, "true", Binds=["full:/etc/many", "bare:/etc/many/.:nocopy"][:1])
    copy = data(box, "full")
    assert sorted(os.listdir(copy)) == ["blocks", "fifo", "file", "link", "second"]
    assert (copy / "file").stat().st_ino == (copy / "second").stat().st_ino
    assert (copy / "file").stat().st_uid == 7 and os.readlink(copy / "link") == "/etc/passwd"
    assert os.getxattr(copy / "file", "user.colour") == b"red"
    info = copy.stat()
    assert (info.st_uid, info.st_gid, info.st_mode & 0o7777) == (5, 6, 0o1770)
    assert info.st_mtime_ns == 10 ** 18 + 2
    shell(box, "true", Binds=["bare:/etc/many:nocopy"])
    assert os.listdir(data(box, "bare")) == []
    (data(box, "bare") / "mine").write_text("")
    shell(box, "true", Binds=["bare:/etc/many"])
    assert os.listdir(data(box, "bare")) == ["mine"]


def test_volumes_without_a_name(box, monkeypatch):  # noqa: F811
    monkeypatch.setattr(
        box.engine._images, "config", {"Cmd": ["sh"], "Volumes": {"/data": {}}}, raising=False)
    _, id = shell(box, "echo x >/data/x")
    (mount,) = box.inspect(id)["Mounts"]
    assert mount["Type"] == "volume" and mount["Mode"] == "" and mount["RW"]
    assert os.listdir(mount["Source"]) == ["x"]
    lines, other = shell(box, "cat /data/x", VolumesFrom=[id + ":ro"])
    assert lines == ["x"] and not box.inspect(other)["Mounts"][0]["RW"]
    box.containers.remove(id, volumes=True)
    assert os.path.exists(mount["Source"])
    box.containers.remove(other, volumes=True)
    assert not os.path.exists(mount["Source"])
    shell(box, "true", AutoRemove=True)
    assert engine.volumes_list(box.store, {}) == []
    _, kept = shell(box, "true")
    box.containers.remove(kept)
    assert len(engine.volumes_list(box.store, {})) == 1


def test_a_volume_in_use(box):  # noqa: F811
    id = box.create("sh", host={"Binds": ["data:/data"]})
    with pytest.raises(engine.Conflict) as refused:
        engine.volume_remove(box.store, "data")
    assert str(refused.value) == f"remove data: volume is in use - [{id}]"
    box.containers.remove(id, volumes=True)
    engine.volume_remove(box.store, "data")


def test_binds(box, tmp_path):  # noqa: F811
    (tmp_path / "file").write_text("content")
    lines, id = shell(box, "cat /a/file /b; echo; ls -d /new; touch /a/x 2>&1 || true", Binds=[
        f"{tmp_path}:/a:ro", f"{tmp_path}/file:/b", f"{tmp_path}/made/dir:/new"])
    assert lines[:2] == ["contentcontent", "/new"] and "Read-only" in lines[2]
    assert (tmp_path / "made/dir").is_dir()
    assert [mount["Mode"] for mount in box.inspect(id)["Mounts"]] == ["ro", "", ""]


def test_a_link_at_the_target_stays_inside(box, tmp_path):  # noqa: F811
    layer = pathlib.Path(box.store.path("layers", "1", "diff"))
    os.symlink(tmp_path, layer / "out")
    lines, _ = shell(box, f"ls -d {tmp_path}/x; touch /out/x/inside", Binds=["data:/out/x"])
    assert lines == [f"{tmp_path}/x"]
    assert os.listdir(tmp_path) == [] and os.listdir(data(box, "data")) == ["inside"]


def test_tmpfs_and_its_mode(box):  # noqa: F811
    os.makedirs(box.store.path("layers", "1", "diff", "srv"), 0o750)
    os.chmod(box.store.path("layers", "1", "diff", "srv"), 0o750)
    lines, _ = shell(
        box, "stat -c %a /srv /new /sized; grep -c size=1024k /proc/mounts",
        Tmpfs={"/srv": "", "/new": ""},
        Mounts=[{"Type": "tmpfs", "Target": "/sized",
                 "TmpfsOptions": {"SizeBytes": 1 << 20, "Mode": 0o700}}])
    assert lines == ["750", "1777", "700", "1"]


def test_subpaths(box):  # noqa: F811
    engine.volume_ensure(box.store, "data")
    (data(box, "data") / "in/side").mkdir(parents=True)
    os.symlink("/", data(box, "data") / "out")

    def mount(subpath):
        return [{"Type": "volume", "Source": "data", "Target": "/m",
                 "VolumeOptions": {"Subpath": subpath}}]
    shell(box, "touch /m/x", Mounts=mount("in/side"))
    assert os.listdir(data(box, "data") / "in/side") == ["x"]
    for subpath in ("out", "none", "out/etc"):
        id = box.create("sh", host={"Mounts": mount(subpath)})
        with pytest.raises(engine.EngineError, match="cannot access path"):
            box.containers.start(id)


def test_options_mount_on_the_host_while_it_runs(box, tmp_path):  # noqa: F811
    engine.volume_ensure(box.store, "shared", options={
        "type": "none", "o": "bind", "device": str(tmp_path)})
    shell(box, "touch /m/x", Binds=["shared:/m"])
    assert os.listdir(tmp_path) == ["x"] and os.listdir(data(box, "shared")) == []
    engine.volume_ensure(box.store, "memory", options={
        "type": "tmpfs", "o": "size=1m,uid=7", "device": "tmpfs"})
    lines, _ = shell(box, "stat -c %u /m; grep ' /m ' /proc/mounts", Binds=["memory:/m"])
    assert lines[0] == "7" and "size=1024k" in lines[1]
    assert not [info for info in engine.mountinfo() if box.store.data in info.point]
    engine.volume_ensure(box.store, "gone", options={
        "type": "none", "o": "bind", "device": str(tmp_path / "none")})
    id = box.create("sh", host={"Binds": ["gone:/m"]})
    with pytest.raises(engine.EngineError) as refused:
        box.containers.start(id)
    assert str(refused.value).endswith(
        f"failed to mount local volume: mount {tmp_path}/none:{data(box, 'gone')}, flags: 0x1000:"
        " no such file or directory")


def test_a_failing_create_leaves_nothing(box):  # noqa: F811
    for host in ({"Binds": ["/x", "/x"]}, {"Binds": ["/x", "name:relative"]}):
        with pytest.raises(engine.InvalidParameter):
            box.create("sh", host=host)
    assert engine.volumes_list(box.store, {}) == [] and box.containers.all() == []
    assert os.listdir(box.store.path("containers")) == []


def test_events(box):  # noqa: F811
    _, id = shell(box, "true", Binds=["data:/data:ro"], AutoRemove=True)
    seen = [(event["Action"], event["Actor"]["Attributes"]) for event in engine.event_follow(
        box.store, 0, engine.time_now()) if event["Type"] == "volume"]
    assert seen == [
        ("create", {"driver": "local"}),
        ("mount", {"container": id, "destination": "/data", "driver": "local",
                   "propagation": "", "read/write": "false"}),
        ("unmount", {"container": id, "driver": "local"}),
    ]


def test_propagation_and_recursion(box, tmp_path):  # noqa: F811
    top = tmp_path / "top"
    top.mkdir()
    engine.sys_mount("t", str(top), "tmpfs", 0, None)
    try:
        id = box.create("sh", host={"Binds": [f"{top}:/x:rshared"]})
        with pytest.raises(engine.EngineError, match="but it is not a shared mount"):
            box.containers.start(id)
        engine.mount_propagation(str(top), engine.MS_SHARED)
        (top / "in").mkdir()
        engine.sys_mount("t", str(top / "in"), "tmpfs", 0, None)
        lines, _ = shell(
            box, "grep -E ' /./in ' /proc/self/mountinfo | cut -d' ' -f5,7 | sort;"
            " touch /z/in/f 2>/dev/null || echo refused; touch /x/in/f",
            Binds=[f"{top}:/x:rshared", f"{top}:/y:rslave", f"{top}:/z:ro"])
        assert [line.split(":")[0] for line in lines] == [
            "/x/in shared", "/y/in master", "/z/in -", "refused"]
    finally:
        engine.unmount(str(top))


def test_an_image_that_is_mounted(box):  # noqa: F811
    lines, id = shell(box, "ls /i/bin/busybox; touch /i/x 2>/dev/null || echo no", Mounts=[
        {"Type": "image", "Source": "busybox", "Target": "/i"}])
    assert lines == ["/i/bin/busybox", "no"]
    assert box.inspect(id)["Mounts"][0]["Name"] == "busybox"
    lines, _ = shell(box, "ls /i", Mounts=[
        {"Type": "image", "Source": "busybox", "Target": "/i", "ImageOptions": {
            "Subpath": "etc"}}])
    assert "bin" not in lines


def test_a_monitor_that_dies_unmounts(box):  # noqa: F811
    engine.volume_ensure(box.store, "memory", options={"type": "tmpfs", "device": "tmpfs"})
    id = box.create("sleep", "100", host={"Binds": ["memory:/m", "/own"], "AutoRemove": True})
    box.containers.start(id)
    pid = box.inspect(id)["State"]["Pid"]
    with open(f"/proc/{pid}/status") as status:
        monitor = next(int(line.split()[1]) for line in status if line.startswith("PPid:"))
    assert [info for info in engine.mountinfo() if box.store.data in info.point]
    os.kill(monitor, 9)
    wait_for(lambda: not engine.record_get(box.store, id), 10, "it is repaired")
    wait_for(lambda: [v.name for v in engine.volumes_list(box.store, {})] == ["memory"], 10,
             "its own volume is gone")
    assert not [info for info in engine.mountinfo() if box.store.data in info.point]
