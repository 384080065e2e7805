"""How many workers a stream gets, over hours of virtual time."""

from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from headrace.autoscale.state import ScaleReason
from headrace.autoscale.stream import (
    QUIET_S,
    SETTLE_S,
    StreamObservation,
    StreamScale,
    StreamScaleState,
    scale_stream,
)

SCALE = StreamScale(min_workers=1, max_workers=8, target_lag_s=10.0)


@dataclass
class Log:
    """A log whose workers each manage so many records a second; looked at every second."""

    capacity: float = 100.0
    partitions: int | None = 8
    scale: StreamScale = SCALE
    lag: float = 0.0
    now: float = 1000.0
    state: StreamScaleState = field(default_factory=lambda: StreamScaleState(workers=1))
    counts: list[int] = field(default_factory=list)
    reasons: list[ScaleReason] = field(default_factory=list)

    def run(self, seconds: int, arrivals: float) -> None:
        for _ in range(seconds):
            self.now += 1.0
            can = self.capacity * self.state.workers
            rate = min(can, self.lag + arrivals)
            self.lag += arrivals - rate
            look = StreamObservation(
                now=self.now,
                lag_records=round(self.lag),
                lag_s=self.lag / max(arrivals, can),
                rate=rate,
                partitions=self.partitions,
            )
            wish, self.state = scale_stream(self.scale, look, self.state)
            self.counts.append(wish.count)
            self.reasons.append(wish.reason)


def test_what_one_worker_manages_stays_with_one() -> None:
    log = Log()
    log.run(3600, arrivals=80.0)

    assert set(log.counts) == {1}


def test_arrivals_of_three_workers_get_them_before_the_target_is_passed() -> None:
    log = Log()
    log.run(60, arrivals=50.0)
    log.run(120, arrivals=290.0)

    assert log.state.workers in {3, 4}
    assert log.lag < 10.0 * 290.0


def test_a_backlog_is_drained_and_then_workers_go_one_by_one() -> None:
    log = Log(lag=100_000.0)
    log.run(600, arrivals=90.0)
    peak = max(log.counts)
    log.run(3 * 3600, arrivals=90.0)
    steps = [a - b for a, b in pairwise(log.counts)]

    assert peak == 8
    assert log.lag == 0.0
    assert log.counts[-1] == 2  # at 0.9 of one worker's rate, one has no room
    assert max(steps) == 1


def test_a_step_down_waits_until_it_was_quiet_for_long() -> None:
    log = Log(state=StreamScaleState(workers=4))
    log.run(int(QUIET_S) - 10, arrivals=20.0)
    before = log.state.workers
    log.run(40, arrivals=20.0)

    assert before == 4
    assert log.state.workers == 3
    assert ScaleReason.LESS_LOAD in log.reasons


def test_a_count_holds_while_the_last_change_takes_effect() -> None:
    log = Log(lag=100_000.0)
    log.run(200, arrivals=90.0)
    changes = [i for i in range(1, len(log.counts)) if log.counts[i] != log.counts[i - 1]]

    assert len(changes) >= 2
    assert min(b - a for a, b in pairwise(changes)) >= SETTLE_S


def test_there_are_never_more_than_partitions() -> None:
    log = Log(lag=1_000_000.0, partitions=3)
    log.run(600, arrivals=1000.0)

    assert max(log.counts) == 3
    assert log.reasons[-1] is ScaleReason.MAXIMUM


def test_a_broker_without_partitions_has_the_spec_as_its_only_bound() -> None:
    log = Log(lag=1_000_000.0, partitions=None)
    log.run(600, arrivals=1000.0)

    assert max(log.counts) == 8


def test_a_backlog_that_is_soon_gone_gets_nobody_more() -> None:
    log = Log(capacity=10_000.0, lag=60_000.0)
    log.run(60, arrivals=500.0)

    assert set(log.counts) == {1}


def test_without_a_lag_the_count_is_kept() -> None:
    state = StreamScaleState(workers=5)
    look = StreamObservation(now=1.0, lag_records=None, lag_s=None, rate=0.0)

    wish, after = scale_stream(SCALE, look, state)

    assert (wish.count, wish.reason) == (5, ScaleReason.MISSING)
    assert after.workers == 5


@pytest.mark.parametrize(("workers", "count"), [(0, 2), (20, 6)])
def test_new_bounds_hold_at_once(workers: int, count: int) -> None:
    scale = StreamScale(min_workers=2, max_workers=6, target_lag_s=1.0)
    look = StreamObservation(now=1.0, lag_records=0, lag_s=0.0, rate=0.0)

    wish, _ = scale_stream(scale, look, StreamScaleState(workers=workers))

    assert wish.count == count


@given(
    lags=st.lists(st.integers(min_value=0, max_value=10**9), max_size=60),
    rate=st.floats(min_value=0, max_value=1e6),
    workers=st.integers(min_value=0, max_value=100),
    partitions=st.none() | st.integers(min_value=1, max_value=50),
)
@example(lags=[1, 306_722], rate=4.1e-304, workers=1, partitions=None)
@example(lags=[10**9, 0, 10**9], rate=1e-310, workers=1, partitions=None)
def test_counts_stay_within_the_bounds(
    lags: list[int], rate: float, workers: int, partitions: int | None
) -> None:
    state = StreamScaleState(workers=workers)
    for second, lag in enumerate(lags):
        look = StreamObservation(
            now=float(second * 7),
            lag_records=lag,
            lag_s=lag / 100,
            rate=rate,
            partitions=partitions,
        )
        wish, state = scale_stream(SCALE, look, state)

        assert 1 <= wish.count <= 8
        assert state.workers == wish.count
