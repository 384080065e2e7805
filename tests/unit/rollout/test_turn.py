import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.rollout.bernoulli import FORGIVEN
from headrace.rollout.change_detector import ChangeDetector
from headrace.rollout.readings import When

SHARES = st.floats(0.02, 0.98)


@given(
    shares=st.lists(SHARES, min_size=4, max_size=4),
    rate_a=st.floats(0, 0.6),
    tolerated=st.floats(0, 0.4),
    below=st.floats(0, 0.2),
    duration_s=st.sampled_from([1.0, 60.0, 150.0, 3600.0]),
    steps=st.lists(st.integers(0, 2), min_size=4, max_size=4),
)
def test_nobody_expects_to_win_while_nothing_is_worse_than_tolerated(
    *,
    shares: list[float],
    rate_a: float,
    tolerated: float,
    below: float,
    duration_s: float,
    steps: list[int],
) -> None:
    # Every way in which four requests can go, with its probability: a test each.
    rate_b = max(rate_a + tolerated - below, 0.0)
    rate_b = min(rate_b, 1.0)
    paths = np.array(list(itertools.product(range(4), repeat=4)))
    turn, chances = ChangeDetector.start(len(paths), tolerated), np.ones(len(paths))
    for share, step, kinds in zip(shares, sorted(steps), paths.T, strict=True):
        chance = [share * rate_b, share * (1 - rate_b), (1 - share) * rate_a]
        chances *= np.array([*chance, 1 - sum(chance)])[kinds]
        cells = np.eye(4)[kinds].T
        turn.add(
            share,
            (cells[0], cells[0] + cells[1]),
            (cells[2], cells[2] + cells[3]),
            When(step=step, duration_s=duration_s),
        )

    assert float(chances @ np.exp(turn.log_evidence())) <= 1.0 + 1e-9


def one(count: float) -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":
    return np.array([count])


def test_a_good_past_is_no_credit() -> None:
    turn = ChangeDetector.start(1, 0.005)
    for _ in range(60):
        turn.add(0.5, (one(1), one(1500)), (one(1), one(1500)), When(duration_s=60.0))
    before = float(turn.log_evidence()[0])

    for _ in range(10):
        turn.add(0.5, (one(5), one(25)), (one(0), one(25)))

    assert before < 0.1
    assert float(turn.log_evidence()[0]) > math.log(4 * 80)
    candidate, baseline = turn.rates_lately()
    assert candidate > 10 * baseline


def test_nothing_is_bet_while_one_arm_has_all() -> None:
    turn = ChangeDetector.start(1, 0.0)

    turn.add(1.0, (one(5), one(5)), (one(0), one(0)))

    assert turn.minutes == 0
    assert turn.log_evidence() == pytest.approx([0.0])
    assert turn.rates_lately() == (0.0, 0.0)


def test_much_evidence_overflows_nothing() -> None:
    turn = ChangeDetector.start(1, 0.0)

    for _ in range(3 + FORGIVEN):
        turn.add(0.5, (one(5000), one(5000)), (one(0), one(5000)))

    assert float(turn.log_evidence()[0]) > 1000.0


def test_a_step_that_begins_brings_its_own_gamblers() -> None:
    by_step, by_time = ChangeDetector.start(1, 0.005), ChangeDetector.start(1, 0.005)
    for turn in (by_step, by_time):
        for _ in range(60):
            turn.add(0.05, (one(0), one(150)), (one(3), one(2850)), When(duration_s=60.0))

    for _ in range(8):
        arms = (one(2), one(25)), (one(0), one(25))
        by_step.add(0.5, *arms, When(step=1))
        by_time.add(0.5, *arms)

    # A gambler of the 61st minute has a thousandth of what one of the second step has.
    assert by_step.log_evidence()[0] > by_time.log_evidence()[0] + 2.0
