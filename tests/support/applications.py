"""Applications of Litestar for the many management planes of a test process.

For each application Litestar works out the signatures of all routes again, which takes a quarter of a second of a
processor and has the same outcome each time. The planes of `plane_at` share the routes of the first one.
What a plane has of its own is the state of its application: that is all that keyman makes from settings. Other planes,
such as those of `tests/http/test_direct.py` and of every process that a test starts, are built as always.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from litestar import Litestar
from litestar.events import SimpleEventEmitter

from keyman.planes.management import app as management

_NEW_EACH_TIME = {"route_handlers", "state", "type_decoders"}
"""Arguments that are other objects for each application. All but the state are made of the same parts each time."""


class _Applications:
    """Makes the first application as Litestar does, and others with the same arguments as copies of it."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[Litestar, dict[str, Any]]] = {}
        """The first application and its arguments, by the number of its routes: one can have /metrics beside them."""

    def __call__(self, **arguments: Any) -> Litestar:
        constant = {name: value for name, value in arguments.items() if name not in _NEW_EACH_TIME}
        count = len(arguments["route_handlers"])
        if count not in self._made:
            self._made[count] = Litestar(**arguments), constant
            return self._made[count][0]
        first, others = self._made[count]
        assert constant == others, "more than the state depends on settings: then routes cannot be shared"
        return _copied(first, arguments["state"])


def _copied(first: Litestar, state: Any) -> Litestar:
    """Return an application with the routes of the first one and a state of its own."""
    app = copy.copy(first)
    app.state = state
    app.event_emitter = SimpleEventEmitter(listeners=[])
    app.asgi_router = copy.copy(first.asgi_router)
    app.asgi_router.app = app
    app.asgi_handler = app._create_asgi_handler()
    return app


_SHARED = _Applications()


@contextmanager
def routes_shared() -> Iterator[None]:
    """Let a management plane that is created in the block have the routes of those before it."""
    with mock.patch.object(management, "Litestar", _SHARED):
        yield
