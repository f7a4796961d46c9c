"""Measures a resolver's answers per second and its latency, compared with a bare Transit decrypt in the same run.

    .venv/bin/python -m bench.resolve [--seconds 10] [--rounds 3] [--users 1000]

It uses a real OpenBao, one worker of `keyman serve --plane resolver` on a SQLite that syncs at each commit and one on a
PostgreSQL that waits for its disk, and a load generator in its own process. Bare Transit opens the same ciphertexts
with the resolver's role and the same client code. The targets are measured in turns, and the best round of each counts,
with its latencies. "Hot" means that all clients ask for one user's key. Between machines, compare only the ratios.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import click
import httpx
from sqlalchemy import insert, select
from sqlalchemy.engine import URL, make_url

from keyman import migrations
from keyman.audit.entries import OPERATOR, Action, Entry
from keyman.audit.log import record
from keyman.config.vault import VaultSettings
from keyman.dev import embedded
from keyman.dev.embedded import EmbeddedVault
from keyman.identity import applications
from keyman.ids import UserId
from keyman.keys.deployment import Deployment
from keyman.keys.tables import api_keys
from keyman.logs import configure_logging
from keyman.metrics import Metrics
from keyman.secret import Secret
from keyman.storage.transactions import Database, Unchecked
from keyman.values import ApplicationName
from keyman.vault import provision
from keyman.vault.cipher import Context
from keyman.vault.guard import KeyGuard
from keyman.vault.login import VaultClient
from tests.support.cli import serve, variables
from tests.support.database import postgres_server
from tests.support.rows import add, row, table

CLIENTS = (1, 32, 256)
MOST = 200_000
"""Requests of one measurement at most, because each writes an audit entry to the disk."""

SEALED_AT_ONCE = 200
RATE = "100000"
"""KEYMAN_RESOLVE_RATE: its maximum, so that the limit of an application has no effect here."""

JSON = {"Content-Type": "application/json"}


class Target(NamedTuple):
    """The requests of one measurement. The bodies are sent in turn."""

    url: str
    headers: dict[str, str]
    bodies: list[str]


class Measured(NamedTuple):
    """Answers and refusals per second, and the median and 99th percentile of the latency in milliseconds."""

    answered: float
    p50: float
    p99: float
    refused: float


class Logins(NamedTuple):
    management: VaultSettings
    resolver: VaultSettings


class Stored(NamedTuple):
    """The contents of the database: an application token, and the bodies with which Transit opens each value."""

    token: str
    opening: list[str]
    user_ids: list[int]


@click.command()
@click.option("--seconds", default=10.0, show_default=True, help="Of each measurement.")
@click.option("--rounds", default=3, show_default=True, help="Measurements of each, the best of which counts.")
@click.option("--users", default=1000, show_default=True, help="Who have a key each.")
def main(seconds: float, rounds: int, users: int) -> None:
    """Print a table."""
    configure_logging("console", "error")
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        vault = asyncio.run(embedded.start(directory / "vault"))
        stack.callback(vault.close)
        logins = asyncio.run(provisioned(vault))
        server = stack.enter_context(postgres_server(durable=True, log_statements=False))
        urls = {
            "SQLite": make_url(f"sqlite+aiosqlite:///{directory}/keyman.db"),
            "PostgreSQL": make_url(server.create_database("bench")),
        }
        targets: dict[str, Target] = {}
        for name, url in urls.items():
            stored = asyncio.run(_fill(url, logins.management, users))
            targets.setdefault("Transit decrypt", _transit(logins.resolver, stored))
            settings = variables(logins.resolver, url)
            settings |= {"KEYMAN_LOG_LEVEL": "warning", "KEYMAN_RESOLVE_RATE": RATE, "MARK": str(directory)}
            running = stack.enter_context(serve(settings, directory / name, "--plane", "resolver"))
            headers = JSON | {"Authorization": f"Bearer {stored.token}"}
            bodies = [json.dumps({"user_id": user_id, "service": "OPENAI"}) for user_id in stored.user_ids]
            targets[f"resolve, {name}, {users:,} users"] = Target(f"{running.url}/v1/resolve", headers, bodies)
            targets[f"resolve, {name}, hot"] = Target(f"{running.url}/v1/resolve", headers, bodies[:1])
        click.echo(f"Load of the machine before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors\n")
        click.echo(
            "| | clients | share of bare Transit | a second here | p50 ms | p99 ms | p99 ÷ Transit's | refused |"
        )
        click.echo("|---|---|---|---|---|---|---|---|")
        for clients in CLIENTS:
            _table(targets, clients, seconds, rounds)
        click.echo(f"\nLoad of the machine after: {os.getloadavg()[0]:.1f}")


def _table(targets: dict[str, Target], clients: int, seconds: float, rounds: int) -> None:
    """Print a line for each target. The first target is the reference for the others' share."""
    best: dict[str, Measured] = {}
    for number in range(rounds + 1):
        for label, target in targets.items():
            # The first round only warms up connections, caches and plans.
            measured = _ask(target, clients, seconds if number else 0.5)
            if number and (label not in best or measured.answered > best[label].answered):
                best[label] = measured
    bare = next(iter(best.values()))
    for label, measured in best.items():
        share, waits = measured.answered / bare.answered, measured.p99 / bare.p99
        click.echo(
            f"| {label} | {clients} | {share:.2f} | {measured.answered:,.0f} | {measured.p50:.1f} | {measured.p99:.1f} "
            f"| {waits:.1f} | {measured.refused:.0f} |"
        )


def _ask(target: Target, clients: int, seconds: float) -> Measured:
    job = {"method": "POST", **target._asdict(), "clients": clients, "seconds": seconds, "most": MOST}
    done = subprocess.run(
        [sys.executable, "-m", "bench.load"],
        cwd=Path(__file__).parent.parent,
        input=json.dumps(job).encode(),
        capture_output=True,
        check=True,
        timeout=seconds + 90,
    )
    result: dict[str, Any] = json.loads(done.stdout)
    took = result["seconds"]
    return Measured(result["answered"] / took, result["p50"], result["p99"], result["failed"] / took)


async def provisioned(vault: EmbeddedVault) -> Logins:
    admin = vault.admin()
    try:
        await provision.provision(admin, VaultSettings(address=vault.address))
        roles = [await provision.issue_credentials(admin, f"keyman-{plane}") for plane in Logins._fields]
    finally:
        await admin.close()
    return Logins(*(VaultSettings(vault.address, role_id=one.role_id, secret_id=one.secret_id) for one in roles))


async def _fill(url: URL, management: VaultSettings, count: int) -> Stored:
    """Fill a database with an application and `count` users with a key each, and with their audit entries."""
    await migrations.upgrade(url)
    db, client = Database(url), VaultClient(management, Metrics())
    deployment = await Deployment.load(db)
    await KeyGuard(client, management, deployment).verify()
    token = (await applications.create(db, ApplicationName("bench"), ["OPENAI"])).token.reveal()
    users = table("users")
    async with db.write(Unchecked.OPERATOR) as connection:
        for _ in range(count):
            await add(connection, "users")
    async with db.read() as connection:
        user_ids = list((await connection.execute(select(users.c.id).order_by(users.c.id))).scalars())
    opening = []
    for start in range(0, count, SEALED_AT_ONCE):
        opening += await _store(db, client, deployment, user_ids[start : start + SEALED_AT_ONCE])
    await client.close()
    await db.close()
    return Stored(token, opening, user_ids)


async def _store(db: Database, client: VaultClient, deployment: Deployment, user_ids: list[int]) -> list[str]:
    plaintext = base64.b64encode(b"sk-" + b"x" * 45).decode()
    values = [uuid4() for _ in user_ids]
    contexts = [
        Context(deployment.uuid, user_id, "OPENAI", value).encoded()
        for user_id, value in zip(user_ids, values, strict=True)
    ]
    items = [{"plaintext": plaintext, "context": context} for context in contexts]
    answer = await client.adapter.post("/v1/transit/encrypt/keyman", json={"batch_input": items})
    sealed = [item["ciphertext"] for item in answer["data"]["batch_results"]]
    async with db.write(Unchecked.OPERATOR) as connection:
        entries = []
        for user_id, value, ciphertext in zip(user_ids, values, sealed, strict=True):
            values_of = row("api_keys", user_id=user_id, owner_id=user_id, encrypted_key=ciphertext, value_uuid=value)
            statement = insert(api_keys).values(values_of).returning(api_keys.c.id)
            key_id = (await connection.execute(statement)).scalar_one()
            entries.append(
                Entry(Action.KEY_CREATE, OPERATOR, UserId(user_id), key_id=key_id, service="OPENAI", value_uuid=value)
            )
        await record(connection, *entries)
    return [json.dumps({"ciphertext": one, "context": of}) for one, of in zip(sealed, contexts, strict=True)]


def _transit(resolver: VaultSettings, stored: Stored) -> Target:
    """Return the target that opens the same values with the same role, without keyman."""
    login = {"role_id": resolver.role_id, "secret_id": (resolver.secret_id or Secret("")).reveal()}
    answer = httpx.post(f"{resolver.address}/v1/auth/approle/login", json=login).raise_for_status()
    headers = JSON | {"X-Vault-Token": answer.json()["auth"]["client_token"]}
    return Target(f"{resolver.address}/v1/transit/decrypt/keyman", headers, stored.opening)


if __name__ == "__main__":
    main()
