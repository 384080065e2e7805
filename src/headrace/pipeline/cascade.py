"""Models in order, cheap ones first: a row goes on only while nobody was sure of it."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from headrace.core import (
    VARIABLE,
    Array,
    Datatype,
    ModelSignature,
    RuntimeFailedError,
    Tensors,
    TensorSpec,
    UnsupportedModelError,
    with_weakest_evidence,
)
from headrace.pipeline.members import Members
from headrace.pipeline.step_specs import CascadeSpec
from headrace.pipeline.surroundings import Surroundings

STAGE: Final = "stage"
_FLOATS: Final = (Datatype.FP16, Datatype.FP32, Datatype.FP64)


class CascadeStep:
    """The models' outputs, and `stage` INT64 [N]: which of them answered a row, from 0.

    Implements `Model`.
    """

    def __init__(self, members: Members, spec: CascadeSpec, outputs: Sequence[TensorSpec]) -> None:
        stage = TensorSpec(name=STAGE, datatype=Datatype.INT64, shape=(VARIABLE,))
        signature = ModelSignature(
            inputs=members.signature.inputs, outputs=(*outputs, stage), batched=True
        )
        self.signature = with_weakest_evidence(signature, members.signatures)
        self.concurrent = members.concurrent
        self.may_wait = members.may_wait
        self._members = members
        self._confidence = spec.confidence
        self._threshold = spec.threshold

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> Tensors:
        """Run one batch: each model on the rows that are left.

        Raises:
            RuntimeFailedError: One failed, or gave another shape than those before it.
        """
        wanted = outputs or [spec.name for spec in self.signature.outputs]
        names = [name for name in wanted if name != STAGE]
        asked = [*names, *({self._confidence} - set(names))]
        rows = len(next(iter(inputs.values())))
        made: Tensors = {STAGE: np.zeros(rows, np.int64)}
        left = np.arange(rows)
        for stage, one in enumerate(self._members.all):
            is_all = len(left) == rows
            given = inputs if is_all else {name: array[left] for name, array in inputs.items()}
            answers = one.run(given, asked, len(left))
            sure = self._is_sure(answers[self._confidence])
            if stage == len(self._members.all) - 1:
                sure = np.ones(len(left), np.bool_)
            if is_all and sure.all():
                made |= answers
                made[STAGE][:] = stage
                break
            taken = left[sure]
            made[STAGE][taken] = stage
            for name in names:
                _place(made, name, answers[name][sure], taken, rows, one.name)
            left = left[~sure]
            if not len(left):
                break
        return {name: made[name] for name in wanted}

    def example_inputs(self, *, rows: int, variable: int) -> Tensors:
        """As the models themselves say."""
        return self._members.example_inputs(rows=rows, variable=variable)

    def close(self) -> None:
        """Close all models."""
        self._members.close()

    def _is_sure(self, values: Array) -> Array:
        """For each row; a model whose confidence is no number is not sure."""
        best = values.max(axis=1, initial=-np.inf) if values.ndim > 1 else values
        sure: Array = best >= self._threshold
        return sure


def open_cascade(spec: CascadeSpec, around: Surroundings) -> CascadeStep:
    """The step that `spec` describes.

    Raises:
        UnsupportedModelError: A model cannot be loaded, they disagree, or none says how sure it is.
    """
    members = Members.open(spec.models, around)
    try:
        return CascadeStep(members, spec, _outputs(members, spec))
    except UnsupportedModelError:
        members.close()
        raise


def _outputs(members: Members, spec: CascadeSpec) -> tuple[TensorSpec, ...]:
    """What all models give alike; one of it has to say how sure they are."""
    outputs = members.agreed(None)
    (sure,) = members.agreed([spec.confidence])
    if sure.datatype not in _FLOATS or len(sure.shape) not in {1, 2}:
        msg = f"'{sure.name}' is {sure.datatype} of the shape {list(sure.shape)}"
        raise UnsupportedModelError(f"{msg}; a confidence is floats [-1] or [-1, classes]")
    if any(one.name == STAGE for one in outputs):
        msg = f"a model gives '{STAGE}' itself, which says here which model answered"
        raise UnsupportedModelError(msg)
    return outputs


def _place(  # noqa: PLR0917  # one loop's body
    made: Tensors, name: str, answers: Array, rows: Array, total: int, model: str
) -> None:
    there = made.get(name)
    if there is None:
        there = made[name] = np.zeros((total, *answers.shape[1:]), answers.dtype)
    if there.shape[1:] != answers.shape[1:]:
        msg = (
            f"'{model}' gave '{name}' with {list(answers.shape[1:])} a row, and a model before it "
            f"{list(there.shape[1:])}"
        )
        raise RuntimeFailedError(msg)
    there[rows] = answers
