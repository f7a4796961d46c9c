"""The application with which the management plane of `keyman dev` asks the gateway for live checks."""

from __future__ import annotations

from datetime import timedelta

from keyman.config.checks import OF_CHECKS
from keyman.dev.home import Home
from keyman.errors import Forbidden, Unauthenticated
from keyman.identity import applications
from keyman.identity.application_tokens import ApplicationProof
from keyman.identity.principals import Credentials
from keyman.logs import log
from keyman.storage.transactions import Database
from keyman.values import ApplicationName

NAME = ApplicationName("live-checks")

CHECKS = OF_CHECKS | {"KEYMAN_GATEWAY_TOKEN_FILE"}
"""The variables about it. If one of them is set outside, all of them are taken from there."""


async def checks_of(home: Home, gateway_url: str) -> dict[str, str]:
    """Return the variables of the management plane, and none if an operator has revoked the application, or has
    registered an ordinary one with its name.

    The application is registered at the first start, and its token is kept in the home. Raises ConfigurationError.
    """
    db = Database(home.database)
    try:
        if not await _works(db, home.checks_token()):
            token = await _new_token(db)
            if token is None:
                return {}
            home.write_checks_token(token)
    finally:
        await db.close()
    return {"KEYMAN_GATEWAY_URL": gateway_url, "KEYMAN_GATEWAY_TOKEN_FILE": str(home.checks_token_file)}


async def _works(db: Database, token: str | None) -> bool:
    if token is None:
        return False
    try:
        caller = await ApplicationProof().verify(db, token, Credentials(token, None, "", None))
        caller.require_checks()
    except (Unauthenticated, Forbidden):
        return False
    return True


async def _new_token(db: Database) -> str | None:
    """Return a token that works: of a new application, or a new one if the file was lost.

    None: the operator has revoked the application, or has registered one with this name for something else.
    """
    known = {info.name: info for info in await applications.list_all(db)}.get(NAME)
    if known is None:
        return (await applications.create(db, NAME, ())).token.reveal()
    if not known.checks:
        log.warning("live checks are off, because an application for something else has this name", application=NAME)
        return None
    if known.disabled_at is not None:
        return None
    return (await applications.rotate(db, NAME, timedelta())).token.reveal()
