"""The server in a daemon of its own: clients of others, systemd's sockets, memory under load.
"""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import socket
import subprocess
import threading
import time

import pytest
from conftest import Result, reap_orphans
from door_help import Raw, free_port
from tls_help import authority, issued

pytestmark = pytest.mark.root


class Daemon:
    """A running daemon: `.path` is its socket, `.pid` its process."""

    def __init__(self, cli, *args, **options):
        self.cli = cli
        self.path = os.path.join(cli.roots.base, "s.sock")
        self.log = open(os.path.join(cli.roots.base, "log"), "wb")
        self.process = cli.popen("daemon", *(args or ["-H", "unix://" + self.path]),
                                 stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
                                 **options)
        self.pid = self.process.pid

    def ready(self):
        deadline = time.monotonic() + 15
        while b"completed initialization" not in self.told() and time.monotonic() < deadline:
            assert self.process.poll() is None, self.told()
            time.sleep(0.02)
        return self

    def told(self):
        with open(self.log.name, "rb") as file:
            return file.read()

    def memory(self):
        """KiB that only this process has."""
        with open(f"/proc/{self.pid}/smaps_rollup") as file:
            return sum(int(line.split()[1]) for line in file if line.startswith("Private"))

    def close(self):
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(20)
        self.log.close()
        assert code == 0, self.told()


@pytest.fixture
def daemon(busybox):
    made = Daemon(busybox).ready()
    yield made
    busybox("rm", "-f", *busybox("ps", "-aq").out.split())
    made.close()


@pytest.fixture
def docker(daemon):
    """The docker CLI on the daemon's socket."""
    if not shutil.which("docker"):
        pytest.skip("no docker CLI")

    def run(*args, input=b"", host="unix://" + daemon.path, **env):
        done = subprocess.run(
            ["docker", "-H", host, *args], input=input, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, timeout=30, env={**os.environ, **env})
        reap_orphans()
        return Result(list(args), done.returncode, done.stdout, done.stderr)

    run.daemon = daemon
    return run


def test_docker_cli(docker):
    assert docker("version", "--format", "{{.Server.APIVersion}}").ok().out == "1.51\n"
    run = ["run", "--network", "none"]
    assert docker(*run, "--rm", "busybox", "sh", "-c", "echo hi; echo no >&2; exit 3").code == 3
    assert docker(*run, "-i", "--rm", "busybox", "cat", input=b"x" * 500000).raw == b"x" * 500000
    id = docker(*run, "-d", "--name", "web", "busybox", "sh", "-c",
                "echo started; sleep 60").ok().out.strip()
    assert docker("exec", "-i", "web", "cat", input=b"by exec").out == "by exec"
    assert docker("exec", "web", "sh", "-c", "exit 7").code == 7
    assert docker("logs", "web").out == "started\n"
    assert docker("ps", "-q", "--no-trunc").out.strip() == id
    waiter = subprocess.Popen(["docker", "-H", "unix://" + docker.daemon.path, "wait", "web"],
                              stdout=subprocess.PIPE)
    time.sleep(0.3)
    assert docker("kill", "web").ok()
    assert waiter.communicate(timeout=10)[0] == b"137\n"
    told = docker("events", "--since", "0", "--until", str(int(time.time()) + 1), "--filter",
                  "container=web", "--format", "{{.Action}}").out.split("\n")
    assert [each.partition(":")[0] for each in told if each][-2:] == ["kill", "die"]
    assert docker("rm", "web").ok().out == "web\n"


def test_docker_cli_with_a_terminal(docker):
    master, slave = pty.openpty()
    client = subprocess.Popen(
        ["docker", "-H", "unix://" + docker.daemon.path, "run", "-it", "--rm", "--network", "none",
         "busybox", "sh"], stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    seen = b""

    def until(text):
        nonlocal seen
        while text not in seen:
            seen += os.read(master, 4096)

    until(b"# ")
    os.write(master, b"echo $((6*7)); tty\n")
    until(b"42\r\n/dev/pts/0")
    os.write(master, b"exit 5\n")
    assert client.wait(10) == 5
    os.close(master)


def test_docker_cli_over_tls(busybox, monkeypatch):
    if not shutil.which("docker"):
        pytest.skip("no docker CLI")
    port = free_port()
    cert, key = issued("server")
    files = ["--tlsverify", "--tlscacert", authority().ca, "--tlscert", cert, "--tlskey", key]
    daemon = Daemon(busybox, *files, "-H", f"tcp://127.0.0.1:{port}").ready()
    try:
        def docker(cert, key, *args, input=b""):
            done = subprocess.run(
                ["docker", "-H", f"tcp://127.0.0.1:{port}", "--tlsverify", "--tlscacert",
                 authority().ca, "--tlscert", cert, "--tlskey", key, *args], input=input,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=30)
            return Result(list(args), done.returncode, done.stdout, done.stderr)

        mine = issued("client")
        run = ["run", "-i", "--rm", "--network", "none", "busybox"]
        assert docker(*mine, *run, "wc", "-c", input=b"x" * 300000).ok().out == "300000\n"
        assert docker(*mine, *run, "sh", "-c", "exit 4").code == 4
        refused = docker(*issued("client", "other"), "version")
        assert refused.code == 1 and "tls: " in refused.err
    finally:
        daemon.close()


def test_curl(daemon):
    if not shutil.which("curl"):
        pytest.skip("no curl")

    def curl(*args):
        return subprocess.run(
            ["curl", "-sS", "--max-time", "10", "--unix-socket", daemon.path, *args],
            stdout=subprocess.PIPE, check=True).stdout

    assert curl("http://x/_ping") == b"OK"
    assert json.loads(curl("http://x/v1.41/containers/json")) == []
    assert curl("-I", "http://x/_ping").startswith(b"HTTP/1.1 200 OK\r\n")
    assert curl("-o", "/dev/null", "-w", "%{http_code}", "-T", "/dev/null",
                "-X", "POST", "-H", "Expect: 100-continue", "http://x/containers/create") == b"400"
    assert curl("-H", "Connection: Upgrade, HTTP2-Settings", "-H", "Upgrade: h2c",
                "http://x/_ping") == b"OK"


def test_sockets_of_systemd(cli):
    """The daemon serves what it was given, and nobody that it starts inherits any of it."""
    listener = socket.socket(socket.AF_UNIX)
    path = os.path.join(cli.roots.base, "given.sock")
    listener.bind(path)
    listener.listen()

    def place():
        os.dup2(listener.fileno(), 3)
        os.environ["LISTEN_PID"] = str(os.getpid())

    # The pid is known in the process itself only: a shell puts it into the environment.
    daemon = Daemon.__new__(Daemon)
    daemon.cli, daemon.path = cli, path
    daemon.log = open(os.path.join(cli.roots.base, "log"), "wb")
    cli.used = True
    daemon.process = subprocess.Popen(
        ["sh", "-c", 'LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=api NOTIFY_SOCKET=@x exec "$@"',
         "sh", *cli.argv("daemon", "-H", "fd://api")],
        preexec_fn=place, pass_fds=[3], env=cli.environ(), stdin=subprocess.DEVNULL,
        stdout=daemon.log, stderr=daemon.log)
    daemon.pid = daemon.process.pid
    daemon.ready()
    inode = os.fstat(listener.fileno()).st_ino
    client = Raw(path)
    assert client.ask("/_ping").body == b"OK"
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                is_ours = cli.roots.run.encode() in file.read() and int(pid) != daemon.pid
            if is_ours:
                fds = [os.stat(f"/proc/{pid}/fd/{fd}").st_ino
                       for fd in os.listdir(f"/proc/{pid}/fd")]
                with open(f"/proc/{pid}/environ", "rb") as file:
                    assert b"LISTEN" not in (text := file.read()) and b"NOTIFY" not in text
                assert inode not in fds
        except FileNotFoundError:
            continue
    client.close()
    daemon.close()
    assert os.path.exists(path)                         # it is systemd's, and stays
    listener.close()


@pytest.mark.slow
def test_memory_is_flat(daemon):
    """Requests of all kinds leave nothing behind: no memory, no descriptor, no thread."""
    def load(count):
        client = Raw(daemon.path)
        for n in range(count):
            client.ask(("/_ping", "/v1.41/version", "/containers/json?all=1", "/nothing",
                        "/containers/nosuch/json", "/containers/json?filters=%7B")[n % 6])
        client.close()
        for n in range(count // 4):
            client = Raw(daemon.path)
            client.send(b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1, 2\r\n\r\n" if n % 2
                        else b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
            client.head()
            client.close()

    def crowd():
        clients = [Raw(daemon.path) for _ in range(500)]
        for client in clients:
            client.send("GET /containers/json HTTP/1.1\r\nHost: x\r\n\r\n")
        assert {client.reply().body for client in clients} == {b"[]\n"}
        for client in clients:
            client.close()

    def counts():
        return [len(os.listdir(f"/proc/{daemon.pid}/{what}")) for what in ("fd", "task")]

    for _ in range(2):
        load(2000)
        crowd()
    time.sleep(1)
    memory, (fds, threads) = daemon.memory(), counts()
    workers = [threading.Thread(target=load, args=(4000,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    crowd()
    deadline = time.monotonic() + 10
    while (daemon.memory() > memory + 2048 or counts()[0] > fds + 4) and \
            time.monotonic() < deadline:
        time.sleep(0.1)
    assert daemon.memory() <= memory + 2048
    assert counts()[0] <= 100  # of 500 at once; the database's files are closed by nobody
    assert counts()[0] <= fds + 4 and counts()[1] <= threads + 4
