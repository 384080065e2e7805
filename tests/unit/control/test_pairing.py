"""Answers of a version and its shadow: which are a pair, and which pairs agree."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from headrace.control.rollouts import evidence as module
from headrace.control.rollouts.evidence import Pairing, agree, distance
from headrace.core import Array
from headrace.core.spec.rollout import DisagreementSpec
from headrace.serving.telemetry.observation import compared_tensors
from headrace.serving.telemetry.report import RecordedAnswer

METRIC = DisagreementSpec(absolute_tolerance=0.01, relative_tolerance=0.0)
EXACT = DisagreementSpec(absolute_tolerance=0.0, relative_tolerance=0.0)
DIRECTION = DisagreementSpec(
    absolute_tolerance=0.0, relative_tolerance=0.0, max_cosine_distance=0.01
)
SHAPES = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6)
FLOATS = arrays.arrays(st.sampled_from(["<f2", "<f4", "<f8"]), SHAPES)
INTEGERS = arrays.arrays(st.sampled_from(["|i1", "<i4", "<i8", "|u1", "<u8"]), SHAPES)


def texts(*items: bytes) -> Array:
    array = np.empty(len(items), np.object_)
    array[:] = items
    return array


TEXTS = st.lists(st.binary(max_size=80), max_size=6).map(lambda items: texts(*items))
BOOLEANS = arrays.arrays("|b1", SHAPES)
OUTPUTS = st.dictionaries(st.text(max_size=4), FLOATS | INTEGERS | TEXTS | BOOLEANS, max_size=4)


def of(outputs: dict[str, Array], answer_id: str = "a") -> RecordedAnswer:
    return RecordedAnswer(answer_id, outputs=compared_tensors(outputs, answer_id.encode()))


def answer(answer_id: str, *values: float, failed: bool = False) -> RecordedAnswer:
    if failed:
        return RecordedAnswer(answer_id, failed=True)
    return of({"y": np.array(values)}, answer_id)


def agreed(one: Array, other: Array, metric: DisagreementSpec = METRIC) -> bool:
    return agree(of({"y": one}), of({"y": other}), metric)


def test_answers_are_paired_whichever_comes_first() -> None:
    pairing = Pairing(metric=METRIC)
    pairing.add([answer("a", 1.0)], 0.0, are_copies=False)
    pairing.add([answer("a", 1.0), answer("b", 2.0)], 1.0, are_copies=True)
    pairing.add([answer("b", 3.0)], 2.0, are_copies=False)

    counts = pairing.take()

    assert (counts.pairs, counts.disagreements) == (2, 1)
    assert counts.distance_sum == 1.0


def test_pairs_that_were_counted_are_not_counted_again() -> None:
    pairing = Pairing(metric=METRIC)
    pairing.add([answer("a", 1.0)], 0.0, are_copies=False)
    pairing.add([answer("a", 1.0)], 0.0, are_copies=True)
    pairing.take()

    assert pairing.take().pairs == 0


def test_a_copy_that_the_shadow_failed_is_unanswered_and_no_disagreement() -> None:
    pairing = Pairing(metric=METRIC)
    pairing.add([answer("a", 1.0)], 0.0, are_copies=False)
    pairing.add([answer("a", failed=True)], 0.0, are_copies=True)

    counts = pairing.take()

    assert (counts.pairs, counts.unanswered, counts.disagreements) == (0, 1, 0)


def test_a_request_that_the_baseline_failed_says_nothing_about_the_shadow() -> None:
    pairing = Pairing(metric=METRIC)
    pairing.add([answer("a", failed=True)], 0.0, are_copies=False)
    pairing.add([answer("a", 1.0)], 0.0, are_copies=True)

    assert pairing.take().pairs == 0


def test_answers_without_counterpart_are_let_go_when_they_are_old() -> None:
    pairing = Pairing(metric=METRIC)
    pairing.add([answer("old", 1.0)], 0.0, are_copies=False)
    pairing.add([answer("new", 1.0)], 1000.0, are_copies=False)
    pairing.add([answer("old", 1.0), answer("new", 1.0)], 1000.0, are_copies=True)

    assert pairing.take().pairs == 1


@pytest.mark.parametrize(
    ("limit", "value"), [("_MAX_WAITING", 2), ("_MAX_WAITING_BYTES", 2 * 1100)]
)
def test_waiting_answers_are_bounded_in_number_and_in_bytes(
    monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    monkeypatch.setattr(module, limit, value)
    pairing = Pairing(metric=METRIC)
    answers = [answer(name, *[1.0] * 100) for name in "abcd"]
    assert 1000 < answers[0].size_bytes < 1100

    pairing.add(answers, 0.0, are_copies=False)
    pairing.add(answers, 0.0, are_copies=True)

    assert pairing.take().pairs == 2


def test_an_answer_larger_than_all_that_may_wait_is_let_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_MAX_WAITING_BYTES", 10)
    pairing = Pairing(metric=METRIC)

    pairing.add([answer("a", 1.0)], 0.0, are_copies=False)
    pairing.add([answer("a", 1.0)], 0.0, are_copies=True)

    assert pairing.take().pairs == 0


@given(order=st.permutations([("p", i) for i in range(6)] + [("s", i) for i in range(6)]))
def test_every_pair_is_counted_once_in_any_order(order: list[tuple[str, int]]) -> None:
    pairing = Pairing(metric=METRIC)

    for side, i in order:
        pairing.add([answer(str(i), float(i))], 0.0, are_copies=side == "s")

    assert pairing.take().pairs == 6


@given(OUTPUTS)
def test_an_answer_agrees_with_itself_whatever_is_in_it(outputs: dict[str, Array]) -> None:
    assert agree(of(outputs), of(outputs), EXACT)
    assert agree(of(outputs), of(outputs), DIRECTION)
    assert distance(of(outputs), of(outputs), METRIC) == 0.0


@given(OUTPUTS, st.randoms())
def test_the_order_of_the_outputs_does_not_matter(
    outputs: dict[str, Array], chance: object
) -> None:
    names = list(outputs)
    chance.shuffle(names)  # type: ignore[attr-defined]  # random.Random

    assert agree(of(outputs), of({name: outputs[name] for name in names}), EXACT)


@given(OUTPUTS, OUTPUTS)
def test_the_distance_of_any_two_answers_is_finite(
    one: dict[str, Array], other: dict[str, Array]
) -> None:
    assert 0.0 <= distance(of(one), of(other), METRIC) <= 1e100
    assert -1e-9 <= distance(of(one), of(other), DIRECTION) <= 2.0 + 1e-9


@given(
    st.integers(1, 6000).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1))),
    st.sampled_from([np.float16, np.float32, np.float64, np.int64, np.bool_]),
)
def test_one_value_that_differs_is_met_wherever_it_is(place: tuple[int, int], dtype: type) -> None:
    size, at = place
    one: Array = np.zeros(size, dtype)
    other = one.copy()
    other[at] = 1

    assert not agreed(one, other)
    assert agreed(one, one.copy())


@given(
    arrays.arrays("<f8", 40, elements=st.floats(-1e6, 1e6)),
    arrays.arrays("<f8", 40, elements=st.floats(-1.0, 1.0)),
    st.floats(0.0, 1.0),
    st.floats(0.0, 1.0),
)
def test_values_within_the_tolerance_agree_and_others_do_not(
    baseline: Array, step: Array, absolute: float, relative: float
) -> None:
    metric = DisagreementSpec(absolute_tolerance=absolute, relative_tolerance=relative)
    candidate = baseline + step
    far = [
        abs(Fraction(b) - Fraction(a))
        / (Fraction(absolute) + Fraction(relative) * abs(Fraction(a)))
        if absolute or relative * abs(a)
        else Fraction(10**9 * (a != b))
        for a, b in zip(baseline.tolist(), candidate.tolist(), strict=True)
    ]
    if all(ratio < 1 - 1e-9 for ratio in far):
        assert agreed(baseline, candidate, metric)
    if any(ratio > 1 + 1e-9 for ratio in far):
        assert not agreed(baseline, candidate, metric)


@given(arrays.arrays("<f4", 20))
def test_another_precision_of_the_same_numbers_agrees(values: Array) -> None:
    assert agreed(values, values.astype(np.float64), EXACT)
    assert agreed(values.astype(np.float64), values, EXACT)


@given(st.integers(0, 2**63 - 1))
def test_integers_are_compared_exactly_whatever_their_width(number: int) -> None:
    one = np.array([number], np.int64)

    assert agreed(one, one.astype(np.uint64))
    assert not agreed(one, np.array([number + 1], np.uint64))


def test_classes_that_differ_disagree_however_near_their_numbers() -> None:
    metric = DisagreementSpec(absolute_tolerance=5.0, relative_tolerance=0.5)

    assert not agreed(np.array([1000]), np.array([1001]), metric)
    assert not agreed(texts(b"3"), texts(b"4"), metric)
    assert not agreed(np.array([True]), np.array([False]), metric)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.array([1.0]), np.array([1])),
        (np.array([1]), np.array([True])),
        (np.array([1]), texts(b"1")),
        (np.array([1.0]), np.array([[1.0]])),
        (np.array([1.0]), np.array([1.0, 1.0])),
        (np.zeros((0, 4)), np.zeros((4, 0))),
        (texts(), texts(b"")),
        (texts(b"a" * 100), texts(b"a" * 101)),
    ],
)
def test_another_kind_or_shape_disagrees(one: Array, other: Array) -> None:
    assert not agreed(one, other)
    assert not agreed(other, one)


def test_other_names_or_a_missing_output_disagree() -> None:
    one = np.array([1.0])

    assert not agree(of({"y": one}), of({"z": one}), METRIC)
    assert not agree(of({"y": one, "z": one}), of({"y": one}), METRIC)
    assert not agree(of({}), of({"y": one}), METRIC)
    assert agree(of({}), of({}), METRIC)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_what_is_not_finite_agrees_with_its_like_only(dtype: type) -> None:
    special = [math.nan, math.inf, -math.inf, 0.0]
    loose = DisagreementSpec(absolute_tolerance=1e300, relative_tolerance=0.5)

    for one in special:
        for other in special:
            same = agreed(np.array([one], dtype), np.array([other], dtype), loose)
            assert same == (one == other or (math.isnan(one) and math.isnan(other)))
    assert agreed(np.array([-0.0], dtype), np.array([0.0], dtype), EXACT)
    assert agreed(np.array([math.nan, 1.0], dtype), np.array([-math.nan, 1.001], dtype)), (
        "the bits of a NaN do not matter"
    )


def test_nan_in_the_candidate_is_found_beside_equal_values() -> None:
    assert not agreed(np.array([1.0, 2.0]), np.array([1.0, math.nan]))


def test_a_distance_is_the_mean_over_finite_numbers() -> None:
    one = of({"y": np.array([1.0, math.nan, 5.0]), "label": texts(b"cat"), "other": np.zeros(2)})
    other = of({"y": np.array([3.0, 1.0, 5.0]), "label": texts(b"dog"), "other": np.zeros(3)})

    assert distance(one, other, METRIC) == 1.0
    assert distance(of({"y": texts(b"a")}), of({"y": texts(b"b")}), METRIC) == 0.0
    assert distance(of({"y": np.array([1e308])}), of({"y": np.array([-1e308])}), METRIC) == 1e100


@given(
    arrays.arrays("<f4", (3, 8), elements=st.floats(-10, 10, width=32)),
    arrays.arrays("<f4", (3, 8), elements=st.floats(-10, 10, width=32)),
    st.floats(0.0, 2.0),
)
def test_vectors_agree_if_each_is_near_enough_in_direction(
    baseline: Array, candidate: Array, limit: float
) -> None:
    metric = DisagreementSpec(
        absolute_tolerance=0.0, relative_tolerance=0.0, max_cosine_distance=limit
    )
    far = []
    for one, other in zip(baseline.tolist(), candidate.tolist(), strict=True):
        norms = math.hypot(*one) * math.hypot(*other)
        dot = math.fsum(a * b for a, b in zip(one, other, strict=True))
        far.append(1 - dot / norms if norms > 0 else 0.0 if one == other else math.inf)

    is_agreed = agreed(baseline, candidate, metric)

    if all(apart < limit - 1e-6 for apart in far):
        assert is_agreed
    if any(apart > limit + 1e-6 for apart in far) and not np.array_equal(baseline, candidate):
        assert not is_agreed


def test_a_vector_of_zeros_or_nan_agrees_with_its_like_only() -> None:
    zeros, ones = np.zeros((2, 4)), np.ones((2, 4))
    broken = np.array([[1.0, 1.0, 1.0, 1.0], [math.nan, 1.0, 1.0, 1.0]])

    assert agreed(zeros, zeros.copy(), DIRECTION)
    assert not agreed(ones, zeros, DIRECTION)
    assert not agreed(zeros, ones, DIRECTION)
    assert not agreed(ones, broken, DIRECTION)
    assert agreed(broken, broken.copy(), DIRECTION)


@pytest.mark.parametrize("values", [[1.0, 2.0], [[1.0], [2.0]], [[1, 2], [3, 4]]])
def test_scores_and_integers_have_no_direction(values: list[object]) -> None:
    assert not agreed(np.array(values), 2 * np.array(values), DIRECTION)


def test_the_mean_distance_of_embeddings_is_that_of_their_directions() -> None:
    one = {"embedding": np.array([[1.0, 0.0], [0.0, 2.0]]), "#tokens": np.array([3, 4])}
    other = {"embedding": np.array([[0.0, 1.0], [0.0, 1.0]]), "#tokens": np.array([3, 4])}

    assert distance(of(one), of(other), DIRECTION) == 0.5


def test_sampled_values_of_large_answers_are_one_vector() -> None:
    one = np.random.default_rng(0).normal(size=(1000, 200))

    assert agreed(one, one * 1.5, DIRECTION)
    assert not agreed(one, -one, DIRECTION)
    assert not agreed(one, one + np.random.default_rng(1).normal(size=one.shape), DIRECTION)
