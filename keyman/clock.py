"""The time, in UTC. One function, so that a test can move it."""

from __future__ import annotations

from datetime import UTC, datetime

from keyman.extras import require_server

require_server()


def now() -> datetime:
    """Return the time with its zone, which is UTC."""
    return datetime.now(UTC)
