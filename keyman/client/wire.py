"""Calls over connections, with and without asyncio.

This uses a transport of httpx and not its client. A transport has no cookies and follows no redirect, and it reads no
proxy, netrc or certificate settings from the environment, which could send a token somewhere else.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from time import monotonic
from typing import NoReturn, TypeVar
from weakref import WeakSet

import httpcore
import httpx

from keyman.client.deadline import CONNECT, DeadlineTransport
from keyman.client.endpoint import IDLE, MAX_CONNECTIONS, Endpoint, tls_context
from keyman.client.errors import CLOSED, ClientClosed
from keyman.client.exchange import MAX_ANSWER, Answer, Attempts, Call, Lost, Outcome, result
from keyman.client.forks import reset_after_fork
from keyman.errors import KeymanError

T = TypeVar("T")

FAULTS = (
    httpx.TransportError,
    httpcore.TimeoutException,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ConnectionNotAvailable,
    OSError,
)
"""The exceptions of a transport when there is no answer. The synchronous transport raises those of httpcore."""

CONNECTING = (httpx.ConnectError, httpx.ConnectTimeout, httpcore.ConnectError, httpcore.ConnectTimeout)
"""The exceptions of FAULTS after which nothing was sent."""

OVER = (
    TimeoutError,
    httpx.ReadTimeout,
    httpx.WriteTimeout,
    httpx.PoolTimeout,
    httpcore.ReadTimeout,
    httpcore.WriteTimeout,
    httpcore.PoolTimeout,
)
"""The exceptions of FAULTS that mean that the deadline is over: their timeouts are all the time that was left."""


class _TooLarge(KeymanError):
    """An answer that no keyman gives; it becomes a BadAnswer."""


FORKED = "a transport that you pass works only in the process that passed it: create the client after the fork"


class _NotInherited(httpx.BaseTransport):
    """Stands for the caller's transport in a forked process: its connections belong to the parent."""

    def handle_request(self, request: httpx.Request) -> NoReturn:
        raise RuntimeError(FORKED)


class _AsyncNotInherited(httpx.AsyncBaseTransport):
    async def handle_async_request(self, request: httpx.Request) -> NoReturn:
        raise RuntimeError(FORKED)


class Wire:
    """Sends calls without asyncio. Threads may share one."""

    def __init__(
        self, endpoint: Endpoint, ca_file: str | os.PathLike[str] | None, transport: httpx.BaseTransport | None
    ) -> None:
        self.endpoint = endpoint
        self._given = _given_transport(transport, ca_file)
        self._tls = None if self._given else tls_context(endpoint.base, ca_file)
        self._transport = self._given or self._pool()
        self._is_closed = False
        self._abandoned: list[httpx.BaseTransport] = []
        reset_after_fork(self)

    def _pool(self) -> DeadlineTransport:
        assert self._tls is not None
        return DeadlineTransport(self._tls, MAX_CONNECTIONS, IDLE)

    def _after_fork(self) -> None:
        self._abandoned.append(self._transport)
        self._transport = _NotInherited() if self._given else self._pool()

    def ask(self, call: Call[T]) -> T:
        """Return the result of a call. Raises ClientError."""
        outcome = self.outcome(call, monotonic() + self.endpoint.timeout)
        return result(call, outcome, *self.endpoint.tokens)

    def outcome(self, call: Call[object], deadline: float) -> Outcome:
        """Return the outcome of the last attempt."""
        attempts = Attempts(call, deadline)
        while True:
            outcome = self._once(call, deadline)
            pause = attempts.pause(outcome)
            if pause is None:
                return outcome
            time.sleep(pause)

    def _once(self, call: Call[object], deadline: float) -> Outcome:
        self.require_open()
        request = self.endpoint.request(call, {"deadline": deadline, "timeout": _spans(deadline)})
        try:
            response = self._transport.handle_request(request)
            try:
                content = bytearray()
                for chunk in response.iter_raw():
                    _grow(content, chunk)
                    if monotonic() >= deadline:  # the caller's own transport may only limit each read
                        return Lost.LATE
            finally:
                response.close()
        except _TooLarge:
            return Lost.TOO_LARGE
        except FAULTS as fault:
            return _lost(fault, deadline)
        return Answer(response.status_code, response.headers, bytes(content))

    def require_open(self) -> None:
        """Raise ClientClosed after `close`."""
        if self._is_closed:
            raise ClientClosed(CLOSED)

    def close(self) -> None:
        self._is_closed = True
        self._transport.close()


class AsyncWire:
    """Sends calls with asyncio. Connections belong to the event loop that opened them, so each loop has a pool."""

    def __init__(
        self, endpoint: Endpoint, ca_file: str | os.PathLike[str] | None, transport: httpx.AsyncBaseTransport | None
    ) -> None:
        self.endpoint = endpoint
        self._given = _given_transport(transport, ca_file)
        self._tls = None if self._given else tls_context(endpoint.base, ca_file)
        self._pools: dict[asyncio.AbstractEventLoop, httpx.AsyncBaseTransport] = {}
        self._closed: WeakSet[asyncio.AbstractEventLoop] = WeakSet()
        self._abandoned: list[object] = []
        reset_after_fork(self)

    def _transport(self) -> httpx.AsyncBaseTransport:
        """Return the caller's transport, or the pool of the running loop. It also forgets the pools of closed loops."""
        if self._given is not None:
            return self._given
        loop = asyncio.get_running_loop()
        pool = self._pools.get(loop)
        if pool is None:
            assert self._tls is not None
            for other in [other for other in list(self._pools) if other.is_closed()]:
                self._pools.pop(other, None)  # another thread may do the same
            pool = self._pools[loop] = httpx.AsyncHTTPTransport(
                verify=self._tls,
                trust_env=False,
                limits=httpx.Limits(max_connections=MAX_CONNECTIONS, keepalive_expiry=IDLE),
            )
        return pool

    def _after_fork(self) -> None:
        self._abandoned.append((self._pools, self._given))
        self._pools = {}
        if self._given is not None:
            self._given = _AsyncNotInherited()

    async def ask(self, call: Call[T]) -> T:
        outcome = await self.outcome(call, monotonic() + self.endpoint.timeout)
        return result(call, outcome, *self.endpoint.tokens)

    async def outcome(self, call: Call[object], deadline: float) -> Outcome:
        attempts = Attempts(call, deadline)
        while True:
            outcome = await self._once(call, deadline)
            pause = attempts.pause(outcome)
            if pause is None:
                return outcome
            await asyncio.sleep(pause)

    async def _once(self, call: Call[object], deadline: float) -> Outcome:
        self.require_open()
        request = self.endpoint.request(call, {"timeout": _spans(deadline)})
        try:
            async with asyncio.timeout(deadline - monotonic()):
                response = await self._transport().handle_async_request(request)
                try:
                    content = bytearray()
                    async for chunk in response.aiter_raw():
                        _grow(content, chunk)
                finally:
                    await response.aclose()
        except _TooLarge:
            return Lost.TOO_LARGE
        except FAULTS as fault:  # TimeoutError is an OSError
            return _lost(fault, deadline)
        return Answer(response.status_code, response.headers, bytes(content))

    def require_open(self) -> None:
        """Raise ClientClosed after `aclose` in the running loop."""
        if asyncio.get_running_loop() in self._closed:
            raise ClientClosed(CLOSED)

    async def aclose(self) -> None:
        """Close the connections of the running loop."""
        self._closed.add(asyncio.get_running_loop())
        pool = self._given or self._pools.pop(asyncio.get_running_loop(), None)
        if pool is not None:
            await pool.aclose()


def _given_transport(transport: T | None, ca_file: object) -> T | None:
    """Raises ValueError when both are set: the caller's transport would ignore `ca_file`."""
    if transport is not None and ca_file is not None:
        raise ValueError("ca_file works only without transport: give your transport an SSL context that trusts it")
    return transport


def _spans(deadline: float) -> dict[str, float]:
    """Return the timeouts of one attempt, in the form that httpx takes."""
    left = max(0.0, deadline - monotonic())
    return {"connect": min(CONNECT, left), "read": left, "write": left, "pool": left}


def _grow(content: bytearray, chunk: bytes) -> None:
    content += chunk
    if len(content) > MAX_ANSWER:
        raise _TooLarge


def _lost(fault: Exception, deadline: float) -> Lost:
    if isinstance(fault, OVER) or monotonic() >= deadline:
        return Lost.LATE
    cause: BaseException | None = fault
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return Lost.UNTRUSTED
        cause = cause.__cause__ or cause.__context__
    return Lost.UNSENT if isinstance(fault, CONNECTING) else Lost.BROKEN
