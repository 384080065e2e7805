"""Which loads does a scaler have to live with? Made up, seeded, and each a known trouble."""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A load and the copies that carry it.

    `rates`: requests per second, one value per second. `lost`: seconds, from and to, in which no
    metric arrives. `start_s`: from a copy's start until it is ready; for `warm_s` after that it
    takes `warm_ratio` times as long. `service_s` is the mean run, `service_cv` its coefficient of
    variation. `max_queue`: requests in one copy; more are refused.
    """

    name: str
    about: str
    rates: npt.NDArray[np.float64]
    lost: tuple[tuple[int, int], ...] = ()
    start_s: float = 3.0
    warm_s: float = 2.0
    warm_ratio: float = 1.5
    service_s: float = 0.1
    service_cv: float = 0.3
    concurrency: int = 1
    max_queue: int = 64
    slo_latency_s: float = 0.5
    max_replicas: int = 16

    @property
    def seconds(self) -> int:
        """How long it takes."""
        return len(self.rates)

    def is_lost(self, second: float) -> bool:
        """Whether metrics are lost in this second."""
        return any(begin <= second < end for begin, end in self.lost)


def steady() -> Trace:
    """The same load for half an hour: any change of the count is for nothing."""
    return Trace(name="steady", about="35 requests/s", rates=np.full(1800, 35.0))


def flash_crowd() -> Trace:
    """Ten times the load within ten seconds, which then ebbs away."""
    seconds = np.arange(1800.0)
    ramp = np.clip((seconds - 600.0) / 10.0, 0.0, 1.0)
    ebb = np.exp(-np.maximum(seconds - 900.0, 0.0) / 180.0)
    about = "8 requests/s, from 600 s on 80, ebbing from 900 s on"
    return Trace(name="flash-crowd", about=about, rates=8.0 + 72.0 * ramp * ebb)


def diurnal() -> Trace:
    """Two days in an hour."""
    seconds = np.arange(3600.0)
    rates = 37.0 - 32.0 * np.cos(2.0 * math.pi * seconds / 1800.0)
    return Trace(name="diurnal", about="5 to 69 requests/s and back, twice", rates=rates)


def on_off() -> Trace:
    """Two minutes of work, three of nearly none."""
    seconds = np.arange(1800.0)
    about = "60 requests/s for 2 minutes, then 3 for 3 minutes"
    return Trace(name="on-off", about=about, rates=np.where(seconds % 300.0 < 120.0, 60.0, 3.0))  # noqa: PLR2004  # the trace's own numbers


def lost_metrics() -> Trace:
    """A steady load whose metrics are lost for minutes, once while it grows."""
    seconds = np.arange(1800.0)
    return Trace(
        name="lost-metrics",
        about="35 requests/s, from 1000 s on 50; no metrics from 400 to 700 and 990 to 1020 s",
        rates=np.where(seconds < 1000.0, 35.0, 50.0),  # noqa: PLR2004  # the trace's own numbers
        lost=((400, 700), (990, 1020)),
    )


def slow_start() -> Trace:
    """Copies that take most of a minute to start, when the load has already grown fivefold."""
    seconds = np.arange(1800.0)
    return Trace(
        name="slow-start",
        about="10 requests/s, from 300 s on 50; a copy starts for 45 s and is slow for 10 s",
        rates=np.where(seconds < 300.0, 10.0, 50.0),  # noqa: PLR2004  # the trace's own numbers
        start_s=45.0,
        warm_s=10.0,
        warm_ratio=2.0,
    )


TRACES: Final = {
    "steady": steady,
    "flash-crowd": flash_crowd,
    "diurnal": diurnal,
    "on-off": on_off,
    "lost-metrics": lost_metrics,
    "slow-start": slow_start,
}
