"""Alembic environment: migrations run on the connection that they are given.

Alembic runs this file; the caller has begun the transaction and ends it.
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
