"""Column of the spec file that was applied last."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    op.add_column("state", sa.Column("file", sa.Text, nullable=False, server_default="{}"))
