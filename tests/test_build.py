"""engine.pyz: what the build makes, and how it starts."""


def test_is_executable(pyz):
    assert pyz.stat().st_mode & 0o111
    assert pyz.read_bytes().startswith(b"#!/usr/bin/env python3\n")


def test_busybox_archives(busybox_tar):
    import tarfile
    with tarfile.open(busybox_tar) as tar:
        assert "manifest.json" in tar.getnames()
