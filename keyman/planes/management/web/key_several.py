"""Settings → API Keys: several keys at once, from the lines of a `.env` file.

The values come with each of the two steps, and no page sends one back. With JavaScript, the browser keeps what was
pasted until the keys are stored (`static/several.js`). Without it, the page asks for the same lines again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from uuid import uuid4

import msgspec
from litestar import Response, get, post
from litestar.exceptions.http_exceptions import RequestEntityTooLarge

from keyman.config.settings import Settings
from keyman.decoding import decode
from keyman.errors import FieldError, IdempotencyMismatch, InvalidRequest, NotFound, Problem, Unauthenticated
from keyman.http.guards import needs
from keyman.http.limit import count_writes
from keyman.http.requests import AnyRequest, Injected
from keyman.identity.principals import Principal
from keyman.identity.tokens import Scope
from keyman.keys import batches, idempotency, operations
from keyman.keys.batches import Outcome
from keyman.keys.idempotency import IdempotencyKey
from keyman.keys.schemas import KeyInfo
from keyman.keys.sealing import Sealer
from keyman.planes.management.web import marks
from keyman.planes.management.web.expiry import DAY, expiry_choices, with_last_day
from keyman.planes.management.web.forms import Form, LastDay
from keyman.planes.management.web.key_several_rows import (
    Kept,
    Row,
    choose,
    entry_of,
    find_rows,
    first_fault,
    setting_field,
)
from keyman.planes.management.web.keys import offered
from keyman.planes.management.web.pages import Visit
from keyman.providers.catalogue import Catalogue, ServiceInfo
from keyman.providers.dotenv import read_lines
from keyman.providers.naming import may_be_key
from keyman.storage.transactions import Database

MAX_BYTES = 512 * 1024
"""The maximum size of a form: 50 service-account files of 2,400 bytes, which the browser encodes, and their rest."""

MAX_KEYS = 50
"""The maximum number of keys at once, as for `POST /api/keys/batch`."""

MAX_LINES = 2_000
"""The maximum number of lines: 50 service-account files have 700. A worker reads so many in 50 ms."""

MAX_FIELDS = 10 * MAX_KEYS
"""A row has at most six fields, and one for each setting of its service."""

NOTHING_CHOSEN = "Choose at least one key."
NO_KEY = "There is no key in these lines."
TOO_LONG = "These lines are too long. Paste fewer of them."
OTHER_LINES = "These are not the same lines as before. Look at the keys again, and choose."


class Until(msgspec.Struct):
    """What the form says of all chosen keys."""

    expires_at: LastDay | None = None


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
    rows = list(find_rows(catalogue, services, named[:MAX_KEYS]))
    numbers = {one.number for one in named}
    left_out = [one.name for one in lines if one.number not in numbers]
    if not rows:
        return _show(visit, refused=InvalidRequest.at(FieldError("", NO_KEY)))
    show = partial(_show, visit, catalogue, rows, services, left_out, day=form.text(DAY), is_cut=len(named) > MAX_KEYS)
    traces = form.all("trace")
    if traces != [row.trace for row in rows]:
        return show(refused=InvalidRequest.at(FieldError("", OTHER_LINES)) if traces else None)
    choose(catalogue, rows, services, form)
    chosen = [row for row in rows if row.is_chosen]
    try:
        form = with_last_day(form)
        until = _until(form, chosen)
    except InvalidRequest as fault:
        return show(refused=fault)
    show = partial(show, day=form.text(DAY))
    refusals = count_writes(request, len(chosen))
    entries = [entry_of(catalogue, row, refusal, until) for row, refusal in zip(chosen, refusals, strict=True)]
    store = partial(batches.create, db, sealer, caller, entries, _answer, max_keys=settings.max_keys)
    try:
        found = await _store_once(db, caller, store, form, chosen)
    except Unauthenticated:
        raise  # the session ended meanwhile: show the sign-in page, and nothing of the account
    except Problem as problem:
        return show(refused=problem)
    for row, kept in zip(chosen, found, strict=True):
        row.take(kept, await _same_as(db, caller, kept.key))
    return show()


def _until(form: Form, chosen: Sequence[Row]) -> LastDay | None:
    """Return when the chosen keys expire. Raises InvalidRequest if there is none, or if the day is invalid."""
    if not chosen:
        raise InvalidRequest.at(FieldError("", NOTHING_CHOSEN))
    return decode(Until, form.filled(DAY)).expires_at


async def _store_once(
    db: Database,
    caller: Principal,
    store: Callable[[IdempotencyKey | None], Awaitable[list[Kept] | None]],
    form: Form,
    chosen: Sequence[Row],
) -> list[Kept]:
    """Store the keys only once, even if the browser sends the form several times."""
    rows = [(row.number, row.service, row.label, row.settings) for row in chosen]
    body = json.dumps([form.text("text"), form.all("trace"), form.text(DAY), rows]).encode()
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


def _answer(outcomes: Sequence[Outcome]) -> list[Kept]:
    return [Kept(outcome) if isinstance(outcome, KeyInfo) else first_fault(outcome) for outcome in outcomes]


def _show(
    visit: Visit,
    catalogue: Catalogue | None = None,
    rows: Sequence[Row] = (),
    services: Sequence[ServiceInfo] = (),
    left_out: Sequence[str] = (),
    *,
    day: str = "",
    is_cut: bool = False,
    refused: Problem | None = None,
) -> Response[bytes]:
    """Show the rows, or the field for the lines if there are none. No row has a value on the page."""
    return visit.show(
        "key_several.html",
        status=200,
        refused=refused,
        rows=rows,
        is_done=bool(rows) and all(row.is_stored for row in rows),
        services=services,
        names={info.service: info.name for info in services},
        setting_field=setting_field,
        filled={DAY: day},
        **expiry_choices(),
        letters=partial(marks.letters, catalogue) if catalogue is not None else None,
        left_out=left_out,
        is_cut=is_cut,
        is_stored=any(row.is_stored for row in rows),
        saved=",".join(str(row.key_id) for row in rows if row.key_id),
        attempt=uuid4().hex,
    )
