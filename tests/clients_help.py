"""Engines behind a socket, for clients written elsewhere: ours, and Debian's dockerd beside it."""

from __future__ import annotations

import http.client
import json
import os
import shlex
import shutil
import socket
import subprocess
import tempfile

import conftest
import pytest

DOCKERD = ("/usr/sbin/dockerd", "/usr/bin/dockerd")
#: It would use the containerd of the machine if it saw one, and change the machine's network.
ALONE = (
    "unshare",
    "-mn",
    "--propagation",
    "private",
    "sh",
    "-c",
    'mkdir -p /run/containerd && mount -t tmpfs tmpfs /run/containerd && exec "$0" "$@"',
)


class Host:
    """An engine that listens on `.socket`; `.docker(...)` runs the docker command line on it."""

    def __init__(self, base, process):
        self.base, self.process = base, process
        self.socket = os.path.join(base, "docker.sock")
        self.config = os.path.join(base, "config")
        os.makedirs(self.config, exist_ok=True)
        #: The version of the API to be spoken; empty: what client and engine agree on.
        self.version = ""

    def environ(self):
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        more = {"DOCKER_API_VERSION": self.version} if self.version else {}
        return {
            **kept,
            **more,
            "DOCKER_HOST": "unix://" + self.socket,
            "DOCKER_CONFIG": self.config,
        }

    def docker(self, *args, input=b"", timeout=60):
        """Result of `docker ARGS`."""
        done = subprocess.run(
            ["docker", *args],
            input=input,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            timeout=timeout,
            env=self.environ(),
            cwd=self.base,
        )
        return conftest.Result(args, done.returncode, done.stdout, done.stderr)

    def line(self, text):
        """The same of a line of words; ` < ` begins its input, containers have no network."""
        text, _, given = text.partition(" < ")
        words = shlex.split(text)
        if words[0] in ("run", "create"):
            words[1:1] = ["--network", "none"]
        return self.docker(*words, input=given.encode())

    def wait(self):
        """Itself once it answers; False when it ended or does not within half a minute."""

        def answers():
            return self.process.poll() is not None or (
                os.path.exists(self.socket) and self.docker("version").code == 0
            )

        conftest.wait_for(answers, 30, "the engine answers")
        return self.process.poll() is None

    def end(self):
        ids = self.docker("ps", "-aq").out.split()
        if ids:
            self.docker("rm", "-f", *ids)
        self.process.terminate()
        self.process.wait(30)


class Reply:
    """An HTTP reply read to its end: `.status`, `.headers`, `.body`, `.json()`."""

    def __init__(self, reply):
        self.status, self.headers, self.body = reply.status, dict(reply.headers), reply.read()

    def json(self):
        return json.loads(self.body)


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path, timeout=30):
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def api(host, method, path, body=None, headers=None):
    """Reply to one request; a body that is no text or bytes is sent as JSON."""
    headers = dict(headers or {})
    if body is not None and not isinstance(body, (bytes, str)):
        body = json.dumps(body)
        headers.setdefault("Content-Type", "application/json")
    connection = UnixConnection(host.socket)
    try:
        connection.request(method, path, body, headers)
        return Reply(connection.getresponse())
    finally:
        connection.close()


def needs_docker():
    """Skips where there is no docker command line."""
    if not shutil.which("docker"):
        pytest.skip("no docker command line: apt-get install docker.io")


@pytest.fixture(scope="module")
def ours(pyz, busybox_tar, session_base):
    """The built engine.pyz as a daemon that has busybox:latest."""
    base = tempfile.mkdtemp(prefix="ours-", dir=session_base)
    roots = conftest.Roots(base)
    cli = conftest.Cli(pyz, roots)
    cli("load", "-i", busybox_tar).ok()
    process = cli.popen(
        "daemon",
        "-H",
        f"unix://{base}/docker.sock",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=open(os.path.join(base, "log"), "ab"),
    )
    host = Host(base, process)
    conftest.wait_for(lambda: os.path.exists(host.socket), 10, "the socket")
    yield host
    ids = cli("ps", "-aq").out.split()
    if ids:
        cli("rm", "-f", *ids)
    process.terminate()
    assert process.wait(30) == 0
    conftest.end_launchers(roots.run)
    shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(scope="module")
def dockerd(busybox_tar, session_base):
    """Debian's dockerd with roots, a containerd and a cgroup parent of its own, and busybox."""
    program = next(filter(os.path.exists, DOCKERD), None)
    if not program or not shutil.which("docker"):
        pytest.skip("no dockerd to compare with: apt-get install docker.io")
    base = tempfile.mkdtemp(prefix="dockerd-", dir=session_base)
    log = os.path.join(base, "log")
    with open(os.path.join(base, "daemon.json"), "w") as file:
        file.write("{}")
    process = subprocess.Popen(
        [
            *ALONE,
            program,
            f"--host=unix://{base}/docker.sock",
            f"--data-root={base}/data",
            f"--exec-root={base}/run",
            f"--pidfile={base}/pid",
            f"--config-file={base}/daemon.json",
            "--cgroup-parent=/engine-peer",
            "--exec-opt=native.cgroupdriver=cgroupfs",
            "--bridge=none",
            "--iptables=false",
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=open(log, "ab"),
    )
    host = Host(base, process)
    if not host.wait():
        with open(log) as file:
            pytest.skip("dockerd does not start here: " + file.read()[-300:])
    host.docker("load", "-i", busybox_tar).ok()
    yield host
    host.end()
    cgroups_remove("engine-peer")
    subprocess.run(["rm", "-rf", base], check=False)


def cgroups_remove(name):
    """The empty directories that a peer left in the hierarchies."""
    with open("/proc/self/mountinfo") as file:
        tops = [line.split()[4] for line in file if " - cgroup" in line]
    for top in tops:
        for path, _, _ in os.walk(os.path.join(top, name), topdown=False):
            try:
                os.rmdir(path)
            except OSError:
                continue
