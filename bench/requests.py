"""Measures what requests to the management plane cost: CPU time of the worker, compared with bare Litestar.

    .venv/bin/python -m bench.requests [--requests 4000] [--rounds 3] [--log-level info]

Bare Litestar answers a constant, on the same server and in the same run. keyman has a PostgreSQL. Between machines,
compare only the ratios: the CPU time of bare Litestar's answer divided by that of the request. The best round of each
counts, because other programs on the machine can only add to it.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click
import httpx
from sqlalchemy.engine import make_url

from bench.throughput import JSON, NEW_KEY, Target, _account, _provisioned, _variables
from keyman.dev import embedded
from tests.support.cli import environment, serve
from tests.support.database import postgres_server
from tests.support.http import free_port
from tests.support.waiting import until

CLIENTS = 32
SECONDS = 20.0
"""Seconds of one measurement at most."""

FLOOR = """
from litestar import Litestar, get


@get("/", sync_to_thread=False)
def constant() -> dict[str, str]:
    return {"status": "ok"}


app = Litestar([constant], logging_config=None, openapi_config=None)
"""
"""The application that answers a constant. It is the one that docs/reference/performance.md compares with."""


@click.command()
@click.option("--requests", default=4000, show_default=True, help="In each measurement.")
@click.option("--rounds", default=3, show_default=True, help="Measurements of each request.")
@click.option("--log-level", default="info", show_default=True, help="KEYMAN_LOG_LEVEL of the plane.")
@click.option("--workers", default=1, show_default=True, help="With more than one, metrics are shared in files.")
def main(requests: int, rounds: int, log_level: str, workers: int) -> None:
    """Print a table of the requests: CPU time, and how many of them bare Litestar's answer costs."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        vault = asyncio.run(embedded.start(directory / "vault"))
        stack.callback(vault.close)
        settings = asyncio.run(_provisioned(vault))
        server = stack.enter_context(postgres_server(durable=True, log_statements=False))
        url = make_url(server.create_database("bench"))
        token = asyncio.run(_account(url))
        variables = {**_variables(url, settings), "KEYMAN_LOG_LEVEL": log_level}
        env = environment(**variables, MARK=str(directory))
        running = stack.enter_context(serve(env, directory / "plane", "--workers", str(workers)))
        floor, floor_url = stack.enter_context(_floor(directory))
        headers = {"Authorization": f"Bearer {token}"}
        for _ in range(50):
            httpx.post(f"{running.url}/api/keys", headers=headers | JSON, content=NEW_KEY).raise_for_status()
        targets = {
            "bare Litestar, a constant": (floor, Target("GET", floor_url, {})),
            "GET /livez": (running.live.pid, Target("GET", f"{running.url}/livez", {})),
            "GET /api/auth/me": (running.live.pid, Target("GET", f"{running.url}/api/auth/me", headers)),
            "GET a page of 50 keys": (running.live.pid, Target("GET", f"{running.url}/api/keys", headers)),
            "POST a key": (
                running.live.pid,
                Target("POST", f"{running.url}/api/keys", headers | JSON, NEW_KEY),
            ),
        }
        _print(targets, requests, rounds)


def _print(targets: dict[str, tuple[int, Target]], requests: int, rounds: int) -> None:
    load = os.getloadavg()[0]
    best: dict[str, float] = {}
    for number in range(rounds + 1):
        for label, (pid, target) in targets.items():
            spent = _cost(pid, target, requests if number else 200)
            if number:  # the first round only warms up
                best[label] = min(spent, best.get(label, spent))
    click.echo(f"Load of the machine before: {load:.1f} on {os.cpu_count()} processors\n")
    click.echo("| request | CPU µs | bare Litestar ÷ this |\n|---|---|---|")
    whole = next(iter(best.values()))
    for label, spent in best.items():
        click.echo(f"| {label} | {spent:.0f} | {whole / spent:.3f} |")


def _cost(pid: int, target: Target, requests: int) -> float:
    """Return the CPU time of a process and its descendants for one request, in microseconds."""
    job = {**target._asdict(), "clients": CLIENTS, "seconds": SECONDS, "most": requests}
    before = _cpu_seconds(pid)
    done = subprocess.run(
        [sys.executable, "-m", "bench.load"],
        cwd=Path(__file__).parent.parent,
        input=json.dumps(job).encode(),
        capture_output=True,
        check=True,
        timeout=SECONDS + 60,
    )
    result: dict[str, float] = json.loads(done.stdout)
    if result["failed"]:
        raise click.ClickException(f"{result['failed']} requests to {target.url} failed")
    return 1_000_000 * (_cpu_seconds(pid) - before) / result["answered"]


def _cpu_seconds(of: int) -> float:
    """Return the CPU time that a process and its living descendants have used, from /proc."""
    spent: dict[int, float] = {}
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has ended
            spent[int(entry.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    waiting, total = [of], 0.0
    while waiting:
        pid = waiting.pop()
        total += spent.get(pid, 0.0)
        waiting += children.get(pid, [])
    return total


@contextmanager
def _floor(directory: Path) -> Iterator[tuple[int, str]]:
    """Serve the constant as `keyman serve` serves a plane. Returns the id of the process, and the URL."""
    (directory / "floor.py").write_text(FLOOR)
    port = free_port()
    program = Path(sys.executable).with_name("granian")
    options = ("--interface", "asgi", "--loop", "uvloop", "--no-ws", "--log-level", "error", "--port", str(port))
    process = subprocess.Popen([program, *options, "floor:app"], cwd=directory)  # noqa: S603  # fixed arguments
    url = f"http://127.0.0.1:{port}/"
    try:
        until(lambda: _answers(url), "the floor")
        yield process.pid, url
    finally:
        process.terminate()
        process.wait(10)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).is_success
    except httpx.TransportError:
        return False


if __name__ == "__main__":
    main()
