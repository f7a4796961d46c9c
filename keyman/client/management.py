"""The client of the management plane: a user's own keys and audit log, for a script with a personal access token."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from datetime import datetime
from types import TracebackType
from typing import Self, TypeVar

import httpx
from msgspec import UNSET, UnsetType

from keyman.client import calls
from keyman.client.calls import Page
from keyman.client.endpoint import DEFAULT_TIMEOUT, Endpoint, as_secret, find_token, find_url
from keyman.client.errors import ClientError
from keyman.client.exchange import Call
from keyman.client.shapes import Application, AuditEntry, Key, KeyStatus, NewKey, Service, Sort, Verdict
from keyman.client.wire import AsyncWire, Wire
from keyman.secret import Secret

T = TypeVar("T")

URL = "KEYMAN_URL"
TOKEN = "KEYMAN_TOKEN"  # noqa: S105  # the variable's name


class Keyman:
    """The client for code without asyncio. Threads may share one.

    `url` and `token` default to KEYMAN_URL and KEYMAN_TOKEN (or KEYMAN_TOKEN_FILE). `timeout` is in seconds, for a
    whole call including retries; a listing makes one call per page. Raises ValueError for invalid settings.

    `get`, `add`, `replace`, `change` and `check` return a Key with its ETag. If you pass such a Key to a method, the
    change is only made if nobody has changed the key since; otherwise the method raises PreconditionFailed. With an id,
    or a Key of a listing, the last write wins.

    Every method raises ClientError. After Unreachable or DeadlineExceeded, it is not known whether a change was made.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | Secret | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        ca_file: str | os.PathLike[str] | None = None,
        allow_http: bool = False,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        token, file = find_token(token, TOKEN)
        endpoint = Endpoint(find_url(url, URL), token, timeout, allow_http=allow_http, token_file=file)
        self._wire = Wire(endpoint, ca_file, transport)

    def __repr__(self) -> str:
        return f"<Keyman at {self._wire.endpoint.base}>"

    def keys(
        self,
        *,
        service: str | None = None,
        status: KeyStatus | None = None,
        check: Verdict | None = None,
        q: str | None = None,
        sort: Sort | None = None,
    ) -> Iterator[Key]:
        """List keys, newest first: by service, status or verdict of the last check, or with `q` in name, service or
        last characters.

        `sort` is `created`, `name` or `used`, with `-` in front for a descending order. Pages are fetched as needed.
        """
        return self._all(lambda cursor: calls.list_keys(service, status, check, q, sort, cursor))

    def count(
        self,
        *,
        service: str | None = None,
        status: KeyStatus | None = None,
        check: Verdict | None = None,
        q: str | None = None,
    ) -> int:
        """Return how many keys `keys` lists with these arguments."""
        return self._wire.ask(calls.count_keys(service, status, check, q))

    def get(self, key_id: int) -> Key:
        return self._wire.ask(calls.get_key(key_id))

    def add(
        self,
        service: str,
        api_key: str | Secret,
        *,
        name: str | None = None,
        expires_at: datetime | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> Key:
        """Store a key. Retries do not store it twice."""
        api_key = as_secret(api_key)
        return self._wire.ask(calls.add_key(service, api_key, name, expires_at, settings))

    def add_all(self, keys: Iterable[NewKey]) -> list[Key | ClientError]:
        """Store 1 to 50 keys in one call, and return for each, in order, the Key or the error that says what is wrong.

        What is wrong with one of them does not stop the others. The method raises an error only if none is stored.
        Retries store no key twice.
        """
        return self._wire.ask(calls.add_keys(keys))

    def replace(
        self,
        key: Key | int,
        api_key: str | Secret,
        *,
        name: str | UnsetType | None = UNSET,
        expires_at: datetime | UnsetType | None = UNSET,
        settings: Mapping[str, str] | UnsetType = UNSET,
    ) -> Key:
        """Replace the value. What you leave out stays, but an expiry that has passed is cleared; None clears a name or
        expiry. `settings` replace the stored ones as a whole.
        """
        api_key = as_secret(api_key)
        return self._wire.ask(calls.replace_key(key, api_key, name, expires_at, settings))

    def change(
        self,
        key: Key | int,
        *,
        name: str | UnsetType | None = UNSET,
        expires_at: datetime | UnsetType | None = UNSET,
        disabled: bool | UnsetType = UNSET,
        settings: Mapping[str, str] | UnsetType = UNSET,
        default: bool | UnsetType = UNSET,
    ) -> Key:
        """Change the name, expiry, state or settings of a key, or whether it is the default of its service.

        None clears a name or expiry; `disabled` pauses or resumes the key. `settings` replace the stored ones as a
        whole; those that decide where the key is sent can change only in `replace`. A new default replaces the one
        before; applications get it as long as it is active, and otherwise the newest active key.
        """
        return self._wire.ask(calls.change_key(key, name, expires_at, disabled, settings, default))

    def check(self, key: Key | int) -> Key:
        """Have the provider asked whether a key works, and return the key with the verdict as its `check`.

        The provider has 8 seconds for its answer. Raises RateLimited if the key was checked in the last 10 seconds, or
        too many were, and Conflict if keyman has no live checks.
        """
        return self._wire.ask(calls.check_key(key))

    def delete(self, key: Key | int) -> None:
        self._wire.ask(calls.delete_key(key))

    def services(self) -> list[Service]:
        """List the services of the catalogue."""
        return self._wire.ask(calls.list_services())

    def applications(self) -> list[Application]:
        """List the applications that may use your keys, by name."""
        return self._wire.ask(calls.list_applications())

    def revoke(self) -> None:
        """Revoke the token of this client. It stops working at once, so every later call raises Unauthenticated."""
        self._wire.ask(calls.revoke_token())

    def audit(
        self, *, action: str | None = None, since: datetime | None = None, until: datetime | None = None
    ) -> Iterator[AuditEntry]:
        """List your audit log, newest first: entries of one action, from `since` on, before `until`.

        The token needs the scope `audit:read`.
        """
        return self._all(lambda cursor: calls.list_audit(action, since, until, cursor))

    def _all(self, page_at: Callable[[str | None], Call[Page[T]]]) -> Iterator[T]:
        page = self._wire.ask(page_at(None))
        yield from page.items
        while page.cursor is not None:
            page = self._wire.ask(page_at(page.cursor))
            yield from page.items

    def close(self) -> None:
        """Close the connections. A call then raises ClientClosed."""
        self._wire.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()


class AsyncKeyman:
    """The same client for asyncio. Each event loop that uses it has connections of its own."""

    def __init__(
        self,
        url: str | None = None,
        token: str | Secret | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT,  # of a whole call, so that callers need no asyncio.timeout
        ca_file: str | os.PathLike[str] | None = None,
        allow_http: bool = False,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        token, file = find_token(token, TOKEN)
        endpoint = Endpoint(find_url(url, URL), token, timeout, allow_http=allow_http, token_file=file)
        self._wire = AsyncWire(endpoint, ca_file, transport)

    def __repr__(self) -> str:
        return f"<AsyncKeyman at {self._wire.endpoint.base}>"

    def keys(
        self,
        *,
        service: str | None = None,
        status: KeyStatus | None = None,
        check: Verdict | None = None,
        q: str | None = None,
        sort: Sort | None = None,
    ) -> AsyncIterator[Key]:
        return self._all(lambda cursor: calls.list_keys(service, status, check, q, sort, cursor))

    async def count(
        self,
        *,
        service: str | None = None,
        status: KeyStatus | None = None,
        check: Verdict | None = None,
        q: str | None = None,
    ) -> int:
        return await self._wire.ask(calls.count_keys(service, status, check, q))

    async def get(self, key_id: int) -> Key:
        return await self._wire.ask(calls.get_key(key_id))

    async def add(
        self,
        service: str,
        api_key: str | Secret,
        *,
        name: str | None = None,
        expires_at: datetime | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> Key:
        api_key = as_secret(api_key)
        return await self._wire.ask(calls.add_key(service, api_key, name, expires_at, settings))

    async def add_all(self, keys: Iterable[NewKey]) -> list[Key | ClientError]:
        return await self._wire.ask(calls.add_keys(keys))

    async def replace(
        self,
        key: Key | int,
        api_key: str | Secret,
        *,
        name: str | UnsetType | None = UNSET,
        expires_at: datetime | UnsetType | None = UNSET,
        settings: Mapping[str, str] | UnsetType = UNSET,
    ) -> Key:
        api_key = as_secret(api_key)
        return await self._wire.ask(calls.replace_key(key, api_key, name, expires_at, settings))

    async def change(
        self,
        key: Key | int,
        *,
        name: str | UnsetType | None = UNSET,
        expires_at: datetime | UnsetType | None = UNSET,
        disabled: bool | UnsetType = UNSET,
        settings: Mapping[str, str] | UnsetType = UNSET,
        default: bool | UnsetType = UNSET,
    ) -> Key:
        return await self._wire.ask(calls.change_key(key, name, expires_at, disabled, settings, default))

    async def check(self, key: Key | int) -> Key:
        return await self._wire.ask(calls.check_key(key))

    async def delete(self, key: Key | int) -> None:
        await self._wire.ask(calls.delete_key(key))

    async def services(self) -> list[Service]:
        return await self._wire.ask(calls.list_services())

    async def applications(self) -> list[Application]:
        return await self._wire.ask(calls.list_applications())

    async def revoke(self) -> None:
        await self._wire.ask(calls.revoke_token())

    def audit(
        self, *, action: str | None = None, since: datetime | None = None, until: datetime | None = None
    ) -> AsyncIterator[AuditEntry]:
        return self._all(lambda cursor: calls.list_audit(action, since, until, cursor))

    async def _all(self, page_at: Callable[[str | None], Call[Page[T]]]) -> AsyncIterator[T]:
        page = await self._wire.ask(page_at(None))
        for item in page.items:
            yield item
        while page.cursor is not None:
            page = await self._wire.ask(page_at(page.cursor))
            for item in page.items:
                yield item

    async def aclose(self) -> None:
        """Close the connections of the running event loop. A call from this loop then raises ClientClosed."""
        await self._wire.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, where: TracebackType | None
    ) -> None:
        await self.aclose()
