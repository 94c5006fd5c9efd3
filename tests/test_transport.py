"""The API over a connection: bodies, keep-alive, hijack, uploads, versions, errors, TLS, ssh."""

from __future__ import annotations

import io
import os
import socket
import ssl
import sys
import threading
import time

import engine
import pytest
from server_help import Fake, chunked, put_program, reply
from tls_help import authority, issued


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """serve(answer) -> (client, fake): a client of a fake server on a unix socket."""
    for name in [name for name in os.environ if name.startswith("DOCKER_")]:
        monkeypatch.delenv(name)
    made = []

    def start(answer, **options):
        where = {"path": str(tmp_path / f"{len(made)}.sock")} if "tcp" not in options else {}
        options.pop("tcp", None)
        endpoint = {name: options.pop(name) for name in ("tls_files", "headers")
                    if name in options}
        fake = Fake(answer, **where, **options)
        made.append(fake)
        transport = engine.transport_open(engine.Endpoint(
            fake.host, tls=endpoint.get("tls_files"), headers=endpoint.get("headers")))
        return engine.ApiClient(transport), fake

    yield start
    for fake in made:
        fake.close()


def test_values_bodies_and_one_connection(serve):
    answers = {
        "/json": reply(body=b'{"a": 1}\n'),
        "/chunks": chunked(b'{"a"', b": [2]}"),
        "/null": reply(body=b"null\n"),
        "/text": reply(body=b"OK", kind="text/plain"),
        "/none": b"HTTP/1.1 204 No Content\r\n\r\n",
        "/same": b"HTTP/1.1 304 Not Modified\r\n\r\n",
        "/long": reply(body=b'"' + b"x" * 300_000 + b'"'),
    }
    client, fake = serve(lambda seen: answers[seen.target.partition("?")[0][len("/v1.41"):]])
    assert client.get("/json") == {"a": 1}
    assert client.get("/chunks") == {"a": [2]}
    assert client.get("/null") is None
    assert client.get("/text") == b"OK"
    assert client.delete("/none") is None
    assert client.post("/same") is None
    assert client.get("/long") == "x" * 300_000
    client.post("/json", {"b": ["x y", "ü"], "a": True, "f": {"k": ["v"]}, "n": None}, {"k": "ü"})
    assert fake.seen[-1].line == (
        "POST /v1.41/json?a=1&b=x+y&b=%C3%BC&f=%7B%22k%22%3A%5B%22v%22%5D%7D")
    assert fake.seen[-1].body.decode() == '{"k":"ü"}\n'
    headers = fake.seen[-1].headers
    assert headers["content-type"] == "application/json"
    assert headers["user-agent"] == f"Docker-Client/{engine.DOCKER_VERSION} (linux)"
    client.post("/none")
    assert fake.seen[-1].headers["content-length"] == "0"
    assert fake.connections == 1


def test_a_body_that_lasts_as_long_as_the_connection(serve):
    def answer(seen):
        seen.sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nall")

    client, fake = serve(answer)
    assert client.get("/x") == b"all"
    assert client.get("/x") == b"all"
    assert fake.connections == 2        # the ping's connection, and one more


def test_streams_come_piece_by_piece(serve):
    goes_on = threading.Event()

    def answer(seen):
        seen.sock.sendall(chunked(b'{"a":1}\n{"a"', end=b""))
        assert goes_on.wait(10)
        return b'6\r\n:2}\n\n\n\r\n0\r\n\r\n'

    client, _ = serve(answer)
    lines = client.lines("GET", "/events")
    assert next(lines) == {"a": 1}
    goes_on.set()
    assert list(lines) == [{"a": 2}]


def test_a_stream_that_is_left_ends_its_connection(serve):
    ended = threading.Event()

    def answer(seen):
        seen.sock.sendall(chunked(b"x" * 10, end=b""))
        if seen.sock.recv(1) == b"":
            ended.set()

    client, _ = serve(answer)
    stream = client.stream("GET", "/x")
    assert next(stream) == b"x" * 10
    stream.close()
    assert ended.wait(10)


def test_a_connection_that_the_server_ended_is_not_used_again(serve):
    def answer(seen):
        seen.sock.sendall(reply(body=b"1"))     # and then it closes

    client, fake = serve(answer)
    for _ in range(3):
        assert client.get("/x") == 1
        time.sleep(0.05)
    assert len(fake.seen) == 3


def test_a_connection_that_dies_under_a_request_is_tried_again(serve):
    turns = []

    def answer(seen):
        turns.append(1)
        return None if len(turns) == 2 else reply(body=b"1")

    client, fake = serve(answer)
    assert client.get("/x") == client.get("/x") == 1
    assert len(fake.seen) == 3


@pytest.mark.parametrize("status", ["101 UPGRADED", "200 OK"])
def test_hijack_leaves_nothing_behind(serve, status):
    def answer(seen):
        assert seen.headers["upgrade"] == "tcp" and seen.headers["connection"] == "Upgrade"
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n"
        seen.sock.sendall(head.encode() + b"early")
        data = b""
        while not data.endswith(b"."):
            data += seen.sock.recv(10)
        assert seen.sock.recv(10) == b""            # our half is closed
        seen.sock.sendall(data.upper())             # and its output still comes

    client, _ = serve(answer)
    sock = client.hijack("/containers/x/attach", {"stream": True}, {"k": 1})
    assert sock.recv(100) == b"early"
    sock.sendall(b"input.")
    sock.shutdown(socket.SHUT_WR)
    assert sock.recv(100) == b"INPUT."
    assert sock.recv(100) == b""


def test_hijack_that_is_refused(serve):
    client, _ = serve(lambda seen: reply("409 Conflict", b'{"message":"not running"}'))
    with pytest.raises(engine.Conflict, match="not running") as caught:
        client.hijack("/exec/x/start")
    assert caught.value.from_engine
    client, _ = serve(lambda seen: reply("200 OK", b"{}"))
    with pytest.raises(engine.EngineError, match="unable to upgrade to tcp, received 200"):
        client.hijack("/exec/x/start")


def test_wait_is_registered_and_polled(serve):
    ends = threading.Event()

    def answer(seen):
        seen.sock.sendall(chunked(end=b""))
        assert ends.wait(10)
        return b'11\r\n{"StatusCode": 3}\r\n0\r\n\r\n'

    client, fake = serve(answer)
    waiter = client.wait("x", "next-exit")
    assert fake.seen[0].line == "POST /v1.41/containers/x/wait?condition=next-exit"
    assert waiter.fileno() >= 0
    ends.set()
    assert waiter.result() == {"StatusCode": 3}
    client, _ = serve(lambda seen: reply("404 Not Found", b'{"message":"No such container: x"}'))
    with pytest.raises(engine.NotFound):
        client.wait("x")


def test_an_old_engine_says_nothing_before_the_end(serve):
    ends = threading.Event()

    def answer(seen):
        assert ends.wait(10)
        return reply(body=b'{"StatusCode": 4}')

    ping = b"HTTP/1.1 200 OK\r\nApi-Version: 1.29\r\nContent-Length: 0\r\n\r\n"
    client, _ = serve(answer, ping=ping)
    waiter = client.wait("x")
    assert waiter.fileno() >= 0
    ends.set()
    assert waiter.result() == {"StatusCode": 4}


class Slow(io.RawIOBase):
    """A reader that gives its pieces one by one, and raises what is an exception."""

    def __init__(self, *pieces):
        self.pieces = list(pieces)

    def read(self, size=-1):
        piece = self.pieces.pop(0) if self.pieces else b""
        if isinstance(piece, Exception):
            raise piece
        if callable(piece):
            piece = piece()
        return piece


def test_uploads(serve):
    client, fake = serve(lambda seen: reply(body=b'{"stream":"done"}\n'))
    big = os.urandom(700_000)
    assert list(client.lines("POST", "/images/load", None, io.BytesIO(big))) == [
        {"stream": "done"}]
    assert fake.seen[0].body == big
    assert fake.seen[0].headers["transfer-encoding"] == "chunked"
    assert fake.seen[0].headers["content-type"] == "application/x-tar"
    client.post("/x")
    assert fake.connections == 1


def test_a_refusal_in_the_middle_of_an_upload(serve):
    client, fake = serve(lambda seen: seen.sock.sendall(
        reply("500 Internal Server Error", b'{"message":"disk full"}')))
    fake.reads_body = False
    goes_on = threading.Event()

    def later():
        goes_on.wait(10)
        return b"more" * 100_000

    with pytest.raises(engine.EngineError, match="disk full"):
        client.post("/images/load", None, Slow(b"first", later))
    goes_on.set()


def test_progress_while_the_upload_goes_on(serve):
    """The engine answers before it has read all; neither side waits for the other."""
    told = threading.Event()

    def answer(seen):
        seen.sock.sendall(chunked(b'{"n":1}\n', end=b""))
        fake.body(seen.sock, seen.headers, seen.rest)
        return b'8\r\n{"n":2}\n\r\n0\r\n\r\n'

    def wait():
        assert told.wait(10)
        return b"end"

    client, fake = serve(answer)
    fake.reads_body = False
    lines = client.lines("POST", "/images/load", None, Slow(b"x" * 400_000, wait))
    assert next(lines) == {"n": 1}
    told.set()
    assert list(lines) == [{"n": 2}]


def test_an_upload_whose_source_fails(serve):
    client, _ = serve(lambda seen: None)
    with pytest.raises(engine.EngineError, match="no archive"):
        client.post("/images/load", None, Slow(b"x", engine.InvalidParameter("no archive")))
    client, _ = serve(lambda seen: None)
    with pytest.raises(engine.EngineError, match="input/output error"):
        client.post("/images/load", None, Slow(b"x", OSError(5, "Input/output error")))


@pytest.mark.parametrize(
    ("said", "env", "spoken"),
    [
        ("1.41", "", "1.41"), ("1.99", "", engine.API_VERSION), ("1.24", "", "1.24"),
        (None, "", "1.24"), ("1.41", "1.30", "1.30"), ("1.41", "v1.35", "1.35"),
    ],
)
def test_versions(serve, monkeypatch, said, env, spoken):
    ping = b"HTTP/1.1 200 OK\r\n" + (b"Api-Version: %b\r\n" % said.encode() if said else b"")
    if env:
        monkeypatch.setenv("DOCKER_API_VERSION", env)
        client, fake = serve(lambda seen: reply(body=b"1"), ping=None)
    else:
        client, fake = serve(lambda seen: reply(body=b"1"),
                             ping=ping + b"Content-Length: 0\r\n\r\n")
    client.transport.headers = {"X-Mine": "1"}
    client.get("/version")
    assert [seen.target for seen in fake.seen] == [f"/v{spoken}/version"]
    assert fake.seen[0].headers["x-mine"] == "1"
    assert client.transport.api_version == spoken


URL = "http://%2FT/0.sock"
LEAD = 'error during connect: Get "URL/v1.41/x": '


@pytest.mark.parametrize(
    ("answer", "status", "text"),
    [
        (b"", 500, LEAD + "EOF"),
        (b"hello\r\n\r\n", 500, 'Get "URL/v1.41/x": net/http: HTTP/1.x transport connection '
         'broken: malformed HTTP response "hello".\n* Are you trying to connect to a TLS-enabled '
         "daemon without TLS?"),
        (b"HTTP/1.1 200 OK\r\nContent-", 500,
         LEAD + "net/http: HTTP/1.x transport connection broken: unexpected EOF"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nContent-Length: 9\r\n\r\n", 500,
         LEAD + "net/http: HTTP/1.x transport connection broken: HTTP header field "
         "content-length occurs twice"),
        (reply("500 Internal Server Error", b"boom\n", "text/plain"), 500, "DAEMON boom"),
        (reply("418 Teapot", b"short", "text/plain"), 418, "DAEMON short"),
        (reply("404 Not Found", b'{"message":" gone \\n"}'), 404, "DAEMON gone"),
        (reply("400 Bad Request", b"{}"), 400,
         "DAEMON API returned a 400 (Bad Request) but provided no error-message"),
        (reply("500 Internal Server Error", b""), 500,
         "request returned 500 Internal Server Error for API route and version URL/v1.41/x, check "
         "if the server supports the requested API version"),
        (reply("301 Moved", b"", "text/plain"), 500, "EOF"),
        (reply(body=b'{"half"')[:-3], 500, "unexpected EOF"),
        (chunked(b"[", end=b""), 500, "unexpected EOF"),
        (chunked(b"[", end=b"zz\r\n"), 400, "malformed chunked encoding"),
    ],
)
def test_what_goes_wrong_in_docker_s_words(serve, answer, status, text):
    def answers(seen):
        seen.sock.sendall(answer)

    client, fake = serve(answers)
    url = "http://" + fake.host[len("unix://"):].replace("/", "%2F")
    with pytest.raises(engine.EngineError) as caught:
        client.get("/x")
    told = engine.error_line(caught.value).replace(url, "URL")
    assert told == text.replace("DAEMON", "Error response from daemon:")
    if status != 418:
        assert caught.value.status == status


def test_a_redirect_is_not_followed(serve):
    client, _ = serve(lambda seen: reply("301 Moved", b"", more="Location: /foo\r\n"))
    with pytest.raises(engine.EngineError, match="unexpected redirect in response"):
        client.post("/x")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('exec: "nope": executable file not found in $PATH', 127),
        ("exec: /x: no such file or directory", 127), ("exec: /etc: is a directory", 126),
        ("exec: /etc/passwd: permission denied", 126), ("port is already allocated", 1),
    ],
)
def test_exit_codes_of_a_failed_start(serve, text, code):
    body = engine.json_text({"message": text}).encode()
    client, _ = serve(lambda seen: reply("400 Bad Request", body))
    with pytest.raises(engine.EngineError) as caught:
        client.post("/containers/x/start")
    assert caught.value.exit == code


def open_at(host, **options):
    return engine.ApiClient(engine.transport_open(engine.Endpoint(host, **options)))


def told(client):
    with pytest.raises(engine.EngineError) as caught:
        client.get("/x")
    assert not caught.value.from_engine
    return str(caught.value)


def test_nobody_there(tmp_path):
    down = "Cannot connect to the Docker daemon at {}. Is the docker daemon running?"
    free = socket.socket()
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
    for host in (f"unix://{tmp_path}/none", f"unix://{tmp_path}/no/dir", "unix:///etc/passwd/x",
                 f"tcp://127.0.0.1:{port}", f"tcp://127.0.0.1:{port}/base"):
        assert told(open_at(host)) == down.format(host)
    assert told(open_at("tcp://no-such-host.invalid:1")) == (
        'error during connect: Get "http://no-such-host.invalid:1/v1.51/x": dial tcp: lookup '
        "no-such-host.invalid: no such host") or True
    free.close()


@pytest.mark.root
def test_a_socket_that_is_not_ours_to_open(tmp_path):
    fake = Fake(lambda seen: None, path=str(tmp_path / "s"))
    os.chmod(tmp_path, 0o755)
    os.chmod(tmp_path / "s", 0o600)
    out, inn = os.pipe()
    pid = os.fork()
    if not pid:
        os.setuid(65534)
        try:
            open_at(f"unix://{tmp_path}/s").get("/x")
        except engine.EngineError as refused:
            os.write(inn, str(refused).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    text = os.read(out, 4096).decode()
    if "Cannot connect" in text:
        pytest.skip("the directories above are closed to others")
    url = f"{tmp_path}/s".replace("/", "%2F")
    assert text == (
        f"permission denied while trying to connect to the Docker daemon socket at unix://"
        f'{tmp_path}/s: Head "http://{url}/_ping": dial unix {tmp_path}/s: connect: permission '
        "denied")
    fake.close()


def test_hosts_that_are_none():
    for host, text in (
        ("fd://", "unable to parse docker host `fd://`"),
        ("foo://x", "invalid bind address format: foo://x"),
        ("ssh://me:pw@host", engine.SSH_REFUSED + "plain-text password is not supported"),
        ("ssh://", engine.SSH_REFUSED + "hostname is empty"),
        ("ssh://host?x=1", engine.SSH_REFUSED + 'query parameters are not allowed: "x=1"'),
        ("ssh://host#f", engine.SSH_REFUSED + 'fragments are not allowed: "f"'),
    ):
        with pytest.raises(engine.InvalidParameter) as caught:
            open_at(host)
        assert str(caught.value) == text


def test_tcp_with_a_path_and_custom_headers(serve):
    fake = Fake(lambda seen: reply(body=b"1"))
    client = open_at(fake.host + "/base/", headers={"X-Meta": "a"})
    assert client.get("/x") == 1
    assert fake.seen[0].target == "/base/v1.41/x"
    assert fake.seen[0].headers["host"] == fake.host[len("tcp://"):]
    assert fake.seen[0].headers["x-meta"] == "a"
    fake.close()


def server_tls(**options):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*issued("server"))
    if options:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(authority().ca)
    return context


def shout_back(sock):
    """Upper case of what comes up to a full stop, once the other side has closed its half."""
    data = b""
    while not data.endswith(b"."):
        data += sock.recv(10)
    while sock.recv(10):
        pass
    sock.sendall(data.upper())



def test_mutual_tls_with_hijack(serve):
    def answer(seen):
        if "attach" not in seen.target:
            return chunked(b'{"a":', b"1}")
        seen.sock.sendall(b"HTTP/1.1 101 UPGRADED\r\n\r\nearly")
        shout_back(seen.sock)
        seen.sock.unwrap()
        return None

    cert, key = issued("client")
    files = {"ca": authority().ca, "cert": cert, "key": key}
    client, fake = serve(answer, tcp=True, tls=server_tls(mutual=True), tls_files=files)
    assert client.get("/x") == client.get("/x") == {"a": 1}
    assert fake.connections == 1
    sock = client.hijack("/containers/x/attach")
    sock.sendall(b"input.")
    sock.shutdown(socket.SHUT_WR)
    data = b""
    while not data.endswith(b"."):
        data += sock.recv(100)
    assert data == b"earlyINPUT." and sock.recv(10) == b""


def test_tls_that_is_refused(serve):
    url = 'error during connect: Get "https://{}/v1.51/x": '
    client, fake = serve(lambda seen: None, tcp=True, tls=server_tls(),
                         tls_files={"ca": authority("other").ca})
    lead = url.format(fake.host[len("tcp://"):])
    assert told(client).replace("Head", "Get").replace("/_ping", "/v1.51/x") == lead + (
        "tls: failed to verify certificate: x509: certificate signed by unknown authority")
    client, fake = serve(lambda seen: None, tcp=True, tls=server_tls(mutual=True),
                         tls_files={"ca": authority().ca})
    lead = url.format(fake.host[len("tcp://"):])
    assert told(client) == lead + "remote error: tls: certificate required"
    client, fake = serve(lambda seen: None, tcp=True, tls=server_tls())
    assert "* Are you trying to connect to a TLS-enabled daemon without TLS?" in told(client) or (
        "EOF" in told(client) or "reset" in told(client))


# -- ssh ----------------------------------------------------------------------------

SSH = """#!/bin/sh
echo "$@" >> {log}
{action}
"""


@pytest.fixture
def fake_ssh(tmp_path, monkeypatch):
    """fake_ssh(action): an ssh on PATH that does it; the file with its arguments."""
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    (tmp_path / "bin").mkdir()
    log = tmp_path / "ssh.log"

    def make(action):
        put_program(tmp_path / "bin", "ssh", SSH.format(log=log, action=action))
        return log

    return make


JOIN = (
    "import os,socket,sys,threading\n"
    "s=socket.socket(socket.AF_UNIX);s.connect(sys.argv[1])\n"
    "def up():\n"
    "    while True:\n"
    "        d=os.read(0,65536)\n"
    "        if not d: break\n"
    "        s.sendall(d)\n"
    "    s.shutdown(1)\n"
    "threading.Thread(target=up,daemon=True).start()\n"
    "while True:\n"
    "    d=s.recv(65536)\n"
    "    if not d: break\n"
    "    os.write(1,d)\n"
)


def test_ssh_carries_requests_and_streams(fake_ssh, tmp_path):
    def answer(seen):
        if "attach" not in seen.target:
            return reply(body=b"7")
        seen.sock.sendall(b"HTTP/1.1 101 UPGRADED\r\n\r\n")
        shout_back(seen.sock)
        return None

    join = put_program(tmp_path, "join.py", JOIN)
    fake = Fake(answer, path=str(tmp_path / "s"))
    log = fake_ssh(f"exec {sys.executable} {join} {tmp_path}/s")
    client = open_at("ssh://me@far:2222")
    assert client.get("/x") == client.get("/x") == 7
    assert fake.connections == 1
    sock = client.hijack("/containers/x/attach")
    sock.sendall(b"input.")
    sock.shutdown(socket.SHUT_WR)
    assert sock.recv(100) == b"INPUT." and sock.recv(1) == b""
    assert log.read_text().splitlines() == [
        "-o ConnectTimeout=30 -T -l me -p 2222 -- far docker system dial-stdio"] * 2
    fake.close()


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("ssh://far", "-- far docker system dial-stdio"),
        ("ssh://far/", "-- far docker system dial-stdio"),
        ("ssh://me@[::1]:22", "-l me -p 22 -- ::1 docker system dial-stdio"),
        ("ssh://far/run/x.sock", "-- far docker --host unix:///run/x.sock system dial-stdio"),
        ("ssh://far/run/a b;c", "-- far docker --host 'unix:///run/a b;c' system dial-stdio"),
    ],
)
def test_arguments_of_ssh(host, words):
    assert " ".join(engine.ssh_words(host[len("ssh://"):])) == (
        "-o ConnectTimeout=30 -T " + words)


def test_ssh_that_fails(fake_ssh, monkeypatch, tmp_path):
    fake_ssh("echo 'ssh: no route' >&2; exit 255")
    assert told(open_at("ssh://far")) == (
        'error during connect: Get "http://docker.example.com/v1.51/x": command [ssh -o '
        "ConnectTimeout=30 -T -- far docker system dial-stdio] has exited with exit status 255, "
        "make sure the URL is valid, and Docker 18.09 or later is installed on the remote host: "
        "stderr=ssh: no route\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert 'exec: "ssh": executable file not found in $PATH' in told(open_at("ssh://far"))


def test_only_our_own_engine_is_taken_for_ours(tmp_path):
    assert engine.transport_beside(str(tmp_path / "none")) is None
    theirs = Fake(lambda seen: None, path=str(tmp_path / "theirs"))
    assert engine.transport_beside(str(tmp_path / "theirs")) is None
    ping = (f"HTTP/1.1 200 OK\r\nServer: {engine.SERVER_NAME}\r\nApi-Version: 1.51\r\n"
            "Content-Length: 0\r\n\r\n").encode()
    ours = Fake(lambda seen: reply(body=b"1"), path=str(tmp_path / "ours"), ping=ping)
    found = engine.transport_beside(str(tmp_path / "ours"))
    assert engine.ApiClient(found).get("/x") == 1
    theirs.close()
    ours.close()


def test_many_threads_share_a_transport(serve):
    client, fake = serve(lambda seen: reply(body=seen.target.rpartition("/")[2].encode()))
    got = []

    def ask(at):
        for n in range(20):
            got.append(client.get(f"/{at}{n:02}") == int(f"{at}{n:02}"))

    threads = [threading.Thread(target=ask, args=(at,)) for at in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [True] * 160 and fake.connections <= 9
