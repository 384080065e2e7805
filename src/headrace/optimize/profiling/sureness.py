"""How sure is a prediction, and how long must a load last that checks it? By simulating again."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import msgspec
import numpy as np

from headrace.core import Array
from headrace.optimize.profiling.options import USUAL_LOAD, duration
from headrace.optimize.profiling.predict import Interval, Prediction, Predictor
from headrace.optimize.profiling.recommend import Reason, Recommendation

RESAMPLES: Final = 50
FEW_REQUESTS: Final = 5_000
"""Are simulated for each of these."""
KNOWN_RATIO: Final = 0.1
"""The standard deviation of a load's p99 from which on it counts as known."""
_WIDE: Final = 0.3
"""An interval that is wider than this share of the p99 is worth more time."""
_WINDOWS: Final = 30
_LEAST_WINDOWS: Final = 10
_LEAST_REQUESTS: Final = 300
_LONGEST_S: Final = 3600.0
_NEARLY: Final = 0.01


def surely_predicted(
    prediction: Prediction, predictor: Predictor, varied: Sequence[Predictor]
) -> Prediction:
    """The prediction with intervals, of the capacity and of the p99 at the usual load.

    Args:
        predictor: That made it.
        varied: As other stretches of the machine would predict; may be empty.
    """
    if not varied or predictor.phases is None:
        return prediction
    usual = prediction.at(USUAL_LOAD)
    sure = msgspec.structs.replace(usual, p99_ci_s=p99_interval(usual.rate, predictor, varied))
    capacity = replace(predictor, requests=varied[0].requests).capacity()
    ratios = [one.capacity() / capacity for one in varied]
    return msgspec.structs.replace(
        prediction,
        curve=tuple(sure if point is usual else point for point in prediction.curve),
        capacity_ci=_interval(prediction.capacity, ratios),
        drift_ratio=predictor.phases.spread_ratio,
    )


def surely_recommended(
    recommendation: Recommendation,
    prediction: Prediction,
    predictor: Predictor,
    varied: Sequence[Predictor],
) -> Recommendation:
    """The recommendation with an interval of its p99, and how that can be checked."""
    rate = recommendation.rate
    assert rate is not None, "it was just made"
    usual = prediction.at(USUAL_LOAD)
    found = usual.p99_ci_s
    if varied and abs(rate / usual.rate - 1.0) > _NEARLY:
        found = p99_interval(rate, predictor, varied)
    check_s = seconds_to_know(predictor.outcome(rate).latency_s, rate=rate)
    reasons = [_why_sure(recommendation.p99_s, found, prediction.drift_ratio)]
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


def p99_interval(rate: float, predictor: Predictor, varied: Sequence[Predictor]) -> Interval:
    """Where the p99 at one rate lies in 95 of 100 other stretches of the machine.

    What the resamples say is taken relative to what as few requests say of the measurement itself:
    all of them meet the same arrivals, so that the chance in these cancels.
    """
    point = predictor.point(rate, rate).p99_s
    base = replace(predictor, requests=varied[0].requests).outcome(rate).quantile_s(0.99)
    return _interval(point, [one.outcome(rate).quantile_s(0.99) / base for one in varied])


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


def _interval(value: float, ratios: Sequence[float]) -> Interval:
    low, high = np.quantile(ratios, (0.025, 0.975))
    assert math.isfinite(high), "every simulation ends"
    return float(value * min(low, 1.0)), float(value * max(high, 1.0))
