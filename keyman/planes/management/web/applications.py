"""Settings → Applications: which applications may use the user's keys, and a switch for each that blocks it."""

from __future__ import annotations

from collections.abc import Awaitable

from litestar import Response, get, post
from litestar.params import FromPath

from keyman.errors import NotFound, Problem
from keyman.http.guards import needs
from keyman.http.limit import ENDS_ACCESS
from keyman.http.requests import AnyRequest, Injected, RowId
from keyman.identity.principals import Principal
from keyman.identity.tokens import Scope
from keyman.ids import ApplicationId
from keyman.keys import consent
from keyman.planes.management.web.forms import Form
from keyman.planes.management.web.pages import Visit, see_other
from keyman.providers.catalogue import Catalogue
from keyman.storage.transactions import Database

APPLICATIONS = "/settings/applications"


@get(APPLICATIONS, opt=needs(Scope.KEYS_READ), include_in_schema=False)
async def show_list(
    request: AnyRequest,
    visit: Injected[Visit],
    db: Injected[Database],
    caller: Injected[Principal],
    catalogue: Injected[Catalogue],
) -> Response[bytes]:
    return await _list(visit, db, caller, catalogue, changed=request.query_params.get("saved", ""))


@post(
    f"{APPLICATIONS}/{{application_id:str}}/block", opt=needs(Scope.KEYS_WRITE) | ENDS_ACCESS, include_in_schema=False
)
async def block(
    request: AnyRequest,
    visit: Injected[Visit],
    db: Injected[Database],
    caller: Injected[Principal],
    catalogue: Injected[Catalogue],
    application_id: FromPath[RowId],
) -> Response[bytes]:
    caller.require_no_portal()
    await Form.read(request)
    changing = consent.block(db, caller, ApplicationId(application_id))
    return await _changed(changing, visit, db, caller, catalogue, done=f"blocked&saved={application_id}")


@post(f"{APPLICATIONS}/{{application_id:str}}/unblock", opt=needs(Scope.KEYS_WRITE), include_in_schema=False)
async def unblock(
    request: AnyRequest,
    visit: Injected[Visit],
    db: Injected[Database],
    caller: Injected[Principal],
    catalogue: Injected[Catalogue],
    application_id: FromPath[RowId],
) -> Response[bytes]:
    caller.require_no_portal()
    await Form.read(request)
    changing = consent.unblock(db, caller, ApplicationId(application_id))
    return await _changed(changing, visit, db, caller, catalogue, done=f"unblocked&saved={application_id}")


async def _changed(
    changing: Awaitable[None], visit: Visit, db: Database, caller: Principal, catalogue: Catalogue, *, done: str
) -> Response[bytes]:
    """Carry out a change, and lead back to the list. It says so if the application is not the caller's to choose."""
    try:
        await changing
    except NotFound as problem:
        return await _list(visit, db, caller, catalogue, refused=problem)
    return see_other(f"{APPLICATIONS}?done={done}")


async def _list(
    visit: Visit,
    db: Database,
    caller: Principal,
    catalogue: Catalogue,
    *,
    changed: str = "",
    refused: Problem | None = None,
) -> Response[bytes]:
    listed = await consent.list_own(db, caller)
    return visit.show(
        "applications.html",
        refused=refused,
        applications=listed,
        changed=next((each for each in listed if str(each.id) == changed), None),
        done="" if refused else visit.done,
        names={info.service: info.name for info in catalogue.infos()},
    )
