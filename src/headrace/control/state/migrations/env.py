"""Alembic environment that runs migrations on the caller's connection.

Alembic runs this file; the caller begins and ends the transaction.
"""

from alembic import context

from headrace.control.state.schema import VERSION_TABLE
from headrace.control.state.tables import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    version_table=VERSION_TABLE,
)
context.run_migrations()
