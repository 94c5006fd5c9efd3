"""init: ways out of a container by what its first process inherits; each is tried, and shut."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
from conftest import PYTHON, end_launchers
from escapes_help import (  # noqa: F401
    DESCRIPTORS,
    EXE,
    EXE_ANSWERS,
    FILE,
    LINK,
    LOOK,
    NUMBERS,
    TRACER,
    archive,
    den,
    image_with,
)

pytestmark = pytest.mark.root


@pytest.mark.parametrize("options", [(), TRACER, ("--init",)], ids=["plain", "tracer", "init"])
def test_the_hosts_interpreter_cannot_be_written_to(den, options):  # noqa: F811
    """CVE-2019-5736: a program that is a link to who executes it."""
    name = "-".join(["exe", *options]).replace("--", "")
    den("create", "--name", name, "--network", "none", *options, "den", "/evil").ok()
    den("cp", "-", name + ":/", input=archive(("evil", FILE, "#!/proc/self/exe\n" + EXE))).ok()
    out = den("start", "-a", name).ok().out
    assert "reached" in out and set(out.split()) <= EXE_ANSWERS, out
    assert len(out.split()) == 5


@pytest.mark.parametrize("options", [(), ("-i",), ("-t",), ("--init",), ("--init", "-t")],
                         ids=" ".join)
def test_no_descriptor_is_inherited(den, options):  # noqa: F811
    lines = den.attack(DESCRIPTORS, *options).split("\n")
    assert [line.split()[0] for line in lines if line] == ["0", "1", "2"]


@pytest.mark.parametrize("linked", [False, True], ids=["path", "link"])
def test_no_descriptor_of_the_host_is_a_working_directory(den, linked):  # noqa: F811
    """CVE-2024-21626: -w /proc/self/fd/N."""
    image = image_with(den, "dirs", *[(f"way/{n}", LINK, f"/proc/self/fd/{n}") for n in NUMBERS])
    for number in NUMBERS:
        path = f"/way/{number}" if linked else f"/proc/self/fd/{number}"
        done = den("run", "--rm", "--network", "none", "-w", path, image, "sh", "-c",
                   LOOK.format(den.secret))
        assert den.word not in done.out, (number, done)
        assert done.code in (125, 126, 127), (number, done)


def test_privileges_do_not_come_back(den):  # noqa: F811
    """A setuid program of the image, with and without no-new-privileges."""
    den("run", "--name", "set", "--network", "none", "den", "python3", "-c",
        "import os, shutil, sys; shutil.copy(os.path.realpath(sys.executable), '/setuid');"
        " os.chmod('/setuid', 0o6755)").ok()
    den("commit", "set", "suid").ok()

    def ids(*options):
        return den("run", "--rm", "--network", "none", "-u", "1000:1000", *options, "suid",
                   "/setuid", "-c", "import os; print(os.geteuid(), os.getegid())").ok().out.split()
    assert ids() == ["0", "0"]
    assert ids("--security-opt", "no-new-privileges") == ["1000", "1000"]
    assert ids("--security-opt", "no-new-privileges", "--cap-add", "SYS_PTRACE") == ["1000"] * 2


def test_no_capability_can_be_inherited(den):  # noqa: F811
    """CVE-2022-29162, CVE-2022-24769: capabilities of files would then work for every user."""
    for user in ("0", "1000"):
        out = den("run", "--rm", "--network", "none", "-u", user, "den", "cat",
                  "/proc/self/status").ok().out
        caps = dict(line.split(":\t") for line in out.splitlines() if line.startswith("Cap"))
        assert int(caps["CapInh"], 16) == int(caps["CapAmb"], 16) == 0
        assert user == "0" or int(caps["CapEff"], 16) == int(caps["CapPrm"], 16) == 0


KEYS = r"""
ADD, CTL = {"x86_64": (248, 250), "aarch64": (217, 219)}[os.uname().machine]
SESSION = ctypes.c_long(-3)
def search(ring, name):
    libc.syscall.restype = ctypes.c_long
    found = libc.syscall(CTL, 10, ring, b"user", name, 0)        # KEYCTL_SEARCH
    return "found" if found > 0 else errno.errorcode[ctypes.get_errno()]
say(search(SESSION, sys.argv[1].encode()))
if libc.syscall(ADD, b"user", sys.argv[2].encode(), b"x", 1, SESSION) < 0:
    say(errno.errorcode[ctypes.get_errno()])
"""
HOST_KEY = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
add, control = {"x86_64": (248, 250), "aarch64": (217, 219)}[os.uname().machine]
if libc.syscall(control, 1, None) < 0:                          # a session keyring of our own
    sys.exit(77)
if libc.syscall(add, b"user", sys.argv[1].encode(), b"secret", 6, ctypes.c_long(-3)) < 0:
    sys.exit(77)
os.execv(sys.argv[2], sys.argv[2:])
"""


def test_keys_of_the_host_are_out_of_reach(den):  # noqa: F811
    """keyrings(7) have no namespace: who starts an engine has keys, and so have containers."""
    name = "host-" + os.urandom(4).hex()
    run = ("run", "--rm", "--network", "none")
    program = den.prelude + KEYS
    end_launchers(den.roots.run)            # the next one is started by who has the key
    command = [PYTHON, "-c", HOST_KEY, name, *den.argv(
        *run, "--security-opt", "seccomp=unconfined", "den", "python3", "-c", program, name, "one")]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode == 77:
        pytest.skip("this kernel has no keys")
    assert done.stdout == b"ENOKEY\n"
    # What one container keeps another does not find.
    assert den(*run, "--security-opt", "seccomp=unconfined", "den", "python3", "-c", program, "one",
               "two").ok().out == "ENOKEY\n"
    assert den(*run, "den", "python3", "-c", program, "one", "two").ok().out == "EPERM\nEPERM\n"


SOCKETS = r"""
import socket
for line in open("/proc/net/unix"):
    name = line.split()[7:]
    if name and name[0][0] == "@":
        with socket.socket(socket.AF_UNIX, int(line.split()[4])) as sock:
            why = refused(sock.connect, b"\0" + name[0][1:].encode())
            say(name[0], why or "connected")
"""


def test_no_socket_of_ours_is_in_the_network(den):  # noqa: F811
    """CVE-2020-15257: abstract sockets belong to the network, which --network host shares."""
    with socket.socket(socket.AF_UNIX) as ours:
        ours.bind("\0control-" + den.word)
        ours.listen()
        out = den("run", "--rm", "--network", "host", "den", "python3", "-c",
                  den.prelude + SOCKETS).ok().out
    assert out == f"@control-{den.word} connected\n"


def evil_modules():
    """Members of an archive: every module that Python or we might import, where it is looked for.
    """
    names = getattr(sys, "stdlib_module_names", None) or [
        "_bootlocale", "abc", "base64", "codecs", "ctypes", "fcntl", "io", "json", "linecache",
        "os", "pwd", "re", "select", "socket", "stat", "struct", "subprocess", "tarfile", "token",
        "tokenize", "traceback", "warnings", "zlib"]
    text = "open('/loaded', 'a').write(__name__ + '\\n')\n"
    paths = subprocess.run([PYTHON, "-I", "-S", "-c", "import sys; print(*sys.path, sep='\\n')"],
                           stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    for directory in (*paths, "/", "/work"):
        if not directory.endswith(".zip"):
            for name in (*names, "sitecustomize", "usercustomize", "pyroute2", "pyzstd", "engine"):
                yield f"{directory.lstrip('/')}/{name}.py".lstrip("/"), FILE, text
            yield f"{directory.lstrip('/')}/encodings/__init__.py".lstrip("/"), FILE, text
            for codec in ("ascii", "idna", "latin_1", "utf_8", "utf_16", "cp437"):
                yield f"{directory.lstrip('/')}/encodings/{codec}.py".lstrip("/"), FILE, text


def test_no_module_of_the_image_is_loaded_by_us(den):  # noqa: F811
    """Whoever enters a container is a Python: it must find none of the container's modules."""
    image = image_with(den, "modules", *evil_modules())
    begin = ("run", "--rm", "--network", "none", "-w", "/work")
    den("run", "-d", "--name", "mod", *begin[2:], image, "sleep", "600").ok()
    seen = []
    for words in (
        ("exec", "mod", "true"), ("exec", "-t", "mod", "true"), ("exec", "mod", "none"),
        ("exec", "-u", "nobody-there", "mod", "true"), ("exec", "-w", "/none", "mod", "true"),
        ("exec", "-e", "A=\udcff\u1234", "mod", "true"), ("exec", "mod", "\udcff"),
        ("cp", "mod:/etc/passwd", den.roots.base + "/passwd"), ("cp", den.secret, "mod:/tmp"),
        ("cp", "-a", den.secret, "mod:/tmp/\udcff"), ("cp", "mod:/none", "-"),
        ("top", "mod"), ("diff", "mod"), ("export", "-o", den.roots.base + "/tar", "mod"),
        ("commit", "mod", "made"), ("kill", "mod"), ("cp", "mod:/etc", den.roots.base + "/etc"),
        (*begin, image, "none"), (*begin, "-u", "x", image, "true"), (*begin, image, "/etc"),
        (*begin, "-u", "user:x", image, "true"), (*begin, "--hostname", "\u00fc", image, "true"),
        (*begin, "--init", image, "true"), (*begin, "-t", image, "true"),
        (*begin, "--sysctl", "net.none=1", image, "true"), (*begin, image, "\ud83d"),
    ):
        try:
            seen.append(den(*words).code)
        except UnicodeEncodeError:
            continue
    assert {0, 1} <= set(seen)
    assert den("run", "--network", "none", "--name", "last", "made", "ls", "/loaded").code == 1
    den("start", "mod").ok()
    assert den("exec", "mod", "ls", "/loaded").code == 1
    assert not os.path.exists("/loaded")
    den("rm", "-f", "mod", "last").ok()


def test_the_attack_by_modules_can_succeed(den, tmp_path):  # noqa: F811
    """The modules do tell: a Python that looks for them runs them."""
    for name, _, text in evil_modules():
        if name == "colorsys.py" or name == "traceback.py":
            (tmp_path / name).write_text(text.replace("/loaded", str(tmp_path / "loaded")))
    subprocess.run([PYTHON, "-c", "import traceback"], cwd=tmp_path, check=True)
    assert "traceback" in (tmp_path / "loaded").read_text()
