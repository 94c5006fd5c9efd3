"""terminals: ptys, sizes, raw mode, descriptors over sockets."""

import errno
import fcntl
import os
import socket
import termios

import engine
import pytest
from kernel_help import in_child


@pytest.fixture
def pty():
    master, number = engine.pty_open()
    slave = engine.pty_slave(master)
    yield master, slave, number
    os.close(master)
    os.close(slave)


def test_pty_pair(pty):
    master, slave, number = pty
    assert os.ttyname(slave) == f"/dev/pts/{number}"
    os.write(slave, b"hello\n")
    assert os.read(master, 100) == b"hello\r\n"
    assert not os.get_inheritable(master)
    assert not os.get_inheritable(slave)


def test_controlling_terminal(pty):
    _, slave, _ = pty

    def control():
        os.setsid()
        engine.pty_control(slave)
        fd = os.open("/dev/tty", os.O_RDWR)
        return os.tcgetpgrp(fd) == os.getpid()
    assert in_child(control)


def test_window_size(pty):
    master, slave, _ = pty
    engine.winsize_set(master, 40, 132)
    assert engine.winsize_get(slave) == (40, 132)
    engine.winsize_set(master, 70000, 1)
    assert engine.winsize_get(slave) == (65535, 1)


def test_window_size_of_no_terminal():
    reader, writer = os.pipe()
    with pytest.raises(OSError) as caught:
        engine.winsize_get(reader)
    assert caught.value.errno == errno.ENOTTY
    os.close(reader)
    os.close(writer)


def test_raw_mode_and_back(pty):
    _, slave, _ = pty
    before = termios.tcgetattr(slave)
    with engine.raw_mode(slave) as raw:
        assert not termios.tcgetattr(slave)[3] & (termios.ECHO | termios.ISIG | termios.ICANON)
        raw.restore()
        assert termios.tcgetattr(slave) == before
    assert termios.tcgetattr(slave) == before


def test_raw_mode_survives_a_closed_terminal():
    master, _ = engine.pty_open()
    slave = engine.pty_slave(master)
    with engine.raw_mode(slave):
        os.close(slave)
    os.close(master)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_descriptors_travel(kind):
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    reader, writer = os.pipe()
    assert engine.fds_send(ours, b"take", (reader, writer)) == 4
    data, fds = engine.fds_recv(theirs, 100, 2)
    assert data == b"take"
    assert len(fds) == 2
    os.write(fds[1], b"through")
    assert os.read(reader, 10) == b"through"
    assert all(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC for fd in fds)
    engine.fds_send(ours, b"bare")
    assert engine.fds_recv(theirs, 100, 2) == (b"bare", [])
    ours.close()
    assert engine.fds_recv(theirs, 100, 2) == (b"", [])
    theirs.close()
    for fd in (reader, writer, *fds):
        os.close(fd)


def test_unexpected_descriptors_are_closed():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    before = len(os.listdir("/proc/self/fd"))
    engine.fds_send(ours, b"x", (0, 1, 2, 0, 1, 2))
    data, fds = engine.fds_recv(theirs, 100, 1)
    assert (data, len(fds)) == (b"x", 1)
    os.close(fds[0])
    engine.fds_send(ours, b"x", (0, 1))
    assert engine.fds_recv(theirs, 100) == (b"x", [])
    engine.fds_send(ours, b"too long", (0, 1))
    with pytest.raises(OSError, match="longer than expected"):
        engine.fds_recv(theirs, 3, 2)
    assert len(os.listdir("/proc/self/fd")) == before
    ours.close()
    theirs.close()


def test_peer():
    ours, theirs = socket.socketpair()
    assert engine.peer_cred(ours) == (os.getpid(), os.getuid(), os.getgid())
    ours.close()
    theirs.close()
