"""What do all gateways count, as one? Sums of their reports, kept over a restart."""

import asyncio
import logging
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

from headrace.control.agents.merging import Evidence, Kept, Sum, totals_of
from headrace.control.agents.messages import Counts, Report
from headrace.control.counting import ArmTotals, GatewayReading
from headrace.control.observed import Route
from headrace.core import HeadraceError
from headrace.core.state_file import StateFile
from headrace.gateway import ArmStatistics, GatewayStatistics

_LOG: Final = logging.getLogger("headrace.control")
_LOCAL: Final = ""
"""The gateway on this host, whose name no other has."""
Split: TypeAlias = tuple[str, tuple[tuple[str, int], ...]]
"""Its id, and each arm's key and weight."""
_SAVE_S: Final = 5.0
_KNOWN_VERSIONS: Final = 64


@dataclass(slots=True, kw_only=True)
class FleetCounts:
    """Takes in reports, and answers as one gateway would.

    `path`: where the sums are kept: the history goes on with them. `answer_s`: how long gateways
    may take to answer a question.
    """

    path: Path
    answer_s: float = 2.0
    asked: int = 0
    epoch: str = field(default_factory=lambda: f"fleet-{secrets.token_hex(8)}")
    _every: Sum = field(default_factory=Sum)
    _evidence: Evidence = field(init=False)
    _splits: dict[str, dict[str, Split]] = field(default_factory=dict)
    _newest: str = ""
    _saved_at: float = 0.0
    _is_new: bool = False

    def __post_init__(self) -> None:
        self._evidence = Evidence(split_of=self._split_of)

    def load(self) -> None:
        """Go on with what an earlier control plane kept. Blocking; before anything is heard."""
        kept = self._file.load()
        if kept is None:
            return
        try:
            self._every, self.epoch = Sum.of(kept), kept.epoch
        except HeadraceError as error:
            extra = {"error": str(error)}
            _LOG.warning("cannot read what gateways counted; it begins anew", extra=extra)

    def note_splits(self, version: str, routes: Iterable[Route]) -> None:
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
        return {name for known in self._splits.values() for name in known}

    def _known_arms(self) -> set[tuple[str, str]]:
        """The arms that gateways may send requests to, as far as is remembered.

        Requests that nobody was there for, by an empty key, are of every endpoint.
        """
        found = {(name, "") for name in self._known()}
        for known in self._splits.values():
            found.update((name, key) for name, (_, arms) in known.items() for key, _ in arms)
        return found

    def _split_of(self, version: str, endpoint: str) -> object:
        return self._splits.get(version, {}).get(endpoint)

    def ask(self) -> None:
        """Want counts that are newer than this moment."""
        self.asked += 1

    def hear(self, report: Report, *, newest: str, is_back: bool) -> None:
        """Take in what a gateway counted.

        Raises:
            InvalidArgumentError: It contradicts itself; nothing of it counts.
        """
        if is_back:
            self._evidence.forget(report.name)
        counts = report.counts
        if counts is None:
            return
        known = self._known()
        every = totals_of(arm for arm in counts.every if arm.endpoint in known)
        splits = totals_of(arm for arm in counts.splits if arm.endpoint in known)
        self._every.take(report.name, counts.epoch, every)
        self._evidence.take(
            report.name, counts.epoch, splits, version=report.in_force, newest=newest
        )
        self._is_new = True

    def take_local(self, reading: GatewayReading, *, splits: bool) -> None:
        """Take in what the gateway on this host counted: of splits only, or of everything."""
        if splits:
            self._evidence.take(
                _LOCAL,
                reading.epoch,
                reading.totals,
                version=self._newest,
                newest=self._newest,
            )
        else:
            self._every.take(_LOCAL, reading.epoch, reading.totals)
            self._is_new = True

    def every(self, endpoints: set[str]) -> GatewayReading:
        """All requests to these endpoints."""
        found = {arm: one for arm, one in self._every.totals.items() if arm[0] in endpoints}
        return GatewayReading(epoch=self.epoch, totals=found, healthy={})

    def splits(self, endpoints: set[str], counts: Iterable[Counts]) -> GatewayReading:
        """Requests that came by the splits of these endpoints, and who answers of upstreams.

        Args:
            counts: Of the gateways that are connected: an upstream has to answer all that ask.
        """
        healthy: dict[tuple[str, str], bool] = {}
        for one in counts:
            for state in one.upstreams:
                arm = (state.endpoint, state.key)
                if state.healthy is not None and state.endpoint in endpoints:
                    healthy[arm] = healthy.get(arm, True) and state.healthy
        found = {arm: one for arm, one in self._evidence.totals.items() if arm[0] in endpoints}
        return GatewayReading(epoch=self.epoch, totals=found, healthy=healthy)

    def statistics(self, reading: GatewayReading) -> GatewayStatistics:
        """A reading in the gateway's own words."""
        arms = {arm: _statistics(totals) for arm, totals in reading.totals.items()}
        return GatewayStatistics(epoch=reading.epoch, arms=arms)

    async def save_if_due(self, now: float) -> None:
        """Keep the sums now and then."""
        if self._is_new and now - self._saved_at >= _SAVE_S:
            self._saved_at = now
            known = self._known_arms()
            self._every.keep(known, now=now)
            self._evidence.keep(known, now=now)
            await asyncio.to_thread(self._write, self._every.kept(self.epoch))

    def save(self) -> None:
        """Keep the sums. Blocking."""
        self._write(self._every.kept(self.epoch))

    def _write(self, kept: Kept) -> None:
        self._is_new = False
        self._file.try_save(kept)

    @property
    def _file(self) -> StateFile[Kept]:
        return StateFile(self.path, Kept, "what gateways counted")


def _statistics(totals: ArmTotals) -> ArmStatistics:
    buckets = sorted(totals.latency.items())
    return ArmStatistics(
        requests=totals.requests,
        errors=totals.errors,
        rejections=totals.rejections,
        lower_s=tuple(lower for (lower, _), _ in buckets),
        width_s=tuple(width for (_, width), _ in buckets),
        counts=tuple(count for _, count in buckets),
    )
