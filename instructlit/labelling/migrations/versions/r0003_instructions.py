"""Assignments record which version of the instructions their labeler saw."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Adds the column; it is unknown for earlier labels."""
    op.add_column("assignment", sa.Column("instructions", sa.Integer(), nullable=True))
