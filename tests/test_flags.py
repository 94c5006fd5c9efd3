"""pflag's rules and the kinds of values."""

from __future__ import annotations

import engine
import pytest
from engine import Flag

FLAGS = (
    Flag("-a --all"),
    Flag("-e --env", "list"),
    Flag("--filter", "filter"),
    Flag("-i --interactive"),
    Flag("--keep", "bool", True),
    Flag("--label-map", "map", target="Labels"),
    Flag("-m --memory", "bytes", target="HostConfig.Memory"),
    Flag("-n --last", "int", -1),
    Flag("--network --net", "string", target="HostConfig.NetworkMode"),
    Flag("--parts", "strings"),
    Flag("--old", "int", deprecated="use --last"),
    Flag("--cpus", "decimal"),
    Flag("--interval", "duration"),
    Flag("--weight", "uint16"),
)


def parse(*words, **more):
    return engine.flags_parse(FLAGS, list(words), **more)


def test_defaults():
    args = parse()
    assert (
        args.all,
        args.env,
        args.filter,
        args.keep,
        args.label_map,
        args.last,
        args.network,
    ) == (False, [], {}, True, {}, -1, "")
    assert not args.given("all") and args.rest == []


@pytest.mark.parametrize(
    "words, name, value",
    [
        (["-a"], "all", True),
        (["--all=false"], "all", False),
        (["-a=T"], "all", True),
        (["-ai"], "interactive", True),
        (["-ian3"], "last", 3),
        (["-n", "-5"], "last", -5),
        (["-n=0x10"], "last", 16),
        (["--last", "017"], "last", 15),
        (["-n3", "-n4"], "last", 4),
        (["-e", "A=1", "-eB", "--env=C=2"], "env", ["A=1", "B", "C=2"]),
        (["--filter", "a=b", "--filter", " A = c "], "filter", {"a": ["b", "c"]}),
        (["--label-map", "a=1=2", "--label-map", "b"], "label_map", {"a": "1=2", "b": ""}),
        (["--parts", "a,b", "--parts", '"c,d",e'], "parts", ["a", "b", "c,d", "e"]),
        (["-m", "64m"], "memory", 64 << 20),
        (["--net", "none"], "network", "none"),
        (["--cpus", "1.5"], "cpus", 1500000000),
        (["--cpus=1/4"], "cpus", 250000000),
        (["--interval", "1m30s"], "interval", 90 * 10**9),
        (["--keep=0"], "keep", False),
        (["--weight", "65535"], "weight", 65535),
        (["-e", "--all"], "env", ["--all"]),
    ],
)
def test_values(words, name, value):
    assert getattr(parse(*words), name) == value


def test_positions():
    assert parse("x", "-a", "y").rest == ["x", "y"]
    args = parse("x", "-a", "y", interspersed=False)
    assert args.rest == ["x", "-a", "y"] and not args.all
    assert parse("-a", "--", "-n", "--", "-x").rest == ["-n", "--", "-x"]
    assert parse("-", "-a").rest == ["-"]


@pytest.mark.parametrize(
    "words, text",
    [
        (["--xyz"], "unknown flag: --xyz"),
        (["-xa"], "unknown shorthand flag: 'x' in -xa"),
        (["-ax"], "unknown shorthand flag: 'x' in -ax"),
        (["-n"], "flag needs an argument: 'n' in -n"),
        (["--last"], "flag needs an argument: --last"),
        (["---x"], "bad flag syntax: ---x"),
        (["--=x"], "bad flag syntax: --=x"),
        (
            ["-n", "x"],
            'invalid argument "x" for "-n, --last" flag: '
            'strconv.ParseInt: parsing "x": invalid syntax',
        ),
        (
            ["--last=99999999999999999999"],
            'invalid argument "99999999999999999999" for "-n, --last" flag: '
            'strconv.ParseInt: parsing "99999999999999999999": value out of range',
        ),
        (
            ["--all="],
            'invalid argument "" for "-a, --all" flag: '
            'strconv.ParseBool: parsing "": invalid syntax',
        ),
        (
            ["--weight", "99999"],
            'invalid argument "99999" for "--weight" flag: '
            'strconv.ParseUint: parsing "99999": value out of range',
        ),
        (
            ["--cpus", "x"],
            'invalid argument "x" for "--cpus" flag: failed to parse x as a rational number',
        ),
        (
            ["--cpus", "0.0000000001"],
            'invalid argument "0.0000000001" for "--cpus" flag: value is too precise',
        ),
        (
            ["-m", "zz"],
            'invalid argument "zz" for "-m, --memory" flag: invalid size: \'zz\'',
        ),
        (
            ["--interval", "1"],
            'invalid argument "1" for "--interval" flag: time: missing unit in duration "1"',
        ),
        (
            ["--filter", 'a"b'],
            'invalid argument "a\\"b" for "--filter" flag: '
            "bad format of filter (expected name=value)",
        ),
        (
            ["--filter", "a"],
            'invalid argument "a" for "--filter" flag: bad format of filter (expected name=value)',
        ),
    ],
)
def test_errors(words, text):
    with pytest.raises(engine.UsageError) as caught:
        parse(*words)
    assert (str(caught.value), caught.value.exit, caught.value.trailer) == (text, 125, "usage")


def test_help_flags_win_over_nothing():
    assert parse("--help").help and parse("-h").help and parse("-ah").help
    assert not parse("x", "--help", interspersed=False).help
    with pytest.raises(engine.UsageError):
        parse("--xyz", "--help")


def test_deprecated_warns():
    assert parse("--old", "3").warnings == ["Flag --old has been deprecated, use --last"]


def test_bodies():
    args = parse("-m", "1g", "--net", "host", "--label-map", "a=b")
    assert engine.body_fill({"Image": "x"}, args, FLAGS) == {
        "Image": "x",
        "Labels": {"a": "b"},
        "HostConfig": {"Memory": 1 << 30, "NetworkMode": "host"},
    }


def test_help_layout():
    lines = engine.help_flags(FLAGS, 60).split("\n")
    assert lines[0].startswith("  -a, --all")
    assert not any("--old" in line for line in lines)
    assert any("      --keep" in line and "(default true)" in line for line in lines)
    assert any("-n, --last int" in line and "(default -1)" in line for line in lines)
