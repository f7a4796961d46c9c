"""`/problems/*` and `/docs`: public pages, which load nothing from other hosts."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from functools import cache

from litestar import Response, get
from litestar.params import FromPath

from keyman.errors import NotFound, Problem
from keyman.http import problems
from keyman.http.guards import PUBLIC, identify
from keyman.http.requests import AnyRequest, Injected
from keyman.planes.management.web.operations import Reference, read
from keyman.planes.management.web.pages import Visit


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
async def reference(request: AnyRequest, visit: Injected[Visit]) -> Response[bytes]:
    """Show the calls of the API. Everybody may read them, and those who are signed in can try them."""
    with suppress(Problem):  # nobody, or nobody can tell
        await identify(request)
    reader = replace(visit, caller=visit.exchange.principal)
    return reader.show("reference.html", reference=_reference(request.app.state["openapi"]()))


@cache
def _reference(document: bytes) -> Reference:
    """Read the document, which does not change while the process runs. In tests a process has several."""
    return read(document)
