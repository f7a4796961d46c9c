"""The client of the resolver plane: gets users' keys, for an application with a token."""

from __future__ import annotations

import asyncio
import os
import threading
from dataclasses import dataclass
from functools import partial
from time import monotonic
from types import TracebackType
from typing import Self, overload

import httpx

from keyman.client import calls
from keyman.client.cache import Cache, Epoch, Wanted
from keyman.client.endpoint import DEFAULT_TIMEOUT, Endpoint, find_token, find_url
from keyman.client.errors import ClientError
from keyman.client.exchange import Call, Lost, Outcome, result
from keyman.client.forks import reset_after_fork
from keyman.client.shapes import PortalLink, ReportOutcome, Resolved, require_one_way
from keyman.client.wire import AsyncWire, Wire
from keyman.secret import Secret

URL = "KEYMAN_RESOLVER_URL"
TOKEN = "KEYMAN_APP_TOKEN"  # noqa: S105  # the variable's name

DEFAULT_ENTRIES = 1000


@dataclass
class _Flight:
    """One call that others wait for. `outcome` stays None when the thread or task that made the call was stopped."""

    done: threading.Event | asyncio.Event
    asked: Epoch
    outcome: Outcome | None = None

    def is_shared(self) -> bool:
        """Return whether the callers that waited can use the outcome.

        They cannot use LATE: they began later, so their own deadlines are not over.
        """
        return self.outcome not in (None, Lost.LATE)


class _Asking:
    """The common part of both clients: an endpoint, the cache if there is one, and the calls that others wait for.

    A flight belongs to a key and to an event loop, because only tasks of that loop can wait for it. Without asyncio,
    the loop is None.
    """

    def __init__(self, endpoint: Endpoint, cache_ttl: float, cache_entries: int) -> None:
        self._endpoint = endpoint
        self._new_cache = partial(Cache, cache_ttl, cache_entries)
        self._cache = self._new_cache() if cache_ttl else None
        self._flights: dict[tuple[Wanted, object], _Flight] = {}
        self._lock = threading.Lock()  # of the cache and the flights; event loops run in threads, too
        reset_after_fork(self)

    def _after_fork(self) -> None:
        """Start without values and flights. The thread that was changing them does not exist in this process."""
        self._cache = self._new_cache() if self._cache is not None else None
        self._flights = {}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._endpoint.base}>"

    def _finish(self, cache: Cache, wanted: Wanted, call: Call[Resolved], flight: _Flight) -> Resolved:
        """Return the result of a flight and update the cache with it. Raises ClientError."""
        assert flight.outcome is not None
        try:
            resolved = result(call, flight.outcome, *self._endpoint.tokens)
        except ClientError as refused:
            cache.learn(wanted, refused)
            raise
        cache.keep(wanted, resolved, flight.asked)
        return resolved


class Resolver(_Asking):
    """The client for code without asyncio. Threads may share one.

    `url` and `token` default to KEYMAN_RESOLVER_URL and KEYMAN_APP_TOKEN (or KEYMAN_APP_TOKEN_FILE). `timeout` is in
    seconds, for a whole call including retries. `cache_ttl` is in seconds, at most 300; 0 turns the cache off. Raises
    ValueError for invalid settings.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | Secret | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        cache_ttl: float = 0,
        cache_entries: int = DEFAULT_ENTRIES,
        ca_file: str | os.PathLike[str] | None = None,
        allow_http: bool = False,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        token, file = find_token(token, TOKEN)
        endpoint = Endpoint(find_url(url, URL), token, timeout, allow_http=allow_http, token_file=file)
        super().__init__(endpoint, cache_ttl, cache_entries)
        self._wire = Wire(endpoint, ca_file, transport)

    @overload
    def resolve(self, *, user_id: int, service: str, purpose: str | None = None) -> Resolved: ...

    @overload
    def resolve(
        self, *, subject: str, service: str, issuer: str | None = None, purpose: str | None = None
    ) -> Resolved: ...

    @overload
    def resolve(self, *, key_id: int, purpose: str | None = None) -> Resolved: ...

    def resolve(
        self,
        *,
        user_id: int | None = None,
        service: str | None = None,
        key_id: int | None = None,
        subject: str | None = None,
        issuer: str | None = None,
        purpose: str | None = None,
    ) -> Resolved:
        """Get one key by its id, or the one of a user for a service: the default if it is active, or else the newest
        active one. The key's owner can read `purpose`.

        `subject` is your own name for the user. `issuer` says whose name it is, if the application has several.

        Raises ClientError. It is NotFound for a key that does not exist or that the application may not have.
        """
        wanted = _wanted("resolve", key_id, user_id, service, subject, issuer)
        call = calls.resolve(wanted, purpose)
        return self._wire.ask(call) if self._cache is None else self._shared(self._cache, wanted, call)

    def _shared(self, cache: Cache, wanted: Wanted, call: Call[Resolved]) -> Resolved:
        """Make one call for all threads that ask for the same key at the same time."""
        deadline = monotonic() + self._endpoint.timeout
        while True:
            with self._lock:
                if (held := cache.get(wanted)) is not None:
                    return held
                flight = self._flights.get((wanted, None))
                if flight is None:
                    mine = self._flights[wanted, None] = _Flight(threading.Event(), cache.epoch())
                    break
            assert isinstance(flight.done, threading.Event)
            if not flight.done.wait(max(0.0, deadline - monotonic())):
                return result(call, Lost.LATE)
            if flight.is_shared():
                with self._lock:
                    return self._finish(cache, wanted, call, flight)
        try:
            mine.outcome = self._wire.outcome(call, deadline)
            with self._lock:
                return self._finish(cache, wanted, call, mine)
        finally:
            # Only now, with the result in the cache: otherwise a thread could find neither and ask again.
            with self._lock:
                del self._flights[wanted, None]
            mine.done.set()

    def forget(
        self,
        *,
        user_id: int | None = None,
        service: str | None = None,
        key_id: int | None = None,
        subject: str | None = None,
        issuer: str | None = None,
    ) -> None:
        """Remove one key from the cache, for example after its provider refused it. Without arguments, remove all."""
        if self._cache is not None:
            with self._lock:
                _forget(self._cache, key_id, user_id, service, subject, issuer)

    def report(self, key: Resolved | int, outcome: ReportOutcome) -> None:
        """Tell the owner of a key what its provider said when you used it. Say `refused` only of the key itself.

        Raises NotFound unless the application got the value that the key has within the last hour, and RateLimited for
        a second report on the key within 10 seconds. The cache keeps the value: `forget` removes it.
        """
        self._wire.ask(calls.report(key, outcome))

    def portal_link(
        self, *, subject: str, return_url: str | None = None, email: str | None = None, name: str | None = None
    ) -> PortalLink:
        """Make a link with which a user manages their keys: redirect the browser to its `url` at once.

        `subject` is your own name for the user, who is created at the first use of it. Without `return_url`, the pages
        lead back to the first URL that the application is registered with. `email` and `name` are only shown. Raises
        ClientError: Forbidden for an application without portal links, or a user who signs in to keyman by another way.
        """
        return self._wire.ask(calls.portal_link(subject, return_url, email, name))

    def close(self) -> None:
        """Close the connections and forget every value. A call then raises ClientClosed."""
        self.forget()
        self._wire.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()


class AsyncResolver(_Asking):
    """The same client for asyncio. Each event loop that uses it has connections of its own."""

    def __init__(
        self,
        url: str | None = None,
        token: str | Secret | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT,  # of a whole call, so that callers need no asyncio.timeout
        cache_ttl: float = 0,
        cache_entries: int = DEFAULT_ENTRIES,
        ca_file: str | os.PathLike[str] | None = None,
        allow_http: bool = False,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        token, file = find_token(token, TOKEN)
        endpoint = Endpoint(find_url(url, URL), token, timeout, allow_http=allow_http, token_file=file)
        super().__init__(endpoint, cache_ttl, cache_entries)
        self._wire = AsyncWire(endpoint, ca_file, transport)

    @overload
    async def resolve(self, *, user_id: int, service: str, purpose: str | None = None) -> Resolved: ...

    @overload
    async def resolve(
        self, *, subject: str, service: str, issuer: str | None = None, purpose: str | None = None
    ) -> Resolved: ...

    @overload
    async def resolve(self, *, key_id: int, purpose: str | None = None) -> Resolved: ...

    async def resolve(
        self,
        *,
        user_id: int | None = None,
        service: str | None = None,
        key_id: int | None = None,
        subject: str | None = None,
        issuer: str | None = None,
        purpose: str | None = None,
    ) -> Resolved:
        """See Resolver.resolve."""
        wanted = _wanted("resolve", key_id, user_id, service, subject, issuer)
        call = calls.resolve(wanted, purpose)
        return await (self._wire.ask(call) if self._cache is None else self._shared(self._cache, wanted, call))

    async def _shared(self, cache: Cache, wanted: Wanted, call: Call[Resolved]) -> Resolved:
        self._wire.require_open()  # another loop may have kept the value
        deadline = monotonic() + self._endpoint.timeout
        key = (wanted, asyncio.get_running_loop())
        while True:
            with self._lock:
                if (held := cache.get(wanted)) is not None:
                    return held
                flight = self._flights.get(key)
                if flight is None:
                    mine = self._flights[key] = _Flight(asyncio.Event(), cache.epoch())
                    break
            assert isinstance(flight.done, asyncio.Event)
            await flight.done.wait()  # the flight has its own deadline, which is earlier than this one
            if flight.is_shared():
                with self._lock:
                    return self._finish(cache, wanted, call, flight)
        try:
            mine.outcome = await self._wire.outcome(call, deadline)
            with self._lock:
                return self._finish(cache, wanted, call, mine)
        finally:
            with self._lock:
                del self._flights[key]
            mine.done.set()

    def forget(
        self,
        *,
        user_id: int | None = None,
        service: str | None = None,
        key_id: int | None = None,
        subject: str | None = None,
        issuer: str | None = None,
    ) -> None:
        """See Resolver.forget."""
        if self._cache is not None:
            with self._lock:
                _forget(self._cache, key_id, user_id, service, subject, issuer)

    async def report(self, key: Resolved | int, outcome: ReportOutcome) -> None:
        """See Resolver.report."""
        await self._wire.ask(calls.report(key, outcome))

    async def portal_link(
        self, *, subject: str, return_url: str | None = None, email: str | None = None, name: str | None = None
    ) -> PortalLink:
        """See Resolver.portal_link."""
        return await self._wire.ask(calls.portal_link(subject, return_url, email, name))

    async def aclose(self) -> None:
        """Close the connections of the running event loop, and forget every value.

        A call from this loop then raises ClientClosed.
        """
        self.forget()
        await self._wire.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, where: TracebackType | None
    ) -> None:
        await self.aclose()


def _wanted(
    method: str,
    key_id: int | None,
    user_id: int | None,
    service: str | None,
    subject: str | None,
    issuer: str | None,
) -> Wanted:
    """Raises TypeError unless the arguments name a key in exactly one of the three ways."""
    require_one_way(method, key_id, user_id, service, subject, issuer)
    return Wanted(key_id, user_id, service, subject, issuer)


def _forget(
    cache: Cache,
    key_id: int | None,
    user_id: int | None,
    service: str | None,
    subject: str | None,
    issuer: str | None,
) -> None:
    if {key_id, user_id, service, subject, issuer} == {None}:
        cache.forget_all()
    else:
        cache.forget(_wanted("forget", key_id, user_id, service, subject, issuer))
