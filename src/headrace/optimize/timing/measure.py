"""Time contenders side by side on a machine that others use too.

They take turns: a block holds one short window of each, in an order that is drawn anew. Whatever
comes and goes more slowly than a block meets all of them, and what comes faster meets each as often
as the others; so differences within a block hold where times do not.
"""

import gc
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Final

import numpy as np

from headrace.core.clock import Clock
from headrace.core.errors import InvalidArgumentError
from headrace.optimize.timing.cpu import TICK_S, CpuWatch
from headrace.optimize.timing.evict import eviction
from headrace.optimize.timing.loop import (
    Plan,
    Run,
    call_latencies,
    cold_latencies,
    plan,
    reading_overhead_s,
    trial_call_s,
)
from headrace.optimize.timing.window import Contender, TimingSettings, Window

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
    session = _Session(
        settings=settings,
        until=until,
        now=clock.monotonic,
        cpu=cpu,
        rng=rng,
        on_window=on_window or (lambda _: None),
        evict=evict if settings.cold else None,
        alive=list(contenders),
    )
    with _without_collections():
        session.run()
    return session.windows


@dataclass(slots=True, kw_only=True)
class _Session:
    """One measurement as it goes on."""

    settings: TimingSettings
    until: float
    now: Callable[[], float]
    cpu: CpuWatch
    rng: np.random.Generator
    on_window: OnWindow
    evict: Run | None
    alive: list[Contender]
    collect_at: float = -math.inf
    plans: dict[str, Plan] = field(default_factory=dict)
    windows: list[Window] = field(default_factory=list)
    quiet: Counter[str] = field(default_factory=Counter)
    """By contender: in how many blocks it has a window that was not disturbed."""

    def run(self) -> None:
        """Try each, then make blocks until there are enough or time is up."""
        self._plan()
        for block in range(2 * self.settings.blocks):
            if not self._is_lacking(block):
                return
            self._collect()
            for contender in self._shuffled(self.alive):
                if not self._has_time_for(contender):
                    return
                self._window(contender, block)
            self._retry(block)

    def _collect(self) -> None:
        """Let go of what calls left in cycles, between windows and not too often: it takes time."""
        if self.now() >= self.collect_at:
            gc.collect()
            self.collect_at = self.now() + _COLLECT_EVERY_S

    def _is_lacking(self, block: int) -> bool:
        wanted = self.settings.blocks
        lacks = any(self.quiet[c.name] < wanted for c in self.alive) and not self._is_in_vain()
        return bool(self.alive) and (block < wanted or lacks)

    def _is_in_vain(self) -> bool:
        """Whether the machine is hardly ever quiet, so that waiting for that is lost time."""
        disturbed = sum(window.disturbed for window in self.windows)
        return disturbed > max(_HOPELESS_SHARE * len(self.windows), 2 * len(self.alive))

    def _plan(self) -> None:
        overhead_s, between_s = reading_overhead_s(self.now), self._eviction_s()
        call_s = {c.name: self._trial(c) for c in self._shuffled(self.alive)}

        def plans(fit: float) -> dict[str, Plan]:
            return {
                c.name: plan(
                    call_s[c.name],
                    overhead_s=overhead_s,
                    settings=self.settings,
                    between_s=between_s,
                    fit=fit,
                )
                for c in self.alive
            }

        self.plans = plans(fit=1.0)
        if self.alive and math.isfinite(self.until):
            # One block more, for what is made again and for calls that end a little late.
            blocks = self.settings.blocks + 1
            spare_s = (self.until - self.now()) / blocks - self._block_s()
            windows_s = sum(made.window_s for made in self.plans.values())
            self.plans = plans(fit=1 + min(spare_s / windows_s, 0.0))

    def _trial(self, contender: Contender) -> float:
        """Seconds of a call; the contender is dropped if it raises."""
        start = self.now()
        if start >= self.until:
            return 0.0
        try:
            return trial_call_s(
                contender.run,
                now=self.now,
                warmup_s=self.settings.warmup_s,
                until=self.until,
            )
        except Exception as error:  # noqa: BLE001  # a contender is code of others: dropped, and it says why
            self._drop(contender, 0, start, error)
            return 0.0

    def _eviction_s(self) -> float:
        if self.evict is None:
            return 0.0
        self.evict()  # the first touches memory that was never there
        start = self.now()
        self.evict()
        return self.now() - start

    def _retry(self, block: int) -> None:
        """Make disturbed windows of the newest block again, and count who has a quiet one."""
        spare_s = max(self.settings.blocks - block - 1, 0) * self._block_s()
        for _ in range(self.settings.retries):
            quiet = self._quiet_in(block)
            loud = [c for c in self.alive if c.name not in quiet]
            for contender in self._shuffled(loud):
                if self._has_time_for(contender, spare_s) and not self._is_in_vain():
                    self._window(contender, block)
        self.quiet.update(self._quiet_in(block))

    def _quiet_in(self, block: int) -> set[str]:
        """Contenders with a window in this block, the newest, that was not disturbed."""
        newest = takewhile(lambda window: window.block == block, reversed(self.windows))
        return {window.name for window in newest if not window.disturbed and not window.error}

    def _has_time_for(self, contender: Contender, spare_s: float = 0.0) -> bool:
        """Whether the window's warm-up and its least readings end in time."""
        made = self.plans[contender.name]
        calls_s = made.call_s * made.calls_per_reading + made.between_s
        return self.now() + made.call_s + calls_s + spare_s <= self.until

    def _block_s(self) -> float:
        return sum(self.plans[c.name].whole_s for c in self.alive)

    def _window(self, contender: Contender, block: int) -> None:
        start = self.now()
        foreign_s = self.cpu.foreign_s()
        try:
            begin = self._warm_up(contender)
            latencies = self._latencies(contender, begin)
        except Exception as error:  # noqa: BLE001  # a contender is code of others: dropped, and it says why
            self._drop(contender, block, start, error)
            return
        end = self.now()
        foreign = foreign_cores(foreign_s, self.cpu.foreign_s(), end - start)
        limit = self.settings.foreign_limit_cores(self.cpu.cpus)
        self._add(
            Window(
                name=contender.name,
                block=block,
                at_s=begin,
                elapsed_s=end - begin,
                readings=np.asarray(latencies, "<f8").tobytes(),
                calls_per_reading=self.plans[contender.name].calls_per_reading,
                foreign_cores=foreign,
                disturbed=foreign is not None and foreign > limit,
                cold=self.settings.cold,
            )
        )

    def _warm_up(self, contender: Contender) -> float:
        """Call it until its memory and threads are awake; the time after that."""
        end = min(self.now() + self.plans[contender.name].warmup_s, self.until)
        while True:
            contender.run()
            at = self.now()
            if at >= end:
                return at

    def _latencies(self, contender: Contender, begin: float) -> list[float]:
        made = self.plans[contender.name]
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

    def _drop(self, contender: Contender, block: int, at_s: float, error: Exception) -> None:
        self.alive = [other for other in self.alive if other is not contender]
        said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        cold = self.settings.cold
        self._add(Window(name=contender.name, block=block, at_s=at_s, cold=cold, error=said))

    def _add(self, window: Window) -> None:
        self.windows.append(window)
        self.on_window(window)

    def _shuffled(self, contenders: Sequence[Contender]) -> list[Contender]:
        return [contenders[i] for i in self.rng.permutation(len(contenders))]


def foreign_cores(before_s: float | None, after_s: float | None, elapsed_s: float) -> float | None:
    """How many cores others used on average, less what the kernel's sums may be off by."""
    if before_s is None or after_s is None or elapsed_s <= 0:
        return None
    return max(after_s - before_s - TICK_S, 0.0) / elapsed_s


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
