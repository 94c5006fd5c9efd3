"""drivers: which one a data root gets; roots copied from layers, and what was changed in them."""

from __future__ import annotations

import os
import re
import subprocess

import pytest
from conftest import Cli, Roots, end_launchers


@pytest.fixture
def store(engine, tmp_path):
    return engine.Store(str(tmp_path / "data"), str(tmp_path / "run"))


@pytest.fixture
def layers(tmp_path):
    """call({path: content or None for a directory}, ...) -> paths; the first is the topmost."""

    def make(*trees):
        paths = []
        for number, tree in enumerate(trees):
            top = tmp_path / f"layer{number}"
            top.mkdir()
            for name, content in tree.items():
                path = top / name
                path.parent.mkdir(parents=True, exist_ok=True)
                if content is None:
                    path.mkdir(exist_ok=True)
                else:
                    path.write_text(content)
            paths.append(str(top))
        return paths

    return make


@pytest.fixture
def copied(engine, tmp_path):
    """call(layers, **options) -> the directory that they were copied to."""

    def copy(paths, **options):
        root = tmp_path / "root"
        root.mkdir()
        engine.root_copy(paths, str(root), **options)
        return root

    return copy


@pytest.fixture
def changes(engine):
    """call(layers, root) -> {path: kind} of what is changed in it, the directories above too."""

    def find(paths, root):
        fd = os.open(root, engine.O_DIR)
        try:
            found = engine.changes_above(engine.root_changes(paths, fd))
        finally:
            os.close(fd)
        return {os.fsdecode(path): kind for path, kind in found}

    return find


def listed(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


# ---- which driver


def test_a_driver_is_found_out_once_and_noted(engine, store, monkeypatch):
    asked = []
    monkeypatch.setattr(engine, "_overlay_refusal", lambda store: asked.append(1) or "it is old")
    assert engine.driver_of(store) == engine.driver_of(store) == "vfs"
    assert engine.driver_why(store) == "it is old" and asked == [1]
    again = engine.Store(store.data, store.run)
    assert engine.driver_of(again) == "vfs" and asked == [1]
    text = engine.driver_warning(again)
    assert text.startswith(f"no overlayfs for {store.data}: it is old. Every container")


def test_a_driver_that_was_asked_for_needs_no_reason(engine, store):
    engine.driver_ask(store, "vfs")
    assert (engine.driver_of(store), engine.driver_why(store)) == ("vfs", "")
    with pytest.raises(engine.InvalidParameter, match="is of the storage driver vfs, not overlay2"):
        engine.driver_ask(store, "overlay2")


def test_overlay_that_does_not_work_is_refused_in_docker_s_words(engine, store, monkeypatch):
    monkeypatch.setattr(engine, "_overlay_refusal", lambda store: "no")
    with pytest.raises(engine.EngineError, match="graphdriver: driver not supported: overlay2: no"):
        engine.driver_ask(store, "overlay2")
    assert engine.driver_of(store) == "vfs"


def test_layers_of_an_earlier_build_are_of_overlay(engine, store, monkeypatch):
    monkeypatch.setattr(engine, "_overlay_refusal", lambda store: "no")
    with store.write() as db:
        db.execute("INSERT INTO layers VALUES(1, 'c', 'd', NULL, 'b', 1, 'm', 1, 1)")
    os.mkdir(store.path("layers", "1"))
    assert engine.driver_of(store) == "overlay2"


def test_who_may_not_mount_notes_nothing(engine, store, monkeypatch):
    monkeypatch.setattr(engine, "_overlay_refusal", lambda store: None)
    assert engine.driver_of(store) == "overlay2"
    assert store.row("SELECT 1 FROM meta WHERE key='driver'") is None


@pytest.mark.parametrize(
    "failure, why",
    [
        (OSError(19, "x"), "this kernel has no overlayfs"),
        (OSError(22, "x", "/a"), r"overlayfs does not work on \w+ \(invalid argument\)"),
        (PermissionError(1, "x"), None),
    ],
)
def test_what_the_kernel_says_of_a_trial(engine, store, monkeypatch, failure, why):
    def refuse(*args):
        raise failure

    monkeypatch.setattr(engine, "overlay_mount", refuse)
    store.roots_make()
    found = engine._overlay_refusal(store)
    assert found is None if why is None else re.fullmatch(why, found)
    assert os.listdir(store.path("tmp")) == []


def test_a_listing_without_types(engine, store, monkeypatch):
    class Entry:
        name = "f"

        def is_dir(self, follow_symlinks):
            return False

    class Listing(list):
        def __enter__(self):
            return self

        def __exit__(self, *failure):
            pass

    store.roots_make()
    real = os.scandir
    monkeypatch.setattr(
        os, "scandir", lambda at: Listing([Entry()]) if str(at).endswith("/low") else real(at)
    )
    assert "has no d_type" in engine._overlay_refusal(store)


# ---- copies


def test_whiteouts_hide_what_is_below_and_nothing_else(layers, copied):
    paths = layers(
        {"d/new": "top", ".wh.gone": "", "kept/.wh.one": "", "re/.wh..wh..opq": "", "re/x": "1"},
        {"gone/again": "1", "kept/one": "1", "kept/two": "1", "was": "file"},
        {"d/old": "low", "gone/a": "1", "kept/three": "1", "re/y": "1", "was/a/b": "1"},
    )
    root = copied(paths)
    assert listed(root) == [
        "d", "d/new", "d/old", "kept", "kept/three", "kept/two", "re", "re/x", "was",
    ]  # fmt: skip
    assert (root / "was").read_text() == "file"


def test_a_file_that_was_replaced_by_a_directory_merges_with_nothing(layers, copied):
    paths = layers({"a/new": "1"}, {"a": "file"}, {"a/old": "1"})
    assert listed(copied(paths)) == ["a", "a/new"]


def test_files_are_copied_as_they_are(layers, copied):
    paths = layers({"f": "text", "d": None, "run": "x"})
    top = paths[0]
    os.chmod(top + "/d", 0o1770)
    os.chmod(top + "/run", 0o4755)
    os.link(top + "/f", top + "/d/other")
    os.symlink("/nowhere", top + "/link")
    os.mkfifo(top + "/pipe", 0o640)
    os.setxattr(top + "/f", "user.note", b"kept")
    for name in ("f", "d", "run", "pipe"):
        os.utime(f"{top}/{name}", ns=(5, 1_500_000_000_123_456_789))
    root = copied(paths)
    one, other = (root / "f").lstat(), (root / "d/other").lstat()
    assert one.st_ino == other.st_ino and one.st_nlink == 2
    assert one.st_ino != os.stat(top + "/f").st_ino
    assert os.readlink(root / "link") == "/nowhere"
    assert os.getxattr(root / "f", "user.note") == b"kept"
    modes = [(root / name).lstat().st_mode for name in ("d", "run", "pipe")]
    assert modes == [0o041770, 0o104755, 0o010640]
    assert {(root / name).lstat().st_mtime_ns for name in ("f", "d", "run", "pipe")} == {
        1_500_000_000_123_456_789
    }


@pytest.mark.parametrize("lacks", ["nothing", "copy_file_range", "SEEK_DATA"])
def test_holes_stay_holes_and_content_is_whole(layers, copied, engine, monkeypatch, lacks):
    paths = layers({"hole": "", "small": "text"})
    with open(paths[0] + "/hole", "r+b") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"x" * 700000)
    if lacks == "copy_file_range":
        monkeypatch.delattr(os, "copy_file_range")
    elif lacks == "SEEK_DATA":

        def seek(fd, at, how, real=os.lseek):
            if how in (os.SEEK_DATA, os.SEEK_HOLE):
                raise OSError(22, "no")
            return real(fd, at, how)

        monkeypatch.setattr(os, "lseek", seek)
    root = copied(paths)
    assert (root / "small").read_text() == "text"
    subprocess.run(["cmp", paths[0] + "/hole", root / "hole"], check=True)
    if lacks != "SEEK_DATA":
        assert (root / "hole").stat().st_blocks * 512 < 4 << 20


def test_a_root_that_is_only_read_shares_its_files(layers, copied):
    paths = layers({"d/f": "1"}, {"d/g": "2"})
    os.symlink("f", paths[0] + "/d/link")
    root = copied(paths, linked=True)
    assert (root / "d/f").stat().st_ino == os.stat(paths[0] + "/d/f").st_ino
    assert (root / "d/g").stat().st_ino == os.stat(paths[1] + "/d/g").st_ino
    assert os.readlink(root / "d/link") == "f"


# ---- changes


def test_a_fresh_copy_has_no_changes(layers, copied, changes):
    paths = layers({"a/b": "1", ".wh.c": ""}, {"c": "2", "a/d/e": "3"})
    assert changes(paths, copied(paths)) == {}


def test_changes(layers, copied, changes):
    old = {f"{name}/f": "1" for name in ("edit", "drop", "to-file", "mode", "deep/er")}
    paths = layers({**old, "to-dir": "1"})
    root = copied(paths)
    (root / "edit/f").write_text("22")
    (root / "drop/f").unlink()
    (root / "drop").rmdir()
    (root / "to-file/f").unlink()
    (root / "to-file").rmdir()
    (root / "to-file").write_text("file")
    (root / "to-dir").unlink()
    (root / "to-dir").mkdir()
    (root / "to-dir/in").write_text("1")
    (root / "mode").chmod(0o700)
    (root / "deep/er/new").mkdir()
    (root / "deep/er/new/f").write_text("1")
    assert changes(paths, root) == {
        "/deep": 0, "/deep/er": 0, "/deep/er/new": 1, "/deep/er/new/f": 1, "/drop": 2, "/edit": 0,
        "/edit/f": 0, "/mode": 0, "/to-dir": 0, "/to-dir/in": 1, "/to-file": 0,
    }  # fmt: skip


def test_changes_are_packed_as_a_layer(engine, layers, copied):
    paths = layers({"a/gone": "1", "a/edit": "1", "top": "1"})
    root = copied(paths)
    (root / "a/gone").unlink()
    (root / "top").unlink()
    (root / "a/edit").write_text("changed")
    os.link(root / "a/edit", root / "a/same")
    fd = os.open(root, engine.O_DIR)
    found = engine.changes_above(engine.root_changes(paths, fd))
    data = b"".join(engine.changes_pack(fd, found))
    assert engine.changes_size(fd, dict(found)) == 7
    os.close(fd)
    chunks = [data]
    reader = engine.TarReader(lambda size: chunks.pop() if chunks else b"")
    entries = [(entry.name, entry.kind, entry.link) for entry in reader.entries()]
    assert entries == [
        (b"a/", b"5", b""), (b"a/edit", b"0", b""), (b"a/.wh.gone", b"0", b""),
        (b"a/same", b"1", b"a/edit"), (b".wh.top", b"0", b""),
    ]  # fmt: skip


def test_a_layer_unpacked_with_marks_keeps_its_whiteouts(engine, tmp_path):
    names = [b"d/.wh.x", b"d/.wh..wh..opq", b"d/.wh..wh.aufs", b"d/y", b"d/.wh.y"]
    chunks = [b"".join(engine.tar_header(engine.TarEntry(name)) for name in names) + bytes(1024)]
    engine.tree_unpack(str(tmp_path), lambda size: chunks.pop() if chunks else b"", marks=True)
    assert listed(tmp_path) == ["d", "d/.wh..wh..opq", "d/.wh.x", "d/.wh.y", "d/y"]


# ---- whole commands


@pytest.fixture
def bare(pyz, tmp_path, busybox_tar):
    """A Cli whose data root is on an overlay, where no other overlay can have its upper layer."""
    for name in ("low", "up", "work", "merged"):
        (tmp_path / name).mkdir()
    names = f"lowerdir={tmp_path}/low,upperdir={tmp_path}/up,workdir={tmp_path}/work"
    merged = tmp_path / "merged"
    subprocess.run(["mount", "-t", "overlay", "-o", names, "overlay", merged], check=True)
    cli = Cli(pyz, Roots(merged))
    cli("load", "-i", busybox_tar).ok()
    yield cli
    for id in cli("ps", "-aq").lines():
        cli("rm", "-f", id)
    end_launchers(cli.roots.run)
    subprocess.run(["umount", "-l", merged], check=True)


@pytest.mark.root
def test_containers_where_there_is_no_overlay(bare):
    script = "echo 1 >/new; rm /bin/vi; mkdir -p /d/e; ln /new /d/e/link; echo $?"
    done = bare("run", "--network=none", "--name=one", "busybox", "sh", "-c", script)
    assert (done.code, done.out) == (0, "0\n"), done
    assert bare("info", "-f", "{{.Driver}}").out == "vfs\n"
    assert "no overlayfs for" in bare("info").err
    wanted = "C /bin\nD /bin/vi\nA /d\nA /d/e\nA /d/e/link\nA /new\n"
    assert sorted(bare("diff", "one").out.split("\n")) == sorted(wanted.split("\n"))
    assert bare("inspect", "-f", "{{.Driver}} {{.GraphDriver.Data}}", "one").out == "vfs <nil>\n"
    assert bare("commit", "one", "two").code == 0
    script = "cat /d/e/link; ls /bin/vi"
    done = bare("run", "--rm", "--network=none", "--read-only", "two", "sh", "-c", script)
    assert done.code == 1 and done.out == "1\n", done
    done = bare("cp", "one:/new", "-")
    assert done.code == 0
    assert bare("start", "one").code == 0
    size = bare("ps", "-as", "--format", "{{.Size}}").out
    assert size.startswith("2B (virtual "), size
    assert bare("container", "prune", "-f").out.strip().endswith("B")
