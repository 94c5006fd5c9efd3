"""What `login` keeps, and where: config.json, helpers, the environment; as the docker CLI does."""

from __future__ import annotations

import base64
import json
import os

import engine
import pytest

HOST = "example.org:5000"
SECRET = {"username": "u", "password": "p:q", "serveraddress": HOST}


@pytest.fixture(name="top")
def top_fixture(tmp_path, monkeypatch):
    """The flags of a command, with a directory for config.json and one for helpers."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.delenv("DOCKER_AUTH_CONFIG", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    top = engine.Args("docker")
    top.config, top.config_file = "", None
    return top


def config(tmp_path, document=None):
    path = tmp_path / "config.json"
    if document is not None:
        path.write_text(json.dumps(document))
    return json.loads(path.read_text()) if path.exists() else None


def helper(tmp_path, name="test"):
    """A credential helper that keeps its secrets in a directory."""
    path = tmp_path / f"docker-credential-{name}"
    path.write_text(f"""#!/bin/sh
cd {tmp_path}
case $1 in
store) cat > kept ;;
get) read -r server; echo "$server" > asked
     if [ -e kept ]; then cat kept; else echo "{engine.HELPER_NOT_FOUND}"; exit 1; fi ;;
erase) rm kept ;;
esac
""")
    path.chmod(0o755)


def test_what_is_kept_is_found_again(top, tmp_path):
    assert engine.credentials_get(top, HOST) == {}
    engine.credentials_put(top, SECRET)
    assert config(tmp_path) == {"auths": {HOST: {"auth": base64.b64encode(b"u:p:q").decode()}}}
    assert os.stat(tmp_path / "config.json").st_mode & 0o777 == 0o600
    assert engine.credentials_get(top, HOST) == SECRET
    engine.credentials_drop(top, HOST)
    assert config(tmp_path) == {"auths": {}}
    assert engine.credentials_get(top, HOST) == {}


def test_a_password_in_the_file_is_warned_of_once(top, tmp_path, capfd):
    for _ in range(2):
        engine.credentials_put(top, SECRET)
    assert capfd.readouterr().err == f"""
WARNING! Your credentials are stored unencrypted in '{tmp_path}/config.json'.
Configure a credential helper to remove this warning. See
https://docs.docker.com/go/credential-store/

"""
    engine.credentials_put(top, {**SECRET, "password": "", "identitytoken": "t"})
    helper(tmp_path)
    top.config_file["credsStore"] = "test"
    engine.credentials_put(top, SECRET)
    assert capfd.readouterr().err == ""


def test_other_things_in_the_file_stay(top, tmp_path):
    config(tmp_path, {"psFormat": "x", "auths": {"other": {"auth": "eDp5"}}})
    engine.credentials_put(top, SECRET)
    found = config(tmp_path)
    assert found["psFormat"] == "x" and set(found["auths"]) == {"other", HOST}


def test_an_identity_token_is_kept_in_place_of_the_password(top, tmp_path):
    engine.credentials_put(top, {**SECRET, "password": "", "identitytoken": "t"})
    assert config(tmp_path)["auths"][HOST] == {
        "auth": base64.b64encode(b"u:").decode(), "identitytoken": "t"}
    assert engine.credentials_get(top, HOST)["identitytoken"] == "t"


@pytest.mark.parametrize("key", ["https://example.org:5000/v1/", "http://example.org:5000", HOST])
def test_old_files_have_urls(top, tmp_path, key):
    config(tmp_path, {"auths": {key: {"auth": "dTpw"}}})
    assert engine.credentials_get(top, HOST) == {
        "username": "u", "password": "p", "serveraddress": HOST}


def test_a_helper_for_all_and_one_for_a_registry(top, tmp_path):
    helper(tmp_path)
    config(tmp_path, {"credsStore": "none", "credHelpers": {HOST: "test"}})
    assert engine.credentials_get(top, HOST) == {}
    engine.credentials_put(top, SECRET)
    assert json.loads((tmp_path / "kept").read_text()) == {
        "ServerURL": HOST, "Username": "u", "Secret": "p:q"}
    assert (tmp_path / "asked").read_text() == HOST + "\n"
    assert config(tmp_path)["auths"] == {HOST: {}}
    assert engine.credentials_get(top, HOST) == SECRET
    engine.credentials_put(top, {**SECRET, "identitytoken": "t"})
    assert engine.credentials_get(top, HOST) == {"identitytoken": "t", "serveraddress": HOST}
    engine.credentials_drop(top, HOST)
    assert not (tmp_path / "kept").exists()
    with pytest.raises(engine.EngineError, match='"docker-credential-none": executable file not'):
        engine.credentials_get(top, "other")


def test_a_helper_that_fails_is_told(top, tmp_path):
    for script, words in (("echo no keychain; exit 3", "exit status 3, out: `no keychain`"),
                          ("echo '[]'", "gave no credentials"), ("echo x", "gave no credentials")):
        path = tmp_path / "docker-credential-bad"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        top.config_file = {"credsStore": "bad"}
        with pytest.raises(engine.EngineError, match=words):
            engine.credentials_get(top, HOST)


def test_the_environment_comes_first(top, tmp_path, monkeypatch, capfd):
    engine.credentials_put(top, SECRET)
    monkeypatch.setenv("DOCKER_AUTH_CONFIG", json.dumps({"auths": {HOST: {"auth": "eDp5"}}}))
    assert engine.credentials_get(top, HOST)["username"] == "x"
    for damaged in ("{", "[]", '{"auths": {"%s": {"auth": "*"}}}' % HOST):
        monkeypatch.setenv("DOCKER_AUTH_CONFIG", damaged)
        assert engine.credentials_get(top, HOST) == SECRET
        assert "DOCKER_AUTH_CONFIG" in capfd.readouterr().err


@pytest.mark.parametrize("entry", [None, [], "x", {}, {"auth": ""}, {"auth": 5}])
def test_entries_that_say_nothing(top, tmp_path, entry):
    config(tmp_path, {"auths": {HOST: entry}})
    assert engine.credentials_get(top, HOST) == {}


@pytest.mark.parametrize("text", ["*", "dQ==", "OnA="])
def test_entries_that_are_damaged(top, tmp_path, text):
    config(tmp_path, {"auths": {HOST: {"auth": text}}})
    with pytest.raises(engine.EngineError, match="Invalid auth configuration file"):
        engine.credentials_get(top, HOST)


def test_the_hubs_key():
    for domain in ("docker.io", "index.docker.io"):
        assert engine.credentials_key(domain) == "https://index.docker.io/v1/"
    assert engine.credentials_key(HOST) == HOST
    assert engine.credentials_host("https://example.org:5000/v1/") == HOST
