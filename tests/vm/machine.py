"""Small machines under qemu: boots one, runs a script in it as told, and ends with its exit status.

    python3 tests/vm/machine.py [OPTIONS] FLAVOUR SCRIPT [FILE...]
    python3 tests/vm/machine.py --shell FLAVOUR [FILE...]      a shell on the console; exit ends it

The engine, the script and the files (folders too) are copied to /vm/p; the script runs there, its
stdout a pipe, its stdin empty, and finds $ENGINE, $VM_NAME, $OUT (what is put there comes back to
the folder of --out). 124: its time was over. 125: the machine did not get as far as the script, or
died under it; the end of the console is shown. Nothing is kept: the disk is a snapshot. There is
no network card. Emulated (TCG), so nothing that is timed inside is a benchmark; a boot takes 3 s.

FLAVOURS below tells what there is. Kernels and userlands are Debian's, built when they are first
asked for (build.sh: 5 to 190 s each, 3.6 GB for all) and kept in $VM_CACHE, or tests/.cache/vm.
"""

from __future__ import annotations

import argparse
import os
import re
import select
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import namedtuple

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
CACHE = os.environ.get("VM_CACHE") or os.path.join(TOP, "tests", ".cache", "vm")
TIMED_OUT, NOT_RUN = 124, 125

#: `base` names what build.sh makes. root: "disk" (ext4) or "initramfs", where pivot_root(2) fails.
#: cgroup: "v2", "v1", "hybrid" (as old systemd has it) or "none" (nothing mounted). nomod: modules,
#: as patterns, that the kernel must not have. propagation "shared": / is rshared, as under systemd.
Flavour = namedtuple(
    "Flavour", "base about root cgroup memory user nomod propagation append",
    defaults=("disk", "v2", 1024, "root", "", "", ""))

# fmt: off
FLAVOURS = {
    "debian11": Flavour("debian11", "Python 3.9, Linux 5.10: the oldest"),
    "debian11-v1": Flavour("debian11", "cgroup v1", cgroup="v1"),
    "debian12-v2": Flavour("debian12-v2", "Python 3.11, Linux 6.1: an ordinary server"),
    "debian12-hybrid": Flavour("debian12-v2", "cgroup v1 and v2; / is shared, as under systemd",
                               cgroup="hybrid", propagation="shared"),
    "debian12-initramfs": Flavour("debian12-initramfs", "the root is the initramfs",
                                  root="initramfs", memory=2048),
    "debian13": Flavour("debian13", "Python 3.13, Linux 6.12"),
    "debian13-bare": Flavour("debian13", "no cgroup mounted, no memory controller", cgroup="none",
                             append="cgroup_disable=memory"),
    "sid": Flavour("sid", "Python 3.14, the newest Linux"),
    "minimal": Flavour("minimal", "busybox and python3 only, initramfs, no cgroup mounted",
                       root="initramfs", cgroup="none"),
    "nonft": Flavour("debian12-v2", "no nf_tables, no overlay", nomod="nf_tables nft_* overlay"),
    "user": Flavour("debian12-v2", "an ordinary user with a delegated cgroup", user="joe"),
    "arm64": Flavour("arm64", "Debian 12 on aarch64"),
    "musl": Flavour("musl", "busybox and a CPython linked with musl"),
}
# fmt: on


class Console:
    """What comes over the serial line: the boot, between two marks the script's output, the end."""

    def __init__(self, nonce, show):
        self.mark = re.compile(rb"\x1e@@VM %s (START|END|OFF) ([0-9.]+)@@" % nonce.encode())
        self.show = show
        self.state, self.status, self.rest = "boot", None, b""
        self.tail = b""

    def feed(self, data):
        self.tail = (self.tail + data)[-3000:]
        self.rest += data
        while True:
            found = self.mark.search(self.rest)
            if found:
                text, self.rest = self.rest[: found.start()], self.rest[found.end() :]
            else:  # what may be the beginning of a mark waits
                at = self.rest.rfind(b"\x1e")
                at = at if at >= 0 and len(self.rest) - at < 80 else len(self.rest)
                text, self.rest = self.rest[:at], self.rest[at:]
            if self.state == "run" and text:
                self.show(text)
            if not found:
                return
            self.turn(found.group(1), found.group(2))

    def turn(self, what, value):
        if what == b"START" and self.state == "boot":
            self.state = "run"
        elif what == b"END" and self.state == "run":
            self.state, self.status = "end", int(float(value))
        elif what == b"OFF":
            self.state = "off"


def console_watch(qemu, console, seconds, boot):
    """Feed the console until the machine is off; the reason why it was given up, else ""."""
    deadline, state = time.monotonic() + boot, "boot"
    while console.state != "off":
        left = deadline - time.monotonic()
        if left <= 0:
            return "time is over"
        if not select.select([qemu.stdout], [], [], min(left, 1))[0]:
            continue
        data = os.read(qemu.stdout.fileno(), 65536)
        if not data:
            return "the machine ended by itself"
        console.feed(data)
        if console.state != state:
            state = console.state
            deadline = time.monotonic() + (seconds + 20 if state == "run" else 5)
    return ""


def payload_write(work, settings, env, files):
    """The cpio archive with the second stage, its settings and the files; the kernel unpacks it."""
    top = os.path.join(work, "i")
    os.makedirs(top + "/vm/p")
    for source, target in files:
        copy = shutil.copytree if os.path.isdir(source) else shutil.copy2
        copy(source, f"{top}/vm/p/{target}")
        os.chmod(f"{top}/vm/p/{target}", 0o755)
    lines = [f"{name}={shlex.quote(str(value))}" for name, value in settings.items()]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in env.items()]
    with open(top + "/vm/conf", "w") as file:
        file.write("\n".join(lines) + "\n")
    shutil.copy(HERE + "/guest/init", top + "/init")
    shutil.copy(HERE + "/guest/stage2", top + "/vm/stage2")
    os.chmod(top + "/init", 0o755)
    names = "\n".join(
        os.path.relpath(os.path.join(at, name), top)
        for at, directories, plain in os.walk(top)
        for name in directories + plain
    )
    pack = ["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0"]
    return subprocess.run(
        pack, cwd=top, input=names.encode(), stdout=subprocess.PIPE, check=True
    ).stdout


def qemu_command(flavour, work, out):
    is_arm = flavour.base == "arm64"
    base = os.path.join(CACHE, flavour.base)
    machine = ["qemu-system-x86_64", "-M", "pc", "-cpu", "max"]
    if is_arm:
        machine = ["qemu-system-aarch64", "-M", "virt", "-cpu", "max,pauth-impdef=on"]
    words = (
        "console=" + ("ttyAMA0" if is_arm else "ttyS0"),
        "quiet loglevel=1 panic=-1 mitigations=off",
        flavour.append,
    )
    command = [
        *machine,
        *("-smp", "2", "-m", str(flavour.memory), "-display", "none", "-nodefaults", "-no-reboot"),
        *("-serial", "stdio", "-accel", "tcg,thread=multi"),
        *("-kernel", base + "/vmlinuz", "-initrd", work + "/initrd", "-append", " ".join(words)),
    ]
    disks = []
    if flavour.root == "disk":
        disks.append((f"file={base}/disk.img,snapshot=on", "root", ""))
    if out:
        disks.append((f"file={work}/out", "out", ",serial=vmout"))
    for file, name, more in disks:
        command += ["-drive", f"{file},if=none,id={name},format=raw,cache=unsafe"]
        command += ["-device", f"virtio-blk-pci,drive={name}{more}"]
    return command


def flavour_ready(flavour):
    """Builds what the flavour needs where it isn't there; SystemExit 125 when that fails."""
    program = "qemu-system-" + ("aarch64" if flavour.base == "arm64" else "x86_64")
    build = ["bash", HERE + "/build.sh", program, flavour.base]
    ready = os.path.exists(os.path.join(CACHE, flavour.base, "ready"))
    if ready and shutil.which(program) and shutil.which("cpio"):
        return
    env = {**os.environ, "VM_CACHE": CACHE}
    if subprocess.run(build, env=env, stdout=sys.stderr, check=False).returncode:
        raise SystemExit(NOT_RUN)


def machine_run(flavour, script, *, engine="", files=(), show=None, env=None, seconds=300,
                boot=120, out="", shell=False, name=""):
    """Boot, run the script, and give its exit status (124, 125: see above); `show` takes bytes.

    Boots that take longer than `boot`, and scripts longer than `seconds`, are ended.
    """
    flavour_ready(flavour)
    nonce = os.urandom(8).hex()
    payload = [(path, os.path.basename(path.rstrip("/"))) for path in files]
    payload += [(engine, "engine.pyz")] if engine else []
    payload += [(script, os.path.basename(script))] if script else []
    settings = {
        "NAME": name or flavour.base, "ROOT": flavour.root, "CGROUP": flavour.cgroup,
        "NOMOD": flavour.nomod, "LIMIT": seconds, "NONCE": nonce, "WANT_OUT": out,
        "SCRIPT": os.path.basename(script), "VMUSER": flavour.user,
        "SHELL_MODE": "1" if shell else "", "PROPAGATION": flavour.propagation, "ARGS": "",
    }
    os.makedirs(CACHE, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="run.", dir=CACHE) as work:
        packed = payload_write(work, settings, env or {}, payload)
        with open(work + "/initrd", "wb") as file:
            with open(os.path.join(CACHE, flavour.base, "initrd"), "rb") as first:
                shutil.copyfileobj(first, file)
            file.write(packed)
        if out:
            with open(work + "/out", "wb") as file:
                file.truncate(1 << 30)
        command = qemu_command(flavour, work, out)
        if shell:
            return subprocess.run(command, check=False).returncode
        return _script_run(command, Console(nonce, show or (lambda text: None)), seconds, boot,
                           (work + "/out", out))


def _script_run(command, console, seconds, boot, out):
    qemu = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        why = console_watch(qemu, console, seconds, boot)
    finally:
        qemu.kill()
        qemu.wait()
    if console.status is None:
        if console.state == "run" and why == "time is over":
            return TIMED_OUT
        end = console.tail.decode(errors="replace")
        console.show(f"machine: {why} in state {console.state}; end of the console:\n{end}\n"
                     .encode())
        return NOT_RUN
    if out[1]:
        with tarfile.open(out[0], "r:") as tar:
            more = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            tar.extractall(out[1], **more)
    return console.status


def options_parse(argv):
    parser = argparse.ArgumentParser(
        prog="machine.py", description="Runs a script in a small machine.",
        epilog="flavours: " + ", ".join(FLAVOURS))
    parser.add_argument("flavour", choices=sorted(FLAVOURS), metavar="FLAVOUR")
    parser.add_argument("files", nargs="*", metavar="FILE", help="first the script")
    parser.add_argument("--engine", default="", help="what becomes engine.pyz there")
    parser.add_argument("--shell", action="store_true", help="a shell on the console instead")
    parser.add_argument("--time", type=float, default=300, help="seconds that the script may take")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--out", default="", metavar="DIR", help="receives the machine's $OUT")
    for name in ("cgroup", "append", "nomod", "user", "propagation"):
        parser.add_argument("--" + name, help="instead of the flavour's")
    parser.add_argument("--memory", type=int, help="MiB")
    given = parser.parse_args(argv)
    if not given.shell and not given.files:
        parser.error("which script?")
    return given


def main(argv):
    given = options_parse(argv)
    changes = {name: value for name, value in vars(given).items()
               if name in Flavour._fields and value is not None}
    script, files = ("", given.files) if given.shell else (given.files[0], given.files[1:])

    def show(text):
        sys.stdout.buffer.write(text)
        sys.stdout.buffer.flush()

    return machine_run(
        FLAVOURS[given.flavour]._replace(**changes), script, engine=given.engine, files=files,
        show=show, env=dict(word.partition("=")[::2] for word in given.env), seconds=given.time,
        out=given.out, shell=given.shell, name=given.flavour)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
