"""An event loop whose hours pass at once: when every task waits, its clock jumps to the next timer.

For tests without sockets, threads or processes. With anyio's pytest plugin:

    @pytest.fixture
    def anyio_backend():
        return ("asyncio", {"loop_factory": VirtualTimeLoop})
"""

import asyncio
import selectors

_Ready = list[tuple[selectors.SelectorKey, int]]


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """asyncio's loop on a clock of its own, which starts at 0 and never waits.

    Timers fire in the order of their times. If every task waits for something that nobody will do,
    `RuntimeError` is raised instead of hanging; so it is if a task waits for a thread, which
    this clock cannot see.
    """

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._jumping.now


class LoopClock:
    """The running loop's time as both clocks; `start` is the Unix time at which the loop begins."""

    def __init__(self, start: float = 0.0) -> None:
        self._start = start

    def now(self) -> float:
        """Unix time."""
        return self._start + self.monotonic()

    def monotonic(self) -> float:
        """Virtual seconds since the loop was made."""
        return asyncio.get_running_loop().time()


class _JumpingSelector(selectors.DefaultSelector):
    """Polls; where nothing is ready, moves its clock by the timeout instead of waiting."""

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
