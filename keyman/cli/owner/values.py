"""`keyman key add` and `keyman key replace`, which take a value."""

from __future__ import annotations

from datetime import datetime, timedelta

import click
from msgspec import UNSET

from keyman.cli.groups import AsksForSecret, KeyNumber
from keyman.cli.owner import completing
from keyman.cli.owner.inputs import expiry, expiry_options, parse_settings, read_value, settings_option
from keyman.cli.owner.offered import Offered
from keyman.cli.owner.server import find_server, url_option
from keyman.cli.owner.shown import check, describe, print_json, service_of
from keyman.cli.terminal import is_terminal, json_option
from keyman.client import Key, Service
from keyman.errors import ConfigurationError, KeymanError
from keyman.providers.pasted import bare, check_pasted
from keyman.secret import Secret

no_check = click.option("--no-check", is_flag=True, help="Do not have the provider asked whether the key works.")


@click.command("add", cls=AsksForSecret)
@click.argument("service", required=False, shell_complete=completing.services)
@click.option("--name", metavar="TEXT", help="A label, by which you recognise the key.")
@expiry_options
@settings_option
@no_check
@url_option
@json_option
def add(
    service: str | None,
    name: str | None,
    expires_at: datetime | None,
    expires_in: timedelta | None,
    settings: tuple[str, ...],
    no_check: bool,
    url: str | None,
    as_json: bool,
) -> None:
    """Store a key. The key comes from a prompt or from standard input, and is never an argument.

    SERVICE is one of the catalogue, such as OPENAI. Without it, keyman chooses the service that the key certainly
    belongs to.
    """
    until = expiry(expires_at, expires_in)
    server = find_server(url)
    with server.client() as client:
        offered = Offered(client.services())
        chosen = None if service is None else offered.find(service)
        given = {} if chosen is None else parse_settings(chosen, settings)
        value = _read_bare()
        if chosen is None:
            chosen = _recognised(offered, value)
            given = parse_settings(chosen, settings)
        _ask_if_unusual(offered, chosen, value)
        stored = client.add(chosen.service, value, name=name, expires_at=until, settings=given or None)
    click.echo(f"Stored key {stored.id}: {describe(stored, chosen)}.", err=True)
    _say_duplicate(stored)
    if chosen.checked and not no_check:
        stored = check(server, stored)
    if as_json:
        print_json(stored)


def _recognised(offered: Offered, value: Secret) -> Service:
    """Return the service of a value, or ask for it. Raises ConfigurationError where nobody can be asked."""
    found = offered.recognise(value)
    if found is not None:
        click.echo(f"{found.name}, recognised.", err=True)
        return found
    if not is_terminal():
        raise ConfigurationError(
            "keyman does not recognise whose key this is. Name the service, such as: keyman key add OPENAI"
        )
    click.echo("keyman does not recognise whose key this is.", err=True)
    return offered.find(click.prompt("Service, such as OPENAI", err=True))


@click.command("replace", cls=AsksForSecret)
@click.argument("key_id", type=KeyNumber(), metavar="ID")
@expiry_options
@settings_option
@no_check
@url_option
def replace(
    key_id: int,
    expires_at: datetime | None,
    expires_in: timedelta | None,
    settings: tuple[str, ...],
    no_check: bool,
    url: str | None,
) -> None:
    """Give a key a new value, from a prompt or from standard input. What you do not give stays as it is."""
    until = expiry(expires_at, expires_in)
    server = find_server(url)
    with server.client() as client:
        key = before = client.get(key_id)
        service = service_of(client, key)
        new_settings = {**key.settings, **parse_settings(service, settings)} if settings else UNSET
        click.echo(f"The new value for key {key.id}: {describe(key, service)}", err=True)
        new_expiry = UNSET if until is None else until
        value = _read_bare()
        _ask_if_unusual(Offered([service]), service, value)
        key = client.replace(key, value, expires_at=new_expiry, settings=new_settings)
    click.echo(f"Replaced the value of key {key.id}: {describe(key, service)}.", err=True)
    if before.expires_at is not None and key.expires_at is None:
        click.echo(
            f"Its expiry had passed, so it has none now. To set one: keyman key edit {key.id} --expires-in 90d",
            err=True,
        )
    _say_duplicate(key)
    if service.checked and not no_check:
        check(server, key)


def _read_bare() -> Secret:
    """Return a value without what people paste around it, and say so. Raises KeymanError for what cannot be a key."""
    given = read_value().reveal()
    text = bare(given)
    if text.strip() != given.strip():
        click.echo("Left out what was around the key.", err=True)
    if text.lstrip().startswith("{"):
        return Secret(text)
    try:
        check_pasted(text.strip())
    except ValueError as fault:
        raise KeymanError(f"The key {fault}.") from None
    return Secret(text)


def _ask_if_unusual(offered: Offered, service: Service, value: Secret) -> None:
    """Ask before a value is stored that begins in another way than keys of this service. A script goes on."""
    doubt = offered.doubt(service.service, value)
    if doubt is None:
        return
    if is_terminal():
        click.confirm(f"{doubt}. Store it anyway?", abort=True, err=True)
    else:
        click.echo(f"{doubt}. There is no terminal to ask, so keyman goes on.", err=True)


def _say_duplicate(key: Key) -> None:
    if key.duplicate_of is not None:
        click.echo(f"You already have this key: it is key {key.duplicate_of}, too.", err=True)
