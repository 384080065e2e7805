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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise, repeat, takewhile
from typing import Final

import msgspec
import numpy as np

from headrace.core import Array
from headrace.core.clock import Clock
from headrace.core.errors import InvalidArgumentError
from headrace.optimize.timing.cpu import TICK_S, CpuWatch, eviction


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One way to answer. `run`: one call is one inference of a request that is prepared."""

    name: str
    run: Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TimingSettings:
    """How a measurement is made.

    `blocks`: in each, every contender gets one window. `window_s`: its length, where the machine's
    time suffices; slower contenders get longer ones. `warmup_s`: before the first block, for each;
    `window_warmup_s`: before each window. `max_foreign_cores`: others that use more disturb a
    window; on large machines they may have a tenth of the cores that a model leaves free.
    `retries`: how often a disturbed window is repeated within its block. `cold`: what the caches
    hold is driven out before every call. `threads`: those that a contender uses.
    """

    blocks: int = 20
    window_s: float = 0.15
    warmup_s: float = 0.1
    window_warmup_s: float = 0.01
    max_foreign_cores: float = 0.35
    retries: int = 1
    cold: bool = False
    confidence: float = 0.95
    threads: int = 1

    def __post_init__(self) -> None:
        _at_least("blocks", self.blocks, 1)
        _at_least("retries", self.retries, 0)
        _at_least("threads", self.threads, 1)
        _at_least("max_foreign_cores", self.max_foreign_cores, 0.0)
        _at_least("warmup_s", self.warmup_s, 0.0)
        _at_least("window_warmup_s", self.window_warmup_s, 0.0)
        if not 0 < self.window_s < float("inf"):
            raise InvalidArgumentError(f"window_s is {self.window_s:g}; it has to be above 0 s")
        if not 0 < self.confidence < 1:
            raise InvalidArgumentError(
                f"confidence is {self.confidence:g}; it has to be between 0 and 1, as 0.95"
            )

    def foreign_limit_cores(self, cpus: int) -> float:
        """How many cores others may use on a machine of `cpus` without disturbing."""
        return max(self.max_foreign_cores, (cpus - self.threads) / 10)


def _at_least(name: str, value: float, least: float) -> None:
    if not least <= value < float("inf"):
        raise InvalidArgumentError(f"{name} is {value:g}; it has to be at least {least:g}")


def foreign_cores(before_s: float | None, after_s: float | None, elapsed_s: float) -> float | None:
    """How many cores others used on average, less what the kernel's sums may be off by."""
    if before_s is None or after_s is None or elapsed_s <= 0:
        return None
    return max(after_s - before_s - TICK_S, 0.0) / elapsed_s


class Window(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
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


def failures(windows: Iterable[Window]) -> dict[str, str]:
    """By the names of contenders that were dropped: why."""
    return {window.name: window.error for window in windows if window.error}


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """`until`: monotonic time. `evict`: None where caches stay hot."""

    settings: TimingSettings
    until: float
    now: Callable[[], float]
    cpu: CpuWatch
    evict: Run | None

    def trial(self, contender: Contender) -> float | Window:
        """Seconds of a call, or the window that says why it cannot be called; 0 once time is up."""
        start = self.now()
        if start >= self.until:
            return 0.0
        try:
            return trial_call_s(
                contender.run, now=self.now, warmup_s=self.settings.warmup_s, until=self.until
            )
        except Exception as error:  # noqa: BLE001  # others' code: it is dropped, and says why
            return self._failed(contender, 0, start, error)

    def eviction_s(self) -> float:
        """How long it takes to empty the caches; 0 where they stay hot."""
        if self.evict is None:
            return 0.0
        self.evict()  # the first touches memory that was never there
        start = self.now()
        self.evict()
        return self.now() - start

    def has_time_for(self, made: Plan, spare_s: float = 0.0) -> bool:
        """Whether a window's warm-up and its first reading end in time, with so much to spare."""
        calls_s = made.call_s * (1 + made.calls_per_reading) + made.between_s
        return self.now() + calls_s + spare_s <= self.until

    def window(self, contender: Contender, made: Plan, block: int) -> Window:
        """One window of it; if it raises, one that says why."""
        start = self.now()
        foreign_s = self.cpu.foreign_s()
        try:
            begin = self._warm_up(contender, made)
            latencies = self._latencies(contender, made, begin)
        except Exception as error:  # noqa: BLE001  # others' code: it is dropped, and says why
            return self._failed(contender, block, start, error)
        end = self.now()
        foreign = foreign_cores(foreign_s, self.cpu.foreign_s(), end - start)
        limit = self.settings.foreign_limit_cores(self.cpu.cpus)
        return Window(
            name=contender.name,
            block=block,
            at_s=begin,
            elapsed_s=end - begin,
            readings=np.asarray(latencies, "<f8").tobytes(),
            calls_per_reading=made.calls_per_reading,
            foreign_cores=foreign,
            disturbed=foreign is not None and foreign > limit,
            cold=self.settings.cold,
        )

    def _warm_up(self, contender: Contender, made: Plan) -> float:
        """Call it until its memory and threads are awake; the time after that."""
        end = min(self.now() + made.warmup_s, self.until)
        while True:
            contender.run()
            at = self.now()
            if at >= end:
                return at

    def _latencies(self, contender: Contender, made: Plan, begin: float) -> list[float]:
        end = min(begin + made.window_s, self.until)
        if self.evict is not None:
            return cold_latencies(
                contender.run,
                evict=self.evict,
                now=self.now,
                end=end,
                least=made.least_readings,
                until=self.until,
            )
        return call_latencies(
            contender.run,
            now=self.now,
            end=end,
            least=made.least_readings,
            calls=made.calls_per_reading,
            until=self.until,
        )

    def _failed(self, contender: Contender, block: int, at_s: float, error: Exception) -> Window:
        said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        cold = self.settings.cold
        return Window(name=contender.name, block=block, at_s=at_s, cold=cold, error=said)


OnWindow = Callable[[Window], None]
_HOPELESS_SHARE: Final = 0.8
_COLLECT_EVERY_S: Final = 2.0


def measure(
    contenders: Sequence[Contender],
    *,
    settings: TimingSettings,
    until: float,
    clock: Clock,
    cpu: CpuWatch,
    rng: np.random.Generator,
    on_window: OnWindow | None = None,
    evict: Run | None = None,
    first_block: int = 0,
) -> list[Window]:
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
    names = [contender.name for contender in contenders]
    if not names or len(set(names)) < len(names):
        raise InvalidArgumentError(
            f"contenders need names, and each its own; these are: {', '.join(names) or 'none'}"
        )
    if settings.cold and evict is None:
        evict = eviction()
    bench = Bench(
        settings=settings,
        until=until,
        now=clock.monotonic,
        cpu=cpu,
        evict=evict if settings.cold else None,
    )
    turns = _Turns(
        bench=bench,
        alive=list(contenders),
        rng=rng,
        on_window=on_window or (lambda _: None),
        first_block=first_block,
    )
    with _without_collections():
        turns.run()
    return turns.windows


@dataclass(slots=True, kw_only=True)
class _Turns:
    """Whose turn it is, and whether there is another."""

    bench: Bench
    alive: list[Contender]
    rng: np.random.Generator
    on_window: OnWindow
    first_block: int
    collect_at: float = -math.inf
    plans: dict[str, Plan] = field(default_factory=dict)
    windows: list[Window] = field(default_factory=list)
    quiet: Counter[str] = field(default_factory=Counter)
    """By contender: in how many blocks it has a window that was not disturbed."""

    def run(self) -> None:
        """Try each, then make blocks until there are enough or time is up."""
        self._plan()
        for made in range(2 * self.bench.settings.blocks):
            if not self._is_lacking(made):
                return
            self._collect()
            for contender in self._shuffled(self.alive):
                if not self.bench.has_time_for(self.plans[contender.name]):
                    return
                self._window(contender, self.first_block + made)
            self._retry(self.first_block + made)

    def _is_lacking(self, made: int) -> bool:
        wanted = self.bench.settings.blocks
        lacks = any(self.quiet[c.name] < wanted for c in self.alive) and not self._is_in_vain()
        return bool(self.alive) and (made < wanted or lacks)

    def _is_in_vain(self) -> bool:
        """Whether the machine is hardly ever quiet, so that waiting for that is lost time."""
        disturbed = sum(window.disturbed for window in self.windows)
        return disturbed > max(_HOPELESS_SHARE * len(self.windows), 2 * len(self.alive))

    def _plan(self) -> None:
        bench = self.bench
        overhead_s, between_s = reading_overhead_s(bench.now), bench.eviction_s()
        call_s = {}
        for contender in self._shuffled(self.alive):
            tried = bench.trial(contender)
            if isinstance(tried, Window):
                self._add(msgspec.structs.replace(tried, block=self.first_block))
            else:
                call_s[contender.name] = tried

        def plans(fit: float) -> dict[str, Plan]:
            return {
                name: plan(
                    taken_s,
                    overhead_s=overhead_s,
                    settings=bench.settings,
                    between_s=between_s,
                    fit=fit,
                )
                for name, taken_s in call_s.items()
            }

        self.plans = plans(fit=1.0)
        if self.plans and math.isfinite(bench.until):
            # One block more, for what is made again and for calls that end a little late.
            blocks = bench.settings.blocks + 1
            spare_s = (bench.until - bench.now()) / blocks - self._block_s()
            windows_s = sum(made.window_s for made in self.plans.values())
            self.plans = plans(fit=1 + min(spare_s / windows_s, 0.0))

    def _retry(self, block: int) -> None:
        """Make disturbed windows of the newest block again, and count who has a quiet one."""
        left = self.bench.settings.blocks - (block - self.first_block) - 1
        spare_s = max(left, 0) * self._block_s()
        for _ in range(self.bench.settings.retries):
            quiet = self._quiet_in(block)
            loud = [c for c in self.alive if c.name not in quiet]
            for contender in self._shuffled(loud):
                has_time = self.bench.has_time_for(self.plans[contender.name], spare_s)
                if has_time and not self._is_in_vain():
                    self._window(contender, block)
        self.quiet.update(self._quiet_in(block))

    def _quiet_in(self, block: int) -> set[str]:
        """Contenders with a window in this block, the newest, that was not disturbed."""
        newest = takewhile(lambda window: window.block == block, reversed(self.windows))
        return {window.name for window in newest if not window.disturbed and not window.error}

    def _block_s(self) -> float:
        return sum(self.plans[c.name].whole_s for c in self.alive)

    def _window(self, contender: Contender, block: int) -> None:
        self._add(self.bench.window(contender, self.plans[contender.name], block))

    def _add(self, window: Window) -> None:
        if window.error:
            self.alive = [other for other in self.alive if other.name != window.name]
        self.windows.append(window)
        self.on_window(window)

    def _collect(self) -> None:
        """Let go of what calls left in cycles, between windows and not too often: it takes time."""
        if self.bench.now() >= self.collect_at:
            gc.collect()
            self.collect_at = self.bench.now() + _COLLECT_EVERY_S

    def _shuffled(self, contenders: Sequence[Contender]) -> list[Contender]:
        return [contenders[i] for i in self.rng.permutation(len(contenders))]


@contextmanager
def _without_collections() -> Iterator[None]:
    """Keep Python's garbage collector from running in the midst of a window."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
