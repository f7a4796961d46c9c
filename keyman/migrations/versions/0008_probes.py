"""Each plane proves that it can write by updating its row of `probes`."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.create_table(
        "probes",
        sa.Column("plane", sa.String(length=16), nullable=False),
        sa.Column("proved_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("plane", name="pk_probes"),
    )
    op.execute("INSERT INTO probes (plane) VALUES ('management'), ('resolver')")
