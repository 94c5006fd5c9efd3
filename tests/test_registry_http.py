"""HTTP to registries: connections that are kept, redirects, patience, and servers that lie."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
import time

import engine
import pytest
from hypothesis import given
from hypothesis import strategies as st
from registry_help import once, registry_running, server_context

import _socket


@pytest.fixture(name="registry")
def registry_fixture():
    with registry_running() as registry:
        yield registry


@pytest.fixture(name="client")
def client_fixture():
    client = engine.HttpClient(engine.CONFIGURATION)
    yield client
    client.close()


@pytest.fixture(name="raw")
def raw_fixture():
    """serve(bytes, ...) starts a server that answers each connection with the next bytes; its URL.
    """
    listening = []

    def serve(*answers, hold=False):
        sock = socket.create_server(("127.0.0.1", 0))
        listening.append(sock)

        def run():
            for answer in answers:
                try:
                    conn, _ = sock.accept()
                except OSError:
                    return
                conn.recv(65536)
                try:
                    conn.sendall(answer)
                    if hold:
                        conn.recv(65536)
                except OSError:
                    pass
                conn.close()
        threading.Thread(target=run, daemon=True).start()
        return f"http://127.0.0.1:{sock.getsockname()[1]}/x"

    yield serve
    for sock in listening:
        sock.close()


@pytest.mark.parametrize(("base", "location", "found"), [
    ("http://a/b/c?d", "http://x/y", "http://x/y"),
    ("http://a/b/c?d", "/y?z", "http://a/y?z"),
    ("http://a/b/c?d", "y", "http://a/b/y"),
    ("http://a/b/c?d", "//x/y", "http://x/y"),
    ("https://a", "y", "https://a/y"),
    ("https://a?x", "/y", "https://a/y"),
    ("https://a/b", "y?u=http://c", "https://a/y?u=http://c"),
])
def test_locations(base, location, found):
    assert engine.url_join(base, location) == found


@pytest.mark.parametrize(("url", "found"), [
    ("http://a", ("http", "a", 80, "/")),
    ("HTTPS://a:5000/b?c#d", ("https", "a", 5000, "/b?c")),
    ("http://[::1]:1/b", ("http", "::1", 1, "/b")),
    ("http://u:p@a/b", ("http", "a", 80, "/b")),
    ("http://a?b", ("http", "a", 80, "/?b")),
])
def test_urls(url, found):
    assert engine.url_parts(url) == found


@given(st.text(alphabet="htps:/?#[]@a1.\r\n \x00é", max_size=30))
def test_a_url_is_parsed_or_refused(url):
    try:
        _scheme, host, port, target = engine.url_parts("http://" + url)
    except engine.HttpFailed:
        return
    assert host and 0 <= port < 65536 and target.startswith("/")
    assert not set(target) & set("\r\n \0")


def test_a_connection_is_used_again(registry, client):
    for _ in range(3):
        assert client.request("GET", registry.url + "/v2/").document() == b"{}"
    assert len(client._lines) == 1


def test_a_connection_that_ended_meanwhile_is_made_anew(registry, client):
    client.request("GET", registry.url + "/v2/").document()
    (line,) = client._lines
    line.sock.shutdown(socket.SHUT_RDWR)
    assert client.request("GET", registry.url + "/v2/").document() == b"{}"


def test_a_redirect_to_another_host_takes_no_credentials_along(registry, client):
    with registry_running() as other:
        registry.faults.append(lambda handler: handler.reply(
            307, Location=other.url + "/v2/") or True)
        reply = client.request("GET", registry.url + "/v2/", {"Authorization": "secret"})
        assert reply.document() == b"{}"
        assert "Authorization" not in other.log[0][2]
        assert registry.log[0][2]["Authorization"] == "secret"
        assert reply.url == other.url + "/v2/"


def test_redirects_end(registry, client):
    registry.faults.append(lambda handler: handler.reply(302, Location="/v2/") or True)
    with pytest.raises(engine.HttpFailed, match="stopped after 10 redirects"):
        client.request("GET", registry.url + "/v2/")


@pytest.mark.parametrize("location", ["ftp://a/", "http://", "http://a:99999/", "file:///etc/passwd"])
def test_a_redirect_to_nowhere_is_refused(registry, client, location):
    registry.faults.append(lambda handler: handler.reply(302, Location=location) or True)
    with pytest.raises(engine.HttpFailed):
        client.request("GET", registry.url + "/v2/")


def test_429_and_503_are_asked_again_after_what_they_say(registry, client):
    registry.faults += [
        once(lambda handler: handler.reply(429, Retry_After="0") or True),
        once(lambda handler: handler.reply(503) or True)]
    assert client.patiently("GET", registry.url + "/v2/").status == 200
    assert len(registry.log) == 3


def test_patience_ends(registry, client):
    registry.faults.append(lambda handler: handler.reply(503, Retry_After="0") or True)
    assert client.patiently("GET", registry.url + "/v2/").status == 503
    assert len(registry.log) == engine.ATTEMPTS


@pytest.mark.parametrize("answer", [
    b"", b"\r\n\r\n", b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 200 OK", b"HTTP/1.1 abc OK\r\n\r\n",
    b"HTTP/2 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n folded\r\n\r\n", b"HTTP/1.1 200 OK\r\nX" + b"y" * (300 << 10),
    b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n",
])
def test_heads_that_are_none(raw, client, answer):
    with pytest.raises(engine.EngineError) as refused:
        client.request("GET", raw(answer))
    assert str(refused.value).startswith("Get ") and "\n" not in str(refused.value)


@pytest.mark.parametrize("answer", [
    b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 300,
])
def test_bodies_that_break_off(raw, client, answer):
    with pytest.raises(engine.HttpFailed):
        client.request("GET", raw(answer)).document()


def test_bodies_of_all_framings(raw, client):
    sized = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    for answer in (sized, b"HTTP/1.1 100 Continue\r\n\r\n" + sized,
                   b"HTTP/1.1 200 OK\r\n\r\nhello", b"HTTP/1.0 200 OK\r\n\r\nhello",
                   chunked + b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"):
        assert client.request("GET", raw(answer)).document() == b"hello", answer


def test_a_document_has_a_size_and_a_time(raw, client, monkeypatch):
    with pytest.raises(engine.HttpFailed, match="more than 10 bytes"):
        client.request("GET", raw(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 11)).document(10)
    reply = client.request("GET", raw(b"HTTP/1.1 200 OK\r\n\r\nxx", hold=True))
    monkeypatch.setattr(engine, "DOCUMENT_SECONDS", -1)
    with pytest.raises(engine.HttpFailed, match="not complete after"):
        reply.document()


def test_a_server_that_says_nothing_is_left(raw, client, monkeypatch):
    monkeypatch.setattr(engine, "STALL", 0.2)
    with pytest.raises(engine.HttpFailed, match="timeout awaiting response headers"):
        client.request("GET", raw(b"", hold=True))
    with pytest.raises(engine.HttpFailed, match="i/o timeout"):
        client.request("GET", raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx",
                                  hold=True)).document()


def test_cancel_ends_what_waits(raw, client):
    url = raw(b"", hold=True)
    threading.Timer(0.2, client.cancel).start()
    with pytest.raises(engine.Cancelled):
        client.request("GET", url)
    with pytest.raises(engine.Cancelled):
        client.request("GET", url)
    with pytest.raises(engine.Cancelled):
        client.pause(5)


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH_9\r\n", b"SSH-2.0-OpenSSH_9\n" + b"x" * 999])
def test_a_server_of_something_else_that_waits_is_left_at_once(raw, client, answer):
    before = time.monotonic()
    url = raw(answer, hold=True)
    with pytest.raises(engine.HttpFailed) as refused:
        client.patiently("GET", url)
    assert str(refused.value) == (
        f'Get "{url}": net/http: HTTP/1.x transport connection broken: malformed HTTP response'
        ' "SSH-2.0-OpenSSH_9"')
    assert time.monotonic() - before < 5


@pytest.mark.parametrize(("code", "text"), [
    (_socket.EAI_NONAME, "no such host"),
    (_socket.EAI_AGAIN, "Temporary failure in name resolution"),
])
def test_names_that_mean_nothing_and_name_servers_that_say_nothing(
        client, monkeypatch, code, text):
    def lookup(*_):
        raise _socket.gaierror(code, "Temporary failure in name resolution")
    monkeypatch.setattr(engine._socket, "getaddrinfo", lookup)
    with pytest.raises(engine.HttpFailed) as refused:
        client.patiently("GET", "http://a.example/v2/")
    assert str(refused.value) == f'Get "http://a.example/v2/": dial tcp: lookup a.example: {text}'


def test_nobody_there(client):
    free = socket.create_server(("127.0.0.1", 0))
    port = free.getsockname()[1]
    free.close()
    before = time.monotonic()
    with pytest.raises(engine.HttpFailed) as refused:
        client.patiently("GET", f"http://127.0.0.1:{port}/v2/")
    assert str(refused.value) == (f'Get "http://127.0.0.1:{port}/v2/": dial tcp 127.0.0.1:{port}:'
                                  " connect: connection refused")
    assert time.monotonic() - before < 5


def test_plain_http_behind_https_is_noticed(registry, client):
    context = engine.tls_client_context(verify=False)
    with pytest.raises(engine.HttpFailed) as refused:
        client.request("GET", f"https://{registry.host}/v2/", context=context)
    assert refused.value.spoke_tls is False


def test_an_insecure_registry_that_speaks_plain_http_is_not_tried_with_tls(raw, client):
    host = raw(b"HTTP/1.1 400 Bad Request\r\n\r\n", hold=True)[7:].partition("/")[0]
    both = [engine.RegistryEndpoint(f"{scheme}://{host}", is_insecure=True)
            for scheme in ("https", "http")]
    assert list(client.worth_trying(both)) == both[1:]


@pytest.mark.parametrize("answer", [b"", b"\x15\x03\x01\0\2\2\x32", b"SSH-2.0-x\r\n"])
def test_whatever_else_is_there_is_tried_with_tls_first(raw, client, answer):
    host = raw(answer)[7:].partition("/")[0]
    for secure in (False, True):
        both = [engine.RegistryEndpoint(f"{scheme}://{host}", is_insecure=not secure)
                for scheme in ("https", "http")]
        assert list(client.worth_trying(both)) == both


def test_a_server_that_wants_a_certificate_of_ours(client):
    """With TLS 1.3 it says so after the handshake, where the head of a reply is read."""
    for reason, words in (("SSLV3_ALERT_BAD_CERTIFICATE", "bad certificate"),
                          ("TLSV13_ALERT_CERTIFICATE_REQUIRED", "certificate required")):
        wrong = ssl.SSLError(1, f"[SSL: {reason}] (_ssl.c:2580)")
        wrong.reason = reason
        assert str(client.failure("GET", "https://x/v2/", wrong)) == (
            f'Get "https://x/v2/": remote error: tls: {words}')


def test_a_tls_server_takes_the_probe_for_what_it_is(client, tmp_path):
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
                    "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=x", "-days", "2", "-keyout",
                    str(tmp_path / "key"), "-out", str(tmp_path / "cert")], check=True,
                   stderr=subprocess.DEVNULL)
    with registry_running(server_context(tmp_path / "cert", tmp_path / "key")) as there:
        endpoint = engine.RegistryEndpoint(there.url, is_insecure=True)
        before = time.monotonic()
        assert list(client.worth_trying([endpoint])) == [endpoint]
        assert time.monotonic() - before < 2
        assert client.request("GET", there.url + "/v2/", context=endpoint.context).status == 200


def test_a_proxy_is_used_for_http_and_asked_with_its_password(registry):
    made = {**engine.CONFIGURATION, "http-proxy": f"http://u:p%40@{registry.host}"}
    client = engine.HttpClient(made)
    client.request("GET", "http://far.example/v2/").close()
    assert registry.log[0][1] == "http://far.example:80/v2/"
    assert registry.log[0][2]["Proxy-Authorization"] == engine.basic_credentials("u", "p@")
    assert registry.log[0][2]["Host"] == "far.example"
    client.close()


def test_a_proxy_that_refuses_a_tunnel(raw):
    url = raw(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
    client = engine.HttpClient({**engine.CONFIGURATION, "https-proxy": url})
    with pytest.raises(engine.HttpFailed, match="Proxy Authentication Required"):
        client.request("GET", "https://far.example/v2/", context=engine.tls_client_context())
