"""Finds who got a key or sent requests with it, and when, in the audit log."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import bindparam, select

from keyman.audit.entries import Action
from keyman.audit.listing import OF_USER, AuditEntry, OwnRow
from keyman.audit.tables import audit_log
from keyman.clock import now
from keyman.identity.principals import Principal
from keyman.ids import KeyId
from keyman.storage.statements import Query
from keyman.storage.transactions import Database

RELEASES = (Action.KEY_RESOLVE, Action.KEY_USE)
"""The actions of the entries about a key that an application got or used."""

OF_LATE = timedelta(days=30)
"""The period of the uses that a user sees before deleting a key. It includes a job that runs once a month."""

LAST_USES = 20
"""The number of uses that the page of a key shows. Activity shows all of them."""


class Use(NamedTuple):
    """The last use of a key by an application."""

    application: str
    last_at: datetime


async def of_late(db: Database, caller: Principal, key_id: KeyId) -> list[Use]:
    """Return the applications that got or used a key of the caller within OF_LATE, latest use first.

    There are few applications, but there may be millions of uses. So this reads only one entry per application, from an
    index by application and time: the last use of the last application by name, then of the one before it.
    """
    latest: dict[str, Use] = {}
    async with db.read() as connection:
        for action in RELEASES:
            about = {"user_id": caller.user_id, "key_id": key_id, "action": action}
            row = await _LAST.first(connection, **about)
            while row is not None:
                latest[row.application] = max(row, latest.get(row.application, row))
                row = await _BEFORE.first(connection, application=row.application, **about)
    recent = now() - OF_LATE
    return sorted((use for use in latest.values() if use.last_at >= recent), key=lambda use: use.last_at, reverse=True)


async def newest(db: Database, caller: Principal, key_id: KeyId) -> list[AuditEntry]:
    """Return the last uses of a key of the caller within OF_LATE, newest first, at most LAST_USES.

    It reads as many of each of the applications that used it last, from the index by application and time.
    """
    applications = [use.application for use in (await of_late(db, caller, key_id))[:LAST_USES]]
    found: list[OwnRow] = []
    async with db.read() as connection:
        for action in RELEASES:
            about = {"user_id": caller.user_id, "key_id": key_id, "action": action}
            found += await _NEWEST_OF_OWNER.all(connection, **about)
            for application in applications:
                found += await _NEWEST_OF_ONE.all(connection, application=application, **about)
    recent = now() - OF_LATE
    last = sorted((row for row in found if row.at >= recent), key=lambda row: row.at, reverse=True)
    return [AuditEntry(*row) for row in last[:LAST_USES]]


_OF_KEY = (
    select(audit_log.c.application, audit_log.c.at.label("last_at"))
    .where(
        audit_log.c.user_id == bindparam("user_id"),
        audit_log.c.key_id == bindparam("key_id"),
        audit_log.c.action == bindparam("action"),
        audit_log.c.application.is_not(None),
    )
    .order_by(audit_log.c.application.desc(), audit_log.c.at.desc())
    .limit(1)
)
_LAST = Query(_OF_KEY, Use)
_BEFORE = Query(_OF_KEY.where(audit_log.c.application < bindparam("application")), Use)

_NEWEST = (
    OF_USER.where(audit_log.c.key_id == bindparam("key_id"), audit_log.c.action == bindparam("action"))
    .order_by(audit_log.c.at.desc())
    .limit(LAST_USES)
)
_NEWEST_OF_ONE = Query(_NEWEST.where(audit_log.c.application == bindparam("application")), OwnRow)
_NEWEST_OF_OWNER = Query(_NEWEST.where(audit_log.c.application.is_(None)), OwnRow)
