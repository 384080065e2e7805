"""Where a contender is timed for one window, while it is seen who else uses the processor."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from headrace.optimize.timing.cpu import TICK_S, CpuWatch
from headrace.optimize.timing.loop import Plan, Run, call_latencies, cold_latencies, trial_call_s
from headrace.optimize.timing.window import Contender, TimingSettings, Window


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


def foreign_cores(before_s: float | None, after_s: float | None, elapsed_s: float) -> float | None:
    """How many cores others used on average, less what the kernel's sums may be off by."""
    if before_s is None or after_s is None or elapsed_s <= 0:
        return None
    return max(after_s - before_s - TICK_S, 0.0) / elapsed_s
