"""pull, push, login and logout through the built file, against a registry of the test's own."""

from __future__ import annotations

import base64
import json
import subprocess

import engine
import pytest
from registry_help import basic, registry_running

pytestmark = pytest.mark.root


@pytest.fixture(name="registry")
def registry_fixture():
    with registry_running() as registry:
        yield registry


@pytest.fixture(name="pushed")
def pushed_fixture(busybox, registry):
    """The Cli; the image busybox is in the registry, and not here."""
    name = f"{registry.host}/team/busybox:1"
    assert busybox("tag", "busybox", name).code == 0
    assert busybox("push", name).code == 0
    assert busybox("rmi", "-f", name, "busybox").code == 0
    return busybox


def test_run_pulls_what_is_not_here(pushed, registry):
    name = f"{registry.host}/team/busybox:1"
    done = pushed("run", "--rm", "--network", "none", name, "echo", "hello")
    assert (done.code, done.out) == (0, "hello\n")
    assert done.err.startswith(f"Unable to find image '{name}' locally\n1: Pulling from team/")
    assert "Status: Downloaded newer image for" in done.err
    again = pushed("run", "--rm", "--network", "none", name, "echo", "hello")
    assert (again.out, again.err) == ("hello\n", "")
    always = pushed("run", "--rm", "--network", "none", "--pull", "always", name, "true")
    assert "Status: Image is up to date for" in always.err


def test_never_and_nowhere(cli, registry):
    name = f"{registry.host}/none:1"
    done = cli("run", "--rm", "--pull", "never", name)
    assert done.code == 125
    assert done.err.startswith(f"docker: Error response from daemon: No such image: {name}\n")
    done = cli("create", name)
    assert done.code == 1
    assert f"manifest for {name} not found: manifest unknown: manifest unknown" in done.err


def test_pull_prints_what_docker_prints(pushed, registry):
    done = pushed("pull", f"{registry.host}/team/busybox:1")
    lines = done.out.splitlines()
    assert done.code == 0 and lines[0] == "1: Pulling from team/busybox"
    assert lines[-1] == f"{registry.host}/team/busybox:1"
    assert lines[-2].startswith("Status: Downloaded newer image")
    assert not any("Downloading" in line for line in lines)
    done = pushed("pull", "-q", f"{registry.host}/team/busybox:1")
    assert done.out == f"{registry.host}/team/busybox:1\n"
    done = pushed("pull", f"{registry.host}/team/busybox")
    assert done.out == "Using default tag: latest\n" and done.code == 1
    assert "not found: manifest unknown" in done.err
    done = pushed("pull", "-a", f"{registry.host}/team/busybox:1")
    assert (done.code, done.err) == (1, "tag can't be used with --all-tags/-a\n")


def test_manifest_inspect_prints_what_docker_prints(cli, registry):
    """The shapes are those of docker 28.5, seen side by side with it."""
    registry.add("m", "one", [b"1"])
    image = json.loads(registry.manifests["m", "one"][0])
    data = json.dumps(image, indent=3).encode()
    registry.manifest("m", "one", data)
    entry = {"mediaType": engine.MEDIA_MANIFEST, "digest": engine.digest_of(data),
             "size": len(data), "annotations": {"x": "y"},
             "platform": {"os": "linux", "architecture": "arm", "variant": "v7"}}
    index = {"schemaVersion": 2, "manifests": [entry]}
    registry.manifest("m", "all", json.dumps(index).encode(), engine.INDEX_TYPES[0])
    name, shown = f"{registry.host}/m", dict(entry)
    del shown["annotations"]
    assert cli("manifest", "inspect", f"{name}:one").out == engine.json_pretty(image, "\t") + "\n"
    plain = cli("manifest", "inspect", f"{name}:all").out
    assert plain.startswith('{\n   "schemaVersion": 2,\n   "mediaType": "application/vnd.oci.')
    assert json.loads(plain)["manifests"] == [shown]
    one = cli("manifest", "inspect", "-v", f"{name}:one").json()
    assert list(one) == ["Ref", "Descriptor", "Raw", "OCIManifest"]
    assert one["Ref"] == f"{name}:one" and base64.b64decode(one["Raw"]) == data
    assert one["OCIManifest"] == image
    assert list(one["Descriptor"]["platform"]) == ["architecture", "os"]
    every = cli("manifest", "inspect", "-v", f"{name}:all").json()
    assert every == [{**one, "Ref": f"{name}:all@{entry['digest']}", "Descriptor": shown}]
    missing = cli("manifest", "inspect", f"{name}:none")
    assert (missing.code, missing.err) == (1, f"no such manifest: {name}:none\n")


def test_push_of_a_platform_says_what_that_means(cli):
    done = cli("push", "--platform", "linux/arm64", "127.0.0.1:1/none:1")
    assert done.code == 1 and done.out.startswith(
        "\n Info -> Using --platform pushes only the specified platform manifest of a"
        " multi-platform image index.\n         Other components, ")
    assert done.out.endswith(" remove the --platform flag.\n         \n")
    done = cli("push", "--platform", "a/b/c/d", "127.0.0.1:1/none:1")
    assert done.out == "" and done.err.startswith("Invalid platform a/b/c/d")


def test_login_push_pull_logout(busybox, registry, tmp_path):
    def docker(*words, **more):
        return busybox(*words, env={"DOCKER_CONFIG": str(tmp_path)}, **more)
    registry.faults.append(basic("user", "secret"))
    name = f"{registry.host}/busybox:1"
    docker("tag", "busybox", name)
    done = docker("push", name)
    assert done.code == 1 and "no basic auth credentials" in done.err
    done = docker("login", "-u", "user", "--password-stdin", registry.host, input=b"wrong\n")
    assert done.code == 1 and "401 Unauthorized" in done.err
    done = docker("login", "-u", "user", "--password-stdin", registry.host, input=b"secret\n")
    assert (done.code, done.out) == (0, "Login Succeeded\n")
    assert registry.host in json.loads((tmp_path / "config.json").read_text())["auths"]
    assert docker("push", "-q", name).out == name + "\n"
    assert docker("pull", "-q", name).code == 0
    assert docker("manifest", "inspect", name).json()["schemaVersion"] == 2
    done = docker("login", registry.host)
    assert done.code == 0 and done.err == (
        "Authenticating with existing credentials... [Username: user]\n\n Info -> To login with a"
        " different account, run 'docker logout' followed by 'docker login'\n\n\n")
    assert docker("logout", registry.host).out == (
        f"Removing login credentials for {registry.host}\n")
    assert docker("pull", name).code == 1


def test_a_login_needs_somebody(cli, tmp_path):
    for words, text in (
        (("-u", "u"), "Error: Cannot perform an interactive login from a non TTY device"),
        (("--password-stdin",), "the --password-stdin option requires --username to be set"),
        (("-u", ""), "username is empty"),
        (("-u", "u", "-p", "p", "--password-stdin"),
         "conflicting options: cannot specify both --password and --password-stdin"),
    ):
        done = cli("login", *words, "127.0.0.1:1", env={"DOCKER_CONFIG": str(tmp_path)})
        assert done.code == 1 and text in done.err, words


def test_debians_tools_read_what_we_push(pushed, registry, tmp_path):
    skopeo = "/usr/bin/skopeo"
    name = f"docker://{registry.host}/team/busybox:1"
    subprocess.run([skopeo, "copy", "--src-tls-verify=false", name, f"dir:{tmp_path}/out"],
                   check=True, stdout=subprocess.DEVNULL)
    found = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert found == json.loads(registry.manifests["team/busybox", "1"][0])
    registry.blobs.clear()
    subprocess.run([skopeo, "copy", "--dest-tls-verify=false", f"dir:{tmp_path}/out", name],
                   check=True, stdout=subprocess.DEVNULL)
    assert pushed("pull", f"{registry.host}/team/busybox:1").code == 0


def test_many_pulls_at_once_and_one_that_is_killed(pushed, registry):
    name = f"{registry.host}/team/busybox:1"
    started = [subprocess.Popen(pushed.argv("pull", name), env=pushed.environ(),
                                stdout=subprocess.DEVNULL) for _ in range(4)]
    started[0].kill()
    assert [process.wait() for process in started][1:] == [0, 0, 0]
    assert pushed("run", "--rm", "--network", "none", name, "true").code == 0
