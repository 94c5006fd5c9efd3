"""This client beside the docker CLI: on one dockerd, and where there is no engine to talk to."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import conftest
import pytest
from server_help import Fake, chunked, reply
from test_client_remote import RUN, Terminal, plain
from tls_help import authority, issued

pytestmark = pytest.mark.root
DOCKER = shutil.which("docker")


class Client:
    """A program with the flags before its command, and a configuration of its own."""

    def __init__(self, argv, config, *before):
        self.words, self.config = argv, str(config)
        self.before = list(before)

    def argv(self, *words):
        return [*self.words, *self.before, *map(str, words)]

    def environ(self, extra=None):
        return {"PATH": os.environ["PATH"], "HOME": self.config, "TERM": "xterm",
                "DOCKER_CONFIG": self.config, **(extra or {})}

    def __call__(self, *words, input="", **env):
        done = subprocess.run(self.argv(*words), input=input.encode(), capture_output=True,
                              timeout=60, env=self.environ(env))
        return done.returncode, done.stdout.decode(), self.plain(done.stderr.decode())

    def plain(self, text):
        """Errors without what each program calls itself, and without the API's version."""
        text = re.sub(r"(?m)^Run '\S+ (\w+ --help' for more information)$", r"Run 'docker \1", text)
        text = re.sub(r"/v1\.5\d/", "/v1.NN/", text)
        return re.sub(r" on [\d.:]+: no such host", ": no such host", text)


@pytest.fixture(scope="module")
def clients(pyz, session_base):
    """Both programs, ours first."""
    if not DOCKER or b"version 28." not in subprocess.check_output([DOCKER, "--version"]):
        pytest.skip("needs the docker CLI 28")
    config = os.path.join(session_base, "beside")
    os.makedirs(config, exist_ok=True)
    return Client([sys.executable, str(pyz)], config), Client([DOCKER], config)


# -- where nobody answers ------------------------------------------------------------

P = "tcp://127.0.0.1:1"
NOWHERE = [
    (["-H", "unix:///none.sock", "ps"], {}), (["-H", P, "ps"], {}), (["-H", P, "-D", "ps"], {}),
    (["-H", "unix:///none.sock", "run", "x"], {}), (["-H", P, "exec", "x", "y"], {}),
    (["-H", "unix:///none.sock", "rm", "x", "y"], {}), (["-H", P, "inspect", "x", "y"], {}),
    (["-H", P, "start", "x"], {}), (["-H", P, "create", "x"], {}), (["-H", P, "events"], {}),
    (["-H", P, "kill", "x", "y"], {}), (["-H", P, "attach", "x"], {}),
    (["-H", P, "stop", "x"], {}), (["-H", P, "wait", "x"], {}), (["-H", P, "images"], {}),
    (["-H", P, "rmi", "x", "y"], {}), (["-H", P, "history", "x"], {}),
    (["-H", "127.0.0.1:1", "ps"], {}), (["-H", "tcp://127.0.0.1:1/base", "ps"], {}),
    (["-H", "tcp://", "ps"], {}), (["-H", ":1", "ps"], {}), (["-H", "fd://", "ps"], {}),
    (["-H", "http://x", "ps"], {}), (["-H", "foo://x", "ps"], {}), (["-H", "unix://", "ps"], {}),
    (["-H", P, "-H", P, "ps"], {}), (["-H", P, "-c", "x", "ps"], {}),
    (["-H", "tcp://127.0.0.1:x", "ps"], {}), (["-H", "tcp://[::1", "ps"], {}),
    (["-c", "nope", "ps"], {}), (["-c", "nope", "version"], {}), (["-c", "nope", "run", "x"], {}),
    (["ps"], {"DOCKER_CONTEXT": "nope"}), (["ps"], {"DOCKER_HOST": "foo://1"}),
    (["ps"], {"DOCKER_CONTEXT": "nope", "DOCKER_HOST": P}), (["ps"], {"DOCKER_HOST": P}),
    (["--tls", "-H", P, "ps"], {}), (["--tlsverify", "-H", P, "ps"], {}),
    (["--tlsverify", "ps"], {}), (["ps"], {"DOCKER_TLS_VERIFY": "1"}),
    (["--tlsverify", "--tlscacert=/nonexist", "-H", P, "ps"], {}),
    (["--tls", "--tlscacert=/dev/null", "-H", P, "ps"], {}),
    (["--tls", "--tlscert=/nonexist", "-H", P, "ps"], {}), (["-l", "bogus", "ps"], {}),
    (["ps"], {"DOCKER_HOST": P, "DOCKER_TLS": "1", "DOCKER_CERT_PATH": "/nowhere"}),
    (["-H", "ssh://me:pw@host", "ps"], {}), (["-H", "ssh://host?x=1", "ps"], {}),
    (["-H", "ssh://host#f", "ps"], {}), (["-H", "ssh://", "ps"], {}),
]


def test_nobody_answers(clients):
    ours, docker = clients
    for words, env in NOWHERE:
        assert ours(*words, **env) == docker(*words, **env), (words, env)


@pytest.mark.parametrize(
    "answer",
    [
        b"", reply("500 Internal Server Error", b"boom\n", "text/plain"),
        reply("500 Internal Server Error", b""), reply("400 Bad Request", b"{}"),
        reply("404 Not Found", b'{"message":" gone "}'), reply("418 Teapot", b"x", "text/plain"),
        reply("503 Service Unavailable", b'{"message":"a\\nb"}'), reply(body=b"[")[:-1] + b"",
        chunked(b"[", end=b""), reply("301 Moved", b"", "text/plain", "Location: /foo\r\n"),
        reply("409 Conflict", b"<html>", "text/html"),
    ],
)
def test_answers_that_are_none(clients, answer, tmp_path):
    for at, words in enumerate((["ps"], ["rm", "x"], ["logs", "x"], ["stop", "x"])):
        seen = []
        for side in clients:
            path = str(tmp_path / f"s{at}{len(seen)}")
            fake = Fake(lambda request: request.sock.sendall(answer), path=path)
            done = side("-H", "unix://" + path, *words)
            seen.append([str(part).replace(path, "S").replace(path.replace("/", "%2F"), "S")
                         for part in done])
            fake.close()
        if answer == b"" and words[0] == "stop":
            continue            # Go's client sends a POST twice or not, as the moment has it
        if words[0] in ("rm", "stop") and (b"[" in answer or b"Length: 1\r" in answer):
            continue            # Go's client does not read these bodies
        assert seen[0] == seen[1], words


# -- one dockerd ---------------------------------------------------------------------

@pytest.fixture(scope="module")
def dockerd(session_base, busybox_tar, clients):
    """Both clients of a dockerd of this module."""
    if not shutil.which("dockerd"):
        pytest.skip("needs dockerd")
    base = os.path.join(session_base, "dockerd")
    os.makedirs(base)
    cert, key = issued("server")
    log = open(base + "/log", "wb")
    process = subprocess.Popen(
        ["dockerd", "--data-root", base + "/data", "--exec-root", base + "/run", "--pidfile",
         base + "/pid", "--iptables=false", "--ip6tables=false", "--bridge=none",
         "--exec-opt", "native.cgroupdriver=cgroupfs", "--storage-driver", "overlay2",
         "-H", f"unix://{base}/docker.sock", "-H", "tcp://127.0.0.1:24377", "--tlsverify",
         "--tlscacert", authority().ca, "--tlscert", cert, "--tlskey", key],
        stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    sides = [Client(side.words, side.config, "-H", f"unix://{base}/docker.sock")
             for side in clients]
    try:
        conftest.wait_for(lambda: process.poll() is not None or sides[1]("version")[0] == 0, 60,
                          "dockerd answers")
        if process.poll() is not None:
            pytest.skip("dockerd does not start here")
        assert sides[0]("load", "-i", busybox_tar)[0] == 0
        yield sides
        ids = sides[1]("ps", "-aq")[1].split()
        if ids:
            sides[1]("rm", "-f", *ids)
    finally:
        process.terminate()
        process.wait(30)
        log.close()


#: N stands for a container's name; both clients do it all, one after the other
LIFE = [
    [*RUN, "busybox", "echo", "hello"], ["<piped", *RUN, "-i", "busybox", "cat"],
    [*RUN, "busybox", "sh", "-c", "echo out; exit 7"], [*RUN, "busybox", "nope"],
    [*RUN, "busybox", "sh", "-c", "echo err >&2"], [*RUN, "busybox", "/etc/passwd"],
    ["run", "--network", "none", "-d", "--name", "N", "busybox", "sh", "-c",
     "trap 'echo term; exit 3' TERM; echo started; while :; do sleep 0.05; done"],
    ["ps", "--filter", "name=N", "--format", "{{.Names}} {{.Image}} {{.Command}} {{.State}}"],
    ["ps", "--filter", "name=N"], ["exec", "N", "echo", "in exec"],
    ["exec", "N", "sh", "-c", "echo e >&2; exit 9"], ["<abc", "exec", "-i", "N", "cat"],
    ["exec", "N", "nope"], ["exec", "-d", "N", "true"], ["exec", "nobody", "ls"],
    ["inspect", "-f", "{{.State.Status}} {{.Name}} {{json .Config.Cmd}}", "N"],
    ["inspect", "--type", "container", "nobody"], ["logs", "N"], ["logs", "nobody"],
    ["top", "N", "-o", "cmd"], ["port", "N"], ["diff", "N"],
    ["cp", "/etc/hostname", "N:/tmp/in"], ["exec", "N", "cat", "/tmp/in"],
    ["cp", "N:/nope", "-"], ["cp", "/etc/nope", "N:/"], ["cp", "N:/etc/passwd", "-"],
    ["<no tar", "cp", "-", "N:/tmp"], ["diff", "N"], ["commit", "-m", "words", "N", "N:made"],
    ["history", "--format", "{{.Comment}}", "N:made"], ["export", "nobody"],
    ["stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}}", "N"],
    ["update", "--restart", "no", "N"], ["pause", "N"],
    ["ps", "--filter", "name=N", "--format", "{{.Status}}"], ["unpause", "N"],
    ["kill", "-s", "CONT", "N"], ["stop", "N"], ["wait", "N"], ["logs", "N"], ["start", "N"],
    ["start", "nobody", "N"], ["restart", "-t", "0", "N"], ["rename", "N", "N-2"],
    ["rename", "N-2", "N"], ["rm", "N"], ["rm", "-f", "N"], ["rm", "N"], ["rm", "-f", "N"],
    ["create", "--name", "N", "--network", "none", "busybox", "sh", "-c", "echo again; exit 5"],
    ["create", "--name", "N", "busybox"], ["start", "-a", "N"], ["rm", "N"], ["images", "busybox"],
    ["image", "inspect", "-f", "{{.Id}}", "busybox"], ["image", "inspect", "nothing-there"],
    ["history", "busybox"], ["tag", "busybox", "N:2"], ["rmi", "N:2"], ["rmi", "N:2"],
    ["version", "--format", "{{.Server.Version}}"], ["events", "--since", "nonsense"],
    ["container", "prune", "-f"], ["image", "prune", "-f"], ["kill", "nobody", "nobody2"],
    ["save", "nothing-there"], ["stats", "--no-stream", "nobody"],
]


def test_a_life_on_dockerd(dockerd):
    for words in LIFE:
        seen = []
        for name, side in zip(("side-a", "side-b"), dockerd):
            stdin = words[0][1:] if words[0][:1] == "<" else ""
            real = [word.replace("N", name) if word[:1] == "N" or "=N" in word else word
                    for word in (words[1:] if stdin else words)]
            code, out, err = side(*real, input=stdin)
            seen.append((code, plain(out, name), plain(err, name)))
        assert seen[0] == seen[1], words


def test_archives_of_dockerd(dockerd, tmp_path, busybox_rootfs):
    ours, docker = dockerd
    for at, side in enumerate(dockerd):
        assert side("save", "-o", tmp_path / f"{at}.tar", "busybox")[0] == 0
    assert (tmp_path / "0.tar").stat().st_size == (tmp_path / "1.tar").stat().st_size
    assert ours("load", "-i", tmp_path / "1.tar") == docker("load", "-i", tmp_path / "0.tar")
    for side in dockerd:
        code, out, err = side("import", busybox_rootfs, "side:in")
        assert code == 0 and re.fullmatch("sha256:[0-9a-f]{64}\n", out), err
    assert ours("rmi", "side:in")[0] == 0


def test_a_terminal_of_dockerd(dockerd):
    term = Terminal(dockerd[0], "run", "--rm", "-it", "--network", "none", "busybox", "sh")
    term.until(b"# ")
    term.send(b"echo a$((1+1))b; exit 3\n")
    term.until(b"a2b")
    assert term.end() == 3


def test_dockerd_over_tls(dockerd, clients, tmp_path):
    cert, key = issued("client")
    for source, name in ((authority().ca, "ca.pem"), (cert, "cert.pem"), (key, "key.pem")):
        shutil.copy(source, tmp_path / name)
    env = {"DOCKER_HOST": "tcp://127.0.0.1:24377", "DOCKER_TLS_VERIFY": "1",
           "DOCKER_CERT_PATH": str(tmp_path)}
    ours, docker = clients
    words = [*RUN, "-i", "busybox", "sh", "-c", "cat; exit 5"]
    assert ours(*words, input="over tls", **env) == docker(*words, input="over tls", **env) == (
        5, "over tls", "")
    for name, text in (("cert.pem", "certificate required"), ("ca.pem", "no such file")):
        os.unlink(tmp_path / name)
        mine, theirs = ours("ps", **env), docker("ps", **env)
        assert mine == theirs or "lookup" in theirs[2]
        assert mine[0] == 1 and (text in mine[2] or "bad certificate" in mine[2])


def test_plain_to_a_tls_port(dockerd, clients):
    env = {"DOCKER_HOST": "tcp://127.0.0.1:24377"}
    assert clients[0]("ps", **env) == clients[1]("ps", **env)
