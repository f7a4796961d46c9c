"""Calls over connections, with and without asyncio.

A transport of httpx, not its client: a transport has no cookies, follows no redirect, and reads no proxy, no netrc and
no certificate out of the environment, where they would decide where a token goes.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from time import monotonic
from typing import Any, TypeVar

import httpcore
import httpx

from keyman.client.deadline import CONNECT, DeadlineTransport
from keyman.client.endpoint import IDLE, MAX_CONNECTIONS, Endpoint, tls_context
from keyman.client.exchange import MAX_ANSWER, Answer, Attempts, Call, Lost, Outcome, result

T = TypeVar("T")

FAULTS = (
    httpx.TransportError,
    httpcore.TimeoutException,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ConnectionNotAvailable,
    OSError,
)
"""What a transport raises where no answer came; the synchronous one raises httpcore's own."""

CONNECTING = (httpx.ConnectError, httpx.ConnectTimeout, httpcore.ConnectError, httpcore.ConnectTimeout)
"""Those of them after which nothing was sent."""

OVER = (
    TimeoutError,
    httpx.ReadTimeout,
    httpx.WriteTimeout,
    httpx.PoolTimeout,
    httpcore.ReadTimeout,
    httpcore.WriteTimeout,
    httpcore.PoolTimeout,
)
"""Those of them that end with the deadline: they are given all that is left of it."""


class _TooLarge(Exception):
    pass


class Wire:
    """Threads may share one."""

    def __init__(
        self, endpoint: Endpoint, ca_file: str | os.PathLike[str] | None, transport: httpx.BaseTransport | None
    ) -> None:
        self.endpoint = endpoint
        self._transport = _alone(transport, ca_file) or DeadlineTransport(
            tls_context(endpoint.base, ca_file), MAX_CONNECTIONS, IDLE
        )

    def ask(self, call: Call[T]) -> T:
        """The result of a call. Raises ClientError."""
        outcome = self.outcome(call, monotonic() + self.endpoint.timeout)
        return result(call, outcome, self.endpoint.token)

    def outcome(self, call: Call[Any], deadline: float) -> Outcome:
        """What came of it in the end, however often it was tried."""
        attempts = Attempts(call, deadline)
        while True:
            outcome = self._once(call, deadline)
            pause = attempts.pause(outcome)
            if pause is None:
                return outcome
            time.sleep(pause)

    def _once(self, call: Call[Any], deadline: float) -> Outcome:
        request = self.endpoint.request(call, {"deadline": deadline, "timeout": _spans(deadline)})
        try:
            response = self._transport.handle_request(request)
            try:
                content = bytearray()
                for chunk in response.iter_raw():
                    _grow(content, chunk)
                    if monotonic() >= deadline:  # a transport that was given may bound each read alone
                        return Lost.LATE
            finally:
                response.close()
        except _TooLarge:
            return Lost.TOO_LARGE
        except FAULTS as fault:
            return _lost(fault, deadline)
        return Answer(response.status_code, response.headers, bytes(content))

    def close(self) -> None:
        self._transport.close()


class AsyncWire:
    """The same for one event loop of asyncio."""

    def __init__(
        self, endpoint: Endpoint, ca_file: str | os.PathLike[str] | None, transport: httpx.AsyncBaseTransport | None
    ) -> None:
        self.endpoint = endpoint
        self._transport = _alone(transport, ca_file) or httpx.AsyncHTTPTransport(
            verify=tls_context(endpoint.base, ca_file),
            trust_env=False,
            limits=httpx.Limits(max_connections=MAX_CONNECTIONS, keepalive_expiry=IDLE),
        )

    async def ask(self, call: Call[T]) -> T:
        outcome = await self.outcome(call, monotonic() + self.endpoint.timeout)
        return result(call, outcome, self.endpoint.token)

    async def outcome(self, call: Call[Any], deadline: float) -> Outcome:
        attempts = Attempts(call, deadline)
        while True:
            outcome = await self._once(call, deadline)
            pause = attempts.pause(outcome)
            if pause is None:
                return outcome
            await asyncio.sleep(pause)

    async def _once(self, call: Call[Any], deadline: float) -> Outcome:
        request = self.endpoint.request(call, {"timeout": _spans(deadline)})
        try:
            async with asyncio.timeout(deadline - monotonic()):
                response = await self._transport.handle_async_request(request)
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

    async def aclose(self) -> None:
        await self._transport.aclose()


def _alone(transport: T | None, ca_file: object) -> T | None:
    """Raises ValueError for both: authorities that a transport does not know of would be trusted by nobody."""
    if transport is not None and ca_file is not None:
        raise ValueError("ca_file is for the client's own transport: give yours a context that trusts it")
    return transport


def _spans(deadline: float) -> dict[str, float]:
    """Of one attempt, as httpx takes them."""
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
