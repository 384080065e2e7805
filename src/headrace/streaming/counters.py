"""What does a stream count? Written by the thread that owns the session, read by others."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from headrace.core import Code
from headrace.observe import Histogram
from headrace.observe.histogram import SECONDS_BOUNDS
from headrace.streaming.in_flight import Due

_MANY: Final = 64
"""So many times and more are counted as an array, at a fifth of the cost."""
ROWS_BOUNDS = tuple(float(1 << power) for power in range(14))
"""Upper bounds for the sizes of micro-batches: 1, 2, 4, ... 8192 records."""


@dataclass(slots=True)
class WindowCounters:
    """What happened to windows.

    `late`: records that came too late. `keys` in memory, now. `opened` states, and `rebuilt` ones:
    those that were made again of the log, of which `incomplete` may miss what it has forgotten.
    `restored_records`: that were read only for that.
    """

    late: int = 0
    keys: int = 0
    opened: int = 0
    rebuilt: int = 0
    incomplete: int = 0
    restored_records: int = 0
    checkpoints: Histogram = field(default_factory=Histogram)


@dataclass(slots=True)
class Counters:
    """What happened since the worker started.

    `runs` of the model, and `rows` in them: a batch of records with several shapes is several runs.
    `latency`: from a record's timestamp until its answer was handed to the broker. `without`:
    records that have no answer, by why; `letters` of them are in the dead-letter topic.
    """

    read: int = 0
    answered: int = 0
    letters: int = 0
    without: dict[Code, int] = field(default_factory=dict)
    batches: Histogram = field(default_factory=lambda: Histogram(ROWS_BOUNDS))
    score: Histogram = field(default_factory=Histogram)
    latency: Histogram = field(default_factory=Histogram)
    deliver: Histogram = field(default_factory=Histogram)
    runs: int = 0
    rows: int = 0
    retries: int = 0
    sessions: int = 0
    gained: int = 0
    given_up: int = 0
    lost: int = 0
    windows: WindowCounters = field(default_factory=WindowCounters)

    def scored(self, *, seconds: float, runs: int, rows: int) -> None:
        """A batch was scored, or tried."""
        self.score.observe(seconds)
        self.runs += runs
        self.rows += rows

    def delivered(self, due: Due, *, now_s: float, seconds: float) -> None:
        """Some answers were handed to the broker.

        Args:
            now_s: Unix time.
            seconds: How long that took.
        """
        self.deliver.observe(seconds)
        self.answered += len(due.answered)
        _observe_ages(self.latency, [record.timestamp_s for record in due.answered], now_s)
        for one in due.without:
            code = one.error.code
            self.without[code] = self.without.get(code, 0) + 1
            self.letters += one.letter is not None


_SECONDS: Final = np.array(SECONDS_BOUNDS)


def _observe_ages(histogram: Histogram, times_s: Sequence[float], now_s: float) -> None:
    """Count how old each of these Unix times is; what is not known (0) is left out."""
    if len(times_s) < _MANY:
        histogram.observe_all([max(now_s - at_s, 0.0) for at_s in times_s if at_s > 0])
        return
    times = np.array(times_s)
    ages = np.maximum(now_s - times[times > 0], 0.0)
    for place, count in enumerate(np.bincount(np.searchsorted(_SECONDS, ages)).tolist()):
        histogram.counts[place] += count
    histogram.sum += float(ages.sum())
