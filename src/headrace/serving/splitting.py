"""Requests with more rows than a batch: they run as several requests in turn."""

import asyncio

import numpy as np

from headrace.core import HeadraceError, InferRequest, InferResponse, Tensors
from headrace.engine import Outcome, Ticket
from headrace.serving.exchange import Exchange
from headrace.serving.state import ReplicaState


class SplitRequests:
    """Requests of one API that were split and have no outcome yet."""

    def __init__(self, state: ReplicaState) -> None:
        self._state = state
        self._splits: dict[Exchange, _SplitRequest] = {}

    def submit(self, exchange: Exchange, limit_s: float) -> None:
        """Queue a decoded request as `ReplicaState.submit` does, in parts if it is too large.

        Its API then calls `ended` with the outcome, or `cancel`.
        """
        most = self._state.max_batch_size
        if most is None or exchange.request.rows <= most:
            self._state.submit(exchange, limit_s)
            return
        split = _SplitRequest(self._state, exchange, rows=most, limit_s=limit_s)
        self._splits[exchange] = split
        try:
            split.submit()
        except HeadraceError:
            del self._splits[exchange]
            raise

    def ended(self, exchange: Exchange) -> None:
        """Forget a request that has its outcome."""
        self._splits.pop(exchange, None)

    def cancel(self, exchange: Exchange) -> None:
        """Cancel the request of a caller that left."""
        split = self._splits.pop(exchange, None)
        self._state.cancel(exchange if split is None else split.cancelled())


class _SplitRequest:
    """Request with more rows than a batch; its parts of `rows` rows run one after the other."""

    def __init__(
        self, state: ReplicaState, exchange: Exchange, *, rows: int, limit_s: float
    ) -> None:
        self._state = state
        self._exchange = exchange
        self._rows = rows
        self._limit_s = limit_s
        self._outputs: list[Tensors] = []
        self._part = _Part(self, exchange.received_at)
        self._is_cancelled = False
        exchange.rows = exchange.request.rows

    def submit(self) -> None:
        """Queue the next part.

        Raises:
            HeadraceError: It is refused, as by `ReplicaState.submit`.
        """
        exchange = self._exchange
        whole = exchange.request
        start = len(self._outputs) * self._rows
        inputs = {name: array[start : start + self._rows] for name, array in whole.inputs.items()}
        part = self._part = _Part(self, exchange.received_at)
        part.floor, part.slo_s = exchange.floor, exchange.slo_s
        part.request = InferRequest(
            model_name=whole.model_name,
            model_version=whole.model_version,
            inputs=inputs,
            rows=min(self._rows, whole.rows - start),
            outputs=whole.outputs,
            priority=whole.priority,
        )
        self._state.submit(part, self._limit_s)

    def received(self, outcome: Outcome) -> None:
        """Take the outcome of a part; the last one completes the request."""
        if self._is_cancelled:
            return
        if not isinstance(outcome, InferResponse):
            self._exchange.complete(outcome)
            return
        self._outputs.append(outcome.outputs)
        if len(self._outputs) * self._rows < self._exchange.request.rows:
            # Not at once: a fast model runs inside of `submit`.
            asyncio.get_running_loop().call_soon(self._submit_next)
            return
        names = self._outputs[0]
        whole = {name: np.concatenate([part[name] for part in self._outputs]) for name in names}
        request = self._exchange.request
        self._exchange.complete(
            InferResponse(
                model_name=request.model_name, model_version=request.model_version, outputs=whole
            )
        )

    def cancelled(self) -> Ticket:
        """Submit no more parts, and return the one that the engine has."""
        self._is_cancelled = True
        return self._part

    def _submit_next(self) -> None:
        if self._is_cancelled:
            return
        try:
            self.submit()
        except HeadraceError as error:
            self._exchange.complete(error)


class _Part(Ticket):
    """Ticket of one part of a request."""

    __slots__ = ("_split",)

    def __init__(self, split: _SplitRequest, received_at: float) -> None:
        super().__init__(received_at)
        self._split = split

    def complete(self, outcome: Outcome) -> None:
        """Receive the outcome."""
        self._split.received(outcome)
