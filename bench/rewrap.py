"""Measures `keyman rewrap` on PostgreSQL, compared with bare Transit and the same batches in the same run.

    .venv/bin/python -m bench.rewrap [--rows 100000] [--rounds 3]

It uses a real OpenBao and a PostgreSQL that waits for its disk, on loopback. Each round creates a new key version, lets
Transit rewrap every ciphertext without storing it, and then runs the rewrap. The best round of each counts. Between
machines, compare only the share.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import os
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import NamedTuple
from uuid import uuid4

import click
from sqlalchemy import insert, select
from sqlalchemy.engine import URL, make_url

from bench.wrk import cpu_seconds
from keyman import migrations
from keyman.config.vault import VaultSettings
from keyman.dev import embedded
from keyman.dev.embedded import EmbeddedVault
from keyman.keys.deployment import Deployment
from keyman.keys.rewrap import Rewrap
from keyman.keys.tables import api_keys
from keyman.logs import configure_logging
from keyman.metrics import Metrics
from keyman.storage.transactions import Database, Unchecked
from keyman.vault import provision
from keyman.vault.adapter import AsyncAdapter
from keyman.vault.cipher import Context
from keyman.vault.guard import KeyGuard
from keyman.vault.login import VaultClient
from keyman.vault.rotation import MAX_BATCH, Bound, KeyRotation
from tests.support.database import postgres_server
from tests.support.rows import add_owner, row

SEALED_AT_ONCE = 200

AT_ONCE = 4
"""Calls of bare Transit at the same time. More do not make it faster."""


class Measured(NamedTuple):
    """Values per second, and the processor time per value of each process, in microseconds."""

    rate: float
    cpu: Mapping[str, float]


class Rates(NamedTuple):
    """The best rounds of each."""

    transit: Measured
    rewrap: Measured


@click.command()
@click.option("--rows", default=100_000, show_default=True, type=click.IntRange(1, 1_000_000))
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1, 10))
def main(rows: int, rounds: int) -> None:
    """Print a table."""
    configure_logging("console", "error")
    before = os.getloadavg()[0]
    rates = measured(rows, rounds)
    click.echo(f"{rows:,} rows, load of the machine {before:.1f} before and {os.getloadavg()[0]:.1f} after\n")
    click.echo("| | share of bare Transit | values a second here | CPU µs a value |\n|---|---|---|---|")
    bare = f"Bare Transit, {MAX_BATCH} a call, {AT_ONCE} calls at once"
    for label, one in ((bare, rates.transit), ("`keyman rewrap`, PostgreSQL", rates.rewrap)):
        share = one.rate / rates.transit.rate
        cpu = ", ".join(f"{name} {micro:.1f}" for name, micro in one.cpu.items())
        click.echo(f"| {label} | {share:.2f} | {one.rate:,.0f} | {cpu} |")


def measured(rows: int, rounds: int) -> Rates:
    """Start the servers, fill a database, and return the better rate of all rounds for each."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        vault = asyncio.run(embedded.start(directory / "vault"))
        stack.callback(vault.close)
        server = stack.enter_context(postgres_server(durable=True, log_statements=False))
        servers = {"OpenBao": vault.process.pid, "PostgreSQL": server.pid}
        return asyncio.run(_measure(vault, make_url(server.create_database("bench")), servers, rows, rounds))


async def _measure(vault: EmbeddedVault, url: URL, servers: Mapping[str, int], count: int, rounds: int) -> Rates:
    admin = vault.admin()
    settings = VaultSettings(address=vault.address)
    await provision.provision(admin, settings)
    management = await _client(admin, settings, "keyman-management")
    rotator = await _client(admin, settings, "keyman-rotator")
    await migrations.upgrade(url)
    db = Database(url)
    deployment = await Deployment.load(db)
    guard = KeyGuard(management, settings, deployment)
    await guard.verify()
    await _fill(db, management, deployment, count)
    rotation = KeyRotation(rotator, settings)
    bare, full = list[Measured](), list[Measured]()
    for _ in range(rounds):
        await rotation.rotate()
        items = await _items(db, deployment)
        gc.collect()
        gc.freeze()  # as the command does after its imports
        bare.append(await _timed(partial(_transit, rotation, items), servers, count))
        run = Rewrap(db, deployment, KeyGuard(rotator, settings, deployment), rotation)
        full.append(await _timed(partial(_rewrap, run, count), servers, count))
    for client in (management, rotator):
        await client.close()
    await admin.close()
    await db.close()
    return Rates(max(bare), max(full))


async def _timed(work: Callable[[], Awaitable[None]], servers: Mapping[str, int], count: int) -> Measured:
    """Do the work for so many values, and measure it."""
    before = _cpu(servers)
    started = perf_counter()
    await work()
    rate = count / (perf_counter() - started)
    return Measured(rate, {name: 1e6 * (end - before[name]) / count for name, end in _cpu(servers).items()})


def _cpu(servers: Mapping[str, int]) -> dict[str, float]:
    return {"keyman": process_time(), **{name: cpu_seconds(pid) for name, pid in servers.items()}}


async def _rewrap(run: Rewrap, count: int) -> None:
    summary = await run.run()
    assert summary.rewrapped == count, summary


async def _client(admin: AsyncAdapter, settings: VaultSettings, role: str) -> VaultClient:
    issued = await provision.issue_credentials(admin, role)
    return VaultClient(
        VaultSettings(address=settings.address, role_id=issued.role_id, secret_id=issued.secret_id), Metrics()
    )


async def _fill(db: Database, client: VaultClient, deployment: Deployment, count: int) -> None:
    await add_owner(db)
    plaintext = base64.b64encode(b"sk-" + b"x" * 45).decode()
    for start in range(0, count, SEALED_AT_ONCE):
        values = [uuid4() for _ in range(min(SEALED_AT_ONCE, count - start))]
        items = [
            {"plaintext": plaintext, "context": Context(deployment.uuid, 1, "OPENAI", value).encoded()}
            for value in values
        ]
        answer = await client.adapter.post("/v1/transit/encrypt/keyman", json={"batch_input": items})
        sealed = [item["ciphertext"] for item in answer["data"]["batch_results"]]
        rows = [row("api_keys", encrypted_key=one, value_uuid=value) for value, one in zip(values, sealed, strict=True)]
        async with db.write(Unchecked.OPERATOR) as connection:
            await connection.execute(insert(api_keys), rows)


async def _items(db: Database, deployment: Deployment) -> list[Bound]:
    statement = select(api_keys.c.encrypted_key, api_keys.c.value_uuid).order_by(api_keys.c.id)
    async with db.read() as connection:
        rows = (await connection.execute(statement)).all()
    return [Bound(one.encrypted_key, Context(deployment.uuid, 1, "OPENAI", one.value_uuid).encoded()) for one in rows]


async def _transit(rotation: KeyRotation, items: Sequence[Bound]) -> None:
    batches = iter([items[start : start + MAX_BATCH] for start in range(0, len(items), MAX_BATCH)])

    async def work() -> None:
        for batch in batches:
            assert None not in await rotation.rewrap(batch)

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))


if __name__ == "__main__":
    main()
