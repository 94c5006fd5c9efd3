"""dockerode, what most programs for node use, on the built engine.pyz."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import conftest
import pytest
from clients_help import ours  # noqa: F401

SCRIPT = conftest.TOP / "tests" / "data" / "clients" / "dockerode.js"
MODULES = conftest.CACHE / "node" / "node_modules"


@pytest.mark.root
def test_dockerode(ours, busybox_tar):  # noqa: F811
    if not shutil.which("node") or not os.path.isdir(MODULES / "dockerode"):
        pytest.skip("no node with dockerode: apt-get install nodejs npm, then sh tests/packages.sh")
    done = subprocess.run(
        ["node", str(SCRIPT), ours.socket, busybox_tar],
        env={**os.environ, "NODE_PATH": str(MODULES)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        timeout=60,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["step"]: line["value"] for line in told} == {
        "ping": "OK",
        "attach": {"stdout": "got line\n", "stderr": "bad\n"},
        "wait": {"StatusCode": 3},
        "logs": "\1\0\0\0\0\0\0\x09got line\n",
        "list": [[["/node"], "exited", "busybox"]],
        "again": [409, told_again(told)],
        "gone": [404, told_gone(told)],
        "exec": {"stdout": "through", "stderr": "end\n"},
        "exec inspect": [False, 4],
        "tty": {"stdout": "/dev/pts/0\r\n", "stderr": ""},
        "top": ["UID", "PID"],
        "run": [0, ["create", "start", "die", "destroy"]],
        "load": ["Loaded image: busybox:latest\n"],
        "tags": ["busybox:latest", "node:1"],
        "remove": [{"Untagged": "node:1"}],
        "no image": [404, "No such image: nosuch:latest"],
    }


def value_of(told, step):
    return next(line["value"] for line in told if line["step"] == step)


def told_again(told):
    message = value_of(told, "again")[1]
    assert message.startswith('Conflict. The container name "/node" is already in use by')
    return message


def told_gone(told):
    message = value_of(told, "gone")[1]
    assert message.startswith("No such container: ")
    return message
