"""templates: what Go's text/template answered (data/templates/cases.json), and where Docker's typed
values make a difference."""

from __future__ import annotations

import json
import pathlib

import engine
import hypothesis.strategies as st
import pytest
from hypothesis import given

#: [template, "text" or "error", what Go 1.26 answered], all for one value of plain maps.
GOLDEN = json.loads(
    pathlib.Path(__file__).with_name("data").joinpath("templates", "cases.json").read_text())

CONTAINER = {
    "Id": "abc", "Name": "/web", "Created": "2026-01-02T03:04:05Z", "Args": [],
    "State": {"Status": "running", "Running": True, "Pid": 42},
    "Config": {"Env": ["A=1", "B=2"], "Labels": {"a": "1", "x.y": "dot", "Up": "2"}, "Cmd": None,
               "Volumes": None, "ExposedPorts": {"80/tcp": {}}},
    "HostConfig": {"Binds": None, "Init": None, "Memory": 0, "NanoCpus": 1.5,
                   "PortBindings": {}, "LogConfig": {"Type": "json-file", "Config": {}}},
    "NetworkSettings": {
        "Ports": {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}], "81/tcp": None},
        "Networks": {"bridge": {"IPAddress": "172.17.0.2", "Aliases": None}}},
    "Mounts": [{"Type": "bind", "Source": "/a", "RW": True}],
}


def as_maps(value):
    """The value as Go's map[string]interface{} all the way down."""
    if isinstance(value, dict):
        return engine.MapValue({key: as_maps(item) for key, item in value.items()})
    return [as_maps(item) for item in value] if isinstance(value, list) else value


def outcome(text, value, *args):
    try:
        return "text", engine.Template(text).render(value, *args)
    except engine.TemplateError as error:
        assert str(error).startswith("template parsing error: ")
        return "error", str(error)[len("template parsing error: "):]


@pytest.mark.parametrize("text, kind, want", GOLDEN["cases"])
def test_as_go(text, kind, want):
    assert outcome(text, as_maps(GOLDEN["value"])) == (kind, want)


@pytest.mark.parametrize("text, want", [
    ("{{.State}}", "{running true 42}"),
    ("{{.State.Status}} {{.State.Pid}}", "running 42"),
    ("{{.Config.Env}} {{index .Config.Env 1}}", "[A=1 B=2] B=2"),
    ("{{.Config.Labels}}", "map[Up:2 a:1 x.y:dot]"),
    ("{{.Config.Labels.a}} {{.Config.Labels.Nope}}", "1 <no value>"),
    ('{{index .Config.Labels "x.y"}}|{{index .Config.Labels "nope"}}|', "dot||"),
    ("{{.Config.Cmd}} {{.Config.Volumes}} {{.HostConfig.Init}} {{.HostConfig.Binds}}",
     "[] map[] <nil> []"),
    ("{{json .Config.Cmd}} {{json .Config.Volumes}} {{json .HostConfig.Init}}", "null null null"),
    ("{{json .Config.Labels}}", '{"Up":"2","a":"1","x.y":"dot"}'),
    ("{{.Config.ExposedPorts}}", "map[80/tcp:{}]"),
    ("{{.NetworkSettings.Ports}}", "map[80/tcp:[{0.0.0.0 8080}] 81/tcp:[]]"),
    ('{{(index (index .NetworkSettings.Ports "80/tcp") 0).HostPort}}', "8080"),
    ("{{range $p, $b := .NetworkSettings.Ports}}{{$p}}={{(index $b 0).HostPort}}{{break}}{{end}}",
     "80/tcp=8080"),
    ("{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", "172.17.0.2"),
    ("{{.NetworkSettings.Networks.bridge.IPAddress}}", "172.17.0.2"),
    ("{{.NetworkSettings.Networks.other}}", "<no value>"),
    ("{{.HostConfig.LogConfig}}", "{json-file map[]}"),
    ("{{.Mounts}}", "[{bind /a true}]"),
    ("{{range .Mounts}}{{.Type}}:{{.RW}}{{end}}", "bind:true"),
    ("{{if .State.Health}}{{.State.Health.Status}}{{else}}none{{end}}", "none"),
    ("{{with .State.Health}}x{{else}}y{{end}} {{len .Args}}", "y 0"),
    ("{{range .Args}}x{{else}}none{{end}}", "none"),
    ("{{println .Id}}", "abc\n"),
])
def test_inspect(text, want):
    assert outcome(text, CONTAINER) == ("text", want)


@pytest.mark.parametrize("text, want", [
    ("{{.Foo}}", 'template: :1:2: executing "" at <.Foo>: map has no entry for key "Foo"'),
    ("{{.State.Foo}}",
     'template: :1:8: executing "" at <.State.Foo>: map has no entry for key "Foo"'),
    ("{{.Id.Foo}}",
     'template: :1:5: executing "" at <.Id.Foo>: can\'t evaluate field Foo in type interface {}'),
    ('{{index (index .NetworkSettings.Ports "9/tcp") 0}}',
     'template: :1:2: executing "" at <index (index .NetworkSettings.Ports "9/tcp") 0>: error'
     " calling index: reflect: slice index out of range"),
    ("{{join .Id 1}}", 'template: :1:7: executing "" at <.Id>: wrong type for value;'
                       " expected []string; got string"),
])
def test_inspect_refuses(text, want):
    assert outcome(text, CONTAINER) == ("error", want)


def test_rows():
    row = {"ID": "abc", "Names": "web", "Label": {"a": "1"}.get}
    assert outcome('{{.ID}}: {{.Label "a"}}', row) == ("text", "abc: 1")
    assert outcome("{{json .}}", row) == ("text", '{"ID":"abc","Names":"web"}')
    text = outcome("{{.Nope}}", row, "*formatter.ContainerContext")[1]
    assert text == ('template: :1:2: executing "" at <.Nope>: can\'t evaluate field Nope in type'
                    " *formatter.ContainerContext")
    assert outcome("{{.Label}}", row)[0] == "error"
    assert outcome('{{.ID "a"}}', row)[0] == "error"


def test_header():
    template = engine.Template('{{.ID}} {{upper .Names}} {{truncate .ID 3}} {{join .Names ","}}'
                               ' {{.Label "com.example.some-name"}} {{pad .ID 1 1}}|{{.Nope}}')
    names = {"ID": "Id of it", "Names": "Names"}
    assert template.render(names, header=True) == (
        "Id of it Names Id of it Names some name  Id of it |<no value>")


def test_bytes_that_were_no_text():
    value = {"Cmd": ["\udcff\udcfe"], "Name": "日本"}
    assert outcome("{{index .Cmd 0}}", value) == ("text", "\udcff\udcfe")
    assert outcome("{{len (index .Cmd 0)}}", value) == ("text", "2")
    assert outcome("{{truncate .Name 4}}", value) == ("text", "日\udce6")


@pytest.mark.parametrize("text", [
    "{{" + "(" * 5000 + "1" + ")" * 5000 + "}}", "{{if 1}}" * 3000 + "{{end}}" * 3000,
    '{{define "r"}}{{template "r"}}{{end}}{{template "r"}}',
    '{{define "a"}}{{template "b"}}{{end}}{{define "b"}}{{template "a"}}{{end}}{{template "a"}}',
    "{{" + "not (" * 3000 + "1" + ")" * 3000 + "}}",
])
def test_depth_is_an_error(text):
    kind, message = outcome(text, {})
    assert kind == "error" and "exceeded" in message


def test_a_long_chain_is_no_depth():
    assert outcome("{{.a" + ".a" * 5000 + "}}", {"a": {}}) == ("text", "<no value>")
    assert outcome("x" * 10**6 + "{{1}}", {})[1].endswith("x1")


PIECES = st.sampled_from(
    "{{ }} {{- -}} . .a .b.c $ $x := = | ( ) \" ` ' 1 2.5 -3 0x 1e if else end range with define "
    'template block break continue eq and len index printf "%v" "%*d" "%[9]d" /* */ , nil true '
    "{{end}} {{else}} {{range .l}} {{if .a}} {{.a}} {{$x:=1}} {{$x}} é \n".split(" ") + [" "])


@given(st.lists(PIECES, max_size=14).map("".join))
def test_nothing_but_template_errors(text):
    outcome(text, {"a": "x", "b": {"c": 1}, "l": [1, None, {"A": 2}]})
    outcome("{{" + text + "}}", {"a": "x", "b": {"c": 1}, "l": [1, None, {"A": 2}]})


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_every_value_prints(value):
    for text in ("{{.}}", '{{printf "%v %d %s %q %x %5.1f" . . . . . .}}', "{{.|print|len}}",
                 "{{html .}}{{js .}}{{urlquery .}}", "{{json .}}"):
        outcome(text, value)
    if not isinstance(value, int) or value < 10_000:        # a number is counted to, as in Go
        outcome("{{range .}}{{.}}{{end}}", value)


def test_what_an_image_may_leave_unset_has_its_zero_value():
    shown = engine.Template("{{.Created}}|{{.Config.ExposedPorts}}|{{.Config.ArgsEscaped}}")
    assert shown.render({"Id": "x", "Config": {"User": ""}}) == "|map[]|false"
