"""api_networks: shapes and statuses of the endpoints."""

import pytest
from container_help import bare_box  # noqa: F401

INSPECT = ["Name", "Id", "Created", "Scope", "Driver", "EnableIPv4", "EnableIPv6", "IPAM",
           "Internal", "Attachable", "Ingress", "ConfigFrom", "ConfigOnly", "Containers", "Options",
           "Labels"]


def test_list_and_inspect(bare_box):  # noqa: F811
    found = bare_box.client.get("/networks")
    assert sorted(network["Name"] for network in found) == ["bridge", "host", "none"]
    assert bare_box.client.get("/networks/") == found
    shown = bare_box.client.get("/networks/bridge")
    assert list(shown) == INSPECT
    assert shown["Options"]["com.docker.network.bridge.default_bridge"] == "true"
    assert bare_box.client.get("/networks", {"filters": {"type": ["custom"]}}) == []
    assert [one["Name"] for one in bare_box.client.get(
        "/networks", {"filters": {"dangling": ["false"], "name": ["o"]}})] != []


def test_a_configuration_for_others(bare_box):  # noqa: F811
    client = bare_box.client
    made = client.post("/networks/create", None, {
        "Name": "config", "ConfigOnly": True, "IPAM": {"Config": [{"Subnet": "10.9.0.0/24"}]}})
    shown = client.get("/networks/" + made["Id"])
    assert shown["ConfigOnly"] and shown["Driver"] == "null"
    for body, status in (
            ({"Name": "config"}, 409), ({"Name": "x", "ConfigFrom": {"Network": "no"}}, 404),
            ({"Name": "x", "ConfigFrom": {"Network": "config"}, "Options": {"a": "b"}}, 403)):
        with pytest.raises(Exception) as refused:
            client.post("/networks/create", None, body)
        assert refused.value.status == status
    assert client.post("/networks/prune")["NetworksDeleted"] is None
    client.delete("/networks/config")
    with pytest.raises(Exception, match="network config not found"):
        client.get("/networks/config")
