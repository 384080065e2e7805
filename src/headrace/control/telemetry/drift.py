"""Drift monitor: reads counts of replicas, evaluates drift, and emits events.

It is not on the request path: replicas count by a plan, and are polled every few seconds.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from headrace.control.base.faults import LOOP, Faults
from headrace.control.desired.target import TargetState
from headrace.control.model.desired import DesiredArm, DesiredEndpoint
from headrace.control.model.observed import Replica, ReplicaPhase
from headrace.control.model.records import Event
from headrace.control.reconcile.pools import hosted_replicas
from headrace.control.telemetry.drift_files import DriftFiles, EndpointDrift
from headrace.control.telemetry.labels import LabelStore
from headrace.core import (
    Clock,
    EndpointNotFoundError,
    FailedPreconditionError,
    HeadraceError,
    UnavailableError,
)
from headrace.core.error_kind import UNDECODABLE
from headrace.core.fetch import fetch
from headrace.core.spec.observe import DriftSpec
from headrace.monitor.drift import FeatureReport, FeatureState
from headrace.monitor.drift_reference import DriftReference
from headrace.monitor.drift_version import StoredDrift, VersionDrift, inputs_only
from headrace.observe.features import ValueCounts
from headrace.observe.metrics import Family, Labels, gauge
from headrace.serving.telemetry.report import DriftPlan, DriftTaken, SeenAnswer

_LOG: Final = logging.getLogger("headrace.control")
_INTERVAL_S: Final = 2.0
_SAVE_S: Final = 10.0
_TIMEOUT_S: Final = 2.0
_MAX_CONCURRENT: Final = 8
_SAMPLE: Final = 512
"""Raw rows that a replica keeps between two polls."""
_HTTP_OK: Final = 200
_TOLD: Final = 5
"""Most features that one event names."""
Emit = Callable[[Sequence[Event]], Awaitable[None]]
Call = Callable[[Replica, str, str, bytes], Awaitable[bytes]]


@dataclass(slots=True, kw_only=True)
class _EndpointDrift:
    """Drift state of one endpoint."""

    reference: DriftReference | None
    versions: dict[str, VersionDrift]
    changed: bool = False
    """Whether it changed since it was written."""

    def stored(self) -> EndpointDrift:
        return EndpointDrift(
            reference=self.reference,
            versions={name: drift.keep() for name, drift in self.versions.items()},
        )


async def call_replica(replica: Replica, method: str, path: str, body: bytes) -> bytes:
    """Return the body of a replica's answer.

    Raises:
        UnavailableError: The replica does not answer, or refuses.
    """
    answer = await fetch(
        replica.address,
        f"{path}?{replica.query}",
        timeout_s=_TIMEOUT_S,
        method=method,
        headers={"content-type": "application/json"},
        body=body,
    )
    if answer.status != _HTTP_OK:
        raise UnavailableError(f"status {answer.status}", retry_after_s=None)
    return answer.body


@dataclass(slots=True, kw_only=True)
class DriftMonitor:
    """Monitors every endpoint whose spec has `drift` while `run` is awaited."""

    target_state: TargetState
    files: DriftFiles
    labels: LabelStore
    clock: Clock
    emit: Emit
    call: Call = call_replica
    """Calls a replica with method, path and body, and returns its answer."""
    faults: Faults = field(default_factory=Faults)
    _kept: dict[str, _EndpointDrift] = field(default_factory=dict)
    _saved_at: float = 0.0
    _asking: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_MAX_CONCURRENT))

    async def run(self) -> None:
        """Poll replicas and evaluate drift until cancelled."""
        try:
            while True:
                with self.faults.contain(LOOP, "drift"):
                    await self.poll()
                await asyncio.sleep(_INTERVAL_S)
        finally:
            self._save()
            self.labels.close()

    async def poll(self) -> None:
        """Poll the replicas of each monitored endpoint once, and evaluate drift."""
        desired = {
            endpoint.name: endpoint.drift for endpoint in self.target_state.desired.endpoints
        }
        effective = self.target_state.reconciler.desired.endpoints
        watched = [
            (endpoint, settings)
            for endpoint in effective
            if (settings := desired.get(endpoint.name)) is not None
        ]
        for removed in self._kept.keys() - {endpoint.name for endpoint, _ in watched}:
            del self._kept[removed]
            if removed not in desired:
                self.files.forget(removed)
        for kind in ("drift", "drift files"):
            self.faults.keep_only(kind, [endpoint.name for endpoint, _ in watched])
        ready: dict[str, list[Replica]] = {}
        for replica in self.target_state.reconciler.replicas.values():
            if replica.phase is ReplicaPhase.READY:
                ready.setdefault(replica.endpoint, []).append(replica)
        await asyncio.gather(
            *(
                self._check_endpoint(endpoint, settings, ready.get(endpoint.name, []))
                for endpoint, settings in watched
            )
        )
        now = self.clock.now()
        if now - self._saved_at >= _SAVE_S:
            self._saved_at = now
            self._save()

    def settings(self, name: str) -> DriftSpec | None:
        """Return an endpoint's drift settings; None if it is not monitored.

        Raises:
            EndpointNotFoundError: There is no such endpoint.
        """
        endpoint = self.target_state.desired.endpoint(name)
        if endpoint is None:
            raise EndpointNotFoundError(name)
        return endpoint.drift

    def version(self, name: str, version: str = "") -> tuple[str, VersionDrift | None]:
        """Return the drift state of a version; by default the one with most requests."""
        endpoint = self.target_state.effective_endpoint(name)
        arms = endpoint.arms if endpoint is not None else ()
        if not version and arms:
            version = max(arms, key=lambda arm: arm.weight).revision.version
        state = self._kept.get(name)
        return version, None if state is None else state.versions.get(version)

    def drifted(self, name: str) -> int | None:
        """Return the number of drifted features of an endpoint; None if it is not monitored."""
        _, version = self.version(name)
        if version is None:
            return None
        return sum(report.state is FeatureState.DRIFTED for report in version.reports())

    def set_reference(self, name: str, reference: DriftReference) -> None:
        """Compare the endpoint's requests with `reference` from now on.

        Raises:
            EndpointNotFoundError: There is no such endpoint.
            FailedPreconditionError: Its spec has no `drift`.
        """
        settings = self.settings(name)
        if settings is None:
            message = f"endpoint '{name}' is not watched; put `drift: {{}}` under it in the spec"
            raise FailedPreconditionError(message)
        state = self._kept[name] = _EndpointDrift(reference=reference, versions={}, changed=True)
        endpoint = self.target_state.effective_endpoint(name)
        for version, arm in _own_arms(endpoint).items() if endpoint is not None else ():
            state.versions[version] = self._begin(state, arm, settings, None)
        self._save()

    def reset(self, name: str) -> None:
        """Drop the reference of an endpoint, including one that a user set.

        Raises:
            EndpointNotFoundError: There is no such endpoint.
        """
        self.settings(name)
        self._kept[name] = _EndpointDrift(reference=None, versions={}, changed=True)
        self._save()

    def families(self) -> list[Family]:
        """Return the scores of each endpoint's main version as metrics."""
        samples: list[tuple[Labels, float]] = []
        for name in sorted(self._kept):
            _, drift = self.version(name)
            for report in drift.reports() if drift is not None else ():
                for statistic, value in _scores(report).items():
                    if value is not None:
                        labels = (
                            ("endpoint", name),
                            ("feature", report.name),
                            ("statistic", statistic),
                        )
                        samples.append((labels, value))
        text = "Distance of a feature from its reference; `drifted` is 1 while it is significant."
        return [gauge("headrace_drift_score", text, samples)]

    async def _check_endpoint(
        self, endpoint: DesiredEndpoint, settings: DriftSpec, ready: Sequence[Replica]
    ) -> None:
        with self.faults.contain("drift", endpoint.name):
            state = self._kept.get(endpoint.name) or self._load(endpoint.name, settings)
            copies = self.target_state.reconciler.replicas.values()
            replicas = [
                *ready,
                *hosted_replicas(endpoint, copies, self.target_state.reconciler.hosted),
            ]
            arms = _own_arms(endpoint)
            for removed in state.versions.keys() - arms.keys():
                del state.versions[removed]
            for version, arm in arms.items():
                drift = state.versions.get(version)
                if drift is None or drift.settings != settings:
                    drift = state.versions[version] = self._begin(state, arm, settings, drift)
                own = [replica for replica in replicas if replica.version == version]
                taken = await self._take(own, drift)
                if taken.seen and self._kept.get(endpoint.name) is state:
                    state.changed = True
                    await self._remember(endpoint.name, version, taken.answers)
                    if await self._judge(endpoint.name, version, drift, taken):
                        self._save_now(endpoint.name)

    async def _remember(self, name: str, version: str, answers: Sequence[SeenAnswer]) -> None:
        """Store answers for their labels; a full disk does not stop the evaluation."""
        if not answers:
            return
        pairs = [(answer.request_id, answer.value) for answer in answers]
        now = self.clock.now()
        try:
            await asyncio.to_thread(self.labels.add_answers, name, version, pairs, now=now)
        except HeadraceError as error:
            _LOG.warning("cannot remember answers", extra={"endpoint": name, "error": str(error)})

    def _save_now(self, name: str) -> None:
        """Write an endpoint's state immediately, because an event was emitted."""
        state = self._kept[name]
        state.changed = False
        self.files.write(name, state.stored())

    def _load(self, name: str, settings: DriftSpec) -> _EndpointDrift:
        loaded = self.files.read(name)
        versions = {
            version: VersionDrift(settings=settings, stored=stored)
            for version, stored in loaded.versions.items()
        }
        state = self._kept[name] = _EndpointDrift(reference=loaded.reference, versions=versions)
        return state

    def _begin(
        self,
        state: _EndpointDrift,
        arm: DesiredArm,
        settings: DriftSpec,
        before: VersionDrift | None,
    ) -> VersionDrift:
        """Return the drift state of a new version, or of one with changed settings."""
        if before is not None:
            return VersionDrift(settings=settings, stored=StoredDrift(reference=before.reference))
        reference = state.reference or self.files.reference(arm.revision.model)
        if reference is None:
            others = [
                other.reference for other in state.versions.values() if other.reference.features
            ]
            reference = inputs_only(others[-1]) if others else DriftReference()
        return VersionDrift(settings=settings, stored=StoredDrift(reference=reference))

    async def _judge(self, name: str, version: str, drift: VersionDrift, taken: DriftTaken) -> bool:
        """Evaluate a version's drift; return whether an event was emitted."""
        count = len(drift.reference.features)
        now = self.clock.now()
        changed = await asyncio.to_thread(
            drift.add, taken.counts, taken.values, now=now, age_s=taken.age_s
        )
        events = _events(name, version, changed, now)
        if len(drift.reference.features) > count:
            events.append(_reference_event(name, version, drift, now))
        for event in events:
            _LOG.info("%s", event.message, extra={"endpoint": name})
        await self.emit(events)
        return bool(events)

    async def _take(self, replicas: Sequence[Replica], drift: VersionDrift) -> DriftTaken:
        """Return the merged counts of one version's replicas."""
        plan = DriftPlan(
            key=drift.key,
            bins=drift.bins,
            sample=_SAMPLE,
            rows_per_request=drift.settings.rows_per_request,
            labels=drift.settings.labels,
            output=drift.settings.output,
        )
        taken = await asyncio.gather(*(self._ask(replica, plan) for replica in replicas))
        replies = [reply for reply in taken if reply is not None]
        total = [ValueCounts()] * len(plan.bins)
        for reply in replies:
            total = [
                previous.plus(more) for previous, more in zip(total, reply.counts, strict=True)
            ]
        return DriftTaken(
            key=plan.key,
            counts=total,
            values=[values for reply in replies for values in reply.values],
            answers=[answer for reply in replies for answer in reply.answers],
            seen=sum(reply.seen for reply in replies),
            age_s=max((reply.age_s for reply in replies), default=0.0),
        )

    async def _ask(self, replica: Replica, plan: DriftPlan) -> DriftTaken | None:
        """Return a replica's counts by `plan`; send it the plan if it follows another one."""
        async with self._asking:
            try:
                body = await self.call(replica, "POST", "/internal/drift/take", b"")
                taken = msgspec.json.decode(body, type=DriftTaken)
                if taken.key == plan.key:
                    fits = len(taken.counts) in {0, len(plan.bins)}
                    return taken if fits and taken.seen else None
                await self.call(replica, "PUT", "/internal/drift", msgspec.json.encode(plan))
            except (HeadraceError, *UNDECODABLE) as error:
                extra = {"replica": replica.name, "error": str(error)}
                _LOG.debug("replica does not report its counts", extra=extra)
        return None

    def _save(self) -> None:
        for name, state in self._kept.items():
            if state.changed:
                with self.faults.contain("drift files", name):
                    self._save_now(name)


def _own_arms(endpoint: DesiredEndpoint) -> dict[str, DesiredArm]:
    """Return the arms by version, except upstreams, which do not report counts."""
    return {arm.revision.version: arm for arm in endpoint.arms if not arm.revision.upstream}


def _scores(report: FeatureReport) -> dict[str, float | None]:
    return {
        "psi": report.psi,
        "js": report.js,
        "ks": report.ks,
        "missing_ratio": report.missing_ratio,
        "out_of_range_ratio": report.out_of_range_ratio,
        "type_violation_ratio": report.type_violation_ratio,
        "drifted": float(report.state is FeatureState.DRIFTED),
    }


def _events(
    endpoint: str, version: str, changed: Sequence[FeatureReport], now: float
) -> list[Event]:
    drifted = [report for report in changed if report.state is FeatureState.DRIFTED]
    ended = [report for report in changed if report.state is not FeatureState.DRIFTED]
    events = []
    for reports, reason, verb in (
        (drifted, "DriftFound", "drifted"),
        (ended, "DriftEnded", "drifted no more"),
    ):
        if not reports:
            continue
        worst = sorted(reports, key=lambda report: -report.evidence)
        descriptions = [_describe(report) for report in worst]
        more = f" and {len(descriptions) - _TOLD} more" if len(descriptions) > _TOLD else ""
        events.append(
            Event(
                at=now,
                endpoint=endpoint,
                kind="drift",
                reason=reason,
                message=f"version {version}: {verb}: {'; '.join(descriptions[:_TOLD])}{more}",
                data={
                    report.name: {
                        "evidence": report.evidence,
                        "needed": report.needed,
                        "ks": report.ks,
                    }
                    for report in worst
                },
            )
        )
    return events


def _describe(report: FeatureReport) -> str:
    label = f" '{report.label}'" if report.label else ""
    return f"{report.name}{label} ({report.role}{f', {report.why}' if report.why else ''})"


def _reference_event(endpoint: str, version: str, drift: VersionDrift, now: float) -> Event:
    return Event(
        at=now,
        endpoint=endpoint,
        kind="drift",
        reason="DriftReferenceTaken",
        message=f"version {version}: the first {drift.settings.window_rows} rows are the reference "
        f"now, of {len(drift.reference.features)} features in all",
        data={"rows": drift.settings.window_rows, "features": len(drift.reference.features)},
    )
