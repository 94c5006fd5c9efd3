"""Pushing: bytes go out as they came, nothing is sent twice; logins and questions."""

from __future__ import annotations

import gzip
import json
import threading
import time

import engine
import pytest
from image_help import (
    config_of,
    digest,
    docker_files,
    events,
    gz,
    layer,
    load,
    nobody,
    oci_parts,
    store_fixture,  # noqa: F401
    tar_of,
)
from registry_help import basic, challenge, free_port, once, registry_running

A, B = layer("a", "dir/x"), layer("b")


@pytest.fixture(name="registry")
def registry_fixture(monkeypatch):
    monkeypatch.setattr(engine, "RETRY_PAUSE", 0)
    with registry_running() as registry:
        yield registry


def push(store, name, credentials=None):
    """The messages of a push as lines; what has numbers is left out."""
    if isinstance(name, str):
        name = engine.reference_parse(name)
    found = []
    for message in engine.Push(store, name, credentials=credentials or {}).messages():
        if message.get("aux"):
            found.append(message["aux"])
        elif not message.get("progressDetail"):
            lead = f"{message['id']}: " if message.get("id") else ""
            found.append(lead + message["status"])
    return found


def loaded(store, registry, *tags, layers=(A, B), path="app"):
    names = [f"{registry.host}/{path}:{tag}" for tag in tags]
    load(store, tar_of(docker_files(list(layers), tags=names)))
    return names


def pulled(store, name, **more):
    for _ in engine.Pull(store, engine.reference_parse(name), nobody, credentials={},
                         **more).messages():
        pass


def manifest(registry, name, tag):
    return json.loads(registry.manifests[name, tag][0])


def test_a_pulled_image_goes_out_as_it_came(store, registry):
    wanted = registry.add("app", "1", [A, B])
    pulled(store, f"{registry.host}/app:1")
    with registry_running() as other:
        name = f"{other.host}/copy:2"
        engine.image_tag(store, f"{registry.host}/app:1", name)
        said = push(store, name)
        assert other.manifests["copy", "2"] == registry.manifests["app", "1"]
        assert {digest(gz(A)), digest(gz(B))} <= set(other.blobs)
        assert said[0] == f"The push refers to repository [{other.host}/copy]"
        assert said[1] == f"{digest(B)[7:19]}: Preparing"
        assert f"{digest(A)[7:19]}: Pushed" in said
        size = len(other.manifests["copy", "2"][0])
        assert said[-2:] == [f"2: digest: {wanted} size: {size}",
                             {"Tag": "2", "Digest": wanted, "Size": size}]
        assert f"{other.host}/copy@{wanted}" in engine.image_tags(
            store, engine.image_get(store, name).id)[1]
    assert events(store)[-1][:2] == ("push", name)


def test_a_loaded_image_is_compressed_on_the_way_and_once(store, registry):
    (name,) = loaded(store, registry, "1")
    push(store, name)
    found = manifest(registry, "app", "1")
    assert [each["mediaType"] for each in found["layers"]] == [engine.DOCKER_GZIP] * 2
    assert found["mediaType"] == "application/vnd.docker.distribution.manifest.v2+json"
    assert found["config"]["mediaType"] == "application/vnd.docker.container.image.v1+json"
    assert registry.manifests["app", "1"] == (engine.json_pretty(found, "   ").encode(),
                                              found["mediaType"])
    for each, data in zip(found["layers"], (A, B)):
        blob = registry.blobs[each["digest"]]
        assert gzip.decompress(blob) == data and len(blob) == each["size"]
    del registry.log[:]
    said = push(store, name)
    assert f"{digest(A)[7:19]}: Layer already exists" in said
    assert registry.asked("PATCH", "") == registry.asked("POST", "") == []
    with registry_running() as other:
        engine.image_tag(store, name, f"{other.host}/app:1")
        push(store, f"{other.host}/app:1")
        assert other.manifests["app", "1"] == registry.manifests["app", "1"]


def test_an_image_goes_round(store, registry, tmp_path):
    (name,) = loaded(store, registry, "1")
    id = engine.image_get(store, name).id
    push(store, name)
    other = engine.Store(str(tmp_path / "data2"), str(tmp_path / "run2"))
    pulled(other, name)
    assert engine.image_get(other, name).id == id
    there = f"{registry.host}/copy:1"
    engine.image_tag(other, name, there)
    push(other, there)
    assert registry.manifests["copy", "1"] == registry.manifests["app", "1"]
    engine.tree_remove(other.data)


def test_what_came_as_we_would_write_it_goes_out_as_it_came(store, registry):
    """A manifest of OCI that is ours to the byte, but was pulled."""
    config, blob = config_of([A]), gz(A)
    registry.blobs.update({digest(data): data for data in (config, blob)})
    data = engine.manifest_make(config, [
        (0, "", "", "", digest(blob), len(blob), engine.MEDIA_LAYER + "+gzip")])
    registry.manifest("app", "1", data)
    pulled(store, f"{registry.host}/app:1")
    engine.image_tag(store, f"{registry.host}/app:1", f"{registry.host}/copy:1")
    push(store, f"{registry.host}/copy:1")
    assert registry.manifests["copy", "1"] == (data, engine.MEDIA_MANIFEST)


def test_plain_layers_of_others_stay_plain(store, registry):
    files, descriptor = oci_parts([A], packed=bytes, media="")
    for path, data in files.items():
        registry.blobs["sha256:" + path.rpartition("/")[2]] = data
    registry.manifest("app", "1", registry.blobs[descriptor["digest"]])
    pulled(store, f"{registry.host}/app:1")
    engine.image_tag(store, f"{registry.host}/app:1", f"{registry.host}/copy:1")
    push(store, f"{registry.host}/copy:1")
    assert registry.manifests["copy", "1"] == registry.manifests["app", "1"]


def test_a_blob_of_another_repository_is_mounted(store, registry):
    registry.add("app", "1", [A])
    pulled(store, f"{registry.host}/app:1")
    registry.hidden["copy"] = set(registry.blobs)
    name = f"{registry.host}/copy:1"
    engine.image_tag(store, f"{registry.host}/app:1", name)
    assert f"{digest(A)[7:19]}: Mounted from app" in push(store, name)
    registry.hidden["third"] = set(registry.blobs)
    registry.mounts = False
    name = f"{registry.host}/third:1"
    engine.image_tag(store, f"{registry.host}/app:1", name)
    assert f"{digest(A)[7:19]}: Pushed" in push(store, name)


def test_a_mount_that_is_refused_is_an_upload(store, registry):
    registry.add("app", "1", [A])
    pulled(store, f"{registry.host}/app:1")
    registry.hidden["copy"] = set(registry.blobs)
    registry.faults.append(lambda handler: "mount=" in handler.path and (
        handler.error(403, "DENIED") or True))
    name = f"{registry.host}/copy:1"
    engine.image_tag(store, f"{registry.host}/app:1", name)
    assert f"{digest(A)[7:19]}: Pushed" in push(store, name)


def test_all_tags(store, registry):
    loaded(store, registry, "1", "2")
    said = push(store, f"{registry.host}/app")
    assert [line["Tag"] for line in said if isinstance(line, dict)] == ["1", "2"]
    assert {("app", "1"), ("app", "2")} <= set(registry.manifests)


@pytest.mark.parametrize(("text", "words"), [
    ("{host}/none:1", "An image does not exist locally with the tag: {host}/none"),
    ("{host}/app:9", "tag does not exist: {host}/app:9"),
    ("{host}/app@sha256:" + "a" * 64, "cannot push a digest reference"),
])
def test_what_cannot_be_pushed(store, registry, text, words):
    loaded(store, registry, "1")
    with pytest.raises(engine.EngineError) as refused:
        push(store, text.format(host=registry.host))
    assert str(refused.value) == words.format(host=registry.host)
    assert registry.log == []


@pytest.mark.parametrize(("act", "words"), [
    (lambda h: h.error(401, "UNAUTHORIZED"), "unauthorized"),
    (lambda h: h.error(403, "DENIED", "read only"), "denied: read only"),
    (lambda h: h.reply(500), "received unexpected HTTP status: 500"),
    (lambda h: h.error(413, "SIZE_INVALID", "too large"), "size invalid: too large"),
])
def test_a_registry_that_takes_nothing(store, registry, act, words):
    (name,) = loaded(store, registry, "1")
    registry.faults.append(lambda h: h.command in ("POST", "PUT", "PATCH") and (act(h) or True))
    with pytest.raises(engine.EngineError, match=words):
        push(store, name)


def test_layers_are_told_of_once_though_https_is_tried_first(store, registry):
    (name,) = loaded(store, registry, "1")
    assert engine.registry_endpoints(registry.name("app"), engine.CONFIGURATION, push=True)[
        0].url == f"https://{registry.host}"
    assert push(store, name).count(f"{digest(A)[7:19]}: Preparing") == 1


def test_nobody_to_push_to(store, registry):
    name = f"localhost:{free_port()}/app:1"
    engine.image_tag(store, loaded(store, registry, "1")[0], name)
    said = []
    with pytest.raises(engine.EngineError) as refused:
        said += engine.Push(store, engine.reference_parse(name), credentials={}).messages()
    host = name.partition("/")[0]
    assert str(refused.value).startswith(f'Get "http://{host}/v2/": dial tcp ')
    assert said == [{"status": f"The push refers to repository [{host}/app]"}]


def test_503_in_the_middle_of_an_upload_is_asked_again(store, registry):
    registry.add("app", "1", [A])
    pulled(store, f"{registry.host}/app:1")
    with registry_running() as other:
        other.faults.append(once(lambda h: h.command == "PUT" and "uploads" in h.path and (
            h.reply(503, Retry_After="0") or True)))
        name = f"{other.host}/app:1"
        engine.image_tag(store, f"{registry.host}/app:1", name)
        push(store, name)
        assert other.manifests["app", "1"] == registry.manifests["app", "1"]


def login(tmp_path, registry, **credentials):
    return engine.registry_login(str(tmp_path), {"serveraddress": registry.host, **credentials})


def test_logins(tmp_path, registry):
    registry.faults.append(basic("u", "p"))
    assert login(tmp_path, registry, username="u", password="p") == {
        "IdentityToken": "", "Status": "Login Succeeded"}
    with pytest.raises(engine.Unauthorized) as refused:
        login(tmp_path, registry, username="u", password="q")
    assert str(refused.value) == (
        f"login attempt to {registry.url}/v2/ failed with status: 401 Unauthorized")


def test_a_login_for_a_token(tmp_path, registry):
    def tokens(handler):
        if not handler.path.startswith("/token"):
            return False
        handler.reply(200, b'{"token": "good", "refresh_token": "keep"}')
        return True
    registry.faults += [tokens, challenge(registry.url + "/token")]
    assert login(tmp_path, registry, username="u", password="p")["IdentityToken"] == "keep"
    asked = registry.asked("GET", "/token")[0]
    assert "offline_token=true" in asked and "scope" not in asked


def test_questions(tmp_path, registry):
    wanted = registry.add("app", "1", [A])
    name = registry.name("app")
    with pytest.raises(engine.RegistryRefusal, match="manifest unknown"):
        engine.registry_describe(str(tmp_path), name, {})
    found = engine.registry_describe(str(tmp_path), registry.name("app:1"), {})
    assert found["Descriptor"] == {"mediaType": engine.MEDIA_MANIFEST, "digest": wanted,
                                   "size": len(registry.blobs[wanted])}
    assert found["Platforms"] == [{"architecture": engine.platform_host()["architecture"],
                                   "os": "linux"}]
    index = {"schemaVersion": 2, "mediaType": engine.INDEX_TYPES[0], "manifests": [
        {"digest": wanted, "size": 3, "mediaType": engine.MEDIA_MANIFEST,
         "platform": {"os": "linux", "architecture": "arm", "variant": "v7"}}]}
    registry.manifest("app", "2", json.dumps(index).encode(), engine.INDEX_TYPES[0])
    found = engine.registry_describe(str(tmp_path), registry.name("app:2"), {})
    assert found["Platforms"] == [{"os": "linux", "architecture": "arm", "variant": "v7"}]


def test_who_began_first_comes_first():
    """One place, taken; three wait for it, the last of them with the lowest rank."""
    turns, order, threads = engine.Turns(1), [], []
    turns.take(0)

    def wait(rank):
        turns.take(rank)
        order.append(rank)
        turns.give()
    for rank in (3, 2, 1):
        threads.append(threading.Thread(target=wait, args=(rank,)))
        threads[-1].start()
    while len(turns._waiting) < 3:
        time.sleep(0.01)
    assert order == []
    turns.give()
    for thread in threads:
        thread.join(20)
    assert order == [1, 2, 3]
