"""Requests of a search: what is timed, made of examples, and how it is served."""

from collections.abc import Callable, Sequence

import numpy as np

from headrace.core import VARIABLE, Array, ModelSignature, RuntimeFailedError, Tensors
from headrace.runtimes import Model


def timed_request(
    example: Tensors, signature: ModelSignature, *, rows: int, length: int | None
) -> Tensors:
    """An example, repeated along axis 0 to `rows` and along variable axes to `length`.

    Repeated and not padded: whatever is real in the example is real throughout, so that no mask
    makes the request easier than it looks.

    Args:
        example: One row.
        length: None leaves variable axes as they are.
    """
    made = {}
    for spec in signature.inputs:
        array = example[spec.name]
        for axis, size in enumerate(spec.shape):
            if axis == 0 and signature.batched:
                array = _repeated(array, 0, rows)
            elif size == VARIABLE and length is not None:
                array = _repeated(array, axis, length)
        made[spec.name] = np.array(array, order="C")  # `ascontiguousarray` makes a scalar a row
    return made


def batch_of(examples: Sequence[Tensors], rows: int) -> Tensors:
    """A batch of examples, over and over: equal rows would be easier than real ones."""
    chosen = [examples[place % len(examples)] for place in range(rows)]
    return {
        name: np.ascontiguousarray(np.concatenate([one[name] for one in chosen]))
        for name in chosen[0]
    }


def loses_batching(model: Model, source: ModelSignature) -> bool:
    """Whether requests that share a batch in the source each need a run of `model`."""
    return source.batched and not model.signature.batched


def served_run(model: Model, source: ModelSignature) -> Callable[[Tensors], Tensors]:
    """A run of the rows of a request, as a server has to make it: of each row where batches end."""
    if not loses_batching(model, source):
        return model.run

    def one_by_one(inputs: Tensors) -> Tensors:
        rows = len(next(iter(inputs.values())))
        parts = [
            model.run({name: array[row : row + 1] for name, array in inputs.items()})
            for row in range(rows)
        ]
        try:
            return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        except ValueError as error:
            raise RuntimeFailedError(f"answers to rows do not fit together: {error}") from error

    return one_by_one


def has_length(signature: ModelSignature) -> bool:
    """Whether some axis besides the batch is variable."""
    skip = 1 if signature.batched else 0
    return any(VARIABLE in spec.shape[skip:] for spec in signature.inputs)


def shapes_text(request: Tensors) -> str:
    """What is timed, for people: `input_ids [1, 128], attention_mask [1, 128]`."""
    return ", ".join(f"{name} {list(array.shape)}" for name, array in request.items())


def _repeated(array: Array, axis: int, size: int) -> Array:
    if array.shape[axis] == 0:
        return array
    places = np.arange(size) % array.shape[axis]
    taken: Array = np.take(array, places, axis=axis)
    return taken
