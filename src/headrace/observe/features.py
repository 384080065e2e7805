"""Features of a model's tensors, and counts of their values.

A feature is one number or text per row. A tensor with up to `MAX_COLUMNS` elements per row is that
many features, called `name` or `name[3]`. A larger one (an image, a tokenized text) is summarised:
the mean, spread, least and largest of a row's elements, and their number where it varies. An output
of several scores has the further feature `name.class`, the class with the highest score.

The counts of many replicas for one feature can be added, and take the same few bytes for any number
of values.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import msgspec
import numpy as np

from headrace.core import VARIABLE, Array, Datatype, ModelSignature, TensorSpec

MAX_COLUMNS: Final = 128
"""A tensor with more elements per row is summarised."""
MAX_FEATURES: Final = 160
"""Features of one model; further tensors are left out."""
_RESERVED: Final = 16
"""Features that inputs leave for outputs."""
_LOOKED_AT: Final = 1024
"""Evenly spread elements of a large row from which its summary is computed."""
_SUMMARY: Final = ("mean", "std", "min", "max")
_LONGEST: Final = 64
"""Bytes of a text that are kept."""
INPUT: Final = "input"
OUTPUT: Final = "output"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorFeatures:
    """The features of one tensor."""

    tensor: str
    """Name of the tensor."""
    role: str
    """Input or output."""
    names: tuple[str, ...]
    """Names of the columns that `block` makes."""
    batched: bool
    """Whether the first axis is the batch."""
    is_text: bool = False
    """Whether the values are texts."""
    is_summary: bool = False
    """Whether the row is too large for one feature per element, and is summarised."""
    has_class: bool = False
    """Whether the last column is the index of the row's largest element."""

    def block(self, array: Array, most_rows: int) -> Array:
        """Return the values of `array`, `[rows, features]`: float64 or texts, as a copy.

        Args:
            most_rows: Largest number of rows; of more rows, evenly spread ones are taken.
        """
        rows = array if self.batched else array[np.newaxis]
        if len(rows) > most_rows:
            rows = rows[:: -(-len(rows) // most_rows)]
        table = rows.reshape(len(rows), math.prod(rows.shape[1:]))
        if self.is_summary:
            return _summary(table, with_size="size" in self.names[-1])
        if self.is_text:
            values = np.empty(table.shape, dtype=np.object_)
            for index, value in np.ndenumerate(table):
                data = value if isinstance(value, bytes) else str(value).encode()
                values[index] = data[:_LONGEST].decode(errors="replace")
            return values
        values = table.astype(np.float64)
        if self.has_class:
            values = np.hstack([values, values.argmax(axis=1)[:, None]])
        return values


def features_of(signature: ModelSignature) -> tuple[TensorFeatures, ...]:
    """Return the features of a model, inputs first; tensors beyond `MAX_FEATURES` are left out."""
    tensors: list[TensorFeatures] = []
    count = 0
    for role, specs in ((INPUT, signature.inputs), (OUTPUT, signature.outputs)):
        maximum = MAX_FEATURES - _RESERVED if role == INPUT else MAX_FEATURES
        for spec in specs:
            features = _features(spec, role=role, batched=signature.batched)
            if count + len(features.names) <= maximum:
                tensors.append(features)
                count += len(features.names)
    return tuple(tensors)


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
    """Return mean, spread, least and largest element of each row, and optionally their number."""
    rows, width = table.shape
    size = np.full((rows, 1), float(width))
    if table.dtype.kind == "O":
        return size
    if not width:
        return np.hstack([np.full((rows, len(_SUMMARY)), np.nan), size])
    part = table[:, :: -(-width // _LOOKED_AT)].astype(np.float64)
    with np.errstate(all="ignore"):  # values that are not finite stay so, and are counted as that
        columns = [part.mean(axis=1), part.std(axis=1), part.min(axis=1), part.max(axis=1)]
    summary = np.stack(columns, axis=1)
    return np.hstack([summary, size]) if with_size else summary


_TOGETHER: Final = 5
"""From this many features on, counting them together is faster."""
MAX_TEXTS: Final = 50
"""Largest number of categories of one feature."""


class FeatureKind(StrEnum):
    """Kind of a feature's values."""

    NUMBERS = "numbers"
    """Counted by the bin between two edges."""
    VALUES = "values"
    """A few whole numbers, counted by value."""
    TEXTS = "texts"
    """Counted by text."""


class FeatureBins(msgspec.Struct, frozen=True, kw_only=True):
    """The bins of one feature."""

    name: str
    """Name of the feature."""
    role: str
    """Input or output."""
    kind: FeatureKind
    """Kind of the feature's values."""
    edges: list[float] = []
    """Inner edges of `numbers`, ascending; a value on an edge belongs to the bin above."""
    categories: list[str] = []
    """Categories of the other kinds; one more bin is for all other values."""
    low: float = 0.0
    """Smallest value of the reference."""
    high: float = 0.0
    """Largest value of the reference."""
    whole: bool = False
    """Whether the reference has whole numbers only."""
    closed: bool = False
    """Whether the reference has no values besides `categories`."""
    label: str = ""
    """Name of the column in the reference data."""

    @property
    def size(self) -> int:
        """Return the number of bins."""
        cells = self.edges if self.kind is FeatureKind.NUMBERS else self.categories
        return len(cells) + 1


class ValueCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of one feature's values."""

    rows: int = 0
    """All values."""
    missing: int = 0
    """NaN, or empty texts."""
    non_finite: int = 0
    """Infinite values."""
    out_of_range: int = 0
    """Values beyond the reference's range or categories."""
    not_whole: int = 0
    """Fractions where the reference has none."""
    bins: list[int] = []
    """Values by bin; without missing and non-finite ones."""

    @property
    def valid(self) -> int:
        """Return the number of values in the bins."""
        return self.rows - self.missing - self.non_finite

    def plus(self, other: "ValueCounts") -> "ValueCounts":
        """Return the sum of both counts; counts without bins are empty."""
        if not other.rows:
            return self
        if not self.rows:
            return other
        return ValueCounts(
            rows=self.rows + other.rows,
            missing=self.missing + other.missing,
            non_finite=self.non_finite + other.non_finite,
            out_of_range=self.out_of_range + other.out_of_range,
            not_whole=self.not_whole + other.not_whole,
            bins=[count + two for count, two in zip(self.bins, other.bins, strict=True)],
        )


class FeatureValues(msgspec.Struct, frozen=True, kw_only=True):
    """Values of one feature in order: null for NaN, `inf` and `-inf` as text."""

    name: str
    """Name of the feature."""
    role: str
    """Input or output."""
    is_text: bool = False
    """Whether the feature's values are texts."""
    values: list[float | str | None] = []
    """The values."""


def count_column(column: Array, bins: FeatureBins) -> ValueCounts:
    """Return the counts of one feature's values, `[rows]`: float64, or texts."""
    if bins.kind is FeatureKind.TEXTS:
        return _count_texts(column, bins)
    finite = column[np.isfinite(column)]
    missing = int(np.isnan(column).sum())
    whole = int((finite != np.floor(finite)).sum()) if bins.whole else 0
    if bins.kind is FeatureKind.VALUES:
        cells = _cells_of_values(finite, bins)
        out_of_range = int((cells == bins.size - 1).sum()) if bins.closed else 0
    else:
        cells = np.searchsorted(np.asarray(bins.edges), finite, side="right")
        out_of_range = int(((finite < bins.low) | (finite > bins.high)).sum())
    return ValueCounts(
        rows=len(column),
        missing=missing,
        non_finite=len(column) - len(finite) - missing,
        out_of_range=out_of_range,
        not_whole=whole,
        bins=np.bincount(cells, minlength=bins.size).tolist(),
    )


def count_columns(table: Array, bins: Sequence[FeatureBins]) -> list[ValueCounts]:
    """Return the counts of several features, `[rows, features]`."""
    numbers = [i for i, feature in enumerate(bins) if feature.kind is FeatureKind.NUMBERS]
    if len(numbers) < _TOGETHER:
        return [count_column(table[:, i], feature) for i, feature in enumerate(bins)]
    number_counts = dict(
        zip(numbers, _count_numbers(table[:, numbers], [bins[i] for i in numbers]), strict=True)
    )
    return [
        number_counts.get(i) or count_column(table[:, i], feature) for i, feature in enumerate(bins)
    ]


def _count_numbers(table: Array, bins: Sequence[FeatureBins]) -> list[ValueCounts]:
    """Return the counts of each column, computed together: NumPy is slow for many small arrays."""
    rows, features = table.shape
    size = max(feature.size for feature in bins)
    edges = np.full((features, size - 1), np.inf)
    for i, bin_ in enumerate(bins):
        edges[i, : len(bin_.edges)] = bin_.edges
    finite = np.isfinite(table)
    cells = np.zeros(table.shape, dtype=np.int64)
    for column in edges.T:
        cells += table >= column
    cells[~finite] = size
    flat = (cells + np.arange(features) * (size + 1)).ravel()
    counted = np.bincount(flat, minlength=features * (size + 1)).reshape(features, size + 1)
    low, high = (np.array([getattr(feature, end) for feature in bins]) for end in ("low", "high"))
    out_of_range = (finite & ((table < low) | (table > high))).sum(axis=0)
    fractions = (finite & (table != np.floor(table))).sum(axis=0)
    missing = np.isnan(table).sum(axis=0)
    return [
        ValueCounts(
            rows=rows,
            missing=int(missing[i]),
            non_finite=rows - int(finite[:, i].sum()) - int(missing[i]),
            out_of_range=int(out_of_range[i]),
            not_whole=int(fractions[i]) if feature.whole else 0,
            bins=counted[i, : feature.size].tolist(),
        )
        for i, feature in enumerate(bins)
    ]


def _cells_of_values(values: Array, bins: FeatureBins) -> Array:
    categories = np.array([float(category) for category in bins.categories])
    cells = np.minimum(np.searchsorted(categories, values), len(categories) - 1)
    others = len(categories)
    return np.where(categories[cells] == values, cells, others)


def _count_texts(column: Array, bins: FeatureBins) -> ValueCounts:
    cell_of = {text: i for i, text in enumerate(bins.categories)}
    counts = [0] * bins.size
    missing = 0
    for text in column:
        if text:
            counts[cell_of.get(text, -1)] += 1
        else:
            missing += 1
    return ValueCounts(
        rows=len(column),
        missing=missing,
        out_of_range=counts[-1] if bins.closed else 0,
        bins=counts,
    )
