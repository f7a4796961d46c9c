"""Entries put straight into the trail: of any time, in a chain of their own, which no test verifies."""

from __future__ import annotations

import itertools
from typing import Any

from keyman.audit.entries import Action, Actor
from keyman.clock import now

_CHAIN = 9_000
"""Far from those that a migration makes."""

_SEQUENCE = itertools.count(1)


def entry(action: Action, **values: Any) -> dict[str, Any]:
    """A row of `audit_log`, of an application and of this moment where it does not say otherwise."""
    unsaid = {"at": now(), "actor": Actor.APPLICATION, "actor_id": 1}
    return {**unsaid, "action": action, "chain": _CHAIN, "sequence": next(_SEQUENCE), "hash": bytes(32), **values}
