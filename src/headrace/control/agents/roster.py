"""Which gateways are there, and how is each? Takes offers and reports; the time is passed in."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec

from headrace.control.agents.messages import Counts, Report
from headrace.control.agents.standing import (
    Heard,
    Offers,
    Outcome,
    Patience,
    Standing,
    behind_s,
    outcome,
    standing,
)

_FORGET_S: Final = 24 * 3600.0
"""After which a silent gateway is no longer shown: hosts and pods come and go."""
_MOST_GATEWAYS: Final = 512
_KNOWN_VERSIONS: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayState:
    """One gateway as people see it. `seen_s`: how long ago it was heard last."""

    name: str
    standing: Standing
    version: str
    behind_s: float
    seen_s: float
    ready: bool
    restarts: int = 0
    reason: str = ""
    url: str = ""
    agent: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A gateway that stands otherwise than before."""

    name: str
    before: Standing | None
    now: Standing
    state: GatewayState


@dataclass(slots=True, kw_only=True)
class Roster:
    """Every gateway's last report, and what was offered to all of them."""

    patience: Patience = field(default_factory=Patience)
    offers: Offers = field(default_factory=Offers)
    _numbers: dict[str, int] = field(default_factory=dict)
    _heard: dict[str, Heard] = field(default_factory=dict)
    _reports: dict[str, Report] = field(default_factory=dict)
    _told: dict[str, Standing] = field(default_factory=dict)

    @property
    def heard(self) -> Mapping[str, Heard]:
        """What is known of each."""
        return self._heard

    @property
    def newest(self) -> int:
        """The number of the newest offer; 0 for none."""
        return self.offers.newest

    def offer(self, version: str, *, now: float) -> int:
        """Another version is the newest; its number."""
        self.offers = self.offers.and_one(now)
        self._numbers.pop(version, None)
        self._numbers[version] = self.newest
        while len(self._numbers) > _KNOWN_VERSIONS:
            del self._numbers[next(iter(self._numbers))]
        for name, report in self._reports.items():
            # The same content may have been offered before, and be in force.
            self._heard[name] = self._with_numbers(self._heard[name], report)
        return self.newest

    def hear(self, report: Report, *, now: float) -> bool:
        """Take in a report; whether it was lost before, or is new."""
        known = self._heard.get(report.name)
        is_back = known is None or now > known.seen_at + self.patience.lost_after_s
        since = now if known is None or is_back else known.since
        heard = Heard(since=since, seen_at=now, is_ready=report.ready)
        if report.counts is None and not is_back:
            old = self._reports[report.name].counts
            report = msgspec.structs.replace(report, counts=old)
        self._reports[report.name] = report
        self._heard[report.name] = self._with_numbers(heard, report)
        self._forget(now)
        return is_back

    def _with_numbers(self, heard: Heard, report: Report) -> Heard:
        return replace(
            heard,
            in_force=self._numbers.get(report.in_force, 0),
            refused=self._numbers.get(report.refused, 0),
            reason=report.reason,
        )

    def _forget(self, now: float) -> None:
        by_age = sorted(self._heard, key=lambda name: self._heard[name].seen_at)
        excess = by_age[: max(len(by_age) - _MOST_GATEWAYS, 0)]
        old = [name for name in by_age if now - self._heard[name].seen_at > _FORGET_S]
        for name in {*excess, *old}:
            del self._heard[name], self._reports[name]
            self._told.pop(name, None)

    def standings(self, *, now: float, wanted: int = 0) -> dict[str, Standing]:
        """Of all gateways, to offer number `wanted`; 0 for the newest."""
        return {
            name: standing(heard, self.offers, now=now, patience=self.patience, wanted=wanted)
            for name, heard in self._heard.items()
        }

    def outcome(self, wanted: int, *, now: float) -> Outcome:
        """What becomes of offer number `wanted`."""
        return outcome(self.standings(now=now, wanted=wanted).values())

    def refusals(self, wanted: int, *, now: float) -> dict[str, str]:
        """Why gateways refused offer number `wanted`, by their names."""
        found = self.standings(now=now, wanted=wanted)
        return {
            name: self._heard[name].reason or "it did not say why"
            for name, one in sorted(found.items())
            if one is Standing.REFUSED
        }

    def live(self, *, now: float) -> dict[str, Report]:
        """The last report of each that is connected."""
        return {
            name: self._reports[name]
            for name, heard in self._heard.items()
            if now <= heard.seen_at + self.patience.lost_after_s
        }

    def counts(self, *, now: float) -> Mapping[str, Counts]:
        """What each that is connected has counted last."""
        reports = self.live(now=now)
        return {name: one.counts for name, one in reports.items() if one.counts is not None}

    def states(self, *, now: float) -> tuple[GatewayState, ...]:
        """All of them, by name."""
        found = self.standings(now=now)
        return tuple(self._state(name, found[name], now) for name in sorted(found))

    def turns(self, *, now: float) -> list[Turn]:
        """Who stands otherwise than when this was asked last; waiting is no news."""
        found = []
        for name, state in ((state.name, state) for state in self.states(now=now)):
            before = self._told.get(name)
            if state.standing in {before, Standing.WAITING}:
                continue
            self._told[name] = state.standing
            found.append(Turn(name=name, before=before, now=state.standing, state=state))
        return found

    def _state(self, name: str, stands: Standing, now: float) -> GatewayState:
        heard, report = self._heard[name], self._reports[name]
        return GatewayState(
            name=name,
            standing=stands,
            version=report.in_force,
            behind_s=round(behind_s(heard, self.offers, now=now), 3),
            seen_s=round(max(now - heard.seen_at, 0.0), 3),
            ready=report.ready and stands is not Standing.LOST,
            restarts=report.restarts,
            reason=report.reason if stands is Standing.REFUSED else report.problem,
            url=report.url,
            agent=report.agent,
        )
