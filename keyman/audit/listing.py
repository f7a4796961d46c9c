"""Reading the trail."""

from __future__ import annotations

from datetime import datetime

import msgspec
from sqlalchemy import select

from keyman import paging
from keyman.audit.trail import Action, Actor, audit_log
from keyman.db import Database
from keyman.paging import Page, Slice


class AuditEntry(msgspec.Struct):
    """One entry of the trail as its owner sees it. `reason` says why an application got no key."""

    id: int
    at: datetime
    action: Action
    actor: Actor
    actor_token_id: int | None
    token_id: int | None
    key_id: int | None
    service: str | None
    request_id: str | None
    address: str | None
    application: str | None
    purpose: str | None
    reason: str | None


async def list_own(db: Database, user_id: int, part: Slice) -> Page[AuditEntry]:
    """A user's own trail, newest first."""
    columns = (
        audit_log.c.id,
        audit_log.c.at,
        audit_log.c.action,
        audit_log.c.actor,
        audit_log.c.actor_id,
        audit_log.c.token_id,
        audit_log.c.key_id,
        audit_log.c.service,
        audit_log.c.request_id,
        audit_log.c.address,
        audit_log.c.application,
        audit_log.c.purpose,
        audit_log.c.reason,
    )
    statement = select(*columns).where(audit_log.c.user_id == user_id)
    async with db.read() as connection:
        page = await paging.fetch(connection, statement, audit_log.c.id, part)
    return Page([AuditEntry(*row) for row in page.items], page.cursor)
