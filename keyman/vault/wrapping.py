"""Response-wrapped secret IDs. The wrapping token can be unwrapped only once, so that a theft is noticed.

First comes a lookup, which does not use up the token: it returns the path that created the token, and shows whether
somebody has replaced it with another token. Then the token is unwrapped, with only one attempt: if the answer is lost,
the token is used up, and a second attempt would look like a theft.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import NamedTuple, Self

from keyman.config.vault import WRAPPED_SECRET_ID, VaultSettings
from keyman.errors import VAULT_DETAILS, ConfigurationError, VaultReason
from keyman.logs import Repeats, log
from keyman.metrics import Metrics
from keyman.secret import Secret
from keyman.vault.adapter import AsyncAdapter, VaultFault, extract

UNTOUCHED = (VaultReason.SEALED, VaultReason.QUOTA)
"""The reasons with which Vault did not process a request."""


AWAY = (*UNTOUCHED, VaultReason.UNREACHABLE, VaultReason.TIMEOUT)
"""The reasons that end by themselves. After them, the lookup can be repeated, because it does not use up the token."""

PAUSE = 2.0
"""Seconds between two attempts of `unwrap_when_possible`. A wrapping token lives for minutes."""


class VaultAway(ConfigurationError):
    """Vault could not be asked, and the wrapping token was not used."""

    def __init__(self, message: str, reason: VaultReason) -> None:
        super().__init__(message)
        self.reason = reason


class _Role(NamedTuple):
    """The AppRole that a wrapping token must be for: its name, and its path in Vault."""

    name: str
    path: str

    @classmethod
    def of(cls, settings: VaultSettings, role: str) -> Self:
        name = settings.role or role
        return cls(name, f"auth/{settings.approle_mount}/role/{name}")


async def unwrap(settings: VaultSettings, role: str) -> VaultSettings:
    """Return settings with the secret ID instead of its wrapping token. Settings without one are returned unchanged.

    The token must be for the AppRole that the settings name, or else for `role`. Call this once for a process and its
    children, because it uses up the token. Raises ConfigurationError, which says what happened and what to do. It is
    VaultAway if another attempt may succeed.
    """
    if settings.wrapped_secret_id is None:
        return settings
    vault, named = AsyncAdapter(settings, Metrics()), _Role.of(settings, role)
    try:
        await _check_path(vault, settings.wrapped_secret_id, named)
        secret_id = await _unwrap(vault, settings.wrapped_secret_id, named)
    finally:
        await vault.close()
    return replace(settings, secret_id=secret_id, wrapped_secret_id=None)


async def unwrap_when_possible(settings: VaultSettings, role: str) -> VaultSettings:
    """Do the same as `unwrap`, and while Vault is away, try again until the token expires."""
    repeats = Repeats()
    while True:
        try:
            return await unwrap(settings, role)
        except VaultAway as fault:
            if repeats.is_due(fault.reason):
                log.error("vault is away: the plane waits for it to unwrap its secret ID", reason=fault.reason.value)
        await asyncio.sleep(PAUSE)


async def check(settings: VaultSettings, role: str) -> None:
    """Look up the wrapping token as `unwrap` does, without using it up. Raises ConfigurationError like `unwrap`."""
    assert settings.wrapped_secret_id is not None
    vault = AsyncAdapter(settings, Metrics())
    try:
        await _check_path(vault, settings.wrapped_secret_id, _Role.of(settings, role))
    finally:
        await vault.close()


async def _check_path(vault: AsyncAdapter, token: Secret, role: _Role) -> None:
    try:
        answer = await vault.post("/v1/sys/wrapping/lookup", json={"token": token.reveal()})
        made_by = extract(answer, str, "data", "creation_path")
    except VaultFault as fault:
        raise _invalid(role) if fault.status == 400 else _not_used(fault) from None
    if made_by != f"{role.path}/secret-id":
        raise _forged(role)


async def _unwrap(vault: AsyncAdapter, token: Secret, role: _Role) -> Secret:
    vault.token = token.reveal()
    try:
        answer = await vault.post("/v1/sys/wrapping/unwrap", attempts=1)
        return Secret(extract(answer, str, "data", "secret_id"))
    except VaultFault as fault:
        if fault.status == 400:
            raise _invalid(role) from None
        raise _not_used(fault) if fault.reason in UNTOUCHED else _lost(fault, role) from None


def _invalid(role: _Role) -> ConfigurationError:
    return ConfigurationError(
        f"The wrapping token in {WRAPPED_SECRET_ID} is used up or has expired. Each start of keyman needs a new one. "
        f"If no start used this one, somebody may have stolen the secret ID. {_reaction(role)}"
    )


def _forged(role: _Role) -> ConfigurationError:
    return ConfigurationError(
        f"The wrapping token in {WRAPPED_SECRET_ID} holds no secret ID of the AppRole {role.name}, and was not used. "
        "If this is the right role (KEYMAN_VAULT_ROLE can name another), somebody may have stolen the real token and "
        f"replaced it with this one. {_reaction(role)}"
    )


def _lost(fault: VaultFault, role: _Role) -> ConfigurationError:
    return ConfigurationError(
        f"{VAULT_DETAILS[fault.reason]} The wrapping token in {WRAPPED_SECRET_ID} was sent and may be used up. "
        f"Somebody in the network may have the secret ID. {_reaction(role)}"
    )


def _not_used(fault: VaultFault) -> ConfigurationError:
    message = (
        f"{VAULT_DETAILS[fault.reason]} The wrapping token in {WRAPPED_SECRET_ID} was not used. Start again before it "
        "expires."
    )
    return VaultAway(message, fault.reason) if fault.reason in AWAY else ConfigurationError(message)


def _reaction(role: _Role) -> str:
    return (
        f"If so, destroy it (vault list {role.path}/secret-id, then vault write {role.path}/secret-id-accessor/destroy "
        f"secret_id_accessor=…). Issue another: keyman vault secret-id {role.name}"
    )
