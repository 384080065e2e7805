"""Padding of requests to a common length, and its proof by running the model.

A model with an attention mask usually gives the same outputs for a row with any padding, but some
exports read the mask and ignore it. So rows are run alone and padded, and compared.
"""

import logging
import re
from typing import Final, NamedTuple

import numpy as np

from headrace.core import (
    VARIABLE,
    Array,
    HeadraceError,
    ModelSignature,
    PaddingSpec,
    Tensors,
    TensorSpec,
    UnsupportedModelError,
    example_inputs,
)
from headrace.runtimes.base import Model
from headrace.runtimes.probe import QUANTISED_RATIO, SAME_RATIO, difference_ratio

OutputLengthAxes = dict[str, tuple[int, ...]]
"""By output name, the axes that are as long as the padded axis; they are cut to a row's own length.
Outputs without such axes are omitted.
"""

_MASK: Final = re.compile(r"(^|[_.\W])mask$", re.IGNORECASE)
_LENGTHS: Final = ((3, 11), (5, 7))
"""Real and padded lengths of the trial runs. The first is mostly padding, so that a leak shows; all
are primes, so that a length is not mistaken for a dimension of the model.
"""

_log = logging.getLogger(__name__)


class VerifiedPadding(NamedTuple):
    """Padding under which a model's outputs are verified to be unchanged."""

    settings: PaddingSpec
    length_axes: OutputLengthAxes


def find_padding(model: Model) -> VerifiedPadding | None:
    """Return a padding for this model's requests; None if it is not proved harmless.

    Applies to batched models that have an input named like a mask and one variable axis besides the
    batch; each input is padded with 0. Costs a few runs of small inputs.
    """
    axis = _length_axis(model.signature)
    if axis is None:
        return None
    settings = PaddingSpec(axis=axis)
    try:
        return VerifiedPadding(settings=settings, length_axes=verify_padding(model, settings))
    except UnsupportedModelError as error:
        _log.info("requests of different lengths do not share a batch: %s", error)
        return None


def verify_padding(model: Model, settings: PaddingSpec) -> OutputLengthAxes:
    """Prove that padding changes no output; return the output axes that follow the length.

    Raises:
        UnsupportedModelError: It does, or the model cannot be padded; the message says why.
    """
    signature = model.signature
    if not signature.batched:
        raise UnsupportedModelError("the model has no batch axis, so there is nothing to pad for")
    if settings.axis < 1:
        raise UnsupportedModelError(f"padding axis {settings.axis} is the batch; use 1 or more")
    padded = frozenset(s.name for s in signature.inputs if _varies(s, settings.axis))
    if not padded:
        raise UnsupportedModelError(f"no input of the model is variable along axis {settings.axis}")
    unknown = sorted(set(settings.values) - padded)
    if unknown:
        msg = f"padding values are given for {', '.join(unknown)}, which cannot be padded"
        raise UnsupportedModelError(msg)
    inputs = _inputs_that_run(model, _LENGTHS[0][0])
    noise = _noise(model, inputs)
    if noise > QUANTISED_RATIO:
        msg = "rows have different results together than alone, so they cannot share a batch"
        raise UnsupportedModelError(msg)
    tolerance = QUANTISED_RATIO if noise > SAME_RATIO else SAME_RATIO
    agreed_axes: OutputLengthAxes | None = None
    for real, length in _LENGTHS:
        axes = _compare(model, settings, padded, real, length, tolerance=tolerance)
        if agreed_axes is not None and axes != agreed_axes:
            msg = "the outputs' shapes do not follow the length of the inputs consistently"
            raise UnsupportedModelError(msg)
        agreed_axes = axes
    assert agreed_axes is not None  # _LENGTHS is not empty
    return agreed_axes


def pad_inputs(
    inputs: Tensors, length: int, *, names: frozenset[str], settings: PaddingSpec
) -> Tensors:
    """Return `inputs` with those in `names` padded at the end to `length` along `settings.axis`."""
    return {
        name: _pad(array, length, settings.axis, settings.values.get(name, 0))
        if name in names
        else array
        for name, array in inputs.items()
    }


def mask_input(signature: ModelSignature) -> str | None:
    """Return the input that masks padding of the variable axis, if the model has both."""
    axis = _length_axis(signature)
    if axis is None:
        return None
    masks = (s.name for s in signature.inputs if is_mask(s.name) and _varies(s, axis))
    return next(masks, None)


def is_mask(name: str) -> bool:
    """Whether an input of this name marks real elements with 1 and padding with 0."""
    return _MASK.search(name) is not None


def _length_axis(signature: ModelSignature) -> int | None:
    """Return the only variable axis besides the batch, if a mask has it; else None."""
    axes = {
        axis
        for spec in signature.inputs
        for axis, size in enumerate(spec.shape)
        if axis > 0 and size == VARIABLE
    }
    if not signature.batched or len(axes) != 1:
        return None
    (axis,) = axes
    has_mask = any(_MASK.search(spec.name) and _varies(spec, axis) for spec in signature.inputs)
    return axis if has_mask else None


def _varies(spec: TensorSpec, axis: int) -> bool:
    return len(spec.shape) > axis and spec.shape[axis] == VARIABLE


def _compare(
    model: Model,
    settings: PaddingSpec,
    padded: frozenset[str],
    real: int,
    length: int,
    *,
    tolerance: float,
) -> OutputLengthAxes:
    """Run two rows of `real` length without padding and padded to `length`, and compare."""
    inputs = _inputs_that_run(model, real)
    plain = model.run(inputs)
    try:
        answers = model.run(pad_inputs(inputs, length, names=padded, settings=settings))
    except HeadraceError as error:
        msg = f"the model does not run when padded from {real} to {length}: {error}"
        raise UnsupportedModelError(msg) from error
    axes: OutputLengthAxes = {}
    for name, expected in plain.items():
        actual = answers[name]
        axes[name] = _length_axes(name, expected.shape, actual.shape, real, length)
        worst = difference_ratio(_cut(actual, axes[name], real), expected)
        if worst > tolerance:
            msg = f"padding changes output '{name}' by {worst:.1%} of its largest value"
            raise UnsupportedModelError(msg)
    return {name: output_axes for name, output_axes in axes.items() if output_axes}


def _inputs_that_run(model: Model, length: int) -> Tensors:
    """Return two rows without padding: masks of ones and, where the model takes it, no id of 0.

    Raises:
        UnsupportedModelError: The model does not run on generated inputs.
    """
    inputs = example_inputs(model.signature, rows=2, variable=length)
    larger = {
        name: array + array.dtype.type(1)
        if array.dtype.kind in "iu" and _MASK.search(name) is None
        else array
        for name, array in inputs.items()
    }
    try:
        model.run(larger)
    except HeadraceError:  # token types, for instance, are 0 or 1 only
        try:
            model.run(inputs)
        except HeadraceError as error:
            msg = f"the model does not run on generated inputs of length {length}: {error}"
            raise UnsupportedModelError(msg) from error
        return inputs
    return larger


def _noise(model: Model, inputs: Tensors) -> float:
    """Return the difference of two rows of one length run alone and together, as a ratio.

    Padding may cause the same difference as sharing a batch in a model with dynamic quantisation.
    """
    together = model.run(inputs)
    rows = [model.run({name: array[i : i + 1] for name, array in inputs.items()}) for i in range(2)]
    return max(
        difference_ratio(answer, np.concatenate([row[name] for row in rows]))
        for name, answer in together.items()
    )


def _length_axes(
    name: str, plain: tuple[int, ...], padded: tuple[int, ...], real: int, length: int
) -> tuple[int, ...]:
    pairs = zip(plain, padded, strict=False)
    changed = tuple(axis for axis, (before, after) in enumerate(pairs) if before != after)
    follows = all((plain[axis], padded[axis]) == (real, length) for axis in changed)
    if len(plain) != len(padded) or not follows:
        msg = f"the shape of output '{name}' follows the length, but is not equal to it"
        raise UnsupportedModelError(msg)
    return changed


def _cut(array: Array, axes: tuple[int, ...], length: int) -> Array:
    index = [slice(None)] * array.ndim
    for axis in axes:
        index[axis] = slice(length)
    return array[tuple(index)]


def _pad(array: Array, length: int, axis: int, value: float) -> Array:
    shape = list(array.shape)
    shape[axis] = length
    fill = b"" if array.dtype.kind == "O" else value
    padded: Array = np.full(shape, fill, array.dtype)
    padded[(slice(None),) * axis + (slice(array.shape[axis]),)] = array
    return padded
