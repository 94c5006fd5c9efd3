"""All of Docker in one file: client, engine, and the images they need.

Read it like a building, ground first: a section uses only what stands above it.

GROUND      what everything stands on
    errors          what can go wrong; each class knows its HTTP status and exit code
    formats         text <-> values: JSON, sizes, ids, names, signals; pure, no I/O
    times           instants and durations as Go writes and reads them; pure but for the clock
    references      image names, digests, platforms: Docker's grammar and error texts; pure
    options         key=value lists, environment files, filters, words of a command; pure
    printing        how Go prints values: %v, printf, names of types; pure
    grammar         Go templates as text: tokens and tree; pure
    templates       Go templates: the language of --format; pure
    tables          rows through a template, in columns: table, json and custom formats; pure
    notices         the daemon's log: one line each on stderr, as text or as JSON
    wire            HTTP/1.1 heads, chunked, Docker's stream frames: bytes in, bytes out; pure
    files           atomic write, locks, removing a tree, where the roots are
    store           the SQLite database: schema, migrations, transactions; the data and run roots
    configuration   what a daemon decided for every command: RUN/daemon.json, while it lives
KERNEL      Linux as Python; has never heard of containers
    syscalls        libc and raw syscalls bound once; -1 becomes OSError
    paths           paths that cannot leave a root, and watching a directory
    namespaces      clone, unshare, setns, pinned namespace descriptors
    mounts          mount options, the mount API, overlay, pivot_root(2), mountinfo
    devices         device rules of a cgroup: v1's lists, v2's BPF program
    cgroups         one interface over v1, v2 and hybrid: create, limit, read, freeze, kill
    confine         capabilities, resource limits, no_new_privs
    seccomp         system call filters: profiles, tables of numbers, programs
    terminals       pty pairs, window size, raw mode, passing descriptors
    netlink         links by hand: bring the loopback up
RUNTIME     an OCI configuration becomes a process
    events          the journal of what happened; any process appends, any process follows
    limits          resource limits of a HostConfig: Docker's checks, and what this host can keep
    settings        a create body at the door: types, defaults, Docker's checks, the image merge
    spec            Docker Config + HostConfig -> OCI config.json and the monitor's start plan; pure
    launcher        the warm process: hello, fork by role, idle end; roles register by @role
    init            inside the container: from clone to execve
    entering        a second process beside the first: from the host into a container
    runtime         from a start plan to a waiting init, and a second process beside it
    logs            log drivers: write, rotate, follow
CONTENT     bytes that have a digest
    compression     gzip, zstd, xz and bzip2 as streams, told apart by their first bytes
    archives        tar as streams: read and write, every dialect, hostile input
    trees           a tar becomes a directory and back, by descriptors: nothing leaves the root
    blobs           content-addressed store: put, verify, get, lease
    layers          one unpacked tree per chain id: registered once, in parallel, collected
    images          what is named: tags, list, inspect, history, remove, prune
    changes         lines of a Dockerfile that change an image's configuration: -c, --change
    images_archive  images as files: load, save, import
    harvest         an image made of the host's own programs: ELF closure and data files
OBJECTS     the things users name
    records         containers as rows: names, state transitions by compare-and-set
    stdio           a process's streams between pipes or a pty, a log, and attached clients
    monitor         one watcher process per container: stdio, exec, wait, exit
    processes       what `top` shows: ps without a ps, from /proc
    repair          what a process that died left half done, put in order by the next one
    views           a container as clients see it: inspect, lists and their filters
    containers      create, start, stop, kill, pause, remove, rename, prune, list, top, diff
    execs           second processes in a container, attach, wait and logs: what ends in a stream
    engine          wires the objects together; repair, info, version
DOORS       protocols coming in
    http            request, response, routes, hijack: the router that in-process callers use too
    api_system      Docker Engine API endpoints: ping, version, info, events
    api_absent      Docker Engine API endpoints that are not there: 501, no swarm, no plugins
    api_images      Docker Engine API endpoints: images
    api_containers  Docker Engine API endpoints: containers and exec
HANDS       the user's side
    client          speaks the API: JSON, streams, hijack; in this process
    output          tables, progress, relative times, colours
    flags           flag tables: kinds of values, pflag's parsing rules, API bodies from flags
    cli             the command line: commands, help, errors, exit codes
    cli_streams     the user's terminal and a container's streams: pump, signals, detach keys
    values          values of container flags: mounts, networks, devices, limits, ports
    cli_create      the flags of create and run, and the API body that they make
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
    import re
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
    from typing import Any, NoReturn

VERSION = "0.1.0"               # ours; shown as Platform and component detail
DOCKER_VERSION = "28.5.2"       # the Docker whose behaviour is followed
API_VERSION = "1.51"
API_VERSION_MIN = "1.24"
#: Names the build that this runs from, set by the archive's __main__; "" for the plain source.
BUILD_ID: str = getattr(sys.modules["__main__"], "BUILD_ID", "")
#: What tracebacks call this program.
PROGRAM = "engine.pyz" if BUILD_ID else "engine.py"


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
    from_engine = False     #: set by the client on what the API answered, for the words before it

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


# What each module of the standard library that a Python may lack is for.
MODULE_USES = {
    "_bz2": "to read bzip2", "_ctypes": "for system calls", "_json": "to read and write JSON",
    "_lzma": "to read xz", "_posixsubprocess": "to start programs", "_socket": "for sockets",
    "_struct": "to read binary formats", "fcntl": "for locks", "resource": "for limits",
    "select": "to wait for input", "termios": "for terminals", "zlib": "to read gzip",
}


def module_missing(failure: ImportError) -> EngineError:
    """The error that a failed import becomes: what this Python lacks and what needs it."""
    name = failure.name or ""
    if not name or name.partition(".")[0] == "engine":
        return EngineError(f"this Python lacks something that the engine needs: {failure}")
    use = MODULE_USES.get(name) or MODULE_USES.get("_" + name)
    needs = "the engine needs " + use if use else "the engine needs"
    return EngineError(f"this Python ({sys.executable}) has no module {name}, which {needs}:"
                       " use a complete Python")


class undo_on_error:
    """Context manager whose callbacks run, last first, only when the block raises.

    A callback's own failure never hides the first error; it is told on stderr.
    """

    __slots__ = ("_undo",)

    def __init__(self) -> None:
        self._undo: list = []

    def callback(self, function: Callable, *args) -> None:
        """Run `function(*args)` if the block fails later."""
        self._undo.append((function, args))

    def __enter__(self) -> undo_on_error:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            return
        for function, args in reversed(self._undo):
            try:
                function(*args)
            except (OSError, EngineError) as failure:
                print(f"engine: undo {function.__name__}: {failure}", file=sys.stderr)


# =============================================================================
# formats -- text <-> values: JSON, sizes, ids, names, signals; pure, no I/O
# =============================================================================
# Runs in: all roles.   Refs: RFC 8259, docker/go-units, signal(7)
#
# What is typed or shown is turned into values here, and back. Nothing is opened or written,
# and nothing is kept but compiled patterns and the two JSON machines (made at first use:
# they are the C parts of the json module, without its 8 ms of import).
#
# - A text that is wrong raises InvalidParameter with Docker's words, JSON raises ValueError.
# - JSON that comes in may be hostile: nesting and numbers are bounded before any C recursion,
#   which in a thread with a small stack would end the process.
# - Text in JSON stays UTF-8. Bytes that were no UTF-8 (os.fsdecode's surrogates) travel as
#   escapes, so that what one process of ours writes another reads back unchanged.

NESTING_MAX = 256
INT64_MAX = (1 << 63) - 1
SIZE_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB")
SIZE_UNITS_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB")
SIZE_SUFFIXES = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}
SIGRTMIN, SIGRTMAX = 34, 64     # as the C library numbers them; two below are its own

# fmt: off
SIGNALS = {
    "HUP": 1, "INT": 2, "QUIT": 3, "ILL": 4, "TRAP": 5, "ABRT": 6, "IOT": 6, "BUS": 7, "FPE": 8,
    "KILL": 9, "USR1": 10, "SEGV": 11, "USR2": 12, "PIPE": 13, "ALRM": 14, "TERM": 15,
    "STKFLT": 16, "CHLD": 17, "CLD": 17, "CONT": 18, "STOP": 19, "TSTP": 20, "TTIN": 21,
    "TTOU": 22, "URG": 23, "XCPU": 24, "XFSZ": 25, "VTALRM": 26, "PROF": 27, "WINCH": 28,
    "IO": 29, "POLL": 29, "PWR": 30, "SYS": 31,
}
# fmt: on

NAME_MOODS = (
    "able agile amber ample apt artful astute balmy bold brave breezy bright brisk calm candid"
    " careful cheery chipper civil clear clever cosy courtly crisp curious daring deft dapper"
    " eager earnest fair fearless fleet fond frank fresh gentle glad golden graceful grand hardy"
    " hearty honest humble jolly jovial keen kind lively loyal lucid mellow merry mighty mindful"
    " modest neat nimble noble patient placid plucky polite proud quick quiet radiant ready regal"
    " sage serene sharp silent sleek smooth snug solid spry steady stoic sunny sure swift tender"
    " tidy tranquil trusty upbeat valiant vivid warm wise witty zesty"
).split(" ")
NAME_PEOPLE = (
    "abel ampere archimedes babbage banach bernoulli bessel bohr boltzmann boole born bose braille"
    " cantor carnot cauchy cavendish celsius chebyshev clarke copernicus coulomb curie cuvier"
    " dalton darwin descartes dirac doppler edison einstein eratosthenes euclid euler faraday"
    " fermat fermi fibonacci fleming fourier franklin fresnel galileo galois galvani gauss germain"
    " gibbs godel goodall halley hamilton heisenberg helmholtz henry herschel hertz hilbert"
    " hipparchus hooke hopper hubble huygens hypatia jacobi jenner joule kelvin kepler kovalevskaya"
    " lagrange lamarr laplace lavoisier leibniz linnaeus lovelace mach maxwell meitner mendel"
    " mendeleev mercator napier newton nobel noether ohm pascal pasteur pauli perlman planck"
    " poincare ptolemy ramanujan riemann ritchie rontgen rutherford sagan schrodinger shannon"
    " siemens somerville tesla thales torricelli turing venn volta wallace watt wiener zeno"
).split(" ")


def pattern(text: str) -> re.Pattern[str]:
    """The compiled regular expression; compiled, and `re` imported, at its first use."""
    known = pattern.__dict__
    if text not in known:
        import re
        known[text] = re.compile(text)
    return known[text]


def quote(text: str) -> str:
    """The text in double quotes with Go's escapes, as %q prints it in Docker's messages."""
    return '"' + "".join(map(_quote_char, text)) + '"'


def _quote_char(char: str) -> str:
    if char in "\\\"":
        return "\\" + char
    if char.isprintable():
        return char
    if char in "\a\b\f\n\r\t\v":
        return "\\" + "abfnrtv"["\a\b\f\n\r\t\v".index(char)]
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:            # a byte that was no UTF-8, from os.fsdecode
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


# -- JSON ---------------------------------------------------------------------

def _json_int(text: str) -> int:
    """What int() of newer Pythons does by itself: a million digits would take minutes."""
    if len(text) > 4300:
        raise ValueError(f"number out of range: {text[:40]}")
    return int(text)


class _JsonRules:
    """What _json.make_scanner asks for: how to read what is neither text, list nor object."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_int: Callable[[str], int] = int if hasattr(sys, "set_int_max_str_digits") else _json_int

    @staticmethod
    def parse_float(text: str) -> float:
        number = float(text)
        if number - number != 0:            # 1e999 is infinite, and infinity is no JSON
            raise ValueError(f"number out of range: {text[:40]}")
        return number

    @staticmethod
    def parse_constant(text: str) -> None:
        raise ValueError(f"invalid number: {text}")


def _json_refuse(value: object) -> None:
    raise TypeError(f"no JSON for a value of type {type(value).__name__}")


def _json_encoder(escape: Callable[[str], str]) -> Callable[[object, int], tuple[str, ...]]:
    """The C encoder: no circle check (nesting ends it), no NaN, keys in the order given."""
    return _json.make_encoder(
        None, _json_refuse, escape, None, ":", ",", False, False, False)


def json_text(value: object) -> str:
    """The value as compact JSON, keys in their order, UTF-8 kept, always encodable as UTF-8.

    Raises ValueError for what JSON can't say (NaN, endless nesting), TypeError for other types.
    """
    machine = json_text.__dict__
    if not machine:
        machine["plain"] = _json_encoder(_json.encode_basestring)
        machine["escaped"] = _json_encoder(_json.encode_basestring_ascii)
    try:
        text = "".join(machine["plain"](value, 0))
        if not text.isascii():
            text.encode()
    except UnicodeEncodeError:
        return "".join(machine["escaped"](value, 0))
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None
    return text


def json_pretty(value: object, indent: str = "    ") -> str:
    """The value as indented JSON in the layout of Go's MarshalIndent (empty: `[]`, `{}`)."""
    out: list[str] = []
    _json_lay_out(value, indent, "\n", out)
    return "".join(out)


def _json_lay_out(value: object, indent: str, newline: str, out: list[str]) -> None:
    if not value or not isinstance(value, (dict, list, tuple)):
        out.append(json_text(value))
        return
    if len(newline) > NESTING_MAX * len(indent) + 1:
        raise ValueError("JSON is nested too deeply")
    is_object = isinstance(value, dict)
    inner = newline + indent
    lead = ("{" if is_object else "[") + inner
    for item in value:
        out.append(lead)
        if is_object:
            out.append(json_text({item: 0})[1:-3] + ": ")
        _json_lay_out(value[item] if is_object else item, indent, inner, out)
        lead = "," + inner
    out.append(newline + ("}" if is_object else "]"))


def json_parse(text: str | bytes) -> Any:
    """The value that the JSON text holds; ValueError when it is not exactly one JSON value."""
    if isinstance(text, (bytes, bytearray, memoryview)):
        try:
            text = bytes(text).decode()
        except UnicodeDecodeError as odd:
            raise ValueError(f"invalid UTF-8 at byte {odd.start}") from None
    machine = json_parse.__dict__
    if not machine:
        rules: Any = _JsonRules             # it reads attributes, and asks for no instance
        machine["scan"] = _json.make_scanner(rules)
    if text.count("[") + text.count("{") > NESTING_MAX:
        _json_nesting_check(text)
    text = text.strip(" \t\r\n")
    try:
        value, end = machine["scan"](text, 0)
    except StopIteration as error:
        raise ValueError(f"invalid JSON at character {error.value}") from None
    except ValueError as error:
        if "digits" not in str(error):      # int() of newer Pythons
            raise
        raise ValueError("number out of range") from None
    except (RecursionError, ImportError, SystemError):
        # Its own error class lives in a module that is not imported, or out of reach by now.
        raise ValueError("invalid JSON") from None
    if end != len(text):
        raise ValueError(f"invalid JSON: more text after the value, at character {end}")
    return value


def _json_nesting_check(text: str) -> None:
    """Raises ValueError when brackets nest deeper than NESTING_MAX; all loops are C loops."""
    bare = text.replace("\\\\", "").replace('\\"', "")
    marks = "".join(bare.split('"')[::2]).encode("ascii", "ignore")
    marks = marks.translate(None, bytes(set(range(256)) - set(b"[]{}")))
    for _ in range(NESTING_MAX):
        fewer = marks.replace(b"[]", b"").replace(b"{}", b"")
        if len(fewer) == len(marks):        # what is left has no partner: depth at most its length
            break
        marks = fewer
    else:
        fewer = marks * NESTING_MAX         # still not flat
    if len(fewer) > NESTING_MAX:
        raise ValueError("JSON is nested too deeply")


# -- sizes --------------------------------------------------------------------

def size_parse(text: str) -> int:
    """Bytes from "64m", "1.5 GiB", "512"; units are binary (go-units RAMInBytes)."""
    cut = max(map(text.rfind, "0123456789. "))
    if cut < 0:
        raise InvalidParameter(f"invalid size: '{text}'")
    number, suffix = (text[:cut] if text[cut] == " " else text[:cut + 1]), text[cut + 1:]
    size = _size_number(number)
    if size < 0:
        raise InvalidParameter(f"invalid size: '{text}'")
    unit = suffix.lower()
    if len(suffix) > 3 or unit[1:] not in ("", "b", "ib") or unit[:1] == "b" and unit != "b":
        raise InvalidParameter(f"invalid suffix: '{suffix if len(suffix) > 3 else unit}'")
    if unit and unit != "b":
        if unit[0] not in SIZE_SUFFIXES:
            raise InvalidParameter(f"invalid suffix: '{unit}'")
        size *= SIZE_SUFFIXES[unit[0]]
    if not size <= INT64_MAX:
        raise InvalidParameter(f"invalid size: '{text}'")
    return int(size)


def _size_number(text: str) -> float:
    """A decimal number; float() alone would take spaces, underscores, other scripts, `nan`."""
    if text.isascii() and not text.strip("0123456789.eE+-"):
        try:
            return float(text)
        except ValueError:
            pass
    raise InvalidParameter(f"strconv.ParseFloat: parsing {quote(text)}: invalid syntax")


def _size_text(size: float, base: float, units: tuple[str, ...]) -> str:
    step = 0
    while size >= base and step < len(units) - 1:
        size /= base
        step += 1
    return f"{size:.4g}{units[step]}"


def size_human(size: float) -> str:
    """"1.23MB": decimal units, four digits (go-units HumanSize)."""
    return _size_text(size, 1000.0, SIZE_UNITS)


def size_human_short(size: float) -> str:
    """"1.2MB": three digits, as image and container lists show sizes."""
    step = 0
    while size >= 1000.0 and step < len(SIZE_UNITS) - 1:
        size /= 1000.0
        step += 1
    return f"{size:.3g}{SIZE_UNITS[step]}"


def size_human_binary(size: float) -> str:
    """"1.5MiB": binary units, four digits (go-units BytesSize)."""
    return _size_text(size, 1024.0, SIZE_UNITS_BINARY)


# -- ids and names ------------------------------------------------------------

def id_new() -> str:
    """A new id: 64 hex digits, whose short form is never all digits (it would look like a pid)."""
    while True:
        identifier = os.urandom(32).hex()
        if not identifier[:12].isdigit():
            return identifier


def id_short(identifier: str) -> str:
    """The first 12 digits of an id or digest, without `sha256:`."""
    return identifier.split(":", 1)[-1][:12]


def is_hex(text: str) -> bool:
    """True for one or more lower-case hex digits."""
    return bool(text) and not text.strip("0123456789abcdef")


def name_random(taken: Callable[[str], bool] | None = None) -> str:
    """A name like "brave_turing" that `taken` does not know; with digits after some tries."""
    for attempt in range(64):
        draw = int.from_bytes(os.urandom(8), "little")
        draw, mood = divmod(draw, len(NAME_MOODS))
        draw, person = divmod(draw, len(NAME_PEOPLE))
        name = f"{NAME_MOODS[mood]}_{NAME_PEOPLE[person]}"
        if attempt > 3:
            name += str(draw % 10 ** (attempt // 4))
        if taken is None or not taken(name):
            return name
    raise EngineError("could not find a free container name")


# -- signals and ends ---------------------------------------------------------

def signal_number(text: str) -> int:
    """15 from "SIGTERM", "term" or "15"; also RTMIN+n and RTMAX-n. InvalidParameter otherwise."""
    name = text.upper()
    if name.startswith("SIG"):
        name = name[3:]
    number = SIGNALS.get(name, 0)
    if not number and text.isascii():
        base, offset = name[:5], name[5:]
        if text.isdigit():
            number = int(text[:4])
        elif base == "RTMIN" and (not offset or offset[0] == "+" and offset[1:].isdigit()):
            number = SIGRTMIN + int(offset[:4] or 0)
            number = number if number <= SIGRTMIN + 15 else 0
        elif base == "RTMAX" and (not offset or offset[0] == "-" and offset[1:].isdigit()):
            number = SIGRTMAX + int(offset[:4] or 0)
            number = number if number >= SIGRTMAX - 14 else 0
    if not 0 < number <= SIGRTMAX:
        raise InvalidParameter(f"invalid signal: {text}")
    return number


def signal_name(number: int) -> str:
    """"SIGTERM" from 15, "SIGRTMIN+1" from 35; the bare number where there is no name."""
    for name, known in SIGNALS.items():
        if known == number:
            return "SIG" + name
    if SIGRTMIN <= number <= SIGRTMAX:
        low = number - SIGRTMIN
        if low <= 15:
            return f"SIGRTMIN+{low}" if low else "SIGRTMIN"
        return f"SIGRTMAX-{SIGRTMAX - number}" if number < SIGRTMAX else "SIGRTMAX"
    return str(number)


# =============================================================================
# times -- instants and durations as Go writes and reads them; pure but for the clock
# =============================================================================
# Runs in: all roles.   Refs: RFC 3339, Go time.Duration, docker/go-units HumanDuration
#
# An instant is an int: nanoseconds since 1970 UTC. A duration is an int of nanoseconds too.
# "Never" is None and is written as Go's zero time. Local time counts only where a user typed a
# time without a zone, or where Docker shows local time (`CreatedAt` columns, `events`).
# The calendar is counted by hand: datetime costs an import and stops at microseconds.

SECOND = 1_000_000_000
TIME_ZERO = "0001-01-01T00:00:00Z"      # Go's zero time: "never"
TIME_ZERO_NS = -62_135_596_800 * SECOND
# fmt: off
DURATION_UNITS = {
    "ns": 1, "us": 10**3, "\u00b5s": 10**3, "\u03bcs": 10**3, "ms": 10**6,
    "s": SECOND, "m": 60 * SECOND, "h": 3600 * SECOND,
}
# fmt: on


def time_now() -> int:
    """Now, in ns since 1970."""
    return time.time_ns()


def time_rfc3339(ns: int | None) -> str:
    """"2026-11-24T01:02:03.5Z": UTC, no trailing zeros (RFC3339Nano); None is Go's zero time."""
    if ns is None:
        return TIME_ZERO
    text = time_fixed(ns)[:-1].rstrip("0")
    return (text[:-1] if text[-1] == "." else text) + "Z" if "." in text else text + "Z"


def time_fixed(ns: int) -> str:
    """"2026-11-24T01:02:03.500000000Z": UTC, always nine digits, as json-file logs write."""
    second, fraction = divmod(ns, SECOND)
    return f"{_time_fields(time.gmtime(second), 'T')}.{fraction:09d}Z"


def time_fixed_local(ns: int) -> str:
    """"2026-11-24T03:02:03.500000000+02:00": the local zone, nine digits, as `events` prints."""
    second, fraction = divmod(ns, SECOND)
    here = time.localtime(second)
    zone = _time_zone(here.tm_gmtoff, ":") if here.tm_gmtoff else "Z"
    return f"{_time_fields(here, 'T')}.{fraction:09d}{zone}"


def time_text_local(ns: int) -> str:
    """"2026-11-24 03:02:03 +0200 EET": as the `CreatedAt` columns show it."""
    here = time.localtime(ns // SECOND)
    return f"{_time_fields(here, ' ')} {_time_zone(here.tm_gmtoff, '')} {here.tm_zone}"


def _time_fields(at: time.struct_time, between: str) -> str:
    return (f"{at.tm_year:04d}-{at.tm_mon:02d}-{at.tm_mday:02d}{between}"
            f"{at.tm_hour:02d}:{at.tm_min:02d}:{at.tm_sec:02d}")


def _time_zone(offset: int, between: str) -> str:
    hours, minutes = divmod(abs(offset) // 60, 60)
    return f"{'-' if offset < 0 else '+'}{hours:02d}{between}{minutes:02d}"


def time_parse(text: str, now: int | None = None) -> int:
    """The ns since 1970 that a user meant; InvalidParameter if it is none of these.

    "2026-11-24", "2026-11-24T10", "...T10:00:00.5", each with or without "Z" or "+02:00";
    "1764000000.25" (Unix time); "10m" (that long before `now`, which defaults to the clock).
    """
    if text != "0":
        try:
            return (time_now() if now is None else now) - duration_parse(text)
        except InvalidParameter:
            pass
    if "-" in text[1:]:
        return _time_calendar(text)
    number, dot, fraction = text.partition(".")
    digits = number[1:] if number[:1] in ("-", "+") else number
    is_number = text.isascii() and digits.isdigit() and len(digits) < 12
    if not is_number or dot and not fraction.isdigit():
        raise InvalidParameter(f"failed to parse value as time or duration: {quote(text)}")
    return int(number) * SECOND + int((fraction + "0" * 9)[:9])


def _time_calendar(text: str) -> int:
    """ns since 1970 of an RFC 3339 text, whose time, seconds, fraction and zone may be left out."""
    found = pattern(
        r"(\d{4})-(\d\d)-(\d\d)(?:[Tt](\d\d)(?::(\d\d)(?::(\d\d)(?:[.,](\d+))?)?)?)?"
        r"(?:([Zz])|([+-]\d\d):(\d\d))?\Z").match(text) if text.isascii() else None
    if not found:
        raise InvalidParameter(f"parsing time {quote(text)}: not in the form 2006-01-02T15:04:05Z")
    year, month, day, hour, minute, second = (int(part or 0) for part in found.groups()[:6])
    if not (1 <= month <= 12 and 1 <= day <= _month_days(year, month)):
        raise InvalidParameter(f"parsing time {quote(text)}: day out of range")
    zone_hour, zone_minute = int(found[9] or 0), int(found[10] or 0)
    if hour > 23 or minute > 59 or second > 59 or abs(zone_hour) > 23 or zone_minute > 59:
        raise InvalidParameter(f"parsing time {quote(text)}: hour out of range")
    if found[8] or found[9]:
        east = zone_hour * 60 + (-zone_minute if (found[9] or "")[:1] == "-" else zone_minute)
        whole = (_day_number(year, month, day) * 1440 + hour * 60 + minute - east) * 60 + second
    else:
        whole = _time_local(text, (year, month, day, hour, minute, second, 0, 0, -1))
    return whole * SECOND + int(((found[7] or "") + "0" * 9)[:9])


def _time_local(text: str, fields: tuple[int, ...]) -> int:
    try:
        return int(time.mktime(fields))     # type: ignore[arg-type]  # nine ints, by its caller
    except (OverflowError, ValueError):
        raise InvalidParameter(f"parsing time {quote(text)}: year out of range") from None


def _month_days(year: int, month: int) -> int:
    if month == 2:
        return 29 if year % 4 == 0 and (year % 100 != 0 or year % 400 == 0) else 28
    return 30 if month in (4, 6, 9, 11) else 31


def _day_number(year: int, month: int, day: int) -> int:
    """Days since 1970-01-01 in the Gregorian calendar, with the year taken to start in March."""
    year -= month < 3
    return (year * 365 + year // 4 - year // 100 + year // 400
            + (153 * ((month + 9) % 12) + 2) // 5 + day - 719469)


def duration_parse(text: str) -> int:
    """ns from "1m30s", "1.5h", "-2ms", "0" (Go's ParseDuration, with its error texts)."""
    bad = f"time: invalid duration {quote(text)}"
    rest = text[1:] if text[:1] in ("-", "+") else text
    if rest == "0":
        return 0
    total = 0
    while True:
        number = rest[:len(rest) - len(rest.lstrip("0123456789."))]
        rest = rest[len(number):]
        whole, _, fraction = number.partition(".")
        if not (whole or fraction) or "." in fraction or len(number) > 40:
            raise InvalidParameter(bad)
        end = next((at for at, char in enumerate(rest) if char in "0123456789."), len(rest))
        unit, rest = rest[:end], rest[end:]
        if not unit:
            raise InvalidParameter(f"time: missing unit in duration {quote(text)}")
        scale = DURATION_UNITS.get(unit)
        if scale is None:
            raise InvalidParameter(
                f"time: unknown unit {quote(unit)} in duration {quote(text)}")
        total += int(whole or 0) * scale
        total += int(fraction or 0) * scale // 10 ** len(fraction)
        if total > INT64_MAX:
            raise InvalidParameter(bad)
        if not rest:
            return -total if text[0] == "-" else total


def duration_text(ns: int) -> str:
    """"1h0m0.5s", "1.5ms", "0s" (Go's Duration.String)."""
    if ns < 0:
        return "-" + duration_text(-ns)
    if ns < SECOND:
        if not ns:
            return "0s"
        unit = "ns" if ns < 10**3 else "\u00b5s" if ns < 10**6 else "ms"
        return _duration_number(ns, DURATION_UNITS[unit]) + unit
    minutes, rest = divmod(ns, 60 * SECOND)
    hours, minutes = divmod(minutes, 60)
    lead = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
    return lead + _duration_number(rest, SECOND) + "s"


def _duration_number(ns: int, scale: int) -> str:
    whole, rest = divmod(ns, scale)
    fraction = str(rest + scale)[1:].rstrip("0")
    return f"{whole}.{fraction}" if fraction else str(whole)


def ago(seconds: float) -> str:
    """"2 minutes", "About an hour", "Less than a second" (go-units HumanDuration)."""
    whole = int(seconds)
    minutes, hours = int(seconds / 60), int(seconds / 3600 + 0.5)
    if whole < 60:
        return ("Less than a second" if whole < 1 else "1 second" if whole == 1
                else f"{whole} seconds")
    if minutes < 60:
        return "About a minute" if minutes == 1 else f"{minutes} minutes"
    if hours < 48:
        return "About an hour" if hours == 1 else f"{hours} hours"
    if hours < 24 * 14:
        return f"{hours // 24} days"
    if hours < 24 * 60:
        return f"{hours // 24 // 7} weeks"
    if hours < 24 * 365 * 2:
        return f"{hours // 24 // 30} months"
    return f"{int(seconds / 3600) // 24 // 365} years"


def exit_text(code: int, seconds_ago: float) -> str:
    """"Exited (0) 2 minutes ago": how a list shows a container that has ended."""
    return f"Exited ({code}) {ago(seconds_ago)} ago"


# =============================================================================
# references -- image names, digests, platforms: Docker's grammar and error texts; pure
# =============================================================================
# Runs in: all roles.   Refs: distribution/reference, image-spec descriptor.md, containerd/platforms
#
# A Reference is (domain, path, tag, digest), fully named: "busybox" is docker.io and
# library/busybox. Tag and digest are "" when absent; reference_tagged adds ":latest".
# The grammar is checked by hand, since `run` would pay 4 ms for importing `re`; the tests hold
# it against the published expressions.
# One thing is refused that Docker lets through: a first part with a dot that is no host name.

DOMAIN_DEFAULT = "docker.io"
DOMAIN_LEGACY = "index.docker.io"
LOWER = "abcdefghijklmnopqrstuvwxyz"
DIGITS = "0123456789"
LETTERS = LOWER + LOWER.upper()
REFERENCE_INVALID = "invalid reference format"
DIGEST_HEX = {"sha256": 64, "sha384": 96, "sha512": 128}
SEPARATORS = str.maketrans(dict.fromkeys(LOWER + DIGITS, "0"))
# fmt: off
ARCHITECTURES = {           # as uname(2), Docker or people say it: (architecture, variant)
    "386": ("386", ""), "aarch64": ("arm64", ""), "amd64": ("amd64", ""), "arm": ("arm", "v7"),
    "arm64": ("arm64", ""), "armel": ("arm", "v6"), "armhf": ("arm", "v7"),
    "armv5tel": ("arm", "v5"), "armv6l": ("arm", "v6"), "armv7l": ("arm", "v7"),
    "armv8l": ("arm", "v7"), "i386": ("386", ""), "i486": ("386", ""), "i586": ("386", ""),
    "i686": ("386", ""), "loong64": ("loong64", ""), "loongarch64": ("loong64", ""),
    "mips64": ("mips64le", ""), "mips64le": ("mips64le", ""), "ppc64le": ("ppc64le", ""),
    "riscv64": ("riscv64", ""), "s390x": ("s390x", ""), "wasm": ("wasm", ""),
    "x86-64": ("amd64", ""), "x86_64": ("amd64", ""),
}
# fmt: on
SYSTEMS = ("aix android darwin dragonfly freebsd illumos ios js linux netbsd openbsd plan9"
           " solaris windows").split(" ")


class Reference(tuple):
    """(domain, path, tag, digest) of an image: ("docker.io", "library/busybox", "1", "")."""

    __slots__ = ()
    domain = property(lambda self: self[0])
    path = property(lambda self: self[1])
    tag = property(lambda self: self[2])
    digest = property(lambda self: self[3])

    def __new__(cls, domain: str, path: str, tag: str = "", digest: str = "") -> Reference:
        return tuple.__new__(cls, (domain, path, tag, digest))

    def __getnewargs__(self) -> tuple[str, ...]:
        return tuple(self)

    def __repr__(self) -> str:
        return "Reference({!r}, {!r}, {!r}, {!r})".format(*self)

    @property
    def name(self) -> str:
        """"docker.io/library/busybox": without tag and digest."""
        return f"{self[0]}/{self[1]}"

    @property
    def familiar_name(self) -> str:
        """"busybox": the shortest name that means the same, without tag and digest."""
        domain, path = self[0], self[1]
        if domain != DOMAIN_DEFAULT:
            return f"{domain}/{path}"
        short = path[len("library/"):] if path.startswith("library/") else "/"
        return path if "/" in short else short

    @property
    def familiar(self) -> str:
        """"busybox:1": what users are shown, with tag and digest where there are some."""
        return self.familiar_name + self._suffix()

    def _suffix(self) -> str:
        return (f":{self[2]}" if self[2] else "") + (f"@{self[3]}" if self[3] else "")


def reference_parse(text: str) -> Reference:
    """The Reference that a user's text names; InvalidParameter with Docker's words otherwise."""
    if len(text) == 64 and is_hex(text):
        raise InvalidParameter(f"invalid repository name ({text}),"
                               " cannot specify 64-byte hexadecimal strings")
    domain, rest = _domain_split(text)
    remote = rest.partition(":")[0]
    if remote.lower() != remote:
        raise InvalidParameter(f"{REFERENCE_INVALID}: repository name ({remote}) must be lowercase")
    name, at, digest = rest.partition("@")
    path, colon, tag = name.partition(":")
    if not (_is_domain(domain) and all(map(_is_path_component, path.split("/")))
            and (not colon or is_tag(tag)) and (not at or _is_digest_shape(digest))):
        raise InvalidParameter(REFERENCE_INVALID)
    if len(path) > 255:
        raise InvalidParameter("repository name must not be more than 255 characters")
    if digest:
        digest_check(digest)
    return Reference(domain, path, tag, digest)


def reference_familiar(ref: Reference) -> str:
    """"busybox:1": what users are shown."""
    return ref.familiar


def reference_full(ref: Reference) -> str:
    """"docker.io/library/busybox:1": nothing left out but what the reference lacks."""
    return ref.name + ref._suffix()


def reference_tagged(ref: Reference) -> Reference:
    """The reference, with the tag "latest" if it has neither tag nor digest."""
    return ref if ref.tag or ref.digest else Reference(ref.domain, ref.path, "latest")


def _domain_split(text: str) -> tuple[str, str]:
    """Domain and the rest: the first part is a domain if it cannot be a name's first part."""
    first, slash, rest = text.partition("/")
    if not slash:
        return DOMAIN_DEFAULT, "library/" + text
    is_domain = first == "localhost" or "." in first or ":" in first or first.lower() != first
    domain, remote = (first, rest) if is_domain else (DOMAIN_DEFAULT, text)
    if domain == DOMAIN_LEGACY:
        domain = DOMAIN_DEFAULT
    if domain == DOMAIN_DEFAULT and "/" not in remote:
        remote = "library/" + remote
    return domain, remote


def _is_domain(text: str) -> bool:
    if text[:1] == "[":
        host, bracket, port = text[1:].partition("]")
        is_host = bool(bracket and host) and not host.strip(DIGITS + "abcdefABCDEF:")
        colon, port = port[:1], port[1:]
        is_host = is_host and colon in ("", ":")
    else:
        host, colon, port = text.partition(":")
        is_host = all(map(_is_host_label, host.split(".")))
    return is_host and (not colon or bool(port) and not port.strip(DIGITS))


def _is_host_label(text: str) -> bool:
    return (bool(text) and not text.strip(LETTERS + DIGITS + "-")
            and text[0] != "-" and text[-1] != "-")


def _is_path_component(text: str) -> bool:
    """Lower-case letters and digits, held together by ".", "_", "__" or any number of "-"."""
    marks = text.translate(SEPARATORS)
    if marks[:1] != "0" or marks[-1] != "0":
        return False
    return all(not mark or mark in (".", "_", "__") or not mark.strip("-")
               for mark in marks.split("0"))


def is_tag(text: str) -> bool:
    """True for a tag: a letter, digit or "_", then up to 127 of these, "." and "-"."""
    return (0 < len(text) <= 128 and text[0] not in ".-"
            and not text.strip(LETTERS + DIGITS + "_.-"))


def _is_digest_shape(text: str) -> bool:
    algorithm, _, encoded = text.partition(":")
    for mark in "-_.":
        algorithm = algorithm.replace(mark, "+")
    return (len(encoded) >= 32 and not encoded.strip(DIGITS + "abcdefABCDEF")
            and all(part[:1] in LETTERS and part and not part.strip(LETTERS + DIGITS)
                    for part in algorithm.split("+")))


def digest_check(text: str) -> str:
    """The digest itself, "sha256:<64 hex>"; InvalidParameter when it is not a sound one."""
    algorithm, colon, encoded = text.partition(":")
    if not colon or not algorithm or not encoded or not encoded.isascii() or "/" in text:
        raise InvalidParameter("invalid checksum digest format")
    if algorithm not in DIGEST_HEX:
        raise InvalidParameter("unsupported digest algorithm")
    if len(encoded) != DIGEST_HEX[algorithm]:
        raise InvalidParameter("invalid checksum digest length")
    if not is_hex(encoded):
        raise InvalidParameter("invalid checksum digest format")
    return text


# -- platforms ----------------------------------------------------------------

def platform_host() -> dict[str, str]:
    """This machine as {"os": "linux", "architecture": "arm64", "variant": ""}."""
    machine = os.uname().machine
    architecture, variant = ARCHITECTURES.get(machine, (machine, ""))
    return {"os": "linux", "architecture": architecture, "variant": variant}


# What each level of amd64 has more than the one before (psABI), as /proc/cpuinfo names it.
AMD64_LEVELS = (
    ("v2", "cx16 lahf_lm popcnt sse4_1 sse4_2 ssse3"),
    ("v3", "abm avx avx2 bmi1 bmi2 f16c fma movbe xsave"),
    ("v4", "avx512bw avx512cd avx512dq avx512f avx512vl"),
)


def amd64_variant(cpuinfo: str) -> str:
    """"v1" to "v4": the level of a processor, from the text of /proc/cpuinfo."""
    flags: set = set()
    for line in cpuinfo.split("\n"):
        if line.startswith("flags"):
            flags.update(line.partition(":")[2].split())
            break
    level = "v1"
    for name, needed in AMD64_LEVELS:
        if not flags.issuperset(needed.split()):
            break
        level = name
    return level


def platform_parse(text: str) -> dict[str, str]:
    """{"os", "architecture", "variant"} of "linux/arm64/v8", "arm64" or "linux"."""
    parts = text.split("/")
    for part in parts:
        if not part or part.strip(LETTERS + DIGITS + "_.-") or not part.isascii():
            raise InvalidParameter(
                f"{quote(part)} is an invalid component of {quote(text)}: platform specifier"
                ' component must match "^[A-Za-z0-9_.-]+$": invalid argument')
    if len(parts) > 3:
        raise InvalidParameter(f"{quote(text)}: cannot parse platform specifier: invalid argument")
    system = "darwin" if parts[0].lower() == "macos" else parts[0].lower()
    if len(parts) == 1:
        if system in SYSTEMS:
            return dict(platform_host(), os=system)
        if system not in ARCHITECTURES:
            raise InvalidParameter(
                f"{quote(text)}: unknown operating system or architecture: invalid argument")
        system, parts = "linux", ["linux", *parts]
    architecture, variant = _platform_machine(parts[1].lower(), "".join(parts[2:]).lower())
    return {"os": system, "architecture": architecture, "variant": variant}


def _platform_machine(name: str, variant: str) -> tuple[str, str]:
    """One spelling for each: ("amd64", "v1") is ("amd64", ""), ("arm64", "8") is ("arm64", "")."""
    architecture, usual = ARCHITECTURES.get(name, (name, ""))
    if name in ("armhf", "armel"):
        variant = ""
    if variant[:1].isdigit():
        variant = "v" + variant
    if (architecture, variant) in (("amd64", "v1"), ("arm64", "v8"), ("arm64", "v8.0")):
        variant = ""
    return architecture, variant or usual


def platform_text(platform: dict[str, str]) -> str:
    """"linux/arm/v7" of a platform."""
    parts = (platform.get("os"), platform.get("architecture"), platform.get("variant"))
    return "/".join(part for part in parts if part) if parts[0] else "unknown"


# =============================================================================
# options -- key=value lists, environment files, filters, words of a command; pure
# =============================================================================
# Runs in: cli, api.   Refs: docker/cli opts, moby filters, Dockerfile reference
#
# The small languages of flags and query parameters. Files are read by the caller: here they are
# text. Filters are {key: [values]} with at least one value each; the values of one key are
# alternatives, except labels, which must all hold.

WORD_QUOTES = {"'": "single", '"': "double"}
SHELL = ("/bin/sh", "-c")


def key_values(texts: Iterable[str]) -> dict[str, str]:
    """{"a": "1", "b": ""} of ["a=1", "b"]; the last one wins."""
    return {text.partition("=")[0]: text.partition("=")[2] for text in texts}


def label_check(text: str) -> str:
    """The label itself; InvalidParameter when its name is empty or has white space inside."""
    key = text.partition("=")[0].lstrip(" \t")
    if not key:
        raise InvalidParameter(f"invalid label '{text}': empty name")
    if " " in key or "\t" in key:
        raise InvalidParameter(f"label '{key}' contains whitespaces")
    return text


def env_check(text: str, environ: Mapping[str, str]) -> str:
    """"A=1" as it is; "A" with its value from `environ`, or bare (meaning: unset it)."""
    name, equals, _ = text.partition("=")
    if not name:
        raise InvalidParameter(f"invalid environment variable: {text}")
    return text if equals or name not in environ else f"{name}={environ[name]}"


def env_merge(base: Iterable[str], changes: Iterable[str]) -> list[str]:
    """The base list with the changes laid over it, in place; a bare "A" takes A away."""
    merged = {text.partition("=")[0]: text for text in base}
    for text in changes:
        name, equals, _ = text.partition("=")
        if equals:
            merged[name] = text
        else:
            merged.pop(name, None)
    return list(merged.values())


def env_file_parse(text: str | bytes, environ: Mapping[str, str] | None = None) -> list[str]:
    """["A=1", ...] of an environment or label file: a pair a line, "#" comments.

    A line without "=" takes its value from `environ`, and is dropped if that lacks it. White space
    before a name is dropped, after the "=" it belongs to the value. Errors are InvalidParameter.
    """
    data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    found = []
    for number, raw in enumerate(data.split(b"\n"), 1):
        raw = raw[:-1] if raw.endswith(b"\r") else raw
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").lstrip()
        except UnicodeDecodeError:
            raise InvalidParameter(
                f"invalid utf8 bytes at line {number}: [{' '.join(map(str, raw))}]") from None
        if not line or line[0] == "#":
            continue
        name, equals, _ = line.partition("=")
        if not name:
            raise InvalidParameter(f"no variable name on line '{line}'")
        if " " in name or "\t" in name:
            raise InvalidParameter(f"variable '{name}' contains whitespaces")
        if equals:
            found.append(line)
        elif environ and name in environ:
            found.append(f"{name}={environ[name]}")
    return found


# -- filters ------------------------------------------------------------------

def filters_parse(text: str) -> dict[str, list[str]]:
    """{"label": ["a=1"]} of the `filters` query parameter, in both of its encodings.

    New: {"label": {"a=1": true}}, old: {"label": ["a=1"]}. Raises InvalidParameter.
    """
    if not text:
        return {}
    try:
        found = json_parse(text)
    except ValueError:
        raise InvalidParameter("invalid filter") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise InvalidParameter("invalid filter")
    return {key: _filter_values(values) for key, values in found.items()}


def _filter_values(values: object) -> list[str]:
    if values is None:
        return []
    if isinstance(values, dict) and all(isinstance(wanted, bool) for wanted in values.values()):
        return [value for value, wanted in values.items() if wanted]
    if isinstance(values, list) and all(isinstance(value, str) for value in values):
        return list(dict.fromkeys(values))
    raise InvalidParameter("invalid filter")


def filters_check(filters: dict[str, list[str]], accepted: Iterable[str]) -> None:
    """Raises InvalidParameter "invalid filter 'x'" for a key that is not accepted."""
    for key in filters:
        if key not in accepted:
            raise InvalidParameter(f"invalid filter '{key}'")


def filter_bool(filters: dict[str, list[str]], key: str, default: bool) -> bool:
    """The truth that a filter like `dangling=true` asks for; `default` when it is absent."""
    if key not in filters:
        return default
    values = filters[key]
    is_true, is_false = ("1" in values or "true" in values), ("0" in values or "false" in values)
    if is_true == is_false:
        shown = f"={' '.join(values)}".replace("=", "=[", 1) + "]" if values else ""
        raise InvalidParameter(f"invalid filter '{key}{shown}'")
    return is_true


def filter_exact(filters: dict[str, list[str]], key: str, value: str) -> bool:
    """True when no value of the filter is given or one equals `value`."""
    wanted = filters.get(key)
    return not wanted or value in wanted


def filter_prefix(filters: dict[str, list[str]], key: str, value: str) -> bool:
    """True when no value of the filter is given or `value` starts with one (as for `id`)."""
    wanted = filters.get(key)
    return not wanted or any(map(value.startswith, wanted))


def filter_match(filters: dict[str, list[str]], key: str, value: str) -> bool:
    """True when no value of the filter is given or one is, as an expression, found in `value`."""
    wanted = filters.get(key)
    return not wanted or value in wanted or any(_filter_found(text, value) for text in wanted)


def _filter_found(text: str, value: str) -> bool:
    if text.isalnum():                      # the usual case; spares the import of `re`
        return text in value
    import re
    try:
        return re.search(text, value) is not None
    except (re.error, RecursionError, OverflowError):
        return False


def filter_labels(filters: dict[str, list[str]], labels: Mapping[str, str] | None,
                  key: str = "label") -> bool:
    """True when every "name" or "name=value" of the filter holds in `labels`."""
    for text in filters.get(key) or ():
        name, equals, value = text.partition("=")
        if not labels or name not in labels or equals and labels[name] != value:
            return False
    return True


# -- words --------------------------------------------------------------------

def command_parse(text: str) -> tuple[list[str], bool]:
    """The words of a Dockerfile's CMD or ENTRYPOINT and whether it was its shell form.

    '["a", "b"]' is (["a", "b"], False), 'a b' is (["/bin/sh", "-c", "a b"], True), '' is
    ([], True). InvalidParameter for an array that holds anything but texts.
    """
    text = text.strip()
    if text[:1] == "[":
        try:
            words = json_parse(text)
        except ValueError:
            words = None
        if isinstance(words, list):
            if not all(isinstance(word, str) for word in words):
                raise InvalidParameter(
                    "when using JSON array syntax, arrays must be comprised of strings only")
            return words, False
    return ([*SHELL, text] if text else []), True


def shell_split(text: str, env: Mapping[str, str] | None = None) -> list[str]:
    """The words of a line, without their quotes: 'a="b c" d' is ["a=b c", "d"].

    A backslash takes the next character as it is; within double quotes only before one of "$\\.
    With `env`, $A, ${A}, ${A:-else}, ${A:+then} are replaced, except within single quotes.
    Raises InvalidParameter when a quote or brace is left open.
    """
    words: list[str] = []
    word: list[str] | None = None
    quoted, at = "", 0
    while at < len(text):
        char, at = text[at], at + 1
        if not quoted and char in " \t\r\n":
            if word is not None:
                words.append("".join(word))
            word = None
            continue
        word = [] if word is None else word
        if char == quoted:
            quoted = ""
        elif not quoted and char in WORD_QUOTES:
            quoted = char
        elif char == "\\" and quoted != "'":
            at = _word_escape(text, at, quoted, word)
        elif char == "$" and quoted != "'" and env is not None:
            at = _word_expand(text, at, env, word)
        else:
            word.append(char)
    if quoted:
        raise InvalidParameter("unexpected end of statement while looking for matching"
                               f" {WORD_QUOTES[quoted]}-quote")
    return words if word is None else [*words, "".join(word)]


def _word_escape(text: str, at: int, quoted: str, word: list[str]) -> int:
    following = text[at:at + 1]
    if quoted and following not in ('"', "$", "\\"):
        following = "\\" + following
    word.append(following or "\\")
    return at + 1


def _word_expand(text: str, at: int, env: Mapping[str, str], word: list[str]) -> int:
    """Appends the value of the variable at text[at:], just after its "$"; returns what follows."""
    has_brace = text[at:at + 1] == "{"
    start = end = at + has_brace
    while end < len(text) and (text[end] == "_" or text[end].isascii() and text[end].isalnum()):
        end += 1
    name = text[start:end]
    if not has_brace:
        word.append(env.get(name, "") if name else "$")
        return end
    close = text.find("}", end)
    if close < 0 or not name:
        raise InvalidParameter("syntax error: missing or empty name in ${}" if close >= 0 else
                               "unexpected end of statement while looking for matching }")
    value, operator, other = env.get(name, ""), text[end:close][:2], text[end + 2:close]
    if operator in ("", ":-"):
        word.append(value or other)
    elif operator == ":+":
        word.append(other if value else "")
    else:
        raise InvalidParameter(f"unsupported modifier ({operator}) in substitution")
    return close + 1


# =============================================================================
# printing -- how Go prints values: %v, printf, names of types; pure
# =============================================================================
# Runs in: cli.   Refs: Go fmt, docker/cli templates
#
# Templates work on plain JSON values: dict, list, str, int, float, bool, None, and callables,
# which stand for methods. Docker works on typed Go values, which differ where users see it:
#
# - A Go struct prints as {a b} and complains about an unknown field, a map prints as map[k:v] and
#   has no value for an unknown key. A dict counts as a map if the name of its field says so
#   (MAP_FIELDS) or if some key is no exported Go name; an empty dict is a map.
# - null is a nil map, nil slice or nil pointer, by the name of its field; each prints its own way.
#   Such a null becomes a Nil once it leaves its dict. NO_VALUE is the absence of anything.
# - Fields that Docker leaves out of its JSON when they are unset still exist in its structs, so
#   that {{if .State.Health}} works: UNSET_FIELDS.
# - Go strings are bytes: lengths and slices count UTF-8, what is cut apart stays as surrogates.


class MapValue(dict):
    """A dict that is certainly a Go map, whatever its keys look like.

    `.empty` is how an item with nothing in it prints, where the type of the items is known.
    """

    __slots__ = ("empty",)
    empty: str


class Nil:
    """One of Go's nils, with the text that it prints as. It is false."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def __bool__(self) -> bool:
        return False


NO_VALUE = Nil("<no value>")
NIL = Nil("<nil>")
NIL_MAP = Nil("map[]")
NIL_LIST = Nil("[]")

MAP_FIELDS = frozenset((
    "Annotations Attributes AuxiliaryAddresses Containers DriverOpts Endpoints"
    " EndpointsConfig ExposedPorts GenericResources IndexConfigs Labels Networks Options"
    " PortBindings Ports Runtimes StorageOpt Sysctls Tmpfs Volumes"
).split(" "))
LIST_FIELDS = frozenset((
    "Aliases Args BindMounts Binds BlkioDeviceReadBps BlkioDeviceReadIOps BlkioDeviceWriteBps"
    " BlkioDeviceWriteIOps BlkioWeightDevice CapAdd CapDrop Cmd DNSNames DeviceCgroupRules"
    " DeviceRequests Devices Dns DnsOptions DnsSearch Entrypoint Env ExecIDs ExtraHosts GroupAdd"
    " Layers LinkLocalIPs Links Log MaskedPaths Mounts OnBuild ReadonlyPaths RepoDigests RepoTags"
    " SecondaryIPAddresses SecondaryIPv6Addresses SecurityOpt SecurityOptions Shell Test Ulimits"
    " VolumesFrom Warnings"
).split(" "))
#: Maps whose items are lists, or structs without a field, also where a null or {} stands for them.
MAP_ITEMS_EMPTY = {"ExposedPorts": "{}", "PortBindings": "[]", "Ports": "[]", "Volumes": "{}"}
#: Left out of JSON when unset; in Docker's structs they are there all the same.
UNSET_FIELDS = {
    "Annotations": NIL_MAP, "ArgsEscaped": False, "Comment": "", "Created": "",
    "ExposedPorts": NIL_MAP, "GraphDriver": NIL, "Health": NIL, "Healthcheck": NIL,
    "HostConfig": NIL, "ImageManifestDescriptor": NIL, "LastTagTime": "", "MacAddress": "",
    "Manifests": NIL_LIST, "NetworkDisabled": False, "OnBuild": NIL_LIST, "OsVersion": "",
    "Shell": NIL_LIST, "SizeRootFs": NIL, "SizeRw": NIL, "StopSignal": "", "StopTimeout": NIL,
    "Storage": NIL, "StorageOpt": NIL_MAP, "Sysctls": NIL_MAP, "Tmpfs": NIL_MAP, "Variant": "",
    "VirtualSize": 0,
}
INT_VERBS = {"b": "b", "d": "d", "o": "o", "x": "x", "X": "X"}
ESCAPES_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&#34;", "'": "&#39;", "\0": "\ufffd"}
ESCAPES_JS = {"\\": "\\\\", "'": "\\'", '"': '\\"', "<": "\\u003C", ">": "\\u003E",
              "&": "\\u0026", "=": "\\u003D"}


def is_map(value: dict[str, Any]) -> bool:
    """True when a dict stands for a Go map, not for a struct."""
    if isinstance(value, MapValue) or not value:
        return True
    return not all(isinstance(key, str) and "A" <= key[:1] <= "Z" and key.isascii()
                   and key.isalnum() for key in value)


def field_value(name: str, value: Any) -> Any:
    """The value as the field of that name holds it: nulls become Nils, known maps MapValues."""
    if value is None:
        return NIL_MAP if name in MAP_FIELDS else NIL_LIST if name in LIST_FIELDS else NIL
    if name in MAP_FIELDS and isinstance(value, dict):
        value = MapValue(value)
        if name in MAP_ITEMS_EMPTY:
            value.empty = MAP_ITEMS_EMPTY[name]
    return value


def go_text(value: Any, style: str = "v") -> str:
    """The value as Go's %v prints it; as %+v or %#v with style "+v" or "#v"."""
    if isinstance(value, str):
        return quote(value) if style == "#v" else value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return _float_text(value, "g", -1)
    if isinstance(value, Nil):
        return value.text if style != "#v" or value is NO_VALUE else "<nil>"
    if isinstance(value, dict):
        return _dict_text(value, style)
    if isinstance(value, (list, tuple)):
        texts = [go_text(item, style) for item in value]
        return "[]interface {}{" + ", ".join(texts) + "}" if style == "#v" else (
            "[" + " ".join(texts) + "]")
    return "<nil>" if value is None else str(value)


def _dict_text(value: dict[str, Any], style: str) -> str:
    value = value if isinstance(value, MapValue) else {
        key: item for key, item in value.items() if not callable(item)}
    if is_map(value):
        empty = getattr(value, "empty", "")
        pairs = [(key, empty if empty and not value[key] else go_text(value[key], style))
                 for key in sorted(value)]
        if style == "#v":
            inner = ", ".join(f"{quote(key)}:{text}" for key, text in pairs)
            return f"map[string]interface {{}}{{{inner}}}"
        return "map[" + " ".join(f"{key}:{text}" for key, text in pairs) + "]"
    texts = [(key, go_text(field_value(key, item), style)) for key, item in value.items()]
    if style == "v":
        return "{" + " ".join(text for _, text in texts) + "}"
    return "{" + (", " if style == "#v" else " ").join(f"{key}:{text}" for key, text in texts) + "}"


def go_type(value: Any) -> str:
    """The name of the value's type, as Go's error texts tell it."""
    for kind, name in ((str, "string"), (bool, "bool"), (int, "int"), (float, "float64"),
                       (dict, "map[string]interface {}"), (list, "[]interface {}")):
        if isinstance(value, kind):
            return name
    return {NIL_MAP: "map[string]interface {}", NIL_LIST: "[]interface {}"}.get(value, "<nil>")


def go_bytes(text: str) -> bytes:
    """The bytes of a Go string."""
    return text.encode("utf-8", "surrogateescape")


def go_string(data: bytes) -> str:
    """The string of these bytes; halves of characters survive as surrogates."""
    return data.decode("utf-8", "surrogateescape")


def go_print(values: Iterable[Any]) -> str:
    """Values side by side, with a space between two that are no strings (Go's Sprint)."""
    out, was_text = "", True
    for at, value in enumerate(values):
        is_text = isinstance(value, str)
        out += (" " if at and not is_text and not was_text else "") + go_text(value)
        was_text = is_text
    return out


def go_printf(form: str, values: list[Any]) -> str:
    """The format with its verbs filled in (Go's Sprintf, with its %!d(string=x) complaints)."""
    out, at, used = [], 0, 0
    while True:
        cut = form.find("%", at)
        if cut < 0:
            out.append(form[at:])
            break
        out.append(form[at:cut])
        flags, width, precision, verb, at, used, complaint = _verb_parse(
            form, cut + 1, values, used)
        out.append(complaint)
        if not verb:
            out.append("%!(NOVERB)")
        elif verb == "%":
            out.append("%")
        elif used >= len(values):
            out.append(f"%!{verb}(MISSING)")
        else:
            out.append(_verb_text(verb, values[used], flags, width, precision))
            used += 1
    if used < len(values):
        extra = ", ".join(f"{go_type(value)}={go_text(value)}" if value is not None else "<nil>"
                          for value in values[used:])
        out.append(f"%!(EXTRA {extra})")
    return "".join(out)


def _verb_parse(form: str, at: int, values: list[Any], used: int) -> tuple[Any, ...]:
    """(flags, width, precision, verb, next position, values used, complaint); -1 for not given."""
    start = at
    while form[at:at + 1] in ("+", "-", "#", " ", "0"):
        at += 1
    flags, numbers, complaint = form[start:at], [-1, -1], ""
    for which in (0, 1):
        if which:
            if form[at:at + 1] != ".":
                break
            at, numbers[1] = at + 1, 0
        if form[at:at + 1] == "*":
            at += 1
            number = values[used] if used < len(values) else None
            used += 1
            if isinstance(number, int) and abs(number) < 10**6:
                flags += "-" if number < 0 and not which else ""
                numbers[which] = abs(number) if not which or number >= 0 else -1
            else:
                complaint += "%!(BADPREC)" if which else "%!(BADWIDTH)"
            continue
        digits = at
        while form[at:at + 1] and form[at] in DIGITS:
            at += 1
        if at > digits:
            numbers[which] = min(int(form[digits:at][:7]), 10**6)
    close = form.find("]", at) if form[at:at + 1] == "[" else -1
    if close > 0 and form[at + 1:close].isdigit() and len(form[at:close]) < 6:
        used, at = max(int(form[at + 1:close]), 1) - 1, close + 1
    return flags, numbers[0], numbers[1], form[at:at + 1], at + 1, min(used, len(values)), complaint


def _verb_text(verb: str, value: Any, flags: str, width: int, precision: int) -> str:
    is_container = isinstance(value, (dict, list, tuple))
    if verb == "T":
        text = go_type(value)
    elif verb == "v" and not (is_container and width >= 0):
        text = go_text(value, "#v" if "#" in flags else "+v" if "+" in flags else "v")
    elif is_container:
        return _verb_container(verb, value, flags, width, precision)
    else:
        text = _verb_scalar(verb, value, flags, precision)
    return _verb_pad(text, value, flags, width)


def _verb_container(verb: str, value: Any, flags: str, width: int, precision: int) -> str:
    """A list or dict, to whose items the verb and its width apply."""
    def one(item: Any) -> str:
        if item is None:
            return _verb_pad("<nil>", item, flags, width)
        return _verb_text(verb, item, flags, width, precision)
    if isinstance(value, dict):
        return "map[" + " ".join(f"{one(key)}:{one(value[key])}" for key in sorted(value)) + "]"
    return "[" + " ".join(map(one, value)) + "]"


def _verb_pad(text: str, value: Any, flags: str, width: int) -> str:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if "0" in flags and "-" not in flags and len(text) < width:
        sign = text[:1] if is_number and text[:1] in ("+", "-") else ""
        return sign + "0" * (width - len(text)) + text[len(sign):]
    return text.ljust(width) if "-" in flags else text.rjust(width)


def _verb_scalar(verb: str, value: Any, flags: str, precision: int) -> str:
    """The text of one plain value for its verb; Go's complaint if they don't go together."""
    bad = f"%!{verb}({go_type(value)}={go_text(value)})"
    if value is None or isinstance(value, Nil):
        return f"%!{verb}(<nil>)"
    if isinstance(value, bool):
        return go_text(value) if verb == "t" else bad
    if isinstance(value, int):
        return _verb_int(verb, value, flags, precision) or bad
    if isinstance(value, float):
        return _float_signed(value, verb, precision, flags) if verb in "eEfFgG" else bad
    if not isinstance(value, str):
        return bad
    if precision >= 0 and verb in "sq":
        value = value[:precision]
    if verb in "sq":
        if verb == "q" and "#" in flags and "`" not in value and value.isprintable():
            return f"`{value}`"
        return quote(value) if verb == "q" else value
    if verb in "xX":
        text = go_bytes(value).hex(*(" ",) if " " in flags and value else ())
        return text.upper() if verb == "X" else text
    return bad


def _verb_int(verb: str, value: int, flags: str, precision: int) -> str:
    if verb in INT_VERBS:
        lead = {"x": "0x", "X": "0X", "o": "0", "b": "0b"}.get(verb, "") if "#" in flags else ""
        sign = "-" if value < 0 else "+" if "+" in flags else " " if " " in flags else ""
        return sign + lead + format(abs(value), INT_VERBS[verb]).rjust(precision, "0")
    if verb in "cqU":
        char = chr(value) if 0 <= value < 0x110000 and not 0xD800 <= value < 0xE000 else "\ufffd"
        if verb == "U":
            return f"U+{value:04X}" + (f" '{char}'" if "#" in flags and char.isprintable() else "")
        return char if verb == "c" else "'" + quote(char)[1:-1].replace('\\"', '"').replace(
            "'", "\\'") + "'"
    return ""


def _float_signed(value: float, verb: str, precision: int, flags: str) -> str:
    text = _float_text(value, verb, precision)
    return text if text[0] == "-" or not {"+", " "} & set(flags) else (
        "+" if "+" in flags else " ") + text


def _float_text(value: float, verb: str, precision: int) -> str:
    """A float as Go writes it: the shortest digits for %g, six places for %e and %f."""
    if value != value or value in (float("inf"), float("-inf")):
        return "NaN" if value != value else "+Inf" if value > 0 else "-Inf"
    if verb not in "gG":
        return format(value, f".{6 if precision < 0 else precision}{verb}")
    if precision >= 0:
        return format(value, f".{precision}{verb}")
    mantissa = repr(value).partition("e")[0]
    count = len(mantissa.replace("-", "").replace(".", "").strip("0")) or 1
    digits, _, exponent = format(value, f".{count - 1}e").partition("e")
    if -4 <= int(exponent) < 6:
        return format(value, f".{max(0, count - 1 - int(exponent))}f")
    text = f"{digits}e{exponent}"
    return text.upper() if verb == "G" else text


def escape_html(text: str) -> str:
    """The text with HTML's own characters as entities."""
    return "".join(ESCAPES_HTML.get(char, char) for char in text)


def escape_js(text: str) -> str:
    """The text fit for a JavaScript string."""
    return "".join(ESCAPES_JS.get(char) or (char if char.isprintable() else f"\\u{ord(char):04X}")
                   for char in text)


def escape_query(text: str) -> str:
    """The text fit for a part of a URL's query."""
    keep = LETTERS + DIGITS + "-_.~"
    return "".join(chr(byte) if chr(byte) in keep else "+" if byte == 32 else f"%{byte:02X}"
                   for byte in go_bytes(text))


# =============================================================================
# grammar -- Go templates as text: tokens and tree; pure
# =============================================================================
# Runs in: cli.   Refs: Go text/template/parse
#
# _tokens cuts a template, template_tree makes a tree of TemplateNode; the next section walks it.
# Tokens come one at a time, so that of two mistakes the first is told.
#
# - White space separates words, so each token knows whether some came before it: "$x.A" is a field
#   of a variable, "$x .A" is two words.
# - An error is a TemplateError with Docker's text and the line. node_text writes a node as Go does,
#   because the errors of a rendering quote it.
# - A variable is known from where it is set to the end of that block; unknown ones, and unknown
#   functions, are found here, before anything is rendered.
# Complex numbers, which no format needs, are left out.

SPACES = " \t\r\n"
KEYWORDS = ("block", "break", "continue", "define", "else", "end", "if", "range", "template",
            "with")
CONSTANTS = {"true": ("bool", True), "false": ("bool", False), "nil": ("nil", None)}
OPERANDS = ("bool", "char", ".", "field", "ident", "number", "nil", "raw", "string", "var", "(")
QUOTED_ESCAPES = {"a": 7, "b": 8, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11, "\\": 92, '"': 34}
QUOTED_DIGITS = {"x": (2, 16), "u": (4, 16), "U": (8, 16)}


class TemplateError(EngineError):
    """A template that is wrong, or that does not fit the value."""

    status = 400


class _Token(tuple):
    """(kind, text, position, whether white space came before it)."""

    __slots__ = ()
    kind = property(lambda self: self[0])
    text = property(lambda self: self[1])
    at = property(lambda self: self[2])
    spaced = property(lambda self: self[3])

    def __str__(self) -> str:
        if self.kind in (".", "eof", "keyword", "nil"):
            return "EOF" if self.kind == "eof" else f"<{self.text}>"
        return quote(self.text[:10]) + "..." if len(self.text) > 10 else quote(self.text)


class TemplateNode:
    """A node of the tree. What .value and .parts hold depends on .kind:

    text (the text); action, if, with, range, template, define (.value: the pipe or name; .parts:
    lists of nodes); pipe (.value: (names, whether they are assigned), .parts: commands); command
    (.parts: words); field, chain, var (.value: names); bool, nil, number, string (.value), ident.
    """

    __slots__ = ("at", "kind", "parts", "text", "value")

    def __init__(self, kind: str, at: int, text: str = "", value: Any = None,
                 parts: Any = ()) -> None:
        self.kind, self.at, self.text, self.value, self.parts = kind, at, text, value, parts


def node_text(node: TemplateNode) -> str:
    """The node as Go writes it in its error texts."""
    if node.kind == "pipe":
        names, is_set = node.value
        lead = ", ".join(names) + (" = " if is_set else " := ") if names else ""
        return lead + " | ".join(map(node_text, node.parts))
    if node.kind == "command":
        return " ".join(f"({node_text(part)})" if part.kind == "pipe" else node_text(part)
                        for part in node.parts)
    if node.kind == "chain":
        base = node.parts[0]
        lead = f"({node_text(base)})" if base.kind == "pipe" else node_text(base)
        return lead + "".join("." + name for name in node.value)
    if node.kind == "template":
        pipe = " " + node_text(node.parts[0]) if node.parts else ""
        return f"{{{{template {quote(node.value)}{pipe}}}}}"
    return node.text


# -- cutting ------------------------------------------------------------------

def _tokens(text: str) -> Iterator[_Token]:
    """The tokens of a template: "text" pieces, and between "{{" and "}}" those of the actions."""
    at, trim = 0, False
    while True:
        cut = text.find("{{", at)
        is_trimmed = cut >= 0 and text[cut + 2:cut + 3] == "-" and text[cut + 3:cut + 4] in SPACES \
            and cut + 3 < len(text)
        piece = text[at:cut] if cut >= 0 else text[at:]
        piece = piece.lstrip(SPACES) if trim else piece
        piece = piece.rstrip(SPACES) if is_trimmed else piece
        if piece:
            yield _Token(("text", piece, at, False))
        if cut < 0:
            yield _Token(("eof", "", len(text), False))
            return
        at = cut + (4 if is_trimmed else 2)
        if text.startswith("/*", at):
            at, trim = _comment_end(text, at)
            continue
        yield _Token(("{{", "{{", cut, False))
        at, trim = yield from _action_tokens(text, at)


def _action_end(text: str, at: int) -> tuple[int, bool] | None:
    """Where the action ends and whether the text behind it is trimmed, if it ends at `at`."""
    if text.startswith("}}", at):
        return at + 2, False
    if text[at:at + 1] in SPACES and text.startswith("-}}", at + 1):
        return at + 4, True
    return None


def _comment_end(text: str, at: int) -> tuple[int, bool]:
    close = text.find("*/", at)
    if close < 0:
        raise _TokenStop("unclosed comment", at)
    end = _action_end(text, close + 2)
    if not end:
        raise _TokenStop("comment ends before closing delimiter", at)
    return end


class _TokenStop(Exception):
    """Lexical error: what and where; the parser makes a TemplateError of it."""


def _action_tokens(text: str, at: int) -> Generator[_Token, None, tuple[int, bool]]:
    """The tokens of one action up to "}}"; returns what _action_end tells."""
    depth, spaced = 0, False
    while True:
        end = _action_end(text, at)
        if end:
            if depth:
                raise _TokenStop("unclosed left paren", at)
            yield _Token(("}}", "}}", at, spaced))
            return end
        char = text[at:at + 1]
        if not char:
            raise _TokenStop("unclosed action", at)
        if char in SPACES:
            at, spaced = at + 1, True
            continue
        if char in "()":
            depth += 1 if char == "(" else -1
            if depth < 0:
                raise _TokenStop("unexpected right paren", at)
        kind, size = _token_at(text, at, char)
        yield _Token((kind, text[at:at + size], at, spaced))
        at, spaced = at + size, False


def _token_at(text: str, at: int, char: str) -> tuple[str, int]:
    """Kind and size of the token that starts with `char` at `at`."""
    following = text[at + 1:at + 2]
    if char in "\"'`":
        return _quoted_at(text, at, char)
    if char == ":":
        if following != "=":
            raise _TokenStop("expected :=", at)
        return ":=", 2
    if char in "+-" or char in DIGITS or char == "." and following and following in DIGITS:
        return "number", _number_size(text, at)
    if char in ".$" or char == "_" or char.isalnum():
        return _word_at(text, at, char)
    if char in "()|,=" or "!" <= char <= "~":
        return char, 1
    raise _TokenStop(f"unrecognized character in action: {_rune_text(char)}", at)


def _rune_text(char: str) -> str:
    return f"U+{ord(char):04X}" + (f" '{char}'" if char.isprintable() else "")


def _word_at(text: str, at: int, char: str) -> tuple[str, int]:
    end = at + 1
    while text[end:end + 1] == "_" or text[end:end + 1].isalnum():
        end += 1
    word, after = text[at:end], text[end:end + 1]
    if after and after not in SPACES + ".,|:)(" and not _action_end(text, end):
        raise _TokenStop(f"bad character {_rune_text(after)}", at)
    if char == ".":
        return ("field" if end > at + 1 else "."), end - at
    if char == "$":
        return "var", end - at
    kind = "keyword" if word in KEYWORDS else CONSTANTS[word][0] if word in CONSTANTS else "ident"
    return kind, end - at


def _quoted_at(text: str, at: int, mark: str) -> tuple[str, int]:
    kind, what = {'"': ("string", "quoted string"), "`": ("raw", "raw quoted string"),
                  "'": ("char", "character constant")}[mark]
    end = at + 1
    while end < len(text) and text[end] != mark and (mark == "`" or text[end] != "\n"):
        end += 2 if text[end] == "\\" and mark != "`" else 1
    if text[end:end + 1] != mark:
        raise _TokenStop(f"unterminated {what}", at)
    return kind, end + 1 - at


def _number_size(text: str, at: int) -> int:
    """How long the number at `at` is; what may not stand right behind it is an error."""
    end = at + (text[at] in "+-")
    is_hex, digits = text[end:end + 2].lower() == "0x", DIGITS + "_"
    if text[end:end + 2].lower() in ("0x", "0o", "0b"):
        end, digits = end + 2, digits + ("abcdefABCDEF" if is_hex else "")
    end = _span(text, end, digits)
    if text[end:end + 1] == ".":
        end = _span(text, end + 1, digits)
    if not is_hex and text[end:end + 1] in ("e", "E"):
        end += 1
        end = _span(text, end + (text[end:end + 1] in ("+", "-")), DIGITS + "_")
    following = text[end:end + 1]
    if following and (following in "+-_" or following.isalnum()):
        raise _TokenStop(f"bad number syntax: {quote(text[at:end + 1])}", at)
    return end - at


def _span(text: str, at: int, chars: str) -> int:
    """The first place from `at` on that holds none of these characters."""
    while at < len(text) and text[at] in chars:
        at += 1
    return at


def _number_literal(text: str) -> int | float:
    """The value of a Go number: 1, -0x1f, 0o17, 017, 1_000, .5, 1e3. Raises ValueError."""
    bare = text.lstrip("+-")
    if bare[:1] == "0" and bare[1:].replace("_", "").isdigit():
        return int(text, 8) if "_" not in text else int(text.replace("_", ""), 8)
    if "." in bare or "e" in bare.lower() and bare[:2].lower() != "0x":
        value = float(text)
        if value - value != 0:
            raise ValueError("out of range")
        return value
    return int(text, 0)


def _string_unquote(token: _Token) -> str:
    """The text that a quoted token stands for; ValueError for an escape that Go doesn't know."""
    body = token.text[1:-1]
    if token.kind == "raw":
        return body.replace("\r", "")
    out, at = bytearray(), 0
    while at < len(body):
        cut = body.find("\\", at)
        if cut < 0:
            break
        out += go_bytes(body[at:cut])
        at, escape = _string_escape(body, cut + 1)
        out += escape
    return go_string(bytes(out + go_bytes(body[at:])))


def _string_escape(body: str, at: int) -> tuple[int, bytes]:
    char = body[at:at + 1]
    if char in QUOTED_ESCAPES:
        return at + 1, bytes((QUOTED_ESCAPES[char],))
    start, (count, base) = ((at + 1, QUOTED_DIGITS[char]) if char in QUOTED_DIGITS
                            else (at, (3, 8)))
    digits = body[start:start + count]
    if len(digits) < count or not digits.isalnum():
        raise ValueError("invalid syntax")
    code = int(digits, base)
    if char in ("u", "U"):
        return start + count, chr(code).encode()
    return start + count, bytes((code,))


# -- parsing ------------------------------------------------------------------

def _is_blank(nodes: list[TemplateNode]) -> bool:
    return not any(node.kind != "text" or node.text.strip(SPACES) for node in nodes)


class _TemplateParser:
    """Makes the tree. .templates collects what define and block name."""

    def __init__(self, text: str, functions: Iterable[str]) -> None:
        self.text = text
        self.functions = functions
        self.source = _tokens(text)
        self.ahead: list[_Token] = []
        self.token = _Token(("text", "", 0, False))
        self.action_at = -1
        self.names: list[str] = ["$"]
        self.loops = 0
        self.templates: dict[str, list[TemplateNode]] = {}

    def fail(self, message: str, at: int | None = None) -> NoReturn:
        line = 1 + self.text.count("\n", 0, self.token.at if at is None else at)
        raise TemplateError(f"template parsing error: template: :{line}: {message}")

    def peek(self) -> _Token:
        if not self.ahead:
            try:
                self.ahead.append(next(self.source))
            except _TokenStop as stop:
                self.fail_lexical(*stop.args)
            self.token = self.ahead[0]
        return self.ahead[0]

    def fail_lexical(self, message: str, at: int) -> NoReturn:
        if self.action_at >= 0:
            first = 1 + self.text.count("\n", 0, self.action_at)
            if first != 1 + self.text.count("\n", 0, at):
                lead = " started at" if message.endswith(" action") else " in action started at"
                message += f"{lead} :{first}"
        self.fail(message, at)

    def next(self) -> _Token:
        token = self.peek()
        self.ahead.pop(0)
        return token

    def expect(self, kind: str, context: str) -> _Token:
        token = self.next()
        if token.kind != kind:
            self.fail(f"unexpected {token} in {context}")
        return token

    def parse(self) -> list[TemplateNode]:
        """The nodes of the whole template."""
        nodes: list[TemplateNode] = []
        while self.peek().kind != "eof":
            node = self.item(is_top=True)
            if node.kind in ("end", "else"):
                self.fail(f"unexpected {node.text}")
            nodes.append(node)
        return nodes

    def items(self) -> tuple[list[TemplateNode], TemplateNode]:
        """The nodes up to {{end}} or {{else}}, and that."""
        nodes: list[TemplateNode] = []
        while self.peek().kind != "eof":
            node = self.item()
            if node.kind in ("end", "else"):
                return nodes, node
            nodes.append(node)
        return self.fail("unexpected EOF")

    def item(self, is_top: bool = False) -> TemplateNode:
        token = self.next()
        if token.kind == "text":
            return TemplateNode("text", token.at, token.text)
        self.action_at = token.at
        node = self.action(is_top)
        self.action_at = -1
        return node

    def action(self, is_top: bool) -> TemplateNode:
        token = self.peek()
        if token.kind != "keyword":
            pipe = self.pipeline("command")
            return TemplateNode("action", token.at, f"{{{{{node_text(pipe)}}}}}", pipe)
        word = token.text
        if word == "define" and not is_top:
            self.next()
            self.fail("unexpected <define> in command")
        self.next()
        return PARSERS[word](self, token)

    def end(self, token: _Token) -> TemplateNode:
        self.expect("}}", "end")
        return TemplateNode("end", token.at, "{{end}}")

    def otherwise(self, token: _Token) -> TemplateNode:
        if self.peek().text not in ("if", "with") or self.peek().kind != "keyword":
            self.expect("}}", "else")
        return TemplateNode("else", token.at, "{{else}}")

    def leave(self, token: _Token) -> TemplateNode:
        """{{break}} or {{continue}}."""
        text = f"{{{{{token.text}}}}}"
        self.expect("}}", text)
        if not self.loops:
            self.fail(f"{text} outside {{{{range}}}}")
        return TemplateNode(token.text, token.at, text)

    def control(self, token: _Token) -> TemplateNode:
        """if, with or range, up to its {{end}}; an "else if" is an if within the else."""
        word, mark = token.text, len(self.names)
        pipe = self.pipeline(word)
        self.loops += word == "range"
        body, closing = self.items()
        self.loops -= word == "range"
        other: list[TemplateNode] = []
        if closing.kind == "else":
            following = self.peek()
            if following.kind == "keyword" and following.text == word and word != "range":
                other = [self.control(self.next())]
            else:
                if following.kind == "keyword" and following.text in ("if", "with"):
                    self.fail(f"unexpected {following} in input")
                other, closing = self.items()
                if closing.kind != "end":
                    self.fail(f"expected end; found {closing.text}")
        del self.names[mark:]
        return TemplateNode(word, pipe.at, f"{{{{{word} {node_text(pipe)}}}}}", pipe, (body, other))

    def define(self, token: _Token) -> TemplateNode:
        name = self.template_name("define clause")
        self.expect("}}", "define clause")
        self.template_add(name, "define clause")
        return TemplateNode("text", token.at)

    def block(self, token: _Token) -> TemplateNode:
        at = self.peek().at
        name = self.template_name("block clause")
        pipe = self.pipeline("block clause")
        self.template_add(name, "block clause")
        return TemplateNode("template", at, "", name, (pipe,))

    def template(self, token: _Token) -> TemplateNode:
        at = self.peek().at
        name = self.template_name("template clause")
        if self.peek().kind == "}}":
            self.next()
            return TemplateNode("template", at, "", name)
        return TemplateNode("template", at, "", name, (self.pipeline("template clause"),))

    def template_name(self, context: str) -> str:
        token = self.next()
        if token.kind not in ("string", "raw"):
            self.fail(f"unexpected {token} in {context}")
        return self.unquote(token)

    def template_add(self, name: str, context: str) -> None:
        names, loops, self.names, self.loops = self.names, self.loops, ["$"], 0
        body, closing = self.items()
        if closing.kind != "end":
            self.fail(f"unexpected {closing.text} in {context}")
        self.names, self.loops = names, loops
        if name not in self.templates or _is_blank(self.templates[name]):
            self.templates[name] = body
        elif not _is_blank(body):
            self.fail(f"template: multiple definition of template {quote(name)}")

    def unquote(self, token: _Token) -> str:
        try:
            return _string_unquote(token)
        except (ValueError, OverflowError):
            self.fail("invalid syntax")

    def pipeline(self, context: str, end: str = "}}") -> TemplateNode:
        """Commands with "|" between them, after variables that they set; takes the end too."""
        first = self.peek()
        names, is_set = self.declarations(context)
        commands: list[TemplateNode] = []
        while True:
            token = self.peek()
            if token.kind == end:
                self.next()
                break
            if token.kind not in OPERANDS:
                self.next()
                self.fail(f"unexpected {token} in {context}")
            commands.append(self.command())
        if not commands:
            self.fail(f"missing value for {context}")
        for stage, command in enumerate(commands[1:], 2):
            if command.parts[0].kind in ("bool", ".", "nil", "number", "string"):
                self.fail(f"non executable command in pipeline stage {stage}")
        return TemplateNode("pipe", first.at, "", (names, is_set), commands)

    def declarations(self, context: str) -> tuple[list[str], bool]:
        names: list[str] = []
        while self.peek().kind == "var":
            variable = self.next()
            mark = self.peek()
            if mark.kind not in (":=", "=", ","):
                self.ahead.insert(0, variable)
                break
            self.next()
            names.append(variable.text)
            self.names.append(variable.text)
            if mark.kind != ",":
                return names, mark.kind == "="
            if context != "range" or len(names) > 1:
                self.fail(f"too many declarations in {context}")
            if self.peek().kind not in ("var", "}}", ")"):
                self.fail("range can only initialize variables")
        return names, False

    def command(self) -> TemplateNode:
        """Words up to "|", which is taken, or to the end of the pipeline."""
        at, words = self.peek().at, []
        while True:
            words.append(self.operand())
            token = self.peek()
            if token.kind == "|":
                self.next()
                break
            if token.kind in ("}}", ")"):
                break
            if not token.spaced or token.kind not in OPERANDS:
                self.next()
                self.fail(f"unexpected {token} in operand")
        return TemplateNode("command", at, "", None, words)

    def operand(self) -> TemplateNode:
        """A term and the fields that hang on it."""
        node = self.term()
        if self.peek().kind != "field" or self.peek().spaced:
            return node
        at, names, text = self.peek().at, [], ""
        while self.peek().kind == "field" and not self.peek().spaced:
            token = self.next()
            names.append(token.text[1:])
            text += token.text
        if node.kind in ("field", "var"):
            return TemplateNode(node.kind, at, node.text + text, [*node.value, *names])
        if node.kind in ("bool", "string", "number", "nil", "."):
            self.fail(f"unexpected . after term {quote(node.text)}")
        return TemplateNode("chain", at, "", names, (node,))

    def term(self) -> TemplateNode:
        token = self.next()
        kind, text, at, _ = token
        if kind == "ident" and text not in self.functions:
            self.fail(f"function {quote(text)} not defined")
        if kind == "var" and text not in self.names:
            self.fail(f"undefined variable {quote(text)}")
        if kind in ("field", "var"):
            return TemplateNode(kind, at, text, [text[1:] if kind == "field" else text])
        if kind in ("string", "raw"):
            return TemplateNode("string", at, text, self.unquote(token))
        if kind == "number":
            try:
                return TemplateNode("number", at, text, _number_literal(text))
            except ValueError:
                self.fail(f"illegal number syntax: {quote(text)}")
        if kind == "char":
            quoted = '"' + text[1:-1].replace("\\'", "'").replace('"', '\\"') + '"'
            value = self.unquote(_Token(("string", quoted, at, False)))
            if len(value) != 1:
                what = f"malformed character constant: {text}" if value else "invalid syntax"
                self.fail(what)
            return TemplateNode("number", at, text, ord(value))
        if kind == "(":
            return self.pipeline("parenthesized pipeline", ")")
        if kind not in OPERANDS:
            self.fail(f"unexpected {token} in operand")
        return TemplateNode(kind, at, text, CONSTANTS.get(text, (None, None))[1])


# fmt: off
PARSERS = {
    "block": _TemplateParser.block,
    "break": _TemplateParser.leave,
    "continue": _TemplateParser.leave,
    "define": _TemplateParser.define,
    "else": _TemplateParser.otherwise,
    "end": _TemplateParser.end,
    "if": _TemplateParser.control,
    "range": _TemplateParser.control,
    "template": _TemplateParser.template,
    "with": _TemplateParser.control,
}
# fmt: on


def template_tree(text: str, functions: Iterable[str]) -> tuple[
        list[TemplateNode], dict[str, list[TemplateNode]]]:
    """The nodes of a template, and those of the templates that it defines by their names.

    `functions` are the names that it may call. Raises TemplateError.
    """
    parser = _TemplateParser(text, functions)
    try:
        return parser.parse(), parser.templates
    except RecursionError:
        parser.fail("max expression depth exceeded")


# =============================================================================
# templates -- Go templates: the language of --format; pure
# =============================================================================
# Runs in: cli.   Refs: Go text/template, docker/cli templates
#
# A template is parsed once and rendered for many values. _Rendering is one rendering; {{.Field}},
# which is nearly all that is ever asked, has a short way through it (_Rendering.act).
#
# - While it walks, _Rendering.node is the node at work: its place and its text go into an error.
# - Variables live on a stack of [name, value] and die with the block that made them.
# - FUNCTIONS says for each function what arguments it takes; the check and its complaints are in
#   one place. A dict may hold callables: they are methods, called with the arguments given.
# - Depth is bounded: a template that calls itself, or 10,000 parentheses, is an error.

TEMPLATE_DEPTH_MAX = 100

# -- functions ----------------------------------------------------------------

def _go_is_true(value: Any) -> bool:
    return bool(value) if not isinstance(value, dict) else bool(value) or not is_map(value)


def _go_basic_kind(value: Any) -> str:
    """What eq and lt compare: equal kinds only. "" for nil, and for what can't be compared."""
    return ("bool" if isinstance(value, bool) else "int" if isinstance(value, int)
            else "float" if isinstance(value, float) else "string" if isinstance(value, str)
            else "" if value is None or isinstance(value, Nil) else "other")


def _go_equal(first: Any, *others: Any) -> bool:
    if not others:
        raise ValueError("missing argument for comparison")
    kind, found = _go_basic_kind(first), False
    for other in others:
        other_kind = _go_basic_kind(other)
        if kind and other_kind and kind != other_kind:
            raise _go_incompatible(first, other)
        if kind == "other" and other_kind == "other":
            if go_type(first) == go_type(other):
                raise ValueError(f"non-comparable type {go_text(other)}: {go_type(other)}")
            raise ValueError(f"non-comparable types {go_text(first)}: {go_type(first)},"
                             f" {go_type(other)}: {go_text(other)}")
        found = found or kind == other_kind and (not kind or first == other)
    return found


def _go_incompatible(first: Any, second: Any) -> ValueError:
    return ValueError(f"incompatible types for comparison: {go_type(first)} and {go_type(second)}")


def _go_order(first: Any, second: Any) -> int:
    """Less than, equal to or more than 0, as the first is to the second."""
    kinds = _go_basic_kind(first), _go_basic_kind(second)
    if not {"", "other"}.isdisjoint(kinds) or kinds == ("bool", "bool"):
        raise ValueError("invalid type for comparison")
    if kinds[0] != kinds[1]:
        raise _go_incompatible(first, second)
    if kinds[0] == "string":
        first, second = go_bytes(first), go_bytes(second)
    return int(first > second) - int(first < second)


def _go_position(index: Any, most: int) -> int:
    if index is None or isinstance(index, Nil):
        raise ValueError("cannot index slice/array with nil")
    if isinstance(index, bool) or not isinstance(index, int):
        raise ValueError(f"cannot index slice/array with type {go_type(index)}")
    if not 0 <= index <= most:
        raise ValueError(f"index out of range: {index}")
    return index


def _go_row(item: Any) -> bytes | list[Any]:
    """What a string, list or nil list is made of."""
    return go_bytes(item) if isinstance(item, str) else item if isinstance(item, list) else []


def _go_index(item: Any, *indexes: Any) -> Any:
    if item is None or item is NO_VALUE or item is NIL:
        raise ValueError("index of untyped nil")
    for index in indexes:
        if item is NIL or item is None or item is NO_VALUE:
            raise ValueError("index of nil pointer")
        if isinstance(item, dict) or item is NIL_MAP:
            item = _go_index_map(item if isinstance(item, dict) else {}, index)
        elif isinstance(item, (list, str)) or item is NIL_LIST:
            row = _go_row(item)
            place = _go_position(index, len(row))
            if place == len(row):
                kind = "string" if isinstance(item, str) else "slice"
                raise ValueError(f"reflect: {kind} index out of range")
            item = row[place]
        else:
            raise ValueError(f"can't index item of type {go_type(item)}")
    return item


def _go_index_map(item: dict[str, Any], key: Any) -> Any:
    """The value at the key, or what Go has for none: the zero of the type that the values have."""
    if key is None or isinstance(key, Nil):
        raise ValueError("value is nil; should be of type string")
    if not isinstance(key, str):
        raise ValueError(f"value has type {go_type(key)}; should be string")
    value = item.get(key)
    if value is not None:
        return value
    kinds = set(map(type, item.values()))
    if kinds <= {str}:
        return ""
    is_lists = kinds <= {list, type(None)} or getattr(item, "empty", "") == "[]"
    return NIL_LIST if is_lists else NO_VALUE


def _go_slice(item: Any, *indexes: Any) -> Any:
    if item is None or item is NO_VALUE:
        raise ValueError("slice of untyped nil")
    if len(indexes) > 3:
        raise ValueError(f"too many slice indexes: {len(indexes)}")
    if isinstance(item, str) and len(indexes) == 3:
        raise ValueError("cannot 3-index slice a string")
    if not isinstance(item, (str, list)) and item is not NIL_LIST:
        raise ValueError(f"can't slice item of type {go_type(item)}")
    row = _go_row(item)
    places = [_go_position(index, len(row)) for index in indexes]
    start, end = [*places, *(0, len(row))[len(places):]][:2]
    for low, high in zip([start, end], [end, *places[2:]]):
        if low > high:
            raise ValueError(f"invalid slice index: {low} > {high}")
    return go_string(row[start:end]) if isinstance(row, bytes) else row[start:end]


def _go_length(item: Any) -> int:
    if isinstance(item, str):
        return len(go_bytes(item))
    if isinstance(item, (dict, list)):
        return len(item)
    if item is NIL_MAP or item is NIL_LIST:
        return 0
    if item is NIL:
        raise ValueError("len of nil pointer")
    raise ValueError(f"len of type {go_type(item)}" if item is not None and item is not NO_VALUE
                     else "reflect: call of reflect.Value.Type on zero Value")


def _go_json_value(value: Any) -> str:
    if isinstance(value, Nil):
        return "null"
    if isinstance(value, dict):
        keys = sorted(value) if is_map(value) else value
        value = {key: value[key] for key in keys if not callable(value[key])}
    return json_text(value)


def _go_printed(values: tuple[Any, ...]) -> str:
    return go_print(["<no value>" if value is None else value for value in values])


def _go_split(text: str, separator: str) -> list[str]:
    return text.split(separator) if separator else list(text)


def _go_join(items: Any, separator: str) -> str:
    return separator.join(map(go_text, items if isinstance(items, list) else ()))


def _go_upper(text: str) -> str:
    """Capitals, letter by letter: one that would become two stays."""
    return text.upper() if text.isascii() else "".join(
        char.upper() if len(char.upper()) == 1 else char for char in text)


def _go_title(text: str) -> str:
    """Each word's first letter as a capital; what follows is kept (Go's strings.Title)."""
    out, before = [], " "
    for char in text:
        is_inside = before == "_" or before.isalnum() or not (before.isascii() or before.isspace())
        out.append(char if is_inside or len(char.title()) > 1 else char.title())
        before = char
    return "".join(out)


def _go_pad(text: str, before: int, after: int) -> str:
    if before < 0 or after < 0:
        raise ValueError("strings: negative Repeat count")
    return " " * min(before, 1 << 16) + text + " " * min(after, 1 << 16) if text else text


def _go_truncate(text: str, size: int) -> str:
    if size < 0:
        raise ValueError(f"runtime error: slice bounds out of range [:{size}]")
    return go_string(go_bytes(text)[:size])


def _go_call(name: str, function: Any, *values: Any) -> Any:
    if function is None or function is NO_VALUE:
        raise ValueError("call of nil")
    if not callable(function):
        raise ValueError(f"non-function {name} of type {go_type(function)}")
    return function(*values)


def _go_no_call(*_: Any) -> Any:
    """and, or: _Rendering.both evaluates their arguments one by one."""


#: name: (kinds of its arguments: any, string, int, list; "*": any number of any), function
# fmt: off
FUNCTIONS: dict[str, tuple[str, Callable[..., Any]]] = {
    "and":      ("a*", _go_no_call),
    "call":     ("a*", _go_call),
    "eq":       ("a*", _go_equal),
    "ge":       ("aa", lambda one, two: _go_order(one, two) >= 0),
    "gt":       ("aa", lambda one, two: _go_order(one, two) > 0),
    "html":     ("*", lambda *values: escape_html(_go_printed(values))),
    "index":    ("a*", _go_index),
    "join":     ("ls", _go_join),
    "js":       ("*", lambda *values: escape_js(_go_printed(values))),
    "json":     ("a", _go_json_value),
    "le":       ("aa", lambda one, two: _go_order(one, two) <= 0),
    "len":      ("a", _go_length),
    "lower":    ("s", str.lower),
    "lt":       ("aa", lambda one, two: _go_order(one, two) < 0),
    "ne":       ("aa", lambda one, two: not _go_equal(one, two)),
    "not":      ("a", lambda value: not _go_is_true(value)),
    "or":       ("a*", _go_no_call),
    "pad":      ("sii", _go_pad),
    "print":    ("*", lambda *values: go_print(values)),
    "printf":   ("s*", lambda form, *values: go_printf(form, list(values))),
    "println":  ("*", lambda *values: " ".join(map(go_text, values)) + "\n"),
    "slice":    ("a*", _go_slice),
    "split":    ("ss", _go_split),
    "title":    ("s", _go_title),
    "truncate": ("si", _go_truncate),
    "upper":    ("s", _go_upper),
    "urlquery": ("*", lambda *values: escape_query(_go_printed(values))),
}
# fmt: on
#: In the header of a table these leave the column's name as it is.
FUNCTIONS_HEADER = {"join", "json", "lower", "split", "title", "truncate", "upper"}
ARGUMENT_KINDS: dict[str, tuple[str, Any]] = {
    "s": ("string", str), "i": ("int", int), "l": ("[]string", (list, Nil))}


# -- walking ------------------------------------------------------------------

ABSENT = Nil("")                # no value came down the pipe


class _Rendering:
    """One rendering: the value, the variables, the output so far."""

    __slots__ = ("depth", "is_header", "name", "node", "out", "root", "template", "type_name",
                 "variables")

    def __init__(self, template: Template, root: Any, type_name: str, header: bool) -> None:
        self.template, self.root, self.type_name = template, root, type_name
        self.is_header = header
        self.variables: list[list[Any]] = [["$", root]]
        self.out: list[str] = []
        self.depth, self.name = 0, ""
        self.node = TemplateNode("text", 0)

    def fail(self, message: str) -> NoReturn:
        text, at = self.template.text, self.node.at
        start = text.rfind("\n", 0, at) + 1
        line, column = 1 + text.count("\n", 0, at), len(go_bytes(text[start:at]))
        raise TemplateError(f"template parsing error: template: :{line}:{column}: executing"
                            f" {quote(self.name)} at <{node_text(self.node)}>: {message}")

    def walk(self, dot: Any, nodes: list[TemplateNode]) -> str:
        """Renders the nodes; returns "break" or "continue" when one of these ended them."""
        for node in nodes:
            if node.kind == "text":
                self.out.append(node.text)
                continue
            left = WALKERS[node.kind](self, dot, node)
            if left:
                return left
        return ""

    def act(self, dot: Any, node: TemplateNode) -> str:
        pipe = node.value
        if len(pipe.parts) == 1 and not pipe.value[0]:
            words = pipe.parts[0].parts
            if words[0].kind == "field" and len(words) == 1 and len(words[0].value) == 1:
                value = dot.get(words[0].value[0]) if isinstance(dot, dict) else None
                if isinstance(value, str):          # {{.Name}}: nearly all that is ever asked
                    self.out.append(value)
                    return ""
        value = self.pipe(dot, pipe)
        if not pipe.value[0]:
            self.out.append(go_text(value))
        return ""

    def choose(self, dot: Any, node: TemplateNode) -> str:
        """if and with."""
        mark = len(self.variables)
        value = self.pipe(dot, node.value)
        is_true = _go_is_true(value)
        left = self.walk(value if node.kind == "with" and is_true else dot,
                         node.parts[0] if is_true else node.parts[1])
        del self.variables[mark:]
        return left

    def loop(self, dot: Any, node: TemplateNode) -> str:
        before = len(self.variables)
        value = self.pipe(dot, node.value)
        mark = len(self.variables)
        names, is_set = node.value.value
        left, is_empty = "", True
        for key, item in self.loop_items(value, len(names)):
            is_empty = False
            for name, part in zip(reversed(names), (item, key)):
                self.assign(name, part, len(self.variables) if is_set else mark)
            left = self.walk(item, node.parts[0])
            del self.variables[mark:]
            if left == "break":
                break
        if is_empty:
            left = self.walk(dot, node.parts[1])
        del self.variables[before:]
        return left if is_empty else ""

    def loop_items(self, value: Any, names: int) -> Iterable[tuple[Any, Any]]:
        if isinstance(value, (bool, str, float)) or (
                isinstance(value, dict) and not is_map(value)):
            self.fail(f"range can't iterate over {go_text(value)}")
        if isinstance(value, int):
            if names > 1:
                self.fail(f"can't use {value} to iterate over more than one variable")
            return ((NO_VALUE, number) for number in range(value))
        if isinstance(value, dict):
            return ((key, value[key]) for key in sorted(value))
        return enumerate(value or ())

    def include(self, dot: Any, node: TemplateNode) -> str:
        """{{template}}: its own variables, and the value of the pipe as its dot."""
        self.node = node
        body = self.template.templates.get(node.value)
        if body is None:
            self.fail(f"template {quote(node.value)} not defined")
        if self.depth >= TEMPLATE_DEPTH_MAX:
            self.fail(f"exceeded maximum template depth ({TEMPLATE_DEPTH_MAX})")
        inner = self.pipe(dot, node.parts[0]) if node.parts else NO_VALUE
        outside, self.variables, self.name = (self.variables, self.name), [["$", inner]], node.value
        self.depth += 1
        self.walk(inner, body)
        self.depth -= 1
        self.variables, self.name = outside
        return ""

    def leave(self, dot: Any, node: TemplateNode) -> str:
        return node.kind

    def assign(self, name: str, value: Any, limit: int) -> None:
        for variable in reversed(self.variables[:limit]):
            if variable[0] == name:
                variable[1] = value
                return
        self.fail(f"undefined variable: {name}")

    def lookup(self, name: str) -> Any:
        for variable in reversed(self.variables):
            if variable[0] == name:
                return variable[1]
        return self.fail(f"undefined variable: {name}")

    def pipe(self, dot: Any, node: TemplateNode) -> Any:
        """The value of a pipeline; sets its variables."""
        self.node = node
        value: Any = ABSENT
        for command in node.parts:
            value = self.command(dot, command, value)
            value = NO_VALUE if value is None else value
        names, is_set = node.value
        for name in names:
            if is_set:
                self.assign(name, value, len(self.variables))
            else:
                self.variables.append([name, value])
        return value

    def command(self, dot: Any, node: TemplateNode, final: Any) -> Any:
        first, arguments = node.parts[0], node.parts[1:]
        if first.kind == "ident":
            return self.function(dot, first, node, arguments, final)
        if first.kind in ("field", "chain") or first.kind == "var" and len(first.value) > 1:
            return self.fields(dot, first, arguments, final)
        if first.kind != "pipe":
            self.node = first
        if arguments or final is not ABSENT:
            self.fail(f"can't give argument to non-function {node_text(first)}")
        if first.kind == "nil":
            self.fail("nil is not a command")
        return self.value(dot, first)

    def value(self, dot: Any, node: TemplateNode) -> Any:
        """The value of a word that stands as an argument."""
        if node.kind == "pipe":
            return self.pipe(dot, node)
        self.node = node
        if node.kind == ".":
            return dot
        if node.kind == "ident":
            return self.function(dot, node, node, [], ABSENT)
        if node.kind in ("field", "chain", "var"):
            return self.fields(dot, node, [], ABSENT)
        if node.kind == "number" and isinstance(node.value, int) \
                and not -INT64_MAX - 1 <= node.value <= INT64_MAX:
            self.fail(f"{node.text} overflows int")
        return node.value

    def fields(self, dot: Any, node: TemplateNode, arguments: list[TemplateNode],
               final: Any) -> Any:
        """The value of .A.B, $x.A or (pipe).A; the last may be a method with arguments."""
        self.node = node
        names = node.value
        if node.kind == "var":
            value, names = self.lookup(names[0]), names[1:]
        elif node.kind == "chain":
            if node.parts[0].kind == "nil":
                self.fail(f"indirection through explicit nil in {node_text(node)}")
            value = self.value(dot, node.parts[0])
        else:
            value = dot
        if not names:
            return value
        is_any = False
        for name in names[:-1]:
            value = self.field(value, name, is_any)
            value = value() if callable(value) else value
            is_any = not self.type_name
        holder, value = value, self.field(value, names[-1], is_any)
        if callable(value):
            values = [self.value(dot, argument) for argument in arguments]
            return self.method(value, node, values if final is ABSENT else [*values, final])
        if arguments or final is not ABSENT:
            self.fail(f"{names[-1]} is not a method but has arguments"
                      if isinstance(holder, dict) and is_map(holder) else
                      f"{names[-1]} has arguments but cannot be invoked as function")
        return value

    def method(self, function: Callable[..., Any], node: TemplateNode, values: list[Any]) -> Any:
        self.node = node
        try:
            return function(*values)
        except TypeError:
            self.fail(f"wrong number of args for {node.value[-1]}: got {len(values)}")

    def field(self, value: Any, name: str, is_any: bool) -> Any:
        """The field of that name. What a document holds is of any type to Go (`is_any`)."""
        if isinstance(value, dict):
            if name in value:
                return field_value(name, value[name])
            if is_map(value):
                return NO_VALUE
            if value is self.root and self.type_name:
                self.fail(f"can't evaluate field {name} in type {self.type_name}")
            if name in UNSET_FIELDS:
                return UNSET_FIELDS[name]
            self.fail(f"map has no entry for key {quote(name)}")
        if value is None or value is NO_VALUE or value is NIL_MAP:
            return NO_VALUE
        if value is NIL:
            self.fail(f"nil pointer evaluating interface {{}}.{name}")
        kind = "interface {}" if is_any else go_type(value)
        return self.fail(f"can't evaluate field {name} in type {kind}")

    def function(self, dot: Any, name: TemplateNode, node: TemplateNode,
                 arguments: list[TemplateNode], final: Any) -> Any:
        """Calls a function of FUNCTIONS; `node` is what an error of it points at."""
        self.node = name
        kinds, function = FUNCTIONS[name.text]
        fixed = kinds.rstrip("*")
        count = len(arguments) + (final is not ABSENT)
        if kinds != fixed and count < len(fixed):
            self.fail(f"wrong number of args for {name.text}: want at least {len(fixed)}"
                      f" got {len(arguments)}")
        if kinds == fixed and count != len(fixed):
            self.fail(f"wrong number of args for {name.text}: want {len(fixed)} got {count}")
        if name.text in ("and", "or"):
            return self.both(dot, name.text == "or", arguments, final)
        kinds = fixed + "a" * (count - len(fixed))
        if self.is_header and name.text in FUNCTIONS_HEADER:
            kinds = "a" * count
        values = [self.argument(dot, kind, part) for kind, part in zip(kinds, arguments)]
        if final is not ABSENT:
            values.append(self.checked(kinds[count - 1], final))
        if self.is_header and name.text in FUNCTIONS_HEADER:
            return values[0]
        if name.text == "call":
            values.insert(0, node_text(arguments[0]) if arguments else "value")
        try:
            return function(*values)
        except (ValueError, TypeError, OverflowError) as error:
            self.node = node
            self.fail(f"error calling {name.text}: {error}")

    def both(self, dot: Any, is_or: bool, arguments: list[TemplateNode], final: Any) -> Any:
        """and, or: the first argument that decides, else the last; the rest is not evaluated."""
        value: Any = NO_VALUE
        for argument in arguments:
            value = self.argument(dot, "a", argument)
            if _go_is_true(value) == is_or:
                return value
        return value if final is ABSENT else final

    def argument(self, dot: Any, kind: str, node: TemplateNode) -> Any:
        if node.kind == "nil":
            self.node = node
            if kind in "si":
                self.fail(f"cannot assign nil to {ARGUMENT_KINDS[kind][0]}")
            return NIL_LIST if kind == "l" else None
        if kind != "a" and node.kind in ("bool", "number", "string"):
            self.node = node
            wanted = {"s": "string", "i": "integer"}.get(kind)
            if kind == "l":
                self.fail(f"can't handle {node.text} for arg of type []string")
            if not isinstance(node.value, ARGUMENT_KINDS[kind][1]) or node.kind == "bool":
                self.fail(f"expected {wanted}; found {node.text}")
            return node.value
        return self.checked(kind, self.value(dot, node))

    def checked(self, kind: str, value: Any) -> Any:
        """The value, once it is of the kind that a function asks for."""
        if kind == "a":
            return None if value is NO_VALUE else value
        name, types = ARGUMENT_KINDS[kind]
        if value is None or value is NO_VALUE:
            if kind == "l":
                return NIL_LIST
            self.fail(f"invalid value; expected {name}")
        if not isinstance(value, types) or isinstance(value, bool):
            kind = "interface {}" if value is NIL else go_type(value)
            self.fail(f"wrong type for value; expected {name}; got {kind}")
        return value


# fmt: off
WALKERS = {
    "action": _Rendering.act,
    "break": _Rendering.leave,
    "continue": _Rendering.leave,
    "if": _Rendering.choose,
    "range": _Rendering.loop,
    "template": _Rendering.include,
    "with": _Rendering.choose,
}
# fmt: on


def _header_label(name: str) -> str:
    return name.split(".")[-1].replace("-", " ").replace("_", " ")


class Template:
    """A parsed template: Template("{{.Name}}").render({"Name": "a"}) is "a".

    Raises TemplateError with Docker's text, when made or when rendered.
    """

    __slots__ = ("nodes", "templates", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.nodes, self.templates = template_tree(text, FUNCTIONS)

    def render(self, value: Any, type_name: str = "", *, header: bool = False) -> str:
        """The text for a value.

        With `type_name`, an unknown field of the value itself is told as missing in that Go type.
        With `header`, the value is {field: column name}: the functions leave the names alone, and
        {{.Label "com.example.some-name"}} is "some name".
        """
        if header:
            value = MapValue(value, Label=_header_label)
        run = _Rendering(self, value, type_name, header)
        try:
            run.walk(value, self.nodes)
        except RecursionError:
            run.fail("exceeded maximum template depth")
        return "".join(run.out)


# =============================================================================
# tables -- rows through a template, in columns: table, json and custom formats; pure
# =============================================================================
# Runs in: cli.   Refs: docker/cli formatter, Go tabwriter
#
# A format is "table {{.ID}}\t{{.Names}}" (header, columns), "json" or any template (a line a row,
# as it comes). A row is a dict of values that are ready to be shown; callables are methods, such
# as `.Label "name"`. The header is the same template over {field: column name}.
#
# Columns follow the elastic tabstops of Go's tabwriter: a cell ends at a tab, a column is a run of
# lines that have such a cell, and is as wide as its widest plus three, at least ten. What follows
# a line's last tab is in no column. Wide characters of East Asia take two places, as in Docker.

TABLE_CELL_MIN = 10
TABLE_CELL_GAP = 3


def text_width(text: str) -> int:
    """How many places the text takes in a terminal."""
    if text.isascii():
        return len(text)
    import unicodedata
    return sum(0 if unicodedata.combining(char) else
               2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def ellipsis(text: str, width: int) -> str:
    """The text, cut to `width` places with "\u2026" at its end when it takes more."""
    if width <= 1 or text_width(text) <= width:
        return text if width > 1 else text[:max(width, 0)]
    kept, used = 0, 0
    while used + text_width(text[kept]) < width:
        used += text_width(text[kept])
        kept += 1
    return text[:kept] + "\u2026"


def columns_align(text: str, minimum: int = TABLE_CELL_MIN, gap: int = TABLE_CELL_GAP) -> str:
    """The text with its tabs replaced by the spaces that line its cells up."""
    if "\t" not in text:
        return text
    lines = [line.split("\t") for line in text.split("\n")]
    for column in range(max(map(len, lines)) - 1):
        run: list[list[str]] = []
        for cells in [*lines, []]:
            if len(cells) - 1 > column:
                run.append(cells)
                continue
            width = max([minimum, *[text_width(cells[column]) + gap for cells in run]])
            for cells in run:
                cells[column] += " " * (width - text_width(cells[column]))
            run = []
    return "\n".join(map("".join, lines))


def format_rows(form: str, rows: Iterable[dict[str, Any]], headers: Mapping[str, str],
                out_write: Callable[[str], object], *, type_name: str = "") -> None:
    """Writes the rows as `form` says: one call for a table, one a row otherwise.

    `type_name` is the Go type that Docker's complaint about an unknown field names. Raises
    TemplateError, for a table before anything is written.
    """
    is_table = form.startswith("table")
    text = form[len("table"):] if is_table else "{{json .}}" if form == "json" else form
    template = Template(text.strip(" ").replace("\\t", "\t").replace("\\n", "\n"))
    lines = (template.render(row, type_name) + "\n" for row in rows)
    if not is_table:
        for line in lines:
            out_write(line)
        return
    body = "".join(lines)
    out_write(columns_align(template.render(headers, header=True) + "\n" + body))


# =============================================================================
# notices -- the daemon's log: one line each on stderr, as text or as JSON
# =============================================================================
# Runs in: daemon.   Refs: sirupsen/logrus text_formatter.go and json_formatter.go
#
# A notice is written by one write(2), so lines of several threads never mix and need no lock. Its
# form is that of dockerd's log, which people's collectors parse: time, level and message, then what
# was given by name. Until notices_open is called nothing is written, so that code which any process
# runs may say what only a daemon's log should hold.

NOTICE_LEVELS = {"panic": 0, "fatal": 1, "error": 2, "warn": 3, "info": 4, "debug": 5, "trace": 6}
NOTICE_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._/@^+")


def notices_open(level: str = "info", form: str = "text") -> None:
    """From now on notices up to this level (a name of NOTICE_LEVELS) go to stderr.

    `form` is "text" or "json".
    """
    notice.open = NOTICE_LEVELS[level.lower()], form        # type: ignore[attr-defined]


def notices_close() -> None:
    """Write no more notices in this process."""
    notice.open = -1, ""                                    # type: ignore[attr-defined]


def notice(level: str, text: str, /, **fields: Any) -> None:
    """One line in the daemon's log: notice("warn", "slow disk", seconds=3)."""
    limit, form = getattr(notice, "open", (-1, ""))
    if NOTICE_LEVELS[level] > limit:
        return
    shown = "warning" if level == "warn" else level
    when = time_fixed_local(time_now())
    if form == "json":
        row = {**fields, "level": shown, "msg": text, "time": when}
        line = json_text({key: row[key] for key in sorted(row)})
    else:
        row = {"time": when, "level": shown, "msg": text}
        row.update((key, fields[key]) for key in sorted(fields))
        line = " ".join(f"{key}={_notice_value(value, key == 'time')}"
                        for key, value in row.items())
    try:
        os.write(2, line.encode("utf-8", "backslashreplace") + b"\n")
    except OSError:
        pass                            # a log that is closed or full must not stop the daemon


def _notice_value(value: Any, quoted: bool = False) -> str:
    text = go_text(value)
    return quote(text) if quoted or not NOTICE_PLAIN.issuperset(text) else text


# =============================================================================
# wire -- HTTP/1.1 heads, chunked, Docker's stream frames: bytes in, bytes out; pure
# =============================================================================
# Runs in: all roles.   Refs: RFC 9112, RFC 9110 section 5, Docker Engine API "Stream format"
#
# What goes over a connection, without the connection: the caller reads and writes, this section
# says what the bytes mean. Two programs that read one message differently can be played against
# each other (request smuggling), so a head has one reading or none: lines end in CRLF and no
# other control character occurs, a field that frames the message occurs once, a length and an
# encoding exclude each other, a name touches its colon, and no line is folded. What is refused
# is InvalidParameter, and the connection can't go on. Heads, lines and counts are bounded.
#
# Decoders are fed what arrives and never hold more than a few hundred bytes back.
# WebSocket frames are not here.

HEAD_MAX = 1 << 18              # bytes; an X-Registry-Auth or filters parameter can be long
HEAD_FIELDS_MAX = 128
CHUNK_LINE_MAX = 256            # bytes of a chunk's size line, extensions included
CHUNK_TRAILER_MAX = 8192
CHUNK_END = b"0\r\n\r\n"
CONTENT_LENGTH_DIGITS = 18      # so that it fits in 63 bits

TOKEN = LETTERS + DIGITS + "!#$%&'*+-.^_`|~"                    # RFC 9110 section 5.6.2
CONTROLS = bytes(set(range(32)) - {9}) + b"\x7f"                # a tab is white space, no control
#: Fields that must not occur twice: a second one could be believed instead of the first.
FIELDS_ONCE = ("authorization", "content-length", "content-type", "expect", "host",
               "transfer-encoding", "x-registry-auth", "x-registry-config")
# fmt: off
HTTP_REASONS = {
    100: "Continue", 101: "UPGRADED", 200: "OK", 201: "Created", 202: "Accepted",
    204: "No Content", 206: "Partial Content", 301: "Moved Permanently", 302: "Found",
    304: "Not Modified", 307: "Temporary Redirect", 308: "Permanent Redirect",
    400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found",
    405: "Method Not Allowed", 406: "Not Acceptable", 409: "Conflict",
    411: "Length Required", 413: "Request Entity Too Large", 414: "Request URI Too Long",
    416: "Requested Range Not Satisfiable", 417: "Expectation Failed", 426: "Upgrade Required",
    429: "Too Many Requests", 431: "Request Header Fields Too Large",
    500: "Internal Server Error", 501: "Not Implemented", 502: "Bad Gateway",
    503: "Service Unavailable", 504: "Gateway Timeout", 505: "HTTP Version Not Supported",
}
# fmt: on
FRAME_STDIN, FRAME_STDOUT, FRAME_STDERR, FRAME_ERROR = range(4)


class Head:
    """A parsed head: of a request with .method and .target, or of a response with .status, .reason.

    .version is "1.0" or "1.1", .headers {lower-case name: value}; fields that occur more than once
    are joined with ", ". .length is the size of the body in bytes, -1 if it is chunked, and None
    where no field tells: a request then has no body, a response lasts until the connection ends.
    """

    __slots__ = ("headers", "length", "method", "reason", "status", "target", "version")

    def __init__(self) -> None:
        self.method = self.target = self.reason = ""
        self.status, self.version = 0, "1.1"
        self.headers: dict[str, str] = {}
        self.length: int | None = None

    @property
    def keeps_alive(self) -> bool:
        """True when the connection may carry another message after this one."""
        tokens = self.headers.get("connection", "").lower().replace(" ", "").split(",")
        return "keep-alive" in tokens if self.version == "1.0" else "close" not in tokens


def head_end(data: bytes | bytearray) -> int:
    """How many bytes of `data` the head takes, with its empty line; -1 when it isn't all there.

    Raises InvalidParameter when it is longer than HEAD_MAX.
    """
    end = data.find(b"\r\n\r\n", 0, HEAD_MAX)
    if end < 0 and (len(data) >= HEAD_MAX or b"\n\n" in data):
        raise InvalidParameter("malformed HTTP head" if len(data) < HEAD_MAX
                               else "HTTP head is too large")
    return end + 4 if end >= 0 else -1


def head_parse(data: bytes | bytearray) -> Head:
    """The Head in `data`, which ends with the empty line; InvalidParameter when it has no one
    reading. A response is known by its first bytes, "HTTP/"."""
    if len(data) > HEAD_MAX or not data.endswith(b"\r\n\r\n"):
        raise InvalidParameter("malformed HTTP head")
    lines = bytes(data[:-4]).split(b"\r\n")
    if len(lines) > HEAD_FIELDS_MAX + 1:
        raise InvalidParameter("too many HTTP header fields")
    texts = [_head_line(line) for line in lines]
    head = Head()
    is_response = texts[0].startswith("HTTP/")
    (_response_line if is_response else _request_line)(head, texts[0])
    for text in texts[1:]:
        _head_field(head.headers, text)
    _head_framing(head)
    if not is_response and head.version == "1.1" and "host" not in head.headers:
        raise InvalidParameter("missing required Host header")
    return head


def _head_line(line: bytes) -> str:
    if len(line) != len(line.translate(None, CONTROLS)):
        raise InvalidParameter("malformed HTTP head: control character")
    return line.decode("latin-1")


def _http_version(text: str) -> str:
    if text not in ("HTTP/1.0", "HTTP/1.1"):
        raise InvalidParameter(f"unsupported HTTP version {quote(text[:20])}")
    return text[5:]


def _request_line(head: Head, text: str) -> None:
    method, _, rest = text.partition(" ")
    target, _, version = rest.partition(" ")
    if not method or len(method) > 20 or method.strip(TOKEN):
        raise InvalidParameter("malformed HTTP method")
    head.version = _http_version(version)
    if not target.isascii() or "\t" in target or "#" in target:
        raise InvalidParameter("malformed HTTP request target")
    if target[:7].lower() == "http://":     # absolute form, as sent to a proxy
        target = "/" + target[7:].partition("/")[2]
    if target[:1] != "/" and (target, method) != ("*", "OPTIONS"):
        raise InvalidParameter("malformed HTTP request target")
    head.method, head.target = method, target


def _response_line(head: Head, text: str) -> None:
    version, _, rest = text.partition(" ")
    code, _, head.reason = rest.partition(" ")
    head.version = _http_version(version)
    if len(code) != 3 or code.strip(DIGITS) or code[0] == "0":
        raise InvalidParameter("malformed HTTP status")
    head.status = int(code)


def _head_field(headers: dict[str, str], text: str) -> None:
    name, colon, value = text.partition(":")
    name = name.lower()
    if not colon or not name or name.strip(TOKEN):      # also what is folded, or "Name :"
        raise InvalidParameter("malformed HTTP header field")
    value = value.strip(" \t")
    if name in headers:
        if name in FIELDS_ONCE:
            raise InvalidParameter(f"HTTP header field {name} occurs twice")
        value = f"{headers[name]}, {value}"
    headers[name] = value


def _head_framing(head: Head) -> None:
    """Sets .length from the two fields that frame a body, of which there may be one."""
    length = head.headers.get("content-length")
    encoding = head.headers.get("transfer-encoding")
    if encoding is not None:
        if length is not None or head.version == "1.0":
            raise InvalidParameter("HTTP message is framed twice")
        if encoding.lower() != "chunked":
            raise Unsupported(f"unsupported transfer encoding {quote(encoding[:40])}")
        head.length = -1
    elif length is not None:
        if not length or len(length) > CONTENT_LENGTH_DIGITS or length.strip(DIGITS):
            raise InvalidParameter(f"bad Content-Length {quote(length[:40])}")
        head.length = int(length)


def head_text(first: str, headers: Mapping[str, str] | Iterable[tuple[str, str]]) -> bytes:
    """The bytes of a head: its first line, its fields, the empty line.

    Raises ValueError if a field could be read as more than one, whatever a value was made of.
    """
    fields = headers.items() if hasattr(headers, "items") else headers
    lines = [first, *[f"{name}: {value}" for name, value in fields]]
    data = "\r\n".join(lines).encode("latin-1", "replace")
    if len(data.translate(None, CONTROLS)) != len(data) - 2 * (len(lines) - 1):
        raise ValueError("control character in an HTTP head")
    return data + b"\r\n\r\n"


def request_head(method: str, target: str, headers: Mapping[str, str]) -> bytes:
    """The head of a request: "GET /version HTTP/1.1" and the fields."""
    if " " in target or not target:
        raise ValueError("space in an HTTP request target")
    return head_text(f"{method} {target} HTTP/1.1", headers)


def response_head(status: int, headers: Mapping[str, str], version: str = "1.1") -> bytes:
    """The head of a response: "HTTP/1.1 200 OK" and the fields."""
    return head_text(f"HTTP/{version} {status} {HTTP_REASONS.get(status, 'Unknown')}", headers)


# -- chunked ------------------------------------------------------------------

def chunk_encode(data: bytes) -> bytes:
    """The data as one chunk; nothing for no data, because an empty chunk ends the body."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


class ChunkDecoder:
    """Takes the chunks of a body apart as they arrive.

    `.feed(data)` returns what of the body they hold; `.done` tells that the last chunk was seen and
    `.rest` holds what came after it. Bad chunking raises InvalidParameter, also when fed again.
    """

    __slots__ = ("_left", "_line", "_state", "_trailer", "done", "rest")

    def __init__(self) -> None:
        self._state: Callable[[bytes], None] | None = self._size_line   # what reads the next line
        self._left = self._trailer = 0
        self._line = b""
        self.done = False
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        """The bytes of the body that `data` goes on with."""
        if self._state is None:
            self._refuse()
        out: list[bytes] = []
        while data and not self.done:
            if self._left:
                part = data[:self._left]
                out.append(part)
                data = data[len(part):]
                self._left -= len(part)
                if not self._left:
                    self._state = self._data_end
                continue
            data = self._take_line(data)
        self.rest += data
        return out[0] if len(out) == 1 else b"".join(out)

    def _take_line(self, data: bytes) -> bytes:
        """Hands a whole line on; keeps a part of one. Returns what is left of `data`."""
        cut = data.find(b"\n") + 1
        self._line += data[:cut] if cut else data
        if len(self._line) > CHUNK_LINE_MAX:
            self._refuse()
        if cut:
            line, self._line = self._line, b""
            body = line[:-2]
            if line[-2:] != b"\r\n" or len(body.translate(None, CONTROLS)) != len(body):
                self._refuse()
            if self._state:
                self._state(body)
            return data[cut:]
        return b""

    def _size_line(self, line: bytes) -> None:
        digits = line.partition(b";")[0]
        if b";" in line:
            digits = digits.rstrip(b" \t")
        if not 0 < len(digits) <= 15 or digits.strip(b"0123456789abcdefABCDEF"):
            self._refuse()
        self._left = int(digits, 16)
        if not self._left:
            self._state = self._trailer_line

    def _data_end(self, line: bytes) -> None:
        if line:
            self._refuse()
        self._state = self._size_line

    def _trailer_line(self, line: bytes) -> None:
        self._trailer += len(line)
        if not line:
            self.done = True
        elif self._trailer > CHUNK_TRAILER_MAX:
            self._refuse()
        else:
            _head_field({}, line.decode("latin-1"))

    def _refuse(self) -> NoReturn:
        self._state = None
        raise InvalidParameter("malformed chunked encoding")


# -- Docker's stream frames ---------------------------------------------------

def frame_header(stream: int, size: int) -> bytes:
    """The 8 bytes before `size` bytes of a stream: FRAME_STDOUT, FRAME_STDERR, ..."""
    return struct.pack(">BxxxL", stream, size)


class FrameReader:
    """Takes Docker's multiplexed streams apart as they arrive.

    `.feed(data)` returns [(stream, bytes), ...]; a frame that comes in pieces comes out in pieces.
    `.is_between` is True when no frame is half done: only then is an end an end.
    """

    __slots__ = ("_head", "_left", "_stream")

    def __init__(self) -> None:
        self._head = b""
        self._left = self._stream = 0

    @property
    def is_between(self) -> bool:
        """True when no frame is half done."""
        return not self._head and not self._left

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """The parts of frames in `data`; EngineError when a header is none of Docker's."""
        parts = []
        at = 0
        while at < len(data):
            if not self._left:
                head = self._head + data[at:at + 8 - len(self._head)]
                at += len(head) - len(self._head)
                self._head = head
                if len(head) < 8:
                    break
                self._stream, self._left = struct.unpack(">BxxxL", head)
                if self._stream > FRAME_ERROR:
                    raise EngineError(f"Unrecognized input header: {self._stream}")
                self._head = b""
                continue
            part = data[at:at + self._left]
            parts.append((self._stream, part))
            at += len(part)
            self._left -= len(part)
        return parts


# =============================================================================
# files -- atomic write, locks, removing a tree, where the roots are
# =============================================================================
# Runs in: all roles.
# A file is replaced, never changed in place: written beside, (synced,) renamed. What must be
# durable says sync=True; the directory is then synced as well. A lock is flock(2) on a file of its
# own: it ends with the process that held it, however that process ended.

DATA_ROOT = "/var/lib/engine"
RUN_ROOT = "/run/engine"
TREE_DEPTH = 64                 # directories held open while a tree is removed


def sha256(data: bytes = b"") -> Any:
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


def archive_member(name: str) -> bytes | None:
    """A file inside engine.pyz; None when it isn't there or the program runs from its source."""
    loader = globals().get("__loader__")
    try:
        return loader.get_data(f"{loader.archive}/{name}")      # type: ignore[union-attr]
    except (AttributeError, OSError):
        return None


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
        os.chmod(path, mode)               # whatever the caller's umask is
    except FileExistsError:
        pass
    except FileNotFoundError:
        above = os.path.dirname(path)
        if above in ("", path):
            raise
        dir_ensure(above, 0o755)
        try:
            os.mkdir(path, mode)            # once: below /proc it is "not found" for ever
            os.chmod(path, mode)
        except FileExistsError:
            pass
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
    except OSError as refused:
        # A read-only file system says so before it looks for the name.
        if refused.errno != errno.EROFS or os.path.lexists(path):
            raise
    finally:
        os.close(fd)


def _tree_remove_at(parent: int, name: str, top: int = -1, depth: int = 0) -> None:
    try:
        if not _plain_remove_at(parent, name):
            _full_remove_at(parent, name, top, depth)
    except FileNotFoundError:
        return                              # another process was quicker


def _plain_remove_at(parent: int, name: str) -> bool:
    """Remove a file or an empty directory; False for a directory that holds something."""
    try:
        os.unlink(name, dir_fd=parent)
        return True
    except (IsADirectoryError, PermissionError) as refused:
        # unlink(2) of a directory: EISDIR on Linux, EPERM where POSIX is followed. EPERM of a
        # plain file (immutable) must travel.
        if not _is_dir_at(parent, name):
            raise refused
    try:
        os.rmdir(name, dir_fd=parent)
        return True
    except OSError as refused:
        if refused.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    return False


def _full_remove_at(parent: int, name: str, top: int, depth: int) -> None:
    if depth >= TREE_DEPTH:                # neither the stack nor descriptors are endless
        os.rename(name, f"deep-{os.urandom(8).hex()}", src_dir_fd=parent, dst_dir_fd=top)
        return
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        children = os.listdir(fd)
        while children:
            for child in children:
                _tree_remove_at(fd, child, fd if depth == 0 else top, depth + 1)
            children = [] if depth else os.listdir(fd)     # what was too deep is here now
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=parent)


def _is_dir_at(parent: int, name: str) -> bool:
    from stat import S_ISDIR
    return S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)


# =============================================================================
# store -- the SQLite database: schema, migrations, transactions; the data and run roots
# =============================================================================
# Runs in: all roles.
# Metadata is in one SQLite database in WAL mode under the data root; bytes lie beside it. Any
# number of processes use it at once and none is special. What holds:
#   - bytes are durable before the row that names them is committed, and are deleted after it is
#     gone;
#   - every write is one BEGIN IMMEDIATE; `durable` (synchronous=FULL) for what a user made, NORMAL
#     for what the kernel can tell again;
#   - a connection belongs to one process and one thread: it is looked up by both and is never
#     closed, as the last close costs a checkpoint with four syncs;
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
#: `owner` is "pid start-time" of a running container's first process, or of whoever moves it
#: through a passing state (starting, removing): the next command can tell whether that lives.

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
    def db(self) -> Any:
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

    def row(self, sql: str, *args) -> tuple | None:
        """The first row of a query as a tuple, or None."""
        return self.db.execute(sql, args).fetchone()

    def write(self, durable: bool = True) -> _Write:
        """Context manager: a connection inside one write transaction; commits unless it raises."""
        return _Write(self.db, durable)

    def roots_make(self) -> None:
        """Make both roots with their directories; EngineError when that is not allowed."""
        try:
            # Nobody else may walk in: an image's setuid programs and devices would be theirs.
            dir_ensure(self.data, 0o710)
            dir_ensure(self.run, 0o700)
            for name in DATA_DIRS:
                dir_ensure(self.path(name), 0o710)
            for name in RUN_DIRS:
                dir_ensure(self.run_path(name), 0o700)
        except OSError as refused:
            raise _store_refused(self, refused) from None


class _Write:
    __slots__ = ("_db", "_durable")

    def __init__(self, db: Any, durable: bool) -> None:
        self._db = db
        self._durable = durable

    def __enter__(self) -> Any:
        # PRAGMA synchronous is refused inside a transaction, so it comes first.
        self._db.execute("PRAGMA synchronous=" + ("FULL" if self._durable else "NORMAL"))
        self._db.execute("BEGIN IMMEDIATE")
        return self._db

    def __exit__(self, kind: object, failure: object, trace: object) -> None:
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


def sqlite_module() -> Any:
    """The C part of sqlite3 (its Python part would import datetime); EngineError when missing."""
    try:
        import _sqlite3
    except ImportError:
        raise EngineError("this Python has no sqlite3 module, which the engine keeps its state in:"
                          " install it (Debian: libpython3-stdlib), or use another one") from None
    return _sqlite3


def _store_connect(store: Store) -> Any:
    sqlite = sqlite_module()
    path = store.path("engine.db")
    if not (os.path.exists(path) and os.path.isdir(store.run_path("locks"))):
        store.roots_make()
    try:
        db = sqlite.connect(path, timeout=60.0, isolation_level=None, check_same_thread=False)
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version < SCHEMA_VERSION:
            with store.lock("schema"):     # the change to WAL does not wait for others, it fails
                _store_create(db)
        elif version > SCHEMA_VERSION:
            raise EngineError(f"{path} was written by a newer engine (schema {version})")
        db.execute("PRAGMA cache_size=-256")
        # Nobody closes a connection, so the first one after a pause reads the whole log to recover
        # its index (20 us a page): it is kept short.
        db.execute("PRAGMA wal_autocheckpoint=100")
        _store_claim(store, db)
    except sqlite.Error as refused:
        raise database_refused(store, refused) from None
    return db


def database_refused(store: Store, refused: Exception) -> EngineError:
    """What an error of sqlite3 means to who may repair it: which file, and what to do."""
    text, path = str(refused), store.path("engine.db")
    for needed in (path, store.data):
        if not os.access(needed, os.R_OK | os.W_OK):
            code = errno.EROFS if _is_read_only(store.data) else errno.EACCES
            return _store_refused(store, OSError(code, os.strerror(code), needed))
    if "readonly" in text:
        return EngineError(f"the database {path} cannot be written: it is read-only")
    if "disk is full" in text or "disk I/O" in text:
        return EngineError(f"no space left for the database at {path}: free some, then try again")
    if "malformed" in text or "not a database" in text:
        return EngineError(f"the database {path} is damaged ({text}): move it away to start anew")
    return EngineError(f"cannot use the database {path}: {text}")


def _is_read_only(path: str) -> bool:
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def _store_create(db: Any) -> None:
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


def _store_claim(store: Store, db: Any) -> None:
    """Note boot and run root in use; refuse a second run root while the first is alive."""
    mine = boot_id() + " " + store.run
    row = db.execute("SELECT value FROM meta WHERE key='run'").fetchone()
    noted = os.fsdecode(row[0]) if row else ""
    if noted == mine:
        return
    if noted:
        boot, _, run = noted.partition(" ")
        if boot == boot_id() and _monitors_answer(db, run):
            raise EngineError(f"data root {store.data} is in use with run root {run}:"
                              f" it cannot be used with {store.run} at the same time")
    with _Write(db, True):
        # As bytes where it may be no UTF-8, which is all that SQLite takes for text.
        kept = mine if mine.isascii() else os.fsencode(mine)
        db.execute("INSERT OR REPLACE INTO meta VALUES('run', ?)", (kept,))


def _monitors_answer(db: Any, run: str) -> bool:
    query = "SELECT id FROM containers WHERE state IN ('starting','running','paused')"
    for (container,) in db.execute(query):
        sock = unix_connect(f"{run}/containers/{container}", "monitor.sock")
        if sock is not None:
            sock.close()
            return True
    return False


def unix_connect(directory: str, name: str,
                 kind: int = _socket.SOCK_SEQPACKET) -> _socket.socket | None:
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


def unix_listen(directory: str, name: str, kind: int = _socket.SOCK_SEQPACKET,
                mode: int = 0o600) -> _socket.socket:
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
# configuration -- what a daemon decided for every command: RUN/daemon.json, while it lives
# =============================================================================
# Runs in: all roles.   Refs: moby daemon/config
#
# A daemon decides what a container gets that asked for nothing: log driver, /dev/shm, limits, init.
# Commands that work without it must come to the same, so the daemon writes its effective
# configuration, with the names of daemon.json, to RUN/daemon.json, and whoever makes or starts a
# container reads it there. It counts while that daemon lives and not longer: it holds a lock on
# the file, which ends with the process however that ends. Without a daemon the values below hold.

CONFIGURATION: dict[str, Any] = {
    "debug": False, "default-cgroupns-mode": "private", "default-ipc-mode": "private",
    "default-shm-size": 64 << 20,       # moby config.DefaultShmSize
    "default-ulimits": [], "features": {}, "hosts": [], "http-proxy": "", "https-proxy": "",
    "init": False, "insecure-registries": [], "labels": [], "live-restore": True,
    "log-driver": "json-file", "log-opts": {}, "max-concurrent-downloads": 3,
    "max-concurrent-uploads": 5, "max-download-attempts": 5, "no-new-privileges": False,
    "no-proxy": "", "registry-mirrors": [], "seccomp-profile": "builtin", "shutdown-timeout": 15,
    "tls": False, "tlsverify": False,
}
CONFIGURATION_FILE = "daemon.json"


def configuration_read(run: str) -> dict:
    """What the daemon of a run root decided, else the defaults: {"log-driver": "json-file", ...}.

    Every key of CONFIGURATION is there.
    """
    import fcntl
    path = f"{run}/{CONFIGURATION_FILE}"
    while True:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return CONFIGURATION        # none, or of somebody else
        try:
            fcntl.flock(fd, 5)          # LOCK_SH | LOCK_NB
            if os.fstat(fd).st_nlink:
                return CONFIGURATION    # whose daemon is gone
        except BlockingIOError:         # its daemon holds it
            return {**CONFIGURATION, **json_parse(os.read(fd, 1 << 20))}
        finally:
            os.close(fd)


def configuration_write(run: str, made: dict) -> int:
    """Makes `made` what configuration_read tells, for as long as the descriptor returned is open.
    """
    import fcntl
    path = f"{run}/{CONFIGURATION_FILE}"
    beside = f"{path}.{os.getpid()}.tmp"
    fd = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, 2)              # LOCK_EX: before anybody can see the file
        write_all(fd, json_pretty(made).encode("utf-8", "surrogateescape"))
        os.rename(beside, path)
    except BaseException:
        os.close(fd)
        os.unlink(beside)
        raise
    return fd


# =============================================================================
# syscalls -- libc and raw syscalls bound once; -1 becomes OSError
# =============================================================================
# Runs in: all roles.   Refs: syscalls(2), intro(2), the man page on each line
#
# Each kernel call is one line: its name, the kinds of its arguments, and for calls that libc does
# not wrap everywhere (glibc 2.31, musl) the numbers. Nothing is loaded until the first call: a
# command that makes none never pays for ctypes (10 ms). A call binds once and keeps its function;
# `syscalls_bind()` binds them all, and runs in the launcher before its first fork, since whoever
# has entered a container must not import.
#
# A call gives what the kernel gives, or raises OSError(errno, "setns: Invalid argument", path).
# Paths are str (or bytes, or None for a null pointer); a path with a NUL inside is refused, the
# kernel would see its first half only. Buffers that the kernel reads are bytes, those that it
# writes come from `sys_buffer`.
#
# PyDLL, not CDLL: the GIL is not given up around a call. Who calls has one thread (launcher,
# monitor, init, worker); the handful of calls that the threaded API process makes do not block.
#
# What is not here: what `os` has (mknod, setresuid, memfd_create, ...) is used from there. Its
# xattr functions are missing where Python is linked with musl: see xattr_get in section paths.

SYSCALL_MACHINES = ("x86_64", "aarch64", "armv7l", "riscv64")   # the order of the numbers below

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

PR_SET_PDEATHSIG = 1            # prctl(2); those that only one section needs live there
PR_SET_DUMPABLE = 4
PR_SET_MM, PR_SET_MM_MAP = 35, 14
PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36

KEYCTL_JOIN_SESSION_KEYRING = 1

RESOLVE_NO_XDEV = 0x01          # openat2(2)
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10


class Libc:
    """ctypes and the C library, loaded once: see `libc()`."""

    __slots__ = ("addressof", "after_fork_child", "after_fork_parent", "before_fork", "buffer",
                 "dll", "get_errno", "kinds", "long")

    def __init__(self) -> None:
        import ctypes
        self.dll = ctypes.PyDLL(None, use_errno=True)
        self.get_errno = ctypes.get_errno
        self.addressof = ctypes.addressof
        self.buffer = ctypes.create_string_buffer
        self.long = ctypes.c_long
        self.kinds = {"i": ctypes.c_int, "u": ctypes.c_uint, "l": ctypes.c_long,
                      "L": ctypes.c_ulong, "p": ctypes.c_void_p, "s": _Path}
        # What os.fork() does around fork(2). All three, since without the first the last aborts
        # from Python 3.13 on (it gives back an import lock that nobody took).
        self.before_fork = ctypes.pythonapi.PyOS_BeforeFork
        self.after_fork_parent = ctypes.pythonapi.PyOS_AfterFork_Parent
        self.after_fork_child = ctypes.pythonapi.PyOS_AfterFork_Child
        for function in (self.before_fork, self.after_fork_parent, self.after_fork_child):
            function.argtypes, function.restype = (), None


def libc() -> Libc:
    """The one Libc of this process; loads ctypes at the first call."""
    try:
        return libc.loaded                          # type: ignore[attr-defined]
    except AttributeError:
        libc.loaded = Libc()                        # type: ignore[attr-defined]
        return libc.loaded                          # type: ignore[attr-defined]


class _Path:
    """The kind "s": str, bytes or None -> char pointer (ctypes asks `from_param`)."""

    @staticmethod
    def from_param(value: str | bytes | None) -> bytes | None:
        if value is None:
            return None
        text = os.fsencode(value)
        if b"\0" in text:
            raise OSError(errno.EINVAL, "path contains a NUL byte", value)
        return text


class Call:
    """A function of libc.

    Kinds of arguments: i int, u unsigned, l long, L unsigned long, s path, p pointer.
    """

    __slots__ = ("function", "kinds", "name")

    def __init__(self, name: str, kinds: str) -> None:
        self.name, self.kinds = name, kinds
        self.function: Any = None

    def __call__(self, *args: object, path: str | bytes | None = None) -> int:
        function = self.function or self.bind()
        result = function(*args)
        if result == -1:
            code = libc().get_errno()
            raise OSError(code, f"{self.name}: {os.strerror(code)}", path)
        return result

    def bind(self) -> Any:
        """The function, looked up and typed."""
        loaded = libc()
        function = loaded.dll[self.name]
        function.argtypes = [loaded.kinds[kind] for kind in self.kinds]
        self.function = function
        return function


class RawCall(Call):
    """A call by its number: one for all (those since Linux 5.1), or one per machine."""

    __slots__ = ("numbers",)

    def __init__(self, name: str, kinds: str, *numbers: int) -> None:
        super().__init__(name, kinds)
        self.numbers = numbers

    def bind(self) -> Any:
        """The function that makes the call, its number chosen for this machine."""
        loaded = libc()
        number = self.numbers[0]
        if len(self.numbers) > 1:
            number = self.numbers[SYSCALL_MACHINES.index(machine_name())]
        # Registers are filled whole: an int that stayed 32 bits wide would leave garbage above it.
        wide = {"i": loaded.kinds["l"], "u": loaded.kinds["L"]}
        # [] gives a new object at each use, getattr would not.
        syscall = loaded.dll["syscall"]
        syscall.argtypes = [loaded.long] + [
            wide.get(kind) or loaded.kinds[kind] for kind in self.kinds
        ]
        syscall.restype = loaded.long

        def function(*args: object) -> int:
            return syscall(number, *args)
        self.function = function
        return function


def machine_name() -> str:
    """This program's machine, one of SYSCALL_MACHINES; Unsupported (501) for any other.

    A 32 bit Python on a 64 bit ARM kernel makes the calls of armv7l, whatever uname(2) says.
    """
    name = os.uname().machine
    if name in ("armv7l", "armv8l", "armv6l", "aarch64") and sys.maxsize < 1 << 32:
        name = "armv7l"
    if name not in SYSCALL_MACHINES or (name != "armv7l" and sys.maxsize < 1 << 32):
        raise Unsupported(f"this program does not know the system calls of {name} "
                          f"(it knows {', '.join(SYSCALL_MACHINES)})")
    return name


def sys_buffer(content: int | bytes) -> Any:
    """Memory that the kernel may write: so many zero bytes, or a copy; `.raw` gives its bytes."""
    return libc().buffer(content, content if isinstance(content, int) else len(content))


def sys_address(buffer: Any) -> int:
    """Where the buffer is, for structures that hold pointers; the caller keeps the buffer alive."""
    return libc().addressof(buffer)


def syscalls_bind() -> None:
    """Bind every call now, so that a process that has entered a container needs no import."""
    for value in list(globals().values()):
        if isinstance(value, Call):
            try:
                value.bind()
            except AttributeError:                  # a libc without it: found out at the first use
                continue


# fmt: off
sys_mount             = Call("mount", "sssLs")                            # mount(2)
sys_umount2           = Call("umount2", "si")                             # umount(2)
sys_unshare           = Call("unshare", "i")                              # unshare(2)
sys_setns             = Call("setns", "ii")                               # setns(2)
sys_prctl             = Call("prctl", "iLLLL")                            # prctl(2)
sys_prctl_text        = Call("prctl", "isLLL")                            # prctl(2), PR_SET_NAME
sys_sethostname       = Call("sethostname", "sL")                         # sethostname(2)
sys_setdomainname     = Call("setdomainname", "sL")                       # setdomainname(2)
sys_personality       = Call("personality", "L")                          # personality(2)
sys_madvise           = Call("madvise", "LLi")                            # madvise(2)
sys_malloc_trim       = Call("malloc_trim", "L")                          # malloc_trim(3), glibc
sys_syncfs            = Call("syncfs", "i")                               # syncfs(2)
sys_statfs            = Call("statfs", "sp")                              # statfs(2)
sys_fstatfs           = Call("fstatfs", "ip")                             # statfs(2)
sys_getxattr          = Call("getxattr", "sspL")                          # getxattr(2)
sys_lgetxattr         = Call("lgetxattr", "sspL")                         # getxattr(2)
sys_setxattr          = Call("setxattr", "sspLi")                         # setxattr(2)
sys_lsetxattr         = Call("lsetxattr", "sspLi")                        # setxattr(2)
sys_listxattr         = Call("listxattr", "spL")                          # listxattr(2)
sys_llistxattr        = Call("llistxattr", "spL")                         # listxattr(2)
sys_ioctl             = Call("ioctl", "iLp")                              # ioctl(2)
sys_eventfd           = Call("eventfd", "ui")                             # eventfd(2)
sys_inotify_init1     = Call("inotify_init1", "i")                        # inotify_init(2)
sys_inotify_add_watch = Call("inotify_add_watch", "isu")                  # inotify_add_watch(2)
sys_inotify_rm_watch  = Call("inotify_rm_watch", "ii")                    # inotify_rm_watch(2)

#                       without a wrapper in every libc x86_64 aarch64 armv7l riscv64
sys_clone             = RawCall("clone", "LLLLL",         56, 220, 120, 220)  # clone(2)
sys_pivot_root        = RawCall("pivot_root", "ss",      155,  41, 218,  41)  # pivot_root(2)
sys_brk               = RawCall("brk", "L",               12, 214,  45, 214)  # brk(2)
sys_capget            = RawCall("capget", "pp",          125,  90, 184,  90)  # capget(2)
sys_capset            = RawCall("capset", "pp",          126,  91, 185,  91)  # capset(2)
sys_keyctl            = RawCall("keyctl", "isLLL",       250, 219, 311, 219)  # keyctl(2)
sys_prlimit64         = RawCall("prlimit64", "iipp",     302, 261, 369, 261)  # prlimit(2)
sys_setgroups         = RawCall("setgroups", "ip",       116, 159, 206, 159)  # setgroups(2)
sys_rt_sigaction      = RawCall("rt_sigaction", "ippL",   13, 134, 174, 134)  # rt_sigaction(2)
sys_renameat2         = RawCall("renameat2", "isisu",    316, 276, 382, 276)  # renameat2(2)
sys_seccomp           = RawCall("seccomp", "uup",        317, 277, 383, 277)  # seccomp(2)
sys_bpf               = RawCall("bpf", "ipu",            321, 280, 386, 280)  # bpf(2)
sys_execveat          = RawCall("execveat", "isppi",     322, 281, 387, 281)  # execveat(2)
sys_pidfd_send_signal = RawCall("pidfd_send_signal", "iipu", 424)         # pidfd_send_signal(2)
sys_open_tree         = RawCall("open_tree", "isu", 428)                  # open_tree(2)
sys_move_mount        = RawCall("move_mount", "isisu", 429)               # move_mount(2)
sys_fsopen            = RawCall("fsopen", "su", 430)                      # fsopen(2)
sys_fsconfig          = RawCall("fsconfig", "iussi", 431)                 # fsconfig(2)
sys_fsmount           = RawCall("fsmount", "iuu", 432)                    # fsmount(2)
sys_fspick            = RawCall("fspick", "isu", 433)                     # fspick(2)
sys_pidfd_open        = RawCall("pidfd_open", "iu", 434)                  # pidfd_open(2)
sys_clone3            = RawCall("clone3", "pL", 435)                      # clone(2)
sys_close_range       = RawCall("close_range", "uuu", 436)                # close_range(2)
sys_openat2           = RawCall("openat2", "ispL", 437)                   # openat2(2)
sys_pidfd_getfd       = RawCall("pidfd_getfd", "iiu", 438)                # pidfd_getfd(2)
sys_mount_setattr     = RawCall("mount_setattr", "isupL", 442)            # mount_setattr(2)
# fmt: on


def open_in_root(root_fd: int, path: str, flags: int, mode: int = 0) -> int:
    """A descriptor (close-on-exec) of the path as a process chrooted to `root_fd` would open it.

    Links, absolute ones too, and .. stay inside the root, whoever changes the tree meanwhile;
    magic links (/proc/PID/fd/N) are not followed: ELOOP. openat2(2), Linux 5.6.
    """
    if not flags & (os.O_CREAT | getattr(os, "O_TMPFILE", 0) & ~os.O_DIRECTORY):
        mode = 0                                    # openat2(2): EINVAL for a mode that has no use
    how = struct.pack("=3Q", flags | os.O_CLOEXEC, mode, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    for _ in range(128):
        try:
            return sys_openat2(root_fd, path, how, len(how), path=path)
        except OSError as refused:
            # A rename or mount elsewhere during the walk over "..": the kernel asks to try again.
            if refused.errno not in (errno.EAGAIN, errno.EINTR):
                raise
    raise OSError(errno.EAGAIN, "openat2: the tree does not come to rest", path)


# =============================================================================
# paths -- paths that cannot leave a root, and watching a directory
# =============================================================================
# Runs in: all roles.
# A path that somebody else may have shaped (an image's tree, a running container's) is never
# joined and opened: it is opened by the kernel relative to a descriptor that it cannot leave. What
# is missing is made one name at a time below the last directory that exists. Watching uses
# inotify(7): one descriptor, one directory. Extended attributes are read and written by `os`, or
# by libc where Python has been built without (musl): xattr(7).

O_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

IN_MODIFY = 0x2
IN_CLOSE_WRITE = 0x8
IN_MOVED_FROM = 0x40
IN_MOVED_TO = 0x80
IN_CREATE = 0x100
IN_DELETE = 0x200


def path_make(root_fd: int, path: str, is_dir: bool = True, mode: int = 0o755) -> int:
    """A descriptor (O_PATH) of a path inside the root, made with its parents where it is missing.

    Links are followed inside the root only. With is_dir=False the last name becomes an empty file.
    """
    try:
        return open_in_root(root_fd, path, os.O_PATH)
    except FileNotFoundError:
        pass
    parent, name = os.path.split(path.rstrip("/"))
    above = path_make(root_fd, parent or "/", True, mode)
    try:
        if is_dir:
            os.mkdir(name, mode, dir_fd=above)
        else:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            os.close(os.open(name, flags, 0o644, dir_fd=above))
    except FileExistsError:
        pass                    # a link that leads nowhere, or another process was quicker
    finally:
        os.close(above)
    return open_in_root(root_fd, path, os.O_PATH)


_XATTR_SIZE_MAX = 65536         # of a value, and of all names of a file: xattr(7)


def xattr_get(where: int | str | bytes, name: str | bytes, follow: bool = False) -> bytes:
    """The value of an attribute of a descriptor's file, or of a path's; OSError ENODATA: none.

    A last name that is a link is followed on demand only.
    """
    follow = follow or isinstance(where, int)
    if hasattr(os, "getxattr"):
        return os.getxattr(where, name, follow_symlinks=follow)
    buffer = sys_buffer(_XATTR_SIZE_MAX)
    call = sys_getxattr if follow else sys_lgetxattr
    size = call(_xattr_path(where), name, buffer, _XATTR_SIZE_MAX)
    return buffer.raw[:size]


def xattr_set(where: int | str | bytes, name: str | bytes, value: bytes) -> None:
    """Give a descriptor's file, or what is at a path (a link itself), an attribute."""
    follow = isinstance(where, int)
    if hasattr(os, "setxattr"):
        os.setxattr(where, name, value, follow_symlinks=follow)
        return
    call = sys_setxattr if follow else sys_lsetxattr
    call(_xattr_path(where), name, value, len(value), 0)


def xattr_list(where: int | str | bytes, follow: bool = False) -> list[str]:
    """The names of the attributes; see xattr_get."""
    follow = follow or isinstance(where, int)
    if hasattr(os, "listxattr"):
        return os.listxattr(where, follow_symlinks=follow)
    buffer = sys_buffer(_XATTR_SIZE_MAX)
    call = sys_listxattr if follow else sys_llistxattr
    size = call(_xattr_path(where), buffer, _XATTR_SIZE_MAX)
    return [os.fsdecode(name) for name in buffer.raw[:size].split(b"\0") if name]


def _xattr_path(where: int | str | bytes) -> str | bytes:
    """A path for libc: f*xattr(2) refuse descriptors of O_PATH, the name in /proc does not."""
    return f"/proc/self/fd/{where}" if isinstance(where, int) else where


class Watch:
    """inotify(7) on one directory or file; `fd` polls readable when something happened."""

    __slots__ = ("fd",)

    def __init__(self, path: str, mask: int) -> None:
        self.fd = sys_inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            sys_inotify_add_watch(self.fd, path, mask, path=path)
        except BaseException:
            os.close(self.fd)
            raise

    def wait(self, timeout: float | None = None, other: int = -1) -> bool:
        """Sleep until something happened (True), or `other` became readable, or the time is over.
        """
        from select import POLLIN, poll
        poller = poll()
        poller.register(self.fd, POLLIN)
        if other >= 0:
            poller.register(other, POLLIN)
        ready = poller.poll(None if timeout is None else max(0, timeout * 1000))
        if any(fd == self.fd for fd, _ in ready):
            os.read(self.fd, 65536)
            return True
        return False

    def close(self) -> None:
        """Stop watching."""
        os.close(self.fd)

# =============================================================================
# namespaces -- clone, unshare, setns, pinned namespace descriptors
# =============================================================================
# Runs in: launcher, monitor, init, worker.   Refs: namespaces(7), clone(2), setns(2), unshare(2)
#
# A process is made by clone(2) itself: it is born into its new namespaces (unshare, fork, wait
# would be two processes and 2 ms). The child is a copy of a Python, so the interpreter is told,
# before and after, exactly as os.fork() tells it: without that two children would draw the same
# random numbers. Only a process with one thread may do this; another thread's lock would stay
# locked in the child for ever.
#
# A namespace lives as long as a process, a mount or an open descriptor keeps it. `ns_open` makes
# such a descriptor; it must be opened while the process lives: /proc/PID/ns/* of a zombie is
# ENOENT. The cgroup namespace's root is the caller's cgroup at that very moment, so it is never
# part of the clone: the child joins its cgroup first and unshares then.

CLONE_INTO_CGROUP = 0x200000000
CLONE_PARENT = 0x8000
CLONE_NEWTIME = 0x80
CLONE_NEWNS = 0x20000
CLONE_NEWCGROUP = 0x2000000
CLONE_NEWUTS = 0x4000000
CLONE_NEWIPC = 0x8000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

# fmt: off
NAMESPACES = {          # OCI name: (name in /proc/PID/ns, flag)
    "cgroup":  ("cgroup", CLONE_NEWCGROUP),
    "ipc":     ("ipc",    CLONE_NEWIPC),
    "mount":   ("mnt",    CLONE_NEWNS),
    "network": ("net",    CLONE_NEWNET),
    "pid":     ("pid",    CLONE_NEWPID),
    "time":    ("time",   CLONE_NEWTIME),
    "user":    ("user",   CLONE_NEWUSER),
    "uts":     ("uts",    CLONE_NEWUTS),
}
# fmt: on

_SIGCHLD = 17                   # the same number on all SYSCALL_MACHINES


def ns_clone(flags: int, cgroup_fd: int | None = None) -> int:
    """The pid of a new process, or 0 in it: fork(2) with CLONE_* flags, CLONE_PARENT among them.

    With `cgroup_fd`, a descriptor of a cgroup v2 directory, it is born there (clone3, Linux 5.7).
    """
    loaded = libc()
    loaded.before_fork()
    pid = -1
    try:
        if cgroup_fd is None:
            pid = sys_clone(flags | _SIGCHLD, 0, 0, 0, 0)
        else:
            # clone3 takes the signal from the parent's own when the two become siblings.
            signal = 0 if flags & CLONE_PARENT else _SIGCHLD
            pid = sys_clone3(struct.pack("=11Q", flags | CLONE_INTO_CGROUP, 0, 0, 0, signal,
                                         0, 0, 0, 0, 0, cgroup_fd), 88)
    finally:
        if pid == 0:
            loaded.after_fork_child()
        else:
            loaded.after_fork_parent()
    return pid


def ns_fork() -> int:
    """os.fork() without its warning and audit: the pid, or 0 in the child."""
    return ns_clone(0)


def ns_open(pid: int | str, name: str) -> int:
    """A descriptor of a process's namespace by its OCI name; keeps the namespace alive."""
    return os.open(f"/proc/{pid}/ns/{NAMESPACES[name][0]}", os.O_RDONLY | os.O_CLOEXEC)


def ns_join(fd: int, name: str) -> None:
    """Enter the namespace of this OCI name; "pid" takes effect for the children that follow."""
    sys_setns(fd, NAMESPACES[name][1])


def ns_unshare(flags: int) -> None:
    """Leave the namespaces of these flags for new ones."""
    sys_unshare(flags)


def ns_inode(pid: int | str, name: str) -> int:
    """The number of a namespace: equal numbers, same namespace; 0 where the kernel has none."""
    try:
        return os.stat(f"/proc/{pid}/ns/{NAMESPACES[name][0]}").st_ino
    except FileNotFoundError:
        if os.path.exists(f"/proc/{pid}"):
            return 0
        raise


def process_name(name: str) -> None:
    """Name this process as ps shows it; 15 bytes count."""
    sys_prctl_text(PR_SET_NAME, name, 0, 0, 0)


def process_title(words: list) -> None:
    """Make these words this process's command line, as ps and /proc/PID/cmdline show it.

    The kernel is told where they stand; one without CONFIG_CHECKPOINT_RESTORE cannot be, and they
    take the place of the old ones, cut to their length (prctl(2) PR_SET_MM_MAP, proc(5) stat).
    """
    line = b"".join(os.fsencode(word) + b"\0" for word in words)
    place = process_title.__dict__["kept"] = sys_buffer(line)
    start = sys_address(place)
    fields = [0, 0, 0, *file_read("/proc/self/stat").rpartition(b")")[2].split()]
    code_data_brk = [int(fields[number]) for number in (26, 27, 45, 46, 47)]
    stack, old_start, old_end, *env = (int(fields[number]) for number in (28, 48, 49, 50, 51))
    layout = struct.pack("@11QPIi0Q", *code_data_brk, sys_brk(0), stack, start, start + len(line),
                         *env, 0, 0, -1)
    given = sys_buffer(layout)
    try:
        sys_prctl(PR_SET_MM, PR_SET_MM_MAP, sys_address(given), len(layout), 0)
    except OSError:
        size = old_end - old_start
        fd = os.open("/proc/self/mem", os.O_WRONLY | os.O_CLOEXEC)
        os.pwrite(fd, line[:size - 1].ljust(size, b"\0"), old_start)
        os.close(fd)


# =============================================================================
# mounts -- mount options, the mount API, overlay, pivot_root(2), mountinfo
# =============================================================================
# Runs in: monitor, init, worker.
# Refs: mount(2), mount_setattr(2), pivot_root(2), mount_namespaces(7)
#
# A mount is made first and put somewhere later. `mount_new`, `mount_clone` and `overlay_mount`
# give a descriptor of a detached mount: it is in no mount table, nobody can walk to it, and it is
# gone when the last descriptor is closed (it is an O_PATH descriptor: names are looked up in it,
# not read). `mount_attach` then moves it onto a target, best one opened by `open_in_root`, in
# whatever mount namespace the caller is. So nothing leaks when a step fails, and no link in a
# container's tree can misdirect a mount. The flags of a detached mount are settled by
# `mount_attrs` before it is attached; Linux < 5.12 has no mount_setattr(2), there the same call
# works after the attach only (by mount(2), through /proc/self/fd).
#
# Overlay: one `lowerdir+` for each layer (Linux 6.7). Before that the layers are one value, at
# most 255 bytes long, so they are named relative to the directory that they share; what does not
# fit either raises NeedsLegacyMount, and the init calls `overlay_mount_legacy`, mount(2) with its
# page of options. On Linux < 6.5 the kernel finds fault with options only at the end, wordlessly.
#
# Order in an init: make the mount tree private (mount_propagation), attach the root on "/",
# everything else inside it, `root_pivot`. Needs Linux 5.2 (fsopen); sysfs-like listings are read
# from /proc/self/mountinfo.

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_SYNCHRONOUS = 0x10
MS_REMOUNT = 0x20
MS_MANDLOCK = 0x40
MS_DIRSYNC = 0x80
MS_NOSYMFOLLOW = 0x100
MS_NOATIME = 0x400
MS_NODIRATIME = 0x800
MS_BIND = 0x1000
MS_MOVE = 0x2000
MS_REC = 0x4000
MS_SILENT = 0x8000
MS_UNBINDABLE = 0x20000
MS_PRIVATE = 0x40000
MS_SLAVE = 0x80000
MS_SHARED = 0x100000
MS_RELATIME = 0x200000
MS_STRICTATIME = 0x1000000
MS_LAZYTIME = 0x2000000

MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_ATIME = 0x70         # the field of the three below it and of relatime (0)
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR_NODIRATIME = 0x80
MOUNT_ATTR_IDMAP = 0x100000
MOUNT_ATTR_NOSYMFOLLOW = 0x200000

MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_T_EMPTY_PATH = 0x40
OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
FSOPEN_CLOEXEC = 1
FSMOUNT_CLOEXEC = 1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6

OVERLAY_LOWER_MAX = 128         # layers that an image may have; the kernel itself takes 500
OVERLAY_OPTIONS = ("index=off", "metacopy=off", "redirect_dir=off")

# fmt: off
# As mount(8) spells them: (MS_* set, MS_* cleared). "r" and a name: recursive.
MOUNT_OPTIONS = {
    "async":         (0, MS_SYNCHRONOUS),
    "atime":         (0, MS_NOATIME),
    "bind":          (MS_BIND, 0),
    "defaults":      (0, 0),
    "dev":           (0, MS_NODEV),
    "diratime":      (0, MS_NODIRATIME),
    "dirsync":       (MS_DIRSYNC, 0),
    "exec":          (0, MS_NOEXEC),
    "lazytime":      (MS_LAZYTIME, 0),
    "loud":          (0, MS_SILENT),
    "mand":          (MS_MANDLOCK, 0),
    "noatime":       (MS_NOATIME, 0),
    "nodev":         (MS_NODEV, 0),
    "nodiratime":    (MS_NODIRATIME, 0),
    "noexec":        (MS_NOEXEC, 0),
    "nolazytime":    (0, MS_LAZYTIME),
    "nomand":        (0, MS_MANDLOCK),
    "norelatime":    (0, MS_RELATIME),
    "nostrictatime": (0, MS_STRICTATIME),
    "nosuid":        (MS_NOSUID, 0),
    "nosymfollow":   (MS_NOSYMFOLLOW, 0),
    "rbind":         (MS_BIND | MS_REC, 0),
    "relatime":      (MS_RELATIME, 0),
    "remount":       (MS_REMOUNT, 0),
    "ro":            (MS_RDONLY, 0),
    "rw":            (0, MS_RDONLY),
    "silent":        (MS_SILENT, 0),
    "strictatime":   (MS_STRICTATIME, 0),
    "suid":          (0, MS_NOSUID),
    "symfollow":     (0, MS_NOSYMFOLLOW),
    "sync":          (MS_SYNCHRONOUS, 0),
}

MOUNT_PROPAGATION = {
    "private":     MS_PRIVATE,
    "rprivate":    MS_PRIVATE | MS_REC,
    "rshared":     MS_SHARED | MS_REC,
    "rslave":      MS_SLAVE | MS_REC,
    "runbindable": MS_UNBINDABLE | MS_REC,
    "shared":      MS_SHARED,
    "slave":       MS_SLAVE,
    "unbindable":  MS_UNBINDABLE,
}

_ATTRS = (                      # what belongs to a mount, not to its file system
    (MS_RDONLY,      MOUNT_ATTR_RDONLY),
    (MS_NOSUID,      MOUNT_ATTR_NOSUID),
    (MS_NODEV,       MOUNT_ATTR_NODEV),
    (MS_NOEXEC,      MOUNT_ATTR_NOEXEC),
    (MS_NOATIME,     MOUNT_ATTR_NOATIME),
    (MS_STRICTATIME, MOUNT_ATTR_STRICTATIME),
    (MS_NODIRATIME,  MOUNT_ATTR_NODIRATIME),
    (MS_NOSYMFOLLOW, MOUNT_ATTR_NOSYMFOLLOW),
)

_FS_FLAGS = (                   # what belongs to the file system: (MS_*, name for fsconfig)
    (MS_SYNCHRONOUS, "sync"),
    (MS_DIRSYNC,     "dirsync"),
    (MS_MANDLOCK,    "mand"),
    (MS_LAZYTIME,    "lazytime"),
)
# fmt: on

_FS_VALUE_MAX = 255             # fsconfig(2), of a string
_PAGE = 4096                    # mount(2), of all options; kernels with larger pages keep to it too


class NeedsLegacyMount(EngineError):
    """This kernel cannot make the overlay as a detached mount: see overlay_mount_legacy."""

    status = 501


class MountOptions(tuple):
    """Parsed options: MS_* to set, to clear, of propagation; data options; the recursive pair."""

    __slots__ = ()

    set = property(lambda self: self[0])
    clear = property(lambda self: self[1])
    propagation = property(lambda self: self[2])
    data = property(lambda self: self[3])
    recursive_set = property(lambda self: self[4])
    recursive_clear = property(lambda self: self[5])


class MountInfo(tuple):
    """One line of mountinfo: proc_pid_mountinfo(5)."""

    __slots__ = ()

    id = property(lambda self: self[0])
    parent = property(lambda self: self[1])
    device = property(lambda self: self[2])             # "8:1"
    root = property(lambda self: self[3])               # the directory that is seen of it
    point = property(lambda self: self[4])
    options = property(lambda self: self[5])            # of the mount, a list of words
    propagation = property(lambda self: self[6])        # ["shared:1"], ["master:2"], []: private
    fstype = property(lambda self: self[7])
    source = property(lambda self: self[8])
    data = property(lambda self: self[9])               # of the file system, a list of words


def mount_options_parse(options: list[str]) -> MountOptions:
    """OCI mount options: names of mount(8) become flags, the rest is `data`.

    >>> mount_options_parse(["nosuid", "rprivate", "mode=755"])
    (2, 0, [278528], ["mode=755"], 0, 0)
    """
    flags = clear = recursive_set = recursive_clear = 0
    propagation, data = [], []
    for option in options:
        if option in MOUNT_PROPAGATION:
            propagation.append(MOUNT_PROPAGATION[option])
        elif option in MOUNT_OPTIONS:
            on, off = MOUNT_OPTIONS[option]
            flags, clear = flags & ~off | on, clear & ~on | off
        elif option[:1] == "r" and option[1:] in MOUNT_OPTIONS:
            on, off = MOUNT_OPTIONS[option[1:]]
            recursive_set = recursive_set & ~off | on
            recursive_clear = recursive_clear & ~on | off
        elif option:
            data.append(option)
    return MountOptions((flags, clear, propagation, data, recursive_set, recursive_clear))


def mount_attrs_of(flags: int) -> int:
    """The MOUNT_ATTR_* of MS_* flags; flags of the file system itself are left out."""
    attrs = 0
    for flag, attr in _ATTRS:
        if flags & flag:
            attrs |= attr
    return attrs


def _ms_of(attrs: int) -> int:
    flags = 0
    for flag, attr in _ATTRS:
        if attrs & attr:
            flags |= flag
    return flags


def _fs_set(fs: int, option: str, path: str) -> None:
    """One option of a file system that is being configured: "mode=755" or "newinstance"."""
    key, equals, value = option.partition("=")
    try:
        if equals:
            sys_fsconfig(fs, FSCONFIG_SET_STRING, key, value, 0)
        else:
            sys_fsconfig(fs, FSCONFIG_SET_FLAG, key, None, 0)
    except OSError as refused:
        raise _fs_error(fs, refused, path) from None


def _fs_error(fs: int, refused: OSError, path: str) -> OSError:
    """The same error with the sentence that the kernel left on the descriptor, if it left one."""
    try:
        told = os.read(fs, 1024).decode(errors="replace").strip()
    except OSError:
        return OSError(refused.errno, refused.strerror, path)
    return OSError(refused.errno, f"{refused.strerror} ({told[2:]})", path)


def _fs_mount(fs: int, attrs: int, path: str) -> int:
    """Create the configured file system and give its detached mount."""
    try:
        sys_fsconfig(fs, FSCONFIG_CMD_CREATE, None, None, 0)
    except OSError as refused:
        raise _fs_error(fs, refused, path) from None
    return sys_fsmount(fs, FSMOUNT_CLOEXEC, attrs, path=path)


def mount_new(fstype: str, options: list[str] | tuple = (), attrs: int = 0) -> int:
    """A detached mount (descriptor) of a new file system.

    Options are those of mount(8) -o, attrs MOUNT_ATTR_*. OSError with the kernel's sentence: ENODEV
    no such file system, EINVAL an option that it does not know.
    """
    parsed = mount_options_parse(list(options))
    fs = sys_fsopen(fstype, FSOPEN_CLOEXEC, path=fstype)
    try:
        if not any(option.startswith("source=") for option in parsed.data):
            _fs_set(fs, "source=" + fstype, fstype)
        for flag, name in _FS_FLAGS:
            if parsed.set & flag:
                _fs_set(fs, name, fstype)
        for option in parsed.data:
            _fs_set(fs, option, fstype)
        return _fs_mount(fs, attrs | mount_attrs_of(parsed.set), fstype)
    finally:
        os.close(fs)


def mount_clone(path_or_fd: str | int, recursive: bool = False) -> int:
    """A detached copy (bind mount) of what is at a path, or of what a descriptor stands for."""
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (AT_RECURSIVE if recursive else 0)
    if isinstance(path_or_fd, int):
        return sys_open_tree(path_or_fd, "", flags | AT_EMPTY_PATH)
    return sys_open_tree(AT_FDCWD, path_or_fd, flags, path=path_or_fd)


def mount_attach(fd: int, dirfd: int = AT_FDCWD, path: str = "") -> None:
    """Put a detached mount on `path` below `dirfd`; without a path on `dirfd` itself."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | (0 if path else MOVE_MOUNT_T_EMPTY_PATH)
    sys_move_mount(fd, "", dirfd, path, flags, path=path or None)


def mount_attrs(fd: int, *, set: int = 0, clear: int = 0, propagation: int = 0,
                recursive: bool = False) -> None:
    """Set and clear MOUNT_ATTR_* of a mount, and its propagation (MS_PRIVATE, ...).

    On Linux < 5.12 a detached mount cannot be changed: ENOSYS; call it again after the attach.
    """
    if set & MOUNT_ATTR_ATIME:
        # It is one field: mount_setattr(2) wants it cleared whole.
        clear |= MOUNT_ATTR_ATIME
    attr = struct.pack("=4Q", set, clear, propagation & ~MS_REC, 0)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    try:
        sys_mount_setattr(fd, "", flags, attr, len(attr))
    except OSError as refused:
        if refused.errno != errno.ENOSYS:
            raise
        _attrs_by_remount(fd, (set, clear, propagation & ~MS_REC), recursive)


def mount_readonly(fd: int, recursive: bool = False) -> None:
    """Make a mount, or it and all below it, read-only; see mount_attrs."""
    mount_attrs(fd, set=MOUNT_ATTR_RDONLY, recursive=recursive)


def _attrs_by_remount(fd: int, change: tuple, recursive: bool) -> None:
    """mount_setattr(2) for Linux < 5.12: mount(2) on every mount, which keeps its other flags."""
    on, off, propagation = change
    mount_id = mount_id_of(fd)
    mounts = {info.id: info for info in mountinfo()}
    if mount_id not in mounts:
        raise OSError(errno.ENOSYS, "mount_setattr: the kernel cannot change a detached mount")
    wanted = [mount_id]
    if recursive:
        wanted += mounts_below(mounts, mount_id)
    for number in wanted:
        info = mounts[number]
        # The descriptor names its mount exactly; those below it have a path only.
        target = f"/proc/self/fd/{fd}" if number == mount_id else info.point
        flags = mount_options_parse(info.options).set & ~_ms_of(off & ~on) | _ms_of(on)
        if on | off:
            sys_mount(None, target, None, MS_REMOUNT | MS_BIND | flags, None, path=info.point)
        if propagation:
            sys_mount(None, target, None, propagation, None, path=info.point)


def mount_propagation(path: str, flags: int) -> None:
    """Set the propagation of the mount at a path: MS_SLAVE | MS_REC and the like."""
    sys_mount(None, path, None, flags, None, path=path)


def unmount(path_or_fd: str | int, flags: int = MNT_DETACH) -> None:
    """Take a mount, and with MNT_DETACH all below it, out of this mount namespace."""
    path = f"/proc/self/fd/{path_or_fd}" if isinstance(path_or_fd, int) else path_or_fd
    sys_umount2(path, flags, path=path)


def overlay_mount(lowers: list[str], upper: str | None = None, work: str | None = None, *,
                  options: tuple = (), attrs: int = 0) -> int:
    """A detached overlay (descriptor) of `lowers`, topmost first; read-only without an upper.

    NeedsLegacyMount: not on this kernel with these names. ENODEV: no overlay at all.
    """
    if len(lowers) > OVERLAY_LOWER_MAX:
        raise InvalidParameter("max depth exceeded")
    if len(lowers) == 1 and upper is None:
        fd = mount_clone(lowers[0])                 # overlayfs wants two layers at least
        try:
            mount_attrs(fd, set=attrs | MOUNT_ATTR_RDONLY, propagation=MS_PRIVATE)
        except BaseException as failure:
            os.close(fd)
            if isinstance(failure, OSError) and failure.errno == errno.ENOSYS:
                raise NeedsLegacyMount("a detached mount cannot be made read-only") from None
            raise
        return fd
    # Descriptors that stand for paths, until it is mounted.
    held: list[int] = []
    try:
        fs = sys_fsopen("overlay", FSOPEN_CLOEXEC, path="overlay")
        held.append(fs)
        _fs_set(fs, "source=overlay", "overlay")
        for option in OVERLAY_OPTIONS + tuple(options):
            _fs_set(fs, option, "overlay")
        for key, path in (("upperdir", upper), ("workdir", work)):
            if path is not None:
                _fs_set(fs, f"{key}={_overlay_name(path, held)}", path)
        return _overlay_lowers(fs, lowers, held, attrs)
    finally:
        for fd in held:
            os.close(fd)


def _overlay_lowers(fs: int, lowers: list[str], held: list[int], attrs: int) -> int:
    """Add the layers, by `lowerdir+` or all in one value, and mount."""
    if overlay_adds_layers():
        for path in lowers:
            _fs_set(fs, f"lowerdir+={_overlay_name(path, held)}", path)
        return _fs_mount(fs, attrs, "overlay")
    directory = os.path.dirname(lowers[0]) if len(lowers) == 1 else os.path.commonpath(lowers)
    names = [os.path.relpath(path, directory) for path in lowers]
    value = ":".join(names)
    if len(os.fsencode(value)) > _FS_VALUE_MAX or _is_odd("".join(names)):
        raise NeedsLegacyMount("the layers' names do not fit into one option of this kernel")
    here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    held.append(here)
    os.chdir(directory)
    try:
        _fs_set(fs, "lowerdir=" + value, directory)
        return _fs_mount(fs, attrs, "overlay")
    finally:
        os.fchdir(here)


def overlay_exists() -> bool:
    """This kernel has overlayfs, or a module of it that the kernel can load."""
    if b"\toverlay\n" in file_read("/proc/filesystems"):
        return True
    try:
        # The kernel loads the module by itself when the file system is asked for.
        os.close(sys_fsopen("overlay", FSOPEN_CLOEXEC))
        return True
    except OSError:
        return False


def overlay_adds_layers() -> bool:
    """This kernel's overlay takes layers one by one (Linux 6.7); asked once in a process's life."""
    try:
        return overlay_adds_layers.known            # type: ignore[attr-defined]
    except AttributeError:
        overlay_adds_layers.known = _overlay_knows()    # type: ignore[attr-defined]
        return overlay_adds_layers.known            # type: ignore[attr-defined]


def _overlay_knows() -> bool:
    """Try it on a file system that is never made.

    Before 6.5 overlay's options are collected unread, so nonsense is accepted too, and only CREATE
    would fail, with a line in the kernel's log each time.
    """
    for key, value, answer in (("nonsense", "1", False), ("lowerdir+", "/", True)):
        fs = sys_fsopen("overlay", FSOPEN_CLOEXEC, path="overlay")
        try:
            sys_fsconfig(fs, FSCONFIG_SET_STRING, key, value, 0)
            return answer
        except OSError as refused:
            if refused.errno != errno.EINVAL:
                raise
        finally:
            os.close(fs)
    return False


def _is_odd(path: str) -> bool:
    """Holds a character with a meaning of its own in an overlay's options."""
    return any(character in path for character in "\\,:\"")


def _overlay_name(path: str, held: list[int]) -> str:
    """The path, or a short and harmless name for it through a descriptor added to `held`."""
    if len(os.fsencode(path)) <= _FS_VALUE_MAX and not _is_odd(path):
        return path
    held.append(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    return f"/proc/self/fd/{held[-1]}"


def overlay_mount_legacy(layers_dir: str, names: list[str], upper: str | None, work: str | None, *,
                         target: str, flags: int = 0) -> None:
    """Mount an overlay of `names` in `layers_dir`, topmost first, on `target` by mount(2).

    Leaves the working directory in `layers_dir`. A single layer without upper is bound read-only.
    """
    os.chdir(layers_dir)
    if len(names) == 1 and upper is None:
        sys_mount(names[0], target, None, MS_BIND, None, path=target)
        sys_mount(None, target, None, MS_BIND | MS_REMOUNT | MS_RDONLY | flags, None, path=target)
        return
    held: list[int] = []
    try:
        words = ["lowerdir=" + ":".join(names)]
        if upper is not None and work is not None:
            words += [
                "upperdir=" + _overlay_name(upper, held),
                "workdir=" + _overlay_name(work, held),
            ]
        data = ",".join(words + list(OVERLAY_OPTIONS))
        if len(os.fsencode(data)) >= _PAGE:
            raise InvalidParameter("max depth exceeded")
        sys_mount("overlay", target, "overlay", flags, data, path=target)
    finally:
        for fd in held:
            os.close(fd)


def root_pivot(new_root_fd: int) -> None:
    """Make an attached mount this namespace's root; the old one goes with all that is on it.

    The mounts must not be shared (mount_propagation("/", MS_SLAVE | MS_REC) before):
    pivot_root(2) refuses it, and the unmount would reach the host. Where the root is the
    initramfs, which pivot_root(2) cannot move, it is entered by chroot(2) after everything else
    was unmounted.
    """
    os.fchdir(new_root_fd)
    try:
        # "." twice stacks the old root on the new one, so no directory for it is needed:
        # pivot_root(2).
        sys_pivot_root(".", ".")
    except OSError as refused:
        if refused.errno != errno.EINVAL:
            raise
        _root_move(new_root_fd)
        return
    # Detaching a shared old root would unmount the host's: as slave nothing goes back.
    sys_mount(None, ".", None, MS_SLAVE | MS_REC, None, path=".")
    sys_umount2(".", MNT_DETACH, path=".")
    os.chdir("/")


def _root_move(new_root_fd: int) -> None:
    """The way of switch_root(8): moved over "/", so that even a walk out of chroot ends in it."""
    new = mount_id_of(new_root_fd)
    mounts = {info.id: info for info in mountinfo()}
    keep = {new, *mounts_below(mounts, new)}
    number = mounts[new].parent
    while number in mounts:                         # those that the new root stands on
        keep.add(number)
        number = mounts[number].parent if mounts[number].parent != number else -1
    for info in reversed(list(mounts.values())):
        if info.id not in keep:
            try:
                sys_umount2(info.point, MNT_DETACH | UMOUNT_NOFOLLOW)
            except OSError:
                # Locked by a user namespace, or gone with its parent.
                continue
    os.fchdir(new_root_fd)
    if mounts[new].point != "/":
        sys_mount(".", "/", None, MS_MOVE, None, path="/")
    os.chroot(".")
    os.chdir("/")


def mount_id_of(fd: int) -> int:
    """The mount (its number in mountinfo) that a descriptor is on."""
    with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
        for line in file:
            if line.startswith(b"mnt_id:"):
                return int(line[7:])
    raise OSError(errno.ENOENT, "fdinfo has no mnt_id")


def mounts_below(mounts: dict[int, MountInfo], number: int) -> list[int]:
    """The numbers of the mounts that stand on mount `number`, parents before children."""
    children: dict[int, list[int]] = {}
    for info in mounts.values():
        if info.id != info.parent:
            children.setdefault(info.parent, []).append(info.id)
    below = list(children.get(number, ()))
    for child in below:
        below += children.get(child, ())
    return below


def mountinfo(pid: int | str = "self") -> list[MountInfo]:
    """The mounts of a process's namespace, in the kernel's order (parents first)."""
    with open(f"/proc/{pid}/mountinfo", "rb") as file:
        return [_mountinfo_line(line) for line in file.read().split(b"\n") if line]


def _mountinfo_line(line: bytes) -> MountInfo:
    left, _, right = line.partition(b" - ")
    number, parent, device, root, point, options, *propagation = map(_unescape, left.split(b" "))
    fstype, source, *data = map(_unescape, right.split(b" "))
    words = data[0].split(",") if data else []
    return MountInfo((int(number), int(parent), device, root, point, options.split(","),
                      propagation, fstype, source, words))


def _unescape(word: bytes) -> str:
    """A field of mountinfo, whose blanks and backslashes are written in octal."""
    if b"\\" in word:
        head, *rest = word.split(b"\\")
        word = head + b"".join(bytes((int(part[:3], 8),)) + part[3:] for part in rest)
    return os.fsdecode(word)


# =============================================================================
# devices -- device rules of a cgroup: v1's lists, v2's BPF program
# =============================================================================
# Runs in: monitor.   Refs: cgroup-v1/devices.rst, cgroup-v2.rst (device controller), bpf(2)
#
# Which device nodes the processes of a cgroup may make, read and write, as OCI rules in order. In
# v1 each rule is a line written to devices.allow or devices.deny. v2 has no files for it: a BPF
# program is attached to the cgroup and asked at each open and mknod. It tries the rules from the
# last to the first and the first that matches answers, which is what v1's lists come to. A
# program is there as long as its cgroup; a second one can only take more away.

_DEVICE_TYPES = {"b": 1, "c": 2}                    # BPF_DEVCG_DEV_*
_DEVICE_ACCESS = {"m": 1, "r": 2, "w": 4}           # BPF_DEVCG_ACC_*

_PROG_LOAD, _PROG_ATTACH = 5, 8                     # bpf(2), linux/bpf.h
_PROG_TYPE_CGROUP_DEVICE, _CGROUP_DEVICE, _F_ALLOW_MULTI = 15, 6, 2
_ATTR_SIZE = 128


def device_rule_text(rule: dict) -> str:
    """A rule as v1's lists take it: "c 1:3 rwm", "a" for every device."""
    if rule.get("type") in (None, "", "a"):
        return "a"
    place = [str(number) if number is not None and number >= 0 else "*"
             for number in (rule.get("major"), rule.get("minor"))]
    return f"{rule['type']} {place[0]}:{place[1]} {rule.get('access') or 'rwm'}"


def device_program(rules: list[dict]) -> bytes:
    """eBPF of the rules: 1 where access is allowed.

    The last rule that matches decides, none is a refusal.
    """
    # r1 points to access_type (the type in its low half, the access above), major and minor.
    code = [_ebpf(0x61, 2, 1, 0),                                       # r2 = access_type
            _ebpf(0x61, 4, 1, 4), _ebpf(0x61, 5, 1, 8),                 # r4 = major, r5 = minor
            _ebpf(0xBC, 3, 2), _ebpf(0x74, 3, 0, 0, 16),                # r3 = access
            _ebpf(0x54, 2, 0, 0, 0xFFFF)]                               # r2 = type
    for rule in reversed(rules):
        block = _device_block(rule)
        code += block
        if len(block) == 2:
            # It matches everything: what follows would be unreachable, which the kernel refuses.
            return b"".join(code)
    return b"".join([*code, _ebpf(0xB4, 0), _ebpf(0x95)])


def _device_block(rule: dict) -> list[bytes]:
    """If the rule matches, answer; else fall through to the next."""
    kind = _DEVICE_TYPES.get(rule.get("type") or "a")
    access = sum(_DEVICE_ACCESS[letter] for letter in set(rule.get("access") or "rwm"))
    tests = []                                      # (instructions, jump opcode, register, value)
    if kind is not None:
        tests.append(([], 0x56, 2, kind))
    if access != 7 and rule["allow"]:               # everything asked for must be in it
        tests.append(([_ebpf(0xBC, 1, 3), _ebpf(0x54, 1, 0, 0, ~access & 7)], 0x56, 1, 0))
    elif access != 7:                               # something asked for is in it
        tests.append(([_ebpf(0xBC, 1, 3), _ebpf(0x54, 1, 0, 0, access)], 0x16, 1, 0))
    for register, key in ((4, "major"), (5, "minor")):
        number = rule.get(key)
        if kind is not None and number is not None and number >= 0:
            tests.append(([], 0x56, register, number))
    body = [_ebpf(0xB4, 0, 0, 0, int(bool(rule["allow"]))), _ebpf(0x95)]
    for before, jump, register, value in reversed(tests):
        body = [*before, _ebpf(jump, register, 0, len(body), value), *body]
    return body


def _ebpf(code: int, target: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    """One instruction of eBPF: struct bpf_insn, linux/bpf.h."""
    return struct.pack("=BBhI", code, target | source << 4, offset, value)


def device_attach(path: str, program: bytes) -> None:
    """Load the program and hold every process below the cgroup to it.

    It stays as long as the cgroup does.
    """
    code, licence = sys_buffer(program), sys_buffer(b"Apache-2.0\0")
    attr = struct.pack("=IIQQ", _PROG_TYPE_CGROUP_DEVICE, len(program) // 8, sys_address(code),
                       sys_address(licence))
    fd = sys_bpf(_PROG_LOAD, sys_buffer(attr.ljust(_ATTR_SIZE, b"\0")), _ATTR_SIZE)
    try:
        cgroup = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            attr = struct.pack("=4I", cgroup, fd, _CGROUP_DEVICE, _F_ALLOW_MULTI)
            sys_bpf(_PROG_ATTACH, attr, len(attr))
        finally:
            os.close(cgroup)
    finally:
        os.close(fd)


# =============================================================================
# cgroups -- one interface over v1, v2 and hybrid: create, limit, read, freeze, kill
# =============================================================================
# Runs in: launcher, monitor, init, api.   Refs: cgroups(7), kernel cgroup-v2.rst, cgroup-v1/*.rst,
#          runtime-spec config-linux.md (resources)
#
# A cgroup has one name, "engine/<id>", in every hierarchy of the machine: in each v1
# controller's, in v1's name=systemd, and in v2. What a name means there, mountpoint and
# controllers, is found once by `cgroup_probe`. Where nothing is mounted, or nothing may be
# written, everything here does nothing and says so in the warnings that `create` and `limit` give
# back: the container runs without limits rather than not at all.
#
# A process joins by itself, best as its first act: it writes "0" into v1's `tasks` (0.2 ms; a
# parent that writes cgroup.procs waits 10 ms for the kernel) and is born in v2 (`ns_clone(flags,
# cgroup.v2_fd())`) or writes there too (`tasks_fds(v2=True)`). The cgroup namespace is made after
# that.
#
# v2 gives a controller to a cgroup only when its parent's cgroup.subtree_control names it, all
# the way down, and a cgroup that does so holds no process itself: so nothing ever runs in
# "engine", the launcher lives in "engine/launcher". v1's cpuset is empty in a new cgroup and
# takes no process before cpus and mems are filled.
#
# Limits come as OCI `linux.resources`. One row of RESOURCES is one value in both versions; what
# is not one value in one file (memory with swap, cpu quota, block devices) has a function.

CGROUP_BUSY_WAIT = 2.0          # seconds that a removed cgroup's last task may take to be gone
CGROUP_CONTROLLERS = ("cpu", "cpuset", "hugetlb", "io", "memory", "pids")      # wanted in v2

_UNLIMITED = (1 << 64) - 1      # "max", as Docker's API shows it

_V1_CONTROLLERS = frozenset((   # words in the options of a v1 mount that are not options
    "blkio", "cpu", "cpuacct", "cpuset", "debug", "devices", "freezer", "hugetlb", "memory", "misc",
    "net_cls", "net_prio", "perf_event", "pids", "rdma"))


def cpu_weight(shares: int) -> int:
    """cpu.weight (1..10000) of v1's shares (2..262144); 1024 becomes 100, the default of each."""
    if shares <= 2:
        return 1
    if shares >= 262144:
        return 10000
    log = _log2(shares)
    weight = 10 ** ((log * log + 125 * log) / 612.0 - 7.0 / 34.0)
    return int(weight) + (weight > int(weight))


def _log2(number: int) -> float:
    """log2, exact for powers of two; by squaring, as the monitor imports nothing."""
    whole = number.bit_length() - 1
    rest, log, step = number / (1 << whole), float(whole), 0.5
    for _ in range(40):
        rest *= rest
        if rest >= 2.0:
            rest, log = rest / 2.0, log + step
        step /= 2
    return log


def io_weight(weight: int) -> int:
    """io.weight (1..10000) of blkio.weight (10..1000)."""
    return 1 + (weight - 10) * 9999 // 990


def _number_text(value: int) -> str:
    return str(value)


def _flag_text(value: bool) -> str:
    return str(int(value))


def _weight_text(shares: int) -> str:
    return str(cpu_weight(shares))


def _or_max(value: int) -> str:
    return "max" if value < 0 else str(value)


def _pids(value: int) -> str:
    return str(value) if value > 0 else "max"


# fmt: off
# (OCI name, v1 controller, v1 file, v1 text, v2 file, v2 text); no file: that version has none
RESOURCES = (
    ("memory.reservation", "memory", "memory.soft_limit_in_bytes", _number_text,
     "memory.low", _or_max),
    ("memory.swappiness", "memory", "memory.swappiness", _number_text, None, None),
    ("memory.disableOOMKiller", "memory", "memory.oom_control", _flag_text, None, None),
    ("cpu.shares", "cpu", "cpu.shares", _number_text, "cpu.weight", _weight_text),
    ("cpu.idle", "cpu", "cpu.idle", _number_text, "cpu.idle", _number_text),
    ("cpu.realtimePeriod", "cpu", "cpu.rt_period_us", _number_text, None, None),
    ("cpu.realtimeRuntime", "cpu", "cpu.rt_runtime_us", _number_text, None, None),
    ("cpu.cpus", "cpuset", "cpuset.cpus", str, "cpuset.cpus", str),
    ("cpu.mems", "cpuset", "cpuset.mems", str, "cpuset.mems", str),
    ("pids.limit", "pids", "pids.max", _pids, "pids.max", _pids),
)

_THROTTLES = (  # (OCI name, v1 file, word in v2's io.max)
    ("throttleReadBpsDevice",   "blkio.throttle.read_bps_device",   "rbps"),
    ("throttleWriteBpsDevice",  "blkio.throttle.write_bps_device",  "wbps"),
    ("throttleReadIOPSDevice",  "blkio.throttle.read_iops_device",  "riops"),
    ("throttleWriteIOPSDevice", "blkio.throttle.write_iops_device", "wiops"),
)
# fmt: on


class Hierarchies:
    """Where the machine's cgroups are.

    `v1` {controller: mountpoint} ("name=systemd" too), `v2` or None, `mode` "v1", "v2", "hybrid" or
    "none", `controllers` by their names in v1 or, what is in v2, by those in v2.
    """

    __slots__ = ("controllers", "mode", "v1", "v2", "v2_controllers")

    def __init__(self, v1: dict[str, str], v2: str | None) -> None:
        self.v1, self.v2 = v1, v2
        self.mode = {(True, True): "hybrid", (True, False): "v1", (False, True): "v2"}.get(
            (bool(v1), v2 is not None), "none")
        self.v2_controllers = (
            frozenset(_read_words(v2 + "/cgroup.controllers")) if v2 else frozenset()
        )
        self.controllers = frozenset(v1) | self.v2_controllers

    def tops(self) -> list[str]:
        """The distinct v1 mountpoints (cpu and cpuacct are often mounted together)."""
        return list(dict.fromkeys(self.v1.values()))


def cgroup_probe() -> Hierarchies:
    """The machine's hierarchies, read from mountinfo once in a process's life."""
    try:
        return cgroup_probe.found                   # type: ignore[attr-defined]
    except AttributeError:
        cgroup_probe.found = cgroup_hierarchies(mountinfo())    # type: ignore[attr-defined]
        return cgroup_probe.found                   # type: ignore[attr-defined]


def cgroup_hierarchies(mounts: list[MountInfo]) -> Hierarchies:
    """The hierarchies that these mounts show.

    The first mount of each counts, a whole one before a part.
    """
    v1: dict[str, str] = {}
    v2 = None
    for info in sorted(mounts, key=lambda info: info.root != "/"):
        if info.fstype == "cgroup2":
            v2 = v2 or info.point
        elif info.fstype == "cgroup":
            for word in info.data:
                if word.startswith("name=") or word in _V1_CONTROLLERS:
                    v1.setdefault(word, info.point)
    return Hierarchies(v1, v2)


def cgroup_paths(name: str) -> Cgroup:
    """The cgroup of this name ("engine/<id>") in every hierarchy; nothing is made yet."""
    return Cgroup(name, cgroup_probe())


class Cgroup:
    """One name in every hierarchy; usable in any process that sees the file systems."""

    __slots__ = ("hierarchies", "name", "v2")

    def __init__(self, name: str, hierarchies: Hierarchies) -> None:
        self.name, self.hierarchies = name, hierarchies
        self.v2 = f"{hierarchies.v2}/{name}" if hierarchies.v2 else None

    def v1(self, controller: str) -> str | None:
        """Its directory in a v1 controller's hierarchy; None where that is not v1."""
        top = self.hierarchies.v1.get(controller)
        return f"{top}/{self.name}" if top else None

    def v1_paths(self) -> list[str]:
        """Its directories in all v1 hierarchies."""
        return [f"{top}/{self.name}" for top in self.hierarchies.tops()]

    def paths(self) -> list[str]:
        """Its directories in all hierarchies."""
        return self.v1_paths() + ([self.v2] if self.v2 else [])

    # ---- being and ending

    def create(self, fresh: bool = True) -> list[str]:
        """Make it everywhere, and its parents; warnings of the hierarchies that refuse.

        A `fresh` one takes no process and no limit over from an earlier one of its name: EBUSY
        if that one is still inhabited after CGROUP_BUSY_WAIT.
        """
        warnings = [] if self.paths() else ["no cgroup is mounted: limits are not enforced"]
        for path in self.paths():
            try:
                _cgroup_make(path, self.name, fresh=fresh, cpuset=path == self.v1("cpuset"))
                if path == self.v2:
                    warnings += _v2_enable(self.hierarchies, self.name)
            except OSError as refused:
                if refused.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                    raise
                warnings.append(f"cannot make a cgroup: {path}: {refused.strerror}")
        return warnings

    def remove(self, timeout: float = CGROUP_BUSY_WAIT) -> None:
        """Remove it and what was made below it, everywhere.

        EBUSY when a process stays longer than `timeout`.
        """
        deadline = time.monotonic() + timeout
        for path in self.paths():
            _cgroup_remove(path, deadline)

    def tasks_fds(self, v2: bool = False) -> list[int]:
        """Descriptors into which the process that is to join writes b"0"; v2's too if wanted."""
        files = [path + "/tasks" for path in self.v1_paths()]
        if v2 and self.v2:
            files.append(self.v2 + "/cgroup.procs")
        fds = []
        for file in files:
            try:
                fds.append(os.open(file, os.O_WRONLY | os.O_CLOEXEC))
            except OSError as missing:
                if missing.errno not in (errno.ENOENT, errno.EROFS, errno.EACCES, errno.EPERM):
                    raise                           # those were warned about by create()
        return fds

    def v2_fd(self) -> int | None:
        """A descriptor of its v2 directory for `ns_clone`; None where there is none."""
        try:
            return (
                os.open(self.v2, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) if self.v2 else None
            )
        except FileNotFoundError:
            return None

    def procs(self) -> list[int]:
        """The pids in it and below it, as this process's pid namespace numbers them."""
        for path in ([self.v2] if self.v2 else []) + self.v1_paths():
            if os.path.isdir(path):
                return _procs_below(path)
        return []

    # ---- limits

    def limit(self, resources: dict) -> list[str]:
        """Apply OCI `linux.resources`; warnings of what this machine cannot limit.

        OSError: a value refused.
        """
        warnings: list[str] = []
        for step in LIMIT_STEPS:
            step(self, resources, warnings)
        return warnings

    def put(self, controller: str, v1_file: str | None, v2_file: str | None, texts: tuple) -> bool:
        """Write (v1 text, v2 text) where the controller is.

        False when it is nowhere or has no such file.
        """
        v1 = self.v1(controller)
        path, text = (f"{v1}/{v1_file}", texts[0]) if v1 else (f"{self.v2}/{v2_file}", texts[1])
        if (v1_file if v1 else v2_file and self.v2) is None:
            return False
        try:
            _write(path, text)
        except FileNotFoundError:
            return False
        return True

    # ---- freezer

    def freeze(self, timeout: float = CGROUP_BUSY_WAIT) -> None:
        """Stop every process in it, and return when all have stopped."""
        deadline = time.monotonic() + timeout
        rounds = 0
        while True:
            if not self.put("freezer", "freezer.state", "cgroup.freeze", ("FROZEN", "1")):
                raise EngineError("cannot pause: this machine has no freezer cgroup")
            if self.is_frozen():
                return
            if time.monotonic() > deadline:
                self.thaw()
                raise EngineError("unable to freeze")
            rounds += 1
            if rounds % 50 == 0:
                # A v1 freezer can hang in FREEZING over a vfork: kernel freezer-subsystem.rst.
                self.thaw()
            time.sleep(0.001)

    def thaw(self) -> None:
        """Let its processes go on; harmless when they do."""
        self.put("freezer", "freezer.state", "cgroup.freeze", ("THAWED", "0"))

    def is_frozen(self) -> bool:
        """All of its processes have stopped by freeze()."""
        path = self.v1("freezer")
        if path:
            return _read_words(path + "/freezer.state") == ["FROZEN"]
        return bool(self.v2) and _read_pairs(self.v2 + "/cgroup.events").get("frozen") == 1

    # ---- ending its processes

    def kill(self) -> None:
        """SIGKILL to every process in it and below it.

        A frozen one is thawed, as it would not die. Reaps nothing.
        """
        if self.v2 and os.path.exists(self.v2 + "/cgroup.kill"):        # Linux 5.14
            _write(self.v2 + "/cgroup.kill", "1")
            self.thaw()
            return
        try:
            # Else one that forks faster than we read gets away.
            self.freeze()
        except EngineError:
            pass                                    # without a freezer: some rounds must do
        for _ in range(100):
            pids = self.procs()
            for pid in pids:
                _kill_pid(pid)
            self.thaw()
            if not pids or not self.procs():
                return
            time.sleep(0.001)

    # ---- reading

    def oom_count(self) -> int:
        """How many processes in it the kernel killed for memory; 0 where nobody counts."""
        v1 = self.v1("memory")
        file = f"{v1}/memory.oom_control" if v1 else f"{self.v2}/memory.events"
        return _read_pairs(file).get("oom_kill", 0)

    def oom_watch(self) -> int | None:
        """A descriptor, readable when memory ran out (read it, then oom_count); None without."""
        v1 = self.v1("memory")
        if v1:
            return _oom_eventfd(v1)
        if not self.v2 or not os.path.exists(self.v2 + "/memory.events"):
            return None
        fd = sys_inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        sys_inotify_add_watch(fd, self.v2 + "/memory.events", 2)        # IN_MODIFY
        return fd

    def stats(self) -> dict:
        """What the Docker API calls cpu_stats, memory_stats, ... (times in ns, sizes in bytes)."""
        return {"cpu_stats": _cpu_stats(self), "memory_stats": _memory_stats(self),
                "pids_stats": _pids_stats(self), "blkio_stats": _blkio_stats(self)}


def cgroup_enter_leaf(name: str, pid: int = 0) -> list[str]:
    """Move a process with one thread (0: this one) into the cgroup `name`, made if missing.

    Gives warnings. In v2, and in v1 for another process, the kernel lets the writer wait 10 ms.
    """
    cgroup = cgroup_paths(name)
    warnings = cgroup.create(fresh=False)
    for fd in cgroup.tasks_fds(v2=True):
        try:
            os.write(fd, b"%d" % pid)
        except OSError as refused:
            warnings.append(f"cannot join the cgroup {name}: {refused.strerror}")
        finally:
            os.close(fd)
    return warnings


def cgroup_leave_leaf(name: str) -> None:
    """Move this process to the top; remove the cgroup `name` and its parents unless in use."""
    cgroup = cgroup_paths(name)
    hierarchies = cgroup.hierarchies
    for top in hierarchies.tops() + ([hierarchies.v2] if hierarchies.v2 else []):
        try:
            _write(top + ("/cgroup.procs" if top == hierarchies.v2 else "/tasks"), "0")
            path = f"{top}/{name}"
            while path != top:
                os.rmdir(path)
                path = os.path.dirname(path)
        except OSError:                             # used by another launcher, or not ours to write
            continue


# ---- files

def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as refused:
        raise OSError(refused.errno, f"write {text!r}: {refused.strerror}", path) from None
    finally:
        os.close(fd)


def _read(path: str) -> str:
    """The file's text; "" where it is missing or cannot be read (ENODEV, EOPNOTSUPP)."""
    try:
        with open(path, "rb") as file:
            return file.read().decode()
    except OSError:
        return ""


def _read_words(path: str) -> list[str]:
    return _read(path).split()


def _read_number(path: str, default: int = 0) -> int:
    text = _read(path).strip()
    return _UNLIMITED if text == "max" else int(text) if text.lstrip("-").isdigit() else default


def _read_pairs(path: str) -> dict[str, int]:
    """{"name": number} of lines "name number"."""
    words = (line.split() for line in _read(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in words if len(pair) == 2 and pair[1].isdigit()}


def _cgroup_make(path: str, name: str, *, fresh: bool, cpuset: bool) -> None:
    """One directory and its parents up to the mountpoint, which `path` is with `name` cut off.

    `cpuset`: it is v1's, whose cpus and mems are to be those of the parent.
    """
    for _ in range(20):
        try:
            os.mkdir(path)
            break
        except FileExistsError:
            if not fresh:
                return
            _cgroup_remove(path, time.monotonic() + CGROUP_BUSY_WAIT)
        except FileNotFoundError:
            # The parent is not yet, or no longer: another's last one left.
            parent = os.path.dirname(name)
            if not parent:
                raise
            _cgroup_make(path[:len(path) - len(name) + len(parent)], parent,
                         fresh=False, cpuset=cpuset)
    if cpuset:
        for file in ("/cpuset.cpus", "/cpuset.mems"):
            if not _read(path + file).strip():
                _write(path + file, _read(os.path.dirname(path) + file).strip())


def _cgroup_remove(path: str, deadline: float) -> None:
    """rmdir, children first; a task that has just died may hold it for a moment."""
    while True:
        try:
            os.rmdir(path)
            return
        except FileNotFoundError:
            return
        except OSError as refused:
            if refused.errno != errno.EBUSY and refused.errno != errno.ENOTEMPTY:
                raise
            children = [
                entry.path for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False)
            ]
            for child in children:
                _cgroup_remove(child, deadline)
            if not children:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.001)


def _v2_enable(hierarchies: Hierarchies, name: str) -> list[str]:
    """Hand the controllers down to `name` through subtree_control of each of its parents."""
    wanted = [word for word in CGROUP_CONTROLLERS if word in hierarchies.v2_controllers]
    parents = [hierarchies.v2]
    for word in name.split("/")[:-1]:
        parents.append(f"{parents[-1]}/{word}")
    warnings = []
    # Nearest first: after the first container it is all done, and one read tells.
    if set(wanted) <= set(_read_words(parents[-1] + "/cgroup.subtree_control")):
        return warnings
    for parent in parents:
        enabled = set(_read_words(parent + "/cgroup.subtree_control"))
        for word in wanted:
            if word not in enabled:
                try:
                    _write(parent + "/cgroup.subtree_control", "+" + word)
                except OSError as refused:
                    # EBUSY: it holds processes; ENOENT: not handed down to it.
                    warnings.append(f"cgroup v2 controller {word} cannot be used: {parent}: "
                                    f"{os.strerror(refused.errno)}")
    return warnings


def _procs_below(path: str) -> list[int]:
    pids = [int(word) for word in _read_words(path + "/cgroup.procs")]
    try:
        children = [entry.path for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return pids
    for child in children:
        pids += _procs_below(child)
    return [pid for pid in pids if pid]             # 0: not in our pid namespace


def _kill_pid(pid: int) -> None:
    try:
        os.kill(pid, 9)
    except ProcessLookupError:
        pass


def _oom_eventfd(v1: str) -> int | None:
    """An eventfd that v1's memory controller counts up: cgroup-v1/memory.rst, 9."""
    fd = sys_eventfd(0, os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        control = os.open(v1 + "/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _write(v1 + "/cgroup.event_control", f"{fd} {control}")
        finally:
            os.close(control)
    except OSError:                                 # missing, or a kernel that has given it up
        os.close(fd)
        return None
    return fd


# ---- limits

def _ignored(name: str) -> str:
    return f"{name} is not supported by this kernel's cgroups and was ignored"


def _resource(resources: dict, name: str) -> Any:
    group, _, key = name.partition(".")
    return (resources.get(group) or {}).get(key)


def _limit_rows(cgroup: Cgroup, resources: dict, warnings: list[str]) -> None:
    for name, controller, v1_file, v1_text, v2_file, v2_text in RESOURCES:
        value = _resource(resources, name)
        if value is None or value == "" or value == 0 and name != "memory.swappiness":
            continue                                # unset; only swappiness means something when 0
        texts = (v1_text(value) if v1_file else "", v2_text(value) if v2_file else "")
        if not cgroup.put(controller, v1_file, v2_file, texts):
            warnings.append(_ignored(name))


def _limit_memory(cgroup: Cgroup, resources: dict, warnings: list[str]) -> None:
    """limit and swap (memory and swap together; v2 counts swap alone)."""
    limit = _resource(resources, "memory.limit") or 0
    swap = _resource(resources, "memory.swap") or 0
    if limit == -1 and not swap:
        # Unlimited memory with a limit on swap left is refused by the kernel.
        swap = -1
    v1 = cgroup.v1("memory")
    if not limit and not swap:
        return
    if not v1 and not (cgroup.v2 and os.path.exists(cgroup.v2 + "/memory.max")):
        warnings.append(_ignored("memory.limit"))
        return
    if v1:
        writes = [(v1 + "/memory.limit_in_bytes", str(limit))] if limit else []
        if swap and os.path.exists(v1 + "/memory.memsw.limit_in_bytes"):
            writes.append((v1 + "/memory.memsw.limit_in_bytes", str(swap)))
        elif swap > 0:
            warnings.append(_ignored("memory.swap"))
        _write_either_way(writes)
        return
    if swap:
        alone = swap - limit if swap > 0 and limit > 0 else swap
        if not cgroup.put("memory", None, "memory.swap.max", ("", _or_max(alone))) and swap > 0:
            warnings.append(_ignored("memory.swap"))
    if limit:
        _write(cgroup.v2 + "/memory.max", _or_max(limit))


def _write_either_way(writes: list[tuple]) -> None:
    """Two files where the kernel checks the one against the other: whichever order it takes."""
    try:
        for path, text in writes:
            _write(path, text)
    except OSError as refused:
        if refused.errno != errno.EINVAL or len(writes) < 2:
            raise
        for path, text in reversed(writes):
            _write(path, text)


def _limit_cpu(cgroup: Cgroup, resources: dict, warnings: list[str]) -> None:
    """quota, period and burst in microseconds."""
    cpu = resources.get("cpu") or {}
    quota, period, burst = cpu.get("quota") or 0, cpu.get("period") or 0, cpu.get("burst")
    if not quota and not period and burst is None:
        return
    v1 = cgroup.v1("cpu")
    if not v1 and not (cgroup.v2 and os.path.exists(cgroup.v2 + "/cpu.max")):
        warnings.append(_ignored("cpu.quota"))
        return
    if v1:
        writes = [(v1 + "/cpu.cfs_period_us", str(period))] if period else []
        writes += [(v1 + "/cpu.cfs_quota_us", str(quota))] if quota else []
        _write_either_way(writes)
    elif quota or period:
        old = _read_words(cgroup.v2 + "/cpu.max")
        text = _or_max(quota) if quota else old[0]
        _write(cgroup.v2 + "/cpu.max", f"{text} {period or old[1]}")
    if burst is not None and not cgroup.put("cpu", "cpu.cfs_burst_us", "cpu.max.burst",
                                            (str(burst), str(burst))):
        warnings.append(_ignored("cpu.burst"))


def _limit_block(cgroup: Cgroup, resources: dict, warnings: list[str]) -> None:
    """Weights and rates of block devices."""
    block = resources.get("blockIO") or {}
    weight = block.get("weight")
    if weight:
        v2_weight = str(io_weight(weight))
        # BFQ's own file takes v1's scale in both versions, and is there only while BFQ is in use.
        if not (cgroup.put("blkio", "blkio.bfq.weight", "io.bfq.weight",
                           (str(weight), str(weight)))
                or cgroup.put("blkio", "blkio.weight", "io.weight",
                              (str(weight), "default " + v2_weight))):
            warnings.append(_ignored("blockIO.weight"))
    for device in block.get("weightDevice") or ():
        place = f"{device['major']}:{device['minor']} {device['weight']}"
        if not cgroup.put("blkio", "blkio.bfq.weight_device",
                          "io.bfq.weight", (place, place)):
            warnings.append(_ignored("blockIO.weightDevice"))
    for name, v1_file, word in _THROTTLES:
        for device in block.get(name) or ():
            place, rate = f"{device['major']}:{device['minor']}", device["rate"]
            if not cgroup.put("blkio", v1_file, "io.max",
                              (f"{place} {rate}", f"{place} {word}={rate or 'max'}")):
                warnings.append(_ignored(f"blockIO.{name}"))


def _limit_huge_pages(cgroup: Cgroup, resources: dict, warnings: list[str]) -> None:
    for row in resources.get("hugepageLimits") or ():
        size, text = row["pageSize"], str(row["limit"])
        if not cgroup.put(
            "hugetlb", f"hugetlb.{size}.limit_in_bytes", f"hugetlb.{size}.max", (text, text)
        ):
            warnings.append(_ignored(f"hugepageLimits of {size}"))


def _limit_unified(cgroup: Cgroup, resources: dict, warnings: list[str]) -> None:
    """Files of v2 by their own names."""
    for name, text in (resources.get("unified") or {}).items():
        if "/" in name:
            raise InvalidParameter(f"invalid cgroup v2 file name: {name}")
        if not cgroup.v2 or not os.path.exists(f"{cgroup.v2}/{name}"):
            warnings.append(_ignored(name))
            continue
        for line in text.split("\n"):
            _write(f"{cgroup.v2}/{name}", line)


def _limit_devices(cgroup: Cgroup, resources: dict, warnings: list[str]) -> None:
    """The rules of OCI `devices`, in order; without any nothing is changed."""
    rules = resources.get("devices")
    if not rules:
        return
    v1 = cgroup.v1("devices")
    if v1 and os.path.isdir(v1):
        for rule in rules:
            _write(
                v1 + ("/devices.allow" if rule["allow"] else "/devices.deny"),
                device_rule_text(rule),
            )
        return
    try:
        if cgroup.v2:
            device_attach(cgroup.v2, device_program(rules))
            return
    except OSError as refused:
        if refused.errno not in (errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.ENOENT):
            raise
    warnings.append("this kernel cannot restrict devices by cgroup")


LIMIT_STEPS = (
    _limit_memory, _limit_cpu, _limit_rows, _limit_block, _limit_huge_pages, _limit_unified,
    _limit_devices)


# ---- figures

def _cpu_stats(cgroup: Cgroup) -> dict:
    account, cpu = cgroup.v1("cpuacct"), cgroup.v1("cpu")
    if account:
        ticks = _read_pairs(account + "/cpuacct.stat")
        tick = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
        usage = {
            "total_usage": _read_number(account + "/cpuacct.usage"),
            "percpu_usage": [int(word) for word in _read_words(account + "/cpuacct.usage_percpu")],
            "usage_in_kernelmode": ticks.get("system", 0) * tick,
            "usage_in_usermode": ticks.get("user", 0) * tick,
        }
        stat, unit, time_key = _read_pairs(f"{cpu}/cpu.stat"), 1, "throttled_time"
    else:
        stat, unit, time_key = _read_pairs(f"{cgroup.v2}/cpu.stat"), 1000, "throttled_usec"
        usage = {"total_usage": stat.get("usage_usec", 0) * 1000,
                 "usage_in_kernelmode": stat.get("system_usec", 0) * 1000,
                 "usage_in_usermode": stat.get("user_usec", 0) * 1000}
    return {"cpu_usage": usage,
            "throttling_data": {"periods": stat.get("nr_periods", 0),
                                "throttled_periods": stat.get("nr_throttled", 0),
                                "throttled_time": stat.get(time_key, 0) * unit}}


def _memory_stats(cgroup: Cgroup) -> dict:
    v1 = cgroup.v1("memory")
    if v1:
        return {"usage": _read_number(v1 + "/memory.usage_in_bytes"),
                "max_usage": _read_number(v1 + "/memory.max_usage_in_bytes"),
                "failcnt": _read_number(v1 + "/memory.failcnt"),
                "limit": _read_number(v1 + "/memory.limit_in_bytes"),
                "stats": _read_pairs(v1 + "/memory.stat")}
    if not cgroup.v2 or not os.path.exists(cgroup.v2 + "/memory.current"):
        return {}
    return {"usage": _read_number(cgroup.v2 + "/memory.current"),
            "limit": _read_number(cgroup.v2 + "/memory.max"),
            "stats": _read_pairs(cgroup.v2 + "/memory.stat")}


def _pids_stats(cgroup: Cgroup) -> dict:
    path = cgroup.v1("pids") or cgroup.v2
    if not path or not os.path.exists(path + "/pids.current"):
        return {}
    stats = {"current": _read_number(path + "/pids.current")}
    limit = _read_number(path + "/pids.max")
    if limit != _UNLIMITED or not cgroup.v1("pids"):
        stats["limit"] = limit
    return stats


def _blkio_stats(cgroup: Cgroup) -> dict:
    """Bytes and operations by device: [{"major": 8, "minor": 0, "op": "read", "value": 4096}]."""
    sizes: list[dict] = []
    counts: list[dict] = []
    v1 = cgroup.v1("blkio")
    if v1:
        for name, rows in (("service_bytes", sizes), ("serviced", counts)):
            text = (_read(f"{v1}/blkio.bfq.io_{name}_recursive")
                    or _read(f"{v1}/blkio.throttle.io_{name}_recursive"))
            for words in map(str.split, text.splitlines()):
                if len(words) == 3:
                    rows.append(_block_row(words[0], words[1].lower(), words[2]))
    else:
        for place, *pairs in map(str.split, _read(f"{cgroup.v2}/io.stat").splitlines()):
            values = dict(pair.split("=") for pair in pairs if "=" in pair)
            for op, size, count in (("read", "rbytes", "rios"), ("write", "wbytes", "wios")):
                sizes.append(_block_row(place, op, values.get(size, "0")))
                counts.append(_block_row(place, op, values.get(count, "0")))
    return {"io_service_bytes_recursive": sizes, "io_serviced_recursive": counts}


def _block_row(place: str, op: str, value: str) -> dict:
    major, _, minor = place.partition(":")
    return {"major": int(major), "minor": int(minor), "op": op, "value": int(value)}


# =============================================================================
# confine -- capabilities, resource limits, no_new_privs
# =============================================================================
# Runs in: init (apply), api (resolve).
# Refs: capabilities(7), capset(2), prctl(2), getrlimit(2)
#
# Capabilities: Docker's fourteen by default. The bounding set goes first (that needs CAP_SETPCAP),
# then the process changes its user with `caps_keep`, then the other sets; ambient ones last, they
# need permitted and inheritable. What the engine does not hold itself, as inside a container,
# cannot be given: asked for by name it is an error, in `caps_set` it is left out.
#
# Resource limits: who may not raise a hard limit gets as much as there is, and a warning.

# fmt: off
CAPABILITIES = {
    "CAP_CHOWN": 0, "CAP_DAC_OVERRIDE": 1, "CAP_DAC_READ_SEARCH": 2, "CAP_FOWNER": 3,
    "CAP_FSETID": 4, "CAP_KILL": 5, "CAP_SETGID": 6, "CAP_SETUID": 7, "CAP_SETPCAP": 8,
    "CAP_LINUX_IMMUTABLE": 9, "CAP_NET_BIND_SERVICE": 10, "CAP_NET_BROADCAST": 11,
    "CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13, "CAP_IPC_LOCK": 14, "CAP_IPC_OWNER": 15,
    "CAP_SYS_MODULE": 16, "CAP_SYS_RAWIO": 17, "CAP_SYS_CHROOT": 18, "CAP_SYS_PTRACE": 19,
    "CAP_SYS_PACCT": 20, "CAP_SYS_ADMIN": 21, "CAP_SYS_BOOT": 22, "CAP_SYS_NICE": 23,
    "CAP_SYS_RESOURCE": 24, "CAP_SYS_TIME": 25, "CAP_SYS_TTY_CONFIG": 26, "CAP_MKNOD": 27,
    "CAP_LEASE": 28, "CAP_AUDIT_WRITE": 29, "CAP_AUDIT_CONTROL": 30, "CAP_SETFCAP": 31,
    "CAP_MAC_OVERRIDE": 32, "CAP_MAC_ADMIN": 33, "CAP_SYSLOG": 34, "CAP_WAKE_ALARM": 35,
    "CAP_BLOCK_SUSPEND": 36, "CAP_AUDIT_READ": 37, "CAP_PERFMON": 38, "CAP_BPF": 39,
    "CAP_CHECKPOINT_RESTORE": 40,
}

CAPABILITIES_DEFAULT = (        # as Docker lists them
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW",
    "CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
)

RLIMIT_NUMBERS = {              # asm-generic/resource.h: the same on all SYSCALL_MACHINES
    "RLIMIT_CPU": 0, "RLIMIT_FSIZE": 1, "RLIMIT_DATA": 2, "RLIMIT_STACK": 3, "RLIMIT_CORE": 4,
    "RLIMIT_RSS": 5, "RLIMIT_NPROC": 6, "RLIMIT_NOFILE": 7, "RLIMIT_MEMLOCK": 8, "RLIMIT_AS": 9,
    "RLIMIT_LOCKS": 10, "RLIMIT_SIGPENDING": 11, "RLIMIT_MSGQUEUE": 12, "RLIMIT_NICE": 13,
    "RLIMIT_RTPRIO": 14, "RLIMIT_RTTIME": 15,
}
# fmt: on

PR_SET_KEEPCAPS = 8
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47

_AMBIENT_RAISE, _AMBIENT_CLEAR = 2, 4
_CAPS_VERSION = 0x20080522      # two words a set: capget(2)


def caps_mask(names: list[str] | tuple) -> int:
    """The set as a number, bit n for capability n."""
    mask = 0
    for name in names:
        mask |= 1 << CAPABILITIES[name]
    return mask


def capabilities_available() -> list[str]:
    """What this process may hand on: its effective set, in the order of their numbers."""
    with open("/proc/self/status", "rb") as file:
        mask = int(file.read().partition(b"\nCapEff:")[2].split(None, 1)[0], 16)
    return [name for name, number in CAPABILITIES.items() if mask >> number & 1]


def capabilities_normalize(names: list[str] | None, available: list[str]) -> list[str]:
    """Names as users write them ("net_admin", "CAP_NET_ADMIN", "all"), as the kernel has them."""
    normal = []
    for name in names or ():
        name = name.upper()
        if name != "ALL":
            name = name if name.startswith("CAP_") else "CAP_" + name
            if name not in CAPABILITIES:
                raise InvalidParameter(f'unknown capability: "{name}"')
            if name not in available:
                raise InvalidParameter(
                    "capability not supported by your kernel or not available in the "
                    f'current environment: "{name}"'
                )
        normal.append(name)
    return normal


def capabilities_resolve(add: list[str] | None, drop: list[str] | None, privileged: bool = False,
                         available: list[str] | None = None) -> list[str]:
    """A container's capabilities from CapAdd and CapDrop; InvalidParameter with Docker's text."""
    available = capabilities_available() if available is None else available
    if privileged:
        return list(available)
    dropped = capabilities_normalize(drop, available)
    added = capabilities_normalize(add, available)
    if "ALL" in added:
        return [name for name in available if name not in dropped]
    if "ALL" in dropped:
        return added
    return list(
        dict.fromkeys([name for name in CAPABILITIES_DEFAULT if name not in dropped] + added)
    )


def caps_keep(keep: bool) -> None:
    """Keep the permitted set when the user changes from root to another; execve clears it."""
    sys_prctl(PR_SET_KEEPCAPS, int(keep), 0, 0, 0)


def caps_bound(bounding: list[str] | tuple) -> None:
    """Drop all others from the bounding set, for good.

    Needs CAP_SETPCAP if there is one to drop.
    """
    mask = caps_mask(bounding)
    for number in range(64):
        if not mask >> number & 1:
            try:
                sys_prctl(PR_CAPBSET_DROP, number, 0, 0, 0)
            except OSError as refused:
                if refused.errno == errno.EINVAL:   # beyond this kernel's last capability
                    return
                if sys_prctl(PR_CAPBSET_READ, number, 0, 0, 0):
                    raise


def caps_set(*, effective: list[str] | tuple = (), permitted: list[str] | tuple = (),
             inheritable: list[str] | tuple = (), ambient: list[str] | tuple = ()) -> None:
    """Set the four sets of this process that are not the bounding set.

    What it does not hold itself cannot be given and is left out, as for an engine inside a
    container.
    """
    held = caps_held()[1]
    sets = [caps_mask(effective) & held, caps_mask(permitted) & held, caps_mask(inheritable)]
    low = [mask & 0xFFFFFFFF for mask in sets]
    high = [mask >> 32 for mask in sets]
    words = [word for pair in (low, high) for word in pair]
    sys_capset(struct.pack("=Ii", _CAPS_VERSION, 0), struct.pack("=6I", *words))
    if ambient:
        sys_prctl(PR_CAP_AMBIENT, _AMBIENT_CLEAR, 0, 0, 0)
        for name in ambient:
            sys_prctl(PR_CAP_AMBIENT, _AMBIENT_RAISE, CAPABILITIES[name], 0, 0)


def caps_apply(*, bounding: list[str] | tuple, effective: list[str] | tuple = (),
               permitted: list[str] | tuple = (), inheritable: list[str] | tuple = (),
               ambient: list[str] | tuple = ()) -> None:
    """Set all five sets of this process: caps_bound, then caps_set."""
    caps_bound(bounding)
    caps_set(effective=effective, permitted=permitted, inheritable=inheritable, ambient=ambient)


def caps_held() -> tuple[int, int, int]:
    """This process's (effective, permitted, inheritable) sets as numbers."""
    data = sys_buffer(24)
    sys_capget(struct.pack("=Ii", _CAPS_VERSION, 0), data)
    words = struct.unpack("=6I", data.raw)
    return tuple(words[n] | words[n + 3] << 32 for n in range(3))


def no_new_privs() -> None:
    """From now on no execve gives privileges, neither by setuid nor by file capabilities."""
    sys_prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def rlimits_apply(rlimits: list[dict] | None, pid: int = 0) -> list[str]:
    """Set OCI rlimits [{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 4096}] (-1: none); warnings.

    Who may not go above a hard limit (no CAP_SYS_RESOURCE) gets as much as is allowed, and a
    warning.
    """
    warnings = []
    for row in rlimits or ():
        number = RLIMIT_NUMBERS.get(row["type"])
        if number is None:
            raise InvalidParameter(f"invalid rlimit type: {row['type']}")
        soft, hard = (value & 0xFFFFFFFFFFFFFFFF for value in (row["soft"], row["hard"]))
        try:
            sys_prlimit64(pid, number, struct.pack("=2Q", soft, hard), None)
        except OSError as refused:
            if refused.errno != errno.EPERM:
                raise
            old = sys_buffer(16)
            sys_prlimit64(pid, number, None, old)
            most = struct.unpack("=2Q", old.raw)[1]
            sys_prlimit64(pid, number, struct.pack("=2Q", min(soft, most), min(hard, most)), None)
            warnings.append(f"{row['type']} cannot be set to {hard}: the limit here is {most}")
    return warnings


# =============================================================================
# seccomp -- system call filters: profiles, tables of numbers, programs
# =============================================================================
# Runs in: init (install), launcher (compile), api (resolve).
# Refs: seccomp(2), kernel seccomp_filter.rst, runtime-spec config-linux.md (seccomp)
#
# A profile in Docker's JSON (or OCI's `linux.seccomp`) is resolved for a machine and a bounding
# set into rules by name, then compiled. First the program looks at the architecture: one it does
# not list kills the thread. Then comes a binary search over ranges of call numbers that have the
# same answer: 8 comparisons where a chain would make 350. Numbers above the highest that the
# profile knows give ENOSYS, not EPERM, so that a libc newer than the profile falls back to older
# calls; runc does so too. A call with conditions has its tests in its leaf; the first rule that
# matches answers. The kernel takes 4096 instructions, the default has some 670.
#
# A program is loaded by who has CAP_SYS_ADMIN, so before the capabilities are dropped; or after
# no_new_privs, then as late as possible, as every call after it must be one that it allows.
#
# SYSCALL_TABLES: names in the order of their numbers; a number in the row is that of the name
# after it. "all" belongs to every machine (Linux gives new calls one number since 5.1), "time64"
# to those with 32 bits.

# fmt: off
SYSCALL_TABLES = {
    "x86_64": (
        "read write open close stat fstat lstat poll lseek mmap mprotect munmap brk rt_sigaction "
        "rt_sigprocmask rt_sigreturn ioctl pread64 pwrite64 readv writev access pipe select "
        "sched_yield mremap msync mincore madvise shmget shmat shmctl dup dup2 pause nanosleep "
        "getitimer alarm setitimer getpid sendfile socket connect accept sendto recvfrom sendmsg "
        "recvmsg shutdown bind listen getsockname getpeername socketpair setsockopt getsockopt "
        "clone fork vfork execve exit wait4 kill uname semget semop semctl shmdt msgget msgsnd "
        "msgrcv msgctl fcntl flock fsync fdatasync truncate ftruncate getdents getcwd chdir "
        "fchdir rename mkdir rmdir creat link unlink symlink readlink chmod fchmod chown fchown "
        "lchown umask gettimeofday getrlimit getrusage sysinfo times ptrace getuid syslog getgid "
        "setuid setgid geteuid getegid setpgid getppid getpgrp setsid setreuid setregid getgroups "
        "setgroups setresuid getresuid setresgid getresgid getpgid setfsuid setfsgid getsid "
        "capget capset rt_sigpending rt_sigtimedwait rt_sigqueueinfo rt_sigsuspend sigaltstack "
        "utime mknod uselib personality ustat statfs fstatfs sysfs getpriority setpriority "
        "sched_setparam sched_getparam sched_setscheduler sched_getscheduler "
        "sched_get_priority_max sched_get_priority_min sched_rr_get_interval mlock munlock "
        "mlockall munlockall vhangup modify_ldt pivot_root _sysctl prctl arch_prctl adjtimex "
        "setrlimit chroot sync acct settimeofday mount umount2 swapon swapoff reboot sethostname "
        "setdomainname iopl ioperm create_module init_module delete_module get_kernel_syms "
        "query_module quotactl nfsservctl getpmsg putpmsg afs_syscall tuxcall security gettid "
        "readahead setxattr lsetxattr fsetxattr getxattr lgetxattr fgetxattr listxattr llistxattr "
        "flistxattr removexattr lremovexattr fremovexattr tkill time futex sched_setaffinity "
        "sched_getaffinity set_thread_area io_setup io_destroy io_getevents io_submit io_cancel "
        "get_thread_area lookup_dcookie epoll_create epoll_ctl_old epoll_wait_old "
        "remap_file_pages getdents64 set_tid_address restart_syscall semtimedop fadvise64 "
        "timer_create timer_settime timer_gettime timer_getoverrun timer_delete clock_settime "
        "clock_gettime clock_getres clock_nanosleep exit_group epoll_wait epoll_ctl tgkill utimes "
        "vserver mbind set_mempolicy get_mempolicy mq_open mq_unlink mq_timedsend mq_timedreceive "
        "mq_notify mq_getsetattr kexec_load waitid add_key request_key keyctl ioprio_set "
        "ioprio_get inotify_init inotify_add_watch inotify_rm_watch migrate_pages openat mkdirat "
        "mknodat fchownat futimesat newfstatat unlinkat renameat linkat symlinkat readlinkat "
        "fchmodat faccessat pselect6 ppoll unshare set_robust_list get_robust_list splice tee "
        "sync_file_range vmsplice move_pages utimensat epoll_pwait signalfd timerfd_create "
        "eventfd fallocate timerfd_settime timerfd_gettime accept4 signalfd4 eventfd2 "
        "epoll_create1 dup3 pipe2 inotify_init1 preadv pwritev rt_tgsigqueueinfo perf_event_open "
        "recvmmsg fanotify_init fanotify_mark prlimit64 name_to_handle_at open_by_handle_at "
        "clock_adjtime syncfs sendmmsg setns getcpu process_vm_readv process_vm_writev kcmp "
        "finit_module sched_setattr sched_getattr renameat2 seccomp getrandom memfd_create "
        "kexec_file_load bpf execveat userfaultfd membarrier mlock2 copy_file_range preadv2 "
        "pwritev2 pkey_mprotect pkey_alloc pkey_free statx io_pgetevents rseq uretprobe uprobe"),
    "x32": (
        "512 rt_sigaction rt_sigreturn ioctl readv writev recvfrom sendmsg recvmsg execve ptrace "
        "rt_sigpending rt_sigtimedwait rt_sigqueueinfo sigaltstack timer_create mq_notify "
        "kexec_load waitid set_robust_list get_robust_list vmsplice move_pages preadv pwritev "
        "rt_tgsigqueueinfo recvmmsg sendmmsg process_vm_readv process_vm_writev setsockopt "
        "getsockopt io_setup io_submit execveat preadv2 pwritev2"),
    "x86": (
        "restart_syscall exit fork read write open close waitpid creat link unlink execve chdir "
        "time mknod chmod lchown break oldstat lseek getpid mount umount setuid getuid stime "
        "ptrace alarm oldfstat pause utime stty gtty access nice ftime sync kill rename mkdir "
        "rmdir dup pipe times prof brk setgid getgid signal geteuid getegid acct umount2 lock "
        "ioctl fcntl mpx setpgid ulimit oldolduname umask chroot ustat dup2 getppid getpgrp "
        "setsid sigaction sgetmask ssetmask setreuid setregid sigsuspend sigpending sethostname "
        "setrlimit getrlimit getrusage gettimeofday settimeofday getgroups setgroups select "
        "symlink oldlstat readlink uselib swapon reboot readdir mmap munmap truncate ftruncate "
        "fchmod fchown getpriority setpriority profil statfs fstatfs ioperm socketcall syslog "
        "setitimer getitimer stat lstat fstat olduname iopl vhangup idle vm86old wait4 swapoff "
        "sysinfo ipc fsync sigreturn clone setdomainname uname modify_ldt adjtimex mprotect "
        "sigprocmask create_module init_module delete_module get_kernel_syms quotactl getpgid "
        "fchdir bdflush sysfs personality afs_syscall setfsuid setfsgid _llseek getdents "
        "_newselect flock msync readv writev getsid fdatasync _sysctl mlock munlock mlockall "
        "munlockall sched_setparam sched_getparam sched_setscheduler sched_getscheduler "
        "sched_yield sched_get_priority_max sched_get_priority_min sched_rr_get_interval "
        "nanosleep mremap setresuid getresuid vm86 query_module poll nfsservctl setresgid "
        "getresgid prctl rt_sigreturn rt_sigaction rt_sigprocmask rt_sigpending rt_sigtimedwait "
        "rt_sigqueueinfo rt_sigsuspend pread64 pwrite64 chown getcwd capget capset sigaltstack "
        "sendfile getpmsg putpmsg vfork ugetrlimit mmap2 truncate64 ftruncate64 stat64 lstat64 "
        "fstat64 lchown32 getuid32 getgid32 geteuid32 getegid32 setreuid32 setregid32 getgroups32 "
        "setgroups32 fchown32 setresuid32 getresuid32 setresgid32 getresgid32 chown32 setuid32 "
        "setgid32 setfsuid32 setfsgid32 pivot_root mincore madvise getdents64 fcntl64 224 gettid "
        "readahead setxattr lsetxattr fsetxattr getxattr lgetxattr fgetxattr listxattr llistxattr "
        "flistxattr removexattr lremovexattr fremovexattr tkill sendfile64 futex "
        "sched_setaffinity sched_getaffinity set_thread_area get_thread_area io_setup io_destroy "
        "io_getevents io_submit io_cancel fadvise64 252 exit_group lookup_dcookie epoll_create "
        "epoll_ctl epoll_wait remap_file_pages set_tid_address timer_create timer_settime "
        "timer_gettime timer_getoverrun timer_delete clock_settime clock_gettime clock_getres "
        "clock_nanosleep statfs64 fstatfs64 tgkill utimes fadvise64_64 vserver mbind "
        "get_mempolicy set_mempolicy mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify "
        "mq_getsetattr kexec_load waitid 286 add_key request_key keyctl ioprio_set ioprio_get "
        "inotify_init inotify_add_watch inotify_rm_watch migrate_pages openat mkdirat mknodat "
        "fchownat futimesat fstatat64 unlinkat renameat linkat symlinkat readlinkat fchmodat "
        "faccessat pselect6 ppoll unshare set_robust_list get_robust_list splice sync_file_range "
        "tee vmsplice move_pages getcpu epoll_pwait utimensat signalfd timerfd_create eventfd "
        "fallocate timerfd_settime timerfd_gettime signalfd4 eventfd2 epoll_create1 dup3 pipe2 "
        "inotify_init1 preadv pwritev rt_tgsigqueueinfo perf_event_open recvmmsg fanotify_init "
        "fanotify_mark prlimit64 name_to_handle_at open_by_handle_at clock_adjtime syncfs "
        "sendmmsg setns process_vm_readv process_vm_writev kcmp finit_module sched_setattr "
        "sched_getattr renameat2 seccomp getrandom memfd_create bpf execveat socket socketpair "
        "bind connect listen accept4 getsockopt setsockopt getsockname getpeername sendto sendmsg "
        "recvfrom recvmsg shutdown userfaultfd membarrier mlock2 copy_file_range preadv2 pwritev2 "
        "pkey_mprotect pkey_alloc pkey_free statx arch_prctl io_pgetevents rseq 393 semget semctl "
        "shmget shmctl shmat shmdt msgget msgsnd msgrcv msgctl"),
    "generic": (
        "io_setup io_destroy io_submit io_cancel io_getevents setxattr lsetxattr fsetxattr "
        "getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr removexattr lremovexattr "
        "fremovexattr getcwd lookup_dcookie eventfd2 epoll_create1 epoll_ctl epoll_pwait dup dup3 "
        "fcntl inotify_init1 inotify_add_watch inotify_rm_watch ioctl ioprio_set ioprio_get flock "
        "mknodat mkdirat unlinkat symlinkat linkat renameat umount2 mount pivot_root nfsservctl "
        "statfs fstatfs truncate ftruncate fallocate faccessat chdir fchdir chroot fchmod "
        "fchmodat fchownat fchown openat close vhangup pipe2 quotactl getdents64 lseek read write "
        "readv writev pread64 pwrite64 preadv pwritev sendfile pselect6 ppoll signalfd4 vmsplice "
        "splice tee readlinkat newfstatat fstat sync fsync fdatasync sync_file_range "
        "timerfd_create timerfd_settime timerfd_gettime utimensat acct capget capset personality "
        "exit exit_group waitid set_tid_address unshare futex set_robust_list get_robust_list "
        "nanosleep getitimer setitimer kexec_load init_module delete_module timer_create "
        "timer_gettime timer_getoverrun timer_settime timer_delete clock_settime clock_gettime "
        "clock_getres clock_nanosleep syslog ptrace sched_setparam sched_setscheduler "
        "sched_getscheduler sched_getparam sched_setaffinity sched_getaffinity sched_yield "
        "sched_get_priority_max sched_get_priority_min sched_rr_get_interval restart_syscall kill "
        "tkill tgkill sigaltstack rt_sigsuspend rt_sigaction rt_sigprocmask rt_sigpending "
        "rt_sigtimedwait rt_sigqueueinfo rt_sigreturn setpriority getpriority reboot setregid "
        "setgid setreuid setuid setresuid getresuid setresgid getresgid setfsuid setfsgid times "
        "setpgid getpgid getsid setsid getgroups setgroups uname sethostname setdomainname "
        "getrlimit setrlimit getrusage umask prctl getcpu gettimeofday settimeofday adjtimex "
        "getpid getppid getuid geteuid getgid getegid gettid sysinfo mq_open mq_unlink "
        "mq_timedsend mq_timedreceive mq_notify mq_getsetattr msgget msgctl msgrcv msgsnd semget "
        "semctl semtimedop semop shmget shmctl shmat shmdt socket socketpair bind listen accept "
        "connect getsockname getpeername sendto recvfrom setsockopt getsockopt shutdown sendmsg "
        "recvmsg readahead brk munmap mremap add_key request_key keyctl clone execve mmap "
        "fadvise64 swapon swapoff mprotect msync mlock munlock mlockall munlockall mincore "
        "madvise remap_file_pages mbind get_mempolicy set_mempolicy migrate_pages move_pages "
        "rt_tgsigqueueinfo perf_event_open accept4 recvmmsg 258 riscv_hwprobe riscv_flush_icache "
        "wait4 prlimit64 fanotify_init fanotify_mark name_to_handle_at open_by_handle_at "
        "clock_adjtime syncfs setns sendmmsg process_vm_readv process_vm_writev kcmp finit_module "
        "sched_setattr sched_getattr renameat2 seccomp getrandom memfd_create bpf execveat "
        "userfaultfd membarrier mlock2 copy_file_range preadv2 pwritev2 pkey_mprotect pkey_alloc "
        "pkey_free statx io_pgetevents rseq kexec_file_load"),
    "arm": (
        "restart_syscall exit fork read write open close 8 creat link unlink execve chdir 14 "
        "mknod chmod lchown 19 lseek getpid mount 23 setuid getuid 26 ptrace 29 pause 33 access "
        "nice 36 sync kill rename mkdir rmdir dup pipe times 45 brk setgid getgid 49 geteuid "
        "getegid acct umount2 54 ioctl fcntl 57 setpgid 60 umask chroot ustat dup2 getppid "
        "getpgrp setsid sigaction 70 setreuid setregid sigsuspend sigpending sethostname "
        "setrlimit 77 getrusage gettimeofday settimeofday getgroups setgroups 83 symlink 85 "
        "readlink uselib swapon reboot 91 munmap truncate ftruncate fchmod fchown getpriority "
        "setpriority 99 statfs fstatfs 103 syslog setitimer getitimer stat lstat fstat 111 "
        "vhangup 114 wait4 swapoff sysinfo 118 fsync sigreturn clone setdomainname uname 124 "
        "adjtimex mprotect sigprocmask 128 init_module delete_module 131 quotactl getpgid fchdir "
        "bdflush sysfs personality 138 setfsuid setfsgid _llseek getdents _newselect flock msync "
        "readv writev getsid fdatasync _sysctl mlock munlock mlockall munlockall sched_setparam "
        "sched_getparam sched_setscheduler sched_getscheduler sched_yield sched_get_priority_max "
        "sched_get_priority_min sched_rr_get_interval nanosleep mremap setresuid getresuid 168 "
        "poll nfsservctl setresgid getresgid prctl rt_sigreturn rt_sigaction rt_sigprocmask "
        "rt_sigpending rt_sigtimedwait rt_sigqueueinfo rt_sigsuspend pread64 pwrite64 chown "
        "getcwd capget capset sigaltstack sendfile 190 vfork ugetrlimit mmap2 truncate64 "
        "ftruncate64 stat64 lstat64 fstat64 lchown32 getuid32 getgid32 geteuid32 getegid32 "
        "setreuid32 setregid32 getgroups32 setgroups32 fchown32 setresuid32 getresuid32 "
        "setresgid32 getresgid32 chown32 setuid32 setgid32 setfsuid32 setfsgid32 getdents64 "
        "pivot_root mincore madvise fcntl64 224 gettid readahead setxattr lsetxattr fsetxattr "
        "getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr removexattr lremovexattr "
        "fremovexattr tkill sendfile64 futex sched_setaffinity sched_getaffinity io_setup "
        "io_destroy io_getevents io_submit io_cancel exit_group lookup_dcookie epoll_create "
        "epoll_ctl epoll_wait remap_file_pages 256 set_tid_address timer_create timer_settime "
        "timer_gettime timer_getoverrun timer_delete clock_settime clock_gettime clock_getres "
        "clock_nanosleep statfs64 fstatfs64 tgkill utimes arm_fadvise64_64 pciconfig_iobase "
        "pciconfig_read pciconfig_write mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify "
        "mq_getsetattr waitid socket bind connect listen accept getsockname getpeername "
        "socketpair send sendto recv recvfrom shutdown setsockopt getsockopt sendmsg recvmsg "
        "semop semget semctl msgsnd msgrcv msgget msgctl shmat shmdt shmget shmctl add_key "
        "request_key keyctl semtimedop vserver ioprio_set ioprio_get inotify_init "
        "inotify_add_watch inotify_rm_watch mbind get_mempolicy set_mempolicy openat mkdirat "
        "mknodat fchownat futimesat fstatat64 unlinkat renameat linkat symlinkat readlinkat "
        "fchmodat faccessat pselect6 ppoll unshare set_robust_list get_robust_list splice "
        "arm_sync_file_range 341 sync_file_range2 tee vmsplice move_pages getcpu epoll_pwait "
        "kexec_load utimensat signalfd timerfd_create eventfd fallocate timerfd_settime "
        "timerfd_gettime signalfd4 eventfd2 epoll_create1 dup3 pipe2 inotify_init1 preadv pwritev "
        "rt_tgsigqueueinfo perf_event_open recvmmsg accept4 fanotify_init fanotify_mark prlimit64 "
        "name_to_handle_at open_by_handle_at clock_adjtime syncfs sendmmsg setns process_vm_readv "
        "process_vm_writev kcmp finit_module sched_setattr sched_getattr renameat2 seccomp "
        "getrandom memfd_create bpf execveat userfaultfd membarrier mlock2 copy_file_range "
        "preadv2 pwritev2 pkey_mprotect pkey_alloc pkey_free statx rseq io_pgetevents "
        "migrate_pages kexec_file_load 983041 breakpoint cacheflush usr26 usr32 set_tls get_tls"),
    "time64": (
        "403 clock_gettime64 clock_settime64 clock_adjtime64 clock_getres_time64 "
        "clock_nanosleep_time64 timer_gettime64 timer_settime64 timerfd_gettime64 "
        "timerfd_settime64 utimensat_time64 pselect6_time64 ppoll_time64 416 io_pgetevents_time64 "
        "recvmmsg_time64 mq_timedsend_time64 mq_timedreceive_time64 semtimedop_time64 "
        "rt_sigtimedwait_time64 futex_time64 sched_rr_get_interval_time64"),
    "all": (
        "424 pidfd_send_signal io_uring_setup io_uring_enter io_uring_register open_tree "
        "move_mount fsopen fsconfig fsmount fspick pidfd_open clone3 close_range openat2 "
        "pidfd_getfd faccessat2 process_madvise epoll_pwait2 mount_setattr quotactl_fd "
        "landlock_create_ruleset landlock_add_rule landlock_restrict_self memfd_secret "
        "process_mrelease futex_waitv set_mempolicy_home_node cachestat fchmodat2 "
        "map_shadow_stack futex_wake futex_wait futex_requeue statmount listmount "
        "lsm_get_self_attr lsm_set_self_attr lsm_list_modules mseal setxattrat getxattrat "
        "listxattrat removexattrat open_tree_attr file_getattr file_setattr listns "
        "rseq_slice_yield"),
}
# fmt: on

# fmt: off
SECCOMP_ARCHES = {              # OCI name: (AUDIT_ARCH_*, bit in every number, tables)
    "SCMP_ARCH_X86_64":  (0xC000003E, 0,          ("x86_64", "all")),
    "SCMP_ARCH_X32":     (0xC000003E, 0x40000000, ("x86_64", "x32", "all")),
    "SCMP_ARCH_X86":     (0x40000003, 0,          ("x86", "time64", "all")),
    "SCMP_ARCH_AARCH64": (0xC00000B7, 0,          ("generic", "all")),
    "SCMP_ARCH_ARM":     (0x40000028, 0,          ("arm", "time64", "all")),
    "SCMP_ARCH_RISCV64": (0xC00000F3, 0,          ("generic", "all")),
}

_MACHINES = {                   # machine: (its architecture, its name in a profile's `arches`)
    "x86_64":  ("SCMP_ARCH_X86_64",  "amd64"),
    "aarch64": ("SCMP_ARCH_AARCH64", "arm64"),
    "armv7l":  ("SCMP_ARCH_ARM",     "arm"),
    "riscv64": ("SCMP_ARCH_RISCV64", "riscv64"),
}

_SUB_ARCHES = {                 # what else runs on it under the default profile
    "SCMP_ARCH_X86_64":  ["SCMP_ARCH_X86", "SCMP_ARCH_X32"],
    "SCMP_ARCH_AARCH64": ["SCMP_ARCH_ARM"],
    "SCMP_ARCH_RISCV64": [],
}

SECCOMP_ACTIONS = {
    "SCMP_ACT_KILL":         0x00000000,
    "SCMP_ACT_KILL_THREAD":  0x00000000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP":         0x00030000,
    "SCMP_ACT_ERRNO":        0x00050000,            # | errno
    "SCMP_ACT_TRACE":        0x7FF00000,            # | message
    "SCMP_ACT_LOG":          0x7FFC0000,
    "SCMP_ACT_ALLOW":        0x7FFF0000,
}

SECCOMP_FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC":      1,
    "SECCOMP_FILTER_FLAG_LOG":        2,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 4,
}

_MULTIPLEXED = {    # x86's calls that hold others, whose numbers are their first argument
    "socketcall": "1 socket bind connect listen accept getsockname getpeername socketpair send "
                  "recv sendto recvfrom shutdown setsockopt getsockopt sendmsg recvmsg accept4 "
                  "recvmmsg sendmmsg",
    "ipc":        "1 semop semget semctl semtimedop 11 msgsnd msgrcv msgget msgctl "
                  "21 shmat shmdt shmget shmctl",
}

# Every CLONE_NEW* but NEWTIME, whose bit is part of the exit signal in clone(2).
_NEW_NAMESPACES = 0x7E020000

# The default profile, as Docker 28 has it: (names, condition); a row allows, SECCOMP_REFUSED is
# the exception. A condition is a capability of the bounding set, "arch" and names of machines, or
# an argument's test.
SECCOMP_DEFAULT = (
    ("accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown "
     "chown32 clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime "
     "clock_gettime64 clock_nanosleep clock_nanosleep_time64 close close_range connect "
     "copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old "
     "epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit "
     "exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir "
     "fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr "
     "flistxattr flock fork fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 "
     "fsync ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait futex_waitv "
     "futex_wake futimesat getcpu getcwd getdents getdents64 getegid getegid32 geteuid "
     "geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpeername getpgid getpgrp "
     "getpid getppid getpriority getrandom getresgid getresgid32 getresuid getresuid32 "
     "getrlimit get_robust_list getrusage getsid getsockname getsockopt get_thread_area gettid "
     "gettimeofday getuid getuid32 getxattr getxattrat inotify_add_watch inotify_init "
     "inotify_init1 inotify_rm_watch io_cancel ioctl io_destroy io_getevents io_pgetevents "
     "io_pgetevents_time64 ioprio_get ioprio_set io_setup io_submit ipc kill landlock_add_rule "
     "landlock_create_ruleset landlock_restrict_self lchown lchown32 lgetxattr link linkat "
     "listen listmount listxattr listxattrat llistxattr _llseek lremovexattr lseek lsetxattr "
     "lstat lstat64 madvise map_shadow_stack membarrier memfd_create memfd_secret mincore "
     "mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2 mprotect mq_getsetattr "
     "mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend "
     "mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock "
     "munlockall munmap name_to_handle_at nanosleep newfstatat _newselect open openat openat2 "
     "pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll "
     "ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64 process_mrelease pselect6 "
     "pselect6_time64 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv recv "
     "recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages removexattr removexattrat "
     "rename renameat renameat2 restart_syscall riscv_hwprobe rmdir rseq rt_sigaction "
     "rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait "
     "rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_getaffinity sched_getattr sched_getparam "
     "sched_get_priority_max sched_get_priority_min sched_getscheduler sched_rr_get_interval "
     "sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam "
     "sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop "
     "semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto setfsgid setfsgid32 "
     "setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid setpriority "
     "setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 "
     "setrlimit set_robust_list setsid setsockopt set_thread_area set_tid_address setuid "
     "setuid32 setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd "
     "signalfd4 sigprocmask sigreturn socketcall socketpair splice stat stat64 statfs statfs64 "
     "statmount statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time "
     "timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime "
     "timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime "
     "timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat "
     "uretprobe utime utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid "
     "write writev", ""),
    ("process_vm_readv process_vm_writev ptrace", ""),
    ("socket", "arg0 NE 40"),                       # AF_VSOCK reaches past every network namespace
    ("personality", "arg0 EQ 0"), ("personality", "arg0 EQ 8"), ("personality", "arg0 EQ 131072"),
    ("personality", "arg0 EQ 131080"), ("personality", "arg0 EQ 4294967295"),
    ("arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls",
     "arch arm arm64"),
    ("arch_prctl", "arch amd64"),
    ("modify_ldt", "arch amd64"),
    ("riscv_flush_icache", "arch riscv64"),
    ("open_by_handle_at", "CAP_DAC_READ_SEARCH"),
    ("bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie "
     "lsm_get_self_attr lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount "
     "open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog "
     "umount umount2 unshare", "CAP_SYS_ADMIN"),
    ("clone", f"arg0 MASKED_EQ {_NEW_NAMESPACES} 0"),
    ("reboot", "CAP_SYS_BOOT"),
    ("chroot", "CAP_SYS_CHROOT"),
    ("delete_module init_module finit_module", "CAP_SYS_MODULE"),
    ("acct", "CAP_SYS_PACCT"),
    ("kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace",
     "CAP_SYS_PTRACE"),
    ("iopl ioperm", "CAP_SYS_RAWIO"),
    ("settimeofday stime clock_settime clock_settime64", "CAP_SYS_TIME"),
    ("vhangup", "CAP_SYS_TTY_CONFIG"),
    ("get_mempolicy mbind set_mempolicy set_mempolicy_home_node", "CAP_SYS_NICE"),
    ("syslog", "CAP_SYSLOG"),
    ("bpf", "CAP_BPF"),
    ("perf_event_open", "CAP_PERFMON"),
)

# clone3's flags are in memory, where a filter cannot look: libc is told to use clone instead.
SECCOMP_REFUSED = (("clone3", 38),)
# fmt: on

PR_GET_SECCOMP = 21
PR_SET_SECCOMP = 22

_EPERM, _ENOSYS = 1, 38
_ERRNO = 0x00050000
_PERMISSIVE = (0x7FF0, 0x7FFC, 0x7FFF)              # trace, log, allow: the upper halves
# linux/bpf_common.h
_LD, _JA, _JEQ, _JGT, _JGE, _AND, _RET = 0x20, 0x05, 0x15, 0x25, 0x35, 0x54, 0x06
_AT_NUMBER, _AT_ARCH, _AT_ARGS = 0, 4, 16           # struct seccomp_data
_PROGRAM_MAX = 4096
_TESTS = frozenset(("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"))


# ---- seccomp: from a profile to rules

def seccomp_default_profile(machine: str | None = None) -> dict:
    """The default profile in Docker's JSON format, for this machine or another."""
    native = _MACHINES[machine or machine_name()][0]
    rows = []
    for names, condition in SECCOMP_DEFAULT:
        row: dict = {"names": names.split(), "action": "SCMP_ACT_ALLOW"}
        words = condition.split()
        if condition.startswith("CAP_"):
            row["includes"] = {"caps": words}
        elif condition.startswith("arch "):
            row["includes"] = {"arches": words[1:]}
        elif words:
            values = [int(word) for word in words[2:]]
            row["args"] = [
                {
                    "index": int(words[0][3:]),
                    "op": "SCMP_CMP_" + words[1],
                    "value": values[0],
                    "valueTwo": values[1] if len(values) > 1 else 0,
                }
            ]
        if names == "clone":
            row["excludes"] = {"caps": ["CAP_SYS_ADMIN"]}
        rows.append(row)
    for name, number in SECCOMP_REFUSED:
        rows.append({"names": [name], "action": "SCMP_ACT_ERRNO", "errnoRet": number,
                     "excludes": {"caps": ["CAP_SYS_ADMIN"]}})
    subs = _SUB_ARCHES.get(native)
    arches = [] if subs is None else [{"architecture": native, "subArchitectures": subs}]
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": _EPERM,
        "archMap": arches,
        "syscalls": rows,
    }


def seccomp_resolve(
    profile: dict, caps: list[str] | tuple | frozenset, machine: str | None = None
) -> dict:
    """OCI `linux.seccomp` of a profile in Docker's JSON, whose conditions are decided here.

    They are about this machine and the bounding set. A document without any comes back as it is.
    InvalidParameter: what makes no sense.
    """
    native, arch = _MACHINES[machine or machine_name()]
    if not profile.get("defaultAction"):
        raise InvalidParameter("seccomp profile has no defaultAction")
    arches = list(profile.get("architectures") or ())
    if arches and profile.get("archMap"):
        raise InvalidParameter(
            "both 'architectures' and 'archMap' are specified in the seccomp profile, "
            "use either 'architectures' or 'archMap'"
        )
    for row in profile.get("archMap") or ():
        if row.get("architecture") == native:
            arches = [native, *(row.get("subArchitectures") or ())]
    rules = []
    for row in profile.get("syscalls") or ():
        names = row.get("names") or []
        if row.get("name"):
            if names:
                raise InvalidParameter(
                    "both 'name' and 'names' are specified in the seccomp profile, "
                    "use either 'name' or 'names'"
                )
            names = [row["name"]]
        if not _excluded(row.get("excludes") or {}, caps, arch) and _included(
            row.get("includes") or {}, caps, arch
        ):
            rule = {
                key: row[key] for key in ("action", "args", "errnoRet") if row.get(key) is not None
            }
            rules.append({"names": names, **rule})
    keep = ("defaultAction", "defaultErrnoRet", "flags", "listenerPath", "listenerMetadata")
    document = {key: profile[key] for key in keep if profile.get(key) is not None}
    return {**document, "architectures": arches, "syscalls": rules}


def _excluded(condition: dict, caps: list[str] | tuple | frozenset, arch: str) -> bool:
    return (
        arch in (condition.get("arches") or ())
        or any(cap in caps for cap in condition.get("caps") or ())
        or bool(condition.get("minKernel"))
        and _kernel_at_least(condition["minKernel"])
    )


def _included(condition: dict, caps: list[str] | tuple | frozenset, arch: str) -> bool:
    return ((not condition.get("arches") or arch in condition["arches"])
            and all(cap in caps for cap in condition.get("caps") or ())
            and (not condition.get("minKernel") or _kernel_at_least(condition["minKernel"])))


def _kernel_at_least(version: str) -> bool:
    """version "4.8" is this kernel's or an older one's."""
    def numbers(text: str) -> list[int]:
        words = text.replace("-", ".").split(".")
        return [int(word) for word in words[:2] if word.isdigit()]
    return numbers(os.uname().release) >= numbers(version)


# ---- seccomp: from rules to a program

def seccomp_default_program(
    caps: list[str] | tuple | frozenset, machine: str | None = None
) -> bytes:
    """The default profile compiled for a bounding set.

    Some 6 ms the first time, then kept in this process.
    """
    machine = machine or machine_name()
    asked = {condition for _, condition in SECCOMP_DEFAULT if condition.startswith("CAP_")}
    key = (machine, frozenset(caps) & asked)
    try:
        kept = seccomp_default_program.kept         # type: ignore[attr-defined]
    except AttributeError:
        kept = seccomp_default_program.kept = {}    # type: ignore[attr-defined]
    if key not in kept:
        made = None
        if key[1] == frozenset(CAPABILITIES_DEFAULT) & asked:
            made = _default_program_made(machine)
        kept[key] = made or seccomp_compile(seccomp_default_profile(machine), machine, caps)
    return kept[key]


def _default_program_made(machine: str) -> bytes | None:
    """What the build has compiled already: 12 ms less until a launcher serves its first request."""
    member = archive_member("seccomp")
    if member is None:
        return None
    from marshal import loads
    return loads(member).get(machine)


def seccomp_program(profile: str | dict, caps: list[str] | tuple | frozenset) -> bytes:
    """The program for this machine of "default", or of a profile in Docker's JSON or OCI's format.
    """
    if isinstance(profile, str):
        return seccomp_default_program(caps)
    return seccomp_compile(profile, None, caps)


def seccomp_compile(
    profile: dict, machine: str | None = None, caps: list[str] | tuple | frozenset = ()
) -> bytes:
    """A BPF program of a profile, Docker's JSON or OCI's.

    InvalidParameter when it cannot be one.
    """
    machine = machine or machine_name()
    document = seccomp_resolve(profile, caps, machine)
    default = _action(document["defaultAction"], document.get("defaultErrnoRet"))
    native = _MACHINES[machine][0]
    by_arch: dict[int, list] = {}
    for name in dict.fromkeys([native, *document["architectures"]]):
        if name in SECCOMP_ARCHES:
            # Another machine's can never be asked for on this one.
            audit, bit, tables = SECCOMP_ARCHES[name]
            by_arch.setdefault(audit, []).append((bit, _arch_block(document, tables, bit, default)))
        elif not name.startswith("SCMP_ARCH_"):
            raise InvalidParameter(f"unknown architecture in the seccomp profile: {name}")
    code = [(_LD, 0, 0, _AT_ARCH)]
    for audit, blocks in by_arch.items():
        block = _arch_select(blocks, default, audit == SECCOMP_ARCHES["SCMP_ARCH_X86_64"][0])
        code += [(_JEQ, 1, 0, audit), (_JA, 0, 0, len(block)), *block]
    code.append((_RET, 0, 0, SECCOMP_ACTIONS["SCMP_ACT_KILL_THREAD"]))
    if len(code) > _PROGRAM_MAX:
        raise InvalidParameter("the seccomp profile is too long for the kernel")
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _arch_select(blocks: list[tuple], default: int, is_x86_64: bool) -> list[tuple]:
    """The code for one AUDIT_ARCH, which x32 shares with x86_64 and tells by a bit in the number.
    """
    code = [(_LD, 0, 0, _AT_NUMBER)]
    if not is_x86_64:
        return code + blocks[0][1]
    by_bit = dict(blocks)
    kill = [(_RET, 0, 0, SECCOMP_ACTIONS["SCMP_ACT_KILL_THREAD"])]
    other = by_bit.get(0x40000000, kill)
    return [*code, (_JGE, 0, 1, 0x40000000), (_JA, 0, 0, len(by_bit[0])), *by_bit[0], *other]


def _action(name: str, number: int | None) -> int:
    if name not in SECCOMP_ACTIONS:
        raise InvalidParameter(f"unsupported action in the seccomp profile: {name}")
    value = SECCOMP_ACTIONS[name]
    if name in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"):
        value |= (_EPERM if number is None else number) & 0xFFFF
    return value


def syscall_numbers(tables: tuple) -> dict[str, int]:
    """{name: number} of some of SYSCALL_TABLES; later ones replace what earlier ones say."""
    numbers: dict[str, int] = {}
    for table in tables:
        _numbers_add(numbers, SYSCALL_TABLES[table])
    return numbers


def _numbers_add(numbers: dict[str, int], row: str) -> None:
    number = 0
    for word in row.split():
        if word.isdigit():
            number = int(word)
        else:
            numbers[word] = number
            number += 1


def _arch_block(document: dict, tables: tuple, bit: int, default: int) -> list[tuple]:
    """The code that answers for one architecture, the call's number being loaded."""
    numbers = syscall_numbers(tables)
    # Number: [(tests, action)], in order; no test: always.
    answers: dict[int, list] = {}
    for rule in document["syscalls"]:
        action = _action(rule["action"], rule.get("errnoRet"))
        alternatives = _alternatives(rule.get("args") or ())
        for name in rule["names"]:
            if name in numbers:
                answers.setdefault(numbers[name] | bit, []).extend(
                    (tests, action) for tests in alternatives
                )
            if "socketcall" in numbers and not rule.get("args"):
                _multiplexed(answers, numbers, name, action)
    leaves = {number: _leaf(rules, default) for number, rules in answers.items()}
    unknown = default if default >> 16 in _PERMISSIVE else _ERRNO | _ENOSYS
    # Of arm, far above all others.
    private = [number for number in leaves if number - bit >= 0xF0000]
    last = max((number for number in leaves if number not in private), default=bit)
    ends = _ranges(leaves, bit, last, [(_RET, 0, 0, default)])
    ends.append((last + 1, [(_RET, 0, 0, unknown)]))
    for number in sorted(private):
        ends += [(number, leaves[number]), (number + 1, [(_RET, 0, 0, unknown)])]
    return _search(ends)


def _multiplexed(answers: dict[int, list], numbers: dict[str, int], name: str, action: int) -> None:
    """The rule for x86's other way to make the same call."""
    for holder, row in _MULTIPLEXED.items():
        inner: dict[str, int] = {}
        if name in row.split():
            _numbers_add(inner, row)
            answers.setdefault(numbers[holder], []).append(([(0, "EQ", inner[name], 0)], action))


def _alternatives(args: list[dict] | tuple) -> list[list[tuple]]:
    """The argument tests, all of which must hold.

    Two on one argument are alternatives, as in runc.
    """
    tests = []
    for arg in args:
        op = str(arg.get("op", "")).replace("SCMP_CMP_", "")
        index = arg.get("index", -1)
        if op not in _TESTS or not 0 <= index <= 5:
            raise InvalidParameter(f"invalid argument test in the seccomp profile: {arg}")
        tests.append((index, op, arg.get("value", 0), arg.get("valueTwo", 0)))
    if len({test[0] for test in tests}) < len(tests):
        return [[test] for test in tests]
    return [tests]


def _leaf(rules: list[tuple], default: int) -> list[tuple]:
    """The code of one call: rules with tests in their order, then the one without, or the default.
    """
    last = next((action for tests, action in rules if not tests), default)
    code = []
    for tests, action in rules:
        if tests and action != last:
            code += _tested(tests, action)
    return [*code, (_RET, 0, 0, last)]


def _tested(tests: list[tuple], action: int) -> list[tuple]:
    """`action` if all tests hold, else on to what follows."""
    code = [(_RET, 0, 0, action)]
    for test in reversed(tests):
        code = _test(test, len(code)) + code
    return code


def _test(test: tuple, over: int) -> list[tuple]:
    """Fall through if the argument passes, else jump over `over` instructions after the test."""
    index, op, value, second = test
    # All of them are little-endian.
    low, high = _AT_ARGS + 8 * index, _AT_ARGS + 8 * index + 4
    if op == "MASKED_EQ":
        code = [
            (_LD, 0, 0, low),
            (_AND, 0, 0, value & 0xFFFFFFFF),
            (_JEQ, 0, over, second & 0xFFFFFFFF),
        ]
        if value >> 32 == 0:
            return code  # the upper half does not count
        return [
            (_LD, 0, 0, high),
            (_AND, 0, 0, value >> 32),
            (_JEQ, 0, over + 3, second >> 32),
            *code,
        ]
    value_low, value_high = value & 0xFFFFFFFF, value >> 32 & 0xFFFFFFFF
    if op in ("EQ", "NE"):
        # Upper half different: EQ fails, NE holds.
        last = (_JEQ, 0, over, value_low) if op == "EQ" else (_JEQ, over, 0, value_low)
        unequal = over + 2 if op == "EQ" else 2
        return [(_LD, 0, 0, high), (_JEQ, 0, unequal, value_high), (_LD, 0, 0, low), last]
    jump, when = {"GT": (_JGT, True), "GE": (_JGE, True), "LE": (_JGT, False), "LT": (_JGE, False)}[
        op
    ]
    above, below = (3, over + 2) if when else (over + 3, 2)
    last = (jump, 0, over, value_low) if when else (jump, over, 0, value_low)
    return [
        (_LD, 0, 0, high),
        (_JGT, above, 0, value_high),
        (_JEQ, 0, below, value_high),
        (_LD, 0, 0, low),
        last,
    ]


def _ranges(leaves: dict[int, list], first: int, last: int, default: list) -> list[tuple]:
    """[(first number, code)]: neighbours with the same code are one range."""
    ends: list[tuple] = []
    for number in range(first, last + 1):
        code = leaves.get(number, default)
        if not ends or ends[-1][1] != code:
            ends.append((number, code))
    return ends


def _search(ends: list[tuple]) -> list[tuple]:
    """A binary search for the range that holds the number."""
    if len(ends) == 1:
        return ends[0][1]
    middle = len(ends) // 2
    left, right = _search(ends[:middle]), _search(ends[middle:])
    if len(left) < 256:
        return [(_JGE, len(left), 0, ends[middle][0]), *left, *right]
    # 8 bits do not reach.
    return [(_JGE, 0, 1, ends[middle][0]), (_JA, 0, 0, len(left)), *left, *right]


def seccomp_flags(names: list[str] | None) -> int:
    """The flags of a profile as bits; without any, speculation is left alone, as runc does."""
    if names is None:
        return SECCOMP_FLAGS["SECCOMP_FILTER_FLAG_SPEC_ALLOW"]
    bits = 0
    for name in names:
        if name not in SECCOMP_FLAGS:
            raise InvalidParameter(f"unknown flag in the seccomp profile: {name}")
        bits |= SECCOMP_FLAGS[name]
    return bits


def seccomp_install(program: bytes, flags: int = 4) -> None:
    """Hold this process to the program for good. EACCES: neither no_new_privs nor CAP_SYS_ADMIN."""
    code = sys_buffer(program)
    header = struct.pack("@HP", len(program) // 8, sys_address(code))
    try:
        sys_seccomp(1, flags, header)               # SECCOMP_SET_MODE_FILTER
    except OSError as refused:
        if refused.errno != errno.EINVAL or not flags:
            raise
        sys_seccomp(1, 0, header)                   # a kernel that does not know the flag


def seccomp_available() -> bool:
    """This kernel takes filters."""
    try:
        # A filter at address 0: EFAULT where there are filters.
        sys_prctl(PR_SET_SECCOMP, 2, 0, 0, 0)
    except OSError as refused:
        return refused.errno == errno.EFAULT
    return True


# =============================================================================
# terminals -- pty pairs, window size, raw mode, passing descriptors
# =============================================================================
# Runs in: cli, monitor, init.   Refs: pty(7), ioctl_tty(2), termios(3), unix(7), cmsg(3)
#
# The container's terminal is a pty of the container's own devpts: its slave is the /dev/pts/N
# that the container sees, which a pty of the host could not be. So the init opens the master
# inside, sends it to the monitor and makes the slave its controlling terminal. Neither may import
# by then: their ioctls go through `syscalls`, while the CLI, which only sets its own terminal to
# raw, uses termios.
#
# Descriptors travel as SCM_RIGHTS beside at least one byte, and arrive close-on-exec. What a peer
# sends beyond what was expected is closed, not leaked.

TIOCSCTTY = 0x540E              # asm-generic/ioctls.h: the same on all SYSCALL_MACHINES
TIOCSWINSZ = 0x5414
TIOCGWINSZ = 0x5413
TIOCSPTLCK = 0x40045431
TIOCGPTPEER = 0x5441
TIOCGPTN = 0x80045430


def pty_open(devpts: str | int = "/dev/ptmx") -> tuple[int, int]:
    """A new pty: (master descriptor, number N of the slave pts/N).

    `devpts` is the path of a ptmx, or a descriptor of a devpts's root directory. Both ends are
    O_NOCTTY.
    """
    flags = os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC
    if isinstance(devpts, int):
        master = os.open("ptmx", flags, dir_fd=devpts)
    else:
        master = os.open(devpts, flags)
    try:
        sys_ioctl(master, TIOCSPTLCK, struct.pack("=i", 0))
        number = sys_buffer(4)
        sys_ioctl(master, TIOCGPTN, number)
    except BaseException:
        os.close(master)
        raise
    return master, struct.unpack("=I", number.raw)[0]


def pty_slave(master: int) -> int:
    """A descriptor of the slave, by the master itself: no path to be bent (Linux 4.13)."""
    flags = os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC
    return sys_ioctl(master, TIOCGPTPEER, flags)


def pty_control(slave: int) -> None:
    """Make the slave the controlling terminal of this session's leader (os.setsid before)."""
    sys_ioctl(slave, TIOCSCTTY, 0)


def winsize_get(fd: int) -> tuple[int, int]:
    """(rows, columns) of a terminal; OSError ENOTTY for anything else."""
    size = os.get_terminal_size(fd)
    return size.lines, size.columns


def winsize_set(fd: int, rows: int, columns: int) -> None:
    """Set a terminal's size; its foreground processes get SIGWINCH when it changes."""
    clip = 0xFFFF
    sys_ioctl(fd, TIOCSWINSZ, struct.pack("=4H", min(rows, clip), min(columns, clip), 0, 0))


class raw_mode:
    """Context manager: the terminal passes every byte on, no echo, no signals.

    As it was afterwards.
    """

    __slots__ = ("_fd", "_saved")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._saved: list | None = None

    def __enter__(self) -> raw_mode:
        import termios
        import tty
        self._saved = termios.tcgetattr(self._fd)
        tty.setraw(self._fd, termios.TCSANOW)
        return self

    def __exit__(self, *error: object) -> None:
        self.restore()

    def restore(self) -> None:
        """Set the terminal back now; harmless when it is already, or gone."""
        import termios
        saved, self._saved = self._saved, None
        if saved is not None:
            try:
                termios.tcsetattr(self._fd, termios.TCSADRAIN, saved)
            except termios.error:                   # the terminal was closed
                return


def fds_send(sock: _socket.socket, data: bytes, fds: list[int] | tuple = ()) -> int:
    """Send bytes (at least one) and descriptors with them over a unix socket.

    Gives the bytes taken.
    """
    if not fds:
        return sock.send(data)
    rights = struct.pack(f"={len(fds)}i", *fds)
    return sock.sendmsg([data], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])


def fds_recv(
    sock: _socket.socket, size: int, maxfds: int = 0, flags: int = 0
) -> tuple[bytes, list[int]]:
    """(bytes, descriptors) of one receive, b"" at the end.

    A message longer than `size` is EMSGSIZE.
    """
    data, ancillary, told, _ = sock.recvmsg(
        size, _socket.CMSG_SPACE(4 * max(maxfds, 1)), flags | _socket.MSG_CMSG_CLOEXEC)
    fds: list[int] = []
    for level, kind, content in ancillary:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            fds += struct.unpack(f"={len(content) // 4}i", content[:len(content) // 4 * 4])
    for fd in fds[maxfds:]:
        os.close(fd)
    if told & _socket.MSG_TRUNC:
        for fd in fds[:maxfds]:
            os.close(fd)
        raise OSError(errno.EMSGSIZE, "message longer than expected")
    return data, fds[:maxfds]


def peer_cred(sock: _socket.socket) -> tuple[int, int, int]:
    """(pid, uid, gid) of the process that connected or listens at the other end: SO_PEERCRED,
    unix(7).
    """
    return struct.unpack("=3i", sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12))


# =============================================================================
# netlink -- links by hand: bring the loopback up
# =============================================================================
# Runs in: init.   Refs: netdevice(7)
#
# A new network namespace has one link, lo, and it is down. One ioctl brings it up; the kernel
# itself adds
# 127.0.0.1 and ::1. Links between namespaces, addresses and routes come with bridge networks.

_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1


def loopback_up() -> None:
    """Bring lo of this network namespace up."""
    sock = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    try:
        request = sys_buffer(struct.pack("=16sH22x", b"lo", 0))
        sys_ioctl(sock.fileno(), _SIOCGIFFLAGS, request)
        flags = struct.unpack_from("=H", request.raw, 16)[0]
        sys_ioctl(sock.fileno(), _SIOCSIFFLAGS, struct.pack("=16sH22x", b"lo", flags | _IFF_UP))
    finally:
        sock.close()


# =============================================================================
# events -- the journal of what happened; any process appends, any process follows
# =============================================================================
# Runs in: all roles.
# One line of JSON per event in RUN/events/<n>.jsonl, appended under a lock by whoever did the
# thing, read by whoever wants to know. A file is closed to new lines at 1 MiB and the last 8 are
# kept, so the journal is bounded; it is gone at reboot, as Docker's is. A line is Docker's event
# message. A reader remembers (file, offset), so it sees each line once, however many writers there
# are.

EVENTS_FILE_SIZE = 1 << 20
EVENTS_FILES = 8


def event_emit(store: Store, type: str, action: str, id: str, attributes: dict) -> None:
    """Append one event: type "container", action "start", the actor's id, string attributes."""
    now = time.time_ns()
    event = {"Type": type, "Action": action, "Actor": {"ID": id, "Attributes": attributes},
             "scope": "local", "time": now // 1000000000, "timeNano": now}
    if type in ("container", "image"):           # the fields of API < 1.22 that clients still read
        event = {"status": action, "id": id, **event}
        if "image" in attributes and type == "container":
            event["from"] = attributes["image"]
    line = json_text(event).encode("utf-8", "surrogateescape") + b"\n"
    with store.lock("events"):
        directory = store.run_path("events")
        numbers = _event_files(directory)
        number = numbers[-1] if numbers else 1
        fd = os.open(f"{directory}/{number}.jsonl",
                     os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            write_all(fd, line)
            full = os.lseek(fd, 0, os.SEEK_END) >= EVENTS_FILE_SIZE
        finally:
            os.close(fd)
        if full:
            os.close(os.open(f"{directory}/{number + 1}.jsonl",
                             os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            for old in numbers[:max(0, len(numbers) + 1 - EVENTS_FILES)]:
                os.unlink(f"{directory}/{old}.jsonl")


def _event_files(directory: str) -> list:
    return sorted(int(name[:-6]) for name in os.listdir(directory)
                  if name.endswith(".jsonl") and name[:-6].isdigit())


def event_follow(store: Store, since: int | None, until: int | None,
                 stop_fd: int = -1) -> Iterator[dict]:
    """Yield events (dicts) from `since` to `until` (ns since the epoch), oldest first.

    since=None begins with what comes now. until=None never ends by itself; a time in the past ends
    after the history. When `stop_fd` becomes readable it ends.
    """
    store.roots_make()
    directory = store.run_path("events")
    watch = Watch(directory, IN_MODIFY | IN_CREATE)
    try:
        numbers = _event_files(directory)
        if since is None:
            number = numbers[-1] if numbers else 1
            offset = _size_of(f"{directory}/{number}.jsonl")
        else:
            number, offset = (numbers[0] if numbers else 1), 0
        while True:
            more = True
            while more:
                lines, offset, number, more = _events_read(directory, number, offset)
                for event in lines:
                    when = event["timeNano"]
                    if until is not None and when > until:
                        return
                    if since is None or when >= since:
                        yield event
            left = None if until is None else (until - time.time_ns()) / 1e9
            if left is not None and left <= 0:
                return
            if not watch.wait(left, stop_fd) and stop_fd >= 0:
                return
    finally:
        watch.close()


def _size_of(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def _events_read(directory: str, number: int, offset: int) -> tuple:
    """(events, new offset, new number, whether there may be more) from one place in the journal."""
    try:
        fd = os.open(f"{directory}/{number}.jsonl", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        later = [n for n in _event_files(directory) if n > number]
        return [], 0 if later else offset, later[0] if later else number, bool(later)
    try:
        data = os.pread(fd, 1 << 20, offset)
    finally:
        os.close(fd)
    end = data.rfind(b"\n") + 1
    events = [json_parse(line) for line in data[:end].splitlines()]
    if end:
        return events, offset + end, number, True
    if os.path.exists(f"{directory}/{number + 1}.jsonl"):
        return events, 0, number + 1, True
    return events, offset, number, False

# =============================================================================
# limits -- resource limits of a HostConfig: Docker's checks, and what this host can keep
# =============================================================================
# Runs in: api, cli.   Refs: moby daemon/daemon_unix.go verifyPlatformContainerResources, cgroups(7)
#
# Resource limits of a HostConfig before anything is made: ranges and combinations that Docker
# refuses are refused in its words; a limit whose controller this host lacks is taken out of the
# document with Docker's warning, so that nothing later has to ask again. The cgroups are looked at
# only when a limit was asked for.

MEMORY_MIN = 6 << 20                    # moby linuxMinMemory
_UNSUPPORTED = "Your kernel does not support "
#: (field, controller, file of that controller that must exist or "", what is told, value then).
RESOURCE_NEEDS = (
    ("Memory", "memory", "", _UNSUPPORTED + "memory limit capabilities or the cgroup is not"
     " mounted. Limitation discarded.", 0),
    ("MemoryReservation", "memory", "", _UNSUPPORTED + "memory soft limit capabilities or the"
     " cgroup is not mounted. Limitation discarded.", 0),
    ("MemorySwappiness", "memory", "memory.swappiness", _UNSUPPORTED + "memory swappiness"
     " capabilities or the cgroup is not mounted. Memory swappiness discarded.", None),
    ("OomKillDisable", "memory", "memory.oom_control", _UNSUPPORTED + "OomKillDisable."
     " OomKillDisable discarded.", None),
    ("PidsLimit", "pids", "", _UNSUPPORTED + "PIDs limit capabilities or the cgroup is not mounted."
     " PIDs limit discarded.", None),
    ("CpuShares", "cpu", "", _UNSUPPORTED + "CPU shares or the cgroup is not mounted."
     " Shares discarded.", 0),
    ("CpuPeriod", "cpu", "", _UNSUPPORTED + "CPU CFS scheduler. CPU period/quota discarded.", 0),
    ("CpuQuota", "cpu", "", _UNSUPPORTED + "CPU CFS scheduler. CPU period/quota discarded.", 0),
    ("CpusetCpus", "cpuset", "", _UNSUPPORTED + "cpuset or the cgroup is not mounted."
     " Cpuset discarded.", ""),
    ("CpusetMems", "cpuset", "", _UNSUPPORTED + "cpuset or the cgroup is not mounted."
     " Cpuset discarded.", ""),
    ("BlkioWeight", "blkio", "", _UNSUPPORTED + "Block I/O weight or the cgroup is not mounted."
     " Weight discarded.", 0),
)


def resources_verify(host: dict) -> list:
    """Check the limits as Docker does; what this host cannot keep is dropped with a warning."""
    if host["MemorySwappiness"] == -1:
        host["MemorySwappiness"] = None
    _memory_verify(host)
    _cpu_verify(host)
    if host["BlkioWeight"] and not 10 <= host["BlkioWeight"] <= 1000:
        raise InvalidParameter("Range of blkio weight is from 10 to 1000")
    asked = [row for row in RESOURCE_NEEDS if host[row[0]]]
    if host["NanoCpus"] or asked:
        have = controllers_find()
    warnings = []
    for field, controller, file, text, value in asked:
        if controller not in have or file and not os.path.exists(f"{have[controller]}/{file}"):
            if text not in warnings:
                warnings.append(text)
            host[field] = value
            if field == "Memory":
                host["MemorySwap"] = -1
    if host["NanoCpus"] and "cpu" not in have:
        raise InvalidParameter("NanoCPUs can not be set, as your kernel does not support CPU CFS"
                               " scheduler or the cgroup is not mounted")
    if host["CpuPercent"]:
        warnings.append("linux does not support CPU percent. Percent discarded.")
        host["CpuPercent"] = 0
    if host["OomKillDisable"] and not host["Memory"]:
        warnings.append("OOM killer is disabled for the container, but no memory limit is set, this"
                        " can result in the system running out of resources.")
    return warnings


def controllers_find() -> dict:
    """{controller: directory} of the cgroup controllers that can be used here."""
    found = cgroup_probe()
    have = dict(found.v1)
    if found.v2:
        try:
            names = file_read(found.v2 + "/cgroup.controllers").decode().split()
        except OSError:
            names = []
        have.update((name, found.v2) for name in names)
        if "io" in have:
            have["blkio"] = found.v2
    return have


def _memory_verify(host: dict) -> None:
    memory, swap = host["Memory"], host["MemorySwap"]
    reservation = host["MemoryReservation"]
    swappiness = host["MemorySwappiness"]
    checks = (
        (memory and memory < MEMORY_MIN, "Minimum memory limit allowed is 6MB"),
        (memory > 0 and 0 < swap < memory,
         "Minimum memoryswap limit should be larger than memory limit, see usage"),
        (memory == 0 and swap > 0,
         "You should always set the Memory limit when using Memoryswap limit, see usage"),
        (swappiness is not None and not 0 <= swappiness <= 100,
         f"Invalid value: {swappiness}, valid memory swappiness range is 0-100"),
        (0 < reservation < MEMORY_MIN, "Minimum memory reservation allowed is 6MB"),
        (0 < memory < reservation,
         "Minimum memory limit can not be less than memory reservation limit, see usage"),
    )
    for wrong, text in checks:
        if wrong:
            raise InvalidParameter(text)


def _cpu_verify(host: dict) -> None:
    nano, period, quota = host["NanoCpus"], host["CpuPeriod"], host["CpuQuota"]
    if nano > 0 and period > 0:
        raise InvalidParameter(
            "Conflicting options: Nano CPUs and CPU Period cannot both be set")
    if nano > 0 and quota > 0:
        raise InvalidParameter("Conflicting options: Nano CPUs and CPU Quota cannot both be set")
    count = os.cpu_count() or 1
    if nano < 0 or nano > count * 1000000000:
        raise InvalidParameter(f"range of CPUs is from 0.01 to {count}.00, as there are only"
                               f" {count} CPUs available")
    if period and not 1000 <= period <= 1000000:
        raise InvalidParameter("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than"
                               " 1s (i.e. 1000000)")
    if 0 < quota < 1000:
        raise InvalidParameter("CPU cfs quota can not be less than 1ms (i.e. 1000)")
    for field, kind, what, file in (
            ("CpusetCpus", "cpus", "CPUs", "/sys/devices/system/cpu/online"),
            ("CpusetMems", "mems", "memory nodes", "/sys/devices/system/node/online")):
        if host[field]:
            _cpuset_verify(host[field], kind, what, file)


def _cpuset_verify(asked: str, kind: str, what: str, file: str) -> None:
    try:
        wanted = cpuset_parse(asked)
    except ValueError:
        raise InvalidParameter(f"Invalid value {asked} for cpuset {kind}: failed to parse"
                               f" {kind}") from None
    online = file_read(file).decode().strip() if os.path.exists(file) else "0"
    if not wanted <= cpuset_parse(online):
        raise InvalidParameter(f"Requested {what} are not available - requested {asked},"
                               f" available: {online}")


def cpuset_parse(text: str) -> set:
    """The numbers in a list like "0-2,7"; ValueError when it is none."""
    out = set()
    for part in text.split(","):
        low, dash, high = part.partition("-")
        out.update(range(int(low), int(high if dash else low) + 1))
    return out


# =============================================================================
# settings -- a create body at the door: types, defaults, Docker's checks, the image merge
# =============================================================================
# Runs in: api, cli.   Refs: Docker Engine API 1.51, moby runconfig and daemon/container.go
#
# A create body is checked once, here, against the tables CONFIG and HOST_CONFIG: wrong JSON types
# are 400 with the text that Go's decoder gives; names match in any case, as Go's do; what is
# missing gets its default. From here to the disk the documents have every key, so inside one writes
# host["Memory"], never .get; empty ones are left out again when they are shown (config_show).
# Then come Docker's own checks, in Docker's words (create_verify), and the merge with the image's
# configuration (config_merge). Pure, but for a look at the host's cgroups and processors where a
# limit asks for it: a limit that this kernel cannot keep is dropped with Docker's warning.
# What later issues bring stands in NOT_YET and is refused by its flag's name.

#: A field's row: (kind, default, left out of JSON when empty). Kinds: string, bool, int, uint (as
#: in Go), strings (list), words (a list or one string), map (of strings), set (of {}), object,
#: objects, sizes, a table for an object with known fields, [table] for a list of them.
HEALTH_CONFIG = {
    "Test":          ("strings", None, True),
    "Interval":      ("int", 0, True),
    "Timeout":       ("int", 0, True),
    "StartPeriod":   ("int", 0, True),
    "StartInterval": ("int", 0, True),
    "Retries":       ("int", 0, True),
}
CONFIG = {
    "Hostname":        ("string", "", False),
    "Domainname":      ("string", "", False),
    "User":            ("string", "", False),
    "AttachStdin":     ("bool", False, False),
    "AttachStdout":    ("bool", False, False),
    "AttachStderr":    ("bool", False, False),
    "ExposedPorts":    ("set", None, True),
    "Tty":             ("bool", False, False),
    "OpenStdin":       ("bool", False, False),
    "StdinOnce":       ("bool", False, False),
    "Env":             ("strings", None, False),
    "Cmd":             ("words", None, False),
    "Healthcheck":     (HEALTH_CONFIG, None, True),
    "ArgsEscaped":     ("bool", False, True),
    "Image":           ("string", "", False),
    "Volumes":         ("set", None, False),
    "WorkingDir":      ("string", "", False),
    "Entrypoint":      ("words", None, False),
    "NetworkDisabled": ("bool", False, True),
    "MacAddress":      ("string", "", True),
    "OnBuild":         ("strings", None, False),
    "Labels":          ("map", None, False),
    "StopSignal":      ("string", "", True),
    "StopTimeout":     ("int", None, True),
    "Shell":           ("words", None, True),
}
LOG_CONFIG = {"Type": ("string", "", False), "Config": ("map", None, False)}
RESTART_POLICY = {"Name": ("string", "", False), "MaximumRetryCount": ("int", 0, False)}
ULIMIT = {"Name": ("string", "", False), "Hard": ("int", 0, False), "Soft": ("int", 0, False)}
WEIGHT_DEVICE = {"Path": ("string", "", False), "Weight": ("uint", 0, False)}
THROTTLE_DEVICE = {"Path": ("string", "", False), "Rate": ("uint", 0, False)}
DEVICE_MAPPING = {
    "PathOnHost":        ("string", "", False),
    "PathInContainer":   ("string", "", False),
    "CgroupPermissions": ("string", "", False),
}
HOST_CONFIG = {
    "Binds":                ("strings", None, False),
    "ContainerIDFile":      ("string", "", False),
    "LogConfig":            (LOG_CONFIG, {}, False),
    "NetworkMode":          ("string", "", False),
    "PortBindings":         ("object", None, False),
    "RestartPolicy":        (RESTART_POLICY, {}, False),
    "AutoRemove":           ("bool", False, False),
    "VolumeDriver":         ("string", "", False),
    "VolumesFrom":          ("strings", None, False),
    "ConsoleSize":          ("sizes", (0, 0), False),
    "Annotations":          ("map", None, True),
    "CapAdd":               ("words", None, False),
    "CapDrop":              ("words", None, False),
    "CgroupnsMode":         ("string", "", False),
    "Dns":                  ("strings", None, False),
    "DnsOptions":           ("strings", None, False),
    "DnsSearch":            ("strings", None, False),
    "ExtraHosts":           ("strings", None, False),
    "GroupAdd":             ("strings", None, False),
    "IpcMode":              ("string", "", False),
    "Cgroup":               ("string", "", False),
    "Links":                ("strings", None, False),
    "OomScoreAdj":          ("int", 0, False),
    "PidMode":              ("string", "", False),
    "Privileged":           ("bool", False, False),
    "PublishAllPorts":      ("bool", False, False),
    "ReadonlyRootfs":       ("bool", False, False),
    "SecurityOpt":          ("strings", None, False),
    "StorageOpt":           ("map", None, True),
    "Tmpfs":                ("map", None, True),
    "UTSMode":              ("string", "", False),
    "UsernsMode":           ("string", "", False),
    "ShmSize":              ("int", 0, False),
    "Sysctls":              ("map", None, True),
    "Runtime":              ("string", "", True),
    "Isolation":            ("string", "", False),
    "CpuShares":            ("int", 0, False),
    "Memory":               ("int", 0, False),
    "NanoCpus":             ("int", 0, False),
    "CgroupParent":         ("string", "", False),
    "BlkioWeight":          ("uint", 0, False),
    "BlkioWeightDevice":    ([WEIGHT_DEVICE], None, False),
    "BlkioDeviceReadBps":   ([THROTTLE_DEVICE], None, False),
    "BlkioDeviceWriteBps":  ([THROTTLE_DEVICE], None, False),
    "BlkioDeviceReadIOps":  ([THROTTLE_DEVICE], None, False),
    "BlkioDeviceWriteIOps": ([THROTTLE_DEVICE], None, False),
    "CpuPeriod":            ("int", 0, False),
    "CpuQuota":             ("int", 0, False),
    "CpuRealtimePeriod":    ("int", 0, False),
    "CpuRealtimeRuntime":   ("int", 0, False),
    "CpusetCpus":           ("string", "", False),
    "CpusetMems":           ("string", "", False),
    "Devices":              ([DEVICE_MAPPING], None, False),
    "DeviceCgroupRules":    ("strings", None, False),
    "DeviceRequests":       ("objects", None, False),
    "KernelMemory":         ("int", 0, True),
    "KernelMemoryTCP":      ("int", 0, True),
    "MemoryReservation":    ("int", 0, False),
    "MemorySwap":           ("int", 0, False),
    "MemorySwappiness":     ("int", None, False),
    "OomKillDisable":       ("bool", None, False),
    "PidsLimit":            ("int", None, False),
    "Ulimits":              ([ULIMIT], None, False),
    "CpuCount":             ("int", 0, False),
    "CpuPercent":           ("int", 0, False),
    "IOMaximumIOps":        ("uint", 0, False),
    "IOMaximumBandwidth":   ("uint", 0, False),
    "Mounts":               ("objects", None, True),
    "MaskedPaths":          ("strings", None, False),
    "ReadonlyPaths":        ("strings", None, False),
    "Init":                 ("bool", None, True),
}

#: Fields that a later issue brings, and the flag that sets each.
NOT_YET = {
    "Binds": "--volume", "Mounts": "--mount", "VolumesFrom": "--volumes-from",
    "VolumeDriver": "--volume-driver", "PortBindings": "--publish",
    "PublishAllPorts": "--publish-all", "Links": "--link", "Privileged": "--privileged",
    "Devices": "--device", "DeviceRequests": "--gpus", "DeviceCgroupRules": "--device-cgroup-rule",
    "CgroupParent": "--cgroup-parent", "StorageOpt": "--storage-opt",
}

SHM_SIZE = 64 << 20                     # moby config.DefaultShmSize
RUNTIME = "runc"                        # the name clients expect of the built-in runtime
MASKED_PATHS = (
    "/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys",
    "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug",
    "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap")
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

RLIMITS = frozenset((
    "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc",
    "rss", "rtprio", "rttime", "sigpending", "stack"))
#: Sysctls whose value belongs to a namespace (runc libcontainer/configs/validate).
SYSCTLS_IPC = frozenset((
    "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall",
    "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced"))
#: tmpfs options that contradict each other; the last one given counts.
TMPFS_PAIRS = (("ro", "rw"), ("suid", "nosuid"), ("dev", "nodev"), ("exec", "noexec"),
               ("sync", "async"), ("atime", "noatime"), ("diratime", "nodiratime"),
               ("relatime", "norelatime"), ("strictatime", "nostrictatime"))
TMPFS_DATA = frozenset(("mode", "gid", "uid", "size", "nr_blocks", "nr_inodes", "mpol"))
_PROPAGATION = frozenset(("private", "rprivate", "shared", "rshared", "slave", "rslave",
                          "unbindable", "runbindable"))

_GO_TYPES = {"string": "string", "bool": "bool", "int": "int64", "uint": "uint64",
             "strings": "[]string", "words": "[]string", "map": "map[string]string",
             "set": "map[string]struct {}", "object": "map[string]interface {}",
             "objects": "[]interface {}", "sizes": "[2]uint"}


# ---- the door ----

def _json_kind(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, str):
        return "string"
    if isinstance(value, (int, float)):
        return "number" if isinstance(value, int) else f"number {value}"
    return "array" if isinstance(value, list) else "object"


def _mistyped(value: Any, where: str, kind: str) -> InvalidParameter:
    return InvalidParameter(f"invalid JSON: json: cannot unmarshal {_json_kind(value)} into Go"
                            f" struct field {where} of type {kind}")


def _items_check(items: Any, where: str, item_kind: type, go: str) -> None:
    for item in items:
        if not isinstance(item, item_kind):
            raise _mistyped(item, where, go)


def _value_check(value: Any, kind: Any, where: str) -> Any:
    """The value as its kind asks for it, or 400 as Go's decoder tells it."""
    if isinstance(kind, dict):
        if not isinstance(value, dict):
            raise _mistyped(value, where, "object")
        return fields_check(value, kind, where)
    if isinstance(kind, list):
        if not isinstance(value, list):
            raise _mistyped(value, where, "[]object")
        return [_value_check(item, kind[0], where) for item in value if item is not None]
    go = _GO_TYPES[kind]
    if kind in ("string", "bool"):
        good = isinstance(value, str if kind == "string" else bool)
    elif kind in ("int", "uint"):
        low = 0 if kind == "uint" else -(1 << 63)
        good = isinstance(value, int) and not isinstance(value, bool) and low <= value < 1 << 63
    elif kind in ("map", "set", "object"):
        good = isinstance(value, dict)
        if good and kind == "map":
            value = {key: "" if item is None else item for key, item in value.items()}
            _items_check(value.values(), where, str, "string")
    elif kind == "words" and isinstance(value, str):
        return [value]
    else:
        good = isinstance(value, list)
        if good:
            inner = {"sizes": (int, "uint"), "objects": (dict, "object")}.get(kind, (str, "string"))
            _items_check(value, where, *inner)
    if not good:
        raise _mistyped(value, where, go)
    return value


def fields_check(given: dict, table: dict, where: str) -> dict:
    """A document with every field of the table: what was given, checked, or its default.

    Names match in any case, null means "not given", unknown names are ignored, as in Go.
    """
    lowered = None
    out = {}
    for name, (kind, default, _) in table.items():
        value = given.get(name)
        if value is None and name not in given:
            if lowered is None:
                lowered = {key.lower(): item for key, item in given.items()}
            value = lowered.get(name.lower())
        if value is not None:
            out[name] = _value_check(value, kind, f"{where}.{name}")
        elif isinstance(kind, dict) and default is not None:
            out[name] = fields_check({}, kind, where)
        else:
            out[name] = list(default) if isinstance(default, tuple) else default
    return out


_CREATE_PARTS = ("HostConfig", "NetworkingConfig")


def create_check(body: Any, version: str = API_VERSION) -> tuple:
    """(config, host config, networking config) of a create body, every key filled in.

    Raises InvalidParameter for wrong shapes and for what Docker refuses while it decodes.
    """
    if not isinstance(body, dict):
        raise _mistyped(body, "CreateRequest", "container.CreateRequest")
    parts = {name.lower(): value for name, value in body.items()}
    given, networking = (
        {} if parts.get(name.lower()) is None else parts[name.lower()] for name in _CREATE_PARTS)
    for name, part in zip(_CREATE_PARTS, (given, networking)):
        if not isinstance(part, dict):
            raise _mistyped(part, "CreateRequest." + name, "container." + name)
    if not parts.keys() - {name.lower() for name in _CREATE_PARTS}:
        raise InvalidParameter("config cannot be empty in order to create a container")
    config = fields_check(body, CONFIG, "CreateRequest")
    host = fields_check(given, HOST_CONFIG, "HostConfig.HostConfig")
    endpoints = networking.get("EndpointsConfig") or {}
    if not isinstance(endpoints, dict):
        raise _mistyped(endpoints, "NetworkingConfig.NetworkingConfig.EndpointsConfig",
                        "map[string]*network.EndpointSettings")
    _version_adapt(config, host, tuple(int(part) for part in version.split(".")[:2]))
    _modes_check(config, host)
    return config, host, {"EndpointsConfig": endpoints}


def _version_adapt(config: dict, host: dict, version: tuple) -> None:
    """What older clients did not know is not taken from them (moby postContainersCreate)."""
    if version < (1, 25):
        host["AutoRemove"] = False
    if version < (1, 40) and not host["IpcMode"]:
        host["IpcMode"] = "shareable"
    if version < (1, 42):
        host["ConsoleSize"] = [0, 0]
    else:
        host["KernelMemory"] = 0
    if version < (1, 43):
        host["Annotations"] = None
    if version < (1, 44) and config["Healthcheck"]:
        config["Healthcheck"]["StartInterval"] = 0
    if host["PidsLimit"] is not None and host["PidsLimit"] <= 0:
        host["PidsLimit"] = None
    if config["Volumes"] is None:
        config["Volumes"] = {}


def mode_container(mode: str) -> str:
    """The name or id in a mode `container:x`, else ""."""
    return mode[10:] if mode.startswith("container:") else ""


def _modes_check(config: dict, host: dict) -> None:
    network = host["NetworkMode"]
    if network == "container" or network.startswith("container:"):
        conflicts = (
            (not mode_container(network),
             "invalid network mode: invalid container format container:<name|id>"),
            (config["Hostname"], "conflicting options: hostname and the network mode"),
            (host["Links"], "conflicting options: container type network can't be used with links."
                            " This would result in undefined behavior"),
            (host["Dns"], "conflicting options: dns and the network mode"),
            (host["ExtraHosts"],
             "conflicting options: custom host-to-IP mapping and the network mode"),
            (host["PortBindings"] or host["PublishAllPorts"],
             "conflicting options: port publishing and the container type network mode"),
            (config["ExposedPorts"],
             "conflicting options: port exposing and the container type network mode"),
        )
        for wrong, text in conflicts:
            if wrong:
                raise InvalidParameter(text)
    if host["IpcMode"] == "container:":
        raise InvalidParameter("can't join IPC of container : invalid name or ID supplied: \"\"")
    if host["UTSMode"] == "host" and config["Hostname"]:
        raise InvalidParameter("conflicting options: hostname and the UTS mode")
    if network == "host" and host["Links"]:
        raise InvalidParameter("conflicting options: host type networking can't be used with links."
                               " This would result in undefined behavior")
    if host["Isolation"].lower() not in ("", "default"):
        raise InvalidParameter(f"invalid isolation ({host['Isolation']}): linux only supports"
                               " 'default'")
    for field, what in (("IOMaximumBandwidth", "bandwidth"), ("IOMaximumIOps", "IOPs")):
        if host[field]:
            raise InvalidParameter(f"invalid option: QoS maximum {what} configuration is not"
                                   " supported on linux")
    if host["CpuShares"] < 0:
        raise InvalidParameter(f"invalid CPU shares ({host['CpuShares']}): value must be a positive"
                               " integer")


#: Pointers in moby's structures: left out when null, not when zero.
_NULLABLE = ("Init", "StopTimeout")


def config_show(document: dict, table: dict) -> dict:
    """The document as Docker shows it: fields that Docker leaves out when empty are left out."""
    shown = {}
    for name, (kind, _, omit) in table.items():
        value = document.get(name)
        if omit and not value and (value is None or name not in _NULLABLE):
            continue
        if isinstance(kind, dict) and value is not None:
            value = config_show(value, kind)
        elif kind in ("map", "set", "object") and value:
            value = {key: value[key] for key in sorted(value)}
        shown[name] = value
    return shown


# ---- Docker's checks ----

def create_verify(config: dict, host: dict) -> list:
    """Check a filled-in create request as Docker does and fill what depends on this host.

    Returns the warnings; raises InvalidParameter with Docker's text. Changes `config` (a clean
    WorkingDir) and `host` (limits that cannot be kept are dropped, each with a warning).
    """
    _config_verify(config)
    if not host["RestartPolicy"]["Name"]:
        host["RestartPolicy"]["Name"] = "no"
    _restart_verify(host)
    for entry in host["ExtraHosts"] or ():
        name, separator, address = entry.partition("=" if "=" in entry else ":")
        if not (separator and name and address):
            raise InvalidParameter(f'bad format for add-host: "{entry}"')
    _capabilities_verify(host)
    if "" in (host["Annotations"] or {}):
        raise InvalidParameter("invalid Annotations: the empty string is not permitted as an"
                               " annotation key")
    warnings = resources_verify(host)
    _host_verify(host)
    security_parse(host["SecurityOpt"])
    log_verify(host["LogConfig"])
    for name, flag in NOT_YET.items():
        if host[name]:
            raise InvalidParameter(f"{flag} is not supported by this engine yet")
    if config["Volumes"]:
        raise InvalidParameter("volumes are not supported by this engine yet")
    if config["Healthcheck"] and (config["Healthcheck"]["Test"] or ["NONE"])[0] != "NONE":
        raise InvalidParameter("--health-cmd is not supported by this engine yet")
    if host["RestartPolicy"]["Name"] != "no":
        raise InvalidParameter("--restart is not supported by this engine yet")
    _host_fill(host)
    return warnings


def _capabilities_verify(host: dict) -> None:
    for field in ("CapAdd", "CapDrop"):
        try:
            capabilities_resolve(host[field] or [], [], False)
        except InvalidParameter as wrong:
            raise InvalidParameter(f"invalid {field}: {wrong}") from None


def _config_verify(config: dict) -> None:
    directory = config["WorkingDir"]
    if directory:
        if not directory.startswith("/"):
            raise InvalidParameter(f"the working directory '{directory}' is invalid, it needs to be"
                                   " an absolute path")
        config["WorkingDir"] = "/" + os.path.normpath(directory).lstrip("/")
    if config["StopSignal"]:
        signal_number(config["StopSignal"])
    for entry in config["Env"] or ():
        if not entry.partition("=")[0]:
            raise InvalidParameter(f"invalid environment variable: {entry}")
    for name in ("Hostname", "Domainname"):
        # sethostname(2) takes 64 bytes; told here, nothing has been made yet.
        if len(os.fsencode(config[name])) > 64:
            raise InvalidParameter(f"invalid hostname format: {config[name]}")
    health = config["Healthcheck"]
    for field in ("Interval", "Timeout", "StartPeriod", "StartInterval"):
        if health and health[field] and health[field] < 1000000:
            raise InvalidParameter(f"{field} in Healthcheck cannot be less than 1ms")
    if health and health["Retries"] < 0:
        raise InvalidParameter("Retries in Healthcheck cannot be negative")


def _restart_verify(host: dict) -> None:
    name, count = host["RestartPolicy"]["Name"], host["RestartPolicy"]["MaximumRetryCount"]
    if host["AutoRemove"] and name != "no":
        raise InvalidParameter("can't create 'AutoRemove' container with restart policy")
    if name in ("always", "unless-stopped", "no"):
        if count:
            raise InvalidParameter(
                "invalid restart policy: maximum retry count can only be used with 'on-failure'"
                + (" and cannot be negative" if count < 0 else ""))
    elif name != "on-failure":
        raise InvalidParameter(f"invalid restart policy: unknown policy '{name}'; use one of 'no',"
                               " 'always', 'on-failure', or 'unless-stopped'")
    elif count < 0:
        raise InvalidParameter("invalid restart policy: maximum retry count cannot be negative")


def _host_verify(host: dict) -> None:
    ipc, pid = host["IpcMode"], host["PidMode"]
    if ipc not in ("", "none", "private", "host", "shareable") and not ipc.startswith("container:"):
        raise InvalidParameter(f"invalid IPC mode: {ipc}")
    if pid not in ("", "host") and not mode_container(pid):
        raise InvalidParameter(f"invalid PID mode: {pid}")
    if host["ShmSize"] < 0:
        raise InvalidParameter("SHM size can not be less than 0")
    if host["UTSMode"] not in ("", "host"):
        raise InvalidParameter(f"invalid UTS mode: {host['UTSMode']}")
    if host["UsernsMode"] not in ("", "host"):
        raise InvalidParameter(f"invalid user namespace mode: {host['UsernsMode']}")
    if not -1000 <= host["OomScoreAdj"] <= 1000:
        raise InvalidParameter(f"Invalid value {host['OomScoreAdj']}, range for oom score adj is"
                               " [-1000, 1000]")
    if host["Runtime"] not in ("", RUNTIME):
        raise InvalidParameter(f"unknown or invalid runtime name: {host['Runtime']}")
    for target, options in (host["Tmpfs"] or {}).items():
        tmpfs_options(target, options)
    if host["CgroupnsMode"] not in ("", "private", "host"):
        raise InvalidParameter(f"invalid cgroup namespace mode: {host['CgroupnsMode']}")
    _ulimits_verify(host)
    _sysctls_verify(host)


def _ulimits_verify(host: dict) -> None:
    for limit in host["Ulimits"] or ():
        if limit["Name"] not in RLIMITS:
            raise InvalidParameter(f"invalid ulimit type: {limit['Name']}")
        if limit["Hard"] != -1 and (limit["Soft"] == -1 or limit["Soft"] > limit["Hard"]):
            raise InvalidParameter("ulimit soft limit must be less than or equal to hard limit:"
                                   f" {limit['Soft']} > {limit['Hard']}")


def _sysctls_verify(host: dict) -> None:
    for name in host["Sysctls"] or ():
        if name in SYSCTLS_IPC or name.startswith("fs.mqueue."):
            own = host["IpcMode"] != "host"
        elif name.startswith("net."):
            own = host["NetworkMode"] != "host"
        else:
            own = name in ("kernel.domainname", "kernel.hostname") and host["UTSMode"] != "host"
        if not own:
            raise InvalidParameter(f'sysctl "{name}" is not in a separate kernel namespace')


def _host_fill(host: dict) -> None:
    """The defaults that Docker writes into the stored HostConfig."""
    if host["Memory"] > 0 and host["MemorySwap"] == 0:
        host["MemorySwap"] = host["Memory"] * 2
    host["ShmSize"] = host["ShmSize"] or SHM_SIZE
    host["IpcMode"] = host["IpcMode"] or "private"
    host["CgroupnsMode"] = host["CgroupnsMode"] or "private"
    host["NetworkMode"] = host["NetworkMode"] or "default"
    host["Runtime"] = host["Runtime"] or RUNTIME
    if host["OomKillDisable"] is None:
        host["OomKillDisable"] = False
    if host["MaskedPaths"] is None:
        host["MaskedPaths"] = list(MASKED_PATHS) + _thermal_paths()
    if host["ReadonlyPaths"] is None:
        host["ReadonlyPaths"] = list(READONLY_PATHS)
    host["LogConfig"]["Type"] = host["LogConfig"]["Type"] or "json-file"
    host["LogConfig"]["Config"] = host["LogConfig"]["Config"] or {}


def _thermal_paths() -> list:
    """thermal_throttle of every processor tells a container about its neighbours."""
    path = "/sys/devices/system/cpu/cpu0/thermal_throttle"
    if not os.path.exists(path):
        return []
    return [path.replace("cpu0", name) for name in sorted(os.listdir("/sys/devices/system/cpu"))
            if name[:3] == "cpu" and name[3:].isdigit()]


def network_verify(config: dict, host: dict, networking: dict) -> None:
    """Refuse the networks that this engine does not make yet, naming what works."""
    mode = host["NetworkMode"]
    if mode in ("none", "host") or mode.startswith("container:"):
        others = [name for name in networking["EndpointsConfig"] if name != mode]
        if others:
            raise InvalidParameter("container sharing network namespace with another container or"
                                   " host cannot be connected to any other network")
        if config["MacAddress"]:
            raise InvalidParameter("conflicting options: mac-address and the network mode")
        _endpoint_verify(networking["EndpointsConfig"].get(mode) or {})
        return
    name = "bridge" if mode in ("", "default") else mode
    raise InvalidParameter(f'network "{name}" is not supported by this engine yet: use --network'
                           " none or --network host")


def _endpoint_verify(endpoint: dict) -> None:
    """What only a network of the user's own can have (moby validateEndpointSettings)."""
    addresses = endpoint.get("IPAMConfig") or {}
    if addresses.get("IPv4Address") or addresses.get("IPv6Address"):
        raise InvalidParameter("invalid endpoint settings: user specified IP address is supported"
                               " on user defined networks only")
    if endpoint.get("Aliases"):
        raise InvalidParameter("invalid endpoint settings: network-scoped alias is supported only"
                               " for containers in user defined networks")


def security_parse(options: list | None) -> dict:
    """--security-opt as {"no_new_privileges": bool, "writable_cgroups": bool, "seccomp": ...}.

    "seccomp" is "default", "unconfined" or a profile (Docker's JSON format). Raises
    InvalidParameter with Docker's text.
    """
    out = {"no_new_privileges": False, "seccomp": "default", "writable_cgroups": False}
    for option in options or ():
        key, separator, value = option.partition("=" if "=" in option else ":")
        name = key.replace("-", "_")
        if not separator:
            if name not in ("no_new_privileges", "writable_cgroups", "disable"):
                raise InvalidParameter(f'invalid --security-opt 1: "{option}"')
            out[name] = True
        elif name in ("no_new_privileges", "writable_cgroups"):
            if value.lower() not in ("1", "t", "true", "0", "f", "false"):
                raise InvalidParameter(f'invalid --security-opt 2: "{option}"')
            out[name] = value.lower() in ("1", "t", "true")
        elif key == "seccomp":
            out["seccomp"] = _seccomp_parse(value)
        elif key == "apparmor":
            if value not in ("", "unconfined"):
                raise InvalidParameter(f"AppArmor profile {value} is not supported by this engine"
                                       " yet")
        elif key != "label":
            raise InvalidParameter(f'invalid --security-opt 2: "{option}"')
    return out


def _seccomp_parse(value: str) -> Any:
    if value in ("unconfined",):
        return value
    if value in ("", "builtin", "default"):
        return "default"
    try:
        profile = json_parse(value)
    except ValueError as wrong:
        raise InvalidParameter(f"Decoding seccomp profile failed: {wrong}") from None
    if not isinstance(profile, dict):
        raise InvalidParameter("Decoding seccomp profile failed: not an object")
    return profile


def tmpfs_options(target: str, text: str) -> list:
    """Mount options of --tmpfs over Docker's defaults; the later of two that clash counts."""
    if not target.startswith("/"):
        raise InvalidParameter(f"invalid mount path: '{target}' mount path must be absolute")
    if not target.strip("/"):
        raise InvalidParameter("invalid specification: destination can't be '/'")
    clash = {word: pair for pair in TMPFS_PAIRS for word in pair}
    out: dict = {}
    for option in ["noexec", "nosuid", "nodev", *filter(None, text.split(","))]:
        key = option.partition("=")[0]
        if option in clash:
            for word in clash[option]:
                out.pop(word, None)
        elif option in _PROPAGATION:
            pass
        elif not (key in TMPFS_DATA and key != option):
            raise InvalidParameter(f'invalid tmpfs option ["{option}"]')
        out.pop(key, None)
        out[key] = option
    return list(out.values())


# ---- the merge of image and container ----

def config_merge(config: dict, image: dict | None) -> None:
    """Fill what the user left open from the image's config (moby daemon/commit.go merge).

    Changes `config`. Raises InvalidParameter when no command is left.
    """
    image = image or {}
    config["User"] = config["User"] or image.get("User") or ""
    if image.get("ExposedPorts"):
        config["ExposedPorts"] = {**image["ExposedPorts"], **(config["ExposedPorts"] or {})}
    _env_merge(config, image.get("Env"))
    config["Labels"] = {**(image.get("Labels") or {}), **(config["Labels"] or {})}
    if not config["Entrypoint"]:
        if not config["Cmd"]:
            config["Cmd"] = image.get("Cmd")
        if config["Entrypoint"] is None:
            config["Entrypoint"] = image.get("Entrypoint")
    if image.get("Healthcheck"):
        mine = config["Healthcheck"] or fields_check({}, HEALTH_CONFIG, "")
        theirs = fields_check(image["Healthcheck"], HEALTH_CONFIG, "Image.Healthcheck")
        config["Healthcheck"] = {name: mine[name] or theirs[name] for name in HEALTH_CONFIG}
    config["WorkingDir"] = config["WorkingDir"] or image.get("WorkingDir") or ""
    config["Volumes"] = {**(config["Volumes"] or {}), **(image.get("Volumes") or {})} or None
    config["StopSignal"] = config["StopSignal"] or image.get("StopSignal") or ""
    if config["Entrypoint"] == [""]:
        config["Entrypoint"] = None
    if not config["Entrypoint"] and not config["Cmd"]:
        raise InvalidParameter("no command specified")


def _env_merge(config: dict, inherited: list | None) -> None:
    if not config["Env"]:
        config["Env"] = inherited
        return
    mine = {entry.partition("=")[0] for entry in config["Env"]}
    config["Env"] = config["Env"] + [entry for entry in inherited or ()
                                     if entry.partition("=")[0] not in mine]


def command_words(config: dict) -> list:
    """The whole command line: entry point, then command."""
    return [*(config["Entrypoint"] or ()), *(config["Cmd"] or ())]


# ---- logging options ----

def log_verify(log: dict) -> None:
    """Check --log-driver and --log-opt; InvalidParameter with Docker's text."""
    kind, options = log["Type"] or "json-file", log["Config"] or {}
    if kind == "none":
        return
    if kind != "json-file":
        raise InvalidParameter(f"logger: no log driver named '{kind}' is registered")
    for name in options:
        if name not in LOG_OPTIONS:
            raise InvalidParameter(f"unknown log opt '{name}' for json-file log driver")
    try:
        log_limits(options)
    except ValueError as wrong:
        raise InvalidParameter(f"failed to initialize logging driver: {wrong}") from None


LOG_OPTIONS = frozenset(("compress", "env", "env-regex", "labels", "labels-regex", "max-file",
                         "max-size", "tag"))
LOG_SIZE, LOG_FILES = 10_000_000, 3     # a log can never fill the disk unless asked to
_DECIMAL = {"": 1, "b": 1, "k": 10 ** 3, "m": 10 ** 6, "g": 10 ** 9, "t": 10 ** 12, "p": 10 ** 15}


def log_limits(options: dict) -> tuple:
    """(bytes per file, number of files) of json-file options; ValueError with Docker's words."""
    size, files = LOG_SIZE, LOG_FILES
    if options.get("max-size") == "-1":
        size, files = 1 << 62, 1
    elif "max-size" in options:
        text = options["max-size"].strip().lower()
        number = text.rstrip("bkmgtp i")
        unit = text[len(number):].strip()
        try:
            size = int(float(number) * _DECIMAL[unit[:1]])
        except (ValueError, KeyError):
            raise ValueError(f"invalid size: '{options['max-size']}'") from None
        if size <= 0:
            raise ValueError("max-size must be a positive number")
        files = 1
    if "max-file" in options:
        try:
            files = int(options["max-file"])
        except ValueError:
            raise ValueError(f'strconv.Atoi: parsing "{options["max-file"]}": invalid syntax') \
                from None
        if files < 1:
            raise ValueError("max-file cannot be less than 1")
    if options.get("compress", "false").lower() not in ("0", "f", "false"):
        raise ValueError("compress is not supported by this engine yet")
    return size, files


# =============================================================================
# spec -- Docker Config + HostConfig -> OCI config.json and the monitor's start plan; pure
# =============================================================================
# Runs in: api, cli.   Refs: OCI runtime-spec config.md and config-linux.md, moby oci/defaults.go
#
# A container (its row: checked Config and HostConfig) becomes an OCI configuration, which its init
# reads, and a start plan, which its monitor reads. The functions of SPEC_STEPS each fill one part.
#
# Where the configuration is not plain OCI, as both ends are ours:
#   process.user.username is the text of --user, process.user.groups the list of --group-add: only
#     the init can read the image's own passwd and group files;
#   process.init asks for our own init as process 1 (--init);
#   linux.seccomp is "default" (the launcher keeps that one compiled), absent for unconfined, or a
#     profile in Docker's format;
#   a mount with "root" has a source relative to that directory, to be opened inside it
#     (openat2(2), RESOLVE_IN_ROOT), as another container may have put a link there.

PATH_DEFAULT = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
STOP_TIMEOUT = 10                       # seconds; moby defaultStopTimeout
#: (destination, type, source, options) of what every container sees, in the order of mounting.
MOUNTS = (
    ("/proc",          "proc",   "proc",   ("nosuid", "noexec", "nodev")),
    ("/dev",           "tmpfs",  "tmpfs",  ("nosuid", "strictatime", "mode=755", "size=65536k")),
    ("/dev/pts",       "devpts", "devpts", ("nosuid", "noexec", "newinstance", "ptmxmode=0666",
                                            "mode=0620", "gid=5")),
    ("/sys",           "sysfs",  "sysfs",  ("nosuid", "noexec", "nodev", "ro")),
    ("/sys/fs/cgroup", "cgroup", "cgroup", ("ro", "nosuid", "noexec", "nodev")),
    ("/dev/mqueue",    "mqueue", "mqueue", ("nosuid", "noexec", "nodev")),
)
#: The device cgroup: everything shut but mknod, then null, zero, full, random, urandom, tty,
#: console, ptmx and the container's own pts. -1 is every number.
DEVICE_RULES = (
    (False, "a", -1, -1, "rwm"), (True, "c", -1, -1, "m"), (True, "b", -1, -1, "m"),
    (True, "c", 1, 3, "rwm"), (True, "c", 1, 5, "rwm"), (True, "c", 1, 7, "rwm"),
    (True, "c", 1, 8, "rwm"), (True, "c", 1, 9, "rwm"), (True, "c", 5, 0, "rwm"),
    (True, "c", 5, 1, "rwm"), (True, "c", 5, 2, "rwm"), (True, "c", 136, -1, "rwm"),
)
#: HostConfig field -> place in linux.resources, for those that travel as they are.
SPEC_FIELDS = (
    ("Memory",             "memory",  "limit"),
    ("MemoryReservation",  "memory",  "reservation"),
    ("MemorySwap",         "memory",  "swap"),
    ("MemorySwappiness",   "memory",  "swappiness"),
    ("OomKillDisable",     "memory",  "disableOOMKiller"),
    ("CpuShares",          "cpu",     "shares"),
    ("CpuPeriod",          "cpu",     "period"),
    ("CpuQuota",           "cpu",     "quota"),
    ("CpuRealtimePeriod",  "cpu",     "realtimePeriod"),
    ("CpuRealtimeRuntime", "cpu",     "realtimeRuntime"),
    ("CpusetCpus",         "cpu",     "cpus"),
    ("CpusetMems",         "cpu",     "mems"),
    ("PidsLimit",          "pids",    "limit"),
    ("BlkioWeight",        "blockIO", "weight"),
)
THROTTLES = (
    ("BlkioDeviceReadBps",   "throttleReadBpsDevice"),
    ("BlkioDeviceWriteBps",  "throttleWriteBpsDevice"),
    ("BlkioDeviceReadIOps",  "throttleReadIOPSDevice"),
    ("BlkioDeviceWriteIOps", "throttleWriteIOPSDevice"),
)


def environment_build(config: dict, hostname: str) -> list:
    """The process's environment: defaults, then the merged Env; a name without "=" removes one."""
    base = ["PATH=" + PATH_DEFAULT, "HOSTNAME=" + hostname]
    if config["Tty"]:
        base.append("TERM=xterm")
    return env_merge(base, config["Env"] or ())


def process_build(c: Container, args: list, *, tty: bool, user: str, env: list,
                  directory: str, privileged: bool = False) -> dict:
    """The OCI process of a container's first command, or of one executed beside it."""
    host = c.host
    names = capabilities_resolve(host["CapAdd"] or [], host["CapDrop"] or [],
                                 privileged or host["Privileged"])
    process = {
        "terminal": tty,
        "user": {"uid": 0, "gid": 0, "username": user, "groups": host["GroupAdd"] or []},
        "args": args,
        "env": env,
        "cwd": directory or "/",
        "capabilities": {"bounding": names, "effective": names, "permitted": names,
                         "inheritable": [], "ambient": []},
        "noNewPrivileges": security_parse(host["SecurityOpt"])["no_new_privileges"],
        "oomScoreAdj": host["OomScoreAdj"],
    }
    if host["ConsoleSize"] != [0, 0]:
        process["consoleSize"] = {"height": host["ConsoleSize"][0], "width": host["ConsoleSize"][1]}
    if host["Ulimits"]:
        process["rlimits"] = [
            {"type": "RLIMIT_" + limit["Name"].upper(),
             "soft": limit["Soft"], "hard": limit["Hard"]} for limit in host["Ulimits"]]
    return process


def _spec_process(spec: dict, c: Container, given: dict) -> None:
    config = c.config
    spec["process"] = process_build(
        c, [c.document["Path"], *c.document["Args"]], tty=config["Tty"], user=config["User"],
        env=environment_build(config, given["hostname"]), directory=config["WorkingDir"])
    spec["process"]["init"] = bool(c.host["Init"])


def _spec_root(spec: dict, c: Container, given: dict) -> None:
    spec["root"] = {"path": "rootfs", "readonly": c.host["ReadonlyRootfs"]}
    if c.host["UTSMode"] != "host":
        spec["hostname"] = given["hostname"]
        if c.config["Domainname"]:
            spec["domainname"] = c.config["Domainname"]


def _spec_mounts(spec: dict, c: Container, given: dict) -> None:
    host = c.host
    mounts = [{"destination": target, "type": kind, "source": source, "options": list(options)}
              for target, kind, source, options in MOUNTS]
    if security_parse(host["SecurityOpt"])["writable_cgroups"]:
        mounts[4]["options"] = [word for word in mounts[4]["options"] if word != "ro"]
    if given["shm"]:
        mounts.append(given["shm"])
    elif host["IpcMode"] == "host":
        mounts.append({"destination": "/dev/shm", "type": "bind", "source": "/dev/shm",
                       "options": ["rbind", "rprivate"]})
    elif host["IpcMode"] != "none":
        mounts.append({"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
                       "options": ["nosuid", "noexec", "nodev", "mode=1777",
                                   f"size={host['ShmSize']}"]})
    for target, source in given["files"].items():
        mounts.append({"destination": target, "type": "bind", "source": source,
                       "options": ["rbind", "rprivate"]
                       + (["ro"] if host["ReadonlyRootfs"] else [])})
    for target in sorted(host["Tmpfs"] or {}):
        mounts.append({"destination": os.path.normpath(target), "type": "tmpfs", "source": "tmpfs",
                       "options": tmpfs_options(target, host["Tmpfs"][target])})
    spec["mounts"] = mounts


def _spec_namespaces(spec: dict, c: Container, given: dict) -> None:
    host = c.host
    modes = (("mount", ""), ("network", host["NetworkMode"]), ("uts", host["UTSMode"]),
             ("pid", host["PidMode"]), ("ipc", host["IpcMode"]), ("cgroup", host["CgroupnsMode"]))
    spaces = []
    for kind, mode in modes:
        if mode == "host":
            continue
        space = {"type": kind}
        if kind in given["join"]:
            space["path"] = given["join"][kind]
        spaces.append(space)
    spec["linux"]["namespaces"] = spaces


def _spec_linux(spec: dict, c: Container, given: dict) -> None:
    host, linux = c.host, spec["linux"]
    linux["cgroupsPath"] = cgroup_name(c)
    linux["resources"] = resources_build(host)
    linux["maskedPaths"] = host["MaskedPaths"] or []
    linux["readonlyPaths"] = host["ReadonlyPaths"] or []
    linux["devices"] = []
    sysctl = {}
    if host["NetworkMode"] != "host" and "network" not in given["join"]:
        # What Docker sets since 20.10, so that ping and low ports need no capability.
        sysctl = {"net.ipv4.ip_unprivileged_port_start": "0",
                  "net.ipv4.ping_group_range": "0 2147483647"}
    linux["sysctl"] = {**sysctl, **(host["Sysctls"] or {})}
    seccomp = security_parse(host["SecurityOpt"])["seccomp"]
    if seccomp != "unconfined" and not host["Privileged"]:
        linux["seccomp"] = seccomp


SPEC_STEPS = (_spec_process, _spec_root, _spec_mounts, _spec_namespaces, _spec_linux)


def spec_build(c: Container, *, hostname: str, files: dict, join: dict,
               shm: dict | None = None) -> dict:
    """The OCI configuration of a container (see the banner for what is not plain OCI).

    `files` is {path in the container: file to bind there}, `join` {OCI namespace type: path of a
    namespace to enter}, `shm` a mount that replaces the container's own /dev/shm.
    """
    spec: dict = {"ociVersion": "1.2.0", "linux": {},
                  "annotations": {**(c.host["Annotations"] or {})}}
    given = {"hostname": hostname, "files": files, "join": join, "shm": shm}
    for step in SPEC_STEPS:
        step(spec, c, given)
    return spec


def cgroup_name(c: Container) -> str:
    """The container's cgroup, relative to every hierarchy."""
    return "engine/" + c.id


def resources_build(host: dict) -> dict:
    """OCI linux.resources of a HostConfig: {"memory": {...}, "cpu": {...}, "devices": [...]}."""
    out: dict = {}
    for field, part, name in SPEC_FIELDS:
        value = host[field]
        if value or value == 0 and field == "MemorySwappiness" and value is not False:
            out.setdefault(part, {})[name] = value
    if host["NanoCpus"]:
        out.setdefault("cpu", {}).update(period=100000, quota=host["NanoCpus"] // 10000)
    for field, name in THROTTLES:
        if host[field]:
            out.setdefault("blockIO", {})[name] = [
                {**_device_number(row["Path"]), "rate": row["Rate"]} for row in host[field]]
    if host["BlkioWeightDevice"]:
        out.setdefault("blockIO", {})["weightDevice"] = [
            {**_device_number(row["Path"]), "weight": row["Weight"]}
            for row in host["BlkioWeightDevice"]]
    out["devices"] = [
        {"allow": allow, "type": kind, "access": access,
         **({"major": major} if major >= 0 else {}), **({"minor": minor} if minor >= 0 else {})}
        for allow, kind, major, minor, access in DEVICE_RULES]
    return out


def _device_number(path: str) -> dict:
    try:
        number = os.stat(path).st_rdev
    except OSError as gone:
        raise InvalidParameter(f"no such device {path}: {gone.strerror}") from None
    return {"major": os.major(number), "minor": os.minor(number)}


def _log_attributes(c: Container) -> dict:
    """The "attrs" of each log line: labels and variables that were asked for, and the tag."""
    options = c.host["LogConfig"]["Config"]
    variables = dict(entry.split("=", 1) for entry in c.config["Env"] or () if "=" in entry)
    out = {}
    for key, source in (("labels", c.config["Labels"] or {}), ("env", variables)):
        for name in filter(None, options.get(key, "").split(",")):
            if name in source:
                out[name] = source[name]
        if options.get(key + "-regex"):
            import re
            pattern = re.compile(options[key + "-regex"])
            out.update((name, source[name]) for name in source if pattern.search(name))
    if options.get("tag"):
        out["tag"] = Template(options["tag"]).render({
            "ID": c.id[:12], "FullID": c.id, "Name": c.name, "FullName": "/" + c.name,
            "ImageID": c.image[7:19], "ImageFullID": c.image, "ImageName": c.config["Image"],
            "DaemonName": "docker", "Command": " ".join(command_words(c.config))})
    return {name: out[name] for name in sorted(out)}


def plan_build(c: Container, spec: dict, *, bundle: str, layers: list, directory: str) -> dict:
    """What a monitor needs to start the container; plain JSON.

    `bundle` is the directory with config.json, `layers` the lower directories, topmost first,
    `directory` the container's own below the data root.
    """
    config, host = c.config, c.host
    flags, join, has_cgroup = 0, [], False
    for space in spec["linux"]["namespaces"]:
        if "path" in space:
            join.append([space["type"], space["path"]])
        elif space["type"] == "cgroup":
            has_cgroup = True
        else:
            flags |= NAMESPACES[space["type"]][1]
    options = host["LogConfig"]["Config"]
    attributes = _log_attributes(c) if options else {}
    return {
        "id": c.id, "name": c.name, "image": config["Image"], "labels": config["Labels"] or {},
        "bundle": bundle, "tty": config["Tty"], "open_stdin": config["OpenStdin"],
        "stdin_once": config["StdinOnce"], "attach_stdin": config["AttachStdin"],
        "attach_stdout": config["AttachStdout"], "attach_stderr": config["AttachStderr"],
        "clone_flags": flags, "join": join, "cgroupns": has_cgroup, "cgroup": cgroup_name(c),
        "resources": spec["linux"]["resources"], "layers": layers,
        "upper": directory + "/upper", "work": directory + "/work",
        "log": {"Type": host["LogConfig"]["Type"], "Config": options,
                "path": f"{directory}/{c.id}-json.log",
                "attrs": json_text(attributes) if attributes else ""},
        "auto_remove": host["AutoRemove"], "restart": host["RestartPolicy"],
        "stop_signal": signal_number(config["StopSignal"] or "SIGTERM"),
        "stop_timeout": STOP_TIMEOUT if config["StopTimeout"] is None else config["StopTimeout"],
        "oom_score_adj": host["OomScoreAdj"],
    }


# =============================================================================
# launcher -- the warm process: hello, fork by role, idle end; roles register by @role
# =============================================================================
# Runs in: launcher, and who asks it.
# A single-threaded process that has everything imported and its heap frozen, and only forks. It is
# started by whoever needs it first, under a lock, and leaves a minute after its last child did.
#   - The starter makes the listening socket and hands it over as descriptor 3, so a request can be
#     queued before the new process has finished booting.
#   - The name of the socket is a hash over what a fork would inherit and nobody could see (build,
#     namespaces, uid, bounding set, ...): who differs gets a launcher of its own.
#   - A request is one SEQPACKET message: JSON with a role, and descriptors. The accepted
#     connection goes to the forked child, which answers on it; the launcher answers nothing and
#     waits for nobody.
#   - A fork shares the pages that it doesn't write to, and pays for the others in memory and time.
#     So the heap has no holes when it serves (heap_settle), and the build puts the code that
#     monitors run side by side (build_zipapp.py, `packed`).
#   - It holds no database. When a monitor dies without having finished, it forks the role `repair`
#     with the same request; its own death touches no container.
#   - Children of the launcher live in the cgroup leaf engine/launcher, so that the end of the ssh
#     session or service that started it does not end them.

LAUNCHER_IDLE = 60.0          # s; how long it stays when it has no child
LAUNCHER_CGROUP = "engine/launcher"
PLUGS_SIZE = 1 << 18          # bytes for each size: with another allocator there is no end
MADV_POPULATE_READ = 22
LAUNCHER_LOG_SIZE = 1 << 20   # bytes; a larger launcher.log is started anew

ROLES: dict = {}              # name -> function(request, conn, fds); filled by @role


def role(name: str) -> Callable:
    """Decorator: run this function in a process forked by the launcher.

    It gets the request (dict), the connection to answer on (socket) and the descriptors that came
    with the request (list), and the process ends when it returns.
    """
    def register(function):
        ROLES[name] = function
        return function
    return register


def build_id() -> str:
    """Which build of the engine this is: one id, one code. From the archive, else from the source.
    """
    built = getattr(sys.modules["__main__"], "BUILD_ID", "")
    if built:
        return built
    seen = os.stat(__file__)
    return f"source-{seen.st_mtime_ns:x}-{seen.st_size:x}"


def launcher_name() -> str:
    """File name of the socket of the launcher that a process like this one may use."""
    status = file_read("/proc/self/status").decode()
    parts = [build_id(), str(os.getuid()), sys.executable]
    parts += [line for line in status.split("\n")
              if line.startswith(("CapBnd:", "NoNewPrivs:", "Seccomp:"))]
    for name in ("mnt", "net", "pid", "user", "cgroup"):
        try:
            parts.append(os.readlink("/proc/self/ns/" + name))
        except FileNotFoundError:
            parts.append(name)         # this kernel has no such namespace
    # Hard limits, which a launcher could not raise again: proc_pid_limits(5), fixed columns.
    parts += [line[47:68].strip() for line in file_read("/proc/self/limits").decode().split("\n")]
    return f"launcher-{sha256('|'.join(parts).encode()).hexdigest()[:12]}.sock"


def launcher_call(store: Store, role: str, message: dict,
                  fds: list[int] | tuple = ()) -> _socket.socket:
    """Ask for a process in `role`; returns the connection (socket) that it answers on.

    `message` is JSON, at most 64 KiB; larger documents go by descriptor. Raises Unavailable when
    no launcher can be had.
    """
    text = json_text({"role": role, "data": store.data, "run": store.run, **message}).encode()
    name = launcher_name()
    for _ in range(5):
        sock = unix_connect(store.run, name) or _launcher_start(store, name)
        try:
            fds_send(sock, text, fds)
            return sock
        except (BrokenPipeError, ConnectionResetError):
            sock.close()               # it was just leaving
    raise Unavailable(f"the launcher does not answer: see {store.run_path('launcher.log')}")


def launcher_ask(store: Store, role: str, message: dict,
                 fds: list[int] | tuple = ()) -> tuple[_socket.socket, dict]:
    """Run `role`: the connection to its process and its first answer.

    Raises the EngineError that the answer carries, or Unavailable when the process died. A launcher
    that went before it took the request resets the connection: then another one is asked.
    """
    for _ in range(5):
        sock = launcher_call(store, role, message, fds)
        try:
            return sock, answer_read(sock, f"the {role} process died: see"
                                           f" {store.run_path('launcher.log')}")
        except ConnectionResetError:
            sock.close()
        except BaseException:
            sock.close()
            raise
    raise Unavailable(f"the launcher does not answer: see {store.run_path('launcher.log')}")


def launcher_request(store: Store, role: str, message: dict, fds: list[int] | tuple = ()) -> dict:
    """Run `role` and return its one answer; errors as launcher_ask."""
    sock, answer = launcher_ask(store, role, message, fds)
    sock.close()
    return answer


def answer_read(sock: _socket.socket, died: str) -> dict:
    """One JSON answer from a SEQPACKET socket; Unavailable(died) at its end, or the error in it.

    ConnectionResetError travels: nobody has read what was sent.
    """
    text = sock.recv(1 << 16)
    if not text:
        raise Unavailable(died)
    answer = json_parse(text)
    if "error" in answer:
        raise error_for(answer.get("status", 500), answer["error"], answer.get("exit"))
    return answer


def error_answer(failure: EngineError) -> dict:
    """What a process answers instead of its result; answer_read raises it again."""
    return {"error": str(failure), "status": failure.status, "exit": failure.exit}


def answer_send(sock: _socket.socket, answer: dict) -> None:
    """Send one JSON answer; who asked may be gone by now, which is no error."""
    try:
        sock.send(json_text(answer).encode())
    except (BrokenPipeError, ConnectionResetError):
        pass


def _launcher_start(store: Store, name: str) -> _socket.socket:
    store.roots_make()
    with store.lock(name + ".lock"):
        sock = unix_connect(store.run, name)
        if sock is None:
            listener = unix_listen(store.run, name)
            _launcher_spawn(store, name, listener)
            listener.close()
            sock = unix_connect(store.run, name)
    if sock is None:
        raise Unavailable(f"the launcher did not start: see {store.run_path('launcher.log')}")
    return sock


def program_path() -> str:
    """The file that this program was started from: engine.pyz, or the plain source."""
    return os.path.abspath(getattr(globals().get("__loader__"), "archive", __file__))


def _launcher_spawn(store: Store, name: str, listener: _socket.socket) -> None:
    # posix_spawn, not fork: the daemon that calls this may have threads.
    log = store.run_path("launcher.log")
    fresh = os.path.exists(log) and os.path.getsize(log) > LAUNCHER_LOG_SIZE
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | (os.O_TRUNC if fresh else 0)
    sealed = _interpreter_sealed()
    program = f"/proc/self/fd/{sealed}" if sealed >= 0 else sys.executable
    actions = [(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
               (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
               (os.POSIX_SPAWN_OPEN, 2, log, flags, 0o600),
               (os.POSIX_SPAWN_DUP2, listener.fileno(), 3)]
    # The data root tells where byte code may be that the file does not hold.
    command = [sys.executable, "-I", "-S", program_path(), "--data-root=" + store.data,
               "--role=launcher", store.run, name]
    # What valid_signals leaves out belongs to the libc: 32 and 33, with musl 34 too.
    from _signal import SIGKILL, SIGSTOP, valid_signals
    pid = os.posix_spawn(program, command, {"PATH": os.environ.get("PATH", os.defpath)},
                         file_actions=actions, setsid=True, setsigmask=(),
                         setsigdef=valid_signals() - {SIGKILL, SIGSTOP})
    if sealed >= 0:
        os.close(sealed)
    # The spawned process forks at once and the launcher proper is init's child; what is left here
    # is reaped without being waited for when the interpreter is already through.
    _spawned_reap(pid)


def _spawned_reap(pid: int) -> None:
    from _thread import start_new_thread
    start_new_thread(os.waitpid, (pid, 0))


def _interpreter_sealed() -> int:
    """A descriptor of the interpreter on a read-only detached mount; -1 where there is none.

    What is forked from it has /proc/PID/exe on a mount that nobody can write through: a container
    that opens it cannot replace the host's interpreter (CVE-2019-5736). Linux 5.12.
    """
    try:
        fd = mount_clone(os.path.realpath(sys.executable), recursive=False)
        mount_readonly(fd, recursive=False)
        return fd
    except OSError:
        return -1


def launcher_main(run: str, name: str) -> None:
    """Serve requests on descriptor 3 until there has been no child for LAUNCHER_IDLE seconds."""
    moved, _ = os.pipe()                   # the other end closes with the process below
    pid = os.fork()
    if pid:
        # The kernel lets whoever moves a process wait; this one has nothing else to do.
        for warning in cgroup_enter_leaf(LAUNCHER_CGROUP, pid):
            os.write(2, f"engine: launcher: {warning}\n".encode())
        os._exit(0)
    os.dup2(moved, 4)
    listener = _socket.socket(fileno=3)
    try:
        _launcher_detach()
        _launcher_preload()
    except ImportError as missing:
        _launcher_refuse(listener, module_missing(missing))
    os.read(4, 1)                          # its end: this process is in its cgroup, as forks will
    os.close(4)
    launcher = Launcher(run, name, listener)
    heap_settle()
    launcher.serve()
    os._exit(0)


def heap_settle() -> None:
    """Collect garbage for the last time, and fill the holes of the heap, here and in every fork.

    What a fork allocates in a hole costs it a copy of the page around, and booting leaves holes in
    hundreds of pages. With none left its objects lie side by side in pages of their own.
    tests/bench/monitor_memory.py tells what that is worth.
    """
    import gc
    gc.collect()
    gc.freeze()
    gc.disable()
    _code_populate()
    heap_settle.plugs = _pools_plug()       # type: ignore[attr-defined]
    _chunks_plug()


def _pools_plug() -> list:
    """Objects in all holes of the pools that small objects come from (obmalloc.c), size by size."""
    shift = 14 if sys.version_info >= (3, 10) else 12           # of the size of a pool
    plugs: list = [b""] * 128               # too large to lie in a pool itself
    for size in range(48, 513, 16):
        last, run, end = 0, 0, len(plugs) + PLUGS_SIZE // size
        # A pool that gives as many in a row as it can hold was empty: there are no more holes.
        while run < ((1 << shift) - 48) // size and len(plugs) < end:
            plugs.append(bytes(size - 33))  # 33: what an object of bytes adds to its content
            pool = id(plugs[-1]) >> shift
            run = run + 1 if pool == last else 1
            last = pool
        del plugs[len(plugs) - run:]
    return plugs


def _chunks_plug() -> None:
    """Take all that is free in malloc(3)'s heap, and never give it back; glibc only."""
    loaded = libc()
    try:
        sys_malloc_trim(0)                  # what is free at the end is the kernel's again
    except AttributeError:
        return
    malloc, free, sbrk = (loaded.dll[name] for name in ("malloc", "free", "sbrk"))
    for function, argument in ((malloc, "L"), (free, "p"), (sbrk, "l")):
        function.argtypes, function.restype = [loaded.kinds[argument]], loaded.kinds["p"]
    end = sbrk(0)
    # The large ones first; below 2 KiB every size has lists of its own.
    for size in (*range(1 << 16, 2048, -1024), *range(2048, 8, -16)):
        chunk = malloc(size)
        while chunk and chunk < end:
            chunk = malloc(size)
        free(chunk)                         # it is new memory: all holes are smaller


def _code_populate() -> None:
    """Map all pages of the programs and libraries, so that no fork is the only one to have them.

    They are in the page cache either way; this says once whose they are.
    """
    for line in file_read("/proc/self/maps").decode().splitlines():
        where, mode, _, _, inode = line.split()[:5]
        if mode[0] + mode[1] == "r-" and inode != "0":
            start, end = (int(number, 16) for number in where.split("-"))
            try:
                sys_madvise(start, end - start, MADV_POPULATE_READ)
            except OSError:
                return                      # Linux < 5.14


def heap_trim() -> None:
    """Give free memory of malloc(3)'s heap back to the kernel; glibc only."""
    try:
        sys_malloc_trim(0)
    except AttributeError:
        pass


def _launcher_refuse(listener: _socket.socket, failure: EngineError) -> NoReturn:
    """Tell who started us why there is no launcher to be had with this Python, and end."""
    listener.settimeout(10)
    try:
        conn = _socket.socket(fileno=listener._accept()[0])  # type: ignore[attr-defined]
        conn.recv(1 << 16)                  # else the answer is lost in a reset
        answer_send(conn, error_answer(failure))
    finally:
        os._exit(1)


def _launcher_detach() -> None:
    """Keep nothing of who started us: directory, descriptors, limits, priority, keyring, cgroup."""
    import resource
    os.chdir("/")
    os.umask(0o022)
    sys_close_range(5, 0xFFFFFFFF, 0)
    process_name("engine:launcher")
    for step in (lambda: os.setpriority(os.PRIO_PROCESS, 0, 0),
                 lambda: os.sched_setaffinity(0, range(os.cpu_count() or 1)),
                 _oom_score_lower,
                 lambda: sys_keyctl(KEYCTL_JOIN_SESSION_KEYRING, None, 0, 0, 0)):
        try:
            step()
        except OSError as refused:
            # Each is a courtesy that a host may refuse (no CAP_SYS_RESOURCE, no cgroups, no keys).
            os.write(2, f"engine: launcher: {refused}\n".encode())
    _limits_normal(resource)
    for number in (32, 33):                # posix_spawn(3) of glibc left its own signals ignored
        sys_rt_sigaction(number, bytes(32), None, 8)


def _limits_normal(resource: Any) -> None:
    """Soft limits as process 1 has them, not as the first caller's shell had; hard ones stay."""
    for name in dir(resource):
        if not name.startswith("RLIMIT_"):
            continue
        number = getattr(resource, name)
        soft, hard = resource.prlimit(1, number)[0], resource.getrlimit(number)[1]
        if hard >= 0 and not 0 <= soft <= hard:
            soft = hard
        resource.setrlimit(number, (soft, hard))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))


def _oom_score_lower() -> None:
    fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, b"-999")
    except PermissionError as refused:
        raise OSError(refused.errno, "oom_score_adj stays: CAP_SYS_RESOURCE is missing") from None
    finally:
        os.close(fd)


def _launcher_preload() -> None:
    """Import and bind whatever a forked process may need: it must find everything in its memory."""
    import _signal  # noqa: F401
    import fcntl  # noqa: F401
    import select  # noqa: F401
    import stat  # noqa: F401
    import termios  # noqa: F401
    try:
        import zlib  # noqa: F401
    except ImportError:
        pass                                # only gzip needs it, and says so then
    sqlite_module()
    syscalls_bind()
    cgroup_probe()                          # else every monitor reads mountinfo
    for prepare in PRELOADS:
        prepare()


PRELOADS: list = []           # functions that warm a section up in the launcher; filled by @preload


def preload(function: Callable) -> Callable:
    """Decorator: the launcher calls this once before it serves, so that its forks need not."""
    PRELOADS.append(function)
    return function


class Launcher:
    """The launcher's loop: accept, fork by role, reap, go when idle."""

    __slots__ = ("_run", "_name", "_listener", "_children", "_wake")

    def __init__(self, run: str, name: str, listener: _socket.socket) -> None:
        self._run = run
        self._name = name
        self._listener = listener
        self._children: dict = {}         # pid -> the request as it came

    def serve(self) -> None:
        """Run until idle; then the name is removed and what is queued is still served."""
        import _signal
        import select
        self._wake, wake_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        _signal.set_wakeup_fd(wake_in, warn_on_full_buffer=False)
        _signal.signal(_signal.SIGCHLD, lambda number, frame: None)
        self._listener.setblocking(False)
        poller = select.poll()
        poller.register(self._listener, select.POLLIN)
        poller.register(self._wake, select.POLLIN)
        while True:
            timeout = None if self._children else LAUNCHER_IDLE * 1000
            ready = poller.poll(timeout)
            if not ready and not self._children:
                break
            self._reap()
            self._accept()
        os.unlink(f"{self._run}/{self._name}")
        self._accept()

    def _reap(self) -> None:
        try:
            os.read(self._wake, 4096)
        except BlockingIOError:
            pass
        while self._children:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            text = self._children.pop(pid, None)
            if status and text:
                self._mourn(json_parse(text))

    def _mourn(self, request: dict) -> None:
        """A child died before it was done: a monitor leaves a container to put in order."""
        os.write(2, f"engine: {request['role']} {request.get('id', '')} died\n".encode())
        if request["role"] == "monitor":
            request["role"] = "repair"
            self._fork(json_text(request).encode(), None, [])

    def _accept(self) -> None:
        while True:
            try:
                fd, _ = self._listener._accept()  # type: ignore[attr-defined]
            except BlockingIOError:
                return
            conn = _socket.socket(fileno=fd)
            conn.settimeout(1.0)          # who connects sends at once; a silent one is dropped
            try:
                text, fds = fds_recv(conn, 1 << 16, 16)
            except OSError:
                text, fds = b"", []
            if text and peer_cred(conn)[1] == os.getuid():
                conn.setblocking(True)
                self._fork(text, conn, fds)
            conn.close()
            for fd in fds:
                os.close(fd)

    def _fork(self, text: bytes, conn: _socket.socket | None, fds: list) -> None:
        pid = os.fork()
        if pid:
            self._children[pid] = text
            return
        code = 1
        try:
            self._become(text, conn, fds)
            code = 0
        finally:
            os._exit(code)

    def _become(self, text: bytes, conn: _socket.socket | None, fds: list) -> None:
        import _signal
        _signal.set_wakeup_fd(-1)
        _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
        os.close(self._wake)
        self._listener.close()
        os.setsid()
        request = json_parse(text)
        name = request["role"]
        process_name("engine:" + name)
        try:
            ROLES[name](request, conn, fds)
        except EngineError as failure:
            if conn:
                answer_send(conn, error_answer(failure))
            os._exit(0)
        except ImportError as missing:
            if conn:
                answer_send(conn, error_answer(module_missing(missing)))
            os._exit(0)
        except BaseException as failure:
            import traceback
            os.write(2, traceback.format_exc().encode("utf-8", "replace"))
            if conn:
                answer_send(conn, {"error": f"{name}: {failure}", "status": 500})
            raise


# =============================================================================
# init -- inside the container: from clone to execve
# =============================================================================
# Runs in: init.
# What happens in a new process between clone(2) and execve(2), as a tuple of small steps whose
# order is the content. There are two such lists: INIT_STEPS for a container's first process, and
# EXEC_STEPS for one that joins it; they share whatever comes after the root is entered.
#   - The process is a fork of the monitor. It imports nothing and, once it can see the container's
#     files, could not: imports_freeze() empties the import machinery, so that no file of the
#     container is ever run as the host's root.
#   - It reads its documents (config.json) itself, so that the garbage of parsing dies with it.
#   - Files of the container are opened relative to the root's descriptor by
#     openat2(RESOLVE_IN_ROOT).
#   - It talks to the monitor over one SEQPACKET socket: "ready" (with the pty's master), or an
#     error; then it waits for "go". After that nobody listens, so all descriptors but 0 to 2 close.
#   - A program that was found and cannot be executed is told as Docker's runtime tells it: one
#     line on the container's stderr and exit code 255.
# Refs: runtime-spec config.md and config-linux.md, pivot_root(2), capabilities(7), credentials(7).

# fmt: off
# runtime-spec config-linux.md, "Default Devices": name, major, minor
DEVICES_DEFAULT = (
    ("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9),
    ("tty", 5, 0),
)
DEVICE_LINKS = (
    ("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"), ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"), ("ptmx", "pts/ptmx"),
)
# fmt: on
S_IFMT, S_IFCHR, S_IFDIR, S_IFIFO = 0o170000, 0o020000, 0o040000, 0o010000     # inode(7)
PASSWD_SIZE = 16 << 20          # bytes of the image's /etc/passwd and /etc/group that are read
ID_MAX = (1 << 31) - 1


class InitError(EngineError):
    """A container's process cannot be started; `plain` keeps the runtime's usual preamble away."""

    plain = False


def init_refuse(message: str, exit: int, plain: bool = False) -> InitError:
    """The error with its exit code: 126, 127 (status 400), or 125: not the command's fault."""
    refused = InitError(message, exit)
    refused.status = 400 if exit in (126, 127) else 500
    refused.plain = plain
    return refused


class Birth:
    """All that a new process needs to know, made by the monitor before the clone.

    `channel` is the socket to the monitor, `stdio` three descriptors (none with a terminal),
    `names` the OCI names of the namespaces that are new (none for a second process), `joins` pairs
    of name and descriptor of those to enter, `tasks` the files of v1 cgroups to write oneself into,
    `cgroup` the directory of the v2 one to be born in, `root` the detached root mount. A second
    process has `document`, a descriptor, instead of a bundle.
    """

    __slots__ = ("bundle", "cgroup", "channel", "document", "gid", "groups", "home", "joins",
                 "layers", "names", "process", "program", "root", "rows_columns", "slave", "spec",
                 "stdio", "tasks", "terminal", "uid", "upper", "work")
    if TYPE_CHECKING:
        def __getattr__(self, name: str) -> Any: ...
        def __setattr__(self, name: str, value: Any) -> None: ...

    def __init__(self) -> None:
        for name in self.__slots__:
            setattr(self, name, None)
        self.joins = []
        self.tasks = []
        self.root = -1


def imports_freeze() -> None:
    """From here on an import fails instead of running a file of the container."""
    sys.meta_path[:] = []
    sys.path_hooks[:] = []
    sys.path[:] = []
    sys.path_importer_cache.clear()


def birth_run(birth: Birth, steps: tuple) -> None:
    """Run the steps and the program; in a new process. Never returns."""
    try:
        for step in steps:
            step(birth)
    except BaseException as failure:
        _birth_fail(birth, step.__name__, failure)
    finally:
        os._exit(255)


def _birth_fail(birth: Birth, step: str, failure: BaseException) -> None:
    if isinstance(failure, InitError):
        message, status = str(failure), failure.status
        exit_code, plain = failure.exit, failure.plain
    else:
        text = failure.strerror if isinstance(failure, OSError) else f"{failure!r}"
        where = f" {failure.filename}" if isinstance(failure, OSError) and failure.filename else ""
        message, status = f"{step}:{where} {text}", 500
        exit_code, plain = 125, False
    answer = {"error": message, "status": status, "exit": exit_code, "plain": plain, "step": step}
    try:
        birth.channel.send(json_text(answer).encode("utf-8", "replace"))
    except OSError:
        # After "go" nobody listens any more: what went wrong is told where the program would write.
        os.write(2, f"{message}\n".encode("utf-8", "replace"))


# ---- before the root is entered ----------------------------------------------------------------

def init_alone(birth: Birth) -> None:
    """A session of our own; nobody in the container may look into us (ptrace(2), /proc/PID/fd)."""
    sys_prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    os.setsid()
    process_name("engine:init")


def init_cgroup(birth: Birth) -> None:
    """Move into the container's cgroup; its namespace's root is the cgroup at that moment."""
    for fd in birth.tasks:
        os.write(fd, b"0")


def init_cgroup_namespace(birth: Birth) -> None:
    """CLONE_NEWCGROUP comes after the move, never with the clone: cgroup_namespaces(7)."""
    if "cgroup" in birth.names:
        ns_unshare(CLONE_NEWCGROUP)


def init_join(birth: Birth) -> None:
    """Enter the namespaces that are shared with another container."""
    for name, fd in birth.joins:
        if name != "pid":                   # the monitor entered it before the clone
            ns_join(fd, name)
        os.close(fd)


def init_read(birth: Birth) -> None:
    """config.json of the bundle."""
    birth.spec = json_parse(file_read(birth.bundle + "/config.json"))
    birth.process = process_check(birth.spec["process"])


def process_check(process: dict) -> dict:
    """The OCI process again; InitError for what execve(2) and chdir(2) cannot be given."""
    for entry in process["env"]:
        if entry.startswith("="):
            raise init_refuse(f"environment variable name can't be empty: {quote(entry)}", 125)
    for what, texts in (("environment variable", process["env"]), ("argument", process["args"]),
                        ("working directory", [process["cwd"]])):
        for text in texts:
            if "\0" in text:
                raise init_refuse(f"{what} can't contain null(\\x00): {quote(text)}", 125)
    return process


def init_title(birth: Birth) -> None:
    """--init: what will stay as process 1 has the command line that Docker's has, not ours.

    Here, as only the host's root may set it.
    """
    if birth.process.get("init"):
        process_title(["/sbin/docker-init", "--", *birth.process["args"]])


def init_network(birth: Birth) -> None:
    """A new network namespace has nothing but a loopback that is down."""
    if "network" in birth.names:
        loopback_up()


def init_hostname(birth: Birth) -> None:
    """Names of a UTS namespace of our own."""
    if "uts" in birth.names:
        name = birth.spec.get("hostname", "").encode()
        if name:
            sys_sethostname(name, len(name))
        domain = birth.spec.get("domainname", "").encode()
        if domain:
            sys_setdomainname(domain, len(domain))


def init_root_attach(birth: Birth) -> None:
    """Put the root's detached mount into this mount namespace, which no longer reports to the
    host's.
    """
    mount_propagation("/", MS_SLAVE | MS_REC)
    if birth.root >= 0:
        mount_attach(birth.root, AT_FDCWD, birth.bundle)
        return
    # Linux < 6.5 with many layers: the old call, whose options must fit in a page.
    overlay_mount_legacy(birth.layers[0], birth.layers[1], birth.upper, birth.work,
                         target=birth.bundle)
    birth.root = os.open(birth.bundle, O_DIR)


def init_mounts(birth: Birth) -> None:
    """The spec's mounts in their order, each onto a target that cannot be outside the root."""
    for mount in birth.spec["mounts"]:
        try:
            _mount_put(birth.root, mount)
        except OSError as refused:
            if "optional" in mount.get("options", ()):
                continue
            text = f"error mounting \"{mount['source']}\" to rootfs at \"{mount['destination']}\""
            raise init_refuse(f"{text}: {refused.strerror}", 125) from None


def _mount_put(root: int, mount: dict) -> None:
    options = [word for word in mount.get("options", ()) if word != "optional"]
    kind = mount["type"]
    if kind == "bind":
        parsed = mount_options_parse([word for word in options if word not in ("bind", "rbind")])
        source = _source_clone(mount, "rbind" in options)
        target = path_make(root, mount["destination"], _is_dir(os.fstat(source).st_mode))
        late = not _attrs_settle(source, parsed)
        mount_attach(source, target)
        if late:
            _attrs_settle(source, parsed)
        os.close(source)
    else:
        target = path_make(root, mount["destination"])
        if kind == "cgroup":
            _cgroup_put(target, options)
        else:
            fd = mount_new(kind, [*options, "source=" + mount["source"]])
            mount_attach(fd, target)
            os.close(fd)
    os.close(target)


def _source_clone(mount: dict, recursive: bool) -> int:
    """A detached copy of a bind's source: a path of the host, or one inside another container.

    The latter ("root": its /proc/PID/root) is cloned from within that container's mount namespace,
    as open_tree(2) copies only what the caller's own has; its links cannot lead out of its root.
    """
    if "root" not in mount:
        return mount_clone(mount["source"], recursive)
    own = ns_open("self", "mount")
    other = os.open(os.path.dirname(mount["root"]) + "/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        ns_join(other, "mount")
        root = os.open("/", O_DIR)
        inside = open_in_root(root, mount["source"], os.O_PATH)
        copy = mount_clone(inside, recursive)
        for fd in (inside, root):
            os.close(fd)
        ns_join(own, "mount")
    finally:
        os.close(own)
        os.close(other)
    return copy


def _attrs_settle(fd: int, parsed: MountOptions) -> bool:
    """Flags and propagation of a bind; False where Linux < 5.12 can do it only after the attach."""
    try:
        attrs = mount_attrs_of(parsed.set)
        if attrs or parsed.clear:
            mount_attrs(fd, set=attrs, clear=mount_attrs_of(parsed.clear))
        if parsed.recursive_set or parsed.recursive_clear:
            mount_attrs(fd, set=mount_attrs_of(parsed.recursive_set),
                        clear=mount_attrs_of(parsed.recursive_clear), recursive=True)
        for flags in parsed.propagation:
            mount_attrs(fd, propagation=flags, recursive=bool(flags & MS_REC))
        return True
    except OSError as refused:
        if refused.errno != errno.ENOSYS:
            raise
        return False


def _cgroup_put(target: int, options: list) -> None:
    """/sys/fs/cgroup as the cgroup namespace shows it: the v2 tree, or a tmpfs of v1 hierarchies.
    """
    hierarchies = cgroup_probe()
    flags = [word for word in options if word in MOUNT_OPTIONS]
    if hierarchies.mode == "none":
        return
    if hierarchies.mode == "v2":
        fd = mount_new("cgroup2", flags)
        mount_attach(fd, target)
        os.close(fd)
        return
    tmpfs = mount_new("tmpfs", ["nosuid", "noexec", "nodev", "mode=755"])
    mount_attach(tmpfs, target)
    for point in hierarchies.tops():
        names = [name for name, at in hierarchies.v1.items() if at == point]
        directory = os.path.basename(point)
        _hierarchy_put(tmpfs, directory, "cgroup", flags + (
            ["none", *names] if names[0].startswith("name=") else names))
        for name in names:
            if name != directory and "=" not in name:
                os.symlink(directory, name, dir_fd=tmpfs)
    if hierarchies.v2:
        _hierarchy_put(tmpfs, os.path.basename(hierarchies.v2), "cgroup2", flags)
    if "ro" in options:
        mount_readonly(tmpfs)
    os.close(tmpfs)


def _hierarchy_put(tmpfs: int, directory: str, fstype: str, options: list) -> None:
    os.mkdir(directory, 0o755, dir_fd=tmpfs)
    fd = mount_new(fstype, options)
    mount_attach(fd, tmpfs, directory)
    os.close(fd)


def init_devices(birth: Birth) -> None:
    """Nodes and links in /dev, made by us in a tmpfs: nothing of the image is trusted."""
    dev = path_make(birth.root, "/dev")
    umask = os.umask(0)
    try:
        for name, major, minor in DEVICES_DEFAULT:
            _node_make(dev, name, 0o020666, os.makedev(major, minor), (0, 0))
        for device in birth.spec["linux"].get("devices", ()):
            kind = 0o060000 if device["type"] == "b" else 0o020000
            parent, name = os.path.split(device["path"])
            at = path_make(birth.root, parent)
            _node_make(at, name, kind | device.get("fileMode", 0o666) & 0o7777,
                       os.makedev(device["major"], device["minor"]),
                       (device.get("uid", 0), device.get("gid", 0)))
            os.close(at)
        kcore = (("core", "/proc/kcore"),) if os.path.exists("/proc/kcore") else ()
        for name, target in DEVICE_LINKS + kcore:
            try:
                os.symlink(target, name, dir_fd=dev)
            except FileExistsError:
                pass                        # /dev comes from the user (--privileged -v /dev:/dev)
    finally:
        os.umask(umask)
        os.close(dev)


def _node_make(at: int, name: str, mode: int, device: int, owner: tuple) -> None:
    try:
        os.mknod(name, mode, device, dir_fd=at)
    except FileExistsError:
        return
    if owner != (0, 0):
        os.chown(name, owner[0], owner[1], dir_fd=at, follow_symlinks=False)


def init_terminal(birth: Birth) -> None:
    """A pty of the container's own devpts: /dev/pts/0 exists for it, and /dev/console is the same.
    """
    if not birth.terminal:
        return
    pts = path_make(birth.root, "/dev/pts")
    devpts = os.open(".", O_DIR, dir_fd=pts)
    os.close(pts)
    birth.terminal, number = pty_open(devpts)
    os.close(devpts)
    birth.slave = pty_slave(birth.terminal)
    if birth.rows_columns and any(birth.rows_columns):
        winsize_set(birth.terminal, birth.rows_columns[0], birth.rows_columns[1])
    if birth.names is None:
        return                              # a second process: /dev/console is the first one's
    console = path_make(birth.root, "/dev/console", False)
    slave = open_in_root(birth.root, f"/dev/pts/{number}", os.O_PATH)
    fd = mount_clone(slave)
    mount_attach(fd, console)
    for done in (fd, slave, console):
        os.close(done)


def init_cwd_make(birth: Birth) -> None:
    """The working directory exists when the program starts, as Docker makes it."""
    cwd = birth.process["cwd"]
    try:
        made = path_make(birth.root, cwd)
        is_dir = _is_dir(os.fstat(made).st_mode)
        os.close(made)
        if not is_dir:
            raise init_refuse(f"Cannot mkdir: {cwd} is not a directory", 125, plain=True)
    except OSError as refused:
        raise init_refuse(f"mkdir {cwd}: {refused.strerror.lower()}", 125) from None


def init_sysctl(birth: Birth) -> None:
    """Namespaced kernel parameters, while /proc/sys can still be written."""
    for key, value in birth.spec["linux"].get("sysctl", {}).items():
        path = "/proc/sys/" + key.replace(".", "/")
        try:
            fd = open_in_root(birth.root, path, os.O_WRONLY)
            os.write(fd, str(value).encode())
            os.close(fd)
        except OSError as refused:
            raise init_refuse(f"open sysctl {key} file: {refused.strerror.lower()}", 125) from None


def init_root_enter(birth: Birth) -> None:
    """From here on the container's files are all that can be seen."""
    imports_freeze()
    root = birth.spec["root"]
    root_pivot(birth.root)
    if root.get("readonly"):
        mount_readonly(birth.root)
    propagation = birth.spec["linux"].get("rootfsPropagation")
    if propagation in MOUNT_PROPAGATION:
        mount_propagation("/", MOUNT_PROPAGATION[propagation])


def init_paths_hide(birth: Birth) -> None:
    """Read-only and masked paths: over what the kernel shows of the host, and over nothing else.

    The target is opened first and is the thing that is covered, whatever a link may become later;
    /dev/null must be the device it says it is (CVE-2025-31133).
    """
    linux = birth.spec["linux"]
    for path in linux.get("readonlyPaths", ()):
        target = _path_if_there(birth.root, path)
        if target < 0:
            continue
        copy = mount_clone(target, recursive=True)
        mount_attach(copy, target)
        mount_readonly(copy, recursive=True)
        os.close(copy)
        os.close(target)
    masked = linux.get("maskedPaths", ())
    if not masked:
        return
    null = open_in_root(birth.root, "/dev/null", os.O_PATH | os.O_NOFOLLOW)
    seen = os.fstat(null)
    if seen.st_mode & S_IFMT != S_IFCHR or seen.st_rdev != os.makedev(1, 3):
        raise init_refuse("/dev/null is not the null device", 125)
    for path in masked:
        target = _path_if_there(birth.root, path)
        if target < 0:
            continue
        if _is_dir(os.fstat(target).st_mode):
            cover = mount_new("tmpfs", ["ro", "size=0", "mode=555"])
        else:
            cover = mount_clone(null)
        mount_attach(cover, target)
        os.close(cover)
        os.close(target)
    os.close(null)


def _path_if_there(root: int, path: str) -> int:
    try:
        return open_in_root(root, path, os.O_PATH)
    except (FileNotFoundError, NotADirectoryError):
        return -1


def _is_dir(mode: int) -> bool:
    return mode & S_IFMT == S_IFDIR


# ---- who the process is

def _table_read(path: str) -> list:
    """The lines of /etc/passwd or /etc/group as lists of fields; [] when there is no such file.

    Read by hand: pwd would go through NSS and load the container's libraries (CVE-2019-14271).
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return []
    try:
        text = b""
        while len(text) < PASSWD_SIZE:
            part = os.read(fd, 1 << 16)
            if not part:
                break
            text += part
    finally:
        os.close(fd)
    lines = text.decode("utf-8", "surrogateescape").split("\n")
    return [line.split(":") for line in lines if line and line[0] != "#"]


def _id_number(text: str) -> int:
    """The id that a text of digits stands for, or -1."""
    if not text.isdigit():
        return -1
    if int(text) > ID_MAX:
        raise init_refuse("uids and gids must be in range 0-2147483647", 125, plain=True)
    return int(text)


def user_resolve(user: str, added: list, passwd: list, group: list) -> tuple:
    """(uid, gid, supplementary gids, home) of "name|uid[:group|gid]" by the image's own files.

    InitError as Docker words it: `unable to find user x: no matching entries in passwd file`.
    """
    name, _, group_name = user.partition(":")
    name = name or "0"
    uid, gid, home, groups = _id_number(name), 0, "/", []
    for row in passwd:
        if len(row) > 5 and (row[0] == name or (uid >= 0 and row[2] == name)):
            uid, gid, home = _id_number(row[2]), _id_number(row[3]), row[5] or "/"
            if not group_name:
                groups = [_id_number(line[2]) for line in group
                          if len(line) > 3 and row[0] in line[3].split(",")]
            break
    if uid < 0:
        text = f"unable to find user {name}: no matching entries in passwd file"
        raise init_refuse(text, 125, plain=True)
    if group_name:
        gid = _group_resolve(group_name, group)
    groups += [_group_resolve(str(extra), group) for extra in added]
    unique = list(dict.fromkeys([gid] + [number for number in groups if number >= 0]))
    return uid, gid, unique, home


def _group_resolve(name: str, group: list) -> int:
    for line in group:
        if len(line) > 2 and (line[0] == name or line[2] == name):
            return _id_number(line[2])
    gid = _id_number(name)
    if gid < 0:
        text = f"unable to find group {name}: no matching entries in group file"
        raise init_refuse(text, 125, plain=True)
    return gid


def init_user(birth: Birth) -> None:
    """Resolve the user with the image's files, and give HOME if the environment has none."""
    user = birth.process["user"]
    birth.uid, birth.gid, birth.groups, birth.home = user_resolve(
        user.get("username", ""), user.get("groups", []),
        _table_read("/etc/passwd"), _table_read("/etc/group"))


def init_stdio_own(birth: Birth) -> None:
    """The streams belong to the user, so that /dev/stdout can be opened again."""
    if birth.terminal:
        os.fchown(birth.slave, birth.uid, -1)
        return
    for fd in birth.stdio:
        # Our pipes only: stdin may be /dev/null, which is the host's.
        if birth.uid and os.fstat(fd).st_mode & S_IFMT == S_IFIFO:
            os.fchown(fd, birth.uid, -1)


def init_stdio(birth: Birth) -> None:
    """Descriptors 0, 1 and 2, and the controlling terminal."""
    fds = birth.stdio
    if birth.terminal:
        pty_control(birth.slave)
        fds = (birth.slave, birth.slave, birth.slave)
    for number, fd in enumerate(fds):
        os.dup2(fd, number)


def init_oom_score(birth: Birth) -> None:
    """The OOM score, by the host's /proc; lowering it may not be ours to do."""
    score = birth.process.get("oomScoreAdj")
    if score is None:
        return
    try:
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        os.write(fd, str(score).encode())
        os.close(fd)
    except OSError as refused:
        if refused.errno not in (errno.EACCES, errno.EPERM, errno.ENOENT):
            raise
        _warn(birth, f"oom_score_adj {score}: {refused.strerror}")


def init_limits(birth: Birth) -> None:
    """Resource limits; going above the hard limit may not be ours to do."""
    for warning in rlimits_apply(birth.process.get("rlimits", ())):
        _warn(birth, warning)


def _warn(birth: Birth, warning: str) -> None:
    birth.channel.send(json_text({"warning": warning}).encode())


def init_keyring(birth: Birth) -> None:
    """A session keyring of its own, so that the launcher's keys are out of reach: keyrings(7)."""
    try:
        sys_keyctl(KEYCTL_JOIN_SESSION_KEYRING, None, 0, 0, 0)
    except OSError as refused:
        if refused.errno not in (errno.ENOSYS, errno.EPERM, errno.EDQUOT):
            raise


@preload
def filter_prepare() -> None:
    """Compile the default filter once in the launcher; every init finds it in its memory."""
    seccomp_default_program(CAPABILITIES_DEFAULT)


def init_confine(birth: Birth) -> None:
    """no_new_privs, seccomp, ids, capabilities: in the one order that the kernel allows.

    A filter needs CAP_SYS_ADMIN or no_new_privs (seccomp(2)), so without the latter it comes before
    the ids change, else as late as possible. Only root keeps effective capabilities, as execve(2)
    would have it.
    """
    process = birth.process
    caps = process["capabilities"]
    quiet = process.get("noNewPrivileges")
    seccomp = birth.spec["linux"].get("seccomp")
    if quiet:
        no_new_privs()
    caps_bound(caps["bounding"])
    if seccomp is not None and not quiet:
        seccomp_install(seccomp_program(seccomp, caps["bounding"]))
    caps_keep(True)
    sys_setgroups(len(birth.groups), struct.pack(f"={len(birth.groups)}I", *birth.groups))
    os.setresgid(birth.gid, birth.gid, birth.gid)
    os.setresuid(birth.uid, birth.uid, birth.uid)
    caps_keep(False)
    mine = caps if birth.uid == 0 else {"effective": (), "permitted": ()}
    caps_set(effective=mine["effective"], permitted=mine["permitted"],
             inheritable=caps.get("inheritable", ()), ambient=caps.get("ambient", ()))
    if seccomp is not None and quiet:
        seccomp_install(seccomp_program(seccomp, caps["bounding"]))


def init_cwd(birth: Birth) -> None:
    """Enter the working directory as the user; it must be inside (CVE-2024-21626)."""
    cwd = birth.process["cwd"]
    try:
        os.chdir(cwd)
        os.getcwd()
    except OSError as refused:
        text = f"chdir to cwd (\"{cwd}\") set in config.json failed: {refused.strerror.lower()}"
        raise init_refuse(text, 126) from None


def init_program(birth: Birth) -> None:
    """Find the program as the user would: 127 if it does not exist, 126 if it may not be run."""
    name = birth.process["args"][0]
    env = dict(word.partition("=")[::2] for word in birth.process["env"] if "=" in word)
    env.setdefault("HOME", birth.home)
    birth.process["env"] = env
    if "/" in name:
        found = _program_check(name)
        if found:
            raise init_refuse(f'exec: "{name}": {found[0]}', found[1])
        birth.program = name
        return
    seen = None
    for directory in env.get("PATH", PATH_DEFAULT).split(":"):
        path = f"{directory or '.'}/{name}"
        refused = _program_check(path)
        if refused is None:
            birth.program = path
            return
        if refused[1] == 126 and seen is None:
            seen = refused
    if seen and name:
        raise init_refuse(f'exec: "{name}": {seen[0]}', 126)
    raise init_refuse(f'exec: "{name}": executable file not found in $PATH', 127)


def _program_check(path: str) -> tuple | None:
    """None when the path can be executed, else (why not, exit code)."""
    try:
        mode = os.stat(path).st_mode
    except OSError as refused:
        code = 126 if refused.errno == errno.EACCES else 127
        return f"stat {path}: {refused.strerror.lower()}", code
    if _is_dir(mode):
        return "is a directory", 126
    if not os.access(path, os.X_OK, effective_ids=True):
        return "permission denied", 126
    return None


def init_ready(birth: Birth) -> None:
    """Tell the monitor, hand it the terminal, and wait for its word."""
    fds = [birth.terminal] if birth.terminal else []
    fds_send(birth.channel, b'{"ready":true}', fds)
    if birth.channel.recv(16) != b"go":
        os._exit(255)


def init_exec(birth: Birth) -> None:
    """Become the program. A dead monitor means a dead container (PR_SET_PDEATHSIG)."""
    signal = sys.modules["_signal"]
    for number in (signal.SIGPIPE, signal.SIGXFSZ):       # the interpreter ignores them
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.umask(0o022)
    sys_close_range(3, 0xFFFFFFFF, 0)       # CLOSE_RANGE_CLOEXEC: only since Linux 5.11
    sys_prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    process = birth.process
    if process.get("init"):
        _reaper_run(birth)
    _program_become(birth)


def _program_become(birth: Birth) -> None:
    process = birth.process
    try:
        os.execve(birth.program, process["args"], process["env"])
    except OSError as refused:
        text = f"exec {birth.program}: {refused.strerror.lower()}\n"
        os.write(2, text.encode("utf-8", "replace"))
        os._exit(255)


def _reaper_run(birth: Birth) -> None:
    """--init: stay as process 1, which forwards signals to the program and reaps what is orphaned.

    Returns in the program's process only.
    """
    signal = sys.modules["_signal"]
    # What valid_signals leaves out belongs to the libc: 32 and 33, with musl 34 too.
    handled = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV,
                                        signal.SIGBUS, signal.SIGFPE, signal.SIGILL}
    signal.pthread_sigmask(signal.SIG_BLOCK, handled)
    pid = ns_fork()
    if pid == 0:
        if birth.terminal:
            os.setpgid(0, 0)
            os.tcsetpgrp(0, os.getpid())
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        return
    sys_close_range(0, 0xFFFFFFFF, 0)
    process_name("docker-init")
    while True:
        number = signal.sigwait(handled)
        if number != signal.SIGCHLD:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass
            continue
        while True:
            try:
                done, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                os._exit(255)
            if done == 0:
                break
            if done == pid:
                os._exit(status_code(status))


def status_code(status: int) -> int:
    """A wait status as Docker's exit code: the code, or 128 + the signal."""
    if os.WIFSIGNALED(status):
        return 128 + os.WTERMSIG(status)
    return os.WEXITSTATUS(status)


INIT_STEPS = (
    init_alone,             # before anybody can see us
    init_cgroup,            # limits hold for everything that follows
    init_cgroup_namespace,  # its root is the cgroup just entered
    init_join,
    init_read,
    init_title,
    init_oom_score,         # while /proc is the host's
    init_network,
    init_hostname,
    init_root_attach,
    init_mounts,
    init_devices,           # after /dev is mounted
    init_terminal,          # after /dev/pts is
    init_cwd_make,          # before the root may become read-only
    init_sysctl,            # before /proc/sys becomes so
    init_root_enter,
    init_paths_hide,        # our own /proc and /dev are there
    init_user,              # by the image's passwd
    init_stdio_own,
    init_stdio,
    init_limits,
    init_keyring,
    init_confine,           # last of what needs privileges
    init_cwd,               # as the user
    init_program,           # as the user
    init_ready,
    init_exec,
)


# =============================================================================
# entering -- a second process beside the first: from the host into a container
# =============================================================================
# Runs in: init (a process executed in a running container).
# Refs: setns(2), pid_namespaces(7), ptrace(2), CVE-2016-9962, CVE-2024-21626
#
# A container's processes may look into whatever they see in their pid namespace; those with
# CAP_SYS_PTRACE may even write into it. So a process that comes from the host enters all else
# first, closes the host's descriptors, takes the container's user, capabilities and filter, and
# only then gives birth, into the pid namespace, to the one that becomes the program. The monitor is
# that one's parent (CLONE_PARENT). EXEC_STEPS has the order; most steps are those of section init.

def exec_read(birth: Birth) -> None:
    """The document of an exec, from the memfd that came with the request."""
    size = os.fstat(birth.document).st_size
    birth.spec = json_parse(os.pread(birth.document, size, 0))
    birth.process = process_check(birth.spec["process"])


def exec_join(birth: Birth) -> None:
    """Enter the container. Joining its mount namespace also moves root and cwd to its root.

    Its pid namespace takes effect for our child only: until exec_split nobody in the container sees
    this process, which has been the host's.
    """
    imports_freeze()
    for name, fd in birth.joins:
        ns_join(fd, name)
    birth.root = os.open("/", O_DIR)


def exec_descriptors(birth: Birth) -> None:
    """Close what belongs to the host: the monitor's database, log, sockets (CVE-2016-9962)."""
    kept = {0, 1, birth.root, birth.channel.fileno(), *(birth.stdio or ())}
    kept.update(fd for fd in (birth.terminal, birth.slave) if fd and fd is not True)
    os.dup2(1, 2)                           # /dev/null; it was the launcher's log
    below = 2
    for fd in sorted(kept - {0, 1}):
        if fd > below + 1:
            sys_close_range(below + 1, fd - 1, 0)
        below = fd
    sys_close_range(below + 1, 0xFFFFFFFF, 0)


def exec_split(birth: Birth) -> None:
    """Be born into the container's pid namespace, with the container's rights and nothing more.

    A container with CAP_SYS_PTRACE may look into every process that it sees, so this one has by now
    neither the host's root nor descriptors nor capabilities. The monitor is its parent.
    """
    pid = ns_clone(CLONE_PARENT)
    if pid:
        birth.channel.send(b'{"pid":%d}' % pid)
        os._exit(0)
    os.setsid()


EXEC_STEPS = (
    init_alone,
    init_cgroup,
    exec_read,
    init_oom_score,         # while /proc is the host's
    exec_join,
    init_terminal,
    exec_descriptors,       # nothing of the host goes on from here
    init_user,
    init_stdio_own,
    init_limits,
    init_keyring,
    init_confine,           # last of what needs privileges
    exec_split,             # only now the container can see us
    init_stdio,
    init_cwd,
    init_program,
    init_ready,
    init_exec,
)


# =============================================================================
# runtime -- from a start plan to a waiting init, and a second process beside it
# =============================================================================
# Runs in: monitor.
# The half of a container's birth that stays outside. The monitor calls it; what runs inside is
# section init. A new process is born in four moves:
#   1. everything it will need is made and opened (cgroup, root mount, pipes, namespaces to join);
#   2. one clone(2) with all namespace flags; while the child mounts, the parent has nothing to do;
#   3. "ready" comes back with the terminal: its namespaces are pinned by descriptors, since a
#      container's
#      mounts and network are then torn down when we close them, not while somebody waits for its
#      exit;
#   4. "go", and the program runs. A pid namespace is entered by the parent for the length of the
#      clone: setns(2) changes it for children only, so one process less is needed than by entering
#      it in the child.

READY_PATIENCE = 20.0           # s
PINNED = ("mount", "network", "pid", "ipc", "uts", "cgroup")     # namespaces of a running container
NO_OVERLAY = "this kernel has no overlay file system (overlayfs), which containers need"


class Born:
    """A process that runs: its pid, our ends of its stdio (-1: none), its namespaces by OCI name.
    """

    __slots__ = ("pid", "pins", "stderr", "stdin", "stdout", "terminal", "warnings")

    def __init__(self) -> None:
        self.pid = self.stdin = self.stdout = self.stderr = self.terminal = -1
        self.pins: dict = {}
        self.warnings: list = []


def runtime_start(plan: dict) -> Born:
    """Start a container's first process from its plan; raises EngineError with Docker's text.

    On failure nothing is left but the cgroup, which the caller removes in either case.
    """
    birth = Birth()
    birth.bundle = plan["bundle"]
    birth.terminal = plan["tty"]
    flags = plan["clone_flags"]
    birth.names = [name for name, (_, flag) in NAMESPACES.items() if flags & flag]
    if plan["cgroupns"]:
        birth.names.append("cgroup")
    held: list = []
    try:
        cgroup = cgroup_paths(plan["cgroup"])
        warnings = cgroup.create() + cgroup.limit(plan["resources"])
        birth.tasks = cgroup.tasks_fds()
        birth.cgroup = cgroup.v2_fd()
        held += birth.tasks + ([] if birth.cgroup is None else [birth.cgroup])
        for name, path in plan["join"]:
            birth.joins.append((name, os.open(path, os.O_RDONLY | os.O_CLOEXEC)))
            held.append(birth.joins[-1][1])
        _root_prepare(birth, plan)
        if birth.root >= 0:
            held.append(birth.root)
        born = _bear(birth, flags, INIT_STEPS, plan["open_stdin"])
        born.warnings[:0] = warnings
        return born
    except InitError as refused:
        if refused.plain:
            raise
        text = ("failed to create task for container: failed to create shim task: OCI runtime"
                " create failed: runc create failed: unable to start container process: error"
                f" during container init: {refused}: unknown")
        if refused.exit == 126 and "permission denied" not in text:
            text += ": permission denied"           # docker's CLI takes the exit code from this
        raise error_for(refused.status, text, refused.exit) from None
    except OSError as refused:
        where = f"{refused.filename}: " if refused.filename else ""
        raise EngineError(f"failed to create task for container: {where}{refused.strerror}",
                          125) from None
    finally:
        for fd in held:
            os.close(fd)


def runtime_exec(document: int, pins: dict, cgroup: Cgroup, *, tty: bool, open_stdin: bool,
                 size: list | None = None) -> Born:
    """Start a second process beside a container's first, from a document {"process", "linux"}.

    `document` is a descriptor of its JSON, `pins` the namespaces' descriptors of the first process,
    `cgroup` its cgroup. Raises EngineError with Docker's text.
    """
    birth = Birth()
    birth.document = document
    birth.terminal = tty
    birth.rows_columns = size
    birth.joins = list(pins.items())
    held: list = []
    try:
        birth.tasks = cgroup.tasks_fds()
        held += birth.tasks
        birth.cgroup = cgroup.v2_fd()
        held += [] if birth.cgroup is None else [birth.cgroup]
        return _bear(birth, 0, EXEC_STEPS, open_stdin)
    except InitError as refused:
        if refused.plain:
            raise
        text = ("OCI runtime exec failed: exec failed: unable to start container process:"
                f" {refused}: unknown")
        raise error_for(refused.status, text, refused.exit) from None
    except OSError as refused:
        # ENOMEM of the clone, ENODEV of the cgroup: the first process is just ending.
        text = f"OCI runtime exec failed: exec failed: {refused.strerror}"
        raise EngineError(text, 126) from None
    finally:
        for fd in held:
            os.close(fd)


def _root_prepare(birth: Birth, plan: dict) -> None:
    """The root as a detached overlay; where this kernel cannot, what the init needs to mount it.

    Unsupported where there is no overlayfs at all.
    """
    try:
        birth.root = overlay_mount(plan["layers"], plan["upper"], plan["work"])
    except NeedsLegacyMount:
        directory = os.path.commonpath(plan["layers"])
        names = [os.path.relpath(layer, directory) for layer in plan["layers"]]
        birth.layers = directory, names
        birth.upper, birth.work = plan["upper"], plan["work"]
    except OSError as refused:
        if refused.errno != errno.ENODEV:
            raise
        raise Unsupported(NO_OVERLAY, 125) from None


def _bear(birth: Birth, flags: int, steps: tuple, open_stdin: bool) -> Born:
    born = Born()
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    birth.channel = theirs
    _stdio_open(birth, born, open_stdin)
    try:
        born.pid = _clone_into(birth, flags)
        if born.pid == 0:
            ours.close()
            for fd in (born.stdin, born.stdout, born.stderr):
                if fd >= 0:
                    os.close(fd)
            birth_run(birth, steps)
    except BaseException:
        _born_drop(born)
        ours.close()
        raise
    finally:
        theirs.close()
        for fd in set(birth.stdio or ()):
            os.close(fd)
    try:
        _ready_wait(ours, born, birth.names is None)
        if flags or birth.names:
            for name in PINNED:
                born.pins[name] = ns_open(born.pid, name)
        ours.send(b"go")
    except BaseException:
        _born_drop(born)
        os.waitpid(born.pid, 0)           # it ends by itself: it was refused, or the socket is gone
        raise
    finally:
        ours.close()
    return born


def _clone_into(birth: Birth, flags: int) -> int:
    pid_ns = [fd for name, fd in birth.joins if name == "pid"]
    if not pid_ns or birth.names is None:   # an exec enters it at its own time: exec_split
        return ns_clone(flags, birth.cgroup)
    own = ns_open("self", "pid")
    pid = -1
    try:
        ns_join(pid_ns[0], "pid")
        pid = ns_clone(flags, birth.cgroup)
        return pid
    finally:
        if pid:                             # also when it failed: later clones are our own again
            ns_join(own, "pid")
        os.close(own)


def _stdio_open(birth: Birth, born: Born, open_stdin: bool) -> None:
    """Pipes for stdin (or /dev/null), stdout and stderr; a terminal comes from the init instead."""
    if birth.terminal:
        return
    if open_stdin:
        read, born.stdin = os.pipe2(os.O_CLOEXEC)
    else:
        read = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    born.stdout, out = os.pipe2(os.O_CLOEXEC)
    born.stderr, err = os.pipe2(os.O_CLOEXEC)
    birth.stdio = (read, out, err)


def _ready_wait(channel: _socket.socket, born: Born, splits: bool) -> None:
    """Hear what the new process says until it is ready; it is killed when it says nothing.

    One that `splits` (exec_split) also tells its successor's pid, before or after that is ready.
    Whoever shares its pid namespace may stop it, and the monitor must not hang with it.
    """
    channel.settimeout(READY_PATIENCE)
    is_ready = False
    while splits or not is_ready:
        try:
            text, fds = fds_recv(channel, 1 << 16, 1)
        except _socket.timeout:
            os.kill(born.pid, 9)
            raise init_refuse("the process was stopped before it was ready", 125) from None
        if not text:
            raise init_refuse("the process ended before it was ready", 125)
        answer = json_parse(text)
        if "ready" in answer:
            if fds:
                born.terminal = fds[0]
            is_ready = True
            continue
        if "warning" in answer:
            born.warnings.append(answer["warning"])
            continue
        if "pid" in answer:                 # exec_split: the one that we made is gone
            os.waitpid(born.pid, 0)
            born.pid = answer["pid"]
            splits = False
            continue
        failure = init_refuse(answer["error"], answer["exit"], answer["plain"])
        failure.status = answer["status"]
        raise failure


def _born_drop(born: Born) -> None:
    for fd in (born.stdin, born.stdout, born.stderr, born.terminal, *born.pins.values()):
        if fd >= 0:
            os.close(fd)


# =============================================================================
# logs -- log drivers: write, rotate, follow
# =============================================================================
# Runs in: monitor (writing), api, cli (reading).   Refs: moby daemon/logger/jsonfilelog, copier.go
#
# The json-file format, byte for byte Docker's: {"log":"text\n","stream":"stdout","time":"..."}
# and a newline. A line of 16 KiB and more is written in parts of 16 KiB; a part has no newline in
# "log", and all parts of a line carry the time of the first. So does what stands at the end of
# the output without a newline. Bytes that are not UTF-8 become U+FFFD; <, > and & are escaped.
#
# Both ways work by the chunk, not by the line. Writing escapes a whole chunk (bytes.translate
# finds out whether there is anything to escape, bytes.replace does it) and puts what lies between
# two lines in the place of each newline. Reading takes it out again the same way; only lines that
# have another form (a torn one, another program's) are parsed as JSON.
#
# Rotation: x.log -> x.log.1 -> x.log.2, the oldest falls off. A file is full as soon as an entry
# reaches the limit. A reader holds its file open, reads it to its end after it has seen that
# another took its name, and then opens its successor, found by inode; so rotation loses nothing
# unless more files than are kept were filled meanwhile.

LOG_PART = 16384                        # moby daemon/logger/copier.go defaultBufSize
LOG_BLOCK = 1 << 18
LOG_RUN = 1 << 15                       # bytes of lines that are taken at once
_HEAD = b'{"log":"'
_STREAMS = (b"", b"stdout", b"stderr")
#: Bytes that stand for themselves; a newline does too until the lines are put in place.
_PLAIN = bytes(byte for byte in (10, *range(32, 128)) if byte not in b'\\"<>&')
_ESCAPES = {
    **{byte: (bytes((byte,)), b"\\u%04x" % byte) for byte in (*range(32), *b"<>&") if byte != 10},
    13: (b"\r", b"\\r"), 34: (b'"', b'\\"'),
}
_SEPARATORS = ((b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029"))
#: What the error handler surrogateescape makes of each byte that is not UTF-8.
_INVALID = dict.fromkeys(range(0xDC80, 0xDD00), "\\ufffd")


class LogWriter:
    """A container's log file as its monitor writes it: write(stream, chunk), 1 stdout, 2 stderr.

    `log` is the start plan's: {"Type", "Config", "path", "attrs"}. Type none drops everything. A
    disk that is full loses chunks, never the container. Nothing is imported after construction.
    """

    __slots__ = ("_path", "_fd", "_size", "_limit", "_files", "_middle", "_pending", "_part_time")

    def __init__(self, log: dict) -> None:
        self._path = log["path"]
        self._fd = -1
        self._pending = [b"", b"", b""]
        self._part_time = [b"", b"", b""]       # of the line whose first parts are written
        if log["Type"] == "none":
            return
        self._limit, self._files = log_limits(log["Config"])
        attrs = log.get("attrs")
        self._middle = b',"attrs":%b,"time":"' % attrs.encode() if attrs else b',"time":"'
        self._open()

    def _open(self) -> None:
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        self._size = os.fstat(self._fd).st_size

    def write(self, stream: int, chunk: bytes) -> None:
        """Log a chunk as it was read; an unfinished last line waits for its rest."""
        if self._fd < 0:
            return
        data = self._pending[stream] + bytes(chunk)
        start = at = 0
        size = len(data)
        while size - at >= LOG_PART:
            newline = data.rfind(b"\n", at, at + LOG_PART)
            if newline >= 0:
                at = newline + 1
                continue
            if at > start:
                self._lines(stream, data[start:at])
            self._part(stream, data[at:at + LOG_PART])
            start = at = at + LOG_PART
        end = max(at, data.rfind(b"\n", at) + 1)
        if end > start:
            self._lines(stream, data[start:end])
        self._pending[stream] = data[end:]

    def flush_partial(self, stream: int) -> None:
        """The stream has ended: log its last line, which has no newline."""
        rest = self._pending[stream]
        if rest:
            self._pending[stream] = b""
            self._part(stream, rest)
        self._part_time[stream] = b""

    def close(self) -> None:
        """Log what is unfinished and close the file."""
        if self._fd >= 0:
            self.flush_partial(1)
            self.flush_partial(2)
            os.close(self._fd)
            self._fd = -1

    def _lines(self, stream: int, text: bytes) -> None:
        now = self._part_time[stream]
        if now:
            end = text.index(b"\n") + 1
            self._part_time[stream] = b""
            self._put(stream, text[:end], now)
            text = text[end:]
        if text:
            self._put(stream, text, time_rfc3339(time.time_ns()).encode())

    def _part(self, stream: int, text: bytes) -> None:
        now = self._part_time[stream]
        if not now:
            now = self._part_time[stream] = time_rfc3339(time.time_ns()).encode()
        self._put(stream, text, now)

    def _put(self, stream: int, text: bytes, now: bytes) -> None:
        tail = b'","stream":"%b"%b%b"}\n' % (_STREAMS[stream], self._middle, now)
        text = _escape(text)
        if text[-1:] == b"\n":
            text = text[:-1].replace(b"\n", b"\\n" + tail + _HEAD) + b"\\n"
        self._append(_HEAD + text + tail)

    def _append(self, data: bytes) -> None:
        """Write whole lines, going over to a new file whenever one has become full."""
        try:
            while data:
                if self._size >= self._limit:
                    self._rotate()
                end = len(data)
                if self._size + end > self._limit:
                    end = data.index(b"\n", self._limit - self._size - 1) + 1
                write_all(self._fd, data[:end])
                self._size += end
                data = data[end:]
        except OSError as full:
            # No space, or a quota: the container goes on. Half a line is taken back.
            if full.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG):
                raise
            try:
                os.ftruncate(self._fd, self._size)
            except OSError:
                pass

    def _rotate(self) -> None:
        os.close(self._fd)
        if self._files == 1:
            os.unlink(self._path)       # not truncated: a reader may be at it
        for number in range(self._files - 1, 0, -1):
            older = f"{self._path}.{number}"
            newer = f"{self._path}.{number - 1}" if number > 1 else self._path
            try:
                os.rename(newer, older)
            except FileNotFoundError:
                pass
        self._open()


def _escape(text: bytes) -> bytes:
    """The text as it stands between the quotes of JSON, its newlines left as they are."""
    odd = text.translate(None, _PLAIN)
    if not odd:
        return text
    if b"\\" in odd:
        text = text.replace(b"\\", b"\\\\")
    for byte in set(odd):
        if byte in _ESCAPES:
            text = text.replace(*_ESCAPES[byte])
    if not odd.isascii():
        try:
            text.decode()
        except UnicodeDecodeError:
            text = text.decode("utf-8", "surrogateescape").translate(_INVALID).encode()
        if b"\xe2\x80" in odd:
            for separator, escape in _SEPARATORS:
                text = text.replace(separator, escape)
    return text


# ---- reading ----

#: Escapes that this writer makes, undone by replacing; any other \u by a pattern.
_UNESCAPES = tuple((escape, raw) for raw, escape in reversed(tuple(_ESCAPES.values()))
                   if escape[1:2] == b"u")
_SHORT = ((b"\\n", b"\n"), (b'\\"', b'"'), (b"\\r", b"\r"), (b"\\t", b"\t"), (b"\\/", b"/"),
          (b"\\b", b"\b"), (b"\\f", b"\f"))


def _text_plain(text: bytes) -> bytes:
    """What _escape did, undone for any number of lines at once."""
    if b"\\" not in text:
        return text
    # 0xFF never stands in UTF-8: it keeps the place of backslashes that were in the text.
    has_slash = b"\\\\" in text
    if has_slash:
        text = text.replace(b"\\\\", b"\xff")
    for escape, raw in _SHORT:
        text = text.replace(escape, raw)
        if b"\\" not in text:
            break                       # nearly always after the newlines, which come first
    for escape, raw in _UNESCAPES:
        if b"\\u" not in text:
            break
        text = text.replace(escape, raw)
    if b"\\u" in text:
        text = pattern_bytes(rb"((?:\\u[0-9a-fA-F]{4})+)").sub(_unescape_rest, text)
    return text.replace(b"\xff", b"\\") if has_slash else text


def _unescape_rest(found: Any) -> bytes:
    text = found[1].decode("ascii").encode().decode("unicode_escape")
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def pattern_bytes(text: bytes) -> Any:
    """The compiled pattern over bytes; `re` is imported at its first use."""
    cache: dict = pattern_bytes.__dict__
    if text not in cache:
        import re
        cache[text] = re.compile(text)
    return cache[text]


class _LogFormat:
    """Turns blocks of whole log lines into [(stream, bytes)] as a request wants them."""

    __slots__ = ("streams", "since", "until", "timestamps", "details", "done")

    def __init__(self, streams: tuple, since: int, until: int, timestamps: bool,
                 details: bool) -> None:
        self.streams = streams
        # Without the final Z these texts compare as the times do, whatever zeros were cut off.
        self.since = time_rfc3339(since).encode()[:-1] if since else b""
        self.until = time_rfc3339(until).encode()[:-1] if until else b""
        self.timestamps = timestamps
        self.details = details
        self.done = False

    def block(self, data: bytes) -> list:
        """The wanted part of a block; `done` is set once a line is later than `until`."""
        if self.since and _line_time(data) < self.since:
            return []
        if self.since or self.until or self.timestamps or self.details:
            return self._by_line(data)
        out: list = []
        at = 0
        while at < len(data):
            stream, text, end = _lines_alike(data, at)
            if not stream:
                out += self._by_line(data[at:])
                break
            if stream in self.streams:
                out.append((stream, text))
            at = end
        return out

    def _by_line(self, data: bytes) -> list:
        line = pattern_bytes(rb'\{"log":"(.*)","stream":"std(out|err)"(?:,"attrs":(\{.*\}))?'
                             rb',"time":"([^"\n]+)Z"\}\n')
        out: list = []
        parts: list = []
        now, at = 0, 0
        for found in line.finditer(data):
            if found.start() != at:
                out += self._flush(now, parts) + self._odd(data[at:found.start()])
            at = found.end()
            text, name, attrs, when = found.groups()
            stream = 1 if name == b"out" else 2
            if not self._wanted(stream, when):
                continue
            if stream != now:
                out += self._flush(now, parts)
                now = stream
            if self.timestamps or self.details:
                parts.append(self._prefix(when, attrs))
            parts.append(text)
        out += self._flush(now, parts)
        if at != len(data):
            out += self._odd(data[at:])
        return out

    @staticmethod
    def _flush(stream: int, parts: list) -> list:
        if not parts:
            return []
        text = _text_plain(b"".join(parts))
        parts.clear()
        return [(stream, text)]

    def _wanted(self, stream: int, when: bytes) -> bool:
        if self.until and when > self.until:
            self.done = True
        return not self.done and stream in self.streams and when >= self.since

    def _prefix(self, when: bytes, attrs: bytes | None) -> bytes:
        out = b""
        if self.timestamps:
            second, _, fraction = when.partition(b".")
            out = second + b"." + fraction.ljust(9, b"0") + b"Z "
        if self.details:
            values = json_parse(attrs) if attrs else {}
            text = ",".join(f"{name}={values[name]}" for name in sorted(values)) + " "
            out += text.replace("\\", "\\\\").encode("utf-8", "surrogateescape")
        return out

    def _odd(self, data: bytes) -> list:
        """Lines of another form; one that is not JSON was torn when a machine stopped."""
        out = []
        for line in data.splitlines():
            try:
                entry = json_parse(line)
                stream = 2 if entry["stream"] == "stderr" else 1
                text, when = entry["log"], entry["time"].rstrip("Z").encode()
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
            if self._wanted(stream, when):
                prefix = self._prefix(when, None) if self.timestamps or self.details else b""
                out.append((stream, prefix + text.encode("utf-8", "surrogateescape")))
        return out


def _line_time(data: bytes) -> bytes:
    """The latest time in a block, without its Z; one that sorts last when there is none."""
    return max(pattern_bytes(rb'"time":"([^"\n]+)Z"').findall(data), default=b"~")


def _lines_alike(data: bytes, at: int) -> tuple:
    """(stream, text, end) of lines that can be taken together; stream 0: take them one by one."""
    tail_at = data.find(b'","stream":"', at)
    next_at = data.find(b"\n", tail_at) + 1
    if tail_at < 0 or not data.startswith(_HEAD, at):
        return 0, b"", at
    tail = data[tail_at:next_at]
    stream = 2 if tail.startswith(b'","stream":"stderr"') else 1
    second = data.find(b"\n", next_at) + 1
    if second - at < LOG_RUN and data[second - len(tail):second] == tail:
        # Lines of one chunk have one time: all that is between them is the same.
        end = data.rfind(tail, at, at + LOG_RUN) + len(tail)
        text = data[at + len(_HEAD):end - len(tail)].replace(tail + _HEAD, b"")
        if b"\n" not in text:
            return stream, _text_plain(text), end
    mark = b'","stream":"' + _STREAMS[stream] + b'"'
    pieces = data[at + len(_HEAD):].split(b'"}\n' + _HEAD)
    lines = len(pieces)
    if lines != data.count(mark, at) or lines != data.count(b"\n", at):
        return 0, b"", at
    text = b"".join([piece[:piece.rfind(mark)] for piece in pieces])
    return stream, _text_plain(text), len(data)


def _log_open(path: str, known: tuple | None = None) -> list:
    """Descriptors of a log's files, oldest first; only those newer than the one with inode `known`.

    Opened from the newest to the oldest: a rotation in between shows a file twice (left out by its
    inode), it never hides one.
    """
    fds: list = []
    seen = set()
    for number in range(1 << 16):
        try:
            fd = os.open(f"{path}.{number}" if number else path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            if number:
                break
            continue                    # between two names of a rotation
        inode = _inode(fd)
        if inode == known:
            os.close(fd)
            break
        if inode in seen:
            os.close(fd)
            continue
        seen.add(inode)
        fds.append(fd)
    fds.reverse()
    return fds


def _inode(fd: int) -> tuple:
    info = os.fstat(fd)
    return info.st_dev, info.st_ino


def _log_tail(fds: list, count: int) -> int:
    """Leave out all but the last `count` lines: closes files that are not needed, seeks the first.

    Returns how many files were left out.
    """
    for index in range(len(fds) - 1, -1, -1):
        end = os.fstat(fds[index]).st_size
        at_end = True
        while end > 0:
            start = max(0, end - 65536)
            data = os.pread(fds[index], end - start, start)
            if at_end:
                # What follows the last newline is being written.
                data = data[:data.rfind(b"\n") + 1]
                at_end = not data
            found = data.count(b"\n")
            if found > count or (found == count and start == 0 and not at_end):
                cut = len(data)
                for _ in range(count + 1):
                    cut = data.rfind(b"\n", 0, cut)
                os.lseek(fds[index], start + cut + 1, os.SEEK_SET)
                for fd in fds[:index]:
                    os.close(fd)
                return index
            count -= found
            end = start
    return 0


def log_read(path: str, *, stdout: bool = True, stderr: bool = True, tail: int = -1,
             since: int = 0, until: int = 0, timestamps: bool = False, details: bool = False,
             follow: int = -1) -> Iterator[tuple]:
    """Yields (stream, bytes) of a json-file log: 1 is stdout, 2 stderr; many lines in one piece.

    `tail` is a number of lines (-1: all), counted over both streams as Docker does; `since` and
    `until` are ns since 1970. `follow` is a descriptor that becomes readable when the last byte has
    been written; until then new lines are yielded as they come. A log that is missing is empty.
    """
    streams = tuple(n for n, wanted in ((1, stdout), (2, stderr)) if wanted)
    form = _LogFormat(streams, since, until, timestamps, details)
    watch = None
    fds: list = []
    try:
        if follow >= 0:
            watch = Watch(os.path.dirname(path), IN_MODIFY | IN_CREATE | IN_MOVED_TO)
        fds = _log_open(path)
        while not fds and watch is not None and watch.wait(None, follow):
            fds = _log_open(path)
        if tail >= 0:
            del fds[:_log_tail(fds, tail)]
        rest = b""
        while fds and not form.done:
            rest = yield from _log_drain(fds[0], rest, form)
            if len(fds) > 1:
                os.close(fds.pop(0))
                rest = b""
            elif watch is None or not _log_wait(path, fds, watch, follow, until):
                break
        if watch is not None and fds and not form.done:
            fds += _log_open(path, _inode(fds[0]))
            for fd in fds:
                rest = yield from _log_drain(fd, rest, form)
    finally:
        for fd in fds:
            os.close(fd)
        if watch is not None:
            watch.close()


def _log_drain(fd: int, rest: bytes, form: _LogFormat) -> Generator[tuple, None, bytes]:
    """Yields what a file holds from where it stands; returns an unfinished last line."""
    while not form.done:
        data = os.read(fd, LOG_BLOCK)
        if not data:
            return rest
        end = data.rfind(b"\n") + 1
        if end:
            yield from form.block(rest + data[:end])
            rest = data[end:]
        else:
            rest += data
    return rest


def _log_wait(path: str, fds: list, watch: Watch, follow: int, until: int) -> bool:
    """Sleep until there may be more to read; False when the log has come to its end.

    Appends the successors of fds[0] when its name was taken by another file. As that was seen
    after the file had been read to its end, the caller reads it once more before it goes on.
    """
    try:
        info = os.stat(path)
        moved = (info.st_dev, info.st_ino) != _inode(fds[0])
    except FileNotFoundError:
        moved = False
    if moved:
        fds += _log_open(path, _inode(fds[0]))
        return True
    left = None if not until else (until - time.time_ns()) / 1e9
    if left is not None and left <= 0:
        return False
    return watch.wait(left, follow)


# =============================================================================
# compression -- gzip, zstd, xz and bzip2 as streams, told apart by their first bytes
# =============================================================================
# Runs in: api, cli, worker.   Refs: RFC 1952, RFC 8878, the xz file format
# A stream is a function read(size) -> bytes that gives at most `size` bytes, and b"" at the end.
# Every function here takes one and gives one, holds at most a MiB of plain text (plus the format's
# own window), and stops in the middle of a bomb as soon as nobody reads on. All formats may consist
# of several members; zero padding behind the last is ignored, other garbage is an error. Damage is
# one InvalidParameter, never zlib's, lzma's or the C library's own exception. Writing is not needed
# here: blobs are kept as they came.

COMPRESSIONS = (  # (name, the first bytes); told by content, never by file name
    ("gzip", b"\x1f\x8b\x08"),
    ("zstd", b"\x28\xb5\x2f\xfd"),
    ("xz", b"\xfd7zXZ\x00"),
    ("bzip2", b"BZh"),
)
COMPRESSION_SNIFF = 10  # bytes that are enough to tell
STREAM_CHUNK = 1 << 18  # plain text made at a time; larger ones fall out of the cache
_INPUT_CHUNK = 1 << 16
_ZSTD_SKIPPABLE = 0x184D2A50  # 16 magic numbers of frames without content (RFC 8878, 3.1.2)
_ZSTD_WINDOW_LOG_MAX = 27  # 128 MiB: what the zstd tool, too, accepts without being told to


class _ZstdOut:
    """A pointer, a size, a position: ZSTD_inBuffer and ZSTD_outBuffer (zstd.h), by hand."""

    __slots__ = ("buffer", "fields")

    def __init__(self, buffer: object, address: int, size: int) -> None:
        import ctypes

        self.buffer = buffer  # keeps the memory alive
        self.fields = (ctypes.c_size_t * 3)(address, size, 0)


class _ZstdLibraryDecompressor:
    """compression.zstd.ZstdDecompressor's interface over libzstd.so.1."""

    def __init__(self) -> None:
        self.library = _zstd_library()
        self.stream = self.library.ZSTD_createDStream()
        self.eof = False
        self.needs_input = True
        self.unused_data = b""
        self.pending = b""

    def __del__(self) -> None:
        self.library.ZSTD_freeDStream(self.stream)

    def decompress(self, data: bytes, max_length: int = STREAM_CHUNK) -> bytes:
        import ctypes

        data = self.pending + data
        given = ctypes.create_string_buffer(data, len(data) or 1)
        made = ctypes.create_string_buffer(max_length)
        source = _ZstdOut(given, ctypes.addressof(given), len(data))
        target = _ZstdOut(made, ctypes.addressof(made), max_length)
        while target.fields[2] < max_length:
            left = self.library.ZSTD_decompressStream(self.stream, target.fields, source.fields)
            if self.library.ZSTD_isError(left):
                raise ValueError(self.library.ZSTD_getErrorName(left).decode())
            self.eof = left == 0
            if self.eof or source.fields[2] == len(data):
                break
        rest = data[source.fields[2] :]
        self.unused_data, self.pending = (rest, b"") if self.eof else (b"", rest)
        self.needs_input = not self.eof and not rest and target.fields[2] < max_length
        return made.raw[: target.fields[2]]


def _zstd_library() -> Any:
    """libzstd.so.1 with its few functions declared; OSError where the host has none."""
    library = getattr(_zstd_library, "library", None)
    if library is None:
        import ctypes

        library = ctypes.CDLL("libzstd.so.1")
        size, pointer = ctypes.c_size_t, ctypes.c_void_p
        library.ZSTD_createDStream.restype = pointer
        library.ZSTD_freeDStream.argtypes = [pointer]
        library.ZSTD_decompressStream.argtypes = [pointer, pointer, pointer]
        library.ZSTD_decompressStream.restype = size
        library.ZSTD_isError.argtypes = [size]
        library.ZSTD_getErrorName.argtypes = [size]
        library.ZSTD_getErrorName.restype = ctypes.c_char_p
        _zstd_library.library = library  # type: ignore[attr-defined]
    return library


class _ZstdLibraryModule:
    """What zstd_module() gives when only the C library is there."""

    ZstdDecompressor = _ZstdLibraryDecompressor
    ZstdError = ValueError


def zstd_module() -> Any:
    """Something with ZstdDecompressor and ZstdError, from the first of three homes of zstd.

    compression.zstd (Python 3.14), pyzstd (vendored into engine.pyz), libzstd.so.1 by ctypes.
    Unsupported, in one sentence, where a host has none of them.
    """
    try:
        from compression import zstd

        return zstd
    except ImportError:
        pass
    try:
        import pyzstd

        return pyzstd
    except ImportError:
        pass
    try:
        _zstd_library()
    except OSError:
        raise Unsupported(
            "zstd is not available: this Python has neither compression.zstd nor pyzstd, "
            "and the host has no libzstd.so.1"
        ) from None
    return _ZstdLibraryModule


def compression_of(head: bytes) -> str:
    """ "gzip", "zstd", "xz", "bzip2", or "" for what starts like none of them."""
    for name, magic in COMPRESSIONS:
        if head.startswith(magic):
            return name
    if len(head) >= 4 and struct.unpack_from("<I", head)[0] & ~15 == _ZSTD_SKIPPABLE:
        return "zstd"
    return ""


def stream_of(chunks: Iterator[bytes]) -> Callable:
    """A stream over an iterator of byte strings."""
    rest = b""

    def read(size: int) -> bytes:
        nonlocal rest
        data = rest
        while not data:
            data = next(chunks, None)
            if data is None:
                return b""
        rest = data[size:]
        return data[:size] if rest else data

    return read


def stream_peek(read: Callable, size: int) -> tuple:
    """(the first bytes, a stream that gives them again); fewer than `size` if that is all."""
    head = b""
    while len(head) < size:
        data = read(size - len(head))
        if not data:
            break
        head += data
    start = head

    def again(size: int) -> bytes:
        nonlocal start
        if start:
            data, start = start[:size], start[size:]
            return data
        return read(size)

    return head, again


def decompressed(read: Callable) -> tuple:
    """(name of the compression or "", stream of the plain bytes) for a stream of either."""
    head, read = stream_peek(read, COMPRESSION_SNIFF)
    name = compression_of(head)
    if not name:
        return "", read
    chunks = _gunzip(read) if name == "gzip" else _unpack(name, read)
    return name, stream_of(chunks)


def _damaged(name: str, what: object) -> InvalidParameter:
    return InvalidParameter(f"damaged {name} data: {what}")


def _gunzip(read: Callable) -> Iterator[bytes]:
    """Plain text of all gzip members. zlib's object counts what it left of its input by itself."""
    import zlib

    data = read(_INPUT_CHUNK)
    while data:
        inflate = zlib.decompressobj(31)  # 15 bits of window, +16: gzip's head and checksum
        try:
            while not inflate.eof:
                if not data:
                    raise _damaged("gzip", "unexpected end of data")
                plain = inflate.decompress(data, STREAM_CHUNK)
                data = inflate.unconsumed_tail or (b"" if inflate.eof else read(_INPUT_CHUNK))
                if plain:
                    yield plain
        except zlib.error as error:
            # zlib says "Error -3 while decompressing data: invalid block type".
            what = str(error).partition("data: ")[2] or "it cannot be unpacked"
            raise _damaged("gzip", what) from None
        data = _next_member(inflate.unused_data, read)


def _unpack(name: str, read: Callable) -> Iterator[bytes]:
    """Plain text of all members of zstd, xz or bzip2: their decompressors share one interface."""
    make, damage = _decompressor(name)
    data = read(_INPUT_CHUNK)
    while data:
        inflate = make()
        try:
            while not inflate.eof:
                if inflate.needs_input and not data:
                    raise _damaged(name, "unexpected end of data")
                plain = inflate.decompress(data, max_length=STREAM_CHUNK)
                data = read(_INPUT_CHUNK) if inflate.needs_input and not inflate.eof else b""
                if plain:
                    yield plain
        except damage as error:
            raise _damaged(name, error) from None
        data = _next_member(inflate.unused_data, read)


def _decompressor(name: str) -> tuple:
    """(a function that makes a decompressor, what it raises on damage)."""
    if name == "bzip2":
        import bz2

        return bz2.BZ2Decompressor, (OSError, ValueError)
    if name == "xz":
        import lzma

        # The limit is what `xz -9` needs to read, twice over: a header may ask for 4 GiB.
        return lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=128 << 20), lzma.LZMAError
    zstd = zstd_module()
    return zstd.ZstdDecompressor, (zstd.ZstdError, ValueError)


def _next_member(data: bytes, read: Callable) -> bytes:
    """The start of the next member, without the zeros that tapes and some tools put before it."""
    while True:
        data = data.lstrip(b"\0") or read(_INPUT_CHUNK)
        if not data:
            return b""
        if data[0]:
            return data


# =============================================================================
# archives -- tar as streams: read and write, every dialect, hostile input
# =============================================================================
# Runs in: api, cli, worker.   Refs: pax(1), tar(5), GNU tar manual "Sparse Formats", Go archive/tar
# TarReader walks a stream once, forwards, with at most half a MiB of it in hand: entries() yields a
# TarEntry per file, and before the next one is asked for its content may be taken by read() or
# pieces(); what is left is skipped. Names are bytes, as a tar has no encoding, and stand as they
# came: who opens them makes them safe (section trees). Understood: v7, ustar, star, GNU (long
# names, sparse, base-256), pax (records of one file and global ones, xattrs, sparse 0.0, 0.1 and
# 1.0). tarfile is not used: it is four times slower, and in Debian 12 it has no safe filter. Every
# size that a header claims is bounded before it is believed; all damage is InvalidParameter with
# one clear line. The writer is pure: tar_header() gives the bytes before a content, tar_padding()
# those after it. It writes ustar, and pax records only for what ustar cannot say, in sorted order:
# same entries, same bytes.

TAR_BLOCK = 512
TAR_END = bytes(1024)
TAR_SPECIAL_MAX = 1 << 20  # bytes of a long name or of one file's pax records, as Go bounds them
TAR_SPARSE_MAX = 1 << 16  # pieces of one sparse file
TAR_NUMBER_MAX = (1 << 62) - 1
TAR_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12x")
TAR_FILE = b"0"
TAR_LINK = b"1"  # a hard link
TAR_SYMLINK = b"2"
TAR_CHAR = b"3"
TAR_DISK = b"4"  # a block device
TAR_DIR = b"5"
TAR_FIFO = b"6"
XATTR_RECORD = b"SCHILY.xattr."
_NO_CONTENT = (TAR_LINK, TAR_SYMLINK, TAR_CHAR, TAR_DISK, TAR_DIR, TAR_FIFO)
_ID_MAX = (1 << 32) - 1  # chown(2): that one means "as it is"
_SPARSE_RECORD = b"GNU.sparse."


class TarEntry:
    """One file of a tar. mtime is in ns; `stored` is what the archive holds of its size;
    xattrs are {b"user.x": b"value"}; sparse is None or the stored pieces, [(offset, size)]."""

    __slots__ = (
        "device",
        "gid",
        "kind",
        "link",
        "mode",
        "mtime",
        "name",
        "size",
        "sparse",
        "stored",
        "uid",
        "xattrs",
    )

    def __init__(
        self,
        name: bytes,
        kind: bytes = TAR_FILE,
        *,
        mode: int = 0o644,
        uid: int = 0,
        gid: int = 0,
        size: int = 0,
        mtime: int = 0,
        link: bytes = b"",
    ) -> None:
        self.name = name
        self.kind = kind
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.size = self.stored = size
        self.mtime = mtime
        self.link = link
        self.device = (0, 0)
        self.xattrs: dict = {}
        self.sparse: list | None = None


class TarReader:
    """The entries of the tar that a stream holds. `skip(count)`, if given, moves the source on
    without reading (a file that can seek); then a cut-off end is the caller's to notice."""

    def __init__(self, read: Callable, skip: Callable | None = None) -> None:
        self._read = read
        self._skip = skip
        self._data = b""
        self._at = 0  # what of _data is used up
        self._base = 0  # where _data begins in the stream
        self._left = 0  # of the entry's content
        self._padding = 0
        self._globals: dict = {}

    @property
    def position(self) -> int:
        """How many bytes of the stream are used up: where the content of a fresh entry begins."""
        return self._base + self._at

    def entries(self) -> Iterator[TarEntry]:
        """Every file of the archive, in order; the meta entries of the dialects are folded in."""
        records: dict = {}
        while True:
            self._leave()
            header = self._take(TAR_BLOCK)
            if len(header) < TAR_BLOCK:
                if header or records:
                    raise _tar_truncated()
                return
            if not header[0] and not any(header):
                return
            kind = header[156:157]
            if kind in (b"x", b"g", b"L", b"K", b"X"):
                self._meta(kind, header, records)
                continue
            entry = self._entry(header, {**self._globals, **records} if self._globals else records)
            records = {}
            self._left = entry.stored
            self._padding = -entry.stored & 511
            if entry.sparse == []:  # pax 1.0: the map stands before the content
                self._sparse_map(entry)
            yield entry

    def read(self, size: int = STREAM_CHUNK) -> bytes:
        """At most `size` bytes (or STREAM_CHUNK) of the entry's content; b"" at its end."""
        size = min(size, self._left, STREAM_CHUNK)
        if not size:
            return b""
        data = self._take(size)
        if len(data) < size:
            raise _tar_truncated()
        self._left -= size
        return data

    def pieces(self, entry: TarEntry) -> Iterator[tuple]:
        """(offset, bytes) of the entry's content, holes left out."""
        for offset, size in entry.sparse if entry.sparse is not None else [(0, entry.size)]:
            end = offset + size
            while offset < end:
                data = self.read(end - offset)
                yield offset, data
                offset += len(data)

    def drain(self) -> None:
        """Read what follows the end of the archive: a digest over the stream covers that, too."""
        self._data, self._at = b"", 0
        while self._read(STREAM_CHUNK):
            pass

    def _take(self, size: int) -> bytes:
        """The next `size` bytes; fewer only at the end of the stream."""
        at = self._at
        end = at + size
        data = self._data
        if end <= len(data):
            self._at = end
            return data[at:end]
        parts = [data[at:]]
        have = len(parts[0])
        while have < size:
            data = self._read(STREAM_CHUNK)
            if not data:
                break
            parts.append(data)
            have += len(data)
        self._base += at
        self._data = b"".join(parts)
        self._at = min(size, have)
        return self._data[:size]

    def _leave(self) -> None:
        """Go to the next header."""
        rest = self._left + self._padding
        self._left = self._padding = 0
        if self._skip and rest > len(self._data) - self._at:
            beyond = rest - (len(self._data) - self._at)
            self._base += len(self._data) + beyond
            self._data, self._at = b"", 0
            self._skip(beyond)
            return
        while rest:
            size = min(rest, STREAM_CHUNK)
            if len(self._take(size)) < size:
                raise _tar_truncated()
            rest -= size

    def _meta(self, kind: bytes, header: bytes, records: dict) -> None:
        """Fold a pax or GNU meta entry into the next file's `records`, or into the globals."""
        _checksum_verify(header)
        size = _tar_number(header[124:136])
        if size > TAR_SPECIAL_MAX:
            raise _tar_bad(f"a header of {size} bytes")
        data = self._take(size + (-size & 511))
        if len(data) < size:
            raise _tar_truncated()
        data = data[:size]
        if kind == b"L":
            records[b"path"] = data.split(b"\0", 1)[0]
        elif kind == b"K":
            records[b"linkpath"] = data.split(b"\0", 1)[0]
        elif kind == b"g":
            self._globals.update(_pax_records(data))
            if sum(map(len, self._globals.values())) + 64 * len(self._globals) > TAR_SPECIAL_MAX:
                raise _tar_bad("too many global records")
        else:
            records.update(_pax_records(data))

    def _entry(self, header: bytes, records: dict) -> TarEntry:
        _checksum_verify(header)
        (
            name,
            mode,
            uid,
            gid,
            size,
            mtime,
            _sum,
            kind,
            link,
            magic,
            _version,
            _user,
            _group,
            major,
            minor,
            prefix,
        ) = TAR_HEADER.unpack(header)
        name = name.split(b"\0", 1)[0]
        if prefix[0] and magic == b"ustar\0":  # GNU's magic is "ustar ": its times stand there
            if header[508:512] == b"tar\0":  # star: its times stand behind a shorter prefix
                prefix = prefix[:131]
            name = prefix.split(b"\0", 1)[0] + b"/" + name
        entry = TarEntry(
            name,
            TAR_FILE if kind in (b"\0", b"7") else kind,
            mode=_tar_number(mode) & 0o7777,
            uid=_tar_number(uid),
            gid=_tar_number(gid),
            size=_tar_number(size),
            mtime=_tar_number(mtime) * 1000000000,
            link=link.split(b"\0", 1)[0],
        )
        if kind in (TAR_CHAR, TAR_DISK):
            entry.device = (_tar_number(major), _tar_number(minor))
        elif kind == b"S":
            self._sparse_gnu(entry, header)
        if records:
            _pax_apply(entry, records)
        if entry.size < 0 or not 0 <= entry.uid < _ID_MAX or not 0 <= entry.gid < _ID_MAX:
            raise _tar_bad("a size or an owner out of range")
        if not entry.name:
            raise _tar_bad("an entry without a name")
        if entry.kind == TAR_FILE and entry.name.endswith(b"/"):
            entry.kind = TAR_DIR  # v7 had no other way to say it
        if entry.kind in _NO_CONTENT:
            entry.size = entry.stored = 0
        if entry.sparse:
            _sparse_verify(entry, entry.stored)
        return entry

    def _sparse_gnu(self, entry: TarEntry, header: bytes) -> None:
        """Old GNU sparse: four pieces in the header, 21 in each further block."""
        fields, more, entry.sparse = header[386:482], header[482], []
        while True:
            for at in range(0, len(fields) - 23, 24):
                if fields[at]:
                    entry.sparse.append(
                        (_tar_number(fields[at : at + 12]), _tar_number(fields[at + 12 : at + 24]))
                    )
            if not more:
                break
            block = self._take(TAR_BLOCK)
            if len(block) < TAR_BLOCK:
                raise _tar_truncated()
            if len(entry.sparse) > TAR_SPARSE_MAX:
                raise _tar_bad("too many pieces in a sparse file")
            fields, more = block[:504], block[504]
        entry.kind = TAR_FILE
        entry.size = _tar_number(header[483:495])
        entry.sparse = entry.sparse or [(0, 0)]

    def _sparse_map(self, entry: TarEntry) -> None:
        """Pax sparse 1.0: how many pieces, their offsets and sizes, a decimal number a line."""
        data = self.read(TAR_BLOCK)
        numbers: list = []
        while not numbers or len(numbers) <= 2 * numbers[0]:
            line, newline, rest = data.partition(b"\n")
            if newline:
                numbers.append(_pax_number(line))
                data = rest
                if numbers[0] > TAR_SPARSE_MAX:
                    raise _tar_bad("too many pieces in a sparse file")
                continue
            more = self.read(TAR_BLOCK)
            if not more or len(data) > 64:
                raise _tar_bad("the map of a sparse file")
            data += more
        entry.sparse = list(zip(numbers[1::2], numbers[2::2])) or [(0, 0)]
        _sparse_verify(entry, self._left)


def _tar_bad(what: str) -> InvalidParameter:
    return InvalidParameter("invalid tar archive: " + what)


def _tar_truncated() -> InvalidParameter:
    return InvalidParameter("invalid tar archive: unexpected EOF")


def _tar_number(field: bytes) -> int:
    """A number of a header: octal digits, or base 256 where the first bit is set (GNU, star)."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
        if field[0] & 0x40:
            value -= 1 << (8 * len(field) - 1)
    else:
        try:
            value = int(field.strip(b" \0") or b"0", 8)
        except ValueError:
            raise _tar_bad(f"a number {field.decode('latin-1')!r}") from None
    if abs(value) > TAR_NUMBER_MAX:
        raise _tar_bad("a number out of range")
    return value


def _checksum_verify(header: bytes) -> None:
    """Raise unless the header's sum is right; the field itself counts as eight spaces."""
    try:
        want = int(header[148:156].strip(b" \0") or b"0", 8)
    except ValueError:
        want = -1
    others = header[:148] + header[156:]
    total = sum(others) + 256
    # Some old tars summed signed bytes.
    if total != want and total - 256 * sum(byte > 127 for byte in others) != want:
        raise _tar_bad("a header with a wrong checksum")


def _pax_records(data: bytes) -> dict:
    """{b"path": b"a/b", ...} of "12 path=a/b\\n..."; pieces of sparse 0.0 become those of 0.1."""
    records: dict = {}
    pieces: list = []
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 12)
        length = data[at:space] if space > 0 else b""
        end = at + int(length) if length.isdigit() else at
        if space < 0 or end <= space or end > len(data) or data[end - 1] != 10:
            raise _tar_bad("a pax record")
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not key or not equals or b"\0" in key:
            raise _tar_bad("a pax record")
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            pieces.append(value)
        records[key] = value
        at = end
    if pieces:
        records[b"GNU.sparse.map"] = b",".join(pieces)
    return records


def _pax_number(text: bytes) -> int:
    if not text.isdigit() or len(text) > 19 or int(text) > TAR_NUMBER_MAX:
        raise _tar_bad(f"a pax number {text[:40].decode('latin-1')!r}")
    return int(text)


def _pax_time(text: bytes) -> int:
    """ns of "1700000000.123456789", which may be negative."""
    whole, _, fraction = text.partition(b".")
    sign = -1 if whole.startswith(b"-") else 1
    ns = _pax_number(whole.lstrip(b"-") or b"0") * 1000000000
    return sign * (ns + (_pax_number((fraction + b"000000000")[:9]) if fraction else 0))


def _pax_apply(entry: TarEntry, records: dict) -> None:
    for key, value in records.items():
        if key in (b"path", b"linkpath"):
            if b"\0" in value:
                raise _tar_bad("a name with a zero byte")
            if value:
                setattr(entry, "name" if key == b"path" else "link", value)
        elif not value:
            continue  # an empty value takes a record back (pax(1))
        elif key == b"size":
            entry.stored = _pax_number(value)
            if entry.sparse is None:
                entry.size = entry.stored
        elif key in (b"uid", b"gid"):
            setattr(entry, key.decode(), _pax_number(value))
        elif key == b"mtime":
            entry.mtime = _pax_time(value)
        elif key.startswith(XATTR_RECORD):
            entry.xattrs[key[len(XATTR_RECORD) :]] = value
    if any(key.startswith(_SPARSE_RECORD) for key in records):
        _pax_sparse(entry, records)


def _pax_sparse(entry: TarEntry, records: dict) -> None:
    """The three pax formats of GNU tar; for 1.0 the map comes later, so the list is left empty."""
    size = records.get(b"GNU.sparse.realsize") or records.get(b"GNU.sparse.size")
    if entry.kind != TAR_FILE or not size:
        return
    entry.size = _pax_number(size)
    entry.name = records.get(b"GNU.sparse.name") or entry.name
    if records.get(b"GNU.sparse.major") == b"1":
        entry.sparse = []
        return
    numbers = [
        _pax_number(text) for text in records.get(b"GNU.sparse.map", b"").split(b",") if text
    ]
    if len(numbers) % 2 or len(numbers) > 2 * TAR_SPARSE_MAX:
        raise _tar_bad("the map of a sparse file")
    entry.sparse = list(zip(numbers[::2], numbers[1::2])) or [(0, 0)]


def _sparse_verify(entry: TarEntry, stored: int) -> None:
    """Pieces ascend, do not overlap, end within the file, and add up to what is stored."""
    at = total = 0
    for offset, size in entry.sparse or ():
        if offset < at or size < 0 or offset + size > entry.size:
            raise _tar_bad("the map of a sparse file")
        at = offset + size
        total += size
    if total != stored:
        raise _tar_bad("the map of a sparse file")


def tar_header(entry: TarEntry) -> bytes:
    """The header blocks of an entry: ustar, after a pax header where ustar cannot say it."""
    name = entry.name
    if entry.kind == TAR_DIR and not name.endswith(b"/"):
        name += b"/"
    records = {XATTR_RECORD + key: value for key, value in entry.xattrs.items()}
    short, prefix = _ustar_name(name)
    if short is None:
        records[b"path"], short, prefix = name, name[:99].rstrip(b"/") or b"_", b""
    link = entry.link
    if len(link) > 100 or not link.isascii():
        records[b"linkpath"], link = link, link[:100]
    seconds, ns = divmod(entry.mtime, 1000000000)
    if ns or not 0 <= seconds < 8**11:
        records[b"mtime"] = _pax_time_text(entry.mtime)
        seconds = max(0, min(seconds, 8**11 - 1))
    numbers = {}
    for key, value, limit in (
        (b"uid", entry.uid, 8**7),
        (b"gid", entry.gid, 8**7),
        (b"size", entry.stored, 8**11),
    ):
        if value >= limit:
            records[key] = b"%d" % value
        numbers[key] = value if value < limit else 0
    block = _ustar_block(
        short,
        prefix,
        entry.kind,
        mode=entry.mode,
        uid=numbers[b"uid"],
        gid=numbers[b"gid"],
        size=numbers[b"size"],
        seconds=seconds,
        link=link,
        device=entry.device,
    )
    return _pax_header(name, records) + block if records else block


def tar_padding(size: int) -> bytes:
    """The zeros that follow a content of that size."""
    return bytes(-size & 511)


def _ustar_name(name: bytes) -> tuple:
    """(name, prefix) for ustar's two fields, or (None, None): pax must carry it."""
    if not name.isascii():
        return None, None  # pax says UTF-8; ustar says nothing
    if len(name) <= 100:
        return name, b""
    slash = name.find(b"/", max(0, len(name) - 101), 156)
    if slash <= 0 or slash == len(name) - 1:
        return None, None
    return name[slash + 1 :], name[:slash]


def _ustar_block(
    name: bytes,
    prefix: bytes,
    kind: bytes,
    *,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    seconds: int,
    link: bytes,
    device: tuple,
) -> bytes:
    block = TAR_HEADER.pack(
        name,
        b"%07o\0" % mode,
        b"%07o\0" % uid,
        b"%07o\0" % gid,
        b"%011o\0" % size,
        b"%011o\0" % seconds,
        b" " * 8,
        kind,
        link,
        b"ustar\0",
        b"00",
        b"",
        b"",
        b"%07o\0" % device[0],
        b"%07o\0" % device[1],
        prefix,
    )
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _pax_header(name: bytes, records: dict) -> bytes:
    parts = []
    for key in sorted(records):
        body = b" %s=%s\n" % (key, records[key])
        size = len(body)
        while size != len(body) + len(b"%d" % size):  # the length counts its own digits
            size = len(body) + len(b"%d" % size)
        parts.append(b"%d" % size + body)
    data = b"".join(parts)
    base = (
        name.rstrip(b"/").rpartition(b"/")[2].decode("ascii", "replace").encode("ascii", "replace")
    )
    block = _ustar_block(
        b"PaxHeaders.0/" + base[:80],
        b"",
        b"x",
        mode=0o644,
        uid=0,
        gid=0,
        size=len(data),
        seconds=0,
        link=b"",
        device=(0, 0),
    )
    return block + data + tar_padding(len(data))


def _pax_time_text(ns: int) -> bytes:
    whole, fraction = divmod(abs(ns), 1000000000)
    text = b"%d.%09d" % (whole, fraction)
    return (b"-" if ns < 0 else b"") + text.rstrip(b"0").rstrip(b".")


# =============================================================================
# trees -- a tar becomes a directory and back, by descriptors: nothing leaves the root
# =============================================================================
# Runs in: api, cli, worker.   Refs: image-spec layer.md, openat2(2), kernel overlayfs.rst, moby
# go-archive
# Unpacking never joins strings into a path. A name is made relative and cleaned; the directory that
# it is in is walked to from the root's descriptor with O_NOFOLLOW, a component at a time, and kept
# open for the next entry. A component that is a link (tars of whole systems write through lib ->
# usr/lib) is resolved by the kernel with RESOLVE_IN_ROOT. The last component is only ever created
# anew (O_EXCL): what stood there is removed first, so a link in its place is never followed. `..`
# above the root, also in a hard link's target, is refused as Docker does; links may point anywhere,
# as nobody follows them here.
# Order: contents, owner (which clears setuid and capabilities), mode, xattrs, times; the times of
# directories last of all, as every new child changes them. Later entries win.
# Whiteouts become what overlayfs reads: `.wh.x` a character device 0/0 named x, `.wh..wh..opq` the
# xattr trusted.overlay.opaque=y. Xattrs of that name space are never taken from an archive: a
# redirect in them would show other parts of the layers below.

OVERLAY_XATTR = "trusted.overlay."
WHITEOUT_PREFIX = b".wh."  # image-spec layer.md: "a/.wh.b" hides a/b of the layers below
WHITEOUT_OPAQUE = b".wh..wh..opq"
TREE_ROOM = 16 << 20  # bytes that unpacking leaves free on the file system
_DIR_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FDS_KEPT = 128  # directories held open between entries
_DEPTH_KEPT = 64  # deeper ones are walked to, but not kept
_ROOM_STEP = 16 << 20
_S_IFMT = 0o170000
_S_IFIFO = 0o010000
_S_IFCHR = 0o020000
_S_IFDIR = 0o040000
_S_IFBLK = 0o060000
_S_IFREG = 0o100000
_S_IFLNK = 0o120000
_TIME_MAX = (1 << 63) - 1
#: What an archive's author can cause; all else (no space, read-only) is the host's.
_ARCHIVE_ERRNOS = (
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.ELOOP,
    errno.EEXIST,
    errno.ENOENT,
    errno.EISDIR,
    errno.EINVAL,
    errno.EMLINK,
    errno.EFBIG,
)


def tree_unpack(root: str, read: Callable) -> int:
    """Unpack a plain tar stream into the directory `root`; the sum of its files' sizes.

    Reads the stream to its very end. InvalidParameter for a damaged or hostile archive, EngineError
    ("...: no space left on device") for what the host refuses; what was unpacked by then stays.
    """
    unpacker = _Unpacker(root)
    try:
        return unpacker.run(TarReader(read))
    finally:
        unpacker.close()


class _Unpacker:
    """The state of one unpacking: descriptors of directories by their cleaned names."""

    def __init__(self, root: str) -> None:
        self.root = os.open(root, _DIR_FLAGS)
        self.fds = {b"": self.root}
        self.stale = False  # something was replaced: a kept descriptor may be of a ghost
        self.times: dict = {}  # cleaned name of a directory: (mtime, mode)
        self.is_root = os.geteuid() == 0  # else: owners and device nodes are not ours to give
        self.special = 0o7000 | _umask()  # a mode with one of these bits needs a chmod(2)
        self.size = 0
        self.unchecked = 0  # bytes written since the room was last looked at
        self.makers = {
            TAR_FILE: self.file,
            TAR_LINK: self.hard_link,
            TAR_SYMLINK: self.symlink,
            TAR_CHAR: self.node,
            TAR_DISK: self.node,
            TAR_DIR: self.directory,
            TAR_FIFO: self.node,
        }

    def close(self) -> None:
        for fd in self.fds.values():
            os.close(fd)
        self.fds = {}

    def run(self, reader: TarReader) -> int:
        name = b""
        try:
            for entry in reader.entries():
                name = entry.name
                self.entry(reader, entry)
            reader.drain()
            for name in self.times:
                self.directory_finish(name)
        except OSError as refused:
            text = f"unpack /{name_shown(name)}: {(refused.strerror or str(refused)).lower()}"
            if refused.errno in _ARCHIVE_ERRNOS:
                raise InvalidParameter(text) from None
            raise EngineError(text) from None
        return self.size

    def entry(self, reader: TarReader, entry: TarEntry) -> None:
        maker = self.makers.get(entry.kind)
        if maker is None:
            raise InvalidParameter(f"unhandled tar header type {entry.kind[0]}")
        name = name_clean(entry.name)
        if self.stale or len(self.fds) > _FDS_KEPT:
            self.forget()
        up, _, leaf = name.rpartition(b"/")
        at = self.fds.get(up)
        if at is None:
            at = self.walk(up)
        if leaf[:4] == WHITEOUT_PREFIX:
            self.whiteout(at, leaf)
        elif leaf:
            maker(reader, entry, at, leaf, name)
        elif entry.kind == TAR_DIR:
            self.directory_attributes(entry, self.root, b"")

    def walk(self, path: bytes, make: bool = True) -> int:
        """A descriptor of the directory `path`; what is missing of it is made, owned by root."""
        if len(path) > 4095:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        parts = path.split(b"/") if path else []
        known = len(parts)
        while b"/".join(parts[:known]) not in self.fds:
            known -= 1
        fd = self.fds[b"/".join(parts[:known])]
        kept = True
        for index in range(known, len(parts)):
            done = b"/".join(parts[: index + 1])
            try:
                deeper = self.step(fd, parts[index], done, make)
            finally:
                if not kept:
                    os.close(fd)
            fd = deeper
            kept = index < _DEPTH_KEPT or index == len(parts) - 1
            if kept:
                self.fds[done] = fd
        return fd

    def step(self, at: int, leaf: bytes, path: bytes, make: bool) -> int:
        try:
            return os.open(leaf, _DIR_FLAGS, dir_fd=at)
        except FileNotFoundError:
            if not make:
                raise
            os.mkdir(leaf, 0o755, dir_fd=at)
            fd = os.open(leaf, _DIR_FLAGS, dir_fd=at)
            if self.special & 0o755:
                os.fchmod(fd, 0o755)
            return fd
        except OSError as refused:
            if (
                refused.errno not in (errno.ENOTDIR, errno.ELOOP)
                or _kind_at(at, leaf)[0] != _S_IFLNK
            ):
                raise
        # A link: the kernel follows it, and the links behind it, with our root as its "/".
        return open_in_root(
            self.root, os.fsdecode(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        )

    def forget(self) -> None:
        """Close all kept directories but the root."""
        for name, fd in self.fds.items():
            if name:
                os.close(fd)
        self.fds = {b"": self.root}
        self.stale = False

    def clear(self, at: int, leaf: bytes) -> None:
        """Remove what stands in the way of a new `leaf`."""
        # No kept descriptor leads through a plain file.
        self.stale = self.stale or _kind_at(at, leaf)[0] != _S_IFREG
        try:
            os.unlink(leaf, dir_fd=at)
        except IsADirectoryError:
            tree_remove(f"/proc/self/fd/{at}/{os.fsdecode(leaf)}")

    def directory(
        self, _reader: TarReader, entry: TarEntry, at: int, leaf: bytes, name: bytes
    ) -> None:
        hides = False
        try:
            os.mkdir(leaf, 0o700, dir_fd=at)
        except FileExistsError:
            kind, device = _kind_at(at, leaf)
            if kind != _S_IFDIR:
                # Behind a whiteout of the same layer, the new directory hides all that was below
                # it.
                hides = kind == _S_IFCHR and device == 0
                self.clear(at, leaf)
                os.mkdir(leaf, 0o700, dir_fd=at)
                if name in self.fds:
                    os.close(self.fds.pop(name))
        fd = self.fds.get(name)
        if fd is None:
            fd = self.fds[name] = os.open(leaf, _DIR_FLAGS, dir_fd=at)
        if hides:
            _opaque_set(fd)
        self.directory_attributes(entry, fd, name)

    def directory_attributes(self, entry: TarEntry, fd: int, name: bytes) -> None:
        if self.is_root:
            os.fchown(fd, entry.uid, entry.gid)
        os.fchmod(fd, entry.mode if self.is_root else entry.mode | 0o700)
        if entry.xattrs:
            self.xattrs(fd, entry)
        self.times[name] = (_time_bound(entry.mtime), entry.mode)

    def directory_finish(self, name: bytes) -> None:
        if len(self.fds) > _FDS_KEPT or self.stale:
            self.forget()
        try:
            fd = self.walk(name, make=False)
        except (FileNotFoundError, NotADirectoryError):
            return  # a later entry took its place
        mtime, mode = self.times[name]
        if not self.is_root:
            os.fchmod(fd, mode)
        os.utime(fd, ns=(mtime, mtime))

    def file(self, reader: TarReader, entry: TarEntry, at: int, leaf: bytes, _name: bytes) -> None:
        try:
            fd = os.open(leaf, _NEW_FLAGS, entry.mode & 0o777, dir_fd=at)
        except FileExistsError:
            self.clear(at, leaf)
            fd = os.open(leaf, _NEW_FLAGS, entry.mode & 0o777, dir_fd=at)
        try:
            size = entry.size
            if size <= STREAM_CHUNK and entry.sparse is None:
                if size:
                    write_all(fd, reader.read(size))
                    self.unchecked += size
            else:
                self.contents(reader, entry, fd)
            if self.unchecked > _ROOM_STEP:
                self.room()
            self.size += size
            if self.is_root:
                os.fchown(fd, entry.uid, entry.gid)
            if entry.mode & self.special:
                os.fchmod(fd, entry.mode)
            if entry.xattrs:
                self.xattrs(fd, entry)
            mtime = _time_bound(entry.mtime)
            os.utime(fd, ns=(mtime, mtime))
        finally:
            os.close(fd)

    def contents(self, reader: TarReader, entry: TarEntry, fd: int) -> None:
        """The content of a large or sparse file; holes stay holes."""
        at = 0
        for offset, data in reader.pieces(entry):
            if offset != at:
                os.lseek(fd, offset, os.SEEK_SET)
            write_all(fd, data)
            at = offset + len(data)
            self.unchecked += len(data)
            if self.unchecked > _ROOM_STEP:
                self.room()
        if at != entry.size:
            os.ftruncate(fd, entry.size)

    def room(self) -> None:
        """Stop before the file system is full to the last byte: others live there, too."""
        self.unchecked = 0
        there = os.fstatvfs(self.root)
        if there.f_bavail * there.f_frsize < TREE_ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def hard_link(
        self, _reader: TarReader, entry: TarEntry, at: int, leaf: bytes, name: bytes
    ) -> None:
        shown = f'invalid hardlink "/{name_shown(name)}" -> "{name_shown(entry.link)}"'
        try:
            target = name_clean(entry.link)
        except InvalidParameter:
            raise InvalidParameter(shown) from None
        if target == name:
            return
        up, _, target_leaf = target.rpartition(b"/")
        source = self.walk(up, make=False)
        if target_leaf and _kind_at(source, target_leaf)[0] == _S_IFDIR:
            raise InvalidParameter(shown)  # EPERM, says link(2), if nothing else is wrong
        try:
            os.link(target_leaf, leaf, src_dir_fd=source, dst_dir_fd=at, follow_symlinks=False)
        except FileExistsError:
            there = os.stat(leaf, dir_fd=at, follow_symlinks=False)
            if os.path.samestat(
                there, os.stat(target_leaf, dir_fd=source, follow_symlinks=False)
            ):
                return  # one file by both names already, perhaps by another way to one directory
            self.clear(at, leaf)
            os.link(target_leaf, leaf, src_dir_fd=source, dst_dir_fd=at, follow_symlinks=False)

    def symlink(
        self, _reader: TarReader, entry: TarEntry, at: int, leaf: bytes, _name: bytes
    ) -> None:
        try:
            os.symlink(entry.link, leaf, dir_fd=at)
        except FileExistsError:
            self.clear(at, leaf)
            os.symlink(entry.link, leaf, dir_fd=at)
        self.attributes_at(entry, at, leaf)

    def node(self, _reader: TarReader, entry: TarEntry, at: int, leaf: bytes, _name: bytes) -> None:
        """A device or a fifo."""
        kind = {TAR_CHAR: _S_IFCHR, TAR_DISK: _S_IFBLK, TAR_FIFO: _S_IFIFO}[entry.kind]
        if kind != _S_IFIFO and not self.is_root:
            return  # nobody but root may make devices, and nobody else could use them
        major, minor = entry.device
        if not (0 <= major < 1 << 12 and 0 <= minor < 1 << 20):
            raise InvalidParameter(f"invalid device number {major}:{minor}")
        device = os.makedev(major, minor) if kind != _S_IFIFO else 0
        try:
            os.mknod(leaf, kind | entry.mode & 0o777, device, dir_fd=at)
        except FileExistsError:
            self.clear(at, leaf)
            os.mknod(leaf, kind | entry.mode & 0o777, device, dir_fd=at)
        self.attributes_at(entry, at, leaf)

    def attributes_at(self, entry: TarEntry, at: int, leaf: bytes) -> None:
        """Owner, mode, xattrs and times of what cannot be opened: links and special files."""
        if self.is_root:
            os.chown(leaf, entry.uid, entry.gid, dir_fd=at, follow_symlinks=False)
        if entry.kind != TAR_SYMLINK and entry.mode & self.special:
            os.chmod(leaf, entry.mode, dir_fd=at)
        if entry.xattrs:
            self.xattrs(b"/proc/self/fd/%d/%s" % (at, leaf), entry)
        mtime = _time_bound(entry.mtime)
        os.utime(leaf, ns=(mtime, mtime), dir_fd=at, follow_symlinks=False)

    def xattrs(self, where: int | bytes, entry: TarEntry) -> None:
        """Best effort, as Docker: what the file system or the kernel refuses is left out."""
        for name, value in entry.xattrs.items():
            if name.startswith((b"trusted.overlay.", b"user.overlay.")):
                continue
            try:
                xattr_set(where, name, value)
            except OSError as refused:
                if refused.errno not in (errno.ENOTSUP, errno.EPERM):
                    raise

    def whiteout(self, at: int, leaf: bytes) -> None:
        if leaf == WHITEOUT_OPAQUE:
            _opaque_set(at)
            return
        if leaf.startswith(b".wh..wh."):
            return  # aufs's own bookkeeping; nothing is hidden by it
        hidden = leaf[len(WHITEOUT_PREFIX) :]
        if hidden in (b"", b".", b".."):
            raise InvalidParameter(f"invalid whiteout {name_shown(leaf)!r}")
        try:
            os.mknod(hidden, _S_IFCHR, 0, dir_fd=at)
        except FileExistsError:
            # The layer's own file stays, and hides the one below; its own directory would be
            # merged.
            if _kind_at(at, hidden)[0] == _S_IFDIR:
                fd = os.open(hidden, _DIR_FLAGS, dir_fd=at)
                try:
                    _opaque_set(fd)
                finally:
                    os.close(fd)


def _kind_at(at: int, leaf: bytes) -> tuple:
    """(type bits, device number) of a name, links not followed."""
    there = os.stat(leaf, dir_fd=at, follow_symlinks=False)
    return there.st_mode & _S_IFMT, there.st_rdev


def _opaque_set(fd: int) -> None:
    try:
        xattr_set(fd, OVERLAY_XATTR + "opaque", b"y")
    except PermissionError:  # no CAP_SYS_ADMIN over the file system: overlay's userxattr
        xattr_set(fd, "user.overlay.opaque", b"y")


def _time_bound(mtime: int) -> int:
    """As Docker: a time that Go cannot hold in nanoseconds, or before 1970, becomes 1970."""
    return mtime if 0 <= mtime <= _TIME_MAX else 0


def _umask() -> int:
    """This process's umask, without changing it: other threads would see that."""
    for line in file_read("/proc/self/status").split(b"\n"):
        if line.startswith(b"Umask:"):
            return int(line[6:], 8)
    return 0o777  # Linux < 4.7: chmod every file


def name_clean(name: bytes) -> bytes:
    """A tar's name relative to the root and without ".", "..", "//": b"" is the root itself.

    InvalidParameter where `..` leads above the root of a relative name; above "/" there is nothing.
    """
    if name[:1] not in b"./" and b"/." not in name and b"//" not in name and name[-1:] != b"/":
        return name
    parts: list = []
    for part in name.split(b"/"):
        if part == b"..":
            if parts:
                parts.pop()
            elif name[:1] != b"/":
                raise InvalidParameter(f'"{name_shown(name)}" is outside of "/"')
        elif part not in (b"", b"."):
            parts.append(part)
    return b"/".join(parts)


def name_shown(name: bytes) -> str:
    """A name for a message: one line, whatever its bytes."""
    return repr(name[:200].decode("utf-8", "backslashreplace"))[1:-1]


def tree_pack(root: str, *, overlay: bool = False) -> Iterator[bytes]:
    """A directory's content as a tar, in pieces: sorted, so the same tree gives the same bytes.

    The directory itself is no entry; sockets are left out. `overlay` turns overlayfs's whiteouts
    and opaque directories back into those of a layer. EngineError where a file shrinks meanwhile.
    """
    seen: dict = {}
    fd = os.open(root, _DIR_FLAGS & ~os.O_NOFOLLOW)
    levels = [(fd, b"", iter(sorted(os.listdir(os.fsencode(f"/proc/self/fd/{fd}")))))]
    try:
        while levels:
            at, prefix, names = levels[-1]
            leaf = next(names, None)
            if leaf is None:
                os.close(levels.pop()[0])
                continue
            there = os.stat(leaf, dir_fd=at, follow_symlinks=False)
            if there.st_mode & _S_IFMT == _S_IFDIR:
                fd = os.open(leaf, _DIR_FLAGS, dir_fd=at)
                levels.append(
                    (fd, prefix + leaf + b"/", iter(sorted(os.listdir(b"/proc/self/fd/%d" % fd))))
                )
            yield from _pack_entry(
                at, prefix, leaf, there, seen if there.st_nlink > 1 else None, overlay
            )
    finally:
        for level in levels:
            os.close(level[0])
    yield TAR_END


def _pack_entry(
    at: int, prefix: bytes, leaf: bytes, there: os.stat_result, seen: dict | None, overlay: bool
) -> Iterator[bytes]:
    kind = there.st_mode & _S_IFMT
    if overlay and kind == _S_IFCHR and there.st_rdev == 0:
        yield tar_header(TarEntry(prefix + WHITEOUT_PREFIX + leaf, mode=0, mtime=there.st_mtime_ns))
        return
    kinds = {
        _S_IFREG: TAR_FILE,
        _S_IFDIR: TAR_DIR,
        _S_IFLNK: TAR_SYMLINK,
        _S_IFCHR: TAR_CHAR,
        _S_IFBLK: TAR_DISK,
        _S_IFIFO: TAR_FIFO,
    }
    if kind not in kinds:
        return
    entry = TarEntry(
        prefix + leaf,
        kinds[kind],
        mode=there.st_mode & 0o7777,
        uid=there.st_uid,
        gid=there.st_gid,
        mtime=there.st_mtime_ns,
    )
    if seen is not None and kind != _S_IFDIR:
        first = seen.setdefault((there.st_dev, there.st_ino), entry.name)
        if first != entry.name:
            entry.kind, entry.link = TAR_LINK, first
            yield tar_header(entry)
            return
    where = b"/proc/self/fd/%d/%s" % (at, leaf)
    entry.xattrs = xattrs_kept(where)
    if kind == _S_IFLNK:
        entry.link = os.readlink(leaf, dir_fd=at)
    elif kind in (_S_IFCHR, _S_IFBLK):
        entry.device = (os.major(there.st_rdev), os.minor(there.st_rdev))
    if kind == _S_IFREG:
        fd = os.open(leaf, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
        try:
            yield from file_pack(fd, entry)
        finally:
            os.close(fd)
        return
    yield tar_header(entry)
    if overlay and kind == _S_IFDIR and _is_opaque(where):
        yield tar_header(
            TarEntry(entry.name + b"/" + WHITEOUT_OPAQUE, mode=0, mtime=there.st_mtime_ns)
        )


def file_pack(fd: int, entry: TarEntry) -> Iterator[bytes]:
    """Header, content and padding of an open regular file; its size becomes the entry's."""
    entry.size = entry.stored = left = os.fstat(fd).st_size
    yield tar_header(entry)
    while left:
        data = os.read(fd, min(left, STREAM_CHUNK))
        if not data:
            raise EngineError(f"{name_shown(entry.name)} became shorter while it was read")
        yield data
        left -= len(data)
    yield tar_padding(entry.size)


def xattrs_kept(where: bytes, follow: bool = False) -> dict:
    """Of a file's xattrs, those that mean something elsewhere: file capabilities and user.*."""
    try:
        names = xattr_list(where, follow)
    except OSError as refused:
        if refused.errno in (errno.ENOTSUP, errno.EACCES):
            return {}
        raise
    return {
        os.fsencode(name): xattr_get(where, name, follow)
        for name in names
        if name == "security.capability"
        or name.startswith("user.")
        and not name.startswith("user.overlay.")
    }


def _is_opaque(where: bytes) -> bool:
    for name in (OVERLAY_XATTR + "opaque", "user.overlay.opaque"):
        try:
            if xattr_get(where, name) == b"y":
                return True
        except OSError as refused:
            if refused.errno not in (errno.ENODATA, errno.ENOTSUP):
                raise
    return False


# =============================================================================
# blobs -- content-addressed store: put, verify, get, lease
# =============================================================================
# Runs in: api, cli, worker.   Refs: image-spec descriptor.md
# A blob is a file blobs/sha256/<hex> with exactly the bytes that have that digest, as they were
# received: a manifest, a config, a compressed or plain layer. It is written beside, hashed on the
# way, compared, synced and renamed; so what has the name is whole, also after a power cut. It never
# changes. Nothing counts references: who adds content (load, import, pull) holds a content_lease, a
# shared lock, from before the first byte until the rows that name it all are committed; who removes
# unnamed content takes the same lock alone, and where that is refused leaves it to a later
# collection. The lease's descriptor goes to workers too, so the lock lasts as long as any of them
# writes. Half-done things are in one directory of tmp/ per lease; the first lease after a crash
# removes those of the dead.

BLOB_DOCUMENT_MAX = 4 << 20  # bytes of a manifest or config, as registries bound them
LEASE_PREFIX = "content-"  # of what is below tmp/ and of no use without a lease


def hasher() -> Any:
    """A SHA-256 object for much data: OpenSSL's, which uses the processor's own instructions."""
    try:
        from _hashlib import openssl_sha256

        return openssl_sha256(usedforsecurity=False)
    except ImportError:
        return sha256()


def digest_of(data: bytes) -> str:
    """ "sha256:<hex>" of some bytes."""
    return "sha256:" + sha256(data).hexdigest()


def blob_path(store: Store, digest: str) -> str:
    """Where the blob is or would be; InvalidParameter for what is no sha256 digest."""
    if digest_check(digest)[:7] != "sha256:":
        raise InvalidParameter("unsupported digest algorithm")
    return store.path("blobs", "sha256", digest[7:])


def blob_size(store: Store, digest: str) -> int:
    """Its size in bytes; NotFound where the store has no such blob."""
    try:
        return os.stat(blob_path(store, digest)).st_size
    except FileNotFoundError:
        raise NotFound(f"content digest {digest}: not found") from None


def blob_open(store: Store, digest: str) -> int:
    """A descriptor to read it; NotFound where the store has no such blob."""
    try:
        return os.open(blob_path(store, digest), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(f"content digest {digest}: not found") from None


def blob_document(store: Store, digest: str) -> bytes:
    """The bytes of a manifest or config."""
    if blob_size(store, digest) > BLOB_DOCUMENT_MAX:
        raise InvalidParameter(f"content digest {digest}: too large for a document")
    return file_read(blob_path(store, digest))


def blob_put(lease: content_lease, read: Callable, digest: str = "", size: int = -1) -> tuple:
    """Store what a stream gives; (its digest, its size).

    With `digest` or `size` given, anything else is InvalidParameter, and is not kept.
    """
    store = lease.store
    beside = f"{lease.directory}/{os.urandom(8).hex()}"
    digester, total = hasher(), 0
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with no_space("store the content"):
            while True:
                data = read(STREAM_CHUNK)
                if not data:
                    break
                total += len(data)
                if total > size >= 0:
                    break
                digester.update(data)
                write_all(fd, data)
            got = "sha256:" + digester.hexdigest()
            if size not in (-1, total):
                raise InvalidParameter(
                    f"content of {digest or got} has a wrong size: expected {size}"
                )
            if digest not in ("", got):
                raise InvalidParameter(f"content digest mismatch: expected {digest}, got {got}")
            os.fdatasync(fd)
        os.rename(beside, blob_path(store, got))
    except BaseException:
        os.unlink(beside)
        raise
    finally:
        os.close(fd)
    return got, total


def blob_put_bytes(lease: content_lease, data: bytes) -> str:
    """Store a document; its digest. One that is there already is not written again."""
    digest = digest_of(data)
    try:
        if blob_size(lease.store, digest) == len(data):
            return digest
    except NotFound:
        pass
    parts = [data]
    return blob_put(lease, lambda _size: parts.pop() if parts else b"")[0]


def blob_remove(store: Store, digest: str) -> None:
    """Remove the blob, if it is there."""
    try:
        os.unlink(blob_path(store, digest))
    except FileNotFoundError:
        pass


def file_stream(fd: int, left: int = -1) -> Callable:
    """A stream over a descriptor from where it stands; with `left`, over so many bytes only."""

    def read(size: int) -> bytes:
        nonlocal left
        if left >= 0:
            size = min(size, left)
        data = os.read(fd, size)
        if left > 0:
            left -= len(data)
        return data

    return read


def span_stream(fd: int, at: int, size: int) -> Callable:
    """A stream over a part of a file, whatever others read from its descriptor meanwhile."""
    end = at + size

    def read(size: int) -> bytes:
        nonlocal at
        data = os.pread(fd, min(size, end - at), at)
        at += len(data)
        return data

    return read


class no_space:
    """Context manager: ENOSPC and its like inside become one EngineError that says what for."""

    __slots__ = ("what",)

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, failure: object, trace: object) -> None:
        if isinstance(failure, OSError) and failure.errno in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EFBIG,
            errno.EIO,
            errno.EROFS,
        ):
            raise EngineError(f"cannot {self.what}: {(failure.strerror or '').lower()}") from None


class content_lease:
    """Context manager: while it lasts, no content that is named by no row yet is collected.

    `directory` is for what is half done and goes away with it; `fd` is the lock itself.
    """

    __slots__ = ("directory", "fd", "store")

    def __init__(self, store: Store) -> None:
        self.store = store
        self.fd = -1
        self.directory = ""

    def __enter__(self) -> content_lease:
        import fcntl

        self.store.roots_make()
        fd = os.open(
            self.store.run_path("locks", "content"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _leases_forget(self.store)  # nobody else is at work: what lies there is of the dead
            except BlockingIOError:
                pass
            fcntl.flock(fd, fcntl.LOCK_SH)
            directory = self.store.path("tmp", LEASE_PREFIX + os.urandom(8).hex())
            with no_space("write below the data root"):
                os.mkdir(directory, 0o700)
        except BaseException:
            os.close(fd)
            raise
        self.fd, self.directory = fd, directory
        return self

    def __exit__(self, *failure: object) -> None:
        tree_remove(self.directory)
        os.close(self.fd)


class content_alone:
    """Context manager whose value is True while nobody holds or gets a lease; else False.

    `found` tells then whether something of the dead lay there, who may have left more.
    """

    __slots__ = ("_fd", "_store", "found")

    def __init__(self, store: Store) -> None:
        self._store = store
        self._fd = -1
        self.found = False

    def __enter__(self) -> bool:
        import fcntl

        self._store.roots_make()
        self._fd = os.open(
            self._store.run_path("locks", "content"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        self.found = leases_left(self._store)
        _leases_forget(self._store)
        return True

    def __exit__(self, *failure: object) -> None:
        os.close(self._fd)


def leases_left(store: Store) -> bool:
    """Whether there is something half done, of somebody who is at work or died at it."""
    store.roots_make()
    return any(name.startswith(LEASE_PREFIX) for name in os.listdir(store.path("tmp")))


def _leases_forget(store: Store) -> None:
    for name in os.listdir(store.path("tmp")):
        if name.startswith(LEASE_PREFIX):
            tree_remove(store.path("tmp", name))


# =============================================================================
# layers -- one unpacked tree per chain id: registered once, in parallel, collected
# =============================================================================
# Runs in: api, cli; unpacking in worker.   Refs: image-spec config.md "Layer ChainID"
# A layer is a row and a directory layers/<n in base 36>/diff, short so that 128 of them fit into
# the page of options that mount(2) takes. It is named by its chain id (what it holds depends on
# nothing else than its diff id; the chain says on what it lies). Registering: lock the chain ids,
# in sorted order, so that two processes that need the same layer share one unpacking and never wait
# for each other in a circle; unpack each into the lease's directory; sync the file system once;
# then, in one transaction, insert the rows and rename the directories into place. A crash before
# the commit leaves directories without rows, which the next owner of the number, or the collection,
# removes. Workers are asked for through `run_worker`, whose contract is launcher_call's without the
# store; without it layers are unpacked here, one after another. A layer's bytes are hashed while
# they are unpacked: what does not have the diff id is not kept.

MEDIA_LAYER = "application/vnd.oci.image.layer.v1.tar"
MEDIA_COMPRESSED = {"": "", "gzip": "+gzip", "zstd": "+zstd"}
_WORKER_POLL = 8  # pieces between two looks whether the requester still waits


class LayerItem:
    """A layer to be there: its chain, and `fetch`, which puts its blob into the store if needed.

    fetch() gives (digest, size, media type) of the blob and is called at most once. Where
    `source` tells (descriptor, offset, size) of the same bytes in a file, a worker unpacks them
    beside the fetching.
    """

    __slots__ = (
        "blob", "chain_id", "diff_id", "fetch", "media_type", "parent", "root", "size", "source",
        "stored",
    )  # fmt: skip

    def __init__(self, diff_id: str, parent: str, fetch: Callable) -> None:
        self.diff_id = digest_check(diff_id)
        self.parent = parent
        self.chain_id = chain_id(parent, diff_id)
        self.fetch = fetch
        self.source: tuple | None = None
        self.root = ""  # the directory that it is unpacked into
        self.blob = ""
        self.stored = 0  # bytes of the blob
        self.media_type = ""
        self.size = 0  # bytes of the files


def chain_id(parent: str, diff_id: str) -> str:
    """The chain id of a layer upon the chain `parent` ("" for none)."""
    return digest_of(f"{parent} {diff_id}".encode()) if parent else diff_id


def chain_ids(diff_ids: list) -> list:
    """The chain ids of an image's layers, lowest first."""
    found: list = []
    for diff_id in diff_ids:
        found.append(chain_id(found[-1] if found else "", diff_id))
    return found


def layer_name(number: int) -> str:
    """The directory of a layer below layers/: its number in base 36."""
    digits = ""
    while number or not digits:
        number, digit = divmod(number, 36)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[digit] + digits
    return digits


def layer_number(store: Store, chain: str) -> int:
    """The row number of a chain id, 0 where the store has no such layer."""
    row = store.row("SELECT n FROM layers WHERE chain_id=?", chain)
    return row[0] if row else 0


def layer_stack(store: Store, number: int) -> list:
    """[(n, chain id, diff id, size, blob, blob size, media type)] from this layer downwards."""
    return store.rows(
        "WITH RECURSIVE up(n, parent, depth) AS (SELECT n, parent, 0 FROM layers WHERE n=?"
        " UNION ALL SELECT l.n, l.parent, depth + 1 FROM layers l JOIN up ON l.n=up.parent)"
        " SELECT l.n, l.chain_id, l.diff_id, l.size, l.blob, l.blob_size, l.media_type"
        " FROM up JOIN layers l ON l.n=up.n ORDER BY depth",
        number,
    )


def layer_directories(store: Store, number: int) -> list:
    """The absolute directories to be overlaid, topmost first."""
    return [store.path("layers", layer_name(row[0]), "diff") for row in layer_stack(store, number)]


def layers_register(
    lease: content_lease, items: list, workers: int = 0, run_worker: Callable | None = None
) -> None:
    """Have all these layers in the store: items are LayerItems, each after its parent.

    `workers` bounds how many unpack at once (0: one a processor). Raises what fetching or unpacking
    raises; then none of those that were missing is registered.
    """
    store = lease.store
    missing = _layers_missing(store, items)
    if not missing:
        return
    locks: list = []
    try:
        for chain in sorted({item.chain_id for item in missing}):
            lock = store.lock("layer-" + chain[7:])
            lock.__enter__()
            locks.append((lock, chain))
        missing = _layers_missing(store, missing)
        with no_space("store the layers"):
            _layers_unpack(lease, missing, workers or len(os.sched_getaffinity(0)), run_worker)
        if missing:
            _layers_commit(lease, missing)
    finally:
        for lock, chain in locks:
            # The name goes while the lock is held; who waits for it sees that and takes a new one.
            os.unlink(store.run_path("locks", "layer-" + chain[7:]))
            lock.__exit__()


def _layers_missing(store: Store, items: list) -> list:
    missing: dict = {}
    for item in items:
        if item.chain_id not in missing and not layer_number(store, item.chain_id):
            missing[item.chain_id] = item
    return list(missing.values())


def _layers_unpack(
    lease: content_lease, items: list, workers: int, run_worker: Callable | None
) -> None:
    """Fetch each blob; unpack it here, or let workers do it while the next one is fetched."""
    busy: dict = {}  # a worker's connection: its item
    try:
        for index, item in enumerate(items):
            root = item.root = f"{lease.directory}/{index}/diff"
            os.mkdir(f"{lease.directory}/{index}", 0o710)
            _layer_root(root)
            while len(busy) >= workers:
                _worker_answer(lease, busy)
            sock = _worker_ahead(lease, item, root, run_worker)
            if sock is not None:
                busy[sock] = item
            item.blob, item.stored, item.media_type = item.fetch()
            if sock is None:
                _layer_start(lease, item, root, busy, run_worker)
        while busy:
            _worker_answer(lease, busy)
    except BaseException:
        # The others are told to stop, and let end before their directory is removed under them.
        for sock in busy:
            try:
                sock.shutdown(_socket.SHUT_WR)
                sock.recv(1 << 16)
            except OSError:  # it died
                pass
            sock.close()
        raise


def _layer_root(root: str) -> None:
    os.mkdir(root, 0o755)
    os.chmod(root, 0o755)


def _worker_ahead(
    lease: content_lease, item: LayerItem, root: str, run_worker: Callable | None
) -> Any:
    """A worker that unpacks an item from its source before its blob is fetched, or None."""
    if item.source is None:
        return None
    fd, at, size = item.source
    request = {"root": root, "blob": "", "diff_id": item.diff_id, "at": at, "size": size}
    return _worker_start(run_worker, request, [fd, lease.fd])


def _layer_start(
    lease: content_lease, item: LayerItem, root: str, busy: dict, run_worker: Callable | None
) -> None:
    """Unpack an item's blob: by a worker, which joins `busy`, or here and now."""
    request = {"root": root, "blob": item.blob, "diff_id": item.diff_id}
    fd = blob_open(lease.store, item.blob)
    try:
        sock = _worker_start(run_worker, {**request, "at": 0, "size": item.stored}, [fd, lease.fd])
        if sock is None:
            item.size = layer_unpack(request, file_stream(fd))
        else:
            busy[sock] = item
    finally:
        os.close(fd)


def _worker_start(run_worker: Callable | None, request: dict, fds: list) -> Any:
    """The connection of a worker that unpacks a layer; None where it must be done here."""
    if run_worker is None:
        return None
    try:
        return run_worker("extract", request, fds)
    except Unavailable:  # no launcher is to be had: slower, but it works
        return None


def _worker_answer(lease: content_lease, busy: dict) -> None:
    """Wait for one of the workers and take over what it says; where it died, do its work here."""
    import select

    poller = select.poll()
    sockets = {}
    for sock in busy:
        poller.register(sock, select.POLLIN)
        sockets[sock.fileno()] = sock
    sock = sockets[poller.poll()[0][0]]
    try:
        answered = bool(sock.recv(1, _socket.MSG_PEEK))
    except ConnectionResetError:  # nobody has read what was asked
        answered = False
    item = busy.pop(sock)
    try:
        if answered:
            item.size = answer_read(sock, "")["size"]
    finally:
        sock.close()
    if not answered:
        _layer_again(lease, item)


def _layer_again(lease: content_lease, item: LayerItem) -> None:
    """Unpack an item whose worker died, in this process and from nothing."""
    tree_remove(item.root)
    _layer_root(item.root)
    fd = blob_open(lease.store, item.blob)
    try:
        request = {"root": item.root, "blob": item.blob, "diff_id": item.diff_id}
        item.size = layer_unpack(request, file_stream(fd))
    finally:
        os.close(fd)


def _layers_commit(lease: content_lease, items: list) -> None:
    store = lease.store
    with no_space("store the layers"):
        _sync_around(lease.directory)
        now = time_now()
        with store.write() as db:
            for index, item in enumerate(items):
                number = db.execute(
                    "INSERT INTO layers"
                    "(chain_id, diff_id, parent, blob, blob_size, media_type, size, created)"
                    " VALUES(?, ?, (SELECT n FROM layers WHERE chain_id=?), ?, ?, ?, ?, ?)",
                    (
                        item.chain_id,
                        item.diff_id,
                        item.parent,
                        item.blob,
                        item.stored,
                        item.media_type,
                        item.size,
                        now,
                    ),
                ).lastrowid
                place = store.path("layers", layer_name(number))
                if os.path.lexists(place):  # of a commit that a crash undid
                    os.rename(place, f"{lease.directory}/stale-{number}")
                os.rename(f"{lease.directory}/{index}", place)
            dir_sync(store.path("layers"))


def _sync_around(directory: str) -> None:
    """syncfs(2) on the file system of a directory. Not sys_syncfs: this may take seconds, and the
    daemon's other threads run meanwhile, as CDLL gives up the GIL."""
    import ctypes

    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(fd) < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), directory)
    finally:
        os.close(fd)


def layer_unpack(request: dict, read: Callable) -> int:
    """Unpack a layer's blob into request["root"]; the sum of its files' sizes.

    InvalidParameter unless the plain bytes have request["diff_id"]. They are not hashed again where
    the blob itself, which was verified, is plain and has that digest.
    """
    name, plain = decompressed(read)
    if not name and request["blob"] == request["diff_id"]:
        return tree_unpack(request["root"], plain)
    digester = hasher()

    def hashed(size: int) -> bytes:
        data = plain(size)
        digester.update(data)
        return data

    size = tree_unpack(request["root"], hashed)
    got = "sha256:" + digester.hexdigest()
    if got != request["diff_id"]:
        raise InvalidParameter(
            f'invalid diffID for layer: expected "{request["diff_id"]}", got "{got}"'
        )
    return size


@role("extract")
def worker_extract(request: dict, conn: Any, fds: list) -> None:
    """The worker: fds are the blob and the lease. Ends when nobody waits for it any more."""
    import select

    poller = select.poll()
    poller.register(conn, select.POLLRDHUP)
    blob = span_stream(fds[0], request["at"], request["size"])
    count = 0

    def read(size: int) -> bytes:
        nonlocal count
        count += 1
        if count % _WORKER_POLL == 0 and poller.poll(0):
            raise Unavailable("nobody waits for this layer any more")
        return blob(size)

    try:
        size = layer_unpack(request, read)
    finally:
        os.close(fds.pop())  # before the answer: who gets it may want to collect
    answer_send(conn, {"size": size})


# =============================================================================
# images -- what is named: tags, list, inspect, history, remove, prune
# =============================================================================
# Runs in: api, cli.   Refs: image-spec config.md, moby v28.5.2 daemon/images
# An image is a row: its id is the digest of its config, whose text stands in the row and as a blob;
# `manifest` is the blob that lists config and layers, exactly as received, or made here where an
# archive had none; `layer` is the top row of its layers. A tag is a row as well:
# "docker.io/library/busybox:latest" or "...@sha256:...", so removing one can never touch another.
# What Docker calls dangling has no tag. Nothing here knows containers: who removes passes `in_use`,
# a function giving a row per container, (container id, image id, True while it runs, number of its
# top layer), asked inside the transaction that deletes. Layers and blobs that nothing names go
# after the commit, and only while nobody holds a lease on content.

MEDIA_CONFIG = "application/vnd.oci.image.config.v1+json"
MEDIA_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
IMAGE_FILTERS = ("before", "dangling", "label", "label!", "reference", "since", "until")
PRUNE_FILTERS = ("dangling", "label", "label!", "until")
IMAGE_LAYERS_MAX = 127  # what overlayfs stacks below a container's init layer
#: Fields of a config that API 1.50 and 1.51 show even where an image does not set them.
IMAGE_CONFIG_SHOWN = {
    "Cmd": None,
    "Entrypoint": None,
    "Env": None,
    "Labels": None,
    "OnBuild": None,
    "User": "",
    "Volumes": None,
    "WorkingDir": "",
}
# fmt: off
#: Types of what is read of a config: lists are of strings, other fields may be anything.
IMAGE_DOCUMENT_TYPES = {
    "architecture": str, "author": str, "comment": str, "config": dict, "created": str,
    "docker_version": str, "history": list, "os": str, "os.version": str, "variant": str,
}
IMAGE_CONFIG_TYPES = {
    "Cmd": list, "Entrypoint": list, "Env": list, "ExposedPorts": dict, "Healthcheck": dict,
    "Labels": dict, "OnBuild": list, "Shell": list, "StopSignal": str, "User": str,
    "Volumes": dict, "WorkingDir": str,
}
IMAGE_HISTORY_TYPES = {"comment": str, "created": str, "created_by": str, "empty_layer": bool}
# fmt: on
#: The other fields that are an image's, not a container's; left out where empty.
IMAGE_CONFIG_MORE = ("ArgsEscaped", "ExposedPorts", "Healthcheck", "Shell", "StopSignal")


class Image:
    """A row of images; `config` is the parsed document, `created` in ns (0: not told).

    The column `created` is clamped to what SQLite holds, so the time is read from the document.
    """

    __slots__ = ("added", "config", "created", "id", "layer", "manifest", "size")

    def __init__(self, row: tuple) -> None:
        self.id, self.manifest, self.layer, self.size, _clamped, self.added, text = row
        self.layer = self.layer or 0
        self.config = json_parse(text)
        self.created = _created_ns(self.config)

    @property
    def settings(self) -> dict:
        """The part that containers start from: {"Cmd": [...], "Env": [...], ...}."""
        return self.config.get("config") or {}

    @property
    def labels(self) -> dict:
        """{"name": "value"}."""
        return self.settings.get("Labels") or {}

    @property
    def platform(self) -> dict:
        """{"os": "linux", "architecture": "amd64", "variant": ""}."""
        return {
            "os": self.config.get("os") or "linux",
            "architecture": self.config.get("architecture") or "",
            "variant": self.config.get("variant") or "",
        }


#: What processors run beside what they are made for.
PLATFORMS_ALSO = {
    "amd64": {"architecture": "386", "variant": ""},
    "arm64": {"architecture": "arm", "variant": "v8"},
}
_IMAGE_COLUMNS = "id, manifest, layer, size, created, added, config"


def image_config_parse(data: bytes) -> dict:
    """The config document of an image; InvalidParameter unless its fields have the right types."""
    try:
        config = json_parse(data)
    except ValueError as error:
        raise InvalidParameter(f"invalid image config: {error}") from None
    if not isinstance(config, dict):
        raise InvalidParameter("invalid image config: not an object")
    rootfs = config.get("rootfs")
    if not isinstance(rootfs, dict):
        raise InvalidParameter("invalid image JSON, no RootFS key")
    _types_check(rootfs, {"diff_ids": list})
    _types_check(config, IMAGE_DOCUMENT_TYPES)
    _types_check(config.get("config") or {}, IMAGE_CONFIG_TYPES)
    steps, labels = config.get("history") or (), (config.get("config") or {}).get("Labels") or {}
    if not all(isinstance(step, dict) for step in steps):
        raise InvalidParameter("invalid image config: history has the wrong type")
    for step in steps:
        _types_check(step, IMAGE_HISTORY_TYPES)
    if not all(isinstance(value, str) for value in labels.values()):
        raise InvalidParameter("invalid image config: Labels has the wrong type")
    for diff_id in rootfs.get("diff_ids") or ():
        digest_check(diff_id)
    if len(rootfs.get("diff_ids") or ()) > IMAGE_LAYERS_MAX:
        raise InvalidParameter("max depth exceeded")
    return config


def _types_check(document: dict, types: dict) -> None:
    """InvalidParameter unless each field of the table is absent, null, or of its type."""
    for key, kind in types.items():
        value = document.get(key)
        if value is None:
            continue
        if not isinstance(value, kind) or (
            kind is list and key != "history" and not all(isinstance(item, str) for item in value)
        ):
            raise InvalidParameter(f"invalid image config: {key} has the wrong type")


def image_diff_ids(config: dict) -> list:
    """The diff ids of an image's layers, lowest first."""
    return config["rootfs"].get("diff_ids") or []


def image_create(
    lease: content_lease,
    config: bytes,
    *,
    manifest: str = "",
    names: Iterable[str] = (),
    tagged: int = 0,
) -> str:
    """Add an image whose layers are registered, and let `names` (full references) mean it; its id.

    Without a manifest one is made from the layers' blobs. `tagged` is the time of tagging, 0 for
    what Docker does not count as one (load).
    """
    store = lease.store
    document = image_config_parse(config)
    image = blob_put_bytes(lease, config)
    chains = chain_ids(image_diff_ids(document))
    top = layer_number(store, chains[-1]) if chains else 0
    if chains and not top:
        raise EngineError(f"layer {chains[-1]} does not exist")
    stack = layer_stack(store, top)
    if not manifest:
        manifest = blob_put_bytes(lease, manifest_make(config, stack))
    dir_sync(store.path("blobs", "sha256"))  # the names of both documents
    with store.write() as db:
        db.execute(
            f"INSERT OR IGNORE INTO images({_IMAGE_COLUMNS}) VALUES(?, ?, ?, ?, ?, ?, ?)",
            (
                image,
                manifest,
                top or None,
                sum(row[3] for row in stack),
                max(-INT64_MAX, min(_created_ns(document), INT64_MAX)),
                time_now(),
                config.decode("utf-8"),
            ),
        )
        for name in names:
            db.execute("INSERT OR REPLACE INTO tags VALUES(?, ?, ?)", (name, image, tagged))
    return image


def manifest_make(config: bytes, stack: list) -> bytes:
    """An OCI manifest over a config and layers as layer_stack() gives them."""
    return json_text(
        {
            "schemaVersion": 2,
            "mediaType": MEDIA_MANIFEST,
            "config": {"mediaType": MEDIA_CONFIG, "digest": digest_of(config), "size": len(config)},
            "layers": [
                {"mediaType": media, "digest": blob, "size": size}
                for _n, _chain, _diff, _files, blob, size, media in reversed(stack)
            ],
        }
    ).encode()


def _created_ns(config: dict) -> int:
    try:
        return time_parse(config.get("created") or "")
    except InvalidParameter:
        return 0


# -- finding ------------------------------------------------------------------


def image_get(store: Store, ref: str) -> Image:
    """The image that a name, name:tag, name@digest, id or start of an id means.

    NotFound "No such image: busybox:latest", InvalidParameter for what can be no name.
    """
    row = None
    if len(ref) == 64 and is_hex(ref):
        ref = "sha256:" + ref
    if ref.startswith("sha256:") and len(ref) == 71:
        digest_check(ref)
        row, shown = _image_row(store, ref), ref
    else:
        name = reference_tagged(reference_parse(ref))
        shown = name.familiar
        tag = store.row("SELECT image FROM tags WHERE name=?", _tag_key(name))
        row = _image_row(store, tag[0]) if tag else _image_by_prefix(store, ref)
    if not row:
        raise NotFound(f"No such image: {shown}")
    return Image(row)


def image_platform_check(image: Image, ref: str, platform: dict) -> None:
    """NotFound in Docker's words unless the image is for that platform."""
    if not platform_rank(image.platform, platform):
        raise NotFound(
            f"image with reference {ref} was found but its platform"
            f" ({platform_text(image.platform)}) does not match the specified platform"
            f" ({platform_text(platform)})"
        )


def image_platform_warning(image: Image) -> str:
    """Docker's words where the image is for another machine than this one, else ""."""
    host = platform_host()
    also = PLATFORMS_ALSO.get(host["architecture"], {})
    if platform_rank(image.platform, host) or platform_rank(image.platform, {**host, **also}):
        return ""
    if host["architecture"] == "amd64":
        host["variant"] = amd64_variant(file_read("/proc/cpuinfo").decode("utf-8", "replace"))
    return (
        f"The requested image's platform ({platform_text(image.platform)}) does not match the"
        f" detected host platform ({platform_text(host)}) and no specific platform was requested"
    )


def platform_rank(have: dict, want: dict) -> int:
    """How well an image's platform serves: 0 not at all, more is better; no variant serves all.

    An ARM processor runs what was built for older ones (containerd platforms).
    """
    if (have.get("os") or "linux") != want["os"]:
        return 0
    architecture, variant = have.get("architecture") or "", have.get("variant") or ""
    wanted = want["variant"]
    if architecture == want["architecture"]:
        if (
            variant == wanted
            or not wanted
            and (architecture, variant) in (("arm64", "v8"), ("amd64", "v1"))
        ):
            return 100
        if not variant:
            return 50
        if architecture == "arm" and variant < (wanted or "v7"):
            return 10 + int(variant[1:2] or 0)
        return 0 if wanted or architecture == "arm" else 1
    return 0


def image_tags(store: Store, image: str) -> tuple:
    """(["busybox:latest", ...], ["busybox@sha256:...", ...]) of an image, sorted."""
    names = [
        reference_parse(row[0])
        for row in store.rows("SELECT name FROM tags WHERE image=? ORDER BY name", image)
    ]
    return (
        [name.familiar for name in names if not name.digest],
        [name.familiar for name in names if name.digest],
    )


def _tag_key(name: Reference) -> str:
    """A reference as a row has it; a digest says more than a tag beside it."""
    return f"{name.name}@{name.digest}" if name.digest else f"{name.name}:{name.tag}"


def _image_row(store: Store, image: str) -> tuple | None:
    return store.row(f"SELECT {_IMAGE_COLUMNS} FROM images WHERE id=?", image)


def _image_by_prefix(store: Store, text: str) -> tuple | None:
    prefix = text[7:] if text.startswith("sha256:") else text
    if not prefix or not is_hex(prefix) or len(prefix) > 64:
        return None
    rows = store.rows(
        f"SELECT {_IMAGE_COLUMNS} FROM images WHERE id GLOB ? LIMIT 2", f"sha256:{prefix}*"
    )
    return rows[0] if len(rows) == 1 else None


def _images_all(store: Store) -> list:
    return [Image(row) for row in store.rows(f"SELECT {_IMAGE_COLUMNS} FROM images")]


# -- showing ------------------------------------------------------------------


def image_list(store: Store, filters: dict, in_use: Callable, *, shared_size: bool = False) -> list:
    """What GET /images/json shows, newest first."""
    filters_check(filters, IMAGE_FILTERS)
    dangling = filter_bool(filters, "dangling", False)
    images = _images_all(store)
    before, since = _time_window(store, filters)
    counts: dict = {}
    for row in in_use():
        counts[row[1]] = counts.get(row[1], 0) + 1
    shared = _layers_shared(store, images) if shared_size else {}
    names: dict = {}
    for name, image in store.rows("SELECT name, image FROM tags ORDER BY name"):
        names.setdefault(image, []).append(reference_parse(name))
    found = []
    for image in images:
        if (
            before is not None
            and not (image.created and image.created < before)
            or since is not None
            and not image.created > since
            or not filter_labels(filters, image.labels)
            or filters.get("label!")
            and filter_labels(filters, image.labels, "label!")
        ):
            continue
        shown = [name for name in names.get(image.id, ()) if _reference_matches(filters, name)]
        tags = [name.familiar for name in shown if not name.digest]
        if not shown:
            if "reference" in filters or "dangling" in filters and not dangling:
                continue
        elif dangling and tags:
            continue
        found.append(
            {
                "Containers": counts.get(image.id, 0),
                "Created": image.created // SECOND,
                "Id": image.id,
                "Labels": image.labels or None,
                "ParentId": "",
                "RepoDigests": [name.familiar for name in shown if name.digest],
                "RepoTags": tags,
                "SharedSize": shared.get(image.id, 0) if shared_size else -1,
                "Size": image.size,
            }
        )
    found.sort(key=lambda summary: (-summary["Created"], summary["RepoTags"], summary["Id"]))
    return found


def _time_window(store: Store, filters: dict) -> tuple:
    """(before, since) in ns, None where not asked: several values narrow it."""
    before = [image_get(store, ref).created for ref in filters.get("before") or ()]
    since = [image_get(store, ref).created for ref in filters.get("since") or ()]
    for text in filters.get("until") or ():
        before.append(_until_ns(text))
    return min(before) if before else None, max(since) if since else None


def _until_ns(text: str) -> int:
    try:
        return time_parse(text)
    except InvalidParameter as refused:
        raise InvalidParameter(f"invalid value for 'until' filter: {refused}") from None


def _reference_matches(filters: dict, name: Reference) -> bool:
    """Whether a pattern of the `reference` filter matches the name, with or without its tag."""
    patterns = filters.get("reference")
    return not patterns or any(
        _path_match(text, target)
        for text in patterns
        for target in (name.familiar, name.familiar_name, reference_full(name), name.name)
    )


def _path_match(text: str, name: str) -> bool:
    """Go's path.Match: `*` and `?` do not cross a slash, `[a-z]` and `[^a]`, backslash escapes."""
    out, at = "", 0
    while at < len(text):
        char, at = text[at], at + 1
        if char == "*":
            out += "[^/]*"
        elif char == "?":
            out += "[^/]"
        elif char == "[":
            end = text.find("]", at + 1)
            if end < 0:
                raise InvalidParameter("syntax error in pattern")
            inside = text[at:end].replace("\\", "").replace("[", "\\[")
            out, at = out + f"[{inside}]", end + 1
        elif char == "\\":
            if at == len(text):
                raise InvalidParameter("syntax error in pattern")
            out, at = out + "\\" + text[at], at + 1
        else:
            out += char if char.isalnum() or char in "/_" else "\\" + char
    import re

    try:
        return re.fullmatch(out, name) is not None
    except re.error:
        raise InvalidParameter("syntax error in pattern") from None


def _layers_shared(store: Store, images: list) -> dict:
    """{image id: bytes of its layers that another image has as well}."""
    users: dict = {}
    stacks = {}
    for image in images:
        stacks[image.id] = layer_stack(store, image.layer)
        for row in stacks[image.id]:
            users[row[0]] = users.get(row[0], 0) + 1
    return {
        image: sum(row[3] for row in stack if users[row[0]] > 1) for image, stack in stacks.items()
    }


def image_inspect(store: Store, ref: str, platform: dict | None = None) -> dict:
    """What GET /images/{name}/json shows (API 1.51)."""
    image = image_get(store, ref)
    if platform:
        image_platform_check(image, ref, platform)
    config, history = image.config, image.config.get("history") or []
    tags, digests = image_tags(store, image.id)
    stamp = store.row("SELECT max(updated) FROM tags WHERE image=?", image.id)[0]
    shown = {
        "Id": image.id,
        "RepoTags": tags,
        "RepoDigests": digests,
        "Parent": "",
        "Comment": config.get("comment") or (history[-1].get("comment") or "" if history else ""),
        "Created": _created_text(image),
        "DockerVersion": config.get("docker_version") or "",
        "Author": config.get("author") or "",
        "Architecture": image.platform["architecture"],
        "Variant": image.platform["variant"],
        "Os": image.platform["os"],
        "OsVersion": config.get("os.version") or "",
        "Size": image.size,
        "GraphDriver": _graph_driver(store, image.layer),
        "RootFS": {
            "Type": config["rootfs"].get("type") or "layers",
            "Layers": image_diff_ids(config),
        },
        "Metadata": {"LastTagTime": time_rfc3339(stamp or None)},
        "Config": image_config_shown(image.settings),
    }
    for key in ("Created", "Variant", "OsVersion"):
        if not shown[key]:
            del shown[key]
    if not shown["RootFS"]["Layers"]:
        del shown["RootFS"]["Layers"]
    return shown


def image_config_shown(settings: dict) -> dict:
    """An image's Config as API 1.51 shows it: sorted, some fields always there, others if set."""
    shown = {key: settings.get(key) or empty for key, empty in IMAGE_CONFIG_SHOWN.items()}
    shown.update((key, settings[key]) for key in IMAGE_CONFIG_MORE if settings.get(key))
    return dict(sorted(shown.items()))


def _created_text(image: Image) -> str:
    text = image.config.get("created") or ""
    return time_rfc3339(image.created) if text.endswith("Z") and image.created else text


def _graph_driver(store: Store, layer: int) -> dict:
    directories = layer_directories(store, layer)
    if not directories:
        return {"Data": None, "Name": "overlay2"}
    top = directories[0][: -len("/diff")]
    data = {
        "LowerDir": ":".join(directories[1:]),
        "MergedDir": top + "/merged",
        "UpperDir": directories[0],
        "WorkDir": top + "/work",
    }
    if len(directories) == 1:
        del data["LowerDir"]
    return {"Data": data, "Name": "overlay2"}


def image_history(store: Store, ref: str, platform: dict | None = None) -> list:
    """What GET /images/{name}/history shows, newest first."""
    image = image_get(store, ref)
    if platform:
        image_platform_check(image, ref, platform)
    sizes = [row[3] for row in layer_stack(store, image.layer)]
    shown = []
    for step in image.config.get("history") or ():
        size = 0
        if not step.get("empty_layer"):
            if not sizes:
                raise EngineError("too many non-empty layers in History section")
            size = sizes.pop()
        shown.append(
            {
                "Comment": step.get("comment") or "",
                "Created": _created_ns(step) // SECOND,
                "CreatedBy": step.get("created_by") or "",
                "Id": "<missing>",
                "Size": size,
                "Tags": None,
            }
        )
    shown.reverse()
    if shown:
        shown[0]["Id"] = image.id
        shown[0]["Tags"] = image_tags(store, image.id)[0] or None
    return shown


# -- changing -----------------------------------------------------------------


def image_event(store: Store, action: str, image: str, labels: dict, name: str = "") -> None:
    """Tell the journal what happened to an image; the name defaults to the id, as Docker's."""
    event_emit(store, "image", action, image, {**labels, "name": name or image})


def image_tag(store: Store, ref: str, target: str) -> None:
    """Let `target` ("repo" or "repo:tag") mean the image too, and no longer another one."""
    image = image_get(store, ref)
    name = reference_parse(target)
    if name.digest:
        raise InvalidParameter("refusing to create a tag with a digest reference")
    name = reference_tagged(name)
    if name.familiar_name == "sha256":
        raise InvalidParameter("refusing to create an ambiguous tag using digest algorithm as name")
    with store.write() as db:
        if not db.execute("SELECT 1 FROM images WHERE id=?", (image.id,)).fetchone():
            raise NotFound(f"No such image: {ref}")
        db.execute(
            "INSERT OR REPLACE INTO tags VALUES(?, ?, ?)", (_tag_key(name), image.id, time_now())
        )
    image_event(store, "tag", image.id, image.labels, name.familiar)


def image_remove(store: Store, ref: str, in_use: Callable, *, force: bool = False) -> list:
    """Untag or delete as DELETE /images/{name}: [{"Untagged": "x:1"}, {"Deleted": "sha256:..."}].

    Conflict in Docker's words where containers or other names hold the image.
    """
    image = image_get(store, ref)
    guard = content_alone(store)
    with guard as alone:
        with store.write() as db:
            untagged, deleted = _remove_rows(db, image, ref, in_use(), force)
            sweep = alone and (deleted or guard.found)
            freed = _layers_unnamed(db, in_use()) if sweep else []
        for _name in untagged:
            image_event(store, "untag", image.id, image.labels if not deleted else {})
        report = [{"Untagged": name} for name in untagged]
        if deleted:
            image_event(store, "delete", image.id, {})
            report.append({"Deleted": image.id})
            report += [{"Deleted": chain} for _n, chain, _size in freed]
        if sweep:
            content_drop(store, freed)
    return report


def _remove_rows(db: Any, image: Image, ref: str, uses: list, force: bool) -> tuple:
    """Delete the rows that `ref` stands for; (familiar names untagged, whether the image went)."""
    names = [
        reference_parse(row[0])
        for row in db.execute("SELECT name FROM tags WHERE image=? ORDER BY name", (image.id,))
    ]
    users = [row for row in uses if row[1] == image.id]
    running = [row for row in users if row[2]]
    if not (image.id.startswith(ref) or image.id[7:].startswith(ref)):
        if not force and users and _is_single(names):
            raise Conflict(
                f"conflict: unable to remove repository reference {quote(ref)} (must force) -"
                f" container {id_short(users[0][0])} is using its referenced image"
                f" {id_short(image.id[7:])}"
            )
        gone = _names_of(reference_tagged(reference_parse(ref)), names)
        _untag(db, gone)
        rest = [name for name in names if name not in gone]
        # Docker leaves an image quietly that is still named or used; only its name was asked for.
        if rest or running or users and not force:
            return [name.familiar for name in gone], False
    else:
        gone = names
        _conflict_check(image, names, users, running, force)
        _untag(db, names)
    db.execute("DELETE FROM images WHERE id=?", (image.id,))
    return [name.familiar for name in gone], True


def _conflict_check(image: Image, names: list, users: list, running: list, force: bool) -> None:
    short = id_short(image.id[7:])
    if running:
        raise Conflict(
            f"conflict: unable to delete {short} (cannot be forced) - image is being used by"
            f" running container {id_short(running[0][0])}"
        )
    if force:
        return
    if names and not _is_single(names):
        raise Conflict(
            f"conflict: unable to delete {short} (must be forced) - image is referenced in multiple"
            " repositories"
        )
    if users:
        raise Conflict(
            f"conflict: unable to delete {short} (must be forced) - image is being used by stopped"
            f" container {id_short(users[0][0])}"
        )


def _is_single(names: list) -> bool:
    """One name, or one tag and digests of the same repository."""
    tags = [name for name in names if not name.digest]
    return (
        len(names) == 1
        or len(names) > 1
        and len(tags) <= 1
        and len({name.name for name in names}) == 1
    )


def _names_of(wanted: Reference, names: list) -> list:
    """The rows that go with a name: with the last tag of a repository go its digests, too."""
    key = _tag_key(wanted)
    gone = [name for name in names if _tag_key(name) == key]
    if not wanted.digest and not any(
        name.name == wanted.name and not name.digest and name not in gone for name in names
    ):
        gone += [name for name in names if name.digest and name.name == wanted.name]
    return gone


def _untag(db: Any, names: list) -> None:
    db.executemany("DELETE FROM tags WHERE name=?", [(_tag_key(name),) for name in names])


def image_prune(store: Store, filters: dict, in_use: Callable) -> dict:
    """{"ImagesDeleted": [...] or None, "SpaceReclaimed": bytes} as POST /images/prune.

    Dangling images only, unless filters say dangling=false: then all that no container uses.
    """
    filters_check(filters, PRUNE_FILTERS)
    dangling = filter_bool(filters, "dangling", True)
    if len(filters.get("until") or ()) > 1:
        raise InvalidParameter("more than one until filter specified")
    until = _until_ns(filters["until"][0]) if filters.get("until") else None
    sizes = dict(store.rows("SELECT chain_id, size FROM layers"))
    deleted: list = []
    for image in _images_all(store):
        tags, digests = image_tags(store, image.id)
        if (
            dangling
            and tags
            or until is not None
            and image.created > until
            or not filter_labels(filters, image.labels)
            or filters.get("label!")
            and filter_labels(filters, image.labels, "label!")
        ):
            continue
        for ref in tags + digests or [image.id]:
            try:
                deleted += image_remove(store, ref, in_use)
            except (Conflict, NotFound):
                continue
    freed = sum(sizes.get(row.get("Deleted", ""), 0) for row in deleted)
    freed += content_collect(store, in_use)
    event_emit(store, "image", "prune", "", {"reclaimed": str(freed)})
    return {"ImagesDeleted": deleted or None, "SpaceReclaimed": freed}


# -- collecting ---------------------------------------------------------------


def content_collect(store: Store, in_use: Callable, attempts: int = 1) -> int:
    """Remove layers, blobs and directories that no row names; the bytes that this freed.

    Does nothing while somebody adds content: the next collection finds the same. `attempts` is for
    after a failure, as a worker that has just answered may hold the lease for one moment more.
    """
    for attempt in range(attempts):
        if attempt:
            time.sleep(0.02)
        with content_alone(store) as alone:
            if alone:
                return _collect_alone(store, in_use)
    return 0


def _collect_alone(store: Store, in_use: Callable) -> int:
    stray = content_drop(store, [])
    with store.write() as db:
        freed = _layers_unnamed(db, in_use())
    if freed:
        content_drop(store, freed)
    known = {layer_name(row[0]) for row in store.rows("SELECT n FROM layers")}
    for name in os.listdir(store.path("layers")):
        if name not in known:
            _directory_drop(store, name)
    return stray + sum(row[2] for row in freed)


def _layers_unnamed(db: Any, uses: list) -> list:
    """Delete the rows of layers that nothing needs any more: [(n, chain id, size)]."""
    db.execute("CREATE TEMP TABLE IF NOT EXISTS used_layers(n INTEGER PRIMARY KEY)")
    db.execute("DELETE FROM used_layers")
    db.executemany(
        "INSERT OR IGNORE INTO used_layers VALUES(?)", [(row[3],) for row in uses if row[3]]
    )
    db.execute("INSERT OR IGNORE INTO used_layers SELECT layer FROM images WHERE layer IS NOT NULL")
    freed: list = []
    while True:
        rows = db.execute(
            "SELECT n, chain_id, size FROM layers WHERE n NOT IN (SELECT n FROM used_layers)"
            " AND n NOT IN (SELECT parent FROM layers WHERE parent IS NOT NULL)"
        ).fetchall()
        if not rows:
            return freed
        db.executemany("DELETE FROM layers WHERE n=?", [(row[0],) for row in rows])
        freed += rows


def content_drop(store: Store, freed: list) -> int:
    """Remove the directories of deleted layers, and every blob that nothing names; its bytes."""
    for number, _chain, _size in freed:
        _directory_drop(store, layer_name(number))
    named = {row[0] for row in store.rows("SELECT blob FROM layers")}
    for image, manifest in store.rows("SELECT id, manifest FROM images"):
        named |= {image, manifest}
        named |= manifest_blobs(store, manifest)
    total = 0
    for name in os.listdir(store.path("blobs", "sha256")):
        if "sha256:" + name not in named:
            total += blob_size(store, "sha256:" + name)
            os.unlink(store.path("blobs", "sha256", name))
    return total


def manifest_blobs(store: Store, manifest: str) -> set:
    """The digests of the layers that a stored manifest lists; none where it is gone."""
    try:
        layers = json_parse(blob_document(store, manifest)).get("layers") or ()
        return {layer["digest"] for layer in layers}
    except (NotFound, ValueError, KeyError, TypeError, AttributeError):
        return set()


def _directory_drop(store: Store, name: str) -> None:
    """Out of the way first: half a layer must never stand under its number."""
    away = store.path("tmp", f"{LEASE_PREFIX}{name}-{os.urandom(4).hex()}")
    try:
        os.rename(store.path("layers", name), away)
    except FileNotFoundError:
        return
    tree_remove(away)


# =============================================================================
# changes -- lines of a Dockerfile that change an image's configuration: -c, --change
# =============================================================================
# Runs in: api, cli.   Refs: Dockerfile reference, moby v28.5.2 builder/dockerfile, buildkit
# instructions
# `import`, `commit` and `from-host` take instructions that only change the configuration. They are
# applied in order to one dict in Docker's spelling; variables come from the Env that is there by
# then, and nowhere else. A text may hold several lines and comments, as it is a small Dockerfile.

#: Which may be in ONBUILD beside all others, with the words that refuse it.
ONBUILD_REFUSED = {
    "ONBUILD": "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed",
    "MAINTAINER": "MAINTAINER isn't allowed as an ONBUILD trigger",
    "FROM": "FROM isn't allowed as an ONBUILD trigger",
}
HEALTH_FLAGS = {
    "interval": "Interval",
    "timeout": "Timeout",
    "start-period": "StartPeriod",
    "start-interval": "StartInterval",
}
HEALTH_FLAG_MIN = 1_000_000  # ns, for what is not 0


def changes_apply(settings: dict, changes: Iterable[str]) -> dict:
    """The settings ({"Cmd": [...], "Env": [...], ...}) with the instructions applied; a new dict.

    InvalidParameter in Docker's words.
    """
    settings = {
        key: (value.copy() if isinstance(value, (dict, list)) else value)
        for key, value in settings.items()
    }
    changes = list(changes)
    lines = _lines("\n".join(changes))
    if changes and not lines:
        raise InvalidParameter("file with no instructions")
    for word, _rest in lines:
        if word.upper() not in CHANGES:
            raise InvalidParameter(f"{word} is not a valid change command")
    state = {"cmd_set": False}
    for word, rest in lines:
        CHANGES[word.upper()](settings, rest, state)
    return settings


def _lines(text: str) -> list:
    """[(word, rest)] of each instruction: comments left out, continued lines joined."""
    found, open_line = [], ""
    for line in text.split("\n"):
        line = line.rstrip("\r")
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if line.rstrip(" \t").endswith("\\"):
            open_line += line.rstrip(" \t")[:-1]
            continue
        word, _, rest = (open_line + line).strip().partition(" ")
        open_line = ""
        if "\t" in word:
            word, _, rest = (word + " " + rest).partition("\t")
        found.append((word, rest.strip()))
    if open_line.strip():
        word, _, rest = open_line.strip().partition(" ")
        found.append((word, rest.strip()))
    return found


def _environ(settings: dict) -> dict:
    return key_values(settings.get("Env") or ())


def _expand(settings: dict, text: str) -> str:
    """A text without its quotes, its variables replaced; white space in it stays as it is."""
    kept, quoted, escaped = "", "", False
    for char in text:
        kept += "\\" + char if char in " \t" and not quoted and not escaped else char
        escaped = char == "\\" and not escaped and quoted != "'"
        if char in "\"'" and quoted in ("", char) and not kept.endswith("\\" + char):
            quoted = "" if quoted else char
    return "".join(shell_split(kept, _environ(settings)))


def _json_words(text: str) -> list | None:
    """The words of the JSON form, None where the text is not one."""
    if text[:1] != "[":
        return None
    words, is_shell = command_parse(text)
    return None if is_shell else words


def _raw_words(text: str) -> list:
    """Words with their quotes and backslashes still in them."""
    words, word, quoted, at = [], "", "", 0
    while at < len(text):
        char, at = text[at], at + 1
        if char == "\\" and quoted != "'" and at < len(text):
            word, at = word + char + text[at], at + 1
        elif quoted:
            word, quoted = word + char, "" if char == quoted else quoted
        elif char in " \t":
            words, word = (words + [word], "") if word else (words, "")
        else:
            word, quoted = word + char, char if char in "\"'" else ""
    return words + [word] if word else words


def _pairs(settings: dict, text: str, name: str) -> list:
    """[(key, value)] of ENV and LABEL: "a=1 b=2", or the old form "a the rest"."""
    words = _raw_words(text)
    if not words:
        raise InvalidParameter(f"{name} requires at least one argument")
    if "=" not in words[0]:
        if len(words) < 2:
            raise InvalidParameter(f"{name} must have two arguments")
        key, _, value = text.replace("\t", " ", 1).partition(" ")
        pairs = [(key, value.strip())]
    else:
        for word in words:
            if "=" not in word:
                raise InvalidParameter(
                    f"Syntax error - can't find = in {quote(word)}. Must be of the form: name=value"
                )
        pairs = [(word.partition("=")[0], word.partition("=")[2]) for word in words]
    pairs = [(_expand(settings, key), _expand(settings, value)) for key, value in pairs]
    if not all(key for key, _value in pairs):
        raise InvalidParameter(f"{name} names can not be blank")
    return pairs


def _one(rest: str, name: str) -> str:
    if not rest:
        raise InvalidParameter(f"{name} requires exactly one argument")
    return rest


def _change_cmd(settings: dict, rest: str, state: dict) -> None:
    settings["Cmd"] = command_parse(rest)[0]
    state["cmd_set"] = bool(settings["Cmd"])


def _change_entrypoint(settings: dict, rest: str, state: dict) -> None:
    settings["Entrypoint"] = command_parse(rest)[0]
    if not state["cmd_set"]:  # the old Cmd was made for the old Entrypoint
        settings.pop("Cmd", None)


def _change_env(settings: dict, rest: str, _state: dict) -> None:
    pairs = _pairs(settings, rest, "ENV")
    settings["Env"] = env_merge(
        settings.get("Env") or [], [f"{key}={value}" for key, value in pairs]
    )


def _change_expose(settings: dict, rest: str, _state: dict) -> None:
    words = shell_split(rest, _environ(settings))
    if not words:
        raise InvalidParameter("EXPOSE requires at least one argument")
    ports = settings.setdefault("ExposedPorts", {})
    for word in words:
        span, _, proto = word.partition("/")
        proto = proto.lower() or "tcp"
        first, _, last = span.rpartition(":")[2].partition("-")
        numbers = [
            int(text) if text.isdigit() and int(text) < 65536 else -1
            for text in (first, last or first)
        ]
        if min(numbers) < 0 or numbers[0] > numbers[1]:
            raise InvalidParameter(f"invalid containerPort: {span}")
        if proto not in ("tcp", "udp", "sctp"):
            raise InvalidParameter(f"invalid proto: {proto}")
        ports.update((f"{port}/{proto}", {}) for port in range(numbers[0], numbers[1] + 1))


def _change_healthcheck(settings: dict, rest: str, _state: dict) -> None:
    health: dict = {}
    words = rest.split(None, 1)
    while words and words[0].startswith("--"):
        _health_flag(health, words[0])
        words = words[1].split(None, 1) if len(words) > 1 else []
    if not words:
        raise InvalidParameter("HEALTHCHECK requires at least one argument")
    kind, command = words[0].upper(), words[1] if len(words) > 1 else ""
    if kind == "NONE":
        if command:
            raise InvalidParameter("HEALTHCHECK NONE takes no arguments")
        health = {"Test": ["NONE"]}
    elif kind == "CMD":
        listed = _json_words(command)
        if not command or listed == []:
            raise InvalidParameter("Missing command after HEALTHCHECK CMD")
        health["Test"] = ["CMD", *listed] if listed else ["CMD-SHELL", command]
    else:
        raise InvalidParameter(f"Unknown type {quote(kind)} in HEALTHCHECK (try CMD)")
    settings["Healthcheck"] = health


def _health_flag(health: dict, word: str) -> None:
    name, equals, value = word[2:].partition("=")
    if name not in HEALTH_FLAGS and name != "retries":
        raise InvalidParameter(f"unknown flag: --{name}")
    if not equals:
        raise InvalidParameter(f"missing a value on flag: --{name}")
    if name == "retries":
        if not value.lstrip("-+").isdigit():
            raise InvalidParameter(f"strconv.ParseInt: parsing {quote(value)}: invalid syntax")
        if int(value) < 0:
            raise InvalidParameter(f"--retries cannot be negative ({int(value)})")
        health["Retries"] = int(value)
        return
    ns = duration_parse(value)
    if 0 < ns < HEALTH_FLAG_MIN or ns < 0:
        raise InvalidParameter(
            f'Interval "{name}" cannot be less than {duration_text(HEALTH_FLAG_MIN)}'
        )
    health[HEALTH_FLAGS[name]] = ns


def _change_label(settings: dict, rest: str, _state: dict) -> None:
    settings.setdefault("Labels", {}).update(_pairs(settings, rest, "LABEL"))


def _change_onbuild(settings: dict, rest: str, _state: dict) -> None:
    if not rest:
        raise InvalidParameter("ONBUILD requires at least one argument")
    refused = ONBUILD_REFUSED.get(rest.split(None, 1)[0].upper())
    if refused:
        raise InvalidParameter(refused)
    settings.setdefault("OnBuild", []).append(rest)


def _change_stopsignal(settings: dict, rest: str, _state: dict) -> None:
    word = _expand(settings, _one(rest, "STOPSIGNAL"))
    signal_number(word)
    settings["StopSignal"] = word


def _change_user(settings: dict, rest: str, _state: dict) -> None:
    settings["User"] = _expand(settings, _one(rest, "USER"))


def _change_volume(settings: dict, rest: str, _state: dict) -> None:
    words = _json_words(rest)
    if words is None:
        words = rest.split()
    if not words:
        raise InvalidParameter("VOLUME requires at least one argument")
    for word in words:
        path = _expand(settings, word).strip()
        if not path:
            raise InvalidParameter("VOLUME specified can not be an empty string")
        settings.setdefault("Volumes", {})[path] = {}


def _change_workdir(settings: dict, rest: str, _state: dict) -> None:
    path = _expand(settings, _one(rest, "WORKDIR"))
    path = os.path.normpath(os.path.join("/", settings.get("WorkingDir") or "", path))
    settings["WorkingDir"] = "/" + path.lstrip("/")  # POSIX lets "//" stand


# fmt: off
CHANGES = {
    "CMD":         _change_cmd,
    "ENTRYPOINT":  _change_entrypoint,
    "ENV":         _change_env,
    "EXPOSE":      _change_expose,
    "HEALTHCHECK": _change_healthcheck,
    "LABEL":       _change_label,
    "ONBUILD":     _change_onbuild,
    "STOPSIGNAL":  _change_stopsignal,
    "USER":        _change_user,
    "VOLUME":      _change_volume,
    "WORKDIR":     _change_workdir,
}
# fmt: on


# =============================================================================
# images_archive -- images as files: load, save, import
# =============================================================================
# Runs in: api, cli; unpacking in worker.   Refs: image-spec image-layout.md, moby v28.5.2
# image/tarexport
# Two kinds of archive are read, and one is written that is both: docker-archive (manifest.json
# names configs, layers and tags) and OCI layout (index.json, blobs by digest). manifest.json
# decides where both are; index.json then still gives the manifest whose config it is, so that its
# bytes, and its digest, live on. A file that can seek is only indexed, and what is needed of it
# read from its place; a pipe, or a compressed archive, is spooled into the lease's directory, every
# file hashed on the way. Both give _Members. Nothing is named before all is there: layers are
# registered together, then each image's rows are one transaction. Layers keep the bytes they came
# with (gzip, zstd, plain); xz and bzip2, which no media type stands for, are stored plain.

ARCHIVE_FILES_MAX = 100_000
MANIFEST_TYPES = (MEDIA_MANIFEST, "application/vnd.docker.distribution.manifest.v2+json")
INDEX_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
CONFIG_TYPES = (MEDIA_CONFIG, "application/vnd.docker.container.image.v1+json")
IMAGE_NAME = "io.containerd.image.name"
REF_NAME = "org.opencontainers.image.ref.name"
COLLECT_ATTEMPTS = 10
_LINKS_MAX = 16
_INDEX_DEPTH_MAX = 4


class _Member:
    """A file of an archive: where its bytes are, and their digest once it is known."""

    __slots__ = ("at", "digest", "fd", "path", "size")

    def __init__(
        self, size: int, *, fd: int = -1, at: int = 0, path: str = "", digest: str = ""
    ) -> None:
        self.size = size
        self.fd = fd  # of the archive, with the offset in `at`; or
        self.at = at
        self.path = path  # a spooled file
        self.digest = digest

    def stream(self) -> tuple:
        """(stream of the bytes, descriptor to be closed or -1)."""
        if self.path:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            return file_stream(fd), fd
        return span_stream(self.fd, self.at, self.size), -1

    def document(self) -> bytes:
        if self.size > BLOB_DOCUMENT_MAX:
            raise InvalidParameter("invalid archive: a document is too large")
        read, fd = self.stream()
        try:
            parts = []
            while True:
                parts.append(read(STREAM_CHUNK))
                if not parts[-1]:
                    return b"".join(parts)
        finally:
            if fd >= 0:
                os.close(fd)

    def store(self, lease: content_lease, digest: str = "", *, as_layer: bool = True) -> tuple:
        """Put it into the store as a blob; (digest, size, media type of a layer)."""
        read, fd = self.stream()
        try:
            head, read = stream_peek(read, COMPRESSION_SNIFF)
            kind = compression_of(head)
            if as_layer and kind not in MEDIA_COMPRESSED and not digest:
                read, kind = decompressed(read)[1], ""
            got, size = blob_put(lease, read, digest)
            return got, size, MEDIA_LAYER + MEDIA_COMPRESSED.get(kind, "")
        finally:
            if fd >= 0:
                os.close(fd)


class _Archive:
    """The files of an archive by their cleaned names."""

    def __init__(self) -> None:
        self.members: dict = {}
        self.links: dict = {}

    def find(self, name: str) -> _Member | None:
        """The file of that name, links inside the archive followed."""
        key = name_clean(name.encode("utf-8", "surrogateescape"))
        for _ in range(_LINKS_MAX):
            if key in self.members:
                return self.members[key]
            if key not in self.links:
                return None
            key = self.links[key]
        return None

    def blob(self, digest: str) -> _Member | None:
        """A blob of an OCI layout, by its digest."""
        algorithm, _, encoded = digest_check(digest).partition(":")
        return self.find(f"blobs/{algorithm}/{encoded}")

    def add(self, reader: TarReader, entry: TarEntry, take: Callable) -> None:
        name = name_clean(entry.name)
        if entry.kind == TAR_FILE:
            self.links.pop(name, None)
            self.members[name] = take(reader, entry)
        elif entry.kind in (TAR_LINK, TAR_SYMLINK):
            base = (
                name.rpartition(b"/")[0] + b"/"
                if entry.kind == TAR_SYMLINK and entry.link[:1] != b"/"
                else b"/"
            )
            self.members.pop(name, None)
            self.links[name] = name_clean(b"/" + base + entry.link)
        if len(self.members) + len(self.links) > ARCHIVE_FILES_MAX:
            raise InvalidParameter("invalid archive: too many files")


def _members_open(lease: content_lease, source: Any) -> _Archive:
    """Index a plain file that can seek, spool anything else."""
    fd = _file_of(source)
    if fd < 0:
        return _members_spool(lease, decompressed(source.read)[1])
    start = os.lseek(fd, 0, os.SEEK_CUR)
    if compression_of(os.pread(fd, COMPRESSION_SNIFF, start)):
        return _members_spool(lease, decompressed(file_stream(fd))[1])
    end = os.fstat(fd).st_size
    archive = _Archive()
    reader = TarReader(file_stream(fd), lambda count: os.lseek(fd, count, os.SEEK_CUR))

    def place(reader: TarReader, entry: TarEntry) -> _Member:
        member = _Member(entry.stored, fd=fd, at=start + reader.position)
        if member.at + member.size > end or entry.sparse is not None:
            raise InvalidParameter(
                "invalid tar archive: "
                + ("unexpected EOF" if entry.sparse is None else "a sparse file")
            )
        return member

    for entry in reader.entries():
        archive.add(reader, entry, place)
    return archive


def _file_of(source: Any) -> int:
    """The descriptor of a regular file behind a file object, else -1."""
    try:
        fd = source.fileno()
        return fd if os.fstat(fd).st_mode & 0o170000 == 0o100000 else -1
    except (AttributeError, OSError, ValueError):
        return -1


def _members_spool(lease: content_lease, read: Callable) -> _Archive:
    archive = _Archive()

    def spool(reader: TarReader, entry: TarEntry) -> _Member:
        if entry.sparse is not None:
            raise InvalidParameter("invalid tar archive: a sparse file")
        path, digester = (
            f"{lease.directory}/member-{len(archive.members)}-{os.urandom(4).hex()}",
            hasher(),
        )
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            for _offset, data in reader.pieces(entry):
                digester.update(data)
                write_all(fd, data)
        finally:
            os.close(fd)
        return _Member(entry.size, path=path, digest="sha256:" + digester.hexdigest())

    with no_space("read the archive"):
        reader = TarReader(read)
        for entry in reader.entries():
            archive.add(reader, entry, spool)
        reader.drain()
    return archive


# -- load ---------------------------------------------------------------------


class _Plan:
    """An image to be loaded: its config, its layers' members, its names, its manifest if any."""

    __slots__ = ("config", "document", "items", "layers", "manifest", "names")

    def __init__(self, config: bytes, layers: list, names: list, manifest: bytes = b"") -> None:
        self.config = config
        self.document = image_config_parse(config)
        self.layers = layers  # [(member or None, digest or "", media type or "")], lowest first
        self.names = names  # References with a tag
        self.manifest = manifest
        self.items: list = []
        expected = image_diff_ids(self.document)
        if len(layers) != len(expected):
            raise InvalidParameter(
                f"invalid manifest, layers length mismatch: expected {len(layers)},"
                f" got {len(expected)}"
            )
        if self.document.get("os") not in (None, "", "linux"):
            raise InvalidParameter(f"cannot load {self.document['os']} image on linux")

    @property
    def platform(self) -> dict:
        return {
            "os": self.document.get("os") or "linux",
            "architecture": self.document.get("architecture") or "",
            "variant": self.document.get("variant") or "",
        }


def images_load(
    store: Store,
    source: Any,
    in_use: Callable,
    *,
    platform: dict | None = None,
    quiet: bool = True,
    run_worker: Callable | None = None,
) -> Iterator[dict]:
    """Load every image of an archive (a file object, seekable or not); Docker's messages, in order.

    {"stream": "Loaded image: busybox:latest\\n"}, and progress of layers unless quiet. Raises
    InvalidParameter for a damaged or foreign archive; then nothing of it is kept.
    """
    if leases_left(store):
        content_collect(store, in_use)
    try:
        with content_lease(store) as lease:
            archive = _members_open(lease, source)
            plans = _plans(archive, platform)
            yield from _layers_load(lease, plans, quiet, run_worker)
            for plan in plans:
                yield from _image_load(lease, plan)
    except BaseException:
        content_collect(store, in_use, COLLECT_ATTEMPTS)
        raise


def _layers_load(
    lease: content_lease, plans: list, quiet: bool, run_worker: Callable | None
) -> Iterator[dict]:
    items: list = []
    for plan in plans:
        parent = ""
        for diff_id, (member, digest, media) in zip(image_diff_ids(plan.document), plan.layers):
            item = LayerItem(diff_id, parent, _fetcher(lease, member, digest, media, diff_id))
            if member and member.fd >= 0:
                item.source = (member.fd, member.at, member.size)
            parent = item.chain_id
            plan.items.append(item)
            new = not layer_number(lease.store, item.chain_id)
            if new and not quiet and member:
                items.append((item, member))
                yield _layer_progress(item, 0, member.size)
    layers_register(lease, [item for plan in plans for item in plan.items], run_worker=run_worker)
    for item, member in items:
        yield _layer_progress(item, member.size, member.size)


def _fetcher(
    lease: content_lease, member: _Member | None, digest: str, media: str, diff_id: str
) -> Callable:
    def fetch() -> tuple:
        if member is None:
            raise InvalidParameter(f"invalid archive: layer {digest or diff_id} is missing")
        got, size, told = member.store(lease, digest)
        if told == MEDIA_LAYER and got != diff_id:
            raise InvalidParameter(f'invalid diffID for layer: expected "{diff_id}", got "{got}"')
        return got, size, media or told

    return fetch


def _layer_progress(item: LayerItem, current: int, total: int) -> dict:
    return {
        "status": "Loading layer",
        "progressDetail": {"current": current, "total": total},
        "id": id_short(item.diff_id[7:]),
    }


def _image_load(lease: content_lease, plan: _Plan) -> Iterator[dict]:
    store = lease.store
    manifest = ""
    if plan.manifest:
        # Layers that were there before, perhaps compressed in another way, did not need these
        # blobs; the manifest does, for `save` and `push` to give the same bytes.
        for member, digest, _media in plan.layers:
            if member and not _blob_is_there(store, digest):
                member.store(lease, digest)
        manifest = blob_put_bytes(lease, plan.manifest)
    names = [reference_full(name) for name in plan.names]
    before = {name: store.row("SELECT image FROM tags WHERE name=?", name) for name in names}
    image = image_create(lease, plan.config, manifest=manifest, names=names)
    for name, full in zip(plan.names, names):
        if before[full] and before[full][0] != image:
            yield {
                "stream": f"The image {name.familiar} already exists, renaming the old one with ID"
                f" {before[full][0]} to empty string\n"
            }
        yield {"stream": f"Loaded image: {name.familiar}\n"}
    if not names:
        yield {"stream": f"Loaded image ID: {image}\n"}
    image_event(store, "load", image, (plan.document.get("config") or {}).get("Labels") or {})


def _blob_is_there(store: Store, digest: str) -> bool:
    try:
        blob_size(store, digest)
        return True
    except NotFound:
        return False


def _plans(archive: _Archive, platform: dict | None) -> list:
    manifest = archive.find("manifest.json")
    if manifest:
        plans = _plans_docker(archive, _document(manifest, "manifest.json"))
        plans = [plan for plan in plans if not platform or platform_rank(plan.platform, platform)]
    elif archive.find("index.json"):
        plans = _plans_oci(archive, platform)
    else:
        raise InvalidParameter("invalid archive: does not contain a manifest.json")
    if platform and not plans:
        raise NotFound(f"no image for platform {platform_text(platform)} in the archive")
    return plans


def _document(member: _Member, name: str) -> Any:
    try:
        return json_parse(member.document())
    except ValueError as error:
        raise InvalidParameter(f"invalid archive: failed to decode {name}: {error}") from None


def _plans_docker(archive: _Archive, rows: Any) -> list:
    if rows is None:
        raise InvalidParameter("invalid manifest, manifest cannot be null (but can be [])")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InvalidParameter(
            "invalid archive: failed to decode manifest.json: not a list of objects"
        )
    manifests = _manifests_by_config(archive)
    plans = []
    for row in rows:
        names, layers = row.get("RepoTags") or [], row.get("Layers") or []
        if not all(isinstance(text, str) for text in [*names, *layers, row.get("Config")]):
            raise InvalidParameter(
                "invalid archive: failed to decode manifest.json: a field has the wrong type"
            )
        config = archive.find(row["Config"])
        if config is None:
            raise InvalidParameter(
                f"invalid archive: {name_shown(row['Config'].encode())} is missing"
            )
        data = config.document()
        listed = [(archive.find(name), "", "") for name in layers]
        own, described = manifests.get(digest_of(data), (b"", []))
        if own and len(described) == len(listed):
            listed = [
                (member or archive.blob(layer["digest"]), layer["digest"], layer["mediaType"])
                for (member, _digest, _media), layer in zip(listed, described)
            ]
        else:
            own = b""
        plans.append(_Plan(data, listed, [_tag_parse(name) for name in names], own))
    return plans


def _tag_parse(text: str) -> Reference:
    name = reference_parse(text)
    if not name.tag:
        raise InvalidParameter(f"invalid tag {quote(text)}")
    return Reference(name.domain, name.path, name.tag)


def _manifests_by_config(archive: _Archive) -> dict:
    """{config digest: (manifest bytes, layer descriptors)} of index.json; {} if anything is odd.

    Only those whose blobs are all in the archive: Docker 25 writes some over layers that are not.
    """
    found: dict = {}
    index = archive.find("index.json")
    if not index:
        return found
    try:
        for descriptor in _document(index, "index.json").get("manifests") or ():
            member = archive.blob(descriptor["digest"])
            if descriptor.get("mediaType") not in MANIFEST_TYPES or member is None:
                continue
            data = member.document()
            config, layers = _manifest_parse(data, descriptor)
            if all(archive.blob(layer["digest"]) for layer in layers):
                found[config["digest"]] = (data, layers)
    except (InvalidParameter, AttributeError, KeyError, TypeError):
        return {}
    return found


def _manifest_parse(data: bytes, descriptor: dict) -> tuple:
    """(config descriptor, layer descriptors) of a manifest, verified against its own descriptor."""
    if digest_of(data) != descriptor["digest"]:
        raise InvalidParameter(
            f"content digest mismatch: expected {descriptor['digest']}, got {digest_of(data)}"
        )
    try:
        manifest = json_parse(data)
        config, layers = manifest["config"], manifest["layers"]
        for part in [config, *layers]:
            digest_check(part["digest"])
            if not isinstance(part["mediaType"], str) or not isinstance(part["size"], int):
                raise TypeError
    except (ValueError, KeyError, TypeError):
        raise InvalidParameter(f"invalid manifest {descriptor['digest']}") from None
    if config["mediaType"] not in CONFIG_TYPES:
        raise InvalidParameter(
            f"{descriptor['digest']} is no container image: its config is {config['mediaType']!r}"
        )
    return config, layers


def _plans_oci(archive: _Archive, platform: dict | None) -> list:
    index = _document(archive.find("index.json"), "index.json")
    groups: dict = {}
    for descriptor in _descriptors(index, "index.json"):
        groups.setdefault(_oci_name(descriptor) or descriptor["digest"], []).append(descriptor)
    plans: dict = {}
    for descriptors in groups.values():
        chosen = _platform_choose(
            archive, descriptors, platform or platform_host(), bool(platform), 0
        )
        for descriptor in chosen:
            name = _oci_name(descriptors[0])
            plan = plans.get(descriptor["digest"])
            if plan is None:
                plan = plans[descriptor["digest"]] = _plan_oci(archive, descriptor)
            if name:
                plan.names.append(_tag_parse(name))
    return list(plans.values())


def _descriptors(index: Any, name: str) -> list:
    found = index.get("manifests") if isinstance(index, dict) else None
    if not isinstance(found, list):
        raise InvalidParameter(f"invalid archive: failed to decode {name}: no list of manifests")
    for descriptor in found:
        if (
            not isinstance(descriptor, dict)
            or not isinstance(descriptor.get("digest"), str)
            or not isinstance(descriptor.get("annotations") or {}, dict)
            or not isinstance(descriptor.get("platform") or {}, dict)
        ):
            raise InvalidParameter(
                f"invalid archive: failed to decode {name}: a field has the wrong type"
            )
    # What buildkit says about an image (provenance, bills of material) is no image.
    return [
        descriptor
        for descriptor in found
        if "vnd.docker.reference.type" not in (descriptor.get("annotations") or {})
    ]


def _oci_name(descriptor: dict) -> str:
    """A full reference: containerd's annotation, or OCI's where it is more than a bare tag."""
    notes = descriptor.get("annotations") or {}
    name = notes.get(IMAGE_NAME) or notes.get(REF_NAME)
    if not isinstance(name, str) or not (":" in name or "/" in name):
        return ""
    return reference_full(reference_tagged(reference_parse(name)))


def _platform_choose(
    archive: _Archive, descriptors: list, want: dict, strict: bool, depth: int
) -> list:
    """The manifests of one name that are for `want`: one, or all where they tell no platform."""
    if depth > _INDEX_DEPTH_MAX:
        raise InvalidParameter("invalid archive: indexes are nested too deeply")
    flat = []
    for descriptor in descriptors:
        if descriptor.get("mediaType") in INDEX_TYPES:
            member = archive.blob(descriptor["digest"])
            if member is None:
                raise InvalidParameter(f"invalid archive: {descriptor['digest']} is missing")
            data = member.document()
            if digest_of(data) != descriptor["digest"]:
                raise InvalidParameter(
                    f"content digest mismatch: expected {descriptor['digest']},"
                    f" got {digest_of(data)}"
                )
            try:
                inner = _descriptors(json_parse(data), descriptor["digest"])
            except ValueError:
                raise InvalidParameter(f"invalid index {descriptor['digest']}") from None
            flat += _platform_choose(archive, inner, want, strict, depth + 1)
        elif archive.blob(descriptor["digest"]):
            flat.append(descriptor)
    if not flat and descriptors:
        raise NotFound(
            f"no matching manifest for {platform_text(want)} in the manifest list entries"
        )
    told = [descriptor for descriptor in flat if descriptor.get("platform")]
    if len(told) < len(flat) or len(flat) == 1 and not strict and not depth:
        return flat
    ranked = max(
        told, key=lambda descriptor: platform_rank(_platform_of(descriptor), want), default=None
    )
    if ranked is None or not platform_rank(_platform_of(ranked), want):
        raise NotFound(
            f"no matching manifest for {platform_text(want)} in the manifest list entries"
        )
    return [ranked]


def _platform_of(descriptor: dict) -> dict:
    told = descriptor.get("platform") or {}
    return {
        key: told.get(key) if isinstance(told.get(key), str) else ""
        for key in ("os", "architecture", "variant")
    }


def _plan_oci(archive: _Archive, descriptor: dict) -> _Plan:
    data = archive.blob(descriptor["digest"]).document()
    config, layers = _manifest_parse(data, descriptor)
    member = archive.blob(config["digest"])
    if member is None:
        raise InvalidParameter(f"invalid archive: {config['digest']} is missing")
    document = member.document()
    if digest_of(document) != config["digest"]:
        raise InvalidParameter(
            f"content digest mismatch: expected {config['digest']}, got {digest_of(document)}"
        )
    return _Plan(
        document,
        [(archive.blob(layer["digest"]), layer["digest"], layer["mediaType"]) for layer in layers],
        [],
        data,
    )


# -- save ---------------------------------------------------------------------


def images_save(store: Store, refs: list, platform: dict | None = None) -> Iterator[bytes]:
    """An archive of images, docker-archive and OCI layout at once, in pieces; the same each time.

    A name without a tag means all tags of its repository. Raises before the first piece is asked
    for where an image is missing.
    """
    chosen = _save_choose(store, refs, platform)
    documents, blobs = _save_documents(store, chosen)
    return _save_pieces(store, chosen, documents, blobs)


def _save_choose(store: Store, refs: list, platform: dict | None) -> dict:
    """{image id: (Image, [References with a tag])}, in the order asked for."""
    chosen: dict = {}
    for ref in refs:
        names: list = []
        try:
            name = reference_parse(ref)
            if not name.tag and not name.digest:
                names = [
                    row[0]
                    for row in store.rows(
                        "SELECT name FROM tags WHERE name GLOB ? ORDER BY name",
                        _glob_escape(name.name) + ":*",
                    )
                ]
            elif (
                name.tag
                and not name.digest
                and store.row("SELECT 1 FROM tags WHERE name=?", reference_full(name))
            ):
                names = [reference_full(name)]
        except InvalidParameter:
            pass  # a full id is no name
        for name in names or [ref]:
            image = image_get(store, name)
            if platform and not platform_rank(image.platform, platform):
                raise NotFound(
                    f"no suitable export target found for platform {platform_text(platform)}"
                )
            tags = chosen.setdefault(image.id, (image, []))[1]
            if names and reference_parse(name) not in tags:
                tags.append(reference_parse(name))
    return chosen


def _glob_escape(text: str) -> str:
    return "".join(f"[{char}]" if char in "*?[" else char for char in text)


def _save_documents(store: Store, chosen: dict) -> tuple:
    """({name: bytes} of the documents, {digest: size} of the blobs)."""
    manifests, rows, index, repositories, blobs = {}, [], [], {}, {}
    for image, tags in chosen.values():
        data = blob_document(store, image.manifest)
        manifest = json_parse(data)
        parts = [manifest["config"], *manifest["layers"]]
        blobs.update((part["digest"], blob_size(store, part["digest"])) for part in parts)
        manifests[image.manifest] = data
        paths = ["blobs/" + layer["digest"].replace(":", "/") for layer in manifest["layers"]]
        diff_ids = image_diff_ids(image.config)
        rows.append(
            {
                "Config": "blobs/" + image.id.replace(":", "/"),
                "RepoTags": [name.familiar for name in tags] or None,
                "Layers": paths,
                "LayerSources": dict(sorted(zip(diff_ids, manifest["layers"]))),
            }
        )
        descriptor = {
            "mediaType": manifest.get("mediaType") or MEDIA_MANIFEST,
            "digest": image.manifest,
            "size": len(data),
        }
        index += [
            {**descriptor, "annotations": {IMAGE_NAME: reference_full(name), REF_NAME: name.tag}}
            for name in tags
        ] or [descriptor]
        for name in tags:
            last = manifest["layers"][-1]["digest"][7:] if paths else ""
            repositories.setdefault(name.familiar_name, {})[name.tag] = last
    documents = {
        "index.json": json_text(
            {"schemaVersion": 2, "mediaType": INDEX_TYPES[0], "manifests": index}
        ),
        "manifest.json": json_text(rows) + "\n",
        "oci-layout": '{"imageLayoutVersion": "1.0.0"}',
    }
    if repositories:
        documents["repositories"] = json_text(repositories) + "\n"
    found = {name: text.encode() for name, text in documents.items()}
    found.update((f"blobs/sha256/{digest[7:]}", data) for digest, data in manifests.items())
    return found, blobs


def _save_pieces(store: Store, chosen: dict, documents: dict, blobs: dict) -> Iterator[bytes]:
    names = {f"blobs/sha256/{digest[7:]}": digest for digest in blobs}
    for name in sorted(["blobs", "blobs/sha256", *documents, *names]):
        entry = TarEntry(name.encode())
        if name in ("blobs", "blobs/sha256"):
            entry.kind, entry.mode = TAR_DIR, 0o755
            yield tar_header(entry)
        elif name in documents:
            data = documents[name]
            entry.size = entry.stored = len(data)
            yield tar_header(entry) + data + tar_padding(len(data))
        else:
            fd = blob_open(store, names[name])
            try:
                yield from file_pack(fd, entry)
            finally:
                os.close(fd)
    yield TAR_END
    for image, _tags in chosen.values():
        image_event(store, "save", image.id, image.labels)


# -- import -------------------------------------------------------------------


def image_import(
    store: Store,
    read: Callable,
    in_use: Callable,
    *,
    name: Reference | None = None,
    message: str = "",
    changes: Iterable[str] = (),
    platform: dict | None = None,
    run_worker: Callable | None = None,
) -> str:
    """Make an image of one layer out of a tar of a root directory, compressed or not; its id."""
    platform = platform or platform_host()
    if platform["os"] != "linux":
        raise InvalidParameter(f'operating system "{platform["os"]}" is not supported')
    settings = changes_apply({}, changes)
    created = time_rfc3339(time_now())
    if leases_left(store):
        content_collect(store, in_use)
    try:
        with content_lease(store) as lease:
            blob, size, media, diff_id = _layer_take(lease, read)
            item = LayerItem(diff_id, "", lambda: (blob, size, media))
            layers_register(lease, [item], run_worker=run_worker)
            config = {
                "architecture": platform["architecture"],
                "comment": message,
                "config": settings,
                "created": created,
                "docker_version": DOCKER_VERSION,
                "history": [{"created": created, "comment": message}],
                "os": platform["os"],
                "rootfs": {"type": "layers", "diff_ids": [diff_id]},
                "variant": platform["variant"],
            }
            for key in ("comment", "variant"):
                if not config[key]:
                    del config[key]
            full = [reference_full(reference_tagged(name))] if name else []
            image = image_create(lease, json_text(config).encode(), names=full, tagged=time_now())
    except BaseException:
        content_collect(store, in_use, COLLECT_ATTEMPTS)
        raise
    if name:
        image_event(
            store, "tag", image, settings.get("Labels") or {}, reference_tagged(name).familiar
        )
    image_event(store, "import", image, settings.get("Labels") or {})
    return image


def _layer_take(lease: content_lease, read: Callable) -> tuple:
    """Store a layer as it comes; (blob, size, media type, diff id)."""
    head, read = stream_peek(read, COMPRESSION_SNIFF)
    kind = compression_of(head)
    if kind not in MEDIA_COMPRESSED:
        read, kind = decompressed(read)[1], ""
    blob, size = blob_put(lease, read)
    media = MEDIA_LAYER + MEDIA_COMPRESSED[kind]
    if not kind:
        return blob, size, media, blob
    digester = hasher()
    fd = blob_open(lease.store, blob)
    try:
        plain = decompressed(file_stream(fd))[1]
        while True:
            data = plain(STREAM_CHUNK)
            if not data:
                return blob, size, media, "sha256:" + digester.hexdigest()
            digester.update(data)
    finally:
        os.close(fd)


# =============================================================================
# harvest -- an image made of the host's own programs: ELF closure and data files
# =============================================================================
# Runs in: cli.   Refs: elf(5), ld.so(8), ldconfig(8), glibc sysdeps/generic/dl-cache.h, musl
# ldso/dynlink.c
# A host without any registry can start at once: programs that it has, with all that they need,
# become the tar of a root directory, which `import` turns into an image. Nothing is executed to
# find out; ELF headers tell the loader (PT_INTERP) and the libraries (DT_NEEDED), which are looked
# for where that loader would: RPATH and RUNPATH with $ORIGIN, glibc's ld.so.cache or musl's path
# file, then the built-in directories. Scripts bring their interpreters, Python its standard
# library, a few libraries and programs the data of HARVEST_DATA. What is opened at run time by a
# name made up then (plug-ins) is not found. Paths are the host's. Links between directories stay
# links (/bin -> usr/bin); a file's link is replaced by what it leads to, under its own name; the
# same file under several names is packed once, as hard links.

HARVEST_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
HARVEST_DIRS = {
    "/dev": 0o755,
    "/etc": 0o755,
    "/home": 0o755,
    "/proc": 0o555,
    "/root": 0o700,
    "/run": 0o755,
    "/sys": 0o555,
    "/tmp": 0o1777,
    "/usr": 0o755,
    "/var": 0o755,
    "/var/tmp": 0o1777,
}
#: Files that most programs expect; those of the host would tell of its users.
HARVEST_FILES = {
    "/etc/passwd": "root:x:0:0:root:/root:/bin/sh\n"
    "nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
    "/etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n",
}
#: What comes along with a library or program whose name starts so: patterns of paths.
HARVEST_DATA = (
    (
        "libc.so.6",
        (
            "/etc/ld.so.cache",
            "/etc/ld.so.conf",
            "/etc/ld.so.conf.d/*.conf",
            "/usr/lib/locale/C.utf8",
            "{dir}/libnss_files.so.2",
            "{dir}/libnss_dns.so.2",
            "{dir}/libgcc_s.so.1",
        ),
    ),
    ("libncurses", ("{terminfo}",)),
    (
        "libssl",
        ("/etc/ssl/certs/ca-certificates.crt", "/etc/ssl/openssl.cnf", "/usr/lib/ssl/openssl.cnf"),
    ),
    ("libtinfo", ("{terminfo}",)),
    (
        "perl",
        ("/usr/lib/*-linux-*/perl-base", "/usr/share/perl/5.*", "/usr/lib/*-linux-*/perl/5.*"),
    ),
)
HARVEST_TERMS = (
    "d/dumb",
    "l/linux",
    "s/screen*",
    "t/tmux*",
    "v/vt100",
    "v/vt220",
    "x/xterm",
    "x/xterm-*color",
)
TERMINFO_DIRS = ("/usr/share/terminfo", "/lib/terminfo", "/etc/terminfo")
#: Parts of Python's library that no program needs at run time.
PYTHON_UNUSED = (
    "config-*",
    "dist-packages",
    "ensurepip",
    "idlelib",
    "site-packages",
    "test",
    "tests",
    "tkinter",
    "turtledemo",
)
LIBRARY_DIRS_MUSL = ("/lib", "/usr/local/lib", "/usr/lib")
LIBRARY_DIRS = ("/lib", "/usr/lib", "/lib64", "/usr/lib64")
_LD_CACHE_MAGIC = b"glibc-ld.so.cache1.1"
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NEEDED, _DT_STRTAB, _DT_RPATH, _DT_RUNPATH = 1, 5, 15, 29
_SCRIPTS_MAX = 8  # interpreters of interpreters


def harvest_archive(programs: list) -> Iterator[bytes]:
    """The tar of a root directory with these programs (names or paths) and all that they need.

    NotFound for a program or library that this host does not have, before the first piece.
    """
    harvest = _Harvest()
    for program in programs:
        harvest.program(program_find(program), 0)
    return harvest.pieces()


def harvest_changes(programs: list) -> list:
    """The instructions that make the image of harvest_archive() start well: ENV PATH and CMD."""
    found = [program_find(program) for program in programs]
    directories = HARVEST_PATH.split(":")
    extra = list(dict.fromkeys(os.path.dirname(path) for path in found))
    extra = [path for path in extra if path not in directories]
    shells = [path for path in found if os.path.basename(path) in ("sh", "bash", "dash", "ash")]
    command = json_text([(shells or found)[0]])
    return ["ENV PATH=" + ":".join(directories + extra), "CMD " + command]


def program_find(name: str) -> str:
    """The absolute path of a program, links in its directory kept; NotFound where there is none."""
    if "/" in name:
        candidates = [os.path.abspath(name)]
    else:
        path = (os.environ.get("PATH") or "") + ":" + HARVEST_PATH
        # The shims of version managers only work beside these.
        candidates = [
            f"{directory}/{name}"
            for directory in path.split(":")
            if directory[:1] == "/" and os.path.basename(directory) != "shims"
        ]
    for candidate in candidates:
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return candidate
    raise NotFound(
        f"no program {name!r} on this host" + ("" if "/" in name else ": it is not in PATH")
    )


class _Harvest:
    """What is gathered: {path in the image: source file, ("link", target), or bytes}."""

    def __init__(self) -> None:
        self.files: dict = {}
        self.links: dict = {}
        self.seen: set = set()
        self.cache: dict | None = None
        self.is_musl = False  # of the program at hand
        self.made = {path: text.encode() for path, text in HARVEST_FILES.items()}
        for name in ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"):
            if os.path.islink(name) and os.path.isdir(name):
                self.place(name + "/.")

    # ---- where things go

    def place(self, path: str) -> str:
        """The path of a file with links in its directory resolved; these links come along."""
        parts = path.strip("/").split("/")
        done, count = "", 0
        while len(parts) > 1:
            part = parts.pop(0)
            if part in ("", "."):
                continue
            if part == "..":
                done = done.rpartition("/")[0]
                continue
            step = f"{done}/{part}"
            if not os.path.islink(step):
                done = step
                continue
            count += 1
            if count > 40:
                raise EngineError(f"{path}: too many levels of symbolic links")
            target = os.readlink(step)
            self.links[step] = target
            parts = target.strip("/").split("/") + parts
            done = "" if target.startswith("/") else done
        return f"{done}/{parts[0]}"

    def file(self, path: str) -> str:
        """Take a file along under its own name; where it stands in the image."""
        place = self.place(path)
        if place not in self.made:
            self.files[place] = os.path.realpath(place)
        return place

    def data(self, pattern: str) -> None:
        """Take along what a pattern matches: files, and directories with all that is in them."""
        from glob import glob

        for path in glob(pattern):
            if os.path.isdir(path):
                for top, directories, names in os.walk(path):
                    directories.sort()
                    for name in names:
                        if os.path.isfile(f"{top}/{name}"):
                            self.file(f"{top}/{name}")
            elif os.path.isfile(path):
                self.file(path)

    def companions(self, path: str) -> None:
        """The data that a library or program is known to need."""
        name, directory = os.path.basename(path), os.path.dirname(path)
        for prefix, patterns in HARVEST_DATA:
            if not name.startswith(prefix):
                continue
            for pattern in patterns:
                if pattern == "{terminfo}":
                    for base in TERMINFO_DIRS:
                        for term in HARVEST_TERMS:
                            self.data(f"{base}/{term}")
                elif pattern.startswith("{dir}"):
                    library = pattern.replace("{dir}", directory)
                    if os.path.isfile(library):
                        self.elf(library, ())
                else:
                    self.data(pattern)

    # ---- programs

    def program(self, path: str, depth: int) -> None:
        """Take a program along: an ELF file, or a script and its interpreter."""
        real = os.path.realpath(path)
        with _readable(real) as fd:
            head = os.read(fd, 4096)
        if head[:2] == b"#!" and depth < _SCRIPTS_MAX:
            self.file(path)
            words = head[2:].split(b"\n", 1)[0].decode("utf-8", "surrogateescape").split()
            if words:
                self.program(program_find(words[0]), depth + 1)
                if os.path.basename(words[0]) == "env" and len(words) > 1:
                    inner = [word for word in words[1:] if word[:1] != "-" and "=" not in word][:1]
                    for word in inner:
                        self.program(program_find(word), depth + 1)
            return
        if head[:4] == b"\x7fELF":
            elf = _Elf(real)
            name = os.path.basename(real)
            is_python = name.startswith("python") and name[6:7] in "3."
            # A program that finds its things from where it stands must stand where it did.
            if os.path.realpath(os.path.dirname(path)) != os.path.dirname(real) and (
                is_python
                or "$ORIGIN" in elf.rpath + elf.runpath
                or "${ORIGIN}" in elf.rpath + elf.runpath
            ):
                self.links[self.place(path)] = real
                path = real
            self.elf(path, ())
            if is_python:
                self.python(real)
            return
        self.file(path)

    def python(self, real: str) -> None:
        """The standard library of an interpreter, and the libraries of its extensions."""
        from fnmatch import fnmatch
        from glob import glob

        prefix = os.path.dirname(os.path.dirname(real))
        version = os.path.basename(real)[len("python") :]
        found = sorted(glob(f"{prefix}/lib*/python{version if '.' in version else '3.*'}/os.py"))
        if not found:
            raise NotFound(f"no standard library for {real} below {prefix}")
        for top, directories, names in os.walk(os.path.dirname(found[-1])):
            directories[:] = sorted(
                name
                for name in directories
                if not any(fnmatch(name, unused) for unused in PYTHON_UNUSED)
            )
            for name in names:
                path = f"{top}/{name}"
                if ".opt-" in name or not os.path.isfile(path):
                    continue
                if ".so" in name and not top.endswith("__pycache__"):
                    self.elf(path, ())
                else:
                    self.file(path)

    # ---- libraries

    def elf(self, path: str, loaders: tuple) -> None:
        """Take an ELF file along, with its loader and all its libraries."""
        path = self.file(path)
        if path in self.seen:
            return
        self.seen.add(path)
        self.companions(path)
        elf = _Elf(os.path.realpath(path))
        if elf.interpreter:
            self.elf(elf.interpreter, ())
            self.is_musl = "/ld-musl-" in elf.interpreter
            if self.is_musl:
                self.data("/etc/" + os.path.basename(elf.interpreter).replace(".so.1", ".path"))
        origin = os.path.dirname(os.path.realpath(path))
        chain = () if elf.runpath else (*loaders, *_rpath(elf.rpath, origin))
        for needed in elf.needed:
            found = self.library(elf, needed, (*chain, *_rpath(elf.runpath, origin)))
            if found is None:
                raise NotFound(f"{path} needs the library {needed}, which is not on this host")
            self.elf(found, chain)

    def library(self, elf: _Elf, needed: str, first: tuple) -> str | None:
        if "/" in needed:
            return needed if os.path.isfile(needed) else None
        if self.cache is None:
            self.cache = _ld_cache()
        candidates = [] if self.is_musl else self.cache.get(needed, [])
        candidates = [f"{directory}/{needed}" for directory in first] + candidates
        candidates += [f"{directory}/{needed}" for directory in _library_dirs(self.is_musl)]
        for candidate in candidates:
            if os.path.isfile(candidate) and elf.fits(candidate):
                return candidate
        return None

    # ---- packing

    def pieces(self) -> Iterator[bytes]:
        """The tar: directories, links, files, in the order of their names."""
        directories = dict(HARVEST_DIRS)
        for path in [*self.files, *self.links, *self.made]:
            while path.rpartition("/")[0]:
                path = path.rpartition("/")[0]
                directories.setdefault(path, 0o755)
        packed: dict = {}
        for path in sorted({*directories, *self.files, *self.links, *self.made} - {""}):
            name = path[1:].encode("utf-8", "surrogateescape")
            if path in self.links:
                yield tar_header(
                    TarEntry(
                        name,
                        TAR_SYMLINK,
                        mode=0o777,
                        link=self.links[path].encode("utf-8", "surrogateescape"),
                    )
                )
            elif path in self.files:
                yield from self.piece(name, self.files[path], packed)
            elif path in self.made:
                data = self.made[path]
                yield tar_header(TarEntry(name, size=len(data))) + data + tar_padding(len(data))
            else:
                yield tar_header(TarEntry(name, TAR_DIR, mode=directories[path]))
        yield TAR_END

    def piece(self, name: bytes, source: str, packed: dict) -> Iterator[bytes]:
        with _readable(source) as fd:
            there = os.fstat(fd)
            first = packed.setdefault((there.st_dev, there.st_ino), name)
            entry = TarEntry(
                name,
                mode=there.st_mode & 0o7777,
                uid=there.st_uid,
                gid=there.st_gid,
                mtime=there.st_mtime_ns,
            )
            if first != name:
                entry.kind, entry.link = TAR_LINK, first
                yield tar_header(entry)
                return
            entry.xattrs = xattrs_kept(b"/proc/self/fd/%d" % fd, follow=True)
            yield from file_pack(fd, entry)


class _readable:
    """Context manager: a descriptor of a file of the host."""

    __slots__ = ("fd", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        self.fd = -1

    def __enter__(self) -> int:
        try:
            self.fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as refused:
            raise EngineError(
                f"cannot read {self.path}: {(refused.strerror or '').lower()}"
            ) from None
        return self.fd

    def __exit__(self, *failure: object) -> None:
        os.close(self.fd)


class _Elf:
    """What the loader reads of an ELF file: interpreter, needed libraries, RPATH, RUNPATH."""

    __slots__ = ("interpreter", "machine", "needed", "rpath", "runpath")

    def __init__(self, path: str) -> None:
        self.interpreter = self.rpath = self.runpath = ""
        self.needed: list = []
        with _readable(path) as fd:
            self.machine = _elf_machine(fd)
            try:
                if self.machine:
                    self.headers(fd)
            except (struct.error, OSError, OverflowError, ValueError):
                raise EngineError(f"{path} is a damaged ELF file") from None

    def headers(self, fd: int) -> None:
        wide, order = self.machine[0] == 2, "<" if self.machine[1] == 1 else ">"
        if wide:
            offset, size, count = struct.unpack_from(order + "32xQ14xHH", os.pread(fd, 64, 0))
            form, pick = order + "IIQQQQQQ", (0, 2, 3, 5)
        else:
            offset, size, count = struct.unpack_from(order + "28xI10xHH", os.pread(fd, 52, 0))
            form, pick = order + "IIIIIIII", (0, 1, 2, 4)
        loads, dynamic = [], b""
        table = os.pread(fd, min(size * count, 1 << 16), offset)
        for at in range(0, len(table) - struct.calcsize(form) + 1, size or 1 << 16):
            fields = struct.unpack_from(form, table, at)
            kind, start, address, length = (fields[index] for index in pick)
            if kind == _PT_LOAD:
                loads.append((address, start, length))
            elif kind == _PT_INTERP:
                self.interpreter = _text(os.pread(fd, min(length, 4096), start), 0)
            elif kind == _PT_DYNAMIC:
                dynamic = os.pread(fd, min(length, 1 << 20), start)
        self.tags(
            fd,
            list(
                struct.iter_unpack(
                    order + ("qQ" if wide else "iI"),
                    dynamic[: len(dynamic) // (16 if wide else 8) * (16 if wide else 8)],
                )
            ),
            loads,
        )

    def tags(self, fd: int, rows: list, loads: list) -> None:
        strings = next((value for tag, value in rows if tag == _DT_STRTAB), 0)
        start = next(
            (
                start + strings - address
                for address, start, length in loads
                if address <= strings < address + length
            ),
            -1,
        )
        if start < 0:
            return
        names = []
        for tag, value in rows:
            if not tag:
                break
            if tag in (_DT_NEEDED, _DT_RPATH, _DT_RUNPATH):
                names.append((tag, _text(os.pread(fd, 4096, start + value), 0)))
        self.needed = [text for tag, text in names if tag == _DT_NEEDED]
        self.rpath = ":".join(text for tag, text in names if tag == _DT_RPATH)
        self.runpath = ":".join(text for tag, text in names if tag == _DT_RUNPATH)

    def fits(self, path: str) -> bool:
        """Whether another file is for the same machine, so that the loader would take it."""
        with _readable(path) as fd:
            return _elf_machine(fd) == self.machine


def _elf_machine(fd: int) -> tuple:
    """(class, byte order, machine) of an ELF file, () for any other."""
    head = os.pread(fd, 20, 0)
    if len(head) < 20 or head[:4] != b"\x7fELF" or head[4] not in (1, 2) or head[5] not in (1, 2):
        return ()
    return head[4], head[5], struct.unpack_from("<H" if head[5] == 1 else ">H", head, 18)[0]


def _text(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at) if b"\0" in data[at:] else len(data)].decode(
        "utf-8", "surrogateescape"
    )


def _rpath(text: str, origin: str) -> list:
    """The directories of an RPATH; of its variables only $ORIGIN has one value for all."""
    found = [
        part.replace("${ORIGIN}", origin).replace("$ORIGIN", origin) for part in text.split(":")
    ]
    return [os.path.normpath(part) for part in found if part[:1] == "/" and "$" not in part]


def _library_dirs(is_musl: bool) -> list:
    if is_musl:
        from glob import glob

        for path in glob("/etc/ld-musl-*.path"):
            text = file_read(path).decode("utf-8", "surrogateescape").replace("\n", ":")
            return [directory for directory in text.split(":") if directory[:1] == "/"]
        return list(LIBRARY_DIRS_MUSL)
    machine = os.uname().machine
    triples = [
        f"{base}/{machine}-linux-gnu{suffix}"
        for base in ("/lib", "/usr/lib")
        for suffix in ("", "eabihf", "eabi")
    ]
    if machine.startswith("arm"):
        triples += [f"{base}/arm-linux-gnueabihf" for base in ("/lib", "/usr/lib")]
    return triples + list(LIBRARY_DIRS) + _ld_conf("/etc/ld.so.conf", 0)


def _ld_conf(path: str, depth: int) -> list:
    """The directories of ld.so.conf and of what it includes."""
    from glob import glob

    found: list = []
    if depth > 4 or not os.path.isfile(path):
        return found
    for line in file_read(path).decode("utf-8", "surrogateescape").split("\n"):
        words = line.partition("#")[0].replace(",", " ").replace(":", " ").split()
        if words[:1] == ["include"]:
            for pattern in words[1:]:
                for name in sorted(glob(os.path.join(os.path.dirname(path), pattern))):
                    found += _ld_conf(name, depth + 1)
        elif words and words[0] != "hwcap":
            found += words
    return found


def _ld_cache(path: str = "/etc/ld.so.cache") -> dict:
    """{"libc.so.6": ["/lib/x86_64-linux-gnu/libc.so.6", ...]} of ldconfig's cache; {} without one.

    Variants for newer processors come last: the image may go to another machine.
    """
    try:
        data = file_read(path)
    except OSError:
        return {}
    base = data.find(_LD_CACHE_MAGIC)
    if base < 0:
        return {}
    found: dict = {}
    try:
        count = struct.unpack_from("=I", data, base + len(_LD_CACHE_MAGIC))[0]
        for index in range(min(count, len(data) // 24)):
            _flags, key, value = struct.unpack_from("=iII", data, base + 48 + 24 * index)
            found.setdefault(_text(data, base + key), []).append(_text(data, base + value))
    except struct.error:
        return {}
    for paths in found.values():
        paths.sort(key=lambda path: "glibc-hwcaps" in path)
    return found


# =============================================================================
# records -- containers as rows: names, state transitions by compare-and-set
# =============================================================================
# Runs in: api, cli, monitor.   Refs: moby container/state.go, container/view.go, daemon/names.go
#
# A container is one row. Its configuration is fixed at create (config, host_config: the checked and
# merged documents; document: what create worked out from them); what changes are the plain columns.
# A state is only ever left by compare-and-set (record_move): of two commands at the same moment one
# wins, and the other is told what Docker would tell it.
#
#   created --> starting --> running <--> paused     starting, removing: passing states. `owner`
#      ^           |            |                     names the process that works on it; when that
#      +-----------+            v                     one is dead, the next command takes it back
#   (undone)   removing <--- exited                   (starting) or finishes it (removing).
#
# created -> starting is the starter's; starting -> running -> exited are the monitor's. Names
# stand in the row without their slash. Rows of --rm containers need not outlive a power cut, so
# they are written without waiting for the disk.

RECORD_FIELDS = (
    "id", "name", "image", "state", "created", "started", "finished", "pid", "exit_code",
    "oom_killed", "error", "health", "restarts", "stopped", "auto_remove", "owner", "boot_id",
    "config", "host_config", "document")
RECORD_SELECT = "SELECT " + ", ".join(RECORD_FIELDS) + " FROM containers "
RECORD_INSERT = (f"INSERT INTO containers({', '.join(RECORD_FIELDS)})"
                 f" VALUES({', '.join('?' * len(RECORD_FIELDS))})")
NAME_CHARS = "[a-zA-Z0-9][a-zA-Z0-9_.-]"
STATES = ("created", "running", "paused", "restarting", "removing", "exited", "dead")


class Container:
    """One container's row; `config`, `host` and `document` are parsed when first asked for.

    Times are ns since 1970, 0 for never. `name` has no slash. An object is a copy of the row as it
    was read: what another process does afterwards is seen by reading again.
    """

    __slots__ = ("id", "name", "image", "state", "created", "started", "finished", "pid",
                 "exit_code", "oom_killed", "error", "health", "restarts", "stopped", "auto_remove",
                 "owner", "boot_id", "_config", "_host", "_document")

    def __init__(self, row: tuple) -> None:
        (self.id, self.name, self.image, self.state, self.created, self.started, self.finished,
         self.pid, self.exit_code, self.oom_killed, self.error, self.health, self.restarts,
         self.stopped, self.auto_remove, self.owner, self.boot_id,
         self._config, self._host, self._document) = row

    @property
    def config(self) -> dict:
        """The merged Config, every key of CONFIG there."""
        if isinstance(self._config, str):
            self._config = json_parse(self._config)
        return self._config

    @property
    def host(self) -> dict:
        """The HostConfig, every key of HOST_CONFIG there."""
        if isinstance(self._host, str):
            self._host = json_parse(self._host)
        return self._host

    @property
    def document(self) -> dict:
        """What create worked out: {"Path", "Args", "Layers", "EndpointsConfig"}."""
        if isinstance(self._document, str):
            self._document = json_parse(self._document)
        return self._document

    @property
    def is_running(self) -> bool:
        """True with a process of its own, paused or not."""
        return self.state in ("running", "paused")

    @property
    def status(self) -> str:
        """The state's name as Docker knows it."""
        if self.state == "starting":
            return "exited" if self.started else "created"
        return self.state


def record_new(*, id: str, name: str, image: str, config: dict, host: dict,
               document: dict) -> Container:
    """A container that has no row yet."""
    return Container((id, name, image, "created", time_now(), 0, 0, 0, 0, 0, "", "", 0, 0,
                      int(host["AutoRemove"]), "", "", config, host, document))


def name_check(name: str) -> str:
    """The name without its slash; InvalidParameter with Docker's text for a bad one."""
    bare = name[1:] if name[:1] == "/" else name
    good = len(bare) > 1 and bare.isascii() and bare[0].isalnum()
    if not good or bare.strip("_.-") and not bare.translate(_NAME_SIGNS).isalnum():
        raise InvalidParameter(f"Invalid container name ({name}), only {NAME_CHARS} are allowed")
    return bare


_NAME_SIGNS = {ord(sign): "x" for sign in "_.-"}


def record_insert(store: Store, c: Container) -> None:
    """Write the row of a new container; Conflict when its name is taken.

    A name that is empty becomes a random one that is free. NotFound when the image has been removed
    since it was looked up: with the row in place it cannot be.
    """
    with store.write(durable=not c.auto_remove) as db:
        if not db.execute("SELECT 1 FROM images WHERE id = ?", (c.image,)).fetchone():
            raise NotFound("No such image: " + c.image)
        if c.name:
            taken = db.execute("SELECT id FROM containers WHERE name = ?", (c.name,)).fetchone()
            if taken:
                raise name_conflict(c.name, taken[0])
        else:
            c.name = name_random(lambda name: db.execute(
                "SELECT 1 FROM containers WHERE name = ?", (name,)).fetchone() is not None)
        db.execute(RECORD_INSERT, (
            c.id, c.name, c.image, c.state, c.created, c.started, c.finished, c.pid, c.exit_code,
            c.oom_killed, c.error, c.health, c.restarts, c.stopped, c.auto_remove, c.owner,
            c.boot_id, json_text(c.config), json_text(c.host), json_text(c.document)))


def name_conflict(name: str, id: str) -> Conflict:
    """The error for a name that container `id` has."""
    return Conflict(f'Conflict. The container name "/{name}" is already in use by container "{id}".'
                    " You have to remove (or rename) that container to be able to reuse that name.")


def record_find(store: Store, ref: str) -> Container:
    """The container that a user means: its id, its name, or the start of its id.

    Raises NotFound, or InvalidParameter for an empty or ambiguous reference, in Docker's words.
    """
    if not ref:
        raise InvalidParameter('invalid name or ID supplied: ""')
    rows = store.rows(RECORD_SELECT + "WHERE id = ?1 OR name = ?2", ref,
                      ref[1:] if ref[0] == "/" else ref)
    if len(rows) > 1:                   # a name that is somebody's id: the id comes first
        rows = [row for row in rows if row[0] == ref]
    if not rows and len(ref) < 64 and is_hex(ref):
        rows = store.rows(RECORD_SELECT + "WHERE id >= ?1 AND id < ?2 LIMIT 2", ref, ref + "g")
        if len(rows) > 1:
            raise InvalidParameter("multiple IDs found with provided prefix: " + ref)
    if not rows:
        raise NotFound("No such container: " + ref)
    return Container(rows[0])


def record_get(store: Store, id: str) -> Container | None:
    """The container with this whole id as it is now; None when it is gone."""
    row = store.row(RECORD_SELECT + "WHERE id = ?", id)
    return Container(row) if row else None


def record_list(store: Store) -> list:
    """All containers, the newest first."""
    return [Container(row) for row in store.rows(RECORD_SELECT + "ORDER BY created DESC, id")]


def record_move(store: Store, id: str, before: tuple, after: str, *, durable: bool = False,
                **fields: Any) -> bool:
    """Change the state if it is one of `before`, and other columns with it; False if it is not."""
    names = ["state", *fields]
    marks = ", ".join(f"{name} = ?" for name in names)
    sql = (f"UPDATE containers SET {marks} WHERE id = ? AND state IN"
           f" ({', '.join('?' * len(before))})")
    with store.write(durable=durable) as db:
        changed = db.execute(sql, (after, *fields.values(), id, *before)).rowcount
    return changed == 1


def record_rename(store: Store, id: str, name: str) -> None:
    """Give the container another name; Conflict when that is taken, NotFound when it is gone."""
    with store.write() as db:
        taken = db.execute("SELECT id FROM containers WHERE name = ?", (name,)).fetchone()
        if taken:
            raise name_conflict(name, taken[0])
        if not db.execute("UPDATE containers SET name = ? WHERE id = ?", (name, id)).rowcount:
            raise NotFound("No such container: " + id)


def record_delete(store: Store, id: str, durable: bool = True) -> bool:
    """Take the row away; False when it was gone."""
    with store.write(durable=durable) as db:
        return db.execute("DELETE FROM containers WHERE id = ?", (id,)).rowcount == 1


def owner_of(pid: int) -> str:
    """A process as it stands in `owner`: its pid and the kernel's time of its start."""
    return f"{pid} {_start_time(pid)}"


def owner_self() -> str:
    """This process, as owner_of tells it."""
    return owner_of(os.getpid())


def owner_lives(owner: str) -> bool:
    """True while the process that `owner` names runs; its pid alone may be another's by now."""
    pid, _, started = owner.partition(" ")
    return bool(started) and _start_time(int(pid)) == started


def _start_time(pid: int) -> str:
    try:
        # proc(5): the name in brackets may hold spaces; the start is the 20th field after it.
        fields = file_read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
        return "" if fields[0] in (b"Z", b"X") else fields[19].decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def state_text(c: Container, now: int) -> str:
    """"Up 2 minutes", "Exited (0) 3 hours ago": the state as `ps` shows it."""
    if c.is_running:
        up = "Up " + ago((now - c.started) / SECOND)
        if c.state == "paused":
            return up + " (Paused)"
        return f"{up} ({c.health})" if c.health else up
    if c.state == "removing":
        return "Removal In Progress"
    if c.state == "dead":
        return "Dead"
    if not c.started:
        return "Created"
    return exit_text(c.exit_code, (now - c.finished) / SECOND) if c.finished else ""


def state_show(c: Container) -> dict:
    """The State object of inspect."""
    return {
        "Status": c.status, "Running": c.is_running, "Paused": c.state == "paused",
        "Restarting": False, "OOMKilled": bool(c.oom_killed), "Dead": c.state == "dead",
        "Pid": c.pid if c.is_running else 0, "ExitCode": 0 if c.is_running else c.exit_code,
        "Error": c.error, "StartedAt": time_rfc3339(c.started or None),
        "FinishedAt": time_rfc3339(c.finished or None)}


# =============================================================================
# stdio -- a process's streams between pipes or a pty, a log, and attached clients
# =============================================================================
# Runs in: monitor.   Refs: pty(7), pipe(7), moby container/stream/attach.go
#
# One Stdio per process, the container's first or one executed beside it; any number of clients.
# What the process writes goes to the log and to every client; what a client types goes to
# the process.
#   - Nobody is waited for: sockets and pipes are non-blocking. What a client does not take is
#     queued for it; above QUEUE_SIZE the process's output is not read until it does.
#   - The detach keys are looked for on terminals only, in the client's input, as Docker does.
#   - A client's half close ends the process's stdin when stdin was made for one client
#     (StdinOnce); output still goes to it. A client that is gone altogether takes nothing with it.
# The Loop is the monitor's own; watch(fd, mask, handler) and unwatch(fd) are all it is asked for.

QUEUE_SIZE = 1 << 20            # bytes that one client may be behind
STDIO_READ = 1 << 16
REST = 0.5                      # s without an event, after which spare memory is given back
EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP = 1, 4, 8, 16
DETACH_KEYS = "ctrl-p,ctrl-q"


def detach_keys_parse(text: str) -> bytes:
    """The bytes of a key sequence like "ctrl-p,ctrl-q" or "a,ctrl-@"; InvalidParameter with
    Docker's text.
    """
    keys = bytearray()
    for name in text.split(","):
        letter = name[5:] if name.startswith("ctrl-") else ""
        if len(name) == 1 and name.isascii():
            keys.append(ord(name))
        elif len(letter) == 1 and letter.isascii() and (letter.isalpha() or letter in "@[\\]^_"):
            keys.append(ord(letter.upper()) & 0x1F)
        else:
            raise InvalidParameter(f"invalid detach keys ({text}): Unknown character: '{name}'")
    return bytes(keys)


class Loop:
    """epoll(7) and timers: handlers are called with the events of a descriptor, functions later."""

    __slots__ = ("_handlers", "_poll", "_timers", "_used")

    def __init__(self) -> None:
        self._handlers: dict = {}          # descriptor -> (mask, handler)
        self._poll = sys.modules["select"].epoll(16)
        self._timers: list = []            # (when, function)
        self._used = False                 # memory, since it was last given back

    def turn(self) -> None:
        """Wait for the next events and deal with them; at rest, give back what they used."""
        timeout = self._timeout()
        if self._used and not 0 <= timeout < REST:
            ready = self._poll.poll(REST)
            if not ready:
                self._used = False
                heap_trim()
                return
        else:
            ready = self._poll.poll(timeout)
        self._used = self._used or bool(ready)
        for fd, events in ready:
            entry = self._handlers.get(fd)
            if entry:                      # one before it may have closed this one
                entry[1](events)
        self._timers_run()

    def watch(self, fd: int, mask: int, handler: Callable) -> None:
        """Call handler(events) when the descriptor is ready."""
        known = self._handlers.get(fd)
        if known is None:
            self._poll.register(fd, mask)
        elif known[0] != mask:
            self._poll.modify(fd, mask)
        self._handlers[fd] = (mask, handler)

    def unwatch(self, fd: int) -> None:
        """Forget a descriptor, before it is closed."""
        if self._handlers.pop(fd, None):
            self._poll.unregister(fd)

    def _timeout(self) -> float:
        if not self._timers:
            return -1
        return max(0.0, min(when for when, _ in self._timers) - time.monotonic())

    def _timers_run(self) -> None:
        now = time.monotonic()
        due = [timer for timer in self._timers if timer[0] <= now]
        if due:
            self._timers = [timer for timer in self._timers if timer[0] > now]
            for _, function in due:
                function()

    def after(self, seconds: float, function: Callable) -> None:
        """Call the function later."""
        self._timers.append((time.monotonic() + seconds, function))


class Attached:
    """Somebody attached to a process: a socket that gets output and may give input."""

    __slots__ = ("_at", "_detach", "_mask", "_mux", "_queue", "_stdio", "err", "fd", "input",
                 "last", "out", "queued")

    def __init__(self, stdio: Stdio, fd: int, message: dict) -> None:
        self._stdio = stdio
        self.fd = fd
        self.out = message.get("stdout", False)
        self.err = message.get("stderr", False)
        self.input = message.get("stdin", False) and stdio.takes_input
        self._mux = message.get("mux", True)
        keys = message.get("detach_keys")
        self._detach = detach_keys_parse(keys or DETACH_KEYS) if stdio.tty else b""
        self._at = 0
        self._queue: list = []
        self.queued = 0
        self.last = False
        os.set_blocking(fd, False)
        self._mask = EPOLLIN if self.input else 0
        stdio.monitor.watch(fd, self._mask, self.ready)

    def push(self, stream: int, data: bytes) -> None:
        """Send output, or queue what the socket does not take now."""
        if not (self.out if stream == 1 else self.err):
            return
        parts = [struct.pack(">BxxxI", stream, len(data)), data] if self._mux else [data]
        if not self._queue:
            try:
                sent = os.writev(self.fd, parts)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.drop()
                return
            if self._mux and sent >= 8:
                parts, sent = [data], sent - 8
            if sent == len(parts[-1]) and len(parts) == 1:
                return
            rest = b"".join(parts)[sent:]
        else:
            rest = b"".join(parts)
        self._queue.append(rest)
        self.queued += len(rest)
        self._update()

    def ready(self, events: int) -> None:
        """epoll has something for this socket."""
        if events & EPOLLOUT:
            self._flush()
        if events & EPOLLIN and self.input:
            self._read()
        elif events & (EPOLLHUP | EPOLLERR):
            self.drop()

    def _flush(self) -> None:
        try:
            while self._queue:
                sent = os.write(self.fd, self._queue[0])
                self.queued -= sent
                if sent < len(self._queue[0]):
                    self._queue[0] = self._queue[0][sent:]
                    break
                self._queue.pop(0)
        except BlockingIOError:
            pass
        except OSError:
            self.drop()
            return
        if self.last and not self._queue:
            self.drop()
            return
        self._update()
        self._stdio.reading()

    def _read(self) -> None:
        try:
            data = os.read(self.fd, STDIO_READ)
        except BlockingIOError:
            return
        except OSError:
            self.drop()
            return
        if not data:
            self.input = False             # half closed: output still goes to it
            self._update()
            self._stdio.input_end()
            return
        self.feed(data)

    def feed(self, data: bytes) -> None:
        """Bytes that the client typed, less the detach keys; a whole sequence of those detaches."""
        if self._detach:
            data = self._keys(data)
        if data:
            self._stdio.input_write(data)

    def _keys(self, data: bytes) -> bytes:
        keys, out = self._detach, bytearray()
        for byte in data:
            if byte == keys[self._at]:
                self._at += 1
                if self._at == len(keys):
                    self._stdio.monitor.emit("detach", self._stdio)
                    self._stdio.input_write(bytes(out))
                    self.drop()
                    return b""
                continue
            out += keys[:self._at]          # it was not the sequence after all
            self._at = 1 if byte == keys[0] else 0
            if not self._at:
                out.append(byte)
        return bytes(out)

    def pause_input(self, paused: bool) -> None:
        """Stop or go on reading what the client sends: the process does not take it."""
        self._update(paused)

    def _update(self, paused: bool = False) -> None:
        mask = (EPOLLIN if self.input and not paused else 0) | (EPOLLOUT if self._queue else 0)
        if mask != self._mask and self.fd >= 0:
            self._mask = mask
            self._stdio.monitor.watch(self.fd, mask, self.ready)

    def end(self) -> None:
        """No more output comes: close when what is queued has been taken."""
        self.last = True
        if not self._queue:
            self.drop()

    def drop(self) -> None:
        """Close the socket and forget the client."""
        if self.fd >= 0:
            self._stdio.monitor.unwatch(self.fd)
            os.close(self.fd)
            self.fd = -1
            self._stdio.forget(self)


class Stdio:
    """A process's standard streams between pipes (or a pty), a log, and any number of clients."""

    __slots__ = ("_input", "_outs", "_stopped", "clients", "id", "log", "monitor", "pid", "started",
                 "stdin", "stdin_once", "takes_input", "terminal", "tty")

    def __init__(self, monitor: Monitor, id: str, *, tty: bool, takes_input: bool,
                 stdin_once: bool) -> None:
        self.monitor = monitor
        self.id = id                       # "" for the container's first process
        self.tty = tty
        self.takes_input = takes_input
        self.stdin_once = stdin_once
        self.clients: list = []
        self.log: Any = None
        self.pid = self.stdin = self.terminal = -1
        self.started = 0
        self._outs: dict = {}              # descriptor -> 1 or 2
        self._input = b""
        self._stopped = False

    def begin(self, born: Born) -> None:
        """The process runs: take over our ends of its streams."""
        self.pid, self.terminal, self.stdin = born.pid, born.terminal, born.stdin
        if self.tty:
            self.stdin = born.terminal
            self._outs = {born.terminal: 1}
        else:
            self._outs = {born.stdout: 1, born.stderr: 2}
        for fd in (*self._outs, self.stdin):
            if fd >= 0:
                os.set_blocking(fd, False)
        self.reading()
        if self._input:
            self._input_flush()
        if self.stdin_once and not self.tty and self.clients and not any(
                client.input for client in self.clients):
            self.input_end()

    # ---- output

    def reading(self) -> None:
        """Read the process's output, unless a client is too far behind."""
        stop = any(client.queued > QUEUE_SIZE for client in self.clients)
        if stop != self._stopped or not stop:
            self._stopped = stop
            for fd in self._outs:
                mask = 0 if stop else EPOLLIN
                if fd == self.stdin and self._input:
                    mask |= EPOLLOUT
                self.monitor.watch(fd, mask, self._ready)

    def _ready(self, events: int) -> None:
        # Each descriptor has its own entry in the loop; a read of an empty one costs one call.
        for fd in list(self._outs):
            self._take(fd)
        if events & EPOLLOUT and self._input:
            self._input_flush()

    def _take(self, fd: int) -> bool:
        """Read one chunk; False when there is none now. The end closes the descriptor."""
        try:
            data = os.read(fd, STDIO_READ)
        except BlockingIOError:
            return False
        except OSError as failure:
            if failure.errno != errno.EIO:     # a pty whose last slave is closed
                raise
            data = b""
        stream = self._outs[fd]
        if not data:
            if fd != self.terminal:
                self.monitor.unwatch(fd)
                os.close(fd)
                del self._outs[fd]
            elif self.pid < 0:
                return False
            else:
                self.monitor.watch(fd, 0, self._ready)
            return False
        if self.log:
            self.log.write(stream, data)
        for client in list(self.clients):
            client.push(stream, data)
        if any(client.queued > QUEUE_SIZE for client in self.clients):
            self.reading()
        return True

    def drain(self) -> None:
        """Read what is left after the process has ended, whoever else may hold the pipe."""
        for fd in list(self._outs):
            while fd in self._outs and self._take(fd):
                pass

    # ---- input

    def input_write(self, data: bytes) -> None:
        """Bytes for the process's stdin, kept until it takes them."""
        self._input += data
        if self.stdin >= 0:
            self._input_flush()

    def _input_flush(self) -> None:
        try:
            while self._input:
                self._input = self._input[os.write(self.stdin, self._input[:STDIO_READ]):]
        except BlockingIOError:
            pass
        except OSError:
            self._input = b""              # the process closed its stdin
        waiting = bool(self._input)
        for client in self.clients:
            client.pause_input(waiting and len(self._input) > STDIO_READ)
        if self.stdin == self.terminal >= 0:
            self.reading()
        elif waiting:
            self.monitor.watch(self.stdin, EPOLLOUT, lambda events: self._input_flush())
        elif self.stdin >= 0:
            self.monitor.unwatch(self.stdin)
            if self.stdin_once and self.clients and not any(c.input for c in self.clients):
                self.input_end()

    def input_end(self) -> None:
        """A client has no more input: the process sees the end when stdin was for one client only.
        """
        if self.tty or not self.stdin_once or self.stdin < 0 or self._input:
            return
        if any(client.input for client in self.clients):
            return
        self.monitor.unwatch(self.stdin)
        os.close(self.stdin)
        self.stdin = -1

    # ---- the end

    def forget(self, client: Attached) -> None:
        """A client is gone; if it was the one that fed stdin, stdin ends."""
        if client in self.clients:
            self.clients.remove(client)
        if client.input:
            client.input = False
            self.input_end()
        self.reading()

    def end(self) -> None:
        """The process is gone: the rest of its output, then the end of every stream."""
        self.drain()
        self.pid = -1
        if self.log:
            self.log.flush_partial(1)
            self.log.flush_partial(2)
            self.log = None
        for fd in {*self._outs, self.stdin, self.terminal}:
            if fd >= 0:
                self.monitor.unwatch(fd)
                os.close(fd)
        self._outs = {}
        self.stdin = self.terminal = -1
        self._input = b""

    def dismiss(self) -> None:
        """Let the clients go, each when it has taken what is queued for it."""
        for client in list(self.clients):
            client.end()


# =============================================================================
# monitor -- one watcher process per container: stdio, exec, wait, exit
# =============================================================================
# Runs in: monitor, and who talks to it.
# One process per container, forked by the launcher. It makes the container's first process, waits
# for it, carries its stdio to the log and to attached clients, serves attach, exec, wait, stop,
# kill, pause and resize on a SEQPACKET socket, and writes the container's end into the store. It
# is the only owner: daemon, launcher and commands come and go.
#   - armed: it was forked for an attach or a wait, holds those clients and has no process yet. It
#     ends when the last client is gone. `start` is a message to it; after the end it is armed
#     again.
#   - It imports nothing, starts no thread, collects no garbage: what it touches, it pays for in
#     pages that it would else share with the launcher.
#   - One loop over epoll. Clients are never waited for: what a client does not take is queued, and
#     above QUEUE_SIZE the container's output is not read until it does. Control messages always
#     are.
#   - The order at the end: log flushed, row written (or deleted, directory moved to tmp/), events,
#     waiters and clients answered, and only then namespaces closed, cgroup and files removed. The
#     socket's name goes last but for the process itself: who finds no socket reads a final row.
#   - It outlives upgrades of engine.pyz, so the statements of MONITOR_SQL and the verbs of
#     MONITOR_VERBS are only added to, never changed.

LINGER = 60.0                   # s that a client has to take what is queued after the end

MONITOR_SQL = {
    "running": "UPDATE containers SET state='running', pid=?, owner=?, started=?, boot_id=?,"
               " exit_code=0, oom_killed=0, error='', stopped=0 WHERE id=?",
    "exited":  "UPDATE containers SET state='exited', pid=0, finished=?, exit_code=?, oom_killed=?,"
               " stopped=?, owner='' WHERE id=?",
    "paused":  "UPDATE containers SET state='paused' WHERE id=? AND state='running'",
    "resumed": "UPDATE containers SET state='running' WHERE id=? AND state='paused'",
    "gone":    "DELETE FROM containers WHERE id=?",
}


class NoMonitor(EngineError):
    """No process answers for this container."""


class container_lock(lock_file):
    """The lock of one container, for what two commands must not do at once.

    It lies in the container's directory below the run root, which a removal may take away at any
    moment: then it is made again.
    """

    __slots__ = ("_directory",)

    def __init__(self, store: Store, id: str) -> None:
        self._directory = store.run_path("containers", id)
        super().__init__(self._directory + "/lock")

    def __enter__(self) -> lock_file:
        while True:
            dir_ensure(self._directory, 0o700)
            try:
                return super().__enter__()
            except FileNotFoundError:
                continue


def monitor_connect(store: Store, id: str, start: bool = False) -> _socket.socket | None:
    """A connection to a container's monitor, or None; with `start` one is forked if there is none.
    """
    directory = store.run_path("containers", id)
    sock = unix_connect(directory, "monitor.sock")
    if sock is not None or not start:
        return sock
    with container_lock(store, id):
        sock = unix_connect(directory, "monitor.sock")
        if sock is None:
            sock = _monitor_fork(store, id)
    return sock


def _monitor_fork(store: Store, id: str) -> _socket.socket:
    """A connection to a new monitor. One whose launcher was killed under it is asked for again."""
    for _ in range(5):
        try:
            return launcher_ask(store, "monitor", {"id": id})[0]
        except Unavailable as died:
            reason = died
    raise reason


def monitor_call(store: Store, id: str, message: dict, fds: list[int] | tuple = (),
                 start: bool = False) -> dict:
    """The monitor's answer to one message; raises the EngineError that it carries, or NoMonitor."""
    text = json_text(message).encode("utf-8", "surrogateescape")
    for _ in range(5):
        sock = monitor_connect(store, id, start)
        if sock is None:
            break
        try:
            fds_send(sock, text, fds)
            answer = sock.recv(1 << 16)
        except (BrokenPipeError, ConnectionResetError):
            answer = b""
        finally:
            sock.close()
        if answer:
            reply = json_parse(answer)
            if "error" in reply:
                raise error_for(reply.get("status", 500), reply["error"], reply.get("exit"))
            return reply
        # It closed without an answer: it was just ending. The next turn finds its end recorded.
    raise NoMonitor(f"no monitor answers for container {id}")


class Monitor(Loop):
    """The state of one container's monitor and its loop; see the banner."""

    __slots__ = ("_born", "_conns", "_execs", "_listener", "_plan", "_stops", "_trash", "_waiters",
                 "_wake", "cgroup", "id", "main", "paused", "store", "user_stopped")

    def __init__(self, store: Store, id: str, conn: _socket.socket | None) -> None:
        super().__init__()
        self.store = store
        self.id = id
        self._conns: dict = {}             # fd -> socket
        self._execs: dict = {}             # id -> Stdio
        self._waiters: list = []           # (condition, fd, head)
        self._stops: list = []             # sockets that wait for the end
        self._trash: list = []             # directories to remove at last
        self._born: Born | None = None
        self._plan: dict = {}
        self.main = self._stdio_new()
        self.paused = False
        self.user_stopped = False
        self.cgroup: Any = None
        self._listener = unix_listen(store.run_path("containers", id), "monitor.sock")
        self._listener.setblocking(False)
        self.watch(self._listener.fileno(), EPOLLIN, self._accept)
        self._wake_make()
        self._conn_add(conn)

    def _stdio_new(self) -> Stdio:
        # Whether there is a terminal is known with the plan; until then the row tells.
        row = self.store.row("SELECT config FROM containers WHERE id=?", self.id)
        config = json_parse(row[0]) if row else {}
        return Stdio(self, "", tty=bool(config.get("Tty")),
                     takes_input=bool(config.get("OpenStdin")),
                     stdin_once=bool(config.get("StdinOnce")))

    def _wake_make(self) -> None:
        signal = sys.modules["_signal"]
        self._wake, wake_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_in, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _signal_note)
        self.watch(self._wake, EPOLLIN, self._reap)

    # ---- the loop

    def run(self) -> None:
        """Serve until there is no process and nobody left to serve; then clear up."""
        while True:
            self.turn()
            if self._idle():
                break
        self._leave()

    def _idle(self) -> bool:
        return not (self._born or self._conns or self._waiters or self._stops
                    or self.main.clients or self._execs)

    def _leave(self) -> None:
        """The name first, so that who comes now makes a new monitor; then what nobody waits for."""
        directory = self.store.run_path("containers", self.id)
        try:
            os.unlink(directory + "/monitor.sock")
        except FileNotFoundError:
            pass
        self._listener.close()
        for path in self._trash:
            tree_remove(path)

    def _accept(self, events: int) -> None:
        try:
            fd, _ = self._listener._accept()  # type: ignore[attr-defined]
        except BlockingIOError:
            return
        sock = _socket.socket(fileno=fd)
        if peer_cred(sock)[1] != os.getuid():
            sock.close()
            return
        self._conn_add(sock)

    def _conn_add(self, sock: _socket.socket) -> None:
        sock.setblocking(True)
        fd = sock.fileno()
        self._conns[fd] = sock
        self.watch(fd, EPOLLIN, lambda events: self._conn_ready(sock))

    def _conn_close(self, sock: _socket.socket) -> None:
        self.unwatch(sock.fileno())
        self._conns.pop(sock.fileno(), None)
        if sock in self._stops:
            self._stops.remove(sock)
        sock.close()

    def _conn_ready(self, sock: _socket.socket) -> None:
        try:
            text, fds = fds_recv(sock, 1 << 18, 4)
        except OSError:
            text, fds = b"", []
        if not text:
            self._conn_close(sock)
            return
        message = json_parse(text)
        verb = MONITOR_VERBS.get(message.get("verb"))
        try:
            if verb is None:
                raise InvalidParameter(f"unknown verb {message.get('verb')}")
            answer = verb(self, message, fds, sock)
        except EngineError as failure:
            answer = error_answer(failure)
        except OSError as failure:
            answer = {"error": f"{message['verb']}: {failure.strerror}", "status": 500}
        for fd in fds:
            if fd >= 0:
                os.close(fd)
        if answer is not None:
            answer_send(sock, answer)

    # ---- what happens to processes

    def _reap(self, events: int) -> None:
        try:
            os.read(self._wake, 4096)
        except BlockingIOError:
            pass
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if self._born and pid == self._born.pid:
                self._main_ended(status_code(status))
                continue
            for stdio in list(self._execs.values()):
                if stdio.pid == pid:
                    self._exec_ended(stdio, status_code(status))

    def start(self, plan: dict) -> dict:
        """Start the container; the row says `starting` and is `running` on return."""
        if self._born:
            raise Conflict(f"container {self.id} is running")
        self._plan = plan
        self.main.tty = plan["tty"]
        self.main.takes_input = plan["open_stdin"]
        self.main.stdin_once = plan["stdin_once"]
        self.cgroup = cgroup_paths(plan["cgroup"])
        try:
            born = runtime_start(plan)
        except BaseException:
            self.cgroup.remove()
            self.main.dismiss()
            raise
        self._born = born
        self.user_stopped = self.paused = False
        self.main.log = LogWriter(plan["log"])
        now = self.main.started = time.time_ns()
        with self.store.write(durable=False) as db:
            db.execute(MONITOR_SQL["running"],
                       (born.pid, owner_of(born.pid), now, boot_id(), self.id))
        self.main.begin(born)
        for warning in born.warnings:
            os.write(2, f"engine: {self.id[:12]}: {warning}\n".encode())
        self.emit("start", self.main)
        return {"ok": True, "pid": born.pid, "warnings": born.warnings}

    def _main_ended(self, code: int) -> None:
        born, plan = self._born, self._plan
        self.cgroup_end()
        self.main.end()
        for stdio in list(self._execs.values()):
            self._exec_ended(stdio, 137)
        oom = self.cgroup.oom_count() > 0
        now = time.time_ns()
        self._born = None
        self.paused = False
        plan["exit_code"] = code
        self._end_record(code, oom, now)
        if oom:
            self.emit("oom", self.main)
        seconds = (now - self.main.started) // 1000000000
        self.emit("die", self.main, exitCode=str(code), execDuration=str(seconds))
        if plan["auto_remove"]:
            self.emit("destroy", self.main)
        self._tell_end(code)
        for fd in born.pins.values():      # the container's mounts and network end here
            os.close(fd)
        self.cgroup.remove()

    def cgroup_end(self) -> None:
        """Nothing outlives the first process, also where the pid namespace is shared."""
        if self.paused:
            self.cgroup.thaw()
        self.cgroup.kill()

    def _end_record(self, code: int, oom: bool, now: int) -> None:
        with self.store.write(durable=False) as db:
            if self._plan["auto_remove"]:
                db.execute(MONITOR_SQL["gone"], (self.id,))
            else:
                db.execute(MONITOR_SQL["exited"],
                           (now, code, int(oom), int(self.user_stopped), self.id))
        if self._plan["auto_remove"]:
            trash = self.store.path("tmp", "removed-" + self.id)
            os.rename(self.store.path("containers", self.id), trash)
            self._trash += [trash, self.store.run_path("containers", self.id)]

    def _tell_end(self, code: int) -> None:
        self.main.dismiss()
        if self.main.clients:
            self.after(LINGER, self._linger_over)
        self.waiters_tell(code, gone=self._plan["auto_remove"])
        for sock in self._stops:
            answer_send(sock, {"ok": True, "code": code})
        self._stops = []

    def waiters_tell(self, code: int, gone: bool) -> None:
        """Answer who waits: for the end all of them, for the removal (`removed`) when it is gone.
        """
        kept = []
        for condition, fd, head in self._waiters:
            if condition == "removed" and not gone:
                kept.append((condition, fd, head))
            else:
                self._waiter_answer(fd, head, code)
        self._waiters = kept

    def _linger_over(self) -> None:
        if not self._born:
            for client in list(self.main.clients):
                client.drop()

    def _waiter_answer(self, fd: int, head: bytes, code: int) -> None:
        self.unwatch(fd)
        try:
            os.set_blocking(fd, True)
            write_all(fd, head + b'{"StatusCode":%d}\n' % code)
        except OSError:
            pass                            # it did not wait for the answer
        os.close(fd)

    def _waiter_gone(self, fd: int) -> None:
        self.unwatch(fd)
        self._waiters = [waiter for waiter in self._waiters if waiter[1] != fd]
        os.close(fd)

    def wait_add(self, condition: str, fd: int, head: bytes) -> None:
        """Answer on this descriptor when the process has ended."""
        self._waiters.append((condition, fd, head))
        self.watch(fd, 0, lambda events: self._waiter_gone(fd))

    def stop_add(self, sock: _socket.socket, number: int, timeout: float) -> None:
        """Signal the process, kill it when it does not end in time, and answer when it has."""
        self.user_stopped = True
        self._stops.append(sock)
        self.signal(number)
        if timeout >= 0:
            born = self._born
            self.after(timeout, lambda: self._stop_late(born))

    def _stop_late(self, born: Born) -> None:
        if self._born is born:
            self.signal(9)

    def signal(self, number: int) -> None:
        """Send a signal to the container's first process; a paused one is thawed to receive it."""
        self.emit("kill", self.main, signal=str(number))
        os.kill(self._born.pid, number)
        if self.paused and number in (9, self._plan["stop_signal"]):
            self.pause(False)

    def pause(self, on: bool) -> None:
        """Freeze or thaw all processes of the container."""
        if on:
            self.cgroup.freeze()
        else:
            self.cgroup.thaw()
        self.paused = on
        with self.store.write(durable=False) as db:
            db.execute(MONITOR_SQL["paused" if on else "resumed"], (self.id,))
        self.emit("pause" if on else "unpause", self.main)

    # ---- second processes

    def exec_start(self, message: dict, document: int, client: int) -> int:
        """Start a second process; its pid. `client` is its attached socket, or -1."""
        stdio = Stdio(self, message["id"], tty=message["tty"], takes_input=message["stdin"],
                      stdin_once=True)
        born = runtime_exec(document, self._born.pins, self.cgroup, tty=message["tty"],
                            open_stdin=message["stdin"], size=message.get("size"))
        stdio.started = time.time_ns()
        self._execs[stdio.id] = stdio
        self._exec_record(stdio, {"Running": True, "Pid": born.pid, "ExitCode": None})
        if client >= 0:
            stdio.clients.append(Attached(stdio, client, message))
            early = message.get("early")
            if early:
                stdio.clients[0].feed(early.encode("latin-1"))
        stdio.begin(born)
        self.emit("exec_start: " + message.get("command", ""), self.main, execID=stdio.id)
        return born.pid

    def exec_refused(self, message: dict, failure: EngineError, client: int) -> None:
        """It did not start: Docker tells on the stream that was opened for it, and in the record.
        """
        path = self._exec_path(message["id"])
        self._record_change(path, {"Running": False, "ExitCode": failure.exit})
        if client >= 0:
            data = str(failure).encode("utf-8", "replace") + b"\r\n"
            if message.get("mux", True):
                data = struct.pack(">BxxxI", 1, len(data)) + data
            try:
                write_all(client, data)
            except OSError:
                pass
            os.close(client)

    def _exec_ended(self, stdio: Stdio, code: int) -> None:
        pid = stdio.pid
        stdio.end()
        self._execs.pop(stdio.id, None)
        self._exec_record(stdio, {"Running": False, "Pid": pid, "ExitCode": code})
        self.emit("exec_die", self.main, execID=stdio.id, exitCode=str(code))
        stdio.dismiss()

    def _exec_path(self, id: str) -> str:
        return self.store.run_path("containers", self.id, "exec", id + ".json")

    def _exec_record(self, stdio: Stdio, change: dict) -> None:
        self._record_change(self._exec_path(stdio.id), change)

    def _record_change(self, path: str, change: dict) -> None:
        try:
            record = json_parse(file_read(path))
        except FileNotFoundError:
            return                          # the container is being removed
        record.update(change)
        file_write(path, json_text(record).encode("utf-8", "surrogateescape"), 0o600)

    def emit(self, action: str, stdio: Stdio, **attributes: str) -> None:
        """An event of this container, with the attributes that Docker gives it."""
        plan = self._plan
        if not plan:
            row = self.store.row("SELECT name, config FROM containers WHERE id=?", self.id)
            config = json_parse(row[1]) if row else {}
            plan = {"labels": config.get("Labels") or {}, "image": config.get("Image", ""),
                    "name": row[0] if row else ""}
        if stdio.id:
            attributes["execID"] = stdio.id
        event_emit(self.store, "container", action, self.id,
                   {**plan["labels"], **attributes, "image": plan["image"], "name": plan["name"]})

    def rename(self, name: str) -> None:
        """The name that events carry from now on."""
        if self._plan:
            self._plan["name"] = name

    @property
    def runs(self) -> bool:
        """There is a process."""
        return self._born is not None

    def exec_find(self, id: str) -> Stdio:
        """A second process that runs, by its exec id; NotFound when there is none."""
        if id not in self._execs:
            raise NotFound(f"No such exec instance: {id}")
        return self._execs[id]


def _signal_note(number: int, frame: object) -> None:
    """SIGCHLD is read from the wake-up pipe; this only keeps it from being ignored."""


def _runs_or_refuse(monitor: Monitor) -> None:
    if not monitor.runs:
        raise Conflict(f"container {monitor.id} is not running")


def verb_hello(monitor: Monitor, message: dict, fds: list, sock: _socket.socket) -> dict:
    """{"ok", "pid", "state"}: armed, running or paused."""
    state = ("paused" if monitor.paused else "running") if monitor.runs else "armed"
    return {"ok": True, "pid": os.getpid(), "state": state}


def verb_start(monitor: Monitor, message: dict, fds: list, sock: _socket.socket) -> dict:
    """Start the container by message["plan"]."""
    return monitor.start(message["plan"])


def verb_attach(monitor: Monitor, message: dict, fds: list, sock: _socket.socket) -> dict:
    """The descriptor becomes a client of the container's streams."""
    client = Attached(monitor.main, fds[0], message)
    fds[0] = -1
    monitor.main.clients.append(client)
    if message.get("early"):
        client.feed(message["early"].encode("latin-1"))
    monitor.emit("attach", monitor.main)
    return {"ok": True}


def verb_wait(monitor: Monitor, message: dict, fds: list, sock: _socket.socket) -> dict:
    """Whoever holds the other end of the descriptor is told how the process ends."""
    fd, head = fds[0], message.get("head", "").encode("latin-1")
    fds[0] = -1
    if message["condition"] == "not-running" and not monitor.runs and "exit_code" in monitor._plan:
        # It ended while the question was on its way.
        monitor._waiter_answer(fd, head, monitor._plan["exit_code"])
    else:
        monitor.wait_add(message["condition"], fd, head)
    return {"ok": True}


def verb_kill(monitor: Monitor, message: dict, fds: list, sock: _socket.socket) -> dict:
    """Send message["signal"] to the first process."""
    _runs_or_refuse(monitor)
    if message.get("stopped") or message["signal"] == 9:
        monitor.user_stopped = True
    monitor.signal(message["signal"])
    return {"ok": True}


def verb_stop(monitor: Monitor, message: dict, fds: list, sock: _socket.socket) -> dict | None:
    """Signal, wait, kill; the answer comes when the process has ended."""
    if not monitor.runs:
        return {"ok": True}
    if message.get("keep"):                # it is being restarted: not removed at this end
        monitor._plan["auto_remove"] = False
    monitor.stop_add(sock, message["signal"], message["timeout"])
    return None


def verb_pause(monitor: Monitor, message: dict, fds: list, sock: _socket.socket) -> dict:
    """Freeze the container."""
    _runs_or_refuse(monitor)
    if monitor.paused:
        raise Conflict(f"Container {monitor.id} is already paused")
    monitor.pause(True)
    return {"ok": True}


def verb_unpause(monitor: Monitor, message: dict, fds: list, sock: _socket.socket) -> dict:
    """Thaw the container."""
    _runs_or_refuse(monitor)
    if not monitor.paused:
        raise Conflict(f"Container {monitor.id} is not paused")
    monitor.pause(False)
    return {"ok": True}


def verb_resize(monitor: Monitor, message: dict, fds: list, sock: _socket.socket) -> dict:
    """Set the size of the container's terminal."""
    _runs_or_refuse(monitor)
    return _resize(monitor.main, message)


def verb_exec_resize(monitor: Monitor, message: dict, fds: list, sock: _socket.socket) -> dict:
    """Set the size of a second process's terminal."""
    return _resize(monitor.exec_find(message["id"]), message)


def _resize(stdio: Stdio, message: dict) -> dict:
    if stdio.terminal >= 0:
        winsize_set(stdio.terminal, message["h"], message["w"])
    return {"ok": True}


def verb_exec(monitor: Monitor, message: dict, fds: list, sock: _socket.socket) -> dict:
    """Start a second process: fds are its document and, unless detached, its client."""
    client = fds[1] if len(fds) > 1 else -1
    if client >= 0:
        fds[1] = -1
    try:
        _runs_or_refuse(monitor)
        if monitor.paused:                  # the new process would freeze, and we with it
            raise Conflict(f"Container {monitor.id} is paused, unpause the container before exec")
        pid = monitor.exec_start(message, fds[0], client)
    except EngineError as failure:
        monitor.exec_refused(message, failure, client)
        raise
    return {"ok": True, "pid": pid}


def verb_removed(monitor: Monitor, message: dict, fds: list, sock: _socket.socket) -> dict:
    """The container was removed: who waited for that is told, and nobody stays attached."""
    monitor.waiters_tell(message["code"], gone=True)
    monitor.main.dismiss()
    return {"ok": True}


def verb_rename(monitor: Monitor, message: dict, fds: list, sock: _socket.socket) -> dict:
    """Take note of the container's new name."""
    monitor.rename(message["name"])
    return {"ok": True}


#: Entries are added, never changed: an older build's monitor is driven by newer commands.
MONITOR_VERBS = {
    "attach": verb_attach,
    "exec": verb_exec,
    "exec_resize": verb_exec_resize,
    "hello": verb_hello,
    "kill": verb_kill,
    "pause": verb_pause,
    "removed": verb_removed,
    "rename": verb_rename,
    "resize": verb_resize,
    "start": verb_start,
    "stop": verb_stop,
    "unpause": verb_unpause,
    "wait": verb_wait,
}


@role("monitor")
def monitor_main(request: dict, conn: _socket.socket, fds: list) -> None:
    """The role of a container's monitor: answers that it serves, then serves."""
    sys_prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    monitor = Monitor(Store(request["data"], request["run"]), request["id"], conn)
    answer_send(conn, {"ok": True})
    monitor.run()


# =============================================================================
# processes -- what `top` shows: ps without a ps, from /proc
# =============================================================================
# Runs in: api, cli.   Refs: proc(5), ps(1) of procps-ng, moby daemon/top_unix.go
#
# `top` of Docker calls the host's ps; this reads /proc itself, so that no program is needed. What
# it understands: the option letters of PS_LAYOUTS, -o/o/--format with the columns of PS_COLUMNS
# and headings of one's own (`-o pid=P,comm`), and letters that only select processes, which a
# container does by itself. Values are those that ps prints, without its padding; names are the
# host's.

_TICK = 100                             # USER_HZ; 100 on every Linux architecture in use
_SELECT = frozenset("eAadNxwH")         # which processes, how wide: decided by the container
#: letters -> columns and their headings. BSD letters stand without a dash.
PS_LAYOUTS = {
    "":   "pid:PID tname:TTY time:TIME comm:CMD",
    "-f": "user:UID pid:PID ppid:PPID c:C stime:STIME tname:TTY time:TIME args:CMD",
    "-l": "f:F s:S uid:UID pid:PID ppid:PPID c:C pri:PRI ni:NI addr:ADDR sz:SZ wchan:WCHAN"
          " tname:TTY time:TIME comm:CMD",
    "-fl": "f:F s:S user:UID pid:PID ppid:PPID c:C pri:PRI ni:NI addr:ADDR sz:SZ wchan:WCHAN"
           " stime:STIME tname:TTY time:TIME args:CMD",
    "x":  "pid:PID tname:TTY stat:STAT bsdtime:TIME args:COMMAND",
    "u":  "user:USER pid:PID %cpu:%CPU %mem:%MEM vsz:VSZ rss:RSS tname:TTY stat:STAT stime:START"
          " bsdtime:TIME args:COMMAND",
}


class _Process:
    """What /proc tells about one process, for the columns to choose from."""

    __slots__ = ("pid", "stat", "uid", "gid", "comm", "args", "users", "groups", "now", "threads")

    def __init__(self, pid: int, users: dict, groups: dict) -> None:
        data = file_read(f"/proc/{pid}/stat").decode("utf-8", "surrogateescape")
        name, _, rest = data.partition("(")[2].rpartition(")")
        self.pid, self.comm, self.stat = pid, name, rest.split()
        owner = os.stat(f"/proc/{pid}")
        self.uid, self.gid = owner.st_uid, owner.st_gid
        words = file_read(f"/proc/{pid}/cmdline").rstrip(b"\0").replace(b"\0", b" ")
        self.args = words.decode("utf-8", "replace").replace("\n", "?") or f"[{name}]"
        self.users, self.groups = users, groups
        self.now = time.clock_gettime(time.CLOCK_BOOTTIME)

    def number(self, field: int) -> int:
        """Field of /proc/PID/stat by its number in proc(5), from 4 on."""
        return int(self.stat[field - 3])

    def cpu(self) -> float:
        """Seconds of processor time."""
        return (self.number(14) + self.number(15)) / _TICK

    def age(self) -> float:
        """Seconds since it was started."""
        return max(0.0, self.now - self.number(22) / _TICK)


def _ps_tty(p: _Process) -> str:
    device = p.number(7)
    major, minor = os.major(device), os.minor(device)
    if 136 <= major <= 143:
        return f"pts/{(major - 136) * 256 + minor}"
    if major == 4:
        return f"tty{minor}" if minor < 64 else f"ttyS{minor - 64}"
    return "console" if (major, minor) == (5, 1) else "?"


def _ps_start(p: _Process) -> str:
    now = time.time()
    then, today = time.localtime(now - p.age()), time.localtime(now)
    if then[:3] == today[:3]:
        return time.strftime("%H:%M", then)
    return time.strftime("%b%d" if then.tm_year == today.tm_year else "%Y", then)


def _ps_clock(seconds: float) -> str:
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return (f"{days}-" if days else "") + f"{hour:02d}:{minute:02d}:{second:02d}"


def _ps_elapsed(p: _Process) -> str:
    text = _ps_clock(p.age())
    return text[3:] if text.startswith("00:") else text


def _ps_stat(p: _Process) -> str:
    nice = p.number(19)
    return (p.stat[0] + ("<" if nice < 0 else "N" if nice > 0 else "")
            + ("s" if p.number(6) == p.pid else "") + ("l" if p.number(20) > 1 else "")
            + ("+" if p.number(8) == p.number(5) else ""))


def _ps_user(p: _Process) -> str:
    name = p.users.get(p.uid, str(p.uid))
    return name if len(name) < 9 else name[:7] + "+"


def _ps_share(p: _Process) -> float:
    return p.cpu() * 100 / p.age() if p.age() else 0.0


def _ps_memory(p: _Process) -> str:
    total = int(file_read("/proc/meminfo").split()[1]) * 1024
    return f"{p.number(24) * PAGE_SIZE * 100 / total:.1f}"


def _ps_bsd_time(p: _Process) -> str:
    minutes, second = divmod(int(p.cpu()), 60)
    return f"{minutes}:{second:02d}"


def _ps_wait(p: _Process) -> str:
    try:
        return file_read(f"/proc/{p.pid}/wchan").decode() or "-"
    except OSError:
        return "-"


PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")
#: column -> (heading, value of a _Process)
PS_COLUMNS = {
    "%cpu":    ("%CPU",    lambda p: f"{_ps_share(p):.1f}"),
    "%mem":    ("%MEM",    _ps_memory),
    "addr":    ("ADDR",    lambda p: "-"),
    "args":    ("COMMAND", lambda p: p.args),
    "bsdtime": ("TIME",    _ps_bsd_time),
    "c":       ("C",       lambda p: int(_ps_share(p))),
    "cmd":     ("CMD",     lambda p: p.args),
    "comm":    ("COMMAND", lambda p: p.comm),
    "etime":   ("ELAPSED", _ps_elapsed),
    "etimes":  ("ELAPSED", lambda p: int(p.age())),
    "f":       ("F",       lambda p: (p.number(9) >> 6) & 7),
    "gid":     ("GID",     lambda p: p.gid),
    "group":   ("GROUP",   lambda p: p.groups.get(p.gid, str(p.gid))),
    "lstart":  ("STARTED", lambda p: time.ctime(time.time() - p.age())),
    "ni":      ("NI",      lambda p: p.number(19)),
    "nlwp":    ("NLWP",    lambda p: p.number(20)),
    "pgid":    ("PGID",    lambda p: p.number(5)),
    "pid":     ("PID",     lambda p: p.pid),
    "ppid":    ("PPID",    lambda p: p.number(4)),
    "pri":     ("PRI",     lambda p: 60 + p.number(18)),
    "psr":     ("PSR",     lambda p: p.number(39)),
    "rss":     ("RSS",     lambda p: p.number(24) * PAGE_SIZE // 1024),
    "s":       ("S",       lambda p: p.stat[0]),
    "sid":     ("SID",     lambda p: p.number(6)),
    "stat":    ("STAT",    _ps_stat),
    "stime":   ("STIME",   _ps_start),
    "sz":      ("SZ",      lambda p: p.number(23) // PAGE_SIZE),
    "time":    ("TIME",    lambda p: _ps_clock(p.cpu())),
    "tname":   ("TTY",     _ps_tty),
    "uid":     ("UID",     lambda p: p.uid),
    "user":    ("USER",    _ps_user),
    "vsz":     ("VSZ",     lambda p: p.number(23) // 1024),
    "wchan":   ("WCHAN",   _ps_wait),
}
#: other names of the same columns
PS_ALIASES = {
    "command": "args", "cputime": "time", "egid": "gid", "egroup": "group", "euid": "uid",
    "euser": "user", "fgid": "gid", "flag": "f", "flags": "f", "nice": "ni", "pcpu": "%cpu",
    "pgrp": "pgid", "pmem": "%mem", "rgid": "gid", "rgroup": "group", "rssize": "rss",
    "rsz": "rss", "ruid": "uid", "ruser": "user", "sess": "sid", "session": "sid",
    "start": "stime", "start_time": "stime", "state": "s", "thcount": "nlwp", "tt": "tname",
    "tty": "tname", "ucmd": "comm", "ucomm": "comm", "uname": "user", "vsize": "vsz",
}
_HEADINGS = {"command": "COMMAND", "flag": "F", "flags": "F", "pgrp": "PGRP", "sess": "SESS",
             "session": "SESS", "start": "STARTED", "start_time": "START", "thcount": "THCNT",
             "tt": "TT", "tty": "TT", "ucmd": "CMD"}


def processes_table(pids: Iterable[int], arguments: str) -> dict:
    """What ps would print of these processes: {"Titles": [...], "Processes": [[...], ...]}.

    `arguments` are ps's own ("" means -ef). EngineError where ps would fail.
    """
    columns = _ps_columns(arguments or "-ef")
    titles = [heading for _, heading in columns]
    if "PID" not in titles:
        raise EngineError("Couldn't find PID field in ps output")
    users, groups = _names("/etc/passwd"), _names("/etc/group")
    rows = []
    for pid in sorted(pids):
        try:
            process = _Process(pid, users, groups)
        except (FileNotFoundError, ProcessLookupError):
            continue                    # it ended meanwhile
        rows.append([str(PS_COLUMNS[name][1](process)) for name, _ in columns])
    return {"Titles": titles, "Processes": rows}


def processes_beside(pid: int) -> list[int]:
    """The processes of a container by its first one, where no cgroup tells them.

    All in its pid namespace; where that is ours too, the process and its descendants.
    """
    parents = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            stat = file_read(f"/proc/{name}/stat")
            parents[int(name)] = int(stat.rpartition(b")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue                    # it ended meanwhile
    if ns_inode(pid, "pid") != ns_inode("self", "pid"):
        return [other for other in parents if _is_beside(other, pid)]
    found = [pid]
    for parent in found:
        found += [child for child, above in parents.items() if above == parent]
    return found


def _is_beside(other: int, pid: int) -> bool:
    try:
        return ns_inode(other, "pid") == ns_inode(pid, "pid")
    except OSError:
        return False                    # a zombie, or it ended meanwhile


def _names(path: str) -> dict:
    """{id: name} of the host's passwd or group file."""
    try:
        lines = file_read(path).decode("utf-8", "surrogateescape").split("\n")
    except FileNotFoundError:
        return {}
    rows = [line.split(":") for line in lines]
    return {int(row[2]): row[0] for row in rows if len(row) > 2 and row[2].isdigit()}


def _ps_columns(arguments: str) -> list:
    """[(column, heading)] that the arguments ask for."""
    words = arguments.split()
    chosen: list = []
    letters = set()
    is_bsd = False
    while words:
        word = words.pop(0)
        if word.startswith("--format"):
            value = word[9:] if word[8:9] == "=" else (words.pop(0) if words else "")
            chosen += _ps_list(value)
            continue
        dash = word.startswith("-")
        body = word[1:] if dash else word
        while body:
            letter, body = body[0], body[1:]
            if letter in "oO":
                chosen += _ps_list(body or (words.pop(0) if words else ""))
                break
            if letter in "flu" or not dash and letter == "x":
                letters.add(letter)
            elif letter not in _SELECT:
                raise EngineError("ps: error: unsupported option (this engine reads /proc itself)")
            is_bsd = is_bsd or not dash
    if chosen:
        return chosen
    name = "".join(letter for letter in "fl" if letter in letters)
    layout = "u" if "u" in letters else "x" if is_bsd and not name else "-" + name if name else ""
    return [tuple(pair.split(":")) for pair in PS_LAYOUTS[layout].split()]


def _ps_list(text: str) -> list:
    if not text:
        raise EngineError("ps: error: format specification must follow -o")
    out = []
    head, equals, heading = text.partition("=")
    names = head.replace(" ", ",").split(",")
    if equals and heading.lstrip().startswith("PID") and names[-1] != "pid":
        raise EngineError(f'specifying "{names[-1]}={heading.strip()}" is not allowed')
    for index, given in enumerate(names):
        name = PS_ALIASES.get(given, given)
        if name not in PS_COLUMNS:
            raise EngineError(f'ps: error: unknown user-defined format specifier "{given}"')
        is_last = equals and index == len(names) - 1
        title = heading if is_last else _HEADINGS.get(given, PS_COLUMNS[name][0])
        out.append((name, title))
    return out


# =============================================================================
# repair -- what a process that died left half done, put in order by the next one
# =============================================================================
# Runs in: api, cli, launcher (role repair).
#
# A container's row says what its monitor, a starter or a remover last wrote. Each of these may
# die at any instruction. Whoever reads a row next compares it with what the kernel knows
# (container_settle: a few microseconds when all is well) and, where they differ, puts it right
# (container_repair):
#   running, paused   another boot: exited 255, as Docker tells it after a reboot. No monitor
#                     answers: its processes are killed (the kernel did that to the first one),
#                     exited 137;
#   starting          its starter is dead and no process came of it: back to what it was;
#   removing          its remover is dead: the removal is finished.
# A --rm container that has ended this way is removed. One repairs at a time (a lock per container),
# and each step may be repeated, so a repair that dies is itself repaired.

MONITOR_PATIENCE = 10.0                 # s that a monitor may take to say hello


def container_event(store: Store, c: Container, action: str, **attributes: str) -> None:
    """Tell the journal what happened to a container, with the attributes that Docker gives it."""
    event_emit(store, "container", action, c.id, {
        **(c.config["Labels"] or {}), **attributes, "image": c.config["Image"], "name": c.name})


def container_settle(store: Store, c: Container, boot: str = "") -> Container | None:
    """The container as it really is: `c` itself when its row is true, else after a repair.

    None when it is gone. `boot` is boot_id() for a caller that settles many.
    """
    if c.state in ("created", "exited", "dead"):
        return c
    if c.is_running:
        # A process ends with its monitor (PR_SET_PDEATHSIG), so its own pid is enough to look at;
        # one that has ended and is not reaped yet has no exe (proc_pid_exe(5)).
        if c.boot_id == (boot or boot_id()) and os.path.exists(f"/proc/{c.pid}/exe"):
            return c
    elif owner_lives(c.owner):
        return c
    return container_repair(store, c.id)


def container_repair(store: Store, id: str) -> Container | None:
    """Make a container's row true again; the container afterwards, None when it is gone."""
    with container_lock(store, id):
        # The monitor writes its last row before its socket's name goes, so the row is read second.
        hello = _monitor_hello(store, id)
        c = record_get(store, id)
        if c is None and not hello:
            _remains_remove(store, id)
        elif c is None:
            pass                        # its monitor is just clearing up
        elif c.is_running and c.boot_id != boot_id():
            _end_record(store, c, 255, "")
        elif c.is_running and not hello:
            _end_record(store, c, 137, "monitor died")
        elif c.state == "starting" and not owner_lives(c.owner) and hello != "running":
            record_move(store, id, ("starting",), c.status, owner="")
        elif c.state == "removing" and not owner_lives(c.owner):
            container_dispose(store, c)
    return record_get(store, id)


def _monitor_hello(store: Store, id: str) -> str:
    """What the container's monitor says of itself: armed, running, paused; "" when none lives."""
    sock = monitor_connect(store, id)
    if sock is None:
        return ""
    try:
        sock.settimeout(MONITOR_PATIENCE)
        fds_send(sock, b'{"verb":"hello"}')
        answer = sock.recv(1 << 12)
        return json_parse(answer)["state"] if answer else ""
    except OSError:
        return ""
    finally:
        sock.close()


def _end_record(store: Store, c: Container, code: int, error: str) -> None:
    """What the monitor would have done at the end of its container."""
    _cgroup_end(cgroup_name(c))
    if not record_move(store, c.id, ("running", "paused"), "exited", pid=0, finished=time_now(),
                       exit_code=code, error=error, owner=""):
        return
    container_event(store, c, "die", exitCode=str(code),
                    execDuration=str((time_now() - c.started) // SECOND))
    if c.auto_remove:
        container_dispose(store, c)


def container_dispose(store: Store, c: Container) -> None:
    """Remove a container that has no process: its files, its row, its part of the run root."""
    trash = store.path("tmp", "removed-" + c.id)
    try:
        os.rename(store.path("containers", c.id), trash)
    except FileNotFoundError:
        pass                            # an earlier removal came this far
    if record_delete(store, c.id, durable=not c.auto_remove):
        container_event(store, c, "destroy")
    try:
        monitor_call(store, c.id, {"verb": "removed", "code": c.exit_code})
    except NoMonitor:
        pass                            # nobody waits for the removal
    tree_remove(trash)
    _run_dir_remove(store, c.id)


def _remains_remove(store: Store, id: str) -> None:
    """Clear up after a container whose row is gone and whose monitor died before it was through."""
    _cgroup_end("engine/" + id)
    tree_remove(store.path("containers", id))
    tree_remove(store.path("tmp", "removed-" + id))
    _run_dir_remove(store, id)


def _cgroup_end(name: str) -> None:
    cgroup = cgroup_paths(name)
    cgroup.thaw()
    cgroup.kill()
    cgroup.remove()


def _run_dir_remove(store: Store, id: str) -> None:
    """Remove a container's part of the run root; another command may just be making its lock there.

    That one finds no row and removes the directory itself.
    """
    for _ in range(5):
        try:
            tree_remove(store.run_path("containers", id))
            return
        except OSError as busy:
            if busy.errno != errno.ENOTEMPTY:
                raise


def orphans_remove(store: Store) -> None:
    """Remove directories of containers that have no row: a create or a removal died half-way.

    One that is younger than a minute may be a create at work.
    """
    for root in (store.path("containers"), store.run_path("containers")):
        for name in os.listdir(root):
            if store.row("SELECT 1 FROM containers WHERE id = ?", name) is None:
                try:
                    old = time.time() - os.stat(f"{root}/{name}").st_mtime > 60
                except FileNotFoundError:
                    continue
                if old and not _monitor_hello(store, name):
                    tree_remove(f"{root}/{name}")
    for name in os.listdir(store.path("tmp")):
        if name.startswith("removed-"):
            tree_remove(store.path("tmp", name))


@role("repair")
def repair_main(request: dict, conn: Any, fds: list) -> None:
    """The launcher's answer to a monitor that died: repair its container."""
    container_repair(Store(request["data"], request["run"]), request["id"])


# =============================================================================
# views -- a container as clients see it: inspect, lists and their filters
# =============================================================================
# Runs in: api, cli.   Refs: Docker Engine API 1.51, moby daemon/inspect.go and daemon/list.go
#
# What `inspect` and `ps` show of a container: built from its row, with Docker's keys in Docker's
# order. The list is made from rows that are newest first; a filter is a function (container,
# values) -> whether it stays, in LIST_FILTERS; `before` and `since` cut the list itself.

ENDPOINT_NONE = {
    "IPAMConfig": None, "Links": None, "Aliases": None, "MacAddress": "", "DriverOpts": None,
    "GwPriority": 0, "NetworkID": "", "EndpointID": "", "Gateway": "", "IPAddress": "",
    "IPPrefixLen": 0, "IPv6Gateway": "", "GlobalIPv6Address": "", "GlobalIPv6PrefixLen": 0,
    "DNSNames": None}
NETWORK_NONE = {
    "Bridge": "", "SandboxID": "", "SandboxKey": "", "Ports": {}, "HairpinMode": False,
    "LinkLocalIPv6Address": "", "LinkLocalIPv6PrefixLen": 0, "SecondaryIPAddresses": None,
    "SecondaryIPv6Addresses": None, "EndpointID": "", "Gateway": "", "GlobalIPv6Address": "",
    "GlobalIPv6PrefixLen": 0, "IPAddress": "", "IPPrefixLen": 0, "IPv6Gateway": "",
    "MacAddress": ""}
HEALTHS = ("none", "starting", "healthy", "unhealthy")
LIST_KEYS = ("ancestor", "before", "exited", "expose", "health", "id", "is-task", "isolation",
             "label", "name", "network", "publish", "since", "status", "volume")


def networks_show(c: Container, ids: dict) -> dict:
    """The networks that a container is in: {"none": {...}}; none of its own when it shares one.

    `ids` is network_ids(): as in Docker a network has one for a container that has been started.
    """
    mode = c.host["NetworkMode"]
    if mode.startswith("container:"):
        return {}
    return {mode: {**ENDPOINT_NONE, "NetworkID": ids.get(mode, "") if c.started else "",
                   "EndpointID": _run_id(c, _ENDPOINT_SALT)}}


def network_ids(store: Store) -> dict:
    """{name of a network: its id}, of those that a container was ever started with."""
    rows = store.rows("SELECT key, value FROM meta WHERE key LIKE 'network:%'")
    return {key[8:]: value for key, value in rows}


def network_id_ensure(store: Store, name: str) -> None:
    """Give a network its id, which it keeps, when its first container starts."""
    key = "network:" + name
    if store.row("SELECT 1 FROM meta WHERE key = ?", key) is None:
        with store.write() as db:
            db.execute("INSERT OR IGNORE INTO meta VALUES(?, ?)", (key, id_new()))


_ENDPOINT_SALT, _SANDBOX_SALT = 0xF39CC0605CEDC835 << 130 | 1, 0x9E3779B97F4A7C15 << 130 | 1


def _run_id(c: Container, salt: int) -> str:
    """An id for one run of a container: another one at its next start, "" when it does not run."""
    return f"{(int(c.id, 16) ^ c.started * salt) % (1 << 256):064x}" if c.is_running else ""


def _network_show(store: Store, c: Container) -> dict:
    """NetworkSettings. The sandbox's key is a path that `nsenter --net=` can enter."""
    out = {**NETWORK_NONE, "Networks": networks_show(c, network_ids(store))}
    if c.is_running and out["Networks"]:
        out["SandboxID"] = _run_id(c, _SANDBOX_SALT)
        out["SandboxKey"] = f"/proc/{c.pid}/ns/net"
    return out


def container_show(store: Store, c: Container, size: bool = False) -> dict:
    """The whole document of GET /containers/{id}/json."""
    directory = store.path("containers", c.id)
    host, config = c.host, c.config
    names = {name: f"{directory}/{name}" if c.started else ""
             for name in ("resolv.conf", "hostname", "hosts")}
    out = {
        "Id": c.id, "Created": time_rfc3339(c.created), "Path": c.document["Path"],
        "Args": c.document["Args"], "State": state_show(c), "Image": c.image,
        "ResolvConfPath": names["resolv.conf"], "HostnamePath": names["hostname"],
        "HostsPath": names["hosts"],
        "LogPath": f"{directory}/{c.id}-json.log" if host["LogConfig"]["Type"] != "none"
                   and c.started else "",
        "Name": "/" + c.name, "RestartCount": c.restarts, "Driver": "overlay2",
        "Platform": c.document["Platform"], "MountLabel": "", "ProcessLabel": "",
        "AppArmorProfile": "", "ExecIDs": exec_ids(store, c) or None,
        "HostConfig": config_show(host, HOST_CONFIG),
        "GraphDriver": {"Data": graph_show(store, c), "Name": "overlay2"},
    }
    if size:
        out["SizeRw"], out["SizeRootFs"] = sizes_show(store, c)
    out["Mounts"] = []
    out["Config"] = config_show(config, CONFIG)
    out["NetworkSettings"] = _network_show(store, c)
    return out


def graph_show(store: Store, c: Container) -> dict:
    """Where the container's files lie. The merged view exists only inside a running container."""
    directory = store.path("containers", c.id)
    return {
        "ID": c.id, "LowerDir": ":".join(layer_paths(store, c.document["Layers"])),
        "MergedDir": f"/proc/{c.pid}/root" if c.is_running else "",
        "UpperDir": directory + "/upper", "WorkDir": directory + "/work"}


def layer_paths(store: Store, names: list) -> list:
    """Directories of layers as create noted them (relative to the data root), topmost first."""
    return [store.path(name) for name in names]


def sizes_show(store: Store, c: Container) -> tuple:
    """(bytes that the container wrote, these and its image's) as SizeRw and SizeRootFs."""
    own = tree_size(store.path("containers", c.id, "upper"))
    row = store.row("SELECT size FROM images WHERE id = ?", c.image)
    return own, own + (row[0] if row else 0)


def tree_size(path: str) -> int:
    """Bytes of the files below a directory; a file with several names counts once."""
    total, seen = 0, set()
    pending = [path]
    while pending:
        try:
            entries = os.scandir(pending.pop())
        except FileNotFoundError:
            continue
        with entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                    continue
                info = entry.stat(follow_symlinks=False)
                if info.st_nlink > 1:
                    if info.st_ino in seen:
                        continue
                    seen.add(info.st_ino)
                total += info.st_size
    return total


def exec_dir(store: Store, id: str) -> str:
    """Where the records of a container's second processes lie."""
    return store.run_path("containers", id, "exec")


def exec_ids(store: Store, c: Container) -> list:
    """Ids of the container's second processes that have not ended."""
    try:
        names = sorted(os.listdir(exec_dir(store, c.id)))
    except FileNotFoundError:
        return []
    if not c.is_running:
        return []
    out = []
    for name in names:
        if name.endswith(".json"):
            record = json_parse(file_read(f"{exec_dir(store, c.id)}/{name}"))
            if record["ExitCode"] is None:
                out.append(record["ID"])
    return out


# ---- lists ----

def summary_show(c: Container, image: str, now: int, networks: dict) -> dict:
    """One entry of GET /containers/json; `image` is the name to show for its image, `networks` what
    network_ids says.
    """
    words = [c.document["Path"]]
    words += [f"'{word}'" if " " in word else word for word in c.document["Args"]]
    summary = {"NetworkMode": c.host["NetworkMode"]}
    if c.host["Annotations"]:
        summary["Annotations"] = c.host["Annotations"]
    return {
        "Id": c.id, "Names": ["/" + c.name], "Image": image, "ImageID": c.image,
        "Command": " ".join(words), "Created": c.created // SECOND, "Ports": [],
        "Labels": c.config["Labels"] or {}, "State": c.status, "Status": state_text(c, now),
        "HostConfig": summary, "NetworkSettings": {"Networks": networks_show(c, networks)},
        "Mounts": []}


def _exited_codes(values: list) -> list:
    codes = []
    for value in values:
        try:
            codes.append(int(value))
        except ValueError:
            raise InvalidParameter(f"invalid filter 'exited={value}': strconv.Atoi: parsing"
                                   f" {quote(value)}: invalid syntax") from None
    return codes


def list_filters_check(filters: dict) -> None:
    """Raise InvalidParameter for keys and values that Docker refuses."""
    filters_check(filters, LIST_KEYS)
    _exited_codes(filters.get("exited", ()))
    for value in filters.get("status", ()):
        if value not in STATES:
            raise InvalidParameter(f"invalid filter 'status={value}': invalid value for state"
                                   f" ({value}): must be one of {', '.join(STATES)}")
    for value in filters.get("health", ()):
        if value not in HEALTHS:
            raise InvalidParameter(f"invalid filter 'health={value}': invalid value for health"
                                   f" ({value}): must be one of {', '.join(HEALTHS)}")
    filter_bool(filters, "is-task", False)


def _stays_name(c: Container, filters: dict) -> bool:
    return filter_match(filters, "name", c.name) or filter_match(filters, "name", "/" + c.name)


def _stays_exited(c: Container, filters: dict) -> bool:
    return not c.is_running and c.started > 0 and c.exit_code in _exited_codes(filters["exited"])


def _stays_network(c: Container, filters: dict) -> bool:
    return c.host["NetworkMode"] in filters["network"]      # list() has made names of ids


def _stays_port(c: Container, filters: dict) -> bool:
    return False                        # no container has ports before it has networks


LIST_FILTERS = {
    "name":      _stays_name,
    "id":        lambda c, filters: filter_match(filters, "id", c.id),
    "is-task":   lambda c, filters: not filter_bool(filters, "is-task", False),
    "label":     lambda c, filters: filter_labels(filters, c.config["Labels"]),
    "isolation": lambda c, filters: filter_match(filters, "isolation", ""),
    "exited":    _stays_exited,
    "status":    lambda c, filters: filter_match(filters, "status", c.status),
    "health":    lambda c, filters: filter_exact(filters, "health", c.health or "none"),
    "volume":    _stays_port,
    "network":   _stays_network,
    "publish":   _stays_port,
    "expose":    _stays_port,
}


def list_select(containers: list, *, everything: bool, limit: int, filters: dict,
                ancestors: set | None) -> list:
    """Those of the containers (newest first) that a list request asks for.

    `ancestors` are the image ids that the filter of that name allows, None when it is not given.
    """
    list_filters_check(filters)
    everything = everything or "status" in filters
    before, since = (_list_mark(containers, filters, key) for key in ("before", "since"))
    tests = [LIST_FILTERS[key] for key in filters if key in LIST_FILTERS]
    out: list = []
    for c in containers:
        if before:
            if c.id == before:
                before = ""
            continue
        if c.id == since or limit > 0 and len(out) == limit:
            break
        if not (everything or limit > 0 or c.is_running):
            continue
        if ancestors is not None and c.image not in ancestors:
            continue
        if all(test(c, filters) for test in tests):
            out.append(c)
    return out


def _list_mark(containers: list, filters: dict, key: str) -> str:
    """The id of the container that `before` or `since` names."""
    found = ""
    for value in filters.get(key, ()):
        name = value.lstrip("/")
        ids = [c.id for c in containers if value in (c.id,) or name == c.name]
        ids = ids or [c.id for c in containers if value and c.id.startswith(value)]
        if not ids:
            raise NotFound("No such container: " + value)
        found = ids[0]
    return found


# ---- what a container changed ----

def changes_list(upper: str, lowers: list) -> list:
    """What an overlay's upper directory changes (0), adds (1) and deletes (2), in order of path.

    As moby tells it (pkg/archive changes.go): a whiteout (character device 0:0) is a deletion; a
    directory that both have counts when it or something right in it was changed.
    """
    found: dict = {}
    _changes_walk(found, upper, lowers, "")
    return [{"Path": path, "Kind": found[path]}
            for path in sorted(found, key=lambda path: path.split("/"))]


def _changes_walk(found: dict, upper: str, lowers: list, path: str) -> None:
    with os.scandir(upper + path) as entries:
        children = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]
    for name, info in children:
        child = f"{path}/{name}"
        is_dir = info.st_mode & 0o170000 == 0o040000
        below = _lower_stat(lowers, child)
        if _is_whiteout(info):
            found[child] = 2
        elif not (is_dir and below and _is_same_dir(info, below)):
            found[child] = 0 if below else 1
        if is_dir:
            _changes_walk(found, upper, lowers, child)
        elif path:
            found.setdefault(path, 0)


def _is_whiteout(info: os.stat_result) -> bool:
    return info.st_mode & 0o170000 == 0o020000 and info.st_rdev == 0


def _is_same_dir(one: os.stat_result, other: os.stat_result) -> bool:
    """A directory that the overlay copied up because of what is below it keeps all of these."""
    return (one.st_mode, one.st_size, one.st_mtime_ns, one.st_uid, one.st_gid) == (
        other.st_mode, other.st_size, other.st_mtime_ns, other.st_uid, other.st_gid)


def _lower_stat(lowers: list, name: str) -> os.stat_result | None:
    """The path as the layers below show it, None where it does not exist."""
    for lower in lowers:
        try:
            info = os.lstat(lower + name)
        except (FileNotFoundError, NotADirectoryError):
            if _hides(lower, name):
                return None
            continue
        return None if _is_whiteout(info) else info
    return None


def _hides(lower: str, name: str) -> bool:
    """True when this layer, which lacks the path, also hides it in those below."""
    parent = os.path.dirname(name)
    while parent != "/":
        try:
            info = os.lstat(lower + parent)
        except (FileNotFoundError, NotADirectoryError):
            parent = os.path.dirname(parent)
            continue
        if info.st_mode & 0o170000 != 0o040000:
            return True                 # a whiteout or a file in the place of a directory
        try:
            return xattr_get(lower + parent, "trusted.overlay.opaque", True) == b"y"
        except OSError:
            return False
    return False


# =============================================================================
# containers -- create, start, stop, kill, pause, remove, rename, prune, list, top, diff
# =============================================================================
# Runs in: api, cli.   Refs: moby daemon/create.go, start.go, stop.go, kill.go, delete.go, rename.go
#
# The verbs on containers. Each finds its container by what the user typed, in its true state
# (settle), then changes the row by compare-and-set or asks the monitor; errors are Docker's, word
# for word.
#   create  check, image, merge, directories, one row; nothing is mounted and nothing runs.
#   start   created|exited -> starting (whoever gets it wins), files and config.json written, then
#           the plan goes to the monitor, which writes `running`. On failure the row goes back to
#           what it was, with Docker's error and exit code in it; a --rm container is removed.
#   stop, kill, pause and the rest of a running container are messages to its monitor.
#   remove  exited -> removing; the directory is renamed into tmp/, the row deleted, then the bytes.
# The monitor tells the journal what it does itself; here come create, stop, restart, rename, prune.

HOSTS = ("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\n"
         "ff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
#: Where mounts land; these exist below every container, so that making them changes nothing in it.
INIT_DIRS = ("dev", "dev/pts", "dev/shm", "etc", "proc", "sys")
INIT_FILES = (".dockerenv", "dev/console", "etc/hostname", "etc/hosts", "etc/resolv.conf")
INIT_LAYER = "init/diff"                # not below layers/: it is no image's
KILL_PATIENCE = 10.0                    # s; moby waits as long for the end after SIGKILL
START_PATIENCE = 10.0                   # s that a command waits while another starts its container
REMOVE_FILTERS = ("label", "label!", "until")


class Containers:
    """The containers of one store: every verb of the API, by what the user called the container."""

    __slots__ = ("_engine", "_store")

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._store = engine.store

    def find(self, ref: str) -> Container:
        """The container that a user means, its row true; NotFound when there is none.

        One that another command is just starting is waited for, some milliseconds as a rule.
        """
        c = container_settle(self._store, record_find(self._store, ref))
        patience = time.monotonic() + START_PATIENCE
        while c is not None and c.state == "starting" and time.monotonic() < patience:
            time.sleep(0.005)
            c = record_get(self._store, c.id)
            c = c and container_settle(self._store, c)
        if c is None:
            raise NotFound("No such container: " + ref)
        return c

    def running(self, ref: str) -> Container:
        """The same, running or paused; Conflict otherwise."""
        c = self.find(ref)
        if not c.is_running:
            raise Conflict(f"container {c.id} is not running")
        return c

    def all(self) -> list:
        """Every container, the newest first, each in its true state."""
        boot = boot_id()
        settled = (container_settle(self._store, c, boot) for c in record_list(self._store))
        return [c for c in settled if c is not None]

    # ---- create and remove

    def create(self, body: Any, *, name: str = "", platform: str = "",
               version: str = API_VERSION) -> dict:
        """Make a container from a create body: {"Id": id, "Warnings": [...]}."""
        config, host, networking = create_check(body, version)
        if "CAP_SYS_ADMIN" not in capabilities_available():
            raise Unsupported("containers need root with CAP_SYS_ADMIN: this engine has no rootless"
                              " mode yet")
        name = name_check(name) if name else ""
        warnings = create_verify(config, host)
        image = self._engine.images.for_container(config["Image"], platform)
        if image["warning"]:
            warnings.append(image["warning"])
        config_merge(config, image["config"])
        network_verify(config, host, networking)
        self._modes_resolve(host)
        id = id_new()
        if not config["Hostname"]:
            config["Hostname"] = os.uname().nodename if host["NetworkMode"] == "host" else id[:12]
        words = command_words(config)
        c = record_new(id=id, name=name, image=image["id"], config=config, host=host, document={
            "Path": words[0], "Args": words[1:], "Platform": image["os"],
            "Layers": [INIT_LAYER, *image["layers"]],
            "EndpointsConfig": networking["EndpointsConfig"]})
        directory = self._store.path("containers", id)
        with undo_on_error() as undo:
            undo.callback(tree_remove, directory)
            dir_ensure(directory, 0o710)
            for name in ("/upper", "/work"):
                dir_ensure(directory + name, 0o755)
            record_insert(self._store, c)
        container_event(self._store, c, "create")
        if config["Volumes"]:
            warnings.append("volumes are not supported by this engine yet: what is written to"
                            f" {', '.join(sorted(config['Volumes']))} stays in the container")
        return {"Id": id, "Warnings": warnings}

    def _modes_resolve(self, host: dict) -> None:
        """Names in container:x become ids, so that a rename changes nothing (moby create.go).

        A network's container may be made later: it is looked for again at start.
        """
        for field in ("NetworkMode", "IpcMode", "PidMode"):
            other = mode_container(host[field])
            if not other:
                continue
            try:
                host[field] = "container:" + record_find(self._store, other).id
            except NotFound:
                if field != "NetworkMode":
                    raise

    def remove(self, ref: str, *, force: bool = False, link: bool = False) -> None:
        """Remove a container; with `force` also one that runs."""
        c = self.find(ref)
        if link:
            raise Conflict("Conflict, cannot remove the default link name of the container")
        if c.is_running:
            if not force:
                why = ("container is paused and must be unpaused first" if c.state == "paused" else
                       f"container is {c.state}: stop the container before removing or force"
                       " remove")
                raise Conflict(f'cannot remove container "{ref}": {why}')
            self._kill(c)
        for _ in range(2):
            if record_move(self._store, c.id, ("created", "exited", "dead"), "removing",
                           owner=owner_self()):
                container_dispose(self._store, c)
                return
            now = record_get(self._store, c.id)
            if now is None:
                return                  # --rm: the monitor was quicker
            if now.state == "removing":
                raise Conflict(f"removal of container {ref} is already in progress")
            if not force:
                break
            # Somebody started it between our look and our change.
            self._kill(now)
        raise Conflict(f'cannot remove container "{ref}": container is {now.status}: stop the'
                       " container before removing or force remove")

    def prune(self, filters: dict) -> dict:
        """Remove what does not run: {"ContainersDeleted": ids or None, "SpaceReclaimed": bytes}."""
        filters_check(filters, REMOVE_FILTERS)
        until = _until_parse(filters)
        deleted, freed = [], 0
        for c in self.all():
            if c.state not in ("created", "exited", "dead") or until and c.created > until:
                continue
            labels = c.config["Labels"] or {}
            if not filter_labels(filters, labels) or "label!" in filters and filter_labels(
                    {"label": filters["label!"]}, labels):
                continue
            size = tree_size(self._store.path("containers", c.id, "upper"))
            try:
                self.remove(c.id)
            except (Conflict, NotFound):
                continue                # started or removed by somebody else meanwhile
            deleted.append(c.id)
            freed += size
        orphans_remove(self._store)
        event_emit(self._store, "container", "prune", "", {"reclaimed": str(freed)})
        return {"ContainersDeleted": deleted or None, "SpaceReclaimed": freed}

    def rename(self, ref: str, name: str) -> None:
        """Give a container another name."""
        if not name or not ref:
            raise InvalidParameter("Neither old nor new names may be empty")
        c = self.find(ref)
        if name.lstrip("/") == c.name:
            raise InvalidParameter(
                "Renaming a container with the same name as its current name")
        old = c.name
        try:
            c.name = name_check(name if name[0] == "/" else "/" + name)
            record_rename(self._store, c.id, c.name)
        except (InvalidParameter, Conflict) as refused:
            raise type(refused)(f"Error when allocating new name: {refused}") from None
        self._tell(c.id, {"verb": "rename", "name": c.name})
        container_event(self._store, c, "rename", oldName="/" + old)

    def _tell(self, id: str, message: dict) -> bool:
        """Send the monitor a message if there is one; False when there is none."""
        try:
            monitor_call(self._store, id, message)
            return True
        except NoMonitor:
            return False

    # ---- start and stop

    def start(self, ref: str) -> None:
        """Start a container that does not run; NotModified when it does."""
        c = self.find(ref)
        if not record_move(self._store, c.id, ("created", "exited"), "starting",
                           owner=owner_self()):
            raise self._start_refusal(ref, c.id)
        try:
            self._launch(c)
        except BaseException as failure:
            self._start_undo(c, failure)
            raise

    def _start_refusal(self, ref: str, id: str) -> EngineError:
        now = record_get(self._store, id)
        if now is None:
            return NotFound("No such container: " + ref)
        if now.state == "paused":
            return Conflict("cannot start a paused container, try unpause instead")
        if now.state in ("removing", "dead"):
            return Conflict("container is marked for removal and cannot be started")
        return NotModified("container is already running")

    def _launch(self, c: Container) -> None:
        store = self._store
        directory = store.path("containers", c.id)
        bundle = dir_ensure(store.run_path("containers", c.id), 0o700)
        join, shm, donor = _namespaces_resolve(self, c)
        hostname = donor.config["Hostname"] if donor else c.config["Hostname"]
        if c.host["UTSMode"] == "host":
            hostname = os.uname().nodename
        files = files_write(c, directory, hostname)
        if donor:
            files = {path: f"{store.path('containers', donor.id)}/{os.path.basename(path)}"
                     for path in files}
        init_layer_make(store)
        if not mode_container(c.host["NetworkMode"]):
            network_id_ensure(store, c.host["NetworkMode"])
        spec = spec_build(c, hostname=hostname, files=files, join=join, shm=shm)
        file_write(bundle + "/config.json", json_text(spec).encode("utf-8", "surrogateescape"),
                   0o600)
        plan = plan_build(c, spec, bundle=bundle, layers=layer_paths(store, c.document["Layers"]),
                          directory=directory)
        # A container that shares another's namespace starts only while that one holds it.
        monitor_call(store, c.id, {"verb": "start", "plan": plan}, start=True)

    def _start_undo(self, c: Container, failure: BaseException) -> None:
        """The row as it was before, with what went wrong; a --rm container goes (moby start.go)."""
        code = failure.exit if isinstance(failure, EngineError) else 1
        code = code if code in (126, 127) else 128
        if not record_move(self._store, c.id, ("starting",), c.state, owner="", exit_code=code,
                           error=str(failure)):
            return
        if c.auto_remove:
            try:
                self.remove(c.id, force=True)
            except EngineError:
                pass                    # the start's own failure is what the user must hear

    def stop(self, ref: str, timeout: int | None = None, signal: str = "") -> None:
        """Ask a container's process to end, kill it when it does not; NotModified when it is over.

        `timeout` is in seconds, negative for ever, None what the container was created with.
        """
        number = signal_number(signal) if signal else 0
        c = self.find(ref)
        if not c.is_running:
            raise NotModified("container is already stopped")
        self._stop(c, timeout, number)

    def _stop(self, c: Container, timeout: int | None, number: int, keep: bool = False) -> None:
        if timeout is None:
            timeout = c.config["StopTimeout"]
        message = {
            "verb": "stop", "keep": keep,
            "signal": number or signal_number(c.config["StopSignal"] or "SIGTERM"),
            "timeout": STOP_TIMEOUT if timeout is None else timeout}
        if not self._tell(c.id, message):
            container_repair(self._store, c.id)
        container_event(self._store, c, "stop")

    def restart(self, ref: str, timeout: int | None = None, signal: str = "") -> None:
        """Stop a container if it runs, and start it; a --rm container is kept in between."""
        number = signal_number(signal) if signal else 0
        c = self.find(ref)
        try:
            if c.is_running:
                self._stop(c, timeout, number, keep=True)
            self.start(c.id)
        except NotModified:
            pass                        # somebody else has started it again
        except EngineError as failure:
            text = f"Cannot restart container {ref}: {failure}"
            raise error_for(500, text, failure.exit) from None
        container_event(self._store, c, "restart")

    def kill(self, ref: str, signal: str = "") -> None:
        """Send a signal (SIGKILL by default); SIGKILL returns when the container has ended."""
        try:
            number = signal_number(signal) if signal else 9
            c = self.running(ref)
            if number == 9:
                self._kill(c)
            elif not self._tell(c.id, {"verb": "kill", "signal": number}):
                container_repair(self._store, c.id)
                raise Conflict(f"container {c.id} is not running")
        except (InvalidParameter, NotFound, Conflict) as failure:
            raise type(failure)(f"cannot kill container: {ref}: {failure}") from None

    def _kill(self, c: Container) -> None:
        """SIGKILL, and wait for the end."""
        if not self._tell(c.id, {"verb": "stop", "signal": 9, "timeout": KILL_PATIENCE}):
            container_repair(self._store, c.id)

    def pause(self, ref: str) -> None:
        """Freeze a container."""
        self._freeze(self.running(ref), "pause")

    def unpause(self, ref: str) -> None:
        """Let a paused container go on."""
        c = self.find(ref)
        if c.state != "paused":
            raise EngineError(f"Container {c.id} is not paused")
        self._freeze(c, "unpause")

    def _freeze(self, c: Container, verb: str) -> None:
        if not self._tell(c.id, {"verb": verb}):
            container_repair(self._store, c.id)
            raise Conflict(f"container {c.id} is not running")

    # ---- views

    def inspect(self, ref: str, size: bool = False) -> dict:
        """The document of GET /containers/{id}/json."""
        return container_show(self._store, self.find(ref), size)

    def list(self, *, everything: bool = False, limit: int = 0, size: bool = False,
             filters: dict | None = None) -> list:
        """The entries of GET /containers/json."""
        filters = filters or {}
        images = self._engine.images
        ancestors = None
        networks, names = network_ids(self._store), {}
        if "network" in filters:
            known = {id: name for name, id in networks.items()}
            filters = {**filters, "network": [known.get(text, text) for text in filters["network"]]}
        if "ancestor" in filters:
            ancestors = {id for ref in filters["ancestor"] for id in images.ids_of(ref)}
        chosen = list_select(self.all(), everything=everything, limit=limit, filters=filters,
                             ancestors=ancestors)
        now = time_now()
        out = []
        for c in chosen:
            key = c.config["Image"], c.image
            if key not in names:
                names[key] = key[0] if c.image in images.ids_of(key[0]) else c.image
            entry = summary_show(c, names[key], now, networks)
            if size:
                entry["SizeRw"], entry["SizeRootFs"] = sizes_show(self._store, c)
            out.append(entry)
        return out

    def top(self, ref: str, arguments: str = "") -> dict:
        """What ps prints of the container's processes: {"Titles", "Processes"}."""
        c = self.running(ref)
        pids = cgroup_paths(cgroup_name(c)).procs() or processes_beside(c.pid)
        table = processes_table(pids, arguments)
        container_event(self._store, c, "top")
        return table

    def changes(self, ref: str) -> Any:
        """What the container changed in its image: [{"Path": path, "Kind": 0, 1 or 2}] or None."""
        c = self.find(ref)
        lowers = layer_paths(self._store, c.document["Layers"])
        return changes_list(self._store.path("containers", c.id, "upper"), lowers) or None


def _until_parse(filters: dict) -> int:
    values = filters.get("until", ())
    if len(values) > 1:
        raise InvalidParameter("more than one until filter specified")
    return time_parse(values[0]) if values else 0


# ---- what a start prepares ----

def _namespaces_resolve(containers: Containers, c: Container) -> tuple:
    """({OCI namespace type: path}, mount for /dev/shm or None, whose network it is or None)."""
    join: dict = {}
    shm = donor = None
    host = c.host
    for field, kind, what in (("NetworkMode", "network", "network"), ("PidMode", "pid", "PID"),
                              ("IpcMode", "ipc", "IPC")):
        ref = mode_container(host[field])
        if not ref:
            continue
        try:
            other = containers.find(ref)
        except NotFound as gone:
            text = "joining network namespace of container" if kind == "network" else \
                f"failed to join {what} namespace"
            raise EngineError(f"{text}: {gone}") from None
        if kind == "network":
            donor = other
            if not other.is_running:
                raise Conflict("cannot join network namespace of a non running container: container"
                               f" {other.name} is {other.status}")
        elif not other.is_running:
            raise EngineError(f"failed to join {what} namespace: container {ref} is not running")
        elif kind == "ipc":
            if other.host["IpcMode"] not in ("shareable", "host"):
                raise EngineError(f"failed to join IPC namespace: container {ref}: non-shareable"
                                  " IPC (hint: use IpcMode:shareable for the donor container)")
            shm = {"destination": "/dev/shm", "type": "bind", "source": "/dev/shm",
                   "root": f"/proc/{other.pid}/root", "options": ["rbind", "rprivate"]}
        elif "CAP_SYS_PTRACE" in capabilities_resolve(other.host["CapAdd"], other.host["CapDrop"]):
            # It could look into the new container's init while that still is the host's.
            raise Unsupported(f"joining the PID namespace of container {ref}, which has SYS_PTRACE,"
                              " is not supported by this engine yet")
        name = "net" if kind == "network" else kind
        join[kind] = f"/proc/{other.pid}/ns/{name}"
    return join, shm, donor


def init_layer_make(store: Store) -> None:
    """The layer that lies between every image and its container: where mounts land.

    Without it each container's own layer would get these files, and `diff` would show them.
    """
    if os.path.exists(store.path(INIT_LAYER)):
        return
    made = store.tmp_dir()
    for name in INIT_DIRS:
        dir_ensure(f"{made}/diff/{name}", 0o755)
    for name in INIT_FILES:
        fd = os.open(f"{made}/diff/{name}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC)
        os.fchmod(fd, 0o755)
        os.close(fd)
    os.chmod(made, 0o710)
    try:
        os.rename(made, store.path("init"))
    except OSError:
        if not os.path.exists(store.path(INIT_LAYER)):
            raise
        tree_remove(made)               # another process was quicker


def files_write(c: Container, directory: str, hostname: str) -> dict:
    """Write hostname, hosts and resolv.conf; {path in the container: file}."""
    domain = c.config["Domainname"]
    names = f"{hostname}.{domain} {hostname}" if domain else hostname
    out = {}
    for path, text in (("/etc/resolv.conf", _resolv_text(c.host)),
                       ("/etc/hostname", hostname + "\n"),
                       ("/etc/hosts", _hosts_text(c.host, names))):
        out[path] = f"{directory}/{os.path.basename(path)}"
        file_write(out[path], text.encode("utf-8", "surrogateescape"))
    return out


def _hosts_text(host: dict, names: str) -> str:
    text = HOSTS
    if host["NetworkMode"] == "host":
        try:
            text = file_read("/etc/hosts").decode("utf-8", "surrogateescape")
        except FileNotFoundError:
            pass
    if text and not text.endswith("\n"):
        text += "\n"
    for entry in host["ExtraHosts"] or ():
        name, _, address = entry.partition("=" if "=" in entry else ":")
        text += f"{address.strip('[]')}\t{name}\n"
    return text


def _resolv_text(host: dict) -> str:
    """The host's resolv.conf; resolvers on its loopback are of no use in a network of one's own."""
    try:
        lines = file_read("/etc/resolv.conf").decode("utf-8", "surrogateescape").splitlines()
    except FileNotFoundError:
        lines = []
    if host["NetworkMode"] != "host":
        lines = [line for line in lines
                 if not line.startswith(("nameserver 127.", "nameserver ::1"))]
    for field, word in (("Dns", "nameserver"), ("DnsSearch", "search"), ("DnsOptions", "options")):
        if host[field]:
            lines = [line for line in lines if line.split()[:1] != [word]]
            lines += ([f"nameserver {address}" for address in host[field]] if field == "Dns"
                      else [f"{word} {' '.join(host[field])}"])
    return "".join(line + "\n" for line in lines)


# =============================================================================
# execs -- second processes in a container, attach, wait and logs: what ends in a stream
# =============================================================================
# Runs in: api, cli.   Refs: moby daemon/exec.go, attach.go, wait.go, logs.go
#
# Second processes in a container, and everything that ends in a stream: attach, wait, logs. A
# client's connection is given to the monitor by descriptor; what is here only says what for. An
# exec is a file, RUN/containers/<id>/exec/<exec id>.json: Docker's ExecInspect and, in lower-
# case keys, what is needed to start it. It is written here at create and by the monitor at start
# and end (Running, Pid, ExitCode), and goes with its container's run or when it has been over for
# a while. The process document goes to the monitor as a memfd, for an environment may be larger
# than any message.

EXEC_KEEP = 300.0                       # s that a finished exec can be inspected, as in moby
EXEC_SWEEP = 32                         # records in a container above which old ones are removed
EXEC_CONFIG = {
    "User":         ("string", "", False),
    "Privileged":   ("bool", False, False),
    "Tty":          ("bool", False, False),
    "ConsoleSize":  ("sizes", None, False),
    "AttachStdin":  ("bool", False, False),
    "AttachStderr": ("bool", False, False),
    "AttachStdout": ("bool", False, False),
    "DetachKeys":   ("string", "", False),
    "Env":          ("strings", None, False),
    "WorkingDir":   ("string", "", False),
    "Cmd":          ("strings", None, False),
}
EXEC_START = {
    "Detach":      ("bool", False, False),
    "Tty":         ("bool", False, False),
    "ConsoleSize": ("sizes", None, False),
}
WAIT_CONDITIONS = ("not-running", "next-exit", "removed")


def exec_create(engine: Engine, ref: str, body: Any) -> str:
    """Note a process to be run in a running container; its exec id."""
    asked = fields_check(_object(body), EXEC_CONFIG, "ExecOptions")
    if not asked["Cmd"]:
        raise InvalidParameter("No exec command specified")
    c = engine.containers.running(ref)
    if c.state == "paused":
        raise Conflict(f"Container {ref} is paused, unpause the container before exec")
    if asked["DetachKeys"]:
        _keys_check(asked["DetachKeys"], "escape")
    if asked["User"]:
        _user_check(c, asked["User"])
    config = c.config
    env = environment_build({**config, "Tty": asked["Tty"]}, config["Hostname"])
    user = asked["User"] or config["User"]
    process = process_build(
        c, asked["Cmd"], tty=asked["Tty"], user=user, env=env_merge(env, asked["Env"] or ()),
        directory=asked["WorkingDir"] or config["WorkingDir"], privileged=asked["Privileged"])
    seccomp = security_parse(c.host["SecurityOpt"])["seccomp"]
    record = {
        "ID": id_new(), "Running": False, "ExitCode": None,
        "ProcessConfig": {"tty": asked["Tty"], "entrypoint": asked["Cmd"][0],
                          "arguments": asked["Cmd"][1:], "privileged": asked["Privileged"],
                          **({"user": user} if user else {})},
        "OpenStdin": asked["AttachStdin"], "OpenStderr": asked["AttachStderr"],
        "OpenStdout": asked["AttachStdout"], "CanRemove": False, "ContainerID": c.id,
        "DetachKeys": "", "Pid": 0,
        "detach_keys": asked["DetachKeys"], "size": asked["ConsoleSize"], "process": process,
        "linux": {} if seccomp == "unconfined" else {"seccomp": seccomp}}
    directory = dir_ensure(exec_dir(engine.store, c.id), 0o700)
    _execs_sweep(directory)
    file_write(f"{directory}/{record['ID']}.json",
               json_text(record).encode("utf-8", "surrogateescape"), 0o600)
    container_event(engine.store, c, "exec_create: " + " ".join(asked["Cmd"]), execID=record["ID"])
    return record["ID"]


def _object(body: Any) -> dict:
    if not isinstance(body, dict):
        raise InvalidParameter("invalid JSON: json: cannot unmarshal the body into a Go struct")
    return body


def _keys_check(text: str, what: str) -> None:
    try:
        detach_keys_parse(text)
    except InvalidParameter:
        raise InvalidParameter(f"Invalid {what} keys ({text}) provided") from None


def _user_check(c: Container, user: str) -> None:
    """Look a name up in the running container's own files, so that a wrong one is told at create.

    They are opened inside its root, for links in it are the container's.
    """
    tables = []
    try:
        root = os.open(f"/proc/{c.pid}/root", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        return                          # it has just ended; the start will tell
    try:
        for path in ("/etc/passwd", "/etc/group"):
            tables.append(_rows_inside(root, path))
    finally:
        os.close(root)
    try:
        user_resolve(user, [], *tables)
    except InitError as unknown:
        raise InvalidParameter(str(unknown)) from None


def _rows_inside(root: int, path: str) -> list:
    try:
        fd = open_in_root(root, path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return []
    try:
        text = os.read(fd, PASSWD_SIZE).decode("utf-8", "surrogateescape")
    except OSError:
        return []
    finally:
        os.close(fd)
    return [line.split(":") for line in text.split("\n") if line and line[0] != "#"]


def _execs_sweep(directory: str) -> None:
    names = os.listdir(directory)
    if len(names) < EXEC_SWEEP:
        return
    for name in names:
        path = f"{directory}/{name}"
        try:
            if time.time() - os.stat(path).st_mtime > EXEC_KEEP and \
                    json_parse(file_read(path))["ExitCode"] is not None:
                os.unlink(path)
        except (FileNotFoundError, ValueError):
            continue                    # written or swept by another process at this moment


def exec_find(engine: Engine, id: str) -> dict:
    """The record of an exec; NotFound with Docker's text."""
    if len(id) == 64 and is_hex(id):
        root = engine.store.run_path("containers")
        try:
            names = os.listdir(root)
        except FileNotFoundError:
            names = []
        for name in names:
            try:
                return json_parse(file_read(f"{root}/{name}/exec/{id}.json"))
            except (FileNotFoundError, NotADirectoryError):
                continue
    raise NotFound("No such exec instance: " + id)


def exec_inspect(engine: Engine, id: str) -> dict:
    """The document of GET /exec/{id}/json."""
    record = exec_find(engine, id)
    return {key: record[key] for key in record if key[0].isupper()}


def exec_start(engine: Engine, id: str, body: Any, hijack: Callable) -> bool:
    """Start an exec; True when its client's connection was given to the monitor.

    `hijack(is_tty)` gives (socket, bytes already read) once it is sure that the process will be
    tried; it is not called for a detached exec.
    """
    asked = fields_check(_object(body), EXEC_START, "ExecStartOptions")
    record = exec_find(engine, id)
    if record["ExitCode"] is not None:
        raise Conflict(f"exec command {id} has already run")
    if record["Running"]:
        raise Conflict(f"exec command {id} is already running")
    c = engine.containers.running(record["ContainerID"])
    if c.state == "paused":
        raise Conflict(f"Container {c.id} is paused, unpause the container before exec")
    tty = record["ProcessConfig"]["tty"]
    words = [record["ProcessConfig"]["entrypoint"], *record["ProcessConfig"]["arguments"]]
    message = {
        "verb": "exec", "id": id, "tty": tty, "mux": not tty, "detach": asked["Detach"],
        "stdin": record["OpenStdin"] and not asked["Detach"], "stdout": record["OpenStdout"],
        "stderr": record["OpenStderr"], "detach_keys": record["detach_keys"] or None,
        "command": " ".join(words)[:4096],
        "size": (asked["ConsoleSize"] or record["size"]) if tty else None}
    document = os.memfd_create("exec", os.MFD_CLOEXEC)
    try:
        write_all(document, json_text({"process": record["process"], "linux": record["linux"]})
                  .encode("utf-8", "surrogateescape"))
        if asked["Detach"]:
            _exec_detached(engine, c, message, document)
            return False
        sock, early = hijack(tty)
        message["early"] = early.decode("latin-1")
        try:
            monitor_call(engine.store, c.id, message, [document, sock.fileno()])
        except NoMonitor:
            _stream_tell(sock, f"container {c.id} is not running", tty)
        except EngineError:
            pass                        # the monitor has told it on the client's stream
        return True
    finally:
        os.close(document)


def _exec_detached(engine: Engine, c: Container, message: dict, document: int) -> None:
    try:
        monitor_call(engine.store, c.id, message, [document])
    except EngineError as failure:
        now = record_get(engine.store, c.id)
        if failure.exit != 127 and (now is None or not now.is_running):
            raise Conflict(f"container {c.id} is not running") from None
        raise


def _stream_tell(sock: Any, text: str, tty: bool) -> None:
    """Write a failure where output would have come; the reply's head has been sent already."""
    data = text.encode("utf-8", "replace") + b"\r\n"
    try:
        sock.sendall(data if tty else frame_header(1, len(data)) + data)
    except OSError:
        pass


def exec_resize(engine: Engine, id: str, height: int, width: int) -> None:
    """Set the size of an exec's terminal."""
    record = exec_find(engine, id)
    engine.containers.running(record["ContainerID"])
    monitor_call(engine.store, record["ContainerID"],
                 {"verb": "exec_resize", "id": id, "h": height, "w": width})


def container_resize(engine: Engine, ref: str, height: int, width: int) -> None:
    """Set the size of a container's terminal."""
    c = engine.containers.running(ref)
    monitor_call(engine.store, c.id, {"verb": "resize", "h": height, "w": width})


def container_attach(engine: Engine, ref: str, asked: dict, hijack: Callable) -> None:
    """Join a client to a container's streams.

    `asked` is {"stdin", "stdout", "stderr", "logs", "stream": bool, "detach_keys": text};
    `hijack(is_tty)` gives (socket, bytes already read). With "logs" what was logged comes first.
    """
    if asked["detach_keys"]:
        _keys_check(asked["detach_keys"], "detach")
    c = engine.containers.find(ref)
    if c.state == "paused":
        raise Conflict(f"container {ref} is paused, unpause the container before attach")
    if c.state == "removing":
        raise Conflict("container is marked for removal and cannot be started")
    tty = c.config["Tty"]
    sock, early = hijack(tty)
    if asked["logs"]:
        for piece in logs_frames(engine, c, tty, {"stdout": asked["stdout"],
                                                  "stderr": asked["stderr"]}):
            sock.sendall(piece)
    if asked["stream"]:
        monitor_call(engine.store, c.id, {
            "verb": "attach", "stdin": asked["stdin"], "stdout": asked["stdout"],
            "stderr": asked["stderr"], "mux": not tty, "early": early.decode("latin-1"),
            "detach_keys": asked["detach_keys"] or None}, [sock.fileno()], start=True)


def container_wait(engine: Engine, ref: str, condition: str, take: Callable) -> dict | None:
    """The end of a container: {"StatusCode": n} at once, or None when the monitor will write it.

    `take()` gives (socket, head to write before the answer).
    """
    condition = condition or "not-running"
    if condition not in WAIT_CONDITIONS:
        raise InvalidParameter(f"invalid condition: {quote(condition)}")
    c = engine.containers.find(ref)
    is_over = condition == "not-running" and c.state in ("created", "exited", "dead")
    if is_over:
        return {"StatusCode": c.exit_code}
    sock, head = take()
    message = {"verb": "wait", "condition": condition, "head": head}
    try:
        monitor_call(engine.store, c.id, message, [sock.fileno()],
                     start=condition != "not-running")
    except NoMonitor:
        # It has ended since we looked, or its monitor died.
        now = container_repair(engine.store, c.id)
        answer = json_text({"StatusCode": now.exit_code if now else 0})
        sock.sendall(f"{head}{answer}\n".encode("latin-1"))
    return None


def container_logs(engine: Engine, ref: str, asked: dict, follow: bool = False) -> tuple:
    """(iterator of bytes, whether they are raw) of a container's log; `asked` as log_read's."""
    if not (asked["stdout"] or asked["stderr"]):
        raise InvalidParameter("Bad parameters: you must choose at least one stream")
    c = engine.containers.find(ref)
    if c.state in ("removing", "dead"):
        raise Conflict("can not get logs from container which is dead or marked for removal")
    if c.host["LogConfig"]["Type"] == "none":
        raise Unsupported("configured logging driver does not support reading")
    tty = c.config["Tty"]
    end = _end_watch(engine, c) if follow else None
    return logs_frames(engine, c, tty, asked, end), tty


def _end_watch(engine: Engine, c: Container) -> Any:
    """A socket that is readable once the container's last byte is logged; None: it has been."""
    if not c.is_running:
        return None
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        monitor_call(engine.store, c.id, {"verb": "wait", "condition": "not-running"},
                     [theirs.fileno()])
    except NoMonitor:
        ours.close()
        return None
    finally:
        theirs.close()
    return ours


def logs_frames(engine: Engine, c: Container, tty: bool, asked: dict,
                end: Any = None) -> Iterator[bytes]:
    """The log as a client gets it: raw with a terminal, else in frames of stdout and stderr."""
    path = f"{engine.store.path('containers', c.id)}/{c.id}-json.log"
    try:
        for stream, data in log_read(path, follow=-1 if end is None else end.fileno(), **asked):
            yield data if tty else frame_header(stream, len(data)) + data
    finally:
        if end is not None:
            end.close()


# =============================================================================
# engine -- wires the objects together; repair, info, version
# =============================================================================
# Runs in: api, cli.   Refs: Docker Engine API 1.51 /info and /version, moby daemon/info.go
#
# Wires the objects together and says what this host and this engine are. Making one costs
# nothing: the store opens at first use, images and containers are made when they are first asked
# for.

ENGINE_ID_KEY = "engine_id"
#: (file of a v1 controller, key in info, what the CLI's `info` warns of when it is missing)
INFO_LIMITS = (
    ("memory",  "",                  "MemoryLimit",    "No memory limit support"),
    ("memory",  "memory.memsw.limit_in_bytes", "SwapLimit", "No swap limit support"),
    ("cpu",     "cpu.cfs_quota_us",  "CpuCfsPeriod",   "No cpu cfs period support"),
    ("cpu",     "cpu.cfs_quota_us",  "CpuCfsQuota",    "No cpu cfs quota support"),
    ("cpu",     "cpu.shares",        "CPUShares",      "No cpu shares support"),
    ("cpuset",  "",                  "CPUSet",         "No cpuset support"),
    ("pids",    "",                  "PidsLimit",      ""),
    ("memory",  "memory.oom_control", "OomKillDisable", ""),
)


class Images:
    """What containers ask of the images."""

    __slots__ = ("_store",)

    def __init__(self, store: Store) -> None:
        self._store = store

    def for_container(self, ref: str, platform: str = "") -> dict:
        """{"id", "config", "os", "layers", "warning"}: the layers' directories below the data root,
        topmost first. NotFound when there is no such image, or none for the platform."""
        image = image_get(self._store, ref)
        if platform:
            image_platform_check(image, ref, platform_parse(platform))
        layers = layer_directories(self._store, image.layer) if image.layer else []
        return {"id": image.id, "config": image.settings, "os": image.platform["os"],
                "warning": "" if platform else image_platform_warning(image),
                "layers": [os.path.relpath(path, self._store.data) for path in layers]}

    def ids_of(self, ref: str) -> set:
        """The ids that a reference means: one, or none."""
        try:
            return {image_get(self._store, ref).id}
        except (NotFound, InvalidParameter):
            return set()


class Engine:
    """One engine: a store and what lives in it."""

    __slots__ = ("_containers", "_images", "store")

    def __init__(self, store: Store) -> None:
        self.store = store
        self._containers = self._images = None

    _containers: Containers | None
    _images: Images | None

    @property
    def containers(self) -> Containers:
        """The containers."""
        if self._containers is None:
            self._containers = Containers(self)
        return self._containers

    @property
    def images(self) -> Images:
        """The images."""
        if self._images is None:
            self._images = Images(self.store)
        return self._images

    def version(self) -> dict:
        """The document of GET /version."""
        system = os.uname()
        machine = platform_host()["architecture"]
        details = {"ApiVersion": API_VERSION, "Arch": machine, "BuildTime": "",
                   "Experimental": "false", "GitCommit": "", "GoVersion": "",
                   "KernelVersion": system.release, "MinAPIVersion": API_VERSION_MIN, "Os": "linux",
                   "EngineVersion": VERSION,
                   "PythonVersion": "{}.{}.{}".format(*sys.version_info[:3])}
        return {
            "Platform": {"Name": f"engine.pyz {VERSION}"},
            "Components": [{"Name": "Engine", "Version": DOCKER_VERSION, "Details": details}],
            "Version": DOCKER_VERSION, "ApiVersion": API_VERSION, "MinAPIVersion": API_VERSION_MIN,
            "GitCommit": "", "GoVersion": "", "Os": "linux", "Arch": machine,
            "KernelVersion": system.release, "BuildTime": ""}

    def info(self) -> dict:
        """The document of GET /info."""
        limits, warnings = _limits_show()
        if not overlay_exists():
            warnings.append("WARNING: " + NO_OVERLAY)
        system = os.uname()
        distribution = _distribution()
        return {
            "ID": self._id(), **self._counts(), "Driver": "overlay2",
            "DriverStatus": [["Backing Filesystem", _backing(self.store.data)],
                             ["Supports d_type", "true"], ["Using metacopy", "false"],
                             ["Native Overlay Diff", "true"], ["userxattr", "false"]],
            "Plugins": {"Volume": ["local"], "Network": ["host", "none"],
                        "Authorization": None, "Log": ["json-file", "none"]},
            **limits, "IPv4Forwarding": _sysctl_on("net/ipv4/ip_forward"), "Debug": False,
            "NFd": len(os.listdir("/proc/self/fd")), "NGoroutines": 1,
            "SystemTime": time_rfc3339(time_now()), "LoggingDriver": "json-file",
            "CgroupDriver": "cgroupfs",
            "CgroupVersion": "2" if cgroup_probe().mode == "v2" else "1",
            "NEventsListener": 0, "KernelVersion": system.release,
            "OperatingSystem": distribution.get("PRETTY_NAME", "Linux"),
            "OSVersion": distribution.get("VERSION_ID", ""), "OSType": "linux",
            "Architecture": system.machine, "IndexServerAddress": "https://index.docker.io/v1/",
            "RegistryConfig": {"IndexConfigs": {}, "InsecureRegistryCIDRs": ["::1/128",
                               "127.0.0.0/8"], "Mirrors": None},
            "NCPU": len(os.sched_getaffinity(0)), "MemTotal": _memory_total(),
            "GenericResources": None, "DockerRootDir": self.store.data, "HttpProxy": "",
            "HttpsProxy": "", "NoProxy": "", "Name": system.nodename, "Labels": [],
            "ExperimentalBuild": False, "ServerVersion": DOCKER_VERSION,
            "Runtimes": {RUNTIME: {"path": RUNTIME}}, "DefaultRuntime": RUNTIME,
            "Swarm": {"NodeID": "", "NodeAddr": "", "LocalNodeState": "inactive",
                      "ControlAvailable": False, "Error": "", "RemoteManagers": None},
            "LiveRestoreEnabled": True, "Isolation": "", "InitBinary": "docker-init",
            "ContainerdCommit": {"ID": ""}, "RuncCommit": {"ID": ""}, "InitCommit": {"ID": ""},
            "SecurityOptions": _security_show(), "CDISpecDirs": [], "Warnings": warnings or None}

    def _id(self) -> str:
        row = self.store.row("SELECT value FROM meta WHERE key = ?", ENGINE_ID_KEY)
        if row is None:
            text = os.urandom(16).hex()
            text = "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))
            with self.store.write() as db:
                db.execute("INSERT OR IGNORE INTO meta(key, value) VALUES(?, ?)",
                           (ENGINE_ID_KEY, text))
            row = self.store.row("SELECT value FROM meta WHERE key = ?", ENGINE_ID_KEY)
        return row[0]

    def _counts(self) -> dict:
        states = [c.state for c in self.containers.all()]
        running, paused = states.count("running"), states.count("paused")
        return {"Containers": len(states), "ContainersRunning": running,
                "ContainersPaused": paused, "ContainersStopped": len(states) - running - paused,
                "Images": self.store.row("SELECT count(*) FROM images")[0]}


def _limits_show() -> tuple:
    """({key: whether the limit can be kept}, warnings) of this host's cgroups."""
    have = controllers_find()
    is_v2 = cgroup_probe().mode == "v2"
    shown, warnings = {}, []
    for controller, file, key, text in INFO_LIMITS:
        good = controller in have
        if good and file and not is_v2:
            good = os.path.exists(f"{have[controller]}/{file}")
        elif is_v2 and key == "OomKillDisable":
            good = False
        shown[key] = good
        if not good and text:
            warnings.append("WARNING: " + text)
    return shown, warnings


def _distribution() -> dict:
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        try:
            lines = file_read(path).decode("utf-8", "replace").splitlines()
        except FileNotFoundError:
            continue
        return {name: value.strip("\"'") for name, _, value in
                (line.partition("=") for line in lines)}
    return {}


def _backing(path: str) -> str:
    """The type of the file system that the data root is on."""
    best, kind = "", "unknown"
    for mount in mountinfo():
        is_above = (path + "/").startswith(mount.point.rstrip("/") + "/")
        if is_above and len(mount.point) >= len(best):
            best, kind = mount.point, mount.fstype
    return "extfs" if kind in ("ext2", "ext3", "ext4") else kind


def _sysctl_on(name: str) -> bool:
    try:
        return file_read("/proc/sys/" + name).strip() != b"0"
    except FileNotFoundError:
        return False


def _memory_total() -> int:
    return int(file_read("/proc/meminfo").split()[1]) * 1024


def _security_show() -> list:
    out = []
    if b"\nSeccomp:" in file_read("/proc/self/status"):
        out.append("name=seccomp,profile=builtin")
    if os.path.exists("/proc/self/ns/cgroup"):
        out.append("name=cgroupns")
    return out


# =============================================================================
# http -- request, response, routes, hijack: the router that in-process callers use too
# =============================================================================
# Runs in: api, cli.   Refs: Docker Engine API 1.51, moby api/server/router, RFC 9110
#
# The model: an endpoint is a function (engine, request) -> value, registered with @route. What it
# returns tells the reply: a dict, list or str is JSON with 200, None is 204, a Response is itself,
# a Stream is sent piece by piece, HIJACKED means that somebody else writes to the connection now.
# What it raises is an EngineError, turned into {"message": text} here and nowhere else.
#
# Nothing here knows sockets. A door that has bytes (the daemon's listener) parses them into a
# Request and frames what comes back; a caller in this process makes the Request by hand, hands
# over Python values and gets Python values back: no JSON is written or parsed on that way.
#
# Matching: the path is split at "/", an optional version (/v1.41) comes off, and the rest is
# compared word by word. The first parameter of a route may stand for several words, because image
# names have slashes. Of several matches the one with the most literal words wins, so
# /images/json is never an image called "json". There is no regular expression, nothing to compile.
#
# A hijack: the request carries a `connection` made by whoever received it. hijack() answers 101
# (or the old 200) and gives the bare socket away; take() gives it away with nothing written,
# together with the head that its next writer must send first.

#: (method, first word) -> [(words of the pattern, handler)], filled by @route at import.
ROUTES: dict[tuple, list] = {}
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


def errno_text(exc: OSError) -> str:
    """The system's words as Go writes them: "no such file or directory"."""
    text = exc.strerror or str(exc)
    return text[:1].lower() + text[1:]


def error_text(exc: BaseException) -> str:
    """One line for an exception that is no EngineError: the system's words and the path."""
    if isinstance(exc, OSError) and exc.strerror:
        text = errno_text(exc)
        return f"{exc.filename}: {text}" if exc.filename else text
    if isinstance(exc, UnicodeError):
        return "a text is not valid UTF-8"
    return " ".join(str(exc).split()) or type(exc).__name__


def _error_response(exc: Exception) -> Response:
    if isinstance(exc, ImportError):
        exc = module_missing(exc)
    if not isinstance(exc, EngineError):
        if os.environ.get("ENGINE_DEBUG"):
            import traceback
            traceback.print_exc()
        known = isinstance(exc, OSError) or type(exc).__module__ == "sqlite3"
        text = error_text(exc) if known else f"{type(exc).__name__}: {error_text(exc)}"
        exc = EngineError(text)
    return Response(exc.status, value={"message": str(exc)}, error=exc)


def http_dispatch(engine: Any, request: Request) -> Any:
    """Runs the request's handler: a Response, a Stream or HIJACKED; it raises no Exception."""
    try:
        parts = request.path.strip("/").split("/")
        if _is_version(parts[0]) and len(parts) > 1:
            request.version = _version_check(parts.pop(0)[1:])
        handler, request.params = route_find(request.method, parts)
        result = handler(engine, request)
    except Exception as exc:        # the one place where errors become replies
        if type(exc).__module__ == "sqlite3":
            exc = database_refused(engine.store, exc)
        return _error_response(exc)
    if result is None:
        return Response(204)
    if result is HIJACKED or isinstance(result, (Response, Stream)):
        return result
    return Response(200, value=result)


# =============================================================================
# api_system -- Docker Engine API endpoints: ping, version, info, events
# =============================================================================
# Runs in: api, cli.   Refs: Docker Engine API 1.24 to 1.51; moby daemon/events/filter.go
#
# What the engine knows about itself, and the stream of what happened. The engine makes the newest
# form of each document; a row of INFO_FIELDS says from which API version on, or up to which, a
# field is part of it, and older clients get what they knew.
# Events are read from the journal: what lies between `since` and `until`, then what comes, until
# `until` or until the client leaves. A filter's values are alternatives, its keys conditions.

PING_HEADERS = {
    "Api-Version": API_VERSION,
    "Builder-Version": "1",
    "Cache-Control": "no-cache, no-store, must-revalidate",
    "Content-Type": "text/plain; charset=utf-8",
    "Docker-Experimental": "false",
    "Ostype": "linux",
    "Pragma": "no-cache",
    "Swarm": "inactive",
}

# fmt: off
#: (first version with the field, field)
INFO_FIELDS = (
    ("1.44", "CDISpecDirs"),
    ("1.46", "Containerd"),
    ("1.50", "DiscoveredDevices"),
    ("1.49", "FirewallBackend"),
)
#: what /info said in older versions and says no more: (first version without it, field, value)
INFO_OLD = (
    ("1.50", "BridgeNfIp6tables", False),
    ("1.50", "BridgeNfIptables",  False),
    ("1.42", "ClusterAdvertise",  ""),
    ("1.42", "ClusterStore",      ""),
    ("1.42", "KernelMemory",      False),
    ("1.41", "SystemStatus",      None),
)

#: types of events that their own filter key picks by id or name
EVENT_TYPES = ("builder", "config", "container", "daemon", "network", "node", "plugin", "secret",
               "service", "volume")
EVENT_FILTERS = frozenset((*EVENT_TYPES, "event", "image", "label", "scope", "type"))
# fmt: on


@route("GET", "/_ping")
def get_ping(engine: Any, request: Request) -> Response:
    """OK, with the headers from which clients learn the API version."""
    return Response(200, dict(PING_HEADERS), b"OK")


@route("HEAD", "/_ping")
def head_ping(engine: Any, request: Request) -> Response:
    """The headers of GET /_ping."""
    return Response(200, dict(PING_HEADERS))


@route("GET", "/version")
def get_version(engine: Any, request: Request) -> dict:
    """Versions of the engine and of what it stands on."""
    return engine.version()


@route("GET", "/info")
def get_info(engine: Any, request: Request) -> dict:
    """The engine's state and the host's, with the fields of the version asked for."""
    return info_for_version(engine.info(), version_tuple(request.version))


def info_for_version(info: dict, version: tuple) -> dict:
    """An /info document cut or filled to what an API version (as a tuple) has."""
    for since, field in INFO_FIELDS:
        if version < version_tuple(since):
            info.pop(field, None)
    for gone, field, value in INFO_OLD:
        if version < version_tuple(gone):
            info.setdefault(field, value)
    if version < (1, 49):
        for commit in ("ContainerdCommit", "RuncCommit", "InitCommit"):
            info[commit] = {**info[commit], "Expected": info[commit]["ID"]}
    if version < (1, 44):
        for runtime in info.get("Runtimes", {}).values():
            runtime.pop("status", None)
    return info


# --- events ---

@route("GET", "/events")
def get_events(engine: Any, request: Request) -> Stream:
    """The events from `since` on, one JSON object a line, until `until` or the client's end.

    Without `since` it begins now; with `until` alone, with the oldest event there is.
    """
    now_ns = time_now()
    since_ns, until_ns = (time_parse(text, now_ns) if text else None
                          for text in (request.arg("since"), request.arg("until")))
    if until_ns is not None and since_ns is not None and until_ns < since_ns:
        raise InvalidParameter(f"`since` time ({request.arg('since')}) cannot be after `until` "
                               f"time ({request.arg('until')})")
    filters = request.filters()
    filters_check(filters, EVENT_FILTERS)
    if until_ns is not None and since_ns is None:
        since_ns = 0
    skip_create = version_tuple(request.version) < (1, 46)
    return Stream(_event_lines(engine.store, since_ns, until_ns, filters, skip_create))


def _event_lines(store: Store, since_ns: int | None, until_ns: int | None, filters: dict,
                 skip_create: bool) -> Iterable[bytes]:
    for event in event_follow(store, since_ns, until_ns):
        # API < 1.46 did not know that images are created
        if skip_create and event["Type"] == "image" and event["Action"] == "create":
            continue
        if event_matches(event, filters):
            yield json_text(event).encode() + b"\n"


def event_matches(event: dict, filters: dict) -> bool:
    """Whether an event passes the filters {key: [values]}: any value of each key fits."""
    for key, values in filters.items():
        if values and not _event_fits(event, key, values):
            return False
    return True


def _event_fits(event: dict, key: str, values: list) -> bool:
    attributes = event["Actor"]["Attributes"]
    if key == "type":
        return event["Type"] in values
    if key == "event":
        action = event["Action"]
        # these three carry a text after a colon, so that the beginning has to do
        if {"health_status", "exec_create", "exec_start"}.intersection(values):
            return any(action.startswith(value) for value in values)
        return action in values
    if key == "scope":
        return event["scope"] in values
    if key == "label":
        return filter_labels({key: values}, attributes)
    if key == "image":
        named = attributes.get("name" if event["Type"] == "image" else "image", "")
        names = (event["Actor"]["ID"], named, _tag_stripped(event["Actor"]["ID"]),
                 _tag_stripped(named))
        return any(name in values for name in names)
    return any(name.startswith(value) for value in values
               for name in (event["Actor"]["ID"], attributes.get("name", "")))


def _tag_stripped(name: str) -> str:
    """The familiar repository name of a reference; what is no reference stays as it is."""
    try:
        return reference_parse(name).familiar_name
    except EngineError:
        return name


# =============================================================================
# api_absent -- Docker Engine API endpoints that are not there: 501, no swarm, no plugins
# =============================================================================
# Runs in: api, cli.   Refs: Docker Engine API 1.24 to 1.51; moby daemon/cluster, plugin
#
# What a client may ask for and this engine does not have. Groups that are yet to come answer 501
# and name what is missing (NOT_THERE); an issue that brings one removes its rows. Swarm routes
# answer what a dockerd outside of a swarm answers, plugin routes what one without plugins does, so
# that clients which look around first go on. Both refuse with 501 what would make a swarm or
# install a plugin. /session and /grpc, BuildKit's doors, are not registered: they are 404.

NO_SWARM = ('This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to '
            "connect this node to swarm and try again.")
NO_EXPERIMENT = ("This experimental feature is disabled by default. Start the Docker daemon in "
                 "experimental mode in order to enable it.")

# fmt: off
NOT_THERE = (
    ("POST",   "/auth",                      "logging in to a registry"),
    ("GET",    "/distribution/{name}/json",  "asking a registry"),
    ("GET",    "/images/search",             "searching a registry"),
    ("POST",   "/images/{name}/push",        "pushing to a registry"),
    ("GET",    "/system/df",                 "disk usage"),
    ("POST",   "/build",                     "building images"),
    ("POST",   "/build/prune",               "building images"),
    ("POST",   "/build/cancel",              "building images"),
    ("GET",    "/networks",                  "networks"),
    ("GET",    "/networks/{id}",             "networks"),
    ("DELETE", "/networks/{id}",             "networks"),
    ("POST",   "/networks/create",           "networks"),
    ("POST",   "/networks/prune",            "networks"),
    ("POST",   "/networks/{id}/connect",     "networks"),
    ("POST",   "/networks/{id}/disconnect",  "networks"),
    ("GET",    "/volumes",                   "volumes"),
    ("GET",    "/volumes/{name}",            "volumes"),
    ("PUT",    "/volumes/{name}",            "volumes"),
    ("DELETE", "/volumes/{name}",            "volumes"),
    ("POST",   "/volumes/create",            "volumes"),
    ("POST",   "/volumes/prune",             "volumes"),
    ("POST",   "/swarm/init",                "swarm mode"),
    ("POST",   "/swarm/join",                "swarm mode"),
    ("POST",   "/plugins/create",            "plugins"),
    ("POST",   "/plugins/pull",              "plugins"),
    ("GET",    "/plugins/privileges",        "plugins"),
)
#: what only a manager of a swarm can answer
SWARM_ROUTES = (
    ("GET",    "/swarm"),
    ("GET",    "/swarm/unlockkey"),
    ("POST",   "/swarm/unlock"),
    ("POST",   "/swarm/update"),
    ("GET",    "/nodes"),
    ("GET",    "/nodes/{id}"),
    ("DELETE", "/nodes/{id}"),
    ("POST",   "/nodes/{id}/update"),
    ("GET",    "/services"),
    ("GET",    "/services/{id}"),
    ("DELETE", "/services/{id}"),
    ("GET",    "/services/{id}/logs"),
    ("POST",   "/services/create"),
    ("POST",   "/services/{id}/update"),
    ("GET",    "/tasks"),
    ("GET",    "/tasks/{id}"),
    ("GET",    "/tasks/{id}/logs"),
    ("GET",    "/secrets"),
    ("GET",    "/secrets/{id}"),
    ("DELETE", "/secrets/{id}"),
    ("POST",   "/secrets/create"),
    ("POST",   "/secrets/{id}/update"),
    ("GET",    "/configs"),
    ("GET",    "/configs/{id}"),
    ("DELETE", "/configs/{id}"),
    ("POST",   "/configs/create"),
    ("POST",   "/configs/{id}/update"),
)
PLUGIN_ROUTES = (
    ("GET",    "/plugins/{name}/json"),
    ("DELETE", "/plugins/{name}"),
    ("POST",   "/plugins/{name}/enable"),
    ("POST",   "/plugins/{name}/disable"),
    ("POST",   "/plugins/{name}/push"),
    ("POST",   "/plugins/{name}/upgrade"),
    ("POST",   "/plugins/{name}/set"),
)
EXPERIMENTAL_ROUTES = (
    ("GET",    "/containers/{id}/checkpoints"),
    ("POST",   "/containers/{id}/checkpoints"),
    ("DELETE", "/containers/{id}/checkpoints/{checkpoint}"),
)
# fmt: on
PLUGIN_FILTERS = ("capability", "enabled")


def _refusal(kind: type, text: str) -> Callable:
    def refuse(engine: Any, request: Request) -> None:
        raise kind(text)
    return refuse


def _plugin_missing(engine: Any, request: Request) -> None:
    raise NotFound(f"plugin {quote(request.params['name'])} not found")


def _absent_register() -> None:
    for method, pattern, subject in NOT_THERE:
        route(method, pattern)(_refusal(Unsupported, f"{subject}: not supported by this engine"))
    for method, pattern in SWARM_ROUTES:
        route(method, pattern)(_refusal(Unavailable, NO_SWARM))
    for method, pattern in PLUGIN_ROUTES:
        route(method, pattern)(_plugin_missing)
    for method, pattern in EXPERIMENTAL_ROUTES:
        route(method, pattern)(_refusal(Unsupported, NO_EXPERIMENT))


_absent_register()


@route("POST", "/swarm/leave")
def post_swarm_leave(engine: Any, request: Request) -> None:
    """Nothing to leave."""
    raise Unavailable("This node is not part of a swarm")


@route("GET", "/plugins")
def get_plugins(engine: Any, request: Request) -> list:
    """The plugins: none."""
    filters = request.filters()
    filters_check(filters, PLUGIN_FILTERS)
    for value in filters.get("enabled", ()):
        if value.lower() not in ("1", "t", "true", "0", "f", "false"):
            raise InvalidParameter(f"invalid filter 'enabled=[{value}]'")
    return []


# =============================================================================
# api_images -- Docker Engine API endpoints: images
# =============================================================================
# Runs in: api, cli.   Refs: Docker Engine API 1.24 to 1.51; moby api/server/router/image
#
# Thin: the images section does the work. Here a request becomes its arguments, and what it
# answers gets the form of the API version asked for: a row of IMAGE_OLD says up to which version
# a list had a field that is gone now.
# import, load and save are streams, so that archives are never held in memory. load has answered
# 200 when it begins, as Docker's does: an error can only be one more line, {"errorDetail": ...}.
# Who uses an image is told to the images section as a function, since containers stand above it.

#: (first version without it, field of a list's image, value made of the image)
IMAGE_OLD = (
    ("1.44", "VirtualSize", lambda image: image["Size"]),
    ("1.51", "Containers",  lambda image: -1),
)
#: the fields of Config that were a container's, and stood in an image's up to API 1.49
IMAGE_CONFIG_OLD = {
    "AttachStderr": False, "AttachStdin": False, "AttachStdout": False, "Domainname": "",
    "Hostname": "", "Image": "", "OpenStdin": False, "StdinOnce": False, "Tty": False,
}


def images_in_use(store: Store) -> list:
    """A row per container: (id, id of its image, whether it runs, number of its top layer)."""
    rows = []
    for c in record_list(store):
        # ["init/diff", "layers/<number in base 36>/diff" of the top layer, ...]
        names = c.document["Layers"][1:2]
        layer = int(names[0].split("/")[1], 36) if names else 0
        rows.append((c.id, c.image, c.is_running or c.state == "starting", layer))
    return rows


def _workers(store: Store) -> Callable:
    """How the images section gets a process that unpacks a layer."""
    return lambda role, request, fds: launcher_call(store, role, request, fds)


def _platform_arg(request: Request, name: str, since: str) -> dict | None:
    """The one platform that a query names as JSON; None where it names none, or may not yet."""
    texts = [text for text in request.query.get(name, ()) if text]
    if not texts or version_tuple(request.version) < version_tuple(since):
        return None
    if len(texts) > 1:
        raise InvalidParameter("multiple platform parameters are not supported")
    if texts[0][0] != "{":
        return platform_parse(texts[0])
    try:
        found = json_parse(texts[0])
        words = [found.get(key) or "" for key in ("os", "architecture", "variant")]
        return platform_parse("/".join(word for word in words if word))
    except (ValueError, AttributeError, TypeError):
        raise InvalidParameter(f"failed to parse platform: {texts[0]}") from None


# --- look ---

@route("GET", "/images/json")
def get_images(engine: Any, request: Request) -> list:
    """All images that fit the filters, the newest first."""
    filters = request.filters()
    version = version_tuple(request.version)
    if version < (1, 41) and request.arg("filter"):
        filters.setdefault("reference", []).append(request.arg("filter"))
    store = engine.store
    images = image_list(store, filters, lambda: images_in_use(store),
                        shared_size=version >= (1, 42) and request.flag("shared-size"))
    return [image_for_version(image, version) for image in images]


def image_for_version(image: dict, version: tuple) -> dict:
    """An image of a list in the form that an API version (as a tuple) had."""
    if version < (1, 43) and not (image["RepoTags"] or image["RepoDigests"]):
        image = {**image, "RepoTags": ["<none>:<none>"], "RepoDigests": ["<none>@<none>"]}
    older = {field: value(image) for gone, field, value in IMAGE_OLD
             if version < version_tuple(gone)}
    return {**image, **older}


@route("GET", "/images/{name}/json")
def get_image(engine: Any, request: Request) -> dict:
    """All that is known of one image."""
    platform = _platform_arg(request, "platform", "1.49")
    if platform and request.flag("manifests"):
        raise InvalidParameter("conflicting options: manifests and platform options cannot both "
                               "be set")
    image = image_inspect(engine.store, request.params["name"], platform)
    return inspect_for_version(image, version_tuple(request.version))


def inspect_for_version(image: dict, version: tuple) -> dict:
    """An inspected image in the form that an API version (as a tuple) had."""
    if version < (1, 50):
        config = {**IMAGE_CONFIG_OLD, **image["Config"]}
        image = {**image, "Config": dict(sorted(config.items()))}
    if version < (1, 45):
        empty = dict.fromkeys(("Cmd", "Entrypoint", "Env", "Labels", "OnBuild", "Volumes"))
        image = {**image, "Container": "", "ContainerConfig": {
            **IMAGE_CONFIG_OLD, **empty, "User": "", "WorkingDir": ""}}
    if version < (1, 44):
        image = {**image, "VirtualSize": image["Size"], "Created": image.get("Created", TIME_ZERO)}
    return image


@route("GET", "/images/{name}/history")
def get_image_history(engine: Any, request: Request) -> list:
    """The steps that made the image, the last one first."""
    platform = _platform_arg(request, "platform", "1.48")
    return image_history(engine.store, request.params["name"], platform)


# --- change ---

@route("POST", "/images/{name}/tag")
def post_image_tag(engine: Any, request: Request) -> Response:
    """201: the name `repo:tag` means the image now."""
    target = request.arg("repo")
    if request.arg("tag"):
        target += ":" + request.arg("tag")
    image_tag(engine.store, request.params["name"], target)
    return Response(201)


@route("DELETE", "/images/{name}")
def delete_image(engine: Any, request: Request) -> list:
    """What was untagged and deleted: [{"Untagged": "a:1"}, {"Deleted": "sha256:..."}]."""
    store, ref = engine.store, request.params["name"]
    if not ref.strip():
        raise InvalidParameter("image name cannot be blank")
    platform = _platform_arg(request, "platforms", "1.50")
    if platform:
        image_platform_check(image_get(store, ref), ref, platform)
    return image_remove(store, ref, lambda: images_in_use(store), force=request.flag("force"))


@route("POST", "/images/prune")
def post_images_prune(engine: Any, request: Request) -> dict:
    """What was removed, and how many bytes that freed."""
    store = engine.store
    return image_prune(store, request.filters(), lambda: images_in_use(store))


# --- archives ---

def _line(message: dict) -> bytes:
    return json_text(message).encode("utf-8", "surrogateescape") + b"\r\n"


def _error_line(error: Exception) -> bytes:
    text = error_text(error)
    return _line({"errorDetail": {"message": text}, "error": text})


@route("POST", "/images/create")
def post_image_create(engine: Any, request: Request) -> Stream:
    """Progress of an import; its last line has the new image's id as `status`."""
    if request.arg("fromImage"):
        raise Unsupported("pulling images: not supported by this engine")
    source = request.arg("fromSrc")
    if source != "-":
        raise Unsupported("importing from a URL: not supported by this engine")
    platform, name = request.arg("platform"), None
    if request.arg("repo"):
        tag = request.arg("tag")
        name = reference_parse(request.arg("repo") + (f":{tag}" if tag else ""))
        if name.digest:
            raise InvalidParameter("cannot import digest reference")
    image = image_import(
        engine.store, request.body.read, lambda: images_in_use(engine.store), name=name,
        changes=request.query.get("changes", ()),
        message=request.arg("message") or "Imported from " + source,
        platform=platform_parse(platform) if platform else None,
        run_worker=_workers(engine.store))
    return Stream([_line({"status": image})])


@route("POST", "/images/load")
def post_images_load(engine: Any, request: Request) -> Stream:
    """Progress, and a line for each image: {"stream": "Loaded image: a:1\\n"}."""
    platform = _platform_arg(request, "platform", "1.48")
    quiet, store = request.flag("quiet", True), engine.store
    source = request.body.reader or request.body        # a file that can seek is not copied

    def lines() -> Iterator[bytes]:
        try:
            for message in images_load(store, source, lambda: images_in_use(store),
                                       platform=platform, quiet=quiet,
                                       run_worker=_workers(store)):
                yield _line(message)
        except (EngineError, OSError) as error:
            yield _error_line(error)
        except ImportError as missing:
            yield _error_line(module_missing(missing))
    return Stream(lines())


def _save(engine: Any, names: list, request: Request) -> Stream:
    platform = _platform_arg(request, "platform", "1.48")
    chunks = images_save(engine.store, names, platform)
    first = next(chunks, b"")       # what is not there is an error with a status

    def whole() -> Iterator[bytes]:
        yield first
        yield from chunks
    return Stream(whole(), "application/x-tar")


@route("GET", "/images/get")
def get_images_get(engine: Any, request: Request) -> Stream:
    """One archive of all images that `names` lists."""
    return _save(engine, request.query.get("names", []), request)


@route("GET", "/images/{name}/get")
def get_image_get(engine: Any, request: Request) -> Stream:
    """An archive of one image."""
    return _save(engine, [request.params["name"]], request)


# =============================================================================
# api_containers -- Docker Engine API endpoints: containers and exec
# =============================================================================
# Runs in: api, cli.   Refs: Docker Engine API 1.51, moby api/server/router/container
#
# One function per endpoint: it reads the request's parameters, calls the engine, and returns what
# the reply is made of. What an older API version must not see is taken out here. Endpoints that
# later issues bring stand in one table and answer 501 until then.

#: (method, path, what it would do)
NOT_YET_ROUTES = (
    ("GET",    "/containers/{id}/archive",                  "copying files out of a container"),
    ("HEAD",   "/containers/{id}/archive",                  "copying files out of a container"),
    ("PUT",    "/containers/{id}/archive",                  "copying files into a container"),
    ("GET",    "/containers/{id}/attach/ws",                "attaching by WebSocket"),
    ("GET",    "/containers/{id}/checkpoints",              "checkpoints"),
    ("POST",   "/containers/{id}/checkpoints",              "checkpoints"),
    ("DELETE", "/containers/{id}/checkpoints/{checkpoint}", "checkpoints"),
    ("GET",    "/containers/{id}/export",                   "exporting a container"),
    ("GET",    "/containers/{id}/stats",                    "container statistics"),
    ("POST",   "/containers/{id}/update",                   "updating a container's limits"),
    ("POST",   "/commit",                                   "committing a container"),
)


def _refuse(what: str) -> Callable:
    def handler(engine: Engine, request: Request) -> None:
        if "id" in request.params:
            engine.containers.find(request.params["id"])
        raise Unsupported(f"{what} is not supported by this engine yet")
    return handler


for _method, _path, _what in NOT_YET_ROUTES:
    route(_method, _path)(_refuse(_what))


@route("GET", "/containers/json")
def get_containers(engine: Engine, request: Request) -> list:
    """The list of containers."""
    return engine.containers.list(
        everything=request.flag("all"), limit=request.number("limit", 0) or 0,
        size=request.flag("size"), filters=request.filters())


@route("POST", "/containers/create")
def post_container_create(engine: Engine, request: Request) -> Response:
    """Make a container: 201 with its id and warnings."""
    made = engine.containers.create(
        request.body.json(), name=request.arg("name"), platform=request.arg("platform"),
        version=request.version)
    return Response(201, value=made)


@route("POST", "/containers/prune")
def post_containers_prune(engine: Engine, request: Request) -> dict:
    """Remove all containers that do not run."""
    return engine.containers.prune(request.filters())


@route("GET", "/containers/{id}/json")
def get_container(engine: Engine, request: Request) -> dict:
    """Everything about one container."""
    return engine.containers.inspect(request.params["id"], request.flag("size"))


@route("DELETE", "/containers/{id}")
def delete_container(engine: Engine, request: Request) -> None:
    """Remove a container."""
    engine.containers.remove(request.params["id"], force=request.flag("force"),
                             link=request.flag("link"))


@route("GET", "/containers/{id}/top")
def get_container_top(engine: Engine, request: Request) -> dict:
    """The processes of a container."""
    return engine.containers.top(request.params["id"], request.arg("ps_args"))


@route("GET", "/containers/{id}/changes")
def get_container_changes(engine: Engine, request: Request) -> Response:
    """What a container changed in its image; null when nothing."""
    changes = engine.containers.changes(request.params["id"])
    if changes is None:
        return Response(200, {"Content-Type": "application/json"}, b"null\n")
    return Response(200, value=changes)


@route("POST", "/containers/{id}/start")
def post_container_start(engine: Engine, request: Request) -> None:
    """Start a container."""
    if request.arg("checkpoint"):
        raise InvalidParameter("checkpoint is only supported in experimental mode")
    engine.containers.start(request.params["id"])


@route("POST", "/containers/{id}/stop")
def post_container_stop(engine: Engine, request: Request) -> None:
    """Stop a container."""
    engine.containers.stop(request.params["id"], request.number("t"), request.arg("signal"))


@route("POST", "/containers/{id}/restart")
def post_container_restart(engine: Engine, request: Request) -> None:
    """Stop a container if it runs, and start it."""
    engine.containers.restart(request.params["id"], request.number("t"), request.arg("signal"))


@route("POST", "/containers/{id}/kill")
def post_container_kill(engine: Engine, request: Request) -> None:
    """Send a container a signal."""
    engine.containers.kill(request.params["id"], request.arg("signal"))


@route("POST", "/containers/{id}/pause")
def post_container_pause(engine: Engine, request: Request) -> None:
    """Freeze a container."""
    engine.containers.pause(request.params["id"])


@route("POST", "/containers/{id}/unpause")
def post_container_unpause(engine: Engine, request: Request) -> None:
    """Let a frozen container go on."""
    engine.containers.unpause(request.params["id"])


@route("POST", "/containers/{id}/rename")
def post_container_rename(engine: Engine, request: Request) -> None:
    """Give a container another name."""
    engine.containers.rename(request.params["id"], request.arg("name"))


@route("POST", "/containers/{id}/resize")
def post_container_resize(engine: Engine, request: Request) -> Response:
    """Set the size of a container's terminal."""
    container_resize(engine, request.params["id"], *_size_of_terminal(request))
    return Response(200)


def _size_of_terminal(request: Request) -> tuple:
    out = []
    for name, what in (("h", "height"), ("w", "width")):
        text = request.arg(name)
        if not text.isdigit() or int(text) >= 1 << 32:
            raise InvalidParameter(f"invalid resize {what} {quote(text)}: strconv.ParseUint:"
                                   f" parsing {quote(text)}: invalid syntax")
        out.append(int(text) & 0xFFFF)
    return tuple(out)


@route("POST", "/containers/{id}/wait")
def post_container_wait(engine: Engine, request: Request) -> Any:
    """How a container ends; the answer comes when it has."""
    answer = container_wait(engine, request.params["id"], request.arg("condition"), request.take)
    return HIJACKED if answer is None else answer


@route("POST", "/containers/{id}/attach")
def post_container_attach(engine: Engine, request: Request) -> Any:
    """Join the streams of a container."""
    asked: dict = {name: request.flag(name)
                   for name in ("stdin", "stdout", "stderr", "logs", "stream")}
    asked["detach_keys"] = request.arg("detachKeys")
    container_attach(engine, request.params["id"], asked, _hijacker(request))
    return HIJACKED


def _hijacker(request: Request) -> Callable:
    """What gives the client's connection away, with the content type that its version knows."""
    def hijack(tty: bool) -> tuple:
        return request.hijack(_stream_type(request, tty))
    return hijack


def _stream_type(request: Request, tty: bool) -> str:
    kind = "raw" if tty or version_tuple(request.version) < (1, 42) else "multiplexed"
    return f"application/vnd.docker.{kind}-stream"


@route("GET", "/containers/{id}/logs")
def get_container_logs(engine: Engine, request: Request) -> Stream:
    """What a container has written, and with `follow` what it goes on to write."""
    tail = request.arg("tail")
    asked = {
        "stdout": request.flag("stdout"), "stderr": request.flag("stderr"),
        "timestamps": request.flag("timestamps"), "details": request.flag("details"),
        # What is no number, as "all", means all (moby daemon/logs.go).
        "tail": int(tail) if tail.isdigit() else -1,
        "since": _time_arg(request, "since"), "until": _time_arg(request, "until")}
    chunks, tty = container_logs(engine, request.params["id"], asked, request.flag("follow"))
    return Stream(chunks, _stream_type(request, tty))


def _time_arg(request: Request, name: str) -> int:
    text = request.arg(name)
    return time_parse(text) if text and text != "0" else 0


@route("POST", "/containers/{id}/exec")
def post_container_exec(engine: Engine, request: Request) -> Response:
    """Note a process to run beside a container's first."""
    return Response(201, value={"Id": exec_create(engine, request.params["id"],
                                                  request.body.json())})


@route("GET", "/exec/{id}/json")
def get_exec(engine: Engine, request: Request) -> dict:
    """Everything about an exec."""
    return exec_inspect(engine, request.params["id"])


@route("POST", "/exec/{id}/start")
def post_exec_start(engine: Engine, request: Request) -> Any:
    """Run what was noted, attached to this connection or detached."""
    attached = exec_start(engine, request.params["id"], request.body.json(optional=True),
                          _hijacker(request))
    return HIJACKED if attached else Response(200)


@route("POST", "/exec/{id}/resize")
def post_exec_resize(engine: Engine, request: Request) -> Response:
    """Set the size of an exec's terminal."""
    exec_resize(engine, request.params["id"], *_size_of_terminal(request))
    return Response(200)


# =============================================================================
# client -- speaks the API: JSON, streams, hijack; in this process
# =============================================================================
# Runs in: cli.
#
# The model: commands say what they want of the API (method, path, query, body) and get values back
# or an EngineError. How the request travels is the transport's business: an object with one method,
# send(request) -> Response, Stream, or a connected socket when the connection was given away.
#
# LocalTransport calls the router in this process. The engine is made at the first request, so a
# command that needs none (help, a wrong flag) touches no file. Values pass as they are. A hijacked
# connection is a socketpair: one end goes to the handler, which hands it to the monitor; the other
# is what the caller reads. After dispatch the handler's end is closed here, so that the monitor's
# copy is the last one and its close is seen as the end of the stream.
#
# An error that came from the engine is marked (from_engine), so that the command line can say so.

STREAM_PIECE = 256 * 1024


class _Pair:
    """The connection of a request in this process, made when the handler asks for it."""

    __slots__ = ("far", "near")

    def __init__(self) -> None:
        self.near: Any = None
        self.far: Any = None

    def _open(self) -> Any:
        if self.far is None:
            self.near, self.far = _socket.socketpair(
                _socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC, 0)
        return self.far

    def hijack(self, content_type: str) -> tuple:
        """(socket, nothing read yet)."""
        return self._open(), b""

    def take(self, content_type: str) -> tuple:
        """(socket, no head to write)."""
        return self._open(), ""

    def close(self) -> None:
        """Both ends, after a handler that took the connection and then failed."""
        if self.far is not None:
            self.far.close()
            self.near.close()


class LocalTransport:
    """Carries requests to the router in this process."""

    __slots__ = ("_engine", "_make")

    def __init__(self, make: Callable) -> None:
        self._make = make
        self._engine: Any = None

    def engine(self) -> Any:
        """The engine, made at the first use."""
        if self._engine is None:
            self._engine = self._make()
        return self._engine

    def send(self, request: Request) -> Any:
        """Response, Stream or the near end of the connection that the handler gave away."""
        pair = request.connection = _Pair()
        reply = http_dispatch(self.engine(), request)
        if reply is HIJACKED:
            pair.far.close()
            return pair.near
        pair.close()
        return reply


class Waiter:
    """An answer that comes later: `fileno()` to poll (-1: it is here), `result()` to read it."""

    __slots__ = ("_reply",)

    def __init__(self, reply: Any) -> None:
        self._reply = reply

    def fileno(self) -> int:
        """The descriptor that becomes readable with the answer."""
        return -1 if isinstance(self._reply, Response) else self._reply.fileno()

    def result(self) -> dict:
        """The JSON value; Unavailable when the other side ended without one."""
        if isinstance(self._reply, Response):
            return self._reply.value
        parts = []
        while True:
            piece = self._reply.recv(4096)
            if not piece:
                break
            parts.append(piece)
        self._reply.close()
        if not parts:
            raise Unavailable("the container's monitor ended without an answer")
        self._reply = Response(value=json_parse(b"".join(parts)))
        return self._reply.value

    def close(self) -> None:
        """Stops waiting."""
        if not isinstance(self._reply, Response):
            self._reply.close()
            self._reply = Response(value={})


def _query_text(value: Any) -> list:
    if isinstance(value, bool):
        return ["1" if value else "0"]
    if isinstance(value, (list, tuple)):
        return [str(each) for each in value]
    return [json_text(value) if isinstance(value, dict) else str(value)]


class ApiClient:
    """The API as methods; every one raises the EngineError that the engine answered with.

    `query` values may be text, numbers, bools (1, 0), lists (repeated), dicts (JSON) and None (left
    out). `body` is a value for JSON, or an open binary file, which is sent as it is.
    """

    __slots__ = ("transport",)

    def __init__(self, transport: Any) -> None:
        self.transport = transport

    def send(self, method: str, path: str, query: dict | None = None, body: Any = None,
             headers: dict | None = None) -> Any:
        """The transport's reply to a request; statuses from 400 are raised."""
        carried = Body(reader=body) if hasattr(body, "read") else Body(body)
        reply = self.transport.send(Request(
            method, path, headers=headers, body=carried,
            query={name: _query_text(value) for name, value in (query or {}).items()
                   if value is not None}))
        if isinstance(reply, Response) and reply.status >= 400:
            message = reply.value["message"] if reply.value else ""
            error = reply.error or error_for(reply.status, message)
            error.from_engine = True
            raise error
        return reply

    def call(self, method: str, path: str, query: dict | None = None, body: Any = None) -> Any:
        """The value of the reply; text or bytes where it is no JSON."""
        reply = self.send(method, path, query, body)
        if isinstance(reply, Response):
            if reply.body == b"null\n":
                return None
            return reply.value if reply.value is not None else reply.body or None
        if isinstance(reply, Stream):
            return b"".join(reply.chunks)
        return Waiter(reply).result()

    def get(self, path: str, query: dict | None = None) -> Any:
        """GET's value."""
        return self.call("GET", path, query)

    def post(self, path: str, query: dict | None = None, body: Any = None) -> Any:
        """POST's value."""
        return self.call("POST", path, query, body)

    def delete(self, path: str, query: dict | None = None) -> Any:
        """DELETE's value."""
        return self.call("DELETE", path, query)

    def stream(self, method: str, path: str, query: dict | None = None,
               body: Any = None) -> Iterator[bytes]:
        """The reply's bytes, piece by piece; asking happens now, not at the first piece."""
        reply = self.send(method, path, query, body)
        if isinstance(reply, Stream):
            return iter(reply.chunks)
        if isinstance(reply, Response):
            return iter([reply.data()])
        return _socket_chunks(reply)

    def lines(self, method: str, path: str, query: dict | None = None,
              body: Any = None) -> Iterator[Any]:
        """The reply's JSON values, one for each line."""
        return _json_lines(self.stream(method, path, query, body))

    def hijack(self, path: str, query: dict | None = None, body: Any = None) -> Any:
        """The socket that carries the stream (attach, exec start), opened by a POST."""
        reply = self.send("POST", path, query, body)
        if isinstance(reply, (Response, Stream)):
            raise EngineError("the engine did not give the connection away")
        return reply

    def wait(self, ref: str, condition: str = "not-running") -> Waiter:
        """Waits for a container's end; it is registered when this returns."""
        return Waiter(self.send("POST", f"/containers/{ref}/wait", {"condition": condition}))


def _socket_chunks(sock: Any) -> Iterator[bytes]:
    try:
        while True:
            piece = sock.recv(STREAM_PIECE)
            if not piece:
                return
            yield piece
    finally:
        sock.close()


def _json_lines(chunks: Iterable[bytes]) -> Iterator[Any]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.strip():
                yield json_parse(line)
    if rest.strip():
        yield json_parse(rest)


def client_local(data: str | None = None, run: str | None = None) -> ApiClient:
    """A client of the engine in this process, on these roots (None or "": the default ones)."""
    return ApiClient(LocalTransport(lambda: Engine(Store(*roots_find(data or None, run or None)))))


# =============================================================================
# output -- tables, progress, relative times, colours
# =============================================================================
# Runs in: cli.   Refs: docker CLI reference, "Format command and log output"
#
# A listing (ps, images, history) is a table of columns: one row per column with its name in
# templates, its header, and a function (object, Show) -> value over what the API answered.
# Listing.text draws it in one of five ways:
#   ""  or "table"   the default columns, without the template engine: `ps` has 18 ms in all
#   "table {{..}}"   the user's template once per object, below a header made by the same template
#   "json"           one JSON object a line with all columns, names sorted, as Go writes a map
#   "raw"            `name: value` lines, where Docker has that form
#   anything else    the user's template once per object
# The tables section aligns the columns and runs templates over rows.
# Nothing here speaks to the engine; most functions return text, those called *_show print it.
# Colours: Docker's core commands use none, and so does this file.

HELP_FORMAT = "Print by a Go template; 'json' prints JSON"
HELP_FORMAT_LIST = ("Print by a Go template, one line for each; 'table TEMPLATE' adds headers, "
                    "'json' prints JSON")
_EPOCH_2000 = 946684800     # history: what claims to be older carries no true date


class Show:
    """How the values of a listing are shown.

    truncate: cut to the width of a column; human: sizes and dates for people; now: the clock of
    relative times, in seconds since the epoch.
    """

    __slots__ = ("human", "now", "truncate")

    def __init__(self, *, truncate: bool = True, human: bool = True) -> None:
        self.truncate, self.human, self.now = truncate, human, time.time()


# --- values that several listings share ---

def _id_shown(value: str, show: Show) -> str:
    return id_short(value) if show.truncate else value


GO_SECONDS_MAX = INT64_MAX // SECOND


def _since_text(seconds: float, show: Show) -> str:
    # Go's Duration ends at 292 years, either way.
    passed = max(-GO_SECONDS_MAX, min(show.now - seconds, GO_SECONDS_MAX))
    return ago(passed) + " ago"


def labels_text(labels: dict | None) -> str:
    """Labels as listings show them: "a=1,b=2", sorted."""
    return ",".join(sorted(f"{key}={value}" for key, value in (labels or {}).items()))


# --- containers ---

def _container_names(container: dict, show: Show) -> str:
    names = [name[1:] if name.startswith("/") else name for name in container["Names"] or ()]
    if show.truncate:       # the first that is no link of another container ("other/alias")
        names = [name for name in names if "/" not in name][:1] or names
    return ",".join(names)


def _container_image(container: dict, show: Show) -> str:
    image = container["Image"]
    if not image:
        return "<no image>"
    if not show.truncate:
        return image
    short = _id_shown(container.get("ImageID") or "", show)
    if short and short == _id_shown(image, show):
        return short
    name = image.partition("@")[0] or image
    if name.startswith("docker.io/"):
        name = name[len("docker.io/"):]
        return name[len("library/"):] if name.startswith("library/") else name
    return name


def _container_command(container: dict, show: Show) -> str:
    command = container["Command"]
    return quote(ellipsis(command, 20) if show.truncate else command)


def _container_size(container: dict, show: Show) -> str:
    size = size_human_short(container.get("SizeRw") or 0)
    total = container.get("SizeRootFs") or 0
    return f"{size} (virtual {size_human_short(total)})" if total > 0 else size


def _container_mounts(container: dict, show: Show) -> str:
    names = [mount.get("Name") or mount.get("Source", "") for mount in container["Mounts"] or ()]
    return ",".join(ellipsis(name, 15) if show.truncate else name for name in names)


def _container_networks(container: dict, show: Show) -> str:
    return ",".join((container.get("NetworkSettings") or {}).get("Networks") or ())


def _container_volumes(container: dict, show: Show) -> str:
    return str(sum(1 for mount in container["Mounts"] or () if mount.get("Driver") == "local"))


def _container_platform(container: dict, show: Show) -> str | None:
    platform = (container.get("ImageManifestDescriptor") or {}).get("platform")
    return platform_text(platform) if platform else None


def _port_range(address: str, kind: str, first: int, last: int) -> str:
    ports = str(first) if first == last else f"{first}-{last}"
    return f"{_host_port(address, ports)}->{ports}/{kind}" if address else f"{ports}/{kind}"


def _host_port(address: str, port: str) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def ports_text(ports: list | None) -> str:
    """Published and exposed ports as `ps` shows them, neighbours joined:
    "0.0.0.0:80->80/tcp, 9000-9001/tcp"."""
    if not ports:
        return ""
    ports = sorted(ports, key=lambda port: (
        port["PrivatePort"], port.get("IP") or "", port.get("PublicPort") or 0, port["Type"]))
    done: list = []
    groups: dict = {}
    mapped: list = []
    for port in ports:
        private, address = port["PrivatePort"], port.get("IP") or ""
        public = port.get("PublicPort") or 0
        if address and public != private:
            mapped.append(f"{_host_port(address, str(public))}->{private}/{port['Type']}")
            continue
        key = (address, port["Type"])
        first, last = groups.get(key, (private, private - 1))
        if private != last + 1:
            done.append(_port_range(*key, first, last))
            first = private
        groups[key] = (first, private)
    done.extend(_port_range(*key, *group) for key, group in groups.items())
    return ", ".join(done + mapped)


# fmt: off
CONTAINER_COLUMNS = (
    ("Command",      "COMMAND",       _container_command),
    ("CreatedAt",    "CREATED AT",    lambda c, show: time_text_local(c["Created"] * SECOND)),
    ("ID",           "CONTAINER ID",  lambda c, show: _id_shown(c["Id"], show)),
    ("Image",        "IMAGE",         _container_image),
    ("Labels",       "LABELS",        lambda c, show: labels_text(c["Labels"])),
    ("LocalVolumes", "LOCAL VOLUMES", _container_volumes),
    ("Mounts",       "MOUNTS",        _container_mounts),
    ("Names",        "NAMES",         _container_names),
    ("Networks",     "NETWORKS",      _container_networks),
    ("Platform",     "PLATFORM",      _container_platform),
    ("Ports",        "PORTS",         lambda c, show: ports_text(c["Ports"])),
    ("RunningFor",   "CREATED",       lambda c, show: _since_text(c["Created"], show)),
    ("Size",         "SIZE",          _container_size),
    ("State",        "STATE",         lambda c, show: c["State"]),
    ("Status",       "STATUS",        lambda c, show: c["Status"]),
)
CONTAINER_TABLE = ("ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names")
CONTAINER_RAW = (
    ("container_id", "ID"), ("image", "Image"), ("command", "Command"),
    ("created_at", "CreatedAt"), ("state", "State"), ("status", "Status"), ("names", "Names"),
    ("labels", "Labels"), ("ports", "Ports"),
)
# fmt: on


# --- images ---

def _image_since(seconds: int, show: Show) -> str:
    return "" if seconds * SECOND == TIME_ZERO_NS else _since_text(seconds, show)


def _image_count(value: int) -> str:
    return "N/A" if value == -1 else str(value)


def _image_shared(image: dict, show: Show) -> str:
    return "N/A" if image["SharedSize"] == -1 else size_human(image["SharedSize"])


def _image_unique(image: dict, show: Show) -> str:
    if image["SharedSize"] == -1 or image["Size"] == -1:
        return "N/A"
    return size_human(image["Size"] - image["SharedSize"])


# fmt: off
IMAGE_COLUMNS = (
    ("Containers",   "CONTAINERS",  lambda i, show: _image_count(i["Containers"])),
    ("CreatedAt",    "CREATED AT",  lambda i, show: time_text_local(i["Created"] * SECOND)),
    ("CreatedSince", "CREATED",     lambda i, show: _image_since(i["Created"], show)),
    ("Digest",       "DIGEST",      lambda i, show: i["Digest"]),
    ("ID",           "IMAGE ID",    lambda i, show: _id_shown(i["Id"], show)),
    ("Repository",   "REPOSITORY",  lambda i, show: i["Repository"]),
    ("SharedSize",   "SHARED SIZE", _image_shared),
    ("Size",         "SIZE",        lambda i, show: size_human_short(i["Size"])),
    ("Tag",          "TAG",         lambda i, show: i["Tag"]),
    ("UniqueSize",   "UNIQUE SIZE", _image_unique),
    ("VirtualSize",  "SIZE",        lambda i, show: size_human(i["Size"])),
)
IMAGE_TABLE = ("Repository", "Tag", "ID", "CreatedSince", "Size")
IMAGE_TABLE_DIGESTS = ("Repository", "Tag", "Digest", "ID", "CreatedSince", "Size")
IMAGE_RAW = (
    ("repository", "Repository"), ("tag", "Tag"), ("image_id", "ID"),
    ("created_at", "CreatedAt"), ("virtual_size", "Size"),
)
IMAGE_RAW_DIGESTS = (*IMAGE_RAW[:2], ("digest", "Digest"), *IMAGE_RAW[2:])
# fmt: on


def _names_split(references: list | None, mark: str) -> dict:
    """{repository: [tag or digest]} of "repository:tag" or "repository@digest" texts."""
    found: dict = {}
    for reference in references or ():
        repository, _, name = reference.rpartition(mark)
        if repository and repository != "<none>":
            found.setdefault(repository, []).append(name)
    return found


def image_rows(images: list, *, digests: bool = False, digest_used: bool = False) -> list:
    """What `images` lists: one row per tag, or per digest, of each image.

    `digests` is --digests, `digest_used` says that the template shows the digest.
    """
    rows: list = []
    for image in images:
        tags = _names_split(image["RepoTags"], ":")
        pinned = _names_split(image["RepoDigests"], "@")
        found: list = []
        for repository, names in tags.items():
            known = pinned.pop(repository, [])
            if not (digests or digest_used and known):
                known = []
            found.extend((repository, tag, digest)
                         for tag in names for digest in known or ["<none>"])
        for repository, known in pinned.items():
            found.extend((repository, "<none>", digest) for digest in (known if digests else [""]))
        for repository, tag, digest in found or [("<none>",) * 3]:
            rows.append({**image, "Repository": repository, "Tag": tag, "Digest": digest})
    return rows


# --- history ---

def _step_date(step: dict, show: Show) -> str:
    text = time_fixed_local(step["Created"] * SECOND)
    return text.replace(".000000000", "")


def _step_since(step: dict, show: Show) -> str:
    if not show.human:
        return _step_date(step, show)
    return "N/A" if step["Created"] <= _EPOCH_2000 else _since_text(step["Created"], show)


def _step_command(step: dict, show: Show) -> str:
    command = step["CreatedBy"].replace("\t", " ")
    return ellipsis(command, 45) if show.truncate else command


def _step_size(step: dict, show: Show) -> str:
    return size_human_short(step["Size"]) if show.human else str(step["Size"])


# fmt: off
HISTORY_COLUMNS = (
    ("Comment",      "COMMENT",    lambda step, show: step["Comment"]),
    ("CreatedAt",    "CREATED AT", _step_date),
    ("CreatedBy",    "CREATED BY", _step_command),
    ("CreatedSince", "CREATED",    _step_since),
    ("ID",           "IMAGE",      lambda step, show: _id_shown(step["Id"], show)),
    ("Size",         "SIZE",       _step_size),
)
HISTORY_TABLE = ("ID", "CreatedSince", "CreatedBy", "Size", "Comment")
HISTORY_TABLE_EXACT = ("ID", "CreatedAt", "CreatedBy", "Size", "Comment")
# fmt: on


# --- drawing a listing ---

class Listing:
    """One kind of listing: its columns and how it looks when nothing else is asked.

    columns: (name, header, function) rows; table: names of the default columns; raw: (label, name)
    rows of the `raw` form, () where Docker has none; quiet_wins: --quiet beats a template;
    type_name: the Go type that an error text names for an unknown field.
    """

    __slots__ = ("columns", "quiet_wins", "raw", "table", "type_name")

    def __init__(self, columns: tuple, table: tuple, type_name: str, *, raw: tuple = (),
                 quiet_wins: bool = False) -> None:
        self.columns = columns
        self.table = table
        self.type_name = type_name
        self.raw = raw
        self.quiet_wins = quiet_wins

    def text(self, items: list, *, show: Show, format: str = "", quiet: bool = False) -> str:
        """The whole listing as text, by --format and --quiet."""
        if format in ("", "table"):
            return self._ids(items, show) if quiet else self._table(items, show)
        if format == "raw" and self.raw:
            return self._raw(items, show, quiet=quiet)
        if quiet and self.quiet_wins:
            return self._ids(items, show)
        if format in ("json", "{{json .}}"):
            return "".join(_json_go(self._values(item, show)) + "\n" for item in items)
        out: list = []
        format_rows(format, (self._row(item, show) for item in items),
                    {name: header for name, header, _ in self.columns}, out.append,
                    type_name=self.type_name)
        return "".join(out)

    def _ids(self, items: list, show: Show) -> str:
        value = {name: function for name, _, function in self.columns}["ID"]
        return "".join(value(item, show) + "\n" for item in items)

    def _table(self, items: list, show: Show) -> str:
        by_name = {name: (header, function) for name, header, function in self.columns}
        chosen = [by_name[name] for name in self.table]
        lines = [[header for header, _ in chosen]]
        lines.extend([function(item, show) for _, function in chosen] for item in items)
        return columns_align("\n".join(map("\t".join, lines)) + "\n")

    def _raw(self, items: list, show: Show, *, quiet: bool) -> str:
        rows = [row for row in self.raw if row[1] == "ID"] if quiet else self.raw
        lines = []
        for item in items:
            values = self._values(item, show)
            for label, name in rows:
                # no space after the colon of these when they have no value
                bare = label in ("state", "status", "labels", "ports") and not values[name]
                lines.append(f"{label}:" if bare else f"{label}: {values[name]}")
            if not quiet:
                lines.append("")
        return "".join(line + "\n" for line in lines)

    def _values(self, item: dict, show: Show) -> dict:
        return {name: function(item, show) for name, _, function in self.columns}

    def _row(self, item: dict, show: Show) -> dict:
        row = self._values(item, show)
        if "Labels" in row:
            labels = item["Labels"] or {}
            row["Label"] = lambda name: labels.get(name, "")
        return row


def _json_go(value: object) -> str:
    """JSON as Go's json.Marshal writes what implements Marshaler: <, > and & are escaped."""
    text = json_text(value)
    for char in "<>&\u2028\u2029":
        if char in text:
            text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def containers_text(containers: list, *, show: Show, format: str = "", quiet: bool = False,
                    size: bool = False) -> str:
    """What `ps` prints for the containers of GET /containers/json."""
    table = (*CONTAINER_TABLE, "Size") if size else CONTAINER_TABLE
    raw = (*CONTAINER_RAW, ("size", "Size")) if size else CONTAINER_RAW
    listing = Listing(CONTAINER_COLUMNS, table, "*formatter.ContainerContext", raw=raw,
                      quiet_wins=True)
    return listing.text(containers, show=show, format=format, quiet=quiet)


def containers_format_check(format: str) -> bool:
    """Whether a --format of `ps` shows sizes; EngineError in Docker's words when it is wrong.

    The check comes before the request, so that it does not depend on there being containers.
    """
    row: dict = {name: "" for name, _, _ in CONTAINER_COLUMNS}
    row["Label"] = lambda name: ""
    doing = "parse"
    try:
        template = Template(format)
        doing = "execute"
        template.render(row, type_name="*formatter.ContainerContext")
    except TemplateError as error:
        raise EngineError(f"failed to {doing} template: {template_words(error)}") from None
    return ".Size" in format


def images_text(images: list, *, show: Show, format: str = "", quiet: bool = False,
                digests: bool = False) -> str:
    """What `images` prints for the images of GET /images/json."""
    rows = image_rows(images, digests=digests, digest_used="{{.Digest}}" in format)
    table, raw = ((IMAGE_TABLE_DIGESTS, IMAGE_RAW_DIGESTS) if digests
                  else (IMAGE_TABLE, IMAGE_RAW))
    if digests and format.startswith("table ") and "{{.Digest}}" not in format:
        format += "\t{{.Digest}}"
    listing = Listing(IMAGE_COLUMNS, table, "*formatter.imageContext", raw=raw)
    return listing.text(rows, show=show, format=format, quiet=quiet)


def history_text(steps: list, *, show: Show, format: str = "", quiet: bool = False) -> str:
    """What `history` prints for the steps of GET /images/{name}/history."""
    listing = Listing(HISTORY_COLUMNS, HISTORY_TABLE if show.human else HISTORY_TABLE_EXACT,
                      "*image.historyContext")
    return listing.text(steps, show=show, format=format, quiet=quiet)


def top_text(processes: dict) -> str:
    """What `top` prints for the processes of GET /containers/{id}/top."""
    lines = [processes["Titles"], *(processes["Processes"] or ())]
    return columns_align("\n".join(map("\t".join, lines)) + "\n", 20)


# --- single objects ---

class BadTemplate(EngineError):
    """A --format that cannot be parsed, of a command that shows one object: exit status 64."""

    exit = 64


def template_words(error: TemplateError, name: str = "") -> str:
    """A TemplateError's text without the words before it, for a template of that name."""
    text = str(error)
    for lead in ("template parsing error: ", "template: :"):
        text = text[len(lead):] if text.startswith(lead) else text
    return f"template: {name}:{text}".replace('executing ""', f'executing "{name}"')


def template_parse(format: str, name: str = "", lead: str = "template parsing error: "
                   ) -> Template | None:
    """The Template of a --format, None for the whole object as JSON ("json", "{{json .}}").

    Raises BadTemplate in the words of the command whose template has that name in Docker.
    """
    if format in ("json", "{{json .}}"):
        return None
    try:
        return Template(format)
    except TemplateError as error:
        raise BadTemplate(lead + template_words(error, name)) from None


def template_show(template: Template | None, plain: dict, value: dict, *, name: str = "",
                  type_name: str = "") -> None:
    """Prints one object: `plain` as JSON without a template, else `value` through it.

    They differ where Go's fields have other names than the JSON. Raises EngineError.
    """
    if template is None:
        output_write(json_text(plain) + "\n")
        return
    try:
        output_write(template.render(value, type_name=type_name) + "\n")
    except TemplateError as error:
        raise EngineError(template_words(error, name)) from None


def inspect_show(refs: Iterable[str], fetch: Callable[[str], dict], format: str = "") -> list:
    """Prints what `inspect` shows of the objects that fetch(ref) gets; returns the errors.

    One JSON array, or the template's line for each. What cannot be fetched or shown does not keep
    the others from being shown. Raises BadTemplate before anything is fetched.
    """
    template = template_parse(format) if format else None
    found: list = []
    errors: list = []
    for ref in refs:
        try:
            value = fetch(ref)
            # Go calls the field ID, the JSON Id: both are used
            found.append(value if template is None else
                         template.render({**value, "ID": value.get("Id")}) + "\n")
        except EngineError as error:
            errors.append(error)
    if template is not None:        # Docker ends with a newline even when nothing was found
        output_write("".join(found) or "\n")
    elif format and found:
        output_write(json_text(found) + "\n")
    else:
        output_write(json_pretty(found) + "\n")
    return errors


# --- progress ---

def progress_text(detail: dict, width: int) -> str:
    """A progressDetail as a bar and numbers for a terminal of `width` cells:
    "[====>      ]  1.2MB/3.4MB"."""
    current, total = detail.get("current", 0), detail.get("total", 0)
    unit = detail.get("units")
    if current <= 0 and total <= 0:
        return ""
    if total <= 0:
        return f"{current} {unit}" if unit else f"{size_human(current):>8}"
    done = min(current * 50 // total, 50)
    bar = f"[{'=' * done}>{' ' * (50 - done)}] " if width > 110 else ""
    if detail.get("hidecounts"):
        numbers = ""
    elif unit:
        numbers = f"{current} {unit}" if current > total else f"{current}/{total} {unit}"
    else:
        numbers = f"{size_human(current):>8}"
        if current <= total:
            numbers += f"/{size_human(total)}"
    return bar + numbers


class Progress:
    """Draws a stream of progress messages: lines that belong to one id are redrawn in place.

    write: takes text; width: cells of the terminal, 0 when the output is none, and then only
    what is no progress bar is written, line by line.
    """

    __slots__ = ("lines", "width", "write")

    def __init__(self, write: Callable[[str], object], width: int) -> None:
        self.write = write
        self.width = width
        self.lines: dict = {}       # id -> number of its line below the first one

    def show(self, message: dict) -> None:
        """Draw one message; raises EngineError for one that carries an error."""
        if message.get("aux") is not None:
            return
        name, moved = message.get("id") or "", 0
        if name and message.get("progressDetail") is not None:
            if name not in self.lines:
                self.lines[name] = len(self.lines)
                if self.width:
                    self.write("\n")
            moved = len(self.lines) - self.lines[name]
        else:       # a line of its own: what stands above it is never redrawn
            self.lines = {}
        error = message.get("errorDetail")
        if error is not None or message.get("error"):
            raise EngineError((error or {}).get("message") or message["error"])
        if not self.width:
            self._plain(message, name)
            return
        self.write((f"\x1b[{moved}A" if moved else "") + self._line(message, name)
                   + (f"\x1b[{moved}B" if moved and name else ""))

    def _plain(self, message: dict, name: str) -> None:
        if progress_text(message.get("progressDetail") or {}, 200):
            return      # bars are for terminals
        text = message.get("stream") or message.get("status", "") + "\n"
        self.write(f"{name}: {text}" if name else text)

    def _line(self, message: dict, name: str) -> str:
        head = f"{name}: " if name else ""
        stream, detail = message.get("stream"), message.get("progressDetail")
        if stream:
            return head + stream
        status = message.get("status", "")
        if detail is None:
            return f"{head}{status}\n"
        return f"\x1b[2K\r{head}{status} {progress_text(detail, self.width)}\r"


def progress_show(messages: Iterable[dict]) -> None:
    """Draw all progress messages of an iterator on stdout; raises the EngineError among them."""
    progress = Progress(output_write, terminal_width(1))
    for message in messages:
        progress.show(message)


def terminal_width(fd: int) -> int:
    """The width of the terminal behind a descriptor, 0 when it is none."""
    if not os.isatty(fd):
        return 0
    return winsize_get(fd)[1] or 200


def output_write(text: str) -> None:
    """Write text to stdout now, in order with everything written before."""
    sys.stdout.write(text)
    sys.stdout.flush()


# =============================================================================
# flags -- flag tables: kinds of values, pflag's parsing rules, API bodies from flags
# =============================================================================
# Runs in: cli.   Refs: spf13/pflag flag.go and its value types, docker/cli opts
#
# Flags are rows. The kind of a flag says how its text becomes a value, whether it repeats, and what
# help calls it; kinds are rows too (FLAG_KINDS), and sections below add some with @flag_kind. A
# flag with a target ("HostConfig.Memory") goes into an API body as it is: body_fill does it.
#
# The rules are pflag's: --name value, --name=value, -n value, -nvalue, -n=value, clusters (-it),
# "--" ends flags, "-" is an argument. A bool takes a value only after "=". Where interspersed is
# off (run, exec), the first argument ends flags. A single value given twice: the last one holds. A
# repeating one starts from nothing when it is first given, whatever its default.
# Texts of errors are pflag's and strconv's, as people and scripts know them.
# A wrong value is told in one line; a wrong form (unknown flag, value missing) asks for the usage
# to be shown after it, which the cli section does.

class Flag:
    """One row of a flag table: Flag("-m --memory", "bytes", target="HostConfig.Memory", help=...).

    `names` are a shorthand (or none), the name, and hidden further names. `default` is what args
    holds when the flag is absent (None: the kind's own). `deprecated` hides it and warns.
    """

    __slots__ = ("default", "deprecated", "help", "hidden", "kind", "names", "target")

    def __init__(self, names: str, kind: str = "bool", default: Any = None, help: str = "", *,
                 target: str = "", hidden: bool = False, deprecated: str = "") -> None:
        self.names = names
        self.kind = kind
        self.default = default
        self.help = help
        self.target = target
        self.hidden = hidden or bool(deprecated)
        self.deprecated = deprecated

    @property
    def long(self) -> str:
        """The name without dashes: "memory"."""
        return next(name for name in self.names.split() if name.startswith("--"))[2:]

    @property
    def short(self) -> str:
        """The letter, or ""."""
        return self.names[1] if self.names[1] != "-" else ""


class Args:
    """What was typed: an attribute for each flag (dashes are underscores), `rest`, `top`.

    `top` holds the flags before the command (`args.top.debug`), `name` the command as it was
    called, `given("env")` tells whether a flag was set.
    """

    if TYPE_CHECKING:
        top: Any
        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, name: str, top: Args | None = None) -> None:
        self.name = name
        self.top: Any = top
        self.rest: list = []
        self.seen: set = set()
        self.help = False
        self.warnings: list = []

    if TYPE_CHECKING:
        def __getattr__(self, name: str) -> Any: ...
        def __setattr__(self, name: str, value: Any) -> None: ...

    def given(self, long: str) -> bool:
        """Whether the flag stood on the command line."""
        return long in self.seen


class UsageError(EngineError):
    """The command line is wrong; `trailer` is what follows the line (usage, where to read more)."""

    status = 400

    def __init__(self, message: str, exit_code: int = 1, trailer: str = "") -> None:
        super().__init__(message)
        self.exit = exit_code
        self.trailer = trailer


def bool_parse(text: str) -> bool:
    """Go's strconv.ParseBool."""
    if text in ("1", "t", "T", "TRUE", "true", "True"):
        return True
    if text in ("0", "f", "F", "FALSE", "false", "False"):
        return False
    raise ValueError(f'strconv.ParseBool: parsing "{text}": invalid syntax')


def int_parse(text: str, bits: int = 64, signed: bool = True) -> int:
    """Go's strconv.ParseInt with base 0: 10, 0x1f, 0b1, 0o17 and 017."""
    name = "ParseInt" if signed else "ParseUint"
    bare = text.lstrip("+-") if signed else text
    octal = len(bare) > 1 and bare[0] == "0" and bare.replace("_", "").isdigit()
    try:
        if text != text.strip() or not text.isascii():
            raise ValueError
        value = int(text.replace("0", "0o", 1) if octal else text, 0)
    except ValueError:
        raise ValueError(f'strconv.{name}: parsing "{text}": invalid syntax') from None
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    if not signed and text[:1] in ("+", "-"):
        raise ValueError(f'strconv.{name}: parsing "{text}": invalid syntax')
    if not low <= value <= high:
        raise ValueError(f'strconv.{name}: parsing "{text}": value out of range')
    return value


def nano_parse(text: str) -> int:
    """"1.5" CPUs as 1500000000 billionths; a fraction ("1/2") is a number too."""
    above, slash, below = text.partition("/")
    try:
        if slash:
            value = int(above) * 10**9 / int(below)
            exact = int(above) * 10**9 % int(below) == 0
        else:
            mantissa, _, exponent = text.lower().partition("e")
            whole, _, part = mantissa.partition(".")
            shift = 9 + int(exponent or 0) - len(part)
            digits = int(whole + part)
            value = digits * 10**shift if shift >= 0 else digits // 10**-shift
            exact = shift >= 0 or digits % 10**-shift == 0
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"failed to parse {text} as a rational number") from None
    if not exact:
        raise ValueError("value is too precise")
    return int(value)


def comma_split(text: str) -> list:
    """The fields of one CSV line, quotes as RFC 4180 has them."""
    if '"' not in text:
        return text.split(",")
    fields, field, at, quoted = [], "", 0, False
    while at < len(text):
        char = text[at]
        if quoted and text[at:at + 2] == '""':
            field, at = field + '"', at + 1
        elif char == '"' and (quoted or not field):
            quoted = not quoted
        elif char == '"':
            raise ValueError('parse error on line 1, column '
                             f'{at + 1}: bare " in non-quoted-field')
        elif char == "," and not quoted:
            fields.append(field)
            field = ""
        else:
            field += char
        at += 1
    if quoted:
        raise ValueError(f'parse error on line 1, column {at + 1}: extraneous or missing " '
                         'in quoted-field')
    return [*fields, field]


def _add_filter(values: dict, text: str) -> None:
    if text:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError("bad format of filter (expected name=value)")
        values.setdefault(name.strip().lower(), []).append(value.strip())


def _add_pair(values: dict, text: str) -> None:
    name, _, value = text.partition("=")
    values[name] = value


#: kind -> (what starts the value, how text becomes a value or joins it, default in help). Help
#: shows a kind up to its colon: "list:env" is a list whose values are checked.
#: A callable start makes a value that repeats; its function then takes (value so far, text).
FLAG_KINDS: dict[str, tuple] = {
    "bool":     (False, bool_parse, ""),
    "bytes":    (0, lambda text: size_parse(text), ""),
    "decimal":  (0, nano_parse, ""),
    "duration": (0, lambda text: duration_parse(text), "0s"),
    "filter":   (dict, _add_filter, ""),
    "int":      (0, int_parse, ""),
    "list":     (list, list.append, ""),
    "map":      (dict, _add_pair, "map[]"),
    "string":   ("", str, ""),
    "strings":  (list, lambda values, text: values.extend(comma_split(text)), ""),
    "uint":     (0, lambda text: int_parse(text, 64, False), ""),
    "uint16":   (0, lambda text: int_parse(text, 16, False), "0"),
}


def flag_kind(name: str, start: Any = None, shown: str = "") -> Callable:
    """Registers a kind: @flag_kind("ulimit", start=list, shown="[]") def add(values, text)."""
    def register(function: Callable) -> Callable:
        FLAG_KINDS[name] = (start, function, shown)
        return function
    return register


def _flag_set(args: Args, flag: Flag, text: str, problem: list) -> None:
    start, function, _ = FLAG_KINDS[flag.kind]
    attribute = flag.long.replace("-", "_")
    try:
        if callable(start):
            if flag.long not in args.seen:
                setattr(args, attribute, start())
            function(getattr(args, attribute), text)
        else:
            setattr(args, attribute, function(text))
    except (ValueError, InvalidParameter) as exc:
        shown = f"-{flag.short}, --{flag.long}" if flag.short else f"--{flag.long}"
        problem.append("value")
        raise ValueError(f'invalid argument "{text}" for "{shown}" flag: {exc}') from None
    if flag.deprecated:
        args.warnings.append(f"Flag --{flag.long} has been deprecated, {flag.deprecated}")
    args.seen.add(flag.long)


def _take_long(args: Args, table: dict, word: str, queue: list, problem: list) -> None:
    name, equals, value = word[2:].partition("=")
    if not name or name[0] == "-":
        raise ValueError(f"bad flag syntax: {word}")
    flag = table.get("--" + name)
    if flag is None:
        if name == "help":
            args.help = not equals or bool_parse(value)
            return
        raise ValueError(f"unknown flag: --{name}")
    if not equals:
        if flag.kind == "bool":
            value = "true"
        elif queue:
            value = queue.pop(0)
        else:
            raise ValueError(f"flag needs an argument: --{name}")
    _flag_set(args, flag, value, problem)


def _take_cluster(args: Args, table: dict, word: str, queue: list, problem: list) -> None:
    letters = word[1:]
    while letters:
        letter, letters = letters[0], letters[1:]
        flag = table.get("-" + letter)
        if flag is None:
            if letter == "h":
                args.help = True
                return
            raise ValueError(f"unknown shorthand flag: '{letter}' in {word}")
        if letters[:1] == "=" and len(letters) > 1:
            value, letters = letters[1:], ""
        elif flag.kind == "bool":
            value = "true"
        elif letters:
            value, letters = letters, ""
        elif queue:
            value = queue.pop(0)
        else:
            raise ValueError(f"flag needs an argument: '{letter}' in {word}")
        _flag_set(args, flag, value, problem)


def _flags_table(flags: Iterable[Flag]) -> dict:
    """{"-m": flag, "--memory": flag} with every spelling."""
    return {name: flag for flag in flags for name in flag.names.split()}


def flags_parse(flags: Iterable[Flag], words: list, *, name: str = "", interspersed: bool = True,
                top: Args | None = None) -> Args:
    """The flags and arguments of `words`; raises UsageError with pflag's texts.

    Its trailer is "" when a value is wrong and "usage" when the form is.
    """
    args = Args(name, top)
    for flag in flags:
        start = FLAG_KINDS[flag.kind][0]
        value = start() if callable(start) else start
        setattr(args, flag.long.replace("-", "_"), value if flag.default is None else flag.default)
    table, queue = _flags_table(flags), list(words)
    problem: list = []
    try:
        while queue:
            word = queue.pop(0)
            if word == "--":
                args.rest += queue
                break
            if len(word) < 2 or word[0] != "-":
                args.rest.append(word)
                if not interspersed:
                    args.rest += queue
                    break
            elif word[1] == "-":
                _take_long(args, table, word, queue, problem)
            else:
                _take_cluster(args, table, word, queue, problem)
    except ValueError as exc:
        raise UsageError(str(exc), 125, "" if problem else "usage") from None
    return args


def body_set(body: dict, target: str, value: Any) -> None:
    """Puts a value at a dotted place of an API body, making the objects on the way."""
    *path, last = target.split(".")
    for step in path:
        body = body.setdefault(step, {})
    body[last] = value


def body_fill(body: dict, args: Args, flags: Iterable[Flag]) -> dict:
    """Puts every flag that was given and has a target into the body."""
    for flag in flags:
        if flag.target and flag.long in args.seen:
            body_set(body, flag.target, getattr(args, flag.long.replace("-", "_")))
    return body


def _wrap(text: str, width: int) -> list:
    lines = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split(" "):
            if line and len(line) + 1 + len(word) > width:
                lines.append(line)
                line = word
            else:
                line = f"{line} {word}" if line else word
        lines.append(line)
    return lines


def _flag_default(flag: Flag) -> str:
    shown = FLAG_KINDS[flag.kind][2]
    if flag.default not in (None, False, "", 0):
        shown = f'"{flag.default}"' if flag.kind.startswith("string") else str(flag.default)
        shown = shown.lower() if flag.kind == "bool" else shown
    return f" (default {shown})" if shown else ""


def help_flags(flags: Iterable[Flag], width: int) -> str:
    """The lines under "Options:", sorted by name and wrapped at `width`."""
    rows = []
    for flag in sorted(flags, key=lambda flag: flag.long):
        if not flag.hidden:
            kind = "" if flag.kind == "bool" else " " + flag.kind.partition(":")[0]
            short = f"-{flag.short}," if flag.short else "   "
            rows.append((f"  {short} --{flag.long}{kind}", flag.help + _flag_default(flag)))
    indent = max((len(spec) for spec, _ in rows), default=0) + 3
    lines = []
    for spec, text in rows:
        first, *more = _wrap(text, max(width - 1 - indent, 24))
        lines.append((spec.ljust(indent) + first).rstrip())
        lines += [" " * indent + line for line in more]
    return "\n".join(lines)


# =============================================================================
# cli -- the command line: commands, help, errors, exit codes
# =============================================================================
# Runs in: cli.   Refs: spf13/cobra (help layout), docker/cli cli/cobra.go
#
# The model: a command is a function (client, args) -> exit code or None, registered by @command
# with its names, usage and flags. Sections below fill COMMANDS; this one finds the command, reads
# its flags, makes the client (which opens nothing until it is used), runs it and turns what went
# wrong into a line on stderr and Docker's exit code.
#
# Errors: what the engine refused reads "Error response from daemon: ...", what the client found
# itself has no prefix. A wrong value is told in one line. A wrong form (unknown command or flag,
# wrong number of arguments) is followed by the usage, as Docker does. The error itself names the
# command `docker`, because scripts match these texts; the usage names the program as it was called.
#
# Writing to a closed pipe ends the process by SIGPIPE, quietly; an interrupt is 130.
# This section never prints tables and knows no single command.

#: full name or alias -> Command, filled by @command at import.
COMMANDS: dict[str, Command] = {}
COMMON_COMMANDS = ("run", "exec", "ps", "build", "pull", "push", "images", "login", "logout",
                   "search", "version", "info")
GROUPS = {
    "builder":   "Look after the build cache",
    "container": "Work with containers",
    "context":   "Choose among engines",
    "image":     "Work with images",
    "network":   "Work with networks",
    "system":    "Look after the engine itself",
    "volume":    "Work with volumes",
}
LOG_LEVELS = ("debug", "info", "warn", "error", "fatal", "panic", "trace", "warning")
HELP_WIDTH = 80                     # where no terminal tells its own


class Command:
    """A command's row: what help shows and the parser needs, and the function that does it."""

    __slots__ = ("aliases", "error_exit", "flags", "handler", "help", "hidden", "interspersed",
                 "name", "nargs", "usage")

    def __init__(self, name: str, handler: Callable, options: dict) -> None:
        self.name = name
        self.handler = handler
        self.aliases = options.pop("aliases", ())
        self.usage = options.pop("usage", "[OPTIONS]")
        self.flags = options.pop("flags", ())
        self.nargs = options.pop("nargs", (0, 0))
        self.help = options.pop("help")
        self.hidden = options.pop("hidden", False)
        self.interspersed = options.pop("interspersed", True)
        self.error_exit = options.pop("error_exit", 1)
        if options:
            raise TypeError(f"command {name}: unknown options {sorted(options)}")


def command(name: str, **options: Any) -> Callable:
    """Registers a command.

    @command("container ls", aliases=("ps",), usage="[OPTIONS]", flags=PS_FLAGS, nargs=(0, 0)):
    nargs is (least, most or None); interspersed=False ends flags at the first argument; error_exit
    is the exit code of errors that carry none; help is a line that says what the command does.
    """
    def register(handler: Callable) -> Callable:
        row = Command(name, handler, dict(options))
        for each in (name, *row.aliases):
            COMMANDS[each] = row
        return handler
    return register


# -- help: cobra's layout -------------------------------------------------------

def program_name() -> str:
    """What the program was called, for usage lines."""
    return os.path.basename(sys.argv[0] if sys.argv else "") or "engine.pyz"


def _terminal_width() -> int:
    try:
        return os.get_terminal_size(0).columns or HELP_WIDTH
    except OSError:
        return HELP_WIDTH


def _use_line(row: Command, name: str) -> str:
    return f"{program_name()} {name} {row.usage}".rstrip()


def _shown_name(row: Command, called: str) -> str:
    """`container list` shows as its first name, `ps` as itself: one word is its own command."""
    return called if " " not in called else row.name


def _help_command(row: Command, called: str) -> str:
    """The help text of a command, under the name by which it was called."""
    program = program_name()
    text = f"Usage:  {_use_line(row, _shown_name(row, called))}\n\n{row.help}\n"
    if row.aliases:
        names = [row.name, *sorted(row.aliases, key=lambda name: " " not in name)]
        text += "\nAliases:\n  " + ", ".join(f"{program} {name}" for name in names) + "\n"
    if any(not flag.hidden for flag in row.flags):
        text += "\nOptions:\n" + help_flags(row.flags, _terminal_width()) + "\n"
    return text


def _help_list(title: str, rows: Iterable[tuple]) -> str:
    lines = [f"  {name.ljust(11)} {text}" for name, text in rows]
    return f"\n{title}:\n" + "\n".join(lines) + "\n" if lines else ""


def _group_rows(group: str) -> list:
    return sorted((name.split(" ", 1)[1], row.help) for name, row in COMMANDS.items()
                  if name.startswith(group + " ") and row.name == name and not row.hidden)


def _help_group(group: str) -> str:
    """The help text of `container`, `image` and their like."""
    path = f"{program_name()} {group}"
    return (f"Usage:  {path} COMMAND\n\n{GROUPS[group]}\n"
            + _help_list("Commands", _group_rows(group))
            + f"\nRun '{path} COMMAND --help' for more information on a command.\n")


def _help_root() -> str:
    """The help text of the program."""
    single = {name: row.help for name, row in COMMANDS.items()
              if " " not in name and not row.hidden}
    return (f"Usage:  {program_name()} [OPTIONS] COMMAND\n\n"
            "Containers, images and the engine for them, in one file\n"
            + _help_list("Common Commands",
                         [(name, single[name]) for name in COMMON_COMMANDS if name in single])
            + _help_list("Management Commands",
                         [row for row in sorted(GROUPS.items()) if _group_rows(row[0])])
            + _help_list("Commands", sorted(row for row in single.items()
                                            if row[0] not in COMMON_COMMANDS))
            + "\nGlobal Options:\n" + help_flags(TOP_FLAGS, _terminal_width()) + "\n"
            + f"\nRun '{program_name()} COMMAND --help' for more information on a command.\n")


# -- what commands share --------------------------------------------------------

def print_error(text: str) -> None:
    """One line on stderr, after what stdout still holds."""
    flush_output()
    os.write(2, (text.rstrip("\n") + "\n").encode("utf-8", "surrogateescape"))


def flush_output() -> None:
    """Writes out what print() has kept; call it before os.write(1, ...)."""
    if sys.stdout is not None:
        sys.stdout.flush()


def error_line(exc: BaseException) -> str:
    """What the user reads of an error: the engine's words have Docker's prefix."""
    if not isinstance(exc, EngineError):
        return error_text(exc)
    return ("Error response from daemon: " if exc.from_engine else "") + str(exc)


def for_each(names: Iterable[str], action: Callable, *, echo: bool = True) -> int:
    """Runs action(name) for each name and prints the name; errors follow at the end, exit 1.

    A name whose action returns False is not printed.
    """
    problems = []
    for name in names:
        try:
            is_told = action(name) is not False
        except EngineError as exc:
            problems.append(error_line(exc))
            continue
        if echo and is_told:
            print(name, flush=True)
    for line in problems:
        print_error(line)
    return 1 if problems else 0


def confirm(text: str) -> bool:
    """Asks on stdout, reads a line from stdin; only y and Y are a yes."""
    print(text + " [y/N] ", end="", flush=True)
    answer = sys.stdin.readline() if sys.stdin is not None else ""
    return answer.strip().lower() == "y"


# -- from words to a command ----------------------------------------------------

TOP_FLAGS = (
    Flag("--config", "string", "~/.docker", help="Directory of the client's configuration"),
    Flag("-c --context", "string", help="Name of the context that tells which engine to use"),
    Flag("-D --debug", help="Tell more about what goes wrong"),
    Flag("-H --host", "list", help="Address of the engine to use"),
    Flag("-l --log-level", "string", "info",
         help='How much to log ("debug", "info", "warn", "error", "fatal")'),
    Flag("--tls", help="Use TLS, without verifying the engine"),
    Flag("--tlscacert", "string", "~/.docker/ca.pem", help="Certificate of the CA to trust"),
    Flag("--tlscert", "string", "~/.docker/cert.pem", help="Certificate of this client"),
    Flag("--tlskey", "string", "~/.docker/key.pem", help="Key of this client"),
    Flag("--tlsverify", help="Use TLS and verify the engine"),
    Flag("-v --version", help="Print the version and leave"),
    Flag("--data-root", "string", help="Directory of images, containers and their data"),
    Flag("--run-root", "string", help="Directory of sockets and what does not outlive a boot"),
)


#: What config.json may say: (its key, the flag that it is the default of, commands that have it).
CONFIG_DEFAULTS = (
    ("detachKeys",   "detach_keys", ("container attach", "container exec", "container run",
                                     "container start")),
    ("imagesFormat", "format",      ("image ls",)),
    ("psFormat",     "format",      ("container ls",)),
)


def _command_find(words: list) -> tuple:
    """(Command, name as called, remaining words); UsageError for what is no command."""
    first = words[0]
    if first in GROUPS and _group_rows(first):
        for at in range(1, len(words)):
            if words[at][:1] != "-":
                name = f"{first} {words[at]}"
                if name in COMMANDS:
                    return COMMANDS[name], name, words[1:at] + words[at + 1:]
                path = f"{program_name()} {first}"
                raise UsageError(f"docker: unknown command: docker {name}", 1, f"Usage:  {path}\n\n"
                                 f"Run '{path} --help' for more information")
        return None, first, words[1:]
    if first in COMMANDS:
        return COMMANDS[first], first, words[1:]
    raise UsageError(f"docker: unknown command: docker {first}", 1,
                     f"Run '{program_name()} --help' for more information")


def _nargs_check(row: Command, name: str, count: int) -> None:
    least, most = row.nargs
    if count >= least and (most is None or count <= most):
        return
    if most == 0:
        text = "accepts no arguments"
    elif most == least:
        text = f"requires {least} argument" + "s" * (least != 1)
    elif most is None:
        text = f"requires at least {least} argument" + "s" * (least != 1)
    elif least == 0:
        text = f"requires at most {most} argument" + "s" * (most != 1)
    else:
        text = f"requires at least {least} and at most {most} arguments"
    see = "See" if most is None else "Run"
    raise UsageError(f"docker: 'docker {name}' {text}", 1,
                     f"Usage:  {_use_line(row, name)}\n\n"
                     f"{see} '{program_name()} {name} --help' for more information")


def _parse_or_usage(flags: Iterable[Flag], words: list, use: str, path: str, **more: Any) -> Args:
    try:
        return flags_parse(flags, words, **more)
    except UsageError as exc:
        if exc.trailer:
            exc.trailer = f"Usage:  {use}\n\nRun '{path} --help' for more information"
        raise


def _group_run(group: str, words: list) -> int:
    path = f"{program_name()} {group}"
    args = _parse_or_usage((), words, path, path)
    if args.help:
        print(_help_group(group), end="")
    else:
        os.write(2, _help_group(group).encode())
    return 0


def _help_run(words: list) -> int:
    if not words:
        print(_help_root(), end="")
        return 0
    try:
        row, name, rest = _command_find(words)
    except UsageError:
        topic = " ".join(words[1:] if words[0] in GROUPS else words)
        raise UsageError(f"unknown help topic: {topic}") from None
    if rest:
        raise UsageError(f"unknown help topic: {' '.join(rest)}")
    print(_help_command(row, name) if row else _help_group(name), end="")
    return 0


def _top_check(top: Args) -> None:
    """Refuses what asks for another engine than the one in this process; never ignores it."""
    if top.debug:
        os.environ["ENGINE_DEBUG"] = os.environ.get("ENGINE_DEBUG") or "1"
    if top.log_level.lower() not in LOG_LEVELS:
        raise UsageError(f"unable to parse logging level: {top.log_level}", 125)
    host = (top.host or [os.environ.get("DOCKER_HOST", "")])[-1]
    context = top.context or os.environ.get("DOCKER_CONTEXT", "")
    if host:
        raise Unsupported(f"cannot connect to {host}: only the engine in this process can be used")
    if context not in ("", "default"):
        raise Unsupported(f"cannot use context {context}: only the engine in this process can be "
                          "used")


def _run(words: list) -> int:
    program = program_name()
    top = _parse_or_usage(TOP_FLAGS, words, f"{program} [OPTIONS] COMMAND [ARG...]", program,
                          interspersed=False)
    if top.version:
        print(f"Docker version {DOCKER_VERSION}, build engine-{VERSION}")
        return 0
    if top.help or not top.rest:
        print(_help_root(), end="")
        return 0
    if top.rest[0] == "help":
        return _help_run([word for word in top.rest[1:] if word not in ("--help", "-h")])
    row, name, rest = _command_find(top.rest)
    if row is None:
        return _group_run(name, rest)
    shown = _shown_name(row, name)
    args = _parse_or_usage(row.flags, rest, _use_line(row, shown), f"{program} {shown}",
                           name=shown, interspersed=row.interspersed, top=top)
    for warning in args.warnings:
        print_error(warning)
    if args.help:
        print(_help_command(row, name), end="")
        return 0
    _nargs_check(row, shown, len(args.rest))
    _top_check(top)
    _config_apply(row, args)
    return _handler_run(row, args)


def _config_read(top: Args) -> dict:
    """The client's config.json; {} where there is none. One that is damaged is told, as in Docker.
    """
    directory = top.config if top.given("config") else os.environ.get("DOCKER_CONFIG")
    path = (directory or os.environ.get("HOME", "/root") + "/.docker") + "/config.json"
    try:
        config = json_parse(file_read(path))
        if isinstance(config, dict) and all(isinstance(config.get(key, ""), str)
                                            for key, _, _ in CONFIG_DEFAULTS):
            return config
        reason = "not an object whose formats and keys are texts"
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as wrong:
        reason = error_text(wrong)
    print_error(f"WARNING: Error loading config file: {path}: {reason}")
    return {}


def _config_apply(row: Command, args: Args) -> None:
    """Let config.json stand in for the flags that were not given; the file is read for those only.
    """
    for key, flag, names in CONFIG_DEFAULTS:
        if row.name in names and getattr(args, flag, None) == "" and not getattr(args, "quiet", 0):
            setattr(args, flag, _config_read(args.top).get(key, ""))


def _handler_run(row: Command, args: Args) -> int:
    client = client_local(args.top.data_root, args.top.run_root)
    try:
        try:
            return row.handler(client, args) or 0
        except ImportError as missing:
            raise module_missing(missing) from None
    except EngineError as exc:
        if row.error_exit != 1 and not isinstance(exc, UsageError):
            exc.exit = exc.exit if exc.exit in (126, 127) else row.error_exit
            print_error("docker: " + error_line(exc))
            return exc.exit
        raise


def _die_by(number: int) -> int:
    """Ends as a program does that has no handler for the signal, so that the shell sees it."""
    import _signal
    _signal.signal(number, _signal.SIG_DFL)
    os.kill(os.getpid(), number)
    return 128 + number


def _streams_prepare() -> None:
    """Descriptors 0-2 are open, else the first files opened would get their numbers and be
    written over; text goes out as UTF-8 whatever the locale, and odd bytes as they came in."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8",
                                    errors="surrogateescape", closefd=False))
        elif number and hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="surrogateescape")


def signals_unwind() -> None:
    """From now on TERM and HUP end the command as INT does: what is half done is cleaned up."""
    import signal

    def ended(number: int, _frame: object) -> None:
        for other in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(other, signal.SIG_IGN)
        raise KeyboardInterrupt(number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:      # nohup(1) had a reason
            signal.signal(number, ended)


def cli_main(words: list) -> int:
    """Runs the command line after the program's name; the exit code. Output is flushed."""
    _streams_prepare()
    try:
        try:
            code = _run(words)
        except EngineError as exc:
            trailer = getattr(exc, "trailer", "")
            print_error(error_line(exc) + (f"\n\n{trailer}" if trailer else ""))
            code = exc.exit
        flush_output()
        return code
    except KeyboardInterrupt as ended:
        return 128 + (ended.args[0] if ended.args else 2)
    except BrokenPipeError:
        return _die_by(13)
    except OSError as exc:          # a full disk under stdout: what is buffered cannot be kept
        os.write(2, (error_text(exc) + "\n").encode("utf-8", "surrogateescape"))
        return 1


# =============================================================================
# cli_streams -- the user's terminal and a container's streams: pump, signals, detach keys
# =============================================================================
# Runs in: cli.   Refs: docker/cli command/container/hijack.go, signals.go, tty.go; moby/term
#
# The model: one loop over poll(2) moves bytes both ways between descriptors 0, 1, 2 and a hijacked
# connection, until the connection ends. Output comes in frames of 8 bytes and a payload (or raw,
# from a terminal) and is written whole frames at a time, many by one writev(2); nothing is decoded.
# Input is read only when what was read before has been sent, so memory stays flat; its end closes
# our half of the connection, and output goes on.
#
# Signals arrive through a wake-up descriptor, so the loop sees them in order and a handler does
# nothing. They are caught from the moment the caller enters `signals_caught`: what comes before the
# loop waits in the pipe. Proxied ones are sent on by the caller's function; SIGWINCH becomes a
# resize; without a proxy INT, TERM and HUP end the loop with 128 + n, the terminal being restored.
#
# Detach keys are acted upon by the other side, which closes the connection. The loop only watches
# the same keys go by, to tell a detachment from the end of the process.

DETACH_PATIENCE = 2.0           # seconds for the other side to close after the keys
UNPROXIED_SIGNALS = ("SIGCHLD", "SIGPIPE", "SIGURG", "SIGKILL", "SIGSTOP", "SIGWINCH",
                     "SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGTRAP", "SIGSYS")
ENDING_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")
PIECES_MAX = 512                # of one writev; the kernel takes 1024


class Detached(EngineError):
    """The user typed the detach keys."""

    def __init__(self) -> None:
        super().__init__("read escape sequence")


class DetachKeys:
    """Watches input for the detach sequence: `feed(data)` is True once it has been typed."""

    __slots__ = ("_at", "keys")

    def __init__(self, text: str) -> None:
        self.keys = detach_keys_parse(text or DETACH_KEYS)
        self._at = 0

    def feed(self, data: bytes) -> bool:
        """Whether the sequence ends in `data`."""
        for byte in data:
            if byte == self.keys[self._at]:
                self._at += 1
            else:
                self._at = 1 if byte == self.keys[0] else 0
            if self._at == len(self.keys):
                self._at = 0
                return True
        return False


class signals_caught:
    """Context manager: signals wait in a pipe instead of ending the process.

    proxy=True: all but the few that concern only this process; otherwise those that ask to end.
    resize=True adds SIGWINCH. `fileno()` becomes readable, `read()` gives the numbers so far.
    """

    __slots__ = ("_before", "_old_fd", "_pipe", "is_proxy")

    def __init__(self, *, proxy: bool, resize: bool = False) -> None:
        import _signal  # signal itself is a shell around it that imports enum: 2 ms
        self.is_proxy = proxy
        wanted = {signal_number(name) for name in ENDING_SIGNALS}
        if proxy:
            wanted = _signal.valid_signals() - {signal_number(name) for name in UNPROXIED_SIGNALS}
        if resize:
            wanted.add(_signal.SIGWINCH)
        self._before: dict = dict.fromkeys(wanted)

    def __enter__(self) -> signals_caught:
        import _signal
        self._pipe = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._old_fd = _signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        for number in self._before:
            # a signal that our starter ignores (nohup, a background job) stays ignored
            if _signal.getsignal(number) != _signal.SIG_IGN or number == _signal.SIGWINCH:
                self._before[number] = _signal.signal(number, lambda *_: None)
        return self

    def __exit__(self, *error: object) -> None:
        import _signal
        for number, handler in self._before.items():
            if handler is not None:
                _signal.signal(number, handler)
        _signal.set_wakeup_fd(self._old_fd)
        for fd in self._pipe:
            os.close(fd)

    def fileno(self) -> int:
        """What to poll."""
        return self._pipe[0]

    def read(self) -> list:
        """The numbers of the signals that came, in their order."""
        try:
            return list(os.read(self._pipe[0], 4096))
        except BlockingIOError:
            return []


class Ended(Exception):
    """A signal that is not passed on asks the client to end; `number` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def write_pieces(fd: int, pieces: list) -> None:
    """Writes all the pieces (bytes or memoryviews), in order, also to a non-blocking descriptor."""
    at = 0
    while at < len(pieces):
        try:
            done = os.writev(fd, pieces[at:at + PIECES_MAX])
        except BlockingIOError:
            wait_ready(fd, write=True)
            continue
        while at < len(pieces) and done >= len(pieces[at]):
            done -= len(pieces[at])
            at += 1
        if done:
            pieces[at] = memoryview(pieces[at])[done:]


def wait_ready(fd: int, write: bool = False, timeout: float | None = None) -> bool:
    """Whether the descriptor became readable (or writable) before `timeout` seconds."""
    import select
    poll = select.poll()
    poll.register(fd, select.POLLOUT if write else select.POLLIN)
    return bool(poll.poll(None if timeout is None else int(timeout * 1000)))


def wait_any(*fds: int) -> list:
    """The descriptors of these that have become readable, or ended; waits for the first."""
    import select
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return [fd for fd, _ in poll.poll()]


class Demultiplexer:
    """Writes a multiplexed stream to stdout and stderr: `feed(data)` for each piece of it."""

    __slots__ = ("_reader",)

    def __init__(self) -> None:
        self._reader = FrameReader()

    def feed(self, data: bytes) -> None:
        """Writes out what of the streams is in `data`, in its order."""
        run: list = []
        at = 1
        # a view of it: slices of bytes would copy the whole stream once more
        for stream, part in self._reader.feed(memoryview(data)):  # type: ignore[arg-type]
            if stream == FRAME_ERROR:
                text = bytes(part).decode("utf-8", "replace")
                raise EngineError(f"error from daemon in stream: {text}")
            fd = 2 if stream == FRAME_STDERR else 1
            if fd != at and run:
                write_pieces(at, run)
                run = []
            at = fd
            run.append(part)
        if run:
            write_pieces(at, run)


class RawWriter:
    """Writes a terminal's stream to stdout."""

    __slots__ = ()

    def feed(self, data: bytes) -> None:
        """Writes it all."""
        write_pieces(1, [data])


class Pump:
    """Moves bytes between the user and a hijacked connection until the connection ends.

    signals: an entered signals_caught; on_signal(number) for each one that is proxied, on_resize()
    for SIGWINCH. detach_keys are watched only with a terminal, as Docker does.
    """

    __slots__ = ("detach", "on_resize", "on_signal", "pending", "poll", "signals", "sock", "stdin",
                 "tty")

    def __init__(self, sock: Any, *, tty: bool, stdin: bool, signals: signals_caught,
                 on_signal: Callable | None = None, on_resize: Callable | None = None,
                 detach_keys: str = "") -> None:
        import select
        self.sock = sock
        self.tty = tty
        self.stdin = stdin
        self.signals = signals
        self.on_signal = on_signal
        self.on_resize = on_resize
        self.detach = DetachKeys(detach_keys) if tty and stdin else None
        self.pending = b""
        self.poll = select.poll()

    def run(self) -> None:
        """Returns at the end of output; raises Detached, Ended, and what writing stdout raises."""
        flush_output()
        raw = raw_mode(0) if self.tty and self.stdin and os.isatty(0) else None
        if raw is None:
            self._loop()
            return
        with raw:
            self._loop()

    def _loop(self) -> None:
        import select
        writer = RawWriter() if self.tty else Demultiplexer()
        sock, wake = self.sock.fileno(), self.signals.fileno()
        self.poll.register(wake, select.POLLIN)
        self.poll.register(sock, select.POLLIN)
        if self.stdin:
            self.poll.register(0, select.POLLIN)
        while True:
            for fd, event in self.poll.poll():
                if fd == wake:
                    self._signals()
                elif fd == 0:
                    self._input()
                elif event & select.POLLOUT:
                    self._send()
                if fd == sock and event & ~select.POLLOUT:
                    data = self._receive()
                    if not data:
                        return
                    writer.feed(data)

    def _receive(self) -> bytes:
        try:
            return self.sock.recv(STREAM_PIECE)
        except ConnectionResetError:    # the other side is gone, with input of ours unread
            return b""

    def _signals(self) -> None:
        for number in self.signals.read():
            if signal_name(number) == "SIGWINCH":
                if self.on_resize is not None:
                    self.on_resize()
            elif self.signals.is_proxy and self.on_signal is not None:
                self.on_signal(number)
            else:
                raise Ended(number)

    def _input(self) -> None:
        try:
            data = os.read(0, STREAM_PIECE // 4)
        except BlockingIOError:
            return
        except OSError:                 # a terminal that hung up: its input has ended
            data = b""
        if not data:
            self._input_end()
            return
        self.pending = data
        self._send()
        if self.detach is not None and self.detach.feed(data):
            wait_ready(self.sock.fileno(), timeout=DETACH_PATIENCE)
            raise Detached

    def _send(self) -> None:
        """Sends what is pending; input is not read again before all of it is gone."""
        import select
        try:
            sent = self.sock.send(self.pending, _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL)
        except BlockingIOError:
            sent = 0
        except OSError:                 # nobody reads any more; output may still come
            self.pending = b""
            self._input_end()
            return
        self.pending = self.pending[sent:]
        busy = bool(self.pending)
        self.poll.modify(self.sock.fileno(), select.POLLIN | (select.POLLOUT if busy else 0))
        if busy and self.stdin:
            self._unregister_input()
        elif self.stdin:
            self.poll.register(0, select.POLLIN)

    def _unregister_input(self) -> None:
        try:
            self.poll.unregister(0)
        except KeyError:
            return

    def _input_end(self) -> None:
        import select
        self.stdin = False
        self._unregister_input()
        self.poll.modify(self.sock.fileno(), select.POLLIN)
        try:
            self.sock.shutdown(_socket.SHUT_WR)
        except OSError:
            return


def detach_keys_check(text: str) -> None:
    """Refuses a --detach-keys value that names no keys, before anything is made."""
    try:
        if text:
            detach_keys_parse(text)
    except InvalidParameter as exc:
        raise UsageError(str(exc)) from None


def terminal_size() -> list:
    """[rows, columns] of the terminal on stdout, [0, 0] when there is none."""
    try:
        return list(winsize_get(1))
    except OSError:
        return [0, 0]


def tty_check(attach_stdin: bool, tty: bool) -> None:
    """Refuses input for a container's terminal that does not come from a terminal."""
    if attach_stdin and tty and not os.isatty(0):
        raise InvalidParameter("the input device is not a TTY")


def streams_copy(chunks: Iterable[bytes], tty: bool) -> None:
    """Writes a stream that only comes (logs) to stdout and stderr."""
    flush_output()
    writer = RawWriter() if tty else Demultiplexer()
    for chunk in chunks:
        writer.feed(chunk)


# =============================================================================
# values -- values of container flags: mounts, networks, devices, limits, ports
# =============================================================================
# Runs in: cli.   Refs: docker/cli opts/, docker/go-connections nat, Engine API ContainerCreate
#
# What pflag's plain kinds cannot say. Each kind turns one text into the API's own words ({"Path":
# "/dev/sda", "Rate": 1048576}) and adds it to what the flag has so far; a ValueError becomes
# Docker's "invalid argument ... for ... flag" line. The name before the colon is what help shows.
# Only the shape is judged here, and only as far as Docker's client judges it: whether a device, a
# network or a capability exists is for the engine to say. Ports are parsed after all flags are
# read, as in Docker, so that their errors do not name the flag.

SYSCTLS_ALLOWED = ("kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall",
                   "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced")
ULIMITS = ("core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile",
           "nproc", "rss", "rtprio", "rttime", "sigpending", "stack")

#: mount option -> (place in the API's Mount, kind of value)
# fmt: off
MOUNT_KEYS = {
    "type":             ("Type", "lower"),
    "source":           ("Source", "path"),
    "src":              ("Source", "path"),
    "target":           ("Target", "text"),
    "dst":              ("Target", "text"),
    "destination":      ("Target", "text"),
    "readonly":         ("ReadOnly", "bool"),
    "ro":               ("ReadOnly", "bool"),
    "consistency":      ("Consistency", "lower"),
    "bind-propagation": ("BindOptions.Propagation", "lower"),
    "bind-nonrecursive": ("BindOptions.NonRecursive", "bool"),
    "bind-create-src":  ("BindOptions.CreateMountpoint", "bool"),
    "volume-subpath":   ("VolumeOptions.Subpath", "text"),
    "volume-nocopy":    ("VolumeOptions.NoCopy", "bool"),
    "volume-label":     ("VolumeOptions.Labels", "pair"),
    "volume-driver":    ("VolumeOptions.DriverConfig.Name", "text"),
    "volume-opt":       ("VolumeOptions.DriverConfig.Options", "pair"),
    "image-subpath":    ("ImageOptions.Subpath", "text"),
    "tmpfs-size":       ("TmpfsOptions.SizeBytes", "size"),
    "tmpfs-mode":       ("TmpfsOptions.Mode", "octal"),
}
BIND_RECURSIVE = {"enabled": "", "disabled": "NonRecursive", "writable": "ReadOnlyNonRecursive",
                  "readonly": "ReadOnlyForceRecursive"}
# fmt: on


@flag_kind("list:attach", list)
def _add_attach(values: list, text: str) -> None:
    if text.lower() not in ("stdin", "stdout", "stderr"):
        raise ValueError("valid streams are STDIN, STDOUT and STDERR")
    values.append(text.lower())


@flag_kind("list:env", list)
def _add_env(values: list, text: str) -> None:
    values.append(env_check(text, os.environ))


@flag_kind("list:label", list)
def _add_label(values: list, text: str) -> None:
    values.append(label_check(text))


def ip_is_valid(text: str) -> bool:
    """Whether the text is an IPv4 or IPv6 address."""
    for family in (_socket.AF_INET, _socket.AF_INET6):
        try:
            _socket.inet_pton(family, text.strip())
        except (OSError, ValueError):
            continue
        return True
    return False


@flag_kind("list:ip", list)
def _add_ip(values: list, text: str) -> None:
    if not ip_is_valid(text):
        raise ValueError(f"IP address is not correctly formatted: {text}")
    values.append(text.strip())


@flag_kind("list:cap", list)
def _add_capability(values: list, text: str) -> None:
    name = text.strip().upper()
    if name not in ("", "ALL") and not name.startswith("CAP_"):
        name = "CAP_" + name
    values[:] = sorted({*values, name})


@flag_kind("list:domain", list)
def _add_domain(values: list, text: str) -> None:
    name = text.strip(" ")
    labels = name.split(".")
    if name != "." and (len(name) > 254 or not any(char.isalpha() for char in name) or not all(
            label and label.replace("-", "").isalnum() and label.isascii() for label in labels)):
        raise ValueError(f"{name} is not a valid domain")
    values.append(name)


@flag_kind("list:link", list)
def _add_link(values: list, text: str) -> None:
    if not text:
        raise ValueError("empty string specified for links")
    if text.count(":") > 1:
        raise ValueError(f"bad format for links: {text}")
    values.append(text)


@flag_kind("list:host", list)
def _add_host(values: list, text: str) -> None:
    name, equals, address = text.partition("=")
    if not equals:
        name, equals, address = text.partition(":")
    if not equals or not name or ":" in name:
        raise ValueError(f'bad format for add-host: "{text}"')
    if address[:1] == "[" and address[-1:] == "]":
        address = address[1:-1]
    if address != "host-gateway" and not ip_is_valid(address):
        raise ValueError(f'invalid IP address in add-host: "{address}"')
    values.append(f"{name}:{address}")


@flag_kind("list:cgroup-rule", list)
def _add_cgroup_rule(values: list, text: str) -> None:
    words = text.split(" ")
    numbers = words[1].split(":") if len(words) == 3 else []
    if not (len(numbers) == 2 and words[0] in ("a", "b", "c")
            and all(number == "*" or number.isdigit() for number in numbers)
            and 1 <= len(words[2]) <= 3 and not set(words[2]) - set("rwm")):
        raise ValueError(f"invalid device cgroup format '{text}'")
    values.append(text)


def _device_split(text: str) -> tuple:
    path, colon, value = text.partition(":")
    if not colon or not path:
        raise ValueError(f"bad format: {text}")
    if not path.startswith("/dev/"):
        raise ValueError(f"bad format for device path: {text}")
    return path, value


@flag_kind("list:weight", list, "[]")
def _add_weight(values: list, text: str) -> None:
    path, value = _device_split(text)
    if not value.isdigit() or not (int(value) == 0 or 10 <= int(value) <= 1000):
        raise ValueError(f"invalid weight for device: {text}")
    values.append({"Path": path, "Weight": int(value)})


@flag_kind("list:bps", list, "[]")
def _add_bps(values: list, text: str) -> None:
    path, value = _device_split(text)
    try:
        rate = size_parse(value)
    except (ValueError, InvalidParameter):
        raise ValueError(f"invalid rate for device: {text}. The correct format is "
                         "<device-path>:<number>[<unit>]. Number must be a positive integer. "
                         "Unit is optional and can be kb, mb, or gb") from None
    values.append({"Path": path, "Rate": rate})


@flag_kind("list:iops", list, "[]")
def _add_iops(values: list, text: str) -> None:
    path, value = _device_split(text)
    if not value.isdigit():
        raise ValueError(f"invalid rate for device: {text}. The correct format is "
                         "<device-path>:<number>. Number must be a positive integer")
    values.append({"Path": path, "Rate": int(value)})


@flag_kind("map:sysctl", dict, "map[]")
def _add_sysctl(values: dict, text: str) -> None:
    name, equals, value = text.partition("=")
    if not equals or not (name in SYSCTLS_ALLOWED or name.startswith(("net.", "fs.mqueue."))):
        raise ValueError(f"sysctl '{text}' is not allowed")
    values[name] = value


@flag_kind("bytes:swap")
def _swap_parse(text: str) -> int:
    return -1 if text == "-1" else size_parse(text)


@flag_kind("ulimit", list, "[]")
def _add_ulimit(values: list, text: str) -> None:
    name, equals, limits = text.partition("=")
    if not equals:
        raise ValueError(f"invalid ulimit argument: {text}")
    if name not in ULIMITS:
        raise ValueError(f"invalid ulimit type: {name}")
    if limits.count(":") > 1:
        raise ValueError(f"too many limit value arguments - {limits}, can only have up to two, "
                         "`soft[:hard]`")
    soft, _, hard = limits.partition(":")
    try:
        soft_value = int(soft)
        hard_value = int(hard) if hard else soft_value
    except ValueError:
        wrong = soft if not soft.lstrip("-").isdigit() else hard
        raise ValueError(f'strconv.ParseInt: parsing "{wrong}": invalid syntax') from None
    if hard_value != -1 and (soft_value > hard_value or soft_value == -1):
        shown = f"{soft_value} > {hard_value}"
        if soft_value == -1:
            shown = f"soft: -1 (unlimited), hard: {hard_value}"
        raise ValueError(f"ulimit soft limit must be less than or equal to hard limit: {shown}")
    values[:] = [each for each in values if each["Name"] != name]
    values.append({"Name": name, "Soft": soft_value, "Hard": hard_value})
    values.sort(key=lambda each: each["Name"])


@flag_kind("gpu-request", list)
def _add_gpus(values: list, text: str) -> None:
    request: dict = {"Driver": "", "Count": 0, "Capabilities": [["gpu"]], "Options": {}}
    counted = False
    for field in comma_split(text):
        key, equals, value = field.partition("=")
        if not equals or key == "count":
            count = value if equals else key
            try:
                request["Count"] = -1 if count == "all" else int(count)
            except ValueError:
                raise ValueError(f"invalid count ({count}): value must be either \"all\" or "
                                 "an integer: invalid syntax") from None
            counted = True
        elif key == "driver":
            request["Driver"] = value
        elif key == "device":
            request["DeviceIDs"] = value.split(",")
        elif key == "capabilities":
            request["Capabilities"] = [[*value.split(","), "gpu"]]
        elif key == "options":
            request["Options"] = key_values(comma_split(value))
        else:
            raise ValueError(f"unexpected key '{key}' in '{field}'")
    if not counted and "DeviceIDs" not in request:
        request["Count"] = 1
    values.append(request)


def _mount_value(kind: str, key: str, value: str, given: bool) -> Any:
    if kind == "bool" and not given:
        return True
    try:
        if kind == "bool":
            return bool_parse(value)
        if kind == "size":
            return size_parse(value)
        if kind == "octal":
            return int(value, 8)
    except (ValueError, InvalidParameter):
        raise ValueError(f"invalid value for {key}: {value}") from None
    if kind == "path" and value.startswith("."):
        return os.path.abspath(value)
    return value.lower() if kind == "lower" else value


def _mount_option(mount: dict, field: str) -> None:
    key, given, value = field.partition("=")
    key = key.lower()
    if key == "bind-recursive":
        if value not in BIND_RECURSIVE:
            raise ValueError(f'invalid value for {key}: {value} (must be "enabled", "disabled", '
                             '"writable", or "readonly")')
        if BIND_RECURSIVE[value]:
            body_set(mount, "BindOptions." + BIND_RECURSIVE[value], True)
        return
    place, kind = MOUNT_KEYS.get(key, ("", ""))
    if not given and kind != "bool":
        raise ValueError(f"invalid field '{field}' must be a key=value pair")
    if not place:
        raise ValueError(f"unexpected key '{key}' in '{field}'")
    if kind == "pair":
        name, _, text = value.partition("=")
        for step in place.split("."):
            mount = mount.setdefault(step, {})
        mount[name] = text
        return
    body_set(mount, place, _mount_value(kind, key, value, bool(given)))


@flag_kind("mount", list)
def _add_mount(values: list, text: str) -> None:
    if not text.strip():
        raise ValueError("EOF")
    mount: dict = {"Type": "volume"}
    for field in comma_split(text.strip()):
        _mount_option(mount, field)
    for place in ("Type", "Target"):
        if not mount.get(place):
            raise ValueError(f"{place.lower()} is required")
    if mount.get("BindOptions", {}).get("ReadOnlyForceRecursive") and not mount.get("ReadOnly"):
        raise ValueError("option 'bind-recursive=readonly' requires 'readonly' to be specified in "
                         "conjunction")
    for kind in ("bind", "volume", "image", "tmpfs"):
        if mount["Type"] != kind and kind.capitalize() + "Options" in mount:
            raise ValueError(f"cannot mix '{kind}-*' options with mount type '{mount['Type']}'")
    values.append(mount)


def _network_field(network: dict, field: str) -> None:
    key, equals, value = field.lower().partition("=")
    if not equals or not key:
        raise ValueError(f"invalid field {field}")
    key, value = key.strip(), value.strip()
    if key in ("ip", "ip6", "link-local-ip") and not ip_is_valid(value):
        raise ValueError(f'ParseAddr("{value}"): unable to parse IP')
    if key == "driver-opt":
        name, equals, text = value.partition("=")
        if not equals or not name:
            raise ValueError("invalid key value pair format in driver options")
        network.setdefault(key, {})[name.strip()] = text.strip()
    elif key in ("alias", "link-local-ip"):
        network.setdefault(key, []).append(value)
    elif key == "gw-priority":
        try:
            network[key] = int(value)
        except ValueError:
            raise ValueError(f"invalid gw-priority ({value}): invalid syntax") from None
    elif key in ("name", "ip", "ip6", "mac-address"):
        network[key] = value
    else:
        raise ValueError("invalid field key " + key)


@flag_kind("network", list)
def _add_network(values: list, text: str) -> None:
    network: dict = {}
    if "=" in text:
        for field in comma_split(text):
            _network_field(network, field)
        if not network.get("name"):
            raise ValueError("network name/id is not specified")
    else:
        network["name"] = text
    values.append(network)


# -- ports ------------------------------------------------------------------------

def _port_span(text: str, whole: str, what: str) -> tuple:
    first, dash, last = text.partition("-")
    try:
        start, end = int(first), int(last if dash else first)
    except ValueError:
        raise InvalidParameter(f"invalid {what}: {whole}") from None
    if not 0 <= start <= end <= 65535:
        raise InvalidParameter(f"invalid {what}: {whole}")
    return start, end


def _proto_split(text: str) -> tuple:
    ports, slash, proto = text.partition("/")
    proto = proto.lower() if slash else "tcp"
    if proto not in ("tcp", "udp", "sctp"):
        raise InvalidParameter(f"invalid proto: {proto}")
    return ports, proto


def ports_publish(texts: list) -> dict:
    """{"80/tcp": [{"HostIp": "", "HostPort": "8080"}]} of --publish values."""
    bindings: dict = {}
    for text in texts:
        if "=" in text:
            fields = {"protocol": "tcp", **key_values(text.split(","))}
            text = f"{fields.get('published', '')}:{fields.get('target', '')}/{fields['protocol']}"
        rest, proto = _proto_split(text)
        rest, _, inner = rest.rpartition(":")
        address, _, outer = rest.rpartition(":")
        address = address[1:-1] if address[:1] == "[" else address
        if address and not ip_is_valid(address):
            raise InvalidParameter(f"invalid IP address: {address}")
        if not inner:
            raise InvalidParameter("no port specified: " + text + "<empty>")
        first, last = _port_span(inner, inner, "containerPort")
        low, high = _port_span(outer, outer, "hostPort") if outer else (0, 0)
        if outer and high - low != last - first and first != last:
            raise InvalidParameter("invalid ranges specified for container and host Ports: "
                                   f"{inner} and {outer}")
        for at in range(last - first + 1):
            port = (str(low + at) if first != last or low == high else outer) if outer else ""
            bindings.setdefault(f"{first + at}/{proto}", []).append(
                {"HostIp": address, "HostPort": port})
    return bindings


def ports_expose(texts: list) -> list:
    """["80/tcp", "81/tcp"] of --expose values."""
    found = []
    for text in texts:
        ports, proto = _proto_split(text)
        try:
            first, last = _port_span(ports, ports, "start port")
        except InvalidParameter:
            raise InvalidParameter(f"invalid range format for --expose: {text}, error: "
                                   f'strconv.ParseUint: parsing "{ports.partition("-")[0]}": '
                                   "invalid syntax") from None
        found += [f"{port}/{proto}" for port in range(first, last + 1)]
    return found


# =============================================================================
# cli_create -- the flags of create and run, and the API body that they make
# =============================================================================
# Runs in: cli.   Refs: docker/cli command/container/opts.go, opts/; Engine API ContainerCreate
#
# Every flag that Docker's create and run have is in RUN_FLAGS. One that stands for one field of the
# body names it as its target; the others are put together by the steps in BODY_STEPS, each with one
# subject. Nothing is left out because this engine cannot do it: what is given reaches the API body,
# and the engine refuses it by name.
#
# What only the client can know is settled here: files (env-file, label-file, a seccomp profile),
# variables of the client's environment, relative paths. Everything else is the engine's to check;
# checks that pflag makes while it reads a flag are kept, because their texts name the flag.

PULL_WAYS = ("always", "missing", "never")
WINDOWS_FLAGS = ("cpu-count", "cpu-percent", "io-maxbandwidth", "io-maxiops")
NOT_USER_DEFINED = ("default", "bridge", "host", "none")

# fmt: off
CREATE_FLAGS = (
    Flag("--add-host", "list:host", target="HostConfig.ExtraHosts",
         help="Name and address for /etc/hosts (host:ip)"),
    Flag("--annotation", "map", target="HostConfig.Annotations",
         help="Note for the OCI runtime (key=value)"),
    Flag("-a --attach", "list:attach", help="Attach only these: STDIN, STDOUT, STDERR"),
    Flag("--blkio-weight", "uint16", target="HostConfig.BlkioWeight",
         help="Block I/O weight, 10 to 1000, or 0 for none"),
    Flag("--blkio-weight-device", "list:weight", target="HostConfig.BlkioWeightDevice",
         help="Block I/O weight of one device"),
    Flag("--cap-add", "list:cap", target="HostConfig.CapAdd", help="Capabilities to add"),
    Flag("--cap-drop", "list:cap", target="HostConfig.CapDrop", help="Capabilities to drop"),
    Flag("--cgroup-parent", "string", target="HostConfig.CgroupParent",
         help="Cgroup to put the container's below"),
    Flag("--cgroupns", "string", target="HostConfig.CgroupnsMode",
         help="Cgroup namespace: host or private"),
    Flag("--cidfile", "string", target="HostConfig.ContainerIDFile",
         help="File to write the container's id to"),
    Flag("--cpu-count", "int", target="HostConfig.CpuCount", help="Number of CPUs (Windows)"),
    Flag("--cpu-percent", "int", target="HostConfig.CpuPercent",
         help="Share of the CPUs (Windows)"),
    Flag("--cpu-period", "int", target="HostConfig.CpuPeriod",
         help="Period of the CPU quota, in microseconds"),
    Flag("--cpu-quota", "int", target="HostConfig.CpuQuota",
         help="CPU time for each period, in microseconds"),
    Flag("--cpu-rt-period", "int", target="HostConfig.CpuRealtimePeriod",
         help="Real-time period, in microseconds"),
    Flag("--cpu-rt-runtime", "int", target="HostConfig.CpuRealtimeRuntime",
         help="Real-time run time, in microseconds"),
    Flag("-c --cpu-shares", "int", target="HostConfig.CpuShares",
         help="Relative weight of the CPU"),
    Flag("--cpus", "decimal", target="HostConfig.NanoCpus", help="Number of CPUs, also a fraction"),
    Flag("--cpuset-cpus", "string", target="HostConfig.CpusetCpus",
         help="CPUs to run on (0-3, 0,1)"),
    Flag("--cpuset-mems", "string", target="HostConfig.CpusetMems",
         help="Memory nodes to use (0-3, 0,1)"),
    Flag("--device", "list", help="Device of the host (host[:container][:rwm])"),
    Flag("--device-cgroup-rule", "list:cgroup-rule", target="HostConfig.DeviceCgroupRules",
         help="Rule for the device cgroup"),
    Flag("--device-read-bps", "list:bps", target="HostConfig.BlkioDeviceReadBps",
         help="Most bytes per second read of a device"),
    Flag("--device-read-iops", "list:iops", target="HostConfig.BlkioDeviceReadIOps",
         help="Most reads per second of a device"),
    Flag("--device-write-bps", "list:bps", target="HostConfig.BlkioDeviceWriteBps",
         help="Most bytes per second written to a device"),
    Flag("--device-write-iops", "list:iops", target="HostConfig.BlkioDeviceWriteIOps",
         help="Most writes per second to a device"),
    Flag("--disable-content-trust", "bool", True, help="No effect: signatures are not checked"),
    Flag("--dns", "list:ip", target="HostConfig.Dns", help="DNS servers"),
    Flag("--dns-option --dns-opt", "list", target="HostConfig.DnsOptions",
         help="Options for resolv.conf"),
    Flag("--dns-search", "list:domain", target="HostConfig.DnsSearch", help="DNS search domains"),
    Flag("--domainname", "string", target="Domainname", help="NIS domain name"),
    Flag("--entrypoint", "string", help="Program to run in place of the image's entry point"),
    Flag("-e --env", "list:env", help="Environment variable (NAME=value, or NAME of the client's)"),
    Flag("--env-file", "list", help="File of environment variables"),
    Flag("--expose", "list", help="Port or range of ports to expose"),
    Flag("--gpus", "gpu-request", target="HostConfig.DeviceRequests",
         help='GPUs to give ("all" for every one)'),
    Flag("--group-add", "list", target="HostConfig.GroupAdd", help="Further groups of the process"),
    Flag("--health-cmd", "string", help="Command that checks the health"),
    Flag("--health-interval", "duration", help="Time between two checks (ms|s|m|h)"),
    Flag("--health-retries", "int", help="Failures in a row that mean unhealthy"),
    Flag("--health-start-interval", "duration",
         help="Time between two checks while it starts (ms|s|m|h)"),
    Flag("--health-start-period", "duration",
         help="Time to start in, in which failures do not count (ms|s|m|h)"),
    Flag("--health-timeout", "duration", help="Most time for one check (ms|s|m|h)"),
    Flag("-h --hostname", "string", target="Hostname", help="Host name of the container"),
    Flag("--init", target="HostConfig.Init",
         help="Run an init that passes signals on and reaps processes"),
    Flag("-i --interactive", target="OpenStdin", help="Keep stdin open"),
    Flag("--io-maxbandwidth", "bytes", target="HostConfig.IOMaximumBandwidth",
         help="Most I/O of the system drive (Windows)"),
    Flag("--io-maxiops", "uint", target="HostConfig.IOMaximumIOps",
         help="Most I/O operations of the system drive (Windows)"),
    Flag("--ip", "string", help="IPv4 address (172.30.100.104)"),
    Flag("--ip6", "string", help="IPv6 address (2001:db8::33)"),
    Flag("--ipc", "string", target="HostConfig.IpcMode",
         help="IPC namespace: none, private, shareable, host, container:NAME"),
    Flag("--isolation", "string", target="HostConfig.Isolation", help="Isolation technology"),
    Flag("--kernel-memory", "bytes", help="No effect: kernels no longer have this limit"),
    Flag("-l --label", "list:label", help="Label (key=value)"),
    Flag("--label-file", "list", help="File of labels"),
    Flag("--link", "list:link", target="HostConfig.Links",
         help="Link to another container (name:alias)"),
    Flag("--link-local-ip", "list", help="Link-local addresses"),
    Flag("--log-driver", "string", target="HostConfig.LogConfig.Type", help="Log driver"),
    Flag("--log-opt", "list", help="Option of the log driver (key=value)"),
    Flag("--mac-address", "string", help="MAC address (92:d0:c6:0a:29:33)"),
    Flag("-m --memory", "bytes", target="HostConfig.Memory", help="Memory limit"),
    Flag("--memory-reservation", "bytes", target="HostConfig.MemoryReservation",
         help="Soft memory limit"),
    Flag("--memory-swap", "bytes:swap", target="HostConfig.MemorySwap",
         help="Limit of memory and swap together; -1 for no limit of swap"),
    Flag("--memory-swappiness", "int", -1, target="HostConfig.MemorySwappiness",
         help="How readily memory is swapped, 0 to 100"),
    Flag("--mount", "mount", target="HostConfig.Mounts",
         help="Mount into the container (type=...,source=...,target=...)"),
    Flag("--name", "string", help="Name of the container"),
    Flag("--network --net", "network", help="Network to connect to"),
    Flag("--network-alias --net-alias", "list", help="Further name on the network"),
    Flag("--no-healthcheck", help="No health check, whatever the image says"),
    Flag("--oom-kill-disable", target="HostConfig.OomKillDisable",
         help="Do not kill when memory runs out"),
    Flag("--oom-score-adj", "int", target="HostConfig.OomScoreAdj",
         help="How readily the kernel kills it, -1000 to 1000"),
    Flag("--pid", "string", target="HostConfig.PidMode",
         help="PID namespace: host, container:NAME"),
    Flag("--pids-limit", "int", target="HostConfig.PidsLimit",
         help="Most processes; -1 for no limit"),
    Flag("--platform", "string", help="Platform of the image (os/arch/variant)"),
    Flag("--privileged", target="HostConfig.Privileged", help="All capabilities and devices"),
    Flag("-p --publish", "list", help="Publish a port on the host ([ip:][host:]container[/proto])"),
    Flag("-P --publish-all", target="HostConfig.PublishAllPorts",
         help="Publish all exposed ports on free ports"),
    Flag("--pull", "string", "missing", help="When to pull the image (always, missing, never)"),
    Flag("-q --quiet", help="Do not show the progress of a pull"),
    Flag("--read-only", target="HostConfig.ReadonlyRootfs",
         help="Mount the root file system read-only"),
    Flag("--restart", "string", "no",
         help="When to restart (no, on-failure[:N], always, unless-stopped)"),
    Flag("--rm", target="HostConfig.AutoRemove", help="Remove the container when it has exited"),
    Flag("--runtime", "string", target="HostConfig.Runtime", help="OCI runtime"),
    Flag("--security-opt", "list", help="Security option"),
    Flag("--shm-size", "bytes", target="HostConfig.ShmSize", help="Size of /dev/shm"),
    Flag("--stop-signal", "string", target="StopSignal",
         help="Signal that asks the container to stop"),
    Flag("--stop-timeout", "int", target="StopTimeout", help="Seconds to wait before it is killed"),
    Flag("--storage-opt", "list", help="Option of the storage driver (key=value)"),
    Flag("--sysctl", "map:sysctl", target="HostConfig.Sysctls",
         help="Kernel parameter of the container's namespaces"),
    Flag("--tmpfs", "list", help="Mount a tmpfs (path[:options])"),
    Flag("-t --tty", target="Tty", help="Give it a terminal"),
    Flag("--ulimit", "ulimit", target="HostConfig.Ulimits",
         help="Resource limit (name=soft[:hard])"),
    Flag("--use-api-socket", help="Give it the API's socket and the registry logins"),
    Flag("-u --user", "string", target="User", help="User and group (name|uid[:group|gid])"),
    Flag("--userns", "string", target="HostConfig.UsernsMode", help="User namespace"),
    Flag("--uts", "string", target="HostConfig.UTSMode", help="UTS namespace: host"),
    Flag("-v --volume", "list", help="Bind a directory or a volume (source:target[:options])"),
    Flag("--volume-driver", "string", target="HostConfig.VolumeDriver",
         help="Driver of volumes that are made"),
    Flag("--volumes-from", "list", target="HostConfig.VolumesFrom",
         help="Mount the volumes of another container"),
    Flag("-w --workdir", "string", target="WorkingDir", help="Working directory"),
)
RUN_FLAGS = (
    *CREATE_FLAGS,
    Flag("-d --detach", help="Run in the background and print the id"),
    Flag("--detach-keys", "string", help="Keys that detach from a container"),
    Flag("--sig-proxy", "bool", True, help="Pass signals on to the process"),
)
# fmt: on


# -- the body ---------------------------------------------------------------------

def file_lines(paths: list) -> list:
    """The name=value lines of environment or label files; errors name the file."""
    found = []
    for path in paths:
        try:
            found += env_file_parse(file_read(path), os.environ)
        except OSError as exc:
            raise InvalidParameter(f"open {path}: {errno_text(exc)}") from None
        except InvalidParameter as exc:
            raise InvalidParameter(f"invalid env file ({path}): {exc}") from None
    return found


def _body_process(body: dict, args: Args) -> None:
    image, *words = args.rest
    body["Image"] = image
    if words:
        body["Cmd"] = words
    if args.given("entrypoint"):
        body["Entrypoint"] = [args.entrypoint]
    if args.env or args.env_file:
        body["Env"] = file_lines(args.env_file) + args.env
    if args.label or args.label_file:
        body["Labels"] = key_values(file_lines(args.label_file) + args.label)


def _body_attach(body: dict, args: Args) -> None:
    attach = args.attach or ["stdout", "stderr"]
    body["AttachStdin"] = "stdin" in attach or args.interactive
    body["AttachStdout"] = "stdout" in attach
    body["AttachStderr"] = "stderr" in attach
    body["StdinOnce"] = body["AttachStdin"] and args.interactive


def _body_health(body: dict, args: Args) -> None:
    numbers = {"Interval": "health_interval", "Timeout": "health_timeout",
               "StartPeriod": "health_start_period", "StartInterval": "health_start_interval",
               "Retries": "health_retries"}
    values = {key: getattr(args, name) for key, name in numbers.items() if getattr(args, name)}
    if args.no_healthcheck:
        if values or args.health_cmd:
            raise InvalidParameter("--no-healthcheck conflicts with --health-* options")
        body["Healthcheck"] = {"Test": ["NONE"]}
    elif values or args.health_cmd:
        for key, value in values.items():
            if value < 0:
                raise InvalidParameter(f"--{numbers[key].replace('_', '-')} cannot be negative")
        test = ["CMD-SHELL", args.health_cmd] if args.health_cmd else []
        body["Healthcheck"] = {"Test": test, **values}


def _body_restart(body: dict, args: Args) -> None:
    name, colon, count = args.restart.partition(":")
    if colon and not name:
        raise InvalidParameter("invalid restart policy format: no policy provided before colon")
    try:
        policy = {"Name": name, "MaximumRetryCount": int(count) if count else 0}
    except ValueError:
        raise InvalidParameter("invalid restart policy format: maximum retry count must be an "
                               "integer") from None
    if args.rm and name not in ("", "no"):
        raise InvalidParameter("conflicting options: cannot specify both --restart and --rm")
    body["HostConfig"]["RestartPolicy"] = policy


def _body_storage(body: dict, args: Args) -> None:
    host = body["HostConfig"]
    for text in args.volume:
        if not text:
            raise InvalidParameter("invalid empty volume spec")
        parts = text.split(":") if len(text) > 2 else [text]
        if "" in parts:
            raise InvalidParameter(f"invalid spec: {text}: empty section between colons")
        if len(parts) == 1:
            body.setdefault("Volumes", {})[text] = {}
            continue
        if parts[0].startswith("."):
            parts[0] = os.path.abspath(parts[0])
        host.setdefault("Binds", []).append(":".join(parts))
    if args.tmpfs:
        host["Tmpfs"] = {text.partition(":")[0]: text.partition(":")[2] for text in args.tmpfs}
    if args.storage_opt:
        if not all("=" in text for text in args.storage_opt):
            raise InvalidParameter("invalid storage option")
        host["StorageOpt"] = key_values(args.storage_opt)


def _is_device_mode(text: str) -> bool:
    return bool(text) and not set(text) - set("rwm") and len(set(text)) == len(text)


def _body_devices(body: dict, args: Args) -> None:
    for text in args.device:
        parts = text.split(":")
        if len(parts) > 3 or not parts[0]:
            raise InvalidParameter(f"bad format for path: {text}")
        if len(parts) == 3 and not _is_device_mode(parts[2]):
            raise InvalidParameter(f"bad mode specified: {parts[2]}")
        mode = "rwm"
        if len(parts) > 1 and _is_device_mode(parts[-1]):
            mode = parts.pop()
        if not parts[-1].startswith("/"):
            raise InvalidParameter(f"{parts[-1]} is not an absolute path")
        body["HostConfig"].setdefault("Devices", []).append(
            {"PathOnHost": parts[0], "PathInContainer": os.path.normpath(parts[-1]),
             "CgroupPermissions": mode})


def _seccomp_text(path: str) -> str:
    try:
        return json_text(json_parse(file_read(path)))
    except OSError as exc:
        raise InvalidParameter(f"opening seccomp profile ({path}) failed: open {path}: "
                               f"{errno_text(exc)}") from None
    except ValueError as exc:
        raise InvalidParameter(f"compacting json for seccomp profile ({path}) failed: "
                               f"{exc}") from None


def _body_security(body: dict, args: Args) -> None:
    host, options = body["HostConfig"], []
    for text in args.security_opt:
        key, equals, value = text.partition("=")
        if not equals and key != "no-new-privileges":
            key, equals, value = text.partition(":")
        if (not equals or not value) and key != "no-new-privileges":
            raise InvalidParameter(f'Invalid --security-opt: "{text}"')
        if key == "systempaths" and value == "unconfined":
            host["MaskedPaths"] = host["ReadonlyPaths"] = []
            continue
        if key == "seccomp" and value not in ("builtin", "unconfined", "default"):
            text = "seccomp=" + _seccomp_text(value)
        options.append(text)
    if options:
        host["SecurityOpt"] = options
    if args.use_api_socket:
        raise Unsupported("--use-api-socket is not supported by this engine")


def _body_limits(body: dict, args: Args) -> None:
    if args.memory_swappiness != -1 and not 0 <= args.memory_swappiness <= 100:
        raise InvalidParameter(f"invalid value: {args.memory_swappiness}. Valid memory swappiness "
                               "range is 0-100")
    if args.log_opt:
        if args.log_driver == "none":
            raise InvalidParameter("invalid logging opts for driver none")
        body_set(body, "HostConfig.LogConfig.Config", key_values(args.log_opt))
    for flag, name, valid in (("--pid", args.pid, ("", "host")), ("--uts", args.uts, ("", "host")),
                              ("--userns", args.userns, ("", "host")),
                              ("--cgroupns", args.cgroupns, ("", "host", "private"))):
        if name not in valid and not (flag == "--pid" and name[10:] and name[:10] == "container:"):
            what = {"--userns": "USER", "--cgroupns": "CGROUP"}.get(flag, flag[2:].upper())
            raise InvalidParameter(f"{flag}: invalid {what} mode")


def _body_ports(body: dict, args: Args) -> None:
    bindings = ports_publish(args.publish)
    if bindings:
        body["HostConfig"]["PortBindings"] = bindings
    exposed = [*bindings, *ports_expose(args.expose)]
    if exposed:
        body["ExposedPorts"] = {port: {} for port in exposed}


def _is_user_defined(network: str) -> bool:
    return network not in NOT_USER_DEFINED and not network.startswith("container:")


def _is_mac(text: str) -> bool:
    parts = text.strip().replace("-", ":").split(":")
    return len(parts) in (6, 8, 20) and all(
        len(part) == 2 and is_hex(part.lower()) for part in parts)


def _endpoint(network: dict, args: Args, is_first: bool) -> dict:
    """An EndpointSettings with what was said; the old flags belong to the first network."""
    name, lists = network["name"], dict(network)
    if is_first:
        for key, values in (("alias", args.network_alias), ("ip", args.ip), ("ip6", args.ip6),
                            ("mac-address", args.mac_address),
                            ("link-local-ip", args.link_local_ip)):
            if values and network.get(key):
                flag = "network-alias" if key == "alias" else key
                raise InvalidParameter("conflicting options: cannot specify both "
                                       f"--{flag} and per-network {key}")
            lists[key] = values or network.get(key)
    is_own = _is_user_defined(name)
    if lists.get("alias") and not is_own:
        raise InvalidParameter("network-scoped aliases are only supported for user-defined "
                               "networks")
    if lists.get("mac-address") and not _is_mac(lists["mac-address"]):
        raise InvalidParameter(f"{lists['mac-address']} is not a valid mac address")
    endpoint: dict = {}
    for key, place in (("alias", "Aliases"), ("driver-opt", "DriverOpts"),
                       ("mac-address", "MacAddress"), ("gw-priority", "GwPriority"),
                       ("ip", "IPAMConfig.IPv4Address"), ("ip6", "IPAMConfig.IPv6Address"),
                       ("link-local-ip", "IPAMConfig.LinkLocalIPs")):
        if lists.get(key):
            body_set(endpoint, place, lists[key])
    if is_own and is_first and args.link:
        endpoint["Links"] = args.link
    return endpoint


def _body_networks(body: dict, args: Args) -> None:
    networks = args.network or [{"name": "default"}]
    if not networks[0]["name"].strip():
        raise InvalidParameter("no name set for network")
    body["HostConfig"]["NetworkMode"] = networks[0]["name"]
    if len({_is_user_defined(network["name"]) for network in networks}) > 1:
        raise InvalidParameter("conflicting options: cannot attach both user-defined and "
                               "non-user-defined network-modes")
    endpoints: dict = {}
    for at, network in enumerate(networks):
        if network["name"] in endpoints:
            raise InvalidParameter(f'network "{network["name"]}" is specified multiple times')
        endpoints[network["name"]] = _endpoint(network, args, at == 0)
    if len(networks) == 1 and not endpoints[networks[0]["name"]]:
        return
    body["NetworkingConfig"] = {"EndpointsConfig": endpoints}


#: Lists of a HostConfig that the docker CLI sends empty where others are null.
SENT_EMPTY = ("Dns", "DnsOptions", "DnsSearch", "BlkioWeightDevice", "BlkioDeviceReadBps",
              "BlkioDeviceWriteBps", "BlkioDeviceReadIOps", "BlkioDeviceWriteIOps", "Devices",
              "Ulimits")
BODY_STEPS = (_body_process, _body_attach, _body_health, _body_restart, _body_storage,
              _body_devices, _body_security, _body_limits, _body_ports, _body_networks)


def create_body(args: Args) -> dict:
    """The body of POST /containers/create that the flags and arguments ask for."""
    for name in WINDOWS_FLAGS:
        if args.given(name):
            raise UsageError(f'"--{name}" is only supported on a Docker daemon running on windows, '
                             "but the Docker daemon is running on linux")
    body: dict = {"HostConfig": {"PortBindings": {}, **{name: [] for name in SENT_EMPTY}}}
    body_fill(body, args, CREATE_FLAGS)
    for step in BODY_STEPS:
        step(body, args)
    return body


# =============================================================================
# cli_containers -- commands on containers
# =============================================================================
# Runs in: cli.   Refs: docker/cli command/container/*.go, Engine API
#
# Each command is a few calls of the API. What they share is above: bodies in cli_create, streams in
# cli_streams, tables in output.
#
# The order in `run` and `start -a` is the content: attach, then wait, then start, so that no byte
# and no end is lost; then the pump until the stream ends; then the exit status. A container that is
# removed at its end is waited for with "removed": its name is free when the command returns.
# `run -d` prints the id before it starts, as Docker does, and attaches to nothing.
#
# Where Docker works on several containers at once (stop, rm, kill, pause), so do these; results
# are printed in the order of the arguments, errors after them.

PARALLEL = 32
REMOVE_PATIENCE = 10.0      # seconds for a container that failed to start to be removed
CHANGE_LETTERS = "CAD"

ATTACH_FLAGS = (
    Flag("--detach-keys", "string", help="Keys that detach from a container"),
    Flag("--no-stdin", help="Do not attach stdin"),
    Flag("--sig-proxy", "bool", True, help="Pass signals on to the process"),
)
EXEC_FLAGS = (
    Flag("-d --detach", help="Run in the background"),
    Flag("--detach-keys", "string", help="Keys that detach from the command"),
    Flag("-e --env", "list:env", help="Environment variable (NAME=value, or NAME of the client's)"),
    Flag("--env-file", "list", help="File of environment variables"),
    Flag("-i --interactive", target="AttachStdin", help="Keep stdin open"),
    Flag("--privileged", target="Privileged", help="All capabilities"),
    Flag("-t --tty", target="Tty", help="Give it a terminal"),
    Flag("-u --user", "string", target="User", help="User and group (name|uid[:group|gid])"),
    Flag("-w --workdir", "string", target="WorkingDir", help="Working directory"),
)
LOGS_FLAGS = (
    Flag("--details", help="Show what the log options add to each line"),
    Flag("-f --follow", help="Go on with what comes"),
    Flag("--since", "string", help='Begin at a time ("2013-01-02T13:23:37Z") or an age ("42m")'),
    Flag("-n --tail", "string", "all", help="Number of lines from the end"),
    Flag("-t --timestamps", help="Show when each line was written"),
    Flag("--until", "string", help='End at a time ("2013-01-02T13:23:37Z") or an age ("42m")'),
)
PS_FLAGS = (
    Flag("-a --all", help="Also those that do not run (default shows just running)"),
    Flag("-f --filter", "filter", help="Only those that match (key=value)"),
    Flag("--format", "string", help="How to print: table, json, raw or a Go template"),
    Flag("-n --last", "int", -1, help="The last n that were created, in any state"),
    Flag("-l --latest", help="The last one that was created, in any state"),
    Flag("--no-trunc", help="Do not cut the output"),
    Flag("-q --quiet", help="Only ids"),
    Flag("-s --size", help="Also the sizes"),
)
STOP_FLAGS = (
    Flag("-s --signal", "string", help="Signal to send"),
    Flag("-t --timeout", "int", help="Seconds to wait before it is killed"),
    Flag("--time", "int", deprecated="use --timeout instead"),
)
CONTAINER_INSPECT_FLAGS = (
    Flag("-f --format", "string", help="How to print: json or a Go template"),
    Flag("-s --size", help="Also the sizes of containers"),
)


# -- what several commands share ---------------------------------------------------

def _many(names: list, action: Callable) -> int:
    """for_each, with all actions started at once where there are several."""
    if len(names) < 2:
        return for_each(names, action)
    import threading
    gate = threading.Semaphore(PARALLEL)
    ends: dict = {}

    def work(at: int) -> None:
        with gate:
            try:
                ends[at] = action(names[at])
            except Exception as exc:        # told in its turn, below
                ends[at] = exc
    threads = [threading.Thread(target=work, args=(at,)) for at in range(len(names))]
    for thread in threads:
        thread.start()
    order = iter(range(len(names)))

    def settled(name: str) -> Any:
        at = next(order)
        threads[at].join()
        if isinstance(ends[at], Exception):
            raise ends[at]
        return ends[at]
    return for_each(names, settled)


def _signal_sender(client: ApiClient, ref: str) -> Callable:
    def send(number: int) -> None:
        try:
            client.post(f"/containers/{ref}/kill", {"signal": signal_name(number)})
        except EngineError:
            return      # it is not running yet, or not any more
    return send


def _resizer(client: ApiClient, path: str) -> Callable:
    def resize() -> None:
        rows, columns = terminal_size()
        if rows or columns:
            try:
                client.post(f"{path}/resize", {"h": rows, "w": columns})
            except EngineError:
                return
    return resize


def _exit_status(waiter: Waiter, signals: signals_caught, send: Callable | None) -> int:
    """The exit code; signals are still passed on while it is waited for."""
    while waiter.fileno() >= 0:
        if signals.fileno() in wait_any(waiter.fileno(), signals.fileno()):
            for number in signals.read():
                if signals.is_proxy and send is not None:
                    send(number)
                elif signal_name(number) != "SIGWINCH":
                    return 128 + number
        else:
            break
    end = waiter.result()
    problem = (end.get("Error") or {}).get("Message")
    if problem:
        print_error(f"Error waiting for container: {problem}")
        return 125
    return end["StatusCode"]


def _attach(client: ApiClient, ref: str, config: dict, keys: str) -> Any:
    return client.hijack(f"/containers/{ref}/attach", {
        "stream": True, "stdin": config["AttachStdin"] or None,
        "stdout": config["AttachStdout"] or None, "stderr": config["AttachStderr"] or None,
        "detachKeys": keys or None})


def _attached_start(client: ApiClient, ref: str, *, config: dict, keys: str, is_removed: bool,
                    signals: signals_caught) -> int:
    """Attach, wait, start, pump, status: the exit code of the container's process."""
    tty = config["Tty"]
    sock = _attach(client, ref, config, keys)
    waiter = client.wait(ref, "removed" if is_removed else "next-exit")
    try:
        client.post(f"/containers/{ref}/start")
    except EngineError:
        sock.close()
        if is_removed:
            _removal_await(client, ref, waiter)
        raise
    resize = _resizer(client, f"/containers/{ref}")
    if tty and os.isatty(1):
        resize()
    send = _signal_sender(client, ref)
    pump = Pump(sock, tty=tty, stdin=config["AttachStdin"], signals=signals, detach_keys=keys,
                on_signal=send, on_resize=resize if tty else None)
    try:
        pump.run()
    except Detached:
        return 0
    except Ended as end:
        return 128 + end.number
    return _exit_status(waiter, signals, send)


def _removal_await(client: ApiClient, ref: str, waiter: Waiter) -> None:
    """A container that could not start and is to be removed is gone when this returns."""
    try:
        client.get(f"/containers/{ref}/json")
    except NotFound:
        waiter.close()
    else:
        if waiter.fileno() >= 0:
            wait_ready(waiter.fileno(), timeout=REMOVE_PATIENCE)


# -- create, run, start --------------------------------------------------------------

class _CidFile:
    """--cidfile: made before the container, so that a second run is refused; kept on success."""

    __slots__ = ("_path",)

    def __init__(self, path: str) -> None:
        self._path = path
        if not path:
            return
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
        except FileExistsError:
            raise InvalidParameter("container ID file found, make sure the other container isn't "
                                   f"running or delete {path}") from None
        except OSError as exc:
            # 127 is what Docker makes of every "no such file" that it meets in run
            raise InvalidParameter(f"failed to create the container ID file: open {path}: "
                                   f"{errno_text(exc)}",
                                   127 if exc.errno == errno.ENOENT else None) from None

    def keep(self, ref: str) -> None:
        if self._path:
            with open(self._path, "w") as file:
                file.write(ref)

    def drop(self) -> None:
        if self._path:
            os.unlink(self._path)


def _image_missing(image: str, pull: str, error: EngineError) -> EngineError:
    """What to say when the image is not here; there is no registry client to ask."""
    if pull == "never" or not str(error).startswith("No such image"):
        return error
    name = reference_familiar(reference_tagged(reference_parse(image)))
    return NotFound(f"Unable to find image '{name}' locally, and this engine does not pull yet: "
                    "load or import it, or make it with image from-host")


def _create(client: ApiClient, args: Args, body: dict) -> str:
    """The new container's id; warnings go to stderr."""
    if args.pull == "always":
        raise Unsupported("--pull always: this engine does not pull yet")
    cid = _CidFile(args.cidfile)
    try:
        made = client.post("/containers/create", {"name": args.name or None,
                                                  "platform": args.platform or None}, body)
    except EngineError as exc:
        cid.drop()
        if exc.status == 404:
            raise _image_missing(args.rest[0], args.pull, exc) from None
        raise
    except BaseException:
        cid.drop()
        raise
    for warning in made.get("Warnings") or ():
        print_error(f"WARNING: {warning}")
    cid.keep(made["Id"])
    return made["Id"]


def _create_checked(args: Args) -> dict:
    if args.pull not in PULL_WAYS and args.pull:
        raise InvalidParameter(f"invalid pull option: '{args.pull}': must be one of \"always\", "
                               '"missing" or "never"')
    platform = os.environ.get("DOCKER_DEFAULT_PLATFORM", "")
    args.platform = args.platform if args.given("platform") else platform
    if args.platform:
        try:
            platform_parse(args.platform)
        except InvalidParameter as exc:
            raise UsageError(f"error parsing specified platform: {exc}") from None
    body = create_body(args)
    if args.tty:
        body["HostConfig"]["ConsoleSize"] = terminal_size()
    return body


@command("container create", aliases=("create",), usage="[OPTIONS] IMAGE [COMMAND] [ARG...]",
         flags=CREATE_FLAGS, nargs=(1, None), interspersed=False,
         help="Make a container, ready to start")
def cmd_create(client: ApiClient, args: Args) -> None:
    """Prints the new container's id."""
    try:
        body = _create_checked(args)
    except InvalidParameter as exc:
        raise UsageError(f"docker: {exc}", 125) from None
    print(_create(client, args, body))


@command("container run", aliases=("run",), usage="[OPTIONS] IMAGE [COMMAND] [ARG...]",
         flags=RUN_FLAGS, nargs=(1, None), interspersed=False, error_exit=125,
         help="Make a container from an image and run it")
def cmd_run(client: ApiClient, args: Args) -> int:
    """The exit code of the container's process, or 0 when it runs in the background."""
    body = _create_checked(args)
    if args.detach:
        if args.attach:
            raise UsageError("conflicting options: cannot specify both --attach and --detach")
        body.update(AttachStdin=False, AttachStdout=False, AttachStderr=False, StdinOnce=False)
    else:
        try:
            tty_check(body["AttachStdin"], args.tty)
        except InvalidParameter as exc:
            raise UsageError(str(exc)) from None
    detach_keys_check(args.detach_keys)
    body.setdefault("Tty", False)
    if args.detach:
        ref = _create(client, args, body)
        print(ref)
        client.post(f"/containers/{ref}/start")
        return 0
    with signals_caught(proxy=args.sig_proxy, resize=args.tty) as signals:
        return _attached_start(client, _create(client, args, body), config=body,
                               keys=args.detach_keys, is_removed=args.rm, signals=signals)


@command("container start", aliases=("start",), usage="[OPTIONS] CONTAINER [CONTAINER...]",
         nargs=(1, None), help="Start containers that do not run", flags=(
             Flag("-a --attach", help="Attach stdout and stderr, pass signals on"),
             Flag("--checkpoint", "string", help="Checkpoint to start from"),
             Flag("--checkpoint-dir", "string", help="Directory of checkpoints"),
             Flag("--detach-keys", "string", help="Keys that detach from a container"),
             Flag("-i --interactive", help="Attach stdin")))
def cmd_start(client: ApiClient, args: Args) -> int:
    """Prints the names, or is the terminal of the one."""
    keys = args.detach_keys
    detach_keys_check(keys)
    if args.checkpoint or args.checkpoint_dir:
        raise Unsupported("--checkpoint is not supported by this engine")
    if not args.attach and not args.interactive:
        return _start_each(client, args.rest)
    if len(args.rest) > 1:
        raise UsageError("you cannot start and attach multiple containers at once")
    found = client.get(f"/containers/{args.rest[0]}/json")
    config = {**found["Config"], "AttachStdout": True, "AttachStderr": True,
              "AttachStdin": args.interactive and found["Config"]["OpenStdin"]}
    with signals_caught(proxy=not config["Tty"], resize=config["Tty"]) as signals:
        return _attached_start(client, found["Id"], config=config, keys=keys, signals=signals,
                               is_removed=found["HostConfig"]["AutoRemove"])


def _start_each(client: ApiClient, names: list) -> int:
    failed, code = [], 1
    for name in names:
        try:
            client.post(f"/containers/{name}/start")
        except EngineError as exc:
            print_error(error_line(exc))
            failed.append(name)
            continue
        print(name, flush=True)
    if len(failed) > 1:
        print_error("Error: failed to start containers: " + ", ".join(failed))
    return code if failed else 0


# -- attach, exec, logs ----------------------------------------------------------------

def _attach_check(client: ApiClient, ref: str) -> dict:
    found = client.get(f"/containers/{ref}/json")
    state = found["State"]
    for name, advice in (("Paused", "paused container, unpause it first"),
                         ("Restarting", "restarting container, wait until it is running")):
        if state[name]:
            raise InvalidParameter(f"You cannot attach to a {advice}")
    if not state["Running"]:
        raise InvalidParameter("You cannot attach to a stopped container, start it first")
    return found


@command("container attach", aliases=("attach",), usage="[OPTIONS] CONTAINER", nargs=(1, 1),
         flags=ATTACH_FLAGS, help="Connect to the streams of a running container")
def cmd_attach(client: ApiClient, args: Args) -> int:
    """The exit code of the container's process."""
    detach_keys_check(args.detach_keys)
    found = _attach_check(client, args.rest[0])
    ref, config = found["Id"], found["Config"]
    tty_check(not args.no_stdin, config["Tty"])
    config = {**config, "AttachStdout": True, "AttachStderr": True,
              "AttachStdin": not args.no_stdin and config["OpenStdin"]}
    is_proxy = args.sig_proxy and not config["Tty"]
    with signals_caught(proxy=is_proxy, resize=config["Tty"]) as signals:
        waiter = client.wait(ref)
        sock = _attach(client, ref, config, args.detach_keys)
        resize = _resizer(client, f"/containers/{ref}")
        if config["Tty"] and os.isatty(1):
            rows, columns = terminal_size()
            # a change of size makes a shell draw its prompt again; the right one follows
            client.post(f"/containers/{ref}/resize", {"h": rows + 1, "w": columns + 1})
            resize()
        send = _signal_sender(client, ref)
        try:
            Pump(sock, tty=config["Tty"], stdin=config["AttachStdin"], signals=signals,
                 detach_keys=args.detach_keys, on_signal=send,
                 on_resize=resize if config["Tty"] else None).run()
        except Ended as end:
            return 128 + end.number
        return _exit_status(waiter, signals, send)


def _exec_pump(client: ApiClient, exec_id: str, body: dict, keys: str) -> int:
    size = terminal_size()
    start = {"Detach": False, "Tty": body["Tty"], "ConsoleSize": size if body["Tty"] else None}
    with signals_caught(proxy=False, resize=body["Tty"]) as signals:
        sock = client.hijack(f"/exec/{exec_id}/start", None, start)
        resize = _resizer(client, f"/exec/{exec_id}")
        if body["Tty"] and os.isatty(0):
            resize()
        try:
            Pump(sock, tty=body["Tty"], stdin=body["AttachStdin"], signals=signals,
                 detach_keys=keys, on_resize=resize if body["Tty"] else None).run()
        except Ended as end:
            return 128 + end.number
    return client.get(f"/exec/{exec_id}/json")["ExitCode"] or 0


@command("container exec", aliases=("exec",), usage="[OPTIONS] CONTAINER COMMAND [ARG...]",
         flags=EXEC_FLAGS, nargs=(2, None), interspersed=False,
         help="Run a command in a running container")
def cmd_exec(client: ApiClient, args: Args) -> int:
    """The exit code of the command."""
    name, *words = args.rest
    body: dict = {"Cmd": words, "Tty": False, "AttachStdin": False, "Privileged": False,
                  "AttachStdout": not args.detach, "AttachStderr": not args.detach}
    body_fill(body, args, EXEC_FLAGS)
    if args.env or args.env_file:
        body["Env"] = file_lines(args.env_file) + args.env
    detach_keys_check(args.detach_keys)
    if args.detach_keys:
        body["DetachKeys"] = args.detach_keys
    if args.detach:
        body["AttachStdin"] = False
    elif args.tty and args.interactive and not os.isatty(0):
        client.get(f"/containers/{name}/json")      # that it does not exist is the better answer
        tty_check(True, True)
    if args.tty:
        body["ConsoleSize"] = terminal_size()
    try:
        exec_id = client.post(f"/containers/{name}/exec", None, body)["Id"]
        if args.detach:
            client.post(f"/exec/{exec_id}/start", None, {"Detach": True, "Tty": args.tty})
            return 0
        return _exec_pump(client, exec_id, body, args.detach_keys)
    except (CannotInvoke, CommandNotFound) as exc:
        print_error(str(exc))       # in Docker it comes through the command's own stream
        return exc.exit


def _when(text: str, name: str) -> str | None:
    """A time as the API takes it, seconds and nanoseconds; ages count back from now."""
    if not text:
        return None
    try:
        ns = time_parse(text, time_now())
    except (ValueError, InvalidParameter) as exc:
        raise InvalidParameter(f'invalid value for "{name}": {exc}') from None
    return f"{ns // 10**9}.{ns % 10**9:09d}"


@command("container logs", aliases=("logs",), usage="[OPTIONS] CONTAINER", flags=LOGS_FLAGS,
         nargs=(1, 1), help="Show what a container wrote")
def cmd_logs(client: ApiClient, args: Args) -> None:
    """Writes the logs to stdout and stderr."""
    found = client.get(f"/containers/{args.rest[0]}/json")
    chunks = client.stream("GET", f"/containers/{found['Id']}/logs", {
        "stdout": True, "stderr": True, "follow": args.follow, "timestamps": args.timestamps,
        "details": args.details, "tail": args.tail,
        "since": _when(args.since, "since"), "until": _when(args.until, "until")})
    streams_copy(chunks, found["Config"]["Tty"])


# -- state -------------------------------------------------------------------------------

def _stop_query(args: Args) -> dict:
    if args.given("time") and args.given("timeout"):
        raise UsageError("conflicting options: cannot specify both --timeout and --time")
    timeout = args.timeout if args.given("timeout") else args.time
    return {"signal": args.signal or None,
            "t": timeout if args.given("timeout") or args.given("time") else None}


@command("container stop", aliases=("stop",), usage="[OPTIONS] CONTAINER [CONTAINER...]",
         flags=STOP_FLAGS, nargs=(1, None), help="Ask running containers to stop, then kill them")
def cmd_stop(client: ApiClient, args: Args) -> int:
    """Prints the names."""
    query = _stop_query(args)
    return _many(args.rest, lambda name: client.post(f"/containers/{name}/stop", query))


@command("container restart", aliases=("restart",), usage="[OPTIONS] CONTAINER [CONTAINER...]",
         flags=STOP_FLAGS, nargs=(1, None), help="Stop containers and start them again")
def cmd_restart(client: ApiClient, args: Args) -> int:
    """Prints the names."""
    query = _stop_query(args)
    return for_each(args.rest, lambda name: client.post(f"/containers/{name}/restart", query))


@command("container kill", aliases=("kill",), usage="[OPTIONS] CONTAINER [CONTAINER...]",
         flags=(Flag("-s --signal", "string", help="Signal to send"),), nargs=(1, None),
         help="Send a signal to running containers, SIGKILL if not told otherwise")
def cmd_kill(client: ApiClient, args: Args) -> int:
    """Prints the names."""
    query = {"signal": args.signal or None}
    return _many(args.rest, lambda name: client.post(f"/containers/{name}/kill", query))


@command("container pause", aliases=("pause",), usage="CONTAINER [CONTAINER...]", nargs=(1, None),
         help="Freeze all processes of containers")
def cmd_pause(client: ApiClient, args: Args) -> int:
    """Prints the names."""
    return _many(args.rest, lambda name: client.post(f"/containers/{name}/pause"))


@command("container unpause", aliases=("unpause",), usage="CONTAINER [CONTAINER...]",
         nargs=(1, None), help="Let frozen containers go on")
def cmd_unpause(client: ApiClient, args: Args) -> int:
    """Prints the names."""
    return _many(args.rest, lambda name: client.post(f"/containers/{name}/unpause"))


@command("container wait", aliases=("wait",), usage="CONTAINER [CONTAINER...]", nargs=(1, None),
         help="Wait for containers to end and print their exit codes")
def cmd_wait(client: ApiClient, args: Args) -> int:
    """Prints the exit codes, one a line."""
    def wait(name: str) -> None:
        print(client.wait(name).result()["StatusCode"], flush=True)
    return for_each(args.rest, wait, echo=False)


@command("container rename", aliases=("rename",), usage="CONTAINER NEW_NAME", nargs=(2, 2),
         help="Give a container another name")
def cmd_rename(client: ApiClient, args: Args) -> None:
    """Prints nothing."""
    old, new = (name.strip() for name in args.rest)
    if not old or not new:
        raise InvalidParameter("Error: Neither old nor new names may be empty")
    client.post(f"/containers/{old}/rename", {"name": new})


@command("container rm", aliases=("container remove", "rm"), nargs=(1, None),
         usage="[OPTIONS] CONTAINER [CONTAINER...]", help="Remove containers", flags=(
             Flag("-f --force", help="Also running ones: kill them first"),
             Flag("-l --link", help="Remove the link of that name"),
             Flag("-v --volumes", help="Also their anonymous volumes")))
def cmd_rm(client: ApiClient, args: Args) -> int:
    """Prints the names."""
    query = {"v": args.volumes or None, "link": args.link or None, "force": args.force or None}

    def remove(name: str) -> bool:
        path = name.strip("/")
        if not path:
            raise InvalidParameter("container name cannot be empty")
        try:
            client.delete(f"/containers/{path}", query)
        except NotFound:
            if not args.force:
                raise
            return False        # forced: what is not there is no error, and not printed
        return True
    return _many(args.rest, remove)


@command("container prune", nargs=(0, 0), help="Remove all containers that do not run", flags=(
    Flag("--filter", "filter", help='Only those that match ("until=<timestamp>")'),
    Flag("-f --force", help="Do not ask")))
def cmd_prune(client: ApiClient, args: Args) -> None:
    """Prints the ids and the space that is free again."""
    if not args.force and not confirm("WARNING! This will remove all stopped containers.\n"
                                      "Are you sure you want to continue?"):
        return
    report = client.post("/containers/prune", {"filters": args.filter or None})
    if report["ContainersDeleted"]:
        print("Deleted Containers:", *report["ContainersDeleted"], sep="\n", end="\n\n")
    print("Total reclaimed space:", size_human(report["SpaceReclaimed"]))


# -- look ----------------------------------------------------------------------------------

@command("container ls", aliases=("container list", "container ps", "ps"), flags=PS_FLAGS,
         nargs=(0, 0), help="List containers")
def cmd_ps(client: ApiClient, args: Args) -> None:
    """Prints the listing."""
    size = args.size
    if args.format:
        shows_size = containers_format_check(args.format)
        if args.quiet:
            print_error("WARNING: Ignoring custom format, because both --format and --quiet are "
                        "set.")
        elif not args.given("size"):
            size = shows_size
    last = 1 if args.latest and args.last == -1 else args.last
    found = client.get("/containers/json", {
        "all": args.all or None, "limit": last if last > 0 else None, "size": size or None,
        "filters": args.filter or None})
    text = containers_text(found, show=Show(truncate=not args.no_trunc), format=args.format,
                           quiet=args.quiet, size=size)
    print(text, end="")


@command("container top", aliases=("top",), usage="CONTAINER [ps OPTIONS]", nargs=(1, None),
         interspersed=False, help="Show the processes of a container")
def cmd_top(client: ApiClient, args: Args) -> None:
    """Prints a table as ps writes it."""
    name, *options = args.rest
    query = {"ps_args": " ".join(options)} if options else None
    print(top_text(client.get(f"/containers/{name}/top", query)), end="")


@command("container diff", aliases=("diff",), usage="CONTAINER", nargs=(1, 1),
         help="Show what a container changed of its image's files")
def cmd_diff(client: ApiClient, args: Args) -> None:
    """Prints a line for each path: C, A or D for changed, added, deleted."""
    if not args.rest[0]:
        raise InvalidParameter("Container name cannot be empty")
    for change in client.get(f"/containers/{args.rest[0]}/changes") or ():
        print(CHANGE_LETTERS[change["Kind"]], change["Path"])


def _port_target(binding: dict) -> str:
    host = binding["HostIp"]
    return f"[{host}]:{binding['HostPort']}" if ":" in host else f"{host}:{binding['HostPort']}"


@command("container port", aliases=("port",), usage="CONTAINER [PRIVATE_PORT[/PROTO]]",
         nargs=(1, 2), help="Show the published ports of a container")
def cmd_port(client: ApiClient, args: Args) -> None:
    """Prints "80/tcp -> 0.0.0.0:8080" for each, or only where one port goes."""
    name = args.rest[0]
    ports = client.get(f"/containers/{name}/json")["NetworkSettings"].get("Ports") or {}
    if len(args.rest) == 1:
        for line in sorted(f"{port} -> {_port_target(binding)}"
                           for port, bindings in ports.items() for binding in bindings or ()):
            print(line)
        return
    port, _, proto = args.rest[1].partition("/")
    if not port.isdigit():
        raise InvalidParameter(f"invalid port '{port}': invalid syntax")
    found = ports.get(f"{port}/{proto or 'tcp'}")
    if not found:
        raise NotFound(f"Error: No public port '{port}/{proto or 'tcp'}' published for {name}")
    for binding in found:
        print(_port_target(binding))


#: type -> path of its inspection, in the order in which `inspect` looks
INSPECT_PATHS = {"container": "/containers/{}/json", "image": "/images/{}/json",
                 "network": "/networks/{}", "volume": "/volumes/{}"}
INSPECT_TYPES = ("", "config", "container", "image", "network", "node", "plugin", "secret",
                 "service", "task", "volume")


def _inspect_one(client: ApiClient, kinds: tuple, name: str, size: bool) -> dict:
    for kind in kinds:
        query = {"size": True} if size and kind == "container" else None
        try:
            return client.get(INSPECT_PATHS[kind].format(name), query)
        except EngineError as exc:
            # an image's name has rules that a container's has not: it only means "no image"
            skip = (isinstance(exc, (NotFound, Unsupported))
                    or "invalid reference format" in str(exc))
            if len(kinds) == 1 or not skip:
                raise
    raise UsageError(f"Error: No such object: {name}")


def inspect_run(client: ApiClient, kinds: tuple, names: list, *, format: str = "",
                size: bool = False) -> int:
    """What every inspect command does: prints those found, then an error for each other; exit 1."""
    problems = inspect_show(names, lambda name: _inspect_one(client, kinds, name, size),
                            format)
    for error in problems:
        print_error(error_line(error))
    return 1 if problems else 0


@command("container inspect", usage="[OPTIONS] CONTAINER [CONTAINER...]", nargs=(1, None),
         flags=CONTAINER_INSPECT_FLAGS, help="Show all about containers")
def cmd_container_inspect(client: ApiClient, args: Args) -> int:
    """Prints a JSON array, or the template's lines."""
    return inspect_run(client, ("container",), args.rest, format=args.format, size=args.size)


@command("inspect", usage="[OPTIONS] NAME|ID [NAME|ID...]", nargs=(1, None),
         flags=(*CONTAINER_INSPECT_FLAGS,
                Flag("--type", "string", help="Only objects of this type")),
         help="Show all about containers, images and other objects")
def cmd_inspect(client: ApiClient, args: Args) -> int:
    """Prints a JSON array, or the template's lines."""
    kind = args.type
    if kind not in INSPECT_TYPES or args.given("type") and not kind:
        names = '", "'.join(INSPECT_TYPES[1:])
        what = f'unknown type: "{kind}"' if kind else "type is empty"
        raise UsageError(f'{what}: must be one of "{names}"')
    if kind and kind not in INSPECT_PATHS:
        raise Unsupported(f"--type {kind} is not supported by this engine")
    return inspect_run(client, (kind,) if kind else tuple(INSPECT_PATHS), args.rest,
                       format=args.format, size=args.size)


# =============================================================================
# cli_images -- commands on images
# =============================================================================
# Runs in: cli.   Refs: docker image --help, docker CLI cli/command/image
#
# Each command makes requests of its flags and shows what comes back; nothing here knows the store.
# Archives are never held in memory: `load` and `import` hand an open file on as the body of the
# request, `save` writes what comes to the file or stdout as it comes. A directory to be imported
# and the programs of `image from-host` (ours) become a tar stream here, on the user's side, so
# that both work with an engine elsewhere, too.
# Several images in one command: all are tried, the errors are told together at the end, status 1.

IMAGES_FLAGS = (
    Flag("-a --all", kind="bool", help="Show intermediate images too"),
    Flag("--digests", kind="bool", help="Show digests"),
    Flag("-f --filter", kind="filter", help="Show only images that fit a condition (key=value)"),
    Flag("--format", kind="string", help=HELP_FORMAT_LIST),
    Flag("--no-trunc", kind="bool", help="Show all of each value"),
    Flag("-q --quiet", kind="bool", help="Show IDs only"),
    Flag("--tree", kind="bool", help="Show multi-platform images as a tree (EXPERIMENTAL)"),
)
#: flags of `images` that do not go with --tree, and the names by which Docker refuses them
TREE_CONFLICTS = (("quiet", "--quiet"), ("no_trunc", "--no-trunc"),
                  ("digests", "--show-digest"), ("format", "--format"))
#: words that people give to `images` when they mean a command of `image`
IMAGE_VERBS = ("build", "history", "import", "inspect", "list", "load", "ls", "prune", "pull",
               "push", "rm", "save", "tag")
PLATFORM_HELP = "The platform, where an image has several: os[/arch[/variant]]"


def _platforms(texts: list) -> list | None:
    return [json_text(platform_parse(text)) for text in texts] or None


@command("image ls", aliases=("images", "image list"), usage="[OPTIONS] [REPOSITORY[:TAG]]",
         flags=IMAGES_FLAGS, nargs=(0, 1), help="List images")
def cmd_images(client: Any, args: Any) -> int:
    """Lists images, newest first; an argument picks by repository, tag or pattern."""
    if args.tree:
        for name, flag in TREE_CONFLICTS:
            if getattr(args, name):
                raise EngineError(f"{flag} is not yet supported with --tree")
    filters = {key: list(values) for key, values in (args.filter or {}).items()}
    if args.rest:
        filters.setdefault("reference", []).append(args.rest[0])
    images = client.get("/images/json", {"filters": filters or None, "all": args.all or None})
    if args.tree:
        output_write(_tree_text(images))
        return 0
    output_write(images_text(images, show=Show(truncate=not args.no_trunc), format=args.format,
                             quiet=args.quiet, digests=args.digests))
    if not images and args.name == "images" and args.rest and args.rest[0] in IMAGE_VERBS:
        print_error(f'No images found matching "{args.rest[0]}": did you mean '
                    f'"docker image {args.rest[0]}"?')
    return 0


def _tree_text(images: list) -> str:
    """Images with their names below each other; one platform each, as the store holds them."""
    lines = [["IMAGE", "ID", "DISK USAGE", "USED"]]
    for image in images:
        names = image["RepoTags"] or ["<untagged>"]
        lines.append([names[0], id_short(image["Id"]),
                      size_human_short(image["Size"]), "✔" if image["Containers"] > 0 else ""])
        lines.extend([f"  └─ {name}", "", "", ""] for name in names[1:])
    return columns_align("\n".join(map("\t".join, lines)) + "\n")


@command("image tag", aliases=("tag",), usage="SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]",
         nargs=(2, 2), help="Give an image one more name")
def cmd_tag(client: Any, args: Any) -> int:
    """Makes the second name stand for the image that the first one names."""
    source, target = args.rest
    try:
        name = reference_tagged(reference_parse(target))
    except InvalidParameter as error:
        raise InvalidParameter(f"Error parsing reference: {quote(target)} is not a valid "
                               f"repository/tag: {error}") from None
    if name.digest:
        raise InvalidParameter("refusing to create a tag with a digest reference")
    client.post(f"/images/{source}/tag", {"repo": name.familiar_name, "tag": name.tag})
    return 0


RMI_FLAGS = (
    Flag("-f --force", kind="bool", help="Remove also what stopped containers or more names use"),
    Flag("--no-prune", kind="bool", help="Keep parents that have no name"),
    Flag("--platform", kind="strings", help=PLATFORM_HELP),
)


@command("image rm", aliases=("rmi", "image remove"), usage="[OPTIONS] IMAGE [IMAGE...]",
         flags=RMI_FLAGS, nargs=(1, None), help="Remove images or names of images")
def cmd_rmi(client: Any, args: Any) -> int:
    """Removes names, and images that have no name left."""
    query = {"force": args.force or None, "noprune": args.no_prune or None,
             "platforms": _platforms(args.platform)}

    def remove(ref: str) -> None:
        for row in client.delete(f"/images/{ref}", query):
            word, name = ("Deleted", row["Deleted"]) if row.get("Deleted") else (
                "Untagged", row["Untagged"])
            output_write(f"{word}: {name}\n")
    errors = []
    for ref in args.rest:
        try:
            remove(ref)
        except EngineError as error:
            errors.append(error)
            print_error(error_line(error))
    missing = all(isinstance(error, NotFound) for error in errors)
    return 0 if not errors or args.force and missing else 1


INSPECT_FLAGS = (
    Flag("-f --format", kind="string", help=HELP_FORMAT),
    Flag("--platform", kind="string", help=PLATFORM_HELP),
)


@command("image inspect", usage="[OPTIONS] IMAGE [IMAGE...]", flags=INSPECT_FLAGS, nargs=(1, None),
         help="Show all that is known of images")
def cmd_image_inspect(client: Any, args: Any) -> int:
    """Prints the images' documents as one JSON array, or a line of a template for each."""
    query = {"platform": platform_parse(args.platform) if args.platform else None}
    errors = inspect_show(
        args.rest, lambda ref: client.get(f"/images/{ref}/json", query), args.format)
    for error in errors:
        print_error(error_line(error))
    return 1 if errors else 0


HISTORY_FLAGS = (
    Flag("--format", kind="string", help=HELP_FORMAT_LIST),
    Flag("-H --human", kind="bool", default=True, help="Print sizes and dates for people"),
    Flag("--no-trunc", kind="bool", help="Show all of each value"),
    Flag("--platform", kind="string", help=PLATFORM_HELP),
    Flag("-q --quiet", kind="bool", help="Show IDs only"),
)


@command("image history", aliases=("history",), usage="[OPTIONS] IMAGE", flags=HISTORY_FLAGS,
         nargs=(1, 1), help="Show the steps that made an image")
def cmd_history(client: Any, args: Any) -> int:
    """Lists the steps of an image, the last one first."""
    query = {"platform": platform_parse(args.platform) if args.platform else None}
    steps = client.get(f"/images/{args.rest[0]}/history", query)
    show = Show(truncate=not args.no_trunc, human=args.human)
    output_write(history_text(steps, show=show, format=args.format, quiet=args.quiet))
    return 0


# --- archives in and out ---

IMPORT_FLAGS = (
    Flag("-c --change", kind="list", help="Set a value of the configuration by a line of a "
                                          "Dockerfile"),
    Flag("-m --message", kind="string", help="Write a comment into the history"),
    Flag("--platform", kind="string", help="The platform of the image"),
)


def _import_query(target: str, changes: list, message: str, platform: str) -> dict:
    """The query of an import; the name is checked here, before a long archive is sent."""
    name = reference_parse(target) if target else None
    query = {"fromSrc": "-", "repo": name.familiar_name if name else "",
             "tag": (name.tag or "latest") if name else "", "changes": changes,
             "message": message, "platform": platform}
    return {key: value for key, value in query.items() if value}


@command("image import", aliases=("import",), usage="[OPTIONS] file|URL|- [REPOSITORY[:TAG]]",
         flags=IMPORT_FLAGS, nargs=(1, None), help="Make an image of an archive or a directory")
def cmd_import(client: Any, args: Any) -> int:
    """Makes an image with one layer from a tar file, a directory or stdin; prints its id."""
    source, target = args.rest[0], args.rest[1] if len(args.rest) > 1 else ""
    query = _import_query(target, args.change, args.message, args.platform)
    if source.startswith(("http://", "https://")):
        query["fromSrc"] = source
        progress_show(client.lines("POST", "/images/create", query))
        return 0
    if source == "-":
        body: Any = sys.stdin.buffer
    elif os.path.isdir(source):
        body = ChunkReader(tree_pack(source))
    else:
        body = _input_open(source)
    signals_unwind()
    progress_show(client.lines("POST", "/images/create", query, body))
    return 0


def _input_open(path: str) -> Any:
    """The file, opened for reading; an EngineError in the words of Go's os.Open."""
    try:
        return open(path, "rb")
    except OSError as error:
        error.filename = None
        raise EngineError(f"open {path}: {error_text(error)}") from None


LOAD_FLAGS = (
    Flag("-i --input", kind="string", help="Read this file in place of stdin"),
    Flag("--platform", kind="strings", help="Load these platforms only: os[/arch[/variant]]"),
    Flag("-q --quiet", kind="bool", help="Show no progress"),
)


@command("image load", aliases=("load",), usage="[OPTIONS]", flags=LOAD_FLAGS, nargs=(0, 0),
         help="Load images from an archive that `save` made")
def cmd_load(client: Any, args: Any) -> int:
    """Loads all images of an archive, from a file or stdin."""
    if args.input:
        body = _input_open(args.input)
    elif os.isatty(0):
        raise EngineError("requested load from stdin, but stdin is empty")
    else:
        body = sys.stdin.buffer
    query = {"quiet": args.quiet or not os.isatty(1), "platform": _platforms(args.platform)}
    signals_unwind()
    progress_show(client.lines("POST", "/images/load", query, body))
    return 0


SAVE_FLAGS = (
    Flag("-o --output", kind="string", help="Write to this file in place of stdout"),
    Flag("--platform", kind="strings", help="Save these platforms only: os[/arch[/variant]]"),
)

#: file types (st_mode >> 12, inode(7)) that `save -o` leaves alone
SPECIAL_FILES = {1: "named pipe (FIFO)", 2: "character device file", 4: "directory",
                 6: "block device file", 10: "symbolic link directly", 12: "socket"}


@command("image save", aliases=("save",), usage="[OPTIONS] IMAGE [IMAGE...]", flags=SAVE_FLAGS,
         nargs=(1, None), help="Write images into one archive, for `load`")
def cmd_save(client: Any, args: Any) -> int:
    """Writes an archive of the images to stdout or a file, which appears when it is whole."""
    if not args.output and os.isatty(1):
        raise EngineError("cowardly refusing to save to a terminal. Use the -o flag or redirect")
    query = {"names": args.rest, "platform": _platforms(args.platform)}
    if args.output:
        _output_check(args.output)
        _save_to_file(client.stream("GET", "/images/get", query), args.output)
        return 0
    for chunk in client.stream("GET", "/images/get", query):
        _write_all(1, chunk)
    return 0


def _output_check(path: str) -> None:
    """Refuses a path whose directory is missing, and what a rename onto it would destroy."""
    directory = os.path.dirname(os.path.normpath(path)) or "."
    reason = "" if os.path.exists(directory) else "no such file or directory"
    if not reason and not os.path.isdir(directory):
        reason = "not a directory"
    if reason:
        raise EngineError(
            f"failed to save image: invalid output path: stat {directory}: {reason}")
    kind = SPECIAL_FILES.get(os.lstat(path).st_mode >> 12) if os.path.lexists(path) else None
    if kind:
        raise EngineError(f"failed to save image: cannot write to a {kind}")


def _save_to_file(chunks: Iterable[bytes], path: str) -> None:
    """Writes beside and renames, so that a broken save leaves no half archive."""
    beside = f"{path}.{os.urandom(4).hex()}"
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        for chunk in chunks:
            _write_all(fd, chunk)
        os.rename(beside, path)
    except BaseException:
        os.unlink(beside)
        raise
    finally:
        os.close(fd)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view):]


# --- prune ---

PRUNE_FLAGS = (
    Flag("-a --all", kind="bool", help="Remove every image that no container uses, not only those "
                                       "without a name"),
    Flag("--filter", kind="filter", help="Remove only what fits a condition (until=<timestamp>, "
                                         "label=...)"),
    Flag("-f --force", kind="bool", help="Do not ask"),
)
PRUNE_ALL = ("WARNING! This will remove all images without at least one container associated to "
             "them.\nAre you sure you want to continue?")
PRUNE_DANGLING = ("WARNING! This will remove all dangling images.\n"
                  "Are you sure you want to continue?")


@command("image prune", usage="[OPTIONS]", flags=PRUNE_FLAGS, nargs=(0, 0),
         help="Remove images that nobody uses")
def cmd_image_prune(client: Any, args: Any) -> int:
    """Removes unused images after a question; prints what went and how much space it freed."""
    if not args.force and not confirm(PRUNE_ALL if args.all else PRUNE_DANGLING):
        return 0
    filters = {key: list(values) for key, values in (args.filter or {}).items()}
    filters["dangling"] = ["false" if args.all else "true"]
    report = client.post("/images/prune", {"filters": filters})
    if report["ImagesDeleted"]:
        output_write("Deleted Images:\n")
        for row in report["ImagesDeleted"]:
            word, name = ("untagged", row["Untagged"]) if row.get("Untagged") else (
                "deleted", row["Deleted"])
            output_write(f"{word}: {name}\n")
        output_write("\n")
    output_write(f"Total reclaimed space: {size_human(report['SpaceReclaimed'])}\n")
    return 0


# --- ours ---

FROM_HOST_FLAGS = (
    Flag("-c --change", kind="list", help="Set a value of the configuration by a line of a "
                                          "Dockerfile"),
    Flag("-t --tag", kind="string", help="The image's name"),
)


@command("image from-host", usage="[OPTIONS] PROGRAM [PROGRAM...]", flags=FROM_HOST_FLAGS,
         nargs=(1, None), help="Make an image of programs of this host and all that they need")
def cmd_from_host(client: Any, args: Any) -> int:
    """Makes an image of this host's own programs with their libraries and data; prints its id."""
    body = ChunkReader(harvest_archive(args.rest))
    changes = [*harvest_changes(args.rest), *args.change]
    query = _import_query(args.tag, changes, "from-host " + " ".join(args.rest), "")
    signals_unwind()
    progress_show(client.lines("POST", "/images/create", query, body))
    return 0


class ChunkReader:
    """A file-like reader over an iterator of bytes."""

    __slots__ = ("chunks", "rest")

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self.chunks = iter(chunks)
        self.rest = b""

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes, all when it is negative; b"" at the end."""
        if size < 0:
            whole = self.rest + b"".join(self.chunks)
            self.rest = b""
            return whole
        while not self.rest:
            try:
                self.rest = next(self.chunks)
            except StopIteration:
                return b""
        data, self.rest = self.rest[:size], self.rest[size:]
        return data


# --- not there yet ---

#: flags of commands that come later, so that using one is answered by what is missing
LATER_FLAGS = (
    Flag("-a --all-tags", hidden=True), Flag("--build-arg", "list", hidden=True),
    Flag("--disable-content-trust", default=True, hidden=True),
    Flag("-f --file", "string", hidden=True), Flag("--label", "list", hidden=True),
    Flag("--limit", "int", hidden=True), Flag("--network", "string", hidden=True),
    Flag("--no-cache", hidden=True), Flag("-p --password", "string", hidden=True),
    Flag("--password-stdin", hidden=True), Flag("--platform", "string", hidden=True),
    Flag("--progress", "string", hidden=True), Flag("--pull", hidden=True),
    Flag("-q --quiet", hidden=True), Flag("-t --tag", "list", hidden=True),
    Flag("--target", "string", hidden=True), Flag("-u --username", "string", hidden=True),
)
# fmt: off
#: commands that come with registries and builds: (names, usage, what they would do)
LATER = (
    (("image build", "build", "builder build"), "[OPTIONS] PATH | URL | -", "Build an image"),
    (("image pull", "pull"), "[OPTIONS] NAME[:TAG|@DIGEST]",                "Download an image"),
    (("image push", "push"), "[OPTIONS] NAME[:TAG]",                        "Upload an image"),
    (("login",),             "[OPTIONS] [SERVER]",                          "Log in to a registry"),
    (("logout",),            "[SERVER]",                                    "Log out of it"),
    (("search",),            "[OPTIONS] TERM",                              "Search a registry"),
)
# fmt: on


def _later_register() -> None:
    for names, usage, text in LATER:
        def refuse(client: Any, args: Any, name: str = names[0]) -> int:
            raise Unsupported(f"{name}: not supported yet")
        command(names[0], aliases=names[1:], usage=usage, flags=LATER_FLAGS, nargs=(0, None),
                help=f"{text} (not supported yet)")(refuse)


_later_register()


# =============================================================================
# cli_system -- version, info, events and the rest
# =============================================================================
# Runs in: cli.   Refs: docker version, docker info, docker events
#
# Each asks the engine for one document and lays it out as the docker CLI does. The layouts are
# tables of (label, key): INFO_LINES is the order of `info`, line by line; a label says by its
# leading spaces how deep it stands. No template engine on the default way: `version` has 8 ms.
# A bad --format of these commands ends with status 64, as in Docker.

FORMAT_FLAG = Flag("-f --format", kind="string", help=HELP_FORMAT)

#: fields whose names in JSON and in Go differ
GO_NAMES = (("ApiVersion", "APIVersion"), ("CpuCfsPeriod", "CPUCfsPeriod"),
            ("CpuCfsQuota", "CPUCfsQuota"), ("HttpProxy", "HTTPProxy"),
            ("HttpsProxy", "HTTPSProxy"))
# fmt: off
_CLIENT_LINES = (("Version", "Version"), ("API version", "ApiVersion"), ("Go version", "GoVersion"),
                 ("Git commit", "GitCommit"), ("Built", "BuildTime"))
_ENGINE_LINES = (("Go version", "GoVersion"), ("Git commit", "GitCommit"), ("Built", "BuildTime"))
#: details of the Engine that the layout shows in lines of its own, or not at all
_ENGINE_SHOWN = ("ApiVersion", "Arch", "BuildTime", "Experimental", "GitCommit", "GoVersion",
                 "KernelVersion", "MinAPIVersion", "Os")
# fmt: on


def _build_time(text: str) -> str:
    """An RFC 3339 time as Go's ANSIC layout; anything else as it is."""
    if not text:
        return ""
    try:
        seconds = time_parse(text) // SECOND
    except EngineError:
        return text
    return time.asctime(time.gmtime(seconds))


def client_version(server: dict | None) -> dict:
    """What this client is, in the shape of the `Client` part of `version --format json`.

    Client and engine are one file, so what the engine says of itself holds for the client too.
    """
    known = server or {}
    return {
        "Platform": {"Name": f"engine.pyz {VERSION}"},
        "Version": DOCKER_VERSION, "ApiVersion": API_VERSION, "DefaultAPIVersion": API_VERSION,
        "GitCommit": "", "GoVersion": "",
        "Os": "linux", "Arch": platform_host()["architecture"],
        "BuildTime": _build_time(known.get("BuildTime", "")), "Context": "default",
    }


def version_text(client: dict, server: dict | None) -> str:
    """The layout of `version`; what has no value (a Go version) has no line."""
    lines = [f"Client: {client['Platform']['Name']}"]
    lines.extend(f" {label}:\t{client[key]}" for label, key in _CLIENT_LINES if client[key])
    lines.append(f" OS/Arch:\t{client['Os']}/{client['Arch']}")
    lines.append(f" Context:\t{client['Context']}")
    if server is not None:
        name = server.get("Platform", {}).get("Name")
        lines.extend(("", f"Server: {name}" if name else "Server:"))
        for component in server["Components"]:
            lines.append(f" {component['Name']}:")
            lines.append(f"  Version:\t{component['Version']}")
            lines.extend(_component_lines(component["Name"], component.get("Details") or {}))
    return columns_align("\n".join(lines) + "\n", 20, 1)


def _component_lines(name: str, details: dict) -> list:
    if name != "Engine":
        return [f"  {key}:\t{value}" for key, value in sorted(details.items())]
    return [f"  API version:\t{details['ApiVersion']} (minimum version {details['MinAPIVersion']})",
            *(f"  {label}:\t{details[key]}" for label, key in _ENGINE_LINES if details.get(key)),
            f"  OS/Arch:\t{details['Os']}/{details['Arch']}",
            f"  Experimental:\t{details.get('Experimental', 'false')}",
            *(f"  {key}:\t{value}" for key, value in sorted(details.items())
              if key not in _ENGINE_SHOWN)]


def _server_version(server: dict) -> dict:
    """The engine's document as the docker CLI hands it to templates: the build date readable."""
    for component in server["Components"]:
        if component["Name"] == "Engine" and component.get("Details", {}).get("BuildTime"):
            component["Details"]["BuildTime"] = _build_time(component["Details"]["BuildTime"])
    return server


@command("version", usage="[OPTIONS]", flags=(FORMAT_FLAG,), nargs=(0, 0),
         help="Show the versions of client and engine")
def cmd_version(client: Any, args: Any) -> int:
    """Prints client and engine versions; the client's also when the engine cannot be reached."""
    template = template_parse(args.format, "version") if args.format else None
    failure = server = None
    try:
        server = _server_version(client.get("/version"))
    except EngineError as error:
        failure = error
    ours = client_version(server)
    if args.format:
        template_show(template, {"Client": ours, "Server": server},
                      {"Client": _go_names(ours), "Server": server and _go_names(server)},
                      name="version", type_name="system.versionInfo")
    else:
        output_write(version_text(ours, server))
    if failure is not None:
        raise failure
    return 0


def _go_names(document: dict) -> dict:
    """The document with fields under the names that Go, and so templates, know them by, too."""
    more = {name: document[key] for key, name in GO_NAMES if key in document}
    return {**document, **more} if more else document


# --- info ---

# fmt: off
#: lines of `info` in their order; a "?" before the label: left out when there is no value
INFO_LINES = (
    (" Containers",                "Containers"),
    ("  Running",                  "ContainersRunning"),
    ("  Paused",                   "ContainersPaused"),
    ("  Stopped",                  "ContainersStopped"),
    (" Images",                    "Images"),
    ("? Server Version",           "ServerVersion"),
    ("? Storage Driver",           "Driver"),
    ("pairs",                      "DriverStatus"),
    ("? Logging Driver",           "LoggingDriver"),
    ("? Cgroup Driver",            "CgroupDriver"),
    ("? Cgroup Version",           "CgroupVersion"),
    (" Plugins",                   ""),
    ("  Volume",                   "Plugins.Volume"),
    ("  Network",                  "Plugins.Network"),
    ("?  Authorization",           "Plugins.Authorization"),
    ("  Log",                      "Plugins.Log"),
    ("list CDI spec directories",  "CDISpecDirs"),
    (" Swarm",                     "Swarm.LocalNodeState"),
    ("? Runtimes",                 "Runtimes"),
    ("? Default Runtime",          "DefaultRuntime"),
    (" Init Binary",               "InitBinary"),
    (" containerd version",        "ContainerdCommit.ID"),
    (" runc version",              "RuncCommit.ID"),
    (" init version",              "InitCommit.ID"),
    ("security",                   "SecurityOptions"),
    ("? Kernel Version",           "KernelVersion"),
    ("? Operating System",         "OperatingSystem"),
    ("? OSType",                   "OSType"),
    ("? Architecture",             "Architecture"),
    (" CPUs",                      "NCPU"),
    ("size Total Memory",          "MemTotal"),
    ("? Name",                     "Name"),
    ("? ID",                       "ID"),
    (" Docker Root Dir",           "DockerRootDir"),
    (" Debug Mode",                "Debug"),
    ("? HTTP Proxy",               "HttpProxy"),
    ("? HTTPS Proxy",              "HttpsProxy"),
    ("? No Proxy",                 "NoProxy"),
    ("list Labels",                "Labels"),
    (" Experimental",              "ExperimentalBuild"),
    ("list Insecure Registries",   "RegistryConfig.InsecureRegistryCIDRs"),
    ("list Registry Mirrors",      "RegistryConfig.Mirrors"),
    (" Live Restore Enabled",      "LiveRestoreEnabled"),
    ("? Product License",          "ProductLicense"),
)
# fmt: on


def _info_value(info: dict, key: str) -> Any:
    value: Any = info
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return " ".join(value)
    return "" if value is None else value


def _info_line(label: str, value: Any) -> list:
    kind, _, rest = label.partition(" ")
    if kind == "pairs":
        return [f"  {name}: {text}" for name, text in value or ()]
    if kind == "list":
        return [f" {rest}:", *(f"  {item}" for item in value)] if value else []
    if kind == "security":
        return [" Security Options:", *_security_lines(value)] if value else []
    if kind == "size":
        return [f" {rest}: {size_human_binary(value or 0)}"]
    if kind == "?":
        if not value:
            return []
        label = label[1:]
    if isinstance(value, list):
        value = " ".join(value)
    return [f"{label}: {value}"] if label != " Plugins" else [" Plugins:"]


def _security_lines(options: Iterable[str]) -> list:
    lines = []
    for option in options:
        for pair in option.split(","):
            key, _, value = pair.partition("=")
            if key == "name" or "=" not in pair:
                lines.append(f"  {value or pair}")
            elif key == "profile":
                lines.append(f"   Profile: {value}")
    return lines


def info_text(client: dict, info: dict | None) -> str:
    """The layout of `info`; `info` is None where the engine could not be asked."""
    lines = [f"Client: {client['Platform']['Name']}", f" Version:    {client['Version']}",
             f" Context:    {client['Context']}",
             f" Debug Mode: {'true' if client['Debug'] else 'false'}", "", "Server:"]
    if info is not None:
        for label, key in INFO_LINES:
            lines.extend(_info_line(label, _info_value(info, key) if key else ""))
        if (info.get("FirewallBackend") or {}).get("Driver"):
            lines.append(f" Firewall Backend: {info['FirewallBackend']['Driver']}")
        lines.append("")
    return "\n".join(lines) + "\n"


def _client_info() -> dict:
    return {"Debug": False, **client_version(None), "Plugins": [], "Warnings": None}


def _info_failed_show(template: Template, ours: dict, failure: EngineError) -> None:
    """What a template makes of the client alone; where it asks for more, `failure` is the answer.
    """
    document = {"ServerErrors": [str(failure)], "ClientInfo": ours}
    try:
        template_show(template, document, _go_names(document), type_name="system.dockerInfo")
    except EngineError:
        raise failure from None


@command("system info", aliases=("info",), usage="[OPTIONS]", flags=(FORMAT_FLAG,), nargs=(0, 0),
         help="Show what the engine is, has and runs on")
def cmd_info(client: Any, args: Any) -> int:
    """Prints the state of engine and host; warnings go to stderr."""
    template = template_parse(args.format) if args.format else None
    failure = info = None
    try:
        info = client.get("/info")
    except EngineError as error:
        failure = error
    ours = _client_info()
    if not args.format:
        output_write(info_text(ours, info))
        for warning in (info or {}).get("Warnings") or ():
            print_error(warning)
    elif failure is not None and template is not None:
        _info_failed_show(template, ours, failure)
    else:
        errors = {"ServerErrors": [str(failure)]} if failure else {}
        document = {**(info or {}), **errors, "ClientInfo": ours}
        template_show(template, document, _go_names(document), type_name="system.dockerInfo")
    if failure is not None:
        raise failure
    return 0


# --- events ---

EVENTS_FLAGS = (
    Flag("-f --filter", kind="filter", help="Show only events that fit a condition (key=value)"),
    Flag("--format", kind="string", help=HELP_FORMAT),
    Flag("--since", kind="string", help="Begin with the events after this time"),
    Flag("--until", kind="string", help="End with the events at this time"),
)


def event_text(event: dict) -> str:
    """An event as one line: time, type, action, id, and its attributes sorted."""
    attributes = event["Actor"].get("Attributes") or {}
    pairs = ", ".join(f"{key}={value}" for key, value in sorted(attributes.items()))
    ns = event.get("timeNano") or event.get("time", 0) * SECOND
    line = f"{event['Type']} {event['Action']} {event['Actor']['ID']}"
    when = time_fixed_local(ns) + " " if ns else ""
    return when + line + (f" ({pairs})" if pairs else "") + "\n"


#: the fields of an event: in templates, in JSON, and what an unset one is
EVENT_FIELDS = (("Action", "Action", ""), ("Actor", "Actor", None), ("From", "from", ""),
                ("ID", "id", ""), ("Scope", "scope", ""), ("Status", "status", ""),
                ("Time", "time", 0), ("TimeNano", "timeNano", 0), ("Type", "Type", ""))


def _event_row(event: dict) -> dict:
    row = {name: event.get(key, unset) for name, key, unset in EVENT_FIELDS}
    actor = row["Actor"] or {}
    row["Actor"] = {"ID": actor.get("ID", ""),
                    "Attributes": MapValue(actor.get("Attributes") or {})}
    return row


def _event_template(format: str) -> Template | None:
    """The Template of a --format, tried on an empty event; BadTemplate where it does not fit."""
    lead = "Error parsing format: "
    template = template_parse(format, lead=lead)
    if template is not None:
        try:
            template.render(_event_row({}), type_name="*events.Message")
        except TemplateError as error:
            raise BadTemplate(lead + template_words(error)) from None
    return template


@command("system events", aliases=("events",), usage="[OPTIONS]", flags=EVENTS_FLAGS, nargs=(0, 0),
         help="Show what happens, as it happens")
def cmd_events(client: Any, args: Any) -> int:
    """Prints events until `--until` or an interrupt."""
    template = _event_template(args.format) if args.format else None
    query = {"since": args.since or None, "until": args.until or None,
             "filters": args.filter or None}
    for event in client.lines("GET", "/events", query):
        if args.format:
            template_show(template, event, _event_row(event), type_name="*events.Message")
        else:
            output_write(event_text(event))
    return 0


@command("system df", usage="[OPTIONS]", nargs=(0, 0),
         help="Show how much disk space is used (not supported yet)",
         flags=(Flag("--format", kind="string", help=HELP_FORMAT),
                Flag("-v --verbose", kind="bool", help="Show each object")))
def cmd_system_df(client: Any, args: Any) -> int:
    """Asks for the disk usage, which answers with one clear error so far."""
    client.get("/system/df")
    return 0


@command("system prune", usage="[OPTIONS]", nargs=(0, 0),
         help="Remove all that nobody uses (not supported yet)",
         flags=(Flag("-a --all", help="Remove every unused image"),
                Flag("--filter", "filter", help="Remove only what fits a condition"),
                Flag("-f --force", help="Do not ask"),
                Flag("--volumes", help="Remove unused anonymous volumes too")))
def cmd_system_prune(client: Any, args: Any) -> int:
    """Names the commands that do it for each kind of object."""
    raise Unsupported("system prune: not supported yet; use container prune and image prune")


# =============================================================================
# main -- one program, five roles: cli, launcher, monitor, init, worker
# =============================================================================
# Runs in: all roles.
# `main` hands over to the role: the command line for people, `--role=launcher` for the one process
# that this program executes itself. Monitors, workers and inits are forks of the launcher and
# never come through here.
#
# engine.pyz starts in its own __main__ (build_zipapp.py), which loads the byte code of this file
# and calls `main_exit`. That ends by os._exit: finalising the interpreter costs 2 ms, and what must
# be on disk already is. pyroute2 and pyzstd travel inside engine.pyz: VendoredFinder serves `import
# pyroute2.x` and `import pyzstd` from there, the C extension through a memfd. Nothing of them
# is read before it is imported.

VENDORED = ("pyroute2", "pyzstd")
ZSTD_EXTENSION = "pyzstd._c._zstd"


class VendoredFinder:
    """Finder and loader of the packages inside engine.pyz, as importlib wants them.

    `get(name)` returns a member of the archive or None. The launcher calls hold() early: a `cp`
    over a running engine.pyz must not break it.
    """

    __slots__ = ("_get", "_held", "_modules")

    def __init__(self, get: Callable[[str], bytes | None]) -> None:
        self._get = get
        self._held: dict[str, bytes | None] = {}
        self._modules: dict | None = None

    def hold(self) -> None:
        """Read now whatever may be wanted later; a member that isn't there is no error."""
        compiled = sys.implementation.cache_tag + "/vendored"
        for name in (compiled, "vendored", "zstd-" + os.uname().machine):
            if name != "vendored" or not self._held[compiled]:
                self._held[name] = self._get(name)

    def find_spec(self, name: str, path: object = None, target: object = None) -> object:
        """A module spec for what is inside, else None, so that the next finder is asked."""
        if name.partition(".")[0] not in VENDORED:
            return None
        from importlib.machinery import ModuleSpec
        if name == ZSTD_EXTENSION:
            return self._extension_spec(name)
        found = self._all().get(name)
        if found is None:
            return None
        return ModuleSpec(name, self, origin=f"{PROGRAM}/{name}",  # type: ignore[arg-type]
                          is_package=bool(found[0]))

    def create_module(self, spec: object) -> None:
        """None: an ordinary module will do."""

    def exec_module(self, module: Any) -> None:
        """Run the module's code in it."""
        exec(self._all()[module.__name__][1](), module.__dict__)

    def _member(self, name: str) -> bytes | None:
        return self._held[name] if name in self._held else self._get(name)

    def _all(self) -> dict:
        """{name: (is a package, function that returns its code)}; empty where nothing was
        vendored.
        """
        if self._modules is None:
            import marshal
            from importlib.util import MAGIC_NUMBER
            from lzma import decompress
            self._modules = {}
            made = self._member(sys.implementation.cache_tag + "/vendored")
            blob = decompress(made) if made else b""
            compiled = blob[:4] == MAGIC_NUMBER
            packed = None if compiled else self._member("vendored")
            if not compiled and not packed:
                return self._modules
            pairs = marshal.loads(blob[4:] if compiled else decompress(packed))
            for name, (package, body) in pairs.items():
                self._modules[name] = (package, _code_thunk(name, body, compiled))
        return self._modules

    def _extension_spec(self, name: str) -> object:
        """A spec over a memfd that holds this Python's extension; None where there is none for it.
        """
        try:
            solid = self._member("zstd-" + os.uname().machine)
            image = zstd_extension(solid) if solid else None
            if image is None:
                return None
            fd = os.memfd_create("_zstd", os.MFD_CLOEXEC)
        except (OSError, ImportError):
            return None
        from importlib.machinery import ExtensionFileLoader, ModuleSpec
        write_all(fd, image)
        path = f"/proc/self/fd/{fd}"

        class Loader(ExtensionFileLoader):
            def exec_module(self, module: Any) -> None:
                super().exec_module(module)
                os.close(fd)                # dlopen(3) has mapped it

        return ModuleSpec(name, Loader(name, path), origin=path)


def _code_thunk(name: str, body: bytes, compiled: bool) -> Callable[[], Any]:
    import marshal
    if compiled:
        return lambda: marshal.loads(body)
    return lambda: compile(body, f"{PROGRAM}/{name}", "exec", dont_inherit=True)


def zstd_extension(solid: bytes) -> bytes | None:
    """This Python's C extension out of a solid blob: a line of JSON {key: [offset, size]}, then xz.

    None when it isn't among them; ImportError when this Python was built without lzma.
    """
    from lzma import LZMADecompressor
    try:
        libc = "gnu" if os.confstr("CS_GNU_LIBC_VERSION") else "musl"
    except (OSError, ValueError):
        libc = "musl"
    head, _, stream = solid.partition(b"\n")
    key = f"cp{sys.version_info[0]}{sys.version_info[1]}-{os.uname().machine}-{libc}"
    offset, size = json_parse(head).get(key, (0, 0))
    if not size or sys.implementation.name != "cpython":
        return None
    reader = LZMADecompressor()
    data = stream
    while offset:                           # what lies before it is dropped by the megabyte
        offset -= len(reader.decompress(data, min(offset, 1 << 20)))
        data = b""
    found = b""
    while len(found) < size:
        found += reader.decompress(data, size - len(found))
        data = b""
    return found


def vendored_install() -> VendoredFinder | None:
    """Make the packages inside engine.pyz importable, before any of the same name elsewhere."""
    if not BUILD_ID:
        return None                         # the plain source: what pip installed will do
    finder = VendoredFinder(archive_member)
    sys.meta_path.insert(0, finder)  # type: ignore[arg-type]
    return finder


def main(argv: list[str]) -> int:
    """The exit code of one role: `--data-root=DIR --role=launcher RUN NAME`, or a command line."""
    vendored = vendored_install()
    if argv[1:2] == ["--role=launcher"]:
        if vendored:
            vendored.hold()
        launcher_main(*argv[2:4])
    return cli_main(argv)


def main_exit(argv: list[str]) -> None:
    """Run main and end the process with its exit code; never returns."""
    try:
        code = main(argv)
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) or left.code is None else 1
    except ImportError as missing:
        os.write(2, f"engine: {module_missing(missing)}\n".encode("utf-8", "replace"))
        code = 125
    except BaseException:
        from traceback import print_exc
        print_exc()                         # a mistake of ours: all of it is wanted
        code = 125
    os._exit(code or 0)


if __name__ == "__main__":
    main_exit(sys.argv[1:])
