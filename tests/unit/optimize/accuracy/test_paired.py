"""Tests and intervals of paired answers keep what they promise."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.optimize.accuracy.verdict import (
    detectable_loss,
    is_refuted,
    loss_bound,
    loss_interval,
    mcnemar_p,
    needed_examples,
)

COUNTS = st.integers(0, 400)


@given(COUNTS, COUNTS)
def test_the_p_value_is_a_probability_and_knows_no_sides(lost: int, gained: int) -> None:
    p = mcnemar_p(lost, gained)

    assert 0.0 <= p <= 1.0
    assert p == mcnemar_p(gained, lost)


@given(st.integers(0, 60), st.integers(0, 60))
def test_the_p_value_is_the_sum_of_the_binomial_tails(lost: int, gained: int) -> None:
    changed, fewer = lost + gained, min(lost, gained)
    tail = sum(math.comb(changed, k) for k in range(fewer + 1)) / 2**changed

    assert mcnemar_p(lost, gained) == pytest.approx(min(1.0, 2 * tail), rel=1e-9)


@pytest.mark.parametrize(
    ("lost", "gained", "p"),
    [(49, 36, 0.19), (19, 20, 1.0), (12, 13, 1.0), (13, 16, 0.71), (73, 48, 0.03), (164, 85, 0.0)],
)
def test_published_changes_have_their_p_value(lost: int, gained: int, p: float) -> None:
    assert round(mcnemar_p(lost, gained), 2) == p


def test_a_million_changes_need_no_million_digits() -> None:
    assert mcnemar_p(500_000, 500_000) == 1.0
    assert mcnemar_p(600_000, 400_000) == 0.0
    assert mcnemar_p(501_000, 499_000) == pytest.approx(0.0456, abs=1e-3)


@given(COUNTS, COUNTS, st.integers(1, 5_000), st.sampled_from([0.9, 0.95, 0.99]))
def test_swapping_the_models_mirrors_the_interval(
    lost: int, gained: int, same: int, confidence: float
) -> None:
    n = lost + gained + same
    low, high = loss_interval(lost, gained, n, confidence=confidence)

    assert loss_interval(gained, lost, n, confidence=confidence) == (-high, -low)
    assert -1.0 <= low - 1e-9 <= (lost - gained) / n <= high + 1e-9 <= 1.0 + 2e-9
    assert loss_bound(lost, gained, n, confidence=confidence) <= high + 1e-9


@given(COUNTS, COUNTS, st.integers(1, 5_000))
def test_more_confidence_is_a_wider_interval(lost: int, gained: int, same: int) -> None:
    n = lost + gained + same
    low, high = loss_interval(lost, gained, n, confidence=0.9)
    wide_low, wide_high = loss_interval(lost, gained, n, confidence=0.99)

    assert wide_low < low
    assert high < wide_high


def test_the_interval_is_tangos() -> None:
    # 21 children, reactive airways before and after a transplantation: 1 and 7 changed. Fagerland,
    # Lydersen and Laake 2014, "Recommended tests and confidence intervals for paired binomial
    # proportions", Statistics in Medicine 33:2850.
    assert loss_interval(1, 7, 21, confidence=0.95) == pytest.approx((-0.517, -0.026), abs=5e-4)


@pytest.mark.parametrize("n", [50, 200])
@pytest.mark.parametrize(
    ("lost", "gained"),
    [(0.005, 0.005), (0.02, 0.005), (0.03, 0.001), (0.05, 0.05), (0.1, 0.02), (0.2, 0.1)],
)
def test_intervals_cover_the_true_loss(n: int, lost: float, gained: float) -> None:
    """Exactly, by all that can happen: no simulation that might be lucky."""
    covered = bounded = 0.0
    for b in range(n + 1):
        for c in range(n + 1 - b):
            log_chance = math.lgamma(n + 1) - math.lgamma(b + 1) - math.lgamma(c + 1)
            log_chance += b * math.log(lost) + c * math.log(gained) - math.lgamma(n - b - c + 1)
            log_chance += (n - b - c) * math.log1p(-lost - gained)
            if log_chance < -12:
                continue
            low, high = loss_interval(b, c, n, confidence=0.95)
            chance = math.exp(log_chance)
            covered += chance * (low <= lost - gained <= high)
            bounded += chance * (lost - gained <= loss_bound(b, c, n, confidence=0.95))

    assert covered >= 0.93
    assert bounded >= 0.93


@pytest.mark.parametrize("changed", [5, 12, 25, 85, 249, 1_000])
def test_the_test_errs_no_more_often_than_it_says(changed: int) -> None:
    chances = [
        math.exp(
            math.lgamma(changed + 1)
            - math.lgamma(k + 1)
            - math.lgamma(changed - k + 1)
            - changed * math.log(2)
        )
        for k in range(changed + 1)
    ]
    rejected = sum(p for k, p in enumerate(chances) if mcnemar_p(k, changed - k) < 0.05)

    assert rejected <= 0.05


def test_without_a_change_the_loss_is_bounded_by_the_number_of_examples() -> None:
    assert loss_bound(0, 0, 267, confidence=0.95) > 0.01
    assert loss_bound(0, 0, 268, confidence=0.95) <= 0.01


@pytest.mark.parametrize(("changed", "n"), [(0.0, 790), (0.014, 2_693), (0.0316, 2_693)])
def test_a_detectable_loss_is_seen_in_four_of_five_cases(changed: float, n: int) -> None:
    loss = detectable_loss(changed, n)
    rng = np.random.default_rng(5)
    lost_ratio = max((changed + loss) / 2, loss)
    lost = rng.binomial(n, lost_ratio, 2_000)
    gained = rng.binomial(n, lost_ratio - loss, 2_000)
    seen = [mcnemar_p(b, c) < 0.05 < b + 1 - c for b, c in zip(lost, gained, strict=True)]

    assert 0.74 <= float(np.mean(seen)) <= 0.90


@given(st.floats(0.004, 0.3), st.floats(0.004, 0.1))
def test_about_as_many_examples_as_are_needed_are_enough(changed: float, max_loss: float) -> None:
    """Where as many turn wrong as turn right."""
    n = needed_examples(changed, 0.0, max_loss)
    assert n is not None
    each = round(changed * n / 2)

    assert loss_bound(each, each, 2 * each + n, confidence=0.95) <= max_loss * 1.35
    assert loss_bound(each, each, 2 * each + n // 4, confidence=0.95) > max_loss


def test_no_number_of_examples_proves_that_nothing_at_all_is_lost() -> None:
    assert needed_examples(0.01, 0.0, 0.0) is None
    assert detectable_loss(0.01, 0) == 1.0


@pytest.mark.slow
def test_who_looks_after_every_example_gives_up_good_candidates_rarely() -> None:
    """At the limit itself, where that is most likely: 1 % are lost on balance."""
    rng = np.random.default_rng(7)
    given_up = 0
    for _ in range(200):
        drawn = rng.choice([1, -1, 0], p=[0.03, 0.02, 0.95], size=1_500)
        lost, gained = np.cumsum(drawn == 1), np.cumsum(drawn == -1)
        given_up += any(
            is_refuted(int(lost[i]), int(gained[i]), i + 1, max_loss=0.01, alpha=0.02)
            for i in range(0, 1_500, 50)
        )

    assert given_up <= 200 * 0.02


def test_a_ruined_candidate_is_given_up_after_a_few_hundred_examples() -> None:
    n = next(
        n
        for n in range(10, 2_693, 10)
        if is_refuted(round(0.2265 * n), round(0.0505 * n), n, max_loss=0.01, alpha=0.001)
    )

    assert n <= 300
    assert not is_refuted(49, 36, 2_693, max_loss=0.01, alpha=0.001)
