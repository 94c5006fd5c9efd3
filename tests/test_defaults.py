"""defaults: what a container gets that asked for nothing."""

from __future__ import annotations

import engine


def made(**more):
    return {**engine.CONFIGURATION, **{key.replace("_", "-"): more[key] for key in more}}


def host(**fields):
    _, filled, _ = engine.create_check({"Image": "x", "HostConfig": fields}, "1.51")
    return filled


def test_at_create():
    decided = made(log_driver="local", log_opts={"max-size": "1m", "max-file": "9"},
                   default_shm_size=5, default_ipc_mode="shareable",
                   default_cgroupns_mode="host")  # fmt: skip
    given = host(LogConfig={"Type": "", "Config": {"max-file": "2"}})
    engine.host_defaults(given, decided)
    assert given["LogConfig"] == {"Type": "local", "Config": {"max-size": "1m", "max-file": "2"}}
    assert (given["ShmSize"], given["IpcMode"], given["CgroupnsMode"]) == (5, "shareable", "host")
    own = host(LogConfig={"Type": "none"}, ShmSize=7, IpcMode="none", CgroupnsMode="private")
    engine.host_defaults(own, decided)
    assert own["LogConfig"]["Type"] == "none"
    assert not own["LogConfig"]["Config"]
    assert (own["ShmSize"], own["IpcMode"], own["CgroupnsMode"]) == (7, "none", "private")


def test_when_a_process_begins():
    nofile = {"Name": "nofile", "Soft": 1, "Hard": 2}
    core = {"Name": "core", "Soft": 0, "Hard": 0}
    decided = made(default_ulimits=[core, nofile], init=True, dns=["1.1.1.1"],
                   no_new_privileges=True, seccomp_profile="/p", seccomp="{}")  # fmt: skip
    given = host()
    engine.host_complete(given, decided)
    assert given["Ulimits"] == [core, nofile]
    assert (given["Init"], given["Dns"], given["DnsSearch"]) == (True, ["1.1.1.1"], [])
    assert given["SecurityOpt"] == ["no-new-privileges", "seccomp={}"]
    mine = {"Name": "nofile", "Soft": 5, "Hard": 5}
    own = host(Ulimits=[mine], Init=False, Dns=["2.2.2.2"],
               SecurityOpt=["no-new-privileges:false", "seccomp=unconfined"])  # fmt: skip
    engine.host_complete(own, decided)
    assert own["Ulimits"] == [mine, core]
    assert (own["Init"], own["Dns"]) == (False, ["2.2.2.2"])
    assert own["SecurityOpt"] == ["no-new-privileges:false", "seccomp=unconfined"]


def test_without_a_daemon_nothing_changes():
    given = host()
    before = engine.json_text(given)
    engine.host_complete(given, engine.CONFIGURATION)
    assert engine.json_text(given) == before
