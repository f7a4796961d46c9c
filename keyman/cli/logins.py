"""The logins of the commands that use Vault.

This is not in `common.py`, because other commands do not need these imports.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from keyman.cli.common import environment
from keyman.config.settings import Settings, load
from keyman.config.vault import VaultSettings, load_vault
from keyman.dev import embedded
from keyman.dev.home import Home
from keyman.errors import ConfigurationError, VaultReason
from keyman.logs import configure_logging
from keyman.metrics import Metrics
from keyman.vault.adapter import AsyncAdapter, VaultFault
from keyman.vault.provision import issue_credentials

T = TypeVar("T")


def admin_settings(home: Path | None) -> VaultSettings:
    """Return Vault's settings with an administrator's token: KEYMAN_VAULT_TOKEN, or the token of `keyman dev`'s Vault.

    Raises ConfigurationError.
    """
    variables = dict(environment(home))
    if home is not None:
        variables["KEYMAN_VAULT_TOKEN"] = embedded.root_token(Home(home).vault).reveal()
    return load_vault(variables)


def rotator_settings(home: Path | None) -> Settings:
    """Return settings whose login to Vault may rotate and rewrap.

    The login is that of the variables, or the rotator of the Vault that `keyman dev` keeps. Raises ConfigurationError.
    """
    settings = load(environment(home))
    if home is None:
        return settings
    try:
        issued = as_admin(admin_settings(home), lambda admin: issue_credentials(admin, "keyman-rotator"))
    except ConfigurationError as fault:
        raise ConfigurationError(f"{fault} Is keyman dev running with this home?") from None
    vault = replace(settings.vault, auth="approle", role_id=issued.role_id, secret_id=issued.secret_id)
    return replace(settings, vault=vault)


ADMIN_NEEDS = "the rights of the policy vault-policies/keyman-admin.hcl"


def as_admin(settings: VaultSettings, work: Callable[[AsyncAdapter], Awaitable[T]], needs: str = ADMIN_NEEDS) -> T:
    """Run `work` with the administrator's token.

    Raises ConfigurationError. When Vault refuses the token, the error says what the token `needs`.
    """

    async def do() -> T:
        assert settings.token is not None  # `admin_settings` requires it
        admin = AsyncAdapter(settings, Metrics())
        admin.token = settings.token.reveal()
        try:
            return await work(admin)
        finally:
            await admin.close()

    configure_logging("console", "critical")  # the error reports the fault; the log would repeat it
    try:
        return asyncio.run(do())
    except VaultFault as fault:
        raise ConfigurationError(_explained(fault, needs)) from None


def _explained(fault: VaultFault, needs: str) -> str:
    if fault.reason is VaultReason.FORBIDDEN:
        return f"Vault refuses KEYMAN_VAULT_TOKEN: it has expired, or has too few rights. It needs {needs}."
    return fault.explained()
