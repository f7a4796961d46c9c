"""Hostile requests to both planes on both databases: no server error, no hang, no echo, no trace in the log.

The suite sends a sample. `make attack` sends a million, with other requests each time; its report names the seed.
"""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from argon2 import PasswordHasher
from sqlalchemy.engine import URL

from keyman.identity import applications, personal_tokens, sessions, users
from keyman.identity.passwords import Passwords
from keyman.identity.tokens import ALL_SCOPES
from keyman.ids import UserId
from keyman.storage.transactions import Database, Unchecked
from keyman.values import ApplicationName, EmailAddress, NewPassword, RequiredLabel
from tests.attack.generator import Generator, Known
from tests.attack.wire import Report, attack
from tests.support.cli import Service, serve, variables
from tests.support.http import NO_TLS
from tests.support.planes import PASSWORD, Vault
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.anyio

REQUESTS = int(os.environ.get("KEYMAN_ATTACK_REQUESTS", "600"))
"""Requests to each plane on each database."""

SECONDS = float(os.environ.get("KEYMAN_ATTACK_SECONDS", "300"))
"""An upper bound for each of the four attacks."""

SEED = int(os.environ.get("KEYMAN_ATTACK_SEED", "0")) or random.SystemRandom().getrandbits(32)

ROUND = 5_000
"""Requests until the attacker gets new credentials: the attack revokes those that it has."""

ACCOUNTS = 10
WITHOUT_LIMITS = {"KEYMAN_MAX_WRITES": "0", "KEYMAN_RESOLVE_RATE": "100000"}
"""The attack is to reach what lies behind the limits."""


@dataclass
class Accounts:
    """The attacker's accounts, and an application. New credentials come straight from the database."""

    db: Database
    emails: list[EmailAddress]
    ids: list[UserId]

    @classmethod
    async def made(cls, db: Database, quick: PasswordHasher) -> Accounts:
        passwords = Passwords(quick)
        emails = [EmailAddress(f"mallory{number}@example.com") for number in range(ACCOUNTS)]
        made = [await users.add(db, passwords, email, NewPassword(PASSWORD)) for email in emails]
        passwords.close()
        return cls(db, emails, [UserId(account.id) for account in made])

    async def known(self, round_: int) -> Known:
        label = RequiredLabel(f"round {round_}")
        tokens = [await personal_tokens.create_for(self.db, email, label, ALL_SCOPES) for email in self.emails]
        async with self.db.write(Unchecked.OPERATOR) as connection:
            opened = [(await sessions.open_session(connection, id_)).reveal() for id_ in self.ids]
        return Known([one.token for one in tokens], opened, [*range(1, 60), 10**6])

    async def application(self, round_: int) -> Known:
        made = await applications.create(self.db, ApplicationName(f"mallory-{round_}"), ["OPENAI", "ANTHROPIC"])
        return Known([made.token.reveal()], [], [*range(1, 60), 10**6])


@pytest.fixture
async def accounts(database: URL, quick_passwords: PasswordHasher) -> AsyncIterator[Accounts]:
    db = Database(database)
    yield await Accounts.made(db, quick_passwords)
    await db.close()


async def _attacked(service: Service, accounts: Accounts, plane: str) -> Report:
    async with httpx.AsyncClient(base_url=service.url, timeout=PATIENCE, verify=NO_TLS) as client:
        document = (await client.get("/docs/openapi.json")).json()
    port, total = urlsplit(service.url).port, Report()
    assert port is not None
    for round_ in range(-(-REQUESTS // ROUND)):
        known = await (accounts.known(round_) if plane == "management" else accounts.application(round_))
        generator = Generator(document, known, SEED + round_)
        count = min(ROUND, REQUESTS - round_ * ROUND)
        total.add(await attack(port, generator.draw, count, SECONDS * count / REQUESTS))
    return total


@pytest.mark.parametrize("plane", ["management", "resolver"])
async def test_no_hostile_request_breaks_hangs_or_repeats_a_secret(
    plane: str, accounts: Accounts, database: URL, provisioned: Vault, tmp_path: Path
) -> None:
    vault = provisioned.settings if plane == "management" else provisioned.resolver
    env = {**variables(vault, database), **WITHOUT_LIMITS}
    if plane == "resolver":
        await _stored_values(accounts, database, provisioned, tmp_path / "before")
    with serve(env, tmp_path / plane, "--plane", plane) as service:
        report = await _attacked(service, accounts, plane)
        assert service.is_ready()
        log = service.live.err
    print(f"{plane} on {database.get_backend_name()}, seed {SEED}:", *report.lines(), sep="\n  ")  # noqa: T201
    assert report.faults == {}
    assert report.sent == REQUESTS, f"only {report.sent} of {REQUESTS} requests within {SECONDS:.0f} s"
    assert report.reached >= REQUESTS / 20, "too few requests reached a handler for the attack to mean something"
    assert "c4n4ry" not in log
    assert "Traceback" not in log


async def _stored_values(accounts: Accounts, database: URL, provisioned: Vault, directory: Path) -> None:
    """Store keys that the application may resolve."""
    known = await accounts.known(-1)
    with serve(variables(provisioned.settings, database), directory) as service:
        for token in known.tokens:
            headers = {"Authorization": f"Bearer {token}"}
            async with httpx.AsyncClient(
                base_url=service.url, headers=headers, timeout=PATIENCE, verify=NO_TLS
            ) as client:
                body = {"service": "OPENAI", "api_key": "sk-hq2v9mXbT0c7eUKwN4Rd1234"}
                assert (await client.post("/api/keys", json=body)).status_code == 201
