"""How sure is a prediction, and how long must a load last that checks it? By simulating again."""

import math
from dataclasses import replace
from typing import Final

import msgspec
import numpy as np

from headrace.core import Array
from headrace.optimize.profiling.options import duration
from headrace.optimize.profiling.predict import (
    USUAL_LOAD,
    Interval,
    Point,
    Prediction,
    Predictor,
    point_of,
)
from headrace.optimize.profiling.recommend import Reason, Recommendation

KNOWN_RATIO: Final = 0.1
"""The standard deviation of a load's p99 from which on it counts as known."""
_WIDE: Final = 0.3
"""An interval that is wider than this share of the p99 is worth more time."""
_WINDOWS: Final = 60
_LEAST_WINDOWS: Final = 10
_LEAST_REQUESTS: Final = 300
_LONGEST_S: Final = 3600.0
_LEVELS: Final = 5
_SEEDS: Final = 3
_LEAST_REACH: Final = 0.05


def surely_predicted(prediction: Prediction, predictor: Predictor) -> Prediction:
    """The prediction with intervals: of the capacity, and of p99 at the usual share of it.

    Args:
        predictor: That made it.
    """
    phases = predictor.phases
    if phases is None:
        return prediction
    usual = prediction.at(USUAL_LOAD)
    sure = msgspec.structs.replace(usual, p99_ci_s=p99_interval(predictor, usual))
    return msgspec.structs.replace(
        prediction,
        curve=tuple(sure if point is usual else point for point in prediction.curve),
        capacity_ci=(
            prediction.capacity / phases.next_ratio,
            prediction.capacity * phases.next_ratio,
        ),
        drift_ratio=phases.spread_ratio,
    )


def surely_recommended(
    recommendation: Recommendation, prediction: Prediction, predictor: Predictor
) -> Recommendation:
    """The recommendation with an interval of its p99, and how that can be checked."""
    rate = recommendation.rate
    assert rate is not None, "it was just made"
    outcome = predictor.surely().outcome(rate)
    point = point_of(outcome, rate, prediction.capacity)
    found = p99_interval(predictor, point)
    check_s = seconds_to_know(outcome.latency_s, rate=rate)
    reasons = [_why_sure(point.p99_s, found, prediction.drift_ratio)]
    if check_s is not None:
        value = f"headrace load URL --rate {rate:.4g} --seconds {check_s:.0f}"
        why = "so long takes a load until its p99 is known to about 10 %"
        reasons.append(Reason(name="to check", value=value, why=why))
    return msgspec.structs.replace(
        recommendation,
        p99_ci_s=found,
        check_s=check_s,
        reasons=(*recommendation.reasons, *reasons),
    )


def p99_interval(predictor: Predictor, point: Point) -> Interval | None:
    """Where the p99 at the point's rate lies in 95 of 100 other stretches of the machine.

    That is what a machine has that takes as much more, or less, for everything, at the same rate.
    What an engine learns of its batches makes single simulations jump, so that a curve is laid
    through several: a parabola through the logarithms. None where nothing is known of its phases.
    """
    rough, phases = predictor.roughly(), predictor.phases
    if phases is None:
        return None
    reach = math.log(phases.next_ratio)
    levels = np.linspace(-1.0, 1.0, _LEVELS) * max(reach, _LEAST_REACH)
    p99s_s = [
        [
            replace(rough, seed=seed, phases=phases.times(math.exp(level)))
            .outcome(point.rate)
            .quantile_s(0.99)
            for level in levels
        ]
        for seed in range(1, _SEEDS + 1)
    ]
    curve = np.polyfit(levels, np.log(p99s_s).mean(axis=0), 2)
    low, usual, high = np.polyval(curve, (-reach, 0.0, reach))
    return (
        point.p99_s * math.exp(min(low - usual, 0.0)),
        point.p99_s * math.exp(max(high - usual, 0.0)),
    )


def seconds_to_know(latency_s: Array, *, rate: float) -> float | None:
    """How long a load has to last for a standard deviation of its p99 of `KNOWN_RATIO`.

    By the p99 of stretches of a simulation, whose deviation falls as the root of their length.
    None where the simulation is too short to tell.
    """
    windows = min(_WINDOWS, len(latency_s) // _LEAST_REQUESTS)
    if windows < _LEAST_WINDOWS:
        return None
    size = len(latency_s) // windows
    p99s = np.quantile(latency_s[: windows * size].reshape(windows, size), 0.99, axis=1)
    deviation = float(p99s.std(ddof=1) / p99s.mean())
    return min(max(size / rate * (deviation / KNOWN_RATIO) ** 2, 1.0), _LONGEST_S)


def _why_sure(p99_s: float, found: Interval | None, drift_ratio: float | None) -> Reason:
    if found is None or drift_ratio is None:
        why = "how sure that is cannot be said of so few rounds: more --budget"
        return Reason(name="p99", value=duration(p99_s), why=why)
    low, high = found
    why = f"95 % interval, as the machine's speed varied by {drift_ratio:.1%} between rounds"
    if high - low > _WIDE * p99_s:
        why += "; that is wide: more --budget or a quieter machine is needed to know it better"
    value = f"{duration(p99_s)} [{duration(low)}, {duration(high)}]"
    return Reason(name="p99", value=value, why=why)
