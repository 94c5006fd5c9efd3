"""Attached through the docker command line: several at once, signals, detach keys, sizes; beside
Debian's dockerd."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import conftest
import pytest
from clients_help import dockerd, ours  # noqa: F401
from test_cli_streams_live import Terminal

pytestmark = [pytest.mark.root, pytest.mark.slow]
READY = "trap 'echo got TERM; exit 5' TERM; trap 'echo got USR1' USR1; echo ready; "
LOOP = READY + "while :; do sleep 0.02; done"


class Cli:
    """The docker command line on a host, as what Terminal starts."""

    def __init__(self, host):
        self.host = host

    def popen(self, *args, **kwargs):
        kwargs.setdefault("cwd", self.host.base)
        return subprocess.Popen(["docker", *args], env=self.host.environ(), **kwargs)

    def pipes(self, *args):
        return self.popen(*args, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE)


def logged(host, name, text):
    conftest.wait_for(lambda: text in host.docker("logs", name).out, 10, text)


def attached(host, count):
    """Wait until the journal tells of so many attaches to `web`."""
    id = host.docker("inspect", "-f", "{{.Id}}", "web").out.strip()

    def seen():
        out = host.docker("events", "--since", "0", "--until", f"{time.time():.9f}", "--filter",
                          "container=" + id, "--filter", "event=attach", "--format", "x").out
        return out.count("x") == count
    conftest.wait_for(seen, 10, "attached")


def several_at_once(host):
    """Output goes to all, input comes from each, and one that leaves takes nothing with it."""
    cli = Cli(host)
    host.docker("run", "-di", "--name", "web", "--network", "none", "busybox", "sh", "-c",
                "while read x; do echo out $x; echo err $x >&2; done; exit 3").ok()
    clients = [cli.pipes("attach", "web") for _ in range(3)]
    attached(host, 3)
    out = []
    for number, client in enumerate(clients):
        client.stdin.write(b"%d\n" % number)
        client.stdin.flush()
        for one in clients:
            out.append((one.stdout.readline(), one.stderr.readline()))
    clients[0].kill()
    clients[0].wait()
    clients[1].stdin.write(b"last\n")
    clients[1].stdin.flush()
    out += [(one.stdout.readline(), one.stderr.readline()) for one in clients[1:]]
    # Without StdinOnce the end of one client's input is not the end of the container's.
    clients[1].stdin.close()
    clients[2].stdin.write(b"more\n")
    clients[2].stdin.flush()
    out += [(clients[2].stdout.readline(), clients[2].stderr.readline())]
    host.docker("kill", "web").ok()
    out += [client.wait(20) for client in clients[1:]]
    return out


def signals(host):
    cli = Cli(host)
    out = []
    for options, number in (((), signal.SIGTERM), (("--sig-proxy=false",), signal.SIGTERM),
                            ((), signal.SIGUSR1)):
        client = cli.pipes("run", "--name", "web", "--network", "none", *options, "busybox", "sh",
                           "-c", LOOP)
        logged(host, "web", "ready")
        os.kill(client.pid, number)
        if number == signal.SIGUSR1:
            logged(host, "web", "got USR1")
            os.kill(client.pid, signal.SIGTERM)
        if not options:
            out.append((client.wait(20), client.stdout.read(), client.stderr.read()))
        else:                               # docker's command line does not heed the first one
            time.sleep(0.5)
            client.kill()
            client.wait(20)
            out.append(host.docker("inspect", "-f", "{{.State.Status}}", "web").out)
            out.append(host.docker("logs", "web").out)
        host.docker("rm", "-f", "web").ok()
    host.docker("run", "-d", "--name", "web", "--network", "none", "busybox", "sh", "-c", LOOP).ok()
    logged(host, "web", "ready")
    client = cli.pipes("attach", "web")
    attached(host, 1)
    os.kill(client.pid, signal.SIGTERM)
    out.append((client.wait(20), client.stdout.read(), client.stderr.read()))
    return out


def keys_and_sizes(host):
    cli = Cli(host)
    out = []
    for keys, typed in ((None, b"\x10\x11"), ("ctrl-a,x", b"\x01x")):
        options = ["--detach-keys", keys] if keys else []
        terminal = Terminal(cli, "run", "-it", "--name", "web", "--network", "none", *options, "-e",
                            "PS1=$ ", "busybox", "sh")
        terminal.until(b"$ ")
        terminal.type(b"stty size; echo end\n")
        terminal.until(b"end\r\n")
        terminal.until(b"30 100\r\nend")
        terminal.resize(44, 132)
        os.kill(terminal.process.pid, signal.SIGWINCH)
        time.sleep(0.3)
        terminal.type(b"stty size\n")
        terminal.until(b"44 132\r\n$ ")
        terminal.type(typed)
        out.append((terminal.wait(), terminal.seen))
        out.append(host.docker("inspect", "-f", "{{.State.Status}}", "web").out)
        # Two more at once: each sees what either types.
        both = [Terminal(cli, "attach", "web", *options) for _ in range(2)]
        attached(host, 3)
        both[0].type(b"echo $((40+2))\n")
        for one in both:
            one.until(b"42\r\n")
        both[1].type(typed)
        out.append(both[1].wait())
        both[0].type(b"exit 9\n")
        out.append(both[0].wait())
        host.docker("rm", "-f", "web").ok()
    return out


@pytest.mark.parametrize("story", [several_at_once, signals, keys_and_sizes])
def test_the_same(ours, dockerd, story):  # noqa: F811
    seen = []
    for host in (dockerd, ours):
        try:
            seen.append(story(host))
        finally:
            host.docker("rm", "-f", "web")
    assert seen[1] == seen[0]
