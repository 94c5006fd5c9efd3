"""confine: capabilities and resource limits."""

import os
import subprocess

import engine
import pytest
from kernel_help import in_child

DEFAULT = engine.CAPABILITIES_DEFAULT


def test_capability_numbers_are_complete():
    assert sorted(engine.CAPABILITIES.values()) == list(range(41))
    assert set(DEFAULT) < set(engine.CAPABILITIES)
    assert engine.caps_mask(DEFAULT) == 0x00000000A80425FB


ALL = list(engine.CAPABILITIES)


@pytest.mark.parametrize("add, drop, expected", [
    (None, None, list(DEFAULT)),
    (["net_admin"], [], [*DEFAULT, "CAP_NET_ADMIN"]),
    (["CAP_CHOWN"], None, list(DEFAULT)),
    ([], ["all"], []),
    (["SYS_TIME"], ["ALL"], ["CAP_SYS_TIME"]),
    (["all"], ["cap_sys_admin"], [name for name in ALL if name != "CAP_SYS_ADMIN"]),
    ([], ["chown", "MKNOD"], [name for name in DEFAULT if name not in ("CAP_CHOWN", "CAP_MKNOD")])])
def test_resolve(add, drop, expected):
    assert engine.capabilities_resolve(add, drop, available=ALL) == expected


def test_resolve_privileged_and_errors():
    assert engine.capabilities_resolve([], [], True, ALL) == ALL
    with pytest.raises(engine.InvalidParameter, match='unknown capability: "CAP_NOPE"'):
        engine.capabilities_resolve(["nope"], None, available=ALL)
    with pytest.raises(
        engine.InvalidParameter, match='not available in the current environment: "CAP_BPF"'
    ):
        engine.capabilities_resolve(None, ["bpf"], available=["CAP_KILL"])


def status_of(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1], 16) for line in file if line.startswith(name))


@pytest.mark.root
def test_all_five_sets():
    def apply():
        engine.caps_apply(bounding=DEFAULT, effective=DEFAULT, permitted=DEFAULT,
                          inheritable=["CAP_KILL"], ambient=["CAP_KILL"])
        return [status_of(name) for name in ("CapBnd", "CapEff", "CapPrm", "CapInh", "CapAmb")]
    default = engine.caps_mask(DEFAULT)
    assert in_child(apply) == [default, default, default, 1 << 5, 1 << 5]


@pytest.mark.root
def test_another_user_keeps_what_is_given_until_execve():
    def apply():
        engine.caps_bound(DEFAULT)
        engine.caps_keep(True)
        os.setresgid(1000, 1000, 1000)
        os.setresuid(1000, 1000, 1000)
        engine.caps_set(effective=DEFAULT, permitted=DEFAULT)
        held = engine.caps_held()
        shown = subprocess.run(
            ["grep", "CapEff", "/proc/self/status"], capture_output=True, check=True
        )
        return held[0], int(shown.stdout.split()[1], 16)
    assert in_child(apply) == (engine.caps_mask(DEFAULT), 0)


@pytest.mark.root
def test_seccomp_before_the_capabilities_without_no_new_privs():
    def apply():
        engine.seccomp_install(engine.seccomp_default_program(DEFAULT))
        engine.caps_apply(bounding=DEFAULT, effective=DEFAULT, permitted=DEFAULT)
        return status_of("Seccomp")
    assert in_child(apply) == 2


# ---------------------------------------------------------------- rlimits

def test_rlimits():
    import resource

    def apply():
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        assert engine.rlimits_apply([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": hard},
                                     {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]) == []
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0], resource.getrlimit(
            resource.RLIMIT_CORE
        )

    assert in_child(apply) == (100, (0, 0))
    with pytest.raises(engine.InvalidParameter, match="invalid rlimit type: RLIMIT_X"):
        engine.rlimits_apply([{"type": "RLIMIT_X", "soft": 1, "hard": 1}])


def test_limits_that_nobody_here_can_have_are_told_before(monkeypatch):
    import resource

    def told():
        resource.setrlimit(resource.RLIMIT_NOFILE, (50, 60))
        return [engine.limits_beyond([{"Name": "nofile", "Soft": 1, "Hard": hard}], score)
                for hard, score in ((60, 0), (-1, 0), (61, -1000), (5, 100))]
    monkeypatch.setattr(engine, "capabilities_available", lambda: ["CAP_SYS_RESOURCE"])
    assert in_child(told) == [[], [], [], []]
    monkeypatch.setattr(engine, "capabilities_available", list)
    start = " needs CAP_SYS_RESOURCE, which is missing here: it will be "
    assert in_child(told) == [
        [], [f"ulimit nofile=-1{start}60."],
        [f"ulimit nofile=61{start}60.", f"oom_score_adj -1000{start}0."], []]


def test_rlimit_above_the_hard_one_is_a_warning():
    import resource

    def apply():
        resource.setrlimit(resource.RLIMIT_NOFILE, (50, 60))
        if os.getuid() == 0:
            os.setresuid(1000, 1000, 1000)
        warnings = engine.rlimits_apply([{"type": "RLIMIT_NOFILE", "soft": -1, "hard": -1}])
        return warnings, resource.getrlimit(resource.RLIMIT_NOFILE)
    warnings, limits = in_child(apply)
    assert len(warnings) == 1
    assert "the limit here is 60" in warnings[0]
    assert limits == (60, 60)
