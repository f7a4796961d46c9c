"""Retries: how often a failed call is sent again and how long the caller waits, for the client and the Vault adapter.

Which failures are worth a retry is not decided here, because keyman and Vault use status codes differently: see
`RETRIED_STATUSES` in `keyman.vault.adapter` and `Attempts` in `keyman.client.exchange`. Other random waits in keyman
(a lease's renewal, SQLite's lock, housekeeping) follow no failed call, so they do not use this module.
"""

from __future__ import annotations

import random
from time import monotonic

ATTEMPTS = 4
"""The maximum number of attempts inside the deadline. A leader election ends in that time; a call that still fails
is an outage that the caller should know about.
"""

FIRST_PAUSE = 0.1
"""Seconds before the second attempt, doubled for each further one, with jitter; 0.7 s in all on average."""

MAX_RETRY_AFTER_DIGITS = 5
"""The maximum length of `Retry-After`. 99,999 seconds are more than a day, longer than any deadline here."""


def parse_retry_after(header: str | None) -> int | None:
    """Return the seconds that a `Retry-After` header asks for.

    None if there is no header, or if it is not a number of at most 5 ASCII digits. RFC 9110 (10.2.3) also allows a
    date, which depends on two clocks: it counts as no header.
    """
    if header and header.isascii() and header.isdigit() and len(header) <= MAX_RETRY_AFTER_DIGITS:
        return int(header)
    return None


def pause_after(
    failed: int, *, deadline: float, retry_after: int | None = None, attempts: int = ATTEMPTS
) -> float | None:
    """Return the seconds to wait after `failed` attempts, or None if the last failure stands.

    It stands if no attempt is left, or if the pause does not end before `deadline`, a moment of `time.monotonic`:
    to wait that long would turn a clear reason into a timeout. `retry_after`, in seconds, can make the pause longer.
    """
    if failed >= attempts:
        return None
    # Jitter: clients that failed together do not come back together.
    pause = FIRST_PAUSE * 2 ** (failed - 1) * random.uniform(0.5, 1.5)  # noqa: S311  # spreads load only
    pause = max(pause, retry_after or 0)
    return pause if monotonic() + pause < deadline else None
