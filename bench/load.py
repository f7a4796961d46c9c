"""A load generator in a process of its own: a job on standard input, what came of it on standard output, as JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from time import perf_counter
from typing import Any

import aiohttp
import uvloop

TIMEOUT = aiohttp.ClientTimeout(total=30)


async def load(job: dict[str, Any]) -> dict[str, Any]:
    """Ask for `seconds` or `most` answers, whichever is first, with so many `clients` that each wait for theirs."""
    answered, failed = 0, 0
    started = perf_counter()
    end = started + job["seconds"]
    connector = aiohttp.TCPConnector(limit=0)
    headers, body = job["headers"], job["body"].encode() if job["body"] else None
    async with aiohttp.ClientSession(connector=connector, timeout=TIMEOUT, headers=headers) as session:

        async def client() -> None:
            nonlocal answered, failed
            while perf_counter() < end and answered + failed < job["most"]:
                async with session.request(job["method"], job["url"], data=body) as answer:
                    await answer.read()
                    if answer.status < 300:
                        answered += 1
                    else:
                        failed += 1

        await asyncio.gather(*(client() for _ in range(job["clients"])))
    return {"answered": answered, "failed": failed, "seconds": perf_counter() - started}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(uvloop.run(load(json.load(sys.stdin)))))
