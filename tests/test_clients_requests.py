"""Statuses and messages for requests that ask for too much, for nothing, or in the wrong state.

data/clients/requests.tsv is worked off in its order, on four containers: `run` and `tty` run,
`stop` has ended with 3, `new` never ran. The messages are those of Docker 28.5.
"""

from __future__ import annotations

import csv
import json
import re
import urllib.parse

import conftest
import pytest
from clients_help import api, ours  # noqa: F401

REQUESTS = conftest.TOP / "tests" / "data" / "clients" / "requests.tsv"
CONTAINERS = {
    "run": {"Cmd": ["sleep", "1000"]},
    "stop": {"Cmd": ["sh", "-c", "exit 3"]},
    "new": {"Cmd": ["true"]},
    "tty": {"Cmd": ["cat"], "Tty": True, "OpenStdin": True},
}


def requests():
    with open(REQUESTS, newline="") as file:
        yield from csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)


def said(reply):
    """The message of a refusal, ids left out; attach refuses in plain text."""
    try:
        text = json.loads(reply.body)["message"]
    except ValueError:
        text = ""
    return re.sub(r"\b[0-9a-f]{12}\b", "<short id>", re.sub(r"\b[0-9a-f]{64}\b", "<id>", text))


@pytest.mark.root
def test_requests(ours):  # noqa: F811
    for name, body in CONTAINERS.items():
        body = {"Image": "busybox", "HostConfig": {"NetworkMode": "none"}, **body}
        assert api(ours, "POST", f"/containers/create?name={name}", body).status == 201
        if name != "new":
            assert api(ours, "POST", f"/containers/{name}/start").status == 204
    assert api(ours, "POST", "/containers/stop/wait").json()["StatusCode"] == 3
    wrong = []
    for row in requests():
        path, question, query = row["path"].partition("?")
        path = urllib.parse.quote(path) + question + urllib.parse.quote(query, safe="=&")
        kind = row["content type"] or ("application/json" if row["body"] else "")
        headers = {"Content-Type": kind} if kind not in ("", "none") else {}
        reply = api(ours, row["method"], path, row["body"] or None, headers)
        message = said(reply) if reply.status >= 400 and row["message"] else row["message"]
        if (reply.status, message) != (int(row["status"]), row["message"]):
            wrong.append(f"{row['method']} {row['path']} {row['body']}: {reply.status} {message}")
    assert not wrong, "\n" + "\n".join(wrong)
