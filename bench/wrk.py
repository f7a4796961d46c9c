"""Sends load with wrk, and counts the processor time that the servers spend during it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import click

SCRIPT = Path(__file__).with_name("requests.lua")

NUMBER = "0000000000"
"""In a path, wrk puts a number that rises with each request in this place."""

SETTLED = 0.05
"""Seconds of processor time in half a second, below which servers count as idle."""

SETTLE_TIMEOUT = 15.0
"""Seconds to wait for that. A server may have housekeeping of its own."""

MILLISECONDS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}
TICKS = os.sysconf("SC_CLK_TCK")


class Target(NamedTuple):
    """The requests of one measurement, which wrk sends in turn. All have the same method, path and body type.

    `headers` and `bodies` are sent in turn together: the n-th body with the n-th headers.
    """

    method: str
    url: str
    headers: Sequence[Mapping[str, str]] = ({},)
    bodies: Sequence[object] = (None,)

    def requests(self) -> bytes:
        """Return the requests in the form that `requests.lua` reads."""
        count = max(len(self.headers), len(self.bodies))
        return b"".join(self._request(n) + b"\0" for n in range(count))

    def _request(self, number: int) -> bytes:
        parts = urlsplit(self.url)
        body = self.bodies[number % len(self.bodies)]
        content = b"" if body is None else json.dumps(body).encode()
        lines = [
            f"{self.method} {parts.path}{'?' if parts.query else ''}{parts.query} HTTP/1.1",
            f"Host: {parts.netloc}",
        ]
        lines += [f"{name}: {value}" for name, value in self.headers[number % len(self.headers)].items()]
        if body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
        return "\r\n".join([*lines, "", ""]).encode() + content


class Measured(NamedTuple):
    """The successful answers per second, their latencies in milliseconds, the number of refused requests, and the
    processor time per request of each server, in microseconds.
    """

    rate: float
    p50: float
    p99: float
    refused: int
    cpu: Mapping[str, float]


def require() -> None:
    """Raise ClickException, which says what to install, if wrk is missing."""
    if shutil.which("wrk") is None:
        raise click.ClickException("The program wrk is missing. On Debian, install it with: apt-get install wrk")


def measure(target: Target, clients: int, seconds: int, servers: Mapping[str, int], directory: Path) -> Measured:
    """Send requests with `clients` connections at a time. `servers` are process ids by name."""
    file = directory / "requests"
    file.write_bytes(target.requests())
    before = {name: cpu_seconds(pid) for name, pid in servers.items()}
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "30s", "--latency"]
    command += ["-s", str(SCRIPT), target.url, "--", str(file)]
    done = subprocess.run(  # noqa: S603  # the command is ours
        command, capture_output=True, text=True, check=False, timeout=seconds + 60
    )
    if done.returncode != 0:
        raise click.ClickException(f"wrk failed: {done.stderr.strip()}")
    used = {name: cpu_seconds(pid) - before[name] for name, pid in servers.items()}
    settle(servers)
    return parse(done.stdout, used)


def parse(output: str, used: Mapping[str, float]) -> Measured:
    """Read what wrk prints with `--latency`. `used` are seconds of processor time."""
    found = re.search(r"(\d+) requests in", output)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    if found is None or rate is None:
        raise click.ClickException("The output of wrk cannot be read. Another version of wrk may be installed.")
    count = int(found[1])
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    lost = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", output)
    unsuccessful = int(bad[1]) if bad else 0
    refused = unsuccessful + (sum(map(int, lost.groups())) if lost else 0)
    latency = {part: float(value) * MILLISECONDS[unit] for part, value, unit in _LATENCY.findall(output)}
    answered = max(count, 1)
    cpu = {name: 1e6 * seconds / answered for name, seconds in used.items()}
    return Measured(
        float(rate[1]) * (count - unsuccessful) / answered, latency.get("50", 0.0), latency.get("99", 0.0), refused, cpu
    )


_LATENCY = re.compile(r"^\s+(50|99)%\s+([\d.]+)(us|ms|s|m)$", re.MULTILINE)


def settle(servers: Mapping[str, int]) -> None:
    """Wait until the servers have finished what a measurement has left, so that the next one does not pay for it."""
    end = time.monotonic() + SETTLE_TIMEOUT
    while time.monotonic() < end:
        before = sum(map(cpu_seconds, servers.values()))
        time.sleep(0.5)
        if sum(map(cpu_seconds, servers.values())) - before < SETTLED:
            return


def cpu_seconds(pid: int) -> float:
    """Return the processor time of a process and its descendants, also of those that have ended and were waited for."""
    children: dict[int, list[int]] = {}
    ticks: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        # proc_pid_stat(5), counted from the third field: 4 is ppid, 14 to 17 are utime, stime, cutime and cstime.
        children.setdefault(int(fields[1]), []).append(int(entry.name))
        ticks[int(entry.name)] = sum(map(int, fields[11:15]))
    total, ahead = 0, [pid]
    while ahead:
        one = ahead.pop()
        total += ticks.get(one, 0)
        ahead += children.get(one, [])
    return total / TICKS
