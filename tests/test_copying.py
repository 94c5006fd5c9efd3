"""A container's files from outside: paths as Go sees them, the worker's root, links, races."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import threading

import pytest
from conftest import wait_for


class TestPaths:
    @pytest.mark.parametrize(
        ("path", "clean", "base", "split"),
        [
            ("", ".", ".", (".", ".")),
            ("/", "/", "/", ("/", "/")),
            ("//a//b/", "/a/b", "b", ("/a", "b")),
            ("a", "a", "a", (".", "a")),
            ("a/.", "a", ".", ("a", ".")),
            ("/a/..", "/", "..", ("/", "/")),
            ("../x", "../x", "x", ("..", "x")),
            ("/.", "/", ".", ("/", ".")),
        ],
    )
    def test_as_go(self, engine, path, clean, base, split):
        assert engine.path_go_clean(path) == clean
        assert engine.path_base(path) == base
        assert engine.path_entry_split(path) == split

    @pytest.mark.parametrize(
        ("cleaned", "original", "want"),
        [
            ("/a", "/a/", "/a/"), ("/a", "/a/.", "/a/."), ("/", "/.", "/."), ("/", "/", "/"),
            ("/a", "a/b/..", "/a"), ("/a/.", "/a/.", "/a/."),
        ],
    )
    def test_end_is_kept(self, engine, cleaned, original, want):
        assert engine.path_end_keep(cleaned, original) == want


class TestLinks:
    @pytest.fixture
    def root(self, tmp_path):
        (tmp_path / "a/b").mkdir(parents=True)
        (tmp_path / "a/b/file").write_text("x")
        for name, target in (
            ("abs", "/a/b"), ("up", "../../../a"), ("loop", "loop"), ("a/rel", "b/file"),
            ("broken", "a/none/../x"), ("chain", "abs/file"),
        ):
            os.symlink(target, tmp_path / name)
        fd = os.open(tmp_path, os.O_PATH)
        yield fd
        os.close(fd)

    @pytest.mark.parametrize(
        ("path", "want"),
        [
            ("/abs", "/a/b"), ("up", "/a"), ("/a/rel", "/a/b/file"), ("chain", "/a/b/file"),
            ("/broken", "/a/x"), ("/abs/../rel", "/a/rel"), ("/", "/"), ("/a/../../..", "/"),
        ],
    )
    def test_resolved_inside(self, engine, root, path, want):
        want = "/a/b/file" if path == "/abs/../rel" else want
        assert engine.link_resolve(root, path) == want

    def test_loop(self, engine, root):
        with pytest.raises(OSError, match="[Tt]oo many"):
            engine.link_resolve(root, "loop")

    def test_stat(self, engine, root, tmp_path):
        os.chmod(tmp_path / "a/b/file", 0o6755)
        stat = engine.path_stat(root, "/abs/file")
        assert stat["mode"] == 1 << 23 | 1 << 22 | 0o755 and stat["linkTarget"] == ""
        stat = engine.path_stat(root, "/abs")
        assert stat["mode"] & 1 << 27 and stat["linkTarget"] == "/a/b" and stat["name"] == "abs"
        assert engine.path_stat(root, "/abs/")["mode"] & 1 << 31
        os.mkfifo(tmp_path / "fifo")
        assert engine.path_stat(root, "fifo")["mode"] & 1 << 25


def test_pieces_are_joined(engine):
    pieces = [b"x" * 100] * 5000 + [b"y" * (1 << 19)]
    joined = list(engine.pieces_joined(pieces))
    assert b"".join(joined) == b"".join(pieces) and len(joined) < 5
    assert list(engine.pieces_joined([])) == []


@pytest.fixture
def box(busybox):
    """A running container named box."""
    busybox("run", "-d", "--name", "box", "--network", "none", "busybox", "sleep", "1000").ok()
    return busybox


def members(data):
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {info.name: info for info in tar}


@pytest.mark.root
class TestRoot:
    def test_what_is_mounted_is_not_seen(self, busybox):
        busybox("run", "-d", "--name", "box", "--network", "none", "--tmpfs", "/tmp", "busybox",
                "sh", "-c", "echo x >/tmp/hidden; sleep 1000").ok()
        wait_for(lambda: busybox("exec", "box", "ls", "/tmp/hidden").code == 0)
        for path in ("/proc/.", "/sys/.", "/tmp/."):
            assert list(members(busybox("cp", "box:" + path, "-").ok().raw)) == ["."], path
        assert "dev/null" not in members(busybox("export", "box").ok().raw)

    def test_files_that_come_from_the_host(self, box):
        hosts = box("exec", "box", "cat", "/etc/hosts").ok().raw
        for _ in range(2):
            data = box("cp", "box:/etc/hosts", "-").ok().raw
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                assert tar.extractfile("hosts").read() == hosts
            assert members(box("export", "box").ok().raw)["etc/hosts"].size == 0
            box("stop", "-t", "0", "box").ok()

    def test_a_first_process_in_a_chroot_changes_nothing(self, busybox):
        busybox("run", "-d", "--name", "box", "--network", "none", "--cap-add", "SYS_CHROOT",
                "busybox", "sh", "-c",
                "mkdir -p /jail/bin; cp /bin/busybox /jail/bin; exec chroot /jail /bin/busybox "
                "sleep 1000").ok()
        wait_for(lambda: busybox("exec", "box", "ls", "/").out.split()[:1] == ["bin"])
        wait_for(lambda: "sleep" in busybox("top", "box").out.split()[-2:][0:2][0]
                 or "sleep" in busybox("top", "box").out)
        assert "passwd" in members(busybox("cp", "box:/etc/passwd", "-").ok().raw)

    def test_paused(self, box):
        box("pause", "box").ok()
        assert "etc" in members(box("cp", "box:/etc", "-").ok().raw)
        box("cp", "-", "box:/tmp", input=box("cp", "box:/etc/passwd", "-").raw).ok()
        box("unpause", "box").ok()
        assert box("exec", "box", "ls", "/tmp").out == "passwd\n"

    def test_stopped_and_started_again(self, box):
        box("stop", "-t", "0", "box").ok()
        box("cp", "-", "box:/tmp", input=box("cp", "box:/etc/group", "-").raw).ok()
        assert box("diff", "box").ok().lines() == ["C /tmp", "A /tmp/group"]
        box("start", "box").ok()
        assert box("exec", "box", "cat", "/tmp/group").raw.startswith(b"root:")


@pytest.mark.root
class TestHostile:
    def test_links_lead_nowhere_outside(self, box, tmp_path):
        secret = tmp_path / "secret"
        secret.mkdir()
        (secret / "file").write_text("host")
        up = "../" * 30 + str(secret)[1:]
        for name, target in (("abs", str(secret)), ("up", up)):
            box("exec", "box", "ln", "-s", target, "/" + name).ok()
            for path in (f"/{name}/file", f"/{name}/", f"/{name}/."):
                done = box("cp", "box:" + path, "-")
                assert done.code == 1 and "Could not find the file" in done.err, path
            done = box("cp", "-", f"box:/{name}", input=tar_of_one("evil"))
            assert done.code == 1
        assert sorted(os.listdir(secret)) == ["file"]

    def test_link_swapped_while_copying(self, box, tmp_path):
        """A directory that is now and then a link to / or /proc/self/root gives the container's."""
        box("exec", "-d", "box", "sh", "-c",
            "mkdir /real; echo mine >/real/hostname; "
            "while :; do ln -s /proc/1/root/etc /swap; rm /swap; mv /real /swap; mv /swap /real; "
            "ln -s /etc /swap; rm -f /swap; done").ok()
        host = open("/etc/hostname").read().strip() if os.path.exists("/etc/hostname") else "\0"
        inside = box("exec", "box", "hostname").out.strip()
        assert host != inside
        seen = set()
        for _ in range(30):
            done = box("cp", "box:/swap/hostname", "-")
            if done.code == 0:
                with tarfile.open(fileobj=io.BytesIO(done.raw)) as tar:
                    for info in tar:
                        if info.isreg():
                            seen.add(tar.extractfile(info).read().decode().strip())
        assert seen <= {"mine", inside, ""}

    def test_tree_that_changes_while_it_is_read(self, box):
        box("exec", "-d", "box", "sh", "-c",
            "while :; do mkdir -p /t/a/b; echo x >/t/a/f; ln /t/a/f /t/a/g; mkfifo /t/a/p; "
            "mv /t/a /t/c; rm -r /t/c; ln -s /etc /t/a; rm /t/a; done").ok()
        wait_for(lambda: box("exec", "box", "ls", "/t").code == 0)
        for _ in range(20):
            data = box("cp", "box:/t", "-").ok().raw
            assert "t" in members(data)

    def test_devices_are_not_opened(self, box):
        box("exec", "box", "mknod", "/disk", "b", "7", "0").ok()
        info = members(box("cp", "box:/disk", "-").ok().raw)["disk"]
        assert info.isblk() and (info.devmajor, info.devminor, info.size) == (7, 0, 0)
        assert box("cp", "/etc/hostname", "box:/disk").code == 1

    def test_tar_that_wants_out(self, box, tmp_path):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            for name, kind, target in (
                ("a", tarfile.SYMTYPE, str(tmp_path)), ("a/evil", tarfile.REGTYPE, ""),
            ):
                info = tarfile.TarInfo(name)
                info.type, info.linkname = kind, target
                tar.addfile(info)
        box("cp", "-", "box:/tmp", input=out.getvalue())
        assert os.listdir(tmp_path) == []
        for name in ("../evil", "x/../../evil"):
            done = box("cp", "-", "box:/tmp", input=tar_of_one(name))
            assert done.code == 1 and 'is outside of "/tmp"' in done.err
        info = tarfile.TarInfo("link")
        info.type, info.linkname = tarfile.LNKTYPE, "../etc/passwd"
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            tar.addfile(info)
        assert "invalid hardlink" in box("cp", "-", "box:/tmp", input=out.getvalue()).err

    def test_no_program_of_the_container_runs(self, box, tmp_path):
        """A container whose every program and library is a trap: nothing springs."""
        trap = "#!/bin/sh\ntouch /sprung\n"
        box("exec", "box", "sh", "-c",
            "mkdir -p /lib64 /usr/lib/python3 /sbin; for f in /bin/tar /sbin/tar /usr/bin/python3 "
            "/lib64/libnss_files.so.2 /usr/lib/python3/encodings.py; do rm -f $f; "
            f"printf '{trap}' >$f; chmod 755 $f; done").ok()
        box("cp", "box:/etc", str(tmp_path)).ok()
        box("cp", "-a", "/etc/hostname", "box:/tmp").ok()
        assert box("exec", "box", "ls", "/sprung").code != 0


def tar_of_one(name):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.addfile(tarfile.TarInfo(name))
    return out.getvalue()


@pytest.mark.root
class TestTogether:
    def test_start_waits_for_a_copy(self, busybox):
        busybox("create", "--name", "box", "--network", "none", "busybox", "ls", "/tmp").ok()
        copy = busybox.popen("cp", "-", "box:/tmp")
        data = tar_of_one("late")
        copy.stdin.write(data[:100])
        copy.stdin.flush()
        wait_for(lambda: worker_of(busybox))
        start = busybox.popen("start", "-a", "box")
        with pytest.raises(subprocess.TimeoutExpired):
            start.wait(0.5)
        copy.stdin.write(data[100:])
        copy.stdin.close()
        assert copy.wait(20) == 0
        assert start.communicate(timeout=20)[0] == b"late\n"
        copy.stdout.close()
        copy.stderr.close()

    def test_reader_gone(self, box):
        """Who stops reading leaves no worker behind."""
        box("exec", "box", "sh", "-c", "head -c 50000000 /dev/zero >/big").ok()
        for _ in range(3):
            copy = box.popen("cp", "box:/big", "-")
            copy.stdout.read(1000)
            copy.kill()
            copy.communicate()
        wait_for(lambda: not worker_of(box), 10)

    def test_several_at_once(self, box):
        failed = []

        def copy(name):
            done = box("cp", "-", "box:/tmp", input=tar_of_one(name))
            if done.code:
                failed.append(done)
        threads = [threading.Thread(target=copy, args=(f"f{n}",)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed
        assert box("exec", "box", "ls", "/tmp").out.split() == [f"f{n}" for n in range(6)]


def worker_of(runner):
    """Whether a files worker lives that our launcher has made."""
    import conftest

    return [pid for pid, row in conftest.descendants().items() if row[0] == "engine:files"]


@pytest.mark.root
def test_copies_go_into_volumes_and_binds(busybox, tmp_path):
    bind, fixed, one = tmp_path / "bind", tmp_path / "fixed", tmp_path / "one"
    bind.mkdir()
    fixed.mkdir()
    one.write_text("text")
    options = ("-v", "kept:/in", "-v", f"{bind}:/mnt/bind", "-v", f"{fixed}:/mnt/fixed:ro")
    script = "ls /in /mnt/bind; sleep 60"
    line = ("create", "--name", "box", "--network=none", *options, "busybox", "sh", "-c", script)
    busybox(*line).ok()
    refused = "Error response from daemon: mounted volume is marked read-only\n"
    for state in ("created", "running"):
        if state == "running":
            busybox("start", "box").ok()
        busybox("cp", one, f"box:/in/{state}").ok()
        busybox("cp", one, f"box:/mnt/bind/{state}").ok()
        assert (bind / state).read_text() == "text"
        done = busybox("cp", one, "box:/mnt/fixed/new")
        assert (done.code, done.err) == (1, refused)
        busybox("cp", "box:/in", tmp_path / f"out-{state}").ok()
        assert (tmp_path / f"out-{state}" / state).read_text() == "text"
        busybox("cp", "box:/mnt", tmp_path / f"all-{state}").ok()
        assert (tmp_path / f"all-{state}" / "bind" / state).read_text() == "text"
    assert "bind/" not in busybox("diff", "box").ok().out
    busybox("rm", "-f", "box").ok()
    busybox("volume", "rm", "kept").ok()
    assert list(fixed.iterdir()) == []
