"""Outputs of a response: selected, classified, and in the form that the request asks for."""

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
    """A BYTES tensor of the `classes` best, best first: `[batch, n]`, or `[n]` if not batched.

    Equal values keep the order of their indices. There are as many entries as the output has
    classes, if that is fewer.

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
        # Sorted from behind and reversed, so that equal values keep their order.
        order = (width - 1 - np.argsort(row[::-1], kind="stable"))[::-1]
        if row.dtype.kind == "f":  # NumPy sorts NaN as the largest; it is nobody's best class
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
    """The outputs that `request` wants, in its order; all if it names none.

    Raises:
        RuntimeFailedError: The model did not answer one of them.
        InvalidArgumentError: Classes were asked for where there are none.
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
    """The elements in row-major, little-endian order, without a copy if they are so already."""
    array = plain_array(array)
    if not array.size:
        return b""
    return array.reshape(-1).view(np.uint8).data


def plain_array(array: Array) -> Array:
    """`array`, C-contiguous and in little-endian order; copied only if it is not."""
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
