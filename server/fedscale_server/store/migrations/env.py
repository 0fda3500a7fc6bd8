"""Runs the migrations on the connection, and in the transaction, of whoever asks for them."""

from __future__ import annotations

from alembic import context

from fedscale_server.store.tables import Table

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Table.metadata,
    render_as_batch=True,  # SQLite cannot alter most things in place
    transactional_ddl=True,  # on SQLite too, since transactions begin when we say so
)
with context.begin_transaction():
    context.run_migrations()
