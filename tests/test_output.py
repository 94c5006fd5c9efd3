"""output: listings, templates of objects, progress."""

from __future__ import annotations

import engine
import pytest

NOW = 1_764_000_000
ID = "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945"


@pytest.fixture(autouse=True)
def zone(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    engine.time.tzset()


@pytest.fixture
def show():
    def make(**options):
        made = engine.Show(**options)
        made.now = NOW
        return made
    return make


def container(**changes):
    return {"Id": ID, "Names": ["/brave_turing"], "Image": "busybox", "ImageID": "sha256:" + "a" * 64,
            "Command": "sh -c 'sleep 1000; echo done'", "Created": NOW - 125, "Ports": [],
            "Labels": {"b": "2", "a": "1"}, "State": "running", "Status": "Up 2 minutes",
            "HostConfig": {"NetworkMode": "none"}, "NetworkSettings": {"Networks": {"none": {}}},
            "Mounts": [], **changes}


def image(**changes):
    return {"Id": "sha256:" + ID, "RepoTags": ["busybox:latest"], "RepoDigests": [],
            "Created": NOW - 7200, "Size": 4261550, "SharedSize": -1, "Containers": -1,
            "Labels": None, "ParentId": "", **changes}


# --- tables ---

def test_ps_table(show):
    assert engine.containers_text([container()], show=show()) == (
        "CONTAINER ID   IMAGE     COMMAND                  CREATED         STATUS         PORTS     NAMES\n"
        "4f53cda18c2b   busybox   \"sh -c 'sleep 1000; …\"   2 minutes ago   Up 2 minutes             "
        "brave_turing\n")


def test_ps_without_containers(show):
    assert engine.containers_text([], show=show()) == (
        "CONTAINER ID   IMAGE     COMMAND   CREATED   STATUS    PORTS     NAMES\n")


def test_ps_size_is_the_last_column(show):
    text = engine.containers_text([container(SizeRw=2, SizeRootFs=4261552)], show=show(), size=True)
    assert text.splitlines()[0].endswith("NAMES          SIZE")
    assert text.splitlines()[1].endswith("brave_turing   2B (virtual 4.26MB)")


@pytest.mark.parametrize("format", ["", "table", "raw-is-ignored {{.Names}}"])
def test_ps_quiet(show, format):
    assert engine.containers_text([container()], show=show(), quiet=True, format=format) == "4f53cda18c2b\n"
    assert engine.containers_text([container()], show=show(truncate=False), quiet=True,
                                  format=format) == ID + "\n"


def test_ps_raw(show):
    assert engine.containers_text([container(Labels={})], show=show(), format="raw") == (
        "container_id: 4f53cda18c2b\nimage: busybox\ncommand: \"sh -c 'sleep 1000; …\"\n"
        f"created_at: {engine.time_text_local((NOW - 125) * 10**9)}\nstate: running\nstatus: Up 2 minutes\n"
        "names: brave_turing\nlabels:\nports:\n\n")
    assert engine.containers_text([container()], show=show(), format="raw",
                                  quiet=True) == "container_id: 4f53cda18c2b\n"


def test_json_lines_escape_as_go_does(show):
    text = engine.images_text([image(RepoTags=[])], show=show(), format="json")
    assert text == (
        '{"Containers":"N/A","CreatedAt":"2025-11-24 14:00:00 +0000 UTC","CreatedSince":"2 hours ago",'
        '"Digest":"\\u003cnone\\u003e","ID":"4f53cda18c2b","Repository":"\\u003cnone\\u003e",'
        '"SharedSize":"N/A","Size":"4.26MB","Tag":"\\u003cnone\\u003e","UniqueSize":"N/A",'
        '"VirtualSize":"4.262MB"}\n')


@pytest.mark.parametrize(("image_name", "shown"), [
    ("busybox", "busybox"), ("busybox:1@sha256:" + "b" * 64, "busybox:1"),
    ("docker.io/library/busybox:1", "busybox:1"), ("docker.io/a/b", "a/b"),
    ("sha256:" + "a" * 64, "a" * 12), ("", "<no image>")])
def test_ps_image_name(show, image_name, shown):
    assert engine.containers_text([container(Image=image_name)], show=show()).splitlines()[1].split("   ")[1] == shown


def test_ps_names_prefer_the_container_over_its_links(show):
    linked = container(Names=["/web/db", "/db"])
    assert "web/db" not in engine.containers_text([linked], show=show())
    assert "web/db,db" in engine.containers_text([linked], show=show(truncate=False))


@pytest.mark.parametrize(("ports", "text"), [
    (None, ""),
    ([{"PrivatePort": 80, "Type": "tcp"}], "80/tcp"),
    ([{"PrivatePort": 81, "Type": "tcp"}, {"PrivatePort": 80, "Type": "tcp"}], "80-81/tcp"),
    ([{"PrivatePort": 80, "Type": "tcp"}, {"PrivatePort": 90, "Type": "tcp"}], "80/tcp, 90/tcp"),
    ([{"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"}], "0.0.0.0:8080->80/tcp"),
    ([{"IP": "::", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"}], "[::]:8080->80/tcp"),
    ([{"IP": "0.0.0.0", "PrivatePort": port, "PublicPort": port, "Type": "udp"} for port in (80, 81, 82)],
     "0.0.0.0:80-82->80-82/udp"),
])
def test_ports(ports, text):
    assert engine.ports_text(ports) == text


@pytest.mark.parametrize(("text", "width", "cut"), [
    ("abc", 3, "abc"), ("abcd", 3, "ab…"), ("", 5, ""), ("ééééé", 4, "ééé…"),
    ("日本語日本語", 5, "日本…"), ("日本", 4, "日本")])
def test_ellipsis(text, width, cut):
    assert engine.ellipsis(text, width) == cut


def test_columns_end_where_a_line_lacks_them():
    assert engine.text_align("a\tb\tc\naaaaaaaaaa\tb\tc\nx\nlonglonglonglong\tb") == (
        "a            b         c\naaaaaaaaaa   b         c\nx\nlonglonglonglong   b\n")


def test_wide_characters_take_two_cells():
    assert engine.tabs_align([["日本語日本", "x"], ["a" * 10, "x"]]) == "日本語日本   x\naaaaaaaaaa   x\n"


# --- images ---

def rows(images, **options):
    return [(row["Repository"], row["Tag"], row["Digest"]) for row in engine.image_rows(images, **options)]


def test_images_one_row_per_tag():
    digest = "sha256:" + "c" * 64
    both = image(RepoTags=["a:1", "a:2", "reg:5000/b:1"], RepoDigests=[f"a@{digest}", f"z@{digest}"])
    assert rows([both]) == [("a", "1", "<none>"), ("a", "2", "<none>"), ("reg:5000/b", "1", "<none>"),
                            ("z", "<none>", "")]
    assert rows([both], digests=True) == [("a", "1", digest), ("a", "2", digest),
                                          ("reg:5000/b", "1", "<none>"), ("z", "<none>", digest)]


@pytest.mark.parametrize("names", [{"RepoTags": [], "RepoDigests": []}, {"RepoTags": None, "RepoDigests": None},
                                   {"RepoTags": ["<none>:<none>"], "RepoDigests": ["<none>@<none>"]}])
def test_images_without_a_name(show, names):
    text = engine.images_text([image(**names)], show=show())
    assert text == ("REPOSITORY   TAG       IMAGE ID       CREATED       SIZE\n"
                    "<none>       <none>    4f53cda18c2b   2 hours ago   4.26MB\n")


def test_history(show):
    step = {"Id": "<missing>", "Created": 0, "CreatedBy": "/bin/sh -c #(nop)\tCMD [\"sh\"] " + "x" * 40,
            "Size": 0, "Comment": "", "Tags": None}
    steps = [{**step, "Id": "sha256:" + ID, "Created": NOW - 60, "CreatedBy": "", "Size": 4261550,
              "Comment": "Imported from -"}, step]
    assert engine.history_text(steps, show=show()) == (
        "IMAGE          CREATED              CREATED BY                                      SIZE      COMMENT\n"
        "4f53cda18c2b   About a minute ago                                                   4.26MB    Imported from -\n"
        "<missing>      N/A                  /bin/sh -c #(nop) CMD [\"sh\"] xxxxxxxxxxxxxxx…   0B        \n")
    exact = engine.history_text(steps, show=show(human=False, truncate=False)).splitlines()[1]
    assert "2025-11-24T15:59:00Z" in exact and "4261550" in exact


# --- objects ---

def inspect(capsys, objects, format=""):
    def fetch(ref):
        if ref not in objects:
            raise engine.NotFound(f"No such object: {ref}")
        return objects[ref]
    errors = engine.inspect_show(["a", "nope", "b"], fetch, format)
    assert [str(error) for error in errors] == [f"No such object: {ref}" for ref in ("a", "nope", "b")
                                                if ref not in objects]
    return capsys.readouterr().out


def test_inspect_layouts(capsys):
    assert inspect(capsys, {}) == "[]\n"
    assert inspect(capsys, {"a": {"A": [], "B": {"c": 1}}}) == (
        '[\n    {\n        "A": [],\n        "B": {\n            "c": 1\n        }\n    }\n]\n')
    assert inspect(capsys, {"a": {"A": 1}, "b": {}}, "json") == '[{"A":1},{}]\n'
    assert inspect(capsys, {}, "json") == "[]\n"


# --- progress ---

def drawn(messages, width=0):
    out = []
    progress = engine.Progress(out.append, width)
    for message in messages:
        progress.show(message)
    return "".join(out)


def test_progress_without_a_terminal():
    assert drawn([{"status": "Loading layer", "progressDetail": {"current": 1, "total": 2}, "id": "abc"},
                  {"stream": "Loaded image: a:1\n"}, {"status": "sha256:1"}, {"aux": {"ID": "x"}},
                  {"id": "abc", "status": "Done", "progressDetail": {}}]) == (
        "Loaded image: a:1\nsha256:1\nabc: Done\n")


def test_progress_on_a_terminal():
    assert drawn([{"status": "Loading layer", "progressDetail": {"current": 1024, "total": 2048}, "id": "abc"},
                  {"status": "Loading layer", "progressDetail": {"current": 2048, "total": 2048}, "id": "abc"},
                  {"stream": "Loaded image: a:1\n"}], 120) == (
        "\n\x1b[1A\x1b[2K\rabc: Loading layer [=========================>                         ]"
        "  1.024kB/2.048kB\r\x1b[1B"
        "\x1b[1A\x1b[2K\rabc: Loading layer [==================================================>]"
        "  2.048kB/2.048kB\r\x1b[1B"
        "Loaded image: a:1\n")


@pytest.mark.parametrize(("detail", "width", "text"), [
    ({}, 120, ""), ({"current": 1000}, 120, "     1kB"), ({"current": 5, "units": "files"}, 120, "5 files"),
    ({"current": 1, "total": 2, "units": "files"}, 80, "1/2 files"),
    ({"current": 3000, "total": 2000}, 80, "     3kB"), ({"current": 1, "total": 2, "hidecounts": True}, 80, "")])
def test_progress_numbers(detail, width, text):
    assert engine.progress_text(detail, width) == text


@pytest.mark.parametrize("message", [{"errorDetail": {"message": "no space"}, "error": "no space"}, {"error": "no space"}])
def test_progress_raises_the_error(message):
    with pytest.raises(engine.EngineError, match="no space"):
        drawn([message])
