"""Stores keys as many users at default limits, and as one user without limits: the limits must cost little."""

from __future__ import annotations

import asyncio

from sqlalchemy import insert
from sqlalchemy.engine import URL

from bench.filling import analyze
from bench.ratios import Ratio, share
from bench.rounds import always
from bench.rounds import measure as rounds_of
from bench.servers import NEW_KEY, Machine
from bench.wrk import Target
from keyman.clock import now
from keyman.identity.tables import api_tokens, owners, users
from keyman.identity.tokens import ALL_SCOPES, Token, scopes_text
from keyman.storage.transactions import Database, Unchecked

CLIENTS = 32
GOAL = 0.9

UNLIMITED, LIMITED = "one user without limits", "users at default limits"


def run(machine: Machine, count: int, seconds: int, rounds: int) -> list[Ratio]:
    """Measure both on the same PostgreSQL, with a plane for each, and return the ratio."""
    url = machine.database("limits")
    account = machine.account(url)
    tokens = asyncio.run(add_users(url, count))
    asyncio.run(analyze(url))  # as PostgreSQL does by itself within minutes
    bearers = [{"Authorization": f"Bearer {token}"} for token in tokens]
    unlimited, limited = machine.plane(UNLIMITED, url), machine.plane(LIMITED, url, settings=DEFAULT)
    plan = {
        (UNLIMITED, CLIENTS): always(Target("POST", f"{unlimited}/api/keys", [account], [NEW_KEY])),
        (LIMITED, CLIENTS): always(Target("POST", f"{limited}/api/keys", bearers, [NEW_KEY])),
    }
    results = rounds_of(machine, plan, seconds, rounds)
    found = results[LIMITED, CLIENTS]
    label = f"POST a key, {count:,} {LIMITED} ÷ {UNLIMITED}, {CLIENTS} clients"
    return [Ratio(label, share(found.rate, results[UNLIMITED, CLIENTS].rate), GOAL, cpu=found.cpu)]


DEFAULT = {"KEYMAN_MAX_WRITES": "300"}
"""The default of this setting, because the benchmark's servers start without the limit. The others are as they are."""


async def add_users(url: URL, count: int) -> list[str]:
    """Add users with an access token each, without the password hash that each sign-up costs. Return the tokens."""
    db, moment = Database(url), now()
    tokens = [Token.generate() for _ in range(count)]
    async with db.write(Unchecked.OPERATOR) as connection:
        created = await connection.execute(
            insert(owners).returning(owners.c.id, sort_by_parameter_order=True), [{"kind": "user"}] * count
        )
        ids = list(created.scalars())
        accounts = [
            {"id": user_id, "email": email, "email_key": email, "password_hash": "-", "created_at": moment}
            for user_id, email in ((user_id, f"u{user_id}@example.com") for user_id in ids)
        ]
        rows = [
            {
                "user_id": user_id,
                "token_hash": token.digest(),
                "name": "bench",
                "scopes": scopes_text(ALL_SCOPES),
                "hint": token.hint(),
                "created_at": moment,
            }
            for user_id, token in zip(ids, tokens, strict=True)
        ]
        await connection.execute(insert(users), accounts)
        await connection.execute(insert(api_tokens), rows)
    await db.close()
    return [token.reveal() for token in tokens]
