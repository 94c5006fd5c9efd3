"""cli_volumes: what the commands print, and what they ask."""

from __future__ import annotations

import pytest


@pytest.fixture
def made(cli):
    for name in ("v10", "v9"):
        assert cli("volume", "create", name, "--label", "a=1").out == name + "\n"
    return cli


def test_list(made):
    assert made("volume", "ls").out == "DRIVER    VOLUME NAME\nlocal     v9\nlocal     v10\n"
    assert made("volume", "ls", "-q").out == "v9\nv10\n"
    assert made("volume", "ls", "--format", "raw", "-f", "name=v9").out == (
        "name: v9\ndriver: local\n\n")
    assert made("volume", "list", "--format", '{{.Name}} {{.Label "a"}} {{.Links}} {{.Size}}',
                "-f", "name=v9").out == "v9 1 N/A N/A\n"
    assert made("volume", "ls", "--cluster").out == (
        "VOLUME NAME   GROUP     DRIVER    AVAILABILITY   STATUS\n")


def test_inspect_and_remove(made):
    assert made("volume", "inspect", "-f", "{{.Name}} {{.Scope}}", "v9").out == "v9 local\n"
    assert made("volume", "inspect", "-f", "{{.Status}} {{json .UsageData}}", "v9").out == (
        "map[] null\n")
    assert "can't evaluate field Nope in type volume.Volume" in made(
        "volume", "inspect", "-f", "{{.Nope}}", "v9").err
    assert '"Status"' not in made("volume", "inspect", "-f", "json", "v9").out
    assert made("volume", "inspect", "-f", "{{json .}}", "v9").json()["Name"] == "v9"
    told = made("volume", "inspect", "none")
    assert (told.code, told.out, told.err) == (
        1, "[]\n", "Error response from daemon: get none: no such volume\n")
    told = made("volume", "rm", "v9", "none")
    assert (told.code, told.out, told.err) == (
        1, "v9\n", "Error response from daemon: get none: no such volume\n")
    assert made("volume", "rm", "-f", "none").out == "none\n"


def test_prune(made):
    told = made("volume", "prune", "-f")
    assert told.out == "Total reclaimed space: 0B\n"
    told = made("volume", "prune", "-fa", "--filter", "all=1")
    assert "cannot specify both --all and --filter all=1" in told.err
    told = made("volume", "prune", "-fa", "--filter", "label=a")
    assert told.out == "Deleted Volumes:\nv10\nv9\n\nTotal reclaimed space: 0B\n"


def test_what_needs_a_swarm(made):
    assert "only update cluster volumes" in made("volume", "update", "v9").err
    assert "no such volume" in made("volume", "update", "none").err
    assert "not a swarm manager" in made("volume", "create", "x1", "--group", "g").err
    assert "both --name and as a positional arg" in made(
        "volume", "create", "--name", "a1", "b1").err
