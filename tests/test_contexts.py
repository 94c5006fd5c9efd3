"""Which engine a command talks to: flags, environment, configuration, and their contradictions."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import engine
import pytest
from tls_help import authority, issued

VARIABLES = ("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_TLS", "DOCKER_TLS_VERIFY",
             "DOCKER_CERT_PATH", "DOCKER_CONFIG", "DOCKER_CUSTOM_HEADERS")


@pytest.fixture
def find(tmp_path, monkeypatch):
    """find(*flags, config=, **environment) -> the Endpoint, None, or the text of the error."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))

    def call(*flags, config=None, **environment):
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            top = engine.flags_parse(engine.TOP_FLAGS, [*flags, "ps"], interspersed=False)
            try:
                return engine.endpoint_find(top, config or {})
            except engine.EngineError as wrong:
                return str(wrong)

    call.store = engine.ContextStore(str(tmp_path), dict, None)
    for name in ("aa", "bb"):
        call.store.put({"Name": name, "Metadata": {}, "Endpoints": {
            "docker": {"Host": f"tcp://{name}:1", "SkipTLSVerify": False}}})
    return call


def test_the_order(find):
    host = {"DOCKER_HOST": "tcp://env:1"}
    named = {"DOCKER_CONTEXT": "bb"}
    config = {"currentContext": "aa"}
    assert find() is None
    assert find(config=config).host == "tcp://aa:1"
    assert find(config=config, **named).host == "tcp://bb:1"
    assert find(config=config, **named, **host).host == "tcp://env:1"
    found = find("-H", "tcp://flag:1", config=config, **named, **host)
    assert (found.host, found.context) == ("tcp://flag:1", "default")
    found = find("-c", "bb", config=config, **host)
    assert (found.host, found.context) == ("tcp://bb:1", "bb")
    assert find("-c", "default", config=config, **named) is None
    assert find("-c", "default", **host).host == "tcp://env:1"
    assert find(config={"currentContext": "default"}) is None


def test_roots_ask_for_the_engine_in_this_process(find):
    assert find("--data-root", "/x", config={"currentContext": "aa"}, DOCKER_HOST="x:1") is None
    assert find("--run-root", "/x", DOCKER_CONTEXT="nope") is None
    lead = "conflicting options: cannot specify both "
    assert find("-H", "x:1", "--data-root", "/x") == lead + "--host and --data-root"
    assert find("-c", "aa", "--run-root", "/x") == lead + "--context and --run-root"
    assert find("-H", "x:1", "-c", "aa") == lead + "--host and --context"


def test_what_is_wrong_is_told_as_docker_does(find, tmp_path):
    lead = "Failed to initialize: unable to resolve docker endpoint: "
    missing = engine.sha256(b"nope").hexdigest()
    path = f"{tmp_path}/contexts/meta/{missing}/meta.json"
    gone = f'context "nope": context not found: open {path}: no such file or directory'
    assert find("-c", "nope") == find(DOCKER_CONTEXT="nope") == lead + gone
    assert find("-H", "a:1", "-H", "b:1") == lead + "Specify only one -H"
    assert find("-H", "foo://x") == lead + "invalid bind address format: foo://x"
    assert find("-H", "tcp://h:x") == lead + 'parse "tcp://h:x": invalid port ":x" after host'
    pem = f"open {tmp_path}/ca.pem: no such file or directory"
    assert find("--tlsverify") == find("--tls", "-H", "x:1") == lead + pem
    assert find(DOCKER_TLS_VERIFY="1") == find("--tlsverify=false") == lead + pem
    find.store.put({"Name": "none", "Metadata": {}, "Endpoints": {}})
    assert find("-c", "none") == lead + "cannot find docker endpoint in context"
    path = find.store.storage("none")["MetadataPath"] + "/meta.json"
    with open(path, "w") as file:
        file.write("[]")
    assert find("-c", "none") == lead + 'context "none": a context is an object'


def test_tls_of_flags_and_environment(find, tmp_path):
    cert, key = issued("client")
    for source, name in ((authority().ca, "ca.pem"), (cert, "cert.pem"), (key, "key.pem")):
        (tmp_path / "pems").mkdir(exist_ok=True)
        shutil.copy(source, tmp_path / "pems" / name)
    pems = str(tmp_path / "pems")
    every = {"ca": f"{pems}/ca.pem", "cert": f"{pems}/cert.pem", "key": f"{pems}/key.pem"}
    where = {"DOCKER_CERT_PATH": pems}
    assert find("-H", "x:1", **where).tls is None
    assert find("-H", "x:1", "--tls", **where).tls == {**every, "verify": False}
    assert find("-H", "x:1", "--tlsverify", **where).tls == {**every, "verify": True}
    assert find("-H", "x:1", DOCKER_TLS_VERIFY="1", **where).tls == {**every, "verify": True}
    assert find("-H", "x:1", DOCKER_TLS="1", **where).tls == {**every, "verify": False}
    assert find("--tls", **where).host == "tcp://localhost:2376"
    os.unlink(f"{pems}/key.pem")
    assert find("--tls", **where).tls["key"] == ""
    assert find("--tls", "--tlskey", "/nowhere", **where).endswith(
        "open /nowhere: no such file or directory")
    found = find("--tls", "--tlscacert", authority().ca, "--tlskey", key, **where)
    assert found.tls == {"ca": authority().ca, "cert": f"{pems}/cert.pem", "key": key,
                         "verify": False}


def test_tls_of_a_context(find):
    files = {"ca.pem": b"CA", "key.pem": b"KEY"}
    find.store.put({"Name": "tls", "Metadata": {}, "Endpoints": {
        "docker": {"Host": "tcp://x:2376", "SkipTLSVerify": True}}})
    find.store.tls_put("tls", {"docker": files})
    path = find.store.storage("tls")["TLSPath"] + "/docker/"
    assert find("-c", "tls").tls == {"ca": path + "ca.pem", "cert": "", "key": path + "key.pem",
                                     "verify": False}
    assert find("-c", "aa").tls is None
    assert os.stat(path + "key.pem").st_mode & 0o777 == 0o600
    assert os.stat(path).st_mode & 0o777 == 0o700
    find.store.remove("tls")
    assert not os.path.exists(path)
    find.store.remove("tls")            # once more: it is gone already


def test_headers(find):
    config = {"HttpHeaders": {"X-A": "1"}}
    found = find("-H", "x:1", config=config, DOCKER_CUSTOM_HEADERS="X-B=2,\"X-C=3,4\"")
    assert found.headers == {"X-A": "1", "X-B": "2", "X-C": "3,4"}


def test_names_and_their_order():
    for name in ("aa", "A1", "0_.+-x"):
        engine.context_name_check(name)
    for name in ("", "default", "a", "-aa", "a b", "a/b", "é1", "a\n"):
        with pytest.raises(engine.InvalidParameter):
            engine.context_name_check(name)
    names = ["b", "a10", "a9", "a", "a9b", "a9a10", "a9a9"]
    assert sorted(names, key=engine.natural_key) == [
        "a", "a9", "a9a9", "a9a10", "a9b", "a10", "b"]


def test_documents(find, tmp_path):
    for text in (b"[]", b"1", b'{"Metadata": 1}', b'{"Endpoints": [1]}', b"{"):
        with pytest.raises(ValueError):
            engine.context_parse(text)
    made = engine.context_parse(b'{"name":"x","metadata":{"Description":"d","more":1}}')
    assert made == {"Name": "x", "Metadata": {"Description": "d", "more": 1}, "Endpoints": {}}
    find.store.put(made)
    assert find.store.get("x") == made              # what we do not know of is kept


@pytest.mark.root
def test_config_json_is_looked_at_once_and_contexts_not_at_all(pyz, tmp_path, cli):
    """A command for the engine in this process opens config.json, and nothing below contexts/."""
    if not shutil.which("strace"):
        pytest.skip("needs strace")
    (tmp_path / "config.json").write_text(json.dumps({"psFormat": "", "auths": {}}))
    subprocess.run(
        ["strace", "-f", "-e", "trace=openat,open", "-o", str(tmp_path / "trace"),
         *[word for word in cli.argv("version")
           if "root" not in word and not word.startswith(cli.roots.base)]],
        env={**cli.environ(), "DOCKER_CONFIG": str(tmp_path), "ENGINE_DATA_ROOT": cli.roots.data,
             "ENGINE_RUN_ROOT": cli.roots.run},
        stdout=subprocess.DEVNULL, check=True,
    )
    trace = (tmp_path / "trace").read_text()
    assert trace.count("config.json") == 1 and "contexts" not in trace
    cli.used = True
