"""What commands work on: a database of the test's own, named by the variable as an operator names it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlalchemy.engine import URL

from keyman import migrations
from tests.support.live import environment


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the SQLite database of a test lies."""
    return tmp_path / "keyman.db"


@pytest.fixture
def env(file: Path) -> dict[str, str]:
    """The variables of somebody whose database is migrated."""
    asyncio.run(migrations.upgrade(URL.create("sqlite+aiosqlite", database=str(file))))
    return environment(KEYMAN_DATABASE_URL=f"sqlite+aiosqlite:///{file}")
