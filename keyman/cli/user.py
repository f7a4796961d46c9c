"""`keyman user`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import click

from keyman.cli.common import home_option, json_option, new_password, parsed, print_rows, run
from keyman.identity import users
from keyman.identity.passwords import Passwords
from keyman.storage.transactions import Database
from keyman.values import EmailAddress


@click.group("user")
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
    print_rows(run(users.list_all, home), ("id", "email", "created_at", "disabled_at"), as_json=as_json)


@group.command("disable")
@click.argument("email")
@home_option
def disable(email: str, home: Path | None) -> None:
    """Disable an account at once: its sessions end, and sign-in and tokens are refused. Its keys stay."""
    _change(users.disable, email, home, "Disabled")


@group.command("enable")
@click.argument("email")
@home_option
def enable(email: str, home: Path | None) -> None:
    """Enable a disabled account again."""
    _change(users.enable, email, home, "Enabled")


@group.command("passwd")
@click.argument("email")
@home_option
def passwd(email: str, home: Path | None) -> None:
    """Set a password, from a prompt or the first line of standard input. All sessions of the account end."""
    address = parsed(EmailAddress, email, "EMAIL")
    password = new_password()
    run(lambda db: users.set_password(db, Passwords(), address, password), home)
    click.echo(f"Set the password of {address}.", err=True)


def _change(
    operation: Callable[[Database, EmailAddress], Awaitable[None]], email: str, home: Path | None, done: str
) -> None:
    address = parsed(EmailAddress, email, "EMAIL")
    run(lambda db: operation(db, address), home)
    click.echo(f"{done} {address}.", err=True)
