"""Is Vault's key still the one that sealed this database?

A Transit key that is deleted and made again under the same name encrypts as if nothing had happened, and what it was
given before never opens again. What tells them apart is the sentinel, a ciphertext stored at the first start. The guard
of the plane that seals asks whether it still rewraps, and for the key's properties; nothing is sealed while that is not
so. The plane that opens has a guard of its own, in opener.py.
"""

from __future__ import annotations

import asyncio
import base64
import contextvars
from abc import ABC, abstractmethod
from time import monotonic
from typing import Protocol
from uuid import UUID

from hvac.api.secrets_engines.transit import Transit

from keyman.config.vault import VaultSettings
from keyman.errors import VaultReason, VaultUnavailable
from keyman.telemetry import log
from keyman.vault.adapter import VaultFault, taken
from keyman.vault.inspection import key_properties
from keyman.vault.login import VaultClient

SENTINEL_PLAINTEXT = "keyman sentinel"

KEY_PROPERTIES = {
    "type": "aes256-gcm96",
    "derived": True,  # on another key Vault ignores the context, and nothing binds a value to its row
    "exportable": False,
    "allow_plaintext_backup": False,
    "supports_encryption": True,
}
"""What Vault must say of the key. `provision.py` makes it so."""


class SentinelStore(Protocol):
    """Where the sentinel is kept. `uuid` is the deployment's."""

    uuid: UUID

    async def sentinel(self, *, anew: bool = False) -> str | None:
        """The stored one, or None; `anew` is not answered from memory."""

    async def keep_sentinel(self, ciphertext: str) -> str | None:
        """Store it unless there is one; return the one that is stored, or None where none may be."""


def sentinel_context(deployment: UUID) -> str:
    """Base64, in the layout of a value's context; user 0 does not exist."""
    return base64.b64encode(f"keyman|v1|{deployment}|0|SENTINEL|{UUID(int=0)}".encode()).decode()


class Guard(ABC):
    """Checks the key, at most once in `max_age` seconds however many ask, and all who wait share one check."""

    def __init__(self) -> None:
        self._checking: asyncio.Task[None] | None = None
        self._checked_at = float("-inf")
        self._verdict: VaultUnavailable | None = None

    async def verify(self, max_age: float = 1.0) -> None:
        """Return when Vault's key was seen to be the right one at most `max_age` seconds ago.

        Raises VaultUnavailable otherwise, DatabaseUnavailable when the sentinel cannot be read.
        """
        asked = monotonic()
        # Counted from the asking: who has waited for a check that took long shares its outcome.
        while asked - self._checked_at > max_age:
            is_starter, check = self._checking is None, self._checking
            if check is None:
                # In no request's context: others may share it, and Vault's log must not call it all the first one's.
                check = self._checking = asyncio.create_task(self._check_once(), context=contextvars.Context())
                check.add_done_callback(_retrieve)
            # Not `await check`: a caller that gives up does not cancel the check of the others.
            await asyncio.wait({check})
            if is_starter:
                check.result()  # an exception is the starter's; the others check for themselves
        if self._verdict is not None:
            raise VaultUnavailable(self._verdict.reason, retry_after=self._verdict.retry_after or 5)

    async def _check_once(self) -> None:
        started = monotonic()
        try:
            self._verdict = await self._check()
            self._checked_at = started if self._verdict is None else monotonic()
        finally:
            self._checking = None

    @abstractmethod
    async def _check(self) -> VaultUnavailable | None:
        """What is wrong with the key. Raises DatabaseUnavailable when the sentinel cannot be read."""


def _retrieve(check: asyncio.Task[None]) -> None:
    """Take a check's exception, so that asyncio does not complain when the caller that started it has given up."""
    if not check.cancelled():
        check.exception()


class KeyGuard(Guard):
    """The guard of the plane that seals: it may read the key's properties and rewrap, and keeps the first sentinel."""

    def __init__(self, client: VaultClient, settings: VaultSettings, store: SentinelStore) -> None:
        super().__init__()
        self._client = client
        self._transit = Transit(client.adapter)
        self._settings = settings
        self._store = store

    async def _check(self) -> VaultUnavailable | None:
        sentinel = await self._store.sentinel()
        try:
            if sentinel is None:
                # The first start: nothing is sealed with a key that is not as it must be, the sentinel least of all.
                await self._check_properties()
                sentinel = await self._store.keep_sentinel(await self._seal_sentinel())
            # Side by side, so that both take no longer than one; what the properties say comes first.
            verdicts = await asyncio.gather(
                self._check_properties(), self._check_sentinel(sentinel), return_exceptions=True
            )
        except VaultUnavailable as fault:
            return fault
        for verdict in verdicts:
            if isinstance(verdict, VaultUnavailable):
                return verdict
            if isinstance(verdict, BaseException):
                raise verdict
        return None

    async def _check_properties(self) -> None:
        data = await key_properties(self._client, self._settings)
        wrong = [name for name, value in KEY_PROPERTIES.items() if (data or {}).get(name) != value]
        if wrong:
            log.error(
                "vault's key is not as it must be",
                key=self._settings.key,
                mount=self._settings.mount,
                properties=wrong if data else "missing",
            )
            raise VaultUnavailable(VaultReason.WRONG_KEY, retry_after=60)

    async def _check_sentinel(self, sentinel: str | None) -> None:
        if sentinel is not None and await self._rewraps(sentinel):
            return
        # After a rotation another process has brought it to the newest version, and Vault may refuse older ones.
        newer = await self._store.sentinel(anew=True)
        if newer is None or newer == sentinel or not await self._rewraps(newer):
            log.error("vault's key does not open the sentinel: another key, another Vault or another database")
            raise VaultUnavailable(VaultReason.WRONG_KEY, retry_after=60)

    async def _seal_sentinel(self) -> str:
        async def encrypt() -> str:
            answer = await self._transit.encrypt_data(
                self._settings.key,
                plaintext=base64.b64encode(SENTINEL_PLAINTEXT.encode()).decode(),
                context=sentinel_context(self._store.uuid),
                mount_point=self._settings.mount,
            )
            return taken(answer, str, "data", "ciphertext")

        return await self._client.call("encrypt", encrypt)

    async def _rewraps(self, sentinel: str) -> bool:
        async def rewrap() -> bool:
            try:
                answer = await self._transit.rewrap_data(
                    self._settings.key,
                    sentinel,
                    context=sentinel_context(self._store.uuid),
                    mount_point=self._settings.mount,
                )
            except VaultFault as fault:
                if fault.status == 400:
                    return False
                raise
            return taken(answer, str, "data", "ciphertext").startswith("vault:v")

        return await self._client.call("rewrap", rewrap)
