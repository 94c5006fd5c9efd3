"""All of Docker in one file: client, engine, and the images they need.

Read it like a building, ground first: a section uses only what stands above it.

GROUND      what everything stands on
    errors          what can go wrong; each class knows its HTTP status and exit code
    formats         text <-> values: sizes, durations, times, ids, references, JSON; pure, no I/O
    templates       Go templates and tables: the language of --format; pure
    wire            HTTP/1.1 heads, chunked, Docker's stream frames: bytes in, bytes out; pure
    files           atomic write, locks, removing a tree, where the roots are
    store           the SQLite database: schema, migrations, transactions; the data and run roots
KERNEL      Linux as Python; has never heard of containers
    syscalls        libc and raw syscalls bound once; -1 becomes OSError
    paths           paths that cannot leave a root, and watching a directory
    namespaces      clone, unshare, setns, pinned namespace descriptors
    mounts          mount options, the mount API, overlay, pivot_root(2), mountinfo
    cgroups         one interface over v1, v2 and hybrid: create, limit, read, freeze, kill
    confine         capabilities, seccomp BPF, rlimits, no_new_privs
    terminals       pty pairs, window size, raw mode, passing descriptors
    netlink         links by hand: bring the loopback up
RUNTIME     an OCI configuration becomes a process
    events          the journal of what happened; any process appends, any process follows
    spec            Docker Config + HostConfig -> OCI config.json; pure
    launcher        the warm process: hello, fork by role, idle end; roles register by @role
    init            inside the container: from clone to execve
    runtime         from a start plan to a waiting init, and a second process beside it
    logs            log drivers: write, rotate, follow
CONTENT     bytes that have a digest
    archives        tar and compression as streams: read, write, whiteouts, hostile input
    blobs           content-addressed store: put, verify, get, collect
    layers          archive <-> directory, diff; overlay snapshots
    images          manifests, configs, tags, load, save, import, history, prune
    harvest         an image made of the host's own programs: ELF closure and data files
OBJECTS     the things users name
    records         containers as rows: names, state transitions by compare-and-set
    monitor         one watcher process per container: stdio, exec, wait, exit
    containers      create, start, exec, stop, attach, logs, top, diff, prune
    engine          wires the objects together; repair, info, version
DOORS       protocols coming in
    http            request, response, routes, hijack: the router that in-process callers use too
    api_system      Docker Engine API endpoints: ping, version, info, events
    api_images      Docker Engine API endpoints: images
    api_containers  Docker Engine API endpoints: containers and exec
HANDS       the user's side
    client          speaks the API: JSON, streams, hijack; in this process
    output          tables, progress, relative times, colours
    cli             the command line: commands, flags, help, errors, exit codes
    cli_containers  commands on containers
    cli_images      commands on images
    cli_system      version, info, events and the rest
    main            one program, five roles: cli, launcher, monitor, init, worker
"""

from __future__ import annotations

import errno
import os
import struct
import sys
import time

import _json
import _socket

TYPE_CHECKING = False           # importing typing costs 8 ms; type checkers see this as True
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

VERSION = "0.1.0"               # ours; shown as Platform and component detail
DOCKER_VERSION = "28.5.2"       # the Docker whose behaviour is followed
API_VERSION = "1.51"
API_VERSION_MIN = "1.24"


# =============================================================================
# errors -- what can go wrong; each class knows its HTTP status and exit code
# =============================================================================
# Runs in: all roles.
# One tree. A class is raised wherever the failure is understood and becomes a reply in one place,
# http_dispatch, which takes the status from the class. The CLI takes the exit code from the same
# object, so nobody parses text to find out what happened. The text itself is Docker's: clients
# match it.

class EngineError(Exception):
    """A failure with Docker's message; `status` is the HTTP status, `exit` the CLI's exit code."""

    status = 500
    exit = 1

    def __init__(self, message: str, exit: int | None = None) -> None:
        super().__init__(message)
        if exit is not None:
            self.exit = exit


class InvalidParameter(EngineError):
    """The request itself is wrong: 400."""

    status = 400


class Unauthorized(EngineError):
    """Credentials are missing or wrong: 401."""

    status = 401


class Forbidden(EngineError):
    """Understood, and not allowed: 403."""

    status = 403


class NotFound(EngineError):
    """What was named does not exist: 404."""

    status = 404


class Conflict(EngineError):
    """The object's state does not allow it: 409."""

    status = 409


class NotModified(EngineError):
    """It is already so (start of a running container): 304."""

    status = 304
    exit = 0


class Unsupported(EngineError):
    """This engine does not do that: 501."""

    status = 501


class Unavailable(EngineError):
    """Not now: 503."""

    status = 503


class CannotInvoke(InvalidParameter):
    """The container's command exists but cannot be executed: exit code 126."""

    exit = 126


class CommandNotFound(InvalidParameter):
    """The container's command does not exist: exit code 127."""

    exit = 127


ERRORS_BY_STATUS = {c.status: c for c in (
    EngineError, InvalidParameter, Unauthorized, Forbidden, NotFound, Conflict, NotModified,
    Unsupported, Unavailable)}


def error_for(status: int, message: str, exit: int | None = None) -> EngineError:
    """The error object for an HTTP status, as a client or a monitor's caller raises it again."""
    if exit == 127:
        return CommandNotFound(message)
    if exit == 126:
        return CannotInvoke(message)
    return ERRORS_BY_STATUS.get(status, EngineError)(message, exit)


class undo_on_error:
    """Context manager whose callbacks run, last first, only when the block raises.

    A callback's own failure never hides the first error; it is told on stderr.
    """

    __slots__ = ("_undo",)

    def __init__(self) -> None:
        self._undo: list = []

    def callback(self, function, *args) -> None:
        """Run `function(*args)` if the block fails later."""
        self._undo.append((function, args))

    def __enter__(self) -> undo_on_error:
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            return
        for function, args in reversed(self._undo):
            try:
                function(*args)
            except (OSError, EngineError) as failure:
                print(f"engine: undo {function.__name__}: {failure}", file=sys.stderr)


# =============================================================================
# formats -- text <-> values: sizes, durations, times, ids, references, JSON; pure, no I/O
# =============================================================================
# Runs in: all roles.


# =============================================================================
# templates -- Go templates and tables: the language of --format; pure
# =============================================================================
# Runs in: cli.


# =============================================================================
# wire -- HTTP/1.1 heads, chunked, Docker's stream frames: bytes in, bytes out; pure
# =============================================================================
# Runs in: all roles.


# =============================================================================
# files -- atomic write, locks, removing a tree, where the roots are
# =============================================================================
# Runs in: all roles.
# A file is replaced, never changed in place: written beside, (synced,) renamed. What must be
# durable says sync=True; the directory is then synced as well. A lock is flock(2) on a file of its
# own: it ends with the process that held it, however that process ended.

DATA_ROOT = "/var/lib/engine"
RUN_ROOT = "/run/engine"


def sha256(data: bytes = b""):
    """A SHA-256 object as hashlib's, without the 3 ms of importing hashlib."""
    try:
        from _sha256 import sha256 as new
    except ImportError:
        try:
            from _sha2 import sha256 as new
        except ImportError:
            from hashlib import sha256 as new
    return new(data)


def roots_find(data: str | None, run: str | None) -> tuple[str, str]:
    """(data root, run root) from the options, the environment or the defaults; absolute.

    Another data root gets a run root of its own, so two engines never meet. An ordinary user's
    are below XDG_DATA_HOME and XDG_RUNTIME_DIR.
    """
    env = os.environ.get
    default = DATA_ROOT
    base = RUN_ROOT
    if os.geteuid():
        home = env("HOME") or "/"
        default = (env("XDG_DATA_HOME") or home + "/.local/share") + "/engine"
        base = (env("XDG_RUNTIME_DIR") or f"/tmp/engine-{os.geteuid()}") + "/engine"
    data = os.path.realpath(data or env("ENGINE_DATA_ROOT") or default)
    run = run or env("ENGINE_RUN_ROOT")
    if not run:
        run = base
        if data != os.path.realpath(default):
            run += "/" + sha256(os.fsencode(data)).hexdigest()[:12]
    return data, os.path.realpath(run)


def file_read(path: str) -> bytes:
    """The whole content of a small file."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while True:
            part = os.read(fd, 65536)
            if not part:
                return b"".join(parts)
            parts.append(part)
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes) -> None:
    """Write every byte to a blocking descriptor; write(2) may take less than it was given."""
    done = os.write(fd, data)
    if done < len(data):
        view = memoryview(data)
        while done < len(data):
            done += os.write(fd, view[done:])


def file_write(path: str, data: bytes, mode: int = 0o644, sync: bool = False) -> None:
    """Replace a file: written beside it and renamed over it, so readers see old or new, never half.

    With `sync` the bytes and the name are on the disk on return. Raises OSError; nothing is left.
    """
    beside = f"{path}.{os.getpid()}.tmp"
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        try:
            os.fchmod(fd, mode)
            write_all(fd, data)
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(beside, path)
    except OSError:
        os.unlink(beside)
        raise
    if sync:
        dir_sync(os.path.dirname(path))


def dir_sync(path: str) -> None:
    """Make the names in a directory durable (fsync(2) on the directory)."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def dir_ensure(path: str, mode: int = 0o755) -> str:
    """Make a directory and what is missing above it; returns the path."""
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        pass
    except FileNotFoundError:
        dir_ensure(os.path.dirname(path), 0o755)
        return dir_ensure(path, mode)
    return path


class lock_file:
    """Context manager holding flock(2) on a file, made when missing.

    `shared` takes LOCK_SH. With block=False a lock that is taken raises BlockingIOError.
    The lock ends with its process, so a `kill -9` leaves none behind.
    """

    __slots__ = ("_path", "_how", "_fd")

    def __init__(self, path: str, block: bool = True, shared: bool = False) -> None:
        self._path = path
        self._how = (1 if shared else 2) | (0 if block else 4)     # LOCK_SH, LOCK_EX, LOCK_NB

    def __enter__(self) -> lock_file:
        import fcntl
        while True:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, self._how)
                # Whoever held it may have removed the file: then the lock is on a name nobody sees.
                try:
                    if os.stat(self._path).st_ino == os.fstat(fd).st_ino:
                        self._fd = fd
                        return self
                except FileNotFoundError:
                    pass
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def __exit__(self, *failure) -> None:
        os.close(self._fd)


def tree_remove(path: str) -> None:
    """Remove a file or a whole tree, whatever its modes; a path that is gone is fine.

    Walks by directory descriptors and never follows a link, so a tree that changes under it cannot
    lead it elsewhere.
    """
    parent, name = os.path.split(path.rstrip("/"))
    try:
        fd = os.open(parent or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        _tree_remove_at(fd, name)
    finally:
        os.close(fd)


def _tree_remove_at(parent: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=parent)
        return
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError) as refused:
        # unlink(2) of a directory: EISDIR on Linux, EPERM where POSIX is followed. EPERM of a
        # plain file (immutable) must travel.
        if not _is_dir_at(parent, name):
            raise refused
    try:
        os.rmdir(name, dir_fd=parent)
        return
    except FileNotFoundError:
        return
    except OSError as refused:
        if refused.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        for child in os.listdir(fd):
            _tree_remove_at(fd, child)
    finally:
        os.close(fd)
    try:
        os.rmdir(name, dir_fd=parent)
    except FileNotFoundError:
        pass


def _is_dir_at(parent: int, name: str) -> bool:
    from stat import S_ISDIR
    return S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)


# =============================================================================
# store -- the SQLite database: schema, migrations, transactions; the data and run roots
# =============================================================================
# Runs in: all roles.
# Metadata is in one SQLite database in WAL mode under the data root; bytes lie beside it. Any number
# of processes use it at once and none is special. What holds:
#   - bytes are durable before the row that names them is committed, and are deleted after it is gone;
#   - every write is one BEGIN IMMEDIATE; `durable` (synchronous=FULL) for what a user made, NORMAL
#     for what the kernel can tell again;
#   - a connection belongs to one process and one thread: it is looked up by both and is never closed,
#     as the last close costs a checkpoint with four syncs;
#   - migrations only add, since monitors of an older build go on writing.
# Documents (configurations) are JSON columns; what is filtered or changed alone is a column.
# Times are integers: nanoseconds since the epoch, 0 for never.

SCHEMA_VERSION = 1

SCHEMA = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE layers(
  n INTEGER PRIMARY KEY AUTOINCREMENT,
  chain_id TEXT NOT NULL UNIQUE,
  diff_id TEXT NOT NULL,
  parent INTEGER,
  blob TEXT NOT NULL,
  blob_size INTEGER NOT NULL,
  media_type TEXT NOT NULL,
  size INTEGER NOT NULL,
  created INTEGER NOT NULL);
CREATE TABLE images(
  id TEXT PRIMARY KEY,
  manifest TEXT NOT NULL,
  layer INTEGER,
  size INTEGER NOT NULL,
  created INTEGER NOT NULL,
  added INTEGER NOT NULL,
  config TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE tags(
  name TEXT PRIMARY KEY,
  image TEXT NOT NULL,
  updated INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX tags_image ON tags(image);
CREATE TABLE containers(
  id TEXT PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  image TEXT NOT NULL,
  state TEXT NOT NULL,
  created INTEGER NOT NULL,
  started INTEGER NOT NULL DEFAULT 0,
  finished INTEGER NOT NULL DEFAULT 0,
  pid INTEGER NOT NULL DEFAULT 0,
  exit_code INTEGER NOT NULL DEFAULT 0,
  oom_killed INTEGER NOT NULL DEFAULT 0,
  error TEXT NOT NULL DEFAULT '',
  health TEXT NOT NULL DEFAULT '',
  restarts INTEGER NOT NULL DEFAULT 0,
  stopped INTEGER NOT NULL DEFAULT 0,
  auto_remove INTEGER NOT NULL DEFAULT 0,
  owner TEXT NOT NULL DEFAULT '',
  boot_id TEXT NOT NULL DEFAULT '',
  config TEXT NOT NULL,
  host_config TEXT NOT NULL,
  document TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX containers_image ON containers(image);
"""
#: containers.state is one of created, starting, running, paused, exited, removing, dead.
#: `owner` is "pid start-time" of whoever moves a container through a passing state (starting,
#: removing), so that the next command can tell whether it still lives.

DATA_DIRS = ("blobs/sha256", "layers", "containers", "tmp")
RUN_DIRS = ("containers", "events", "locks")


def boot_id() -> str:
    """The kernel's name for this boot (random(4)): another one means that the machine restarted."""
    return file_read("/proc/sys/kernel/random/boot_id").decode().strip()


class Store:
    """The data root and the run root: rows, and paths below both.

    Opening is lazy: no directory is made and no database opened before it is needed. Raises
    EngineError where a root cannot be written or sqlite3 is missing.
    """

    __slots__ = ("data", "run", "_open")

    def __init__(self, data: str, run: str) -> None:
        self.data = data
        self.run = run
        self._open: dict = {}

    def path(self, *parts: str) -> str:
        """A path below the data root."""
        return "/".join((self.data,) + parts)

    def run_path(self, *parts: str) -> str:
        """A path below the run root."""
        return "/".join((self.run,) + parts)

    def lock(self, name: str, block: bool = True, shared: bool = False) -> lock_file:
        """A lock shared by all processes of this store; `name` is a plain file name."""
        dir_ensure(self.run_path("locks"), 0o700)
        return lock_file(self.run_path("locks", name), block, shared)

    def tmp_dir(self) -> str:
        """A new empty directory under the data root's tmp/, for what is half done."""
        path = self.path("tmp", os.urandom(8).hex())
        os.mkdir(path, 0o700)
        return path

    @property
    def db(self):
        """This process's and thread's connection (sqlite3.Connection in autocommit mode)."""
        from _thread import get_ident
        key = os.getpid(), get_ident()
        connection = self._open.get(key)
        if connection is None:
            connection = self._open[key] = _store_connect(self)
        return connection

    def rows(self, sql: str, *args) -> list:
        """All rows of a query as tuples."""
        return self.db.execute(sql, args).fetchall()

    def row(self, sql: str, *args):
        """The first row of a query as a tuple, or None."""
        return self.db.execute(sql, args).fetchone()

    def write(self, durable: bool = True) -> _Write:
        """Context manager: a connection inside one write transaction; commits unless it raises."""
        return _Write(self.db, durable)

    def roots_make(self) -> None:
        """Make both roots with their directories; EngineError when that is not allowed."""
        try:
            dir_ensure(self.data, 0o711)
            dir_ensure(self.run, 0o700)
            for name in DATA_DIRS:
                dir_ensure(self.path(name), 0o711)
            for name in RUN_DIRS:
                dir_ensure(self.run_path(name), 0o700)
        except OSError as refused:
            raise _store_refused(self, refused) from None


class _Write:
    __slots__ = ("_db", "_durable")

    def __init__(self, db, durable: bool) -> None:
        self._db = db
        self._durable = durable

    def __enter__(self):
        # PRAGMA synchronous is refused inside a transaction, so it comes first.
        self._db.execute("PRAGMA synchronous=" + ("FULL" if self._durable else "NORMAL"))
        self._db.execute("BEGIN IMMEDIATE")
        return self._db

    def __exit__(self, kind, failure, trace) -> None:
        if kind is None:
            try:
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
        elif self._db.in_transaction:
            self._db.execute("ROLLBACK")


def _store_refused(store: Store, refused: OSError) -> EngineError:
    where = refused.filename or store.data
    if refused.errno in (errno.EACCES, errno.EPERM) and os.geteuid():
        return EngineError(f"permission denied at {where}: run as root, or name roots of your own"
                           " with --data-root and --run-root")
    if refused.errno == errno.EROFS:
        return EngineError(f"{where} is on a read-only file system:"
                           " name a writable place with --data-root and --run-root")
    return EngineError(f"cannot use {where}: {refused.strerror}")


def sqlite_module():
    """The C part of sqlite3 (its Python part would import datetime); EngineError when missing."""
    try:
        import _sqlite3
    except ImportError:
        raise EngineError("this Python has no sqlite3 module, which the engine keeps its state in:"
                          " install it (Debian: libpython3-stdlib) or use another python3") from None
    return _sqlite3


def _store_connect(store: Store):
    sqlite = sqlite_module()
    path = store.path("engine.db")
    if not (os.path.exists(path) and os.path.isdir(store.run_path("locks"))):
        store.roots_make()
    try:
        db = sqlite.connect(path, timeout=60.0, isolation_level=None, check_same_thread=False)
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version < SCHEMA_VERSION:
            _store_create(db)
        elif version > SCHEMA_VERSION:
            raise EngineError(f"{path} was written by a newer engine (schema {version})")
        db.execute("PRAGMA cache_size=-256")
        _store_claim(store, db)
    except sqlite.Error as refused:
        raise _database_refused(store, path, refused) from None
    return db


def _database_refused(store: Store, path: str, refused: Exception) -> EngineError:
    text = str(refused)
    for needed in (path, store.data):
        if not os.access(needed, os.R_OK | os.W_OK):
            code = errno.EROFS if _is_read_only(store.data) else errno.EACCES
            return _store_refused(store, OSError(code, os.strerror(code), needed))
    if "disk is full" in text or "disk I/O" in text:
        return EngineError(f"no space left for the database at {path}: free some, then try again")
    if "malformed" in text or "not a database" in text:
        return EngineError(f"the database {path} is damaged ({text}): move it away to start anew")
    return EngineError(f"cannot use the database {path}: {text}")


def _is_read_only(path: str) -> bool:
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def _store_create(db) -> None:
    # WAL needs shared memory beside the file; where that is refused the old journal serves.
    if db.execute("PRAGMA journal_mode=WAL").fetchone()[0] != "wal":
        db.execute("PRAGMA journal_mode=TRUNCATE")
    db.execute("BEGIN IMMEDIATE")
    if db.execute("PRAGMA user_version").fetchone()[0] == 0:
        for statement in SCHEMA.split(";"):
            if statement.strip():
                db.execute(statement)
        db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
    db.execute("COMMIT")


def _store_claim(store: Store, db) -> None:
    """Note boot and run root in use; refuse a second run root while the first is alive."""
    mine = boot_id() + " " + store.run
    row = db.execute("SELECT value FROM meta WHERE key='run'").fetchone()
    if row and row[0] == mine:
        return
    if row:
        boot, _, run = row[0].partition(" ")
        if boot == boot_id() and _monitors_answer(db, run):
            raise EngineError(f"data root {store.data} is in use with run root {run}:"
                              f" it cannot be used with {store.run} at the same time")
    with _Write(db, True):
        db.execute("INSERT OR REPLACE INTO meta VALUES('run', ?)", (mine,))


def _monitors_answer(db, run: str) -> bool:
    query = "SELECT id FROM containers WHERE state IN ('starting','running','paused')"
    for (container,) in db.execute(query):
        sock = unix_connect(f"{run}/containers/{container}", "monitor.sock")
        if sock is not None:
            sock.close()
            return True
    return False


def unix_connect(directory: str, name: str, kind: int = _socket.SOCK_SEQPACKET):
    """A socket connected to directory/name, or None where nobody listens.

    Goes through /proc/self/fd, as a socket's path may be 107 bytes at most (unix(7)).
    """
    try:
        at = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    sock = _socket.socket(_socket.AF_UNIX, kind | _socket.SOCK_CLOEXEC)
    try:
        sock.connect(f"/proc/self/fd/{at}/{name}")
        return sock
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        return None
    finally:
        os.close(at)


def unix_listen(directory: str, name: str, kind: int = _socket.SOCK_SEQPACKET, mode: int = 0o600):
    """A listening socket at directory/name; one that is left there is replaced."""
    at = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            os.unlink(name, dir_fd=at)
        except FileNotFoundError:
            pass
        sock = _socket.socket(_socket.AF_UNIX, kind | _socket.SOCK_CLOEXEC)
        path = f"/proc/self/fd/{at}/{name}"
        sock.bind(path)
        os.chmod(path, mode)
        sock.listen(4096)
        return sock
    finally:
        os.close(at)



# =============================================================================
# syscalls -- libc and raw syscalls bound once; -1 becomes OSError
# =============================================================================
# Runs in: all roles.


# =============================================================================
# paths -- paths that cannot leave a root, and watching a directory
# =============================================================================
# Runs in: all roles.

# =============================================================================
# namespaces -- clone, unshare, setns, pinned namespace descriptors
# =============================================================================
# Runs in: launcher, monitor, init, worker.


# =============================================================================
# mounts -- mount options, the mount API, overlay, pivot_root(2), mountinfo
# =============================================================================
# Runs in: monitor, init, worker.


# =============================================================================
# cgroups -- one interface over v1, v2 and hybrid: create, limit, read, freeze, kill
# =============================================================================
# Runs in: launcher, monitor, init, api.


# =============================================================================
# confine -- capabilities, seccomp BPF, rlimits, no_new_privs
# =============================================================================
# Runs in: init.


# =============================================================================
# terminals -- pty pairs, window size, raw mode, passing descriptors
# =============================================================================
# Runs in: cli, monitor, init.


# =============================================================================
# netlink -- links by hand: bring the loopback up
# =============================================================================
# Runs in: init.


# =============================================================================
# events -- the journal of what happened; any process appends, any process follows
# =============================================================================
# Runs in: all roles.

# =============================================================================
# spec -- Docker Config + HostConfig -> OCI config.json; pure
# =============================================================================
# Runs in: api, cli.


# =============================================================================
# launcher -- the warm process: hello, fork by role, idle end; roles register by @role
# =============================================================================
# Runs in: launcher, and who asks it.


# =============================================================================
# init -- inside the container: from clone to execve
# =============================================================================
# Runs in: init.


# =============================================================================
# runtime -- from a start plan to a waiting init, and a second process beside it
# =============================================================================
# Runs in: monitor.


# =============================================================================
# logs -- log drivers: write, rotate, follow
# =============================================================================
# Runs in: monitor, api, cli.


# =============================================================================
# archives -- tar and compression as streams: read, write, whiteouts, hostile input
# =============================================================================
# Runs in: api, cli, worker.


# =============================================================================
# blobs -- content-addressed store: put, verify, get, collect
# =============================================================================
# Runs in: api, cli, worker.


# =============================================================================
# layers -- archive <-> directory, diff; overlay snapshots
# =============================================================================
# Runs in: api, cli, worker.


# =============================================================================
# images -- manifests, configs, tags, load, save, import, history, prune
# =============================================================================
# Runs in: api, cli.


# =============================================================================
# harvest -- an image made of the host's own programs: ELF closure and data files
# =============================================================================
# Runs in: api, cli.


# =============================================================================
# records -- containers as rows: names, state transitions by compare-and-set
# =============================================================================
# Runs in: api, cli, monitor.


# =============================================================================
# monitor -- one watcher process per container: stdio, exec, wait, exit
# =============================================================================
# Runs in: monitor, and who talks to it.


# =============================================================================
# containers -- create, start, exec, stop, attach, logs, top, diff, prune
# =============================================================================
# Runs in: api, cli.


# =============================================================================
# engine -- wires the objects together; repair, info, version
# =============================================================================
# Runs in: api, cli.


# =============================================================================
# http -- request, response, routes, hijack: the router that in-process callers use too
# =============================================================================
# Runs in: api, cli.   Refs: Docker Engine API 1.51, moby api/server/router, RFC 9110
#
# The model: an endpoint is a function (engine, request) -> value, registered with @route. What it
# returns tells the reply: a dict, list or str is JSON with 200, None is 204, a Response is itself, a
# Stream is sent piece by piece, HIJACKED means that somebody else writes to the connection now.
# What it raises is an EngineError, turned into {"message": text} here and nowhere else.
#
# Nothing here knows sockets. A door that has bytes (the daemon's listener) parses them into a
# Request and frames what comes back; a caller in this process makes the Request by hand, hands
# over Python values and gets Python values back: no JSON is written or parsed on that way.
#
# Matching: the path is split at "/", an optional version (/v1.41) comes off, and the rest is
# compared word by word. At most one parameter of a route, the first, may stand for several words, because
# image names have slashes. Of several matches the one with the most literal words wins, so
# /images/json is never an image called "json". There is no regular expression, nothing to compile.
#
# A hijack: the request carries a `connection` made by whoever received it. hijack() answers 101
# (or the old 200) and gives the bare socket away; take() gives it away with nothing written,
# together with the head that its next writer must send first.

#: (method, first word) -> [(words of the pattern, handler)], filled by @route at import.
ROUTES = {}
FALSE_WORDS = frozenset(("", "0", "no", "false", "none"))   # moby httputils.BoolValue
BODY_LIMIT = 16 * 1024 * 1024       # a JSON body; archives are read as streams and have no limit


class _Hijacked:
    __slots__ = ()


#: What a handler returns after it gave the connection away.
HIJACKED = _Hijacked()


class Body:
    """What a request carries: a value given by a caller in this process, or bytes from a reader."""

    __slots__ = ("reader", "value")

    def __init__(self, value: Any = None, reader: Any = None) -> None:
        self.value = value
        self.reader = reader

    def json(self, optional: bool = False) -> Any:
        """The JSON value; {} for an empty body if `optional`, else 400 as moby answers."""
        if self.value is None and self.reader is not None:
            text = self.reader.read(BODY_LIMIT + 1)
            if len(text) > BODY_LIMIT:
                raise InvalidParameter("request body is too large")
            if text.strip():
                try:
                    self.value = json_parse(text)
                except ValueError as exc:
                    raise InvalidParameter(f"invalid JSON: {exc}") from None
        if self.value is None:
            if optional:
                return {}
            raise InvalidParameter("invalid JSON: got EOF while reading request body")
        return self.value

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes of the body, b"" at its end."""
        return self.reader.read(size) if self.reader is not None else b""


class Request:
    """One call of the API, however it came in.

    `query` is {name: [values]}, `headers` {lower-case name: text}, `params` what the path's
    placeholders stand for, `version` the API version asked for ("1.51").
    """

    __slots__ = ("body", "connection", "headers", "method", "params", "path", "peer", "query",
                 "version")

    def __init__(self, method: str, path: str, *, query: dict | None = None,
                 headers: dict | None = None, body: Body | None = None,
                 connection: Any = None, peer: Any = None) -> None:
        self.method = method
        self.path = path
        self.query = query or {}
        self.headers = headers or {}
        self.body = body or Body()
        self.connection = connection
        self.peer = peer
        self.params: dict = {}
        self.version = API_VERSION

    def arg(self, name: str, default: str = "") -> str:
        """The first value of a query parameter."""
        values = self.query.get(name)
        return values[0] if values else default

    def flag(self, name: str, default: bool = False) -> bool:
        """A query parameter as a claim: anything but "", 0, no, false and none is true."""
        values = self.query.get(name)
        return values[0].strip().lower() not in FALSE_WORDS if values else default

    def number(self, name: str, default: int | None = None) -> int | None:
        """A query parameter as an integer; 400 when it is something else."""
        text = self.arg(name)
        if not text:
            return default
        try:
            return int(text)
        except ValueError:
            raise InvalidParameter(
                f'strconv.ParseInt: parsing "{text}": invalid syntax') from None

    def filters(self) -> dict:
        """The `filters` parameter as {key: [values]}; both encodings are read."""
        return filters_parse(self.arg("filters"))

    def hijack(self, content_type: str = "application/vnd.docker.raw-stream") -> tuple:
        """(socket, bytes already read): the client's connection, its reply head written.

        The handler passes the descriptor on and returns HIJACKED; the door closes its own copy,
        without shutdown.
        """
        if self.connection is None:
            raise InvalidParameter("unable to upgrade this connection")
        return self.connection.hijack(content_type)

    def take(self, content_type: str = "application/json") -> tuple:
        """(socket, head): the client's connection with nothing written to it.

        Who gets it writes `head` (empty for a caller in this process), then the body, and closes.
        """
        if self.connection is None:
            raise InvalidParameter("this connection cannot be given away")
        return self.connection.take(content_type)


class Response:
    """A whole reply: `value` is what JSON is made of, `body` bytes that are sent as they are."""

    __slots__ = ("body", "error", "headers", "status", "value")

    def __init__(self, status: int = 200, headers: dict | None = None, body: bytes = b"", *,
                 value: Any = None, error: EngineError | None = None) -> None:
        self.status = status
        self.headers = headers or {}
        self.body = body
        self.value = value
        self.error = error

    def data(self) -> bytes:
        """The bytes of the body, and the Content-Type set where the handler set none."""
        if self.value is None:
            return self.body
        self.headers.setdefault("Content-Type", "application/json")
        return json_text(self.value).encode("utf-8", "surrogateescape") + b"\n"


class Stream:
    """A reply that comes in pieces: an iterator of bytes, closed when the client leaves."""

    __slots__ = ("chunks", "content_type", "headers", "status")

    def __init__(self, chunks: Iterable[bytes], content_type: str = "application/json", *,
                 status: int = 200, headers: dict | None = None) -> None:
        self.chunks = chunks
        self.content_type = content_type
        self.status = status
        self.headers = headers or {}


def route(method: str, pattern: str) -> Callable:
    """Registers a handler: @route("GET", "/containers/{id}/json")."""
    words = tuple(pattern.strip("/").split("/"))

    def register(handler: Callable) -> Callable:
        ROUTES.setdefault((method, words[0]), []).append((words, handler))
        return handler
    return register


def _route_match(words: tuple, parts: list) -> dict | None:
    """The parameters when the pattern's words fit the path's parts; the first takes the surplus."""
    surplus = len(parts) - len(words)
    if surplus < 0:
        return None
    params, at = {}, 0
    for word in words:
        if word[0] == "{":
            span = 1 + surplus
            surplus = 0
            params[word[1:-1]] = "/".join(parts[at:at + span])
            at += span
        elif parts[at] == word:
            at += 1
        else:
            return None
    return params if surplus == 0 else None


def route_find(method: str, parts: list) -> tuple:
    """(handler, params) for the words of a path; 404 as moby answers when nothing fits."""
    best, found = -1, None
    for words, handler in ROUTES.get((method, parts[0]), ()):
        params = _route_match(words, parts)
        if params is not None and len(words) - len(params) > best:
            best, found = len(words) - len(params), (handler, params)
    if found is None:
        raise NotFound("page not found")
    return found


def version_tuple(text: str) -> tuple:
    """(1, 41) from "1.41"; what is not a number counts as 0."""
    return tuple(int(part) if part.isdigit() else 0 for part in text.split("."))


def _version_check(version: str) -> str:
    asked = version_tuple(version)
    if asked > version_tuple(API_VERSION):
        raise InvalidParameter(f"client version {version} is too new. "
                               f"Maximum supported API version is {API_VERSION}")
    if asked < version_tuple(API_VERSION_MIN):
        raise InvalidParameter(
            f"client version {version} is too old. Minimum supported API version is "
            f"{API_VERSION_MIN}, please upgrade your client to a newer version")
    return version


def _is_version(word: str) -> bool:
    return word[:1] == "v" and word[1:2].isdigit() and word[1:].replace(".", "").isdigit()


def target_parse(target: str) -> tuple:
    """(path, {name: [values]}) of a request target as it stands in an HTTP head."""
    path, _, query = target.partition("?")
    values: dict = {}
    for pair in query.split("&"):
        if pair:
            name, _, value = pair.replace("+", " ").partition("=")
            values.setdefault(percent_decode(name), []).append(percent_decode(value))
    return percent_decode(path), values


def percent_decode(text: str) -> str:
    """The text with its %XX replaced; what is not two hex digits stays as it is."""
    if "%" not in text:
        return text
    first, *rest = text.encode("utf-8", "surrogateescape").split(b"%")
    out = [first]
    for piece in rest:
        try:
            out.append(bytes.fromhex(piece[:2].decode("ascii")) if len(piece) > 1 else b"%")
            out.append(piece[2:] if len(piece) > 1 else piece)
        except ValueError:
            out.append(b"%" + piece)
    return b"".join(out).decode("utf-8", "surrogateescape")


def percent_encode(text: str, safe: str = "/") -> str:
    """The text as a part of a URL: all but letters, digits, -._~ and `safe` become %XX."""
    keep = frozenset(("-._~" + safe).encode())
    return "".join(chr(byte) if byte < 128 and (chr(byte).isalnum() or byte in keep)
                   else f"%{byte:02X}" for byte in text.encode("utf-8", "surrogateescape"))


def error_text(exc: BaseException) -> str:
    """One line for an exception that is no EngineError: the system's words and the path."""
    if isinstance(exc, OSError) and exc.strerror:
        text = exc.strerror[:1].lower() + exc.strerror[1:]
        return f"{exc.filename}: {text}" if exc.filename else text
    return " ".join(str(exc).split()) or type(exc).__name__


def _error_response(exc: Exception) -> Response:
    if not isinstance(exc, EngineError):
        if os.environ.get("ENGINE_DEBUG"):
            import traceback
            traceback.print_exc()
        known = isinstance(exc, OSError) or type(exc).__module__ == "sqlite3"
        text = error_text(exc) if known else f"{type(exc).__name__}: {error_text(exc)}"
        exc = EngineError(text)
    return Response(exc.status, value={"message": str(exc)}, error=exc)


def http_dispatch(engine: Any, request: Request) -> Any:
    """Runs the request's handler: a Response, a Stream or HIJACKED; it never raises an Exception."""
    try:
        parts = request.path.strip("/").split("/")
        if _is_version(parts[0]) and len(parts) > 1:
            request.version = _version_check(parts.pop(0)[1:])
        handler, request.params = route_find(request.method, parts)
        result = handler(engine, request)
    except Exception as exc:        # the one place where errors become replies
        return _error_response(exc)
    if result is None:
        return Response(204)
    if result is HIJACKED or isinstance(result, (Response, Stream)):
        return result
    return Response(200, value=result)


# =============================================================================
# api_system -- Docker Engine API endpoints: ping, version, info, events
# =============================================================================
# Runs in: api, cli.


# =============================================================================
# api_images -- Docker Engine API endpoints: images
# =============================================================================
# Runs in: api, cli.


# =============================================================================
# api_containers -- Docker Engine API endpoints: containers and exec
# =============================================================================
# Runs in: api, cli.


# =============================================================================
# client -- speaks the API: JSON, streams, hijack; in this process
# =============================================================================
# Runs in: cli.


# =============================================================================
# output -- tables, progress, relative times, colours
# =============================================================================
# Runs in: cli.


# =============================================================================
# cli -- the command line: commands, flags, help, errors, exit codes
# =============================================================================
# Runs in: cli.


# =============================================================================
# cli_containers -- commands on containers
# =============================================================================
# Runs in: cli.


# =============================================================================
# cli_images -- commands on images
# =============================================================================
# Runs in: cli.


# =============================================================================
# cli_system -- version, info, events and the rest
# =============================================================================
# Runs in: cli.


# =============================================================================
# main -- one program, five roles: cli, launcher, monitor, init, worker
# =============================================================================
# Runs in: all roles.
