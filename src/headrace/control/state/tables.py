"""Tables of the state, equal to the result of the newest migration, as a test checks."""

from typing import Any, Final, TypeAlias

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Row,
    Table,
    Text,
)

AnyRow: TypeAlias = "Row[*tuple[Any, ...]]"

METADATA: Final = MetaData()

# Without its endpoints; lists have their order, and their positions in the spec document.
STATE: Final = Table(
    "state",
    METADATA,
    Column("id", Integer, CheckConstraint("id = 1", name="one_state"), primary_key=True),
    Column("generation", BigInteger, nullable=False),
    Column("at", Double, nullable=False),
    Column("spec", Text, nullable=False),
    Column("pools", Text, nullable=False),
    Column("endpoints", Text, nullable=False),
    Column("streams", Text, nullable=False, server_default="[]"),
    Column("file", Text, nullable=False, server_default="{}"),
)

# Append-only; a row without `document` and `pinned` means that the endpoint was removed.
GENERATIONS: Final = Table(
    "generations",
    METADATA,
    Column("endpoint", Text, primary_key=True),
    Column("generation", BigInteger, primary_key=True, autoincrement=False),
    Column("at", Double, nullable=False),
    Column("reason", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("document", Text),
    Column("pinned", Text),
)

ENDPOINTS: Final = Table(
    "endpoints",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("generation", BigInteger, nullable=False),
    Column("document", Text),
    Column("pinned", Text, nullable=False),
    ForeignKeyConstraint(
        ["name", "generation"],
        ["generations.endpoint", "generations.generation"],
        name="in_history",
    ),
)

ROLLOUTS: Final = Table(
    "rollouts",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("serial", BigInteger, nullable=False),
    Column("endpoint", Text, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("is_over", Boolean, nullable=False),
    Column("record", Text, nullable=False),
    Column("evidence", LargeBinary, nullable=False),
    Index("rollouts_of_endpoint", "endpoint", "serial"),
    Index("rollouts_in_order", "serial", unique=True),
)

EVENTS: Final = Table(
    "events",
    METADATA,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("at", Double, nullable=False),
    Column("endpoint", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("generation", BigInteger, nullable=False),
    Column("rollout", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("data", Text, nullable=False),
    Index("events_of_endpoint", "endpoint", "id"),
)

# Ids are counted here and not by the database: a sequence is not part of its transaction, so a
# reader of "all after 7" could see 9 before another transaction commits 8, and miss that.
COUNTERS: Final = Table(
    "counters",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("value", BigInteger, nullable=False),
)

# One row for assignment and feedback: the second one finds the first one's row, also before it is
# committed. In two tables both could miss each other.
ANSWERS: Final = Table(
    "answers",
    METADATA,
    Column("request_id", Text, primary_key=True),
    Column("at", Double, nullable=False),
    Column("rollout", Text),
    Column("arm", Text),
    Column("unit", Text),
    Column("reward", Double),
    Index("answers_by_age", "at"),
)

UNIT_REWARDS: Final = Table(
    "unit_rewards",
    METADATA,
    Column("rollout", Text, primary_key=True),
    Column("unit", Text, primary_key=True),
    Column("arm", Text, primary_key=True),
    Column("count", BigInteger, nullable=False),
    Column("total", Double, nullable=False),
    sqlite_with_rowid=False,
)

# Callers counted by a rollout, and their sums with the read positions (JSON): both change in one
# transaction.
ROLLOUT_UNITS: Final = Table(
    "rollout_units",
    METADATA,
    Column("rollout", Text, primary_key=True),
    Column("unit", Text, primary_key=True),
    Column("requests", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

UNIT_TALLIES: Final = Table(
    "unit_tallies",
    METADATA,
    Column("rollout", Text, primary_key=True),
    Column("tally", Text, nullable=False),
)

# A key or token is stored as its SHA-256 and its grants; `grants` is JSON.
CREDENTIALS: Final = Table(
    "credentials",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("hash", Text, nullable=False),
    Column("grants", Text, nullable=False),
    Column("created", Double, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("expires", Double),
    Column("revoked", Double),
    Index("credentials_by_hash", "hash", unique=True),
    Index("credentials_of_owner", "kind", "owner"),
)

PRINCIPALS: Final = Table(
    "principals",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("roles", Text, nullable=False),
    Column("created", Double, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("disabled", Boolean, nullable=False),
)

# Append-only; each entry's hash covers its content and the hash before it.
TRAIL: Final = Table(
    "trail",
    METADATA,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("at", Double, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("object", Text, nullable=False),
    Column("before", Text, nullable=False),
    Column("after", Text, nullable=False),
    Column("previous", Text, nullable=False),
    Column("hash", Text, nullable=False),
)

QUOTAS: Final = Table(
    "quotas",
    METADATA,
    Column("day", Text, primary_key=True),
    Column("subject", Text, primary_key=True),
    Column("used", BigInteger, nullable=False),
)

TOKEN_USAGE: Final = Table(
    "token_usage",
    METADATA,
    Column("day", Text, primary_key=True),
    Column("endpoint", Text, primary_key=True),
    Column("version", Text, primary_key=True),
    Column("credential", Text, primary_key=True),
    Column("input", BigInteger, nullable=False),
    Column("cached", BigInteger, nullable=False),
    Column("output", BigInteger, nullable=False),
    Column("reasoning", BigInteger, nullable=False),
    Column("unknown", BigInteger, nullable=False),
)

TOKEN_READINGS: Final = Table(
    "token_readings",
    METADATA,
    Column("gateway", Text, primary_key=True),
    Column("record", Text, nullable=False),
)

JOBS: Final = Table(
    "jobs",
    METADATA,
    Column("job", Text, primary_key=True),
    Column("schedule", Text, nullable=False),
    Column("since", Double, nullable=False),
    Column("handled", Double, nullable=False),
    Column("revision", BigInteger, nullable=False),
)

# A scheduled run's id is derived from its job and time, so two starters cannot add it twice.
JOB_RUNS: Final = Table(
    "job_runs",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("job", Text, nullable=False),
    Column("moment", Double, nullable=False),
    Column("state", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("fence", BigInteger, nullable=False),
    Column("beat", BigInteger, nullable=False),
    Column("cancelled_by", Text, nullable=False),
    Column("record", Text, nullable=False),
    Index("job_runs_of_job", "job", "moment"),
    Index("job_runs_by_state", "state"),
)

# `subject`: the alert's endpoint or stream; `record`: the rest of it, as JSON.
ALERTS: Final = Table(
    "alerts",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("subject", Text, primary_key=True),
    Column("record", Text, nullable=False),
)

ALERT_NOTICES: Final = Table(
    "alert_notices",
    METADATA,
    Column("receiver", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("subject", Text, primary_key=True),
    Column("record", Text, nullable=False),
)

SILENCES: Final = Table(
    "silences",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("ends", Double, nullable=False),
    Column("record", Text, nullable=False),
)
