"""`keyman key`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import get_args

import click
import msgspec
from msgspec import UNSET

from keyman.cli.groups import Group, KeyNumber
from keyman.cli.owner import completing
from keyman.cli.owner.imports import import_file
from keyman.cli.owner.inputs import expiry, expiry_options
from keyman.cli.owner.offered import Offered
from keyman.cli.owner.server import explain, find_server, url_option
from keyman.cli.owner.shown import describe, print_json, say_verdict, service_of
from keyman.cli.owner.values import add, replace
from keyman.cli.terminal import cell, json_option, print_rows, require_confirmation
from keyman.client import ClientError, Key, Keyman, KeyStatus, NotFound, Service, Sort, Verdict
from keyman.errors import KeymanError

WORDS: dict[KeyStatus, str] = {
    "active": "active",
    "disabled": "paused",
    "expired": "expired",
    "undecryptable": "unreadable",
}
"""The words of the pages for what the API calls the status of a key."""

one_id = click.argument("key_id", type=KeyNumber(), metavar="ID")
ids = click.argument("key_ids", type=KeyNumber(), metavar="ID...", nargs=-1, required=True)


@click.group("key", cls=Group)
def group() -> None:
    """Your API keys. Sign in first with `keyman login`."""


for command in (add, import_file, replace):
    group.add_command(command)


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
@click.option("--service", metavar="SERVICE", shell_complete=completing.services, help="Only keys of this service.")
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
        print_json(found)
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
        print_json(key)
    else:
        say_verdict(key)


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


@group.command("delete")
@ids
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@url_option
def delete(key_ids: tuple[int, ...], yes: bool, url: str | None) -> None:
    """Delete keys for good, after you have seen what uses them."""

    def remove(client: Keyman, one: int) -> str:
        key = client.get(one)
        if not yes:
            service = service_of(client, key)
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
        lines.append(f"{cell(key.last_used_by or 'Somebody')} used it last, {at}.")
    able = [cell(one.name) for one in client.applications() if key.service in one.services and not one.blocked]
    if able:
        lines.append(f"Applications that may use your {service.name} keys: {', '.join(able)}.")
    lines.append(f"At {service.name} the key stays valid until you revoke it there.")
    return "\n  ".join(lines)
