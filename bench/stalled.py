"""Measures a worker while many of its requests wait for a database that does not answer: its memory and its answers."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import click
import httpx

from bench.ratios import Ratio
from bench.servers import NEW_KEY, UNLIMITED, Machine
from keyman.processes import raise_file_limit
from tests.support.cli import children
from tests.support.http import NO_TLS
from tests.support.waiting import freeze

MEGABYTES = 400
"""The most memory that the worker may use."""

AT_ONCE = 1.0
"""Seconds in which a request gets its answer that does not wait for the database."""

ARRIVAL = 2.0
"""Seconds until all requests have arrived. The first ones are refused after five: the database has not answered."""


def run(machine: Machine, connections: int) -> list[Ratio]:
    """Fill the queue, ask once more, and return the memory and the times of two answers."""
    url = machine.database("stalled")
    headers = machine.account(url)
    address = machine.plane("worker", url, settings={**UNLIMITED, "KEYMAN_MAX_QUEUE": str(connections)})
    [worker] = machine.workers("worker")
    before = resident(worker)
    raise_file_limit(connections + 256)
    stopped = [machine.postgres.pid, *children(machine.postgres.pid)]
    with ExitStack() as stack:
        for pid in stopped:
            stack.callback(os.kill, pid, signal.SIGCONT)
            freeze(pid)
        waiting = [stack.enter_context(_waiting(address, headers)) for _ in range(connections)]
        time.sleep(ARRIVAL)
        open_now = sum(not _has_answer(one) for one in waiting)
        refused, refused_in = _ask("POST", f"{address}/api/keys", headers)
        alive, alive_in = _ask("GET", f"{address}/livez", {})
        used = resident(worker)
    click.echo(f"{open_now:,} of {connections:,} connections wait. One more request gets {refused}, /livez {alive}.")
    click.echo(f"The worker used {before:.0f} MB before and {used:.0f} MB while they waited.\n")
    if (open_now, refused, alive) != (connections, 503, 200):
        raise click.ClickException("The queue was not full, or an answer was not the expected one.")
    return [
        Ratio(f"MB of a worker, {connections:,} connections that wait", used, MEGABYTES, is_at_most=True),
        Ratio("seconds until 503 past KEYMAN_MAX_QUEUE", refused_in, AT_ONCE, is_at_most=True),
        Ratio("seconds until /livez answers 200 while they wait", alive_in, AT_ONCE, is_at_most=True),
    ]


def _waiting(address: str, headers: dict[str, str]) -> socket.socket:
    """Open a connection and send a request to store a key."""
    parts = urlsplit(address)
    body = json.dumps(NEW_KEY)
    fields = {"Host": parts.netloc, "Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
    lines = ["POST /api/keys HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    connection = socket.create_connection((parts.hostname or "", parts.port or 0), timeout=10)
    connection.sendall("\r\n".join([*lines, "", body]).encode())
    return connection


def _has_answer(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    return True


def _ask(method: str, url: str, headers: dict[str, str]) -> tuple[int, float]:
    """Return the status of an answer, and the seconds until it came."""
    body = json.dumps(NEW_KEY) if method == "POST" else None
    given = {**headers, "Content-Type": "application/json"} if body else headers
    started = time.monotonic()
    answer = httpx.request(method, url, content=body, headers=given, timeout=30, verify=NO_TLS)
    return answer.status_code, time.monotonic() - started


def resident(pid: int) -> float:
    """Return the memory of a process in MB."""
    found = re.search(r"^VmRSS:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0
