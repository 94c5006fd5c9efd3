"""Archive, export, commit and system/df as endpoints: statuses, texts, headers, shapes."""

from __future__ import annotations

import base64
import io
import json
import tarfile

import pytest


class Api:
    """The router in this process, on the roots of a runner."""

    def __init__(self, engine, roots):
        self.module = engine
        self.engine = engine.Engine(engine.Store(roots.data, roots.run))

    def send(self, method, target, body=None, version="1.51", **query):
        """(status, headers, bytes or value)"""
        module = self.module
        request = module.Request(
            method,
            f"/v{version}{target}",
            query={key: value if isinstance(value, list) else [value]
                   for key, value in query.items()},
            body=module.Body(reader=io.BytesIO(body)) if isinstance(body, bytes)
            else module.Body(body),
        )
        reply = module.http_dispatch(self.engine, request)
        if isinstance(reply, module.Stream):
            return reply.status, reply.headers, b"".join(reply.chunks)
        return reply.status, reply.headers, reply.value if reply.value is not None else reply.body


@pytest.fixture
def api(engine, busybox, roots):
    busybox("create", "--name", "box", "--network", "none", "busybox", "true").ok()
    return Api(engine, roots)


def stat_of(headers):
    return json.loads(base64.b64decode(headers["X-Docker-Container-Path-Stat"]))


def tar_bytes(*members):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


@pytest.mark.root
class TestArchive:
    def test_head_tells_the_state(self, api):
        status, headers, body = api.send("HEAD", "/containers/box/archive", path="/etc/")
        assert (status, body) == (200, b"")
        stat = stat_of(headers)
        assert stat["name"] == "etc" and stat["mode"] == 1 << 31 | 0o755
        assert stat["linkTarget"] == "" and stat["mtime"].endswith("Z") and stat["size"] > 0
        stat = stat_of(api.send("HEAD", "/containers/box/archive", path="/tmp")[1])
        assert stat["mode"] == 1 << 31 | 1 << 20 | 0o777

    def test_get_is_a_tar_with_the_last_name(self, api):
        for path, names in (
            ("/etc/passwd", ["passwd"]),
            ("/home", ["home"]),
            ("/home/", ["home"]),
            ("/home/.", ["."]),
            ("/usr/../usr", ["usr", "usr/bin"]),
        ):
            status, headers, body = api.send("GET", "/containers/box/archive", path=path)
            assert status == 200 and stat_of(headers)
            with tarfile.open(fileobj=io.BytesIO(body)) as tar:
                assert tar.getnames() == names, path

    @pytest.mark.parametrize(
        ("method", "path", "status", "text"),
        [
            ("GET", "", 400, "bad parameter: pathcannot be empty"),
            ("GET", "/nope", 404, "Could not find the file /nope in container box"),
            ("PUT", "/nope", 404, "Could not find the file /nope in container box"),
            ("GET", "/etc/passwd/", 500, "lstat /etc/passwd/: not a directory"),
            ("PUT", "/etc/passwd", 400, "extraction point is not a directory"),
            ("PUT", "/etc/passwd/x", 500, "lstat /etc/passwd/x: not a directory"),
        ],
    )
    def test_refusals(self, api, method, path, status, text):
        got = api.send(method, "/containers/box/archive", body=tar_bytes(), path=path)
        assert got[0] == status and got[2] == {"message": text}

    def test_no_such_container(self, api):
        for method in ("HEAD", "GET", "PUT"):
            status, _, body = api.send(method, "/containers/no/archive", body=b"", path="/")
            assert status == 404 and body == {"message": "No such container: no"}

    def test_put_and_read_only_root(self, api, busybox):
        data = tar_bytes(("new", b"text"))
        assert api.send("PUT", "/containers/box/archive", body=data, path="/tmp")[0] == 200
        got = api.send("GET", "/containers/box/archive", path="/tmp/new")[2]
        with tarfile.open(fileobj=io.BytesIO(got)) as tar:
            assert tar.extractfile("new").read() == b"text"
        busybox("create", "--name", "ro", "--read-only", "--network", "none", "busybox").ok()
        status, _, body = api.send("PUT", "/containers/ro/archive", body=data, path="/tmp")
        assert status == 403 and body == {"message": "container rootfs is marked read-only"}

    def test_put_damaged(self, api):
        status, _, body = api.send("PUT", "/containers/box/archive", body=b"x" * 600, path="/tmp")
        assert status == 400 and "checksum" in body["message"]


@pytest.mark.root
class TestUsage:
    def test_shape_by_type_and_version(self, api):
        whole = api.send("GET", "/system/df")[2]
        assert list(whole) == ["LayersSize", "Images", "Containers", "Volumes", "BuildCache"]
        assert whole["LayersSize"] == whole["Images"][0]["Size"] > 0
        assert whole["Volumes"] == whole["BuildCache"] == []
        assert whole["Images"][0]["Containers"] == 1 and whole["Images"][0]["SharedSize"] == 0
        # the layers' blobs are in it, too
        assert 0 < whole["Containers"][0]["SizeRootFs"] < whole["LayersSize"]
        some = api.send("GET", "/system/df", type=["container"])[2]
        assert some["Images"] is None and some["LayersSize"] == 0 and len(some["Containers"]) == 1
        old = api.send("GET", "/system/df", version="1.40", type=["container"])[2]
        assert old["Images"][0]["VirtualSize"] == old["Images"][0]["Size"]

    def test_unknown_type(self, api):
        status, _, body = api.send("GET", "/system/df", type=["x"])
        assert status == 400 and body == {"message": "unknown object type: x"}


@pytest.mark.root
class TestCommit:
    def test_parameters(self, api, busybox):
        status, _, body = api.send(
            "POST", "/commit", container="box", repo="my/box", tag="2", author="me",
            comment="why", changes=["ENV A=1", "EXPOSE 80"], pause="0")
        assert status == 201
        shown = busybox("image", "inspect", "my/box:2").json()[0]
        assert shown["Id"] == body["Id"] and shown["Author"] == "me"
        assert shown["Comment"] == "why" and "A=1" in shown["Config"]["Env"]
        assert shown["Config"]["ExposedPorts"] == {"80/tcp": {}}
        assert shown["Parent"] == busybox("image", "inspect", "busybox").json()[0]["Id"]

    def test_body_config_comes_first(self, api, busybox):
        status, _, _ = api.send(
            "POST", "/commit", {"Cmd": ["id"], "Env": ["B=2"]}, container="box", repo="c")
        assert status == 201
        shown = busybox("image", "inspect", "c:latest").json()[0]["Config"]
        assert shown["Cmd"] == ["id"] and shown["Env"][0] == "B=2" and len(shown["Env"]) == 2

    @pytest.mark.parametrize(
        ("query", "status", "text"),
        [
            ({"container": "no"}, 404, "No such container: no"),
            ({"repo": "A"}, 400, "invalid reference format: repository name (library/A) must be "
                                 "lowercase"),
            ({"repo": "a@sha256:" + "0" * 64}, 400, "cannot import digest reference"),
            ({"changes": ["RUN x"]}, 400, "RUN is not a valid change command"),
        ],
    )
    def test_refusals(self, api, query, status, text):
        got = api.send("POST", "/commit", **{"container": "box", **query})
        assert got[0] == status and got[2]["message"] == text

    def test_nothing_changed_is_no_layer(self, api, busybox):
        made = api.send("POST", "/commit", container="box")[2]["Id"]
        old, new = busybox("image", "inspect", "busybox", made).json()
        assert new["RootFS"] == old["RootFS"] and new["Size"] == old["Size"]
        assert [step["Size"] for step in api.send("GET", f"/images/{made}/history")[2]] == [
            0, old["Size"]]

    def test_older_versions_tell_of_the_container(self, api):
        made = api.send("POST", "/commit", container="box")[2]["Id"]
        box = api.send("GET", "/containers/box/json")[2]
        old = api.send("GET", f"/images/{made}/json", version="1.44")[2]
        assert old["Container"] == box["Id"] and old["ContainerConfig"] == box["Config"]
        assert old["Config"]["Image"] == "busybox" and old["Config"]["Hostname"] == box["Id"][:12]
        new = api.send("GET", f"/images/{made}/json")[2]
        assert "Container" not in new and "Hostname" not in new["Config"]
