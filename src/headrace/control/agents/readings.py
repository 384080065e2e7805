"""What have all gateways counted up to now? Asks them, and says it as one gateway would."""

from collections.abc import Collection
from dataclasses import dataclass

from headrace.control.agents.counts import FleetCounts
from headrace.control.agents.roster import Roster
from headrace.control.agents.standing import Standing
from headrace.control.counting import GatewayReading
from headrace.control.keeper import GatewayKeeper
from headrace.control.news import News, wait_for
from headrace.core import Clock
from headrace.gateway import GatewayUnavailableError, Handshakes


@dataclass(slots=True, kw_only=True)
class Readings:
    """Reads the counts of all gateways that are connected, and of the `local` one."""

    roster: Roster
    counts: FleetCounts
    news: News
    clock: Clock
    local: GatewayKeeper | None

    async def arms(self, endpoints: Collection[str]) -> GatewayReading:
        """What all have counted of these endpoints' splits up to this call.

        Raises:
            GatewayUnavailableError: None is connected, or one does not say.
        """
        if self.local is not None:
            self.counts.take_local(await self.local.read_arms(endpoints), splits=True)
        self.counts.ask()
        self.news.note()
        if not await self._told_counts(self.counts.asked):
            raise GatewayUnavailableError("a gateway does not say what it has counted")
        live = self.roster.counts(now=self.clock.monotonic())
        return self.counts.splits(set(endpoints), live.values())

    async def _told_counts(self, question: int) -> bool:
        """Whether every gateway that keeps up has answered in time."""
        deadline = self.clock.monotonic() + self.counts.answer_s
        while True:
            news, now = self.news.next, self.clock.monotonic()
            stands = self.roster.standings(now=now)
            silent = [
                name
                for name, one in self.roster.live(now=now).items()
                if one.ask < question and stands[name] is not Standing.BEHIND
            ]
            if not silent:
                return True
            if now >= deadline:
                # Who is stopped says nothing, and is lost soon: the others decide meanwhile.
                return len(silent) < len(stands)
            await wait_for(news, deadline - now)

    async def endpoints(self, endpoints: Collection[str]) -> GatewayReading:
        """What all have counted of all requests to these endpoints, each request once.

        Raises:
            HeadraceError: The local one does not answer.
        """
        if self.local is not None:
            self.counts.take_local(await self.local.read_endpoints(endpoints), splits=False)
        return self.counts.every(set(endpoints))

    async def in_flight(self) -> dict[tuple[str, str], int]:
        """Requests on their way at any gateway that is connected, by endpoint and arm."""
        found = {} if self.local is None else await self.local.in_flight()
        for counts in self.roster.counts(now=self.clock.monotonic()).values():
            for one in counts.active:
                arm = (one.endpoint, one.key)
                found[arm] = found.get(arm, 0) + one.requests
        return found

    async def handshakes(self) -> dict[tuple[str, str], Handshakes]:
        """How TLS with upstreams went at all gateways that are connected."""
        found = {} if self.local is None else await self.local.handshakes()
        for counts in self.roster.counts(now=self.clock.monotonic()).values():
            for one in counts.upstreams:
                arm = (one.endpoint, one.key)
                found[arm] = _both(found.get(arm, Handshakes()), one.handshakes)
        return found


def _both(one: Handshakes, other: Handshakes) -> Handshakes:
    return Handshakes(
        done=one.done + other.done,
        wrong_name=one.wrong_name + other.wrong_name,
        untrusted=one.untrusted + other.untrusted,
        failed=one.failed + other.failed,
        healthy=one.healthy + other.healthy,
    )
