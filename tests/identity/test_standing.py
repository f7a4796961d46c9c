"""`keyman.identity.standing`: when a caller is checked, and in which order locks are taken. On PostgreSQL.

That nothing is committed after a revocation is in tests/planes/resolver/test_interleavings.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
import time_machine
from sqlalchemy import text
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.errors import Unauthenticated
from keyman.identity import personal_tokens
from keyman.identity.personal_tokens import TokenProof
from keyman.identity.principals import Credentials, Principal
from keyman.identity.standing import lock_accounts
from keyman.identity.tokens import DEFAULT_SCOPES
from keyman.ids import TokenId, UserId
from keyman.storage.transactions import Database, Unchecked
from keyman.values import EmailAddress, FutureTime, RequiredLabel
from tests.support.rows import add
from tests.support.waiting import becomes

pytestmark = pytest.mark.anyio

_LOCKS = (
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)
_WAITING = text(f"{_LOCKS} AND NOT granted")
_HELD = text(f"{_LOCKS} AND granted")


@pytest.fixture
async def locking(postgresql: URL) -> AsyncIterator[Database]:
    db = Database(postgresql)
    yield db
    await db.close()


async def new_user(db: Database) -> tuple[UserId, EmailAddress]:
    email = EmailAddress(f"{uuid4().hex}@example.com")
    async with db.write(Unchecked.OPERATOR) as connection:
        user_id = await add(connection, "users", email=str(email), email_key=str(email))
    assert user_id is not None
    return UserId(user_id), email


async def new_caller(
    db: Database, email: EmailAddress, expires_at: datetime | None = None
) -> tuple[TokenId, Principal]:
    made = await personal_tokens.create_for(db, email, RequiredLabel("x"), DEFAULT_SCOPES, expires_at)
    return TokenId(made.id), await TokenProof().verify(db, made.token, Credentials(made.token, None, "-", None))


async def number(connection: AsyncConnection, statement: object) -> int:
    return int((await connection.execute(statement)).scalar_one())  # type: ignore[call-overload]  # a text


async def wait(db: Database, transactions: int = 1) -> None:
    """Return once so many transactions wait for an account."""

    async def do_they() -> bool:
        async with db.read() as connection:
            return await number(connection, _WAITING) == transactions

    await becomes(do_they, "a transaction that waits for an account")


async def act(db: Database, caller: Principal) -> None:
    async with db.write(caller):
        pass


async def test_an_expiry_counts_that_comes_while_the_check_waits_for_a_lock(locking: Database) -> None:
    user_id, email = await new_user(locking)
    start = datetime.now(UTC)
    expires_at = FutureTime.parse((start + timedelta(hours=1)).isoformat())
    _, caller = await new_caller(locking, email, expires_at)
    with time_machine.travel(start, tick=False) as clock:
        await act(locking, caller)
        async with locking.write(Unchecked.OPERATOR) as connection:
            await lock_accounts(connection, user_id)
            acting = asyncio.create_task(act(locking, caller))
            await wait(locking)
            clock.move_to(start + timedelta(hours=1))
        with pytest.raises(Unauthenticated):
            await acting


async def test_what_begins_after_a_revocation_that_waits_comes_after_it(locking: Database) -> None:
    """PostgreSQL's row locks have no queue: requests that overlap would keep the revocation waiting for ever."""
    _, email = await new_user(locking)
    token_id, caller = await new_caller(locking, email)
    async with locking.write(caller):
        revoking = asyncio.create_task(personal_tokens.revoke_any(locking, token_id))
        await wait(locking)
        acting = asyncio.create_task(act(locking, caller))
        await wait(locking, 2)
    await revoking
    with pytest.raises(Unauthenticated):
        await acting


async def test_accounts_are_locked_in_the_order_of_their_ids(locking: Database) -> None:
    """Two transactions that lock the same two accounts in different orders would wait for each other for ever."""
    first, second = [(await new_user(locking))[0] for _ in range(2)]
    assert first < second

    async def lock_both() -> None:
        async with locking.write(Unchecked.OPERATOR) as connection:
            await lock_accounts(connection, second, None, first)

    async with locking.write(Unchecked.OPERATOR) as connection:
        await lock_accounts(connection, first)
        locking_both = asyncio.create_task(lock_both())
        await wait(locking)
        assert await number(connection, _HELD) == 1, "it waits for the first one, and holds no other"
    await locking_both
