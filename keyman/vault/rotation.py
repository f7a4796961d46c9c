"""The versions of Vault's key: creates a new one, and rewraps ciphertexts without showing a plaintext to anybody."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import NamedTuple

import msgspec
from hvac.api.secrets_engines.transit import Transit

from keyman.config.vault import VaultSettings
from keyman.vault.adapter import extract
from keyman.vault.cipher import Batch, Sealed, batch_answer
from keyman.vault.login import VaultClient

MAX_BATCH = 150
"""Ciphertexts in one call. OpenBao takes 1,000 JSON strings in a body, so 166 items of three fields at most."""


class KeyVersions(NamedTuple):
    """The newest version of the key, and the oldest one that Vault still opens."""

    latest: int
    min_decryption: int


class Bound(msgspec.Struct, frozen=True):
    """A ciphertext and its context in base64, as Transit takes them."""

    ciphertext: str
    context: str


class KeyRotation:
    """Reads, rotates and rewraps. The token must be allowed to rewrap and, for `rotate`, to rotate."""

    def __init__(self, client: VaultClient, settings: VaultSettings) -> None:
        self._client = client
        self._transit = Transit(client.adapter)
        self._settings = settings

    async def versions(self) -> KeyVersions:
        """Return the versions of the key. Raises VaultUnavailable."""

        async def read() -> KeyVersions:
            answer = await self._transit.read_key(self._settings.key, mount_point=self._settings.mount)
            return KeyVersions(
                extract(answer, int, "data", "latest_version"), extract(answer, int, "data", "min_decryption_version")
            )

        return await self._client.call("read-key", read)

    async def rotate(self) -> KeyVersions:
        """Create a new version, which seals everything from now on. Raises VaultUnavailable.

        A call whose answer was lost is repeated. There may then be two new versions, which does no harm.
        """
        await self._client.call(
            "rotate", lambda: self._transit.rotate_key(self._settings.key, mount_point=self._settings.mount)
        )
        return await self.versions()

    async def rewrap(self, items: Sequence[Bound]) -> list[Sealed | None]:
        """Return the same values sealed with the newest version, in order; None for each that Vault refuses to open.

        Takes at most MAX_BATCH items. Raises VaultUnavailable when Vault tried none.
        """
        batch = await self._client.call("rewrap", lambda: self._batch(items))
        if batch is not None:
            return batch.sealed()
        # Vault refused the whole batch, and does not say because of which item. So try each half.
        if len(items) == 1:
            return [None]
        middle = len(items) // 2
        return [*await self.rewrap(items[:middle]), *await self.rewrap(items[middle:])]

    def _batch(self, items: Sequence[Bound]) -> Awaitable[Batch | None]:
        answer = self._transit.rewrap_data(
            self._settings.key, None, batch_input=items, mount_point=self._settings.mount
        )
        return batch_answer(answer, len(items))
