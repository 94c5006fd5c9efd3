"""What no row names is removed: layers with their directories, blobs, strays; the rest stays."""

from __future__ import annotations

import os

import pytest


@pytest.fixture
def store(engine, tmp_path):
    made = engine.Store(str(tmp_path / "data"), str(tmp_path / "run"))
    made.roots_make()
    return made


def layer(store, number, parent=None, size=10):
    with store.write() as db:
        db.execute(
            "INSERT INTO layers(n, chain_id, diff_id, parent, blob, blob_size, media_type, size,"
            " created) VALUES(?, ?, ?, ?, ?, 1, '', ?, 0)",
            (number, f"chain{number}", f"diff{number}", parent, f"sha256:{number:064x}", size))
    os.makedirs(store.path("layers", str(number), "diff"))
    with open(store.path("blobs", "sha256", f"{number:064x}"), "w") as file:
        file.write("x")


def left(store):
    return (sorted(os.listdir(store.path("layers"))),
            sorted(name.lstrip("0") for name in os.listdir(store.path("blobs", "sha256"))))


def test_layers_below_a_used_one_stay(engine, store):
    for number, parent in ((1, None), (2, 1), (3, 2), (4, 1)):
        layer(store, number, parent)
    uses = [("container", "image", False, 2)]
    assert engine.content_collect(store, lambda: uses) == 20 + 2
    assert left(store) == (["1", "2"], ["1", "2"])
    assert engine.content_collect(store, list) == 20 + 2
    assert left(store) == ([], [])


def test_strays_go_and_nothing_while_somebody_adds(engine, store):
    layer(store, 1)
    os.makedirs(store.path("layers", "zz", "diff"))
    with open(store.path("blobs", "sha256", "f" * 64), "w") as file:
        file.write("stray")
    uses = [("container", "image", False, 1)]
    with engine.content_lease(store):
        assert engine.content_collect(store, lambda: uses) == 0
        assert left(store) == (["1", "zz"], ["1", "f" * 64])
    assert engine.content_collect(store, lambda: uses) == 5
    assert left(store) == (["1"], ["1"])


def test_a_manifest_that_is_gone_or_odd_names_nothing(engine, store):
    assert engine.manifest_blobs(store, "sha256:" + "0" * 64) == set()
    for text in (b"[]", b"{}", b'{"layers": 1}', b"x", b'{"layers": [{}]}'):
        with engine.content_lease(store) as lease:
            digest = engine.blob_put_bytes(lease, text)
        assert engine.manifest_blobs(store, digest) == set()
