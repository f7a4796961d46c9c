"""Opening: one ciphertext and its context in, one plaintext out. The only place that asks Vault to decrypt.

One value a call, never a batch: a batch that partly fails answers with the plaintexts of the others in an error. Vault
answers 400 for a ciphertext that is not this row's, and just the same for everything once its key was replaced. So
before a value is called unopenable, the sentinel must open.
"""

from __future__ import annotations

import asyncio
import base64
import hmac

from hvac.api.secrets_engines.transit import Transit

from keyman.config.vault import VaultSettings
from keyman.errors import Undecryptable, VaultReason, VaultUnavailable, raise_alone
from keyman.secret import Secret
from keyman.telemetry import log
from keyman.vault.adapter import VaultFault, taken
from keyman.vault.cipher import Context
from keyman.vault.guard import SENTINEL_PLAINTEXT, Guard, SentinelStore, sentinel_context
from keyman.vault.login import VaultClient


class TransitOpener(Guard):
    """An Opener on Vault's Transit engine, and the guard of the plane that opens."""

    def __init__(self, client: VaultClient, settings: VaultSettings, store: SentinelStore) -> None:
        super().__init__()
        self._client = client
        self._transit = Transit(client.adapter)
        self._settings = settings
        self._store = store

    async def open(self, ciphertext: str, context: Context) -> Secret:
        try:
            async with asyncio.timeout(self._settings.timeout):
                plaintext = await self._decrypt(ciphertext, context.encoded())
                if plaintext is None:
                    # Asked anew: a Vault that was another one for a moment must not get a good row marked.
                    await self.verify(max_age=0)
                    plaintext = await self._decrypt(ciphertext, context.encoded())
        except TimeoutError:
            raise VaultUnavailable(VaultReason.TIMEOUT) from None
        if plaintext is None:
            raise Undecryptable("Vault does not open this key any more. Its owner must store it again.")
        return plaintext

    async def _check(self) -> VaultUnavailable | None:
        sentinel = await self._store.sentinel()
        if sentinel is None:
            log.info("there is no sentinel in the database yet: the management plane stores it when it first starts")
            return VaultUnavailable(VaultReason.WRONG_KEY)
        try:
            if await self._opens(sentinel):
                return None
            # After a rotation another process has brought it to the newest version, and Vault may refuse older ones.
            newer = await self._store.sentinel(anew=True)
            if newer is not None and newer != sentinel and await self._opens(newer):
                return None
        except VaultUnavailable as fault:
            return fault
        log.error("vault's key does not open the sentinel: another key, another Vault or another database")
        return VaultUnavailable(VaultReason.WRONG_KEY, retry_after=60)

    async def _opens(self, sentinel: str) -> bool:
        opened = await self._decrypt(sentinel, sentinel_context(self._store.uuid))
        return opened is not None and hmac.compare_digest(opened.reveal().encode(), SENTINEL_PLAINTEXT.encode())

    async def _decrypt(self, ciphertext: str, context: str) -> Secret | None:
        """The plaintext, or None where Vault refuses this ciphertext under this context. Raises VaultUnavailable."""

        async def request() -> Secret | None:
            try:
                answer = await self._transit.decrypt_data(
                    self._settings.key, ciphertext, context=context, mount_point=self._settings.mount
                )
            except VaultFault as fault:
                if fault.status == 400:
                    return None
                raise
            return _decoded(taken(answer, str, "data", "plaintext"))

        return await self._client.call("decrypt", request)


def _decoded(plaintext: str) -> Secret:
    """From Vault's base64. Raises VaultFault, alone: the codecs' own errors hold what they were given."""
    try:
        return Secret(base64.b64decode(plaintext, validate=True).decode())
    except ValueError:
        raise_alone(VaultFault(VaultReason.ERROR, 200))
