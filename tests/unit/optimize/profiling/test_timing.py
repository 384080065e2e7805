import itertools
import statistics
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import RuntimeFailedError
from headrace.optimize.profiling.grid import KEPT, Setting, cell_of, time_runs

ONE = Setting(threads=1, runs=1, rows=4, length=0)


def test_each_run_is_timed_and_rows_are_counted() -> None:
    ticks = itertools.count()

    found = time_runs(lambda: None, ONE, seconds=10.0, clock=lambda: float(next(ticks)))

    assert set(found.samples_s) == {1.0}
    assert found.count == 9
    assert found.rows_per_s == pytest.approx(9 * 4 / 11)


def test_a_few_runs_are_timed_however_long_they_take() -> None:
    ticks = itertools.count(step=100)

    found = time_runs(lambda: None, ONE, seconds=1.0, clock=lambda: float(next(ticks)))

    assert found.count == 3
    assert found.p50_s == 100.0


def test_several_runs_at_once_come_from_as_many_threads() -> None:
    seen: set[int] = set()
    together = threading.Barrier(3, timeout=10.0)

    def run() -> None:
        seen.add(threading.get_ident())
        together.wait()  # goes on only once all three are here

    found = time_runs(run, Setting(threads=1, runs=3, rows=1, length=0), seconds=0.0)

    assert len(seen) == 3
    assert found.count == 3


@pytest.mark.parametrize("runs", [1, 2])
def test_a_failure_comes_back_from_whichever_thread(runs: int) -> None:
    def fail() -> None:
        raise RuntimeFailedError("no")

    with pytest.raises(RuntimeFailedError, match="no"):
        time_runs(fail, Setting(threads=1, runs=runs, rows=1, length=0), seconds=0.0)


@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=900))
def test_what_is_kept_has_the_mean_of_all(samples: list[float]) -> None:
    found = cell_of(ONE, samples, elapsed_s=1.0)

    assert len(found.samples_s) <= KEPT
    assert list(found.samples_s) == sorted(found.samples_s)
    if len(samples) % KEPT == 0 or len(samples) < KEPT:
        kept = statistics.fmean(found.samples_s)
        assert kept == pytest.approx(statistics.fmean(samples), rel=1e-4, abs=1e-8)
    assert found.count == len(samples)
    assert min(samples) - 1e-8 <= found.mean_s <= max(samples) + 1e-8
