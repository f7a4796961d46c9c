"""Makes random exchanges between rows of `api_keys`, asks a resolver by HTTP, and counts wrongly opened values.

    .venv/bin/python -m bench.exchanges [--tried 10000] [--seed 5]

There are 40 keys of 8 users and 3 services, each replaced three times. Again and again, each row gets random columns of
another row, or of an earlier state of that row or of itself. Then a real `keyman serve --plane resolver` on a real
OpenBao is asked for each key, on SQLite and on PostgreSQL. The exit code is 1 if it returned a value that
is not the key's current one. The test suite tries fewer exchanges (`tests/planes/resolver/test_exchanges.py`).
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter

import click
import httpx
from argon2 import PasswordHasher
from sqlalchemy.engine import URL, make_url

from bench.resolve import RATE, Logins, provisioned
from keyman import migrations
from keyman.dev import embedded
from keyman.logs import configure_logging
from tests.planes.resolver.pair import App, pair_at
from tests.planes.resolver.test_exchanges import SERVICES, Crowd, crowd_of, is_itself, put, random_exchanges
from tests.support.cli import serve, variables
from tests.support.database import postgres_server

AT_ONCE = 16
"""Requests at the same time: enough for a resolver with one worker."""


@click.command()
@click.option("--tried", default=10_000, show_default=True, help="Exchanges to try on each database.")
@click.option("--seed", default=5, show_default=True, help="Of the random numbers.")
def main(tried: int, seed: int) -> None:
    """Print a line for each database."""
    configure_logging("console", "critical")
    opened = 0
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        vault = asyncio.run(embedded.start(directory / "vault"))
        stack.callback(vault.close)
        logins = asyncio.run(provisioned(vault))
        server = stack.enter_context(postgres_server(log_statements=False))
        for name, url in {
            "SQLite": make_url(f"sqlite+aiosqlite:///{directory}/keyman.db"),
            "PostgreSQL": make_url(server.create_database("bench")),
        }.items():
            started = perf_counter()
            found = asyncio.run(_try(url, logins, directory / name, tried, random.Random(seed)))  # noqa: S311  # repeatable
            opened += found["opened wrongly"]
            counts = ", ".join(f"{count:,} {what}" for what, count in sorted(found.items()))
            click.echo(f"{name}: {counts}; {perf_counter() - started:.0f} s")
    if opened:
        sys.exit(1)


async def _try(url: URL, logins: Logins, directory: Path, tried: int, drawn: random.Random) -> Counter[str]:
    """Count the answers: refused by status, opened wrongly, and unchanged rows that were opened."""
    await migrations.upgrade(url)
    quick = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    settings = {**variables(logins.resolver, url), "KEYMAN_LOG_LEVEL": "error", "KEYMAN_RESOLVE_RATE": RATE}
    async with pair_at(url, logins.management, logins.resolver, quick) as pair:
        crowd, app = await crowd_of(pair), await pair.app(*SERVICES)
        with serve(settings | {"MARK": str(directory)}, directory, "--plane", "resolver") as running:
            return await _ask(crowd, app, running.url, tried, drawn)


async def _ask(crowd: Crowd, app: App, address: str, tried: int, drawn: random.Random) -> Counter[str]:
    found = Counter({"opened wrongly": 0})
    turns, left = asyncio.Semaphore(AT_ONCE), tried
    headers = {"Authorization": f"Bearer {app.token}"}
    async with httpx.AsyncClient(base_url=address, headers=headers, timeout=60) as client:

        async def ask(key_id: int, is_right: bool) -> None:
            async with turns:
                answer = await client.post("/v1/resolve", json={"key_id": key_id})
            if answer.status_code == 200:
                shown, truth = answer.json(), crowd.truths[key_id]
                is_true = (shown["key_id"], shown["user_id"], shown["service"], shown["api_key"]) == (key_id, *truth)
                found["left as they were and opened" if is_right and is_true else "opened wrongly"] += 1
            else:
                assert not any(truth.value in answer.text for truth in crowd.truths.values())
                found[f"refused with {answer.status_code}"] += 1
                assert not is_right, answer.text

        while left:
            rows = list(random_exchanges(drawn, crowd.generations))
            wrong = [row["id"] for row in rows if not is_itself(row, crowd.now)][:left]
            right = [row["id"] for row in rows if is_itself(row, crowd.now)]
            await put(crowd.pair.resolver.database, crowd.now, rows)
            await asyncio.gather(
                *(ask(key_id, False) for key_id in wrong),  # count every answer
                *(ask(key_id, True) for key_id in right),
            )
            left -= len(wrong)
    return found


if __name__ == "__main__":
    main()
