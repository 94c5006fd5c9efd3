"""cp, export, commit, system df by the docker command line: here as on Debian's dockerd."""

from __future__ import annotations

import io
import itertools
import os
import re
import shutil
import tarfile

import pytest
from clients_help import api, dockerd, needs_docker, ours  # noqa: F401

TREE = ("mkdir -p /w/dir/sub /w/empty; echo file >/w/file; echo f >/w/dir/f; echo g >/w/dir/sub/g; "
        "ln -s file /w/lfile; ln -s dir /w/ldir; ln -s nope /w/lbroken; ln -s /w/dir/sub /w/labs; "
        "ln -s ../../../../tmp /w/lup; chmod 751 /w/file; chown 7:8 /w/dir/f")
SOURCES = ("file", "file/", "dir", "dir/", "dir/.", "lfile", "ldir", "ldir/", "lbroken", "nope")
TARGETS = ("file", "dir", "dir/", "dir/.", "ldir", "lfile", "lbroken", "new", "new/", "no/new",
           "labs", "lup")
CASES = [*((source, []) for source in SOURCES), ("lfile", ["-L"]), ("ldir/", ["-L"])]
#: What Docker 20.10 says otherwise than 28.
NEWER = (
    (r"/\S+/data/overlay2/[0-9a-f]+/merged", ""),
    (r"Error processing tar file\(exit status 1\): ", ""),
    (r"time=\S+ level=error .*\n", ""),
    (r"(?m)/\S*/cp-files/", "/"),
)


@pytest.fixture(scope="module")
def both(ours, dockerd):  # noqa: F811
    needs_docker()
    for host in (ours, dockerd):
        host.docker("run", "-d", "--name", "cp", "--network", "none", "busybox", "sh", "-c",
                    TREE + "; exec sleep 10000").ok()
    return ours, dockerd


def local_tree(host):
    base = os.path.join(host.base, "cp-files")
    shutil.rmtree(base, ignore_errors=True)
    os.makedirs(base + "/w/dir/sub")
    os.mkdir(base + "/w/empty")
    for name in ("file", "dir/f", "dir/sub/g"):
        with open(f"{base}/w/{name}", "w") as file:
            file.write(name[-1] + "\n")
    for name, target in (("lfile", "file"), ("ldir", "dir"), ("lbroken", "nope"),
                         ("labs", base + "/w/dir/sub"), ("lup", "../w/empty")):
        os.symlink(target, f"{base}/w/{name}")
    return base


def plain(text):
    for pattern, instead in NEWER:
        text = re.sub(pattern, instead, text)
    return text


def inside(host):
    """What is in the container's directory, times left out."""
    data = host.docker("cp", "cp:/w", "-").ok().raw
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return sorted((info.name, info.type, info.mode & 0o7777, info.uid, info.gid, info.size,
                       re.sub(r"^/\S*/cp-files/", "/", info.linkname)) for info in tar)


def outside(base):
    found = []
    for above, names, files in os.walk(base):
        for name in names + files:
            path = os.path.join(above, name)
            info = os.lstat(path)
            target = os.readlink(path) if os.path.islink(path) else ""
            found.append((os.path.relpath(path, base), info.st_mode, info.st_uid,
                          target.replace(base, "")))
    return sorted(found)


@pytest.mark.root
@pytest.mark.slow
class TestCopy:
    @pytest.mark.parametrize(("source", "options"), CASES)
    def test_out(self, both, source, options):
        for target in TARGETS:
            seen = []
            for host in both:
                base = local_tree(host)
                done = host.docker("cp", *options, f"cp:/w/{source}", f"{base}/w/{target}")
                seen.append((done.code, plain(done.err), outside(base)))
            assert seen[0] == seen[1], (source, target)

    @pytest.mark.parametrize(("source", "options"), [*CASES, ("dir", ["-a"])])
    def test_in(self, both, source, options):
        for target in TARGETS:
            seen = []
            for host in both:
                base = local_tree(host)
                done = host.docker("cp", *options, f"{base}/w/{source}", f"cp:/w/{target}")
                seen.append((done.code, plain(done.err), inside(host)))
                if not done.code:
                    host.docker("exec", "cp", "sh", "-c", "rm -rf /w /tmp/*; " + TREE).ok()
            assert seen[0] == seen[1], (source, target)

    def test_tar_both_ways(self, both):
        tars = [host.docker("cp", "cp:/w/dir/.", "-").ok().raw for host in both]
        for host, data in itertools.product(both, tars):
            host.docker("exec", "cp", "sh", "-c", "rm -rf /got; mkdir /got").ok()
            host.docker("cp", "-", "cp:/got", input=data).ok()
            shown = host.docker("exec", "cp", "find", "/got", "-exec", "ls", "-ldn", "{}", ";")
            lines = sorted(line.split()[0:4:3] + line.split()[-1:] for line in shown.lines())
            assert lines == [["-rw-r--r--", "0", "/got/sub/g"], ["-rw-r--r--", "8", "/got/f"],
                             ["drwxr-xr-x", "0", "/got"], ["drwxr-xr-x", "0", "/got/sub"]]
            host.docker("exec", "cp", "rm", "-r", "/got").ok()


@pytest.mark.root
class TestOthers:
    def test_export_and_commit(self, both):
        """An image committed on one engine and exported is what the other makes of it."""
        trees = []
        for host in both:
            host.docker("run", "--name", "made", "--network", "none", "busybox", "sh", "-c",
                        "rm -r /home /etc/group; mkdir /home; echo x >/home/x; "
                        "ln /home/x /home/y; mv /var /moved; chmod 700 /tmp").ok()
            host.docker("commit", "-a", "me", "-m", "why", "-c", "ENV A=1", "made", "c:1").ok()
            host.docker("create", "--name", "again", "--network", "none", "c:1").ok()
            data = host.docker("export", "again").ok().raw
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                trees.append({(info.name, info.type, info.mode & 0o7777, info.size, info.linkname)
                              for info in tar})
            shown = host.docker("image", "inspect", "c:1", "--format",
                                "{{.Author}} {{.Comment}} {{.Config.Env}} {{len .RootFS.Layers}}")
            assert re.fullmatch(r"me why \[PATH=\S+ A=1\] 2\n", shown.ok().out), shown
        assert trees[0] == trees[1]

    def test_layers_travel(self, both):
        """What one engine committed and saved, the other loads as the same image, both ways."""
        for one, other in (both, both[::-1]):
            one.docker("run", "--name", "tt", "--network", "none", "busybox", "sh", "-c",
                       "echo 1 >/tmp/1; rm /etc/group").ok()
            id = one.docker("commit", "tt", "travel:1").ok().out.strip()
            other.docker("load", input=one.docker("save", "travel:1").ok().raw).ok()
            assert other.docker("image", "inspect", "-f", "{{.Id}}", "travel:1").out.strip() == id
            seen = other.docker("run", "--rm", "--network", "none", "travel:1", "sh", "-c",
                                "cat /tmp/1; ls /etc/group")
            assert seen.out == "1\n" and seen.code != 0
            for host in both:
                host.docker("rm", "-f", "tt")
                host.docker("rmi", "-f", "travel:1").ok()

    def test_usage(self, both):
        seen = []
        for host in both:
            host.docker("container", "prune", "-f").ok()
            host.docker("image", "prune", "-af").ok()
            out = host.docker("system", "df").ok().out
            seen.append(re.sub(r"[0-9.]+[kM]?B", "<size>", re.sub(r" {2,}", "  ", out)))
            assert host.docker("system", "df", "-v").ok().out.count("space usage:") == 3
        heads = [text.splitlines()[0] for text in seen]
        assert heads[0] == heads[1]
        assert [line.split()[:2] for line in seen[0].splitlines()] == [
            line.split()[:2] for line in seen[1].splitlines()]

    def test_statuses(self, both):
        """Docker 20.10 calls most of these 500; 28 and its documentation do not."""
        for method, path, body, want in (
            ("HEAD", "/containers/cp/archive?path=/nope", None, 404),
            ("GET", "/containers/cp/archive?path=/nope", None, 404),
            ("GET", "/containers/nope/archive?path=/", None, 404),
            ("GET", "/containers/cp/archive", None, 400),
            ("PUT", "/containers/cp/archive?path=/nope", b"", 404),
            ("GET", "/containers/nope/export", None, 404),
            ("POST", "/commit?container=nope", None, 404),
            ("GET", "/system/df", None, 200),
        ):
            headers = {"Content-Type": "application/x-tar"} if body is not None else None
            replies = [api(host, method, path, body, headers) for host in both]
            assert [reply.status for reply in replies] == [want, want], path
            if want >= 400 and method != "HEAD":
                assert replies[0].json() == replies[1].json(), path
        head, got = (api(both[0], method, "/containers/cp/archive?path=/w/lup")
                     for method in ("HEAD", "GET"))
        assert head.headers["X-Docker-Container-Path-Stat"] == got.headers[
            "X-Docker-Container-Path-Stat"]
        assert got.headers["Content-Type"] == "application/x-tar"
