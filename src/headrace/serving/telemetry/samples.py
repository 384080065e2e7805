"""Samples for the payload log, bounded in number and bytes until the control plane fetches them.

A sample holds the arrays themselves. They are written as bytes when a page is asked for, never
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
    """What followed a cursor, oldest first; the cursor to ask with next; all that was lost."""

    cursor: int
    items: Sequence[T]
    dropped: int


@dataclass(slots=True, kw_only=True)
class BoundedBuffer(Generic[T]):
    """Keeps items until they are known to have arrived; a cursor counts all that were ever added.

    What does not fit is dropped and counted: nobody waits.
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
        """Keep an item, if it fits."""
        if len(self._items) >= self.most_items or self._bytes + size_bytes > self.most_bytes:
            self.dropped += 1
            return
        self._added += 1
        self._bytes += size_bytes
        self._items.append((size_bytes, item))

    def page(self, after: int) -> Page[T]:
        """What was added after the cursor `after`; what came before it has arrived and is let go.

        A cursor of another process's shelf begins with what is here.
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
        """Let everything go; the cursor goes on."""
        self._items.clear()
        self._bytes = 0


_MOST: Final = 4096
_MOST_BYTES: Final = 64 << 20
_LARGEST_BYTES: Final = 8 << 20
"""A larger request, with its answer, is not kept, but counted."""
_PAGE_BYTES: Final = 1 << 20
_PAGE: Final = 256
_OVERHEAD_BYTES: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSample:
    """One request and its answer; `code` says why there is none."""

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
    """Keeps a share of the requests."""

    ratio: float = 0.0
    drop: frozenset[str] = frozenset()
    """Tensors that must not leave this process."""
    clock: Clock = field(default_factory=SystemClock)
    chance: random.Random = field(default_factory=random.Random)
    shelf: BoundedBuffer[RequestSample] = field(
        default_factory=lambda: BoundedBuffer(
            most_items=_MOST, most_bytes=_MOST_BYTES, page_items=_PAGE, page_bytes=_PAGE_BYTES
        )
    )

    def wants(self) -> bool:
        """Whether to keep the request that comes now: by chance, which no caller can steer."""
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
        """Keep a request that was just answered, its answer copied out of the batch's."""
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
            # A row of a batch's answer would keep all of it.
            outputs={name: array.copy() for name, array in outputs.items()},
        )
        self.shelf.add(sample, size_bytes + _OVERHEAD_BYTES)

    def page(self, after: int) -> SamplesPage:
        """What was kept after a cursor, as bytes."""
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
    """A copy of a tensor, as the control plane gets it."""
    shape = list(array.shape)
    if array.dtype.kind == "O":
        items = [bytes(item) for item in array.ravel().tolist()]
        return SampledTensor(name=name, dtype="O", shape=shape, items=items)
    data = np.ascontiguousarray(array).tobytes()
    return SampledTensor(name=name, dtype=array.dtype.str, shape=shape, data=data)
