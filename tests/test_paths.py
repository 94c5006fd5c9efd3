"""paths: making a path inside a root, watching a directory."""

import errno
import os
import time

import pytest


def test_missing_parents_are_made_and_stay_inside(engine, tmp_path):
    root = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    os.close(engine.path_make(root, "/a/b/c"))
    assert (tmp_path / "a/b/c").is_dir()
    os.close(engine.path_make(root, "/a/b/file", is_dir=False))
    assert (tmp_path / "a/b/file").is_file()
    os.close(engine.path_make(root, "../../outside"))
    assert (tmp_path / "outside").is_dir()
    assert not (tmp_path.parent / "outside").exists()
    os.close(root)


def test_links_are_followed_inside_only(engine, tmp_path):
    inside = tmp_path / "root"
    inside.mkdir()
    (tmp_path / "secret").mkdir()
    (inside / "abs").symlink_to("/target")
    (inside / "up").symlink_to("../secret")
    root = os.open(inside, os.O_RDONLY | os.O_DIRECTORY)
    (inside / "target").mkdir()
    os.close(engine.path_make(root, "/abs/x"))
    assert (inside / "target/x").is_dir()
    (inside / "secret").mkdir()
    os.close(engine.path_make(root, "/up/y"))
    assert (inside / "secret/y").is_dir() and not (tmp_path / "secret/y").exists()
    os.close(root)


def test_a_dangling_link_is_no_way_out(engine, tmp_path):
    inside = tmp_path / "root"
    inside.mkdir()
    (inside / "link").symlink_to("/nowhere")
    root = os.open(inside, os.O_RDONLY | os.O_DIRECTORY)
    (inside / "up").symlink_to("../../over/there")
    for path in ("/link", "/up/x"):
        os.close(engine.path_make(root, path))
    assert (inside / "nowhere").is_dir() and (inside / "over/there/x").is_dir()
    assert not os.path.lexists("/nowhere")
    os.close(root)


def test_a_watch_wakes_up_and_times_out(engine, tmp_path):
    watch = engine.Watch(str(tmp_path), engine.IN_CREATE)
    begin = time.monotonic()
    assert watch.wait(0.05) is False
    assert time.monotonic() - begin >= 0.04
    (tmp_path / "x").write_text("")
    assert watch.wait(5) is True
    read, write = os.pipe()
    os.write(write, b"x")
    assert watch.wait(5, read) is False
    for fd in (read, write):
        os.close(fd)
    watch.close()


def test_watching_what_is_not_there_names_it(engine, tmp_path):
    with pytest.raises(FileNotFoundError) as refused:
        engine.Watch(str(tmp_path / "none"), engine.IN_CREATE)
    assert refused.value.filename == str(tmp_path / "none")


@pytest.mark.parametrize("by_libc", [False, True])
def test_extended_attributes_with_and_without_those_of_os(engine, tmp_path, monkeypatch, by_libc):
    file = tmp_path / "file"
    file.write_bytes(b"")
    (tmp_path / "link").symlink_to("file")
    try:
        os.setxattr(file, "user.probe", b"")
    except OSError:
        pytest.skip("this file system keeps no user.*")
    if by_libc:                                 # a Python that was linked with musl
        for name in ("getxattr", "listxattr", "setxattr"):
            monkeypatch.delattr(os, name)
    engine.xattr_set(os.fsencode(file), b"user.one", b"a\0b")
    fd = os.open(file, os.O_RDWR)
    engine.xattr_set(fd, "user.two", b"")
    assert sorted(engine.xattr_list(fd)) == ["user.one", "user.probe", "user.two"]
    assert engine.xattr_list(tmp_path / "link") == []
    assert len(engine.xattr_list(str(tmp_path / "link"), True)) == 3
    assert engine.xattr_get(fd, "user.one") == engine.xattr_get(str(file), "user.one") == b"a\0b"
    assert engine.xattr_get(str(tmp_path / "link"), "user.two", True) == b""
    for where in (str(tmp_path / "link"), fd):
        with pytest.raises(OSError) as refused:
            engine.xattr_get(where, "user.none")
        assert refused.value.errno in (errno.ENODATA, errno.EPERM)
    os.close(fd)
