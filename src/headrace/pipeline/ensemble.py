"""Several models on the same inputs, and one answer of all."""

from collections.abc import Sequence

import numpy as np

from headrace.core import (
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
from headrace.pipeline.step_specs import EnsembleSpec
from headrace.pipeline.surroundings import Surroundings

_FLOATS = (Datatype.FP16, Datatype.FP32, Datatype.FP64)


class EnsembleStep:
    """The same inputs to all models, and their outputs combined. Implements `Model`."""

    def __init__(
        self, members: Members, spec: EnsembleSpec, combined: Sequence[TensorSpec]
    ) -> None:
        own = members.signature
        signature = ModelSignature(inputs=own.inputs, outputs=tuple(combined), batched=True)
        self.signature = with_weakest_evidence(signature, members.signatures)
        self.concurrent = members.concurrent
        self.may_wait = members.may_wait
        self._members = members
        self._combine = spec.combine
        count = len(members.all)
        weights = np.array(spec.weights or (1.0,) * count)
        self._weights = weights / weights.sum()

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> Tensors:
        """Run all models on one batch, one after the other.

        Raises:
            RuntimeFailedError: One failed, or gave another shape than the others.
        """
        names = outputs or [spec.name for spec in self.signature.outputs]
        rows = len(next(iter(inputs.values())))
        answers = [one.run(inputs, names, rows) for one in self._members.all]
        return {name: self._combined(name, [answer[name] for answer in answers]) for name in names}

    def example_inputs(self, *, rows: int, variable: int) -> Tensors:
        """As the models themselves say."""
        return self._members.example_inputs(rows=rows, variable=variable)

    def close(self) -> None:
        """Close all models."""
        self._members.close()

    def _combined(self, name: str, arrays: Sequence[Array]) -> Array:
        shapes = {array.shape for array in arrays}
        if len(shapes) > 1:
            told = ", ".join(
                f"'{one.name}' {list(array.shape)}"
                for one, array in zip(self._members.all, arrays, strict=True)
            )
            raise RuntimeFailedError(f"models disagree on the shape of '{name}': {told}")
        if self._combine == "vote":
            return _vote(arrays)
        if self._combine == "max":
            highest: Array = np.maximum.reduce(arrays)
            return highest
        total = np.zeros(arrays[0].shape, np.float64)
        for weight, array in zip(self._weights, arrays, strict=True):
            if weight:  # an infinity of a model without weight is none
                total += weight * array
        return total.astype(arrays[0].dtype)


def open_ensemble(spec: EnsembleSpec, around: Surroundings) -> EnsembleStep:
    """The step that `spec` describes.

    Raises:
        UnsupportedModelError: A model cannot be loaded, they disagree, or it makes no sense to
            combine their outputs so.
    """
    members = Members.open(spec.models, around)
    try:
        combined = members.agreed(spec.combined)
        for one in combined:
            _check(one, spec.combine)
        return EnsembleStep(members, spec, combined)
    except UnsupportedModelError:
        members.close()
        raise


def _check(one: TensorSpec, combine: str) -> None:
    is_float = one.datatype in _FLOATS
    if combine == "vote":
        fits, wanted = not is_float, "labels: whole numbers, BOOL or BYTES"
    elif combine == "max":
        fits, wanted = one.datatype is not Datatype.BYTES, "numbers"
    else:
        fits, wanted = is_float, "floats"
    if not fits:
        msg = f"'{one.name}' is {one.datatype}, and combine: {combine} needs {wanted}"
        raise UnsupportedModelError(f"{msg}; name the outputs to combine in 'combined'")


def _vote(arrays: Sequence[Array]) -> Array:
    """What most say, element by element; of equals what the first of them says."""
    votes = np.stack(arrays)
    agreeing = np.stack([(votes == one).sum(axis=0) for one in votes])
    winner = agreeing.argmax(axis=0)[np.newaxis]
    found: Array = np.take_along_axis(votes, winner, axis=0)[0]
    return found
