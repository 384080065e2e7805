"""How a first inference went is told, and a model that fails on made-up inputs is a model."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from headrace.core import (
    Datatype,
    FirstRun,
    ModelSignature,
    RuntimeFailedError,
    Tensors,
    TensorSpec,
)
from headrace.runtimes.plugins import first_run


@dataclass
class Played:
    """A model whose runs take as long as they are told, on a clock of its own."""

    takes_s: list[float]
    least_size: int = 0
    now: float = 0.0
    concurrent: bool = False
    signature: ModelSignature = field(
        default_factory=lambda: ModelSignature(
            inputs=(TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1, -1)),),
            outputs=(TensorSpec(name="y", datatype=Datatype.FP32, shape=(-1, -1)),),
            batched=True,
        )
    )

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> Tensors:
        del outputs
        if inputs["x"].shape[1] < self.least_size:
            msg = f"at least {self.least_size} values"
            raise RuntimeFailedError(msg)
        self.now += self.takes_s.pop(0)
        return {"y": inputs["x"]}

    def close(self) -> None:
        """Nothing is held."""

    def clock(self) -> float:
        return self.now


def test_what_is_set_up_once_is_no_part_of_an_inference() -> None:
    model = Played(takes_s=[0.5, 0.25])

    assert first_run(model, model.clock) == FirstRun(run_s=0.25)


def test_a_slow_model_is_run_once() -> None:
    model = Played(takes_s=[40.0])

    assert first_run(model, model.clock) == FirstRun(run_s=40.0)


def test_variable_sizes_are_tried_until_one_runs() -> None:
    model = Played(takes_s=[0.5, 0.25], least_size=30)

    assert first_run(model, model.clock) == FirstRun(run_s=0.25)


def test_a_model_that_fails_on_made_up_inputs_says_why() -> None:
    model = Played(takes_s=[], least_size=10**9)

    assert first_run(model, model.clock) == FirstRun(error="at least 1000000000 values")
