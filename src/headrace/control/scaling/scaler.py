"""Autoscaler that decides every second how many replicas each arm runs."""

import asyncio
import logging
import math
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from headrace.autoscale import (
    ReplicaGrant,
    ReplicaRequest,
    ScaleDecision,
    ScaleReason,
    ScalerState,
    begin,
    decide,
    granted,
    share_out,
)
from headrace.control.base.faults import LOOP, Faults, write_events
from headrace.control.base.journal import wait_for
from headrace.control.desired.target import ReplicaTargets, TargetState
from headrace.control.model.observed import Replica, ReplicaPhase
from headrace.control.model.records import Event
from headrace.control.scaling.signals import (
    ArmMeter,
    ScaledArm,
    part_of,
    scaled_arms,
    with_first_tokens,
)
from headrace.core import Clock, HeadraceError
from headrace.core.spec.scale import BudgetSpec
from headrace.core.state_file import StateFile
from headrace.monitor import RequestHistory
from headrace.serving.telemetry.report import ReplicaReport

_LOG: Final = logging.getLogger("headrace.control")
_INTERVAL_S: Final = 1.0
_STORE_EVERY_S: Final = 30.0
_AT_A_TIME_S: Final = 0.005
_GATEWAY_WITHIN_S: Final = 0.5
_TARGET_BUSY: Final = 0.7
"""Busy ratio of a replica at its target load, from which its cores are computed."""
_SATURATED: Final = 0.95
_Key = tuple[str, str]


@dataclass(slots=True)
class _Arm:
    """State of one arm.

    `cut` is the reason why it has fewer replicas than it should.
    """

    state: ScalerState
    meter: ArmMeter = field(default_factory=ArmMeter)
    decision: ScaleDecision | None = None
    cut: str = ""
    announced: int = 0
    """Replica count in the newest event."""


class ScalerStates(msgspec.Struct, frozen=True, kw_only=True):
    """State that survives a restart; without it the scaler observes for some windows again."""

    arms: dict[str, dict[str, ScalerState]] = {}
    """States by endpoint and arm."""
    totals: dict[str, float] = {}
    """Total replicas that each endpoint needs."""


@dataclass(slots=True, kw_only=True)
class Scaler:
    """Decides the replica count of every autoscaled arm."""

    target_state: TargetState
    latest: Callable[[str], ReplicaReport | None]
    """Returns the newest report of a replica."""
    clock: Clock
    budget: Callable[[], BudgetSpec]
    """Returns the machine's budget for all replicas."""
    emit: Callable[[Sequence[Event]], Awaitable[None]]
    """Records events."""
    other_bytes: Callable[[], int] = lambda: 0
    """Returns the memory in bytes of replicas that are not autoscaled."""
    active: Callable[[], Awaitable[Mapping[_Key, int]]] | None = None
    """Returns the gateway's requests in flight by arm; None if the gateway is not queried."""
    memory: StateFile[ScalerStates]
    faults: Faults = field(default_factory=Faults)
    _arms: dict[_Key, _Arm] = field(default_factory=dict)
    _totals: dict[str, float] = field(default_factory=dict)
    _held: dict[str, int] = field(default_factory=dict)
    _asleep: set[str] = field(default_factory=set)
    _woken: asyncio.Event = field(default_factory=asyncio.Event)
    _at_gateway: Mapping[_Key, int] = field(default_factory=dict)
    _stored_at: float = -math.inf
    _streams: RequestHistory | None = None

    @property
    def counts(self) -> Mapping[_Key, int]:
        """Replica counts by endpoint and arm."""
        return {key: arm.state.replicas for key, arm in self._arms.items()}

    @property
    def zeroed(self) -> frozenset[str]:
        """Endpoints that are scaled to zero until a request arrives."""
        return frozenset(self._asleep)

    @property
    def scale(self) -> ReplicaTargets:
        """Counts and endpoints scaled to zero, as `TargetState.rescale` takes them."""
        return ReplicaTargets(counts=dict(self.counts), zeroed=self.zeroed)

    def decision(self, endpoint: str, arm: str) -> ScaleDecision | None:
        """Return the newest decision on an arm, with its reason and numbers."""
        state = self._arms.get((endpoint, arm))
        return state.decision if state else None

    def cut(self, endpoint: str, arm: str) -> str:
        """Return why an arm gets fewer replicas than it needs; empty if it gets all."""
        state = self._arms.get((endpoint, arm))
        return state.cut if state else ""

    def observed_replicas(self) -> list[Replica]:
        """Return the replicas whose reports are needed."""
        revisions = {
            scaled.arm.revision.id for arms in scaled_arms(self.target_state) for scaled in arms
        }
        return [r for r in self._replicas() if r.revision_id in revisions and _is_ready(r)]

    def wake(self, endpoint: str, held: int = 1) -> None:
        """Wake an endpoint that is scaled to zero; `held` requests wait for it now."""
        self._held[endpoint] = max(held, self._held.get(endpoint, 0))
        self._woken.set()

    def load(self) -> None:
        """Load the state that an earlier control plane stored; call it before `run`. Blocking."""
        stored = self.memory.load() or ScalerStates()
        self._totals = dict(stored.totals)
        for endpoint, arms in stored.arms.items():
            for key, state in arms.items():
                self._arms[endpoint, key] = _Arm(state, announced=state.replicas)
        by_endpoint: dict[str, list[int]] = defaultdict(list)
        for (endpoint, _), count in self.counts.items():
            by_endpoint[endpoint].append(count)
        self._asleep = {name for name, counts in by_endpoint.items() if not any(counts)}

    def predict_scale(self) -> ReplicaTargets:
        """Return the scale for the current target, before the next step decides.

        A new arm, or one with a larger share, gets enough replicas immediately; else its weight
        could take effect before they are ready.
        """
        by_revision = self._by_revision()
        for entries in scaled_arms(self.target_state):
            name, now = entries[0].endpoint.name, self.clock.now()
            if name in self._asleep:
                continue
            total = self._totals.get(name, 0.0)
            for scaled in entries:
                arm = self._arm_state(scaled, total, by_revision, now)
                if len(entries) > 1:
                    count = min(part_of(total, scaled.share), scaled.settings.max_replicas)
                    arm.state = granted(arm.state, max(arm.state.replicas, count))
        return self.scale

    def use_streams(self, history: RequestHistory) -> None:
        """Scale language models also by the times to the first token in `history`."""
        self._streams = history

    async def run(self) -> None:
        """Decide until cancelled; store the state at the end too."""
        try:
            while True:
                self._woken.clear()
                with self.faults.contain(LOOP, "autoscaling"):
                    self._at_gateway = await self._gateway_observation()
                    events = await self._step_gently()
                    self.target_state.rescale(self.scale)
                    await write_events(self.emit, events)
                    if events or self.clock.monotonic() - self._stored_at >= _STORE_EVERY_S:
                        await asyncio.to_thread(self.memory.try_save, self._saved_states())
                await wait_for(self._woken, _INTERVAL_S)
        finally:
            self.store()

    def store(self) -> None:
        """Store the state. Blocking."""
        self.memory.try_save(self._saved_states())

    def _saved_states(self) -> ScalerStates:
        self._stored_at = self.clock.monotonic()
        arms: dict[str, dict[str, ScalerState]] = {}
        for (endpoint, key), arm in self._arms.items():
            arms.setdefault(endpoint, {})[key] = arm.state
        return ScalerStates(arms=arms, totals=dict(self._totals))

    def step(self) -> list[Event]:
        """Decide on every arm now; return events of the changes."""
        before, by_revision = dict(self.counts), self._by_revision()
        for arms in scaled_arms(self.target_state):
            with self.faults.contain("autoscaling", arms[0].endpoint.name):
                self._decide(arms, by_revision)
        return self._settle(before)

    async def _step_gently(self) -> list[Event]:
        """Run `step` with yields to the event loop: a thousand arms take long."""
        before, by_revision = dict(self.counts), self._by_revision()
        started = self.clock.monotonic()
        for arms in scaled_arms(self.target_state):
            with self.faults.contain("autoscaling", arms[0].endpoint.name):
                self._decide(arms, by_revision)
            if self.clock.monotonic() - started >= _AT_A_TIME_S:
                await asyncio.sleep(0)
                started = self.clock.monotonic()
        return self._settle(before)

    def _settle(self, before: Mapping[_Key, int]) -> list[Event]:
        """Drop removed arms, and grant each arm the replicas that fit the budget."""
        entries = [scaled for arms in scaled_arms(self.target_state) for scaled in arms]
        names = {scaled.endpoint.name for scaled in entries}
        by_revision = self._by_revision()
        # Not earlier: a new arm starts with the count of the arm that it replaces.
        self._arms = {
            scaled.key: self._arm_state(
                scaled, self._totals.get(scaled.endpoint.name, 0.0), by_revision, self.clock.now()
            )
            for scaled in entries
        }
        self._totals = {name: total for name, total in self._totals.items() if name in names}
        self._asleep &= names
        self.faults.keep_only("autoscaling", names)
        grants = self._grant(entries, before)
        events = []
        for key, arm in self._arms.items():
            previous, count, cut = arm.announced, arm.state.replicas, grants[key].reason
            if arm.decision is None:
                continue  # just added: the next step decides
            if previous != count or (cut and not arm.cut):
                events.append(self._event(key, arm, previous, cut))
            arm.announced, arm.cut = count, cut
        return events

    async def _gateway_observation(self) -> Mapping[_Key, int]:
        """Return the gateway's requests in flight; empty if not needed or without an answer."""
        if self.active is None or not self._arms:
            return {}
        try:
            async with asyncio.timeout(_GATEWAY_WITHIN_S):
                return await self.active()
        except (HeadraceError, TimeoutError) as error:
            _LOG.debug("the gateway does not report its held requests", extra={"error": str(error)})
            return {}

    def _replicas(self) -> Iterable[Replica]:
        return self.target_state.reconciler.replicas.values()

    def _by_revision(self) -> Mapping[str, Sequence[Replica]]:
        by_revision: dict[str, list[Replica]] = defaultdict(list)
        for replica in self._replicas():
            by_revision[replica.revision_id].append(replica)
        return by_revision

    def _decide(
        self, entries: Sequence[ScaledArm], by_revision: Mapping[str, Sequence[Replica]]
    ) -> None:
        """Decide on all arms of one endpoint, and on scaling it to zero."""
        name, now = entries[0].endpoint.name, self.clock.now()
        total = self._totals.get(name, 0.0)
        arms = [self._arm_state(scaled, total, by_revision, now) for scaled in entries]
        is_split = len(entries) > 1 or _is_young(arms, entries[0], now)
        for scaled, arm in zip(entries, arms, strict=True):
            self._decide_arm(
                scaled, arm, by_revision, floor=part_of(total, scaled.share) if is_split else 0
            )
        self._totals[name] = _total(arms, entries[0], total, now)
        if not any(arm.state.replicas for arm in arms):
            self._asleep.add(name)
            return
        self._asleep.discard(name)
        for arm in arms:
            # An arm without requests stays while another has some: it may get a share any time.
            arm.state = granted(arm.state, max(arm.state.replicas, 1))

    def _arm_state(
        self,
        scaled: ScaledArm,
        total: float,
        by_revision: Mapping[str, Sequence[Replica]],
        now: float,
    ) -> _Arm:
        """Return the state of an arm; a new arm starts with the replicas that its share needs."""
        if scaled.key not in self._arms:
            running = sum(not r.is_leaving for r in by_revision.get(scaled.arm.revision.id, ()))
            count = max(scaled.arm.replicas, running, part_of(total, scaled.share), 1)
            count = min(count, scaled.settings.max_replicas)
            self._arms[scaled.key] = _Arm(begin(count, now=now), announced=count)
        return self._arms[scaled.key]

    def _decide_arm(
        self,
        scaled: ScaledArm,
        arm: _Arm,
        by_revision: Mapping[str, Sequence[Replica]],
        *,
        floor: int,
    ) -> None:
        name = scaled.endpoint.name
        replicas = by_revision.get(scaled.arm.revision.id, ())
        ready = [replica.name for replica in replicas if _is_ready(replica)]
        coming = sum(
            replica.is_running or replica.phase is ReplicaPhase.EXITED for replica in replicas
        )
        if ready:
            self._held.pop(name, None)
        settings = scaled.settings_for(floor)
        signals = arm.meter.signals(
            ready,
            {replica: self.latest(replica) for replica in ready},
            settings,
            now=self.clock.now(),
            monotonic=self.clock.monotonic(),
            # Desired replicas that are not started yet count as starting too.
            starting=max(coming, arm.state.replicas) - len(ready),
            held=self._held.get(name, 0),
            at_gateway=self._at_gateway.get(scaled.key),
        )
        now, version = signals.observed_at, scaled.arm.revision.version
        is_llm = scaled.arm.revision.serves_openai and settings.slo_latency_s is not None
        last_step = max(arm.state.raised_at or 0.0, arm.state.starting_at or 0.0)
        seconds = min(settings.stable_window_s, now - last_step)
        if is_llm and self._streams is not None and seconds > 0.0:
            streams = self._streams.window(name, until=now, seconds=seconds, version=version)
            signals = with_first_tokens(signals, arm.state, streams)
        arm.decision = decide(arm.state, signals, settings, now=now)
        arm.state = arm.decision.state

    def _grant(
        self, entries: Sequence[ScaledArm], before: Mapping[_Key, int]
    ) -> dict[_Key, ReplicaGrant]:
        """Return the replicas granted to each arm within the machine's budget."""
        if not entries:
            return {}
        budget = self._budget_left()
        cores = sum(arm.meter.cores for arm in self._arms.values())
        is_full = budget.cpus is not None and cores >= _SATURATED * budget.cpus
        grants = share_out(
            [self._ask(scaled, before, is_full=is_full) for scaled in entries], budget
        )
        for key, grant in grants.items():
            arm = self._arms[key]
            reason = grant.reason
            if is_full and not reason and grant.replicas < arm.state.replicas:
                reason = (
                    f"{grant.replicas} of {arm.state.replicas} copies: {cores:.1f} of "
                    f"{budget.cpus:g} cores are in use, more copies would only share them"
                )
                grants[key] = ReplicaGrant(replicas=grant.replicas, reason=reason)
            arm.state = granted(arm.state, grant.replicas)
        return grants

    def _budget_left(self) -> BudgetSpec:
        budget = self.budget()
        if budget.memory_bytes is None:
            return budget
        left = max(budget.memory_bytes - self.other_bytes(), 1)
        return BudgetSpec(cpus=budget.cpus, memory_bytes=left)

    def _ask(
        self, scaled: ScaledArm, before: Mapping[_Key, int], *, is_full: bool
    ) -> ReplicaRequest:
        arm = self._arms[scaled.key]
        running = before.get(scaled.key, 0)
        desired = arm.state.replicas
        if is_full:
            desired = min(desired, max(running, scaled.minimum))
        return ReplicaRequest(
            endpoint=scaled.endpoint.name,
            arm=scaled.arm.key,
            desired=desired,
            running=min(running, desired),
            minimum=min(scaled.minimum, desired),
            cpus=arm.meter.cores_per_busy_copy * _TARGET_BUSY,
            memory_bytes=float(arm.meter.memory_bytes),
        )

    def _event(self, key: _Key, arm: _Arm, previous: int, cut: str) -> Event:
        name, arm_key = key
        decision, count = arm.decision, arm.state.replicas
        assert decision is not None
        message = f"version {arm_key}: {previous} ▸ {count} copies: {cut or decision.message}"
        _LOG.info("%s", message, extra={"endpoint": name})
        return Event(
            at=self.clock.now(),
            endpoint=name,
            kind="scale",
            reason=ScaleReason.BUDGET.value if cut else decision.reason.value,
            message=message,
            data={"arm": arm_key, "from": previous, "to": count, **decision.numbers},
        )


def _is_ready(replica: Replica) -> bool:
    return replica.phase is ReplicaPhase.READY


def _is_young(arms: Sequence[_Arm], scaled: ScaledArm, now: float) -> bool:
    """Whether one of an endpoint's arms was observed too briefly to know its load."""
    return any(now - arm.state.since < scaled.settings.stable_window_s for arm in arms)


def _total(arms: Sequence[_Arm], scaled: ScaledArm, before: float, now: float) -> float:
    """Return the replicas that the endpoint needs; `before` while an arm is too new."""
    decisions = [arm.decision for arm in arms if arm.decision is not None]
    if not _is_young(arms, scaled, now) and all(d.needed is not None for d in decisions):
        return sum(decision.needed or 0.0 for decision in decisions)
    return max(before, sum(decision.sure or 0.0 for decision in decisions))
