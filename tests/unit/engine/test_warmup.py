"""Warm-up: what is learned before the first caller."""

from collections.abc import Sequence

import pytest

from headrace.core import Datatype, ModelSignature, Tensors, TensorSpec
from headrace.engine import ServiceTimes, warm_up
from tests.unit.engine.models import LENGTHS, ROWS

UNBATCHED = ModelSignature(
    inputs=(TensorSpec(name="x", datatype=Datatype.FP32, shape=(3,)),),
    outputs=(TensorSpec(name="y", datatype=Datatype.FP32, shape=(3,)),),
    batched=False,
)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Costed:
    """A model whose runs take made-up time: `fixed_s + row_s` a row, times the length."""

    concurrent = True

    def __init__(
        self,
        clock: Clock,
        signature: ModelSignature,
        *,
        fixed_s: float = 0.0,
        row_s: float = 0.001,
        longest: int = 10_000,
        dearer_from: int = 10_000,
    ) -> None:
        self.signature = signature
        self.shapes: list[tuple[int, ...]] = []
        self._clock = clock
        self._fixed_s, self._row_s, self._longest = fixed_s, row_s, longest
        self._dearer_from = dearer_from

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> Tensors:  # noqa: ARG002  # the protocol's signature
        shape = inputs["x"].shape
        if max(shape[1:], default=0) > self._longest:
            raise ValueError("too long")
        self.shapes.append(shape)
        dearer = 2 if shape[0] >= self._dearer_from else 1
        self._clock.now += self._fixed_s + self._row_s * shape[0] * dearer
        return {}

    def close(self) -> None:
        pass


def test_batch_sizes_are_measured_up_to_the_largest() -> None:
    clock = Clock()
    model = Costed(clock, ROWS, fixed_s=0.001, row_s=0.00001)
    times = ServiceTimes(max_batch_size=8)

    assert warm_up(model, times, max_batch_size=8, budget_s=10, clock=clock)

    assert {shape[0] for shape in model.shapes} == {1, 2, 4, 8}
    assert times.estimate(rows=8, length=1) == pytest.approx(0.00108)
    assert times.best_rows(1) == 8


def test_a_slow_model_is_run_once_and_not_more_than_the_budget_allows() -> None:
    clock = Clock()
    model = Costed(clock, ROWS, fixed_s=30.0)

    assert warm_up(model, ServiceTimes(max_batch_size=8), max_batch_size=8, budget_s=1, clock=clock)

    assert model.shapes == [(1, 2)]


def test_batches_are_not_grown_once_rows_get_dearer() -> None:
    clock = Clock()
    model = Costed(clock, ROWS, dearer_from=4)

    assert warm_up(
        model, ServiceTimes(max_batch_size=32), max_batch_size=32, budget_s=10, clock=clock
    )

    assert {shape[0] for shape in model.shapes} == {1, 2, 4}


def test_lengths_that_the_model_does_not_take_are_passed_over() -> None:
    clock = Clock()
    model = Costed(clock, LENGTHS, longest=20)
    times = ServiceTimes(max_batch_size=2)

    assert warm_up(model, times, max_batch_size=2, budget_s=10, clock=clock)

    assert {shape[1] for shape in model.shapes} == {16}
    assert times.estimate(rows=1, length=16) == pytest.approx(0.001)


def test_a_model_that_takes_none_of_the_usual_lengths_is_tried_with_others() -> None:
    clock = Clock()
    model = Costed(clock, LENGTHS, longest=2)

    assert warm_up(model, ServiceTimes(max_batch_size=1), max_batch_size=1, budget_s=9, clock=clock)

    assert {shape[1] for shape in model.shapes} == {1}


def test_a_model_that_takes_no_made_up_inputs_is_said_to_be_cold(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    model = Costed(clock, LENGTHS, longest=0)

    assert not warm_up(
        model, ServiceTimes(max_batch_size=2), max_batch_size=2, budget_s=1, clock=clock
    )

    assert "not warmed up" in caplog.text


def test_a_model_without_batch_axis_is_warmed_up_as_it_is() -> None:
    clock = Clock()
    model = Costed(clock, UNBATCHED)

    assert warm_up(model, ServiceTimes(max_batch_size=1), max_batch_size=1, budget_s=1, clock=clock)

    assert set(model.shapes) == {(3,)}
