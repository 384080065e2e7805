"""Interleaved timing of candidates in short windows, on a shared machine.

Nothing is subtracted from a latency. Instead, enough calls lie between two clock readings that the
reading takes less than 1 % of the time.

A block holds one short window of each candidate in random order. Slow disturbances affect all
windows of a block, and fast ones each candidate equally often, so that differences within a block
are valid even if absolute times are not.
"""

import gc
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, repeat, takewhile
from typing import Final

import msgspec
import numpy as np

from headrace.core import Array
from headrace.core.clock import Clock
from headrace.core.errors import InvalidArgumentError
from headrace.optimize.timing.cpu import TICK_S, CpuWatch, eviction

Run = Callable[[], None]
Now = Callable[[], float]
OnWindow = Callable[["CallWindow"], None]
_MAX_FOREIGN_CORES: Final = 0.35
_WINDOW_WARMUP_S: Final = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedCandidate:
    """Candidate for timing."""

    name: str
    run: Callable[[], None]
    """Runs one inference of a prepared request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimingSettings:
    """Settings of a timing measurement."""

    blocks: int = 20
    """Number of blocks with one window per candidate."""
    window_s: float = 0.15
    """Window length; shorter if time is scarce, longer for slow candidates."""
    warmup_s: float = 0.1
    """Warm-up of each candidate before the first block."""
    cold: bool = False
    """Whether caches are evicted before every call."""


def foreign_limit_cores(cpus: int) -> float:
    """Return how many cores other processes may use without disturbing a window.

    On large machines that is a tenth of the remaining cores.
    """
    return max(_MAX_FOREIGN_CORES, (cpus - 1) / 10)


def foreign_cores(before_s: float | None, after_s: float | None, elapsed_s: float) -> float | None:
    """Return the mean cores used by others, minus the counters' resolution."""
    if before_s is None or after_s is None or elapsed_s <= 0:
        return None
    return max(after_s - before_s - TICK_S, 0.0) / elapsed_s


class CallWindow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Consecutive calls of one candidate, with the disturbance by others."""

    name: str
    block: int
    at_s: float
    """Monotonic start time."""
    elapsed_s: float = 0.0
    """Seconds from the first call to the end of the last."""
    readings: bytes = b""
    """Latencies in seconds as little-endian float64, exact and compact in a journal. Each is the
    mean of `calls_per_reading` calls, above 1 for very short calls."""
    calls_per_reading: int = 1
    foreign_cores: float | None = None
    """Mean cores used by other processes; None if unknown."""
    disturbed: bool = False
    cold: bool = False
    error: str = ""
    """Error that dropped the candidate; such a window has no readings."""

    @property
    def latencies_s(self) -> Array:
        """Seconds per call, float64 `[readings]`, in order."""
        return np.frombuffer(self.readings, "<f8")

    @property
    def p50_s(self) -> float:
        """Median latency of this window."""
        ordered = np.sort(self.latencies_s)
        half = ordered.size // 2
        return float((ordered[half] + ordered[-1 - half]) / 2)


def failures(windows: Iterable[CallWindow]) -> dict[str, str]:
    """Return the error of each dropped candidate by name."""
    return {window.name: window.error for window in windows if window.error}


MAX_READINGS: Final = 2000
"""Most readings of a window, which the journal stores."""
_OVERHEAD_SHARE: Final = 0.005
_OVERHEAD_READINGS: Final = 500
_MIN_READINGS: Final = 3
_FEW_CALLS_S: Final = 1.0
"""Candidates whose three calls take longer get windows of one call."""
_SHORTEST_WINDOW_S: Final = 0.03
_TRIAL_CALLS: Final = 2
_SHORTEST_CALL_S: Final = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class TimingPlan:
    """Window parameters of a candidate, from a trial call."""

    call_s: float
    between_s: float
    """Uncounted seconds between two calls."""
    calls_per_reading: int
    least_readings: int
    window_s: float

    @property
    def whole_s(self) -> float:
        """Approximate duration of a window with its warm-up."""
        reading_s = self.calls_per_reading * self.call_s + self.between_s
        readings_s = max(math.ceil(self.window_s / reading_s), self.least_readings) * reading_s
        return readings_s + max(_WINDOW_WARMUP_S, self.call_s)


def call_latencies(
    run: Run, *, now: Now, end: float, minimum: int, calls: int, until: float = math.inf
) -> list[float]:
    """Measure seconds per call, each a mean of `calls`, until `end`.

    Takes at least `least` readings unless `until` passes, and always one.
    """
    times = [now()]
    add = times.append
    while True:
        for _ in repeat(None, calls):
            run()
        ended_at = now()
        add(ended_at)
        if ended_at >= end and (len(times) > minimum or ended_at >= until):
            return [(after - before) / calls for before, after in pairwise(times)]


def cold_latencies(
    run: Run, *, evict: Run, now: Now, end: float, minimum: int, until: float = math.inf
) -> list[float]:
    """Measure seconds of each call after an uncounted `evict`."""
    latencies: list[float] = []
    while True:
        evict()
        start = now()
        run()
        ended_at = now()
        latencies.append(ended_at - start)
        if ended_at >= end and (len(latencies) >= minimum or ended_at >= until):
            return latencies


def reading_overhead_s(now: Now) -> float:
    """Return the time between two clock readings around an empty call."""
    nothing = call_latencies(
        lambda: None, now=now, end=-math.inf, minimum=_OVERHEAD_READINGS, calls=1
    )
    return statistics.median(nothing)


def trial_call_s(run: Run, *, now: Now, warmup_s: float, until: float) -> float:
    """Warm up, and return the duration of a call.

    The first call, which initializes, counts only if there is no time for another.
    """
    start = now()
    first = call_latencies(run, now=now, end=-math.inf, minimum=1, calls=1)
    if now() >= until:
        return first[0]
    end = min(start + warmup_s, until)
    later = call_latencies(run, now=now, end=end, minimum=_TRIAL_CALLS, calls=1, until=until)
    return statistics.median(later)


def plan(
    call_s: float,
    *,
    overhead_s: float,
    settings: TimingSettings,
    between_s: float = 0.0,
    fit: float = 1.0,
) -> TimingPlan:
    """Return the window parameters of a candidate whose call takes `call_s`.

    Args:
        call_s: Duration in the trial, with one clock reading per call.
        overhead_s: Duration of a clock reading.
        fit: Factor by which windows are shortened so that all blocks fit the time.
    """
    call_s = max(call_s - overhead_s, overhead_s / 10, _SHORTEST_CALL_S)
    shortest = min(settings.window_s, _SHORTEST_WINDOW_S)
    window_s = max(settings.window_s * min(fit, 1.0), shortest)
    calls = 1
    if not settings.cold:
        enough = overhead_s / (_OVERHEAD_SHARE * call_s)
        calls = max(math.ceil(max(enough, window_s / call_s / MAX_READINGS)), 1)
    return TimingPlan(
        call_s=call_s,
        between_s=between_s,
        calls_per_reading=calls,
        least_readings=_MIN_READINGS if _MIN_READINGS * call_s <= _FEW_CALLS_S else 1,
        window_s=window_s,
    )


_HOPELESS_SHARE: Final = 0.8
_COLLECT_EVERY_S: Final = 2.0


def measure(
    candidates: Sequence[TimedCandidate],
    *,
    settings: TimingSettings,
    until: float,
    clock: Clock,
    cpu: CpuWatch,
    rng: np.random.Generator,
    on_window: OnWindow | None = None,
    evict: Run | None = None,
    first_block: int = 0,
) -> list[CallWindow]:
    """Measure windows of all candidates, in order.

    Windows disturbed by other processes are marked and repeated if time allows; more blocks follow
    while a candidate has too few quiet ones. A candidate that raises is dropped, and its last
    window holds the error. The result is empty if `until` passes before the first window.

    Args:
        until: Monotonic deadline. Windows are shortened so that all blocks fit, and no call
            starts that would end later.
        on_window: Called with each window at once, before a KeyboardInterrupt.
        evict: Evicts caches for `settings.cold`; None for this processor's default.
        first_block: Number of the first block, for a resumed measurement.

    Raises:
        InvalidArgumentError: There are no candidates, or two of one name.
    """
    names = [candidate.name for candidate in candidates]
    if not names or len(set(names)) < len(names):
        raise InvalidArgumentError(
            f"candidates need unique names; these are: {', '.join(names) or 'none'}"
        )
    turns = _Turns(
        settings=settings,
        until=until,
        now=clock.monotonic,
        cpu=cpu,
        evict=(evict or eviction()) if settings.cold else None,
        alive=list(candidates),
        rng=rng,
        on_window=on_window or (lambda _: None),
        first_block=first_block,
    )
    # Python's garbage collector is disabled during a window.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        turns.run()
    finally:
        if was_enabled:
            gc.enable()
    return turns.windows


@dataclass(slots=True, kw_only=True)
class _Turns:
    """Interleaved measurement of candidates."""

    settings: TimingSettings
    until: float
    now: Now
    cpu: CpuWatch
    evict: Run | None
    """Cache eviction; None for hot caches."""
    alive: list[TimedCandidate]
    rng: np.random.Generator
    on_window: OnWindow
    first_block: int
    plans: dict[str, TimingPlan] = field(default_factory=dict)
    windows: list[CallWindow] = field(default_factory=list)
    quiet: Counter[str] = field(default_factory=Counter)
    """Number of blocks with an undisturbed window, by candidate."""

    def run(self) -> None:
        """Plan each candidate, then measure blocks until there are enough or time is up."""
        self._plan()
        needed, collect_at = self.settings.blocks, -math.inf
        for count in range(2 * needed):
            lacks = any(self.quiet[c.name] < needed for c in self.alive) and not self._is_in_vain()
            if not self.alive or (count >= needed and not lacks):
                return
            # Collect the calls' cyclic garbage between windows, and rarely, because it takes time.
            if self.now() >= collect_at:
                gc.collect()
                collect_at = self.now() + _COLLECT_EVERY_S
            for candidate in self._shuffled(self.alive):
                if not self._has_time_for(candidate):
                    return
                self._window(candidate, self.first_block + count)
            self._retry(self.first_block + count)

    def _plan(self) -> None:
        overhead_s, between_s = reading_overhead_s(self.now), self._eviction_s()
        call_s = {}
        for candidate in self._shuffled(self.alive):
            start = self.now()
            if start >= self.until:
                call_s[candidate.name] = 0.0
                continue
            try:
                call_s[candidate.name] = trial_call_s(
                    candidate.run, now=self.now, warmup_s=self.settings.warmup_s, until=self.until
                )
            except Exception as error:  # noqa: BLE001  # third-party code: the candidate is dropped
                self._drop(candidate, self.first_block, start, error)

        def plans(fit: float) -> dict[str, TimingPlan]:
            return {
                name: plan(
                    taken_s,
                    overhead_s=overhead_s,
                    settings=self.settings,
                    between_s=between_s,
                    fit=fit,
                )
                for name, taken_s in call_s.items()
            }

        self.plans = plans(fit=1.0)
        if self.plans and math.isfinite(self.until):
            # One extra block, for repeated windows and for calls that end a little late.
            blocks = self.settings.blocks + 1
            spare_s = (self.until - self.now()) / blocks - self._block_s()
            windows_s = sum(planned.window_s for planned in self.plans.values())
            self.plans = plans(fit=1 + min(spare_s / windows_s, 0.0))

    def _eviction_s(self) -> float:
        """Return the duration of a cache eviction; 0 for hot caches."""
        if self.evict is None:
            return 0.0
        self.evict()  # the first call allocates the memory
        start = self.now()
        self.evict()
        return self.now() - start

    def _window(self, candidate: TimedCandidate, block: int) -> None:
        """Measure one window; on an error, record it and drop the candidate."""
        planned, start, foreign_s = self.plans[candidate.name], self.now(), self.cpu.foreign_s()
        try:
            begin = self._warmed_up(candidate)
            end = min(begin + planned.window_s, self.until)
            latencies = (
                call_latencies(
                    candidate.run,
                    now=self.now,
                    end=end,
                    minimum=planned.least_readings,
                    calls=planned.calls_per_reading,
                    until=self.until,
                )
                if self.evict is None
                else cold_latencies(
                    candidate.run,
                    evict=self.evict,
                    now=self.now,
                    end=end,
                    minimum=planned.least_readings,
                    until=self.until,
                )
            )
        except Exception as error:  # noqa: BLE001  # third-party code: the candidate is dropped
            self._drop(candidate, block, start, error)
            return
        end = self.now()
        foreign = foreign_cores(foreign_s, self.cpu.foreign_s(), end - start)
        self._add(
            CallWindow(
                name=candidate.name,
                block=block,
                at_s=begin,
                elapsed_s=end - begin,
                readings=np.asarray(latencies, "<f8").tobytes(),
                calls_per_reading=planned.calls_per_reading,
                foreign_cores=foreign,
                disturbed=foreign is not None and foreign > foreign_limit_cores(self.cpu.cpus),
                cold=self.settings.cold,
            )
        )

    def _warmed_up(self, candidate: TimedCandidate) -> float:
        """Warm up a candidate; return the time afterwards."""
        end = min(self.now() + _WINDOW_WARMUP_S, self.until)
        while True:
            candidate.run()
            time = self.now()
            if time >= end:
                return time

    def _retry(self, block: int) -> None:
        """Repeat disturbed windows of the newest block, and count quiet ones."""
        left = self.settings.blocks - (block - self.first_block) - 1
        spare_s = max(left, 0) * self._block_s()
        quiet = self._quiet_in(block)
        for candidate in self._shuffled([c for c in self.alive if c.name not in quiet]):
            if self._has_time_for(candidate, spare_s) and not self._is_in_vain():
                self._window(candidate, block)
        self.quiet.update(self._quiet_in(block))

    def _quiet_in(self, block: int) -> set[str]:
        """Return the candidates with a quiet window in the newest block."""
        newest = takewhile(lambda window: window.block == block, reversed(self.windows))
        return {window.name for window in newest if not window.disturbed and not window.error}

    def _is_in_vain(self) -> bool:
        """Return whether the machine is so busy that repeating windows is futile."""
        disturbed = sum(window.disturbed for window in self.windows)
        return disturbed > max(_HOPELESS_SHARE * len(self.windows), 2 * len(self.alive))

    def _has_time_for(self, candidate: TimedCandidate, spare_s: float = 0.0) -> bool:
        """Return whether a window's warm-up and first reading fit the time."""
        planned = self.plans[candidate.name]
        calls_s = planned.call_s * (1 + planned.calls_per_reading) + planned.between_s
        return self.now() + calls_s + spare_s <= self.until

    def _block_s(self) -> float:
        return sum(self.plans[c.name].whole_s for c in self.alive)

    def _drop(self, candidate: TimedCandidate, block: int, at_s: float, error: Exception) -> None:
        self.alive = [other for other in self.alive if other.name != candidate.name]
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        cold = self.settings.cold
        self._add(CallWindow(name=candidate.name, block=block, at_s=at_s, cold=cold, error=reason))

    def _add(self, window: CallWindow) -> None:
        self.windows.append(window)
        self.on_window(window)

    def _shuffled(self, candidates: Sequence[TimedCandidate]) -> list[TimedCandidate]:
        return [candidates[i] for i in self.rng.permutation(len(candidates))]
