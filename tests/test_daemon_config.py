"""daemon_config: flags and daemon.json, one beside dockerd's own reading of them."""

from __future__ import annotations

import json
import pathlib
import re
import shutil
import subprocess

import engine
import pytest

MERGED = "merged configuration validation from file and command line flags failed: "
HAVE_DOCKERD = shutil.which("dockerd") is not None


@pytest.fixture
def configure(tmp_path):
    def run(*flags, file=None, raw=None):
        path = tmp_path / "daemon.json"
        if file is not None or raw is not None:
            path.write_bytes(raw if raw is not None else json.dumps(file).encode())
            flags = ("--config-file", str(path), *flags)
        args = engine.flags_parse(engine.daemon_flags(), list(flags))
        if file is None and raw is None:
            args.config_file = str(tmp_path / "missing")
        run.args = args
        made, run.warnings = engine.daemon_configure(args)
        return made

    run.path = str(tmp_path / "daemon.json")
    return run


def refused(configure, *flags, kind=engine.InvalidParameter, **more):
    with pytest.raises(kind) as caught:
        configure(*flags, **more)
    text = str(caught.value)
    text = text.replace(f"unable to configure the Docker daemon with file {configure.path}: ", "")
    return text.replace(MERGED, "")


def test_defaults(configure):
    made = configure()
    for key, value in engine.CONFIGURATION.items():
        assert made[key] == value, key
    assert configure.warnings == []


def test_flags_and_file_make_the_same(configure):
    flags = configure(
        "--default-shm-size=128m", "--default-ulimit", "nofile=10:20", "--label", "a=1",
        "--log-opt", "max-size=1m", "--init", "--feature", "x=false", "-D", "--dns", "10.0.0.1",
        "--registry-mirror", "https://mirror.example", "--max-concurrent-downloads", "7",
        "--live-restore=false", "--insecure-registry", "index.docker.io", "-H", "unix:///a.sock",
    )  # fmt: skip
    file = configure(file={
        "default-shm-size": "128m",
        "default-ulimits": {"nofile": {"Name": "nofile", "Soft": 10, "Hard": 20}},
        "labels": ["a=1"], "log-opts": {"max-size": "1m"}, "init": True,
        "features": {"x": False}, "debug": True, "dns": ["10.0.0.1"],
        "registry-mirrors": ["https://mirror.example/"], "max-concurrent-downloads": 7,
        "live-restore": False, "insecure-registries": ["docker.io"], "hosts": ["unix:///a.sock"],
    })  # fmt: skip
    different = {key for key in flags if flags[key] != file[key]}
    assert different == {"config-file"}
    assert file["default-shm-size"] == 128 << 20
    assert file["live-restore"] is False


def test_empty_values_in_the_file_are_none(configure):
    made = configure(
        "--shutdown-timeout", "3", "--log-driver", "none",
        file={"max-concurrent-uploads": 0, "group": "", "labels": [], "icc": True},
    )  # fmt: skip
    assert made["max-concurrent-uploads"] == 5
    assert made["group"] == ""
    assert (made["shutdown-timeout"], made["log-driver"]) == (3, "none")


@pytest.mark.parametrize(
    "raw", [b"", b" \n", b"\xef\xbb\xbf{}", '{"debug": true}'.encode("utf-16")]
)
def test_empty_and_marked_files(configure, raw):
    assert configure(raw=raw)["debug"] is (len(raw) > 6)


def test_tls(configure):
    assert [configure(*flags)["tls"] for flags in ((), ("--tls",), ("--tlsverify=false",))] == [
        False,
        True,
        True,
    ]
    assert configure("--tls")["tlsverify"] is True
    assert configure("--tlsverify=false")["tlsverify"] is False
    assert configure(file={"tlsverify": True})["tls"] is True
    made = configure("--tls", "--tlscert", "/x.pem")
    assert made["tlscert"] == "/x.pem"
    assert made["tlscacert"].endswith("/ca.pem")


@pytest.mark.parametrize(
    ("flags", "file", "text"),
    [
        (("--label", "no"), None, "bad attribute format: no"),
        (("--label", "a=1", "--label", "a=2"), None, "conflict labels for a=2 and a=1"),
        ((), {"labels": ["io.docker.x=1"]}, "label io.docker.x=1 is not allowed: the namespaces "
         "com.docker.*, io.docker.*, and org.dockerproject.* are reserved for internal use"),
        (("-l", "loud"), None, "invalid logging level: loud"),
        (("--log-format", "xml"), None, "invalid log format: xml"),
        (("--max-concurrent-downloads", "-1"), None, "invalid max concurrent downloads: -1"),
        ((), {"max-download-attempts": -2}, "invalid max download attempts: -2"),
        (("--registry-mirror", "mirror:5000"), None, "invalid mirror: no scheme specified for "
         "\"mirror:5000\": must use either 'https://' or 'http://'"),
        (("--registry-mirror", "ftp://m"), None, "invalid mirror: unsupported scheme \"ftp\" in "
         "\"ftp://m\": must use either 'https://' or 'http://'"),
        (("--registry-mirror", "https://u:p@m/"), None,
         'invalid mirror: username/password not allowed in URI "https://u:xxxxx@m/"'),
        (("--insecure-registry", "-x"), None,
         "invalid index name (-x). Cannot begin or end with a hyphen"),
        (("--exec-opt", "x"), None, "invalid exec-opt (x): must be formatted 'opt=value'"),
        (("--exec-opt", "x=1"), None, "invalid exec-opt (x=1): unknown option: 'x'"),
        (("--default-ipc-mode", "host"), None, 'IPC mode "host" is not supported as default '
         'value; use "shareable" or "private"'),
        (("--default-ipc-mode", "x"), None,
         'default IPC mode setting (x) is invalid; use "shareable" or "private"'),
        (("--default-cgroupns-mode", "x"), None,
         'invalid default cgroup namespace (x): use "host" or "private"'),
        (("--default-runtime", "kata"), None, "specified default runtime 'kata' does not exist"),
        (("--log-driver", "x"), None,
         "failed to set log opts: logger: no log driver named 'x' is registered"),
        (("--log-opt", "x=1"), None,
         "failed to set log opts: unknown log opt 'x' for json-file log driver"),
        (("--seccomp-profile", "/nothing"), None, "opening seccomp profile (/nothing) failed: "
         "open /nothing: no such file or directory"),
        ((), {"bogus": 1, "another": {"deep": 1}},
         "the following directives don't match any configuration option: bogus, deep"),
        (("--label", "a=1", "-H", "unix:///x"), {"labels": ["b=2", "c=3"], "hosts": ["fd://"]},
         "the following directives are specified both as a flag and in the configuration file: "
         "hosts: (from flag: [unix:///x], from file: [fd://]), "
         "labels: (from flag: [a=1], from file: [b=2 c=3])"),
        (("--default-shm-size", "1g", "--default-ulimit", "nofile=1:2", "--log-opt", "max-size=1m"),
         {"default-shm-size": "2g", "log-opts": {"max-file": "2"}, "default-ulimits": {"core": {}}},
         "the following directives are specified both as a flag and in the configuration file: "
         "default-shm-size: (from flag: 1GiB, from file: 2g), "
         "default-ulimits: (from flag: [nofile=1:2], from file: map[core:map[]]), "
         "log-opts: (from flag: map[max-size:1m], from file: map[max-file:2])"),
        ((), {"debug": "yes"}, "invalid JSON: json: cannot unmarshal string into Go struct field "
         "Config.debug of type bool"),
        ((), {"labels": ["a=1", 2]}, "invalid JSON: json: cannot unmarshal number into Go struct "
         "field Config.labels of type []string"),
        ((), {"shutdown-timeout": True}, "invalid JSON: json: cannot unmarshal bool into Go struct "
         "field Config.shutdown-timeout of type int"),
    ],
)  # fmt: skip
def test_refused_as_dockerd_does(configure, flags, file, text):
    assert refused(configure, *flags, file=file) == text


def test_the_file_is_named_when_it_may_be_the_cause(configure):
    with pytest.raises(engine.InvalidParameter) as caught:
        configure("-l", "loud", file={})
    assert str(caught.value) == (
        f"unable to configure the Docker daemon with file {configure.path}: {MERGED}"
        "invalid logging level: loud"
    )


def test_a_file_that_is_named_must_be_there(configure, tmp_path):
    args = engine.flags_parse(engine.daemon_flags(), ["--config-file", str(tmp_path / "no")])
    with pytest.raises(engine.InvalidParameter, match="no: no such file or directory"):
        engine.daemon_configure(args)
    assert refused(configure, raw=b"[1]") == "invalid JSON: not an object"
    assert refused(configure, raw=b"{").startswith("invalid JSON: ")


REFUSED = [row for row in engine.DAEMON_OPTIONS if row[4] not in ("", engine.IGNORED)]


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row[0])
def test_every_refused_option_is_refused_by_name(configure, row):
    names, kind, _, default, reason, _ = row
    flag, key = "--" + names.rpartition("--")[2], engine.option_key(row)
    text = {"bool": str(not default).lower(), "int": "7"}.get(kind, "x=y")
    assert refused(configure, f"{flag}={text}", kind=engine.Unsupported) == (
        f"{flag} is not supported by this engine: {reason}"
    )
    value = {"bool": not default, "int": 7, "list": ["x"]}.get(kind, "x")
    value = {"x": {}} if isinstance(default, dict) else value
    assert refused(configure, file={key: value}, kind=engine.Unsupported) == (
        f"{configure.path}: {key} is not supported by this engine: {reason}"
    )
    if default not in ([], {}, ""):
        made = configure(f"{flag}={str(default).lower()}")
        assert made[key] == default


def test_options_without_effect_warn_once(configure):
    configure("--containerd=/run/containerd/containerd.sock")
    assert configure.warnings == ["--containerd has no effect: this engine does without"]
    configure(file={"builder": {"gc": {"enabled": True}}, "features": {"buildkit": True}})
    assert configure.warnings == [
        f"{configure.path}: builder has no effect",
        "the feature buildkit has no effect: images cannot be built yet",
    ]


def test_what_only_this_engine_refuses(configure):
    for flags in (
        ("--exec-opt", "native.cgroupdriver=systemd"),
        ("-s", "btrfs"),
        ("--storage-opt", "overlay2.size=1G"),
        ("--feature", "containerd-snapshotter"),
    ):
        assert "not supported by this engine" in refused(configure, *flags, kind=engine.Unsupported)
    configure("--exec-opt", "native.cgroupdriver=cgroupfs", "-s", "overlay2", "--feature=cdi=false")
    assert configure("--storage-opt", "blobs=drop")["storage-opts"] == ["blobs=drop"]


def test_seccomp_profile_travels(configure, tmp_path):
    path = tmp_path / "profile.json"
    path.write_text('{"defaultAction": "SCMP_ACT_ALLOW"}')
    assert configure("--seccomp-profile", str(path))["seccomp"] == path.read_text()
    path.write_text("[")
    assert "Decoding seccomp profile failed" in refused(configure, f"--seccomp-profile={path}")


def test_reload_takes_what_docker_takes(configure):
    made = configure("--max-concurrent-uploads", "9", file={"labels": ["a=1"], "debug": True})
    with open(configure.path, "w") as file:
        json.dump({"shutdown-timeout": 4, "default-shm-size": "1m", "log-driver": "none",
                   "features": {"x": False}, "live-restore": False, "debug": False,
                   }, file)  # fmt: skip
    new = engine.reload_configure(made, configure.args)
    changed = {key: value for key, value in new.items() if made[key] != value}
    assert changed == {
        "shutdown-timeout": 4, "default-shm-size": 1 << 20, "features": {"x": False},
        "live-restore": False, "debug": False, "max-concurrent-uploads": 5,
    }  # fmt: skip
    shown = engine.reload_attributes(new)
    assert shown.pop("name")
    assert shown == {
        "debug": "false", "default-cgroupns-mode": "private", "default-ipc-mode": "private",
        "default-runtime": "runc", "default-shm-size": "1048576", "features": "map[x:false]",
        "insecure-registries": "[]", "labels": '["a=1"]', "live-restore": "false",
        "max-concurrent-downloads": "3", "max-concurrent-uploads": "5",
        "max-download-attempts": "5", "registry-mirrors": "[]", "runtimes": "",
        "shutdown-timeout": "4",
    }  # fmt: skip


@pytest.mark.parametrize("file", [{"labels": ["x"]}, {"bogus": 1}, {"max-concurrent-uploads": -1}])
def test_reload_of_a_wrong_file_changes_nothing(configure, file):
    made = configure(file={})
    before = dict(made)
    with open(configure.path, "w") as out:
        json.dump(file, out)
    with pytest.raises(engine.InvalidParameter):
        engine.reload_configure(made, configure.args)
    assert made == before


def test_every_flag_of_dockerd_has_a_row():
    if not HAVE_DOCKERD:
        pytest.skip("no dockerd")
    text = subprocess.run(["dockerd", "--help"], capture_output=True, text=True).stdout
    lines = [line.split()[:2] for line in text.splitlines() if line.startswith("  ")]
    theirs = {word for words in lines for word in words if word.startswith("--")}
    ours = {word for row in engine.DAEMON_OPTIONS for word in row[0].split()}
    assert len(theirs) > 60
    assert theirs - ours == {"--help", "--version"}


def test_the_readme_tells_of_every_flag():
    readme = (pathlib.Path(__file__).parent.parent / "README.md").read_text()
    rows = re.search(r"\| flags of `daemon` .*?\n\n", readme, re.S)[0].split("\n")[2:-2]
    told = [set(re.findall("`([a-z0-9-]+)`", row.split("|")[2].split(";")[0])) for row in rows]
    want = [set(), set(), set(), set()]
    for row in engine.DAEMON_OPTIONS:
        reason = row[4]
        place = (0 if not reason else 1 if reason == engine.IGNORED
                 else 2 if reason.endswith("yet") else 3)  # fmt: skip
        want[place].add(row[0].rpartition("--")[2])
    assert told == [want[0] | {"validate", "version"}, *want[1:]]


@pytest.mark.root
@pytest.mark.parametrize(
    ("flags", "file"),
    [
        (("--label", "a=1"), {"labels": ["b=2"]}),
        (("--label", "a=1", "-D", "-H", "unix:///x"), {"debug": True, "labels": [], "hosts": []}),
        (("--default-ulimit", "core=1:2"), {"default-ulimits": {"core": {"Soft": 1, "Hard": 2}}}),
        (("--shutdown-timeout", "3"), {"shutdown-timeout": 4000000}),
        (("--log-opt", "a=b"), {"log-opts": {"c": "d", "a": "e"}}),
        (("--default-shm-size", "100m"), {"default-shm-size": "10m"}),
        ((), {"bogus": 1}),
        ((), {"tls-things": {"inner": True}}),
        ((), {"labels": ["x"]}),
        ((), {"max-concurrent-downloads": -1}),
        ((), {"labels": ["a=1", "a=2"]}),
    ],
)  # fmt: skip
def test_beside_dockerd(configure, tmp_path, flags, file):
    if not HAVE_DOCKERD:
        pytest.skip("no dockerd")
    mine = refused(configure, *flags, file=file)
    root = str(tmp_path / "root")
    done = subprocess.run(
        ["dockerd", "--config-file", configure.path, "--data-root", root, "--exec-root", root,
         "--pidfile", root + "/pid", *flags],
        capture_output=True, text=True, timeout=20,
    )  # fmt: skip
    assert done.returncode == 1
    theirs = done.stderr.strip().splitlines()[-1]
    theirs = theirs.replace(
        f"unable to configure the Docker daemon with file {configure.path}: ", ""
    )
    # 28 has other words here than 20.10, and the same ones.
    theirs = theirs.replace("configuration validation from file failed: ", "")
    assert mine == theirs.replace(MERGED, "")


def test_mirrors_of_any_registry(configure):
    made = configure("--registry-mirror-table", "ghcr.io/a=https://m", "--registry-mirror-table",
                     "ghcr.io/a=http://n/")
    assert made["registry-mirror-table"] == {"ghcr.io/a": ["https://m/", "http://n/"]}
    table = {"registry-mirror-table": {"quay.io": ["https://m"]}}
    assert configure(file=table)["registry-mirror-table"] == {"quay.io": ["https://m/"]}
    with pytest.raises(engine.InvalidParameter, match="no scheme specified"):
        configure(file={"registry-mirror-table": {"quay.io": ["m"]}})
    with pytest.raises(engine.InvalidParameter, match="cannot unmarshal string into Go struct"):
        configure(file={"registry-mirror-table": {"quay.io": "https://m"}})
