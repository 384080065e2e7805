"""How long does a run take, one or several at once? A small loop; whoever measures better takes it.

What other processes used of the machine meanwhile is told with the figures, not taken out of them.
"""

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from headrace.optimize.profiling.messages import Cell

Clock = Callable[[], float]

KEPT: Final = 200
"""How many samples of a cell are kept."""
_LEAST_RUNS: Final = 3
_STAT: Final = Path("/proc/stat")
_BUSY_FIELDS: Final = (0, 1, 2, 5, 6, 7)
"""Of `cpu`: user, nice, system, irq, softirq, steal; the rest is idle, or counted in these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is measured: a cell without figures."""

    threads: int
    runs: int
    rows: int
    length: int

    @property
    def text(self) -> str:
        """For people."""
        length = f", length {self.length}" if self.length else ""
        at_once = f", {self.runs} at once" if self.runs > 1 else ""
        threads = f", {self.threads} threads" if self.threads > 1 else ""
        return f"{self.rows} row{'' if self.rows == 1 else 's'}{length}{at_once}{threads}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The times of runs that followed each other, as they came."""

    samples_s: list[float]
    elapsed_s: float
    foreign_ratio: float


def time_runs(
    run: Callable[[], object],
    setting: Setting,
    *,
    seconds: float,
    clock: Clock = time.perf_counter,
) -> Cell:
    """The figures of one window of about `seconds`.

    Raises:
        Exception: What `run` raised, in whichever thread.
    """
    least = max(1, -(-_LEAST_RUNS // setting.runs))
    window = time_window(run, setting, seconds=seconds, least=least, clock=clock)
    return cell_of(
        setting,
        window.samples_s,
        elapsed_s=window.elapsed_s,
        foreign_ratio=window.foreign_ratio,
    )


def time_window(
    run: Callable[[], object],
    setting: Setting,
    *,
    seconds: float = 0.0,
    least: int,
    clock: Clock = time.perf_counter,
) -> Window:
    """Call `run` over and over, from as many threads as the setting has runs at once.

    Args:
        run: One run; may be called from several threads at once.
        seconds: For how long.
        least: So many calls are made of each thread, however long they take.

    Raises:
        Exception: What `run` raised, in whichever thread.
    """
    busy, own = _busy_s(_STAT.read_text()), time.process_time()
    callers = [_Caller(run=run, clock=clock) for _ in range(setting.runs)]
    started = clock()
    if len(callers) == 1:
        callers[0].call(until=started + seconds, least=least)
    else:
        threads = [
            threading.Thread(
                target=caller.call, kwargs={"until": started + seconds, "least": least}
            )
            for caller in callers
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    elapsed = clock() - started
    for caller in callers:
        if caller.error is not None:
            raise caller.error
    foreign = _busy_s(_STAT.read_text()) - busy - (time.process_time() - own)
    samples = [sample for caller in callers for sample in caller.samples]
    machine_s = elapsed * (os.cpu_count() or 1)
    return Window(
        samples_s=samples,
        elapsed_s=elapsed,
        foreign_ratio=min(max(foreign / machine_s, 0.0), 1.0),
    )


def cell_of(
    setting: Setting, samples_s: list[float], *, elapsed_s: float, foreign_ratio: float = 0.0
) -> Cell:
    """The figures of samples that were taken in `elapsed_s`."""
    times = np.sort(np.asarray(samples_s, float))
    return Cell(
        threads=setting.threads,
        runs=setting.runs,
        rows=setting.rows,
        length=setting.length,
        samples_s=kept(times),
        count=len(times),
        mean_s=float(times.mean()),
        p50_s=float(np.quantile(times, 0.5)),
        p99_s=float(np.quantile(times, 0.99)),
        rows_per_s=len(times) * setting.rows / elapsed_s,
        foreign_ratio=round(foreign_ratio, 4),
    )


def kept(
    ascending: "np.ndarray[tuple[int], np.dtype[np.float64]]", most: int = KEPT
) -> tuple[float, ...]:
    """At most so many values with the same mean: of many, the means of neighbours."""
    parts = np.array_split(ascending, most) if len(ascending) > most else ascending
    return tuple(round(float(np.mean(part)), 9) for part in parts)


@dataclass(slots=True, kw_only=True)
class _Caller:
    run: Callable[[], object]
    clock: Clock
    samples: list[float] = field(default_factory=list)
    error: Exception | None = None

    def call(self, until: float, least: int) -> None:
        run, clock, samples = self.run, self.clock, self.samples
        try:
            before = clock()
            while before < until or len(samples) < least:
                run()
                after = clock()
                samples.append(after - before)
                before = after
        except Exception as error:  # noqa: BLE001  # a model's; the caller's thread raises it again
            self.error = error


def _busy_s(stat: str) -> float:
    """Processor time of all processes since boot, by the text of /proc/stat."""
    fields = stat.partition("\n")[0].split()[1:]
    ticks = sum(int(fields[place]) for place in _BUSY_FIELDS if place < len(fields))
    return ticks / os.sysconf("SC_CLK_TCK")
