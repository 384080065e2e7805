"""Stored records of alerts: their states, what each receiver was told, and silences."""

from collections.abc import Sequence
from typing import Protocol

import msgspec

from headrace.control.access.trail import Change
from headrace.monitor.alert_state import Alert, Key

NoticeKey = tuple[str, Key]
"""A receiver's name, and an alert's key."""


class AlertNotice(msgspec.Struct, frozen=True, kw_only=True):
    """An alert that a receiver was told is firing, and not yet that it is resolved.

    `alert`: as in the newest firing message with it. `taken_at`: when the receiver took that
    message, in seconds since 1970; None while it may have taken it: a message is under way, its
    outcome is not known, or the control plane ended meanwhile.
    """

    receiver: str
    alert: Alert
    taken_at: float | None = None

    @property
    def key(self) -> NoticeKey:
        """Identity: one notice per receiver and alert."""
        return self.receiver, self.alert.key


class Silence(msgspec.Struct, frozen=True, kw_only=True):
    """Alerts that no receiver is told are firing, from `begins` until `ends`.

    An empty `alert`, `endpoint`, `stream` or `severity` matches any. Seconds since 1970.
    """

    id: str
    begins: float
    ends: float
    alert: str = ""
    endpoint: str = ""
    stream: str = ""
    severity: str = ""
    comment: str = ""
    created_by: str = ""

    def silences(self, alert: Alert, *, now: float) -> bool:
        """Whether no receiver is told now that `alert` fires."""
        return (
            self.begins <= now < self.ends
            and self.alert in {"", alert.name}
            and self.endpoint in {"", alert.endpoint}
            and self.stream in {"", alert.stream}
            and self.severity in {"", alert.severity}
        )


class StoredAlerts(msgspec.Struct, frozen=True, kw_only=True):
    """All records."""

    alerts: tuple[Alert, ...] = ()
    notices: tuple[AlertNotice, ...] = ()
    silences: tuple[Silence, ...] = ()


class AlertStore(Protocol):
    """Keeps the records of alerts. Every method is blocking and atomic."""

    def load(self) -> StoredAlerts:
        """All records, in no order."""

    def save_alerts(self, alerts: Sequence[Alert], gone: Sequence[Key]) -> None:
        """Add or replace alerts, and remove those of the keys `gone`."""

    def save_notices(self, notices: Sequence[AlertNotice], gone: Sequence[NoticeKey]) -> None:
        """Add or replace notices, and remove those of the keys `gone`."""

    def add_silence(self, silence: Silence, *, changes: Sequence[Change] = ()) -> None:
        """Add a silence, and its entry of the audit log in the same transaction."""

    def remove_silence(self, id_: str, *, changes: Sequence[Change] = ()) -> None:
        """Remove a silence, and enter that in the audit log in the same transaction."""
