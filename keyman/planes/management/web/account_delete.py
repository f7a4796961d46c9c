"""Settings → Account → Delete account: the question, and what it says afterwards."""

from __future__ import annotations

from litestar import Response, get, post

from keyman.config.settings import Settings
from keyman.decoding import decode
from keyman.errors import Conflict, Forbidden, InvalidRequest, Problem, RateLimited
from keyman.http.guards import PUBLIC, ended_session_cookies, needs
from keyman.http.limit import ENDS_ACCESS
from keyman.http.requests import AnyRequest, Injected
from keyman.identity import presence
from keyman.identity.passwords import Passwords
from keyman.identity.principals import Principal
from keyman.keys import erasure
from keyman.keys.erasure import DeleteAccount
from keyman.planes.management.web.forms import Form
from keyman.planes.management.web.pages import Visit, see_other
from keyman.storage.transactions import Database

DELETE = "/settings/account/delete"
DELETED = "/account-deleted"


@get(DELETE, opt=needs(None), include_in_schema=False)
async def delete_form(visit: Injected[Visit], db: Injected[Database], caller: Injected[Principal]) -> Response[bytes]:
    return await _ask(visit, db, caller)


@post(DELETE, opt=needs(None) | ENDS_ACCESS, include_in_schema=False)
async def delete(
    request: AnyRequest,
    visit: Injected[Visit],
    db: Injected[Database],
    passwords: Injected[Passwords],
    caller: Injected[Principal],
    settings: Injected[Settings],
) -> Response[bytes]:
    form = await Form.read(request)
    try:
        asked = decode(DeleteAccount, form.filled("current_password"))
        await erasure.delete_own(db, passwords, caller, asked)
    except (InvalidRequest, Conflict, Forbidden, RateLimited) as problem:
        return await _ask(visit, db, caller, refused=problem)
    return see_other(DELETED, ended_session_cookies(settings))


@get(DELETED, opt=PUBLIC, include_in_schema=False)
async def deleted(visit: Injected[Visit]) -> Response[bytes]:
    return visit.show("account_deleted.html")


async def _ask(visit: Visit, db: Database, caller: Principal, *, refused: Problem | None = None) -> Response[bytes]:
    means = await presence.means(db, caller)
    return visit.show("account_delete.html", refused=refused, means=means)
