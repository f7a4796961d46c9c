"""Stores keys through a PgBouncer in transaction mode, and directly: what the pooled mode of keyman costs."""

from __future__ import annotations

from collections.abc import Sequence

from bench.ratios import Ratio, share
from bench.rounds import always
from bench.rounds import measure as rounds_of
from bench.servers import NEW_KEY, UNLIMITED, Machine
from bench.wrk import Target
from tests.support.pooler import pgbouncer

DIRECT, POOLED = "direct", "through PgBouncer"


def run(machine: Machine, clients: Sequence[int], seconds: int, rounds: int) -> list[Ratio]:
    """Measure both on the same database, with a plane for each. Each ratio has no goal: goals are for direct use."""
    url = machine.database("pooled")
    account = machine.account(url)
    with pgbouncer(url) as (_, through):
        settings = {**UNLIMITED, "KEYMAN_DATABASE_POOLED": "on"}
        planes = {DIRECT: machine.plane(DIRECT, url), POOLED: machine.plane(POOLED, through, settings=settings)}
        plan = {
            (name, number): always(Target("POST", f"{address}/api/keys", [account], [NEW_KEY]))
            for name, address in planes.items()
            for number in clients
        }
        results = rounds_of(machine, plan, seconds, rounds)
    return [
        Ratio(
            f"POST a key, {POOLED} ÷ {DIRECT}, {number} clients",
            share(results[POOLED, number].rate, results[DIRECT, number].rate),
            cpu=results[POOLED, number].cpu,
        )
        for number in clients
    ]
