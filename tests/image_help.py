"""Archives for the tests of blobs, layers and images, and a store that is looked through."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
import threading

import engine
import pytest

import _socket

ARCH = engine.platform_host()["architecture"]


def gz(data):
    """gzip without the time of day."""
    return gzip.compress(data, mtime=0)


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def tar_of(files):
    """A tar of {name: bytes}, a name with a slash at its end being a directory."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            if isinstance(data, str):
                info.type, info.linkname, data = tarfile.SYMTYPE, data, b""
            elif name.endswith("/"):
                info.type, info.mode = tarfile.DIRTYPE, 0o755
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def layer(*names, salt=""):
    return tar_of({name: (name + salt).encode() for name in names})


#: three layers that differ
A, B, C = layer("a", "dir/x"), layer("b"), layer("c", salt="!")


def config_of(layers, created="2024-01-01T00:00:00Z", **more):
    """Bytes of a config over plain layers; `labels`, `env` and the like go to its settings."""
    document = {
        "architecture": ARCH,
        "os": "linux",
        "created": created,
        "config": {key: more.pop(key) for key in list(more) if key[0].isupper()},
        "rootfs": {"type": "layers", "diff_ids": [digest(data) for data in layers]},
        "history": [
            {"created": created, "created_by": f"step {n}", "comment": "c"}
            for n in range(len(layers))
        ],
        **more,
    }
    return json.dumps(document).encode()


def docker_files(layers, tags=("test:1",), config=None, packed=bytes, **more):
    """{name: bytes} of a docker-archive as before Docker 25: <id>/layer.tar."""
    config = config or config_of(layers, **more)
    name = digest(config)[7:] + ".json"
    paths = [digest(data)[7:] + "/layer.tar" for data in layers]
    manifest = [{"Config": name, "RepoTags": list(tags) or None, "Layers": paths}]
    return {
        **{path: packed(data) for path, data in zip(paths, layers)},
        name: config,
        "manifest.json": json.dumps(manifest).encode(),
    }


def oci_parts(layers, packed=gz, config=None, media="+gzip", **more):
    """({blob path: bytes}, manifest descriptor) of one image of an OCI layout."""
    config = config or config_of(layers, **more)
    blobs = [packed(data) for data in layers]
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": engine.MEDIA_MANIFEST,
            "config": {
                "mediaType": engine.MEDIA_CONFIG,
                "digest": digest(config),
                "size": len(config),
            },
            "layers": [
                {"mediaType": engine.MEDIA_LAYER + media, "digest": digest(data), "size": len(data)}
                for data in blobs
            ],
        }
    ).encode()
    files = {"blobs/sha256/" + digest(data)[7:]: data for data in [config, manifest, *blobs]}
    return files, {
        "mediaType": engine.MEDIA_MANIFEST,
        "digest": digest(manifest),
        "size": len(manifest),
    }


def oci_files(descriptors, *parts):
    files = {}
    for part in parts:
        files.update(part)
    index = {"schemaVersion": 2, "mediaType": engine.INDEX_TYPES[0], "manifests": descriptors}
    return {
        **files,
        "index.json": json.dumps(index).encode(),
        "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
    }


def named(descriptor, name, key=engine.REF_NAME, **more):
    return {**descriptor, "annotations": {key: name}, **more}


def load(store, data, **options):
    """The `stream` lines of a load."""
    source = io.BytesIO(data) if isinstance(data, bytes) else data
    return [
        message["stream"].rstrip("\n")
        for message in engine.images_load(store, source, list, **options)
        if "stream" in message
    ]


def thread_worker(log, fail=()):
    """What the launcher does, with threads for processes."""

    def run(role, request, fds):
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        kept = [os.dup(fd) for fd in fds]

        def work():
            log.append(request["diff_id"])
            try:
                if request["diff_id"] in fail:
                    raise engine.InvalidParameter("told to fail")
                engine.ROLES[role](request, theirs, kept)
            except engine.EngineError as failure:
                engine.answer_send(theirs, engine.error_answer(failure))
            for fd in kept:
                os.close(fd)
            theirs.close()

        threading.Thread(target=work).start()
        return ours

    return run


def nobody():
    return []


def content(store):
    """What lies below the data root: ({layer directories}, {blobs}, {what is half done})."""
    listed = [
        set(os.listdir(store.path(name))) if os.path.isdir(store.path(name)) else set()
        for name in ("layers", "blobs/sha256", "tmp")
    ]
    return tuple(listed)


def events(store):
    """[(action, id, attributes)] of the journal."""
    found = []
    for name in sorted(
        os.listdir(store.run_path("events")), key=lambda name: int(name.partition(".")[0])
    ):
        with open(store.run_path("events", name), encoding="utf-8") as file:
            found += [json.loads(line) for line in file]
    return [
        (event["Action"], event["Actor"]["ID"], event["Actor"]["Attributes"]) for event in found
    ]


@pytest.fixture(name="store")
def store_fixture(tmp_path, monkeypatch):
    """A Store of its own; afterwards nothing half done is in it, nor a blob without a name."""
    monkeypatch.setattr(engine, "layers_stay_packed", bool)
    found = engine.Store(str(tmp_path / "data"), str(tmp_path / "run"))
    yield found
    layers, blobs, half = content(found)
    assert not half
    assert (
        not os.path.isdir(found.run_path("locks"))
        or [name for name in os.listdir(found.run_path("locks")) if name.startswith("layer-")] == []
    )
    if os.path.exists(found.path("engine.db")):
        rows = found.rows("SELECT n FROM layers")
        assert layers == {engine.layer_name(row[0]) for row in rows}
        engine.content_collect(found, nobody)
        assert content(found)[1] == blobs, "blobs that nothing names"
    engine.tree_remove(found.data)
