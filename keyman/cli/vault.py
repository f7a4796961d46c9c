"""`keyman vault`."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import click
import msgspec

from keyman.cli.common import home_option
from keyman.cli.groups import Group
from keyman.cli.logins import admin_settings, as_admin
from keyman.cli.terminal import json_option
from keyman.errors import ConfigurationError
from keyman.private import write_private
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

WRAP_TTL = 300
"""Seconds in which a wrapped secret ID must be unwrapped: enough to start a process, too few to be stolen later."""


class _Networks(click.ParamType[Networks]):
    name = "networks"

    def convert(self, value: str, _param: click.Parameter | None, _ctx: click.Context | None) -> Networks:
        role, separator, cidrs = value.partition("=")
        # ROLE without a '=' is refused: it could be a mistake, and ROLE= allows logins from everywhere.
        if role not in ROLES or not separator:
            self.fail(f"must be ROLE=CIDR,…, where the role is one of {', '.join(ROLES)}")
        try:
            return Networks(role, tuple(str(ip_network(cidr.strip())) for cidr in cidrs.split(",") if cidr.strip()))
        except ValueError:
            self.fail("must have networks in CIDR notation after the '=', such as 10.1.2.0/24,10.1.3.7/32")


@click.group("vault", cls=Group)
def group() -> None:
    """Set up Vault for keyman, and issue credentials.

    These commands log in with KEYMAN_VAULT_TOKEN, an administrator's token. The planes do not need it.
    """


@group.command("setup")
@click.option("--dry-run", is_flag=True, help="Show the changes that would be made, and change nothing.")
@click.option(
    "--cidr",
    "networks",
    multiple=True,
    type=_Networks(),
    metavar="ROLE=CIDR,…",
    help="The networks from which a role may log in and use its token. ROLE= with nothing after it allows all "
    "networks. Other roles keep their networks.",
)
@home_option
def setup(dry_run: bool, networks: tuple[Networks, ...], home: Path | None) -> None:
    """Create or repair the Transit mount, the key, the policies and the AppRoles. You can run this any number of times.

    Prints each change as a line on standard output. It never changes a key whose settings are wrong for keyman.
    """
    if len({one.role for one in networks}) < len(networks):
        raise click.BadParameter("give each role once, with all its networks: ROLE=CIDR,CIDR", param_hint="'--cidr'")
    settings = admin_settings(home)

    async def work(admin: AsyncAdapter) -> int:
        changes = await plan(admin, settings, networks)
        if dry_run and changes:
            click.echo("Dry run. Without --dry-run, these changes would be made:", err=True)
        for change in changes:
            if not dry_run:
                await _apply(change)
            click.echo(change.description)
            for line in change.difference:
                click.echo(f"    {line}")
        return len(changes)

    count = as_admin(settings, work)
    if count == 0:
        click.echo("No changes: Vault is set up for keyman.", err=True)
    elif not dry_run:
        click.echo("To give a process its secret ID, run: keyman vault secret-id ROLE", err=True)


async def _apply(change: Change) -> None:
    try:
        await change.apply()
    except VaultFault:
        click.echo(f"This change failed, and no later one was made: {change.description}", err=True)
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
    help="Seconds in which the wrapped secret ID must be unwrapped.",
)
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write role_id and secret_id to this directory, as files that only their owner can read, and print nothing.",
)
@home_option
@json_option
def secret_id(role: str, wrap_ttl: int, directory: Path | None, home: Path | None, as_json: bool) -> None:
    """Issue a secret ID for a role: keyman-management, keyman-resolver, keyman-gateway or keyman-rotator.

    It is printed response-wrapped, as the variables of the process that will use it. It can be unwrapped only once: if
    somebody intercepts and unwraps it, the process fails to start and says so. Earlier secret IDs stay valid.
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
    click.echo(f"It can be unwrapped once, within {wrap_ttl} s.", err=True)


def _write(directory: Path, issued: AppRoleCredentials) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(directory / "role_id", issued.role_id + "\n")
        write_private(directory / "secret_id", issued.secret_id.reveal() + "\n")
    except OSError:
        raise ConfigurationError(f"{directory} cannot be written to: give another directory with --directory") from None
