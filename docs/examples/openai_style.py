"""An SDK that asks the resolver for a key before each request, with asyncio.

`openai.AsyncOpenAI` takes a coroutine function as `api_key` and awaits it before each request (`openai.OpenAI` takes a
function; both since openai 1.106). `Chat` below stands for the SDK, so that you can run this example without
one. In your application, write instead:

    sdk = openai.AsyncOpenAI(api_key=key_of(resolver, user_id))
"""

import asyncio
import os
from collections.abc import Awaitable, Callable

import httpx

from keyman.client import AsyncResolver

PROVIDER = os.environ.get("OPENAI_BASE_URL", "https://api.openai.com/v1")


def key_of(resolver: AsyncResolver, user_id: int) -> Callable[[], Awaitable[str]]:
    """Return the function that the SDK calls before each request. It reveals the value and keeps nothing."""

    async def api_key() -> str:
        resolved = await resolver.resolve(user_id=user_id, service="OPENAI", purpose="Answer to a chat")
        return resolved.reveal()

    return api_key


class Chat:
    def __init__(self, *, api_key: Callable[[], Awaitable[str]], base_url: str) -> None:
        self._api_key = api_key
        self._client = httpx.AsyncClient(base_url=base_url)

    async def complete(self, text: str) -> str:
        headers = {"Authorization": f"Bearer {await self._api_key()}"}
        body = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": text}]}
        answer = await self._client.post("/chat/completions", json=body, headers=headers)
        answer.raise_for_status()
        reply: str = answer.json()["choices"][0]["message"]["content"]
        return reply

    async def close(self) -> None:
        await self._client.aclose()


async def main() -> None:
    async with AsyncResolver() as resolver:
        sdk = Chat(api_key=key_of(resolver, user_id=1), base_url=PROVIDER)
        for reply in await asyncio.gather(sdk.complete("Hello"), sdk.complete("Hello again")):
            print(reply)
        await sdk.close()


asyncio.run(main())
