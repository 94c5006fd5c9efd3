"""Images of the host's own programs: what is found is enough to run; nothing is executed for it."""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
import tarfile

import engine
import pytest


def harvested(*programs):
    return b"".join(engine.harvest_archive(list(programs)))


def names(data):
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {member.name: member for member in tar}


def in_root(root, *command):
    """Output of a command inside the unpacked image."""
    done = subprocess.run(
        ["chroot", root, *command],
        env={"PATH": engine.HARVEST_PATH},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture
def root(tmp_path):
    (tmp_path / "root").mkdir(0o755)
    return tmp_path / "root"


@pytest.mark.root
def test_programs_run(root):
    data = harvested("sh", "ls", "cat", "tar")
    assert data == harvested("sh", "ls", "cat", "tar")
    engine.tree_unpack(str(root), io.BytesIO(data).read)
    assert in_root(root, "sh", "-c", "echo $((6 * 7))") == "42\n"
    assert "nsswitch.conf" in in_root(root, "ls", "/etc")
    assert in_root(root, "cat", "/etc/group").startswith("root:x:0:\n")
    assert in_root(root, "/bin/sh", "-c", "ls -ln /etc/passwd").split()[2:4] == ["0", "0"]
    found = names(data)
    assert found["tmp"].mode == 0o1777 and found["root"].mode == 0o700
    sh = os.path.realpath(engine.program_find("sh"))
    place = next(name for name in found if name.endswith("bin/sh"))
    assert found[place].isfile()  # not the link to dash
    assert found[place].mode == stat.S_IMODE(os.stat(sh).st_mode)
    assert sum(member.size for member in found.values()) < 30 << 20


@pytest.mark.root
def test_python_runs(root):
    data = harvested("python3")
    engine.tree_unpack(str(root), io.BytesIO(data).read)
    program = engine.program_find("python3")
    code = (
        "import ctypes, hashlib, json, sqlite3, ssl, subprocess, sys, zlib;"
        "print(json.dumps({'a': 1}), sys.version_info[0])"
    )
    assert in_root(root, program, "-c", code) == '{"a": 1} 3\n'
    assert not [name for name in names(data) if "/test/" in name or "site-packages" in name]


@pytest.mark.root
def test_scripts_bring_their_interpreters(root, tmp_path):
    script = tmp_path / "tool"
    script.write_text("#!/usr/bin/env -S sh -e\necho from a script\n")
    script.chmod(0o755)
    engine.tree_unpack(str(root), io.BytesIO(harvested(str(script))).read)
    assert in_root(root, str(script)) == "from a script\n"


def test_links_between_directories(tmp_path):
    """A directory's link stays one; a file's link becomes the file, once for all its names."""
    program = os.path.realpath(engine.program_find("cat"))
    (tmp_path / "real").mkdir()
    shutil.copy(program, tmp_path / "real/one")
    os.symlink("one", tmp_path / "real/two")
    os.symlink("real", tmp_path / "linked")
    found = names(harvested(str(tmp_path / "linked/two"), str(tmp_path / "linked/one")))
    base = str(tmp_path)[1:]
    assert found[base + "/linked"].linkname == "real"
    one, two = found[base + "/real/one"], found[base + "/real/two"]
    assert one.isfile() and two.islnk() and two.linkname == base + "/real/one"


def test_missing(tmp_path):
    for name, text in (
        ("no-such-program", "^no program 'no-such-program' on this host: it is not in PATH$"),
        ("/no/such", "^no program '/no/such' on this host$"),
        (str(tmp_path), "^no program '.*' on this host$"),
    ):
        with pytest.raises(engine.NotFound, match=text):
            engine.harvest_archive([name])
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    with pytest.raises(engine.NotFound, match="^no program '/no/such/interpreter' on this host$"):
        engine.harvest_archive([str(script)])


def test_damaged_elf(tmp_path):
    with open(os.path.realpath(engine.program_find("cat")), "rb") as file:
        data = file.read()
    path = tmp_path / "damaged"
    for size in list(range(4, 200, 7)) + [1000, 5000]:
        path.write_bytes(data[:size])
        path.chmod(0o755)
        try:
            engine.harvest_archive([str(path)])
        except engine.EngineError as refused:
            assert "\n" not in str(refused)
    for at in range(0, 1000, 3):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
        try:
            engine.harvest_archive([str(path)])
        except engine.EngineError as refused:
            assert "\n" not in str(refused)


def test_changes():
    program = engine.program_find("sh")
    changes = engine.harvest_changes(["ls", "sh"])
    assert changes == ["ENV PATH=" + engine.HARVEST_PATH, f'CMD ["{program}"]']
    settings = engine.changes_apply({}, changes)
    assert settings["Cmd"] == [program]


def test_as_ldd_says():
    """The libraries are those that the loader itself would take."""
    if not shutil.which("ldd"):
        pytest.skip("no ldd")
    for name in ("ls", "tar", "bash"):
        path = engine.program_find(name)
        listed = subprocess.run(["ldd", path], stdout=subprocess.PIPE, text=True, check=True).stdout
        want = {os.path.realpath(word) for word in listed.split() if word.startswith("/")}
        harvest = engine._Harvest()
        harvest.program(path, 0)
        assert want <= set(harvest.files.values()), name


def test_ld_so_files(tmp_path):
    assert engine._ld_cache(str(tmp_path / "none")) == {}
    (tmp_path / "cache").write_bytes(b"glibc-ld.so.cache1.1" + b"\xff" * 100)
    assert engine._ld_cache(str(tmp_path / "cache")) == {}
    (tmp_path / "d").mkdir()
    (tmp_path / "d/one.conf").write_text(
        "# comment\n/opt/one/lib # more\n/opt/two,/opt/three\nhwcap 0 nosegneg\n"
    )
    (tmp_path / "ld.so.conf").write_text("include d/*.conf\n/last\n")
    assert engine._ld_conf(str(tmp_path / "ld.so.conf"), 0) == [
        "/opt/one/lib",
        "/opt/two",
        "/opt/three",
        "/last",
    ]
    (tmp_path / "ld.so.conf").write_text("include ld.so.conf\n")
    assert engine._ld_conf(str(tmp_path / "ld.so.conf"), 0) == []


def test_rpath_and_origin(tmp_path):
    compiler = shutil.which("gcc") or shutil.which("cc")
    if not compiler:
        pytest.skip("no compiler")
    (tmp_path / "lib").mkdir()
    (tmp_path / "bin").mkdir()
    (tmp_path / "f.c").write_text("int f(void) { return 7; }\n")
    (tmp_path / "m.c").write_text("int f(void); int main(void) { return f() - 7; }\n")
    os.chdir(tmp_path)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", "lib/libf.so", "f.c"], check=True)
    for flags in ("--disable-new-dtags", "--enable-new-dtags"):
        subprocess.run(
            [compiler, "-o", "bin/m", "m.c", "-Llib", "-lf", f"-Wl,-rpath,$ORIGIN/../lib,{flags}"],
            check=True,
        )
        if os.path.lexists("m"):
            os.unlink("m")
        os.symlink("bin/m", "m")
        found = names(harvested(str(tmp_path / "m")))
        base = str(tmp_path)[1:]
        assert found[base + "/lib/libf.so"].isfile() and found[base + "/bin/m"].isfile()
        assert found[base + "/m"].issym()  # or its $ORIGIN would be another


@pytest.mark.root
@pytest.mark.skipif(not shutil.which("musl-gcc"), reason="needs musl-tools")
def test_musl(root, tmp_path):
    """musl has another loader, no cache, and a path file; glibc's libraries are not its own."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "f.c").write_text("int f(void) { return 7; }\n")
    (tmp_path / "m.c").write_text(
        "#include <stdio.h>\nint f(void);\nint main(void) { printf(\"%d\\n\", f()); return 0; }\n"
    )
    subprocess.run(
        ["musl-gcc", "-shared", "-fPIC", "-o", "lib/libf.so", "f.c"], cwd=tmp_path, check=True
    )
    rpath = f"-Wl,-rpath,{tmp_path}/lib"
    subprocess.run(
        ["musl-gcc", "-o", "m", "m.c", "-Llib", "-lf", rpath], cwd=tmp_path, check=True
    )
    data = harvested(str(tmp_path / "m"))
    engine.tree_unpack(str(root), io.BytesIO(data).read)
    assert in_root(root, str(tmp_path / "m")) == "7\n"
    assert not [name for name in names(data) if name.endswith("libc.so.6")]
