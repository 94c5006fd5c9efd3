"""api_absent: what is not there says so in Docker's form."""

from __future__ import annotations

import engine
import pytest


def call(method, path, **options):
    return engine.http_dispatch(None, engine.Request(method, path, **options))


def filled(pattern):
    return pattern.replace("{", "").replace("}", "")


@pytest.mark.parametrize(("method", "pattern", "subject"), engine.NOT_THERE)
def test_not_there(method, pattern, subject):
    reply = call(method, "/v1.41" + filled(pattern))
    assert reply.status == 501
    assert reply.value == {"message": f"{subject}: not supported by this engine"}


@pytest.mark.parametrize(("method", "pattern"), engine.SWARM_ROUTES)
def test_no_swarm(method, pattern):
    reply = call(method, filled(pattern))
    assert (reply.status, reply.value) == (503, {"message": engine.NO_SWARM})


@pytest.mark.parametrize(("pattern", "kind"), engine.SWARM_UPDATES)
def test_no_swarm_to_update(pattern, kind):
    reply = call("POST", filled(pattern), query={"version": ["7"]})
    assert (reply.status, reply.value) == (503, {"message": engine.NO_SWARM})
    syntax = "invalid syntax"
    for text, wrong in (("", syntax), ("-1", syntax), ("9" * 20, "out of range")):
        reply = call("POST", filled(pattern), query={"version": [text]})
        assert reply.status == 400
        message = f"invalid {kind} version '{text}': strconv.ParseUint: parsing \"{text}\": "
        assert reply.value["message"].startswith(message)
        assert reply.value["message"].endswith(wrong)


def test_leaving_no_swarm():
    reply = call("POST", "/swarm/leave")
    assert (reply.status, reply.value["message"]) == (503, "This node is not part of a swarm")


@pytest.mark.parametrize(("method", "pattern"), engine.PLUGIN_ROUTES)
def test_no_plugin(method, pattern):
    reply = call(method, pattern.replace("{name}", "vieux/sshfs:latest"))
    assert reply.status == 404
    assert reply.value["message"] == 'plugin "vieux/sshfs:latest" not found'


def test_plugins_are_none():
    assert call("GET", "/plugins").value == []
    assert call("GET", "/plugins", query={"filters": ['{"enabled":["true"]}']}).value == []
    reply = call("GET", "/plugins", query={"filters": ['{"colour":["red"]}']})
    assert (reply.status, reply.value["message"]) == (400, "invalid filter 'colour'")
    assert call("GET", "/plugins", query={"filters": ['{"enabled":["maybe"]}']}).status == 400


@pytest.mark.parametrize(("method", "path"), [
    ("GET", "/containers/x/checkpoints"), ("POST", "/containers/x/checkpoints"),
    ("DELETE", "/containers/x/checkpoints/one")])
def test_no_experiments(method, path):
    reply = call(method, path)
    assert (reply.status, reply.value["message"]) == (501, engine.NO_EXPERIMENT)


@pytest.mark.parametrize("path", ["/session", "/grpc", "/v1.51/session", "/nothing"])
def test_no_page(path):
    reply = call("POST", path)
    assert (reply.status, reply.value) == (404, {"message": "page not found"})


def test_there_is_no_build_cache_to_prune():
    """The docker CLI's `system prune` asks for it between other things."""
    reply = call("POST", "/build/prune")
    assert (reply.status, reply.value) == (200, {"CachesDeleted": None, "SpaceReclaimed": 0})
