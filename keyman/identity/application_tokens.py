"""An application proves who it is by its token, unless it logs in with a JWT (workloads.py).

Nothing is cached, so a revoked application is refused from its next request on, on every replica.
"""

from __future__ import annotations

from datetime import datetime

import msgspec
from sqlalchemy import bindparam, select, update

from keyman.audit.entries import Actor, Origin
from keyman.clock import now
from keyman.errors import Unauthenticated
from keyman.identity.lookups import Lookup
from keyman.identity.principals import Application, Credentials, Principal
from keyman.identity.standing import Grounds, HolderLock, Standing
from keyman.identity.tables import application_tokens, applications
from keyman.identity.tokens import Token
from keyman.ids import ApplicationId, ApplicationTokenId
from keyman.storage import last_use
from keyman.storage.statements import Command
from keyman.storage.transactions import Database

_ENDED = "This is not an application token, or it has expired or been revoked."
_STANDING = Standing(application_tokens, applications, ended=_ENDED)


class FoundApplication(msgspec.Struct, frozen=True):
    """The application's part of a row by which a credential was found: the columns FOUND_APPLICATION."""

    id: ApplicationId
    name: str
    services: str
    issuers: str | None
    return_urls: str | None
    checks: bool

    def application(self) -> Application:
        issuers = None if self.issuers is None else tuple(self.issuers.split(" "))
        return_urls = tuple(self.return_urls.split(" ")) if self.return_urls else ()
        return Application(self.id, self.name, frozenset(self.services.split()), issuers, return_urls, self.checks)


FOUND_APPLICATION = (
    applications.c.id,
    applications.c.name,
    applications.c.services,
    applications.c.issuers,
    applications.c.return_urls,
    applications.c.checks,
)


class ApplicationProof:
    """A Proof that identifies an application by its token."""

    def find(self, credentials: Credentials) -> str | None:
        return credentials.bearer

    async def verify(self, db: Database, credential: str, credentials: Credentials) -> Principal:
        """Return the application that has this token. Raises Unauthenticated, also for a personal access token."""
        token = Token.parse(credential)
        moment = now()
        row = await _BY_TOKEN.find(db, token.digest())
        if row is None or (row.expires_at is not None and row.expires_at <= moment):
            raise Unauthenticated(_ENDED)
        if last_use.is_due(row.last_used_at, moment):
            lock = HolderLock(applications, row.id)
            await db.note(lock, _NOTE_USE, token_id=row.token_id, moment=moment, **last_use.bounds(moment))
        return Principal(
            origin=Origin(Actor.APPLICATION, row.token_id, credentials.request_id, credentials.address),
            application=row.application(),
            grounds=Grounds(_STANDING, row.token_id, row.id),
        )


class _Found(FoundApplication, frozen=True):
    token_id: ApplicationTokenId
    expires_at: datetime | None
    last_used_at: datetime | None
    token_hash: bytes


_BY_TOKEN = Lookup(
    select(
        *FOUND_APPLICATION,
        application_tokens.c.id.label("token_id"),
        application_tokens.c.expires_at,
        application_tokens.c.last_used_at,
        application_tokens.c.token_hash,
    )
    .join_from(application_tokens, applications)
    .where(applications.c.disabled_at.is_(None)),
    application_tokens.c.token_hash,
    _Found,
    lambda row: row.token_hash,
)
_NOTE_USE = Command(
    update(application_tokens)
    .where(application_tokens.c.id == bindparam("token_id"), last_use.is_stale(application_tokens.c.last_used_at))
    .values(last_used_at=bindparam("moment"))
)
