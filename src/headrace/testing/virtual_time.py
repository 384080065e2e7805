"""Virtual clocks for tests: a manual clock for threads, and an event loop without waits.

`VirtualTimeLoop` is for tests without sockets, threads or processes. With anyio's pytest plugin:

    @pytest.fixture
    def anyio_backend():
        return ("asyncio", {"loop_factory": VirtualTimeLoop})
"""

import asyncio
import heapq
import math
import selectors
from collections.abc import Callable, Iterable
from itertools import count

from headrace.core import HeadraceError
from headrace.streaming.in_flight import Outcome, ScoringBatch
from headrace.streaming.poll_loop import Finished

_BEGINNING_S = 1_700_000_000.0


class TurnedClock:
    """Clock that a test advances; due events run on the way."""

    def __init__(self) -> None:
        self._now = 0.0
        self._order = count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []

    def monotonic(self) -> float:
        """Return seconds since the clock was created."""
        return self._now

    def now(self) -> float:
        """Return the Unix time."""
        return _BEGINNING_S + self._now

    def later(self, delay_s: float, action: Callable[[], None]) -> None:
        """Schedule an action."""
        heapq.heappush(self._events, (self._now + delay_s, next(self._order), action))

    def next_at(self) -> float | None:
        """Return when the next event is due; None without events."""
        return self._events[0][0] if self._events else None

    def turn(self, seconds: float) -> None:
        """Advance the clock; at least by the smallest step if `seconds` is positive."""
        until = self._now + seconds
        if seconds > 0:
            until = max(until, math.nextafter(self._now, math.inf))
        while self._events and self._events[0][0] <= until:
            due_at, _, action = heapq.heappop(self._events)
            self._now = max(self._now, due_at)
            action()
        self._now = max(self._now, until)

    def turn_until(self, is_over: Callable[[], bool], *, most_s: float) -> None:
        """Advance from event to event until `is_over` is true."""
        until = self._now + most_s
        while not is_over():
            following = self.next_at()
            if following is None or following > until:
                self.turn(until - self._now)
                return
            self.turn(following - self._now)


class TurnedRunner:
    """Runner whose batches take the time that a test chooses.

    Args:
        answer: Returns the outcomes of a batch.
        seconds: Returns how long a batch takes.
        threads: Number of parallel batches.
        wake: Called when a batch is finished.
    """

    def __init__(
        self,
        clock: TurnedClock,
        answer: Callable[[ScoringBatch], Iterable[Outcome] | HeadraceError],
        *,
        seconds: Callable[[ScoringBatch], float] = lambda _: 0.0,
        threads: int = 1,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self.submitted: list[ScoringBatch] = []
        self.wake = wake
        self._clock = clock
        self._answer = answer
        self._seconds = seconds
        self._threads = threads
        self._waiting: list[ScoringBatch] = []
        self._running = 0
        self._finished: list[Finished] = []

    @property
    def is_free(self) -> bool:
        """Whether a submitted batch would run at once."""
        return self._in_flight < self._threads

    @property
    def has_room(self) -> bool:
        """Whether a batch may be submitted."""
        return self._in_flight <= self._threads

    def submit(self, batch: ScoringBatch) -> None:
        """Run a batch."""
        self.submitted.append(batch)
        self._waiting.append(batch)
        self._start()

    def finished(self) -> list[Finished]:
        """Return batches that finished since the last call."""
        batches, self._finished = self._finished, []
        return batches

    def wait(self, timeout_s: float) -> None:
        """Wait until a batch finishes, or until the timeout."""
        self._clock.turn_until(lambda: bool(self._finished), most_s=timeout_s)

    @property
    def _in_flight(self) -> int:
        return self._running + len(self._waiting) + len(self._finished)

    def _start(self) -> None:
        while self._waiting and self._running < self._threads:
            batch = self._waiting.pop(0)
            self._running += 1
            seconds = self._seconds(batch)
            self._clock.later(seconds, lambda b=batch, s=seconds: self._finish(b, s))  # type: ignore[misc]  # bound now

    def _finish(self, batch: ScoringBatch, seconds: float) -> None:
        self._running -= 1
        result = self._answer(batch)
        outcomes = result if isinstance(result, HeadraceError) else list(result)
        self._finished.append(Finished(batch=batch, result=outcomes, seconds=seconds))
        self._start()
        self.wake()


_Ready = list[tuple[selectors.SelectorKey, int]]


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Event loop of asyncio on a virtual clock, which starts at 0 and never waits.

    Timers fire in the order of their times. If all tasks wait without a timer, `RuntimeError` is
    raised instead of hanging; also if a task waits for a thread, which this clock does not know.
    """

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Return virtual seconds since the loop was created."""
        return self._jumping.now


class LoopClock:
    """Clock with the running loop's time; `start` is the Unix time at which the loop begins."""

    def __init__(self, start: float = 0.0) -> None:
        self._start = start

    def now(self) -> float:
        """Return the Unix time."""
        return self._start + self.monotonic()

    def monotonic(self) -> float:
        """Return virtual seconds since the loop was created."""
        return asyncio.get_running_loop().time()


class _JumpingSelector(selectors.DefaultSelector):
    """Selector that advances its clock by the timeout instead of waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> _Ready:
        ready: _Ready = super().select(0)
        if ready:
            return ready
        if timeout is None:
            msg = "every task waits for something that nobody will do"
            raise RuntimeError(msg)
        self.now += max(timeout, 0)
        return []
