"""The ids of rows. Each kind has its own type, so that an id is not used for another kind by mistake."""

from __future__ import annotations

from typing import NewType

from keyman.extras import require_server

require_server()

MAX_ID = 2**63 - 1
"""The largest id that a column can store. No row has a larger one."""

OwnerId = NewType("OwnerId", int)
UserId = NewType("UserId", int)
"""Each user is an owner with the same id: see `owner_of`."""

KeyId = NewType("KeyId", int)
SessionId = NewType("SessionId", int)
TokenId = NewType("TokenId", int)
ApplicationId = NewType("ApplicationId", int)
ApplicationTokenId = NewType("ApplicationTokenId", int)


def owner_of(user_id: UserId) -> OwnerId:
    """Return the owner id of a user. It is the same number."""
    return OwnerId(user_id)
