"""api_containers: endpoints, their parameters and what older versions see."""

from __future__ import annotations

import engine
import pytest
from container_help import bare_box, box  # noqa: F401


def send(box, method, path, query=None, body=None, headers=None):  # noqa: F811
    request = engine.Request(
        method,
        path,
        query={name: [str(value)] for name, value in (query or {}).items()},
        headers=headers,
        body=engine.Body(body),
    )
    return engine.http_dispatch(box.engine, request)


def test_create_answers_201(bare_box):  # noqa: F811
    reply = send(bare_box, "POST", "/v1.51/containers/create", {"name": "web"}, bare_box.body("sh"))
    assert reply.status == 201
    assert list(reply.value) == ["Id", "Warnings"] and reply.value["Warnings"] == []
    reply = send(bare_box, "POST", "/containers/create", {"name": "web"}, bare_box.body("sh"))
    assert reply.status == 409


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/containers/x/json", 404),
        ("DELETE", "/containers/x", 404),
        ("POST", "/containers/x/start", 404),
        ("POST", "/containers/x/wait", 404),
        ("GET", "/containers/x/logs?", 404),
        ("GET", "/containers/web/logs", 400),
        ("POST", "/containers/web/stop", 304),
        ("POST", "/containers/web/kill", 409),
        ("POST", "/containers/web/pause", 409),
        ("POST", "/containers/web/unpause", 500),
        ("POST", "/containers/web/rename", 400),
        ("POST", "/containers/web/resize", 400),
        ("GET", "/containers/web/top", 409),
        ("GET", "/containers/web/changes", 200),
        ("GET", "/containers/web/json", 200),
        ("GET", "/containers/x/export", 404),
        ("GET", "/exec/x/json", 404),
        ("POST", "/containers/web/exec", 400),
        ("DELETE", "/containers/web", 204),
    ],
)
def test_statuses(bare_box, method, path, status):  # noqa: F811
    bare_box.create("sh", name="web")
    query = {"stdout": 1} if path.endswith("?") else None
    reply = send(bare_box, method, path.rstrip("?"), query)
    assert reply.status == status
    if status >= 400:
        assert list(reply.value) == ["message"] and reply.value["message"]


def test_what_dockerd_refuses_in_other_words(bare_box):  # noqa: F811
    bare_box.create("sh", name="web")
    for name in ("since", "until"):
        query = {"stdout": 1, name: "nonsense"}
        reply = send(bare_box, "GET", "/containers/web/logs", query)
        assert (reply.status, reply.value["message"]) == (
            500, 'strconv.ParseInt: parsing "nonsense": invalid syntax')
    query = {"stream": 1, "one-shot": 1}
    reply = send(bare_box, "GET", "/v1.41/containers/web/stats", query)
    assert (reply.status, reply.value["message"]) == (
        400, "cannot have stream=true and one-shot=true")
    assert send(bare_box, "GET", "/containers/x/stats", query).status == 404


@pytest.mark.parametrize("field", ["PidMode", "IpcMode"])
def test_whose_namespaces_are_joined_is_asked_at_start(bare_box, field):  # noqa: F811
    """Else a client takes the 404 of a create for a missing image, and pulls."""
    body = bare_box.body("sh", host={field: "container:late"})
    reply = send(bare_box, "POST", "/containers/create", {"name": "web"}, body)
    assert reply.status == 201
    shown = send(bare_box, "GET", "/containers/web/json").value["HostConfig"][field]
    assert shown == "container:late"
    reply = send(bare_box, "POST", "/containers/web/start")
    assert reply.status == 500 and reply.value["message"] == (
        f"failed to join {field[:3].upper()} namespace: No such container: late")


def test_list_parameters(bare_box):  # noqa: F811
    bare_box.create("sh", name="one")
    bare_box.create("sh", name="two")
    assert send(bare_box, "GET", "/containers/json").value == []
    names = [c["Names"] for c in send(bare_box, "GET", "/containers/json", {"all": 1}).value]
    assert names == [["/two"], ["/one"]]
    assert len(send(bare_box, "GET", "/containers/json", {"limit": 1}).value) == 1
    shown = send(bare_box, "GET", "/containers/json", {"all": "true", "size": 1}).value[0]
    assert (shown.get("SizeRw"), shown["SizeRootFs"]) == (None, 5000)  # a zero is left out
    for filters in ('{"name":["one"]}', '{"name":{"one":true}}'):
        query = {"all": 1, "filters": filters}
        assert len(send(bare_box, "GET", "/containers/json", query).value) == 1
    query = {"all": 1, "filters": '{"ancestor":["busybox"]}'}
    assert len(send(bare_box, "GET", "/containers/json", query).value) == 2
    query = {"all": 1, "filters": '{"ancestor":["other"]}'}
    assert send(bare_box, "GET", "/containers/json", query).value == []


def test_no_changes_are_null(bare_box):  # noqa: F811
    bare_box.create("sh", name="web")
    assert send(bare_box, "GET", "/containers/web/changes").data() == b"null\n"
    assert bare_box.client.get("/containers/web/changes") is None


def test_prune(bare_box):  # noqa: F811
    id = bare_box.create("sh")
    assert send(bare_box, "POST", "/containers/prune").value == {
        "ContainersDeleted": [id],
        "SpaceReclaimed": 0,
    }
    assert send(bare_box, "POST", "/containers/prune").value["ContainersDeleted"] is None
    reply = send(bare_box, "POST", "/containers/prune", {"filters": '{"nope":["x"]}'})
    assert reply.status == 400


def test_old_versions(bare_box):  # noqa: F811
    body = bare_box.body("sh", host={"AutoRemove": True})
    send(bare_box, "POST", "/v1.24/containers/create", {"name": "old"}, body)
    assert bare_box.inspect("old")["HostConfig"]["AutoRemove"] is False


@pytest.mark.root
def test_stream_types(box):  # noqa: F811
    plain, tty = box.run("echo", "x")[3], box.run("echo", "x", Tty=True)[3]
    for version, id, kind in (
        ("1.51", plain, "multiplexed"),
        ("1.51", tty, "raw"),
        ("1.41", plain, "raw"),
    ):
        reply = send(box, "GET", f"/v{version}/containers/{id}/logs", {"stdout": 1})
        assert reply.content_type == f"application/vnd.docker.{kind}-stream"
        assert b"".join(reply.chunks)
