"""Settings → Account: the address, the password, and where its owner is signed in. Settings → Activity: the trail."""

from __future__ import annotations

from contextlib import suppress

from litestar import Response, get, post
from litestar.params import FromPath

from keyman import values
from keyman.accounts import sessions, users
from keyman.accounts.callers import Caller
from keyman.accounts.passwords import Passwords
from keyman.accounts.tokens import Scope
from keyman.accounts.users import ChangePassword
from keyman.audit import listing
from keyman.audit.trail import Action, Actor
from keyman.authentication import needs
from keyman.db import Database
from keyman.errors import Conflict, InvalidRequest, NotFound, Problem, RateLimited
from keyman.keys.services import Catalogue
from keyman.paging import Cursor, Slice
from keyman.requests import AnyRequest, Injected, RowId
from keyman.web.forms import Form
from keyman.web.pages import Visit, see_other

ACCOUNT = "/settings/account"
ACTIVITY = "/settings/activity"

# What happened, for whom it concerns.
ACTIONS = {
    Action.SIGNUP: "Account created",
    Action.LOGIN: "Signed in",
    Action.LOGIN_FAILED: "Sign-in failed",
    Action.LOGOUT: "Signed out",
    Action.SESSION_END: "Session ended",
    Action.PASSWORD: "Password changed",
    Action.PASSWORD_FAILED: "Password change failed",
    Action.DISABLE: "Account disabled",
    Action.ENABLE: "Account enabled",
    Action.TOKEN_CREATE: "Access token created",
    Action.TOKEN_REVOKE: "Access token revoked",
    Action.KEY_CREATE: "Key added",
    Action.KEY_REPLACE: "Key replaced",
    Action.KEY_CHANGE: "Key changed",
    Action.KEY_PAUSE: "Key paused",
    Action.KEY_RESUME: "Key resumed",
    Action.KEY_DELETE: "Key deleted",
    Action.KEY_RESOLVE: "Key given to an application",
    Action.KEY_RESOLVE_REFUSED: "Key refused to an application",
    Action.KEY_RESOLVE_FAILED: "Key could not be opened",
    Action.APPLICATION_CREATE: "Application registered",
    Action.APPLICATION_ROTATE: "Application's token replaced",
    Action.APPLICATION_REVOKE: "Application revoked",
}

ACTORS = {
    Actor.SESSION: "You",
    Actor.TOKEN: "Access token",
    Actor.APPLICATION: "Application",
    Actor.OPERATOR: "Operator",
    Actor.ANONYMOUS: "Not signed in",
}


@get("/settings", opt=needs(None), include_in_schema=False)
async def settings_page() -> Response[bytes]:
    return see_other("/settings/api-keys")


@get(ACTIVITY, opt=needs(Scope.AUDIT_READ), include_in_schema=False)
async def show_activity(
    request: AnyRequest,
    visit: Injected[Visit],
    db: Injected[Database],
    caller: Injected[Caller],
    catalogue: Injected[Catalogue],
) -> Response[bytes]:
    try:
        before = Cursor.parse(request.query_params.get("cursor"))
    except ValueError:
        before = None
    page = await listing.list_own(db, caller.user_id, Slice(before=before))
    return visit.show(
        "activity.html",
        entries=page.items,
        older=f"{ACTIVITY}?cursor={page.cursor}" if page.cursor is not None else None,
        newest=ACTIVITY if before is not None else None,
        actions=ACTIONS,
        actors=ACTORS,
        names={info.service: info.name for info in catalogue.infos()},
    )


@get(ACCOUNT, opt=needs(None), include_in_schema=False)
async def show_account(visit: Injected[Visit], db: Injected[Database], caller: Injected[Caller]) -> Response[bytes]:
    return await _account(visit, db, caller)


@post(ACCOUNT, opt=needs(None), include_in_schema=False)
async def change_password(
    request: AnyRequest,
    visit: Injected[Visit],
    db: Injected[Database],
    passwords: Injected[Passwords],
    caller: Injected[Caller],
) -> Response[bytes]:
    form = await Form.read(request)
    try:
        change = values.decode(ChangePassword, form.given("current_password", "new_password"))
        await users.change_password(db, passwords, caller, change)
    except (InvalidRequest, Conflict, RateLimited) as problem:
        return await _account(visit, db, caller, refused=problem)
    return see_other(f"{ACCOUNT}?done=password")


@post(f"{ACCOUNT}/sessions/others/end", opt=needs(None), include_in_schema=False)
async def end_other_sessions(request: AnyRequest, db: Injected[Database], caller: Injected[Caller]) -> Response[bytes]:
    await Form.read(request)
    await sessions.end_others(db, caller)
    return see_other(f"{ACCOUNT}?done=sessions")


@post(f"{ACCOUNT}/sessions/{{session_id:str}}/end", opt=needs(None), include_in_schema=False)
async def end_session(
    request: AnyRequest, db: Injected[Database], caller: Injected[Caller], session_id: FromPath[RowId]
) -> Response[bytes]:
    await Form.read(request)
    with suppress(NotFound):  # it has ended already, which is what was wanted
        await sessions.end(db, caller, session_id)
    return see_other(f"{ACCOUNT}?done=session")


async def _account(visit: Visit, db: Database, caller: Caller, *, refused: Problem | None = None) -> Response[bytes]:
    listed = await sessions.list_own(db, caller)
    return visit.show("account.html", refused=refused, sessions=listed, done="" if refused else visit.done)
