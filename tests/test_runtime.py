"""runtime: a container's birth, seen from inside and outside."""

import ast
import os
import re
import subprocess
import sys

import pytest
from conftest import mounts_of

pytestmark = pytest.mark.root

NONE = ("--network", "none")


def sh(cli, program, *options):
    return cli("run", "--rm", *NONE, *options, "busybox", "sh", "-c", program).ok()


def test_it_has_namespaces_of_its_own(busybox):
    seen = dict(
        line.split(":", 1)
        for line in sh(
            busybox,
            "for n in mnt net pid ipc uts cgroup user; do echo $n:$(readlink /proc/self/ns/$n);"
            " done",
        ).lines()
    )
    host = {name: os.readlink(f"/proc/self/ns/{name}") for name in seen}
    assert {name for name in seen if seen[name] == host[name]} == {"user"}


def test_nothing_of_it_is_in_the_hosts_mount_table(busybox):
    id = busybox("run", "-d", *NONE, "busybox", "sleep", "60").ok().out.strip()
    assert mounts_of(busybox.roots.base) == set()
    busybox("rm", "-f", id).ok()


def test_the_devices_and_links_of_every_container(busybox):
    listed = sh(busybox, "ls -l /dev | tail -n +2").out
    for pattern in (
        r"crw-rw-rw-.* 1, +3 .* null$",
        r"crw-rw-rw-.* 1, +5 .* zero$",
        r"crw-rw-rw-.* 1, +9 .* urandom$",
        r"crw-rw-rw-.* 5, +0 .* tty$",
        r"fd -> /proc/self/fd$",
        r"ptmx -> pts/ptmx$",
    ):
        assert re.search(pattern, listed, re.M), (pattern, listed)


def test_descriptors_are_three(busybox):
    assert sh(busybox, "ls /proc/self/fd").lines() == ["0", "1", "2", "3"]  # 3 is ls's own


def test_the_kernel_is_masked_and_read_only(busybox):
    out = sh(
        busybox,
        "cat /proc/kcore /proc/keys | wc -c; ls /proc/acpi /sys/firmware | wc -l;"
        " echo 1 > /proc/sys/kernel/panic; echo 1 > /proc/irq/x; touch /sys/x;"
        " mkdir /sys/fs/cgroup/x; true",
    )
    assert out.lines()[0] == "0"
    assert out.err.count("Read-only file system") >= 3, out.err


def test_capabilities_and_the_filter_are_dockers(busybox):
    lines = sh(busybox, "grep -E 'Cap|Seccomp:|NoNewPrivs' /proc/self/status").lines()
    status = dict(line.split(":\t") for line in lines)
    assert status["CapEff"] == status["CapPrm"] == status["CapBnd"] == "00000000a80425fb"
    assert status["CapInh"] == status["CapAmb"] == "0000000000000000"
    assert status["Seccomp"] == "2" and status["NoNewPrivs"] == "0"


def test_a_user_has_no_effective_capabilities(busybox):
    out = sh(
        busybox,
        "id; grep CapEff /proc/self/status; grep CapBnd /proc/self/status",
        "-u",
        "user",
        "--group-add",
        "44",
    )
    assert out.lines()[0].startswith("uid=1000(user) gid=1000(user) groups=")
    assert set(out.lines()[0].partition("groups=")[2].split(",")) == {
        "1000(user)",
        "29(audio)",
        "2000(extra)",
        "44",
    }
    assert out.lines()[1:] == ["CapEff:\t0000000000000000", "CapBnd:\t00000000a80425fb"]


def test_no_new_privs_when_asked(busybox):
    out = sh(
        busybox,
        "grep -E 'NoNewPrivs|Seccomp:' /proc/self/status",
        "--security-opt",
        "no-new-privileges",
    )
    assert out.lines() == ["NoNewPrivs:\t1", "Seccomp:\t2"]


def test_denied_calls_are_denied(busybox):
    out = sh(busybox, "unshare -U true; mount -t tmpfs x /tmp; true")
    assert out.err.count("Operation not permitted") + out.err.count("permission denied") >= 2, (
        out.err
    )


def test_host_and_other_namespaces(busybox):
    host = os.readlink("/proc/self/ns/uts")
    assert sh(busybox, "readlink /proc/self/ns/uts", "--uts", "host").out.strip() == host
    assert sh(busybox, "readlink /proc/self/ns/ipc", "--ipc", "host").out.strip() == os.readlink(
        "/proc/self/ns/ipc"
    )
    assert sh(
        busybox, "readlink /proc/self/ns/cgroup", "--cgroupns", "host"
    ).out.strip() == os.readlink("/proc/self/ns/cgroup")
    done = busybox(
        "run", "--rm", "--network", "host", "busybox", "readlink", "/proc/self/ns/net"
    ).ok()
    assert done.out.strip() == os.readlink("/proc/self/ns/net")
    first = (
        busybox(
            "run",
            "-d",
            *NONE,
            "--ipc",
            "shareable",
            "busybox",
            "sh",
            "-c",
            "echo shared > /dev/shm/x; sleep 60",
        )
        .ok()
        .out.strip()
    )
    done = busybox(
        "run",
        "--rm",
        "--network",
        f"container:{first}",
        "--pid",
        f"container:{first}",
        "--ipc",
        f"container:{first}",
        "busybox",
        "sh",
        "-c",
        "for n in net pid; do readlink /proc/self/ns/$n; done; grep -c sleep /proc/1/cmdline;"
        " cat /dev/shm/x",
    ).ok()
    pid = busybox("inspect", "-f", "{{.State.Pid}}", first).ok().out.strip()
    assert done.lines() == [
        os.readlink(f"/proc/{pid}/ns/net"),
        os.readlink(f"/proc/{pid}/ns/pid"),
        "1",
        "shared",
    ]


def test_hostname_files_and_resolver(busybox):
    out = sh(
        busybox,
        "hostname; cat /etc/hostname; grep name1 /etc/hosts; mount | grep -c resolv.conf",
        "--hostname",
        "name1",
    )
    lines = out.lines()
    assert lines[0] == lines[1] == "name1" and lines[-1] == "1"


def test_read_only_root(busybox):
    done = busybox(
        "run",
        "--rm",
        *NONE,
        "--read-only",
        "--tmpfs",
        "/run:size=1m",
        "busybox",
        "sh",
        "-c",
        "touch /x; touch /run/x /dev/shm/x && echo ok",
    ).ok()
    assert done.out == "ok\n" and "Read-only file system" in done.err


def test_working_directory_is_made(busybox):
    assert sh(busybox, "pwd", "-w", "/made/for/this").out == "/made/for/this\n"
    done = busybox("run", "--rm", *NONE, "-w", "/etc/passwd/x", "busybox", "true")
    assert done.code == 125 or done.code == 126 or done.code == 127
    assert "/etc/passwd/x" in done.err and done.err.count("\n") == 3


@pytest.mark.parametrize("length", [1, 5000])
def test_init_shows_its_own_command_line(busybox, length):
    """Not the launcher's, whose paths are the host's."""
    script = "tr '\\0' '|' </proc/1/cmdline; cat /proc/1/comm; ps -o comm,args | sed -n 2p"
    script += " " * length
    out = sh(busybox, script, "--init").out
    words = ["/sbin/docker-init", "--", "sh", "-c", script, ""]
    assert out.startswith("|".join(words) + "docker-init\n")
    assert out.split("\n")[1].startswith("docker-init      /sbin/docker-init -- sh -c tr")


@pytest.mark.parametrize("fails", [False, True])
def test_a_command_line_of_ones_own(monkeypatch, fails):
    """In a new process, with the capability that it takes and, as here, without it."""
    code = "import engine, os\n"
    if fails:
        code += "def refuse(*args): raise OSError(1, 'no')\nengine.sys_prctl = refuse\n"
    code += "engine.process_title(['a b', 'c'])\nprint(open('/proc/self/cmdline', 'rb').read())"
    done = subprocess.run([sys.executable, "-c", code, "x" * 40], capture_output=True, text=True)
    line = ast.literal_eval(done.stdout)
    assert line.startswith(b"a b\0c\0") and (line.strip(b"\0") == b"a b\0c" if fails else
                                            line == b"a b\0c\0"), done


def test_init_reaps_and_forwards(busybox):
    out = sh(
        busybox,
        "sh -c 'sleep 0.05 & exec true' & sleep 0.3; cat /proc/[0-9]*/stat | grep -c ') Z'; "
        "cat /proc/1/comm",
        "--init",
    )
    assert out.lines()[0] == "0" and out.lines()[1] == "docker-init"
    id = (
        busybox(
            "run",
            "-d",
            "--init",
            *NONE,
            "busybox",
            "sh",
            "-c",
            "trap 'exit 6' TERM; while :; do sleep 0.05; done",
        )
        .ok()
        .out.strip()
    )
    import time

    time.sleep(0.3)
    busybox("stop", id).ok()
    assert busybox("inspect", "-f", "{{.State.ExitCode}}", id).ok().out == "6\n"
    assert busybox("run", "--rm", "--init", *NONE, "busybox", "sh", "-c", "exit 8").code == 8


@pytest.mark.parametrize(
    "command, code, text",
    [
        (["no-such-program"], 127, 'exec: "no-such-program": executable file not found in $PATH'),
        (["/no/such"], 127, 'exec: "/no/such": stat /no/such: no such file or directory'),
        (["/etc/passwd"], 126, 'exec: "/etc/passwd": permission denied'),
        (["/etc"], 126, 'exec: "/etc": is a directory'),
        ([""], 127, 'exec: "": executable file not found in $PATH'),
    ],
)
def test_programs_that_cannot_run(busybox, command, code, text):
    done = busybox("run", "--rm", *NONE, "busybox", *command)
    assert done.code == code and text in done.err and done.err.count("\n") == 3, done
    assert busybox("ps", "-aq").ok().out == ""


def test_a_format_that_the_kernel_does_not_know(busybox):
    done = busybox(
        "run",
        "--rm",
        *NONE,
        "busybox",
        "sh",
        "-c",
        "printf 'not a program' > /x; chmod +x /x; exec /x",
    )
    assert done.code != 0
    id = busybox("create", *NONE, "busybox", "/bin/garbage").ok().out.strip()
    path = f"{busybox.roots.data}/containers/{id}/upper/bin"
    os.makedirs(path)
    with open(path + "/garbage", "wb") as file:
        file.write(b"\x7fELF garbage")
    os.chmod(path + "/garbage", 0o755)
    done = busybox("start", "-a", id)
    assert done.code == 255 and done.err == "exec /bin/garbage: exec format error\n", done


@pytest.mark.parametrize(
    "user, text",
    [
        ("nobody-here", "unable to find user nobody-here: no matching entries in passwd file"),
        ("user:none", "unable to find group none: no matching entries in group file"),
    ],
)
def test_users_that_do_not_exist(busybox, user, text):
    done = busybox("run", "--rm", *NONE, "-u", user, "busybox", "true")
    assert done.code == 125 and text in done.err, done


def test_limits_below_the_hosts(busybox):
    out = sh(busybox, "ulimit -n; ulimit -c", "--ulimit", "nofile=100:200", "--ulimit", "core=0")
    assert out.lines() == ["100", "0"]


def test_oom_is_seen(busybox):
    done = busybox(
        "run",
        "--name",
        "hog",
        "--memory",
        "20m",
        "--memory-swap",
        "20m",
        *NONE,
        "busybox",
        "sh",
        "-c",
        "tail /dev/zero",
    )
    if "not mounted" in done.err:
        pytest.skip("no memory controller here")
    state = busybox("inspect", "-f", "{{json .State}}", "hog").ok().json()
    assert state["OOMKilled"] is True and state["ExitCode"] == 137
