from collections.abc import Callable, Iterable, Iterator

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.rollout.betting import log_growth
from headrace.rollout.prediction_shift import (
    ENOUGH,
    MAX_LABELS,
    Counts,
    PredictionShift,
    levels,
    parts,
)
from headrace.rollout.rate_difference import Stratum


def shifted(
    baseline: dict[str, float], candidate: dict[str, float], *, seconds: int
) -> PredictionShift:
    rng, shift = np.random.default_rng(4), PredictionShift.start()
    for _ in range(seconds):
        to_candidate = int(rng.binomial(100, 0.5))
        a, b = (
            dict(zip(shares, rng.multinomial(n, list(shares.values())).tolist(), strict=True))
            for shares, n in ((baseline, 100 - to_candidate), (candidate, to_candidate))
        )
        shift.add(0.5, a, b)
    return shift


def test_a_class_that_became_more_frequent_is_found() -> None:
    shift = shifted(
        {"cat": 0.6, "dog": 0.3, "fox": 0.1}, {"cat": 0.3, "dog": 0.6, "fox": 0.1}, seconds=20
    )

    moved, kept = shift.refuted(0.1, 0.0125, 0.0125)

    assert dict(zip(shift.labels, moved.tolist(), strict=True)) == {
        "cat": True,
        "dog": True,
        "fox": False,
    }
    assert not kept.all()
    low, high = shift.bounds(0.0125, 0.0125)
    assert 0.1 < low < 0.3 < high


def test_the_same_answers_are_shown_to_be_the_same() -> None:
    same = {"cat": 0.6, "dog": 0.3, "fox": 0.1}

    shift = shifted(same, same, seconds=40)

    moved, kept = shift.refuted(0.1, 0.0125, 0.0125)
    assert not moved.any()
    assert kept.all()
    low, high = shift.bounds(0.0125, 0.0125)
    assert low == 0.0
    assert high < 0.1


def test_a_class_that_only_the_new_version_knows_counts_from_the_start() -> None:
    shift = PredictionShift.start()
    for _ in range(10):
        shift.add(0.5, {"cat": 50}, {"cat": 50})

    shift.add(0.5, {"cat": 50}, {"cat": 20, "yeti": 30})

    yes_b, all_b, yes_a, all_a = (total[1:] for total in shift.tests.totals())
    assert shift.labels == ["cat", "yeti"]
    assert yes_b.tolist() == [520, 30]
    assert yes_a.tolist() == [550, 0]
    assert all_a.tolist() == all_b.tolist() == [550, 550]


def test_scores_are_compared_below_each_edge() -> None:
    shift = PredictionShift.start()
    for _ in range(30):
        shift.add(0.5, {0.2: 40, 0.6: 10}, {0.6: 20, 0.8: 30})
    shift.add(0.5, {0.4: 50}, {0.9: 50})

    yes_b, all_b, yes_a, _ = (total[1:] for total in shift.tests.totals())
    below = dict(zip(shift.labels, zip(yes_a, yes_b, strict=True), strict=True))

    assert below == {
        0.2: (1200, 0),
        0.4: (1250, 0),
        0.6: (1550, 600),
        0.8: (1550, 1500),
        0.9: (1550, 1550),
    }
    assert all_b.tolist() == [1550] * 5
    moved, _ = shift.refuted(0.1, 0.0125, 0.0125)
    assert moved[shift.labels.index(0.2)]
    assert not moved[shift.labels.index(0.8)]


def test_classes_beyond_the_limit_count_as_no_class() -> None:
    shift = PredictionShift.start()

    classes = {f"c{i:03}": 100 - i for i in range(MAX_LABELS + 5)}
    answers = sum(classes.values())

    shift.add(0.5, classes, {"c000": answers})

    assert len(shift.labels) == MAX_LABELS
    assert shift.labels[0] == "c000"
    _, _, _, all_a = shift.tests.totals()
    assert all_a.tolist() == [answers] * (MAX_LABELS + 1)


def test_intervals_without_answers_are_nothing() -> None:
    shift = PredictionShift.start()

    shift.add(0.5, {}, {})

    assert shift.labels == []
    assert shift.tests.strata == []


def told_together(rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    for _ in range(60):
        candidate = int(rng.binomial(80, 0.5))
        yield 80 - candidate, candidate


def told_by_turns(rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    for i in range(60):
        yield (0, int(rng.poisson(80))) if i % 2 else (int(rng.poisson(80)), 0)


def told_later_by_one(rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    for i in range(60):
        yield int(rng.poisson(40)), 0 if i < 5 else int(rng.poisson(40))


def told_by_half_of_one(rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    for _ in range(60):
        yield int(rng.poisson(40)), int(rng.poisson(20))


@pytest.mark.parametrize(
    "told", [told_together, told_by_turns, told_later_by_one, told_by_half_of_one]
)
def test_a_version_that_answers_the_same_is_the_same_however_its_replicas_tell(
    told: Callable[[np.random.Generator], Iterable[tuple[int, int]]],
) -> None:
    moved, kept, rng = 0, 0, np.random.default_rng(11)
    for _ in range(60):
        shift = PredictionShift.start()
        for n_a, n_b in told(rng):
            a, b = (rng.multinomial(n, [0.7, 0.2, 0.1]).tolist() for n in (n_a, n_b))
            classes = "cat", "dog", "fox"
            shift.add(0.5, dict(zip(classes, a, strict=True)), dict(zip(classes, b, strict=True)))
        is_moved, is_kept = shift.refuted(0.05, 0.0125, 0.0125)
        moved += bool(is_moved.any())
        kept += bool(is_kept.all())
        low, high = shift.bounds(0.0125, 0.0125)
        assert low <= 0.05
        assert high < 0.5

    assert moved <= 3  # 0.75 are expected at most
    assert kept < 60


def test_a_change_is_found_however_the_replicas_tell() -> None:
    rng = np.random.default_rng(3)
    for told in (told_together, told_by_turns, told_later_by_one, told_by_half_of_one):
        shift = PredictionShift.start()
        for n_a, n_b in told(rng):
            yes_a, yes_b = int(rng.binomial(n_a, 0.3)), int(rng.binomial(n_b, 0.6))
            shift.add(0.5, {"y": yes_a, "n": n_a - yes_a}, {"y": yes_b, "n": n_b - yes_b})

        moved, _ = shift.refuted(0.1, 0.0125, 0.0125)
        low, high = shift.bounds(0.0125, 0.0125)
        assert moved.all()
        assert 0.1 < low < 0.3 < high


@given(
    st.floats(0.01, 0.99),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 1.0)),
    st.integers(0, 10),
)
def test_no_gambler_gains_whatever_the_numbers_of_answers_are(
    share: float, answers: tuple[int, int], rates: tuple[float, float], centre: int
) -> None:
    (n_a, n_b), (p_a, p_b) = answers, rates
    part_a, part_b = parts(share, n_a, n_b)
    stratum = Stratum(share, centre, np.zeros((1, 4)))
    mean = p_b - p_a  # the null at its edge
    factors = np.exp(log_growth(stratum.values(), stratum.scale, mean, above=True))
    # Each answer is drawn for itself, and counts as a part of one.
    gained = n_b * np.log(
        p_b * factors[0] ** part_b + (1 - p_b) * factors[1] ** part_b
    ) + n_a * np.log(p_a * factors[2] ** part_a + (1 - p_a) * factors[3] ** part_a)

    assert (gained <= 1e-9).all()


def test_answers_of_one_arm_wait_for_those_of_the_other_and_survive_a_restart() -> None:
    shift = PredictionShift.start()

    shift.add(0.2, {"cat": 500, "dog": 100}, {})
    shift.add(0.2, {}, {"cat": ENOUGH - 1})
    waiting = msgspec.msgpack.decode(msgspec.msgpack.encode(shift.held), type=tuple[Counts, Counts])

    assert shift.tests.strata == []
    assert waiting == ({"cat": 500, "dog": 100}, {"cat": ENOUGH - 1})

    shift.add(0.2, {}, {"cat": 51})
    _, all_b, _, all_a = shift.tests.totals()
    assert shift.held == ({}, {})
    assert all_b[0] == 75
    assert all_a[0] == pytest.approx(300)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_where_one_version_has_all_requests_answers_are_counted_and_not_compared(
    share: float,
) -> None:
    shift = PredictionShift.start()

    shift.add(share, {"cat": 100}, {"cat": 100})

    assert shift.answers == 200
    assert shift.held == ({}, {})
    assert shift.tests.strata == []


@given(st.floats(1e-6, 0.5), st.integers(1, MAX_LABELS))
def test_all_classes_together_have_no_more_than_the_level(level: float, labels: int) -> None:
    found = levels(level, labels)

    assert found.sum() <= level * (1 + 1e-12)
    assert (np.diff(found) < 0).all()


def test_two_classes_keep_most_of_what_one_would_have() -> None:
    assert levels(0.05, 2)[0] == pytest.approx(0.013)
