"""connections: networks and containers in the kernel, connected and disconnected while they run."""

import json
import os
import shutil
import signal
import subprocess
import threading

import pytest
from conftest import alive, launchers_of, wait_for

ROLES = ("engine:launcher", "engine:monitor", "engine:watch", "engine:relay", "engine:commands")


def nets(busybox, name):
    return json.loads(busybox("inspect", "-f", "{{json .NetworkSettings.Networks}}", name).ok().out)


def links():
    with open("/proc/net/dev") as file:
        return {line.split(":")[0].strip() for line in file.readlines()[2:]}


@pytest.mark.root
def test_two_containers_on_a_network_of_the_users(busybox):
    before = links()
    id = busybox("network", "create", "--subnet", "10.77.0.0/24", "n").ok().out.strip()
    assert links() - before == {"br-" + id[:12]}
    busybox("run", "-d", "--name", "one", "--network", "n", "--ip", "10.77.0.9", "--network-alias",
            "uno", "busybox", "sleep", "1000").ok()
    assert busybox("run", "--rm", "--network", "n", "busybox", "ping", "-c1", "-w5",
                   "10.77.0.9").code == 0
    place = nets(busybox, "one")["n"]
    assert place["IPAddress"] == "10.77.0.9" and place["Gateway"] == "10.77.0.1"
    assert place["DNSNames"][:2] == ["one", "uno"]
    inside = json.loads(busybox("network", "inspect", "n").ok().out)[0]["Containers"]
    assert [one["IPv4Address"] for one in inside.values()] == ["10.77.0.9/24"]
    refused = busybox("run", "--rm", "--network", "n", "--ip", "10.77.0.9", "busybox", "true")
    assert refused.code == 125 and "Address already in use" in refused.err
    assert "has active endpoints" in busybox("network", "rm", "n").err
    busybox("rm", "-f", "one").ok()
    busybox("network", "rm", "n").ok()
    assert links() == before


@pytest.mark.root
def test_connect_and_disconnect_while_it_runs(busybox):
    for name in ("a", "b"):
        busybox("network", "create", name).ok()
    busybox("run", "-d", "--name", "web", "--network", "a", "busybox", "sleep", "1000").ok()

    def routes():
        lines = busybox("exec", "web", "route", "-n").ok().out.splitlines()
        return [line.split()[7] for line in lines if line.startswith("0.0.0.0")]

    busybox("network", "connect", "--gw-priority", "9", "--alias", "x", "b", "web").ok()
    assert routes() == ["eth1"]
    assert sorted(nets(busybox, "web")) == ["a", "b"]
    address = nets(busybox, "web")["b"]["IPAddress"]
    assert address in busybox("exec", "web", "cat", "/etc/hosts").ok().out
    assert "already exists in network b" in busybox("network", "connect", "b", "web").err
    busybox("network", "disconnect", "b", "web").ok()
    assert routes() == ["eth0"]
    assert address not in busybox("exec", "web", "cat", "/etc/hosts").ok().out
    assert "is not connected to" in busybox("network", "disconnect", "b", "web").err
    # What it was connected to while it was stopped it has at its next start.
    busybox("stop", "-t0", "web").ok()
    busybox("network", "connect", "b", "web").ok()
    busybox("start", "web").ok()
    assert sorted(nets(busybox, "web")) == ["a", "b"]
    busybox("rm", "-f", "web").ok()
    busybox("network", "prune", "-f").ok()


@pytest.mark.root
def test_out_of_none_and_back(busybox):
    busybox("network", "create", "--subnet", "10.81.0.0/24", "n").ok()
    busybox("run", "-d", "--name", "web", "--network", "none", "busybox", "sleep", "1000").ok()
    alone = "multiple networks with one of the networks in private (none) mode"
    assert alone in busybox("network", "connect", "n", "web").err
    busybox("network", "disconnect", "none", "web").ok()
    assert nets(busybox, "web") == {}
    busybox("network", "connect", "n", "web").ok()
    busybox("restart", "-t0", "web").ok()
    assert list(nets(busybox, "web")) == ["n"]
    assert "10.81.0." in busybox("exec", "web", "ip", "a").ok().out
    assert alone in busybox("network", "connect", "none", "web").err
    busybox("network", "disconnect", "n", "web").ok()
    busybox("network", "connect", "none", "web").ok()
    busybox("rm", "-f", "web").ok()
    told = busybox("events", "--since", "0", "--until", "0s", "--filter", "type=network",
                   "--format", "{{.Action}} {{.Actor.Attributes.name}}").ok().out.split("\n")
    assert [line for line in told if "onnect" in line] == [
        "connect none", "disconnect none", "connect n", "disconnect n", "connect n",
        "disconnect n", "connect none", "disconnect none"]
    busybox("network", "rm", "n").ok()


@pytest.mark.root
def test_ipv6_mac_mtu_and_several_networks_at_once(busybox):
    busybox("network", "create", "--ipv6", "--subnet", "fd00:77::/64", "-o",
            "com.docker.network.driver.mtu=1400", "six").ok()
    busybox("network", "create", "--internal", "inner").ok()
    six = "name=six,ip6=fd00:77::9,mac-address=02:42:00:00:00:77"
    out = busybox("run", "--rm", "--network", six, "--network", "inner", "busybox", "sh", "-c",
                  "ip a; ip -6 route; ping -c1 -w5 fd00:77::1").ok().out
    for text in ("fd00:77::9/64", "02:42:00:00:00:77", "mtu 1400", "default via fd00:77::1",
                 "eth1", "1 packets received"):
        assert text in out
    out = busybox("run", "--rm", "--network", "inner", "busybox", "route", "-n").ok().out
    assert "0.0.0.0         172" not in out
    busybox("network", "prune", "-f").ok()


@pytest.mark.root
def test_a_link_that_was_deleted_by_hand(busybox):
    bridge = json.loads(busybox("network", "inspect", "bridge").ok().out)[0]["Options"][
        "com.docker.network.bridge.name"]
    busybox("run", "-d", "--name", "one", "busybox", "sleep", "1000").ok()
    address = nets(busybox, "one")["bridge"]["IPAddress"]
    for change in (["delete", bridge], ["set", bridge, "down"]):
        subprocess.run(["ip", "link", *change], check=True)
        assert busybox("run", "--rm", "busybox", "ping", "-c1", "-w5", address).code == 0
    with open("/proc/net/dev") as file:
        pair = next(line.split(":")[0].strip() for line in file if line.startswith("veth"))
    subprocess.run(["ip", "link", "delete", pair], check=True)
    assert "eth0" not in busybox("exec", "one", "ip", "a").ok().out
    busybox("network", "inspect", "bridge").ok()
    assert address in busybox("exec", "one", "ip", "a").ok().out
    assert "default" in busybox("exec", "one", "ip", "r").ok().out
    subprocess.run(["ip", "link", "delete", bridge], check=True)
    busybox("rm", "-f", "one").ok()


@pytest.mark.root
def test_links_of_the_old_kind(busybox):
    busybox("run", "-d", "--name", "db", "-e", "A=1", "--expose", "80", "busybox", "sleep",
            "1000").ok()
    out = busybox("run", "--rm", "--link", "db:store", "busybox", "sh", "-c",
                  "cat /etc/hosts; env; ping -c1 -w5 store").ok().out
    address = nets(busybox, "db")["bridge"]["IPAddress"]
    assert f"{address}\tstore " in out
    assert f"STORE_PORT=tcp://{address}:80" in out and "STORE_ENV_A=1" in out
    busybox("run", "-d", "--name", "app", "--link", "db:store", "busybox", "sleep", "1000").ok()
    assert f"STORE_PORT_80_TCP_ADDR={address}\n" in busybox("exec", "app", "env").ok().out
    busybox("run", "-d", "--name", "other", "--link", "db:a", "--link", "db:b", "busybox", "sleep",
            "1000").ok()
    busybox("rm", "--link", "other/a").ok()
    hosts = busybox("exec", "other", "cat", "/etc/hosts").ok().out
    assert f"{address}\tb " in hosts and f"{address}\ta " not in hosts
    assert hosts.splitlines()[-1].startswith(nets(busybox, "other")["bridge"]["IPAddress"])
    busybox("rm", "-f", "other").ok()
    busybox("stop", "-t0", "db").ok()
    refused = busybox("exec", "app", "env")
    assert "Cannot link to a non running container: /db AS /app/store" in refused.err
    busybox("rm", "-f", "app").ok()
    refused = busybox("run", "--rm", "--link", "db:store", "busybox", "true")
    assert "Cannot link to a non running container: /db AS /" in refused.err
    busybox("rm", "db").ok()


@pytest.mark.root
def test_a_network_that_is_full(busybox):
    busybox("network", "create", "--subnet", "10.79.0.0/29", "n").ok()
    made = [busybox("run", "-d", "--name", f"c{n}", "--network", "n", "busybox", "sleep", "1000")
            for n in range(6)]
    assert [one.code for one in made] == [0, 0, 0, 0, 0, 125]
    assert "no available IPv4 addresses on this network's address pools: n (" in made[5].err
    assert busybox("ps", "-a", "--filter", "status=created", "--format", "{{.Names}}").out == "c5\n"
    busybox("rm", "-f", "c1").ok()
    busybox("start", "c5").ok()
    assert nets(busybox, "c5")["n"]["IPAddress"] == "10.79.0.3"
    busybox("rm", "-f", *(f"c{n}" for n in (0, 2, 3, 4, 5))).ok()
    busybox("network", "rm", "n").ok()


@pytest.mark.root
def test_after_a_reboot(busybox, engine):
    id = busybox("network", "create", "--subnet", "10.80.0.0/24", "n").ok().out.strip()
    for name, more in (("one", ("--ip", "10.80.0.7", "-p", "18099:80")), ("two", ("--rm",))):
        busybox("run", "-d", "--name", name, "--network", "n", *more, "busybox", "sleep",
                "1000").ok()
    end = launchers_of(busybox.roots.run, ROLES)
    for signum in (signal.SIGSTOP, signal.SIGKILL):  # all at once: none sees another one's death
        for pid in end:
            os.kill(pid, signum)
    wait_for(lambda: not any(alive(pid) for pid in end))
    subprocess.run(["ip", "link", "delete", "br-" + id[:12]], check=True)
    shutil.rmtree(busybox.roots.run)
    store = engine.Store(busybox.roots.data, busybox.roots.run)
    with store.write() as db:
        db.execute("UPDATE containers SET boot_id = 'before'")
        db.execute("UPDATE meta SET value = 'before ' || ? WHERE key = 'run'", (store.run,))
    shown = busybox("ps", "-a", "--format", "{{.Names}} {{.Status}}").ok().out
    assert shown.startswith("one Exited (255)") and "two" not in shown
    for rows in ("ports", "leases WHERE released = 0", "endpoints WHERE id <> ''"):
        assert store.rows("SELECT * FROM " + rows) == []
    busybox("start", "one").ok()
    assert nets(busybox, "one")["n"]["IPAddress"] == "10.80.0.7"
    assert busybox("port", "one", "80").out.startswith("0.0.0.0:18099\n")
    busybox("rm", "-f", "one").ok()
    busybox("network", "rm", "n").ok()


@pytest.mark.root
def test_many_at_once_leave_nothing(busybox):
    before = links()
    busybox("network", "create", "--subnet", "10.78.0.0/26", "n").ok()
    seen, failed = [], []

    def run():
        for _ in range(5):
            made = busybox("run", "--rm", "--network", "n", "busybox", "hostname", "-i")
            (seen if made.code == 0 else failed).append(made)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and len(seen) == 20
    busybox("network", "rm", "n").ok()
    for _ in range(100):
        if links() == before:
            break
        threading.Event().wait(0.05)
    assert links() == before


@pytest.mark.root
def test_addresses_beside_the_own_one(busybox):
    busybox("network", "create", "net1").ok()
    out = busybox("run", "--rm", "--network", "name=net1,link-local-ip=169.254.7.8", "busybox",
                  "ip", "a").ok().out
    assert "inet 169.254.7.8/16" in out
    busybox("network", "rm", "net1").ok()


@pytest.mark.root
def test_what_is_told_of_networks_that_are_not_there(busybox):
    busybox("run", "-d", "--name", "one", "busybox", "sleep", "1000").ok()
    forced = busybox("network", "disconnect", "-f", "nosuch", "one")
    id = busybox("inspect", "-f", "{{.Id}}", "one").out.strip()
    assert f"container {id} is not connected to the network nosuch" in forced.err
    assert "network nosuch not found" in busybox("network", "disconnect", "nosuch", "one").err
    busybox("rm", "-f", "one").ok()


@pytest.mark.root
def test_interfaces_that_are_there_already(busybox):
    refused = busybox("network", "create", "-o", "com.docker.network.bridge.name=lo", "net1")
    assert "existing interface lo is not a bridge" in refused.err
    subprocess.run(["ip", "link", "add", "br8", "type", "bridge"], check=True)
    subprocess.run(["ip", "link", "set", "br8", "up"], check=True)
    busybox("network", "create", "-o", "com.docker.network.bridge.name=br8", "--subnet",
            "10.67.0.0/24", "net1").ok()
    assert "10.67.0.1/24" in subprocess.run(["ip", "addr", "show", "br8"], check=True,
                                            capture_output=True, text=True).stdout
    busybox("network", "rm", "net1").ok()
    subprocess.run(["ip", "link", "delete", "br8"], check=True)     # it was left where it was


@pytest.mark.root
def test_nobody_is_in_a_network_that_is_only_a_configuration(busybox):
    busybox("network", "create", "--config-only", "net1").ok()
    told = "cannot create endpoint on configuration-only network"
    assert told in busybox("run", "--rm", "--network", "net1", "busybox", "true").err
    busybox("create", "--name", "one", "busybox", "true").ok()
    assert told in busybox("network", "connect", "net1", "one").err
    busybox("rm", "one").ok()
    busybox("network", "rm", "net1").ok()
