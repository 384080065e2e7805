"""The control plane of one home: what should run, what runs, and everything one may ask of it."""

import asyncio
import contextlib
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from headrace import __version__
from headrace.control.agents.protocol import Gateway
from headrace.control.app.faults import Faults
from headrace.control.app.home import Home
from headrace.control.app.journal import Journal
from headrace.control.app.log_files import LogFiles
from headrace.control.auth.audit_log import Change
from headrace.control.auth.references import ModelFacts, may_read_model
from headrace.control.auth.roles import Caller, Role
from headrace.control.desired.aims import Aims
from headrace.control.desired.orders import Orders
from headrace.control.desired.state import DesiredArm, DesiredEndpoint, DesiredState
from headrace.control.desired.wishes import Applied as Applied  # noqa: PLC0414  # part of this API
from headrace.control.features.materializer import Materializer
from headrace.control.features.skew_watch import SkewWatch
from headrace.control.gateway.activator import Activator
from headrace.control.gateway.caller_policy import CallerPolicy, Keys
from headrace.control.gateway.first_request import NEXT_TRY, FirstRequest, send_first_request
from headrace.control.gateway.upstream_watch import UpstreamWatch
from headrace.control.jobs.scheduler import JobScheduler
from headrace.control.limits.service import LimitService
from headrace.control.local.advice import Advisor
from headrace.control.notify.notifier import Notifier, Silences
from headrace.control.payloads.writer import PayloadWriter
from headrace.control.reconcile.pools import PoolSync
from headrace.control.reconcile.publication import Reconciling
from headrace.control.reconcile.status import (
    EndpointStatus,
    GatewayStatus,
    Status,
    endpoint_statuses,
    is_routed_as_desired,
    revision_ids,
)
from headrace.control.rollouts.driver import RolloutDriver
from headrace.control.scaling.scaler import Scaler
from headrace.control.state.records import EndpointGeneration, RolloutRecord
from headrace.control.state.store import Store
from headrace.control.streams.supervisor import StreamSupervisor
from headrace.control.telemetry.alerting import Alerting
from headrace.control.telemetry.drift import DriftKeeper
from headrace.control.telemetry.gpu_metrics import Gpus
from headrace.control.telemetry.pollers import LoadWatch, Recorder
from headrace.control.telemetry.prometheus import PrometheusHistory
from headrace.control.telemetry.recordings import Recordings
from headrace.control.telemetry.reports import Reports, RowWatch
from headrace.core import Clock, HeadraceError
from headrace.core.devices import DeviceUse
from headrace.core.processes import resident_bytes
from headrace.core.redact import redact
from headrace.monitor import History, LoadHistory
from headrace.registry import Registry

_LOG: Final = logging.getLogger("headrace.control")
_LOOK_AGAIN_S: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Where everything is reached."""

    http_url: str
    grpc_target: str
    metrics_url: str
    admin_url: str


@dataclass(slots=True, kw_only=True)
class ControlPlane:
    """Answers questions and takes orders; `Reconciler` and `Gateway` carry them out."""

    home: Home
    store: Store
    registry: Registry
    reconciler: Reconciling
    keeper: Gateway
    aims: Aims
    orders: Orders
    rollout_driver: RolloutDriver
    scaler: Scaler
    advisor: Advisor
    activator: Activator
    callers: CallerPolicy
    keys: Keys
    upstreams: UpstreamWatch
    pools: PoolSync
    reports: Reports
    recorder: Recorder
    load_watch: LoadWatch
    rows: RowWatch
    drift: DriftKeeper
    journal: Journal
    alerting: Alerting
    notifier: Notifier
    silences: Silences
    clock: Clock
    addresses: Addresses
    gateway_address: str
    log_files: LogFiles
    recordings: Recordings
    payloads: PayloadWriter
    materializer: Materializer
    jobs: JobScheduler
    skew: SkewWatch
    streams: StreamSupervisor
    faults: Faults = field(default_factory=Faults)
    limits: LimitService | None = None
    gpus: Gpus = field(default_factory=Gpus)
    prometheus: PrometheusHistory | None = None
    sends_first_requests: bool = True
    metrics_read_at: float | None = None
    first_requests: dict[str, FirstRequest] = field(default_factory=dict)
    stop_requested: asyncio.Event = field(default_factory=asyncio.Event)
    _asking: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def desired(self) -> DesiredState:
        """What should be served in the end, as it was ordered."""
        return self.aims.desired

    @property
    def effective(self) -> DesiredState:
        """What should run now, as far as rollouts have come and with as many copies as needed."""
        return self.reconciler.desired

    def endpoint_entry(self, name: str) -> dict[str, Any] | None:
        """What the spec says about an endpoint."""
        return self.desired.entry(name)

    def endpoint_generation(self, name: str) -> int:
        """How often an endpoint was changed; 0 for none of this name."""
        endpoint = self.desired.endpoint(name)
        return 0 if endpoint is None else endpoint.generation

    @property
    def history(self) -> History:
        """What became of the requests of the last day."""
        return self.recorder.history

    @property
    def load_history(self) -> LoadHistory:
        """How busy the replicas of the last day were."""
        return self.load_watch.history

    async def generations(self, name: str, limit: int = 100) -> list[EndpointGeneration]:
        """An endpoint's generations, the newest first."""
        return await self.store.history(name, limit=limit)

    def rollout(self, name: str) -> RolloutRecord | None:
        """The newest rollout of an endpoint, as it is now."""
        return self.aims.rollouts.get(name)

    async def rollouts(self, name: str = "", limit: int = 100) -> list[RolloutRecord]:
        """Rollouts, the newest first; of all endpoints if `name` is empty."""
        stored = await self.store.rollouts(name, limit=limit)
        # What is under way is newer in memory: its verdict is not written every second.
        live = {record.id: record for record in self.aims.rollouts.values()}
        return [live.get(record.id, record) for record in stored]

    async def note(
        self, action: str, about: str, *, before: object = None, after: object = None, actor: str
    ) -> None:
        """Enter in the trail what was changed elsewhere than in the store."""
        change = Change(
            at=self.clock.now(),
            actor=actor,
            action=action,
            object=about,
            before=redact(before),
            after=redact(after),
        )
        await self.store.add_changes([change])

    def in_use(self) -> set[str]:
        """`NAME:VERSION` of what is served, will be, or is what a rollout may go back to."""
        served = {arm.revision.model for endpoint in self.aims.served() for arm in endpoint.arms}
        return served.union(stream.model for stream in self.desired.streams)

    def model_facts(self, model: str) -> ModelFacts:
        """What decides who may read and change a model. Blocking: reads the registry's index."""
        return ModelFacts(users=self.aims.users_of(model), owners=self.registry.owners(model))

    def readable_models(self, caller: Caller, names: Collection[str]) -> set[str]:
        """Those of the models that a caller may read. Blocking, as `model_facts`."""
        if caller.may(Role.VIEWER):
            return set(names)
        return {name for name in names if may_read_model(caller, name, self.model_facts(name))}

    def request_stop(self) -> None:
        """Drain and end everything, soon."""
        _LOG.info("stopping as the management API was asked to")
        self.stop_requested.set()

    async def wait_ready(
        self, timeout_s: float, *, name: str = "", streams: bool = False
    ) -> Status:
        """The status when each endpoint is ready or failed for good, or time is up.

        Args:
            name: Wait for this endpoint only; empty for all.
            streams: Wait until each stream runs, or will not without help, too.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while not _is_decided(status := self.status(), name, streams=streams):
                    # The gateway's coming up is no change of the reconciler's: look again anyway.
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_LOOK_AGAIN_S):
                            await self.reconciler.news.wait()
        except TimeoutError:
            return self.status()
        return status

    async def ask_first_requests(self) -> None:
        """Send each endpoint a first request when its revisions change, until one is answered."""
        if not self.sends_first_requests:
            return
        async with asyncio.TaskGroup() as group:
            while True:
                for endpoint in self._unasked():
                    self._asking[endpoint.name] = revision_ids(endpoint)
                    group.create_task(self._ask(endpoint))
                await self.reconciler.news.wait()

    def ask_again(self) -> None:
        """Ask upstreams anew that did not answer: something about the way to them is different."""
        for endpoint in self.effective.endpoints:
            first = self.first_requests.get(endpoint.name)
            leads_out = any(arm.revision.upstream is not None for arm in endpoint.arms)
            if leads_out and first is not None and not first.answered:
                del self.first_requests[endpoint.name]
                self._asking.pop(endpoint.name, None)
        self.reconciler.news.note()

    async def take_certificate(self, name: str) -> None:
        """Use a certificate of which there was no good one before."""
        await self.keeper.take_certificate(name)
        self.ask_again()

    def _unasked(self) -> list[DesiredEndpoint]:
        """Endpoints that requests reach, with revisions that nobody asked yet."""
        routes = {route.name: route for route in self.reconciler.publication.published or ()}
        names = [endpoint.name for endpoint in self.effective.endpoints]
        self.faults.keep_only("first request", names)
        return [
            endpoint
            for endpoint in self.effective.endpoints
            if not endpoint.split_id
            and not endpoint.scaled_to_zero
            and is_routed_as_desired(endpoint, routes.get(endpoint.name))
            and self._asking.get(endpoint.name) != revision_ids(endpoint)
        ]

    async def _ask(self, endpoint: DesiredEndpoint) -> None:
        name, revisions, result = endpoint.name, revision_ids(endpoint), None
        with self.faults.contain("first request", name):
            result = await send_first_request(
                self.gateway_address,
                name,
                revisions=revisions,
                clock=self.clock,
                example=await asyncio.to_thread(self._example, endpoint),
            )
        if result is None:
            return
        if self._asking.get(name) != revisions:
            return  # the endpoint changed meanwhile, and a newer request is on its way
        if result.answered:
            self.first_requests[name] = result
            extra = {"endpoint": name, "seconds": f"{result.latency_s:.4f}"}
            _LOG.info("endpoint answered its first request", extra=extra)
            self.reconciler.news.note()
            return
        before = self.first_requests.get(name)
        failures = before.failures if before and before.revisions == revisions else 0
        self.first_requests[name] = replace(result, failures=failures + 1)
        extra = {"endpoint": name, "error": result.message}
        _LOG.error("endpoint did not answer its first request", extra=extra)
        self.reconciler.news.note()
        await asyncio.sleep(NEXT_TRY.delay_s(failures + 1))
        latest = self.first_requests.get(name)
        if self._asking.get(name) == revisions and latest and not latest.answered:
            del self._asking[name]
            self.reconciler.news.note()

    def _example(self, endpoint: DesiredEndpoint) -> Mapping[str, float | str]:
        """Values that its model takes; empty for a model that is not of the registry. Blocking."""
        arm = max(endpoint.arms, key=lambda arm: arm.weight)
        try:
            return self.registry.get(arm.revision.model).signature.example
        except HeadraceError:
            return {}

    async def release_held(self) -> None:
        """Let held requests go as soon as the gateway sends them elsewhere; until cancelled."""
        while True:
            change = self.reconciler.news.next
            held = {
                route.name for route in self.reconciler.publication.published or () if route.held
            }
            for name in self.activator.held.keys() - held:
                self.activator.release(name)
            await change.wait()

    def status(self) -> Status:
        """How everything is now."""
        endpoints = self.endpoint_statuses(self.effective.endpoints)
        gateway = GatewayStatus(
            ready=self.keeper.is_ready,
            pid=self.keeper.pid,
            restarts=self.keeper.restarts,
            reason=self.keeper.reason or self.reconciler.publication.error,
            certificates=() if self.keeper.tls is None else self.keeper.tls.certificates.statuses(),
            gateways=self.keeper.states(),
        )
        streams = self.streams.views()
        return Status(
            ready=gateway.ready
            and all(endpoint.ready for endpoint in endpoints)
            and all(stream.is_well for stream in streams),
            version=__version__,
            generation=self.desired.generation,
            pid=os.getpid(),
            metrics_read_at=self.metrics_read_at,
            home=str(self.home.root),
            gateway=gateway,
            endpoints=endpoints,
            addresses={
                "http": self.addresses.http_url,
                "grpc": self.addresses.grpc_target,
                "metrics": self.addresses.metrics_url,
                "admin": self.addresses.admin_url,
            },
            features=self.materializer.statuses(),
            feature_skew=self.skew.statuses(),
            streams=streams,
            faults=self.faults.current(),
        )

    def endpoint_statuses(
        self, endpoints: Sequence[DesiredEndpoint], *, with_memory: bool = True
    ) -> tuple[EndpointStatus, ...]:
        """How some endpoints are now. Of many, the processes' memory takes longest to read."""
        observed = self.reconciler.observed()
        pids = [r.pid for r in observed.replicas.values() if r.pid is not None and with_memory]
        return endpoint_statuses(
            endpoints,
            observed,
            first_requests=self.first_requests if self.sends_first_requests else None,
            http_url=self.addresses.http_url,
            rss_bytes={pid: resident_bytes(pid) or None for pid in pids},
            advice=self.advice,
            trouble=self.arm_trouble,
            isolation=self.reconciler.isolation_of,
            device=self.device_of,
            batching=self.rows.report,
        )

    def device_of(self, replica: str) -> DeviceUse | None:
        """On what a replica runs its model; None if it did not say yet."""
        report = self.reports.latest(replica)
        return None if report is None else report.device

    def advice(self, endpoint: str, arm: str) -> str:
        """What one copy of an arm should have, and why; empty if that cannot be said yet."""
        found = self.advisor.recommendation(endpoint, arm)
        return found.message if found is not None and found.memory_bytes is not None else ""

    def arm_trouble(self, endpoint: str, arm: DesiredArm) -> str:
        """Why an arm cannot be had; empty if it can.

        Its model cannot be served, its upstream is not spoken to, or its copies are not made.
        """
        if arm.revision.unloadable:
            return arm.revision.unloadable
        if arm.revision.upstream is None:
            return self.reconciler.trouble(endpoint, arm)
        problem = self.keeper.upstream_problem(arm.revision.upstream)
        return problem or self.upstreams.trouble(endpoint, arm.key)


def _is_decided(status: Status, name: str, *, streams: bool) -> bool:
    """Whether waiting for `name`, or for all if it is empty, changes nothing any more."""
    endpoints = [e for e in status.endpoints if name in {"", e.name}]
    waiting = [one for one in status.streams if streams and not (one.is_well or one.stuck)]
    return status.gateway.ready and all(e.ready or e.failed for e in endpoints) and not waiting
