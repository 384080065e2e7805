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
from headrace.control.desired.documents import bring_home
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

_LOG: Final = logging.getLogger("headrace.control")
_LOOK_AGAIN_S: Final = 0.1


class ControlPlane:
    """The services of one home, each of which depends on those before it only."""

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
        """Make the services, with what is stored. Blocking; nothing runs yet.

        Args:
            driver: Starts processes of this machine: replicas, and the workers of streams.
            allow_code: Whether every endpoint may have models that run their authors' code.
            model_roots: Below these, everybody may name paths of models; elsewhere admins only.
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
        self.aims: Final = TargetState(
            reconciler=reconciling.reconciler,
            desired=bring_home(store.load.blocking(), registry),
            withhold=environment.withhold,
        )
        self.orders: Final = DesiredStateService(
            store=store,
            registry=registry,
            aims=self.aims,
            journal=context.journal,
            clock=context.clock,
            work=ModelWork(inspect),
            max_body_bytes=reconciling.keeper.settings.max_body_bytes,
            allow_code=allow_code,
            model_roots=model_roots,
        )
        self.scaling: Final = ScalingService(context, aims=self.aims, reconciling=reconciling)
        self.rollouts: Final = RolloutDriver(
            store=store,
            journal=context.journal,
            aims=self.aims,
            gateway=reconciling.keeper,
            clock=context.clock,
            reports=reconciling.reports,
            take_up=lambda record: bring_home(record, registry),
            faults=context.faults,
        )
        self.rollouts.load()
        self.workloads: Final = WorkloadsService(
            context, aims=self.aims, reconciling=reconciling, driver=driver
        )
        self.telemetry: Final = TelemetryService(
            context,
            aims=self.aims,
            reconciling=reconciling,
            scaling=self.scaling,
            rollouts=self.rollouts,
            jobs=self.workloads.jobs,
            streams=self.workloads.streams,
            prometheus=prometheus,
        )

    def request_stop(self) -> None:
        """Drain and end everything, soon."""
        _LOG.info("stopping as the management API was asked to")
        self.stop_requested.set()

    async def wait_ready(
        self, timeout_s: float, *, name: str = "", streams: bool = False
    ) -> SystemStatus:
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
                            await self.reconciling.reconciler.news.wait()
        except TimeoutError:
            return self.status()
        return status

    def status(self) -> SystemStatus:
        """How everything is now."""
        endpoints = self.endpoint_statuses(self.aims.effective.endpoints)
        keeper = self.reconciling.keeper
        gateway = GatewayStatus(
            ready=keeper.is_ready,
            pid=keeper.pid,
            restarts=keeper.restarts,
            reason=keeper.reason or self.reconciling.reconciler.publication.error,
            certificates=() if keeper.tls is None else keeper.tls.certificates.statuses(),
            gateways=keeper.states(),
        )
        streams = self.workloads.streams.views()
        return SystemStatus(
            ready=gateway.ready
            and all(endpoint.ready for endpoint in endpoints)
            and all(stream.is_well for stream in streams),
            version=__version__,
            generation=self.aims.desired.generation,
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
        """How some endpoints are now. Of many, the processes' memory takes longest to read."""
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
            trouble=reconciling.trouble,
            isolation=reconciling.reconciler.isolation_of,
            device=reconciling.reports.device,
            batching=self.telemetry.rows.report,
        )


def _is_decided(status: SystemStatus, name: str, *, streams: bool) -> bool:
    """Whether waiting for `name`, or for all if it is empty, changes nothing any more."""
    endpoints = [e for e in status.endpoints if name in {"", e.name}]
    waiting = [
        stream for stream in status.streams if streams and not (stream.is_well or stream.stuck)
    ]
    return status.gateway.ready and all(e.ready or e.failed for e in endpoints) and not waiting
