"""Stores, lists and resolves keys, side by side with Vault itself, the bare framework, and the obvious design."""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import httpx
from sqlalchemy.engine import URL, make_url

from bench import obvious
from bench.ratios import Ratio, share
from bench.rounds import Plan, Results, always
from bench.rounds import measure as rounds_of
from bench.servers import NEW_KEY, Machine, wait
from bench.wrk import NUMBER, Target
from tests.support.http import NO_TLS
from tests.support.waiting import PATIENCE

KEYS = 60
"""Stored before the measurement, so that a list has a whole page of 50."""

FLOOR = "bare Litestar"
KV = "KV v2 write"
TRANSIT = "Transit decrypt"
OBVIOUS = "the obvious design"

ALONE = 1
"""The number of clients for the latency of a request that waits for no other."""


class Goal(NamedTuple):
    """A ratio of rates: what is measured, compared with what, and the least that it should be."""

    part: str
    whole: str
    clients: int
    goal: float


def post(name: str) -> str:
    return f"POST a key, {name}"


def planes(workers: Sequence[int]) -> dict[str, int | None]:
    """Return the names of the management planes, and how many workers each has: None for the one on SQLite."""
    return {
        **{f"PostgreSQL, {count} {'worker' if count == 1 else 'workers'}": count for count in workers},
        "SQLite": None,
    }


ONE = "PostgreSQL, 1 worker"


def goals(few: int, many: int) -> list[Goal]:
    """Return the goals for rates with `few` and with `many` clients."""
    return [
        Goal(post(ONE), KV, many, 1.2),
        Goal(post("PostgreSQL, 2 workers"), KV, many, 1.6),
        Goal(post(ONE), KV, few, 0.8),
        Goal(post("SQLite"), KV, few, 0.6),
        Goal("GET /livez", FLOOR, few, 0.8),
        Goal("GET /api/auth/me", FLOOR, few, 0.5),
        Goal("GET 50 keys", FLOOR, few, 0.15),
        Goal("resolve", TRANSIT, few, 0.25),
        Goal("resolve", TRANSIT, many, 0.25),
        Goal(post(ONE), OBVIOUS, many, 15),
    ]


def ratios(results: Results, few: int, many: int, slowest: float) -> list[Ratio]:
    """Return every ratio that the results allow. `slowest` is the goal for one client: see P50_BEFORE."""
    found = [
        Ratio(
            f"{one.part} ÷ {one.whole}, {one.clients} clients",
            share(results[one.part, one.clients].rate, results[one.whole, one.clients].rate),
            one.goal,
            cpu=results[one.part, one.clients].cpu,
        )
        for one in goals(few, many)
        if (one.part, one.clients) in results and (one.whole, one.clients) in results
    ]
    if (post(ONE), many) in results and (FLOOR, few) in results:
        stored, floor = results[post(ONE), many], results[FLOOR, few]
        cpu = share(floor.cpu[FLOOR], stored.cpu[ONE])
        found.append(Ratio(f"CPU of {FLOOR} ÷ CPU of the worker per POST, {many} clients", cpu, 0.15, cpu=stored.cpu))
    if (post(ONE), few) in results:
        stored = results[post(ONE), few]
        found.append(
            Ratio(f"p99 ÷ p50 of POST a key, {few} clients", share(stored.p99, stored.p50), 2.5, is_at_most=True)
        )
    if (post(ONE), ALONE) in results and (KV, ALONE) in results:
        waits = share(results[post(ONE), ALONE].p50, results[KV, ALONE].p50)
        found.append(Ratio(f"p50 of POST a key ÷ p50 of {KV}, 1 client", waits, slowest, is_at_most=True))
    return found


P50_BEFORE = 8.0
"""The last ratio, measured before requests shared their transactions: a single client pays nothing for the others."""


def run(machine: Machine, clients: Sequence[int], workers: Sequence[int], seconds: int, rounds: int) -> list[Ratio]:
    """Measure every target, print its figures, and return the ratios."""
    results = rounds_of(machine, _plan(machine, clients, workers), seconds, rounds)
    return ratios(results, clients[0], clients[-1], P50_BEFORE)


def _plan(machine: Machine, clients: Sequence[int], workers: Sequence[int]) -> Plan:
    """Start every server, and return what to measure with how many clients, in the order of a round."""
    few = clients[0]
    url = machine.database("bench")
    account = machine.account(url)
    posts: dict[str, Target] = {}
    for name, count in planes(workers).items():
        if count is None:
            sqlite = machine.sqlite("bench")
            headers, address = machine.account(sqlite), machine.plane(name, sqlite)
        else:
            headers, address = account, machine.plane(name, url, "--workers", str(count))
        posts[name] = Target("POST", f"{address}/api/keys", [headers], [NEW_KEY])
    for target in posts.values():
        fill(target, KEYS)
    first = next(iter(posts))
    address = posts[first].url.removesuffix("/api/keys")
    stored = [(post(name), target) for name, target in posts.items()]
    compared = {
        TRANSIT: _transit(machine),
        "resolve": _resolver(machine, url, address, account),
        OBVIOUS: _obvious(machine),
    }
    constant = machine.application_server(FLOOR, "bench.constant:create_app")
    read = {
        FLOOR: Target("GET", f"{constant}/"),
        "GET /livez": Target("GET", f"{address}/livez"),
        "GET /api/auth/me": Target("GET", f"{address}/api/auth/me", [account]),
        "GET 50 keys": Target("GET", f"{address}/api/keys", [account]),
    }
    kv = key_value(machine)
    plan: dict[tuple[str, int], Callable[[], Target]] = {(KV, ALONE): kv, (post(first), ALONE): always(posts[first])}
    for count in clients:
        plan[KV, count] = kv
        plan |= {(label, count): always(target) for label, target in [*stored, *compared.items()]}
    return plan | {(label, few): always(target) for label, target in read.items()}


def fill(target: Target, count: int) -> None:
    """Send the first request of a target `count` times."""
    with httpx.Client(headers=dict(target.headers[0]), timeout=PATIENCE, verify=NO_TLS) as client:
        for _ in range(count):
            client.request(target.method, target.url, json=target.bodies[0]).raise_for_status()


def key_value(machine: Machine) -> Callable[[], Target]:
    """Mount Vault's KV v2, and return a function that returns the target that writes new keys there."""
    machine.ask_vault("POST", "/v1/sys/mounts/kv", {"type": "kv", "options": {"version": "2"}})
    address = machine.vault.address

    def is_mounted() -> bool:
        answer = httpx.post(f"{address}/v1/kv/data/first", headers=machine.root(), json={"data": {}}, verify=NO_TLS)
        return answer.is_success

    wait(is_mounted, "KV v2")
    return lambda: Target(
        "POST", f"{address}/v1/kv/data/{secrets.token_hex(6)}-{NUMBER}", [machine.root()], [{"data": NEW_KEY}]
    )


def _transit(machine: Machine) -> Target:
    value = base64.b64encode(b"x" * 48).decode()
    sealed = machine.ask_vault("POST", "/v1/transit/encrypt/keyman", {"plaintext": value, "context": value})
    body = {"ciphertext": sealed["data"]["ciphertext"], "context": value}
    return Target("POST", f"{machine.vault.address}/v1/transit/decrypt/keyman", [machine.root()], [body])


def _resolver(machine: Machine, url: URL, management: str, account: Mapping[str, str]) -> Target:
    me = httpx.get(f"{management}/api/auth/me", headers=dict(account), timeout=PATIENCE, verify=NO_TLS).json()
    application = machine.application(url)
    address = machine.plane("resolver", url, plane="resolver")
    return Target("POST", f"{address}/v1/resolve", [application], [{"user_id": me["id"], "service": "OPENAI"}])


def _obvious(machine: Machine) -> Target:
    url, token = machine.postgres.create_database("obvious"), secrets.token_hex(16)
    asyncio.run(obvious.create_tables(make_url(url), token))
    address = machine.application_server(
        OBVIOUS,
        "bench.obvious:create_app",
        OBVIOUS_DATABASE=url,
        OBVIOUS_VAULT=machine.vault.address,
        OBVIOUS_VAULT_TOKEN=machine.vault.root_token.reveal(),
    )
    target = Target("POST", f"{address}/keys", [{"Authorization": f"Bearer {token}"}], [NEW_KEY])
    fill(target, 1)
    return target
