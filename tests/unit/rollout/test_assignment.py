import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.rollout.assignment import Assignments


@given(st.floats(0.05, 0.95), st.integers(1, 40))
def test_the_evidence_is_expected_to_be_one_while_the_plan_is_kept(
    share: float, units: int
) -> None:
    expected = 0.0
    for candidate in range(units + 1):
        assignments = Assignments()
        assignments.add(share, units - candidate, candidate)
        chance = math.comb(units, candidate) * share**candidate * (1 - share) ** (units - candidate)
        expected += chance * math.exp(assignments.log_evidence())

    assert expected == pytest.approx(1.0)


def test_a_lost_tenth_of_an_arm_is_found() -> None:
    rng, assignments = np.random.default_rng(1), Assignments()
    for _ in range(60):
        candidate = int(rng.binomial(200, 0.5))
        assignments.add(0.5, 200 - candidate, int(rng.binomial(candidate, 0.9)))

    assert assignments.worst > -math.log(0.001)


def test_an_alarm_stays() -> None:
    assignments = Assignments()
    assignments.add(0.5, 10, 90)
    worst = assignments.worst
    for _ in range(50):
        assignments.add(0.5, 100, 100)

    assert assignments.log_evidence() < worst
    assert assignments.worst == worst


def test_shares_are_kept_apart() -> None:
    assignments = Assignments()
    assignments.add(0.1, 900, 100)
    assignments.add(0.5, 500, 500)
    assignments.add(1.0, 0, 500)

    assert assignments.totals == (1400, 600)
    assert assignments.planned == pytest.approx(0.3)
    assert assignments.worst < 1.0


@pytest.mark.slow
def test_false_alarms_are_rarer_than_their_level() -> None:
    rng, alarms = np.random.default_rng(7), 0
    for _ in range(200):
        assignments = Assignments()
        for candidate in rng.binomial(40, 0.3, 50):
            assignments.add(0.3, 40 - int(candidate), int(candidate))
        alarms += assignments.worst >= -math.log(0.05)

    assert alarms <= 0.05 * 200 + 3 * math.sqrt(0.05 * 0.95 * 200)
