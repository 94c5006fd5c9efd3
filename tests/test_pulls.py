"""Pulling: what comes out is what was pushed, nothing is asked for twice, lies leave nothing."""

from __future__ import annotations

import json
import os
import subprocess
import time

import engine
import pytest
from image_help import (
    config_of,
    content,
    digest,
    events,
    gz,
    layer,
    nobody,
    store_fixture,  # noqa: F401
    thread_worker,
)
from registry_help import basic, challenge, free_port, once, registry_running

A, B, C = layer("a", "dir/x"), layer("b"), layer("c", salt="!")
HOST = engine.platform_host()


@pytest.fixture(name="registry")
def registry_fixture(monkeypatch):
    monkeypatch.setattr(engine, "DOWNLOAD_ATTEMPTS_PAUSE", 0)
    monkeypatch.setattr(engine, "RETRY_PAUSE", 0)
    with registry_running() as registry:
        yield registry


def pull(store, name, **more):
    """The messages of a pull as lines."""
    if isinstance(name, str):
        name = engine.reference_parse(name)
    found = []
    more.setdefault("credentials", {})
    for message in engine.Pull(store, name, nobody, **more).messages():
        lead = f"{message['id']}: " if message.get("id") else ""
        if not message.get("progressDetail"):
            found.append(lead + message["status"])
    return found


def image(store, name):
    return engine.image_get(store, name)


def files(store, name):
    names = set()
    for directory in engine.layer_directories(store, image(store, name).layer):
        for root, _, plain in os.walk(directory):
            names |= {os.path.relpath(os.path.join(root, each), directory) for each in plain}
    return names


@pytest.mark.parametrize("packed", [bytes, gz, "zstd"])
def test_a_pull(store, registry, packed):
    media = {bytes: "", gz: "+gzip"}.get(packed, "+zstd")
    if packed == "zstd":
        def packed(data):
            return subprocess.run(["zstd", "-qc"], input=data, stdout=subprocess.PIPE,
                                  check=True).stdout
    wanted = registry.add("team/app", "1", [A, B], packed, media=media)
    name = registry.name("team/app:1")
    said = pull(store, name)
    short = [digest(packed(data))[7:19] for data in (A, B)]
    assert said[0] == "1: Pulling from team/app"
    for id in short:
        own = [line.partition(": ")[2] for line in said if line.startswith(id)]
        assert own == ["Pulling fs layer", "Verifying Checksum", "Download complete",
                       "Pull complete"]
    assert said[-2:] == [f"Digest: {wanted}",
                         f"Status: Downloaded newer image for {registry.host}/team/app:1"]
    assert files(store, name.familiar) == {"a", "dir/x", "b"}
    assert engine.image_tags(store, image(store, name.familiar).id) == (
        [name.familiar], [f"{registry.host}/team/app@{wanted}"])
    assert image(store, name.familiar).manifest == wanted
    action, id, notes = events(store)[-1]
    assert (action, id, notes["name"]) == ("pull", name.familiar, f"{registry.host}/team/app")


def test_workers_unpack_while_it_comes(store, registry):
    log = []
    registry.add("app", "1", [A, B, C])
    pull(store, registry.name("app:1"), run_worker=thread_worker(log))
    assert sorted(log) == sorted(map(digest, (A, B, C)))
    assert files(store, registry.name("app:1").familiar) == {"a", "dir/x", "b", "c"}


def test_a_worker_that_fails_leaves_nothing(store, registry):
    registry.add("app", "1", [A, B])
    with pytest.raises(engine.EngineError, match="told to fail"):
        pull(store, registry.name("app:1"), run_worker=thread_worker([], fail={digest(B)}))
    assert content(store) == (set(), set(), set())


def test_a_second_pull_is_one_request(store, registry):
    registry.add("app", "1", [A])
    pull(store, registry.name("app:1"))
    del registry.log[:]
    said = pull(store, registry.name("app:1"))
    assert len(registry.log) == 1
    assert said[-1] == f"Status: Image is up to date for {registry.host}/app:1"


def test_layers_that_are_here_are_not_fetched(store, registry):
    registry.add("app", "1", [A, B])
    registry.add("app", "2", [A, C])
    pull(store, registry.name("app:1"))
    del registry.log[:]
    said = pull(store, registry.name("app:2"))
    assert f"{digest(gz(A))[7:19]}: Already exists" in said
    assert registry.asked("GET", digest(gz(A))) == []


def test_a_moved_tag(store, registry):
    registry.add("app", "1", [A])
    pull(store, registry.name("app:1"))
    before = image(store, registry.name("app:1").familiar).id
    registry.add("app", "1", [B])
    assert pull(store, registry.name("app:1"))[-1].startswith("Status: Downloaded newer image")
    after = image(store, registry.name("app:1").familiar).id
    assert before != after and image(store, before).id == before


def test_by_digest(store, registry):
    wanted = registry.add("app", "1", [A])
    name = registry.name(f"app@{wanted}")
    said = pull(store, name)
    assert said[0] == f"{registry.host}/app@{wanted}: Pulling from app"
    assert engine.image_tags(store, image(store, name.familiar).id) == ([], [name.familiar])


def test_all_tags(store, registry):
    for tag, data in (("1", A), ("2", B), ("3", C)):
        registry.add("app", tag, [data])
    said = pull(store, registry.name("app"))
    assert [line for line in said if "Pulling from" in line] == [
        f"{tag}: Pulling from app" for tag in "123"]
    assert said[-1] == f"Status: Downloaded newer image for {registry.host}/app"


def index(registry, name, tag, *entries, **more):
    data = json.dumps({"schemaVersion": 2, "mediaType": engine.INDEX_TYPES[0],
                       "manifests": list(entries), **more}).encode()
    return registry.manifest(name, tag, data, engine.INDEX_TYPES[0])


def described(registry, name, layers, architecture, **platform):
    wanted = registry.add(name, "x", layers, config=config_of(layers, architecture=architecture)
                          if architecture == HOST["architecture"] else json.dumps({
                              **json.loads(config_of(layers)), "architecture": architecture}
                          ).encode())
    return {"digest": wanted, "mediaType": engine.MEDIA_MANIFEST,
            "size": len(registry.blobs[wanted]),
            "platform": {"os": "linux", "architecture": architecture, **platform}}


def test_an_index_gives_this_machines_image(store, registry):
    other = "s390x" if HOST["architecture"] != "s390x" else "amd64"
    entries = [described(registry, "app", [B], other),
               described(registry, "app", [A], HOST["architecture"])]
    wanted = index(registry, "app", "1", *entries)
    said = pull(store, registry.name("app:1"))
    assert f"Digest: {wanted}" in said
    assert files(store, registry.name("app:1").familiar) == {"a", "dir/x"}
    assert image(store, registry.name("app:1").familiar).manifest == entries[1]["digest"]
    platform = {"os": "linux", "architecture": other, "variant": ""}
    pull(store, registry.name("app:1"), platform=platform)
    assert image(store, registry.name("app:1").familiar).platform == platform
    pull(store, registry.name("app:1"))
    assert files(store, registry.name("app:1").familiar) == {"a", "dir/x"}


def test_the_platform_is_not_there(store, registry):
    index(registry, "app", "1", described(registry, "app", [A], "mips64le"))
    with pytest.raises(engine.NotFound, match="no matching manifest for linux/"):
        pull(store, registry.name("app:1"))


def test_a_single_image_of_another_platform_comes_with_a_warning(store, registry):
    """moby daemon/images/image_pull.go: an image that is not in an index is taken as it is."""
    registry.add("app", "1", [A])
    name = registry.name("app:1")
    platform = {"os": "linux", "architecture": "s390x", "variant": ""}
    said = pull(store, name, platform=platform)
    assert said[-2] == f"Status: Downloaded newer image for {registry.host}/app:1"
    assert said[-1] == (
        f"WARNING: image with reference {registry.host}/app:1 was found but its platform"
        f" (linux/{HOST['architecture']}) does not match the specified platform (linux/s390x)")
    assert not any("WARNING" in line for line in pull(store, name, platform=HOST))


def test_equal_layers_come_once(store, registry):
    registry.add("app", "1", [A, B, A])
    pull(store, registry.name("app:1"))
    assert len(registry.asked("GET", digest(gz(A)))) == 1
    assert len(engine.layer_stack(store, image(store, registry.name("app:1").familiar).layer)) == 3


def test_a_token_that_expires_in_the_middle(store, registry):
    count = []

    def tokens(handler):
        if not handler.path.startswith("/token"):
            return False
        count.append(1)
        handler.reply(200, json.dumps({"token": f"good{len(count)}"}).encode())
        return True

    def expired(handler):
        if handler.headers.get("Authorization") != "Bearer good1" or (
                "/blobs/" not in handler.path):
            return False
        handler.error(401, "UNAUTHORIZED",
                      WWW_Authenticate=f'Bearer realm="{registry.url}/token"')
        return True
    registry.faults += [tokens, expired, challenge(registry.url + "/token")]
    registry.add("app", "1", [A, B])
    pull(store, registry.name("app:1"))
    assert len(count) >= 2


def test_who_may_not_read_is_told_as_docker_tells_it(store, registry):
    def scope(handler):
        if handler.headers.get("Authorization") != "Bearer good":
            return False
        handler.error(401, "UNAUTHORIZED", "authentication required", WWW_Authenticate=(
            f'Bearer realm="{registry.url}/token",service="test",error="insufficient_scope"'))
        return True

    def token(handler):
        return handler.path.startswith("/token") and not handler.reply(200, b'{"token": "good"}')
    registry.faults += [token, scope, challenge(registry.url + "/token")]
    with pytest.raises(engine.NotFound) as refused:
        pull(store, registry.name("app:1"))
    assert str(refused.value) == (
        f"pull access denied for {registry.host}/app, repository does not exist or may require"
        " 'docker login': denied: requested access to the resource is denied")


def test_nobody_to_log_in_as(store, registry):
    registry.faults.append(basic("me", "secret"))
    wanted = registry.add("app", "1", [A])
    for ref, method in (("1", "Head"), (wanted, "Get")):
        with pytest.raises(engine.EngineError) as refused:
            pull(store, registry.name("app" + ("@" if ":" in ref else ":") + ref))
        assert str(refused.value) == (
            f'{method} "{registry.url}/v2/app/manifests/{ref}": no basic auth credentials')


def test_nobody_there_is_told_of_the_first_thing_that_docker_asks(store):
    host = f"localhost:{free_port()}"
    with pytest.raises(engine.EngineError) as refused:
        pull(store, host + "/app:1")
    assert str(refused.value).startswith(f'Get "http://{host}/v2/": dial tcp ')
    assert str(refused.value).endswith(": connect: connection refused")


def test_mirrors_come_first_and_may_be_wrong(store, registry, tmp_path, monkeypatch):
    with registry_running() as mirror:
        wanted = registry.add("app", "1", [A])
        file = tmp_path / "daemon.json"
        monkeypatch.setattr(engine, "DAEMON_FILE", str(file))
        file.write_text(json.dumps({"registry-mirror-table": {registry.host: [
            "http://127.0.0.1:1", mirror.url]}}))
        pull(store, registry.name("app:1"), credentials={"registrytoken": "secret"})
        assert mirror.log and all("Authorization" not in headers for _, _, headers in mirror.log)
        mirror.add("app", "1", [A])
        mirror.blobs[digest(gz(A))] = b"wrong" * 100
        engine.image_remove(store, registry.name("app:1").familiar, nobody, force=True)
        del registry.log[:]
        pull(store, registry.name("app:1"))
        assert image(store, registry.name("app:1").familiar).manifest == wanted
        mirror.add("app", "1", [A])
        engine.image_remove(store, registry.name("app:1").familiar, nobody, force=True)
        del registry.log[:]
        pull(store, registry.name("app:1"))
        assert registry.log == []


def test_who_goes_away_ends_it_and_what_came_is_kept(store, registry):
    def slow(handler):
        if "/blobs/" not in handler.path or "Range" in handler.headers:
            return False
        data = registry.blobs["sha256:" + handler.path.rpartition(":")[2]]
        if len(data) < 5000:
            return False
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[:3000])
        time.sleep(3)
        return True
    big = layer("big", salt=os.urandom(20_000).hex())
    registry.faults.append(slow)
    registry.add("app", "1", [big])
    messages = engine.Pull(store, registry.name("app:1"), nobody, credentials={}).messages()
    for message in messages:
        if (message.get("progressDetail") or {}).get("current"):
            break
    messages.close()
    part = store.path("downloads", digest(gz(big))[7:])
    assert os.path.getsize(part) == 3000
    pull(store, registry.name("app:1"))
    assert any(headers.get("Range") == "bytes=3000-" for _, _, headers in registry.log)


def test_whole_layers_of_a_pull_that_failed_are_not_fetched_again(store, registry):
    registry.add("app", "1", [A, B])
    fails = [lambda handler: digest(gz(B)) in handler.path and not handler.reply(404)]
    registry.faults += fails
    with pytest.raises(engine.EngineError):
        pull(store, registry.name("app:1"))
    assert content(store) == (set(), set(), set())
    del registry.faults[:], registry.log[:]
    pull(store, registry.name("app:1"))
    assert registry.asked("GET", "/blobs/") == [
        f"/v2/app/blobs/{each}" for each in (image(store, registry.name("app:1").familiar).id,
                                             digest(gz(B)))]
    assert os.listdir(store.path("downloads")) == []


def test_no_room_is_told_before_anything_is_fetched(store, registry, monkeypatch):
    registry.add("app", "1", [A])

    class Full:
        f_bavail, f_frsize = 0, 4096
    monkeypatch.setattr(engine.os, "statvfs", lambda path: Full)
    with pytest.raises(engine.EngineError, match="no space left on device: .* are needed, 0B are"):
        pull(store, registry.name("app:1"))
    assert registry.asked("GET", digest(gz(A))) == []


# -- what registries get wrong ------------------------------------------------

def raw(data, media=engine.MEDIA_MANIFEST):
    return lambda registry: registry.manifest(
        "app", "1", data if isinstance(data, bytes) else json.dumps(data).encode(), media)


def with_config(config, layers=(A,)):
    def add(registry):
        registry.add("app", "1", list(layers), config=config if isinstance(config, bytes)
                     else json.dumps(config).encode())
    return add


def fault(act, path="/v2/"):
    def add(registry):
        registry.add("app", "1", [A])
        registry.faults.append(lambda handler: path in handler.path and (act(handler) or True))
    return add


def lying(find, change):
    """One blob holds something else than its digest says."""
    def add(registry):
        registry.add("app", "1", [A])
        registry.blobs[find(registry)] = change(registry.blobs[find(registry)])
    return add


def changed(**fields):
    def add(registry):
        registry.add("app", "1", [A])
        document = json.loads(registry.manifests["app", "1"][0])
        registry.manifest("app", "1", json.dumps({**document, **fields}).encode())
    return add


def relayered(**fields):
    def add(registry):
        registry.add("app", "1", [A])
        document = json.loads(registry.manifests["app", "1"][0])
        document["layers"][0].update(fields)
        registry.manifest("app", "1", json.dumps(document).encode())
    return add


SOUND = json.loads(config_of([A]))
HEX = "sha256:" + "a" * 64
INDEX = engine.INDEX_TYPES[0]
ENTRY = {"digest": HEX, "size": 3, "mediaType": engine.MEDIA_MANIFEST,
         "platform": {"os": "linux", "architecture": HOST["architecture"]}}
DEEP = b'{"manifests": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
HOSTILE = [
    # manifests
    ("empty", raw(b""), "invalid manifest"),
    ("no JSON", raw(b"<html>"), "invalid manifest"),
    ("not UTF-8", raw(b"\xff\xfe"), "invalid manifest"),
    ("a list", raw([]), "not an object"),
    ("null", raw(b"null"), "not an object"),
    ("a number", raw(b"1"), "not an object"),
    ("nothing in it", raw({}), "invalid manifest"),
    ("cut in the middle", raw(b'{"schemaVersion": 2, "config"'), "invalid manifest"),
    ("nested for ever", raw(DEEP, INDEX), "invalid manifest"),
    ("schema 1", raw({"schemaVersion": 1, "fsLayers": []}), "schema 1 support has been removed"),
    ("schema 1 by type", raw({"x": 1}, engine.MEDIA_SCHEMA1[1]), "schema 1 support"),
    ("an artifact", changed(config={"mediaType": "application/vnd.oci.empty.v1+json",
                                    "digest": HEX, "size": 2}),
     "unsupported media type application/vnd.oci.empty.v1"),
    ("an AI model", changed(config={"mediaType": "application/vnd.docker.ai.model.config.v0.1+json",
                                    "digest": HEX, "size": 2}), "AI models are not yet supported"),
    ("Docker's own plugin", changed(
        mediaType=engine.MANIFEST_TYPES[1],
        config={"mediaType": "application/vnd.docker.plugin.v1+json", "digest": HEX, "size": 2}),
     r'Encountered remote "application/vnd.docker.plugin.v1\+json"\(plugin\) when fetching'),
    ("a chart", changed(config={"mediaType": "application/vnd.cncf.helm.config.v1+json",
                                "digest": HEX, "size": 2}),
     "unsupported media type application/vnd.cncf.helm"),
    ("config is a text", changed(config="x"), "invalid manifest"),
    ("config is null", changed(config=None), "invalid manifest"),
    ("config without a digest", changed(config={"mediaType": engine.MEDIA_CONFIG, "size": 2}),
     "invalid manifest"),
    ("config of a petabyte", changed(config={"mediaType": engine.MEDIA_CONFIG, "digest": HEX,
                                             "size": 1 << 50}), "too large"),
    ("config that is not there", changed(config={"mediaType": engine.MEDIA_CONFIG, "digest": HEX,
                                                 "size": 2}), "blob unknown"),
    ("layers are null", changed(layers=None), "invalid manifest"),
    ("layers are texts", changed(layers=["x"]), "invalid manifest"),
    ("no layers for a config with one", changed(layers=[]), engine.ROOT_MISMATCH),
    ("a layer twice", changed(layers=[{"mediaType": engine.MEDIA_LAYER, "digest": HEX, "size": 1}]
                              * 2), engine.ROOT_MISMATCH),
    ("a layer of another kind", relayered(mediaType="application/vnd.x"),
     "unsupported media type application/vnd.x"),
    ("an encrypted layer's type", relayered(mediaType=engine.MEDIA_LAYER + "+encrypted"), None),
    ("a layer with a path for a digest", relayered(digest="sha256:../../etc/passwd"),
     "invalid manifest|invalid checksum"),
    ("a layer with md5", relayered(digest="md5:" + "a" * 32), "unsupported digest"),
    ("a layer with sha512", relayered(digest="sha512:" + "a" * 128), "unsupported digest"),
    ("a layer of minus one byte", relayered(size=-1), "invalid manifest"),
    ("a layer of a text's size", relayered(size="1"), "invalid manifest"),
    ("a layer of an exabyte", relayered(size=1 << 60), "no space left on device"),
    ("a layer that is larger", relayered(size=10), "is longer than"),
    ("a layer that is smaller", relayered(size=100_000), "unexpected EOF|verification failed"),
    ("a layer that is not there", relayered(digest=HEX), "blob unknown"),
    # indexes
    ("an index of nothing", raw({"manifests": []}, INDEX), "no matching manifest"),
    ("an index that is null", raw({"manifests": None}, INDEX), "no list of manifests"),
    ("an index of texts", raw({"manifests": ["x"]}, INDEX), "wrong type"),
    ("an index without digests", raw({"manifests": [{"size": 1}]}, INDEX), "wrong type"),
    ("an index with a path", raw({"manifests": [{**ENTRY, "digest": "sha256:../x"}]}, INDEX),
     "invalid checksum"),
    ("an index with a platform of text", raw({"manifests": [{**ENTRY, "platform": "x"}]}, INDEX),
     "wrong type"),
    ("an index of what is not there", raw({"manifests": [ENTRY]}, INDEX), "manifest unknown"),
    ("an index of itself", lambda registry: registry.manifests.update(
        {("app", tag): (json.dumps({"manifests": [{**ENTRY, "mediaType": INDEX}]}).encode(), INDEX)
         for tag in ("1", HEX)}),
     "verification failed"),
    ("an index with a list for a type", raw({"manifests": [{**ENTRY, "mediaType": []}]}, INDEX),
     "manifest unknown|wrong type"),
    ("an index with a text for a size", raw({"manifests": [{**ENTRY, "size": "x"}]}, INDEX),
     "manifest unknown|wrong type"),
    # configs
    ("a config that is none", with_config(b"x"), "invalid image config"),
    ("a config that is a list", with_config(b"[]"), "invalid image config"),
    ("a config without layers", with_config({"architecture": "amd64"}), "no RootFS"),
    ("a config with other layers", with_config(config_of([B])), "invalid diffID"),
    ("a config with more layers", with_config(config_of([A, B])), engine.ROOT_MISMATCH),
    ("a config for Windows", with_config({**SOUND, "os": "windows"}), 'operating system "windows"'),
    ("a config with a list for Env", with_config({**SOUND, "config": {"Env": "x"}}), "wrong type"),
    ("a config with bad diff ids", with_config({**SOUND, "rootfs": {"diff_ids": ["x"]}}),
     "invalid checksum"),
    ("a config whose layers are numbers", with_config({**SOUND, "rootfs": {"diff_ids": [1]}}),
     "wrong type"),
    ("a config with a bad date", with_config({**SOUND, "created": "now"}), "not a time"),
    # bytes that are others
    ("another config", lying(lambda r: json.loads(r.manifests["app", "1"][0])["config"]["digest"],
                             lambda data: data + b" "), "verification failed"),
    ("another layer", lying(lambda r: digest(gz(A)), lambda data: data[:-1] + b"x"),
     "verification failed|invalid|CRC|corrupt"),
    ("a layer cut short", lying(lambda r: digest(gz(A)), lambda data: data[:-20]),
     "unexpected EOF|verification failed"),
    ("an empty layer", lying(lambda r: digest(gz(A)), lambda data: b""), "unexpected EOF|verif"),
    # what is no tar, or a hostile one: with right digests
    ("a layer that is no tar", with_config({**SOUND, "rootfs": {"diff_ids": [digest(b"x" * 600)]}},
                                           [b"x" * 600]), "tar"),
    ("a layer that is cut in its tar", with_config(
        {**SOUND, "rootfs": {"diff_ids": [digest(A[:700])]}}, [A[:700]]), "tar|EOF"),
    # replies
    ("401 for ever", fault(lambda h: h.error(401, "UNAUTHORIZED")), "unauthorized"),
    ("403", fault(lambda h: h.error(403, "DENIED", "no")), "pull access denied for .*: denied: no"),
    ("404 of the name", fault(lambda h: h.error(404, "NAME_UNKNOWN", "x")),
     "repository .* not found"),
    ("404 as HTML", fault(lambda h: h.reply(404, b"<html>\n</html>")), "unknown: <html> </html>"),
    ("500", fault(lambda h: h.reply(500)), "unexpected HTTP status: 500"),
    ("418", fault(lambda h: h.reply(418, b"teapot")), "unknown: teapot"),
    ("204 for a manifest", fault(lambda h: h.reply(204), "manifests"), "204"),
    ("500 for blobs", fault(lambda h: h.reply(500), "blobs"), "unexpected HTTP status: 500"),
    ("200 for ever and nothing", fault(lambda h: h.reply(200), "blobs"),
     "verification failed|unexpected EOF"),
    ("a redirect in a circle", fault(lambda h: h.reply(307, Location=h.path)), "10 redirects"),
    ("a redirect to a file", fault(lambda h: h.reply(307, Location="file:///etc/passwd"), "blobs"),
     "unsupported protocol scheme"),
    ("a challenge without a realm", fault(lambda h: h.error(
        401, "UNAUTHORIZED", WWW_Authenticate="Bearer")), "unsupported protocol scheme"),
    ("a challenge to a file", fault(lambda h: h.error(
        401, "UNAUTHORIZED", WWW_Authenticate='Bearer realm="file:///etc/passwd"')),
     "unsupported protocol scheme"),
    ("a challenge of another kind", fault(lambda h: h.error(
        401, "UNAUTHORIZED", WWW_Authenticate="Negotiate")), "unauthorized"),
]


@pytest.mark.parametrize(("add", "text"), [case[1:] for case in HOSTILE],
                         ids=[case[0] for case in HOSTILE])
def test_lies_get_one_clear_line_and_leave_nothing(store, registry, add, text, monkeypatch):
    monkeypatch.setattr(engine, "ATTEMPTS", 2)
    add(registry)
    if text is None:
        pull(store, registry.name("app:1"))     # an odd name for what is a sound layer
        return
    with pytest.raises(engine.EngineError, match=text) as refused:
        pull(store, registry.name("app:1"))
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 600
    engine.content_collect(store, nobody)
    assert content(store) == (set(), set(), set())
    assert store.rows("SELECT name FROM tags") == []


def test_there_are_sixty_lies():
    assert len(HOSTILE) >= 60


def test_a_cut_in_the_middle_is_gone_on_with(store, registry):
    def broken(handler):
        if "/blobs/" not in handler.path:
            return False
        data = registry.blobs["sha256:" + handler.path.rpartition(":")[2]]
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[:50])
        handler.close_connection = True
        return True
    registry.add("app", "1", [A])
    layer_path = digest(gz(A))
    registry.faults.append(once(lambda handler: layer_path in handler.path and broken(handler)))
    said = pull(store, registry.name("app:1"))
    assert any("Retrying in" in line for line in said)
    assert files(store, registry.name("app:1").familiar) == {"a", "dir/x"}
