"""Which requests and answers are kept for the payload log? A share, until they are fetched.

A sample holds the arrays themselves. They are written as bytes when a page is asked for, never
while a request waits.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from headrace.core import Array, Clock, InferRequest, SystemClock, Tensors
from headrace.serving.report import PayloadSample, SampledTensor, SamplesPage
from headrace.serving.shelf import Shelf

_MOST: Final = 4096
_MOST_BYTES: Final = 64 << 20
_LARGEST_BYTES: Final = 8 << 20
"""A larger request, with its answer, is not kept, but counted."""
_PAGE_BYTES: Final = 1 << 20
_PAGE: Final = 256
_OVERHEAD_BYTES: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
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
    """Keeps a share of the requests. `drop`: tensors that must not leave this process."""

    ratio: float = 0.0
    drop: frozenset[str] = frozenset()
    clock: Clock = field(default_factory=SystemClock)
    chance: random.Random = field(default_factory=random.Random)
    shelf: Shelf[Sample] = field(
        default_factory=lambda: Shelf(
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
        sample = Sample(
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


def _told(sample: Sample) -> PayloadSample:
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
