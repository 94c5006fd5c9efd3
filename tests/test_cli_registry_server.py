"""`registry serve` with our own client and the tools of others pushing to it and pulling."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import time

import engine
import pytest
from conftest import wait_for
from image_help import digest
from registry_help import free_port

pytestmark = pytest.mark.root


@pytest.fixture(name="serve")
def serve_fixture(cli, tmp_path):
    """serve(flags) starts a registry; its address."""
    def serve(*flags, root="registry"):
        log = open(tmp_path / f"log{len(started)}", "w+")
        process = cli.popen("registry", "serve", "-l", f"127.0.0.1:{free_port()}", "--root",
                            tmp_path / root, *flags, stdout=log, stderr=log)
        started.append(process)
        wait_for(lambda: "registry on" in open(log.name).read() or process.poll() is not None,
                 10, "the registry")
        return open(log.name).read().split()[2].rstrip(",")
    started = serve.started = []
    yield serve
    for process in started:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def run(*words, **more):
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          **more)
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_skopeo_and_our_own_client(busybox, serve, tmp_path):
    host = serve()
    busybox("tag", "busybox", f"{host}/team/busybox:1").ok()
    busybox("push", f"{host}/team/busybox:1").ok()
    run("skopeo", "copy", "--src-tls-verify=false", "--dest-tls-verify=false",
        f"docker://{host}/team/busybox:1", f"docker://{host}/copy/busybox:2")
    assert '"Tags": [\n        "2"\n    ]' in run(
        "skopeo", "list-tags", "--tls-verify=false", f"docker://{host}/copy/busybox")
    before = busybox("image", "inspect", "busybox").json()[0]["Id"]
    busybox("rmi", "-f", "busybox", f"{host}/team/busybox:1").ok()
    busybox("pull", f"{host}/copy/busybox:2").ok()
    assert busybox("image", "inspect", f"{host}/copy/busybox:2").json()[0]["Id"] == before
    root = tmp_path / "registry"
    assert busybox("registry", "ls", "--root", root).lines() == ["copy/busybox", "team/busybox"]
    assert busybox("registry", "rm", "--root", root, "team/busybox").code == 0
    assert busybox("registry", "gc", "--root", root, "--grace", "0s").out.startswith("0 blobs")
    busybox("registry", "rm", "--root", root, "copy/busybox:2").ok()
    assert busybox("registry", "ls", "--root", root, "copy/busybox").out == ""


def test_users_private_and_public(busybox, serve, tmp_path):
    root, config = tmp_path / "registry", {"DOCKER_CONFIG": str(tmp_path)}
    busybox("registry", "user", "add", "--root", root, "--password-stdin", "me",
            input=b"secret\n").ok()
    assert busybox("registry", "user", "ls", "--root", root).lines() == ["me"]
    host = serve("--public", "open/*")
    for name in ("open", "shut"):
        busybox("tag", "busybox", f"{host}/{name}/busybox:1").ok()
    assert busybox("push", f"{host}/open/busybox:1").code == 1
    busybox("login", "-u", "me", "--password-stdin", host, input=b"secret\n", env=config).ok()
    for name in ("open", "shut"):
        busybox("push", f"{host}/{name}/busybox:1", env=config).ok()
    assert busybox("pull", f"{host}/open/busybox:1").code == 0
    assert busybox("pull", f"{host}/shut/busybox:1").code == 1
    busybox("registry", "user", "rm", "--root", root, "me").ok()
    assert busybox("pull", f"{host}/shut/busybox:1", env=config).code == 1
    gone = busybox("registry", "user", "rm", "--root", root, "me")
    assert (gone.code, gone.err) == (1, "No such user: me\n")


def test_with_tls(busybox, serve, tmp_path):
    run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
        "-keyout", "key.pem", "-out", "cert.pem", "-days", "9", "-subj", "/CN=x", "-addext",
        "subjectAltName=IP:127.0.0.1", cwd=tmp_path)
    host = serve("--tlscert", tmp_path / "cert.pem", "--tlskey", tmp_path / "key.pem")
    busybox("tag", "busybox", f"{host}/busybox:1").ok()
    busybox("push", f"{host}/busybox:1").ok()
    busybox("rmi", "-f", "busybox", f"{host}/busybox:1").ok()
    busybox("pull", f"{host}/busybox:1").ok()


def test_a_kill_loses_nothing(busybox, serve):
    host = serve()
    busybox("tag", "busybox", f"{host}/busybox:1").ok()
    busybox("push", f"{host}/busybox:1").ok()
    killed = serve.started.pop()
    killed.kill()
    assert killed.wait(20) == -signal.SIGKILL
    busybox("rmi", "-f", "busybox", f"{host}/busybox:1").ok()
    busybox("pull", f"{serve()}/busybox:1").ok()


def ask(host, method, path, body=None):
    conn = http.client.HTTPConnection(host, timeout=20)
    conn.request(method, path, body)
    reply = conn.getresponse()
    reply.data = reply.read()
    conn.close()
    return reply


def kill(serve):
    killed = serve.started.pop()
    killed.kill()
    assert killed.wait(20) == -signal.SIGKILL


def test_an_upload_goes_on_after_a_kill(serve, tmp_path):
    host, data = serve(), os.urandom(8 << 20)
    where = ask(host, "POST", "/v2/app/blobs/uploads/").headers["Location"]
    with socket.create_connection(host.split(":")) as sock:
        sock.sendall(f"PATCH {where} HTTP/1.1\r\nHost: x\r\n"
                     f"Content-Length: {len(data)}\r\n\r\n".encode() + data[:5 << 20])
        [path] = (tmp_path / "registry" / "uploads").iterdir()
        wait_for(lambda: path.stat().st_size > 4 << 20, 10, "most of it")
        kill(serve)
    host = serve()
    reply = ask(host, "GET", where)
    size = int(reply.headers["Range"].partition("-")[2]) + 1
    assert reply.status == 204 and 4 << 20 < size <= 5 << 20
    assert ask(host, "PUT", f"{where}?digest={digest(data)}", data[size:]).status == 201
    assert ask(host, "GET", f"/v2/app/blobs/{digest(data)}").data == data


def test_a_collection_that_is_killed_while_one_pushes(cli, serve, tmp_path):
    host = serve()
    for number in range(200):
        data = b"%d" % number
        name = "kept" if number % 2 else "gone"
        assert ask(host, "POST", f"/v2/{name}/blobs/uploads/?digest={digest(data)}",
                   data).status == 201
    config = json.dumps({"schemaVersion": 2, "mediaType": engine.MEDIA_MANIFEST, "config": {
        "mediaType": "x", "digest": digest(b"1"), "size": 1}, "layers": [
        {"mediaType": "x", "digest": digest(b"%d" % number), "size": 1}
        for number in range(3, 200, 2)]}).encode()
    conn = http.client.HTTPConnection(host, timeout=20)
    conn.request("PUT", "/v2/kept/manifests/1", config, {"Content-Type": engine.MEDIA_MANIFEST})
    assert conn.getresponse().status == 201
    conn.close()
    for pause in (0.15, 0.2, 0.25, 0.3):
        collector = cli.popen("registry", "gc", "--grace", "0s", "--root", tmp_path / "registry")
        time.sleep(pause)
        collector.kill()
        collector.communicate()
        for number in range(1, 200, 2):
            assert ask(host, "GET", f"/v2/kept/blobs/{digest(b'%d' % number)}").data == (
                b"%d" % number)
    cli("registry", "gc", "--grace", "0s", "--root", tmp_path / "registry").ok()
    assert len(list((tmp_path / "registry/blobs/sha256").iterdir())) == 101


@pytest.mark.parametrize(("flags", "text"), [
    (("--anonymous-pull",), "are for a registry with users"),
    (("--htpasswd", "/nonexistent"), "no such file"),
    (("--tlscert", "x"), "go together"),
    (("--proxy", "x"), "is no URL"),
    (("--listen", "127.0.0.1:99999"), "invalid"),
])
def test_what_cannot_be_served(cli, tmp_path, flags, text):
    done = cli("registry", "serve", "--root", tmp_path / "r", *flags)
    assert done.code != 0 and text in done.err
    assert not os.path.exists(tmp_path / "r")
