"""Registry of gateways on other hosts: reports, and sync status to the newest offer. Pure.

Time is an argument. Gateways that are behind or lost for too long are no longer waited for.

Two agents under one name would alternate between current and behind: a replica could end while one
of them still sends requests to it, and each report would look like a restart of the other.
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

_MAX_OFFERS: Final = 256
_NEWEST: Final = 0
_MAX_NAMES: Final = 1024
_MAX_PREVIOUS: Final = 16
_FORGET_S: Final = 24 * 3600.0
"""Silence after which a gateway is no longer shown: hosts and pods come and go."""
_MAX_GATEWAYS: Final = 512
_KNOWN_VERSIONS: Final = 64


class SyncStatus(StrEnum):
    """Sync status of a gateway to the newest offer."""

    CURRENT = "current"
    """The offer is in force."""
    WAITING = "waiting"
    """The offer may still be applied: replicas that the gateway knows are kept."""
    REFUSED = "refused"
    """The gateway rejected the offer; its previous version stays in force."""
    BEHIND = "behind"
    """The offer was not applied in time, and is no longer waited for."""
    LOST = "lost"
    """The gateway has been silent for too long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentTimeouts:
    """Limits after which an agent counts as behind or lost."""

    max_behind_s: float = MAX_BEHIND_S
    """How long a gateway may take to apply an offer."""
    lost_after_s: float = 30.0
    """How long a gateway may be silent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentReport:
    """Recorded state of one gateway; times are monotonic."""

    since: float
    """Time of the first report, or of the first after it was lost."""
    seen_at: float
    in_force: int = 0
    """Numbers of offers, 0 for none."""
    refused: int = 0
    """Numbers of offers, 0 for none."""
    reason: str = ""
    is_ready: bool = False


@dataclass(frozen=True, slots=True)
class Offers:
    """Times of offers; the first is number 1. The times of the oldest `dropped` are deleted."""

    offered_at: tuple[float, ...] = ()
    dropped: int = 0

    @property
    def newest(self) -> int:
        """Return the number of the newest offer; 0 for none."""
        return self.dropped + len(self.offered_at)

    def with_offer(self, now: float) -> "Offers":
        """Return these offers and a new one."""
        offered_at = (*self.offered_at, now)
        excess = max(len(offered_at) - _MAX_OFFERS, 0)
        return Offers(offered_at[excess:], self.dropped + excess)

    def after(self, number: int) -> float:
        """Return the time of the first offer after `number`, as far as recorded."""
        assert number < self.newest
        return self.offered_at[max(number - self.dropped, 0)]


def behind_s(last_report: AgentReport, offers: Offers, *, now: float) -> float:
    """Return how long a newer offer than the one in force has existed; 0 if none exists."""
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
    """Return a gateway's sync status to offer number `offer`; 0 for the newest."""
    number = offer or offers.newest
    if now > last_report.seen_at + timeouts.lost_after_s:
        return SyncStatus.LOST
    if last_report.in_force >= number:
        return SyncStatus.CURRENT
    if last_report.refused >= number:
        return SyncStatus.REFUSED
    # A gateway that has just come back gets the time that it missed.
    offered = max(offers.after(last_report.in_force), last_report.since)
    # Compared as a sum, like the deadline: a difference may differ by a rounding error.
    return SyncStatus.BEHIND if now >= offered + timeouts.max_behind_s else SyncStatus.WAITING


class PublicationOutcome(StrEnum):
    """Result of a publication."""

    WAIT = "wait"
    DONE = "done"
    REFUSED = "refused"
    NOBODY = "nobody"
    """No gateway is connected: the offer is kept, unacknowledged."""
    BEHIND = "behind"
    """All connected gateways are behind: the offer is unacknowledged."""


def outcome(sync_statuses: Collection[SyncStatus]) -> PublicationOutcome:
    """Return the outcome of a publication from the sync statuses to its offer."""
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
    """Return seconds until a sync status may change without a report."""
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
    """Whether a gateway that holds version `held` gets the newest one.

    Args:
        refused: The version it refused last, and would refuse again.
        has_routes: Whether routes were published. A control plane that has just started has no
            routes, which must not remove those of a serving gateway.
        has_desired_state: Whether a desired state exists. Then a gateway without a version waits
            too: if it became ready without routes, it would reject every request.
    """
    if not newest or newest in {held, refused}:
        return False
    return has_routes or not (held or has_desired_state)


@dataclass(slots=True)
class _Name:
    """Agents that used the same name."""

    newest: str
    """The agent that connected last under this name."""
    former: deque[str] = field(default_factory=lambda: deque(maxlen=_MAX_PREVIOUS))
    """Agents before it."""


@dataclass(slots=True)
class DuplicateNames:
    """Agents by name, identified by the id that each generates at its start."""

    _names: dict[str, _Name] = field(default_factory=dict)

    def with_unique_name(self, report: AgentStatus) -> AgentStatus:
        """Return `report`, renamed if a newer agent uses the same name.

        A restarted agent's former run no longer reports, so the next run keeps the name.
        """
        if not report.instance:
            return report  # an older agent
        record = self._names.pop(report.name, None) or _Name(report.instance)
        self._names[report.name] = record
        while len(self._names) > _MAX_NAMES:
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
    """One gateway, as displayed."""

    name: str
    standing: SyncStatus
    version: str
    behind_s: float
    seen_s: float
    """Seconds since its last report."""
    ready: bool
    restarts: int = 0
    reason: str = ""
    url: str = ""
    agent: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncChange:
    """A changed sync status of a gateway."""

    name: str
    before: SyncStatus | None
    now: SyncStatus
    state: GatewayState


@dataclass(slots=True, kw_only=True)
class AgentRegistry:
    """Last report of every gateway, and the offers to all of them."""

    timeouts: AgentTimeouts = field(default_factory=AgentTimeouts)
    offers: Offers = field(default_factory=Offers)
    _numbers: dict[str, int] = field(default_factory=dict)
    _heard: dict[str, AgentReport] = field(default_factory=dict)
    _reports: dict[str, AgentStatus] = field(default_factory=dict)
    _last_statuses: dict[str, SyncStatus] = field(default_factory=dict)

    @property
    def last_reports(self) -> Mapping[str, AgentReport]:
        """Return the recorded state of each gateway."""
        return self._heard

    @property
    def newest(self) -> int:
        """Return the number of the newest offer; 0 for none."""
        return self.offers.newest

    def offer(self, version: str, *, now: float) -> int:
        """Record another version as the newest offer; return its number."""
        self.offers = self.offers.with_offer(now)
        self._numbers.pop(version, None)
        self._numbers[version] = self.newest
        while len(self._numbers) > _KNOWN_VERSIONS:
            del self._numbers[next(iter(self._numbers))]
        for name, report in self._reports.items():
            # The same content may be in force already from an earlier offer.
            self._heard[name] = self._with_numbers(self._heard[name], report)
        return self.newest

    def take_report(self, report: AgentStatus, *, now: float) -> bool:
        """Record a report; return whether the gateway is new or was lost."""
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
        excess = by_age[: max(len(by_age) - _MAX_GATEWAYS, 0)]
        old = [name for name in by_age if now - self._heard[name].seen_at > _FORGET_S]
        for name in {*excess, *old}:
            del self._heard[name], self._reports[name]
            self._last_statuses.pop(name, None)

    def sync_statuses(self, *, now: float, offer: int = 0) -> dict[str, SyncStatus]:
        """Return the sync status of all gateways to offer number `offer`; 0 for the newest."""
        return {
            name: standing(last_report, self.offers, now=now, timeouts=self.timeouts, offer=offer)
            for name, last_report in self._heard.items()
        }

    def outcome(self, offer: int, *, now: float) -> PublicationOutcome:
        """Return the outcome of offer number `offer`."""
        return outcome(self.sync_statuses(now=now, offer=offer).values())

    def refusals(self, offer: int, *, now: float) -> dict[str, str]:
        """Return why gateways refused offer number `offer`, by name."""
        sync_statuses = self.sync_statuses(now=now, offer=offer)
        return {
            name: self._heard[name].reason or "no reason given"
            for name, status in sorted(sync_statuses.items())
            if status is SyncStatus.REFUSED
        }

    def live(self, *, now: float) -> dict[str, AgentStatus]:
        """Return the last report of each connected gateway."""
        return {
            name: self._reports[name]
            for name, last_report in self._heard.items()
            if now <= last_report.seen_at + self.timeouts.lost_after_s
        }

    def counts(self, *, now: float) -> Mapping[str, EnvoyCounts]:
        """Return the last counts of each connected gateway."""
        reports = self.live(now=now)
        return {
            name: report.counts for name, report in reports.items() if report.counts is not None
        }

    def states(self, *, now: float) -> tuple[GatewayState, ...]:
        """Return all gateways, sorted by name."""
        sync_statuses = self.sync_statuses(now=now)
        return tuple(self._state(name, sync_statuses[name], now) for name in sorted(sync_statuses))

    def sync_changes(self, *, now: float) -> list[SyncChange]:
        """Return sync statuses that changed since the last call; `waiting` is not reported."""
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
    """Return the event for a changed sync status."""
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
            reason = f": {state.reason}" if state.reason else ""
            return (
                f"is behind by {state.behind_s:.0f} s and serves version "
                f"{state.version or 'nothing'}{reason}"
            )
        case SyncStatus.LOST:
            return (
                f"has not reported for {state.seen_s:.0f} s; it served version "
                f"{state.version or 'nothing'}, and may go on"
            )
        case _:
            assert_never(change.now)


def families(states: Sequence[GatewayState]) -> list[Family]:
    """Return metrics about each gateway."""
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
