"""events: the journal."""

import os
import threading
import time

import pytest


@pytest.fixture
def store(engine, roots):
    return engine.Store(roots.data, roots.run)


def emit(engine, store, count, action="start"):
    store.db
    for number in range(count):
        engine.event_emit(store, "container", action, f"id{number}", {"image": "busybox"})


def test_an_event_has_dockers_shape(engine, store):
    emit(engine, store, 1)
    (event,) = engine.event_follow(store, 0, time.time_ns())
    now = time.time_ns()
    assert abs(now - event.pop("timeNano")) < 10**10 and abs(now // 10**9 - event.pop("time")) < 10
    assert event == {
        "status": "start",
        "id": "id0",
        "from": "busybox",
        "Type": "container",
        "Action": "start",
        "scope": "local",
        "Actor": {"ID": "id0", "Attributes": {"image": "busybox"}},
    }


def test_keys_and_attributes_come_in_dockers_order(engine, store):
    store.roots_make()
    engine.event_emit(store, "container", "die", "id", {"z": "1", "name": "n", "image": "i"})
    (event,) = engine.event_follow(store, 0, time.time_ns())
    keys = "status id from Type Action Actor scope time timeNano"
    assert " ".join(event) == keys
    assert list(event["Actor"]["Attributes"]) == ["image", "name", "z"]


def test_since_and_until_cut_the_history(engine, store):
    emit(engine, store, 2)
    time.sleep(0.01)
    middle = time.time_ns()
    emit(engine, store, 3, "stop")
    after = list(engine.event_follow(store, middle, time.time_ns()))
    assert [event["Action"] for event in after] == ["stop"] * 3
    before = list(engine.event_follow(store, 0, middle))
    assert [event["Action"] for event in before] == ["start"] * 2


def test_the_journal_is_bounded_and_read_in_order(engine, store, monkeypatch):
    monkeypatch.setattr(engine, "EVENTS_FILE_SIZE", 2000)
    emit(engine, store, 200)
    files = os.listdir(store.run_path("events"))
    assert len(files) == engine.EVENTS_FILES
    seen = [event["id"] for event in engine.event_follow(store, 0, time.time_ns())]
    assert seen == [f"id{number}" for number in range(200 - len(seen), 200)]
    assert 30 < len(seen) < 120


def test_a_follower_sees_each_event_once_over_rotations(engine, store, monkeypatch):
    monkeypatch.setattr(engine, "EVENTS_FILE_SIZE", 5000)
    store.db
    seen, begun = [], threading.Event()

    def follow():
        begun.set()
        for event in engine.event_follow(store, None, time.time_ns() + 10 * 10**9):
            seen.append(event["id"])
            if event["id"] == "last":
                return

    thread = threading.Thread(target=follow)
    thread.start()
    begun.wait()
    time.sleep(0.2)
    emit(engine, store, 60)
    engine.event_emit(store, "container", "die", "last", {})
    thread.join(10)
    assert seen == [f"id{number}" for number in range(60)] + ["last"]


def test_following_stops_when_told(engine, store):
    read, write = os.pipe()
    os.write(write, b"x")
    assert list(engine.event_follow(store, None, None, read)) == []
    os.close(read)
    os.close(write)
