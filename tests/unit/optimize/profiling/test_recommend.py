import pytest

from headrace.core import PaddingSpec
from headrace.optimize.profiling.messages import Measured
from headrace.optimize.profiling.recommend import Requirements, ServingRecommendation, recommend
from tests.unit.optimize.profiling.made import OVERHEAD, cell, measured

pytestmark = pytest.mark.slow


def recommended(
    found: Measured | None = None, requirements: Requirements | None = None, *, cores: int = 1
) -> ServingRecommendation:
    made = found or measured(cell(1, 0.010), cell(4, 0.020), batched=False)
    return recommend(made, OVERHEAD, requirements or Requirements(), cores=cores, requests=3_000)


def why(made: ServingRecommendation, name: str) -> str:
    return next(reason.why for reason in made.reasons if reason.name == name)


def test_runs_at_once_are_preferred_where_they_bring_more() -> None:
    found = measured(
        cell(1, 0.010), cell(1, 0.010, runs=2), cell(1, 0.008, threads=2), batched=False
    )

    made = recommended(found, cores=2)

    assert (made.intra_op_threads, made.max_concurrent_runs) == (1, 2)
    assert made.capacity == pytest.approx(2 / 0.01015, rel=0.02)


def test_threads_inside_a_run_are_taken_where_only_they_meet_the_p99() -> None:
    found = measured(
        cell(1, 0.010), cell(1, 0.010, runs=2), cell(1, 0.006, threads=2), batched=False
    )

    made = recommended(found, Requirements(p99_s=0.009), cores=2)

    assert (made.intra_op_threads, made.max_concurrent_runs) == (2, 1)
    assert "p99 of 9 ms" in why(made, "intra_op_threads")


def test_copies_follow_from_the_rate_and_one_may_fail() -> None:
    made = recommended(requirements=Requirements(rate=250.0))

    assert made.rate_per_replica == pytest.approx(0.7 / 0.01015, rel=0.02)
    assert made.replicas == 4
    assert made.spare_replicas == 5
    assert made.busy_ratio == pytest.approx(250 / 4 * 0.01015, rel=0.05)


def test_a_stricter_p99_takes_more_copies() -> None:
    loose = recommended(requirements=Requirements(rate=500.0, p99_s=0.100))
    strict = recommended(requirements=Requirements(rate=500.0, p99_s=0.025))

    assert strict.replicas is not None
    assert loose.replicas is not None
    assert strict.replicas > loose.replicas
    assert strict.p99_s <= 0.030


def test_a_p99_below_one_run_is_told_to_be_out_of_reach() -> None:
    made = recommended(requirements=Requirements(rate=10.0, p99_s=0.005))

    assert made.replicas is None
    assert "no rate keeps p99 within 5 ms" in why(made, "replicas")


def test_the_cost_is_that_of_the_cores_at_the_rate_that_they_get() -> None:
    made = recommended(requirements=Requirements(rate=50.0, cost_per_hour=0.18))

    assert made.replicas == 1
    assert made.cost_per_million == pytest.approx(0.18 / 3600 / 50 * 1e6)


def test_a_smaller_batch_is_never_recommended_as_it_would_refuse_requests() -> None:
    found = measured(cell(1, 0.010), cell(2, 0.020), cell(4, 0.050))

    made = recommended(found)

    assert made.best_rows == 1
    assert made.max_batch_size == 32
    assert "bounds the rows of one request" in why(made, "max_batch_size")


def test_a_larger_batch_is_recommended_where_it_serves_more_requests() -> None:
    found = measured(*(cell(rows, 0.010) for rows in (1, 4, 16, 32, 64, 128)))

    assert recommended(found).max_batch_size == 128


def test_what_requests_cost_themselves_makes_a_larger_batch_useless() -> None:
    found = measured(*(cell(rows, 0.00001) for rows in (1, 4, 16, 32, 64, 128)))

    made = recommended(found)

    assert made.max_batch_size == 32
    assert "gains no requests/s" in why(made, "max_batch_size")


def test_padding_is_worth_half_of_what_sharing_gains() -> None:
    masks = PaddingSpec(values={"ids": 0.0})
    found = measured(cell(1, 0.010), cell(4, 0.020), padding=masks)

    made = recommended(found)

    assert made.padding == PaddingSpec(values={"ids": 0.0}, max_ratio=1.41)


def test_nothing_is_padded_where_sharing_gains_nothing() -> None:
    masks = PaddingSpec(values={"ids": 0.0})
    found = measured(cell(1, 0.010), cell(4, 0.040), padding=masks)

    made = recommended(found)

    assert made.padding is not None
    assert made.padding.max_ratio == 1.0


def test_a_model_that_runs_one_at_a_time_is_told_so() -> None:
    made = recommended(measured(cell(1), concurrent=False, batched=False), cores=4)

    assert made.max_concurrent_runs == 1
    assert why(made, "max_concurrent_runs") == "the model takes one run at a time"
    assert made.max_batch_size == 1
