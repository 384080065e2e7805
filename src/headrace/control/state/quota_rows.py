"""How many requests has each subject used of its day?"""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from sqlalchemy import Connection, select

from headrace.control.state.encoding import clean
from headrace.control.state.tables import QUOTAS
from headrace.control.state.upsert import upsert_into
from headrace.control.store import QuotaUse

if TYPE_CHECKING:
    from sqlalchemy.sql.dml import ReturningInsert


def add_quotas(connection: Connection, uses: Sequence[QuotaUse]) -> list[QuotaUse]:
    """Add to what is stored; what is stored then, of all control planes together."""
    totals = []
    # In order: two that add to the same the other way round would wait for each other for ever.
    for use in sorted(uses, key=lambda use: (use.day, clean(use.subject))):
        row = {"day": use.day, "subject": clean(use.subject), "used": use.used}
        used = connection.execute(_add_up(connection.dialect.name), row).scalar_one()
        totals.append(QuotaUse(day=use.day, subject=use.subject, used=used))
    return totals


def read_quotas(connection: Connection, day: str) -> list[QuotaUse]:
    """What was used of a day."""
    query = select(QUOTAS.c.subject, QUOTAS.c.used).where(QUOTAS.c.day == day)
    found = [QuotaUse(day=day, subject=s, used=used) for s, used in connection.execute(query)]
    return sorted(found, key=lambda use: use.subject)


@cache
def _add_up(dialect: str) -> "ReturningInsert[int]":
    statement = upsert_into(QUOTAS, dialect=dialect)
    return statement.on_conflict_do_update(
        index_elements=[QUOTAS.c.day, QUOTAS.c.subject],
        set_={"used": QUOTAS.c.used + statement.excluded.used},
    ).returning(QUOTAS.c.used)
