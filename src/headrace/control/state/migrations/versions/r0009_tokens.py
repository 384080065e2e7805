"""Tables of the tokens of OpenAI's API."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "token_usage",
        sa.Column("day", sa.Text, primary_key=True),
        sa.Column("endpoint", sa.Text, primary_key=True),
        sa.Column("version", sa.Text, primary_key=True),
        sa.Column("credential", sa.Text, primary_key=True),
        sa.Column("input", sa.BigInteger, nullable=False),
        sa.Column("cached", sa.BigInteger, nullable=False),
        sa.Column("output", sa.BigInteger, nullable=False),
        sa.Column("reasoning", sa.BigInteger, nullable=False),
        sa.Column("unknown", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "token_readings",
        sa.Column("gateway", sa.Text, primary_key=True),
        sa.Column("record", sa.Text, nullable=False),
    )
