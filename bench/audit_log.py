"""Measures the cost of the audit log's chain: entries per second, compared with plain INSERTs in the same run.

    .venv/bin/python -m bench.audit_log [--seconds 5] [--rounds 3] [--verify 1000000]

It uses a SQLite that syncs at each commit and a PostgreSQL that waits for its disk. Each entry is a separate
transaction, as when an application asks for a key. The writers share a process and its pool of connections, as the
requests of a worker do. PostgreSQL has 32 chains; to measure fewer, the others are deleted from the database of the
benchmark. The targets are measured in turns, and the best round of each counts. With `--verify N`, `keyman audit
verify` then reads N entries, in its own process.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import click
from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.engine import URL, make_url

from keyman import migrations
from keyman.audit.chain import digest
from keyman.audit.entries import Action, Actor, Entry, Origin
from keyman.audit.log import record
from keyman.audit.tables import audit_chains, audit_log
from keyman.clock import now
from keyman.ids import UserId
from keyman.logs import configure_logging
from keyman.storage.engine import POOL_SIZE
from keyman.storage.transactions import Database, Unchecked
from tests.support.cli import environment
from tests.support.database import postgres_server
from tests.support.rows import add_owner

WRITERS = (1, 32, 256)
CHAINS = (1, 8, 32)
FILLED_AT_ONCE = 5000

ORIGIN = Origin(Actor.APPLICATION, 1, "0" * 32, "192.0.2.1")
USE: dict[str, Any] = {
    "key_id": 1,
    "service": "OPENAI",
    "application": "chat-backend",
    "purpose": "Answer to a chat",
}
"""The fields of the audit entry of an application that gets a key."""

Write = Callable[[], Awaitable[None]]


class Verified(NamedTuple):
    """The result of `keyman audit verify`: its time in seconds, its peak memory in MB, and its last line."""

    seconds: float
    peak: float
    output: str


@click.command()
@click.option("--seconds", default=5.0, show_default=True, help="Of each measurement.")
@click.option("--rounds", default=3, show_default=True, help="Measurements of each, the best of which counts.")
@click.option("--verify", "entries", default=0, show_default=True, help="Entries to verify at the end; 0 for none.")
def main(seconds: float, rounds: int, entries: int) -> None:
    """Print a table."""
    configure_logging("console", "error")
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(postgres_server(durable=True, log_statements=False))
        click.echo(f"Load of the machine before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors\n")
        click.echo("| | writers | share of plain INSERTs | entries a second here |\n|---|---|---|---|")
        urls = {
            "SQLite": [make_url(f"sqlite+aiosqlite:///{directory}/{name}.db") for name in ("plain", 1)],
            "PostgreSQL": [make_url(server.create_database(f"bench_{name}")) for name in ("plain", *CHAINS)],
        }
        for kind, (plain, *chained) in urls.items():
            asyncio.run(_measure(kind, plain, dict(zip(CHAINS, chained, strict=False)), seconds, rounds))
        if entries:
            click.echo(
                f"\n| `keyman audit verify`, {entries:,} entries | seconds here | MB at its most |\n|---|---|---|"
            )
            for kind, url in {
                "SQLite": make_url(f"sqlite+aiosqlite:///{directory}/verify.db"),
                "PostgreSQL": make_url(server.create_database("bench_verify")),
            }.items():
                asyncio.run(_fill(url, entries))
                done = _verify(url)
                click.echo(f"| {kind} | {done.seconds:.1f} | {done.peak:.0f} |")
                click.echo(done.output, err=True)
        click.echo(f"\nLoad of the machine after: {os.getloadavg()[0]:.1f}")


async def _measure(kind: str, plain: URL, chained: dict[int, URL], seconds: float, rounds: int) -> None:
    """Print a line for each number of writers and of chains. Plain INSERTs are the reference for the share."""
    databases: list[Database] = []
    writes: dict[str, Write] = {"plain INSERT": _plain(await _migrated(plain, None, databases))}
    for chains, url in chained.items():
        label = "1 chain" if chains == 1 else f"{chains} chains"
        writes[label] = _chained(await _migrated(url, chains, databases))
    for writers in WRITERS:
        best = dict.fromkeys(writes, 0.0)
        for number in range(rounds + 1):
            for label, write in writes.items():
                # The first round only warms up connections, caches and plans.
                rate = await _rate(write, writers, seconds if number else 0.5)
                best[label] = max(best[label], rate) if number else 0.0
        for label, rate in best.items():
            click.echo(f"| {kind}, {label} | {writers} | {rate / best['plain INSERT']:.2f} | {rate:,.0f} |")
    for db in databases:
        await db.close()


async def _migrated(url: URL, chains: int | None, databases: list[Database]) -> Database:
    """Return a migrated database with one user and, unless it is None, this number of chains."""
    await migrations.upgrade(url)
    db = Database(url)
    databases.append(db)
    await add_owner(db)
    async with db.write(Unchecked.OPERATOR) as connection:
        if chains is not None:
            await connection.execute(delete(audit_chains).where(audit_chains.c.chain >= chains))
            left = (await connection.execute(select(func.count()).select_from(audit_chains))).scalar_one()
            assert left == chains
    # Connect before the measurement, which must not include it.
    await asyncio.gather(*(_touch(db) for _ in range(POOL_SIZE)))
    return db


async def _touch(db: Database) -> None:
    async with db.read() as connection:
        await connection.execute(select(1))


def _chained(db: Database) -> Write:
    async def write() -> None:
        async with db.write(Unchecked.OPERATOR) as connection:
            await record(connection, Entry(Action.KEY_RESOLVE, ORIGIN, UserId(1), **USE))

    return write


def _plain(db: Database) -> Write:
    """Return a writer of the same row without a chain: its hash is constant and its chain has no end to lock."""
    sequences = itertools.count(1)
    statement = insert(audit_log)

    async def write() -> None:
        async with db.write(Unchecked.OPERATOR) as connection:
            await connection.execute(statement, _entry(999, next(sequences)) | {"hash": bytes(32)})

    return write


def _entry(chain: int, sequence: int) -> dict[str, object]:
    origin = {"actor": ORIGIN.actor, "actor_id": 1, "request_id": ORIGIN.request_id, "address": ORIGIN.address}
    what = {"at": now(), "user_id": 1, "action": Action.KEY_RESOLVE}
    return {**what, **origin, **USE, "chain": chain, "sequence": sequence}


async def _rate(write: Write, writers: int, seconds: float) -> float:
    """Return the entries per second."""
    written = 0
    started = perf_counter()

    async def writer() -> None:
        nonlocal written
        while perf_counter() < started + seconds:
            await write()
            written += 1

    await asyncio.gather(*(writer() for _ in range(writers)))
    return written / (perf_counter() - started)


async def _fill(url: URL, entries: int) -> None:
    """Write `entries` entries, spread over all chains, with a commit for many at once."""
    databases: list[Database] = []
    db = await _migrated(url, None, databases)
    async with db.read() as connection:
        ends = {row.chain: (row.sequence, row.hash) for row in await connection.execute(select(audit_chains))}
    for start in range(0, entries, FILLED_AT_ONCE):
        rows = []
        for number in range(start + 1, min(start + FILLED_AT_ONCE, entries) + 1):
            chain = number % len(ends)
            sequence, previous = ends[chain]
            entry = {"id": number, **_entry(chain, sequence + 1)}
            entry["hash"] = digest(previous, entry)
            ends[chain] = sequence + 1, entry["hash"]
            rows.append(entry)
        async with db.write(Unchecked.OPERATOR) as connection:
            await connection.execute(insert(audit_log), rows)
    async with db.write(Unchecked.OPERATOR) as connection:
        for chain, (sequence, last) in ends.items():
            held = update(audit_chains).where(audit_chains.c.chain == chain)
            await connection.execute(held.values(sequence=sequence, hash=last))
    await db.close()


def _verify(url: URL) -> Verified:
    env = environment(KEYMAN_DATABASE_URL=url.render_as_string(hide_password=False))
    started = perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "keyman", "audit", "verify"],
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, output
    return Verified(perf_counter() - started, used.ru_maxrss / 1024, output.splitlines()[-1])


if __name__ == "__main__":
    main()
