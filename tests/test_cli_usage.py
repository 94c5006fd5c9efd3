"""system df and system prune: sums, tables, formats, the question, what is removed."""

from __future__ import annotations

import json
import os

import pytest

IMAGES = [
    {"Id": "sha256:" + "a" * 64, "RepoTags": ["a:1", "a:2"], "RepoDigests": [], "Created": 1,
     "Size": 3000, "SharedSize": 1000, "Containers": 1, "Labels": None},
    {"Id": "sha256:" + "b" * 64, "RepoTags": [], "RepoDigests": [], "Created": 1,
     "Size": 2000, "SharedSize": 1000, "Containers": 0, "Labels": None},
]
BOX = {"Id": "c" * 64, "Names": ["/box"], "Image": "a:1", "ImageID": IMAGES[0]["Id"],
       "Command": "true", "Created": 1, "Ports": [], "Labels": {"k": "v"}, "State": "exited",
       "Status": "Exited (0)", "Mounts": [], "SizeRw": 500, "SizeRootFs": 3500,
       "NetworkSettings": {"Networks": {"none": {}}}}
VOLUME = {"Name": "v", "Driver": "local", "Scope": "local", "Mountpoint": "/v", "Labels": {},
          "UsageData": {"RefCount": 0, "Size": 7000}}
CACHE = {"ID": "abcdefghijklmnop", "Type": "regular", "Size": 100, "Shared": False, "InUse": True,
         "CreatedAt": "2024-01-01T00:00:00Z", "LastUsedAt": None, "UsageCount": 2,
         "Description": "step", "Parents": ["x", "y"]}
USAGE = {"LayersSize": 4000, "Images": IMAGES, "Volumes": [VOLUME], "BuildCache": [CACHE],
         "Containers": [BOX, {**BOX, "State": "running", "SizeRw": 1500}]}


def test_rows(engine):
    rows = engine.usage_rows(USAGE)
    assert [tuple(row.values()) for row in rows] == [
        ("Images", "2", "1", "4kB", "2kB (50%)"),
        ("Containers", "2", "1", "2kB", "500B (25%)"),
        ("Local Volumes", "1", "0", "7kB", "7kB (100%)"),
        ("Build Cache", "1", "1", "100B", "0B"),
    ]
    nothing = {"LayersSize": 0, "Images": None, "Containers": None, "Volumes": None,
               "BuildCache": None}
    assert [row["Reclaimable"] for row in engine.usage_rows(nothing)] == ["0B"] * 4


def test_verbose_tables(engine):
    lines = engine.usage_verbose(USAGE, "").splitlines()
    assert [line for line in lines if line.endswith(":") or "usage:" in line] == [
        "Images space usage:", "Containers space usage:", "Local Volumes space usage:",
        "Build cache usage: 100B"]
    assert lines[2].split() == ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE", "SHARED",
                                "SIZE", "UNIQUE", "SIZE", "CONTAINERS"]
    assert lines[3].split()[:3] == ["a", "1", "a" * 12]
    assert lines[4].split()[:2] == ["<none>", "<none>"]
    box = next(line for line in lines if line.startswith("c" * 12))
    assert "500B" in box and "virtual" not in box
    assert lines[-1].split()[:2] == ["abcdefghijkl*", "regular"]


def test_verbose_formats(engine):
    shown = json.loads(engine.usage_verbose(USAGE, "json"))
    assert list(shown) == ["Images", "Containers", "Volumes", "BuildCache"]
    assert shown["Images"][0]["UniqueSize"] == "2kB" and shown["BuildCache"][0]["Parent"] == "x, y"
    assert engine.usage_verbose(USAGE, "{{range .Volumes}}{{.Name}} {{.Links}}{{end}}") == "v 0"
    raw = engine.usage_verbose(USAGE, "raw")
    assert raw.startswith("type: Image\nrepository: a\ntag: 1\ndigest: \n")
    assert raw.count("type: ") - raw.count("_type: ") == 6 and raw.endswith("\n\n")
    with pytest.raises(engine.EngineError, match="can't evaluate field Nope"):
        engine.usage_verbose(USAGE, "{{.Nope}}")


class Args:
    def __init__(self, **values):
        self.__dict__.update({"all": False, "volumes": False, "filter": {}, **values})


def test_question(engine):
    assert engine.prune_question(Args()) == (
        "WARNING! This will remove:\n  - all stopped containers\n  - all networks not used by at "
        "least one container\n  - all dangling images\n  - unused build cache\n\nAre you sure you "
        "want to continue?")
    text = engine.prune_question(Args(all=True, volumes=True, filter={"until": ["1h"], "label": [
        "x"]}))
    assert "  - all anonymous volumes not used by at least one container\n" in text
    assert "  - all build cache\n\n  Items to be pruned will be filtered with:\n" in text
    assert text.endswith("  - label=x\n  - until=1h\n\nAre you sure you want to continue?")


@pytest.mark.root
def test_prune(busybox):
    made = busybox("create", "--network", "none", "busybox").ok().out.strip()
    busybox("cp", "/etc/hostname", made + ":/tmp/x").ok()
    image = busybox("commit", made).ok().out.strip()
    asked = busybox("system", "prune", input="n\n").ok()
    assert asked.out.endswith("Are you sure you want to continue? [y/N] ")
    told = busybox("system", "prune", "--volumes", "--filter", "until=1h")
    assert told.code == 1 and told.err == (
        'ERROR: The "until" filter is not supported with "--volumes"\n')
    assert busybox("system", "prune", "-f", "--filter", "label=none").ok().out == (
        "Total reclaimed space: 0B\n")
    done = busybox("system", "prune", "-f").ok().out
    assert done.startswith(f"Deleted Containers:\n{made}\n\nDeleted Images:\ndeleted: {image}\n")
    assert not done.endswith("space: 0B\n")
    assert busybox("system", "prune", "-af").ok().out.startswith(
        "Deleted Images:\nuntagged: busybox:latest\ndeleted: sha256:")
    assert busybox("system", "df", "--format", "{{.Type}} {{.TotalCount}} {{.Size}}").ok().out == (
        "Images 0 0B\nContainers 0 0B\nLocal Volumes 0 0B\nBuild Cache 0 0B\n")


def bytes_below(*paths):
    return sum(os.lstat(os.path.join(above, name)).st_size for path in paths
               for above, _, names in os.walk(path) for name in names)


@pytest.mark.root
class TestPruneApi:
    def test_images_tell_what_is_really_free(self, engine, busybox, roots):
        busybox("run", "--name", "box", "--network", "none", "busybox", "sh", "-c",
                "head -c 3000000 /dev/urandom >/tmp/x").ok()
        busybox("commit", "box").ok()
        usage = busybox("system", "df", "--format", "{{.Size}}").ok().lines()
        assert usage[0] == "10.11MB" and usage[1] == "3MB"      # trees and blobs
        before = bytes_below(roots.data + "/layers", roots.data + "/blobs")
        module = engine.Engine(engine.Store(roots.data, roots.run))
        reply = engine.http_dispatch(module, engine.Request("POST", "/images/prune")).value
        assert reply["SpaceReclaimed"] == before - bytes_below(
            roots.data + "/layers", roots.data + "/blobs") > 6000000
        reply = engine.http_dispatch(module, engine.Request("POST", "/containers/prune")).value
        assert reply["SpaceReclaimed"] == 3000000 and len(reply["ContainersDeleted"]) == 1
        for kind, field in (("containers", "ContainersDeleted"), ("images", "ImagesDeleted")):
            reply = engine.http_dispatch(module, engine.Request("POST", f"/{kind}/prune")).value
            assert reply == {field: None, "SpaceReclaimed": 0}

    def test_one_at_a_time(self, engine, busybox, roots):
        store = engine.Store(roots.data, roots.run)
        for kind in ("images", "containers"):
            with store.lock("prune-" + kind):
                done = busybox(kind[:-1], "prune", "-f")
                assert done.code == 1 and "a prune operation is already running" in done.err

    @pytest.mark.parametrize(
        ("query", "text"),
        [
            ({"x": ["1"]}, "invalid filter 'x'"),
            ({"until": ["1h", "2h"]}, "more than one until filter specified"),
        ],
    )
    def test_wrong_filters(self, engine, cli, roots, query, text):
        module = engine.Engine(engine.Store(roots.data, roots.run))
        for kind in ("images", "containers"):
            reply = engine.http_dispatch(module, engine.Request(
                "POST", f"/{kind}/prune", query={"filters": [json.dumps(query)]}))
            assert reply.status == 400 and text in reply.value["message"]

    def test_labels_and_until(self, busybox):
        ids = [busybox("create", "--network", "none", "-l", label, "busybox").ok().out.strip()
               for label in ("a=1", "a=2", "b=1")]

        def pruned(*filters):
            out = busybox("container", "prune", "-f",
                          *[word for each in filters for word in ("--filter", each)]).ok().out
            return [line for line in out.splitlines() if len(line) == 64]
        assert pruned("until=24h") == []
        assert pruned("label=a=1") == [ids[0]]
        assert pruned("label!=a") == [ids[2]]
        assert pruned("until=0s") == [ids[1]]
