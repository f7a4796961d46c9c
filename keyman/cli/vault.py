"""`keyman vault`."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path
from typing import TypeVar

import click
import msgspec

from keyman.cli.common import home_option, json_option
from keyman.cli.logins import admin_settings, as_admin
from keyman.dev.home import write_private
from keyman.errors import ConfigurationError
from keyman.vault.adapter import AsyncAdapter, VaultFault
from keyman.vault.provision import (
    ROLES,
    AppRoleCredentials,
    Change,
    Networks,
    issue_credentials,
    issue_wrapped_credentials,
    plan,
)

T = TypeVar("T")

WRAP_TTL = 300
"""Seconds in which a wrapped secret ID has to be taken: long enough to start a process, too short to lie about."""


class _Networks(click.ParamType[Networks]):
    name = "networks"

    def convert(self, value: str, _param: click.Parameter | None, _ctx: click.Context | None) -> Networks:
        role, separator, cidrs = value.partition("=")
        # Without a '=' nothing was said of networks, which is not the same as from everywhere.
        if role not in ROLES or not separator:
            self.fail(f"it takes ROLE=CIDR,…, and the role is one of {', '.join(ROLES)}")
        try:
            return Networks(role, tuple(str(ip_network(cidr.strip())) for cidr in cidrs.split(",") if cidr.strip()))
        except ValueError:
            self.fail("after the '=' stand networks in CIDR notation, such as 10.1.2.0/24,10.1.3.7/32")


@click.group("vault")
def group() -> None:
    """Vault: set up for keyman, and the credentials that it gives out.

    These commands log in with KEYMAN_VAULT_TOKEN, an administrator's token, which no process of keyman needs.
    """


@group.command("setup")
@click.option("--dry-run", is_flag=True, help="Show what would be changed, and change nothing.")
@click.option(
    "--cidr",
    "networks",
    multiple=True,
    type=_Networks(),
    metavar="ROLE=CIDR,…",
    help="From where a role may log in and its token be used; nothing after the '=' is from everywhere. Roles that "
    "are not named keep what they have.",
)
@home_option
def setup(dry_run: bool, networks: tuple[Networks, ...], home: Path | None) -> None:
    """Make or repair the Transit mount, the key, the policies and the AppRoles. May be run again and again.

    Each change is a line on standard output. A key that is not as keyman needs it is not touched.
    """
    if len({one.role for one in networks}) < len(networks):
        raise click.BadParameter("name each role once, with all its networks: ROLE=CIDR,CIDR", param_hint="'--cidr'")
    settings = admin_settings(home)

    async def work(admin: AsyncAdapter) -> int:
        changes = await plan(admin, settings, networks)
        if dry_run:
            click.echo("Dry run; without --dry-run this would be:", err=True)
        for change in changes:
            if not dry_run:
                await _apply(change)
            click.echo(change.said)
            for line in change.difference:
                click.echo(f"    {line}")
        return len(changes)

    count = as_admin(settings, work)
    if count == 0:
        click.echo("Nothing: Vault is as keyman needs it." if dry_run else "Vault is as keyman needs it.", err=True)
    elif not dry_run:
        click.echo("Hand a process its secret ID with: keyman vault secret-id ROLE", err=True)


async def _apply(change: Change) -> None:
    try:
        await change.apply()
    except VaultFault:
        click.echo(f"Not done, nor what would have followed: {change.said}", err=True)
        raise


class _Issued(msgspec.Struct):
    role_id: str
    wrapped_secret_id: str
    wrap_ttl: int


@group.command("secret-id")
@click.argument("role", type=click.Choice(ROLES), metavar="ROLE")
@click.option(
    "--wrap-ttl",
    default=WRAP_TTL,
    show_default=True,
    type=click.IntRange(10, 86400),
    help="Seconds in which the wrapped secret ID has to be taken.",
)
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write role_id and secret_id there, as files that their owner alone can read, and print nothing.",
)
@home_option
@json_option
def secret_id(role: str, wrap_ttl: int, directory: Path | None, home: Path | None, as_json: bool) -> None:
    """Issue a secret ID for a role: keyman-management, keyman-resolver or keyman-rotator.

    It is printed response-wrapped, as the variables of the process that takes it: whoever reads it on the way can take
    it once, and the process finds out that somebody did. Earlier secret IDs stay valid.
    """
    settings = admin_settings(home)
    if directory is not None:
        issued = as_admin(settings, lambda admin: issue_credentials(admin, role))
        _write(directory, issued)
        click.echo(f"Wrote role_id and secret_id of {role}.", err=True)
        return
    issued = as_admin(settings, lambda admin: issue_wrapped_credentials(admin, role, wrap_ttl))
    if as_json:
        shown = _Issued(issued.role_id, issued.secret_id.reveal(), wrap_ttl)
        click.echo(msgspec.json.format(msgspec.json.encode(shown), indent=2))
    else:
        click.echo(f"KEYMAN_VAULT_ROLE_ID={issued.role_id}")
        click.echo(f"KEYMAN_VAULT_WRAPPED_SECRET_ID={issued.secret_id.reveal()}")
    click.echo(f"To be taken once, within {wrap_ttl} s.", err=True)


def _write(directory: Path, issued: AppRoleCredentials) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(directory / "role_id", issued.role_id + "\n")
        write_private(directory / "secret_id", issued.secret_id.reveal() + "\n")
    except OSError:
        raise ConfigurationError(f"{directory} cannot be written to: name another with --directory") from None
