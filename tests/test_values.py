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


@pytest.mark.parametrize("text, told", [
    ("70000", 'strconv.ParseUint: parsing "70000": value out of range'),
    ("x/udp", 'strconv.ParseUint: parsing "x": invalid syntax'),
    ("80-+9", 'strconv.ParseUint: parsing "+9": invalid syntax'),
    ("9-8", "invalid range specified for port: 9-8"),
    ("/tcp", "empty string specified for ports"),
])
def test_what_is_not_to_be_exposed(text, told):
    with pytest.raises(engine.InvalidParameter) as refused:
        engine.ports_expose([text])
    assert str(refused.value) == f"invalid range format for --expose: {text}, error: {told}"


@pytest.mark.parametrize("text, told", [
    ("", "no port specified: <empty>"), ("80:", "no port specified: 80:<empty>"),
    ("80/foo", "invalid proto: foo"),
    ("1_0", "invalid containerPort: 1_0"), (" 80:80", "invalid hostPort:  80"),
    ("1.2.3:80:80", "invalid IP address: 1.2.3"), ("published=80,x", "invalid publish opts format"
     " (should be name=value but got 'x')"), ("published=80", "no port specified: 80:/tcp<empty>"),
    ("1-2:1-3", "invalid ranges specified for container and host Ports: 1-3 and 1-2")])
def test_what_is_not_to_be_published(text, told):
    with pytest.raises(engine.InvalidParameter) as refused:
        engine.ports_publish([text])
    assert str(refused.value) == told


def test_the_long_form_of_publish():
    assert engine.ports_publish(["published=53,target=5353,protocol=UDP", "target=80"]) == {
        "5353/udp": [{"HostIp": "", "HostPort": "53"}], "80/tcp": [{"HostIp": "", "HostPort": ""}]}


def test_kinds_that_repeat_keep_their_order():
    args = engine.flags_parse(
        engine.CREATE_FLAGS,
        ["--cap-add=net_raw", "--cap-add", "CAP_CHOWN", "--dns", "1.1.1.1", "--dns=::1"],
    )
    assert args.cap_add == ["CAP_CHOWN", "CAP_NET_RAW"] and args.dns == ["1.1.1.1", "::1"]
