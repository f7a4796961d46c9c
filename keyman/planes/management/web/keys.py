"""Settings → API Keys: the list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import TypedDict
from urllib.parse import parse_qsl, urlencode

from litestar import Response, get

from keyman.clock import now
from keyman.config.settings import Settings
from keyman.errors import InvalidRequest
from keyman.http.guards import needs
from keyman.http.requests import AnyRequest, Injected
from keyman.identity.principals import Principal
from keyman.identity.tokens import Scope
from keyman.ids import KeyId
from keyman.keys import choosing, listing, selecting
from keyman.keys.left import left_through
from keyman.keys.schemas import KeyInfo, Status
from keyman.keys.sorting import KeyCursor, Sort, SortName, StatusName, VerdictName
from keyman.planes.management.checks import Gateway
from keyman.planes.management.web import marks
from keyman.planes.management.web.forms import Form
from keyman.planes.management.web.outcomes import Outcome
from keyman.planes.management.web.pages import HOME, Visit, is_one, is_partial, see_other
from keyman.planes.management.web.verdicts import Checks
from keyman.providers.catalogue import Catalogue, ServiceInfo, ServiceSlug
from keyman.providers.verdicts import Verdict
from keyman.storage.paging import Page, Slice
from keyman.storage.transactions import Database
from keyman.values import SearchText

FILTER_FROM = 10
"""The list has a search if it has more keys than this. A shorter list needs none."""

EXPIRES_SOON = timedelta(days=14)
"""A key that expires within this time is marked: two weeks are enough to get a new one, and close enough to act."""


@dataclass(frozen=True)
class View:
    """The part of the list that a page shows. Invalid parameters are ignored."""

    service: str = ""
    q: str = ""
    status: str = ""
    check: str = ""
    sort: str = ""
    cursor: str = ""

    @classmethod
    def parse(cls, query: dict[str, str]) -> View:
        kinds = {
            "service": ServiceSlug,
            "q": SearchText,
            "status": StatusName,
            "check": VerdictName,
            "sort": SortName,
            "cursor": KeyCursor,
        }
        return cls(**{name: query[name] for name, kind in kinds.items() if is_one(kind, query.get(name))})

    @classmethod
    def of_query(cls, text: str) -> View:
        return cls.parse(dict(parse_qsl(text)))

    @property
    def is_filtered(self) -> bool:
        return bool(self.service or self.q or self.status or self.check)

    @property
    def order(self) -> Sort:
        return Sort(self.sort) if self.sort else Sort.NEWEST

    @property
    def query(self) -> str:
        """The query that `of_query` reads."""
        return urlencode({name: value for name, value in vars(self).items() if value})

    def url(self, **more: object) -> str:
        return self._address(HOME, more)

    def page_of(self, key_id: KeyId, **more: object) -> str:
        """Return the address of a key's own page, which leads back to this part of the list."""
        return self._address(f"{HOME}/{key_id}", more)

    def _address(self, path: str, more: dict[str, object]) -> str:
        asked = {name: value for name, value in {**vars(self), **more}.items() if value}
        return f"{path}?{urlencode(asked)}" if asked else path


@get("/settings/api-keys", opt=needs(Scope.KEYS_READ), include_in_schema=False)
async def show_list(
    request: AnyRequest,
    visit: Injected[Visit],
    db: Injected[Database],
    caller: Injected[Principal],
    catalogue: Injected[Catalogue],
    settings: Injected[Settings],
    gateway: Injected[Gateway | None],
) -> Response[bytes]:
    query = dict(request.query_params)
    view = View.parse(query)
    first = replace(view, cursor="")
    try:
        page = await _page(db, caller, catalogue, view)
    except InvalidRequest:  # the cursor of another list
        return see_other(first.url(done=query.get("done"), saved=query.get("saved")))
    if view.cursor and not page.items:
        return see_other(
            first.url(done=query.get("done"), saved=query.get("saved"))
        )  # the keys of this page were deleted
    moment = now()
    return visit.show(
        "keys.html",
        keys=page.items,
        older=view.url(cursor=page.cursor) if page.cursor is not None else None,
        first=first.url(),
        view=view,
        place=Place(view),
        total=await _total(db, caller, catalogue, view, page),
        can_filter=view.is_filtered or bool(view.cursor) or len(page.items) > FILTER_FROM,
        services=offered(catalogue, caller),
        names={info.service: info.name for info in catalogue.infos()},
        letters=partial(marks.letters, catalogue),
        choices=await choosing.choices(db, caller, moment),
        left=await left_through(db, caller, (KeyId(key.id) for key in page.items)),
        expires_soon={key.id for key in page.items if _expires_soon(key, moment)},
        usable=usable_services(catalogue, settings, caller),
        checks=Checks.of(gateway, catalogue, caller, visit, query.get("saved", "")),
        outcome=await Outcome.of(db, caller, catalogue, visit, query),
    )


async def _page(db: Database, caller: Principal, catalogue: Catalogue, view: View) -> Page[KeyInfo]:
    """Return the keys that a page shows. Raises InvalidRequest for the cursor of another list."""
    part = Slice(before=KeyCursor.parse(view.cursor) if view.cursor else None)
    asked = _asked(catalogue, view)
    return await listing.list_own(db, caller, part, view.service or None, view.q or None, **asked, sort=view.order)


async def _total(db: Database, caller: Principal, catalogue: Catalogue, view: View, page: Page[KeyInfo]) -> int:
    """Return how many keys the list has on all its pages."""
    if page.cursor is None and not view.cursor:
        return len(page.items)
    return await listing.count_own(db, caller, view.service or None, view.q or None, **_asked(catalogue, view))


class _Asked(TypedDict):
    named: Sequence[str]
    status: Status | None
    verdict: Verdict | None


def _asked(catalogue: Catalogue, view: View) -> _Asked:
    return _Asked(
        named=selecting.services_named(catalogue, view.q),
        status=Status(view.status) if view.status else None,
        verdict=Verdict(view.check) if view.check else None,
    )


def offered(catalogue: Catalogue, caller: Principal | None) -> list[ServiceInfo]:
    """Return the services to choose from: only those that the application may use which has opened the pages."""
    services = caller.portal.services if caller is not None and caller.portal is not None else None
    return [info for info in catalogue.infos() if services is None or info.service in services]


def usable_services(catalogue: Catalogue, settings: Settings, caller: Principal) -> frozenset[str]:
    """Return the services for whose keys the page exists.

    A person whom an application has sent has no token of their own: there it is the application that uses the keys.
    """
    if settings.gateway_public_url is None or caller.portal is not None:
        return frozenset()
    return frozenset(info.service for info in catalogue.infos() if info.forwarded)


def view_behind(request: AnyRequest) -> View:
    """Return the part of the list from which the form was opened."""
    query = dict(request.query_params)
    return View.of_query(query["view"]) if "view" in query else View.parse(query)


@dataclass(frozen=True)
class Place:
    """Where a form about a key was opened, and where it leads back to: a part of the list.

    With `key_id`, it is the page of this key, which leads to that part of the list.
    """

    view: View = View()
    key_id: KeyId | None = None

    @classmethod
    def behind(cls, request: AnyRequest, key_id: int) -> Place:
        """Return the place from which the form for this key was opened."""
        return cls(view_behind(request), KeyId(key_id) if request.query_params.get("on") == "page" else None)

    @classmethod
    def of_form(cls, form: Form, key_id: int) -> Place:
        """Return the place that a form for this key names in its fields."""
        return cls(View.of_query(form.text("view")), KeyId(key_id) if form.text("on") == "page" else None)

    @property
    def region(self) -> str:
        """The element of the page there that htmx replaces."""
        return "#keys" if self.key_id is None else "#key"

    @property
    def path(self) -> str:
        return HOME if self.key_id is None else f"{HOME}/{self.key_id}"

    def url(self, **more: object) -> str:
        return self.view.url(**more) if self.key_id is None else self.view.page_of(self.key_id, **more)

    def row(self, key_id: int) -> str:
        """Return the fragment that leads to the row of a key on the list, or an empty text on the page of a key."""
        return f"#key-{key_id}" if self.key_id is None else ""


def back_to(place: Place, visit: Visit, key_id: int, **more: object) -> Response[bytes]:
    """Redirect to where a form about a key was opened, to the row of this key. htmx keeps the row in view itself."""
    return see_other(place.url(saved=key_id, **more) + ("" if is_partial(visit.exchange) else place.row(key_id)))


def _expires_soon(key: KeyInfo, moment: datetime) -> bool:
    return key.status is not Status.EXPIRED and key.expires_at is not None and key.expires_at - moment <= EXPIRES_SOON
