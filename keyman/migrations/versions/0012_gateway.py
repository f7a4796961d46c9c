"""The gateway proves that it can write, as the other planes do."""

from __future__ import annotations

from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.execute("INSERT INTO probes (plane) VALUES ('gateway')")
