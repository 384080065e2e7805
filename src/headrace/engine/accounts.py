"""Counters of the engine: finished batches and failed requests, for statistics and metrics."""

import time

from headrace.core import (
    DeadlineExceededError,
    HeadraceError,
    OverloadedError,
    RequestCancelledError,
    RuntimeFailedError,
    UnavailableError,
)
from headrace.engine.run import Batch
from headrace.observe import BatchStatistics, ModelStatistics, PhaseHistograms


class Accounts:
    """Accounts of one model: adds to its statistics and histograms."""

    def __init__(self, statistics: ModelStatistics, phases: PhaseHistograms) -> None:
        self._statistics = statistics
        self._phases = phases

    def failed(self, error: HeadraceError, seconds: float) -> None:
        """Count a request that failed with `error`, `seconds` after it arrived."""
        self._statistics.fail.add(int(seconds * 1e9))
        self._statistics.failures[_reason(error)] += 1

    def finished(self, batch: Batch, *, answered: int, queued_s: float, total_s: float) -> None:
        """Count a batch that ended.

        Args:
            batch: The batch, with its times.
            answered: Number of its requests that got a response.
            queued_s: Total queue time of these requests.
            total_s: Total time of these requests from arrival to the end of the run.
        """
        statistics, phases = self._statistics, self._phases
        input_ns = int((batch.joined_at - batch.formed_at) * 1e9)
        infer_ns = int((batch.computed_at - batch.joined_at) * 1e9)
        output_ns = int((batch.split_at - batch.computed_at) * 1e9)
        phases.compute.observe(batch.split_at - batch.formed_at, len(batch.tickets))
        phases.batch_rows.observe(batch.rows)
        statistics.execution_count += batch.executions
        if answered:
            statistics.inference_count += batch.rows
            statistics.last_inference_ms = int(time.time() * 1000)  # noqa: TID251  # for people
            statistics.success.add(int(total_s * 1e9), answered)
            statistics.queue.add(int(queued_s * 1e9), answered)
            statistics.compute_input.add(input_ns * answered, answered)
            statistics.compute_infer.add(infer_ns * answered, answered)
            statistics.compute_output.add(output_ns * answered, answered)
        by_size = statistics.batches.get(batch.rows)
        if by_size is None:
            by_size = statistics.batches[batch.rows] = BatchStatistics()
        by_size.compute_input.add(input_ns)
        by_size.compute_infer.add(infer_ns)
        by_size.compute_output.add(output_ns)


def _reason(error: HeadraceError) -> str:
    """Return Triton's reason for a failed request."""
    if isinstance(error, RequestCancelledError):
        return "CANCELED"
    if isinstance(error, OverloadedError | DeadlineExceededError | UnavailableError):
        return "REJECTED"
    return "BACKEND" if isinstance(error, RuntimeFailedError) else "OTHER"
