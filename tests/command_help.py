"""Runs a command line in this process, over a client that answers from a table."""

from __future__ import annotations

import engine


def command_runner(monkeypatch, capsys, client_of):
    """call(*words, **options) -> (exit code, output, errors, client); options go to client_of."""

    def call(*words, **options):
        client = client_of(**options)
        monkeypatch.setattr(engine, "client_local", lambda *roots: client)
        monkeypatch.setattr(engine, "_streams_prepare", lambda: None)
        errors = []
        monkeypatch.setattr(engine, "print_error", errors.append)
        code = engine.cli_main(list(words))
        return code, capsys.readouterr().out, "\n".join(errors), client

    return call
