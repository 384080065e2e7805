"""Which outputs a response carries: selected, classified, in the form that the wire needs."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from headrace.core import (
    Array,
    InferRequest,
    InferResponse,
    ModelSignature,
    RequestedOutput,
    RuntimeFailedError,
)
from headrace.protocol.classification import classify


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
    for wanted in request.outputs:
        found = response.outputs.get(wanted.name)
        if found is None:
            msg = f"model '{response.model_name}' did not answer output '{wanted.name}'"
            raise RuntimeFailedError(msg)
        as_binary = binary if wanted.binary_data is None else wanted.binary_data
        yield Answered(wanted.name, _form(wanted, found, signature), as_binary)


def raw_bytes(array: Array) -> memoryview | bytes:
    """The elements in row-major, little-endian order, without a copy if they are so already."""
    array = plain_array(array)
    if not array.size:
        return b""
    return array.reshape(-1).view(np.uint8).data


def plain_array(array: Array) -> Array:
    """`array`, C-contiguous and in little-endian order; copied only if it is not."""
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(array.shape)


def _form(wanted: RequestedOutput, array: Array, signature: ModelSignature) -> Array:
    if not wanted.classification:
        return array
    return classify(
        wanted.name,
        array,
        classes=wanted.classification,
        labels=signature.labels.get(wanted.name, ()),
        batched=signature.batched,
    )
