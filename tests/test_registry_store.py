"""What our registry keeps: checked names, whole files, and a collection that takes nothing used."""

from __future__ import annotations

import hashlib
import json
import os
import threading

import engine
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_help import digest

BLOB, CONFIG = b"a layer", b"{}"


@pytest.fixture(name="there")
def there_fixture(tmp_path):
    return engine.RegistryStore(str(tmp_path / "registry"))


def put_blob(there, name, data, wanted=None):
    upload = there.upload_start(name)
    fd = there.upload_open(name, upload)
    try:
        os.write(fd, data)
        there.upload_commit(name, upload, fd, wanted or digest(data))
    finally:
        os.close(fd)
    return digest(data)


def part(data, media=engine.MEDIA_LAYER):
    return {"mediaType": media, "digest": digest(data), "size": len(data)}


def manifest(**more):
    return json.dumps({"schemaVersion": 2, "mediaType": engine.MEDIA_MANIFEST,
                       "config": part(CONFIG, engine.MEDIA_CONFIG), "layers": [part(BLOB)],
                       **more}).encode()


def put_image(there, name="app", tag="1", **more):
    for data in (BLOB, CONFIG):
        put_blob(there, name, data)
    return there.manifest_put(name, tag, manifest(**more), engine.MEDIA_MANIFEST)[0]


def refused(code, act, *args):
    with pytest.raises(engine.RegistryError) as found:
        act(*args)
    assert found.value.code == code
    assert found.value.status == engine.REGISTRY_ERRORS[code][0]


@pytest.mark.parametrize("name", [
    "", ".", "..", "a/../b", "/a", "a/", "a//b", "_uploads", "a/_tags", "A", "a b", "a\0", "é",
    "a.", "-a", "a" * 256, "a/%2e%2e/b", "a\n",
])
def test_names_that_are_none(there, name):
    refused("NAME_INVALID", there.upload_start, name)
    refused("NAME_INVALID", there.tags, name)
    refused("NAME_INVALID", there.blob_open, name, digest(b""))


@given(st.text(max_size=20))
def test_no_name_leaves_the_root(text):
    there = engine.RegistryStore("/nonexistent/root")
    try:
        path = there._repository(text, "_tags")
    except engine.RegistryError:
        return
    assert os.path.normpath(path) == path and path.startswith("/nonexistent/root/repositories/")


@pytest.mark.parametrize("text", [
    "", "sha256:", "sha256:" + "g" * 64, "sha256:../../../etc/passwd", "md5:" + "a" * 32,
    "sha384:" + "a" * 96, "x", "sha512:" + "a" * 64])
def test_digests_that_are_none(there, text):
    refused("DIGEST_INVALID", there.blob_path, text)


def test_an_upload_becomes_a_blob(there):
    put_blob(there, "app", BLOB)
    fd = there.blob_open("app", digest(BLOB))
    assert os.read(fd, 100) == BLOB
    os.close(fd)
    refused("BLOB_UNKNOWN", there.blob_open, "other", digest(BLOB))
    assert os.listdir(there.path("uploads")) == []


def test_an_upload_by_sha512(there):
    wanted = "sha512:" + hashlib.sha512(BLOB).hexdigest()
    put_blob(there, "app", BLOB, wanted)
    os.close(there.blob_open("app", wanted))


def test_an_upload_that_is_another_is_gone(there):
    with pytest.raises(engine.RegistryError, match="did not match"):
        put_blob(there, "app", BLOB, digest(b"other"))
    assert os.listdir(there.path("uploads")) == []
    assert not os.path.exists(there.blob_path(digest(b"other")))


def test_uploads_are_of_one_repository_and_of_one_request(there):
    upload = there.upload_start("app")
    refused("BLOB_UPLOAD_UNKNOWN", there.upload_open, "other", upload)
    refused("BLOB_UPLOAD_UNKNOWN", there.upload_open, "app", "../lock")
    refused("BLOB_UPLOAD_UNKNOWN", there.upload_open, "app", "f" * 32)
    fd = there.upload_open("app", upload)
    refused("BLOB_UPLOAD_INVALID", there.upload_open, "app", upload)
    os.close(fd)
    there.upload_drop("app", upload)
    refused("BLOB_UPLOAD_UNKNOWN", there.upload_drop, "app", upload)


def test_manifests_tags_and_lists(there):
    wanted = put_image(there)
    put_image(there, "team/app", "2")
    assert there.manifest("app", "1") == (manifest(), engine.MEDIA_MANIFEST, wanted)
    assert there.manifest("app", wanted) == there.manifest("app", "1")
    assert there.tags("app") == ["1"]
    assert there.repositories() == ["app", "team/app"]
    refused("MANIFEST_UNKNOWN", there.manifest, "app", "9")
    refused("MANIFEST_UNKNOWN", there.manifest, "app", digest(b"x"))
    refused("MANIFEST_UNKNOWN", there.manifest, "app", "a b")
    refused("NAME_UNKNOWN", there.tags, "none")


@pytest.mark.parametrize("data", [
    b"", b"[]", b"{", b"null", b"{}", manifest(schemaVersion=1), manifest(mediaType="x"),
    manifest(layers=[{}]), manifest(layers=["x"]), manifest(layers=5), manifest(config="x"),
    manifest(config={**part(b""), "digest": "sha256:../x"}), manifest(subject={"digest": "x"}),
    manifest(layers=[{**part(b""), "size": -1}]), manifest(annotations="x"),
    manifest(layers=[{**part(b""), "size": "1"}]), manifest(artifactType=5),
])
def test_manifests_that_are_none(there, data):
    put_blob(there, "app", b"")
    refused("MANIFEST_INVALID", there.manifest_put, "app", "1", data, engine.MEDIA_MANIFEST)


def test_a_manifest_names_what_is_there(there):
    refused("MANIFEST_BLOB_UNKNOWN", there.manifest_put, "app", "1", manifest(),
            engine.MEDIA_MANIFEST)
    index = json.dumps({"schemaVersion": 2, "mediaType": engine.INDEX_TYPES[0], "manifests": [
        part(b"x", engine.MEDIA_MANIFEST)]}).encode()
    refused("MANIFEST_BLOB_UNKNOWN", there.manifest_put, "app", "1", index, engine.INDEX_TYPES[0])
    refused("DIGEST_INVALID", there.manifest_put, "app", digest(b"x"), manifest(),
            engine.MEDIA_MANIFEST)
    refused("MANIFEST_INVALID", there.manifest_put, "app", "a b", manifest(), engine.MEDIA_MANIFEST)


def test_who_is_about_what(there):
    about = put_image(there)
    data = manifest(subject={**part(b""), "digest": about}, artifactType="text/x",
                    annotations={"a": "b"})
    found, subject = there.manifest_put("app", digest(data), data, engine.MEDIA_MANIFEST)
    assert subject == about
    assert there.referrers("app", about) == [{
        "mediaType": engine.MEDIA_MANIFEST, "digest": found, "size": len(data),
        "artifactType": "text/x", "annotations": {"a": "b"}}]
    assert there.referrers("app", digest(b"")) == []
    there.manifest_remove("app", found)
    assert there.referrers("app", about) == []


def test_removals(there):
    wanted = put_image(there)
    there.manifest_put("app", "2", manifest(), engine.MEDIA_MANIFEST)
    there.manifest_remove("app", "1")
    assert there.tags("app") == ["2"]
    there.manifest_remove("app", wanted)
    assert there.tags("app") == []
    refused("MANIFEST_UNKNOWN", there.manifest_remove, "app", wanted)
    there.blob_remove("app", digest(BLOB))
    refused("BLOB_UNKNOWN", there.blob_remove, "app", digest(BLOB))
    put_image(there, "app/below")
    there.repository_remove("app")
    assert there.repositories() == ["app/below"]


def test_a_mount(there):
    put_image(there)
    assert there.blob_mount("copy", digest(BLOB), "app")
    os.close(there.blob_open("copy", digest(BLOB)))
    assert not there.blob_mount("copy", digest(b"x"), "app")
    assert not there.blob_mount("copy", digest(BLOB), "none")


def test_a_collection_takes_what_nothing_names(there):
    put_image(there)
    put_blob(there, "app", b"of nobody")
    assert there.collect() == (0, 0), "it may be of a push under way"
    there.collect(-1)
    assert there.collect(-1) == (0, 0)
    assert not os.path.exists(there.blob_path(digest(b"of nobody")))
    assert there.manifest("app", "1")[0] == manifest()
    os.close(there.blob_open("app", digest(BLOB)))
    there.manifest_remove("app", there.resolve("app", "1"))
    there.collect(-1)
    assert os.listdir(there.path("blobs", "sha256")) == []


def test_uploads_that_were_given_up_go(there):
    upload = there.upload_start("app")
    there.collect()
    path = there._upload("app", upload)
    os.utime(path, (1, 1))
    there.collect()
    assert not os.path.exists(path)


def test_pushes_and_collections_at_once(there):
    wrong = []

    def push(number):
        try:
            for turn in range(10):
                put_image(there, f"app{number}", str(turn))
                assert there.manifest(f"app{number}", str(turn))[0] == manifest()
        except Exception as failure:
            wrong.append(failure)
    threads = [threading.Thread(target=push, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        there.collect()
    assert wrong == []
    assert len(there.repositories()) == 6


def test_a_tag_may_end_as_a_file_does(there):
    put_image(there, tag="v1.tmp")
    assert there.tags("app") == ["v1.tmp"]


def test_what_a_crash_left_is_swept(there):
    put_image(there)
    left = there.path("uploads", "link-" + "0" * 32)
    for path in (left, there.path("uploads", "0" * 32 + "-" + "0" * 32)):
        with open(path, "w"):
            os.utime(path, (1, 1))
    put_blob(there, "app", b"more")
    there.uploads_sweep()
    assert os.listdir(there.path("uploads")) == []
    assert sorted(os.listdir(there.path("blobs", "sha256"))) == sorted(
        digest(each)[7:] for each in (BLOB, CONFIG, manifest(), b"more"))


def test_an_upload_that_became_a_blob_is_written_by_nobody(there, monkeypatch):
    """One request opens it, another finishes it before the first has its lock."""
    upload = there.upload_start("app")
    first = there.upload_open("app", upload)
    os.write(first, BLOB)
    import fcntl
    lock = fcntl.flock

    def late(fd, how):
        monkeypatch.setattr(fcntl, "flock", lock)
        there.upload_commit("app", upload, first, digest(BLOB))
        os.close(first)
        lock(fd, how)
    monkeypatch.setattr(fcntl, "flock", late)
    refused("BLOB_UPLOAD_UNKNOWN", there.upload_open, "app", upload)


def test_an_upload_that_was_given_up_is_no_blob(there):
    upload = there.upload_start("app")
    fd = there.upload_open("app", upload)
    os.write(fd, BLOB)
    there.upload_drop("app", upload)
    refused("BLOB_UPLOAD_UNKNOWN", there.upload_commit, "app", upload, fd, digest(BLOB))
    os.close(fd)


def test_a_blob_that_was_asked_for_is_kept_as_a_new_one(there):
    put_blob(there, "app", BLOB)
    for path in (there.blob_path(digest(BLOB)), there._link("app", "_blobs", digest(BLOB))):
        os.utime(path, (1, 1))
    there.blob_keep("app", digest(BLOB))
    there.blob_keep("app", digest(b"none"))
    there.collect()
    os.close(there.blob_open("app", digest(BLOB)))
    os.utime(there._link("app", "_blobs", digest(BLOB)), (1, 1))
    there.collect()
    assert not os.path.exists(there.blob_path(digest(BLOB)))


def test_the_first_push_of_a_repository_keeps_what_it_mounted(there):
    """The blob is an old one, its last user goes, and a collection comes before the manifest."""
    for data in (BLOB, CONFIG):
        put_blob(there, "old", data)
        os.utime(there.blob_path(digest(data)), (1, 1))
        assert there.blob_mount("new", digest(data), "old")
    there.blob_remove("old", digest(BLOB))
    there.collect()
    there.manifest_put("new", "1", manifest(), engine.MEDIA_MANIFEST)
    os.close(there.blob_open("new", digest(BLOB)))


def test_no_manifest_without_the_bytes_of_its_parts(there):
    for data in (BLOB, CONFIG):
        put_blob(there, "app", data)
    os.unlink(there.blob_path(digest(BLOB)))
    refused("MANIFEST_BLOB_UNKNOWN", there.manifest_put, "app", "1", manifest(),
            engine.MEDIA_MANIFEST)


def test_two_who_remove_the_same_tag(there, monkeypatch):
    gone = put_image(there)
    put_image(there, tag="2")
    resolve = engine.RegistryStore.resolve

    def slow(self, name, ref):
        if ref == "1":
            engine._unlink_quietly(there.path("repositories", "app", "_tags", "1"))
        return resolve(self, name, ref)
    monkeypatch.setattr(engine.RegistryStore, "resolve", slow)
    there.manifest_remove("app", gone)
    assert there.tags("app") == []
