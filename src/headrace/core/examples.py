"""Example inputs that a model accepts, generated from its signature."""

from typing import Final

import numpy as np

from headrace.core.datatypes import Datatype
from headrace.core.signature import VARIABLE, Array, ModelSignature, Tensors, TensorSpec

_ALL_ONES: Final = ("mask", "length")
"""Inputs with these names mark valid elements of other inputs: a random 0 could mask a whole row,
whose output would then be NaN.
"""
_PICTURES: Final = ("image", "picture", "photo", "jpeg", "png")
"""BYTES inputs with these names are image files."""
_PICTURE: Final = (
    b"GIF89a\x01\x00\x01\x00\x00\x00\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;"
)
"""One pixel; ASCII only, so that it can be a JSON string."""


def example_inputs(
    signature: ModelSignature, *, rows: int = 1, variable: int = 1, seed: int = 0
) -> Tensors:
    """Return valid inputs for `signature`, which are deterministic.

    Floating-point values lie in [0, 1), which models of pixels, prices and logarithms accept;
    integers are 0 or 1, which indexes any table; BYTES are `b"a"`, or an image if the input's name
    says so. Values in `signature.example` take precedence.

    Args:
        rows: Size of axis 0 of a batched model.
        variable: Size of every other variable dimension.
    """
    rng = np.random.default_rng(seed)
    inputs: Tensors = {}
    for spec in signature.inputs:
        value = signature.example.get(spec.name)
        if isinstance(value, list):
            array = _from_list(spec, value)
            inputs[spec.name] = repeated_rows(array, rows) if signature.batched else array
        else:
            shape = _shape(spec, signature.batched, rows, variable)
            inputs[spec.name] = _example(spec, shape, rng, value)
    return inputs


def repeated_rows(array: Array, rows: int) -> Array:
    """Return `rows` rows of an array, which are repeated in order if there are fewer."""
    return array[np.arange(rows) % len(array)] if array.ndim and len(array) else array


def _from_list(spec: TensorSpec, values: list[object]) -> Array:
    array: Array = np.array(values, spec.datatype.dtype)
    if spec.datatype is Datatype.BYTES:
        texts = np.empty(array.size, np.object_)
        texts[:] = [str(item).encode() for item in array.ravel().tolist()]
        array = texts.reshape(array.shape)
    return array


def _shape(spec: TensorSpec, batched: bool, rows: int, variable: int) -> tuple[int, ...]:  # noqa: FBT001  # private
    shape = [variable if size == VARIABLE else size for size in spec.shape]
    if batched and shape:
        shape[0] = rows
    return tuple(shape)


def _example(
    spec: TensorSpec,
    shape: tuple[int, ...],
    rng: "np.random.Generator",
    value: float | str | None,
) -> Array:
    dtype = spec.datatype.dtype
    if value is not None:
        return np.full(shape, value.encode() if isinstance(value, str) else value, dtype)
    if spec.datatype is Datatype.BYTES:
        is_picture = any(word in spec.name.lower() for word in _PICTURES)
        return np.full(shape, _PICTURE if is_picture else b"a", dtype)
    if dtype.kind == "f":
        return rng.random(shape).astype(dtype)
    if any(word in spec.name.lower() for word in _ALL_ONES):
        return np.ones(shape, dtype)
    return rng.integers(0, 2, shape).astype(dtype)
