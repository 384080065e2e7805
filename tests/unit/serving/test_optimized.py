"""A replica runs an optimized model with the threads that were found best, unless it is told."""

import os
from pathlib import Path

import msgspec
import pytest

from headrace.core import BatchingSpec, FailedPreconditionError, ReplicaSettings
from headrace.core.devices import Device
from headrace.observe import ModelStatistics
from headrace.runtimes.base import Tuning
from headrace.runtimes.optimized.processor import this_processor
from headrace.scoring.loading import LoadedModel, load_model
from headrace.serving.state import ReplicaState, planned_batching
from tests import optimized_models

CORES = len(os.sched_getaffinity(0))


def settings(path: Path, **told: object) -> ReplicaSettings:
    told = {"model_name": "m", "model_version": "1", "path": str(path), **told}
    return msgspec.convert(told, ReplicaSettings)


def loaded(path: Path, **told: object) -> LoadedModel:
    return load_model(settings(path, **told), warm_up_s=0)


def test_a_replica_says_how_the_model_was_optimized(tmp_path: Path) -> None:
    found = loaded(optimized_models.write(tmp_path))

    assert found.runtime == "optimized"
    assert found.device is not None
    assert found.device.asked == "auto"
    assert found.device.optimized == f"onnx-0, verified on {this_processor().name}"


def test_it_is_not_served_on_a_device_that_it_was_not_optimized_for(tmp_path: Path) -> None:
    with pytest.raises(FailedPreconditionError, match="was optimized for the CPU"):
        loaded(optimized_models.write(tmp_path), device="cuda")
    assert loaded(tmp_path / "optimized", device="cpu").device is not None
    trial = load_model(settings(tmp_path / "optimized"), warm_up_s=0, device=Device.CPU)
    assert trial.device is not None


def test_threads_are_as_the_optimizer_found_best(tmp_path: Path) -> None:
    path = optimized_models.write(tmp_path, tuning=Tuning(intra_op_threads=64))

    assert loaded(path).intra_op_threads == CORES
    assert loaded(path, intra_op_threads=3).intra_op_threads == 3


def test_a_model_that_nobody_optimized_says_nothing_of_threads(tmp_path: Path) -> None:
    path = optimized_models.onnx_source(tmp_path)

    assert loaded(path).intra_op_threads is None
    assert loaded(path, intra_op_threads=3).intra_op_threads is None


@pytest.mark.anyio
async def test_what_is_reported_are_the_threads_that_run(tmp_path: Path) -> None:
    path = optimized_models.write(tmp_path, tuning=Tuning(intra_op_threads=64))
    told = settings(path)
    state = ReplicaState(settings=told, statistics=ModelStatistics(name="m", version="1"))
    assert state.intra_op_threads == 1

    engine = state.serve(load_model(told, warm_up_s=0))

    assert state.intra_op_threads == CORES
    assert engine.max_concurrent_runs == 1
    await engine.stop(timeout_s=1.0)


@pytest.mark.parametrize(
    ("threads", "pinned", "max_runs", "runs"),
    [
        (None, None, None, None),
        (1, None, None, None),
        (2, None, None, 4),
        (3, None, None, 2),
        (16, None, None, 1),
        (2, 2, None, None),
        (2, None, 7, 7),
    ],
)
def test_threads_and_runs_share_the_cores(
    threads: int | None, pinned: int | None, max_runs: int | None, runs: int | None
) -> None:
    told = ReplicaSettings(
        model_name="m",
        model_version="1",
        path="",
        intra_op_threads=pinned,
        batching=BatchingSpec(max_concurrent_runs=max_runs),
    )

    assert planned_batching(told, threads, lambda: 8).max_concurrent_runs == runs
