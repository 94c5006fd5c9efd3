"""syscalls: binding, errors, numbers, paths that cannot leave a root."""

import errno
import os
import struct
import subprocess
import sys

import engine
import pytest

CALLS = {name: value for name, value in vars(engine).items() if isinstance(value, engine.Call)}


def test_importing_engine_loads_no_ctypes():
    code = "import sys, engine; sys.exit('ctypes' in sys.modules)"
    root = os.path.dirname(engine.__file__)
    assert subprocess.run([sys.executable, "-B", "-c", code], cwd=root, check=False).returncode == 0


def test_every_call_binds_and_is_named_after_its_variable():
    engine.syscalls_bind()
    for name, call in CALLS.items():
        assert call.function is not None, name
        assert name.removeprefix("sys_").startswith(call.name), name


def test_failure_is_an_oserror_with_call_and_path():
    with pytest.raises(OSError, match="umount2: ") as caught:
        engine.sys_umount2("/nowhere/at/all", 0, path="/nowhere/at/all")
    assert caught.value.errno in (errno.ENOENT, errno.EPERM)
    assert caught.value.filename == "/nowhere/at/all"
    with pytest.raises(OSError, match="setns: Bad file descriptor"):
        engine.sys_setns(999, 0)


def test_a_path_with_a_nul_inside_never_reaches_the_kernel():
    with pytest.raises(Exception, match="NUL"):
        engine.sys_umount2("/a\0b", 0)


def test_raw_numbers_are_rows_of_one_or_four():
    for call in CALLS.values():
        if isinstance(call, engine.RawCall):
            assert len(call.numbers) in (1, len(engine.SYSCALL_MACHINES)), call.name


def test_another_machine_gets_one_sentence(monkeypatch):
    names = os.uname()
    other = os.uname_result((*names[:4], "sparc64"))
    monkeypatch.setattr(os, "uname", lambda: other)
    with pytest.raises(engine.Unsupported, match="sparc64.*x86_64, aarch64, armv7l, riscv64"):
        engine.machine_name()


def test_pidfd_and_prctl_work():
    fd = engine.sys_pidfd_open(os.getpid(), 0)
    engine.sys_pidfd_send_signal(fd, 0, None, 0)
    os.close(fd)
    assert engine.sys_prctl(3, 0, 0, 0, 0) in (0, 1, 2)


def test_buffer_is_written_by_the_kernel():
    limits = engine.sys_buffer(16)
    engine.sys_prlimit64(0, 7, None, limits)
    soft, hard = struct.unpack("=2Q", limits.raw)
    assert 0 < soft <= hard


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "root" / "etc").mkdir(parents=True)
    (tmp_path / "root" / "etc" / "name").write_text("inside")
    (tmp_path / "name").write_text("outside")
    os.symlink("/etc/name", tmp_path / "root" / "absolute")
    os.symlink("../../../name", tmp_path / "root" / "climbing")
    os.symlink("/proc/self/root/etc", tmp_path / "root" / "magic")
    fd = os.open(tmp_path / "root", os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_open_in_root_resolves_links_inside(tree):
    fd = engine.open_in_root(tree, "absolute", os.O_RDONLY)
    assert os.read(fd, 10) == b"inside"
    assert not os.get_inheritable(fd)
    os.close(fd)


@pytest.mark.parametrize("path", ["climbing", "../name", "/../name"])
def test_open_in_root_never_leaves(tree, path):
    with pytest.raises(FileNotFoundError):
        engine.open_in_root(tree, path, os.O_RDONLY)


def test_open_in_root_refuses_magic_links():
    fd = os.open("/", os.O_PATH | os.O_DIRECTORY)
    with pytest.raises(OSError) as caught:
        engine.open_in_root(fd, "/proc/self/root/etc", os.O_RDONLY)
    os.close(fd)
    assert caught.value.errno == errno.ELOOP


def test_open_in_root_creates_with_mode(tree):
    before = os.umask(0)
    fd = engine.open_in_root(tree, "/etc/new", os.O_WRONLY | os.O_CREAT, 0o640)
    os.umask(before)
    assert os.fstat(fd).st_mode & 0o777 == 0o640
    os.close(fd)
