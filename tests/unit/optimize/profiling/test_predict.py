import pytest

from headrace.optimize.profiling.predict import Predictor
from headrace.optimize.profiling.recommend import predictor_for
from tests.unit.optimize.profiling.made import OVERHEAD, cell, measured

pytestmark = pytest.mark.slow


def predictor(*, batched: bool = False) -> Predictor:
    found = measured(cell(1, 0.010), cell(4, 0.020), batched=batched)
    return predictor_for(found, None, threads=1, runs=1, length=32, requests=5_000)


def test_the_capacity_is_what_a_run_leaves_time_for() -> None:
    assert predictor().capacity() == pytest.approx(100.0, rel=0.01)


def test_sharing_runs_raises_the_capacity() -> None:
    assert predictor(batched=True).capacity() == pytest.approx(200.0, rel=0.15)


def test_what_a_request_costs_besides_lowers_it() -> None:
    found = measured(cell(1, 0.010), batched=False)

    made = predictor_for(found, OVERHEAD, threads=1, runs=1, length=32, requests=2_000)

    assert made.capacity() == pytest.approx(1 / 0.01015, rel=0.01)


def test_more_load_is_never_predicted_to_be_answered_sooner() -> None:
    curve = predictor().predict().curve

    p99s = [point.p99_s for point in curve]
    assert p99s == sorted(p99s)
    assert [point.load_ratio for point in curve] == pytest.approx(
        [0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95]
    )


def test_the_knee_is_where_p99_passes_the_limit() -> None:
    made = predictor()
    found = made.predict(p99_s=0.050)

    assert found.knee_rate is not None
    below = made.point(found.knee_rate * 0.93, found.capacity)
    above = made.point(found.knee_rate * 1.07, found.capacity)
    assert below.p99_s <= 0.055
    assert above.p99_s >= 0.045
    assert above.p99_s > below.p99_s


def test_no_rate_keeps_a_limit_below_one_run() -> None:
    assert predictor().predict(p99_s=0.005).knee_rate is None


def test_the_same_seed_predicts_the_same() -> None:
    assert predictor().predict() == predictor().predict()
