"""All of Docker in one file: client, engine, and the images they need.

Read it like a building, ground first: a section uses only what stands above it.

GROUND      what everything stands on
    errors          what can go wrong; each class knows its HTTP status and exit code
    formats         text <-> values: sizes, durations, times, ids, references, JSON; pure, no I/O
    templates       Go templates and tables: the language of --format; pure
    wire            HTTP/1.1 heads, chunked, Docker's stream frames: bytes in, bytes out; pure
    files           atomic write, lock, descriptor-relative paths that cannot leave a root
    store           the SQLite database: schema, migrations, transactions; the data and run roots
    events          the journal of what happened; any process appends, any process follows
KERNEL      Linux as Python; has never heard of containers
    syscalls        libc and raw syscalls bound once; -1 becomes OSError
    namespaces      clone, unshare, setns, pinned namespace descriptors
    mounts          mount options, the mount API, overlay, pivot_root(2), mountinfo
    cgroups         one interface over v1, v2 and hybrid: create, limit, read, freeze, kill
    confine         capabilities, seccomp BPF, rlimits, no_new_privs
    terminals       pty pairs, window size, raw mode, passing descriptors
    netlink         links by hand: bring the loopback up
RUNTIME     an OCI configuration becomes a process
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
# files -- atomic write, lock, descriptor-relative paths that cannot leave a root
# =============================================================================
# Runs in: all roles.


# =============================================================================
# store -- the SQLite database: schema, migrations, transactions; the data and run roots
# =============================================================================
# Runs in: all roles.


# =============================================================================
# events -- the journal of what happened; any process appends, any process follows
# =============================================================================
# Runs in: all roles.


# =============================================================================
# syscalls -- libc and raw syscalls bound once; -1 becomes OSError
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
