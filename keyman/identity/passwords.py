"""Hashes and verifies passwords with Argon2id, in a limited number of threads."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from time import monotonic
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError, VerifyMismatchError
from argon2.low_level import ARGON2_VERSION
from argon2.profiles import RFC_9106_LOW_MEMORY

from keyman.errors import KeymanError
from keyman.identity.turns import FairQueue, Place, groups_of
from keyman.secret import Secret

T = TypeVar("T")

THREADS = max(1, (os.cpu_count() or 1) // 2)
"""The maximum number of hashes at the same time. Each takes four lanes, 64 MiB and about 100 ms of a processor. The
other processors stay free.
"""

MAX_WAITING = min(64 * THREADS, 512)
"""The maximum number of requests whose hashes are unfinished, a quarter of it from one network. Further requests are
refused, because their clients would time out.
"""


class WrongPassword(KeymanError):
    """The password does not match the stored hash."""


class Passwords:
    """Hashes and verifies passwords. Without `hasher`, it uses the low-memory profile of RFC 9106."""

    def __init__(self, hasher: PasswordHasher | None = None) -> None:
        self._hasher = hasher or PasswordHasher.from_parameters(RFC_9106_LOW_MEMORY)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="argon2")
        self._queue = FairQueue(THREADS, MAX_WAITING)
        # Verified for an account that does not exist, so that the answer takes the same time.
        self._decoy = _decoy(self._hasher)

    def place(self, account: str, address: str | None) -> AbstractContextManager[Place]:
        """Take a place in the queue, for the length of a block. `account` is the key of the e-mail address.

        It costs nothing else, so take it before any other work. Raises RateLimited when there is none.
        """
        return self._queue.place(groups_of(account, address))

    async def hash(self, password: Secret, place: Place | None = None) -> str:
        """Return the PHC string to store. Without `place`, it takes one. Raises RateLimited when too many wait."""
        return await self._run(lambda: self._hasher.hash(password.reveal()), place)

    async def verify(self, stored: str | None, password: Secret, place: Place | None = None) -> str | None:
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
            return await self._run(verify, place)
        except (VerifyMismatchError, VerificationError, InvalidHashError):
            raise WrongPassword from None

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _run(self, work: Callable[[], T], place: Place | None) -> T:
        if place is None:
            with self._queue.place() as own:
                return await self._run(work, own)
        await self._queue.turn(place)
        started = monotonic()
        running = asyncio.get_running_loop().run_in_executor(self._threads, work)
        running.add_done_callback(lambda _: self._queue.end_turn(place, monotonic() - started))
        # If the client gives up, the thread goes on. The turn lasts until it has finished.
        return await asyncio.shield(running)


def _decoy(hasher: PasswordHasher) -> str:
    """Return a PHC string with the parameters of `hasher` that matches no password: its salt and its digest are random.

    It is not the hash of a password, because computing one would delay each start by as long as a sign-in takes.
    """
    cost = f"m={hasher.memory_cost},t={hasher.time_cost},p={hasher.parallelism}"
    salt, digest = (
        base64.b64encode(os.urandom(size)).decode().rstrip("=") for size in (hasher.salt_len, hasher.hash_len)
    )
    return f"$argon2id$v={ARGON2_VERSION}${cost}${salt}${digest}"
