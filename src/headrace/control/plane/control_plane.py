"""The control plane of one home: its services, and its status as a whole."""

import asyncio
import contextlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from headrace import __version__
from headrace.control.base.context import ServiceContext
from headrace.control.base.log_files import LogFiles
from headrace.control.desired.documents import relocate_and_fetch
from headrace.control.desired.models import ModelWork
from headrace.control.desired.service import DesiredStateService
from headrace.control.desired.target import TargetState
from headrace.control.local.driver import LocalDriver
from headrace.control.local.sandbox import Environment
from headrace.control.model.desired import DesiredEndpoint
from headrace.control.plane.status import GatewayStatus, SystemStatus
from headrace.control.plane.workloads import WorkloadsService
from headrace.control.reconcile.service import ReconcileService
from headrace.control.reconcile.status import EndpointStatus, endpoint_statuses
from headrace.control.rollouts.driver import RolloutDriver
from headrace.control.scaling.service import ScalingService
from headrace.control.telemetry.prometheus import PrometheusHistory
from headrace.control.telemetry.service import TelemetryService
from headrace.core import CancellableInspect
from headrace.core.processes import resident_bytes
from headrace.rollout.state import RolloutPhase

_LOG: Final = logging.getLogger("headrace.control")
_RECHECK_INTERVAL_S: Final = 0.1


class ControlPlane:
    """The services of one home, each of which depends only on earlier ones."""

    def __init__(
        self,
        context: ServiceContext,
        *,
        reconciling: ReconcileService,
        driver: LocalDriver,
        inspect: CancellableInspect,
        log_files: LogFiles,
        prometheus: PrometheusHistory | None = None,
        allow_code: bool = False,
        model_roots: tuple[Path, ...] = (),
    ) -> None:
        """Create the services with stored state. Blocking; nothing runs yet.

        Args:
            driver: Starts processes on this machine: replicas, and the workers of streams.
            allow_code: Whether every endpoint may have models that run their authors' code.
            model_roots: Below these directories every caller may name model paths; elsewhere only
                admins may.
        """
        store, registry = context.store, context.registry
        self.context: Final = context
        self.home: Final = context.home
        self.store: Final = store
        self.registry: Final = registry
        self.journal: Final = context.journal
        self.faults: Final = context.faults
        self.clock: Final = context.clock
        self.addresses: Final = context.addresses
        self.note: Final = context.note
        self.log_files: Final = log_files
        self.stop_requested: Final = asyncio.Event()
        self.reconciling: Final = reconciling
        environment = Environment() if driver.sandbox is None else driver.sandbox.environment
        self.target_state: Final = TargetState(
            reconciler=reconciling.reconciler,
            desired=relocate_and_fetch(store.load.blocking(), registry),
            withhold=environment.withhold,
        )
        self.desired_state: Final = DesiredStateService(
            store=store,
            registry=registry,
            target_state=self.target_state,
            journal=context.journal,
            clock=context.clock,
            work=ModelWork(inspect),
            faults=context.faults,
            max_body_bytes=reconciling.gateway_supervisor.settings.max_body_bytes,
            allow_code=allow_code,
            model_roots=model_roots,
        )
        self.scaling: Final = ScalingService(
            context, target_state=self.target_state, reconciling=reconciling
        )
        self.rollouts: Final = RolloutDriver(
            store=store,
            journal=context.journal,
            target_state=self.target_state,
            gateway=reconciling.gateway_supervisor,
            arms_log=reconciling.gateway_supervisor.settings.arms_log,
            clock=context.clock,
            reports=reconciling.reports,
            relocate=lambda record: relocate_and_fetch(record, registry),
            faults=context.faults,
        )
        self.rollouts.load()
        self.workloads: Final = WorkloadsService(
            context, target_state=self.target_state, reconciling=reconciling, driver=driver
        )
        self.telemetry: Final = TelemetryService(
            context,
            target_state=self.target_state,
            reconciling=reconciling,
            scaling=self.scaling,
            rollouts=self.rollouts,
            jobs=self.workloads.jobs,
            streams=self.workloads.streams,
            prometheus=prometheus,
        )

    def request_stop(self) -> None:
        """Request that everything drains and stops."""
        _LOG.info("stopping on request of the management API")
        self.stop_requested.set()

    async def wait_ready(
        self, timeout_s: float, *, name: str = "", streams: bool = False, rollouts: bool = False
    ) -> SystemStatus:
        """Return the status when every endpoint is ready or failed permanently, or at the timeout.

        Args:
            name: Wait for this endpoint only; empty for all.
            streams: Whether to also wait until each stream runs or cannot run without help.
            rollouts: Whether to also wait until the new version of each rollout is ready.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while not _is_decided(status := self.status(), name, streams=streams) or (
                    rollouts and self._prepares(name)
                ):
                    # The reconciler does not signal when the gateway becomes ready, so this polls
                    # too.
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_RECHECK_INTERVAL_S):
                            await self.reconciling.reconciler.changes.wait()
        except TimeoutError:
            return self.status()
        return status

    def _prepares(self, name: str) -> bool:
        """Whether a rollout of endpoint `name`, or of any, waits for its new version."""
        return any(
            record.state.phase is RolloutPhase.PREPARING
            for record in self.target_state.active()
            if name in {"", record.endpoint}
        )

    def status(self) -> SystemStatus:
        """Return the status of the system."""
        endpoints = self.endpoint_statuses(self.target_state.effective.endpoints)
        gateway_supervisor = self.reconciling.gateway_supervisor
        gateway = GatewayStatus(
            ready=gateway_supervisor.is_ready,
            pid=gateway_supervisor.pid,
            restarts=gateway_supervisor.restarts,
            reason=gateway_supervisor.reason or self.reconciling.reconciler.publication.error,
            certificates=()
            if gateway_supervisor.tls is None
            else gateway_supervisor.tls.certificates.statuses(),
            gateways=gateway_supervisor.states(),
        )
        streams = self.workloads.streams.views()
        return SystemStatus(
            ready=gateway.ready
            and all(endpoint.ready for endpoint in endpoints)
            and all(stream.is_well for stream in streams),
            version=__version__,
            generation=self.target_state.desired.generation,
            pid=os.getpid(),
            metrics_read_at=self.telemetry.metrics_read_at,
            home=str(self.home.root),
            gateway=gateway,
            endpoints=endpoints,
            addresses={
                "http": self.addresses.http_url,
                "grpc": self.addresses.grpc_target,
                "metrics": self.addresses.metrics_url,
                "admin": self.addresses.admin_url,
            },
            features=self.workloads.materializer.statuses(),
            feature_skew=self.workloads.skew.statuses(),
            streams=streams,
            faults=self.faults.current(),
        )

    def endpoint_statuses(
        self, endpoints: Sequence[DesiredEndpoint], *, with_memory: bool = True
    ) -> tuple[EndpointStatus, ...]:
        """Return the status of some endpoints. Reading memory dominates for many endpoints."""
        reconciling = self.reconciling
        observed = reconciling.reconciler.observed()
        pids = [r.pid for r in observed.replicas.values() if r.pid is not None and with_memory]
        is_asked = reconciling.sends_first_requests
        return endpoint_statuses(
            endpoints,
            observed,
            first_requests=reconciling.first_requests.results if is_asked else None,
            http_url=self.addresses.http_url,
            rss_bytes={pid: resident_bytes(pid) or None for pid in pids},
            advice=self.scaling.advisor.message,
            arm_problem=reconciling.arm_problem,
            isolation=reconciling.reconciler.isolation_of,
            device=reconciling.reports.device,
            batching=self.telemetry.rows.report,
        )


def _is_decided(status: SystemStatus, name: str, *, streams: bool) -> bool:
    """Whether further waiting for `name`, or for all if it is empty, is pointless."""
    endpoints = [e for e in status.endpoints if name in {"", e.name}]
    waiting = [
        stream for stream in status.streams if streams and not (stream.is_well or stream.stuck)
    ]
    return status.gateway.ready and all(e.ready or e.failed for e in endpoints) and not waiting
