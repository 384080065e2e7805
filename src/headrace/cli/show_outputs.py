"""How a model's answer is shown: as a table for people, as JSON for programs."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from headrace.core import Array, InferResponse, datatype_of
from headrace.protocol.values import spelled

_SHOWN_ROWS: Final = 20
_SHOWN_VALUES: Final = 6


def to_document(response: InferResponse) -> dict[str, Any]:
    """The answer as a V2 response in JSON, as a server writes it; NaN becomes null."""
    document: dict[str, Any] = {"model_name": response.model_name}
    if response.model_version:
        document["model_version"] = response.model_version
    if response.id:
        document["id"] = response.id
    document["outputs"] = [_output(name, array) for name, array in response.outputs.items()]
    return document


def to_rows(
    outputs: Mapping[str, Array], *, batched: bool
) -> tuple[list[str], list[list[str]], int]:
    """Column names, a line per row of the batch, and how many rows were left out."""
    arrays = dict(outputs) if batched else {name: a[np.newaxis] for name, a in outputs.items()}
    rows = max((len(array) for array in arrays.values()), default=0)
    shown = min(rows, _SHOWN_ROWS)
    lines = [
        [str(i), *(_value(array[i]) if i < len(array) else "" for array in arrays.values())]
        for i in range(shown)
    ]
    return ["row", *arrays], lines, rows - shown


def _output(name: str, array: Array) -> dict[str, Any]:
    flat = array.reshape(-1).tolist()
    return {
        "name": name,
        "datatype": str(datatype_of(array.dtype)),
        "shape": list(array.shape),
        "data": [_text(value) if isinstance(value, bytes) else spelled(value) for value in flat],
    }


def _value(cell: Any) -> str:  # noqa: ANN401  # a scalar or an array
    array = np.asarray(cell)
    if array.ndim == 0:
        return _scalar(array.item())
    flat = array.reshape(-1)
    texts = [_scalar(value) for value in flat[:_SHOWN_VALUES].tolist()]
    if flat.size > _SHOWN_VALUES:
        shape = "x".join(map(str, array.shape))
        texts.append(f"… ({shape})")
    text = "  ".join(texts)
    if flat.size > 1 and array.dtype.kind == "f" and array.ndim == 1:
        text += f"   largest: {int(np.argmax(flat))}"
    return text


def _scalar(value: object) -> str:
    if isinstance(value, bytes):
        return _text(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
