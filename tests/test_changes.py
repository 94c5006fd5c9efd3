"""Instructions on a configuration: what each does, and Docker's words where it refuses."""

from __future__ import annotations

import engine
import pytest

HEALTH = (
    "HEALTHCHECK --interval=5s --timeout=1m30s --retries=3 --start-period=0"
    " CMD curl -f http://x/ || exit 1"
)


@pytest.mark.parametrize(
    "changes, want",
    [
        (["CMD echo hi"], {"Cmd": ["/bin/sh", "-c", "echo hi"]}),
        (['CMD ["a", "b c"]'], {"Cmd": ["a", "b c"]}),
        (["cmd []"], {"Cmd": []}),
        (
            ["CMD a", "ENTRYPOINT b"],
            {"Cmd": ["/bin/sh", "-c", "a"], "Entrypoint": ["/bin/sh", "-c", "b"]},
        ),
        (
            ["ENV A=1 B='x y' C=\"$A $A\"", "ENV A 2 3", "ENV D=${A}-$NONE"],
            {"Env": ["A=2 3", "B=x y", "C= ", "D=2 3-"]},
        ),
        (
            ["EXPOSE 80 443/udp 8000-8002/TCP"],
            {
                "ExposedPorts": {
                    port: {} for port in "80/tcp 443/udp 8000/tcp 8001/tcp 8002/tcp".split()
                }
            },
        ),
        (["ENV P=81", "EXPOSE $P"], {"Env": ["P=81"], "ExposedPorts": {"81/tcp": {}}}),
        (
            ['LABEL a=1 b="two words" c=', "LABEL a=2"],
            {"Labels": {"a": "2", "b": "two words", "c": ""}},
        ),
        (["LABEL one the rest  of it"], {"Labels": {"one": "the rest  of it"}}),
        (["LABEL one the \"a  b\"  \\ c 'd e'"], {"Labels": {"one": "the a  b   c d e"}}),
        (["USER 1000:1000"], {"User": "1000:1000"}),
        (["WORKDIR /a", "WORKDIR b/../c", "WORKDIR ./d/"], {"WorkingDir": "/a/c/d"}),
        (["WORKDIR //x//y"], {"WorkingDir": "/x/y"}),
        (["VOLUME /a /b", 'VOLUME ["/c d"]'], {"Volumes": {"/a": {}, "/b": {}, "/c d": {}}}),
        (["STOPSIGNAL SIGUSR1"], {"StopSignal": "SIGUSR1"}),
        (["HEALTHCHECK NONE"], {"Healthcheck": {"Test": ["NONE"]}}),
        (
            [HEALTH],
            {
                "Healthcheck": {
                    "Interval": 5 * 10**9,
                    "Timeout": 90 * 10**9,
                    "Retries": 3,
                    "StartPeriod": 0,
                    "Test": ["CMD-SHELL", "curl -f http://x/ || exit 1"],
                }
            },
        ),
        (['HEALTHCHECK CMD ["true"]'], {"Healthcheck": {"Test": ["CMD", "true"]}}),
        (["ONBUILD RUN make", "ONBUILD COPY . /x"], {"OnBuild": ["RUN make", "COPY . /x"]}),
        (['# a comment\n\nUSER \\\n  me\nCMD ["x"]'], {"User": "me", "Cmd": ["x"]}),
        (["USER\tme"], {"User": "me"}),
        ([], {}),
    ],
)
def test_changes(changes, want):
    assert engine.changes_apply({}, changes) == want


def test_upon_what_is_there():
    before = {"Cmd": ["old"], "Env": ["A=1"], "Labels": {"x": "y"}, "Volumes": {"/v": {}}}
    after = engine.changes_apply(before, ['ENTRYPOINT ["e"]', "ENV A=2 B=$A", "LABEL n=m"])
    assert after == {
        "Env": ["A=2", "B=1"],
        "Labels": {"x": "y", "n": "m"},
        "Volumes": {"/v": {}},
        "Entrypoint": ["e"],
    }
    assert before["Labels"] == {"x": "y"} and before["Env"] == ["A=1"]


@pytest.mark.parametrize(
    "change, text",
    [
        ("RUN make", "RUN is not a valid change command"),
        ("foo bar", "foo is not a valid change command"),
        ("ENV", "ENV requires at least one argument"),
        ("ENV A", "ENV must have two arguments"),
        ("ENV A=1 B", 'Syntax error - can\'t find = in "B". Must be of the form: name=value'),
        ("ENV =x", "ENV names can not be blank"),
        ("LABEL", "LABEL requires at least one argument"),
        ("LABEL a", "LABEL must have two arguments"),
        ("EXPOSE", "EXPOSE requires at least one argument"),
        ("EXPOSE http", "invalid containerPort: http"),
        ("EXPOSE 70000", "invalid containerPort: 70000"),
        ("EXPOSE 9-8", "invalid containerPort: 9-8"),
        ("EXPOSE 80/icmp", "invalid proto: icmp"),
        ("USER", "USER requires exactly one argument"),
        ("WORKDIR", "WORKDIR requires exactly one argument"),
        ("VOLUME", "VOLUME requires at least one argument"),
        ('VOLUME [""]', "VOLUME specified can not be an empty string"),
        ("STOPSIGNAL", "STOPSIGNAL requires exactly one argument"),
        ("STOPSIGNAL NOPE", "invalid signal: NOPE"),
        ("HEALTHCHECK", "HEALTHCHECK requires at least one argument"),
        ("HEALTHCHECK NONE x", "HEALTHCHECK NONE takes no arguments"),
        ("HEALTHCHECK CMD", "Missing command after HEALTHCHECK CMD"),
        ("HEALTHCHECK RUN x", 'Unknown type "RUN" in HEALTHCHECK (try CMD)'),
        ("HEALTHCHECK --interval=1ns CMD x", 'Interval "interval" cannot be less than 1ms'),
        ("HEALTHCHECK --retries=-1 CMD x", "--retries cannot be negative (-1)"),
        ("HEALTHCHECK --nope=1 CMD x", "unknown flag: --nope"),
        ("ONBUILD", "ONBUILD requires at least one argument"),
        ("ONBUILD ONBUILD RUN x", "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed"),
        ("CMD [1]", "when using JSON array syntax, arrays must be comprised of strings only"),
        ("", "file with no instructions"),
        ("# x", "file with no instructions"),
        ("ONBUILD FROM x", "FROM isn't allowed as an ONBUILD trigger"),
    ],
)
def test_refused(change, text):
    with pytest.raises(engine.InvalidParameter) as refused:
        engine.changes_apply({}, [change])
    assert str(refused.value) == text
