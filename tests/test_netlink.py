"""netlink: messages, their answers, errors in the kernel's words."""

import errno
import struct

import engine
import pytest
from kernel_help import in_child


def test_attributes_are_padded_and_read_back():
    data = engine.nl_attr(3, "eth0") + engine.nl_attr(4, 1500) + engine.nl_attr(1, b"\1\2\3")
    assert len(data) % 4 == 0
    assert engine.nl_attrs(data) == {3: b"eth0\0", 4: struct.pack("=I", 1500), 1: b"\1\2\3"}
    assert engine.nl_attrs(b"\2\0\1\0") == {}


@pytest.mark.root
def test_the_first_error_is_told_and_the_rest_is_done():
    def talk():
        engine.sys_unshare(engine.CLONE_NEWNET)
        sock = engine.netlink_open()
        try:
            engine.netlink_batch(sock, [engine.up_message(77), engine.up_message(1)])
        except OSError as refused:
            return refused.errno, engine.link_is_up("lo")

    assert list(in_child(talk)) == [errno.ENODEV, True]
