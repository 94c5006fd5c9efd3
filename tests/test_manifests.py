"""Manifests and indexes: what is damaged is refused in one line, what is asked for is found."""

from __future__ import annotations

import json

import engine
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_help import digest

HOST = {"os": "linux", "architecture": "amd64", "variant": ""}
HEX = "sha256:" + "a" * 64
CONFIG = {"mediaType": engine.MEDIA_CONFIG, "digest": HEX, "size": 2}
LAYER = {"mediaType": engine.MEDIA_LAYER + "+gzip", "digest": HEX, "size": 3}


def parse(document):
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    return engine.manifest_parse(data, {"digest": digest(data), "size": len(data)})


def entry(data, **platform):
    return {"digest": digest(data), "size": len(data), "mediaType": engine.MEDIA_MANIFEST,
            **({"platform": platform} if platform else {})}


def test_a_sound_manifest_is_taken_apart():
    assert parse({"schemaVersion": 2, "config": CONFIG, "layers": [LAYER]}) == (CONFIG, [LAYER])


@pytest.mark.parametrize("document", [
    b"", b"{", b"[]", b"null", b"\xff", b"1",
    {}, {"config": CONFIG}, {"layers": []}, {"config": CONFIG, "layers": {}},
    {"config": None, "layers": []}, {"config": CONFIG, "layers": None},
    {"config": {**CONFIG, "digest": "sha256:12"}, "layers": []},
    {"config": {**CONFIG, "digest": 5}, "layers": []},
    {"config": {**CONFIG, "mediaType": None}, "layers": []},
    {"config": CONFIG, "layers": [{**LAYER, "digest": "md5:" + "a" * 32}]},
    {"config": CONFIG, "layers": [{**LAYER, "size": -1}]},
    {"config": CONFIG, "layers": [{**LAYER, "size": "3"}]},
    {"config": CONFIG, "layers": [{**LAYER, "size": 3.5}]},
    {"config": CONFIG, "layers": [{**LAYER, "size": True}]},
    {"config": CONFIG, "layers": ["x"]},
    {"config": CONFIG, "layers": [[]]},
    {"config": {**CONFIG, "mediaType": "application/vnd.oci.empty.v1+json"}, "layers": []},
])
def test_a_damaged_manifest_is_refused_in_one_line(document):
    with pytest.raises(engine.InvalidParameter) as refused:
        parse(document)
    assert "\n" not in str(refused.value)


def test_a_manifest_is_what_its_descriptor_says():
    data = json.dumps({"config": CONFIG, "layers": []}).encode()
    with pytest.raises(engine.InvalidParameter, match="digest mismatch"):
        engine.manifest_parse(data, {"digest": HEX})
    with pytest.raises(engine.InvalidParameter, match="invalid size"):
        engine.manifest_parse(data, {"digest": digest(data), "size": 1})


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
                        st.sampled_from(["config", "layers", "digest", "mediaType", "size",
                                         "manifests", "platform", "annotations"]),
                        inner, max_size=4)))
def test_whatever_json_comes_is_parsed_or_refused(document):
    data = json.dumps(document).encode()
    for act in (lambda: parse(data), lambda: engine.index_entries(document, "x"),
                lambda: engine.manifest_document(data, HEX)):
        try:
            act()
        except engine.InvalidParameter:
            pass


def test_an_index_gives_the_platform_that_is_asked_for():
    arm, amd = entry(b"1", os="linux", architecture="arm64"), entry(
        b"2", os="linux", architecture="amd64")
    assert engine.platform_choose([arm, amd], HOST, lambda _: None) == [amd]
    with pytest.raises(engine.NotFound, match="no matching manifest for linux/s390x"):
        engine.platform_choose([arm, amd], {**HOST, "architecture": "s390x"}, lambda _: None)


def test_an_index_in_an_index_is_searched_and_not_for_ever():
    amd = entry(b"2", os="linux", architecture="amd64")
    inner = json.dumps({"manifests": [amd]}).encode()
    outer = {"digest": digest(inner), "mediaType": engine.INDEX_TYPES[0]}
    assert engine.platform_choose([outer], HOST, lambda _: inner) == [amd]
    with pytest.raises(engine.InvalidParameter, match="mismatch"):
        engine.platform_choose([outer], HOST, lambda _: b"other")
    documents = {}
    data = json.dumps({"manifests": [amd]}).encode()
    for _ in range(engine.INDEX_DEPTH_MAX + 2):
        documents[digest(data)] = data
        data = json.dumps({"manifests": [{"digest": digest(data),
                                          "mediaType": engine.INDEX_TYPES[0]}]}).encode()
    entries = json.loads(data)["manifests"]
    with pytest.raises(engine.InvalidParameter, match="nested too deeply"):
        engine.platform_choose(entries, HOST, lambda each: documents[each["digest"]])


def test_attestations_are_no_images():
    note = {**entry(b"1"), "annotations": {"vnd.docker.reference.type": "attestation-manifest"}}
    assert engine.index_entries({"manifests": [note, entry(b"2")]}, "x") == [entry(b"2")]


def test_what_is_not_to_be_had_is_not_chosen():
    best, other = entry(b"1", os="linux", architecture="amd64"), entry(
        b"2", os="linux", architecture="amd64", variant="v1")
    chosen = engine.platform_choose([best, other], HOST, lambda _: None,
                                    has=lambda each: each is other)
    assert chosen == [other]
