"""Features of a model's tensors: named columns, few and small whatever comes.

A feature is one number or text a row. A tensor with up to `MAX_COLUMNS` elements a row is that many
features, called `name` or `name[3]`. A larger one (an image, a text of tokens) is summarised: the
mean, spread, least and largest of a row's elements, and how many they are where that varies.
An output of several scores is also the class with the highest one, `name.class`.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from headrace.core import VARIABLE, Array, Datatype, ModelSignature, TensorSpec

MAX_COLUMNS: Final = 128
"""A tensor with more elements a row is summarised."""
MAX_FEATURES: Final = 160
"""Of one model; further tensors are left out."""
_RESERVED: Final = 16
"""Features that inputs leave for outputs."""
_LOOKED_AT: Final = 1024
"""Elements of a large row that its summary is made of, evenly spread."""
_SUMMARY: Final = ("mean", "std", "min", "max")
_LONGEST: Final = 64
"""Bytes of a text that are kept."""
INPUT: Final = "input"
OUTPUT: Final = "output"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorFeatures:
    """The features of one tensor: `names` are those of the columns that `block` makes.

    `is_summary`: the row is too large to have a feature for each element. `has_class`: the last
    column is the index of the row's largest element.
    """

    tensor: str
    role: str
    names: tuple[str, ...]
    batched: bool
    is_text: bool = False
    is_summary: bool = False
    has_class: bool = False

    def block(self, array: Array, most_rows: int) -> Array:
        """What `array` holds, `[rows, features]`: float64 or texts. Shares no memory with it.

        Args:
            most_rows: Of more rows so many are taken, evenly spread.
        """
        rows = array if self.batched else array[np.newaxis]
        if len(rows) > most_rows:
            rows = rows[:: -(-len(rows) // most_rows)]
        table = rows.reshape(len(rows), math.prod(rows.shape[1:]))
        if self.is_summary:
            return _summary(table, with_size="size" in self.names[-1])
        if self.is_text:
            return _texts(table)
        made = table.astype(np.float64)
        if self.has_class:
            made = np.hstack([made, made.argmax(axis=1)[:, None]])
        return made


def features_of(signature: ModelSignature) -> tuple[TensorFeatures, ...]:
    """The features of a model, inputs first; tensors beyond `MAX_FEATURES` are left out."""
    found: list[TensorFeatures] = []
    count = 0
    for role, specs in ((INPUT, signature.inputs), (OUTPUT, signature.outputs)):
        most = MAX_FEATURES - _RESERVED if role == INPUT else MAX_FEATURES
        for spec in specs:
            features = _features(spec, role=role, batched=signature.batched)
            if count + len(features.names) <= most:
                found.append(features)
                count += len(features.names)
    return tuple(found)


def _features(spec: TensorSpec, *, role: str, batched: bool) -> TensorFeatures:
    row = spec.shape[1:] if batched else spec.shape
    is_fixed = VARIABLE not in row
    width = math.prod(row) if is_fixed else 0
    is_text = spec.datatype is Datatype.BYTES
    if not is_fixed or not 0 < width <= MAX_COLUMNS:
        parts = ("size",) if is_text else (*_SUMMARY, *(() if is_fixed else ("size",)))
        names = tuple(f"{spec.name}.{part}" for part in parts)
        return TensorFeatures(
            tensor=spec.name, role=role, names=names, batched=batched, is_summary=True
        )
    names = tuple(f"{spec.name}[{i}]" for i in range(width)) if width > 1 else (spec.name,)
    has_class = role == OUTPUT and width > 1 and spec.datatype.dtype.kind == "f"
    return TensorFeatures(
        tensor=spec.name,
        role=role,
        names=(*names, f"{spec.name}.class") if has_class else names,
        batched=batched,
        is_text=is_text,
        has_class=has_class,
    )


def _summary(table: Array, *, with_size: bool) -> Array:
    """Of each row: mean, spread, least, largest of its elements, and how many they are."""
    rows, width = table.shape
    size = np.full((rows, 1), float(width))
    if table.dtype.kind == "O":
        return size
    if not width:
        return np.hstack([np.full((rows, len(_SUMMARY)), np.nan), size])
    part = table[:, :: -(-width // _LOOKED_AT)].astype(np.float64)
    with np.errstate(all="ignore"):  # what is not finite stays so, and is counted as that
        columns = [part.mean(axis=1), part.std(axis=1), part.min(axis=1), part.max(axis=1)]
    made = np.stack(columns, axis=1)
    return np.hstack([made, size]) if with_size else made


def _texts(table: Array) -> Array:
    made = np.empty(table.shape, dtype=np.object_)
    for index, value in np.ndenumerate(table):
        data = value if isinstance(value, bytes) else str(value).encode()
        made[index] = data[:_LONGEST].decode(errors="replace")
    return made
