"""limits: ranges, combinations, and limits that this host cannot keep."""

from __future__ import annotations

import engine
import pytest

GIB = 1 << 30


def host(**fields):
    return engine.fields_check(fields, engine.HOST_CONFIG, "HostConfig")


class Found:
    """Stands for Hierarchies: no controller at all."""

    v1, v2, mode = {}, None, "none"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"Memory": 1 << 20}, "Minimum memory limit allowed is 6MB"),
        (
            {"Memory": GIB, "MemorySwap": GIB // 2},
            "Minimum memoryswap limit should be larger than memory limit, see usage",
        ),
        (
            {"MemorySwap": GIB},
            "You should always set the Memory limit when using Memoryswap limit, see usage",
        ),
        (
            {"MemorySwappiness": 101},
            "Invalid value: 101, valid memory swappiness range is 0-100",
        ),
        (
            {"Memory": GIB, "MemoryReservation": 2 * GIB},
            "Minimum memory limit can not be less than memory reservation limit, see usage",
        ),
        (
            {"NanoCpus": 10**9, "CpuPeriod": 100000},
            "Conflicting options: Nano CPUs and CPU Period cannot both be set",
        ),
        (
            {"NanoCpus": 10**9, "CpuQuota": 100000},
            "Conflicting options: Nano CPUs and CPU Quota cannot both be set",
        ),
        (
            {"CpuPeriod": 10},
            "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s"
            " (i.e. 1000000)",
        ),
        ({"CpuQuota": 10}, "CPU cfs quota can not be less than 1ms (i.e. 1000)"),
        ({"BlkioWeight": 5}, "Range of blkio weight is from 10 to 1000"),
        (
            {"CpusetCpus": "x"},
            "Invalid value x for cpuset cpus: invalid format: x",
        ),
    ],
)
def test_refused(fields, text, monkeypatch):
    monkeypatch.setattr(engine, "limit_is_kept", lambda field: True)
    with pytest.raises(engine.InvalidParameter) as caught:
        engine.resources_verify(host(**fields))
    assert str(caught.value) == text


def test_more_processors_than_there_are():
    with pytest.raises(engine.InvalidParameter, match=r"range of CPUs is from 0\.01 to"):
        engine.resources_verify(host(NanoCpus=10**15))
    with pytest.raises(engine.InvalidParameter, match="Requested CPUs are not available"):
        engine.resources_verify(host(CpusetCpus="5000"))


def test_what_cannot_be_kept_is_dropped_and_told(monkeypatch):
    monkeypatch.setattr(engine, "cgroup_probe", Found)
    asked = host(Memory=GIB, CpuPeriod=5000, CpuQuota=5000, PidsLimit=5, CpuPercent=5)
    warnings = engine.resources_verify(asked)
    assert asked["Memory"] == asked["CpuPeriod"] == asked["CpuQuota"] == asked["CpuPercent"] == 0
    assert asked["PidsLimit"] is None
    assert len(warnings) == 4           # period and quota share one
    assert warnings[0] == (
        "Your kernel does not support memory limit capabilities or the cgroup is not mounted."
        " Limitation discarded."
    )
    with pytest.raises(engine.InvalidParameter, match="NanoCPUs can not be set"):
        engine.resources_verify(host(NanoCpus=10**9))


def test_no_limit_looks_at_no_cgroup(monkeypatch):
    monkeypatch.setattr(engine, "cgroup_probe", None)
    assert engine.resources_verify(host()) == []


def test_cpuset():
    assert engine.cpuset_parse("0-2,7") == {0, 1, 2, 7}
    with pytest.raises(ValueError, match="value of out range, maximum is 8192"):
        engine.cpuset_parse("1-9223372036854775807", 8192)
    for wrong in ("", "a", "1-", "-"):
        with pytest.raises(ValueError):
            engine.cpuset_parse(wrong)
