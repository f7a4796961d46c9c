"""Static files: all of them are served, nothing else is, and browsers cache them for a year."""

from __future__ import annotations

import hashlib

import pytest

from keyman.planes.management.web.static import DIRECTORY, KEEP, static_url
from tests.planes.management.api.harness import ApiPlane

pytestmark = pytest.mark.anyio


async def test_static_files_are_what_lies_in_the_package(sqlite_plane: ApiPlane) -> None:
    files = [path for path in DIRECTORY.rglob("*") if path.suffix in (".css", ".js", ".svg")]
    assert len(files) > 4
    for path in files:
        for encoding in ("identity", "gzip"):
            url = static_url(path.relative_to(DIRECTORY).as_posix())
            answer = await sqlite_plane.client().get(url, headers={"Accept-Encoding": encoding})
            assert answer.status_code == 200
            assert answer.content == path.read_bytes()
            assert answer.headers.get("content-encoding", "identity") == encoding
            assert answer.headers["cache-control"] == KEEP == "public, max-age=31536000, immutable"


async def test_a_files_address_changes_with_its_content_and_nothing_else_is_there(sqlite_plane: ApiPlane) -> None:
    digest = hashlib.sha256((DIRECTORY / "keyman.css").read_bytes()).hexdigest()
    assert static_url("keyman.css") == f"/static/keyman.{digest[:12]}.css"
    for path in ("/static/keyman.css", "/static/keyman.0123456789ab.css"):
        answer = await sqlite_plane.client().get(path)
        assert answer.status_code == 404
        assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "path",
    [
        b"/static",
        b"/static/",
        b"/static/htmx",
        b"/static/nothing.css",
        b"/static/../app.py",
        b"/static/%2e%2e/app.py",
        b"/static/..%2fapp.py",
        b"/static/htmx/../../app.py",
        b"/static//etc/passwd",
        b"/static/%2fetc%2fpasswd",
        b"/static/..%5capp.py",
        b"/static/%00",
        b"/static/keyman.css%00",
        b"/static/" + b"a" * 300,
        b"/static/" + b"a/" * 3000,
        b"/static/%ff%fe",
        b"/static/\xff",
        b"/static/%ed%a0%80",
    ],
)
async def test_whatever_else_is_asked_for_below_static_is_not_found(sqlite_plane: ApiPlane, path: bytes) -> None:
    for method in ("GET", "HEAD"):
        answer = await sqlite_plane.wire(method, path)
        assert answer.status_code == 404
