"""What is wrong, over HTTP."""

from dataclasses import dataclass
from typing import Annotated, Any, Final

from fastapi import FastAPI, Query, Response

from headrace.control.access.roles import Role
from headrace.control.api_answers import WhoAsks, answer, shown
from headrace.control.plane import ControlPlane
from headrace.core.names import NAME_PATTERN
from headrace.monitor.alert_state import Alert, AlertState

_EXAMPLE: Final[dict[str, Any]] = {
    "name": "HeadraceLatencyP99",
    "endpoint": "fraud",
    "stream": "",
    "severity": "ticket",
    "state": "firing",
    "since": 1764000184.0,
    "value": 0.31,
    "threshold": 0.2,
    "unit": "s",
    "summary": "p99 of fraud is 310 ms, above what is promised",
    "action": "Compare queue wait with compute time on the endpoint's dashboard.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertView:
    """One alert; `since` is when its `state` began, in seconds since 1970.

    `endpoint` and `stream` are empty for the whole system, else one of them is; `severity` is
    `page` or `ticket`, `state` `pending`, `firing` or `resolved`; `value` and `threshold` are in
    `unit` (`s`, `ratio`, `replicas`, `records`, or empty).
    """

    name: str
    endpoint: str
    stream: str
    severity: str
    state: str
    since: float
    value: float
    threshold: float
    unit: str
    summary: str
    action: str

    @classmethod
    def of(cls, alert: Alert) -> "AlertView":
        """What is told of an alert."""
        return cls(
            name=alert.name,
            endpoint=alert.endpoint,
            stream=alert.stream,
            severity=alert.severity,
            state=alert.state.value,
            since=alert.since,
            value=alert.value,
            threshold=alert.threshold,
            unit=alert.unit,
            summary=alert.summary,
            action=alert.action,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertList:
    """Alerts, what fires first."""

    alerts: list[AlertView]


def add_alerts(api: FastAPI, plane: ControlPlane) -> None:
    """Add the route of alerts."""

    @api.get(
        "/api/v1/alerts",
        summary="What is wrong now, and what was until lately",
        response_model=AlertList,
        responses=shown({"alerts": [_EXAMPLE]}),
    )
    async def alerts(
        caller: WhoAsks,
        endpoint: Annotated[
            str,
            Query(pattern=f"^$|{NAME_PATTERN}", description="Only this endpoint's; empty for all."),
        ] = "",
        stream: Annotated[
            str,
            Query(pattern=f"^$|{NAME_PATTERN}", description="Only this stream's; empty for all."),
        ] = "",
        state: Annotated[
            AlertState | None, Query(description="Only those in this state; null for all.")
        ] = None,
    ) -> Response:
        found = [
            AlertView.of(alert)
            for alert in plane.alerting.alerts()
            if endpoint in {"", alert.endpoint}
            and stream in {"", alert.stream}
            and state in {None, alert.state}
            and caller.may(Role.VIEWER, alert.endpoint or None)
        ]
        return answer(AlertList(alerts=found))
