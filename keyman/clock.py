"""The current time in UTC. It is one function, so that a test can replace it."""

from __future__ import annotations

from datetime import UTC, datetime

from keyman.extras import require_server

require_server()


def now() -> datetime:
    """Return the current time, with the time zone UTC."""
    return datetime.now(UTC)
