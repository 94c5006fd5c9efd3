"""records: rows, names, and state changes that only one can win."""

from __future__ import annotations

import os

import engine
import pytest
from container_help import IMAGE, NEVER, bare_box  # noqa: F401


@pytest.fixture
def store(bare_box):  # noqa: F811
    return bare_box.store


def insert(store, name="", id="", **host):
    config, filled, _ = engine.create_check({"Image": "x", "HostConfig": host})
    c = engine.record_new(
        id=id or engine.id_new(),
        name=name,
        image=IMAGE,
        config=config,
        host=filled,
        document={"Path": "sh", "Args": []},
    )
    engine.record_insert(store, c)
    return c


def test_found_by_id_name_and_prefix(store):
    c = insert(store, "web", "abc" + "0" * 61)
    for ref in (c.id, "web", "/web", "abc", "abc0000"):
        assert engine.record_find(store, ref).id == c.id
    found = engine.record_get(store, c.id)
    assert found.config["Image"] == "x" and found.host["AutoRemove"] is False
    assert found.document == {"Path": "sh", "Args": []} and found.state == "created"


@pytest.mark.parametrize(
    ("ref", "kind", "text"),
    [
        ("nope", "NotFound", "No such container: nope"),
        ("/nope", "NotFound", "No such container: /nope"),
        ("", "InvalidParameter", 'invalid name or ID supplied: ""'),
        ("ab", "InvalidParameter", "multiple IDs found with provided prefix: ab"),
        ("ABC", "NotFound", "No such container: ABC"),
        ("%", "NotFound", "No such container: %"),
    ],
)
def test_not_found(store, ref, kind, text):
    insert(store, "one", "ab1" + "0" * 61)
    insert(store, "two", "ab2" + "0" * 61)
    with pytest.raises(getattr(engine, kind)) as caught:
        engine.record_find(store, ref)
    assert str(caught.value) == text


def test_a_name_that_is_an_id(store):
    one = insert(store, "one", "a" * 64)
    other = insert(store, "a" * 64, "b" * 64)
    assert engine.record_find(store, "a" * 64).id == one.id
    assert engine.record_find(store, other.id).name == "a" * 64


def test_names_are_unique(store):
    c = insert(store, "web")
    with pytest.raises(engine.Conflict) as caught:
        insert(store, "web")
    assert str(caught.value) == (
        f'Conflict. The container name "/web" is already in use by container "{c.id}". You have to'
        " remove (or rename) that container to be able to reuse that name."
    )
    other = insert(store)
    assert other.name and other.name != insert(store).name
    with pytest.raises(engine.Conflict):
        engine.record_rename(store, other.id, "web")
    engine.record_rename(store, other.id, "new")
    assert engine.record_find(store, "new").id == other.id
    with pytest.raises(engine.NotFound):
        engine.record_rename(store, "0" * 64, "more")


@pytest.mark.parametrize("name", ["a", "-ab", "a b", "", "/", "é" * 3, "a/b", "_a"])
def test_bad_names(name):
    with pytest.raises(engine.InvalidParameter) as caught:
        engine.name_check(name)
    assert str(caught.value) == (
        f"Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
    )


@pytest.mark.parametrize("name", ["ab", "a-", "A_b.c-d", "00", "a.."])
def test_good_names(name):
    assert engine.name_check(name) == name == engine.name_check("/" + name)


def test_one_wins(store):
    c = insert(store)
    assert engine.record_move(store, c.id, ("created", "exited"), "starting", owner="x y")
    assert not engine.record_move(store, c.id, ("created", "exited"), "starting")
    now = engine.record_get(store, c.id)
    assert (now.state, now.status, now.owner) == ("starting", "created", "x y")
    assert engine.record_move(store, c.id, ("starting",), "exited", exit_code=3, started=1)
    assert engine.record_get(store, c.id).exit_code == 3


def test_an_image_that_is_gone(store):
    with store.write() as db:
        db.execute("DELETE FROM images")
    with pytest.raises(engine.NotFound, match="No such image: sha256:1111"):
        insert(store)


def test_list_is_newest_first(store):
    ids = [insert(store).id for _ in range(3)]
    assert [c.id for c in engine.record_list(store)] == ids[::-1]


def test_delete(store):
    c = insert(store, "web", AutoRemove=True)
    assert c.auto_remove == 1
    assert engine.record_delete(store, c.id)
    assert not engine.record_delete(store, c.id)
    assert engine.record_get(store, c.id) is None


def test_owner():
    assert engine.owner_lives(engine.owner_self())
    assert not engine.owner_lives(f"{os.getpid()} 1")
    assert not engine.owner_lives("")
    assert not engine.owner_lives("999999999 5")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "Created"),
        ({"state": "running", "started": 1}, "Up 2 minutes"),
        ({"state": "paused", "started": 1}, "Up 2 minutes (Paused)"),
        ({"state": "running", "started": 1, "health": "healthy"}, "Up 2 minutes (healthy)"),
        (
            {"state": "exited", "started": 1, "finished": 60 * engine.SECOND, "exit_code": 3},
            "Exited (3) About a minute ago",
        ),
        ({"state": "removing"}, "Removal In Progress"),
        ({"state": "dead"}, "Dead"),
    ],
)
def test_status_text(store, fields, text):
    c = insert(store)
    for name, value in fields.items():
        setattr(c, name, value)
    assert engine.state_text(c, 120 * engine.SECOND + 1) == text


def test_state_shown(store):
    shown = engine.state_show(insert(store))
    assert list(shown) == [
        "Status",
        "Running",
        "Paused",
        "Restarting",
        "OOMKilled",
        "Dead",
        "Pid",
        "ExitCode",
        "Error",
        "StartedAt",
        "FinishedAt",
    ]
    assert shown["StartedAt"] == shown["FinishedAt"] == NEVER


def test_documents_are_shared_while_their_texts_are_the_same():
    def read(config):
        return engine.Container((*["x"] * 17, config, '{"b": 2}', '{"c": 3}'))

    known = {}
    first, second, changed = read('{"a": 1}'), read('{"a": 1}'), read('{"a": 5}')
    first.share(known)
    second.share(known)
    assert second.config is first.config and second.host is first.host
    changed.share(known)
    assert (changed.config, changed.document) == ({"a": 5}, {"c": 3})
    again = read('{"a": 5}')
    again.share(known)
    assert again.config is changed.config and len(known) == 1
