"""The SDK of OpenAI."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import openai

from tests.planes.gateway.sdks.scenes import GATEWAY, HELLO, OTHER_KEY, TOKEN, USER, play, read, set_only

VARIABLES = ("OPENAI_BASE_URL", "OPENAI_API_KEY", "OPENAI_CUSTOM_HEADERS")


def client(kind: Any = openai.OpenAI, **changes: Any) -> Any:
    given = {"base_url": f"{GATEWAY}/openai/v1", "api_key": TOKEN, "max_retries": 0, "default_headers": USER}
    return kind(**{**given, **changes})


def ask(client: Any, **changes: Any) -> Any:
    return client.chat.completions.create(**{"model": "gpt-x", "messages": HELLO, **changes})


def chat() -> object:
    return ask(client()).choices[0].message.content


def stream() -> list[str]:
    texts = list[str]()
    for chunk in ask(client(), stream=True):
        read(chunk.choices[0].delta.content, texts)
    return texts


def with_asyncio() -> list[object]:
    async def talk() -> list[object]:
        async with client(openai.AsyncOpenAI) as own:
            answer, texts = await ask(own), list[str]()
            async for chunk in await ask(own, stream=True):
                read(chunk.choices[0].delta.content, texts)
        return [answer.choices[0].message.content, texts]

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


def by_environment(token: str, **variables: str) -> object:
    set_only(VARIABLES, OPENAI_BASE_URL=f"{GATEWAY}/openai/v1", OPENAI_API_KEY=token, **variables)
    return ask(openai.OpenAI()).choices[0].message.content


def azure(**changes: Any) -> Any:
    given = {"azure_endpoint": f"{GATEWAY}/azure-openai", "api_key": TOKEN, "api_version": "2026-01-01"}
    return openai.AzureOpenAI(**{**given, "max_retries": 0, "default_headers": USER, **changes})


def by_environment_of_azure() -> object:
    given = {"AZURE_OPENAI_ENDPOINT": f"{GATEWAY}/azure-openai", "AZURE_OPENAI_API_KEY": os.environ["PERSONAL"]}
    set_only(VARIABLES, **given, OPENAI_API_VERSION="2026-01-01")
    return ask(openai.AzureOpenAI()).choices[0].message.content


if __name__ == "__main__":
    play(
        {
            "chat": chat,
            "stream": stream,
            "asyncio": with_asyncio,
            "a header of one request": lambda: ask(client(default_headers={}), extra_headers=USER).model,
            "retries": lambda: ask(client(max_retries=2), model="overloaded"),
            "responses": lambda: client().responses.create(model="gpt-x", input="Hello").output_text,
            "models": lambda: [model.id for model in client().models.list()],
            "azure": lambda: ask(azure()).choices[0].message.content,
            "azure v1": lambda: ask(client(base_url=f"{GATEWAY}/azure-openai/openai/v1")).choices[0].message.content,
            "refused by the provider": lambda: ask(client(), model="refused"),
            "unknown user": lambda: ask(client(default_headers={"Keyman-User": "999"})),
            "no user": lambda: ask(client(default_headers={})),
            "path": client().files.list,
            "too many": too_many,
            "revoked": lambda: ask(client(api_key=os.environ["REVOKED"])),
            "a key in place of a token": lambda: ask(client(api_key=OTHER_KEY)),
            "provider down": lambda: ask(client(base_url=f"{GATEWAY}/down/v1")),
            "setting missing": lambda: ask(client(base_url=f"{GATEWAY}/needs/v1")),
            "environment": lambda: by_environment(os.environ["PERSONAL"]),
            "environment of an application": lambda: by_environment(
                TOKEN, OPENAI_CUSTOM_HEADERS=f"Keyman-User: {USER['Keyman-User']}"
            ),
            "environment of azure": by_environment_of_azure,
        }
    )
