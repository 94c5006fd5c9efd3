"""main: roles, exit codes, and what is imported from inside engine.pyz."""

from __future__ import annotations

import ast
import importlib
import json
import lzma
import marshal
import os
import subprocess
import sys

import engine
import pytest
from conftest import PYTHON, TOP

import build_zipapp

SOURCES = {
    "pyroute2": (True, b"version = 'inside'\n"),
    "pyroute2.link": (False, b"from . import version as seen\n"),
    "pyroute2.broken": (False, b"1 / 0\n"),
}


@pytest.fixture
def finder():
    """A finder over SOURCES that imports really go through, for one test."""
    for name in [name for name in sys.modules if name.partition(".")[0] in engine.VENDORED]:
        del sys.modules[name]
    members = {"vendored": lzma.compress(marshal.dumps(SOURCES))}
    found = engine.VendoredFinder(members.get)
    sys.meta_path.insert(0, found)
    yield found
    sys.meta_path.remove(found)
    for name in [name for name in sys.modules if name.partition(".")[0] in engine.VENDORED]:
        del sys.modules[name]


def run_source(code):
    return subprocess.run(
        [PYTHON, "-B", "-c", code],
        cwd=TOP,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )


def test_the_source_runs_unbuilt():
    done = subprocess.run(
        [PYTHON, "-B", TOP / "engine.py", "--version"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("Docker version ")


@pytest.mark.parametrize(
    ("statement", "code"),
    [
        ("return 7", 7),
        ("return None", 0),
        ("sys.exit(3)", 3),
        ("sys.exit()", 0),
        ("sys.exit('text')", 1),
        ("1 / 0", 125),
    ],
)
def test_exit_codes(statement, code):
    lines = ["import sys, engine", "def main(argv):", "    " + statement, "engine.main = main"]
    done = run_source("\n".join([*lines, "engine.main_exit([])"]))
    assert done.returncode == code
    assert ("ZeroDivisionError" in done.stderr) == (code == 125)


def test_modules_come_from_inside(finder):
    link = importlib.import_module("pyroute2.link")
    assert link.seen == "inside"
    assert link.__spec__.origin == engine.PROGRAM + "/pyroute2.link"
    with pytest.raises(ZeroDivisionError):
        importlib.import_module("pyroute2.broken")


def test_other_names_are_left_to_the_next_finder(finder):
    assert finder.find_spec("json") is None
    assert finder.find_spec("pyroute2x") is None
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("pyroute2.absent")


def test_byte_code_of_another_python_is_not_used():
    magic = b"\0\0\r\n"
    members = {
        sys.implementation.cache_tag + "/vendored": lzma.compress(magic + b"nonsense"),
        "vendored": lzma.compress(marshal.dumps(SOURCES)),
    }
    assert (
        engine.VendoredFinder(members.get).find_spec("pyroute2.link").name == "pyroute2.link"
    )


def test_nothing_vendored_is_nothing_found():
    finder = engine.VendoredFinder({}.get)
    finder.hold()
    assert finder.find_spec("pyroute2") is None
    assert finder.find_spec(engine.ZSTD_EXTENSION) is None


def test_held_members_are_not_read_again():
    members = {"vendored": lzma.compress(marshal.dumps(SOURCES))}
    finder = engine.VendoredFinder(members.get)
    finder.hold()
    members.clear()
    assert finder.find_spec("pyroute2") is not None


def extension_key():
    libc = "gnu" if "glibc" in (os.confstr("CS_GNU_LIBC_VERSION") or "") else "musl"
    return f"cp{sys.version_info[0]}{sys.version_info[1]}-{os.uname().machine}-{libc}"


def solid_of(index, plain):
    return json.dumps(index).encode() + b"\n" + lzma.compress(plain)


@pytest.mark.parametrize("offset", [0, 1, 3_000_000])
def test_extension_is_cut_out_of_the_solid_blob(offset):
    image = os.urandom(70_000)
    solid = solid_of(
        {extension_key(): [offset, len(image)]}, bytes(offset) + image + b"rest" * 1000
    )
    assert engine.zstd_extension(solid) == image


def test_extension_for_another_python_is_none():
    assert engine.zstd_extension(solid_of({"cp27-vax-gnu": [0, 4]}, b"text")) is None


def test_an_import_that_fails_is_one_line():
    lines = ["import sys, engine", "def main(argv):", "    import nothing_like_it"]
    done = run_source("\n".join([*lines, "engine.main = main", "engine.main_exit([])"]))
    assert done.returncode == 125 and done.stderr.count("\n") == 1
    assert "no module nothing_like_it" in done.stderr


def test_the_start_of_the_archive_refuses_old_pythons_before_anything_else():
    lines = build_zipapp.MAIN.splitlines()
    check = next(at for at, line in enumerate(lines) if "version_info" in line)
    imports = [at for at, line in enumerate(lines) if "import" in line and line[:1] in "if"]
    assert [lines[at] for at in imports if at < check] == ["import sys"]
    ast.parse(build_zipapp.MAIN, feature_version=(3, 4))
    assert 'f"' not in build_zipapp.MAIN and build_zipapp.MAIN.isascii()
