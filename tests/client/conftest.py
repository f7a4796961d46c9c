"""Both planes in this process over SQLite, for the tests of the client, which does not depend on the database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from argon2 import PasswordHasher

from tests.client.asking import Kind
from tests.planes.resolver.pair import Pair, pair_at
from tests.support.database import copied
from tests.support.planes import ORIGIN, Vault


@pytest.fixture(scope="session")
async def pair(
    migrated_sqlite: Path,
    tmp_path_factory: pytest.TempPathFactory,
    provisioned: Vault,
    quick_passwords: PasswordHasher,
) -> AsyncIterator[Pair]:
    url = copied(migrated_sqlite, tmp_path_factory.mktemp("client") / "keyman.db")
    async with pair_at(url, provisioned.settings, provisioned.resolver, quick_passwords, public_url=ORIGIN) as both:
        yield both


@pytest.fixture(params=["async", "sync"])
def kind(request: pytest.FixtureRequest) -> Kind:
    """Which of the two clients."""
    chosen: Kind = request.param
    return chosen


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses as in production would only be waited for."""
    monkeypatch.setattr("keyman.retry.FIRST_PAUSE", 0.005)
