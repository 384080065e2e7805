"""Sketch of training data: the reference for drift detection.

Only the sketch is sent: edges of bins, counts, and the names of categories.
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
    """Return the reference from a file, as JSON."""
    selected = tuple(name.strip() for name in columns.split(",") if name.strip())
    reference = reference_from(
        file, signature, columns=selected, time_column=time_column, created_at=SystemClock().now()
    )
    document: dict[str, Any] = msgspec.to_builtins(reference)
    return document


def reference_from(
    path: Path,
    signature: ModelSignature,
    *,
    columns: tuple[str, ...] = (),
    time_column: str = "",
    created_at: float,
) -> "DriftReference":
    """Return the reference from a file for a model.

    Args:
        columns: Input columns; empty for all but `time_column`.
        time_column: The column of the rows' times; empty where they are not known.

    Raises:
        InvalidArgumentError: The file does not fit the model, or has too few rows.
    """
    from headrace.monitor.drift_reference import (  # NumPy work
        DATA,
        MIN_ROWS,
        reference_of,
    )

    times = read_times(path, time_column) if time_column else None
    tensors, made_of = read_tensors(path, signature, columns=columns, without=time_column)
    # A file has many rows, whatever the model's request limit.
    features = [replace(feature, batched=True) for feature in features_of(signature)]
    blocks = {
        feature.tensor: _block(feature, tensors[feature.tensor])
        for feature in features
        if feature.tensor in tensors
    }
    for name, block in blocks.items():
        if times is not None and len(block) != len(times):
            message = f"'{name}' has {len(block)} rows, '{time_column}' has {len(times)} times"
            raise InvalidArgumentError(message)
    data_reference = reference_of(features, blocks, source=DATA, created_at=created_at, times=times)
    if data_reference.rows < MIN_ROWS:
        raise InvalidArgumentError(
            f"{path} has {data_reference.rows} rows; the minimum is {MIN_ROWS}"
        )
    labels = {
        name: label
        for feature in features
        for name, label in zip(feature.names, made_of.get(feature.tensor, ()), strict=False)
        if name != label
    }
    named = [
        msgspec.structs.replace(
            feature,
            bins=msgspec.structs.replace(feature.bins, label=labels.get(feature.bins.name, "")),
        )
        for feature in data_reference.features
    ]
    return msgspec.structs.replace(data_reference, features=named)


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
