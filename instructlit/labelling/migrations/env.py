"""Runs the migrations on the engine that it is given. Alembic executes this file; nothing imports it."""

from alembic import context

from instructlit.labelling.schema import Base

with context.config.attributes["engine"].connect() as connection:
    # SQLite cannot alter a table in place; batch mode copies it
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=connection.dialect.name == "sqlite",
        transactional_ddl=True,
    )
    with context.begin_transaction():
        context.run_migrations()
