"""Driver of rollouts: steps the pure state machine every second, stores it and moves traffic."""

import asyncio
import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Protocol

import msgspec

from headrace.control.base.faults import LOOP, Faults
from headrace.control.base.journal import EventJournal, wait_for
from headrace.control.desired.target import BASELINE, TargetState
from headrace.control.model.audit_log import AuditEntry
from headrace.control.model.observed import Replica, ReplicaPhase
from headrace.control.model.records import Assignment, Event, RolloutRecord
from headrace.control.model.rollout_events import events_of, rollout_changes
from headrace.control.reconcile.reports import Reports
from headrace.control.rollouts.evidence import RolloutReading, share_of
from headrace.control.rollouts.observation import CANDIDATE, LiveRollout, RolloutWatch, batch_of
from headrace.control.state.store import Store
from headrace.core import Clock, EndpointNotFoundError, HeadraceError, NotFoundError
from headrace.gateway import GatewayStatistics, read_arms
from headrace.rollout.evidence import RolloutEvidenceState
from headrace.rollout.machine import advance, command, due_at
from headrace.rollout.outlook import observed_load, outlook
from headrace.rollout.readings import RewardSums
from headrace.rollout.sequences import Sequences
from headrace.rollout.state import RolloutFacts, RolloutState, Verb
from headrace.serving.telemetry.report import Observe

_LOG: Final = logging.getLogger("headrace.control")
_INTERVAL_S: Final = 1.0
_FRESH_EVERY_S: Final = 0.25
_FRESH_S: Final = 5.0
_SAVE_EVIDENCE_S: Final = 1.0
_FORGET_EVERY_S: Final = 60.0
_RATE_WINDOW_S: Final = 5.0
_GATEWAY: Final = "arms.log"
"""Name of the log of arms among the replicas with a read position."""
_REWARDS_SHARE: Final = 20.0
"""Summing rewards takes at most one part in this many of the time."""
FAULT_KINDS: Final = ("rollout", "rollout step", "rollout reports", "rollout evidence")
"""Fault kinds: judging, moving on, polling replicas and showing evidence fail independently."""


class ArmSource(Protocol):
    """Source of request counts by arm."""

    async def read_arms(self, endpoints: Collection[str]) -> GatewayStatistics:
        """Return the totals of the endpoints' splits.

        Raises:
            HeadraceError: The gateway does not answer.
        """


@dataclass(slots=True, kw_only=True)
class RolloutDriver:
    """Advances every rollout while `run` is awaited, and executes users' commands.

    `take_up` adapts a stored rollout, possibly from another host, to this host.
    """

    store: Store
    journal: EventJournal
    target_state: TargetState
    gateway: ArmSource
    clock: Clock
    reports: Reports
    arms_log: Path | None = None
    """Log of arms of the gateway; None if some requests pass gateways on other hosts."""
    relocate: Callable[[RolloutRecord], RolloutRecord] = lambda record: record
    faults: Faults = field(default_factory=Faults)
    _watches: dict[str, RolloutWatch] = field(default_factory=dict)
    _healthy: dict[tuple[str, str], bool] = field(default_factory=dict)
    _rates: dict[str, tuple[float, int, float]] = field(default_factory=dict)
    _forgot_at: float = -math.inf

    def load(self) -> None:
        """Load the stored rollouts; blocking, call it before `run`."""
        stored = self.store.newest_rollouts.blocking().values()
        self.target_state.set_target(
            rollouts=[
                record if record.state.phase.is_over else self.relocate(record) for record in stored
            ]
        )
        for record in self.target_state.active():
            extra = {"rollout": record.id, "endpoint": record.endpoint}
            _LOG.info("resumed rollout, which is %s", record.state.phase.value, extra=extra)

    async def run(self) -> None:
        """Advance rollouts until cancelled."""
        loop = asyncio.get_running_loop()
        next_look = loop.time()
        while True:
            change, pause_s = self.target_state.reconciler.changes.next, _INTERVAL_S
            with self.faults.contain(LOOP, "rollouts"):
                if self.target_state.active() and loop.time() >= next_look:
                    # More often after a new weight: a bad version shows immediately.
                    states = [record.state for record in self.target_state.active()]
                    is_fresh = any(
                        state.step_since is not None
                        and state.elapsed_s - state.step_since < _FRESH_S
                        for state in states
                    )
                    next_look = loop.time() + (_FRESH_EVERY_S if is_fresh else _INTERVAL_S)
                    await self.poll()
                change = self.target_state.reconciler.changes.next
                await self.step()
                pause_s = self._pause_s(next_look - loop.time())
            await wait_for(change, pause_s)

    async def command(
        self, name: str, verb: Verb, *, actor: str = "", reason: str = ""
    ) -> RolloutRecord:
        """Execute a user's command on an endpoint's rollout.

        Raises:
            EndpointNotFoundError: There is no such endpoint.
            NotFoundError: The endpoint has no rollout.
            FailedPreconditionError: The verb is not valid in the current phase.
        """
        async with self.target_state.lock:
            record = self.target_state.rollout(name)
            if self.target_state.desired.endpoint(name) is None:
                raise EndpointNotFoundError(name)
            if record is None:
                message = f"endpoint '{name}' has no rollout; `headrace rollout start` begins one"
                raise NotFoundError(message)
            comment = f"{reason} ({actor})" if reason and actor else reason or actor
            now = self._watch(record).elapsed(self.clock.monotonic())
            state = command(record.state, verb, now=now, reason=comment)
            return await self._move(record, state, actor=actor, action=f"rollout.{verb}")

    def counted(self, record: RolloutRecord) -> Mapping[str, int | float]:
        """Return the counts of a rollout so far, summed up by its evidence.

        For an ended rollout these are the stored counts; empty if they cannot be read any more.
        """
        with self.faults.contain("rollout evidence", record.endpoint):
            evidence = self._evidence(record)
            return {} if evidence is None else evidence.summary()
        return {}

    def sequences(self, record: RolloutRecord) -> Sequences:
        """Return the metrics' intervals over a rollout's life so far.

        For an ended rollout these are the stored ones; empty if they cannot be read any more.
        """
        evidence = self._evidence(record)
        return Sequences.start() if evidence is None else evidence.sequences

    async def records(self, name: str = "", limit: int = 100) -> list[RolloutRecord]:
        """Return rollouts, newest first; of all endpoints if `name` is empty."""
        stored = await self.store.rollouts(name, limit=limit)
        # Running rollouts are newer in memory: their verdicts are not stored every second.
        live = {record.id: record for record in self.target_state.rollouts.values()}
        return [live.get(record.id, record) for record in stored]

    async def poll(self) -> None:
        """Read the counts since the last call, and judge."""
        active = self.target_state.active()
        try:
            gateway = await self.gateway.read_arms([record.endpoint for record in active])
        except HeadraceError as error:
            _LOG.warning("cannot read the gateway's counts", extra={"error": str(error)})
            return
        self._healthy = dict(gateway.healthy)
        for record in active:
            with self.faults.contain("rollout", record.endpoint):
                view = LiveRollout.of(record, self.target_state)
                if view is not None:
                    await self._count(view, gateway)
        await self._forget_old()

    async def step(self) -> None:
        """Advance every rollout that has an event or a due time."""
        for record in self.target_state.active():
            with self.faults.contain("rollout step", record.endpoint):
                view, watch = LiveRollout.of(record, self.target_state), self._watch(record)
                if view is not None and view.failure and not watch.has_failed:
                    watch.has_failed = True
                    await self.poll()  # its failure belongs in the reason
                async with self.target_state.lock:
                    current = self.target_state.rollout(record.endpoint)
                    view = LiveRollout.of(current, self.target_state) if current else None
                    if current is None or view is None or current.id != record.id:
                        continue
                    await self._settle(current, advance(current.state, self._facts(view)))
        active = self.target_state.active()
        for ended in self._watches.keys() - {record.id for record in active}:
            del self._watches[ended]
        for kind in FAULT_KINDS:
            self.faults.keep_only(kind, [record.endpoint for record in active])

    def problem(self, record: RolloutRecord) -> str:
        """Return why a rollout waits although it should advance; empty if nothing is wrong."""
        problems = (self.faults.problem(kind, record.endpoint) for kind in FAULT_KINDS)
        return "" if record.state.phase.is_over else "; ".join(filter(None, problems))

    def observed_replicas(self) -> list[Replica]:
        """Return the replicas whose reports are needed."""
        by_name: dict[str, Replica] = {}
        for record in self.target_state.active():
            with self.faults.contain("rollout reports", record.endpoint):
                view = LiveRollout.of(record, self.target_state)
                for replica in view.replicas if view else ():
                    if replica.phase is ReplicaPhase.READY:
                        by_name[replica.name] = replica
        return list(by_name.values())

    def observe(self, replica: Replica) -> Observe:
        """Return what a replica must observe; nothing without a running rollout."""
        record = self.target_state.rollout(replica.endpoint)
        if record is None or record.state.phase.is_over:
            return Observe()
        view = LiveRollout.of(record, self.target_state)
        if view is None:
            return Observe()
        answer_bytes = self.reports.answer_bytes(replica.name)
        # Requests per second of one replica, from its reports.
        return view.observe(replica, self._rates.get(replica.name, (0.0, 0, 0.0))[2], answer_bytes)

    async def _count(self, view: LiveRollout, gateway: GatewayStatistics) -> None:
        record, now = view.record, self.clock.monotonic()
        watch = self._watch(record)
        watch.elapsed(now)
        # An outdated verdict decides nothing.
        previous, watch.verdict = watch.verdict, None
        reports = {
            replica.name: report
            for replica in view.replicas
            if (report := self.reports.together(replica.name)) is not None
        }
        # Record the replicas' load: it limits how many answers can be compared.
        for name, report in reports.items():
            counted_at, received, rate = self._rates.get(name, (now, report.received, 0.0))
            if now - counted_at >= _RATE_WINDOW_S:
                rate = max(report.received - received, 0) / (now - counted_at)
                counted_at, received = now, report.received
            self._rates[name] = (counted_at, received, rate)
        reading = view.reading(now=now, epoch=gateway.epoch, totals=gateway.arms, reports=reports)
        if view.needs_answers:
            reading = await self._with_answers(view, watch, reading)
        increment = watch.counter.read(reading)
        share = watch.counter.share
        if share is None:  # died while no control plane ran
            share = record.state.traffic.share
        has_died = watch.evidence.note_deaths(view.deaths(), share=share)
        if increment is None and not has_died:
            watch.verdict = previous
            return
        if increment is not None:
            watch.evidence.add(increment)
            watch.note_predictions(reports.values())
        watch.judge(self.clock.now())

    async def _with_answers(
        self, view: LiveRollout, watch: RolloutWatch, reading: RolloutReading
    ) -> RolloutReading:
        """Return `reading` with the data of single answers: pairs, callers, rewards."""
        now, store, rollout = reading.time_s, self.store, view.record.id
        if watch.units is None:
            watch.units = await store.unit_tally(rollout)
            watch.positions = dict(watch.units.positions)
        ready = [] if view.logs_arms else view.answering
        pages = await asyncio.gather(
            *(self.reports.answers(replica, watch.after(replica)) for replica in ready)
        )
        present = {_GATEWAY, *(replica.name for replica in view.replicas)}
        positions = {
            name: position for name, position in watch.positions.items() if name in present
        }
        for replica, page in zip(ready, pages, strict=True):
            positions[replica.name] = replica.process, page.cursor
        assignments: list[Assignment] = []
        is_counted = watch.counter.knows_callers(reading)
        for replica, page in zip(ready, pages, strict=True):
            is_candidate = view.is_candidate(replica)
            if view.record.state.traffic.mirror_percent > 0:
                watch.pairing.add(page.answers, now, are_copies=is_candidate)
            elif is_counted:
                answers = [(is_candidate, answer) for answer in page.answers]
                assignments += view.assignments(answers, self.clock.now())
        # Before the weights are known to be in force, as after a restart, lines wait.
        if view.logs_arms and self.arms_log is not None and reading.split is not None:
            after = watch.positions.get(_GATEWAY, (0, 0))
            requests, positions[_GATEWAY] = await asyncio.to_thread(read_arms, self.arms_log, after)
            assignments += view.assignments(view.routed(requests), self.clock.now())
        if view.needs_assignments:
            await store.add_assignments(assignments)
            await self._sum_rewards(watch, rollout)
        if positions != watch.positions:  # last: unsaved answers are read again
            batch = batch_of(
                assignments if view.endpoint.sticky is not None else (),
                share=0.0 if reading.split is None else share_of(reading.split),
                positions=positions,
            )
            watch.units = await store.add_units(rollout, batch)
            watch.evidence.note_units(watch.units)
            watch.positions = positions
        return replace(
            reading,
            pairs=watch.pairing.take(),
            rewards=watch.rewards,
        )

    async def _sum_rewards(self, watch: RolloutWatch, rollout: str) -> None:
        """Read the sums of rewards, if they are due: it takes 1 s with a million units."""
        started = self.clock.monotonic()
        if started < watch.rewards_due:
            return
        sums = await self.store.reward_sums(rollout)
        watch.rewards = (sums.get(BASELINE, RewardSums()), sums.get(CANDIDATE, RewardSums()))
        ended = self.clock.monotonic()
        watch.rewards_due = ended + _REWARDS_SHARE * (ended - started)

    def _facts(self, view: LiveRollout) -> RolloutFacts:
        watch = self._watch(view.record)
        name = view.record.endpoint
        failure = view.failure or self._not_loaded(view)
        crashes = watch.verdict.metric("crashes") if watch.verdict is not None else None
        if failure and crashes is not None:
            failure = f"{failure}; {crashes.reason}"
        healthy = {key: ok for (endpoint, key), ok in self._healthy.items() if endpoint == name}
        # Too few requests for a decision are a reason only after its maximum duration.
        state, now = view.record.state, watch.elapsed(self.clock.monotonic())
        settings, due = state.settings, due_at(state)
        is_asked = settings.on_timeout is None and due is not None and now >= due
        load = observed_load(state, watch.evidence.summary()) if is_asked else None
        expected = outlook(settings, load) if load else None
        return RolloutFacts(
            now=now,
            candidate_ready=view.is_ready(healthy),
            candidate_failed=failure,
            in_force=view.in_force,
            verdict=watch.verdict,
            judged_at=watch.judged_at,
            step_samples=watch.counter.samples,
            insufficient_traffic="" if expected is None or expected.suffices else expected.text,
        )

    def _not_loaded(self, view: LiveRollout) -> str:
        """Return which pool replica could not load the candidate; empty if none failed."""
        for replica in view.replicas:
            if not replica.query or not view.is_candidate(replica):
                continue
            report = self.reports.latest(replica.name)
            if report is not None and not report.ready:
                copy = replica.name.partition("/")[0]
                return f"{copy}: version {replica.version} cannot be loaded; see its log"
        return ""

    async def _settle(self, record: RolloutRecord, state: RolloutState) -> None:
        """Store the result of `advance`: immediately after a move, else only from time to time."""
        before = record.state
        counted = {"verdict": before.verdict, "elapsed_s": before.elapsed_s}
        if msgspec.structs.replace(state, **counted) != before:
            await self._move(record, state)
            return
        newer = msgspec.structs.replace(record, state=state)
        if self.clock.monotonic() - self._watch(record).saved_at >= _SAVE_EVIDENCE_S:
            newer = await self._save(newer, [])
        self.target_state.rollouts[record.endpoint] = newer

    async def _move(
        self, record: RolloutRecord, state: RolloutState, *, actor: str = "", action: str = ""
    ) -> RolloutRecord:
        """Store a rollout's new state, then make it the target."""
        now = self.clock.now()
        if state.phase is not record.state.phase:
            state = msgspec.structs.replace(state, since=now)
        events = events_of(record, state, now=now, actor=actor)
        changes = rollout_changes(record, state, now=now, actor=actor, action=action)
        moved = await self._save(msgspec.structs.replace(record, state=state), events, changes)
        for event in events:
            extra = {"endpoint": record.endpoint, "rollout": record.id}
            _LOG.info("%s", event.message.splitlines()[0], extra=extra)
        self.target_state.set_target(rollouts=[moved])
        self.journal.notify()
        return moved

    async def _save(
        self, record: RolloutRecord, events: Sequence[Event], changes: Sequence[AuditEntry] = ()
    ) -> RolloutRecord:
        whole = record
        with self.faults.contain("rollout evidence", record.endpoint):  # abort works without it
            watch = self._watch(record)
            watch.saved_at = self.clock.monotonic()
            whole = msgspec.structs.replace(record, evidence=watch.evidence.encode())
        return await self.store.save_rollout(whole, events=events, changes=changes)

    def _evidence(self, record: RolloutRecord) -> RolloutEvidenceState | None:
        watch = self._watches.get(record.id)
        if watch is not None:
            return watch.evidence
        if not record.evidence:
            return None
        try:
            return RolloutEvidenceState.decode(record.state.settings, record.evidence)
        except HeadraceError:
            return None

    def _watch(self, record: RolloutRecord) -> RolloutWatch:
        watch = self._watches.get(record.id)
        if watch is None:
            now, logs_arms = self.clock.monotonic(), self.arms_log is not None
            watch = self._watches[record.id] = RolloutWatch.over(record, now, logs_arms=logs_arms)
        return watch

    def _pause_s(self, until_poll_s: float) -> float:
        """Return the seconds until the next time-triggered step."""
        active, now = self.target_state.active(), self.clock.monotonic()
        waits = [
            due - self._watch(record).elapsed(now)
            for record in active
            if (due := due_at(record.state)) is not None
        ]
        if active:
            waits.append(until_poll_s)
        return max(min(waits, default=_FORGET_EVERY_S), 0.0)

    async def _forget_old(self) -> None:
        """Drop answers that feedback can no longer refer to."""
        now = self.clock.monotonic()
        if now - self._forgot_at < _FORGET_EVERY_S:
            return
        self._forgot_at = now
        windows = [
            metric.window_s
            for record in self.target_state.rollouts.values()
            if (metric := record.state.settings.metrics.reward) is not None
        ]
        if windows:
            await self.store.forget_before(self.clock.now() - max(windows))
