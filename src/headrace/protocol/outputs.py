"""Outputs of a response: selected, classified, and in the requested form."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from headrace.core import (
    Array,
    InferRequest,
    InferResponse,
    InvalidArgumentError,
    ModelSignature,
    RequestedOutput,
    RuntimeFailedError,
)
from headrace.protocol.values import object_array


def classify(
    name: str, output: Array, *, classes: int, labels: Sequence[str] = (), batched: bool
) -> Array:
    """Return a BYTES tensor of the best `classes`, best first: `[batch, n]`, unbatched `[n]`.

    Equal values keep the order of their indices. There are at most as many entries as classes.

    Raises:
        InvalidArgumentError: The output holds no numbers.
    """
    if output.dtype.kind not in "iuf":
        msg = f"class result not available for output '{name}': its elements are not numbers"
        raise InvalidArgumentError(msg)
    rows = output.shape[0] if batched and output.ndim else 1
    width = output.size // rows if rows else 0
    table = output.reshape(rows, width)
    best = min(classes, width)
    entries = []
    for row in table:
        # Sorted in reverse, so that equal values keep their order.
        order = (width - 1 - np.argsort(row[::-1], kind="stable"))[::-1]
        if row.dtype.kind == "f":  # NumPy sorts NaN as the largest; it must not be the best class
            order = np.concatenate((order[~np.isnan(row[order])], order[np.isnan(row[order])]))
        entries += [_entry(row[i], int(i), labels) for i in order[:best]]
    return object_array(entries, (rows, best) if batched and output.ndim else (best,))


def _entry(value: np.generic, index: int, labels: Sequence[str]) -> bytes:
    number = value.item()
    text = f"{number:f}" if isinstance(number, float) else str(number)  # as C++'s to_string
    label = f":{labels[index]}" if index < len(labels) and labels[index] else ""
    return f"{text}:{index}{label}".encode()


class Answered(NamedTuple):
    """One output to send, and whether as raw bytes."""

    name: str
    array: Array
    binary: bool


def answered_outputs(
    response: InferResponse, request: InferRequest, signature: ModelSignature
) -> Iterator[Answered]:
    """Yield the outputs that `request` names, in its order; all if it names none.

    Raises:
        RuntimeFailedError: The model did not return one of them.
        InvalidArgumentError: Classes were requested of an output without numbers.
    """
    binary = request.binary_data_output
    if not request.outputs:
        for name, array in response.outputs.items():
            yield Answered(name, array, binary)
        return
    for requested in request.outputs:
        output = response.outputs.get(requested.name)
        if output is None:
            msg = f"model '{response.model_name}' did not return output '{requested.name}'"
            raise RuntimeFailedError(msg)
        as_binary = binary if requested.binary_data is None else requested.binary_data
        yield Answered(requested.name, _form(requested, output, signature), as_binary)


def raw_bytes(array: Array) -> memoryview | bytes:
    """Return the elements in row-major, little-endian order, without a copy if possible."""
    array = plain_array(array)
    if not array.size:
        return b""
    return array.reshape(-1).view(np.uint8).data


def plain_array(array: Array) -> Array:
    """Return `array` C-contiguous and little-endian; copied only if it is not."""
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(array.shape)


def _form(requested: RequestedOutput, array: Array, signature: ModelSignature) -> Array:
    if not requested.classification:
        return array
    return classify(
        requested.name,
        array,
        classes=requested.classification,
        labels=signature.labels.get(requested.name, ()),
        batched=signature.batched,
    )
