"""Agreement of two models' answers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import Array, InvalidArgumentError, RuntimeFailedError, Tensors
from headrace.optimize.accuracy import (
    Examples,
    Fidelity,
    ModelAnswers,
    RowTexts,
    cosine_run,
    gives_embeddings,
    measure_fidelity,
)
from headrace.optimize.accuracy.examples import first_request, pair_requests, second_request
from headrace.optimize.accuracy.fidelity import is_class_output
from tests.unit.optimize.accuracy.answered import answered, logits

RNG = np.random.default_rng(3)
CLASSES: Array = RNG.integers(0, 2, 500)
VECTORS: Array = RNG.normal(size=(500, 16)).astype(np.float32)


def of_classes(changed: int, n: int = 500) -> Fidelity:
    now = CLASSES[:n].copy()
    now[:changed] = 1 - now[:changed]
    return measure_fidelity(
        answered({"logits": logits(CLASSES[:n])}), answered({"logits": logits(now, noise=0.1)})
    )


def of_vectors(want: Array, got: Array, **more: float) -> Fidelity:
    return measure_fidelity(answered({"embedding": want}), answered({"embedding": got}), **more)


@pytest.mark.parametrize(("changed", "passes"), [(0, True), (10, True), (11, False), (138, False)])
def test_twice_the_allowed_loss_may_change(
    changed: int,
    passes: bool,  # noqa: FBT001  # a parameter
) -> None:
    found = of_classes(changed)

    assert found.passes is passes
    assert found.agreement_ratio == pytest.approx(1 - changed / 500)
    assert "fidelity only" in found.reason


def test_few_examples_prove_little() -> None:
    found = of_classes(0, n=148)

    assert not found.passes
    assert found.reason.startswith("not enough examples: n = 148, and about 149 are needed")
    assert of_classes(0, n=149).passes


def test_rounding_passes_on_any_number_of_examples() -> None:
    one, other = (answered({"logits": logits(CLASSES[:3], noise=e)}) for e in (0.0, 1e-4))

    assert measure_fidelity(one, other).passes


@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.sampled_from(["p", "embedding"]))
def test_the_same_answers_agree_wholly(seed: int, n: int, name: str) -> None:
    base = answered({name: np.random.default_rng(seed).normal(size=(n, 3))})

    found = measure_fidelity(base, base)

    assert found.passes
    assert (found.agreement_ratio, found.error_ratio, found.largest_relative) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize(("error", "passes"), [(0.1, True), (0.13, True), (0.16, False)])
def test_numbers_may_differ_by_a_part_of_their_spread(
    error: float,
    passes: bool,  # noqa: FBT001  # a parameter
) -> None:
    noise = RNG.normal(size=VECTORS.shape)

    found = of_vectors(VECTORS, (VECTORS + error * noise).astype(np.float32))

    assert found.passes is passes
    assert found.error_ratio == pytest.approx(error, rel=0.05)
    median, most_of_them, largest = found.outputs["embedding"].quantiles
    assert median < most_of_them < largest


def test_the_limit_is_where_correlations_lose_what_may_be_lost() -> None:
    truth = RNG.normal(size=200_000)
    error = np.sqrt(1 / 0.99**2 - 1)

    loss = 1 - np.corrcoef(truth, truth + error * RNG.normal(size=truth.shape))[0, 1]

    assert loss == pytest.approx(0.01, abs=5e-4)
    assert of_vectors(VECTORS, VECTORS * 1.0, max_loss=0.01).passes


def test_a_cosine_near_one_does_not_hide_that_all_answers_became_the_same() -> None:
    shared = np.full((1, 16), 20.0, np.float32)
    want, got = VECTORS + shared, np.repeat(shared, 500, axis=0)
    cosine = (want * got).sum(axis=1) / np.linalg.norm(want, axis=1) / np.linalg.norm(got, axis=1)

    found = of_vectors(want, got)

    assert cosine.mean() > 0.99
    assert not found.passes
    assert found.error_ratio == pytest.approx(1.0, rel=0.05)


def test_ragged_answers_are_compared_row_by_row() -> None:
    rows = [RNG.normal(size=(length, 4)) for length in RNG.integers(1, 9, 60).tolist()]
    base = answered({"hidden": np.zeros(60)})
    object.__setattr__(base, "rows", {"hidden": rows})
    other = answered({"hidden": np.zeros(60)})
    object.__setattr__(other, "rows", {"hidden": [row + 0.5 for row in rows]})

    found = measure_fidelity(base, other)

    assert found.n == 60
    assert found.error_ratio == pytest.approx(0.5, rel=0.15)
    assert not found.passes


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_answer_that_is_no_number_rejects_at_once(bad: float) -> None:
    got = VECTORS.copy()
    got[7, 3] = bad

    found = of_vectors(VECTORS, got)

    assert not found.passes
    assert "output 'embedding' holds non-finite numbers" in found.reason


@pytest.mark.parametrize(
    ("got", "told"),
    [
        ({"embedding": VECTORS[:, :4]}, "is float32 [4] instead of float32 [16]"),
        ({"embedding": VECTORS.astype(np.int64)}, "is int64 [16] instead of float32 [16]"),
        ({"other": VECTORS}, "it answers nothing in output 'embedding'"),
    ],
)
def test_other_shapes_and_outputs_reject_at_once(got: dict[str, Array], told: str) -> None:
    found = measure_fidelity(answered({"embedding": VECTORS}), answered(got))

    assert not found.passes
    assert told in found.reason


def test_failing_rejects_at_once() -> None:
    base, broken = answered({"y": VECTORS}), answered({"y": VECTORS}, failures={0: "no kernel"})

    assert "it fails on 1 examples that the baseline answers: no kernel" in (
        measure_fidelity(base, broken).reason
    )
    nothing = ModelAnswers(n=500, rows={})
    assert "answers nothing to compare with" in measure_fidelity(nothing, base).reason


def test_classes_that_are_numbers_or_names_are_compared_as_they_stand() -> None:
    names = np.array([b"no", b"yes"], np.object_)
    now = CLASSES.copy()
    now[:20] = 1 - now[:20]

    found = measure_fidelity(
        answered({"label": CLASSES, "name": names[CLASSES]}),
        answered({"label": now, "name": names[now]}),
    )

    assert found.agreement_ratio == pytest.approx(0.96)
    assert not found.passes


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        ("logits", np.zeros(3), True),
        ("output", np.array([3.0, -1.0]), True),
        ("output", np.array([[0.2, 0.8], [0.5, 0.5]]), True),
        ("output", np.array([[3.0, 0.8], [0.5, 0.5]]), False),
        ("output", np.array([0.6, -0.8]), False),
        ("sentence_embedding", np.array([0.2, 0.8]), False),
        ("probability", np.array([0.2]), False),
        ("score", np.array(0.2), False),
    ],
)
def test_scores_are_told_from_embeddings(
    name: str,
    row: Array,
    expected: bool,  # noqa: FBT001  # a parameter
) -> None:
    assert is_class_output(name, [row]) is expected


@pytest.mark.parametrize("limit", [-0.1, 1.0, float("nan")])
def test_a_limit_that_is_none_is_refused(limit: float) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot be compared"):
        of_vectors(VECTORS, VECTORS, max_loss=limit)


def test_without_any_allowed_loss_only_rounding_passes() -> None:
    assert of_vectors(VECTORS, VECTORS, max_loss=0.0).passes
    assert not of_vectors(VECTORS, VECTORS + np.float32(0.01), max_loss=0.0).passes


WORDS: Array = np.random.default_rng(0).normal(size=(20, 40)).astype(np.float32)


def tokens(inputs: Tensors) -> Tensors:
    return {"hidden": WORDS[inputs["input_ids"]], "length": inputs["input_ids"].sum(axis=1)}


def text(*ids: int, padding: int = 0) -> Tensors:
    mask = [1] * len(ids) + [0] * padding
    return {
        "input_ids": np.array([[*ids, *[9] * padding]]),
        "attention_mask": np.array([mask]),
    }


def cosine(a: Array, b: Array) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_texts_are_compared_by_the_mean_over_their_tokens_and_by_the_first() -> None:
    (pair,) = pair_requests([text(1, 2)], [text(3, 4, 5)])

    found = cosine_run(tokens)(pair)

    means = WORDS[[1, 2]].mean(axis=0), WORDS[[3, 4, 5]].mean(axis=0)
    assert found.keys() == {"hidden, mean", "hidden, first"}
    assert found["hidden, mean"].tolist() == pytest.approx([cosine(*means)], abs=1e-6)
    assert found["hidden, first"].tolist() == pytest.approx([cosine(WORDS[1], WORDS[3])], abs=1e-6)


def test_padding_counts_for_nothing() -> None:
    run = cosine_run(tokens)
    (plain,) = pair_requests([text(1, 2)], [text(3)])
    (padded,) = pair_requests([text(1, 2, padding=3)], [text(3, padding=6)])

    assert run(padded)["hidden, mean"] == pytest.approx(run(plain)["hidden, mean"])


def test_embeddings_of_texts_are_compared_as_they_are() -> None:
    run = cosine_run(lambda inputs: {"embedding": WORDS[inputs["input_ids"][:, 0]]})
    (pair,) = pair_requests([text(1)], [text(3)])

    assert run(pair)["embedding"].tolist() == pytest.approx([cosine(WORDS[1], WORDS[3])], abs=1e-6)


def test_an_embedding_of_nothing_is_like_no_other() -> None:
    run = cosine_run(lambda inputs: {"embedding": 0 * WORDS[inputs["input_ids"][:, 0]]})
    (pair,) = pair_requests([text(1)], [text(3)])

    assert run(pair)["embedding"].tolist() == [0.0]


def test_a_model_that_embeds_nothing_is_refused() -> None:
    (pair,) = pair_requests([text(1)], [text(3)])

    with pytest.raises(RuntimeFailedError, match="no output holds embeddings"):
        cosine_run(lambda _: {"label": np.array([1])})(pair)


def test_a_pair_is_both_requests() -> None:
    (pair,) = pair_requests([text(1)], [text(2, 3)])

    assert first_request(pair)["input_ids"].tolist() == [[1]]
    assert second_request(pair)["input_ids"].tolist() == [[2, 3]]
    assert (
        first_request(pair).keys() == second_request(pair).keys() == {"input_ids", "attention_mask"}
    )


def test_what_a_model_takes_of_pairs_is_the_first_text_without_a_score() -> None:
    pairs = pair_requests([text(1), text(4)], [text(2, 3), text(5)])
    examples = Examples(inputs=pairs, labels=np.array([0.5, 4.0]), texts=RowTexts.BI_ENCODER)

    alone = examples.subset([1]).as_model_requests()

    assert alone.labels is None
    assert [one["input_ids"].tolist() for one in alone.inputs] == [[[4]]]
    assert alone.as_model_requests() is alone


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ([(1, 7, 384)], "embeds"),
        ([(1, 384)], "embeds"),
        ([(1, 7, 384), (1, 384)], "embeds"),
        ([(1, 2)], "scores"),
        ([(1, 7, 384), (1, 2)], "scores"),
        ([(1, 9, 384)], "scores"),
        ([(1,)], "scores"),
        ([], "scores"),
    ],
)
def test_a_model_embeds_if_it_gives_nothing_else(
    shapes: list[tuple[int, ...]], expected: str
) -> None:
    answer = {f"y{i}": np.zeros(shape, np.float32) for i, shape in enumerate(shapes)}

    assert gives_embeddings(answer, length=7) is (expected == "embeds")
