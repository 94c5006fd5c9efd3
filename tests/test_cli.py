"""Finding commands, help, usage errors, exit codes: the texts of Docker 28."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import engine
import pytest
from engine import Flag


class NoClient:
    pass


@pytest.fixture
def commands(monkeypatch):
    """A small command tree; the list that its handlers fill."""
    calls = []
    monkeypatch.setattr(engine, "COMMANDS", {})
    monkeypatch.setattr(engine, "client_local", lambda data, run: NoClient())
    monkeypatch.setattr(engine.sys, "argv", ["/usr/bin/engine.pyz"])
    monkeypatch.delenv("DOCKER_HOST", raising=False)

    @engine.command(
        "container ls",
        aliases=("ps", "container ps"),
        flags=(Flag("-a --all", help="Every one"), Flag("-n --last", "int", -1)),
        help="Show containers",
    )
    def cmd_ps(client, args):
        calls.append((args.name, args.all, args.last))

    @engine.command(
        "container rename",
        aliases=("rename",),
        usage="CONTAINER NEW_NAME",
        nargs=(2, 2),
        help="Give a new name",
    )
    def cmd_rename(client, args):
        error = engine.NotFound("No such container: " + args.rest[0])
        error.from_engine = True
        raise error

    @engine.command(
        "container run",
        aliases=("run",),
        usage="[OPTIONS] IMAGE [COMMAND] [ARG...]",
        flags=(Flag("-d --detach"),),
        nargs=(1, None),
        interspersed=False,
        error_exit=125,
        help="Run",
    )
    def cmd_run(client, args):
        calls.append(args.rest)
        if args.rest[0] == "bad":
            raise engine.EngineError("broken")
        if args.rest[0] == "missing":
            raise engine.CommandNotFound("no program")
        return 7

    return calls


@pytest.fixture
def run(commands, capfd):
    def run(*words):
        code = engine.cli_main(list(words))
        out, err = capfd.readouterr()
        return code, out, err

    run.calls = commands
    return run


def test_runs_by_every_name(run):
    assert run("ps", "-a")[0] == 0
    assert run("container", "ls", "-n", "3")[0] == 0
    assert run("container", "ps")[0] == 0
    assert run("-D", "container", "-a", "ls")[0] == 0
    assert run.calls == [
        ("ps", True, -1),
        ("container ls", False, 3),
        ("container ls", False, -1),
        ("container ls", True, -1),
    ]


HELP_OF_RUN = "\n\nRun 'engine.pyz run --help' for more information\n"


def test_exit_codes(run):
    assert run("run", "x", "-d") == (7, "", "")
    assert run.calls == [["x", "-d"]]
    assert run("run", "bad") == (125, "", "docker: broken" + HELP_OF_RUN)
    assert run("run", "missing") == (127, "", "docker: no program" + HELP_OF_RUN)
    assert run("rename", "a", "b") == (1, "", "Error response from daemon: No such container: a\n")


@pytest.mark.parametrize(
    "words, code, text",
    [
        (
            ["xyz"],
            1,
            "docker: unknown command: docker xyz\n\nRun 'engine.pyz --help' for more information\n",
        ),
        (
            ["container", "xyz"],
            1,
            "docker: unknown command: docker container xyz\n\n"
            "Usage:  engine.pyz container\n\n"
            "Run 'engine.pyz container --help' for more information\n",
        ),
        (
            ["ps", "x"],
            1,
            "docker: 'docker ps' accepts no arguments\n\nUsage:  engine.pyz ps [OPTIONS]\n\n"
            "Run 'engine.pyz ps --help' for more information\n",
        ),
        (
            ["container", "rename", "x"],
            1,
            "docker: 'docker container rename' requires 2 arguments\n\n"
            "Usage:  engine.pyz container rename CONTAINER NEW_NAME\n\n"
            "Run 'engine.pyz container rename --help' for more information\n",
        ),
        (
            ["run"],
            1,
            "docker: 'docker run' requires at least 1 argument\n\n"
            "Usage:  engine.pyz run [OPTIONS] IMAGE [COMMAND] [ARG...]\n\n"
            "See 'engine.pyz run --help' for more information\n",
        ),
        (
            ["ps", "--xyz"],
            125,
            "unknown flag: --xyz\n\nUsage:  engine.pyz ps [OPTIONS]\n\n"
            "Run 'engine.pyz ps --help' for more information\n",
        ),
        (
            ["--xyz"],
            125,
            "unknown flag: --xyz\n\nUsage:  engine.pyz [OPTIONS] COMMAND [ARG...]\n\n"
            "Run 'engine.pyz --help' for more information\n",
        ),
        (
            ["ps", "-n", "x"],
            125,
            'invalid argument "x" for "-n, --last" flag: '
            'strconv.ParseInt: parsing "x": invalid syntax\n\n'
            "Usage:  engine.pyz ps [OPTIONS]\n\nRun 'engine.pyz ps --help' for more information\n",
        ),
        (["-l", "loud", "ps"], 1, "Unable to parse logging level: loud\n"),
        (["help", "xyz"], 1, "unknown help topic: xyz\n"),
        (["help", "container", "xyz"], 1, "unknown help topic: xyz\n"),
        (
            ["-H", "tcp://x:1", "-c", "y", "ps"],
            1,
            "conflicting options: cannot specify both --host and --context\n",
        ),
        (
            ["-H", "tcp://x:1", "--data-root", "/x", "ps"],
            1,
            "conflicting options: cannot specify both --host and --data-root\n",
        ),
    ],
)
def test_usage_errors(run, words, code, text):
    assert run(*words) == (code, "", text)
    assert run.calls == []


def test_help(run):
    code, out, err = run("ps", "--help")
    assert (code, err) == (0, "")
    assert out.startswith(
        "Usage:  engine.pyz ps [OPTIONS]\n\nShow containers\n\nAliases:\n"
        "  engine.pyz container ls, engine.pyz container ps, engine.pyz ps\n\n"
        "Options:\n  -a, --all        Every one\n"
    )
    assert run("help", "ps")[1] == out
    assert run("container", "ls", "--help")[1].startswith(
        "Usage:  engine.pyz container ls [OPTIONS]"
    )
    group = run("container", "--help")[1]
    assert "\nCommands:\n  ls          Show containers\n  rename      Give a new name\n" in group
    assert run("container") == (0, "", group)
    root = run("--help")[1]
    assert run("help")[1] == root
    assert run() == (0, "", root)       # what was not asked for goes to stderr, as in Docker
    assert "\nManagement Commands:\n  container   Work with containers\n" in root
    assert "\nCommon Commands:\n  run         Run\n  ps          Show containers\n" in root


def test_version_flag(run):
    assert run("--version")[1].startswith(f"Docker version {engine.DOCKER_VERSION}, build ")


def test_interrupt_and_bugs(run):
    def press(client, args):
        raise KeyboardInterrupt

    def full(client, args):
        raise OSError(28, "No space left on device")

    engine.command("press", help="x")(press)
    engine.command("full", help="x")(full)
    assert run("press") == (130, "", "")
    assert run("full") == (1, "", "no space left on device\n")


def test_broken_pipe_dies_of_the_signal(commands):
    read, write = os.pipe()
    os.close(read)
    pid = os.fork()
    if pid == 0:
        os.dup2(write, 1)
        engine.sys.stdout = open(1, "w", closefd=False)
        engine.main_exit(["--help"])
    os.close(write)
    assert os.waitpid(pid, 0)[1] == 13


def test_for_each_and_confirm(capfd, monkeypatch):
    def action(name):
        if name == "b":
            raise engine.NotFound("no b")

    assert engine.for_each(["a", "b", "c"], action) == 1
    assert capfd.readouterr() == ("a\nc\n", "no b\n")
    for answer, claim in (
        ("y\n", True),
        ("Y", True),
        ("n\n", False),
        ("", False),
        ("yes\n", False),
    ):
        monkeypatch.setattr(engine.sys, "stdin", io.StringIO(answer))
        assert engine.confirm("Sure?") is claim
    assert capfd.readouterr().out.startswith("Sure? [y/N] ")


@pytest.mark.parametrize(
    "redirection, code, err",
    [(">&-", 0, ""), (">/dev/full", 1, "no space left on device\n"), ("<&- >&- 2>&-", 0, "")],
)
def test_streams_that_are_closed_or_full(redirection, code, err):
    program = "import engine, os; os._exit(engine.cli_main(['--help']))"
    line = f"{sys.executable} -c \"{program}\" {redirection}"
    top = os.path.dirname(os.path.abspath(engine.__file__))
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, cwd=top, timeout=20)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", err)


# --- the client's configuration file ---


@pytest.fixture
def told(monkeypatch, tmp_path):
    """told(config text, *words) -> (what the command's handler got, errors)."""

    def call(text, *words, env=True):
        (tmp_path / "config.json").write_text(text)
        monkeypatch.delenv("DOCKER_CONFIG", raising=False)
        if env:
            monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
        seen = []
        for row in {id(row): row for row in engine.COMMANDS.values()}.values():
            monkeypatch.setattr(row, "handler", lambda client, args: seen.append(args))
        monkeypatch.setattr(engine, "client_local", lambda *roots: None)
        monkeypatch.setattr(engine, "_streams_prepare", lambda: None)
        errors = []
        monkeypatch.setattr(engine, "print_error", errors.append)
        assert engine.cli_main(list(words)) == 0
        return seen[0], "\n".join(errors)

    return call


@pytest.mark.parametrize("key, words, flag", [
    ("psFormat", ("ps",), "format"), ("psFormat", ("container", "ls"), "format"),
    ("imagesFormat", ("images",), "format"), ("detachKeys", ("attach", "web"), "detach_keys"),
    ("detachKeys", ("run", "-it", "busybox"), "detach_keys"),
    ("detachKeys", ("exec", "web", "sh"), "detach_keys"),
    ("detachKeys", ("start", "-a", "web"), "detach_keys"),
])
def test_config_json_gives_defaults(told, key, words, flag):
    text = '{"%s": "mine", "auths": {}}' % key
    assert getattr(told(text, *words)[0], flag) == "mine"
    assert getattr(told("{}", *words)[0], flag) == ""


def test_a_flag_goes_before_config_json(told, tmp_path):
    assert told('{"psFormat": "mine"}', "ps", "--format", "own")[0].format == "own"
    assert told('{"psFormat": "mine"}', "ps", "-q")[0].format == ""
    assert told('{"detachKeys": "a"}', "attach", "--detach-keys", "b", "w")[0].detach_keys == "b"
    words = ("--config", str(tmp_path), "ps")
    assert told('{"psFormat": "mine"}', *words, env=False)[0].format == "mine"
    assert told('{"psFormat": "mine"}', "ps", env=False)[0].format == ""


@pytest.mark.parametrize("text", ["{", "[]", '{"psFormat": 1}', "\x00"])
def test_a_damaged_config_json_is_a_warning(told, text):
    args, errors = told(text, "ps")
    assert args.format == "" and errors.startswith("WARNING: Error loading config file: ")
    assert "config.json" in errors and len(errors.splitlines()) == 1
