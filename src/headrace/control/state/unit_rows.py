"""Callers that a rollout has counted; sums, callers and read positions change in one transaction.

So a control plane that dies at any point counts nobody twice: an answer is in the sums exactly if
the position behind it is stored.
"""

from typing import Any, Final

import msgspec
from sqlalchemy import Connection, select

from headrace.control.state.encoding import clean
from headrace.control.state.tables import ROLLOUT_UNITS, UNIT_TALLIES
from headrace.control.state.upsert import upsert_into
from headrace.control.store import UnitBatch
from headrace.rollout.readings import UnitTally

MOST_UNITS: Final = 1_000_000
"""Beyond so many callers of a rollout nothing more is counted by caller."""


def read_tally(connection: Connection, rollout: str) -> UnitTally:
    """The sums of a rollout's callers; empty before the first."""
    query = select(UNIT_TALLIES.c.tally).where(UNIT_TALLIES.c.rollout == clean(rollout))
    stored = connection.execute(query.with_for_update()).scalar_one_or_none()
    return UnitTally() if stored is None else msgspec.json.decode(stored, type=UnitTally)


def add_units(connection: Connection, rollout: str, batch: UnitBatch) -> UnitTally:
    """Count answers by caller, and remember how far they were read; the sums then.

    A caller counts for the arm and the share of its first answer, never again for another.
    """
    tally = read_tally(connection, rollout)
    if batch.requests and tally.units < MOST_UNITS:
        tally = _counted(connection, clean(rollout), tally, batch)
    tally = msgspec.structs.replace(tally, positions=batch.positions)
    dialect = connection.dialect.name
    statement = upsert_into(UNIT_TALLIES, dialect=dialect)
    row = {"rollout": clean(rollout), "tally": msgspec.json.encode(tally).decode()}
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=[UNIT_TALLIES.c.rollout], set_={"tally": statement.excluded.tally}
        ),
        row,
    )
    return tally


def _counted(connection: Connection, rollout: str, tally: UnitTally, batch: UnitBatch) -> UnitTally:
    table = ROLLOUT_UNITS.c
    statement = upsert_into(ROLLOUT_UNITS, dialect=connection.dialect.name)
    requests = {clean(unit): n for unit, n in batch.requests.items()}
    rows: list[dict[str, Any]] = [
        {"rollout": rollout, "unit": unit, "requests": requests[unit]} for unit in sorted(requests)
    ]
    after = connection.execute(
        statement.on_conflict_do_update(
            index_elements=[table.rollout, table.unit],
            set_={"requests": table.requests + statement.excluded.requests},
        ).returning(table.unit, table.requests),
        rows,
    ).all()
    new = [0, 0]
    squares = 0
    for unit, total in after:
        before = total - requests[unit]
        squares += total * total - before * before
        if not before:
            new[unit in batch.of_candidate] += 1
    share = round(batch.share, 12)
    first = dict(tally.first)
    baseline, candidate = first.get(share, (0, 0))
    first[share] = (baseline + new[0], candidate + new[1])
    return msgspec.structs.replace(
        tally,
        first=first,
        requests=tally.requests + sum(requests.values()),
        squares=tally.squares + squares,
    )
