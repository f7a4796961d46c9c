"""The guard of every route of the API and the pages. It authenticates the caller and checks the scope, before the body
is read.

A route declares in its `opt` what it needs: `needs(scope)`, `needs(None)` for any caller, or `PUBLIC`. A route without
a declaration stops the start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from litestar import Litestar
from litestar.datastructures import Cookie
from litestar.enums import HttpMethod
from litestar.handlers import BaseRouteHandler, HTTPRouteHandler
from litestar.routes import HTTPRoute

from keyman.audit.entries import Actor, Origin
from keyman.config.settings import Settings
from keyman.errors import ConfigurationError, InvalidToken, Unauthenticated
from keyman.http.cookies import cookie_values, own_cookie
from keyman.http.exchange import exchange_of
from keyman.http.requests import AnyConnection, AnyRequest
from keyman.identity import principals
from keyman.identity.principals import Credentials, Principal, Proof
from keyman.identity.sessions import SESSION_LIFETIME, device_name
from keyman.identity.tokens import Scope
from keyman.secret import Secret
from keyman.storage.transactions import Database

_NEEDS = "keyman_needs"
_ANY_CALLER = "any caller"

PUBLIC: dict[str, object] = {_NEEDS: None}

_FOR_PORTAL = "keyman_for_portal"

FOR_PORTAL: dict[str, object] = {_FOR_PORTAL: True}
"""The `opt` of a route without a scope that a session by a portal link may use, too."""


def needs(scope: Scope | None) -> dict[str, object]:
    """Return the `opt` of a route that needs a caller with this scope, or any caller for None."""
    return {_NEEDS: _ANY_CALLER if scope is None else scope}


def _of_unknown_issuer() -> Unauthenticated:
    return InvalidToken("The JWT does not count: iss is not an issuer that keyman accepts here.")


@dataclass(frozen=True)
class Authentication:
    """How a plane finds out who calls: its proofs, in the order in which they are tried, and the detail of the answer
    to a request that shows no credential. `refuse_jwt` returns the answer to one that shows only a JWT which does not
    count. It is the `authentication` of the application's state.
    """

    proofs: Sequence[Proof]
    advice: str
    refuse_jwt: Callable[[], Unauthenticated] = _of_unknown_issuer


async def authenticate(connection: AnyConnection, handler: BaseRouteHandler) -> None:
    """Set the request's user to a Principal. Raises Unauthenticated or Forbidden.

    A request of another site needs a bearer token that authenticates it, so a public route refuses it.
    """
    exchange = exchange_of(connection.scope)
    if is_public(handler):
        exchange.require_same_site()
        return
    needed = handler.opt[_NEEDS]
    principal = await identify(connection)
    exchange.is_excused = principal.kind is not Actor.SESSION
    exchange.require_same_site()
    if principal.user is not None:
        exchange.user_id = principal.user.id
    if principal.application is not None:
        exchange.application_id = principal.application.id
    if needed != _ANY_CALLER:
        principal.require(needed)
    elif not handler.opt.get(_FOR_PORTAL):
        principal.require_no_portal()
    connection.scope["user"] = principal


def is_public(handler: BaseRouteHandler) -> bool:
    """Return True for a route that everybody may call, such as Litestar's own answer to OPTIONS."""
    return _only_lists_methods(handler) or handler.opt[_NEEDS] is None


def require_rules(app: Litestar) -> None:
    """Raises ConfigurationError, which stops the start, when a route does not declare who may call it."""
    for route in app.routes:
        handlers = route.route_handlers if isinstance(route, HTTPRoute) else [route.route_handler]
        if not all(_NEEDS in handler.opt or _only_lists_methods(handler) for handler in handlers):
            raise ConfigurationError(
                f"The route {route.path} does not declare who may call it: give it `needs` or `PUBLIC`."
            )


def _only_lists_methods(handler: BaseRouteHandler) -> bool:
    return isinstance(handler, HTTPRouteHandler) and handler.http_methods == {HttpMethod.OPTIONS}


async def provide_origin(request: AnyRequest) -> Origin:
    """Return the origin of an unauthenticated request."""
    exchange = exchange_of(request.scope)
    # In a thread: the parser compiles its patterns at the first call of a process, which takes a tenth of a second.
    device = await asyncio.to_thread(device_name, request.headers.get("user-agent", ""))
    return Origin(Actor.ANONYMOUS, None, exchange.request_id, exchange.address, device)


def find_session_cookie(connection: AnyConnection) -> str | None:
    """Return the session cookie of a request, or None. Raises Unauthenticated for two of them.

    A cookie does not count on a request that a script of another origin sent. Only the name with the prefix counts
    where there is one: a neighbour on another host name can plant a cookie without it.
    """
    exchange = exchange_of(connection.scope)
    if not exchange.counts_cookies:
        return None
    values = cookie_values(exchange.headers.get("cookie", ""), connection.app.state.settings.session_cookie)
    if len(values) > 1:  # one of them was planted, and nothing says which
        raise Unauthenticated(
            "The browser sent two session cookies. Delete the cookies of this site, then sign in again."
        )
    return values[0] or None if values else None


def previous_session(connection: AnyConnection) -> str | None:
    """Return the session cookie that a new sign-in replaces, or None if there is none or it is not clear which."""
    try:
        return find_session_cookie(connection)
    except Unauthenticated:
        return None


def session_cookies(cookie: Secret, settings: Settings, lifetime: timedelta = SESSION_LIFETIME) -> list[Cookie]:
    """Return the cookies of an answer that opens a session."""
    return _set_session(settings, cookie.reveal(), int(lifetime.total_seconds()))


def ended_session_cookies(settings: Settings) -> list[Cookie]:
    """Return cookies that make the browser delete the session cookie."""
    return _set_session(settings, "", 0)


def _set_session(settings: Settings, value: str, max_age: int) -> list[Cookie]:
    session = own_cookie(settings, settings.session_cookie, value, max_age)
    if settings.session_cookie == settings.cookie_name:
        return [session]
    # The cookie from before the prefix, or one that somebody planted.
    paths = sorted({"/", session.path})
    return [session, *(replace(session, key=settings.cookie_name, value="", max_age=0, path=path) for path in paths)]


async def identify(connection: AnyConnection) -> Principal:
    """Return who calls, and note it in the exchange. Raises Unauthenticated."""
    authentication: Authentication = connection.app.state.authentication
    exchange = exchange_of(connection.scope)
    token, jwt, is_foreign = exchange.claimed
    cookie = find_session_cookie(connection) if token is None and jwt is None else None
    credentials = Credentials(token, cookie, exchange.request_id, exchange.address, jwt)
    db: Database = connection.app.state.db
    try:
        caller = await principals.identify(db, authentication.proofs, credentials, authentication.advice)
    except Unauthenticated:
        if not is_foreign:
            raise
        raise authentication.refuse_jwt() from None
    exchange.principal = caller
    return caller
