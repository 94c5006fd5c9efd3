"""Registering layers: once, in order, in parallel, by several processes; nothing left behind."""

from __future__ import annotations

import gzip
import io
import multiprocessing
import os
import threading

import engine
import pytest
from image_help import content, digest, layer, store_fixture, tar_of, thread_worker  # noqa: F401

import _socket


def items_of(lease, layers, packed=bytes, counter=None):
    found, parent = [], ""
    for data in layers:

        def fetch(data=data):
            if counter is not None:
                counter.append(data)
            return (*engine.blob_put(lease, io.BytesIO(packed(data)).read), engine.MEDIA_LAYER)

        found.append(engine.LayerItem(digest(data), parent, fetch))
        parent = found[-1].chain_id
    return found


def drop(store):
    with store.write() as db:
        db.execute("DELETE FROM images")
    engine.content_collect(store, list)


def test_chain_ids():
    a, b = "sha256:" + "a" * 64, "sha256:" + "b" * 64
    assert engine.chain_ids([a, b]) == [a, engine.digest_of(f"{a} {b}".encode())]
    assert engine.chain_ids([]) == []
    assert [engine.layer_name(number) for number in (0, 1, 35, 36, 1295, 1296)] == [
        "0",
        "1",
        "z",
        "10",
        "zz",
        "100",
    ]


@pytest.mark.parametrize("packed", [bytes, gzip.compress])
def test_register(store, packed):
    layers = [layer("a"), layer("b"), layer("c", salt="!")]
    fetched = []
    with engine.content_lease(store) as lease:
        engine.layers_register(lease, items_of(lease, layers, packed, fetched))
        items = items_of(lease, layers, packed, fetched)
        engine.layers_register(lease, items)
    assert fetched == layers  # the second time nothing was needed
    top = engine.layer_number(store, items[-1].chain_id)
    stack = engine.layer_stack(store, top)
    assert [row[2] for row in stack] == [digest(data) for data in reversed(layers)]
    assert [row[3] for row in stack] == [2, 1, 1]
    assert [os.listdir(path) for path in engine.layer_directories(store, top)] == [
        ["c"],
        ["b"],
        ["a"],
    ]
    assert os.stat(engine.layer_directories(store, top)[0]).st_mode & 0o7777 == 0o755
    drop(store)
    assert content(store) == (set(), set(), set())


def test_one_bad_layer_leaves_nothing(store):
    for bad, text in (
        (b"no tar" * 200, "^invalid tar archive"),
        (tar_of({"../x": b""}), "is outside of"),
    ):
        with (
            engine.content_lease(store) as lease,
            pytest.raises(engine.InvalidParameter, match=text),
        ):
            engine.layers_register(lease, items_of(lease, [layer("a"), bad]))
    with engine.content_lease(store) as lease:
        item = items_of(lease, [layer("a")], gzip.compress)[0]
        wrong = engine.LayerItem(digest(b"other"), "", item.fetch)
        with pytest.raises(engine.InvalidParameter, match="^invalid diffID for layer: expected"):
            engine.layers_register(lease, [wrong])
    drop(store)
    assert content(store) == (set(), set(), set())


def test_workers(store):
    layers = [layer(*[f"{n}/{m}" for m in range(50)], salt=str(n)) for n in range(6)]
    log = []
    with engine.content_lease(store) as lease:
        items = items_of(lease, layers, gzip.compress)
        engine.layers_register(lease, items, 3, thread_worker(log))
    assert sorted(log) == sorted(map(digest, layers))
    assert len(engine.layer_stack(store, engine.layer_number(store, items[-1].chain_id))) == 6
    drop(store)


def test_a_worker_fails(store):
    layers = [layer(str(n)) for n in range(5)]
    with (
        engine.content_lease(store) as lease,
        pytest.raises(engine.InvalidParameter, match="^told to fail$"),
    ):
        engine.layers_register(
            lease, items_of(lease, layers), 2, thread_worker([], {digest(layers[2])})
        )
    drop(store)


def test_worker_dies(store):
    def dead(role, request, fds):
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        with open(request["root"] + "/half", "w"):
            theirs.close()
        return ours

    layers = [layer("a"), layer("b"), layer("c")]
    with engine.content_lease(store) as lease:
        items = items_of(lease, layers)
        engine.layers_register(lease, items, 2, dead)
    top = engine.layer_number(store, items[-1].chain_id)
    assert [os.listdir(path) for path in engine.layer_directories(store, top)] == [
        ["c"],
        ["b"],
        ["a"],
    ]
    drop(store)


def _register(data, run, layers, start, fetched):
    store = engine.Store(data, run)
    start.wait()
    mine = []
    with engine.content_lease(store) as lease:
        engine.layers_register(lease, items_of(lease, layers, bytes, mine))
    with fetched.get_lock():
        fetched.value += len(mine)
    os._exit(0)


def test_many_processes_share(store):
    """Eight processes, three chains that cross: every layer is unpacked once."""
    context = multiprocessing.get_context("fork")
    a, b, c = ([layer(f"{name}{n}", salt="x" * 50_000) for n in range(3)] for name in "abc")
    start, fetched = context.Event(), context.Value("i", 0)
    orders = [a, b, c, a[:1] + b, a, b, c, a[:1] + b]
    workers = [
        context.Process(target=_register, args=(store.data, store.run, layers, start, fetched))
        for layers in orders
    ]
    for worker in workers:
        worker.start()
    start.set()
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    assert fetched.value == 12 == len(store.rows("SELECT n FROM layers")) == len(content(store)[0])
    drop(store)


def test_directory_of_a_lost_commit(store):
    """A crash between rename and commit: the number is given again, and the ghost makes room."""
    store.roots_make()
    os.makedirs(store.path("layers", "1", "diff", "ghost"))
    with engine.content_lease(store) as lease:
        item = items_of(lease, [layer("a")])[0]
        engine.layers_register(lease, [item])
    assert os.listdir(engine.layer_directories(store, 1)[0]) == ["a"]
    os.makedirs(store.path("layers", "zz", "diff"))
    drop(store)
    assert content(store) == (set(), set(), set())


def test_128_layers(store):
    layers = [layer(str(n)) for n in range(128)]
    with engine.content_lease(store) as lease:
        items = items_of(lease, layers)
        engine.layers_register(lease, items)
    assert (
        len(engine.layer_directories(store, engine.layer_number(store, items[-1].chain_id))) == 128
    )
    drop(store)


def test_the_others_end_first(store):
    """One layer fails while another is still being unpacked: its worker is told, and waited for."""
    big = tar_of({str(n): bytes(100_000) for n in range(400)})
    ended = []

    def run(role, request, fds):
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        kept = [os.dup(fd) for fd in fds]

        def work():
            try:
                if request["diff_id"] != digest(big):
                    raise engine.InvalidParameter("told to fail")
                engine.worker_extract(request, theirs, kept)
            except engine.EngineError as failure:
                ended.append(str(failure))
                engine.answer_send(theirs, engine.error_answer(failure))
            for fd in kept:
                os.close(fd)
            theirs.close()

        threading.Thread(target=work).start()
        return ours

    with engine.content_lease(store) as lease, pytest.raises(engine.InvalidParameter):
        engine.layers_register(lease, items_of(lease, [big, layer("x")]), 2, run)
    assert ended and set(ended) <= {"told to fail", "nobody waits for this layer any more"}
    drop(store)
    assert content(store) == (set(), set(), set())


def test_no_launcher(store):
    def none(role, request, fds):
        raise engine.Unavailable("the launcher does not answer")

    with engine.content_lease(store) as lease:
        items = items_of(lease, [layer("a"), layer("b")])
        engine.layers_register(lease, items, 2, none)
    assert engine.layer_number(store, items[-1].chain_id)
    drop(store)


def test_nobody_else_walks_in(store):
    """Below layers/ are setuid programs and devices that an image's author made."""
    store.roots_make()
    for path in (store.data, store.path("layers"), store.path("containers"), store.path("tmp")):
        assert os.stat(path).st_mode & 0o007 == 0
