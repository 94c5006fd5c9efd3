"""What the benchmark feeds to the engines: images, made once, the same on every machine."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import tarfile

IMAGE = "bench-busybox:latest"


def tar_add(tar, name, data=b"", mode=0o644, kind=tarfile.REGTYPE, target=""):
    info = tarfile.TarInfo(name)
    info.mode, info.type, info.linkname = mode, kind, target
    info.size, info.mtime = len(data), 1_700_000_000
    tar.addfile(info, io.BytesIO(data) if data else None)


def tar_add_busybox(tar):
    path = shutil.which("busybox") or "/bin/busybox"
    for name in ("bin", "tmp", "etc", "root", "var", "usr", "usr/bin"):
        tar_add(tar, name, mode=0o1777 if name == "tmp" else 0o755, kind=tarfile.DIRTYPE)
    with open(path, "rb") as file:
        tar_add(tar, "bin/busybox", file.read(), 0o755)
    listed = subprocess.run([path, "--list"], stdout=subprocess.PIPE, check=True, text=True)
    for applet in sorted({*listed.stdout.split()} - {"busybox"}):
        tar_add(tar, "bin/" + applet, mode=0o777, kind=tarfile.SYMTYPE, target="busybox")
    tar_add(tar, "etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
    tar_add(tar, "etc/group", b"root:x:0:\n")


def docker_archive(path, layers, tag):
    """A `docker save` archive of plain layer tars (paths)."""
    digests = []
    for layer in layers:
        with open(layer, "rb") as file:
            digest = hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
            digests.append(digest.hexdigest())
    machine = os.uname().machine
    config = json.dumps(
        {
            "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine),
            "os": "linux",
            "created": "2024-01-01T00:00:00Z",
            "config": {"Cmd": ["sh"], "Env": ["PATH=/bin:/usr/bin:/sbin"]},
            "rootfs": {"type": "layers", "diff_ids": ["sha256:" + digest for digest in digests]},
            "history": [{"created": "2024-01-01T00:00:00Z", "created_by": "bench"}] * len(layers),
        }
    ).encode()
    name = hashlib.sha256(config).hexdigest() + ".json"
    names = [digest + "/layer.tar" for digest in digests]
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        tar_add(tar, name, config)
        for layer, member in zip(layers, names):
            info = tarfile.TarInfo(member)
            info.size = os.path.getsize(layer)
            with open(layer, "rb") as file:
                tar.addfile(info, file)
        manifest = [{"Config": name, "RepoTags": [tag], "Layers": names}]
        tar_add(tar, "manifest.json", json.dumps(manifest).encode())
    return path


def text(rng, vocabulary, size):
    return b" ".join(rng.choices(vocabulary, k=size // 7))[:size]


def layer_base(path, rng, vocabulary):
    with tarfile.open(path, "w") as tar:
        tar_add_busybox(tar)


def layer_files(path, rng, vocabulary):
    """20,000 small files in 200 directories."""
    pool = text(rng, vocabulary, 1 << 20)
    with tarfile.open(path, "w") as tar:
        tar_add(tar, "data", mode=0o755, kind=tarfile.DIRTYPE)
        for directory in range(200):
            tar_add(tar, f"data/d{directory}", mode=0o755, kind=tarfile.DIRTYPE)
            for file in range(100):
                at = rng.randrange(1_000_000)
                size = rng.choice((0, 80, 300, 900, 2500, 6000))
                tar_add(tar, f"data/d{directory}/file{file}.txt", pool[at : at + size])


def layer_large(path, rng, vocabulary, files=10):
    """40 MB, half text and half noise, in ten files."""
    with tarfile.open(path, "w") as tar:
        for file in range(files):
            words = text(rng, vocabulary, 1 << 20)
            noise = rng.getrandbits(8 << 21).to_bytes(1 << 21, "little")
            tar_add(tar, f"{os.path.basename(path)}.d/f{file}", words + noise + words[::-1])


def layer_huge(path, rng, vocabulary):
    """240 MB of the same kind, in sixty files."""
    layer_large(path, rng, vocabulary, 60)


LAYERS = {
    "busybox": [layer_base],
    "files": [layer_files],
    "six": [layer_large] * 6,
    "one": [layer_huge],
}


def image(work, name):
    """(path of the archive of image bench-<name>:latest, paths of its layers)."""
    directory = os.path.join(work, name)
    archive = os.path.join(work, name + ".tar")
    layers = [os.path.join(directory, f"{n}.tar") for n in range(len(LAYERS[name]))]
    if not os.path.exists(archive):
        os.makedirs(directory, exist_ok=True)
        letters = b"abcdefghijklmnopqrstuvwxyz{}();=_"
        for layer, make in zip(layers, LAYERS[name]):
            rng = random.Random(name + os.path.basename(layer))
            vocabulary = [bytes(rng.choices(letters, k=rng.randint(2, 11))) for _ in range(6000)]
            make(layer, rng, vocabulary)
        docker_archive(archive + ".new", layers, f"bench-{name}:latest")
        os.rename(archive + ".new", archive)
    return archive, layers
