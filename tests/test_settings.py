"""settings: a create body at the door, Docker's checks, the merge with the image."""

from __future__ import annotations

import engine
import pytest
from hypothesis import given
from hypothesis import strategies as st


def checked(host=None, version="1.51", **config):
    return engine.create_check({"Image": "x", "HostConfig": host or {}, **config}, version)


def verified(host=None, **config):
    one, two, _ = checked(host, **config)
    return engine.create_verify(one, two), one, two


def test_defaults_have_every_key():
    config, host, networking = checked()
    assert list(config) == list(engine.CONFIG)
    assert list(host) == list(engine.HOST_CONFIG)
    assert host["RestartPolicy"] == {"Name": "", "MaximumRetryCount": 0}
    assert config["Cmd"] is None
    assert networking == {"EndpointsConfig": {}}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"Hostname": 5}, "number into Go struct field CreateRequest.Hostname of type string"),
        ({"Tty": "yes"}, "string into Go struct field CreateRequest.Tty of type bool"),
        ({"Env": "A=1"}, "string into Go struct field CreateRequest.Env of type []string"),
        ({"Env": [1]}, "number into Go struct field CreateRequest.Env of type string"),
        ({"Labels": ["a"]}, "array into Go struct field CreateRequest.Labels of type"),
        (
            {"Image": "x", "HostConfig": {"Memory": "1g"}},
            "string into Go struct field HostConfig.HostConfig.Memory of type int64",
        ),
        (
            {"Image": "x", "HostConfig": {"Memory": 1.5}},
            "number 1.5 into Go struct field HostConfig.HostConfig.Memory of type int64",
        ),
        ({"Image": "x", "HostConfig": []}, "array into Go struct field CreateRequest.HostConfig"),
        ({"Image": "x", "HostConfig": {"RestartPolicy": "no"}}, "RestartPolicy of type object"),
        ({"Image": "x", "HostConfig": {"Ulimits": [{"Name": 1}]}}, "Ulimits.Name of type string"),
        ([], "array into Go value of type container.CreateRequest"),
        (
            {"Image": "x", "HostConfig": {"Memory": 1 << 63}},
            "number 9223372036854775808 into Go struct field HostConfig.HostConfig.Memory of type",
        ),
        ({"Image": "x", "HostConfig": {"ConsoleSize": [1, -1]}}, "number -1 into Go struct field"),
        ({"Image": "x", "HostConfig": {"ConsoleSize": [True, 1]}}, "cannot unmarshal bool into"),
        ({"Image": "x", "HostConfig": {"ConsoleSize": [1.5, 1]}}, "ConsoleSize of type uint"),
        ({"Image": "x", "HostConfig": {"ConsoleSize": {}}}, "ConsoleSize of type [2]uint"),
    ],
)
def test_wrong_types(body, text):
    with pytest.raises(engine.InvalidParameter) as caught:
        engine.create_check(body)
    assert str(caught.value).startswith("invalid JSON: json: cannot unmarshal ")
    assert text in str(caught.value)


def test_arrays_as_go_reads_them():
    """Nothing in a list of texts is an empty one; an array of two is filled up, and cut."""
    config, host, _ = checked({"ConsoleSize": [None, 7, "more"]}, Cmd=["a", None])
    assert (config["Cmd"], host["ConsoleSize"]) == (["a", ""], [0, 7])
    assert checked({"ConsoleSize": [5]})[1]["ConsoleSize"] == [5, 0]


def test_empty_config():
    with pytest.raises(engine.InvalidParameter, match="config cannot be empty in order"):
        engine.create_check({"HostConfig": {}})


def test_names_match_in_any_case_and_null_is_nothing():
    config, host, _ = engine.create_check(
        {"image": "x", "TTY": True, "Env": None, "hostCONFIG": 1, "HostConfig": {"memory": 1 << 30}}
    )
    assert config["Image"] == "x" and config["Tty"] is True and config["Env"] is None
    assert host["Memory"] == 1 << 30


def test_one_string_for_a_list_of_words():
    assert checked(Entrypoint="/bin/sh")[0]["Entrypoint"] == ["/bin/sh"]


def test_ports_of_who_has_the_hosts_network():
    body = {"Image": "x", "HostConfig": {"NetworkMode": "host", "PortBindings": {"80/tcp": [{}]}}}
    config, host, _ = engine.create_check(body)
    assert engine.create_verify(config, host) == [
        "Published ports are discarded when using host network mode"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
FIELDS = st.sampled_from([*engine.CONFIG, *engine.HOST_CONFIG])


@given(st.dictionaries(FIELDS, JSON), st.dictionaries(FIELDS, JSON))
def test_anything_is_checked_or_refused(config, host):
    try:
        one, two, _ = engine.create_check({"Image": "x", **config, "HostConfig": host})
        engine.create_verify(one, two)
    except engine.EngineError as refused:
        assert refused.status in (400, 501)


@pytest.mark.parametrize(
    ("version", "host", "field", "value"),
    [
        ("1.24", {"AutoRemove": True}, "AutoRemove", False),
        ("1.39", {}, "IpcMode", "shareable"),
        ("1.41", {"ConsoleSize": [1, 2]}, "ConsoleSize", [0, 0]),
        ("1.42", {"KernelMemory": 5}, "KernelMemory", 0),
        ("1.42", {"Annotations": {"a": "b"}}, "Annotations", None),
        ("1.51", {"PidsLimit": -1}, "PidsLimit", None),
    ],
)
def test_older_clients(version, host, field, value):
    assert checked(host, version)[1][field] == value


@pytest.mark.parametrize(
    ("host", "config", "text"),
    [
        (
            {"NetworkMode": "container:"},
            {},
            "invalid network mode: invalid container format container:<name|id>",
        ),
        (
            {"NetworkMode": "container:x"},
            {"Hostname": "h"},
            "conflicting options: hostname and the network mode",
        ),
        ({"UTSMode": "host"}, {"Hostname": "h"}, "conflicting options: hostname and the UTS mode"),
        ({"Isolation": "hyperv"}, {}, "invalid isolation (hyperv): linux only supports 'default'"),
        ({"CpuShares": -1}, {}, "invalid CPU shares (-1): value must be a positive integer"),
        (
            {},
            {"WorkingDir": "x"},
            "the working directory 'x' is invalid, it needs to be an absolute path",
        ),
        ({}, {"StopSignal": "NOPE"}, "invalid signal: NOPE"),
        ({}, {"Env": ["=x"]}, "invalid environment variable: =x"),
        ({}, {"Hostname": "h" * 65}, "invalid hostname format: " + "h" * 65),
        (
            {"AutoRemove": True, "RestartPolicy": {"Name": "always"}},
            {},
            "can't create 'AutoRemove' container with restart policy",
        ),
        (
            {"RestartPolicy": {"Name": "soon"}},
            {},
            "invalid restart policy: unknown policy 'soon'; use one of 'no', 'always',"
            " 'on-failure', or 'unless-stopped'",
        ),
        (
            {"RestartPolicy": {"Name": "always", "MaximumRetryCount": 3}},
            {},
            "invalid restart policy: maximum retry count can only be used with 'on-failure'",
        ),
        ({"IpcMode": "odd"}, {}, "invalid IPC mode: odd"),
        ({"PidMode": "container:"}, {}, "invalid PID mode: container:"),
        ({"UTSMode": "odd"}, {}, "invalid UTS mode: odd"),
        ({"CgroupnsMode": "odd"}, {}, "invalid cgroup namespace mode: odd"),
        ({"ShmSize": -1}, {}, "SHM size can not be less than 0"),
        (
            {"OomScoreAdj": 1001},
            {},
            "Invalid value 1001, range for oom score adj is [-1000, 1000]",
        ),
        ({"Runtime": "kata"}, {}, "unknown or invalid runtime name: kata"),
        ({"ExtraHosts": ["nope"]}, {}, 'bad format for add-host: "nope"'),
        ({"ExtraHosts": ["x=1.2.3.4"]}, {}, 'bad format for add-host: "x=1.2.3.4"'),
        ({"ExtraHosts": ["a\n1.2.3.4 b:1.2.3.4"]}, {},
         'bad format for add-host: "a\\n1.2.3.4 b:1.2.3.4"'),
        ({"ExtraHosts": ["x:"]}, {}, 'invalid IP address in add-host: ""'),
        ({"ExtraHosts": ["x:[::1]"]}, {}, 'invalid IP address in add-host: "[::1]"'),
        ({"Tmpfs": {"run": ""}}, {}, "invalid mount path: 'run' mount path must be absolute"),
        ({"Tmpfs": {"/": ""}}, {}, "invalid specification: destination can't be '/'"),
        ({"Tmpfs": {"/x": "odd"}}, {}, 'invalid tmpfs option ["odd"]'),
        (
            {"Ulimits": [{"Name": "nofile", "Soft": 5, "Hard": 1}]},
            {},
            "ulimit soft limit must be less than or equal to hard limit: 5 > 1",
        ),
        ({"Ulimits": [{"Name": "odd"}]}, {}, "invalid ulimit type: odd"),
        (
            {"Sysctls": {"kernel.panic": "1"}},
            {},
            'sysctl "kernel.panic" is not in a separate kernel namespace',
        ),
        ({"Sysctls": {"vm/swappiness": "1"}}, {},
         'sysctl "vm.swappiness" is not in a separate kernel namespace'),
        ({"Sysctls": {"kernel.hostname": "x"}}, {},
         'sysctl "kernel.hostname" is not allowed as it conflicts with the OCI "hostname" field'),
        ({"Sysctls": {"kernel.sem": "1"}, "IpcMode": "host"}, {},
         'sysctl "kernel.sem" is not allowed in the hosts ipc namespace'),
        ({"Sysctls": {"net/core/somaxconn": "1"}, "NetworkMode": "host"}, {},
         'sysctl "net.core.somaxconn" not allowed in host network namespace'),
        ({"Sysctls": {"kernel.domainname": "x"}, "UTSMode": "host"}, {},
         'sysctl "kernel.domainname" is not in a separate kernel namespace'),
        ({"SecurityOpt": ["odd"]}, {}, 'invalid --security-opt 1: "odd"'),
        ({"SecurityOpt": ["odd=x"]}, {}, 'invalid --security-opt 2: "odd=x"'),
        ({"LogConfig": {"Type": "odd"}}, {}, "logger: no log driver named 'odd' is registered"),
        (
            {"LogConfig": {"Config": {"odd": "1"}}},
            {},
            "unknown log opt 'odd' for json-file log driver",
        ),
        (
            {"LogConfig": {"Config": {"max-size": "x"}}},
            {},
            "failed to initialize logging driver: invalid size: 'x'",
        ),
    ],
)
def test_docker_refuses(host, config, text):
    with pytest.raises(engine.InvalidParameter) as caught:
        verified(host, **config)
    assert str(caught.value) == text


def test_a_capability_that_does_not_exist():
    with pytest.raises(engine.InvalidParameter, match="CAP_NOPE"):
        verified({"CapAdd": ["NOPE"]})


def test_what_docker_fills_in():
    warnings, config, host = verified({"Memory": 1 << 30}, WorkingDir="/a/../b/")
    assert warnings == []
    assert config["WorkingDir"] == "/b"
    assert host["MemorySwap"] == 2 << 30
    assert host["ShmSize"] == 64 << 20
    assert host["IpcMode"] == host["CgroupnsMode"] == "private"
    assert host["RestartPolicy"]["Name"] == "no"
    assert host["LogConfig"] == {"Type": "json-file", "Config": {}}
    assert "/proc/kcore" in host["MaskedPaths"] and "/proc/sys" in host["ReadonlyPaths"]
    assert host["OomKillDisable"] is False


def test_no_masked_paths_when_asked():
    assert verified({"MaskedPaths": [], "ReadonlyPaths": []})[2]["MaskedPaths"] == []


@pytest.mark.parametrize("mode", ["", "default", "bridge"])
def test_the_network_that_nobody_asked_for(mode):
    assert verified({"NetworkMode": mode})[2]["NetworkMode"] == "bridge"


def merged(image, **config):
    one = checked(**config)[0]
    engine.config_merge(one, image)
    return one


@pytest.mark.parametrize(
    ("user", "image", "words"),
    [
        ({}, {"Cmd": ["a"]}, ["a"]),
        ({"Cmd": ["b"]}, {"Cmd": ["a"]}, ["b"]),
        ({}, {"Entrypoint": ["e"], "Cmd": ["a"]}, ["e", "a"]),
        ({"Cmd": ["b"]}, {"Entrypoint": ["e"], "Cmd": ["a"]}, ["e", "b"]),
        ({"Entrypoint": ["f"]}, {"Entrypoint": ["e"], "Cmd": ["a"]}, ["f"]),
        ({"Entrypoint": ["f"], "Cmd": ["b"]}, {"Entrypoint": ["e"], "Cmd": ["a"]}, ["f", "b"]),
        ({"Entrypoint": [""], "Cmd": ["b"]}, {"Entrypoint": ["e"]}, ["b"]),
        ({"Entrypoint": [], "Cmd": ["b"]}, {"Entrypoint": ["e"]}, ["b"]),
    ],
)
def test_command_and_entry_point(user, image, words):
    assert engine.command_words(merged(image, **user)) == words


def test_no_command():
    for image in ({}, None, {"Cmd": []}):
        with pytest.raises(engine.InvalidParameter, match="^no command specified$"):
            merged(image)


def test_merge_of_the_rest():
    image = {
        "Cmd": ["a"],
        "Env": ["PATH=/x", "A=1"],
        "Labels": {"l": "image", "m": "image"},
        "ExposedPorts": {"80/tcp": {}},
        "Volumes": {"/data": {}},
        "User": "u",
        "WorkingDir": "/w",
        "StopSignal": "SIGINT",
        "Healthcheck": {"Test": ["CMD", "x"], "Interval": 5000000},
    }
    got = merged(
        image,
        Env=["A=2", "B=3"],
        Labels={"m": "mine"},
        ExposedPorts={"81/tcp": {}},
        Healthcheck={"Retries": 3},
    )
    assert got["Env"] == ["A=2", "B=3", "PATH=/x"]
    assert got["Labels"] == {"l": "image", "m": "mine"}
    assert set(got["ExposedPorts"]) == {"80/tcp", "81/tcp"}
    assert (got["User"], got["WorkingDir"], got["StopSignal"]) == ("u", "/w", "SIGINT")
    assert got["Volumes"] == {"/data": {}}
    assert got["Healthcheck"]["Test"] == ["CMD", "x"]
    assert got["Healthcheck"]["Retries"] == 3 and got["Healthcheck"]["Interval"] == 5000000


def test_shown_without_what_is_empty():
    _, config, host = verified()
    shown = engine.config_show(config, engine.CONFIG)
    assert "Healthcheck" not in shown and "StopTimeout" not in shown and "Shell" not in shown
    assert shown["Env"] is None and shown["OnBuild"] is None
    config["StopTimeout"] = 0
    assert engine.config_show(config, engine.CONFIG)["StopTimeout"] == 0
    assert "Init" not in engine.config_show(host, engine.HOST_CONFIG)
    host["Init"] = False
    assert engine.config_show(host, engine.HOST_CONFIG)["Init"] is False


def test_security_options():
    parse = engine.security_parse
    assert parse(None) == {
        "no_new_privileges": False,
        "seccomp": "",
        "writable_cgroups": None,
        "apparmor": "",
    }
    assert parse(["seccomp=unconfined"])["seccomp"] == "unconfined"
    assert parse(['seccomp={"defaultAction": "SCMP_ACT_ALLOW"}'])["seccomp"] == {
        "defaultAction": "SCMP_ACT_ALLOW"
    }
    assert parse(["no-new-privileges"])["no_new_privileges"] is True
    assert parse(["no-new-privileges=false"])["no_new_privileges"] is False
    assert parse(["no-new-privileges:true", "label=disable"])["no_new_privileges"] is True
    with pytest.raises(engine.InvalidParameter, match="Decoding seccomp profile failed"):
        parse(["seccomp={"])


def test_tmpfs_options():
    options = engine.tmpfs_options
    assert options("/run", "") == ["noexec", "nosuid", "nodev"]
    assert options("/run", "exec,size=64k") == ["nosuid", "nodev", "exec", "size=64k"]
    assert options("/run", "ro,rw") == ["noexec", "nosuid", "nodev", "rw"]


@pytest.mark.parametrize(
    ("kind", "options", "limits"),
    [
        ("", {}, (10_000_000, 3, False)),
        ("json-file", {"max-size": "1k"}, (1000, 1, False)),
        ("json-file", {"max-size": "1.5m", "max-file": "4"}, (1_500_000, 4, False)),
        ("json-file", {"max-size": "2gb"}, (2_000_000_000, 1, False)),
        ("json-file", {"max-size": "9000p"}, (9 * 10**18, 1, False)),
        ("json-file", {"max-file": "2", "compress": "1"}, (10_000_000, 2, True)),
        ("json-file", {"max-size": "-1"}, (1 << 62, 1, False)),
        ("local", {}, (20 << 20, 5, True)),
        ("local", {"max-size": "3 KiB", "compress": "false"}, (3000, 5, False)),
    ],
)
def test_log_limits(kind, options, limits):
    assert engine.log_limits({"Type": kind, "Config": options}) == limits


@pytest.mark.parametrize(
    ("kind", "options", "text"),
    [
        ("none", {"anything": "goes"}, None),
        ("json-file", {"mode": "blocking"}, None),
        ("local", {"mode": "non-blocking", "max-buffer-size": "4m"}, None),
        ("json-file", {"mode": "x"}, "logger: logging mode not supported: x"),
        ("json-file", {"max-buffer-size": "1m"},
         "logger: max-buffer-size option is only supported with 'mode=non-blocking'"),
        ("json-file", {"mode": "non-blocking", "max-buffer-size": "x"},
         "error parsing option max-buffer-size: invalid size: 'x'"),
        ("local", {"tag": "x"}, "unknown log opt 'tag' for log driver local"),
        ("syslog", {}, "logger: no log driver named 'syslog' is registered"),
        ("json-file", {"max-size": "0"}, "+max-size must be a positive number"),
        ("json-file", {"max-size": "99999999999999g"}, "+max-size must be a positive number"),
        ("json-file", {"max-size": "10x"}, "+invalid suffix: 'x'"),
        ("json-file", {"max-file": "0"}, "+max-file cannot be less than 1"),
        ("json-file", {"max-file": "x"}, '+strconv.Atoi: parsing "x": invalid syntax'),
        ("json-file", {"compress": "x"}, '+strconv.ParseBool: parsing "x": invalid syntax'),
        ("json-file", {"max-size": "1m", "compress": "true"},
         "+compress cannot be true when max-file is less than 2 or max-size is not set"),
        ("local", {"max-file": "1"},
         "+compression cannot be enabled when max file count is 1"),
        ("local", {"max-size": "x"}, "+invalid value for max-size: x: invalid size: 'x'"),
        ("local", {"max-size": "0"}, "+max size should be a positive number"),
        ("local", {"compress": "x"}, "+error reading compress log option: strconv.ParseBool:"
         ' parsing "x": invalid syntax'),
    ],
)  # fmt: skip
def test_log_options(kind, options, text):
    log = {"Type": kind, "Config": options}
    if text is None:
        assert engine.log_verify(log) is None
        return
    with pytest.raises(engine.InvalidParameter) as refused:
        engine.log_verify(log)
    assert str(refused.value) == text.replace("+", "failed to initialize logging driver: ", 1)


def test_a_container_without_a_name_is_no_ipc_mode():
    with pytest.raises(engine.InvalidParameter, match="can't join IPC of container : invalid name"):
        checked({"IpcMode": "container:"})


@pytest.mark.parametrize(("kept", "text"), [
    (True, "cpu real-time runtime cannot be higher than cpu real-time period"),
    (False, "kernel does not support CPU real-time scheduler"),
])
def test_real_time(monkeypatch, kept, text):
    monkeypatch.setattr(engine, "limit_is_kept", lambda field: kept)
    host = {"CpuRealtimePeriod": 5, "CpuRealtimeRuntime": 6}
    with pytest.raises(engine.InvalidParameter) as refused:
        engine.create_check({"Image": "x", "HostConfig": host})
    assert str(refused.value) == text


def test_a_size_of_the_root_is_refused_with_a_way_out():
    with pytest.raises(engine.InvalidParameter, match=r"^--storage-opt is not .* use --read-only"):
        verified({"StorageOpt": {"size": "1G"}})
