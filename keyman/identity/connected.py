"""Connected sign-ins: the identities of an account, and how its user removes one. `oidc.py` adds them."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import bindparam, delete, func, select, update

from keyman.audit.entries import Action, Entry
from keyman.audit.log import record
from keyman.errors import Conflict, NotFound
from keyman.identity.identities import issuer_detail
from keyman.identity.presence import Presence
from keyman.identity.principals import Principal
from keyman.identity.tables import identities, sessions, users
from keyman.storage.statements import Command, Query, scalar
from keyman.storage.transactions import Database

LAST_WAY_IN = "This is the last way to sign in to the account. Add another one before you disconnect it."


class Connected(NamedTuple):
    """An identity, as its user sees it."""

    id: int
    issuer: str
    email: str | None
    name: str | None
    created_at: datetime


async def list_own(db: Database, caller: Principal) -> list[Connected]:
    """Return the identities of the caller's account that came by a sign-in or a JWT, oldest first."""
    async with db.read() as connection:
        return await _OWN.all(connection, of_user=caller.user_id)


async def unlink(
    db: Database, caller: Principal, proof: Presence, identity_id: int, *, issuer: str | None, passwords_on: bool
) -> None:
    """Remove an identity of the caller, and end the other sessions that it has opened.

    A way in is a password, if people can sign in with one, or an identity of `issuer`. Raises NotFound, and Conflict
    for the last way in.
    """
    async with db.write(caller.exclusive()) as connection:
        await proof.confirm(connection)
        owned = {found.id: found for found in await _OWN.all(connection, of_user=caller.user_id)}
        removed = owned.pop(identity_id, None)
        if removed is None:
            raise NotFound("There is nothing with this id.")
        has_password = passwords_on and await _HAS_PASSWORD.one(connection, of_user=caller.user_id)
        if not has_password and not any(other.issuer == issuer for other in owned.values()):
            raise Conflict(LAST_WAY_IN)
        await _KEEP_CURRENT.execute(connection, of_session=caller.require_session(), of_identity=identity_id)
        await _END_OTHERS.execute(connection, of_identity=identity_id)
        await _REMOVE.execute(connection, of_user=caller.user_id, of_id=identity_id)
        await proof.settle(connection)
        detail = issuer_detail(removed.issuer)
        await record(connection, Entry(Action.ACCOUNT_UNLINK, caller.origin, caller.user_id, detail=detail))


_OWN = Query(
    select(identities.c.id, identities.c.issuer, identities.c.email, identities.c.name, identities.c.created_at)
    .where(identities.c.user_id == bindparam("of_user"))
    .order_by(identities.c.id),
    Connected,
)
_HAS_PASSWORD = scalar(
    select((func.coalesce(users.c.password_hash, "") != "").label("has_password")).where(
        users.c.id == bindparam("of_user")
    ),
    bool,
)
_KEEP_CURRENT = Command(
    update(sessions)
    .where(sessions.c.id == bindparam("of_session"), sessions.c.identity_id == bindparam("of_identity"))
    .values(identity_id=None, provider_session=None)
)
_END_OTHERS = Command(delete(sessions).where(sessions.c.identity_id == bindparam("of_identity")))
_REMOVE = Command(
    delete(identities).where(identities.c.user_id == bindparam("of_user"), identities.c.id == bindparam("of_id"))
)
