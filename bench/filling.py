"""Fills a large database with rows that keyman could have written, quickly, in SQL."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import asyncpg
from sqlalchemy.engine import URL

# The owner of the n-th key. One owner has a hundredth of all keys, another has three, and one has none. All keys of the
# first have the same value.
_OWNER = "CASE WHEN n % 100 = 0 THEN 1 WHEN n <= 3 THEN 2 ELSE 4 + (n * 7919) % {owners} END"

# Of the entries about a key, one in eight names its current value.
_NAMES_A_VALUE = "n % 8 = 0 AND n % 100 <> 0"

# One text for both databases. They differ in the parts `{…}`.
_ROWS = """
INSERT INTO owners (id, kind) SELECT n, 'user' FROM {users};
INSERT INTO users (id, email, email_key, password_hash, created_at)
  SELECT n, 'u' || n || '@example.com', 'u' || n || '@example.com', '-', {past} FROM {users};
INSERT INTO api_keys (id, user_id, service, name, name_folded, encrypted_key, key_version, value_uuid, last_4_chars,
                      disabled, undecryptable, created_at, updated_at, owner_id, fingerprint)
  SELECT n, {owner},
         CASE (n / 100) % 10 WHEN 0 THEN 'ANTHROPIC' WHEN 1 THEN 'MISTRAL' ELSE 'OPENAI' END,
         'key ' || n, 'key ' || n, 'vault:v1:{ciphertext}', 1, {uuid}, 'sk-...1234', {false}, {false}, {past}, {past},
         {owner}, CASE WHEN n % 100 = 0 THEN {same_digest} ELSE {digest} END
  FROM {keys};
INSERT INTO api_tokens (user_id, token_hash, name, scopes, hint, created_at)
  SELECT 1 + n % {owners}, {digest}, 'token', 'keys:read', 'km_...abcd', {past} FROM {tokens};
INSERT INTO sessions (user_id, id_hash, created_at, last_seen_at, expires_at)
  SELECT 1 + n % {owners}, {digest}, {past}, CASE WHEN n % 100 = 0 THEN {past} ELSE {recent} END, {future}
  FROM {sessions};
INSERT INTO audit_log (at, user_id, actor, action, key_id, application, value_uuid, as_of, chain, sequence, hash)
  SELECT {nth}, CASE WHEN n % 100 = 0 THEN 1 ELSE 4 + (n * 7919) % {owners} END, 'application',
         CASE WHEN n % 5000 = 0 THEN 'account.login' WHEN n % 700 = 0 THEN 'key.resolve-refused' ELSE 'key.resolve' END,
         CASE WHEN n % 100 = 0 THEN 500 ELSE n / 8 END, 'app-' || ((n / 100) % 3),
         CASE WHEN {names_a_value} THEN {uuid} END, CASE WHEN {names_a_value} THEN n END, 0, n, {digest}
  FROM {entries};
UPDATE audit_chains SET sequence = (SELECT count(*) FROM audit_log) WHERE chain = 0;
INSERT INTO applications (name, services, created_at, jwt_issuer, jwt_subject, jwt_audience)
  SELECT 'app-' || n, 'OPENAI', {past}, 'https://id.example.com', 'workload-' || n, 'keyman-resolver'
  FROM {applications};
INSERT INTO user_audiences (audience)
  SELECT 'https://keys-' || n || '.example.com' FROM {applications};
INSERT INTO application_tokens (application_id, token_hash, hint, created_at)
  SELECT n, {digest}, 'km_...abcd', {past} FROM {applications};
INSERT INTO application_blocks (user_id, application_id, created_at)
  SELECT 4 + n % {owners}, n, {past} FROM {applications};
INSERT INTO identities (user_id, issuer, subject, created_at)
  SELECT 1 + n % {owners}, 'https://id.example.com', 'subject-' || n, {past} FROM {tokens};
INSERT INTO application_identities (user_id, issuer, subject, created_at)
  SELECT 1 + n % {owners}, 'keyman:app:used', 'user-' || n, {past} FROM {tokens};
INSERT INTO idempotency (user_id, key_hash, fingerprint, response, created_at)
  SELECT 1 + n % {owners}, {digest}, {digest}, '{{}}', CASE WHEN n % 100 = 0 THEN {past} ELSE {recent} END
  FROM {answers};
INSERT INTO throttle (bucket, attempts, ends_at)
  SELECT {digest}, 1, CASE WHEN n % 100 = 0 THEN {past} ELSE {future} END FROM {buckets};
INSERT INTO provider_visits (state_hash, browser_hash, nonce, verifier, purpose, expires_at)
  SELECT {digest}, {digest}, 'n', 'v', 'sign-in', CASE WHEN n % 100 = 0 THEN {past} ELSE {future} END FROM {buckets};
INSERT INTO logout_tokens (token_hash, expires_at)
  SELECT {digest}, CASE WHEN n % 100 = 0 THEN {past} ELSE {future} END FROM {buckets};
"""


def _sizes(keys: int, at_least: int) -> dict[str, int]:
    shares = {
        "users": 100,
        "keys": 1,
        "tokens": 50,
        "sessions": 20,
        "entries": 1,
        "applications": 20,
        "answers": 20,
        "buckets": 100,
    }
    return {name: max(keys // share, at_least) if name != "keys" else keys for name, share in shares.items()}


async def build(url: URL, keys: int, *, at_least: int = 0) -> None:
    """Fill a migrated, empty database with `keys` keys. The other tables are in proportion, or `at_least` as large."""
    sizes, owners = _sizes(keys, at_least), keys // 100 - 4
    if url.get_backend_name() == "sqlite":
        numbers = {
            name: f"(WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s LIMIT {size}) SELECT n FROM s)"  # noqa: S608  # a number
            for name, size in sizes.items()
        }
        spelling = {
            "uuid": "printf('%032x', n)",
            "digest": "randomblob(32)",
            "same_digest": "zeroblob(32)",
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
        "uuid": "lpad(to_hex(n), 32, '0')::uuid",
        "digest": "sha256(convert_to('row' || n, 'UTF8'))",
        "same_digest": "decode(repeat('00', 32), 'hex')",
        "false": "false",
        "past": "timestamptz '2026-01-01 00:00:00Z'",
        "nth": "timestamptz '2026-01-01 00:00:00Z' + n * interval '20 seconds'",
        "recent": "now() - (n % 600) * interval '1 minute'",
        "future": "now() + (1 + n % 900) * interval '1 minute'",
    }
    connection = await asyncpg.connect(dsn(url))
    await connection.execute(_text(owners, numbers, spelling))
    for table in ("owners", "api_keys", "audit_log"):
        await connection.execute(f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), max(id)) FROM {table}")  # noqa: S608  # names above
    await connection.close()


async def analyze(url: URL) -> None:
    """Update the planner's statistics. On PostgreSQL autovacuum does this, on SQLite nothing does."""
    if url.get_backend_name() == "sqlite":
        with closing(sqlite3.connect(url.database or "")) as connection:
            connection.execute("ANALYZE")
            connection.commit()
        return
    connection = await asyncpg.connect(dsn(url))
    await connection.execute("VACUUM (ANALYZE)")
    await connection.close()


def dsn(url: URL) -> str:
    return url.set(drivername="postgresql", query={}).render_as_string(hide_password=False)


def _text(owners: int, numbers: dict[str, str], spelling: dict[str, str]) -> str:
    owner = _OWNER.format(owners=owners)
    constant = {"ciphertext": "A" * 100, "names_a_value": _NAMES_A_VALUE}
    return _ROWS.format(owners=owners, owner=owner, **constant, **numbers, **spelling)
