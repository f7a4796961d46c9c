"""Hashes and verifies passwords with Argon2id, in a limited number of threads."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError, VerifyMismatchError
from argon2.low_level import ARGON2_VERSION
from argon2.profiles import RFC_9106_LOW_MEMORY

from keyman.errors import KeymanError, RateLimited
from keyman.secret import Secret

T = TypeVar("T")

THREADS = max(1, (os.cpu_count() or 1) // 2)
"""The maximum number of hashes at the same time. Each takes four lanes, 64 MiB and about 100 ms of a processor. The
other processors stay free.
"""

MAX_WAITING = 16 * THREADS
"""The maximum number of unfinished hashes. Further requests are refused, because their clients would time out."""


class WrongPassword(KeymanError):
    """The password does not match the stored hash."""


class Passwords:
    """Hashes and verifies passwords. Without `hasher`, it uses the low-memory profile of RFC 9106."""

    def __init__(self, hasher: PasswordHasher | None = None) -> None:
        self._hasher = hasher or PasswordHasher.from_parameters(RFC_9106_LOW_MEMORY)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="argon2")
        self._waiting = 0
        # Verified for an account that does not exist, so that the answer takes the same time.
        self._decoy = _decoy(self._hasher)

    async def hash(self, password: Secret) -> str:
        """Return the PHC string to store. Raises RateLimited when too many wait."""
        return await self._run(lambda: self._hasher.hash(password.reveal()))

    async def verify(self, stored: str | None, password: Secret) -> str | None:
        """Verify a password. Return a new hash to store if the parameters of `stored` are outdated, else None.

        Raises WrongPassword. If `stored` is None (no such account), this takes the same time as with a hash. Raises
        RateLimited when too many wait.
        """

        def verify() -> str | None:
            self._hasher.verify(stored or self._decoy, password.reveal())
            if stored is None:
                raise WrongPassword
            return self._hasher.hash(password.reveal()) if self._hasher.check_needs_rehash(stored) else None

        try:
            return await self._run(verify)
        except (VerifyMismatchError, VerificationError, InvalidHashError):
            raise WrongPassword from None

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _run(self, work: Callable[[], T]) -> T:
        if self._waiting >= MAX_WAITING:
            raise RateLimited("Too many people are signing in at this moment.", retry_after=2)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._waiting -= 1


def _decoy(hasher: PasswordHasher) -> str:
    """Return a PHC string with the parameters of `hasher` that matches no password: its salt and its digest are random.

    It is not the hash of a password, because computing one would delay each start by as long as a sign-in takes.
    """
    cost = f"m={hasher.memory_cost},t={hasher.time_cost},p={hasher.parallelism}"
    salt, digest = (
        base64.b64encode(os.urandom(size)).decode().rstrip("=") for size in (hasher.salt_len, hasher.hash_len)
    )
    return f"$argon2id$v={ARGON2_VERSION}${cost}${salt}${digest}"
