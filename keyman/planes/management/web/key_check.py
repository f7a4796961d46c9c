"""Settings → API Keys → Check now: a live check of one key."""

from __future__ import annotations

from litestar import Response, post
from litestar.params import FromPath

from keyman.errors import GatewayUnavailable, RateLimited, Undecryptable
from keyman.http.guards import needs
from keyman.http.requests import AnyRequest, Injected, RowId
from keyman.identity.tokens import Scope
from keyman.ids import KeyId
from keyman.planes.management import checks
from keyman.planes.management.checks import Gateway
from keyman.planes.management.web.forms import Form
from keyman.planes.management.web.keys import Place, back_to
from keyman.planes.management.web.own_keys import OwnKeys
from keyman.planes.management.web.verdicts import CHECKED, NO_GATEWAY, TOO_MANY


@post("/settings/api-keys/{key_id:str}/check", opt=needs(Scope.KEYS_WRITE), include_in_schema=False)
async def check(
    request: AnyRequest,
    own: Injected[OwnKeys],
    gateway: Injected[Gateway | None],
    key_id: FromPath[RowId],
) -> Response[bytes]:
    """Check a key, and lead back to where its button is: the list or, with `on=page`, the page of the key."""
    form = await Form.read(request)
    place = Place.of_form(form, key_id)
    await own.get(key_id)
    try:
        await checks.check(own.db, gateway, own.caller, KeyId(key_id))
        done = CHECKED
    except Undecryptable:
        done = CHECKED  # the list and the page of the key say what is wrong with it
    except RateLimited:
        done = TOO_MANY
    except GatewayUnavailable:
        done = NO_GATEWAY
    return back_to(place, own.visit, key_id, done=done)
