"""What is measured: contenders in windows of time, and how long those are."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec
import numpy as np

from headrace.core import Array
from headrace.core.errors import InvalidArgumentError


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
