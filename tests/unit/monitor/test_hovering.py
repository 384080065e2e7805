"""Alerts whose value hovers exactly at its limit for days: how often they begin to fire."""

from collections.abc import Iterator

import numpy as np
import pytest

from headrace.monitor.alert_kinds import ALERTS
from headrace.monitor.alert_state import Alert, AlertReading, AlertState, Key, advance, changed
from headrace.monitor.slo import ConditionReading, windows_of

RATE = 30
"""Requests a second."""
DAYS = 3
DAY_S = 86_400
STEP_S = 10


def readings(name: str, bad_ratio: float) -> Iterator[ConditionReading]:
    """Whether the share of bad requests is above `bad_ratio`, its own mean, in all windows."""
    kind = next(kind for kind in ALERTS if kind.name == name)
    lengths = [round(length) for length in windows_of(kind.condition)]
    counts = np.random.default_rng(7).binomial(RATE, bad_ratio, size=DAYS * DAY_S + max(lengths))
    sums = np.concatenate([[0], np.cumsum(counts)])
    ends = np.arange(max(lengths), sums.size - 1, STEP_S)
    shares = [(sums[ends] - sums[ends - length]) / (length * RATE) for length in lengths]
    for share in np.min(shares, axis=0):
        yield ConditionReading(
            value=float(share), threshold=bad_ratio, is_bad=bool(share > bad_ratio)
        )


def begins(name: str, bad_ratio: float, *, keeps: bool) -> float:
    """How often an alert begins to fire in a day."""
    kind = next(kind for kind in ALERTS if kind.name == name)
    alerts: dict[Key, Alert] = {}
    count = 0
    for step, reading in enumerate(readings(name, bad_ratio)):
        finding = AlertReading(
            kind=kind,
            endpoint="fraud",
            reading=reading,
            for_s=kind.for_s,
            keep_firing_for_s=kind.keep_firing_for_s if keeps else 0.0,
        )
        after = advance(alerts, [finding], now=float(step * STEP_S))
        count += sum(one.state is AlertState.FIRING for one in changed(alerts, after))
        alerts = after
    return count / DAYS


@pytest.mark.parametrize(
    ("name", "bad_ratio", "at_most"),
    [
        ("HeadraceLatencyP99", 0.01, 20.0),
        ("HeadraceErrorBudgetFast", 0.0144, 30.0),
        ("HeadraceErrorBudgetMedium", 0.006, 6.0),
    ],
)
def test_a_value_at_its_limit_makes_few_alerts(name: str, bad_ratio: float, at_most: float) -> None:
    flapping = begins(name, bad_ratio, keeps=False)

    kept = begins(name, bad_ratio, keeps=True)

    assert 0 < kept <= at_most
    assert kept < flapping / 4, (kept, flapping)
