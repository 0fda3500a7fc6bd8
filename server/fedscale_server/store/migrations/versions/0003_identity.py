"""Identity keys of nodes, for secure aggregation."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("member", sa.Column("identity", sa.String(), nullable=True))
