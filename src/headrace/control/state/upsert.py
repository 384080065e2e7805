"""How is a row added or met? By `INSERT … ON CONFLICT`, which both databases have."""

from typing import TypeAlias

from sqlalchemy import Table
from sqlalchemy.dialects.postgresql import Insert as PostgresInsert
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.dialects.sqlite import Insert as SqliteInsert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

Upsert: TypeAlias = PostgresInsert | SqliteInsert


def upsert_into(table: Table, *, dialect: str) -> Upsert:
    """The insert statement that has `on_conflict_do_update`, for `sqlite` or `postgresql`."""
    return postgres_insert(table) if dialect == "postgresql" else sqlite_insert(table)
