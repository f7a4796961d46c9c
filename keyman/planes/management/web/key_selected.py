"""Settings → API Keys: pausing, resuming and deleting several keys at once, after the user has confirmed it.

Each key is changed by itself, as over the API, so what fails for one says nothing of the others.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from litestar import Response, get, post

from keyman.errors import FieldError, InvalidRequest, NotFound, Problem, Unauthenticated
from keyman.http.guards import needs
from keyman.http.limit import count_writes
from keyman.http.requests import AnyRequest, Injected
from keyman.identity.tokens import Scope
from keyman.ids import KeyId
from keyman.keys import operations
from keyman.keys.operations import IfMatch
from keyman.keys.schemas import Change, KeyInfo, Status
from keyman.planes.management.web.forms import Form
from keyman.planes.management.web.keys import Place, View, view_behind
from keyman.planes.management.web.outcomes import ids_of
from keyman.planes.management.web.own_keys import OwnKeys
from keyman.planes.management.web.pages import is_partial, see_other
from keyman.planes.management.web.words import in_plain_words
from keyman.providers.catalogue import Catalogue


class Action(StrEnum):
    """What is to be done with several keys."""

    PAUSE = "pause"
    RESUME = "resume"
    DELETE = "delete"

    @property
    def done(self) -> str:
        return {Action.PAUSE: "paused", Action.RESUME: "resumed", Action.DELETE: "deleted"}[self]

    def concerns(self, key: KeyInfo) -> bool:
        """Return True for a key that the action changes. A list of several may have others in it, too."""
        wanted = {Action.PAUSE: Status.ACTIVE, Action.RESUME: Status.DISABLED}
        return self is Action.DELETE or key.status is wanted[self]


class Result(NamedTuple):
    """What came of one key. `failure` is empty if all is as it was asked for. A deleted key has no `key`."""

    key_id: KeyId
    key: KeyInfo | None
    failure: str = ""


@get("/settings/api-keys/selected", opt=needs(Scope.KEYS_WRITE), include_in_schema=False)
async def selected_form(request: AnyRequest, own: Injected[OwnKeys]) -> Response[bytes]:
    """Ask once for all. Keys that do not exist any more are left out."""
    view = view_behind(request)
    keys = [key for each in ids_of(request.query_params.getall("id", [])) if (key := await own.find(each))]
    action = _action(request.query_params.get("do", ""))
    if not keys or action is None:
        return see_other(view.url())
    concerned = [key for key in keys if action.concerns(key)]
    others = [key for key in keys if not action.concerns(key)]
    return own.visit.show(
        "key_selected.html", action=action, keys=concerned, others=others, names=_names(own.catalogue), view=view
    )


@post("/settings/api-keys/selected", opt=needs(Scope.KEYS_WRITE), include_in_schema=False)
async def selected(request: AnyRequest, own: Injected[OwnKeys]) -> Response[bytes]:
    """Do it, and say of each key what came of it, unless all went well. Each key counts as a write."""
    form = await Form.read(request)
    view, action = View.of_query(form.text("view")), _action(form.text("do"))
    ids = ids_of(form.text("ids").split(","))
    if action is None or not ids:
        raise InvalidRequest.at(FieldError("", "The form is malformed."))
    refused = count_writes(request, len(ids))
    results = [
        await _act(own, action, key_id) if problem is None else _failed(key_id, problem)
        for key_id, problem in zip(ids, refused, strict=True)
    ]
    if all(not result.failure for result in results):
        url = view.url(saved=",".join(map(str, ids)), done=action.done)
        leads = action is not Action.DELETE and not is_partial(own.visit.exchange)
        return see_other(url + Place().row(ids[0]) if leads else url)
    return own.visit.show(
        "key_selected_done.html", status=409, action=action, results=results, names=_names(own.catalogue), view=view
    )


def _action(text: str) -> Action | None:
    return Action(text) if text in list(Action) else None


def _names(catalogue: Catalogue) -> dict[str, str]:
    return {info.service: info.name for info in catalogue.infos()}


async def _act(own: OwnKeys, action: Action, key_id: KeyId) -> Result:
    key = await own.find(key_id)
    if key is None:
        gone = NotFound("This key no longer exists.")
        return Result(key_id, None) if action is Action.DELETE else _failed(key_id, gone)
    try:
        if action is Action.DELETE:
            await operations.remove(own.db, own.caller, key_id, IfMatch())
        elif action.concerns(key):
            change = Change(disabled=action is Action.PAUSE)
            key = await operations.change(own.db, own.catalogue, own.caller, key_id, change, IfMatch())
    except Unauthenticated:
        raise  # the session ended in the meantime: show the sign-in page, and nothing of the account
    except Problem as problem:
        return _failed(key_id, problem, key)
    return Result(key_id, key)


def _failed(key_id: KeyId, problem: Problem, key: KeyInfo | None = None) -> Result:
    return Result(key_id, key, in_plain_words(problem, "POST").detail)
