"""Where a browser leaves for the identity provider and comes back: its cookies, and the answers to it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, unquote, urlencode

from litestar import Response
from litestar.datastructures import Cookie

from keyman.config.settings import Settings
from keyman.errors import NotFound, Problem
from keyman.http.cookies import cookie_values, own_cookie
from keyman.http.exchange import Exchange
from keyman.http.guards import session_cookies
from keyman.http.problems import KINDS
from keyman.http.requests import AnyRequest
from keyman.http.root_path import RootPath
from keyman.identity import visits
from keyman.identity.login import SignedIn
from keyman.identity.oidc import Choice
from keyman.identity.provider import Provider
from keyman.identity.visits import Begun
from keyman.planes.management.web.pages import HOME, Pages, Visit, as_response, see_other
from keyman.planes.management.web.sign_in import is_signed_in

START = "/auth/oidc/start"
CALLBACK = "/auth/oidc/callback"
CHOICE = "/auth/oidc/choice"

FINISHED = "done."
"""How the cookie of a finished visit begins. The page where it led follows. No other value has a dot."""

MAX_PAGE = 512
"""The characters of a page in such a cookie. A longer one is not worth a header."""

ABSENT = "Sign-in with a provider is not set up here."


@dataclass(frozen=True)
class Desk:
    """Where a browser leaves for the provider and comes back: one request, its cookies, and the answers to it."""

    request: AnyRequest
    visit: Visit
    pages: Pages
    provider: Provider
    settings: Settings

    @classmethod
    def of(cls, request: AnyRequest, visit: Visit, pages: Pages) -> Desk:
        """Raises NotFound if no provider is set up."""
        provider: Provider | None = request.app.state["provider"]
        if provider is None:
            raise NotFound(ABSENT)
        return cls(request, visit, pages, provider, request.app.state["settings"])

    @property
    def exchange(self) -> Exchange:
        return self.visit.exchange

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The parameters of the query. Undecodable bytes become a character that no parameter has."""
        return parse_qsl(self.exchange.target.partition("?")[2], keep_blank_values=True)

    @property
    def query(self) -> dict[str, str]:
        return dict(self.pairs)

    def choice(self, state: str) -> Choice:
        return Choice(state, self.cookie_of(state))

    def cookie_of(self, state: str) -> str:
        """Return the cookie of the visit with this state, or an empty text."""
        found = cookie_values(self.exchange.headers.get("cookie", ""), self._name(state))
        return found[0] if len(found) == 1 else ""

    def new_cookies(self, begun: Begun) -> list[Cookie]:
        """Return the cookie of a new visit, and end those of the oldest ones if there are too many."""
        lifetime = int(visits.LIFETIME.total_seconds())
        names = list(self._visits())  # the oldest first (RFC 6265, 5.4)
        excess = names[: max(0, len(names) - visits.MAX_COOKIES + 1)]
        new = self._cookie(self._name(begun.state), begun.cookie.reveal(), lifetime)
        return [new, *(self._cookie(name, "", 0) for name in excess)]

    def enter(self, outcome: SignedIn | Begun, next_page: str, state: str) -> Response[bytes]:
        """Go on to the next page with the new session, or to the choice. The visit `state` has ended."""
        if isinstance(outcome, Begun):
            ended = self.ended_cookie(state)
            return see_other(f"{CHOICE}?{urlencode({'visit': outcome.state})}", [*self.new_cookies(outcome), ended])
        finished = self.finished_cookie(state, next_page)
        return see_other(next_page, [*session_cookies(outcome.cookie, self.settings), finished])

    def ended_cookie(self, state: str) -> Cookie:
        """Return the cookie that removes that of the visit `state`."""
        return self._cookie(self._name(state), "", 0)

    def finished_cookie(self, state: str, next_page: str) -> Cookie:
        """Return the cookie with which this browser, if it comes back to the visit `state`, gets to `next_page` again.

        It replaces the one that proves the visit. Browsers limit a cookie, and keyman all headers of a request.
        """
        value = quote(next_page, safe="")
        page = value if len(value) <= MAX_PAGE else quote(HOME, safe="")
        return self._cookie(self._name(state), f"{FINISHED}{page}", int(visits.LIFETIME.total_seconds()))

    async def _next_of_finished(self, state: str) -> str | None:
        """Return the page to which the visit `state` has led in this browser, if its user is still signed in."""
        before, mark, page = (self.cookie_of(state) if state else "").partition(FINISHED)
        if before or not mark or not await is_signed_in(self.request):
            return None
        return next_of(unquote(page), self.settings)

    async def fault(self, problem: Problem, again: str, state: str = "", *, ends: bool = True) -> Response[bytes]:
        """Return a page that says what went wrong, with "Try again", which leads to the page `again`. A client that
        reads JSON gets the problem.

        If `ends` is set, the cookie of the visit `state` ends. But if this browser has finished that visit, and its
        user has only come back to it (with the Back button, say), they get to the page where it led.
        """
        if self.exchange.page is None:
            raise problem
        if (next_page := await self._next_of_finished(state)) is not None:
            return see_other(next_page)
        context = {"problem": problem, "again": again}
        answer = self.pages.make(self.exchange, "provider_fault.html", refused=problem, context=context)
        response = as_response(answer._replace(status=KINDS[problem.slug].status))
        if ends and state and self.cookie_of(state):
            response.cookies.append(self.ended_cookie(state))
        return response

    def _visits(self) -> Iterable[str]:
        pattern = re.compile(rf"{re.escape(self._prefix)}_{visits.COOKIE}_[0-9a-f]{{16}}")
        for part in self.exchange.headers.get("cookie", "").split(";"):
            name = part.partition("=")[0].strip(" \t")
            if pattern.fullmatch(name):
                yield name

    @property
    def _prefix(self) -> str:
        """The beginning of the cookies' names: that of the session, with `__Host-` where a browser accepts it."""
        return self.settings.session_cookie

    def _name(self, state: str) -> str:
        return f"{self._prefix}{visits.cookie_suffix(state)}"

    def _cookie(self, name: str, value: str, max_age: int) -> Cookie:
        return own_cookie(self.settings, name, value, max_age)  # Lax: the provider's site leads back here


def start_of(next_page: str) -> str:
    """Return the address at which a sign-in starts that leads to `next_page`."""
    return f"{START}?{urlencode({'next': next_page})}"


_NEXT = re.compile(r"(?=/)((?!//|\\|/(?:\.|%2[eE]){1,2}(?:[/?#]|\Z))[!-~])+")


def next_of(url: str, settings: Settings) -> str:
    """Return the page to show after a sign-in: `url` if it is a path of keyman's, else HOME.

    It begins with one `/` and has no backslash, no second `/` and no `..`, so it leads to no other host and to no other
    application on this one. It may have the root path, as an address in the browser has.
    """
    path, mark, rest = url.partition("?")
    own = f"{RootPath(settings.root_path).enter(path) or path}{mark}{rest}"
    return own if _NEXT.fullmatch(own) else HOME
