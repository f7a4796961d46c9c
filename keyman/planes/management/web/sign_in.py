"""`/`, `/sign-in`, `/sign-up` and `/sign-out`."""

from __future__ import annotations

import json

from litestar import Response, get, post

from keyman.audit.entries import Origin
from keyman.config.settings import Settings
from keyman.decoding import decode
from keyman.errors import Conflict, Forbidden, InvalidRequest, RateLimited, Unauthenticated
from keyman.http.guards import (
    FOR_PORTAL,
    PUBLIC,
    ended_session_cookies,
    identify,
    needs,
    previous_session,
    session_cookies,
)
from keyman.http.limit import ENDS_ACCESS
from keyman.http.requests import AnyRequest, Injected
from keyman.identity import login
from keyman.identity.login import LogIn, SignUp
from keyman.identity.passwords import Passwords
from keyman.identity.principals import Principal
from keyman.identity.provider import Provider
from keyman.planes.management.web.forms import Form
from keyman.planes.management.web.leaving import has_signed_out, signed_out_cookie, way_back_cookie
from keyman.planes.management.web.pages import HOME, Pages, Visit, as_response, is_partial, own_page, see_other
from keyman.storage.transactions import Database

SIGNED_IN = "keyman:signed-in"
"""The event after which the page behind a sign-in form continues. `account` is the id of the signed-in user."""


@get("/", opt=PUBLIC, include_in_schema=False)
async def door(request: AnyRequest) -> Response[bytes]:
    return see_other(HOME if await is_signed_in(request) else "/sign-in")


@get("/sign-in", opt=PUBLIC, include_in_schema=False)
async def sign_in_page(
    request: AnyRequest, visit: Injected[Visit], pages: Injected[Pages], settings: Injected[Settings]
) -> Response[bytes]:
    if await is_signed_in(request):
        return see_other(HOME)
    signed_out = has_signed_out(visit.exchange, settings)
    cookies = [signed_out_cookie(settings, is_said=True)] if signed_out else []
    return as_response(pages.sign_in(visit.exchange, None, back=HOME, signed_out=signed_out), cookies)


@post("/sign-in", opt=PUBLIC, include_in_schema=False)
async def sign_in(
    request: AnyRequest,
    visit: Injected[Visit],
    pages: Injected[Pages],
    db: Injected[Database],
    passwords: Injected[Passwords],
    settings: Injected[Settings],
    origin: Injected[Origin],
) -> Response[bytes]:
    login.require_passwords(are_on=settings.passwords_on)
    form = await Form.read(request)
    back = own_page(form.text("back"))
    try:
        given = decode(LogIn, form.filled("email", "password"))
        previous = previous_session(request)
        signed_in = await login.log_in(db, passwords, given, origin, previous_cookie=previous)
    except (InvalidRequest, Unauthenticated, RateLimited) as problem:
        return as_response(pages.sign_in(visit.exchange, problem, back=back, email=form.text("email")))
    cookies = session_cookies(signed_in.cookie, settings)
    if is_partial(visit.exchange):
        heard = json.dumps({SIGNED_IN: {"account": signed_in.account.id}})
        return Response(b"", status_code=204, headers={"HX-Trigger": heard}, cookies=cookies)
    return see_other(back, cookies)


@get("/sign-up", opt=PUBLIC, include_in_schema=False)
async def sign_up_page(request: AnyRequest, visit: Injected[Visit], settings: Injected[Settings]) -> Response[bytes]:
    if await is_signed_in(request):
        return see_other(HOME)
    _check_open(settings)
    return visit.show("sign_up.html", email="")


@post("/sign-up", opt=PUBLIC, include_in_schema=False)
async def sign_up(
    request: AnyRequest,
    visit: Injected[Visit],
    db: Injected[Database],
    passwords: Injected[Passwords],
    settings: Injected[Settings],
    origin: Injected[Origin],
) -> Response[bytes]:
    _check_open(settings)
    form = await Form.read(request)
    try:
        new = decode(SignUp, form.filled("email", "password"))
        signed_in = await login.sign_up(
            db,
            passwords,
            new,
            origin,
            is_open=settings.signup_open,
            previous_cookie=previous_session(request),
        )
    except (InvalidRequest, Conflict, RateLimited) as problem:
        return visit.show("sign_up.html", refused=problem, email=form.text("email"))
    return see_other(HOME, session_cookies(signed_in.cookie, settings))


@post("/sign-out", opt=needs(None) | ENDS_ACCESS | FOR_PORTAL, include_in_schema=False)
async def sign_out(
    request: AnyRequest, db: Injected[Database], caller: Injected[Principal], settings: Injected[Settings]
) -> Response[bytes]:
    """End the session here, and then the one at the identity provider, if the user has signed in there."""
    issuer = await login.log_out(db, caller)
    provider: Provider | None = request.app.state["provider"]
    away = await provider.sign_out_url() if provider is not None and provider.settings.issuer == issuer else None
    cookies = ended_session_cookies(settings)
    if caller.portal is not None:
        return see_other("/portal", [*cookies, way_back_cookie(caller.portal, settings)])
    return see_other(away or "/sign-in", [*cookies, signed_out_cookie(settings)])


async def is_signed_in(request: AnyRequest) -> bool:
    """Return True if the request has a session, or another credential that is valid."""
    try:
        await identify(request)
    except Unauthenticated:
        return False
    return True


def _check_open(settings: Settings) -> None:
    login.require_passwords(are_on=settings.passwords_on)
    if not settings.signup_open:
        raise Forbidden("Sign-up is closed. Ask the operator for an account.")
