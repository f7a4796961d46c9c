"""The versions of Vault's key: making a new one, and bringing ciphertexts to it without anybody seeing a plaintext."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import NamedTuple

from hvac.api.secrets_engines.transit import Transit

from keyman.config.vault import VaultSettings
from keyman.vault.adapter import taken
from keyman.vault.cipher import Batch, Sealed, batch_answer
from keyman.vault.login import VaultClient

MAX_BATCH = 150
"""Ciphertexts in one call. OpenBao takes 1,000 JSON strings in a body, so 166 items of three fields at most."""


class KeyVersions(NamedTuple):
    """The newest version of the key, and the oldest that still opens what it sealed."""

    latest: int
    min_decryption: int


class Bound(NamedTuple):
    """A ciphertext, and in base64 the context that it is bound to."""

    ciphertext: str
    context: str


class KeyRotation:
    """The key's versions, with a token that may rewrap and, for `rotate`, rotate."""

    def __init__(self, client: VaultClient, settings: VaultSettings) -> None:
        self._client = client
        self._transit = Transit(client.adapter)
        self._settings = settings

    async def versions(self) -> KeyVersions:
        """Raises VaultUnavailable."""

        async def read() -> KeyVersions:
            answer = await self._transit.read_key(self._settings.key, mount_point=self._settings.mount)
            return KeyVersions(
                taken(answer, int, "data", "latest_version"), taken(answer, int, "data", "min_decryption_version")
            )

        return await self._client.call("read-key", read)

    async def rotate(self) -> KeyVersions:
        """Make a new version, with which everything is sealed from now on. Raises VaultUnavailable.

        A call whose answer was lost is repeated: there may be two new versions then, which does no harm.
        """
        await self._client.call(
            "rotate", lambda: self._transit.rotate_key(self._settings.key, mount_point=self._settings.mount)
        )
        return await self.versions()

    async def rewrap(self, items: Sequence[Bound]) -> list[Sealed | None]:
        """The same values under the newest version, in order; None for each that Vault refuses to open.

        At most MAX_BATCH items. Raises VaultUnavailable when none was tried.
        """
        batch = await self._client.call("rewrap", lambda: self._batch(items))
        if batch is not None:
            return batch.sealed()
        # Refused as a whole, and it is not said for which item.
        if len(items) == 1:
            return [None]
        middle = len(items) // 2
        return [*await self.rewrap(items[:middle]), *await self.rewrap(items[middle:])]

    def _batch(self, items: Sequence[Bound]) -> Awaitable[Batch | None]:
        batch = [item._asdict() for item in items]
        answer = self._transit.rewrap_data(
            self._settings.key, None, batch_input=batch, mount_point=self._settings.mount
        )
        return batch_answer(answer, len(items))
