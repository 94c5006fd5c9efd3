"""The content store: what is named by a digest has it; leases keep collectors away."""

from __future__ import annotations

import io
import multiprocessing
import os
import subprocess

import engine
import pytest
from image_help import content, digest, store_fixture  # noqa: F401


def test_put_get_remove(store):
    data = os.urandom(3_000_000)
    with engine.content_lease(store) as lease:
        assert engine.blob_put(lease, io.BytesIO(data).read) == (digest(data), len(data))
        assert engine.blob_put(lease, io.BytesIO(data).read, digest(data), len(data)) == (
            digest(data),
            len(data),
        )
        small = engine.blob_put_bytes(lease, b"{}")
        assert engine.blob_put_bytes(lease, b"{}") == small == digest(b"{}")
    assert engine.blob_size(store, digest(data)) == len(data)
    assert engine.blob_document(store, small) == b"{}"
    fd = engine.blob_open(store, digest(data))
    assert b"".join(iter(lambda: engine.file_stream(fd)(1 << 20), b"")) == data
    os.close(fd)
    for name in (digest(data), small, small):
        engine.blob_remove(store, name)
    for call in (engine.blob_size, engine.blob_open, engine.blob_document):
        with pytest.raises(
            engine.NotFound, match="^content digest sha256:[0-9a-f]{64}: not found$"
        ):
            call(store, small)


def test_mismatch_is_not_kept(store):
    with engine.content_lease(store) as lease:
        with pytest.raises(
            engine.InvalidParameter, match="^content digest mismatch: expected sha256:"
        ):
            engine.blob_put(lease, io.BytesIO(b"evil").read, digest(b"good"))
        for size in (3, 5):
            with pytest.raises(
                engine.InvalidParameter, match=f"has a wrong size: expected {size}$"
            ):
                engine.blob_put(lease, io.BytesIO(b"evil").read, size=size)
        with pytest.raises(engine.InvalidParameter):
            engine.blob_put(
                lease, iter([]).__next__ and (lambda size: bytes(size)), size=10
            )  # endless
    assert content(store)[1] == set()


@pytest.mark.parametrize(
    "name",
    [
        "",
        "sha256:",
        "sha256:../../etc/passwd",
        "sha256:" + "a" * 63,
        "md5:" + "a" * 32,
        "sha512:" + "a" * 128,
        "sha256:" + "A" * 64,
        "sha256:" + "/" * 64,
    ],
)
def test_bad_digests(store, name):
    with pytest.raises(engine.InvalidParameter):
        engine.blob_path(store, name)


def test_document_is_bounded(store):
    with engine.content_lease(store) as lease:
        big = engine.blob_put(lease, io.BytesIO(bytes(engine.BLOB_DOCUMENT_MAX + 1)).read)[0]
    with pytest.raises(engine.InvalidParameter, match="too large for a document"):
        engine.blob_document(store, big)
    engine.blob_remove(store, big)


def test_leases_and_alone(store):
    with engine.content_alone(store) as alone:
        assert alone
    with engine.content_lease(store) as one, engine.content_lease(store) as two:
        assert one.directory != two.directory and os.path.isdir(one.directory)
        with engine.content_alone(store) as alone:
            assert not alone
    with engine.content_alone(store) as alone:
        assert alone and content(store)[2] == set()


def _die(data, run):
    lease = engine.content_lease(engine.Store(data, run))
    lease.__enter__()
    with open(lease.directory + "/half", "wb") as file:
        file.write(b"x")
    os._exit(9)


def test_what_the_dead_left_goes(store):
    worker = multiprocessing.get_context("fork").Process(target=_die, args=(store.data, store.run))
    worker.start()
    worker.join()
    assert len(content(store)[2]) == 1
    with engine.content_lease(store) as lease:
        assert content(store)[2] == {os.path.basename(lease.directory)}


@pytest.mark.root
def test_full_disk(store):
    os.mkdir(store.data)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", store.data], check=True)
    try:
        with (
            engine.content_lease(store) as lease,
            pytest.raises(
                engine.EngineError, match="^cannot store the content: no space left on device$"
            ),
        ):
            engine.blob_put(lease, lambda size: bytes(size))
        assert content(store)[1:] == (set(), set())
    finally:
        subprocess.run(["umount", store.data], check=True)
