"""api_images: what requests ask of the images section, and the forms of older API versions."""

from __future__ import annotations

import http.server
import io
import threading
import types

import engine
import pytest

ID = "sha256:" + "4f53cda1" * 8
SUMMARY = {
    "Containers": 2,
    "Created": 1,
    "Id": ID,
    "Labels": None,
    "ParentId": "",
    "RepoDigests": [],
    "RepoTags": [],
    "SharedSize": -1,
    "Size": 5,
}
INSPECT = {"Id": ID, "Size": 5, "Config": {"Cmd": ["sh"], "Env": None}}


class Self:
    """An engine whose store is only handed on."""

    store = types.SimpleNamespace(run="/nowhere")


def call(method, path, *, query=None, body=None):
    query = {
        name: value if isinstance(value, list) else [value] for name, value in (query or {}).items()
    }
    return engine.http_dispatch(Self(), engine.Request(method, path, query=query, body=body))


@pytest.fixture
def asked(monkeypatch):
    """What the functions of the images section were called with."""
    calls = []

    def replace(name, answer):
        def function(*args, **options):
            calls.append((name, args[1:], options))
            return answer() if callable(answer) else answer

        monkeypatch.setattr(engine, name, function, raising=False)

    replace("image_list", [SUMMARY])
    replace("image_inspect", INSPECT)
    made = engine.Image((ID, "", 0, 0, 0, 0, "{}"))
    monkeypatch.setattr(engine, "image_get", lambda store, ref: made)
    replace("image_history", [])
    replace("image_tag", None)
    replace("image_remove", [{"Deleted": ID}])
    replace("image_prune", {"ImagesDeleted": None, "SpaceReclaimed": 0})
    replace("image_import", ID)
    replace("images_load", lambda: iter([{"stream": "Loaded image: a:1\n"}]))
    replace("images_save", lambda: iter([b"a", b"b"]))
    return calls


# --- look ---


@pytest.mark.parametrize(
    ("version", "changed"),
    [
        ("1.51", {}),
        ("1.50", {"Containers": -1}),
        ("1.43", {"Containers": -1, "VirtualSize": 5}),
        (
            "1.42",
            {
                "Containers": -1,
                "VirtualSize": 5,
                "RepoTags": ["<none>:<none>"],
                "RepoDigests": ["<none>@<none>"],
            },
        ),
    ],
)
def test_list_in_the_form_of_the_version(asked, version, changed):
    assert call("GET", f"/v{version}/images/json").value == [{**SUMMARY, **changed}]


def test_list_hands_filters_on(asked):
    call("GET", "/images/json", query={"filters": '{"label":{"a":true}}', "shared-size": "1"})
    call("GET", "/v1.40/images/json", query={"filter": "busy*", "shared-size": "1"})
    call("GET", "/v1.41/images/json", query={"filter": "busy*"})
    assert [(args[0], options["shared_size"]) for _, args, options in asked] == [
        ({"label": ["a"]}, True),
        ({"reference": ["busy*"]}, False),
        ({}, False),
    ]


def test_inspect_in_the_form_of_the_version(asked):
    assert call("GET", "/images/a/b:1/json").value == INSPECT
    assert asked == [("image_inspect", ("a/b:1", None), {})]
    assert "AttachStdin" in call("GET", "/v1.49/images/a/json").value["Config"]
    old = call("GET", "/v1.43/images/a/json").value
    assert (old["VirtualSize"], old["Created"]) == (5, "0001-01-01T00:00:00Z")
    assert old["ContainerConfig"]["Cmd"] is None
    assert list(old["Config"]) == sorted(old["Config"])


PLATFORM = {"os": "linux", "architecture": "arm64", "variant": ""}


@pytest.mark.parametrize(
    ("text", "platform"),
    [
        ('{"os":"linux","architecture":"arm64"}', PLATFORM),
        ("", None),
    ],
)
def test_platform(asked, text, platform):
    call("GET", "/images/a/json", query={"platform": text})
    call("GET", "/images/a/history", query={"platform": text})
    call("GET", "/v1.48/images/a/json", query={"platform": text})
    assert [args for _, args, _ in asked] == [("a", platform), ("a", platform), ("a", None)]


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"os":1}', "a b", "linux/arm64", '{"os":"linux"}', '{"variant":"v8"}'],
)
def test_bad_platform(asked, text):
    assert call("GET", "/images/a/json", query={"platform": text}).status == 400


def test_platform_and_manifests_exclude_each_other(asked):
    query = {"platform": '{"os":"linux","architecture":"arm64"}', "manifests": "1"}
    assert call("GET", "/images/a/json", query=query).value == {
        "message": "conflicting options: manifests and platform options cannot both be set"
    }


# --- change ---


def test_tag(asked):
    reply = call("POST", "/images/a/tag", query={"repo": "host:5000/b", "tag": "2"})
    assert (reply.status, asked) == (201, [("image_tag", ("a", "host:5000/b:2"), {})])


def test_delete(asked):
    assert call("DELETE", "/images/a/b", query={"force": "1"}).value == [{"Deleted": ID}]
    assert (asked[0][1][0], asked[0][2]) == ("a/b", {"force": True})
    assert call("DELETE", "/images/ ").value == {"message": "image name cannot be blank"}


def test_prune(asked):
    reply = call("POST", "/images/prune", query={"filters": '{"dangling":{"false":true}}'})
    assert reply.value == {"ImagesDeleted": None, "SpaceReclaimed": 0}
    assert asked[0][1][0] == {"dangling": ["false"]}


# --- archives ---


def lines(stream):
    return [engine.json_parse(line) for line in b"".join(stream.chunks).splitlines()]


def test_import(asked):
    query = {"fromSrc": "-", "repo": "a", "tag": "2", "changes": ["ENV A=b", "CMD sh"]}
    body = engine.Body(reader=io.BytesIO(b"tar"))
    assert lines(call("POST", "/images/create", query=query, body=body)) == [{"status": ID}]
    _, args, options = asked[0]
    assert args[0](3) == b"tar"
    assert options["name"].familiar == "a:2"
    assert options["changes"] == ["ENV A=b", "CMD sh"]
    assert (options["message"], options["platform"]) == ("Imported from -", None)


@pytest.mark.parametrize(
    ("query", "status", "message"),
    [
        ({"fromImage": "scratch"}, 403, "'scratch' is a reserved name"),
        ({"fromSrc": "ftp://x"}, 500, 'Get "ftp://x": unsupported protocol scheme "ftp"'),
        ({"fromSrc": "-", "repo": "A"}, 400, "invalid reference format: repository name "
         "(library/A) must be lowercase"),
        ({"fromSrc": "-", "repo": "a@sha256:" + "a" * 64}, 400, "cannot import digest reference"),
    ],
)  # fmt: skip
def test_create_refuses(asked, query, status, message):
    reply = call("POST", "/images/create", query=query)
    assert (reply.status, reply.value, asked) == (status, {"message": message}, [])


class Remote(http.server.BaseHTTPRequestHandler):
    """Has one file, /tar."""

    def do_GET(self):
        if self.path == "/tar":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"an archive")
        else:
            self.send_error(404, "Not Found")

    def log_message(self, *words):
        pass


@pytest.fixture
def remote(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = http.server.HTTPServer(("127.0.0.1", 0), Remote)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_import_of_a_url(asked, remote):
    got = lines(call("POST", "/images/create", query={"fromSrc": remote + "/tar"}))
    assert got == [{"status": f"Downloading from http://{remote}/tar"}, {"status": ID}]
    assert asked[0][2]["message"] == f"Imported from {remote}/tar"
    reply = call("POST", "/images/create", query={"fromSrc": f"http://{remote}/none"})
    assert reply.status == 404
    assert f"failed to GET http://{remote}/none with status 404 Not Found:" in str(reply.value)
    reply = call("POST", "/images/create", query={"fromSrc": "http://127.0.0.1:1/tar"})
    assert (reply.status, reply.value["message"]) == (
        500, 'Get "http://127.0.0.1:1/tar": dial tcp 127.0.0.1:1: connect: connection refused')


def test_load_gets_the_open_file(asked, tmp_path):
    (tmp_path / "x").write_bytes(b"tar")
    with open(tmp_path / "x", "rb") as file:
        stream = call("POST", "/images/load", query={"quiet": "0"}, body=engine.Body(reader=file))
        assert lines(stream) == [{"stream": "Loaded image: a:1\n"}]
        assert asked[0][1][0] is file
    assert (asked[0][2]["quiet"], asked[0][2]["platform"]) == (False, None)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (engine.InvalidParameter("unexpected EOF"), "unexpected EOF"),
        (OSError(28, "No space left on device"), "no space left on device"),
    ],
)
def test_load_tells_errors_in_the_stream(monkeypatch, error, text):
    def load(*args, **options):
        yield {"stream": "Loaded image: a:1\n"}
        raise error

    monkeypatch.setattr(engine, "images_load", load, raising=False)
    stream = call("POST", "/images/load")
    assert stream.status == 200
    assert lines(stream)[1] == {"errorDetail": {"message": text}, "error": text}


@pytest.mark.parametrize(
    ("path", "query", "names"),
    [("/images/get", {"names": ["a", "b"]}, ["a", "b"]), ("/images/x/y:1/get", {}, ["x/y:1"])],
)
def test_save(asked, path, query, names):
    stream = call("GET", path, query=query)
    assert (b"".join(stream.chunks), stream.content_type) == (b"ab", "application/x-tar")
    assert asked[0][1] == (names, None, [])


def test_save_of_nothing_has_a_status(monkeypatch):
    def save(*args):
        raise engine.NotFound("No such image: nope:latest")

    monkeypatch.setattr(engine, "images_save", save, raising=False)
    assert call("GET", "/images/nope/get").status == 404
