"""LiteLLM as a library, with the formats of three providers."""

from __future__ import annotations

import asyncio
import os
from typing import Any

# Read when it is imported: without it, LiteLLM downloads a list of prices.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm

from tests.planes.gateway.sdks.scenes import GATEWAY, HELLO, OTHER_KEY, TOKEN, USER, play, read, set_only

litellm.suppress_debug_info = True
VARIABLES = ("OPENAI_BASE_URL", "OPENAI_API_KEY", "ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY", "GEMINI_API_BASE")
BASES = {
    "openai/gpt-x": f"{GATEWAY}/openai/v1",
    "anthropic/claude-x": f"{GATEWAY}/anthropic",
    "gemini/gemini-x": f"{GATEWAY}/google/v1beta",
}


def given(model: str, **changes: Any) -> dict[str, Any]:
    # LiteLLM keeps connections for two minutes, the gateway for five seconds: one could end while it is used again.
    litellm.in_memory_llm_clients_cache.flush_cache()
    own = {"model": model, "api_base": BASES.get(model), "api_key": TOKEN, "extra_headers": USER, "num_retries": 0}
    return {"messages": HELLO, "max_retries": 0, **own, **changes}


def ask(model: str = "openai/gpt-x", **changes: Any) -> object:
    return litellm.completion(**given(model, **changes)).choices[0].message.content


def stream(model: str) -> list[str]:
    texts = list[str]()
    for chunk in litellm.completion(**given(model, stream=True)):
        read(chunk.choices[0].delta.content, texts)
    return texts


def with_asyncio(model: str) -> list[object]:
    async def talk() -> list[object]:
        answer, texts = await litellm.acompletion(**given(model)), list[str]()
        async for chunk in await litellm.acompletion(**given(model, stream=True)):
            read(chunk.choices[0].delta.content, texts)
        return [answer.choices[0].message.content, texts]

    return asyncio.run(talk())


def too_many() -> object:
    busy = {"api_base": BASES["openai/gpt-x"], "api_key": os.environ["BUSY"]}
    # Each stays open, because the provider does not send the next event.
    open_streams = [
        litellm.completion(**given("openai/held", stream=True, **busy)) for _ in range(int(os.environ["CONCURRENCY"]))
    ]
    for each in open_streams:
        next(each)
    return ask(**busy)


def by_environment(model: str, **variables: str) -> object:
    set_only(VARIABLES, **variables)
    return litellm.completion(model=model, messages=HELLO).choices[0].message.content


if __name__ == "__main__":
    play(
        {
            **{f"chat: {model}": lambda model=model: ask(model) for model in BASES},  # type: ignore[misc]
            **{f"stream: {model}": lambda model=model: stream(model) for model in BASES},  # type: ignore[misc]
            **{f"asyncio: {model}": lambda model=model: with_asyncio(model) for model in BASES},  # type: ignore[misc]
            "refused by the provider": lambda: ask("openai/refused", api_base=BASES["openai/gpt-x"]),
            **{
                f"unknown user: {model}": lambda model=model: ask(model, extra_headers={"Keyman-User": "999"})  # type: ignore[misc]
                for model in BASES
            },
            "no user": lambda: ask(extra_headers={}),
            "path": lambda: litellm.file_list(
                custom_llm_provider="openai", api_base=BASES["openai/gpt-x"], api_key=TOKEN, extra_headers=USER
            ),
            "too many": too_many,
            "revoked": lambda: ask(api_key=os.environ["REVOKED"]),
            "a key in place of a token": lambda: ask(api_key=OTHER_KEY),
            "provider down": lambda: ask(api_base=f"{GATEWAY}/down/v1"),
            "setting missing": lambda: ask(api_base=f"{GATEWAY}/needs/v1"),
            "environment of openai": lambda: by_environment(
                "openai/gpt-x", OPENAI_BASE_URL=BASES["openai/gpt-x"], OPENAI_API_KEY=os.environ["PERSONAL"]
            ),
            "environment of anthropic": lambda: by_environment(
                "anthropic/claude-x",
                ANTHROPIC_BASE_URL=BASES["anthropic/claude-x"],
                ANTHROPIC_API_KEY=os.environ["PERSONAL"],
            ),
            "environment of gemini": lambda: by_environment(
                "gemini/gemini-x", GEMINI_API_BASE=BASES["gemini/gemini-x"], GEMINI_API_KEY=os.environ["PERSONAL"]
            ),
        }
    )
