"""Settings → API Keys: several keys at once, from the lines of a `.env` file.

The values come with each of the two steps, and no page sends one back. With JavaScript, the browser keeps what was
pasted until the keys are stored (`static/several.js`). Without it, the page asks for the same lines again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from uuid import uuid4

import msgspec
from litestar import Response, get, post
from litestar.exceptions.http_exceptions import RequestEntityTooLarge

from keyman.config.settings import Settings
from keyman.decoding import decode
from keyman.errors import FieldError, IdempotencyMismatch, InvalidRequest, NotFound, Problem, Sentence, Unauthenticated
from keyman.http.guards import needs
from keyman.http.limit import count_writes
from keyman.http.requests import AnyRequest, Injected
from keyman.identity.principals import Principal
from keyman.identity.tokens import Scope
from keyman.ids import KeyId
from keyman.keys import batches, idempotency, operations
from keyman.keys.batches import Outcome
from keyman.keys.idempotency import IdempotencyKey
from keyman.keys.schemas import KeyInfo, NewKey
from keyman.keys.sealing import Sealer
from keyman.planes.management.web import marks
from keyman.planes.management.web.forms import Form
from keyman.planes.management.web.keys import offered
from keyman.planes.management.web.outcomes import ids_of
from keyman.planes.management.web.pages import Visit
from keyman.providers.catalogue import Catalogue, ServiceInfo
from keyman.providers.dotenv import Line, read_lines
from keyman.providers.naming import may_be_key, service_of
from keyman.providers.recognition import check_new_key, unusual_beginning
from keyman.storage.transactions import Database

MAX_BYTES = 512 * 1024
"""The maximum size of a form: 50 service-account files of 2,400 bytes, which the browser encodes, and their rest."""

MAX_KEYS = 50
"""The maximum number of keys at once, as for `POST /api/keys/batch`."""

MAX_LINES = 2_000
"""The maximum number of lines: 50 service-account files have 700. A worker reads so many in 50 ms."""

MAX_FIELDS = 6 * MAX_KEYS

NOTHING_CHOSEN = "Choose at least one key."
NO_KEY = "There is no key in these lines."
TOO_LONG = "These lines are too long. Paste fewer of them."
OTHER_LINES = "These are not the same lines as before. Look at the keys again, and choose."


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
    """A value that may be a key. `fault` says why it cannot be stored, and `doubt` why it may be the wrong one."""

    number: int
    line: Line = field(repr=False)
    mask: str
    service: str
    label: str
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
        """The label, or nothing if somebody typed the key there: no page has one."""
        return "" if self.line.value in self.label else self.label

    @property
    def trace(self) -> str:
        """What the page shows of the line, by which the next step recognises it."""
        return f"{self.line.number} {self.line.name} {self.mask}"


@get("/settings/api-keys/several", opt=needs(Scope.KEYS_WRITE), include_in_schema=False)
async def several_form(visit: Injected[Visit]) -> Response[bytes]:
    return _show(visit)


@post(
    "/settings/api-keys/several",
    opt=needs(Scope.KEYS_WRITE),
    include_in_schema=False,
    status_code=200,
    request_max_body_size=MAX_BYTES,
)
async def several(
    request: AnyRequest,
    visit: Injected[Visit],
    db: Injected[Database],
    sealer: Injected[Sealer],
    caller: Injected[Principal],
    catalogue: Injected[Catalogue],
    settings: Injected[Settings],
) -> Response[bytes]:
    """Show the keys in the pasted lines, or store those that were chosen on the page that showed them."""
    form = await _read(request)
    if form is None or len(form.text("text").splitlines()) > MAX_LINES:
        return _show(visit, refused=InvalidRequest.at(FieldError("", TOO_LONG)))
    lines = list(read_lines(form.text("text")))
    named = [one for one in lines if may_be_key(catalogue, one.name, one.value)]
    services = offered(catalogue, caller)
    rows = list(_rows(catalogue, services, named[:MAX_KEYS]))
    numbers = {one.number for one in named}
    left_out = [one.name for one in lines if one.number not in numbers]
    if not rows:
        return _show(visit, refused=InvalidRequest.at(FieldError("", NO_KEY)))
    show = partial(_show, visit, catalogue, rows, services, left_out, is_cut=len(named) > MAX_KEYS)
    traces = form.all("trace")
    if traces != [row.trace for row in rows]:
        return show(refused=InvalidRequest.at(FieldError("", OTHER_LINES)) if traces else None)
    _choose(rows, services, form)
    chosen = [row for row in rows if row.is_chosen]
    if not chosen:
        return show(refused=InvalidRequest.at(FieldError("", NOTHING_CHOSEN)))
    refusals = count_writes(request, len(chosen))
    entries = [_entry(catalogue, row, refusal) for row, refusal in zip(chosen, refusals, strict=True)]
    store = partial(batches.create, db, sealer, caller, entries, _answer, max_keys=settings.max_keys)
    try:
        found = await _store_once(db, caller, store, form, chosen)
    except Unauthenticated:
        raise  # the session ended meanwhile: show the sign-in page, and nothing of the account
    except Problem as problem:
        return show(refused=problem)
    for row, kept in zip(chosen, found, strict=True):
        row.take(kept, await _same_as(db, caller, kept.key))
    return show(is_stored=any(kept.key for kept in found))


async def _store_once(
    db: Database,
    caller: Principal,
    store: Callable[[IdempotencyKey | None], Awaitable[list[Kept] | None]],
    form: Form,
    chosen: Sequence[Row],
) -> list[Kept]:
    """Store the keys only once, even if the browser sends the form several times."""
    rows = [(row.number, row.service, row.label) for row in chosen]
    body = json.dumps([form.text("text"), form.all("trace"), rows]).encode()
    attempt = hashlib.sha256(f"several {form.text('attempt')}".encode()).hexdigest()
    retry = IdempotencyKey.parse(attempt, caller.user_id, body)
    try:
        first = await idempotency.find(db, retry, list[Kept])
        if first is None:
            first = await store(retry) or await idempotency.find(db, retry, list[Kept])
    except IdempotencyMismatch:
        first = await store(None)  # the user went back, and chose others
    assert first is not None, "the same request was carried out a moment ago"
    return first


async def _same_as(db: Database, caller: Principal, key: KeyInfo | None) -> KeyInfo | None:
    """Return the key that was stored before with the same value, or None, also if it was deleted since."""
    if key is None or not key.duplicate_of:
        return None
    try:
        return await operations.get(db, caller, key.duplicate_of)
    except NotFound:
        return None


async def _read(request: AnyRequest) -> Form | None:
    """Return the form, or None if it is larger than MAX_BYTES."""
    try:
        return await Form.read(request, MAX_FIELDS)
    except RequestEntityTooLarge:
        return None


def _rows(catalogue: Catalogue, services: Sequence[ServiceInfo], lines: Sequence[Line]) -> Iterator[Row]:
    """Yield a row for each line. Those with a fault or a doubt, and the second of two equal ones, are not chosen."""
    slugs = {info.service for info in services}
    seen: set[str] = set()
    for number, line in enumerate(lines):
        service = service_of(catalogue, line.name, line.value)
        row = Row(number, line, catalogue.mask(service, line.value), service if service in slugs else "", line.name)
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
    entry = _entry(catalogue, row, None)
    if isinstance(entry, Problem):
        row.fault = _first(entry)
    else:
        row.doubt = unusual_beginning(catalogue, row.service, entry.api_key) or ""
    row.is_chosen = row.fault is None and not row.doubt


def _choose(rows: Sequence[Row], services: Sequence[ServiceInfo], form: Form) -> None:
    """Take over what was chosen and changed on the page. What was stored before stays stored, and is not chosen."""
    used, stored, slugs = set(form.all("use")), set(form.all("stored")), {info.service for info in services}
    for row in rows:
        number, service = str(row.number), form.text(f"service-{row.number}")
        row.is_stored = number in stored
        row.key_id = next(iter(ids_of([form.text(f"key-{number}")])), None)
        row.is_chosen = number in used and not row.is_stored
        row.label = form.text(f"label-{row.number}").strip()
        row.service = service if service in slugs else ""


def _entry(catalogue: Catalogue, row: Row, refusal: Problem | None) -> NewKey | Problem:
    """Return the key that a row describes, or why it cannot be stored."""
    given = {"service": row.service, "api_key": row.line.value, "name": row.label}
    try:
        new = decode(NewKey, {name: text for name, text in given.items() if text}, check_new_key(catalogue), "entry")
    except InvalidRequest as fault:
        return fault
    return refusal or new


def _first(problem: Problem) -> Kept:
    """Return the first fault that a problem names."""
    at, message = problem.errors[0] if problem.errors else ("", problem.detail)
    if not isinstance(message, Sentence):
        return Kept(template=message, at=at)
    return Kept(template=message.template, values={name: str(value) for name, value in message.values.items()}, at=at)


def _answer(outcomes: Sequence[Outcome]) -> list[Kept]:
    return [Kept(outcome) if isinstance(outcome, KeyInfo) else _first(outcome) for outcome in outcomes]


def _show(
    visit: Visit,
    catalogue: Catalogue | None = None,
    rows: Sequence[Row] = (),
    services: Sequence[ServiceInfo] = (),
    left_out: Sequence[str] = (),
    *,
    is_cut: bool = False,
    is_stored: bool = False,
    refused: Problem | None = None,
) -> Response[bytes]:
    """Show the rows, or the field for the lines if there are none. No row has a value on the page."""
    return visit.show(
        "key_several.html",
        refused=refused,
        rows=rows,
        is_done=bool(rows) and all(row.is_stored for row in rows),
        services=services,
        names={info.service: info.name for info in services},
        letters=partial(marks.letters, catalogue) if catalogue is not None else None,
        left_out=left_out,
        is_cut=is_cut,
        is_stored=is_stored,
        saved=",".join(str(row.key_id) for row in rows if row.key_id),
        attempt=uuid4().hex,
    )
