"""The ends of the nodes' privacy ledgers, as they came with answers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("member", sa.Column("ledger", sa.String(), nullable=True))
