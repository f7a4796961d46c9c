"""The SDK of Google, google-genai."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from google import genai

from tests.planes.gateway.sdks.scenes import GATEWAY, OTHER_KEY, TOKEN, USER, play, read, set_only

VARIABLES = ("GOOGLE_GEMINI_BASE_URL", "GOOGLE_API_KEY", "GEMINI_API_KEY")
BASE_URL = f"{GATEWAY}/google"


def client(base_url: str = BASE_URL, token: str = TOKEN, headers: dict[str, str] = USER) -> Any:
    return genai.Client(api_key=token, http_options={"base_url": base_url, "headers": headers})


def ask(client: Any, model: str = "gemini-x") -> Any:
    return client.models.generate_content(model=model, contents="Hello").text


def stream() -> list[str]:
    own, texts = client(), list[str]()  # a client that is not kept is closed
    for chunk in own.models.generate_content_stream(model="gemini-x", contents="Hello"):
        read(chunk.text, texts)
    return texts


def with_asyncio() -> list[object]:
    async def talk() -> list[object]:
        own, texts = client().aio, list[str]()
        answer = await own.models.generate_content(model="gemini-x", contents="Hello")
        async for chunk in await own.models.generate_content_stream(model="gemini-x", contents="Hello"):
            read(chunk.text, texts)
        return [answer.text, texts]

    return asyncio.run(talk())


def for_one_request() -> object:
    config = {"http_options": {"headers": USER}}
    own = client(headers={})
    return own.models.generate_content(model="gemini-x", contents="Hello", config=config).model_version


def too_many() -> object:
    own = client(token=os.environ["BUSY"])
    # Each stays open, because the provider does not send the next event.
    held = {"model": "held", "contents": "Hello"}
    open_streams = [own.models.generate_content_stream(**held) for _ in range(int(os.environ["CONCURRENCY"]))]
    for each in open_streams:
        next(each)
    return ask(own)


def list_files() -> object:
    own = client()
    return list(own.files.list())


def by_environment(name: str) -> object:
    set_only(VARIABLES, **{name: os.environ["PERSONAL"]}, GOOGLE_GEMINI_BASE_URL=BASE_URL)
    return ask(genai.Client())


if __name__ == "__main__":
    play(
        {
            "chat": lambda: ask(client()),
            "stream": stream,
            "a header of one request": for_one_request,
            "retries": lambda: ask(client(), "overloaded"),
            "asyncio": with_asyncio,
            "refused by the provider": lambda: ask(client(), "refused"),
            "unknown user": lambda: ask(client(headers={"Keyman-User": "999"})),
            "no user": lambda: ask(client(headers={})),
            "path": list_files,
            "too many": too_many,
            "revoked": lambda: ask(client(token=os.environ["REVOKED"])),
            "a key in place of a token": lambda: ask(client(token=OTHER_KEY)),
            "provider down": lambda: ask(client(f"{GATEWAY}/down")),
            "setting missing": lambda: ask(client(f"{GATEWAY}/needs")),
            "environment": lambda: by_environment("GEMINI_API_KEY"),
            "environment with GOOGLE_API_KEY": lambda: by_environment("GOOGLE_API_KEY"),
        }
    )
