"""The house rules of engine.py, checked on its text, its syntax tree and its byte code.

Run as a program it shows the building: `make toc` lists the sections, `make show S=cgroups` one.
"""

from __future__ import annotations

import ast
import builtins
import dis
import pathlib
import re
import sys
import types

TESTS = pathlib.Path(__file__).resolve().parent
SOURCE = TESTS.parent.joinpath("engine.py").read_text()
LINES = SOURCE.split("\n")
TREE = ast.parse(SOURCE)
RULE = "# " + "=" * 77
BANNER = re.compile(rf"^{RULE}\n# (\w+) -- (.+)\n{RULE}$", re.M)
SECTIONS = [(SOURCE.count("\n", 0, m.start()) + 1, m[1], m[2]) for m in BANNER.finditer(SOURCE)]
ENDS = [start for start, *_ in SECTIONS[1:]] + [len(LINES) + 1]
NAMES = [name for _, name, _ in SECTIONS]

IMPORTS_AT_START = {"__future__", "_json", "_socket", "errno", "os", "struct", "sys", "time"}
IMPORTS_NEVER = {"argparse", "dataclasses", "enum", "http", "logging", "subprocess", "typing"}
#: http.server frames bytes for the API process and nobody else.
HTTP_SECTIONS = {"server"}
FORKS = {"fork", "forkpty", "ns_clone", "ns_clone_parent", "ns_fork", "sys_clone", "sys_clone3"}
#: init forks for `--init`: the first process of a container reaps, a second one is the program.
FORKING_SECTIONS = {"namespaces", "launcher", "init", "entering", "runtime", "monitor", "relay"}
#: One line a kernel call: these bind a name at module level, `sys_setns = libc("setns", ...)`.
BINDING_SECTIONS = {"syscalls"}


def section_of(line):
    """Index of the section that a line is in, -1 above the first."""
    return sum(start <= line for start, *_ in SECTIONS) - 1


def section_name(line):
    at = section_of(line)
    return NAMES[at] if at >= 0 else ""


def defined_names(node):
    targets = getattr(node, "targets", [getattr(node, "target", None)])
    names = [n.id for t in targets if t for n in ast.walk(t) if isinstance(n, ast.Name)]
    return [*names, node.name] if hasattr(node, "name") else names


HOME = {name: section_of(node.lineno) for node in TREE.body for name in defined_names(node)}
FUNCTIONS = [n for n in ast.walk(TREE) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
CLASSES = [n for n in ast.walk(TREE) if isinstance(n, ast.ClassDef)]
IMPORTS = [n for n in ast.walk(TREE) if isinstance(n, (ast.Import, ast.ImportFrom))]


def globals_used(code):
    """(line, name) of every global that code and the functions in it load; locals don't count."""
    line = code.co_firstlineno
    starts = dict(dis.findlinestarts(code))
    for op in dis.get_instructions(code):
        line = starts.get(op.offset) or line
        if op.opname in ("LOAD_GLOBAL", "LOAD_NAME") and op.argval in HOME:
            yield line, op.argval
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield from globals_used(const)


CODE = compile(SOURCE, "engine.py", "exec", dont_inherit=True)
USES = [(section_of(line), HOME[name], line, name) for line, name in globals_used(CODE)]


def imported(node):
    names = [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
    return {name.partition(".")[0] for name in names if name}


def typing_only():
    """Line numbers below `if TYPE_CHECKING:`, which nothing executes."""
    blocks = [
        n for n in TREE.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"
    ]
    return {line for n in blocks for line in range(n.lineno, n.end_lineno + 1)}


def test_contents_match_banners():
    listed = re.findall(r"^    (\w+) +(.+)$", ast.get_docstring(TREE, clean=False), re.M)
    assert listed == [(name, contract) for _, name, contract in SECTIONS]


def test_banners_say_who_runs_a_section():
    assert [n for start, n, _ in SECTIONS if not LINES[start + 2].startswith("# Runs in: ")] == []


def test_every_section_has_tests():
    assert [
        n for n in NAMES if not [*TESTS.glob(f"test_{n}.py"), *TESTS.glob(f"test_{n}_*.py")]
    ] == []


def test_sections_use_only_names_from_above():
    assert [f"line {line}: {name}" for here, home, line, name in USES if home > here] == []


def test_every_name_is_defined_once():
    seen = {}
    for node in TREE.body:
        for name in set(defined_names(node)):
            seen.setdefault(name, []).append(node.lineno)
    assert {name: lines for name, lines in seen.items() if len(lines) > 1} == {}


def test_names_exist():
    known = {*HOME, *dir(builtins), "__file__", "__name__"}
    known |= {a.asname or a.name.partition(".")[0] for n in IMPORTS for a in n.names}
    unknown = set()
    todo = [CODE]
    while todo:
        code = todo.pop()
        todo += [const for const in code.co_consts if isinstance(const, types.CodeType)]
        unknown |= {
            op.argval
            for op in dis.get_instructions(code)
            if op.opname == "LOAD_GLOBAL" and op.argval not in known
        }
    assert unknown == set()


def test_underscore_is_private_to_its_section():
    assert [
        f"line {line}: {name}"
        for here, home, line, name in USES
        if name.startswith("_") and home not in (here, -1)
    ] == []


def test_module_level_holds_no_state():
    wrong = []
    for node in TREE.body:
        if isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
            names = [n for n in defined_names(node) if n.strip("_") != n.strip("_").upper()]
            a_type = (
                isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "namedtuple"
            )
            if names and not a_type and section_name(node.lineno) not in BINDING_SECTIONS:
                wrong.append(f"line {node.lineno}: {', '.join(names)}")
    wrong += [f"line {n.lineno}: global" for n in ast.walk(TREE) if isinstance(n, ast.Global)]
    assert wrong == []


def test_imports_at_start_are_few():
    skip = typing_only()
    top = [
        n for n in TREE.body if isinstance(n, (ast.Import, ast.ImportFrom)) and n.lineno not in skip
    ]
    assert set().union(*map(imported, top)) <= IMPORTS_AT_START


def test_slow_modules_are_never_imported():
    skip = typing_only()
    assert [
        f"line {n.lineno}: {name}"
        for n in IMPORTS
        if n.lineno not in skip
        for name in imported(n) & IMPORTS_NEVER
        if not (name == "http" and section_name(n.lineno) in HTTP_SECTIONS)
    ] == []


def test_forks_stay_where_one_thread_runs():
    calls = [
        (n.lineno, getattr(n.func, "attr", getattr(n.func, "id", "")))
        for n in ast.walk(TREE)
        if isinstance(n, ast.Call)
    ]
    assert [
        f"line {line}: {name}"
        for line, name in calls
        if name in FORKS and section_name(line) not in FORKING_SECTIONS
    ] == []


def test_init_imports_nothing():
    inside = ("rootfs", "init")
    assert [f"line {n.lineno}" for n in IMPORTS if section_name(n.lineno) in inside] == []


def test_sizes():
    wrong = [
        f"line {n.lineno}: {n.name} has {n.end_lineno - n.lineno + 1} lines"
        for n in FUNCTIONS
        if n.end_lineno - n.lineno >= 60
    ]
    wrong += [
        f"line {n.lineno}: class {n.name} has {n.end_lineno - n.lineno + 1} lines"
        for n in CLASSES
        if n.end_lineno - n.lineno >= 400
    ]
    wrong += [
        f"section {name} has {end - start} lines"
        for (start, name, _), end in zip(SECTIONS, ENDS)
        if end - start > 820
    ]
    assert wrong == []


def test_public_names_have_docstrings():
    top = [n for n in TREE.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    inner = [
        m
        for n in top
        if isinstance(n, ast.ClassDef)
        for m in n.body
        if isinstance(m, ast.FunctionDef) and not n.name.startswith("_")
    ]
    assert [
        f"line {n.lineno}: {n.name}"
        for n in [*top, *inner]
        if not n.name.startswith("_") and not ast.get_docstring(n)
    ] == []


def test_signatures_are_annotated():
    wrong = []
    nested = {id(m) for n in FUNCTIONS for m in ast.walk(n) if m is not n and m in FUNCTIONS}
    for node in FUNCTIONS:
        if id(node) in nested:
            continue
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        bare = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
        if bare:
            wrong.append(f"line {node.lineno}: {node.name}: {', '.join(bare)}")
    assert wrong == []


def test_text_is_finished():
    words = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    assert [
        f"line {n}: {line.strip()}" for n, line in enumerate(LINES, 1) if words.search(line)
    ] == []


def test_oldest_python_can_parse_it():
    ast.parse(SOURCE, feature_version=(3, 9))


if __name__ == "__main__":
    for (start, name, contract), end in zip(SECTIONS, ENDS):
        if not sys.argv[1:]:
            print(f"{start:6} {end - start:5} {name:16} {contract}")
        elif name == sys.argv[1]:
            print("\n".join(LINES[start - 1 : end - 1]))
