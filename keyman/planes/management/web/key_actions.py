"""Settings → API Keys: pausing, resuming and deleting a key, or making it the default, after the user confirms it."""

from __future__ import annotations

from litestar import Response, get, post
from litestar.params import FromPath

from keyman.clock import now
from keyman.errors import FieldError, InvalidRequest, PreconditionFailed, Problem, Unauthenticated
from keyman.http.guards import needs
from keyman.http.requests import AnyRequest, Injected, RowId
from keyman.identity.tokens import Scope
from keyman.keys import operations, uses
from keyman.keys.operations import IfMatch
from keyman.keys.schemas import Change, KeyInfo, Status
from keyman.keys.uses import OF_LATE
from keyman.planes.management.web.forms import Form
from keyman.planes.management.web.keys import Place, back_to
from keyman.planes.management.web.own_keys import OwnKeys
from keyman.planes.management.web.pages import see_other

FLAGS = {"true": True, "false": False}

NAMED_USES = 10
"""The number of applications that the question before a deletion names. It only counts the others, to stay short."""


@get("/settings/api-keys/{key_id:str}/pause", opt=needs(Scope.KEYS_WRITE), include_in_schema=False)
async def pause_form(request: AnyRequest, own: Injected[OwnKeys], key_id: FromPath[RowId]) -> Response[bytes]:
    return _ask_to_pause(own, await own.get(key_id), Place.behind(request, key_id))


@post("/settings/api-keys/{key_id:str}/pause", opt=needs(Scope.KEYS_WRITE), include_in_schema=False)
async def pause(request: AnyRequest, own: Injected[OwnKeys], key_id: FromPath[RowId]) -> Response[bytes]:
    """Pause or resume a key, as the form requests. It does not toggle: the key may have changed meanwhile."""
    form = await Form.read(request)
    place = Place.of_form(form, key_id)
    key = await own.get(key_id)
    wanted = FLAGS.get(form.text("paused"))
    try:
        if wanted is None:
            raise InvalidRequest.at(FieldError("", "The form is malformed."))
        condition = IfMatch.parse(form.text("etag") or None)
        await operations.change(own.db, own.catalogue, own.caller, key.id, Change(disabled=wanted), condition)
    except Unauthenticated:
        raise  # the session ended meanwhile: show the sign-in page, and nothing of the account
    except Problem as problem:
        key = await own.get(key_id)
        is_done = isinstance(problem, PreconditionFailed) and (key.status is Status.DISABLED) == wanted
        if not is_done:  # otherwise another window has already done it
            return _ask_to_pause(own, key, place, refused=problem)
    return back_to(place, own.visit, key.id, done="paused" if wanted else "resumed")


@get("/settings/api-keys/{key_id:str}/default", opt=needs(Scope.KEYS_WRITE), include_in_schema=False)
async def default_form(request: AnyRequest, own: Injected[OwnKeys], key_id: FromPath[RowId]) -> Response[bytes]:
    return own.show("key_default.html", await own.get(key_id), place=Place.behind(request, key_id))


@post("/settings/api-keys/{key_id:str}/default", opt=needs(Scope.KEYS_WRITE), include_in_schema=False)
async def make_default(request: AnyRequest, own: Injected[OwnKeys], key_id: FromPath[RowId]) -> Response[bytes]:
    """Make a key the default of its service, or let it be so no longer, as the form requests."""
    form = await Form.read(request)
    place = Place.of_form(form, key_id)
    key = await own.get(key_id)
    wanted = FLAGS.get(form.text("default"))
    if wanted is None:
        raise InvalidRequest.at(FieldError("", "The form is malformed."))
    await operations.change(own.db, own.catalogue, own.caller, key.id, Change(default=wanted), IfMatch())
    return back_to(place, own.visit, key.id, done="default" if wanted else "no-default")


@get("/settings/api-keys/{key_id:str}/delete", opt=needs(Scope.KEYS_WRITE), include_in_schema=False)
async def delete_form(request: AnyRequest, own: Injected[OwnKeys], key_id: FromPath[RowId]) -> Response[bytes]:
    key = await own.get(key_id)
    used = await uses.of_late(own.db, own.caller, key.id)
    return own.show(
        "key_delete.html",
        key,
        place=Place.behind(request, key_id),
        uses=used[:NAMED_USES],
        unnamed=len(used[NAMED_USES:]),
        # True also for a use whose audit entry was pruned.
        is_used=bool(used) or (key.last_used_at is not None and key.last_used_at >= now() - OF_LATE),
    )


@post("/settings/api-keys/{key_id:str}/delete", opt=needs(Scope.KEYS_WRITE), include_in_schema=False)
async def delete(request: AnyRequest, own: Injected[OwnKeys], key_id: FromPath[RowId]) -> Response[bytes]:
    """Delete a key, and lead to the list: its page is gone."""
    place = Place.of_form(await Form.read(request), key_id)
    key = await own.get(key_id)
    await operations.remove(own.db, own.caller, key.id, IfMatch())
    return see_other(place.view.url(saved=key.id, done="deleted"))


def _ask_to_pause(own: OwnKeys, key: KeyInfo, place: Place, *, refused: Problem | None = None) -> Response[bytes]:
    is_paused = key.status is Status.DISABLED
    return own.show("key_pause.html", key, refused=refused, is_paused=is_paused, place=place)
