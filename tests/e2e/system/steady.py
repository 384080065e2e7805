"""A constant stream of requests that knows, at any moment, how many are in flight."""

import select
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from bench.load.connection import BrokenError, Connection, connect

TICK_S: Final = 0.002
ANSWERED_WITHIN_S: Final = 10.0


class SteadyLoad:
    """Sends `rate` requests a second in a thread of its own until told to stop.

    Open loop: each request leaves when it is due, on an idle connection or a new one. `call` runs a
    function in the thread between two requests, and says how many were in flight just then.
    """

    def __init__(self, address: str, requests: Sequence[bytes], *, rate: float) -> None:
        self.statuses: Counter[int] = Counter()
        self.broken = 0
        self.sent = 0
        self._address = address
        self._requests = requests
        self._rate = rate
        self._poll = select.epoll()
        self._idle: list[Connection] = []
        self._busy: dict[int, Connection] = {}
        self._calls: list[Callable[[], None]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def failures(self) -> int:
        """Requests that were not answered 200."""
        return self.broken + sum(n for status, n in self.statuses.items() if status != 200)

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._idle) + len(self._busy)

    @contextmanager
    def flowing(self) -> "Iterator[SteadyLoad]":
        """Send while the block runs; in the end each request has its answer or counts as broken."""
        self._thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            self._thread.join(ANSWERED_WITHIN_S * 2)
            assert not self._thread.is_alive()

    def call(self, action: Callable[[], None]) -> int:
        """Run `action` between two requests; how many were in flight then."""
        done = threading.Event()
        in_flight = 0

        def run() -> None:
            nonlocal in_flight
            in_flight = len(self._busy)
            action()
            done.set()

        self._calls.append(run)
        assert done.wait(10)
        return in_flight

    def _run(self) -> None:
        start = time.monotonic()
        while not self._stop.is_set():
            due = int((time.monotonic() - start) * self._rate)
            for _ in range(min(due - self.sent, 100)):
                self._send()
            while self._calls:
                began = time.monotonic()
                self._calls.pop(0)()
                start += time.monotonic() - began  # what was not sent meanwhile is not caught up
            self._collect(TICK_S)
        until = time.monotonic() + ANSWERED_WITHIN_S
        while self._busy and time.monotonic() < until:
            self._collect(0.05)
        self.broken += len(self._busy)
        for connection in (*self._idle, *self._busy.values()):
            connection.sock.close()
        self._poll.close()

    def _send(self) -> None:
        if self._idle:
            connection = self._idle.pop()
        else:
            connection = Connection(connect(self._address))
            self._poll.register(connection.sock, select.EPOLLIN)
        self._busy[connection.sock.fileno()] = connection
        request = self._requests[self.sent % len(self._requests)]
        self.sent += 1
        try:
            assert connection.send(request, time.monotonic()), "requests here fit a socket's buffer"
        except OSError:
            self._drop(connection)

    def _collect(self, wait_s: float) -> None:
        for fd, _ in self._poll.poll(wait_s):
            connection = self._busy.get(fd)
            if connection is None:
                self._close_idle(fd)
                continue
            try:
                status = connection.receive()
            except (BrokenError, OSError):
                self._drop(connection)
                continue
            if status:
                self.statuses[status] += 1
                del self._busy[fd]
                self._idle.append(connection)

    def _drop(self, connection: Connection) -> None:
        self.broken += 1
        del self._busy[connection.sock.fileno()]
        connection.sock.close()

    def _close_idle(self, fd: int) -> None:
        for connection in [one for one in self._idle if one.sock.fileno() == fd]:
            self._idle.remove(connection)
            connection.sock.close()
