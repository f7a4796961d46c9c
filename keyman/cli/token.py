"""`keyman token`."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import click

from keyman.cli.common import home_option, parsed, run
from keyman.cli.groups import Group
from keyman.cli.terminal import Duration, json_option, print_rows
from keyman.clock import now
from keyman.identity import personal_tokens as personal
from keyman.identity.tokens import DEFAULT_SCOPES, Scope
from keyman.ids import TokenId
from keyman.values import EmailAddress, FutureTime, RequiredLabel


@click.group("token", cls=Group)
def group() -> None:
    """Personal access tokens."""


@group.command("create")
@click.option("--user", "email", required=True, metavar="EMAIL", help="The account that the token is for.")
@click.option("--name", required=True, help="A name, such as the purpose of the token.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice([scope.value for scope in Scope]),
    help="What the token may do. Can be repeated.  [default: keys:read and keys:write]",
)
@click.option(
    "--expires-at", metavar="TIME", help="When the token expires, such as 2030-01-31T00:00:00Z.  [default: never]"
)
@click.option(
    "--expires-in",
    metavar="DURATION",
    type=Duration(timedelta(days=3650)),
    help="After how long the token expires, such as 90d.",
)
@home_option
def create(
    email: str,
    name: str,
    scopes: tuple[str, ...],
    expires_at: str | None,
    expires_in: timedelta | None,
    home: Path | None,
) -> None:
    """Create a token and print only the token on standard output. It is not shown again."""
    if expires_at is not None and expires_in is not None:
        raise click.UsageError("Give --expires-at or --expires-in, not both.")
    address = parsed(EmailAddress, email, "--user")
    label = parsed(RequiredLabel, name, "--name")
    until = None if expires_at is None else parsed(FutureTime, expires_at, "--expires-at")
    if expires_in is not None:
        until = parsed(FutureTime, (now() + expires_in).isoformat(), "--expires-in")
    wanted = frozenset(Scope(scope) for scope in scopes) or DEFAULT_SCOPES
    created = run(lambda db: personal.create_for(db, address, label, wanted, until), home)
    click.echo(created.token)
    click.echo(f"Created token {created.id} for {address}: {' '.join(created.scopes)}.", err=True)


@group.command("list")
@click.option("--user", "email", metavar="EMAIL", help="Only tokens of this account.")
@home_option
@json_option
def list_all(email: str | None, home: Path | None, as_json: bool) -> None:
    """List the tokens, newest first. Shows their hints, not the tokens themselves."""
    address = None if email is None else parsed(EmailAddress, email, "--user")
    rows = run(lambda db: personal.list_all(db, address), home)
    columns = ("id", "email", "name", "hint", "scopes", "created_at", "expires_at", "last_used_at")
    print_rows(rows, columns, as_json=as_json)


@group.command("revoke")
@click.argument("token_id", type=click.IntRange(min=1), metavar="ID")
@home_option
def revoke(token_id: int, home: Path | None) -> None:
    """Revoke a token. It stops working at once."""
    run(lambda db: personal.revoke_any(db, TokenId(token_id)), home)
    click.echo(f"Revoked token {token_id}.", err=True)
