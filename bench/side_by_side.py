"""Measures keyman and what else there is in one run, and prints each ratio with its goal.

    .venv/bin/python -m bench.side_by_side speed [--clients 32,256] [--workers 1,2] [--seconds 4] [--rounds 3]
    .venv/bin/python -m bench.side_by_side limits [--users 1000]
    .venv/bin/python -m bench.side_by_side rewrap [--rows 100000]
    .venv/bin/python -m bench.side_by_side large [--rows 10000000]
    .venv/bin/python -m bench.side_by_side barbican
    .venv/bin/python -m bench.side_by_side pooled [--clients 32,256]
    .venv/bin/python -m bench.side_by_side stalled [--connections 1000]

It starts a real OpenBao with raft storage, a PostgreSQL that waits for its disk, and keyman's planes through their
public commands, and it stops what it started. The load comes from wrk. What is compared is measured in turns, and the
median of the rounds counts. Everything shares the machine, so nothing else should run on it. Between machines, compare
only ratios. The exit code is 1 if a goal is missed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from bench import barbican, large, limits, pooled, rewrap, speed, stalled
from bench.ratios import Ratio, table
from bench.servers import load, machine
from keyman.logs import configure_logging


class Numbers(click.ParamType[tuple[int, ...]]):
    """Whole numbers, separated by commas."""

    name = "numbers"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        try:
            numbers = tuple(int(word) for word in str(value).split(","))
        except ValueError:
            self.fail("must be whole numbers, separated by commas, such as 32,256", param, ctx)
        if min(numbers) < 1:
            self.fail("must be numbers of at least 1", param, ctx)
        return numbers


seconds_option = click.option(
    "--seconds", default=4, show_default=True, type=click.IntRange(1, 60), help="Of each measurement."
)
rounds_option = click.option(
    "--rounds", default=3, show_default=True, type=click.IntRange(1, 10), help="Of which the median counts."
)


@click.group()
def main() -> None:
    """Compare keyman with what else there is."""
    configure_logging("console", "error")
    click.echo(f"Load of the machine before: {load()}\n")


@main.command("speed")
@click.option("--clients", default="32,256", show_default=True, type=Numbers(), help="Connections at a time.")
@click.option("--workers", default="1,2", show_default=True, type=Numbers(), help="Of the planes on PostgreSQL.")
@seconds_option
@rounds_option
def _speed(clients: tuple[int, ...], workers: tuple[int, ...], seconds: int, rounds: int) -> None:
    """Store, list and resolve: against Vault's KV v2 and Transit, the bare framework, and the obvious design."""
    with machine() as servers:
        _finish(speed.run(servers, clients, workers, seconds, rounds))


@main.command("limits")
@click.option("--users", default=1000, show_default=True, type=click.IntRange(2, 10_000), help="At default limits.")
@seconds_option
@rounds_option
def _limits(users: int, seconds: int, rounds: int) -> None:
    """Store as many users at default limits, against one user without limits."""
    with machine() as servers:
        _finish(limits.run(servers, users, seconds, rounds))


@main.command("rewrap")
@click.option("--rows", default=100_000, show_default=True, type=click.IntRange(1, 1_000_000), help="Stored keys.")
@rounds_option
def _rewrap(rows: int, rounds: int) -> None:
    """`keyman rewrap`, against bare Transit with the same batches."""
    rates = rewrap.measured(rows, rounds)
    label = f"`keyman rewrap` ÷ bare batches, {rows:,} rows, PostgreSQL"
    _finish([Ratio(label, rates.rewrap.rate / rates.transit.rate, 0.6, cpu=rates.rewrap.cpu)])


@main.command("large")
@click.option(
    "--rows", default=10_000_000, show_default=True, type=click.IntRange(1000), help="Keys, and audit entries."
)
@seconds_option
@rounds_option
def _large(rows: int, seconds: int, rounds: int) -> None:
    """The first pages of keys and of the audit log in a large database, against a database of 1,000 rows."""
    with machine() as servers:
        _finish(large.run(servers, rows, seconds, rounds))


@main.command("barbican")
@seconds_option
@rounds_option
def _barbican(seconds: int, rounds: int) -> None:
    """Store and list, against OpenStack's Barbican without Keystone, with 2 processes. Needs a C compiler once."""
    with machine() as servers:
        _finish(barbican.run(servers, seconds, rounds))


@main.command("pooled")
@click.option("--clients", default="32,256", show_default=True, type=Numbers(), help="Connections at a time.")
@seconds_option
@rounds_option
def _pooled(clients: tuple[int, ...], seconds: int, rounds: int) -> None:
    """Store through PgBouncer in transaction mode, against a direct connection. Needs Debian's `pgbouncer`."""
    with machine() as servers:
        _finish(pooled.run(servers, clients, seconds, rounds))


@main.command("stalled")
@click.option("--connections", default=1000, show_default=True, type=click.IntRange(1, 4000), help="That wait.")
def _stalled(connections: int) -> None:
    """A worker whose connections all wait for a database that does not answer."""
    with machine(needs_wrk=False) as servers:
        _finish(stalled.run(servers, connections))


def _finish(ratios: Sequence[Ratio]) -> None:
    click.echo(f"\n{table(ratios)}\n\nLoad of the machine after: {load()}")
    if not all(one.is_met for one in ratios):
        sys.exit(1)


if __name__ == "__main__":
    main()
