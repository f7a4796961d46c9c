"""The SDK of Anthropic."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import anthropic

from tests.planes.gateway.sdks.scenes import GATEWAY, HELLO, OTHER_KEY, TOKEN, USER, play, read, set_only

VARIABLES = ("ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_CUSTOM_HEADERS")
BASE_URL = f"{GATEWAY}/anthropic"


def client(kind: Any = anthropic.Anthropic, **changes: Any) -> Any:
    given = {"base_url": BASE_URL, "api_key": TOKEN, "max_retries": 0, "default_headers": USER}
    return kind(**{**given, **changes})


def ask(client: Any, **changes: Any) -> Any:
    return client.messages.create(**{"model": "claude-x", "max_tokens": 9, "messages": HELLO, **changes})


def open_stream(client: Any) -> Any:
    return client.messages.stream(model="claude-x", max_tokens=9, messages=HELLO)


def stream() -> list[str]:
    texts = list[str]()
    with open_stream(client()) as events:
        for text in events.text_stream:
            read(text, texts)
    return texts


def with_asyncio() -> list[object]:
    async def talk() -> list[object]:
        async with client(anthropic.AsyncAnthropic) as own:
            answer, texts = await ask(own), list[str]()
            async with open_stream(own) as events:
                async for text in events.text_stream:
                    read(text, texts)
        return [answer.content[0].text, texts]

    return asyncio.run(talk())


def too_many() -> object:
    own = client(api_key=os.environ["BUSY"])
    # Each stays open, because the provider does not send the next event.
    open_streams = [ask(own, model="held", stream=True) for _ in range(int(os.environ["CONCURRENCY"]))]
    try:
        return ask(own)
    finally:
        for each in open_streams:
            each.close()


def by_environment(**variables: str) -> object:
    set_only(VARIABLES, ANTHROPIC_BASE_URL=BASE_URL, **variables)
    return ask(anthropic.Anthropic()).content[0].text


if __name__ == "__main__":
    play(
        {
            "chat": lambda: ask(client()).content[0].text,
            "stream": stream,
            "a header of one request": lambda: ask(client(default_headers={}), extra_headers=USER).model,
            "retries": lambda: ask(client(max_retries=2), model="overloaded"),
            "asyncio": with_asyncio,
            "refused by the provider": lambda: ask(client(), model="refused"),
            "unknown user": lambda: ask(client(default_headers={"Keyman-User": "999"})),
            "no user": lambda: ask(client(default_headers={})),
            "path": client().messages.batches.list,
            "too many": too_many,
            "revoked": lambda: ask(client(api_key=os.environ["REVOKED"])),
            "a key in place of a token": lambda: ask(client(api_key=OTHER_KEY)),
            "provider down": lambda: ask(client(base_url=f"{GATEWAY}/down")),
            "setting missing": lambda: ask(client(base_url=f"{GATEWAY}/needs")),
            "environment": lambda: by_environment(ANTHROPIC_API_KEY=os.environ["PERSONAL"]),
            "environment with ANTHROPIC_AUTH_TOKEN": lambda: by_environment(
                ANTHROPIC_AUTH_TOKEN=os.environ["PERSONAL"]
            ),
            "environment of an application": lambda: by_environment(
                ANTHROPIC_API_KEY=TOKEN, ANTHROPIC_CUSTOM_HEADERS=f"Keyman-User: {USER['Keyman-User']}"
            ),
        }
    )
