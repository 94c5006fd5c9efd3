"""Challenges, tokens and credentials: who is shown what."""

from __future__ import annotations

import base64
import json

import engine
import pytest
from hypothesis import given
from hypothesis import strategies as st
from registry_help import basic, challenge, once, registry_running


@pytest.fixture(name="registry")
def registry_fixture():
    with registry_running() as registry:
        registry.add("app", "1", [])
        yield registry


def repository(registry, credentials=None, url=""):
    client = engine.HttpClient(engine.CONFIGURATION)
    endpoint = engine.RegistryEndpoint(url or registry.url, is_insecure=True)
    return engine.Repository(client, endpoint, registry.name("app"), credentials or {})


def token_server(registry, answer=None, status=200):
    """A fault that answers for /token; what it was asked."""
    asked = []

    def fault(handler):
        if not handler.path.startswith("/token"):
            return False
        asked.append((handler.command, handler.path, handler.headers.get("Authorization", ""),
                      handler.sent))
        data = answer if answer is not None else json.dumps({"token": f"good{len(asked)}"})
        handler.reply(status, data.encode() if isinstance(data, str) else data)
        return True
    registry.faults += [fault, challenge(registry.url + "/token")]
    return asked


@pytest.mark.parametrize(("text", "found"), [
    ("", []),
    ("Basic", [("basic", {})]),
    ('Basic realm="x"', [("basic", {"realm": "x"})]),
    ('Bearer realm="https://a/t",service="s",scope="repository:a:pull,push"',
     [("bearer", {"realm": "https://a/t", "service": "s", "scope": "repository:a:pull,push"})]),
    ('Basic realm="a, b", Bearer realm="c"',
     [("basic", {"realm": "a, b"}), ("bearer", {"realm": "c"})]),
    ('Bearer Realm = tok , SERVICE=s', [("bearer", {"realm": "tok", "service": "s"})]),
    (r'Bearer realm="a\"b\\c"', [("bearer", {"realm": r'a"b\c'})]),
    ('realm="x"', []),
    (',,, Basic', [("basic", {})]),
])
def test_challenges(text, found):
    assert engine.challenges_parse(text) == found


@given(st.text())
def test_any_challenge_is_parsed(text):
    for scheme, parameters in engine.challenges_parse(text):
        assert scheme and isinstance(parameters, dict)


def test_credentials_in_a_header():
    wanted = {"username": "u?", "password": "p>ä"}
    assert engine.auth_header_parse(engine.auth_header_make(wanted)) == wanted
    padded = base64.urlsafe_b64encode(b'{"Username": "u", "email": "x", "auth": 5}').decode()
    assert engine.auth_header_parse(padded) == {"username": "u"}
    assert engine.auth_header_parse(padded.rstrip("=")) == {"username": "u"}
    for damaged in ("", "x", "e30", "W10", "bnVsbA==", "\N{SNOWMAN}"):
        assert engine.auth_header_parse(damaged) == {}


def test_a_token_is_fetched_once_and_again_when_it_is_refused(registry):
    asked = token_server(registry)
    there = repository(registry)
    there.manifest("1")
    there.manifest("1")
    assert len(asked) == 1
    assert asked[0][1] == "/token?scope=repository%3Aapp%3Apull&service=test"
    assert asked[0][2] == ""
    registry.faults.insert(1, once(lambda handler: handler.path.startswith("/v2") and (
        handler.error(401, "UNAUTHORIZED", WWW_Authenticate=
                      f'Bearer realm="{registry.url}/token",service="test"') or True)))
    there.manifest("1")
    assert len(asked) == 2


def test_a_token_that_is_never_good_is_not_fetched_for_ever(registry):
    asked = token_server(registry, '{"token": "bad"}')
    with pytest.raises(engine.RegistryRefusal, match="unauthorized"):
        repository(registry).manifest("1")
    assert len(asked) <= 3


def test_the_token_server_gets_user_and_password_the_registry_does_not(registry):
    asked = token_server(registry)
    repository(registry, {"username": "u", "password": "p"}).manifest("1")
    assert asked[0][2] == "Basic " + base64.b64encode(b"u:p").decode()
    assert "account=u" in asked[0][1]
    assert not [1 for _, path, headers in registry.log
                if path.startswith("/v2") and "Basic" in headers.get("Authorization", "")]


def test_an_identity_token_is_exchanged(registry):
    asked = token_server(registry, '{"access_token": "good"}')
    repository(registry, {"identitytoken": "abc+/"}).manifest("1")
    assert asked[0][0] == "POST"
    assert b"refresh_token=abc%2B%2F" in asked[0][3] and b"grant_type=refresh_token" in asked[0][3]


def test_a_registry_token_is_used_as_it_is(registry):
    asked = token_server(registry)
    repository(registry, {"registrytoken": "good"}).manifest("1")
    assert asked == []


def test_basic(registry):
    registry.faults.append(basic("u", "p:q"))
    repository(registry, {"username": "u", "password": "p:q"}).manifest("1")
    with pytest.raises(engine.RegistryRefusal, match="no basic auth credentials"):
        repository(registry).manifest("1")
    with pytest.raises(engine.RegistryRefusal, match="unauthorized: authentication required"):
        repository(registry, {"username": "u", "password": "wrong"}).manifest("1")


@pytest.mark.parametrize(("answer", "status", "text"), [
    ("", 200, "unable to decode token response"),
    ("[]", 200, "unable to decode token response"),
    ("{}", 200, "authorization server did not include a token in the response"),
    ('{"token": 5}', 200, "did not include a token"),
    ('{"token": "a\\r\\nX: y"}', 200, "did not include a token"),
    ('{"token": "good", "expires_in": "soon"}', 200, "unable to decode token response"),
    ('{"token": "good", "refresh_token": 1}', 200, "unable to decode token response"),
    ("x", 401, "unauthorized: incorrect username or password"),
    ('{"errors": [{"code": "DENIED", "message": "no"}]}', 403, "denied: no"),
    ("x", 404, "unknown: x"),
    ("x" * (2 << 20), 200, "reply of more than"),
])
def test_what_token_servers_get_wrong(registry, answer, status, text):
    token_server(registry, answer, status)
    with pytest.raises(engine.EngineError, match=text) as refused:
        repository(registry).manifest("1")
    assert "\n" not in str(refused.value)


def test_a_realm_is_not_asked_with_a_password_over_http_for_a_registry_with_tls():
    client = engine.HttpClient(engine.CONFIGURATION)
    endpoint = engine.RegistryEndpoint("https://a.example")
    auth = engine.RegistryAuth(client, endpoint, {"username": "u", "password": "p"})
    auth._challenges = [("bearer", {"realm": "http://b.example/token"})]
    with pytest.raises(engine.RegistryRefusal, match="speaks no TLS"):
        auth.header(("x",))


def test_a_mirror_gets_no_credentials(registry):
    client = engine.HttpClient(engine.CONFIGURATION)
    endpoint = engine.RegistryEndpoint(registry.url, is_mirror=True, is_insecure=True)
    auth = engine.RegistryAuth(client, endpoint, {"registrytoken": "t"})
    assert auth.header(()) == {}
