"""Open loop: requests leave when the schedule says, whether or not earlier ones were answered.

Latency counts from the intended time, so a stalled server cannot slow its own measurement down.
`python -m bench.load.open_loop ADDRESS INDEX --rate R --seconds S --deadline D` prints JSON.
"""

import argparse
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
    """What became of the requests; latencies from the intended time, only of good answers."""

    statuses: Counter[int] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)
    lags_s: list[float] = field(default_factory=list)
    broken: int = 0

    def as_dict(self, *, sent_s: float, deadline_s: float) -> dict[str, Any]:
        """Figures of a run that sent for `sent_s` seconds."""
        known = sorted(self.latencies_s) or [0.0]
        lags = sorted(self.lags_s) or [0.0]
        in_time = sum(latency <= deadline_s for latency in self.latencies_s)
        return {
            "sent": len(self.lags_s),
            "goodput": in_time / sent_s,
            "good": in_time,
            "late": len(self.latencies_s) - in_time,
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "broken": self.broken,
            "p50_s": known[len(known) // 2],
            "p99_s": known[int(0.99 * (len(known) - 1))],
            "lag_p99_s": lags[int(0.99 * (len(lags) - 1))],
        }


def schedule(rate: float, seconds: float, seed: int) -> list[float]:
    """Poisson arrivals: seconds from the start, ascending."""
    chance = random.Random(seed)  # noqa: S311  (arrivals, not secrets)
    times: list[float] = []
    now = chance.expovariate(rate)
    while now < seconds:
        times.append(now)
        now += chance.expovariate(rate)
    return times


class Generator:
    """Sends on idle connections, opening new ones as needed."""

    def __init__(self, address: str, requests: Sequence[bytes]) -> None:
        self._address = address
        self._requests = requests
        self._poll = select.epoll()
        self._idle: list[Connection] = []
        self._busy: dict[int, Connection] = {}
        self.outcome = Outcome()

    def run(self, times: Sequence[float]) -> None:
        """Send at `times`, then wait for what is still under way."""
        start = time.monotonic()
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
        events = select.EPOLLIN if whole else select.EPOLLIN | select.EPOLLOUT
        self._poll.modify(connection.sock, events)

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
        if status == 200:
            self.outcome.latencies_s.append(time.monotonic() - connection.started)
        del self._busy[connection.sock.fileno()]
        self._idle.append(connection)

    def _drop(self, connection: Connection) -> None:
        self.outcome.broken += 1
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
    chosen = parser.parse_args()
    requests = [payload.http() for payload in read_payloads(chosen.index)]
    generator = Generator(chosen.address, requests)
    generator.run(schedule(chosen.rate, chosen.seconds, chosen.seed))
    figures = generator.outcome.as_dict(sent_s=chosen.seconds, deadline_s=chosen.deadline)
    print(json.dumps({**figures, "wall_s": chosen.seconds}))


if __name__ == "__main__":
    main()
