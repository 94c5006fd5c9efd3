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
# Runs in: api, cli.


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
