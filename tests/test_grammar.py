"""grammar: the tree of a template, and the place and words of what is wrong with one."""

from __future__ import annotations

import engine
import pytest

FUNCTIONS = {"len", "print"}


def tree(text):
    nodes, templates = engine.template_tree(text, FUNCTIONS)
    return [(node.kind, engine.node_text(node)) for node in nodes], sorted(templates)


def test_tree():
    assert tree("a{{.B.C}}{{if .D}}x{{end}}") == ([
        ("text", "a"), ("action", "{{.B.C}}"), ("if", "{{if .D}}")], [])
    assert tree('{{define "x"}}y{{end}}{{template "x" .}}{{block "z" 1}}{{end}}') == ([
        ("text", ""), ("template", '{{template "x" .}}'), ("template", '{{template "z" 1}}')],
        ["x", "z"])


@pytest.mark.parametrize("text", [
    "{{$x := .A | len}}", "{{len (print .A $.B) `r` \"s\" 'c' 0x1F}}", "{{(print .A).B.C}}",
    "{{$x := 1}}", "{{print nil true false .}}",
])
def test_nodes_write_themselves(text):
    assert tree(text)[0][0][1] == text


@pytest.mark.parametrize("text, want", [
    ("a  {{- 1 -}}  b", ["a", "{{1}}", "b"]), ("a {{/* x */}} b", ["a ", " b"]),
    ("a {{- /* x */ -}} b", ["a", "b"]), ("{{-1}}", ["{{-1}}"]), ("a\n{{- /**/}}b", ["a", "b"]),
])
def test_trim(text, want):
    assert [text for _, text in tree(text)[0]] == want


@pytest.mark.parametrize("text, line, message", [
    ("\n\n{{nope}}", 3, 'function "nope" not defined'),
    ("{{if 1}}\n{{else}}\n", 3, "unexpected EOF"),
    ("{{print\n\n1", 3, "unclosed action started at :1"),
    ("{{print\n@", 2, 'unexpected "@" in command'),
    ("{{print\n\x01", 2, "unrecognized character in action: U+0001 in action started at :1"),
    ("{{/*", 1, "unclosed comment"),
    ("{{$x}}", 1, 'undefined variable "$x"'),
    ("{{end}}", 1, "unexpected {{end}}"),
    ("{{print (1}}", 1, "unclosed left paren"),
    ("{{print 1)}}", 1, "unexpected right paren"),
])
def test_errors(text, line, message):
    with pytest.raises(engine.TemplateError) as error:
        tree(text)
    found = str(error.value)
    assert found.startswith(f"template parsing error: template: :{line}: ")
    assert message.split(" in ")[0] in found
    assert (error.value.status, error.value.exit) == (400, 1)
