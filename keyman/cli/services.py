"""`keyman services`: the catalogue, and what the operator's services file changes in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from keyman.cli.common import environment, home_option
from keyman.cli.terminal import cell, json_option, print_rows
from keyman.config.settings import load_services_file
from keyman.providers.catalogue import Catalogue
from keyman.providers.services import SHIPPED, Service
from keyman.providers.upstreams import Check, Upstream

_COLUMNS = ("service", "name", "source", "base_url", "auth", "checked_by", "prefixes", "changed")


class _Entry(msgspec.Struct):
    """A service with the fields of the services file, as it counts. Without a `base_url` the gateway does not serve it.

    `source` is `shipped`, `changed` or `added`. `changed` has the fields that the file changes, and `shipped` their
    values without it.
    """

    service: str
    name: str
    source: str
    base_url: str | None
    auth: str | None
    paths: list[str]
    check: Check | None
    checked_by: str | None
    prefixes: list[str]
    exclusive: list[str]
    console_url: str | None
    settings: list[str]
    allowed_hosts: list[str]
    allow_private: bool
    changed: list[str] = msgspec.field(default_factory=list)
    shipped: dict[str, object] = msgspec.field(default_factory=dict)


@click.command("services")
@click.argument("service", required=False)
@home_option
@json_option
def command(service: str | None, home: Path | None, as_json: bool) -> None:
    """List the services whose keys can be stored, and what the services file changes.

    KEYMAN_SERVICES_FILE names that file. With the name of a SERVICE, such as OPENAI, show all of it: also the paths
    that the gateway forwards.
    """
    shipped = {one.service: one for one in SHIPPED}
    catalogue = Catalogue.load(load_services_file(environment(home)))
    entries = [_entry(one, shipped.get(one.service)) for one in catalogue.services()]
    if service is None:
        print_rows(entries, _COLUMNS, as_json=as_json)
        return
    wanted = service.upper().replace("-", "_")  # as for `keyman key add`
    found = [one for one in entries if one.service == wanted]
    if not found:
        known = ", ".join(one.service for one in entries)
        raise click.BadParameter(f"the known services are {known}", param_hint="SERVICE")
    if as_json:
        print_rows(found, _COLUMNS, as_json=True)
    else:
        _show(found[0])


def _entry(service: Service, shipped: Service | None) -> _Entry:
    entry = _values(service)
    if shipped is None:
        entry.source = "added"
    elif service != shipped:
        was = _values(shipped)
        entry.changed = [name for name in _FIELDS if getattr(entry, name) != getattr(was, name)]
        entry.shipped = {name: getattr(was, name) for name in entry.changed}
        entry.source = "changed"
    return entry


_FIELDS = (
    *("name", "base_url", "auth", "paths", "check", "prefixes", "exclusive", "console_url", "settings"),
    *("allowed_hosts", "allow_private"),
)
"""The fields that a services file can change."""


def _values(service: Service) -> _Entry:
    upstream = service.upstream or Upstream("")
    check = upstream.check
    return _Entry(
        service=service.service,
        name=service.name,
        source="shipped",
        base_url=upstream.base_url or None,
        auth=upstream.auth if upstream.base_url else None,
        paths=list(upstream.paths),
        check=check,
        checked_by=None if check is None else f"{check.method} {check.path or check.url}",
        prefixes=list(service.prefixes),
        exclusive=list(service.exclusive),
        console_url=service.console_url,
        settings=[setting.name for setting in service.settings],
        allowed_hosts=list(service.allowed_hosts),
        allow_private=upstream.allow_private,
    )


def _show(entry: _Entry) -> None:
    """Print a service, a field a line, and a path a line."""
    lines: list[tuple[str, Sequence[object]]] = [
        ("service", [entry.service]),
        ("name", [entry.name]),
        ("source", [entry.source]),
        ("keys from", [entry.console_url]),
        ("prefixes", [entry.prefixes]),
        ("only its own", [entry.exclusive]),
        ("settings", [entry.settings]),
        ("allowed hosts", [entry.allowed_hosts]),
        ("base URL", [entry.base_url]),
        ("auth", [entry.auth]),
        ("check", [entry.checked_by]),
        ("private", ["yes" if entry.allow_private else "no"]),
        ("paths", entry.paths or [None]),
        ("changed", [f"{name}, shipped as {_shipped(value)}" for name, value in entry.shipped.items()]),
    ]
    for label, values in lines:
        for number, value in enumerate(values):
            click.echo(f"{'' if number else label:15}{cell(value)}")


def _shipped(value: object) -> str:
    return f"{value.method} {value.path or value.url}" if isinstance(value, Check) else cell(value)
