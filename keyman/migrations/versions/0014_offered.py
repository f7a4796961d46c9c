"""A portal link and its session know the services of the application, which the pages then offer."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    for table in ("portal_links", "sessions"):
        op.add_column(table, sa.Column("services", sa.Text))
