"""One request and its answer, as every layer of a plane sees them, and the types of ASGI."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from keyman.errors import Forbidden, Problem
from keyman.http import problems
from keyman.http.backlog import Turn
from keyman.http.credentials import Claimed
from keyman.http.problems import Answer
from keyman.http.sites import CROSS_SITE, SAFE_METHODS
from keyman.identity.principals import Principal

# The types of ASGI. Those of Litestar are narrower than what a server may send.
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

SCOPE_KEY = "keyman.exchange"
"""The key of a request's Exchange in its ASGI scope."""


@dataclass(slots=True)
class Exchange:
    """One request and its answer, for the log line and for the handlers.

    `target` and `headers` are those of the request: the path below the root path, and names in lower case. `page`
    renders a problem as a page; it is None for a client that reads JSON. `is_foreign` says that a page of another site
    sent the request, and `is_excused` that a bearer token authenticated it all the same. `claimed` is what its
    Authorization header claims to be. `is_draining` is True in a process that will stop soon (`http/worker.py`).
    `principal` is the caller, once it is known: the page about a problem is for them.
    `is_passed_on` says that the answer is that of another server, so that its status is no error of this plane.
    `noted` is what the log line says in addition. `turn` is its place among the requests that wait in this process;
    it ends when keyman's own work on the request is done, and only others are waited for. `body` is the whole body,
    once it was read, and `is_confirmed` says that the caller was checked after that.
    """

    request_id: str
    address: str | None
    method: str
    target: str  # path and query
    headers: Mapping[str, str] = field(repr=False)
    page: ProblemPage | None = None
    is_foreign: bool = False
    claimed: Claimed = field(default=Claimed(), repr=False)
    is_excused: bool = False
    is_draining: bool = False
    user_id: int | None = None
    application_id: int | None = None
    principal: Principal | None = field(default=None, repr=False)
    status: int = 500
    started: bool = False
    is_passed_on: bool = False
    noted: dict[str, object] = field(default_factory=dict)
    turn: Turn = field(default_factory=Turn, repr=False)
    body: bytes | None = field(default=None, repr=False)
    is_confirmed: bool = False

    @property
    def caller(self) -> dict[str, int | None]:
        """The caller, for the log: an application, a user, or `{"user_id": None}`."""
        if self.application_id is not None:
            return {"application_id": self.application_id}
        return {"user_id": self.user_id}

    @property
    def counts_cookies(self) -> bool:
        """False for a script of another origin. A link on another site leads here with its user's session."""
        return not (self.is_foreign and "origin" in self.headers)

    @property
    def is_cross_site(self) -> bool:
        """True for a request that must change nothing: unsafe, sent by a page of another site, without a token."""
        return self.is_foreign and self.method not in SAFE_METHODS and not self.is_excused

    def require_same_site(self) -> None:
        """Raise Forbidden for a request that is_cross_site."""
        if self.is_cross_site:
            raise Forbidden(CROSS_SITE)

    def render(self, problem: Problem) -> Answer:
        """Return the answer for this problem, as JSON or as a page."""
        return problems.answer(problem, self.request_id) if self.page is None else self.page(problem, self)


ProblemPage = Callable[[Problem, Exchange], Answer]
"""Renders a problem as a page, for planes that have pages."""


def exchange_of(scope: Mapping[str, object]) -> Exchange:
    """Return the Exchange that the edge put into an ASGI scope."""
    found = scope[SCOPE_KEY]
    assert isinstance(found, Exchange)
    return found
