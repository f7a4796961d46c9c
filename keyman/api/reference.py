"""`/problems/*`, `/docs` and the files they need: pages for readers, all of them public and from this host alone."""

from __future__ import annotations

from pathlib import Path

from litestar import MediaType, Response, get
from litestar.params import FromPath
from litestar.static_files import create_static_files_router

from keyman import problems
from keyman.api.authentication import PUBLIC
from keyman.api.common import Injected
from keyman.errors import NotFound

STATIC_DIRECTORY = Path(__file__).parents[1] / "static"

PAGE_POLICY = "default-src 'none'; style-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"

DOCS_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
"""For the API reference alone: its components set styles inline. Nothing is loaded from another host."""


def _page(html: str, policy: str = PAGE_POLICY) -> Response[str]:
    return Response(html, media_type=MediaType.HTML, headers={"Content-Security-Policy": policy})


@get("/problems", opt=PUBLIC, include_in_schema=False, sync_to_thread=False)
def problem_index() -> Response[str]:
    return _page(problems.index())


@get("/problems/{slug:str}", opt=PUBLIC, include_in_schema=False, sync_to_thread=False)
def problem_page(slug: FromPath[str]) -> Response[str]:
    kind = problems.KINDS.get(slug)
    if kind is None:
        raise NotFound("There is no problem of this type; /problems lists them.")
    return _page(problems.page(kind))


@get("/docs", opt=PUBLIC, include_in_schema=False, sync_to_thread=False)
def reference() -> Response[str]:
    return _page((STATIC_DIRECTORY / "docs.html").read_text(), DOCS_POLICY)


@get("/docs/openapi.json", opt=PUBLIC, include_in_schema=False, sync_to_thread=False)
def openapi_document(openapi: Injected[bytes]) -> Response[bytes]:
    return Response(openapi, media_type="application/json")


static_files = create_static_files_router(
    "/static", directories=[STATIC_DIRECTORY], opt=PUBLIC, include_in_schema=False
)
