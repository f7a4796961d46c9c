"""A load generator in its own process. It reads a job from standard input and writes the result, both as JSON."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from time import perf_counter
from typing import Any

import aiohttp
import uvloop

TIMEOUT = aiohttp.ClientTimeout(total=30)


async def load(job: dict[str, Any]) -> dict[str, Any]:
    """Send requests for `seconds` or until `most` answers, with `clients` that each wait for their answer.

    `bodies`, if given, are sent in turn. `p50` and `p99` are of the successful answers, in milliseconds.
    """
    answered, failed = 0, 0
    took: list[float] = []
    started = perf_counter()
    end = started + job["seconds"]
    connector = aiohttp.TCPConnector(limit=0)
    headers = job["headers"]
    bodies = itertools.cycle([body.encode() if body else None for body in job.get("bodies") or [job["body"]]])
    async with aiohttp.ClientSession(connector=connector, timeout=TIMEOUT, headers=headers) as session:

        async def client() -> None:
            nonlocal answered, failed
            while perf_counter() < end and answered + failed < job["most"]:
                asked = perf_counter()
                async with session.request(job["method"], job["url"], data=next(bodies)) as answer:
                    await answer.read()
                    if answer.status < 300:
                        answered += 1
                        took.append(perf_counter() - asked)
                    else:
                        failed += 1

        await asyncio.gather(*(client() for _ in range(job["clients"])))
    seconds = perf_counter() - started
    took.sort()
    p50, p99 = (1000 * took[int(len(took) * part)] if took else 0 for part in (0.5, 0.99))
    return {"answered": answered, "failed": failed, "seconds": seconds, "p50": p50, "p99": p99}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(uvloop.run(load(json.load(sys.stdin)))))
