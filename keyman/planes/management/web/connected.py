"""Settings → Account → Connected sign-ins: link an identity of the provider, remove one, and prove presence there."""

from __future__ import annotations

from datetime import timedelta

import msgspec
from litestar import Response, get, post
from litestar.params import FromPath

from keyman.clock import now
from keyman.config.settings import Settings
from keyman.decoding import decode
from keyman.errors import Conflict, Forbidden, InvalidRequest, IssuerUnavailable, NotFound, Problem, RateLimited
from keyman.http.guards import needs
from keyman.http.requests import AnyRequest, Injected, RowId
from keyman.identity import connected, oidc, presence
from keyman.identity.passwords import Passwords
from keyman.identity.presence import Presence
from keyman.identity.principals import Principal
from keyman.identity.visits import Purpose
from keyman.planes.management.web.desk import Desk
from keyman.planes.management.web.forms import Form
from keyman.planes.management.web.pages import Pages, Visit, own_page, see_other
from keyman.storage.transactions import Database
from keyman.values import GivenPassword

CONNECTED = "/settings/account/sign-ins"

JUST_NOW = timedelta(seconds=30)
"""For how long the page says that a sign-in has been connected."""

EXPECTED = (InvalidRequest, Conflict, Forbidden, RateLimited, IssuerUnavailable)
"""The problems that are shown above the form."""


class _Proof(msgspec.Struct):
    """The password of the account, if it has one."""

    current_password: GivenPassword | None = None


@get(CONNECTED, opt=needs(None), include_in_schema=False)
async def show_list(visit: Injected[Visit], db: Injected[Database], caller: Injected[Principal]) -> Response[bytes]:
    return await _list(visit, db, caller)


@post(CONNECTED, opt=needs(None), include_in_schema=False)
async def connect(
    request: AnyRequest,
    visit: Injected[Visit],
    pages: Injected[Pages],
    db: Injected[Database],
    passwords: Injected[Passwords],
    caller: Injected[Principal],
) -> Response[bytes]:
    """Send the browser to the provider, to link the identity that signs in there."""
    desk = Desk.of(request, visit, pages)
    form = await Form.read(request)
    try:
        await desk.provider.metadata()  # before the proof is used up
        proof = await _prove(db, passwords, caller, form)
        begun = await oidc.start_for(db, caller, Purpose.LINK, f"{CONNECTED}?done=linked", proof)
        return see_other(await desk.provider.authorization_url(begun), desk.new_cookies(begun))
    except EXPECTED as problem:
        return await _list(visit, db, caller, refused=problem)


@get(f"{CONNECTED}/{{identity_id:str}}/unlink", opt=needs(None), include_in_schema=False)
async def unlink_form(
    visit: Injected[Visit], db: Injected[Database], caller: Injected[Principal], identity_id: FromPath[RowId]
) -> Response[bytes]:
    return await _question(visit, db, caller, identity_id)


@post(f"{CONNECTED}/{{identity_id:str}}/unlink", opt=needs(None), include_in_schema=False)
async def unlink(
    request: AnyRequest,
    visit: Injected[Visit],
    db: Injected[Database],
    passwords: Injected[Passwords],
    settings: Injected[Settings],
    caller: Injected[Principal],
    identity_id: FromPath[RowId],
) -> Response[bytes]:
    form = await Form.read(request)
    issuer = None if settings.oidc is None else settings.oidc.issuer
    try:
        proof = await _prove(db, passwords, caller, form)
        await connected.unlink(db, caller, proof, identity_id, issuer=issuer, passwords_on=settings.passwords_on)
    except EXPECTED as problem:
        return await _question(visit, db, caller, identity_id, refused=problem)
    return see_other(f"{CONNECTED}?done=unlinked")


@post("/settings/account/presence", opt=needs(None), include_in_schema=False)
async def sign_in_again(
    request: AnyRequest,
    visit: Injected[Visit],
    pages: Injected[Pages],
    db: Injected[Database],
    caller: Injected[Principal],
) -> Response[bytes]:
    """Send the browser to the provider, where the user signs in again to prove that they are there."""
    desk = Desk.of(request, visit, pages)
    next_page = own_page((await Form.read(request)).text("next"))
    await presence.check_session(db, caller)
    try:
        await desk.provider.metadata()  # before anything is stored
        begun = await oidc.start_for(db, caller, Purpose.PRESENCE, next_page, None)
        return see_other(await desk.provider.authorization_url(begun, max_age=0), desk.new_cookies(begun))
    except IssuerUnavailable as problem:
        return await desk.fault(problem, next_page)


async def _prove(db: Database, passwords: Passwords, caller: Principal, form: Form) -> Presence:
    given = decode(_Proof, form.filled("current_password"))
    return await presence.prove(db, passwords, caller, given.current_password)


async def _list(visit: Visit, db: Database, caller: Principal, *, refused: Problem | None = None) -> Response[bytes]:
    means = await presence.means(db, caller)
    listed = await connected.list_own(db, caller)
    done = "" if refused else visit.done
    # The browser comes from the provider, as from any link on another site: the list proves what is said.
    if not refused and visit.claimed == "linked" and any(now() - one.created_at < JUST_NOW for one in listed):
        done = "linked"
    return visit.show("connected.html", refused=refused, identities=listed, means=means, done=done)


async def _question(
    visit: Visit, db: Database, caller: Principal, identity_id: int, *, refused: Problem | None = None
) -> Response[bytes]:
    means = await presence.means(db, caller)  # first: a token learns nothing of identities
    found = [one for one in await connected.list_own(db, caller) if one.id == identity_id]
    if not found:
        raise NotFound("There is nothing with this id.")
    return visit.show("connected_unlink.html", refused=refused, identity=found[0], means=means)
