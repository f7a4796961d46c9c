"""The guard checks that Vault's key is still the one that sealed this database.

A Transit key that was deleted and created again with the same name encrypts without an error, but never opens older
ciphertexts. The sentinel, a ciphertext stored at the first start, shows the difference. The guard of the plane that
seals checks that the sentinel still rewraps, and checks the properties of the key. Nothing is sealed unless both are
right. The plane that opens has its own guard, in opener.py.
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
from keyman.logs import log
from keyman.vault.adapter import VaultFault, extract
from keyman.vault.inspection import key_properties
from keyman.vault.login import VaultClient

SENTINEL_PLAINTEXT = "keyman sentinel"

KEY_PROPERTIES = {
    "type": "aes256-gcm96",
    "derived": True,  # otherwise Vault ignores the context, and nothing binds a value to its row
    "exportable": False,
    "allow_plaintext_backup": False,
    "supports_encryption": True,
}
"""The properties that the key must have. `provision.py` creates it with them."""


MAX_AGE = 1.0
"""Seconds for which a check that found the right key counts."""


class SentinelStore(Protocol):
    """The storage of the sentinel. `uuid` is that of the deployment."""

    uuid: UUID

    async def sentinel(self, *, refresh: bool = False) -> str | None:
        """Return the stored sentinel, or None. With `refresh`, read it from the database and not from memory."""

    async def store_sentinel(self, ciphertext: str) -> str | None:
        """Store the sentinel unless there is one. Return the stored one, or None when none may be stored."""


def sentinel_context(deployment: UUID) -> str:
    """Return base64 in the layout of a value's context. User 0 does not exist."""
    return base64.b64encode(f"keyman|v1|{deployment}|0|SENTINEL|{UUID(int=0)}".encode()).decode()


class Guard(ABC):
    """Checks the key at most once per `max_age` seconds. All callers that wait share one check."""

    def __init__(self, client: VaultClient, settings: VaultSettings, store: SentinelStore) -> None:
        self._client = client
        self._transit = Transit(client.adapter)
        self._settings = settings
        self._store = store
        self._checking: asyncio.Task[None] | None = None
        self._checked_at = float("-inf")
        self._verdict: VaultUnavailable | None = None

    def is_fresh(self) -> bool:
        """Return whether `verify` would return at once."""
        return self._verdict is None and monotonic() - self._checked_at <= MAX_AGE

    async def verify(self, max_age: float = MAX_AGE) -> None:
        """Return if a check found the right key at most `max_age` seconds ago.

        Otherwise raises VaultUnavailable, or DatabaseUnavailable when the sentinel cannot be read.
        """
        asked = monotonic()
        # The age counts from the call, so that a caller that waited for a slow check can use its result.
        while asked - self._checked_at > max_age:
            is_starter, check = self._checking is None, self._checking
            if check is None:
                # In an empty context: other requests may share the check, and it must not carry the first one's id.
                check = self._checking = asyncio.create_task(self._check_once(), context=contextvars.Context())
                check.add_done_callback(_retrieve)
            # Not `await check`: a caller that gives up would cancel the check for the others.
            await asyncio.wait({check})
            if is_starter:
                check.result()  # only the starter gets the exception; the others start their own check
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
        """Return what is wrong with the key, or None. Raises DatabaseUnavailable when the sentinel cannot be read."""


def wrong_key(client: VaultClient) -> VaultUnavailable:
    """Count a wrong key, which no failed call counts: Vault answered. Return the error."""
    client.count_failure("check-key", VaultReason.WRONG_KEY)
    return VaultUnavailable(VaultReason.WRONG_KEY, retry_after=60)


def _retrieve(check: asyncio.Task[None]) -> None:
    """Retrieve a check's exception, so that asyncio logs no error when the caller that started it has given up."""
    if not check.cancelled():
        check.exception()


class KeyGuard(Guard):
    """The guard of the plane that seals. It reads the key's properties, rewraps, and stores the first sentinel."""

    async def _check(self) -> VaultUnavailable | None:
        sentinel = await self._store.sentinel()
        try:
            if sentinel is None:
                # The first start. Check the key before anything is sealed with it, above all the sentinel.
                await self._check_properties()
                sentinel = await self._store.store_sentinel(await self._seal_sentinel())
            # In parallel, so that both take no longer than one. The result of the properties counts first.
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
                "vault's key has wrong properties",
                key=self._settings.key,
                mount=self._settings.mount,
                properties=wrong if data else "missing",
            )
            raise wrong_key(self._client)

    async def _check_sentinel(self, sentinel: str | None) -> None:
        if sentinel is not None and await self._rewraps(sentinel):
            return
        # After a rotation, another process may have rewrapped the sentinel, and Vault may refuse older versions.
        newer = await self._store.sentinel(refresh=True)
        if newer is None or newer == sentinel or not await self._rewraps(newer):
            log.error("vault's key does not open the sentinel: another key, another Vault or another database")
            raise wrong_key(self._client)

    async def _seal_sentinel(self) -> str:
        async def encrypt() -> str:
            answer = await self._transit.encrypt_data(
                self._settings.key,
                plaintext=base64.b64encode(SENTINEL_PLAINTEXT.encode()).decode(),
                context=sentinel_context(self._store.uuid),
                mount_point=self._settings.mount,
            )
            return extract(answer, str, "data", "ciphertext")

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
            return extract(answer, str, "data", "ciphertext").startswith("vault:v")

        return await self._client.call("rewrap", rewrap)
