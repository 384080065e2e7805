"""What does a model answer, how often? Counts of classes or of scores, one for each request.

A rollout compares these counts between two versions of a model. They are of requests, not of rows:
of a request with several rows the first one counts, so that shares are shares of requests.
"""

import math
from typing import Final

from headrace.core import Array, Datatype, ModelSignature, Tensors, TensorSpec
from headrace.serving.report import PredictionCounts

MAX_CLASSES: Final = 1000
"""Classes told apart; answers of further ones are counted as skipped."""
_SMALLEST: Final = -9
_LARGEST: Final = 20
_PARTS: Final = 4
_CLASS_TYPES: Final = frozenset("iubO")
_LONGEST_NAME: Final = 200

Key = int | float | bytes


class PredictionCounter:
    """Counts one output of a model.

    Args:
        output: Its name; empty takes the first that holds one integer or string a row, else the
            first.
    """

    def __init__(self, signature: ModelSignature, output: str = "") -> None:
        self.output = output or _likely_output(signature)
        self._batched = signature.batched
        self._labels = signature.labels.get(self.output, ())
        self._kind = ""
        self._counts: dict[Key, int] = {}
        self._skipped = 0

    def count(self, outputs: Tensors) -> None:
        """Count one request's answer."""
        array = outputs.get(self.output)
        key = None if array is None else self._key(array)
        counts = self._counts
        if key is None or (key not in counts and len(counts) >= MAX_CLASSES):
            self._skipped += 1
        else:
            counts[key] = counts.get(key, 0) + 1

    def prediction(self, outputs: Tensors) -> str | float | None:
        """What one request's first row got: a class's name, a score; None for neither."""
        array = outputs.get(self.output)
        key = None if array is None else self._key(array)
        if array is None or key is None:
            return None
        if self._kind == "score":
            score = float(array.reshape(-1)[0])
            return score if math.isfinite(score) else None
        return self._name(key)

    def counts(self) -> PredictionCounts:
        """What was counted so far."""
        named: dict[str, int] = {}
        for key, count in self._counts.items():
            name = self._name(key)
            named[name] = named.get(name, 0) + count
        return PredictionCounts(
            output=self.output, kind=self._kind, counts=named, skipped=self._skipped
        )

    def _key(self, array: Array) -> Key | None:
        """What the first row is: an index or value of a class, or a score's bucket."""
        if not array.size:
            return None
        row = array[0] if self._batched or (array.ndim > 1 and len(array) == 1) else array
        kind = array.dtype.kind
        if kind in _CLASS_TYPES:
            value = _only_element(row)
            if value is not None:
                self._kind = "class"
            return value
        if kind != "f":
            return None
        if row.size == 1:
            self._kind = "score"
            return bucket(row.item())
        if row.ndim != 1:
            return None
        self._kind = "class"
        return int(row.argmax())

    def _name(self, key: Key) -> str:
        if isinstance(key, bytes):
            return key.decode(errors="replace")[:_LONGEST_NAME]
        if self._kind == "class" and 0 <= key < len(self._labels):
            return self._labels[int(key)] or str(key)
        return str(key)


def _only_element(row: Array | bytes) -> Key | None:
    """The element of a row that has one; of an object array's row it is there already."""
    if isinstance(row, bytes):
        return row
    value: Key | None = row.item() if row.size == 1 else None
    return value


def bucket(score: float) -> float:
    """The upper edge of the bucket that holds `score`, itself in the bucket above.

    Four buckets of equal width from each power of two to the next, from 2^-10 to 2^20, the same
    below zero (there the upper edge is the one near zero, and is in the bucket), one around zero
    with the edge 2^-10, one below all with the edge -2^20, and infinity for what is above all or no
    number.
    """
    fraction, exponent = math.frexp(score)
    size = abs(fraction)
    if not math.isfinite(score) or exponent > _LARGEST:
        return -(2.0**_LARGEST) if score < 0 else math.inf
    if exponent < _SMALLEST or not size:
        return 2.0 ** (_SMALLEST - 1)
    part = int((size - 0.5) * 2 * _PARTS)
    edge = part if score < 0 else part + 1
    return math.copysign(math.ldexp(0.5 + edge / (2 * _PARTS), exponent), score)


def _likely_output(signature: ModelSignature) -> str:
    for spec in signature.outputs:
        if _is_class(spec, batched=signature.batched):
            return spec.name
    return signature.outputs[0].name if signature.outputs else ""


def _is_class(spec: TensorSpec, *, batched: bool) -> bool:
    row = spec.shape[1:] if batched else spec.shape
    is_one = all(size == 1 for size in row)
    return is_one and (spec.datatype is Datatype.BYTES or spec.datatype.dtype.kind in "iub")
