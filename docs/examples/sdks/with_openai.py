"""The SDK of OpenAI with a key from the resolver for each request, with and without asyncio. For openai 3.

One client of the SDK serves all users: `with_options` gives a request the key of its user, and shares the connections.
"""

import asyncio
import os

from openai import AsyncOpenAI, AuthenticationError, OpenAI

from keyman.client import AsyncResolver, NotFound, Resolver

USER = int(os.environ.get("USER_ID", "1"))
MODEL = "gpt-5-mini"


def answer(resolver: Resolver, sdk: OpenAI, user_id: int, question: str) -> str:
    try:
        key = resolver.resolve(user_id=user_id, service="OPENAI", purpose="Answer to a chat")
    except NotFound:
        return "Add an OpenAI key in Settings, then try again."
    own = sdk.with_options(api_key=key.reveal())
    try:
        completion = own.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": question}])
    except AuthenticationError:
        resolver.report(key, "refused")  # the owner of the key sees it on the pages
        return "OpenAI does not accept your key. Replace it in Settings."
    return completion.choices[0].message.content or ""


async def answer_async(resolver: AsyncResolver, sdk: AsyncOpenAI, user_id: int, question: str) -> str:
    key = await resolver.resolve(user_id=user_id, service="OPENAI", purpose="Answer to a chat")
    own = sdk.with_options(api_key=key.reveal())
    completion = await own.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": question}])
    return completion.choices[0].message.content or ""


def for_one_user(resolver: Resolver, user_id: int) -> OpenAI:
    """Return a client that asks for the key before each request, for code that makes many requests for one user."""

    def api_key() -> str:
        return resolver.resolve(user_id=user_id, service="OPENAI", purpose="Answer to a chat").reveal()

    return OpenAI(api_key=api_key)


async def main() -> None:
    # The SDK needs a key when it is created. No request uses this one.
    async with AsyncResolver() as resolver, AsyncOpenAI(api_key="none") as sdk:
        print(
            await asyncio.gather(*(answer_async(resolver, sdk, USER, question) for question in ("Hello", "And now?")))
        )


if __name__ == "__main__":
    with Resolver() as resolver, OpenAI(api_key="none") as sdk:
        print(answer(resolver, sdk, USER, "Hello"))
        print(answer(resolver, sdk, 999, "Hello"))
        with for_one_user(resolver, USER) as own:
            completion = own.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Hello"}])
            print(completion.choices[0].message.content)
    asyncio.run(main())
