"""`/problems/*`, `/docs` and the files they need: pages for readers, all of them public and from this host alone."""

from __future__ import annotations

from pathlib import Path

from litestar import MediaType, Response, get
from litestar.params import FromPath
from litestar.response import File

from keyman import problems
from keyman.authentication import PUBLIC
from keyman.errors import NotFound
from keyman.requests import Injected

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


@get("/static/{file:path}", opt=PUBLIC, include_in_schema=False, sync_to_thread=False)
def static_file(file: FromPath[Path]) -> File:
    """One of the files that were there at the start; a path is never looked for on the disk."""
    found = _STATIC_FILES.get(file.as_posix().lstrip("/"))
    if found is None:
        raise NotFound("There is nothing at this address.")
    return File(found, content_disposition_type="inline", media_type=_MEDIA_TYPES[found.suffix])


_MEDIA_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
_STATIC_FILES = {
    path.relative_to(STATIC_DIRECTORY).as_posix(): path
    for path in STATIC_DIRECTORY.rglob("*")
    if path.suffix in _MEDIA_TYPES
}
