"""Settings → Access tokens: the list, the forms to create and revoke a token, and the page that shows a new one."""

from __future__ import annotations

from contextlib import suppress

from litestar import Response, get, post
from litestar.params import FromPath

from keyman.clock import now
from keyman.config.settings import Settings
from keyman.decoding import decode
from keyman.errors import NotFound, Problem, Unauthenticated
from keyman.http.guards import needs
from keyman.http.limit import ENDS_ACCESS
from keyman.http.requests import AnyRequest, Injected, RowId
from keyman.identity import personal_tokens as personal
from keyman.identity.personal_tokens import NewToken, TokenInfo
from keyman.identity.principals import Principal
from keyman.identity.tokens import DEFAULT_SCOPES, Scope
from keyman.ids import TokenId
from keyman.planes.management.web.expiry import DAY, expiry_choices, with_last_day
from keyman.planes.management.web.forms import Form, LastDay
from keyman.planes.management.web.pages import Visit, see_other
from keyman.storage.transactions import Database

TOKENS = "/settings/access-tokens"

# The explanation of each scope in the form. The template translates it.
MEANINGS = {
    Scope.KEYS_READ: "List keys and see their masks, never their values.",
    Scope.KEYS_WRITE: "Add, replace, change and delete keys.",
    Scope.TOKENS_MANAGE: "Create, list and revoke access tokens.",
    Scope.AUDIT_READ: "Read your activity.",
    Scope.KEYS_USE: "Send requests to providers with your keys, through the gateway.",
}


class TokenForm(NewToken):
    """A new token in the form, with a last day instead of an exact time."""

    expires_at: LastDay | None = None


@get(TOKENS, opt=needs(Scope.TOKENS_MANAGE), include_in_schema=False)
async def show_list(visit: Injected[Visit], db: Injected[Database], caller: Injected[Principal]) -> Response[bytes]:
    tokens = await personal.list_own(db, caller)
    return visit.show("tokens.html", tokens=tokens, moment=now(), done=visit.done)


@get(f"{TOKENS}/new", opt=needs(Scope.TOKENS_MANAGE), include_in_schema=False)
async def new_form(visit: Injected[Visit]) -> Response[bytes]:
    return _form(visit, name="", expires_at="", scopes=[scope.value for scope in DEFAULT_SCOPES])


@post(TOKENS, opt=needs(Scope.TOKENS_MANAGE), include_in_schema=False)
async def create(
    request: AnyRequest,
    visit: Injected[Visit],
    db: Injected[Database],
    caller: Injected[Principal],
    settings: Injected[Settings],
) -> Response[bytes]:
    form = await Form.read(request)
    try:
        form = with_last_day(form)
        given = {**form.filled("name", DAY), "scopes": form.all("scopes")}
        token = await personal.create(db, caller, decode(TokenForm, given))
    except Unauthenticated:
        raise  # the session ended meanwhile: show the sign-in page, and nothing of the account
    except Problem as problem:
        return _form(
            visit,
            refused=problem,
            name=form.text("name"),
            expires_at=form.text(DAY),
            scopes=form.all("scopes"),
        )
    # Only this page contains a token. It is the answer to the form itself, so that no link can open it again.
    base = (settings.public_url or str(request.base_url).rstrip("/")) + settings.root_path
    return visit.show("token_made.html", token=token, base=base)


@get(f"{TOKENS}/{{token_id:str}}/revoke", opt=needs(Scope.TOKENS_MANAGE), include_in_schema=False)
async def revoke_form(
    visit: Injected[Visit], db: Injected[Database], caller: Injected[Principal], token_id: FromPath[RowId]
) -> Response[bytes]:
    return visit.show("token_revoke.html", token=await _own(db, caller, TokenId(token_id)))


@post(f"{TOKENS}/{{token_id:str}}/revoke", opt=needs(Scope.TOKENS_MANAGE) | ENDS_ACCESS, include_in_schema=False)
async def revoke(
    request: AnyRequest, db: Injected[Database], caller: Injected[Principal], token_id: FromPath[RowId]
) -> Response[bytes]:
    await Form.read(request)
    with suppress(NotFound):  # it is already revoked
        await personal.revoke(db, caller, TokenId(token_id))
    return see_other(f"{TOKENS}?done=revoked")


async def _own(db: Database, caller: Principal, token_id: int) -> TokenInfo:
    for token in await personal.list_own(db, caller):
        if token.id == token_id:
            return token
    raise NotFound("There is nothing with this id.")


def _form(
    visit: Visit, *, name: str, expires_at: str, scopes: list[str], refused: Problem | None = None
) -> Response[bytes]:
    return visit.show(
        "token_form.html",
        refused=refused,
        name=name,
        filled={DAY: expires_at},
        scopes=scopes,
        meanings={scope.value: meaning for scope, meaning in MEANINGS.items()},
        **expiry_choices(),
    )
