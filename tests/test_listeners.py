"""Sockets that are listened on: unix names and their rights, tcp, what systemd passed, TLS."""

from __future__ import annotations

import os
import socket
import ssl
import stat
import subprocess
import sys

import engine
import pytest
from conftest import TOP
from door_help import free_port
from tls_help import authority, issued


@pytest.fixture
def opened():
    """Opens listeners that are closed at the end."""
    kept = []

    def open_(hosts, **more):
        made = engine.listeners_open(hosts, **more)
        kept.extend(made)
        return made

    yield open_
    for listener in kept:
        listener.close()


def refusal(hosts, **more):
    with pytest.raises(engine.EngineError) as refused:
        engine.listeners_open(hosts, **more)
    return str(refused.value)


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "s.sock")


def test_unix_socket(opened, path, monkeypatch):
    monkeypatch.setattr(engine, "SOCKET_GROUP", "nobody has this group")
    (listener,) = opened(["unix://" + path])
    seen = os.stat(path)
    assert (stat.S_IMODE(seen.st_mode), seen.st_gid) == (0o660, os.getegid())
    assert (listener.kind, listener.path, listener.is_open) == ("unix", path, False)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
    listener.close()
    assert not os.path.exists(path)


def test_missing_directories_and_long_names(opened, tmp_path):
    path = str(tmp_path / ("long" * 30) / "s.sock")
    assert len(path) > 107
    (listener,) = opened(["unix://" + path])
    assert stat.S_ISSOCK(os.stat(path).st_mode) and listener.path == path


@pytest.mark.root
def test_group_of_the_socket(opened, path):
    opened(["unix://" + path], group="daemon")
    assert os.stat(path).st_gid == 1
    opened(["unix://" + path + "2"], group="12345")
    assert os.stat(path + "2").st_gid == 12345
    assert refusal(["unix://" + path + "3"], group="nosuch") == "group nosuch not found"
    assert not os.path.exists(path + "3")


def test_stale_sockets_are_replaced(opened, path):
    left = socket.socket(socket.AF_UNIX)
    left.bind(path)
    left.close()
    opened(["unix://" + path])
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


def test_what_is_anothers_is_refused(opened, path):
    opened(["unix://" + path])
    taken = f"can't create unix socket {path}: listen unix {path}: bind: address already in use"
    assert refusal(["unix://" + path]) == taken
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)                            # it is still there
    with open(path + "x", "w"):
        assert refusal(["unix://" + path + "x"]).endswith("bind: address already in use")
    assert os.path.isfile(path + "x")
    assert "not a directory" in refusal(["unix://" + path + "x/s.sock"])


def test_all_or_none(path):
    port = free_port()
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        host = f"tcp://127.0.0.1:{port}"
        told = f"listen tcp 127.0.0.1:{port}: bind: address already in use"
        assert refusal(["unix://" + path, host]) == told
    assert not os.path.exists(path)


def test_tcp(opened):
    port = free_port()
    first, second = opened([f"tcp://localhost:{port}", f"tcp://127.0.0.2:{port}"])
    assert first.sock.getsockname() == ("127.0.0.1", port)
    assert second.sock.getsockname() == ("127.0.0.2", port)
    assert first.is_open and first.kind == "tcp"
    with socket.create_connection(("127.0.0.1", port)):
        accepted = socket.socket(fileno=first.sock._accept()[0])
        for level, option in ((socket.IPPROTO_TCP, socket.TCP_NODELAY),
                              (socket.SOL_SOCKET, socket.SO_KEEPALIVE)):
            assert accepted.getsockopt(level, option)
        accepted.close()
    assert refusal(["tcp://no.such.host.invalid:1"]) == \
        "listen tcp: lookup no.such.host.invalid: no such host"
    assert refusal(["tcp://192.0.2.1:1"]).startswith("listen tcp 192.0.2.1:1: bind: cannot assign")


# ---------------------------------------------------------------- inherited

CHILD = """
import os, sys
sys.path.insert(0, sys.argv[1])
os.environ["LISTEN_PID"] = str(os.getpid() + int(sys.argv[4]))
import engine
try:
    made = engine.listeners_open(sys.argv[2].split())
    print(*[f"{each.kind}:{each.sock.fileno()}" for each in made])
except engine.EngineError as refused:
    print(refused)
print([name for name in os.environ if name.startswith("LISTEN")])
there = [fd for fd in range(3, int(sys.argv[3]) + 1) if os.path.exists(f"/proc/self/fd/{fd}")]
print(there)
print([os.get_inheritable(fd) for fd in there])
"""


def activated(hosts, names, kinds="uu", wrong_pid=0):
    """What a process says that systemd started with sockets 3 and 4 (u: unix, d: datagram)."""
    made = []
    for kind in kinds:
        sock = socket.socket(socket.AF_UNIX,
                             socket.SOCK_DGRAM if kind == "d" else socket.SOCK_STREAM)
        if kind != "d":
            sock.bind("")
            sock.listen()
        made.append(sock)

    def place():
        high = [os.dup2(sock.fileno(), 20 + n) for n, sock in enumerate(made)]
        for n, fd in enumerate(high):
            os.dup2(fd, 3 + n)

    fds = range(3, 3 + len(made))
    done = subprocess.run(
        [sys.executable, "-B", "-c", CHILD, str(TOP), hosts, str(fds[-1]), str(wrong_pid)],
        preexec_fn=place, pass_fds=[*fds], stdout=subprocess.PIPE, text=True, check=True,
        env={**os.environ, "LISTEN_FDS": str(len(made)), "LISTEN_FDNAMES": names})
    for sock in made:
        sock.close()
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    "hosts, made, open_",
    [
        ("fd://", "fd:3 fd:4", [3, 4]),
        ("fd://*", "fd:3 fd:4", [3, 4]),
        ("fd://4", "fd:4", [4]),
        ("fd://api", "fd:4", [4]),
        ("fd://3 fd://4", "fd:3 fd:4", [3, 4]),
        ("fd://5", "too few socket activated files passed in by systemd", [3, 4]),
        ("fd://x", "failed to parse systemd fd address: should be a number or the name of a "
                   "socket: x", [3, 4]),
    ],
)
def test_sockets_of_systemd(hosts, made, open_):
    said = activated(hosts, "web:api")
    assert said[:2] == [made, "[]"]
    assert said[2] == str(open_) and "True" not in said[3]


def test_sockets_that_are_not_ours_or_no_listeners():
    missing = "no sockets found via socket activation: make sure the service was started by systemd"
    assert activated("fd://", "", wrong_pid=1)[:2] == [missing, "[]"]
    assert activated("fd://4", "", kinds="ud")[0] == \
        "failed to listen on systemd activated file: fd 4"


# ---------------------------------------------------------------- TLS


def test_tls_files(tmp_path):
    cert, key = issued("server")
    ca = authority().ca
    gone = str(tmp_path / "gone.pem")
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("no certificate")

    def told(*files, **more):
        with pytest.raises(engine.EngineError) as refused:
            engine.tls_server(*files, **more)
        return str(refused.value)

    assert told(gone, key) == (f'could not load X509 key pair (cert: "{gone}", key: "{key}"): '
                               f"open {gone}: no such file or directory")
    assert told(cert, str(wrong)).startswith(
        f'error reading X509 key pair - make sure the key is not encrypted (cert: "{cert}"')
    assert told(cert, key, gone, verify=True) == \
        f'could not read CA certificate "{gone}": open {gone}: no such file or directory'
    assert told(cert, key, str(wrong), verify=True) == \
        f'failed to append certificates from PEM file: "{wrong}"'
    context = engine.tls_server(cert, key, ca, verify=True)
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert engine.tls_server(cert, key).verify_mode == ssl.CERT_NONE
