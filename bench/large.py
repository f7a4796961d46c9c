"""Reads the first pages of keys and of the audit log in a large database and in a small one, on PostgreSQL.

A few users ask. Each has as many keys and audit entries in both databases. In the large one, the rows of others are
between theirs, so that the rows of a page are far apart. The rows are valid enough to be listed: nothing can decrypt
the keys, and the audit log does not verify.
"""

from __future__ import annotations

import asyncio

import asyncpg
import click
from sqlalchemy.engine import URL

from bench.filling import dsn
from bench.limits import add_users
from bench.ratios import Ratio, share
from bench.rounds import always
from bench.rounds import measure as rounds_of
from bench.servers import Machine
from bench.wrk import Target

ASKING = 10
"""The users who ask."""

OTHERS = 1000
"""The users who have the other rows."""

SMALL = 1000
"""Rows of the small database: all of them are of those who ask."""

CLIENTS = 8
GOAL = 1.2

PAGES = {"list": "/api/keys", "GET /api/audit": "/api/audit"}

# The users who ask have the ids 1 to {asking}. Every {apart}-th row is of one of them, in turn.
_OWNER = "CASE WHEN n % {apart} = 0 THEN 1 + (n / {apart}) % {asking} ELSE {asking} + 1 + n % {others} END"
_ROWS = """
INSERT INTO api_keys (user_id, service, name, name_folded, encrypted_key, key_version, value_uuid, last_4_chars,
                      disabled, undecryptable, created_at, updated_at, owner_id)
  SELECT owner, 'OPENAI', 'key ' || n, 'key ' || n, 'vault:v1:' || repeat('A', 100), 1, lpad(to_hex(n), 32, '0')::uuid,
         'sk-...1234', false, false, moment, moment, owner
  FROM (SELECT n, {owner} AS owner, timestamptz '2026-01-01 00:00:00Z' AS moment
        FROM generate_series({start}::bigint, {end}) AS n) AS numbered;
INSERT INTO audit_log (at, user_id, actor, action, key_id, service, chain, sequence, hash)
  SELECT timestamptz '2026-01-01 00:00:00Z' + n * interval '1 second', {owner}, 'session', 'key.create', n, 'OPENAI', 0,
         n, sha256(int8send(n))
  FROM generate_series({start}::bigint, {end}) AS n;
"""

AT_ONCE = 500_000
"""Rows of one transaction."""


def run(machine: Machine, rows: int, seconds: int, rounds: int) -> list[Ratio]:
    """Fill both databases, measure a plane on each, and return a ratio for each page."""
    addresses, bearers = {}, {}
    for size in (SMALL, rows):
        url = machine.database(f"rows_{size}")
        # A plane refuses to begin with keys that it has no sentinel for, so it starts before the database is filled.
        addresses[size] = machine.plane(f"{size:,} rows", url)
        tokens = asyncio.run(_fill(url, size))
        bearers[size] = [{"Authorization": f"Bearer {token}"} for token in tokens]
        click.echo(f"{size:,} keys and as many audit entries: {_size(machine, size)} on the disk\n")
    machine.postgres.execute("CHECKPOINT")  # the server would write what was filled during the measurement
    plan = {
        (f"{page}, first page, {size:,} rows", CLIENTS): always(Target("GET", address + path, bearers[size]))
        for page, path in PAGES.items()
        for size, address in addresses.items()
    }
    results = rounds_of(machine, plan, seconds, rounds)
    found = []
    for page in PAGES:
        small, large = (results[f"{page}, first page, {size:,} rows", CLIENTS] for size in (SMALL, rows))
        label = f"{page}, first page: p99 at {rows:,} rows ÷ at {SMALL:,}"
        found.append(Ratio(label, share(large.p99, small.p99), GOAL, is_at_most=True, cpu=large.cpu))
    return found


async def _fill(url: URL, rows: int) -> list[str]:
    """Fill a migrated, empty database, and return the tokens of those who ask."""
    tokens = await add_users(url, ASKING + OTHERS)
    apart = max(rows // SMALL, 1)
    owner = _OWNER.format(apart=apart, asking=ASKING, others=OTHERS)
    connection = await asyncpg.connect(dsn(url))
    for start in range(1, rows + 1, AT_ONCE):
        await connection.execute(_ROWS.format(owner=owner, start=start, end=min(start + AT_ONCE - 1, rows)))
    await connection.execute("VACUUM (ANALYZE)")
    await connection.close()
    return tokens[:ASKING]


def _size(machine: Machine, rows: int) -> str:
    return machine.postgres.execute(f"SELECT pg_size_pretty(pg_database_size('rows_{rows}'))")  # a number
