"""Hostile requests to both planes on both databases: no server error, no hang, no echo, no trace in the log.

The suite sends a sample. `make attack` sends a million, with other requests each time; its report names the seed.
"""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from argon2 import PasswordHasher
from litestar.routes import HTTPRoute
from sqlalchemy import select
from sqlalchemy.engine import URL

from keyman.config.vault import VaultSettings
from keyman.identity import applications, personal_tokens, sessions, users
from keyman.identity.passwords import Passwords
from keyman.identity.tables import api_tokens
from keyman.identity.tables import users as users_table
from keyman.identity.tokens import ALL_SCOPES
from keyman.ids import UserId
from keyman.keys.tables import api_keys
from keyman.planes.management import web
from keyman.storage.transactions import Database, Unchecked
from keyman.values import ApplicationName, EmailAddress, NewPassword, RequiredLabel
from tests.attack.generator import VICTIM, Generator, Known
from tests.attack.report import Report
from tests.attack.wire import attack
from tests.support.cli import Service, serve, variables
from tests.support.http import NO_TLS
from tests.support.needs import quick_on
from tests.support.planes import PASSWORD, Vault, plane_at
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.anyio

REQUESTS = int(os.environ.get("KEYMAN_ATTACK_REQUESTS", "1800"))
"""Requests to both planes on both databases."""

SECONDS = float(os.environ.get("KEYMAN_ATTACK_SECONDS", "1200"))
"""An upper bound for the four attacks together."""


class Share(NamedTuple):
    """The part of the requests, and of the time, that a plane gets on one database."""

    requests: float
    time: float


# The management plane takes two and a half times as long for a request: it renders pages and hashes passwords.
SHARES = {"management": Share(0.16, 0.28), "resolver": Share(0.34, 0.22)}

SEED = int(os.environ.get("KEYMAN_ATTACK_SEED", "0")) or random.SystemRandom().getrandbits(32)

ROUND = 5_000
"""Requests until the attacker gets new credentials: the attack revokes those that it has."""

MAX_LIMITED = 0.02
"""The share of requests that a limit may refuse. With more of them, the attack would meet only the limits."""

ACCOUNTS = 10
APP_ORIGIN = "https://app.example.com"
WITHOUT_LIMITS = {"KEYMAN_MAX_WRITES": "0", "KEYMAN_MAX_KEYS": "0", "KEYMAN_RESOLVE_RATE": "100000"}
"""The attack is to reach what lies behind the limits."""

BEHIND_A_PROXY = {
    "KEYMAN_PUBLIC_URL": "https://keys.example.com",
    "KEYMAN_TRUSTED_PROXIES": "127.0.0.0/8",
    "KEYMAN_CORS_ORIGINS": APP_ORIGIN,
}
BELOW_A_PATH = {**BEHIND_A_PROXY, "KEYMAN_ROOT_PATH": "/keyman"}
SET_UPS: dict[str, tuple[Mapping[str, str], ...]] = {"management": ({}, BELOW_A_PATH), "resolver": ({}, BEHIND_A_PROXY)}
"""The set-ups of each plane. Each gets an equal part of the requests."""


@dataclass
class Accounts:
    """The attacker's accounts, one that is not theirs, and an application. New credentials come from the database."""

    db: Database
    emails: list[EmailAddress]
    ids: list[UserId]
    victim: UserId

    @classmethod
    async def made(cls, db: Database, quick: PasswordHasher) -> Accounts:
        passwords = Passwords(quick)
        names = [*(f"mallory{number}" for number in range(ACCOUNTS)), VICTIM.decode()]
        emails = [EmailAddress(f"{name}@example.com") for name in names]
        made = [await users.add(db, passwords, email, NewPassword(PASSWORD)) for email in emails]
        passwords.close()
        *ids, victim = [UserId(account.id) for account in made]
        return cls(db, emails[:-1], ids, victim)

    async def token(self, email: EmailAddress, label: str) -> str:
        made = await personal_tokens.create_for(self.db, email, RequiredLabel(label), ALL_SCOPES)
        return made.token

    async def known(self, label: str) -> Known:
        tokens = [await self.token(email, label) for email in self.emails]
        async with self.db.write(Unchecked.OPERATOR) as connection:
            opened = [(await sessions.open_session(connection, id_)).reveal() for id_ in self.ids]
        return Known(tokens, opened, [*range(1, 60), 10**6])

    async def application(self, label: str) -> Known:
        made = await applications.create(self.db, ApplicationName(label), ["OPENAI", "ANTHROPIC"])
        return Known([made.token.reveal()], [], [*range(1, 60), 10**6])

    async def of_victim(self) -> list[tuple[Any, ...]]:
        """Return what the database has of the victim's keys, tokens and account."""
        statements = (
            select(api_keys).where(api_keys.c.owner_id == self.victim),
            select(api_tokens.c.id, api_tokens.c.token_hash).where(api_tokens.c.user_id == self.victim),
            select(users_table).where(users_table.c.id == self.victim),
        )
        async with self.db.read() as connection:
            return [tuple(row) for one in statements for row in await connection.execute(one)]


@pytest.fixture
async def accounts(database: URL, quick_passwords: PasswordHasher) -> AsyncIterator[Accounts]:
    db = Database(database)
    yield await Accounts.made(db, quick_passwords)
    await db.close()


def _client(service: Service, root: str = "", token: str = "") -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.AsyncClient(base_url=service.url + root, headers=headers, timeout=PATIENCE, verify=NO_TLS)


def _pages() -> list[tuple[str, str]]:
    """Return the methods and paths of all pages."""
    routes = [route for route in web.router().routes if isinstance(route, HTTPRoute)]
    return [(method, one.path) for one in routes for method in sorted(one.methods) if method != "OPTIONS"]


async def _attacked(
    service: Service, accounts: Accounts, plane: str, label: str, count: int, deadline: float
) -> Report:
    port, total = urlsplit(service.url).port, Report()
    assert port is not None
    root = "/keyman" if plane == "management" and label == "1" else ""
    async with _client(service, root) as client:
        document = (await client.get("/docs/openapi.json")).json()
    for number in range(-(-count // ROUND)):
        name = f"mallory-{label}-{number}"
        known = await (accounts.known(name) if plane == "management" else accounts.application(name))
        known.root, known.origins = root, (APP_ORIGIN,) if root else ()
        if root:
            known.cookie = "__Secure-keyman_session"
        if plane == "management":
            await _learn(service, known)
        pages = _pages() if plane == "management" else ()
        generator = Generator(document, known, SEED + 1_000 * int(label) + number, pages)
        part = min(ROUND, count - number * ROUND)
        total.add(await attack(port, generator.draw, part, deadline - monotonic()))
    return total


async def _learn(service: Service, known: Known) -> None:
    """Store a few keys, and learn ETags and cursors from the answers."""
    etags, cursors = list(known.etags), list(known.cursors)
    for token in known.tokens[:3]:
        async with _client(service, known.root, token) as client:
            for number in range(2):
                body = {"service": "OPENAI", "api_key": f"sk-hq2v9mXbT0c7eUKwN4Rd123{number}"}
                made = await client.post("/api/keys", json=body)
                assert made.status_code == 201, made.text
                etags.append(made.headers["etag"])
            listed = await client.get("/api/keys?limit=1")
            cursors += parse_qs(urlsplit(listed.links["next"]["url"]).query)["cursor"]
    known.etags, known.cursors = etags, cursors


@pytest.mark.usefixtures("logged")  # of the plane in this process, which stores keys
@quick_on("sqlite")
@pytest.mark.parametrize("plane", ["management", "resolver"])
async def test_no_hostile_request_breaks_hangs_or_repeats_a_secret(
    plane: str, accounts: Accounts, database: URL, provisioned: Vault, tmp_path: Path
) -> None:
    vault = provisioned.settings if plane == "management" else provisioned.resolver
    await _store_values(accounts, database, provisioned.settings)
    wanted, seconds = int(REQUESTS * SHARES[plane].requests), SECONDS * SHARES[plane].time
    before, report, deadline = await accounts.of_victim(), Report(), monotonic() + seconds
    set_ups = SET_UPS[plane]
    for number, set_up in enumerate(set_ups):
        env = {**variables(vault, database), **WITHOUT_LIMITS, **set_up}
        with serve(env, tmp_path / f"{plane}-{number}", "--plane", plane) as service:
            report.add(await _attacked(service, accounts, plane, str(number), wanted // len(set_ups), deadline))
            assert service.is_ready()
            log = service.live.err
        assert not any(mark in log for mark in ("c4n4ry", "pl41n", VICTIM.decode(), "Traceback"))
    print(f"{plane} on {database.get_backend_name()}, seed {SEED}:", *report.lines(), sep="\n  ")  # noqa: T201
    assert report.faults == {}
    assert report.sent == wanted, f"only {report.sent} of {wanted} requests within {seconds:.0f} s"
    assert report.reached >= wanted / 20, "too few requests reached a handler for the attack to mean something"
    assert report.limited <= max(20, wanted * MAX_LIMITED), "the limits refused so many that the attack means little"
    assert await accounts.of_victim() == before


async def _store_values(accounts: Accounts, database: URL, vault: VaultSettings) -> None:
    """Store keys that the application may resolve, and others that it may not."""
    victim = await accounts.token(EmailAddress(f"{VICTIM.decode()}@example.com"), VICTIM.decode())
    own = await accounts.known("before")
    async with plane_at(database, vault) as plane:
        client = plane.client(headers={"Authorization": f"Bearer {victim}"})
        body = {"service": "MISTRAL", "api_key": f"hq2v9mXbT0c7{VICTIM.decode()}", "name": VICTIM.decode()}
        for number in range(3):
            answer = await client.post("/api/keys", json=body, headers={"Idempotency-Key": f"victim{number or ''}"})
            assert answer.status_code == 201, answer.text
        for token in own.tokens:
            client = plane.client(headers={"Authorization": f"Bearer {token}"})
            body = {"service": "OPENAI", "api_key": "sk-hq2v9mXbT0c7eUKwN4Rd1234"}
            assert (await client.post("/api/keys", json=body)).status_code == 201
