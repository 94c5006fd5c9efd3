"""The daemon as a process of its own: start, second start, reload, end, and what outlives it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import time

import conftest
import engine
import pytest
from daemon_help import Daemon
from network_help import ask

pytestmark = pytest.mark.root
HAVE_DOCKER = shutil.which("docker") is not None


@pytest.fixture
def start(cli):
    daemons = []

    def run(*flags, **options):
        daemons.append(Daemon(cli, *flags, **options))
        return daemons[-1]

    yield run
    for daemon in daemons:
        daemon.close()


@pytest.fixture
def image(busybox):
    """The name of an image that is there."""
    return "busybox" if busybox else ""


def refuses(cli, *flags, code=1):
    """The one line of a daemon that does not start."""
    done = cli("daemon", "--config-file", os.devnull, *flags)
    assert done.code == code
    lines = [line for line in done.err.splitlines() if not line.startswith("time=")]
    assert len(lines) == 1, done.err
    return lines[0]


def test_it_serves_and_ends(cli, start):
    daemon = start("--label", "a=1")
    assert daemon.ask("/_ping").body == b"OK"
    assert daemon.get("/containers/json?all=1") == []
    pid_file = os.path.join(cli.roots.run, "daemon.pid")
    assert open(pid_file).read() == str(daemon.pid)
    assert daemon.configuration()["labels"] == ["a=1"]
    assert daemon.configuration()["hosts"] == ["unix://" + daemon.path]
    assert daemon.end() == 0
    assert not os.path.exists(daemon.path)
    assert not os.path.exists(pid_file)
    assert daemon.configuration() is None
    assert daemon.told() == [
        "Starting up",
        "Loading containers: done.",
        f"API listen on {daemon.path}",
        "Daemon has completed initialization",
        "Processing signal 'terminated'",
        "Daemon shutdown complete",
    ]
    assert daemon.notices.texts == ["READY=1", "STOPPING=1"]


def test_interrupt_and_json(start):
    daemon = start("--log-format", "json", "-D")
    assert daemon.end(signal.SIGINT) == 0
    rows = [json.loads(line) for line in daemon.log().splitlines()]
    assert rows[0]["msg"] == "Starting up"
    assert {"Processing signal 'interrupt'"} <= {row["msg"] for row in rows}


def test_validate(cli):
    done = cli("daemon", "--validate", "--config-file", os.devnull)
    assert (done.code, done.err) == (0, "configuration OK\n")
    assert not os.path.exists(cli.roots.data)
    assert refuses(cli, "--validate", "--bip", "10.0.0.1") == (
        'error creating default "bridge" network: parse bip failed: invalid CIDR address: 10.0.0.1'
    )
    assert cli("daemon", "--validate", "--config-file", os.devnull, "x").code != 0


def test_flags_before_the_word(cli, start):
    argv = cli.argv
    top = cli.roots.base + "/top"
    cli.argv = lambda *words: argv("-l", "error", "-H", "unix://" + top, *words)
    daemon = start(hosts=False)
    cli.argv = argv
    daemon.path = top
    assert daemon.configuration()["hosts"] == ["unix://" + daemon.path]
    assert daemon.configuration()["log-level"] == "error"
    assert daemon.end() == 0
    assert daemon.log() == ""
    cli.argv = lambda *words: argv("--context", "x", *words)
    assert refuses(cli, code=125) == "--context is for clients: `daemon` does not know it"


def test_version(cli):
    done = cli("daemon", "-v").ok()
    assert done.out == f"Docker version {engine.DOCKER_VERSION}, build engine-{engine.VERSION}\n"
    env = {"DOCKER_MIN_API_VERSION": "1.40"}
    done = cli("daemon", "--config-file", os.devnull, env=env)
    assert done.err.startswith("DOCKER_MIN_API_VERSION=1.40 is not supported by this engine")


class Told:
    def __init__(self, path):
        import socket

        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(path)
        self.sock.settimeout(5)


def test_notifier(tmp_path, monkeypatch):
    told = Told(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    notifier = engine.Notifier()
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & set(os.environ)
    assert notifier.period == 1.5
    notifier.send("READY=1")
    assert told.sock.recv(100) == b"READY=1"
    told.sock.close()
    notifier.send("STOPPING=1")                 # nobody there: told in the log, no error
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    silent = engine.Notifier()
    assert silent.period == 0.0
    silent.send("READY=1")


def test_help_shows_what_works(cli):
    text = cli("daemon", "--help").ok().out
    assert "--shutdown-timeout int" in text
    assert "--bip string" in text and "--userns-remap" not in text


def test_second_daemon_on_the_data_root_is_refused(cli, start):
    daemon = start()
    other = "unix://" + daemon.path + "2"
    want = (
        f"failed to start daemon: the data root {cli.roots.data} is in use by the daemon with PID "
        f"{daemon.pid}"
    )
    assert refuses(cli, "-H", other) == want
    assert refuses(cli, "-H", other, "--exec-root", cli.roots.base + "/run2") == want
    assert daemon.ask("/_ping").body == b"OK"
    daemon.kill()
    again = start()
    assert again.ask("/_ping").body == b"OK"


def test_pid_file(cli, start, tmp_path):
    path = str(tmp_path / "x.pid")
    with open(path, "w") as file:
        file.write(str(os.getpid()))
    assert refuses(cli, "--pidfile", path) == (
        f"failed to start daemon, ensure docker is not running or delete {path}: process with PID "
        f"{os.getpid()} is still running"
    )
    assert open(path).read() == str(os.getpid())
    gone = subprocess.Popen(["true"])
    gone.wait()
    for left in (str(gone.pid), "no pid", ""):
        with open(path, "w") as file:
            file.write(left)
        daemon = start("--pidfile", path)
        assert open(path).read() == str(daemon.pid)
        assert daemon.end() == 0
        assert not os.path.exists(path)


def test_state_of_a_dockerd_is_left_alone(cli):
    os.makedirs(cli.roots.data + "/overlay2")
    assert refuses(cli).startswith(f"the data root {cli.roots.data} holds the state of a dockerd")
    assert os.listdir(cli.roots.data) == ["overlay2"]


def test_reload(start):
    daemon = start("--max-concurrent-uploads", "9")
    since = time.time_ns() / 1e9
    assert daemon.reload({"labels": ["b=2"], "debug": True, "max-concurrent-downloads": 4})
    assert daemon.get("/info")["Labels"] == ["b=2"]
    assert daemon.get("/info")["Debug"] is True
    made = daemon.configuration()
    assert (made["max-concurrent-downloads"], made["max-concurrent-uploads"]) == (4, 5)
    reply = daemon.ask(f"/events?since={since:.9f}&until={time.time_ns() / 1e9:.9f}")
    event = json.loads(reply.body)
    assert (event["Type"], event["Action"]) == ("daemon", "reload")
    assert event["Actor"]["ID"] == daemon.get("/info")["ID"]
    attributes = event["Actor"]["Attributes"]
    assert attributes["labels"] == '["b=2"]'
    assert attributes["max-concurrent-downloads"] == "4"
    assert attributes["name"] == os.uname().nodename
    # A wrong file changes nothing and is told.
    assert daemon.reload({"labels": ["b=3"], "bogus": 1})
    assert daemon.get("/info")["Labels"] == ["b=2"]
    assert "bogus" in daemon.log().splitlines()[-1]
    assert daemon.end() == 0


def test_reload_refuses_what_is_given_as_a_flag_too(start):
    daemon = start("--label", "a=1")
    assert daemon.reload({"labels": ["b=2"]})
    assert daemon.get("/info")["Labels"] == ["a=1"]
    assert "labels: (from flag: [a=1], from file: [b=2])" in daemon.log()


def test_watchdog(start):
    daemon = start(env={"WATCHDOG_USEC": "400000"})
    assert daemon.notices.seen("WATCHDOG=1")
    assert daemon.notices.seen("WATCHDOG=1")


def test_systemd_is_not_told_by_children(start, cli, image):
    daemon = start(env={"WATCHDOG_USEC": "9000000", "WATCHDOG_PID": "1"})
    launchers = [pid for pid in conftest.launchers_of(cli.roots.run)]
    assert launchers
    for pid in launchers:
        environ = open(f"/proc/{pid}/environ").read()
        assert "NOTIFY_SOCKET" not in environ
        assert "WATCHDOG" not in environ
    out = cli("run", "--rm", "--network", "none", image, "env").ok().out
    assert "NOTIFY_SOCKET" not in out
    assert daemon.end() == 0
    assert daemon.notices.texts == ["READY=1", "STOPPING=1"]


@pytest.mark.parametrize("how", ["end", "kill"])
def test_containers_outlive_the_daemon(cli, start, image, how):
    daemon = start()
    body = {"Image": image, "Cmd": ["sh", "-c", "echo before; read line; echo $line; exit 7"],
            "OpenStdin": True, "HostConfig": {"NetworkMode": "none"}}  # fmt: skip
    made = daemon.ask("/containers/create?name=web", "POST", json.dumps(body).encode()).json()
    assert daemon.ask("/containers/web/start", "POST").status == 204
    (daemon.end if how == "end" else daemon.kill)()
    assert cli("exec", "web", "echo", "still").ok().out == "still\n"
    second = start()
    assert [each["Id"] for each in second.get("/containers/json")] == [made["Id"]]
    if HAVE_DOCKER:
        assert second.docker("logs", "web") == "before\n"
        assert second.docker("exec", "web", "echo", "hello") == "hello\n"
    waiting = subprocess.Popen(cli.argv("wait", "web"), stdout=subprocess.PIPE)
    attached = subprocess.Popen(
        cli.argv("attach", "web"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    attached.communicate(b"after\n", timeout=20)
    assert waiting.communicate(timeout=20)[0] == b"7\n"
    assert second.get("/containers/web/json")["State"]["ExitCode"] == 7
    assert cli("logs", "web").ok().out == "before\nafter\n"
    assert second.end() == 0


def test_containers_end_with_it_where_that_is_asked(cli, start, image):
    daemon = start("--live-restore=false", "--shutdown-timeout", "1")
    assert daemon.get("/info")["LiveRestoreEnabled"] is False
    for number in range(3):
        cli("run", "-d", "--network", "none", "--init", "--name", f"c{number}", image, "sleep",
            "1000").ok()  # fmt: skip
    began = time.monotonic()
    assert daemon.end() == 0
    assert time.monotonic() - began < 8
    assert cli("ps", "-q").ok().out == ""


def test_what_it_decides_holds_for_every_command(cli, start, image):
    daemon = start(
        "--default-shm-size", "5m", "--default-ulimit", "nofile=123:456", "--init", "--dns",
        "10.1.2.3", "--log-opt", "max-size=1k", "--no-new-privileges", "--default-ipc-mode",
        "shareable", "--seccomp-profile", "unconfined",
    )  # fmt: skip
    script = (
        "df -k /dev/shm | tail -1; ulimit -Sn; ulimit -Hn; cat /etc/resolv.conf; "
        "grep -E 'NoNewPrivs|Seccomp:' /proc/self/status; cat /proc/1/comm; true"
    )
    run = ("run", "--network", "none", image, "sh", "-c", script)
    out = cli(*run).ok().out
    assert "5120" in out.splitlines()[0]
    assert out.splitlines()[1:3] == ["123", "456"]
    assert "nameserver 10.1.2.3" in out
    assert out.split()[-5:-1] == ["NoNewPrivs:", "1", "Seccomp:", "0"]
    assert out.split()[-1] != "sh"
    if HAVE_DOCKER:
        assert daemon.docker(*run) == out
    shown = json.loads(cli("inspect", cli("ps", "-lq").out.strip()).ok().out)[0]["HostConfig"]
    assert shown["ShmSize"] == 5 << 20
    assert shown["IpcMode"] == "shareable"
    assert shown["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "1k"}}
    assert shown["Ulimits"] == [{"Name": "nofile", "Hard": 456, "Soft": 123}]
    own = cli("run", "--network", "none", "--ulimit", "nofile=50", "--security-opt",
              "no-new-privileges=false", "--init=false", image, "sh", "-c",
              "ulimit -Hn; grep NoNew /proc/self/status; cat /proc/1/comm; true",
              ).ok().out  # fmt: skip
    assert own.split() == ["50", "NoNewPrivs:", "0", "sh"]
    assert daemon.end() == 0
    out = cli(*run).ok().out
    assert "65536" in out.splitlines()[0]
    assert "10.1.2.3" not in out
    assert "NoNewPrivs:\t0\nSeccomp:\t2" in out


def test_networks_without_rules_and_without_the_default_bridge(cli, start, image):
    daemon = start("--iptables=false", "-b", "none")
    assert [one["Name"] for one in daemon.get("/networks")] == ["host", "none"]
    assert cli("run", "--rm", image, "ls", "/sys/class/net").ok().out == "lo\n"
    refused = cli("run", "--rm", "--add-host", "h:host-gateway", image, "true")
    assert "unable to derive the IP value for host-gateway" in refused.err
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    cli("network", "create", "net1").ok()
    cli("run", "-d", "--name", "web", "--network", "net1", "-p", f"127.0.0.1:{port}:80", image,
        "sh", "-c", "while :; do echo hello | nc -l -p 80; done").ok()
    late = time.monotonic() + 5
    while (said := ask("127.0.0.1", port)) != "hello\n":
        assert time.monotonic() < late, said
    assert engine.nft_rules_count("engine-" + engine.engine_tag(engine.Store(
        cli.roots.data, cli.roots.run))) == 0
    # The next daemon wants them again, and the port is led by the table.
    assert daemon.end() == 0
    start()
    assert engine.nft_rules_count("engine-" + engine.engine_tag(engine.Store(
        cli.roots.data, cli.roots.run))) > 20
    assert ask("127.0.0.1", port) == "hello\n"
    assert cli("run", "--rm", image, "ls", "/sys/class/net").ok().out == "eth0\nlo\n"
    cli("rm", "-f", "web").ok()


def test_third_signal_ends_it_at_once(cli, start, image):
    daemon = start("--live-restore=false")
    cli("run", "-d", "--network", "none", "--stop-timeout", "60", image, "sh", "-c",
        "trap '' TERM; while :; do sleep 1; done").ok()  # fmt: skip
    for _ in range(3):
        daemon.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
    assert daemon.process.wait(10) == 128 + signal.SIGTERM
    assert daemon.told()[-1].startswith("Forcing docker daemon shutdown without cleanup")


def test_stacks_on_request(cli, start):
    daemon = start()
    daemon.process.send_signal(signal.SIGUSR1)
    path = os.path.join(cli.roots.run, "daemon-stacks.log")
    deadline = time.monotonic() + 10
    while "stacks of all threads" not in daemon.log() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert "Thread 0x" in open(path).read()


def test_default_sockets(cli, start, tmp_path):
    """RUN/engine.sock, and Docker's own where nobody listens on it; in a /run of its own."""
    inner = 'mount -t tmpfs none /run && exec "$@"'
    prefix = ("unshare", "-m", "--propagation", "private", "sh", "-c", inner, "sh")
    daemon = start(hosts=False, prefix=prefix)
    hosts = ["unix://" + cli.roots.run + "/engine.sock", "unix:///var/run/docker.sock"]
    assert daemon.configuration()["hosts"] == hosts
    daemon.path = cli.roots.run + "/engine.sock"
    assert daemon.ask("/_ping").body == b"OK"
    inside = f"/proc/{daemon.pid}/root/run/docker.sock"
    assert os.stat(daemon.path).st_mode & 0o777 == 0o660
    assert os.stat(cli.roots.run).st_mode & 0o777 == 0o711
    for entry in os.scandir(cli.roots.run):
        if entry.name not in ("engine.sock", "daemon.pid"):
            assert entry.stat().st_mode & 0o077 == 0, entry.name
    nsenter = ["nsenter", "-t", str(daemon.pid), "-m"]
    if HAVE_DOCKER:
        done = subprocess.run([*nsenter, "docker", "version", "-f", "{{.Server.Platform.Name}}"],
                              capture_output=True, text=True)  # fmt: skip
        assert done.stdout == f"engine.pyz {engine.VERSION}\n"
    assert stat.S_ISSOCK(os.stat(inside).st_mode)
    assert daemon.end() == 0
    assert not os.path.exists(daemon.path)


def test_dockers_socket_is_left_to_who_has_it(cli, start):
    inner = (
        "mount -t tmpfs none /run && python3 -c 'import socket, time; s = socket.socket(1); "
        's.bind("/run/docker.sock"); s.listen(1); print("bound", flush=True); time.sleep(30)\' & '
        'until [ -S /run/docker.sock ]; do sleep 0.1; done; exec "$@"'
    )
    prefix = ("unshare", "-m", "--propagation", "private", "bash", "-c", inner, "sh")
    daemon = start(hosts=False, prefix=prefix)
    assert daemon.configuration()["hosts"] == ["unix://" + cli.roots.run + "/engine.sock"]
    assert daemon.end() == 0


def test_plain_tcp_is_warned_about(start):
    from door_help import free_port

    port = free_port()
    daemon = start("-H", f":{port}")
    assert "Binding to IP address without --tlsverify is insecure" in daemon.log()
    assert f'host="tcp://localhost:{port}"' in daemon.log()
    assert f"API listen on 127.0.0.1:{port}" in daemon.told()
    (text,) = [each for each in daemon.get("/info")["Warnings"] or () if "2375" in each or
               str(port) in each]  # fmt: skip
    assert text.startswith(
        f"[DEPRECATION NOTICE]: API is accessible on http://localhost:{port} without encryption.\n"
    )


def test_usual_unit_line(start):
    """The flags of Debian's and Docker's docker.service."""
    daemon = start("--containerd=/run/containerd/containerd.sock")
    assert "--containerd has no effect" in daemon.log()


def test_a_new_daemon_starts_what_the_old_one_stopped(start, cli, image):
    daemon = start("--live-restore=false")
    for policy in ("unless-stopped", "no"):
        cli("run", "-d", "--network", "none", "--init", "--restart", policy, "--name", policy,
            image, "sleep", "1000").ok()  # fmt: skip
    assert daemon.end() == 0
    assert cli("ps", "-q").ok().out == ""
    second = start("--default-ulimit", "nofile=77")
    assert [each["Names"] for each in second.get("/containers/json")] == [["/unless-stopped"]]
    out = cli("exec", "unless-stopped", "grep", "open files", "/proc/2/limits").ok().out
    assert out.split()[3:5] == ["77", "77"]


def test_the_end_waits_for_what_is_asked_and_for_nobody_idle(start, cli, image):
    """Idle connections and endless streams end with the daemon, and do not hold it up."""
    from door_help import Raw

    daemon = start()
    idle, events = Raw(daemon.path), Raw(daemon.path)
    assert idle.ask("/_ping").body == b"OK"
    events.send("GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"200 OK" in events.head()
    assert daemon.get("/info")["NEventsListener"] == 1
    cli("run", "-d", "--network", "none", "--name", "web", image, "sleep", "1000").ok()
    logs = Raw(daemon.path)
    logs.send("GET /containers/web/logs?follow=1&stdout=1 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"200 OK" in logs.head()
    began = time.monotonic()
    assert daemon.end() == 0
    assert time.monotonic() - began < 3
    for client in (idle, events, logs):
        client.rest()
        client.close()


def test_socket_activation(start, cli, tmp_path):
    """A listening socket that somebody else made, as systemd does: LISTEN_FDS, LISTEN_PID."""
    import socket

    path = str(tmp_path / "activated.sock")
    inner = (
        "import os, socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); "
        "s.listen(5); os.dup2(s.fileno(), 3); os.set_inheritable(3, True); "
        "os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid())); "
        "os.execvp(sys.argv[2], sys.argv[2:])"
    )
    daemon = start("-H", "fd://", hosts=False, prefix=("python3", "-c", inner, path))
    daemon.path = path
    assert daemon.ask("/_ping").body == b"OK"
    environ = open(f"/proc/{conftest.launchers_of(cli.roots.run)[0]}/environ").read()
    assert "LISTEN" not in environ
    assert daemon.end() == 0
    with socket.socket(socket.AF_UNIX) as probe:    # systemd's name stays
        assert os.path.exists(path) and probe.connect_ex(path) != 0


def test_another_build_takes_over(start, cli, image):
    """The plain source is another build than the file: its daemon drives the older monitors."""
    daemon = start()
    cli("run", "-d", "--network", "none", "--name", "web", image, "sh", "-c",
        "echo first; read line < /dev/zero; sleep 1000").ok()  # fmt: skip
    daemon.kill()
    pyz, cli.pyz = cli.pyz, engine.__file__
    second = start()
    assert second.get("/containers/json")[0]["State"] == "running"
    assert cli("exec", "web", "echo", "hello").ok().out == "hello\n"
    if HAVE_DOCKER:
        assert second.docker("logs", "web") == "first\n"
        assert second.docker("exec", "web", "echo", "hello") == "hello\n"
        assert second.docker("top", "web").count("sh -c") == 1
    assert second.ask("/containers/web/stop?t=0", "POST").status == 204
    cli.pyz = pyz
    assert cli("ps", "-aq", "--filter", "status=exited").ok().out.count("\n") == 1
    assert second.end() == 0


def actions(reply):
    return [json.loads(line)["Action"] for line in reply.body.splitlines()]


def test_events(start, cli, image):
    daemon = start()
    since = f"{time.time_ns() / 1e9:.9f}"
    cli("run", "--rm", "--network", "none", "--name", "one", "--label", "a=1", image, "true").ok()
    cli("run", "-d", "--network", "none", "--name", "two", image, "sleep", "1000").ok()
    cli("exec", "two", "true").ok()
    for verb in ("pause", "unpause", "kill"):
        cli(verb, "two").ok()
    cli("tag", image, "other:1").ok()
    cli("wait", "two").ok()
    span = f"since={since}&until={time.time_ns() / 1e9:.9f}"

    def seen(filters):
        """The same from both encodings of filters."""
        old = daemon.ask(f"/events?{span}&filters={engine.percent_encode(json.dumps(filters))}")
        new = {key: dict.fromkeys(values, True) for key, values in filters.items()}
        again = daemon.ask(f"/events?{span}&filters={engine.percent_encode(json.dumps(new))}")
        assert old.body == again.body
        return actions(old)

    life = ["create", "attach", "start", "die", "destroy"]
    assert seen({"container": ["one"]}) == life
    assert seen({"label": ["a=1"]}) == life
    assert seen({"label": ["a=2"]}) == []
    assert seen({"type": ["image"]}) == ["tag"]
    assert seen({"event": ["die", "tag"]}) == ["die", "die", "tag"]
    assert seen({"container": ["two"]}) == [
        "create", "start", "exec_create: true ", "exec_start: true ", "exec_die", "pause",
        "unpause", "kill", "die",
    ]  # fmt: skip
    assert seen({"event": ["exec_create"]}) == ["exec_create: true "]
    assert seen({"image": [image], "event": ["start"]}) == ["start", "start"]
    assert seen({"container": ["one"], "event": ["start"], "scope": ["local"]}) == ["start"]
    assert seen({"scope": ["swarm"]}) == []
    events = [json.loads(line) for line in daemon.ask(f"/v1.30/events?{span}").body.splitlines()]
    for event in events:
        assert set(event) >= {"Type", "Action", "Actor", "scope", "time", "timeNano"}
        assert event["timeNano"] // 10**9 == event["time"]
        if event["Type"] in ("container", "image"):
            assert event["status"] == event["Action"]
            assert event["id"] == event["Actor"]["ID"]
    if HAVE_DOCKER:
        shown = daemon.docker("events", "--since", since, "--until", f"{time.time():.3f}", "-f",
                              "container=two", "--format", "{{.Type}} {{.Action}}")  # fmt: skip
        assert shown.splitlines()[0] == "container create"
        assert shown.splitlines()[-1] == "container die"


@pytest.mark.skipif(not HAVE_DOCKER, reason="no docker")
def test_dockers_command_line_on_system_commands(start, cli, image):
    daemon = start("--label", "a=1", "--registry-mirror", "https://m.example", "-D")
    version = json.loads(daemon.docker("version", "--format", "json"))["Server"]
    assert version["Platform"]["Name"] == f"engine.pyz {engine.VERSION}"
    assert version["Components"][0]["Name"] == "Engine"
    text = daemon.docker("info")
    for line in (" Server Version: 28.5.2", " Storage Driver: overlay2", "  a=1", " Images: 1",
                 " Logging Driver: json-file", " Cgroup Driver: cgroupfs", " Swarm: inactive",
                 " Debug Mode: true", "  https://m.example/", " Live Restore Enabled: true",
                 f" Docker Root Dir: {cli.roots.data}"):  # fmt: skip
        assert line in text.splitlines()
    errors = {
        ("node", "ls"): engine.NO_SWARM,
        ("service", "ls"): engine.NO_SWARM,
        ("swarm", "leave"): "This node is not part of a swarm",
        ("plugin", "inspect", "x"): 'plugin "x" not found',
    }
    for words, text in errors.items():
        done = subprocess.run(["docker", "-H", "unix://" + daemon.path, *words],
                              capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 1
        assert text in done.stderr
    assert daemon.docker("plugin", "ls", "-q") == ""
    assert daemon.docker("system", "df").startswith("TYPE")
