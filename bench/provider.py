"""A provider on loopback that answers at once, or after some milliseconds: the first segment of the path says how many.

    .venv/bin/python -m bench.provider --port 9000

A request whose body has `"stream": true` is answered with EVENTS events, each written by itself.
"""

from __future__ import annotations

import asyncio
import json

import click
import uvloop
from aiohttp import web

EVENTS = 40
"""Events of a streamed answer, with the one that ends it."""

_MODEL = {"id": "chatcmpl-1", "created": 1, "model": "bench"}
ANSWER = json.dumps(
    {
        **_MODEL,
        "object": "chat.completion",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "word " * 40}}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 40, "total_tokens": 49},
    }
).encode()


def _event(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return b"data: %s\n\n" % json.dumps({**_MODEL, "object": "chat.completion.chunk", "choices": [choice]}).encode()


STREAM = [
    _event({"role": "assistant", "content": ""}),
    *[_event({"content": "word "})] * (EVENTS - 3),
    _event({}, "stop"),
    b"data: [DONE]\n\n",
]


async def _answer(request: web.Request) -> web.StreamResponse:
    body = await request.read()
    if delay := int(request.match_info["delay"]):
        await asyncio.sleep(delay / 1000)
    if b'"stream": true' not in body and b'"stream":true' not in body:
        return web.Response(body=ANSWER, content_type="application/json")
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for event in STREAM:
        await response.write(event)
        await asyncio.sleep(0)  # so that an event is a write, and a read on the other side
    await response.write_eof()
    return response


def create_app() -> web.Application:
    app = web.Application()
    app.router.add_post("/{delay:[0-9]+}/v1/chat/completions", _answer)
    return app


def serve(app: web.Application, port: int) -> None:
    """Serve an application on loopback with the event loop that keyman's workers have, until SIGTERM."""
    web.run_app(app, host="127.0.0.1", port=port, loop=uvloop.new_event_loop(), print=None, access_log=None)


@click.command()
@click.option("--port", type=int, required=True, help="On loopback.")
def main(port: int) -> None:
    """Serve the provider."""
    serve(create_app(), port)


if __name__ == "__main__":
    main()
