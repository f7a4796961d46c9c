"""`/problems/*` and `/docs`: public pages, which load nothing from other hosts."""

from __future__ import annotations

from litestar import Response, get
from litestar.params import FromPath

from keyman.errors import NotFound
from keyman.http import problems
from keyman.http.guards import PUBLIC
from keyman.http.requests import Injected
from keyman.planes.management.web.pages import Visit

DOCS_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
"""The Content-Security-Policy of the API reference. Its components set inline styles; no other host is used."""


@get("/problems", opt=PUBLIC, include_in_schema=False)
async def problem_index(visit: Injected[Visit]) -> Response[bytes]:
    return visit.show("problem_index.html", kinds=problems.KINDS.values())


@get("/problems/{slug:str}", opt=PUBLIC, include_in_schema=False)
async def problem_page(slug: FromPath[str], visit: Injected[Visit]) -> Response[bytes]:
    kind = problems.KINDS.get(slug)
    if kind is None:
        raise NotFound("There is no problem of this type; /problems lists them.")
    return visit.show("problem_kind.html", kind=kind)


@get("/docs", opt=PUBLIC, include_in_schema=False)
async def reference(visit: Injected[Visit]) -> Response[bytes]:
    page = visit.show("reference.html")
    page.headers |= {"content-security-policy": DOCS_POLICY, "content-language": "en"}
    return page
