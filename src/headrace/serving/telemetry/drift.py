"""Counts of requests and responses for drift detection, made after the response is sent.

The control plane says what to count; without that, none of this is on the request path. Counting
takes at most 1 % of the event loop's time, whatever callers send: the time spent on a request is
compensated by skipping the next ones. Which ones these are does not depend on their content.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from headrace.core import Array, InferResponse, ModelSignature, Tensors
from headrace.engine import Outcome
from headrace.observe.features import (
    INPUT,
    FeatureBins,
    FeatureValues,
    TensorFeatures,
    ValueCounts,
    count_columns,
    features_of,
)
from headrace.serving.exchange import Exchange
from headrace.serving.internal import decode_body, local_only
from headrace.serving.routing import Handler
from headrace.serving.telemetry.observation import SHADOW_HEADER, PredictionCounter
from headrace.serving.telemetry.report import DriftPlan, DriftTaken, SeenAnswer

if TYPE_CHECKING:
    from headrace.serving.state import ReplicaState

_REPAY_RATIO: Final = 100.0
"""Seconds without counting for each second spent."""
_CREDIT_S: Final = 10.0
"""Time that counting may run ahead: 0.1 s of work in a burst."""
_MAX_ANSWERS: Final = 4000
_LONGEST_ID: Final = 256
_FOLD_ROWS: Final = 128
"""Rows that are buffered until they are counted together."""


class DriftSampler:
    """Sampler that counts some requests with their responses, according to a plan.

    Args:
        clock: Monotonic seconds, the clock of the requests' timestamps.
    """

    def __init__(
        self, state: "ReplicaState", *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._state = state
        self._clock = clock
        self._counter: _Counter | None = None
        self._plan = DriftPlan()
        self._paid_at = 0.0
        self._skipped = 0

    @property
    def is_on(self) -> bool:
        """Whether a plan is active."""
        return bool(self._plan.key)

    def follow(self, plan: DriftPlan) -> None:
        """Count according to `plan`; earlier counts are dropped."""
        self._plan = plan
        self._counter = None
        self._skipped = 0

    def take(self) -> DriftTaken:
        """Return the counts since the last call."""
        counter, self._counter = self._counter, None
        skipped, self._skipped = self._skipped, 0
        if counter is None:
            return DriftTaken(key=self._plan.key, skipped=skipped)
        started = self._clock()
        taken = counter.taken()
        self._spend(started)
        age_s = started - counter.since
        return msgspec.structs.replace(taken, skipped=skipped, age_s=age_s)

    def wrap(self, handler: Handler) -> Handler:
        """Return `handler` of an inference, wrapped so that some of its outcomes are counted."""

        def observed(exchange: Exchange) -> None:
            handler(exchange)
            if exchange.received_at + _CREDIT_S < self._paid_at:
                self._skipped += 1
            elif SHADOW_HEADER not in exchange.headers:  # of a mirrored pair the original counts
                exchange.observers += (self.observe,)

        return observed

    def observe(self, exchange: Exchange, outcome: Outcome) -> None:
        """Count a request and its response; refused inputs reach no model."""
        if not isinstance(outcome, InferResponse):
            return
        started = self._clock()
        if self._counter is None:
            signature = self._state.model.signature
            self._counter = _Counter.following(self._plan, signature, since=started)
        self._counter.add(exchange.request.inputs, outcome.outputs)
        request_id = exchange.headers.get(b"x-request-id")
        if self._plan.labels and request_id is not None:
            self._counter.add_answer(request_id.decode("latin-1"), outcome.outputs)
        self._spend(started)

    def _spend(self, started: float) -> None:
        now = self._clock()
        self._paid_at = max(self._paid_at, started) + (now - started) * _REPAY_RATIO


@dataclass(slots=True, kw_only=True)
class _Counter:
    """Counter that buffers some rows and counts them together: NumPy is slow for single rows."""

    plan: DriftPlan
    features: tuple[TensorFeatures, ...]
    bins: dict[str, FeatureBins]
    prediction: PredictionCounter
    since: float
    _counts: dict[str, ValueCounts] = field(default_factory=dict)
    _values: dict[str, FeatureValues] = field(default_factory=dict)
    _waiting: dict[str, list[Array]] = field(default_factory=dict)
    _answers: list[SeenAnswer] = field(default_factory=list)
    _rows: int = 0
    _seen: int = 0

    @classmethod
    def following(cls, plan: DriftPlan, signature: ModelSignature, *, since: float) -> "_Counter":
        """Return a counter for `plan`."""
        bins = {feature_bins.name: feature_bins for feature_bins in plan.bins}
        return cls(
            plan=plan,
            features=features_of(signature),
            bins=bins,
            prediction=PredictionCounter(signature, plan.output),
            since=since,
        )

    def add(self, inputs: Tensors, outputs: Tensors) -> None:
        """Count a request; an output that the caller did not request is absent."""
        maximum = self.plan.rows_per_request
        rows = 0
        for group in self.features:
            array = (inputs if group.role == INPUT else outputs).get(group.tensor)
            if array is not None and array.size and array.ndim >= group.batched:
                block = group.block(array, maximum)
                if block.shape[1] == len(group.names):  # the declared shape is not trusted
                    self._waiting.setdefault(group.tensor, []).append(block)
                    rows = max(rows, len(block))
        self._seen += 1
        self._rows += rows
        if self._rows >= _FOLD_ROWS:
            self._fold()

    def add_answer(self, request_id: str, outputs: Tensors) -> None:
        """Keep a request's outputs, for its label; the number is limited until they are collected.

        Ids beyond the limit are dropped: a caller's id may have any length.
        """
        if len(self._answers) < _MAX_ANSWERS and len(request_id) <= _LONGEST_ID:
            value = self.prediction.prediction(outputs)
            if value is not None:
                self._answers.append(SeenAnswer(request_id, value))

    def taken(self) -> DriftTaken:
        """Return all counts."""
        self._fold()
        counts = [
            self._counts.get(feature_bins.name, ValueCounts()) for feature_bins in self.plan.bins
        ]
        values = list(self._values.values())
        return DriftTaken(
            key=self.plan.key,
            counts=counts,
            values=values,
            answers=self._answers,
            seen=self._seen,
        )

    def _fold(self) -> None:
        waiting, self._waiting, self._rows = self._waiting, {}, 0
        for group in self.features:
            blocks = waiting.get(group.tensor)
            if not blocks:
                continue
            table = np.concatenate(blocks)
            binned = [i for i, name in enumerate(group.names) if name in self.bins]
            bins = [self.bins[group.names[i]] for i in binned]
            for previous, counts in zip(bins, count_columns(table[:, binned], bins), strict=True):
                before = self._counts.get(previous.name, ValueCounts())
                self._counts[previous.name] = before.plus(counts)
            for i in sorted(set(range(len(group.names))) - set(binned)):
                self._keep(group.names[i], group.role, table[:, i])

    def _keep(self, name: str, role: str, column: Array) -> None:
        is_text = column.dtype.kind == "O"
        if name not in self._values:
            self._values[name] = FeatureValues(name=name, role=role, is_text=is_text, values=[])
        sample = self._values[name].values
        part = column[: max(0, self.plan.sample - len(sample))]
        sample += part.tolist() if is_text else _numbers(part)


def _numbers(column: Array) -> list[float | str | None]:
    """Return values as JSON has them; infinite ones as text, NaN as null."""
    numbers: list[float | str | None] = []
    for value in column.tolist():
        if value != value:  # noqa: PLR0124  # only NaN differs from itself
            numbers.append(None)
        else:
            numbers.append(value if abs(value) < np.inf else str(value))
    return numbers


def drift_handlers(
    sampler: DriftSampler, on_change: Callable[[], None]
) -> dict[tuple[bytes, bytes], Handler]:
    """Return the routes by which the control plane sets the plan and collects the counts."""

    def follow(exchange: Exchange) -> None:
        """PUT /internal/drift."""
        sampler.follow(decode_body(exchange, DriftPlan))
        on_change()
        exchange.send_json(b"{}")

    def take(exchange: Exchange) -> None:
        """POST /internal/drift/take."""
        exchange.send_json(msgspec.json.encode(sampler.take()))

    return {
        (b"PUT", b"/internal/drift"): local_only(follow),
        (b"POST", b"/internal/drift/take"): local_only(take),
    }
