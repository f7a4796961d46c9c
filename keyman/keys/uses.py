"""Finds the applications that got a key, in the audit log."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import bindparam, select

from keyman.audit.entries import Action
from keyman.audit.tables import audit_log
from keyman.clock import now
from keyman.identity.principals import Principal
from keyman.ids import KeyId
from keyman.storage.statements import Query
from keyman.storage.transactions import Database

OF_LATE = timedelta(days=30)
"""The period of the uses that a user sees before deleting a key. It includes a job that runs once a month."""


class Use(NamedTuple):
    application: str
    last_at: datetime


async def of_late(db: Database, caller: Principal, key_id: KeyId) -> list[Use]:
    """Return the applications that got a key of the caller within OF_LATE, latest use first.

    There are few applications, but there may be millions of uses. So this reads only one entry per application, from an
    index by application and time: the last use of the last application by name, then of the one before it.
    """
    uses: list[Use] = []
    async with db.read() as connection:
        row = await _LAST.first(connection, user_id=caller.user_id, key_id=key_id)
        while row is not None:
            uses.append(row)
            row = await _BEFORE.first(connection, user_id=caller.user_id, key_id=key_id, application=row.application)
    recent = now() - OF_LATE
    return sorted((use for use in uses if use.last_at >= recent), key=lambda use: use.last_at, reverse=True)


_OF_KEY = (
    select(audit_log.c.application, audit_log.c.at.label("last_at"))
    .where(
        audit_log.c.user_id == bindparam("user_id"),
        audit_log.c.key_id == bindparam("key_id"),
        audit_log.c.action == Action.KEY_RESOLVE,
        audit_log.c.application.is_not(None),
    )
    .order_by(audit_log.c.application.desc(), audit_log.c.at.desc())
    .limit(1)
)
_LAST = Query(_OF_KEY, Use)
_BEFORE = Query(_OF_KEY.where(audit_log.c.application < bindparam("application")), Use)
