"""Live check of row independence: compares a row's answer in a batch with its answer alone.

It covers models whose rows are declared independent without proof, and batches of different
lengths. Callers get their responses before a row runs again, and requests go first.
"""

import logging
import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from headrace.core import Array, HeadraceError, RequestRows, Tensors, arrays_of
from headrace.engine.collate import PaddingPlan, join, split
from headrace.engine.run import Batch, run_model
from headrace.engine.ticket import Ticket
from headrace.observe import ModelStatistics
from headrace.observe.row_checks import RowCheckCounts, RowDifference, RowOutcome
from headrace.runtimes import Model, difference_ratio
from headrace.runtimes.probe import SAME_RATIO

_log = logging.getLogger(__name__)

FIRST_CHECKS: Final = 8
"""Number of first checks that run without waiting for the sampling ratio."""
MIN_INTERVAL_S: Final = 1.0
"""Minimum time from the end of a check to the next one."""
REPAY_RATIO: Final = 100.0
"""Seconds without a check for each second that one ran: checks take at most 1 % of the time."""
_RETRY_BUSY_S: Final = 0.1
"""Delay before another batch is tried after requests left no room for a check."""
_LONGEST_RUN_S: Final = 3.0
"""Batches that took longer are not checked: three runs in the only slot would make a replica look
stuck.
"""
_DEADLINE_S: Final = 5.0
"""Time limit of one check run for a model that waits for other services."""
_HALF_STEPS: Final = 8.0
"""Rounding steps of a 16-bit output that count as equal: more than `SAME_RATIO`."""
_MAX_VALUES: Final = 1 << 20
"""Number of values of an output that are searched for the largest."""
_FADE: Final = 0.9
"""Factor by which an output's remembered largest value decays at each check."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSample:
    """A completed batch, and the row of it to check."""

    tickets: list[Ticket]
    request: int
    """Index of the selected request in `tickets`."""
    row: int
    """The row of that request."""
    answer: Tensors | RequestRows
    """Response to that request."""
    padded: bool

    @property
    def rows(self) -> int:
        """Return the number of rows in the batch."""
        return sum(ticket.rows for ticket in self.tickets)


def check_row(
    model: Model, sample: RowSample, plan: PaddingPlan | None, scales: dict[str, float]
) -> tuple[RowOutcome, RowDifference | None]:
    """Check the selected row of a batch as `compare_row` does. Never raises.

    Args:
        scales: Largest value of each output in earlier checks; updated.
    """
    selected = sample.tickets[sample.request]

    def run_alone() -> Tensors:
        # Copied for each run: a model may change its inputs in place, and other code may hold them.
        inputs = selected.request.inputs.items()
        row = {name: _row(array, sample.row).copy() for name, array in inputs}
        return run_model(model, row, names, [selected])

    def run_again() -> Tensors:
        inputs, padded_to = join(sample.tickets, plan)
        outputs = run_model(model, inputs, names, sample.tickets)
        parts = split(outputs, sample.tickets, plan=plan, padded_to=padded_to)
        reanswered = arrays_of(parts[sample.request]).items()
        return {name: _row(array, sample.row) for name, array in reanswered}

    try:
        answer = sample.answer
        note_scales(scales, answer.batch.arrays if isinstance(answer, RequestRows) else answer)
        answered = {name: _row(array, sample.row) for name, array in arrays_of(answer).items()}
        names = tuple(answered)
        return compare_row(
            answered,
            run_alone,
            run_again,
            scales,
            requests=len(sample.tickets),
            rows=sample.rows,
            padded=sample.padded,
        )
    except Exception as error:  # noqa: BLE001  # a plug-in call
        # The model's error message may quote the row.
        reason = error.code if isinstance(error, HeadraceError) else type(error).__name__
        _log.warning("a row of a batch failed when it was run alone", extra={"error": reason})
        return RowOutcome.FAILED, None


def compare_row(
    answered: Tensors,
    run_alone: Callable[[], Tensors],
    run_again: Callable[[], Tensors],
    scales: Mapping[str, float],
    *,
    requests: int,
    rows: int,
    padded: bool = False,
) -> tuple[RowOutcome, RowDifference | None]:
    """Compare a row's answer in a batch with its answer alone; return the outcome and difference.

    A difference is confirmed: the row alone and the whole batch run once more. If one of them
    differs from its first answer, the model is not repeatable and the result is inconclusive.

    Args:
        answered: The row's part of the batch's answer.
        run_alone: Runs the row alone.
        run_again: Runs the batch again and returns the row's part of the answer.
        scales: Largest value of each output so far.
        requests: Number of requests in the batch.
        rows: Number of rows in the batch.
        padded: Whether the row was padded to the length of a longer one.
    """
    alone = run_alone()
    worst = _worst_difference(alone, answered, scales)
    if worst is None:
        return RowOutcome.SAME, None
    if _worst_difference(run_alone(), alone, scales) is not None:
        return RowOutcome.UNREPEATABLE, None
    if _worst_difference(run_again(), answered, scales) is not None:
        return RowOutcome.UNREPEATABLE, None
    output, ratio = worst
    difference = RowDifference(
        output=output,
        ratio=ratio if math.isfinite(ratio) else None,
        requests=requests,
        rows=rows,
        padded=padded,
        at=time.time(),  # noqa: TID251  # for people
    )
    return RowOutcome.DIFFERENT, difference


class RowChecker:
    """Sampler that checks one row of some batches when requests leave room.

    Between checks it does not listen for batches, so requests pay nothing. Everything except the
    runs of a check happens on the event loop.

    Args:
        statistics: Statistics of the model: how many batches ran.
        plan: Padding plan; None for a model whose rows are not padded.
        only_padded: Check only padded rows, because the model is otherwise proven.
        ratio: Share of the batches that are checked after the first few; 0 checks none.
        counts: Counts to update.
        listen: Registers a callback for each batch that ran; None unregisters it.
        run_in_thread: As `Engine.run_in_thread`.
        later: Calls back after a number of seconds, as an event loop's `call_later`.
        soon: Calls back after tickets are completed, as an event loop's `call_soon`.
    """

    def __init__(
        self,
        *,
        statistics: ModelStatistics,
        plan: PaddingPlan | None,
        only_padded: bool,
        ratio: float,
        counts: RowCheckCounts,
        listen: Callable[[Callable[[Batch], None] | None], None],
        run_in_thread: Callable[[Callable[[Model], None], Callable[[], None]], bool],
        later: Callable[[float, Callable[[], None]], object],
        soon: Callable[[Callable[[], None]], object],
        chance: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._statistics = statistics
        self._plan = plan
        self._only_padded = only_padded
        self._ratio = ratio
        self._counts = counts
        self._listen = listen
        self._run_in_thread = run_in_thread
        self._later = later
        self._soon = soon
        self._chance = chance or random.Random()  # noqa: S311  # sampling
        self._clock = clock
        self._scales: dict[str, float] = {}
        self._due_at_batch = 0
        self._due_at = -math.inf
        self._checks = 0
        self._is_waiting = False

    def start(self) -> None:
        """Start to listen for a batch, also after the model was loaded again."""
        if self._ratio > 0:
            self._listen_if_due()

    def _take(self, batch: Batch) -> None:
        """Sample a batch whose tickets are completed next, and stop listening."""
        sample = self._sample(batch)
        if sample is None:
            if self._only_padded:  # all requests may have one length: check rarely
                self._listen(None)
                self._wait(MIN_INTERVAL_S)
        elif batch.computed_at - batch.joined_at > _LONGEST_RUN_S:
            self._skip(MIN_INTERVAL_S)
        else:
            self._listen(None)
            self._soon(lambda: self._check(sample))

    def _skip(self, pause_s: float) -> None:
        self._counts.outcomes[RowOutcome.SKIPPED] += 1
        self._listen(None)
        self._wait(pause_s)

    def _sample(self, batch: Batch) -> RowSample | None:
        tickets = batch.tickets
        if len(tickets) < 2 or batch.executions != 1:  # noqa: PLR2004  # no company
            return None
        request = self._chance.randrange(len(tickets))
        padded = self._plan is not None and tickets[request].length < batch.length
        result = batch.results[request]
        if isinstance(result, HeadraceError) or (self._only_padded and not padded):
            return None
        return RowSample(
            # The engine's tickets must be free to go when the responses are sent.
            tickets=[self._copy(ticket) for ticket in tickets],
            request=request,
            row=self._chance.randrange(tickets[request].rows),
            answer=result,
            padded=padded,
        )

    def _copy(self, ticket: Ticket) -> Ticket:
        copy = Ticket(received_at=ticket.received_at)
        copy.request, copy.rows = ticket.request, ticket.rows
        copy.length, copy.group = ticket.length, ticket.group
        copy.deadline = self._clock() + _DEADLINE_S
        return copy

    def _check(self, sample: RowSample) -> None:
        """Check a sample if requests leave room; otherwise try another batch shortly after."""
        started = self._clock()
        result: list[tuple[RowOutcome, RowDifference | None]] = []

        def work(model: Model) -> None:
            result.append(check_row(model, sample, self._plan, self._scales))

        def ended() -> None:
            self._note(*result[0], took_s=self._clock() - started)

        if not self._run_in_thread(work, ended):
            self._skip(_RETRY_BUSY_S)

    def _note(
        self, outcome: RowOutcome, difference: RowDifference | None, *, took_s: float
    ) -> None:
        """Count a check and schedule the next one."""
        self._counts.outcomes[outcome] += 1
        if difference is not None:
            self._counts.difference = difference
            _log.warning(
                "a row of a batch had a different result when it was run alone: the model "
                "mixes callers' rows",
                extra={"output": difference.output, "ratio": difference.ratio},
            )
        self._checks += 1
        if self._checks >= FIRST_CHECKS:
            gap = self._chance.expovariate(self._ratio)
            self._due_at_batch = self._statistics.execution_count + int(gap)
        pause_s = max(MIN_INTERVAL_S, REPAY_RATIO * took_s)
        self._due_at = self._clock() + pause_s
        self._wait(pause_s)

    def _wait(self, pause_s: float) -> None:
        """Schedule the next call of `_listen_if_due`; at most one is scheduled."""
        if not self._is_waiting:
            self._is_waiting = True
            self._later(pause_s, self._wake)

    def _wake(self) -> None:
        self._is_waiting = False
        self._listen_if_due()

    def _listen_if_due(self) -> None:
        """Listen if enough time and batches have passed since the last check, or reschedule."""
        left_s = self._due_at - self._clock()
        if left_s <= 0 and self._statistics.execution_count >= self._due_at_batch:
            self._listen(self._take)
        else:
            self._wait(max(left_s, MIN_INTERVAL_S))


def _row(array: Array, index: int) -> Array:
    return array[index : index + 1]


def note_scales(scales: dict[str, float], outputs: Tensors) -> None:
    """Record the largest value of each output; rounding is proportional to it."""
    for name, array in outputs.items():
        if array.dtype.kind == "f" and array.size:
            values = array.reshape(-1)[:: 1 + array.size // _MAX_VALUES]
            largest = float(np.abs(values[np.isfinite(values)]).max(initial=0.0))
            scales[name] = max(largest, _FADE * scales.get(name, 0.0))


def _worst_difference(
    actual: Tensors, expected: Tensors, scales: Mapping[str, float]
) -> tuple[str, float] | None:
    """Return the output with the largest difference beyond rounding, and that difference, or None.

    Labels and texts count only if no output has scores: a label may flip where two scores tie.
    """
    has_scores = any(array.dtype.kind in "fc" for array in expected.values())
    worst: tuple[str, float] | None = None
    for name, array in expected.items():
        ratio = _difference(actual[name], array, scales.get(name, 0.0))
        if has_scores and array.dtype.kind not in "fc" and np.isfinite(ratio):
            continue
        if ratio > _tolerance(array) and (worst is None or ratio > worst[1]):
            worst = name, ratio
    return worst


def _difference(actual: Array, expected: Array, scale: float) -> float:
    """Return `difference_ratio`, relative to `scale` where that exceeds every value in `want`."""
    if actual.shape != expected.shape or actual.dtype.kind != "f":
        return difference_ratio(actual, expected)
    with_scale = [np.append(array.astype(np.float64), scale) for array in (actual, expected)]
    return difference_ratio(*with_scale)


def _tolerance(array: Array) -> float:
    if array.dtype.kind != "f":
        return SAME_RATIO
    return max(SAME_RATIO, _HALF_STEPS * float(np.finfo(array.dtype).eps))
