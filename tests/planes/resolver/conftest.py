"""Pairs of planes that tests share: one over each database for a worker. Every test adds users of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from uuid import uuid4

import pytest
from argon2 import PasswordHasher
from sqlalchemy.engine import URL, make_url

from keyman import migrations
from tests.planes.resolver.pair import Pair, pair_at
from tests.support.database import PostgresServer
from tests.support.planes import Vault


@pytest.fixture(scope="session")
async def sqlite_pair(
    tmp_path_factory: pytest.TempPathFactory, provisioned: Vault, quick_passwords: PasswordHasher
) -> AsyncIterator[Pair]:
    url = make_url(f"sqlite+aiosqlite:///{tmp_path_factory.mktemp('pair')}/keyman.db")
    await migrations.upgrade(url)
    async with pair_at(url, provisioned.settings, provisioned.resolver, quick_passwords) as pair:
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
    await migrations.upgrade(pair_database)
    async with pair_at(pair_database, provisioned.settings, provisioned.resolver, quick_passwords) as pair:
        yield pair


@pytest.fixture(params=["sqlite", "postgresql"])
def shared_pair(request: pytest.FixtureRequest, anyio_backend: str) -> Pair:
    """The worker's pair over one database and over the other."""
    pair: Pair = request.getfixturevalue(f"{request.param}_pair")
    return pair
