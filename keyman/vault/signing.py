"""Transit signatures for the anchors of the audit log. The policies of the planes give no access to the key."""

from __future__ import annotations

import base64

from hvac.api.secrets_engines.transit import Transit

from keyman.config.vault import VaultSettings
from keyman.errors import ConfigurationError
from keyman.vault.adapter import AsyncAdapter, VaultFault, extract, none_if_missing


class Signer:
    """Signs with one key. The token must be allowed to use it."""

    def __init__(self, adapter: AsyncAdapter, settings: VaultSettings, key: str) -> None:
        self._transit = Transit(adapter)
        self._settings = settings
        self._key = key

    async def create_key(self) -> bool:
        """Create the key, ed25519 and not exportable, unless it exists. Return True when it was created.

        Raises VaultFault, and ConfigurationError when a key with that name cannot sign.
        """
        existing = await none_if_missing(self._transit.read_key(self._key, mount_point=self._settings.mount))
        if existing is not None:
            if not extract(existing, bool, "data", "supports_signing"):
                raise ConfigurationError(f"The key {self._key} exists and cannot sign: choose another name.")
            return False
        await self._transit.create_key(
            self._key, exportable=False, key_type="ed25519", mount_point=self._settings.mount
        )
        return True

    async def sign(self, message: bytes) -> str:
        """Return the signature, `vault:v<version>:<base64>`. Raises VaultFault."""
        encoded = base64.b64encode(message).decode()
        answer = await self._transit.sign_data(self._key, encoded, mount_point=self._settings.mount)
        return extract(answer, str, "data", "signature")

    async def is_signature(self, message: bytes, signature: str) -> bool:
        """Return whether the signature is valid. Raises VaultFault when Vault gives no answer."""
        encoded = base64.b64encode(message).decode()
        try:
            answer = await self._transit.verify_signed_data(
                self._key, encoded, signature=signature, mount_point=self._settings.mount
            )
        except VaultFault as fault:
            if fault.status == 400:  # not a signature, or one of a key version that does not exist
                return False
            raise
        return extract(answer, bool, "data", "valid")
