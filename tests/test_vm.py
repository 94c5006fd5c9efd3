"""tests/vm: what the small machines' console says, which modules come first, what can be built."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import TOP

sys.path.insert(0, os.path.join(TOP, "tests", "vm"))
import machine
import module_order

NONCE = "0123abcd"


def mark(what, value):
    return b"\x1e@@VM %s %s %s@@" % (NONCE.encode(), what, value)


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_only_what_the_script_writes_is_shown_however_it_arrives(step):
    shown = []
    console = machine.Console(NONCE, shown.append)
    data = b"boot\n" + mark(b"START", b"1.5") + b"one \x1e two\n" + mark(b"END", b"7")
    data += b"--- kernel log\n" + mark(b"OFF", b"0")
    for at in range(0, len(data), step):
        console.feed(data[at : at + step])
    assert b"".join(shown) == b"one \x1e two\n"
    assert (console.state, console.status) == ("off", 7)


def test_a_mark_of_another_boot_is_text():
    shown = []
    console = machine.Console(NONCE, shown.append)
    console.feed(mark(b"START", b"1") + b"\x1e@@VM ffff END 0@@" + b"." * 100)
    assert console.state == "run" and console.status is None
    assert b"END 0" in b"".join(shown)


def test_modules_come_after_what_they_need():
    lines = ["k/a.ko: k/b.ko k/c.ko\n", "k/b.ko: k/c.ko\n", "k/c.ko:\n", "k/x-y.ko.xz:\n"]
    assert module_order.modules_order(lines, ["a", "x_*"]) == [
        "k/c.ko", "k/b.ko", "k/a.ko", "k/x-y.ko.xz"]
    assert module_order.modules_order(lines, ["none"]) == []


def test_every_flavour_can_be_built():
    with open(os.path.join(machine.HERE, "build.sh")) as file:
        made = set(re.findall(r"^        ([a-z0-9-]+)\) ", file.read(), re.M))
    assert {flavour.base for flavour in machine.FLAVOURS.values()} == made - {"qemu-system-x86_64",
        "qemu-system-aarch64"}


def test_make_clean_keeps_the_machines(tmp_path):
    for name in ("tests/.cache/vm/debian", "tests/.cache/ruff", ".build", "tests/__pycache__"):
        (tmp_path / name).mkdir(parents=True)
    shutil.copy(os.path.join(TOP, "Makefile"), tmp_path)
    for target, left in (("clean", ["vm"]), ("clean-vm", []), ("clean", [])):
        subprocess.run(["make", "-s", "-C", tmp_path, target], check=True)
        assert os.listdir(tmp_path / "tests" / ".cache") == left
    assert sorted(os.listdir(tmp_path)) == ["Makefile", "tests"]
