"""Commit: what a container changed becomes a layer that says the same, on every layer below."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile

import pytest


def layer_of(runner, image, tmp_path):
    """{name: TarInfo} of an image's topmost layer, by the archive that `save` writes."""
    runner("save", "-o", str(tmp_path / "s.tar"), image).ok()
    with tarfile.open(tmp_path / "s.tar") as tar:
        rows = json.load(tar.extractfile("manifest.json"))
        with tarfile.open(fileobj=tar.extractfile(rows[0]["Layers"][-1])) as layer:
            return {info.name: info for info in layer}


def changed(runner, script, *options, name="box"):
    """A container named box that has run the script."""
    runner("run", "--name", name, "--network", "none", *options, "busybox", "sh", "-ec",
           script).ok()


@pytest.mark.root
class TestLayer:
    def test_deletions_and_opaque_directories(self, busybox, tmp_path):
        changed(busybox, "mkdir /usr/bin/x; rm -r /usr; mkdir /usr; echo new >/usr/new; "
                         "rm /etc/group; echo a >/tmp/a; rm -r /home")
        busybox("commit", "box", "c").ok()
        assert sorted(layer_of(busybox, "c", tmp_path)) == [
            ".wh.home", "etc", "etc/.wh.group", "tmp", "tmp/a", "usr", "usr/.wh..wh..opq",
            "usr/new"]
        seen = busybox("run", "--rm", "--network", "none", "c", "sh", "-c",
                       "ls / /usr /etc").ok().out.split()
        assert "home" not in seen and "group" not in seen and "new" in seen
        assert busybox("run", "--rm", "--network", "none", "c", "ls", "/usr").out == "new\n"

    def test_hard_links_renames_and_modes(self, busybox, tmp_path):
        changed(busybox, "echo x >/tmp/a; ln /tmp/a /tmp/b; chmod 4755 /etc/passwd; "
                         "mv /var /moved; mv /tmp/a /tmp/c; chown 5:6 /root")
        busybox("commit", "box", "c").ok()
        layer = layer_of(busybox, "c", tmp_path)
        assert layer["tmp/c"].islnk() and layer["tmp/c"].linkname == "tmp/b"
        assert layer["etc/passwd"].mode == 0o4755 and layer["etc/passwd"].size > 0
        assert ".wh.var" in layer and layer["moved"].isdir()
        assert (layer["root"].uid, layer["root"].gid) == (5, 6)
        before = busybox("export", "box").ok().raw
        busybox("create", "--name", "new", "--network", "none", "c").ok()
        after = busybox("export", "new").ok().raw
        assert same_tree(before) == same_tree(after)

    def test_capabilities_and_attributes(self, busybox, tmp_path):
        (tmp_path / "tool").write_bytes(b"x")
        os.setxattr(tmp_path / "tool", "security.capability",
                    bytes.fromhex("0100000200040000000000000000000000000000"))
        busybox("create", "--name", "box", "--network", "none", "busybox").ok()
        busybox("cp", str(tmp_path / "tool"), "box:/tmp/tool").ok()
        busybox("commit", "box", "c").ok()
        layer = layer_of(busybox, "c", tmp_path)
        assert "SCHILY.xattr.security.capability" in layer["tmp/tool"].pax_headers
        assert not any("overlay" in key for info in layer.values() for key in info.pax_headers)

    def test_sparse_file(self, busybox, tmp_path):
        changed(busybox, "truncate -s 3G /tmp/big; echo end >>/tmp/big")
        busybox("commit", "box", "c").ok()
        assert layer_of(busybox, "c", tmp_path)["tmp/big"].size == (3 << 30) + 4
        shown = busybox("run", "--rm", "--network", "none", "c", "sh", "-c",
                        "tail -c 4 /tmp/big; du -k /tmp/big").ok().out.split()
        assert shown[0] == "end" and int(shown[1]) < 1000

    def test_layers_below_stay_as_they_are(self, busybox, tmp_path):
        changed(busybox, "echo 1 >/tmp/1")
        busybox("commit", "box", "c").ok()
        old, new = busybox("image", "inspect", "busybox", "c").json()
        assert new["RootFS"]["Layers"][:-1] == old["RootFS"]["Layers"]
        assert new["Size"] == old["Size"] + 2
        first = busybox("save", "c").ok().raw
        busybox("rm", "box").ok()
        busybox("rmi", "c").ok()
        busybox("load", input=first).ok()
        assert busybox("image", "inspect", "c").json()[0]["Id"] == new["Id"]
        assert busybox("save", "c").ok().raw == first


def same_tree(data):
    """What a tar says but for the times of directories."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [(info.name, info.type, info.mode, info.uid, info.gid, info.linkname, info.size,
                 0 if info.isdir() else info.mtime) for info in tar]


@pytest.mark.root
class TestRunning:
    def test_paused_meanwhile_or_not(self, busybox):
        busybox("run", "-d", "--name", "box", "--network", "none", "busybox", "sleep", "1000").ok()

        def actions():
            return [line.split()[2] for line in busybox(
                "events", "--since", "1h", "--until", "0s").ok().lines()]
        busybox("commit", "-p=false", "box").ok()
        assert "pause" not in actions() and actions()[-1] == "commit"
        busybox("commit", "box", "x:y").ok()
        assert actions()[-5:] == ["pause", "unpause", "create", "tag", "commit"]
        assert busybox("ps", "--format", "{{.State}}").out == "running\n"
        busybox("pause", "box").ok()
        busybox("commit", "box").ok()
        assert busybox("ps", "--format", "{{.State}}").out == "paused\n"

    def test_paused_no_longer_after_a_failure(self, busybox):
        busybox("run", "-d", "--name", "box", "--network", "none", "busybox", "sleep", "1000").ok()
        for bad in ("RUN x", "CMD [", "ENV"):
            assert busybox("commit", "-c", bad, "box").code == 1 or bad == "CMD ["
        assert busybox("ps", "--format", "{{.State}}").out == "running\n"


@pytest.mark.root
class TestConfig:
    def test_merged_from_the_container(self, busybox):
        busybox("create", "--name", "box", "--network", "none", "-e", "A=1", "-l", "k=v", "-w",
                "/tmp", "-u", "user", "--entrypoint", "echo", "busybox", "one", "two").ok()
        busybox("commit", "-a", "me", "-m", "why", "-c", "ENV A=2 B=3", "-c", "LABEL l=m", "-c",
                "EXPOSE 80", "box", "c").ok()
        shown = busybox("image", "inspect", "c").json()[0]
        config = shown["Config"]
        assert config["Entrypoint"] == ["echo"] and config["Cmd"] == ["one", "two"]
        assert config["Env"][0] == "A=2" and "B=3" in config["Env"]
        assert config["Labels"] == {"k": "v", "l": "m"} and config["User"] == "user"
        assert config["WorkingDir"] == "/tmp" and config["ExposedPorts"] == {"80/tcp": {}}
        step = busybox("history", "--no-trunc", "--format", "json", "c").ok().lines()[0]
        assert json.loads(step)["CreatedBy"] == "one two" and json.loads(step)["Comment"] == "why"
        assert busybox("run", "--rm", "--network", "none", "c").ok().out == "one two\n"

    def test_entrypoint_takes_the_command_with_it(self, busybox):
        busybox("create", "--name", "box", "--network", "none", "busybox", "sh").ok()
        busybox("commit", "-c", 'ENTRYPOINT ["ls"]', "box", "c").ok()
        config = busybox("image", "inspect", "c").json()[0]["Config"]
        assert config["Entrypoint"] == ["ls"] and config["Cmd"] is None

    def test_refusals(self, busybox):
        busybox("create", "--name", "box", "--network", "none", "busybox", "sh").ok()
        for args, text in (
            (("gone",), "Error response from daemon: No such container: gone"),
            (("box", "A"), "invalid reference format: repository name (library/A) must be "
                           "lowercase"),
            (("-c", "RUN x", "box"), "Error response from daemon: RUN is not a valid change "
                                     "command"),
        ):
            done = busybox("commit", *args)
            assert done.code == 1 and done.err == text + "\n"
        assert busybox("images", "-q").ok().out.count("\n") == 1

    def test_parent_goes(self, busybox):
        changed(busybox, "echo 1 >/tmp/1")
        busybox("commit", "box", "c").ok()
        base = busybox("image", "inspect", "busybox").json()[0]["Id"]
        assert busybox("image", "inspect", "c").json()[0]["Parent"] == base
        busybox("rm", "box").ok()
        busybox("rmi", "busybox").ok()
        assert busybox("image", "inspect", "c").json()[0]["Parent"] == ""


@pytest.mark.root
class TestFull:
    @pytest.fixture
    def small(self, cli, busybox_tar, roots):
        """A data root of 64 MB; its memory is given back at the end."""
        os.makedirs(roots.data)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", roots.data], check=True)
        cli("load", "-i", busybox_tar).ok()
        yield cli
        cli("rm", "-f", "box")
        subprocess.run(["umount", "-l", roots.data], check=True)

    def test_commit_and_copy(self, small, roots, tmp_path):
        small("create", "--name", "box", "--network", "none", "busybox").ok()
        with open(tmp_path / "big", "wb") as file:
            for _ in range(90):
                file.write(os.urandom(1 << 20))
        done = small("cp", str(tmp_path / "big"), "box:/tmp")
        assert done.code == 1 and done.err == (
            "Error response from daemon: unpack /big: no space left on device\n")
        assert small("diff", "box").ok().lines() in ([], ["C /tmp"])
        with open(tmp_path / "big", "r+b") as file:
            file.truncate(22 << 20)
        small("cp", str(tmp_path / "big"), "box:/tmp").ok()
        left = sorted(os.listdir(roots.data + "/blobs/sha256")), os.listdir(roots.data + "/layers")
        done = small("commit", "box", "c")
        assert done.code == 1 and "no space left on device" in done.err, done
        assert left == (sorted(os.listdir(roots.data + "/blobs/sha256")),
                        os.listdir(roots.data + "/layers"))
        assert os.listdir(roots.data + "/tmp") == []
        assert small("images", "-q").ok().out.count("\n") == 1
