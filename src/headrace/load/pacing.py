"""How does a process wake up at a given time, to the microsecond, without spinning until then?

Timers of event loops are multiples of a millisecond. A timerfd of Linux is not; but a process that
slept needs some 50 µs to run again, so the last part is spent awake. Measured on two shared cores
at 1,000 requests per second: p50 of the lag 0.7 µs for 0.1 of a core, against 0.5 of a core with
the loop's timer and 2 ms awake, and 12 µs with the timerfd alone.
"""

import asyncio
import ctypes
import os
from collections.abc import Callable
from typing import Final

from headrace.core import FailedPreconditionError

AWAKE_S: Final = 100e-6
"""How long before its time a wake-up is waited for without sleeping."""
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
    """Calls `wake` at, or shortly before, the time it was set to. Close it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, wake: Callable[[], None]) -> None:
        library = ctypes.CDLL(None, use_errno=True)
        self._settime = library.timerfd_settime
        self._fd = library.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            msg = f"the kernel gives no timer: {os.strerror(ctypes.get_errno())}"
            raise FailedPreconditionError(msg)
        self._spec = _TimerSpec()
        self._at = ctypes.byref(self._spec)
        self._loop = loop
        self._wake = wake
        loop.add_reader(self._fd, self._ring)

    def set(self, at: float, now: float) -> None:
        """Call `wake` at `at` (monotonic seconds); more than once if it has to wait awake."""
        if at - now < AWAKE_S:
            self._loop.call_soon(self._wake)
            return
        nanoseconds = int((at - AWAKE_S) * _NANO)
        self._spec.at_s, self._spec.at_ns = divmod(nanoseconds, _NANO)
        self._settime(self._fd, _ABSOLUTE, self._at, None)

    def close(self) -> None:
        """Never call again."""
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def _ring(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:  # it was set again since
            return
        self._wake()
