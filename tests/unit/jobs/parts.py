"""A small model, a table, and a job over it, in this process."""

import itertools
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from headrace.core import (
    Datatype,
    ModelSignature,
    ReplicaSettings,
    RuntimeFailedError,
    Tensors,
    TensorSpec,
)
from headrace.engine import ServiceTimes
from headrace.jobs.manifest import OutputFolder
from headrace.jobs.messages import JobModel
from headrace.jobs.prepare import Job, JobRequest, find_begun, plan_job, settle
from headrace.jobs.run import JobWatch, LocalEngine, Summary, run_job
from headrace.jobs.sources.open import open_source
from headrace.scoring.loading import LoadedModel
from headrace.scoring.scorer import Scorer

NOW = datetime(2026, 11, 27, tzinfo=UTC)


def spec(name: str, datatype: Datatype, *shape: int) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape)


def signature(
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    **more: Any,  # noqa: ANN401  # any field
) -> ModelSignature:
    return ModelSignature(
        inputs=tuple(inputs), outputs=tuple(outputs), **({"batched": True} | more)
    )


SUMS = signature([spec("x", Datatype.FP32, -1, 2)], [spec("y", Datatype.FP32, -1, 2)])


class Fake:
    """What a function makes of the inputs. Remembers how many rows each run had."""

    concurrent = True

    def __init__(self, described: ModelSignature, function: Callable[[Tensors], Tensors]) -> None:
        self.signature = described
        self.function = function
        self.runs: list[Tensors] = []
        self.closed = False

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> Tensors:
        self.runs.append(inputs)
        made = self.function(inputs)
        return {name: made[name] for name in outputs or made}

    def close(self) -> None:
        self.closed = True


def sums(inputs: Tensors) -> Tensors:
    """Sum and difference of a row; fails where a batch has a 13."""
    x = inputs["x"]
    if (x == 13).any():
        raise RuntimeFailedError("thirteen")
    return {"y": np.stack([x.sum(axis=1), x[:, 0] - x[:, 1]], axis=1)}


def scorer(model: Fake, version: str = "3") -> Scorer:
    loaded = LoadedModel(
        model=model,
        runtime="python",
        signature=model.signature,
        times=ServiceTimes(max_batch_size=32),
        plan=None,
    )
    return Scorer(loaded, name="fake", version=version)


def table(rows: int, *, bad: Sequence[int] = ()) -> pl.DataFrame:
    x = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2) + 100
    x[list(bad)] = 13
    return pl.DataFrame({"id": np.arange(rows), "x0": x[:, 0], "x1": x[:, 1]})


def prepared(
    source: Path,
    output: Path,
    *,
    run_id: str = "one",
    model: Fake | None = None,
    digest: str = "sha256:1",
    **wish: Any,  # noqa: ANN401  # any field
) -> Job:
    """A job of which nothing is done in the folder yet, or what is left of it."""
    told, opened = open_source(str(source))
    defaults: dict[str, Any] = {"keys": {"id": "id"}, "shard_rows": 10}
    wanted = JobRequest(output=output, **{**defaults, **wish})
    used = scorer(model or Fake(SUMS, sums))
    folder = OutputFolder(output)
    begun = find_begun(folder, run_id=run_id, resume="")
    record, task = plan_job(
        wanted,
        model=JobModel(reference="fake:3", version="3", digest=digest, runtime="python"),
        settings=ReplicaSettings(model_name="fake", model_version="3", path=""),
        source=opened,
        location=told,
        scorer=used,
        run_id=run_id,
        started=begun,
        now=NOW,
    )
    with folder.locked():
        record, left = settle(folder, record, task, begun)
    return Job(record=record, task=task, source=opened, scorer=used, left=left)


def run(job: Job, *, workers: int = 1, max_errors: int | None = None) -> Summary:
    folder = OutputFolder(Path(job.task.output))
    ticks = itertools.count()
    with folder.locked():
        return run_job(
            job,
            folder,
            engine=LocalEngine(workers=workers),
            max_errors=max_errors,
            clock=lambda: float(next(ticks)),
            watch=JobWatch(),
        )


def files(folder: Path) -> dict[str, bytes]:
    """All that a reader takes for output, with its content."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in found
        if "_headrace" not in path.parts and path.name != "_SUCCESS"
    }
