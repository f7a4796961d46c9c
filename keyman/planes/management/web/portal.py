"""`/portal/<code>`: where a portal link leads, and how a person goes on from there.

GET shows who sent the browser and as whom, and changes nothing, so that a preview of the link does not use it up. The
person continues with a button.
"""

from __future__ import annotations

from litestar import Response, get, post
from litestar.params import FromPath

from keyman.audit.entries import Origin
from keyman.config.settings import Settings
from keyman.errors import NotFound
from keyman.http.guards import PUBLIC, previous_session, session_cookies
from keyman.http.requests import AnyRequest, Injected
from keyman.identity import arrivals
from keyman.identity.sessions import PORTAL_LIFETIME
from keyman.planes.management.web.leaving import way_back
from keyman.planes.management.web.pages import HOME, Visit, see_other
from keyman.planes.management.web.sign_in import is_signed_in
from keyman.storage.transactions import Database


@get("/portal", opt=PUBLIC, include_in_schema=False)
async def left_page(visit: Injected[Visit], settings: Injected[Settings]) -> Response[bytes]:
    return visit.show("portal_left.html", back=way_back(visit.exchange, settings))


@get("/portal/{code:str}", opt=PUBLIC, include_in_schema=False)
async def arrival_page(
    request: AnyRequest, visit: Injected[Visit], db: Injected[Database], code: FromPath[str]
) -> Response[bytes]:
    try:
        arrival = await arrivals.find(db, code)
    except NotFound:
        return visit.show("portal_unknown.html", status=404)
    return visit.show("portal.html", arrival=arrival, is_signed_in=await is_signed_in(request))


@post("/portal/{code:str}", opt=PUBLIC, include_in_schema=False)
async def arrive(
    request: AnyRequest,
    visit: Injected[Visit],
    db: Injected[Database],
    settings: Injected[Settings],
    origin: Injected[Origin],
    code: FromPath[str],
) -> Response[bytes]:
    try:
        cookie = await arrivals.enter(db, code, origin, previous_cookie=previous_session(request))
    except NotFound:
        return visit.show("portal_unknown.html", status=404)
    return see_other(HOME, session_cookies(cookie, settings, PORTAL_LIFETIME))
