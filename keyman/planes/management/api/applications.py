"""`/api/applications*`."""

from __future__ import annotations

from litestar import Controller, delete, get, put
from litestar.params import FromPath

from keyman import errors
from keyman.http.guards import needs
from keyman.http.limit import ENDS_ACCESS
from keyman.http.openapi import CALLER_PROBLEMS, SECURITY, may_answer
from keyman.http.requests import Injected, RowId
from keyman.identity.principals import Principal
from keyman.identity.tokens import Scope
from keyman.ids import ApplicationId
from keyman.keys import consent
from keyman.keys.consent import PermittedApplication
from keyman.storage.transactions import Database


class ApplicationController(Controller):
    path = "/applications"
    tags = ("Applications",)

    @get(
        opt=needs(Scope.KEYS_READ),
        security=SECURITY,
        operation_id="listApplications",
        response_description="The applications, ordered by name.",
        summary="List the applications",
        description=(
            "The applications that may use the caller's keys, for which services, and whether the caller has blocked "
            "them. `last_used_at` is the last time that the application got or used one of the keys that the caller "
            "has now. A session that an application opened is refused here."
        ),
        responses=may_answer(*CALLER_PROBLEMS),
    )
    async def list_own(self, db: Injected[Database], caller: Injected[Principal]) -> list[PermittedApplication]:
        return await consent.list_own(db, caller)

    @put(
        "/{application_id:str}/block",
        opt=needs(Scope.KEYS_WRITE) | ENDS_ACCESS,
        security=SECURITY,
        status_code=204,
        operation_id="blockApplication",
        response_description="The application is blocked.",
        summary="Block an application",
        description=(
            "From its next request on, the application gets none of the caller's keys, also none that are stored "
            "later: it is answered as if there were no key. It does nothing if the application is blocked already."
        ),
        responses=may_answer(errors.NotFound, *CALLER_PROBLEMS),
    )
    async def block(self, application_id: FromPath[RowId], db: Injected[Database], caller: Injected[Principal]) -> None:
        await consent.block(db, caller, ApplicationId(application_id))

    @delete(
        "/{application_id:str}/block",
        opt=needs(Scope.KEYS_WRITE),
        security=SECURITY,
        status_code=204,
        operation_id="unblockApplication",
        response_description="The application is not blocked.",
        summary="Unblock an application",
        description="From its next request on, the application gets the caller's keys again.",
        responses=may_answer(errors.NotFound, errors.RateLimited, *CALLER_PROBLEMS),
    )
    async def unblock(
        self, application_id: FromPath[RowId], db: Injected[Database], caller: Injected[Principal]
    ) -> None:
        await consent.unblock(db, caller, ApplicationId(application_id))
