"""Sketch of training data: the reference that drift is measured against.

Only the sketch is sent on: edges of bins, counts, and the names of categories.
"""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from headrace.cli.base.tables import read_tensors, read_times
from headrace.core import InvalidArgumentError, ModelSignature, SystemClock
from headrace.observe.features import TensorFeatures, features_of

if TYPE_CHECKING:
    from headrace.core import Array
    from headrace.monitor.drift_reference import DriftReference


def sketch(
    file: Path, signature: ModelSignature, columns: str = "", time_column: str = ""
) -> dict[str, Any]:
    """The reference that a file makes, as JSON."""
    chosen = tuple(name.strip() for name in columns.split(",") if name.strip())
    made = reference_from(
        file, signature, columns=chosen, time_column=time_column, at=SystemClock().now()
    )
    document: dict[str, Any] = msgspec.to_builtins(made)
    return document


def reference_from(
    path: Path,
    signature: ModelSignature,
    *,
    columns: tuple[str, ...] = (),
    time_column: str = "",
    at: float,
) -> "DriftReference":
    """The reference that a file makes for a model.

    Args:
        columns: Which columns are the input; empty for all but `time_column`.
        time_column: The column of the rows' times; empty where they are not known.

    Raises:
        InvalidArgumentError: It does not fit the model, or has too few rows.
    """
    from headrace.monitor.drift_reference import (  # NumPy work
        DATA,
        MIN_ROWS,
        reference_of,
    )

    times = read_times(path, time_column) if time_column else None
    tensors, made_of = read_tensors(path, signature, columns=columns, without=time_column)
    # A file has many rows, whatever one request of the model has.
    features = [replace(one, batched=True) for one in features_of(signature)]
    blocks = {
        one.tensor: _block(one, tensors[one.tensor]) for one in features if one.tensor in tensors
    }
    for name, block in blocks.items():
        if times is not None and len(block) != len(times):
            message = f"'{name}' has {len(block)} rows, '{time_column}' has {len(times)} times"
            raise InvalidArgumentError(message)
    made = reference_of(features, blocks, source=DATA, created_at=at, times=times)
    if made.rows < MIN_ROWS:
        raise InvalidArgumentError(f"{path} has {made.rows} rows; {MIN_ROWS} are the least")
    labels = {
        name: label
        for one in features
        for name, label in zip(one.names, made_of.get(one.tensor, ()), strict=False)
        if name != label
    }
    named = [
        msgspec.structs.replace(
            one, bins=msgspec.structs.replace(one.bins, label=labels.get(one.bins.name, ""))
        )
        for one in made.features
    ]
    return msgspec.structs.replace(made, features=named)


def _block(features: TensorFeatures, array: "Array") -> "Array":
    try:
        block = features.block(array, max(len(array), 1))
    except (ValueError, TypeError) as error:
        raise InvalidArgumentError(f"'{features.tensor}' cannot be read: {error}") from None
    if block.shape[1] != len(features.names):
        message = (
            f"'{features.tensor}' has {block.shape[1]} values a row, the model takes "
            f"{len(features.names)}"
        )
        raise InvalidArgumentError(message)
    return block
