"""How are things numbered without a gap? By counters that belong to the transaction."""

from sqlalchemy import Connection, update

from headrace.control.state.tables import COUNTERS


def count_up(connection: Connection, name: str, by: int) -> int:
    """The counter after `by` more; its row is held until the transaction ends."""
    counted = update(COUNTERS).where(COUNTERS.c.name == name)
    result = connection.execute(
        counted.values(value=COUNTERS.c.value + by).returning(COUNTERS.c.value)
    )
    value: int = result.scalar_one()
    return value
