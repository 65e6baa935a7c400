"""The history of the tables, in Alembic revisions."""
