"""The application for live checks of `keyman dev`: registered once, with its token in the home."""

from __future__ import annotations

import stat
from io import StringIO
from pathlib import Path

import pytest

from keyman import migrations
from keyman.dev.checks import NAME, checks_of
from keyman.dev.home import Home
from keyman.identity import applications
from keyman.identity.application_tokens import ApplicationProof
from keyman.identity.principals import Credentials
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


async def test_an_application_for_something_else_keeps_its_name_and_its_token(tmp_path: Path, logged: StringIO) -> None:
    home = Home(tmp_path / "home")
    with home.locked():
        await migrations.upgrade(home.database)
        db = Database(home.database)
        try:
            token = (await applications.create(db, NAME, ("OPENAI",))).token.reveal()
            assert await checks_of(home, GATEWAY) == {}
            assert "an application for something else" in logged.getvalue()
            proven = await ApplicationProof().verify(db, token, Credentials(token, None, "", None))
            assert proven.require_application().services == {"OPENAI"}
            home.write_checks_token(token)  # a token of an ordinary application is of no use for checks
            assert await checks_of(home, GATEWAY) == {}
        finally:
            await db.close()
