"""entering: what a container can see of a process that comes into it."""

import pytest
from conftest import wait_for

pytestmark = pytest.mark.root

WATCH = """
while :; do
  for p in /proc/[0-9]*; do
    n=${p#/proc/}
    [ $n = 1 ] || [ $n = $$ ] && continue
    [ -e $p/root/host-secret ] && echo "$n sees the host" >> /tmp/seen
    for f in $p/fd/*; do
      case $(readlink $f) in *engine.db*|*launcher*|*cgroup*) echo "$n $f" >> /tmp/seen;; esac
    done
    case $(grep CapEff $p/status) in *000001ff*) echo "$n is mighty" >> /tmp/seen;; esac
    echo x >> /tmp/looks
  done
done 2>/dev/null
"""


def test_a_container_that_may_trace_sees_nothing_of_the_host(busybox):
    """CVE-2016-9962: who comes in holds neither root, rights nor descriptors of the host."""
    id = busybox("run", "-d", "--cap-add", "SYS_PTRACE", "--network", "none", "busybox", "sh", "-c",
                 WATCH).ok().out.strip()
    for _ in range(25):
        busybox("exec", id, "true").ok()
    wait_for(lambda: busybox("exec", id, "cat", "/tmp/looks").out, what="a look")
    assert busybox("exec", id, "sh", "-c", "cat /tmp/seen 2>/dev/null").out == ""


def test_the_steps_that_safety_rests_on(engine):
    names = [step.__name__ for step in engine.EXEC_STEPS]
    before = [("exec_join", "exec_descriptors"), ("exec_descriptors", "init_user"),
              ("init_confine", "exec_split"), ("init_oom_score", "exec_join"),
              ("init_stdio_own", "init_confine"), ("exec_split", "init_stdio"),
              ("exec_split", "init_program")]
    assert [pair for pair in before if names.index(pair[0]) > names.index(pair[1])] == []


def test_the_oom_score_of_a_second_process(busybox):
    id = busybox("run", "-d", "--oom-score-adj", "300", "--network", "none", "busybox", "sleep",
                 "60").ok().out.strip()
    out = busybox("exec", id, "cat", "/proc/self/oom_score_adj", "/proc/1/oom_score_adj").ok().out
    assert out.split() == ["300", "300"]


def test_the_pid_namespace_of_a_tracer_is_not_joined(busybox):
    id = busybox("run", "-d", "--cap-add", "SYS_PTRACE", "--network", "none", "busybox", "sleep",
                 "60").ok().out.strip()
    done = busybox("run", "--rm", "--pid", "container:" + id, "--network", "none", "busybox",
                   "true")
    assert done.code == 125 and "SYS_PTRACE" in done.err and done.err.count("\n") == 3
    assert busybox("ps", "-aq").ok().out.split() == [id[:12]]
