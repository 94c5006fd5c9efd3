"""Our registry among others' clients: docker with dockerd, podman, buildah, skopeo, oras."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile

import engine
import pytest
from clients_help import DOCKERD, Host, cgroups_remove
from conftest import wait_for
from registry_help import free_port

pytestmark = pytest.mark.root
USER, PASSWORD = "me", "secret"


class Served:
    """A registry that runs: `.host`, `.root`, `.has_users`."""

    def __init__(self, cli, root, *flags):
        self.root, self.has_users = root, "--public" in flags
        self.log = open(f"{root}.log", "w+")
        self.process = cli.popen("registry", "serve", "-l", f"127.0.0.1:{free_port()}", "--root",
                                 root, *flags, stdout=self.log, stderr=self.log)
        wait_for(lambda: "registry on" in open(self.log.name).read()
                 or self.process.poll() is not None, 20, "the registry")
        self.host = open(self.log.name).read().split()[2].rstrip(",")

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 0
        assert "error" not in open(self.log.name).read()


@pytest.fixture(name="served", params=["plain", "users", "tls"])
def served_fixture(request, cli, tmp_path):
    """Open to all; with a user and "open/*" for anybody; the same over TLS."""
    flags, root = [], tmp_path / "registry"
    if request.param != "plain":
        cli("registry", "user", "add", "--root", root, "--password-stdin", USER,
            input=PASSWORD).ok()
        flags = ["--public", "open/*"]
    if request.param == "tls":
        run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
            "-nodes", "-keyout", "key.pem", "-out", "cert.pem", "-days", "9", "-subj", "/CN=x",
            "-addext", "subjectAltName=IP:127.0.0.1", cwd=tmp_path)
        flags += ["--tlscert", tmp_path / "cert.pem", "--tlskey", tmp_path / "key.pem"]
    served = Served(cli, root, *flags)
    yield served
    served.end()


@pytest.fixture(scope="module", name="dockerd")
def dockerd_fixture(session_base, busybox_tar):
    """Debian's dockerd in this network, with roots and a containerd of its own, and busybox."""
    program = next(filter(os.path.exists, DOCKERD), None)
    if not program or not shutil.which("docker"):
        pytest.skip("no dockerd: apt-get install docker.io")
    base = tempfile.mkdtemp(prefix="peer-", dir=session_base)
    with open(f"{base}/daemon.json", "w") as file:
        file.write('{"insecure-registries": ["127.0.0.0/8"]}')
    process = subprocess.Popen(
        ["unshare", "-m", "--propagation", "private", "sh", "-c",
         'mkdir -p /run/containerd && mount -t tmpfs tmpfs /run/containerd && exec "$0" "$@"',
         program, f"--host=unix://{base}/docker.sock", f"--data-root={base}/data",
         f"--exec-root={base}/run", f"--pidfile={base}/pid", f"--config-file={base}/daemon.json",
         "--cgroup-parent=/engine-peer", "--exec-opt=native.cgroupdriver=cgroupfs",
         "--bridge=none", "--iptables=false"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=open(f"{base}/log", "ab"))
    host = Host(base, process)
    if not host.wait():
        pytest.skip("dockerd does not start here")
    host.docker("load", "-i", busybox_tar).ok()
    yield host
    host.end()
    cgroups_remove("engine-peer")
    subprocess.run(["rm", "-rf", base], check=False)


def run(*words, refused=False, **more):
    done = subprocess.run([str(word) for word in words], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, timeout=120, **more)
    assert (done.returncode != 0) == refused, done.stdout
    return done.stdout


def needs(*programs):
    for program in programs:
        if not shutil.which(program):
            pytest.skip(f"no {program}")


@pytest.fixture(name="tools")
def tools_fixture(served, tmp_path):
    """tools(program, words) runs one of containers/image's programs, as the user."""
    needs("skopeo", "podman", "buildah")
    short = tempfile.mkdtemp(prefix="pod-", dir="/tmp")     # podman wants a run root of 50 letters
    storage = ["--root", f"{short}/root", "--runroot", f"{short}/run", "--storage-driver", "vfs"]
    env = {**os.environ, "REGISTRY_AUTH_FILE": str(tmp_path / "auth.json"),
           "HOME": str(tmp_path)}
    (tmp_path / "auth.json").write_text("{}")

    def tools(program, *words, **more):
        return run(program, *([] if program == "skopeo" else storage), *words, env=env, **more)
    if served.has_users:
        tools("podman", "login", "--tls-verify=false", "-u", USER, "--password-stdin", served.host,
              input=PASSWORD)
    yield tools
    shutil.rmtree(short)


def manifest_of(served, name, ref):
    """(document, digest) as the registry keeps it."""
    data, _, digest = engine.RegistryStore(str(served.root)).manifest(name, ref)
    return json.loads(data), digest


def test_docker(served, dockerd):
    host, docker = served.host, dockerd.docker
    for name in ("open/box:1", "shut/box:1", "shut/box:2"):
        docker("tag", "busybox", f"{host}/{name}").ok()
    if served.has_users:
        assert docker("push", f"{host}/open/box:1").code == 1
        assert docker("login", "-u", USER, "--password-stdin", host, input=b"wrong").code == 1
        docker("login", "-u", USER, "--password-stdin", host, input=PASSWORD.encode()).ok()
    docker("push", f"{host}/open/box:1").ok()
    docker("push", "-a", f"{host}/shut/box").ok()
    for name in ("open/box:1", "shut/box:1", "shut/box:2"):
        docker("rmi", f"{host}/{name}").ok()
    docker("pull", "-a", f"{host}/shut/box").ok()
    assert docker("run", "--rm", "--network", "none", f"{host}/shut/box:2", "echo", "hi"
                  ).out == "hi\n"
    docker("logout", host).ok()
    docker("pull", f"{host}/open/box:1").ok()       # anybody, in a registry that has users
    denied = docker("pull", f"{host}/shut/box:1")
    assert denied.code == (1 if served.has_users else 0), denied
    assert docker("pull", f"{host}/shut/none").code == 1


def test_a_digest_all_the_way_round(served, dockerd, busybox, tools):
    """Ours, registry, docker, registry, ours, registry, podman: the image is the same, and so is
    the manifest from the moment on that docker has written it in its own form."""
    env, docker = {"DOCKER_CONFIG": str(dockerd.config)}, dockerd.docker
    if served.has_users:
        docker("login", "-u", USER, "--password-stdin", served.host, input=PASSWORD.encode()).ok()
    wanted = busybox("image", "inspect", "busybox").json()[0]["Id"]
    names = [f"{served.host}/round/{name}:1" for name in "abcd"]
    busybox("tag", "busybox", names[0]).ok()
    busybox("push", names[0], env=env).ok()
    for at, side in enumerate((docker, busybox, docker)):
        more = {"env": env} if side is busybox else {}
        side("rmi", "-f", "busybox", *names)
        side("pull", names[at], **more).ok()
        assert side("image", "inspect", names[at]).json()[0]["Id"] == wanted
        side("tag", names[at], names[at + 1]).ok()
        side("push", names[at + 1], **more).ok()
    docker("rmi", "-f", *names)
    docker("logout", served.host)
    assert len({manifest_of(served, f"round/{name}", "1")[1] for name in "bcd"}) == 1
    tools("podman", "pull", "-q", "--tls-verify=false", names[3])
    assert wanted.endswith(tools("podman", "images", "-q", "--no-trunc").strip()[7:])


def test_buildah_and_indexes(served, tools, cli, tmp_path, busybox_rootfs):
    host, loose = served.host, "--tls-verify=false"
    tools("buildah", "from", "--name", "work", "scratch")
    for number in range(3):             # several layers: each commit is one more
        tools("buildah", "add", "work", busybox_rootfs if not number else __file__, "/")
        tools("buildah", "config", "--env", f"STEP={number}", "work")
        tools("buildah", "commit", "-q", "--rm", "work", f"step{number}")
        tools("buildah", "from", "--name", "work", f"step{number}")
    for step, form, tag in (("step2", "oci", "amd64"), ("step1", "oci", "arm64"),
                            ("step2", "v2s2", "v2s2")):
        tools("buildah", "push", "-q", loose, "--format", form, step,
              f"docker://{host}/built/app:{tag}")
    assert manifest_of(served, "built/app", "amd64")[0]["config"]["mediaType"] == (
        engine.MEDIA_CONFIG)
    assert len(manifest_of(served, "built/app", "v2s2")[0]["layers"]) == 3
    tools("buildah", "manifest", "create", "both")
    for arch in ("amd64", "arm64"):
        tools("buildah", "manifest", "add", loose, "--os", "linux", "--arch", arch, "both",
              f"docker://{host}/built/app:{arch}")
    tools("buildah", "manifest", "push", "-q", "--all", loose, "both",
          f"docker://{host}/built/index:1")
    tools("skopeo", "copy", "-q", "--all", "--src-tls-verify=false", "--dest-tls-verify=false",
          f"docker://{host}/built/index:1", f"docker://{host}/copied/index:2")
    index, digest = manifest_of(served, "copied/index", "2")
    assert [each["platform"]["architecture"] for each in index["manifests"]] == ["amd64", "arm64"]
    assert digest == manifest_of(served, "built/index", "1")[1]
    tools("podman", "pull", "-q", loose, "--arch", "arm64", f"{host}/copied/index:2")
    env = {"DOCKER_CONFIG": str(tmp_path)}
    if served.has_users:
        cli("login", "-u", USER, "--password-stdin", host, input=PASSWORD, env=env).ok()
    cli("pull", "--platform", "linux/arm64", f"{host}/copied/index:2", env=env).ok()
    tools("buildah", "rm", "-a")


def test_skopeo(served, tools, cli, tmp_path, busybox_tar):
    host, there = served.host, ["--src-tls-verify=false", "--dest-tls-verify=false"]
    tools("skopeo", "copy", "-q", "--dest-compress-format", "zstd", f"docker-archive:{busybox_tar}",
          f"oci:{tmp_path}/zstd:1")
    tools("skopeo", "copy", "-q", "--format", "v2s2", *there, f"docker-archive:{busybox_tar}",
          f"docker://{host}/sk/box:gzip")
    tools("skopeo", "copy", "-q", "--preserve-digests", *there, f"oci:{tmp_path}/zstd:1",
          f"docker://{host}/sk/box:zstd")
    layers = manifest_of(served, "sk/box", "zstd")[0]["layers"]
    assert layers[0]["mediaType"] == engine.MEDIA_LAYER + "+zstd"
    tools("skopeo", "sync", "--src-tls-verify=false", "--src", "docker", "--dest", "dir",
          f"{host}/sk/box", tmp_path / "synced")
    tools("skopeo", "sync", "--dest-tls-verify=false", "--src", "dir", "--dest", "docker",
          tmp_path / "synced", f"{host}/again")
    listed = json.loads(tools("skopeo", "list-tags", "--tls-verify=false",
                              f"docker://{host}/again/box"))
    assert listed["Tags"] == ["gzip", "zstd"]
    seen = json.loads(tools("skopeo", "inspect", "--tls-verify=false",
                            f"docker://{host}/again/box:zstd"))
    assert seen["Digest"] == manifest_of(served, "sk/box", "zstd")[1]
    tools("skopeo", "delete", "--tls-verify=false", f"docker://{host}/again/box:gzip")
    assert cli("registry", "ls", "--root", served.root, "again/box").out.startswith("zstd\t")
    env = {"DOCKER_CONFIG": str(tmp_path)}
    if served.has_users:
        cli("login", "-u", USER, "--password-stdin", host, input=PASSWORD, env=env).ok()
    cli("pull", f"{host}/again/box:zstd", env=env).ok()
    assert cli("run", "--rm", "--network", "none", f"{host}/again/box:zstd", "echo", "hi"
               ).out == "hi\n"


def test_oras(served, cli, tmp_path):
    """Artifacts, and what refers to them."""
    needs("oras")
    flag = "--insecure" if "TLS" in open(served.log.name).read() else "--plain-http"
    name, flags = f"{served.host}/art/thing", [flag, "--registry-config", tmp_path / "oras.json"]
    (tmp_path / "oras.json").write_text("{}")
    for file in ("thing.txt", "sbom.json"):
        (tmp_path / file).write_text(file)
    if served.has_users:
        run("oras", "login", *flags, "-u", USER, "--password-stdin", served.host, input=PASSWORD)
    run("oras", "push", *flags, "--artifact-type", "application/x.thing", f"{name}:1", "thing.txt",
        cwd=tmp_path)
    for kind in ("sbom", "signature"):
        run("oras", "attach", *flags, "--artifact-type", f"application/x.{kind}", f"{name}:1",
            "sbom.json", cwd=tmp_path)
    assert "application/x.sbom" in run("oras", "discover", *flags, f"{name}:1")
    assert "signature" not in run("oras", "discover", *flags, "--artifact-type",
                                  "application/x.sbom", f"{name}:1")
    run("oras", "cp", "-r", *(["--from" + flag[1:], "--to" + flag[1:]]), "--from-registry-config",
        tmp_path / "oras.json", "--to-registry-config", tmp_path / "oras.json", f"{name}:1",
        f"{served.host}/art/copy:1")
    run("oras", "pull", *flags, "-o", tmp_path / "out", f"{served.host}/art/copy:1")
    assert (tmp_path / "out" / "thing.txt").read_text() == "thing.txt"
    assert "application/x.signature" in run("oras", "discover", *flags,
                                            f"{served.host}/art/copy:1")
    assert run("oras", "repo", "tags", *flags, f"{served.host}/art/copy") == "1\n"
    run("oras", "manifest", "delete", "-f", *flags, f"{served.host}/art/copy:1")
