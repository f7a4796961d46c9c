"""`/api/audit`."""

from __future__ import annotations

from typing import Annotated

from litestar import Response, get
from litestar.params import QueryParameter

from keyman.audit import listing
from keyman.audit.entries import Action
from keyman.audit.listing import ActionName, AuditEntry, Filter
from keyman.http.guards import needs
from keyman.http.openapi import CALLER_PROBLEMS, LINK, SECURITY, linked, may_answer
from keyman.http.requests import Injected
from keyman.identity.principals import Principal
from keyman.identity.tokens import Scope
from keyman.storage.paging import UNSAID, Cursor, Limit, Slice
from keyman.storage.transactions import Database
from keyman.values import Instant


@get(
    "/audit",
    opt=needs(Scope.AUDIT_READ),
    security=SECURITY,
    tags=("Trail",),
    operation_id="listAudit",
    response_description="A page of the trail, newest first.",
    summary="List what was done",
    description="The caller's own trail, newest first: changes to the account, its access tokens and its keys, and "
    "each time that an application asked for a key: its name, its purpose in its own words, and why it got none. "
    "`action`, `since` and `until` narrow it down; the `Link` to the next page keeps them.",
    response_headers=[LINK],
    responses=may_answer(*CALLER_PROBLEMS),
)
async def list_audit(
    db: Injected[Database],
    caller: Injected[Principal],
    action: Annotated[
        ActionName | None, QueryParameter(description="Entries of this action alone, such as `key.resolve`.")
    ] = None,
    since: Annotated[
        Instant | None,
        QueryParameter(description="From this moment on: RFC 3339, with `Z` or an offset (whose `+` is `%2B` here)."),
    ] = None,
    until: Annotated[Instant | None, QueryParameter(description="Before this moment, which is left out.")] = None,
    limit: Annotated[Limit, QueryParameter(description="How many entries a page holds at most.")] = UNSAID,
    cursor: Annotated[Cursor | None, QueryParameter(description="From the Link header of the page before.")] = None,
) -> Response[list[AuditEntry]]:
    actions = frozenset({Action(action)} if action is not None else ())
    page = await listing.list_own(db, caller.user_id, Slice(limit, cursor), Filter(actions, since, until))
    return linked(page, "/api/audit", {"action": action, "since": since, "until": until, "limit": limit})
