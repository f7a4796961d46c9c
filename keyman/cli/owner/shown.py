"""What commands about keys say of a key."""

from __future__ import annotations

import click
import msgspec

from keyman.cli.owner.server import Server, explain
from keyman.cli.terminal import cell
from keyman.client import ClientError, Conflict, Key, Keyman, Service


def describe(key: Key, service: Service | None = None) -> str:
    """Return a key as people know it, without its number."""
    label = f', "{key.name}"' if key.name else ""
    return cell(f"{service.name if service is not None else key.service}, {key.last_4_chars}{label}")


def service_of(client: Keyman, key: Key) -> Service:
    """Return the service of a key, which an operator may have removed from the catalogue."""
    found = (service for service in client.services() if service.service == key.service)
    return next(found, Service(key.service, key.service))


def check(server: Server, key: Key) -> Key:
    """Have a key checked, say what came of it, and return the key. That it cannot be checked is no failure."""
    try:
        with server.raw_client() as client:
            key = client.check(key.id)
    except Conflict:
        return key  # there are no live checks here
    except ClientError as fault:
        click.echo(f"Not checked. {explain(fault, server.url)}", err=True)
        return key
    say_verdict(key)
    return key


def say_verdict(key: Key) -> None:
    if key.check is not None:
        click.echo(cell(f"Checked: {key.check.verdict}. {key.check.detail}"), err=True)


OF_CALLS = ("etag", "duplicate_of")
"""Members of a Key that belong to a call, and not to what is stored."""


def print_json(found: Key | list[Key]) -> None:
    """Print keys as the API shows them."""
    plain = msgspec.to_builtins(found)
    for key in plain if isinstance(plain, list) else [plain]:
        for member in OF_CALLS:
            key.pop(member, None)
    click.echo(msgspec.json.format(msgspec.json.encode(plain), indent=2))
