"""Settings → API Keys: pausing, resuming and deleting a key, or making it the default, after the user confirms it."""

from __future__ import annotations

from litestar import Response, get, post
from litestar.params import FromPath

from keyman.clock import now
from keyman.errors import FieldError, InvalidRequest, PreconditionFailed, Problem, Unauthenticated
from keyman.http.guards import needs
from keyman.http.requests import AnyRequest, Injected, RowId
from keyman.identity.principals import Principal
from keyman.identity.tokens import Scope
from keyman.ids import KeyId
from keyman.keys import operations, uses
from keyman.keys.operations import IfMatch
from keyman.keys.schemas import Change, KeyInfo, Status
from keyman.keys.uses import OF_LATE
from keyman.planes.management.web.forms import Form
from keyman.planes.management.web.keys import View, own_key, view_behind
from keyman.planes.management.web.pages import Visit, see_other
from keyman.providers.catalogue import Catalogue
from keyman.storage.transactions import Database

FLAGS = {"true": True, "false": False}

NAMED_USES = 10
"""The number of applications that the question before a deletion names. It only counts the others, to stay short."""


@get("/settings/api-keys/{key_id:str}/pause", opt=needs(Scope.KEYS_WRITE), include_in_schema=False)
async def pause_form(
    request: AnyRequest,
    visit: Injected[Visit],
    db: Injected[Database],
    caller: Injected[Principal],
    catalogue: Injected[Catalogue],
    key_id: FromPath[RowId],
) -> Response[bytes]:
    return _ask_to_pause(visit, catalogue, await own_key(db, caller, KeyId(key_id)), view_behind(request))


@post("/settings/api-keys/{key_id:str}/pause", opt=needs(Scope.KEYS_WRITE), include_in_schema=False)
async def pause(
    request: AnyRequest,
    visit: Injected[Visit],
    db: Injected[Database],
    caller: Injected[Principal],
    catalogue: Injected[Catalogue],
    key_id: FromPath[RowId],
) -> Response[bytes]:
    """Pause or resume a key, as the form requests. It does not toggle: the key may have changed meanwhile."""
    form = await Form.read(request)
    view = View.of_query(form.text("view"))
    key = await own_key(db, caller, KeyId(key_id))
    wanted = FLAGS.get(form.text("paused"))
    try:
        if wanted is None:
            raise InvalidRequest.at(FieldError("", "The form is malformed."))
        condition = IfMatch.parse(form.text("etag") or None)
        await operations.change(db, catalogue, caller, key.id, Change(disabled=wanted), condition)
    except Unauthenticated:
        raise  # the session ended meanwhile: show the sign-in page, and nothing of the account
    except Problem as problem:
        key = await own_key(db, caller, KeyId(key_id))
        is_done = isinstance(problem, PreconditionFailed) and (key.status is Status.DISABLED) == wanted
        if not is_done:  # otherwise another window has already done it
            return _ask_to_pause(visit, catalogue, key, view, refused=problem)
    return see_other(view.url(saved=key.id, done="paused" if wanted else "resumed"))


@get("/settings/api-keys/{key_id:str}/default", opt=needs(Scope.KEYS_WRITE), include_in_schema=False)
async def default_form(
    request: AnyRequest,
    visit: Injected[Visit],
    db: Injected[Database],
    caller: Injected[Principal],
    catalogue: Injected[Catalogue],
    key_id: FromPath[RowId],
) -> Response[bytes]:
    key = await own_key(db, caller, KeyId(key_id))
    name = catalogue.name(key.service)
    return visit.show("key_default.html", key=key, service_name=name, view=view_behind(request))


@post("/settings/api-keys/{key_id:str}/default", opt=needs(Scope.KEYS_WRITE), include_in_schema=False)
async def make_default(
    request: AnyRequest,
    db: Injected[Database],
    caller: Injected[Principal],
    catalogue: Injected[Catalogue],
    key_id: FromPath[RowId],
) -> Response[bytes]:
    """Make a key the default of its service, or let it be so no longer, as the form requests."""
    form = await Form.read(request)
    view = View.of_query(form.text("view"))
    await own_key(db, caller, KeyId(key_id))
    wanted = FLAGS.get(form.text("default"))
    if wanted is None:
        raise InvalidRequest.at(FieldError("", "The form is malformed."))
    await operations.change(db, catalogue, caller, KeyId(key_id), Change(default=wanted), IfMatch())
    return see_other(view.url(saved=key_id, done="default" if wanted else "no-default"))


@get("/settings/api-keys/{key_id:str}/delete", opt=needs(Scope.KEYS_WRITE), include_in_schema=False)
async def delete_form(
    request: AnyRequest,
    visit: Injected[Visit],
    db: Injected[Database],
    caller: Injected[Principal],
    catalogue: Injected[Catalogue],
    key_id: FromPath[RowId],
) -> Response[bytes]:
    key = await own_key(db, caller, KeyId(key_id))
    used = await uses.of_late(db, caller, key.id)
    return visit.show(
        "key_delete.html",
        key=key,
        service_name=catalogue.name(key.service),
        view=view_behind(request),
        uses=used[:NAMED_USES],
        unnamed=len(used[NAMED_USES:]),
        # True also for a use whose audit entry was pruned.
        is_used=bool(used) or (key.last_used_at is not None and key.last_used_at >= now() - OF_LATE),
    )


@post("/settings/api-keys/{key_id:str}/delete", opt=needs(Scope.KEYS_WRITE), include_in_schema=False)
async def delete(
    request: AnyRequest, db: Injected[Database], caller: Injected[Principal], key_id: FromPath[RowId]
) -> Response[bytes]:
    view = View.of_query((await Form.read(request)).text("view"))
    await own_key(db, caller, KeyId(key_id))
    await operations.remove(db, caller, KeyId(key_id), IfMatch())
    return see_other(view.url(saved=key_id, done="deleted"))


def _ask_to_pause(
    visit: Visit, catalogue: Catalogue, key: KeyInfo, view: View, *, refused: Problem | None = None
) -> Response[bytes]:
    return visit.show(
        "key_pause.html",
        refused=refused,
        key=key,
        is_paused=key.status is Status.DISABLED,
        service_name=catalogue.name(key.service),
        view=view,
    )
