"""seccomp: profiles resolved, compiled, interpreted and loaded; the tables of numbers."""

import errno
import json
import os
import socket
import struct
import subprocess
import sys

import engine
import pytest
from kernel_help import in_child

DEFAULT = engine.CAPABILITIES_DEFAULT
ALLOW, EPERM, ENOSYS, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0
AUDIT = {name: row[0] for name, row in engine.SECCOMP_ARCHES.items()}


def answer(program, arch, number, *args):
    """What the kernel would do: an interpreter of classic BPF."""
    data = struct.pack("=IIQ6Q", number & 0xFFFFFFFF, AUDIT[arch], 0, *args, *[0] * (6 - len(args)))
    code = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    at = accumulator = 0
    while True:
        op, jt, jf, k = code[at]
        at += 1
        if op == 0x20:
            accumulator = struct.unpack_from("=I", data, k)[0]
        elif op == 0x54:
            accumulator &= k
        elif op == 0x06:
            return k
        elif op == 0x05:
            at += k
        else:
            holds = {0x15: accumulator == k, 0x25: accumulator > k, 0x35: accumulator >= k}[op]
            at += jt if holds else jf


def number(arch, name):
    _, bit, tables = engine.SECCOMP_ARCHES[arch]
    return engine.syscall_numbers(tables)[name] | bit


def ask(program, arch, name, *args):
    return answer(program, arch, number(arch, name), *args)


# ---------------------------------------------------------------- numbers

@pytest.mark.parametrize("arch, name, value", [
    ("SCMP_ARCH_X86_64", "read", 0), ("SCMP_ARCH_X86_64", "seccomp", 317),
    ("SCMP_ARCH_X86_64", "statx", 332), ("SCMP_ARCH_X86_64", "clone3", 435),
    ("SCMP_ARCH_X86", "socketcall", 102), ("SCMP_ARCH_X86", "futex_time64", 422),
    ("SCMP_ARCH_X32", "execve", 520 | 0x40000000), ("SCMP_ARCH_AARCH64", "openat", 56),
    ("SCMP_ARCH_AARCH64", "fchmodat2", 452), ("SCMP_ARCH_ARM", "set_tls", 0xF0005),
    ("SCMP_ARCH_ARM", "seccomp", 383), ("SCMP_ARCH_RISCV64", "riscv_flush_icache", 259)])
def test_numbers(arch, name, value):
    assert number(arch, name) == value


def test_raw_calls_agree_with_the_tables():
    native = ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM", "SCMP_ARCH_RISCV64"]
    for call in vars(engine).values():
        if isinstance(call, engine.RawCall):
            numbers = call.numbers * 4 if len(call.numbers) == 1 else call.numbers
            names = [call.name] * 4
            # arm's plain setgroups takes ids of 16 bits; it has no mmap that counts in bytes
            names[2] = {"setgroups": "setgroups32", "mmap": "mmap2"}.get(call.name, call.name)
            assert [number(*pair) for pair in zip(native, names)] == list(numbers), call.name


# ---------------------------------------------------------------- the default profile

@pytest.mark.parametrize("machine", engine.SYSCALL_MACHINES)
def test_default_profile_on_each_machine(machine):
    program = engine.seccomp_default_program(DEFAULT, machine)
    assert len(program) % 8 == 0
    assert len(program) // 8 < 1000
    native = engine._MACHINES[machine][0]
    for name in ("read", "execve", "openat", "ptrace", "futex", "statx", "removexattrat", "chroot"):
        assert ask(program, native, name) == ALLOW, name
    for name in ("mount", "unshare", "setns", "bpf", "kexec_load", "reboot", "keyctl", "add_key",
                 "io_uring_setup", "userfaultfd", "open_by_handle_at", "swapon", "settimeofday"):
        assert ask(program, native, name) == EPERM, name
    assert ask(program, native, "clone3") == ENOSYS
    assert answer(program, native, 500) == ENOSYS
    assert answer(program, native, -1) == ENOSYS


def test_foreign_architectures():
    program = engine.seccomp_default_program(DEFAULT, "x86_64")
    assert ask(program, "SCMP_ARCH_AARCH64", "read") == KILL
    for arch, last in (("SCMP_ARCH_X86", "removexattrat"), ("SCMP_ARCH_X32", "pwritev2")):
        assert ask(program, arch, "read") == ALLOW
        assert ask(program, arch, "mount") == EPERM
        assert answer(program, arch, number(arch, last) + 1) == ENOSYS
    assert (
        ask(engine.seccomp_default_program(DEFAULT, "aarch64"), "SCMP_ARCH_ARM", "set_tls") == ALLOW
    )
    assert (
        ask(engine.seccomp_default_program(DEFAULT, "armv7l"), "SCMP_ARCH_ARM", "cacheflush")
        == ALLOW
    )
    assert ask(engine.seccomp_default_program(DEFAULT, "riscv64"), "SCMP_ARCH_ARM", "read") == KILL


@pytest.mark.parametrize("name, args, expected", [
    ("socket", (1,), ALLOW), ("socket", (40,), EPERM), ("socket", (41,), ALLOW),
    ("socket", (40 | 1 << 32,), ALLOW),
    ("personality", (0,), ALLOW), ("personality", (8,), ALLOW), ("personality", (0x20008,), ALLOW),
    ("personality", (0xFFFFFFFF,), ALLOW), ("personality", (0x40000,), EPERM),
    ("personality", (1 << 32,), EPERM),
    ("clone", (0x11,), ALLOW), ("clone", (0x3D0F00,), ALLOW), ("clone", (0x10000000,), EPERM),
    ("clone", (0x20000 | 0x11,), EPERM), ("clone", (1 << 40,), ALLOW)])
def test_arguments(name, args, expected):
    program = engine.seccomp_default_program(DEFAULT, "x86_64")
    assert ask(program, "SCMP_ARCH_X86_64", name, *args) == expected


@pytest.mark.parametrize("cap, names", [
    ("CAP_SYS_ADMIN", "mount umount2 unshare setns clone3 bpf fsopen quotactl_fd syslog"),
    ("CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise"), ("CAP_SYS_TIME", "clock_settime"),
    ("CAP_SYS_BOOT", "reboot"), ("CAP_SYS_MODULE", "finit_module"), ("CAP_SYS_NICE", "mbind"),
    ("CAP_BPF", "bpf"), ("CAP_PERFMON", "perf_event_open"), ("CAP_SYSLOG", "syslog"),
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"), ("CAP_SYS_RAWIO", "iopl ioperm"),
    ("CAP_SYS_PACCT", "acct"), ("CAP_SYS_TTY_CONFIG", "vhangup")])
def test_capabilities_open_calls(cap, names):
    without = engine.seccomp_default_program(DEFAULT, "x86_64")
    given = engine.seccomp_default_program([*DEFAULT, cap], "x86_64")
    for name in names.split():
        assert ask(without, "SCMP_ARCH_X86_64", name) in (EPERM, ENOSYS), name
        assert ask(given, "SCMP_ARCH_X86_64", name) == ALLOW, name


def test_sys_admin_may_clone_namespaces_and_no_chroot_without_its_capability():
    admin = engine.seccomp_default_program([*DEFAULT, "CAP_SYS_ADMIN"], "x86_64")
    assert ask(admin, "SCMP_ARCH_X86_64", "clone", 0x20000) == ALLOW
    assert ask(engine.seccomp_default_program([], "x86_64"), "SCMP_ARCH_X86_64", "chroot") == EPERM


def test_program_of_a_name_or_a_document():
    document = {"defaultAction": "SCMP_ACT_ALLOW"}
    assert engine.seccomp_program("default", DEFAULT) == engine.seccomp_default_program(DEFAULT)
    assert engine.seccomp_program(document, DEFAULT) == engine.seccomp_compile(document)


def test_program_is_kept():
    assert engine.seccomp_default_program(DEFAULT) is engine.seccomp_default_program(list(DEFAULT))


# ---------------------------------------------------------------- other profiles

def compiled(*rules, default="SCMP_ACT_ALLOW", **more):
    return engine.seccomp_compile(
        {"defaultAction": default, "syscalls": list(rules), **more}, "x86_64"
    )


@pytest.mark.parametrize(
    "op, value, passing, failing",
    [
        ("NE", 5, [0, 6, 5 | 1 << 32], [5]),
        ("EQ", 5, [5], [4, 5 | 1 << 32]),
        ("LT", 5 << 32 | 5, [4, 5 << 32 | 4, 9], [5 << 32 | 5, 6 << 32]),
        ("LE", 5 << 32 | 5, [5 << 32 | 5, 9], [5 << 32 | 6, 6 << 32]),
        ("GE", 5 << 32 | 5, [5 << 32 | 5, 6 << 32], [5 << 32 | 4, 9]),
        ("GT", 5 << 32 | 5, [5 << 32 | 6, 6 << 32], [5 << 32 | 5, 9]),
        ("GT", 40, [41, 1 << 32], [40, 0]),
    ],
)
def test_comparisons_of_64_bits(op, value, passing, failing):
    program = compiled({"names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 7,
                        "args": [{"index": 2, "op": "SCMP_CMP_" + op, "value": value}]})
    for given in passing:
        assert ask(program, "SCMP_ARCH_X86_64", "kill", 0, 0, given) == 0x50007, given
    for given in failing:
        assert ask(program, "SCMP_ARCH_X86_64", "kill", 0, 0, given) == ALLOW, given


def test_masked_comparison_of_64_bits():
    program = compiled({"names": ["kill"], "action": "SCMP_ACT_TRAP", "args": [
        {"index": 0, "op": "SCMP_CMP_MASKED_EQ", "value": 0xF << 32 | 1, "valueTwo": 2 << 32 | 1}]})
    assert ask(program, "SCMP_ARCH_X86_64", "kill", 0xF2 << 32 | 0xF1) == 0x30000
    assert ask(program, "SCMP_ARCH_X86_64", "kill", 1) == ALLOW
    assert ask(program, "SCMP_ARCH_X86_64", "kill", 2 << 32) == ALLOW


def test_tests_on_several_arguments_must_all_hold_and_on_one_are_alternatives():
    def rule(*args):
        return {
            "names": ["kill"],
            "action": "SCMP_ACT_KILL_PROCESS",
            "args": [
                {"index": index, "op": "SCMP_CMP_EQ", "value": value} for index, value in args
            ],
        }

    both, either = compiled(rule((0, 1), (1, 9))), compiled(rule((0, 1), (0, 2)))
    assert ask(both, "SCMP_ARCH_X86_64", "kill", 1, 9) == 0x80000000
    assert ask(both, "SCMP_ARCH_X86_64", "kill", 1, 8) == ALLOW
    assert [ask(either, "SCMP_ARCH_X86_64", "kill", n) for n in (1, 2, 3)] == [0x80000000] * 2 + [
        ALLOW
    ]


def test_permissive_default_leaves_unknown_calls_alone():
    program = compiled({"names": ["kill", "no_such_call"], "action": "SCMP_ACT_ERRNO"})
    assert ask(program, "SCMP_ARCH_X86_64", "kill") == EPERM
    assert answer(program, "SCMP_ARCH_X86_64", 5000) == ALLOW
    assert ask(program, "SCMP_ARCH_X86", "read") == KILL


def test_denied_socket_is_denied_through_socketcall_too():
    program = compiled(
        {"names": ["socket"], "action": "SCMP_ACT_ERRNO"}, architectures=["SCMP_ARCH_X86"]
    )
    assert ask(program, "SCMP_ARCH_X86", "socketcall", 1) == EPERM
    assert ask(program, "SCMP_ARCH_X86", "socketcall", 2) == ALLOW


def test_every_call_with_conditions_stays_below_the_kernels_limit():
    names = list(engine.syscall_numbers(("x86_64", "all")))
    rules = [
        {
            "names": [name],
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": at % 100,
            "args": [{"index": 0, "op": "SCMP_CMP_EQ", "value": at}],
        }
        for at, name in enumerate(names)
    ]
    program = compiled(*rules)
    assert len(program) // 8 <= 4096
    for at in (0, 17, 100, 255, len(names) - 1):
        assert ask(program, "SCMP_ARCH_X86_64", names[at], at) == 0x50000 | at % 100
        assert ask(program, "SCMP_ARCH_X86_64", names[at], at + 1) == ALLOW
    with pytest.raises(engine.InvalidParameter, match="too long"):
        compiled(*rules, *rules[::-1], architectures=["SCMP_ARCH_X86", "SCMP_ARCH_X32"])


@pytest.mark.parametrize(
    "profile, text",
    [
        ({}, "string  is not a valid action for seccomp"),
        ({"defaultAction": "SCMP_ACT_NOTIFY"}, "is not a valid action for seccomp"),
        (
            {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["x"], "archMap": [{}]},
            "both 'architectures'",
        ),
        ({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["x"]},
         "string x is not a valid arch for seccomp"),
        (
            {
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{"name": "a", "names": ["b"], "action": "SCMP_ACT_LOG"}],
            },
            "both 'name' and 'names'",
        ),
        (
            {
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [
                    {
                        "names": ["kill"],
                        "action": "SCMP_ACT_LOG",
                        "args": [{"index": 6, "op": "SCMP_CMP_EQ"}],
                    }
                ],
            },
            r"for syscall kill: syscalls only have up to 6 arguments \(6 given\)",
        ),
    ],
)
def test_wrong_profiles(profile, text):
    with pytest.raises(engine.InvalidParameter, match=text):
        engine.seccomp_compile(profile, "x86_64")


@pytest.mark.parametrize(("profile", "text"), [
    ({"defaultAction": "SCMP_ACT_WHAT"}, "string SCMP_ACT_WHAT is not a valid action"),
    ({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["kill"], "action": "SCMP_ACT_X", "includes": {"caps": ["CAP_SYS_ADMIN"]}}]},
     "string SCMP_ACT_X is not a valid action"),
    ({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["kill"], "action": "SCMP_ACT_LOG", "args": [{"index": 0, "op": "SCMP_CMP_X"}]}]},
     "string SCMP_CMP_X is not a valid operator"),
])
def test_wrong_words_are_known_before_the_start(profile, text):
    with pytest.raises(engine.InvalidParameter, match=text):
        engine.seccomp_check(profile)
    engine.seccomp_check({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_S390X"]})


def test_conditions_of_a_profile():
    rows = [{"names": ["a"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "99.0"}},
            {"names": ["b"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
            {"names": ["c"], "action": "SCMP_ACT_ALLOW", "excludes": {"arches": ["amd64"]}},
            {"names": ["d"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_BPF"]}},
            {"names": ["e"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_KILL"]}},
            {"name": "f", "action": "SCMP_ACT_ALLOW"}]
    oci = engine.seccomp_resolve(
        {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rows}, ["CAP_KILL"], "x86_64"
    )
    assert [row["names"] for row in oci["syscalls"]] == [["b"], ["f"]]
    assert engine.seccomp_resolve(oci, (), "x86_64") == oci


def test_flags():
    assert engine.seccomp_flags(None) == 4
    assert engine.seccomp_flags(["SECCOMP_FILTER_FLAG_LOG"]) == 2
    for wrong in (["x"], [""]):
        with pytest.raises(engine.InvalidParameter, match="unknown flag in the seccomp profile"):
            engine.seccomp_flags(wrong)


def test_flags_of_a_profile_reach_the_kernel(monkeypatch):
    given = []

    def refuse(operation, flags, header):
        given.append(flags)
        raise OSError(errno.EINVAL, "seccomp: Invalid argument")

    monkeypatch.setattr(engine, "sys_seccomp", refuse)
    profile = {"defaultAction": "SCMP_ACT_ALLOW"}
    for flags, tried in (
        (None, [4, 0]),
        ([], [0]),
        (["SECCOMP_FILTER_FLAG_LOG"], [2]),
        (["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"], [6]),
    ):
        given.clear()
        with pytest.raises(OSError):
            engine.seccomp_enter({**profile, "flags": flags}, DEFAULT)
        assert given == tried            # what was asked for is never left out


@pytest.mark.parametrize("profile, text", [
    ({"defaultAction": "SCMP_ACT_NOTIFY"},
     "seccomp action SCMP_ACT_NOTIFY is not supported by this engine"),
    ({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        None, {"names": ["open"], "action": "SCMP_ACT_NOTIFY"}]},
     "seccomp action SCMP_ACT_NOTIFY is not supported by this engine"),
    ({"flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]},
     "unknown flag in the seccomp profile: SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"),
    ({"flags": ["x"]}, "unknown flag in the seccomp profile: x"),
])
def test_what_is_refused_before_the_start(profile, text):
    with pytest.raises(engine.InvalidParameter) as refused:
        engine.security_parse(["seccomp=" + json.dumps(profile)])
    assert str(refused.value) == text


def _rule(**more):
    return {"defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", **more}]}


_FIELD = "json: cannot unmarshal {} into Go struct field {} of type {}"
_VERSION = 'invalid kernel version: {}, expected "<kernel>.<major>"'


@pytest.mark.parametrize("profile, text", [
    ([], "json: cannot unmarshal array into Go value of type seccomp.Seccomp"),
    ("x", "json: cannot unmarshal string into Go value of type seccomp.Seccomp"),
    (5, "json: cannot unmarshal number into Go value of type seccomp.Seccomp"),
    (True, "json: cannot unmarshal bool into Go value of type seccomp.Seccomp"),
    ({"syscalls": 5}, _FIELD.format("number", "Seccomp.syscalls", "[]*seccomp.Syscall")),
    ({"syscalls": [5]}, _FIELD.format("number", "Seccomp.syscalls", "seccomp.Syscall")),
    ({"defaultAction": 5},
     _FIELD.format("number", "Seccomp.defaultAction", "specs.LinuxSeccompAction")),
    ({"flags": "x"}, _FIELD.format("string", "Seccomp.flags", "[]specs.LinuxSeccompFlag")),
    ({"archMap": 5}, _FIELD.format("number", "Seccomp.archMap", "[]seccomp.Architecture")),
    (_rule(names="x"), _FIELD.format("string", "Syscall.syscalls.names", "[]string")),
    (_rule(names=[5]), _FIELD.format("number", "Syscall.syscalls.names", "string")),
    (_rule(args=5), _FIELD.format("number", "Syscall.syscalls.args", "[]specs.LinuxSeccompArg")),
    (_rule(args=[{"index": -1}]),
     _FIELD.format("number -1", "LinuxSeccompArg.syscalls.args.index", "uint")),
    (_rule(args=[{"index": 0, "value": "1"}]),
     _FIELD.format("string", "LinuxSeccompArg.syscalls.args.value", "uint64")),
    (_rule(errnoRet="1"), _FIELD.format("string", "Syscall.syscalls.errnoRet", "uint")),
    (_rule(errnoRet=1.5), _FIELD.format("number 1.5", "Syscall.syscalls.errnoRet", "uint")),
    (_rule(includes=5), _FIELD.format("number", "Syscall.syscalls.includes", "seccomp.Filter")),
    (_rule(includes={"minKernel": "abc"}), _VERSION.format('"abc"')),
    (_rule(excludes={"minKernel": "1.2.3"}), _VERSION.format('"1.2.3"')),
    (_rule(excludes={"minKernel": "0.0"}), _VERSION.format('"0.0"')),
])
def test_values_of_another_type_are_told_as_go_does(profile, text):
    with pytest.raises(engine.InvalidParameter) as refused:
        engine.security_parse(["seccomp=" + json.dumps(profile)])
    assert str(refused.value) == "Decoding seccomp profile failed: " + text


def test_names_in_any_case_are_taken_and_others_are_not():
    made = engine.security_parse(["seccomp=" + json.dumps({
        "DEFAULTACTION": "SCMP_ACT_ALLOW", "extra": [1], "archMap": None,
        "sysCalls": [{"Names": ["mkdir"], "ACTION": "SCMP_ACT_ERRNO", "errnoret": 5, "why": 1}]})])
    assert made["seccomp"] == {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5}]}
    assert engine.security_parse(["seccomp=null"])["seccomp"] == {}


@pytest.mark.parametrize("profile", [
    {"syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}]},
    {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"]}]},
])
def test_an_action_that_is_missing_is_no_action(profile):
    with pytest.raises(engine.InvalidParameter) as refused:
        engine.security_parse(["seccomp=" + json.dumps(profile)])
    assert str(refused.value) == "string  is not a valid action for seccomp"


def test_filter_holds_this_process():
    def confined():
        engine.no_new_privs()
        engine.seccomp_install(engine.seccomp_default_program(DEFAULT))
        results = [code_of(engine.sys_unshare, 0), code_of(engine.sys_clone3, b"", 0),
                   code_of(socket.socket, 40, socket.SOCK_STREAM), code_of(os.getpid),
                   code_of(engine.sys_mount, "x", "/", "x", 0, None)]
        with open("/proc/self/status") as file:
            status = dict(line.split(":\t", 1) for line in file)
        return results, status["Seccomp"].strip(), status["NoNewPrivs"].strip()
    assert engine.seccomp_available()
    assert in_child(confined) == (
        [errno.EPERM, errno.ENOSYS, errno.EPERM, 0, errno.EPERM], "2", "1")


def code_of(function, *args):
    try:
        function(*args)
    except OSError as refused:
        return refused.errno
    return 0


def test_confined_process_runs_programs():
    def confined():
        engine.no_new_privs()
        engine.seccomp_install(engine.seccomp_default_program(DEFAULT))
        return subprocess.run(
            [
                sys.executable,
                "-c",
                "import threading; t = threading.Thread(target=print);t.start(); t.join()",
            ],
            check=False,
            capture_output=True,
        ).returncode
    assert in_child(confined) == 0
