"""One interface over both kinds of client, so that a test runs with and without asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, Literal

from keyman.client import AsyncKeyman, AsyncResolver, Keyman, Resolved, Resolver
from tests.support.http import Reply, answer

Kind = Literal["async", "sync"]


TOKEN = "km_0123456789abcdefghijABCDEFGHIJ0kzTqD"
"""A token of the right shape, for servers that do not check it."""

VALUE = "sk-cAnArYq7Rk2Lw9Xc4Vb6"

GIVEN = {"key_id": 1, "user_id": 7, "service": "OPENAI", "api_key": VALUE, "expires_at": None}

HERS: dict[str, Any] = {"user_id": 7, "service": "OPENAI"}
"""How GIVEN is asked for."""


def given(**changed: object) -> Reply:
    return answer({**GIVEN, **changed})


def problem(status: int, slug: str, detail: str = "So it is.", **headers: str) -> Reply:
    body = {"type": f"/problems/{slug}", "title": "Title", "status": status, "detail": detail, "request_id": "9f3c"}
    reply = answer(body, status)
    return Reply(status, reply.body, {"Content-Type": "application/problem+json", **headers})


class Asked:
    """A client of either kind."""

    def __init__(self, client: Any) -> None:
        self.client = client

    async def __call__(self, method: str, *arguments: Any, **named: Any) -> Any:
        ask = getattr(self.client, method)
        if isinstance(self.client, AsyncResolver | AsyncKeyman):
            return await ask(*arguments, **named)
        return await asyncio.to_thread(ask, *arguments, **named)

    async def resolve(self, **which: Any) -> Resolved:
        resolved: Resolved = await self("resolve", **(which or HERS))
        return resolved

    async def all(self, method: str, **named: Any) -> list[Any]:
        """A listing to its end."""
        listing = getattr(self.client, method)(**named)
        if isinstance(listing, Iterator):
            return await asyncio.to_thread(list, listing)
        return [item async for item in listing]


@asynccontextmanager
async def resolver(kind: Kind, url: str, token: str = TOKEN, **settings: Any) -> AsyncIterator[Asked]:
    if kind == "async":
        async with AsyncResolver(url, token, **settings) as client:
            yield Asked(client)
    else:
        with Resolver(url, token, **settings) as blocking:
            yield Asked(blocking)


@asynccontextmanager
async def keyman(kind: Kind, url: str, token: str = TOKEN, **settings: Any) -> AsyncIterator[Asked]:
    if kind == "async":
        async with AsyncKeyman(url, token, **settings) as client:
            yield Asked(client)
    else:
        with Keyman(url, token, **settings) as blocking:
            yield Asked(blocking)
