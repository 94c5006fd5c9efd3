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
    return {
        "Id": ID,
        "Names": ["/brave_turing"],
        "Image": "busybox",
        "ImageID": "sha256:" + "a" * 64,
        "Command": "sh -c 'sleep 1000; echo done'",
        "Created": NOW - 125,
        "Ports": [],
        "Labels": {"b": "2", "a": "1"},
        "State": "running",
        "Status": "Up 2 minutes",
        "HostConfig": {"NetworkMode": "none"},
        "NetworkSettings": {"Networks": {"none": {}}},
        "Mounts": [],
        **changes,
    }


def image(**changes):
    return {
        "Id": "sha256:" + ID,
        "RepoTags": ["busybox:latest"],
        "RepoDigests": [],
        "Created": NOW - 7200,
        "Size": 4261550,
        "SharedSize": -1,
        "Containers": -1,
        "Labels": None,
        "ParentId": "",
        **changes,
    }


# --- tables ---


def test_ps_table(show):
    assert engine.containers_text([container()], show=show()) == (
        "CONTAINER ID   IMAGE     COMMAND                  CREATED         STATUS         PORTS     NAMES\n"  # noqa: E501
        '4f53cda18c2b   busybox   "sh -c \'sleep 1000; …"   2 minutes ago   Up 2 minutes             '  # noqa: E501
        "brave_turing\n"
    )


def test_ps_without_containers(show):
    assert engine.containers_text([], show=show()) == (
        "CONTAINER ID   IMAGE     COMMAND   CREATED   STATUS    PORTS     NAMES\n"
    )


def test_ps_size_is_the_last_column(show):
    text = engine.containers_text([container(SizeRw=2, SizeRootFs=4261552)], show=show(), size=True)
    assert text.splitlines()[0].endswith("NAMES          SIZE")
    assert text.splitlines()[1].endswith("brave_turing   2B (virtual 4.26MB)")


@pytest.mark.parametrize("format", ["", "table", "raw-is-ignored {{.Names}}"])
def test_ps_quiet(show, format):
    assert (
        engine.containers_text([container()], show=show(), quiet=True, format=format)
        == "4f53cda18c2b\n"
    )
    assert (
        engine.containers_text([container()], show=show(truncate=False), quiet=True, format=format)
        == ID + "\n"
    )


def test_ps_raw(show):
    assert engine.containers_text([container(Labels={})], show=show(), format="raw") == (
        'container_id: 4f53cda18c2b\nimage: busybox\ncommand: "sh -c \'sleep 1000; …"\n'
        f"created_at: {engine.time_text_local((NOW - 125) * 10**9)}\nstate: running\nstatus: Up 2 minutes\n"  # noqa: E501
        "names: brave_turing\nlabels:\nports:\n\n"
    )
    assert (
        engine.containers_text([container()], show=show(), format="raw", quiet=True)
        == "container_id: 4f53cda18c2b\n"
    )


def test_json_lines_escape_as_go_does(show):
    text = engine.images_text([image(RepoTags=[])], show=show(), format="json")
    assert text == (
        '{"Containers":"N/A","CreatedAt":"2025-11-24 14:00:00 +0000 UTC","CreatedSince":"2 hours ago",'  # noqa: E501
        '"Digest":"\\u003cnone\\u003e","ID":"4f53cda18c2b","Repository":"\\u003cnone\\u003e",'
        '"SharedSize":"N/A","Size":"4.26MB","Tag":"\\u003cnone\\u003e","UniqueSize":"N/A",'
        '"VirtualSize":"4.262MB"}\n'
    )


@pytest.mark.parametrize(
    ("image_name", "shown"),
    [
        ("busybox", "busybox"),
        ("busybox:1@sha256:" + "b" * 64, "busybox:1"),
        ("docker.io/library/busybox:1", "busybox:1"),
        ("docker.io/a/b", "a/b"),
        ("sha256:" + "a" * 64, "a" * 12),
        ("", "<no image>"),
    ],
)
def test_ps_image_name(show, image_name, shown):
    assert (
        engine.containers_text([container(Image=image_name)], show=show())
        .splitlines()[1]
        .split("   ")[1]
        == shown
    )


def test_ps_names_prefer_the_container_over_its_links(show):
    linked = container(Names=["/web/db", "/db"])
    assert "web/db" not in engine.containers_text([linked], show=show())
    assert "web/db,db" in engine.containers_text([linked], show=show(truncate=False))


@pytest.mark.parametrize(
    ("ports", "text"),
    [
        (None, ""),
        ([{"PrivatePort": 80, "Type": "tcp"}], "80/tcp"),
        ([{"PrivatePort": 81, "Type": "tcp"}, {"PrivatePort": 80, "Type": "tcp"}], "80-81/tcp"),
        (
            [{"PrivatePort": 80, "Type": "tcp"}, {"PrivatePort": 90, "Type": "tcp"}],
            "80/tcp, 90/tcp",
        ),
        (
            [{"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"}],
            "0.0.0.0:8080->80/tcp",
        ),
        ([{"IP": "::", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"}], "[::]:8080->80/tcp"),
        (
            [
                {"IP": "0.0.0.0", "PrivatePort": port, "PublicPort": port, "Type": "udp"}
                for port in (80, 81, 82)
            ],
            "0.0.0.0:80-82->80-82/udp",
        ),
    ],
)
def test_ports(ports, text):
    assert engine.ports_text(ports) == text


# --- templates ---


def test_ps_templates(show):
    busy = container(
        Mounts=[{"Name": "v" * 20, "Driver": "local"}, {"Source": "/data", "Driver": ""}],
        SizeRw=5,
        ImageManifestDescriptor={"platform": {"os": "linux", "architecture": "arm64"}},
    )
    for form, text in (
        ("{{.ID}}|{{.Names}}", "4f53cda18c2b|brave_turing"),
        ("{{.Labels}}", "a=1,b=2"),
        ('{{.Label "a"}}{{.Label "z"}}', "1"),
        ("{{.Mounts}}", "v" * 14 + "…,/data"),
        ("{{.LocalVolumes}}", "1"),
        ("{{.Networks}}", "none"),
        ("{{.Size}}", "5B"),
        ("{{.State}} {{.Status}}", "running Up 2 minutes"),
        ("{{.Platform}}", "linux/arm64"),
        ("{{json .Names}}", '"brave_turing"'),
        ("{{.RunningFor}}", "2 minutes ago"),
        ("{{.CreatedAt}}", "2025-11-24 15:57:55 +0000 UTC"),
        ("{{upper .Image}}", "BUSYBOX"),
    ):
        assert engine.containers_text([busy], show=show(), format=form) == text + "\n"


def test_table_templates(show):
    assert engine.containers_text(
        [container()], show=show(), format=r'table {{.ID}}\t{{.Label "com.my-key"}}\t{{.Names}}'
    ) == ("CONTAINER ID   my key    NAMES\n4f53cda18c2b             brave_turing\n")
    assert engine.images_text([image()], show=show(), format="table {{.ID}}", digests=True) == (
        "IMAGE ID       DIGEST\n4f53cda18c2b   <none>\n"
    )


def test_bad_templates(show):
    with pytest.raises(
        engine.TemplateError,
        match=r"template parsing error: template: :1:2: executing \"\" at <.Nope>: "
        r"can't evaluate field Nope in type \*formatter.imageContext",
    ):
        engine.images_text([image()], show=show(), format="{{.Nope}}")
    with pytest.raises(
        engine.BadTemplate, match="^template parsing error: template: version:1: unclosed action$"
    ) as bad:
        engine.template_parse("{{.Nope", "version")
    assert bad.value.exit == 64


@pytest.mark.parametrize(
    ("format", "message"),
    [
        ("{{.Nope", "failed to parse template: template: :1: unclosed action"),
        (
            "{{.Nope}}",
            'failed to execute template: template: :1:2: executing "" at <.Nope>: can\'t evaluate field Nope in '  # noqa: E501
            "type *formatter.ContainerContext",
        ),
        (
            "{{.Size.x}}",
            'failed to execute template: template: :1:7: executing "" at <.Size.x>: can\'t evaluate field x in '  # noqa: E501
            "type string",
        ),
    ],
)
def test_ps_format_is_checked_first(format, message):
    with pytest.raises(engine.EngineError) as bad:
        engine.containers_format_check(format)
    assert str(bad.value) == message


def test_ps_format_tells_about_sizes():
    assert engine.containers_format_check("table {{.Size}}") is True
    assert engine.containers_format_check("{{json .}}") is True
    assert engine.containers_format_check("{{json .ID}}") is False
    assert engine.containers_format_check("json") is False
    assert engine.containers_format_check("{{.ID}} {{range 3}}x{{end}}") is False


# --- images ---


def rows(images, **options):
    return [
        (row["Repository"], row["Tag"], row["Digest"])
        for row in engine.image_rows(images, **options)
    ]


def test_images_one_row_per_tag():
    digest = "sha256:" + "c" * 64
    both = image(
        RepoTags=["a:1", "a:2", "reg:5000/b:1"], RepoDigests=[f"a@{digest}", f"z@{digest}"]
    )
    assert rows([both]) == [
        ("a", "1", "<none>"),
        ("a", "2", "<none>"),
        ("reg:5000/b", "1", "<none>"),
        ("z", "<none>", ""),
    ]
    assert rows([both], digests=True) == [
        ("a", "1", digest),
        ("a", "2", digest),
        ("reg:5000/b", "1", "<none>"),
        ("z", "<none>", digest),
    ]


@pytest.mark.parametrize(
    "names",
    [
        {"RepoTags": [], "RepoDigests": []},
        {"RepoTags": None, "RepoDigests": None},
        {"RepoTags": ["<none>:<none>"], "RepoDigests": ["<none>@<none>"]},
    ],
)
def test_images_without_a_name(show, names):
    text = engine.images_text([image(**names)], show=show())
    assert text == (
        "REPOSITORY   TAG       IMAGE ID       CREATED       SIZE\n"
        "<none>       <none>    4f53cda18c2b   2 hours ago   4.26MB\n"
    )


def test_history(show):
    step = {
        "Id": "<missing>",
        "Created": 0,
        "CreatedBy": '/bin/sh -c #(nop)\tCMD ["sh"] ' + "x" * 40,
        "Size": 0,
        "Comment": "",
        "Tags": None,
    }
    steps = [
        {
            **step,
            "Id": "sha256:" + ID,
            "Created": NOW - 60,
            "CreatedBy": "",
            "Size": 4261550,
            "Comment": "Imported from -",
        },
        step,
    ]
    assert engine.history_text(steps, show=show()) == (
        "IMAGE          CREATED              CREATED BY                                      SIZE      COMMENT\n"  # noqa: E501
        "4f53cda18c2b   About a minute ago                                                   4.26MB    Imported from -\n"  # noqa: E501
        '<missing>      N/A                  /bin/sh -c #(nop) CMD ["sh"] xxxxxxxxxxxxxxx…   0B        \n'  # noqa: E501
    )
    exact = engine.history_text(steps, show=show(human=False, truncate=False)).splitlines()[1]
    assert "2025-11-24T15:59:00Z" in exact and "4261550" in exact


# --- objects ---


def inspect(capsys, objects, format=""):
    def fetch(ref):
        if ref not in objects:
            raise engine.NotFound(f"No such object: {ref}")
        return objects[ref]

    errors = engine.inspect_show(["a", "nope", "b"], fetch, format)
    assert [str(error) for error in errors] == [
        f"No such object: {ref}" for ref in ("a", "nope", "b") if ref not in objects
    ]
    return capsys.readouterr().out


def test_inspect_layouts(capsys):
    assert inspect(capsys, {}) == "[]\n"
    assert inspect(capsys, {"a": {"A": [], "B": {"c": 1}}}) == (
        '[\n    {\n        "A": [],\n        "B": {\n            "c": 1\n        }\n    }\n]\n'
    )
    assert inspect(capsys, {"a": {"A": 1}, "b": {}}, "json") == '[{"A":1},{}]\n'
    assert inspect(capsys, {}, "json") == "[]\n"
    assert inspect(
        capsys, {"a": {"Id": "x", "B": [1]}, "b": {"Id": "y", "B": []}}, "{{.Id}}{{.ID}} {{len .B}}"
    ) == ("xx 1\nyy 0\n")
    assert inspect(capsys, {}, "{{.Id}}") == "\n"


def test_inspect_shows_the_others_when_a_template_fails(capsys):
    errors = engine.inspect_show(["a", "b"], {"a": {"Id": 1}, "b": {"Id": 2, "X": 3}}.get, "{{.X}}")
    assert capsys.readouterr().out == "3\n"
    assert [str(error) for error in errors] == [
        'template parsing error: template: :1:2: executing "" at <.X>: map has no entry for key "X"'
    ]


# --- progress ---


def drawn(messages, width=0):
    out = []
    progress = engine.Progress(out.append, width)
    for message in messages:
        progress.show(message)
    return "".join(out)


def test_progress_without_a_terminal():
    assert drawn(
        [
            {"status": "Loading layer", "progressDetail": {"current": 1, "total": 2}, "id": "abc"},
            {"stream": "Loaded image: a:1\n"},
            {"status": "sha256:1"},
            {"aux": {"ID": "x"}},
            {"id": "abc", "status": "Done", "progressDetail": {}},
        ]
    ) == ("Loaded image: a:1\nsha256:1\nabc: Done\n")


def test_progress_on_a_terminal():
    assert drawn(
        [
            {
                "status": "Loading layer",
                "progressDetail": {"current": 1024, "total": 2048},
                "id": "abc",
            },
            {
                "status": "Loading layer",
                "progressDetail": {"current": 2048, "total": 2048},
                "id": "abc",
            },
            {"stream": "Loaded image: a:1\n"},
        ],
        120,
    ) == (
        "\n\x1b[1A\x1b[2K\rabc: Loading layer [=========================>                         ]"
        "  1.024kB/2.048kB\r\x1b[1B"
        "\x1b[1A\x1b[2K\rabc: Loading layer [==================================================>]"
        "  2.048kB/2.048kB\r\x1b[1B"
        "Loaded image: a:1\n"
    )


@pytest.mark.parametrize(
    ("detail", "width", "text"),
    [
        ({}, 120, ""),
        ({"current": 1000}, 120, "     1kB"),
        ({"current": 5, "units": "files"}, 120, "5 files"),
        ({"current": 1, "total": 2, "units": "files"}, 80, "1/2 files"),
        ({"current": 3000, "total": 2000}, 80, "     3kB"),
        ({"current": 1, "total": 2, "hidecounts": True}, 80, ""),
    ],
)
def test_progress_numbers(detail, width, text):
    assert engine.progress_text(detail, width) == text


@pytest.mark.parametrize(
    "message",
    [{"errorDetail": {"message": "no space"}, "error": "no space"}, {"error": "no space"}],
)
def test_progress_raises_the_error(message):
    with pytest.raises(engine.EngineError, match="no space"):
        drawn([message])
