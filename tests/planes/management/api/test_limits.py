"""What one account can use: keys, writes and sessions; and how many requests can wait in a process."""

from __future__ import annotations

import asyncio
import socket
import sqlite3
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import httpx
import pytest
from argon2 import PasswordHasher
from sqlalchemy import select
from sqlalchemy.engine import URL

from keyman.identity.passwords import Passwords
from keyman.identity.sessions import MAX_SESSIONS, open_session
from keyman.identity.tables import sessions, users
from keyman.ids import UserId
from keyman.keys.tables import api_keys
from keyman.storage.transactions import Unchecked
from tests.planes.management.api.harness import OPENAI_KEY, ApiPlane, api_plane_at, email_of, log_in, problem
from tests.planes.management.api.served import served
from tests.support.http import NO_TLS
from tests.support.planes import PASSWORD, Vault
from tests.support.waiting import PATIENCE, becomes

pytestmark = pytest.mark.anyio

KEY = {"service": "OPENAI", "api_key": OPENAI_KEY}


# --- keys


async def test_an_owner_can_have_so_many_keys(
    database: URL, provisioned: Vault, quick_passwords: PasswordHasher
) -> None:
    async with api_plane_at(database, provisioned.settings, Passwords(quick_passwords), max_keys=3) as plane:
        ada, eve = await plane.user(), await plane.user()
        first = {"Idempotency-Key": "the first"}
        stored = [await ada.post("/api/keys", json=KEY, headers=first if n == 0 else {}) for n in range(3)]
        assert {answer.status_code for answer in stored} == {201}
        refused = await ada.post("/api/keys", json=KEY)
        assert "as it can have: 3." in problem(refused, "rate-limited")["detail"]
        assert await plane.count(api_keys) == 3
        page = {"Accept": "text/html", "Sec-Fetch-Site": "same-origin"}
        shown = await ada.post("/settings/api-keys", data=KEY, headers=page)
        assert shown.status_code == 429
        assert "as it can have: 3." in shown.text

        replayed = await ada.post("/api/keys", json=KEY, headers=first)
        assert (replayed.status_code, replayed.headers["idempotent-replayed"]) == (201, "true")
        assert (await ada.put("/api/keys/1", json={"api_key": OPENAI_KEY})).status_code == 200
        assert (await eve.post("/api/keys", json=KEY)).status_code == 201
        assert (await ada.delete("/api/keys/2")).status_code == 204
        assert (await ada.post("/api/keys", json=KEY)).status_code == 201


async def test_requests_at_once_store_no_more_than_that(
    database: URL, provisioned: Vault, quick_passwords: PasswordHasher
) -> None:
    passwords, settings = Passwords(quick_passwords), provisioned.settings
    async with (
        api_plane_at(database, settings, passwords, max_keys=5) as plane,
        api_plane_at(database, settings, passwords, max_keys=5) as replica,
    ):
        ada = await plane.user()
        there = replica.client(headers={"Cookie": f"keyman_session={ada.cookies['keyman_session']}"})
        answers = await asyncio.gather(*(client.post("/api/keys", json=KEY) for client in (ada, there) * 12))
        assert sorted(answer.status_code for answer in answers) == [201] * 5 + [429] * 19
        assert await plane.count(api_keys) == 5


async def test_no_limit_is_no_limit(sqlite: URL, provisioned: Vault, quick_passwords: PasswordHasher) -> None:
    async with api_plane_at(sqlite, provisioned.settings, Passwords(quick_passwords), max_keys=0) as plane:
        ada = await plane.user()
        assert [(await ada.post("/api/keys", json=KEY)).status_code for _ in range(5)] == [201] * 5


# --- writes


async def test_an_account_can_change_so_much_a_minute(
    sqlite: URL, provisioned: Vault, quick_passwords: PasswordHasher
) -> None:
    async with api_plane_at(sqlite, provisioned.settings, Passwords(quick_passwords), max_writes=6) as plane:
        ada, eve = await plane.user(), await plane.user()
        email = await email_of(ada)
        script = await plane.token(ada)
        other = await log_in(plane, email)
        key = (await script.post("/api/keys", json=KEY)).json()["id"]
        for client in (ada, script, other, ada):
            assert (await client.patch(f"/api/keys/{key}", json={"name": "again"})).status_code == 200
        for client in (ada, script, other):
            for answer in (
                await client.post("/api/keys", json=KEY),
                await client.put(f"/api/keys/{key}", json={"api_key": OPENAI_KEY}),
                await client.patch(f"/api/keys/{key}", json={"disabled": True}),
                await client.delete(f"/api/keys/{key}"),
                await client.post("/api/keys", content=b"not JSON"),
            ):
                assert "too many changes" in problem(answer, "rate-limited")["detail"]
                assert int(answer.headers["retry-after"]) <= 10
        problem(await ada.post("/api/tokens", json={"name": "more"}), "rate-limited")
        page = {"Accept": "text/html", "Sec-Fetch-Site": "same-origin"}
        for path in ("/settings/api-keys", f"/settings/api-keys/{key}/pause", "/settings/access-tokens"):
            shown = await ada.post(path, data=KEY, headers=page)
            assert shown.status_code == 429
            assert "too many changes" in shown.text

        # Reading goes on, and so do others.
        assert (await ada.get(f"/api/keys/{key}")).json()["status"] == "active"
        assert (await eve.post("/api/keys", json=KEY)).status_code == 201


async def test_somebody_with_a_stolen_session_cannot_keep_its_owner_from_ending_it(
    sqlite: URL, provisioned: Vault, quick_passwords: PasswordHasher
) -> None:
    async with api_plane_at(sqlite, provisioned.settings, Passwords(quick_passwords), max_writes=3) as plane:
        ada = await plane.user()
        email = await email_of(ada)
        thief, token = plane.with_cookie(ada.cookies["keyman_session"]), await plane.token(ada, "keys:write")

        async def use_up() -> None:
            while (await thief.post("/api/keys", content=b"x")).status_code not in (401, 429):
                pass

        await use_up()
        page = {"Accept": "text/html", "Sec-Fetch-Site": "same-origin"}
        listed = (await ada.get("/api/tokens")).json()
        assert (await ada.delete(f"/api/tokens/{listed[0]['id']}")).status_code == 204
        problem(await token.get("/api/keys"), "unauthenticated")
        for path in ("sessions/others/end", "sessions/99/end"):
            assert (await ada.post(f"/settings/account/{path}", data={"x": ""}, headers=page)).status_code == 303
        browser = await log_in(plane, email)
        await use_up()
        change = {"current_password": PASSWORD, "new_password": "another horse, another battery"}
        assert (await browser.put("/api/auth/password", json=change)).status_code == 204
        problem(await thief.get("/api/keys"), "unauthenticated")
        assert (await browser.post("/api/auth/logout")).status_code == 204


# --- sessions


async def test_beyond_so_many_sessions_the_oldest_ends(shared: ApiPlane) -> None:
    ada, eve = await shared.user(), await shared.user()
    email = await email_of(ada)
    second = await log_in(shared, email)
    async with shared.database.write(Unchecked.OPERATOR) as connection:
        found = (await connection.execute(select(users.c.id).where(users.c.email == email))).scalar_one()
        for _ in range(MAX_SESSIONS - 2):
            await open_session(connection, UserId(found))
    for client in (ada, second, eve):
        assert (await client.get("/api/auth/me")).status_code == 200
    newest = await log_in(shared, email)
    problem(await ada.get("/api/auth/me"), "unauthenticated")
    for client in (second, newest, eve):
        assert (await client.get("/api/auth/me")).status_code == 200
    logins = await asyncio.gather(*(log_in(shared, email) for _ in range(3)))
    for client in logins:
        assert (await client.get("/api/auth/me")).status_code == 200
    open_now = [row for row in await shared.rows(sessions) if row.user_id == found]
    assert len(open_now) == MAX_SESSIONS


# --- what waits


async def test_beyond_so_many_waiting_requests_there_is_an_answer_at_once(
    sqlite: URL, provisioned: Vault, tmp_path: Path
) -> None:
    """Behind the real server: the requests wait for a lock on the database, which another process holds."""
    with served(sqlite, provisioned.settings, tmp_path / "log", KEYMAN_MAX_QUEUE="3") as url:
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE, verify=NO_TLS) as client:
            answer = await client.post("/api/auth/signup", json={"email": "ada@example.com", "password": PASSWORD})
            assert answer.status_code == 201
            with closing(sqlite3.connect(sqlite.database or "")) as lock:
                lock.execute("BEGIN IMMEDIATE")
                is_free = asyncio.Event()

                async def keep_on() -> None:
                    while not is_free.is_set():
                        await client.post("/api/tokens", json={"name": "x"})

                async def is_refused(path: str) -> bool:
                    answer = await client.get(path)
                    if answer.status_code == 503 and path != "/sign-in":
                        assert int(answer.headers["retry-after"]) >= 1
                        problem(answer, "overloaded")
                    return answer.status_code == 503

                writers = [asyncio.create_task(keep_on()) for _ in range(8)]
                for path in ("/api/keys", "/sign-in"):
                    await becomes(partial(is_refused, path), "the queue")
                    assert (await client.get("/livez")).status_code == 200
                is_free.set()
                lock.rollback()
            await asyncio.gather(*writers)
            assert (await client.get("/api/keys")).status_code == 200
            assert (await client.post("/api/tokens", json={"name": "x"})).status_code == 201


async def test_a_body_that_does_not_come_takes_no_place(sqlite: URL, provisioned: Vault, tmp_path: Path) -> None:
    with served(sqlite, provisioned.settings, tmp_path / "log", KEYMAN_MAX_QUEUE="3") as url, ExitStack() as stack:
        server = httpx.URL(url)
        connections: list[socket.socket] = []
        while sum(map(_has_no_answer, connections)) <= 6:  # twice as many as may wait
            assert len(connections) < 100, "they take places"
            connection = stack.enter_context(socket.create_connection((server.host, server.port or 0)))
            head = f"POST /api/auth/login HTTP/1.1\r\nHost: {server.host}:{server.port}\r\nContent-Length: 50\r\n\r\n"
            connection.sendall(head.encode() + b'{"email"')
            connections.append(connection)
            await asyncio.sleep(0.05)
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE, verify=NO_TLS) as client:

            async def has_room() -> bool:
                return (await client.get("/sign-in")).status_code == 200

            await becomes(has_room, "room for others")
            assert sum(map(_has_no_answer, connections)) > 3
            for n in range(3):
                body = {"email": f"ada{n}@example.com", "password": PASSWORD}
                assert (await client.post("/api/auth/signup", json=body)).status_code == 201


def _has_no_answer(connection: socket.socket) -> bool:
    try:
        connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return True
    return False
