"""The path below which a proxy shows keyman, such as `/keyman`.

Only this module and the pages know it: routes are found by the rest of a path, and answer with paths of their own. The
edge removes the root path from each request, and adds it to the addresses in the headers of each answer.
"""

from __future__ import annotations

EVERYWHERE = ("/livez", "/readyz", "/problems")
"""What is served without the root path, too: checks of health do not come through the proxy, and the `type` of a
problem does not depend on where keyman is.
"""


class RootPath:
    """A root path without a slash at its end. It is empty if keyman is at the top of its host."""

    def __init__(self, path: str) -> None:
        self._path = path

    def enter(self, path: str) -> str | None:
        """Return the path of the route that is meant, or None for a path that is not below the root path."""
        if not self._path:
            return path
        if path == self._path:
            return "/"
        if path.startswith(f"{self._path}/"):
            return path[len(self._path) :]
        is_everywhere = any(path == known or path.startswith(f"{known}/") for known in EVERYWHERE)
        return path if is_everywhere else None

    def leave(self, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """Return the headers of an answer, with the root path in front of keyman's own paths."""
        return [(name, self._leave(name.lower(), value)) for name, value in headers] if self._path else headers

    def _leave(self, name: bytes, value: bytes) -> bytes:
        root = self._path.encode()
        if name == b"location" and value.startswith(b"/"):
            return root + value
        if name == b"link" and value.startswith(b"</"):
            return b"<" + root + value[1:]
        return value
