"""Alembic runs this module. The connection and the transaction come from `keyman.migrations`."""

from alembic import context

from keyman.migrations import tables

context.configure(connection=context.config.attributes["connection"], target_metadata=tables(), transactional_ddl=True)
context.run_migrations()
