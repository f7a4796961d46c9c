"""JSON Web Tokens of users: they call the API with the tokens that their identity provider gave them.

The user is the identity (`iss`, `sub`), and is created at the first use. Nothing is cached but the keys of the issuer:
each request looks the user up, so a disabled account is refused at the next one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Select, Table, bindparam, literal, select, union_all
from sqlalchemy.sql.elements import ColumnElement

from keyman.audit.entries import Action, Actor, Entry, Origin
from keyman.audit.log import record
from keyman.config.identity import WORKLOAD_AUDIENCE, JwtSettings
from keyman.errors import ConfigurationError, InvalidToken, raise_alone
from keyman.identity import audiences, first_proof
from keyman.identity.fetching import Fetcher
from keyman.identity.identities import Identity, find_or_create, issuer_detail
from keyman.identity.jose import BEARER_TYPES, LEEWAY, OF_OTHER_TOKENS, SHARED_AUDIENCE, Claims, Rules
from keyman.identity.jwks import Refused
from keyman.identity.key_sets import FileKeys, KeySource, RemoteKeys, verify
from keyman.identity.principals import FOUND_USER, USER_WITHOUT_ADDRESS, Credentials, FoundUser, Principal
from keyman.identity.standing import Grounds, Standing, lock_accounts
from keyman.identity.tables import application_identities, identities, users
from keyman.identity.tokens import Scope
from keyman.ids import UserId
from keyman.storage.statements import Query
from keyman.storage.transactions import Database, Unchecked

_ENDED = InvalidToken("The JWT is refused: sub is no longer a user of keyman, or the account was disabled.")

_TABLES: Mapping[str, Table] = {table.name: table for table in (application_identities, identities)}
"""In the order in which they count: see identities.py."""

_STANDINGS = {name: Standing(table, users, ended=_ENDED) for name, table in _TABLES.items()}


class JwtProof:
    """A Proof that identifies a user by a JWT of the issuer in `settings`.

    `reads_only` is for the gateway, which may neither write users and identities nor read the addresses of users.
    """

    def __init__(self, settings: JwtSettings, keys: KeySource, *, reads_only: bool = False) -> None:
        self._reads_only = reads_only
        self._is_published = reads_only
        self._by_pair = _WITHOUT_ADDRESS if reads_only else _BY_PAIR
        self._keys = keys
        self._scopes = frozenset(Scope(name) for name in settings.scopes)
        self._signup_open = settings.signup_open and not reads_only
        # A token that is good for both would let one who has a user's token act as an application, and the reverse.
        # Those of applications that operators chose are in the database: see audiences.py.
        others = frozenset({WORKLOAD_AUDIENCE})
        self._rules = Rules(
            settings.issuer, settings.audience, BEARER_TYPES, refused=OF_OTHER_TOKENS, other_audiences=others
        )

    def find(self, credentials: Credentials) -> str | None:
        return credentials.jwt

    async def verify(self, db: Database, credential: str, credentials: Credentials) -> Principal:
        """Return the user with the scopes of the token. Raises InvalidToken, which names the claim, and
        IssuerUnavailable.
        """
        if not self._is_published:
            await audiences.publish(db, self._rules.audience)
            self._is_published = True
        try:
            claims = await verify(credential, self._keys, self._rules)
            await self._refuse_audience_of_applications(db, claims)
            row = await self._user(db, claims, credentials)
        except Refused as fault:
            raise_alone(InvalidToken(str(fault)))
        assert claims.expires_at is not None, "the rules require it"
        ends_at = claims.expires_at + timedelta(seconds=LEEWAY)
        return Principal(
            origin=_origin(credentials),
            scopes=self._scopes_of(claims),
            user=row.user(),
            expires_at=claims.expires_at,
            grounds=Grounds(_STANDINGS[row.source], row.identity_id, row.user_id, ends_at),
        )

    async def _refuse_audience_of_applications(self, db: Database, claims: Claims) -> None:
        """Raise Refused for a token with an audience that an operator registered an application with."""
        others = [one for one in claims.audiences if one != self._rules.audience]
        if others and await audiences.any_of_applications(db, others):
            raise Refused("aud", SHARED_AUDIENCE)

    async def _user(self, db: Database, claims: Claims, credentials: Credentials) -> _Found:
        """Return the user of the token, which is created if there is none. Raises Refused."""
        assert claims.subject is not None, "the rules require it"
        identity = Identity(claims.issuer, claims.subject)
        rows = await self._find(db, identity)
        if not rows:
            if not self._signup_open:
                raise Refused("sub", "is not a user of keyman, and new users are not accepted")
            await _create(db, identity, credentials)
            rows = await self._find(db, identity)
        if not rows or rows[0].disabled_at is not None:
            raise Refused("sub", "is a user whose account is disabled")
        if rows[-1].source == application_identities.name and not self._reads_only:
            await _store_proof(db, identity, rows[0].user_id, credentials)
        return rows[0]

    async def _find(self, db: Database, identity: Identity) -> list[_Found]:
        """Return the rows of the identity, of which the first one counts: see identities.py."""
        async with db.read() as connection:
            return await self._by_pair.all(connection, issuer=identity.issuer, subject=str(identity.subject))

    def _scopes_of(self, claims: Claims) -> frozenset[Scope]:
        named = claims.words("scope") | claims.words("scp")
        return frozenset(scope for scope in Scope if scope in named) or self._scopes


def keys_of(settings: JwtSettings, ca_certificate: Path | None) -> FileKeys | RemoteKeys:
    """Return where the keys of the issuer come from. Raises ConfigurationError for a file that is no key set."""
    if settings.jwks_file is None:
        return RemoteKeys(Fetcher(ca_certificate), settings.issuer, settings.jwks_url)
    try:
        return FileKeys(settings.jwks_file)
    except ValueError as fault:
        raise ConfigurationError(f"The file in KEYMAN_JWT_JWKS_FILE {fault}.") from None


class _Found(FoundUser, frozen=True):
    identity_id: int
    disabled_at: datetime | None
    rank: int
    source: str


def _of_pair(rank: int, table: Table, user: Sequence[ColumnElement[Any]]) -> Select[*tuple[object, ...]]:
    return (
        select(
            *user,
            table.c.id.label("identity_id"),
            users.c.disabled_at,
            literal(rank).label("rank"),
            literal(table.name).label("source"),
        )
        .join_from(table, users)
        .where(table.c.issuer == bindparam("issuer"), table.c.subject == bindparam("subject"))
    )


def _by_pair(user: Sequence[ColumnElement[Any]]) -> Query[_Found]:
    found = union_all(*(_of_pair(rank, table, user) for rank, table in enumerate(_TABLES.values())))
    return Query(found.order_by("rank"), _Found)


_BY_PAIR = _by_pair(FOUND_USER)
_WITHOUT_ADDRESS = _by_pair(USER_WITHOUT_ADDRESS)


async def _create(db: Database, identity: Identity, credentials: Credentials) -> None:
    """Create the user, unless another request has done so meanwhile."""
    async with db.write(Unchecked.SIGN_IN) as connection:
        known = await find_or_create(connection, identity, identities)
        if known.is_new:
            detail = issuer_detail(identity.issuer)
            await record(connection, Entry(Action.ACCOUNT_CREATE, _origin(credentials), known.user_id, detail=detail))


async def _store_proof(db: Database, identity: Identity, user_id: UserId, credentials: Credentials) -> None:
    """Store that the user has proved an identity that came with a portal link, unless another request has done so."""
    async with db.write(Unchecked.SIGN_IN) as connection:
        await lock_accounts(connection, user_id)
        pair = {"issuer": identity.issuer, "subject": str(identity.subject)}
        rows = await _BY_PAIR.all(connection, **pair)
        if [(row.source, row.user_id) for row in rows] == [(application_identities.name, user_id)]:
            await first_proof.store(connection, identity, user_id)
            detail = issuer_detail(identity.issuer)
            await record(connection, Entry(Action.ACCOUNT_LINK, _origin(credentials), user_id, detail=detail))


def _origin(credentials: Credentials) -> Origin:
    return Origin(Actor.TOKEN, None, credentials.request_id, credentials.address)
