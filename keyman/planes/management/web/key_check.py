"""Settings → API Keys → Check now: a live check of one key."""

from __future__ import annotations

from litestar import Response, post
from litestar.params import FromPath

from keyman.errors import GatewayUnavailable, RateLimited
from keyman.http.guards import needs
from keyman.http.requests import AnyRequest, Injected, RowId
from keyman.identity.principals import Principal
from keyman.identity.tokens import Scope
from keyman.ids import KeyId
from keyman.planes.management import checks
from keyman.planes.management.checks import Gateway
from keyman.planes.management.web.forms import Form
from keyman.planes.management.web.keys import View, own_key
from keyman.planes.management.web.pages import see_other
from keyman.planes.management.web.verdicts import CHECKED, NO_GATEWAY, TOO_MANY
from keyman.storage.transactions import Database


@post("/settings/api-keys/{key_id:str}/check", opt=needs(Scope.KEYS_WRITE), include_in_schema=False)
async def check(
    request: AnyRequest,
    db: Injected[Database],
    caller: Injected[Principal],
    gateway: Injected[Gateway | None],
    key_id: FromPath[RowId],
) -> Response[bytes]:
    """Check a key, and lead back to where its button is: the list or, with `on=page`, the page of the key."""
    form = await Form.read(request)
    view = View.of_query(form.text("view"))
    await own_key(db, caller, KeyId(key_id))
    try:
        await checks.check(db, gateway, caller, KeyId(key_id))
        done = CHECKED
    except RateLimited:
        done = TOO_MANY
    except GatewayUnavailable:
        done = NO_GATEWAY
    if form.text("on") == "page":
        return see_other(view.page_of(KeyId(key_id), saved=key_id, done=done))
    return see_other(view.url(saved=key_id, done=done))
