import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.rollout.prediction_shift import MOST_LABELS, PredictionShift, levels


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
    shift.add(0.5, {0.4: 1}, {})

    yes_b, all_b, yes_a, _ = (total[1:] for total in shift.tests.totals())
    below = dict(zip(shift.labels, zip(yes_a, yes_b, strict=True), strict=True))

    assert below == {0.2: (1200, 0), 0.4: (1201, 0), 0.6: (1501, 600), 0.8: (1501, 1500)}
    assert all_b.tolist() == [1500] * 4
    moved, _ = shift.refuted(0.1, 0.0125, 0.0125)
    assert moved[shift.labels.index(0.2)]
    assert not moved[shift.labels.index(0.8)]


def test_classes_beyond_the_limit_count_as_no_class() -> None:
    shift = PredictionShift.start()

    shift.add(0.5, {f"c{i:03}": 100 - i for i in range(MOST_LABELS + 5)}, {"c000": 7})

    assert len(shift.labels) == MOST_LABELS
    assert shift.labels[0] == "c000"
    _, _, _, all_a = shift.tests.totals()
    assert all_a.tolist() == [sum(100 - i for i in range(MOST_LABELS + 5))] * (MOST_LABELS + 1)


def test_intervals_without_answers_are_nothing() -> None:
    shift = PredictionShift.start()

    shift.add(0.5, {}, {})

    assert shift.labels == []
    assert shift.tests.strata == []


@given(st.floats(1e-6, 0.5), st.integers(1, MOST_LABELS))
def test_all_classes_together_have_no_more_than_the_level(level: float, labels: int) -> None:
    found = levels(level, labels)

    assert found.sum() <= level * (1 + 1e-12)
    assert (np.diff(found) < 0).all()


def test_two_classes_keep_most_of_what_one_would_have() -> None:
    assert levels(0.05, 2)[0] == pytest.approx(0.013)
