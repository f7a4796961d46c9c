"""What code that needs users' keys can ask for: a resolver of any kind, real or fake."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self, overload

from keyman.client.shapes import PortalLink, ReportOutcome, Resolved


class ResolverProtocol(Protocol):
    """What `Resolver` and `keyman.testing.FakeResolver` share: annotate with it what your code takes.

    An implementation fails by raising, and never returns None or an empty value in place of a key. `resolve` raises a
    ClientError and nothing else when there is no key to return, so that a caller who catches ClientError is safe:

    - NotFound for a key that does not exist, has expired, is paused, or is not for this application, without a
      difference between them;
    - Undecryptable for a key that is stored and cannot be opened: its owner has to store it again;
    - Unavailable, or a kind of it, when it cannot find out. It is never NotFound then: a caller may take that as final.

    Arguments that do not name a key in exactly one way raise TypeError, which is the caller's mistake. No exception
    holds a value or a token. Closing twice raises nothing.
    """

    @overload
    def resolve(self, *, user_id: int, service: str, purpose: str | None = None) -> Resolved: ...

    @overload
    def resolve(
        self, *, subject: str, service: str, issuer: str | None = None, purpose: str | None = None
    ) -> Resolved: ...

    @overload
    def resolve(self, *, key_id: int, purpose: str | None = None) -> Resolved: ...

    def forget(
        self,
        *,
        user_id: int | None = None,
        service: str | None = None,
        key_id: int | None = None,
        subject: str | None = None,
        issuer: str | None = None,
    ) -> None: ...

    def report(self, key: Resolved | int, outcome: ReportOutcome) -> None: ...

    def portal_link(
        self, *, subject: str, return_url: str | None = None, email: str | None = None, name: str | None = None
    ) -> PortalLink: ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, where: TracebackType | None
    ) -> None: ...


class AsyncResolverProtocol(Protocol):
    """The same for asyncio: `AsyncResolver` and `keyman.testing.AsyncFakeResolver`.

    It fails as `ResolverProtocol` says. CancelledError passes through and leaves it usable.
    """

    @overload
    async def resolve(self, *, user_id: int, service: str, purpose: str | None = None) -> Resolved: ...

    @overload
    async def resolve(
        self, *, subject: str, service: str, issuer: str | None = None, purpose: str | None = None
    ) -> Resolved: ...

    @overload
    async def resolve(self, *, key_id: int, purpose: str | None = None) -> Resolved: ...

    def forget(
        self,
        *,
        user_id: int | None = None,
        service: str | None = None,
        key_id: int | None = None,
        subject: str | None = None,
        issuer: str | None = None,
    ) -> None: ...

    async def report(self, key: Resolved | int, outcome: ReportOutcome) -> None: ...

    async def portal_link(
        self, *, subject: str, return_url: str | None = None, email: str | None = None, name: str | None = None
    ) -> PortalLink: ...

    async def aclose(self) -> None: ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, where: TracebackType | None
    ) -> None: ...
