"""All of Docker in one file: client, engine, and the images they need.

Read it like a building, ground first: a section uses only what stands above it.

GROUND      what everything stands on
    errors          what can go wrong; each class knows its HTTP status and exit code
    formats         text <-> values: JSON, sizes, ids, names, signals; pure, no I/O
    times           instants and durations as Go writes and reads them; pure but for the clock
    references      image names, digests, platforms: Docker's grammar and error texts; pure
    options         key=value lists, environment files, filters, words of a command; pure
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
    import re
    from collections.abc import Callable, Iterable, Iterator, Mapping
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

class _JsonRules:
    """What _json.make_scanner asks for: how to read what is neither text, list nor object."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_int = int

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
        text = bytes(text).decode()         # UnicodeDecodeError is a ValueError
    machine = json_parse.__dict__
    if not machine:
        machine["scan"] = _json.make_scanner(_JsonRules)
    if text.count("[") + text.count("{") > NESTING_MAX:
        _json_nesting_check(text)
    text = text.strip(" \t\r\n")
    try:
        value, end = machine["scan"](text, 0)
    except StopIteration as error:
        raise ValueError(f"invalid JSON at character {error.value}") from None
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
# Runs in: all roles.   Refs: distribution/reference, OCI image-spec descriptor.md, containerd/platforms
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

    '["a", "b"]' is (["a", "b"], False), 'a b' is (["/bin/sh", "-c", "a b"], True), '' is ([], True).
    """
    text = text.strip()
    if text[:1] == "[":
        try:
            words = json_parse(text)
        except ValueError:
            words = None
        if isinstance(words, list) and all(isinstance(word, str) for word in words):
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
