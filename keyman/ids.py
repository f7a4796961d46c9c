"""The ids of rows. Each kind has its own type, so that an id is not used for another kind by mistake."""

from __future__ import annotations

from keyman.extras import require_server

require_server()

MAX_ID = 2**63 - 1
"""The largest id that a column can hold. A larger id in a request does not exist."""
