"""init: whose process it is, by the image's own files; the order of the steps."""

import os

import pytest

PASSWD = [
    (line.split(":") + [""] * 7)[:7]
    for line in (
        "root:x:0:0:root:/root:/bin/sh",
        "user:x:1000:1000:u:/home/user:/bin/sh",
        "7:x:77:78::/seven:/x",
        "nohome:x:5:6:::",
        "short:x",
    )
]
GROUP = [
    (line.split(":") + [""] * 7)[:7]
    for line in (
        "# staff:x:50:user",
        "root:x:0:",
        "user:x:1000:",
        "audio:x:29:user,other",
        "wheel:x:10:root",
        "short",
        "video:x:44",
    )
]


@pytest.mark.parametrize(
    "user, added, found",
    [
        ("", [], (0, 0, [0, 10], "/root")),
        ("root", [], (0, 0, [0, 10], "/root")),
        ("0", [], (0, 0, [0, 10], "/root")),
        ("user", [], (1000, 1000, [1000, 29], "/home/user")),
        ("1000", [], (1000, 1000, [1000, 29], "/home/user")),
        ("user:audio", [], (1000, 29, [29], "/home/user")),
        ("user:44", [], (1000, 44, [44], "/home/user")),
        ("user", ["wheel", "99"], (1000, 1000, [1000, 29, 10, 99], "/home/user")),
        ("4242", [], (4242, 0, [0], "/")),
        ("4242:4343", [], (4242, 4343, [4343], "/")),
        ("nohome", [], (5, 6, [6], "/")),
        ("7", [], (7, 0, [0], "/")),  # a number is never a name
        ("77", [], (77, 78, [78], "/seven")),
        ("007:+50", [], (7, 50, [50], "/")),
        ("+5", [], (5, 6, [6], "/")),
        ("user:audio:more", [], (1000, 29, [29], "/home/user")),
        (":audio", [], (0, 29, [29], "/root")),
        ("user", ["+7", "044", "audio", "audio"], (1000, 1000, [1000, 29, 7, 44], "/home/user")),
    ],
)
def test_users_are_resolved_by_the_images_files(engine, user, added, found):
    assert engine.user_resolve(user, added, PASSWD, GROUP) == found


@pytest.mark.parametrize(
    "user, added, text",
    [
        ("nobody", [], "unable to find user nobody: no matching entries in passwd file"),
        ("user:none", [], "unable to find group none: no matching entries in group file"),
        ("user", ["none"], "Unable to find group none: no matching entries in group file"),
        ("-1", [], "uids and gids must be in range 0-2147483647"),
        (" 1", [], "unable to find user  1: no matching entries in passwd file"),
        ("9" * 20, [], f"unable to find user {'9' * 20}: no matching entries in passwd file"),
        ("user", ["-1"], "uids and gids must be in range 0-2147483647"),
        ("2147483648", [], "uids and gids must be in range 0-2147483647"),
        ("user:2147483648", [], "uids and gids must be in range 0-2147483647"),
    ],
)
def test_unknown_users_and_groups_are_named(engine, user, added, text):
    with pytest.raises(engine.InitError) as refused:
        engine.user_resolve(user, added, PASSWD, GROUP)
    assert str(refused.value) == text and refused.value.exit == 125 and refused.value.plain


def test_files_may_say_anything(engine):
    """A user or group of the image whose number would mean "leave it as it is" is refused."""
    odd = engine.table_rows(b" root:x:zero:-1 \n\nx:x:-1:5::/x\ny:x:6:x::/y\n\xff:x:8:8\n")
    assert [row[0] for row in odd] == ["root", "x", "y", "\udcff"]
    assert engine.user_resolve("y", [], odd, []) == (6, 0, [0], "/y")
    assert engine.user_resolve("\udcff", [], odd, []) == (8, 8, [8], "/")
    for user in ("x", "root"):
        with pytest.raises(engine.InitError, match="must be in range"):
            engine.user_resolve(user, [], odd, [])


def test_no_files_is_no_users(engine):
    assert engine.user_resolve("12:34", [], [], []) == (12, 34, [34], "/")
    with pytest.raises(engine.InitError):
        engine.user_resolve("root", [], [], [])


@pytest.mark.parametrize(
    "status, code", [(0, 0), (7 << 8, 7), (9, 137), (15, 143), (11 | 0x80, 139)]
)
def test_exit_codes_are_dockers(engine, status, code):
    assert engine.status_code(status) == code


def test_the_order_that_safety_rests_on(engine):
    """What the comments in INIT_STEPS say, held by a test."""
    names = [step.__name__ for step in engine.INIT_STEPS]
    before = [
        ("init_alone", "init_join"),
        ("init_cgroup", "init_cgroup_namespace"),
        ("init_root_attach", "init_mounts"),
        ("init_mounts", "init_devices"),
        ("init_devices", "init_terminal"),
        ("init_sysctl", "init_root_enter"),
        ("init_root_enter", "init_paths_hide"),
        ("init_paths_hide", "init_confine"),
        ("init_user", "init_confine"),
        ("init_limits", "init_confine"),
        ("init_confine", "init_cwd"),
        ("init_confine", "init_program"),
        ("init_ready", "init_exec"),
    ]
    assert [pair for pair in before if names.index(pair[0]) > names.index(pair[1])] == []
    joins = [step.__name__ for step in engine.EXEC_STEPS]
    assert joins[0] == "init_alone" and joins.index("exec_join") < joins.index("init_user")


def test_imports_freeze_leaves_no_way_to_the_containers_modules(engine, tmp_path):
    (tmp_path / "evil.py").write_text("open('/tmp/evil-ran', 'w')")
    pid = os.fork()
    if pid == 0:
        import sys

        sys.path.insert(0, str(tmp_path))
        engine.imports_freeze()
        try:
            import evil  # noqa: F401
        except ImportError:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize(
    "changed, text",
    [
        ({"env": ["PATH=/bin", "=x"]}, 'environment variable name can\'t be empty: "=x"'),
        ({"env": ["A=b\0c"]}, 'environment variable can\'t contain null(\\x00): "A=b\\x00c"'),
        ({"args": ["sh", "a\0"]}, 'argument can\'t contain null(\\x00): "a\\x00"'),
        ({"cwd": "/a\0b"}, 'working directory can\'t contain null(\\x00): "/a\\x00b"'),
    ],
)
def test_what_execve_cannot_be_given_is_named(engine, changed, text):
    process = {"env": ["A=b", "FOO", ""], "args": ["sh"], "cwd": "/"}
    assert engine.process_check(process) is process
    with pytest.raises(engine.InitError) as refused:
        engine.process_check({**process, **changed})
    assert str(refused.value) == text and refused.value.exit == 125
