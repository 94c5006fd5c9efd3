"""engine.pyz: what the build makes, and how it starts."""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import zipfile

import pytest
from conftest import PYTHON, TOP, Cli

TAG = subprocess.run(
    [PYTHON, "-c", "import sys; print(sys.implementation.cache_tag, end='')"],
    check=True,
    stdout=subprocess.PIPE,
    text=True,
).stdout
OTHER_PYTHONS = sorted(
    path
    for path in glob.glob(os.path.expanduser("~/.pyenv/versions/3.*/bin/python3"))
    if int(path.split("/3.")[1].split(".")[0]) >= 9
)


def build(*args, top=TOP, env=None):
    return subprocess.run(
        [PYTHON, "-B", str(top / "build_zipapp.py"), *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        env={**os.environ, **(env or {})},
    )


def without(pyz, target, unwanted):
    """A copy of the archive that lacks the members for which unwanted(name) is true."""
    with zipfile.ZipFile(pyz) as old, open(target, "wb") as file:
        file.write(b"#!/usr/bin/env python3\n")
        with zipfile.ZipFile(file, "w") as new:
            for info in old.infolist():
                if not unwanted(info.filename):
                    new.writestr(info, old.read(info))
    return target


def evaluate(pyz, code, python=PYTHON, env=None):
    """What code prints that runs in the place of main, inside the built archive."""
    done = subprocess.run(
        [python, "-c", LOAD, str(pyz), code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"], **(env or {})},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


LOAD = """
import sys, zipimport
archive, code = sys.argv[1:]
__loader__ = zipimport.zipimporter(archive)
text = __loader__.get_source("__main__").replace("\\nstart()\\n", "\\n")
exec(compile(text, "__main__.py", "exec"), globals())
module = engine_load()
module.vendored_install()
exec(code)
"""


@pytest.fixture
def missed(pyz, tmp_path):
    """engine.pyz without byte code for this Python, as if it were another one's."""
    return without(
        pyz, tmp_path / "engine.pyz", lambda name: name.startswith(TAG) or name == "__main__.pyc"
    )


def test_is_one_executable_file_below_the_limit(pyz):
    assert pyz.stat().st_mode & 0o111
    assert pyz.stat().st_size < 3_000_000
    assert pyz.read_bytes().startswith(b"#!/usr/bin/env python3\n")
    assert subprocess.run([pyz, "--help"], stdout=subprocess.PIPE, check=True).stdout


def test_byte_code_is_stored_and_few_members(pyz):
    with zipfile.ZipFile(pyz) as archive:
        stored = {
            info.filename for info in archive.infolist() if info.compress_type == zipfile.ZIP_STORED
        }
        assert {"__main__.py", "__main__.pyc", "help", TAG + "/engine"} <= stored
        assert len(archive.namelist()) <= 20


def test_licences_travel_inside(pyz):
    with zipfile.ZipFile(pyz) as archive:
        names = archive.namelist()
        assert b"Apache License" in archive.read("LICENSE")
    if "vendored" in names:
        assert [name for name in names if name.startswith("licenses/pyroute2/")]
        assert [name for name in names if name.startswith("licenses/pyzstd/")]


def test_two_builds_in_two_directories_are_equal(pyz, tmp_path):
    built = []
    for name in ("one", "two-with-a-longer-name"):
        top = tmp_path / name
        top.mkdir()
        for file in ("build_zipapp.py", "engine.py", "LICENSE"):
            shutil.copy(TOP / file, top)
        done = build("--cache", TOP / ".build", top=top)
        assert done.returncode == 0, done.stderr
        built.append((top / "engine.pyz").read_bytes())
    assert built[0] == built[1] == pyz.read_bytes()


def test_without_pip_it_builds_and_says_so(tmp_path):
    (tmp_path / "pip.py").write_text("raise SystemExit(1)\n")
    done = build(
        "--cache",
        tmp_path / "cache",
        "-o",
        tmp_path / "engine.pyz",
        env={"PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [
        "build_zipapp: built without pyroute2 and pyzstd (this Python has no pip): "
        "containers run all the same"
    ]
    assert subprocess.run(
        [PYTHON, tmp_path / "engine.pyz", "--version"], check=True, stdout=subprocess.PIPE
    ).stdout


def test_a_wheel_that_is_not_the_pinned_one_is_refused(tmp_path):
    wheel = tmp_path / "cache" / "wheels" / "cp311-x86_64-gnu" / "wheel"
    if not (TOP / ".build" / "wheels").exists():
        pytest.skip("built without the vendored packages")
    shutil.copytree(TOP / ".build", tmp_path / "cache")
    wheel.write_bytes(b"something else")
    done = build("--cache", tmp_path / "cache", "-o", tmp_path / "engine.pyz")
    assert done.returncode == 1 and "is not the pinned file" in done.stderr, done
    assert not (tmp_path / "engine.pyz").exists()


def test_unknown_python_compiles_once(missed, roots):
    cli = Cli(missed, roots)
    cli("--version").ok()
    (cached,) = glob.glob(roots.data + "/cache/*/*.engine")
    assert os.stat(cached).st_mode & 0o777 == 0o600
    before = os.stat(cached).st_mtime_ns
    cli("--version").ok()
    assert os.stat(cached).st_mtime_ns == before
    plant(cached, "def main_exit(argv): print('from the cache')")
    assert cli("--version").out == "from the cache\n"
    assert Cli(missed, roots)("--log-level", "info", "--version").out == "from the cache\n"


@pytest.mark.parametrize("spoil", ["readable", "truncated", "empty", "other magic number"])
def test_a_cache_that_cannot_be_trusted_is_ignored(missed, roots, spoil):
    cli = Cli(missed, roots)
    cli("--version").ok()
    (cached,) = glob.glob(roots.data + "/cache/*/*.engine")
    plant(cached, "def main_exit(argv): print('from the cache')")
    with open(cached, "r+b") as file:
        data = file.read()
        if spoil == "readable":
            os.fchmod(file.fileno(), 0o644)
        elif spoil == "truncated":
            file.truncate(len(data) - 7)
        elif spoil == "empty":
            file.truncate(0)
        else:
            file.seek(0)
            file.write(b"\0\0\0\0")
    assert "from the cache" not in cli("--version").ok().out


def plant(path, source):
    code = (
        "import marshal, sys; from importlib.util import MAGIC_NUMBER; "
        "source = 'def Code(space, data, index): exec(' + repr(sys.argv[2]) + ', space)'; "
        "code = marshal.dumps((compile(source, 'x', 'exec'),)); "
        "size = (len(code) + 16).to_bytes(4, 'little'); "
        "open(sys.argv[1], 'wb').write(MAGIC_NUMBER + size + bytes(8) + code)"
    )
    subprocess.run([PYTHON, "-c", code, path, source], check=True)


def test_data_root_that_cannot_be_written_is_no_obstacle(missed, roots):
    with open(roots.data, "w"):
        pass
    assert Cli(missed, roots)("--help").code == 0


@pytest.mark.parametrize("python", OTHER_PYTHONS)
def test_other_pythons_run_the_same_file(pyz, roots, python):
    cli = Cli(pyz, roots, python)
    assert cli("--version").ok().out == Cli(pyz, roots)("--version").out
    assert cli("ps").ok().out == Cli(pyz, roots)("ps").out


def vendored(pyz):
    with zipfile.ZipFile(pyz) as archive:
        if "vendored" not in archive.namelist():
            pytest.skip("built without the vendored packages")


@pytest.mark.parametrize("python", [PYTHON, *OTHER_PYTHONS])
def test_vendored_packages_are_found_inside(pyz, python, tmp_path):
    vendored(pyz)
    code = (
        "import pyzstd; z = pyzstd.ZstdCompressor(3); "
        "data = z.compress(b'x' * 100000) + z.flush(); "
        "assert pyzstd.decompress(data) == b'x' * 100000; "
        "import pyroute2.iproute.linux, pyroute2.nftables.main, pyroute2.nftables.expressions; "
        "print(pyroute2.__version__, pyroute2.iproute.linux.IPRoute.__name__)"
    )
    assert evaluate(pyz, code, python, {"ENGINE_DATA_ROOT": str(tmp_path)}) == "0.9.7 IPRoute"


def test_launcher_keeps_what_it_needs_in_memory(pyz, tmp_path):
    vendored(pyz)
    copy = shutil.copy(pyz, tmp_path / "engine.pyz")
    code = (
        "sys.meta_path[0].hold(); open(archive, 'wb').close(); "
        "import pyzstd, pyroute2.nftables.main; print('ok')"
    )
    assert evaluate(copy, code) == "ok"


SLOW = {
    "argparse", "asyncio", "dataclasses", "datetime", "email", "enum", "hashlib", "http", "json",
    "logging", "pyroute2", "pyzstd", "re", "socket", "ssl", "subprocess", "tarfile", "threading",
    "typing", "urllib",
}


@pytest.mark.parametrize("words", [("--help",), ("version",), ("ps",)])
def test_a_start_imports_nothing_slow(pyz, roots, words):
    """`make bench` takes the times; here is what they rest on."""
    argv = Cli(pyz, roots).argv(*words)
    argv[1:1] = ["-I", "-S", "-X", "importtime"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    seen = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert seen & SLOW == set()


def test_without_sqlite3_one_sentence_when_it_is_needed(pyz, roots, tmp_path):
    for name in ("sqlite3", "_sqlite3"):
        (tmp_path / (name + ".py")).write_text("raise ImportError('No module named _sqlite3')\n")
    env = {"PYTHONPATH": str(tmp_path)}
    cli = Cli(pyz, roots)
    assert cli("--version", env=env).ok().out
    assert cli("version", env=env).ok().out
    refused = cli("ps", env=env)
    assert refused.code == 1 and "sqlite3" in refused.err
    assert len(refused.err.splitlines()) == 1


def test_without_zlib_one_sentence(pyz):
    code = (
        "import sys; sys.modules['zlib'] = None; sys.argv = ['engine.pyz', 'version']; "
        f"import runpy; runpy.run_path({str(pyz)!r}, run_name='__main__')"
    )
    done = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 125 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and "no module zlib" in done.stderr


def test_seccomp_filter_inside_is_what_the_source_compiles(pyz):
    code = (
        "caps = CAPABILITIES_DEFAULT; made = seccomp_default_program(caps); "
        "own = seccomp_compile(seccomp_default_profile(machine_name()), None, caps); "
        "print(made == own, archive_member('seccomp') is not None)"
    )
    assert evaluate(pyz, "CODE.all(); globals().update(module.__dict__); " + code) == "True True"


def test_rows_of_tables_are_made_when_they_are_looked_up(pyz):
    code = (
        "t = module.COMMANDS; before = dict.__len__(t); row = t['ps']; "
        "print(before, row is t['container ls'], dict.__len__(t) < 6, 'nosuch' in t, "
        "len(list(t)) > 100, len(t.items()) == dict.__len__(t), len(module.ROUTES.values()) > 20)"
    )
    assert evaluate(pyz, code) == "0 True True False True True True"
