"""Evaluation examples: requests of one row each, with optional labels.

Rows of different lengths are never padded together, as padding would affect the measurement.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import Final, overload

import numpy as np

from headrace.core import Array, InvalidArgumentError, Tensors

_SECOND: Final = " of the second text"


class RowTexts(StrEnum):
    """Role of a row's texts in the model's input."""

    SINGLE = "single"
    """One text, or none."""
    CROSS_ENCODER = "cross-encoder"
    """Two texts in one run."""
    BI_ENCODER = "bi-encoder"
    """Two texts in a run each; a request holds both."""


def pair_requests(first: Sequence[Tensors], second: Sequence[Tensors]) -> list[Tensors]:
    """Merge the requests of two texts into one request per pair."""
    return [
        {**left, **{f"{name}{_SECOND}": array for name, array in right.items()}}
        for left, right in zip(first, second, strict=True)
    ]


def first_request(pair: Tensors) -> Tensors:
    """Return the request of the pair's first text."""
    return {name: array for name, array in pair.items() if not name.endswith(_SECOND)}


def second_request(pair: Tensors) -> Tensors:
    """Return the request of the pair's second text."""
    return {
        name.removesuffix(_SECOND): array for name, array in pair.items() if name.endswith(_SECOND)
    }


ORDER_SEED: Final = 20_261_124
"""Seed of the evaluation order, which makes any prefix a fair sample."""


class LazyRows(Sequence[Tensors]):
    """Sequence of requests that are built on access.

    Args:
        row: Builds a request by index. Picklable, because recipes build in child processes.
    """

    def __init__(self, row: Callable[[int], Tensors], count: int) -> None:
        self._row = row
        self._indices = range(count)

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Tensors: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensors]: ...
    def __getitem__(self, index: int | slice) -> Tensors | Sequence[Tensors]:
        if isinstance(index, slice):
            return [self._row(i) for i in self._indices[index]]
        return self._row(self._indices[index])


def stacked_rows(arrays: Mapping[str, Array], *, has_batch_axis: bool) -> LazyRows:
    """Return the rows of arrays `[n, ...]` as requests.

    Args:
        has_batch_axis: Whether a request keeps axis 0, of size 1.
    """
    row = partial(_batch_of_row if has_batch_axis else _row_of, dict(arrays))
    return LazyRows(row, len(next(iter(arrays.values()))))


def _row_of(arrays: Mapping[str, Array], i: int) -> Tensors:
    return {name: array[i, ...] for name, array in arrays.items()}


def _batch_of_row(arrays: Mapping[str, Array], i: int) -> Tensors:
    return {name: array[i : i + 1] for name, array in arrays.items()}


def _chosen_row(rows: Sequence[Tensors], indices: Array, i: int) -> Tensors:
    return rows[int(indices[i])]


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """Requests that a model is evaluated on."""

    inputs: Sequence[Tensors]
    """One request of one row each; axis 0 is 1 where the model is `batched`."""
    labels: Array | None = None
    """Expected answers `[n]`, int64 for classes and float64 for values; None without labels."""
    names: tuple[str, ...] = ()
    """Class names by number, if the labels were texts."""
    batched: bool = True
    notes: tuple[str, ...] = ()
    """Notes for the report on choices that the reader made."""
    texts: RowTexts = RowTexts.SINGLE
    """Role of a row's texts."""

    def __post_init__(self) -> None:
        if self.labels is not None and self.labels.shape != (len(self.inputs),):
            msg = f"{len(self.inputs)} examples have labels of shape {self.labels.shape}"
            raise InvalidArgumentError(msg)

    def __len__(self) -> int:
        return len(self.inputs)

    def subset(self, indices: Sequence[int] | Array) -> "Examples":
        """Return the examples at `indices`, in that order."""
        selected = np.asarray(indices, np.int64).reshape(-1)
        labels = None if self.labels is None else self.labels[selected]
        inputs = LazyRows(partial(_chosen_row, self.inputs, selected), len(selected))
        return replace(self, inputs=inputs, labels=labels)

    def as_model_requests(self) -> "Examples":
        """Return requests that the model takes: for bi-encoder pairs the first texts, no labels."""
        if self.texts is not RowTexts.BI_ENCODER:
            return self
        return replace(
            self,
            inputs=[first_request(pair) for pair in self.inputs],
            labels=None,
            texts=RowTexts.SINGLE,
        )

    def sha256(self) -> str:
        """Return a digest of inputs and labels that is independent of the file format."""
        digest = hashlib.sha256()
        for request in self.inputs:
            for name in sorted(request):
                _add(digest, name, request[name])
        if self.labels is not None:
            _add(digest, "", self.labels)
        digest.update(repr(self.names).encode())
        return digest.hexdigest()


def batches(examples: Examples, max_rows: int) -> Iterator[tuple[Array, Tensors]]:
    """Yield batches of up to `max_rows` rows of equal shapes, with the examples' indices.

    The order is random but fixed, so that the first batches are a sample of all. Examples of an
    unbatched model come one by one.
    """
    order = np.random.default_rng(ORDER_SEED).permutation(len(examples))
    groups: dict[tuple[tuple[str, tuple[int, ...]], ...], list[int]] = {}
    for index in order.tolist():
        request = examples.inputs[index]
        shapes = tuple((name, array.shape) for name, array in request.items())
        groups.setdefault(shapes, []).append(index)
    rows = max(max_rows, 1) if examples.batched else 1
    parts = [group[i : i + rows] for group in groups.values() for i in range(0, len(group), rows)]
    for number in np.random.default_rng(ORDER_SEED).permutation(len(parts)).tolist():
        part = parts[number]
        requests = [examples.inputs[index] for index in part]
        together = {name: [request[name] for request in requests] for name in requests[0]}
        yield (
            np.array(part, np.int64),
            {
                name: np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
                for name, arrays in together.items()
            },
        )


def _add(digest: "hashlib._Hash", name: str, array: Array) -> None:
    digest.update(f"{name!r} {array.dtype.str} {array.shape};".encode())
    if array.dtype.kind != "O":
        digest.update(np.ascontiguousarray(array).tobytes())
        return
    for element in array.reshape(-1).tolist():
        raw = element if isinstance(element, bytes) else str(element).encode()
        digest.update(len(raw).to_bytes(8, "little") + raw)
