"""Open loop: requests leave when the schedule says, whether or not earlier ones were answered.

Latency counts from the intended time, so a stalled server cannot slow its own measurement down.
`python -m bench.load.open_loop ADDRESS INDEX --rate R --seconds S --deadline D` prints JSON;
`--burst-factor 10 --burst-at 1` sends ten times as many for a second.
"""

import argparse
import gc
import json
import random
import select
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.load.connection import BrokenError, Connection, connect
from bench.payloads import read_payloads

MAX_CONNECTIONS: Final = 2000
# Shorter waits are spent awake: epoll rounds up to a millisecond.
SPIN_S: Final = 0.002
LINGER_S: Final = 5.0


@dataclass(slots=True)
class Outcome:
    """What became of the requests; latencies from the intended time.

    `latencies_s` are of good answers, `refusals_s` of all others. `missed_s`: when those should
    have left that got no good answer within the deadline, in monotonic time.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)
    refusals_s: list[float] = field(default_factory=list)
    missed_s: list[float] = field(default_factory=list)
    lags_s: list[float] = field(default_factory=list)
    broken: int = 0

    def as_dict(self, *, sent_s: float, deadline_s: float) -> dict[str, Any]:
        """Figures of a run that sent for `sent_s` seconds."""
        known = sorted(self.latencies_s) or [0.0]
        lags = sorted(self.lags_s) or [0.0]
        refusals = sorted(self.refusals_s) or [0.0]
        in_time = sum(latency <= deadline_s for latency in self.latencies_s)
        return {
            "sent": len(self.lags_s),
            "goodput": in_time / sent_s,
            "good": in_time,
            "late": len(self.latencies_s) - in_time,
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "broken": self.broken,
            "p50_s": known[len(known) // 2],
            **{f"p{name}_s": _quantile(known, share) for name, share in _TAILS.items()},
            "lag_p50_s": lags[len(lags) // 2],
            "lag_p99_s": _quantile(lags, 0.99),
            "refused_p50_s": refusals[len(refusals) // 2],
            "refused_p99_s": _quantile(refusals, 0.99),
        }


_TAILS: Final = {"95": 0.95, "99": 0.99, "999": 0.999}


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[int(share * (len(ordered) - 1))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Burst:
    """`factor` times the rate, for a second from each of `starts` (seconds from the start)."""

    factor: float
    starts: Sequence[float] = ()
    seconds: float = 1.0

    def is_on(self, at_s: float) -> bool:
        """Whether a burst is under way."""
        return any(start <= at_s < start + self.seconds for start in self.starts)

    @property
    def end_s(self) -> float:
        """When the last is over."""
        return max(self.starts, default=0.0) + self.seconds


NO_BURST: Final = Burst(factor=1.0)


def schedule(rate: float, seconds: float, seed: int, burst: Burst = NO_BURST) -> list[float]:
    """Poisson arrivals: seconds from the start, ascending.

    Drawn at the highest rate and thinned outside of bursts (Lewis and Shedler, 1979).
    """
    chance = random.Random(seed)  # noqa: S311  (arrivals, not secrets)
    times: list[float] = []
    highest = rate * burst.factor
    now = chance.expovariate(highest)
    while now < seconds:
        if not burst.starts or burst.is_on(now) or chance.random() * burst.factor < 1:
            times.append(now)
        now += chance.expovariate(highest)
    return times


class Generator:
    """Sends on idle connections, opening new ones as needed."""

    def __init__(self, address: str, requests: Sequence[bytes], deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self.started = 0.0
        self._address = address
        self._requests = requests
        self._poll = select.epoll()
        self._idle: list[Connection] = []
        self._busy: dict[int, Connection] = {}
        self.outcome = Outcome()

    def run(self, times: Sequence[float]) -> None:
        """Send at `times`, then wait for what is still under way."""
        self.started = start = time.monotonic()
        due = deque(start + offset for offset in times)
        while due:
            now = time.monotonic()
            while due and due[0] <= now and len(self._busy) < MAX_CONNECTIONS:
                self._send(due.popleft())
            self._collect(0.0 if due and due[0] - now < SPIN_S else SPIN_S / 2)
        end = time.monotonic() + LINGER_S
        while self._busy and time.monotonic() < end:
            self._collect(0.05)
        self.outcome.broken += len(self._busy)
        self.outcome.missed_s += [connection.started for connection in self._busy.values()]

    def _send(self, intended: float) -> None:
        connection = self._idle.pop() if self._idle else self._open()
        self._busy[connection.sock.fileno()] = connection
        request = self._requests[len(self.outcome.lags_s) % len(self._requests)]
        self.outcome.lags_s.append(time.monotonic() - intended)
        try:
            whole = connection.send(request, intended)
        except OSError:
            self._drop(connection)
            return
        if not whole:
            self._poll.modify(connection.sock, select.EPOLLIN | select.EPOLLOUT)

    def _open(self) -> Connection:
        connection = Connection(connect(self._address))
        self._poll.register(connection.sock, select.EPOLLIN)
        return connection

    def _collect(self, wait_s: float) -> None:
        for fd, event in self._poll.poll(wait_s):
            connection = self._busy.get(fd)
            if connection is None:
                self._forget_idle(fd)
                continue
            if event & select.EPOLLOUT and connection.flush():
                self._poll.modify(fd, select.EPOLLIN)
            if event & ~select.EPOLLOUT:
                self._receive(connection)

    def _receive(self, connection: Connection) -> None:
        try:
            status = connection.receive()
        except (BrokenError, OSError):
            self._drop(connection)
            return
        if not status:
            return
        self.outcome.statuses[status] += 1
        took_s = time.monotonic() - connection.started
        (self.outcome.latencies_s if status == 200 else self.outcome.refusals_s).append(took_s)
        if status != 200 or took_s > self._deadline_s:
            self.outcome.missed_s.append(connection.started)
        del self._busy[connection.sock.fileno()]
        self._idle.append(connection)

    def _drop(self, connection: Connection) -> None:
        self.outcome.broken += 1
        self.outcome.missed_s.append(connection.started)
        del self._busy[connection.sock.fileno()]
        connection.sock.close()

    def _forget_idle(self, fd: int) -> None:
        for connection in [one for one in self._idle if one.sock.fileno() == fd]:
            self._idle.remove(connection)
            connection.sock.close()


def main() -> None:
    """Parse the arguments, send, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address", help="host:port or unix:/path")
    parser.add_argument("index", type=Path, help="list of payloads")
    parser.add_argument("--rate", type=float, required=True, help="requests per second")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--deadline", type=float, default=0.1, help="seconds from intended time")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--burst-factor", type=float, default=1.0)
    parser.add_argument("--burst-at", type=float, action="append", default=[])
    chosen = parser.parse_args()
    requests = [payload.http() for payload in read_payloads(chosen.index)]
    generator = Generator(chosen.address, requests, chosen.deadline)
    burst = Burst(factor=chosen.burst_factor, starts=chosen.burst_at)
    times = schedule(chosen.rate, chosen.seconds, chosen.seed, burst)
    gc.disable()  # a pause of ours would be taken for the server's
    generator.run(times)
    outcome = generator.outcome
    figures = outcome.as_dict(sent_s=chosen.seconds, deadline_s=chosen.deadline)
    last_miss_s = max(outcome.missed_s, default=generator.started) - generator.started
    print(json.dumps({**figures, "last_miss_s": last_miss_s, "wall_s": chosen.seconds}))


if __name__ == "__main__":
    main()
