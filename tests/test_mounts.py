"""mounts: option words, mountinfo, detached mounts, overlay in both ways, pivot_root."""

import errno
import os

import engine
import pytest
from kernel_help import in_child


def test_options_become_flags_and_data():
    parsed = engine.mount_options_parse(
        ["nosuid", "ro", "rprivate", "mode=755", "rw", "rro", "newinstance"]
    )
    assert parsed.set == engine.MS_NOSUID
    assert parsed.clear == engine.MS_RDONLY
    assert parsed.propagation == [engine.MS_PRIVATE | engine.MS_REC]
    assert parsed.data == ["mode=755", "newinstance"]
    assert parsed.recursive_set == engine.MS_RDONLY
    assert len(parsed) == 6


@pytest.mark.parametrize("name", sorted(engine.MOUNT_OPTIONS))
def test_each_option_is_known(name):
    parsed = engine.mount_options_parse([name])
    assert parsed.data == []
    assert (parsed.set, parsed.clear) == engine.MOUNT_OPTIONS[name]


def test_rbind_and_relatime_are_words_of_their_own():
    assert engine.mount_options_parse(["rbind"]).set == engine.MS_BIND | engine.MS_REC
    assert engine.mount_options_parse(["relatime"]).recursive_set == 0
    assert engine.mount_options_parse(["rrelatime"]).recursive_set == engine.MS_RELATIME


def test_attrs_of_flags():
    flags = engine.MS_RDONLY | engine.MS_NOATIME | engine.MS_LAZYTIME
    assert engine.mount_attrs_of(flags) == engine.MOUNT_ATTR_RDONLY | engine.MOUNT_ATTR_NOATIME


def test_mountinfo_line_with_odd_names():
    line = (b"36 35 98:0 /mnt1 /mnt\\0402\\134x rw,noatime master:1 shared:7 - ext3 /dev/ro\\040ot "
            b"rw,errors=continue")
    info = engine._mountinfo_line(line)
    assert (info.id, info.parent, info.device, info.root) == (36, 35, "98:0", "/mnt1")
    assert info.point == "/mnt 2\\x"
    assert info.propagation == ["master:1", "shared:7"]
    assert (info.fstype, info.source, info.data) == (
        "ext3",
        "/dev/ro ot",
        ["rw", "errors=continue"],
    )


def test_mountinfo_of_this_process_has_a_root():
    assert [info for info in engine.mountinfo() if info.point == "/"]


def test_mounts_below_gives_parents_first():
    def info(number, parent):
        return engine.MountInfo((number, parent, "0:1", "/", "/", [], [], "tmpfs", "x", []))
    mounts = {n: info(n, p) for n, p in ((4, 3), (1, 1), (2, 1), (3, 2), (5, 1))}
    assert engine.mounts_below(mounts, 2) == [3, 4]
    assert engine.mounts_below(mounts, 1) == [2, 5, 3, 4]


# ---------------------------------------------------------------- with the kernel

@pytest.fixture
def here(tmp_path):
    """A tmpfs that is gone after the test, whatever was mounted below it."""
    engine.sys_mount("tmpfs", str(tmp_path), "tmpfs", 0, None)
    yield str(tmp_path)
    engine.unmount(str(tmp_path))


def layer(here, name, **files):
    path = os.path.join(here, name)
    os.makedirs(path)
    for file, text in files.items():
        with open(os.path.join(path, file), "w") as out:
            out.write(text)
    return path


def read_at(fd, name):
    file = os.open(name, os.O_RDONLY, dir_fd=fd)
    try:
        return os.read(file, 100).decode()
    finally:
        os.close(file)


@pytest.mark.root
def test_new_mount_is_detached_until_attached(here):
    before = len(engine.mountinfo())
    fd = engine.mount_new("tmpfs", ["mode=711", "size=64k", "nosuid", "noexec"])
    assert len(engine.mountinfo()) == before
    assert os.stat(f"/proc/self/fd/{fd}").st_mode & 0o777 == 0o711
    os.mkdir(here + "/t")
    engine.mount_attach(fd, path=here + "/t")
    info = engine.mountinfo()[-1]
    assert info.point == here + "/t"
    assert {"nosuid", "noexec"} <= set(info.options)
    assert info.source == "tmpfs"
    assert engine.mount_id_of(fd) == info.id
    engine.unmount(fd)
    os.close(fd)
    assert len(engine.mountinfo()) == before


@pytest.mark.root
def test_wrong_option_and_file_system():
    with pytest.raises(OSError) as caught:
        engine.mount_new("tmpfs", ["bogus=1"])
    assert caught.value.errno == errno.EINVAL
    assert "bogus" in str(caught.value)
    with pytest.raises(OSError) as caught:
        engine.mount_new("nosuchfs")
    assert caught.value.errno == errno.ENODEV


@pytest.mark.root
@pytest.mark.parametrize("by_remount", [False, True])
def test_clone_readonly_recursive(here, monkeypatch, by_remount):
    layer(here, "src/sub", file="x")
    engine.sys_mount("tmpfs", here + "/src/sub", "tmpfs", engine.MS_NOSUID, None)
    os.mkdir(here + "/t")
    fd = engine.mount_clone(here + "/src", recursive=True)
    if by_remount:
        def missing(*args, **kwargs):
            raise OSError(errno.ENOSYS, "mount_setattr: Function not implemented")
        monkeypatch.setattr(engine, "sys_mount_setattr", missing)
        with pytest.raises(OSError) as caught:
            engine.mount_readonly(fd, recursive=True)
        assert caught.value.errno == errno.ENOSYS
        engine.mount_attach(fd, path=here + "/t")
        engine.mount_readonly(fd, recursive=True)
    else:
        try:
            engine.mount_readonly(fd, recursive=True)
        except OSError as refused:
            assert refused.errno == errno.ENOSYS
            pytest.skip("no mount_setattr before Linux 5.12")
        engine.mount_attach(fd, path=here + "/t")
    os.close(fd)
    for path in (here + "/t/a", here + "/t/sub/a"):
        with pytest.raises(OSError) as caught:
            open(path, "w")
        assert caught.value.errno == errno.EROFS
    inner = [info for info in engine.mountinfo() if info.point == here + "/t/sub"]
    assert "nosuid" in inner[0].options
    open(here + "/src/sub/still-writable", "w").close()


@pytest.mark.root
def test_attach_inside_a_root_by_descriptor(here):
    os.makedirs(here + "/root/etc")
    os.symlink("/etc", here + "/root/link")
    root = os.open(here + "/root", os.O_PATH)
    target = engine.open_in_root(root, "link", os.O_PATH)
    fd = engine.mount_new("tmpfs")
    engine.mount_attach(fd, target)
    assert engine.mountinfo()[-1].point == here + "/root/etc"
    for number in (fd, target, root):
        os.close(number)


@pytest.mark.root
@pytest.mark.parametrize("name", ["plain", "co:lon", "com,ma", "back\\slash", 'quo"te', "x" * 240])
def test_overlay_with_odd_names(here, name):
    lowers = [layer(here, name + "/a", one="top"), layer(here, name + "/b", one="low", two="low")]
    upper, work = layer(here, name + "/u"), layer(here, name + "/w")
    fd = engine.overlay_mount(lowers, upper, work)
    assert read_at(fd, "one") == "top"
    assert read_at(fd, "two") == "low"
    os.close(os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    assert os.listdir(upper) == ["new"]


@pytest.mark.root
def test_overlay_without_upper_cannot_be_written(here):
    lowers = [layer(here, "a", one="top"), layer(here, "b", two="low")]
    for some in (lowers, lowers[:1]):
        try:
            fd = engine.overlay_mount(some)
        except engine.NeedsLegacyMount:
            assert some == lowers[:1]               # Linux < 5.12 has no mount_setattr
            continue
        assert read_at(fd, "one") == "top"
        with pytest.raises(OSError) as caught:
            os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
        assert caught.value.errno == errno.EROFS
        os.close(fd)


@pytest.mark.root
def test_overlay_of_129_layers_and_no_more(here):
    lowers = [layer(here, f"layers/{n}/diff", **{f"f{n}": str(n)}) for n in range(130)]
    if not engine.overlay_adds_layers():
        pytest.skip("an older kernel: see the legacy mount below")
    fd = engine.overlay_mount(lowers[:129], layer(here, "u"), layer(here, "w"))
    assert len(os.listdir(f"/proc/self/fd/{fd}")) == 129
    os.close(fd)
    with pytest.raises(engine.InvalidParameter, match="max depth exceeded"):
        engine.overlay_mount(lowers, layer(here, "u2"), layer(here, "w2"))


def older_kernel(monkeypatch):
    """A kernel that does not know lowerdir+ (Linux < 6.7)."""
    monkeypatch.setattr(engine, "overlay_adds_layers", lambda: False)


@pytest.mark.root
def test_overlay_in_one_value_on_older_kernels(here, monkeypatch):
    older_kernel(monkeypatch)
    lowers = [layer(here, f"layers/{n}/diff", one=str(n)) for n in range(20)]
    before = os.getcwd()
    fd = engine.overlay_mount(lowers, layer(here, "u"), layer(here, "w"))
    assert read_at(fd, "one") == "0"
    os.close(fd)
    assert os.getcwd() == before
    fd = engine.overlay_mount(lowers[:1], layer(here, "u2"), layer(here, "w2"))
    assert read_at(fd, "one") == "0"
    os.close(fd)


@pytest.mark.root
def test_overlay_that_does_not_fit_needs_the_legacy_mount(here, monkeypatch):
    older_kernel(monkeypatch)
    lowers = [layer(here, f"layers/{n}/diff", **{f"f{n}": "x"}) for n in range(128)]
    upper, work = layer(here, "u,p"), layer(here, "w:k")
    with pytest.raises(engine.NeedsLegacyMount):
        engine.overlay_mount(lowers, upper, work)
    os.mkdir(here + "/m")

    def legacy():
        engine.overlay_mount_legacy(
            here + "/layers", [f"{n}/diff" for n in range(128)], upper, work, target=here + "/m"
        )
        return len(os.listdir(here + "/m"))
    assert in_child(legacy) == 128
    engine.unmount(here + "/m")

    def single():
        engine.overlay_mount_legacy(here + "/layers", ["0/diff"], None, None, target=here + "/m")
        return os.access(here + "/m/f0", os.W_OK)
    assert in_child(single) is False


@pytest.mark.root
def test_overlay_missing_layer_is_told(here):
    with pytest.raises(FileNotFoundError):
        engine.overlay_mount([here + "/none", here + "/nor"], layer(here, "u"), layer(here, "w"))


@pytest.mark.root
@pytest.mark.parametrize("initramfs", [False, True])
def test_pivot_leaves_nothing_of_the_old_root(here, monkeypatch, initramfs):
    fd = engine.overlay_mount([layer(here, "a", hello="new root"), layer(here, "b")],
                              layer(here, "u"), layer(here, "w"))
    os.mkdir("proc", dir_fd=fd)
    if initramfs:
        def refuse(*args, **kwargs):
            raise OSError(errno.EINVAL, "pivot_root: Invalid argument")
        monkeypatch.setattr(engine, "sys_pivot_root", refuse)

    def enter():
        engine.sys_unshare(engine.CLONE_NEWNS)
        engine.mount_propagation("/", engine.MS_SLAVE | engine.MS_REC)
        engine.mount_attach(fd, path="/")
        proc = engine.mount_new("proc")
        engine.mount_attach(proc, fd, "proc")
        engine.root_pivot(fd)
        with open("/hello") as file:
            return file.read(), [info.point for info in engine.mountinfo()], os.getcwd()
    text, points, directory = in_child(enter)
    os.close(fd)
    assert text == "new root"
    assert sorted(points) == ["/", "/proc"]
    assert directory == "/"


def test_overlayfs_is_found_where_the_kernel_names_it_or_can_load_it(monkeypatch):
    def answer(number):
        def asked(*args, **kwargs):
            raise OSError(number, "fsopen")
        return asked

    named = b"nodev\ttmpfs\nnodev\toverlay\n"
    monkeypatch.setattr(engine, "file_read", lambda path: named)
    monkeypatch.setattr(engine, "sys_fsopen", answer(errno.ENODEV))
    assert engine.overlay_exists()
    monkeypatch.setattr(engine, "file_read", lambda path: b"nodev\ttmpfs\n")
    assert not engine.overlay_exists()
    monkeypatch.setattr(engine, "sys_fsopen", lambda *args: os.open("/", os.O_PATH))
    assert engine.overlay_exists()
