"""`keyman user`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from keyman.cli.common import home_option, new_password, parsed, run
from keyman.cli.groups import Group
from keyman.cli.terminal import json_option, print_rows, require_confirmation
from keyman.identity import users
from keyman.identity.identities import Identity
from keyman.identity.passwords import Passwords
from keyman.identity.selection import Whom
from keyman.ids import MAX_ID
from keyman.keys import erasure
from keyman.values import EmailAddress, RowNumber, Subject

C = TypeVar("C", bound=Callable[..., object])


@click.group("user", cls=Group)
def group() -> None:
    """The accounts of users."""


@group.command("add")
@click.argument("email")
@home_option
def add(email: str, home: Path | None) -> None:
    """Create an account. The password comes from a prompt or the first line of standard input."""
    address = parsed(EmailAddress, email, "EMAIL")
    password = new_password()
    account = run(lambda db: users.add(db, Passwords(), address, password), home)
    click.echo(f"Added {account.email} as user {account.id}.", err=True)


@group.command("list")
@home_option
@json_option
def list_all(home: Path | None, as_json: bool) -> None:
    """List the accounts."""
    print_rows(run(users.list_all, home), ("id", "email", "created_at", "disabled_at", "identities"), as_json=as_json)


def whose(command: C) -> C:
    """Add the ways to name an account: the argument EMAIL, --id, or --issuer with --subject."""
    for decorate in (
        click.option("--subject", metavar="SUBJECT", help="The user's name at the issuer. It needs --issuer."),
        click.option(
            "--issuer", metavar="ISSUER", help="The issuer of an identity of the account. It needs --subject."
        ),
        click.option("--id", "number", type=click.IntRange(1, MAX_ID), metavar="N", help="The number of the account."),
        click.argument("email", required=False),
    ):
        command = decorate(command)
    return command


@group.command("disable")
@whose
@home_option
def disable(email: str | None, number: int | None, issuer: str | None, subject: str | None, home: Path | None) -> None:
    """Disable an account at once: its sessions end, and sign-in and tokens are refused. Its keys stay."""
    whom = _chosen(email, number, issuer, subject)
    run(lambda db: users.disable(db, whom), home)
    click.echo(f"Disabled {_named(whom)}.", err=True)


@group.command("enable")
@whose
@home_option
def enable(email: str | None, number: int | None, issuer: str | None, subject: str | None, home: Path | None) -> None:
    """Enable a disabled account again."""
    whom = _chosen(email, number, issuer, subject)
    run(lambda db: users.enable(db, whom), home)
    click.echo(f"Enabled {_named(whom)}.", err=True)


@group.command("delete")
@whose
@click.option("--forget-ban", is_flag=True, help="Delete a disabled account too. Its user can then come back.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@home_option
def delete(
    email: str | None,
    number: int | None,
    issuer: str | None,
    subject: str | None,
    forget_ban: bool,
    yes: bool,
    home: Path | None,
) -> None:
    """Delete an account with its keys, tokens, sessions and identities, at once and permanently."""
    whom = _chosen(email, number, issuer, subject)
    if not yes:
        require_confirmation(f"Delete {_named(whom)} with all keys? This cannot be undone.")
    user_id = run(lambda db: erasure.delete_any(db, whom, forget_ban=forget_ban), home)
    click.echo(f"Deleted user {user_id}.", err=True)


@group.command("passwd")
@click.argument("email")
@home_option
def passwd(email: str, home: Path | None) -> None:
    """Set a password, from a prompt or the first line of standard input. All sessions of the account end."""
    address = parsed(EmailAddress, email, "EMAIL")
    password = new_password()
    run(lambda db: users.set_password(db, Passwords(), address, password), home)
    click.echo(f"Set the password of {address}.", err=True)


def _chosen(email: str | None, number: int | None, issuer: str | None, subject: str | None) -> Whom:
    """Return the account that the arguments name. Raises click.UsageError unless they name it in exactly one way."""
    if (issuer is None) != (subject is None):
        raise click.UsageError("--issuer and --subject belong together.")
    if sum(given is not None for given in (email, number, issuer)) != 1:
        raise click.UsageError("Name the account by EMAIL, by --id, or by --issuer and --subject.")
    if email is not None:
        return parsed(EmailAddress, email, "EMAIL")
    if number is not None:
        return RowNumber(number)
    return Identity(str(issuer), parsed(Subject, str(subject), "--subject"))


def _named(whom: Whom) -> str:
    """Return the account as the operator named it, for a message."""
    if isinstance(whom, Identity):
        return f"the user with the subject {whom.subject} of {whom.issuer}"
    return f"user {whom}" if isinstance(whom, RowNumber) else str(whom)
