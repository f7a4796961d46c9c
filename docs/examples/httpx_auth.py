"""An `auth` for httpx that adds a user's key to each request, without asyncio and with a cache.

Use it with anything that takes an httpx client. The cache may still have a key that its owner has replaced. So if the
provider refuses a key, the example drops it from the cache, resolves it again and sends the request once more.
"""

import os
from collections.abc import Generator

import httpx

from keyman.client import Resolver

PROVIDER = os.environ.get("OPENAI_BASE_URL", "https://api.openai.com/v1")


class UsersKey(httpx.Auth):
    """Adds the key of one user to each request."""

    def __init__(self, resolver: Resolver, user_id: int) -> None:
        self._resolver = resolver
        self._user_id = user_id

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        self._add_key(request)
        answer = yield request
        if answer.status_code == 401:
            self._resolver.forget(user_id=self._user_id, service="OPENAI")
            self._add_key(request)
            yield request

    def _add_key(self, request: httpx.Request) -> None:
        key = self._resolver.resolve(user_id=self._user_id, service="OPENAI", purpose="List of models")
        request.headers["Authorization"] = f"Bearer {key.reveal()}"


with (
    Resolver(cache_ttl=30) as resolver,
    httpx.Client(base_url=PROVIDER, auth=UsersKey(resolver, user_id=1)) as provider,
):
    for _ in range(3):
        print(provider.get("/models").status_code)
