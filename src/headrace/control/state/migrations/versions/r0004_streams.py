"""Column of streams with their workers' settings."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the column; earlier schemas have no streams."""
    column = sa.Column("streams", sa.Text, nullable=False, server_default="[]")
    op.add_column("state", column)
