"""Contenders timed side by side in windows of time, on a machine that others use too.

Nothing is subtracted from a latency. Instead so many calls lie between two readings of the clock
that reading it takes less than 1 % of them.

They take turns: a block holds one short window of each, in an order that is drawn anew. Whatever
comes and goes more slowly than a block meets all of them, and what comes faster meets each as often
as the others; so differences within a block hold where times do not.
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
    """One way to answer. `run`: one call is one inference of a request that is prepared."""

    name: str
    run: Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TimingSettings:
    """How a measurement is made."""

    blocks: int = 20
    """In each, every contender gets one window."""
    window_s: float = 0.15
    """Length of a window, where the machine's time suffices; slower contenders get longer ones."""
    warmup_s: float = 0.1
    """Before the first block, for each contender."""
    cold: bool = False
    """What the caches hold is driven out before every call."""


def foreign_limit_cores(cpus: int) -> float:
    """How many of `cpus` cores others may use without disturbing a window.

    On large machines they may have a tenth of the cores that a model leaves free.
    """
    return max(_MAX_FOREIGN_CORES, (cpus - 1) / 10)


def foreign_cores(before_s: float | None, after_s: float | None, elapsed_s: float) -> float | None:
    """How many cores others used on average, less what the kernel's sums may be off by."""
    if before_s is None or after_s is None or elapsed_s <= 0:
        return None
    return max(after_s - before_s - TICK_S, 0.0) / elapsed_s


class CallWindow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Calls of one contender, one after the other, with what else went on.

    `at_s`: monotonic time of its begin. `elapsed_s`: from the first call to the end of the last,
    with what lay between. `readings`: latencies in seconds as little-endian float64, so that a
    journal keeps them exactly and briefly; each is the mean of `calls_per_reading` calls, more than
    1 where a call is so short that reading the clock would count. `foreign_cores`: how many cores
    others used on average; None where that cannot be seen. `error`: why the contender was dropped;
    such a window has no readings.
    """

    name: str
    block: int
    at_s: float
    elapsed_s: float = 0.0
    readings: bytes = b""
    calls_per_reading: int = 1
    foreign_cores: float | None = None
    disturbed: bool = False
    cold: bool = False
    error: str = ""

    @property
    def latencies_s(self) -> Array:
        """Seconds of a call, float64 `[readings]`, in their order."""
        return np.frombuffer(self.readings, "<f8")

    @property
    def p50_s(self) -> float:
        """The median latency in this window."""
        ordered = np.sort(self.latencies_s)
        half = ordered.size // 2
        return float((ordered[half] + ordered[-1 - half]) / 2)


def failures(windows: Iterable[CallWindow]) -> dict[str, str]:
    """By the names of contenders that were dropped: why."""
    return {window.name: window.error for window in windows if window.error}


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
class TimingPlan:
    """What a contender's windows are, by how long a call took in its trial.

    `between_s`: what passes between two calls and does not count.
    """

    call_s: float
    between_s: float
    calls_per_reading: int
    least_readings: int
    window_s: float

    @property
    def whole_s(self) -> float:
        """About how long a window takes in all, and a warm-up before it."""
        reading_s = self.calls_per_reading * self.call_s + self.between_s
        readings_s = max(math.ceil(self.window_s / reading_s), self.least_readings) * reading_s
        return readings_s + max(_WINDOW_WARMUP_S, self.call_s)


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
        ended_at = now()
        add(ended_at)
        if ended_at >= end and (len(times) > least or ended_at >= until):
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
        ended_at = now()
        latencies.append(ended_at - start)
        if ended_at >= end and (len(latencies) >= least or ended_at >= until):
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
) -> TimingPlan:
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
    return TimingPlan(
        call_s=call_s,
        between_s=between_s,
        calls_per_reading=calls,
        least_readings=_LEAST_READINGS if _LEAST_READINGS * call_s <= _FEW_CALLS_S else 1,
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
    """Windows of all contenders, in the order in which they were made.

    A window in which others used the processor is marked and made again, where time allows; more
    blocks follow while a contender has too few without. One that raises is dropped, and its last
    window says why. There are none at all where `until` comes before the first window.

    Args:
        until: Monotonic time. No call is begun that would end later, as far as one knows; windows
            get shorter so that all blocks are made.
        on_window: Told of each window as soon as it is made, and so before a KeyboardInterrupt.
        evict: Empties caches where `settings.cold`; None for what this processor takes.
        first_block: The number of the first block, so that a measurement that goes on after an
            interrupt has other numbers than what was journaled.

    Raises:
        InvalidArgumentError: No contender, or two of one name.
    """
    names = [candidate.name for candidate in candidates]
    if not names or len(set(names)) < len(names):
        raise InvalidArgumentError(
            f"contenders need names, and each its own; these are: {', '.join(names) or 'none'}"
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
    # Python's garbage collector is kept from running in the midst of a window.
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
    """Contenders that take turns. `evict`: None where caches stay hot."""

    settings: TimingSettings
    until: float
    now: Now
    cpu: CpuWatch
    evict: Run | None
    alive: list[TimedCandidate]
    rng: np.random.Generator
    on_window: OnWindow
    first_block: int
    plans: dict[str, TimingPlan] = field(default_factory=dict)
    windows: list[CallWindow] = field(default_factory=list)
    quiet: Counter[str] = field(default_factory=Counter)
    """By contender: in how many blocks it has a window that was not disturbed."""

    def run(self) -> None:
        """Try each, then make blocks until there are enough or time is up."""
        self._plan()
        needed, collect_at = self.settings.blocks, -math.inf
        for count in range(2 * needed):
            lacks = any(self.quiet[c.name] < needed for c in self.alive) and not self._is_in_vain()
            if not self.alive or (count >= needed and not lacks):
                return
            # Let go of what calls left in cycles, between windows and not too often: it takes time.
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
            except Exception as error:  # noqa: BLE001  # others' code: it is dropped, and says why
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
            # One block more, for what is made again and for calls that end a little late.
            blocks = self.settings.blocks + 1
            spare_s = (self.until - self.now()) / blocks - self._block_s()
            windows_s = sum(planned.window_s for planned in self.plans.values())
            self.plans = plans(fit=1 + min(spare_s / windows_s, 0.0))

    def _eviction_s(self) -> float:
        """How long it takes to empty the caches; 0 where they stay hot."""
        if self.evict is None:
            return 0.0
        self.evict()  # the first touches memory that was never there
        start = self.now()
        self.evict()
        return self.now() - start

    def _window(self, candidate: TimedCandidate, block: int) -> None:
        """Make one window; if the contender raises, one that says why."""
        planned, start, foreign_s = self.plans[candidate.name], self.now(), self.cpu.foreign_s()
        try:
            begin = self._warmed_up(candidate)
            end = min(begin + planned.window_s, self.until)
            latencies = (
                call_latencies(
                    candidate.run,
                    now=self.now,
                    end=end,
                    least=planned.least_readings,
                    calls=planned.calls_per_reading,
                    until=self.until,
                )
                if self.evict is None
                else cold_latencies(
                    candidate.run,
                    evict=self.evict,
                    now=self.now,
                    end=end,
                    least=planned.least_readings,
                    until=self.until,
                )
            )
        except Exception as error:  # noqa: BLE001  # others' code: it is dropped, and says why
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
        """Call it until its memory and threads are awake; the time after that."""
        end = min(self.now() + _WINDOW_WARMUP_S, self.until)
        while True:
            candidate.run()
            time = self.now()
            if time >= end:
                return time

    def _retry(self, block: int) -> None:
        """Make disturbed windows of the newest block again, and count who has a quiet one."""
        left = self.settings.blocks - (block - self.first_block) - 1
        spare_s = max(left, 0) * self._block_s()
        quiet = self._quiet_in(block)
        for candidate in self._shuffled([c for c in self.alive if c.name not in quiet]):
            if self._has_time_for(candidate, spare_s) and not self._is_in_vain():
                self._window(candidate, block)
        self.quiet.update(self._quiet_in(block))

    def _quiet_in(self, block: int) -> set[str]:
        """Contenders with a window in this block, the newest, that was not disturbed."""
        newest = takewhile(lambda window: window.block == block, reversed(self.windows))
        return {window.name for window in newest if not window.disturbed and not window.error}

    def _is_in_vain(self) -> bool:
        """Whether the machine is hardly ever quiet, so that waiting for that is lost time."""
        disturbed = sum(window.disturbed for window in self.windows)
        return disturbed > max(_HOPELESS_SHARE * len(self.windows), 2 * len(self.alive))

    def _has_time_for(self, candidate: TimedCandidate, spare_s: float = 0.0) -> bool:
        """Whether a window's warm-up and its first reading end in time, with so much to spare."""
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
