"""How are the parts that decide put together? Around one reconciler and one gateway keeper."""

import asyncio
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from headrace.control.agents.protocol import Gateway
from headrace.control.app.faults import Faults
from headrace.control.app.home import Home
from headrace.control.app.journal import Journal
from headrace.control.app.log_files import LogFiles
from headrace.control.desired.aims import Aims
from headrace.control.desired.documents import bring_home
from headrace.control.desired.models import ModelWork
from headrace.control.desired.orders import Orders
from headrace.control.desired.resolve_streams import through_gateway
from headrace.control.features.materialize_plan import ViewPast
from headrace.control.features.materializer import Materializer, materialize_view
from headrace.control.features.skew_watch import (
    ServedFeaturesKeeper,
    SkewWatch,
    compare_served,
    feature_watches,
)
from headrace.control.gateway.activator import Activator, HoldLimits
from headrace.control.gateway.caller_policy import CallerPolicy, Keys
from headrace.control.gateway.upstream_watch import UpstreamWatch
from headrace.control.jobs.process import JobStarter
from headrace.control.jobs.scheduler import JobScheduler, Planner
from headrace.control.limits.service import LimitService
from headrace.control.local.advice import Advisor, machine_budget
from headrace.control.local.driver import LocalDriver
from headrace.control.notify.delivery import send
from headrace.control.notify.notifier import Notifier, Silences
from headrace.control.payloads.writer import PayloadWriter
from headrace.control.plane import Addresses, ControlPlane
from headrace.control.reconcile.observed import Phase, Replica
from headrace.control.reconcile.pools import PoolSync
from headrace.control.reconcile.publication import Reconciling
from headrace.control.rollouts.driver import RolloutDriver
from headrace.control.scaling.scaler import Scaler, ScalerStates
from headrace.control.state.store import Store
from headrace.control.streams.driver import make_stream_driver
from headrace.control.streams.supervisor import StreamOrders, StreamSupervisor
from headrace.control.telemetry.alerting import Alerting, FactsReader
from headrace.control.telemetry.drift import DriftKeeper
from headrace.control.telemetry.drift_files import DriftFiles
from headrace.control.telemetry.labels import LabelStore
from headrace.control.telemetry.pollers import LoadWatch, Recorder, loaded_arms
from headrace.control.telemetry.prometheus import PrometheusHistory
from headrace.control.telemetry.recordings import (
    Recordings,
    features_ratios,
    payload_logs,
    recorded_replicas,
)
from headrace.control.telemetry.reports import Reports, RowWatch
from headrace.core import CancellableInspect, Clock
from headrace.core.processes import resident_bytes
from headrace.core.spec_base import parsed
from headrace.core.spec_scale import BudgetSpec
from headrace.core.state_file import StateFile
from headrace.features import applied_definitions
from headrace.features.applied import APPLIED
from headrace.observe.otlp import OtlpExporter, check_otel
from headrace.registry import Registry
from headrace.streaming.settings import StreamSettings


def make_plane(
    *,
    home: Home,
    store: Store,
    registry: Registry,
    inspect: CancellableInspect,
    reconciler: Reconciling,
    driver: LocalDriver,
    keeper: Gateway,
    clock: Clock,
    addresses: Addresses,
    gateway_address: str,
    log_files: LogFiles,
    limits: LimitService | None = None,
    prometheus: PrometheusHistory | None = None,
    sends_first_requests: bool = True,
    allow_code: bool = False,
    model_roots: tuple[Path, ...] = (),
    runs_here: bool = True,
) -> ControlPlane:
    """A control plane that aims at what is stored; nothing of it runs yet. Blocking.

    Args:
        driver: Starts processes of this machine: replicas, and the workers of streams.
        runs_here: Whether replicas are this machine's. Where they are not, streams and jobs are
            not either, and what all together may use is what the spec says.
    """
    desired = bring_home(store.load.blocking(), registry)
    aims = Aims(reconciler=reconciler, desired=desired)
    journal = Journal(store=store)
    faults = Faults(clock=clock)
    rollouts = RolloutDriver(
        store=store,
        journal=journal,
        aims=aims,
        gateway=keeper,
        clock=clock,
        take_up=lambda record: bring_home(record, registry),
        faults=faults,
    )
    reports = Reports(
        wanted=lambda: _wanted(
            rollouts.wanted(), scaler.wanted(), advisor.wanted(), _silent(reconciler, reports)
        ),
        observe=rollouts.observe,
        known=reconciler.replicas.keys,
        faults=faults,
    )
    rollouts.reports = reports
    advisor = Advisor(aims=aims, reports=reports, clock=clock, faults=faults)
    scaler = Scaler(
        aims=aims,
        latest=reports.latest,
        clock=clock,
        budget=lambda: machine_budget(_budget(aims)) if runs_here else _budget(aims),
        emit=journal.write,
        other_bytes=lambda: _other_bytes(aims),
        active=keeper.in_flight,
        memory=StateFile(home.scaling_file, ScalerStates, "the state of the autoscaler"),
        faults=faults,
    )
    scaler.load()
    aims.foresee = scaler.foresee
    rollouts.load()
    recorder = Recorder(
        gateway=keeper,
        names=lambda: _names(aims),
        clock=clock,
        path=home.history_file,
        faults=faults,
    )
    recorder.load()
    rows = RowWatch(emit=journal.write, clock=clock)
    load_watch = LoadWatch(
        batching=rows.note,
        arms=lambda: loaded_arms(
            reconciler.desired.endpoints, reconciler.replicas.values(), reconciler.hosted
        ),
        known=reconciler.replicas.keys,
        clock=clock,
        path=home.load_file,
        faults=faults,
    )
    load_watch.load()
    upstreams = UpstreamWatch(
        routes=lambda: reconciler.publication.published or (),
        read=keeper.handshakes,
        note_change=reconciler.news.note,
        faults=faults,
    )
    callers = CallerPolicy(
        store=store,
        clock=clock,
        gateway=keeper,
        spec=lambda: aims.desired.spec,
        next_change=lambda: reconciler.news.next,
        faults=faults,
    )
    callers.prepare()
    stored_alerts = store.alerts.load.blocking()
    silences = Silences(store=store, clock=clock)
    silences.load(stored_alerts.silences)
    notifier = Notifier(
        spec=lambda: aims.desired.spec,
        clock=clock,
        silences=silences.active,
        save=store.alerts.save_notices,
        environment=dict(os.environ),  # what secrets are named there is taken out later
        admin_url=addresses.admin_url,
        send=send,
        faults=faults,
    )
    drift = DriftKeeper(
        aims=aims,
        files=DriftFiles(home.root),
        labels=LabelStore(home.root / "drift" / "labels.db"),
        clock=clock,
        emit=journal.write,
        faults=faults,
    )
    sandbox = driver.sandbox
    if sandbox is not None:
        sandbox.environment.document = lambda: aims.desired.spec
    jobs = JobScheduler(
        store=store,
        planner=Planner.of_home(home.root, store=store, faults=faults),
        start=JobStarter(home=home.root, log=home.log_of("jobs"), sandbox=sandbox),
        emit=journal.write,
        clock=clock,
        faults=faults,
    )
    streams = StreamSupervisor(
        driver=make_stream_driver(home, driver),
        wanted=lambda: aims.desired.streams if runs_here else (),
        prepare=lambda settings: _through_gateway(settings, addresses, home, keeper),
        emit=journal.write,
        clock=clock,
        memory=StateFile(
            home.streams_file, dict[str, StreamOrders], "the orders of streams", durable=True
        ),
        faults=faults,
    )
    streams.load()
    alerting = Alerting(
        history=recorder.history,
        spec=lambda: aims.desired.spec,
        facts=FactsReader(
            reconciler=reconciler,
            keeper=keeper,
            rows=rows,
            drifted=drift.drifted,
            jobs_late=jobs.late,
            jobs_failed=jobs.failed,
            streams=streams.facts,
        ).read,
        emit=journal.write,
        save=store.alerts.save_alerts,
        tell=notifier.offer,
        clock=clock,
        faults=faults,
    )
    alerting.load(stored_alerts.alerts)
    notifier.load(stored_alerts.notices)
    tracing = keeper.settings.tracing
    if tracing is not None:
        check_otel()
    payloads = PayloadWriter(root=home.payloads, clock=clock)
    recordings = Recordings(
        replicas=lambda: recorded_replicas(aims),
        payload_logs=lambda: payload_logs(aims),
        payloads=payloads,
        features=ServedFeaturesKeeper(home.root),
        features_ratios=lambda: features_ratios(aims),
        monotonic=clock.monotonic,
        faults=faults,
        spans=None if tracing is None else OtlpExporter(tracing.collector, service="headrace"),
    )
    materializer = Materializer(
        path=home.root / APPLIED,
        read=lambda: asyncio.to_thread(applied_definitions, home.root),
        work=partial(materialize_view, home=home.root, log=home.log_of("features")),
        emit=journal.write,
        clock=clock,
        memory=StateFile(home.materialized_file, list[ViewPast], "past runs of feature views"),
        faults=faults,
    )
    materializer.load()
    skew = SkewWatch(
        watches=lambda: feature_watches(aims),
        compare=partial(compare_served, home=home.root, log=home.log_of("features")),
        emit=journal.write,
        clock=clock,
        faults=faults,
    )
    activator = Activator(limits_of=lambda name: hold_limits(aims, name), wake=scaler.wake)
    plane = ControlPlane(
        home=home,
        store=store,
        registry=registry,
        reconciler=reconciler,
        keeper=keeper,
        aims=aims,
        orders=Orders(
            store=store,
            registry=registry,
            aims=aims,
            journal=journal,
            clock=clock,
            work=ModelWork(inspect),
            max_body_bytes=keeper.settings.max_body_bytes,
            allow_code=allow_code,
            model_roots=model_roots,
        ),
        rollout_driver=rollouts,
        scaler=scaler,
        advisor=advisor,
        activator=activator,
        callers=callers,
        keys=Keys(store=store, clock=clock, apply=callers.apply),
        upstreams=upstreams,
        pools=PoolSync(world=reconciler, clock=clock, faults=faults),
        reports=reports,
        recorder=recorder,
        load_watch=load_watch,
        rows=rows,
        drift=drift,
        journal=journal,
        alerting=alerting,
        notifier=notifier,
        silences=silences,
        clock=clock,
        addresses=addresses,
        gateway_address=gateway_address,
        log_files=log_files,
        recordings=recordings,
        payloads=payloads,
        materializer=materializer,
        jobs=jobs,
        skew=skew,
        streams=streams,
        faults=faults,
        limits=limits,
        prometheus=prometheus,
        sends_first_requests=sends_first_requests,
    )
    upstreams.note_change = plane.ask_again
    if keeper.tls is not None:
        keeper.tls.certificates.emit = journal.write
        keeper.tls.certificates.faults = faults
        keeper.tls.certificates.on_first = plane.take_certificate
    return plane


def _through_gateway(
    settings: StreamSettings, addresses: Addresses, home: Home, keeper: Gateway
) -> StreamSettings:
    """What workers are told, with the way to the gateway for those that ask an endpoint."""
    ca_file = str(home.gateway_certificate) if keeper.settings.tls else ""
    return through_gateway(settings, url=addresses.http_url, ca_file=ca_file)


def hold_limits(aims: Aims, name: str) -> HoldLimits | None:
    """How requests to an endpoint wait for its first replica; None if they need not wait."""
    published = aims.reconciler.publication.published or ()
    route = next((route for route in published if route.name == name), None)
    endpoint = aims.effective_endpoint(name)
    if route is None or not route.held or endpoint is None or endpoint.autoscale is None:
        return None
    scale = endpoint.autoscale
    return HoldLimits(max_held=scale.max_held, hold_s=scale.hold_s)


def _wanted(*by_whom: Iterable[Replica]) -> list[Replica]:
    """Replicas whose reports somebody needs, each once."""
    return list({replica.name: replica for found in by_whom for replica in found}.values())


def _silent(reconciler: Reconciling, reports: Reports) -> list[Replica]:
    """Replicas that are ready and were never asked: what they run on is not known."""
    ready = (one for one in reconciler.replicas.values() if one.phase is Phase.READY)
    return [one for one in ready if reports.latest(one.name) is None]


def _names(aims: Aims) -> set[str]:
    """The endpoints that are wanted, or still run."""
    endpoints = (*aims.desired.endpoints, *aims.reconciler.desired.endpoints)
    return {endpoint.name for endpoint in endpoints}


def _budget(aims: Aims) -> BudgetSpec:
    """What the spec allows all replicas together."""
    return parsed(BudgetSpec, aims.desired.spec.get("budget", {}))


def _other_bytes(aims: Aims) -> int:
    """Memory of replicas whose number is fixed."""
    scaled = {e.name for e in aims.desired.endpoints if e.autoscale is not None}
    pids = [
        replica.pid
        for replica in aims.reconciler.replicas.values()
        if replica.pid is not None and replica.endpoint not in scaled
    ]
    return sum(map(resident_bytes, pids))
