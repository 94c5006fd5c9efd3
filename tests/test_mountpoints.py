"""mountpoints: what -v and --mount mean, and in which words Docker refuses them."""

from __future__ import annotations

import engine
import pytest


def mount(**fields):
    return engine.fields_check({"Target": "/t", **fields}, engine.MOUNT_CONFIG, "Mount")


def point(text, driver=""):
    return engine.bind_point(text, driver)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("/a:/b", ("bind", "", "/a", "/b", "", True, "rprivate")),
        ("/a/../c/:/b//d/", ("bind", "", "/c", "/b/d", "", True, "rprivate")),
        ("/a:/b:ro,z", ("bind", "", "/a", "/b", "ro,z", False, "rprivate")),
        ("/a:/b:rshared,rw", ("bind", "", "/a", "/b", "rshared,rw", True, "rshared")),
        ("name:/b", ("volume", "name", "", "/b", "", True, "")),
        ("name:/b:ro", ("volume", "name", "", "/b", "ro", False, "")),
        ("/b", ("volume", "", "", "/b", "", True, "")),
    ],
)
def test_binds(text, wanted):
    made = point(text)
    keys = ("Type", "Name", "Source", "Destination", "Mode", "RW", "Propagation")
    assert tuple(made[key] for key in keys) == wanted


def test_what_only_we_know():
    assert point("/a:/b")["make"] and not point("name:/b")["make"]
    assert point("/b")["own"] and not point("name:/b")["own"]
    assert point("name:/b")["copy"] and not point("name:/b:nocopy")["copy"]
    assert point("name:/b", "other")["driver"] == "other"
    assert point("/a:/b", "other")["driver"] == ""


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (":/b", "invalid volume specification: ':/b'"),
        ("/b:ro", "invalid volume specification: '/b:ro'"),
        ("a:b:c:d", "invalid volume specification: 'a:b:c:d'"),
        ("/a:/b:ro,rw", "invalid mode: ro,rw"),
        ("/a:/b:never", "invalid mode: never"),
        ("/a:b", "invalid volume specification: '/a:b': invalid mount config for type \"bind\": "
                 "invalid mount path: 'b' mount path must be absolute"),
        ("v:/", "invalid volume specification: 'v:/': invalid mount config for type \"volume\": "
                "invalid specification: destination can't be '/'"),
        ("v:/b:rshared", "invalid volume specification: 'v:/b:rshared': invalid mount config for "
                         "type \"volume\": field BindOptions must not be specified"),
    ],
)
def test_binds_that_are_refused(text, why):
    with pytest.raises(engine.InvalidParameter) as refused:
        point(text)
    assert str(refused.value) == why


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"Target": ""}, 'type "": field Target must not be empty'),
        ({"Type": "npipe"}, 'type "npipe": mount type unknown'),
        ({"Type": "bind"}, 'type "bind": field Source must not be empty'),
        ({"Type": "bind", "Source": "a"},
         "type \"bind\": invalid mount path: 'a' mount path must be absolute"),
        ({"Type": "bind", "Source": "/none/such"},
         'type "bind": bind source path does not exist: /none/such'),
        ({"Type": "bind", "Source": "/", "BindOptions": {"Propagation": "odd"}},
         'type "bind": invalid propagation mode: odd'),
        ({"Type": "bind", "Source": "/", "VolumeOptions": {}},
         'type "bind": field VolumeOptions must not be specified'),
        ({"Type": "volume", "ReadOnly": True},
         'type "volume": must not set ReadOnly mode when using anonymous volumes'),
        ({"Type": "volume", "VolumeOptions": {"Subpath": "a"}},
         'type "volume": must not set Subpath when using anonymous volumes'),
        ({"Type": "volume", "Source": "v", "VolumeOptions": {"Subpath": "a/../../b"}},
         'type "volume": subpath must be a relative path within the volume'),
        ({"Type": "tmpfs", "Source": "x"}, 'type "tmpfs": field Source must not be specified'),
        ({"Type": "tmpfs", "TmpfsOptions": {"Options": [["uid", "1"]]}},
         'type "tmpfs": invalid option: uid'),
        ({"Type": "image"}, 'type "image": field Source must not be empty'),
    ],
)
def test_mounts_that_are_refused(fields, why):
    with pytest.raises(engine.InvalidParameter) as refused:
        engine.mount_point(mount(**fields))
    assert str(refused.value) == "invalid mount config for " + why


def test_tmpfs_options():
    made = engine.mount_point(mount(Type="tmpfs", ReadOnly=True, TmpfsOptions={
        "SizeBytes": 3 << 20, "Mode": 0o1770, "Options": [["exec"]]}))
    assert made["tmpfs"] == "ro,mode=1770,size=3m,exec"
    assert engine.mount_point(mount(Type="tmpfs", TmpfsOptions={"SizeBytes": 1000}))[
        "tmpfs"] == "size=1000"


@pytest.mark.parametrize(
    ("options", "words", "recursive"),
    [
        ({}, ["rbind", "rro", "rprivate"], True),
        ({"NonRecursive": True}, ["bind", "rro", "rprivate"], False),
        ({"ReadOnlyNonRecursive": True, "Propagation": "rslave"}, ["rbind", "ro", "rslave"], True),
        ({"ReadOnlyForceRecursive": True}, ["rbind", "rro", "rprivate"], True),
    ],
)
def test_mounts_of_points(options, words, recursive):
    points = [engine.mount_point(mount(Type="tmpfs", Target="/x")), engine.mount_point(mount(
        Type="bind", Source="/", ReadOnly=True, BindOptions=options))]
    assert engine.points_mounts(points, {}) == [{
        "destination": "/t", "type": "bind", "source": "/", "options": words, "clone": 0}]
    assert engine.points_mounts(points, {"/t": ""}) == []
    assert engine.points_clones(points) == [{
        "source": "/", "target": "/t", "subpath": "", "recursive": recursive, "layers": None}]


def test_parents_are_mounted_first():
    targets = ["/a/b/c", "/a", "/", "/z/y", "/a/b"]
    sorted_ones = engine.mounts_sorted([{"destination": target} for target in targets])
    assert [each["destination"] for each in sorted_ones] == ["/", "/a", "/z/y", "/a/b", "/a/b/c"]


def test_volumes_from():
    assert engine.volumes_from_parse("box") == ("box", True)
    assert engine.volumes_from_parse("box:ro,z") == ("box", False)
    for text in ("box:nocopy", "box:rshared", "box:odd"):
        with pytest.raises(engine.InvalidParameter, match="invalid mode: " + text[4:]):
            engine.volumes_from_parse(text)
    with pytest.raises(engine.InvalidParameter, match="cannot be an empty string"):
        engine.volumes_from_parse("")


@pytest.mark.parametrize(("text", "wanted"), [
    ("/:/host", "rslave"), ("/var/lib/engine/x:/b", "rslave"), ("/srv:/b", "rprivate"),
    ("/:/host:rshared", "rshared"),
])
def test_binds_of_the_data_root(text, wanted):
    made = point(text)
    engine.daemon_root_check(made, "/var/lib/engine")
    assert made["Propagation"] == wanted


def test_a_private_bind_of_the_data_root_is_refused():
    with pytest.raises(engine.InvalidParameter, match="must use either propagation mode"):
        engine.daemon_root_check(point("/:/host:private"), "/var/lib/engine")
