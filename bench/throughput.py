"""Measures the answers per second of `keyman serve` on loopback, compared with bare Transit in the same run.

    .venv/bin/python -m bench.throughput [--seconds 2] [--rounds 3]

It uses a real OpenBao, a SQLite that syncs at each commit, a PostgreSQL that waits for its disk, one worker of keyman
on each, and a load generator in its own process. The targets are measured in turns. The best round of each counts,
because on a shared machine the others measure other load. Between machines, compare only the ratios.
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

import click
import httpx
from sqlalchemy.engine import URL, make_url

from keyman import migrations
from keyman.config.vault import VaultSettings
from keyman.dev import embedded
from keyman.dev.embedded import EmbeddedVault
from keyman.identity import personal_tokens as personal
from keyman.identity import users
from keyman.identity.passwords import Passwords
from keyman.identity.tokens import ALL_SCOPES
from keyman.secret import Secret
from keyman.storage.transactions import Database
from keyman.values import EmailAddress, NewPassword, RequiredLabel
from keyman.vault import provision
from tests.support.cli import environment, serve
from tests.support.database import postgres_server

CLIENTS = (1, 32, 256)
MOST = 100_000
"""Requests of one measurement at most, because disks fill up."""

JSON = {"Content-Type": "application/json"}
NEW_KEY = json.dumps({"service": "OPENAI", "api_key": "sk-" + "x" * 45, "name": "bench"})


class Target(NamedTuple):
    """The requests of one measurement."""

    method: str
    url: str
    headers: dict[str, str]
    body: str = ""


class Rate(NamedTuple):
    """Answers per second. `refused` counts those without a success status."""

    answered: float
    refused: float


@click.command()
@click.option("--seconds", default=2.0, show_default=True, help="Of each measurement.")
@click.option("--rounds", default=3, show_default=True, help="Measurements of each, the best of which counts.")
def main(seconds: float, rounds: int) -> None:
    """Print a table of ratios."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        vault = asyncio.run(embedded.start(directory / "vault"))
        stack.callback(vault.close)
        settings = asyncio.run(_provisioned(vault))
        server = stack.enter_context(postgres_server(durable=True, log_statements=False))
        urls = {
            "SQLite": make_url(f"sqlite+aiosqlite:///{directory}/keyman.db"),
            "PostgreSQL": make_url(server.create_database("bench")),
        }
        services = {}
        for name, url in urls.items():
            token = asyncio.run(_account(url))
            env = environment(**_variables(url, settings), KEYMAN_LOG_LEVEL="warning", MARK=str(directory))
            running = stack.enter_context(serve(env, directory / name))
            services[name] = (running.url, {"Authorization": f"Bearer {token}"})
        _measure(_transit(vault, settings), services, seconds, rounds)


def _measure(transit: Target, services: dict[str, tuple[str, dict[str, str]]], seconds: float, rounds: int) -> None:
    click.echo(f"Load of the machine before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors\n")
    click.echo("| | clients | share of bare Transit | a second here | refused |\n|---|---|---|---|---|")
    for clients in CLIENTS:
        posts = {
            f"POST a key, {name}": Target("POST", f"{url}/api/keys", headers | JSON, NEW_KEY)
            for name, (url, headers) in services.items()
        }
        _table({"Transit encrypt, one value a call": transit, **posts}, clients, seconds, rounds)
    click.echo("\n| | clients | share of /livez | a second here | refused |\n|---|---|---|---|---|")
    targets = {"GET /livez": Target("GET", f"{next(iter(services.values()))[0]}/livez", {})}
    for name, (url, headers) in services.items():
        for label, path in (("GET /api/auth/me", "/api/auth/me"), ("GET a page of 50 keys", "/api/keys")):
            targets[f"{label}, {name}"] = Target("GET", url + path, headers)
    _table(targets, 32, seconds, rounds)
    click.echo(f"\nLoad of the machine after: {os.getloadavg()[0]:.1f}")


def _table(targets: dict[str, Target], clients: int, seconds: float, rounds: int) -> None:
    """Print a line for each target. The first target is the reference for the others' share."""
    best: dict[str, Rate] = {}
    for number in range(rounds + 1):
        for label, target in targets.items():
            # The first round only warms up connections, caches and plans.
            rate = _ask(target, clients, seconds if number else 0.5)
            if number and rate.answered >= best.get(label, Rate(0, 0)).answered:
                best[label] = rate
    whole = next(iter(best.values())).answered
    for label, rate in best.items():
        share = f"{rate.answered / whole:.2f}"
        click.echo(f"| {label} | {clients} | {share} | {rate.answered:.0f} | {rate.refused:.0f} |")


def _ask(target: Target, clients: int, seconds: float) -> Rate:
    """Return the answers per second: successful and refused."""
    job = {**target._asdict(), "clients": clients, "seconds": seconds, "most": MOST}
    done = subprocess.run(
        [sys.executable, "-m", "bench.load"],
        cwd=Path(__file__).parent.parent,
        input=json.dumps(job).encode(),
        capture_output=True,
        check=True,
        timeout=seconds + 90,
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return Rate(result["answered"] / result["seconds"], result["failed"] / result["seconds"])


async def _provisioned(vault: EmbeddedVault) -> VaultSettings:
    admin = vault.admin()
    try:
        await provision.provision(admin, VaultSettings(address=vault.address))
        role = await provision.issue_credentials(admin, "keyman-management")
    finally:
        await admin.close()
    return VaultSettings(address=vault.address, role_id=role.role_id, secret_id=role.secret_id)


async def _account(url: URL) -> str:
    """Migrate a database, add one account, and return its access token."""
    await migrations.upgrade(url)
    db, passwords = Database(url), Passwords()
    email = EmailAddress.parse("bench@example.com")
    await users.add(db, passwords, email, NewPassword.parse("correct horse battery staple"))
    made = await personal.create_for(db, email, RequiredLabel("bench"), ALL_SCOPES)
    passwords.close()
    await db.close()
    return made.token


def _variables(url: URL, settings: VaultSettings) -> dict[str, str]:
    return {
        "KEYMAN_DATABASE_URL": url.render_as_string(hide_password=False),
        "KEYMAN_VAULT_ADDR": settings.address,
        "KEYMAN_VAULT_ROLE_ID": settings.role_id or "",
        "KEYMAN_VAULT_SECRET_ID": (settings.secret_id or Secret("")).reveal(),
        "KEYMAN_PUBLIC_URL": "http://127.0.0.1:8000",
        "KEYMAN_MAX_KEYS": "0",
        "KEYMAN_MAX_WRITES": "0",
    }


def _transit(vault: EmbeddedVault, settings: VaultSettings) -> Target:
    """Return the target that uses the same key with the same role, without keyman."""
    login = {"role_id": settings.role_id, "secret_id": (settings.secret_id or Secret("")).reveal()}
    answer = httpx.post(f"{vault.address}/v1/auth/approle/login", json=login).raise_for_status()
    body = {name: base64.b64encode(b"x" * 48).decode() for name in ("plaintext", "context")}
    headers = JSON | {"X-Vault-Token": answer.json()["auth"]["client_token"]}
    return Target("POST", f"{vault.address}/v1/transit/encrypt/keyman", headers, json.dumps(body))


if __name__ == "__main__":
    main()
