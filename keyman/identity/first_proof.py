"""The first proof of an identity that an application named in a portal link, before its user came from the issuer.

From then on the account is its user's: the application can no longer send somebody to it, and what it opened ends. It
makes no difference whether the portal link or the sign-in came first.
"""

from __future__ import annotations

from sqlalchemy import bindparam, delete
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.identity.identities import Identity, add
from keyman.identity.tables import identities, portal_links, sessions
from keyman.ids import UserId
from keyman.storage.statements import Command


async def store(connection: AsyncConnection, identity: Identity, user_id: UserId) -> None:
    """Store an identity that the user has proved, and end the portal links and portal sessions of the account.

    The caller has locked the account.
    """
    await add(connection, identity, user_id, identities)
    await _END_SESSIONS.execute(connection, of_user=user_id)
    await _END_LINKS.execute(connection, of_user=user_id)


_END_SESSIONS = Command(
    delete(sessions).where(sessions.c.user_id == bindparam("of_user"), sessions.c.application_id.is_not(None))
)
_END_LINKS = Command(delete(portal_links).where(portal_links.c.user_id == bindparam("of_user")))
