"""Rows of alerts, notices and silences, with keys in columns and the rest as JSON."""

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, Table, delete, select

from headrace.control.model.alerts import AlertNotice, NoticeKey, Silence, StoredAlerts
from headrace.control.model.audit_log import AuditEntry
from headrace.control.state.access_rows import add_changes
from headrace.control.state.database import Database, reads, upsert_into, writes
from headrace.control.state.encoding import check_readable, decoded, encoded
from headrace.control.state.tables import ALERT_NOTICES, ALERTS, SILENCES
from headrace.monitor.alert_state import Alert, Key


def load_alerts(connection: Connection) -> StoredAlerts:
    """Return all records, unordered."""
    return StoredAlerts(
        alerts=tuple(_records(connection, ALERTS, Alert)),
        notices=tuple(_records(connection, ALERT_NOTICES, AlertNotice)),
        silences=tuple(_records(connection, SILENCES, Silence)),
    )


def save_alerts(connection: Connection, alerts: Sequence[Alert], removed: Sequence[Key]) -> None:
    """Add or replace alerts, and remove those of the keys `gone`."""
    for name, subject in removed:
        _delete(connection, ALERTS, name=name, subject=subject)
    for alert in alerts:
        name, subject = alert.key
        _put(connection, ALERTS, alert, name=name, subject=subject)


def save_notices(
    connection: Connection, notices: Sequence[AlertNotice], removed: Sequence[NoticeKey]
) -> None:
    """Add or replace notices, and remove those of the keys `gone`."""
    for receiver, (name, subject) in removed:
        _delete(connection, ALERT_NOTICES, receiver=receiver, name=name, subject=subject)
    for notice in notices:
        name, subject = notice.alert.key
        key = {"receiver": notice.receiver, "name": name, "subject": subject}
        _put(connection, ALERT_NOTICES, notice, **key)


def add_silence(
    connection: Connection, silence: Silence, *, changes: Sequence[AuditEntry] = ()
) -> None:
    """Add a silence, and its audit log entry in the same transaction."""
    _put(connection, SILENCES, silence, id=silence.id, ends=silence.ends)
    add_changes(connection, changes)


def remove_silence(connection: Connection, id_: str, *, changes: Sequence[AuditEntry] = ()) -> None:
    """Remove a silence, and add an audit log entry in the same transaction."""
    _delete(connection, SILENCES, id=id_)
    add_changes(connection, changes)


def _records(connection: Connection, table: Table, of_type: type[Any]) -> Iterable[Any]:
    for record in connection.execute(select(table.c.record)).scalars():
        yield decoded(record, of_type, description=f"a row of {table.name}")


def _put(connection: Connection, table: Table, record: object, **key: str | float) -> None:
    text = encoded(record)
    check_readable(text, type(record), description=f"a row of {table.name}")
    statement = upsert_into(table, dialect=connection.dialect.name).values(**key, record=text)
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=list(table.primary_key.columns),
            set_={"record": statement.excluded.record},
        )
    )


def _delete(connection: Connection, table: Table, **key: str) -> None:
    connection.execute(delete(table).filter_by(**key))


class AlertStore:
    """Transactions of alerts, notices and silences."""

    def __init__(self, database: Database) -> None:
        self.database = database

    load = reads("read the alerts", load_alerts)
    save_alerts = writes("store the alerts", save_alerts)
    save_notices = writes("store sent notifications", save_notices)
    add_silence = writes("store a silence", add_silence)
    remove_silence = writes("remove a silence", remove_silence)
