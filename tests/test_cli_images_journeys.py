"""cli_images through the built file: from an archive to the store and back, as a user sees it."""

from __future__ import annotations

import gzip
import os
import tarfile

import pytest
from conftest import docker_archive, tar_of

pytestmark = pytest.mark.root


@pytest.fixture
def layer():
    """Bytes of a tar with one small file."""
    info = tarfile.TarInfo("hello")
    info.size, info.mtime = 3, 1700000000
    return tar_of([(info, b"hi\n")])


def held(cli):
    """Bytes of all that images have on the disk."""
    return sum(
        os.lstat(os.path.join(path, name)).st_size
        for root in ("blobs", "layers")
        for path, _, names in os.walk(os.path.join(cli.roots.data, root))
        for name in names
    )


def listed(cli, *words):
    return sorted(
        cli("images", "--format", "{{.Repository}}:{{.Tag}}", *words).ok().out.splitlines()
    )


def test_import_tag_remove(cli, layer):
    words = ("import", "-c", 'CMD ["sh"]', "-c", "LABEL a=b", "-m", "hello", "-", "x")
    made = cli(*words, input=layer)
    identifier = made.ok().out.strip()
    assert identifier.startswith("sha256:")
    cli("tag", "x", "x:two").ok()
    cli("tag", identifier[7:19], "localhost:5000/y/z").ok()
    assert listed(cli) == ["localhost:5000/y/z:latest", "x:latest", "x:two"]
    assert listed(cli, "x:t*") == ["x:two"]
    assert listed(cli, "-f", "label=a=c") == []
    assert cli("images", "-q", "--no-trunc").out == f"{identifier}\n" * 3

    shown = cli("image", "inspect", "x").ok().json()[0]
    assert (shown["Id"], shown["Comment"], shown["Size"]) == (identifier, "hello", 3)
    assert shown["Config"]["Cmd"] == ["sh"]
    assert cli("image", "inspect", "-f", "{{.ID}} {{index .Config.Labels `a`}}", "x").out == (
        f"{identifier} b\n"
    )
    assert cli("history", "--format", "{{.ID}} {{.Comment}} {{.Size}}", "x").out == (
        f"{identifier[7:19]} hello 3B\n"
    )

    assert cli("rmi", "x:two").ok().out == "Untagged: x:two\n"
    refused = cli("rmi", identifier[7:19])
    assert refused.code == 1
    assert refused.err == (
        f"Error response from daemon: conflict: unable to delete {identifier[7:19]} (must be "
        "forced) - image is referenced in multiple repositories\n"
    )
    assert cli("rmi", "-f", identifier[7:19]).ok().out.splitlines()[:3] == [
        "Untagged: x:latest",
        "Untagged: localhost:5000/y/z:latest",
        f"Deleted: {identifier}",
    ]
    assert os.listdir(cli.roots.data + "/blobs/sha256") == []


def test_load_and_save(cli, layer, tmp_path):
    archive = docker_archive([layer], tags=("a:1", "b/c:2"))
    assert cli("load", input=gzip.compress(archive)).ok().lines() == [
        "Loaded image: a:1",
        "Loaded image: b/c:2",
    ]
    saved = tmp_path / "out.tar"
    assert cli("save", "-o", saved, "a:1", "b/c:2").ok().out == ""
    with tarfile.open(saved) as tar:
        assert {"manifest.json", "index.json", "oci-layout"} <= set(tar.getnames())
    assert cli("save", "a:1", "b/c:2").ok().raw == saved.read_bytes()
    cli("rmi", "a:1", "b/c:2").ok()
    assert cli("images", "-q").out == ""
    assert cli("load", "-i", saved).ok().lines() == ["Loaded image: a:1", "Loaded image: b/c:2"]


def test_damaged_archives_leave_nothing(cli, layer, tmp_path):
    archive = docker_archive([layer])
    for words, data in (
        (("load",), archive[: len(archive) // 2]),
        (("load",), b"nonsense" * 1000),
        (("load",), b""),
        (("import", "-"), b"nonsense" * 1000),
    ):
        failed = cli(*words, input=data)
        assert (failed.code, failed.out, len(failed.err.splitlines())) == (1, "", 1), failed
    assert cli("images", "-aq").out == ""
    assert os.listdir(cli.roots.data + "/blobs/sha256") == []
    assert os.listdir(cli.roots.data + "/tmp") == []


def test_prune_keeps_what_a_container_uses(busybox, layer):
    cli = busybox
    cli("import", "-", "unused", input=layer).ok()
    cli("create", "--network", "none", "--name", "user", "busybox", "true").ok()
    assert cli("images", "--format", "{{.Repository}} {{.Containers}}").ok().lines() == [
        "unused 0",
        "busybox 1",
    ]
    before = held(cli)
    pruned = cli("image", "prune", "-af").ok().out
    assert pruned.startswith("Deleted Images:\nuntagged: unused:latest\ndeleted: sha256:")
    freed = before - held(cli)
    assert freed > 10_000  # the file, its tar, the configuration and the manifest
    assert pruned.endswith(f"\n\nTotal reclaimed space: {freed / 1000:.2f}kB\n")
    assert listed(cli) == ["busybox:latest"]
    refused = cli("rmi", "busybox")
    assert refused.code == 1
    assert 'unable to remove repository reference "busybox" (must force)' in refused.err


def test_events_tell_what_happened_to_images(cli, layer):
    cli("import", "-", "x", input=layer).ok()
    cli("rmi", "x").ok()
    words = ("events", "--since", "1h", "--until", "0s", "-f", "type=image")
    assert cli(*words, "--format", "{{.Action}}").ok().lines() == [
        "tag",
        "import",
        "untag",
        "delete",
    ]
    assert cli(*words, "-f", "event=tag").ok().out.endswith(" (name=x:latest)\n")
    assert cli(*words, "-f", "type=volume", "-f", "image=nope").out == ""
