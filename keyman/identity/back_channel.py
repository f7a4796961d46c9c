"""Back-Channel Logout 1.0: the identity provider ends the sessions that it has opened."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from typing import NamedTuple

from sqlalchemy import ColumnElement, bindparam, delete, insert, select
from sqlalchemy.exc import IntegrityError

from keyman.audit.entries import Action, Entry, Origin
from keyman.audit.log import record
from keyman.clock import now
from keyman.identity import key_sets
from keyman.identity.identities import issuer_detail
from keyman.identity.jose import LEEWAY, Claims, Rules
from keyman.identity.jwks import Refused
from keyman.identity.provider import Provider
from keyman.identity.standing import lock_accounts
from keyman.identity.tables import identities, logout_tokens, sessions
from keyman.ids import SessionId, UserId
from keyman.storage.statements import Command, Query
from keyman.storage.transactions import Database, Unchecked

EVENT = "http://schemas.openid.net/event/backchannel-logout"
"""The member of `events` that makes a token a logout token."""

MAX_AGE = timedelta(minutes=5)
"""How far the times of a logout token may be from now, beside the LEEWAY of the clocks."""


async def end_sessions(db: Database, provider: Provider, token: str, origin: Origin) -> None:
    """End the sessions that a logout token names. Raises Refused, also for a second use, and IssuerUnavailable."""
    settings = provider.settings
    rules = Rules(
        settings.issuer,
        settings.client_id,
        types=frozenset({"jwt", "logout+jwt"}),
        required=frozenset({"exp", "iat", "jti", "events"}),
        refused=frozenset({"nonce"}),
    )
    claims = await key_sets.verify(token, provider.keys, rules)
    session, number = _checked(claims)
    named = {
        "of_issuer": settings.issuer,
        "of_subject": None if claims.subject is None else str(claims.subject),
        "of_session": session,
    }
    found = _FIND[claims.subject is not None, session is not None]
    parameters = {name: value for name, value in named.items() if value is not None}
    assert claims.expires_at is not None, "the rules require it"
    counts_until = claims.expires_at + timedelta(seconds=LEEWAY)
    try:
        async with db.write(Unchecked.KEYMAN) as connection:
            await _REMEMBER.execute(connection, token_hash=number, expires_at=counts_until)
            users = sorted({row.user_id for row in await found.all(connection, **parameters)})
            await lock_accounts(connection, *users)
            for row in await found.all(connection, **parameters):  # after the locks, for which it may have waited
                await _END.execute(connection, of_id=row.id)
            detail = issuer_detail(settings.issuer)
            await record(connection, *(Entry(Action.SESSION_END, origin, user, detail=detail) for user in users))
    except IntegrityError:
        raise Refused("jti", "was used before") from None


def _checked(claims: Claims) -> tuple[str | None, bytes]:
    """Return the provider's id of the session, and the hash of the token's id. Raises Refused."""
    reach = MAX_AGE + timedelta(seconds=LEEWAY)
    for name, at in (("iat", claims.issued_at), ("exp", claims.expires_at)):
        if at is None or abs(now() - at) > reach:
            raise Refused(name, "is more than five minutes away")
    events = claims.members["events"]
    if not isinstance(events, dict) or not isinstance(events.get(EVENT), dict):
        raise Refused("events", "is not a logout")
    token_id, session = claims.text("jti"), claims.members.get("sid")
    if not token_id:
        raise Refused("jti", "is not a text")
    if session is not None and (not isinstance(session, str) or not session):
        raise Refused("sid", "is not a text")
    if session is None and claims.subject is None:
        raise Refused("sub", "is missing, and so is sid")
    number = hashlib.sha256(f"{len(claims.issuer)}:{claims.issuer}{token_id}".encode("utf-8", "replace")).digest()
    return session, number


class _Session(NamedTuple):
    id: SessionId
    user_id: UserId


def _find(*conditions: ColumnElement[bool]) -> Query[_Session]:
    of_issuer = identities.c.issuer == bindparam("of_issuer")
    found = select(sessions.c.id, sessions.c.user_id).join_from(sessions, identities)
    return Query(found.where(of_issuer, *conditions).order_by(sessions.c.id), _Session)


_IS_OF_SUBJECT = identities.c.subject == bindparam("of_subject")
_IS_SESSION = sessions.c.provider_session == bindparam("of_session")
_FIND = {
    (True, True): _find(_IS_OF_SUBJECT, _IS_SESSION),
    (True, False): _find(_IS_OF_SUBJECT),
    (False, True): _find(_IS_SESSION),
}
"""The sessions that a token names, by whether it has `sub` and `sid`."""

_END = Command(delete(sessions).where(sessions.c.id == bindparam("of_id")))
_REMEMBER = Command(insert(logout_tokens))
