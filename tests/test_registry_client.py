"""A repository: manifests and blobs are what their digests say, uploads, tags page by page."""

from __future__ import annotations

import json

import engine
import pytest
from image_help import digest, layer
from registry_help import registry_running

A = layer("a", "dir/x")


@pytest.fixture(name="registry")
def registry_fixture():
    with registry_running() as registry:
        yield registry


@pytest.fixture(name="there")
def there_fixture(registry):
    client = engine.HttpClient(engine.CONFIGURATION)
    endpoint = engine.RegistryEndpoint(registry.url, is_insecure=True)
    yield engine.Repository(client, endpoint, registry.name("team/app"), {}, "pull,push")
    client.close()


def test_a_manifest_by_tag_and_by_digest(registry, there):
    wanted = registry.add("team/app", "1", [A])
    data, media, found = there.manifest("1")
    assert (digest(data), media, found) == (wanted, engine.MEDIA_MANIFEST, wanted)
    assert there.manifest(wanted) == (data, media, wanted)
    assert registry.log[0][2]["Accept"].count("application/vnd.") == 4


def test_a_manifest_that_has_another_digest_or_size_is_refused(registry, there):
    data = b'{"schemaVersion": 2}'
    registry.manifests["team/app", digest(b"x")] = data, engine.MEDIA_MANIFEST
    with pytest.raises(engine.EngineError, match="manifest verification failed for digest sha256:"):
        there.manifest(digest(b"x"))
    registry.manifest("team/app", "1", data)
    with pytest.raises(engine.EngineError, match="expected 3 bytes, got 20"):
        there.manifest(digest(data), 3)


def test_a_manifest_without_an_end_is_refused(registry, there):
    registry.manifest("team/app", "1", b"x" * (engine.DOCUMENT_MAX + 1))
    with pytest.raises(engine.HttpFailed, match="reply of more than"):
        there.manifest("1")


def test_tags_come_page_by_page(registry, there):
    for tag in ("a", "b", "c", "d", "e"):
        registry.add("team/app", tag, [A])
    assert there.tags() == ["a", "b", "c", "d", "e"]
    assert len(registry.asked("GET", "tags")) == 3


@pytest.mark.parametrize("page", ["[]", "x", '{"tags": 5}', '{"tags": [5]}', '{"tags": ["a b"]}'])
def test_lists_of_tags_that_are_none(registry, there, page):
    registry.faults.append(lambda handler: handler.reply(200, page.encode()) or True)
    with pytest.raises(engine.EngineError, match="invalid list of tags"):
        there.tags()


def test_pages_without_end_end(registry, there, monkeypatch):
    monkeypatch.setattr(engine, "TAGS_PAGES_MAX", 5)
    registry.faults.append(lambda handler: handler.reply(
        200, b'{"tags": ["a"]}', Link="<?x>; rel=next") or True)
    assert there.tags() == ["a"] * 5


@pytest.mark.parametrize(("text", "found"), [
    ("", ""), ("</x>; rel=next", "/x"), ('</x>; rel="next"', "/x"), ('</x>; rel="prev"', ""),
    ('</a>; rel="prev", </b?c=d>; rel="next"', "/b?c=d"), ("/x; rel=next", ""),
    ("<>; rel=next", ""),
])
def test_links(text, found):
    assert engine.link_next(text) == found


def test_credentials_do_not_follow_a_link_to_another_host(registry, there):
    with registry_running() as other:
        there.auth.credentials = {"registrytoken": "secret"}
        registry.faults.append(lambda handler: handler.reply(
            200, b'{"tags": ["a"]}', Link=f"<{other.url}/v2/team/app/tags/list>; rel=next") or True)
        other.add("team/app", "b", [A])
        assert there.tags() == ["a", "b"]
        assert registry.log[0][2]["Authorization"] == "Bearer secret"
        assert "Authorization" not in other.log[0][2]


def test_a_blob_from_where_it_broke_off(registry, there):
    registry.blobs[digest(A)] = A
    reply, at = there.blob(digest(A), 100)
    assert (at, reply.document()) == (100, A[100:])
    registry.has_ranges = False
    reply, at = there.blob(digest(A), 100)
    assert (at, reply.document()) == (0, A)


@pytest.mark.parametrize("said", ["bytes 0-9/10", "", "bytes */10"])
def test_a_range_that_is_another_is_not_believed(registry, there, said):
    registry.blobs[digest(A)] = A
    registry.faults.append(lambda handler: bool(handler.headers.get("Range")) and (
        handler.reply(206, A[:10], Content_Range=said) or True))
    reply, at = there.blob(digest(A), 100)
    assert (at, reply.document()) == (0, A)


def test_documents_are_verified(registry, there):
    registry.blobs[digest(b"x")] = b"y"
    with pytest.raises(engine.EngineError, match="verification failed"):
        there.document(digest(b"x"), 1)
    registry.blobs[digest(b"yy")] = b"yy"
    with pytest.raises(engine.EngineError, match="verification failed"):
        there.document(digest(b"yy"), 1)
    with pytest.raises(engine.EngineError, match="too large"):
        there.document(digest(b"yy"), 1 << 40)


def test_uploads(registry, there):
    there.upload(there.upload_start(), digest(A), lambda at: [A[at:5], A[5:]], len(A))
    assert registry.blobs[digest(A)] == A
    url, size = there.upload_chunks(there.upload_start(), [b"ab", b"cd"])
    there.upload_end(url, digest(b"abcd"))
    assert size == 4 and registry.blobs[digest(b"abcd")] == b"abcd"
    assert there.blob_size(digest(b"abcd")) == 4
    assert there.blob_size(digest(b"no")) == -1
    with pytest.raises(engine.RegistryRefusal, match="digest invalid"):
        there.upload(there.upload_start(), digest(b"no"), lambda at: [A], len(A))


def test_an_upload_that_leads_nowhere(registry, there):
    registry.faults.append(lambda handler: handler.reply(202) or True)
    with pytest.raises(engine.EngineError, match="names no place for the upload"):
        there.upload_start()


def test_a_mount_or_an_upload_in_its_place(registry, there):
    registry.blobs[digest(A)] = A
    assert there.mount(digest(A), "other/app") == ""
    registry.mounts = False
    assert there.mount(digest(A), "other/app").startswith(registry.url + "/v2/team/app/blobs/")


def test_a_manifest_is_put_as_it_is(registry, there):
    data = json.dumps({"schemaVersion": 2}).encode()
    there.manifest_put("1", data, engine.MANIFEST_TYPES[1])
    assert registry.manifests["team/app", "1"] == (data, engine.MANIFEST_TYPES[1])
