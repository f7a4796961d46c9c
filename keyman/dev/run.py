"""All of keyman on one machine: an embedded Vault, SQLite, and the planes, each with its own AppRole.

This process is the parent of the others. When one of them ends, or this one ends in any way, all of them stop. Their
data stays in the home directory, and the next start uses it again.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from typing import NoReturn

import aiohttp
import click

from keyman import migrations
from keyman.config.metrics import METRICS_LISTEN
from keyman.config.settings import METRICS_ON_PLANE
from keyman.config.vault import VaultSettings
from keyman.dev import embedded
from keyman.dev.checks import CHECKS, checks_of
from keyman.dev.embedded import EmbeddedVault
from keyman.dev.home import Home, without_own
from keyman.dev.output import Output
from keyman.dev.variables import Taken, take
from keyman.errors import ConfigurationError
from keyman.logs import configure_logging
from keyman.processes import check_port, spawn, stop
from keyman.vault import provision
from keyman.vault.adapter import AsyncAdapter, VaultFault

READY_TIMEOUT = 120.0
"""Seconds until a plane is ready. It takes one and a half on an idle machine, and took over 30 on a busy one."""

POLL = 0.03
"""Seconds between two checks of the child processes."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

BANNER = """
  keyman for development. Do not store keys that matter: the unseal key and the
  root token of its Vault are in {home}

    pages        {url}{root}
    API          {url}{root}/api
    reference    {url}{root}/docs
    readiness    {url}/readyz
    resolver     {resolver}/v1/resolve
    gateway      {gateway}/openai/v1
    Vault        {vault}

  Ctrl-C stops it. Stored keys are available again at the next start.
"""


def run(home: Home, port: int) -> None:
    """Start everything, print the addresses, and run until a signal arrives or one part ends.

    Raises ConfigurationError when a part does not start or ends by itself. Everything else is then stopped.
    """
    configure_logging("console", "warning")
    taken = take(os.environ)
    if taken.ignored:
        click.echo(f"keyman dev has its own database and Vault, and ignores {', '.join(taken.ignored)}.", err=True)
    try:
        asyncio.run(_until_stopped(home, port, taken))
    except asyncio.CancelledError:
        click.echo("Stopped.", err=True)


async def _until_stopped(home: Home, port: int, taken: Taken) -> None:
    # A signal cancels this task at its next await, never in the middle of a statement. A second one changes nothing.
    task = asyncio.current_task()
    assert task is not None
    for signal_number in _signals():
        asyncio.get_running_loop().add_signal_handler(signal_number, task.cancel)
    ports = (port, port + 1, port + 2)
    url, resolver_url, gateway_url = (f"http://127.0.0.1:{number}" for number in ports)
    with ExitStack() as stack:
        stack.enter_context(home.locked())
        for number in ports:
            check_port("127.0.0.1", number, "choose three others with --port 9000, or make dev PORT=9000")
        vault = await _start_vault(home)
        stack.callback(vault.close)
        await _set_up(home, vault, url, gateway_url, taken)
        output = stack.enter_context(Output(is_open=taken.management.get("KEYMAN_LOG_LEVEL") == "debug"))
        management = _serve(stack, "management", port, home.settings(), output)
        resolver = _serve(stack, "resolver", port + 1, home.resolver_settings(), output)
        gateway = _serve(stack, "gateway", port + 2, home.gateway_settings(), output)
        output.start()
        await _wait_until_ready("The management plane", management, url, output)
        await _wait_until_ready("The resolver", resolver, resolver_url, output)
        await _wait_until_ready("The gateway", gateway, gateway_url, output)
        click.echo(
            BANNER.format(
                home=home.directory,
                url=url,
                root=taken.root_path,
                resolver=resolver_url,
                gateway=gateway_url,
                vault=vault.address,
            ),
            err=True,
        )
        output.open()
        parts = {"The management plane": management, "The resolver": resolver, "The gateway": gateway}
        await _watch({**parts, "The embedded Vault": vault.process})


def _signals() -> list[signal.Signals]:
    """Return the signals that stop everything. SIGHUP does not where it is ignored, as under nohup."""
    is_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in SIGNALS if number is not signal.SIGHUP or not is_ignored]


def _serve(
    stack: ExitStack, plane: str, port: int, settings: dict[str, str], output: Output
) -> subprocess.Popen[bytes]:
    """Start one plane. The stack stops it."""
    command = [sys.executable, "-P", "-m", "keyman", "serve", "--plane", plane, "--port", str(port)]
    environ = without_own(os.environ)
    if sys.stderr.isatty():
        environ.setdefault("FORCE_COLOR", "1")  # the plane itself writes to a pipe
    handed = {**settings, METRICS_ON_PLANE: "yes"}
    process = spawn(command, environ, output=output.descriptor, handed=handed)
    stack.callback(stop, process, float(settings["KEYMAN_DRAIN"]))
    return process


async def _start_vault(home: Home) -> EmbeddedVault:
    if home.settings() and not (home.vault / "keys.json").exists():
        raise ConfigurationError(
            f"{home.vault / 'keys.json'} is missing, so nothing that was sealed here can be opened. To start again "
            f"without data, remove {home.directory}"
        )
    try:
        return await embedded.start(home.vault)
    except OSError:
        raise ConfigurationError(
            f"A file in {home.vault} cannot be written, is a symbolic link or belongs to another user: remove it, make "
            "room, or give another directory with --home"
        ) from None


async def _set_up(home: Home, vault: EmbeddedVault, url: str, gateway_url: str, taken: Taken) -> None:
    """Provision Vault, migrate the database, and write the settings of the planes: those taken come first."""
    settings = VaultSettings(address=vault.address)
    admin = vault.admin()
    try:
        await provision.provision(admin, settings)
        management = await _credentials(admin, "keyman-management", home.settings())
        resolver = await _credentials(admin, "keyman-resolver", home.resolver_settings())
        gateway = await _credentials(admin, "keyman-gateway", home.gateway_settings())
    except VaultFault as fault:
        raise ConfigurationError(f"The embedded Vault could not be set up ({fault}). See {vault.log}") from None
    finally:
        await admin.close()
    await migrations.upgrade(home.database)
    own = {
        "KEYMAN_DATABASE_URL": home.database.render_as_string(hide_password=False),
        "KEYMAN_VAULT_ADDR": vault.address,
    }
    usual = {
        "KEYMAN_LOG_FORMAT": "console",
        "KEYMAN_DRAIN": "0",
        "KEYMAN_PUBLIC_URL": url,
        METRICS_LISTEN: "off",  # each plane serves them on its own port
    }
    home.write_resolver_settings({**usual, **taken.resolver, **own, **resolver})
    home.write_gateway_settings({**usual, "KEYMAN_GATEWAY_DRAIN": "0", **taken.gateway, **own, **gateway})
    checks = {} if CHECKS & taken.management.keys() else await checks_of(home, gateway_url)
    pages = {**usual, "KEYMAN_SIGNUP": "open", "KEYMAN_GATEWAY_PUBLIC_URL": gateway_url, **checks}
    home.write_settings({**pages, **taken.management, **own, **management})


async def _credentials(admin: AsyncAdapter, role: str, stored: Mapping[str, str]) -> dict[str, str]:
    """Return a plane's credentials for Vault: the stored ones, or new ones. Raises VaultFault."""
    names = ("KEYMAN_VAULT_ROLE_ID", "KEYMAN_VAULT_SECRET_ID")
    if all(name in stored for name in names):
        return {name: stored[name] for name in names}
    issued = await provision.issue_credentials(admin, role)
    return dict(zip(names, (issued.role_id, issued.secret_id.reveal()), strict=True))


async def _wait_until_ready(name: str, process: subprocess.Popen[bytes], url: str, output: Output) -> None:
    try:
        async with asyncio.timeout(READY_TIMEOUT), aiohttp.ClientSession() as session:
            pause = POLL
            while not await _answers(session, f"{url}/readyz", output):
                if process.poll() is not None:
                    raise ConfigurationError(f"{name} stopped during its start. Its output is above.")
                await asyncio.sleep(pause)
                pause = min(1.5 * pause, 6 * POLL)  # a check that fails adds a line to the log that the user sees
    except TimeoutError:
        raise ConfigurationError(f"{name} was not ready within {READY_TIMEOUT:.0f} s. Its output is above.") from None


async def _answers(session: aiohttp.ClientSession, url: str, output: Output) -> bool:
    try:
        async with session.get(url) as response:
            output.leave_out(response.headers.get("X-Request-ID", ""))
            return response.status == 200
    except (aiohttp.ClientError, OSError):
        return False


async def _watch(parts: Mapping[str, subprocess.Popen[bytes]]) -> NoReturn:
    while True:
        for name, process in parts.items():
            if process.poll() is not None:
                raise ConfigurationError(
                    f"{name} stopped by itself (exit code {process.returncode}), so everything was stopped."
                )
        await asyncio.sleep(POLL)
