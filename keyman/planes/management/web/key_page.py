"""Settings → API Keys → one key: what is known of it, its last uses, and the ways to change it."""

from __future__ import annotations

from litestar import Response, get
from litestar.params import FromPath

from keyman.clock import now
from keyman.config.settings import Settings
from keyman.http.guards import needs
from keyman.http.requests import AnyRequest, Injected, RowId
from keyman.identity.tokens import Scope
from keyman.ids import KeyId
from keyman.keys import choosing, uses
from keyman.keys.left import left_through
from keyman.planes.management.checks import Gateway
from keyman.planes.management.web.activity import log_of
from keyman.planes.management.web.keys import Place, usable_services, view_behind
from keyman.planes.management.web.marks import letters
from keyman.planes.management.web.outcomes import Outcome
from keyman.planes.management.web.own_keys import OwnKeys
from keyman.planes.management.web.verdicts import Checks


@get("/settings/api-keys/{key_id:str}", opt=needs(Scope.KEYS_READ), include_in_schema=False)
async def key_page(
    request: AnyRequest,
    own: Injected[OwnKeys],
    settings: Injected[Settings],
    gateway: Injected[Gateway | None],
    key_id: FromPath[RowId],
) -> Response[bytes]:
    """Show a key. Its uses are part of the audit log: a token without the scope for that sees none of them."""
    key, query = await own.get(key_id), dict(request.query_params)
    db, caller, catalogue = own.db, own.caller, own.catalogue
    sees_uses = Scope.AUDIT_READ in caller.scopes
    return own.show(
        "key.html",
        key,
        letters=letters(catalogue, key.service),
        setting_names={each.name: each.title for each in catalogue.settings(key.service)},
        log=await log_of(db, caller, catalogue, await uses.newest(db, caller, key.id)) if sees_uses else None,
        days=uses.OF_LATE.days,
        choices=await choosing.choices(db, caller, now()),
        left=await left_through(db, caller, [KeyId(key.id)]),
        is_usable=key.service in usable_services(catalogue, settings, caller),
        checks=Checks.of(gateway, catalogue, caller, own.visit, query.get("saved", "")),
        outcome=await Outcome.of(db, caller, catalogue, own.visit, query),
        place=Place(view_behind(request), KeyId(key.id)),
    )
