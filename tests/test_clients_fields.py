"""Every field of every reply about containers, execs and images, for each version of the API.

data/clients/fields.tsv holds what Docker's API descriptions 1.25 to 1.51 say of a field: its type,
and the first and last version that has it. Where Docker's program differs from its own description,
a table here says how.
"""

from __future__ import annotations

import csv

import conftest
import pytest
from clients_help import api, ours  # noqa: F401

VERSIONS = ("1.24", "1.29", "1.36", "1.41", "1.42", "1.43", "1.44", "1.45", "1.47", "1.49", "1.50",
            "1.51")  # fmt: skip
FIELDS = conftest.TOP / "tests" / "data" / "clients" / "fields.tsv"
#: What is not in a reply unless something asks for it: Go leaves it out when it is empty, only the
#: containerd image store has it, or it went long before 1.24. A path stands for all below it too.
OPTIONAL = """
*: [].ImageManifestDescriptor ImageManifestDescriptor [].Descriptor Descriptor
*: [].Manifests Manifests
*: Config.ArgsEscaped Config.ExposedPorts Config.MacAddress Config.NetworkDisabled Config.Shell
*: Config.StopSignal Config.StopTimeout Config.Healthcheck
GET /containers/json: [].SizeRw
GET /containers/{id}/json: HostConfig.DiskQuota HostConfig.KernelMemory HostConfig.KernelMemoryTCP
GET /containers/{id}/json: HostConfig.Mounts HostConfig.StorageOpt Node
GET /containers/{id}/json: NetworkSettings.Address NetworkSettings.PortMapping
GET /exec/{id}/json: ProcessConfig.user
GET /images/{name}/json: OsVersion Variant ContainerConfig.ArgsEscaped
GET /images/{name}/json: ContainerConfig.ExposedPorts ContainerConfig.MacAddress
GET /images/{name}/json: ContainerConfig.Healthcheck ContainerConfig.Shell
GET /images/{name}/json: ContainerConfig.NetworkDisabled ContainerConfig.StopSignal
GET /images/{name}/json: ContainerConfig.StopTimeout
"""
#: What Docker's program answers in every version, whatever the descriptions say.
ALWAYS = """
GET /containers/json: [].NetworkSettings
GET /containers/{id}/json: everything
GET /exec/{id}/json: CanRemove DetachKeys
GET /images/{name}/json: Config.Cmd Metadata
"""
#: What is null where the descriptions do not say so.
NULL = """
GET /containers/{id}/json: HostConfig.MemorySwappiness
GET /exec/{id}/json: ExitCode
"""


def number(version):
    return tuple(int(part) for part in version.split("."))


def described():
    """{endpoint: {field: (type, is nullable, since, last)}}"""
    found = {}
    with open(FIELDS, newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            since, last = (number(row[key]) if row[key] else None for key in ("since", "last"))
            found.setdefault(row["endpoint"], {})[row["field"]] = (
                row["type"],
                bool(row["nullable"]),
                since or (1, 0),
                last or (9, 0),
            )
    return found


KINDS = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array",
         dict: "object", type(None): "null"}  # fmt: skip


def walk(value, path, known, seen):
    """Fills seen: {field: kinds of its values}; keys of a map are {key}."""
    if path:
        seen.setdefault(path, set()).add(KINDS[type(value)])
    if isinstance(value, list):
        for item in value:
            walk(item, path + "[]", known, seen)
    elif isinstance(value, dict):
        is_map = path + ".{key}" in known
        for key, item in value.items():
            name = "{key}" if is_map else key
            walk(item, f"{path}.{name}" if path else name, known, seen)


def listed(table, endpoint, field):
    """Whether a table of fields has this one, or one that it lies below."""
    for line in table.split("\n"):
        if line:
            where, _, fields = line.partition(": ")
            if where in ("*", endpoint):
                for name in fields.split():
                    if name == "everything":
                        return True
                    if field == name or field.startswith((name + ".", name + "[", name + "{")):
                        return True
    return False


def faults(endpoint, version, value, fields):
    seen = {}
    walk(value, "", fields, seen)
    asked = number(version)
    for field, kinds in seen.items():
        if field not in fields:
            if field != "[]":
                yield f"not described: {field} {kinds}"
            continue
        kind, nullable, since, last = fields[field]
        may_be_null = nullable or kind in ("array", "object") or listed(NULL, endpoint, field)
        allowed = {kind, "null"} if may_be_null else {kind}
        if kinds - allowed:
            yield f"{field} is {kinds}, not {allowed}"
        if not since <= asked <= last and not listed(ALWAYS, endpoint, field):
            yield f"not in {version}: {field}"
    for field, (_, _, since, last) in fields.items():
        parent = field.rpartition("[]")[0] if field.endswith("[]") else field.rpartition(".")[0]
        there = not parent or seen.get(parent, {"null"}) - {"null"}
        if field.endswith(("[]", "{key}")) or field in seen or not there:
            continue
        if since <= asked <= last and not listed(OPTIONAL, endpoint, field):
            yield f"missing in {version}: {field}"


@pytest.fixture(scope="module")
def shown(ours):  # noqa: F811
    """ask(endpoint, version) -> value, of an engine with a container that has everything."""
    body = {
        "Image": "busybox",
        "Cmd": ["sleep", "1000"],
        "Labels": {"a": "b"},
        "Tty": True,
        "Healthcheck": {"Test": ["CMD", "true"], "Interval": 10**11},
        "HostConfig": {
            "NetworkMode": "none",
            "Annotations": {"c": "d"},
            "LogConfig": {"Type": "json-file", "Config": {"max-size": "1m"}},
            "Tmpfs": {"/t": ""},
            "Sysctls": {"net.ipv4.ip_forward": "1"},
            "Ulimits": [{"Name": "nofile", "Soft": 99, "Hard": 99}],
            "Init": True,
        },
    }
    made = api(ours, "POST", "/containers/create?name=whole", body).json()
    api(ours, "POST", "/containers/whole/start")
    made_exec = api(ours, "POST", "/containers/whole/exec", {"Cmd": ["true"]}).json()
    paths = {
        "POST /containers/create": lambda v: made,
        "POST /containers/{id}/exec": lambda v: made_exec,
        "GET /containers/json": lambda v: f"/v{v}/containers/json?size=1",
        "GET /containers/{id}/json": lambda v: f"/v{v}/containers/whole/json?size=1",
        "GET /containers/{id}/changes": lambda v: f"/v{v}/containers/whole/changes",
        "GET /containers/{id}/top": lambda v: f"/v{v}/containers/whole/top",
        "GET /exec/{id}/json": lambda v: f"/v{v}/exec/{made_exec['Id']}/json",
        "GET /images/json": lambda v: f"/v{v}/images/json?shared-size=1",
        "GET /images/{name}/json": lambda v: f"/v{v}/images/busybox/json",
        "GET /images/{name}/history": lambda v: f"/v{v}/images/busybox/history",
        "POST /containers/prune": lambda v: f'/v{v}/containers/prune?filters={{"label":["x"]}}',
        "POST /images/prune": lambda v: f"/v{v}/images/prune",
    }

    def ask(endpoint, version):
        what = paths[endpoint](version)
        if not isinstance(what, str):
            return what
        return api(ours, endpoint.split()[0], what).json()

    yield ask
    api(ours, "DELETE", "/containers/whole?force=1")


@pytest.mark.root
def test_fields(shown):
    wrong = []
    for endpoint, fields in described().items():
        if endpoint in ("POST /containers/{id}/wait", "DELETE /images/{name}"):
            continue
        for version in VERSIONS:
            value = shown(endpoint, version)
            wrong += [f"{endpoint} {fault}" for fault in faults(endpoint, version, value, fields)]
    assert not wrong, "\n" + "\n".join(sorted(set(wrong)))


#: (first version with the field, first without it, endpoint, field): what Docker's program cuts.
CUT = (
    ("1.46", "9.0", "GET /containers/json", "[].HostConfig.Annotations"),
    ("1.24", "1.44", "GET /images/json", "[].VirtualSize"),
    ("1.24", "1.44", "GET /images/{name}/json", "VirtualSize"),
    ("1.24", "1.45", "GET /images/{name}/json", "ContainerConfig"),
    ("1.24", "1.50", "GET /images/{name}/json", "Config.Hostname"),
)


@pytest.mark.root
@pytest.mark.parametrize("row", CUT, ids=lambda row: row[3])
def test_versions_of_a_field(shown, row):
    since, gone, endpoint, field = row
    for version in VERSIONS:
        seen = {}
        walk(shown(endpoint, version), "", described()[endpoint], seen)
        assert (field in seen) == (number(since) <= number(version) < number(gone)), version
