"""Bodies of create: bodies.txt holds what the docker CLI 28 sends or says for each line."""

from __future__ import annotations

import json
import pathlib
import shlex

import engine
import pytest

DATA = pathlib.Path(__file__).parent / "data" / "cli_create"


def cases():
    lines = (DATA / "bodies.txt").read_text().splitlines()
    return list(zip(lines[::2], lines[1::2]))


def clean(value):
    """Without what is empty: Docker sends every field, this client those that were given."""
    if isinstance(value, dict):
        kept = {key: clean(each) for key, each in value.items()}
        return {key: each for key, each in kept.items() if each not in (None, "", False, 0, [], {})}
    return [clean(each) for each in value] if isinstance(value, list) else value


def made(line):
    """The body, or the error line with its exit code, as `create` treats it."""
    try:
        args = engine.flags_parse(engine.CREATE_FLAGS, shlex.split(line), interspersed=False)
        try:
            engine._platform_settle(args)
        except engine.InvalidParameter as exc:
            return f"{exc}  [{exc.exit}]"
        body = engine._create_checked(args)
    except engine.UsageError as exc:
        return f"{exc}  [{exc.exit}]"
    except engine.InvalidParameter as exc:
        return f"docker: {exc}  [125]"
    body["HostConfig"].pop("ConsoleSize", None)
    return clean(body)


@pytest.mark.parametrize("line, want", cases())
def test_as_docker(line, want, monkeypatch):
    monkeypatch.chdir(DATA)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("NOPE", raising=False)
    want = want.strip()
    assert made(line) == (json.loads(want.replace("$PWD", str(DATA))) if want[0] == "{" else want)


def test_what_is_sent_empty_is_shown_empty():
    args = engine.flags_parse(engine.CREATE_FLAGS, ["--network", "none", "i"], interspersed=False)
    host = engine._create_checked(args)["HostConfig"]
    names = "Dns DnsOptions DnsSearch BlkioWeightDevice BlkioDeviceReadBps BlkioDeviceWriteBps"
    names += " BlkioDeviceReadIOps BlkioDeviceWriteIOps Devices Ulimits"
    assert {name: value for name, value in host.items() if value in ({}, [])} == {
        "PortBindings": {},
        **{name: [] for name in names.split()},
    }


def test_every_target_is_a_field_of_the_api():
    for flag in engine.CREATE_FLAGS:
        if flag.target.startswith("HostConfig."):
            assert flag.target.split(".")[1] in engine.HOST_CONFIG, flag.names
        elif flag.target:
            assert flag.target in engine.CONFIG, flag.names


def test_binds_keep_their_order(monkeypatch):
    monkeypatch.chdir("/")
    args = engine.flags_parse(
        engine.CREATE_FLAGS, ["-v", "/a:/b", "-v", "./c:/d:ro", "-v", "/anon", "x"]
    )
    body = engine.create_body(args)
    assert body["HostConfig"]["Binds"] == ["/a:/b", "/c:/d:ro"] and body["Volumes"] == {"/anon": {}}


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("", "invalid empty volume spec"),
        ("a::/b", "invalid spec: a::/b: empty section between colons"),
        ("/a:/b:/c:/d", "invalid spec: /a:/b:/c:/d: too many colons"),
        ("c:/a:d:/b:ro:e", "invalid spec: c:/a:d:/b:ro:e: too many colons"),
    ],
)
def test_volumes_that_are_none(text, want):
    args = engine.flags_parse(engine.CREATE_FLAGS, ["-v", text, "x"])
    with pytest.raises(engine.InvalidParameter, match="^" + want + "$"):
        engine.create_body(args)


def test_what_is_refused_by_name():
    args = engine.flags_parse(engine.CREATE_FLAGS, ["--use-api-socket", "x"])
    with pytest.raises(engine.Unsupported, match="--use-api-socket"):
        engine.create_body(args)
