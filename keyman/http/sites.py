"""Which page sent a request: the rule against pages of other sites, and CORS for those that an operator names.

A browser sends cookies along with requests that another site's page makes, so such a request must not change anything.
A bearer token is not sent along by itself: a page that sends one knows it, and passes from any site.
"""

from __future__ import annotations

from collections.abc import Mapping

from litestar.utils import normalize_path

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

CROSS_SITE = "The request was sent by a page of another site."

PREFLIGHT = {
    "access-control-allow-methods": "GET, POST, PUT, PATCH, DELETE",
    "access-control-allow-headers": "Authorization, Content-Type, If-Match, Idempotency-Key",
    "access-control-max-age": "600",
}
"""The answer to a preflight, besides the origin. There is no `Access-Control-Allow-Credentials`: no cookie counts."""

EXPOSED = "ETag, Link, Location, Retry-After, X-Request-ID, Idempotent-Replayed, WWW-Authenticate, Keyman-Total-Count"
"""The headers that a page of another origin may read."""


EXEMPT = "/auth/oidc/backchannel-logout"
"""The one path to which an unsafe request may come from anywhere: what it holds is signed by the identity provider."""


def is_foreign(headers: Mapping[str, str], public_origin: str | None) -> bool:
    """Return True for a request that a browser sent for a page of another site.

    Browsers send `Sec-Fetch-Site`, older ones `Origin`. A client that sends neither is not a browser. `Origin` may be
    the public URL, because a proxy can rewrite the host.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    if origin is None:
        return False
    host = origin.lower().partition("://")[2]
    is_host_asked = host != "" and host == headers.get("host", "").lower()
    return not (is_host_asked or origin.lower() == public_origin)


class Cors:
    """Cross-origin requests to `/api/*` from `origins`, with a bearer token.

    `excluded` are routes without CORS: paths, or a method and a path such as `DELETE /api/auth/me`.
    """

    def __init__(self, origins: frozenset[str] = frozenset(), excluded: frozenset[str] = frozenset()) -> None:
        self._origins = origins
        self._excluded = excluded
        self.is_off = not origins

    def is_preflight(self, method: str, path: str, headers: Mapping[str, str]) -> bool:
        """Return True for a preflight that is answered here, without authentication."""
        asked = headers.get("access-control-request-method")
        return method == "OPTIONS" and asked is not None and self._allows(asked, path, headers)

    def headers(self, method: str, path: str, headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
        """Return the headers to add to the answer to a request."""
        if self.is_off or not _is_api(path):
            return []
        added = [(b"vary", b"Origin")]  # the answer differs by it, also where it is not allowed
        if self._allows(headers.get("access-control-request-method", method), path, headers):
            added.append((b"access-control-allow-origin", headers["origin"].encode("latin-1")))
            added.append((b"access-control-expose-headers", EXPOSED.encode()))
        return added

    def _allows(self, method: str, path: str, headers: Mapping[str, str]) -> bool:
        route = normalize_path(path)  # Litestar finds the route of a path with doubled slashes, too
        is_excluded = route in self._excluded or f"{method} {route}" in self._excluded
        return _is_api(path) and not is_excluded and headers.get("origin") in self._origins


def _is_api(path: str) -> bool:
    return normalize_path(path).startswith("/api/")
