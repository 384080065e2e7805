import statistics

import pytest

from headrace.optimize.profiling.grid import Setting, cell_of
from headrace.optimize.profiling.predict import MeasuredService
from tests.unit.optimize.profiling.made import cell


def test_between_two_sizes_the_mean_lies_on_a_line() -> None:
    service = MeasuredService([cell(1, 0.010), cell(4, 0.040)], seed=1)

    assert service.mean_s(2, 1) == pytest.approx(0.020)
    assert service.mean_s(8, 1) == pytest.approx(0.080)
    assert service.mean_s(1, 1) == pytest.approx(0.010)


def test_runs_at_once_are_drawn_from_what_was_measured_at_once() -> None:
    service = MeasuredService([cell(1, 0.010), cell(1, 0.018, runs=4)], seed=1)

    assert service.run_s(1, 1) == pytest.approx(0.010)
    assert service.run_s(1, 2) == pytest.approx(0.018)
    assert service.run_s(1, 9) == pytest.approx(0.018)


def test_draws_keep_mean_and_extremes_of_the_samples() -> None:
    setting = Setting(threads=1, runs=1, rows=1, length=0)
    samples = [0.010] * 95 + [0.100] * 5
    service = MeasuredService([cell_of(setting, samples, elapsed_s=1.0)], seed=1)

    drawn = [service.run_s(1, 1) for _ in range(10_000)]

    assert statistics.fmean(drawn) == pytest.approx(statistics.fmean(samples), rel=0.05)
    assert max(drawn) == pytest.approx(0.100)
    assert min(drawn) == pytest.approx(0.010)


def test_the_same_seed_draws_the_same() -> None:
    setting = Setting(threads=1, runs=1, rows=1, length=0)
    found = cell_of(setting, [0.001 * k for k in range(1, 50)], elapsed_s=1.0)

    one, other = (MeasuredService([found], seed=7) for _ in range(2))

    assert [one.run_s(1, 1) for _ in range(50)] == [other.run_s(1, 1) for _ in range(50)]
