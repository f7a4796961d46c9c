"""Measures what a gateway adds to a request: keyman's, a proxy that does nothing, and LiteLLM's proxy.

    .venv/bin/python -m bench.gateway [--clients 1,32,256] [--seconds 3] [--rounds 3] [--without-litellm]

All of them send to the same provider on loopback, which answers after 0 and after 20 ms, plainly and in 40 events. Each
has one worker. They are measured in turns, and the median of the rounds counts. Everything shares the machine, so
nothing else should run on it. Between machines, compare only ratios. The exit code is 1 if a goal is missed.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from time import perf_counter
from typing import NamedTuple

import asyncpg
import click
import httpx
from sqlalchemy.engine import URL

from bench import litellm
from bench.ratios import Ratio, share, table
from bench.rounds import Plan, Results, always
from bench.rounds import measure as rounds_of
from bench.servers import UNLIMITED, Machine, load, machine
from bench.side_by_side import Numbers, rounds_option
from bench.wrk import Target
from keyman.logs import configure_logging
from tests.support.http import NO_TLS
from tests.support.waiting import PATIENCE

DIRECT, BARE, KEYMAN, LITELLM = "direct", "bare proxy", "keyman", "LiteLLM"

ALONE = 1
"""The number of clients for the time that a request takes which waits for no other."""

GOALS_AT = 32
"""The number of clients that the goals are about."""

SERVICES = {0: "OPENAI", 20: "SLOW"}
"""The services of keyman, by the milliseconds after which the provider answers."""

_PATH = "/v1/chat/completions"
_MESSAGES = [{"role": "user", "content": "Say a word forty times. " * 10}]

COMMITS = 300
"""Transactions of a measurement of the time that one takes."""


class Kind(NamedTuple):
    """One kind of request: after how many milliseconds the provider answers, and whether in events."""

    delay: int
    is_streamed: bool

    def __str__(self) -> str:
        return f"{'40 events' if self.is_streamed else 'plain'}, {self.delay} ms"

    def of(self, name: str) -> str:
        """Return the label of this kind, sent to this server."""
        return f"{name}, {self}"


KINDS = [Kind(delay, is_streamed) for delay, is_streamed in itertools.product(SERVICES, (False, True))]


def added(results: Results, kind: Kind, name: str, clients: int) -> float:
    """Return how many milliseconds the p50 through a server is above that of the provider itself."""
    return results[kind.of(name), clients].p50 - results[kind.of(DIRECT), clients].p50


def ratios(results: Results, commit: float) -> list[Ratio]:
    """Return every ratio that the results allow. `commit` is the p50 of a durable commit in milliseconds."""
    found: list[Ratio] = []
    for kind, (other, rate, slowness) in itertools.product(KINDS, ((BARE, 0.33, 4), (LITELLM, 20, 0.1))):
        if (kind.of(other), GOALS_AT) not in results:
            continue
        ours, theirs = (results[kind.of(name), GOALS_AT] for name in (KEYMAN, other))
        where = f"{kind}, {GOALS_AT} clients"
        found.append(
            Ratio(f"{where}: requests a second ÷ those of {other}", share(ours.rate, theirs.rate), rate, cpu=ours.cpu)
        )
        times = share(added(results, kind, KEYMAN, GOALS_AT), added(results, kind, other, GOALS_AT))
        found.append(Ratio(f"{where}: added p50 ÷ that of {other}", times, slowness, is_at_most=True))
    alone = Kind(0, is_streamed=False)
    if (alone.of(KEYMAN), ALONE) in results:
        times = share(added(results, alone, KEYMAN, ALONE), commit)
        found.append(Ratio(f"{alone}, 1 client: added p50 ÷ p50 of a durable commit", times))
    return found


def added_table(results: Results, clients: Sequence[int]) -> str:
    """Return a table of the milliseconds that each server adds to the p50."""
    names = [name for name in (BARE, KEYMAN, LITELLM) if (KINDS[0].of(name), clients[0]) in results]
    lines = [f"| added p50 in ms | clients | {' | '.join(names)} |", f"|---|---|{'---|' * len(names)}"]
    for kind, count in itertools.product(KINDS, clients):
        cells = " | ".join(f"{added(results, kind, name, count):.2f}" for name in names)
        lines.append(f"| {kind} | {count} | {cells} |")
    return "\n".join(lines)


def target(url: str, kind: Kind, headers: Mapping[str, str] | None = None) -> Target:
    """Return the requests of one kind. LiteLLM knows the provider by the name of the model."""
    body: dict[str, object] = {"model": SERVICES[kind.delay], "messages": _MESSAGES}
    if kind.is_streamed:
        body["stream"] = True
    return Target("POST", url, [headers or {}], [body])


def plan(clients: Sequence[int], servers: Mapping[str, Callable[[Kind], Target]]) -> Plan:
    """Return what to measure, so that the servers follow one another."""
    return {
        (kind.of(name), count): always(make(kind))
        for kind, count in itertools.product(KINDS, clients)
        for name, make in servers.items()
    }


def _servers(one: Machine, url: URL, *, with_litellm: bool) -> dict[str, Callable[[Kind], Target]]:
    """Start everything, and return how to send a request of some kind to each server."""
    provider = one.module("provider", "bench.provider")
    bare = one.module(BARE, "bench.bare_proxy", PROVIDER=provider)
    address, headers = _gateway(one, url, provider)
    servers: dict[str, Callable[[Kind], Target]] = {
        DIRECT: lambda kind: target(f"{provider}/{kind.delay}{_PATH}", kind),
        BARE: lambda kind: target(f"{bare}/{kind.delay}{_PATH}", kind),
        KEYMAN: lambda kind: target(f"{address}/{SERVICES[kind.delay].lower()}{_PATH}", kind, headers),
    }
    if with_litellm:
        try:
            models = {service: f"{provider}/{delay}/v1" for delay, service in SERVICES.items()}
            other = litellm.start(one, LITELLM, models)
            servers[LITELLM] = lambda kind: target(f"{other}{_PATH}", kind)
        except click.ClickException as fault:
            click.echo(f"LiteLLM is left out. {fault.message}\n")
    for make, kind in itertools.product(servers.values(), KINDS):
        _check(make(kind), kind)
    return servers


def _gateway(one: Machine, url: URL, provider: str) -> tuple[str, dict[str, str]]:
    """Start keyman with a user's keys for the provider. Return the gateway's address and an application's headers."""
    file = one.directory / "services.json"
    entries = [
        {"service": service, "name": service, "base_url": f"{provider}/{delay}", "paths": [f"POST {_PATH}"]}
        for delay, service in SERVICES.items()
    ]
    file.write_text(json.dumps(entries))
    known = {"KEYMAN_SERVICES_FILE": str(file)}
    account = one.account(url)
    management = one.plane("management", url, settings={**UNLIMITED, **known})
    with httpx.Client(base_url=management, headers=account, timeout=PATIENCE, verify=NO_TLS) as client:
        user = client.get("/api/auth/me").raise_for_status().json()["id"]
        for service in SERVICES.values():
            new = {"service": service, "api_key": "sk-" + "x" * 45, "name": "bench"}
            client.post("/api/keys", json=new).raise_for_status()
    settings = {**known, "KEYMAN_GATEWAY_RATE": "100000", "KEYMAN_GATEWAY_CONCURRENCY": "1000"}
    address = one.plane(KEYMAN, url, plane="gateway", settings=settings)
    application = one.application(url, list(SERVICES.values()), **known)
    return address, {**application, "Keyman-User": str(user)}


def _check(wanted: Target, kind: Kind) -> None:
    """Send one request, and raise ClickException unless the provider's answer comes back."""
    headers = dict(wanted.headers[0])
    answer = httpx.post(wanted.url, headers=headers, json=wanted.bodies[0], timeout=PATIENCE, verify=NO_TLS)
    if not answer.is_success or ("data: [DONE]" in answer.text) is not kind.is_streamed:
        raise click.ClickException(f"{wanted.url} answered {answer.status_code}: {answer.text[:300]}")


async def _commit_time(url: URL) -> float:
    """Return the p50 in milliseconds of a transaction with one row, which waits for the disk."""
    plain = url.set(drivername="postgresql", query={})  # the parameters are SQLAlchemy's
    connection = await asyncpg.connect(plain.render_as_string(hide_password=False), ssl=False)
    try:
        await connection.execute("CREATE TABLE IF NOT EXISTS bench_commits (id serial PRIMARY KEY, text text)")
        times = []
        for _ in range(COMMITS):
            began = perf_counter()
            await connection.execute("INSERT INTO bench_commits (text) VALUES ($1)", "x" * 300)
            times.append(perf_counter() - began)
        return median(times) * 1000
    finally:
        await connection.close()


@click.command()
@click.option("--clients", default="1,32,256", show_default=True, type=Numbers(), help="Connections at a time.")
@click.option(
    "--seconds", default=3, show_default=True, type=click.IntRange(1, 60), help="Of each of up to 48 measurements."
)
@rounds_option
@click.option("--without-litellm", is_flag=True, help="Neither install nor start LiteLLM.")
def main(clients: tuple[int, ...], seconds: int, rounds: int, without_litellm: bool) -> None:
    """Compare keyman's gateway with direct requests, a bare proxy and LiteLLM."""
    configure_logging("console", "error")
    click.echo(f"Load of the machine before: {load()}\n")
    with machine() as one:
        url = one.database("bench")
        servers = _servers(one, url, with_litellm=not without_litellm)
        commits = [asyncio.run(_commit_time(url))]
        results = rounds_of(one, plan(clients, servers), seconds, rounds)
        commits.append(asyncio.run(_commit_time(url)))
    found = ratios(results, median(commits))
    click.echo(f"\n{added_table(results, clients)}\n\np50 of a durable commit: {median(commits):.2f} ms\n")
    click.echo(f"{table(found)}\n\nLoad of the machine after: {load()}")
    if not all(ratio.is_met for ratio in found):
        sys.exit(1)


if __name__ == "__main__":
    main()
