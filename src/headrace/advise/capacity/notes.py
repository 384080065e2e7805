"""Which assumption of a plan fails when, and what to do about it?"""

from typing import Final

from headrace.advise.capacity.fleet import Promise
from headrace.advise.capacity.forecast import Forecast
from headrace.advise.capacity.service import MOST_ROWS, ServiceCurve

_START: Final = (
    "replicas are there when the load is: an autoscaler is late by a start, so keep min_replicas "
    "for the fastest rise, or a schedule"
)
_LONG: Final = (
    "requests are alike: one of many rows or a long text holds up all behind it in its replica; "
    "plan those as an endpoint of their own, or give --service-cv their spread"
)


_DISTURBED: Final = 1.0


def assumptions(curve: ServiceCurve, promise: Promise, forecast: Forecast) -> tuple[str, ...]:
    """For people, those that matter here."""
    found = []
    if promise.burstiness <= 1.0:
        found.append(
            "arrivals come by chance (Poisson) around the forecast's rate: callers that retry or "
            "wake together are burstier; measure with `headrace plan mode --log`, say --burstiness"
        )
    if forecast.peak_factor == 1.0:
        found.append(
            "the forecast's highest rate is that of its busiest second: where it holds averages, "
            "say --peak-factor"
        )
    if len(forecast.curve.rates) > 1:
        found.append(_START)
    found.append(_LONG)
    cv = curve.spread.squared_cv**0.5
    if cv > _DISTURBED:
        found.append(
            f"single runs vary by {cv:.2g} times their mean: that is seldom the model, mostly "
            "other programs; profile it again on a quiet machine"
        )
    if curve.places < curve.runs:
        found.append(
            f"runs are so short that the event loop does one after the other: {curve.runs} at once "
            "count as 1; give a replica one core"
        )
    if curve.max_rows > MOST_ROWS:
        found.append(f"batches of over {MOST_ROWS} rows are reckoned as {MOST_ROWS}")
    if promise.p99_s is None:
        found.append(
            f"no p99 is promised: replicas are as busy as {promise.most_busy_ratio:.0%} of their "
            "capacity; say --p99"
        )
    return tuple(found)
