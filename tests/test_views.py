"""views: inspect, lists and their filters, what a container changed."""

from __future__ import annotations

import os

import engine
import pytest
from container_help import IMAGE, bare_box  # noqa: F401

INSPECT = (
    "Id Created Path Args State Image ResolvConfPath HostnamePath HostsPath LogPath Name"
    " RestartCount Driver Platform MountLabel ProcessLabel AppArmorProfile ExecIDs HostConfig"
    " GraphDriver Mounts Config NetworkSettings"
).split()


@pytest.fixture
def store(bare_box):  # noqa: F811
    return bare_box.store


def made(store, name, *command, image=IMAGE, state="created", exit_code=0, **config):
    one, two, _ = engine.create_check(
        {
            "Image": "busybox",
            "Cmd": list(command) or ["sh"],
            "HostConfig": {"NetworkMode": "none"},
            **config,
        }
    )
    engine.create_verify(one, two)
    words = engine.command_words(one)
    c = engine.record_new(
        id=engine.id_new(),
        name=name,
        image=image,
        config=one,
        host=two,
        document={"Path": words[0], "Args": words[1:], "Platform": "linux", "Layers": ["layers/1"]},
    )
    c.state, c.exit_code = state, exit_code
    if state != "created":
        c.started, c.finished = c.created, c.created
    engine.record_insert(store, c)
    return c


def test_inspect_keys_and_values(store):
    c = made(store, "web", "echo", "a b", Labels={"b": "1", "a": "2"})
    shown = engine.container_show(store, c)
    assert list(shown) == INSPECT
    assert shown["Path"] == "echo" and shown["Args"] == ["a b"] and shown["Name"] == "/web"
    assert list(shown["Config"]["Labels"]) == ["a", "b"]
    assert shown["HostConfig"]["NetworkMode"] == "none"
    assert list(shown["NetworkSettings"]["Networks"]) == ["none"]
    assert shown["GraphDriver"]["Name"] == "overlay2"
    assert shown["GraphDriver"]["Data"]["LowerDir"] == store.path("layers/1")
    assert shown["ExecIDs"] is None and shown["LogPath"] == ""


def test_networks_while_it_runs_and_after(store):
    none = engine.network_find(store, "none").id
    states = {"new": "created", "up": "running", "over": "exited"}
    shown = {
        name: engine.container_show(store, made(store, name, state=state))["NetworkSettings"]
        for name, state in states.items()
    }
    networks = {name: each["Networks"]["none"] for name, each in shown.items()}
    assert [networks[name]["NetworkID"] for name in states] == ["", none, none]
    assert networks["new"]["EndpointID"] == networks["over"]["EndpointID"] == ""
    assert shown["new"]["SandboxID"] == shown["over"]["SandboxKey"] == ""
    up = {networks["up"]["EndpointID"], shown["up"]["SandboxID"]}
    assert sorted(map(len, up)) == [64, 64]
    assert shown["up"]["SandboxKey"] == "/proc/0/ns/net"
    c = engine.record_find(store, "up")
    engine.record_move(store, c.id, ("running",), "running", started=c.started + 1)
    again = engine.container_show(store, engine.record_find(store, "up"))["NetworkSettings"]
    assert again["SandboxID"] not in up and again["Networks"]["none"]["EndpointID"] not in up


def test_inspect_with_size(store):
    c = made(store, "web")
    upper = store.path("containers", c.id, "upper")
    os.makedirs(upper + "/d")
    with open(upper + "/d/f", "wb") as file:
        file.write(b"x" * 1000)
    os.link(upper + "/d/f", upper + "/g")
    shown = engine.container_show(store, c, size=True)
    assert (shown["SizeRw"], shown["SizeRootFs"]) == (1000, 6000)
    assert list(shown)[-5:-3] == ["SizeRw", "SizeRootFs"]


def test_summary(store):
    c = made(store, "web", "sh", "-c", "a b", Labels={"l": "1"})
    shown = engine.summary_show(c, "busybox", engine.time_now(), {"none": {}})
    assert shown["Command"] == "sh -c 'a b'" and shown["Names"] == ["/web"]
    assert shown["Ports"] == shown["Mounts"] == [] and shown["State"] == "created"
    assert isinstance(shown["Created"], int)


def names(store, everything=True, limit=0, ancestors=None, **filters):
    filters = {name.replace("_", "-"): value for name, value in filters.items()}
    chosen = engine.list_select(
        engine.record_list(store),
        everything=everything,
        limit=limit,
        filters=filters,
        ancestors=ancestors,
    )
    return [c.name for c in chosen]


@pytest.fixture
def five(store):
    made(store, "c1", Labels={"tier": "db"})
    made(store, "c2", state="exited", exit_code=3)
    made(store, "c3", state="running", Labels={"tier": "web", "x": ""})
    made(store, "c4", state="paused", image="sha256:" + "2" * 64)
    made(store, "c5", state="exited")
    return store


@pytest.mark.parametrize(
    ("value", "ports"),
    [
        ("80-82/sctp/x", ""),
        ("80/", ""),
        ("bad", 'strconv.ParseUint: parsing "bad": invalid syntax'),
        ("70000", 'strconv.ParseUint: parsing "70000": value out of range'),
        ("", "empty string specified for ports"),
        ("5-4", "invalid range specified for port: 5-4"),
        ("4-", 'strconv.ParseUint: parsing "": invalid syntax'),
        ("1:2", None),
    ],
)
def test_ports_in_filters(value, ports):
    if ports == "":
        assert engine.list_filters_check({"publish": [value]}) is None
        return
    with pytest.raises(engine.EngineError) as refused:
        engine.list_filters_check({"expose": [value]})
    text = f"error while looking up for expose {value}: {ports}"
    other = "filter for 'expose' should not contain ':': 1:2"
    assert str(refused.value) == (text if ports else other)


def test_lists(five):
    assert names(five) == ["c5", "c4", "c3", "c2", "c1"]
    assert names(five, everything=False) == ["c4", "c3"]
    assert names(five, everything=False, limit=2) == ["c5", "c4"]


@pytest.mark.parametrize(
    ("filters", "want"),
    [
        ({"name": ["c[12]"]}, "c2 c1"),
        ({"name": ["/c1"]}, "c1"),
        ({"label": ["tier"]}, "c3 c1"),
        ({"label": ["tier=web", "x"]}, "c3"),
        ({"status": ["exited"]}, "c5 c2"),
        ({"status": ["created", "paused"]}, "c4 c1"),
        ({"exited": ["0"]}, "c5"),
        ({"exited": ["3", "0"]}, "c5 c2"),
        ({"before": ["c3"]}, "c2 c1"),
        ({"since": ["c3"]}, "c5 c4"),
        ({"since": ["c1"], "before": ["c4"]}, "c3 c2"),
        ({"network": ["x"]}, ""),
        ({"publish": ["80"]}, ""),
        ({"volume": ["v"]}, ""),
        ({"is-task": ["true"]}, ""),
        ({"health": ["none"]}, "c5 c4 c3 c2 c1"),
        ({"health": ["healthy"]}, ""),
    ],
)
def test_filters(five, filters, want):
    assert names(five, **filters) == want.split()


def test_filter_by_id_and_image(five):
    c = engine.record_find(five, "c2")
    assert names(five, id=[c.id[:10]]) == ["c2"]
    assert names(five, ancestors={"sha256:" + "2" * 64}) == ["c4"]
    assert names(five, ancestors=set()) == []


@pytest.mark.parametrize(
    ("filters", "text"),
    [
        ({"nope": ["x"]}, "invalid filter 'nope'"),
        (
            {"exited": ["x"]},
            "invalid filter 'exited=x': strconv.Atoi: parsing \"x\": invalid syntax",
        ),
        (
            {"status": ["x"]},
            "invalid filter 'status=x': invalid value for state (x): must be one of created,"
            " running, paused, restarting, removing, exited, dead",
        ),
        (
            {"health": ["x"]},
            "invalid filter 'health=x': invalid value for health (x): must be one of none,"
            " starting, healthy, unhealthy",
        ),
        ({"before": ["x"]}, "No such container: x"),
    ],
)
def test_bad_filters(five, filters, text):
    with pytest.raises(engine.EngineError) as caught:
        names(five, **filters)
    assert str(caught.value) == text


def tree(base, spec):
    for name, content in spec.items():
        path = os.path.join(base, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if content is None:
            os.mknod(path, 0o020600, 0)
        else:
            with open(path, "w") as file:
                file.write(content)


@pytest.mark.root
def test_changes(tmp_path):
    one, two, upper = (str(tmp_path / name) for name in ("one", "two", "upper"))
    tree(two, {"etc/a": "1", "etc/b": "1", "gone/x": "1", "same/deep/f": "1"})
    tree(one, {"etc/b": None, "gone": None})
    tree(upper, {"etc/a": "2", "etc/b": "3", "gone/y": "1", "same/deep/f": "2", "new": "1"})
    tree(two, {"copied/up": "1", "owned/x": "1"})
    tree(upper, {"copied/up": "1"})
    for root in (two, upper):
        os.utime(root + "/copied/up", ns=(7 * 10**9, 7 * 10**9))
    os.makedirs(upper + "/owned", mode=0o700)
    for name in ("same", "same/deep"):
        os.utime(f"{two}/{name}", ns=(5, 5))
        os.utime(f"{upper}/{name}", ns=(5, 5))
    got = {entry["Path"]: entry["Kind"] for entry in engine.changes_list(upper, [one, two])}
    assert got == {
        "/etc": 0,
        "/etc/a": 0,
        "/etc/b": 1,
        "/gone": 1,
        "/gone/y": 1,
        "/new": 1,
        "/owned": 0,
        "/same": 0,
        "/same/deep": 0,
        "/same/deep/f": 0,
    }


@pytest.mark.root
def test_what_a_directory_made_again_has_lost(tmp_path):
    one, two, three, upper = (str(tmp_path / name) for name in ("one", "two", "three", "upper"))
    tree(three, {"d/never": "1", "e/x": "1", "l/x": "1"})
    tree(two, {"d/a": "1", "d/sub/f": "1", "d/b": "1"})
    tree(one, {"d/c": "1", "d/b": None, "e": None})
    os.symlink("/etc", one + "/l")
    tree(upper, {"d/a": "2", "d/new": "1", "e/y": "1", "l/y": "1"})
    for path in (two + "/d", upper + "/d", upper + "/e", upper + "/l"):
        os.setxattr(path, "trusted.overlay.opaque", b"y")
    changed = engine.changes_list(upper, [one, two, three])
    got = [(entry["Path"], entry["Kind"]) for entry in changed]
    assert got == [
        ("/d", 0), ("/d/a", 0), ("/d/c", 2), ("/d/new", 1), ("/d/sub", 2),
        ("/e", 1), ("/e/y", 1), ("/l", 0), ("/l/y", 1),
    ]  # fmt: skip


@pytest.mark.root
def test_deletions(tmp_path):
    lower, upper = str(tmp_path / "lower"), str(tmp_path / "upper")
    tree(lower, {"a/b/c": "1", "d": "1"})
    tree(upper, {"a/b/c": None, "d": None})
    got = [(entry["Path"], entry["Kind"]) for entry in engine.changes_list(upper, [lower])]
    assert ("/a/b/c", 2) in got and ("/d", 2) in got


def test_a_directory_is_seen_in_the_layers(tmp_path):
    top, low = (str(tmp_path / name) for name in ("top", "low"))
    for path in ("top/both/new", "top/over", "low/both/old/deep", "low/over/inner",
                 "low/gone", "low/only/inner"):
        os.makedirs(tmp_path / path)
    os.symlink("/", top + "/link")
    for path in ("/file", "/only/file"):
        open(low + path, "w").close()
    seen = {path: engine.layers_directory([top, low], path) for path in (
        "/both", "/both/new", "/both/old/deep", "/only/inner", "/over/inner", "/nowhere",
        "/nowhere/at/all", "/both/none", "/link", "/link/etc", "/" + "x" * 300,
        "/file", "/file/x", "/only/file")}
    assert [path for path, there in seen.items() if there] == [
        "/both", "/both/new", "/both/old/deep", "/only/inner", "/over/inner"]
    assert [path for path, there in seen.items() if there is False] == [
        "/nowhere", "/nowhere/at/all"]


@pytest.mark.root
def test_what_a_layer_hides_is_no_directory(tmp_path):
    top, low = (str(tmp_path / name) for name in ("top", "low"))
    for path in ("top/anew", "top/over", "low/anew/inner", "low/gone/inner", "low/over"):
        os.makedirs(tmp_path / path)
    os.rmdir(low + "/over")
    os.symlink("/etc", low + "/over")           # the host's must never be asked
    os.mknod(top + "/gone", 0o020000, 0)
    engine.xattr_set(top + "/anew", "trusted.overlay.opaque", b"y")
    asked = ("/anew", "/anew/inner", "/gone", "/gone/inner", "/over", "/over/ssl")
    assert [engine.layers_directory([top, low], path) for path in asked] == [
        True, None, False, False, True, None]
