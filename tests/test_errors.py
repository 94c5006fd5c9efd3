"""errors: statuses, exit codes, and undoing."""

import pytest


def test_every_status_has_its_class(engine):
    for status, kind in engine.ERRORS_BY_STATUS.items():
        error = engine.error_for(status, "what happened")
        assert type(error) is kind and error.status == status and str(error) == "what happened"
    for status, kind in ((418, engine.InvalidParameter), (599, engine.EngineError)):
        error = engine.error_for(status, "x")
        assert (type(error), error.status) == (kind, status)


@pytest.mark.parametrize("code, name", [(126, "CannotInvoke"), (127, "CommandNotFound")])
def test_exit_codes_of_a_command_survive_the_wire(engine, code, name):
    error = engine.error_for(400, "exec: x", code)
    assert type(error).__name__ == name and error.exit == code and error.status == 400


def test_an_error_tells_one_clear_exit_code(engine):
    assert engine.EngineError("x").exit == 1
    assert engine.EngineError("x", 125).exit == 125
    assert engine.NotModified("x").exit == 0


def test_undo_runs_backwards_and_only_on_error(engine):
    done = []
    with engine.undo_on_error() as undo:
        undo.callback(done.append, 1)
    assert done == []
    with pytest.raises(ValueError), engine.undo_on_error() as undo:
        undo.callback(done.append, 1)
        undo.callback(done.append, 2)
        raise ValueError
    assert done == [2, 1]


def test_a_failing_undo_hides_neither_the_error_nor_the_other_undos(engine, capsys):
    done = []

    def fail():
        raise OSError(5, "disk on fire")

    with pytest.raises(ValueError, match="first"), engine.undo_on_error() as undo:
        undo.callback(done.append, 1)
        undo.callback(fail)
        raise ValueError("first")
    assert done == [1]
    assert "disk on fire" in capsys.readouterr().err


def test_a_module_that_python_lacks_is_one_sentence(engine):
    text = str(engine.module_missing(ImportError("No module named '_lzma'", name="_lzma")))
    assert "no module _lzma, which the engine needs to read xz" in text and "\n" not in text
    assert "no module bz2, which the engine needs to read bzip2" in str(
        engine.module_missing(ImportError(name="bz2"))
    )
    assert "odd" in str(engine.module_missing(ImportError("odd")))
