"""Workloads service: streams, jobs, batches, materialization of features, and their skew."""

import asyncio
from functools import partial
from typing import Final

from headrace.control.base.context import ServiceContext
from headrace.control.desired.resolve_streams import through_gateway
from headrace.control.desired.target import TargetState
from headrace.control.features.materialize_plan import ViewPast
from headrace.control.features.materializer import Materializer, materialize_view
from headrace.control.features.skew_watch import SkewWatch, compare_served
from headrace.control.jobs.bulk import BulkStore
from headrace.control.jobs.bulk_runner import BulkRunner
from headrace.control.jobs.process import JobStarter
from headrace.control.jobs.scheduler import JobScheduler, Planner
from headrace.control.local.driver import LocalDriver
from headrace.control.reconcile.service import ReconcileService
from headrace.control.streams.driver import make_stream_driver
from headrace.control.streams.supervisor import StreamOrders, StreamSupervisor
from headrace.core.state_file import StateFile
from headrace.features import applied_definitions
from headrace.features.applied import APPLIED


class WorkloadsService:
    """Runs the spec's streams, jobs and materializations in processes on this machine."""

    def __init__(
        self,
        context: ServiceContext,
        *,
        target_state: TargetState,
        reconciling: ReconcileService,
        driver: LocalDriver,
    ) -> None:
        """Create the parts with state and processes of an earlier control plane. Blocking."""
        home, clock, faults = context.home, context.clock, context.faults
        emit = context.journal.write
        self.jobs: Final = JobScheduler(
            store=context.store,
            planner=Planner.of_home(home.root, store=context.store, faults=faults),
            start=JobStarter(home=home.root, log=home.log_of("jobs"), sandbox=driver.sandbox),
            emit=emit,
            clock=clock,
            faults=faults,
        )
        self.bulk: Final = BulkRunner(
            store=BulkStore(root=home.bulk, clock=clock),
            keys=reconciling.keys,
            home=home.root,
            clock=clock,
            faults=faults,
        )
        self.streams: Final = StreamSupervisor(
            driver=make_stream_driver(home, driver),
            desired_streams=lambda: target_state.desired.streams if context.runs_here else (),
            prepare=partial(
                through_gateway,
                url=context.addresses.http_url,
                ca_file=str(home.gateway_certificate)
                if reconciling.gateway_supervisor.settings.tls
                else "",
            ),
            emit=emit,
            clock=clock,
            memory=StateFile(
                home.streams_file, dict[str, StreamOrders], "the orders of streams", durable=True
            ),
            faults=faults,
        )
        self.streams.load()
        self.materializer: Final = Materializer(
            path=home.root / APPLIED,
            read=lambda: asyncio.to_thread(applied_definitions, home.root),
            work=partial(materialize_view, home=home.root, log=home.log_of("features")),
            emit=emit,
            clock=clock,
            memory=StateFile(home.materialized_file, list[ViewPast], "past runs of feature views"),
            faults=faults,
        )
        self.materializer.load()
        self.skew: Final = SkewWatch(
            watches=lambda: {
                e.name: e.features for e in target_state.desired.endpoints if e.features is not None
            },
            compare=partial(compare_served, home=home.root, log=home.log_of("features")),
            emit=emit,
            clock=clock,
            faults=faults,
        )
        self._runs_here: Final = context.runs_here

    async def run(self) -> None:
        """Run due work until cancelled; stream workers continue afterwards."""
        local = (self.jobs, self.streams, self.bulk) if self._runs_here else ()
        async with asyncio.TaskGroup() as group:
            for part in (self.materializer, self.skew, *local):
                group.create_task(part.run())
