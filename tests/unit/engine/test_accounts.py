"""What one finished batch and each failure add, in nanoseconds."""

import pytest

from headrace.core import (
    DeadlineExceededError,
    HeadraceError,
    InvalidArgumentError,
    OverloadedError,
    RequestCancelledError,
    RuntimeFailedError,
    UnavailableError,
)
from headrace.engine.accounts import Accounts
from headrace.engine.run import Batch
from headrace.observe import ModelStatistics, PhaseHistograms
from tests.unit.engine.tickets import a_ticket


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RequestCancelledError(), "CANCELED"),
        (OverloadedError("full", retry_after_s=1.0), "REJECTED"),
        (DeadlineExceededError("late"), "REJECTED"),
        (UnavailableError("stopping"), "REJECTED"),
        (RuntimeFailedError("broken"), "BACKEND"),
        (InvalidArgumentError("wrong"), "OTHER"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_failure_has_triton_s_reason(error: HeadraceError, reason: str) -> None:
    statistics = ModelStatistics(name="m", version="1")

    Accounts(statistics, PhaseHistograms()).failed(error, 0.25)

    assert {name: n for name, n in statistics.failures.items() if n} == {reason: 1}
    assert (statistics.fail.count, statistics.fail.ns) == (1, 250_000_000)


def test_a_batch_counts_once_and_each_of_its_answers_too() -> None:
    statistics, phases = ModelStatistics(name="m", version="1"), PhaseHistograms()
    batch = Batch(
        tickets=[a_ticket(), a_ticket(), a_ticket()],
        rows=5,
        formed_at=1.0,
        joined_at=1.5,
        computed_at=3.5,
        split_at=3.75,
        executions=1,
    )

    Accounts(statistics, phases).finished(batch, answered=2, queued_s=0.5, total_s=6.0)

    phase_ns = {
        name: (getattr(statistics, name).count, getattr(statistics, name).ns)
        for name in ("success", "queue", "compute_input", "compute_infer", "compute_output")
    }
    assert phase_ns == {
        "success": (2, 6_000_000_000),
        "queue": (2, 500_000_000),
        "compute_input": (2, 1_000_000_000),
        "compute_infer": (2, 4_000_000_000),
        "compute_output": (2, 500_000_000),
    }
    of_five = statistics.batches[5]
    assert [of_five.compute_input.ns, of_five.compute_infer.ns, of_five.compute_output.ns] == [
        500_000_000,
        2_000_000_000,
        250_000_000,
    ]
    assert (statistics.inference_count, statistics.execution_count) == (5, 1)
    assert phases.compute.count == 3
    assert phases.compute.sum == pytest.approx(3 * 2.75)


def test_a_batch_whose_callers_all_left_answers_nobody() -> None:
    statistics = ModelStatistics(name="m", version="1")
    batch = Batch(tickets=[a_ticket()], rows=1, formed_at=1.0, split_at=2.0, executions=1)

    Accounts(statistics, PhaseHistograms()).finished(batch, answered=0, queued_s=0.0, total_s=0.0)

    assert statistics.execution_count == 1
    assert statistics.inference_count == statistics.success.count == 0
    assert list(statistics.batches) == [1]
