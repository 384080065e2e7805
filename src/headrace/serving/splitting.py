"""Requests with more rows than a batch: they run as several requests, some at a time."""

import asyncio

import numpy as np

from headrace.core import HeadraceError, InferRequest, InferResponse, Tensors
from headrace.engine import Outcome, Ticket
from headrace.serving.exchange import Exchange
from headrace.serving.state import ReplicaState


def submit_in_parts(state: ReplicaState, exchange: Exchange, limit_s: float) -> None:
    """Queue a decoded request as `ReplicaState.submit` does, in parts if it is too large."""
    most = state.max_batch_size
    if most is None or exchange.request.rows <= most:
        state.submit(exchange, limit_s)
    else:
        _SplitRequest(state, exchange, rows=most, limit_s=limit_s).submit()


class _SplitRequest:
    """Request with more rows than a batch, in parts of `rows` rows.

    As many parts are queued as the engine runs at once: later requests of other callers do not wait
    for all of them.
    """

    def __init__(
        self, state: ReplicaState, exchange: Exchange, *, rows: int, limit_s: float
    ) -> None:
        self._state = state
        self._exchange = exchange
        self._rows = rows
        self._limit_s = limit_s
        self._starts = iter(range(0, exchange.request.rows, rows))
        self._running: set[_Part] = set()
        self._outputs: dict[int, Tensors] = {}
        self._is_over = False
        exchange.rows = exchange.request.rows

    def submit(self) -> None:
        """Queue the first parts.

        Raises:
            HeadraceError: One is refused, as by `ReplicaState.submit`; the others are cancelled.
        """
        try:
            for _ in range(self._state.model.engine.max_concurrent_runs):
                self._submit_next()
        except HeadraceError:
            self.end()
            raise
        self._state.split[self._exchange] = self.end

    def received(self, part: "_Part", outcome: Outcome) -> None:
        """Take the outcome of a part; the last one, or an error, completes the request."""
        if self._is_over:
            return
        self._running.discard(part)
        if not isinstance(outcome, InferResponse):
            self.end()
            self._exchange.complete(outcome)
            return
        self._outputs[part.start] = outcome.outputs
        request = self._exchange.request
        if len(self._outputs) * self._rows < request.rows:
            # Not at once: the engine is completing a batch.
            asyncio.get_running_loop().call_soon(self._go_on)
            return
        self.end()
        parts = [outputs for _, outputs in sorted(self._outputs.items())]
        whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        self._exchange.complete(
            InferResponse(
                model_name=request.model_name, model_version=request.model_version, outputs=whole
            )
        )

    def end(self) -> None:
        """Submit no more parts, and cancel those that the engine has."""
        self._is_over = True
        self._state.split.pop(self._exchange, None)
        for part in self._running:
            self._state.cancel(part)

    def _go_on(self) -> None:
        if self._is_over:
            return
        try:
            self._submit_next()
        except HeadraceError as error:
            self.end()
            self._exchange.complete(error)

    def _submit_next(self) -> None:
        """Queue the next part if there is one."""
        start = next(self._starts, None)
        if start is None:
            return
        exchange = self._exchange
        whole = exchange.request
        part = _Part(self, start, exchange.received_at)
        part.floor, part.slo_s = exchange.floor, exchange.slo_s
        part.request = InferRequest(
            model_name=whole.model_name,
            model_version=whole.model_version,
            inputs={
                name: array[start : start + self._rows] for name, array in whole.inputs.items()
            },
            rows=min(self._rows, whole.rows - start),
            outputs=whole.outputs,
            priority=whole.priority,
        )
        self._state.submit(part, self._limit_s)
        self._running.add(part)


class _Part(Ticket):
    """Ticket of one part of a request, from row `start`."""

    __slots__ = ("_split", "start")

    def __init__(self, split: _SplitRequest, start: int, received_at: float) -> None:
        super().__init__(received_at)
        self._split = split
        self.start = start

    def complete(self, outcome: Outcome) -> None:
        """Receive the outcome."""
        self._split.received(self, outcome)
