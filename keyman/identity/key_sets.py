"""Where the keys of an issuer come from: its own address, a file, or a text that an operator has stored.

The parsed keys are cached, and no verdict about a token is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf
from pathlib import Path
from time import monotonic
from typing import Protocol

from keyman.errors import IssuerUnavailable
from keyman.identity.fetching import PATIENCE, Fetcher, FetchFailed, discovery_address
from keyman.identity.jose import Claims, Rules, verified
from keyman.identity.jwks import MAX_BYTES, KeySet, UnknownKey
from keyman.logs import log

FRESH = 600.0
"""Seconds for which a set counts before it is fetched again: a key that the issuer has withdrawn works no longer."""

PAUSE = 10.0
"""Seconds between two fetches, whatever is asked for. Tokens with invented keys cannot make keyman flood an issuer."""

LAST_GOOD = 24 * 3600.0
"""Seconds for which the last good set counts while the issuer cannot be reached."""

FILE_CHECK = 10.0
"""Seconds between two looks at a file, for a change."""

MAX_LOGGED = 200
"""How many characters of an address a log line has. An issuer chooses the address of its keys."""


class KeySource(Protocol):
    """The keys of one issuer.

    An implementation fails closed: it raises IssuerUnavailable if it has no keys that still count. It never waits
    longer than PATIENCE.
    """

    async def current(self) -> KeySet:
        """Return the keys."""
        ...

    async def renewed(self) -> KeySet:
        """Return the keys, after another look for newer ones if the last one was long enough ago."""
        ...

    async def close(self) -> None:
        """End what is under way. Afterwards the source is not used any more."""
        ...


async def verify(token: str, source: KeySource, rules: Rules) -> Claims:
    """Return the claims of a token of the issuer whose keys `source` has. Raises Refused and IssuerUnavailable.

    For a `kid` that is not known, the keys are looked for once more: the issuer may have a new one.
    """
    try:
        return verified(token, await source.current(), rules)
    except UnknownKey:
        return verified(token, await source.renewed(), rules)


class FixedKeys:
    """A KeySource whose keys never change."""

    def __init__(self, keys: KeySet) -> None:
        self._keys = keys

    async def current(self) -> KeySet:
        return self._keys

    async def renewed(self) -> KeySet:
        return self._keys

    async def close(self) -> None:
        """Nothing is under way."""


class FileKeys:
    """The KeySource of a file. It is read again when it changes. While a new file cannot be read, the old keys count.

    Raises ValueError, with the end of a sentence that begins with the name of the file.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = monotonic) -> None:
        self._path, self._clock = path, clock
        self._version = _version_of(path)
        self._keys = _read(path)
        self._checked_at = clock()

    async def current(self) -> KeySet:
        if self._clock() - self._checked_at >= FILE_CHECK:
            return await self.renewed()
        return self._keys

    async def renewed(self) -> KeySet:
        self._checked_at = self._clock()
        version = await asyncio.to_thread(_version_of, self._path)
        if version is not None and version != self._version:
            self._version = version
            try:
                self._keys = await asyncio.to_thread(_read, self._path)
                log.info("the file with the keys of an issuer was replaced", keys=len(self._keys))
            except ValueError as fault:
                log.error("the new file with the keys of an issuer cannot be used", why=f"it {fault}")
        return self._keys

    async def close(self) -> None:
        """A file is open only while it is read."""


class RemoteKeys:
    """The KeySource of an address, or of the `jwks_uri` that the issuer's discovery document names.

    One fetch is under way at a time, and those who need it wait for it. After a failed one, nobody waits any more as
    long as the last good keys count.
    """

    def __init__(
        self, fetcher: Fetcher, issuer: str, url: str | None = None, *, clock: Callable[[], float] = monotonic
    ) -> None:
        self._fetcher, self._issuer, self._url, self._clock = fetcher, issuer, url, clock
        self._asked = ""
        """The address of the document that is being fetched."""
        self._keys: KeySet | None = None
        self._fetched_at = self._tried_at = -inf
        self._has_failed = False
        self._fetch: asyncio.Task[None] | None = None

    async def current(self) -> KeySet:
        age = self._clock() - self._fetched_at
        if age >= FRESH:
            fetch = self._start()
            if fetch is not None and not (self._has_failed and age < LAST_GOOD):
                await asyncio.shield(fetch)  # others wait for it, too
        return self._usable()

    async def renewed(self) -> KeySet:
        fetch = self._start()
        if fetch is not None:
            await asyncio.shield(fetch)
        return self._usable()

    async def close(self) -> None:
        if self._fetch is not None:
            self._fetch.cancel()
            await asyncio.gather(self._fetch, return_exceptions=True)

    def _start(self) -> asyncio.Task[None] | None:
        """Return the fetch that is under way, or a new one. None if it is too early for another one."""
        if self._fetch is None and self._clock() - self._tried_at >= PAUSE:
            self._tried_at = self._clock()
            self._fetch = asyncio.create_task(self._run())
        return self._fetch

    async def _run(self) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                self._keys = await self._load()
            self._fetched_at, self._has_failed = self._clock(), False
        except FetchFailed as fault:
            self._fail(f"it {fault}")
        except ValueError as fault:
            self._fail(f"its key set {fault}")
        except TimeoutError:
            self._fail("it did not answer in time")
        finally:
            self._fetch = None

    async def _load(self) -> KeySet:
        self._asked = self._url or discovery_address(self._issuer)
        if self._url is None:
            self._asked = await keys_address(self._fetcher, self._issuer)
        # In a thread: a hundred keys take some milliseconds.
        return await asyncio.to_thread(KeySet.parse, await self._fetcher.get(self._asked))

    def _fail(self, why: str) -> None:
        self._has_failed = True
        log.warning("the keys of an issuer cannot be fetched", url=self._asked[:MAX_LOGGED], why=why)

    def _usable(self) -> KeySet:
        moment = self._clock()
        if self._keys is None or moment - self._fetched_at >= LAST_GOOD:
            raise IssuerUnavailable(retry_after=max(1, round(self._tried_at + PAUSE - moment)))
        return self._keys


async def keys_address(fetcher: Fetcher, issuer: str) -> str:
    """Return the address of the keys in the issuer's discovery document. Raises FetchFailed."""
    address = (await fetcher.discover(issuer)).get("jwks_uri")
    if not isinstance(address, str):
        raise FetchFailed("sent a discovery document without jwks_uri")
    return address


def _version_of(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _read(path: Path) -> KeySet:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError:
        raise ValueError("cannot be read") from None
    return KeySet.parse(content)
