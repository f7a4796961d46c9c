"""Settings → API Keys: the form to add a key and to edit one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable
from datetime import datetime
from functools import partial
from uuid import uuid4

import msgspec
from litestar import Response, get, post
from litestar.params import FromPath

from keyman.clock import now
from keyman.config.settings import Settings
from keyman.decoding import decode
from keyman.errors import (
    FieldError,
    IdempotencyMismatch,
    InvalidRequest,
    NotFound,
    PreconditionFailed,
    Problem,
    Sentence,
    Unauthenticated,
)
from keyman.http.guards import needs
from keyman.http.requests import AnyRequest, Injected, RowId
from keyman.identity.principals import Principal
from keyman.identity.tokens import Scope
from keyman.keys import idempotency, operations
from keyman.keys.idempotency import IdempotencyKey
from keyman.keys.operations import Created, IfMatch
from keyman.keys.schemas import Change, KeyInfo, NewKey, Replacement
from keyman.keys.sealing import Sealer
from keyman.keys.settings import NONE, to_text
from keyman.planes.management.web.expiry import expiry_choices, with_last_day
from keyman.planes.management.web.forms import Form, LastDay
from keyman.planes.management.web.keys import Place, back_to, offered
from keyman.planes.management.web.own_keys import OwnKeys
from keyman.providers.catalogue import Catalogue
from keyman.providers.pasted import bare
from keyman.providers.recognition import check_new_key, check_shown, has_key, unusual_beginning
from keyman.secret import Secret
from keyman.storage.transactions import Database

REPLACE, EXTEND = AIMS = ("replace", "extend")
"""What a form to edit a key is for, if it is for one thing: a new value or a later expiry, which it then requires."""

SURROUNDINGS = ("name", "expires_at")
"""The fields of a key that can be changed without its value."""


class KeyForm(NewKey):
    """A new key in the form, with a last day instead of an exact time."""

    expires_at: LastDay | None = None


class ReplacementForm(Replacement):
    expires_at: LastDay | msgspec.UnsetType | None = msgspec.UNSET


class ChangeForm(Change):
    expires_at: LastDay | msgspec.UnsetType | None = msgspec.UNSET


@get("/settings/api-keys/new", opt=needs(Scope.KEYS_WRITE), include_in_schema=False)
async def new_form(request: AnyRequest, own: Injected[OwnKeys]) -> Response[bytes]:
    return _form(own, attempt=uuid4().hex, is_lost="lost" in request.query_params)


@post("/settings/api-keys", opt=needs(Scope.KEYS_WRITE), include_in_schema=False)
async def create(
    request: AnyRequest,
    own: Injected[OwnKeys],
    sealer: Injected[Sealer],
    settings: Injected[Settings],
) -> Response[bytes]:
    form = await Form.read(request)
    attempt = form.text("attempt")
    try:
        form = with_last_day(form)
        given = form.filled("service", *(name for name in SURROUNDINGS if form.text(name).strip()), **_value(form))
        given["settings"] = _settings(form, own.catalogue, form.text("service"))
        new = decode(KeyForm, given, check_new_key(own.catalogue))
        if (question := _question(own.catalogue, new.service, new.api_key, form)) is not None:
            return _form(own, question=question, typed=form, attempt=attempt)
        store = partial(operations.create, own.db, sealer, own.caller, new, max_keys=settings.max_keys)
        key = await _create_once(own.db, own.caller, store, attempt, given)
    except Unauthenticated:
        raise  # the session ended meanwhile: show the sign-in page, and nothing of the account
    except Problem as problem:
        return _form(own, refused=problem, typed=form, attempt=attempt)
    return back_to(Place(), own.visit, key.id, done="created", **_noticed(form, key))


@get("/settings/api-keys/{key_id:str}/edit", opt=needs(Scope.KEYS_WRITE), include_in_schema=False)
async def edit_form(request: AnyRequest, own: Injected[OwnKeys], key_id: FromPath[RowId]) -> Response[bytes]:
    key = await own.get(key_id)
    query = request.query_params
    aim = query.get("for", "")
    return _form(own, key=key, aim=aim, place=Place.behind(request, key_id), is_lost="lost" in query)


@post("/settings/api-keys/{key_id:str}/edit", opt=needs(Scope.KEYS_WRITE), include_in_schema=False)
async def edit(
    request: AnyRequest,
    own: Injected[OwnKeys],
    sealer: Injected[Sealer],
    key_id: FromPath[RowId],
) -> Response[bytes]:
    form = await Form.read(request)
    place = Place.of_form(form, key_id)
    key = await own.get(key_id)
    try:
        form = with_last_day(form)
        changed = await _edit(own, sealer, key, form)
        if isinstance(changed, Sentence):
            return _form(own, question=changed, typed=form, key=key, aim=form.text("for"), place=place)
    except Unauthenticated:
        raise  # the session ended meanwhile: show the sign-in page, and nothing of the account
    except Problem as problem:
        if isinstance(problem, NotFound | PreconditionFailed):
            key = await own.get(key_id)  # read it again; raises NotFound if it was deleted
        return _form(own, refused=problem, typed=form, key=key, aim=form.text("for"), place=place)
    noticed = {**_noticed(form, changed), "unending": _ended(form, key, changed)}
    return back_to(place, own.visit, key.id, done="changed", **noticed)


async def _create_once(
    db: Database,
    caller: Principal,
    store: Callable[[IdempotencyKey | None], Awaitable[Created]],
    attempt: str,
    given: dict[str, object],
) -> KeyInfo:
    """Store only one key for each form that was shown, even if the browser sends it several times."""
    if not attempt:
        return (await store(None)).key
    body = json.dumps(given, sort_keys=True).encode()
    retry = IdempotencyKey.parse(hashlib.sha256(attempt.encode()).hexdigest(), caller.user_id, body)
    try:
        first = await idempotency.find(db, retry, KeyInfo)
        return first or (await store(retry)).key
    except IdempotencyMismatch:
        # The user went back, and sent the same form with other contents: store another key.
        return (await store(None)).key


async def _edit(own: OwnKeys, sealer: Sealer, key: KeyInfo, form: Form) -> KeyInfo | Sentence:
    """Change or replace a key, and return it. Return a question if its user should confirm the new value first."""
    # Unchanged fields are not sent, so that an expiry keeps its exact time and may be in the past.
    changed = [name for name in SURROUNDINGS if not form.is_unchanged(name)]
    given: dict[str, object] = {name: form.text(name).strip() or None for name in changed}
    settings, shown = _settings(form, own.catalogue, key.service), form.all("shown_settings")
    value = _value(form) if form.text("api_key").strip() else {}
    # Nor are unchanged settings: what somebody has changed in the database must not come back as the user's own. But
    # where the form showed none, they are the user's own. Otherwise, a key with damaged settings could not be replaced.
    if shown not in ([], [to_text(settings)]) or (value and shown == [NONE]):
        given["settings"] = settings
    condition = IfMatch.parse(form.text("etag") or None)
    if form.text("for") == EXTEND and not value and "expires_at" not in given:
        raise InvalidRequest.at(FieldError("expires_at", "must be in the future"))
    if value or form.text("for") == REPLACE:
        replacement = decode(ReplacementForm, {**given, **value}, partial(check_shown, own.catalogue))
        if (question := _question(own.catalogue, key.service, replacement.api_key, form)) is not None:
            return question
        return await operations.replace(own.db, sealer, own.catalogue, own.caller, key.id, replacement, condition)
    change = decode(ChangeForm, given, partial(check_shown, own.catalogue))
    return await operations.change(own.db, own.catalogue, own.caller, key.id, change, condition)


def _value(form: Form) -> dict[str, str]:
    """Return the API key without what people paste around it, as a field. Nothing if none was typed."""
    typed = form.text("api_key")
    return {"api_key": bare(typed)} if typed else {}


def _noticed(form: Form, key: KeyInfo) -> dict[str, object]:
    """Return what the list says of a key that was just stored, for its address."""
    is_bare = _value(form).get("api_key", "") in (form.text("api_key"), form.text("api_key").strip())
    return {"duplicate": key.duplicate_of, "peeled": None if is_bare else 1}


def _ended(form: Form, before: KeyInfo, after: KeyInfo) -> int | None:
    """Return 1 if the expiry had passed and is gone with the old value, without the user having said so."""
    is_gone = before.expires_at is not None and after.expires_at is None
    return 1 if is_gone and form.is_unchanged("expires_at") else None


def _question(catalogue: Catalogue, service: str, value: Secret, form: Form) -> Sentence | None:
    """Return why this value may be no key of the service, unless the user has already confirmed that it is one."""
    is_confirmed = form.text("anyway") == service
    return None if is_confirmed else unusual_beginning(catalogue, service, value)


def setting_field(service: str, member: str) -> str:
    """Return the name of the field of a setting. The form for a new key has the fields of all services."""
    return f"settings-{service}-{member}"


def _settings(form: Form, catalogue: Catalogue, service: str) -> dict[str, str]:
    """Return the settings of this service that are filled in."""
    typed = {one.name: form.text(setting_field(service, one.name)).strip() for one in catalogue.settings(service)}
    return {member: text for member, text in typed.items() if text}


def _form(
    own: OwnKeys,
    *,
    refused: Problem | None = None,
    question: Sentence | None = None,
    typed: Form | None = None,
    key: KeyInfo | None = None,
    aim: str = "",
    attempt: str = "",
    place: Place = Place(),  # noqa: B008
    is_lost: bool = False,
) -> Response[bytes]:
    """Show the form to add a key or, with `key`, to edit one. `typed` is the refused input; its API key is not shown.

    With a `question`, the user can confirm what they have sent, and sends it again. `is_lost` says that a key was typed
    and has to be pasted again.
    Unchanged fields show the stored values, which another window may have changed.
    """
    catalogue = own.catalogue
    until = key.expires_at if key is not None else None
    over = until if until is not None and until <= now() else None
    # A day that has passed is not the new value's. The form names it, and asks for another.
    shown = {"name": (key.name or "") if key else "", "expires_at": "" if over and aim == REPLACE else _day(until)}
    service = key.service if key is not None else typed.text("service") if typed is not None else ""
    services = offered(catalogue, own.caller) if key is None else catalogue.infos()
    if key is None and len(services) == 1:
        service = services[0].service  # nothing to choose
    settings = key.settings if key is not None else {}
    if typed is not None:
        given = _settings(typed, catalogue, service)
        settings = {member: text for member, text in given.items() if not has_key(catalogue, text, _keys(typed))}
    return own.visit.show(
        "key_form.html",
        status=200 if question is None else 422,
        refused=refused,
        question=question,
        is_lost=is_lost or (typed is not None and bool(typed.text("api_key").strip())),
        key=key,
        aim=aim if aim in AIMS else "",
        over=over,
        filled={"service": service, **shown, **(_typed(catalogue, typed) if typed is not None else {})},
        shown={**shown, "settings": _shown_settings(catalogue, key)},
        settings=settings,
        setting_field=setting_field,
        attempt=attempt,
        place=place,
        services=services,
        prefixes={info.service: catalogue.prefixes(info.service) for info in catalogue.infos()},
        takes_json={info.service for info in catalogue.infos() if catalogue.takes_json(info.service)},
        exclusive=catalogue.exclusive_prefixes(),
        admin={service.service: service.admin for service in catalogue.services() if service.admin},
        names={info.service: info.name for info in catalogue.infos()},
        consoles={info.service: info.console_url for info in catalogue.infos() if info.console_url},
        members={one.service: one.credential.members for one in catalogue.services() if one.credential},
        **expiry_choices(),
    )


def _typed(catalogue: Catalogue, form: Form) -> dict[str, str]:
    """Return the fields that the user changed, to show them again. No page shows an API key, not even within a name."""
    changed = {name: form.text(name) for name in SURROUNDINGS if not form.is_unchanged(name)}
    if has_key(catalogue, changed.get("name", ""), _keys(form)):
        del changed["name"]
    return changed


def _keys(form: Form) -> set[str]:
    """Return what was typed as the API key, with and without what is around it."""
    return {form.text("api_key").strip(), *_value(form).values()} - {""}


def _shown_settings(catalogue: Catalogue, key: KeyInfo | None) -> str:
    """Return the settings that the form shows for a stored key, those that its service has, as a hidden field."""
    if key is None:
        return ""
    known = {one.name for one in catalogue.settings(key.service)}
    return to_text({member: text for member, text in key.settings.items() if member in known})


def _day(at: datetime | None) -> str:
    return f"{at:%Y-%m-%d}" if at is not None else ""
