import math

from hypothesis import given
from hypothesis import strategies as st

from headrace.control.pairing import Pairing, agree, distance
from headrace.core.rollout_settings import DisagreementMetric
from headrace.serving.report import Answer

METRIC = DisagreementMetric(absolute_tolerance=0.01, relative_tolerance=0.0)


def answer(request_id: str, *values: float | str, failed: bool = False) -> Answer:
    return Answer(request_id=request_id, values=list(values), digest=repr(values), failed=failed)


def test_answers_are_paired_whichever_comes_first() -> None:
    pairing = Pairing(metric=METRIC)
    pairing.add_primary([answer("a", 1.0)], 0.0)
    pairing.add_shadow([answer("a", 1.0), answer("b", 2.0)], 1.0)
    pairing.add_primary([answer("b", 3.0)], 2.0)

    found = pairing.take()

    assert (found.pairs, found.disagreements) == (2, 1)
    assert found.distance_sum == 1.0


def test_what_was_told_is_not_told_again() -> None:
    pairing = Pairing(metric=METRIC)
    pairing.add_primary([answer("a", 1.0)], 0.0)
    pairing.add_shadow([answer("a", 1.0)], 0.0)
    pairing.take()

    assert pairing.take().pairs == 0


def test_a_copy_that_the_shadow_failed_is_unanswered_and_no_disagreement() -> None:
    pairing = Pairing(metric=METRIC)
    pairing.add_primary([answer("a", 1.0)], 0.0)
    pairing.add_shadow([answer("a", failed=True)], 0.0)

    found = pairing.take()

    assert (found.pairs, found.unanswered, found.disagreements) == (0, 1, 0)


def test_a_request_that_the_baseline_failed_says_nothing_about_the_shadow() -> None:
    pairing = Pairing(metric=METRIC)
    pairing.add_primary([answer("a", failed=True)], 0.0)
    pairing.add_shadow([answer("a", 1.0)], 0.0)

    assert pairing.take().pairs == 0


def test_answers_without_counterpart_are_let_go() -> None:
    pairing = Pairing(metric=METRIC)
    pairing.add_primary([answer("old", 1.0)], 0.0)
    pairing.add_primary([answer("new", 1.0)], 1000.0)
    pairing.add_shadow([answer("old", 1.0), answer("new", 1.0)], 1000.0)

    assert pairing.take().pairs == 1


def test_a_class_that_differs_is_a_disagreement_however_near_its_number() -> None:
    metric = DisagreementMetric(absolute_tolerance=5.0)

    assert not agree(answer("a", "3"), answer("a", "4"), metric)


def test_numbers_agree_within_their_tolerances() -> None:
    metric = DisagreementMetric(absolute_tolerance=0.0, relative_tolerance=0.1)

    assert agree(answer("a", 100.0), answer("a", 109.0), metric)
    assert not agree(answer("a", 100.0), answer("a", 111.0), metric)


def test_nan_agrees_with_nan_only() -> None:
    assert agree(answer("a", math.nan, 1.0), answer("a", math.nan, 1.001), METRIC)
    assert not agree(answer("a", math.nan), answer("a", 1.0), METRIC)


def test_answers_of_different_length_disagree() -> None:
    assert not agree(answer("a", 1.0), answer("a", 1.0, 2.0), METRIC)


def test_answers_that_differ_beyond_what_was_kept_disagree() -> None:
    kept = [1.0] * 64
    one = Answer(request_id="a", values=list(kept), digest="x")
    other = Answer(request_id="a", values=list(kept), digest="y")

    assert not agree(one, other, METRIC)


def test_a_distance_is_over_numbers_only() -> None:
    assert distance(answer("a", 1.0, "cat"), answer("a", 3.0, "dog")) == 2.0
    assert distance(answer("a", "cat"), answer("a", "dog")) == 0.0


@given(order=st.permutations([("p", i) for i in range(6)] + [("s", i) for i in range(6)]))
def test_every_pair_is_found_once_in_any_order(order: list[tuple[str, int]]) -> None:
    pairing = Pairing(metric=METRIC)

    for side, i in order:
        add = pairing.add_primary if side == "p" else pairing.add_shadow
        add([answer(str(i), float(i))], 0.0)

    assert pairing.take().pairs == 6
