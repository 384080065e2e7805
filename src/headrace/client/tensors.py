"""What a caller passes as an input, as an array that the wire can carry."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from headrace.core import (
    DTYPES,
    Array,
    Datatype,
    InvalidArgumentError,
    ModelSignature,
    Nulls,
    Tensors,
    datatype_of,
)
from headrace.protocol.values import numbers_of

TensorLike = ArrayLike | Sequence[Any]
"""What becomes a tensor: None may stand in a list, which NumPy's type does not say."""


def is_exact(value: object) -> bool:
    """Whether `value` brings its own dtype, as arrays and NumPy scalars do and lists do not."""
    return hasattr(value, "dtype") or hasattr(value, "__array__")


def to_tensors(inputs: Mapping[str, TensorLike], signature: ModelSignature | None) -> Tensors:
    """`inputs` as C-contiguous little-endian arrays; strings become `bytes` in UTF-8.

    What brings no dtype (lists, numbers, strings) takes the datatype that `signature` names. In
    lists of floats, None is a missing value: NaN.

    Raises:
        InvalidArgumentError: A value is no tensor, for instance a ragged list.
    """
    if not isinstance(inputs, Mapping):
        msg = f"inputs must be a mapping of names to arrays, not {type(inputs).__name__}"
        raise InvalidArgumentError(msg)
    return {name: to_tensor(name, value, signature) for name, value in inputs.items()}


def to_tensor(name: str, value: TensorLike, signature: ModelSignature | None) -> Array:
    """One input; see `to_tensors`."""
    spec = None if signature is None else signature.input(name)
    wanted = None if spec is None or is_exact(value) else spec.datatype
    try:
        if wanted is None:
            array = np.asarray(value)
        elif wanted is Datatype.BYTES:
            array = np.asarray(value, dtype=np.object_)
        else:
            array = _cast(_numbers(name, value, wanted), wanted)
    except (ValueError, TypeError, OverflowError) as error:
        msg = f"input '{name}' is no tensor: {error}"
        raise InvalidArgumentError(msg) from None
    return _normal(name, array)


def _numbers(name: str, value: TensorLike, wanted: Datatype) -> Array:
    array = np.asarray(value)
    if array.dtype.kind not in "OU":
        return array
    array = np.asarray(value, dtype=np.object_)
    flat = numbers_of(name, wanted, array.reshape(-1).tolist(), Nulls.NAN)
    return np.array(flat).reshape(array.shape)


def _cast(array: Array, wanted: Datatype) -> Array:
    """`array` as `wanted`, if no value changes by more than rounding to fewer digits."""
    dtype = DTYPES[wanted]
    if array.size and array.dtype.kind not in "biuf":
        msg = f"values of type '{array.dtype}' are no {wanted}"
        raise ValueError(msg)
    with np.errstate(over="ignore", invalid="ignore"):  # as in any assignment to another array
        cast = array.astype(dtype)
    if dtype.kind != "f" and not np.array_equal(cast, array):
        msg = f"a value does not fit {wanted}"
        raise ValueError(msg)
    return cast


def _normal(name: str, array: Array) -> Array:
    try:
        datatype = datatype_of(array.dtype)
    except InvalidArgumentError as error:
        msg = f"input '{name}': {error}"
        raise InvalidArgumentError(msg) from None
    if datatype is Datatype.BYTES:
        return _as_bytes(name, array)
    return np.ascontiguousarray(array, dtype=DTYPES[datatype]).reshape(array.shape)


def _as_bytes(name: str, array: Array) -> Array:
    out: Array = np.empty(array.shape, dtype=np.object_)
    flat = out.reshape(-1)
    for index, element in enumerate(array.reshape(-1)):
        flat[index] = _element(name, element)
    return out


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
