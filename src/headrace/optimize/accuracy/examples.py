"""Examples that a model is judged on: requests of one row each, with labels if there are any.

Rows of different lengths stay apart: padding would be part of what is measured.
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
    """Requests of both texts, by requests of each."""
    return [
        {**left, **{f"{name}{_SECOND}": array for name, array in right.items()}}
        for left, right in zip(first, second, strict=True)
    ]


def first_request(pair: Tensors) -> Tensors:
    """The request of the first text."""
    return {name: array for name, array in pair.items() if not name.endswith(_SECOND)}


def second_request(pair: Tensors) -> Tensors:
    """The request of the second one."""
    return {
        name.removesuffix(_SECOND): array for name, array in pair.items() if name.endswith(_SECOND)
    }


ORDER_SEED: Final = 20_261_124
"""Of the order in which examples are asked: part of them is then a fair sample of all."""


class LazyRows(Sequence[Tensors]):
    """Requests that are made when they are asked for.

    Args:
        row: Makes one by its index. Pickled with the rows: recipes build in processes of their own.
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
    """Rows of arrays `[n, ...]` as requests.

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
    """Requests that a model is judged on.

    `inputs`: one request of one row each; axis 0 is 1 where the model is `batched`. `labels`: what
    each should be answered: int64 for classes, float64 for values, `[n]`; None where nobody knows.
    `names`: of the classes, by number, where the labels were texts. `notes`: for people, what a
    reader took for what where that was not certain. `texts`: of a row, one or two and how.
    """

    inputs: Sequence[Tensors]
    labels: Array | None = None
    names: tuple[str, ...] = ()
    batched: bool = True
    notes: tuple[str, ...] = ()
    texts: RowTexts = RowTexts.SINGLE

    def __post_init__(self) -> None:
        if self.labels is not None and self.labels.shape != (len(self.inputs),):
            msg = f"{len(self.inputs)} examples have labels of shape {self.labels.shape}"
            raise InvalidArgumentError(msg)

    def __len__(self) -> int:
        return len(self.inputs)

    def subset(self, indices: Sequence[int] | Array) -> "Examples":
        """Those at `indices`, in that order."""
        chosen = np.asarray(indices, np.int64).reshape(-1)
        labels = None if self.labels is None else self.labels[chosen]
        inputs = LazyRows(partial(_chosen_row, self.inputs, chosen), len(chosen))
        return replace(self, inputs=inputs, labels=labels)

    def as_model_requests(self) -> "Examples":
        """Requests that the model itself takes: of texts apart the first ones, without a score."""
        if self.texts is not RowTexts.BI_ENCODER:
            return self
        return replace(
            self,
            inputs=[first_request(pair) for pair in self.inputs],
            labels=None,
            texts=RowTexts.SINGLE,
        )

    def sha256(self) -> str:
        """Of inputs and labels, in their order: the same for the same content, however read."""
        digest = hashlib.sha256()
        for request in self.inputs:
            for name in sorted(request):
                _add(digest, name, request[name])
        if self.labels is not None:
            _add(digest, "", self.labels)
        digest.update(repr(self.names).encode())
        return digest.hexdigest()


def batches(examples: Examples, max_rows: int) -> Iterator[tuple[Array, Tensors]]:
    """Requests of up to `max_rows` rows of equal shapes, with the examples' indices.

    In an order without regard to length or label, the same one every time, so that those that come
    first are a sample of all. An example of a model that is not batched comes alone.
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
