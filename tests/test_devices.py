"""devices: the rules as lines for v1 and as a program for v2, interpreted and loaded."""

import os
import struct

import engine
import pytest

RULES = [{"allow": False, "access": "rwm"},
         {"allow": True, "type": "c", "access": "m"}, {"allow": True, "type": "b", "access": "m"},
         {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
         {"allow": True, "type": "c", "major": 136, "access": "rwm"},
         {"allow": True, "type": "b", "major": 8, "minor": 0, "access": "r"}]
ACCESS = {"m": 1, "r": 2, "w": 4}


def allowed(program, kind, major, minor, access):
    word = sum(ACCESS[letter] for letter in access) << 16 | {"b": 1, "c": 2}[kind]
    context = {0: word, 4: major, 8: minor}
    code = [struct.unpack_from("=BBhI", program, at) for at in range(0, len(program), 8)]
    registers, at = [0] * 11, 0
    while True:
        op, pair, offset, value = code[at]
        target, source = pair & 15, pair >> 4
        at += 1
        if op == 0x95:
            return registers[0] == 1
        if op == 0x61:
            registers[target] = context[offset]
        elif op == 0xBC:
            registers[target] = registers[source]
        elif op == 0xB4:
            registers[target] = value
        elif op == 0x74:
            registers[target] >>= value
        elif op == 0x54:
            registers[target] &= value
        elif op == 0x56:
            at += offset if registers[target] != value else 0
        elif op == 0x16:
            at += offset if registers[target] == value else 0
        else:
            raise AssertionError(hex(op))


@pytest.mark.parametrize(
    "request_, answer",
    [
        (("c", 1, 3, "rw"), True),
        (("c", 1, 3, "m"), True),
        (("c", 1, 4, "m"), True),
        (("c", 1, 4, "r"), False),
        (("c", 1, 4, "mr"), False),
        (("c", 136, 77, "rwm"), True),
        (("b", 8, 0, "r"), True),
        (("b", 8, 0, "rw"), False),
        (("b", 8, 1, "r"), False),
        (("b", 1, 3, "w"), False),
    ],
)
def test_device_program(request_, answer):
    assert allowed(engine.device_program(RULES), *request_) is answer


def test_last_device_rule_decides():
    rules = [
        {"allow": True, "access": "rwm"},
        {"allow": False, "type": "c", "major": 1, "minor": 3, "access": "w"},
    ]
    program = engine.device_program(rules)
    assert allowed(program, "b", 9, 9, "rwm")
    assert allowed(program, "c", 1, 3, "r")
    assert not allowed(program, "c", 1, 3, "rw")


def test_device_rule_text():
    assert [engine.device_rule_text(rule) for rule in RULES[:4]] == [
        "a",
        "c *:* m",
        "b *:* m",
        "c 1:3 rwm",
    ]


@pytest.mark.root
def test_device_program_is_taken_by_the_kernel():
    cgroup = engine.cgroup_paths(f"engine-test/devices-{os.getpid()}")
    if cgroup.v2 is None:
        pytest.skip("no cgroup v2 here")
    cgroup.create()
    try:
        try:
            engine.device_attach(cgroup.v2, engine.device_program(RULES[:1]))
        except OSError:
            pytest.skip("no CONFIG_CGROUP_BPF here")
        engine.device_attach(cgroup.v2, engine.device_program(RULES))
        engine.device_attach(cgroup.v2, engine.device_program(RULES[1:]))
    finally:
        cgroup.remove()
        for path in cgroup.paths():
            os.rmdir(os.path.dirname(path))
