"""logs: Docker's json-file format both ways, rotation, tail, follow."""

from __future__ import annotations

import gzip
import json
import os
import signal
import socket
import threading
import time

import engine
import pytest
from hypothesis import given
from hypothesis import strategies as st


def writer(path, kind="json-file", attrs="", **options):
    config = {name.replace("_", "-"): value for name, value in options.items()}
    return engine.LogWriter({"Type": kind, "Config": config, "path": str(path), "attrs": attrs})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x-json.log"


def lines(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def read(path, **asked):
    out = {1: b"", 2: b""}
    for stream, data in engine.log_read(str(path), **asked):
        out[stream] += data
    return out[1], out[2]


def test_one_line_as_docker_writes_it(path, monkeypatch):
    monkeypatch.setattr(engine.time, "time_ns", lambda: 1700000000120000000)
    log = writer(path)
    log.write(1, b'a<b> & "c"\\\t\r\x01\xc3\xa9\n')
    assert path.read_bytes() == (
        b'{"log":"a\\u003cb\\u003e \\u0026 \\"c\\"\\\\\\u0009\\r\\u0001\xc3\xa9\\n",'
        b'"stream":"stdout","time":"2023-11-14T22:13:20.12Z"}\n'
    )


def test_bytes_that_are_not_utf8(path):
    log = writer(path)
    log.write(1, b"a\xffb\xe2\x82\n\xe2\x80\xa8\n")
    text = path.read_bytes()
    assert b'"a\\ufffdb\\ufffd\\ufffd\\n"' in text       # one for each byte, as Go has it
    assert b'"\\u2028\\n"' in text
    log.close()
    assert read(path)[0] == "a\ufffdb\ufffd\ufffd\n\u2028\n".encode()


def test_streams_keep_their_unfinished_lines(path):
    log = writer(path)
    log.write(1, b"o1")
    log.write(2, b"e1\ne2")
    log.write(1, b"o2\n")
    log.flush_partial(1)
    log.flush_partial(2)
    assert [(line["stream"], line["log"]) for line in lines(path)] == [
        ("stderr", "e1\n"),
        ("stdout", "o1o2\n"),
        ("stderr", "e2"),
    ]


@pytest.mark.parametrize("size", [16383, 16384, 16385, 40000])
@pytest.mark.parametrize("piece", [1000, 65536])
def test_long_lines_are_split(path, size, piece):
    log = writer(path)
    data = b"x" * size + b"\nend\n"
    for at in range(0, len(data), piece):
        log.write(1, data[at : at + piece])
    got = lines(path)
    assert [len(line["log"]) for line in got[:-1]] == [16384] * (size // 16384) + [
        size % 16384 + 1
    ]
    assert len({line["time"] for line in got[:-1]}) == 1
    assert got[-1]["log"] == "end\n"
    assert read(path)[0] == data


@given(st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=200)), max_size=20))
def test_what_is_written_is_read(tmp_path_factory, chunks):
    path = tmp_path_factory.mktemp("log") / "x-json.log"
    log = writer(path)
    for stream, data in chunks:
        log.write(stream, data)
    log.close()
    want = {1: b"", 2: b""}
    for stream, data in chunks:
        want[stream] += data
    got = read(path)
    parts = [line for line in lines(path)] if path.exists() else []
    for stream, name in ((1, "stdout"), (2, "stderr")):
        text = "".join(line["log"] for line in parts if line["stream"] == name)
        assert got[stream - 1] == text.encode()
        assert text == decoded(want[stream])


def decoded(data):
    """UTF-8 as Go decodes it: each byte that does not belong becomes U+FFFD; lines are apart."""
    out = []
    for line in data.split(b"\n"):
        text = line.decode("utf-8", "surrogateescape")
        out.append("".join("\ufffd" if "\udc80" <= c <= "\udcff" else c for c in text))
    return "\n".join(out)


def test_none_writes_nothing(path):
    log = writer(path, kind="none")
    log.write(1, b"x\n")
    log.close()
    assert not path.exists()


def test_rotation(path):
    log = writer(path, max_size="1k", max_file="3")
    for number in range(100):
        log.write(1, b"line %03d\n" % number)
    log.close()
    names = sorted(os.listdir(path.parent))
    assert names == ["x-json.log", "x-json.log.1", "x-json.log.2"]
    for name in names[1:]:
        size = os.stat(path.parent / name).st_size
        assert 1000 <= size < 1100
    text = read(path)[0]
    assert text.endswith(b"line 099\n") and text == b"".join(
        b"line %03d\n" % n for n in range(100 - text.count(b"\n"), 100)
    )


def test_rotation_inside_a_chunk_keeps_the_limit(path):
    log = writer(path, max_size="1k", max_file="2")
    log.write(1, b"y\n" * 1000)
    log.close()
    assert os.stat(str(path) + ".1").st_size < 1100
    assert os.stat(path).st_size < 1100


def test_one_file_begins_anew(path):
    log = writer(path, max_size="1k")
    for number in range(50):
        log.write(1, b"line %03d\n" % number)
    assert os.listdir(path.parent) == ["x-json.log"]
    assert os.stat(path).st_size < 1100


def test_default_cannot_fill_a_disk(path):
    log = writer(path)
    for _ in range(8):
        log.write(1, (b"x" * 999 + b"\n") * 5000)
    assert sum(file.stat().st_size for file in path.parent.iterdir()) < 33_000_000


def test_a_restart_appends(path):
    for text in (b"a\n", b"b\n"):
        log = writer(path)
        log.write(1, text)
        log.close()
    assert read(path)[0] == b"a\nb\n"


def test_attributes(path):
    log = writer(path, attrs='{"k":"v, w"}')
    log.write(1, b"a\nb\n")
    assert lines(path)[0]["attrs"] == {"k": "v, w"}
    assert read(path)[0] == b"a\nb\n"
    assert read(path, details=True)[0] == b"k=v, w a\nk=v, w b\n"


def test_full_disk_loses_lines_not_the_container(path, monkeypatch):
    log = writer(path)
    log.write(1, b"a\n")

    def full(fd, data):
        os.write(fd, data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(engine, "write_all", full)
    log.write(1, b"b\n")
    monkeypatch.undo()
    log.write(1, b"c\n")
    assert read(path)[0] == b"a\nc\n"


def filled(path, count=1000, **options):
    log = writer(path, **options)
    for number in range(count):
        log.write(1 + number % 2, b"line %d\n" % number)
    log.close()


@pytest.mark.parametrize("tail", [0, 1, 2, 7, 999, 1000, 5000])
def test_tail(path, tail):
    filled(path)
    out, err = read(path, tail=tail)
    assert out.count(b"\n") + err.count(b"\n") == min(tail, 1000)
    if tail:
        assert err.endswith(b"line 999\n")


@pytest.mark.parametrize("tail", [1, 30, 60, 100, 5000])
def test_tail_over_rotated_files(path, tail):
    log = writer(path, max_size="2k", max_file="5")
    for number in range(200):
        log.write(1, b"line %d\n" % number)
    log.close()
    whole = read(path)[0].splitlines()
    assert read(path, tail=tail)[0].splitlines() == whole[-tail:]


def test_tail_of_long_files(path):
    log = writer(path)
    log.write(1, b"".join(b"%06d " % n + b"z" * 100 + b"\n" for n in range(5000)))
    log.close()
    out = read(path, tail=2000)[0].splitlines()
    assert len(out) == 2000 and out[0].startswith(b"003000")


def test_since_until_and_timestamps(path, monkeypatch):
    log = writer(path)
    for second in range(10):
        now = (1700000000 + second) * engine.SECOND + 5
        monkeypatch.setattr(engine.time, "time_ns", lambda now=now: now)
        log.write(1, b"%d\n" % second)
    log.close()
    base = 1700000000 * engine.SECOND
    assert read(path, since=base + 3 * engine.SECOND)[0] == b"3\n4\n5\n6\n7\n8\n9\n"
    assert read(path, until=base + 2 * engine.SECOND)[0] == b"0\n1\n"
    assert read(path, since=base + engine.SECOND, until=base + 3 * engine.SECOND)[0] == b"1\n2\n"
    assert read(path, since=base + 60 * engine.SECOND) == (b"", b"")
    assert read(path, tail=1, timestamps=True)[0] == b"2023-11-14T22:13:29.000000005Z 9\n"


def test_one_stream(path):
    filled(path, 10)
    assert read(path, stdout=False)[0] == b""
    assert read(path, stderr=False)[0].count(b"\n") == 5


def test_foreign_and_torn_lines(path):
    path.write_bytes(
        b'{"time":"2023-11-14T22:13:20Z","stream":"stderr","log":"odd \\ud83d\\ude00\\n"}\n'
        b'{"log":"torn\n'
        b'{"log":"good\\n","stream":"stdout","time":"2023-11-14T22:13:20Z"}\n'
        b'{"log":"unfinished'
    )
    assert read(path) == (b"good\n", "odd \U0001f600\n".encode())


def test_no_log_is_empty(path):
    assert read(path) == (b"", b"")


class Follower(threading.Thread):
    """Follows a log until its end is told."""

    def __init__(self, path, **asked):
        super().__init__(daemon=True)
        self.end, self._write = os.pipe()
        self.path, self.asked, self.out = path, asked, b""

    def run(self):
        for _, data in engine.log_read(str(self.path), follow=self.end, **self.asked):
            self.out += data

    def finish(self):
        os.close(self._write)
        self.join(10)
        assert not self.is_alive()
        os.close(self.end)
        return self.out


def test_follow(path):
    log = writer(path)
    log.write(1, b"before\n")
    follower = Follower(path)
    follower.start()
    for number in range(5):
        time.sleep(0.01)
        log.write(1, b"%d\n" % number)
    deadline = time.monotonic() + 5
    while b"4\n" not in follower.out and time.monotonic() < deadline:
        time.sleep(0.01)
    assert follower.out == b"before\n0\n1\n2\n3\n4\n"
    log.write(1, b"last")
    log.close()
    assert follower.finish() == b"before\n0\n1\n2\n3\n4\nlast"


def test_follow_through_rotation_loses_nothing(path):
    log = writer(path, max_size="20k", max_file="50")
    log.write(1, b"begin\n")
    follower = Follower(path)
    follower.start()
    for number in range(3000):
        log.write(1, b"line %d\n" % number)
        if number % 50 == 0:
            time.sleep(0.001)
    log.close()
    out = follower.finish()
    assert out == b"begin\n" + b"".join(b"line %d\n" % n for n in range(3000))


def test_follow_until_a_time(path):
    log = writer(path)
    log.write(1, b"a\n")
    follower = Follower(path, until=engine.time_now() + engine.SECOND // 5)
    follower.start()
    follower.join(5)
    assert not follower.is_alive() and follower.out == b"a\n"


@pytest.mark.slow
def test_speed(path):
    line = b"the quick brown fox jumps over the lazy dog 0123456789 & so on until it is long\n"
    data = line * (20_000_000 // len(line))
    log = writer(path, max_size="1g")
    start = time.process_time()
    for at in range(0, len(data), 65536):
        log.write(1, data[at : at + 65536])
    log.close()
    written = time.process_time() - start
    start = time.process_time()
    size = sum(len(data) for _, data in engine.log_read(str(path)))
    assert size == len(data)
    # 50 MB must cost well under 0.5 s to write and 1 s to read; a loaded machine gets some room.
    assert written < 0.4 and time.process_time() - start < 0.8


# ---- compressed files, and a writer that does not wait

def packed(path):
    return sorted(name.name.removeprefix(path.name) for name in path.parent.iterdir())


@pytest.mark.parametrize("fork", [None, os.fork])
def test_full_files_are_compressed_and_read_back(path, fork):
    log = engine.LogWriter(
        {"Type": "json-file", "path": str(path), "attrs": "",
         "Config": {"max-size": "1k", "max-file": "3", "compress": "true"}}, fork
    )  # fmt: skip
    written = [b"line %04d\n" % number for number in range(100)]
    for line in written:
        log.write(1, line)
    log.close()
    engine.child_await(log._packer)
    assert packed(path) == ["", ".1.gz", ".2.gz"]
    kept = read(path)[0].splitlines(keepends=True)
    assert kept == written[-len(kept):] and len(kept) > 20
    assert gzip.decompress((path.parent / (path.name + ".1.gz")).read_bytes()).count(b"\n") > 9
    assert read(path, tail=15)[0] == b"".join(written[-15:])


def test_a_reader_crosses_compressed_files(path):
    log = writer(path, max_size="2k", max_file="4", compress="true")
    ours, theirs = socket.socketpair()
    written = [b"line %04d\n" % number for number in range(60)]
    log.write(1, written[0])
    reader = engine.log_read(str(path), follow=theirs.fileno())
    got = next(reader)[1]
    for line in written[1:]:
        log.write(1, line)          # goes over to another file twice, the first is compressed
    log.close()
    ours.close()
    assert got + b"".join(data for _, data in reader) == b"".join(written)


def test_what_a_killed_compression_leaves(path):
    log = writer(path, max_size="1k", max_file="3", compress="true")
    for number in range(20):
        log.write(1, b"old %d\n" % number)
    one = path.parent / (path.name + ".1")
    (path.parent / (path.name + ".1.gz.new")).write_bytes(b"half")
    one.write_bytes(gzip.decompress((path.parent / (path.name + ".1.gz")).read_bytes()))
    assert read(path)[0].count(b"\n") == 20
    for number in range(60):
        log.write(1, b"new %d\n" % number)
    assert read(path)[0].endswith(b"new 59\n") and not one.exists()


def test_a_damaged_file_gives_what_it_holds(path):
    log = writer(path, max_size="1k", max_file="2", compress="true")
    for number in range(20):
        log.write(1, b"%d\n" % number)
    file = path.parent / (path.name + ".1.gz")
    for data in (file.read_bytes()[:-20], b"", b"\x1f\x8b"):
        file.write_bytes(data)
        assert read(path)[0].endswith(b"19\n")


def test_a_full_disk_leaves_a_file_uncompressed(path, monkeypatch):
    def full(fd, data):
        raise OSError(28, "No space left on device")

    whole = engine.write_all
    log = writer(path, max_size="1k", max_file="2", compress="true")
    with monkeypatch.context() as patch:
        patch.setattr(engine, "write_all", full)
        engine.child_run(None, lambda: engine.log_pack(str(path)))
        patch.setattr(engine, "write_all", whole)
        patch.setattr(engine, "log_pack", lambda path: full(0, b""))
        log.write(1, b"x\n" * 20)
        log.write(1, b"y\n")
    assert packed(path) == ["", ".1"] and read(path)[0] == b"x\n" * 20 + b"y\n"


def sender(path, **options):
    config = {"mode": "non-blocking", **options}
    log = {"Type": "json-file", "path": str(path), "attrs": "", "Config": config}
    return engine.log_open(log, os.fork)


def test_another_process_writes_whole_lines(path):
    log = sender(path)
    for chunk in (b"a", b"b\nc", b"d\n", b"x" * 40000, b"\nend"):
        log.write(1, chunk)
    log.write(2, b"err")
    log.close()
    assert read(path) == (b"ab\ncd\n" + b"x" * 40000 + b"\nend", b"err")
    with pytest.raises(ChildProcessError):
        os.waitpid(log._pid, os.WNOHANG)


def test_what_the_writer_cannot_keep_up_with_is_dropped(path):
    log = sender(path)
    os.kill(log._pid, signal.SIGSTOP)
    before = time.monotonic()
    for number in range(200):
        log.write(1, b"%06d %s\n" % (number, b"x" * 20000))
    assert time.monotonic() - before < 5
    os.kill(log._pid, signal.SIGCONT)
    log.close()
    got = [int(line[:6]) for line in read(path)[0].splitlines()]
    assert got == list(range(len(got))) and 5 < len(got) < 60


def test_a_killed_writer_does_not_stop_anybody(path):
    log = sender(path, **{"max-buffer-size": "1"})
    os.kill(log._pid, signal.SIGKILL)
    time.sleep(0.1)
    log.write(1, b"x\n")
    log.close()
    assert read(path) == (b"", b"")
