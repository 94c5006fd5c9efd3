"""context commands beside the docker CLI's: the same words, the same files, in both directions."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import subprocess
import tarfile
import zipfile

import engine
import pytest
from tls_help import authority, issued

DOCKER = shutil.which("docker")


class Side:
    """One of the two programs with a configuration of its own: call it with words."""

    def __init__(self, argv, base):
        self.argv, self.base = argv, str(base)
        os.makedirs(self.base + "/work", exist_ok=True)

    def __call__(self, *words, input=b"", **env):
        done = subprocess.run(
            [*self.argv, *words], input=input, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            cwd=self.base + "/work", timeout=60,
            env={"PATH": os.environ["PATH"], "HOME": self.base, "DOCKER_CONFIG": self.config,
                 **env},
        )
        return done.returncode, self.plain(done.stdout), self.plain(done.stderr)

    def plain(self, data):
        """The output without what differs on purpose: where it is, and how a program is called."""
        text = data.decode().replace(self.base, "BASE").replace("engine.pyz", "docker")
        return re.sub(r"/(tmp|BASE)[^ \n]*…", "CUT", text.replace("BASE", "/BASE"))

    @property
    def config(self):
        return self.base + "/config"

    def meta(self):
        return sorted(path.read_text() for path in
                      pathlib.Path(self.config).glob("contexts/meta/*/meta.json"))


@pytest.fixture
def ours(pyz, tmp_path):
    return Side([shutil.which("python3"), str(pyz)], tmp_path / "side-a")


@pytest.fixture
def docker(tmp_path):
    if not DOCKER or b"version 28." not in subprocess.check_output([DOCKER, "--version"]):
        pytest.skip("needs the docker CLI 28")
    return Side([DOCKER], tmp_path / "side-b")


def the_steps():
    """(words, environment) of a life with contexts."""
    cert, key = issued("client")
    pems = f"ca={authority().ca},cert={cert},key={key}"
    yield from (
        ("context ls", {}), ("context show", {}), ("context inspect", {}), ("context create", {}),
        ("context create a", {}), ("context create default", {}), ("context create b@d", {}),
        (["context", "create", ""], {}),
        (["context", "create", "aa", "--description", 'my "desc" <&>', "--docker",
          "host=tcp://127.0.0.1:1"], {}),
        ("context create aa", {}),
        (f"context create bb --docker host=tcp://h:2376,{pems},skip-tls-verify=true", {}),
        ("context create cc", {}), ("context create dd --from bb", {}),
        ("context create ee --from bb --docker host=unix:///x", {}),
        ("context create ff --docker from=bb", {}), ("context create gg --docker nope=1", {}),
        ("context create gg --docker host=tcp://x,skip-tls-verify=maybe", {}),
        ("context create gg --docker ca=/nonexist,host=tcp://x", {}),
        (f"context create gg --docker host=tcp://x,ca=/dev/null,cert={cert},key={key}", {}),
        ("context create hh --docker host=ssh://me@there --description=two", {}),
        ("context create ii --docker host=ssh://me:p@there", {}),
        (["context", "create", "ii", "--docker", ""], {}),
        ("context create jj --docker host", {}), ("context create kk --from nope", {}),
        ("context create ll --docker host=unix:///run/x.sock", {"DOCKER_CONTEXT": "aa"}),
        ("context create mm10 --from ll", {}), ("context create mm9 --from ll", {}),
        ("context ls", {}), ("context ls -q", {}), ("context ls --format json", {}),
        (["context", "ls", "--format", "{{.Name}}:{{.Current}}:{{.DockerEndpoint}}:{{.Error}}"],
         {}),
        (["context", "ls", "--format", "table {{.Name}}\t{{.Description}}"], {}),
        (["context", "ls", "--format", "{{.Nope}}"], {}), ("context list -q x", {}),
        ("context inspect bb aa nope", {}), ("context inspect --format json aa", {}),
        (["context", "inspect", "-f", "{{.Name}} {{.Endpoints.docker.Host}} {{json .Storage}}",
          "bb", "default"], {}),
        (["context", "inspect", "-f", "{{json .TLSMaterial}}", "bb", "aa"], {}),
        ("context use nope", {}), ("context use aa", {}), ("context show", {}),
        ("context ls", {}), ("ps", {}), ("-c default context show", {}),
        ("-c nope ps", {}), ("ps", {"DOCKER_CONTEXT": "nope"}), ("-c nope context show", {}),
        ("context ls", {"DOCKER_CONTEXT": "nope"}), ("context inspect", {"DOCKER_CONTEXT": "zz"}),
        ("context show", {"DOCKER_HOST": "tcp://9.9.9.9:1"}),
        ("context ls", {"DOCKER_HOST": "tcp://9.9.9.9:1"}),
        ("context use bb", {"DOCKER_HOST": "tcp://9.9.9.9:1"}),
        ("context inspect default", {"DOCKER_HOST": ":77/x"}),
        ("ps", {"DOCKER_HOST": "tcp://127.0.0.1:1"}),
        ("context update aa --description new", {}),
        ("context update aa --docker host=tcp://new:1", {}), ("context update nope", {}),
        ("context update default", {}), ("context inspect aa", {}),
        (f"context update ll --docker host=tcp://h:1,{pems}", {}), ("context inspect ll", {}),
        ("context update ll --docker host=tcp://h:2", {}), ("context inspect ll", {}),
        ("context update aa", {}), ("context update", {}),
        ("context export aa", {}), ("context export aa", {}), ("context export dd out.tar", {}),
        ("context export nope", {}), ("context export default def.tar", {}),
        ("context export", {}), ("context export --kubeconfig aa", {}),
        ("context import im1 out.tar", {}), ("context import im1 out.tar", {}),
        ("context inspect im1", {}), ("context import im2 def.tar", {}),
        ("context import im3 /nonexist", {}), ("context import x out.tar", {}),
        ("context import im4", {}), ("context inspect im2", {}),
        ("context rm im1 im2", {}), ("context rm nope", {}), ("context use aa", {}),
        ("context rm aa", {}), ("context rm aa -f", {}), ("context show", {}),
        ("context rm -f nope", {}), ("context rm default", {}), ("context rm", {}),
        ("context rm bb nope dd default", {}), ("context use default", {}),
        ("context ls", {}), ("context foo", {}),
    )


def test_the_same_life_on_both_sides(ours, docker):
    for words, env in the_steps():
        words = words.split() if isinstance(words, str) else words
        mine, theirs = ours(*words, **env), docker(*words, **env)
        assert mine == theirs, words
        assert ours.meta() == docker.meta(), words
    assert json.loads(open(ours.config + "/config.json").read()) == json.loads(
        open(docker.config + "/config.json").read())


def test_each_uses_what_the_other_made(ours, docker):
    cert, key = issued("client")
    spec = f"host=tcp://127.0.0.1:1,ca={authority().ca},cert={cert},key={key}"
    for maker, user in ((ours, docker), (docker, ours)):
        assert maker("context", "create", "made", "--description", "é", "--docker", spec)[0] == 0
        assert maker("context", "use", "made")[0] == 0
        mine = maker("context", "inspect")
        elsewhere = user("context", "inspect", DOCKER_CONFIG=maker.config)
        other = maker.base, user.base
        assert mine[0] == elsewhere[0] == 0
        assert mine[1] == elsewhere[1].replace(other[0], "/BASE")
        assert user("ps", DOCKER_CONFIG=maker.config) == (
            1, "", "Cannot connect to the Docker daemon at tcp://127.0.0.1:1. Is the docker daemon "
            "running?\n")
        for path in pathlib.Path(maker.config).glob("contexts/tls/*/docker/*"):
            assert path.stat().st_mode & 0o777 == 0o600
        exported = maker("context", "export", "made", "moved.tar")
        assert exported[0] == 0
        tar = maker.base + "/work/moved.tar"
        assert user("context", "import", "moved", tar)[1:] == (
            "moved\n", 'Successfully imported context "moved"\n')
        assert user("context", "rm", "moved")[0] == 0
        assert user("context", "rm", "made", "-f", DOCKER_CONFIG=maker.config)[0] == 0
        assert maker("context", "ls", "-q")[1] == "default\n"
        assert maker("context", "show")[1] == "default\n"


def test_config_json_keeps_what_it_held(ours):
    os.makedirs(ours.config)
    held = {"auths": {"r": {"auth": "eA=="}}, "psFormat": "x", "other": [1]}
    with open(ours.config + "/config.json", "w") as file:
        json.dump(held, file)
    ours("context", "create", "aa", "--docker", "host=tcp://127.0.0.1:1")
    ours("context", "use", "aa")
    with open(ours.config + "/config.json") as file:
        assert json.load(file) == {**held, "currentContext": "aa"}
    ours("context", "use", "default")
    with open(ours.config + "/config.json") as file:
        assert json.load(file) == held
    assert os.stat(ours.config + "/config.json").st_mode & 0o777 == 0o600


def archive(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            source = path.parent / "member"
            source.write_bytes(data)
            with open(source, "rb") as file:
                tar.addfile(info, file)
    return str(path)


META = b'{"Name":"x","Metadata":{"Description":"d"},"Endpoints":{"docker":{"Host":"tcp://a:1"}}}'


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ([("../x", b"")], "../x: unexpected context file"),
        ([("tls/../../x", b"")], "tls/../../x: unexpected path format"),
        ([("tls/a\\b", b"")], "tls/a\\b: unexpected '\\' in path"),
        ([("tls/only", b""), ("meta.json", META)], "archive format is invalid"),
        ([("tls/docker/ca.pem", b"")], "invalid context: no metadata found"),
        ([("meta.json", b"[]")], "a context is an object"),
        ([("meta.json", b"{")], ""),
    ],
)
def test_hostile_archives_leave_nothing(tmp_path, members, text):
    store = engine.ContextStore(str(tmp_path / "config"), dict, None)
    with open(archive(tmp_path / "a.tar", members), "rb") as file:
        data = file.read()
    with pytest.raises(engine.InvalidParameter) as caught:
        engine.context_import(store, "aa", data)
    assert str(caught.value).startswith(text)
    assert not os.path.exists(tmp_path / "config")


def test_a_zip_is_taken_too(tmp_path):
    store = engine.ContextStore(str(tmp_path), dict, None)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("meta.json", META)
        packed.writestr("tls/docker/ca.pem", b"PEM")
    engine.context_import(store, "aa", (tmp_path / "a.zip").read_bytes())
    assert store.get("aa")["Metadata"] == {"Description": "d"}
    assert store.tls_files("aa") == {"docker": ["ca.pem"]}
    with pytest.raises(engine.InvalidParameter, match="not a valid zip file"):
        engine.context_import(store, "aa", b"PK\x03\x04nothing")


def test_too_large_an_archive(ours):
    code, out, err = ours("context", "import", "aa", "-", input=bytes((10 << 20) + 1))
    assert (code, out, err) == (1, "", "read exceeds the defined limit\n")
