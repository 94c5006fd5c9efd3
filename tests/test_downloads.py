"""Blobs on their way: resumed after cuts, verified, shared by pulls, never too long."""

from __future__ import annotations

import os
import threading

import engine
import pytest
from image_help import digest, gz, layer, store_fixture  # noqa: F401
from registry_help import once, registry_running

A = gz(layer(*(f"f{n}" for n in range(300)), salt=os.urandom(3000).hex()))


@pytest.fixture(name="registry")
def registry_fixture(monkeypatch):
    monkeypatch.setattr(engine, "DOWNLOAD_ATTEMPTS_PAUSE", 0)
    with registry_running() as registry:
        registry.blobs[digest(A)] = A
        yield registry


@pytest.fixture(name="bring")
def bring_fixture(store, registry, tmp_path):
    """bring(): a Download of A after its run, in a lease."""
    client = engine.HttpClient(engine.CONFIGURATION)
    endpoint = engine.RegistryEndpoint(registry.url, is_insecure=True)
    repository = engine.Repository(client, endpoint, registry.name("app"), {})
    made = []

    def bring(data=A, run=True, **more):
        descriptor = {"digest": digest(data), "size": len(data), **more}
        state = engine.layer_state_make(str(tmp_path / f"state{len(made)}"))
        download = engine.Download(store, descriptor, state, lambda *told: said.append(told))
        made.append(download)
        if run:
            download.run(repository, 5)
        return download
    said = bring.said = []
    bring.repository = repository
    with engine.content_lease(store):
        yield bring
    for download in made:
        download.close()
    client.close()
    engine.tree_remove(store.path("downloads"))
    for name in os.listdir(store.path("blobs", "sha256")):
        os.unlink(store.path("blobs", "sha256", name))


def cut(handler, start, size):
    """Answers for a blob with a part of what it promises."""
    data = A[start:]
    handler.send_response(206 if start else 200)
    if start:
        handler.send_header("Content-Range", f"bytes {start}-{len(A) - 1}/{len(A)}")
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data[:size])
    handler.close_connection = True
    return True


def parts(store):
    return os.listdir(store.path("downloads"))


def test_a_blob_comes_and_is_what_it_should_be(store, bring):
    assert bring().fetch() == (digest(A), len(A), engine.MEDIA_LAYER + "+gzip")
    assert engine.file_read(engine.blob_path(store, digest(A))) == A
    assert [what for _, what in bring.said] == ["Verifying Checksum", "Download complete"]
    (part,) = parts(store)          # one file with two names, until an image has it
    assert os.path.samefile(store.path("downloads", part), engine.blob_path(store, digest(A)))
    engine.downloads_settle(store, [digest(A), digest(b"")])
    assert parts(store) == []
    assert engine.file_read(engine.blob_path(store, digest(A))) == A


def test_what_came_of_a_pull_that_ended_is_not_asked_for(store, registry, bring):
    bring().close()
    os.unlink(engine.blob_path(store, digest(A)))
    assert bring().fetch()[0] == digest(A)
    assert len(registry.log) == 1


def test_a_file_system_with_one_name_for_a_file(store, bring, monkeypatch):
    def link(*_):
        raise PermissionError(1, "Operation not permitted")
    monkeypatch.setattr(os, "link", link)
    assert bring().fetch()[0] == digest(A)
    assert parts(store) == []


def test_what_is_here_is_not_asked_for(store, registry, bring):
    bring()
    asked = len(registry.log)
    assert bring().fetch()[0] == digest(A)
    assert len(registry.log) == asked


def test_a_cut_is_resumed_where_it_was(registry, bring):
    registry.faults += [once(lambda handler: cut(handler, 0, 1000)),
                        once(lambda handler: cut(handler, 1000, 50))]
    bring().fetch()
    assert [headers.get("Range") for _, _, headers in registry.log] == [
        None, "bytes=1000-", "bytes=1050-"]
    assert "Retrying in 0 seconds" in [what for _, what in bring.said]


def test_a_part_of_a_killed_pull_is_resumed(store, registry, bring):
    os.makedirs(store.path("downloads"))
    with open(store.path("downloads", digest(A)[7:]), "wb") as part:
        part.write(A[:2000])
    bring().fetch()
    assert registry.log[0][2]["Range"] == "bytes=2000-"


def test_a_registry_without_ranges_begins_anew(store, registry, bring):
    registry.has_ranges = False
    registry.faults.append(once(lambda handler: cut(handler, 0, 1000)))
    bring().fetch()
    assert engine.file_read(engine.blob_path(store, digest(A))) == A


def test_a_part_that_is_longer_than_the_whole_begins_anew(store, registry, bring):
    os.makedirs(store.path("downloads"))
    with open(store.path("downloads", digest(A)[7:]), "wb") as part:
        part.write(A + b"x")
    bring().fetch()
    assert "Range" not in registry.log[0][2]


def test_other_bytes_are_refused_and_not_kept(store, registry, bring):
    registry.blobs[digest(A)] = A[:-1] + b"x"
    with pytest.raises(engine.EngineError, match="filesystem layer verification failed for digest"):
        bring().fetch()
    assert os.path.getsize(store.path("downloads", parts(store)[0])) == 0
    registry.blobs[digest(A)] = A
    bring().fetch()


def test_more_bytes_than_promised_are_refused(registry, bring):
    registry.blobs[digest(A)] = A + b"x" * 10
    with pytest.raises(engine.EngineError, match="is longer than"):
        bring().fetch()


def test_a_registry_that_always_breaks_off_is_given_up(registry, bring):
    registry.faults.append(lambda handler: cut(handler, 0, 0))
    with pytest.raises(engine.HttpFailed, match="unexpected EOF"):
        bring().fetch()
    assert len(registry.log) == 5


def test_what_comes_too_slowly_is_asked_for_again(registry, bring, monkeypatch):
    monkeypatch.setattr(engine, "DOWNLOAD_SLOW", 1 << 40)
    monkeypatch.setattr(engine, "DOWNLOAD_LOOK", -1)
    bring().fetch()
    assert "Retrying in 0 seconds" in [what for _, what in bring.said]


def test_a_blob_that_is_not_there_is_not_asked_for_again(registry, bring):
    del registry.blobs[digest(A)]
    with pytest.raises(engine.RegistryRefusal, match="blob unknown"):
        bring().fetch()
    assert len(registry.log) == 1


def test_a_foreign_layer_comes_from_its_urls(registry, bring):
    del registry.blobs[digest(A)]
    with registry_running() as other:
        other.blobs[digest(A)] = A
        url = f"{other.url}/v2/x/blobs/{digest(A)}"
        assert bring(urls=["http://127.0.0.1:1/", url][1:]).fetch()[0] == digest(A)


def test_two_pulls_share_the_work(store, registry, bring):
    gate = threading.Event()
    registry.faults.append(lambda handler: gate.wait(5) and False)
    first, second = bring(run=False), bring(run=False)
    threads = [threading.Thread(target=each.run, args=(bring.repository, 5))
               for each in (first, second)]
    for thread in threads:
        thread.start()
    while not any(what == "Waiting" for _, what in bring.said):
        threading.Event().wait(0.01)
    threading.Event().wait(0.3)
    gate.set()
    for thread in threads:
        thread.join()
    assert first.fetch() == second.fetch()
    assert len(registry.log) == 1
    assert [what for _, what in bring.said].count("Waiting") == 1
    assert len(parts(store)) == 1


def test_who_waits_sees_how_far_the_other_pull_is(store, registry, bring):
    first = bring(run=False)
    path = first._lock(bring.repository)
    os.write(first._fd, A[:1000])
    second = bring(run=False)
    thread = threading.Thread(target=second.run, args=(bring.repository, 5))
    thread.start()
    for _ in range(500):
        if second.current == 1000:
            break
        threading.Event().wait(0.01)
    assert second.current == 1000
    os.unlink(path)
    os.close(first._fd)
    first._fd = -1
    thread.join()
    assert second.fetch()[:2] == (digest(A), len(A))


def test_a_full_disk_is_told(registry, bring, monkeypatch):
    def full(fd, data):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(engine, "write_all", full)
    with pytest.raises(engine.EngineError, match="no space left on device"):
        bring().fetch()


def test_parts_nobody_wants_are_removed_in_time(store, registry, bring):
    registry.faults.append(lambda handler: cut(handler, 0, 10))
    with pytest.raises(engine.HttpFailed):
        bring().fetch()
    engine.downloads_expire(store)
    assert len(parts(store)) == 1
    os.utime(store.path("downloads", parts(store)[0]), (1, 1))
    held = bring(run=False)
    assert held._lock(bring.repository)
    engine.downloads_expire(store)
    assert len(parts(store)) == 1, "somebody is at work"
    held.close()
    engine.downloads_expire(store)
    assert parts(store) == []


def test_what_waits_for_a_download_that_fails_is_told(bring):
    download = bring(run=False)
    download.fail(engine.EngineError("told to"))
    with pytest.raises(engine.EngineError, match="told to"):
        download.begun()
    assert engine.layer_state_failed(download.state)
