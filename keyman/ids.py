"""The ids of rows. A type for each, so that the id of one thing is never passed for the id of another."""

from __future__ import annotations

from keyman.extras import require_server

require_server()

MAX_ID = 2**63 - 1
"""The largest id that a column can hold; a larger one in a request is an id that does not exist."""
