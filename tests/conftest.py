"""What all tests share: module, built file, runner with its own roots, images, leftovers check.

def test_true(cli):                      # an empty engine below /tmp, gone afterwards
    assert cli("version").code == 0

@pytest.mark.root
def test_run(busybox):                   # the same with the image busybox:latest loaded
    assert busybox("run", "--rm", "busybox", "echo", "hi").out == "hi\\n"
"""

from __future__ import annotations

import ctypes
import fcntl
import importlib
import io
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time

import pytest

# Hypothesis keeps tables of its own, by default in the current directory.
os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(
    pathlib.Path(__file__).resolve().parent / ".cache" / "hypothesis"
)
import hypothesis

hypothesis.settings.register_profile("engine", database=None, deadline=None)
hypothesis.settings.load_profile("engine")

TOP = pathlib.Path(__file__).resolve().parent.parent
CACHE = TOP / "tests" / ".cache"
#: The interpreter without a virtual environment around it: what a user's `python3` is.
PYTHON = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)

PR_SET_CHILD_SUBREAPER = 36
#: How many times longer than usual things may take (in an emulated machine).
SLOWNESS = int(os.environ.get("SLOWNESS", "1"))


class Result:
    """What a command did: `.code`, `.out` and `.err` as text, `.raw` and `.raw_err` as bytes."""

    def __init__(self, args, code, out, err):
        self.args, self.code, self.raw, self.raw_err = args, code, out, err
        self.out = out.decode("utf-8", "surrogateescape")
        self.err = err.decode("utf-8", "surrogateescape")

    def __repr__(self):
        seen = f"out {self.out[-2000:]!r}, err {self.err[-2000:]!r}"
        return f"<{' '.join(self.args)}: {self.code}, {seen}>"

    def ok(self):
        """Itself, once sure that the command succeeded."""
        assert self.code == 0, self
        return self

    def lines(self):
        return self.out.splitlines()

    def json(self):
        return json.loads(self.out)


class Roots:
    """A data and a run root of its own: `.data`, `.run`, `.base`, all str."""

    def __init__(self, base):
        self.base = str(base)
        self.data = os.path.join(self.base, "data")
        self.run = os.path.join(self.base, "run")


class Cli:
    """Runs engine.pyz with roots of its own: `cli("ps", "-a").ok().lines()`."""

    def __init__(self, pyz, roots, python=PYTHON):
        self.pyz, self.roots, self.python = str(pyz), roots, python
        self.used = False

    def argv(self, *args):
        return [
            self.python,
            self.pyz,
            "--data-root",
            self.roots.data,
            "--run-root",
            self.roots.run,
            *map(str, args),
        ]

    def environ(self, extra=None):
        kept = {
            name: os.environ[name]
            for name in ("PATH", "HOME", "TERM", "LANG", "LC_ALL", "ENGINE_DEBUG")
            if name in os.environ
        }
        return {**kept, **(extra or {})}

    def __call__(self, *args, input=b"", timeout=60, env=None, **options):
        """Result of one command; input is bytes or text (default: empty), or give stdin=."""
        if "stdin" not in options:
            options["input"] = input.encode() if isinstance(input, str) else input
        self.used = True
        done = subprocess.run(
            self.argv(*args),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            timeout=timeout * SLOWNESS,
            env=self.environ(env),
            **options,
        )
        reap_orphans()
        return Result([str(arg) for arg in args], done.returncode, done.stdout, done.stderr)

    def popen(self, *args, env=None, **options):
        """A running command, its three streams pipes unless told otherwise."""
        self.used = True
        for name in ("stdin", "stdout", "stderr"):
            options.setdefault(name, subprocess.PIPE)
        return subprocess.Popen(self.argv(*args), env=self.environ(env), **options)


# ------------------------------------------------------------------- processes


def proc_stat(pid):
    """(name, state, parent, session) of a process; None when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            head, _, tail = file.read().decode("utf-8", "replace").rpartition(")")
    except OSError:
        return None
    fields = tail.split()
    return head.partition("(")[2], fields[0], int(fields[1]), int(fields[3])


def processes():
    """{pid: (name, state, parent, session)} of all that live or wait to be reaped."""
    found = {int(name): proc_stat(name) for name in os.listdir("/proc") if name.isdigit()}
    return {pid: stat for pid, stat in found.items() if stat}


def alive(pid):
    """True for a process that runs; a zombie doesn't."""
    stat = proc_stat(pid)
    return stat is not None and stat[1] not in "ZX"


def descendants(of=None):
    """{pid: (name, state, parent, session)} of everything below this process.

    The session is a child subreaper, so what daemonizes stays below it and can be told from
    another session's processes on the same machine.
    """
    table, below = processes(), {of or os.getpid()}
    for _ in range(len(table)):
        more = {pid for pid, stat in table.items() if stat[2] in below} - below
        if not more:
            break
        below |= more
    return {pid: table[pid] for pid in below if pid in table and pid != (of or os.getpid())}


def reap_orphans():
    """Zombies that daemons left to us are collected; a test's own children aren't touched."""
    mine, session = os.getpid(), os.getsid(0)
    for pid, (name, state, parent, sid) in processes().items():
        if (
            parent == mine
            and state == "Z"
            and sid != session
            and (name.startswith("engine:") or sid != pid)
        ):
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                pass


def wait_for(condition, timeout=5.0, what="the condition"):
    """The first true value of condition(); fails after timeout seconds."""
    deadline = time.monotonic() + timeout * SLOWNESS
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            pytest.fail(f"{what} did not come true within {timeout} s")
        time.sleep(0.01)


# ------------------------------------------------------------------- leftovers


def private_namespace(name):
    try:
        return os.readlink(f"/proc/self/ns/{name}") != os.readlink(f"/proc/1/ns/{name}")
    except OSError:
        return False


def mounts_of(base):
    """Mount points that are below the session's directory or made of it."""
    with open("/proc/self/mountinfo") as file:
        return {line.split()[4] for line in file if base in line}


def cgroups():
    """Engine and test cgroups of all hierarchies that hold no process; `engine` itself may stay."""
    with open("/proc/self/mountinfo") as file:
        tops = [line.split()[4] for line in file if " - cgroup" in line]
    paths = [
        path
        for top in tops
        for name in ("engine", "engine-test")
        for path, _, _ in os.walk(os.path.join(top, name))
        if os.path.basename(path) not in ("engine", "launcher")
    ]
    return {path for path in paths if cgroup_is_empty(path)}


def cgroup_is_empty(path):
    try:
        with open(os.path.join(path, "cgroup.procs")) as file:
            return not file.read(1)
    except OSError:
        return False


def links():
    """Network interfaces, where the session has a network namespace of its own; else nothing."""
    if not private_namespace("net"):
        return set()
    with open("/proc/net/dev") as file:
        return {line.partition(":")[0].strip() for line in file if ":" in line}


def run_dirs():
    try:
        return set(os.listdir("/run/engine"))
    except (FileNotFoundError, PermissionError):        # not there, or root's
        return set()


def launchers_of(run="", names=("engine:launcher",)):
    """The pids of launchers, of one run root if it is given; not of what they have just forked."""
    found, table = [], descendants()
    for pid, (name, _, parent, *_) in table.items():
        if name in names and table.get(parent, ("",))[0] != name:
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as file:
                    if not run or run.encode() in file.read().split(b"\0"):
                        found.append(pid)
            except OSError:
                continue
    return found


def end_launchers(run=""):
    """Idle launchers, and who watches or waits for a minute more, are told to go."""
    for pid in launchers_of(run, ("engine:launcher", "engine:watch", "engine:commands")):
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            continue


def leftovers(base, before):
    reap_orphans()
    now = {"cgroups": cgroups(), "links": links(), "run directories": run_dirs()}
    left = {kind: sorted(now[kind] - before[kind]) for kind in now}
    left["mounts"] = sorted(mounts_of(base))
    session = os.getsid(0)
    left["processes"] = [
        f"{pid} {stat[0]}"
        for pid, stat in descendants().items()
        if stat[1] != "Z" and (stat[0].startswith("engine:") or stat[3] != session)
    ]
    return {kind: what for kind, what in left.items() if what}


@pytest.fixture(scope="session")
def session_base():
    base = tempfile.mkdtemp(prefix="engine-test-", dir="/tmp")
    yield base
    shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def no_leftovers(session_base):
    """Fails the session when mounts, processes, cgroups, links or run directories stay behind."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    before = {"cgroups": cgroups(), "links": links(), "run directories": run_dirs()}
    yield
    deadline = time.monotonic() + 10
    while True:
        end_launchers()
        left = leftovers(session_base, before)
        if not left or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    for entry in left.get("processes", ()):  # told, and ended: the machine is others' too
        os.kill(int(entry.split()[0]), signal.SIGKILL)
    told = {kind: [*what[:5], f"{len(what)} in all"] for kind, what in left.items()}
    if left:                                    # not an assert: it would print all of them
        pytest.fail(f"left behind: {told}", pytrace=False)


# ------------------------------------------------------------------- fixtures


def pytest_collection_modifyitems(items):
    if os.geteuid() != 0:
        for item in items:
            if item.get_closest_marker("root"):
                item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.fixture(autouse=True)
def signals_as_they_were():
    """A command run in this process may leave handlers that end it; the next test has none."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def engine():
    """The module engine."""
    return importlib.import_module("engine")


@pytest.fixture(scope="session")
def pyz():
    """Path of engine.pyz, built once a session from what the working tree holds.

    In the machines of tests/vm it is the one that they were given.
    """
    if os.environ.get("ENGINE"):
        return pathlib.Path(os.environ["ENGINE"])
    CACHE.mkdir(exist_ok=True)
    target = CACHE / "engine.pyz"
    with open(CACHE / "build.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run(
            [PYTHON, "-B", str(TOP / "build_zipapp.py"), "-o", str(target)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    return target


@pytest.fixture
def roots(session_base, monkeypatch):
    """Data and run root of their own for one test, removed afterwards.

    An ordinary user may test in process whatever starts nothing: only create asks for more, and
    unpacking.
    """
    if os.geteuid():
        import engine as module

        monkeypatch.setattr(module, "layers_stay_packed", bool)
        every = list(module.CAPABILITIES)
        monkeypatch.setattr(module, "capabilities_available", lambda: every)
    base = tempfile.mkdtemp(prefix="r-", dir=session_base)
    yield Roots(base)
    subprocess.run(["rm", "-rf", base], check=False)


@pytest.fixture
def cli(pyz, roots):
    """Runs engine.pyz with roots of its own; what it started is removed at the end."""
    runner = Cli(pyz, roots)
    yield runner
    if runner.used and os.path.exists(os.path.join(roots.data, "engine.db")):
        ids = runner("ps", "-aq").out.split()
        if ids:
            runner("rm", "-f", *ids)
    end_launchers(roots.run)


def rootfs_members():
    """(TarInfo, bytes) of a small root file system around Debian's static busybox."""
    path = shutil.which("busybox") or "/bin/busybox"
    with open(path, "rb") as file:
        program = file.read()
    if b"/ld-" in program[:4096]:
        pytest.skip("busybox is not static: apt-get install busybox-static")
    listed = subprocess.run(
        [path, "--list"], stdout=subprocess.PIPE, check=True, text=True
    ).stdout.split()

    def entry(name, data=b"", mode=0o755, kind=tarfile.REGTYPE, target=""):
        info = tarfile.TarInfo(name)
        info.mode, info.type, info.linkname, info.size, info.mtime = (
            mode,
            kind,
            target,
            len(data),
            1700000000,
        )
        return info, data

    for name, mode in (
        ("bin", 0o755),
        ("dev", 0o755),
        ("etc", 0o755),
        ("home", 0o755),
        ("proc", 0o755),
        ("root", 0o700),
        ("sys", 0o755),
        ("tmp", 0o1777),
        ("usr", 0o755),
        ("usr/bin", 0o755),
        ("var", 0o755),
    ):
        yield entry(name + "/", mode=mode, kind=tarfile.DIRTYPE)
    yield entry("bin/busybox", program)
    for name in sorted(set(listed) - {"busybox"}):
        yield entry("bin/" + name, kind=tarfile.LNKTYPE, target="bin/busybox")
    yield entry(
        "etc/passwd",
        b"root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\n"
        b"user:x:1000:1000:user:/home/user:/bin/sh\n",
        0o644,
    )
    yield entry(
        "etc/group",
        b"root:x:0:\ndaemon:x:1:\naudio:x:29:user\nuser:x:1000:\nextra:x:2000:user\n",
        0o644,
    )


def tar_of(members):
    """Bytes of an uncompressed archive of (TarInfo, bytes)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def docker_archive(layers, config=None, tags=("busybox:latest",)):
    """Bytes of a `docker save` archive of uncompressed layer tars."""
    import hashlib

    digests = [hashlib.sha256(layer).hexdigest() for layer in layers]
    document = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(
            os.uname().machine, os.uname().machine
        ),
        "os": "linux",
        "created": "2024-01-01T00:00:00Z",
        "config": {
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "Cmd": ["sh"],
            **(config or {}),
        },
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + digest for digest in digests]},
        "history": [{"created": "2024-01-01T00:00:00Z", "created_by": "test"} for _ in layers],
    }
    text = json.dumps(document).encode()
    name = hashlib.sha256(text).hexdigest()
    manifest = [
        {
            "Config": name + ".json",
            "RepoTags": list(tags),
            "Layers": [digest + "/layer.tar" for digest in digests],
        }
    ]
    files = [
        (name + ".json", text),
        ("manifest.json", json.dumps(manifest).encode()),
        *((digest + "/layer.tar", layer) for digest, layer in zip(digests, layers)),
    ]
    members = []
    for path, data in files:
        info = tarfile.TarInfo(path)
        info.size, info.mtime = len(data), 1700000000
        members.append((info, data))
    return tar_of(members)


@pytest.fixture(scope="session")
def busybox_rootfs(session_base):
    """Path of a tar with busybox and its applets as hard links: what `import` takes."""
    path = os.path.join(session_base, "busybox-rootfs.tar")
    with open(path, "wb") as file:
        file.write(tar_of(rootfs_members()))
    return path


@pytest.fixture(scope="session")
def busybox_tar(busybox_rootfs, session_base):
    """Path of a docker-archive tagged busybox:latest: what `load` takes."""
    path = os.path.join(session_base, "busybox.tar")
    with open(busybox_rootfs, "rb") as layer, open(path, "wb") as file:
        file.write(docker_archive([layer.read()]))
    return path


@pytest.fixture
def busybox(cli, busybox_tar):
    """The runner `cli` with the image busybox:latest loaded."""
    cli("load", "-i", busybox_tar).ok()
    return cli
