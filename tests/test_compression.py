"""Compression: every format, several members, damage, bombs; zstd from each of its homes."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import shutil
import subprocess
import threading
import time
import zlib

import engine
import pytest

PLAIN = os.urandom(3000) + b"hello\n" * 200_000


def zstd(data):
    if not shutil.which("zstd"):
        pytest.skip("no zstd tool")
    return subprocess.run(["zstd", "-qc"], input=data, stdout=subprocess.PIPE, check=True).stdout


MAKERS = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstd,
    "": bytes,
}


def read_all(read, size=1 << 20):
    parts = []
    while True:
        part = read(size)
        if not part:
            return b"".join(parts)
        assert len(part) <= size
        parts.append(part)


def dribble(data, size=7):
    """A stream that gives a few bytes at a time, as a slow pipe does."""
    file = io.BytesIO(data)
    return lambda n: file.read(min(n, size))


@pytest.mark.parametrize("name", MAKERS)
def test_round_trip(name):
    data = MAKERS[name](PLAIN)
    told, read = engine.decompressed(io.BytesIO(data).read)
    assert (told, read_all(read)) == (name, PLAIN)
    told, read = engine.decompressed(dribble(MAKERS[name](b"small")))
    assert (told, read_all(read, 2)) == (name, b"small")


@pytest.mark.parametrize("name", ["gzip", "bzip2", "xz", "zstd"])
def test_members_and_padding(name):
    one, two = MAKERS[name](b"one" * 1000), MAKERS[name](b"two")
    for data in (one + two, one + bytes(1024) + two, one + two + bytes(512)):
        assert read_all(engine.decompressed(io.BytesIO(data).read)[1]) == b"one" * 1000 + b"two"
    with pytest.raises(engine.InvalidParameter, match=f"^damaged {name} data: "):
        read_all(engine.decompressed(io.BytesIO(one + b"garbage!" * 9).read)[1])


@pytest.mark.parametrize("name", ["gzip", "bzip2", "xz", "zstd"])
@pytest.mark.parametrize("cut", [11, -20, -1])
def test_truncated(name, cut):
    data = MAKERS[name](PLAIN)[:cut]
    with pytest.raises(
        engine.InvalidParameter, match=f"^damaged {name} data: unexpected end of data$"
    ):
        read_all(engine.decompressed(io.BytesIO(data).read)[1])


@pytest.mark.parametrize("name", ["gzip", "bzip2", "xz", "zstd"])
def test_damaged(name):
    data = bytearray(MAKERS[name](PLAIN))
    for at in range(20, 60):
        data[at] ^= 0x55
    with pytest.raises(engine.InvalidParameter, match=f"^damaged {name} data: [^\n]+$"):
        read_all(engine.decompressed(io.BytesIO(bytes(data)).read)[1])


@pytest.mark.parametrize("name", ["gzip", "bzip2", "xz", "zstd"])
def test_bomb_is_read_piece_by_piece(name):
    """100 MB of zeros: nothing larger than a piece is ever made; a reader may stop at any time."""
    data = MAKERS[name](bytes(100 << 20))
    read = engine.decompressed(io.BytesIO(data).read)[1]
    total = 0
    for _ in range(1000):
        piece = read(1 << 30)
        assert len(piece) <= engine.STREAM_CHUNK
        total += len(piece)
        if not piece:
            break
    assert total == 100 << 20


def test_zstd_library():
    """The ctypes home, whatever this Python has."""
    try:
        engine._zstd_library()
    except OSError:
        pytest.skip("no libzstd.so.1")
    inflate = engine._ZstdLibraryDecompressor()
    data, plain = zstd(PLAIN) + b"rest", b""
    while not inflate.eof:
        piece = inflate.decompress(data, 4096)
        assert len(piece) <= 4096
        plain, data = plain + piece, b""
    assert plain == PLAIN and inflate.unused_data == b"rest"
    with pytest.raises(ValueError):
        engine._ZstdLibraryDecompressor().decompress(b"\x28\xb5\x2f\xfd" + b"\xff" * 100)


def test_zstd_is_nowhere(monkeypatch):
    import builtins

    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name in ("compression", "pyzstd"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    def none():
        raise OSError("no such library")

    monkeypatch.setattr(builtins, "__import__", refuse)
    monkeypatch.setattr(engine, "_zstd_library", none)
    with pytest.raises(engine.Unsupported, match="^zstd is not available: .* libzstd.so.1$"):
        engine.decompressed(io.BytesIO(b"\x28\xb5\x2f\xfd12345678").read)[1](10)


def test_sniffing():
    assert engine.compression_of(b"\x50\x2a\x4d\x18\4\0\0\0") == "zstd"  # a skippable frame
    assert engine.compression_of(b"") == engine.compression_of(b"ustar") == ""
    head, read = engine.stream_peek(io.BytesIO(b"abc").read, 10)
    assert head == b"abc" and read_all(read) == b"abc"


def test_damaged_gzip_is_told_in_plain_words():
    data = gzip.compress(b"x" * 100)[:-8] + bytes(8)
    with pytest.raises(engine.InvalidParameter) as refused:
        list(engine._gunzip(io.BytesIO(data).read))
    assert str(refused.value) == "damaged gzip data: incorrect data check"


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_a_thread_that_reads_ahead(size):
    data = PLAIN[: 100 * size]
    stream = engine.StreamAhead(io.BytesIO(data).read)
    assert read_all(stream.read, size) == data
    assert stream.read(size) == stream.read(size) == b""
    stream.close()


def test_a_thread_that_reads_ahead_tells_what_went_wrong_and_waits_for_room():
    asked = []

    def read(size):
        asked.append(size)
        if len(asked) > 20:
            raise engine.InvalidParameter("damaged")
        return b"x" * size

    stream = engine.StreamAhead(read)
    assert stream.read(1) == b"x"
    time.sleep(0.1)
    assert len(asked) < 10
    with pytest.raises(engine.InvalidParameter, match="damaged"):
        read_all(stream.read)
    assert len(asked) == 21
    stream.close()


def test_a_thread_that_nobody_reads_from_any_more_ends():
    before = threading.active_count() + len(os.listdir("/proc/self/task"))
    stream = engine.StreamAhead(lambda size: b"x")
    assert stream.read(5) == b"x"
    stream.close()
    for _ in range(100):
        if threading.active_count() + len(os.listdir("/proc/self/task")) <= before:
            return
        time.sleep(0.02)
    raise AssertionError("the thread is still there")


# -- writing ------------------------------------------------------------------

def squeeze(data, size=100_000):
    squeezer = engine.Squeezer()
    return b"".join([*(squeezer.feed(data[at:at + size]) for at in range(0, len(data), size)),
                     squeezer.end()])


TEXT = b"".join(b"%d squared is %d\n" % (number, number * number) for number in range(60_000))
NOISE = random.Random(3).randbytes(700_000)


@pytest.mark.parametrize("data", [
    b"", b"x", NOISE[:65535], NOISE[:65536], NOISE, TEXT, TEXT + NOISE + TEXT,
    NOISE + TEXT[:65535] + NOISE, NOISE[:40_000] * 20,
    b"".join(TEXT[at:at + 900] + NOISE[at:at + 3000] for at in range(0, 600_000, 3000)),
], ids=range(10))
def test_what_is_squeezed_is_one_member_that_everybody_unpacks(data):
    """zlib is the judge: one member, nothing behind it, its checksum and size right."""
    made = squeeze(data)
    judge = zlib.decompressobj(31)
    assert judge.decompress(made) == data and judge.eof and not judge.unused_data
    assert read_all(engine.decompressed(io.BytesIO(made).read)[1]) == data
    assert len(made) <= len(zlib.compress(data, 1)) * 1.02 + 200


def test_what_is_squeezed_does_not_depend_on_the_pieces():
    data = TEXT[:300_000] + NOISE + TEXT
    assert len({squeeze(data, size) for size in (1000, 65535, 262144, len(data))}) == 1


def test_noise_is_stored_and_what_repeats_from_afar_is_still_found():
    """zlib never has more than 16 KiB of it in one piece. The samples of a block say nothing of a
    repetition that is farther away."""
    data, block = NOISE * 20, 65535
    made = squeeze(data)
    blocks = [data[at:at + block] for at in range(0, len(data) - block, block)]
    assert sum(each in made for each in blocks) >= len(blocks) * 9 // 10
    assert not any(each in zlib.compress(data, 1) for each in blocks[:20])
    late = NOISE + NOISE[:20_000] * 200
    assert len(squeeze(late)) < len(NOISE) * 1.5 + 33 * 65535
