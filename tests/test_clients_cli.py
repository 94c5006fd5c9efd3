"""The docker command line on this engine and on Debian's dockerd: the same output and codes."""

from __future__ import annotations

import re

import conftest
import pytest
from clients_help import dockerd, needs_docker, ours  # noqa: F401

COMMANDS = conftest.TOP / "tests" / "data" / "clients" / "commands.txt"

#: What differs from run to run: (pattern, what stands for it).
VARIES = (
    (r"sha256:[0-9a-f]{64}", "<digest>"),
    (r"\b[0-9a-f]{64}\b", "<id>"),
    (r"\b[0-9a-f]{12}\b", "<short id>"),
    (r"\d{4}-\d\d-\d\dT[0-9:.]+Z", "<time>"),
    (r"\b(Less than a second|\d+ seconds?|About a minute|\d+ minutes?|About an hour)\b", "<while>"),
    (r" {2,}", "  "),
    (r'"RunningFor":"[^"]*"', ""),
    (r'"CreatedAt":"[^"]*"', ""),
    (r'"(Size|Status)":"[^"]*"', ""),
    # of a client that is refused while it still sends
    (r'(?m)^time="<time>" level=error msg="Can\'t .*\n', ""),
    (r"(?m)^\d+ +(sleep|sh)", r"<pid> \1"),
)


#: Words of Docker 20.10, which Debian has, and what Docker 28 says instead; \\b keeps the rest.
NEWER = (
    (r"(failed to create shim task)", r"failed to create task for container: \1"),
    (r"(create failed: unable to start container process: )", r"\1error during container init: "),
    (r"\bno such image: (\S+): (No such image)", r"\2"),
    (r"\b(Error response from daemon: )no such container (\S+)", r"\1No such container: \2"),
    (r"\bContainer <id> is not running", "container <id> is not running"),
    (r"\bInvalid filter", "invalid filter"),
    (r"\bCannot kill container", "cannot kill container"),
    (r"daemon: Invalid signal", "daemon: cannot kill container: web: invalid signal"),
)
ERROR = "Error response from daemon: "
#: Lines to which Docker 28 answers with more than other words: (exit code, output, errors).
PINNED = {
    "create --name four --restart sometimes busybox": (
        1,
        "",
        ERROR + "invalid restart policy: unknown policy 'sometimes'; use one of 'no', 'always',"
        " 'on-failure', or 'unless-stopped'\n",
    ),
    "ps -a --filter exited=x": (
        1,
        "",
        ERROR + "invalid filter 'exited=x': strconv.Atoi: parsing \"x\": invalid syntax\n",
    ),
    "ps -a --filter status=x": (
        1,
        "",
        ERROR + "invalid filter 'status=x': invalid value for state (x): must be one of created,"
        " running, paused, restarting, removing, exited, dead\n",
    ),
    "exec -u nosuchuser web id": (
        1,
        "",
        ERROR + "unable to find user nosuchuser: no matching entries in passwd file\n",
    ),
    "exec web nosuchcommand": (
        127,
        "OCI runtime exec failed: exec failed: unable to start container process: exec:"
        ' "nosuchcommand": executable file not found in $PATH: unknown\r\n',
        "",
    ),
    "rm web": (
        1,
        "",
        ERROR + 'cannot remove container "web": container is paused and must be unpaused first\n',
    ),
    "rm two": (
        1,
        "",
        ERROR + 'cannot remove container "two": container is running: stop the container before'
        " removing or force remove\n",
    ),
    "import - imported:1 < this is no archive": (
        1,
        "",
        ERROR + "invalid tar archive: unexpected EOF\n",
    ),
    "load < this is no archive": (1, "", "invalid tar archive: unexpected EOF\n"),
    'import -c "NOSUCH x" - x < x': (1, "", ERROR + "NOSUCH is not a valid change command\n"),
    'commit -c "NOSUCH x" files made:3': (1, "", ERROR + "NOSUCH is not a valid change command\n"),
    "image prune -f --filter until=x": (
        1,
        "",
        ERROR + "invalid value for 'until' filter: failed to parse value as time or duration:"
        ' "x"\n',
    ),
}


def plain(text):
    for pattern, instead in VARIES:
        text = re.sub(pattern, instead, text)
    return text


def newer(text):
    for pattern, instead in NEWER:
        text = re.sub(pattern, instead, text)
    return text


def commands():
    with open(COMMANDS) as file:
        return [line.strip() for line in file if line.strip() and not line.startswith("#")]


def answer(host, line):
    """(exit code, output, errors) of a command, less what may differ."""
    done = host.line(line)
    out = done.out
    if line.startswith(("diff ", "images ")):   # in the order of a directory or a Go map
        out = "".join(sorted(out.splitlines(keepends=True)))
    return done.code, plain(out), plain(done.err)


@pytest.mark.root
@pytest.mark.slow
def test_commands_beside_dockerd(ours, dockerd):  # noqa: F811
    different = []
    for line in commands():
        code, out, err = answer(dockerd, line)
        theirs = PINNED.get(line, (code, newer(out), newer(err)))
        mine = answer(ours, line)
        if theirs != mine:
            different.append(f"docker {line}\n  dockerd {theirs}\n  engine  {mine}")
    assert not different, "\n".join(different)
