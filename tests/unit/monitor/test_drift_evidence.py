"""What is bet on a feature, and that the bets are fair where nothing drifted."""

import math

import numpy as np
import pytest

from headrace.core import Array
from headrace.monitor.drift_evidence import Spans, log_evidence, nulls_of
from headrace.monitor.drift_reference import feature_reference
from headrace.observe.features import ValueCounts, count_column


def evidence(reference: Array, live: Array, *, margin: float = 0.1, wrong: float = 0.02) -> float:
    one = feature_reference("x", "input", reference)
    nulls = nulls_of(one, alpha=0.001, margin=margin, violations_margin=wrong)
    return float(log_evidence(one, nulls, Spans.of(one, [count_column(live, one.bins)]))[0])


def test_evidence_grows_with_the_difference_and_the_rows() -> None:
    random = np.random.default_rng(2)
    reference, live = random.normal(size=5000), random.normal(size=1000)

    assert evidence(reference, live) < 0
    assert evidence(reference, live + 1) > evidence(reference, live[:200] + 1) > math.log(1000)
    assert evidence(reference, live + 2) > evidence(reference, live + 1)


def test_no_rows_are_no_evidence() -> None:
    assert evidence(np.arange(500.0), np.array([])) == pytest.approx(0.0)


def test_a_small_reference_allows_more() -> None:
    random = np.random.default_rng(2)
    live = random.normal(size=1000) + 1

    assert evidence(random.normal(size=150), live) < evidence(random.normal(size=5000), live)


def test_where_everything_is_allowed_nothing_is_refuted() -> None:
    random = np.random.default_rng(2)
    reference, far = random.normal(size=500), random.normal(size=500) + 9

    assert evidence(reference, far, margin=0.999, wrong=0.999) == pytest.approx(0.0)


@pytest.mark.slow
def test_the_mean_capital_stays_what_it_was_at_the_worst_that_is_allowed() -> None:
    """The law that all rests on: without drift the expected capital is at most one."""
    random = np.random.default_rng(3)
    one = feature_reference("x", "input", random.normal(size=3000))
    nulls = nulls_of(one, alpha=0.001, margin=0.05, violations_margin=0.02)
    edges = len(one.bins.edges)
    worst = nulls.largest[0, edges // 2]  # so many below the middle edge, the rest far above
    rows = 40
    below = random.binomial(rows, worst, size=4000)
    streams = []
    for count in below:
        bins = [0] * one.bins.size
        bins[edges // 2], bins[edges // 2 + 1] = int(count), rows - int(count)
        streams.append(ValueCounts(rows=rows, bins=bins))
    middle = np.zeros_like(nulls.largest)
    middle[0, edges // 2] = 1
    only = type(nulls)(largest=np.where(middle == 1, nulls.largest, 1.0), of_valid=nulls.of_valid)

    capital = np.exp(log_evidence(one, only, Spans.of(one, streams)))

    assert capital.mean() == pytest.approx(1.0, abs=0.02)
