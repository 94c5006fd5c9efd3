"""cli_images: what the commands on images ask of the engine, and what they print."""

from __future__ import annotations

import io
import os

import engine
import pytest
from command_help import command_runner

ID = "sha256:4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945"
IMAGE = {
    "Id": ID,
    "RepoTags": ["busybox:latest", "other/x:1"],
    "RepoDigests": [],
    "Created": 1000,
    "Size": 1982298,
    "SharedSize": -1,
    "Containers": 1,
    "Labels": None,
    "ParentId": "",
}


class Fake:
    """A client that answers from a table {(method, path): value} and notes what was asked."""

    def __init__(self, answers):
        self.answers = answers
        self.asked = []
        self.body = b""

    def call(self, method, path, query=None, body=None):
        kept = {key: value for key, value in (query or {}).items() if value is not None}
        self.asked.append((method, path, kept))
        if hasattr(body, "read"):
            self.body = body.read(-1)
        answer = self.answers.get(
            (method, path), engine.NotFound(f"No such image: {''.join(path.split('/')[2:3])}")
        )
        if isinstance(answer, Exception):
            answer.from_engine = True
            raise answer
        return answer

    def get(self, path, query=None):
        return self.call("GET", path, query)

    def post(self, path, query=None, body=None):
        return self.call("POST", path, query, body)

    def delete(self, path, query=None):
        return self.call("DELETE", path, query)

    lines = stream = call


@pytest.fixture
def run(monkeypatch, capsys):
    def client(answers=None, fake=None):
        return fake or Fake(answers or {})

    return command_runner(monkeypatch, capsys, client)


# --- ls ---


def test_images(run):
    code, out, _, client = run("images", answers={("GET", "/images/json"): [IMAGE]})
    assert code == 0
    assert [line.split() for line in out.splitlines()] == [
        ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"],
        [
            "busybox",
            "latest",
            "4f53cda18c2b",
            *engine.ago(engine.time.time() - 1000).split(),
            "ago",
            "1.98MB",
        ],
        [
            "other/x",
            "1",
            "4f53cda18c2b",
            *engine.ago(engine.time.time() - 1000).split(),
            "ago",
            "1.98MB",
        ],
    ]
    assert client.asked == [("GET", "/images/json", {})]


def test_images_of_far_dates(run):
    """Go's zero time is shown as nothing; its Duration ends at 292 years."""
    for created, since in (
        (engine.TIME_ZERO_NS // engine.SECOND, ""),
        (-11_673_000_000, "292 years ago"),
        (253_402_300_799, "Less than a second ago"),
    ):
        answers = {("GET", "/images/json"): [{**IMAGE, "Created": created}]}
        _, out, _, _ = run("images", "--format", "{{.CreatedSince}}", answers=answers)
        assert out.splitlines()[0] == since


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_load_ends_by_unwinding(monkeypatch, name):
    """TERM and HUP run what cleans up, and end the command with 128 + n."""
    number = engine.signal_number(name)
    cleaned, told = os.pipe()

    class Loading(Fake):
        def lines(self, *_args, **_more):
            try:
                os.kill(os.getpid(), number)
                engine.time.sleep(10)
            finally:
                os.write(told, b"c")

    pid = os.fork()
    if not pid:
        monkeypatch.setattr(engine, "client_local", lambda *roots: Loading({}))
        os._exit(engine.cli_main(["load", "-i", "/dev/null"]))
    os.close(told)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 128 + number
    assert os.read(cleaned, 2) == b"c"
    os.close(cleaned)


def test_images_filters(run):
    code, out, _, client = run(
        "image",
        "ls",
        "-aq",
        "-f",
        "dangling=false",
        "-f",
        "label=a",
        "-f",
        "label=b",
        "busy*",
        answers={("GET", "/images/json"): []},
    )
    assert (code, out) == (0, "")
    assert client.asked == [
        (
            "GET",
            "/images/json",
            {
                "all": True,
                "filters": {"dangling": ["false"], "label": ["a", "b"], "reference": ["busy*"]},
            },
        )
    ]


def test_images_hint(run):
    hint = 'No images found matching "ls": did you mean "docker image ls"?'
    assert run("images", "ls", answers={("GET", "/images/json"): []})[2] == hint
    assert run("image", "ls", "ls", answers={("GET", "/images/json"): []})[2] == ""


@pytest.mark.parametrize(
    ("flag", "named"),
    [
        ("-q", "--quiet"),
        ("--no-trunc", "--no-trunc"),
        ("--digests", "--show-digest"),
        ("--format=x", "--format"),
    ],
)
def test_images_tree_refuses(run, flag, named):
    assert run("images", "--tree", flag)[:3] == (1, "", f"{named} is not yet supported with --tree")


def test_images_tree(run):
    out = run("images", "--tree", answers={("GET", "/images/json"): [IMAGE]})[1]
    assert [line.split() for line in out.splitlines()] == [
        ["IMAGE", "ID", "DISK", "USAGE", "USED"],
        ["busybox:latest", "4f53cda18c2b", "1.98MB", "✔"],
        ["└─", "other/x:1"],
    ]


# --- tag, rmi, inspect, history ---


def test_tag(run):
    code, out, _, client = run(
        "tag", "busybox:1", "localhost:5000/a/b", answers={("POST", "/images/busybox:1/tag"): None}
    )
    assert (code, out) == (0, "")
    assert client.asked == [
        ("POST", "/images/busybox:1/tag", {"repo": "localhost:5000/a/b", "tag": "latest"})
    ]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            "Bad",
            'Error parsing reference: "Bad" is not a valid repository/tag: invalid reference format: '  # noqa: E501
            "repository name (library/Bad) must be lowercase",
        ),
        ("a@sha256:" + "a" * 64, "refusing to create a tag with a digest reference"),
    ],
)
def test_tag_refuses(run, target, message):
    assert run("tag", "busybox", target)[:3] == (1, "", message)


def test_rmi(run):
    answers = {
        ("DELETE", "/images/a:1"): [{"Untagged": "a:1"}],
        ("DELETE", "/images/b"): [{"Untagged": "b:latest"}, {"Deleted": ID}],
    }
    code, out, err, client = run("rmi", "a:1", "nope", "b", answers=answers)
    assert (code, out) == (1, f"Untagged: a:1\nUntagged: b:latest\nDeleted: {ID}\n")
    assert err == "Error response from daemon: No such image: nope"
    assert client.asked[0] == ("DELETE", "/images/a:1", {})


def test_rmi_force(run):
    code, _, err, client = run("image", "rm", "-f", "--no-prune", "nope")
    assert (code, err) == (0, "Error response from daemon: No such image: nope")
    assert client.asked == [("DELETE", "/images/nope", {"force": True, "noprune": True})]
    assert (
        run(
            "rmi", "-f", "a", answers={("DELETE", "/images/a"): engine.Conflict("conflict: in use")}
        )[0]
        == 1
    )


def test_image_inspect(run):
    code, out, err, _ = run(
        "image", "inspect", "a", "nope", answers={("GET", "/images/a/json"): {"Id": ID}}
    )
    assert (code, out) == (1, f'[\n    {{\n        "Id": "{ID}"\n    }}\n]\n')
    assert err == "Error response from daemon: No such image: nope"


def test_history(run):
    step = {
        "Id": ID,
        "Created": 1_000_000_000,
        "CreatedBy": "",
        "Size": 1982298,
        "Comment": "hello",
        "Tags": [],
    }
    answers = {("GET", "/images/a/history"): [step]}
    assert run("history", "-q", "--no-trunc", "a", answers=answers)[1] == ID + "\n"
    out = run("history", "--human=false", "--no-trunc", "a", answers=answers)[1].splitlines()
    assert out[0].split() == ["IMAGE", "CREATED", "AT", "CREATED", "BY", "SIZE", "COMMENT"]
    assert out[1].split() == [ID, "2001-09-09T01:46:40Z", "1982298", "hello"]


# --- archives ---

IMPORTED = {("POST", "/images/create"): [{"status": ID}]}


def test_import(run, tmp_path):
    (tmp_path / "x.tar").write_bytes(b"tar")
    fake = Fake(IMPORTED)
    code, out, _, _ = run(
        "import",
        "-c",
        "ENV A=b",
        "-c",
        'CMD ["sh"]',
        "-m",
        "hi",
        str(tmp_path / "x.tar"),
        "name",
        fake=fake,
    )
    assert (code, out, fake.body) == (0, ID + "\n", b"tar")
    assert fake.asked == [
        (
            "POST",
            "/images/create",
            {
                "fromSrc": "-",
                "repo": "name",
                "tag": "latest",
                "changes": ["ENV A=b", 'CMD ["sh"]'],
                "message": "hi",
            },
        )
    ]


def test_import_url_is_for_the_engine(run):
    fake = Fake(IMPORTED)
    assert run("import", "http://x/y.tar", fake=fake)[0] == 0
    assert fake.asked == [("POST", "/images/create", {"fromSrc": "http://x/y.tar"})]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("import", "nofile"), "open nofile: no such file or directory"),
        (("load", "-i", "nofile"), "open nofile: no such file or directory"),
        (
            ("import", "-", "Bad:x"),
            "invalid reference format: repository name (library/Bad) must be lowercase",
        ),
    ],
)
def test_archives_refused_before_anything_is_sent(run, words, message):
    code, out, err, client = run(*words)
    assert (code, out, err, client.asked) == (1, "", message, [])


def test_load(run, tmp_path):
    (tmp_path / "x.tar").write_bytes(b"tar")
    fake = Fake({("POST", "/images/load"): [{"stream": "Loaded image: a:1\n"}]})
    assert run("load", "-i", str(tmp_path / "x.tar"), fake=fake)[:2] == (0, "Loaded image: a:1\n")
    assert (fake.asked, fake.body) == ([("POST", "/images/load", {"quiet": True})], b"tar")


def test_load_tells_the_error_of_the_stream(run, tmp_path):
    (tmp_path / "x.tar").write_bytes(b"tar")
    answers = {
        ("POST", "/images/load"): [
            {"errorDetail": {"message": "unexpected EOF"}, "error": "unexpected EOF"}
        ]
    }
    assert run("load", "-i", str(tmp_path / "x.tar"), answers=answers)[:3] == (
        1,
        "",
        "unexpected EOF",
    )


def test_save_to_a_file(run, tmp_path):
    path = tmp_path / "out.tar"
    fake = Fake({("GET", "/images/get"): iter([b"one", b"two"])})
    assert run("save", "-o", str(path), "a", "b", fake=fake)[0] == 0
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"onetwo", 0o600)
    assert fake.asked == [("GET", "/images/get", {"names": ["a", "b"]})]


def _broken():
    yield b"one"
    raise engine.EngineError("lost")


def test_save_leaves_no_half_archive(run, tmp_path):
    answers = {("GET", "/images/get"): _broken()}
    assert run("save", "-o", str(tmp_path / "x.tar"), "a", answers=answers)[::2][:2] == (1, "lost")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "/nodir/x",
            "failed to save image: invalid output path: stat /nodir: no such file or directory",
        ),
        (
            "/dev/null/x",
            "failed to save image: invalid output path: stat /dev/null: not a directory",
        ),
        ("/dev/null", "failed to save image: cannot write to a character device file"),
        ("/tmp", "failed to save image: cannot write to a directory"),
    ],
)
def test_save_refuses_the_path(run, path, message):
    assert run("save", "-o", path, "a", answers={("GET", "/images/get"): iter([])})[:3] == (
        1,
        "",
        message,
    )


# --- prune ---

REPORT = {"ImagesDeleted": [{"Untagged": "a:1"}, {"Deleted": ID}], "SpaceReclaimed": 1982298}


@pytest.mark.parametrize(("words", "dangling"), [(("-f",), "true"), (("-af",), "false")])
def test_prune(run, words, dangling):
    code, out, _, client = run(
        "image",
        "prune",
        *words,
        "--filter",
        "until=1h",
        answers={("POST", "/images/prune"): REPORT},
    )
    assert (code, out) == (
        0,
        f"Deleted Images:\nuntagged: a:1\ndeleted: {ID}\n\nTotal reclaimed space: 1.982MB\n",
    )
    assert client.asked == [
        ("POST", "/images/prune", {"filters": {"until": ["1h"], "dangling": [dangling]}})
    ]


@pytest.mark.parametrize(("answer", "asked"), [("", 0), ("n\n", 0), ("y\n", 1), (" Y \n", 1)])
def test_prune_asks(run, monkeypatch, answer, asked):
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    code, out, _, client = run(
        "image",
        "prune",
        answers={("POST", "/images/prune"): {"ImagesDeleted": None, "SpaceReclaimed": 0}},
    )
    assert code == 0
    assert len(client.asked) == asked
    assert out.startswith(
        "WARNING! This will remove all dangling images.\nAre you sure you want to continue? [y/N] "
    )
    assert out.endswith("Total reclaimed space: 0B\n" if asked else "[y/N] ")


# --- ours, and what comes later ---


def test_from_host(run, monkeypatch):
    def archive(programs):
        return iter([b"tar of ", " ".join(programs).encode()])

    monkeypatch.setattr(engine, "harvest_archive", archive)
    monkeypatch.setattr(engine, "harvest_changes", lambda programs: ["CMD " + programs[0]])
    fake = Fake(IMPORTED)
    words = ("image", "from-host", "-t", "tools", "-c", "CMD ls", "sh", "ls")
    assert run(*words, fake=fake)[:2] == (0, ID + "\n")
    assert fake.body == b"tar of sh ls"
    assert fake.asked[0][2] == {
        "fromSrc": "-",
        "repo": "tools",
        "tag": "latest",
        "changes": ["CMD sh", "CMD ls"],
        "message": "from-host sh ls",
    }


# --- archives without layers ---

OUR_ENGINE = {("GET", "/version"): {"Platform": {"Name": "engine.pyz 0.1.0"}}}
SOME, MORE = "sha256:" + "a" * 64, "sha256:" + "b" * 64


def test_save_without_layers(run, tmp_path):
    listed = tmp_path / "have"
    listed.write_text(f"# of the board\n{MORE}\n\n {SOME} # base\n")
    fake = Fake(
        {
            **OUR_ENGINE,
            ("GET", "/images/base/json"): {"RootFS": {"Layers": [SOME]}},
            ("GET", "/images/get"): [b"archive"],
        }
    )
    target = str(tmp_path / "out")
    words = ("save", "-o", target, "--since", "base", "--have", str(listed), "app")
    assert run(*words, fake=fake)[0] == 0
    assert fake.asked[-1][2] == {"names": ["app"], "have": "a" * 64 + "," + "b" * 64}


def test_save_without_layers_is_refused(run, tmp_path):
    listed = tmp_path / "have"
    listed.write_text("sha256:12\n")
    target = str(tmp_path / "out")
    words = ("save", "-o", target, "--have", str(listed), "app")
    code, _, errors, _ = run(*words, answers=OUR_ENGINE)
    assert (code, errors) == (1, f"{listed}:1: invalid checksum digest length")
    code, _, errors, _ = run(*words, answers={("GET", "/version"): {"Version": "20.10"}})
    assert (code, errors) == (1, "--have and --since: this engine saves whole images only")
    assert not os.path.exists(target)


def test_have(run):
    answers = {
        ("GET", "/images/json"): [IMAGE],
        ("GET", f"/images/{ID}/json"): {"RootFS": {"Layers": [MORE, SOME]}},
    }
    assert run("image", "have", answers=answers)[:2] == (0, f"{SOME}\n{MORE}\n")


@pytest.mark.parametrize(
    "words",
    [
        ("build", "-t", "x", "."),
        ("manifest", "create", "-a", "x", "y"),
        ("manifest", "annotate", "--arch", "arm64", "x", "y"),
        ("manifest", "push", "--purge", "x"),
        ("manifest", "rm", "x"),
    ],
)
def test_what_comes_later_says_so(run, words):
    code, out, err, client = run(*words)
    assert (code, out, client.asked) == (1, "", [])
    assert err.endswith("not supported yet")


def test_chunk_reader():
    def reader():
        return engine.ChunkReader([b"abc", b"", b"de"])

    assert reader().read() == b"abcde"
    one = reader()
    assert [one.read(2), one.read(2), one.read(9), one.read(9), one.read(9)] == [
        b"ab",
        b"c",
        b"de",
        b"",
        b"",
    ]
