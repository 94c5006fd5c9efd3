"""Blobs that are dropped: what is recorded of a tar, what is rebuilt of it, and who asks for it."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import random
import signal
import tarfile
import zlib

import engine
import pytest
from image_help import (
    A,
    B,
    C,
    config_of,
    content,
    digest,
    docker_files,
    gz,
    layer,
    load,
    named,
    nobody,
    oci_files,
    oci_parts,
    store_fixture,  # noqa: F401
    tar_of,
    thread_worker,
)
from registry_help import registry_running

BIG = random.Random(1).randbytes(300_000)


@pytest.fixture(name="drops")
def drops_fixture(tmp_path, monkeypatch):
    """drops(False): blobs are kept from now on."""
    file = tmp_path / "daemon.json"
    monkeypatch.setattr(engine, "DAEMON_FILE", str(file))

    def be(so):
        file.write_text(json.dumps({"storage-opts": ["blobs=drop"] if so else []}))
    be(True)
    return be


def tar(*entries, format=tarfile.PAX_FORMAT, tail=b""):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as file:
        for name, data, more in entries:
            info = tarfile.TarInfo(name)
            for key, value in more.items():
                setattr(info, key, value)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return out.getvalue() + tail


LINK, DIR = {"type": tarfile.SYMTYPE}, {"type": tarfile.DIRTYPE}
TARS = {
    "empty": tar(),
    "plain": A,
    "big": tar(("big", BIG, {}), ("small", b"x", {}), ("none", b"", {})),
    "long names": tar(("d/" * 60 + "x" * 120, b"long", {}), ("é" * 90, b"other", {})),
    "gnu": tar(("d/" * 60 + "x" * 120, BIG, {}), format=tarfile.GNU_FORMAT),
    "replaced": tar(("x", b"first", {}), ("x", b"second", {}), ("x", BIG, {})),
    "replaced by a link": tar(("x", BIG, {}), ("x", b"", {**LINK, "linkname": "/etc/passwd"})),
    "replaced by a directory": tar(("x", b"1", {}), ("x", b"", DIR), ("x/y", b"2", {})),
    "through a link": tar(("lib", b"", {**LINK, "linkname": "usr/lib"}), ("usr/lib/", b"", DIR),
                          ("lib/x", BIG, {})),
    "link out": tar(("up", b"", {**LINK, "linkname": "../../.."}), ("up/x", b"here", {})),
    "whiteouts": tar((".wh.a", b"", {}), ("d", b"", DIR), ("d/.wh..wh..opq", b"", {}),
                     ("d/.wh.b", b"content", {})),
    "hard link": tar(("x", BIG, {}), ("y", b"", {"type": tarfile.LNKTYPE, "linkname": "x"})),
    "behind the end": tar(("x", b"1", {}), tail=b"more" * 30000),
    "odd names": tar(("./a/../b//c", b"1", {}), ("/abs", b"2", {})),
}


def rebuilt(directory, data):
    return b"".join(engine.split_pieces(directory, digest(data)))


@pytest.mark.parametrize("marks", [False, True])
@pytest.mark.parametrize("name", TARS)
def test_every_byte(tmp_path, name, marks):
    data = TARS[name]
    (tmp_path / "diff").mkdir()
    engine.tree_unpack(str(tmp_path / "diff"), io.BytesIO(data).read, marks)
    engine.split_record(str(tmp_path), io.BytesIO(data).read)
    assert engine.split_size(str(tmp_path)) == len(data)
    assert rebuilt(str(tmp_path), data) == data


def test_what_it_saves(tmp_path):
    (tmp_path / "diff").mkdir()
    data = TARS["big"]
    engine.tree_unpack(str(tmp_path / "diff"), io.BytesIO(data).read)
    engine.split_record(str(tmp_path), io.BytesIO(data).read)
    assert os.stat(tmp_path / engine.SPLIT_NAME).st_size < 1000


def test_sparse(tmp_path):
    """Holes, as GNU tar writes them in three ways."""
    import subprocess

    with open(tmp_path / "x", "wb") as file:
        file.seek(1 << 20)
        file.write(b"end")
    for number, words in enumerate((["--format=gnu"], ["--format=pax", "--sparse-version=0.1"],
                                    ["--format=pax", "--sparse-version=1.0"])):
        data = subprocess.run(["tar", "-C", tmp_path, "-cS", *words, "x"], check=True,
                              stdout=subprocess.PIPE).stdout
        base = tmp_path / str(number)
        (base / "diff").mkdir(parents=True)
        engine.tree_unpack(str(base / "diff"), io.BytesIO(data).read)
        engine.split_record(str(base), io.BytesIO(data).read)
        assert rebuilt(str(base), data) == data


def damage(base, kind):
    path = base / engine.SPLIT_NAME
    data = path.read_bytes()
    if kind == "file changed":
        (base / "diff" / "big").write_bytes(BIG[::-1])
    elif kind == "file shorter":
        (base / "diff" / "big").write_bytes(BIG[:1000])
    elif kind == "file gone":
        (base / "diff" / "big").unlink()
    elif kind == "cut":
        path.write_bytes(data[:-20])
    elif kind == "bits":
        plain = bytearray(zlib.decompress(data[8:]))
        plain[40] ^= 1
        path.write_bytes(data[:8] + zlib.compress(bytes(plain)))


@pytest.mark.parametrize("kind", ["file changed", "file shorter", "file gone", "cut", "bits"])
def test_what_was_damaged_is_told(tmp_path, kind):
    (tmp_path / "diff").mkdir()
    data = TARS["big"]
    engine.tree_unpack(str(tmp_path / "diff"), io.BytesIO(data).read)
    engine.split_record(str(tmp_path), io.BytesIO(data).read)
    damage(tmp_path, kind)
    with pytest.raises(engine.EngineError, match="cannot rebuild layer " + digest(data)):
        rebuilt(str(tmp_path), data)


# --- in a store ---

def blobs_of(store):
    return {"sha256:" + name for name in content(store)[1]}


def saved(store, *refs):
    return b"".join(engine.images_save(store, list(refs)))


def members(data):
    with tarfile.open(fileobj=io.BytesIO(data)) as file:
        return {member.name: file.extractfile(member).read() for member in file if member.isfile()}


@pytest.mark.parametrize("worker", [False, True])
@pytest.mark.parametrize("packed", [bytes, gz])
def test_load_and_save(store, drops, worker, packed):
    more = {"run_worker": thread_worker([])} if worker else {}
    load(store, tar_of(docker_files([A, B], tags=("two:1",), packed=packed)), **more)
    image = engine.image_get(store, "two:1")
    assert blobs_of(store) == {image.id, image.manifest}
    out = members(saved(store, "two:1"))
    assert {out["blobs/sha256/" + digest(data)[7:]] for data in (A, B)} == {A, B}
    assert load(store, saved(store, "two:1")) == ["Loaded image: two:1"]


def test_the_manifest_that_came_is_kept_but_not_what_it_names(store, drops):
    parts, descriptor = oci_parts([A, B])
    load(store, tar_of(oci_files([named(descriptor, "two:1")], parts)))
    image = engine.image_get(store, "two:1")
    assert image.manifest == descriptor["digest"]
    assert blobs_of(store) == {image.id, image.manifest}
    out = members(saved(store, "two:1"))
    index = json.loads(out["index.json"])["manifests"][0]
    manifest = json.loads(out["blobs/sha256/" + index["digest"][7:]])
    assert [each["digest"] for each in manifest["layers"]] == [digest(A), digest(B)]
    assert digest(out["blobs/sha256/" + index["digest"][7:]]) == index["digest"]


def test_a_layer_on_another_chain(store, drops):
    load(store, tar_of(docker_files([A, B], tags=("two:1",))))
    files = docker_files([C, B], config=config_of([C, B]), tags=("turned:1",))
    load(store, tar_of({name: data for name, data in files.items() if data != B}))
    assert members(saved(store, "turned:1"))["blobs/sha256/" + digest(B)[7:]] == B


def test_kept_before_and_kept_after(store, drops):
    drops(False)
    load(store, tar_of(docker_files([A], tags=("one:1",), packed=gz)))
    drops(True)
    load(store, tar_of(docker_files([A, B], tags=("two:1",), packed=gz)))
    assert digest(gz(A)) in blobs_of(store) and digest(gz(B)) not in blobs_of(store)
    drops(False)
    load(store, tar_of(docker_files([A, B, C], tags=("three:1",), packed=gz)))
    out = members(saved(store, "three:1"))
    assert {"blobs/sha256/" + digest(data)[7:] for data in (gz(A), B, gz(C))} <= set(out)
    engine.image_remove(store, "two:1", nobody)
    engine.image_remove(store, "one:1", nobody)
    assert members(saved(store, "three:1")) == out


def test_what_root_unpacks_later(store, drops, monkeypatch):
    monkeypatch.setattr(engine, "layers_stay_packed", lambda: True)
    load(store, tar_of(docker_files([A, B], tags=("two:1",), packed=gz)))
    assert digest(gz(A)) in blobs_of(store)
    monkeypatch.setattr(engine, "layers_stay_packed", lambda: False)
    engine.Images(store).for_container("two:1")
    engine.content_collect(store, nobody)
    assert digest(gz(A)) not in blobs_of(store)
    assert members(saved(store, "two:1"))["blobs/sha256/" + digest(A)[7:]] == A


def test_import(store, drops):
    engine.image_import(store, io.BytesIO(gz(A)).read, nobody,
                        name=engine.reference_parse("made:1"))
    image = engine.image_get(store, "made:1")
    assert blobs_of(store) == {image.id, image.manifest}
    assert A in members(saved(store, "made:1")).values()


def test_usage_counts_both(store, drops):
    load(store, tar_of(docker_files([TARS["big"]], tags=("big:1",))))
    total, (image,) = engine.images_usage(store, nobody)
    record = os.stat(store.path("layers", "1", engine.SPLIT_NAME)).st_size
    assert total == image["Size"] == len(BIG) + 1 + record
    assert image["SharedSize"] == 0
    drops(False)
    load(store, tar_of(docker_files([TARS["big"], B], tags=("more:1",))))
    total, images = engine.images_usage(store, nobody)
    assert total == len(BIG) + 1 + record + 1 + len(B)
    assert {each["SharedSize"] for each in images} == {len(BIG) + 1 + record}


def _load_and_die(data, run, archive, delay):
    signal.setitimer(signal.ITIMER_REAL, delay)     # SIGALRM ends the process where it stands
    load(engine.Store(data, run), open(archive, "rb"))
    os._exit(0)


@pytest.mark.slow
def test_killed_at_any_moment(store, drops, tmp_path):
    """What was dropped can be rebuilt, whoever died at it; what was not, is there."""
    layers = [layer(*[f"{n}/{m}" for m in range(300)], salt=str(n) * 2000) for n in range(3)]
    archive = tmp_path / "archive"
    archive.write_bytes(tar_of(docker_files(layers, packed=gz)))
    store.roots_make()
    context, killed = multiprocessing.get_context("fork"), 0
    for turn in range(24):
        worker = context.Process(
            target=_load_and_die, args=(store.data, store.run, archive, 0.002 + turn / 80))
        worker.start()
        worker.join(30)
        killed += worker.exitcode == -signal.SIGALRM
        if turn % 3 == 2:
            assert load(store, open(archive, "rb")) == ["Loaded image: test:1"]
            image = engine.image_get(store, "test:1")
            assert blobs_of(store) == {image.id, image.manifest}
            out = members(saved(store, "test:1"))
            assert [out["blobs/sha256/" + digest(data)[7:]] for data in layers] == layers
            engine.image_remove(store, "test:1", nobody)
        engine.content_collect(store, nobody)
    assert killed > 5


# --- to and from a registry ---

@pytest.fixture(name="registry")
def registry_fixture(monkeypatch):
    monkeypatch.setattr(engine, "RETRY_PAUSE", 0)
    with registry_running() as registry:
        yield registry


def pull(store, name, **more):
    return [message.get("status") for message in
            engine.Pull(store, name, nobody, credentials={}, **more).messages()]


def push(store, name):
    list(engine.Push(store, name, credentials={}).messages())


@pytest.mark.parametrize("worker", [False, True])
def test_a_pull_and_a_second_one(store, drops, registry, worker):
    more = {"run_worker": thread_worker([])} if worker else {}
    registry.add("app", "1", [A, B])
    pull(store, registry.name("app:1"), **more)
    image = engine.image_get(store, registry.name("app:1").familiar)
    assert blobs_of(store) == {image.id, image.manifest}
    registry.add("app", "2", [A, C])
    del registry.log[:]
    pull(store, registry.name("app:2"), **more)
    assert registry.asked("GET", digest(gz(A))) == []


def test_pushed_where_it_came_from(store, drops, registry):
    """The registry has the blobs: the manifest goes out as it came."""
    wanted = registry.add("app", "1", [A, B])
    pull(store, registry.name("app:1"))
    engine.image_tag(store, registry.name("app:1").familiar, registry.name("app:2").familiar)
    push(store, registry.name("app:2"))
    assert digest(registry.manifests["app", "2"][0]) == wanted
    engine.image_tag(store, registry.name("app:1").familiar, registry.name("copy:1").familiar)
    registry.hidden["copy"] = {digest(gz(A)), digest(gz(B))}
    push(store, registry.name("copy:1"))
    assert digest(registry.manifests["copy", "1"][0]) == wanted
    assert registry.uploads == {} or all(not data for data in registry.uploads.values())


@pytest.mark.parametrize("dockers", [False, True])
def test_pushed_elsewhere(store, drops, registry, dockers):
    registry.add("app", "1", [A, B])
    if dockers:
        data = json.loads(registry.manifests["app", "1"][0])
        data["mediaType"] = engine.MANIFEST_TYPES[1]
        data["config"]["mediaType"] = engine.CONFIG_TYPES[1]
        for each in data["layers"]:
            each["mediaType"] = "application/vnd.docker.image.rootfs.diff.tar.gzip"
        registry.manifest("app", "1", json.dumps(data).encode(), engine.MANIFEST_TYPES[1])
    pull(store, registry.name("app:1"))
    with registry_running() as other:
        engine.image_tag(store, registry.name("app:1").familiar, other.name("app:1").familiar)
        push(store, other.name("app:1"))
        data, media = other.manifests["app", "1"]
        manifest = json.loads(data)
        kind = "application/vnd.docker.image.rootfs.diff.tar.gzip" if dockers else (
            engine.MEDIA_LAYER + "+gzip")
        assert media == engine.MANIFEST_TYPES[dockers]
        assert {each["mediaType"] for each in manifest["layers"]} == {kind}
        plain = [zlib.decompress(other.blobs[each["digest"]], 31) for each in manifest["layers"]]
        assert plain == [A, B]
        # a second push compresses nothing
        del other.log[:]
        push(store, other.name("app:1"))
        assert other.asked("PATCH", "") == [] and other.manifests["app", "1"][0] == data
