"""The same commands in this process and through a daemon: output, errors, exit codes, streams."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time

import conftest
import engine
import pytest
from server_help import Fake, put_program, reply
from tls_help import authority, issued

pytestmark = pytest.mark.root


class Through(conftest.Cli):
    """Runs engine.pyz with an engine elsewhere."""

    def __init__(self, pyz, roots, *before):
        super().__init__(pyz, roots)
        self.before = before

    def argv(self, *args):
        return [self.python, self.pyz, *self.before, *map(str, args)]


class Daemon:
    """A daemon of a module: .local and .remote run commands on the same state."""

    def __init__(self, pyz, roots, flags=()):
        self.roots = roots
        self.socket = roots.base + "/api.sock"
        self.local = conftest.Cli(pyz, roots)
        self.remote = Through(pyz, roots, "-H", "unix://" + self.socket)
        self.log = open(roots.base + "/daemon.log", "wb+")
        self.process = subprocess.Popen(
            self.local.argv("daemon", "-H", "unix://" + self.socket, *flags),
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
            env=self.local.environ())
        conftest.wait_for(self.answers, 20, "the daemon answers")

    def answers(self):
        assert self.process.poll() is None, open(self.log.name).read()
        return self.remote("version").code == 0

    def end(self):
        ids = self.local("ps", "-aq").out.split()
        if ids:
            self.local("rm", "-f", *ids)
        self.process.terminate()
        assert self.process.wait(30) == 0
        self.log.close()
        conftest.end_launchers(self.roots.run)


@pytest.fixture(scope="module")
def daemon(pyz, session_base, busybox_tar):
    base = os.path.join(session_base, "remote")
    os.makedirs(base)
    roots = conftest.Roots(base)
    pems = base + "/pems"
    os.mkdir(pems)
    cert, key = issued("server")
    made = Daemon(pyz, roots, (
        "-H", "tcp://127.0.0.1:24376", "--tlsverify", "--tlscacert", authority().ca,
        "--tlscert", cert, "--tlskey", key))
    made.local("load", "-i", busybox_tar).ok()
    yield made
    made.end()
    shutil.rmtree(base, ignore_errors=True)


def plain(text, name):
    """The output without ids, ages and the name of the container."""
    text = re.sub(r"\b[0-9a-f]{64}\b|\b[0-9a-f]{12}\b", "ID", text)
    text = re.sub(r"\d+(\.\d+)? (milli)?seconds?|Less than a second|About a minute", "AGE", text)
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z?", "TIME", text)
    text = re.sub(r"(root +)\d+( +)\d+( +\d+ +)\d\d:\d\d", r"\1PID\2PID\3TIME", text)
    return re.sub(r" +", " ", text.replace(name, "NAME"))


RUN = ["run", "--rm", "--network", "none"]
#: commands, in their order; N stands for the name of a container of either side
LIFE = [
    [*RUN, "busybox", "echo", "hello"],
    [*RUN, "busybox", "sh", "-c", "echo out; echo err >&2; exit 7"],
    ["<piped input", *RUN, "-i", "busybox", "cat"],
    [*RUN, "busybox", "nope"], [*RUN, "busybox", "/etc/passwd"],
    [*RUN, "nothing-there", "x"], [*RUN, "-w", "rel", "busybox", "x"],
    ["run", "--network", "none", "-d", "--name", "N", "busybox", "sh", "-c",
     "trap 'echo term; exit 3' TERM; echo started; echo late >&2; while :; do sleep 0.05; done"],
    ["ps", "--filter", "name=N", "--format", "{{.Names}} {{.Image}} {{.Command}} {{.State}}"],
    ["ps", "--filter", "name=N"], ["ps", "-aq", "--filter", "name=N"],
    ["exec", "N", "echo", "in exec"], ["exec", "N", "sh", "-c", "echo e >&2; exit 9"],
    ["<abc", "exec", "-i", "N", "cat"], ["exec", "N", "nope"], ["exec", "-d", "N", "true"],
    ["exec", "nobody", "ls"], ["exec", "-e", "A=b", "-u", "user", "-w", "/tmp", "N", "sh", "-c",
                               "echo $A; id; pwd"],
    ["inspect", "-f", "{{.State.Status}} {{.Name}} {{json .Config.Cmd}}", "N"],
    ["inspect", "--type", "container", "nobody"], ["inspect", "nobody"],
    ["logs", "N"], ["logs", "-t", "--tail", "1", "N"], ["logs", "nobody"],
    ["top", "N", "-o", "cmd"], ["port", "N"], ["diff", "N"],
    ["cp", "/etc/hostname", "N:/tmp/in"], ["exec", "N", "cat", "/tmp/in"],
    ["cp", "N:/tmp/in", "/dev/null"], ["cp", "N:/nope", "-"], ["cp", "/nope", "N:/"],
    ["cp", "N:/etc/passwd", "-"], ["<no tar", "cp", "-", "N:/tmp"], ["diff", "N"],
    ["commit", "-m", "words", "N", "N:made"], ["history", "--format", "{{.Comment}}", "N:made"],
    ["export", "nobody"], ["stats", "--no-stream", "nobody"],
    ["stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}}", "N"], ["system", "df"],
    ["update", "--restart", "no", "N"], ["pause", "N"],
    ["ps", "--filter", "name=N", "--format", "{{.Status}}"], ["unpause", "N"],
    ["kill", "-s", "CONT", "N"], ["kill", "-s", "nope", "N"],
    ["stop", "N"], ["wait", "N"], ["logs", "N"], ["start", "N"], ["start", "nobody", "N"],
    ["restart", "-t", "0", "N"], ["rename", "N", "N-2"], ["rename", "N-2", "N"],
    ["update", "--memory", "64m", "--memory-swap", "64m", "N"], ["rm", "N"], ["rm", "-f", "N"],
    ["rm", "N"], ["rm", "-f", "N"],
    ["create", "--name", "N", "--network", "none", "busybox", "sh", "-c", "echo again; exit 5"],
    ["create", "--name", "N", "busybox"], ["start", "-a", "N"], ["rm", "N"],
    ["images", "busybox"], ["images", "--format", "json", "busybox"],
    ["image", "inspect", "busybox"],
    ["image", "inspect", "nothing-there"], ["history", "busybox"], ["tag", "busybox", "N:2"],
    ["tag", "nothing-there", "N"], ["rmi", "N:2"], ["rmi", "N:2"], ["version"], ["info"],
    ["version", "--format", "{{.Server.Version}} {{.Client.APIVersion}}"],
    ["events", "--since", "1h", "--until", "0s", "--filter", "container=nobody"],
    ["events", "--since", "nonsense"], ["container", "prune", "-f"], ["image", "prune", "-f"],
    ["networks"], ["pull", "x"], ["kill", "nobody", "nobody2"], ["ps", "--filter", "nope=1"],
    ["save", "nothing-there"], ["<no tar", "load"], ["<no tar", "import", "-", "n:1"],
]


def one(side, words, name):
    stdin = words[0][1:] if words[0][:1] == "<" else ""
    words = [word.replace("N", name) if word[:1] == "N" or "=N" in word else word
             for word in (words[1:] if stdin else words)]
    done = side(*words, input=stdin)
    return done.code, plain(done.out, name), plain(done.err, name)


def test_the_same_life_on_both_ways(daemon):
    for words in LIFE:
        here = one(daemon.local, words, "side-a")
        there = one(daemon.remote, words, "side-b")
        if words[0] in ("info", "networks"):        # what changes by itself, or is no command
            here, there = here[0], there[0]
        assert there == here, words
    daemon.remote("rmi", "side-a:made", "side-b:made").ok()


def test_files_and_pipes(daemon, tmp_path, busybox_rootfs):
    cid = tmp_path / "cid"
    assert daemon.remote(*RUN, "--cidfile", cid, "busybox", "true").code == 0
    assert re.fullmatch("[0-9a-f]{64}", cid.read_text())
    refused = daemon.remote(*RUN, "--cidfile", cid, "busybox", "true")
    assert refused.code == 125 and "container ID file found" in refused.err
    daemon.local("save", "-o", tmp_path / "a.tar", "busybox").ok()
    daemon.remote("save", "-o", tmp_path / "b.tar", "busybox").ok()
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with open(tmp_path / "c.tar", "wb") as file:
        subprocess.run(daemon.remote.argv("save", "busybox"), stdout=file, check=True)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "c.tar").read_bytes()
    with open(tmp_path / "a.tar", "rb") as file:
        assert daemon.remote("load", stdin=file).ok().out == "Loaded image: busybox:latest\n"
    assert daemon.remote("load", "-i", tmp_path / "a.tar").ok().out == (
        "Loaded image: busybox:latest\n")
    ids = [side("import", "-c", "CMD [\"true\"]", busybox_rootfs, f"made:{at}").ok().out
           for at, side in enumerate((daemon.remote, daemon.local))]
    assert all(re.fullmatch("sha256:[0-9a-f]{64}\n", id) for id in ids)
    assert daemon.remote("run", "--rm", "--network", "none", "made:0").code == 0
    daemon.remote("rmi", "made:0", "made:1").ok()
    big = os.urandom(1 << 20) * 8
    done = daemon.remote(*RUN, "-i", "busybox", "sha256sum", input=big)
    assert done.out.split()[0] == engine.sha256(big).hexdigest()


def start(daemon, name, script, *flags):
    daemon.remote("run", "-d", "--name", name, "--network", "none", *flags, "busybox", "sh", "-c",
                  script).ok()


def test_logs_follow_and_attach(daemon):
    start(daemon, "lines", "echo one; while [ ! -e /go ]; do sleep 0.05; done; echo two; exit 4")
    logs = daemon.remote.popen("logs", "-f", "lines")
    attached = daemon.remote.popen("attach", "--no-stdin", "lines")
    assert logs.stdout.readline() == b"one\n"
    time.sleep(0.3)
    daemon.remote("exec", "lines", "touch", "/go").ok()
    assert logs.communicate(timeout=20) == (b"two\n", b"") and logs.returncode == 0
    assert attached.communicate(timeout=20) == (b"two\n", b"") and attached.returncode == 4
    daemon.remote("rm", "lines").ok()


def test_events_follow(daemon):
    events = daemon.remote.popen("events", "--format", "{{.Type}} {{.Action}}", "--filter",
                                 "type=container")
    time.sleep(0.5)
    daemon.remote(*RUN, "busybox", "true").ok()
    seen = [events.stdout.readline().decode().strip() for _ in range(4)]
    events.send_signal(signal.SIGINT)
    events.wait(10)
    assert seen[0] == "container create" and "container start" in seen
    assert events.returncode in (130, -signal.SIGINT)


def test_signals_are_passed_on(daemon):
    run = daemon.remote.popen(*RUN, "--name", "signalled", "busybox", "sh", "-c",
                              "trap 'echo got; exit 6' TERM; echo up; while :; do sleep 0.05; done")
    assert run.stdout.readline() == b"up\n"
    run.send_signal(signal.SIGTERM)
    assert run.communicate(timeout=20)[0] == b"got\n" and run.returncode == 6
    exec_ = None
    start(daemon, "still", "while :; do sleep 0.1; done")
    exec_ = daemon.remote.popen("exec", "still", "sh", "-c", "echo in; sleep 100")
    assert exec_.stdout.readline() == b"in\n"
    exec_.send_signal(signal.SIGINT)
    assert exec_.wait(20) == 130
    daemon.remote("rm", "-f", "still").ok()


class Terminal:
    """A command on a terminal: .until(bytes), .send(bytes), .end() -> exit code."""

    def __init__(self, cli, *words):
        self.data = b""
        self.pid, self.fd = pty.fork()
        if not self.pid:
            argv = cli.argv(*words)
            os.execve(argv[0] if "/" in argv[0] else shutil.which(argv[0]), argv, cli.environ())

    def until(self, text, timeout=20):
        end = time.monotonic() + timeout
        while text not in self.data:
            assert select.select([self.fd], [], [], max(end - time.monotonic(), 0))[0], self.data
            try:
                more = os.read(self.fd, 65536)
            except OSError:
                more = b""
            assert more, self.data
            self.data += more

    def send(self, data):
        os.write(self.fd, data)

    def end(self):
        try:
            while os.read(self.fd, 65536):
                pass
        except OSError:
            pass
        os.close(self.fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.mark.parametrize("way", ["local", "remote"])
def test_a_terminal(daemon, way):
    side = getattr(daemon, way)
    term = Terminal(side, "run", "--rm", "-it", "--network", "none", "busybox", "sh")
    term.until(b"# ")
    term.send(b"stty size; tty; echo a$((1+1))b\n")
    term.until(b"a2b")
    assert b"/dev/pts/0" in term.data
    term.send(b"exit 3\n")
    assert term.end() == 3
    start(daemon, "shell", "exec sh", "-it")
    term = Terminal(side, "attach", "shell")
    term.send(b"echo b$((2+2))c\n")
    term.until(b"b4c")
    term.send(b"\x10\x11")
    term.until(b"read escape sequence")
    assert term.end() == 1
    term = Terminal(side, "exec", "-it", "shell", "sh", "-c", "read x; echo got-$x; exit 8")
    term.send(b"typed\n")
    term.until(b"got-typed")
    assert term.end() == 8
    daemon.remote("rm", "-f", "shell").ok()


# -- TLS ----------------------------------------------------------------------------

@pytest.fixture
def tls(daemon, tmp_path):
    """Flags and a DOCKER_CERT_PATH with which the daemon's TLS port is reached."""
    cert, key = issued("client")
    for source, name in ((authority().ca, "ca.pem"), (cert, "cert.pem"), (key, "key.pem")):
        shutil.copy(source, tmp_path / name)
    return "tcp://127.0.0.1:24376", str(tmp_path)


def test_mutual_tls(daemon, pyz, tls):
    host, pems = tls
    side = Through(pyz, daemon.roots, "-H", host, "--tlsverify")
    env = {"DOCKER_CERT_PATH": pems}
    assert side("version", env=env).code == 0
    done = side(*RUN, "-i", "busybox", "sh", "-c", "cat; echo err >&2; exit 5", env=env,
                input="over tls\n")
    assert (done.code, done.out, done.err) == (5, "over tls\n", "err\n")
    big = os.urandom(1 << 20)
    done = side(*RUN, "-i", "busybox", "sha256sum", env=env, input=big)
    assert done.out.split()[0] == engine.sha256(big).hexdigest()
    side("save", "-o", pems + "/a.tar", "busybox", env=env).ok()
    side("load", "-i", pems + "/a.tar", env=env).ok()
    same = side("version", env={"DOCKER_HOST": host, "DOCKER_TLS_VERIFY": "1", **env})
    assert same.code == 0
    other = Through(pyz, daemon.roots, "-H", host, "--tls", "--tlscacert", authority("other").ca)
    bare = other("version", env={"DOCKER_CERT_PATH": "/nowhere"})
    assert bare.code == 1 and "tls: certificate required" in bare.err
    wrong = side("version", env={"DOCKER_CERT_PATH": "/nowhere"})
    assert wrong.code == 1 and wrong.err == (
        "Failed to initialize: unable to resolve docker endpoint: open /nowhere/ca.pem: no such "
        "file or directory\n")


def test_a_context_with_tls(daemon, pyz, tls, tmp_path):
    host, pems = tls
    config = {"DOCKER_CONFIG": str(tmp_path / "config")}
    side = Through(pyz, daemon.roots)
    spec = f"host={host},ca={pems}/ca.pem,cert={pems}/cert.pem,key={pems}/key.pem"
    side("context", "create", "far", "--docker", spec, env=config).ok()
    side("context", "use", "far", env=config).ok()
    told = side("version", "--format", "{{.Client.Context}} {{.Server.Version}}", env=config)
    assert told.ok().out == f"far {engine.DOCKER_VERSION}\n"
    assert side(*RUN, "busybox", "echo", "hi", env=config).ok().out == "hi\n"
    if shutil.which("docker"):
        done = subprocess.run(["docker", *RUN, "busybox", "echo", "hi"],
                              stdout=subprocess.PIPE, env={**os.environ, **config}, timeout=60)
        assert done.stdout == b"hi\n"


# -- ssh ----------------------------------------------------------------------------

SSH = """#!/bin/sh
echo "$@" >> {log}
while [ "$1" != -- ]; do shift; done
shift 2
PATH={bin}:$PATH exec sh -c "$*"
"""
FAR_DOCKER = """#!/bin/sh
exec {python} {pyz} {flags} "$@"
"""


@pytest.fixture
def ssh(daemon, pyz, tmp_path):
    """ssh(flags) -> environment in which ssh:// reaches engine.pyz with those flags, by the name
    docker."""
    def make(*flags):
        far = tmp_path / "far"
        near = tmp_path / "near"
        far.mkdir()
        near.mkdir()
        put_program(far, "docker", FAR_DOCKER.format(python=sys.executable, pyz=pyz,
                                                     flags=" ".join(flags)))
        put_program(near, "ssh", SSH.format(log=tmp_path / "log", bin=far))
        return {"PATH": f"{near}:{os.environ['PATH']}", "DOCKER_CONFIG": str(tmp_path / "config")}
    return make


@pytest.mark.parametrize("way", ["socket", "nothing served", "beside"])
@pytest.mark.parametrize("client", ["ours", "docker"])
def test_ssh(daemon, pyz, ssh, way, client, tmp_path, busybox_tar):
    """To a daemon's socket, to the daemon of the data root, and to a host where nothing runs."""
    roots = daemon.roots
    if way == "nothing served":
        roots = conftest.Roots(str(tmp_path / "roots"))
        conftest.Cli(pyz, roots)("load", "-i", busybox_tar).ok()
    env = ssh(*(("-H", "unix://" + daemon.socket) if way == "socket" else
                ("--data-root", roots.data, "--run-root", roots.run)))
    near = [shutil.which("docker")] if client == "docker" else [sys.executable, str(pyz)]
    if not near[0]:
        pytest.skip("needs the docker CLI")

    def call(*words, input=b""):
        done = subprocess.run([*near, "-H", "ssh://me@far.example", *words], input=input,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60,
                              env={**daemon.local.environ(), **env})
        return done.returncode, done.stdout.decode(), done.stderr.decode()
    assert call("run", "--rm", "--network", "none", "-i", "busybox", "sh", "-c",
                "cat; echo err >&2; exit 3", input=b"over ssh\n") == (3, "over ssh\n", "err\n")
    code, out, _ = call("images", "--format", "{{.Repository}}")
    assert (code, out) == (0, "busybox\n")
    code, out, err = call("load", "-q", "-i", busybox_tar)
    assert code == 0 and "busybox:latest" in out, err
    assert (tmp_path / "log").read_text().splitlines()[0].endswith(
        "-T -l me -- far.example docker system dial-stdio")
    conftest.end_launchers(roots.run if way == "nothing served" else "no such root")


# -- a foreign engine ---------------------------------------------------------------

USER = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


def test_who_may_not_open_the_data_root_is_sent_to_our_daemon(pyz, session_base, busybox_tar):
    """An ordinary user, a data root that is not theirs, and a socket that they may use."""
    base = os.path.join(session_base, "not-theirs")
    os.makedirs(base)
    for path in (session_base, base):
        os.chmod(path, 0o755)
    roots = conftest.Roots(base)
    program = shutil.copy(pyz, base + "/engine.pyz")
    local = conftest.Cli(pyz, roots)
    local("load", "-i", busybox_tar).ok()
    user = [*USER, sys.executable, program, "--data-root", roots.data, "--run-root", roots.run]
    if subprocess.run([*USER, sys.executable, "-c", "0"], capture_output=True).returncode:
        pytest.skip("this Python is not for everybody")

    def ask():
        done = subprocess.run([*user, "images", "-q"], capture_output=True, text=True,
                              env={"PATH": os.environ["PATH"]})
        return done.returncode, done.stdout

    assert ask() == (1, "")                     # nobody serves it
    os.chmod(roots.run, 0o711)
    foreign = Fake(lambda seen: reply(body=b"[]"), path=roots.run + "/engine.sock")
    os.chmod(roots.run + "/engine.sock", 0o666)
    assert ask() == (1, "") and foreign.seen == []      # what is not ours is not asked for anything
    foreign.close()
    os.unlink(roots.run + "/engine.sock")
    with open(base + "/log", "wb") as log:
        daemon = subprocess.Popen(
            local.argv("daemon", "-H", f"unix://{roots.run}/engine.sock"), stdout=log, stderr=log,
            env=local.environ())
    try:
        conftest.wait_for(lambda: os.path.exists(roots.run + "/engine.sock"), 20, "the daemon")
        conftest.wait_for(lambda: local("version").code == 0, 20, "the daemon answers")
        assert ask() == (1, "")                 # the socket is closed to them, too
        os.chmod(roots.run, 0o711)
        os.chmod(roots.run + "/engine.sock", 0o666)
        assert ask() == (0, local("images", "-q").out)
    finally:
        daemon.terminate()
        daemon.wait(30)
    conftest.end_launchers(roots.run)
    shutil.rmtree(base, ignore_errors=True)
