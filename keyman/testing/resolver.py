"""Fake resolvers: they answer from memory as `keyman.client.Resolver` and `AsyncResolver` answer from a server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Self, overload

from keyman.client.errors import CLOSED, ClientClosed, NotFound, Undecryptable
from keyman.client.shapes import PortalLink, ReportOutcome, Resolved, is_value, require_one_way

PORTAL_LIFETIME = timedelta(minutes=5)
"""How long a link of the server works."""

_NO_SUCH_KEY = "There is no such key for this application. The audit log says why. (404, not-found)"


@dataclass(frozen=True)
class ResolveCall:
    """One call of `resolve`, by its arguments; it holds no value of a key."""

    key_id: int | None
    user_id: int | None
    service: str | None
    purpose: str | None
    subject: str | None = None
    issuer: str | None = None


@dataclass(frozen=True)
class PortalCall:
    """One call of `portal_link`, by its arguments."""

    subject: str
    return_url: str | None
    email: str | None
    name: str | None


@dataclass(frozen=True)
class ReportCall:
    """One call of `report`, by its arguments."""

    key_id: int
    outcome: str


@dataclass(frozen=True)
class _Undecryptable:
    key_id: int
    user_id: int
    service: str


class _Fake:
    """The keys and the calls that both kinds of fake have.

    `calls` lists each call of `resolve`, also those that raise ClientError, `reports` each of `report`, and
    `portal_calls` each of `portal_link`. `is_closed` says whether it is closed.
    """

    def __init__(self) -> None:
        self.calls: list[ResolveCall] = []
        self.portal_calls: list[PortalCall] = []
        self.reports: list[ReportCall] = []
        self.is_closed = False
        self._subjects: dict[str, int] = {}
        self._keys: dict[int, Resolved | _Undecryptable] = {}
        self._last_id = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} keys={len(self._keys)} calls={len(self.calls)}>"

    def add(
        self,
        value: str,
        *,
        user_id: int,
        service: str,
        expires_at: datetime | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> Resolved:
        """Add an active key and return it; its `key_id` is greater than that of every earlier key.

        Raises ValueError for a value that no server gives (it has 8 to 8,192 printable ASCII characters, without
        spaces, or is a JSON object of at most 16 KiB) and for an `expires_at` without a time zone.
        """
        if not is_value(value):
            raise ValueError("value must have 8 to 8,192 printable ASCII characters and no space, or be a JSON object")
        if expires_at is not None and expires_at.tzinfo is None:
            raise ValueError("expires_at must have a time zone")
        key = Resolved(value, self._next_id(), user_id, service, expires_at, settings)
        self._keys[key.key_id] = key
        return key

    def add_undecryptable(self, *, user_id: int, service: str) -> int:
        """Add a key that Vault cannot open, and return its id; `resolve` raises Undecryptable for it."""
        key = _Undecryptable(self._next_id(), user_id, service)
        self._keys[key.key_id] = key
        return key.key_id

    def remove(self, key_id: int) -> None:
        """Remove a key, as if its owner had deleted or paused it. Raises KeyError for an id that no key has."""
        del self._keys[key_id]

    def name(self, subject: str, *, user_id: int) -> None:
        """Let `resolve` find the keys of a user by this subject, whatever the issuer."""
        self._subjects[subject] = user_id

    def forget(
        self,
        *,
        user_id: int | None = None,
        service: str | None = None,
        key_id: int | None = None,
        subject: str | None = None,
        issuer: str | None = None,
    ) -> None:
        """Do nothing: a fake has no cache. Raises TypeError for arguments that name no key, as the client can."""
        if {user_id, service, key_id, subject, issuer} != {None}:
            require_one_way("forget", key_id, user_id, service, subject, issuer)

    def _link(self, call: PortalCall) -> PortalLink:
        """Return a link that leads nowhere. The user of a new subject gets a number of its own."""
        self.portal_calls.append(call)
        self._require_open()
        user_id = self._subjects.setdefault(call.subject, 1 + max(self._subjects.values(), default=0))
        url = f"https://keyman.invalid/portal/{len(self.portal_calls)}"
        return PortalLink(url, datetime.now(UTC) + PORTAL_LIFETIME, user_id)

    def _report(self, key: Resolved | int, outcome: ReportOutcome) -> None:
        """Add the call to `reports`. Raises NotFound for a key that was not added."""
        key_id = key.key_id if isinstance(key, Resolved) else key
        self.reports.append(ReportCall(key_id, outcome))
        self._require_open()
        if not isinstance(self._keys.get(key_id), Resolved):
            raise NotFound(_NO_SUCH_KEY, status=404, slug="not-found")

    def _require_open(self) -> None:
        if self.is_closed:
            raise ClientClosed(CLOSED)

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def _answer(self, call: ResolveCall) -> Resolved:
        require_one_way("resolve", call.key_id, call.user_id, call.service, call.subject, call.issuer)
        self.calls.append(call)
        self._require_open()
        key = self._find(call)
        if isinstance(key, _Undecryptable):
            raise Undecryptable(
                "The key cannot be decrypted. Its owner must store it again. (409, undecryptable)",
                status=409,
                slug="undecryptable",
            )
        if key is None or _has_expired(key):
            raise NotFound(_NO_SUCH_KEY, status=404, slug="not-found")
        if call.subject is None:
            return key
        value = key.reveal()
        return Resolved(value, key.key_id, key.user_id, key.service, key.expires_at, key.settings, call.subject)

    def _find(self, call: ResolveCall) -> Resolved | _Undecryptable | None:
        """Return the key that the call names; for a user and a service the newest active one, or else the newest."""
        if call.key_id is not None:
            return self._keys.get(call.key_id)
        user_id = call.user_id if call.subject is None else self._subjects.get(call.subject)
        named = (user_id, call.service)
        theirs = [key for key in reversed([*self._keys.values()]) if (key.user_id, key.service) == named]
        active = [key for key in theirs if isinstance(key, Resolved) and not _has_expired(key)]
        return next(iter([*active, *theirs]), None)


class FakeResolver(_Fake):
    """A `Resolver` for tests: you give it keys, and your code asks it for them.

    `resolve` returns what you added. It raises NotFound for any other key and for one that has expired, and
    Undecryptable for a key from `add_undecryptable`.

    >>> from keyman.testing import FakeResolver
    >>> def authorization(resolver, user_id):
    ...     key = resolver.resolve(user_id=user_id, service="OPENAI", purpose="Answer to a chat")
    ...     return f"Bearer {key.reveal()}"
    >>> fake = FakeResolver()
    >>> fake.add("sk-made-up", user_id=7, service="OPENAI")
    Resolved(***, key_id=1, user_id=7, service='OPENAI')
    >>> authorization(fake, 7)
    'Bearer sk-made-up'
    >>> authorization(fake, 8)
    Traceback (most recent call last):
    keyman.client.errors.NotFound: There is no such key for this application. The audit log says why. (404, not-found)
    >>> fake.calls[0]
    ResolveCall(key_id=None, user_id=7, service='OPENAI', purpose='Answer to a chat', subject=None, issuer=None)
    >>> fake
    <FakeResolver keys=1 calls=2>
    """

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
        """Return one key, or the newest active one of a user for a service. Raises NotFound, Undecryptable."""
        return self._answer(ResolveCall(key_id, user_id, service, purpose, subject, issuer))

    def report(self, key: Resolved | int, outcome: ReportOutcome) -> None:
        """Add the call to `reports`. Raises NotFound for a key that was not added."""
        self._report(key, outcome)

    def portal_link(
        self, *, subject: str, return_url: str | None = None, email: str | None = None, name: str | None = None
    ) -> PortalLink:
        """Return a link that leads nowhere, and add the call to `portal_calls`."""
        return self._link(PortalCall(subject, return_url, email, name))

    def close(self) -> None:
        """Set `is_closed`. A call then raises ClientClosed."""
        self.is_closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()


class AsyncFakeResolver(_Fake):
    """An `AsyncResolver` for tests, with the keys, calls and errors of `FakeResolver`.

    >>> import asyncio
    >>> from keyman.testing import AsyncFakeResolver
    >>> fake = AsyncFakeResolver()
    >>> key_id = fake.add("sk-made-up", user_id=7, service="OPENAI").key_id
    >>> asyncio.run(fake.resolve(key_id=key_id)).reveal()
    'sk-made-up'
    """

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
        """Return one key, or the newest active one of a user for a service. Raises NotFound, Undecryptable."""
        return self._answer(ResolveCall(key_id, user_id, service, purpose, subject, issuer))

    async def report(self, key: Resolved | int, outcome: ReportOutcome) -> None:
        """Add the call to `reports`. Raises NotFound for a key that was not added."""
        self._report(key, outcome)

    async def portal_link(
        self, *, subject: str, return_url: str | None = None, email: str | None = None, name: str | None = None
    ) -> PortalLink:
        """Return a link that leads nowhere, and add the call to `portal_calls`."""
        return self._link(PortalCall(subject, return_url, email, name))

    async def aclose(self) -> None:
        """Set `is_closed`. A call then raises ClientClosed."""
        self.is_closed = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, where: TracebackType | None
    ) -> None:
        await self.aclose()


def _has_expired(key: Resolved) -> bool:
    return key.expires_at is not None and key.expires_at <= datetime.now(UTC)
