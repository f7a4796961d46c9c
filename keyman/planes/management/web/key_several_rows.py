"""The rows of the page for several keys: what is found in the pasted lines, and what came of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import msgspec

from keyman.decoding import decode
from keyman.errors import FieldError, InvalidRequest, Problem, Sentence
from keyman.ids import KeyId
from keyman.keys.schemas import KeyInfo, NewKey
from keyman.planes.management.web.forms import Form
from keyman.planes.management.web.outcomes import ids_of
from keyman.providers.catalogue import Catalogue, ServiceInfo
from keyman.providers.dotenv import Line, is_placeholder, is_reference
from keyman.providers.naming import service_of
from keyman.providers.recognition import check_new_key, has_key, texts_of, unusual_beginning

LACKING = "Without the setting {setting}, the gateway cannot use this key."


class Kept(msgspec.Struct):
    """What came of a chosen row: the stored key, or the message of its first fault and the field that it is about.

    The message is kept as the template of a sentence and its values, so that another language can say it.
    """

    key: KeyInfo | None = None
    template: str = ""
    values: dict[str, str] = msgspec.field(default_factory=dict)
    at: str = ""

    @property
    def words(self) -> str:
        return Sentence(self.template, **self.values) if self.values else self.template


@dataclass
class Row:
    """A value that may be a key. `fault` says why it cannot be stored, and `doubt` why it may be the wrong one.

    `pasted` are the `texts_of` the values of all rows. A label must have none of them, and nothing that looks like a
    key.
    """

    catalogue: Catalogue = field(repr=False)
    number: int
    line: Line = field(repr=False)
    mask: str
    service: str
    label: str
    pasted: frozenset[str] = field(repr=False)
    settings: dict[str, str] = field(default_factory=dict)
    lacking: str = ""
    is_chosen: bool = True
    fault: Kept | None = None
    doubt: str = ""
    is_stored: bool = False
    key_id: KeyId | None = None
    same_as: KeyInfo | None = None

    def take(self, kept: Kept, same_as: KeyInfo | None) -> None:
        """Note what came of this row."""
        self.is_stored, self.is_chosen, self.same_as = kept.key is not None, kept.key is None, same_as
        self.fault, self.doubt = (kept if kept.template else None), ""
        self.key_id = KeyId(kept.key.id) if kept.key is not None else None

    @property
    def shown_label(self) -> str:
        """The label, or nothing if somebody typed a key there: no page has one."""
        return "" if has_key(self.catalogue, self.label, self.pasted) else self.label

    @property
    def shown_settings(self) -> dict[str, str]:
        """The settings without those that have a key."""
        return {
            member: text for member, text in self.settings.items() if not has_key(self.catalogue, text, self.pasted)
        }

    @property
    def trace(self) -> str:
        """What the page shows of the line, by which the next step recognises it."""
        return f"{self.line.number} {self.line.name} {self.mask}"


def find_rows(catalogue: Catalogue, services: Sequence[ServiceInfo], lines: Sequence[Line]) -> Iterator[Row]:
    """Yield a row for each line. Those with a fault or a doubt, and the second of two equal ones, are not chosen."""
    slugs = {info.service for info in services}
    pasted = texts_of(line.value for line in lines)
    seen: set[str] = set()
    for number, line in enumerate(lines):
        found = service_of(catalogue, line.name, line.value)
        service = found if found in slugs else ""
        row = Row(catalogue, number, line, catalogue.mask(found, line.value), service, line.name, pasted)
        if line.value in seen:
            row.is_chosen, row.doubt = False, Sentence("This is the same key as in a row above.")
        elif not row.service:
            row.is_chosen, row.doubt = False, Sentence("Choose a service.")
        else:
            _look(catalogue, row)
        seen.add(line.value)
        yield row


def _look(catalogue: Catalogue, row: Row) -> None:
    """Note what is wrong with a row, or may be."""
    entry = entry_of(catalogue, row, None)
    if isinstance(entry, Problem):
        row.fault = first_fault(entry)
    else:
        row.doubt = _stand_in(row.line.value) or unusual_beginning(catalogue, row.service, entry.api_key) or ""
        row.doubt = row.doubt or _lacking(catalogue, row)
    row.is_chosen = row.fault is None and not row.doubt


def _stand_in(value: str) -> Sentence | None:
    """Return a sentence for a value that stands for a key that is elsewhere, or that is yet to be filled in."""
    if is_placeholder(value):
        return Sentence("This looks like a placeholder, not like a key.")
    return Sentence("This refers to another variable.") if is_reference(value) else None


def _lacking(catalogue: Catalogue, row: Row) -> str:
    """Return what to say of the first setting that the gateway needs and the row lacks, or an empty text."""
    known = catalogue.find(row.service)
    needed = known.upstream.parameters if known is not None and known.upstream is not None else ()
    titles = [
        one.title for one in catalogue.settings(row.service) if one.name in needed and one.name not in row.settings
    ]
    return Sentence(LACKING, setting=titles[0]) if titles else ""


def setting_field(number: int | str, service: str, member: str) -> str:
    """Return the name of the field of a setting in a row."""
    return f"settings-{number}-{service}-{member}"


def choose(catalogue: Catalogue, rows: Sequence[Row], services: Sequence[ServiceInfo], form: Form) -> None:
    """Take over what was chosen and changed on the page. What was stored before stays stored, and is not chosen.

    `lacking` is what the page has not said before of a setting that the gateway needs and the row lacks.
    """
    used, stored, slugs = set(form.all("use")), set(form.all("stored")), {info.service for info in services}
    for row in rows:
        number, service = str(row.number), form.text(f"service-{row.number}")
        row.is_stored = number in stored
        row.key_id = next(iter(ids_of([form.text(f"key-{number}")])), None)
        row.is_chosen = number in used and not row.is_stored
        row.label = form.text(f"label-{row.number}").strip()
        if service != row.service:
            row.service, row.fault, row.doubt = (service if service in slugs else ""), None, ""
        fields = {one.name: setting_field(number, row.service, one.name) for one in catalogue.settings(row.service)}
        row.settings = {member: text for member, name in fields.items() if (text := form.text(name).strip())}
        is_asked = form.text(f"asked-{number}") == row.service
        row.lacking = "" if is_asked else _lacking(catalogue, row)


def entry_of(
    catalogue: Catalogue, row: Row, refusal: Problem | None, expires_at: datetime | None = None
) -> NewKey | Problem:
    """Return the key that a row describes, or why it cannot be stored."""
    given = {"service": row.service, "api_key": row.line.value, "name": row.label, "settings": row.settings}
    if row.lacking:
        return InvalidRequest.at(FieldError("", row.lacking))
    try:
        check = check_new_key(catalogue, row.pasted)
        new = decode(NewKey, {name: text for name, text in given.items() if text}, check, "entry")
    except InvalidRequest as fault:
        return fault
    return refusal or msgspec.structs.replace(new, expires_at=expires_at)


def first_fault(problem: Problem) -> Kept:
    """Return the first fault that a problem names."""
    at, message = problem.errors[0] if problem.errors else ("", problem.detail)
    if not isinstance(message, Sentence):
        return Kept(template=message, at=at)
    return Kept(template=message.template, values={name: str(value) for name, value in message.values.items()}, at=at)
