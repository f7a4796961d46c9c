"""`keyman.keys.uses`: which applications a key was given to, and nothing else from the audit log."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import insert

from keyman.audit.entries import Action, Actor, Origin
from keyman.audit.tables import audit_log
from keyman.clock import now
from keyman.identity.principals import Principal, User
from keyman.identity.tokens import ALL_SCOPES
from keyman.ids import KeyId, UserId
from keyman.keys import uses
from keyman.keys.uses import OF_LATE
from keyman.storage.transactions import Database, Unchecked
from tests.audit.test_entries import add
from tests.support.rows import entry

pytestmark = pytest.mark.anyio

KEY, OTHER_KEY = KeyId(5), KeyId(6)


def caller(user_id: UserId) -> Principal:
    return Principal(Origin(Actor.SESSION), ALL_SCOPES, User(user_id, "ada@example.com", now()))


async def test_an_application_that_got_the_key_of_late_is_named_once_with_the_last_time(db: Database) -> None:
    ada, eve = await add(db, "ada@example.com"), await add(db, "eve@example.com")
    moment, soon = now(), timedelta(minutes=1)
    got, refused, failed = Action.KEY_RESOLVE, Action.KEY_RESOLVE_REFUSED, Action.KEY_RESOLVE_FAILED
    used = Action.KEY_USE
    told = [
        (ada, KEY, "chat", got, timedelta(days=20)),
        (ada, KEY, "chat", got, timedelta(hours=1)),
        (ada, KEY, "chat", got, timedelta(days=3)),
        (ada, KEY, "chat", refused, timedelta()),
        (ada, KEY, "gone", got, timedelta(minutes=5)),
        (ada, KEY, "both", used, timedelta(minutes=7)),
        (ada, KEY, "both", got, timedelta(days=7)),
        (ada, KEY, "gateway", got, timedelta(days=2)),
        (ada, KEY, "gateway", used, timedelta(hours=2)),
        (ada, KEY, "batch", got, OF_LATE - soon),
        (ada, KEY, "old", got, OF_LATE + soon),
        (ada, KEY, "refused", refused, timedelta(hours=1)),
        (ada, KEY, "refused", failed, timedelta(hours=1)),
        (ada, OTHER_KEY, "elsewhere", got, timedelta(hours=1)),
        (eve, KEY, "elsewhere", got, timedelta(hours=1)),
    ]
    async with db.write(Unchecked.OPERATOR) as connection:
        for owner, key_id, name, action, ago in told:
            row = entry(action, user_id=owner, key_id=key_id, application=name, at=moment - ago)
            await connection.execute(insert(audit_log).values(row))
    assert await uses.of_late(db, caller(ada), KEY) == [
        ("gone", moment - timedelta(minutes=5)),
        ("both", moment - timedelta(minutes=7)),
        ("chat", moment - timedelta(hours=1)),
        ("gateway", moment - timedelta(hours=2)),
        ("batch", moment - OF_LATE + soon),
    ]
    assert await uses.of_late(db, caller(eve), OTHER_KEY) == []
    assert await uses.of_late(db, caller(ada), KeyId(KEY + 100)) == []
