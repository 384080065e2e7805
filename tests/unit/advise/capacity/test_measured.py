"""What a profile says of a replica, beside what the profile itself predicts."""

import msgspec
import pytest

from headrace.advise.capacity.fleet import Promise
from headrace.advise.capacity.forecast import Forecast, constant
from headrace.advise.capacity.measured import curve_of, shape_of
from headrace.advise.capacity.notes import assumptions
from headrace.advise.capacity.queue import Load, answered
from headrace.advise.capacity.service import ServiceCurve, spread_of
from headrace.optimize.profiling.messages import Memory
from headrace.optimize.profiling.options import predictor_for
from tests.unit.optimize.profiling.made import DEFAULT, OVERHEAD, cell, measured, profile


def test_times_threads_and_batch_are_those_that_are_recommended() -> None:
    curve = curve_of(profile())

    assert curve.rows == (1, 4)
    assert curve.mean_s == pytest.approx((0.010, 0.020))
    assert (curve.runs, curve.max_rows) == (1, 32)
    assert curve.run_s(2) == pytest.approx(0.010 + 0.010 / 3 + OVERHEAD.wake_s + 2 * OVERHEAD.cpu_s)
    assert curve.fixed_s == pytest.approx(0.00015)


@pytest.mark.slow
@pytest.mark.parametrize("load", [0.1, 0.5, 0.8])
def test_p99_is_that_of_the_profile_itself(load: float) -> None:
    made = profile()
    predictor = predictor_for(
        DEFAULT, OVERHEAD, threads=1, runs=1, length=32, max_batch_size=32, requests=30_000
    )
    curve = curve_of(made)
    rate = load * curve.capacity

    found = answered(curve, Load(rate=rate))

    assert found is not None
    assert curve.capacity == pytest.approx(predictor.capacity(), rel=0.02)
    point = predictor.point(rate, curve.capacity)
    assert found.quantile_s(0.99) == pytest.approx(point.p99_s, rel=0.08)
    assert found.batch_rows == pytest.approx(point.batch_rows, rel=0.08)


def test_runs_are_as_slow_as_the_low_end_of_what_is_sure() -> None:
    made = profile()
    sure = msgspec.structs.replace(
        made.prediction, capacity_ci=(made.prediction.capacity / 1.25, 1e9)
    )

    curve = curve_of(msgspec.structs.replace(made, prediction=sure))

    assert curve.mean_s == pytest.approx((0.0125, 0.025))


def test_a_model_without_a_batch_axis_runs_one_row_at_a_time() -> None:
    curve = curve_of(profile(measured(cell(1, 0.010), batched=False, concurrent=False)))

    assert (curve.best_rows, curve.places) == (1, 1)


def test_memory_is_that_after_the_largest_batch() -> None:
    memory = Memory(
        before_bytes=1,
        loaded_bytes=100,
        one_row_bytes=110,
        largest_bytes=300,
        largest_rows=32,
        length=32,
    )

    shape = shape_of(profile(msgspec.structs.replace(DEFAULT, memory=memory), cores=2))

    assert (shape.cores, shape.memory_bytes) == (2.0, 300)


def test_a_spread_keeps_its_mean_and_most_of_its_variance() -> None:
    samples = [0.01] * 98 + [0.03, 0.05]
    mean = sum(samples) / 100

    spread = spread_of(samples)

    assert sum(r * w for r, w in zip(spread.ratios, spread.weights, strict=True)) == pytest.approx(
        1
    )
    variance = sum((one / mean - 1.0) ** 2 for one in samples) / 100
    assert spread.squared_cv == pytest.approx(variance, rel=0.1)


def test_a_profile_of_a_disturbed_machine_is_said_to_be_one() -> None:
    calm = curve_of(profile())
    disturbed = msgspec.structs.replace(cell(), samples_s=(0.001,) * 199 + (1.0,))
    noisy = curve_of(profile(measured(disturbed)))

    def notes(curve: ServiceCurve) -> str:
        return " ".join(assumptions(curve, Promise(), Forecast(curve=constant(1.0))))

    assert "quiet" not in notes(calm)
    assert "on a quiet machine" in notes(noisy)
