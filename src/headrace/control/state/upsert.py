"""How is a row added or met? By `INSERT … ON CONFLICT`, which both databases have."""

from typing import TYPE_CHECKING, TypeAlias

from sqlalchemy import Table
from sqlalchemy.dialects import sqlite

if TYPE_CHECKING:
    from sqlalchemy.dialects import postgresql

Upsert: TypeAlias = "postgresql.Insert | sqlite.Insert"


def upsert_into(table: Table, *, dialect: str) -> Upsert:
    """The insert statement that has `on_conflict_do_update`, for `sqlite` or `postgresql`."""
    if dialect == "postgresql":
        from sqlalchemy.dialects import postgresql  # noqa: PLC0415  # 30 ms that SQLite need not pay

        return postgresql.insert(table)
    return sqlite.insert(table)
