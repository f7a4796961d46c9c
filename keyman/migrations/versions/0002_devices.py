"""Sessions have the name of the device that opened them, for the page that lists them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("sessions", sa.Column("device", sa.String(100), nullable=True))
