"""Calls in a row, with the clock read in between: what one window does.

Nothing is subtracted from a latency. Instead so many calls lie between two readings of the clock
that reading it takes less than 1 % of them.
"""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise, repeat
from typing import Final

from headrace.optimize.timing.window import TimingSettings

Run = Callable[[], None]
Now = Callable[[], float]

MAX_READINGS: Final = 2000
"""In a window; a journal has to hold them."""
_OVERHEAD_SHARE: Final = 0.005
_OVERHEAD_READINGS: Final = 500
_LEAST_READINGS: Final = 3
_FEW_CALLS_S: Final = 1.0
"""Contenders of which three calls take longer get windows of one call."""
_SHORTEST_WINDOW_S: Final = 0.03
_TRIAL_CALLS: Final = 2
_SHORTEST_CALL_S: Final = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a contender's windows are, by how long a call took in its trial.

    `between_s`: what passes between two calls and does not count.
    """

    call_s: float
    between_s: float
    calls_per_reading: int
    least_readings: int
    warmup_s: float
    window_s: float

    @property
    def whole_s(self) -> float:
        """About how long a window takes in all, and a warm-up before it."""
        reading_s = self.calls_per_reading * self.call_s + self.between_s
        readings_s = max(math.ceil(self.window_s / reading_s), self.least_readings) * reading_s
        return readings_s + max(self.warmup_s, self.call_s)


def call_latencies(
    run: Run, *, now: Now, end: float, least: int, calls: int, until: float = math.inf
) -> list[float]:
    """Seconds of a call, each a mean of `calls`, until `end`.

    It goes on to `least` of them, but not beyond `until`. There is always one.
    """
    times = [now()]
    add = times.append
    while True:
        for _ in repeat(None, calls):
            run()
        at = now()
        add(at)
        if at >= end and (len(times) > least or at >= until):
            return [(after - before) / calls for before, after in pairwise(times)]


def cold_latencies(
    run: Run, *, evict: Run, now: Now, end: float, least: int, until: float = math.inf
) -> list[float]:
    """Seconds of each call where `evict` ran before it, which does not count."""
    latencies: list[float] = []
    while True:
        evict()
        start = now()
        run()
        at = now()
        latencies.append(at - start)
        if at >= end and (len(latencies) >= least or at >= until):
            return latencies


def reading_overhead_s(now: Now) -> float:
    """What lies between two readings of the clock where a call does nothing."""
    nothing = call_latencies(
        lambda: None, now=now, end=-math.inf, least=_OVERHEAD_READINGS, calls=1
    )
    return statistics.median(nothing)


def trial_call_s(run: Run, *, now: Now, warmup_s: float, until: float) -> float:
    """Warm up, and tell how long a call takes by then.

    The first call, in which much is made that stays, counts only where there is time for no other.
    """
    start = now()
    first = call_latencies(run, now=now, end=-math.inf, least=1, calls=1)
    if now() >= until:
        return first[0]
    end = min(start + warmup_s, until)
    later = call_latencies(run, now=now, end=end, least=_TRIAL_CALLS, calls=1, until=until)
    return statistics.median(later)


def plan(
    call_s: float,
    *,
    overhead_s: float,
    settings: TimingSettings,
    between_s: float = 0.0,
    fit: float = 1.0,
) -> Plan:
    """The windows of a contender whose call takes `call_s`.

    Args:
        call_s: As the trial tells, which reads the clock at each call.
        overhead_s: Of one reading of the clock.
        fit: By how much windows have to be shorter than wanted for all blocks to be made in time.
    """
    call_s = max(call_s - overhead_s, overhead_s / 10, _SHORTEST_CALL_S)
    shortest = min(settings.window_s, _SHORTEST_WINDOW_S)
    window_s = max(settings.window_s * min(fit, 1.0), shortest)
    calls = 1
    if not settings.cold:
        enough = overhead_s / (_OVERHEAD_SHARE * call_s)
        calls = max(math.ceil(max(enough, window_s / call_s / MAX_READINGS)), 1)
    return Plan(
        call_s=call_s,
        between_s=between_s,
        calls_per_reading=calls,
        least_readings=_LEAST_READINGS if _LEAST_READINGS * call_s <= _FEW_CALLS_S else 1,
        warmup_s=settings.window_warmup_s,
        window_s=window_s,
    )
