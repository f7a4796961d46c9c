"""All of keyman on one machine: an embedded Vault, SQLite, and `keyman serve` logged in with its AppRole.

One process keeps the others: whichever of them ends, and however this one ends, none is left behind. What they store
stays in the home directory, and a second start goes on with it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from http.client import HTTPConnection, HTTPException
from types import FrameType

import click

from keyman import migrations
from keyman.config import VaultSettings
from keyman.errors import ConfigurationError
from keyman.home import Home, without_own
from keyman.processes import check_port, spawn, stop
from keyman.telemetry import configure_logging
from keyman.vault import embedded, provision
from keyman.vault.adapter import VaultFault
from keyman.vault.embedded import EmbeddedVault

READY_TIMEOUT = 30.0
"""Seconds until the service answers; it takes one and a half on an idle machine."""

POLL = 0.03
"""Seconds between two looks at the children."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

BANNER = """
  keyman for development, not for keys that matter: the unseal key and the root
  token of its Vault lie in {home}

    API          {url}/api
    reference    {url}/docs
    readiness    {url}/readyz
    Vault        {vault}

  Ctrl-C stops it; what you store is there again at the next start.
"""


class _Stopped(Exception):
    """A signal asked for the end."""


def run(home: Home, port: int) -> None:
    """Start everything, print where it is, and keep it until a signal comes or one part ends.

    Raises ConfigurationError when something does not start or ends by itself; everything is stopped then.
    """
    configure_logging("console", "warning")
    for number in SIGNALS:
        signal.signal(number, _on_signal)
    url = f"http://127.0.0.1:{port}"
    try:
        with ExitStack() as stack:
            stack.enter_context(home.locked())
            check_port("127.0.0.1", port)
            vault = asyncio.run(_start_vault(home))
            stack.callback(vault.close)
            settings = asyncio.run(_set_up(home, vault, url))
            service = spawn(
                [sys.executable, "-m", "keyman", "serve", "--port", str(port)], without_own(os.environ) | settings
            )
            stack.callback(stop, service)
            _wait_until_ready(service, port)
            click.echo(BANNER.format(home=home.directory, url=url, vault=vault.address), err=True)
            _wait_for_an_end({"The service": service, "The embedded Vault": vault.process})
    except _Stopped:
        click.echo("Stopped.", err=True)


def _on_signal(_number: int, _frame: FrameType | None) -> None:
    # The children are being stopped from here on: a second Ctrl-C must not leave one of them behind.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise _Stopped


async def _start_vault(home: Home) -> EmbeddedVault:
    if home.settings() and not (home.vault / "keys.json").exists():
        raise ConfigurationError(
            f"{home.vault / 'keys.json'} is gone, and with it whatever was sealed here. To begin anew, remove "
            f"{home.directory}"
        )
    return await embedded.start(home.vault)


async def _set_up(home: Home, vault: EmbeddedVault, url: str) -> dict[str, str]:
    """Provision Vault, migrate the database, and write down the settings of the service; return them."""
    settings = VaultSettings(address=vault.address)
    admin = vault.admin()
    try:
        await provision.provision(admin, settings)
        kept = home.settings()
        role_id, secret_id = kept.get("KEYMAN_VAULT_ROLE_ID"), kept.get("KEYMAN_VAULT_SECRET_ID")
        if role_id is None or secret_id is None:
            issued = await provision.issue_credentials(admin, "keyman-management")
            role_id, secret_id = issued.role_id, issued.secret_id.reveal()
    except VaultFault as fault:
        raise ConfigurationError(f"The embedded Vault could not be set up ({fault}); see {vault.log}") from None
    finally:
        await admin.close()
    await migrations.upgrade(home.database)
    variables = {
        "KEYMAN_DATABASE_URL": home.database.render_as_string(hide_password=False),
        "KEYMAN_VAULT_ADDR": vault.address,
        "KEYMAN_VAULT_ROLE_ID": role_id,
        "KEYMAN_VAULT_SECRET_ID": secret_id,
        "KEYMAN_PUBLIC_URL": url,
        "KEYMAN_SIGNUP": "open",
        "KEYMAN_LOG_FORMAT": "console",
    }
    home.write_settings(variables)
    return variables


def _wait_until_ready(service: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + READY_TIMEOUT
    while time.monotonic() < deadline:
        if service.poll() is not None:
            raise ConfigurationError("The service ended while it started; what it said stands above.")
        connection = HTTPConnection("127.0.0.1", port, timeout=READY_TIMEOUT)
        try:
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return
        except (OSError, HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(POLL)
    raise ConfigurationError(f"The service was not ready within {READY_TIMEOUT:.0f} s; what it said stands above.")


def _wait_for_an_end(parts: Mapping[str, subprocess.Popen[bytes]]) -> None:
    while True:
        for name, process in parts.items():
            if process.poll() is not None:
                raise ConfigurationError(f"{name} ended by itself (exit code {process.returncode}); all was stopped.")
        time.sleep(POLL)
