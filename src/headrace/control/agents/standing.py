"""Who follows, who is behind, who is lost? And may whoever waits for all of them go on? Pure."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from headrace.core.gateways import MAX_BEHIND_S


class Standing(StrEnum):
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
class Patience:
    """`max_behind_s`: how long a gateway may take; `lost_after_s`: how long it may be silent."""

    max_behind_s: float = MAX_BEHIND_S
    lost_after_s: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What is known of one gateway; times are monotonic.

    `since`: when it was heard of first, or again after it was lost. `in_force`, `refused`: numbers
    of offers, 0 for none.
    """

    since: float
    seen_at: float
    in_force: int = 0
    refused: int = 0
    reason: str = ""
    is_ready: bool = False


_MOST_OFFERS: Final = 256
_NEWEST: Final = 0


@dataclass(frozen=True, slots=True)
class Offers:
    """When each was made: the first is number 1. Of old ones, `dropped` many, nobody knows when."""

    at: tuple[float, ...] = ()
    dropped: int = 0

    @property
    def newest(self) -> int:
        """The number of the newest; 0 for none."""
        return self.dropped + len(self.at)

    def and_one(self, now: float) -> "Offers":
        """These and another one."""
        at = (*self.at, now)
        excess = max(len(at) - _MOST_OFFERS, 0)
        return Offers(at[excess:], self.dropped + excess)

    def after(self, number: int) -> float:
        """When the first one after `number` was made, as far as is known."""
        assert number < self.newest
        return self.at[max(number - self.dropped, 0)]


def behind_s(heard: Heard, offers: Offers, *, now: float) -> float:
    """For how long there has been something newer than what is in force; 0 if there is not."""
    if heard.in_force >= offers.newest:
        return 0.0
    return max(now - offers.after(heard.in_force), 0.0)


def standing(
    heard: Heard, offers: Offers, *, now: float, patience: Patience, wanted: int = _NEWEST
) -> Standing:
    """How a gateway stands to offer number `wanted`; 0 for the newest."""
    number = wanted or offers.newest
    if now > heard.seen_at + patience.lost_after_s:
        return Standing.LOST
    if heard.in_force >= number:
        return Standing.CURRENT
    if heard.refused >= number:
        return Standing.REFUSED
    # Who has just come back gets the time that it has not had.
    offered = max(offers.after(heard.in_force), heard.since)
    # As a sum, like the moment that is waited for: a difference may be a rounding short of it.
    return Standing.BEHIND if now >= offered + patience.max_behind_s else Standing.WAITING


class Outcome(StrEnum):
    """What becomes of a publication."""

    WAIT = "wait"
    DONE = "done"
    REFUSED = "refused"
    NOBODY = "nobody"
    """No gateway is connected: it is kept, and nobody acknowledged it."""
    BEHIND = "behind"
    """All that are connected are behind: nobody acknowledged it."""


def outcome(standings: Collection[Standing]) -> Outcome:
    """What the standings to one offer say about it."""
    connected = [one for one in standings if one is not Standing.LOST]
    if not connected:
        return Outcome.NOBODY
    if Standing.WAITING in connected:
        return Outcome.WAIT
    if Standing.REFUSED in connected:
        return Outcome.REFUSED
    return Outcome.DONE if Standing.CURRENT in connected else Outcome.BEHIND


def next_change_s(
    heard: Mapping[str, Heard], offers: Offers, *, now: float, patience: Patience
) -> float:
    """After how many seconds a standing may change though nothing is heard."""
    times = [
        moment
        for one in heard.values()
        for moment in (
            one.seen_at + patience.lost_after_s,
            max(offers.after(one.in_force), one.since) + patience.max_behind_s
            if one.in_force < offers.newest
            else 0.0,
        )
        if moment > now
    ]
    return min(times, default=now + patience.lost_after_s) - now


def should_send(
    *, held: str, refused: str, newest: str, has_routes: bool, has_orders: bool
) -> bool:
    """Whether a gateway that holds version `held` is given the newest.

    Args:
        refused: What it refused last: it would again.
        has_routes: Whether somebody decided what the newest says. A control plane that has just
            begun knows of no routes, and that must not end those of a gateway that serves.
        has_orders: Whether somebody will decide soon. Then a gateway that has nothing waits too:
            one that is ready without routes would deny every endpoint.
    """
    if not newest or newest in {held, refused}:
        return False
    return has_routes or not (held or has_orders)
