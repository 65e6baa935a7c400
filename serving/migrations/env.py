"""Alembic's entry: runs the revisions over the connection that `serving.database.migrate` hands in."""

from alembic import context

from serving.tables import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, render_as_batch=connection.dialect.name == "sqlite")
with context.begin_transaction():
    context.run_migrations()
