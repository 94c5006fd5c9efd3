"""namespaces: clone as a fork, new namespaces, joining, numbers."""

import os
import random
import subprocess
import sys

import engine
import pytest
from kernel_help import in_child


def exit_code(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_fork_gives_a_whole_python():
    pid = engine.ns_fork()
    if pid == 0:
        os._exit(7 if os.getppid() else 8)
    assert exit_code(pid) == 7


def test_fork_in_a_fresh_interpreter_may_import_and_collect():
    code = ("import sys, os; sys.path.insert(0, '.'); import engine\n"
            "for n in range(3):\n"
            "    pid = engine.ns_fork()\n"
            "    if pid == 0:\n"
            "        import gc, json, threading; gc.collect()\n"
            "        t = threading.Thread(target=lambda: None); t.start(); t.join()\n"
            "        os._exit(engine.ns_fork() and 9)\n"
            "    assert os.waitpid(pid, 0)[1] == 9 << 8\n"
            "import decimal\n")
    root = os.path.dirname(engine.__file__)
    subprocess.run([sys.executable, "-B", "-c", code], cwd=root, check=True)


def test_children_do_not_draw_the_same_random_numbers():
    drawn = set()
    for _ in range(2):
        drawn.add(in_child_by_clone(lambda: random.getrandbits(64)))
    assert len(drawn) == 2


def in_child_by_clone(function):
    reader, writer = os.pipe()
    pid = engine.ns_fork()
    if pid == 0:
        os.write(writer, str(function()).encode())
        os._exit(0)
    os.close(writer)
    content = os.read(reader, 100)
    os.close(reader)
    os.waitpid(pid, 0)
    return content


def test_failed_clone_leaves_the_interpreter_usable():
    with pytest.raises(OSError, match="clone: Invalid argument"):
        engine.ns_clone(engine.CLONE_NEWNS | 0x200)      # CLONE_FS does not go with it
    assert exit_code(subprocess.Popen([sys.executable, "-c", "import threading"]).pid) == 0


def test_namespace_number_is_that_of_the_link():
    assert f"net:[{engine.ns_inode('self', 'network')}]" == os.readlink("/proc/self/ns/net")


def test_number_of_a_missing_process():
    with pytest.raises(FileNotFoundError):
        engine.ns_inode(2**22 + 1, "network")


def test_process_name():
    def name():
        engine.process_name("engine:test")
        with open("/proc/self/comm") as file:
            return file.read()
    assert in_child(name) == "engine:test\n"


@pytest.mark.root
def test_clone_is_born_into_new_namespaces():
    reader, writer = os.pipe()
    go, gone = os.pipe()
    names = ("mount", "uts", "ipc", "network", "pid")
    flags = 0
    for name in names:
        flags |= engine.NAMESPACES[name][1]
    pid = engine.ns_clone(flags)
    if pid == 0:
        os.write(writer, b"%d" % os.getpid())
        os.read(go, 1)
        os._exit(0)
    assert os.read(reader, 10) == b"1"
    for name in names:
        assert engine.ns_inode(pid, name) != engine.ns_inode("self", name)
    assert engine.ns_inode(pid, "user") == engine.ns_inode("self", "user")
    held = engine.ns_open(pid, "uts")
    number = engine.ns_inode(pid, "uts")

    def join():
        engine.ns_join(held, "uts")
        return engine.ns_inode("self", "uts")
    assert in_child(join) == number
    os.write(gone, b"x")
    assert exit_code(pid) == 0
    for fd in (held, reader, writer, go, gone):
        os.close(fd)


@pytest.mark.root
def test_clone_parent_makes_a_sibling():
    reader, writer = os.pipe()
    pid = engine.ns_fork()
    if pid == 0:
        child = engine.ns_clone(engine.CLONE_PARENT)
        if child == 0:
            os._exit(33)
        os.write(writer, b"%d" % child)
        os._exit(0)
    sibling = int(os.read(reader, 20))
    assert exit_code(pid) == 0
    assert exit_code(sibling) == 33
    os.close(reader)
    os.close(writer)
