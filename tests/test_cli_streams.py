"""The pump: frames to stdout and stderr, input, half close, signals, detach keys."""

from __future__ import annotations

import os
import pty
import signal
import socket
import struct
import threading
import time

import engine
import pytest


def frame(stream, data):
    return struct.pack(">BxxxL", stream, len(data)) + data


@pytest.fixture
def redirected():
    """Descriptors 0-2 may be replaced; they are put back. Returns replace(number, fd)."""
    kept = [os.dup(number) for number in (0, 1, 2)]

    def replace(number, fd):
        os.dup2(fd, number)

    yield replace
    for number, fd in enumerate(kept):
        os.dup2(fd, number)
        os.close(fd)


def pipe_read_all(fd, into):
    while True:
        data = os.read(fd, 1 << 16)
        if not data:
            return
        into.append(data)


class Outputs:
    """Pipes in place of stdout and stderr, read by threads."""

    def __init__(self, replace):
        self.parts = {1: [], 2: []}
        self.threads = []
        for number in (1, 2):
            read, write = os.pipe()
            replace(number, write)
            os.close(write)
            thread = threading.Thread(target=pipe_read_all, args=(read, self.parts[number]))
            thread.start()
            self.threads.append(thread)

    def end(self, replace):
        null = os.open("/dev/null", os.O_RDWR)
        replace(1, null)
        replace(2, null)
        for thread in self.threads:
            thread.join(5)
        os.close(null)
        return b"".join(self.parts[1]), b"".join(self.parts[2])


def test_frames_go_to_their_streams(redirected):
    outputs = Outputs(redirected)
    near, far = socket.socketpair()
    big = os.urandom(300000)
    blob = (
        frame(1, b"one\n")
        + frame(2, b"two\n")
        + frame(1, big)
        + frame(1, b"")
        + frame(2, b"\0\xff")
    )

    def send():
        for at in range(0, len(blob), 7001):
            far.sendall(blob[at : at + 7001])
        far.close()

    sender = threading.Thread(target=send)
    sender.start()
    with engine.signals_caught(proxy=False) as signals:
        engine.Pump(near, tty=False, stdin=False, signals=signals).run()
    sender.join()
    assert outputs.end(redirected) == (b"one\n" + big, b"two\n\0\xff")


def test_input_goes_out_and_its_end_is_a_half_close(redirected):
    outputs = Outputs(redirected)
    near, far = socket.socketpair()
    read, write = os.pipe()
    redirected(0, read)
    data = os.urandom(1 << 20)  # more than the buffers of the socket hold
    got = []

    def other_side():
        time.sleep(0.05)
        while True:
            piece = far.recv(1 << 16)
            if not piece:
                break
            got.append(piece)
        far.sendall(frame(1, b"after the end of input"))
        far.close()

    def type_it():
        at = 0
        while at < len(data):
            at += os.write(write, data[at:])
        os.close(write)

    threads = [threading.Thread(target=each) for each in (other_side, type_it)]
    for thread in threads:
        thread.start()
    with engine.signals_caught(proxy=False) as signals:
        engine.Pump(near, tty=False, stdin=True, signals=signals).run()
    for thread in threads:
        thread.join()
    os.close(read)
    assert b"".join(got) == data
    assert outputs.end(redirected)[0] == b"after the end of input"


def test_nobody_reads_the_input(redirected):
    outputs = Outputs(redirected)
    near, far = socket.socketpair()
    read, write = os.pipe()
    redirected(0, read)
    os.write(write, b"x")
    far.sendall(frame(1, b"bye"))
    far.shutdown(socket.SHUT_RD)
    threading.Timer(0.1, far.close).start()
    with engine.signals_caught(proxy=False) as signals:
        engine.Pump(near, tty=False, stdin=True, signals=signals).run()
    os.close(write)
    os.close(read)
    assert outputs.end(redirected)[0] == b"bye"


def test_signals_are_proxied_in_order():
    near, far = socket.socketpair()
    seen, sizes = [], []
    with engine.signals_caught(proxy=True, resize=True) as signals:
        for number in (signal.SIGTERM, signal.SIGWINCH, signal.SIGINT, signal.SIGUSR1):
            os.kill(os.getpid(), number)
        threading.Timer(0.1, far.close).start()
        engine.Pump(
            near,
            tty=False,
            stdin=False,
            signals=signals,
            on_signal=seen.append,
            on_resize=lambda: sizes.append(1),
        ).run()
    assert seen == [signal.SIGTERM, signal.SIGWINCH, signal.SIGINT, signal.SIGUSR1]
    assert sizes == [1]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_resize_without_proxy_is_a_resize_only():
    near, far = socket.socketpair()
    sizes = []
    with engine.signals_caught(proxy=False, resize=True) as signals:
        os.kill(os.getpid(), signal.SIGWINCH)
        threading.Timer(0.1, far.close).start()
        engine.Pump(near, tty=True, stdin=False, signals=signals, on_signal=[].append,
                    on_resize=lambda: sizes.append(1)).run()  # fmt: skip
    assert sizes == [1]


def test_a_signal_without_proxy_ends():
    near, _far = socket.socketpair()
    with engine.signals_caught(proxy=False) as signals, pytest.raises(engine.Ended) as caught:
        os.kill(os.getpid(), signal.SIGTERM)
        engine.Pump(near, tty=False, stdin=False, signals=signals).run()
    assert caught.value.number == signal.SIGTERM


def test_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with engine.signals_caught(proxy=True):
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_terminal_is_raw_and_restored_and_detaches(redirected):
    outputs = Outputs(redirected)
    master, slave = pty.openpty()
    redirected(0, slave)
    before = engine_modes(slave)
    near, far = socket.socketpair()
    seen = []

    def other_side():
        far.sendall(b"raw \xff output")
        seen.append(engine_modes(slave))
        os.write(master, b"abc\x10x\x10")
        time.sleep(0.05)
        os.write(master, b"\x11")
        got = b""
        while len(got) < 7:
            got += far.recv(100)
        seen.append(got)
        far.close()

    thread = threading.Timer(0.1, other_side)
    thread.start()
    with engine.signals_caught(proxy=False) as signals, pytest.raises(engine.Detached):
        engine.Pump(near, tty=True, stdin=True, signals=signals).run()
    thread.join()
    after = engine_modes(slave)
    os.close(master)
    os.close(slave)
    assert seen[0] != before and after == before
    assert seen[1] == b"abc\x10x\x10\x11"
    assert outputs.end(redirected)[0] == b"raw \xff output"


def engine_modes(fd):
    import termios

    return termios.tcgetattr(fd)[:4]


def test_detach_keys():
    keys = engine.DetachKeys("")
    assert not keys.feed(b"\x10") and not keys.feed(b"\x10") and keys.feed(b"\x11rest")
    assert engine.DetachKeys("a,a,b").feed(b"xaab")
    with pytest.raises(engine.UsageError) as caught:
        engine.detach_keys_check("ctrl-")
    assert str(caught.value) == "invalid detach keys (ctrl-): Unknown character: 'ctrl-'"
    engine.detach_keys_check("")


def test_a_closed_stdout_is_an_error_of_its_own(redirected):
    read, write = os.pipe()
    os.close(read)
    redirected(1, write)
    os.close(write)
    near, far = socket.socketpair()
    far.sendall(frame(1, b"x"))
    with engine.signals_caught(proxy=False) as signals, pytest.raises(BrokenPipeError):
        engine.Pump(near, tty=False, stdin=False, signals=signals).run()


def test_a_stdout_that_does_not_block(redirected):
    read, write = os.pipe()
    os.set_blocking(write, False)
    redirected(1, write)
    os.close(write)
    data = os.urandom(500000)
    parts = []
    thread = threading.Timer(0.05, pipe_read_all, (read, parts))
    thread.start()
    engine.write_pieces(1, [data[:100], data[100:400000], b"", data[400000:]])
    null = os.open("/dev/null", os.O_RDWR)
    redirected(1, null)
    os.close(null)
    thread.join()
    assert b"".join(parts) == data


def test_errors_in_the_stream():
    with pytest.raises(engine.EngineError, match="error from daemon in stream: oops"):
        engine.Demultiplexer().feed(frame(3, b"oops"))


def test_fifty_megabytes_are_quick(redirected):
    null = os.open("/dev/null", os.O_WRONLY)
    redirected(1, null)
    os.close(null)
    near, far = socket.socketpair()
    block = frame(1, b"x" * 65528) * 4

    def send():
        for _ in range(200):
            far.sendall(block)
        far.close()

    thread = threading.Thread(target=send)
    thread.start()
    started = time.process_time()
    with engine.signals_caught(proxy=False) as signals:
        engine.Pump(near, tty=False, stdin=False, signals=signals).run()
    thread.join()
    assert time.process_time() - started < 0.6  # the sending thread is in it
