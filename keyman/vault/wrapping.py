"""A secret ID that arrives response-wrapped: behind a token that gives it out once, so that nobody takes it unnoticed.

Vault's lookup comes first and uses nothing up: it names the path that the token was made by, and a token of another
path was put in the place of the real one. Then it is unwrapped, in one attempt: an answer that is lost on its way
leaves the token used up, and a second attempt would look like a theft.
"""

from __future__ import annotations

from dataclasses import replace

from keyman.config.vault import WRAPPED_SECRET_ID, VaultSettings
from keyman.errors import VAULT_DETAILS, ConfigurationError, VaultReason
from keyman.secret import Secret
from keyman.telemetry import Metrics
from keyman.vault.adapter import AsyncAdapter, VaultFault, taken

UNTOUCHED = (VaultReason.SEALED, VaultReason.QUOTA)
"""With these Vault says that it did not look at a request."""


async def unwrap(settings: VaultSettings, role: str) -> VaultSettings:
    """Settings with the secret ID in the place of its wrapping token; those without one are returned as they are.

    The token has to be of the AppRole that the settings name, or else of `role`. To be called once for a process and
    its children: the token is used up then. Raises ConfigurationError, which says what became of it and what to do.
    """
    if settings.wrapped_secret_id is None:
        return settings
    vault, role = AsyncAdapter(settings, Metrics()), settings.role or role
    try:
        await _look(vault, settings.wrapped_secret_id, role)
        secret_id = await _take(vault, settings.wrapped_secret_id, role)
    finally:
        await vault.close()
    return replace(settings, secret_id=secret_id, wrapped_secret_id=None)


async def check(settings: VaultSettings, role: str) -> None:
    """Look at the wrapping token as `unwrap` does, and leave it as it is. Raises ConfigurationError likewise."""
    assert settings.wrapped_secret_id is not None
    vault = AsyncAdapter(settings, Metrics())
    try:
        await _look(vault, settings.wrapped_secret_id, settings.role or role)
    finally:
        await vault.close()


async def _look(vault: AsyncAdapter, token: Secret, role: str) -> None:
    try:
        answer = await vault.post("/v1/sys/wrapping/lookup", json={"token": token.reveal()})
        made_by = taken(answer, str, "data", "creation_path")
    except VaultFault as fault:
        raise _invalid(role) if fault.status == 400 else _not_used(fault) from None
    if made_by != f"auth/approle/role/{role}/secret-id":
        raise _forged(role)


async def _take(vault: AsyncAdapter, token: Secret, role: str) -> Secret:
    vault.token = token.reveal()
    try:
        answer = await vault.post("/v1/sys/wrapping/unwrap", attempts=1)
        return Secret(taken(answer, str, "data", "secret_id"))
    except VaultFault as fault:
        if fault.status == 400:
            raise _invalid(role) from None
        raise _not_used(fault) if fault.reason in UNTOUCHED else _lost(fault, role) from None


def _invalid(role: str) -> ConfigurationError:
    return ConfigurationError(
        f"The wrapping token in {WRAPPED_SECRET_ID} is used up or has expired. Each start of keyman uses one up; if "
        f"none used this one, somebody may have stolen the secret ID. {_reaction(role)}"
    )


def _forged(role: str) -> ConfigurationError:
    return ConfigurationError(
        f"The wrapping token in {WRAPPED_SECRET_ID} holds no secret ID of the AppRole {role}, and was not used. If "
        "that is the right role (KEYMAN_VAULT_ROLE names another), somebody may have stolen the real one and put this "
        f"in its place. {_reaction(role)}"
    )


def _lost(fault: VaultFault, role: str) -> ConfigurationError:
    return ConfigurationError(
        f"{VAULT_DETAILS[fault.reason]} The wrapping token in {WRAPPED_SECRET_ID} was sent and may be used up; "
        f"somebody on the way may have the secret ID. {_reaction(role)}"
    )


def _not_used(fault: VaultFault) -> ConfigurationError:
    return ConfigurationError(
        f"{VAULT_DETAILS[fault.reason]} The wrapping token in {WRAPPED_SECRET_ID} was not used: start again before it "
        "expires."
    )


def _reaction(role: str) -> str:
    path = f"auth/approle/role/{role}"
    return (
        f"If so, destroy it (vault list {path}/secret-id, then vault write {path}/secret-id-accessor/destroy "
        f"secret_id_accessor=…). Issue another: keyman vault secret-id {role}"
    )
