"""Checks, seals and masks a value before it is stored."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID, uuid4

from keyman.errors import InvalidRequest
from keyman.providers.catalogue import Catalogue
from keyman.providers.recognition import check_value
from keyman.secret import Secret
from keyman.vault.cipher import Cipher, Context
from keyman.vault.duplicates import Fingerprints


class StoredValue(NamedTuple):
    """The columns of `api_keys` that always change together with the value."""

    encrypted_key: str
    key_version: int
    value_uuid: UUID
    last_4_chars: str
    fingerprint: bytes | None = None


class SealedValue(NamedTuple):
    """The stored columns of a value, and Vault's id of the call that sealed it, for the audit log."""

    stored: StoredValue
    vault_request_id: str | None


class Sealer:
    """Seals the values of one deployment."""

    def __init__(
        self, cipher: Cipher, deployment: UUID, catalogue: Catalogue, fingerprints: Fingerprints | None = None
    ) -> None:
        self._fingerprints = fingerprints
        self._cipher = cipher
        self._deployment = deployment
        self._catalogue = catalogue

    async def seal(self, owner_id: int, service: str, value: Secret) -> SealedValue:
        """Seal a value under a new context. Raises VaultUnavailable, InvalidRequest for a key of another service."""
        faults = tuple(check_value(self._catalogue, service, value.reveal()))
        if faults:
            raise InvalidRequest.at(*faults)
        # Each value gets a new uuid. If somebody restores an older ciphertext in the row, it does not open. If they
        # restore its uuid too, it is not the value that the audit log names.
        value_uuid = uuid4()
        of_value = (self._deployment, owner_id, service)
        computing = None if self._fingerprints is None else self._fingerprints.start(*of_value, value)
        sealed = await self._cipher.encrypt(value, Context(*of_value, value_uuid))
        fingerprint = None if computing is None else await computing
        shown = self._catalogue.mask(service, value.reveal())
        stored = StoredValue(sealed.ciphertext, sealed.key_version, value_uuid, shown, fingerprint)
        return SealedValue(stored, sealed.request_id)

    async def seal_all(self, owner_id: int, values: Sequence[tuple[str, Secret]]) -> list[SealedValue]:
        """Seal several values, each given with its service. They go to Vault in one call, unless others wait there.

        Raises what `seal` raises, unless all of them are sealed.
        """
        sealing = (self.seal(owner_id, service, value) for service, value in values)
        # With `return_exceptions`, none of them goes on after this has raised.
        outcomes = await asyncio.gather(*sealing, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
