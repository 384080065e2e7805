import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.optimize.profiling.document import conclude, p99_interval, seconds_to_know
from headrace.optimize.profiling.messages import Measured
from headrace.optimize.profiling.predict import Predictor, poisson
from headrace.optimize.profiling.recommend import Requirements, ServingRecommendation, predictor_for
from tests.unit.optimize.profiling import made
from tests.unit.optimize.profiling.machine import Machine, drifting

pytestmark = pytest.mark.slow


def predictor_of(measured: Measured, requests: int) -> Predictor:
    return predictor_for(measured, None, threads=1, runs=1, length=32, requests=requests)


def recommended(measured: Measured) -> tuple[ServingRecommendation, dict[str, str]]:
    profile = conclude(
        measured,
        made.OVERHEAD,
        Requirements(),
        model="m",
        digest="sha256:" + "a" * 64,
        processor=made.HERE,
        cores=1,
        created_at="",
        headrace="1.0",
        requests=1_000,
    )
    found = profile.recommendation
    return found, {one.name: f"{one.value}: {one.why}" for one in found.reasons}


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_the_p99_of_a_replica_that_is_slower_after_pauses_is_predicted(load: float) -> None:
    machine = Machine(cold=0.5)
    made_of = predictor_of(machine.measured(), 20_000).surely()
    rate = load * made_of.capacity()

    found = made_of.point(rate, rate)

    assert found.p99_s == pytest.approx(machine.p99_s(rate, seconds=1_500), rel=0.05)


def test_without_the_pauses_an_idle_replica_would_seem_faster_than_it_is() -> None:
    measured = Machine(cold=0.5).measured()
    cells = [msgspec.structs.replace(cell, paused=()) for cell in measured.cells]
    hot = predictor_of(msgspec.structs.replace(measured, cells=tuple(cells)), 2_000)

    cold = predictor_of(measured, 2_000)

    assert cold.point(5.0, 100.0).p50_s > 1.4 * hot.point(5.0, 100.0).p50_s
    assert cold.capacity() == pytest.approx(hot.capacity())  # which never idles


def test_the_p99_of_a_machine_that_drifts_lies_in_the_interval() -> None:
    held = 0
    for seed in range(3):
        machine = Machine(drift=drifting(0.1, lasts_s=3.0, seed=seed))
        made_of = predictor_of(machine.measured(), 10_000)
        point = made_of.point(70.0, 100.0)
        found = p99_interval(made_of, point)

        assert found is not None
        assert found[0] <= point.p99_s <= found[1]
        held += found[0] <= machine.p99_s(70.0, seconds=600) <= found[1]
    assert held == 3


def test_drift_makes_the_tail_of_a_queue_longer() -> None:
    quiet, drifts = (
        predictor_of(Machine(drift=drift).measured(), 10_000)
        for drift in (lambda _: 1.0, lambda at_s: 0.8 if int(at_s) % 4 < 2 else 1.2)
    )

    assert drifts.capacity() == pytest.approx(quiet.capacity(), rel=0.06)
    assert drifts.point(70.0, 100.0).p99_s > 1.2 * quiet.point(70.0, 100.0).p99_s


def test_a_steady_machine_is_surely_predicted() -> None:
    found, why = recommended(Machine(noise=0.02).measured())

    assert found.p99_ci_s is not None
    low, high = found.p99_ci_s
    assert low <= found.p99_s <= high
    assert high - low < 0.3 * found.p99_s
    assert "the interval is wide" not in why["p99"]


def test_a_wide_interval_asks_for_more_time_or_a_quieter_machine() -> None:
    drift = drifting(0.15, lasts_s=5.0, seed=2)

    found, why = recommended(Machine(drift=drift).measured())

    assert found.p99_ci_s is not None
    assert "increase --budget or use a quieter machine" in why["p99"]
    assert why["p99"].count(" ms") == 3  # the p99, and the ends of its interval


def test_too_few_rounds_give_no_interval_and_say_so() -> None:
    found, why = recommended(made.DEFAULT)

    assert found.p99_ci_s is None
    assert "too few rounds for an interval: increase --budget" in why["p99"]


@pytest.mark.parametrize("load", [0.5, 0.7])
def test_a_load_has_to_last_until_its_p99_varies_by_a_tenth(load: float) -> None:
    seconds = seconds_to_know(rate=load / 0.010, load_ratio=load)

    p99s = []
    for seed in range(200):  # by the recursion of Lindley, for equal runs of 10 ms
        arrivals = poisson(round(seconds * load / 0.010), load / 0.010, seed=seed)
        ahead = np.cumsum(0.010 - np.diff(arrivals, prepend=0.0))
        p99s.append(np.quantile(ahead - np.minimum.accumulate(ahead) + 0.010, 0.99))

    assert np.std(p99s) / np.mean(p99s) == pytest.approx(0.1, rel=0.2)


@given(st.floats(1e-3, 1e6), st.floats(0.01, 3.0), st.floats(1.0, 1.5))
def test_more_load_of_the_capacity_is_never_known_sooner(
    rate: float, load: float, more: float
) -> None:
    once, again = (seconds_to_know(rate=rate, load_ratio=one) for one in (load, load * more))

    assert 10.0 <= once <= again <= 3600.0


def test_how_to_check_a_prediction_is_recommended() -> None:
    found, why = recommended(made.DEFAULT)

    assert found.check_s == pytest.approx(6_700 / (0.7 * found.capacity), rel=0.02)
    assert found.rate is not None
    assert why["to check"].startswith(f"headrace load URL --rate {found.rate:.4g} --seconds 49: ")
