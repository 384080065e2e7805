"""The classification extension: the N best classes of an output, as `"value:index[:label]"`."""

from collections.abc import Sequence

import numpy as np

from headrace.core import Array, InvalidArgumentError
from headrace.protocol.byte_tensors import object_array


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
        msg = f"class result not available for output '{name}': its elements are no numbers"
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
