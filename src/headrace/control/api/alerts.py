"""Alerts, silences and test messages over HTTP."""

from dataclasses import dataclass
from typing import Annotated, Any, Final

from fastapi import Body, FastAPI, Path, Query, Response
from pydantic import Field

from headrace.control.api.answers import Actor, RequestBody, WhoAsks, answer, route, view_of
from headrace.control.auth.roles import Caller, Role
from headrace.control.base.context import ServiceContext
from headrace.control.model.alerts import Silence
from headrace.control.notify.notifier import LONGEST_S, ReceiverTest, silence_missing
from headrace.control.telemetry.service import TelemetryService
from headrace.core import InvalidArgumentError, PermissionDeniedError
from headrace.core.names import NAME_PATTERN
from headrace.monitor.alert_kinds import ALERTS
from headrace.monitor.alert_state import AlertState
from headrace.monitor.slo import AlertSeverity

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
    "silenced_until": None,
}
_CREATED: Final = 201
_SILENCE: Final[dict[str, Any]] = {
    "id": "9f3a61c2",
    "alert": "",
    "endpoint": "fraud",
    "stream": "",
    "severity": "ticket",
    "begins": 1764000000.0,
    "ends": 1764007200.0,
    "comment": "known, ticket 4711",
    "created_by": "admin",
}
_Name = Annotated[str, Field(pattern=f"^$|{NAME_PATTERN}")]


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertView:
    """One alert; `since` is the start of its `state`, in seconds since 1970.

    `endpoint` and `stream` are both empty for the whole system, else exactly one is empty;
    `severity` is `page` or `ticket`, `state` `pending`, `firing` or `resolved`; `value` and
    `threshold` are in `unit` (`s`, `ratio`, `replicas`, `records`, or empty).
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
    silenced_until: float | None
    """When the last silence that matches the alert ends; null without a silence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertList:
    """Alerts, firing alerts first."""

    alerts: list[AlertView]


class NewSilence(RequestBody):
    """Request to silence alerts, until `ends` or for `duration_s`."""

    alert: str = Field(default="", max_length=100, description="Its name; empty for any.")
    endpoint: _Name = Field(default="", description="Empty for any.")
    stream: _Name = Field(default="", description="Empty for any.")
    severity: AlertSeverity | None = Field(default=None, description="Null for any.")
    ends: float | None = Field(
        default=None, allow_inf_nan=False, description="In seconds since 1970."
    )
    duration_s: float | None = Field(
        default=None,
        gt=0,
        le=LONGEST_S,
        allow_inf_nan=False,
        description="From now on, in seconds.",
    )
    comment: str = Field(default="", max_length=500, description="Why, for others.")


@dataclass(frozen=True, slots=True, kw_only=True)
class SilenceList:
    """Silences that have not ended, sorted by their end."""

    silences: list[Silence]


class TestedReceiver(RequestBody):
    """The receiver to test."""

    receiver: _Name = Field(default="", description="Empty for all.")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryList:
    """The result of each receiver."""

    deliveries: list[ReceiverTest]


def add_alerts(api: FastAPI, context: ServiceContext, telemetry: TelemetryService) -> None:
    """Add the routes of alerts."""

    @route(api, "GET /api/v1/alerts", AlertList, {"alerts": [_EXAMPLE]})
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
        """List alerts that are pending or firing, and alerts that were resolved recently."""
        views = [
            view_of(AlertView, alert, silenced_until=telemetry.silences.until(alert))
            for alert in telemetry.alerting.alerts()
            if endpoint in {"", alert.endpoint}
            and stream in {"", alert.stream}
            and state in {None, alert.state}
            and caller.may(Role.VIEWER, alert.endpoint or None)
        ]
        return answer(AlertList(alerts=views))

    @route(
        api,
        "POST /api/v1/alerts/test",
        DeliveryList,
        {"deliveries": [{"receiver": "chat", "ok": True, "answer": "200", "seconds": 0.21}]},
    )
    async def test(
        tested: Annotated[TestedReceiver, Body(examples=[{"receiver": "chat"}])],
        actor: Actor,
    ) -> Response:
        """Send a test message to a receiver, or to all."""
        deliveries = await telemetry.notifier.test(tested.receiver)
        after = {delivery.receiver: delivery.ok for delivery in deliveries}
        await context.note("alerts.test", tested.receiver, after=after, actor=actor)
        return answer(DeliveryList(deliveries=deliveries))

    @route(api, "GET /api/v1/silences", SilenceList, {"silences": [_SILENCE]})
    async def silences(caller: WhoAsks) -> Response:
        """List the silences that the caller may see."""
        visible = [
            silence for silence in telemetry.silences.active() if _may(caller, Role.VIEWER, silence)
        ]
        return answer({"silences": visible})

    @route(api, "POST /api/v1/silences", Silence, _SILENCE, status=_CREATED)
    async def silence(
        new: Annotated[NewSilence, Body(examples=[{"endpoint": "fraud", "duration_s": 7200.0}])],
        caller: WhoAsks,
        actor: Actor,
    ) -> Response:
        """Silence alerts; the silence is in force when the response arrives."""
        if (new.ends is None) == (new.duration_s is None):
            raise InvalidArgumentError("a silence needs either 'ends' or 'duration_s'")
        if new.alert and new.alert not in {kind.name for kind in ALERTS}:
            raise InvalidArgumentError(
                f"unknown alert '{new.alert}'; the documentation lists all alerts"
            )
        if new.endpoint and new.stream:
            raise InvalidArgumentError("an alert is of an endpoint or of a stream, never of both")
        draft = Silence(
            id="",
            begins=0.0,
            ends=context.clock.now() + (new.duration_s or 0.0) if new.ends is None else new.ends,
            alert=new.alert,
            endpoint=new.endpoint,
            stream=new.stream,
            severity="" if new.severity is None else new.severity.value,
            comment=new.comment,
        )
        _require(caller, draft)
        return answer(await telemetry.silences.add(draft, actor=actor), status=_CREATED)

    @route(api, "DELETE /api/v1/silences/{silence}", Silence, _SILENCE)
    async def remove(
        silence: Annotated[str, Path(pattern=r"^[0-9a-f]{1,32}$", description="Its id.")],
        caller: WhoAsks,
        actor: Actor,
    ) -> Response:
        """End a silence immediately."""
        stored = telemetry.silences.find(silence)
        if not _may(caller, Role.VIEWER, stored):
            raise silence_missing(silence)
        _require(caller, stored)
        await telemetry.silences.remove(stored, actor=actor)
        return answer(stored)


def _may(caller: Caller, role: Role, silence: Silence) -> bool:
    """Whether the caller has `role` for all alerts that a silence can match."""
    return caller.may(role, silence.endpoint or None)


def _require(caller: Caller, silence: Silence) -> None:
    if not _may(caller, Role.OPERATOR, silence):
        about = f"endpoint '{silence.endpoint}'" if silence.endpoint else "the whole system"
        message = f"its alerts are silenced by operators of {about}"
        raise PermissionDeniedError(message)
