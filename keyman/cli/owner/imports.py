"""`keyman key import`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import click
import msgspec

from keyman.cli.owner.offered import Offered
from keyman.cli.owner.server import explain, find_server, url_option
from keyman.cli.terminal import as_text, print_rows, require_confirmation
from keyman.client import ClientError, Key, Keyman, NewKey, Service
from keyman.errors import KeymanError
from keyman.providers.dotenv import Line, is_placeholder, is_reference, read_lines
from keyman.providers.naming import may_be_key, service_of
from keyman.providers.pasted import check_pasted
from keyman.secret import Secret

MAX_FILE = 1024 * 1024
"""Bytes of a file that are read."""

BATCH = 50
"""Keys that are stored with one call: the maximum of the API."""


class Candidate(msgspec.Struct):
    """A line of the preview. `problem` says why the row is not stored."""

    variable: str
    service: str | None
    key: str | None
    label: str | None
    problem: str | None = None

    def stored_as(self, value: str) -> NewKey:
        assert self.service is not None
        return NewKey(self.service, Secret(value), self.label)


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True))
@click.option("--only", multiple=True, metavar="VARIABLE", help="Store only this one. Can be repeated.")
@click.option(
    "--service",
    "named",
    multiple=True,
    metavar="VARIABLE=SERVICE",
    help="Whose key a variable has, where keyman does not recognise it. Can be repeated.",
)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@url_option
def import_file(file: Path, only: tuple[str, ...], named: tuple[str, ...], yes: bool, url: str | None) -> None:
    """Store the API keys of a .env file, after you have seen which. FILE can be - for standard input.

    keyman recognises keys by how they begin, and by the names of their variables. The name becomes the label.
    """
    found = [line for line in read_lines(_read(file).reveal()) if line.value]
    server = find_server(url)
    with server.client() as client:
        offered = Offered(client.services())
        chosen = dict(_named(offered, named))
        _require_known(found, (*only, *chosen))
        wanted = [line for line in _without_repetitions(found) if not only or line.name in only]
        candidates = [(line, _candidate(offered, line, chosen, is_sure=line.name in only)) for line in wanted]
        rows = [(line, row) for line, row in candidates if row is not None]
        _mark_repeated(rows)
        ready = [row.stored_as(line.value) for line, row in rows if row.problem is None]
        _show([row for _, row in rows], len(wanted))
        if not ready:
            raise KeymanError(f"There is no key to store in {_name(file)}.")
        if not yes:
            require_confirmation(f"Store {_keys(len(ready))}?")
        _store(client, ready, server.url)


def _read(file: Path) -> Secret:
    """Return the content of the file. Raises KeymanError."""
    if str(file) == "-" and sys.stdin is None:
        raise KeymanError("There is no standard input to read the file from.")
    try:
        with click.open_file(str(file), "rb") as opened:
            content = opened.read(MAX_FILE + 1)
    except OSError as fault:
        raise KeymanError(f"{_name(file)} cannot be read: {fault.strerror}.") from None
    if len(content) > MAX_FILE:
        raise KeymanError(f"{_name(file)} is larger than 1 MiB, so it is no .env file.")
    return as_text(content, "file")


def _name(file: Path) -> str:
    return "standard input" if str(file) == "-" else str(file)


def _keys(count: int) -> str:
    return "1 key" if count == 1 else f"{count} keys"


def _named(offered: Offered, named: Sequence[str]) -> Iterator[tuple[str, Service]]:
    for text in named:
        variable, separator, service = text.partition("=")
        if not separator:
            raise click.BadParameter("must be VARIABLE=SERVICE.", param_hint="--service")
        yield variable, offered.find(service)


def _require_known(found: Sequence[Line], names: Sequence[str]) -> None:
    missing = [name for name in names if name not in {one.name for one in found}]
    if missing:
        raise click.UsageError(f"There is no variable {missing[0]} with a value in the file.")


def _candidate(offered: Offered, line: Line, chosen: Mapping[str, Service], *, is_sure: bool) -> Candidate | None:
    """Return the row of a variable, or None if it is no key as far as anybody can tell.

    A value without a name is a key only if it certainly belongs to a service. Nothing of a value is shown unless it is
    known to be a key. Somebody who `is_sure` has named the variable.
    """
    service = chosen[line.name].service if line.name in chosen else service_of(offered, line.name, line.value)
    variable = line.name or f"(line {line.number})"
    is_key = line.name in chosen or may_be_key(offered, line.name, line.value)
    if not is_key or not (service or line.name):
        return None
    if not service:
        return Candidate(variable, None, None, None, f"whose key? --service {variable}=SERVICE")
    problem = _problem(line.value)
    shown = None if problem else offered.mask(service, Secret(line.value))
    doubt = offered.doubt(service, Secret(line.value))
    if problem is None and doubt is not None and not is_sure:
        problem = f"{doubt}. To store it anyway: --only {variable}"
    return Candidate(variable, service, shown, line.name or None, problem)


def _problem(value: str) -> str | None:
    """Return why a value is certainly no key. The server looks more closely."""
    if is_reference(value):
        return "refers to another variable"
    if is_placeholder(value):
        return "is a placeholder"
    if value.startswith("{"):
        return None
    try:
        check_pasted(value)
    except ValueError as fault:
        return str(fault)
    return "is too short for a key" if len(value) < 8 else None


def _mark_repeated(rows: Sequence[tuple[Line, Candidate]]) -> None:
    """Note in a row that a row above has the same value."""
    seen = set[str]()
    for line, row in rows:
        if row.problem is None and line.value in seen:
            row.problem = "is the same key as in a row above"
        seen.add(line.value)


def _without_repetitions(found: Sequence[Line]) -> Iterator[Line]:
    """Yield the lines that count: of each variable the last one, as for a shell."""
    last = {line.name: line.number for line in found}
    yield from (line for line in found if not line.name or last[line.name] == line.number)


def _show(rows: Sequence[Candidate], count: int) -> None:
    """Print the preview on standard output."""
    if rows:
        print_rows(rows, Candidate.__struct_fields__, as_json=False)
    if count > len(rows):
        others = count - len(rows)
        click.echo(f"{others} other {'variable is' if others == 1 else 'variables are'} left out.", err=True)


def _store(client: Keyman, keys: Sequence[NewKey], url: str) -> None:
    """Store the keys and say what came of each. Raises KeymanError if one is not stored."""
    failed = 0
    for start in range(0, len(keys), BATCH):
        batch = keys[start : start + BATCH]
        for key, outcome in zip(batch, client.add_all(batch), strict=True):
            failed += isinstance(outcome, ClientError)
            click.echo(_outcome(key, outcome, url), err=True)
    if failed:
        raise KeymanError(f"{_keys(failed)} of {len(keys)} could not be stored; the others are.")
    click.echo(f"Stored {_keys(len(keys))}. Programs can use them: keyman run -- COMMAND", err=True)


def _outcome(key: NewKey, outcome: Key | ClientError, url: str) -> str:
    if isinstance(outcome, ClientError):
        return f"{key.name or key.service}: not stored. {explain(outcome, url)}"
    also = f" You already have it: it is key {outcome.duplicate_of}, too." if outcome.duplicate_of is not None else ""
    return f"{key.name or key.service}: key {outcome.id}, {outcome.service}, {outcome.last_4_chars}.{also}"
