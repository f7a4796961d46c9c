"""Stores what is known of a key at its provider, from live checks and from use.

A verdict is stored only while the key still holds the value and the settings with which the provider was asked, and
only if no newer answer has been stored. The time of a verdict is when the provider answered, so it does not matter
which answer is stored first. A verdict from the future is not newer: a clock that ran ahead for a moment gave it its
time, and it would stay for as long.
"""

from __future__ import annotations

import contextlib
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import String, bindparam, case, null, or_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.audit.entries import Action, Entry, Reason
from keyman.audit.log import record
from keyman.clock import now
from keyman.errors import Conflict, DatabaseUnavailable, NotFound, Undecryptable, VaultUnavailable
from keyman.identity.principals import Principal
from keyman.identity.throttle import CLOCKS_APART
from keyman.ids import KeyId
from keyman.keys.finding import Found, by_id
from keyman.keys.release import Releasing, mark, open_value
from keyman.keys.settings import is_current
from keyman.keys.tables import api_keys
from keyman.providers.verdicts import Judgement, Verdict, judge_use
from keyman.secret import Secret
from keyman.storage.statements import Command
from keyman.storage.transactions import Database, Unchecked
from keyman.storage.types import UtcTime

KEYMAN = "keyman"
"""Who says so, for a live check."""

USE = "use"
"""Who says so, for an answer that the gateway passed on."""

PAUSE = timedelta(seconds=10)
"""The time between two verdicts from the use of a key."""


class Sent(NamedTuple):
    """What a provider was asked with, and what was known of the key then."""

    key_id: KeyId
    value_uuid: UUID
    settings: str
    verdict: str | None = None
    checked_at: datetime | None = None
    checked_by: str | None = None

    @classmethod
    def of(cls, row: Found) -> Sent:
        known = (row.check_verdict, row.checked_at, row.checked_by)
        return cls(row.key_id, row.value_uuid, row.settings, *known)


async def find(by: Releasing, caller: Principal, key_id: KeyId) -> Found:
    """Return the row of a key that can be checked: an active, paused or expired one.

    Raises NotFound, also for a key of a disabled account, and Undecryptable.
    """

    async def find_it(connection: AsyncConnection) -> Found | None:
        return await by_id(connection, key_id)

    row = await by.db.together(caller, find_it)
    if row is None or row.user_disabled_at is not None:
        raise NotFound("There is no such key.")
    if row.undecryptable:
        raise Undecryptable(_UNDECRYPTABLE)
    if not is_current(row):
        await _refuse(by, caller, row, Reason.NOT_CURRENT)
    return row


async def open_for_check(by: Releasing, caller: Principal, row: Found) -> Secret:
    """Return the value of a key. Raises Undecryptable, after it was marked, and VaultUnavailable."""
    try:
        return await open_value(by, row)
    except Undecryptable:
        await _refuse(by, caller, row, Reason.UNDECRYPTABLE)
        raise
    except VaultUnavailable as fault:
        raise VaultUnavailable(fault.reason, retry_after=fault.retry_after or 5) from None


async def store_check(db: Database, caller: Principal, row: Found, found: Judgement, moment: datetime) -> None:
    """Store the verdict of a live check, and its audit entry, or neither if the key holds something else by now.

    A newer verdict stays. `moment` is when the provider answered.
    """

    async def store(connection: AsyncConnection) -> None:
        if await _STORE.execute(connection, **_parameters(Sent.of(row), found, moment, KEYMAN)):
            await record(connection, _entry(Action.KEY_CHECK, caller, row, detail=str(found.verdict)))

    await db.together(caller, store, about=row.key_id)


def from_use(service: str, sent: Sent, status: int, body: bytes, moment: datetime) -> Judgement | None:
    """Return the verdict to record for an answer of status 400 or above, or None if it says nothing new."""
    found = judge_use(service, status, body)
    if found is None or (
        sent.checked_by == USE and sent.checked_at is not None and abs(moment - sent.checked_at) < PAUSE
    ):
        return None
    is_grave = found.verdict in (Verdict.REFUSED, Verdict.NO_CREDIT)
    is_change = sent.verdict is not None and sent.verdict != found.verdict
    return found if is_grave or is_change else None


async def store_use(db: Database, sent: Sent, found: Judgement | None, moment: datetime) -> None:
    """Store a verdict from use, or clear a recorded `refused` for None. Raises no fault of the database.

    It is stored at most once in PAUSE for each key, over all replicas, and a newer verdict stays. `moment` is when the
    provider answered.
    """
    with contextlib.suppress(DatabaseUnavailable):  # the storage has logged it, and the next answer says the same
        async with db.write(Unchecked.OUTCOME) as connection:
            if found is None:
                await _CLEAR.execute(connection, **_about(sent), moment=moment, said_by=USE)
            else:
                stale_at = moment - PAUSE
                await _STORE_USE.execute(connection, **_parameters(sent, found, moment, USE), stale_at=stale_at)


async def _refuse(by: Releasing, caller: Principal, row: Found, reason: Reason) -> None:
    """Mark a row that does not open, and record it. Raises Undecryptable, or Conflict if the row has changed since."""

    async def mark_it(connection: AsyncConnection) -> bool:
        is_as_it_was = await mark(connection, row)
        if is_as_it_was:
            await record(connection, _entry(Action.KEY_CHECK_FAILED, caller, row, reason=reason))
        return is_as_it_was

    if await by.db.together(caller, mark_it, about=row.key_id):
        raise Undecryptable(_UNDECRYPTABLE)
    raise Conflict("The key was changed while it was checked. Check it again.")


def _entry(
    action: Action, caller: Principal, row: Found, *, detail: str | None = None, reason: Reason | None = None
) -> Entry:
    return Entry(
        action,
        caller.origin,
        row.user_id,
        key_id=row.key_id,
        service=row.service,
        application=caller.name,
        detail=detail,
        reason=reason,
    )


_UNDECRYPTABLE = "The stored value of this key cannot be opened. Its owner must store it again."


def _about(sent: Sent) -> dict[str, object]:
    return {
        "of_id": sent.key_id,
        "of_value": sent.value_uuid,
        "of_settings": sent.settings,
        "ahead_at": now() + CLOCKS_APART,
    }


def _parameters(sent: Sent, found: Judgement, moment: datetime, by: str) -> dict[str, object]:
    return {**_about(sent), "verdict": str(found.verdict), "moment": moment, "said": found.detail, "said_by": by}


_STILL_HOLDS = (
    api_keys.c.id == bindparam("of_id"),
    api_keys.c.value_uuid == bindparam("of_value"),
    api_keys.c.settings == bindparam("of_settings"),
)
_VERDICT = {
    "check_verdict": bindparam("verdict", type_=String),
    "checked_at": bindparam("moment", type_=UtcTime),
    "check_detail": bindparam("said", type_=String),
    "checked_by": bindparam("said_by", type_=String),
}
IS_AHEAD = api_keys.c.checked_at > bindparam("ahead_at", type_=UtcTime)
"""The condition for a verdict whose time a clock that ran ahead has written."""

_IS_NEWEST = or_(api_keys.c.checked_at.is_(None), api_keys.c.checked_at <= bindparam("moment", type_=UtcTime), IS_AHEAD)
_STORE = Command(
    update(api_keys)
    .where(*_STILL_HOLDS)
    .values({name: case((_IS_NEWEST, value), else_=api_keys.c[name]) for name, value in _VERDICT.items()})
)
"""One that is not the newest counts as stored, too, and changes nothing: its check has an audit entry."""

_STORE_USE = Command(
    update(api_keys)
    .where(
        *_STILL_HOLDS,
        _IS_NEWEST,
        or_(
            api_keys.c.checked_by.is_(None),
            api_keys.c.checked_by != USE,
            api_keys.c.checked_at <= bindparam("stale_at", type_=UtcTime),
            IS_AHEAD,
        ),
    )
    .values(_VERDICT)
)
_CLEAR = Command(
    update(api_keys)
    .where(*_STILL_HOLDS, _IS_NEWEST, api_keys.c.check_verdict == str(Verdict.REFUSED))
    .values({**_VERDICT, "check_verdict": null(), "check_detail": null()})
)
"""The time stays, so that a key which changes with every answer is not written with every answer."""
