"""`/auth/oidc/*`: the way to the identity provider and back, and the choice where an account has the same address."""

from __future__ import annotations

from litestar import Response, get, post

from keyman.audit.entries import Origin
from keyman.decoding import decode
from keyman.errors import (
    FieldError,
    InvalidRequest,
    Problem,
    RateLimited,
    Unauthenticated,
    UnsupportedMediaType,
)
from keyman.http.guards import PUBLIC, identify, previous_session
from keyman.http.requests import AnyRequest, Injected
from keyman.http.sites import EXEMPT
from keyman.identity import back_channel, id_tokens, limits, oidc, throttle, visits
from keyman.identity.id_tokens import Callback
from keyman.identity.jwks import Refused
from keyman.identity.oidc import Password
from keyman.identity.passwords import Passwords
from keyman.identity.visits import ENDED, Purpose
from keyman.planes.management.web.desk import CALLBACK, CHOICE, START, Desk, next_of, start_of
from keyman.planes.management.web.forms import Form
from keyman.planes.management.web.pages import HOME, Pages, Visit, see_other
from keyman.storage.transactions import Database, Unchecked


@get(START, opt=PUBLIC, include_in_schema=False)
async def start(
    request: AnyRequest,
    visit: Injected[Visit],
    pages: Injected[Pages],
    db: Injected[Database],
    origin: Injected[Origin],
) -> Response[bytes]:
    desk = Desk.of(request, visit, pages)
    next_page = next_of(desk.query.get("next", ""), desk.settings)
    try:
        await throttle.count(db, Unchecked.SIGN_IN, limits.visit_buckets(origin.address), limits.TOO_MANY_VISITS)
        await desk.provider.metadata()  # before anything is stored
        async with db.write(Unchecked.SIGN_IN) as connection:
            begun = await visits.start(connection, Purpose.SIGN_IN, next_page=next_page)
        return see_other(await desk.provider.authorization_url(begun), desk.new_cookies(begun))
    except Problem as problem:
        return await desk.fault(problem, start_of(next_page))


@get(CALLBACK, opt=PUBLIC, include_in_schema=False)
async def callback(
    request: AnyRequest,
    visit: Injected[Visit],
    pages: Injected[Pages],
    db: Injected[Database],
    origin: Injected[Origin],
) -> Response[bytes]:
    desk = Desk.of(request, visit, pages)
    next_page, again, state = HOME, start_of(HOME), ""
    try:
        answer = Callback.parse(desk.pairs)
        state = answer.state
        async with db.write(Unchecked.SIGN_IN) as connection:
            taken = await visits.take(connection, answer.state, desk.cookie_of(answer.state))
        if taken is None or taken.purpose is Purpose.CHOICE:
            raise InvalidRequest(ENDED)
        next_page = taken.next or HOME
        again = start_of(next_page)
        if taken.session_id is not None:
            again = next_page.partition("?")[0]  # the page with the form: to start there would only sign in
            return await _finish_in_session(desk, request, db, taken, answer)
        person = await id_tokens.identify(desk.provider, taken, answer)
        oidc.require_admitted(desk.provider.settings, person)
        outcome = await oidc.sign_in(
            db,
            desk.provider.settings,
            person.proven,
            origin,
            previous_cookie=previous_session(request),
            next_page=next_page,
        )
    except Problem as problem:
        return await desk.fault(problem, again, state)
    return desk.enter(outcome, next_page, state)


async def _finish_in_session(
    desk: Desk, request: AnyRequest, db: Database, taken: visits.Visit, answer: Callback
) -> Response[bytes]:
    """Link the identity to the account of the session that began the visit, or note that its user is there.

    Raises InvalidRequest for any other session, before the code is used.
    """
    next_page = taken.next or HOME
    try:
        caller = await identify(request)
    except Unauthenticated:
        raise InvalidRequest(ENDED) from None
    if caller.session_id != taken.session_id:
        raise InvalidRequest(ENDED)
    settings = desk.provider.settings
    if taken.purpose is Purpose.PRESENCE and answer.is_invalid_request:
        begun = await oidc.start_for(db, caller, Purpose.PRESENCE_AGAIN, next_page, None)
        url = await desk.provider.authorization_url(begun, max_age=1)
        return see_other(url, [*desk.new_cookies(begun), desk.ended_cookie(answer.state)])
    person = await id_tokens.identify(desk.provider, taken, answer)
    if taken.purpose is Purpose.LINK:
        oidc.require_admitted(settings, person)
        await oidc.link(db, settings, caller, person.proven)
    elif taken.purpose in visits.PROVES_PRESENCE and person.signed_in_at is not None:
        await oidc.prove_presence(db, settings, caller, person.proven, person.signed_in_at)
    return see_other(next_page, [desk.finished_cookie(answer.state, next_page.partition("?")[0])])


@get(CHOICE, opt=PUBLIC, include_in_schema=False)
async def choice_page(
    request: AnyRequest, visit: Injected[Visit], pages: Injected[Pages], db: Injected[Database]
) -> Response[bytes]:
    desk = Desk.of(request, visit, pages)
    return await _choice(desk, db, desk.query.get("visit", ""))


@post("/auth/oidc/link", opt=PUBLIC, include_in_schema=False)
async def link(
    request: AnyRequest,
    visit: Injected[Visit],
    pages: Injected[Pages],
    db: Injected[Database],
    passwords: Injected[Passwords],
    origin: Injected[Origin],
) -> Response[bytes]:
    desk = Desk.of(request, visit, pages)
    form = await Form.read(request)
    state = form.text("visit")
    try:
        given = decode(Password, form.filled("password"))
        signed_in, ended = await oidc.link_and_sign_in(
            db,
            desk.provider.settings,
            desk.choice(state),
            given.password,
            passwords,
            origin,
            previous_cookie=previous_session(request),
        )
    except Unauthenticated:
        return await _choice(desk, db, state, InvalidRequest.at(FieldError("password", "is wrong")))
    except (InvalidRequest, RateLimited) as problem:
        return await _choice(desk, db, state, problem)
    except Problem as problem:
        return await desk.fault(problem, start_of(HOME), state, ends=False)
    return desk.enter(signed_in, ended.next or HOME, state)


@post("/auth/oidc/continue", opt=PUBLIC, include_in_schema=False)
async def continue_as_new(
    request: AnyRequest,
    visit: Injected[Visit],
    pages: Injected[Pages],
    db: Injected[Database],
    origin: Injected[Origin],
) -> Response[bytes]:
    desk = Desk.of(request, visit, pages)
    state = (await Form.read(request)).text("visit")
    try:
        signed_in, ended = await oidc.continue_as_new(
            db, desk.provider.settings, desk.choice(state), origin, previous_cookie=previous_session(request)
        )
    except Problem as problem:
        return await desk.fault(problem, start_of(HOME), state, ends=False)
    return desk.enter(signed_in, ended.next or HOME, state)


@post(EXEMPT, opt=PUBLIC, include_in_schema=False)
async def back_channel_logout(
    request: AnyRequest,
    visit: Injected[Visit],
    pages: Injected[Pages],
    db: Injected[Database],
    origin: Injected[Origin],
) -> Response[bytes]:
    """End the sessions that the provider's logout token names. Only refused tokens count in the limit."""
    desk = Desk.of(request, visit, pages)
    buckets = limits.logout_buckets(origin.address)
    await throttle.count(db, Unchecked.SIGN_IN, buckets)
    try:
        tokens = (await Form.read(request)).all("logout_token")
        if len(tokens) != 1:
            raise InvalidRequest(ENDED)
        await back_channel.end_sessions(db, desk.provider, tokens[0], origin)
    except (Refused, InvalidRequest, UnsupportedMediaType):
        return Response(b'{"error":"invalid_request"}', status_code=400, media_type="application/json")
    await throttle.take_back(db, buckets)
    return Response(b"", status_code=200)


async def _choice(desk: Desk, db: Database, state: str, refused: Problem | None = None) -> Response[bytes]:
    try:
        found = await oidc.find_choice(db, desk.choice(state))
    except Problem as problem:
        return await desk.fault(problem, start_of(HOME), state, ends=False)
    return desk.visit.show("provider_choice.html", refused=refused, email=found.email, visit=state)
