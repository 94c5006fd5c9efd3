"""TLS over a plain socket: both ways, half-close, refusals in Go's words."""

from __future__ import annotations

import os
import re
import socket
import ssl
import threading

import engine
import pytest
from tls_help import authority, issued, openssl


def server_context(kind="server", client_ca=None, tls12=False):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*issued(kind))
    if client_ca:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(client_ca)
    if tls12:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


class Far:
    """A server's end of one connection: `.run(socket)` in a thread; the exception stays here."""

    def __init__(self, context, talk):
        self.near, far = socket.socketpair()
        self.failure = None

        def run():
            try:
                with context.wrap_socket(far, server_side=True) as wrapped:
                    talk(wrapped)
            except (OSError, AssertionError) as failure:
                self.failure = failure
                far.close()

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()

    def end(self):
        self.thread.join(10)
        assert not self.thread.is_alive()
        return self.failure


def read_all(sock):
    parts = []
    while True:
        part = sock.recv(65536)
        if not part:
            return b"".join(parts)
        parts.append(part)


def client_context(**files):
    return engine.tls_client_context(ca=authority().ca, **files)


def test_bytes_go_both_ways_and_the_server_ends_it():
    def talk(sock):
        assert sock.recv(100) == b"hello"
        sock.sendall(b"world")
        sock.unwrap()

    far = Far(server_context(), talk)
    link = engine.tls_connect(far.near, client_context(), "127.0.0.1")
    link.near.sendall(b"hello")
    assert read_all(link.near) == b"world"
    link.near.close()
    assert far.end() is None and link.error == ""


def test_half_close_is_a_close_notify_and_output_goes_on():
    seen = []

    def talk(sock):
        seen.append(read_all(sock))     # ends by our close_notify, not by the connection
        sock.sendall(b"late" * 50000)
        sock.unwrap()

    far = Far(server_context(), talk)
    link = engine.tls_connect(far.near, client_context(), "localhost")
    link.near.sendall(b"input")
    link.near.shutdown(socket.SHUT_WR)
    assert read_all(link.near) == b"late" * 50000
    link.near.close()
    assert far.end() is None and seen == [b"input"]


def test_neither_direction_waits_for_the_other():
    size = 3_000_000
    got = []

    def talk(sock):
        writer = threading.Thread(target=sock.sendall, args=(b"x" * size,))
        writer.start()
        got.append(0)
        while got[0] < size:
            got[0] += len(sock.recv(65536))
        writer.join()
        sock.unwrap()

    far = Far(server_context(), talk)
    link = engine.tls_connect(far.near, client_context(), "127.0.0.1")
    writer = threading.Thread(target=link.near.sendall, args=(b"y" * size,))
    writer.start()
    data = read_all(link.near)
    writer.join()
    link.near.close()
    far.end()
    assert len(data) == size and got == [size]


@pytest.mark.parametrize(
    ("kind", "name", "text"),
    [
        ("names", "127.0.0.1", "cannot validate certificate for 127.0.0.1 because it doesn't "
                               "contain any IP SANs"),
        ("names", "c.example", "certificate is valid for a.example, b.example, not c.example"),
        ("address", "127.0.0.1", "certificate is valid for 10.0.0.1, not 127.0.0.1"),
        ("bare", "c.example", "certificate is not valid for any names, but wanted to match "
                              "c.example"),
        ("expired", "127.0.0.1", "certificate has expired or is not yet valid"),
        ("purpose", "127.0.0.1", "certificate specifies an incompatible key usage"),
    ],
)
def test_certificates_that_are_refused(kind, name, text):
    far = Far(server_context(kind), lambda sock: sock.recv(1))
    with pytest.raises(engine.TlsError) as caught:
        engine.tls_connect(far.near, client_context(), name)
    assert str(caught.value) == "tls: failed to verify certificate: x509: " + text
    far.near.close()
    far.end()


def test_another_authority_and_no_verification():
    far = Far(server_context(), lambda sock: sock.recv(1))
    other = engine.tls_client_context(ca=authority("other").ca)
    with pytest.raises(engine.TlsError, match="x509: certificate signed by unknown authority"):
        engine.tls_connect(far.near, other, "127.0.0.1")
    far.near.close()
    far.end()
    far = Far(server_context(), lambda sock: sock.sendall(b"ok"))
    other = engine.tls_client_context(ca=authority("other").ca, verify=False)
    link = engine.tls_connect(far.near, other, "anything")
    assert read_all(link.near) == b"ok"
    link.near.close()
    far.end()


@pytest.mark.parametrize("tls12", [False, True])
def test_a_client_that_is_refused_hears_why(tls12):
    context = server_context(client_ca=authority().ca, tls12=tls12)
    cert, key = issued("client", "other")
    for files, words in (
        ({}, ("certificate required", "handshake failure")),
        ({"cert": cert, "key": key}, ("unknown certificate authority",)),
    ):
        far = Far(context, lambda sock: sock.recv(1))
        text = ""
        try:
            link = engine.tls_connect(far.near, client_context(**files), "127.0.0.1")
        except engine.TlsError as refused:      # TLS 1.2 says it in the handshake
            text = str(refused)
            far.near.close()
        else:
            assert read_all(link.near) == b""
            text = link.error
            link.near.close()
        assert text in [f"remote error: tls: {word}" for word in words]
        far.end()
    cert, key = issued("client")
    far = Far(context, lambda sock: sock.sendall(b"in"))
    link = engine.tls_connect(far.near, client_context(cert=cert, key=key), "127.0.0.1")
    assert read_all(link.near) == b"in"
    link.near.close()
    far.end()


def test_names_match_as_the_rfc_says():
    certificate = {
        "subjectAltName": (("DNS", "Docker.Example"), ("DNS", "*.wild.example"),
                           ("IP Address", "10.0.0.1"), ("IP Address", "FE80:0:0:0:0:0:0:1"))
    }
    for name in ("docker.example", "DOCKER.example.", "x.wild.example", "10.0.0.1", "fe80::1"):
        engine.certificate_name_check(certificate, name)
    for name in ("wild.example", "x.y.wild.example", "example", "10.0.0.2", "fe80::2", "", "."):
        with pytest.raises(engine.TlsError):
            engine.certificate_name_check(certificate, name)


def test_files_that_are_wrong(tmp_path):
    cert, key = issued("client")
    other = issued("client", "other")[1]
    locked = tmp_path / "locked.pem"
    openssl("ec", "-in", key, "-aes256", "-passout", "pass:x", "-out", str(locked))
    empty = tmp_path / "empty"
    empty.write_text("")
    lead = "failed to retrieve context tls info: "
    for files, text in (
        ({"ca": "/nowhere"}, "open /nowhere: no such file or directory"),
        ({"ca": str(empty)}, lead + "ca.pem seems invalid"),
        ({"cert": cert, "key": "/nowhere"}, "open /nowhere: no such file or directory"),
        ({"cert": cert, "key": str(empty)}, "no valid private key found"),
        ({"cert": cert, "key": other}, lead + "tls: private key does not match public key"),
        ({"cert": cert, "key": str(locked)}, "private key is encrypted - support for encrypted "
         "private keys has been removed, see https://docs.docker.com/go/deprecated/"),
        ({"cert": str(empty), "key": key},
         lead + "tls: failed to find any PEM data in certificate input"),
    ):
        with pytest.raises(engine.TlsError, match="^" + re.escape(text) + "$"):
            engine.tls_client_context(**files)
    engine.tls_client_context(cert=cert)         # a certificate alone is not used


def test_a_server_that_speaks_http():
    near, far = socket.socketpair()
    far.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with pytest.raises(engine.TlsError, match="^http: server gave HTTP response to HTTPS client$"):
        engine.tls_connect(near, client_context(), "localhost")
    near.close()
    far.close()


def test_the_thread_leaves_no_descriptor():
    def talk(sock):
        sock.recv(1)

    def count():
        return len(os.listdir("/proc/self/fd"))

    before = count()
    for _ in range(5):
        far = Far(server_context(), talk)
        link = engine.tls_connect(far.near, client_context(), "127.0.0.1")
        link.near.close()
        far.end()
    for _ in range(100):
        if count() <= before:
            break
        threading.Event().wait(0.02)
    assert count() <= before
