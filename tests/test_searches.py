"""Searching: which registry is asked and how, what is taken of its answer, what is shown."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess

import engine
import pytest
from conftest import wait_for
from registry_help import basic, registry_running

FOUND = [
    {"name": "busybox", "description": "Busybox base image.\nSmall & <old>, and this goes on.",
     "star_count": 3400, "is_official": True, "is_automated": False, "more": 1},
    {"name": "team/busybox", "description": "", "star_count": 2, "is_automated": True},
    {"name": "other/box", "star_count": 40, "is_official": False},
]


class Index:
    """What a registry with a search answers; `term` is what it was asked for last."""

    def __init__(self, registry):
        self.registry, self.status, self.pings = registry, 200, True
        self.reply = json.dumps({"num_results": 3, "results": FOUND}).encode()
        registry.faults.append(self)

    def __call__(self, handler):
        path = handler.path.partition("?")[0]
        if path == "/v1/_ping" and self.pings:
            handler.reply(404 if self.pings == 404 else 200, b"true")
        elif path == "/v1/search":
            handler.reply(self.status, self.reply)
        else:
            return False
        return True

    @property
    def asked(self):
        return [path for _, path, _ in self.registry.log if path.startswith("/v1/search")]

    @property
    def headers(self):
        return self.registry.log[-1][2]


@pytest.fixture(name="index")
def index_fixture(monkeypatch):
    monkeypatch.setattr(engine, "RETRY_PAUSE", 0)
    with registry_running() as registry:
        yield Index(registry)


@pytest.fixture(name="hub")
def hub_fixture(index, monkeypatch):
    """The same in the place of Docker Hub."""
    monkeypatch.setattr(engine, "INDEX_SERVER", index.registry.url + "/v1/")
    return index


def search(tmp_path, term, **more):
    return engine.registry_search(str(tmp_path), term, **more)


@pytest.mark.parametrize(("term", "parts"), [
    ("busybox", ("docker.io", "busybox")),
    ("team/busybox", ("docker.io", "team/busybox")),
    ("docker.io/library/x", ("docker.io", "library/x")),
    ("index.docker.io/x", ("docker.io", "x")),
    ("localhost/x", ("localhost", "x")),
    ("host:5000/a/b", ("host:5000", "a/b")),
    ("quay.io/a", ("quay.io", "a")),
])
def test_split(term, parts):
    assert engine.search_split(term) == parts


def test_hub(hub, tmp_path):
    found = search(tmp_path, "library/busy box&x")
    assert hub.asked == ["/v1/search?q=busy%20box%26x&n=25"]
    assert hub.headers["X-Docker-Token"] == "true" and "Authorization" not in hub.headers
    assert found[0] == {"star_count": 3400, "is_official": True, "name": "busybox",
                        "is_automated": False, "description": FOUND[0]["description"]}
    assert found[1] == {"star_count": 2, "is_official": False, "name": "team/busybox",
                        "is_automated": False, "description": ""}


@pytest.mark.parametrize(("filters", "names"), [
    ({"is-official": ["true"]}, ["busybox"]),
    ({"is-official": ["0"]}, ["team/busybox", "other/box"]),
    ({"stars": ["3"]}, ["busybox", "other/box"]),
    ({"stars": ["3", "100"]}, ["busybox"]),
    ({"is-automated": ["true"]}, []),
    ({"is-automated": ["false"], "stars": ["-1"]}, ["busybox", "team/busybox", "other/box"]),
])
def test_filters(hub, tmp_path, filters, names):
    assert [each["name"] for each in search(tmp_path, "x", filters=filters)] == names


@pytest.mark.parametrize(("more", "text"), [
    ({"filters": {"name": ["x"]}}, "invalid filter 'name'"),
    ({"filters": {"is-official": ["maybe"]}}, "invalid filter 'is-official=[maybe]'"),
    ({"filters": {"stars": ["x"]}},
     "invalid filter 'stars=x': strconv.Atoi: parsing \"x\": invalid syntax"),
    ({"limit": 101}, "limit 101 is outside the range of [1, 100]"),
    ({"term": "https://x/y"},
     "invalid repository name: repository name (https://x/y) should not have a scheme"),
])
def test_refused_before_anybody_is_asked(hub, tmp_path, more, text):
    with pytest.raises(engine.InvalidParameter) as refused:
        search(tmp_path, **{"term": "x", **more})
    assert str(refused.value) == text
    assert hub.registry.log == []


@pytest.mark.parametrize("reply", [
    b"", b"[]", b"nothing", b'{"results": 3}', b'{"results": [3]}', b'{"results": {"a": 1}}',
    b'{"results": [{"name": 3}]}', b'{"results": [{"star_count": "many"}]}',
    b'{"results": [{"star_count": true}]}', b'{"results": [{"is_official": 1}]}',
    b'{"results": [{"description": ["x"]}]}', b"\xff\xfe",
])
def test_what_is_no_answer(hub, tmp_path, reply):
    hub.reply = reply
    with pytest.raises(engine.EngineError, match="error decoding registry search results"):
        search(tmp_path, "x")


def test_nothing_found_and_failures(hub, tmp_path):
    hub.reply = b'{"results": null}'
    assert search(tmp_path, "x") == []
    hub.reply = b'{"results": []}' + b" " * (64 << 20)
    with pytest.raises(engine.EngineError):
        search(tmp_path, "x")
    hub.status, hub.reply = 404, b"x"
    with pytest.raises(engine.EngineError, match="^Unexpected status code 404$"):
        search(tmp_path, "x")


def test_a_registry_of_ones_own(index, tmp_path):
    host = index.registry.host
    found = search(tmp_path, f"{host}/team/x", limit=3,
                   credentials={"username": "me", "password": "secret"})
    assert len(found) == 3
    assert [path for _, path, _ in index.registry.log] == [
        "/v1/_ping", "/v1/search?q=team%2Fx&n=3"]
    assert base64.b64decode(index.headers["Authorization"][6:]) == b"me:secret"


def test_one_that_is_not_there(tmp_path):
    with registry_running() as registry:
        host = registry.host
    with pytest.raises(engine.InvalidParameter) as refused:
        search(tmp_path, host + "/x")
    start, https, http = str(refused.value).partition(" HTTPS attempt: ")[0::2] + ("",)
    assert start == f'invalid registry endpoint "http://{host}/v1/".'
    https, _, http = https.partition(". HTTP attempt: ")
    assert https.startswith(f'Get "https://{host}/v1/_ping": dial tcp')
    assert http.startswith(f'Get "http://{host}/v1/_ping": dial tcp')


def test_one_that_must_speak_tls(index, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "INSECURE_ALWAYS", ())
    host = index.registry.host
    with pytest.raises(engine.InvalidParameter) as refused:
        search(tmp_path, host + "/x")
    text = str(refused.value)
    assert text.startswith(f'invalid registry endpoint https://{host}/v1/: Get "https://')
    assert text.endswith(f"simply place the CA certificate at /etc/docker/certs.d/{host}/ca.crt")
    assert index.asked == []


def test_an_identity_token(hub, tmp_path):
    """A registry that wants a token gets the one that an identity token is good for."""
    realm = hub.registry.url + "/token"

    def guard(handler):
        if handler.path.startswith("/token"):
            assert b"scope=registry%3Acatalog%3Asearch" in handler.sent
            assert b"refresh_token=lasting" in handler.sent
            handler.reply(200, b'{"token": "short"}')
        elif handler.headers.get("Authorization") != "Bearer short":
            handler.reply(401, WWW_Authenticate=f'Bearer realm="{realm}",service="s"')
        else:
            return False
        return True
    hub.registry.faults.insert(0, guard)
    asked = {"username": "me", "identitytoken": "lasting"}
    assert len(search(tmp_path, "x", credentials=asked)) == 3
    with pytest.raises(engine.EngineError, match="Unexpected status code 401"):
        search(tmp_path, "x")


def test_basic(hub, tmp_path):
    hub.registry.faults.insert(0, basic("me", "secret"))
    assert search(tmp_path, "x", credentials={"username": "me", "password": "secret"})
    with pytest.raises(engine.EngineError, match="Unexpected status code 401"):
        search(tmp_path, "x", credentials={"username": "me", "password": "wrong"})


# --- the command, beside docker's own ---

COMMANDS = [
    ("busy",), ("--limit", "5", "busy"), ("--no-trunc", "busy"), ("--format", "{{.Name}}", "busy"),
    ("-f", "stars=30", "busy"), ("--filter", "is-official=true", "busy"),
    ("--format", "json", "busy"), ("--format", "{{json .}}", "busy"),
    ("--format", "table {{.Name}}\t{{.IsOfficial}}", "busy"), ("--format", "{{.Nope}}", "busy"),
    ("--limit", "101", "busy"), ("-f", "stars=x", "busy"), ("-f", "is-automated=true", "busy"),
    ("-f", "nope=1", "busy"), (), ("a", "b"),
]


@pytest.mark.root
@pytest.mark.skipif(not shutil.which("docker"), reason="no docker")
def test_as_docker_shows_it(cli, index, tmp_path):
    daemon = cli.popen("daemon", "-H", f"unix://{tmp_path}/sock")
    try:
        wait_for(lambda: (tmp_path / "sock").exists(), 20, "the daemon's socket")
        for words in COMMANDS:
            words = [f"{index.registry.host}/{word}" if word == "busy" else word for word in words]
            ours = cli("search", *words)
            theirs = subprocess.run(["docker", "-H", f"unix://{tmp_path}/sock", "search", *words],
                                    capture_output=True, text=True)
            assert ours.out == theirs.stdout
            assert ours.code == theirs.returncode
            if words and len(words) != 2:
                assert ours.err == theirs.stderr
    finally:
        daemon.terminate()
        daemon.communicate(timeout=30)
