"""`keyman.identity.jwt`: a caller with a JWT does nothing once its account, its identity or its token has ended."""

from __future__ import annotations

import time
from typing import Any

import pytest
import time_machine
from sqlalchemy import delete, update

from keyman.clock import now
from keyman.config.identity import JwtSettings
from keyman.errors import InvalidToken
from keyman.identity.identities import Identity, add
from keyman.identity.jose import LEEWAY
from keyman.identity.jwt import JwtProof
from keyman.identity.key_sets import FixedKeys
from keyman.identity.principals import Credentials, Principal
from keyman.identity.tables import application_identities, identities, users
from keyman.storage.transactions import Database, Unchecked
from keyman.values import Subject
from tests.support.issuer import AUDIENCE, Issuer

pytestmark = pytest.mark.anyio

ISSUER = Issuer()


async def caller_of(db: Database, **claims: Any) -> Principal:
    token = ISSUER.token(**claims)
    proof = JwtProof(JwtSettings(ISSUER.url, AUDIENCE), FixedKeys(ISSUER.key_set()))
    return await proof.verify(db, token, Credentials(None, None, "-", None, token))


async def may_not_act(db: Database, caller: Principal, claim: str) -> None:
    for authority in (caller, caller.exclusive()):
        with pytest.raises(InvalidToken, match=f"refused: {claim} "):
            async with db.write(authority):
                raise AssertionError("the transaction began")
    with pytest.raises(InvalidToken, match=f"refused: {claim} "):
        await caller.confirm_for_reading(db)
    async with db.write(Unchecked.OPERATOR) as connection:
        other = await caller_of(db, sub="eve") if not db.is_sqlite else caller
        (refusal, *_) = await caller.confirm_together(connection, [caller, other])
    assert isinstance(refusal, InvalidToken)
    assert claim in str(refusal)


async def may_act(db: Database, caller: Principal) -> None:
    for authority in (caller, caller.exclusive()):
        async with db.write(authority):
            pass
    await caller.confirm_for_reading(db)
    async with db.write(Unchecked.OPERATOR) as connection:
        assert await caller.confirm_together(connection, [caller, caller]) == [None, None]


async def change(db: Database, statement: Any) -> None:
    async with db.write(Unchecked.OPERATOR) as connection:
        await connection.execute(statement)


async def test_a_caller_may_act_until_its_token_expires(db: Database) -> None:
    ends = int(time.time()) + 100
    caller = await caller_of(db, exp=ends)
    await may_act(db, caller)
    with time_machine.travel(ends + LEEWAY - 2, tick=False):
        await may_act(db, caller)
    with time_machine.travel(ends + LEEWAY, tick=False):
        await may_not_act(db, caller, "exp")


async def test_a_caller_whose_account_is_disabled_may_not_act(db: Database) -> None:
    caller = await caller_of(db)
    await change(db, update(users).values(disabled_at=now()))
    await may_not_act(db, caller, "sub")


@pytest.mark.parametrize("table", [identities, application_identities], ids=["own", "of an application"])
async def test_a_caller_whose_identity_is_unlinked_may_not_act(db: Database, table: Any) -> None:
    caller = await caller_of(db)
    if table is application_identities:
        async with db.write(Unchecked.OPERATOR) as connection:
            await add(connection, Identity(ISSUER.url, Subject("ada")), caller.user_id, application_identities)
        caller = await caller_of(db)
        await may_act(db, caller)
    await change(db, delete(table))
    await may_not_act(db, caller, "sub")


async def test_a_token_names_no_user_of_another_issuer(db: Database) -> None:
    caller = await caller_of(db)
    await change(db, update(identities).values(issuer="https://other.example.com"))
    assert (await caller_of(db)).user_id != caller.user_id


async def test_what_a_caller_shows_holds_no_token_and_no_subject(db: Database) -> None:
    caller = await caller_of(db, sub="c4n4ry")
    assert "c4n4ry" not in repr(caller)
    with pytest.raises(InvalidToken) as refused:
        await caller_of(db, sub="c4n4ry", aud="c4n4ry")
    assert "c4n4ry" not in str(refused.value)
    assert refused.value.__context__ is None


async def test_an_issuer_of_any_length_can_bring_a_user(db: Database) -> None:
    """PostgreSQL refuses an audit entry whose detail is too long."""
    issuer = Issuer(f"https://id.example.com/{'x' * 470}")
    token = issuer.token()
    proof = JwtProof(JwtSettings(issuer.url, AUDIENCE), FixedKeys(issuer.key_set()))
    assert (await proof.verify(db, token, Credentials(None, None, "-", None, token))).user is not None
