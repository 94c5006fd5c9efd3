"""The distribution specification, endpoint by endpoint, over real connections."""

from __future__ import annotations

import base64
import contextlib
import errno
import http.client
import json
import os
import socket
import threading
import time

import engine
import pytest
from conftest import wait_for
from image_help import digest, gz, layer, oci_parts
from registry_help import free_port, registry_running

BLOB = os.urandom(300_000)


class Served:
    def __init__(self, root, **rules):
        self.store = engine.RegistryStore(str(root))
        self.listeners = engine.listeners_open([f"tcp://127.0.0.1:{free_port()}"])
        self.server = engine.RegistryServer(self.store, engine.RegistryRules(**rules),
                                            self.listeners, lambda *told: self.told.append(told))
        self.told = []
        self.host = "127.0.0.1:%d" % self.listeners[0].sock.getsockname()[1]
        self.stop, self.tell = os.pipe()
        self.thread = threading.Thread(target=self.server.serve, args=(self.stop,))
        self.thread.start()

    def ask(self, method, path, body=None, **headers):
        conn = http.client.HTTPConnection(self.host, timeout=20)
        conn.request(method, path, body, {name.replace("_", "-"): value
                                          for name, value in headers.items()})
        reply = conn.getresponse()
        reply.data = reply.read()
        conn.close()
        return reply

    def blob(self, data, name="app"):
        reply = self.ask("POST", f"/v2/{name}/blobs/uploads/?digest={digest(data)}", data)
        assert reply.status == 201, reply.data
        return digest(data)

    def image(self, name="app", tag="1"):
        files, descriptor = oci_parts([layer("a")], gz)
        data = files.pop("blobs/sha256/" + descriptor["digest"][7:])
        for blob in files.values():
            self.blob(blob, name)
        reply = self.ask("PUT", f"/v2/{name}/manifests/{tag}", data,
                         Content_Type=engine.MEDIA_MANIFEST)
        assert reply.status == 201, reply.data
        return data

    def close(self):
        os.write(self.tell, b"x")
        self.thread.join()
        for listener in self.listeners:
            listener.close()
        self.server.drain(5)
        os.close(self.stop)
        os.close(self.tell)


@pytest.fixture(name="serve")
def serve_fixture(tmp_path):
    made = []

    def serve(**rules):
        made.append(Served(tmp_path / f"registry{len(made)}", **rules))
        return made[-1]
    yield serve
    for served in made:
        served.close()
        assert not [text for level, text in served.told if level == "error"]


def code(reply):
    return json.loads(reply.data)["errors"][0]["code"]


def basic(user, password):
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def test_the_base(serve):
    served = serve()
    reply = served.ask("GET", "/v2/")
    assert (reply.status, reply.data) == (200, b"{}\n")
    assert reply.headers["Docker-Distribution-Api-Version"] == "registry/2.0"
    assert served.ask("GET", "/v2/", User_Agent="Mozilla/5.0").status == 200
    assert served.ask("GET", "/").status == 404


def test_a_blob_in_one_request_and_its_ranges(serve):
    served = serve()
    path = f"/v2/team/app/blobs/{served.blob(BLOB, 'team/app')}"
    reply = served.ask("GET", path)
    assert reply.data == BLOB and reply.headers["Docker-Content-Digest"] == digest(BLOB)
    head = served.ask("HEAD", path)
    assert (head.status, head.data, head.headers["Content-Length"]) == (200, b"", "300000")
    for asked, part in (("bytes=0-9", BLOB[:10]), ("bytes=299990-", BLOB[-10:]),
                        ("bytes=-10", BLOB[-10:]), ("bytes=299990-999999", BLOB[-10:])):
        reply = served.ask("GET", path, Range=asked)
        assert (reply.status, reply.data) == (206, part), asked
    assert served.ask("GET", path, Range="bytes=0-9").headers["Content-Range"] == (
        "bytes 0-9/300000")
    for asked in ("bytes=300000-", "bytes=9-1", "bytes=-0"):
        assert served.ask("GET", path, Range=asked).status == 416, asked
    for asked in ("bytes=", "bytes=a-b", "items=1-2", "bytes=1-2,4-5"):
        assert served.ask("GET", path, Range=asked).data == BLOB, asked
    reply = served.ask("GET", f"/v2/team/app/blobs/{digest(b'')}")
    assert (reply.status, code(reply)) == (404, "BLOB_UNKNOWN")


def test_a_blob_in_chunks(serve):
    served = serve()
    reply = served.ask("POST", "/v2/app/blobs/uploads/")
    assert reply.status == 202
    where = reply.headers["Location"]
    reply = served.ask("PATCH", where, BLOB[:1000], Content_Range="0-999")
    assert (reply.status, reply.headers["Range"]) == (202, "0-999")
    reply = served.ask("PATCH", where, BLOB[:1000], Content_Range="5-1004")
    assert reply.status == 416
    reply = served.ask("GET", where)
    assert (reply.status, reply.headers["Range"]) == (204, "0-999")
    reply = served.ask("PUT", f"{where}?digest={digest(BLOB)}", BLOB[1000:])
    assert reply.status == 201
    assert served.ask("GET", reply.headers["Location"]).data == BLOB
    assert code(served.ask("GET", where)) == "BLOB_UPLOAD_UNKNOWN"
    where = served.ask("POST", "/v2/app/blobs/uploads/").headers["Location"]
    assert code(served.ask("PUT", where, BLOB)) == "DIGEST_INVALID"
    assert code(served.ask("PUT", f"{where}?digest={digest(b'x')}", BLOB)) == "DIGEST_INVALID"
    where = served.ask("POST", "/v2/app/blobs/uploads/").headers["Location"]
    assert served.ask("DELETE", where).status == 204


def test_a_mount(serve):
    served = serve()
    served.blob(BLOB)
    path = f"/v2/copy/blobs/uploads/?mount={digest(BLOB)}&from="
    assert served.ask("POST", path + "app").status == 201
    assert served.ask("GET", f"/v2/copy/blobs/{digest(BLOB)}").data == BLOB
    assert served.ask("POST", path + "none").status == 202
    nowhere = f"/v2/any/blobs/uploads/?mount={digest(BLOB)}"
    assert served.ask("POST", nowhere).status == 201
    assert served.ask("GET", f"/v2/any/blobs/{digest(BLOB)}").data == BLOB
    for name in ("app", "copy", "any"):
        assert served.ask("DELETE", f"/v2/{name}/blobs/{digest(BLOB)}").status == 202
    assert served.ask("POST", nowhere).status == 202    # the bytes are here, no repository's


@pytest.mark.parametrize(("told", "status"), [
    ("0-9", 202), ("bytes 0-9/10", 202), ("0-8", 400), ("0-10", 400), ("1-10", 416), ("9-0", 416),
    ("x", 416), ("-9", 416), ("0-", 416), ("0-" + "9" * 99, 416), ("", 202)])
def test_what_a_chunk_says_of_itself(serve, told, status):
    served = serve()
    where = served.ask("POST", "/v2/app/blobs/uploads/").headers["Location"]
    assert served.ask("PATCH", where, b"x" * 10, Content_Range=told).status == status
    assert served.ask("GET", where).headers["Range"] == ("0-9" if status == 202 else "0-0")


def test_an_upload_has_its_time(serve, monkeypatch):
    served = serve(upload_time=5)
    where = served.ask("POST", "/v2/app/blobs/uploads/").headers["Location"]
    assert served.ask("PATCH", where, b"x").status == 202
    now = time.time
    monkeypatch.setattr(engine.time, "time", lambda: now() + 7)
    reply = served.ask("PATCH", where, b"y")
    assert (reply.status, code(reply)) == (400, "BLOB_UPLOAD_INVALID")
    assert b"took too long" in reply.data


def test_a_body_that_trickles_in(serve):
    """No stall is long enough to be noticed; all of them are."""
    served = serve(upload_time=2)
    where = served.ask("POST", "/v2/app/blobs/uploads/").headers["Location"]
    with socket.create_connection(served.host.split(":")) as sock:
        sock.sendall(f"PATCH {where} HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n\r\n".encode())
        begin, said = time.monotonic(), b""
        sock.settimeout(0.3)
        while not said and time.monotonic() < begin + 20:
            sock.sendall(b"x")
            with contextlib.suppress(TimeoutError):
                said = sock.recv(999)
    assert said.startswith(b"HTTP/1.1 408 ") and time.monotonic() < begin + 10


def test_who_takes_nothing_is_let_go(serve, monkeypatch):
    monkeypatch.setattr(engine, "SEND_STALL", 0.2)
    served = serve()
    path = f"/v2/app/blobs/{served.blob(b'x' * (32 << 20))}"
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(served.listeners[0].sock.getsockname())
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        wait_for(lambda: served.server._open, 5, "the connection")
        wait_for(lambda: not served.server._open, 10, "its end")


def test_a_full_disk_is_not_kept_full(serve, monkeypatch):
    served = serve()
    uploads = served.store.path("uploads")
    where = served.ask("POST", "/v2/app/blobs/uploads/").headers["Location"]
    assert served.ask("PATCH", where, BLOB).status == 202

    def full(fd, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as patched:
        patched.setattr(engine, "write_all", full)
        for method, path in (("PATCH", where),
                             ("POST", f"/v2/app/blobs/uploads/?digest={digest(BLOB)}")):
            reply = served.ask(method, path, BLOB)
            assert reply.status == 500 and b"no space left on device" in reply.data
    assert [os.stat(f"{uploads}/{each}").st_size for each in os.listdir(uploads)] == [0]
    assert served.ask("PUT", f"{where}?digest={digest(BLOB)}", BLOB).status == 201


def test_nothing_stays_of_a_blob_in_one_request_that_failed(serve):
    served = serve(upload_max=1000)
    path = "/v2/app/blobs/uploads/?digest=" + digest(b"x")
    for data, status in ((b"y", 400), (BLOB, 413)):
        assert served.ask("POST", path, data).status == status
    with socket.create_connection(served.host.split(":")) as sock:      # ends in the middle
        sock.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx".encode())
        sock.shutdown(socket.SHUT_WR)
        assert b"unexpected EOF" in sock.recv(9999)
    assert os.listdir(served.store.path("uploads")) == []


def test_one_blob_by_many_at_once(serve):
    served, wrong = serve(), []

    def push(number):
        try:
            served.blob(BLOB, f"app{number % 3}")
            assert served.ask("GET", f"/v2/app{number % 3}/blobs/{digest(BLOB)}").data == BLOB
        except Exception as failure:
            wrong.append(failure)
    threads = [threading.Thread(target=push, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and os.listdir(served.store.path("uploads")) == []


def test_what_is_known_is_not_sent(serve):
    served = serve()
    data, blob = served.image(), served.blob(BLOB)
    for path, tag in (("manifests/1", digest(data)), (f"blobs/{blob}", blob)):
        reply = served.ask("GET", f"/v2/app/{path}", If_None_Match=f'"x", W/"{tag}"')
        assert (reply.status, reply.data, reply.headers["Etag"]) == (304, b"", f'"{tag}"')
        assert served.ask("GET", f"/v2/app/{path}", If_None_Match='"x"').status == 200


def test_an_index_for_those_who_take_only_images(serve):
    served = serve()
    image = served.image()
    child = {"mediaType": engine.MEDIA_MANIFEST, "digest": digest(image), "size": len(image)}
    arm = {**child, "platform": {"os": "linux", "architecture": "arm64"}}
    amd = {**child, "platform": {"os": "linux", "architecture": "amd64"}}
    for tag, parts in (("both", [arm, amd]), ("arm", [arm]), ("odd", [child])):
        data = json.dumps({"schemaVersion": 2, "mediaType": engine.INDEX_TYPES[0],
                           "manifests": parts}).encode()
        assert served.ask("PUT", f"/v2/app/manifests/{tag}", data,
                          Content_Type=engine.INDEX_TYPES[0]).status == 201
        for accept, ref, got in (
                (engine.MEDIA_MANIFEST, tag, image if tag == "both" else data),
                (engine.MEDIA_MANIFEST, digest(data), data), ("*/*", tag, data),
                (f"{engine.MEDIA_MANIFEST}, {engine.INDEX_TYPES[0]};q=1", tag, data),
                ("text/html", tag, data)):
            reply = served.ask("GET", f"/v2/app/manifests/{ref}", Accept=accept)
            assert (reply.data, reply.headers["Docker-Content-Digest"]) == (got, digest(got))

def test_manifests(serve):
    served = serve()
    data = served.image()
    for ref in ("1", digest(data)):
        reply = served.ask("GET", f"/v2/app/manifests/{ref}")
        assert (reply.data, reply.headers["Content-Type"]) == (data, engine.MEDIA_MANIFEST)
        assert reply.headers["Docker-Content-Digest"] == digest(data)
    assert code(served.ask("GET", "/v2/app/manifests/9")) == "MANIFEST_UNKNOWN"
    assert served.ask("PUT", "/v2/app/manifests/1", b"x" * (5 << 20),
                      Content_Type=engine.MEDIA_MANIFEST).status == 413
    for media in ("a/b", "text/html", "application/json<script>"):
        assert code(served.ask("PUT", "/v2/app/manifests/1", b'{"schemaVersion":2}',
                               Content_Type=media)) == "MANIFEST_INVALID"
    assert served.ask("DELETE", f"/v2/app/manifests/{digest(data)}").status == 202
    assert json.loads(served.ask("GET", "/v2/app/tags/list").data)["tags"] == []


def test_pages(serve):
    served = serve()
    for tag in "abcde":
        served.image(tag=tag)
    seen, path = [], "/v2/app/tags/list?n=2"
    while path:
        reply = served.ask("GET", path)
        seen.append(json.loads(reply.data)["tags"])
        path = engine.link_next(reply.headers.get("Link", ""))
    assert seen == [["a", "b"], ["c", "d"], ["e"]]
    assert json.loads(served.ask("GET", "/v2/app/tags/list?n=0").data)["tags"] == []
    assert served.ask("GET", "/v2/app/tags/list?n=x").status == 400
    assert code(served.ask("GET", "/v2/none/tags/list")) == "NAME_UNKNOWN"
    served.image("team/other")
    assert json.loads(served.ask("GET", "/v2/_catalog").data) == {
        "repositories": ["app", "team/other"]}


def test_referrers(serve, monkeypatch):
    served = serve()
    about = digest(served.image())
    empty = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": served.blob(b"{}"),
             "size": 2}
    for kind in ("a/sig", "a/sbom"):
        data = json.dumps({"schemaVersion": 2, "mediaType": engine.MEDIA_MANIFEST,
                           "artifactType": kind, "config": empty, "layers": [empty],
                           "subject": {"mediaType": engine.MEDIA_MANIFEST, "digest": about,
                                       "size": 1}}).encode()
        reply = served.ask("PUT", f"/v2/app/manifests/{digest(data)}", data,
                           Content_Type=engine.MEDIA_MANIFEST)
        assert (reply.status, reply.headers["OCI-Subject"]) == (201, about)
    found = json.loads(served.ask("GET", f"/v2/app/referrers/{about}").data)
    assert found["mediaType"] == engine.INDEX_TYPES[0]
    assert sorted(each["artifactType"] for each in found["manifests"]) == ["a/sbom", "a/sig"]
    reply = served.ask("GET", f"/v2/app/referrers/{about}?artifactType=a/sig")
    assert len(json.loads(reply.data)["manifests"]) == 1
    assert reply.headers["OCI-Filters-Applied"] == "artifactType"
    monkeypatch.setattr(engine, "REGISTRY_REFERRERS", 10)
    seen, path = [], f"/v2/app/referrers/{about}"
    while path:
        reply = served.ask("GET", path)
        seen.append(json.loads(reply.data)["manifests"])
        path = engine.link_next(reply.headers.get("Link", ""))
    assert [[each] for each in found["manifests"]] == seen
    index = json.dumps({"schemaVersion": 2, "mediaType": engine.INDEX_TYPES[0], "manifests": [],
                        "subject": {"mediaType": engine.MEDIA_MANIFEST, "digest": digest(b"y"),
                                    "size": 1}}).encode()
    assert served.ask("PUT", "/v2/app/manifests/index", index,
                      Content_Type=engine.INDEX_TYPES[0]).status == 201
    only = json.loads(served.ask("GET", f"/v2/app/referrers/{digest(b'y')}").data)["manifests"]
    assert only == [{"mediaType": engine.INDEX_TYPES[0], "digest": digest(index),
                     "size": len(index)}]
    assert json.loads(served.ask("GET", f"/v2/app/referrers/{digest(b'')}").data)[
        "manifests"] == []


@pytest.mark.parametrize("path", [
    "/v2/../x/tags/list", "/v2/a/../../b/tags/list", "/v2/A/tags/list", "/v2/_x/tags/list",
    "/v2//tags/list", "/v2/a%00b/tags/list", "/v2/a/%2e%2e/b/manifests/1",
    "/v2/app/blobs/sha256:..%2f..%2fetc", "/v2/app/manifests/..%2f..%2fx",
    "/v2/app/blobs/uploads/..%2f..%2flock", "/v2/app/referrers/x",
])
def test_paths_that_lead_nowhere(serve, path):
    reply = serve().ask("GET", path)
    assert reply.status in (400, 404)


def test_users_and_who_may_read(serve, tmp_path):
    users = engine.RegistryUsers(str(tmp_path / "users"))
    users.write({"u": engine.password_hash("p")})
    served = serve(users=users, public=("open/*",))
    reply = served.ask("GET", "/v2/")
    assert (reply.status, code(reply)) == (401, "UNAUTHORIZED")
    assert reply.headers["WWW-Authenticate"] == (
        f'Bearer realm="http://{served.host}/token",service="engine.pyz registry"')
    assert serve(users=users).ask("GET", "/v2/").headers["WWW-Authenticate"] == (
        'Basic realm="engine.pyz registry"')
    assert served.ask("GET", "/v2/", **basic("u", "p")).status == 200
    for user, password in (("u", "q"), ("v", "p"), ("u", ""), ("", "p")):
        assert served.ask("GET", "/v2/", **basic(user, password)).status == 401
    for header in ("Basic", "Basic *", "Bearer x", "Basic " + "a" * 9999):
        assert served.ask("GET", "/v2/", Authorization=header).status == 401
    post = "/blobs/uploads/?digest=" + digest(b"x")
    assert served.ask("POST", "/v2/open/app" + post, b"x", **basic("u", "p")).status == 201
    assert served.ask("POST", "/v2/shut/app" + post, b"x", **basic("u", "p")).status == 201
    assert served.ask("GET", f"/v2/open/app/blobs/{digest(b'x')}").data == b"x"
    assert served.ask("GET", f"/v2/shut/app/blobs/{digest(b'x')}").status == 401
    assert served.ask("POST", "/v2/open/app" + post, b"x").status == 401
    assert served.ask("GET", f"/v2/open/app/blobs/{digest(b'x')}", **basic("u", "q")).status == 401
    assert served.ask("GET", "/v2/_catalog").status == 401


def test_tokens(serve, tmp_path):
    users = engine.RegistryUsers(str(tmp_path / "users"))
    users.write({"u": engine.password_hash("p")})
    served = serve(users=users, public=("open/*",))

    def token(**headers):
        reply = served.ask("GET", "/token?service=x&scope=repository:a:pull&account=u", **headers)
        assert reply.status == 200 and json.loads(reply.data)["expires_in"] > 60
        return {"Authorization": "Bearer " + json.loads(reply.data)["token"]}
    mine, anybodys = token(**basic("u", "p")), token()
    assert served.ask("GET", "/token", **basic("u", "q")).status == 401
    assert served.ask("GET", "/v2/", **mine).status == 200
    post = "/blobs/uploads/?digest=" + digest(b"x")
    for name in ("open/app", "shut/app"):
        assert served.ask("POST", f"/v2/{name}{post}", b"x", **anybodys).status == 401
        assert served.ask("POST", f"/v2/{name}{post}", b"x", **mine).status == 201
    assert served.ask("GET", f"/v2/open/app/blobs/{digest(b'x')}", **anybodys).status == 200
    reply = served.ask("GET", f"/v2/shut/app/blobs/{digest(b'x')}", **anybodys)
    assert reply.status == 401
    assert reply.headers["WWW-Authenticate"].endswith('scope="repository:shut/app:pull,push"')
    assert served.ask("GET", "/v2/", Host='a"b').headers["WWW-Authenticate"].startswith("Basic")
    assert served.ask("GET", "/v2/", X_Forwarded_Proto="https").headers[
        "WWW-Authenticate"].startswith('Bearer realm="https://')
    users.write({"u": engine.password_hash("q")})
    assert served.ask("GET", "/v2/", **mine).status == 401
    assert serve(users=users).ask("GET", "/token", **basic("u", "q")).status == 404


def test_read_only_and_sizes(serve):
    served = serve(is_read_only=True)
    reply = served.ask("POST", "/v2/app/blobs/uploads/")
    assert (reply.status, code(reply)) == (405, "UNSUPPORTED")
    served = serve(upload_max=1000)
    reply = served.ask("POST", f"/v2/app/blobs/uploads/?digest={digest(BLOB)}", BLOB)
    assert reply.status == 413 and b"at most 1000 bytes" in reply.data
    served.blob(b"x" * 1000)


def test_many_at_once(serve):
    served = serve()
    served.blob(BLOB)
    wrong = []

    def pull():
        try:
            for _ in range(4):
                assert served.ask("GET", f"/v2/app/blobs/{digest(BLOB)}").data == BLOB
        except Exception as failure:
            wrong.append(failure)
    threads = [threading.Thread(target=pull) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_cache_of_another_registry(serve):
    with registry_running() as far:
        wanted = far.add("app", "1", [layer("a")])
        served = serve(proxy=far.url, is_read_only=True)
        reply = served.ask("GET", "/v2/app/manifests/1")
        assert digest(reply.data) == wanted
        blob = json.loads(reply.data)["layers"][0]["digest"]
        assert served.ask("GET", f"/v2/app/blobs/{blob}").data == far.blobs[blob]
        del far.log[:]
        assert served.ask("GET", f"/v2/app/blobs/{blob}").data == far.blobs[blob]
        assert far.log == []
        assert code(served.ask("GET", "/v2/app/manifests/9")) == "MANIFEST_UNKNOWN"
        far.blobs[digest(b"x")] = b"y"
        assert served.ask("GET", f"/v2/app/blobs/{digest(b'x')}").status == 400
        far.manifests.clear()
        far.faults.append(lambda handler: handler.reply(400) or True)
        assert digest(served.ask("GET", "/v2/app/manifests/1").data) == wanted
