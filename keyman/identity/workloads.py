"""JSON Web Tokens of applications: they log in with what their platform gives them, such as the token of a Kubernetes
service account, instead of a stored token of keyman.

An operator registers issuer, subject and audience. Only the keys of the issuer are cached.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import bindparam, func, select

from keyman.audit.entries import Actor, Origin
from keyman.errors import InvalidToken, raise_alone
from keyman.identity.application_tokens import FOUND_APPLICATION, FoundApplication
from keyman.identity.audiences import ANY_OF_USERS, listed
from keyman.identity.fetching import Fetcher
from keyman.identity.jose import (
    BEARER_TYPES,
    LEEWAY,
    OF_OTHER_TOKENS,
    SHARED_AUDIENCE,
    Claims,
    Rules,
    Unverified,
    parts_of,
)
from keyman.identity.jwks import KeySet, Refused
from keyman.identity.key_sets import FixedKeys, RemoteKeys, verify
from keyman.identity.principals import Credentials, Principal
from keyman.identity.standing import Grounds, Standing
from keyman.identity.tables import applications
from keyman.storage.statements import Query
from keyman.storage.transactions import Database
from keyman.values import Subject

MAX_SOURCES = 1000
"""Key sets of issuers that one process keeps. Applications of one issuer share one."""

_ENDED = InvalidToken("The JWT is refused: sub is no longer an application of keyman.")

_STANDING = Standing(applications, applications, ended=_ENDED)


class WorkloadProof:
    """A Proof that identifies an application by a JWT. `users_audience` is the audience of the tokens of users, if this
    plane has it in its settings. Those that the database knows count, too: see audiences.py.

    The keys of issuers are fetched with `fetcher`.
    """

    def __init__(self, fetcher: Fetcher, users_audience: str | None) -> None:
        self._fetcher = fetcher
        self._others = frozenset({users_audience} if users_audience else ())
        self._sources: OrderedDict[tuple[str | None, ...], FixedKeys | RemoteKeys] = OrderedDict()

    def find(self, credentials: Credentials) -> str | None:
        return credentials.jwt

    async def verify(self, db: Database, credential: str, credentials: Credentials) -> Principal:
        """Return the application. Raises InvalidToken, which names the claim, and IssuerUnavailable."""
        try:
            row = await _registered(db, parts_of(credential))
            claims = await self._verified(credential, row)
        except Refused as fault:
            raise_alone(InvalidToken(str(fault)))
        assert claims.expires_at is not None, "the rules require it"
        ends_at = claims.expires_at + timedelta(seconds=LEEWAY)
        return Principal(
            origin=Origin(Actor.APPLICATION, None, credentials.request_id, credentials.address),
            application=row.application(),
            expires_at=claims.expires_at,
            grounds=Grounds(_STANDING, row.id, row.id, ends_at),
        )

    async def close(self) -> None:
        await asyncio.gather(*(source.close() for source in self._sources.values()))

    async def _verified(self, token: str, row: _Found) -> Claims:
        rules = Rules(
            row.jwt_issuer,
            row.jwt_audience,
            BEARER_TYPES,
            refused=OF_OTHER_TOKENS,
            other_audiences=self._others,
        )
        claims = await verify(token, self._source(row), rules)
        if claims.subject != row.jwt_subject:
            raise Refused("sub", "is not that of the application")
        return claims

    def _source(self, row: _Found) -> FixedKeys | RemoteKeys:
        wanted = (row.jwt_issuer, row.jwt_jwks_url, row.jwt_jwks)
        source = self._sources.get(wanted)
        if source is None:
            if row.jwt_jwks is None:
                source = RemoteKeys(self._fetcher, row.jwt_issuer, row.jwt_jwks_url)
            else:
                source = FixedKeys(KeySet.parse(row.jwt_jwks.encode()))
            self._sources[wanted] = source
            if len(self._sources) > MAX_SOURCES:
                self._sources.popitem(last=False)
        return source


class _Found(FoundApplication, frozen=True):
    jwt_issuer: str
    jwt_subject: str
    jwt_audience: str
    jwt_jwks_url: str | None
    jwt_jwks: str | None
    is_for_users: bool


_BY_SUBJECT = {
    dialect: Query(
        select(
            *FOUND_APPLICATION,
            *(
                func.coalesce(applications.c[name], "").label(name)
                for name in ("jwt_issuer", "jwt_subject", "jwt_audience")
            ),
            applications.c.jwt_jwks_url,
            applications.c.jwt_jwks,
            is_for_users.label("is_for_users"),
        ).where(
            applications.c.jwt_issuer == bindparam("issuer"),
            applications.c.jwt_subject == bindparam("subject"),
            applications.c.disabled_at.is_(None),
        ),
        _Found,
    )
    for dialect, is_for_users in ANY_OF_USERS.items()
}


async def _registered(db: Database, parts: Unverified | None) -> _Found:
    """Return the application that a token claims to be, before it is verified. Raises Refused."""
    claims = {} if parts is None or parts.claims is None else parts.claims
    issuer, audience = claims.get("iss"), claims.get("aud")
    audiences: list[object] = audience if isinstance(audience, list) else [audience]
    if not isinstance(issuer, str) or not re.fullmatch(r"[!-~]{1,500}", issuer):
        raise Refused("iss", "is not an issuer that keyman knows")
    try:
        subject = Subject.parse(claims.get("sub"))
    except ValueError as fault:
        raise Refused("sub", str(fault)) from None
    async with db.read() as connection:
        by_subject, given = _BY_SUBJECT[connection.dialect.name], listed(connection, audiences)
        rows = await by_subject.all(connection, issuer=issuer, subject=str(subject), **given)
    if not rows:
        raise Refused("sub", "with this iss is not an application of keyman, or it was revoked")
    found = _for_audience(rows, audiences)
    if found.is_for_users:
        raise Refused("aud", SHARED_AUDIENCE)
    return found


def _for_audience(rows: Sequence[_Found], audiences: Sequence[object]) -> _Found:
    found = [row for row in rows if row.jwt_audience in audiences]
    if len(found) != 1:
        raise Refused("aud", "does not contain the audience of exactly one application")
    return found[0]
