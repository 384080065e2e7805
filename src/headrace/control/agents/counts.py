"""Counters of all gateways: sums of their reports, which persist over restarts.

Envoy counts from 0 at every start, and gateways come and go, but readers need one monotonic total.
So the increase since a gateway's last report is added to separate totals, each request once.
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
"""Time after which an unknown arm is deleted: its last requests have ended by then."""
_MAX_GATEWAYS: Final = 1024
"""Gateways whose last report is stored; an evicted gateway counts from 0 when it returns."""
_NOTHING: Final = ArmStatistics()
_LOG: Final = logging.getLogger("headrace.control")
_LOCAL: Final = ""
"""Key of the gateway on this host, which no other gateway uses."""
Split: TypeAlias = tuple[str, tuple[tuple[str, int], ...]]
"""Id of a split, with the key and the weight of each arm."""
_SAVE_S: Final = 5.0
_KNOWN_VERSIONS: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentCounts:
    """Last report of a gateway: `epoch` of its Envoy, its counts, and the splits behind them."""

    epoch: str
    totals: Totals
    version: str = ""
    reported: frozenset[ArmKey] = frozenset()
    """The arms in the report; `totals` may have arms of earlier reports."""


@dataclass(slots=True)
class IdleArms:
    """Removed arms: time of the removal, and counts at that time."""

    _since: dict[ArmKey, tuple[float, ArmStatistics]] = field(default_factory=dict)

    def over(self, totals: Totals, current: Collection[ArmKey], *, now: float) -> set[ArmKey]:
        """Return the arms to delete: their counts have not changed for `FORGET_S`."""
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
        """Add the increase since the gateway's last report; all counts after a restart of Envoy."""
        last = self._last_counts.pop(gateway, None)
        goes_on = last is not None and last.epoch == epoch
        before = last.totals if last is not None and goes_on else {}
        for arm, now in totals.items():
            more = now.since(before.get(arm, _NOTHING))
            if arm in self.totals or arm not in before or more != _NOTHING:  # else it is forgotten
                total = self.totals.get(arm)
                self.totals[arm] = more if total is None else total.plus(more)
        # An arm that Envoy no longer reports may come back with its old counts.
        counts = AgentCounts(epoch=epoch, totals={**before, **totals}, reported=frozenset(totals))
        _remember(self._last_counts, gateway, counts)

    def keep(self, current: Collection[ArmKey], *, now: float) -> None:
        """Delete removed endpoints, and arms without new counts.

        The last report of such an arm is kept, so that nothing counts twice if the arm comes back:
        its total starts at 0 then.
        """
        names = {name for name, _ in current}
        self.totals = {arm: stats for arm, stats in self.totals.items() if arm[0] in names}
        over = self._idle.over(self.totals, current, now=now)
        for arm in over:
            del self.totals[arm]
        removed = {
            arm
            for counts in self._last_counts.values()
            for arm in counts.totals.keys() - counts.reported
        }
        if removed := {arm for arm in removed if arm not in current and arm not in self.totals}:
            self._last_counts = {
                name: _without(counts, removed) for name, counts in self._last_counts.items()
            }

    def to_stored(self, epoch: str) -> "StoredTotals":
        """Return the totals in the form that is stored over a restart."""
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
        """Return the aggregator of stored totals.

        Raises:
            InvalidArgumentError: The stored totals are inconsistent.
        """
        counts = {
            name: AgentCounts(epoch=gateway.epoch, totals=totals, reported=frozenset(totals))
            for name, gateway in stored.gateways.items()
            for totals in (totals_of(gateway.totals),)
        }
        return cls(totals=dict(totals_of(stored.totals)), _last_counts=counts)


@dataclass(slots=True, kw_only=True)
class ComparableTotals:
    """Totals for comparisons: only of intervals in which a gateway used the current split.

    A gateway that was behind or disconnected used an older split, and its counts would look as if
    the newest split were applied wrongly.
    """

    split_of: Callable[[str, str], object]
    """Returns the split of an endpoint in a version; None if it is no longer stored."""
    totals: dict[ArmKey, ArmStatistics] = field(default_factory=dict)
    _last_counts: dict[str, AgentCounts] = field(default_factory=dict)
    _idle: IdleArms = field(default_factory=IdleArms)

    def take(self, gateway: str, epoch: str, totals: Totals, *, version: str, newest: str) -> None:
        """Add the comparable increase since the last report."""
        last = self._last_counts.pop(gateway, None)
        _remember(
            self._last_counts,
            gateway,
            AgentCounts(epoch=epoch, totals=dict(totals), version=version),
        )
        for arm, now in totals.items():
            self.totals.setdefault(arm, _NOTHING)
            if last is None or last.epoch != epoch:
                continue  # start and split of the interval are unknown
            split = self.split_of(newest, arm[0])
            splits = (self.split_of(last.version, arm[0]), self.split_of(version, arm[0]))
            if split is not None and splits == (split, split):
                more = now.since(last.totals.get(arm, _NOTHING))
                self.totals[arm] = self.totals[arm].plus(more)

    def forget(self, gateway: str) -> None:
        """Reset the baseline of a gateway that was disconnected."""
        self._last_counts.pop(gateway, None)

    def keep(self, current: Collection[ArmKey], *, now: float) -> None:
        """Delete endpoints and arms that are no longer compared."""
        names = {name for name, _ in current}
        self.totals = {arm: stats for arm, stats in self.totals.items() if arm[0] in names}
        for arm in self._idle.over(self.totals, current, now=now):
            del self.totals[arm]


def _without(counts: AgentCounts, arms: Collection[ArmKey]) -> AgentCounts:
    """Return `counts` without those of `arms` that are no longer reported."""
    totals = {
        arm: stats
        for arm, stats in counts.totals.items()
        if arm in counts.reported or arm not in arms
    }
    return counts if len(totals) == len(counts.totals) else replace(counts, totals=totals)


def _remember(by_gateway: dict[str, AgentCounts], gateway: str, report: AgentCounts) -> None:
    by_gateway[gateway] = report
    while len(by_gateway) > _MAX_GATEWAYS:
        del by_gateway[next(iter(by_gateway))]


class KeptGateway(msgspec.Struct, frozen=True, kw_only=True):
    """Stored last report of a gateway."""

    epoch: str
    totals: tuple[Arm, ...]


class StoredTotals(msgspec.Struct, frozen=True, kw_only=True):
    """Stored form of a `CounterAggregator`."""

    epoch: str
    """Identifies these totals to readers."""
    totals: tuple[Arm, ...] = ()
    gateways: dict[str, KeptGateway] = msgspec.field(name="seen", default_factory=dict)


def _arms(totals: Totals) -> tuple[Arm, ...]:
    return tuple(Arm.of(arm, stats) for arm, stats in totals.items())


def totals_of(arms: Iterable[Arm]) -> dict[ArmKey, ArmStatistics]:
    """Return the counts of a gateway by arm.

    Raises:
        InvalidArgumentError: The counts are inconsistent.
    """
    return {(arm.endpoint, arm.key): arm.totals for arm in arms}


@dataclass(slots=True, kw_only=True)
class FleetCounts:
    """Aggregates reports, and returns totals like a single gateway."""

    path: Path
    """File of the totals, so that histories continue after a restart."""
    answer_s: float = 2.0
    """How long gateways may take to report requested counts."""
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
        """Load the totals of an earlier control plane. Blocking; call before the first report."""
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
        """Store the splits of the newest version."""
        self._splits.pop(version, None)
        self._splits[version] = {
            route.name: (route.split_id, tuple((arm.key, arm.weight) for arm in route.arms))
            for route in routes
        }
        self._newest = version
        while len(self._splits) > _KNOWN_VERSIONS:
            del self._splits[next(iter(self._splits))]

    def _known(self) -> set[str]:
        """Return the endpoints that gateways may report; others are ignored."""
        return {name for endpoints in self._splits.values() for name in endpoints}

    def _known_arms(self) -> set[tuple[str, str]]:
        """Return the arms that gateways may send requests to, as far as stored.

        Every endpoint has an arm with an empty key, for requests without a replica.
        """
        arm_keys = {(name, "") for name in self._known()}
        for endpoints in self._splits.values():
            arm_keys.update((name, key) for name, (_, arms) in endpoints.items() for key, _ in arms)
        return arm_keys

    def _split_of(self, version: str, endpoint: str) -> object:
        return self._splits.get(version, {}).get(endpoint)

    def ask(self) -> None:
        """Request counts that are newer than this moment."""
        self.request_number += 1

    def without_unknown_tokens(self, report: AgentStatus) -> AgentStatus:
        """Return `report` without tokens of endpoints that no gateway was told of."""
        counts = report.counts
        if counts is None or not counts.tokens:
            return report
        names = self._known()
        counts = msgspec.structs.replace(
            counts,
            tokens=tuple(use for use in counts.tokens if use.endpoint in names),
            streams=tuple(arm for arm in counts.streams if arm.endpoint in names),
        )
        return msgspec.structs.replace(report, counts=counts)

    def take_report(self, report: AgentStatus, *, newest: str, has_returned: bool) -> None:
        """Add the counts of a gateway's report.

        Raises:
            InvalidArgumentError: The report is inconsistent and ignored.
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
        """Add the counts of the gateway on this host: of splits only, or of all requests."""
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
        """Return the counts of all requests to these endpoints."""
        arms = {arm: stats for arm, stats in self._every.totals.items() if arm[0] in endpoints}
        return GatewayStatistics(epoch=self.epoch, arms=arms)

    def splits(self, endpoints: set[str], counts: Iterable[EnvoyCounts]) -> GatewayStatistics:
        """Return the requests by the splits of these endpoints, and the health of upstreams.

        Args:
            counts: Counts of the connected gateways: an upstream must be healthy for all that check
                it.
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
        """Save the totals if the interval has passed."""
        if self._is_new and now - self._saved_at >= _SAVE_S:
            self._saved_at = now
            current = self._known_arms()
            self._every.keep(current, now=now)
            self._evidence.keep(current, now=now)
            await asyncio.to_thread(self._write, self._every.to_stored(self.epoch))

    def save(self) -> None:
        """Save the totals. Blocking."""
        self._write(self._every.to_stored(self.epoch))

    def _write(self, stored: StoredTotals) -> None:
        self._is_new = False
        self._file.try_save(stored)

    @property
    def _file(self) -> StateFile[StoredTotals]:
        return StateFile(self.path, StoredTotals, "what gateways counted")
