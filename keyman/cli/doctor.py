"""`keyman doctor`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path

import click
import msgspec

from keyman.cli.common import environment, home_option
from keyman.cli.terminal import json_option
from keyman.config.settings import Settings, load
from keyman.dev.home import Home
from keyman.doctor import checks, configuration, database, encryption_key, issuer, vault
from keyman.doctor.findings import Finding, State, failed, ok, skipped
from keyman.errors import ConfigurationError
from keyman.logs import configure_logging
from keyman.metrics import Metrics
from keyman.providers.file import read_services
from keyman.storage.transactions import Database
from keyman.vault.login import VaultClient

ROLES = {
    "management": vault.MANAGEMENT,
    "resolver": vault.RESOLVER,
    "gateway": vault.GATEWAY,
    "rotator": vault.ROTATOR,
}

COLORS = {State.OK: "green", State.WARNING: "yellow", State.FAILED: "red", State.SKIPPED: "bright_black"}


@click.command("doctor")
@click.option(
    "--role",
    type=click.Choice(list(ROLES)),
    default="management",
    show_default=True,
    help="The role whose login the variables contain, and whose policy doctor compares it with.",
)
@home_option
@json_option
def command(role: str, home: Path | None, as_json: bool) -> None:
    """Check Vault, the encryption key, the policies, the database, the clocks and the settings. Prints a line for each.

    This changes nothing and is safe in production. The exit code is 1 when a check failed. Warnings do not change it.
    """
    if home is not None and role == "rotator":
        raise click.UsageError("A home has only the logins of the planes: do not use --role rotator with --home.")
    configure_logging("console", "critical")
    files = tuple[Path, ...]()
    try:
        environ = environment(home)
        if home is not None:
            kept = Home(home)
            files = (kept.settings_file, kept.resolver_file, kept.gateway_file, kept.vault / "keys.json")
            if role in ("resolver", "gateway"):
                environ = {**environ, **(kept.resolver_settings() if role == "resolver" else kept.gateway_settings())}
        settings = load(environ, read_services)
    except ConfigurationError as fault:
        findings = [failed("configuration", str(fault), "set the variables as docs/reference/configuration.md says")]
    else:
        findings = asyncio.run(_examine(settings, environ, files, ROLES[role]))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(findings), indent=2))
    else:
        _print(findings)
    if any(finding.state is State.FAILED for finding in findings):
        sys.exit(1)


async def _examine(
    settings: Settings, environ: Mapping[str, str], files: tuple[Path, ...], role: vault.Role
) -> list[Finding]:
    db, client = Database(settings.database_url, read_only=True), VaultClient(settings.vault, Metrics())
    findings = [ok("configuration", "complete"), *configuration.examine(settings, environ, files)]
    findings += [finding async for finding in issuer.examine(settings)]
    findings += [finding async for finding in checks.examine(settings)]
    try:
        findings += [finding async for finding in vault.examine(client, settings.vault, role)]
        findings += [finding async for finding in database.examine(settings, db, role.plane)]
        if settings.vault.wrapped_secret_id is not None:
            findings += [skipped(check, vault.NOT_TAKEN) for check in encryption_key.OF_THE_KEY]
        elif role.reads_key:
            findings += [finding async for finding in encryption_key.examine(settings.vault, db, client)]
        else:
            findings += [
                skipped(check, f"{role.name} may not rewrap; the /readyz of its plane opens the sentinel")
                for check in encryption_key.OF_THE_KEY
            ]
    finally:
        await client.close()
        await db.close()
    return findings


def _print(findings: list[Finding]) -> None:
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        state = click.style(f"{finding.state:<7}", fg=COLORS[finding.state])
        click.echo(f"{state}  {finding.check:<{width}}  {finding.found}")
        if finding.remedy is not None:
            click.echo(f"{'':9}{'':{width}}  -> {finding.remedy}")
    counts = [(state, sum(finding.state is state for finding in findings)) for state in State]
    click.echo(", ".join(f"{count} {state}" for state, count in counts if count), err=True)
