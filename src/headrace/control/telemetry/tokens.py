"""Ledger of tokens: the gateways' counts, added up by day and credential in the state.

The same polls fill a history of the last day, for charts.
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import ClassVar, Final

import msgspec

from headrace.control.agents.messages import Arm, EnvoyCounts
from headrace.control.base.faults import LOOP
from headrace.control.model.records import Event, TokenReading
from headrace.control.state.store import Store
from headrace.control.telemetry.pollers import ReplicaPoller
from headrace.core import HeadraceError
from headrace.gateway import TokenStatistics
from headrace.gateway.statistics import TOKEN_AMOUNTS, TokenUse, sum_tokens
from headrace.monitor import RequestHistory

_LOG: Final = logging.getLogger("headrace.control")
_KEPT_DAYS: Final = 7
"""After so many days without a connection, a gateway is forgotten; if the same run of its Envoy
came back, its tokens would count again."""


def increase(now: TokenReading, before: TokenReading | None, day: str) -> list[TokenUse]:
    """Return the tokens since an earlier reading, on `day`; all of them after a restart."""
    goes_on = before is not None and before.epoch == now.epoch
    earlier = {use.key: use for use in (before.counts if before is not None and goes_on else ())}
    uses = []
    for use in now.counts:
        old = earlier.get(use.key, TokenUse())
        more = {name: max(getattr(use, name) - getattr(old, name), 0) for name in TOKEN_AMOUNTS}
        if any(more.values()):
            uses.append(msgspec.structs.replace(use, day=day, **more))
    return uses


@dataclass(slots=True)
class _Gateway:
    """A gateway as far as it was read."""

    stored: TokenReading | None
    """Its counts that are in the state."""
    report: EnvoyCounts | None = None
    """The newest report that was added, of an agent."""
    epoch: str = ""
    """Run of its Envoy at this process's newest poll; empty before."""
    began_at: float = 0.0
    """Monotonic time of that poll."""
    tokens: int = 0
    """Input and output tokens since the start of that run."""
    tokens_per_s: float = 0.0
    """Since the poll before."""
    away_since: float | None = None
    """Monotonic time of the first poll that failed after the newest."""


@dataclass(slots=True, kw_only=True)
class TokenLedger(ReplicaPoller[RequestHistory]):
    """Adds the tokens of all gateways to the state while `run` is awaited.

    A control plane that stops or crashes adds what came meanwhile at its next start, if the
    gateways ran on. A gateway that ends unexpectedly loses the counts since the last poll or
    report, and those of answers under way; the event `TokensLost` says how much that may be.
    """

    WHAT: ClassVar = "the history of tokens"
    SHARE: ClassVar = 20.0

    statistics: Callable[[], Awaitable[TokenStatistics]]
    """Reads the local gateway."""
    agents: Callable[[], Mapping[str, EnvoyCounts]] = dict
    """Returns the last counts of each connected gateway on another host."""
    store: Store
    gateway: str = "local"
    """Name of the local gateway, unique among those whose control planes share the state."""
    history: RequestHistory = field(default_factory=RequestHistory)
    """Output tokens of the last day (as `requests`), and times to the first token."""
    emit: Callable[[Sequence[Event]], Awaitable[None]]
    """Stores events."""
    of_agents: tuple[TokenUse, ...] = ()
    """Tokens of gateways on other hosts that this process added."""
    _gateways: dict[str, _Gateway] = field(default_factory=dict)
    _polling: asyncio.Lock = field(default_factory=asyncio.Lock)
    _day: str = ""

    async def run(self) -> None:
        """Add up until cancelled, and once more then."""
        try:
            await ReplicaPoller.run(self)
        finally:
            self._gateways.clear()  # a transaction that was being awaited is in the database
            with self.faults.contain(LOOP, "tokens"):
                await self.poll()

    async def poll(self) -> None:
        """Add the tokens since the last poll; gateways may be away."""
        async with self._polling:
            now = self.clock.now()
            self.check_clock(now)
            self.history.advance(now)
            try:
                day = datetime.fromtimestamp(now, UTC).date()
                if day.isoformat() != self._day:
                    oldest = day - timedelta(days=_KEPT_DAYS)
                    await self.store.forget_token_readings(oldest.isoformat())
                    self._gateways.clear()
                    self._day = day.isoformat()
                await self._poll_local()
            except HeadraceError as error:
                _LOG.debug("cannot add up tokens", extra={"error": str(error)})
            for name, report in self.agents().items():
                try:
                    gateway = await self._gateway(f"agent:{name}")
                    if report is not gateway.report:
                        await self._add(f"agent:{name}", report, self.clock.monotonic())
                        gateway.report = report
                except HeadraceError as error:
                    extra = {"gateway": name, "error": str(error)}
                    _LOG.debug("cannot add up tokens", extra=extra)

    async def _gateway(self, name: str) -> _Gateway:
        if name not in self._gateways:
            self._gateways[name] = _Gateway(await self.store.token_reading(name))
        return self._gateways[name]

    async def _poll_local(self) -> None:
        gateway = await self._gateway(self.gateway)
        began_at = self.clock.monotonic()
        try:
            statistics = await self.statistics()
        except HeadraceError:
            if gateway.away_since is None:
                gateway.away_since = self.clock.monotonic()
            raise
        counts = EnvoyCounts(
            epoch=statistics.epoch,
            tokens=statistics.counts,
            streams=tuple(Arm.of(arm, totals) for arm, totals in statistics.streams.items()),
        )
        await self._add(self.gateway, counts, began_at)

    async def _add(self, name: str, counts: EnvoyCounts, began_at: float) -> None:
        for arm in counts.streams:
            # The history sums up the versions that differ after `~`.
            version = arm.key if name == self.gateway else f"{arm.key}~{name}"
            with self.faults.contain("token history", arm.endpoint):
                self.history.add(
                    self.clock.now(), arm.endpoint, version, arm.totals, epoch=counts.epoch
                )
        gateway = self._gateways[name]
        reading = TokenReading(epoch=counts.epoch, counts=counts.tokens, day=self._day)
        uses = increase(reading, gateway.stored, self._day)
        # Stored anew each day, too: readings that are not are forgotten.
        if uses or (gateway.stored is not None and gateway.stored.day != self._day):
            await self.store.add_tokens(uses, name, reading)
            gateway.stored = reading
        if name != self.gateway:
            more = [msgspec.structs.replace(use, day="") for use in uses]
            self.of_agents = sum_tokens([*self.of_agents, *more])
        if counts.epoch:
            await self._compare(name, reading, began_at)

    async def _compare(self, name: str, now: TokenReading, began_at: float) -> None:
        """Report the tokens that were lost since the newest poll, which becomes this one."""
        gateway = self._gateways[name]
        earlier, passed_s = gateway.epoch, began_at - gateway.began_at
        lost_s = max((gateway.away_since or began_at) - gateway.began_at, 0.0)
        about = math.ceil(lost_s * gateway.tokens_per_s)
        before, gateway.tokens = gateway.tokens, sum(use.input + use.output for use in now.counts)
        goes_on = earlier == now.epoch and passed_s > 0
        gateway.tokens_per_s = (gateway.tokens - before) / passed_s if goes_on else 0.0
        gateway.epoch, gateway.began_at, gateway.away_since = now.epoch, began_at, None
        if earlier in {"", now.epoch}:
            return
        subject = "the gateway" if name == self.gateway else f"gateway '{name.partition(':')[2]}'"
        message = (
            f"{subject} ended: tokens of up to {lost_s:.1f} s before are not counted, about "
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
