#!/usr/bin/env python3
"""Builds engine.pyz, the one file that is copied onto a host; standard library only.

    python3 build_zipapp.py [-o engine.pyz] [--python PATH]... [--cache .build]
                            [--no-vendored | --need-vendored]

What is in the archive, in this order (a member costs 5 us at every start, so there are few):

    __main__.py, __main__.pyc  picks the byte code below: MAIN of this file
    help                       what `--help` prints, so that it needs no engine to be loaded
    seccomp                    the default filter: marshal of {machine: BPF program}
    <cache tag>/engine         byte code in pieces, loaded as they are used; see `Code`
    <cache tag>/relay          byte code of `relay` and what it calls, which needs no engine either
    <cache tag>/ahead          the same of `launcher_ahead`
    <cache tag>/vendored       byte code of the vendored packages: {name: (is package, code)}
    engine.py                  the source less comments and docstrings, each line in its place:
                               for every other Python, and for tracebacks
    packer.py                  the part of this file that makes byte code for such a Python
    vendored                   source of the vendored packages: {name: (is package, source)}
    zstd-<machine>             pyzstd's C extensions for that machine: one solid xz
    LICENSE, licenses/...      ours, and those of what is inside

The vendored members are compressed by us and stored, so that the launcher holds them as they are.

The engine's module is not run as a whole: reading its code would take most of a start. It is cut
into units (statements, functions, methods). Naming a unit in code that is loaded makes it: a
statement is run, a function is a stub of the same name until its first call. What that rests on is
a rule of engine.py's: nothing happens at its top level but imports, definitions, and tables that
are filled by decorators or loops. A table comes with all that fills it. The launcher loads what
its forks may ever run before it serves, as far as names tell (`Splitter.reached`), and holds the
rest of the archive in memory; the very first container only waits for what it needs itself
(`FIRST`). The daemon makes everything real (`code_all`).

The same input gives the same bytes: order and dates are fixed (SOURCE_DATE_EPOCH), nothing depends
on where it is built. The vendored packages are fetched by pip as wheels and checked against PINS.
Without pip (or without a network) the archive is built without them: the main job needs neither.
"""

from __future__ import annotations

import ast
import hashlib
import json
import marshal
import os
import struct
import subprocess
import sys
import time
import zipfile
import zlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import CodeType
    from typing import Any

TOP = os.path.dirname(os.path.abspath(__file__))
LIMIT = 3_000_000
MACHINES = ("aarch64", "armv7l", "riscv64", "x86_64")

PYROUTE2 = "pyroute2==0.9.7"
#: 0.18 is the last pyzstd with a C extension of its own.
PYZSTD = "pyzstd==0.18.0"
#: What pyroute2 is used for; what these modules import travels with them.
PYROUTE2_ROOTS = (
    "pyroute2.iproute.linux",
    "pyroute2.netlink.nfnetlink.nfctsocket",
    "pyroute2.nftables.expressions",
    "pyroute2.nftables.main",
    "pyroute2.nftables.rule",
)
#: Imported on other systems only.
PYROUTE2_SKIPPED = (
    "pyroute2.bsd",
    "pyroute2.iproute.bsd",
    "pyroute2.iproute.darwin",
    "pyroute2.iproute.windows",
)
#: Their own packages import everything there is (150 ms) or other packages; these do without.
REPLACED = {
    "pyroute2": '__version__ = "0.9.7"\n',
    "pyzstd": "from ._c._zstd import *\n",
    "pyzstd._c": "",
}
#: Sections whose code a container's monitor runs, the hottest first; see `packed`.
HOT_SECTIONS = (
    "monitor",
    "stdio",
    "runtime",
    "logs",
    "events",
    "store",
    "files",
    "terminals",
    "namespaces",
    "cgroups",
    "mounts",
    "paths",
    "syscalls",
    "launcher",
    "rootfs",
    "init",
)
#: What the launcher loads before it serves, with all that these may ever run: the launcher itself
#: and the roles of forks that live long or enter containers.
LAUNCHER_ROOTS = (
    "launcher_main", "monitor_main", "watch_main", "_root_enter", "vendored_install",
    "keeper_serve",
)
#: Who calls these, and them at the start: loaded as well, but not what else they may call.
LAUNCHER_START = ("main_exit", "main", "preload")
#: Functions of the launcher, its monitor and init for the first `run --rm`: `quick.py` prints it.
FIRST = """
Attached.__init__ Attached.drop Attached.end Birth.__init__ Born.__init__ Born.release Call.__call__
Call.__init__ Call.bind Cgroup.__init__ Cgroup.create Cgroup.kill Cgroup.limit Cgroup.oom_count
Cgroup.paths Cgroup.put Cgroup.realtime_share Cgroup.remove Cgroup.tasks_fds Cgroup.thaw Cgroup.v1
Cgroup.v1_paths Cgroup.v2_fd Hierarchies.__init__ Hierarchies.tops Launcher.__init__
Launcher._arrived Launcher._become Launcher._drop Launcher._fork Launcher._take Launcher._watch
Launcher.hurry Libc.__init__ LogWriter.__init__ LogWriter._open LogWriter.close
LogWriter.flush_partial Loop.__init__ Loop._timeout Loop._timers_run Loop.turn Loop.unwatch
Loop.watch MemoryWatch.__init__ MemoryWatch.begin MemoryWatch.end Monitor._accept Monitor._conn_add
Monitor._conn_close Monitor._conn_ready Monitor._end_record Monitor._idle Monitor._leave
Monitor._main_ended Monitor._reap Monitor._waiter_answer Monitor._wake_make Monitor.cgroup_end
Monitor.emit Monitor.go Monitor.is_waiting Monitor.run Monitor.runs Monitor.start Monitor.tell_end
Monitor.wait_add Monitor.waiters_tell RawCall.bind RawCall.number Stdio.__init__ Stdio._ready
Stdio._take Stdio.begin Stdio.dismiss Stdio.drain Stdio.end Stdio.forget Stdio.reading
Store.__init__ Store._free_take Store.db Store.lock Store.path Store.run_path Store.write
VendoredFinder.__init__ VendoredFinder.find_spec VendoredFinder.hold _Path.from_param
_Write.__enter__ _Write.__exit__ _Write.__init__ _action _alternatives _arch_block _arch_select
_attrs_settle _bear _cgroup_make _cgroup_put _cgroup_remove _clone_into _clones_make _code
_cpuset_fill _default_program_made _event_files _excluded _fs_mount _fs_set _full_remove_at
_hierarchy_put _id_check _included _is_dir_at _is_odd _json_encoder _launcher_detach _launcher_fork
_launcher_preload _leaf _limit_block _limit_cpu _limit_devices _limit_huge_pages _limit_memory
_limit_realtime _limit_rows _limit_unified _limits_normal _limits_set _mount_check _mount_plain
_mount_put _mountinfo_line _multiplexed _network_begin _network_end _node_make _numbers_add
_overlay_knows _overlay_lowers _overlay_name _path_if_there _plain_remove_at _program_become
_program_check _quote_char _ranges _read _read_pairs _read_words _ready_wait _resource _root_prepare
_search _signal_note _source_clone _stdio_open _store_claim _store_connect _store_open _store_opened
_test _tested _tree_remove_at _unescape _v2_enable _write answer_send archive_member birth_run
boot_id caps_bound caps_held caps_keep caps_mask caps_set cgroup_enter_leaf cgroup_hierarchies
cgroup_paths cgroup_probe code_launcher device_rule_text dir_ensure event_emit fds_recv fds_send
file_read filter_prepare fs_magic go_int imports_freeze init_alone init_apparmor init_cgroup
init_cgroup_namespace init_confine init_cwd init_cwd_make init_devices init_exec init_hostname
init_join init_keyring init_limits init_mounts init_network init_oom_score init_paths_hide
init_program init_read init_ready init_root_attach init_root_enter init_stdio init_stdio_own
init_sysctl init_terminal init_title init_user json_parse json_text launcher_main libc
lock_file.__enter__ lock_file.__exit__ lock_file.__init__ log_limits log_open loopback_up
machine_name main main_exit mode_is_dir monitor_main mount_attach mount_attrs mount_attrs_of
mount_clone mount_new mount_options_parse mount_propagation mount_readonly mountinfo networks_event
ns_clone ns_open ns_unshare oom_score_set open_in_root overlay_adds_layers overlay_mount
overlay_prepare path_make peer_cred preload process_check process_name quote restarts_make
rlimits_apply role root_pivot runtime_ahead runtime_start seccomp_compile seccomp_default_profile
seccomp_default_program seccomp_enter seccomp_flags seccomp_install seccomp_program seccomp_resolve
sqlite_module status_code sys_address sys_buffer syscall_numbers syscalls_bind table_read table_rows
tree_remove unix_listen user_resolve vendored_install verb_attach verb_go verb_start verb_wait
volumes_forget volumes_leave volumes_unmount write_all
"""
#: Functions of `version`; what `ps` needs besides; what `run` and `exec` do; what a `pull` of what
#: is there does: the usual commands find it in one place. `tests/bench/quick.py` prints this.
QUICK = ("""
ApiClient.__init__ ApiClient.call ApiClient.get ApiClient.send Args.__init__ Args.given
Body.__init__ Command.__init__ Engine.__init__ Flag.__init__ Flag.long LocalTransport.__init__
LocalTransport.engine LocalTransport.send Request.__init__ Response.__init__ Store.__init__
VendoredFinder.__init__ VendoredFinder.find_spec _Pair.__init__ _Pair.close _build_time _client_make
_code _command_find _component_lines _config_apply _config_default _config_load _flag_set
_flags_table _handler_run _is_version _nargs_check _parse_or_usage _pattern_words _reply_check
_request _route_best _route_match _run _server_version _shown_name _streams_prepare _take_long
_top_check _use_line cli_main client_local client_version cmd_version columns_align command
command_flags config_directory config_read file_read flag_kind flags_parse flush_output get_version
http_dispatch main main_exit output_write platform_host program_name roots_find route route_find
text_clean text_width vendored_install version_build version_text
""", """
Container.__init__ Container.config Container.document Container.host Container.is_running
Container.is_up Container.sole_network Container.status Containers.__init__ Containers._healthy
Containers.all Containers.list Engine.containers Engine.images Flag.short Image.__init__
Images.__init__ Images.ids_of Listing.__init__ Listing._table Listing.text Network.__init__
Reference.__new__ Reference._suffix Reference.familiar Reference.familiar_name Reference.name
Request.arg Request.filters Request.flag Request.number Show.__init__ Store._free_take Store.db
Store.path Store.row Store.rows Store.run_path _container_command _container_image _container_names
_created_ns _day_number _domain_split _exited_codes _flag_default _help_command _id_shown _image_row
_is_domain _is_host_label _is_older _list_mark _month_days _quote_char _run_id _shared _since_text
_store_claim _store_connect _store_open _store_opened _tag_key _terminal_width _time_calendar
_time_split _wrap ago boot_id cmd_ps container_settle containers_text duration_parse ellipsis
endpoints_by_container filter_bool filters_check filters_parse get_containers help_flags id_short
image_get is_path_component json_parse list_filters_check list_select network_list
networks_by_container networks_ensure networks_known networks_show orphans_find points_of
points_show ports_list ports_show ports_text quote record_list reference_parse reference_tagged
sqlite_module state_text summary_show time_now time_parse version_tuple
""", """
ApiClient.hijack ApiClient.post ApiClient.wait Body.json Call.__call__ Call.__init__
Container.is_copied Containers._create Containers._running Containers.create Containers.expect
Containers.find Containers.launch Containers.running Containers.start Demultiplexer.__init__
FrameReader.__init__ Image.platform Image.settings Images.for_container Libc.__init__
LocalTransport.expect LocalTransport.hijack Network.bridge Network.is_default Network.is_internal
Network.mtu Network.options Network.pool Place.__init__ Place.link Prefix.__init__ Prefix.offset
Prefix.packed Prefix.size Pump.__init__ Pump._loop Pump._receive Pump.run RawCall.bind
RawCall.number Request.has_body Request.hijack Request.json Request.take Store.lock Store.roots_make
Store.write Waiter.__init__ Waiter.fileno Waiter.result _CidFile.__init__ _CidFile.keep _Pair._open
_Pair.hijack _Pair.take _Path.from_param _Write.__enter__ _Write.__exit__ _Write.__init__ _actor
_add_network _apparmor_build _arg_since _attach _attached_start _block_verify _body_attach
_body_devices _body_health _body_limits _body_networks _body_ports _body_process _body_restart
_body_security _body_storage _bounds _capabilities_verify _cloned _command_line _conf_parse
_config_verify _cpu_verify _cpusets_verify _create _create_checked _device_rules _endpoint _ends
_env_merge _event_files _exec_code _exec_pump _execs_sweep _exit_status _gap _gate _hijacker
_host_fill _host_verify _insert _insert_once _interpreter_sealed _is_server _is_user_defined
_items_check _json_encoder _kernel_memory_verify _launch _launcher_spawn _launcher_start _link_body
_link_make _list_check _mac_make _mac_move _memory_verify _modes_check _modes_resolve
_monitor_ahead.__enter__ _monitor_ahead.__exit__ _monitor_ahead.__init__ _monitor_ask
_monitor_request _namespaces_resolve _network_prepare _platform_settle _query_text _realtime_verify
_resizer _root_fill _route _shm_mounts _signal_sender _size_known _size_number _spawned_reap
_spec_linux _spec_mounts _spec_namespaces _spec_process _spec_root _start _start_time _stream_type
_sysctl_problems _sysctls_verify _thermal_paths _ulimits_verify _value_check _version_adapt
address_message answer_read apparmor_is_on body_fill body_set bool_parse bridge_ensure build_id
capabilities_available capabilities_normalize capabilities_resolve cgroup_name cmd_exec cmd_run
command_words config_fill config_merge configuration_read container_attach container_event
container_wait create_body create_check create_verify detach_keys_check devices_build dir_ensure
driver_of endpoint_attached endpoint_list endpoint_names endpoint_problems endpoint_take
endpoints_plan endpoints_start env_merge environment_build event_emit exec_create exec_dir exec_find
exec_inspect exec_start extra_hosts fds_send fields_check file_write files_guard.__enter__
files_guard.__exit__ files_guard.__init__ files_write firewall_watch get_exec go_int health_plan
health_words host_complete host_defaults hosts_text id_new image_platform_warning init_layer_make
ip_pack ip_text is_hex json_text launcher_call launcher_name layer_directories layer_name
layer_paths layer_stack lease_take libc limits_beyond limits_build link_index link_is_up link_plan
links_prepare links_verify lock_file.__enter__ lock_file.__exit__ lock_file.__init__ log_limits
log_verify mac_pack mac_text mode_container monitor_call monitor_connect monitor_expect
monitor_start mount_attrs mount_clone mount_readonly mounts_sorted name_random names_write
network_find network_get networks_event networks_named nl_attr nl_message object_check owner_of
owner_self pair_message parent_ensure parent_name plan_build platform_rank points_mounts
port_message ports_check ports_expose ports_publish ports_start ports_wanted post_container_attach
post_container_create post_container_exec post_container_start post_container_wait post_exec_start
prefix_parse process_build record_find record_insert record_move record_new resolver_conf
resources_build resources_verify restart_parse restart_verify route_message routes_choose
security_parse sha256 signal_number signal_parse signals_caught.__enter__ signals_caught.__exit__
signals_caught.__init__ signals_caught.fileno size_float size_parse spec_build storage_begin
terminal_size tty_check undo_on_error.__enter__ undo_on_error.__exit__ undo_on_error.__init__
undo_on_error.callback unix_connect unix_listen up_message wait_any walls_build winsize_get
write_all
""", """
ApiClient.lines ApiClient.stream Head.__init__ Head.keeps_alive HttpClient.__init__
HttpClient._connect HttpClient._dial HttpClient._drop HttpClient._exchange HttpClient._head
HttpClient._line HttpClient._send HttpClient._speaks_plainly HttpClient.cancel HttpClient.close
HttpClient.patiently HttpClient.release HttpClient.request HttpClient.worth_trying HttpLine.__init__
HttpLine.receive HttpReply.__init__ HttpReply._end HttpReply.document HttpReply.read Image.labels
Progress.__init__ Progress._plain Progress.show Pull._image_known Pull._name Pull._pull
Pull._pull_one Pull.work RegistryAuth.__init__ RegistryAuth.header RegistryEndpoint.__init__
RegistryEndpoint.host Repository.__init__ Repository._context Repository.ask Repository.manifest
Store.release Stream.__init__ Transfer.__init__ Transfer._messages Transfer._run
Transfer.endpoints_try Transfer.messages Transfer.say _head_field _head_framing _head_line
_helper_of _host_addresses _http_version _in_network _is_digest_shape _json_lines _line _mirrors_of
_name_settle _pull _response_line _workers address_pack auth_header_make auth_header_parse
blobs_dropped cmd_pull configuration_ahead content_settle credentials_get credentials_key
digest_check digest_of downloads_expire head_end head_parse head_text host_bytes host_split
image_event image_pull is_tag leases_left messages_stream meta_headers post_image_create
progress_show progress_text proxy_of reference_full registry_credentials registry_endpoints
registry_headers registry_is_insecure registry_settings request_head signals_unwind stream_chunks
terminal_width url_parts
""")
#: Functions that run before the engine is loaded, each with what it calls; by names in the archive.
PARTS = {"relay": "relay", "ahead": "launcher_ahead"}
#: What of this file makes byte code for a Python that there is none for, on the host.
PACKER = (
    "ast", "marshal", "struct", "sys", "zlib", "Code", "FIRST", "HOT_SECTIONS", "KEYED",
    "LAUNCHER_ROOTS", "LAUNCHER_START", "QUICK", "Slim", "Splitter", "Table", "Unit",
    "code_walk", "command_keys", "engine_code", "names_changed", "names_used", "own_source",
    "packed", "route_keys", "sections_of",
)
# fmt: off
PINS = {
    "pyroute2": "01a2a3afe565a6acb0a0d5d8ac86c9682b6564407e3d9589070191ae94b737e8",
    "cp39-x86_64-gnu":    "a25a72afa7d66d47a881e475ffe88d9961b36052bf6a512af3b84de22b20d41f",
    "cp39-x86_64-musl":   "c335605ac7d018ca2d4d68cc0bac10e3c4ccf8e9686972dfc569a4df53f7a8d3",
    "cp39-aarch64-gnu":   "3ea0d70b4ec72b9d5feae4ec665ef8a4cd48f442921f2100117229c900a5a713",
    "cp39-aarch64-musl":  "5b4feed895f32b314f2b3aa3ba6a4e0ce903c6764f31ad78e68b6c3fa31415ac",
    "cp310-x86_64-gnu":   "0f6d9c8a535af243c5a19f2d66c3733595ab633e00b97237d877e70e8389edc5",
    "cp310-x86_64-musl":  "6baf9fd75d0af4f5d677b6e2d8dd3deb359c4ec2250c8536fe5ea48fd9305199",
    "cp310-aarch64-gnu":  "ea7702484795ee3c16c48a03d990123e833f1e1d6baabbe9a53256238eb04cbc",
    "cp310-aarch64-musl": "a533550740ce8c721aae27b377fb1160df68a9f457f16015ec8e47547a033dfc",
    "cp311-x86_64-gnu":   "2cfcdf0e46020bda2e98814464ca3ae830da83937c4c61776bf8835c7094214e",
    "cp311-x86_64-musl":  "278c80fdeaf857b620295cc815a31f6478fcb217d476ac889985a43b2b67e9bd",
    "cp311-aarch64-gnu":  "9af4bcde7dde46ca7e82a4c6f5fda1760bcbfd15525dbea36fe625263ef06b5e",
    "cp311-aarch64-musl": "8551b6bc3690fb76e730967a628b6aab0d9331c38a41f5cddb546be994771191",
    "cp312-x86_64-gnu":   "5dc4488536e87ff0aac698b9cd65f2913ac87417b3952d80be32463c8e95cc35",
    "cp312-x86_64-musl":  "1eb69217ad9b760537e93f2d578c7927b788a9cac0e2104e536855a2797b5b09",
    "cp312-aarch64-gnu":  "394175aeeb4e2255ff5340b32f6db79375b3ffb25514fe4c1439015a7f335ec2",
    "cp312-aarch64-musl": "c12da158f6ec1180be0a3d6f531050dfc1357a25e5d0fd8dd99d4506d2a3f448",
    "cp313-x86_64-gnu":   "b42529770febd331e23c5e8a68e9899acb0cc0806ee4c970354806c0ceeec6c7",
    "cp313-x86_64-musl":  "1ebc87e6e50547cff97e07c3fed9999d79b6327c9c4143c3049a7cfeacb2cdba",
    "cp313-aarch64-gnu":  "ac61854c4a77df66695540549a89f4c67039e4181a9158b8646425f1d56d947a",
    "cp313-aarch64-musl": "7f54d13c269cdc37d2f73c9b3e70c6d2bb168dec768a472d54c2ed830bb19fb9",
}
# fmt: on

#: The whole start-up. It runs before anything of the engine, so it is as short as it can be:
#: `--help` is in the
#: archive as text; byte code comes from the archive, else from DATA/cache/<build>/, where the first
#: start with an
#: unknown Python leaves it. Only a file of our own that nobody else can read or write is taken from
#: there.
#: All of it must parse with any Python, 2.7 included, else the version check cannot speak.
#: The garbage collector would walk the growing pile of constants nine times while they are loaded:
#: 1 ms.
MAIN = '''"""Start of engine.pyz; made by build_zipapp.py."""
import sys

if sys.version_info < (3, 9):  # what stands before must be Python 2 as well
    sys.stderr.write("engine.pyz needs Python 3.9 or newer, this is %s\\n" % sys.version.split()[0])
    sys.exit(1)
from _frozen_importlib_external import MAGIC_NUMBER
import gc
import marshal
import os

BUILD_ID = "@BUILD@"
MISSED = None
archive = __loader__.archive


def get(name):
    return __loader__.get_data(archive + os.sep + name)


def cache_path():
    data = os.environ.get("ENGINE_DATA_ROOT")
    for at, word in enumerate(sys.argv[1:], 2):
        if not word.startswith("-"):
            break
        if word.startswith("--data-root"):
            data = word[12:] or "".join(sys.argv[at:at + 1])
    if not data and os.geteuid():
        home = os.environ.get("HOME") or "/"
        data = (os.environ.get("XDG_DATA_HOME") or home + "/.local/share") + "/engine"
    parts = (data or "/var/lib/engine", BUILD_ID, sys.implementation.cache_tag)
    return "%s/cache/%s/%s.engine" % parts


def cache_read(path):
    for mine in os.path.dirname(path), path:
        stat = os.lstat(mine)
        if stat.st_uid != os.geteuid() or stat.st_mode & 0o022:
            raise OSError
    if stat.st_mode & 0o177:
        raise OSError
    with open(path, "rb") as file:
        return file.read()


def cache_write(path, data):
    beside = "%s.%d" % (path, os.getpid())
    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
    os.rename(beside, path)


def checked(data):
    if data[:4] != MAGIC_NUMBER or int.from_bytes(data[4:8], "little") != len(data):
        raise ValueError
    return data


def code_get():
    try:
        return checked(get(sys.implementation.cache_tag + "/engine"))
    except (OSError, ValueError):
        path = cache_path()
    try:
        return checked(cache_read(path))
    except (OSError, ValueError):
        pass
    packer = get("packer.py")
    space = {"__name__": "packer"}
    exec(compile(packer, archive + "/packer.py", "exec", dont_inherit=True), space)
    made = space["engine_code"](get("engine.py"), packer)
    try:
        cache_write(path, made)
    except OSError:
        pass
    return made


def engine_load():
    global CODE
    module = type(sys)("engine")
    try:
        import zlib  # noqa: F401
        data = code_get()
    except ImportError:
        lacks("zlib", "to unpack engine.pyz")
    module.__file__ = archive + "/engine.py"
    module.__loader__ = __loader__
    sys.modules["engine"] = module
    index = marshal.loads(memoryview(data)[16:])
    space = {"__name__": "engine.code"}
    exec(index[-1], space)
    CODE = space["Code"](module.__dict__, data, index)
    return module


def relay():
    global MISSED
    if {"create", "exec", "ps", "run", "start"}.isdisjoint(sys.argv):
        return
    try:
        MISSED = part("relay")["relay"](sys.argv[1:])
        if MISSED and "run" in sys.argv and "--help" not in sys.argv:
            part("ahead")["launcher_ahead"](*MISSED)
    except (OSError, ValueError):
        pass


def part(name):
    code = checked(get(sys.implementation.cache_tag + "/" + name))
    space = {"__name__": "engine", "__builtins__": __builtins__, "__loader__": __loader__}
    space["__file__"] = archive + "/engine.py"
    exec(marshal.loads(memoryview(code)[16:]), space)
    return space


def help_width():
    try:
        return os.get_terminal_size(0).columns or 80
    except OSError:
        return 80


def lacks(name, use):
    text = "engine: this Python (%s) has no module %s, which the engine needs %s"
    text += ": use a complete Python\\n"
    os.write(2, (text % (sys.executable, name, use)).encode("utf-8", "replace"))
    os._exit(125)


def start():
    global archive
    named = os.path.basename(sys.argv[0]) == "engine.pyz"
    if sys.argv[1:] in ([], ["--help"]) and named and help_width() == 80:
        try:
            os.write(1, get("help"))
            os._exit(0)
        except OSError:
            pass
    relay()
    gc.disable()
    archive = __loader__.archive = os.path.abspath(archive)
    try:
        module = engine_load()
        if sys.argv[2:3] == ["--role=launcher"]:
            CODE.ahead(0)
        main_exit = module.main_exit
    except ImportError as missing:
        lacks(missing.name, "to start")
    gc.freeze()
    gc.enable()
    main_exit(sys.argv[1:])


start()
'''


def say(text: str) -> None:
    print(f"build_zipapp: {text}", file=sys.stderr)


# ----------------------------------------------------------------- wheels


def wheel_requests() -> list[tuple[str, str, list[str]]]:
    """(pin, requirement, what pip must be told) of every wheel."""
    asked = [("pyroute2", PYROUTE2, [])]
    for pin in sorted(PINS):
        if not pin.startswith("cp"):
            continue
        tag, machine, libc = pin.split("-")
        platform = "manylinux_2_28_" if libc == "gnu" else "musllinux_1_2_"
        asked.append(
            (
                pin,
                PYZSTD,
                [
                    "--python-version",
                    tag[2:],
                    "--implementation",
                    "cp",
                    "--abi",
                    tag,
                    "--platform",
                    platform + machine,
                ],
            )
        )
    return asked


def wheel_path(cache: str, pin: str) -> str:
    return os.path.join(cache, "wheels", pin, "wheel")


def wheel_fetch(cache: str, pin: str, requirement: str, options: list[str]) -> subprocess.Popen:
    """A running pip that downloads one wheel into a directory of its own."""
    target = os.path.dirname(wheel_path(cache, pin))
    os.makedirs(target, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        target,
        *options,
        requirement,
    ]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def wheel_check(cache: str, pin: str) -> None:
    """What pip left becomes `wheel` if its sha256 is the pinned one; else SystemExit."""
    path = wheel_path(cache, pin)
    names = [name for name in os.listdir(os.path.dirname(path)) if name.endswith(".whl")]
    found = os.path.join(os.path.dirname(path), names[0])
    with open(found, "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    if digest != PINS[pin]:
        raise SystemExit(f"build_zipapp: {names[0]} has sha256 {digest}, pinned is {PINS[pin]}")
    os.rename(found, path)


def wheels_ensure(cache: str) -> str:
    """Fetches what is missing, four at a time; "", else the reason why that isn't possible."""
    missing = [row for row in wheel_requests() if not os.path.exists(wheel_path(cache, row[0]))]
    if not missing:
        return ""
    probe = subprocess.run(
        [sys.executable, "-m", "pip", "--version"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    if probe.returncode:
        return "this Python has no pip"
    for at in range(0, len(missing), 4):
        running = [(row[0], wheel_fetch(cache, *row)) for row in missing[at : at + 4]]
        for pin, process in running:
            error = process.communicate()[1].decode(errors="replace").strip()
            if process.returncode:
                return (
                    f"pip could not fetch {pin}: {(error.splitlines() or ['no reason given'])[-1]}"
                )
            wheel_check(cache, pin)
    return ""


def wheel_open(cache: str, pin: str) -> zipfile.ZipFile:
    with open(wheel_path(cache, pin), "rb") as file:
        if hashlib.sha256(file.read()).hexdigest() != PINS[pin]:
            raise SystemExit(
                f"build_zipapp: {wheel_path(cache, pin)} is not the pinned file; remove it"
            )
    return zipfile.ZipFile(wheel_path(cache, pin))


# --------------------------------------------------------------- vendored


def imports_of(name: str, is_package: bool, source: bytes) -> list[str]:
    """Absolute names of all that a module imports; some may be attributes, not modules."""
    package = name if is_package else name.rpartition(".")[0]
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")
            parts = above[: len(above) - node.level + 1] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            found += [base, *(base + "." + alias.name for alias in node.names)]
    return found


def pyroute2_modules(wheel: zipfile.ZipFile) -> dict[str, tuple[bool, bytes]]:
    """{name: (is a package, source)} of PYROUTE2_ROOTS and all that they import."""
    every = {}
    for path in wheel.namelist():
        if path.startswith("pyroute2/") and path.endswith(".py"):
            name = path[:-3].replace("/", ".")
            is_package = name.endswith(".__init__")
            every[name[:-9] if is_package else name] = (is_package, wheel.read(path))
    every["pyroute2"] = (True, REPLACED["pyroute2"].encode())
    kept, open_names = {}, list(PYROUTE2_ROOTS)
    while open_names:
        parts = open_names.pop().split(".")
        for length in range(1, len(parts) + 1):
            name = ".".join(parts[:length])
            if name in every and name not in kept and not name.startswith(PYROUTE2_SKIPPED):
                kept[name] = every[name]
                open_names += imports_of(name, *every[name])
    return kept


def vendored_modules(cache: str) -> dict[str, tuple[bool, bytes]]:
    with wheel_open(cache, "pyroute2") as wheel:
        modules = pyroute2_modules(wheel)
    for name in ("pyzstd", "pyzstd._c"):
        modules[name] = (True, REPLACED[name].encode())
    return dict(sorted(modules.items()))


def xz(data: bytes) -> bytes:
    """One xz stream: a quarter less than what zip can do."""
    import lzma

    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 24}]
    return lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=filters)


def zstd_solid(cache: str, machine: str) -> bytes:
    """A line of JSON {pin: [offset, size]}, then one xz stream over all extensions for a machine.

    They differ little: ten of 0.95 MB take 0.55 MB. Compressing takes seconds, so the result is
    kept in the cache under the digest of the content.
    """
    index, parts, offset = {}, [], 0
    for pin in sorted(pin for pin in PINS if "-" + machine + "-" in pin):
        with wheel_open(cache, pin) as wheel:
            (name,) = [name for name in wheel.namelist() if name.endswith(".so")]
            parts.append(wheel.read(name))
        index[pin] = [offset, len(parts[-1])]
        offset += len(parts[-1])
    plain = b"".join(parts)
    kept = os.path.join(cache, "xz-" + hashlib.sha256(plain).hexdigest())
    if not os.path.exists(kept):
        with open(kept + ".new", "wb") as file:
            file.write(xz(plain))
        os.rename(kept + ".new", kept)
    with open(kept, "rb") as file:
        return json.dumps(index, sort_keys=True).encode() + b"\n" + file.read()


def licences(cache: str) -> dict[str, bytes]:
    found = {}
    for pin, package in (
        ("pyroute2", "pyroute2"),
        ("cp311-x86_64-gnu", "pyzstd"),
    ):
        with wheel_open(cache, pin) as wheel:
            for path in wheel.namelist():
                if ".dist-info/" in path and "LICENSE" in path:
                    found[f"licenses/{package}/{os.path.basename(path)}"] = wheel.read(path)
    return found


# -------------------------------------------------------------- byte code


class Code:
    """The engine's module, made piece by piece, as it is used. Travels as source and as byte code.

    A unit is a statement of the module, or a function in one. A name is made when code is loaded
    that mentions it: a class or a table by running its statement, in the order of the source; a
    function as a stub, which gets its code when it is first called. So a start pays for what it
    uses, not for all there is. `all` makes everything real: for who forks, or lives long.

    Units of kind s are statements, f functions of the module, m functions that a statement asks for
    by `__stub__`: methods, and what decorators register. Rows of a table that know their keys are
    made when they are looked up (`Table`).
    """

    def __init__(self, space: dict, data: bytes, index: tuple) -> None:
        from _thread import RLock

        names, self.kinds, self.groups, self.group_of, self.keyed, _ = index
        start = int.from_bytes(data[8:12], "little")
        self.names = names.split("\n")
        self.space = space                  # the module's globals
        self.data = memoryview(data)[start:]
        self.known: dict = {}               # unit -> record
        self.held: dict = {}                # the same, of what is to be real
        self.asked = bytearray(len(self.kinds))
        self.pending: list = []             # units to run, the first one last
        self.ready: dict = {}               # their records
        self.running = len(self.kinds)      # the unit that runs now: it needs only those before it
        self.stubs: dict = {}               # unit -> function without its code
        self.late: dict = {}                # unit -> (function, record, what stands in for it)
        self.eager = False
        self.lock = RLock()                 # two threads may call one stub
        space["__builtins__"] = __builtins__
        space["__stub__"] = self.stub
        space["__table__"] = self.table
        space["__getattr__"] = self.find

    def record(self, unit: int) -> tuple:
        """(what the code mentions, code); of a function also (defaults, named ones), name."""
        if unit in self.held:
            return self.held.pop(unit)
        if unit not in self.known:
            from marshal import loads
            from zlib import decompress

            start, size = self.groups[self.group_of[unit]]
            self.known.update(loads(decompress(self.data[start:start + size]))[-1])
        return self.known.pop(unit)

    def need(self, units: Iterable[int]) -> None:
        """Functions get their names at once, as stubs; statements wait for `run`."""
        todo = list(units)
        while todo:
            unit = todo.pop()
            if self.asked[unit]:
                continue
            self.asked[unit] = 1
            if self.kinds[unit] == 102 and not self.eager and unit not in self.held:
                self.space[sys.intern(self.names[unit])] = self.stub(unit)
            else:
                record = self.ready[unit] = self.record(unit)
                todo += map(ord, record[0])
                self.pending.append(unit)
        self.pending.sort(reverse=True)

    def run(self) -> None:
        """Run what is pending, in the order of the source, but nothing below what runs already."""
        pending, outer = self.pending, self.running
        while pending and pending[-1] < outer:
            unit = self.running = pending[-1]
            try:
                if self.kinds[unit] == 102:
                    self.space[sys.intern(self.names[unit])] = self.stub(unit)
                else:
                    exec(self.ready[unit][1], self.space)
            finally:
                self.running = outer
            pending.remove(unit)
            self.ready.pop(unit, None)
        while self.late and not pending:
            unit, (made, record, _) = self.late.popitem()
            self.swap(unit, made, record)

    def stub(self, unit: int) -> Callable:
        """The function of a unit, without its code; or with it where that is wanted already."""
        name = self.names[unit].rpartition(".")[2]
        made = type(lambda: 0)(Code.call.__code__, self.space, name)
        made.__kwdefaults__ = {"_unit_": (self, unit, made)}
        if self.eager or unit in self.ready or unit in self.held:
            record = self.ready.pop(unit, None) or self.record(unit)
            if not self.eager:
                self.need(map(ord, record[0]))
                self.run()                  # its defaults
            self.filled(made, record)
        else:
            self.stubs[unit] = made
        return made

    def table(self, name: str) -> Table:
        return Table(self, self.keyed[name])

    @staticmethod
    def call(*args: Any, _unit_: tuple, **named: Any) -> Any:
        """The code of all stubs."""
        return _unit_[0].load(_unit_[1], _unit_[2])(*args, **named)

    def load(self, unit: int, made: Callable) -> Callable:
        """Gives a stub its code, and the code all that it mentions; the function to call now."""
        from _thread import _count

        with self.lock:
            if unit in self.stubs and unit not in self.late:
                record = self.record(unit)
                self.need(map(ord, record[0]))
                self.run()
                if unit in self.stubs and unit not in self.late:
                    if self.pending and _count():
                        # Part of what it mentions comes when the statement is through that asks:
                        # which other threads do not wait for.
                        stand_in = type(made)(Code.call.__code__, self.space, made.__name__)
                        self.late[unit] = made, record, self.filled(stand_in, record)
                    else:
                        self.swap(unit, made, record)
            return self.late[unit][2] if unit in self.late else made

    def swap(self, unit: int, made: Callable, record: tuple) -> None:
        self.filled(made, record)
        self.stubs.pop(unit, None)

    def filled(self, made: Any, record: tuple) -> Any:
        _, code, defaults, name = record
        if isinstance(defaults, type(code)):
            defaults = eval(defaults, self.space)
        # The code last: until then other threads call the stub, which must not lack its own.
        made.__defaults__ = defaults[0]
        made.__kwdefaults__ = {**(made.__kwdefaults__ or {}), **(defaults[1] or {})}
        made.__qualname__ = name
        made.__code__ = code
        made.__kwdefaults__ = defaults[1]
        return made

    def find(self, name: str) -> Any:
        """The module's __getattr__: who asks from outside gets any name."""
        units = [unit for unit, found in enumerate(self.names)
                 if name in found and name in found.split() and self.kinds[unit] != 109]
        if not units:
            raise AttributeError("module 'engine' has no attribute " + repr(name))
        with self.lock:
            self.need(units)
            self.run()
        return self.space[name]

    def ahead(self, *groups: int) -> None:
        """Makes some groups real; what they mention besides, stubs. FIRST is 0, the rest of the
        launcher's 1, then come the lists of QUICK."""
        from marshal import loads
        from zlib import decompress

        with self.lock:
            for start, size in map(self.groups.__getitem__, groups):
                self.held.update(loads(decompress(self.data[start:start + size]))[-1])
            units = sorted(self.held)
            for unit in units:
                if unit in self.stubs:
                    self.load(unit, self.stubs[unit])
            self.need(unit for unit in units if self.kinds[unit] != 109)
            self.run()
            self.held.clear()
            self.known.clear()              # what forks have no use for goes back into its group

    def all(self) -> None:
        """Makes everything real, and needs the archive no more."""
        with self.lock:
            self.eager = True
            for unit, kind in enumerate(self.kinds):
                # In the order of the source nothing is missed, so nobody needs to ask for it.
                if kind != 109 and not self.asked[unit]:
                    self.asked[unit] = 1
                    self.ready[unit] = self.record(unit)
                    self.pending.append(unit)
                    self.run()
            for unit, made in list(self.stubs.items()):
                self.load(unit, made)
            self.data = memoryview(b"")


class Table(dict):
    """A table whose rows are made by statements of the module, when somebody asks for them."""

    def __init__(self, code: Code, rows: dict) -> None:
        self.code = code
        self.rows = dict(rows)              # key -> units that are to run before it is looked up

    def fetch(self, *keys: Any) -> None:
        with self.code.lock:
            for key in keys:
                if key in self.rows:
                    self.code.need(self.rows[key])
                    self.code.run()
                    del self.rows[key]

    def __contains__(self, key: Any) -> bool:
        self.fetch(key)
        return super().__contains__(key)

    def __getitem__(self, key: Any) -> Any:
        self.fetch(key)
        return super().__getitem__(key)

    def get(self, key: Any, default: Any = None) -> Any:
        self.fetch(key)
        return super().get(key, default)

    def __iter__(self) -> Iterator:
        self.fetch(*self.rows)
        return super().__iter__()

    def items(self) -> Any:
        self.fetch(*self.rows)
        return super().items()

    def values(self) -> Any:
        self.fetch(*self.rows)
        return super().values()


class Slim(ast.NodeTransformer):
    """Leaves out what nothing reads at run time: annotations, and imports for type checkers.

    Docstrings and assertions are left out by the compiler.
    """

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        for argument in [*every, node.args.vararg, node.args.kwarg]:
            if argument:
                argument.annotation = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if node.value is None:
            return ast.copy_location(ast.Pass(), node)
        value = self.visit(node.value)
        assign = ast.Assign(targets=[node.target], value=value, lineno=node.lineno)
        return ast.copy_location(assign, node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        return None if node.module == "__future__" else node

    def visit_If(self, node: ast.If) -> ast.AST | None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return None
        return self.generic_visit(node)


def sections_of(source: bytes) -> list[str]:
    """The section of each line of engine.py, "" before the first; line 1 has index 1."""
    found, name, rule = [""], "", b"# " + b"=" * 77
    lines = source.split(b"\n")
    for at, line in enumerate(lines):
        if at and lines[at - 1] == rule and b" -- " in line:
            name = line[2:].split(b" -- ")[0].decode()
        found.append(name)
    return found


def code_walk(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, type(code)):
            yield from code_walk(constant)


def names_used(*nodes: ast.AST) -> set[str]:
    """Names that code mentions, but those of local variables."""
    found = set()
    for node in nodes:
        inner = names_used(*ast.iter_child_nodes(node))
        if isinstance(node, (ast.FunctionDef, ast.Lambda)):
            inner -= {each.arg for each in ast.walk(node.args) if isinstance(each, ast.arg)}
            inner -= {each.id for each in ast.walk(node) if isinstance(each, ast.Name)
                      and isinstance(each.ctx, ast.Store)}
        found |= inner
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.AugAssign):
            found |= {each.id for each in ast.walk(node.target) if isinstance(each, ast.Name)}
    return found


def names_changed(tree: ast.AST) -> set[str]:
    """Names of tables that code changes in place."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in ("add", "append", "extend", "insert", "setdefault", "update"):
                found |= names_used(node.func.value)
        elif (isinstance(node, (ast.Attribute, ast.Subscript))
              and not isinstance(node.ctx, ast.Load)):
            found |= names_used(node.value)
        elif isinstance(node, ast.AugAssign):
            found |= {each.id for each in ast.walk(node.target) if isinstance(each, ast.Name)}
    return found


class Unit:
    """A row of what `Code` loads."""

    def __init__(self, kind: str, name: str, record: tuple, node: ast.stmt) -> None:
        self.kind = kind
        self.name = name                    # "Class.method" for methods
        self.line = node.lineno
        self.record = record
        self.used = names_used(node)
        self.changed = names_changed(node) & self.used
        self.defined: list[str] = []
        self.parts: list[Unit] = []         # those that a statement asks for by __stub__
        self.after: set[int] = set()        # units that fill this one's table
        self.rows: dict[str, list] = {}     # table -> keys that only this one fills in it


def command_keys(call: ast.Call) -> list[str]:
    """The names of a command: @command("image ls", aliases=("images",), …)."""
    others = [each.value for each in call.keywords if each.arg == "aliases"]
    return [ast.literal_eval(call.args[0]), *(name for each in others
                                              for name in ast.literal_eval(each))]


def route_keys(call: ast.Call) -> list[tuple[str, str]]:
    """What leads to a route: @route("GET", "/containers/{id}/json") is ("GET", "containers")."""
    method, pattern = map(ast.literal_eval, call.args)
    return [(method, pattern.strip("/").split("/")[0])]


#: Tables with a row for each command and route, of which a start wants one or two: decorator ->
#: (table, the keys of its row).
KEYED = {"command": ("COMMANDS", command_keys), "route": ("ROUTES", route_keys)}


class Splitter:
    """Cuts a module into units."""

    def __init__(self, tree: ast.Module, path: str) -> None:
        self.path = path
        self.keyed = {table for table, _ in KEYED.values()}
        self.units: list[Unit] = []
        whole = compile(tree, path, "exec", dont_inherit=True, optimize=2)
        self.codes = {(code.co_name, code.co_firstlineno): code for code in code_walk(whole)}
        for node in tree.body:
            self.statement(node)
        self.definers: dict[str, list[int]] = {}
        for at, unit in enumerate(self.units):
            for name in unit.defined:
                self.definers.setdefault(name, []).append(at)
        self.tables_attach()

    def statement(self, node: ast.stmt) -> None:
        if isinstance(node, ast.FunctionDef):
            if node.decorator_list:
                first = len(self.units)
                self.run(self.stubbed(node, node.name), first)
                self.units[-1].rows = self.rows(node)
            else:
                self.function("f", node, node.name).defined = [node.name]
        elif isinstance(node, ast.ClassDef):
            first = len(self.units)
            self.methods_stub(node)
            self.run(node, first)
        elif not self.is_main(node) and not self.is_text(node):
            if isinstance(node, ast.Assign) and ast.unparse(node.targets) in self.keyed:
                node.value = ast.Call(ast.Name("__table__", ast.Load()),
                                      [ast.Constant(ast.unparse(node.targets))], [])
            self.run(node)

    @staticmethod
    def rows(node: ast.FunctionDef) -> dict[str, list]:
        found: dict[str, list] = {}
        for each in node.decorator_list:
            name = each.func.id if isinstance(each, ast.Call) and isinstance(
                each.func, ast.Name) else ""
            if name not in KEYED:
                return {}
            table, keys = KEYED[name]
            found[table] = found.get(table, []) + keys(each)
        return found

    @staticmethod
    def is_main(node: ast.stmt) -> bool:
        return isinstance(node, ast.If) and "__name__" in names_used(node.test)

    @staticmethod
    def is_text(node: ast.stmt) -> bool:
        return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)

    def run(self, node: ast.stmt, first: int | None = None) -> None:
        """A unit of what is run as it stands; those from `first` on are functions in it."""
        tree = ast.fix_missing_locations(ast.Module([node], []))
        code = compile(tree, self.path, "exec", dont_inherit=True, optimize=2)
        inner = {each for part in ast.walk(node) if isinstance(part, ast.comprehension)
                 for each in ast.walk(part.target)}
        stored = [each.id for each in ast.walk(node) if isinstance(each, ast.Name)
                  and isinstance(each.ctx, ast.Store) and each not in inner]
        if isinstance(node, ast.ClassDef):
            stored = [node.name]
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            stored = [alias.asname or alias.name for alias in node.names]
        unit = Unit("s", " ".join(stored), (code,), node)
        unit.defined = stored
        unit.parts = self.units[first:] if first is not None else []
        self.units.append(unit)

    def code(self, node: ast.FunctionDef) -> CodeType:
        first = node.decorator_list[0].lineno if node.decorator_list else node.lineno
        return self.codes[node.name, first]

    def function(self, kind: str, node: ast.FunctionDef, name: str) -> Unit:
        given = ast.Tuple([
            ast.Tuple(node.args.defaults, ast.Load()) if node.args.defaults else ast.Constant(None),
            ast.Dict([ast.Constant(arg.arg) for arg, value in
                      zip(node.args.kwonlyargs, node.args.kw_defaults) if value],
                     [value for value in node.args.kw_defaults if value])
            if any(node.args.kw_defaults) else ast.Constant(None)], ast.Load())
        defaults: Any
        try:
            defaults = ast.literal_eval(given)
            if any(isinstance(each, (list, dict, set)) for each in
                   (*(defaults[0] or ()), *(defaults[1] or {}).values())):
                raise ValueError("one for all calls, not for all programs")
        except ValueError:
            tree = ast.fix_missing_locations(ast.copy_location(ast.Expression(given), node))
            defaults = compile(tree, self.path, "eval", dont_inherit=True, optimize=2)
        plain = ast.FunctionDef(node.name, node.args, node.body, [], lineno=node.lineno)
        unit = Unit(kind, name, (self.code(node), defaults, name), plain)
        self.units.append(unit)
        return unit

    def stubbed(self, node: ast.FunctionDef, name: str) -> ast.Assign:
        """`name = decorator(__stub__(unit))` in the place of a function."""
        value: ast.expr = ast.Call(ast.Name("__stub__", ast.Load()),
                                   [ast.Constant(len(self.units))], [])
        self.function("m", node, name)
        for decorator in reversed(node.decorator_list):
            value = ast.Call(decorator, [value], [])
        assign = ast.Assign([ast.Name(node.name, ast.Store())], value, lineno=node.lineno)
        return ast.copy_location(assign, node)

    def methods_stub(self, node: ast.ClassDef) -> None:
        own = {each.id for stmt in node.body if not isinstance(stmt, ast.FunctionDef)
               for each in ast.walk(stmt) if isinstance(each, ast.Name)
               and isinstance(each.ctx, ast.Store)}
        for at, each in enumerate(node.body):
            # What mentions __class__ (super) is made in its class; so is a default that is known
            # only there.
            if (isinstance(each, ast.FunctionDef) and not self.code(each).co_freevars
                    and not names_used(each.args) & own):
                node.body[at] = self.stubbed(each, node.name + "." + each.name)

    def tables_attach(self) -> None:
        """A table needs whatever fills it (decorators, loops) as soon as anybody wants it."""
        for at, unit in enumerate(self.units):
            if unit.kind != "s":
                continue
            tables = {table for name in self.changed_by(unit)
                      for table in self.definers.get(name, ())
                      if table < at and (self.units[table].kind == "s" or name in unit.changed)}
            tables -= {at for name in unit.rows for at in self.definers[name]}
            if not tables and not unit.defined:
                raise SystemExit(f"engine.py:{unit.line}: nobody would ever need this statement")
            for table in tables:
                self.units[table].after.add(at)

    def changed_by(self, unit: Unit) -> set[str]:
        """Names of what is changed when a statement is run, by whatever it may call."""
        found, seen, todo = set(unit.changed), set(), list(unit.used)
        while todo:
            name = todo.pop()
            if name in seen:
                continue
            seen.add(name)
            for at in self.definers.get(name, ()):
                other = self.units[at]
                for each in ([other] if other.kind == "f" else other.parts):
                    found |= each.changed
                    todo += each.used
        return found

    def record(self, at: int) -> tuple:
        """What is marshalled of a unit; the numbers of units that it mentions are characters."""
        unit = self.units[at]
        needed = {number for name in unit.used for number in self.definers.get(name, ())}
        return ("".join(map(chr, sorted((needed | unit.after) - {at}))), *unit.record)

    def keys(self) -> dict[str, dict]:
        """{table: {key: units}}, of tables that are filled as they are asked."""
        found: dict[str, dict] = {table: {} for table in self.keyed}
        for at, unit in enumerate(self.units):
            for table, keys in unit.rows.items():
                for key in keys:
                    found[table][key] = (*found[table].get(key, ()), at)
        return found

    def quick(self, names: set[str]) -> set[int]:
        """The units of these names, and statements that they need; other functions stay stubs."""
        found = {at for at, unit in enumerate(self.units) if unit.name in names}
        for units in (units for keys in self.keys().values() for units in keys.values()):
            if found & set(units):          # who looks up one has all of its key
                found |= set(units)
        return self.stated(found)

    def stated(self, found: set[int]) -> set[int]:
        """Some units, and the statements that are run when these are loaded."""
        todo, seen = list(found), set(found)
        while todo:
            needed = set(map(ord, self.record(todo.pop())[0])) - seen
            fresh = {at for at in needed if self.units[at].kind == "s"}
            seen |= fresh
            todo += fresh
        return seen

    def reached(self, names: tuple, callers: tuple) -> set[int]:
        """Units that functions may ever run, and the statements that they need; and who calls these
        functions.
        """
        return self.stated(self.called(names, {at for name in callers
                                               for at in self.definers[name]}))

    def called(self, names: tuple, found: set[int]) -> set[int]:
        """Some units, and those that functions may ever run, as far as names tell and not through
        tables."""
        todo = [at for name in names for at in self.definers[name]]
        while todo:
            at = todo.pop()
            if at not in found:
                found.add(at)
                todo += [each for name in self.units[at].used
                         for each in self.definers.get(name, ())]
                todo += range(at - len(self.units[at].parts), at)
        return found


def packed(records: dict, rank: dict) -> tuple:
    """(names, tables, constants, code, records): what is marshalled for the launcher.

    What is named first is made first when it is loaded, and lies side by side in memory; records
    then refer to it. A monitor is a fork that shares the pages it doesn't write to, and every use
    of a name, a constant or a function writes to its count of references: a quarter of a megabyte
    per container.
    """
    # The code of statements is gone when they are run: it comes last.
    order = sorted(records, key=lambda unit: (len(records[unit]) == 2, rank[unit], unit))
    functions = [each for unit in order for each in code_walk(records[unit][1])]
    names: dict = {}
    tables, constants = [], []
    for each in functions:
        names.update((text, text) for text in each.co_consts + each.co_names if type(text) is str)
        tables += [each.co_names, getattr(each, "co_linetable", b"")]
        constants += [thing for thing in (*each.co_consts, each.co_consts)
                      if not isinstance(thing, (str, type(each)))]
    return tuple(names), tuple(tables), tuple(constants), tuple(functions), records


def own_source(text: bytes, names: tuple) -> str:
    """The definitions of some names in this file, as a module of their own."""
    parts = ["from __future__ import annotations\n"]
    lines = text.decode().splitlines(keepends=True)
    for node in ast.parse(text).body:
        if isinstance(node, ast.Import) and node.names[0].name in names:
            parts[0] += ast.unparse(node) + "\n"
        targets = node.targets if isinstance(node, ast.Assign) else [node]
        if {getattr(each, "name", getattr(each, "id", "")) for each in targets} & set(names):
            parts.append("".join(lines[node.lineno - 1:node.end_lineno]))
    return "\n\n".join(parts)


def engine_code(
    source: bytes, own: bytes, roots: tuple = LAUNCHER_ROOTS, callers: tuple = LAUNCHER_START
) -> bytes:
    """What `Code` reads, for this Python.

    16 bytes of head (magic number, size, where the groups start, zeros), the index, the groups.
    The index is (names, kinds, groups, group of each unit, keys, code of the loader). A group is a
    tuple that ends with {unit: record}, compressed: the launcher's two first (see `packed`), which
    also have units of other groups, then one for each list of QUICK, then what is left of each
    section.
    """
    from importlib.util import MAGIC_NUMBER

    sections = sections_of(source)
    split = Splitter(Slim().visit(ast.parse(source)), "engine.pyz/engine.py")
    records = {at: split.record(at) for at in range(len(split.units))}
    order = [*HOT_SECTIONS, *dict.fromkeys(sections)]
    rank = {at: order.index(sections[split.units[at].line])
            for at in sorted(split.reached(roots, callers))}
    homes = {at: sections[unit.line] for at, unit in enumerate(split.units)}
    homes.update(dict.fromkeys(rank, "launcher's"))
    first = split.quick(set(FIRST.split())) & set(rank)
    homes.update(dict.fromkeys(first, FIRST))
    for names in reversed(QUICK):
        homes.update(dict.fromkeys(split.quick(set(names.split())), names))
    groups = {FIRST: packed({at: records[at] for at in rank if at in first}, rank),
              "launcher's": packed({at: records[at] for at in rank if at not in first}, rank),
              **{names: ({},) for names in QUICK}}
    for at, home in homes.items():
        groups.setdefault(home, ({},))[-1][at] = records[at]
    places = {home: at for at, home in enumerate(groups)}
    rows, data = [], bytearray()
    for group in groups.values():
        body = zlib.compress(marshal.dumps(group), 9)
        rows.append((len(data), len(body)))
        data += body
    tree = Slim().visit(ast.parse(own_source(own, ("sys", "Code", "Table"))))
    loader = compile(tree, "engine.pyz/packer.py", "exec", dont_inherit=True, optimize=2)
    index = marshal.dumps((
        "\n".join(unit.name for unit in split.units),
        "".join(unit.kind for unit in split.units).encode(), tuple(rows),
        bytes(places[home] for home in homes.values()), split.keys(), loader))
    start = 16 + len(index)
    head = MAGIC_NUMBER + struct.pack("<III", start + len(data), start, 0)
    return head + index + bytes(data)


def part_code(source: bytes, name: str) -> bytes:
    """Byte code of this function and all that it may call, with a head as the engine's."""
    from importlib.util import MAGIC_NUMBER

    split = Splitter(Slim().visit(ast.parse(source)), "engine.pyz/engine.py")
    lines = {split.units[at].line for at in split.called((name,), set())}
    tree = Slim().visit(ast.parse(source))
    tree.body = [node for node in tree.body if node.lineno in lines]
    data = marshal.dumps(compile(tree, split.path, "exec", dont_inherit=True, optimize=2))
    return MAGIC_NUMBER + struct.pack("<III", 16 + len(data), 0, 0) + data


def compile_pipe() -> None:
    """Role `--compile`: {name: (is package, source)} in, byte code as this Python makes it out.

    Also what engine_code makes of the module "engine", in the place of its byte code.
    co_filename must not tell where it was built, and no import system is needed.
    """
    from importlib.util import MAGIC_NUMBER

    given, made = marshal.load(sys.stdin.buffer), {}
    for name, (package, source) in given.items():
        if name == "engine":
            made[name] = (package, engine_code(source, file_bytes("build_zipapp.py")))
            for part, function in PARTS.items():
                made[part] = (package, part_code(source, function))
            continue
        path = "engine.pyz/" + name.replace(".", "/") + ".py"
        # Docstrings of others stay out.
        code = compile(source, path, "exec", dont_inherit=True, optimize=2 * (name != "__main__"))
        made[name] = (package, marshal.dumps(code))
    marshal.dump((sys.implementation.cache_tag, MAGIC_NUMBER, made), sys.stdout.buffer)


def byte_code(
    python: str, modules: dict[str, tuple[bool, bytes]]
) -> tuple[str, bytes, dict[str, tuple[bool, bytes]]]:
    """(cache tag, magic number, {name: (is package, marshalled code)}) as that Python makes them.

    A fresh process with a fixed hash seed, so that sets in constants come out in the same order.
    Columns of instructions are left out, lines stay: a sixth less to load.
    """
    env = {"PYTHONHASHSEED": "0", "PYTHONNODEBUGRANGES": "1", "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [python, "-S", "-s", "-B", os.path.abspath(__file__), "--compile"],
        input=marshal.dumps(modules, 2),
        stdout=subprocess.PIPE,
        check=True,
        env=env,
    )
    return marshal.loads(done.stdout)


def render_pipe() -> None:
    """Role `--render`: the engine's source in; what it says to `--help`, and its filters, out."""
    import io

    sys.argv = ["engine.pyz"]
    engine = sys.modules["engine"] = type(sys)("engine")
    engine.__file__ = "engine.py"
    exec(sys.stdin.buffer.read(), engine.__dict__)
    caps = engine.CAPABILITIES_DEFAULT
    filters = {machine: engine.seccomp_default_program(caps, machine) for machine in MACHINES}
    pipe, sys.stdout = sys.stdout.buffer, io.TextIOWrapper(io.BytesIO())
    if engine.main(["--help"]):
        raise SystemExit("engine.py --help fails")
    sys.stdout.flush()
    marshal.dump((sys.stdout.buffer.getvalue(), marshal.dumps(filters, 2)), pipe)


def rendered(source: bytes) -> tuple[bytes, bytes]:
    """What `--help` prints where no terminal says how wide it is, and the default seccomp filters.

    Made by the engine itself, in a process of its own.
    """
    done = subprocess.run(
        [sys.executable, "-B", os.path.abspath(__file__), "--render"],
        input=source,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        check=False,
        env={"PATH": os.environ.get("PATH", "")},
    )
    if done.returncode:
        error = done.stderr.decode(errors="replace")
        raise SystemExit("build_zipapp: engine.py cannot be run:\n" + error)
    return marshal.loads(done.stdout)


# ---------------------------------------------------------------- archive


def source_bare(source: bytes) -> bytes:
    """engine.py without comments and docstrings, which are a third; no line moves.

    What tells the sections apart stays: see sections_of.
    """
    import io
    import tokenize

    lines = source.decode().splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source.decode()).readline):
        row, column = token.start
        if token.type == tokenize.COMMENT and " -- " not in token.string + lines[row]:
            lines[row - 1] = lines[row - 1][:column].rstrip()
    for node in ast.walk(ast.parse(source)):
        if (isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
                and ast.get_docstring(node, clean=False) is not None):
            text = node.body[0]
            lines[text.lineno - 1:text.end_lineno] = [""] * (text.end_lineno - text.lineno + 1)
            if len(node.body) == 1:
                lines[text.lineno - 1] = " " * text.col_offset + "pass"
    return ("\n".join(lines) + "\n").encode()


def file_bytes(name: str) -> bytes:
    with open(os.path.join(TOP, name), "rb") as file:
        return file.read()


def members(cache: str, pythons: list[str], vendored: bool) -> list[tuple[str, bytes, bool]]:
    """(name, content, stored) of the archive, in order; the build id is made of all of them."""
    source = source_bare(file_bytes("engine.py"))
    sources = vendored_modules(cache) if vendored else {}
    made = {}
    for python in pythons:
        tag, magic, codes = byte_code(python, {"engine": (False, source), **sources})
        made[tag] = (magic, codes)
    help_text, filters = rendered(source)
    rows = [("help", help_text, True), ("seccomp", filters, False)]
    for tag, (magic, codes) in sorted(made.items()):
        rows.append((tag + "/engine", codes.pop("engine")[1], True))
        rows += [(f"{tag}/{part}", codes.pop(part)[1], True) for part in PARTS]
        if codes:
            rows.append((tag + "/vendored", xz(magic + marshal.dumps(codes, 2)), True))
    rows.append(("engine.py", source, False))
    packer = own_source(file_bytes("build_zipapp.py"), PACKER).encode()
    rows.append(("packer.py", source_bare(packer), False))
    if vendored:
        rows.append(("vendored", xz(marshal.dumps(sources, 2)), True))
        rows += [
            ("zstd-" + machine, zstd_solid(cache, machine), True)
            for machine in ("aarch64", "x86_64")
        ]
    rows += [
        (name, text, False)
        for name, text in sorted(
            {"LICENSE": file_bytes("LICENSE"), **(licences(cache) if vendored else {})}.items()
        )
    ]
    build = hashlib.sha256(MAIN.encode())
    for name, data, _ in rows:
        build.update(b"%s %d\n" % (name.encode(), len(data)) + data)
    main = MAIN.replace("@BUILD@", build.hexdigest()[:32]).encode()
    _, magic, codes = byte_code(pythons[0], {"__main__": (False, main)})
    return [
        ("__main__.py", main, True),
        ("__main__.pyc", magic + b"\1" + bytes(11) + codes["__main__"][1], True),
        *rows,
    ]


def archive_write(path: str, rows: list[tuple[str, bytes, bool]]) -> None:
    when = time.gmtime(max(int(os.environ.get("SOURCE_DATE_EPOCH", "0")), 315_532_800))[
        :6
    ]  # zip begins in 1980
    beside = f"{path}.{os.getpid()}"
    with open(beside, "wb") as file:
        file.write(b"#!/usr/bin/env python3\n")
        with zipfile.ZipFile(file, "w") as archive:
            for name, data, stored in rows:
                info = zipfile.ZipInfo(name, when)
                info.create_system, info.external_attr = 3, 0o100644 << 16
                info.compress_type = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
                archive.writestr(info, data, compresslevel=9)
    os.chmod(beside, 0o755)
    os.rename(beside, path)


def options_parse(argv: list[str]) -> dict:
    import argparse

    parser = argparse.ArgumentParser(prog="build_zipapp.py", description="Builds engine.pyz.")
    parser.add_argument("-o", "--output", default=os.path.join(TOP, "engine.pyz"), metavar="FILE")
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="PATH",
        help="another Python to make byte code for; may be repeated",
    )
    parser.add_argument(
        "--cache",
        default=os.path.join(TOP, ".build"),
        metavar="DIR",
        help="where wheels are kept between builds (default .build)",
    )
    parser.add_argument("--no-vendored", action="store_true", help="leave pyroute2 and pyzstd out")
    parser.add_argument(
        "--need-vendored", action="store_true", help="fail where they cannot be fetched"
    )
    return vars(parser.parse_args(argv))


def main(argv: list[str]) -> int:
    if argv in (["--compile"], ["--render"]):
        (compile_pipe if argv == ["--compile"] else render_pipe)()
        return 0
    options = options_parse(argv)
    reason = "asked to" if options["no_vendored"] else wheels_ensure(options["cache"])
    if reason and options["need_vendored"]:
        say(reason)
        return 1
    if reason:
        say(f"built without pyroute2 and pyzstd ({reason}): containers run all the same")
    rows = members(options["cache"], [sys.executable, *options["python"]], not reason)
    archive_write(options["output"], rows)
    size = os.path.getsize(options["output"])
    print(
        f"{options['output']}: {size:,} bytes, byte code for "
        + ", ".join(name.partition("/")[0] for name, *_ in rows if name.endswith("/engine"))
    )
    if size > LIMIT:
        say(f"larger than {LIMIT:,} bytes")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
