"""A key has settings, and the audit entry that names its current value has a hash of them.

Older keys have no settings. Older entries have no hash, so their own hashes do not change; the resolver then expects a
key without settings.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("settings", sa.Text(), nullable=False, server_default="{}"))
    op.add_column("audit_log", sa.Column("settings_hash", sa.String(length=64), nullable=True))
