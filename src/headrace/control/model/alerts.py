"""Records of alerts: their state, notices sent to receivers, and silences."""

import msgspec

from headrace.monitor.alert_state import Alert, Key

NoticeKey = tuple[str, Key]
"""A receiver's name, and an alert's key."""


class AlertNotice(msgspec.Struct, frozen=True, kw_only=True):
    """An alert that was sent to a receiver as firing, and not yet as resolved."""

    receiver: str
    alert: Alert
    taken_at: float | None = None

    @property
    def key(self) -> NoticeKey:
        """Return the identity: one notice per receiver and alert."""
        return self.receiver, self.alert.key


class Silence(msgspec.Struct, frozen=True, kw_only=True):
    """Alerts of which no receiver is notified from `begins` until `ends`, seconds since 1970.

    An empty `alert`, `endpoint`, `stream` or `severity` matches any.
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
        """Whether notifications about `alert` are suppressed at `now`."""
        return (
            self.begins <= now < self.ends
            and self.alert in {"", alert.name}
            and self.endpoint in {"", alert.endpoint}
            and self.stream in {"", alert.stream}
            and self.severity in {"", alert.severity}
        )


class StoredAlerts(msgspec.Struct, frozen=True, kw_only=True):
    """All stored records of alerts."""

    alerts: tuple[Alert, ...] = ()
    notices: tuple[AlertNotice, ...] = ()
    silences: tuple[Silence, ...] = ()
