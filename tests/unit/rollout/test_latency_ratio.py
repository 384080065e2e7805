import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.rollout.latency_ratio import (
    LatencyBuckets,
    LatencyMargin,
    LatencyRatios,
    threshold_well_below,
    thresholds_near,
)
from tests.unit.rollout.readings import in_buckets, two_digits

REACH = LatencyMargin(1.25, 0.001)
LATENCIES = st.lists(st.floats(0.0011, 9.9), min_size=1, max_size=60)


def watched(
    times_slower: float, *, seconds: int, share: float = 0.5, quantile: float = 0.99
) -> LatencyRatios:
    rng = np.random.default_rng(5)
    ratios = LatencyRatios.start(quantile, REACH)
    for _ in range(seconds):
        to_candidate = int(rng.binomial(100, share))
        # The base latency moves, for both alike.
        median = 0.02 * rng.uniform(0.8, 1.5)
        a = np.exp(rng.normal(np.log(median), 0.5, 100 - to_candidate))
        b = np.exp(rng.normal(np.log(median * times_slower), 0.5, to_candidate))
        ratios.add(share, two_digits(a), two_digits(b))
    return ratios


def test_three_times_slower_is_found_within_a_few_hundred_requests() -> None:
    ratios = watched(3.0, seconds=8)

    low, high = ratios.bounds(0.0125, 0.0125, margin=1.25)

    assert low is not None
    assert low >= 1.1
    assert high is None


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.99])
def test_equal_versions_are_shown_to_be_within_the_margin(quantile: float) -> None:
    ratios = watched(1.0, seconds=150, quantile=quantile)

    low, high = ratios.bounds(0.0125, 0.0125, margin=1.25)

    assert low is None or low < 1.0
    assert high is not None
    assert high <= 1.25


def test_faster_is_told_too() -> None:
    low, high = watched(0.5, seconds=100).bounds(0.0125, 0.0125, margin=1.25)

    assert high is not None
    assert high <= 0.9
    assert low is None or low <= 0.5


def always(
    baseline_s: float, candidate_s: float, reach: LatencyMargin, *, seconds: int = 60
) -> LatencyRatios:
    """Two versions that take as long each time, 50 requests a second to either."""
    ratios = LatencyRatios.start(0.99, reach)
    for _ in range(seconds):
        ratios.add(0.5, two_digits(np.full(50, baseline_s)), two_digits(np.full(50, candidate_s)))
    return ratios


def test_a_model_that_always_takes_as_long_is_shown_to_be_within_the_margin() -> None:
    same = always(0.0205, 0.0205, LatencyMargin(1.25))
    slower = always(0.0205, 0.0405, LatencyMargin(1.25))

    # Nothing exceeds the bucket of the quantile: the differences near it say nothing.
    assert float(same.faster.log_evidence(0.0, above=False)[-1]) < np.log(20)
    assert same.log_evidence_of_tolerance() >= np.log(20)
    assert slower.log_evidence_of_tolerance() < 0.0
    assert slower.log_evidence_of_harm() >= np.log(20)


def test_a_millisecond_more_is_tolerated_whatever_the_factor() -> None:
    by_seconds = always(0.00082, 0.00122, LatencyMargin(1.25, 0.001))
    by_factor = always(0.00082, 0.00122, LatencyMargin(1.25))
    beyond_both = always(0.00082, 0.00225, LatencyMargin(1.25, 0.001))

    assert by_seconds.log_evidence_of_tolerance() >= np.log(20)
    assert by_seconds.log_evidence_of_harm() < np.log(20)
    assert by_factor.log_evidence_of_harm() >= np.log(20)
    assert beyond_both.log_evidence_of_harm() >= np.log(20)


def test_nothing_is_tested_before_the_baselines_quantile_has_a_name() -> None:
    ratios = LatencyRatios.start(0.99, REACH)
    few = in_buckets(lower_s=(0.01,), width_s=(0.001,), counts=(90,))

    for _ in range(3):
        ratios.add(0.5, few, few)
    assert ratios.slower.strata == []
    ratios.add(0.5, few, few)

    assert ratios.slower.strata != []


@given(LATENCIES, st.floats(0.001, 10.0))
def test_a_bucket_across_the_threshold_counts_on_one_side_only(
    latencies: list[float], threshold: float
) -> None:
    histogram = LatencyBuckets.of(two_digits(np.array(latencies)))
    true = sum(latency > threshold for latency in latencies)

    at_most = float(histogram.above(np.array([threshold]), whole=True)[0])
    at_least = float(histogram.above(np.array([threshold]), whole=False)[0])

    # An edge that differs from the threshold by rounding alone belongs to either side.
    near = sum(abs(latency / threshold - 1) < 1e-5 for latency in latencies)
    assert at_least - near <= true <= at_most + near


@given(LATENCIES, LATENCIES)
def test_merged_histograms_lose_nothing(first: list[float], second: list[float]) -> None:
    a, b = (LatencyBuckets.of(two_digits(np.array(values))) for values in (first, second))

    both = a.merged(b)

    assert both.total == len(first) + len(second)
    assert all(low < high for low, high in itertools.pairwise(both.lower))
    assert LatencyBuckets.empty().merged(a).counts.tolist() == a.counts.tolist()
    assert LatencyBuckets.empty().merged(LatencyBuckets.empty()).total == 0.0


@given(LATENCIES, st.floats(0.01, 0.99))
def test_a_quantile_lies_in_the_bucket_of_the_true_one(
    latencies: list[float], quantile: float
) -> None:
    found = LatencyBuckets.of(two_digits(np.array(latencies))).quantile(quantile)

    assert found is not None
    exact = float(np.quantile(latencies, quantile, method="inverted_cdf"))
    assert found == pytest.approx(exact, rel=0.11)


def test_an_empty_histogram_has_no_quantile() -> None:
    assert LatencyBuckets.empty().quantile(0.5) is None


def test_the_threshold_is_near_the_quantile_and_its_multiple_near_an_edge() -> None:
    rng = np.random.default_rng(2)
    histogram = LatencyBuckets.of(two_digits(np.exp(rng.normal(np.log(0.02), 0.5, 20_000))))

    plain, multiple = thresholds_near(
        histogram.upper, histogram.counts[None, :], quantile=0.99, reaches=(LatencyMargin(), REACH)
    )

    for tau in (float(plain[0]), float(multiple[0])):
        assert 0.004 < histogram.above(np.array([tau]), whole=False)[0] / 20_000 < 0.021
    assert round(1000 * 1.25 * float(multiple[0]), 6) == round(1000 * 1.25 * float(multiple[0]))


def test_few_wide_buckets_still_give_a_threshold() -> None:
    upper, counts = np.array([0.1, 1.0, 10.0]), np.array([[50.0, 45.0, 5.0], [0.0, 0.0, 99.0]])

    (tau,) = thresholds_near(upper, counts, quantile=0.99, reaches=(REACH,))

    assert tau.tolist() == [10.0, 10.0]


@pytest.mark.parametrize(
    ("counts", "quantile", "edge"),
    [
        ([900, 70, 20, 10], 0.99, 3.0),  # 30 of 1,000 are three times a hundredth: just enough
        ([900, 71, 19, 10], 0.99, 2.0),
        ([500, 250, 0, 250], 0.9, 2.0),  # three tenths are wanted, and the last bucket has fewer
        ([100, 600, 300, 0], 0.5, 2.0),  # not thrice the half, but half of what is above it more
        ([1000, 0, 0, 0], 0.99, 1.0),
    ],
)
def test_an_edge_well_below_a_quantile(counts: list[int], quantile: float, edge: float) -> None:
    lower, none = np.array([1.0, 2.0, 3.0, 4.0]), [0, 0, 0, 1000]

    found = threshold_well_below(lower, np.array([counts, none], float), quantile=quantile)

    assert found.tolist() == [edge, 4.0]
