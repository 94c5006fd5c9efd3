"""cgroups: conversions, both versions on plain files, and the kernel's own."""

import os
import subprocess
import time

import engine
import pytest
from kernel_help import in_child

SLEEP = ["sleep", "60"]


# ---------------------------------------------------------------- pure

@pytest.mark.parametrize(
    "shares, weight", [(2, 1), (1024, 100), (262144, 10000), (512, 59), (2048, 174)]
)
def test_cpu_weight(shares, weight):
    assert engine.cpu_weight(shares) == weight


@pytest.mark.parametrize("block, weight", [(10, 1), (1000, 10000), (500, 4950)])
def test_io_weight(block, weight):
    assert engine.io_weight(block) == weight


def test_cpu_weight_is_that_of_the_formula():
    import math
    for shares in (3, 100, 1000, 12345, 200000):
        log = math.log2(shares)
        assert engine.cpu_weight(shares) == math.ceil(10 ** ((log**2 + 125 * log) / 612 - 7 / 34))


def mount(point, fstype, data, root="/"):
    return engine.MountInfo((1, 0, "0:1", root, point, [], [], fstype, fstype, data))


def test_hierarchies_of_mounts():
    both = engine.cgroup_hierarchies([
        mount("/cg/part", "cgroup", ["rw", "memory"], root="/docker/x"),
        mount("/cg/cpu,cpuacct", "cgroup", ["rw", "cpu", "cpuacct"]),
        mount("/cg/systemd", "cgroup", ["rw", "xattr", "name=systemd"]),
        mount("/cg/memory", "cgroup", ["rw", "memory"]), mount("/cg/unified", "cgroup2", ["rw"])])
    assert both.mode == "hybrid"
    assert both.v1["cpu"] == both.v1["cpuacct"] == "/cg/cpu,cpuacct"
    assert both.v1["memory"] == "/cg/memory"
    assert len(both.tops()) == 3
    assert both.v2 == "/cg/unified"
    assert engine.cgroup_hierarchies([]).mode == "none"
    assert engine.cgroup_hierarchies([mount("/cg", "cgroup2", [])]).mode == "v2"


def test_without_any_hierarchy_all_is_quiet():
    cgroup = engine.Cgroup("engine-test/none", engine.cgroup_hierarchies([]))
    assert "no cgroup" in cgroup.create()[0]
    assert len(cgroup.limit({"memory": {"limit": 1 << 20}, "pids": {"limit": 5},
                             "devices": [{"allow": False, "access": "rwm"}]})) == 3
    assert cgroup.tasks_fds(v2=True) == []
    assert cgroup.v2_fd() is None
    assert cgroup.procs() == []
    assert cgroup.oom_count() == 0
    assert cgroup.oom_watch() is None
    cgroup.kill()
    cgroup.thaw()
    with pytest.raises(engine.EngineError, match="no freezer"):
        cgroup.freeze()
    assert cgroup.stats()["pids_stats"] == {}
    cgroup.remove()


# ---------------------------------------------------------------- v2 on plain files

V2_FILES = {
    "cpu.max": "max 100000",
    "cpu.weight": "100",
    "memory.max": "max",
    "memory.swap.max": "max",
    "memory.low": "0",
    "pids.max": "max",
    "cpuset.cpus": "",
    "io.max": "",
    "io.bfq.weight": "",
    "hugetlb.2MB.max": "max",
    "memory.high": "max",
}


@pytest.fixture
def v2(tmp_path):
    """A cgroup v2 of plain files."""
    path = tmp_path / "engine" / "x"
    path.mkdir(parents=True)
    for name, text in V2_FILES.items():
        (path / name).write_text(text)
    cgroup = engine.Cgroup("engine/x", engine.Hierarchies({}, str(tmp_path)))
    return path, cgroup


@pytest.mark.parametrize(
    "resources, file, text",
    [
        ({"memory": {"limit": 1 << 28}}, "memory.max", "268435456"),
        ({"memory": {"limit": 300, "swap": 500}}, "memory.swap.max", "200"),
        ({"memory": {"limit": 300, "swap": -1}}, "memory.swap.max", "max"),
        ({"memory": {"limit": -1}}, "memory.swap.max", "max"),
        ({"memory": {"reservation": 4096}}, "memory.low", "4096"),
        ({"cpu": {"shares": 1024}}, "cpu.weight", "100"),
        ({"cpu": {"quota": 50000, "period": 100000}}, "cpu.max", "50000 100000"),
        ({"cpu": {"quota": -1}}, "cpu.max", "max 100000"),
        ({"cpu": {"period": 20000}}, "cpu.max", "max 20000"),
        ({"cpu": {"cpus": "0-1"}}, "cpuset.cpus", "0-1"),
        ({"pids": {"limit": 100}}, "pids.max", "100"),
        ({"pids": {"limit": -1}}, "pids.max", "max"),
        ({"blockIO": {"weight": 500}}, "io.bfq.weight", "500"),
        (
            {"blockIO": {"throttleWriteIOPSDevice": [{"major": 8, "minor": 0, "rate": 7}]}},
            "io.max",
            "8:0 wiops=7",
        ),
        ({"hugepageLimits": [{"pageSize": "2MB", "limit": 4096}]}, "hugetlb.2MB.max", "4096"),
        ({"unified": {"memory.high": "77"}}, "memory.high", "77"),
    ],
)
def test_v2_texts(v2, resources, file, text):
    path, cgroup = v2
    assert cgroup.limit(resources) == []
    assert (path / file).read_text().startswith(text)


def test_v2_missing_controllers_are_warnings(v2):
    path, cgroup = v2
    for name in V2_FILES:
        (path / name).unlink()
    warnings = cgroup.limit(
        {
            "memory": {"limit": 1, "swap": 2, "swappiness": 3},
            "cpu": {"quota": 1, "shares": 2},
            "pids": {"limit": 1},
            "blockIO": {"weight": 10},
            "unified": {"memory.high": "1"},
        }
    )
    assert len(warnings) == 7
    assert all("not supported" in warning for warning in warnings)


def test_unified_cannot_leave_the_cgroup(v2):
    with pytest.raises(engine.InvalidParameter):
        v2[1].limit({"unified": {"../x": "1"}})


def test_v2_figures(v2):
    path, cgroup = v2
    (path / "cpu.stat").write_text("usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_throttled 1\n")
    (path / "memory.current").write_text("4096\n")
    (path / "memory.stat").write_text("anon 10\ninactive_file 7\n")
    (path / "memory.events").write_text("oom 3\noom_kill 2\n")
    (path / "pids.current").write_text("3\n")
    (path / "io.stat").write_text("8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n")
    stats = cgroup.stats()
    assert stats["cpu_stats"]["cpu_usage"] == {
        "total_usage": 5000, "usage_in_kernelmode": 2000, "usage_in_usermode": 3000}
    assert stats["memory_stats"] == {
        "usage": 4096,
        "failcnt": 3,
        "limit": 2**64 - 1,
        "stats": {"anon": 10, "inactive_file": 7},
    }
    assert stats["pids_stats"] == {"current": 3, "limit": 2**64 - 1}
    assert {"major": 8, "minor": 0, "op": "write", "value": 20} in stats["blkio_stats"][
        "io_service_bytes_recursive"
    ]
    assert cgroup.oom_count() == 2


# ---------------------------------------------------------------- with the kernel

@pytest.fixture
def real():
    """A cgroup of this machine, emptied and removed afterwards."""
    cgroup = engine.cgroup_paths(f"engine-test/{os.getpid()}")
    if not cgroup.paths():
        pytest.skip("no cgroup is mounted here")
    children = []
    yield cgroup, children
    cgroup.kill()
    for child in children:
        child.wait()
    cgroup.remove()
    for top in {*cgroup.hierarchies.tops(), cgroup.hierarchies.v2} - {None}:
        if os.path.isdir(top + "/engine-test"):
            os.rmdir(top + "/engine-test")


def started(cgroup, children, argv=SLEEP):
    """A process that joined by itself."""
    fds = cgroup.tasks_fds(v2=True)

    def join():
        for fd in fds:
            os.write(fd, b"0")
    child = subprocess.Popen(argv, preexec_fn=join, pass_fds=fds)
    for fd in fds:
        os.close(fd)
    children.append(child)
    return child


@pytest.mark.root
def test_create_join_kill_remove(real):
    cgroup, children = real
    assert cgroup.create() == []
    child = started(cgroup, children)
    assert cgroup.procs() == [child.pid]
    with open(f"/proc/{child.pid}/cgroup") as file:
        for line in file:
            assert line.rstrip().endswith(cgroup.name) or ":misc:" in line, line
    cgroup.kill()
    assert child.wait(5) == -9
    cgroup.remove()
    assert not [path for path in cgroup.paths() if os.path.exists(path)]
    assert cgroup.create() == []
    assert cgroup.create() == []


@pytest.mark.root
def test_born_in_v2(real):
    cgroup, _ = real
    cgroup.create()
    fd = cgroup.v2_fd()
    if fd is None:
        pytest.skip("no cgroup v2 here")
    reader, writer = os.pipe()
    pid = engine.ns_clone(0, fd)
    if pid == 0:
        with open("/proc/self/cgroup", "rb") as file:
            os.write(writer, file.read().split(b"0::")[1].strip())
        os._exit(0)
    assert os.read(reader, 200).decode() == "/" + cgroup.name
    os.waitpid(pid, 0)
    for number in (fd, reader, writer):
        os.close(number)


@pytest.mark.root
def test_create_again_waits_for_the_last_task(real):
    cgroup, children = real
    cgroup.create()
    child = started(cgroup, children)
    child.kill()                                    # not reaped, and perhaps not yet gone
    assert cgroup.create() == []
    child.wait()


@pytest.mark.root
def test_inhabited_one_is_not_taken_over(real, monkeypatch):
    cgroup, children = real
    cgroup.create()
    started(cgroup, children)
    monkeypatch.setattr(engine, "CGROUP_BUSY_WAIT", 0.05)
    with pytest.raises(OSError, match="busy"):
        cgroup.create()


@pytest.mark.root
def test_freeze_and_thaw_and_kill_of_a_frozen_one(real):
    cgroup, children = real
    cgroup.create()
    child = started(cgroup, children)
    assert not cgroup.is_frozen()
    cgroup.freeze()
    assert cgroup.is_frozen()
    cgroup.thaw()
    assert not cgroup.is_frozen()
    cgroup.freeze()
    cgroup.kill()
    assert child.wait(5) == -9


@pytest.mark.root
def test_kill_reaches_a_process_tree_and_inner_cgroups(real):
    cgroup, children = real
    cgroup.create()
    inner = engine.Cgroup(cgroup.name + "/inner", cgroup.hierarchies)
    first = started(cgroup, children, ["sh", "-c", "sleep 60 & sleep 60 & wait"])
    for path in inner.paths():  # as the container itself would, without handing controllers down
        engine._cgroup_make(path, inner.name, fresh=True, cpuset=path == inner.v1("cpuset"))
    second = started(inner, children)
    deadline = time.monotonic() + 5
    while len(cgroup.procs()) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(cgroup.procs()) == 4
    cgroup.kill()
    assert first.wait(5) == second.wait(5) == -9
    cgroup.remove()


@pytest.mark.root
def test_limits_of_this_kernel(real):
    cgroup, children = real
    cgroup.create()
    warnings = cgroup.limit({
        "memory": {"limit": 64 << 20, "swap": 64 << 20}, "pids": {"limit": 50},
        "cpu": {"shares": 512, "quota": 50000, "period": 100000, "cpus": "0"}})
    stats = cgroup.stats()
    if "memory" in cgroup.hierarchies.controllers:
        assert stats["memory_stats"]["limit"] == 64 << 20
    if "pids" in cgroup.hierarchies.controllers:
        assert stats["pids_stats"]["limit"] == 50
    started(cgroup, children)
    assert cgroup.stats()["cpu_stats"]["cpu_usage"]["total_usage"] > 0
    # raised and lowered again: v1 wants them in another order each time
    for size in (128 << 20, 32 << 20):
        assert cgroup.limit({"memory": {"limit": size, "swap": size}}) == warnings[:0]


@pytest.mark.root
def test_shares_that_the_kernel_changes(real):
    cgroup, _ = real
    cgroup.create()
    if cgroup.v1("cpu") is None:
        pytest.skip("no v1 controller cpu")
    for asked, text in ((1, "minimum allowed cpu-shares is 2"),
                        (1 << 20, "maximum allowed cpu-shares is 262144")):
        with pytest.raises(engine.EngineError, match=text):
            cgroup.limit({"cpu": {"shares": asked}})


@pytest.mark.root
def test_out_of_memory_is_counted(real):
    cgroup, children = real
    cgroup.create()
    if "memory" not in cgroup.hierarchies.controllers:
        pytest.skip("no memory cgroup here")
    cgroup.limit({"memory": {"limit": 24 << 20, "swap": 24 << 20}})
    watch = cgroup.oom_watch()
    assert cgroup.oom_count() == 0
    child = started(cgroup, children, ["python3", "-c", "x = bytearray(200 << 20)"])
    assert child.wait(20) == -9
    assert cgroup.oom_count() == 1
    if watch is not None:
        assert os.read(watch, 100)
        os.close(watch)


@pytest.mark.root
def test_devices_of_this_kernel(real):
    cgroup, children = real
    cgroup.create()
    rules = [{"allow": False, "access": "rwm"},
             {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"}]
    if cgroup.limit({"devices": rules}):
        pytest.skip("no device cgroup here")
    assert started(cgroup, children, ["sh", "-c", "exec </dev/null"]).wait(5) == 0
    child = started(cgroup, children, ["sh", "-c", "exec </dev/zero 2>/dev/null"])
    assert child.wait(5) != 0


@pytest.mark.root
def test_leaf_is_entered_and_left():
    name = f"engine-test/leaf-{os.getpid()}"
    if not engine.cgroup_paths(name).paths():
        pytest.skip("no cgroup is mounted here")

    def enter_and_leave():
        assert engine.cgroup_enter_leaf(name) == []
        assert engine.cgroup_enter_leaf(name) == []
        with open("/proc/self/cgroup") as file:
            inside = file.read().count(name)
        engine.cgroup_leave_leaf(name)
        return inside
    paths = engine.cgroup_paths(name).paths()
    assert in_child(enter_and_leave) == len(paths)
    assert not [path for path in paths if os.path.exists(os.path.dirname(path))]
