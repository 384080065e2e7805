import msgspec
import pytest

from headrace.autoscale import ReplicaUsage, recommend

BUSY = ReplicaUsage(
    seconds=100.0,
    replicas=1,
    answered=5000,
    cpu_s=90.0,
    busy_s=80.0,
    rss_bytes=200_000_000,
    peak_rss_bytes=250_000_000,
    intra_op_threads=4,
    max_concurrent_runs=4,
)


def test_threads_and_memory_come_from_what_was_used() -> None:
    found = recommend(BUSY)

    assert found.intra_op_threads == 1, "a run kept little more than one core busy"
    assert found.max_concurrent_runs == 2
    assert found.memory_bytes is not None
    assert 325_000_000 <= found.memory_bytes < 345_000_000
    assert found.cores == pytest.approx(0.9)
    assert found.message == (
        "memory 336 MB (peak 250 MB, now 200 MB); intra_op_threads 1, max_concurrent_runs 2 "
        "(1.1 cores per run, 0.8 of 4 at once); 0.90 cores used per replica"
    )


def test_runs_that_use_their_threads_keep_them() -> None:
    found = recommend(msgspec.structs.replace(BUSY, cpu_s=240.0, busy_s=80.0))

    assert found.intra_op_threads == 3


def test_more_runs_than_there_are_are_never_recommended() -> None:
    found = recommend(msgspec.structs.replace(BUSY, busy_s=399.0, cpu_s=399.0))

    assert found.max_concurrent_runs == 4


def test_few_requests_say_nothing_about_threads() -> None:
    found = recommend(msgspec.structs.replace(BUSY, answered=10))

    assert (found.intra_op_threads, found.max_concurrent_runs) == (None, None)
    assert "not enough data (10 requests)" in found.message


def test_a_language_model_which_counts_no_runs_gets_no_advice_on_threads() -> None:
    found = recommend(msgspec.structs.replace(BUSY, answered=0), counts_runs=False)

    assert (found.intra_op_threads, found.max_concurrent_runs) == (None, None)
    assert found.message == ("memory 336 MB (peak 250 MB, now 200 MB); 0.90 cores used per replica")


def test_nothing_observed_recommends_nothing() -> None:
    found = recommend(msgspec.structs.replace(BUSY, seconds=0.0))

    assert found.memory_bytes is None
    assert found.message == "no observations yet"
