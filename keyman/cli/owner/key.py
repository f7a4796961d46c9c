"""`keyman key`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import get_args

import click
import msgspec
from msgspec import UNSET

from keyman.cli.groups import AsksForSecret, Group, KeyNumber
from keyman.cli.owner.imports import import_file
from keyman.cli.owner.inputs import (
    expiry,
    expiry_options,
    parse_settings,
    read_value,
    settings_option,
)
from keyman.cli.owner.offered import Offered
from keyman.cli.owner.server import Server, explain, find_server, url_option
from keyman.cli.terminal import is_terminal, json_option, print_rows, require_confirmation
from keyman.client import ClientError, Conflict, Key, Keyman, KeyStatus, NotFound, Service, Sort, Verdict
from keyman.errors import ConfigurationError, KeymanError
from keyman.secret import Secret

WORDS: dict[KeyStatus, str] = {
    "active": "active",
    "disabled": "paused",
    "expired": "expired",
    "undecryptable": "unreadable",
}
"""The words of the pages for what the API calls the status of a key."""

ids = click.argument("key_ids", type=KeyNumber(), metavar="ID...", nargs=-1, required=True)
no_check = click.option("--no-check", is_flag=True, help="Do not have the provider asked whether the key works.")
one_id = click.argument("key_id", type=KeyNumber(), metavar="ID")


@click.group("key", cls=Group)
def group() -> None:
    """Your API keys. Sign in first with `keyman login`."""


group.add_command(import_file)


@group.command("add", cls=AsksForSecret)
@click.argument("service", required=False)
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
        value = read_value()
        if chosen is None:
            chosen = _recognised(offered, value)
        stored = client.add(
            chosen.service, value, name=name, expires_at=until, settings=parse_settings(chosen, settings) or None
        )
    click.echo(f"Stored key {stored.id}: {describe(stored, chosen)}.", err=True)
    if stored.duplicate_of is not None:
        click.echo(f"You already have this key: it is key {stored.duplicate_of}, too.", err=True)
    if chosen.checked and not no_check:
        stored = _checked(server, stored)
    if as_json:
        _print_json(stored)


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


def describe(key: Key, service: Service | None = None) -> str:
    """Return a key as people know it, without its number."""
    label = f', "{key.name}"' if key.name else ""
    return f"{service.name if service is not None else key.service}, {key.last_4_chars}{label}"


def _checked(server: Server, key: Key) -> Key:
    """Have a key checked, say what came of it, and return the key. That it cannot be checked is no failure."""
    try:
        with server.raw_client() as client:
            key = client.check(key.id)
    except Conflict:
        return key  # there are no live checks here
    except ClientError as fault:
        click.echo(f"Not checked. {explain(fault, server.url)}", err=True)
        return key
    _say_verdict(key)
    return key


def _say_verdict(key: Key) -> None:
    if key.check is not None:
        click.echo(f"Checked: {key.check.verdict}. {key.check.detail}", err=True)


class Row(msgspec.Struct):
    """A line of the table."""

    id: int
    service: str
    name: str | None
    key: str
    status: str
    check: str | None
    default: str | None
    expires_at: datetime | None
    last_used_at: datetime | None
    last_used_by: str | None


ALWAYS = ("id", "service", "name", "key", "status")
"""The columns of every table. Another one is there if it says something of a key, so that lines stay short."""


@group.command("list")
@click.option("--service", metavar="SERVICE", help="Only keys of this service.")
@click.option("--status", type=click.Choice([*WORDS.values(), "disabled"]), help="Only keys that are this now.")
@click.option("--check", type=click.Choice(get_args(Verdict)), help="Only keys whose last check had this verdict.")
@click.option("--search", metavar="TEXT", help="Only keys with this in label, service or last four characters.")
@click.option("--sort", type=click.Choice(get_args(Sort)), help="The order.  [default: newest first]")
@url_option
@json_option
def list_all(
    service: str | None,
    status: str | None,
    check: Verdict | None,
    search: str | None,
    sort: Sort | None,
    url: str | None,
    as_json: bool,
) -> None:
    """List your keys. Shows their masks, not the keys themselves."""
    named: dict[str, KeyStatus] = {**{word: name for name, word in WORDS.items()}, "disabled": "disabled"}
    with find_server(url).client() as client:
        wanted = None if service is None else Offered(client.services()).find(service).service
        in_status = None if status is None else named[status]
        found = list(client.keys(service=wanted, status=in_status, check=check, q=search, sort=sort))
    if as_json:
        _print_json(found)
        return
    if not found:
        is_filtered = any((service, status, check, search))
        click.echo("No key matches." if is_filtered else "You have no keys yet. Add one: keyman key add", err=True)
        return
    rows = [_row(key) for key in found]
    columns = [name for name in Row.__struct_fields__ if name in ALWAYS or any(getattr(row, name) for row in rows)]
    print_rows(rows, columns, as_json=False)


def _row(key: Key) -> Row:
    return Row(
        key.id,
        key.service,
        key.name,
        key.last_4_chars,
        WORDS.get(key.status, key.status),
        None if key.check is None else key.check.verdict,
        "yes" if key.default else None,
        key.expires_at,
        key.last_used_at,
        key.last_used_by,
    )


OF_CALLS = ("etag", "duplicate_of")
"""Members of a Key that belong to a call, and not to what is stored."""


def _print_json(found: Key | list[Key]) -> None:
    """Print keys as the API shows them."""
    plain = msgspec.to_builtins(found)
    for key in plain if isinstance(plain, list) else [plain]:
        for member in OF_CALLS:
            key.pop(member, None)
    click.echo(msgspec.json.format(msgspec.json.encode(plain), indent=2))


def _each(key_ids: Sequence[int], url: str | None, work: Callable[[Keyman, int], str]) -> None:
    """Do `work`, which returns what to say, for each key. What fails does not stop the others."""
    server, failures = find_server(url), 0
    with server.raw_client() as client:
        for key_id in dict.fromkeys(key_ids):
            try:
                click.echo(work(client, key_id), err=True)
            except NotFound:
                failures += 1
                click.echo(f"keyman: You have no key {key_id}.", err=True)
            except ClientError as fault:
                raise KeymanError(explain(fault, server.url, server.variable)) from None
    if failures:
        raise KeymanError("See them with: keyman key list")


@group.command("pause")
@ids
@url_option
def pause(key_ids: tuple[int, ...], url: str | None) -> None:
    """Pause keys. Applications no longer get them, until you resume them."""
    _each(key_ids, url, lambda client, one: f"Paused key {one}: {describe(client.change(one, disabled=True))}.")


@group.command("resume")
@ids
@url_option
def resume(key_ids: tuple[int, ...], url: str | None) -> None:
    """Resume paused keys."""
    _each(key_ids, url, lambda client, one: f"Resumed key {one}: {describe(client.change(one, disabled=False))}.")


@group.command("default")
@one_id
@click.option("--off", is_flag=True, help="Make it an ordinary key again.")
@url_option
def default(key_id: int, off: bool, url: str | None) -> None:
    """Choose a key: applications get it for its service as long as it is active."""

    def choose(client: Keyman, one: int) -> str:
        key = client.change(one, default=not off)
        return f"Key {one} is {'no longer' if off else 'now'} the default for {key.service}: {describe(key)}."

    _each([key_id], url, choose)


@group.command("check")
@one_id
@url_option
@json_option
def check_one(key_id: int, url: str | None, as_json: bool) -> None:
    """Have the provider asked whether a key works. It costs nothing."""
    with find_server(url).client() as client:
        key = client.check(key_id)
    if as_json:
        _print_json(key)
    else:
        _say_verdict(key)


@group.command("edit")
@one_id
@click.option("--name", metavar="TEXT", help="A new label. An empty one removes it.")
@expiry_options
@click.option("--never-expires", is_flag=True, help="Remove the expiry.")
@url_option
def edit(
    key_id: int,
    name: str | None,
    expires_at: datetime | None,
    expires_in: timedelta | None,
    never_expires: bool,
    url: str | None,
) -> None:
    """Change the label or the expiry of a key. Its value stays."""
    until = expiry(expires_at, expires_in)
    if never_expires and until is not None:
        raise click.UsageError("Give a new expiry or --never-expires, not both.")
    if name is None and until is None and not never_expires:
        raise click.UsageError("Give --name, a new expiry or --never-expires.")
    label = UNSET if name is None else name or None
    new_expiry = None if never_expires else UNSET if until is None else until
    _each(
        [key_id],
        url,
        lambda client, one: f"Changed key {one}: {describe(client.change(one, name=label, expires_at=new_expiry))}.",
    )


@group.command("replace", cls=AsksForSecret)
@one_id
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
        key = client.get(key_id)
        service = _service_of(client, key)
        new_settings = {**key.settings, **parse_settings(service, settings)} if settings else UNSET
        click.echo(f"The new value for key {key.id}: {describe(key, service)}", err=True)
        new_expiry = UNSET if until is None else until
        key = client.replace(key, read_value(), expires_at=new_expiry, settings=new_settings)
    click.echo(f"Replaced the value of key {key.id}: {describe(key, service)}.", err=True)
    if key.duplicate_of is not None:
        click.echo(f"You already have this key: it is key {key.duplicate_of}, too.", err=True)
    if service.checked and not no_check:
        _checked(server, key)


def _service_of(client: Keyman, key: Key) -> Service:
    """Return the service of a key, which an operator may have removed from the catalogue."""
    found = (service for service in client.services() if service.service == key.service)
    return next(found, Service(key.service, key.service))


@group.command("delete")
@ids
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@url_option
def delete(key_ids: tuple[int, ...], yes: bool, url: str | None) -> None:
    """Delete keys for good, after you have seen what uses them."""

    def remove(client: Keyman, one: int) -> str:
        key = client.get(one)
        if not yes:
            service = _service_of(client, key)
            click.echo(_consequences(client, key, service), err=True)
            require_confirmation(f"Delete key {one}? This cannot be undone.")
        client.delete(key)
        return f"Deleted key {one}: {describe(key)}."

    _each(key_ids, url, remove)


def _consequences(client: Keyman, key: Key, service: Service) -> str:
    """Return what a person wants to know before the deletion."""
    lines = [f"Key {key.id}: {describe(key, service)}"]
    if key.last_used_at is None:
        lines.append("It was never used.")
    else:
        at = key.last_used_at.astimezone(UTC).strftime("%Y-%m-%d %H:%MZ")
        lines.append(f"{key.last_used_by or 'Somebody'} used it last, {at}.")
    able = [one.name for one in client.applications() if key.service in one.services and not one.blocked]
    if able:
        lines.append(f"Applications that may use your {service.name} keys: {', '.join(able)}.")
    lines.append(f"At {service.name} the key stays valid until you revoke it there.")
    return "\n  ".join(lines)
