#!/usr/bin/env python3
"""engine.pyz beside Debian's docker and podman, and the least that the kernel asks for: make bench.

    side_by_side.py [--only run,exec] [--rounds 1.0] [--runs 1] [--peers docker,podman]

Runs as root in mount and network namespaces of its own (loopback only, no default route); starts
and ends the peers itself, with roots of their own. Targets are interleaved and the order is turned
every round, so that noise hits all alike: the ratios are what counts. A cell is the median over the
rounds; with --runs the median of those. BUDGETS are the figures that must hold.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import ctypes
import fcntl
import http.client
import json
import os
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time

import material
from targets import (
    DaemonTarget,
    DockerTarget,
    EngineTarget,
    Failed,
    PodmanTarget,
    descendants,
    spawn,
)

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
CACHE = os.path.join(TOP, "tests", ".cache", "bench")
IMAGE = material.IMAGE
LINE = "0123456789abcdef" * 3 + "0123456789abcde"
FIFTY_MB = f"yes {LINE} | head -c 50000000"

#: (benchmark, metric, target, how: "of" a factor times, or "over" so many ms above, other target,
#: bound)
BUDGETS = (
    ("client", "version", "engine", "over", "python", 8.0),
    ("client", "--help", "engine", "over", "python", 5.0),
    ("client", "ps, 50 containers", "engine", "over", "python", 18.0),
    ("run", "run --rm true", "engine", "of", "podman", 0.25),
    ("run", "run --rm true", "engine", "of", "docker", 0.20),
    ("run", "run --rm true, cold", "engine", "of", "podman", 0.50),
    ("parallel", "40 run --rm, 8 at a time", "engine", "of", "docker", 0.25),
    ("detached", "run -d", "engine", "of", "podman", 0.30),
    ("exec", "exec true", "engine", "of", "docker", 0.60),
    ("memory", "monitor, private", "engine", "of", "limit", 1.0),
    ("memory", "monitor, processes", "engine", "of", "limit", 1.0),
    ("output", "50 MB attached", "engine", "of", "docker", 0.30),
    ("output", "logs of 50 MB", "engine", "of", "docker", 0.20),
    ("docker", "run --rm true", "daemon", "of", "docker", 0.20),
    ("docker", "exec true", "daemon", "of", "docker", 0.50),
    ("docker", "40 run --rm, 8 at a time", "daemon", "of", "docker", 0.25),
    ("api", "create", "daemon", "of", "docker", 1.0),
    ("api", "start", "daemon", "of", "docker", 0.08),
    ("api", "exec", "daemon", "of", "docker", 0.20),
    ("api", "kill and wait", "daemon", "of", "docker", 0.20),
    ("api", "delete", "daemon", "of", "docker", 1.0),
    ("fifty", "_ping, p50", "daemon", "of", "docker", 1.0),
    ("fifty", "_ping, p99", "daemon", "of", "docker", 1.0),
    ("fifty", "version, p50", "daemon", "of", "docker", 1.0),
    ("fifty", "version, p99", "daemon", "of", "docker", 1.0),
    ("fifty", "list of 50, p50", "daemon", "of", "docker", 1.0),
    ("fifty", "list of 50, p99", "daemon", "of", "docker", 1.0),
    ("fifty", "per container", "daemon", "of", "limit", 1.0),
    ("fifty", "launcher and daemon", "daemon", "of", "limit", 1.0),
    ("files", "cp in, 20,000 files", "engine", "of", "docker", 1.0),
    ("files", "cp out, 20,000 files", "engine", "of", "docker", 1.0),
    ("files", "cp in, 1 GB", "engine", "of", "docker", 1.0),
    ("files", "cp out, 1 GB", "engine", "of", "docker", 1.0),
    ("files", "diff, 20,000 files", "engine", "of", "find", 1.5),
    ("files", "commit of 100 MB", "engine", "of", "docker", 1.0),
    ("volume", "1 GB, volume", "engine", "of", "host", 1.1),
    ("volume", "1 GB, bind", "engine", "of", "host", 1.1),
    ("volume", "1 GB, container layer", "engine", "of", "host", 1.1),
    ("load", "load 20,000 files", "engine", "of", "tar", 1.5),
    ("load", "load 6 layers of 40 MB", "engine", "of", "docker", 0.50),
    ("pull", "pull 20,000 files", "engine", "of", "docker", 0.60),
    ("pull", "pull 6 layers of 40 MB", "engine", "of", "docker", 0.50),
    ("pull", "pull of what is there", "engine", "over", "python", 45.0),
    ("pull", "pull of what is there, by the API", "daemon", "of", "limit", 1.0),
    ("pull", "PSS of pull 20,000 files", "engine", "of", "limit", 1.0),
    ("pull", "PSS of pull 6 layers of 40 MB", "engine", "of", "limit", 1.0),
    ("pull", "PSS of pull 1 layer of 240 MB", "engine", "of", "limit", 1.0),
    ("push", "push of a loaded image", "engine", "of", "docker", 0.60),
)


class Bench:
    """Samples by (benchmark, metric, target), and what every benchmark needs."""

    def __init__(self, options, work):
        self.options, self.work = options, work
        self.python = options.python
        self.samples, self.units, self.failures = {}, {}, {}
        self.engine = EngineTarget(work, options.python, options.pyz)
        peers = {"docker": DockerTarget, "podman": PodmanTarget}
        chosen = [name for name in options.peers.split(",") if name]
        self.targets = [self.engine, *(peers[name](work) for name in chosen)]

    def rounds(self, count):
        return max(1, round(count * self.options.rounds))

    def put(self, bench, metric, target, value, unit="ms"):
        self.units[bench, metric] = unit
        self.samples.setdefault((bench, metric), {}).setdefault(target, []).append(value)

    def fail(self, bench, target, error):
        self.failures[bench, target] = str(error)
        print(f"  {bench}: {target}: {error}", file=sys.stderr, flush=True)

    def interleave(self, bench, functions, rounds, warm=1):
        """functions: {target name: function that returns {metric: value in ms}}."""
        dead = set()
        for turn in range(-warm, self.rounds(rounds)):
            names = [name for name in functions if name not in dead]
            for name in names if turn % 2 else reversed(names):
                try:
                    values = functions[name]()
                except (Failed, OSError, subprocess.SubprocessError) as error:
                    self.fail(bench, name, error)
                    dead.add(name)
                    continue
                if turn >= 0:
                    for metric, value in values.items():
                        self.put(bench, metric, name, value)

    def each(self, bench, function):
        """The targets for which a preparation works."""
        good = []
        for target in self.targets:
            try:
                function(target)
                good.append(target)
            except (Failed, OSError, subprocess.SubprocessError) as error:
                self.fail(bench, target.name, error)
        return good


def command_ms(*command):
    code, _, err, seconds = spawn(list(command), keep=False)
    if code:
        raise Failed(f"{command[0]}: {err.decode(errors='replace')[-200:]}")
    return seconds * 1e3


# ------------------------------------------------------------------ benchmarks


def bench_client(bench):
    """What the command line alone costs, over an interpreter that does nothing."""
    good = bench.each(
        "client", lambda t: [t.run("create", "--network", "none", IMAGE, "true") for _ in range(50)]
    )

    def one(target):
        return {
            "--help": command_ms(*target.program, "--help"),
            "version": target.seconds("version") * 1e3,
            "ps, 50 containers": target.seconds("ps", "-a") * 1e3,
        }

    functions = {target.name: lambda target=target: one(target) for target in good}
    functions["python"] = lambda: dict.fromkeys(
        ("--help", "version", "ps, 50 containers"), command_ms(bench.python, "-c", "pass")
    )
    bench.interleave("client", functions, 15)
    for target in good:
        target.remove(*target.run("ps", "-aq")[0].decode().split())


def bench_run(bench):
    """run --rm of a program that ends at once: warm, and out of nothing."""
    line = ["run", "--rm", "--network", "none", IMAGE, "true"]
    functions = {
        t.name: lambda t=t: {"run --rm true": t.seconds(*line) * 1e3} for t in bench.targets
    }
    functions.update(floor_functions(bench))
    bench.interleave("run", functions, 15, warm=2)

    def cold(target):
        target.cool()
        return {"run --rm true, cold": target.seconds(*line) * 1e3}

    bench.interleave(
        "run", {t.name: lambda t=t: cold(t) for t in bench.targets if t.name != "docker"}, 7
    )


def floor_functions(bench):
    """The same by hand: runc on a bundle, and floor.c, which makes only the system calls."""
    rootfs = os.path.join(bench.work, "rootfs")
    if not os.path.isdir(rootfs):
        os.mkdir(rootfs)
        layer = material.image(CACHE, "busybox")[1][0]
        subprocess.run(["tar", "-xf", layer, "-C", rootfs], check=True)
    functions = {}
    if shutil.which("cc") or shutil.which("gcc"):
        program, work = os.path.join(bench.work, "floor"), os.path.join(bench.work, "floor.d")
        os.makedirs(work, exist_ok=True)
        subprocess.run(
            [
                shutil.which("gcc") or "cc",
                "-O2",
                "-w",
                "-o",
                program,
                os.path.join(HERE, "floor.c"),
            ],
            check=True,
        )

        def floor():
            out = spawn([program, "-s", "-n", "5", "-i", "100", "-w", work, rootfs])[1]
            return {"run --rm true": json.loads(out)["total"] / 1e3}

        functions["floor"] = floor
    if shutil.which("runc"):
        bundle = runc_bundle(bench.work, rootfs)
        functions["runc"] = lambda: {
            "run --rm true": command_ms("runc", "run", "-b", bundle, f"bench-{os.getpid()}")
        }
    return functions


def runc_bundle(work, rootfs):
    bundle = os.path.join(work, "bundle")
    config = os.path.join(bundle, "config.json")
    if not os.path.exists(config):
        os.makedirs(bundle)
        subprocess.run(["runc", "spec", "-b", bundle], check=True)
        with open(config) as file:
            document = json.load(file)
        document["process"].update(args=["true"], terminal=False)
        document["process"].pop("rlimits", None)
        document["root"] = {"path": rootfs, "readonly": False}
        with open(config, "w") as file:
            json.dump(document, file)
    return bundle


def bench_parallel(bench):
    """40 containers, 8 at a time; all must succeed."""
    line = ["run", "--rm", "--network", "none", IMAGE, "true"]

    def burst(target):
        begin = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: target.seconds(*line), range(40)))
        taken = time.perf_counter() - begin
        if left := target.run("ps", "-aq")[0].split():
            raise Failed(f"{len(left)} containers are left")
        return {"40 run --rm, 8 at a time": taken * 1e3}

    bench.interleave("parallel", {t.name: lambda t=t: burst(t) for t in bench.targets}, 3)


def bench_detached(bench):
    """run -d until the prompt is back, and rm -f."""

    def one(target):
        name = target.new_name()
        taken = target.seconds(
            "run", "-d", "--name", name, "--network", "none", IMAGE, "sleep", "1000"
        )
        spawn([*target.prefix, "kill", name], target.env)
        return {"run -d": taken * 1e3, "rm -f": target.seconds("rm", "-f", name) * 1e3}

    bench.interleave("detached", {t.name: lambda t=t: one(t) for t in bench.targets}, 10)


def running(target, *command):
    name = target.new_name()
    target.run(
        "run", "-d", "--name", name, "--network", "none", *target.log_options, IMAGE, *command
    )
    return name


def bench_exec(bench):
    """exec true in a container that runs."""
    names = {}
    good = bench.each("exec", lambda t: names.update({t.name: running(t, "sleep", "1000")}))
    bench.interleave(
        "exec",
        {
            t.name: lambda t=t: {"exec true": t.seconds("exec", names[t.name], "true") * 1e3}
            for t in good
        },
        15,
    )
    for target in good:
        target.remove(names[target.name])


def private_kib(pid):
    with open(f"/proc/{pid}/smaps_rollup") as file:
        fields = dict(line.split(":", 1) for line in file.read().splitlines()[1:])
    return sum(int(fields[name].split()[0]) for name in ("Private_Clean", "Private_Dirty"))


def bench_memory(bench):
    """What stays per container, two seconds after 10,000 lines of log and 20 execs."""
    command = [
        "sh",
        "-c",
        "i=0; while [ $i -lt 10000 ]; do echo line $i of the log; i=$((i+1)); done; sleep 1000",
    ]

    def one(target):
        before = set(target.monitors())
        name = running(target, *command)
        for _ in range(20):
            target.run("exec", name, "true")
        deadline = time.monotonic() + 20
        while len(target.run("logs", name)[0].splitlines()) < 10_000:
            if time.monotonic() > deadline:
                raise Failed("10,000 lines did not arrive")
            time.sleep(0.2)
        time.sleep(2)
        pids = set(target.monitors()) - before
        if not pids:
            raise Failed("no process stays for the container")
        bench.put("memory", "monitor, private", target.name, sum(map(private_kib, pids)), "KiB")
        bench.put("memory", "monitor, processes", target.name, len(pids), "")
        target.remove(name)

    bench.each("memory", one)
    bench.put("memory", "monitor, private", "limit", 0.9 * 1024, "KiB")
    bench.put("memory", "monitor, processes", "limit", 1, "")


def bench_output(bench):
    """50 MB to stdout, attached; and read back from the log."""
    names = {}

    def prepare(target):
        name = target.new_name()
        target.run(
            "run",
            "-d",
            "--name",
            name,
            "--network",
            "none",
            *target.log_options,
            IMAGE,
            "sh",
            "-c",
            FIFTY_MB,
        )
        target.run("wait", name)
        if len(target.run("logs", name)[0]) != 50_000_000:
            raise Failed("logs gave another number of bytes")
        names[target.name] = name

    def one(target):
        line = [
            "run",
            "--rm",
            "--network",
            "none",
            *target.log_options,
            IMAGE,
            "sh",
            "-c",
            FIFTY_MB,
        ]
        return {
            "50 MB attached": target.seconds(*line) * 1e3,
            "logs of 50 MB": target.seconds("logs", names[target.name]) * 1e3,
        }

    good = bench.each("output", prepare)
    bench.interleave("output", {t.name: lambda t=t: one(t) for t in good}, 3, warm=0)
    for target in good:
        target.remove(names[target.name])


@contextlib.contextmanager
def fresh_file_system(work):
    """Mount point of a new ext4: where files were just deleted, ext4 is ten times slower."""
    file, mount = os.path.join(work, "disk"), os.path.join(work, "mnt")
    os.makedirs(mount, exist_ok=True)
    with open(file, "wb") as disk:
        disk.truncate(3 << 30)
    subprocess.run(
        ["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", file], check=True
    )
    subprocess.run(["mount", "-o", "loop", file, mount], check=True)
    os.sync()
    try:
        yield mount
    finally:
        for _ in range(50):
            if (
                subprocess.run(["umount", mount], stderr=subprocess.DEVNULL, check=False).returncode
                == 0
            ):
                break
            time.sleep(0.1)
        else:
            subprocess.run(["umount", "-l", mount], check=True)
        os.unlink(file)


def tar_ms(bench, layers, how):
    """Milliseconds of tar for the layers, on a fresh file system and with `sync -f` after it."""
    with fresh_file_system(bench.work) as mount:
        begin = time.perf_counter()
        for layer in layers:
            subprocess.run(["tar", how, layer, "-C", mount], check=True)
        subprocess.run(["sync", "-f", mount], check=True)
        return (time.perf_counter() - begin) * 1e3


def bench_load(bench):
    """load on a fresh file system each, with `sync -f` after it; beside tar and `sync -f`."""
    for name, metric in (("files", "load 20,000 files"), ("six", "load 6 layers of 40 MB")):
        archive, layers = material.image(CACHE, name)

        def one(target, archive=archive, metric=metric):
            with fresh_file_system(bench.work) as mount:
                target.start(mount)
                try:
                    target.run("version")
                    taken = (
                        target.seconds("load", "-i", archive)
                        + command_ms("sync", "-f", mount) / 1e3
                    )
                finally:
                    target.end()
            return {metric: taken * 1e3}

        def tar(layers=layers, metric=metric):
            return {metric: tar_ms(bench, layers, "-xf")}

        functions = {
            target.name: lambda target=target, one=one: one(target) for target in bench.targets
        }
        bench.interleave("load", {**functions, "tar": tar}, 3, warm=0)
    for target in bench.targets:
        target.start()


# ------------------------------------------------------ images to and from a registry


class Registry:
    """Debian's docker-registry on loopback, empty at first; a context manager."""

    def __init__(self, bench, name):
        self.root = os.path.join(bench.work, "registry-" + name)
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.host = "127.0.0.1:%d" % sock.getsockname()[1]

    def __enter__(self):
        os.makedirs(self.root)
        config = os.path.join(self.root, "config.yml")
        with open(config, "w") as file:
            json.dump(
                {
                    "version": "0.1",
                    "log": {"level": "error", "accesslog": {"disabled": True}},
                    "storage": {"filesystem": {"rootdirectory": self.root}},
                    "http": {"addr": self.host},
                },
                file,
            )
        self.process = subprocess.Popen(
            ["docker-registry", "serve", config],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        host, _, port = self.host.partition(":")
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection((host, int(port))):
                return self
            time.sleep(0.02)
        raise Failed("docker-registry does not answer")

    def __exit__(self, *failure):
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.root)

    def name(self, image):
        return f"{self.host}/bench/{image}:latest"

    def layers(self, image):
        """Paths of the blobs of an image's layers."""
        host, _, port = self.host.partition(":")
        asked = http.client.HTTPConnection(host, int(port))
        media = "application/vnd.docker.distribution.manifest.v2+json"
        oci = "application/vnd.oci.image.manifest.v1+json"
        headers = {"Accept": f"{media}, {oci}"}
        asked.request("GET", f"/v2/bench/{image}/manifests/latest", headers=headers)
        digests = [each["digest"] for each in json.load(asked.getresponse())["layers"]]
        blobs = os.path.join(self.root, "docker/registry/v2/blobs/sha256")
        return [f"{blobs}/{each[7:9]}/{each[7:]}/data" for each in digests]


def push_line(target, name):
    return ["push", *(["--tls-verify=false"] if target.name == "podman" else []), name]


def pull_line(target, name):
    return ["pull", *(["--tls-verify=false"] if target.name == "podman" else []), name]


def local_name(target, image):
    return ("localhost/" if target.name == "podman" else "") + f"bench-{image}:latest"


def publish(bench, registry, *images):
    """Has images in the registry, as docker compresses them, or who is there in its place."""
    target = next((t for t in bench.targets if t.name == "docker"), bench.targets[0])
    for image in images:
        name = registry.name(image)
        target.run("load", "-i", material.image(CACHE, image)[0])
        target.run("tag", local_name(target, image), name)
        target.run(*push_line(target, name))
        target.run("rmi", name, local_name(target, image))


class Shares:
    """The most memory (PSS) that processes held together, looked at while something runs."""

    def __init__(self, pids):
        self.pids, self.most, self.is_over = pids, 0, threading.Event()
        self.thread = threading.Thread(target=self.look)

    def look(self):
        while not self.is_over.wait(0.2):
            total = 0
            for pid in self.pids():
                with contextlib.suppress(OSError, ValueError), open(
                    f"/proc/{pid}/smaps_rollup"
                ) as file:
                    total += int(file.read().partition("\nPss:")[2].split()[0])
            self.most = max(self.most, total)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *failure):
        self.is_over.set()
        self.thread.join()


PULLED = (
    ("files", "pull 20,000 files"),
    ("six", "pull 6 layers of 40 MB"),
    ("one", "pull 1 layer of 240 MB"),
)


def bench_pull(bench):
    """pull onto a fresh file system, with `sync -f` after it; beside tar; and what is there."""
    with Registry(bench, "pull") as registry:
        publish(bench, registry, *(image for image, _ in PULLED))
        for image, metric in PULLED:
            bench.interleave("pull", pull_functions(bench, registry, image, metric), 3, warm=0)
        for target in bench.targets:
            target.start()
        pull_again(bench, registry)
        pull_memory(bench, registry)


def pull_functions(bench, registry, image, metric):
    name, layers = registry.name(image), registry.layers(image)

    def one(target):
        with fresh_file_system(bench.work) as mount:
            target.start(mount)
            try:
                target.run("version")
                taken = target.seconds(*pull_line(target, name))
                synced = command_ms("sync", "-f", mount)
            finally:
                target.end()
        return {metric: taken * 1e3 + synced}

    def tar():
        return {metric: tar_ms(bench, layers, "-xzf")}

    functions = {target.name: lambda target=target: one(target) for target in bench.targets}
    return {**functions, "tar": tar}


def pull_again(bench, registry):
    """A pull that has everything: by the command line, and by the API."""
    name = registry.name("six")
    metric = "pull of what is there"
    lines = {}
    for target in bench.each("pull", lambda target: target.run(*pull_line(target, name))):
        line = pull_line(target, name)
        lines[target.name] = lambda t=target, line=line: {metric: t.seconds(*line) * 1e3}
    python = [bench.options.python, "-c", "pass"]
    bench.interleave("pull", {**lines, "python": lambda: {metric: command_ms(*python)}}, 15)
    with daemons(bench, "pull") as both:
        for target in both:
            target.run("pull", name)

        def ask(target):
            api = Api(target.socket)
            host, _, tag = name.rpartition(":")
            begin = time.perf_counter()
            api.request("POST", f"/images/create?fromImage={host}&tag={tag}")
            said = api.getresponse().read()
            taken = (time.perf_counter() - begin) * 1e3
            api.close()
            if b"Image is up to date" not in said:
                raise Failed(f"pull of {name}: {said[-200:]}")
            return {metric + ", by the API": taken}

        bench.interleave("pull", {t.name: lambda t=t: ask(t) for t in both}, 15)
    bench.put("pull", metric + ", by the API", "limit", 20.0)


def pull_memory(bench, registry):
    """What all processes of a pull hold at once."""
    mine = os.getpid()
    for image, metric in PULLED:
        with fresh_file_system(bench.work) as mount:
            bench.engine.start(mount)
            bench.engine.cool()
            before = descendants()
            try:
                with Shares(lambda before=before: descendants() - before - {mine}) as shares:
                    bench.engine.run(*pull_line(bench.engine, registry.name(image)))
            finally:
                bench.engine.end()
        bench.put("pull", "PSS of " + metric, "engine", shares.most / 1024, "MiB")
        bench.put("pull", "PSS of " + metric, "limit", 80.0, "MiB")
    bench.engine.start()


def bench_push(bench):
    """push of what was loaded (compressed on the way) and of what was pulled, each to a new
    registry from a fresh file system."""

    def push(target, name, metric):
        with Registry(bench, "push") as registry:
            there = registry.name("six")
            target.run("tag", name, there)
            return {metric: target.seconds(*push_line(target, there)) * 1e3}

    def one(target, first):
        with fresh_file_system(bench.work) as mount:
            target.start(mount)
            try:
                target.run("load", "-i", material.image(CACHE, "six")[0])
                found = push(target, local_name(target, "six"), "push of a loaded image")
            finally:
                target.end()
        with fresh_file_system(bench.work) as mount:
            target.start(mount)
            try:
                target.run(*pull_line(target, first.name("six")))
                return {**found, **push(target, first.name("six"), "push of a pulled image")}
            finally:
                target.end()

    with Registry(bench, "first") as first:
        publish(bench, first, "six")
        functions = {target.name: lambda t=target: one(t, first) for target in bench.targets}
        bench.interleave("push", functions, 3, warm=0)
    for target in bench.targets:
        target.start()


# ------------------------------------------------------ the daemon, beside dockerd


class Api(http.client.HTTPConnection):
    """One kept connection to a socket; ask("GET", "/_ping") -> (value, ms)."""

    def __init__(self, path):
        super().__init__("localhost", timeout=60)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)

    def ask(self, method, path, body=None):
        data = None if body is None else json.dumps(body)
        headers = {"Content-Type": "application/json"} if data else {}
        begin = time.perf_counter()
        self.request(method, path, data, headers)
        reply = self.getresponse()
        text = reply.read()
        taken = (time.perf_counter() - begin) * 1e3
        if reply.status >= 400:
            raise Failed(f"{method} {path}: {reply.status} {text[:200]}")
        is_json = reply.headers.get("Content-Type") == "application/json" and text
        return json.loads(text) if is_json else text, taken

    def hijack(self, path, body):
        """ms of a request whose connection ends with what it asked for."""
        data = json.dumps(body)
        begin = time.perf_counter()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(60)
            sock.connect(self.path)
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
            sock.sendall((head + data).encode())
            while sock.recv(65536):
                pass
        return (time.perf_counter() - begin) * 1e3


@contextlib.contextmanager
def daemons(bench, name):
    """[engine.pyz as a daemon, dockerd] where both can be; the image is in them."""
    peers = [target for target in bench.targets if target.name == "docker"]
    if not peers or not shutil.which("docker"):
        yield []
        return
    target = DaemonTarget(bench.work, bench.options.python, bench.options.pyz)
    try:
        target.serve()
        target.check(material.image(CACHE, "busybox")[0])
        yield [target, *peers]
    except (Failed, OSError) as error:
        bench.fail(name, target.name, error)
    finally:
        target.end()


def body_of(*command):
    return {"Image": IMAGE, "Cmd": command, "HostConfig": {"NetworkMode": "none"}}


def bench_docker(bench):
    """The docker command line on both sockets."""
    line = ["run", "--rm", "--network", "none", IMAGE, "true"]

    def burst(target):
        begin = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: target.seconds(*line), range(40)))
        return {"40 run --rm, 8 at a time": (time.perf_counter() - begin) * 1e3}

    with daemons(bench, "docker") as both:
        names = {target.name: running(target, "sleep", "1000") for target in both}

        def one(target):
            taken = target.seconds("exec", names[target.name], "true")
            return {"run --rm true": target.seconds(*line) * 1e3, "exec true": taken * 1e3}

        bench.interleave("docker", {t.name: lambda t=t: one(t) for t in both}, 15)
        bench.interleave("docker", {t.name: lambda t=t: burst(t) for t in both}, 3)
        for target in both:
            target.remove(names[target.name])


def bench_api(bench):
    """The life of a container by the raw API, on one connection that is kept."""

    def one(target):
        api = Api(target.socket)
        out = {}
        made, out["create"] = api.ask("POST", "/containers/create", body_of("sleep", "1000"))
        path = "/containers/" + made["Id"]
        _, out["start"] = api.ask("POST", path + "/start")
        asked = {"Cmd": ["true"], "AttachStdout": True, "AttachStderr": True}
        noted, out["exec"] = api.ask("POST", path + "/exec", asked)
        out["exec"] += api.hijack(f"/exec/{noted['Id']}/start", {})
        _, out["kill and wait"] = api.ask("POST", path + "/kill")
        out["kill and wait"] += api.ask("POST", path + "/wait")[1]
        _, out["delete"] = api.ask("DELETE", path)
        api.close()
        return out

    with daemons(bench, "api") as both:
        bench.interleave("api", {t.name: lambda t=t: one(t) for t in both}, 15, warm=2)


def bench_fifty(bench):
    """50 containers: small requests beside them, and the memory of what keeps them."""
    asked = {"_ping": "/_ping", "version": "/version", "list of 50": "/containers/json"}
    with daemons(bench, "fifty") as both:
        ids = {}
        for target in both:
            before, api = set(target.monitors()), Api(target.socket)
            ids[target.name] = []
            for _ in range(50):
                made = api.ask("POST", "/containers/create", body_of("sleep", "1000"))[0]
                ids[target.name].append(made["Id"])
                api.ask("POST", f"/containers/{made['Id']}/start")
            api.close()
            time.sleep(2)
            keepers = set(target.monitors()) - before
            share = sum(map(private_kib, keepers)) / 50
            core = sum(map(private_kib, target.core()))
            bench.put("fifty", "per container", target.name, share, "KiB")
            bench.put("fifty", "launcher and daemon", target.name, core, "KiB")

        def one(target):
            api = Api(target.socket)
            out = {}
            for what, path in asked.items():
                times = sorted(api.ask("GET", path)[1] for _ in range(200))
                out[what + ", p50"], out[what + ", p99"] = times[100], times[198]
            api.close()
            return out

        bench.interleave("fifty", {t.name: lambda t=t: one(t) for t in both}, 5)
        for target in both:
            target.remove(*ids[target.name])
    bench.put("fifty", "per container", "limit", 1024, "KiB")
    bench.put("fifty", "launcher and daemon", "limit", 40 * 1024, "KiB")


def files_make(work):
    """(directory of 20,000 small files, file of 1 GB) to be copied."""
    small, large = os.path.join(work, "small"), os.path.join(work, "large")
    for number in range(20_000):
        os.makedirs(f"{small}/{number // 100}", exist_ok=True)
        with open(f"{small}/{number // 100}/{number}", "wb") as file:
            file.write(b"x" * (number * 37 % 4000))
    block = os.urandom(1 << 20)
    with open(large, "wb") as file:
        for _ in range(1000):
            file.write(block)
    return small, large


def bench_files(bench):
    """Files in and out of a container that runs, what it changed, and an image made of that."""
    small, large = files_make(bench.work)
    out = os.path.join(bench.work, "out")
    names = {}

    def start(target):
        names[target.name] = name = target.new_name()
        sleeper = ["run", "-d", "--network", "none", "--name", name, IMAGE, "sleep", "10000"]
        target.run(*sleeper)

    def timed(target, *line):
        os.sync()
        return target.seconds(*line) * 1000

    def one(target):
        name, found = names[target.name], {}
        found["cp in, 20,000 files"] = timed(target, "cp", small, name + ":/tmp/small")
        found["cp out, 20,000 files"] = timed(target, "cp", name + ":/tmp/small", out)
        shutil.rmtree(out)
        found["diff, 20,000 files"] = timed(target, "diff", name)
        shown = target.run("inspect", "-f", "{{.GraphDriver.Data.UpperDir}}", name)[0]
        command = ["find", shown.decode().strip(), "-ls"]
        bench.put("files", "diff, 20,000 files", "find", spawn(command, keep=False)[3] * 1000)
        found["cp in, 1 GB"] = timed(target, "cp", large, name + ":/tmp/large")
        found["cp out, 1 GB"] = timed(target, "cp", name + ":/tmp/large", out)
        os.unlink(out)
        target.run("exec", name, "rm", "-r", "/tmp/small", "/tmp/large")
        target.run("exec", name, "dd", "if=/dev/urandom", "of=/tmp/new", "bs=1M", "count=100")
        found["commit of 100 MB"] = timed(target, "commit", name, name)
        target.run("rmi", name)
        return found

    everyone = [target for target in bench.targets if target.name != "podman"]
    for target in everyone:
        start(target)
    bench.interleave("files", {t.name: lambda t=t: one(t) for t in everyone}, 5)
    for target in everyone:
        target.remove(names[target.name])
    shutil.rmtree(small)
    os.unlink(large)


def bench_volume(bench):
    """1 GB written with fsync(2) and read again, by the same program: here and in a container."""
    bind = os.path.join(bench.work, "bind")
    os.mkdir(bind)
    places = {"volume": "/volume", "bind": "/bind", "container layer": "/tmp"}
    names = {}

    def job(directory):
        file = directory + "/gigabyte"
        written = f"dd if=/dev/zero of={file} bs=1M count=1000 conv=fsync"
        return ["sh", "-c", f"{written} && dd if={file} of=/dev/null bs=1M"]

    def start(target):
        names[target.name] = name = target.new_name()
        mounts = ["-v", name + ":/volume", "-v", bind + ":/bind"]
        sleeper = ["--network", "none", "--name", name, IMAGE, "sleep", "10000"]
        target.run("run", "-d", *mounts, *sleeper)

    def one(target):
        found = {}
        for place, directory in places.items():
            os.sync()
            line = ["exec", names[target.name], *job(directory)]
            found["1 GB, " + place] = target.seconds(*line) * 1000
            target.run("exec", names[target.name], "rm", directory + "/gigabyte")
        return found

    def host():
        found = {}
        for place in places:
            os.sync()
            found["1 GB, " + place] = command_ms("busybox", *job(bind))
            os.unlink(bind + "/gigabyte")
        return found

    good = bench.each("volume", start)
    functions = {target.name: lambda target=target: one(target) for target in good}
    bench.interleave("volume", {**functions, "host": host}, 9)
    for target in good:
        target.remove(names[target.name])


BENCHES = {
    "client": bench_client,
    "run": bench_run,
    "parallel": bench_parallel,
    "detached": bench_detached,
    "exec": bench_exec,
    "memory": bench_memory,
    "output": bench_output,
    "docker": bench_docker,
    "api": bench_api,
    "fifty": bench_fifty,
    "files": bench_files,
    "volume": bench_volume,
    "load": bench_load,
    "pull": bench_pull,
    "push": bench_push,
}


# ---------------------------------------------------------------------- report


def medians(samples):
    return {
        key: {name: statistics.median(values) for name, values in row.items()}
        for key, row in samples.items()
    }


def shown(value):
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def table(bench, middle):
    columns = "engine daemon docker podman runc floor host find tar python limit"
    names = [name for name in columns.split() if any(name in row for row in middle.values())]
    lines = ["| | unit | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    for (part, metric), row in middle.items():
        ours = "engine" if "engine" in row else "daemon"
        mine = row.get(ours)
        cells = []
        for name in names:
            if name not in row:
                cells.append("failed" if (part, name) in bench.failures else "-")
            elif name == ours or mine is None or not row[name]:
                cells.append(shown(row[name]))
            else:
                cells.append(f"{shown(row[name])} ({ours} {mine / row[name]:.2f}x)")
        lines.append(f"| {metric} | {bench.units[part, metric]} | " + " | ".join(cells) + " |")
    return lines


def budgets(middle):
    """(lines, how many don't hold); what wasn't measured is left out."""
    lines, missed = [], 0
    for part, metric, name, how, other, bound in BUDGETS:
        row = middle.get((part, metric), {})
        if name not in row or other not in row:
            continue
        value = row[name] - row[other] if how == "over" else row[name] / row[other]
        unit = "ms over" if how == "over" else "x"
        verdict = "ok" if value <= bound else "MISSED"
        missed += value > bound
        lines.append(f"{verdict:6} {metric}: {value:.2f} {unit} {other}, at most {bound:g}")
    return lines, missed


# ------------------------------------------------------------------------ main


def namespaces_enter():
    """The program again, in mount and network namespaces of its own with nothing but a loopback."""
    if os.environ.get("ENGINE_BENCH_INSIDE"):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            fcntl.ioctl(sock, 0x8914, struct.pack("16sH22x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP
        if os.path.isdir("/run/containerd"):
            # dockerd would use the containerd of the machine, and leave its state in it.
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run/containerd"], check=True)
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
        return
    os.environ["ENGINE_BENCH_INSIDE"] = "1"
    os.execvp("unshare", ["unshare", "-mn", "--propagation", "private", sys.executable, *sys.argv])


def options_parse():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(BENCHES), help="of: " + ",".join(BENCHES))
    parser.add_argument(
        "--peers", default="docker,podman", help="which peers to start; may be empty"
    )
    parser.add_argument("--rounds", type=float, default=1.0, help="multiplies the number of rounds")
    parser.add_argument("--runs", type=int, default=1, help="whole runs; the median of them counts")
    parser.add_argument("--python", default="/usr/bin/python3", help="what engine.pyz runs with")
    parser.add_argument("--pyz", default=os.path.join(TOP, "engine.pyz"))
    parser.add_argument("--json", default=os.path.join(CACHE, "last.json"))
    options = parser.parse_args()
    options.only = options.only.split(",")
    if unknown := set(options.only) - set(BENCHES):
        parser.error("no such benchmark: " + ", ".join(sorted(unknown)))
    return options


def run_once(bench):
    archive = material.image(CACHE, "busybox")[0]

    def prepare(target):
        target.start()
        target.check(archive)

    everyone = bench.targets
    bench.targets = bench.each("start", prepare)
    try:
        for name in bench.options.only:
            print(
                f"{time.strftime('%H:%M:%S')} {name}, load {os.getloadavg()[0]:.1f}",
                file=sys.stderr,
                flush=True,
            )
            BENCHES[name](bench)
    finally:
        for target in everyone:
            target.end()


def report(options, bench, runs):
    middle = {}
    for samples in runs:
        for key, row in medians(samples).items():
            for name, value in row.items():
                middle.setdefault(key, {}).setdefault(name, []).append(value)
    middle = medians(middle)
    lines, missed = budgets(middle)
    print("\n".join([*table(bench, middle), "", *lines]))
    for (part, name), error in bench.failures.items():
        print(f"failed {part}: {name}: {error}")
    with open(options.json, "w") as file:
        json.dump(
            {
                "cpus": os.cpu_count(),
                "kernel": os.uname().release,
                "failures": len(bench.failures),
                "median": {" / ".join(key): row for key, row in middle.items()},
            },
            file,
            indent=1,
        )
    return 1 if missed or bench.failures else 0


def peer_cgroups():
    """Directories that the peers leave in the cgroup hierarchies."""
    with open("/proc/self/mountinfo") as file:
        tops = [line.split()[4] for line in file if " - cgroup" in line]
    paths = [os.path.join(top, name) for top in tops for name in ("docker", "libpod_parent")]
    return {path for path in paths if os.path.isdir(path)}


def leave(work, cgroups_before):
    """Nothing that was started or mounted here stays, and no directory."""
    for pid in descendants():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)
    with contextlib.suppress(ChildProcessError):
        while descendants() or os.waitpid(-1, os.WNOHANG)[0]:
            time.sleep(0.01)
    with open("/proc/self/mountinfo") as file:
        mounts = [line.split()[4] for line in file if work in line.split()[4]]
    for mount in reversed(mounts):
        subprocess.run(["umount", "-l", mount], stderr=subprocess.DEVNULL, check=False)
    for top in peer_cgroups() - cgroups_before:
        for path, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(path)
    shutil.rmtree(work, ignore_errors=True)


def main():
    options = options_parse()
    namespaces_enter()
    os.makedirs(CACHE, exist_ok=True)
    work = tempfile.mkdtemp(prefix="engine-bench-", dir="/tmp")
    bench = Bench(options, work)
    runs = []
    cgroups = peer_cgroups()
    try:
        for _ in range(options.runs):
            bench.samples = {}
            bench.targets = Bench(options, work).targets
            run_once(bench)
            runs.append(bench.samples)
        return report(options, bench, runs)
    finally:
        leave(work, cgroups)


if __name__ == "__main__":
    sys.exit(main())
