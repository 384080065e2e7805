"""Open-loop load through the gateways of a cluster, and what became of each request.

The generator stands for a Service: it sends to the ready addresses of the gateways' EndpointSlices.
"""

import asyncio
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import httpx2

from tests.e2e.control.system import ROW

DEADLINE_S: Final = 5.0
_LOOKUP_INTERVAL_S: Final = 0.25


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request: times are monotonic, `error` is empty for an answer with status 200."""

    sent_at: float
    latency_s: float
    version: str
    gateway: str
    error: str


@dataclass(slots=True)
class Load:
    """Requests that are sent at `rate` a second, until `stop`."""

    addresses: Callable[[], list[str]]
    """Returns the addresses of the gateways that are ready; called in a thread."""
    path: str
    rate: float
    outcomes: list[Outcome] = field(default_factory=list)
    _in_flight: set[float] = field(default_factory=set)
    _stopped: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Send until stopped; then wait for the answers that are due."""
        asyncio.run(self._run())

    def stop(self) -> None:
        """Send no more."""
        self._stopped.set()

    def between(self, start: float, end: float) -> list[Outcome]:
        """Return the outcomes of requests that were sent in a period."""
        return [one for one in list(self.outcomes) if start <= one.sent_at < end]

    def oldest_in_flight(self) -> float:
        """Return when the oldest request was sent that has no outcome yet."""
        return min(list(self._in_flight), default=float("inf"))

    async def _run(self) -> None:
        ready = await asyncio.to_thread(self.addresses)

        async def follow() -> None:
            nonlocal ready
            while True:
                await asyncio.sleep(_LOOKUP_INTERVAL_S)
                try:
                    ready = await asyncio.to_thread(self.addresses)
                except (httpx2.HTTPError, AssertionError):
                    continue  # the API server is away: a Service keeps its addresses

        limits = httpx2.Limits(max_connections=500, max_keepalive_connections=50)
        async with (
            httpx2.AsyncClient(trust_env=False, timeout=DEADLINE_S, limits=limits) as http,
            asyncio.TaskGroup() as group,
        ):
            following = group.create_task(follow())
            began, count = time.monotonic(), 0
            while not self._stopped.is_set():
                group.create_task(self._send(http, ready[count % len(ready)] if ready else ""))
                count += 1
                await asyncio.sleep(max(began + count / self.rate - time.monotonic(), 0.0))
            following.cancel()

    async def _send(self, http: httpx2.AsyncClient, gateway: str) -> None:
        sent_at = time.monotonic()
        self._in_flight.add(sent_at)
        version, error = "", ""
        try:
            async with asyncio.timeout(DEADLINE_S):
                answer = await http.post(f"http://{gateway}:8000{self.path}", json=ROW)
            if answer.status_code == httpx2.codes.OK:
                version = str(answer.json()["model_version"])
            else:
                error = f"{answer.status_code} {answer.text[:120]}"
        except (httpx2.HTTPError, httpx2.InvalidURL, TimeoutError, OSError) as failure:
            error = f"{type(failure).__name__} {failure}"[:120]
        latency_s = time.monotonic() - sent_at
        self.outcomes.append(Outcome(sent_at, latency_s, version, gateway, error))
        self._in_flight.discard(sent_at)


@contextmanager
def running(load: Load) -> Iterator[Load]:
    """Send while the block runs."""
    thread = threading.Thread(target=load.run, name="load")
    thread.start()
    try:
        yield load
    finally:
        load.stop()
        thread.join()


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one event cost."""

    event: str
    outcomes: list[Outcome]
    allowed: int
    """Requests that may be lost: those in flight on pods that are killed."""
    seconds: float

    @property
    def lost(self) -> list[Outcome]:
        """Requests without an answer of status 200."""
        return [one for one in self.outcomes if one.error]

    def text(self) -> str:
        """Return the row of the table."""
        times = sorted(one.latency_s for one in self.outcomes if not one.error) or [0.0]
        p99 = times[min(int(len(times) * 0.99), len(times) - 1)]
        why = Counter(one.error.split(" ")[0] for one in self.lost)
        reasons = ", ".join(f"{count} {error}" for error, count in why.most_common())
        versions = Counter(one.version for one in self.outcomes if one.version)
        shares = ", ".join(f"{version}: {count}" for version, count in sorted(versions.items()))
        return (
            f"| {self.event} | {self.seconds:.0f} s | {len(self.outcomes)} | {len(self.lost)} "
            f"({reasons}) | {self.allowed} | {1000 * statistics.median(times):.0f} ms "
            f"| {1000 * p99:.0f} ms | {shares} |"
        )


HEADER: Final = (
    "| event | took | sent | lost | allowed | p50 | p99 | answers by version |\n"
    "|---|---|---|---|---|---|---|---|"
)
