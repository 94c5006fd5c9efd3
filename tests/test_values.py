"""Values of container flags: what test_cli_create's golden file does not show."""

from __future__ import annotations

import engine
import pytest


@pytest.mark.parametrize(
    "text, claim",
    [
        ("1.2.3.4", True),
        ("::1", True),
        ("fe80::1", True),
        ("1.2.3", False),
        ("x", False),
        ("", False),
        ("1.2.3.4.5", False),
        ("\0", False),
    ],
)
def test_ip(text, claim):
    assert engine.ip_is_valid(text) is claim


def test_publish():
    assert engine.ports_publish(["8000-8001:80-81/udp"]) == {
        "80/udp": [{"HostIp": "", "HostPort": "8000"}],
        "81/udp": [{"HostIp": "", "HostPort": "8001"}],
    }
    assert engine.ports_publish(["80", "[::1]:90:80"]) == {
        "80/tcp": [{"HostIp": "", "HostPort": ""}, {"HostIp": "::1", "HostPort": "90"}]
    }
    assert engine.ports_publish(["8000-8005:80"]) == {
        "80/tcp": [{"HostIp": "", "HostPort": "8000-8005"}]
    }
    for text in ("", "a", "1:a", "a:1", "80/foo", "65536", "5-3", "1.2.3:80:80", "1-2:1-3"):
        with pytest.raises(engine.InvalidParameter):
            engine.ports_publish([text])


def test_expose():
    assert engine.ports_expose(["80", "90-91/udp"]) == ["80/tcp", "90/udp", "91/udp"]


def test_kinds_that_repeat_keep_their_order():
    args = engine.flags_parse(
        engine.CREATE_FLAGS,
        ["--cap-add=net_raw", "--cap-add", "CAP_CHOWN", "--dns", "1.1.1.1", "--dns=::1"],
    )
    assert args.cap_add == ["CAP_CHOWN", "CAP_NET_RAW"] and args.dns == ["1.1.1.1", "::1"]
