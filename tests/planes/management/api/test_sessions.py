"""Sessions: a cookie is invalid as soon as the server ends its session."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import time_machine
from argon2 import PasswordHasher
from sqlalchemy import select
from sqlalchemy.engine import URL, make_url

from keyman.config import network
from keyman.identity.passwords import Passwords
from keyman.identity.sessions import SESSION_IDLE, SESSION_LIFETIME, session_digest
from keyman.identity.tables import sessions
from keyman.planes.management import housekeeping
from tests.planes.management.api.harness import (
    ApiPlane,
    cookie_of,
    email_of,
    fresh_plane_at,
    log_in,
    problem,
    set_cookie,
)
from tests.support.planes import PASSWORD, Vault

pytestmark = pytest.mark.anyio


async def test_logging_out_kills_the_session_on_the_server(shared: ApiPlane) -> None:
    ada = await shared.user()
    other, thief = await log_in(shared, await email_of(ada)), shared.with_cookie(cookie_of(ada))
    assert (await thief.get("/api/auth/me")).status_code == 200
    answer = await ada.post("/api/auth/logout")
    assert (answer.status_code, answer.content) == (204, b"")
    value, attributes = set_cookie(answer)
    assert value.strip('"') == ""
    assert attributes["max-age"] == "0"
    assert "keyman_session" not in ada.cookies
    for client in (thief, ada):
        problem(await client.get("/api/auth/me"), "unauthenticated")
        problem(await client.post("/api/auth/logout"), "unauthenticated")
    assert (await other.get("/api/auth/me")).status_code == 200


async def test_a_cookie_that_was_planted_before_is_not_signed_in(shared: ApiPlane) -> None:
    victim = await email_of(await shared.user())
    for planted in ("planted", "A" * 43, "", "x; keyman_session=y"):
        browser, attacker = shared.with_cookie(planted), shared.with_cookie(planted)
        answer = await browser.post("/api/auth/login", json={"email": victim, "password": PASSWORD})
        assert answer.status_code == 200
        assert set_cookie(answer)[0] != planted
        problem(await attacker.get("/api/auth/me"), "unauthenticated")


async def test_an_attackers_own_session_does_not_become_the_victims(shared: ApiPlane) -> None:
    victim, attacker = await email_of(await shared.user()), await shared.user()
    browser = shared.with_cookie(cookie_of(attacker))
    answer = await browser.post("/api/auth/login", json={"email": victim, "password": PASSWORD})
    assert answer.status_code == 200
    assert (await attacker.get("/api/auth/me")).json().get("email") != victim
    browser = shared.with_cookie(cookie_of(await shared.user()))
    signed_up = await browser.post("/api/auth/signup", json={"email": "fixed@example.com", "password": PASSWORD})
    assert signed_up.status_code == 201
    assert (await browser.get("/api/auth/me")).json().get("email") != "fixed@example.com"


async def test_signing_in_again_ends_the_session_that_the_browser_had(shared: ApiPlane) -> None:
    ada = await shared.user()
    email, before = await email_of(ada), cookie_of(ada)
    assert (await ada.post("/api/auth/login", json={"email": email, "password": PASSWORD})).status_code == 200
    assert cookie_of(ada) != before
    problem(await shared.with_cookie(before).get("/api/auth/me"), "unauthenticated")


async def test_a_failed_sign_in_leaves_the_session_that_there_was(shared: ApiPlane) -> None:
    ada = await shared.user()
    answer = await ada.post("/api/auth/login", json={"email": await email_of(ada), "password": "wrong" * 3})
    problem(answer, "unauthenticated")
    assert (await ada.get("/api/auth/me")).status_code == 200


async def test_a_session_that_is_not_used_ends(shared: ApiPlane) -> None:
    ada = await shared.user()
    start = datetime.now(UTC)
    with time_machine.travel(start + SESSION_IDLE - timedelta(minutes=1), tick=False) as clock:
        assert (await ada.get("/api/auth/me")).status_code == 200
        clock.shift(SESSION_IDLE - timedelta(minutes=1))
        assert (await ada.get("/api/auth/me")).status_code == 200
        clock.shift(SESSION_IDLE + timedelta(minutes=1))
        problem(await ada.get("/api/auth/me"), "unauthenticated")


async def test_a_session_ends_however_much_it_is_used(shared: ApiPlane) -> None:
    ada = await shared.user()
    start = datetime.now(UTC)
    with time_machine.travel(start, tick=False) as clock:
        for days in range(SESSION_LIFETIME.days):
            clock.move_to(start + timedelta(days=days + 1, minutes=-5))
            assert (await ada.get("/api/auth/me")).status_code == 200
        clock.move_to(start + SESSION_LIFETIME + timedelta(seconds=5))
        problem(await ada.get("/api/auth/me"), "unauthenticated")


async def test_the_last_use_of_a_session_is_written_at_most_once_a_minute(shared: ApiPlane) -> None:
    ada = await shared.user()
    digest = session_digest(cookie_of(ada))

    async def last_seen() -> datetime:
        async with shared.database.read() as connection:
            column = select(sessions.c.last_seen_at).where(sessions.c.id_hash == digest)
            moment: datetime = (await connection.execute(column)).scalar_one()
            return moment

    start = await last_seen()
    with time_machine.travel(start, tick=False) as clock:
        for seconds, expected in ((1, 0), (59, 0), (60, 60), (119, 60), (121, 121)):
            clock.move_to(start + timedelta(seconds=seconds))
            assert (await ada.get("/api/auth/me")).status_code == 200
            assert await last_seen() == start + timedelta(seconds=expected), seconds


async def test_housekeeping_removes_what_has_ended_and_nothing_else(api_plane: ApiPlane) -> None:
    ada = await api_plane.user()
    email = await email_of(ada)
    with time_machine.travel(datetime.now(UTC) + SESSION_IDLE - timedelta(hours=1), tick=True) as clock:
        fresh = await log_in(api_plane, email)
        clock.shift(timedelta(hours=2))
        await housekeeping.sweep(api_plane.database)
        (left,) = await api_plane.rows(sessions)
        assert left.id_hash == session_digest(cookie_of(fresh))
        assert (await fresh.get("/api/auth/me")).status_code == 200


@pytest.mark.parametrize(
    ("public_url", "secure"),
    [
        ("http://127.0.0.1:8000", False),
        ("https://keys.example.com", True),
        (network.public_url("HTTPS://keys.example.com"), True),
        ("http://keys.example.com", True),
        (None, True),
    ],
)
async def test_the_cookie_is_kept_from_scripts_and_from_plain_http(
    provisioned: Vault, tmp_path_factory: pytest.TempPathFactory, public_url: str | None, secure: bool
) -> None:
    database = cookie_database(tmp_path_factory)
    async with fresh_plane_at(database, provisioned.settings, quick(), public_url=public_url) as plane:
        visitor = plane.client()
        body = {"email": "ada@example.com", "password": PASSWORD}
        answers = [await visitor.post(f"/api/auth/{name}", json=body) for name in ("signup", "login")]
        value, _ = set_cookie(answers[-1])
        cookie = {"Cookie": f"{plane.settings.session_cookie}={value}"}
        answers.append(await plane.client(headers=cookie).post("/api/auth/logout"))
        for answer in answers:
            _, attributes = set_cookie(answer)
            assert ("secure" in attributes) is secure
            assert "httponly" in attributes
            assert attributes["samesite"].lower() == "lax"
            assert attributes["path"] == "/"
            assert "domain" not in attributes
        assert 0 < int(set_cookie(answers[0])[1]["max-age"]) <= SESSION_LIFETIME.total_seconds()
        is_https = public_url is not None and public_url.startswith("https")
        assert ("strict-transport-security" in answers[0].headers) is is_https


def cookie_database(directories: pytest.TempPathFactory) -> URL:
    return make_url(f"sqlite+aiosqlite:///{directories.mktemp('cookies')}/keyman.db")


def quick() -> Passwords:
    return Passwords(PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
