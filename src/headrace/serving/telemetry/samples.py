"""Samples for the payload log, in a buffer with bounds for count and bytes.

A sample holds the arrays themselves. They are encoded when the control plane fetches a page, not
while a request waits.
"""

import random
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

import numpy as np

from headrace.core import Array, Clock, InferRequest, SystemClock, Tensors
from headrace.serving.telemetry.report import PayloadSample, SampledTensor, SamplesPage

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[T]):
    """Items after a cursor, oldest first; the next cursor; the total number of lost items."""

    cursor: int
    items: Sequence[T]
    dropped: int


@dataclass(slots=True, kw_only=True)
class BoundedBuffer(Generic[T]):
    """Buffer of items until their receipt is confirmed; a cursor counts all items ever added.

    Items that do not fit are dropped and counted, without waiting.
    """

    most_items: int
    most_bytes: int
    page_items: int
    page_bytes: int
    dropped: int = 0
    _items: deque[tuple[int, T]] = field(default_factory=deque)
    _bytes: int = 0
    _added: int = 0

    def add(self, item: T, size_bytes: int) -> None:
        """Add an item if it fits."""
        if len(self._items) >= self.most_items or self._bytes + size_bytes > self.most_bytes:
            self.dropped += 1
            return
        self._added += 1
        self._bytes += size_bytes
        self._items.append((size_bytes, item))

    def page(self, after: int) -> Page[T]:
        """Return the items after the cursor `after`; earlier ones were received and are dropped.

        A cursor from another process starts at the oldest item.
        """
        first = self._added - len(self._items)
        if after <= self._added:
            for _ in range(min(max(after - first, 0), len(self._items))):
                size_bytes, _ = self._items.popleft()
                self._bytes -= size_bytes
                first += 1
        items: list[T] = []
        left = self.page_bytes
        for size_bytes, item in self._items:
            if items and (len(items) >= self.page_items or size_bytes > left):
                break
            items.append(item)
            left -= size_bytes
        return Page(cursor=first + len(items), items=items, dropped=self.dropped)

    def clear(self) -> None:
        """Drop all items; the cursor continues."""
        self._items.clear()
        self._bytes = 0


_MOST: Final = 4096
_MAX_BYTES: Final = 64 << 20
_LARGEST_BYTES: Final = 8 << 20
"""A larger request, with its response, is counted but not kept."""
_PAGE_BYTES: Final = 1 << 20
_PAGE: Final = 256
_OVERHEAD_BYTES: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSample:
    """One request and its response; `code` gives the reason of a missing response."""

    request_id: str
    trace_id: str
    caller: str
    at: float
    duration_s: float
    code: str
    inputs: Tensors
    outputs: Tensors


@dataclass(slots=True, kw_only=True)
class Sampler:
    """Sampler that keeps a share of the requests."""

    ratio: float = 0.0
    drop: frozenset[str] = frozenset()
    """Tensors that must not leave this process."""
    clock: Clock = field(default_factory=SystemClock)
    chance: random.Random = field(default_factory=random.Random)
    shelf: BoundedBuffer[RequestSample] = field(
        default_factory=lambda: BoundedBuffer(
            most_items=_MOST, most_bytes=_MAX_BYTES, page_items=_PAGE, page_bytes=_PAGE_BYTES
        )
    )

    def wants(self) -> bool:
        """Whether to keep the current request; random, so that no caller can influence it."""
        return self.ratio > 0.0 and self.chance.random() < self.ratio

    def add(
        self,
        request: InferRequest | None,
        outputs: Tensors,
        *,
        request_id: str,
        trace_id: str,
        caller: str,
        duration_s: float,
        code: str = "OK",
    ) -> None:
        """Add a request that was just answered, with a copy of its part of the outputs."""
        inputs = self._without_dropped("input", {} if request is None else request.inputs)
        outputs = self._without_dropped("output", outputs)
        size_bytes = _size_of(inputs.values()) + _size_of(outputs.values())
        if size_bytes > _LARGEST_BYTES:
            self.shelf.dropped += 1
            return
        sample = RequestSample(
            request_id=request_id,
            trace_id=trace_id,
            caller="" if "caller" in self.drop else caller,
            at=self.clock.now(),
            duration_s=duration_s,
            code=code,
            inputs=inputs,
            # A view of a batch's output would keep the whole output in memory.
            outputs={name: array.copy() for name, array in outputs.items()},
        )
        self.shelf.add(sample, size_bytes + _OVERHEAD_BYTES)

    def page(self, after: int) -> SamplesPage:
        """Return the encoded samples after a cursor."""
        page = self.shelf.page(after)
        samples = [_told(sample) for sample in page.items]
        return SamplesPage(cursor=page.cursor, samples=samples, dropped=page.dropped)

    def _without_dropped(self, side: str, tensors: Tensors) -> Tensors:
        return {n: array for n, array in tensors.items() if f"{side}.{n}" not in self.drop}


def _size_of(arrays: Iterable[Array]) -> int:
    size_bytes = 0
    for array in arrays:
        size_bytes += array.nbytes
        if array.dtype.kind == "O":
            size_bytes += sum(len(item) for item in array.ravel().tolist())
    return size_bytes


def _told(sample: RequestSample) -> PayloadSample:
    return PayloadSample(
        request_id=sample.request_id,
        trace_id=sample.trace_id,
        caller=sample.caller,
        at=sample.at,
        duration_s=sample.duration_s,
        code=sample.code,
        inputs=[sampled_tensor(name, array) for name, array in sample.inputs.items()],
        outputs=[sampled_tensor(name, array) for name, array in sample.outputs.items()],
    )


def sampled_tensor(name: str, array: Array) -> SampledTensor:
    """Return a copy of a tensor in the form that the control plane receives."""
    shape = list(array.shape)
    if array.dtype.kind == "O":
        items = [bytes(item) for item in array.ravel().tolist()]
        return SampledTensor(name=name, dtype="O", shape=shape, items=items)
    data = np.ascontiguousarray(array).tobytes()
    return SampledTensor(name=name, dtype=array.dtype.str, shape=shape, data=data)
