"""The byte code in engine.pyz: cut into units, and made whole again as it is used."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import zipfile

import pytest
from conftest import PYTHON, TOP
from test_build import LOAD, OTHER_PYTHONS, evaluate

import build_zipapp

LOADER = build_zipapp.file_bytes("build_zipapp.py")


class Loaded:
    """A small module, loaded as the archive loads the engine's."""

    def __init__(self, source):
        made = build_zipapp.engine_code(source.encode(), LOADER, (), ())
        index = build_zipapp.marshal.loads(memoryview(made)[16:])
        self.space = {"__name__": "small"}
        names = {"__name__": "loader"}
        exec(index[-1], names)
        self.code = names["Code"](self.space, made, index)

    def __getattr__(self, name):
        return self.code.find(name)


def test_names_are_made_when_they_are_mentioned():
    small = Loaded("A = 1\nB = [A]\n\ndef f():\n    return B\n\ndef g():\n    return f()\n")
    assert set(small.space) & {"A", "B", "f", "g"} == set()
    function = small.g
    assert set(small.space) & {"A", "B", "f", "g"} == {"g"}
    assert function() == [1]
    assert set(small.space) & {"A", "B", "f", "g"} == {"A", "B", "f", "g"}
    assert small.g is function and function.__code__.co_firstlineno == 7
    with pytest.raises(AttributeError, match="absent"):
        small.absent


SIGNATURES = """
LIMIT = 7
def plain(a, b=2, *rest, c, d=LIMIT, **named):
    return a, b, rest, c, d, named
def only(a, /, b):
    return a, b
def fresh(a=[]):
    a.append(1)
    return a
def count(n):
    for each in range(n):
        yield each
"""


def test_every_kind_of_argument_reaches_the_function():
    for call in ("plain(1, c=3)", "plain(1, 5, 6, 7, c=3, d=4, e=5)", "plain(c=1, a=2, b=3)",
                 "only(1, b=2)", "[fresh(), fresh()]", "list(count(3))"):
        names = {}
        exec(SIGNATURES, names)
        small = Loaded(SIGNATURES)
        for name in ("plain", "only", "fresh", "count"):
            small.code.find(name)
        assert eval(call, small.space) == eval(call, names), call
    with pytest.raises(TypeError, match=r"plain\(\) missing 1 required keyword-only argument"):
        small.plain(1)
    assert small.plain.__kwdefaults__ == {"d": 7} and small.plain.__defaults__ == (2,)


CLASSES = """
SIZE = 3
class Base:
    __slots__ = ("x",)
    def __init__(self, x=SIZE): self.x = x
    def name(self): return "base"
    @property
    def twice(self): return self.x * 2
    @twice.setter
    def twice(self, value): self.x = value // 2
    @staticmethod
    def add(a, b): return a + b
    @classmethod
    def make(cls, x): return cls(x)
    def __eq__(self, other): return self.x == other.x
    def __enter__(self): return self
    def __exit__(self, *_): self.x = None
class Child(Base):
    own = 5
    def name(self): return "child of " + super().name()
    def kept(self, value=own): return value
    def __secret(self): return 1
    def open(self): return self.__secret()
"""


def test_methods_of_every_kind():
    small = Loaded(CLASSES)
    child = small.Child.make(4)
    assert (child.name(), child.twice, child.add(1, 2), child.kept()) == ("child of base", 8, 3, 5)
    child.twice = 10
    assert child == small.Child(5) and child.open() == 1 and small.Base().x == 3
    with child as same:
        assert same is child
    assert child.x is None
    assert small.Child.open.__qualname__ == "Child.open"


FILLED = """
TABLE = {}
def register(name):
    def keep(function):
        TABLE[name] = function
        return function
    return keep
@register("one")
def first():
    return 1
def local():
    register = []
    register.append(1)
    return register
for _n in range(3):
    TABLE[_n] = _n
def _more():
    register("two")(lambda: LAST)
_more()
LAST = 9
OTHER = {}
OTHER.update(a=1)
"""


def test_a_table_comes_with_all_that_fills_it():
    small = Loaded(FILLED)
    assert list(small.TABLE) == ["one", 0, 1, 2, "two"]
    assert small.TABLE["one"]() == 1 and small.TABLE["two"]() == 9
    assert "OTHER" not in small.space and small.OTHER == {"a": 1}
    small = Loaded(FILLED)
    assert small.local() == [1] and "TABLE" not in small.space, "a local name is not the global one"
    assert small.first() == 1


KEYED = """
COMMANDS: dict = {}
ROUTES: dict = {}
def command(name, **more):
    def keep(function):
        for each in (name, *more.get("aliases", ())):
            COMMANDS[each] = function
        return function
    return keep
def route(method, pattern):
    def keep(function):
        ROUTES.setdefault((method, pattern.split("/")[1]), []).append(function)
        return function
    return keep
@command("b", aliases=("c d",))
def cmd_b():
    return 1
@command("a")
def cmd_a():
    return 2
@route("GET", "/x/{id}")
@route("PUT", "/x")
def first():
    return 3
@route("GET", "/x")
def second():
    return 4
"""


def test_rows_that_know_their_keys_are_made_when_they_are_looked_up():
    small = Loaded(KEYED)
    assert dict.__len__(small.COMMANDS) == 0 and "cmd_a" not in small.space
    assert "c d" in small.COMMANDS and "cmd_a" not in small.space
    assert small.COMMANDS["b"]() == 1 and small.COMMANDS.get("nosuch") is None
    assert [each() for each in small.ROUTES.get(("GET", "x"))] == [3, 4]
    assert len(small.ROUTES.items()) == 2 and sorted(small.COMMANDS) == ["a", "b", "c d"]
    small = Loaded(KEYED)
    small.code.all()
    assert [each() for each in small.COMMANDS.values()] == [1, 1, 2]
    assert small.ROUTES["PUT", "x"][0]() == 3


def test_statements_run_in_the_order_of_the_source():
    """What a function needs that is called while a class is made may lie on both its sides."""
    small = Loaded(
        "SEEN = []\n"
        "def note(x):\n    SEEN.append(x)\n    return later if x > 9 else x\n"
        "A = note(1)\n"
        "class Base:\n    at = note(2)\n    def make(self): return Child()\n"
        "class Child(Base):\n    at = note(3)\n"
        "def later(): return C\n"
        "C = Child().make().at\n")
    assert small.C == 3 and small.SEEN == [1, 2, 3]
    assert small.later() == 3


def test_a_statement_that_nobody_would_run_is_refused():
    with pytest.raises(SystemExit, match=r"engine.py:2: nobody"):
        Loaded("A = 1\nprint(A)\n")


def test_threads_that_meet_in_one_stub():
    source = "T0 = 0\ndef f0(a, *, b=T0): return a + b\n" + "".join(
        f"T{n} = [T{n - 1}, {n}][1]\ndef f{n}(a, *, b=T{n}): return f{n - 1}(a, b=0) + b\n"
        for n in range(1, 60))
    wrong, before = [], sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(5):
            small, start = Loaded(source), threading.Barrier(8)

            def work(small=small, start=start):
                start.wait()
                for n in (59, 30, 0, 45):
                    try:
                        if small.code.find(f"f{n}")(1) != n + 1:
                            wrong.append(n)
                    except Exception as failure:
                        wrong.append(failure)

            threads = [threading.Thread(target=work) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        sys.setswitchinterval(before)
    assert wrong == []


#: Compares the module that the archive makes, in a random order, with the module made at once.
COMPARE = """
import random, types
exec(get("packer.py"), space := {"__name__": "packer"})
tree = space["Slim"]().visit(space["ast"].parse(get("engine.py")))
whole = types.ModuleType("engine")
whole.__file__, whole.__loader__ = module.__file__, __loader__
sys.modules["engine"] = whole
exec(compile(tree, "engine.pyz/engine.py", "exec", dont_inherit=True, optimize=2), whole.__dict__)
sys.modules["engine"] = module
names = [name for name in whole.__dict__ if name[:2] != "__"]
random.Random(SEED).shuffle(names)
if SEED == 0:
    CODE.ahead(0)
    CODE.ahead(1)
    split = space["Splitter"](tree, "engine.pyz/engine.py")
    late = [n for n in split.reached(space["LAUNCHER_ROOTS"], ()) if n in CODE.stubs]
    assert late == [], late
for name in names[: len(names) // 2]:
    found = getattr(module, name)
    if SEED == 1 and type(found) is types.FunctionType:
        CODE.load(CODE.names.index(name), found)
CODE.all()
assert not CODE.stubs and not CODE.pending
def functions(thing):
    if isinstance(thing, property):
        return [f for f in (thing.fget, thing.fset, thing.fdel) if f]
    thing = getattr(thing, "__func__", thing)
    return [thing] if type(thing) is types.FunctionType else []
seen = 0
def same(mine, theirs, name):
    global seen
    if type(mine).__name__ == "Table":      # its rows come in the order in which they are asked for
        assert set(mine) == set(theirs), name
        mine = {key: mine[key] for key in theirs}
        if name == "ROUTES":
            mine, theirs = ({key: sorted(rows, key=lambda row: row[0])
                             for key, rows in each.items()} for each in (mine, theirs))
    assert type(mine) is type(theirs) or theirs.__class__.__module__ == "engine", name
    if isinstance(mine, type) and mine.__module__ == "engine":
        assert list(mine.__dict__) == list(theirs.__dict__), name
        assert [b.__name__ for b in mine.__mro__] == [b.__name__ for b in theirs.__mro__], name
        for key in mine.__dict__:
            if key not in ("__dict__", "__weakref__", "__static_attributes__"):
                same(mine.__dict__[key], theirs.__dict__[key], name + "." + key)
    elif functions(mine):
        for a, b in zip(functions(mine), functions(theirs)):
            seen += 1
            # CPython compiles a call of an imported module's function differently where it sees
            # the import: which it doesn't for a lambda or what has super(), in their statement.
            inside = a.__name__ == "<lambda>" or a.__code__.co_freevars
            assert a.__code__ == b.__code__ or inside and (
                a.__code__.co_consts == b.__code__.co_consts
                and set(a.__code__.co_names) == set(b.__code__.co_names)), name
            assert a.__qualname__ == b.__qualname__ and a.__doc__ == b.__doc__, name
            assert a.__code__.co_firstlineno == b.__code__.co_firstlineno, name
            assert repr(a.__kwdefaults__) == repr(b.__kwdefaults__), name
            same(a.__defaults__, b.__defaults__, name)
    elif isinstance(mine, (tuple, list)):
        assert len(mine) == len(theirs), name
        for a, b in zip(mine, theirs):
            same(a, b, name)
    elif isinstance(mine, dict):
        assert list(map(str, mine)) == list(map(str, theirs)), name
        for a, b in zip(mine.values(), theirs.values()):
            same(a, b, name)
    elif isinstance(mine, (set, frozenset)):
        assert mine == theirs, name
    elif "0x" not in repr(mine):
        assert repr(mine) == repr(theirs), name
missing = [name for name in names if name not in module.__dict__]
assert missing == [], missing
for name in names:
    same(module.__dict__[name], whole.__dict__[name], name)
print(seen > 1000)
"""


AS_BUILT = {"PYTHONNODEBUGRANGES": "1", "PYTHONHASHSEED": "0"}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_name_is_as_if_the_module_had_been_run_at_once(pyz, seed):
    assert evaluate(pyz, COMPARE.replace("SEED", str(seed)), env=AS_BUILT) == "True"


@pytest.mark.parametrize("python", OTHER_PYTHONS)
def test_every_name_of_other_pythons(pyz, tmp_path, python):
    env = {"ENGINE_DATA_ROOT": str(tmp_path), **AS_BUILT}
    assert evaluate(pyz, COMPARE.replace("SEED", "2"), python, env) == "True"


def test_an_archive_that_is_overwritten_is_not_missed(pyz, tmp_path):
    copy = shutil.copy(pyz, tmp_path / "engine.pyz")
    code = "open(archive, 'wb').close(); CODE.all(); print(module.size_human(1200))"
    assert evaluate(copy, code) == "1.2kB"


def test_a_traceback_shows_the_lines_of_the_source_and_no_loader(pyz):
    code = (
        "def broken(words): raise ZeroDivisionError('made up')\n"
        "module._run\n"
        "module._run = broken\n"
        "module.main_exit(['ps'])"
    )
    done = subprocess.run(
        [PYTHON, "-c", LOAD, str(pyz), code], capture_output=True, text=True, check=False
    )
    lines = done.stderr.splitlines()
    assert done.returncode == 125 and lines[-1] == "ZeroDivisionError: made up"
    assert [line.split(" in ")[1] for line in lines if line.startswith("  File")] == [
        "_code", "main", "cli_main", "broken"]
    assert "    code = _run(words)" in lines


def test_the_source_inside_has_every_line_in_its_place(pyz):
    with zipfile.ZipFile(pyz) as archive:
        bare = archive.read("engine.py")
    whole = (TOP / "engine.py").read_bytes()
    assert bare.count(b"\n") == whole.count(b"\n")
    assert build_zipapp.sections_of(bare) == build_zipapp.sections_of(whole)
    codes = [[(code.co_name, code.co_firstlineno, code.co_varnames, code.co_names)
              for code in build_zipapp.code_walk(compile(text, "engine.py", "exec", optimize=2))]
             for text in (bare, whole)]
    assert codes[0] == codes[1]
