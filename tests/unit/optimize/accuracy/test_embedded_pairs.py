"""Two texts are as alike as their embeddings' cosine, whatever they are padded with."""

import numpy as np
import pytest

from headrace.core import Array, RuntimeFailedError, Tensors
from headrace.optimize.accuracy import Examples, Texts, cosine_run, gives_embeddings
from headrace.optimize.accuracy.examples import apart, first_of, second_of

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
    (pair,) = apart([text(1, 2)], [text(3, 4, 5)])

    found = cosine_run(tokens)(pair)

    means = WORDS[[1, 2]].mean(axis=0), WORDS[[3, 4, 5]].mean(axis=0)
    assert found.keys() == {"hidden, mean", "hidden, first"}
    assert found["hidden, mean"].tolist() == pytest.approx([cosine(*means)], abs=1e-6)
    assert found["hidden, first"].tolist() == pytest.approx([cosine(WORDS[1], WORDS[3])], abs=1e-6)


def test_padding_counts_for_nothing() -> None:
    run = cosine_run(tokens)
    (plain,) = apart([text(1, 2)], [text(3)])
    (padded,) = apart([text(1, 2, padding=3)], [text(3, padding=6)])

    assert run(padded)["hidden, mean"] == pytest.approx(run(plain)["hidden, mean"])


def test_embeddings_of_texts_are_compared_as_they_are() -> None:
    run = cosine_run(lambda inputs: {"embedding": WORDS[inputs["input_ids"][:, 0]]})
    (pair,) = apart([text(1)], [text(3)])

    assert run(pair)["embedding"].tolist() == pytest.approx([cosine(WORDS[1], WORDS[3])], abs=1e-6)


def test_an_embedding_of_nothing_is_like_no_other() -> None:
    run = cosine_run(lambda inputs: {"embedding": 0 * WORDS[inputs["input_ids"][:, 0]]})
    (pair,) = apart([text(1)], [text(3)])

    assert run(pair)["embedding"].tolist() == [0.0]


def test_a_model_that_embeds_nothing_is_refused() -> None:
    (pair,) = apart([text(1)], [text(3)])

    with pytest.raises(RuntimeFailedError, match="no output holds embeddings"):
        cosine_run(lambda _: {"label": np.array([1])})(pair)


def test_a_pair_is_both_requests() -> None:
    (pair,) = apart([text(1)], [text(2, 3)])

    assert first_of(pair)["input_ids"].tolist() == [[1]]
    assert second_of(pair)["input_ids"].tolist() == [[2, 3]]
    assert first_of(pair).keys() == second_of(pair).keys() == {"input_ids", "attention_mask"}


def test_what_a_model_takes_of_pairs_is_the_first_text_without_a_score() -> None:
    pairs = apart([text(1), text(4)], [text(2, 3), text(5)])
    examples = Examples(inputs=pairs, labels=np.array([0.5, 4.0]), texts=Texts.APART)

    alone = examples.subset([1]).alone()

    assert alone.labels is None
    assert [one["input_ids"].tolist() for one in alone.inputs] == [[[4]]]
    assert alone.alone() is alone


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
