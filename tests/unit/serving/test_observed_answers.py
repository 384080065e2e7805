"""Answers kept for a rollout: a share of them, the same in every replica, with all their values."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from headrace.core import Array, Tensors
from headrace.serving.telemetry import observation as module
from headrace.serving.telemetry.observation import MAX_VALUES, compared_tensors, is_sampled
from headrace.serving.telemetry.report import SampledTensor

PAIR = b"0c6f0b4e-6f3a-4a36-9a8e-0d6c1d7d8a11"
OTHER = b"7d0a9f2c-2f0e-4d44-8a54-3f6d7f0d1b22"
NUMBERS = arrays.arrays(
    st.sampled_from(["<f4", "<f8", "<f2", "<i8", "<u8", "|b1", "<i4"]),
    arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9),
)


def texts(*items: bytes) -> Array:
    array = np.empty(len(items), np.object_)
    array[:] = items
    return array


def values(tensor: SampledTensor) -> Array:
    return np.frombuffer(tensor.data, tensor.dtype)


@given(st.dictionaries(st.text(max_size=5), NUMBERS, max_size=4), st.binary())
def test_every_value_of_an_answer_is_kept(outputs: Tensors, pair_id: bytes) -> None:
    kept = compared_tensors(outputs, pair_id)

    assert [tensor.name for tensor in kept] == list(outputs)
    for tensor, array in zip(kept, outputs.values(), strict=True):
        assert tensor.shape == list(array.shape)
        assert tensor.data == array.tobytes()
        assert np.dtype(tensor.dtype) == array.dtype


def test_an_answer_is_a_copy_that_later_batches_do_not_change() -> None:
    batch = np.arange(6, dtype=np.float32).reshape(3, 2)

    (kept,) = compared_tensors({"y": batch[1:2]}, PAIR)
    batch[:] = 0

    assert values(kept).tolist() == [2.0, 3.0]


def test_texts_are_kept_whole_and_long_ones_by_their_digest() -> None:
    long = b"a" * 1000

    (kept,) = compared_tensors({"y": texts(b"cat", b"\xff", long, long + b"b")}, PAIR)

    assert kept.items[:2] == [b"cat", b"\xff"]
    assert kept.items[2] != kept.items[3]
    assert {len(item) for item in kept.items[2:]} == {64}
    assert compared_tensors({"y": texts(long)}, PAIR)[0].items == kept.items[2:3]


def test_of_a_larger_answer_both_replicas_keep_the_same_values_and_other_requests_others() -> None:
    large = np.arange(MAX_VALUES + 1, dtype=np.float32)

    one, again, other = (compared_tensors({"y": large}, pair)[0] for pair in (PAIR, PAIR, OTHER))

    assert one == again
    assert one.data != other.data
    assert one.shape == [MAX_VALUES + 1]
    assert values(one).size == MAX_VALUES
    assert set(values(one).tolist()) <= set(large.tolist())


def test_the_outputs_of_a_larger_answer_have_equal_parts_and_small_ones_are_whole() -> None:
    large = np.zeros((2, MAX_VALUES), np.int64)

    label, image = compared_tensors({"label": np.arange(3), "image": large}, PAIR)

    assert values(label).tolist() == [0, 1, 2]
    assert values(image).size == MAX_VALUES // 2


def test_the_drawn_values_are_the_same_in_every_release_of_numpy() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_VALUES", 8)
        (drawn,) = compared_tensors({"y": np.arange(1000)}, PAIR)

    assert values(drawn).tolist() == [663, 336, 563, 980, 372, 436, 798, 13]


def test_a_share_of_the_values_that_differs_is_drawn_as_often_as_stated() -> None:
    """1 value in 20,000 differs: at least one of 131,072 draws meets it in 99.8 % of answers."""
    size, seeds = 10 * MAX_VALUES, np.random.default_rng(5)
    different = np.zeros(size, np.bool_)
    different[::20_000] = True

    drawn = [compared_tensors({"y": different}, seeds.bytes(16))[0] for _ in range(300)]

    assert sum(values(one).any() for one in drawn) >= 296


@pytest.mark.parametrize("percent", [1, 10, 50])
def test_a_share_of_ids_is_sampled(percent: int) -> None:
    rng = np.random.default_rng(7)
    many = [rng.bytes(16).hex().encode() for _ in range(20_000)]

    share = sum(is_sampled(one, percent) for one in many) / len(many)

    assert share == pytest.approx(percent / 100, abs=0.015)


@settings(max_examples=50)
@given(st.binary(), st.integers(0, 100), st.integers(0, 100))
def test_a_larger_share_holds_the_smaller(one: bytes, share: int, other: int) -> None:
    low, high = sorted((share, other))

    assert is_sampled(one, high) or not is_sampled(one, low)
    assert is_sampled(one, 100)
    assert not is_sampled(one, 0)
