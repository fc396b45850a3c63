"""Revisions and events cannot be changed or deleted; revisions record where redo leads and which save wrote them."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

TABLES = ("revision", "event")
_SQLITE = """
CREATE TRIGGER {table}_no_{what} BEFORE {what} ON {table}
BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END
"""
_POSTGRESQL_FUNCTION = """
CREATE FUNCTION instructlit_append_only() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END $$
"""
_POSTGRESQL = """
CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table}
FOR EACH STATEMENT EXECUTE FUNCTION instructlit_append_only()
"""


def upgrade() -> None:
    """Adds the columns, then the triggers."""
    op.add_column("revision", sa.Column("redo", sa.Integer(), nullable=True))
    op.add_column("revision", sa.Column("nonce", sa.String(length=64), nullable=True))
    if op.get_bind().dialect.name == "sqlite":
        for table in TABLES:
            for what in ("update", "delete"):
                op.execute(_SQLITE.format(table=table, what=what))
        return
    op.execute(_POSTGRESQL_FUNCTION)
    for table in TABLES:
        op.execute(_POSTGRESQL.format(table=table))
