"""cli_networks: what the command line checks itself, and what it prints."""

import types

import pytest


def args(**given):
    default = {"subnet": [], "ip_range": [], "gateway": [], "aux_address": {},
               "ipam_driver": "default", "ipam_opt": {}}
    return types.SimpleNamespace(**{**default, **given})


def test_ranges_and_gateways_go_to_their_subnets(engine):
    made = engine.ipam_body(args(
        subnet=["10.0.0.0/24", "fd00::/64"], ip_range=["10.0.0.128/25"],
        gateway=["fd00::9", "10.0.0.9"], aux_address={"a": "10.0.0.5"}))
    assert made["Config"] == [
        {"Subnet": "10.0.0.0/24", "AuxiliaryAddresses": {"a": "10.0.0.5"},
         "IPRange": "10.0.0.128/25", "Gateway": "10.0.0.9"},
        {"Subnet": "fd00::/64", "AuxiliaryAddresses": {}, "Gateway": "fd00::9"}]


@pytest.mark.parametrize("given, text", [
    ({"gateway": ["10.0.0.1"]}, "every ip-range or gateway must have a corresponding subnet"),
    ({"subnet": ["10.0.0.0/24", "10.0.0.0/25"]}, "multiple overlapping subnet configuration"),
    ({"subnet": ["10.0.0.0"], "gateway": ["x"]}, "invalid subnet: invalid CIDR address: 10.0.0.0"),
    ({"subnet": ["10.0.0.0/24"], "gateway": ["10.1.0.1"]},
     "no matching subnet for gateway 10.1.0.1"),
    ({"subnet": ["10.0.0.0/24"], "ip_range": ["10.1.0.0/25"]},
     "no matching subnet for range 10.1.0.0/25"),
    ({"subnet": ["10.0.0.0/24"], "aux_address": {"a": "1.2.3.4"}},
     "no matching subnet for aux-address 1.2.3.4"),
    ({"subnet": ["10.0.0.0/24", "10.1.0.0/24"], "gateway": ["10.0.0.1", "10.0.0.2"]},
     r"cannot configure multiple gateways \(10.0.0.2, 10.0.0.1\) for the same subnet"),
])
def test_what_does_not_fit(engine, given, text):
    with pytest.raises(engine.InvalidParameter, match=text):
        engine.ipam_body(args(**given))


def test_times_as_go_prints_them(engine):
    assert engine._created_shown("2026-11-24T01:02:03.5Z") == "2026-11-24 01:02:03.5 +0000 UTC"
    assert engine._created_shown("2026-11-24T01:02:03+02:00") == (
        "2026-11-24 01:02:03 +0200 +0200")


def test_the_listing(cli):
    lines = cli("network", "ls").ok().out.splitlines()
    assert lines[0].split() == ["NETWORK", "ID", "NAME", "DRIVER", "SCOPE"]
    assert [line.split()[1:] for line in lines[1:]] == [
        ["bridge", "bridge", "local"], ["host", "host", "local"], ["none", "null", "local"]]
    assert cli("network", "ls", "--format", "{{.Name}} {{.IPv4}} {{.Internal}}", "-f",
               "driver=null").ok().out == "none true false\n"
    assert cli("network", "inspect", "-f", "{{.Driver}}", "none", "host").ok().out == "null\nhost\n"
    assert cli("network", "rm", "nosuch").err == (
        "Error response from daemon: network nosuch not found\n")
    assert cli("network", "rm", "-f", "nosuch").code == 0
    assert cli("network", "rm", "host").err == (
        "Error response from daemon: host is a pre-defined network and cannot be removed\n")
