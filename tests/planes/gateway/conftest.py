"""The gateway that tests share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from secrets import token_hex

import pytest
from argon2 import PasswordHasher
from sqlalchemy.engine import make_url

from keyman import migrations
from tests.planes.gateway.scene import Scene, renewed, scene_at
from tests.support.database import PostgresServer
from tests.support.planes import Vault
from tests.support.waiting import PATIENCE


@pytest.fixture(scope="session")
async def sqlite_gateway(
    tmp_path_factory: pytest.TempPathFactory, provisioned: Vault, quick_passwords: PasswordHasher
) -> AsyncIterator[Scene]:
    directory = tmp_path_factory.mktemp("gateway")
    url = make_url(f"sqlite+aiosqlite:///{directory}/keyman.db")
    await migrations.upgrade(url)
    async with scene_at(url, provisioned, quick_passwords, directory, rate=10_000.0, timeout=PATIENCE) as scene:
        yield scene


@pytest.fixture(scope="session")
async def postgresql_gateway(
    tmp_path_factory: pytest.TempPathFactory,
    postgres: PostgresServer,
    provisioned: Vault,
    quick_passwords: PasswordHasher,
) -> AsyncIterator[Scene]:
    directory, name = tmp_path_factory.mktemp("gateway"), f"gateway_{token_hex(6)}"
    url = make_url(postgres.create_database(name))
    await migrations.upgrade(url)
    async with scene_at(url, provisioned, quick_passwords, directory, rate=10_000.0, timeout=PATIENCE) as scene:
        yield scene
    postgres.drop_database(name)


@pytest.fixture
def shared_gateway(request: pytest.FixtureRequest) -> Scene:
    """The gateway on SQLite, or on the database that a test names by `quick_on("sqlite", "shared_gateway")`."""
    scene = request.getfixturevalue(f"{getattr(request, 'param', 'sqlite')}_gateway")
    assert isinstance(scene, Scene)
    return scene


@pytest.fixture
async def gateway(shared_gateway: Scene) -> Scene:
    """The shared gateway, with an owner, a key and an application of this test's own."""
    return await renewed(shared_gateway)
