"""api_system: ping, versions of documents, event filters."""

from __future__ import annotations

import engine
import pytest

EVENT = {
    "Type": "container",
    "Action": "exec_create: ls -l",
    "scope": "local",
    "Actor": {"ID": "abc123", "Attributes": {"name": "web", "image": "busybox:1", "a": "1"}},
}
IMAGE = {
    "Type": "image",
    "Action": "tag",
    "scope": "local",
    "Actor": {"ID": "sha256:ff", "Attributes": {"name": "busybox:1"}},
}


def call(method, path, **options):
    return engine.http_dispatch(
        options.pop("engine", None), engine.Request(method, path, **options)
    )


@pytest.mark.parametrize(("method", "body"), [("GET", b"OK"), ("HEAD", b"")])
def test_ping(method, body):
    reply = call(method, "/_ping")
    assert (reply.status, reply.data()) == (200, body)
    assert reply.headers["Api-Version"] == engine.API_VERSION
    assert reply.headers["Builder-Version"] == "1"


@pytest.mark.parametrize(
    ("filters", "fits"),
    [
        ({}, True),
        ({"type": ["container"]}, True),
        ({"type": ["image"]}, False),
        ({"type": ["image", "container"]}, True),
        ({"event": ["exec_create"]}, True),
        ({"event": ["exec"]}, False),
        ({"event": ["exec_create: ls -l"]}, True),
        ({"container": ["abc"]}, True),
        ({"container": ["web"]}, True),
        ({"container": ["db"]}, False),
        ({"image": ["busybox"]}, True),
        ({"image": ["busybox:1"]}, True),
        ({"image": ["busy"]}, False),
        ({"label": ["a"]}, True),
        ({"label": ["a=1"]}, True),
        ({"label": ["a=2"]}, False),
        ({"label": ["a", "b"]}, False),
        ({"scope": ["local"]}, True),
        ({"scope": ["swarm"]}, False),
        ({"type": []}, True),
    ],
)
def test_event_filters(filters, fits):
    assert engine.event_matches(EVENT, filters) is fits


def test_event_filters_of_an_image():
    assert engine.event_matches(IMAGE, {"image": ["busybox"]})
    assert engine.event_matches(IMAGE, {"image": ["sha256:ff"]})
    assert not engine.event_matches(IMAGE, {"container": ["x"]})


class Self:
    """An engine that knows its journal only."""

    store = None
    listeners: set = set()


@pytest.fixture
def journal(monkeypatch):
    asked = []

    def follow(store, since, until, stop_fd=-1):
        asked.append((since, until))
        yield from (EVENT, {**IMAGE, "Action": "create"})

    monkeypatch.setattr(engine, "event_follow", follow, raising=False)
    return asked


def test_events(journal):
    stream = call("GET", "/events", engine=Self(), query={"since": ["10"], "until": ["20.5"]})
    assert [engine.json_parse(line)["Type"] for line in stream.chunks] == ["container", "image"]
    assert journal == [(10 * 10**9, 20 * 10**9 + 5 * 10**8)]


def test_a_filter_that_is_none_asks_for_nothing(journal):
    query = {"filters": ['{"nope":["x"],"type":["container"]}']}
    stream = call("GET", "/events", engine=Self(), query=query)
    assert [engine.json_parse(line)["Type"] for line in stream.chunks] == ["container"]


def test_events_of_old_clients_lack_created_images(journal):
    stream = call("GET", "/v1.45/events", engine=Self())
    assert [engine.json_parse(line)["Type"] for line in stream.chunks] == ["container"]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"since": ["20"], "until": ["10"]}, "`since` time (20) cannot be after `until` time (10)"),
        ({"filters": ["{"]}, "invalid filter"),
    ],
)
def test_events_refuse(query, message):
    reply = call("GET", "/events", engine=Self(), query=query)
    assert (reply.status, reply.value) == (400, {"message": message})


def test_events_refuse_a_time_as_dockerd_does():
    reply = call("GET", "/events", engine=Self(), query={"since": ["nonsense"]})
    message = 'strconv.ParseInt: parsing "nonsense": invalid syntax'
    assert (reply.status, reply.value) == (500, {"message": message})


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/build"),
    ],
)
def test_what_is_not_there_answers_501(method, path):
    reply = call(method, path)
    assert reply.status == 501
    assert "not supported" in reply.value["message"]


INFO = {
    "RegistryConfig": {},
    "SecurityOptions": ["name=seccomp,profile=builtin"],
    "ContainerdCommit": {"ID": "x"},
    "RuncCommit": {"ID": ""},
    "InitCommit": {"ID": ""},
    "Containerd": {},
    "Runtimes": {"runc": {"path": "runc", "status": {}}},
    "CDISpecDirs": [],
    "FirewallBackend": None,
    "DiscoveredDevices": [],
}


@pytest.mark.parametrize(
    ("version", "there", "gone"),
    [
        ((1, 51), "CDISpecDirs Containerd DiscoveredDevices", "BridgeNfIptables KernelMemory"),
        ((1, 49), "Containerd BridgeNfIptables", "DiscoveredDevices"),
        ((1, 43), "BridgeNfIptables", "CDISpecDirs Containerd FirewallBackend KernelMemory"),
        ((1, 24), "SystemStatus KernelMemory ClusterStore", "CDISpecDirs"),
    ],
)
def test_info_has_the_fields_of_the_version(version, there, gone):
    info = engine.info_for_version(
        {key: dict(value) if isinstance(value, dict) else value for key, value in INFO.items()},
        version,
    )
    assert not [key for key in there.split() if key not in info]
    assert not [key for key in gone.split() if key in info]
    assert ("Expected" in info["RuncCommit"]) is (version < (1, 49))
    registry = info["RegistryConfig"]
    assert ("AllowNondistributableArtifactsCIDRs" in registry) is (version < (1, 47))
    security = info["SecurityOptions"]
    assert security == (["seccomp"] if version < (1, 25) else ["name=seccomp,profile=builtin"])
