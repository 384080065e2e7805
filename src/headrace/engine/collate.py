"""Conversion of requests to one batch, and of the batch's outputs to one result per request."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from headrace.core import (
    VARIABLE,
    Array,
    BatchOutputs,
    ModelSignature,
    PaddingSpec,
    RequestRows,
    RuntimeFailedError,
    Tensors,
)
from headrace.engine.ticket import Ticket
from headrace.runtimes import OutputLengthAxes


@dataclass(frozen=True, slots=True, kw_only=True)
class PaddingPlan:
    """Plan that pads rows of different lengths into one tensor.

    `axis` is the padded axis of the inputs in `values`, which maps each input to its padding value.
    `output_axes` gives the axes of each output that follow the length; other outputs have none.
    """

    axis: int
    values: dict[str, float]
    output_axes: OutputLengthAxes = field(default_factory=dict)
    max_ratio: float


def padding_plan(
    signature: ModelSignature, padding: PaddingSpec, output_axes: OutputLengthAxes
) -> PaddingPlan:
    """Return the plan that pads every input of `signature` whose `padding.axis` is variable."""
    axis = padding.axis
    values = {
        spec.name: float(padding.values.get(spec.name, 0))
        for spec in signature.inputs
        if len(spec.shape) > axis and spec.shape[axis] == VARIABLE
    }
    return PaddingPlan(
        axis=axis, values=values, output_axes=output_axes, max_ratio=padding.max_ratio
    )


class Shapes:
    """Batch compatibility of a model's requests, derived from their shapes."""

    def __init__(self, signature: ModelSignature, plan: PaddingPlan | None) -> None:
        self._plan = plan
        self._variable = [
            (spec.name, [axis for axis, size in enumerate(spec.shape) if axis and size == VARIABLE])
            for spec in signature.inputs
        ]
        self._variable = [(name, axes) for name, axes in self._variable if axes]
        self.is_uniform = not signature.batched or not self._variable

    def mark(self, ticket: Ticket) -> None:
        """Set the ticket's length and group; not needed where all requests are uniform."""
        inputs = ticket.request.inputs
        name, axes = self._variable[0]
        shape = inputs[name].shape
        length = 1
        for axis in axes:
            length *= shape[axis]
        ticket.length = max(length, 1)
        ticket.group = tuple(self._group(name, inputs[name].shape) for name, _ in self._variable)

    def _group(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        plan = self._plan
        if plan is None or name not in plan.values:
            return shape[1:]
        return shape[1 : plan.axis] + shape[plan.axis + 1 :]


def join(tickets: Sequence[Ticket], plan: PaddingPlan | None) -> tuple[Tensors, int]:
    """Return the inputs of one run and their padded length; copies once, or not for one ticket."""
    first = tickets[0]
    if len(tickets) == 1:
        return first.request.inputs, first.length
    if plan is None:
        packed = _join_packed(tickets)
        if packed is not None:
            return packed, first.length
    many = [ticket.request.inputs for ticket in tickets]
    longest = max([ticket.length for ticket in tickets])
    if plan is None or all(ticket.length == longest for ticket in tickets):
        return {
            name: np.concatenate([inputs[name] for inputs in many]) for name in many[0]
        }, longest
    return {
        name: (
            _pad([inputs[name] for inputs in many], plan.axis, longest, plan.values[name])
            if name in plan.values
            else np.concatenate([inputs[name] for inputs in many])
        )
        for name in many[0]
    }, longest


def _join_packed(tickets: Sequence[Ticket]) -> Tensors | None:
    """Return the joined inputs of tickets whose only input is still bytes; faster than arrays."""
    first = tickets[0].request.packed
    if first is None:
        return None
    rows = 0
    parts = []
    for ticket in tickets:
        packed = ticket.request.packed
        if packed is None:
            return None
        rows += ticket.rows
        parts.append(packed.data)
    shape = (rows, *first.shape[1:])
    return {first.name: np.ndarray(shape, first.dtype, b"".join(parts))}


def _pad(arrays: Sequence[Array], axis: int, length: int, value: float) -> Array:
    first = arrays[0]
    shape = list(first.shape)
    shape[0] = sum(array.shape[0] for array in arrays)
    shape[axis] = length
    padded = np.full(shape, value, dtype=first.dtype)
    index: list[slice] = [slice(None)] * len(shape)
    start = 0
    for array in arrays:
        end = start + array.shape[0]
        index[0], index[axis] = slice(start, end), slice(0, array.shape[axis])
        padded[tuple(index)] = array
        start = end
    return padded


def split(
    outputs: Tensors, tickets: Sequence[Ticket], *, plan: PaddingPlan | None, padded_to: int
) -> Sequence[Tensors | RequestRows]:
    """Return each ticket's rows of the batch's outputs, as a part of them or as views.

    Raises:
        RuntimeFailedError: An output does not have one row per row of the batch.
    """
    if len(tickets) == 1:
        return [outputs]
    rows = 0
    for ticket in tickets:
        rows += ticket.rows
    for name, array in outputs.items():
        if not array.shape or array.shape[0] != rows:
            msg = (
                f"output '{name}' has shape {list(array.shape)} for a batch of {rows} rows: "
                "its first axis is not a batch axis"
            )
            raise RuntimeFailedError(msg)
    batch = BatchOutputs(outputs)
    parts: list[Tensors | RequestRows] = []
    start = 0
    for ticket in tickets:
        end = start + ticket.rows
        part = RequestRows(batch, start, end)
        if plan is not None and ticket.length < padded_to:
            arrays = part.arrays()
            parts.append({name: _unpad(arrays[name], plan, name, ticket.length) for name in arrays})
        else:
            parts.append(part)
        start = end
    return parts


def _unpad(array: Array, plan: PaddingPlan, name: str, length: int) -> Array:
    axes = plan.output_axes.get(name)
    if not axes:
        return array
    index = [slice(None)] * array.ndim
    for axis in axes:
        index[axis] = slice(0, length)
    return array[tuple(index)]
