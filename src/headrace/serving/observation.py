"""Predictions and answers that a replica looks at for a rollout, while the control plane asks.

Handlers of inference are wrapped only for that time. A request then takes 2.4 us more for its
prediction, 1 us more if it is kept who asked, and 3 us (10 values) to 30 us (5,000) more if the
answer is kept for its pair. Envoy sets the headers that are read here and removes them from
callers' requests.
"""

import hashlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final
from zlib import crc32

import numpy as np

from headrace.core import Array, HeadraceError, InferResponse, ModelSignature, Tensors, headers
from headrace.serving.exchange import Exchange, Wire
from headrace.serving.predictions import PredictionCounter
from headrace.serving.report import (
    Answer,
    AnswersPage,
    Observe,
    PredictionCounts,
    SampledTensor,
    as_asked,
)
from headrace.serving.routing import Handler
from headrace.serving.samples import Shelf, sampled_tensor

if TYPE_CHECKING:
    from headrace.serving.state import ReplicaState

_log = logging.getLogger(__name__)

SHADOW_HEADER: Final = headers.SHADOW_HEADER.encode()
_SPLIT: Final = headers.SPLIT_HEADER.encode()
_UNIT: Final = headers.UNIT_HEADER.encode()
_PAIR: Final = headers.PAIR_HEADER.encode()
_REQUEST_ID: Final = b"x-request-id"
_CAPACITY: Final = 20_000
_CAPACITY_BYTES: Final = 32 << 20
PAGE: Final = 500
_PAGE_BYTES: Final = 1 << 20
MOST_VALUES: Final = 131_072
"""Values of one answer that are compared; of a larger answer so many are drawn."""
_LONGEST_TEXT: Final = 64
"""Bytes; a longer text is replaced by its digest, which is as long."""
_WHOLE: Final = 100


class Observer:
    """Counts and keeps what `Observe` asks for; the caller wraps the handlers of inference."""

    def __init__(self, state: "ReplicaState") -> None:
        self._state = state
        self._wanted = Observe()
        self._split = b""
        self._counter: PredictionCounter | None = None
        self._shelf: Shelf[Answer] = Shelf(
            most_items=_CAPACITY,
            most_bytes=_CAPACITY_BYTES,
            page_items=PAGE,
            page_bytes=_PAGE_BYTES,
        )
        self._wires: dict[Wire, _ObservedWire] = {}

    @property
    def is_on(self) -> bool:
        """Whether anything is looked at."""
        wanted = self._wanted
        return bool(wanted.key) and (wanted.predictions or wanted.answers_percent > 0)

    @property
    def asked(self) -> str:
        """What was asked for, as `as_asked` puts it; empty if nothing."""
        return as_asked(self._wanted)

    def observe(self, wanted: Observe) -> None:
        """Do as `wanted` says. The same again changes nothing; another key starts anew."""
        before, self._wanted = self._wanted, wanted
        self._split = wanted.key.encode()
        if wanted.key != before.key:
            self._shelf.clear()
        counted = (before.key, before.predictions, before.output)
        if counted != (wanted.key, wanted.predictions, wanted.output):
            self._counter = None

    def predictions(self) -> PredictionCounts | None:
        """What was counted; None if nobody asked or nothing was answered yet."""
        return None if self._counter is None else self._counter.counts()

    def answers(self, after: int) -> AnswersPage:
        """Answers after a cursor; those before it are let go."""
        page = self._shelf.page(after)
        return AnswersPage(cursor=page.cursor, answers=list(page.items))

    def wrap(self, handler: Handler) -> Handler:
        """`handler` of an inference, so that its outcomes are seen."""

        def observed(exchange: Exchange) -> None:
            if not self._concerns(exchange):
                handler(exchange)
                return
            try:
                handler(exchange)
            except HeadraceError:
                self.failed(exchange)
                raise
            exchange.wire = self._observed_wire(exchange.wire)

        return observed

    def answered(self, exchange: Exchange, response: InferResponse) -> None:
        """Look at an answer that was sent."""
        wanted = self._wanted
        if wanted.predictions and SHADOW_HEADER not in exchange.headers:
            if self._counter is None:
                self._counter = PredictionCounter(self._signature, wanted.output)
            self._counter.count(response.outputs)
        self._keep(exchange, response)

    def failed(self, exchange: Exchange) -> None:
        """Look at a request that got an error."""
        self._keep(exchange, None)

    def _keep(self, exchange: Exchange, response: InferResponse | None) -> None:
        """Keep an answer, or that there is none, if its id is in the share that is kept."""
        wanted = self._wanted
        answer_id = exchange.headers.get(_PAIR if wanted.pairs else _REQUEST_ID)
        if answer_id is None or not is_sampled(answer_id, wanted.answers_percent):
            return
        outputs = self._shown(response) if response is not None and wanted.pairs else {}
        answer = Answer(
            answer_id.decode("latin-1"),
            exchange.headers.get(_UNIT, b"").decode("latin-1"),
            compared_tensors(outputs, answer_id),
            response is None,
        )
        self._shelf.add(answer, answer.size_bytes)

    def _concerns(self, exchange: Exchange) -> bool:
        split = exchange.headers.get(_SPLIT)
        return split == self._split or (split is None and SHADOW_HEADER in exchange.headers)

    def _observed_wire(self, wire: Wire) -> "_ObservedWire":
        found = self._wires.get(wire)
        if found is None:
            found = self._wires[wire] = _ObservedWire(self, wire)
        return found

    @property
    def _signature(self) -> ModelSignature:
        return self._state.model.signature

    def _shown(self, response: InferResponse) -> Tensors:
        """The output that was asked for, if the model has it, else all."""
        name = self._wanted.output
        return {name: response.outputs[name]} if name in response.outputs else response.outputs


class _ObservedWire:
    """Sends by another wire, then shows the observer what was sent; whatever it does, no harm."""

    def __init__(self, observer: Observer, wire: Wire) -> None:
        self._observer = observer
        self._wire = wire

    def respond(self, exchange: Exchange, response: InferResponse) -> None:
        """Send the model's answer; one that cannot be encoded comes to `refuse` instead."""
        self._wire.respond(exchange, response)
        if exchange.wire is not self._wire:
            self._look(exchange, lambda: self._observer.answered(exchange, response))

    def refuse(self, exchange: Exchange, error: HeadraceError) -> None:
        """Send an error."""
        exchange.wire = self._wire
        self._wire.refuse(exchange, error)
        self._look(exchange, lambda: self._observer.failed(exchange))

    def cancel(self, exchange: Exchange) -> None:
        """The caller left: there is nothing to look at."""
        self._wire.cancel(exchange)

    def _look(self, exchange: Exchange, look: Callable[[], None]) -> None:
        try:
            look()
        except Exception:  # noqa: BLE001  # the request edge: the answer is sent already
            _log.exception("cannot observe an answer", extra={"request_id": exchange.request_id})


def is_sampled(answer_id: bytes, percent: int) -> bool:
    """Whether an id is in a share of `percent` of all ids: the same one in every process."""
    return crc32(answer_id) % _WHOLE < percent


def compared_tensors(outputs: Tensors, pair_id: bytes) -> list[SampledTensor]:
    """Copies of `outputs` for the comparison with the other answer of the pair.

    Of an answer with more than `MOST_VALUES` values, each output has at most its equal part of
    them. They are drawn by `pair_id`, so that both answers of a pair have the same positions.
    """
    is_whole = sum(array.size for array in outputs.values()) <= MOST_VALUES
    most = MOST_VALUES if is_whole else MOST_VALUES // len(outputs)
    return [_compared(name, array, most, pair_id) for name, array in outputs.items()]


def _compared(name: str, array: Array, most: int, pair_id: bytes) -> SampledTensor:
    values = array
    if array.size > most:
        # Unlike NumPy's Generator, its bit generators give the same numbers in every release.
        draws = np.random.PCG64(list(pair_id)).random_raw(most)
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
