"""api_volumes: the endpoints, their statuses and their documents."""

from __future__ import annotations

import engine
import pytest
from container_help import bare_box  # noqa: F401


def test_the_life_of_a_volume(bare_box):  # noqa: F811
    client = bare_box.client
    made = client.post("/volumes/create", body={"Name": "data", "Labels": {"a": "1"}})
    assert made["Labels"] == {"a": "1"} and made["Options"] is None
    assert client.get("/volumes/data") == made
    assert client.get("/volumes") == {"Volumes": [made], "Warnings": None}
    assert client.get("/volumes", {"filters": {"name": ["x"]}})["Volumes"] == []
    client.delete("/volumes/data")
    with pytest.raises(engine.NotFound, match="get data: no such volume"):
        client.get("/volumes/data")
    assert client.post("/volumes/prune") == {"VolumesDeleted": [], "SpaceReclaimed": 0}


def test_no_swarm(bare_box):  # noqa: F811
    with pytest.raises(engine.Unavailable, match="not a swarm manager"):
        bare_box.client.post("/volumes/create", body={"Name": "data", "ClusterVolumeSpec": {}})
    reply = engine.http_dispatch(bare_box.engine, engine.Request("PUT", "/volumes/data"))
    assert (reply.status, reply.value["message"]) == (
        503, "volume update only valid for cluster volumes, but swarm is unavailable")


def test_usage(bare_box):  # noqa: F811
    bare_box.client.post("/volumes/create", body={"Name": "data"})
    with open(engine.volume_path(bare_box.store, "data") + "/x", "w") as file:
        file.write("12345")
    (shown,) = bare_box.client.get("/system/df")["Volumes"]
    assert shown["UsageData"] == {"RefCount": 0, "Size": 5}
