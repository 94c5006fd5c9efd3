"""Unpacking into a directory and packing one: fidelity, whiteouts, nothing outside the root."""

from __future__ import annotations

import hashlib
import io
import os
import random
import stat
import subprocess
import tarfile

import engine
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FILE, LINK, SYM, CHR, DIR, FIFO = (
    tarfile.REGTYPE,
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
)


def tar_of(*members):
    """A tar of (name, type, content or link[, attributes])."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, content, *extra in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            info.mode = 0o755 if kind == DIR else 0o644
            if kind in (SYM, LINK):
                info.linkname, content = content, b""
            info.size = len(content)
            for key, value in (extra[0] if extra else {}).items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


@pytest.fixture
def root(tmp_path):
    (tmp_path / "outside").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "root").mkdir()
    yield tmp_path / "root"
    assert (tmp_path / "outside").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["out", "outside", "root"]
    assert os.listdir(tmp_path / "out") == []
    fds = [
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.islink(f"/proc/self/fd/{fd}")
    ]
    assert not [path for path in fds if path.startswith(str(tmp_path))]


def unpack(root, *members):
    data = members[0] if isinstance(members[0], bytes) else tar_of(*members)
    return engine.tree_unpack(str(root), io.BytesIO(data).read)


def tree(root):
    """{path: what it is} of a directory."""
    found = {}
    for top, dirs, files in os.walk(root):
        for name in dirs + files:
            path = os.path.join(top, name)
            there = os.lstat(path)
            what = [stat.filemode(there.st_mode), there.st_uid, there.st_gid, there.st_mtime_ns]
            if stat.S_ISREG(there.st_mode):
                with open(path, "rb") as file:
                    what += [hashlib.sha256(file.read()).hexdigest(), there.st_nlink]
            elif stat.S_ISLNK(there.st_mode):
                what.append(os.readlink(path))
            elif not stat.S_ISDIR(there.st_mode):
                what.append(there.st_rdev)
            what.append(
                {
                    key: os.getxattr(path, key, follow_symlinks=False)
                    for key in os.listxattr(path, follow_symlinks=False)
                }
            )
            found[os.path.relpath(path, root)] = what
    return found


def sample(path):
    """A tree with one of everything."""
    os.makedirs(path / "d/sub")
    (path / "d/file").write_bytes(b"content" * 1000)
    (path / "large").write_bytes(random.Random(3).getrandbits(8 * 700_000).to_bytes(700_000, "big"))
    (path / "empty").touch()
    os.link(path / "d/file", path / "hard")
    os.symlink("../nowhere", path / "d/link")
    os.symlink("/etc/passwd", path / "absolute")
    os.mkfifo(path / "fifo")
    os.mknod(path / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.chmod(path / "null", 0o666)
    os.mknod(path / "disk", 0o660 | stat.S_IFBLK, os.makedev(259, 70000))
    (path / "setuid").write_bytes(b"x")
    os.chown(path / "setuid", 3, 4)
    os.chmod(path / "setuid", 0o6755)
    os.setxattr(path / "d/file", "user.note", b"\0binary\n=")
    os.setxattr(
        path / "setuid",
        "security.capability",
        bytes.fromhex("0100000200040000000000000000000000000000"),
    )
    os.setxattr(path / "d", "user.dir", b"1")
    os.lchown(path / "d/link", 7, 8)
    (path / ("n" * 200)).write_bytes(b"long")
    (path / "ümlaut").write_bytes(b"u")
    os.close(os.open(os.fsencode(path) + b"/\xff\xfe", os.O_CREAT | os.O_WRONLY))
    os.chmod(path / "d/sub", 0o2775)
    for name in ("d/sub", "d/file", "d"):
        os.utime(path / name, ns=(5, 1_600_000_000_123_456_789))
    os.utime(path / "d/link", ns=(5, 1_500_000_000_000_000_001), follow_symlinks=False)


@pytest.mark.root
@pytest.mark.parametrize("own", ["plain", "setgid", "group"])
def test_owners_in_directories_that_give_their_group(root, own):
    if own == "setgid":
        root.chmod(0o2755)
    elif own == "group":
        os.chown(root, 0, 9)
    unpack(
        root,
        ("a", FILE, b""),
        ("mine", FILE, b"", {"uid": 5, "gid": 6}),
        ("d", DIR, b"", {"mode": 0o2775, "gid": 7}),
        ("d/a", FILE, b"x"),
        ("d/mine", FILE, b"x", {"gid": 8}),
        ("d/sub", DIR, b""),
        ("d/sub/a", FILE, b""),
        ("z", FILE, b""),
    )
    found = {name: (root / name).stat() for name in ("a", "mine", "d", "d/a", "d/mine", "d/sub",
                                                     "d/sub/a", "z")}
    assert {name: (there.st_uid, there.st_gid) for name, there in found.items()} == {
        "a": (0, 0), "mine": (5, 6), "d": (0, 7), "d/a": (0, 0), "d/mine": (0, 8), "d/sub": (0, 0),
        "d/sub/a": (0, 0), "z": (0, 0)}
    assert found["d"].st_mode & 0o7777 == 0o2775 and found["d/sub"].st_mode & 0o7777 == 0o755


@pytest.mark.root
@pytest.mark.parametrize("format", ["gnu", "posix"])
def test_as_gnu_tar(root, tmp_path, format):
    """What GNU tar packs is unpacked as it was."""
    os.rmdir(tmp_path / "out")
    try:
        (tmp_path / "out").mkdir()
        sample(tmp_path / "out")
        options = ["--xattrs", "--xattrs-include=*"] if format == "posix" else []
        data = subprocess.run(
            ["tar", "-C", tmp_path / "out", f"--format={format}", *options, "-c", "."],
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
        unpack(root, data)
        want, have = tree(tmp_path / "out"), tree(root)
        if format == "gnu":  # whole seconds, no xattrs
            for what in list(want.values()) + list(have.values()):
                what[3] //= 10**9
                what[-1] = None
        assert have == want
    finally:
        engine.tree_remove(str(tmp_path / "out"))
        (tmp_path / "out").mkdir()


@pytest.mark.root
def test_packed_is_unpacked(root, tmp_path):
    source = tmp_path / "out"
    sample(source)
    try:
        packed = b"".join(engine.tree_pack(str(source)))
        assert packed == b"".join(engine.tree_pack(str(source)))
        assert subprocess.run(["tar", "-t"], input=packed, stdout=subprocess.PIPE).returncode == 0
        unpack(root, packed)
        assert tree(root) == tree(source)
    finally:
        engine.tree_remove(str(source))
        source.mkdir()


def test_size_and_names(root):
    size = unpack(
        root,
        ("./", DIR, b""),
        ("./a/./b//c", FILE, b"12345"),
        ("/abs", FILE, b"1"),
        ("x/../y", FILE, b""),
    )
    assert size == 6
    assert sorted(
        engine.name_clean(name) for name in (b"a/b", b"./a", b"/a/../../b/", b"a//.//b", b".", b"/")
    ) == [b"", b"", b"a", b"a/b", b"a/b", b"b"]
    assert sorted(tree(root)) == ["a", "a/b", "a/b/c", "abs", "y"]


@pytest.mark.parametrize(
    "name", ["../outside", "a/../../outside", "./../outside", "..", "a/b/../../../out/x"]
)
def test_breakout_by_name(root, name):
    with pytest.raises(engine.InvalidParameter, match='^"[^"]*" is outside of "/"$'):
        unpack(root, ("a", DIR, b""), (name, FILE, b"evil"))


@pytest.mark.parametrize(
    "link", ["../outside", "/../../outside", "a/../../outside", "../../etc/passwd"]
)
def test_breakout_by_hard_link(root, link):
    with pytest.raises(
        engine.InvalidParameter, match="^(invalid hardlink|unpack /h: no such file)"
    ):
        unpack(root, ("a", DIR, b""), ("h", LINK, link))


@pytest.mark.parametrize(
    "first",
    [
        [("l", SYM, "..")],
        [("l", SYM, "/")],
        [("l", SYM, "{top}")],
        [("l", SYM, "m"), ("m", SYM, "n"), ("n", SYM, "../../..")],
        [("d/l", SYM, "../.."), ("l", SYM, "d/l")],
        [("l", SYM, "/proc/self/cwd")],
    ],
)
def test_through_links(root, tmp_path, first):
    """Links that lead out lead nowhere: what goes through them stays inside, or is refused."""
    first = [(name, kind, link.format(top=tmp_path)) for name, kind, link in first]
    for name, kind, content in [
        ("l/outside", FILE, b"evil"),
        ("l/out/x", FILE, b"evil"),
        ("l/out", DIR, b""),
        ("l/out/y", SYM, "z"),
        ("l/.wh.outside", FILE, b""),
        ("l/.wh..wh..opq", FILE, b""),
        ("l/out/h", LINK, "l/outside"),
        ("l", FILE, b"over the link"),
    ]:
        engine.tree_remove(str(root))
        root.mkdir()
        try:
            unpack(root, *first, (name, kind, content))
        except engine.InvalidParameter as refused:
            assert str(refused).startswith("unpack /")
    assert not os.listxattr(tmp_path)


def test_link_over_a_kept_directory(root, tmp_path):
    """A directory that was walked to, then replaced by a link: its descriptor is not used again."""
    unpack(root, ("d/a", FILE, b"1"), ("d", SYM, "other"), ("other", DIR, b""), ("d/b", FILE, b"2"))
    assert sorted(tree(root)) == ["d", "other", "other/b"]
    unpack(
        root,
        ("e", DIR, b""),
        ("f", SYM, "e"),
        ("f/x", FILE, b""),
        ("f", DIR, b""),
        ("f/y", FILE, b""),
    )
    assert os.listdir(root / "e") == ["x"] and os.listdir(root / "f") == ["y"]


def test_usr_merge(root):
    """Tars of whole systems write through their own links; Docker's chroot follows them, too."""
    unpack(
        root,
        ("usr/lib", DIR, b""),
        ("lib", SYM, "usr/lib"),
        ("abs", SYM, "/usr/lib"),
        ("lib/a", FILE, b"1"),
        ("abs/sub/b", FILE, b"2"),
        ("abs/.wh.gone", FILE, b""),
    )
    assert (root / "usr/lib/a").read_bytes() == b"1" and (
        root / "usr/lib/sub/b"
    ).read_bytes() == b"2"
    assert stat.S_ISCHR(os.lstat(root / "usr/lib/gone").st_mode)


def test_later_wins(root):
    unpack(
        root,
        ("a", FILE, b"1"),
        ("a", FILE, b"22"),
        ("b", DIR, b""),
        ("b/x", FILE, b""),
        ("b", FILE, b"file"),
        ("c", FILE, b""),
        ("c", DIR, b"", {"mode": 0o700}),
        ("c/x", FILE, b""),
        ("d", SYM, "a"),
        ("d", FILE, b"d"),
        ("e/f/g", FILE, b""),
        ("e", SYM, "a"),
        ("e", DIR, b"", {"mode": 0o711}),
        ("h", LINK, "a"),
        ("h", LINK, "d"),
        ("c", DIR, b"", {"mode": 0o750}),
    )
    assert (root / "a").read_bytes() == b"22" and (root / "b").read_bytes() == b"file"
    assert (root / "d").read_bytes() == b"d" and os.listdir(root / "e") == []
    assert stat.S_IMODE(os.stat(root / "c").st_mode) == 0o750 and os.listdir(root / "c") == ["x"]
    assert os.stat(root / "h").st_ino == os.stat(root / "d").st_ino


def test_directory_times_and_root(root):
    stamp = {"mtime": 1_000_000_000.5, "mode": 0o711}
    unpack(
        root,
        (".", DIR, b"", stamp),
        ("d", DIR, b"", stamp),
        ("d/e", DIR, b"", stamp),
        ("d/e/f", FILE, b""),
    )
    for path in (root, root / "d", root / "d/e"):
        assert (
            os.stat(path).st_mtime == 1_000_000_000.5
            and stat.S_IMODE(os.stat(path).st_mode) == 0o711
        )


def test_odd_times(root):
    unpack(root, ("past", FILE, b"", {"mtime": -5}), ("far", FILE, b"", {"mtime": 2**40}))
    assert os.stat(root / "past").st_mtime == os.stat(root / "far").st_mtime == 0


@pytest.mark.root
def test_whiteouts(root):
    unpack(
        root,
        ("d/.wh.gone", FILE, b""),
        ("d/.wh..wh..opq", FILE, b""),
        (".wh.top", FILE, b""),
        (".wh..wh.plnk", DIR, b""),
        (".wh..wh.aufs", FILE, b""),
        (".wh.again", FILE, b""),
        ("again", DIR, b""),
        ("own", DIR, b""),
        (".wh.own", FILE, b""),
        (".wh.f", FILE, b""),
        ("f", FILE, b"f"),
        ("g", FILE, b"g"),
        (".wh.g", FILE, b""),
    )
    for name in ("d/gone", "top"):
        there = os.lstat(root / name)
        assert stat.S_ISCHR(there.st_mode) and there.st_rdev == 0
    assert sorted(tree(root)) == ["again", "d", "d/gone", "f", "g", "own", "top"]
    for name in ("d", "again", "own"):
        assert os.getxattr(root / name, "trusted.overlay.opaque") == b"y"
    assert (root / "f").read_bytes() + (root / "g").read_bytes() == b"fg"
    packed = b"".join(engine.tree_pack(str(root), overlay=True))
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        assert sorted(tar.getnames()) == [
            ".wh.top",
            "again",
            "again/.wh..wh..opq",
            "d",
            "d/.wh..wh..opq",
            "d/.wh.gone",
            "f",
            "g",
            "own",
            "own/.wh..wh..opq",
        ]


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", "d/.wh...", "d/.wh."])
def test_bad_whiteouts(root, name):
    with pytest.raises(engine.InvalidParameter, match="^invalid whiteout"):
        unpack(root, (name, FILE, b""))


@pytest.mark.root
def test_overlay_xattrs_are_not_taken(root):
    unpack(
        root,
        (
            "a",
            DIR,
            b"",
            {
                "pax_headers": {
                    "SCHILY.xattr.trusted.overlay.redirect": "/other",
                    "SCHILY.xattr.user.overlay.opaque": "y",
                    "SCHILY.xattr.user.kept": "1",
                }
            },
        ),
    )
    assert os.listxattr(root / "a") == ["user.kept"]


@pytest.mark.parametrize(
    "members, text",
    [
        ([("a", FILE, b""), ("a/b", FILE, b"")], "unpack /a/b: not a directory"),
        ([("n" * 300, FILE, b"")], "unpack /n{200}: file name too long"),
        ([("/".join(["d" * 100] * 60), FILE, b"")], "unpack /.*: file name too long"),
        ([("l", SYM, "l"), ("l/x", FILE, b"")], "unpack /l/x: .*too many levels of symbolic links"),
        ([("l", SYM, "missing"), ("l/x", FILE, b"")], "unpack /l/x: .*no such file or directory"),
        ([("s", SYM, "")], "unpack /s: no such file or directory"),
        ([("h", LINK, "missing")], "unpack /h: no such file or directory"),
        ([("h", LINK, "")], "unpack /h: no such file or directory"),
        ([("d", DIR, b""), ("h", LINK, "d")], 'invalid hardlink "/h" -> "d"'),
        ([("m", b"M", b"")], "unhandled tar header type 77"),
        ([("c", CHR, b"", {"devmajor": 5000})], "invalid device number 5000:0"),
    ],
)
def test_refused(root, members, text):
    with pytest.raises(engine.InvalidParameter, match=f"^{text}$"):
        unpack(root, *members)


def test_hard_link_to_itself(root):
    members = [("d", DIR, b""), ("s", SYM, "d"), ("d/f", FILE, b"x")]
    unpack(root, *members, ("d/f", LINK, "./d/f"), ("s/f", LINK, "d/f"), ("d/f", LINK, "s/f"))
    assert (root / "d/f").read_bytes() == b"x"


def test_control_characters_in_messages(root):
    with pytest.raises(engine.InvalidParameter) as refused:
        unpack(root, ("a\nb\x1b[2J\udcff", SYM, ""))
    assert str(refused.value) == "unpack /a\\nb\\x1b[2J\\\\xff: no such file or directory"


def test_deep(root):
    """A path of a thousand directories, and a thousand levels of links to themselves."""
    deep = "/".join(["d"] * 900)
    unpack(root, (deep + "/f", FILE, b"1"), (deep, DIR, b""), ("x", FILE, b""))
    fd = os.open(root, os.O_RDONLY)
    for _ in range(900):
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    assert os.listdir(fd) == ["f"]
    os.close(fd)


@pytest.mark.root
def test_no_space(root):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", root], check=True)
    try:
        with pytest.raises(engine.EngineError, match="^unpack /big: no space left on device$"):
            unpack(root, ("big", FILE, bytes(40 << 20)))
        with pytest.raises(engine.EngineError, match="^unpack /[0-9]+: no space left on device$"):
            unpack(root, *[(str(index), FILE, bytes(1 << 20)) for index in range(40)])
    finally:
        subprocess.run(["umount", root], check=True)


def test_sparse_stays_sparse(root, tmp_path):
    with open(tmp_path / "out/s", "wb") as file:
        file.seek(1 << 30)
        file.write(b"end")
        file.truncate(2 << 30)
    try:
        for options in (["--format=gnu"], ["--format=posix"]):
            data = subprocess.run(
                ["tar", "-C", tmp_path / "out", "-S", *options, "-c", "s"],
                stdout=subprocess.PIPE,
                check=True,
            ).stdout
            assert unpack(root, data) == 2 << 30
            there = os.stat(root / "s")
            assert there.st_size == 2 << 30 and there.st_blocks * 512 < 1 << 20
    finally:
        os.unlink(tmp_path / "out/s")


word = st.sampled_from(["a", "b", "..", ".", "", "c", ".wh.a", ".wh..wh..opq", "l"])
path = st.lists(word, min_size=1, max_size=4).map("/".join).filter(lambda name: name.strip("/"))
member = st.one_of(
    st.tuples(path, st.just(FILE), st.just(b"data")),
    st.tuples(path, st.just(DIR), st.just(b"")),
    st.tuples(path, st.just(SYM), st.one_of(path, path.map(lambda name: "/" + name))),
    st.tuples(path, st.just(LINK), path),
    st.tuples(path, st.just(FIFO), st.just(b"")),
)


@settings(
    max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(members=st.lists(member, min_size=1, max_size=8))
def test_nothing_outside(root, tmp_path, members):
    """Whatever the entries are: unpacked or refused, and nothing else on the host changes."""
    engine.tree_remove(str(root))
    root.mkdir()
    try:
        unpack(root, *members)
    except engine.InvalidParameter as refused:
        assert "\n" not in str(refused)
    assert sorted(os.listdir(tmp_path)) == ["out", "outside", "root"] and not os.listdir(
        tmp_path / "out"
    )
    assert (tmp_path / "outside").read_text() == "mine" and os.stat(
        tmp_path / "outside"
    ).st_nlink == 1
    assert not os.listxattr(tmp_path)


def test_removing_what_is_deep(root):
    """Deeper than the stack of Python, and than descriptors: a hostile layer goes away whole."""
    unpack(root, ("/".join(["d"] * 2000) + "/f", FILE, b"1"), ("x", FILE, b""))
    engine.tree_remove(str(root))
    assert not root.exists()
    root.mkdir()
