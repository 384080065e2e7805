"""State machine of alerts: pending, firing, resolved. Pure: the caller passes the time.

A firing alert keeps firing until its condition has not held for `keep_firing_for_s`, as with
Prometheus' `keep_firing_for`, so that a value at its threshold is one alert.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import msgspec

from headrace.core.text import measure_text
from headrace.monitor.alert_kinds import AlertKind
from headrace.monitor.slo import ConditionReading

KEEP_RESOLVED_S: Final = 900.0
"""Seconds for which a resolved alert is still reported."""
HOLD_S: Final = 300.0
"""Seconds for which an alert keeps firing without data: a restart loses the windows."""

Key = tuple[str, str]
"""Alert name, and endpoint or stream; the second is empty for the whole system."""


class AlertState(StrEnum):
    """State of an alert."""

    PENDING = "pending"
    """The condition holds, but not yet for long enough."""
    FIRING = "firing"
    RESOLVED = "resolved"
    """The alert fired recently, and its condition no longer holds."""


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """One alert of an endpoint, a stream, or of the system if both are empty.

    Times are seconds since 1970.
    """

    name: str
    endpoint: str
    severity: str
    state: AlertState
    since: float
    """Time when `state` began."""
    value: float
    threshold: float
    unit: str
    summary: str
    action: str
    began: float = 0.0
    """Time when the alert last started firing; 0 if never."""

    bad_at: float = 0.0
    """Time when the condition last held."""
    stream: str = ""

    @property
    def key(self) -> Key:
        """Return the identity; the name implies whether the alert is of an endpoint or a stream."""
        return self.name, self.endpoint or self.stream


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertReading:
    """The current reading of one alert for one endpoint or stream."""

    kind: AlertKind
    endpoint: str
    reading: ConditionReading | None
    """Reading of the condition; None if unknown."""

    for_s: float
    """Seconds for which the condition must hold before the alert fires."""

    keep_firing_for_s: float = 0.0
    """Seconds for which the condition must not hold before the alert resolves."""

    hold_s: float = HOLD_S
    """Minimum time in seconds that the alert keeps firing without data."""
    stream: str = ""

    @property
    def key(self) -> Key:
        """Return the alert's identity."""
        return self.kind.name, self.endpoint or self.stream


def advance(
    alerts: Mapping[Key, Alert], findings: Iterable[AlertReading], *, now: float
) -> dict[Key, Alert]:
    """Return all alerts after one evaluation.

    Alerts without a reading (their endpoint or stream was removed) are resolved.
    """
    after: dict[Key, Alert] = {}
    read_keys: set[Key] = set()
    for finding in findings:
        key = finding.key
        read_keys.add(key)
        alert = _next(alerts.get(key), finding, now)
        if alert is not None:
            after[key] = alert
    for key in alerts.keys() - read_keys:
        over = _resolved(alerts[key], now)
        if over is not None:
            after[key] = over
    return after


def changed(before: Mapping[Key, Alert], after: Mapping[Key, Alert]) -> list[Alert]:
    """Return the alerts in `after` that started firing or were resolved."""
    reported_states = (AlertState.FIRING, AlertState.RESOLVED)
    return [
        alert
        for key, alert in after.items()
        if alert.state in reported_states
        and (key not in before or before[key].state is not alert.state)
    ]


def _next(alert: Alert | None, finding: AlertReading, now: float) -> Alert | None:
    reading = finding.reading
    if reading is None or not reading.is_bad:
        return None if alert is None else _without_condition(alert, finding, now)
    if alert is None or alert.state is AlertState.RESOLVED:
        alert = _started(finding, reading, now)
    elif alert.state is AlertState.PENDING and now - alert.since >= finding.for_s:
        alert = msgspec.structs.replace(alert, state=AlertState.FIRING, since=now, began=now)
    return msgspec.structs.replace(
        alert,
        value=reading.value,
        threshold=reading.threshold,
        summary=_summary(finding, reading),
        bad_at=now,
    )


def _started(finding: AlertReading, reading: ConditionReading, now: float) -> Alert:
    kind = finding.kind
    at_once = finding.for_s <= 0
    return Alert(
        name=kind.name,
        endpoint=finding.endpoint,
        stream=finding.stream,
        severity=kind.severity.value,
        state=AlertState.FIRING if at_once else AlertState.PENDING,
        since=now,
        began=now if at_once else 0.0,
        value=reading.value,
        threshold=reading.threshold,
        unit=kind.unit,
        summary=_summary(finding, reading),
        action=kind.action.format(endpoint=finding.endpoint, stream=finding.stream),
        bad_at=now,
    )


def _summary(finding: AlertReading, reading: ConditionReading) -> str:
    value = measure_text(reading.value, finding.kind.unit)
    return finding.kind.summary.format(
        endpoint=finding.endpoint, stream=finding.stream, value=value, detail=reading.detail
    )


def _without_condition(alert: Alert, finding: AlertReading, now: float) -> Alert | None:
    """Return the alert's next state if its condition does not hold or is unknown."""
    keep_s = finding.keep_firing_for_s if alert.state is AlertState.FIRING else 0.0
    if finding.reading is None and alert.state is not AlertState.RESOLVED:
        keep_s = max(keep_s, finding.hold_s)
    return alert if 0 <= now - alert.bad_at < keep_s else _resolved(alert, now)


def _resolved(alert: Alert, now: float) -> Alert | None:
    match alert.state:
        case AlertState.PENDING:
            return None
        case AlertState.FIRING:
            return msgspec.structs.replace(alert, state=AlertState.RESOLVED, since=now)
        case AlertState.RESOLVED:
            return alert if now - alert.since < KEEP_RESOLVED_S else None
