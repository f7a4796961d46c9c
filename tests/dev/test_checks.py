"""The application for live checks of `keyman dev`: registered once, with its token in the home."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from keyman import migrations
from keyman.dev.checks import NAME, checks_of
from keyman.dev.home import Home
from keyman.identity import applications
from keyman.storage.transactions import Database

pytestmark = pytest.mark.anyio

GATEWAY = "http://127.0.0.1:8002"


async def test_the_application_is_registered_once_and_its_token_is_kept_in_a_private_file(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    with home.locked():
        await migrations.upgrade(home.database)
        first = await checks_of(home, GATEWAY)
        token = home.checks_token()
        assert await checks_of(home, GATEWAY) == first
        assert home.checks_token() == token
        assert first == {"KEYMAN_GATEWAY_URL": GATEWAY, "KEYMAN_GATEWAY_TOKEN_FILE": str(home.checks_token_file)}
        assert stat.S_IMODE(home.checks_token_file.stat().st_mode) == 0o600
        home.checks_token_file.unlink()  # a lost token is replaced
        assert await checks_of(home, GATEWAY) == first
        assert home.checks_token() not in (None, token)
        db = Database(home.database)
        try:
            (listed,) = await applications.list_all(db)
            assert (listed.name, listed.services, listed.checks) == (NAME, [], True)
            await applications.revoke(db, NAME)
        finally:
            await db.close()
        assert await checks_of(home, GATEWAY) == {}  # the operator wants none
