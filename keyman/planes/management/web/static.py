"""The static files of the pages. The name of each changes with its content, so that browsers can cache it.

The list of files is read once, when the process starts. A path from a request is never looked up on the disk.
"""

from __future__ import annotations

import gzip
import hashlib
from functools import cache
from pathlib import Path, PurePosixPath

from litestar import Response, get
from litestar.params import FromPath

from keyman.errors import NotFound
from keyman.http.guards import PUBLIC
from keyman.http.requests import AnyRequest

DIRECTORY = Path(__file__).parent / "static"

KEEP = "public, max-age=31536000, immutable"
"""One year. Caches ignore a longer time, although RFC 9111 sets no limit."""

_MEDIA_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}


def static_url(name: str) -> str:
    """Return the address of a file in `static/`. Raises KeyError for a file that does not exist."""
    return f"/static/{_ADDRESSES[name]}"


@get("/static/{file:path}", opt=PUBLIC, include_in_schema=False, sync_to_thread=True)
def static_file(file: FromPath[Path], request: AnyRequest) -> Response[bytes]:
    """Return a file by its current name. Older names get a 404: no current page uses them."""
    path = _FILES.get(file.as_posix().lstrip("/"))
    if path is None:
        raise NotFound("There is nothing at this address.")
    headers = {"Cache-Control": KEEP, "Vary": "Accept-Encoding"}
    content = _content(path)
    # These files contain no user data and no secret, so compression cannot leak anything.
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers["Content-Encoding"] = "gzip"
        content = _compressed(path)
    return Response(content, media_type=_MEDIA_TYPES[path.suffix], headers=headers)


@cache
def _content(path: Path) -> bytes:
    return path.read_bytes()


@cache
def _compressed(path: Path) -> bytes:
    return gzip.compress(_content(path), mtime=0)


def _address(path: Path) -> str:
    """Return a name such as `a/b.css`, with the first characters of its SHA-256 before the extension."""
    name = PurePosixPath(path.relative_to(DIRECTORY).as_posix())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return str(name.with_suffix(f".{digest}{name.suffix}"))


_PATHS = [path for path in sorted(DIRECTORY.rglob("*")) if path.suffix in _MEDIA_TYPES]
_ADDRESSES = {path.relative_to(DIRECTORY).as_posix(): _address(path) for path in _PATHS}
_FILES = {address: DIRECTORY / name for name, address in _ADDRESSES.items()}
