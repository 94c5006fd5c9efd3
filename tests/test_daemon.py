"""The daemon as a process of its own: it serves what commands see, and ends at a signal."""

from __future__ import annotations

import os
import signal
import time

import pytest
from door_help import Raw


@pytest.mark.root
def test_daemon_serves_and_ends(cli):
    path = os.path.join(cli.roots.base, "s.sock")
    daemon = cli.popen("daemon", "-H", "unix://" + path)
    deadline = time.monotonic() + 10
    while not os.path.exists(path) and time.monotonic() < deadline:
        time.sleep(0.02)
    client = Raw(path)
    assert client.ask("/_ping").body == b"OK"
    assert client.ask("/containers/json?all=1").json() == []
    client.close()
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(10) == 0
    assert not os.path.exists(path)
    for stream in (daemon.stdin, daemon.stdout, daemon.stderr):
        stream.close()
