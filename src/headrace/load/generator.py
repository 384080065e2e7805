"""Open-loop request sender over a growing set of connections.

Timers of event loops have a resolution of a millisecond. A timerfd of Linux is precise, but a
process that slept needs about 50 µs to run again, so the last part is a busy-wait. Measured on two
shared cores at 1,000 requests per second: p50 of the lag 0.7 µs for 0.1 of a core, against 0.5 of a
core with the loop's timer and 2 ms of busy-wait, and 12 µs with the timerfd alone.
"""

import asyncio
import ctypes
import gc
import itertools
import os
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Protocol

from headrace.core import FailedPreconditionError
from headrace.load.connection import LoadConnection
from headrace.load.summary import LEFT_OUT, NOT_SENT, PENDING, SUCCEEDED, RunRecord

AWAKE_S: Final = 100e-6
"""Busy-wait before a wake-up, in seconds."""
_CLOCK_MONOTONIC: Final = 1
_ABSOLUTE: Final = 1
_NANO: Final = 1_000_000_000


class _TimerSpec(ctypes.Structure):
    """`struct itimerspec` of Linux."""

    _fields_ = (
        ("every_s", ctypes.c_long),
        ("every_ns", ctypes.c_long),
        ("at_s", ctypes.c_long),
        ("at_ns", ctypes.c_long),
    )


class Alarm:
    """Timer that calls `wake` at, or shortly before, the time it is set to. Close it after use."""

    def __init__(self, loop: asyncio.AbstractEventLoop, wake: Callable[[], None]) -> None:
        library = ctypes.CDLL(None, use_errno=True)
        self._settime = library.timerfd_settime
        self._fd = library.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            msg = f"the kernel refused a timer (timerfd_create): {os.strerror(ctypes.get_errno())}"
            raise FailedPreconditionError(msg)
        self._spec = _TimerSpec()
        self._due_spec = ctypes.byref(self._spec)
        self._loop = loop
        self._wake = wake
        loop.add_reader(self._fd, self._ring)

    def set(self, due_at: float, now: float) -> None:
        """Call `wake` at `due_at` (monotonic seconds), perhaps several times while busy-waiting."""
        if due_at - now < AWAKE_S:
            self._loop.call_soon(self._wake)
            return
        nanoseconds = int((due_at - AWAKE_S) * _NANO)
        self._spec.at_s, self._spec.at_ns = divmod(nanoseconds, _NANO)
        self._settime(self._fd, _ABSOLUTE, self._due_spec, None)

    def close(self) -> None:
        """Stop the timer and close its descriptor."""
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def _ring(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:  # the timer was set again meanwhile
            return
        self._wake()


CONNECTIONS_AT_START: Final = 8
BEHIND_S: Final = 1.0
"""How long after the end late requests may still be sent."""
_MAX_CONCURRENT: Final = 64
"""Limit of requests that are sent before responses are read again."""
_DIAL_S: Final = 5.0
"""Least connect timeout; requests that wait for the connection have their own timeouts."""
_SWEEP_S: Final = 0.02
_TICK_S: Final = 1.0
TIMEOUT: Final = "timeout"
NO_CONNECTION: Final = "no_connection"
REFUSED: Final = "refused"
UNREACHABLE: Final = "unreachable"


class Dialler(Protocol):
    """Opens connections to one server."""

    async def connect(self, make: Callable[[], LoadConnection]) -> LoadConnection:
        """Open a connection; raise an OSError if the server accepts none."""


class Generator:
    """Sender of one run. `started_at` is the monotonic time that the record's times count from.

    Attributes:
        in_flight: Requests that are due and not finished.
        waited: Requests that had to wait for a connection, at the connection limit.
        opened: Total of opened connections.
    """

    def __init__(
        self,
        record: RunRecord,
        requests: Sequence[bytes],
        dialler: Dialler,
        *,
        connections: int,
        timeout_s: float,
        end_s: float,
    ) -> None:
        self.record = record
        self.in_flight = 0
        self.waited = 0
        self.opened = 0
        self.started_at = 0.0
        self.taken = 0
        self._requests = requests
        self._dialler = dialler
        self._limit = connections
        self._timeout_s = timeout_s
        self._end_s = end_s
        self._last = len(record.intended)
        self._idle: list[LoadConnection] = []
        self._carriers: dict[int, LoadConnection] = {}
        self._waiting: deque[int] = deque()
        self._open = 0
        self._dialling = 0
        self._oldest = 0
        self._dials: set[asyncio.Task[None]] = set()
        self._done = asyncio.Event()

    async def run(self, on_tick: Callable[[float], None] | None = None) -> None:
        """Send all requests and wait until each has ended.

        Args:
            on_tick: Called once a second with the seconds since the start; it must be quick,
                because nothing is sent meanwhile.
        """
        loop = asyncio.get_running_loop()
        # Have a few connections open before the first request is due.
        count = min(CONNECTIONS_AT_START, self._limit)
        self._dialling += count
        await asyncio.gather(*(self._dial() for _ in range(count)))
        self._alarm = Alarm(loop, self._send_due)
        with _without_garbage_collection():
            self.started_at = time.monotonic()
            background = [loop.create_task(self._sweep())]
            if on_tick is not None:
                background.append(loop.create_task(self._tick(on_tick)))
            try:
                self._send_due()
                await self._done.wait()
            finally:
                self._alarm.close()
                for connection in (*self._idle, *self._carriers.values()):
                    if connection.is_open:
                        connection.close()
                await _end(*background, *self._dials)
        # Transports report their closing in the next turn of the loop.
        await asyncio.sleep(0)

    def stop(self) -> None:
        """Stop sending; a second call also stops waiting for responses."""
        if self.taken < self._last:
            self.record.code[self.taken : self._last] = array(
                "h", [LEFT_OUT] * (self._last - self.taken)
            )
            self._last = self.taken
            self._end_if_over()
            return
        for number in range(self._oldest, self.taken):
            if self.record.code[number] == PENDING:
                self.record.code[number] = LEFT_OUT
        self.in_flight = 0
        self._end_if_over()

    # Sending

    def _send_due(self) -> None:
        record, clock, start = self.record, time.monotonic, self.started_at
        intended, handled = record.intended, record.handled
        number, last, maximum = self.taken, self._last, self.taken + _MAX_CONCURRENT
        now = clock() - start
        while number < last:
            if intended[number] > now:
                self.taken = number
                self._alarm.set(intended[number] + start, now + start)
                return
            if number >= maximum:
                break
            handled[number] = now
            self.in_flight += 1
            self._dispatch(number)
            number += 1
            now = clock() - start
        self.taken = number
        if now > self._end_s + BEHIND_S:
            for late in range(number, last):
                record.code[late] = NOT_SENT
            self._last = number
        if number < self._last:
            asyncio.get_running_loop().call_soon(self._send_due)
        else:
            self._end_if_over()

    def _dispatch(self, number: int) -> None:
        idle = self._idle
        while idle:
            connection = idle.pop()
            if connection.is_open:
                self._carriers[number] = connection
                connection.send(number, self._requests[number % len(self._requests)])
                return
        self._waiting.append(number)
        if self._open + self._dialling >= self._limit:
            self.waited += 1
        self._dial_if_needed()

    def _dial_if_needed(self) -> None:
        if self._dialling < len(self._waiting) and self._open + self._dialling < self._limit:
            self._dialling += 1
            task = asyncio.get_running_loop().create_task(self._dial())
            self._dials.add(task)
            task.add_done_callback(self._dials.discard)

    async def _dial(self) -> None:
        try:
            async with asyncio.timeout(max(self._timeout_s, _DIAL_S)):
                connection = await self._dialler.connect(lambda: LoadConnection(self))
        except (OSError, TimeoutError) as error:
            self._dialling -= 1
            kind = REFUSED if isinstance(error, ConnectionRefusedError) else UNREACHABLE
            while self._waiting:
                number = self._waiting.popleft()
                if self.record.code[number] == PENDING:
                    self._settle(number, kind, time.monotonic())
                    break
            self._dial_if_needed()
            return
        self._dialling -= 1
        self._open += 1
        self.opened += 1
        self._use(connection)

    def _use(self, connection: LoadConnection) -> None:
        """Assign a free connection to the request that has waited longest."""
        if not connection.is_open:
            return
        waiting, code = self._waiting, self.record.code
        while waiting:
            number = waiting.popleft()
            if code[number] == PENDING:
                self._carriers[number] = connection
                connection.send(number, self._requests[number % len(self._requests)])
                return
        self._idle.append(connection)

    # Completion

    def request_done(self, connection: LoadConnection, number: int, kind: str, now: float) -> None:
        """See `ConnectionPool`."""
        self._carriers.pop(number, None)
        self._settle(number, kind, now)
        if connection.is_open:
            self._use(connection)

    def closed(self, connection: LoadConnection) -> None:  # noqa: ARG002  # idle ones are found closed later
        """See `ConnectionPool`."""
        self._open -= 1
        self._dial_if_needed()

    def _settle(self, number: int, kind: str, now: float) -> None:
        record = self.record
        if record.code[number] != PENDING:
            return
        record.code[number] = record.code_of(kind) if kind else SUCCEEDED
        record.done[number] = now - self.started_at
        self.in_flight -= 1
        self._end_if_over()

    def _end_if_over(self) -> None:
        if self.taken >= self._last and self.in_flight == 0:
            self._done.set()

    async def _sweep(self) -> None:
        """Time out unanswered requests until the run ends."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            intended_before = time.monotonic() - self.started_at - self._timeout_s
            record = self.record
            number = self._oldest
            while number < self.taken and (
                record.code[number] != PENDING or record.intended[number] < intended_before
            ):
                if record.code[number] == PENDING:
                    carrier = self._carriers.pop(number, None)
                    self._settle(number, TIMEOUT if carrier else NO_CONNECTION, time.monotonic())
                    if carrier is not None:
                        carrier.close()
                number += 1
            self._oldest = number

    async def _tick(self, on_tick: Callable[[float], None]) -> None:
        for count in itertools.count(1):
            await asyncio.sleep(max(self.started_at + count * _TICK_S - time.monotonic(), 0.0))
            on_tick(time.monotonic() - self.started_at)


async def _end(*tasks: asyncio.Task[None]) -> None:
    """Cancel tasks; raise the first error of a task that failed before."""
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception):
            raise result


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Disable garbage collection in the block: a collection would delay sends by milliseconds."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()
