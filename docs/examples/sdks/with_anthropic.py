"""The SDK of Anthropic with a key from the resolver for each request, with and without asyncio. For anthropic 2.

One client of the SDK serves all users: `with_options` gives a request the key of its user, and shares the connections.
"""

import asyncio
import os

from anthropic import Anthropic, AsyncAnthropic, AuthenticationError

from keyman.client import AsyncResolver, NotFound, Resolver

USER = int(os.environ.get("USER_ID", "1"))
MODEL = "claude-sonnet-5"


def answer(resolver: Resolver, sdk: Anthropic, user_id: int, question: str) -> str:
    try:
        key = resolver.resolve(user_id=user_id, service="ANTHROPIC", purpose="Answer to a chat")
    except NotFound:
        return "Add an Anthropic key in Settings, then try again."
    own = sdk.with_options(api_key=key.reveal())
    try:
        message = own.messages.create(model=MODEL, max_tokens=200, messages=[{"role": "user", "content": question}])
    except AuthenticationError:
        resolver.report(key, "refused")  # the owner of the key sees it on the pages
        return "Anthropic does not accept your key. Replace it in Settings."
    return "".join(part.text for part in message.content if part.type == "text")


async def answer_async(resolver: AsyncResolver, sdk: AsyncAnthropic, user_id: int, question: str) -> str:
    key = await resolver.resolve(user_id=user_id, service="ANTHROPIC", purpose="Answer to a chat")
    own = sdk.with_options(api_key=key.reveal())
    message = await own.messages.create(model=MODEL, max_tokens=200, messages=[{"role": "user", "content": question}])
    return "".join(part.text for part in message.content if part.type == "text")


async def main() -> None:
    # The SDK needs a key when it is created. No request uses this one.
    async with AsyncResolver() as resolver, AsyncAnthropic(api_key="none") as sdk:
        print(
            await asyncio.gather(*(answer_async(resolver, sdk, USER, question) for question in ("Hello", "And now?")))
        )


if __name__ == "__main__":
    with Resolver() as resolver, Anthropic(api_key="none") as sdk:
        print(answer(resolver, sdk, USER, "Hello"))
        print(answer(resolver, sdk, 999, "Hello"))
    asyncio.run(main())
