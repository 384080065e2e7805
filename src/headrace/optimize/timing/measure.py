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

import msgspec
import numpy as np

from headrace.core.clock import Clock
from headrace.core.errors import InvalidArgumentError
from headrace.optimize.timing.bench import Bench
from headrace.optimize.timing.cpu import CpuWatch
from headrace.optimize.timing.evict import eviction
from headrace.optimize.timing.loop import Plan, Run, plan, reading_overhead_s
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
