"""Tensors as the bytes that both protocols carry, and back."""

import math

import numpy as np

from headrace.client.answers import ProtocolError
from headrace.core import DTYPES, Array, Datatype, HeadraceError, datatype_of
from headrace.protocol.byte_tensors import join_elements, object_array, split_elements


def to_raw(array: Array) -> bytes | memoryview:
    """The bytes of a C-contiguous array; without a copy, except for BYTES."""
    if datatype_of(array.dtype) is Datatype.BYTES:
        return join_elements(array.reshape(-1))
    return array.reshape(-1).view(np.uint8).data if array.size else b""


def from_raw(name: str, datatype: str, shape: tuple[int, ...], raw: bytes | memoryview) -> Array:
    """The tensor in `raw`; a read-only view into it, except for BYTES.

    Raises:
        ProtocolError: `raw` does not hold such a tensor.
    """
    try:
        if datatype == Datatype.BYTES:
            return object_array(split_elements(raw, math.prod(shape), name), shape)
        return np.frombuffer(raw, dtype=DTYPES[datatype]).reshape(shape)
    except (ValueError, KeyError, HeadraceError) as error:
        msg = f"output '{name}' of the answer is no {datatype} of shape {shape}: {error}"
        raise ProtocolError(msg) from error
