"""Restarts, health checks, stats and top for the docker command line, beside Debian's dockerd."""

from __future__ import annotations

import json
import re
import time

import pytest
from clients_help import dockerd, ours  # noqa: F401
from test_clients_cli import newer, plain

pytestmark = [pytest.mark.root, pytest.mark.slow]


class Told:
    """What a story saw: lines of commands and their answers."""

    def __init__(self, host):
        self.host, self.lines = host, []

    def do(self, line):
        done = self.host.line(line)
        out = plain(done.out)
        if line.startswith("top "):         # pids, times and sizes are each process's own
            out = re.sub(r"[0-9.:]+", "N", out)
        self.lines.append((line, done.code, out, newer(plain(done.err))))
        return done.out

    def quietly(self, line):
        return self.host.line(line).out

    def until(self, line, text, seconds=10.0):
        deadline = time.monotonic() + seconds
        while text not in self.quietly(line):
            if time.monotonic() > deadline:
                pytest.fail(f"{line}: {self.host.line(line)}, not {text}, after {self.lines}")
            time.sleep(0.02)

    def events(self, name):
        # The client cuts times that are relative to whole seconds.
        out = self.quietly(f"events --since 0 --until {time.time() + 0.1:.9f} --filter"
                           f" container={name} --format {{{{.Action}}}}")
        return out.split("\n")


def restarts(told):
    told.do("run -d --name rr --restart on-failure:2 busybox sh -c 'echo run; exit 3'")
    told.until("inspect -f '{{.State.Status}} {{.RestartCount}}' rr", "exited 2")
    told.do("inspect -f '{{.State.ExitCode}} {{.State.Restarting}}"
            " {{json .HostConfig.RestartPolicy}}' rr")
    told.do("logs rr")
    told.lines.append(told.events("rr"))
    told.do("start rr")
    told.until("inspect -f '{{.State.Status}} {{.RestartCount}}' rr", "exited 2")
    told.do("rm rr")
    told.do("run -d --name ss --restart always busybox sh -c 'exit 7'")
    # After the sixth the pause is 6.4 s: long enough for all that is asked while it lasts.
    told.until("inspect -f '{{.RestartCount}}' ss", "6", seconds=30.0)
    told.until("inspect -f '{{.State.Status}}' ss", "restarting")
    told.do("inspect -f '{{.State.Running}} {{.State.Restarting}} {{.State.Pid}}"
            " {{.State.ExitCode}} {{.State.Dead}}' ss")
    told.do("ps --format '{{.Names}} {{.State}} {{.Status}}'")
    told.do("ps --filter status=restarting --format {{.Names}}")
    for line in ("exec ss true", "pause ss", "attach ss", "top ss", "start ss", "unpause ss",
                 "stats --no-stream --format '{{.Name}} {{.PIDs}}' ss", "logs ss"):
        told.do(line)
    told.do("stop ss")
    told.do("inspect -f '{{.State.Status}} {{.State.ExitCode}}' ss")
    told.lines.append([action for action in told.events("ss") if action not in ("start", "die")])
    told.do("update --restart no ss")
    told.do("update --restart on-failure:x ss")
    told.do("inspect -f '{{json .HostConfig.RestartPolicy}}' ss")
    told.do("rm ss")
    told.do("run -d --rm --name uu --restart always busybox true")
    told.do("run -d --rm --name uu busybox sleep 100")
    told.do("update --restart always uu")
    told.do("rm -f uu")
    told.do("run --name vv --restart on-failure:1 busybox sh -c 'echo x; exit 4'")
    told.until("inspect -f '{{.State.Status}} {{.RestartCount}}' vv", "exited 1")
    told.do("rm vv")


def health(told):
    told.do("run -d --name hh --health-cmd 'echo fine; test -e /good' --health-interval 200ms"
            " --health-retries 2 busybox sh -c 'touch /good; sleep 1000'")
    told.until("inspect -f '{{.State.Health.Status}}' hh", "healthy")
    told.do("ps --format '{{.Names}} {{.Status}}' --filter health=healthy")
    told.do("inspect -f '{{.State.Health.FailingStreak}} {{json .Config.Healthcheck}}' hh")
    told.do("exec hh rm /good")
    told.until("inspect -f '{{.State.Health.Status}}' hh", "unhealthy")
    told.do("ps --format '{{.Names}} {{.Status}}' --filter health=unhealthy")
    told.until("inspect -f '{{len .State.Health.Log}}' hh", "5")
    last = told.quietly("inspect -f '{{json (index .State.Health.Log 4)}}' hh")
    told.lines.append([(key, type(value), value if key not in ("Start", "End") else "")
                       for key, value in json.loads(last).items()])
    told.do("pause hh")
    told.do("inspect -f '{{.State.Health.Status}}' hh")
    told.do("unpause hh")
    told.do("stop -t 0 hh")
    told.do("inspect -f '{{.State.Health.Status}} {{len .State.Health.Log}}' hh")
    seen = [action for action in told.events("hh")]
    told.lines.append(seen[:6])
    told.lines.append(sorted(set(seen)))
    told.do("rm hh")
    told.do("run -d --name ii --health-cmd 'echo slow; sleep 50' --health-interval 100ms"
            " --health-timeout 300ms --health-retries 1 busybox sleep 1000")
    told.until("inspect -f '{{.State.Health.Status}}' ii", "unhealthy")
    seen = told.quietly("inspect -f '{{with index .State.Health.Log 0}}{{.ExitCode}} {{.Output}}"
                        "{{end}}' ii")
    # Docker 28 also tells what it had written.
    told.lines.append(seen.strip().replace(": slow", ""))
    told.do("rm -f ii")
    told.do("run -d --name jj --health-cmd x --no-healthcheck busybox true")
    told.do("run -d --name jj --no-healthcheck busybox sleep 1000")
    told.do("inspect -f '{{json .Config.Healthcheck}} {{json .State.Health}}' jj")
    told.do("rm -f jj")
    told.do("run -d --name kk --health-interval 1us --health-cmd x busybox true")


def shape(value):
    """The keys of a document, without its values; the counters that a kernel has are its own."""
    if isinstance(value, dict):
        return {key: shape(one) for key, one in value.items()}
    if isinstance(value, list):
        return [shape(one) for one in value[:1]]
    return value if value is None or isinstance(value, str) and not value else type(value).__name__


def stats(told):
    told.do("run -d --name ww busybox sh -c 'while :; do :; done'")
    told.do("create --name ee busybox true")
    told.do("run -d --name xx busybox sleep 1000")
    told.do("stats --no-stream --format '{{.Name}} {{.PIDs}} {{.NetIO}}' ww ee")
    percent = told.quietly("stats --no-stream --format {{.CPUPerc}} ww")
    assert re.fullmatch(r"\d+\.\d\d%\n", percent) and float(percent[:-2]) > 5
    for path in ("ww/stats?stream=0", "ww/stats?stream=0&one-shot=1", "ee/stats?stream=0",
                 "ww/stats"):
        told.lines.append((path, told.stats(path)))
    for options in ("", "-ef", "aux", "-o pid,comm", "-eo pid,ppid,user,args", "-o comm", "-w",
                    "-o nosuch", "-o pid -o comm"):
        told.do(f"top xx {options}")
    told.do("rm -f ww ee xx")


def stats_of(host, path):
    import http.client
    import socket

    class Connection(http.client.HTTPConnection):
        def connect(self):
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.connect(host.socket)
    connection = Connection("docker")
    connection.request("GET", "/v1.41/containers/" + path)
    reply = connection.getresponse()
    line = reply.readline()
    connection.close()
    return reply.status, shape(json.loads(line))


@pytest.mark.parametrize("story", [restarts, health, stats])
def test_the_same(ours, dockerd, story):  # noqa: F811
    seen = []
    for host in (dockerd, ours):
        told = Told(host)
        told.stats = lambda path, host=host: stats_of(host, path)
        story(told)
        seen.append(told.lines)
    different = [f"{theirs}\n{mine}\n" for theirs, mine in zip(*seen) if theirs != mine]
    assert not different, "\n".join(different)
