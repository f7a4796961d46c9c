"""What an application reports of a key that the resolver gave to it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import ClassVar, NamedTuple, Self
from uuid import UUID

import msgspec
from sqlalchemy import bindparam, exists, func, or_, select, update

from keyman.audit.entries import Action, Entry
from keyman.audit.log import current_settings, current_value, record
from keyman.audit.tables import audit_log
from keyman.clock import now
from keyman.errors import Forbidden, NotFound, RateLimited
from keyman.identity.applications import RESERVED_NAMES
from keyman.identity.principals import Principal
from keyman.identity.tables import application_blocks, users
from keyman.identity.throttle import CLOCKS_APART
from keyman.ids import KeyId, UserId
from keyman.keys.checks import IS_AHEAD, KEYMAN, USE
from keyman.keys.settings import is_current
from keyman.keys.tables import api_keys
from keyman.providers.verdicts import DETAILS, Verdict
from keyman.storage.statements import Command, Query, scalar
from keyman.storage.transactions import Database
from keyman.storage.types import UtcTime
from keyman.values import JsonSchema, RowNumber

RESOLVED_WITHIN = timedelta(hours=1)
"""How long after a resolve an application may report what came of it."""

PAUSE = timedelta(seconds=10)
"""The time between two reports of an application about a key."""

TOO_MANY = "This application has reported on this key a moment ago. Wait 10 seconds between two reports."

_OUTCOMES = (Verdict.REFUSED, Verdict.NO_CREDIT, Verdict.RATE_LIMITED, Verdict.ACCEPTED)


class Outcome(str):
    """What came of the use of a key."""

    __slots__ = ()
    schema: ClassVar[JsonSchema] = {"type": "string", "enum": [str(outcome) for outcome in _OUTCOMES]}

    @classmethod
    def parse(cls, raw: object) -> Self:
        if raw not in _OUTCOMES:
            raise ValueError(f"must be one of {', '.join(_OUTCOMES)}")
        return cls(raw)


class Report(msgspec.Struct):
    """What an application says of a key that it got."""

    key_id: RowNumber
    outcome: Outcome


class _Resolved(NamedTuple):
    user_id: UserId
    service: str
    at: datetime
    value_uuid: UUID
    settings: str
    current_value: UUID | None
    current_settings: str | None


async def report(db: Database, caller: Principal, said: Report, take: Callable[[], None]) -> None:
    """Store what an application says of a key, unless a check or a use is newer than its last resolve of the key.

    `take` counts the report, and may raise RateLimited. Raises Forbidden for an application with a reserved name, whose
    verdict would look like one of keyman's own. Raises NotFound unless the application resolved the value that
    the key still holds, within RESOLVED_WITHIN.
    """
    application = caller.require_application()
    name, moment = application.name, now()
    if name in RESERVED_NAMES:  # registered before they were reserved
        raise Forbidden("The name of this application is reserved, so it cannot report. Register another application.")
    ahead_at = moment + CLOCKS_APART  # what is later, a clock that ran ahead has written
    about = {"key_id": said.key_id, "application": name, "ahead_at": ahead_at}
    async with db.write(caller) as connection:
        since = moment - RESOLVED_WITHIN
        row = await _RESOLVED.first(connection, **about, since=since, of_application=application.id)
        if row is None or not is_current(row):
            raise NotFound("There is no such key for this application.")
        take()
        stored = await _STORE.execute(
            connection,
            of_id=said.key_id,
            of_value=row.value_uuid,
            resolved_at=row.at,
            verdict=str(said.outcome),
            moment=moment,
            said=DETAILS[Verdict(said.outcome)],
            said_by=name,
            ahead_at=ahead_at,
        )
        # After the row is locked, so that two replicas count one after the other.
        if await _REPORTED.first(connection, **about, since=moment - PAUSE) is not None:
            raise RateLimited(TOO_MANY, retry_after=int(PAUSE.total_seconds()))
        if stored:
            await record(
                connection,
                Entry(
                    Action.KEY_REPORT,
                    caller.origin,
                    row.user_id,
                    key_id=KeyId(said.key_id),
                    service=row.service,
                    application=name,
                    detail=str(said.outcome),
                ),
            )


_NAMED_AT = (
    select(func.min(audit_log.c.as_of))
    .where(audit_log.c.key_id == api_keys.c.id, audit_log.c.value_uuid == api_keys.c.value_uuid)
    .correlate(api_keys)
    .scalar_subquery()
)
"""The first entry that names the value of a key. A resolve after it gave this value out."""

_RESOLVED = Query(
    select(
        users.c.id.label("user_id"),
        api_keys.c.service,
        audit_log.c.at,
        api_keys.c.value_uuid,
        api_keys.c.settings,
        current_value(bindparam("key_id")).label("current_value"),
        current_settings(bindparam("key_id")).label("current_settings"),
    )
    .select_from(audit_log)
    .join(api_keys, api_keys.c.id == audit_log.c.key_id)
    .join(users, users.c.id == api_keys.c.owner_id)
    .where(
        audit_log.c.key_id == bindparam("key_id"),
        audit_log.c.action == str(Action.KEY_RESOLVE),
        audit_log.c.application == bindparam("application"),
        audit_log.c.at >= bindparam("since", type_=UtcTime),
        audit_log.c.at <= bindparam("ahead_at", type_=UtcTime),
        audit_log.c.id > _NAMED_AT,
        users.c.disabled_at.is_(None),
        ~exists().where(
            application_blocks.c.user_id == users.c.id,
            application_blocks.c.application_id == bindparam("of_application"),
        ),
    )
    .order_by(audit_log.c.at.desc())
    .limit(1),
    _Resolved,
)
_REPORTED = scalar(
    select(audit_log.c.id)
    .where(
        audit_log.c.key_id == bindparam("key_id"),
        audit_log.c.action == str(Action.KEY_REPORT),
        audit_log.c.application == bindparam("application"),
        audit_log.c.at > bindparam("since", type_=UtcTime),
        audit_log.c.at <= bindparam("ahead_at", type_=UtcTime),
    )
    .limit(1),
    int,
)
_STORE = Command(
    update(api_keys)
    .where(
        api_keys.c.id == bindparam("of_id"),
        api_keys.c.value_uuid == bindparam("of_value"),
        or_(
            api_keys.c.checked_at.is_(None),
            api_keys.c.checked_by.not_in((KEYMAN, USE)),
            api_keys.c.checked_at <= bindparam("resolved_at", type_=UtcTime),
            IS_AHEAD,
        ),
    )
    .values(
        check_verdict=bindparam("verdict"),
        checked_at=bindparam("moment", type_=UtcTime),
        check_detail=bindparam("said"),
        checked_by=bindparam("said_by"),
    )
)
