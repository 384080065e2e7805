"""Predictions and responses that a replica counts and keeps for a rollout.

Inference handlers are wrapped only during observation. A request then takes 2.4 us more for its
prediction, 1 us more if its caller is kept, and 3 us (10 values) to 30 us (5,000) more if its
response is kept for a pair. Envoy sets the headers that are read here and removes them from
callers' requests.

A rollout compares these counts between two versions of a model. They count requests, not rows: of a
request with several rows the first one counts, so that shares are shares of requests.
"""

import hashlib
import math
from typing import TYPE_CHECKING, Final
from zlib import crc32

import numpy as np

from headrace.core import (
    Array,
    Datatype,
    InferResponse,
    ModelSignature,
    Tensors,
    headers,
)
from headrace.engine import Outcome
from headrace.serving.exchange import Exchange
from headrace.serving.routing import Handler
from headrace.serving.telemetry.report import (
    AnswersPage,
    Observe,
    PredictionCounts,
    RecordedAnswer,
    SampledTensor,
    as_asked,
)
from headrace.serving.telemetry.samples import BoundedBuffer, sampled_tensor

if TYPE_CHECKING:
    from headrace.serving.state import ReplicaState

MAX_CLASSES: Final = 1000
"""Number of distinct classes; responses of further classes are counted as skipped."""
_SMALLEST: Final = -9
_LARGEST: Final = 20
_PARTS: Final = 4
_CLASS_TYPES: Final = frozenset("iubO")
_LONGEST_NAME: Final = 200
Key = int | float | bytes


class PredictionCounter:
    """Counter of one output of a model.

    Args:
        output: Its name; empty selects the first output with one integer or string per row, or the
            first output.
    """

    def __init__(self, signature: ModelSignature, output: str = "") -> None:
        self.output = output or _likely_output(signature)
        self._batched = signature.batched
        self._labels = signature.labels.get(self.output, ())
        self._kind = ""
        self._counts: dict[Key, int] = {}
        self._skipped = 0

    def count(self, outputs: Tensors) -> None:
        """Count one request's response."""
        array = outputs.get(self.output)
        key = None if array is None else self._key(array)
        counts = self._counts
        if key is None or (key not in counts and len(counts) >= MAX_CLASSES):
            self._skipped += 1
        else:
            counts[key] = counts.get(key, 0) + 1

    def prediction(self, outputs: Tensors) -> str | float | None:
        """Return the class name or score of a request's first row; None for neither."""
        array = outputs.get(self.output)
        key = None if array is None else self._key(array)
        if array is None or key is None:
            return None
        if self._kind == "score":
            score = float(array.reshape(-1)[0])
            return score if math.isfinite(score) else None
        return self._name(key)

    def counts(self) -> PredictionCounts:
        """Return the counts so far."""
        named: dict[str, int] = {}
        for key, count in self._counts.items():
            name = self._name(key)
            named[name] = named.get(name, 0) + count
        return PredictionCounts(
            output=self.output, kind=self._kind, counts=named, skipped=self._skipped
        )

    def _key(self, array: Array) -> Key | None:
        """Return the key of the first row: an index or value of a class, or a score's bucket."""
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
    """Return the element of a row with one element; an object array's row holds it directly."""
    if isinstance(row, bytes):
        return row
    value: Key | None = row.item() if row.size == 1 else None
    return value


def bucket(score: float) -> float:
    """Return the upper edge of the bucket that holds `score`; an edge belongs to the bucket above.

    Four buckets of equal width lie between adjacent powers of two, from 2^-10 to 2^20. Negative
    scores have the same buckets, whose upper edge is the one near zero and belongs to the bucket.
    One bucket around zero has the edge 2^-10, one below all others has the edge -2^20, and infinity
    is for scores above all others and for NaN.
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
        batched = signature.batched
        row = spec.shape[1:] if batched else spec.shape
        is_one = all(size == 1 for size in row)
        if is_one and (spec.datatype is Datatype.BYTES or spec.datatype.dtype.kind in "iub"):
            return spec.name
    return signature.outputs[0].name if signature.outputs else ""


SHADOW_HEADER: Final = headers.SHADOW_HEADER.encode()
_SPLIT: Final = headers.SPLIT_HEADER.encode()
_UNIT: Final = headers.UNIT_HEADER.encode()
_PAIR: Final = headers.PAIR_HEADER.encode()
_REQUEST_ID: Final = b"x-request-id"
_CAPACITY: Final = 20_000
_CAPACITY_BYTES: Final = 32 << 20
PAGE: Final = 500
_PAGE_BYTES: Final = 1 << 20
MAX_VALUES: Final = 131_072
"""Values of a response that are compared; a larger response is sampled."""
_LONGEST_TEXT: Final = 64
"""Bytes; a longer text is replaced by its digest, which has this length."""
_WHOLE: Final = 100


class Observer:
    """Observer that counts and keeps what `Observe` requests; the caller wraps the handlers."""

    def __init__(self, state: "ReplicaState") -> None:
        self._state = state
        self._wanted = Observe()
        self._split = b""
        self._counter: PredictionCounter | None = None
        self._shelf: BoundedBuffer[RecordedAnswer] = BoundedBuffer(
            most_items=_CAPACITY,
            most_bytes=_CAPACITY_BYTES,
            page_items=PAGE,
            page_bytes=_PAGE_BYTES,
        )

    @property
    def is_on(self) -> bool:
        """Whether observation is active."""
        requested = self._wanted
        return bool(requested.key) and (requested.predictions or requested.answers_percent > 0)

    @property
    def asked(self) -> str:
        """Return the current request in the form of `as_asked`; empty without one."""
        return as_asked(self._wanted)

    def observe(self, requested: Observe) -> None:
        """Observe what `requested` says. An equal request has no effect; a new key resets it."""
        before, self._wanted = self._wanted, requested
        self._split = requested.key.encode()
        if requested.key != before.key:
            self._shelf.clear()
        counted = (before.key, before.predictions, before.output)
        if counted != (requested.key, requested.predictions, requested.output):
            self._counter = None

    def predictions(self) -> PredictionCounts | None:
        """Return the prediction counts; None without a request for them or without responses."""
        return None if self._counter is None else self._counter.counts()

    def answers(self, after: int) -> AnswersPage:
        """Return the responses after a cursor; those before it are dropped."""
        page = self._shelf.page(after)
        return AnswersPage(cursor=page.cursor, answers=list(page.items))

    def wrap(self, handler: Handler) -> Handler:
        """Return `handler` of an inference, wrapped so that its outcomes are observed."""

        def observed(exchange: Exchange) -> None:
            if self._concerns(exchange):
                exchange.observers += (self.answered,)
            handler(exchange)

        return observed

    def answered(self, exchange: Exchange, outcome: Outcome) -> None:
        """Count a response; keep it, or its absence, if its id is in the sampled share."""
        response = outcome if isinstance(outcome, InferResponse) else None
        requested = self._wanted
        is_copy = SHADOW_HEADER in exchange.headers
        if response is not None and requested.predictions and not is_copy:
            if self._counter is None:
                self._counter = PredictionCounter(self._state.model.signature, requested.output)
            self._counter.count(response.outputs)
        answer_id = exchange.headers.get(_PAIR if requested.pairs else _REQUEST_ID)
        if answer_id is None or not is_sampled(answer_id, requested.answers_percent):
            return
        outputs = self._display(response) if response is not None and requested.pairs else {}
        answer = RecordedAnswer(
            answer_id.decode("latin-1"),
            exchange.headers.get(_UNIT, b"").decode("latin-1"),
            compared_tensors(outputs, answer_id),
            response is None,
        )
        self._shelf.add(answer, answer.size_bytes)

    def _concerns(self, exchange: Exchange) -> bool:
        split = exchange.headers.get(_SPLIT)
        return split == self._split or (split is None and SHADOW_HEADER in exchange.headers)

    def _display(self, response: InferResponse) -> Tensors:
        """Return the output to compare if the model has it, otherwise all outputs."""
        name = self._wanted.output
        return {name: response.outputs[name]} if name in response.outputs else response.outputs


def is_sampled(answer_id: bytes, percent: int) -> bool:
    """Whether an id is in the share `percent` of all ids, which is the same in every process."""
    return crc32(answer_id) % _WHOLE < percent


def compared_tensors(outputs: Tensors, pair_id: bytes) -> list[SampledTensor]:
    """Return copies of `outputs` for the comparison with the other response of the pair.

    If a response has more than `MAX_VALUES` values, each output has at most its equal part of
    them. They are drawn with `pair_id` as seed, so that both responses of a pair have the same
    positions.
    """
    is_whole = sum(array.size for array in outputs.values()) <= MAX_VALUES
    maximum = MAX_VALUES if is_whole else MAX_VALUES // len(outputs)
    return [_compared(name, array, maximum, pair_id) for name, array in outputs.items()]


def _compared(name: str, array: Array, maximum: int, pair_id: bytes) -> SampledTensor:
    values = array
    if array.size > maximum:
        # NumPy's bit generators give the same numbers in every release, unlike its Generator.
        draws = np.random.PCG64(list(pair_id)).random_raw(maximum)
        values = array.reshape(-1)[draws % array.size]
    tensor = sampled_tensor(name, values)
    return SampledTensor(
        name=name,
        dtype=tensor.dtype,
        shape=list(array.shape),
        data=tensor.data,
        items=[
            item if len(item) <= _LONGEST_TEXT else hashlib.blake2b(item).digest()
            for item in tensor.items
        ],
    )
