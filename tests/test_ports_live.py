"""ports: containers that publish, from the first command to the last; the watch over the table."""

import json
import os
import shutil
import socket
import subprocess
import time

import pytest
from network_help import ask

pytestmark = [pytest.mark.root, pytest.mark.skipif(not shutil.which("nft"),
                                                   reason="nft is not installed")]
SERVE = "while :; do echo hello | nc -l -p 80; done"


def answer(host, port, wanted="hello\n", seconds=5.0):
    """What a server says, as soon as it says what is wanted."""
    late = time.monotonic() + seconds
    while True:
        said = ask(host, port, 1.0)
        if said == wanted or time.monotonic() > late:
            return said
        time.sleep(0.05)


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def watchers():
    """Processes in the role watch of this network namespace."""
    own, out = os.readlink("/proc/self/ns/net"), []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/comm") as file:
                if file.read() == "engine:watch\n" and os.readlink(f"/proc/{pid}/ns/net") == own:
                    out.append(int(pid))
        except OSError:
            pass
    return out


def test_a_published_port_from_start_to_end(busybox):
    port = free_port()
    busybox("run", "-d", "--name", "web", "-p", f"{port}:80", "--expose", "81", "busybox", "sh",
            "-c", SERVE).ok()
    assert answer("127.0.0.1", port) == answer("::1", port) == "hello\n"
    shown = busybox("inspect", "-f", "{{json .NetworkSettings.Ports}}", "web").out
    assert json.loads(shown) == {"81/tcp": None, "80/tcp": [
        {"HostIp": "0.0.0.0", "HostPort": str(port)}, {"HostIp": "::", "HostPort": str(port)}]}
    assert busybox("port", "web", "80").out == f"0.0.0.0:{port}\n[::]:{port}\n"
    assert f"81/tcp, 0.0.0.0:{port}->80/tcp, [::]:{port}->80/tcp" in busybox("ps").out
    # Others are told before they start, by us and by the host.
    second = busybox("run", "--name", "second", "-p", f"{port}:80", "busybox", "true")
    assert second.code == 125
    assert f"Bind for 0.0.0.0:{port} failed: port is already allocated" in second.err
    with pytest.raises(OSError, match="in use"):
        socket.create_server(("127.0.0.1", port))
    # After a flush of everything it is there again within a second, and with it the rest.
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    assert answer("127.0.0.1", port, seconds=1.0) == "hello\n"
    late = time.monotonic() + 2.0
    while "masquerade" not in (text := subprocess.run(
            ["nft", "list", "ruleset"], capture_output=True, text=True).stdout):
        assert time.monotonic() < late
    assert f"tcp . {port} : " in text
    # Its end gives everything back.
    busybox("rm", "-f", "web").ok()
    assert ask("127.0.0.1", port) == "ConnectionRefusedError"
    assert f"tcp . {port}" not in subprocess.run(["nft", "list", "ruleset"], capture_output=True,
                                                 text=True).stdout
    busybox("start", "-a", "second").ok()


def test_a_watch_that_was_killed_is_replaced(busybox):
    port = free_port()
    busybox("run", "-d", "--name", "web", "-p", f"127.0.0.1:{port}:80", "busybox", "sh", "-c",
            SERVE).ok()
    before = watchers()
    for pid in before:
        os.kill(pid, 9)
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    busybox("run", "--rm", "busybox", "true").ok()
    assert before
    assert set(watchers()) - set(before)
    assert answer("127.0.0.1", port) == "hello\n"
    busybox("rm", "-f", "web").ok()


def test_names_within_a_network(busybox):
    busybox("network", "create", "net1").ok()
    for name in ("one", "two"):
        busybox("run", "-d", "--name", name, "--network", "net1", "--network-alias", "both",
                "busybox", "sleep", "100").ok()
    asked = busybox("run", "--rm", "--network", "net1", "busybox", "nslookup", "both").ok().out
    assert asked.count("Name:\tboth") == 2
    assert "127.0.0.11" in asked
    busybox("rm", "-f", "two").ok()
    asked = busybox("exec", "one", "nslookup", "both").out
    assert asked.count("Name:\tboth") == 1
    assert busybox("exec", "one", "nslookup", "two").code != 0
    # A program may listen on port 53 itself.
    assert busybox("exec", "one", "timeout", "1", "nc", "-l", "-p", "53").code in (124, 143)
    busybox("rm", "-f", "one").ok()
    busybox("network", "rm", "net1").ok()


def test_a_range_is_published_in_one_element(busybox):
    busybox("run", "-d", "--name", "web", "-p", "127.0.0.1:21000-21199:21000-21199", "busybox",
            "sleep", "100").ok()
    text = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True).stdout
    assert "tcp . 127.0.0.1 . 21000-21199 : " in text
    assert len(busybox("port", "web").out.splitlines()) == 200
    busybox("rm", "-f", "web").ok()
