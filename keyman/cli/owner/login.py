"""`keyman login`, `keyman logout` and `keyman open`."""

from __future__ import annotations

import os
import sys
import webbrowser
from contextlib import closing

import click

from keyman.cli.groups import AsksForSecret
from keyman.cli.owner.logins import Logins
from keyman.cli.owner.server import Server, advice, explain, find_url, server_url, url_option
from keyman.cli.owner.sign_in import SCOPES, Visitor
from keyman.cli.terminal import is_terminal, read_secret
from keyman.client import ClientError, Unauthenticated
from keyman.client.endpoint import checked_token
from keyman.client.management import URL
from keyman.errors import ConfigurationError, KeymanError
from keyman.secret import Secret

TOKENS = "/settings/access-tokens"
KEYS = "/settings/api-keys"


@click.command("login", cls=AsksForSecret)
@click.argument("url", required=False)
@click.option("--email", metavar="EMAIL", help="Whose account it is. Otherwise keyman asks.")
@click.option(
    "--with-token", is_flag=True, help="Read an access token that you made on the pages, instead of a password."
)
def login(url: str | None, email: str | None, with_token: bool) -> None:
    """Sign in to a keyman. Its address is that of its pages.

    The password comes from a prompt or the first line of standard input, and a token with --with-token, too. keyman
    keeps a token for this machine in the keyring of the system, or else in a file that only you can read.
    """
    logins = Logins.load()
    where = server_url(url or os.environ.get(URL, "").strip() or logins.current or _missing_url())
    earlier = _earlier(logins, where)
    with closing(Visitor(where)) as visitor, advice(where):
        if visitor.takes_passwords() and not with_token:
            email = email or _ask_address()
            token = visitor.make_token(email, read_secret("password", f"Password for {where}"))
        else:
            email, token = None, _paste(where, is_asked_for=with_token)
    try:
        file = logins.add(where, email, token)
    except KeymanError:
        if email is not None:
            _revoke(Server(where, token))  # nobody has this token
        raise
    if earlier is not None and earlier != token:
        _revoke(Server(where, earlier))
    click.echo(f"Signed in to {where}{f' as {email}' if email else ''}.", err=True)
    if file is not None:
        click.echo(f"No keyring here keeps the token, so it is in {file}, which only you can read.", err=True)


def _earlier(logins: Logins, where: str) -> Secret | None:
    """Return the token that a login replaces. One in a keyring that is locked is left there."""
    try:
        return logins.token_of(where)
    except KeymanError:
        return None


def _missing_url() -> str:
    raise click.UsageError("Give the address of the keyman, such as: keyman login https://keyman.example.com")


def _ask_address() -> str:
    if not is_terminal():
        raise click.UsageError("Give --email: standard input has the password.")
    address: str = click.prompt("E-mail address", err=True)
    return address


def _paste(url: str, *, is_asked_for: bool) -> Secret:
    """Return a token that somebody made on the pages, once the server has accepted it. Raises KeymanError."""
    page = f"{url}{TOKENS}"
    if is_terminal():
        if not is_asked_for:
            click.echo(f"Nobody signs in to {url} with a password.", err=True)
        click.echo(f"Make an access token with {', '.join(SCOPES)} here, and paste it: {page}", err=True)
        if not is_asked_for:
            _browse(page)
    token = read_secret("token", "Token")
    try:
        token = checked_token(Secret(token.reveal().strip()))
    except ValueError as fault:
        raise ConfigurationError(f"{str(fault).capitalize()}. Make one here: {page}") from None
    try:
        with Server(url, token).raw_client() as client:
            client.services()
    except Unauthenticated:
        raise KeymanError(f"{url} does not accept this token. It has expired, or is of another server.") from None
    return token


def _revoke(server: Server) -> str | None:
    """Revoke a token, and return why that failed, or None if the token works no more."""
    try:
        with server.raw_client() as client:
            client.revoke()
    except Unauthenticated:
        return None
    except ClientError as fault:
        return explain(fault, server.url)
    return None


@click.command("logout")
@click.argument("url", required=False)
def logout(url: str | None) -> None:
    """Sign out: revoke the token of this machine, and remove it here."""
    logins = Logins.load()
    where = server_url(url) if url else logins.current
    if where is None or where not in logins.servers:
        raise KeymanError(f"You are not signed in{f' to {where}' if where else ''}.")
    failure = _end(logins, where)
    logins.remove(where)
    if failure is not None:
        raise KeymanError(
            f"You are signed out here, but the token still works, because it could not be revoked. {failure} "
            f"Revoke it there: {where}{TOKENS}"
        )
    click.echo(f"Signed out of {where}.", err=True)


def _end(logins: Logins, where: str) -> str | None:
    """Revoke the token of a login, and return why that failed, or None if the token works no more."""
    try:
        token = logins.token_of(where)
    except KeymanError:
        return "The keyring of the system is locked or does not answer."
    return "The keyring does not have it any more." if token is None else _revoke(Server(where, token))


@click.command("open")
@url_option
def browse(url: str | None) -> None:
    """Open the page with your API keys in the browser."""
    page = f"{find_url(url)}{KEYS}"
    if _browse(page):
        click.echo(f"Opened {page} in the browser.", err=True)
    else:
        click.echo(page)


GRAPHICAL = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
"""Variables that say that there is a browser besides those that would take this terminal."""


def _browse(page: str) -> bool:
    """Open a page in a browser with a window of its own. Return whether there is one."""
    if sys.platform != "darwin" and not any(map(os.environ.get, GRAPHICAL)):
        return False
    try:
        return webbrowser.open(page)
    except webbrowser.Error:
        return False
