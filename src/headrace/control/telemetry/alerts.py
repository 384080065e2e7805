"""Evaluation of alerts from objectives, replicas, queues, the gateway and certificates."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

import msgspec

from headrace.control.agents.build import Gateway
from headrace.control.base.faults import LOOP, Faults, write_events
from headrace.control.jobs.scheduler import JobScheduler
from headrace.control.model.desired import DesiredEndpoint
from headrace.control.model.observed import MANY_FAILURES, Replica, ReplicaPhase
from headrace.control.model.records import Event
from headrace.control.reconcile.pools import hosts_of
from headrace.control.reconcile.publication import Reconciling
from headrace.control.reconcile.reports import RowWatch
from headrace.control.streams.supervisor import StreamSupervisor
from headrace.control.telemetry.drift import DriftMonitor
from headrace.core import Clock, HeadraceError
from headrace.monitor.alert_kinds import LOCAL, AlertKind
from headrace.monitor.alert_state import (
    HOLD_S,
    Alert,
    AlertReading,
    AlertState,
    Key,
    advance,
    changed,
)
from headrace.monitor.slo import (
    ConditionReading,
    CountWindow,
    EndpointFacts,
    EndpointObjective,
    StreamFacts,
    StreamPromise,
    SystemFacts,
    objectives_of,
    read_endpoint,
    read_stream,
    read_system,
    stream_promises_of,
    windows_of,
)
from headrace.observe.metrics import Family, Labels, gauge

_LOG: Final = logging.getLogger("headrace.control")
_POLL_INTERVAL_S: Final = 2.0
_MAX_CONCURRENT: Final = 20
"""Endpoints evaluated before the event loop runs other tasks."""
_PER_WINDOW: Final = 60.0
"""Evaluations of a condition per its shortest window; long windows change slowly."""
_MIN_HOLD_S: Final = 5.0
_WORK_S: Final = 0.1
"""Seconds per evaluation for windows; thousands of busy endpoints take turns."""
_CONDITIONS: Final = [(kind, kind.local) for kind in LOCAL if kind.local is not None]
_OF_SYSTEM: Final = tuple(pair for pair in _CONDITIONS if pair[0].is_system_wide)
_OF_STREAMS: Final = tuple(pair for pair in _CONDITIONS if pair[0].is_for_stream)
_OF_ENDPOINTS: Final = tuple(
    (kind, condition, min(windows_of(condition), default=0.0))
    for kind, condition in _CONDITIONS
    if not (kind.is_system_wide or kind.is_for_stream)
)
"""Conditions of endpoints, and the shortest window that each needs, in seconds."""


class HistorySource(Protocol):
    """History of requests, as far as alerts need it."""

    def window(
        self, endpoint: str, *, until: float, seconds: float, version: str = ""
    ) -> CountWindow:
        """Return the counts of the `seconds` before `until`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertFacts:
    """Inputs of alerts other than windows; `endpoints` and `streams` by name."""

    system: SystemFacts = field(default_factory=SystemFacts)
    endpoints: Mapping[str, EndpointFacts] = field(default_factory=dict)
    streams: Mapping[str, StreamFacts] = field(default_factory=dict)


@dataclass(slots=True)
class _ConditionState:
    """Newest result of a condition."""

    evaluated_at: float
    reading: ConditionReading | None


@dataclass(slots=True, kw_only=True)
class Alerting:
    """Evaluates the alerts of all objectives in the spec."""

    history: HistorySource
    spec: Callable[[], Mapping[str, Any]]
    facts: Callable[[], Awaitable[AlertFacts]]
    emit: Callable[[Sequence[Event]], Awaitable[None]]
    """Records events."""
    notify: Callable[[Sequence[Alert]], None]
    save: Callable[[Sequence[Alert], Sequence[Key]], Awaitable[None]]
    """Stores alerts with a changed state, and removes keys. `notify` gets all alerts after each
    evaluation, and never blocks.
    """
    clock: Clock
    faults: Faults = field(default_factory=Faults)
    _alerts: dict[Key, Alert] = field(default_factory=dict)
    _kept: dict[Key, _ConditionState] = field(default_factory=dict)
    _spec: Mapping[str, Any] | None = None
    _objectives: tuple[EndpointObjective, ...] = ()
    _streams: tuple[StreamPromise, ...] = ()
    _stored: dict[Key, tuple[AlertState, float]] = field(default_factory=dict)
    _turn: int = 0
    """Index of the endpoint whose windows are evaluated first."""

    def load(self, alerts: Iterable[Alert]) -> None:
        """Take the alerts of before a restart.

        A firing alert counts as firing until now, because the time between is unknown.
        """
        now = self.clock.now()
        self._alerts = {alert.key: msgspec.structs.replace(alert, bad_at=now) for alert in alerts}
        self._stored = {key: _lasting(alert) for key, alert in self._alerts.items()}

    def alerts(self) -> list[Alert]:
        """Return all alerts: firing ones first, newest first."""
        order = list(AlertState)
        ranks = {AlertState.FIRING: -1}
        return sorted(
            self._alerts.values(),
            key=lambda a: (ranks.get(a.state, order.index(a.state)), -a.since, a.key),
        )

    def families(self) -> list[Family]:
        """Return firing alerts as a metric; recently firing ones have the value 0."""
        samples: list[tuple[Labels, float]] = [
            (_labels(alert), float(alert.state is AlertState.FIRING)) for alert in self.alerts()
        ]
        return [gauge("headrace_alert_firing", "1 while the alert fires.", samples)]

    async def run(self) -> None:
        """Evaluate alerts until cancelled."""
        while True:
            with self.faults.contain(LOOP, "alerts"):
                await self.poll()
            await asyncio.sleep(_POLL_INTERVAL_S)

    async def poll(self) -> None:
        """Evaluate all alerts once."""
        facts = await self.facts()
        now = self.clock.now()
        spec = self.spec()
        if spec is not self._spec:
            self._spec, self._objectives = spec, objectives_of(spec)
            self._streams = stream_promises_of(spec)
            names = [objective.endpoint for objective in self._objectives]
            self.faults.keep_only(
                "alerts", [*names, *(promise.stream for promise in self._streams)]
            )
            self._kept = {}  # objectives may have changed
        objectives = self._objectives
        findings = [
            _finding(kind, read_system(condition, facts.system)) for kind, condition in _OF_SYSTEM
        ]
        for stream_promise in self._streams:
            with self.faults.contain("alerts", stream_promise.stream):
                findings += self._stream_findings(stream_promise, facts)
        turn = self._turn % len(objectives) if objectives else 0
        spent_s = 0.0
        for number, objective in enumerate((*objectives[turn:], *objectives[:turn])):
            if number % _MAX_CONCURRENT == 0:
                await asyncio.sleep(0)
            started = self.clock.monotonic()
            has_turn = spent_s < _WORK_S
            with self.faults.contain("alerts", objective.endpoint):
                findings += self._endpoint_findings(objective, facts, now, has_turn=has_turn)
            spent_s += self.clock.monotonic() - started
            if has_turn:
                self._turn = turn + number + 1
        findings += self._unreadable(findings)
        before, self._alerts = self._alerts, advance(self._alerts, findings, now=now)
        news = changed(before, self._alerts)
        events = [_event(alert) for alert in news]
        for event in events:
            level = logging.WARNING if event.reason == "Firing" else logging.INFO
            extra = {"reason": event.reason, **event.data}
            _LOG.log(level, "alert: %s", event.message, extra=extra)
        if events:
            await write_events(self.emit, events)
        await self._save()
        self.notify(list(self._alerts.values()))

    def _stream_findings(
        self, objective: StreamPromise, facts: AlertFacts
    ) -> Iterator[AlertReading]:
        """Yield readings of a stream's bad or formerly bad conditions."""
        stream_facts = facts.streams.get(objective.stream)
        for kind, condition in _OF_STREAMS:
            reading = read_stream(condition, objective, stream_facts)
            finding = _finding(kind, reading, stream=objective.stream)
            if finding.key in self._alerts or (reading is not None and reading.is_bad):
                yield finding

    def _unreadable(self, findings: Sequence[AlertReading]) -> list[AlertReading]:
        """Return findings without a value for alerts of objects that could not be evaluated."""
        kinds, read = {kind.name: kind for kind in LOCAL}, {finding.key for finding in findings}
        return [
            _finding(kinds[alert.name], None, endpoint=alert.endpoint, stream=alert.stream)
            for key, alert in self._alerts.items()
            if key not in read
            and alert.name in kinds
            and self.faults.problem("alerts", alert.endpoint or alert.stream)
        ]

    def _endpoint_findings(
        self, objective: EndpointObjective, facts: AlertFacts, now: float, *, has_turn: bool
    ) -> Iterator[AlertReading]:
        """Yield readings of an endpoint's bad or formerly bad conditions.

        Args:
            has_turn: Whether windows may be read; else their last results are used.
        """
        name, scale = objective.endpoint, objective.window_ratio
        endpoint_facts = facts.endpoints.get(name, EndpointFacts())
        windows: dict[float, CountWindow] = {}

        def window(seconds: float) -> CountWindow:
            if seconds not in windows:
                windows[seconds] = self.history.window(name, until=now, seconds=seconds)
            return windows[seconds]

        for kind, condition, usual_s in _OF_ENDPOINTS:
            key, shortest = (kind.name, name), usual_s * scale
            state = self._kept.get(key)
            is_due = state is None or not 0 <= now - state.evaluated_at < shortest / _PER_WINDOW
            if is_due and (has_turn or not shortest):
                state = _ConditionState(
                    now, read_endpoint(condition, objective, window, endpoint_facts)
                )
                self._kept[key] = state
            reading = None if state is None else state.reading
            if key not in self._alerts and (reading is None or not reading.is_bad):
                continue
            hold_s = max(shortest, _MIN_HOLD_S)
            yield _finding(kind, reading, endpoint=name, scale=scale, hold_s=hold_s)

    async def _save(self) -> None:
        """Store changed alert states; values are read again after a restart."""
        lasting = {key: _lasting(alert) for key, alert in self._alerts.items()}
        changed_ = [self._alerts[key] for key in lasting if lasting[key] != self._stored.get(key)]
        removed = list(self._stored.keys() - lasting.keys())
        if not changed_ and not removed:
            return
        try:
            await self.save(changed_, removed)
        except HeadraceError as error:
            _LOG.error("cannot store the alerts", extra={"error": str(error)})
        else:
            self._stored = lasting


def _finding(
    kind: AlertKind,
    reading: ConditionReading | None,
    *,
    endpoint: str = "",
    stream: str = "",
    scale: float = 1.0,
    hold_s: float = HOLD_S,
) -> AlertReading:
    return AlertReading(
        kind=kind,
        endpoint=endpoint,
        stream=stream,
        reading=reading,
        for_s=kind.for_s * scale,
        keep_firing_for_s=kind.keep_firing_for_s * scale,
        hold_s=hold_s,
    )


def _lasting(alert: Alert) -> tuple[AlertState, float]:
    """Return the part of an alert that is stored."""
    return alert.state, alert.since


def _labels(alert: Alert) -> Labels:
    labels = (("alert", alert.name), ("endpoint", alert.endpoint))
    return (*labels, ("stream", alert.stream)) if alert.stream else labels


def _event(alert: Alert) -> Event:
    firing = alert.state is AlertState.FIRING
    return Event(
        at=alert.since,
        endpoint=alert.endpoint,
        kind="alert",
        reason="Firing" if firing else "Resolved",
        message=alert.summary if firing else f"over: {alert.summary}",
        data={
            "alert": alert.name,
            "severity": alert.severity,
            "value": alert.value,
            "threshold": alert.threshold,
            **({"stream": alert.stream} if alert.stream else {}),
        },
    )


_DAY_S: Final = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FactsReader:
    """Reads `AlertFacts` from the parts of the control plane."""

    reconciler: Reconciling
    gateway_supervisor: Gateway
    rows: RowWatch
    drift: DriftMonitor
    jobs: JobScheduler
    streams: StreamSupervisor

    async def read(self) -> AlertFacts:
        """Return the current facts."""
        in_flight = await self._in_flight()
        replicas: dict[str, list[Replica]] = {}
        for replica in self.reconciler.replicas.values():
            replicas.setdefault(replica.endpoint, []).append(replica)
        tls = self.gateway_supervisor.tls
        left = (
            ()
            if tls is None
            else [certificate.days_left for certificate in tls.certificates.statuses()]
        )
        return AlertFacts(
            system=SystemFacts(
                gateway_ready=self.gateway_supervisor.is_ready,
                certificate_left_s=min(
                    (days * _DAY_S for days in left if days is not None), default=None
                ),
                jobs_late=self.jobs.late(),
                jobs_failed=self.jobs.failed(),
            ),
            endpoints={
                endpoint.name: replace(
                    _facts(endpoint, replicas, in_flight),
                    drifted=self.drift.drifted(endpoint.name),
                    rows_differ=self.rows.differing(endpoint.name)[0],
                    rows_detail=self.rows.differing(endpoint.name)[1],
                )
                for endpoint in self.reconciler.desired.endpoints
            },
            streams=self.streams.facts(),
        )

    async def _in_flight(self) -> Mapping[str, int] | None:
        """Return requests in flight by endpoint; None if the gateway does not answer."""
        if not self.gateway_supervisor.is_ready:
            return None
        try:
            arms = await self.gateway_supervisor.in_flight()
        except HeadraceError:
            return None
        by_endpoint: dict[str, int] = {}
        for (name, _), count in arms.items():
            by_endpoint[name] = by_endpoint.get(name, 0) + count
        return by_endpoint


def _facts(
    endpoint: DesiredEndpoint,
    replicas: Mapping[str, list[Replica]],
    in_flight: Mapping[str, int] | None,
) -> EndpointFacts:
    own = [replica for name in hosts_of(endpoint) for replica in replicas.get(name, ())]
    ready = sum(replica.phase is ReplicaPhase.READY for replica in own)
    # Our replicas have to answer if no upstream accepts requests.
    live = [arm for arm in endpoint.arms if arm.weight]
    is_ours = bool(live) and all(arm.revision.upstream is None for arm in live)
    return EndpointFacts(
        replicas_ready=ready if is_ours and not endpoint.scaled_to_zero else None,
        in_flight=None if in_flight is None else in_flight.get(endpoint.name, 0),
        crashing=sum(replica.failures >= MANY_FAILURES for replica in own),
    )
