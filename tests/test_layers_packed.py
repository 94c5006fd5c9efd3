"""What an ordinary user brings stays packed, for another machine too; root unpacks it."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile

import engine
import pytest
from conftest import Cli, Roots, end_launchers
from image_help import (
    A,
    B,
    C,
    content,
    digest,
    docker_files,
    gz,
    load,
    store_fixture,  # noqa: F401
    tar_of,
    thread_worker,
)
from registry_help import registry_running

NOBODY = 65534


@pytest.fixture(name="ordinary")
def ordinary_fixture(monkeypatch):
    """ordinary(True): not root from now on, as far as layers are concerned."""
    def be(so):
        monkeypatch.setattr(engine, "layers_stay_packed", lambda: so)
    be(True)
    return be


def ready(store, name, **more):
    with engine.content_lease(store) as lease:
        engine.layers_ready(lease, engine.image_get(store, name).layer, **more)


@pytest.mark.parametrize("worker", [False, True])
@pytest.mark.parametrize("packed", [bytes, gz])
def test_unpacked_at_first_use(store, ordinary, worker, packed):
    load(store, tar_of(docker_files([A, B], tags=("two:1",), packed=packed)),
         run_worker=thread_worker([]))
    assert content(store)[0] == set()
    sizes = [row[3] for row in engine.layer_stack(store, engine.image_get(store, "two:1").layer)]
    assert sizes == [1, 6]
    ordinary(False)
    found = engine.Images(store)
    log = []
    if worker:
        ready(store, "two:1", run_worker=thread_worker(log))
    layers = found.for_container("two:1")["layers"]
    assert sorted(log) == (sorted([digest(A), digest(B)]) if worker else [])
    assert engine.file_read(store.path(layers[0]) + "/b") == b"b"
    assert engine.file_read(store.path(layers[1]) + "/dir/x") == b"dir/x"
    assert store.row("SELECT value FROM meta WHERE key='driver'")


def test_what_is_below_is_unpacked_first(store, ordinary):
    """A root that loads upon packed layers unpacks those: then the topmost tells of all."""
    load(store, tar_of(docker_files([A, B], tags=("two:1",))))
    ordinary(False)
    load(store, tar_of(docker_files([A, B, C], tags=("three:1",))))
    assert len(content(store)[0]) == 3
    ready(store, "three:1")


def test_some_are_unpacked(store, ordinary):
    load(store, tar_of(docker_files([A], tags=("one:1",))))
    load(store, tar_of(docker_files([A, B, C], tags=("three:1",))))
    ordinary(False)
    ready(store, "one:1")
    assert len(content(store)[0]) == 1
    ready(store, "three:1")
    assert len(content(store)[0]) == 3


def test_a_blob_that_was_changed(store, ordinary):
    load(store, tar_of(docker_files([A, B], tags=("two:1",))))
    ordinary(False)
    path = engine.blob_path(store, digest(B))
    with open(path, "wb") as file:
        file.write(C)
    with pytest.raises(engine.InvalidParameter, match="invalid diffID for layer"):
        engine.Images(store).for_container("two:1")
    assert content(store)[0] == set()
    with open(path, "wb") as file:
        file.write(B)
    ready(store, "two:1")


@pytest.mark.parametrize("name", ["../up", "a/../../up"])
def test_what_is_hostile_is_not_kept(store, ordinary, name):
    with pytest.raises(engine.InvalidParameter, match="outside"):
        load(store, tar_of(docker_files([tar_of({name: b"x"})])))
    assert content(store) == (set(), set(), set())


# --- with the built file, as the user nobody ---

def special_layer():
    """Owners, setuid, a hidden file, a directory that hides another, a device."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, mode, kind in (("s", 0o4755, tarfile.REGTYPE), ("etc/.wh.group", 0, b"0"),
                                 ("home", 0o750, tarfile.DIRTYPE), ("home/.wh..wh..opq", 0, b"0"),
                                 ("null", 0o666, tarfile.CHRTYPE)):
            info = tarfile.TarInfo(name)
            info.mode, info.type, info.uid, info.gid = mode, kind, 1234, 567
            info.devmajor, info.devminor = 1, 3
            tar.addfile(info)
    return out.getvalue()


@pytest.fixture(name="user")
def user_fixture(pyz):
    """A Cli of the user nobody, on a data root of that user."""
    base = tempfile.mkdtemp(prefix="engine-nobody-", dir="/tmp")
    shutil.copy(pyz, base + "/engine.pyz")
    for path in (base, base + "/engine.pyz"):
        os.chmod(path, 0o755)
    os.mkdir(base + "/own")
    os.chown(base + "/own", NOBODY, NOBODY)

    class User(Cli):
        def __call__(self, *args, **more):
            return super().__call__(*args, user=NOBODY, group=NOBODY, extra_groups=[],
                                    env={"HOME": base + "/own"}, **more)
    yield User(base + "/engine.pyz", Roots(base + "/own"))
    for run in os.listdir(base):
        end_launchers(f"{base}/{run}")
    shutil.rmtree(base)


@pytest.fixture(name="registry")
def registry_fixture(busybox_rootfs):
    """A registry with app:1, an index for this machine and for another one."""
    with open(busybox_rootfs, "rb") as file:
        layers = [file.read(), special_layer()]
    with registry_running() as registry:
        entries = []
        for arch in ("amd64", "arm64", "riscv64"):
            config = json.dumps({
                "architecture": arch, "os": "linux",
                "config": {"Cmd": ["sh"], "Env": ["PATH=/bin"]},
                "rootfs": {"type": "layers", "diff_ids": [digest(data) for data in layers]}})
            wanted = registry.add("app", arch, layers, config=config.encode())
            entries.append({"mediaType": engine.MEDIA_MANIFEST, "digest": wanted,
                            "size": len(registry.manifests["app", wanted][0]),
                            "platform": {"architecture": arch, "os": "linux"}})
        registry.manifest("app", "1", json.dumps({
            "schemaVersion": 2, "mediaType": engine.INDEX_TYPES[0],
            "manifests": entries}).encode(), engine.INDEX_TYPES[0])
        yield registry


@pytest.mark.root
def test_a_data_root_for_another_machine(user, registry):
    name = registry.name("app:1").familiar
    user("pull", "-q", "--platform", "linux/arm64", name).ok()
    assert user("image", "inspect", "-f", "{{.Architecture}}", name).out == "arm64\n"
    archive = user.roots.base + "/archive"
    user("save", "-o", archive, name).ok()
    user("rmi", name).ok()
    user("load", "--platform", "linux/arm64", "-i", archive).ok()
    assert "need root" in user("create", name).err
    assert os.listdir(user.roots.data + "/layers") == []
    # nothing of it runs afterwards
    assert not os.path.exists(user.roots.run) or not [
        each for each in os.listdir(user.roots.run) if each.startswith("launcher")]
    root = Cli(user.pyz, user.roots)
    assert root("images", "--format", "{{.Repository}}:{{.Tag}}").out == name + "\n"
    made = root("create", "--network", "none", name).ok()
    assert "does not match" in made.err
    root("rm", made.out.strip()).ok()


LOOK = "stat -c '%a %u %g %F' /s /home /null; ls /home; ls /etc/group; true"


@pytest.mark.root
def test_root_uses_it(user, registry):
    name = registry.name("app:1").familiar
    user("pull", "-q", "--platform", "linux/" + engine.platform_host()["architecture"], name).ok()
    root = Cli(user.pyz, user.roots)
    shown = root("run", "--rm", "--network", "none", name, "sh", "-c", LOOK).ok()
    assert shown.out.splitlines() == [
        "4755 1234 567 regular empty file", "750 1234 567 directory",
        "666 1234 567 character special file"]
    assert "/etc/group: No such file" in shown.err
    assert len(os.listdir(user.roots.data + "/layers")) == 2
    assert root("ps", "-aq").out == ""


@pytest.mark.root
def test_as_a_read_only_lower_store(user, registry, tmp_path):
    """The data root is the lower directory of an overlay, its upper one in memory."""
    name = registry.name("app:1").familiar
    user("pull", "-q", "--platform", "linux/" + engine.platform_host()["architecture"], name).ok()
    before = sorted(os.listdir(user.roots.data)), os.listdir(user.roots.data + "/layers")
    memory = tmp_path / "memory"
    memory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", memory], check=True)
    try:
        for each in ("upper", "work", "data"):
            (memory / each).mkdir()
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", f"lowerdir={user.roots.data},"
                        f"upperdir={memory}/upper,workdir={memory}/work", memory / "data"],
                       check=True)
        root = Cli(user.pyz, Roots(str(memory)))
        shown = root("run", "--rm", "--network", "none", name, "sh", "-c", LOOK).ok()
        assert shown.out.splitlines()[0] == "4755 1234 567 regular empty file"
        assert "/etc/group: No such file" in shown.err
        end_launchers(root.roots.run)
    finally:
        subprocess.run(["umount", "-l", "-R", memory], check=True)
    assert before == (sorted(os.listdir(user.roots.data)), os.listdir(user.roots.data + "/layers"))
