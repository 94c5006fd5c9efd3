"""Images as rows: find, tag, list, inspect, history, remove, prune, collect; as Docker."""

from __future__ import annotations

import multiprocessing
import os
import types

import engine
import pytest
from image_help import (
    config_of,
    content,
    digest,
    docker_files,
    events,
    layer,
    load,
    nobody,
    store_fixture,  # noqa: F401
    tar_of,
)

A, B, C = layer("a"), layer("b"), layer("c")
C1, C2 = "c" * 64, "d" * 64


def add(store, *tags, layers=(A,), **more):
    """Load an image; its id."""
    load(store, tar_of(docker_files(list(layers), tags, **more)))
    return digest(config_of(list(layers), **more))


def used(*rows):
    return lambda: list(rows)


def test_find(store):
    image = add(store, "x:1", "quay.io/a/b:2", "busybox:latest")
    for ref in (
        "x:1",
        "docker.io/library/x:1",
        "library/x:1",
        "quay.io/a/b:2",
        "busybox",
        image,
        image[7:],
        image[7:19],
        image[7:8],
        "sha256:" + image[7:15],
    ):
        assert engine.image_get(store, ref).id == image
    for ref, text in (
        ("nope", "No such image: nope:latest"),
        ("x", "No such image: x:latest"),
        ("x:2", "No such image: x:2"),
        ("f" * 64, f"No such image: sha256:{'f' * 64}"),
        ("x@sha256:" + "a" * 64, f"No such image: x@sha256:{'a' * 64}"),
        ("quay.io/a/b", "No such image: quay.io/a/b:latest"),
    ):
        with pytest.raises(engine.NotFound) as refused:
            engine.image_get(store, ref)
        assert str(refused.value) == text
    for ref in ("UPPER", "", "a b", "x:", "sha256:" + "Z" * 64, "-x"):
        with pytest.raises(engine.InvalidParameter):
            engine.image_get(store, ref)


def test_ambiguous_prefix(store):
    ids = [
        add(store, f"x:{n}", Cmd=[str(n)]) for n in range(17)
    ]  # two must share their first digit
    first = next(image[7] for image in ids if sum(other[7] == image[7] for other in ids) > 1)
    with pytest.raises(engine.NotFound, match=f"^No such image: {first}:latest$"):
        engine.image_get(store, first)


def test_tag(store):
    image, other = add(store, "x:1", Labels={"l": "v"}), add(store, "y:1", layers=(B,))
    engine.image_tag(store, "x:1", "z")
    engine.image_tag(store, image[7:19], "localhost:5000/z:9")
    assert engine.image_tags(store, image)[0] == ["x:1", "z:latest", "localhost:5000/z:9"]
    engine.image_tag(store, "y:1", "z:latest")  # moves it
    assert engine.image_get(store, "z").id == other
    assert events(store)[-1] == ("tag", other, {"name": "z:latest"})
    assert events(store)[-3] == ("tag", image, {"l": "v", "name": "z:latest"})
    for target, text in (
        ("a@sha256:" + "a" * 64, "refusing to create a tag with a digest reference"),
        ("sha256", "refusing to create an ambiguous tag using digest algorithm as name"),
        ("UPPER", "invalid reference format: repository name (library/UPPER) must be lowercase"),
    ):
        with pytest.raises(engine.InvalidParameter) as refused:
            engine.image_tag(store, "x:1", target)
        assert str(refused.value) == text
    with pytest.raises(engine.NotFound, match="^No such image: nope:latest$"):
        engine.image_tag(store, "nope", "a:1")


def test_inspect(store):
    image = add(
        store,
        "x:1",
        layers=(A, B),
        Cmd=["sh"],
        Env=["A=1"],
        Labels={"l": "v"},
        ExposedPorts={"80/tcp": {}},
        Hostname="old",
        author="me",
        created="2024-01-01T00:00:00.120Z",
        variant="v8",
        docker_version="27",
    )
    shown = engine.image_inspect(store, "x:1")
    assert list(shown) == [
        "Id",
        "RepoTags",
        "RepoDigests",
        "Parent",
        "Comment",
        "Created",
        "DockerVersion",
        "Author",
        "Architecture",
        "Variant",
        "Os",
        "Size",
        "GraphDriver",
        "RootFS",
        "Metadata",
        "Config",
    ]
    assert shown["Id"] == image and shown["RepoTags"] == ["x:1"] and shown["RepoDigests"] == []
    assert (shown["Comment"], shown["Author"], shown["DockerVersion"], shown["Size"]) == (
        "c",
        "me",
        "27",
        2,
    )
    assert shown["Created"] == "2024-01-01T00:00:00.12Z"
    assert shown["Metadata"] == {"LastTagTime": "0001-01-01T00:00:00Z"}
    assert shown["RootFS"] == {"Type": "layers", "Layers": [digest(A), digest(B)]}
    assert shown["Config"] == {
        "Cmd": ["sh"],
        "Entrypoint": None,
        "Env": ["A=1"],
        "ExposedPorts": {"80/tcp": {}},
        "Labels": {"l": "v"},
        "OnBuild": None,
        "User": "",
        "Volumes": None,
        "WorkingDir": "",
    }
    assert list(shown["Config"]) == sorted(shown["Config"])
    driver = shown["GraphDriver"]
    assert driver["Name"] == "overlay2" and list(driver["Data"]) == [
        "LowerDir",
        "MergedDir",
        "UpperDir",
        "WorkDir",
    ]
    assert os.path.isdir(driver["Data"]["UpperDir"]) and os.path.isdir(driver["Data"]["LowerDir"])
    with pytest.raises(
        engine.NotFound,
        match="^image with reference x:1 was found but its platform "
        r"\(linux/\S+\) does not match the specified platform \(linux/s390x\)$",
    ):
        engine.image_inspect(store, "x:1", engine.platform_parse("linux/s390x"))


def test_history(store):
    history = [
        {"created": "2024-01-01T00:00:01Z", "created_by": "ADD", "comment": "one"},
        {"created_by": "ENV", "empty_layer": True},
        {"created": "2024-01-01T00:00:03Z", "created_by": "RUN"},
    ]
    image = add(store, "x:1", "x:2", layers=(A, layer("long-name")), history=history)
    shown = engine.image_history(store, "x:1")
    assert [list(step) for step in shown] == [
        ["Comment", "Created", "CreatedBy", "Id", "Size", "Tags"]
    ] * 3
    assert [(step["CreatedBy"], step["Size"], step["Id"], step["Tags"]) for step in shown] == [
        ("RUN", 9, image, ["x:1", "x:2"]),
        ("ENV", 0, "<missing>", None),
        ("ADD", 1, "<missing>", None),
    ]
    assert [step["Created"] for step in shown] == [1704067203, 0, 1704067201]
    with pytest.raises(engine.EngineError, match="^too many non-empty layers in History section$"):
        add(store, "bad:1", history=[{}, {}])


def listed(store, in_use=nobody, **filters):
    return [summary["RepoTags"] or ["-"] for summary in engine.image_list(store, filters, in_use)]


def test_list(store):
    one = add(store, "a:1", created="2024-01-01T00:00:00Z", Labels={"k": "v"})
    two = add(store, "b:1", "b:2", "quay.io/x/c:1", created="2024-01-02T00:00:00Z", layers=(A, B))
    three = add(store, created="2024-01-03T00:00:00Z", layers=(C,))
    assert listed(store) == [["-"], ["b:1", "b:2", "quay.io/x/c:1"], ["a:1"]]
    summary = engine.image_list(store, {}, used((C1, one, True, 0), (C2, one, False, 0)))[-1]
    assert summary == {
        "Containers": 2,
        "Created": 1704067200,
        "Id": one,
        "Labels": {"k": "v"},
        "ParentId": "",
        "RepoDigests": [],
        "RepoTags": ["a:1"],
        "SharedSize": -1,
        "Size": 1,
    }
    assert list(summary) == sorted(summary)
    shared = {
        row["Id"]: row["SharedSize"]
        for row in engine.image_list(store, {}, nobody, shared_size=True)
    }
    assert shared == {one: 1, two: 1, three: 0}
    for filters, want in (
        ({"dangling": ["true"]}, [["-"]]),
        ({"dangling": ["false"]}, [["b:1", "b:2", "quay.io/x/c:1"], ["a:1"]]),
        ({"label": ["k"]}, [["a:1"]]),
        ({"label": ["k=w"]}, []),
        ({"label!": ["k"]}, [["-"], ["b:1", "b:2", "quay.io/x/c:1"]]),
        ({"reference": ["b"]}, [["b:1", "b:2"]]),
        ({"reference": ["*:1"]}, [["b:1"], ["a:1"]]),
        ({"reference": ["quay.io/*/c"]}, [["quay.io/x/c:1"]]),
        ({"reference": ["[a-b]:?"]}, [["b:1", "b:2"], ["a:1"]]),
        ({"reference": ["docker.io/library/a"]}, [["a:1"]]),
        ({"reference": ["z", "a"]}, [["a:1"]]),
        ({"before": ["b:1"]}, [["a:1"]]),
        ({"since": ["b:1"]}, [["-"]]),
        ({"since": ["a:1"], "before": [three[7:19]]}, [["b:1", "b:2", "quay.io/x/c:1"]]),
        ({"until": ["2024-01-02T12:00:00Z"]}, [["b:1", "b:2", "quay.io/x/c:1"], ["a:1"]]),
    ):
        assert listed(store, **filters) == want, filters
    for filters, text in (
        ({"nope": ["1"]}, "^invalid filter 'nope'$"),
        ({"dangling": ["x"]}, "^invalid filter 'dangling=."),
        ({"reference": ["["]}, "^syntax error in pattern$"),
        ({"until": ["x"]}, "^invalid value for 'until' filter: "),
    ):
        with pytest.raises(engine.InvalidParameter, match=text):
            engine.image_list(store, filters, nobody)


def test_remove_by_name(store):
    image = add(store, "x:1", "x:2", layers=(A, B))
    assert engine.image_remove(store, "x:1", nobody) == [{"Untagged": "x:1"}]
    assert engine.image_get(store, "x:2").id == image
    chains = engine.chain_ids([digest(A), digest(B)])
    assert engine.image_remove(store, "x:2", nobody) == [
        {"Untagged": "x:2"},
        {"Deleted": image},
        {"Deleted": chains[1]},
        {"Deleted": chains[0]},
    ]
    assert content(store) == (set(), set(), set())
    assert [(action, name) for action, name, _ in events(store)] == [
        ("load", image),
        ("untag", image),
        ("untag", image),
        ("delete", image),
    ]
    with pytest.raises(engine.NotFound, match="^No such image: x:2$"):
        engine.image_remove(store, "x:2", nobody)


def test_remove_keeps_shared_layers(store):
    one, two = add(store, "x:1", layers=(A, B)), add(store, "y:1", layers=(A, C))
    report = engine.image_remove(store, one[7:19], nobody)
    assert report == [
        {"Untagged": "x:1"},
        {"Deleted": one},
        {"Deleted": engine.chain_ids([digest(A), digest(B)])[1]},
    ]
    assert [
        len(os.listdir(path))
        for path in engine.layer_directories(store, engine.image_get(store, two).layer)
    ] == [1, 1]
    engine.blob_size(store, digest(A))
    with pytest.raises(engine.NotFound):
        engine.blob_size(store, digest(B))


def test_remove_by_id_with_several_names(store):
    image = add(store, "x:1", "y:1")
    with pytest.raises(engine.Conflict) as refused:
        engine.image_remove(store, image[7:19], nobody)
    assert str(refused.value) == (
        f"conflict: unable to delete {image[7:19]} (must be forced) - image is referenced in"
        " multiple repositories"
    )
    assert engine.image_remove(store, image, nobody, force=True)[:3] == [
        {"Untagged": "x:1"},
        {"Untagged": "y:1"},
        {"Deleted": image},
    ]


def test_remove_in_use(store):
    image = add(store, "x:1")
    layers = engine.image_get(store, image).layer
    running, stopped = used((C1, image, True, layers)), used((C2, image, False, layers))
    short = image[7:19]
    for ref, uses, force, text in (
        (
            "x:1",
            running,
            False,
            f'conflict: unable to remove repository reference "x:1" (must force) - container'
            f" {C1[:12]} is using its referenced image {short}",
        ),
        (
            "x:1",
            stopped,
            False,
            f'conflict: unable to remove repository reference "x:1" (must force) - container'
            f" {C2[:12]} is using its referenced image {short}",
        ),
        (
            image,
            running,
            False,
            f"conflict: unable to delete {short} (cannot be forced) - image is being used by"
            f" running container {C1[:12]}",
        ),
        (
            image,
            running,
            True,
            f"conflict: unable to delete {short} (cannot be forced) - image is being used by"
            f" running container {C1[:12]}",
        ),
        (
            image,
            stopped,
            False,
            f"conflict: unable to delete {short} (must be forced) - image is being used by"
            f" stopped container {C2[:12]}",
        ),
    ):
        with pytest.raises(engine.Conflict) as refused:
            engine.image_remove(store, ref, uses, force=force)
        assert str(refused.value) == text
    assert engine.image_tags(store, image)[0] == ["x:1"]
    assert engine.image_remove(store, "x:1", running, force=True) == [{"Untagged": "x:1"}]
    assert engine.image_get(store, image).id == image
    engine.image_tag(store, image, "x:1")
    assert engine.image_remove(store, image, stopped, force=True) == [
        {"Untagged": "x:1"},
        {"Deleted": image},
    ]
    assert len(content(store)[0]) == 1  # the container still stands on it
    assert engine.content_collect(store, stopped) == 0 and len(content(store)[0]) == 1
    there = 1 + blob_bytes(store)
    assert engine.content_collect(store, nobody) == there
    assert content(store) == (set(), set(), set())


def test_digests_go_with_the_last_tag(store):
    image = add(store, "x:1", "x:2")
    with store.write() as db:
        db.execute(
            "INSERT INTO tags VALUES(?, ?, 0)", ("docker.io/library/x@sha256:" + "a" * 64, image)
        )
    by_digest = "x@sha256:" + "a" * 64
    assert engine.image_get(store, by_digest).id == image
    assert engine.image_inspect(store, image)["RepoDigests"] == [by_digest]
    assert engine.image_remove(store, "x:1", nobody) == [{"Untagged": "x:1"}]
    assert engine.image_remove(store, "x:2", nobody)[:3] == [
        {"Untagged": "x:2"},
        {"Untagged": by_digest},
        {"Deleted": image},
    ]


def test_remove_waits_for_no_lease(store):
    """While somebody loads, the rows go at once and the layers with the next collection."""
    image = add(store, "x:1")
    with engine.content_lease(store):
        assert engine.image_remove(store, "x:1", nobody) == [
            {"Untagged": "x:1"},
            {"Deleted": image},
        ]
        assert engine.content_collect(store, nobody) == 0
        assert len(content(store)[0]) == 1
    there = 1 + blob_bytes(store)
    assert engine.content_collect(store, nobody) == there


def blob_bytes(store):
    directory = store.path("blobs", "sha256")
    return sum(os.path.getsize(os.path.join(directory, name)) for name in os.listdir(directory))


def test_prune(store):
    keep, loose = add(store, "x:1"), add(store, layers=(B,), created="2024-01-02T00:00:00Z")
    labelled = add(store, layers=(C,), Labels={"keep": "yes"})
    assert engine.image_prune(store, {"until": ["2023-01-01"]}, nobody) == {
        "ImagesDeleted": None,
        "SpaceReclaimed": 0,
    }
    before = blob_bytes(store)
    report = engine.image_prune(store, {"label!": ["keep=yes"]}, nobody)
    free = 1 + before - blob_bytes(store)
    assert report == {
        "ImagesDeleted": [{"Deleted": loose}, {"Deleted": digest(B)}],
        "SpaceReclaimed": free,
    }
    assert free > 1 and events(store)[-1] == ("prune", "", {"reclaimed": str(free)})
    assert engine.image_prune(store, {"label": ["keep"]}, nobody)["ImagesDeleted"][0] == {
        "Deleted": labelled
    }
    assert (
        engine.image_prune(store, {"dangling": ["false"]}, used((C1, keep, False, 1)))[
            "ImagesDeleted"
        ]
        is None
    )
    assert engine.image_prune(store, {"dangling": ["false"]}, nobody)["ImagesDeleted"][:2] == [
        {"Untagged": "x:1"},
        {"Deleted": keep},
    ]
    with pytest.raises(engine.InvalidParameter, match="^invalid filter 'reference'$"):
        engine.image_prune(store, {"reference": ["x"]}, nobody)


def _race(data, run, number, start):
    store = engine.Store(data, run)
    start.wait()
    for _turn in range(6):
        load(store, tar_of(docker_files([A, layer(str(number % 2))], (f"x:{number}",))))
        image = engine.image_get(store, f"x:{number}")
        for path in engine.layer_directories(store, image.layer):
            assert len(os.listdir(path)) == 1
        assert sum(map(len, engine.images_save(store, [f"x:{number}"]))) > 4096
        engine.image_remove(store, f"x:{number}", nobody)
    os._exit(0)


def test_load_and_remove_race(store):
    """Six processes load, save and remove images over the same layers; each sees its own whole."""
    context = multiprocessing.get_context("fork")
    start = context.Event()
    workers = [
        context.Process(target=_race, args=(store.data, store.run, number, start))
        for number in range(6)
    ]
    for worker in workers:
        worker.start()
    start.set()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    engine.content_collect(store, nobody)
    assert content(store) == (set(), set(), set())


@pytest.mark.parametrize(
    "machine, platform, matches",
    [
        ("x86_64", {"architecture": "amd64"}, True),
        ("x86_64", {"architecture": "386"}, True),
        ("x86_64", {"architecture": "s390x"}, False),
        ("aarch64", {"architecture": "arm64", "variant": "v8"}, True),
        ("aarch64", {"architecture": "arm", "variant": "v7"}, True),
        ("aarch64", {"architecture": "amd64"}, False),
    ],
)
def test_an_image_for_another_machine_is_warned_of(monkeypatch, machine, platform, matches):
    monkeypatch.setattr(engine.os, "uname", lambda: types.SimpleNamespace(machine=machine))
    image = types.SimpleNamespace(platform={"os": "linux", "variant": "", **platform})
    text = engine.image_platform_warning(image)
    assert bool(text) != matches
    if platform["architecture"] == "s390x":
        assert text.startswith(
            "The requested image's platform (linux/s390x) does not match the detected host"
            " platform (linux/amd64/v"
        )


@pytest.mark.parametrize(
    "created", ["0001-01-01T00:00:00Z", "1600-02-03T04:05:06Z", "2300-01-01T00:00:00Z",
                "9999-12-31T23:59:59Z"]
)  # fmt: skip
def test_any_date(store, created):
    """SQLite holds 292 years around 1970 in ns; an image may say any date."""
    image = add(store, "x:1", created=created)
    shown = engine.image_inspect(store, "x:1")
    assert shown["Created"] == created
    seconds = engine.time_parse(created) // engine.SECOND
    assert [row["Created"] for row in engine.image_list(store, {}, nobody)] == [seconds]
    assert [row["Created"] for row in engine.image_history(store, image)] == [seconds]
    engine.image_remove(store, "x:1", nobody)
