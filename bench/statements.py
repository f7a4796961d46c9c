"""Measures the CPU time of keyman's statements, compared with the same ones through SQLAlchemy in the same run.

    .venv/bin/python -m bench.statements [--rounds 5]

It measures three units of work on both databases: a token by its hash, a list of 50 keys, and a transaction with one
insert. Both ways take a connection from a pool. Only the CPU time of this process counts, with its threads, and only
the best round of each. Between machines, compare only the share.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any
from uuid import uuid4

import click
import uvloop
from sqlalchemy import insert
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from keyman import migrations
from keyman.clock import now
from keyman.identity import personal_tokens
from keyman.identity.tables import api_tokens, owners, throttle, users
from keyman.keys import listing
from keyman.keys.tables import api_keys
from keyman.logs import configure_logging
from keyman.storage import engine
from keyman.storage.statements import Command, Query
from keyman.storage.transactions import Database, Unchecked
from tests.support.database import postgres_server

Step = Callable[[], Awaitable[object]]

STEPS = 300
"""How often a unit of work is done in a round."""

KEYS = 50

_HASH = b"h" * 32
_ADD = Command(insert(throttle))

QUERIES: dict[str, tuple[Query[Any], dict[str, Any]]] = {
    "a token by its hash": (personal_tokens._BY_HASH._for_one, {"key_0": _HASH}),
    f"a list of {KEYS} keys": (listing._LISTINGS[False]._first, {"owner_id": 1, "limit": KEYS + 1}),
}
INSERT = "a transaction with one insert"


async def _fill(db: Database) -> None:
    moment = now()
    key = {
        "user_id": 1,
        "owner_id": 1,
        "service": "OPENAI",
        "encrypted_key": "vault:v1:AAAA",
        "key_version": 1,
        "last_4_chars": "sk-...1234",
        "disabled": False,
        "undecryptable": False,
        "created_at": moment,
        "updated_at": moment,
    }
    user = {"id": 1, "email": "a@example.com", "email_key": "a@example.com", "password_hash": "-", "created_at": moment}
    token = {"user_id": 1, "token_hash": _HASH, "name": "t", "scopes": "keys:read", "hint": "-", "created_at": moment}
    async with db.write(Unchecked.OPERATOR) as connection:
        await Command(insert(owners)).execute(connection, kind="user")
        await Command(insert(users)).execute(connection, **user)
        await Command(insert(api_tokens)).execute(connection, **token)
        await Command(insert(api_keys)).execute_many(connection, [{**key, "value_uuid": uuid4()} for _ in range(KEYS)])


def _of_keyman(db: Database) -> dict[str, Step]:
    async def read(query: Query[Any], parameters: dict[str, Any]) -> None:
        async with db.read() as connection:
            await query.all(connection, **parameters)

    async def store() -> None:
        async with db.write(Unchecked.OPERATOR) as connection:
            await _ADD.execute(connection, **_new())

    return {name: partial(read, *asked) for name, asked in QUERIES.items()} | {INSERT: store}


def _of_sqlalchemy(bare: AsyncEngine) -> dict[str, Step]:
    readers, writers = engine.autocommitting(bare), engine.transactional(bare)

    async def read(query: Query[Any], parameters: dict[str, Any]) -> None:
        async with readers.connect() as connection:
            for values in (await connection.execute(query.statement, parameters)).all():
                query.row(*values)

    async def store() -> None:
        async with writers.begin() as connection:
            await connection.execute(_ADD.statement, _new())

    return {name: partial(read, *asked) for name, asked in QUERIES.items()} | {INSERT: store}


def _new() -> dict[str, Any]:
    return {"bucket": uuid4().bytes * 2, "attempts": 1, "ends_at": now()}


async def _cost(step: Step) -> float:
    """Return the microseconds of CPU time that a step takes."""
    started = process_time()
    for _ in range(STEPS):
        await step()
    return (process_time() - started) / STEPS * 1e6


async def _measure(url: URL, rounds: int) -> dict[str, tuple[float, float]]:
    """Return, for each unit of work, the cost through SQLAlchemy and that of keyman."""
    await migrations.upgrade(url)
    db = Database(url)
    bare = engine.create_engine(url, statement_timeout=engine.STATEMENT_TIMEOUT, pool_size=engine.POOL_SIZE)
    await _fill(db)
    before, after = _of_sqlalchemy(bare), _of_keyman(db)
    costs = {name: [(await _cost(before[name]), await _cost(after[name])) for _ in range(rounds)] for name in after}
    await db.close()
    await bare.dispose()
    return {name: (min(one for one, _ in found), min(one for _, one in found)) for name, found in costs.items()}


@click.command()
@click.option("--rounds", default=5, show_default=True)
def main(rounds: int) -> None:
    configure_logging("console", "error")
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(postgres_server(log_statements=False))
        urls = (make_url(server.create_database("bench")), make_url(f"sqlite+aiosqlite:///{directory}/keyman.db"))
        found = {url.get_backend_name(): uvloop.run(_measure(url, rounds)) for url in urls}
    click.echo(f"Load of the machine: {os.getloadavg()[0]:.1f}\n")
    click.echo("| CPU µs | through SQLAlchemy | keyman | before ÷ after |\n|---|---|---|---|")
    for database, costs in found.items():
        for name, (before, after) in costs.items():
            click.echo(f"| {database}: {name} | {before:,.0f} | {after:,.0f} | {before / after:.1f} |")


if __name__ == "__main__":
    main()
