"""Planes that tests share: one over each database for a worker. Every test adds users of its own.

A test that changes settings, the time or the database itself takes an `api_plane` of its own.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from uuid import uuid4

import pytest
import structlog
from argon2 import PasswordHasher
from sqlalchemy.engine import URL, make_url

from keyman.identity.passwords import Passwords
from tests.planes.management.api.harness import ApiPlane, api_plane_at, fresh_plane_at
from tests.support.database import PostgresServer
from tests.support.planes import Vault


@pytest.fixture(autouse=True)
def _warnings_alone() -> Iterator[None]:
    """A line for each of some ten thousand requests would only be in the way of what a failed test has to say."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    yield
    structlog.configure(**before)


@pytest.fixture(scope="session")
def sqlite_database(tmp_path_factory: pytest.TempPathFactory) -> URL:
    return make_url(f"sqlite+aiosqlite:///{tmp_path_factory.mktemp('shared')}/keyman.db")


@pytest.fixture(scope="session")
def postgresql_database(postgres: PostgresServer) -> Iterator[URL]:
    name = f"shared_{uuid4().hex}"
    yield make_url(postgres.create_database(name))
    postgres.drop_database(name)


@pytest.fixture(scope="session")
async def sqlite_plane(
    sqlite_database: URL, provisioned: Vault, quick_passwords: PasswordHasher
) -> AsyncIterator[ApiPlane]:
    async with fresh_plane_at(sqlite_database, provisioned.settings, Passwords(quick_passwords)) as plane:
        yield plane


@pytest.fixture(scope="session")
async def postgresql_plane(
    postgresql_database: URL, provisioned: Vault, quick_passwords: PasswordHasher
) -> AsyncIterator[ApiPlane]:
    async with fresh_plane_at(postgresql_database, provisioned.settings, Passwords(quick_passwords)) as plane:
        yield plane


@pytest.fixture(params=["sqlite", "postgresql"])
def shared(request: pytest.FixtureRequest, anyio_backend: str) -> ApiPlane:
    """The worker's plane over one database and over the other."""
    plane: ApiPlane = request.getfixturevalue(f"{request.param}_plane")
    return plane


@pytest.fixture
async def api_plane(database: URL, provisioned: Vault, quick_passwords: PasswordHasher) -> AsyncIterator[ApiPlane]:
    """A plane of the test's own, over a database of its own, once of each kind."""
    async with api_plane_at(database, provisioned.settings, Passwords(quick_passwords)) as running:
        yield running
