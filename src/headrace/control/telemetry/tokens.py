"""Ledger of tokens: the gateway's counts, added up by day and credential in the state.

The same polls fill a history of the last day, for charts.
"""

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import ClassVar, Final

import msgspec

from headrace.control.base.faults import LOOP
from headrace.control.model.records import TOKEN_AMOUNTS, Event, TokenReading, TokenUse
from headrace.control.state.store import Store
from headrace.control.telemetry.pollers import ReplicaPoller
from headrace.core import HeadraceError
from headrace.gateway import TokenStatistics
from headrace.gateway.statistics import ArmStatistics
from headrace.monitor import RequestHistory

_LOG: Final = logging.getLogger("headrace.control")


def increase(now: TokenReading, before: TokenReading | None, day: str) -> list[TokenUse]:
    """Return the tokens since an earlier reading, on `day`; all of them after a restart."""
    goes_on = before is not None and before.epoch == now.epoch
    earlier = {
        (use.endpoint, use.version, use.credential): use
        for use in (before.counts if before is not None and goes_on else ())
    }
    uses = []
    for use in now.counts:
        old = earlier.get((use.endpoint, use.version, use.credential))
        more = {
            name: getattr(use, name) - (0 if old is None else getattr(old, name))
            for name in TOKEN_AMOUNTS
        }
        if any(more.values()):
            uses.append(msgspec.structs.replace(use, day=day, **more))
    return uses


def reading_of(statistics: TokenStatistics) -> TokenReading:
    """Return the counts in the form that is stored."""
    uses = (
        TokenUse(
            day="",
            endpoint=endpoint,
            version=version,
            credential=credential,
            **msgspec.structs.asdict(counts),
        )
        for (endpoint, version, credential), counts in sorted(statistics.counts.items())
    )
    return TokenReading(epoch=statistics.epoch, counts=tuple(uses))


def stream_totals(statistics: TokenStatistics) -> dict[tuple[str, str], ArmStatistics]:
    """Return output tokens (as `requests`) and times to first tokens, by endpoint and version."""
    first_tokens = statistics.times.get("first_token_us", {})
    output = Counter[tuple[str, str]]()
    for (endpoint, version, _), counts in statistics.counts.items():
        output[endpoint, version] += counts.output
    return {
        arm: ArmStatistics(requests=tokens, latency=first_tokens.get(arm, {}))
        for arm, tokens in output.items()
    }


@dataclass(frozen=True, slots=True)
class _Poll:
    """A successful poll of this process, by monotonic time."""

    epoch: str
    began_at: float
    tokens: int
    """Input and output tokens since the gateway's start."""
    tokens_per_s: float
    """Since the poll before."""


def lost_tokens(before: _Poll, until: float) -> tuple[float, int]:
    """Return for how many seconds, and about how many tokens, a gateway that ended counted unread.

    Args:
        before: Newest poll of the gateway.
        until: Monotonic time at which it did not run any more.
    """
    lost_s = max(until - before.began_at, 0.0)
    return lost_s, math.ceil(lost_s * before.tokens_per_s)


@dataclass(slots=True, kw_only=True)
class TokenLedger(ReplicaPoller[RequestHistory]):
    """Adds the tokens of the local gateway to the state while `run` is awaited.

    A control plane that stops or crashes adds what came meanwhile at its next start, if the gateway
    ran on. A gateway that ends unexpectedly loses the counts since the last poll, and those of
    answers under way; the event `TokensLost` says how much that may be.
    """

    WHAT: ClassVar = "the history of tokens"
    SHARE: ClassVar = 20.0

    statistics: Callable[[], Awaitable[TokenStatistics]]
    store: Store
    gateway: str = "local"
    """Name of the gateway, unique among those whose control planes share the state."""
    history: RequestHistory = field(default_factory=RequestHistory)
    """Output tokens of the last day (as `requests`), and times to the first token."""
    emit: Callable[[Sequence[Event]], Awaitable[None]]
    """Stores events."""
    _newest: _Poll | None = None
    _away_since: float | None = None
    """Monotonic time of the first poll that failed after `_newest`."""
    _polling: asyncio.Lock = field(default_factory=asyncio.Lock)
    _last: TokenReading | None = None
    _is_loaded: bool = False

    async def run(self) -> None:
        """Add up until cancelled, and once more then."""
        try:
            await ReplicaPoller.run(self)
        finally:
            self._is_loaded = False  # a transaction that was being awaited is in the database
            with self.faults.contain(LOOP, "tokens"):
                await self.poll()

    async def poll(self) -> None:
        """Add the tokens since the last poll; the gateway may be away."""
        async with self._polling:
            try:
                if not self._is_loaded:
                    self._last = await self.store.token_reading(self.gateway)
                    self._is_loaded = True
                began_at = self.clock.monotonic()
                try:
                    statistics = await self.statistics()
                except HeadraceError:
                    if self._away_since is None:
                        self._away_since = self.clock.monotonic()
                    raise
                self._remember(statistics)
                now = reading_of(statistics)
                day = datetime.fromtimestamp(self.clock.now(), UTC).date().isoformat()
                uses = increase(now, self._last, day)
                if uses:
                    await self.store.add_tokens(uses, self.gateway, now)
                    self._last = now
                if now.epoch:
                    await self._compare(now, began_at)
            except HeadraceError as error:
                _LOG.debug("cannot add up tokens", extra={"error": str(error)})

    def _remember(self, statistics: TokenStatistics) -> None:
        now = self.clock.now()
        self.check_clock(now)
        self.history.advance(now)
        for (endpoint, version), totals in stream_totals(statistics).items():
            with self.faults.contain("token history", endpoint):
                self.history.add(now, endpoint, version, totals, epoch=statistics.epoch)

    async def _compare(self, now: TokenReading, began_at: float) -> None:
        """Report the tokens that were lost since the newest poll, which becomes this one."""
        before, away_since = self._newest, self._away_since
        tokens = sum(use.input + use.output for use in now.counts)
        goes_on = before is not None and before.epoch == now.epoch
        rate = 0.0
        if before is not None and goes_on and began_at > before.began_at:
            rate = (tokens - before.tokens) / (began_at - before.began_at)
        self._newest, self._away_since = _Poll(now.epoch, began_at, tokens, rate), None
        if before is None or goes_on:
            return
        lost_s, about = lost_tokens(before, away_since or began_at)
        message = (
            f"the gateway ended: tokens of up to {lost_s:.1f} s before are not counted, about "
            f"{about} at the rate before, besides those of answers that were under way"
        )
        event = Event(
            at=self.clock.now(),
            endpoint="",
            kind="gateway",
            reason="TokensLost",
            message=message,
            data={"seconds": round(lost_s, 3), "tokens": about},
        )
        _LOG.warning("%s", message)
        await self.emit([event])

    async def between(self, first: str, last: str) -> list[TokenUse]:
        """Return the tokens of days (`2026-11-25`, UTC), both included, oldest first."""
        await self.poll()
        return await self.store.tokens(first, last)
