"""Those who sign in again and again keep nobody else out: production's Argon2id, behind the real HTTP server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import httpx
import pytest
from sqlalchemy.engine import URL, make_url

from keyman import migrations
from keyman.identity.passwords import THREADS
from tests.planes.management.api.served import PRODUCTION, served
from tests.support.http import NO_TLS
from tests.support.planes import PASSWORD, Vault
from tests.support.waiting import PATIENCE, becomes

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

CONNECTIONS = 40
ACCOUNTS = 8

OWNER = "198.51.100.7"
NEWCOMER = "owner@example.com"

ATTACKS: dict[str, Callable[[int], tuple[str, str]]] = {
    "one account from one network": lambda _: ("eve0@example.com", "203.0.113.1"),
    "one account from many networks": lambda n: ("eve0@example.com", f"203.0.{n}.1"),
    "one network with many accounts": lambda n: (f"eve{n % ACCOUNTS}@example.com", "203.0.113.1"),
    "one IPv6 /48 with many accounts": lambda n: (f"eve{n % ACCOUNTS}@example.com", f"2001:db8:5:{n:x}::1"),
}
"""For each attack, the account and the address of each of its connections."""


@pytest.fixture(scope="module")
def url(provisioned: Vault, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("queue")
    database: URL = make_url(f"sqlite+aiosqlite:///{directory}/keyman.db")
    asyncio.run(migrations.upgrade(database))
    variables = {PRODUCTION: "1", "KEYMAN_TRUSTED_PROXIES": "127.0.0.1"}
    with served(database, provisioned.settings, directory / "log", **variables) as running:
        for email in (NEWCOMER, *(f"eve{n}@example.com" for n in range(ACCOUNTS))):
            body = {"email": email, "password": PASSWORD}
            answer = httpx.post(f"{running}/api/auth/signup", json=body, timeout=PATIENCE, verify=NO_TLS)
            assert answer.status_code == 201
        yield running


class Crowd:
    """Connections that sign in without an end. `answers` has their statuses in the order in which they came."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self.answers: list[int] = []

    @property
    def hashed(self) -> int:
        """The number of answers for which a password was verified."""
        return self.answers.count(200)

    async def keep_on(self, email: str, address: str) -> None:
        while True:
            answer = await log_in(self._client, email, address)
            self.answers.append(answer.status_code)
            if answer.status_code == 429:
                assert int(answer.headers["retry-after"]) >= 1
                await asyncio.sleep(0.1)  # the sender does not wait as long as it should


async def log_in(client: httpx.AsyncClient, email: str, address: str) -> httpx.Response:
    body = {"email": email, "password": PASSWORD}
    return await client.post("/api/auth/login", json=body, headers={"X-Forwarded-For": address})


@asynccontextmanager
async def crowd(url: str, attack: str) -> AsyncIterator[Crowd]:
    limits = httpx.Limits(max_connections=CONNECTIONS)
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE, verify=NO_TLS, limits=limits) as client:
        attackers = Crowd(client)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(attackers.keep_on(*ATTACKS[attack](n))) for n in range(CONNECTIONS)]
            await becomes(lambda: attackers.hashed >= 2, "the first answers")
            yield attackers
            for task in tasks:
                task.cancel()


@pytest.mark.parametrize("attack", ATTACKS)
async def test_an_owner_elsewhere_is_next_in_turn(url: str, attack: str) -> None:
    async with (
        crowd(url, attack) as attackers,
        httpx.AsyncClient(base_url=url, timeout=PATIENCE, verify=NO_TLS) as client,
    ):
        for _ in range(3):
            await client.get("/livez")  # the connection is open, and the answers before this one are here
            await asyncio.sleep(0.01)  # and read
            before = attackers.hashed
            answer = await log_in(client, NEWCOMER, OWNER)
            assert answer.status_code == 200, answer.text
            # Those whose passwords are being verified, and those whose answers are already on the way.
            assert attackers.hashed - before <= 2 * THREADS + 1
