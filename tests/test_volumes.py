"""volumes: rows and directories, names, options, uses, lists, prunes."""

from __future__ import annotations

import os

import engine
import pytest


@pytest.fixture
def store(roots):
    made = engine.Store(roots.data, roots.run)
    made.roots_make()
    return made


def use(store, volume, container):
    with store.write() as db:
        db.execute("INSERT INTO volume_uses VALUES(?, ?)", (volume, container))


def test_made_once(store):
    first = engine.volume_ensure(store, "data", labels={"a": "1"})
    assert os.path.isdir(engine.volume_path(store, "data"))
    again = engine.volume_ensure(store, "data", labels={"a": "2"})
    assert again.labels == {"a": "1"} and again.created == first.created
    shown = engine.volume_show(store, first)
    assert list(shown) == [
        "CreatedAt", "Driver", "Labels", "Mountpoint", "Name", "Options", "Scope"]
    assert shown["Options"] is None and shown["Scope"] == shown["Driver"] == "local"
    assert len(shown["CreatedAt"]) in (20, 25) and "." not in shown["CreatedAt"]


def test_without_a_name(store):
    made = engine.volume_ensure(store)
    assert len(made.name) == 64 and made.labels == {engine.VOLUME_ANONYMOUS: ""}


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("a", {}, "volume name is too short, names should be at least two alphanumeric characters"),
        ("a b", {}, '"a b" includes invalid characters for a local volume name, only '
                    '"[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host '
                    "directory, use absolute path"),
        ("ab\n", {}, None), ("../x", {}, None), (".x", {}, None),
        ("ab", {"colour": "red"}, 'invalid option: "colour"'),
        ("ab", {"type": "nfs"}, 'missing required option: "device"'),
        ("ab", {"o": "bind"}, 'missing required option: "device"'),
        ("ab", {"size": "1m"}, "quota size requested but no quota support"),
    ],
)
def test_refused(store, name, options, why):
    with pytest.raises(engine.InvalidParameter) as refused:
        engine.volume_ensure(store, name, options=options)
    assert str(refused.value).startswith(f"create {name}: ")
    assert why is None or str(refused.value) == f"create {name}: {why}"
    assert not os.path.exists(store.path("volumes"))


def test_another_driver(store):
    with pytest.raises(engine.NotFound) as refused:
        engine.volume_ensure(store, "data", driver="vieux")
    assert str(refused.value) == (
        'create data: error looking up volume plugin vieux: plugin "vieux" not found')


def test_removed_unless_used(store):
    engine.volume_ensure(store, "data")
    use(store, "data", "c" * 64)
    with pytest.raises(engine.Conflict) as refused:
        engine.volume_remove(store, "data")
    assert str(refused.value) == f"remove data: volume is in use - [{'c' * 64}]"
    with store.write() as db:
        db.execute("DELETE FROM volume_uses")
    engine.volume_remove(store, "data")
    assert os.listdir(store.path("volumes")) == os.listdir(store.path("tmp")) == []
    with pytest.raises(engine.NotFound, match="get data: no such volume"):
        engine.volume_remove(store, "data")
    engine.volume_remove(store, "data", force=True)


def test_what_a_cut_removal_left_is_nobody_s(store):
    os.makedirs(store.path("volumes", "data", "_data"))
    open(store.path("volumes", "data", "_data", "old"), "w").close()
    engine.volume_ensure(store, "data")
    assert os.listdir(engine.volume_path(store, "data")) == []


def test_lists(store):
    for name, labels in (("b1", {"x": "1"}), ("a1", None), ("c2", {"x": "2"})):
        engine.volume_ensure(store, name, labels=labels)
    use(store, "a1", "c")

    def names(**filters):
        return [v.name for v in engine.volumes_list(store, filters)]
    assert names() == ["a1", "b1", "c2"]
    assert names(name=["1"]) == ["a1", "b1"]
    assert names(label=["x"]) == ["b1", "c2"] and names(label=["x=2"]) == ["c2"]
    assert names(dangling=["true"]) == ["b1", "c2"] and names(dangling=["0"]) == ["a1"]
    assert names(driver=["local"]) == ["a1", "b1", "c2"] and names(driver=["x"]) == []
    with pytest.raises(engine.InvalidParameter, match="invalid filter 'colour'"):
        names(colour=["red"])


def test_prunes(store):
    own = engine.volume_ensure(store).name
    for name in ("named", "used"):
        engine.volume_ensure(store, name)
    engine.volume_ensure(store, "far", options={"type": "tmpfs", "device": "tmpfs"})
    use(store, "used", "c")
    report = engine.volumes_prune(store, {}, lambda path: 7)
    assert report == {"VolumesDeleted": [own], "SpaceReclaimed": 7}
    report = engine.volumes_prune(store, {"all": ["1"]}, lambda path: 5)
    assert report == {"VolumesDeleted": ["named"], "SpaceReclaimed": 5}
    assert [v.name for v in engine.volumes_list(store, {})] == ["far", "used"]
    with pytest.raises(engine.InvalidParameter, match="only one value is expected"):
        engine.volumes_prune(store, {"all": ["1", "0"]}, len)


def test_passwords_are_not_told(store):
    v = engine.volume_ensure(store, "far", options={
        "type": "nonesuch", "device": "//h/x", "o": "user=u,password=secret"})
    with pytest.raises(engine.EngineError) as refused:
        engine.volume_mount(store, v)
    assert "password=********" in str(refused.value) and "secret" not in str(refused.value)
    assert str(refused.value).startswith(f"error while mounting volume '{store.data}/volumes/far/")
