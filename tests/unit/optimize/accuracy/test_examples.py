"""Examples keep their rows apart, and their hash tells one set from another."""

from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import InvalidArgumentError, Tensors
from headrace.optimize.accuracy import Examples, batches
from headrace.optimize.accuracy.examples import stacked_rows


def ragged(lengths: list[int], *, batched: bool = True) -> Examples:
    inputs: list[Tensors] = [
        {"ids": np.full((1, length), i, np.int64)} for i, length in enumerate(lengths)
    ]
    return Examples(inputs=inputs, labels=np.arange(len(lengths)), batched=batched)


@given(st.lists(st.integers(1, 5), max_size=40), st.integers(1, 7))
def test_every_example_is_in_one_batch_of_its_own_shape(lengths: list[int], rows: int) -> None:
    seen: list[int] = []
    for indices, inputs in batches(ragged(lengths), rows):
        assert 1 <= len(indices) <= rows
        assert inputs["ids"].shape == (len(indices), lengths[indices[0]])
        assert inputs["ids"][:, 0].tolist() == indices.tolist()
        seen += indices.tolist()

    assert sorted(seen) == list(range(len(lengths)))


def test_examples_of_a_model_without_a_batch_come_alone() -> None:
    assert [len(i) for i, _ in batches(ragged([3, 3, 3], batched=False), 8)] == [1, 1, 1]


def test_the_first_batches_are_of_all_lengths() -> None:
    lengths = [1 + i // 100 for i in range(400)]

    first = [lengths[i[0]] for i, _ in list(batches(ragged(lengths), 4))[:20]]

    assert set(first) == {1, 2, 3, 4}


def test_the_same_content_has_the_same_hash_however_it_is_kept() -> None:
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    stacked = Examples(inputs=stacked_rows({"x": x}, has_batch_axis=True), labels=np.arange(3))
    listed = Examples(inputs=[{"x": x[i : i + 1].copy()} for i in range(3)], labels=np.arange(3))

    assert stacked.sha256() == listed.sha256()
    assert stacked.subset([0, 1, 2]).sha256() == stacked.sha256()


def test_every_difference_has_another_hash() -> None:
    texts = [np.array([text], np.object_) for text in (b"ab", b"c", b"a", b"bc")]
    one = Examples(inputs=[{"t": texts[0]}, {"t": texts[1]}], labels=np.array([0, 1]))
    others = [
        Examples(inputs=[{"t": texts[2]}, {"t": texts[3]}], labels=np.array([0, 1])),
        Examples(inputs=one.inputs, labels=np.array([1, 1])),
        Examples(inputs=one.inputs, labels=np.array([0.0, 1.0])),
        Examples(inputs=one.inputs),
        Examples(inputs=one.inputs, labels=one.labels, names=("no", "yes")),
        one.subset([1, 0]),
    ]

    assert len({one.sha256(), *(other.sha256() for other in others)}) == 1 + len(others)


def test_rows_are_cut_with_and_without_a_batch_axis() -> None:
    x = np.arange(6).reshape(3, 2)

    assert stacked_rows({"x": x}, has_batch_axis=True)[-1]["x"].tolist() == [[4, 5]]
    assert stacked_rows({"x": x}, has_batch_axis=False)[1]["x"].tolist() == [2, 3]
    assert len(stacked_rows({"x": x}, has_batch_axis=True)[1:]) == 2
    with pytest.raises(IndexError):
        stacked_rows({"x": x}, has_batch_axis=True)[3]


def test_labels_of_another_number_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="1 examples have labels of shape"):
        Examples(inputs=[{"x": np.zeros((1, 2))}], labels=np.zeros(2))


@pytest.mark.parametrize("has_batch_axis", [True, False])
def test_examples_reach_a_process_of_their_own(*, has_batch_axis: bool) -> None:
    table = np.arange(12, dtype=np.float32).reshape(6, 2)
    rows = stacked_rows({"x": table}, has_batch_axis=has_batch_axis)
    part = Examples(inputs=rows, batched=has_batch_axis).subset([4, 1])

    sent = ForkingPickler.loads(ForkingPickler.dumps(part))

    assert [request["x"].tolist() for request in sent.inputs] == [
        request["x"].tolist() for request in part.inputs
    ]
