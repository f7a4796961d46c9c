"""Personal access tokens that are created while other transactions write."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest
from sqlalchemy import select, text
from sqlalchemy.engine import URL

from keyman.audit.entries import OPERATOR, Action, Entry
from keyman.audit.log import record
from keyman.audit.tables import audit_chains
from keyman.identity import personal_tokens as personal
from keyman.identity.tokens import DEFAULT_SCOPES
from keyman.ids import UserId
from keyman.storage.transactions import Database, Unchecked
from keyman.values import EmailAddress, RequiredLabel
from tests.support.rows import add

pytestmark = pytest.mark.anyio


async def test_a_new_token_and_an_audit_entry_of_its_owner_do_not_deadlock_on_postgresql(
    postgresql: URL,
) -> None:
    # The token's transaction locks the owner's row, then waits for the end of a chain. An audit entry of the same owner
    # is written the other way round: its transaction holds the chain, then its foreign key locks the owner's row.
    db = Database(postgresql)
    email = EmailAddress(f"{uuid4().hex}@example.com")
    async with db.write(Unchecked.OPERATOR) as connection:
        owner = await add(connection, "users", email=str(email), email_key=str(email))
        assert owner is not None
    async with db.write(Unchecked.OPERATOR) as connection:
        await connection.execute(select(audit_chains).with_for_update())  # every chain
        creating = asyncio.create_task(personal.create_for(db, email, RequiredLabel("new"), DEFAULT_SCOPES))
        await _a_session_waits_for_a_lock(db)
        await record(connection, Entry(Action.DISABLE, OPERATOR, UserId(owner)))
    created = await creating
    assert [token.id for token in await personal.list_all(db, email)] == [created.id]
    await db.close()


async def _a_session_waits_for_a_lock(db: Database) -> None:
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    async with asyncio.timeout(20):
        while True:
            async with db.read() as connection:
                if (await connection.execute(waiting)).scalar_one():
                    return
            await asyncio.sleep(0.02)
