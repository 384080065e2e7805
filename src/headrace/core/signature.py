"""Model signatures, and validation of a request's tensors against a signature."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import numpy as np

from headrace.core.datatypes import Datatype
from headrace.core.errors import InvalidArgumentError

Array = np.ndarray[Any, Any]
Tensors = dict[str, Array]
"""Tensors by name.

Data is C-contiguous and little-endian; BYTES is an object array of `bytes`.
"""

ExampleValue = float | str | list[Any]
"""Valid value of an input: of each element, or a list of all values of a request."""

VARIABLE = -1
"""Size of a dimension that each request chooses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """Name, datatype and shape of one input or output; the shape includes the batch axis."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of `shape` is valid; a variable dimension accepts any size."""
        own_shape = self.shape
        if len(shape) != len(own_shape):
            return False
        return all(
            expected in (VARIABLE, actual)
            for expected, actual in zip(own_shape, shape, strict=True)
        )


class RowIndependence(StrEnum):
    """Evidence that the rows of a batch do not influence each other's outputs."""

    PROVEN = "proven"
    """The format has no operation across rows, or an analysis of the graph showed that this graph
    has none; running the model did not contradict it."""
    DECLARED = "declared"
    """Not proven; the operator or the author of the model declares it, and live checks compare."""
    UNPROVEN = "unproven"
    """An operation mixes rows, may mix them, or is unknown."""
    REFUTED = "refuted"
    """A run of rows together gave other outputs than runs of the same rows alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSignature:
    """Inputs and outputs of a model version."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batched: bool
    """Whether axis 0 of every input and output is the batch, so that requests may share a batch."""
    row_independence: RowIndependence | None = field(default=None, compare=False)
    """Evidence that rows do not influence each other; None if axis 0 is not a batch, or the
    version was pushed before the analysis existed."""
    row_reason: str = field(default="", compare=False)
    """Operator, probe or rule behind `row_independence`, as text."""
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Per output, the class names that the classification extension returns."""
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Per matrix input, the names of its columns, if the model knows them."""
    example: Mapping[str, ExampleValue] = field(default_factory=dict, compare=False)
    """Valid values by input, for models that refuse others, such as a category from training."""

    def input(self, name: str) -> TensorSpec | None:
        """Return the input of this name, or None."""
        return next((spec for spec in self.inputs if spec.name == name), None)

    def output(self, name: str) -> TensorSpec | None:
        """Return the output of this name, or None."""
        return next((spec for spec in self.outputs if spec.name == name), None)

    @property
    def has_tensors(self) -> bool:
        """Whether the model runs tensors; a language model serves OpenAI's API instead."""
        return bool(self.inputs or self.outputs)

    @property
    def has_variable_size(self) -> bool:
        """Whether any input has a variable dimension besides the batch."""
        first = 1 if self.batched else 0
        return any(VARIABLE in spec.shape[first:] for spec in self.inputs)


def with_weakest_evidence(
    signature: ModelSignature, members: Iterable[ModelSignature]
) -> ModelSignature:
    """Return the signature of a model composed of others, with their weakest evidence.

    A member without evidence is a Headrace step, which treats each row alone.
    """
    order = list(RowIndependence)
    examined = [
        (order.index(member.row_independence), member.row_reason)
        for member in members
        if member.row_independence is not None
    ]
    if not examined:
        return signature
    rank, reason = max(examined)
    return replace(signature, row_independence=order[rank], row_reason=reason)


def check_inputs(model: str, signature: ModelSignature, inputs: Mapping[str, Array]) -> int:
    """Validate `inputs` and return their number of rows (1 for a model that is not batched).

    Error messages are Triton's, which clients and log filters know.

    Raises:
        InvalidArgumentError: An input is missing, unknown, of another datatype or of another shape,
            or the inputs disagree on the number of rows.
    """
    specs = signature.inputs
    if len(inputs) != len(specs) or any(spec.name not in inputs for spec in specs):
        raise InvalidArgumentError(_wrong_names(model, signature, inputs))
    rows = -1
    for spec in specs:
        array = inputs[spec.name]
        if array.dtype != spec.datatype.dtype:
            raise wrong_datatype(model, spec, str(array.dtype))
        shape = array.shape
        if not spec.fits(shape):
            raise wrong_shape(model, spec, shape)
        if signature.batched:
            if rows == -1:
                rows = shape[0]
            elif rows != shape[0]:
                msg = (
                    f"inputs of model '{model}' disagree on the batch size: "
                    f"{rows} and {shape[0]} ('{spec.name}')"
                )
                raise InvalidArgumentError(msg)
    if not signature.batched:
        return 1
    if rows == 0:
        msg = f"inference request for model '{model}' has a batch size of 0"
        raise InvalidArgumentError(msg)
    return rows


def wrong_datatype(model: str, spec: TensorSpec, actual: str) -> InvalidArgumentError:
    """Return the error for an input of another datatype than `spec` names."""
    return InvalidArgumentError(
        f"inference input '{spec.name}' data-type is '{actual}', "
        f"but model '{model}' expects '{spec.datatype}'"
    )


def wrong_shape(model: str, spec: TensorSpec, actual: tuple[int, ...]) -> InvalidArgumentError:
    """Return the error for an input that `spec.fits` refuses."""
    return InvalidArgumentError(
        f"unexpected shape for input '{spec.name}' for model '{model}'. "
        f"Expected {_shape(spec.shape)}, got {_shape(actual)}"
    )


def _wrong_names(model: str, signature: ModelSignature, inputs: Mapping[str, Array]) -> str:
    for name in inputs:
        if signature.input(name) is None:
            return f"unexpected inference input '{name}' for model '{model}'"
    missing = ", ".join(f"'{spec.name}'" for spec in signature.inputs if spec.name not in inputs)
    return (
        f"expected {len(signature.inputs)} inputs but got {len(inputs)} inputs "
        f"for model '{model}'. Missing: {missing}"
    )


def _shape(shape: tuple[int, ...]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"
