"""A session remembers when its user last proved at the identity provider that they are there."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.add_column("sessions", sa.Column("present_at", sa.DateTime(timezone=True)))
