"""Captures keyman's statements on a large database, and explains their plans.

The statements are not written here. They are captured on their way to the driver while keyman's own operations run.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from unittest import mock
from uuid import UUID

import asyncpg
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncConnection

from bench.filling import dsn
from keyman.audit import listing
from keyman.audit.entries import Action, Actor, Origin
from keyman.audit.listing import Filter
from keyman.clock import now
from keyman.config.identity import JwtSettings
from keyman.errors import KeymanError, NotFound, RateLimited
from keyman.identity import applications, identities, limits, login, sessions, throttle, users
from keyman.identity import personal_tokens as personal
from keyman.identity.application_tokens import ApplicationProof
from keyman.identity.applications import ALL_USERS, Workload
from keyman.identity.fetching import Fetcher
from keyman.identity.identities import Identity
from keyman.identity.jwt import JwtProof
from keyman.identity.key_sets import FixedKeys
from keyman.identity.personal_tokens import CreatedToken, NewToken, TokenProof
from keyman.identity.principals import Credentials, Principal, User
from keyman.identity.sessions import SessionProof
from keyman.identity.tokens import ALL_SCOPES
from keyman.identity.workloads import WorkloadProof
from keyman.ids import KeyId, OwnerId, TokenId, UserId
from keyman.keys import choosing, consent, duplicates, idempotency, operations, release, uses
from keyman.keys import listing as key_lists
from keyman.keys.duplicates import Stored
from keyman.keys.idempotency import IdempotencyKey
from keyman.keys.operations import IfMatch
from keyman.keys.request import Request
from keyman.keys.schemas import Change, KeyInfo, NewKey, Replacement, Status
from keyman.keys.sealing import Sealer
from keyman.keys.sorting import KeyCursor, Selection, Sort
from keyman.planes.management import housekeeping
from keyman.providers.catalogue import Catalogue, ServiceSlug
from keyman.providers.recognition import ProviderKey
from keyman.secret import Secret
from keyman.storage import driver
from keyman.storage.compiling import Bound, Row
from keyman.storage.paging import Cursor, Slice
from keyman.storage.transactions import Database, Unchecked
from keyman.values import ApplicationName, EmailAddress, RequiredLabel, RowNumber, Subject
from keyman.vault.cipher import Context, Sealed
from tests.support.issuer import AUDIENCE, Issuer

HEAVY, SPARSE, EMPTY = UserId(1), UserId(2), UserId(3)
"""Owners of one key in a hundred, of the three oldest keys, and of none. All other owners share the rest."""

SUBJECT_OF_SPARSE = "user-1"
"""The subject of SPARSE at the application that resolves."""

ONE_KEY_OF_HEAVY, ANOTHER = KeyId(500), KeyId(700)

MAX_KEYS = 100
"""The limit of an account, which HEAVY has reached."""

SIGN_INS = (Action.LOGIN,)
USES = (Action.KEY_RESOLVE, Action.KEY_RESOLVE_REFUSED, Action.KEY_RESOLVE_FAILED)
A_DAY = (datetime(2026, 1, 2, tzinfo=UTC), datetime(2026, 1, 3, tzinfo=UTC))


class Captured(NamedTuple):
    """A statement in the form that a driver gets. `label` names the operation of keyman."""

    label: str
    statement: str
    parameters: tuple[Any, ...]


class _Callers(NamedTuple):
    """Who calls the operations. `cookie` and `token` are credentials of HEAVY, and `revocable` is a token of it."""

    heavy: Principal
    sparse: Principal
    signed_in: Principal
    application: Principal
    cookie: str
    token: str
    application_token: str
    revocable: TokenId


_SHOWN = Credentials(None, None, "-", None)
_Steps = dict[str, Callable[[], Awaitable[object]]]


class _Constant:
    """Stands in for Vault, because plans do not depend on what it returns."""

    async def encrypt(self, _plaintext: Secret, _context: Context) -> Sealed:
        return Sealed("vault:v1:AAAA", 1, None)

    async def open(self, _ciphertext: str, _context: Context) -> Secret:
        return Secret("-")


async def capture(db: Database) -> list[Captured]:
    """Run keyman's operations on a database that `build` filled, and return the statements that they sent."""
    async with db.read() as connection:
        url = connection.engine.url
    callers = await _callers(db)
    middle = Cursor(await _key_in_the_middle(db))
    captured: list[Captured] = []
    steps = [
        _reading_keys(db, callers, middle),
        _writing_keys(db, callers),
        _resolving(db, callers),
        _of_consent(db, callers),
        _of_accounts(db, callers),
        await _of_identities(db),
        _of_the_audit_log(db, middle),
        _housekeeping(db),
    ]
    for label, step in ((label, step) for part in steps for label, step in part.items()):
        with listening(label, url, captured):
            try:
                await step()
            except KeymanError as fault:
                raise AssertionError(f"{label}: {fault}") from fault
    return captured


async def _callers(db: Database) -> _Callers:
    used, unused, revocable = [await _token_of(db, HEAVY) for _ in range(3)]
    async with db.write(Unchecked.OPERATOR) as connection:
        used_cookie, cookie = [await sessions.open_session(connection, HEAVY) for _ in range(2)]
    registered = [await applications.create(db, ApplicationName(name), ["OPENAI"]) for name in ("used", "unused")]
    used_app, unused_app = [one.token.reveal() for one in registered]
    issuer = Issuer()
    workload = Workload(issuer.url, Subject("workload"), "keyman-resolver", jwks=issuer.jwks().decode())
    await applications.create_workload(db, ApplicationName("workload"), ["OPENAI"], ALL_USERS, workload)
    return _Callers(
        await TokenProof().verify(db, used.token, _SHOWN),
        await TokenProof().verify(db, (await _token_of(db, SPARSE)).token, _SHOWN),
        await SessionProof().verify(db, used_cookie.reveal(), _SHOWN),
        await ApplicationProof().verify(db, used_app, _SHOWN),
        cookie.reveal(),
        unused.token,
        unused_app,
        TokenId(revocable.id),
    )


async def _token_of(db: Database, user_id: UserId) -> CreatedToken:
    address = EmailAddress.parse(f"u{user_id}@example.com")
    return await personal.create_for(db, address, RequiredLabel("bench"), ALL_SCOPES)


def _reading_keys(db: Database, callers: _Callers, middle: Cursor) -> _Steps:
    heavy = callers.heavy
    retry = IdempotencyKey.parse("bench", HEAVY, b"{}")
    return {
        "keys: the first page": lambda: key_lists.list_own(db, heavy, Slice()),
        "keys: a page in the middle": lambda: key_lists.list_own(db, heavy, Slice(before=middle)),
        "keys: the first page of an owner of three old keys": lambda: key_lists.list_own(db, caller(SPARSE), Slice()),
        "keys: the first page of an owner of none": lambda: key_lists.list_own(db, caller(EMPTY), Slice()),
        "keys: one service": lambda: key_lists.list_own(db, heavy, Slice(), "ANTHROPIC"),
        "keys: one service, a page in the middle": lambda: key_lists.list_own(
            db, heavy, Slice(before=KeyCursor.at(middle, Selection("ANTHROPIC").fingerprint)), "ANTHROPIC"
        ),
        "keys: one service that the owner has no key of": lambda: key_lists.list_own(db, heavy, Slice(), "GROQ"),
        "keys: by a name that many have": lambda: key_lists.list_own(db, heavy, Slice(), text="key 1"),
        "keys: by a name that none has": lambda: key_lists.list_own(db, heavy, Slice(), text="no such name"),
        "keys: of a status": lambda: key_lists.list_own(db, heavy, Slice(), status=Status.ACTIVE),
        "keys: sorted by name": lambda: key_lists.list_own(db, heavy, Slice(), sort=Sort.BY_NAME),
        "keys: sorted by name, a page in the middle": lambda: key_lists.list_own(
            db,
            heavy,
            Slice(before=KeyCursor.at(middle, Selection(sort=Sort.BY_NAME).fingerprint, "key 5")),
            sort=Sort.BY_NAME,
        ),
        "keys: sorted by last use": lambda: key_lists.list_own(db, heavy, Slice(), sort=Sort.BY_USE_DESCENDING),
        "keys: counted": lambda: key_lists.count_own(db, heavy, text="key 1"),
        "keys: those that applications get": lambda: choosing.choices(db, heavy, now()),
        "keys: one by its id": lambda: operations.get(db, heavy, ONE_KEY_OF_HEAVY),
        "keys: who has used one of late, of three applications": lambda: uses.of_late(db, heavy, ONE_KEY_OF_HEAVY),
        "keys: the oldest other with the same value": lambda: _read_duplicates(db),
        "an idempotency key": lambda: idempotency.find(db, retry, KeyInfo),
    }


async def _read_duplicates(db: Database) -> object:
    async with db.read() as connection:
        return await duplicates.find(connection, [Stored(OwnerId(HEAVY), ONE_KEY_OF_HEAVY, bytes(32))])


def _writing_keys(db: Database, callers: _Callers) -> _Steps:
    heavy, catalogue = callers.heavy, Catalogue()
    sealer = Sealer(_Constant(), UUID(int=0), catalogue)
    value = ProviderKey.parse("sk-" + "x" * 45)
    new = NewKey(ServiceSlug("OPENAI"), value)
    retry = IdempotencyKey.parse("bench", SPARSE, b"{}")
    return {
        "keys: a new one": lambda: operations.create(db, sealer, callers.sparse, new, retry, max_keys=MAX_KEYS),
        "keys: one more than the owner may have": lambda: _refused(
            operations.create(db, sealer, heavy, new, max_keys=MAX_KEYS), RateLimited
        ),
        "keys: a change": lambda: operations.change(
            db, catalogue, heavy, ONE_KEY_OF_HEAVY, Change(name=None), IfMatch()
        ),
        "keys: another default": lambda: operations.change(
            db, catalogue, heavy, ONE_KEY_OF_HEAVY, Change(default=True), IfMatch()
        ),
        "keys: a new value": lambda: operations.replace(
            db, sealer, catalogue, heavy, ONE_KEY_OF_HEAVY, Replacement(value), IfMatch()
        ),
        "keys: removed": lambda: operations.remove(db, heavy, ANOTHER, IfMatch()),
    }


def _resolving(db: Database, callers: _Callers) -> _Steps:
    caller, opener = callers.application, _Constant()

    def resolve(**asked: Any) -> Awaitable[object]:
        releasing = release.Releasing(db, opener, UUID(int=0), release.RESOLVE)
        return release.release(releasing, caller, Request(**asked))

    service = ServiceSlug("OPENAI")
    known, unknown = Subject(SUBJECT_OF_SPARSE), Subject("nobody")
    return {
        "an application by its token": lambda: ApplicationProof().verify(db, callers.application_token, _SHOWN),
        "resolve: a key by its id": lambda: resolve(key_id=RowNumber(ONE_KEY_OF_HEAVY)),
        "resolve: a user's key of a service": lambda: resolve(user_id=RowNumber(SPARSE), service=service),
        "resolve: a user without such a key": lambda: _refused(
            resolve(user_id=RowNumber(EMPTY), service=service), NotFound
        ),
        "resolve: a subject's key of a service": lambda: resolve(subject=known, service=service),
        "resolve: an unknown subject": lambda: _refused(resolve(subject=unknown, service=service), NotFound),
        "resolve: the last use": lambda: release.note_use(db, caller, ONE_KEY_OF_HEAVY),
        "applications: a new token": lambda: applications.rotate(db, ApplicationName("unused"), timedelta()),
    }


def _of_consent(db: Database, callers: _Callers) -> _Steps:
    application, opener = callers.application.require_application(), _Constant()
    releasing = release.Releasing(db, opener, UUID(int=0), release.RESOLVE)
    asked = Request(key_id=RowNumber(ONE_KEY_OF_HEAVY))
    return {
        "consent: an application that its owner blocks": lambda: consent.block(db, callers.heavy, application.id),
        "consent: a resolve by a blocked application": lambda: _refused(
            release.release(releasing, callers.application, asked), NotFound
        ),
        "consent: the blocks of the owners whose requests are under way": lambda: consent.find_blocks(
            db, {HEAVY, SPARSE}
        ),
        "consent: an application that is not blocked any more": lambda: consent.unblock(
            db, callers.heavy, application.id
        ),
    }


def _of_accounts(db: Database, callers: _Callers) -> _Steps:
    buckets = limits.login_buckets("u1@example.com", "192.0.2.1")
    new = NewToken(RequiredLabel("bench"))
    return {
        "a token by its hash": lambda: TokenProof().verify(db, callers.token, _SHOWN),
        "a session by its hash": lambda: SessionProof().verify(db, callers.cookie, _SHOWN),
        "sessions: an owner's": lambda: sessions.list_own(db, callers.signed_in),
        "sessions: a new one": lambda: _write(db, lambda connection: sessions.open_session(connection, HEAVY)),
        "tokens: an owner's": lambda: personal.list_own(db, callers.heavy),
        "tokens: a new one": lambda: personal.create(db, callers.heavy, new),
        "tokens: one revoked": lambda: personal.revoke(db, callers.heavy, callers.revocable),
        "an account by its address": lambda: users.disable(db, EmailAddress.parse("u50@example.com")),
        "throttle: an attempt": lambda: throttle.count(db, Unchecked.SIGN_IN, buckets[:1]),
        "throttle: forgiven": lambda: _write(db, lambda connection: throttle.forgive(connection, buckets)),
        "throttle: a wrong password": lambda: _write(
            db, lambda connection: throttle.count_failure(connection, "u1@example.com", HEAVY)
        ),
    }


async def _of_identities(db: Database) -> _Steps:
    """By what a token or a sign-in says, once it is verified."""
    issuer = Issuer()
    users_proof = JwtProof(JwtSettings(issuer.url, AUDIENCE), FixedKeys(issuer.key_set()))
    of_user, of_workload = issuer.token(sub="subject-1"), issuer.token(sub="workload", aud="keyman-resolver")
    identity = Identity(issuer.url, Subject("subject-1"))
    await users_proof.verify(db, of_user, _SHOWN)  # the first one of a process also stores the audience
    return {
        "an identity: its user, at a first use or a sign-in": lambda: _write(
            db, lambda connection: identities.find(connection, identity)
        ),
        "an identity: the issuers of a user": lambda: _write(
            db, lambda connection: identities.issuers_of(connection, SPARSE)
        ),
        "a user by a JWT": lambda: users_proof.verify(db, of_user, _SHOWN),
        "an application by its JWT": lambda: WorkloadProof(Fetcher(None), None).verify(db, of_workload, _SHOWN),
    }


def _of_the_audit_log(db: Database, middle: Cursor) -> _Steps:
    return {
        "audit: the first page": lambda: listing.list_own(db, HEAVY, Slice()),
        "audit: a page in the middle": lambda: listing.list_own(db, HEAVY, Slice(before=middle)),
        "audit: the first page of an owner of none": lambda: listing.list_own(db, EMPTY, Slice()),
        "audit: one action, of which there are few": lambda: listing.list_own(db, HEAVY, Slice(), Filter(SIGN_INS)),
        "audit: three actions, a page in the middle": lambda: listing.list_own(
            db, HEAVY, Slice(before=middle), Filter(USES)
        ),
        "audit: a day": lambda: listing.list_own(db, HEAVY, Slice(), Filter((), *A_DAY)),
        "audit: one action on a day": lambda: listing.list_own(db, HEAVY, Slice(), Filter(SIGN_INS, *A_DAY)),
    }


def _housekeeping(db: Database) -> _Steps:
    return {
        "throttle: windows that have ended": lambda: login.record_totals(db),
        "housekeeping": lambda: housekeeping.sweep(db),
    }


async def _refused(operation: Awaitable[object], fault: type[KeymanError]) -> None:
    with suppress(fault):
        await operation


async def _write(db: Database, operation: Callable[[AsyncConnection], Awaitable[object]]) -> None:
    async with db.write(Unchecked.OPERATOR) as connection:
        await operation(connection)


async def explain(url: URL, captured: list[Captured], *, generic: bool = False) -> dict[str, list[str]]:
    """Return the plans of each label, one text per statement. PostgreSQL may use `generic` ones from the 6th run on."""
    plans: dict[str, list[str]] = {}
    if url.get_backend_name() == "sqlite":
        with closing(sqlite3.connect(url.database or "")) as sqlite:
            for one in captured:
                nodes = sqlite.execute(f"EXPLAIN QUERY PLAN {one.statement}", one.parameters).fetchall()
                plans.setdefault(one.label, []).append("\n".join(_tree(nodes)))
        return plans
    connection = await asyncpg.connect(dsn(url))
    try:
        for one in captured:
            rows = await _explain(connection, one, generic=generic)
            plans.setdefault(one.label, []).append("\n".join(row[0] for row in rows if "Planning" not in row[0]))
    finally:
        await connection.close()
    return plans


async def _explain(connection: Any, one: Captured, *, generic: bool) -> list[Any]:
    transaction = connection.transaction()
    await transaction.start()
    if generic:
        rows = await _generic(connection, one)
    else:
        # What was inserted cannot be inserted again.
        is_new = "INSERT INTO" in one.statement and "ON CONFLICT" not in one.statement
        executed = "" if is_new else "ANALYZE, BUFFERS, TIMING OFF, "
        options = f"{executed}COSTS OFF, SUMMARY OFF"
        rows = await connection.fetch(f"EXPLAIN ({options}) {one.statement}", *one.parameters)
    await transaction.rollback()  # EXPLAIN ANALYZE has executed the statement
    return rows


async def _generic(connection: Any, one: Captured) -> list[Any]:
    await connection.execute("SET LOCAL plan_cache_mode = force_generic_plan")
    await connection.execute(f"PREPARE bench AS {one.statement}")
    nulls = ", ".join("NULL" for _ in one.parameters)
    rows: list[Any] = await connection.fetch(f"EXPLAIN (COSTS OFF) EXECUTE bench{f'({nulls})' if nulls else ''}")
    await connection.execute("DEALLOCATE bench")
    return rows


async def versions(url: URL) -> str:
    if url.get_backend_name() == "sqlite":
        return f"SQLite {sqlite3.sqlite_version}"
    connection = await asyncpg.connect(dsn(url))
    version = str(await connection.fetchval("SHOW server_version")).split(" ")[0]
    await connection.close()
    return f"PostgreSQL {version}"


def caller(user_id: UserId) -> Principal:
    """Return the user with this number, signed in."""
    return Principal(Origin(Actor.SESSION), ALL_SCOPES, User(user_id, f"u{user_id}@example.com", now()))


async def _key_in_the_middle(db: Database) -> int:
    page = await key_lists.list_own(db, caller(HEAVY), Slice(limit=1))
    return page.items[0].id // 2


@contextmanager
def listening(label: str, url: URL, captured: list[Captured]) -> Iterator[None]:
    """Capture the statements to the database of `url`, which is an engine's. Those to other ones pass unseen."""
    fetch, execute = driver.fetch, driver.execute

    def listen(bound: Bound) -> Bound:
        verb = bound.text.split(None, 1)[0]
        # The tables of chain ends and of probes have a page or two: an index would not help.
        is_of_few_rows = "audit_chains" in bound.text or "probes" in bound.text
        is_of_no_row = bound.text.startswith("SELECT pg_advisory_xact_lock") or "pg_current_xact_id" in bound.text
        # SQLite has no locks of owners, which are found by their primary key.
        is_of_no_row |= bound.text.startswith("SELECT owners.id")
        if (
            not is_of_few_rows
            and not is_of_no_row
            and (verb in ("SELECT", "UPDATE", "DELETE", "WITH") or "ON CONFLICT" in bound.text)
        ):
            place = f"{label}: {bound.text.split(None, 3)[2]}" if label == "housekeeping" else label
            captured.append(Captured(place, bound.text, tuple(bound.arguments)))
        if label == "housekeeping" and verb == "DELETE":
            # Delete nothing now, because the statement is explained later and needs rows to delete.
            return Bound("DELETE FROM throttle WHERE 1 = 0", ())
        return bound

    async def listen_and_fetch(connection: AsyncConnection, bound: Bound) -> Sequence[Row]:
        return await fetch(connection, listen(bound) if connection.engine.url.database == url.database else bound)

    async def listen_and_execute(connection: AsyncConnection, bound: Bound) -> int:
        return await execute(connection, listen(bound) if connection.engine.url.database == url.database else bound)

    with (
        mock.patch.object(driver, "fetch", listen_and_fetch),
        mock.patch.object(driver, "execute", listen_and_execute),
    ):
        yield


def _tree(rows: list[tuple[int, int, int, str]]) -> list[str]:
    depth = {0: -1}
    lines = []
    for node, parent, _, detail in rows:
        depth[node] = depth.get(parent, -1) + 1
        lines.append("  " * depth[node] + detail)
    return lines
