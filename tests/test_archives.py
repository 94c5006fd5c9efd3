"""The tar reader and writer: every dialect, GNU tar and tarfile as witnesses, hostile input."""

from __future__ import annotations

import io
import os
import random
import subprocess
import tarfile

import engine
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def listing(data):
    """[(entry, content)] of a tar."""
    reader = engine.TarReader(io.BytesIO(data).read)
    found = []
    for entry in reader.entries():
        content = bytearray(
            entry.size if entry.kind == engine.TAR_FILE and entry.size < 1 << 24 else 0
        )
        for offset, piece in reader.pieces(entry):
            content[offset : offset + len(piece)] = piece
        found.append((entry, bytes(content)))
    return found


def tar_of(members, **options):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", **options) as tar:
        for name, content, extra in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in extra.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


LONG = "/".join(["directory" * 3] * 12) + "/file"


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_formats(format):
    extra = {"mode": 0o4755, "uid": 1000, "gid": 50, "mtime": 1_700_000_000}
    members = [
        ("a", b"x" * 700, extra),
        ("dir/b", b"", {"type": tarfile.SYMTYPE, "linkname": "../a"}),
        ("c", b"", {"type": tarfile.LNKTYPE, "linkname": "a"}),
        ("d", b"", {"type": tarfile.DIRTYPE}),
        ("e", b"", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}),
        ("f", b"", {"type": tarfile.FIFOTYPE}),
    ]
    if format != tarfile.USTAR_FORMAT:
        members += [
            (LONG, b"long", {}),
            ("l", b"", {"type": tarfile.SYMTYPE, "linkname": LONG}),
            ("big-ids", b"", {"uid": 3_000_000_000, "gid": 4_000_000_000}),
            ("ümlaut", b"u", {}),
        ]
    found = listing(tar_of(members, format=format))
    assert [entry.name.decode().rstrip("/") for entry, _ in found] == [
        name for name, _, _ in members
    ]
    first = found[0][0]
    assert (first.mode, first.uid, first.gid, first.mtime) == (
        0o4755,
        1000,
        50,
        1_700_000_000 * 10**9,
    )
    assert found[0][1] == b"x" * 700
    assert [entry.kind for entry, _ in found[:6]] == [b"0", b"2", b"1", b"5", b"3", b"6"]
    assert found[1][0].link == b"../a" and found[4][0].device == (1, 3)
    if format != tarfile.USTAR_FORMAT:
        assert found[6][1] == b"long" and found[7][0].link == LONG.encode()
        assert (found[8][0].uid, found[8][0].gid) == (3_000_000_000, 4_000_000_000)


def test_pax_records():
    headers = {"SCHILY.xattr.user.a": "b=c", "mtime": "1700000000.123456789", "comment": "x"}
    data = tar_of(
        [("a", b"1", {"pax_headers": headers})],
        format=tarfile.PAX_FORMAT,
        pax_headers={"uid": "77", "SCHILY.xattr.user.g": "all"},
    )
    entry = listing(data)[0][0]
    assert entry.mtime == 1_700_000_000_123_456_789 and entry.uid == 77
    assert entry.xattrs == {b"user.a": b"b=c", b"user.g": b"all"}


def test_negative_and_fractional_times():
    for text, want in (
        (b"-1.5", -1_500_000_000),
        (b"0.1", 100_000_000),
        (b"7", 7_000_000_000),
        (b"1.1234567899", 1_123_456_789),
    ):
        assert engine._pax_time(text) == want
    for ns in (0, 1, -1, 1_500_000_000, -1_500_000_000, 10**18 + 7):
        assert engine._pax_time(engine._pax_time_text(ns)) == ns


@pytest.mark.parametrize(
    "options",
    [
        ["--format=gnu"],
        ["--format=pax", "--sparse-version=0.0"],
        ["--format=pax", "--sparse-version=0.1"],
        ["--format=pax", "--sparse-version=1.0"],
    ],
)
def test_sparse(tmp_path, options):
    for name, pieces in (
        ("one", [(0, b"start"), (1 << 20, b"middle"), (3 << 20, b"end" * 5000)]),
        ("holes", []),
        ("many", [(index << 16, b"%d" % index) for index in range(60)]),
    ):
        with open(tmp_path / name, "wb") as file:
            for offset, data in pieces:
                file.seek(offset)
                file.write(data)
            file.truncate((4 << 20) + 13)
    data = subprocess.run(
        ["tar", "-C", tmp_path, *options, "--sparse", "-c", "one", "holes", "many"],
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    assert len(data) < 2 << 20
    for entry, content in listing(data):
        assert entry.sparse and entry.name in (b"one", b"holes", b"many")
        assert content == (tmp_path / entry.name.decode()).read_bytes()


def header(name=b"a", kind=b"0", size=0, **fields):
    entry = engine.TarEntry(name, kind, size=size)
    for key, value in fields.items():
        setattr(entry, key, value)
    return engine.tar_header(entry)


def checksummed(block):
    block = block[:148] + b" " * 8 + block[156:]
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def meta(kind, data, size=None):
    block = engine._ustar_block(
        b"meta",
        b"",
        kind,
        mode=0,
        uid=0,
        gid=0,
        seconds=0,
        link=b"",
        device=(0, 0),
        size=len(data) if size is None else size,
    )
    return block + data + engine.tar_padding(len(data))


def pax(text):
    return b"%d %s\n" % (len(text) + 4 if len(text) < 96 else len(text) + 5, text)


BAD = {
    "wrong checksum": header()[:148] + b"0000001\0" + header()[156:],
    "not a tar": b"this is no tar archive at all " * 40,
    "random": random.Random(1).randbytes(2048)
    if hasattr(random.Random, "randbytes")
    else b"\1" * 2048,
    "cut in a header": header()[:300],
    "cut in a content": header(size=5000) + b"x" * 100,
    "cut in a skipped content": header(size=5_000_000) + b"x" * 1000,
    "cut behind a meta header": meta(b"L", b"name\0"),
    "long name of 2 MiB": meta(b"L", b"", 2 << 20) + bytes(2 << 20),
    "pax of 8 EiB": meta(b"x", b"", 8**11 - 1),
    "pax length 0": meta(b"x", b"0 a=b\n") + header(),
    "pax length too long": meta(b"x", b"99 a=b\n") + header(),
    "pax without newline": meta(b"x", b"6 a=bc") + header(),
    "pax without =": meta(b"x", b"6 abc\n") + header(),
    "pax without key": meta(b"x", b"5 =b\n") + header(),
    "pax without space": meta(b"x", b"5a=b\n") + header(),
    "pax length sign": meta(b"x", b"-6 a=b\n") + header(),
    "pax size text": meta(b"x", pax(b"size=abc")) + header(),
    "pax size negative": meta(b"x", pax(b"size=-5")) + header(),
    "pax size huge": meta(b"x", pax(b"size=99999999999999999999")) + header(),
    "pax name with zero": meta(b"x", pax(b"path=a\0b")) + header(),
    "pax uid huge": meta(b"x", pax(b"uid=4294967295")) + header(),
    "pax mtime text": meta(b"x", pax(b"mtime=soon")) + header(),
    "pax time twice dotted": meta(b"x", pax(b"mtime=1.2.3")) + header(),
    "no name": checksummed(bytes(100) + header()[100:]),
    "octal text": checksummed(header()[:124] + b"zzzzzzzzzzz\0" + header()[136:]),
    "negative size": checksummed(header()[:124] + b"\xff" * 12 + header()[136:]),
    "huge size": checksummed(header()[:124] + b"\x80" + b"\x7f" * 11 + header()[136:]),
    "negative uid": checksummed(header()[:108] + b"\xff" * 8 + header()[116:]),
    "sparse map overlaps": meta(b"x", pax(b"GNU.sparse.map=0,5,3,5") + pax(b"GNU.sparse.size=20"))
    + header(size=10),
    "sparse map beyond": meta(b"x", pax(b"GNU.sparse.map=0,50") + pax(b"GNU.sparse.size=20"))
    + header(size=50),
    "sparse map wrong sum": meta(b"x", pax(b"GNU.sparse.map=0,5") + pax(b"GNU.sparse.size=20"))
    + header(size=9),
    "sparse map odd": meta(b"x", pax(b"GNU.sparse.map=0,5,7") + pax(b"GNU.sparse.size=20"))
    + header(size=5),
    "sparse 1.0 no map": meta(b"x", pax(b"GNU.sparse.major=1") + pax(b"GNU.sparse.realsize=20"))
    + header(size=0),
    "sparse 1.0 text": meta(b"x", pax(b"GNU.sparse.major=1") + pax(b"GNU.sparse.realsize=20"))
    + header(size=512)
    + b"many\n"
    + bytes(507),
    "sparse 1.0 endless": meta(b"x", pax(b"GNU.sparse.major=1") + pax(b"GNU.sparse.realsize=20"))
    + header(size=5120)
    + b"9" * 5120,
    "sparse 1.0 count": meta(b"x", pax(b"GNU.sparse.major=1") + pax(b"GNU.sparse.realsize=20"))
    + header(size=512)
    + b"99999999\n"
    + bytes(503),
    "globals without end": b"".join(
        meta(b"g", b"".join(pax(b"k%d-%d=v" % (a, b)) for b in range(900))) for a in range(30)
    )
    + header(),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_archives(name):
    with pytest.raises(engine.InvalidParameter, match="^invalid tar archive: [^\n]{3,120}$"):
        listing(BAD[name])


def test_ends():
    assert listing(b"") == listing(engine.TAR_END) == []
    assert len(listing(header())) == 1  # no end blocks: what some tools write
    assert len(listing(header() + bytes(512))) == 1
    assert len(listing(header() + engine.TAR_END + b"anything")) == 1


def test_old_dialects():
    v7 = checksummed(header(b"dir/", b"0")[:156] + b"\0" + bytes(355))
    assert listing(v7)[0][0].kind == engine.TAR_DIR
    signed = bytearray(header(b"s"))
    signed[:100] = b"\xfc" + bytes(99)
    total = sum(byte - 256 if byte > 127 else byte for byte in signed[:148] + signed[156:]) + 256
    signed[148:156] = b"%06o\0 " % total
    assert listing(bytes(signed))[-1][0].name == b"\xfc"
    gnu = bytearray(header(b"x"))
    gnu[257:265] = b"ustar  \0"
    gnu[345:357] = b"14000000000\0"  # GNU: the access time, not a prefix
    assert listing(checksummed(bytes(gnu)))[0][0].name == b"x"


def test_position_and_skip(tmp_path):
    """A seekable file is walked by its headers only."""
    path = tmp_path / "tar"
    path.write_bytes(
        tar_of([("a", b"A" * 3_000_000, {}), ("b", b"B" * 10, {}), ("c", b"C" * 600_000, {})])
    )
    fd = os.open(path, os.O_RDONLY)
    taken = []

    def read(size):
        taken.append(size)
        return os.read(fd, 512)

    reader = engine.TarReader(read, lambda count: os.lseek(fd, count, os.SEEK_CUR))
    found = [(entry.name, entry.size, reader.position) for entry in reader.entries()]
    assert len(taken) < 10
    for name, size, at in found:
        assert os.pread(fd, size, at) == name.upper() * size
    os.close(fd)


names = st.binary(min_size=1, max_size=300).filter(
    lambda name: b"\0" not in name and name.strip(b"/")
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=names,
    link=st.binary(max_size=300).map(lambda text: text.replace(b"\0", b"")),
    mode=st.integers(0, 0o7777),
    uid=st.integers(0, 2**32 - 2),
    mtime=st.integers(-(2**60), 2**62 - 1),
    size=st.integers(0, 2**40),
    xattrs=st.dictionaries(
        st.sampled_from([b"user.a", b"security.capability"]), st.binary(min_size=1, max_size=50)
    ),
)
def test_written_is_read(name, link, mode, uid, mtime, size, xattrs):
    entry = engine.TarEntry(
        name, engine.TAR_SYMLINK, mode=mode, uid=uid, gid=uid, mtime=mtime, link=link
    )
    entry.xattrs = xattrs
    data = engine.tar_header(entry)
    assert len(data) % 512 == 0 and data == engine.tar_header(entry)
    back = listing(data)[0][0]
    assert (back.name, back.mode, back.uid, back.gid, back.mtime) == (name, mode, uid, uid, mtime)
    assert back.xattrs == xattrs and back.link == link
    entry.kind, entry.size, entry.stored = engine.TAR_FILE, size, size
    reader = engine.TarReader(io.BytesIO(engine.tar_header(entry)).read)
    back = next(reader.entries())
    assert back.size == (size if not name.endswith(b"/") else 0)


def test_gnu_tar_reads_what_is_written(tmp_path):
    data = b""
    for name in (
        b"short",
        b"d" * 90 + b"/" + b"f" * 90,
        b"x" * 150,
        "ü/ß".encode(),
        b"d/" * 120 + b"end",
    ):
        data += (
            header(name, size=3, mode=0o640, mtime=1_700_000_000_250_000_000) + b"abc" + bytes(509)
        )
    (tmp_path / "t.tar").write_bytes(data + engine.TAR_END)
    listed = subprocess.run(
        ["tar", "--quoting-style=literal", "-tf", tmp_path / "t.tar"],
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    assert listed.splitlines() == [
        b"short",
        b"d" * 90 + b"/" + b"f" * 90,
        b"x" * 150,
        "ü/ß".encode(),
        b"d/" * 120 + b"end",
    ]


def test_plain_entries_need_no_pax():
    assert len(header(b"usr/bin/true", size=10, mtime=1_700_000_000 * 10**9)) == 512
    assert len(header(b"d" * 90 + b"/" + b"f" * 90)) == 512


@settings(max_examples=300)
@given(st.data())
def test_any_damage_is_one_error(data):
    """Flip bytes of a good archive: it is read, or refused with InvalidParameter; nothing else."""
    good = bytearray(
        meta(b"x", pax(b"path=b") + pax(b"GNU.sparse.map=0,3") + pax(b"GNU.sparse.size=9"))
        + header(size=3)
        + b"abc"
        + bytes(509)
        + header(b"q")
        + engine.TAR_END
    )
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    for start in range(0, 2048, 512):  # keep the sums right half of the time, to get deeper
        if data.draw(st.booleans()) and any(good[start : start + 512]):
            good[start : start + 512] = checksummed(bytes(good[start : start + 512]))
    try:
        listing(bytes(good))
    except engine.InvalidParameter as refused:
        assert "\n" not in str(refused)
