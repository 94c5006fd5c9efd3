"""store: one database, many processes; the roots."""

import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time

import pytest


@pytest.fixture
def store(engine, roots):
    return engine.Store(roots.data, roots.run)


def test_the_first_use_makes_both_roots(engine, roots):
    store = engine.Store(roots.data, roots.run)
    assert not os.path.exists(roots.data)
    assert store.rows("SELECT id FROM images") == []
    assert sorted(os.listdir(roots.data)) == sorted(
        ["blobs", "containers", "engine.db", "engine.db-shm", "engine.db-wal", "layers", "tmp"]
    )
    assert os.stat(roots.run).st_mode & 0o777 == 0o700
    assert sqlite3.connect(store.path("engine.db")).execute("PRAGMA journal_mode").fetchone() == (
        "wal",
    )


def test_a_write_is_whole_or_not_at_all(store):
    with store.write() as db:
        db.execute("INSERT INTO meta VALUES('a', '1')")
    with pytest.raises(ValueError), store.write(durable=False) as db:
        db.execute("INSERT INTO meta VALUES('b', '2')")
        raise ValueError
    assert store.row("SELECT value FROM meta WHERE key='a'") == ("1",)
    assert store.row("SELECT value FROM meta WHERE key='b'") is None


@pytest.mark.parametrize("durable, level", [(True, 2), (False, 1)])
def test_durability_is_per_write(store, durable, level):
    with store.write(durable) as db:
        assert db.execute("PRAGMA synchronous").fetchone() == (level,)


def test_many_processes_write_at_once(engine, store, roots):
    store.db
    program = (
        f"import sys; sys.path.insert(0, {os.path.dirname(engine.__file__)!r}); import engine\n"
        f"s = engine.Store({roots.data!r}, {roots.run!r})\n"
        "for n in range(50):\n"
        "    with s.write(durable=False) as db:\n"
        "        db.execute('INSERT INTO meta VALUES(?, ?)', (sys.argv[1] + str(n), 'x'))\n"
    )
    workers = [subprocess.Popen([sys.executable, "-B", "-c", program, name]) for name in "abcdef"]
    assert [worker.wait() for worker in workers] == [0] * 6
    assert store.row("SELECT count(*) FROM meta WHERE value='x'") == (300,)


def test_a_fork_gets_a_connection_of_its_own(store):
    mine = store.db
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, b"other" if store.db is not mine else b"same")
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(read, 10) == b"other"
    os.close(read)
    os.close(write)


def test_a_crowd_of_threads_shares_a_few_connections(engine, store, monkeypatch):
    made, real = [], engine._store_connect
    monkeypatch.setattr(engine, "_store_connect", lambda store: made.append(1) or real(store))
    monkeypatch.setattr(engine, "CONNECTIONS_WAIT", 60.0)   # however slow this machine is
    seen = []

    def request():
        seen.append(store.row("SELECT 5"))
        time.sleep(0.02)
        store.release()

    threads = [threading.Thread(target=request) for _ in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [(5,)] * 200
    assert len(made) <= engine.CONNECTIONS_MOST + 1


def test_who_waits_too_long_for_a_connection_gets_one_more(engine, store, monkeypatch):
    monkeypatch.setattr(engine, "CONNECTIONS_MOST", 1)
    monkeypatch.setattr(engine, "CONNECTIONS_WAIT", 0.05)
    store.row("SELECT 1")
    seen = []
    thread = threading.Thread(target=lambda: seen.append(store.row("SELECT 5")))
    thread.start()
    thread.join()
    assert seen == [(5,)]


@pytest.mark.parametrize("name", ["", "/\udcff", "/é"])
def test_another_run_root_is_refused_while_a_monitor_answers(engine, roots, name):
    run = roots.run + name
    store = engine.Store(roots.data, run)
    with store.write() as db:
        db.execute(
            "INSERT INTO containers(id, name, image, state, created, config, host_config,"
            " document) VALUES('c1', 'n', 'i', 'running', 1, '{}', '{}', '{}')"
        )
    os.makedirs(run + "/containers/c1")
    monitor = engine.unix_listen(run + "/containers/c1", "monitor.sock")
    other = engine.Store(roots.data, roots.base + "/other")
    with pytest.raises(engine.EngineError, match="cannot be used with") as refused:
        other.db
    assert run in str(refused.value) and roots.base + "/other" in str(refused.value)
    monitor.close()
    assert engine.Store(roots.data, roots.base + "/other").rows("SELECT id FROM images") == []


@pytest.mark.parametrize("content", [b"this is not a database at all, it only stands there" * 50])
def test_a_damaged_database_is_told_by_name(engine, roots, content):
    os.makedirs(roots.data)
    path = roots.data + "/engine.db"
    with open(path, "wb") as file:
        file.write(content)
    with pytest.raises(engine.EngineError, match="engine.db is damaged"):
        engine.Store(roots.data, roots.run).db
    with open(path, "rb") as file:
        assert file.read() == content


def test_a_newer_schema_is_refused(engine, roots):
    store = engine.Store(roots.data, roots.run)
    store.db.execute(f"PRAGMA user_version={engine.SCHEMA_VERSION + 1}")
    with pytest.raises(engine.EngineError, match="newer engine"):
        engine.Store(roots.data, roots.run).db


def test_no_sqlite_is_one_sentence(engine, roots, monkeypatch):
    monkeypatch.setitem(sys.modules, "_sqlite3", None)
    with pytest.raises(engine.EngineError, match="no sqlite3 module"):
        engine.Store(roots.data, roots.run).db


def test_unix_sockets_work_below_very_long_paths(engine, roots):
    directory = roots.base + "/" + "/".join(["d" * 60] * 4)
    os.makedirs(directory)
    listener = engine.unix_listen(directory, "x.sock")
    sock = engine.unix_connect(directory, "x.sock")
    peer, _ = listener.accept() if hasattr(listener, "accept") else (None, None)
    assert sock is not None
    for one in (listener, sock, peer):
        if one is not None:
            one.close()
    assert engine.unix_connect(directory, "x.sock") is None
    assert engine.unix_connect(directory + "/none", "x.sock") is None


def test_a_socket_that_is_left_there_is_replaced(engine, roots):
    os.makedirs(roots.base, exist_ok=True)
    stale = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    stale.bind(roots.base + "/x.sock")
    stale.close()
    listener = engine.unix_listen(roots.base, "x.sock")
    assert engine.unix_connect(roots.base, "x.sock") is not None
    assert os.stat(roots.base + "/x.sock").st_mode & 0o777 == 0o600
    listener.close()


def test_roots_may_have_names_that_are_no_utf8(engine, roots):
    store = engine.Store(os.fsdecode(b"%s/\xff" % roots.data.encode()), roots.run + "/\udcff")
    store.db
    engine.Store(store.data, store.run).db  # and again


def test_a_database_that_cannot_be_written_is_told_by_name(engine, store):
    store.db
    refused = sqlite3.OperationalError("attempt to write a readonly database")
    assert str(engine.database_refused(store, refused)) == (
        f"the database {store.path('engine.db')} cannot be written: it is read-only"
    )
