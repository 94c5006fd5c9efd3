"""A daemon as a process of its own, on roots of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import time

from door_help import Raw


class Daemon:
    """`engine.pyz daemon` of a Cli; it is ready when this is made. `.log()` is what it told."""

    def __init__(self, cli, *flags, env=None, prefix=(), hosts=True, wait=True):
        base = cli.roots.base
        self.cli = cli
        cli.used = True
        self.path = os.path.join(base, "d.sock")
        self.log_path = os.path.join(base, f"log-{time.monotonic_ns()}")
        self.file = os.path.join(base, "daemon.json")
        if "--config-file" not in flags and not os.path.exists(self.file):
            with open(self.file, "w") as out:
                out.write("{}")
        words = ["daemon", *flags]
        if "--config-file" not in flags:
            words += ["--config-file", self.file]
        if hosts:
            words += ["-H", "unix://" + self.path]
        self.notices = Notices()
        environ = cli.environ({"NOTIFY_SOCKET": self.notices.address, **(env or {})})
        with open(self.log_path, "w") as log:
            self.process = subprocess.Popen(
                [*prefix, *cli.argv(*words)], stdin=subprocess.DEVNULL, stderr=log, env=environ
            )
        self.pid = self.process.pid
        if wait and not self.notices.seen("READY=1"):
            raise AssertionError(f"not ready: {self.log()}")

    def log(self):
        with open(self.log_path) as log:
            return log.read()

    def told(self):
        """The messages in the log."""
        return re.findall(r'msg="?(.*?)"?(?: \w[\w-]*=|$)', self.log(), re.M)

    def ask(self, target, method="GET", body=None, **headers):
        client = Raw(self.path)
        try:
            return client.ask(target, method, body, **headers)
        finally:
            client.close()

    def get(self, target):
        reply = self.ask(target)
        assert reply.status == 200, reply.body
        return reply.json()

    def docker(self, *words, check=True, **options):
        """Output of Docker's own command line against this daemon."""
        done = subprocess.run(
            ["docker", "-H", "unix://" + self.path, *words],
            capture_output=True, text=True, timeout=60, check=False, **options,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stderr
        return done.stdout

    def configuration(self):
        """RUN/daemon.json; None where there is none."""
        try:
            with open(os.path.join(self.cli.roots.run, "daemon.json")) as file:
                return json.load(file)
        except FileNotFoundError:
            return None

    def reload(self, document=None):
        """SIGHUP with a new file; True when systemd was told of the beginning and the end."""
        if document is not None:
            with open(self.file, "w") as out:
                json.dump(document, out)
        del self.notices.texts[:]
        self.process.send_signal(signal.SIGHUP)
        return self.notices.seen("RELOADING=1") and self.notices.seen("READY=1")

    def kill(self):
        self.process.kill()
        self.process.wait(10)

    def end(self, number=signal.SIGTERM, timeout=30):
        """The exit code after a signal."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(timeout)
        self.notices.drain()
        self.notices.close()
        return code

    def close(self):
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait(10)
        self.notices.close()


class Notices:
    """A socket as systemd has it for sd_notify(3), in the abstract name space."""

    def __init__(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        name = f"engine-test-{os.getpid()}-{time.monotonic_ns()}"
        self.sock.bind("\0" + name)
        self.address = "@" + name
        self.texts = []

    def drain(self, timeout=0.0):
        if self.sock.fileno() < 0:
            return
        self.sock.settimeout(timeout or 0.001)
        try:
            while True:
                self.texts += self.sock.recv(4096).decode().split("\n")
        except OSError:
            pass

    def seen(self, text, timeout=15.0):
        """Whether a message came; what came before it is kept in .texts."""
        end = time.monotonic() + timeout
        while text not in self.texts:
            if time.monotonic() > end:
                return False
            self.drain(0.1)
        return True

    def close(self):
        self.sock.close()
