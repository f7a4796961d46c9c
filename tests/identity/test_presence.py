"""`keyman.identity.presence`: who may give the proof, what proves, and that it counts once."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import uuid4

import pytest
from argon2 import PasswordHasher
from sqlalchemy import insert, select, update

from keyman.audit.entries import Action
from keyman.audit.tables import audit_log
from keyman.clock import now
from keyman.errors import Conflict, Forbidden, InvalidRequest, RateLimited, Unauthenticated
from keyman.identity import limits, personal_tokens, presence, sessions, throttle, users
from keyman.identity.passwords import Passwords
from keyman.identity.personal_tokens import TokenProof
from keyman.identity.presence import PRESENT_FOR, Presence
from keyman.identity.principals import Credentials, Principal
from keyman.identity.sessions import SessionProof
from keyman.identity.tables import applications
from keyman.identity.tables import sessions as sessions_table
from keyman.identity.tables import throttle as throttle_table
from keyman.identity.tokens import DEFAULT_SCOPES
from keyman.ids import SessionId, UserId
from keyman.storage.transactions import Database, Unchecked
from keyman.values import EmailAddress, GivenPassword, NewPassword, RequiredLabel
from tests.support.planes import PASSWORD
from tests.support.rows import add

pytestmark = pytest.mark.anyio

RIGHT, WRONG = GivenPassword(PASSWORD), GivenPassword("wrong" * 3)


@pytest.fixture
def quick(quick_passwords: PasswordHasher) -> Passwords:
    return Passwords(quick_passwords)


async def signed_in(db: Database, user_id: UserId) -> Principal:
    async with db.write(Unchecked.OPERATOR) as connection:
        cookie = (await sessions.open_session(connection, user_id)).reveal()
    return await SessionProof().verify(db, cookie, Credentials(None, cookie, "-", "192.0.2.7"))


async def with_password(db: Database, quick: Passwords) -> tuple[Principal, EmailAddress]:
    email = EmailAddress(f"{uuid4().hex}@example.com")
    account = await users.add(db, quick, email, NewPassword(PASSWORD))
    return await signed_in(db, UserId(account.id)), email


async def without_password(db: Database) -> Principal:
    async with db.write(Unchecked.OPERATOR) as connection:
        user_id = await add(connection, "users", email=None, email_key=None, password_hash=None)
    assert user_id is not None
    return await signed_in(db, UserId(user_id))


async def noted(db: Database, caller: Principal, at: datetime) -> None:
    async with db.write(caller.exclusive()) as connection:
        await presence.note(connection, caller.user_id, caller.require_session(), at)


async def confirmed(db: Database, caller: Principal, proof: Presence) -> None:
    async with db.write(caller.exclusive()) as connection:
        await proof.confirm(connection)
        await proof.settle(connection)


async def counted(db: Database, bucket: limits.Bucket) -> int:
    async with db.read() as connection:
        found = await connection.execute(
            select(throttle_table.c.attempts).where(throttle_table.c.bucket == bucket.digest)
        )
        return int(found.scalar() or 0)


async def test_the_current_password_proves_presence_and_leaves_no_attempt(db: Database, quick: Passwords) -> None:
    caller, _ = await with_password(db, quick)
    proof = await presence.prove(db, quick, caller, RIGHT)
    own, _network = limits.password_buckets(caller.user_id, caller.origin.address)
    assert await counted(db, own) == 1
    await confirmed(db, caller, proof)
    assert await counted(db, own) == 0


async def test_a_wrong_password_is_refused_counted_as_a_failed_sign_in_and_recorded(
    db: Database, quick: Passwords
) -> None:
    caller, email = await with_password(db, quick)
    login, network = limits.login_buckets(email.key, caller.origin.address)
    for n in range(1, limits.MAX_PER_ACCOUNT + 1):
        with pytest.raises(Forbidden, match="password is wrong"):
            await presence.prove(db, quick, caller, WRONG)
        assert (await counted(db, login), await counted(db, network)) == (n, n)
    with pytest.raises(RateLimited) as refused:
        await presence.prove(db, quick, caller, RIGHT)
    assert refused.value.retry_after
    async with db.read() as connection:
        failed = select(audit_log.c.user_id).where(audit_log.c.action == Action.PASSWORD_FAILED)
        recorded = (await connection.execute(failed)).scalars().all()
    assert recorded == [caller.user_id] * limits.MAX_PER_ACCOUNT


async def test_failed_sign_ins_of_a_stranger_do_not_keep_the_user_from_the_proof(
    db: Database, quick: Passwords
) -> None:
    caller, email = await with_password(db, quick)
    for _ in range(limits.MAX_PER_ACCOUNT):
        await throttle.count(db, Unchecked.SIGN_IN, limits.login_buckets(email.key, "198.51.100.1"))
    await confirmed(db, caller, await presence.prove(db, quick, caller, RIGHT))


async def test_the_proof_waits_in_the_queue_of_passwords(db: Database, quick: Passwords) -> None:
    caller, email = await with_password(db, quick)
    with (
        quick.place(email.key, "192.0.2.7"),
        quick.place(email.key, "192.0.2.7"),
        quick.place(email.key, "192.0.2.7"),
        quick.place(email.key, "192.0.2.7"),
        pytest.raises(RateLimited),
    ):
        await presence.prove(db, quick, caller, RIGHT)


async def test_an_account_with_a_password_needs_it(db: Database, quick: Passwords) -> None:
    caller, _ = await with_password(db, quick)
    await noted(db, caller, now())
    with pytest.raises(InvalidRequest) as refused:
        await presence.prove(db, quick, caller, None)
    assert [field for field, _ in refused.value.errors] == ["current_password"]


async def test_a_token_proves_nothing(db: Database, quick: Passwords) -> None:
    _, email = await with_password(db, quick)
    made = await personal_tokens.create_for(db, email, RequiredLabel("x"), DEFAULT_SCOPES)
    caller = await TokenProof().verify(db, made.token, Credentials(made.token, None, "-", None))
    for given in (RIGHT, None):
        with pytest.raises(Forbidden):
            await presence.prove(db, quick, caller, given)
    with pytest.raises(Forbidden):
        await presence.check_session(db, caller)


async def test_a_session_that_an_application_opened_proves_nothing(db: Database, quick: Passwords) -> None:
    for caller in ((await with_password(db, quick))[0], await without_password(db)):
        await noted(db, caller, now())
        async with db.write(Unchecked.OPERATOR) as connection:
            made = await connection.execute(
                insert(applications)
                .values(name=f"app-{caller.user_id}", services="OPENAI", created_at=now())
                .returning(applications.c.id)
            )
            await connection.execute(
                update(sessions_table)
                .where(sessions_table.c.id == caller.session_id)
                .values(application_id=made.scalar_one())
            )
        for given in (RIGHT, None):
            with pytest.raises(Forbidden, match="that an application opened"):
                await presence.prove(db, quick, caller, given)
        with pytest.raises(Unauthenticated):
            await noted(db, caller, now())


async def test_a_fresh_sign_in_at_the_provider_proves_presence_once(db: Database, quick: Passwords) -> None:
    caller = await without_password(db)
    for given in (None, RIGHT):
        with pytest.raises(Forbidden, match="no password"):
            await presence.prove(db, quick, caller, given)
    await noted(db, caller, now())
    assert await presence.means(db, caller) == (False, True)
    first, second = [await presence.prove(db, quick, caller, None) for _ in range(2)]
    await confirmed(db, caller, first)
    with pytest.raises(Conflict):
        await confirmed(db, caller, second)
    with pytest.raises(Forbidden, match="no password"):
        await presence.prove(db, quick, caller, None)


@pytest.mark.parametrize("age", [PRESENT_FOR + timedelta(seconds=1), timedelta(minutes=-2)], ids=["old", "future"])
async def test_a_sign_in_that_is_not_of_now_proves_nothing(db: Database, quick: Passwords, age: timedelta) -> None:
    caller = await without_password(db)
    await noted(db, caller, now() - age)
    with pytest.raises(Forbidden, match="no password"):
        await presence.prove(db, quick, caller, None)


async def test_a_sign_in_of_another_session_proves_nothing(db: Database, quick: Passwords) -> None:
    caller = await without_password(db)
    other = await signed_in(db, caller.user_id)
    stranger = await without_password(db)
    await noted(db, other, now())
    async with db.write(Unchecked.OPERATOR) as connection:
        with pytest.raises(Unauthenticated):
            await presence.note(connection, stranger.user_id, SessionId(caller.require_session()), now())
    with pytest.raises(Forbidden, match="no password"):
        await presence.prove(db, quick, caller, None)


async def test_a_password_that_was_changed_after_the_proof_proves_nothing(db: Database, quick: Passwords) -> None:
    caller, email = await with_password(db, quick)
    proof = await presence.prove(db, quick, caller, RIGHT)
    async with db.write(Unchecked.OPERATOR) as connection:
        await users._SET_PASSWORD.execute(connection, user_id=caller.user_id, new_hash="another")
    with pytest.raises(Conflict):
        await confirmed(db, caller, proof)
    assert email
