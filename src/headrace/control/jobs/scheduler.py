"""Scheduler of jobs, which decides which runs are due and starts their processes."""

import asyncio
import logging
import secrets
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from headrace.control.base.faults import LOOP, Faults, write_events
from headrace.control.base.journal import wait_for
from headrace.control.base.ownership import claim
from headrace.control.jobs.plan import (
    Attempt,
    Planned,
    after_attempt,
    begun,
    is_late,
    jobs_of,
    lateness_s,
    new_run,
    planned,
    takeable,
)
from headrace.control.jobs.process import JobProcess, lease_clock, progress_of
from headrace.control.jobs.status import JobView, job_families, job_view
from headrace.control.local.sandbox import Isolation
from headrace.control.model.job_runs import JobRun, JobsSnapshot, RunState
from headrace.control.model.records import Event
from headrace.control.state.store import Store
from headrace.core import Clock, HeadraceError, NotFoundError, span
from headrace.core.spec.jobs import JobSpec
from headrace.observe.metrics import Family

LEASE_S: Final = 20.0
"""Seconds without a heartbeat after which an owner counts as gone."""
IDLE_S: Final = 30.0
"""Seconds for which only the spec's generation is read if there are no jobs and runs."""
MAX_CONCURRENT: Final = 2
"""Most concurrent runs of one control plane."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerStep:
    """Result of a step."""

    snapshot: JobsSnapshot
    jobs: Mapping[str, JobSpec]
    planned: Sequence[Planned] = ()
    begun: Sequence[JobRun] = ()
    """Runs that this control plane owns now and must execute."""


@dataclass(slots=True, kw_only=True)
class Planner:
    """Planner of one control plane; for one thread at a time."""

    store: Store
    owner: str
    """Owner name, unique to this process."""
    home: str = ""
    """Common prefix of the owner names of this home: only one process runs there at a time, so runs
    of earlier owners can be taken immediately.
    """
    faults: Faults = field(default_factory=Faults)
    _generation: int = -1
    _jobs: dict[str, JobSpec] = field(default_factory=dict)
    _nothing: tuple[JobsSnapshot, float] | None = None
    """The last empty snapshot and its time: most systems have no jobs."""
    _last_signs: dict[str, tuple[tuple[str, int, int], float]] = field(default_factory=dict)
    """Owner, fence and beat of other owners' runs, and the local time of their last change."""

    @classmethod
    def of_home(cls, home: Path, *, store: Store, faults: Faults) -> "Planner":
        """Return the planner of a home, with its prefix and a unique owner name. Blocking."""
        name = f"{socket.gethostname()}:{claim(home).id}"
        owner = f"{name}/{secrets.token_hex(4)}"
        return cls(store=store, owner=owner, home=name, faults=faults)

    async def step(self, *, now: float, monotonic: float, own: frozenset[str]) -> SchedulerStep:
        """Add due runs, and take runs without an owner.

        Args:
            own: Runs that this control plane executes.

        Raises:
            HeadraceError: The database cannot be used; no change is stored partially.
        """
        if (
            self._nothing is not None
            and monotonic - self._nothing[1] < IDLE_S
            and await self.store.jobs.generation() == self._generation
        ):
            return SchedulerStep(snapshot=self._nothing[0], jobs={})
        snapshot = await self._snapshot()
        self._nothing = None if self._jobs or snapshot.open else (snapshot, monotonic)
        done = []
        for job in self._jobs.values():
            job_plan = None
            with self.faults.contain("job plan", job.name):
                job_plan = planned(job, snapshot, now=now)
            if job_plan is not None and await self.store.jobs.advance(job_plan.mark, job_plan.runs):
                done.append(job_plan)
        if done:
            snapshot = await self._snapshot()
        dead = self._dead(snapshot.open, monotonic, own)
        free_slots = MAX_CONCURRENT - len(own)
        others = [run for run in snapshot.open if run.id not in own]
        taken = [
            await self.store.jobs.take(run, self.owner)
            for run in takeable(others, now=now, dead=dead, free_slots=free_slots)
        ]
        started = [run for run in taken if run is not None]
        return SchedulerStep(snapshot=snapshot, jobs=dict(self._jobs), planned=done, begun=started)

    async def read(self) -> SchedulerStep:
        """Return the current state without changes."""
        snapshot = await self._snapshot()
        return SchedulerStep(snapshot=snapshot, jobs=dict(self._jobs))

    async def _snapshot(self) -> JobsSnapshot:
        """Return the stored state with the desired jobs, applied by any control plane."""
        snapshot = await self.store.jobs.look()
        if snapshot.generation != self._generation:
            state = await self.store.load()
            self._jobs, self._generation = jobs_of(state.spec), state.generation
        return snapshot

    def _dead(
        self, runs: Sequence[JobRun], monotonic: float, own: frozenset[str]
    ) -> frozenset[tuple[str, int]]:
        """Return the ids and fences of runs whose owners are gone."""
        signs = {r.id: (r.owner, r.fence, r.beat) for r in runs if r.owner and r.id not in own}
        self._last_signs = {
            id_: self._last_signs[id_]
            if id_ in self._last_signs and self._last_signs[id_][0] == sign
            else (sign, monotonic)
            for id_, sign in signs.items()
        }
        return frozenset(
            (id_, sign[1])
            for id_, (sign, since) in self._last_signs.items()
            if monotonic - since >= LEASE_S or self._is_earlier_process(sign[0])
        )

    def _is_earlier_process(self, owner: str) -> bool:
        """Whether `owner` is an earlier process of this home, or this process."""
        return owner == self.owner or bool(self.home and owner.startswith(f"{self.home}/"))


_LOG: Final = logging.getLogger("headrace.control")
_POLL_INTERVAL_S: Final = 1.0
BEAT_S: Final = 2.0
"""Interval in seconds of a run's heartbeat, which also reads cancellations."""
MARGIN_S: Final = 4.0
"""Seconds before a possible takeover at which a run without successful heartbeats is ended."""
_END_S: Final = 5.0
"""Seconds for runs to exit when their control plane ends."""
Start = Callable[[JobRun, float], Awaitable[JobProcess]]


@dataclass(slots=True, kw_only=True)
class JobScheduler:
    """Runs the jobs of one control plane."""

    store: Store
    planner: Planner
    start: Start
    """Starts the process of a run."""
    emit: Callable[[Sequence[Event]], Awaitable[None]]
    """Records events."""
    clock: Clock
    faults: Faults = field(default_factory=Faults)
    jobs: Mapping[str, JobSpec] = field(default_factory=dict)
    snapshot: JobsSnapshot | None = None
    """Snapshot of the last step; None before the first."""
    problem: str = ""
    """Reason why the last step failed; empty if it did not."""
    _own_runs: dict[str, JobRun] = field(default_factory=dict)
    _processes: dict[str, JobProcess] = field(default_factory=dict)
    _late: frozenset[str] = frozenset()
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Execute due runs until cancelled, which interrupts current runs; they continue later."""
        async with asyncio.TaskGroup() as group:
            while True:
                with self.faults.contain(LOOP, "jobs"):
                    step = await self._step()
                    for run in () if step is None else step.begun:
                        self._own_runs[run.id] = run
                        group.create_task(self._carry_out(run))
                    if step is not None:
                        await self._announce(step)
                await wait_for(self._wake, _POLL_INTERVAL_S)
                self._wake.clear()

    async def begin(self, name: str, *, by: str) -> JobRun:
        """Run a job now, independent of its schedule.

        Raises:
            NotFoundError: There is no such job.
        """
        job = await self.job(name)
        now = self.clock.now()
        run = new_run(job, now, now=now, by=by, salt=secrets.token_hex(3))
        await self.store.jobs.add_run(run)
        self._wake.set()
        return run

    async def cancel(self, name: str, *, by: str, id_: str = "") -> list[JobRun]:
        """Cancel a run of a job, or all that are not over; return the cancelled runs.

        Raises:
            NotFoundError: There is no such job or run.
        """
        jobs = self.store.jobs
        if id_:
            stored = await jobs.run(id_)
            if stored is None or stored.job != name:
                raise NotFoundError(f"job '{name}' has no run '{id_[:150]}'")
            runs = [stored]
        else:
            snapshot = await jobs.look()
            runs = [run for run in snapshot.open if run.job == name]
            if not runs:
                await self.job(name)
        ended = [
            await jobs.cancel(run.id, by, self.clock.now()) for run in runs if not run.state.is_over
        ]
        self._wake.set()
        return [run for run in ended if run is not None]

    def late(self) -> int | None:
        """Return the number of late jobs; None before the first step, or without jobs."""
        snapshot, now = self.snapshot, self.clock.now()
        if snapshot is None or not self.jobs:
            return None
        late = 0
        for name, job in self.jobs.items():
            with self.faults.contain("job lateness", name):
                late += is_late(job, snapshot, now=now)
        return late

    def failed(self) -> int | None:
        """Return the number of jobs whose newest run failed; None as in `late`."""
        snapshot = self.snapshot
        if snapshot is None or not self.jobs:
            return None
        ended = (snapshot.ended.get(name) for name in self.jobs)
        return sum(run is not None and run.state is RunState.FAILED for run in ended)

    def views(self) -> tuple[JobView, ...]:
        """Return the views of all jobs by the last step; empty before the first."""
        snapshot, now = self.snapshot, self.clock.now()
        if snapshot is None:
            return ()
        views = []
        for name, job in self.jobs.items():
            with self.faults.contain("job view", name):
                views.append(job_view(job, snapshot, now=now))
        return tuple(views)

    def families(self) -> list[Family]:
        """Return the metrics of jobs."""
        return job_families(self.jobs, self.snapshot, now=self.clock.now())

    async def now(self) -> SchedulerStep:
        """Read and return the current state; the last one if it cannot be read.

        Raises:
            HeadraceError: It cannot be read, and there is no last state.
        """
        try:
            return await self.planner.read()
        except HeadraceError as error:
            self.problem = str(error)
            if self.snapshot is None:
                raise
            return SchedulerStep(snapshot=self.snapshot, jobs=self.jobs)

    async def job(self, name: str) -> JobSpec:
        """Return the job of this name.

        Raises:
            NotFoundError: There is no such job.
        """
        jobs = (await self.now()).jobs
        job = jobs.get(name)
        if job is None:
            names = ", ".join(jobs) or "none; `jobs` in the spec names them"
            raise NotFoundError(f"there is no job '{name[:150]}'; there are: {names[:500]}")
        return job

    async def _step(self) -> SchedulerStep | None:
        now, monotonic = self.clock.now(), self.clock.monotonic()
        own = frozenset(self._own_runs)
        try:
            step = await self.planner.step(now=now, monotonic=monotonic, own=own)
        except HeadraceError as error:
            if str(error) != self.problem:
                _LOG.error("cannot schedule jobs", extra={"error": str(error)})
            self.problem = str(error)
            return None
        self.problem, self.snapshot, self.jobs = "", step.snapshot, step.jobs
        return step

    async def _carry_out(self, run: JobRun) -> None:
        """Execute one attempt of a run, and store its outcome."""
        try:
            # An abandoned run stays ours in the database; the next step finds that it is not
            # executed.
            with self.faults.contain("job", run.job):
                await self._try(run)
        finally:
            self._own_runs.pop(run.id, None)
            self._wake.set()

    async def _try(self, run: JobRun) -> None:
        if run.cancelled_by:
            await self._finish(run, Attempt())
            return
        until = lease_clock() + LEASE_S - MARGIN_S
        # The previous owner may have made progress that it did not store.
        run = await asyncio.to_thread(progress_of, run)
        saved = await self._save(begun(run, now=self.clock.now()))
        if saved is None or saved.state.is_over:
            return
        if run.began is not None:
            _LOG.info("a job goes on", extra={"run": run.id, "rows": run.rows})
        try:
            process = await self.start(saved, until)
        except HeadraceError as error:
            await self._finish(saved, Attempt(message=str(error)))
            return
        await self._follow(saved, process)

    async def _follow(self, run: JobRun, process: JobProcess) -> None:
        """Renew a run's lease while its process runs, then store its outcome."""
        ends = self.clock.monotonic() + JobSpec.model_validate(run.document).timeout_s
        self._processes[run.id] = process
        waiting = asyncio.create_task(process.wait())
        over: Attempt | None = None
        try:
            while not (await asyncio.wait({waiting}, timeout=BEAT_S))[0]:
                beaten = await self._beat(run, process)
                if beaten is None:
                    process.kill()
                    await waiting
                    _LOG.warning("a run belongs to another by now", extra={"run": run.id})
                    return
                run = self._own_runs[run.id] = beaten
                process.log_isolation()
                if run.cancelled_by:
                    process.stop()
                elif over is None and self.clock.monotonic() >= ends:
                    limit = JobSpec.model_validate(run.document).timeout_s
                    over = Attempt(message=f"took longer than {limit:g} s (`timeout_s`)")
                    process.stop()
        except asyncio.CancelledError:
            await self._interrupt(run, process, waiting)
            raise
        finally:
            process.kill()
            self._processes.pop(run.id, None)
        attempt = waiting.result()
        run = await asyncio.to_thread(progress_of, run)
        await self._finish(run, over if over is not None and not attempt.ok else attempt)

    async def _beat(self, run: JobRun, process: JobProcess) -> JobRun | None:
        """Store a heartbeat with the run's progress; None if it has another owner by now."""
        renewed_at = lease_clock()
        current = await asyncio.to_thread(progress_of, run)
        try:
            saved = await self.store.jobs.save(current)
        except HeadraceError as error:
            # The process ends by its lease if this continues.
            _LOG.warning("no sign of life of a run", extra={"run": run.id, "error": str(error)})
            return run
        if saved is not None:
            process.extend(renewed_at + LEASE_S - MARGIN_S)
        return saved

    async def _interrupt(
        self, run: JobRun, process: JobProcess, waiting: "asyncio.Task[Attempt]"
    ) -> None:
        """Interrupt a run at the control plane's end; the next control plane continues it."""
        process.stop()
        await asyncio.wait({waiting}, timeout=_END_S)
        process.kill()
        attempt = await waiting
        if not attempt.ok:
            attempt = Attempt(
                interrupted=True, message="interrupted by the end of its control plane"
            )
        await self._finish(await asyncio.to_thread(progress_of, run), attempt)

    async def _finish(self, run: JobRun, attempt: Attempt) -> None:
        if attempt.too_large:
            await self._emit_events([memory_event(run, attempt.message, now=self.clock.now())])
        await self._save(after_attempt(run, attempt, now=self.clock.now()))

    async def _save(self, run: JobRun) -> JobRun | None:
        """Store our run, and emit an event if it is over; None if it has another owner."""
        jobs = self.store.jobs
        before = None if self.snapshot is None else self.snapshot.ended.get(run.job)
        saved = await jobs.save(run, release=run.state is RunState.WAITING)
        if saved is None or not saved.state.is_over:
            return saved
        keep = JobSpec.model_validate(run.document).keep_runs
        await jobs.forget(run.job, keep=keep)
        event = run_event(saved, before)
        if event is not None:
            await self._emit_events([event])
        return saved

    def isolation_of(self, run_id: str) -> Isolation | None:
        """Return the isolation of a run's process; None if it does not run here."""
        process = self._processes.get(run_id)
        return None if process is None else process.isolation()

    async def _announce(self, step: SchedulerStep) -> None:
        now = self.clock.now()
        events, late = planned_events(step.planned, now=now), set()
        for name, job in step.jobs.items():
            with self.faults.contain("job schedule", name):
                if is_late(job, step.snapshot, now=now):
                    late.add(name)
                    events += [late_event(job, step.snapshot, now=now)] * (name not in self._late)
        self._late = frozenset(late)
        for kind in ("job", "job schedule", "job lateness", "job view", "job plan"):
            self.faults.keep_only(kind, step.jobs)
        await self._emit_events(events)

    async def _emit_events(self, events: Sequence[Event]) -> None:
        if not events:
            return
        for event in events:
            _LOG.info(event.message, extra={"reason": event.reason, **event.data})
        await write_events(self.emit, events)


def run_event(run: JobRun, before: JobRun | None) -> Event | None:
    """Return the event of an ended run; None if it succeeded like the previous run.

    Args:
        before: The job's newest earlier run that succeeded or failed.
    """
    data: dict[str, Any] = {"job": run.job, "run": run.id, "rows": run.rows, "errors": run.errors}
    ended_at = run.ended or run.moment
    match run.state:
        case RunState.FAILED:
            message = f"run {run.id} failed after {run.tries} tries: {run.message}"
            return _event(ended_at, "JobFailed", message, data)
        case RunState.CANCELLED:
            message = f"run {run.id} was cancelled"
            return _event(ended_at, "JobCancelled", message, data, actor=run.cancelled_by)
        case RunState.SUCCEEDED if before is None:
            return _event(ended_at, "JobSucceeded", f"run {run.id} wrote {run.rows} rows", data)
        case RunState.SUCCEEDED if before is not None and before.state is RunState.FAILED:
            message = f"job '{run.job}' succeeds again: run {run.id} wrote {run.rows} rows"
            return _event(ended_at, "JobRecovered", message, data)
        case _:
            return None


def memory_event(run: JobRun, message: str, *, now: float) -> Event:
    """Return the event of an attempt that was killed because of its memory."""
    data = {"job": run.job, "run": run.id, "memory_limit": run.document.get("memory_limit")}
    return _event(now, "JobTooLarge", f"run {run.id} {message}", data)


def planned_events(planned: Iterable[Planned], *, now: float) -> list[Event]:
    """Return events of skipped times, each with the reason of the last skip."""
    events = []
    for plan in planned:
        if plan.skipped:
            skipped = (run for run in plan.runs if run.state is RunState.SKIPPED)
            reason = max(skipped, key=lambda run: run.moment).message
            job, count = plan.mark.job, plan.skipped
            message = f"job '{job}': {count} moments were left out, the last as {reason}"
            events.append(_event(now, "JobSkipped", message, {"job": job, "skipped": count}))
    return events


def late_event(job: JobSpec, snapshot: JobsSnapshot, *, now: float) -> Event:
    """Return the event of a job that has become late."""
    late_s = lateness_s(job, snapshot, now=now) or 0.0
    message = f"job '{job.name}' is late: a run should have succeeded {span(late_s)} ago"
    return _event(now, "JobLate", message, {"job": job.name, "late_s": round(late_s, 3)})


def _event(
    timestamp: float, reason: str, message: str, data: dict[str, Any], *, actor: str = ""
) -> Event:
    return Event(
        at=timestamp,
        endpoint="",
        kind="job",
        reason=reason,
        message=message,
        data=data,
        actor=actor,
    )
