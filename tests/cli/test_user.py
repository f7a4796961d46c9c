"""`keyman user`, as transcripts."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
from argon2 import PasswordHasher

from keyman.cli import user
from keyman.identity.passwords import Passwords
from tests.cli.test_common import failed
from tests.cli.transcript import keyman
from tests.support.cli import Finished, run_keyman
from tests.support.terminal import terminal

PASSWORD = "correct horse battery staple"


def added(email: str, env: dict[str, str]) -> None:
    """Add an account for a test of something else: its password is hashed with less work."""
    quick = partial(Passwords, PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
    with mock.patch.object(user, "Passwords", quick):
        assert keyman("user", "add", email, env=env, stdin=f"{PASSWORD}\n").code == 0


def test_accounts_are_added_listed_disabled_and_enabled(env: dict[str, str]) -> None:
    assert keyman("user", "list", env=env) == Finished(0, "ID  EMAIL  CREATED AT  DISABLED AT  IDENTITIES\n", "")
    assert keyman("user", "list", "--json", env=env) == Finished(0, "[]\n", "")

    ada = keyman("user", "add", "Ada@example.com", env=env, stdin=f"{PASSWORD}\n")
    assert ada == Finished(0, "", "Added Ada@example.com as user 1.\n")
    grace = keyman("user", "add", "grace@bücher.example", env=env, stdin=f"{PASSWORD}\r\nignored\n")
    assert grace == Finished(0, "", "Added grace@bücher.example as user 2.\n")

    assert keyman("user", "disable", "ada@EXAMPLE.com", env=env).code == 0
    listed = keyman("user", "list", "--json", env=env)
    assert (listed.code, listed.err) == (0, "")
    first, second = json.loads(listed.out)
    assert (first["id"], first["email"], second["email"]) == (1, "Ada@example.com", "grace@bücher.example")
    assert first["disabled_at"].endswith("Z")
    assert second["disabled_at"] is None
    assert first.keys() == {"id", "email", "created_at", "disabled_at", "identities"}

    table = keyman("user", "list", env=env).out.splitlines()
    assert len({line.index("@") for line in table[1:]}) >= 1
    assert table[1].startswith("1   Ada@example.com")
    assert table[2].split()[-2:] == ["-", "-"]

    assert keyman("user", "enable", "ada@example.com", env=env) == Finished(0, "", "Enabled ada@example.com.\n")
    assert json.loads(keyman("user", "list", "--json", env=env).out)[0]["disabled_at"] is None


LATIN = {"PYTHONIOENCODING": "iso-8859-1"}
"""The encoding of a terminal that is not UTF-8."""


def test_a_list_is_printed_whatever_the_encoding_is(env: dict[str, str]) -> None:
    added("grace@λόγος.example", env)
    listed = run_keyman("user", "list", env=env | LATIN)
    assert (listed.code, listed.err) == (0, "")
    assert "grace@\\u03bb" in listed.out
    as_json = run_keyman("user", "list", "--json", env=env | LATIN)
    assert json.loads(as_json.out)[0]["email"] == "grace@λόγος.example"


def test_a_password_from_a_file_is_utf_8_whatever_the_encoding_is(env: dict[str, str], file: Path) -> None:
    password = "Schlüssel für Küche"
    done = run_keyman("user", "add", "ada@example.com", env=env | LATIN, stdin=f"{password}\n")
    assert (done.code, done.err) == (0, "Added ada@example.com as user 1.\n")
    with closing(sqlite3.connect(file)) as database:
        ((stored,),) = database.execute("SELECT password_hash FROM users")
    assert PasswordHasher().verify(stored, password)


def test_an_address_that_is_taken_is_said(env: dict[str, str]) -> None:
    added("ada@example.com", env)
    said = failed(keyman("user", "add", "ADA@example.com", env=env, stdin=f"{PASSWORD}\n"))
    assert said == "keyman: An account with this address already exists.\n"


@pytest.mark.parametrize("command", [["disable"], ["enable"], ["passwd"], ["delete", "--yes"]])
def test_an_account_that_is_not_there_is_said(command: list[str], env: dict[str, str]) -> None:
    said = failed(keyman("user", *command, "nobody@example.com", env=env, stdin=f"{PASSWORD}\n"))
    assert said == "keyman: There is no account with this address. See all with: keyman user list\n"


def test_a_password_that_is_no_text_is_said_wherever_it_is_typed(env: dict[str, str]) -> None:
    """Whether Python takes such bytes or refuses them is up to the language that the machine is set to."""
    for errors in ("strict", "surrogateescape"):
        given = {**env, "PYTHONIOENCODING": f"utf-8:{errors}"}
        said = failed(run_keyman("user", "add", "ada@example.com", env=given, stdin=b"\xff\xfe not text at all\n"))
        assert said.startswith("keyman: The password must ")


@pytest.mark.parametrize("stdin", [b"", b"\n", b"too short\n", b"x" * 257 + b"\n", b"\n" + b"x" * 20])
def test_a_password_that_cannot_be_one_is_said_and_not_repeated(stdin: bytes, env: dict[str, str]) -> None:
    said = failed(keyman("user", "add", "ada@example.com", env=env, stdin=stdin))
    assert said.startswith("keyman: The password must ")
    assert "short" not in said
    assert "xxx" not in said
    assert json.loads(keyman("user", "list", "--json", env=env).out) == []


def ids(env: dict[str, str]) -> list[int]:
    return [account["id"] for account in json.loads(keyman("user", "list", "--json", env=env).out)]


IDENTITY = ("--issuer", "https://id.example.com", "--subject", "user-42")


def with_identity(file: Path, user_id: int) -> None:
    values = (user_id, IDENTITY[1], IDENTITY[3], "2026-11-29 08:59:41.000000")
    with closing(sqlite3.connect(file)) as database:
        database.execute("INSERT INTO identities (user_id, issuer, subject, created_at) VALUES (?, ?, ?, ?)", values)
        database.commit()


def test_the_list_shows_identities_and_people_without_an_address(env: dict[str, str], file: Path) -> None:
    added("ada@example.com", env)
    with_identity(file, 1)
    with closing(sqlite3.connect(file)) as database:
        database.execute("UPDATE users SET email = NULL, email_key = NULL, password_hash = NULL")
        subject = "INSERT INTO application_identities (user_id, issuer, subject, created_at) VALUES (1, ?, ?, ?)"
        database.execute(subject, ("keyman:app:shop", "7", "2026-11-29 08:59:41.000000"))
        database.commit()
    (shown,) = json.loads(keyman("user", "list", "--json", env=env).out)
    assert shown["email"] is None
    assert shown["identities"] == [
        {"issuer": "https://id.example.com", "subject": "user-42"},
        {"issuer": "keyman:app:shop", "subject": "7"},
    ]
    line = keyman("user", "list", env=env).out.splitlines()[1]
    assert line.split()[1] == "-"
    assert line.endswith("  user-42 (https://id.example.com) 7 (keyman:app:shop)")


@pytest.mark.parametrize("whom", [("ada@EXAMPLE.com",), ("--id", "1"), IDENTITY], ids=["address", "number", "identity"])
def test_an_account_is_disabled_enabled_and_deleted_by_each_of_its_names(
    whom: tuple[str, ...], env: dict[str, str], file: Path
) -> None:
    added("ada@example.com", env)
    added("grace@example.com", env)
    with_identity(file, 1)
    disabled = keyman("user", "disable", *whom, env=env)
    assert (disabled.code, disabled.out) == (0, "")
    refused = failed(keyman("user", "delete", *whom, "--yes", env=env))
    assert "--forget-ban" in refused
    assert ids(env) == [1, 2]
    enabled = keyman("user", "enable", *whom, env=env)
    assert enabled.code == 0
    assert enabled.err.startswith("Enabled ")
    assert keyman("user", "delete", *whom, "--yes", env=env) == Finished(0, "", "Deleted user 1.\n")
    assert ids(env) == [2]
    failed(keyman("user", "delete", *whom, "--yes", "--forget-ban", env=env))
    added("ada@example.com", env)
    assert ids(env) == [2, 3]
    assert keyman("audit", "verify", env=env).code == 0


def test_a_banned_account_is_deleted_with_its_ban(env: dict[str, str]) -> None:
    added("ada@example.com", env)
    assert keyman("user", "disable", "ada@example.com", env=env).code == 0
    deleted = keyman("user", "delete", "--id", "1", "--yes", "--forget-ban", env=env)
    assert deleted == Finished(0, "", "Deleted user 1.\n")


@pytest.mark.parametrize("command", ["disable", "enable", "delete"])
@pytest.mark.parametrize(
    "whom",
    [
        (),
        ("ada@example.com", "--id", "1"),
        ("--id", "1", *IDENTITY),
        IDENTITY[:2],
        IDENTITY[2:],
        ("--id", "0"),
        ("--id", "x"),
        ("--issuer", "https://id.example.com", "--subject", " x"),
    ],
)
def test_an_account_is_named_in_exactly_one_way(command: str, whom: tuple[str, ...], env: dict[str, str]) -> None:
    added("ada@example.com", env)
    assert keyman("user", command, *whom, env=env).code == 2
    assert ids(env) == [1]


def test_a_deletion_without_a_terminal_needs_yes(env: dict[str, str]) -> None:
    added("ada@example.com", env)
    said = failed(keyman("user", "delete", "ada@example.com", env=env, stdin="y\n"))
    assert said == "keyman: There is no terminal to ask for confirmation. Add --yes if you are sure.\n"
    assert ids(env) == [1]


# --- at a terminal


def test_a_terminal_is_asked_twice_and_shows_no_password(env: dict[str, str]) -> None:
    with terminal("user", "add", "ada@example.com", env=env) as screen:
        screen.shows("Password: ")
        screen.types(f"{PASSWORD}\n")
        screen.shows("Repeat for confirmation: ")
        screen.types("something else entirely\n")
        screen.shows("Password: ")
        screen.types(f"{PASSWORD}\n")
        screen.shows("Repeat for confirmation: ")
        screen.types(f"{PASSWORD}\n")
        screen.shows("Added ada@example.com as user 1.")
        assert screen.ends() == 0
        assert screen.process.stdout is not None
        assert screen.process.stdout.read() == b""
        assert PASSWORD not in screen.screen
        assert "something else" not in screen.screen
    # It is the password: the account can be signed in to with it, as the next command's answer shows.
    assert json.loads(keyman("user", "list", "--json", env=env).out)[0]["email"] == "ada@example.com"


def test_ctrl_c_at_the_prompt_adds_nobody(env: dict[str, str]) -> None:
    with terminal("user", "add", "ada@example.com", env=env) as screen:
        screen.shows("Password: ")
        screen.types("\x03")
        assert screen.ends() in (1, 130)
        assert "Traceback" not in screen.screen
    assert json.loads(keyman("user", "list", "--json", env=env).out) == []


def test_a_password_is_on_no_command_line(env: dict[str, str]) -> None:
    with terminal("user", "passwd", "ada@example.com", env=env) as screen:
        screen.shows("Password: ")
        command = Path(f"/proc/{screen.process.pid}/cmdline").read_bytes()
        assert command.count(b"\0") == len(["python", "keyman", "user", "passwd", "ada@example.com"])
        screen.types("\x04")
        screen.ends()
        assert "Traceback" not in screen.screen


@pytest.mark.parametrize(("answer", "left"), [("n", [1]), ("y", [])])
def test_a_deletion_asks_first(answer: str, left: list[int], env: dict[str, str]) -> None:
    added("ada@example.com", env)
    with terminal("user", "delete", "ada@example.com", env=env) as screen:
        screen.shows("Delete ada@example.com with all keys? This cannot be undone. [y/N]: ")
        screen.types(f"{answer}\n")
        assert screen.ends() == (1 if left else 0)
    assert ids(env) == left
