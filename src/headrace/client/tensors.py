"""Conversion of a caller's inputs to arrays, and of tensors to the protocols' bytes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headrace.client.answers import ProtocolError
from headrace.core import (
    DTYPES,
    Array,
    Datatype,
    HeadraceError,
    InvalidArgumentError,
    ModelSignature,
    NullPolicy,
    Tensors,
    datatype_of,
)
from headrace.protocol.values import join_elements, numbers_of, object_array, split_elements

TensorLike = ArrayLike | Sequence[Any]
"""Value that can become a tensor; lists may contain None, which NumPy's type does not cover."""


def is_exact(value: object) -> bool:
    """Whether `value` has a dtype, as arrays and NumPy scalars do and lists do not."""
    return hasattr(value, "dtype") or hasattr(value, "__array__")


def to_tensors(inputs: Mapping[str, TensorLike], signature: ModelSignature | None) -> Tensors:
    """Return `inputs` as C-contiguous little-endian arrays; strings become `bytes` in UTF-8.

    Values without a dtype (lists, numbers, strings) take the datatype in `signature`, with floats
    rounded; in lists of floats, None is a missing value: NaN. Arrays of numbers take it too if
    every value stays the same.

    Raises:
        InvalidArgumentError: A value is not a tensor, for example a ragged list, or an array has
            values that the model's datatype cannot hold.
    """
    if not isinstance(inputs, Mapping):
        msg = f"inputs must be a mapping of names to arrays, not {type(inputs).__name__}"
        raise InvalidArgumentError(msg)
    return {name: to_tensor(name, value, signature) for name, value in inputs.items()}


def to_tensor(name: str, value: TensorLike, signature: ModelSignature | None) -> Array:
    """Return one input as an array; see `to_tensors`."""
    spec = None if signature is None else signature.input(name)
    try:
        if spec is None:
            array = np.asarray(value)
        elif is_exact(value):
            array = _without_loss(name, np.asarray(value), spec.datatype)
        elif spec.datatype is Datatype.BYTES:
            array = np.asarray(value, dtype=np.object_)
        else:
            array = _cast(_numbers(name, value, spec.datatype), spec.datatype)
    except (ValueError, TypeError, OverflowError) as error:
        msg = f"input '{name}' is not a tensor: {error}"
        raise InvalidArgumentError(msg) from None
    return _normal(name, array)


def _numbers(name: str, value: TensorLike, datatype: Datatype) -> Array:
    array = np.asarray(value)
    if array.dtype.kind not in "OU":
        return array
    array = np.asarray(value, dtype=np.object_)
    flat = numbers_of(name, datatype, array.reshape(-1).tolist(), NullPolicy.NAN)
    return np.array(flat).reshape(array.shape)


def _without_loss(name: str, array: Array, datatype: Datatype) -> Array:
    """Return `array` as `datatype` if no value changes; non-numeric arrays are returned unchanged.

    Raises:
        InvalidArgumentError: A value would change.
    """
    dtype = DTYPES[datatype]
    if array.dtype.kind not in "biuf" or dtype.kind not in "biuf" or array.dtype == dtype:
        return array
    with np.errstate(over="ignore", invalid="ignore"):  # of values that do not fit
        cast = array.astype(dtype)
    is_changed = ~_is_same(array, cast)
    if not is_changed.any():
        return cast
    first = int(np.flatnonzero(is_changed)[0])
    msg = (
        f"input '{name}' is {array.dtype}, the model takes {datatype}, and {int(is_changed.sum())} "
        f"of {array.size} values would change: {array.flat[first].item()} becomes "
        f"{cast.flat[first].item()}; to accept that, pass it as `.astype('{dtype.name}')`"
    )
    raise InvalidArgumentError(msg)


def _is_same(array: Array, cast: Array) -> NDArray[np.bool_]:
    """Return where a cast kept the value. Values out of range have undefined casts."""
    before, after = array.dtype.kind, cast.dtype.kind
    if after == "f" and before in "iu":
        whole = 1 << (np.finfo(cast.dtype).nmant + 1)  # all integers up to here are exact
        fits: NDArray[np.bool_] = (array >= -whole) & (array <= whole)
        return fits
    with np.errstate(over="ignore", invalid="ignore"):
        is_same: NDArray[np.bool_] = cast.astype(array.dtype) == array
    if after == "f":
        return is_same | (np.isnan(array) & np.isnan(cast)) if before == "f" else is_same
    if after == "b" or before == "b":
        return is_same
    limits = np.iinfo(cast.dtype)
    if before == "f":
        wide = array.astype(np.float64)  # FP16 does not hold the limits of most integers
        return is_same & (wide >= float(limits.min)) & (wide < float(limits.max) + 1)
    return is_same & (array >= limits.min) & (array <= limits.max)


def _cast(array: Array, datatype: Datatype) -> Array:
    """Return `array` as `datatype`, if no value changes by more than rounding."""
    dtype = DTYPES[datatype]
    if array.size and array.dtype.kind not in "biuf":
        msg = f"values of type '{array.dtype}' are no {datatype}"
        raise ValueError(msg)
    with np.errstate(over="ignore", invalid="ignore"):  # as in any assignment to another array
        cast = array.astype(dtype)
    if dtype.kind != "f" and not np.array_equal(cast, array):
        msg = f"a value does not fit {datatype}"
        raise ValueError(msg)
    return cast


def _normal(name: str, array: Array) -> Array:
    try:
        datatype = datatype_of(array.dtype)
    except InvalidArgumentError as error:
        msg = f"input '{name}': {error}"
        raise InvalidArgumentError(msg) from None
    if datatype is Datatype.BYTES:
        out: Array = np.empty(array.shape, dtype=np.object_)
        flat = out.reshape(-1)
        for index, element in enumerate(array.reshape(-1)):
            flat[index] = _element(name, element)
        return out
    return np.ascontiguousarray(array, dtype=DTYPES[datatype]).reshape(array.shape)


def _element(name: str, element: Any) -> bytes:  # noqa: ANN401  # an object array holds anything
    if isinstance(element, bytes):
        return bytes(element)
    if isinstance(element, str):
        return element.encode()
    msg = (
        f"input '{name}' holds a {type(element).__name__}; an object array may hold only bytes "
        "and strings (a ragged list of numbers becomes one too)"
    )
    raise InvalidArgumentError(msg)


def to_raw(array: Array) -> bytes | memoryview:
    """Return the bytes of a C-contiguous array; without a copy, except for BYTES."""
    if datatype_of(array.dtype) is Datatype.BYTES:
        return join_elements(array.reshape(-1))
    return array.reshape(-1).view(np.uint8).data if array.size else b""


def from_raw(name: str, datatype: str, shape: tuple[int, ...], raw: bytes | memoryview) -> Array:
    """Return the tensor in `raw`; a read-only view of it, except for BYTES.

    Raises:
        ProtocolError: `raw` does not hold such a tensor.
    """
    try:
        if datatype == Datatype.BYTES:
            return object_array(split_elements(raw, math.prod(shape), name), shape)
        return np.frombuffer(raw, dtype=DTYPES[datatype]).reshape(shape)
    except (ValueError, KeyError, HeadraceError) as error:
        msg = f"output '{name}' of the answer is not a valid {datatype} of shape {shape}: {error}"
        raise ProtocolError(msg) from error
