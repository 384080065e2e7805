"""Ledger of tokens: the gateway's counts, added up by day and credential in the state.

The same polls fill a history of the last day, for charts.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import ClassVar, Final

import msgspec

from headrace.control.base.faults import LOOP
from headrace.control.model.records import TOKEN_AMOUNTS, TokenReading, TokenUse
from headrace.control.state.store import Store
from headrace.control.telemetry.pollers import ReplicaPoller
from headrace.core import HeadraceError
from headrace.gateway import TokenStatistics
from headrace.gateway.statistics import ArmStatistics
from headrace.monitor import RequestHistory

_INTERVAL_S: Final = 5.0
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


@dataclass(slots=True, kw_only=True)
class TokenLedger(ReplicaPoller[RequestHistory]):
    """Adds the tokens of the local gateway to the state while `run` is awaited.

    A control plane that stops or crashes adds what came meanwhile at its next start, if the gateway
    ran on. A gateway that crashes loses the counts of up to five seconds.
    """

    WHAT: ClassVar = "the history of tokens"
    SHARE: ClassVar = 20.0

    statistics: Callable[[], Awaitable[TokenStatistics]]
    store: Store
    gateway: str = "local"
    """Name of the gateway, unique among those whose control planes share the state."""
    history: RequestHistory = field(default_factory=RequestHistory)
    """Output tokens of the last day (as `requests`), and times to the first token."""
    _polling: asyncio.Lock = field(default_factory=asyncio.Lock)
    _last: TokenReading | None = None
    _is_loaded: bool = False

    @property
    def every_s(self) -> float:
        """Interval between polls in seconds."""
        return _INTERVAL_S

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
                statistics = await self.statistics()
                self._remember(statistics)
                now = reading_of(statistics)
                day = datetime.fromtimestamp(self.clock.now(), UTC).date().isoformat()
                uses = increase(now, self._last, day)
                if uses:
                    await self.store.add_tokens(uses, self.gateway, now)
                    self._last = now
            except HeadraceError as error:
                _LOG.debug("cannot add up tokens", extra={"error": str(error)})

    def _remember(self, statistics: TokenStatistics) -> None:
        at = self.clock.now()
        self.check_clock(at)
        self.history.advance(at)
        for (endpoint, version), totals in stream_totals(statistics).items():
            with self.faults.contain("token history", endpoint):
                self.history.add(at, endpoint, version, totals, epoch=statistics.epoch)

    async def between(self, first: str, last: str) -> list[TokenUse]:
        """Return the tokens of days (`2026-11-25`, UTC), both included, oldest first."""
        await self.poll()
        return await self.store.tokens(first, last)
