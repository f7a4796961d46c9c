"""The guard of every route of the API and the pages. It authenticates the caller and checks the scope, before the body
is read.

A route declares in its `opt` what it needs: `needs(scope)`, `needs(None)` for any caller, or `PUBLIC`. A route without
a declaration stops the start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from litestar import Litestar
from litestar.datastructures import Cookie
from litestar.enums import HttpMethod
from litestar.handlers import BaseRouteHandler, HTTPRouteHandler
from litestar.routes import HTTPRoute

from keyman.audit.entries import Actor, Origin
from keyman.config.settings import Settings
from keyman.errors import ConfigurationError, Unauthenticated
from keyman.http.cookies import cookie_values
from keyman.http.edge import exchange_of
from keyman.http.requests import AnyConnection, AnyRequest
from keyman.identity import principals
from keyman.identity.principals import Credentials, Principal, Proof
from keyman.identity.sessions import SESSION_LIFETIME, device_name
from keyman.identity.tokens import Scope
from keyman.secret import Secret
from keyman.storage.transactions import Database

SESSION_COOKIE = "keyman_session"

_NEEDS = "keyman_needs"
_ANY_CALLER = "any caller"

PUBLIC: dict[str, object] = {_NEEDS: None}


def needs(scope: Scope | None) -> dict[str, object]:
    """Return the `opt` of a route that needs a caller with this scope, or any caller for None."""
    return {_NEEDS: _ANY_CALLER if scope is None else scope}


@dataclass(frozen=True)
class Authentication:
    """How a plane finds out who calls: its proofs, in the order in which they are tried, and the detail of the answer
    to a request that shows no credential. It is the `authentication` of the application's state.
    """

    proofs: Sequence[Proof]
    advice: str


async def authenticate(connection: AnyConnection, handler: BaseRouteHandler) -> None:
    """Set the request's user to a Principal. Raises Unauthenticated or Forbidden."""
    if is_public(handler):
        return
    needed = handler.opt[_NEEDS]
    principal = await identify(connection)
    exchange = exchange_of(connection.scope)
    if principal.user is not None:
        exchange.user_id = principal.user.id
    if principal.application is not None:
        exchange.application_id = principal.application.id
    if needed != _ANY_CALLER:
        principal.require(needed)
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


def bearer_token(connection: AnyConnection) -> str | None:
    """Return the token in the Authorization header, or None without one. Raises Unauthenticated."""
    header = connection.headers.get("authorization")
    if header is None:
        return None
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthenticated("The Authorization header must be: Bearer, a space, and an access token.")
    return token.strip()


async def provide_caller(request: AnyRequest) -> Principal:
    """Return who calls, for a handler of a route that is not public."""
    caller: Principal = request.user
    return caller


async def provide_origin(request: AnyRequest) -> Origin:
    """Return the origin of an unauthenticated request."""
    exchange = exchange_of(request.scope)
    # In a thread: the parser compiles its patterns at the first call of a process, which takes a tenth of a second.
    device = await asyncio.to_thread(device_name, request.headers.get("user-agent", ""))
    return Origin(Actor.ANONYMOUS, None, exchange.request_id, exchange.address, device)


def sent_session_cookie(connection: AnyConnection) -> str | None:
    """Return the session cookie of the request, or None without one. The last one counts."""
    values = cookie_values(exchange_of(connection.scope).headers.get("cookie", ""), SESSION_COOKIE)
    return (values[-1] or None) if values else None


def session_cookie(cookie: Secret, settings: Settings) -> Cookie:
    return Cookie(
        key=SESSION_COOKIE,
        value=cookie.reveal(),
        max_age=int(SESSION_LIFETIME.total_seconds()),
        path="/",
        httponly=True,
        samesite="lax",
        secure=settings.cookies_are_secure,
    )


def ended_session_cookie(settings: Settings) -> Cookie:
    """Return a cookie that makes the browser delete the session cookie."""
    return Cookie(
        key=SESSION_COOKIE,
        value="",
        max_age=0,
        path="/",
        httponly=True,
        samesite="lax",
        secure=settings.cookies_are_secure,
    )


async def identify(connection: AnyConnection) -> Principal:
    """Return who calls. Raises Unauthenticated."""
    authentication: Authentication = connection.app.state.authentication
    exchange = exchange_of(connection.scope)
    credentials = Credentials(
        bearer_token(connection),
        sent_session_cookie(connection),
        exchange.request_id,
        exchange.address,
    )
    db: Database = connection.app.state.db
    return await principals.identify(db, authentication.proofs, credentials, authentication.advice)
