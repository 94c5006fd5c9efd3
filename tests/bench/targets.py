"""The engines under test: how each is started, driven and ended; every one has roots of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time


class Failed(Exception):
    """A command did not do what it had to."""


def spawn(command, env=None, timeout=300, keep=True):
    """(exit code, output, errors, seconds) of a command.

    Output goes to a memfd: a monitor that keeps a pipe open could hang the benchmark, a file can't.
    """
    out, err = os.memfd_create("out"), os.memfd_create("err")
    try:
        begin = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            env=env,
            close_fds=False,
            stderr=err,
            stdout=out if keep else subprocess.DEVNULL,
        )
        timer = threading.Timer(timeout, process.kill)
        timer.daemon = True
        timer.start()
        code = process.wait()
        seconds = time.perf_counter() - begin
        timer.cancel()
        return code, memfd_text(out), memfd_text(err), seconds
    finally:
        os.close(out)
        os.close(err)


def memfd_text(fd):
    size = os.fstat(fd).st_size
    return os.pread(fd, size, 0) if size else b""


def wait_until(condition, timeout, what):
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise Failed(f"{what}: not within {timeout} s")
        time.sleep(0.02)


def proc_name(pid):
    try:
        with open(f"/proc/{pid}/comm") as file:
            return file.read().strip()
    except OSError:
        return ""


def proc_line(pid):
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            return file.read()
    except OSError:
        return ""


def descendants():
    """Pids of everything below this process, which is a child subreaper."""
    parents = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            parents[int(pid)] = int(fields[1])
    below = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    return below - {os.getpid()}


class Target:
    """One engine. `prefix` is its command line, `env` its environment."""

    name = ""
    log_options = ("--log-opt", "max-size=1g")

    def __init__(self, base):
        self.base = os.path.join(base, self.name)
        self.env = dict(os.environ)
        self.program = [self.name]
        self.prefix = []
        self.count = 0

    def start(self, data=None):
        """Ready for commands afterwards; its data lies below `data`, else below its base."""

    def end(self):
        """Nothing of it runs any more."""

    def cool(self):
        """As after a boot: no process that could have been kept warm."""

    def monitors(self):
        """Pids of the processes that stay for a container."""
        return []

    def new_name(self):
        self.count += 1
        return f"bench-{os.getpid()}-{self.count}"

    def run(self, *args, keep=True):
        """(output, seconds); Failed unless it exits with 0."""
        code, out, err, seconds = spawn([*self.prefix, *args], self.env, keep=keep)
        if code:
            said = (err.strip() or out.strip()).decode(errors="replace")[-300:]
            raise Failed(f"{self.name} {' '.join(args[:3])}: exit code {code}: {said}")
        return out, seconds

    def seconds(self, *args):
        return self.run(*args, keep=False)[1]

    def check(self, image):
        """The image loads, a container prints and its exit code comes back; else Failed."""
        self.run("load", "-i", image)
        line = ["run", "--rm", "--network", "none", "bench-busybox:latest", "sh", "-c"]
        if self.run(*line, "echo hello")[0] != b"hello\n":
            raise Failed(f"{self.name}: wrong output")
        code = spawn([*self.prefix, *line, "exit 7"], self.env)[0]
        if code != 7:
            raise Failed(f"{self.name}: exit code {code} instead of 7")

    def remove(self, *names):
        if names:
            spawn([*self.prefix, "kill", *names], self.env)  # podman's rm -f waits 10 s for a pid 1
            spawn([*self.prefix, "rm", "-f", *names], self.env)


class EngineTarget(Target):
    """engine.pyz without a daemon."""

    name = "engine"

    def __init__(self, base, python, pyz):
        super().__init__(base)
        self.program = [python, pyz]
        self.start()

    def start(self, data=None):
        self.runtime = os.path.join(self.base, "run")
        roots = ["--data-root", os.path.join(data or self.base, "data"), "--run-root", self.runtime]
        self.prefix = [*self.program, *roots]

    def launchers(self):
        return [pid for pid in descendants() if proc_name(pid) == "engine:launcher"]

    def keepers(self):
        """Pids of what keeps a process waiting for the next command."""
        return [pid for pid in descendants() if proc_name(pid).startswith("engine:command")]

    def end(self):
        def is_over():
            """One that was just being forked is told the next time."""
            found = (*self.launchers(), *self.keepers())
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
            return not found

        wait_until(is_over, 10, "the launcher ends")

    def cool(self):
        self.end()
        shutil.rmtree(self.runtime, ignore_errors=True)

    def monitors(self):
        return [pid for pid in descendants() if proc_name(pid) == "engine:monitor"]


class DaemonTarget(EngineTarget):
    """engine.pyz as a daemon, driven by the docker command line and by the raw API."""

    name = "daemon"

    def start(self, data=None):
        os.makedirs(self.base, exist_ok=True)
        super().start(data)
        self.command = self.prefix
        self.socket = os.path.join(self.base, "docker.sock")
        self.prefix = ["docker", "-H", "unix://" + self.socket]
        self.env["DOCKER_CONFIG"] = self.base
        self.process = None

    def serve(self):
        with open(os.path.join(self.base, "log"), "ab") as log:
            self.process = subprocess.Popen(
                [*self.command, "daemon", "-H", "unix://" + self.socket],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait_until(lambda: os.path.exists(self.socket), 20, "the daemon answers")

    def launchers(self):
        return [pid for pid in super().launchers() if self.runtime in proc_line(pid)]

    def core(self):
        """Pids of what is there once, however many containers there are."""
        return [self.process.pid, *self.launchers()]

    def end(self):
        if self.process:
            self.process.terminate()
            self.process.wait(30)
            self.process = None
        super().end()


class DockerTarget(Target):
    """Debian's dockerd with a containerd of its own."""

    name = "docker"

    def __init__(self, base):
        super().__init__(base)
        self.process = None
        self.socket = os.path.join(self.base, "docker.sock")
        self.prefix = ["docker", "-H", "unix://" + self.socket]
        self.env["DOCKER_CONFIG"] = self.base

    def start(self, data=None):
        if self.process:
            self.end()
        os.makedirs(self.base, exist_ok=True)
        self.log = open(os.path.join(self.base, "log"), "ab")
        self.process = subprocess.Popen(
            [
                "dockerd",
                "--data-root",
                os.path.join(data or self.base, "data"),
                "--host",
                "unix://" + self.socket,
                "--exec-root",
                os.path.join(self.base, "run"),
                "--pidfile",
                os.path.join(self.base, "pid"),
                "--exec-opt",
                "native.cgroupdriver=cgroupfs",
                "--storage-driver",
                "overlay2",
            ],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
        )
        wait_until(
            lambda: (
                spawn([*self.prefix, "version"], self.env)[0] == 0
                or self.process.poll() is not None
            ),
            60,
            "dockerd answers",
        )
        if self.process.poll() is not None:
            raise Failed(f"dockerd ended: see {self.log.name}")

    def end(self):
        if self.process:
            self.process.terminate()
            self.process.wait(30)
            self.process = None
            self.log.close()

    def core(self):
        return [pid for pid in descendants() if proc_name(pid) in ("dockerd", "containerd")]

    def monitors(self):
        return [pid for pid in descendants() if proc_name(pid).startswith("containerd-shim")]


PODMAN_CONF = """
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=32768:32768"]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
"""


class PodmanTarget(Target):
    """Debian's podman with runc and conmon."""

    name = "podman"

    def start(self, data=None):
        os.makedirs(self.base, exist_ok=True)
        conf = os.path.join(self.base, "containers.conf")
        with open(conf, "w") as file:
            file.write(PODMAN_CONF)
        self.env["CONTAINERS_CONF"] = conf
        self.prefix = [
            "podman",
            "--root",
            os.path.join(data or self.base, "data"),
            "--runroot",
            os.path.join(self.base, "run"),
            "--storage-driver",
            "overlay",
        ]

    def monitors(self):
        return [pid for pid in descendants() if proc_name(pid) == "conmon"]
