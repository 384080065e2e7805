"""Counts of all gateways as one: sums of their reports, kept over a restart.

Envoy counts from 0 whenever it starts, and gateways come and go, while readers need one total that
only grows. So what each gateway added since its last report is added to totals of our own, each
request once.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, TypeAlias

import msgspec

from headrace.control.agents.messages import AgentStatus, Arm, EnvoyCounts
from headrace.core import HeadraceError
from headrace.core.state_file import StateFile
from headrace.gateway import ArmStatistics, EndpointRoute, GatewayStatistics

ArmKey: TypeAlias = tuple[str, str]
Totals: TypeAlias = Mapping[ArmKey, ArmStatistics]
FORGET_S: Final = 600.0
"""After which an arm that nobody knows is forgotten: its last requests have ended by then."""
_MOST_GATEWAYS: Final = 1024
"""Of which the last report is remembered: who comes back after so many others counts anew."""
_NOTHING: Final = ArmStatistics()
_LOG: Final = logging.getLogger("headrace.control")
_LOCAL: Final = ""
"""The gateway on this host, whose name no other has."""
Split: TypeAlias = tuple[str, tuple[tuple[str, int], ...]]
"""Its id, and each arm's key and weight."""
_SAVE_S: Final = 5.0
_KNOWN_VERSIONS: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentCounts:
    """A gateway's last report: `epoch` of its Envoy, what that had counted, and by which splits."""

    epoch: str
    totals: Totals
    version: str = ""
    reported: frozenset[ArmKey] = frozenset()
    """The arms that it told of; `totals` may have others that it told of before."""


@dataclass(slots=True)
class IdleArms:
    """Arms that nobody knows any more: since when, and what was counted of them by then."""

    _since: dict[ArmKey, tuple[float, ArmStatistics]] = field(default_factory=dict)

    def over(self, totals: Totals, current: Collection[ArmKey], *, now: float) -> set[ArmKey]:
        """Those to forget now: nothing more was counted of them for `FORGET_S`."""
        before = self._since
        self._since = {}
        for arm, stats in totals.items():
            if arm in current:
                continue
            since, then = before.get(arm, (now, stats))
            self._since[arm] = (since if then == stats else now), stats
        return {arm for arm, (since, _) in self._since.items() if now - since >= FORGET_S}


@dataclass(slots=True, kw_only=True)
class CounterAggregator:
    """Totals of every request to every gateway."""

    totals: dict[ArmKey, ArmStatistics] = field(default_factory=dict)
    _last_counts: dict[str, AgentCounts] = field(default_factory=dict)
    _idle: IdleArms = field(default_factory=IdleArms)

    def take(self, gateway: str, epoch: str, totals: Totals) -> None:
        """Add what `gateway` counted since its last report; all of it after Envoy's restart."""
        last = self._last_counts.pop(gateway, None)
        goes_on = last is not None and last.epoch == epoch
        before = last.totals if last is not None and goes_on else {}
        for arm, now in totals.items():
            more = now.since(before.get(arm, _NOTHING))
            if arm in self.totals or arm not in before or more != _NOTHING:  # else it is forgotten
                total = self.totals.get(arm)
                self.totals[arm] = more if total is None else total.plus(more)
        # An arm that Envoy no longer tells of may come back with what it had counted.
        counts = AgentCounts(epoch=epoch, totals={**before, **totals}, reported=frozenset(totals))
        _remember(self._last_counts, gateway, counts)

    def keep(self, current: Collection[ArmKey], *, now: float) -> None:
        """Forget endpoints that are gone, and arms of which nothing more comes.

        What a gateway still tells of such an arm stays known, so that nothing counts twice should
        it come back: it is counted from 0 then.
        """
        names = {name for name, _ in current}
        self.totals = {arm: stats for arm, stats in self.totals.items() if arm[0] in names}
        over = self._idle.over(self.totals, current, now=now)
        for arm in over:
            del self.totals[arm]
        gone = {
            arm
            for counts in self._last_counts.values()
            for arm in counts.totals.keys() - counts.reported
        }
        if gone := {arm for arm in gone if arm not in current and arm not in self.totals}:
            self._last_counts = {
                name: _without(counts, gone) for name, counts in self._last_counts.items()
            }

    def to_stored(self, epoch: str) -> "StoredTotals":
        """As it can be written, to go on with after a restart."""
        return StoredTotals(
            epoch=epoch,
            totals=_arms(self.totals),
            gateways={
                name: KeptGateway(epoch=counts.epoch, totals=_arms(counts.totals))
                for name, counts in self._last_counts.items()
            },
        )

    @classmethod
    def from_stored(cls, stored: "StoredTotals") -> "CounterAggregator":
        """As it was written.

        Raises:
            InvalidArgumentError: It contradicts itself.
        """
        counts = {
            name: AgentCounts(epoch=gateway.epoch, totals=totals, reported=frozenset(totals))
            for name, gateway in stored.gateways.items()
            for totals in (totals_of(gateway.totals),)
        }
        return cls(totals=dict(totals_of(stored.totals)), _last_counts=counts)


@dataclass(slots=True, kw_only=True)
class ComparableTotals:
    """Totals of what may be compared: only of intervals over which a gateway knew the split.

    A gateway that was behind, or away, sent requests by an older split, and what it counted would
    look as if the newest one split wrongly.
    """

    split_of: Callable[[str, str], object]
    """What the split of an endpoint was in a version, None if that is not known any more."""
    totals: dict[ArmKey, ArmStatistics] = field(default_factory=dict)
    _last_counts: dict[str, AgentCounts] = field(default_factory=dict)
    _idle: IdleArms = field(default_factory=IdleArms)

    def take(self, gateway: str, epoch: str, totals: Totals, *, version: str, newest: str) -> None:
        """Add what was counted since the last report, as far as it may be compared."""
        last = self._last_counts.pop(gateway, None)
        _remember(
            self._last_counts,
            gateway,
            AgentCounts(epoch=epoch, totals=dict(totals), version=version),
        )
        for arm, now in totals.items():
            self.totals.setdefault(arm, _NOTHING)
            if last is None or last.epoch != epoch:
                continue  # nobody knows since when, and by which split
            split = self.split_of(newest, arm[0])
            splits = (self.split_of(last.version, arm[0]), self.split_of(version, arm[0]))
            if split is not None and splits == (split, split):
                more = now.since(last.totals.get(arm, _NOTHING))
                self.totals[arm] = self.totals[arm].plus(more)

    def forget(self, gateway: str) -> None:
        """Begin anew with a gateway that was away."""
        self._last_counts.pop(gateway, None)

    def keep(self, current: Collection[ArmKey], *, now: float) -> None:
        """Forget endpoints and arms that are not compared any more."""
        names = {name for name, _ in current}
        self.totals = {arm: stats for arm, stats in self.totals.items() if arm[0] in names}
        for arm in self._idle.over(self.totals, current, now=now):
            del self.totals[arm]


def _without(counts: AgentCounts, arms: Collection[ArmKey]) -> AgentCounts:
    """`seen` without those of `arms` that it no longer tells of."""
    totals = {
        arm: stats
        for arm, stats in counts.totals.items()
        if arm in counts.reported or arm not in arms
    }
    return counts if len(totals) == len(counts.totals) else replace(counts, totals=totals)


def _remember(by_gateway: dict[str, AgentCounts], gateway: str, report: AgentCounts) -> None:
    by_gateway[gateway] = report
    while len(by_gateway) > _MOST_GATEWAYS:
        del by_gateway[next(iter(by_gateway))]


class KeptGateway(msgspec.Struct, frozen=True, kw_only=True):
    """A gateway's last report."""

    epoch: str
    totals: tuple[Arm, ...]


class StoredTotals(msgspec.Struct, frozen=True, kw_only=True):
    """A `CounterAggregator` as it lies on disk."""

    epoch: str
    """Names it to those who read it."""
    totals: tuple[Arm, ...] = ()
    gateways: dict[str, KeptGateway] = msgspec.field(name="seen", default_factory=dict)


def _arms(totals: Totals) -> tuple[Arm, ...]:
    return tuple(Arm.of(arm, stats) for arm, stats in totals.items())


def totals_of(arms: Iterable[Arm]) -> dict[ArmKey, ArmStatistics]:
    """A gateway's counts as they are computed with.

    Raises:
        InvalidArgumentError: They contradict themselves.
    """
    return {(arm.endpoint, arm.key): arm.totals for arm in arms}


@dataclass(slots=True, kw_only=True)
class FleetCounts:
    """Takes in reports, and answers as one gateway would."""

    path: Path
    """Where the sums are kept: the history goes on with them."""
    answer_s: float = 2.0
    """How long gateways may take to answer a question."""
    request_number: int = 0
    epoch: str = field(default_factory=lambda: f"fleet-{secrets.token_hex(8)}")
    _every: CounterAggregator = field(default_factory=CounterAggregator)
    _evidence: ComparableTotals = field(init=False)
    _splits: dict[str, dict[str, Split]] = field(default_factory=dict)
    _newest: str = ""
    _saved_at: float = 0.0
    _is_new: bool = False

    def __post_init__(self) -> None:
        self._evidence = ComparableTotals(split_of=self._split_of)

    def load(self) -> None:
        """Go on with what an earlier control plane kept. Blocking; before anything is heard."""
        stored = self._file.load()
        if stored is None:
            return
        try:
            self._every, self.epoch = CounterAggregator.from_stored(stored), stored.epoch
        except HeadraceError as error:
            extra = {"error": str(error)}
            _LOG.warning(
                "cannot read the stored gateway counters; counting restarts at zero", extra=extra
            )

    def note_splits(self, version: str, routes: Iterable[EndpointRoute]) -> None:
        """Remember how the newest version splits requests."""
        self._splits.pop(version, None)
        self._splits[version] = {
            route.name: (route.split_id, tuple((arm.key, arm.weight) for arm in route.arms))
            for route in routes
        }
        self._newest = version
        while len(self._splits) > _KNOWN_VERSIONS:
            del self._splits[next(iter(self._splits))]

    def _known(self) -> set[str]:
        """The endpoints that gateways may know; nobody asks for others."""
        return {name for endpoints in self._splits.values() for name in endpoints}

    def _known_arms(self) -> set[tuple[str, str]]:
        """The arms that gateways may send requests to, as far as is remembered.

        Requests that nobody was there for, by an empty key, are of every endpoint.
        """
        arm_keys = {(name, "") for name in self._known()}
        for endpoints in self._splits.values():
            arm_keys.update((name, key) for name, (_, arms) in endpoints.items() for key, _ in arms)
        return arm_keys

    def _split_of(self, version: str, endpoint: str) -> object:
        return self._splits.get(version, {}).get(endpoint)

    def ask(self) -> None:
        """Want counts that are newer than this moment."""
        self.request_number += 1

    def take_report(self, report: AgentStatus, *, newest: str, has_returned: bool) -> None:
        """Take in what a gateway counted.

        Raises:
            InvalidArgumentError: It contradicts itself; nothing of it counts.
        """
        if has_returned:
            self._evidence.forget(report.name)
        counts = report.counts
        if counts is None:
            return
        names = self._known()
        every = totals_of(arm for arm in counts.every if arm.endpoint in names)
        splits = totals_of(arm for arm in counts.splits if arm.endpoint in names)
        self._every.take(report.name, counts.epoch, every)
        self._evidence.take(
            report.name, counts.epoch, splits, version=report.in_force, newest=newest
        )
        self._is_new = True

    def take_local(self, reading: GatewayStatistics, *, splits: bool) -> None:
        """Take in what the gateway on this host counted: of splits only, or of everything."""
        if splits:
            self._evidence.take(
                _LOCAL,
                reading.epoch,
                reading.arms,
                version=self._newest,
                newest=self._newest,
            )
        else:
            self._every.take(_LOCAL, reading.epoch, reading.arms)
            self._is_new = True

    def every(self, endpoints: set[str]) -> GatewayStatistics:
        """All requests to these endpoints."""
        arms = {arm: stats for arm, stats in self._every.totals.items() if arm[0] in endpoints}
        return GatewayStatistics(epoch=self.epoch, arms=arms)

    def splits(self, endpoints: set[str], counts: Iterable[EnvoyCounts]) -> GatewayStatistics:
        """Requests that came by the splits of these endpoints, and who answers of upstreams.

        Args:
            counts: Of the gateways that are connected: an upstream has to answer all that ask.
        """
        healthy: dict[tuple[str, str], bool] = {}
        for report in counts:
            for state in report.upstreams:
                arm = (state.endpoint, state.key)
                if state.healthy is not None and state.endpoint in endpoints:
                    healthy[arm] = healthy.get(arm, True) and state.healthy
        arms = {arm: stats for arm, stats in self._evidence.totals.items() if arm[0] in endpoints}
        return GatewayStatistics(epoch=self.epoch, arms=arms, healthy=healthy)

    async def save_if_due(self, now: float) -> None:
        """Keep the sums now and then."""
        if self._is_new and now - self._saved_at >= _SAVE_S:
            self._saved_at = now
            current = self._known_arms()
            self._every.keep(current, now=now)
            self._evidence.keep(current, now=now)
            await asyncio.to_thread(self._write, self._every.to_stored(self.epoch))

    def save(self) -> None:
        """Keep the sums. Blocking."""
        self._write(self._every.to_stored(self.epoch))

    def _write(self, stored: StoredTotals) -> None:
        self._is_new = False
        self._file.try_save(stored)

    @property
    def _file(self) -> StateFile[StoredTotals]:
        return StateFile(self.path, StoredTotals, "what gateways counted")
