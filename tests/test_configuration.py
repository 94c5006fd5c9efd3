"""configuration: what a daemon decided counts while it lives."""

from __future__ import annotations

import os
import subprocess
import sys

import engine


def test_defaults_without_a_daemon(tmp_path):
    assert engine.configuration_read(str(tmp_path)) is engine.CONFIGURATION
    assert engine.configuration_read(str(tmp_path / "missing")) is engine.CONFIGURATION


def test_what_is_written_counts_while_the_descriptor_is_open(tmp_path):
    run = str(tmp_path)
    fd = engine.configuration_write(run, {"labels": ["a=1"], "default-shm-size": 1})
    read = engine.configuration_read(run)
    assert read["labels"] == ["a=1"]
    assert read["default-shm-size"] == 1
    assert read["log-driver"] == "json-file"
    assert os.stat(tmp_path / "daemon.json").st_mode & 0o777 == 0o600
    newer = engine.configuration_write(run, {"labels": []})
    os.close(fd)
    assert engine.configuration_read(run)["labels"] == []
    os.close(newer)
    assert engine.configuration_read(run) is engine.CONFIGURATION
    assert os.listdir(tmp_path) == ["daemon.json"]


def test_it_ends_with_its_process_however_that_ends(tmp_path):
    source = (
        "import engine, sys, time\n"
        "fd = engine.configuration_write(sys.argv[1], {'init': True})\n"
        "print('written', flush=True)\n"
        "time.sleep(60)\n"
    )
    daemon = subprocess.Popen(
        [sys.executable, "-B", "-c", source, str(tmp_path)],
        stdout=subprocess.PIPE,
        cwd=os.path.dirname(engine.__file__),
    )
    assert daemon.stdout.readline() == b"written\n"
    assert engine.configuration_read(str(tmp_path))["init"] is True
    daemon.kill()
    daemon.wait()
    assert engine.configuration_read(str(tmp_path))["init"] is False
