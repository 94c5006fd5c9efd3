"""netlink: the loopback of a new network namespace."""

import socket

import engine
import pytest
from kernel_help import in_child


@pytest.mark.root
def test_loopback_comes_up():
    def talk():
        engine.sys_unshare(engine.CLONE_NEWNET)
        engine.loopback_up()
        engine.loopback_up()
        server = socket.create_server(("127.0.0.1", 0))
        with socket.create_connection(server.getsockname(), timeout=5) as client:
            return client.getpeername()[0]
    assert in_child(talk) == "127.0.0.1"
