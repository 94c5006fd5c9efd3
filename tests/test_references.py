"""references: Docker's grammar by hand, held against the published expressions."""

from __future__ import annotations

import copy
import pickle
import re

import engine
import hypothesis.strategies as st
import pytest
from hypothesis import given

HEX = "0123456789abcdef" * 4
COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|[-]+)[a-z0-9]+)*"
LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
DOMAIN = rf"(?:{LABEL}(?:\.{LABEL})*|\[(?:[a-fA-F0-9:]+)\])(?::[0-9]+)?"
REFERENCE = re.compile(
    rf"({DOMAIN})/({COMPONENT}(?:/{COMPONENT})*)(?::([A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}}))?"
    r"(?:@([A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}))?", re.ASCII)


@pytest.mark.parametrize("text, want, familiar, full", [
    ("busybox", ("docker.io", "library/busybox", "", ""), "busybox",
     "docker.io/library/busybox:latest"),
    ("busybox:1", ("docker.io", "library/busybox", "1", ""), "busybox:1",
     "docker.io/library/busybox:1"),
    ("a/b", ("docker.io", "a/b", "", ""), "a/b", "docker.io/a/b:latest"),
    ("docker.io/a", ("docker.io", "library/a", "", ""), "a", "docker.io/library/a:latest"),
    ("index.docker.io/a", ("docker.io", "library/a", "", ""), "a", "docker.io/library/a:latest"),
    ("docker.io/library/a/b", ("docker.io", "library/a/b", "", ""), "library/a/b",
     "docker.io/library/a/b:latest"),
    ("localhost/x", ("localhost", "x", "", ""), "localhost/x", "localhost/x:latest"),
    ("localhost:5000/x:2", ("localhost:5000", "x", "2", ""), "localhost:5000/x:2",
     "localhost:5000/x:2"),
    ("[::1]:5000/x", ("[::1]:5000", "x", "", ""), "[::1]:5000/x", "[::1]:5000/x:latest"),
    ("Foo/bar", ("Foo", "bar", "", ""), "Foo/bar", "Foo/bar:latest"),
    ("ghcr.io/a/b-c__d.e:V_1@sha256:" + HEX, ("ghcr.io", "a/b-c__d.e", "V_1", "sha256:" + HEX),
     "ghcr.io/a/b-c__d.e:V_1@sha256:" + HEX, "ghcr.io/a/b-c__d.e:V_1@sha256:" + HEX),
    ("a@sha256:" + HEX, ("docker.io", "library/a", "", "sha256:" + HEX), "a@sha256:" + HEX,
     "docker.io/library/a@sha256:" + HEX),
])
def test_parse(text, want, familiar, full):
    ref = engine.reference_parse(text)
    assert ref == want and (ref.domain, ref.path, ref.tag, ref.digest) == want
    assert engine.reference_familiar(ref) == ref.familiar == familiar
    assert engine.reference_full(engine.reference_tagged(ref)) == full
    assert engine.reference_parse(engine.reference_full(ref)) == ref
    assert copy.copy(ref) == ref == pickle.loads(pickle.dumps(ref))


INVALID = "invalid reference format"


@pytest.mark.parametrize("text, message", [
    ("", INVALID), ("a b", INVALID), ("a:", INVALID), ("a:b:c", INVALID), ("a@", INVALID),
    (":a", INVALID),
    ("a:-b", INVALID), ("a:" + "x" * 129, INVALID), ("a//b", INVALID), ("/a", INVALID),
    ("a/", INVALID),
    ("a___b", INVALID), ("a..b", INVALID), ("-a", INVALID), ("a-", INVALID), ("é", INVALID),
    ("a\n", INVALID), ("a:b\n", INVALID), ("a@sha256:12", INVALID), ("ho_st.x/a", INVALID),
    ("a.b:/c", INVALID), ("a.b:x/c", INVALID), ("[::1/a", INVALID), ("[]/a", INVALID),
    ("https://a/b", INVALID),
    ("Busybox", INVALID + ": repository name (library/Busybox) must be lowercase"),
    ("a/B:C", INVALID + ": repository name (a/B) must be lowercase"),
    ("x.y/A", INVALID + ": repository name (A) must be lowercase"),
    (HEX, f"invalid repository name ({HEX}), cannot specify 64-byte hexadecimal strings"),
    ("a" * 256, "repository name must not be more than 255 characters"),
    ("a@sha256:" + HEX[:60], "invalid checksum digest length"),
    ("a@sha256:" + HEX.upper(), "invalid checksum digest format"),
    ("a@md5:" + HEX[:32], "unsupported digest algorithm"),
])
def test_refused(text, message):
    with pytest.raises(engine.InvalidParameter) as error:
        engine.reference_parse(text)
    assert str(error.value) == message


@given(st.text(st.sampled_from("abz09AZ._-/:@[]é \n"), max_size=14) | st.from_regex(REFERENCE))
def test_as_the_expressions(text):
    """What has a domain in front is taken exactly when the published grammar takes it."""
    text = "x.y/" + text
    found = REFERENCE.fullmatch(text)
    try:
        ref = engine.reference_parse(text)
    except engine.InvalidParameter as error:
        if "digest" not in str(error) and "255" not in str(error):
            assert not found
    else:
        assert found and tuple(part or "" for part in found.groups()) == ref


def test_tags():
    assert all(map(engine.is_tag, ("a", "_", "1.2-3_x", "A" * 128)))
    assert not any(map(engine.is_tag, ("", ".a", "-a", "a b", "a\n", "A" * 129, "é")))


def test_digests():
    for name, size in (("sha256", 64), ("sha384", 96), ("sha512", 128)):
        digest = f"{name}:{'a' * size}"
        assert engine.digest_check(digest) == digest
    for bad in ("", "sha256", "sha256:", ":" + HEX, "sha256:" + HEX + "0", "sha256:" + "g" * 64,
                "sha256:../" + HEX, "../sha256:" + HEX, "SHA256:" + HEX, "sha256:" + HEX + "\n"):
        with pytest.raises(engine.InvalidParameter):
            engine.digest_check(bad)


@pytest.mark.parametrize("text, want", [
    ("linux/amd64", ("linux", "amd64", "")), ("linux/x86_64", ("linux", "amd64", "")),
    ("linux/amd64/v1", ("linux", "amd64", "")), ("linux/amd64/v3", ("linux", "amd64", "v3")),
    ("linux/arm64/v8", ("linux", "arm64", "")), ("linux/arm64/8", ("linux", "arm64", "")),
    ("arm64", ("linux", "arm64", "")), ("aarch64", ("linux", "arm64", "")),
    ("linux/arm", ("linux", "arm", "v7")), ("armhf", ("linux", "arm", "v7")),
    ("linux/armel", ("linux", "arm", "v6")), ("linux/arm/6", ("linux", "arm", "v6")),
    ("Linux/AMD64", ("linux", "amd64", "")), ("i386", ("linux", "386", "")),
    ("windows/amd64", ("windows", "amd64", "")), ("macos/arm64", ("darwin", "arm64", "")),
    ("linux/weird", ("linux", "weird", "")),
])
def test_platforms(text, want):
    platform = engine.platform_parse(text)
    assert tuple(platform.values()) == want
    assert engine.platform_text(platform) == "/".join(part for part in want if part)


def test_platform_host():
    host = engine.platform_host()
    assert engine.platform_parse("linux") == host
    assert engine.platform_parse(engine.platform_text(host)) == host
    assert engine.platform_text({}) == "unknown"


@pytest.mark.parametrize("text, words", [
    ("a/b/c/d", '"a/b/c/d": cannot parse platform specifier: invalid argument'),
    ("nope", '"nope": unknown operating system or architecture: invalid argument'),
    ("", '"" is an invalid component of ""'), ("linux/", '"" is an invalid component of "linux/"'),
    ("linux/a b", '"a b" is an invalid component'), ("*", '"*" is an invalid component'),
])
def test_platform_refused(text, words):
    with pytest.raises(engine.InvalidParameter) as error:
        engine.platform_parse(text)
    assert words in str(error.value)


def test_levels_of_amd64():
    flags = "flags\t\t: fpu lahf_lm"
    assert engine.amd64_variant("") == engine.amd64_variant(flags) == "v1"
    for name, needed in engine.AMD64_LEVELS:
        flags += " " + needed
        assert engine.amd64_variant("processor: 0\n" + flags + "\n\n") == name
