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
    tags=("Audit log",),
    operation_id="listAudit",
    response_description="A page of the audit log, newest first.",
    summary="List your audit log",
    description="The caller's own audit log, newest first: changes to the account, its access tokens and its keys, and "
    "each time that an application asked for a key: its name, the purpose that it gave, and the reason if it got no "
    "key. `detail` says more in keyman's words, such as the issuer at which you signed in. `action`, `since` and "
    "`until` filter it; the `Link` to the next page keeps the filter.",
    response_headers=[LINK],
    responses=may_answer(*CALLER_PROBLEMS),
)
async def list_audit(
    db: Injected[Database],
    caller: Injected[Principal],
    action: Annotated[
        ActionName | None, QueryParameter(description="Only entries with this action, such as `key.resolve`.")
    ] = None,
    since: Annotated[
        Instant | None,
        QueryParameter(
            description="Only entries from this moment on: RFC 3339, with `Z` or an offset (write its `+` as `%2B`)."
        ),
    ] = None,
    until: Annotated[Instant | None, QueryParameter(description="Only entries before this moment.")] = None,
    limit: Annotated[Limit, QueryParameter(description="The maximum number of entries on a page.")] = UNSAID,
    cursor: Annotated[
        Cursor | None, QueryParameter(description="Copy it from the `Link` header of the previous page.")
    ] = None,
) -> Response[list[AuditEntry]]:
    actions = frozenset({Action(action)} if action is not None else ())
    page = await listing.list_own(db, caller.user_id, Slice(limit, cursor), Filter(actions, since, until))
    return linked(page, "/api/audit", {"action": action, "since": since, "until": until, "limit": limit})
