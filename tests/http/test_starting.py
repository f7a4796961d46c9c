"""A plane whose database is away at its start, or is not one that it can use."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import URL, make_url

from keyman.config.settings import Settings
from keyman.errors import DatabaseUnavailable, MissingRight
from keyman.http import starting
from keyman.http.exchange import Message
from keyman.planes import assembly
from keyman.planes.management.app import create_app
from keyman.storage.engine import create_private_file
from keyman.vault.guard import Guard
from tests.support.database import sqlite_at
from tests.support.http import free_port
from tests.support.logs import capture_logs
from tests.support.planes import PASSWORD, Plane, Vault
from tests.support.waiting import becomes

pytestmark = pytest.mark.anyio

CANARY = "cAnArY0987"


class Server:
    """Speaks the lifespan protocol with a plane."""

    def __init__(self, database: URL, vault: Vault, **given: Any) -> None:
        settings = Settings(database, vault.settings, public_url="http://127.0.0.1:8000", **given)
        app = create_app(settings)
        self.plane = Plane(app, settings)
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        self._outbox: asyncio.Queue[Message] = asyncio.Queue()
        self._task = asyncio.ensure_future(app({"type": "lifespan"}, self._inbox.get, self._outbox.put))

    async def hears(self, word: str) -> Message:
        await self._inbox.put({"type": f"lifespan.{word}"})
        return await self._outbox.get()

    async def fault(self) -> BaseException | None:
        await asyncio.wait({self._task})
        await self.plane.close()
        return self._task.exception()


async def test_a_database_that_is_not_migrated_ends_the_start_without_a_traceback(
    tmp_path: Path, provisioned: Vault
) -> None:
    url = sqlite_at(tmp_path / "empty.db")
    create_private_file(url)
    server = Server(url, provisioned)
    with capture_logs() as lines:
        answer = await server.hears("startup")
    assert answer == {
        "type": "lifespan.startup.failed",
        "message": "The database is empty. Run: keyman db upgrade",
    }
    fault = await server.fault()
    assert fault is not None
    assert (fault.__cause__, fault.__context__) == (None, None)
    assert [line for line in lines if line["log_level"] == "error"] == []


async def test_a_fault_of_the_start_is_logged_without_its_message(
    sqlite: URL, provisioned: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(CANARY)

    monkeypatch.setattr("keyman.planes.management.app.Sealer", fail)
    server = Server(sqlite, provisioned)
    with capture_logs() as lines:
        answer = await server.hears("startup")
        fault = await server.fault()
    assert answer["type"] == "lifespan.startup.failed"
    assert "builtins.RuntimeError" in str(lines)
    assert CANARY not in f"{answer} {fault!r} {lines}"


async def test_a_plane_without_its_database_answers_503_and_stops_in_order(
    provisioned: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starting, "PAUSE", 0.01)
    server = Server(make_url(f"postgresql+asyncpg://u:{CANARY}@127.0.0.1:{free_port()}/keyman"), provisioned)
    client = server.plane.client()
    with capture_logs() as lines:
        assert await server.hears("startup") == {"type": "lifespan.startup.complete"}
        assert (await client.get("/livez")).json() == {"status": "ok"}
        assert (await client.get("/readyz")).status_code == 503
        for method, path in (("GET", "/api/keys"), ("POST", "/livez"), ("GET", "/"), ("GET", "/nothing")):
            refused = await client.request(method, path)
            assert (refused.status_code, refused.json()["type"]) == (503, "/problems/database-unavailable"), path
            assert int(refused.headers["retry-after"]) > 0
            assert refused.headers["x-request-id"]
        assert await server.hears("shutdown") == {"type": "lifespan.shutdown.complete"}
        assert await server.fault() is None
    assert "ConnectionRefusedError" in str(lines)
    assert CANARY not in str(lines)


async def test_a_database_that_stays_away_is_logged_once_and_not_at_each_attempt(
    provisioned: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = 0
    pause = starting._pause

    async def counting(ended: asyncio.Event) -> None:
        nonlocal attempts
        attempts += 1
        await pause(ended)

    monkeypatch.setattr(starting, "PAUSE", 0.01)
    monkeypatch.setattr(starting, "_pause", counting)
    server = Server(make_url(f"postgresql+asyncpg://u:{CANARY}@127.0.0.1:{free_port()}/keyman"), provisioned)
    with capture_logs() as lines:
        await server.hears("startup")
        await becomes(lambda: attempts >= 5, "five attempts")
        await server.hears("shutdown")
        assert await server.fault() is None
    said = [line["event"] for line in lines if line["log_level"] in ("warning", "error")]
    assert said == ["database unavailable", "the database is away: the plane answers 503 and tries again"]


async def test_a_plane_that_could_not_be_opened_at_first_is_whole_afterwards(
    sqlite: URL, provisioned: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parts of the first attempt were closed. None of them is used again, such as the threads of Argon2."""
    monkeypatch.setattr(starting, "PAUSE", 0.01)
    raised = [DatabaseUnavailable(), MissingRight("the database refused a statement")]
    check = assembly.check_vault

    async def failing_twice(guard: Guard) -> None:
        if raised:
            raise raised.pop(0)
        await check(guard)

    monkeypatch.setattr(assembly, "check_vault", failing_twice)
    server = Server(sqlite, provisioned, signup_open=True)
    assert await server.hears("startup") == {"type": "lifespan.startup.complete"}
    client = server.plane.client()
    body = {"email": "ada@example.com", "password": PASSWORD}
    await becomes(lambda: not raised, "both faults")

    async def is_open() -> bool:
        return (await client.get("/readyz")).status_code == 200

    await becomes(is_open, "readiness")
    assert (await client.post("/api/auth/signup", json=body)).status_code == 201
    assert await server.hears("shutdown") == {"type": "lifespan.shutdown.complete"}
    assert await server.fault() is None
