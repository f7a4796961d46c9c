"""Alembic runs this; the connection comes from `keyman.migrations`, the transaction with it."""

from alembic import context

from keyman.migrations import tables

context.configure(connection=context.config.attributes["connection"], target_metadata=tables(), transactional_ddl=True)
context.run_migrations()
