"""load, save and import: every kind of archive, from files and pipes; damage leaves nothing."""

from __future__ import annotations

import bz2
import io
import json
import lzma
import multiprocessing
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile

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
    events,
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


class Pipe:
    """A source that cannot seek and gives little at a time."""

    def __init__(self, data):
        self.file = io.BytesIO(data)

    def read(self, size):
        return self.file.read(min(size, 1000))


def as_file(tmp_path, data):
    path = tmp_path / "archive"
    path.write_bytes(data)
    return open(path, "rb")


@pytest.fixture(params=["file", "pipe", "gzip", "xz", "bzip2", "zstd"])
def give(request, tmp_path):
    """A function that makes a source of one kind of some bytes."""
    packers = {
        "gzip": gz,
        "xz": lzma.compress,
        "bzip2": bz2.compress,
        "zstd": lambda data: (
            subprocess.run(["zstd", "-qc"], input=data, stdout=subprocess.PIPE, check=True).stdout
        ),
    }
    if request.param == "pipe":
        return Pipe
    if request.param in ("zstd", "gzip"):
        return lambda data: as_file(tmp_path, packers[request.param](data))
    if request.param in packers:
        return lambda data: Pipe(packers[request.param](data))
    return lambda data: as_file(tmp_path, data)


def remove_all(store):
    for image in {row[0] for row in store.rows("SELECT id FROM images")}:
        engine.image_remove(store, image, nobody, force=True)
    assert content(store) == (set(), set(), set())


def test_docker_archive(store, give):
    source = give(tar_of(docker_files([A, B], ("test:1", "localhost:5000/x/y:z"))))
    assert load(store, source) == ["Loaded image: test:1", "Loaded image: localhost:5000/x/y:z"]
    image = engine.image_get(store, "test:1")
    assert os.listdir(engine.layer_directories(store, image.layer)[0]) == ["b"]
    assert sorted(os.listdir(engine.layer_directories(store, image.layer)[1])) == ["a", "dir"]
    manifest = json.loads(engine.blob_document(store, image.manifest))
    assert [part["digest"] for part in manifest["layers"]] == [digest(A), digest(B)]
    assert [(action, name) for action, name, _ in events(store)] == [("load", image.id)]
    remove_all(store)


def test_oci_layout_keeps_every_byte(store, give):
    parts, descriptor = oci_parts([A, B])
    assert load(
        store, give(tar_of(oci_files([named(descriptor, "docker.io/library/test:1")], parts)))
    ) == ["Loaded image: test:1"]
    image = engine.image_get(store, "test:1")
    assert image.manifest == descriptor["digest"]
    assert {"blobs/sha256/" + name for name in content(store)[1]} == set(parts)
    remove_all(store)


@pytest.mark.parametrize("packed", [gz, lzma.compress, bz2.compress])
def test_compressed_layers_in_a_docker_archive(store, packed):
    assert load(store, tar_of(docker_files([A, B], packed=packed))) == ["Loaded image: test:1"]
    image = engine.image_get(store, "test:1")
    for part, plain in zip(
        json.loads(engine.blob_document(store, image.manifest))["layers"], (A, B)
    ):
        is_gzip = packed is gz
        assert part["digest"] == digest(packed(plain) if is_gzip else plain)
        assert part["mediaType"].endswith("+gzip") == is_gzip


def test_an_archive_of_docker_before_1_10(store):
    assert load(store, tar_of(LEGACY))[1:] == ["Loaded image: old/name:1"]
    shown = engine.image_inspect(store, "old/name:1")
    assert shown["RootFS"]["Layers"] == [digest(A), digest(B)]
    assert shown["Config"]["Env"] == ["ID=top"]
    image = engine.image_get(store, "old/name:1")
    created = {"created": "2015-01-01T00:00:00Z"}
    assert image.config["history"] == [
        {**created, "created_by": f"/bin/sh -c #(nop) {id} <&>"} for id in ("base", "top")
    ]
    assert not {"id", "parent", "Size"} & set(image.config)
    # The bytes are those that Docker makes of it, so the id is, too.
    made = {
        "architecture": "amd64",
        "config": {"Cmd": ["sh"], "Env": ["ID=top"]},
        "container_config": {"Cmd": ["/bin/sh", "-c", "#(nop) top <&>"]},
        **created,
        "docker_version": "1.9.1",
        "history": [
            {**created, "created_by": f"/bin/sh -c #(nop) {id} <&>"} for id in ("base", "top")
        ],
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [digest(A), digest(B)]},
    }
    text = json.dumps(made, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    assert image.id == digest(text.encode())
    assert len(engine.image_list(store, {}, list)) == 2         # and that which has no name


def test_names_of_fields_in_any_case(store):
    settings = b'"config": {"ENV": ["A=1"], "cmd": ["sh"], "labels": {"x": "y"}}'
    data = config_of([A]).replace(b'"config": {}', settings).replace(b'"rootfs"', b'"RootFS"')
    files = docker_files([A], config=data)
    row = json.loads(files["manifest.json"])[0]
    files["manifest.json"] = json.dumps([{key.lower(): row[key] for key in row}]).encode()
    load(store, tar_of(files))
    image = engine.image_get(store, "test:1")
    assert image.id == digest(data)
    assert image.settings["Env"] == ["A=1"] and image.settings["Cmd"] == ["sh"]
    assert image.settings["Labels"] == {"x": "y"}
    assert engine.blob_document(store, image.id) == data


def test_linked_layers(store):
    """docker save before 25 wrote a link where an image had the same layer twice."""
    files = docker_files([A, B])
    first = digest(A)[7:] + "/layer.tar"
    rows = json.loads(files["manifest.json"])
    rows[0]["Layers"][0] = "linked/layer.tar"
    files["manifest.json"] = json.dumps(rows).encode()
    files["linked/layer.tar"] = "../" + first
    assert load(store, tar_of(files)) == ["Loaded image: test:1"]


def test_several_images_share_layers(store):
    one, two = docker_files([A, B], ("one:1",)), docker_files([A, C], ("two:1", "two:2"))
    rows = json.loads(one["manifest.json"]) + json.loads(two["manifest.json"])
    data = tar_of({**one, **two, "manifest.json": json.dumps(rows).encode()})
    assert load(store, data) == [
        "Loaded image: one:1",
        "Loaded image: two:1",
        "Loaded image: two:2",
    ]
    assert len(content(store)[0]) == 3
    assert load(store, data) == [
        "Loaded image: one:1",
        "Loaded image: two:1",
        "Loaded image: two:2",
    ]
    assert len(content(store)[0]) == 3
    remove_all(store)


def test_untagged_and_renamed(store):
    data = tar_of(docker_files([A], ()))
    image = digest(config_of([A]))
    assert load(store, data) == [f"Loaded image ID: {image}"]
    load(store, tar_of(docker_files([B])))
    old = engine.image_get(store, "test:1").id
    assert load(store, tar_of(docker_files([A]))) == [
        f"The image test:1 already exists, renaming the old one with ID {old} to empty string",
        "Loaded image: test:1",
    ]
    assert engine.image_get(store, old).id == old and engine.image_tags(store, old) == ([], [])


@pytest.mark.parametrize("packed", [bytes, gz, lzma.compress])
def test_workers_unpack_from_the_archive(store, tmp_path, packed):
    """Of a plain file, a layer is unpacked from its place beside being stored as a blob."""
    log = []
    source = as_file(tmp_path, tar_of(docker_files([A, B, C], packed=packed)))
    assert load(store, source, run_worker=thread_worker(log)) == ["Loaded image: test:1"]
    assert sorted(log) == sorted(map(digest, (A, B, C)))
    image = engine.image_get(store, "test:1")
    found = [os.listdir(path) for path in engine.layer_directories(store, image.layer)]
    assert found[:2] == [["c"], ["b"]] and sorted(found[2]) == ["a", "dir"]
    remove_all(store)


def test_the_same_layer_twice(store):
    assert load(store, tar_of(docker_files([A, B, A]))) == ["Loaded image: test:1"]
    parts, descriptor = oci_parts([A, A])
    load(store, tar_of(oci_files([named(descriptor, "twice:1")], parts)))
    for ref, count in (("test:1", 3), ("twice:1", 2)):
        image = engine.image_get(store, ref)
        assert len(engine.layer_directories(store, image.layer)) == count
        assert load(store, save(store, ref)) == [f"Loaded image: {ref}"]
    remove_all(store)


def test_no_layers(store):
    assert load(store, tar_of(docker_files([]))) == ["Loaded image: test:1"]
    assert engine.image_inspect(store, "test:1")["Size"] == 0


def test_progress(store):
    source = io.BytesIO(tar_of(docker_files([A, B])))
    found = [
        message
        for message in engine.images_load(store, source, list, quiet=False)
        if "status" in message
    ]
    assert [(message["status"], message["id"]) for message in found] == [
        ("Loading layer", digest(data)[7:19]) for data in (A, B)
    ] * 2
    assert found[2]["progressDetail"] == {"current": len(A), "total": len(A)}


def test_nested_index_and_platforms(store):
    want = engine.platform_host()
    parts, descriptor = oci_parts([A])
    other, foreign = oci_parts([B], config=config_of([B], architecture="s390x"))
    proof, attestation = oci_parts([C])
    inner = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": engine.INDEX_TYPES[0],
            "manifests": [
                {**foreign, "platform": {"os": "linux", "architecture": "s390x"}},
                {**descriptor, "platform": {key: value for key, value in want.items() if value}},
                {
                    **attestation,
                    "platform": {"os": "unknown", "architecture": "unknown"},
                    "annotations": {"vnd.docker.reference.type": "attestation-manifest"},
                },
                {
                    **attestation,
                    "digest": digest(b"not here"),
                    "platform": {"os": "linux", "architecture": "ppc64le"},
                },
            ],
        }
    ).encode()
    files = {"blobs/sha256/" + digest(inner)[7:]: inner}
    index = named(
        {"mediaType": engine.INDEX_TYPES[0], "digest": digest(inner), "size": len(inner)},
        "test:1",
        engine.IMAGE_NAME,
    )
    data = tar_of(oci_files([index], parts, other, proof, files))
    assert load(store, data) == ["Loaded image: test:1"]
    assert engine.image_get(store, "test:1").manifest == descriptor["digest"]
    load(store, data, platform=engine.platform_parse("linux/s390x"))
    assert engine.image_get(store, "test:1").config["architecture"] == "s390x"
    with pytest.raises(
        engine.NotFound,
        match="^no matching manifest for linux/mips64le in the manifest list entries$",
    ):
        load(store, data, platform=engine.platform_parse("linux/mips64le"))


@pytest.mark.parametrize(
    "want, have, best",
    [
        ("linux/amd64", ["linux/386", "linux/amd64"], 1),
        ("linux/arm/v7", ["linux/arm/v6", "linux/arm/v7", "linux/arm/v5"], 1),
        ("linux/arm/v7", ["linux/arm/v5", "linux/arm/v6"], 1),
        ("linux/arm/v6", ["linux/arm/v7"], None),
        ("linux/arm64", ["linux/arm64/v8"], 0),
        ("linux/amd64", ["windows/amd64"], None),
    ],
)
def test_platform_rank(want, have, best):
    ranks = [
        engine.platform_rank(
            dict(zip(("os", "architecture", "variant"), text.split("/"))),
            engine.platform_parse(want),
        )
        for text in have
    ]
    assert (ranks.index(max(ranks)) if max(ranks) else None) == best


def test_oci_names(store):
    parts, descriptor = oci_parts([A])
    for note, key, tags in (
        ("latest", engine.REF_NAME, []),
        ("busybox", engine.REF_NAME, []),
        ("busybox:1", engine.REF_NAME, ["busybox:1"]),
        ("quay.io/a/b", engine.REF_NAME, ["quay.io/a/b:latest"]),
        ("docker.io/library/x:2", engine.IMAGE_NAME, ["x:2"]),
    ):
        load(store, tar_of(oci_files([named(descriptor, note, key)], parts)))
        assert engine.image_tags(store, digest(config_of([A])))[0] == tags
        remove_all(store)


def test_oci_directory(store, tmp_path):
    """A layout as skopeo writes it, packed on the way."""
    parts, descriptor = oci_parts([A, B])
    for name, data in oci_files([named(descriptor, "x:1")], parts).items():
        (tmp_path / "oci" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "oci" / name).write_bytes(data)

    class Source:
        read = staticmethod(engine.stream_of(engine.tree_pack(str(tmp_path / "oci"))))

    assert load(store, Source) == ["Loaded image: x:1"]


def save(store, *refs, **options):
    return b"".join(engine.images_save(store, list(refs), **options))


def names_in(data):
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return tar.getnames(), {
            name: tar.extractfile(name).read()
            for name in tar.getnames()
            if tar.getmember(name).isfile()
        }


def test_save_is_both_kinds_and_deterministic(store, tmp_path):
    load(store, tar_of(docker_files([A, B], ("x:1", "x:2"))))
    parts, descriptor = oci_parts([A, C])
    load(store, tar_of(oci_files([named(descriptor, "y:1")], parts)))
    data = save(store, "x", "y:1")
    assert data == save(store, "x", "y:1")
    names, files = names_in(data)
    assert names == sorted(names) and len(set(names)) == len(names)
    rows = json.loads(files["manifest.json"])
    assert [row["RepoTags"] for row in rows] == [["x:1", "x:2"], ["y:1"]]
    assert [
        name for row in rows for name in [row["Config"], *row["Layers"]] if name not in files
    ] == []
    assert json.loads(files["repositories"])["x"].keys() == {"1", "2"}
    index = json.loads(files["index.json"])["manifests"]
    assert [part["annotations"][engine.IMAGE_NAME] for part in index] == [
        "docker.io/library/x:1",
        "docker.io/library/x:2",
        "docker.io/library/y:1",
    ]
    for name, blob in files.items():
        if name.startswith("blobs/"):
            assert digest(blob)[7:] == name[13:]
    assert json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    assert [action for action, _, _ in events(store)].count("save") == 4
    ids = {ref: engine.image_get(store, ref) for ref in ("x:1", "y:1")}
    remove_all(store)
    assert load(store, data) == ["Loaded image: x:1", "Loaded image: x:2", "Loaded image: y:1"]
    for ref, image in ids.items():
        assert (engine.image_get(store, ref).id, engine.image_get(store, ref).manifest) == (
            image.id,
            image.manifest,
        )
    assert save(store, "x", "y:1") == data
    oci = {
        name: blob for name, blob in files.items() if name not in ("manifest.json", "repositories")
    }
    remove_all(store)
    load(store, tar_of(oci))
    assert engine.image_get(store, "y:1").manifest == descriptor["digest"]


def test_same_image_two_compressions(store):
    """Its layers are unpacked already; the manifest that comes later still finds all its blobs."""
    load(store, tar_of(docker_files([A, B], ("plain:1",))))
    config = config_of([A, B], Cmd=["other"])
    parts, descriptor = oci_parts([A, B], config=config)
    load(store, tar_of(oci_files([named(descriptor, "packed:1")], parts)))
    engine.image_remove(store, "plain:1", nobody)
    data = save(store, "packed:1")
    assert set(parts) <= set(names_in(data)[1])


def test_save_by_id_and_unknown(store):
    load(store, tar_of(docker_files([A])))
    image = engine.image_get(store, "test:1").id
    for ref in (image, image[7:], image[7:19]):
        files = names_in(save(store, ref))[1]
        assert (
            json.loads(files["manifest.json"])[0]["RepoTags"] is None
            and "repositories" not in files
        )
    with pytest.raises(engine.NotFound, match="^No such image: nope$"):
        engine.images_save(store, ["test:1", "nope"])
    with pytest.raises(
        engine.NotFound, match="^no suitable export target found for platform linux/s390x$"
    ):
        save(store, "test:1", platform=engine.platform_parse("linux/s390x"))


def replaced(files, name, data):
    return tar_of({**files, name: data})


def without(files, *names):
    return tar_of({name: data for name, data in files.items() if name not in names})


FILES = docker_files([A, B])
PARTS, DESCRIPTOR = oci_parts([A, B])
OCI = oci_files([named(DESCRIPTOR, "x:1")], PARTS)
CONFIG = next(name for name in FILES if name.endswith(".json") and name != "manifest.json")
LAYER = digest(A)[7:] + "/layer.tar"
ROW = json.loads(FILES["manifest.json"])[0]
GZ = "blobs/sha256/" + digest(gz(A))[7:]


def manifest(**changes):
    return replaced(FILES, "manifest.json", json.dumps([{**ROW, **changes}]).encode())


def config(data):
    return tar_of(
        docker_files([A, B], config=data if isinstance(data, bytes) else json.dumps(data).encode())
    )


HOSTILE = {
    "empty": b"",
    "text": b"hello " * 500,
    "no manifest": tar_of({"etc/passwd": b"x"}),
    "manifest not JSON": replaced(FILES, "manifest.json", b"[{"),
    "manifest null": replaced(FILES, "manifest.json", b"null"),
    "manifest object": replaced(FILES, "manifest.json", b"{}"),
    "manifest of numbers": replaced(FILES, "manifest.json", b"[1]"),
    "manifest nested": replaced(FILES, "manifest.json", b"[" * 100_000),
    "manifest large": replaced(FILES, "manifest.json", b" " * (5 << 20)),
    "no config key": replaced(FILES, "manifest.json", b"[{}]"),
    "config a number": manifest(Config=5),
    "config missing": without(FILES, CONFIG),
    "config outside": manifest(Config="../../../../etc/passwd"),
    "config absolute": manifest(Config="/etc/passwd"),
    "config a device": manifest(Config="/dev/zero"),
    "layers fewer": manifest(Layers=ROW["Layers"][:1]),
    "layers missing": without(FILES, LAYER),
    "layers swapped": manifest(Layers=ROW["Layers"][::-1]),
    "layers numbers": manifest(Layers=[1, 2]),
    "tag bad": manifest(RepoTags=["UPPER:1"]),
    "tag without": manifest(RepoTags=["name"]),
    "tag number": manifest(RepoTags=[7]),
    "config not JSON": config(b"\xff\xfe"),
    "config a list": config([]),
    "config without rootfs": config({"os": "linux"}),
    "config rootfs text": config({"rootfs": "x"}),
    "config diff_ids": config({"rootfs": {"diff_ids": [5, 6]}}),
    "config diff_ids bad": config({"rootfs": {"diff_ids": ["sha256:x", "sha256:y"]}}),
    "config for windows": tar_of(
        docker_files([A, B], config=config_of([A, B]).replace(b'"linux"', b'"windows"'))
    ),
    "config Env text": tar_of(docker_files([A, B], Env="PATH")),
    "config Labels list": tar_of(docker_files([A, B], Labels=["x"])),
    "config Labels values": tar_of(docker_files([A, B], Labels={"x": 1})),
    "config history": tar_of(docker_files([A, B], history=[1])),
    "config created text": tar_of(docker_files([A, B], created="yesterday")),
    "config created date": tar_of(docker_files([A, B], created="2024-01-01")),
    "config created empty": tar_of(docker_files([A, B], created="")),
    "config created month": tar_of(docker_files([A, B], created="2024-13-01T00:00:00Z")),
    "config history created": tar_of(docker_files([A, B], history=[{"created": "10m"}])),
    "config history long": tar_of(docker_files([A, B], history=[{}, {}, {}])),
    "config Env text in lower case": tar_of(
        docker_files(
            [A, B], config=config_of([A, B]).replace(b'"config": {', b'"CONFIG": {"env":"x"')
        )
    ),
    "layer damaged": replaced(FILES, LAYER, b"garbage" * 500),
    "layer other": replaced(FILES, LAYER, C),
    "layer truncated gzip": replaced(FILES, LAYER, gz(A)[:-9]),
    "layer zstd garbage": replaced(FILES, LAYER, b"\x28\xb5\x2f\xfd" + b"garbage" * 99),
    "layer a link out": replaced(FILES, LAYER, "../../../../../etc/passwd"),
    "layer a link loop": replaced(FILES, LAYER, "layer.tar"),
    "archive truncated": tar_of(FILES)[:5000],
    "archive .. name": tar_of({**FILES, "../evil": b"x"}),
    "gzip truncated": gz(tar_of(FILES))[:-20],
    "gzip of garbage": gz(b"garbage" * 1000),
    "oci index text": tar_of({**OCI, "index.json": b"x"}),
    "oci index list": tar_of({**OCI, "index.json": b"[]"}),
    "oci no digest": tar_of({**OCI, "index.json": b'{"manifests":[{}]}'}),
    "oci digest text": tar_of(oci_files([{**DESCRIPTOR, "digest": "sha256:../../x"}], PARTS)),
    "oci manifest missing": without(OCI, "blobs/sha256/" + DESCRIPTOR["digest"][7:]),
    "oci manifest other": replaced(OCI, "blobs/sha256/" + DESCRIPTOR["digest"][7:], b"{}"),
    "oci layer missing": without(OCI, GZ),
    "oci layer other": replaced(OCI, GZ, gz(C)),
    "oci layer larger": replaced(OCI, GZ, gz(A) + b"x"),
    "oci config missing": without(OCI, "blobs/sha256/" + digest(config_of([A, B]))[7:]),
    "oci layout version": tar_of({**OCI, "oci-layout": b'{"imageLayoutVersion":"2.0.0"}'}),
    "oci layout list": tar_of({**OCI, "oci-layout": b"[]"}),
    "oci manifest size": tar_of(oci_files([{**DESCRIPTOR, "size": 5}], PARTS)),
    "oci annotations": tar_of(oci_files([{**DESCRIPTOR, "annotations": 5}], PARTS)),
    "oci name bad": tar_of(oci_files([named(DESCRIPTOR, "docker.io/UPPER:1")], PARTS)),
}


def artifact():
    parts, _ = oci_parts([A])
    data = json.dumps(
        {
            "schemaVersion": 2,
            "config": {
                "mediaType": "application/vnd.cncf.helm.config.v1+json",
                "digest": digest(b"{}"),
                "size": 2,
            },
            "layers": [],
        }
    ).encode()
    found = {"mediaType": engine.MEDIA_MANIFEST, "digest": digest(data), "size": len(data)}
    return tar_of(oci_files([found], {**parts, "blobs/sha256/" + digest(data)[7:]: data}))


def loop_of_indexes(depth):
    files, (below, descriptor) = {}, oci_parts([A])
    files.update(below)
    for _ in range(depth):
        data = json.dumps({"manifests": [descriptor]}).encode()
        descriptor = {"mediaType": engine.INDEX_TYPES[0], "digest": digest(data), "size": len(data)}
        files["blobs/sha256/" + digest(data)[7:]] = data
    return tar_of(oci_files([descriptor], files))


def wrong_size(which):
    """A layout whose manifest tells a wrong size of its config or first layer."""
    parts, descriptor = oci_parts([A])
    name = "blobs/sha256/" + descriptor["digest"][7:]
    document = json.loads(parts.pop(name))
    place = document["config"] if which == "config" else document["layers"][0]
    place["size"] += 1
    data = json.dumps(document).encode()
    found = {"mediaType": engine.MEDIA_MANIFEST, "digest": digest(data), "size": len(data)}
    return tar_of(oci_files([found], {**parts, "blobs/sha256/" + digest(data)[7:]: data}))


def legacy_files(images, repositories):
    """An archive of Docker before 1.10: images are {id: (parent, layer)}."""
    files = {"repositories": json.dumps(repositories).encode()}
    for id, (parent, data) in images.items():
        document = {
            "id": id,
            **({"parent": parent} if parent else {}),
            "created": "2015-01-01T00:00:00Z",
            "container_config": {"Cmd": ["/bin/sh", "-c", f"#(nop) {id} <&>"]},
            "docker_version": "1.9.1",
            "config": {"Cmd": ["sh"], "Env": [f"ID={id}"]},
            "architecture": "amd64",
            "os": "linux",
            "Size": 5,
        }
        files[f"{id}/VERSION"] = b"1.0"
        files[f"{id}/json"] = json.dumps(document).encode()
        files[f"{id}/layer.tar"] = data
    return files


LEGACY = legacy_files(
    {"top": ("base", B), "base": ("", A), "free": ("base", C)}, {"old/name": {"1": "top"}}
)
HOSTILE.update({
    "legacy repositories text": tar_of({**LEGACY, "repositories": b"x"}),
    "legacy repositories list": tar_of({**LEGACY, "repositories": b'{"a":[]}'}),
    "legacy tag of nothing": tar_of({**LEGACY, "repositories": b'{"a":{"1":"nope"}}'}),
    "legacy tag a number": tar_of({**LEGACY, "repositories": b'{"a":{"1":7}}'}),
    "legacy tag bad": tar_of({**LEGACY, "repositories": b'{"A":{"1":"top"}}'}),
    "legacy parent missing": without(LEGACY, "base/json"),
    "legacy layer missing": without(LEGACY, "base/layer.tar"),
    "legacy layer damaged": tar_of({**LEGACY, "top/layer.tar": gz(A)[:-9]}),
    "legacy circle": tar_of(
        legacy_files({"a": ("b", A), "b": ("a", B)}, {"name": {"1": "a"}})
    ),
    "legacy json list": tar_of({**LEGACY, "top/json": b"[]"}),
    "legacy for windows": tar_of({**LEGACY, "top/json": b'{"os":"windows"}'}),
})
HOSTILE["oci config size"] = wrong_size("config")
HOSTILE["oci layer size"] = wrong_size("layer")
HOSTILE["oci artifact"] = artifact()
HOSTILE["oci indexes too deep"] = loop_of_indexes(8)


@pytest.mark.parametrize("kind", ["file", "pipe", "workers"])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(store, tmp_path, name, kind):
    load(store, tar_of(docker_files([C], ("kept:1",))))
    before = content(store)
    source = Pipe(HOSTILE[name]) if kind == "pipe" else as_file(tmp_path, HOSTILE[name])
    options = {"run_worker": thread_worker([])} if kind == "workers" else {}
    with pytest.raises((engine.InvalidParameter, engine.NotFound)) as refused:
        load(store, source, **options)
    assert "\n" not in str(refused.value) and 5 < len(str(refused.value)) < 400
    assert str(tmp_path) not in str(refused.value)
    with engine.content_alone(store):
        pass
    engine.content_collect(store, nobody)
    assert content(store) == before and len(store.rows("SELECT id FROM images")) == 1


def test_indexes_within_reason(store):
    assert load(store, loop_of_indexes(3))[0].startswith("Loaded image ID: sha256:")


@pytest.mark.root
@pytest.mark.parametrize("name", ["file", "pipe"])
def test_disk_full(store, tmp_path, name):
    os.mkdir(store.data)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "none", store.data], check=True)
    try:
        data = tar_of(docker_files([layer(*map(str, range(40)), salt="x" * 1_000_000)]))
        with pytest.raises(
            engine.EngineError, match="^(cannot [a-z ]+|unpack /[0-9]+): no space left on device$"
        ):
            load(store, Pipe(data) if name == "pipe" else as_file(tmp_path, data))
        assert content(store) == (set(), set(), set())
    finally:
        subprocess.run(["umount", "-l", store.data], check=True)
        store._open.clear()


def test_too_many_layers(store):
    """What could be no container's root is not kept."""
    layers = [layer(str(n)) for n in range(128)]
    with pytest.raises(engine.InvalidParameter, match="^max depth exceeded$"):
        load(store, tar_of(docker_files(layers)))
    assert content(store) == (set(), set(), set())
    load(store, tar_of(docker_files(layers[1:])))
    engine.image_remove(store, "test:1", nobody)


@pytest.mark.parametrize("broken", ["image_create", "_image_load"])
def test_failure_after_the_layers(store, monkeypatch, broken):
    """Whatever fails once the layers are registered, nothing of the load stays."""
    load(store, tar_of(docker_files([A], ("kept:1",))))
    before = content(store)

    def fail(*_args, **_more):
        raise OverflowError("told to fail")

    monkeypatch.setattr(engine, broken, fail)
    with pytest.raises(OverflowError):
        load(store, tar_of(docker_files([A, B, C])))
    assert content(store) == before


def test_what_a_killed_load_left(store):
    """Half done directories, layers and blobs of the dead: the next command removes them."""

    def die():
        with engine.content_lease(store) as lease:
            _strays(store, lease)
            os._exit(0)

    orders = (
        lambda: load(store, tar_of(docker_files([A], ("kept:1",)))),
        lambda: engine.image_remove(store, "more:1", nobody),
        lambda: engine.image_prune(store, {}, nobody),
    )
    load(store, tar_of(docker_files([A], ("kept:1", "more:1"))))
    before = content(store)
    for order in orders:
        child = multiprocessing.get_context("fork").Process(target=die)
        child.start()
        child.join()
        assert content(store) != before
        order()
        assert content(store) == before


def _strays(store, lease):
    """A registered layer without an image, a blob without a name."""
    blob, size = engine.blob_put(lease, io.BytesIO(B).read)
    item = engine.LayerItem(digest(B), "", lambda: (blob, size, engine.MEDIA_LAYER))
    engine.layers_register(lease, [item])
    engine.blob_put(lease, io.BytesIO(C).read)


def test_prune_counts_strays(store):
    with engine.content_lease(store) as lease:
        _strays(store, lease)
    blobs = store.path("blobs", "sha256")
    there = sum(os.path.getsize(os.path.join(blobs, name)) for name in os.listdir(blobs))
    found = engine.image_prune(store, {}, nobody)
    assert found == {"ImagesDeleted": None, "SpaceReclaimed": 1 + there}
    assert content(store) == (set(), set(), set())


# -- import -------------------------------------------------------------------


@pytest.mark.parametrize("packed", [bytes, gz, lzma.compress, bz2.compress])
def test_import(store, packed):
    name = engine.reference_parse("mine:1")
    image = engine.image_import(
        store,
        io.BytesIO(packed(A)).read,
        list,
        name=name,
        message="from a test",
        changes=['CMD ["sh"]', "ENV A=1", "LABEL l=v"],
    )
    shown = engine.image_inspect(store, "mine:1")
    assert (
        shown["Id"] == image
        and shown["Comment"] == "from a test"
        and shown["RootFS"]["Layers"] == [digest(A)]
    )
    assert (
        shown["Config"]["Cmd"] == ["sh"]
        and shown["Config"]["Env"] == ["A=1"]
        and shown["Size"] == 6
    )
    assert shown["Architecture"] == engine.platform_host()["architecture"]
    assert shown["Metadata"]["LastTagTime"] > "2020"
    assert engine.image_history(store, image)[0]["Comment"] == "from a test"
    blob = json.loads(engine.blob_document(store, engine.image_get(store, image).manifest))[
        "layers"
    ][0]["digest"]
    assert blob == digest(packed(A) if packed is gz else A)
    assert [(action, attributes) for action, _, attributes in events(store)] == [
        ("tag", {"l": "v", "name": "mine:1"}),
        ("import", {"l": "v", "name": image}),
    ]


def test_import_refused(store):
    for data, changes, text in (
        (b"no tar" * 500, [], "^invalid tar archive"),
        (A, ["RUN x"], "is not a valid change"),
        (A[:700], [], "unexpected EOF"),
        (gz(A)[:-5], [], "^damaged gzip data"),
    ):
        with pytest.raises(engine.InvalidParameter, match=text):
            engine.image_import(store, io.BytesIO(data).read, list, changes=changes)
        store.roots_make()
        assert content(store) == (set(), set(), set())
    with pytest.raises(
        engine.InvalidParameter, match='^operating system "windows" is not supported$'
    ):
        engine.image_import(
            store, io.BytesIO(A).read, list, platform=engine.platform_parse("windows/amd64")
        )


@pytest.mark.root
@pytest.mark.skipif(not shutil.which("podman"), reason="needs podman")
@pytest.mark.parametrize("source", ["docker-archive", "oci-archive"])
def test_podman_reads_what_is_saved(store, tmp_path, source):
    load(store, tar_of(docker_files([A, B], ("peer:1",))))
    (tmp_path / "saved.tar").write_bytes(save(store, "peer:1"))
    base = tempfile.mkdtemp(dir="/tmp")  # podman wants a short run root
    try:
        done = subprocess.run(
            [
                "podman",
                "--root",
                base + "/d",
                "--runroot",
                base + "/r",
                "--storage-driver",
                "vfs",
                "pull",
                "-q",
                f"{source}:{tmp_path}/saved.tar",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0 and engine.image_get(store, "peer:1").id[7:] in done.stdout, (
            done.stdout
        )
    finally:
        subprocess.run(["umount", "-q", base + "/d/vfs"], stderr=subprocess.DEVNULL, check=False)
        shutil.rmtree(base)


def _load_and_die(data, run, archive, delay):
    signal.setitimer(signal.ITIMER_REAL, delay)  # SIGALRM ends the process where it stands
    load(engine.Store(data, run), open(archive, "rb"))
    os._exit(0)


@pytest.mark.slow
def test_killed_at_any_moment(store, tmp_path):
    """A load that dies leaves nothing that the next one does not put right."""
    layers = [layer(*[f"{n}/{m}" for m in range(300)], salt=str(n) * 2000) for n in range(3)]
    archive = tmp_path / "archive"
    archive.write_bytes(tar_of(docker_files(layers)))
    store.roots_make()
    context, killed = multiprocessing.get_context("fork"), 0
    for turn in range(40):
        worker = context.Process(
            target=_load_and_die, args=(store.data, store.run, archive, 0.002 + turn / 300)
        )
        worker.start()
        worker.join(30)
        killed += worker.exitcode == -signal.SIGALRM
        if turn % 4 == 3:
            assert load(store, open(archive, "rb")) == ["Loaded image: test:1"]
            image = engine.image_get(store, "test:1")
            for path in engine.layer_directories(store, image.layer):
                assert sum(len(names) for _, _, names in os.walk(path)) == 300
            assert len(save(store, "test:1")) > 3 * 600_000
            engine.image_remove(store, "test:1", nobody)
        engine.content_collect(store, nobody)
    assert killed > 10
    if engine.image_list(store, {}, nobody):
        remove_all(store)
    assert content(store) == (set(), set(), set())
