"""cp's rules of paths, copies both ways, export and commit as commands."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import tempfile

import hypothesis
import pytest
from hypothesis import strategies as st


class TestArguments:
    @pytest.mark.parametrize(
        ("text", "want"),
        [
            ("c:/x", ("c", "/x")), ("/a:b", ("", "/a:b")), ("./a:b", ("", "./a:b")),
            ("a", ("", "a")), ("c:", ("c", "")), ("c:x:y", ("c", "x:y")), (":x", ("", "x")),
            ("..:x", ("", "..:x")),
        ],
    )
    def test_split(self, engine, text, want):
        assert engine.copy_arg_split(text) == want

    def test_neither_and_both(self, cli):
        for args, text in (
            (("a", "b"), "must specify at least one container source\n"),
            (("a:x", "b:y"), "copying between containers is not supported\n"),
            (("", "b:y"), "source can not be empty\n"),
            (("a:x", ""), "destination can not be empty\n"),
        ):
            done = cli("cp", *args)
            assert (done.code, done.err) == (1, text)


class TestPlan:
    @pytest.mark.parametrize(
        ("source", "target", "want"),
        [
            # source: (path, is_dir); target: (path, exists, is_dir)
            (("/s/f", False), ("/t", True, True), ("/t", [])),
            (("/s/f", False), ("/t/", True, True), ("/t/", [])),
            (("/s/f", False), ("/t", True, False), ("/", [(b"f", b"t")])),
            (("/s/f", False), ("/t/n", False, False), ("/t", [(b"f", b"n")])),
            (("/s/f", False), ("/t/n/", False, False), "no such directory"),
            (("/s/f", False), ("/t/n/.", False, False), "no such directory"),
            (("/s", True), ("/t", True, True), ("/t", [])),
            (("/s", True), ("/t", True, False), "cannot copy directory"),
            (("/s", True), ("/t/n", False, False), ("/t", [(b"s", b"n")])),
            (("/s", True), ("/t/n/", False, False), ("/t", [(b"s", b"n")])),
            (("/s/.", True), ("/t/n", False, False), ("/t", [(b".", b"n")])),
            (("/", True), ("/t/n", False, False), ("/t", [(b"", b"n")])),
        ],
    )
    def test_all_cases(self, engine, source, target, want):
        source = engine.CopyEnd(source[0], True, source[1])
        target = engine.CopyEnd(*target)
        if isinstance(want, str):
            with pytest.raises(engine.EngineError, match=want):
                engine.copy_plan(source, target)
        else:
            assert engine.copy_plan(source, target) == want

    def test_name_of_a_followed_link(self, engine):
        source = engine.CopyEnd("/s/real", True, False, "link")
        assert engine.copy_plan(source, engine.CopyEnd("/t", True, False))[1] == [(b"link", b"t")]
        assert engine.rename_end("/s/link/", "/s/real") == ("/s/real/", "link")
        assert engine.rename_end("/s/link/.", "/s/real") == ("/s/real/.", "")


class TestLocalEnds:
    def test_source(self, engine, tmp_path):
        (tmp_path / "d").mkdir()
        (tmp_path / "d/f").write_text("x")
        os.symlink("d", tmp_path / "l")
        top = str(tmp_path)
        found = engine.source_find(top + "/l", False)
        assert (found.path, found.is_dir, found.rename) == (top + "/l", False, "")
        found = engine.source_find(top + "/l", True)
        assert (found.path, found.is_dir, found.rename) == (top + "/d", True, "l")
        found = engine.source_find(top + "/l/", False)
        assert (found.path, found.is_dir, found.rename) == (top + "/d/", True, "l")
        found = engine.source_find(top + "/l/f", False)
        assert (found.path, found.is_dir, found.rename) == (top + "/d/f", False, "")
        with pytest.raises(engine.EngineError, match="^lstat .*/no: no such file or directory$"):
            engine.source_find(top + "/no", False)

    def test_target(self, engine, tmp_path):
        top = str(tmp_path)
        os.symlink("gone", tmp_path / "broken")
        os.symlink("round", tmp_path / "round")
        assert engine.target_find(top).is_dir
        found = engine.target_find(top + "/broken")
        assert (found.path, found.exists) == (top + "/gone", False)
        with pytest.raises(engine.EngineError, match="too many symlinks"):
            engine.target_find(top + "/round")
        with pytest.raises(engine.EngineError, match="^stat .*/no: no such file or directory$"):
            engine.target_find(top + "/no/x")


@pytest.fixture
def box(busybox):
    busybox("create", "--name", "box", "--network", "none", "busybox", "true").ok()
    return busybox


@pytest.mark.root
class TestCopy:
    def test_round_trip_of_everything(self, box, tmp_path):
        """Modes, owners, times, links, holes, attributes: in, out and in again are the same."""
        source = tmp_path / "tree"
        source.mkdir()
        (source / "plain").write_bytes(b"data")
        os.chmod(source / "plain", 0o4751)
        os.chown(source / "plain", 12, 34)
        os.chmod(source / "plain", 0o4751)
        os.link(source / "plain", source / "same")
        os.symlink("/etc/passwd", source / "link")
        os.mkfifo(source / "fifo", 0o640)
        with open(source / "holes", "wb") as file:
            file.seek(50 << 20)
            file.write(b"end")
        os.setxattr(source / "plain", "user.note", b"hi")
        (source / ("n" * 200)).write_text("long")
        (source / "z\u00e4hler").write_text("")
        os.utime(source / "plain", (1000000000, 1000000000))
        box("cp", str(source), "box:/tmp").ok()
        box("cp", "box:/tmp/tree", str(tmp_path / "back")).ok()
        packed = [box("cp", f"box:/tmp/{name}", "-").ok().raw for name in ("tree",)]
        box("cp", "-", "box:/home", input=packed[0]).ok()
        assert box("cp", "box:/home/tree", "-").ok().raw == packed[0]
        assert len(packed[0]) < 1 << 20
        back = tmp_path / "back"
        assert os.stat(back / "holes").st_size == (50 << 20) + 3
        assert os.stat(back / "holes").st_blocks < 1000
        assert os.stat(back / "plain").st_mode == 0o104751
        assert os.stat(back / "plain").st_mtime == 1000000000
        assert os.getxattr(back / "plain", "user.note") == b"hi"
        assert os.path.samefile(back / "plain", back / "same")
        assert os.readlink(back / "link") == "/etc/passwd"
        with tarfile.open(fileobj=io.BytesIO(packed[0])) as tar:
            assert (tar.getmember("tree/plain").uid, tar.getmember("tree/plain").gid) == (12, 34)

    def test_progress_is_quiet_without_a_terminal(self, box, tmp_path):
        assert box("cp", "box:/etc/passwd", str(tmp_path)).ok().err == ""
        told = box("cp", "--quiet=false", "box:/etc/passwd", str(tmp_path)).ok().err
        assert told == f"Successfully copied 2.05kB to {tmp_path}\n"
        told = box("cp", "--quiet=false", str(tmp_path / "passwd"), "box:/tmp/").ok().err
        assert told == "Successfully copied 2.05kB to box:/tmp/\n"

    def test_progress_on_a_terminal(self, box, tmp_path):
        """Shown once the source is known to be there, and gone when the last line comes."""
        (tmp_path / "f").write_text("x")
        for name, code, told in (
            ("f", 0, b"\x1b[sPreparing to copy...\x1b[?25l\x1b[u\x1b[2KCopying to container - 0B"
                     b"\x1b[?25h\x1b[u\x1b[2KSuccessfully copied 2.05kB to box:/tmp\r\n"),
            ("gone", 1, f"lstat {tmp_path}/gone: no such file or directory\r\n".encode()),
        ):
            master, slave = os.openpty()
            process = box.popen("cp", str(tmp_path / name), "box:/tmp", stdin=slave, stdout=slave,
                                stderr=slave)
            assert process.wait(60) == code
            os.close(slave)
            assert os.read(master, 4096) == told
            os.close(master)

    def test_archive_mode_gives_to_the_user(self, busybox, tmp_path):
        (tmp_path / "f").write_text("x")
        busybox("create", "--name", "own", "--user", "user:audio", "--network", "none",
                "busybox").ok()
        busybox("cp", "-a", str(tmp_path / "f"), "own:/tmp/a").ok()
        busybox("cp", str(tmp_path / "f"), "own:/tmp/b").ok()
        with tarfile.open(fileobj=io.BytesIO(busybox("cp", "own:/tmp", "-").raw)) as tar:
            owners = {info.name: (info.uid, info.gid) for info in tar}
        assert owners["tmp/a"] == (1000, 29) and owners["tmp/b"] == (os.getuid(), os.getgid())

    def test_refusals(self, box, tmp_path):
        (tmp_path / "f").write_text("x")
        (tmp_path / "d").mkdir()
        (tmp_path / "passwd").mkdir()
        file, directory = str(tmp_path / "f"), str(tmp_path / "d")
        for args, text in (
            (("box:/nope", directory), "Error response from daemon: Could not find the file /nope "
                                       "in container box"),
            (("box:/etc", "/nope/x"), 'invalid output path: directory "/nope" does not exist'),
            (("box:/etc", "/dev/null"), 'invalid output path: "/dev/null" must be a directory or a '
                                        "regular file: got a device"),
            (("box:/etc", file), "cannot copy directory"),
            (("box:/etc/passwd", str(tmp_path)), f'cannot overwrite directory "{tmp_path}/passwd" '
                                                 f'with non-directory "{tmp_path}"'),
            ((file, "box:/nope/"), "no such directory"),
            ((file, "box:/nope/x"), "Error response from daemon: Could not find the file /nope in "
                                    "container box"),
            ((directory, "box:/etc/passwd"), "cannot copy directory"),
            ((file, "gone:/x"), "Error response from daemon: No such container: gone"),
            ((file, "gone:/"), "no such directory"),
            (("-", "box:/etc/passwd"), 'destination "box:/etc/passwd" must be a directory'),
        ):
            done = box("cp", *args)
            assert (done.code, done.err) == (1, text + "\n"), args

    def test_follow_link(self, box, tmp_path):
        os.symlink("/etc", tmp_path / "etc")
        with tarfile.open(tmp_path / "t.tar", "w") as tar:
            tar.add(tmp_path / "etc", "there")
            for name, target in (("deep", "there/passwd"),):
                info = tarfile.TarInfo(name)
                info.type, info.linkname = tarfile.SYMTYPE, target
                tar.addfile(info)
        box("cp", "-", "box:/tmp", stdin=open(tmp_path / "t.tar", "rb")).ok()
        box("cp", "box:/tmp/there", str(tmp_path / "l")).ok()
        assert os.readlink(tmp_path / "l") == "/etc"
        box("cp", "-L", "box:/tmp/there", str(tmp_path / "d")).ok()
        assert "passwd" in os.listdir(tmp_path / "d")
        box("cp", "-L", "box:/tmp/deep", str(tmp_path)).ok()
        assert (tmp_path / "deep").read_bytes().startswith(b"root:")


@pytest.mark.root
class TestExport:
    def test_to_file_and_stdout(self, box, tmp_path):
        box("export", "-o", str(tmp_path / "e.tar"), "box").ok()
        data = (tmp_path / "e.tar").read_bytes()
        assert data == box("export", "box").ok().raw
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            names = tar.getnames()
        assert "bin/busybox" in names and "." not in names and names == sorted(
            names, key=lambda name: name.split("/"))
        assert os.stat(tmp_path / "e.tar").st_mode & 0o777 == 0o600

    def test_refusals(self, box, tmp_path):
        done = box("export", "-o", "/nope/x", "box")
        assert (done.code, done.err) == (1, "failed to export container: invalid output path: stat "
                                            "/nope: no such file or directory\n")
        assert box("export", "gone").err == (
            "Error response from daemon: No such container: gone\n")
        assert not os.path.exists(tmp_path / "x")

    def test_round_trip(self, box, tmp_path):
        box("export", "-o", str(tmp_path / "e.tar"), "box").ok()
        image = box("import", str(tmp_path / "e.tar"), "again").ok().out.strip()
        box("create", "--name", "two", "--network", "none", "again", "true").ok()
        assert box("export", "two").raw == (tmp_path / "e.tar").read_bytes()
        assert image.startswith("sha256:")


NAMES = st.sampled_from(["a", "b", "c", ".h", "x y", "\u00e4"])
TREES = st.recursive(
    st.sampled_from(["file", "text", "link"]),
    lambda inner: st.dictionaries(NAMES, inner, max_size=3), max_leaves=6)


def tree_make(path, tree, links=True):
    if isinstance(tree, dict):
        os.mkdir(path)
        for name, inner in tree.items():
            tree_make(os.path.join(path, name), inner, links)
    elif tree == "link" and links:
        os.symlink("somewhere", path)
    else:
        with open(path, "w") as file:
            file.write(tree)


def tree_read(path):
    """The same tree back, with modes."""
    mode = os.lstat(path).st_mode
    if os.path.islink(path):
        return mode, os.readlink(path)
    if os.path.isdir(path):
        return mode, {name: tree_read(os.path.join(path, name)) for name in os.listdir(path)}
    with open(path) as file:
        return mode, file.read()


def copied(engine, source, target):
    """What `docker cp` does of it, here both ends local; whether it went well."""
    try:
        start = engine.source_find(source, False)
        directory, renames = engine.copy_plan(start, engine.target_find(target))
        root = os.open(directory, os.O_RDONLY)
        try:
            engine.tree_receive(root, engine.stream_of(engine._source_pack(start, renames)),
                                engine.Reception(directory, owner=False, strict=True))
        finally:
            os.close(root)
    except (engine.EngineError, OSError):
        return False
    return True


@hypothesis.settings(max_examples=300)
@hypothesis.given(
    source=TREES, source_end=st.sampled_from(["", "/", "/."]),
    target=st.none() | TREES, target_end=st.sampled_from(["", "/", "/.", "/new", "/new/"]),
    by_link=st.booleans())
def test_paths_mean_what_they_mean_to_cp(engine, source, source_end, target, target_end, by_link):
    """Docker's rules are those of `cp -a`, trailing slashes and all."""
    trees, results = [], []
    for copy in (
        lambda start, end: copied(engine, start, end),
        lambda start, end: subprocess.run(["cp", "-a", start, end], check=False,
                                          stderr=subprocess.DEVNULL).returncode == 0,
    ):
        with tempfile.TemporaryDirectory() as base:
            tree_make(base + "/src", source)
            if by_link:
                os.rename(base + "/src", base + "/real")
                os.symlink("real", base + "/src")
            if target is not None:
                tree_make(base + "/dst", target, links=False)
            results.append(copy(base + "/src" + source_end, base + "/dst" + target_end))
            trees.append(tree_read(base))
    hypothesis.event(f"copied: {results[0]}")
    assert results[0] == results[1]
    if results[0]:
        assert trees[0] == trees[1]
