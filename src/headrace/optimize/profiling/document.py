"""A profile: all that was measured of a model on a machine, and what is concluded from it."""

import hashlib
from typing import Final

import msgspec

from headrace.core import ArtifactCorruptError
from headrace.optimize.profiling.messages import Measured, Overhead
from headrace.optimize.profiling.options import Wishes, predictor_for
from headrace.optimize.profiling.predict import REQUESTS, USUAL_LOAD, Point, Prediction
from headrace.optimize.profiling.recommend import Recommendation, recommend
from headrace.optimize.profiling.sureness import surely_predicted, surely_recommended
from headrace.runtimes.optimized_file import Processor

SCHEMA: Final = 1
_KEY_DIGITS: Final = 16


class LengthPrediction(msgspec.Struct, frozen=True, kw_only=True):
    """What one replica can take of requests of this length, and its latency at 70 % of it."""

    length: int
    capacity: float
    at_70: Point


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """`digest`: of the model's content. `at`: when it was made, ISO 8601. `cores`: of a replica."""

    schema: int = SCHEMA
    model: str
    digest: str
    runtime: str
    processor: Processor
    cores: int
    at: str
    headrace: str
    wishes: Wishes
    measured: Measured
    overhead: Overhead | None
    prediction: Prediction
    by_length: tuple[LengthPrediction, ...]
    recommendation: Recommendation

    @property
    def file_name(self) -> str:
        """Where it is kept: another model, runtime, processor or number of cores is another."""
        what = "\n".join((self.runtime, *self.processor.features, str(self.cores)))
        key = hashlib.sha256(what.encode()).hexdigest()[:_KEY_DIGITS]
        return f"{file_prefix(self.digest)}{key}.json"


def file_prefix(digest: str) -> str:
    """How the names of all profiles of a model begin."""
    return f"{digest.removeprefix('sha256:')}-"


def conclude(
    measured: Measured,
    overhead: Overhead | None,
    wishes: Wishes,
    *,
    model: str,
    digest: str,
    processor: Processor,
    cores: int,
    at: str,
    headrace: str,
    requests: int = REQUESTS,
) -> Profile:
    """The profile: what was measured, with prediction and recommendation, and how sure they are.

    Args:
        measured: With at least one cell.
        requests: How many are simulated for each load of the curve, and half as many elsewhere.
    """
    recommendation = recommend(measured, overhead, wishes, cores=cores, requests=requests)
    threads, runs = recommendation.intra_op_threads, recommendation.max_concurrent_runs
    length = measured.loaded.length
    predictor = predictor_for(
        measured,
        overhead,
        threads=threads,
        runs=runs,
        length=length,
        max_batch_size=recommendation.max_batch_size,
        requests=requests,
    )
    prediction = surely_predicted(predictor.predict(p99_s=wishes.p99_s), predictor)
    return Profile(
        model=model,
        digest=digest,
        runtime=measured.loaded.runtime,
        processor=processor,
        cores=cores,
        at=at,
        headrace=headrace,
        wishes=wishes,
        measured=measured,
        overhead=overhead,
        prediction=prediction,
        by_length=_by_length(measured, overhead, runs=runs, requests=requests // 2),
        recommendation=surely_recommended(recommendation, prediction, predictor),
    )


def _by_length(
    measured: Measured, overhead: Overhead | None, *, runs: int, requests: int
) -> tuple[LengthPrediction, ...]:
    """For each length that was measured, with one thread inside a run."""
    found = []
    for length in sorted({cell.length for cell in measured.cells if cell.threads == 1}):
        predictor = predictor_for(
            measured, overhead, threads=1, runs=runs, length=length, requests=requests
        )
        capacity = predictor.capacity()
        point = predictor.point(USUAL_LOAD * capacity, capacity)
        found.append(LengthPrediction(length=length, capacity=capacity, at_70=point))
    return tuple(found)


class _Schema(msgspec.Struct):
    schema: int


def encode_profile(profile: Profile) -> bytes:
    """As JSON."""
    return msgspec.json.format(msgspec.json.encode(profile), indent=1) + b"\n"


def decode_profile(data: bytes, *, where: str) -> Profile:
    """The profile that `data` holds.

    Args:
        where: The file, for the error.

    Raises:
        ArtifactCorruptError: It is none, or a newer Headrace wrote it.
    """
    try:
        schema = msgspec.json.decode(data, type=_Schema).schema
        if schema > SCHEMA:
            msg = f"{where} was written by a newer Headrace (schema {schema}); upgrade this one"
            raise ArtifactCorruptError(msg)
        return msgspec.json.decode(data, type=Profile)
    except msgspec.DecodeError as error:
        msg = f"{where} is damaged and cannot be read: {error}; delete it and profile again"
        raise ArtifactCorruptError(msg) from error
