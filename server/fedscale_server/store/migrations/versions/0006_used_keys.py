"""The keys with which tickets were used."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("ticket", sa.Column("used_key", sa.String(), nullable=True))
