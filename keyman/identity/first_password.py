"""Sets the first password of an account that has come by an identity provider.

The name to sign in with is a verified address of one of its identities: nobody can take the address of somebody else.
"""

from __future__ import annotations

import msgspec
from sqlalchemy import bindparam, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.audit.entries import Action, Entry
from keyman.audit.log import record
from keyman.errors import Conflict
from keyman.identity import presence, sessions
from keyman.identity.passwords import Passwords
from keyman.identity.principals import Principal
from keyman.identity.tables import identities, users
from keyman.identity.users import ChangePassword, change_password
from keyman.ids import UserId
from keyman.storage.statements import Command, Query, scalar
from keyman.storage.transactions import Database
from keyman.values import EmailAddress, NewPassword

NO_ADDRESS = (
    "Your identity provider has not verified an e-mail address of yours, and a password needs one to sign in with."
)
TAKEN = "Another account already signs in with your e-mail address."


async def set_first(db: Database, passwords: Passwords, caller: Principal, password: NewPassword) -> None:
    """Set a password for the caller's account, and end all other sessions.

    Raises Conflict if the account has no verified address, or another account has it. Raises what `presence.prove` and
    `Presence.confirm` raise: InvalidRequest for an account that has a password, for example.
    """
    session_id = caller.require_session()
    proof = await presence.prove(db, passwords, caller, None)
    new_hash = await passwords.hash(password)
    try:
        async with db.write(caller.exclusive()) as connection:
            await proof.confirm(connection)
            email = await _verified(connection, caller.user_id)
            if email is None:
                raise Conflict(NO_ADDRESS)
            await _SET.execute(
                connection, of_user=caller.user_id, new_email=str(email), new_key=email.key, new_hash=new_hash
            )
            await sessions.end_all(connection, caller.user_id, but=session_id)
            await proof.settle(connection)
            await record(connection, Entry(Action.PASSWORD, caller.origin, caller.user_id, detail="first password"))
    except IntegrityError:
        raise Conflict(TAKEN) from None


async def change(db: Database, passwords: Passwords, caller: Principal, asked: ChangePassword) -> None:
    """Change the caller's password or, without the current one, set the first. Raises what the two raise."""
    if asked.current_password is msgspec.UNSET:
        await set_first(db, passwords, caller, asked.new_password)
    else:
        await change_password(db, passwords, caller, asked.current_password, asked.new_password)


async def sign_in_name(db: Database, caller: Principal) -> EmailAddress | None:
    """Return the address with which the caller would sign in, or None if no verified address is known."""
    async with db.read() as connection:
        return await _verified(connection, caller.user_id)


async def _verified(connection: AsyncConnection, user_id: UserId) -> EmailAddress | None:
    for text in await _ADDRESSES.all(connection, of_user=user_id):
        try:
            return EmailAddress.parse(text)
        except ValueError:  # a provider may verify what keyman takes for no address
            continue
    return None


# The address that the pages show comes first, then that of the newest identity.
_ADDRESSES: Query[str] = scalar(
    select(func.coalesce(identities.c.email, "").label("email"))
    .join_from(identities, users)
    .where(identities.c.user_id == bindparam("of_user"), identities.c.email.is_not(None))
    .order_by((identities.c.email == func.coalesce(users.c.shown_email, "")).desc(), identities.c.id.desc()),
    str,
)
_SET = Command(
    update(users)
    .where(users.c.id == bindparam("of_user"), users.c.password_hash.is_(None), users.c.disabled_at.is_(None))
    .values(email=bindparam("new_email"), email_key=bindparam("new_key"), password_hash=bindparam("new_hash"))
)
