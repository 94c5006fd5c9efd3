"""spec beside Debian's dockerd: one program looks about in a container of each, and sees the same.

What differs is in EXPECTED, each with the reason; anything else is a failure.
"""

from __future__ import annotations

import difflib
import re

import engine
import pytest
from clients_help import dockerd, ours  # noqa: F401

pytestmark = pytest.mark.root

PROBE = r"""
grep -E 'Cap|NoNewPrivs|Seccomp:|Groups|Uid|Gid|Speculation' /proc/self/status
for n in cgroup ipc mnt net pid user uts time; do
  [ "$(readlink /proc/1/ns/$n)" ] && echo ns $n
done
ls /proc | grep -v '^[0-9]'
ls /sys /sys/fs /sys/kernel
for p in acpi asound interrupts kcore keys latency_stats timer_list timer_stats sched_debug scsi; do
  [ -e /proc/$p ] && echo "masked $p $(stat -c '%a %F' /proc/$p)"
done
ls /sys/firmware /sys/devices/virtual/powercap 2>&1
sed -e 's/^overlay \/ .*/root/' /proc/mounts | grep -v ' /etc/' | cut -d' ' -f2-4 | sort
cut -c1-67 /proc/self/limits
ls -l /dev /dev/pts /dev/shm /dev/mqueue | awk '{print $1,$3,$4,$5,$6,$NF}' |
  sed 's/ [A-Z][a-z][a-z] / /'
env | grep -v HOSTNAME | sort
cat /proc/self/oom_score_adj
for f in memory/memory.limit_in_bytes memory/memory.memsw.limit_in_bytes memory/memory.swappiness \
    cpu/cpu.shares cpu/cpu.cfs_quota_us pids/pids.max cpuset/cpuset.cpus; do
  echo "$f: $(cat /sys/fs/cgroup/$f 2>&1 | tr '\n' ' ')"
done
sort /sys/fs/cgroup/devices/devices.list 2>&1 | sed 's/^/rule /'
for f in net/ipv4/ping_group_range net/ipv4/ip_unprivileged_port_start kernel/shmmax; do
  echo "$f $(cat /proc/sys/$f)"
done
umask
for call in 'unshare -m true' 'mount -t tmpfs x /tmp' 'hostname x' 'chroot / true' 'date -s 1'; do
  $call >/dev/null 2>&1; echo "$call: $?"
done
"""
#: (what differs, why), tried on what only one of the two shows.
EXPECTED = (
    (r"^masked (acpi|interrupts) ", "interrupts is masked since Docker 28; our covers are 0555"),
    (r"^/(proc|sys)/\S+ tmpfs ", "the same: covers are 0555 and say so; interrupts is one more"),
    (r"^/proc/interrupts ", "the same"),
    (r"^/sys/fs/cgroup tmpfs r[wo],", "read-only in ours, as everything below it is in both"),
    (r"^/sys/fs/cgroup/unified ", "runc leaves v2 out where v1 is mounted too"),
    (r"^rule c 10:200 rwm$", "runc allows /dev/net/tun no more since 1.2"),
    (r"^Speculation", "a flag of the filter that libseccomp of 20.10 does not set"),
)
LIMITS = ("-m", "64m", "--memory-swappiness", "10", "--cpus", "0.5", "--cpu-shares", "300",
          "--pids-limit", "55", "--ulimit", "nofile=100:200", "--oom-score-adj", "200")
FLAGS = (
    (),
    LIMITS,
    ("--cap-add", "NET_ADMIN", "--cap-drop", "CHOWN", "--group-add", "77", "--user", "5:6"),
    ("--cap-add", "SYS_ADMIN", "--cap-add", "SYS_PTRACE", "--security-opt", "seccomp=unconfined"),
    ("--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--read-only", "--tmpfs", "/x"),
    ("--device", "/dev/loop0:/dev/in:r", "--device-cgroup-rule", "c 10:229 rw"),
    ("--security-opt", "systempaths=unconfined", "--ipc", "host", "--sysctl",
     "net.core.somaxconn=9"),
    ("--ipc", "none", "--pid", "host", "--uts", "host", "--shm-size", "1m"),
)  # fmt: skip


def seen(host, flags):
    done = host.docker("run", "--rm", "-i", "--network", "none", "--cgroupns", "host", *flags,
                       "busybox", "sh", input=PROBE.encode(), timeout=120)
    assert done.code == 0, done
    return done.out.splitlines()


@pytest.mark.parametrize("flags", FLAGS)
def test_the_same_is_seen(ours, dockerd, flags):  # noqa: F811
    if engine.cgroup_probe().mode == "v2":
        pytest.skip("the probe reads v1")
    mine, theirs = seen(ours, flags), seen(dockerd, flags)
    differ = [line for line in difflib.ndiff(theirs, mine) if line[0] in "+-"]
    assert [line for line in differ
            if not any(re.search(pattern, line[2:]) for pattern, _ in EXPECTED)] == []


#: (flags, text that both tell); what 28 words in another way is left out.
REFUSED = (
    (("-m", "1m"), "Minimum memory limit allowed is 6MB"),
    (("-m", "64m", "--memory-swap", "32m"), "Minimum memoryswap limit should be larger than"),
    (("--memory-swap", "64m"), "You should always set the Memory limit when using Memoryswap"),
    (("-m", "64m", "--memory-reservation", "65m"), "Minimum memory limit can not be less than"),
    (("--cpus", "99"), "ange of CPUs is from 0.01 to"),
    (("--cpus", "1", "--cpu-quota", "5000"), "Conflicting options: "),
    (("--cpu-period", "10"), "CPU cfs period can not be less than 1ms"),
    (("--cpuset-cpus", "99"), "Requested CPUs are not available - requested 99, available:"),
    (("--cap-add", "NOSUCH"), 'invalid CapAdd: unknown capability: "CAP_NOSUCH"'),
    (("--sysctl", "vm.swappiness=5"), "sysctl 'vm.swappiness=5' is not allowed"),
    (("--sysctl", "net.core.somaxconn=5", "--network", "host"), "net.core.somaxconn"),
    (("--security-opt", "seccomp=/etc/passwd"), "compacting json for seccomp profile"),
    (("--security-opt", "odd=x"), 'invalid --security-opt 2: "odd=x"'),
    (("--device", "/dev/nosuch"), 'custom device "/dev/nosuch": no such file or directory'),
    (("--device-cgroup-rule", "x"), "invalid device cgroup format 'x'"),
    (("--gpus", "all"), 'could not select device driver "" with capabilities: [[gpu]]'),
    (("--oom-score-adj", "2000"), "range for oom score adj is [-1000, 1000]"),
    (("--ulimit", "nofile=5:3"), "ulimit soft limit must be less than or equal to hard limit"),
    (("--group-add", "nosuch"), "Unable to find group nosuch"),
    (("--runtime", "kata"), "kata"),
)


@pytest.mark.parametrize("flags, text", REFUSED)
def test_the_same_is_refused(ours, dockerd, flags, text):  # noqa: F811
    network = () if "--network" in flags else ("--network", "none")
    for host in (ours, dockerd):
        done = host.docker("run", "--rm", *network, *flags, "busybox", "true")
        # 127 is what Docker's command line makes of any "no such file or directory".
        assert done.code == (127 if "no such file" in text else 125) and text in done.err, done
        assert host.docker("ps", "-aq").out == ""
