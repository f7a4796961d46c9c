"""A person's own sessions: where they are signed in, and the end of it."""

from __future__ import annotations

from datetime import datetime

import msgspec
import ua_parser
from sqlalchemy import ColumnElement, delete, select

from keyman.audit.entries import Action, Entry
from keyman.audit.log import record
from keyman.clock import now
from keyman.errors import NotFound
from keyman.identity.principals import SESSION_IDLE, Caller
from keyman.identity.tables import sessions
from keyman.ids import MAX_ID
from keyman.storage.transactions import Database

MAX_USER_AGENT = 512
"""Characters of a User-Agent that are looked at: a browser's has some 120, and looking takes time with the length."""


MAX_SHOWN = 100
"""Sessions in the list: more than anybody has devices, fewer than a script that signs in anew each minute makes."""


class SessionInfo(msgspec.Struct):
    """A session as its owner sees it; `device` is what the client said it is, None where it said nothing known."""

    id: int
    device: str | None
    created_at: datetime
    last_seen_at: datetime
    is_current: bool


def device_name(user_agent: str) -> str | None:
    """Browser and system of a User-Agent header, such as `Firefox · Linux`; at most 100 characters."""
    found = ua_parser.parse(user_agent[:MAX_USER_AGENT])
    names = [part.family for part in (found.user_agent, found.os) if part is not None]
    return " · ".join(name for name in names if name.isprintable())[:100] or None


async def list_own(db: Database, caller: Caller) -> list[SessionInfo]:
    """The caller's sessions that are still good, the one used last first. Raises Forbidden for a token."""
    current = caller.require_session()
    moment = now()
    statement = (
        select(sessions.c.id, sessions.c.device, sessions.c.created_at, sessions.c.last_seen_at)
        .where(
            sessions.c.user_id == caller.user_id,
            sessions.c.expires_at > moment,
            sessions.c.last_seen_at > moment - SESSION_IDLE,
        )
        .order_by(sessions.c.last_seen_at.desc(), sessions.c.id.desc())
        .limit(MAX_SHOWN)
    )
    async with db.read() as connection:
        return [SessionInfo(*row, is_current=row.id == current) for row in await connection.execute(statement)]


async def end(db: Database, caller: Caller, session_id: int) -> None:
    """End one of the caller's sessions. Raises NotFound for any other, Forbidden for a token."""
    caller.require_session()
    if not 0 < session_id <= MAX_ID or not await _delete(db, caller, sessions.c.id == session_id):
        raise NotFound("There is nothing with this id.")


async def end_others(db: Database, caller: Caller) -> None:
    """End all sessions of the caller but the one that asks. Raises Forbidden for a token."""
    await _delete(db, caller, sessions.c.id != caller.require_session())


async def _delete(db: Database, caller: Caller, which: ColumnElement[bool]) -> int:
    async with db.write() as connection:
        statement = delete(sessions).where(sessions.c.user_id == caller.user_id, which)
        ended = (await connection.execute(statement)).rowcount
        if ended:
            await record(connection, Entry(Action.SESSION_END, caller.origin, caller.user_id))
    return ended
