"""Endpoints about registries, with the statuses and words of Docker."""

from __future__ import annotations

import base64
import json

import engine
import pytest
from image_help import digest, gz, layer, store_fixture  # noqa: F401
from registry_help import basic, registry_running

A = layer("a", "dir/x")


@pytest.fixture(name="registry")
def registry_fixture(monkeypatch):
    monkeypatch.setattr(engine, "RETRY_PAUSE", 0)
    with registry_running() as registry:
        registry.add("app", "1", [A])
        yield registry


def ask(store, method, path, query=None, *, body=None, headers=None, version="1.51"):
    request = engine.Request(method, path, query={key: [value] for key, value in (
        query or {}).items()}, body=engine.Body(body), headers=headers or {})
    request.version = version
    reply = engine.http_dispatch(engine.Engine(store), request)
    if reply.status >= 400:
        raise engine.error_for(reply.status, reply.value["message"])
    if isinstance(reply, engine.Stream):
        return [json.loads(line) for line in b"".join(reply.chunks).splitlines()]
    return reply


def test_a_pull_by_name_and_tag(store, registry):
    said = ask(store, "POST", "/images/create", {
        "fromImage": registry.host + "/app", "tag": "1"})
    assert said[0] == {"status": "Pulling from app", "id": "1"}
    assert {"status": "Pull complete", "progressDetail": {}, "id": digest(gz(A))[7:19]} in said
    assert said[-1]["status"].startswith("Status: Downloaded newer image for")


def test_a_failure_before_the_first_word_has_a_status(store, registry):
    with pytest.raises(engine.NotFound) as refused:
        ask(store, "POST", "/images/create", {"fromImage": registry.host + "/app", "tag": "9"})
    assert str(refused.value) == (f"manifest for {registry.host}/app:9 not found: manifest unknown:"
                                  " manifest unknown")
    for query, kind in (({"fromImage": "scratch"}, engine.Forbidden),
                        ({"fromImage": "a", "tag": "b c"}, engine.InvalidParameter),
                        ({"fromImage": "A"}, engine.InvalidParameter),
                        ({"fromImage": "a", "platform": "x/y/z/w"}, engine.InvalidParameter)):
        with pytest.raises(kind):
            ask(store, "POST", "/images/create", query)


def test_a_failure_later_is_a_line(store, registry):
    registry.blobs[digest(gz(A))] = b"x" * len(gz(A))
    said = ask(store, "POST", "/images/create", {
        "fromImage": registry.host + "/app", "tag": "1"})
    assert "verification failed" in said[-1]["errorDetail"]["message"]
    assert said[-1]["error"] == said[-1]["errorDetail"]["message"]


def test_credentials_come_in_a_header(store, registry):
    registry.faults.append(basic("u", "p"))
    secret = {"x-registry-auth": engine.auth_header_make({"username": "u", "password": "p"})}
    query = {"fromImage": registry.host + "/app", "tag": "1"}
    assert ask(store, "POST", "/images/create", query, headers=secret)
    said = ask(store, "POST", f"/images/{registry.host}/app/push", {"tag": "1"}, headers=secret)
    assert said[-1]["aux"]["Tag"] == "1"
    with pytest.raises(engine.EngineError, match="no basic auth credentials"):
        ask(store, "POST", "/images/create", query, headers={
            "x-registry-auth": base64.b64encode(b"{}").decode()})


def test_a_tag_may_be_a_digest(store, registry):
    wanted = digest(registry.manifests["app", "1"][0])
    ask(store, "POST", "/images/create", {"fromImage": registry.host + "/app", "tag": wanted})
    assert engine.image_get(store, f"{registry.host}/app@{wanted}")


def test_logins_and_questions(store, registry):
    registry.faults.append(basic("u", "p"))
    body = {"username": "u", "password": "p", "serveraddress": registry.host}
    assert ask(store, "POST", "/auth", body=body).value["Status"] == "Login Succeeded"
    with pytest.raises(engine.Unauthorized):
        ask(store, "POST", "/auth", body={**body, "password": "q"})
    secret = {"x-registry-auth": engine.auth_header_make(body)}
    found = ask(store, "GET", f"/distribution/{registry.host}/app:1/json", headers=secret).value
    assert found["Descriptor"]["digest"] == digest(registry.manifests["app", "1"][0])
    with pytest.raises(engine.EngineError, match="full image ID"):
        ask(store, "GET", "/distribution/" + "a" * 64 + "/json")


def test_a_push_for_another_platform_is_refused(store, registry):
    ask(store, "POST", "/images/create", {"fromImage": registry.host + "/app", "tag": "1"})
    with pytest.raises(engine.NotFound, match="does not match the specified platform"):
        ask(store, "POST", f"/images/{registry.host}/app/push", {
            "tag": "1", "platform": '{"os": "linux", "architecture": "s390x"}'})
