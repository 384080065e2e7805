"""Gateways on other hosts: their reports, and how each stands to the newest offer. Pure.

The time is passed in. A gateway that is behind or lost for too long is no longer waited for.

As one they would be in force and behind by turns, so that a replica could end that the other one
still sends requests to, and each would seem to have started anew whenever the other had reported.
"""

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final, assert_never

import msgspec

from headrace.control.agents.messages import AgentStatus, EnvoyCounts
from headrace.control.model.records import Event
from headrace.core.gateways import MAX_BEHIND_S
from headrace.observe.metrics import Family, gauge

_MOST_OFFERS: Final = 256
_NEWEST: Final = 0
_MOST_NAMES: Final = 1024
_MOST_FORMER: Final = 16
_FORGET_S: Final = 24 * 3600.0
"""After which a silent gateway is no longer shown: hosts and pods come and go."""
_MOST_GATEWAYS: Final = 512
_KNOWN_VERSIONS: Final = 64


class SyncStatus(StrEnum):
    """How a gateway stands to the newest that it was offered."""

    CURRENT = "current"
    """It has it in force."""
    WAITING = "waiting"
    """It may still take it: replicas that it knows are kept."""
    REFUSED = "refused"
    """It said that it cannot; what it had before is in force there."""
    BEHIND = "behind"
    """It has not taken it for too long, and nobody waits for it any more."""
    LOST = "lost"
    """Nothing was heard of it for too long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentTimeouts:
    """Limits after which an agent counts as behind or lost."""

    max_behind_s: float = MAX_BEHIND_S
    """How long a gateway may take."""
    lost_after_s: float = 30.0
    """How long it may be silent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentReport:
    """What is known of one gateway; times are monotonic."""

    since: float
    """When it was heard of first, or again after it was lost."""
    seen_at: float
    in_force: int = 0
    """Numbers of offers, 0 for none."""
    refused: int = 0
    """Numbers of offers, 0 for none."""
    reason: str = ""
    is_ready: bool = False


@dataclass(frozen=True, slots=True)
class Offers:
    """When each was made: the first is number 1. Of old ones, `dropped` many, nobody knows when."""

    offered_at: tuple[float, ...] = ()
    dropped: int = 0

    @property
    def newest(self) -> int:
        """The number of the newest; 0 for none."""
        return self.dropped + len(self.offered_at)

    def with_offer(self, now: float) -> "Offers":
        """These and another one."""
        offered_at = (*self.offered_at, now)
        excess = max(len(offered_at) - _MOST_OFFERS, 0)
        return Offers(offered_at[excess:], self.dropped + excess)

    def after(self, number: int) -> float:
        """When the first one after `number` was made, as far as is known."""
        assert number < self.newest
        return self.offered_at[max(number - self.dropped, 0)]


def behind_s(last_report: AgentReport, offers: Offers, *, now: float) -> float:
    """For how long there has been something newer than what is in force; 0 if there is not."""
    if last_report.in_force >= offers.newest:
        return 0.0
    return max(now - offers.after(last_report.in_force), 0.0)


def standing(
    last_report: AgentReport,
    offers: Offers,
    *,
    now: float,
    timeouts: AgentTimeouts,
    offer: int = _NEWEST,
) -> SyncStatus:
    """How a gateway stands to offer number `offer`; 0 for the newest."""
    number = offer or offers.newest
    if now > last_report.seen_at + timeouts.lost_after_s:
        return SyncStatus.LOST
    if last_report.in_force >= number:
        return SyncStatus.CURRENT
    if last_report.refused >= number:
        return SyncStatus.REFUSED
    # Who has just come back gets the time that it has not had.
    offered = max(offers.after(last_report.in_force), last_report.since)
    # As a sum, like the moment that is waited for: a difference may be a rounding short of it.
    return SyncStatus.BEHIND if now >= offered + timeouts.max_behind_s else SyncStatus.WAITING


class PublicationOutcome(StrEnum):
    """What becomes of a publication."""

    WAIT = "wait"
    DONE = "done"
    REFUSED = "refused"
    NOBODY = "nobody"
    """No gateway is connected: it is kept, and nobody acknowledged it."""
    BEHIND = "behind"
    """All that are connected are behind: nobody acknowledged it."""


def outcome(sync_statuses: Collection[SyncStatus]) -> PublicationOutcome:
    """What the standings to one offer say about it."""
    connected = [status for status in sync_statuses if status is not SyncStatus.LOST]
    if not connected:
        return PublicationOutcome.NOBODY
    if SyncStatus.WAITING in connected:
        return PublicationOutcome.WAIT
    if SyncStatus.REFUSED in connected:
        return PublicationOutcome.REFUSED
    return PublicationOutcome.DONE if SyncStatus.CURRENT in connected else PublicationOutcome.BEHIND


def next_change_s(
    last_reports: Mapping[str, AgentReport], offers: Offers, *, now: float, timeouts: AgentTimeouts
) -> float:
    """After how many seconds a standing may change though nothing is heard."""
    times = [
        moment
        for report in last_reports.values()
        for moment in (
            report.seen_at + timeouts.lost_after_s,
            max(offers.after(report.in_force), report.since) + timeouts.max_behind_s
            if report.in_force < offers.newest
            else 0.0,
        )
        if moment > now
    ]
    return min(times, default=now + timeouts.lost_after_s) - now


def should_send(
    *, held: str, refused: str, newest: str, has_routes: bool, has_desired_state: bool
) -> bool:
    """Whether a gateway that holds version `held` is given the newest.

    Args:
        refused: What it refused last: it would again.
        has_routes: Whether somebody decided what the newest says. A control plane that has just
            begun knows of no routes, and that must not end those of a gateway that serves.
        has_desired_state: Whether a desired state exists. Then a gateway that has nothing waits
            too: one that is ready without routes would deny every endpoint.
    """
    if not newest or newest in {held, refused}:
        return False
    return has_routes or not (held or has_desired_state)


@dataclass(slots=True)
class _Name:
    """Agents that used one name."""

    newest: str
    """The agent that came last under this name."""
    former: deque[str] = field(default_factory=lambda: deque(maxlen=_MOST_FORMER))
    """Those before it."""


@dataclass(slots=True)
class DuplicateNames:
    """Which agents, by the id that each makes up at its start, report under which name."""

    _names: dict[str, _Name] = field(default_factory=dict)

    def with_unique_name(self, report: AgentStatus) -> AgentStatus:
        """`report`, under a name of its own if a newer agent has come under the same.

        One that was started anew does not report any more, so that the next one has its name.
        """
        if not report.instance:
            return report  # an older agent
        record = self._names.pop(report.name, None) or _Name(report.instance)
        self._names[report.name] = record
        while len(self._names) > _MOST_NAMES:
            del self._names[next(iter(self._names))]
        if report.instance == record.newest:
            return report
        if report.instance not in record.former:
            record.former.append(record.newest)
            record.newest = report.instance
            return report
        return msgspec.structs.replace(
            report,
            name=f"{report.name}#{report.instance[:8]}",
            problem=f"another gateway is called '{report.name}' too: give each its own --name",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayState:
    """One gateway as people see it."""

    name: str
    standing: SyncStatus
    version: str
    behind_s: float
    seen_s: float
    """How long ago it was heard last."""
    ready: bool
    restarts: int = 0
    reason: str = ""
    url: str = ""
    agent: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncChange:
    """A gateway that stands otherwise than before."""

    name: str
    before: SyncStatus | None
    now: SyncStatus
    state: GatewayState


@dataclass(slots=True, kw_only=True)
class AgentRegistry:
    """Every gateway's last report, and what was offered to all of them."""

    timeouts: AgentTimeouts = field(default_factory=AgentTimeouts)
    offers: Offers = field(default_factory=Offers)
    _numbers: dict[str, int] = field(default_factory=dict)
    _heard: dict[str, AgentReport] = field(default_factory=dict)
    _reports: dict[str, AgentStatus] = field(default_factory=dict)
    _last_statuses: dict[str, SyncStatus] = field(default_factory=dict)

    @property
    def last_reports(self) -> Mapping[str, AgentReport]:
        """What is known of each."""
        return self._heard

    @property
    def newest(self) -> int:
        """The number of the newest offer; 0 for none."""
        return self.offers.newest

    def offer(self, version: str, *, now: float) -> int:
        """Another version is the newest; its number."""
        self.offers = self.offers.with_offer(now)
        self._numbers.pop(version, None)
        self._numbers[version] = self.newest
        while len(self._numbers) > _KNOWN_VERSIONS:
            del self._numbers[next(iter(self._numbers))]
        for name, report in self._reports.items():
            # The same content may have been offered before, and be in force.
            self._heard[name] = self._with_numbers(self._heard[name], report)
        return self.newest

    def take_report(self, report: AgentStatus, *, now: float) -> bool:
        """Take in a report; whether it was lost before, or is new."""
        last = self._heard.get(report.name)
        has_returned = last is None or now > last.seen_at + self.timeouts.lost_after_s
        since = now if last is None or has_returned else last.since
        last_report = AgentReport(since=since, seen_at=now, is_ready=report.ready)
        if report.counts is None and not has_returned:
            old = self._reports[report.name].counts
            report = msgspec.structs.replace(report, counts=old)
        self._reports[report.name] = report
        self._heard[report.name] = self._with_numbers(last_report, report)
        self._forget(now)
        return has_returned

    def _with_numbers(self, last_report: AgentReport, report: AgentStatus) -> AgentReport:
        return replace(
            last_report,
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
            self._last_statuses.pop(name, None)

    def sync_statuses(self, *, now: float, offer: int = 0) -> dict[str, SyncStatus]:
        """Of all gateways, to offer number `offer`; 0 for the newest."""
        return {
            name: standing(last_report, self.offers, now=now, timeouts=self.timeouts, offer=offer)
            for name, last_report in self._heard.items()
        }

    def outcome(self, offer: int, *, now: float) -> PublicationOutcome:
        """What becomes of offer number `offer`."""
        return outcome(self.sync_statuses(now=now, offer=offer).values())

    def refusals(self, offer: int, *, now: float) -> dict[str, str]:
        """Why gateways refused offer number `offer`, by their names."""
        sync_statuses = self.sync_statuses(now=now, offer=offer)
        return {
            name: self._heard[name].reason or "no reason given"
            for name, status in sorted(sync_statuses.items())
            if status is SyncStatus.REFUSED
        }

    def live(self, *, now: float) -> dict[str, AgentStatus]:
        """The last report of each that is connected."""
        return {
            name: self._reports[name]
            for name, last_report in self._heard.items()
            if now <= last_report.seen_at + self.timeouts.lost_after_s
        }

    def counts(self, *, now: float) -> Mapping[str, EnvoyCounts]:
        """What each that is connected has counted last."""
        reports = self.live(now=now)
        return {
            name: report.counts for name, report in reports.items() if report.counts is not None
        }

    def states(self, *, now: float) -> tuple[GatewayState, ...]:
        """All of them, by name."""
        sync_statuses = self.sync_statuses(now=now)
        return tuple(self._state(name, sync_statuses[name], now) for name in sorted(sync_statuses))

    def sync_changes(self, *, now: float) -> list[SyncChange]:
        """Who stands otherwise than when this was asked last; waiting is no news."""
        changes = []
        for name, state in ((state.name, state) for state in self.states(now=now)):
            before = self._last_statuses.get(name)
            if state.standing in {before, SyncStatus.WAITING}:
                continue
            self._last_statuses[name] = state.standing
            changes.append(SyncChange(name=name, before=before, now=state.standing, state=state))
        return changes

    def _state(self, name: str, stands: SyncStatus, now: float) -> GatewayState:
        last_report, report = self._heard[name], self._reports[name]
        return GatewayState(
            name=name,
            standing=stands,
            version=report.in_force,
            behind_s=round(behind_s(last_report, self.offers, now=now), 3),
            seen_s=round(max(now - last_report.seen_at, 0.0), 3),
            ready=report.ready and stands is not SyncStatus.LOST,
            restarts=report.restarts,
            reason=report.reason if stands is SyncStatus.REFUSED else report.problem,
            url=report.url,
            agent=report.agent,
        )


_REASONS: Final = {
    SyncStatus.CURRENT: "GatewayCurrent",
    SyncStatus.WAITING: "GatewayWaiting",
    SyncStatus.REFUSED: "GatewayRefused",
    SyncStatus.BEHIND: "GatewayBehind",
    SyncStatus.LOST: "GatewayLost",
}


def event_of(change: SyncChange, *, timestamp: float) -> Event:
    """What is written when a gateway stands otherwise than before."""
    state = change.state
    return Event(
        at=timestamp,
        endpoint="",
        kind="gateway",
        reason=_REASONS[change.now],
        message=f"gateway '{change.name}' {_text(change)}",
        data={
            "gateway": change.name,
            "version": state.version,
            "behind_s": state.behind_s,
            "seen_s": state.seen_s,
        },
    )


def _text(change: SyncChange) -> str:
    state = change.state
    match change.now:
        case SyncStatus.CURRENT if change.before is None:
            return f"is connected and serves version {state.version}"
        case SyncStatus.CURRENT:
            return f"has caught up: it serves version {state.version}"
        case SyncStatus.WAITING:
            return "applies the newest version"
        case SyncStatus.REFUSED:
            return f"refused the newest version and serves {state.version}: {state.reason}"
        case SyncStatus.BEHIND:
            why = f": {state.reason}" if state.reason else ""
            return (
                f"is behind by {state.behind_s:.0f} s and serves version "
                f"{state.version or 'nothing'}{why}"
            )
        case SyncStatus.LOST:
            return (
                f"has not reported for {state.seen_s:.0f} s; it served version "
                f"{state.version or 'nothing'}, and may go on"
            )
        case _:
            assert_never(change.now)


def families(states: Sequence[GatewayState]) -> list[Family]:
    """How each gateway is, as metrics."""
    connected, ready, behind_s, seen_s = [], [], [], []
    for state in states:
        labels = (("gateway", state.name),)
        connected.append((labels, float(state.standing is not SyncStatus.LOST)))
        ready.append((labels, float(state.ready)))
        behind_s.append((labels, state.behind_s))
        seen_s.append((labels, state.seen_s))
    return [
        gauge("headrace_gateway_connected", "1 while the gateway's agent reports.", connected),
        gauge("headrace_gateway_ready", "1 while the gateway serves.", ready),
        gauge(
            "headrace_gateway_behind_seconds",
            "For how long there has been something newer than what is in force there.",
            behind_s,
        ),
        gauge("headrace_gateway_seen_seconds", "Seconds since the gateway's last report.", seen_s),
    ]
