"""Archives without layers that the other side has: what `save` omits, what `load` finds."""

from __future__ import annotations

import io
import tarfile

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
    load,
    named,
    oci_files,
    oci_parts,
    store_fixture,  # noqa: F401
    tar_of,
    thread_worker,
)


@pytest.fixture(name="far")
def far_fixture(tmp_path):
    """The store on the other side."""
    found = engine.Store(str(tmp_path / "far"), str(tmp_path / "far-run"))
    yield found
    assert not content(found)[2]
    engine.tree_remove(found.data)


def names_of(data):
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {member.name for member in tar if member.isfile()}


def saved(store, *refs, have=()):
    return b"".join(engine.images_save(store, list(refs), None, have))


def two_images(store):
    """base:1 of A and B, app:1 of A, B and C; gzip'ed."""
    for name, layers in (("base:1", [A, B]), ("app:1", [A, B, C])):
        parts, descriptor = oci_parts(layers)
        load(store, tar_of(oci_files([named(descriptor, name)], parts)))


@pytest.mark.parametrize("worker", [False, True])
def test_only_what_is_new(store, far, worker):
    two_images(store)
    load(far, saved(store, "base:1"))
    part = saved(store, "app:1", have=[digest(A), digest(B)])
    blobs = {name for name in names_of(part) if name.startswith("blobs/")}
    assert "blobs/sha256/" + digest(gz(C))[7:] in blobs
    assert not blobs & {"blobs/sha256/" + digest(gz(data))[7:] for data in (A, B)}
    options = {"run_worker": thread_worker([])} if worker else {}
    assert load(far, part, **options) == ["Loaded image: app:1"]
    # the same bytes all the way: id, manifest, and what would be saved
    assert saved(far, "app:1") == saved(store, "app:1")


def test_by_the_digests_of_blobs(store):
    two_images(store)
    left = names_of(saved(store, "app:1", have=[digest(gz(A)), digest(C)]))
    assert "blobs/sha256/" + digest(gz(B))[7:] in left
    assert len(left) == len(names_of(saved(store, "app:1"))) - 2


def test_a_layer_on_another_chain(store, far):
    """B lies on A there, and is wanted on C."""
    two_images(store)
    load(far, saved(store, "base:1"))
    parts, descriptor = oci_parts([C, B])
    load(store, tar_of(oci_files([named(descriptor, "turned:1")], parts)))
    load(far, saved(store, "turned:1", have=[digest(B)]))
    image = engine.image_get(far, "turned:1")
    top = engine.layer_directories(far, image.layer)[0]
    assert engine.file_read(top + "/b") == b"b"
    assert saved(far, "turned:1") == saved(store, "turned:1")


def test_layers_that_are_stored_otherwise(store, far):
    """The other side has them plain: the image is the same, its manifest is made there."""
    two_images(store)
    load(far, tar_of(docker_files([A, B], tags=("base:1",))))
    load(far, saved(store, "app:1", have=[digest(A), digest(B)]))
    assert engine.image_get(far, "app:1").id == engine.image_get(store, "app:1").id
    sizes = names_of(saved(far, "app:1"))
    assert {"blobs/sha256/" + digest(data)[7:] for data in (A, B, gz(C))} <= sizes


def test_what_is_nowhere(store, far):
    two_images(store)
    load(far, tar_of(docker_files([A], tags=("other:1",))))
    before = content(far)
    with pytest.raises(engine.InvalidParameter) as refused:
        load(far, saved(store, "base:1", "app:1", have=[digest(A), digest(B)]))
    assert str(refused.value) == (
        f"invalid archive: layer {digest(B)} of base:1 is missing, and is not here already"
    )
    assert content(far) == before
    assert len(far.rows("SELECT * FROM images")) == 1


def test_an_archive_of_others_that_lacks_a_layer(store):
    load(store, tar_of(docker_files([A], tags=("base:1",))))
    files = docker_files([A, B], config=config_of([A, B]), tags=("two:1",))
    files = {name: data for name, data in files.items() if data != A}
    assert load(store, tar_of(files)) == ["Loaded image: two:1"]
