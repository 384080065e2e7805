"""First schema: desired state with its history, rollouts, events, rewards."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create every table, and the rows that are updated but never inserted."""
    _make_desired()
    _make_rollouts()
    _make_rewards()
    state = sa.table(
        "state", *(sa.column(c) for c in ("id", "generation", "at", "spec", "pools", "endpoints"))
    )
    op.bulk_insert(
        state,
        [{"id": 1, "generation": 0, "at": 0.0, "spec": "{}", "pools": "[]", "endpoints": "[]"}],
    )
    counters = sa.table("counters", sa.column("name"), sa.column("value"))
    op.bulk_insert(counters, [{"name": "events", "value": 0}, {"name": "rollouts", "value": 0}])


def _make_desired() -> None:
    op.create_table(
        "state",
        sa.Column("id", sa.Integer, sa.CheckConstraint("id = 1", name="one_state"), nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("pools", sa.Text, nullable=False),
        sa.Column("endpoints", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "generations",
        sa.Column("endpoint", sa.Text, nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("document", sa.Text),
        sa.Column("pinned", sa.Text),
        sa.PrimaryKeyConstraint("endpoint", "generation"),
    )
    op.create_table(
        "endpoints",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("document", sa.Text),
        sa.Column("pinned", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("name"),
        sa.ForeignKeyConstraint(
            ["name", "generation"],
            ["generations.endpoint", "generations.generation"],
            name="in_history",
        ),
    )


def _make_rollouts() -> None:
    op.create_table(
        "rollouts",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("serial", sa.BigInteger, nullable=False),
        sa.Column("endpoint", sa.Text, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("is_over", sa.Boolean, nullable=False),
        sa.Column("record", sa.Text, nullable=False),
        sa.Column("evidence", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("rollouts_of_endpoint", "rollouts", ["endpoint", "serial"])
    op.create_index("rollouts_in_order", "rollouts", ["serial"], unique=True)
    op.create_table(
        "events",
        sa.Column("id", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("endpoint", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("rollout", sa.Text, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("data", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("events_of_endpoint", "events", ["endpoint", "id"])
    op.create_table(
        "counters",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("value", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )


def _make_rewards() -> None:
    op.create_table(
        "answers",
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("rollout", sa.Text),
        sa.Column("arm", sa.Text),
        sa.Column("unit", sa.Text),
        sa.Column("reward", sa.Double),
        sa.PrimaryKeyConstraint("request_id"),
    )
    op.create_index("answers_by_age", "answers", ["at"])
    op.create_table(
        "unit_rewards",
        sa.Column("rollout", sa.Text, nullable=False),
        sa.Column("unit", sa.Text, nullable=False),
        sa.Column("arm", sa.Text, nullable=False),
        sa.Column("count", sa.BigInteger, nullable=False),
        sa.Column("total", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("rollout", "unit", "arm"),
        sqlite_with_rowid=False,  # read in the key's order, twice as fast
    )
