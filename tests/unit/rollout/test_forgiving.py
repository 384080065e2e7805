import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from headrace.rollout.bernoulli import FORGIVEN, Forgiven, Rate, trimmed_capitals
from headrace.rollout.betting import STAKES, Array
from headrace.rollout.rate_difference import RateDifferences
from headrace.rollout.readings import When

GROWTHS = st.lists(st.floats(-5.0, 5.0), min_size=1, max_size=8)


def one(count: float) -> Array:
    return np.array([count])


@given(growths=GROWTHS)
def test_the_worst_intervals_are_kept_whatever_came_when(growths: list[float]) -> None:
    forgiven = Forgiven.start(1)

    for growth in growths:
        forgiven.add(np.full((1, len(STAKES)), growth), 1.0)

    # An interval in which the capital shrank is nobody's worst one.
    expected = sorted([*[max(g, 0.0) for g in growths], *[0.0] * FORGIVEN], reverse=True)
    assert forgiven.worst[0, 0].tolist() == expected[:FORGIVEN]


@given(growths=GROWTHS)
def test_capital_is_the_least_over_all_choices_of_what_is_left_out(growths: list[float]) -> None:
    capitals = np.zeros((1, 1 + FORGIVEN))

    for growth in growths:
        capitals = trimmed_capitals(capitals, one(growth))

    for most in range(1 + FORGIVEN):
        choices = itertools.chain.from_iterable(
            itertools.combinations(range(len(growths)), left_out) for left_out in range(most + 1)
        )
        least = min(sum(g for i, g in enumerate(growths) if i not in out) for out in choices)
        assert abs(capitals[0, most] - least) < 1e-9


@given(
    failures=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=30),
    share=st.floats(0.05, 0.95),
)
def test_leaving_out_never_adds_evidence(*, failures: list[tuple[int, int]], share: float) -> None:
    tests, rate = RateDifferences.start(1, watched=0.01), Rate(watched=0.02)

    for candidate, baseline in failures:
        tests.add(share, (one(candidate), one(40)), (one(baseline), one(40)))
        rate.add(candidate, 40)

    assert (
        float(tests.log_evidence_of_harm()[0])
        <= float(tests.log_evidence(0.01, above=True)[0]) + 1e-9
    )
    assert rate.log_evidence_of_harm() <= float(rate.log_evidence(0.02, above=True)[0]) + 1e-9


def test_a_second_in_which_all_fails_condemns_nobody() -> None:
    tests, rate = RateDifferences.start(1, watched=0.005), Rate(watched=0.005)

    for second in range(120):
        failed = 500.0 if second % 40 == 10 else 0.0
        tests.add(0.5, (one(failed), one(500)), (one(0), one(500)))
        rate.add(failed, 500)

    assert float(tests.log_evidence(0.005, above=True)[0]) > 10.0
    assert float(tests.log_evidence_of_harm()[0]) < 0.0
    assert rate.log_evidence_of_harm() < 0.0


def test_one_more_second_than_is_forgiven_condemns() -> None:
    tests = RateDifferences.start(1, watched=0.005)

    for _ in range(FORGIVEN + 1):
        tests.add(0.5, (one(500), one(500)), (one(0), one(500)))

    assert float(tests.log_evidence_of_harm()[0]) > 10.0


def test_stalls_are_forgiven_by_the_hour() -> None:
    tests, rate = RateDifferences.start(1, watched=0.005), Rate(watched=0.005)

    for minute in range(10 * 60):
        failed = 500.0 if minute % 30 == 10 else 0.0
        when = When(duration_s=60.0)
        tests.add(0.5, (one(failed), one(500)), (one(0), one(500)), when)
        rate.add(failed, 500, duration_s=60.0)

    # Twenty stalls in ten hours: the three worst of a whole rollout would leave seventeen.
    assert float(tests.log_evidence_of_harm()[0]) < 0.0
    assert rate.log_evidence_of_harm() < 0.0
