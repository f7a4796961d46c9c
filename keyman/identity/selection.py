"""The account that an operator names: by its address, its number or one of its identities."""

from __future__ import annotations

from sqlalchemy import bindparam, select
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.errors import NotFound
from keyman.identity import identities
from keyman.identity.identities import Identity
from keyman.identity.standing import lock_accounts
from keyman.identity.tables import users
from keyman.ids import MAX_ID, UserId
from keyman.storage.statements import scalar
from keyman.values import EmailAddress, RowNumber

Whom = EmailAddress | RowNumber | Identity
"""An account. A number is a RowNumber, and not a UserId, because nobody has looked yet whether it is one."""


async def lock_chosen(connection: AsyncConnection, whom: Whom) -> UserId:
    """Lock an account until the transaction ends, so that nobody acts for it, and return its number.

    Raises NotFound, also if the account was deleted.
    """
    user_id = await find_chosen(connection, whom)
    await lock_accounts(connection, user_id)
    # Again, because the account can be deleted while this waits for the lock.
    if await find_chosen(connection, whom) != user_id:
        raise NotFound("The account was deleted at the same time.")
    return user_id


async def find_chosen(connection: AsyncConnection, whom: Whom) -> UserId:
    """Return the number of an account. Raises NotFound, also if it was deleted."""
    if isinstance(whom, EmailAddress):
        user_id, known = await _BY_EMAIL.first(connection, email_key=whom.key), "address"
    elif isinstance(whom, Identity):
        user_id, known = await identities.find(connection, whom), "identity"
    else:
        user_id, known = await _BY_ID.first(connection, user_id=min(whom, MAX_ID)), "number"
    if user_id is None:
        raise NotFound(_UNKNOWN[known])
    return user_id


_UNKNOWN = {
    "address": "There is no account with this address. See all with: keyman user list",
    "identity": "There is no account with this identity. See all with: keyman user list",
    "number": "There is no account with this number. See all with: keyman user list",
}
_BY_EMAIL = scalar(select(users.c.id).where(users.c.email_key == bindparam("email_key")), UserId)
_BY_ID = scalar(select(users.c.id).where(users.c.id == bindparam("user_id"), users.c.erased_at.is_(None)), UserId)
