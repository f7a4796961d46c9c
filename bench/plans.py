"""Builds a large database, captures keyman's statements, and explains their plans.

The statements are not written here. They are captured on their way to the driver while keyman's own operations run.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple
from unittest import mock

import asyncpg
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.audit import listing
from keyman.audit.entries import Action, Actor, Origin
from keyman.audit.listing import Filter
from keyman.clock import now
from keyman.errors import KeymanError
from keyman.identity import personal_tokens as personal
from keyman.identity import sessions, throttle, users
from keyman.identity.personal_tokens import NewToken, TokenProof
from keyman.identity.principals import Credentials, Principal, User
from keyman.identity.sessions import SessionProof
from keyman.identity.tokens import ALL_SCOPES
from keyman.ids import KeyId, UserId
from keyman.keys import idempotency, operations, uses
from keyman.keys.idempotency import IdempotencyKey
from keyman.keys.operations import IfMatch
from keyman.keys.schemas import Change
from keyman.planes.management import housekeeping
from keyman.providers.catalogue import Catalogue
from keyman.storage import driver
from keyman.storage.compiling import Bound, Row
from keyman.storage.paging import Cursor, Slice
from keyman.storage.transactions import Database, Unchecked
from keyman.values import EmailAddress, RequiredLabel

HEAVY, SPARSE, EMPTY = UserId(1), UserId(2), UserId(3)
"""Owners of one key in a hundred, of the three oldest keys, and of none. All other owners share the rest."""

ONE_KEY_OF_HEAVY = KeyId(500)

SIGN_INS = (Action.LOGIN,)
USES = (Action.KEY_RESOLVE, Action.KEY_RESOLVE_REFUSED, Action.KEY_RESOLVE_FAILED)
A_DAY = (datetime(2026, 1, 2, tzinfo=UTC), datetime(2026, 1, 3, tzinfo=UTC))


class Captured(NamedTuple):
    """A statement in the form that a driver gets. `label` names the operation of keyman."""

    label: str
    statement: str
    parameters: tuple[Any, ...]


# The owner of the n-th key. One owner has a hundredth of all keys, another has three, and one has none.
_OWNER = "CASE WHEN n % 100 = 0 THEN 1 WHEN n <= 3 THEN 2 ELSE 4 + (n * 7919) % {owners} END"

# One text for both databases. They differ in the parts `{…}`.
_ROWS = """
INSERT INTO owners (id, kind) SELECT n, 'user' FROM {users};
INSERT INTO users (id, email, email_key, password_hash, created_at)
  SELECT n, 'u' || n || '@example.com', 'u' || n || '@example.com', '-', {past} FROM {users};
INSERT INTO api_keys (id, user_id, service, name, name_folded, encrypted_key, key_version, value_uuid, last_4_chars,
                      disabled, undecryptable, created_at, updated_at, owner_id)
  SELECT n, {owner},
         CASE (n / 100) % 10 WHEN 0 THEN 'ANTHROPIC' WHEN 1 THEN 'MISTRAL' ELSE 'OPENAI' END,
         'key ' || n, 'key ' || n, 'vault:v1:{ciphertext}', 1, {uuid}, 'sk-...1234', {false}, {false}, {past}, {past},
         {owner}
  FROM {keys};
INSERT INTO api_tokens (user_id, token_hash, name, scopes, hint, created_at)
  SELECT 1 + n % {owners}, {digest}, 'token', 'keys:read', 'km_...abcd', {past} FROM {tokens};
INSERT INTO sessions (user_id, id_hash, created_at, last_seen_at, expires_at)
  SELECT 1 + n % {owners}, {digest}, {past}, CASE WHEN n % 100 = 0 THEN {past} ELSE {recent} END, {future}
  FROM {sessions};
INSERT INTO audit_log (at, user_id, actor, action, key_id, application, chain, sequence, hash)
  SELECT {nth}, CASE WHEN n % 100 = 0 THEN 1 ELSE 4 + (n * 7919) % {owners} END, 'application',
         CASE WHEN n % 5000 = 0 THEN 'account.login' WHEN n % 700 = 0 THEN 'key.resolve-refused' ELSE 'key.resolve' END,
         CASE WHEN n % 100 = 0 THEN 500 ELSE n END, 'app-' || ((n / 100) % 3), 0, n, {digest}
  FROM {entries};
UPDATE audit_chains SET sequence = (SELECT count(*) FROM audit_log) WHERE chain = 0;
INSERT INTO idempotency (user_id, key_hash, fingerprint, response, created_at)
  SELECT 1 + n % {owners}, {digest}, {digest}, '{{}}', CASE WHEN n % 100 = 0 THEN {past} ELSE {recent} END
  FROM {answers};
INSERT INTO throttle (bucket, attempts, ends_at)
  SELECT {digest}, 1, CASE WHEN n % 100 = 0 THEN {past} ELSE {future} END FROM {buckets};
"""


def _sizes(keys: int, at_least: int) -> dict[str, int]:
    shares = {"users": 100, "keys": 1, "tokens": 50, "sessions": 20, "entries": 1, "answers": 20, "buckets": 100}
    return {name: max(keys // share, at_least) if name != "keys" else keys for name, share in shares.items()}


async def build(url: URL, keys: int, *, at_least: int = 0) -> None:
    """Fill a migrated, empty database with `keys` keys. The other tables are in proportion, or `at_least` as large."""
    sizes, owners = _sizes(keys, at_least), keys // 100 - 4
    if url.get_backend_name() == "sqlite":
        numbers = {
            name: f"(WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s LIMIT {size}) SELECT n FROM s)"  # noqa: S608
            for name, size in sizes.items()
        }
        spelling = {
            "uuid": "lower(hex(randomblob(16)))",
            "digest": "randomblob(32)",
            "false": "0",
            "past": "'2026-01-01 00:00:00.000000'",
            "nth": "strftime('%Y-%m-%d %H:%M:%S.000000', '2026-01-01', '+' || (n * 20) || ' seconds')",
            "recent": "datetime('now', '-' || (n % 600) || ' minutes') || '.000000'",
            "future": "datetime('now', '+' || (1 + n % 900) || ' minutes') || '.000000'",
        }
        with closing(sqlite3.connect(url.database or "")) as connection:
            connection.execute("PRAGMA synchronous = OFF")
            connection.executescript(_text(owners, numbers, spelling))
            connection.commit()
        return
    numbers = {name: f"generate_series(1::bigint, {size}) AS n" for name, size in sizes.items()}
    spelling = {
        "uuid": "md5('key' || n)::uuid",
        "digest": "sha256(convert_to('row' || n, 'UTF8'))",
        "false": "false",
        "past": "timestamptz '2026-01-01 00:00:00Z'",
        "nth": "timestamptz '2026-01-01 00:00:00Z' + n * interval '20 seconds'",
        "recent": "now() - (n % 600) * interval '1 minute'",
        "future": "now() + (1 + n % 900) * interval '1 minute'",
    }
    connection = await asyncpg.connect(_dsn(url))
    await connection.execute(_text(owners, numbers, spelling))
    for table in ("owners", "api_keys", "audit_log"):
        await connection.execute(f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), max(id)) FROM {table}")  # noqa: S608
    await connection.close()


async def analyze(url: URL) -> None:
    """Update the planner's statistics. On PostgreSQL autovacuum does this, on SQLite nothing does."""
    if url.get_backend_name() == "sqlite":
        with closing(sqlite3.connect(url.database or "")) as connection:
            connection.execute("ANALYZE")
            connection.commit()
        return
    connection = await asyncpg.connect(_dsn(url))
    await connection.execute("VACUUM (ANALYZE)")
    await connection.close()


async def capture(db: Database) -> list[Captured]:
    """Run keyman's operations on a database that `build` filled, and return the statements that they sent."""
    address = EmailAddress.parse(f"u{HEAVY}@example.com")
    used, unused = [await personal.create_for(db, address, RequiredLabel("bench"), ALL_SCOPES) for _ in range(2)]
    async with db.write(Unchecked.OPERATOR) as connection:
        cookie = await sessions.open_session(connection, HEAVY)
    middle = Cursor(await _key_in_the_middle(db))
    retry = IdempotencyKey.parse("bench", HEAVY, b"{}")
    buckets = throttle.login_buckets("u1@example.com", "192.0.2.1")
    shown = Credentials(None, None, "-", None)
    heavy = await TokenProof().verify(db, used.token, shown)
    steps: dict[str, Callable[[], Awaitable[object]]] = {
        "keys: the first page": lambda: operations.list_own(db, heavy, Slice()),
        "keys: a page in the middle": lambda: operations.list_own(db, heavy, Slice(before=middle)),
        "keys: the first page of an owner of three old keys": lambda: operations.list_own(db, _caller(SPARSE), Slice()),
        "keys: the first page of an owner of none": lambda: operations.list_own(db, _caller(EMPTY), Slice()),
        "keys: one service": lambda: operations.list_own(db, heavy, Slice(), "ANTHROPIC"),
        "keys: one service, a page in the middle": lambda: operations.list_own(
            db, heavy, Slice(before=middle), "ANTHROPIC"
        ),
        "keys: one service that the owner has no key of": lambda: operations.list_own(db, heavy, Slice(), "GROQ"),
        "keys: by a name that many have": lambda: operations.list_own(db, heavy, Slice(), text="key 1"),
        "keys: by a name that none has": lambda: operations.list_own(db, heavy, Slice(), text="no such name"),
        "keys: one by its id": lambda: operations.get(db, heavy, ONE_KEY_OF_HEAVY),
        "keys: a change": lambda: operations.change(
            db, Catalogue(), heavy, ONE_KEY_OF_HEAVY, Change(name=None), IfMatch()
        ),
        "keys: who has used one of late, of three applications": lambda: uses.of_late(db, heavy, ONE_KEY_OF_HEAVY),
        "a token by its hash": lambda: TokenProof().verify(db, unused.token, shown),
        "a session by its hash": lambda: SessionProof().verify(db, cookie.reveal(), shown),
        "tokens: an owner's": lambda: personal.list_own(db, heavy),
        "tokens: a new one": lambda: personal.create(db, heavy, NewToken(RequiredLabel("bench"))),
        "an account by its address": lambda: users.disable(db, EmailAddress.parse("u50@example.com")),
        "audit: the first page": lambda: listing.list_own(db, HEAVY, Slice()),
        "audit: a page in the middle": lambda: listing.list_own(db, HEAVY, Slice(before=middle)),
        "audit: the first page of an owner of none": lambda: listing.list_own(db, EMPTY, Slice()),
        "audit: one action, of which there are few": lambda: listing.list_own(db, HEAVY, Slice(), Filter(SIGN_INS)),
        "audit: three actions, a page in the middle": lambda: listing.list_own(
            db, HEAVY, Slice(before=middle), Filter(USES)
        ),
        "audit: a day": lambda: listing.list_own(db, HEAVY, Slice(), Filter((), *A_DAY)),
        "audit: one action on a day": lambda: listing.list_own(db, HEAVY, Slice(), Filter(SIGN_INS, *A_DAY)),
        "an idempotency key": lambda: idempotency.find(db, retry),
        "throttle: an attempt": lambda: throttle.count(db, Unchecked.SIGN_IN, buckets[:1]),
        "throttle: forgiven": lambda: _forgive(db, buckets),
        "housekeeping": lambda: housekeeping.sweep(db),
    }
    captured: list[Captured] = []
    for label, step in steps.items():
        with _listening(label, captured):
            try:
                await step()
            except KeymanError as fault:
                raise AssertionError(f"{label}: {fault}") from fault
    return captured


async def _forgive(db: Database, buckets: tuple[throttle.Bucket, ...]) -> None:
    async with db.write(Unchecked.OPERATOR) as connection:
        await throttle.forgive(connection, buckets)


async def explain(url: URL, captured: list[Captured], *, generic: bool = False) -> dict[str, list[str]]:
    """Return the plans of each label, one text per statement. PostgreSQL may use `generic` ones from the 6th run on."""
    plans: dict[str, list[str]] = {}
    if url.get_backend_name() == "sqlite":
        with closing(sqlite3.connect(url.database or "")) as sqlite:
            for one in captured:
                nodes = sqlite.execute(f"EXPLAIN QUERY PLAN {one.statement}", one.parameters).fetchall()
                plans.setdefault(one.label, []).append("\n".join(_tree(nodes)))
        return plans
    connection = await asyncpg.connect(_dsn(url))
    options = "COSTS OFF, GENERIC_PLAN" if generic else "ANALYZE, BUFFERS, COSTS OFF, TIMING OFF, SUMMARY OFF"
    for one in captured:
        transaction = connection.transaction()
        await transaction.start()
        if generic:
            rows = await _generic(connection, one)
        else:
            rows = await connection.fetch(f"EXPLAIN ({options}) {one.statement}", *one.parameters)
        await transaction.rollback()  # EXPLAIN ANALYZE has executed the statement
        plans.setdefault(one.label, []).append("\n".join(row[0] for row in rows if "Planning" not in row[0]))
    await connection.close()
    return plans


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
    connection = await asyncpg.connect(_dsn(url))
    version = str(await connection.fetchval("SHOW server_version")).split(" ")[0]
    await connection.close()
    return f"PostgreSQL {version}"


def _text(owners: int, numbers: dict[str, str], spelling: dict[str, str]) -> str:
    return _ROWS.format(owners=owners, owner=_OWNER.format(owners=owners), ciphertext="A" * 100, **numbers, **spelling)


def _caller(user_id: UserId) -> Principal:
    return Principal(Origin(Actor.SESSION), ALL_SCOPES, User(user_id, f"u{user_id}@example.com", now()))


async def _key_in_the_middle(db: Database) -> int:
    page = await operations.list_own(db, _caller(HEAVY), Slice(limit=1))
    return page.items[0].id // 2


@contextmanager
def _listening(label: str, captured: list[Captured]) -> Iterator[None]:
    fetch, execute = driver.fetch, driver.execute

    def listen(bound: Bound) -> Bound:
        verb = bound.text.split(None, 1)[0]
        # The table of chain ends has a page or two, and one row is chosen at random: an index would not help.
        is_of_the_chains = "audit_chains" in bound.text
        is_only_a_lock = bound.text.startswith("SELECT pg_advisory_xact_lock(")
        if (
            not is_of_the_chains
            and not is_only_a_lock
            and (verb in ("SELECT", "UPDATE", "DELETE") or "ON CONFLICT" in bound.text)
        ):
            place = f"{label}: {bound.text.split(None, 3)[2]}" if label == "housekeeping" else label
            captured.append(Captured(place, bound.text, tuple(bound.arguments)))
        if label == "housekeeping" and verb == "DELETE":
            # Delete nothing now, because the statement is explained later and needs rows to delete.
            return Bound("DELETE FROM throttle WHERE 1 = 0", ())
        return bound

    async def listen_and_fetch(connection: AsyncConnection, bound: Bound) -> Sequence[Row]:
        return await fetch(connection, listen(bound))

    async def listen_and_execute(connection: AsyncConnection, bound: Bound) -> int:
        return await execute(connection, listen(bound))

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


def _dsn(url: URL) -> str:
    return url.set(drivername="postgresql", query={}).render_as_string(hide_password=False)
