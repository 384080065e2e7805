"""Closed-loop client in plain Python: where `wrk` is missing, on Unix sockets, or by count.

`python -m bench.load.client ADDRESS INDEX --connections N (--seconds S | --requests N)` prints
what `post.lua` prints.
"""

import argparse
import json
import select
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

from bench.load.connection import BrokenError, Connection, connect
from bench.payloads import read_payloads


@dataclass(slots=True)
class Tally:
    """What came back."""

    refused: int = 0
    broken: int = 0
    latencies_s: list[float] = field(default_factory=list)

    def as_json(self, wall_s: float) -> str:
        """One line, as `post.lua` prints it."""
        known = sorted(self.latencies_s) or [0.0]
        return json.dumps(
            {
                "requests": len(self.latencies_s),
                "wall_s": wall_s,
                "p50_us": statistics.median(known) * 1e6,
                "p99_us": known[int(0.99 * (len(known) - 1))] * 1e6,
                "refused": self.refused,
                "broken": self.broken,
            }
        )


def run(
    address: str, requests: Sequence[bytes], *, connections: int, seconds: float, limit: int
) -> tuple[Tally, float]:
    """Send in turn until `seconds` are over or `limit` requests answered; the tally and time."""
    tally = Tally()
    poll = select.epoll()
    by_fd: dict[int, Connection] = {}
    bodies = cycle(requests)
    for _ in range(connections):
        connection = Connection(connect(address))
        by_fd[connection.sock.fileno()] = connection
        poll.register(connection.sock, select.EPOLLIN)
    started = time.monotonic()
    left = limit
    for connection in list(by_fd.values())[:limit]:
        _send(poll, connection, bodies)
        left -= 1
    while by_fd and len(tally.latencies_s) < limit and time.monotonic() - started < seconds:
        for fd, event in poll.poll(0.1):
            connection = by_fd[fd]
            if event & select.EPOLLOUT and connection.flush():
                poll.modify(fd, select.EPOLLIN)
            if event & ~select.EPOLLOUT and _answered(connection, tally, poll, by_fd) and left > 0:
                _send(poll, connection, bodies)
                left -= 1
    wall = time.monotonic() - started
    for connection in by_fd.values():
        connection.sock.close()
    return tally, wall


def _send(poll: select.epoll, connection: Connection, bodies: Iterator[bytes]) -> None:
    if not connection.send(next(bodies), time.monotonic()):
        poll.modify(connection.sock, select.EPOLLIN | select.EPOLLOUT)


def _answered(
    connection: Connection, tally: Tally, poll: select.epoll, by_fd: dict[int, Connection]
) -> bool:
    try:
        status = connection.receive()
    except (BrokenError, OSError):
        tally.broken += 1
        fd = connection.sock.fileno()
        poll.unregister(fd)
        del by_fd[fd]
        connection.sock.close()
        return False
    if status:
        tally.latencies_s.append(time.monotonic() - connection.started)
        tally.refused += status != 200
    return bool(status)


def main() -> None:
    """Parse the arguments, push, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address", help="host:port or unix:/path")
    parser.add_argument("index", type=Path, help="list of payloads")
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--requests", type=int, default=1 << 62)
    chosen = parser.parse_args()
    requests = [payload.http() for payload in read_payloads(chosen.index)]
    tally, wall = run(
        chosen.address,
        requests,
        connections=chosen.connections,
        seconds=chosen.seconds,
        limit=chosen.requests,
    )
    print(tally.as_json(wall))


if __name__ == "__main__":
    main()
