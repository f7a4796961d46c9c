"""A proxy that does nothing but pass on: the least that a gateway in Python with aiohttp costs.

PROVIDER=http://127.0.0.1:9000 .venv/bin/python -m bench.bare_proxy --port 9001
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import aiohttp
import click
from aiohttp import web

from bench.provider import serve

_SESSION = web.AppKey("session", aiohttp.ClientSession)
_NOT_PASSED = frozenset({"host", "content-length", "transfer-encoding", "connection", "date", "server"})


def create_app(provider: str) -> web.Application:
    """Return a proxy to the provider at this address."""

    async def session(app: web.Application) -> AsyncIterator[None]:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), auto_decompress=False) as opened:
            app[_SESSION] = opened
            yield

    async def pass_on(request: web.Request) -> web.StreamResponse:
        fields = {name: value for name, value in request.headers.items() if name.lower() not in _NOT_PASSED}
        body = await request.read()
        async with request.app[_SESSION].request(
            request.method, f"{provider}{request.path_qs}", headers=fields, data=body
        ) as answer:
            returned = {name: value for name, value in answer.headers.items() if name.lower() not in _NOT_PASSED}
            response = web.StreamResponse(status=answer.status, headers=returned)
            response.content_length = answer.content_length
            await response.prepare(request)
            async for part in answer.content.iter_any():
                await response.write(part)
            await response.write_eof()
            return response

    app = web.Application()
    app.cleanup_ctx.append(session)
    app.router.add_route("*", "/{rest:.*}", pass_on)
    return app


@click.command()
@click.option("--port", type=int, required=True, help="On loopback.")
def main(port: int) -> None:
    """Serve a proxy to the address in the variable PROVIDER."""
    serve(create_app(os.environ["PROVIDER"]), port)


if __name__ == "__main__":
    main()
