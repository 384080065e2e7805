import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.rollout.bernoulli import Rate
from headrace.rollout.betting import Array
from headrace.rollout.rate_difference import Dispersion, RateDifferences
from headrace.rollout.readings import When


def one(count: float) -> Array:
    return np.array([count])


SHARES = st.floats(0.02, 0.98)
CENTRES = st.sampled_from([None, 0, 3])
ROWS = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30), st.integers(0, 30)),
    min_size=1,
    max_size=6,
)


def add(tests: RateDifferences, share: float, row: tuple[int, int, int, int]) -> None:
    yes_b, no_b, yes_a, no_a = (np.array([float(n)]) for n in row)
    tests.add(share, (yes_b, yes_b + no_b), (yes_a, yes_a + no_a))


def counted(
    share: float, rows: list[tuple[int, int, int, int]], centre: int | None = None
) -> RateDifferences:
    tests = RateDifferences.start(1, centre=centre)
    for row in rows:
        add(tests, share, row)
    return tests


@pytest.mark.parametrize("above", [True, False])
@given(
    shares=st.lists(SHARES, min_size=4, max_size=4),
    rate_a=st.floats(0, 0.6),
    mean=st.floats(-0.3, 0.4),
    centre=CENTRES,
    alike=st.integers(1, 3),
)
def test_no_gambler_expects_to_win_while_the_null_is_true(
    *, shares: list[float], rate_a: float, mean: float, centre: int | None, alike: int, above: bool
) -> None:
    # Every way in which four users can go, one after the other, with its probability: a test each.
    # A user has `alike` requests, all with the same end; the share changes from one to the next.
    rate_b = min(max(rate_a + mean, 0.0), 1.0)
    paths = np.array(list(itertools.product(range(4), repeat=4)))
    tests, chances = RateDifferences.start(len(paths), centre=centre), np.ones(len(paths))
    tests.part = 1.0 / alike
    for share, kinds in zip(shares, paths.T, strict=True):
        chance = [share * rate_b, share * (1 - rate_b), (1 - share) * rate_a]
        chances *= np.array([*chance, 1 - sum(chance)])[kinds]
        cells = alike * np.eye(4)[kinds].T
        tests.add(share, (cells[0], cells[0] + cells[1]), (cells[2], cells[2] + cells[3]))

    tests.dispersion = Dispersion.start(len(paths))  # its factor makes the bets no better; below
    capitals = np.exp(tests.log_evidence(rate_b - rate_a, above=above))

    assert float(chances @ capitals) <= 1.0 + 1e-9


@given(SHARES, ROWS, CENTRES)
def test_what_is_refuted_at_one_difference_is_refuted_beyond_it(
    share: float, rows: list[tuple[int, int, int, int]], centre: int | None
) -> None:
    tests = counted(share, rows, centre)
    means = np.linspace(-1.0, 1.0, 21)

    more_than = [float(tests.log_evidence(mean, above=True)[0]) for mean in means]
    less_than = [float(tests.log_evidence(mean, above=False)[0]) for mean in means]

    assert all(a >= b - 1e-9 for a, b in itertools.pairwise(more_than))
    assert all(a <= b + 1e-9 for a, b in itertools.pairwise(less_than))


@given(SHARES, ROWS, st.floats(0.001, 0.4))
def test_the_bounds_are_where_the_evidence_says(
    share: float, rows: list[tuple[int, int, int, int]], level: float
) -> None:
    tests = counted(share, rows)

    low, high = (float(bound[0]) for bound in tests.bounds(level, level))

    assert -1.0 <= low <= high <= 1.0
    needed = -math.log(level)
    assert float(tests.log_evidence(low - 1e-6, above=True)[0]) >= needed - 1e-6 or low == -1.0
    assert float(tests.log_evidence(low + 1e-6, above=True)[0]) <= needed + 1e-6 or low > 0.999
    assert float(tests.log_evidence(high + 1e-6, above=False)[0]) >= needed - 1e-6 or high == 1.0


@given(st.permutations([(1, 40, 3, 200), (0, 10, 9, 90), (4, 30, 1, 50)]), st.floats(-0.1, 0.1))
def test_the_order_of_intervals_and_shares_does_not_matter(
    rows: list[tuple[int, int, int, int]], mean: float
) -> None:
    shares = {(1, 40, 3, 200): 0.05, (0, 10, 9, 90): 0.25, (4, 30, 1, 50): 0.5}
    tests = RateDifferences.start(1, centre=0)
    for row in rows:
        add(tests, shares[row], row)
    ordered = RateDifferences.start(1, centre=0)
    for row, share in shares.items():
        add(ordered, share, row)

    tests.dispersion = ordered.dispersion = Dispersion.start(1)
    for above in (True, False):
        assert tests.log_evidence(mean, above=above) == pytest.approx(
            ordered.log_evidence(mean, above=above)
        )


@given(SHARES, ROWS, st.integers(1, 50))
def test_more_failures_of_the_candidate_never_help_it(
    share: float, rows: list[tuple[int, int, int, int]], more: int
) -> None:
    tests = counted(share, rows)
    tests.dispersion = Dispersion.start(1)
    before = float(tests.log_evidence(0.0, above=True)[0])

    tests.centre = 0
    add(tests, share, (more, 0, 0, 0))

    tests.dispersion = Dispersion.start(1)
    assert float(tests.log_evidence(0.0, above=True)[0]) >= before


def test_at_no_difference_only_the_split_of_the_failures_counts() -> None:
    few, many = counted(0.1, [(5, 10, 2, 90)]), counted(0.1, [(5, 1000, 2, 9000)])

    assert few.log_evidence(0.0, above=True) == pytest.approx(many.log_evidence(0.0, above=True))
    assert few.log_evidence(0.01, above=True) > many.log_evidence(0.01, above=True)


def test_a_share_of_nothing_or_all_teaches_nothing() -> None:
    tests = counted(1.0, [(5, 5, 0, 0)])
    add(tests, 0.0, (0, 0, 5, 5))
    add(tests, 0.5, (0, 0, 0, 0))

    assert tests.strata == []
    assert tests.log_evidence(0.0, above=True) == pytest.approx(0.0, abs=1e-12)
    assert [bound.tolist() for bound in tests.bounds(0.05, 0.05)] == [[-1.0], [1.0]]


def test_differences_are_compared_at_the_same_share() -> None:
    # The base rate rose from 1 to 10 % as the share did from 10 to 50 %; the versions are equal.
    tests = counted(0.1, [(1, 99, 9, 891)])
    add(tests, 0.5, (50, 450, 50, 450))

    yes_b, all_b, yes_a, all_a = (float(total[0]) for total in tests.totals())
    assert yes_b / all_b - yes_a / all_a > 0.03
    assert tests.differences() == pytest.approx(0.0)


def test_taking_off_the_rate_of_late_narrows_the_bounds_of_common_things() -> None:
    rows = [(30, 20, 30, 20)] * 40

    low, high = counted(0.5, rows).bounds(0.05, 0.05)
    plain_low, plain_high = counted(0.5, rows, 0).bounds(0.05, 0.05)

    assert high - low < 0.75 * (plain_high - plain_low)


def test_tests_side_by_side_are_those_alone() -> None:
    together = RateDifferences.start(2)
    rows = [(3, 97, 1, 99), (50, 50, 20, 80)]
    for _ in range(3):
        cells = np.array(rows, float)
        together.add(0.5, (cells[:, 0], cells[:, :2].sum(1)), (cells[:, 2], cells[:, 2:].sum(1)))

    for i, row in enumerate(rows):
        alone = counted(0.5, [row] * 3)
        assert together.log_evidence(0.0, above=True)[i] == pytest.approx(
            alone.log_evidence(0.0, above=True)[0]
        )
        assert [b[i] for b in together.bounds(0.05, 0.01)] == pytest.approx(
            [b[0] for b in alone.bounds(0.05, 0.01)]
        )


@pytest.mark.parametrize("above", [True, False])
@given(rate=st.floats(0.01, 0.99))
def test_nobody_wins_against_a_rate_that_is_true(*, rate: float, above: bool) -> None:
    expected = sum(
        math.comb(6, yes)
        * rate**yes
        * (1 - rate) ** (6 - yes)
        * math.exp(float(Rate(yes, 6).log_evidence(rate, above=above)[0]))
        for yes in range(7)
    )

    assert expected <= 1.0 + 1e-9


@given(st.integers(0, 200), st.integers(1, 200))
def test_a_rate_lies_within_its_bounds(yes: int, more: int) -> None:
    rate = Rate(yes, yes + more)

    low, high = rate.bounds(0.05)

    assert rate.estimate is not None
    assert 0.0 <= low <= rate.estimate <= high <= 1.0


def test_a_rates_bounds_are_about_as_narrow_as_the_beta_binomial_mixtures() -> None:
    # Robbins 1970; Howard et al. 2021: the set of rates at which the uniform mixture's likelihood
    # ratio stays below one over the level. Two-sided at twice the level, to compare.
    yes, trials, level = 30, 1000, 0.025
    evidence = math.lgamma(yes + 1) + math.lgamma(trials - yes + 1) - math.lgamma(trials + 2)
    rates = np.linspace(0.001, 0.2, 2000)
    inside = rates[
        evidence - yes * np.log(rates) - (trials - yes) * np.log1p(-rates) < -math.log(2 * level)
    ]

    low, high = Rate(yes, trials).bounds(level)

    assert high - low < 1.15 * (inside.max() - inside.min())


def test_a_rate_without_trials_is_unknown() -> None:
    assert Rate().estimate is None
    assert Rate().bounds(0.05) == (0.0, 1.0)


@given(share=SHARES, rows=ROWS, mean=st.floats(-0.1, 0.1), above=st.booleans())
def test_what_goes_wrong_together_is_never_stronger_evidence(
    *, share: float, rows: list[tuple[int, int, int, int]], mean: float, above: bool
) -> None:
    tests = counted(share, rows * 12)
    together = float(tests.log_evidence(mean, above=above)[0])

    tests.dispersion = Dispersion.start(1)

    assert together <= max(float(tests.log_evidence(mean, above=above)[0]), 0.0) + 1e-9


def test_evidence_of_one_step_is_none_of_another() -> None:
    tests = RateDifferences.start(1)
    for _ in range(100):
        tests.add(0.1, (one(0), one(100)), (one(0), one(900)))
    for _ in range(3):
        tests.add(0.5, (one(2), one(50)), (one(0), one(50)), When(step=1))

    both = float(tests.log_evidence(0.005, above=False)[0])
    alone = RateDifferences.start(1)
    for _ in range(3):
        alone.add(0.5, (one(2), one(50)), (one(0), one(50)), When(step=1))

    assert both > math.log(20)
    assert float(tests.log_evidence(0.005, above=False, step=1)[0]) < 0.0
    assert float(tests.upper_bounds(0.05, step=1)[0]) > 0.02
