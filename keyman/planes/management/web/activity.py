"""Settings → Activity: the user's audit log as sentences, with filters for kind and period."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from urllib.parse import urlencode

from litestar import Response, get

from keyman.audit import counting, listing
from keyman.audit.entries import Action, Actor, Reason
from keyman.audit.listing import AuditEntry, Filter
from keyman.clock import now
from keyman.errors import VaultReason
from keyman.http.guards import needs
from keyman.http.requests import AnyRequest, Injected
from keyman.identity.principals import Principal
from keyman.identity.tokens import Scope
from keyman.keys import labels
from keyman.keys.uses import RELEASES
from keyman.planes.management.web.chart import Chart, draw, first_day
from keyman.planes.management.web.pages import Visit, is_one, see_other
from keyman.providers.catalogue import Catalogue
from keyman.storage.paging import Cursor, Slice
from keyman.storage.transactions import Database

ACTIVITY = "/settings/activity"

# The text of each action, as the user sees it.
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
    Action.ACCOUNT_CREATE: "Account created",
    Action.ACCOUNT_LINK: "Sign-in linked",
    Action.ACCOUNT_UNLINK: "Sign-in unlinked",
    Action.ACCOUNT_DELETE: "Account deleted",
    Action.PORTAL_LINK: "Link to these pages created",
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
    Action.KEY_USE: "Request sent with a key",
    Action.KEY_USE_REFUSED: "Request refused: no key for it",
    Action.KEY_USE_FAILED: "Key could not be opened",
    Action.KEY_CHECK: "Key checked",
    Action.KEY_CHECK_FAILED: "Key could not be opened",
    Action.KEY_REPORT: "Result of a use reported",
    Action.APPLICATION_CREATE: "Application registered",
    Action.APPLICATION_ROTATE: "Application's token replaced",
    Action.APPLICATION_REVOKE: "Application revoked",
    Action.APPLICATION_BLOCK: "Application blocked",
    Action.APPLICATION_UNBLOCK: "Application no longer blocked",
    Action.VAULT_ROTATE: "Vault's key rotated",
    Action.VAULT_REWRAP: "Keys sealed again",
    Action.TRAIL_PRUNE: "Old entries removed",
    Action.TRAIL_CARRY: "Key recorded again when old entries were removed",
}

ACTORS = {
    Actor.SESSION: "You",
    Actor.TOKEN: "Access token",
    Actor.APPLICATION: "Application",
    Actor.OPERATOR: "Operator",
    Actor.ANONYMOUS: "Not signed in",
}

# The text of each reason for which an application got no key.
REASONS: dict[str, str] = {
    Reason.NOT_GRANTED: "The application is not registered for this service or this user.",
    Reason.UNKNOWN: "There was no such key.",
    Reason.ACCOUNT_DISABLED: "The account was disabled.",
    Reason.DISABLED: "The key was paused.",
    Reason.EXPIRED: "The key had expired.",
    Reason.UNDECRYPTABLE: "This key can no longer be opened: store it again.",
    Reason.BLOCKED: "You had blocked this application.",
    Reason.NOT_CURRENT: "The stored value was changed outside keyman: store the key again.",
    Reason.SETTINGS: "The key lacks a setting that its service needs: store the key again with it.",
    # What is wrong with Vault is for operators, who read it in their audit log.
    **dict.fromkeys(VaultReason, "keyman could not open the key at that moment."),
}

# The actions of each filter. A user's audit log has no actions of operators for all users. TRAIL_CARRY has no filter.
KINDS = {
    "keys-used": {
        Action.KEY_RESOLVE,
        Action.KEY_RESOLVE_REFUSED,
        Action.KEY_RESOLVE_FAILED,
        Action.KEY_USE,
        Action.KEY_USE_REFUSED,
        Action.KEY_USE_FAILED,
        Action.KEY_CHECK,
        Action.KEY_CHECK_FAILED,
        Action.KEY_REPORT,
    },
    "keys-changed": {
        Action.KEY_CREATE,
        Action.KEY_REPLACE,
        Action.KEY_CHANGE,
        Action.KEY_PAUSE,
        Action.KEY_RESUME,
        Action.KEY_DELETE,
    },
    "applications": {Action.APPLICATION_BLOCK, Action.APPLICATION_UNBLOCK},
    "tokens": {Action.TOKEN_CREATE, Action.TOKEN_REVOKE},
    "sign-ins": {Action.PORTAL_LINK, Action.LOGIN, Action.LOGIN_FAILED, Action.LOGOUT, Action.SESSION_END},
    "account": {
        Action.SIGNUP,
        Action.ACCOUNT_CREATE,
        Action.ACCOUNT_LINK,
        Action.ACCOUNT_UNLINK,
        Action.ACCOUNT_DELETE,
        Action.PASSWORD,
        Action.PASSWORD_FAILED,
        Action.DISABLE,
        Action.ENABLE,
    },
}
KIND_NAMES = {
    "keys-used": "Uses of keys",
    "keys-changed": "Changes to keys",
    "applications": "Applications",
    "tokens": "Access tokens",
    "sign-ins": "Sign-ins and sessions",
    "account": "Account and password",
}

PERIODS = {"day": timedelta(days=1), "week": timedelta(days=7), "month": timedelta(days=30)}
PERIOD_NAMES = {"day": "Last 24 hours", "week": "Last 7 days", "month": "Last 30 days"}


@dataclass(frozen=True)
class Log:
    """Entries of the audit log, and all that the macros of `entries.html` need to say them in words."""

    entries: list[AuditEntry]
    called: labels.Names
    names: dict[str, str]
    actions: Mapping[Action, str] = field(default_factory=lambda: ACTIONS)
    about_applications: Collection[Action] = field(default_factory=lambda: KINDS["applications"])
    actors: Mapping[Actor, str] = field(default_factory=lambda: ACTORS)
    reasons: Mapping[str, str] = field(default_factory=lambda: REASONS)

    @staticmethod
    def issuer_of(entry: AuditEntry) -> str | None:
        """Return the issuer that the detail of an entry names, for a sign-in at an identity provider, or None."""
        word, _, issuer = (entry.detail or "").partition(" ")
        return issuer if word == "issuer" and issuer else None


@dataclass(frozen=True)
class View:
    """The part of the audit log that a page shows. Invalid parameters are ignored."""

    kind: str = ""
    period: str = ""
    cursor: str = ""

    @classmethod
    def parse(cls, query: dict[str, str]) -> View:
        kind, period, cursor = (query.get(name, "") for name in ("kind", "period", "cursor"))
        return cls(
            kind if kind in KINDS else "",
            period if period in PERIODS else "",
            cursor if is_one(Cursor, cursor) else "",
        )

    @property
    def is_filtered(self) -> bool:
        return bool(self.kind or self.period)

    @property
    def filter(self) -> Filter:
        since = now() - PERIODS[self.period] if self.period else None
        return Filter(KINDS.get(self.kind, ()), since)

    def url(self, cursor: Cursor | None = None) -> str:
        asked = {"kind": self.kind, "period": self.period, "cursor": cursor}
        query = urlencode({name: value for name, value in asked.items() if value})
        return f"{ACTIVITY}?{query}" if query else ACTIVITY


@get(ACTIVITY, opt=needs(Scope.AUDIT_READ), include_in_schema=False)
async def show_activity(
    request: AnyRequest,
    visit: Injected[Visit],
    db: Injected[Database],
    caller: Injected[Principal],
    catalogue: Injected[Catalogue],
) -> Response[bytes]:
    view = View.parse(dict(request.query_params))
    part = Slice(before=Cursor.parse(view.cursor) if view.cursor else None)
    page = await listing.list_own(db, caller.user_id, part, view.filter)
    if view.cursor and not page.items:
        return see_other(view.url())  # the entries of the last page are no longer in the period
    return visit.show(
        "activity.html",
        log=await log_of(db, caller, catalogue, page.items),
        chart=None if view.cursor else await _chart(db, caller),
        view=view,
        older=view.url(page.cursor) if page.cursor is not None else None,
        newest=view.url() if view.cursor else None,
        kinds=KIND_NAMES,
        periods=PERIOD_NAMES,
    )


async def log_of(db: Database, caller: Principal, catalogue: Catalogue, entries: list[AuditEntry]) -> Log:
    """Return these entries, which are the caller's own, with the names by which the caller knows what they concern."""
    names = {info.service: info.name for info in catalogue.infos()}
    return Log(entries, await labels.names_of(db, caller, entries), names)


async def _chart(db: Database, caller: Principal) -> Chart:
    moment = now()
    return draw(await counting.by_day(db, caller.user_id, RELEASES, first_day(moment)), moment)
