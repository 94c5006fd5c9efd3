"""Users of our registry: bcrypt as htpasswd makes it, PBKDF2 of our own, nothing weaker."""

from __future__ import annotations

import os

import engine
import pytest
from hypothesis import given
from hypothesis import strategies as st

BCRYPT = "$2y$05$/OK.fbVrR/bpIqNJ5ianF.CE5elHaaO4EbggVDjb8P19RukzXSM3e"


def test_a_hash_of_our_own():
    hashed = engine.password_hash("secret ä")
    assert hashed != engine.password_hash("secret ä")
    assert engine.password_check("secret ä", hashed)
    assert not engine.password_check("secret", hashed)


def test_bcrypt_by_libcrypt():
    hashed = engine._bcrypt("password", "$2y$05$abcdefghijklmnopqrstuu")
    assert hashed.startswith("$2y$05$abcdefghijklmnopqrstuu") and len(hashed) == 60
    assert engine.password_check("password", hashed)
    assert not engine.password_check("passwort", hashed)
    assert not engine.password_check("x", BCRYPT)


@pytest.mark.parametrize("hashed", ["", "x", "{SHA}x", "$apr1$x$y", "$pbkdf2-sha256$",
                                    "$pbkdf2-sha256$0$00$00", "$pbkdf2-sha256$99999999999$00$00",
                                    "$pbkdf2-sha256$1$zz$00"])
def test_other_hashes_are_never_right(hashed):
    assert not engine.password_check("", hashed)


@given(st.text())
def test_any_file_is_read_or_refused(text):
    try:
        found = engine.users_parse(text)
    except engine.InvalidParameter as refused:
        assert "line" in str(refused)
        return
    assert all(found)


def test_a_file_that_changes(tmp_path):
    users = engine.RegistryUsers(str(tmp_path / "users"))
    assert users.all() == {} and not users.is_right("u", "p")
    users.write({"u": engine.password_hash("p")})
    assert os.stat(users.path).st_mode & 0o777 == 0o600
    assert users.is_right("u", "p") and users.is_right("u", "p")
    assert not users.is_right("u", "q") and not users.is_right("v", "p")
    users.write({"u": engine.password_hash("q"), "v": engine.password_hash("r")})
    assert not users.is_right("u", "p") and users.is_right("v", "r")
    with pytest.raises(engine.InvalidParameter, match="line 2"):
        engine.users_parse("# users\nu:{SHA}x\n")


def test_tokens_say_who_somebody_is(tmp_path, monkeypatch):
    users = engine.RegistryUsers(str(tmp_path / "users"))
    users.write({"ä": engine.password_hash("p"), "v": engine.password_hash("p")})
    tokens = engine.RegistryTokens(users)
    mine = tokens.make("ä")
    assert tokens.user(mine) == "ä" and tokens.user(tokens.make("")) == ""
    other = ".".join((mine.split(".")[0], b"v".hex(), mine.split(".")[2]))
    for wrong in ("", ".", "..", "x.y.z", mine[:-1], mine + "0", other, "ä.ö.ü",
                  tokens.make("w"), engine.RegistryTokens(users).make("v")):
        assert tokens.user(wrong) is None
    now = engine.time.time()
    monkeypatch.setattr(engine.time, "time", lambda: now + engine.REGISTRY_TOKEN_TIME + 2)
    assert tokens.user(mine) is None


@given(st.text())
def test_any_token_is_read_or_refused(text):
    assert engine.RegistryTokens(engine.RegistryUsers("/nonexistent/users")).user(text) is None
