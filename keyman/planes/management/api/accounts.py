"""`/api/auth/*` and `/api/tokens*`."""

from __future__ import annotations

from litestar import Controller, Response, delete, get, post, put
from litestar.params import FromPath

from keyman import errors
from keyman.audit.entries import Origin
from keyman.config.settings import Settings
from keyman.http.body import read_json, takes
from keyman.http.guards import FOR_PORTAL, PUBLIC, ended_session_cookies, needs, previous_session, session_cookies
from keyman.http.limit import ENDS_ACCESS
from keyman.http.openapi import BODY_PROBLEMS, CALLER_PROBLEMS, SECURITY, SET_COOKIE, may_answer
from keyman.http.requests import AnyRequest, Injected, RowId
from keyman.identity import first_password, login, presence
from keyman.identity import personal_tokens as personal
from keyman.identity.login import LogIn, SignedIn, SignUp
from keyman.identity.passwords import Passwords
from keyman.identity.personal_tokens import CreatedToken, NewToken, TokenInfo
from keyman.identity.principals import Principal
from keyman.identity.tokens import Scope
from keyman.identity.users import Account, ChangePassword
from keyman.ids import TokenId
from keyman.keys import erasure
from keyman.keys.erasure import DeleteAccount
from keyman.storage.transactions import Database

PASSWORD_ROUTES = frozenset({"/api/auth/signup", "/api/auth/login", "/api/auth/password", "DELETE /api/auth/me"})
"""The routes that take a password. No page of another origin may call them, so that no such page asks for one."""


class AuthController(Controller):
    path = "/auth"
    tags = ("Account",)

    @post(
        "/signup",
        opt=PUBLIC | takes(SignUp),
        status_code=201,
        operation_id="signUp",
        response_description="The account; the session is in the cookie.",
        summary="Create an account",
        description="Creates an account if sign-up is open, and signs it in.",
        response_headers=[SET_COOKIE],
        responses=may_answer(errors.Forbidden, errors.Conflict, errors.RateLimited, *BODY_PROBLEMS),
    )
    async def sign_up(
        self,
        request: AnyRequest,
        db: Injected[Database],
        passwords: Injected[Passwords],
        settings: Injected[Settings],
        origin: Injected[Origin],
    ) -> Response[Account]:
        login.require_passwords(are_on=settings.passwords_on)
        wanted = await read_json(request, SignUp)
        previous = previous_session(request)
        signed_in = await login.sign_up(
            db, passwords, wanted, origin, is_open=settings.signup_open, previous_cookie=previous
        )
        return _signed_in(signed_in, settings, 201)

    @post(
        "/login",
        opt=PUBLIC | takes(LogIn),
        status_code=200,
        operation_id="logIn",
        response_description="The account; the session is in the cookie.",
        summary="Sign in",
        description="Always opens a new session. A wrong password and an unknown address get the same answer.",
        response_headers=[SET_COOKIE],
        responses=may_answer(errors.Unauthenticated, errors.Forbidden, errors.RateLimited, *BODY_PROBLEMS),
    )
    async def log_in(
        self,
        request: AnyRequest,
        db: Injected[Database],
        passwords: Injected[Passwords],
        settings: Injected[Settings],
        origin: Injected[Origin],
    ) -> Response[Account]:
        login.require_passwords(are_on=settings.passwords_on)
        proof = await read_json(request, LogIn)
        previous = previous_session(request)
        return _signed_in(await login.log_in(db, passwords, proof, origin, previous_cookie=previous), settings, 200)

    @post(
        "/logout",
        opt=needs(None) | ENDS_ACCESS | FOR_PORTAL,
        security=SECURITY,
        status_code=204,
        operation_id="logOut",
        response_description="The session has ended.",
        summary="Sign out",
        description="Ends the session on the server. An access token is refused here.",
        response_headers=[SET_COOKIE],
        responses=may_answer(*CALLER_PROBLEMS),
    )
    async def log_out(
        self, db: Injected[Database], caller: Injected[Principal], settings: Injected[Settings]
    ) -> Response[None]:
        await login.log_out(db, caller)
        return Response(None, status_code=204, cookies=ended_session_cookies(settings))

    @get(
        "/me",
        opt=needs(None) | FOR_PORTAL,
        security=SECURITY,
        operation_id="getAccount",
        response_description="The account.",
        summary="Show your account",
        description="The account of the caller.",
        responses=may_answer(*CALLER_PROBLEMS),
    )
    async def me(self, caller: Injected[Principal]) -> Account:
        user = caller.require_user()
        return Account(user.id, user.email, user.created_at)

    @delete(
        "/me",
        opt=needs(None) | takes(DeleteAccount) | ENDS_ACCESS,
        security=SECURITY,
        status_code=204,
        operation_id="deleteAccount",
        response_description="The account is deleted.",
        summary="Delete your account",
        description=(
            "Deletes the account with its keys, tokens, sessions and identities, at once and permanently. It needs "
            "proof that you are there: `current_password`, or for an account without a password a sign-in at the "
            "identity provider within the last 5 minutes; the body is then `{}`. An access token is "
            "refused, and so is a session that an application opened. At their providers the keys stay valid."
        ),
        response_headers=[SET_COOKIE],
        responses=may_answer(errors.Conflict, errors.RateLimited, *CALLER_PROBLEMS, *BODY_PROBLEMS),
    )
    async def delete_account(
        self,
        request: AnyRequest,
        db: Injected[Database],
        passwords: Injected[Passwords],
        caller: Injected[Principal],
        settings: Injected[Settings],
    ) -> Response[None]:
        await presence.check_session(db, caller)
        await erasure.delete_own(db, passwords, caller, await read_json(request, DeleteAccount))
        return Response(None, status_code=204, cookies=ended_session_cookies(settings))

    @put(
        "/password",
        opt=needs(None) | takes(ChangePassword) | ENDS_ACCESS,
        security=SECURITY,
        status_code=204,
        operation_id="changePassword",
        response_description="The password is changed.",
        summary="Change the password, or set the first one",
        description=(
            "Ends all other sessions. Access tokens stay valid. An access token is refused here. An account without a "
            "password leaves `current_password` out: its user signs in at the identity provider within 5 minutes "
            "before, and then signs in with the verified address from there."
        ),
        responses=may_answer(errors.Conflict, errors.RateLimited, *CALLER_PROBLEMS, *BODY_PROBLEMS),
    )
    async def change_password(
        self,
        request: AnyRequest,
        db: Injected[Database],
        passwords: Injected[Passwords],
        caller: Injected[Principal],
        settings: Injected[Settings],
    ) -> None:
        login.require_passwords(are_on=settings.passwords_on)
        await first_password.change(db, passwords, caller, await read_json(request, ChangePassword))


class TokenController(Controller):
    path = "/tokens"
    tags = ("Access tokens",)

    @post(
        opt=needs(Scope.TOKENS_MANAGE) | takes(NewToken),
        security=SECURITY,
        status_code=201,
        operation_id="createToken",
        response_description="The new token.",
        summary="Create an access token",
        description=(
            "`token` is shown in this answer and never again. Without `scopes` the token gets `keys:read` and "
            "`keys:write`. A token cannot create a token with more scopes or a later expiry than its own."
        ),
        responses=may_answer(errors.Conflict, errors.RateLimited, *CALLER_PROBLEMS, *BODY_PROBLEMS),
    )
    async def create(self, request: AnyRequest, db: Injected[Database], caller: Injected[Principal]) -> CreatedToken:
        return await personal.create(db, caller, await read_json(request, NewToken))

    @get(
        opt=needs(Scope.TOKENS_MANAGE),
        security=SECURITY,
        operation_id="listTokens",
        response_description="The tokens, newest first.",
        summary="List the access tokens",
        description="The caller's own access tokens, newest first, without the tokens themselves.",
        responses=may_answer(*CALLER_PROBLEMS),
    )
    async def list_own(self, db: Injected[Database], caller: Injected[Principal]) -> list[TokenInfo]:
        return await personal.list_own(db, caller)

    @delete(
        "/current",
        opt=needs(None) | ENDS_ACCESS,
        security=SECURITY,
        status_code=204,
        operation_id="revokeCurrentToken",
        response_description="The token is revoked.",
        summary="Revoke this access token",
        description="Revokes the access token of this request, which needs no scope for it. It stops working at once "
        "on every replica. A session and a JWT are refused here.",
        responses=may_answer(*CALLER_PROBLEMS),
    )
    async def revoke_current(self, db: Injected[Database], caller: Injected[Principal]) -> None:
        await personal.revoke_current(db, caller)

    @delete(
        "/{token_id:str}",
        opt=needs(Scope.TOKENS_MANAGE) | ENDS_ACCESS,
        security=SECURITY,
        status_code=204,
        operation_id="revokeToken",
        response_description="The token is revoked.",
        summary="Revoke an access token",
        description="The token stops working at once on every replica.",
        responses=may_answer(errors.NotFound, *CALLER_PROBLEMS),
    )
    async def revoke(self, token_id: FromPath[RowId], db: Injected[Database], caller: Injected[Principal]) -> None:
        await personal.revoke(db, caller, TokenId(token_id))


def _signed_in(signed_in: SignedIn, settings: Settings, status: int) -> Response[Account]:
    cookies = session_cookies(signed_in.cookie, settings)
    return Response(signed_in.account, status_code=status, cookies=cookies)
