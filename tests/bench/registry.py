#!/usr/bin/env python3
"""What our registry serves, beside nginx with sendfile(2) and Debian's docker-registry.

    registry.py PYZ [ROUNDS]          needs nginx, curl; docker-registry where it is installed

One blob of 1 GiB by curl, turn about; the same eight at once; 50 parallel pulls of an image of six
layers of 4 MiB, every byte counted; memory (PSS) of the registry meanwhile; pushes of the blob; the
time from the start to the first reply. Medians, and what else the machine did (load).
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

PYTHON = "/usr/bin/python3"
BIG, LAYERS, LAYER, PULLS = 1 << 30, 6, 4 << 20, 50
MEDIA = "application/vnd.docker.distribution.manifest.v2+json"
NGINX = """
daemon off; worker_processes auto; pid {work}/nginx.pid; error_log {work}/nginx.log;
events {{ worker_connections 512; }}
http {{ access_log off; sendfile on; tcp_nopush on; client_body_temp_path {work}/body;
  server {{ listen 127.0.0.1:{port}; root {work}/files; }} }}
"""
DISTRIBUTION = """
version: 0.1
log: {{level: error}}
storage: {{filesystem: {{rootdirectory: {work}/distribution}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Served:
    """A server that runs: `.port`, `.started` (seconds until it answered)."""

    def __init__(self, name, port, command):
        self.name, self.port = name, port
        begin = time.perf_counter()
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL)
        while True:
            try:
                self.ask("GET", "/v2/")
                break
            except OSError:
                time.sleep(0.002)
        self.started = time.perf_counter() - begin

    def ask(self, method, path, body=None, **headers):
        conn = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        conn.request(method, path, body, {name.replace("_", "-"): value
                                          for name, value in headers.items()})
        reply = conn.getresponse()
        data = reply.read()
        conn.close()
        return reply, data

    def push(self, name, data, size):
        """An upload in one piece, as clients do it; seconds."""
        begin = time.perf_counter()
        reply, _ = self.ask("POST", f"/v2/{name}/blobs/uploads/")
        where = reply.headers["Location"].removeprefix(f"http://127.0.0.1:{self.port}")
        reply, _ = self.ask("PATCH", where, data, Content_Length=str(size),
                            Content_Type="application/octet-stream")
        where = reply.headers["Location"].removeprefix(f"http://127.0.0.1:{self.port}")
        sep = "&" if "?" in where else "?"
        reply, text = self.ask("PUT", f"{where}{sep}digest={self.wanted}")
        assert reply.status == 201, text
        return time.perf_counter() - begin

    def pss(self):
        """KiB of the process and those below it."""
        pids, total = {self.process.pid}, 0
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/stat") as file:
                    parent = int(file.read().rpartition(")")[2].split()[1])
                if parent in pids:
                    pids.add(int(pid))
            except OSError:
                continue
        for pid in pids:
            with open(f"/proc/{pid}/smaps_rollup") as file:
                total += next(int(line.split()[1]) for line in file if line.startswith("Pss:"))
        return total

    def end(self):
        self.process.terminate()
        self.process.wait(30)


def curl(url):
    begin = time.perf_counter()
    done = subprocess.run(["curl", "-s", "-o", "/dev/null", "-w", "%{size_download}", url],
                          stdout=subprocess.PIPE, check=True)
    assert int(done.stdout) == BIG, done.stdout
    return time.perf_counter() - begin


def together(count, function):
    """Seconds until all of them are done; what one raises is raised."""
    failed = []

    def one(at):
        try:
            function(at)
        except Exception as failure:
            failed.append(failure)
    threads = [threading.Thread(target=one, args=(at,)) for at in range(count)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return time.perf_counter() - begin


def servers(work, pyz):
    """{name: Served} of all that can be had here."""
    for name in ("files", "ours", "distribution", "body"):
        os.mkdir(f"{work}/{name}")
    commands = {"ours": lambda port: [PYTHON, pyz, "registry", "serve", "-l", f"127.0.0.1:{port}",
                                      "--root", work + "/ours"],
                "nginx": lambda port: ["nginx", "-c", work + "/nginx.conf"],
                "docker-registry": lambda port: ["docker-registry", "serve", work + "/config.yml"]}
    found = {}
    for name, command in commands.items():
        if name == "docker-registry" and not shutil.which(name):
            continue
        port = free_port()
        for path, text in (("nginx.conf", NGINX), ("config.yml", DISTRIBUTION)):
            with open(f"{work}/{path}", "w") as file:
                file.write(text.format(work=work, port=port))
        found[name] = Served(name, port, command(port))
    return found


def image_push(served):
    """The descriptors of an image's layers, once it is there."""
    layers = []
    for at in range(LAYERS):
        data = bytes([at]) * LAYER
        served.wanted = digest(data)
        served.push("app", data, LAYER)
        layers.append({"mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip",
                       "size": LAYER, "digest": digest(data)})
    served.wanted = digest(b"{}")
    served.push("app", b"{}", 2)
    manifest = json.dumps({"schemaVersion": 2, "mediaType": MEDIA, "layers": layers, "config": {
        "mediaType": "application/vnd.docker.container.image.v1+json", "size": 2,
        "digest": digest(b"{}")}}).encode()
    reply, text = served.ask("PUT", "/v2/app/manifests/1", manifest, Content_Type=MEDIA)
    assert reply.status == 201, text


def image_pull(served):
    _, data = served.ask("GET", "/v2/app/manifests/1", Accept=MEDIA)
    document = json.loads(data)
    for part in (document["config"], *document["layers"]):
        reply, data = served.ask("GET", f"/v2/app/blobs/{part['digest']}")
        assert reply.status == 200 and digest(data) == part["digest"]


def pulls(served):
    """(seconds of 50 parallel pulls, most PSS in KiB meanwhile)."""
    most, over = [0], threading.Event()

    def watch():
        while not over.is_set():
            most[0] = max(most[0], served.pss())
            over.wait(0.02)
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        return together(PULLS, lambda _: image_pull(served)), most[0]
    finally:
        over.set()
        watcher.join()


def middle(values):
    return sorted(values)[len(values) // 2]


def measure(found, work, rounds):
    """Prints a line for each figure."""
    hasher = hashlib.sha256()
    block = os.urandom(1 << 20)
    with open(work + "/big", "wb") as file:
        for _ in range(BIG >> 20):
            file.write(block)
            hasher.update(block)
    wanted = "sha256:" + hasher.hexdigest()
    os.link(work + "/big", work + "/files/big")
    urls, registries = {}, [each for each in found.values() if each.name != "nginx"]
    for served in registries:
        served.wanted = wanted
        with open(work + "/big", "rb") as file:
            print(f"push of 1 GiB      {served.name:16} {served.push('big', file, BIG):8.2f} s")
    for served in found.values():
        path = "/files/big" if served.name == "nginx" else f"/v2/big/blobs/{wanted}"
        urls[served.name] = f"http://127.0.0.1:{served.port}{path.removeprefix('/files')}"
    times = {name: [] for name in urls}
    many = {name: [] for name in urls}
    for _ in range(rounds):
        for name, url in urls.items():
            times[name].append(curl(url))
    for _ in range(max(1, rounds // 3)):
        for name, url in urls.items():
            many[name].append(together(8, lambda _, url=url: curl(url)))
    for name in urls:
        print(f"serving 1 GiB      {name:16} {BIG / middle(times[name]) / 1e6:8.0f} MB/s,"
              f" eight at once {8 * BIG / middle(many[name]) / 1e6:8.0f} MB/s")
    one, eight = (middle(each["nginx"]) / middle(each["ours"]) for each in (times, many))
    print(f"of nginx's         ours             {one:8.0%}      eight at once {eight:8.0%}")
    for served in registries:
        image_push(served)
        seconds, pss = pulls(served)
        print(f"50 parallel pulls  {served.name:16} {seconds:8.2f} s, PSS at most"
              f" {pss / 1024:.1f} MB, afterwards {served.pss() / 1024:.1f} MB")
    for served in found.values():
        print(f"first reply after  {served.name:16} {served.started * 1000:8.0f} ms")


def main():
    pyz, rounds = sys.argv[1], int((sys.argv[2:] or ["9"])[0])
    work = tempfile.mkdtemp(prefix="registry-bench-")
    os.chmod(work, 0o755)
    found = {}
    try:
        found = servers(work, pyz)
        measure(found, work, rounds)
        print("load               " + open("/proc/loadavg").read().strip())
    finally:
        for served in found.values():
            served.end()
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
