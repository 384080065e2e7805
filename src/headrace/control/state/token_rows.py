"""Rows of tokens by day, endpoint, version and credential, and the gateway's counts behind them.

Both change in one transaction, so a control plane that crashes counts no token twice.
"""

from collections.abc import Sequence

import msgspec
from sqlalchemy import Connection, delete, select

from headrace.control.model.records import TokenReading
from headrace.control.state.database import upsert_into
from headrace.control.state.encoding import clean, decoded, encoded
from headrace.control.state.tables import TOKEN_READINGS, TOKEN_USAGE
from headrace.gateway.statistics import TOKEN_AMOUNTS, TokenUse

_KEY = ("day", "endpoint", "version", "credential")


def add_tokens(
    connection: Connection, uses: Sequence[TokenUse], gateway: str, reading: TokenReading
) -> None:
    """Add to the stored tokens, and store the gateway's counts that include them."""
    dialect = connection.dialect.name
    add = upsert_into(TOKEN_USAGE, dialect=dialect)
    add = add.on_conflict_do_update(
        index_elements=_KEY,
        set_={name: TOKEN_USAGE.c[name] + add.excluded[name] for name in TOKEN_AMOUNTS},
    )
    # In key order: two transactions that add to the same rows in another order would deadlock.
    for use in sorted(uses, key=lambda use: use.key):
        row = msgspec.structs.asdict(use)
        connection.execute(add, row | {name: clean(row[name]) for name in _KEY})
    put = upsert_into(TOKEN_READINGS, dialect=dialect)
    put = put.on_conflict_do_update(
        index_elements=["gateway"], set_={"record": put.excluded.record}
    )
    connection.execute(put, {"gateway": gateway, "record": encoded(reading)})


def read_tokens(connection: Connection, first: str, last: str) -> list[TokenUse]:
    """Return the tokens of the days from `first` to `last`, both included, oldest first."""
    days = TOKEN_USAGE.c.day.between(first, last)
    query = select(TOKEN_USAGE).where(days).order_by(*(TOKEN_USAGE.c[name] for name in _KEY))
    return [TokenUse(**row) for row in connection.execute(query).mappings()]


def forget_readings(connection: Connection, before: str) -> None:
    """Delete the counts of gateways that were last read before a day (`2026-11-25`)."""
    rows = connection.execute(select(TOKEN_READINGS.c.gateway, TOKEN_READINGS.c.record))
    for gateway, record in rows.all():
        reading = decoded(record, TokenReading, description="a row of token_readings")
        if "" < reading.day < before:
            connection.execute(delete(TOKEN_READINGS).where(TOKEN_READINGS.c.gateway == gateway))


def read_reading(connection: Connection, gateway: str) -> TokenReading | None:
    """Return the counts of a gateway that are in the stored tokens; None for none."""
    query = select(TOKEN_READINGS.c.record).where(TOKEN_READINGS.c.gateway == gateway)
    record = connection.execute(query).scalar()
    if record is None:
        return None
    return decoded(record, TokenReading, description="a row of token_readings")
