"""Tables of a rollout's callers: counted callers, their counts, and read positions."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "rollout_units",
        sa.Column("rollout", sa.Text, nullable=False),
        sa.Column("unit", sa.Text, nullable=False),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("rollout", "unit"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "unit_tallies",
        sa.Column("rollout", sa.Text, nullable=False),
        sa.Column("tally", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("rollout"),
    )
