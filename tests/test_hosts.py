"""Addresses of engines: what -H and DOCKER_HOST mean, and what is refused with which words."""

from __future__ import annotations

import engine
import pytest


@pytest.mark.parametrize(
    "text, kind, address",
    [
        ("", "unix", "/var/run/docker.sock"),
        ("unix://", "unix", "/var/run/docker.sock"),
        ("unix:///run/x.sock", "unix", "/run/x.sock"),
        ("unix://var/run/docker.sock", "unix", "/var/run/docker.sock"),
        ("tcp://", "tcp", ("localhost", 2375)),
        ("tcp://:8080", "tcp", ("localhost", 8080)),
        (":8080", "tcp", ("localhost", 8080)),
        ("host", "tcp", ("host", 2375)),
        ("host:1234", "tcp", ("host", 1234)),
        (" 127.0.0.1 ", "tcp", ("127.0.0.1", 2375)),
        ("0.0.0.0:2375", "tcp", ("0.0.0.0", 2375)),
        ("[::1]", "tcp", ("::1", 2375)),
        ("tcp://[::1]:99", "tcp", ("::1", 99)),
        ("tcp://[::1]:", "tcp", ("::1", 2375)),
        ("fd://", "fd", ""),
        ("fd://*", "fd", "*"),
        ("fd://3", "fd", "3"),
    ],
)
def test_addresses(text, kind, address):
    assert engine.host_parse(text) == (kind, address)
    assert engine.host_parse(engine.host_text(kind, address)) == (kind, address)


def test_what_tls_and_clients_change():
    assert engine.host_parse("", tls=True) == ("tcp", ("localhost", 2376))
    assert engine.host_parse("tcp://h", tls=True) == ("tcp", ("h", 2375))
    assert engine.host_parse("ssh://u@h:22", client=True) == ("ssh", "u@h:22")
    assert engine.host_parse("tcp://h:1/path", client=True) == ("tcp", ("h", 1))


BAD = [
    ("http://x", "invalid bind address (http://x): unsupported proto 'http'"),
    ("npipe://x", "invalid bind address (npipe://x): unsupported proto 'npipe'"),
    ("ssh://x", "invalid bind address (ssh://x): unsupported proto 'ssh'"),
    ("unix://a://b", "invalid bind address (unix://a://b): invalid unix address: a://b"),
    (
        "tcp://x:abc",
        'invalid bind address (tcp://x:abc): parse "tcp://x:abc": invalid port ":abc" after host',
    ),
    ("tcp://x:0", "invalid bind address (tcp://x:0): invalid port: 0"),
    ("x:99999", "invalid bind address (x:99999): invalid port: 99999"),
    (
        "tcp://[::1",
        "invalid bind address (tcp://[::1): parse \"tcp://[::1\": missing ']' in host",
    ),
    ("tcp://x/p", "invalid bind address (tcp://x/p): should not contain a path element"),
    ("a:b:1", "invalid bind address (a:b:1): address a:b:1: too many colons in address"),
    (
        "tcp://a b",
        'invalid bind address (tcp://a b): parse "tcp://a b": invalid character " " in host name',
    ),
]


@pytest.mark.parametrize("text, words", BAD)
def test_refusals(text, words):
    with pytest.raises(engine.InvalidParameter) as refused:
        engine.host_parse(text)
    assert str(refused.value) == words


@pytest.mark.parametrize(
    "text, words",
    [
        ("http://x", "invalid bind address format: http://x"),
        ("tcp://x:abc", 'parse "tcp://x:abc": invalid port ":abc" after host'),
        ("fd2://", "invalid bind address format: fd2://"),
        ("tcp://tcp://x", "invalid proto, expected tcp: tcp://x"),
        ("unix://a://b", "invalid proto, expected unix: a://b"),
    ],
)
def test_refusals_for_clients(text, words):
    with pytest.raises(engine.InvalidParameter) as refused:
        engine.host_parse(text, client=True)
    assert str(refused.value) == words
