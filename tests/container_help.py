"""A whole engine in this process with one image, for the tests of sections above the monitor.

`box` is what a test gets: .run(), .create(), .client and .engine. The image is a directory around a
static busybox, put where the layers are, so that nothing of the image sections is needed.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import sys

import conftest
import engine
import pytest

IMAGE, OTHER = "sha256:" + "1" * 64, "sha256:" + "2" * 64
NEVER = "0001-01-01T00:00:00Z"


class OneImage:
    """Stands for Images: it knows `busybox` and nothing else."""

    warning = ""
    config = {"Env": ["PATH=/bin", "A=image"], "Cmd": ["sh"]}

    def for_container(self, ref, platform=""):
        if ref != "busybox":
            raise engine.NotFound(f"No such image: {ref}:latest")
        return {
            "id": IMAGE,
            "os": "linux",
            "config": self.config,
            "layers": ["layers/1/diff"],
            "warning": self.warning,
        }

    def ids_of(self, ref):
        return [IMAGE] if ref == "busybox" else []


class Box:
    """An engine with roots of its own."""

    def __init__(self, roots):
        self.roots = roots
        self.store = engine.Store(roots.data, roots.run)
        self.store.roots_make()
        self.engine = engine.Engine(self.store)
        self.engine._images = OneImage()
        self.client = engine.ApiClient(engine.LocalTransport(lambda: self.engine))
        self.containers = self.engine.containers
        with self.store.write() as db:
            for id in (IMAGE, OTHER):
                db.execute("INSERT INTO images VALUES(?, '', NULL, 5000, 0, 0, '{}')", (id,))

    def image(self):
        """Fill the layer."""
        layer = pathlib.Path(self.store.path("layers", "1", "diff"))
        for info, data in conftest.rootfs_members():
            path = layer / info.name
            if info.isdir():
                path.mkdir(parents=True, exist_ok=True)
            elif info.islnk():
                os.link(layer / info.linkname, path)
            else:
                path.write_bytes(data)
            os.chmod(path, info.mode)

    def body(self, *command, host=None, **config):
        return {
            "Image": "busybox",
            "Cmd": list(command),
            "HostConfig": {"NetworkMode": "none", **(host or {})},
            **config,
        }

    def create(self, *command, name="", host=None, **config):
        body = self.body(*command, host=host, **config)
        return self.client.post("/containers/create", {"name": name}, body)["Id"]

    def run(self, *command, host=None, **config):
        """(stdout, stderr, exit code, id) of a container that ran to its end."""
        id = self.create(*command, host=host, **config)
        streams = self.attach(id)
        condition = "removed" if (host or {}).get("AutoRemove") else "next-exit"
        waiter = self.client.wait(id, condition)
        self.client.post(f"/containers/{id}/start")
        out, err = frames(streams, config.get("Tty", False))
        return out, err, waiter.result()["StatusCode"], id

    def attach(self, id, **query):
        asked = {"stream": 1, "stdout": 1, "stderr": 1, **query}
        return self.client.hijack(f"/containers/{id}/attach", asked)

    def inspect(self, id):
        return self.client.get(f"/containers/{id}/json")

    def logs(self, id, **query):
        asked = {"stdout": 1, "stderr": 1, **query}
        return b"".join(self.client.stream("GET", f"/containers/{id}/logs", asked))

    def actions(self):
        """What the journal holds, as "start", "die", ..."""
        events = engine.event_follow(self.store, 0, engine.time_now())
        return [event["Action"] for event in events if event["Type"] == "container"]

    def clear(self):
        for c in self.containers.all():
            self.containers.remove(c.id, force=True)


def received(sock):
    parts = []
    while True:
        part = sock.recv(65536)
        if not part:
            sock.close()
            return b"".join(parts)
        parts.append(part)


def frames(sock, tty=False):
    """(stdout, stderr) of a multiplexed stream read to its end."""
    data = received(sock)
    if tty:
        return data, b""
    out = {1: b"", 2: b""}
    while data:
        size = int.from_bytes(data[4:8], "big")
        out[data[0]] += data[8 : 8 + size]
        data = data[8 + size :]
    return out[1], out[2]


@pytest.fixture
def bare_box(roots):
    """A box that has no image yet and starts nothing."""
    return Box(roots)


@pytest.fixture
def box(roots, monkeypatch):
    """A box whose containers run; they are removed at the end."""
    program = os.environ.get("ENGINE") or conftest.TOP / "engine.py"
    monkeypatch.setattr(sys, "argv", [str(program), *sys.argv[1:]])
    made = Box(roots)
    made.image()
    yield made
    made.clear()
    assert os.listdir(made.store.path("containers")) == []
    shutil.rmtree(made.store.path("layers"))
