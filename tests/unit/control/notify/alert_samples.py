"""Alerts and receivers that tests make up."""

from typing import Any

import msgspec

from headrace.core.spec.alerts import AlertsSpec
from headrace.monitor.alert_state import Alert, AlertState

FIRING = Alert(
    name="HeadraceLatencyP95",
    endpoint="fraud",
    severity="page",
    state=AlertState.FIRING,
    since=1764000000.0,
    began=1764000000.0,
    value=0.31,
    threshold=0.2,
    unit="s",
    summary="p95 of fraud is 310 ms, above <what> is promised",
    action="Add replicas & wait.",
)
STREAM = msgspec.structs.replace(
    FIRING, name="HeadraceStreamDown", endpoint="", stream="fraud", summary="nothing is answered"
)
TICKET = msgspec.structs.replace(FIRING, name="HeadraceLatencyP99", severity="ticket")
OVER = msgspec.structs.replace(FIRING, state=AlertState.RESOLVED, since=1764000100.0)


def settings(*receivers: dict[str, Any], group_wait_s: float = 10.0) -> AlertsSpec:
    document = {"group_wait_s": group_wait_s, "repeat_s": 100.0, "receivers": list(receivers)}
    return AlertsSpec.model_validate(document)


def webhook(url: str = "http://127.0.0.1:9/", **more: Any) -> dict[str, Any]:  # noqa: ANN401  # JSON
    return {"name": "ops", "webhook": {"url": url}, **more}
