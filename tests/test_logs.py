"""Log lines: they name the place and the class of a fault, never a value."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import sqlite3
from collections.abc import Callable, Iterator
from io import StringIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.engine import URL

from keyman.errors import RefusedStatement
from keyman.logs import Repeats, configure_logging, frames, log
from keyman.secret import Secret
from keyman.storage.transactions import Database, Unchecked
from tests.support.logs import own_logging
from tests.support.planes import PASSWORD, Plane, Vault, plane_at

CANARY = "c4n4ry-sk-9876"

LIBRARIES = (
    "sqlalchemy.engine",
    "aiosqlite",
    "asyncpg",
    "aiohttp.client",
    "httpx",
    "urllib3",
    "hvac",
    "alembic",
    "litestar",
)


@pytest.fixture
def logged_as() -> Iterator[Callable[..., StringIO]]:
    """`logged_as(format, level)` returns the stream that log lines go to until the test ends."""

    def configure(log_format: str = "json", log_level: str = "debug") -> StringIO:
        stream = StringIO()
        configure_logging(log_format, log_level, stream)
        return stream

    with own_logging():
        yield configure


def lines(stream: StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def _fails(message: str) -> None:
    raise ValueError(message)


def test_a_fault_is_logged_only_by_its_class_and_its_frames(logged_as: Callable[..., StringIO]) -> None:
    stream = logged_as()
    try:
        _fails(CANARY)
    except ValueError as fault:
        fault.add_note(CANARY)
        log.error("it failed", **frames(fault))
    (line,) = lines(stream)
    assert line["fault"] == "builtins.ValueError"
    assert line["frames"][-1].endswith(" _fails")
    assert "test_logs.py:" in line["frames"][-1]
    assert line["event"] == "it failed"
    assert CANARY not in stream.getvalue()


@given(st.text(min_size=12))
def test_frames_hold_no_message(message: str) -> None:
    try:
        try:
            _fails(message)
        except ValueError as fault:
            raise RuntimeError(message) from fault
    except RuntimeError as fault:
        shown = json.dumps(frames(fault))
        assert message not in shown
        assert json.dumps(message).strip('"') not in shown


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_librarys_exception_loses_its_message(logged_as: Callable[..., StringIO], log_format: str) -> None:
    stream = logged_as(log_format)
    library = logging.getLogger("some.library")
    try:
        _fails(CANARY)
    except ValueError as fault:
        library.exception("a call failed")
        library.exception("said %s", fault)
        library.error("again", exc_info=True, stack_info=True)
    shown = stream.getvalue()
    assert "a call failed" in shown
    assert "builtins.ValueError" in shown
    assert "_fails" in shown
    assert CANARY not in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_library_has_one_short_line_without_its_arguments(
    logged_as: Callable[..., StringIO], log_format: str
) -> None:
    """A server logs the traceback of an application that cannot start as the text of an error."""
    stream = logged_as(log_format)
    library = logging.getLogger("_granian")
    library.error("%s failed: %r", CANARY, {"key": CANARY})
    library.error(f"Traceback (most recent call last):\n  File x\nValueError: {CANARY}")
    library.error("x" * 500 + CANARY)
    shown = stream.getvalue()
    assert CANARY not in shown
    assert shown.count("\n") == 3
    assert "%s failed: %r" in shown
    assert shown.count("x" * 200) == 1


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_what_a_library_logs_wrong_is_not_shown_either(
    logged_as: Callable[..., StringIO], capsys: pytest.CaptureFixture[str], log_format: str
) -> None:
    """The standard library prints the arguments of a line that do not fit its text, past every handler."""
    stream = logged_as(log_format)
    library = logging.getLogger("some.library")
    library.error("%s and %s", *[CANARY])
    library.error(ValueError(CANARY))
    library.error({"key": CANARY})
    shown = stream.getvalue()
    assert CANARY not in shown + capsys.readouterr().err
    assert shown.count("\n") == 3
    for event in ("%s and %s", "ValueError", "dict"):
        assert event in shown


def test_a_log_line_is_one_line_of_json_whatever_it_holds(logged_as: Callable[..., StringIO]) -> None:
    stream = logged_as()
    log.info("several\nlines", name="a\r\nb\u2028c\x00")
    logging.getLogger("library").warning("two\nlines")
    first, second = lines(stream)
    assert (first["event"], first["name"]) == ("several\nlines", "a\r\nb\u2028c\x00")
    assert (second["event"], second["level"], second["logger"]) == ("two", "warning", "library")
    assert stream.getvalue().count("\n") == 2
    assert first["time"].endswith("Z")


@pytest.mark.parametrize("value", ["\ud800", 2**70, float("nan"), {1: 2}, b"\xff", Secret(CANARY), {Secret: 1}])
def test_every_value_has_a_line(logged_as: Callable[..., StringIO], value: object) -> None:
    stream = logged_as()
    log.info("odd", value=value)
    assert CANARY not in stream.getvalue()
    assert [line["event"] for line in lines(stream)] == ["odd"]


@pytest.mark.parametrize("fault", [BrokenPipeError, ValueError])
def test_a_stream_that_fails_loses_the_line_and_no_request(
    logged_as: Callable[..., StringIO],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fault: type[Exception],
) -> None:
    stream = logged_as()

    def refuse(_line: str) -> int:
        raise fault

    with monkeypatch.context() as broken:
        broken.setattr(stream, "write", refuse)
        log.error("nobody reads this")
        logging.getLogger("library").error("nor %s", CANARY)
    assert capsys.readouterr().err == ""
    log.error("again")
    assert [line["event"] for line in lines(stream)] == ["again"]


@pytest.mark.parametrize("name", LIBRARIES)
def test_libraries_that_log_values_are_silent_below_warning(logged_as: Callable[..., StringIO], name: str) -> None:
    stream = logged_as("json", "debug")
    for number in (logging.DEBUG, logging.INFO):
        logging.getLogger(name).log(number, "SELECT %s", CANARY)
    assert stream.getvalue() == ""
    logging.getLogger(name).warning("this is heard")
    assert [line["event"] for line in lines(stream)] == ["this is heard"]


def test_a_level_silences_what_is_below_it(logged_as: Callable[..., StringIO]) -> None:
    stream = logged_as("json", "error")
    log.warning("quiet")
    log.error("loud")
    assert [line["event"] for line in lines(stream)] == ["loud"]


@pytest.mark.anyio
async def test_a_whole_visit_at_debug_leaves_nothing_of_what_was_sent(
    database: URL, provisioned: Vault, logged_as: Callable[..., StringIO]
) -> None:
    stream = logged_as("json", "debug")
    async with plane_at(database, provisioned.settings) as plane:
        secrets = await _visit(plane)
    shown = stream.getvalue()
    requests = [line for line in lines(stream) if line["event"] == "request"]
    assert len(requests) >= 9
    known = {"method", "route", "status", "duration_ms", "user_id", "event", "request_id", "level", "time"}
    assert all(line.keys() == known for line in requests)
    for secret in secrets:
        assert secret not in shown, secret
    assert "Traceback" not in shown


async def _visit(plane: Plane) -> list[str]:
    """Somebody does what can be done, right and wrong; returns what must be in no log."""
    email = "canary.person@example.com"
    ada = await plane.user(email)
    cookie = ada.cookies["keyman_session"]
    token = (await ada.post("/api/tokens", json={"name": CANARY})).json()["token"]
    stored = await ada.post("/api/keys", json={"service": "OPENAI", "api_key": f"sk-{CANARY}", "name": CANARY})
    key = stored.headers["location"]
    await ada.put(key, json={"api_key": f"sk-2{CANARY}"}, headers={"If-Match": f'"{CANARY}"'})
    await ada.get("/api/keys", params={"q": CANARY, "cursor": CANARY})
    await ada.get(f"/api/keys/{CANARY}")
    await ada.get(f"/{CANARY}", headers={"X-Request-ID": CANARY, "User-Agent": CANARY, "Referer": CANARY})
    await ada.post("/api/keys", content=f'{{"{CANARY}": ')
    await ada.request(CANARY, "/api/keys")
    await plane.client().post("/api/auth/login", json={"email": email, "password": f"wrong {CANARY}"})
    await ada.delete(key)
    return [CANARY, CANARY.upper(), email, cookie, token, PASSWORD, key]


@pytest.mark.anyio
async def test_what_a_database_refuses_is_logged_without_its_statement(
    database: URL, logged_as: Callable[..., StringIO]
) -> None:
    stream = logged_as()
    db = Database(database)
    with pytest.raises(RefusedStatement) as raised:
        async with db.write(Unchecked.OPERATOR) as connection:
            await connection.execute(text("SELECT :value FROM c4n4ry_nowhere"), {"value": CANARY})
    await db.close()
    for word in (CANARY, "c4n4ry_nowhere"):
        assert word not in str(raised.value) + stream.getvalue()
    assert raised.value.__cause__ is None


def test_an_exception_that_nobody_asked_for_loses_its_message(logged_as: Callable[..., StringIO]) -> None:
    """asyncio's own line about a forgotten task quotes the exception."""
    stream = logged_as()

    async def forget() -> None:
        await asyncio.wait([asyncio.ensure_future(_failing())])
        gc.collect()

    asyncio.run(forget())
    assert "sqlite3.OperationalError" in stream.getvalue()
    assert CANARY not in stream.getvalue()


async def _failing() -> None:
    raise sqlite3.OperationalError(CANARY)


# --- metrics


def test_what_repeats_is_logged_at_first_on_a_change_after_a_gap_and_once_a_minute() -> None:
    repeats = Repeats()
    seconds = [("a", float(second)) for second in range(121)]
    moments = [*seconds, ("b", 121.0), ("b", 121.5), ("b", 140.0)]
    logged = [(said, moment) for said, moment in moments if repeats.is_due(said, moment)]
    assert logged == [("a", 0.0), ("a", 60.0), ("a", 120.0), ("b", 121.0), ("b", 140.0)]


@pytest.mark.parametrize(
    ("is_terminal", "given", "has_colours"),
    [
        (True, {}, True),
        (True, {"NO_COLOR": ""}, True),
        (True, {"NO_COLOR": "1"}, False),
        (False, {}, False),
        (False, {"FORCE_COLOR": "1"}, True),
        (False, {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
    ],
)
def test_a_terminal_shows_colours_unless_somebody_wants_none(
    monkeypatch: pytest.MonkeyPatch, is_terminal: bool, given: dict[str, str], has_colours: bool
) -> None:
    class Terminal(StringIO):
        def isatty(self) -> bool:
            return is_terminal

    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    stream = Terminal()
    with own_logging():
        configure_logging("console", "info", stream)
        log.info("something happened")
    assert ("\x1b[" in stream.getvalue()) is has_colours
