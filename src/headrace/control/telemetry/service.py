"""Telemetry service: histories of requests and replicas, drift, alerts and notifications."""

import asyncio
import os
import platform
from typing import Final

from headrace.control.agents.fleet import GatewayFleet
from headrace.control.base.context import ServiceContext
from headrace.control.desired.target import TargetState
from headrace.control.features.skew_watch import ServedFeaturesStore
from headrace.control.jobs.scheduler import JobScheduler
from headrace.control.model.observed import Replica
from headrace.control.notify.delivery import send
from headrace.control.notify.notifier import Notifier, Silences
from headrace.control.payloads.writer import PayloadWriter
from headrace.control.reconcile.reports import RowWatch
from headrace.control.reconcile.service import ReconcileService
from headrace.control.rollouts.driver import RolloutDriver
from headrace.control.scaling.service import ScalingService
from headrace.control.streams.supervisor import StreamSupervisor
from headrace.control.telemetry.alerts import Alerting, FactsReader
from headrace.control.telemetry.drift import DriftMonitor
from headrace.control.telemetry.drift_files import DriftFiles
from headrace.control.telemetry.gpu_metrics import Gpus
from headrace.control.telemetry.labels import LabelStore
from headrace.control.telemetry.pollers import GatewayPoller, LoadWatch, loaded_arms
from headrace.control.telemetry.prometheus import PrometheusHistory
from headrace.control.telemetry.recorded_requests import Recordings, recorded_replicas
from headrace.control.telemetry.tokens import TokenLedger
from headrace.monitor import LoadHistory, RequestHistory
from headrace.observe.otlp import OtlpExporter, check_otel


class TelemetryService:
    """Polls replicas and gateways, keeps histories, evaluates alerts and notifies receivers."""

    def __init__(
        self,
        context: ServiceContext,
        *,
        target_state: TargetState,
        reconciling: ReconcileService,
        scaling: ScalingService,
        rollouts: RolloutDriver,
        jobs: JobScheduler,
        streams: StreamSupervisor,
        prometheus: PrometheusHistory | None,
    ) -> None:
        """Create the parts, with the state that an earlier control plane stored. Blocking.

        Args:
            prometheus: Source of data older than the history; None without Prometheus.
        """
        home, store, clock = context.home, context.store, context.clock
        faults, emit = context.faults, context.journal.write
        reconciler, gateway_supervisor = reconciling.reconciler, reconciling.gateway_supervisor
        self.recorder: Final = GatewayPoller(
            gateway=gateway_supervisor,
            names=lambda: {
                e.name for e in (*target_state.desired.endpoints, *target_state.effective.endpoints)
            },
            clock=clock,
            path=home.history_file,
            faults=faults,
        )
        self.recorder.load()
        self.rows: Final = RowWatch(emit=emit, clock=clock)
        self.load_watch: Final = LoadWatch(
            batching=self.rows.note,
            arms=lambda: loaded_arms(
                reconciler.desired.endpoints, reconciler.replicas.values(), reconciler.hosted
            ),
            running=reconciler.replicas.keys,
            clock=clock,
            path=home.load_file,
            faults=faults,
        )
        self.load_watch.load()
        stored = store.alerts.load.blocking()
        self.silences: Final = Silences(store=store, clock=clock)
        self.silences.load(stored.silences)
        self.notifier: Final = Notifier(
            spec=lambda: target_state.desired.spec,
            clock=clock,
            silences=self.silences.active,
            save=store.alerts.save_notices,
            environment=dict(os.environ),  # secrets are removed from os.environ later
            admin_url=context.addresses.admin_url,
            send=send,
            faults=faults,
        )
        self.notifier.load(stored.notices)
        self.drift: Final = DriftMonitor(
            target_state=target_state,
            files=DriftFiles(home.root),
            labels=LabelStore(home.root / "drift" / "labels.db"),
            clock=clock,
            emit=emit,
            faults=faults,
        )
        self.alerting: Final = Alerting(
            history=self.recorder.history,
            spec=lambda: target_state.desired.spec,
            facts=FactsReader(
                reconciler=reconciler,
                gateway_supervisor=gateway_supervisor,
                rows=self.rows,
                drift=self.drift,
                jobs=jobs,
                streams=streams,
            ).read,
            emit=emit,
            save=store.alerts.save_alerts,
            notify=self.notifier.offer,
            clock=clock,
            faults=faults,
        )
        self.alerting.load(stored.alerts)
        tracing = gateway_supervisor.settings.tracing
        if tracing is not None:
            check_otel()
        self.payloads: Final = PayloadWriter(root=home.payloads, clock=clock)
        self.recordings: Final = Recordings(
            replicas=lambda: recorded_replicas(target_state),
            payload_logs=lambda: {
                e.name: e.payload_log
                for e in target_state.desired.endpoints
                if e.payload_log is not None
            },
            payloads=self.payloads,
            features=ServedFeaturesStore(home.root),
            features_ratios=lambda: {
                e.name: e.features.sample_ratio
                for e in target_state.desired.endpoints
                if e.features
            },
            monotonic=clock.monotonic,
            faults=faults,
            spans=None if tracing is None else OtlpExporter(tracing.collector, service="headrace"),
        )
        fleet = gateway_supervisor
        self.tokens: Final = TokenLedger(
            statistics=gateway_supervisor.token_statistics,
            agents=fleet.agent_counts if isinstance(fleet, GatewayFleet) else dict,
            store=store,
            clock=clock,
            gateway=f"{platform.node()}:{home.root}",
            path=home.tokens_file,
            emit=emit,
            faults=faults,
        )
        self.tokens.load()
        scaling.scaler.use_streams(self.tokens.history)
        self.gpus: Final = Gpus()
        self.prometheus: Final = prometheus
        self.metrics_read_at: float | None = None
        """Unix time of the last read of `/metrics`."""
        self._context: Final = context
        self._reports: Final = reconciling.reports
        self._rollouts: Final = rollouts
        self._scaling: Final = scaling

    @property
    def history(self) -> RequestHistory:
        """History of the last day's requests."""
        return self.recorder.history

    @property
    def load_history(self) -> LoadHistory:
        """History of the replicas' load of the last day."""
        return self.load_watch.history

    def note_metrics_read(self) -> None:
        """Record that `/metrics` is read now."""
        self.metrics_read_at = self._context.clock.now()

    async def run(self) -> None:
        """Poll, evaluate and notify until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._context.faults.run(self._context.journal.write))
            group.create_task(self._reports.run(self._observed, self._rollouts.observe))
            for part in (
                self.recorder,
                self.load_watch,
                self.recordings,
                self.tokens,
                self.drift,
                self.alerting,
                self.notifier,
            ):
                group.create_task(part.run())

    def _observed(self) -> list[Replica]:
        """Return the replicas whose reports are needed."""
        return [*self._rollouts.observed_replicas(), *self._scaling.observed()]
