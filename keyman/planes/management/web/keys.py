"""Settings → API Keys: the list."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from urllib.parse import parse_qsl, urlencode

from litestar import Response, get

from keyman.clock import now
from keyman.errors import NotFound
from keyman.http.guards import needs
from keyman.http.requests import AnyRequest, Injected
from keyman.identity.principals import Principal
from keyman.identity.tokens import Scope
from keyman.ids import KeyId
from keyman.keys import operations
from keyman.keys.schemas import KeyInfo, Status
from keyman.planes.management.web.pages import HOME, Visit, is_one, see_other
from keyman.providers.catalogue import Catalogue, ServiceSlug
from keyman.storage.paging import Cursor, Slice
from keyman.storage.transactions import Database
from keyman.values import SearchText

FILTER_FROM = 10
"""The list has a search if it has more keys than this. A shorter list needs none."""

EXPIRES_SOON = timedelta(days=14)
"""A key that expires within this time is marked: two weeks are enough to get a new one, and close enough to act."""


HUES = 8
"""The number of colours for the marks of services, in the order of the catalogue. `keyman.css` has as many."""


@dataclass(frozen=True)
class View:
    """The part of the list that a page shows. Invalid parameters are ignored."""

    service: str = ""
    q: str = ""
    cursor: str = ""

    @classmethod
    def parse(cls, query: dict[str, str]) -> View:
        kinds = {"service": ServiceSlug, "q": SearchText, "cursor": Cursor}
        return cls(**{name: query[name] for name, kind in kinds.items() if is_one(kind, query.get(name))})

    @classmethod
    def of_query(cls, text: str) -> View:
        return cls.parse(dict(parse_qsl(text)))

    @property
    def is_filtered(self) -> bool:
        return bool(self.service or self.q)

    @property
    def query(self) -> str:
        """The query that `of_query` reads."""
        return urlencode({name: value for name, value in vars(self).items() if value})

    def url(self, **more: object) -> str:
        asked = {name: value for name, value in {**vars(self), **more}.items() if value}
        return f"{HOME}?{urlencode(asked)}" if asked else HOME


@get("/settings/api-keys", opt=needs(Scope.KEYS_READ), include_in_schema=False)
async def show_list(
    request: AnyRequest,
    visit: Injected[Visit],
    db: Injected[Database],
    caller: Injected[Principal],
    catalogue: Injected[Catalogue],
) -> Response[bytes]:
    query = dict(request.query_params)
    view = View.parse(query)
    part = Slice(before=Cursor.parse(view.cursor) if view.cursor else None)
    page = await operations.list_own(db, caller, part, view.service or None, view.q or None)
    newest = replace(view, cursor="")
    if view.cursor and not page.items:
        return see_other(newest.url(done=query.get("done")))  # the keys of this page were deleted
    moment = now()
    return visit.show(
        "keys.html",
        keys=page.items,
        older=view.url(cursor=page.cursor) if page.cursor is not None else None,
        newest=newest.url(),
        view=view,
        can_filter=view.is_filtered or bool(view.cursor) or len(page.items) > FILTER_FROM,
        services=catalogue.infos(),
        names={info.service: info.name for info in catalogue.infos()},
        hues={info.service: number % HUES for number, info in enumerate(catalogue.infos())},
        expires_soon={key.id for key in page.items if _expires_soon(key, moment)},
        saved=query.get("saved", ""),
        done=visit.done,
    )


async def own_key(db: Database, caller: Principal, key_id: KeyId) -> KeyInfo:
    """Return a key of the caller. Raises NotFound, with a text for a user who has just seen the key in the list."""
    try:
        return await operations.get(db, caller, key_id)
    except NotFound:
        raise NotFound("This key no longer exists. It may have been deleted in another window.") from None


def view_behind(request: AnyRequest) -> View:
    """Return the part of the list from which the form was opened."""
    return View.parse(dict(request.query_params))


def _expires_soon(key: KeyInfo, moment: datetime) -> bool:
    return key.status is not Status.EXPIRED and key.expires_at is not None and key.expires_at - moment <= EXPIRES_SOON
