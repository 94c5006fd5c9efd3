"""stdio: streams between a process, its log and its clients."""

import os
import socket
import time

import pytest
from test_monitor import NONE, state


@pytest.fixture
def store(engine, busybox):
    return engine.Store(busybox.roots.data, busybox.roots.run)


def attached(engine, store, id):
    """A socket that gets the container's output as it is."""
    ours, theirs = socket.socketpair()
    message = {"verb": "attach", "stdout": True, "stderr": True, "mux": False}
    engine.monitor_call(store, id, message, [theirs.fileno()], start=True)
    theirs.close()
    return ours


@pytest.mark.root
def test_output_is_binary_safe_and_in_order(busybox):
    program = "for n in $(seq 300); do echo out$n; echo err$n >&2; done; printf '\\000\\377\\200'"
    done = busybox("run", "--rm", *NONE, "busybox", "sh", "-c", program).ok()
    assert done.raw == b"".join(b"out%d\n" % n for n in range(1, 301)) + b"\x00\xff\x80"
    assert done.raw_err == b"".join(b"err%d\n" % n for n in range(1, 301))


@pytest.mark.root
def test_a_client_that_does_not_read_stops_the_writer_and_nothing_else(engine, busybox, store):
    id = busybox(
        "create",
        *NONE,
        "busybox",
        "sh",
        "-c",
        "yes 0123456789012345678901234567890123456789 | head -c 30000000; echo end",
    ).out.strip()
    ours = attached(engine, store, id)
    busybox("start", id).ok()
    time.sleep(0.5)
    assert state(busybox, id)["Running"], "the writer must be waiting"
    assert busybox("exec", id, "echo", "alive").ok().out == "alive\n"
    got = 0
    tail = b""
    while True:
        data = ours.recv(1 << 20)
        if not data:
            break
        got += len(data)
        tail = (tail + data)[-4:]
    ours.close()
    assert got == 30000004 and tail == b"end\n"


@pytest.mark.root
def test_stdin_goes_in_and_its_end_too(busybox):
    data = os.urandom(3 << 20)
    done = busybox("run", "--rm", "-i", *NONE, "busybox", "cat", input=data).ok()
    assert done.raw == data
    done = busybox("run", "--rm", "-i", *NONE, "busybox", "wc", "-c", input=b"").ok()
    assert done.out.strip() == "0"
    done = busybox("run", "--rm", *NONE, "busybox", "wc", "-c", input=b"not wanted").ok()
    assert done.out.strip() == "0"


@pytest.mark.root
def test_many_clients_see_the_same(engine, busybox, store):
    id = busybox("create", *NONE, "busybox", "sh", "-c", "seq 1000").out.strip()
    clients = [attached(engine, store, id) for _ in range(5)]
    busybox("start", id).ok()
    expected = b"".join(b"%d\n" % n for n in range(1, 1001))
    for ours in clients:
        seen = b""
        while True:
            data = ours.recv(1 << 16)
            if not data:
                break
            seen += data
        ours.close()
        assert seen == expected


@pytest.mark.parametrize(
    "text, keys",
    [
        ("ctrl-p,ctrl-q", b"\x10\x11"),
        ("a", b"a"),
        ("ctrl-@,ctrl-[,ctrl-_", b"\x00\x1b\x1f"),
        ("ctrl-A,z", b"\x01z"),
    ],
)
def test_detach_keys(engine, text, keys):
    assert engine.detach_keys_parse(text) == keys


@pytest.mark.parametrize("text", ["", "ctrl-", "ctrl-pp", "abc", "ctrl-1", "a,", "ctrl-\u00e4"])
def test_detach_keys_that_are_none(engine, text):
    with pytest.raises(engine.InvalidParameter, match="invalid detach keys"):
        engine.detach_keys_parse(text)
