import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from headrace.core import (
    Datatype,
    ModelSignature,
    PaddingSpec,
    RuntimeFailedError,
    Tensors,
    TensorSpec,
    UnsupportedModelError,
)
from headrace.runtimes import VerifiedPadding, find_padding, pad_inputs, verify_padding
from headrace.runtimes.onnx.runtime import OnnxModel
from headrace.testing import models

Open = Callable[[bytes], OnnxModel]
Array = np.ndarray[Any, Any]
IDS = TensorSpec(name="ids", datatype=Datatype.INT64, shape=(-1, -1))
MASK = TensorSpec(name="attention_mask", datatype=Datatype.INT64, shape=(-1, -1))
BYTES = TensorSpec(name="words", datatype=Datatype.BYTES, shape=(-1, -1))


class FakeModel:
    """A model that is one function of the ids and the mask."""

    concurrent = True

    def __init__(
        self,
        function: Callable[[Array, Array], Array],
        *inputs: TensorSpec,
        batched: bool = True,
    ) -> None:
        out = TensorSpec(name="y", datatype=Datatype.FP32, shape=(-1,))
        self.signature = ModelSignature(
            inputs=inputs or (IDS, MASK), outputs=(out,), batched=batched
        )
        self._function = function

    def run(self, inputs: Tensors, outputs: object = None) -> Tensors:
        del outputs
        ids = next(iter(inputs.values()))
        return {"y": self._function(ids, inputs.get("attention_mask", ids))}

    def close(self) -> None:
        pass


def first_token(ids: Array, _: Array) -> Array:
    return ids[:, 0].astype(np.float32)


def sum_without_nines(ids: Array, _: Array) -> Array:
    return np.asarray(np.where(ids == 9, 0, ids).sum(axis=1), np.float32)


def masked_sum(ids: Array, mask: Array) -> Array:
    return np.asarray((ids * mask).sum(axis=1), np.float32)


def test_a_model_that_heeds_its_mask_is_padded(open_onnx: Open) -> None:
    found = find_padding(open_onnx(models.encoder()))

    settings = PaddingSpec(axis=1)
    assert found == VerifiedPadding(settings=settings, length_axes={"tokens": (1,)})


def test_a_model_that_reads_its_mask_and_ignores_it_is_not(
    open_onnx: Open, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert find_padding(open_onnx(models.encoder(uses_mask=False))) is None

    assert "padding changes output" in caplog.text


@pytest.mark.parametrize(
    "inputs",
    [
        (IDS,),
        (IDS, TensorSpec(name="masked_ids", datatype=Datatype.INT64, shape=(-1, -1))),
        (MASK, TensorSpec(name="image", datatype=Datatype.FP32, shape=(-1, -1, -1))),
        (IDS, TensorSpec(name="mask", datatype=Datatype.INT64, shape=(-1,))),
    ],
)
def test_without_one_length_and_a_mask_along_it_nothing_is_tried(
    inputs: tuple[TensorSpec, ...],
) -> None:
    assert find_padding(FakeModel(masked_sum, *inputs)) is None


def test_an_unbatched_model_is_not_padded() -> None:
    model = FakeModel(masked_sum, batched=False)

    assert find_padding(model) is None
    with pytest.raises(UnsupportedModelError, match="no batch axis"):
        verify_padding(model, PaddingSpec())


@pytest.mark.parametrize("name", ["mask", "attention_mask", "input.mask", "inputs:mask", "Mask"])
def test_a_mask_is_known_by_its_name(name: str) -> None:
    mask = TensorSpec(name=name, datatype=Datatype.INT64, shape=(-1, -1))

    assert find_padding(FakeModel(first_token, IDS, mask)) is not None


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (PaddingSpec(axis=0), "axis 0 is the batch"),
        (PaddingSpec(axis=2), "no input of the model is variable along axis 2"),
        (PaddingSpec(values={"idz": 1}), "given for idz, which cannot be padded"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused(settings: PaddingSpec, reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        verify_padding(FakeModel(masked_sum), settings)


def test_a_pad_value_of_the_models_own_is_used() -> None:
    model = FakeModel(sum_without_nines, IDS)

    assert verify_padding(model, PaddingSpec(values={"ids": 9})) == {}
    with pytest.raises(UnsupportedModelError, match=r"padding changes output 'y' by \d"):
        verify_padding(model, PaddingSpec(values={"ids": 7}))


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (
            lambda ids, _: np.zeros((len(ids), 2 * ids.shape[1])),
            "follows the length, but is not equal",
        ),
        (lambda ids, _: np.zeros((len(ids), 2, 2)[: ids.shape[1] - 1]), "not equal to it"),
        (
            lambda ids, _: np.zeros((len(ids), min(ids.shape[1], 5))),
            "the shape of output 'y' follows",
        ),
    ],
    ids=["twice as long", "another rank", "capped"],
)
def test_an_output_shaped_in_another_way_is_refused(
    function: Callable[[Array, Array], Array], reason: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        verify_padding(FakeModel(function), PaddingSpec())


def test_an_output_that_follows_only_some_lengths_is_refused() -> None:
    def capped(ids: Array, _: Array) -> Array:
        return np.zeros((len(ids), ids.shape[1] if ids.shape[1] in (3, 11) else 4), np.float32)

    with pytest.raises(UnsupportedModelError, match="consistently"):
        verify_padding(FakeModel(capped), PaddingSpec())


def test_a_model_whose_rows_meet_is_not_padded() -> None:
    model = FakeModel(lambda ids, mask: masked_sum(ids, mask) * np.float32(len(ids)))

    with pytest.raises(UnsupportedModelError, match="different results together than alone"):
        verify_padding(model, PaddingSpec())


def test_a_model_that_does_not_run_is_not_padded() -> None:
    def fails(ids: Array, _: Array) -> Array:
        msg = f"no length {ids.shape[1]}"
        raise RuntimeFailedError(msg)

    with pytest.raises(
        UnsupportedModelError, match=r"does not run on generated inputs.*no length 3"
    ):
        verify_padding(FakeModel(fails), PaddingSpec())


def test_ids_of_which_only_0_and_1_exist_are_tried_too() -> None:
    def few(ids: Array, mask: Array) -> Array:
        if ids.max() > 1:
            msg = "index out of range"
            raise RuntimeFailedError(msg)
        return masked_sum(ids, mask)

    assert find_padding(FakeModel(few)) is not None


def test_a_model_that_stops_at_a_length_is_not_padded_to_it() -> None:
    def short(ids: Array, mask: Array) -> Array:
        if ids.shape[1] > 5:
            msg = "longer than 5"
            raise RuntimeFailedError(msg)
        return masked_sum(ids, mask)

    with pytest.raises(UnsupportedModelError, match="padded from 3 to 11: longer than 5"):
        verify_padding(FakeModel(short), PaddingSpec())


@pytest.mark.parametrize("quantised", [True, False])
def test_the_noise_of_dynamic_quantisation_is_allowed_for(*, quantised: bool) -> None:
    """Such a model's answers depend a little on all that shares the run, padding or not."""

    def noisy(ids: Array, mask: Array) -> Array:
        noise = 0.002 * ids.shape[1] + (0.004 * len(ids) if quantised else 0)
        return masked_sum(ids, mask) * np.float32(1 + noise)

    assert (find_padding(FakeModel(noisy)) is not None) is quantised


def test_padding_fills_up_the_end_with_the_value_of_each_input() -> None:
    inputs: Tensors = {
        "ids": np.array([[1, 2]]),
        "words": np.array([[b"a", b"b"]], np.object_),
        "other": np.array([[5.0]]),
    }
    padded = pad_inputs(
        inputs,
        3,
        names=frozenset({"ids", "words"}),
        settings=PaddingSpec(values={"ids": 9}),
    )

    assert padded["ids"].tolist() == [[1, 2, 9]]
    assert padded["words"].tolist() == [[b"a", b"b", b""]]
    assert padded["other"] is inputs["other"]
