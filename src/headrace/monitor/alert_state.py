"""Life of an alert: pending, firing, resolved. Pure: the caller brings the time.

An alert that fires goes on firing until its condition has not held for `keep_firing_for_s`, as
Prometheus' `keep_firing_for`, so a value at its threshold is one alert and not many.
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
"""How long an alert that is over is still told."""
HOLD_S: Final = 300.0
"""How long what fires goes on firing while nothing is known: a restart forgets the windows."""

Key = tuple[str, str]
"""An alert's name, and its endpoint or stream; empty for the whole system."""


class AlertState(StrEnum):
    """Where an alert is in its life."""

    PENDING = "pending"
    """Its condition holds, but not for long enough yet."""
    FIRING = "firing"
    RESOLVED = "resolved"
    """It fired not long ago, and its condition does not hold any more."""


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """One alert of one endpoint, of one stream, or of the whole system: both are empty then.

    `since`: when `state` began; `began`: when it last began to fire, 0 before. `bad_at`: when its
    condition held last. Seconds since 1970.
    """

    name: str
    endpoint: str
    severity: str
    state: AlertState
    since: float
    value: float
    threshold: float
    unit: str
    summary: str
    action: str
    began: float = 0.0
    bad_at: float = 0.0
    stream: str = ""

    @property
    def key(self) -> Key:
        """What tells it from others; its name says of what kind of thing it is."""
        return self.name, self.endpoint or self.stream


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertReading:
    """What one alert reads for one endpoint or stream now; None if nothing is known.

    `for_s`: how long it has to be bad before it fires. `keep_firing_for_s`: how long it has to be
    good before it is resolved; `hold_s`: how long at least while nothing is known.
    """

    kind: AlertKind
    endpoint: str
    reading: ConditionReading | None
    for_s: float
    keep_firing_for_s: float = 0.0
    hold_s: float = HOLD_S
    stream: str = ""

    @property
    def key(self) -> Key:
        """Whose it is."""
        return self.kind.name, self.endpoint or self.stream


def advance(
    alerts: Mapping[Key, Alert], findings: Iterable[AlertReading], *, now: float
) -> dict[Key, Alert]:
    """All alerts after one look at everything.

    What nobody looks for any more, as its endpoint or stream is gone, is over.
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
    """Alerts that began to fire or are over, by `after`."""
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
    """The alert when its condition does not hold, or nothing is known of it."""
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
