"""A visit that is back from the identity provider remembers whom it proved, while the person makes a choice."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    for name, length in (("subject", 255), ("email", 254), ("name", 255), ("provider_session", 255)):
        op.add_column("provider_visits", sa.Column(name, sa.String(length)))
