"""`keyman.identity.standing`: when a caller is checked, and in which order locks are taken. On PostgreSQL.

That nothing is committed after a revocation is in tests/planes/resolver/test_interleavings.py.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
import time_machine
from sqlalchemy import text
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.errors import Unauthenticated
from keyman.identity import applications, personal_tokens
from keyman.identity.personal_tokens import TokenProof
from keyman.identity.principals import Credentials, Principal
from keyman.identity.sessions import OfPortal, SessionProof, open_portal_session
from keyman.identity.standing import lock_accounts
from keyman.identity.tokens import DEFAULT_SCOPES
from keyman.ids import ApplicationId, TokenId, UserId
from keyman.storage.transactions import Database, Unchecked
from keyman.values import ApplicationName, EmailAddress, FutureTime, RequiredLabel
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


# --- groups


async def nothing(_connection: AsyncConnection) -> None:
    """A work."""


async def test_a_revocation_waits_for_a_group_and_the_group_for_no_longer_than_a_moment(locking: Database) -> None:
    """The group gives way: its other members act, and the one that is being revoked waits by itself."""
    users = [await new_user(locking) for _ in range(3)]
    callers = [(await new_caller(locking, email))[1] for _, email in users]
    async with locking.write(Unchecked.OPERATOR) as connection:
        await lock_accounts(connection, users[1][0])
        await connection.execute(text("UPDATE users SET disabled_at = now() WHERE id = :id"), {"id": users[1][0]})
        first, second, third = [asyncio.create_task(locking.together(caller, nothing)) for caller in callers]
        await asyncio.gather(first, third)
        assert not second.done()
    with pytest.raises(Unauthenticated):
        await second


async def test_a_revocation_waits_until_the_group_of_its_caller_is_committed(locking: Database) -> None:
    users = [await new_user(locking) for _ in range(2)]
    (token_id, revoked), (_, other) = [await new_caller(locking, email) for _, email in users]
    begun, goes_on = asyncio.Event(), asyncio.Event()

    async def dawdle(_connection: AsyncConnection) -> str:
        begun.set()
        await goes_on.wait()
        return "stored"

    acting = [asyncio.create_task(locking.together(caller, dawdle)) for caller in (other, revoked)]
    await begun.wait()  # the group has its locks
    revoking = asyncio.create_task(personal_tokens.revoke_any(locking, token_id))
    await wait(locking)
    goes_on.set()
    assert await asyncio.gather(*acting) == ["stored"] * 2
    await revoking
    with pytest.raises(Unauthenticated):
        await locking.together(revoked, nothing)


async def test_a_revocation_waits_for_a_group_of_sessions_that_its_application_opened(locking: Database) -> None:
    name = ApplicationName(uuid4().hex)
    await applications.create(locking, name, ("OPENAI",))
    callers = []
    async with locking.write(Unchecked.OPERATOR) as connection:
        application = text("SELECT id FROM applications WHERE name = :name")
        application_id = ApplicationId((await connection.execute(application, {"name": name})).scalar_one())
    for user_id, _ in [await new_user(locking) for _ in range(2)]:
        async with locking.write(Unchecked.OPERATOR) as connection:
            cookie = await open_portal_session(
                connection, user_id, None, OfPortal(application_id, "Ada", "https://a.example/")
            )
        shown = Credentials(None, cookie.reveal(), "-", None)
        callers.append(await SessionProof().verify(locking, cookie.reveal(), shown))
    async with locking.write(Unchecked.SIGN_IN) as connection:
        assert await callers[0].confirm_together(connection, callers) == [None, None]
        revoking = asyncio.create_task(applications.revoke(locking, name))
        await wait(locking)
    await revoking
    async with locking.write(Unchecked.SIGN_IN) as connection:
        refused = await callers[0].confirm_together(connection, callers)
    assert [type(each) for each in refused] == [Unauthenticated] * 2


async def test_every_member_of_a_group_is_checked_as_by_itself(locking: Database) -> None:
    users = [await new_user(locking) for _ in range(5)]
    callers = [await new_caller(locking, email) for _, email in users]
    await personal_tokens.revoke_any(locking, callers[0][0])
    async with locking.write(Unchecked.OPERATOR) as connection:
        await connection.execute(text("UPDATE users SET disabled_at = now() WHERE id = :id"), {"id": users[2][0]})
        await connection.execute(text("UPDATE api_tokens SET expires_at = now() WHERE id = :id"), {"id": callers[3][0]})
    acting = [locking.together(caller, nothing) for _, caller in callers]
    outcomes = await asyncio.gather(*acting, return_exceptions=True)
    assert [isinstance(outcome, Unauthenticated) for outcome in outcomes] == [True, False, True, True, False]


async def test_groups_and_revocations_in_any_order_never_wait_for_each_other_for_ever(locking: Database) -> None:
    dice = random.Random(11)  # noqa: S311  # a storm, not a secret
    users = [await new_user(locking) for _ in range(8)]
    callers = [(await new_caller(locking, email))[1] for _, email in users]

    async def lock_some() -> None:
        async with locking.write(Unchecked.OPERATOR) as connection:
            await lock_accounts(connection, *(user_id for user_id, _ in dice.sample(users, 3)))

    storm = [locking.together(dice.choice(callers), nothing) for _ in range(300)]
    storm += [lock_some() for _ in range(30)]
    dice.shuffle(storm)
    async with asyncio.timeout(60):
        await asyncio.gather(*storm)
    async with locking.read() as connection:
        deadlocks = text("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
        assert await number(connection, deadlocks) == 0
