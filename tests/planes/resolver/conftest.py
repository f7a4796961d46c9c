"""Pairs of planes that tests share: one over each database for a worker. Every test adds users of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest
from argon2 import PasswordHasher
from sqlalchemy.engine import URL, make_url

from keyman import migrations
from keyman.audit import verification
from keyman.keys.deployment import Deployment
from tests.planes.resolver.pair import Pair, pair_at
from tests.support.database import PostgresServer
from tests.support.planes import ORIGIN, Vault


@asynccontextmanager
async def _shared(database: URL, vault: Vault, quick: PasswordHasher) -> AsyncIterator[Pair]:
    """A pair. At the end its audit log must be whole, because a test that damages it would fail others."""
    await migrations.upgrade(database)
    async with pair_at(database, vault.settings, vault.resolver, quick, public_url=ORIGIN) as pair:
        yield pair
        db = pair.management.database
        verified = await verification.verify(db, (await Deployment.load(db)).uuid)
        assert not verified.breaks


@pytest.fixture(scope="session")
async def sqlite_pair(
    tmp_path_factory: pytest.TempPathFactory, provisioned: Vault, quick_passwords: PasswordHasher
) -> AsyncIterator[Pair]:
    url = make_url(f"sqlite+aiosqlite:///{tmp_path_factory.mktemp('pair')}/keyman.db")
    async with _shared(url, provisioned, quick_passwords) as pair:
        yield pair


@pytest.fixture(scope="session")
def pair_database(postgres: PostgresServer) -> Iterator[URL]:
    name = f"pair_{uuid4().hex}"
    yield make_url(postgres.create_database(name))
    postgres.drop_database(name)


@pytest.fixture(scope="session")
async def postgresql_pair(
    pair_database: URL, provisioned: Vault, quick_passwords: PasswordHasher
) -> AsyncIterator[Pair]:
    async with _shared(pair_database, provisioned, quick_passwords) as pair:
        yield pair


@pytest.fixture(params=["sqlite", "postgresql"])
def shared_pair(request: pytest.FixtureRequest, anyio_backend: str) -> Pair:
    """The worker's pair over one database and over the other."""
    pair: Pair = request.getfixturevalue(f"{request.param}_pair")
    return pair
