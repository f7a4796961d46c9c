"""Settings → Account: the address, the password and the sessions of the user."""

from __future__ import annotations

from contextlib import suppress

import msgspec
from litestar import Response, get, post
from litestar.params import FromPath

from keyman.config.settings import Settings
from keyman.decoding import decode
from keyman.errors import Conflict, Forbidden, InvalidRequest, NotFound, Problem, RateLimited
from keyman.http.guards import FOR_PORTAL, needs
from keyman.http.limit import ENDS_ACCESS
from keyman.http.requests import AnyRequest, Injected, RowId
from keyman.identity import first_password, login, presence, sessions
from keyman.identity.passwords import Passwords
from keyman.identity.principals import Principal
from keyman.identity.users import ChangePassword
from keyman.ids import SessionId
from keyman.planes.management.web.display import THEMES, Display, display_cookie
from keyman.planes.management.web.forms import Form
from keyman.planes.management.web.pages import Pages, Visit, see_other
from keyman.storage.transactions import Database

ACCOUNT = "/settings/account"


@get("/settings", opt=needs(None) | FOR_PORTAL, include_in_schema=False)
async def settings_page() -> Response[bytes]:
    return see_other("/settings/api-keys")


@get("/settings/shortcuts", opt=needs(None) | FOR_PORTAL, include_in_schema=False)
async def shortcuts(visit: Injected[Visit]) -> Response[bytes]:
    return visit.show("shortcuts.html")


@get(ACCOUNT, opt=needs(None), include_in_schema=False)
async def show_account(visit: Injected[Visit], db: Injected[Database], caller: Injected[Principal]) -> Response[bytes]:
    return await _account(visit, db, caller)


@post(ACCOUNT, opt=needs(None) | ENDS_ACCESS, include_in_schema=False)
async def change_password(
    request: AnyRequest,
    visit: Injected[Visit],
    db: Injected[Database],
    passwords: Injected[Passwords],
    caller: Injected[Principal],
    settings: Injected[Settings],
) -> Response[bytes]:
    login.require_passwords(are_on=settings.passwords_on)
    form = await Form.read(request)
    try:
        change = decode(ChangePassword, form.filled("current_password", "new_password"))
        await first_password.change(db, passwords, caller, change)
    except (InvalidRequest, Conflict, Forbidden, RateLimited) as problem:
        return await _account(visit, db, caller, refused=problem)
    is_first = change.current_password is msgspec.UNSET
    return see_other(f"{ACCOUNT}?done={'first-password' if is_first else 'password'}")


@post(f"{ACCOUNT}/display", opt=needs(None), include_in_schema=False)
async def choose_display(request: AnyRequest, pages: Injected[Pages], settings: Injected[Settings]) -> Response[bytes]:
    """Keep how the pages look in a cookie. What this plane does not have, such as another language, counts as none."""
    form = await Form.read(request)
    chosen = Display(
        theme if (theme := form.text("theme")) in THEMES else "",
        language if (language := form.text("language")) in {each.code for each in pages.languages.all()} else "",
        form.text("shortcuts") == "on",
    )
    return see_other(f"{ACCOUNT}?done=display", [display_cookie(chosen, settings)])


@post(f"{ACCOUNT}/sessions/others/end", opt=needs(None) | ENDS_ACCESS, include_in_schema=False)
async def end_other_sessions(
    request: AnyRequest, db: Injected[Database], caller: Injected[Principal]
) -> Response[bytes]:
    await Form.read(request)
    await sessions.end_others(db, caller)
    return see_other(f"{ACCOUNT}?done=sessions")


@post(f"{ACCOUNT}/sessions/{{session_id:str}}/end", opt=needs(None) | ENDS_ACCESS, include_in_schema=False)
async def end_session(
    request: AnyRequest, db: Injected[Database], caller: Injected[Principal], session_id: FromPath[RowId]
) -> Response[bytes]:
    await Form.read(request)
    with suppress(NotFound):  # it has already ended
        await sessions.end(db, caller, SessionId(session_id))
    return see_other(f"{ACCOUNT}?done=session")


async def _account(visit: Visit, db: Database, caller: Principal, *, refused: Problem | None = None) -> Response[bytes]:
    listed = await sessions.list_own(db, caller)
    means = await presence.means(db, caller)
    name = None if means.by_password else await first_password.sign_in_name(db, caller)
    done = "" if refused else visit.done
    return visit.show(
        "account.html",
        refused=refused,
        sessions=listed,
        means=means,
        sign_in_name=name,
        done=done,
        languages={language.code: language.own_name for language in visit.pages.languages.all()},
    )
