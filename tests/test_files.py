"""files: replacing, locking, removing, and where the roots are."""

import errno
import os
import subprocess
import sys
import threading

import pytest


def test_roots_come_from_option_environment_default_in_that_order(engine, monkeypatch, tmp_path):
    monkeypatch.delenv("ENGINE_DATA_ROOT", raising=False)
    monkeypatch.delenv("ENGINE_RUN_ROOT", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert engine.roots_find(None, None) == ("/var/lib/engine", "/run/engine")
    monkeypatch.setenv("ENGINE_DATA_ROOT", str(tmp_path / "env"))
    data, run = engine.roots_find(None, None)
    assert data == str(tmp_path / "env")
    assert run.startswith("/run/engine/") and len(run.rpartition("/")[2]) == 12
    assert engine.roots_find(str(tmp_path / "option"), None)[0] == str(tmp_path / "option")
    assert engine.roots_find(None, None)[1] != engine.roots_find(str(tmp_path), None)[1]
    monkeypatch.setenv("ENGINE_RUN_ROOT", str(tmp_path / "run"))
    assert engine.roots_find(None, None)[1] == str(tmp_path / "run")


def test_an_ordinary_user_has_roots_of_their_own(engine, monkeypatch):
    for name in ("ENGINE_DATA_ROOT", "ENGINE_RUN_ROOT", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/joe")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert engine.roots_find(None, None) == (
        "/home/joe/.local/share/engine",
        "/run/user/1000/engine",
    )


def test_sha256_is_sha256(engine):
    import hashlib

    assert engine.sha256(b"abc").hexdigest() == hashlib.sha256(b"abc").hexdigest()


def test_write_replaces_with_mode_and_leaves_nothing_beside(engine, tmp_path):
    path = str(tmp_path / "file")
    engine.file_write(path, b"one", 0o600)
    engine.file_write(path, b"two", 0o640, sync=True)
    assert engine.file_read(path) == b"two"
    assert os.stat(path).st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["file"]


def test_a_failed_write_leaves_the_old_content(engine, tmp_path, monkeypatch):
    path = str(tmp_path / "file")
    engine.file_write(path, b"old")

    def full(fd, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(engine, "write_all", full)
    with pytest.raises(OSError, match="No space"):
        engine.file_write(path, b"new")
    assert engine.file_read(path) == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_lock_keeps_others_out_and_ends_with_its_process(engine, tmp_path):
    path = str(tmp_path / "lock")
    program = (
        f"import sys; sys.path.insert(0, {os.path.dirname(engine.__file__)!r}); import engine\n"
        f"l = engine.lock_file({path!r}); l.__enter__(); print('held', flush=True)\n"
        "sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-B", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(BlockingIOError), engine.lock_file(path, block=False):
        pass
    holder.kill()
    holder.wait()
    holder.stdin.close()
    holder.stdout.close()
    with engine.lock_file(path, block=False):
        pass


def test_a_lock_whose_file_was_removed_meanwhile_is_taken_again(engine, tmp_path):
    path = str(tmp_path / "lock")
    first = engine.lock_file(path)
    first.__enter__()
    entered = threading.Event()

    def second():
        with engine.lock_file(path):
            entered.set()
            assert os.path.exists(path)

    thread = threading.Thread(target=second)
    thread.start()
    os.unlink(path)
    first.__exit__()
    thread.join(5)
    assert entered.is_set()


def test_shared_locks_go_together(engine, tmp_path):
    path = str(tmp_path / "lock")
    with engine.lock_file(path, shared=True), engine.lock_file(path, block=False, shared=True):
        with pytest.raises(BlockingIOError), engine.lock_file(path, block=False):
            pass


@pytest.mark.root
def test_tree_remove_takes_everything_and_follows_nothing(engine, tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("x")
    tree = tmp_path / "tree"
    deep = tree
    for _ in range(20):
        deep = deep / "d"
    deep.mkdir(parents=True)
    (deep / "file").write_text("x")
    (tree / "link").symlink_to(kept)
    (tree / "dangling").symlink_to("nowhere")
    os.mkfifo(tree / "fifo")
    os.chmod(deep, 0)
    engine.tree_remove(str(tree))
    assert not tree.exists()
    assert (kept / "file").read_text() == "x"
    engine.tree_remove(str(tree))
    engine.tree_remove(str(tmp_path / "no" / "such"))
    (tmp_path / "link").symlink_to(kept)
    engine.tree_remove(str(tmp_path / "link"))
    assert (kept / "file").exists() and not (tmp_path / "link").is_symlink()


def test_dir_ensure_makes_parents_and_accepts_what_is_there(engine, tmp_path):
    path = str(tmp_path / "a" / "b" / "c")
    assert engine.dir_ensure(path, 0o700) == path
    assert os.stat(path).st_mode & 0o777 == 0o700
    assert engine.dir_ensure(path) == path


def test_two_that_remove_the_same_tree(engine, tmp_path):
    for _ in range(30):
        for number in range(20):
            (tmp_path / "tree" / str(number) / "d").mkdir(parents=True)
        failed = []

        def work(failed=failed):
            try:
                engine.tree_remove(str(tmp_path / "tree"))
            except OSError as failure:
                failed.append(failure)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == [] and not (tmp_path / "tree").exists()


@pytest.mark.parametrize("path", ["/proc/x", "/proc/x/y", ""])
def test_dir_ensure_ends_where_nothing_can_be_made(engine, path):
    with pytest.raises(FileNotFoundError):
        engine.dir_ensure(path)


def test_tree_remove_of_nothing_on_a_read_only_file_system(engine, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(engine, "_tree_remove_at", refuse)
    engine.tree_remove(str(tmp_path / "never-made"))
    with pytest.raises(OSError, match="Read-only"):
        engine.tree_remove(str(tmp_path))
