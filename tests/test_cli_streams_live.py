"""The terminal, signals and streams of real containers."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time

import pytest

pytestmark = pytest.mark.root
DETACH = b"\x10\x11"


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, cli, *args, rows=30, columns=100):
        self.master, slave = pty.openpty()
        self.resize(rows, columns)
        self.process = cli.popen(
            *args, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
        os.close(slave)
        self.seen = b""

    def resize(self, rows, columns):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def type(self, data):
        os.write(self.master, data)

    def until(self, text, seconds=15):
        """Reads until the text has come; what came before it is forgotten."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < end, f"no {text!r} in {self.seen!r}"
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self.master, 65536)
                except OSError:
                    break
        assert text in self.seen, self.seen
        self.seen = self.seen.partition(text)[2]

    def wait(self):
        """The exit code; output is read to its end."""
        while True:
            try:
                data = os.read(self.master, 65536)
            except OSError:
                break
            if not data:
                break
            self.seen += data
        os.close(self.master)
        return self.process.wait(20)


def shell(busybox, name):
    return Terminal(
        busybox, "run", "-it", "--rm", "--network", "none", "--name", name, "-e", "PS1=$ ",
        "busybox", "sh",
    )  # fmt: skip


def test_a_shell_on_a_terminal(busybox):
    terminal = shell(busybox, "t1")
    terminal.type(b"stty size; tty; echo [$TERM]\n")
    terminal.until(b"30 100\r\n/dev/pts/0\r\n[xterm]")
    terminal.resize(44, 132)
    os.kill(terminal.process.pid, signal.SIGWINCH)
    time.sleep(0.3)
    terminal.type(b"stty size\n")
    terminal.until(b"44 132\r\n")
    terminal.type(b"sleep 100; echo after $?\n")
    time.sleep(0.3)
    terminal.type(b"\x03")
    time.sleep(0.2)
    terminal.type(b"echo next $?\n")
    terminal.until(b"next 130")
    terminal.type(b"exit 7\n")
    assert terminal.wait() == 7
    assert busybox("ps", "-aq").out == ""


def test_detach_and_attach_again(busybox):
    terminal = shell(busybox, "t1")
    terminal.type(b"echo o''ne\n")
    terminal.until(b"one")
    terminal.type(DETACH)
    assert terminal.wait() == 0
    first, second = (Terminal(busybox, "attach", "t1") for _ in range(2))
    time.sleep(0.7)
    second.type(b"echo t''wo\n")
    first.until(b"two")
    second.until(b"two")
    second.type(DETACH)
    assert second.wait() == 1 and second.seen.endswith(b"read escape sequence\r\n")
    first.type(b"exit 3\n")
    assert first.wait() == 3


def test_a_terminal_for_exec_with_other_keys(busybox):
    name = busybox("run", "-d", "--network", "none", "busybox", "sleep", "100").ok().out.strip()
    terminal = Terminal(busybox, "exec", "-it", "--detach-keys", "ctrl-a,z", name, "sh")
    terminal.type(b"stty size\n")
    terminal.until(b"30 100\r\n")
    terminal.type(b"exit 4\n")
    assert terminal.wait() == 4
    terminal = Terminal(busybox, "exec", "-it", "--detach-keys", "ctrl-a,z", name, "sh")
    terminal.type(b"echo r''eady\n")
    terminal.until(b"ready")
    terminal.type(b"\x01z")
    assert terminal.wait() == 1


def test_signals_go_to_the_process(busybox):
    script = 'trap "echo got; exit 9" TERM; echo ready; while :; do sleep 0.1; done'
    process = busybox.popen("run", "--rm", "--network", "none", "busybox", "sh", "-c", script)
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=20)[0] == b"got\n" and process.returncode == 9


def test_a_signal_after_the_streams_are_closed(busybox):
    script = 'trap "exit 8" INT; echo ready; exec >&- 2>&-; while :; do sleep 0.1; done'
    process = busybox.popen("run", "--rm", "--network", "none", "busybox", "sh", "-c", script)
    assert process.stdout.readline() == b"ready\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 8


def test_without_proxy_only_the_client_ends(busybox):
    process = busybox.popen(
        "run", "--name", "n1", "--sig-proxy=false", "--network", "none", "busybox", "sh", "-c",
        "echo ready; sleep 100",
    )  # fmt: skip
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143
    assert busybox("inspect", "-f", "{{.State.Status}}", "n1").out == "running\n"


def test_input_output_and_their_ends(busybox):
    data = os.urandom(3 << 20)
    run = ("run", "-i", "--rm", "--network", "none", "busybox")
    done = subprocess.run(
        busybox.argv(*run, "sh", "-c", "cat; echo end >&2"),
        input=data,
        capture_output=True,
        timeout=60,
    )
    assert (done.stdout == data, done.stderr) == (True, b"end\n")
    # input that never comes, that is not read, and that is not there
    process = busybox.popen(*run, "echo", "hello")
    assert process.wait(20) == 0 and process.stdout.read() == b"hello\n"
    assert busybox(*run, "true", input=data).code == 0
    line = " ".join(busybox.argv(*run, "cat")) + " <&-"
    assert subprocess.run(["sh", "-c", line], timeout=30).returncode == 0


def test_a_reader_that_leaves(busybox):
    line = " ".join(busybox.argv("run", "--name", "n1", "--network", "none", "busybox", "yes"))
    done = subprocess.run(
        ["bash", "-c", line + " | head -n 1; echo ${PIPESTATUS[0]}"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.stdout, done.stderr) == ("y\n141\n", "")
    busybox("rm", "-f", "n1").ok()


def test_detached_in_a_substitution_returns_at_once(busybox):
    started = time.monotonic()
    line = " ".join(
        busybox.argv("run", "-d", "--rm", "--network", "none", "busybox", "sleep", "30")
    )
    done = subprocess.run(
        ["sh", "-c", f'id=$({line}); echo "$id"'], capture_output=True, text=True, timeout=20
    )
    assert len(done.stdout) == 65 and time.monotonic() - started < 10
    busybox("kill", done.stdout.strip()).ok()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_exec_whose_monitor_does_not_answer(busybox, number):
    busybox("run", "-d", "--network", "none", "--name", "t1", "busybox", "sleep", "60").ok()
    pid = busybox("inspect", "-f", "{{.State.Pid}}", "t1").ok().out.strip()
    with open(f"/proc/{pid}/stat") as file:
        monitor = int(file.read().rpartition(")")[2].split()[1])
    os.kill(monitor, signal.SIGSTOP)
    try:
        client = busybox.popen("exec", "t1", "true")
        time.sleep(0.5)
        assert client.poll() is None
        client.send_signal(number)
        assert client.wait(5) in (-number, 128 + number)
    finally:
        os.kill(monitor, signal.SIGCONT)
    busybox("rm", "-f", "t1").ok()
