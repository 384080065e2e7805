"""Profile document of a model on a machine, and the spec settings that it fills in."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec
import numpy as np

from headrace.core import ArtifactCorruptError, FailedPreconditionError
from headrace.core.text import duration_text
from headrace.optimize.profiling.messages import Measured, Overhead
from headrace.optimize.profiling.predict import (
    REQUESTS,
    USUAL_LOAD,
    Interval,
    LoadPoint,
    Prediction,
    Predictor,
)
from headrace.optimize.profiling.recommend import (
    Requirements,
    ServingRecommendation,
    SettingReason,
    predictor_for,
    recommend,
)
from headrace.runtimes.optimized.file import Processor

_TO_KNOW: Final = (
    (0.3, 1_000),
    (0.5, 1_650),
    (0.6, 3_350),
    (0.7, 6_700),
    (0.8, 18_500),
    (0.9, 85_000),
)
"""Requests needed by load, for one server with constant runs (M/D/1), from 300 simulations each."""
_WIDE: Final = 0.3
"""Interval width over the p99 above which more measuring time is recommended."""
_SHORTEST_S: Final = 10.0
_LONGEST_S: Final = 3600.0
_SWING: Final = 1.4
"""Factor up to which the true deviation of the speed may differ from that of about 15 independent
phases (by chi-squared, 90 %).
"""
_LEVELS: Final = 5
_SEEDS: Final = 3
_MIN_REACH: Final = 0.05


def p99_interval(predictor: Predictor, point: LoadPoint) -> Interval | None:
    """Return the interval of the p99 at the point's rate in 95 of 100 other periods.

    The bounds are simulated for machines that are slower or faster in everything at the same rate,
    and whose speed varies more or less: a few phases are weak evidence of the slowest ones. What an
    engine learns about its batches makes single simulations jump, so a curve is fitted to several:
    a parabola through the logarithms. None if the phases are unknown.
    """
    rough, phases = predictor.roughly(), predictor.phases
    if phases is None:
        return None
    reach = math.log(phases.next_ratio)
    maximum = max(reach, _MIN_REACH)
    levels = np.linspace(-maximum, maximum, _LEVELS)
    p99s_s = [
        [
            replace(
                rough,
                seed=seed,
                phases=phases.times(math.exp(level), swing=_SWING ** (level / maximum)),
            )
            .outcome(point.rate)
            .quantile_s(0.99)
            for level in levels
        ]
        for seed in range(1, _SEEDS + 1)
    ]
    curve = np.polyfit(levels, np.log(p99s_s).mean(axis=0), 2)
    low, usual, high = np.polyval(curve, (-reach, 0.0, reach))
    return (
        point.p99_s * math.exp(min(low - usual, 0.0)),
        point.p99_s * math.exp(max(high - usual, 0.0)),
    )


def seconds_to_know(*, rate: float, load_ratio: float) -> float:
    """Return how long a load must last until the standard deviation of its p99 is a tenth.

    A lower bound, valid if every request has its own run; shared runs even a queue out, and half of
    the time is enough then. A machine whose speed drifts needs longer.

    Args:
        load_ratio: Share of the capacity that `rate` is.
    """
    loads, requests = zip(*_TO_KNOW, strict=True)
    count = math.exp(float(np.interp(load_ratio, loads, np.log(requests))))
    return min(max(count / rate, _SHORTEST_S), _LONGEST_S)


def _surely_predicted(prediction: Prediction, predictor: Predictor) -> Prediction:
    """Add intervals of the capacity, and of the p99 at the usual load, to a prediction."""
    phases = predictor.phases
    if phases is None:
        return prediction
    usual = prediction.point_near(USUAL_LOAD)
    sure = msgspec.structs.replace(usual, p99_ci_s=p99_interval(predictor, usual))
    capacity, ratio = prediction.capacity, phases.next_ratio
    return msgspec.structs.replace(
        prediction,
        curve=tuple(sure if point is usual else point for point in prediction.curve),
        capacity_ci=(capacity / ratio, capacity * ratio),
        drift_ratio=phases.spread_ratio,
    )


def _surely_recommended(
    recommendation: ServingRecommendation, prediction: Prediction, predictor: Predictor
) -> ServingRecommendation:
    """Add the p99's interval and a command to check it to a recommendation."""
    rate = recommendation.rate
    assert rate is not None, "it was just made"
    point = predictor.surely().point(rate, prediction.capacity)
    bounds, p99 = p99_interval(predictor, point), duration_text(point.p99_s)
    if bounds is None or prediction.drift_ratio is None:
        reason = "too few rounds for an interval: increase --budget"
    else:
        low, high = bounds
        p99 = f"{p99} [{duration_text(low)}, {duration_text(high)}]"
        drift = f"the machine's speed varied by {prediction.drift_ratio:.1%} between rounds"
        reason = f"95 % interval, as {drift}"
        if high - low > _WIDE * point.p99_s:
            reason += "; the interval is wide: increase --budget or use a quieter machine"
    check_s = seconds_to_know(rate=rate, load_ratio=point.load_ratio)
    command = f"headrace load URL --rate {rate:.4g} --seconds {math.ceil(check_s)}"
    check_note = "then its p99 is known to about 10 %, on a machine without drift"
    return msgspec.structs.replace(
        recommendation,
        p99_ci_s=bounds,
        check_s=check_s,
        reasons=(
            *recommendation.reasons,
            SettingReason(name="p99", value=p99, why=reason),
            SettingReason(name="to check", value=command, why=check_note),
        ),
    )


SCHEMA: Final = 1
_KEY_DIGITS: Final = 16


class LengthPrediction(msgspec.Struct, frozen=True, kw_only=True):
    """Predicted capacity of one replica for requests of this length, and latency at 70 % load."""

    length: int
    capacity: float
    at_70: LoadPoint


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """Profile of a model on a machine, as stored and shown."""

    schema: int = SCHEMA
    model: str
    digest: str
    """Digest of the model's content."""
    runtime: str
    processor: Processor
    cores: int
    """Cores of a replica."""
    created_at: str = msgspec.field(name="at")
    headrace: str
    requirements: Requirements = msgspec.field(name="wishes")
    measured: Measured
    overhead: Overhead | None
    prediction: Prediction
    by_length: tuple[LengthPrediction, ...]
    recommendation: ServingRecommendation

    @property
    def file_name(self) -> str:
        """File name by model, runtime, processor features and cores."""
        description = "\n".join((self.runtime, *self.processor.features, str(self.cores)))
        key = hashlib.sha256(description.encode()).hexdigest()[:_KEY_DIGITS]
        return f"{file_prefix(self.digest)}{key}.json"


def file_prefix(digest: str) -> str:
    """Return the common file name prefix of a model's profiles."""
    return f"{digest.removeprefix('sha256:')}-"


def conclude(
    measured: Measured,
    overhead: Overhead | None,
    requirements: Requirements,
    *,
    model: str,
    digest: str,
    processor: Processor,
    cores: int,
    created_at: str,
    headrace: str,
    requests: int = REQUESTS,
) -> Profile:
    """Build the profile: measurements, prediction, recommendation and their intervals.

    Args:
        measured: With at least one cell.
        requests: Number of simulated requests for each load of the curve; half of it elsewhere.
    """
    recommendation = recommend(measured, overhead, requirements, cores=cores, requests=requests)
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
    by_length = []
    for size in sorted({cell.length for cell in measured.cells if cell.threads == 1}):
        length_predictor = predictor_for(
            measured, overhead, threads=1, runs=runs, length=size, requests=requests // 2
        )
        capacity = length_predictor.capacity()
        point = length_predictor.point(USUAL_LOAD * capacity, capacity)
        by_length.append(LengthPrediction(length=size, capacity=capacity, at_70=point))
    prediction = _surely_predicted(predictor.predict(p99_s=requirements.p99_s), predictor)
    return Profile(
        model=model,
        digest=digest,
        runtime=measured.loaded.runtime,
        processor=processor,
        cores=cores,
        created_at=created_at,
        headrace=headrace,
        requirements=requirements,
        measured=measured,
        overhead=overhead,
        prediction=prediction,
        by_length=tuple(by_length),
        recommendation=_surely_recommended(recommendation, prediction, predictor),
    )


class _Schema(msgspec.Struct):
    schema: int


def encode_profile(profile: Profile) -> bytes:
    """Encode a profile as JSON."""
    return msgspec.json.format(msgspec.json.encode(profile), indent=1) + b"\n"


def decode_profile(data: bytes, *, location: str) -> Profile:
    """Decode a profile.

    Args:
        where: File or object name for error messages.

    Raises:
        ArtifactCorruptError: It is malformed, or a newer Headrace wrote it.
    """
    try:
        schema = msgspec.json.decode(data, type=_Schema).schema
        if schema > SCHEMA:
            msg = f"{location} was written by a newer Headrace (schema {schema}); upgrade this one"
            raise ArtifactCorruptError(msg)
        return msgspec.json.decode(data, type=Profile)
    except msgspec.DecodeError as error:
        msg = f"{location} is damaged and cannot be read: {error}; delete it and profile again"
        raise ArtifactCorruptError(msg) from error


Entry = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Processor and cores of the serving machine."""

    processor: Processor
    cores: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """Setting of an endpoint that a profile filled in: path in the spec, value and reason."""

    endpoint: str
    path: str
    value: object
    why: str


def model_of(entry: Entry) -> str | None:
    """Return the model that an endpoint is tuned for: in a split, the one with the highest weight.

    None for an external upstream.
    """
    versions = entry.get("versions")
    if not versions:
        model = entry.get("model")
        return model if isinstance(model, str) else None
    own = [version for version in versions if isinstance(version.get("model"), str)]
    if not own:
        return None
    heaviest: str = max(own, key=lambda version: version.get("weight", 0))["model"]
    return heaviest


def fitting(
    profiles: Sequence[Profile], *, model: str, machine: Machine | None, command: str
) -> Profile:
    """Return the newest profile of a model that applies to a machine.

    Args:
        profiles: All profiles of this model.
        model: Display name of the model.
        machine: None if unknown: the newest profile is used.
        command: Command that makes a profile, for messages.

    Raises:
        FailedPreconditionError: No profile exists, or none applies to the machine.
    """
    if not profiles:
        raise FailedPreconditionError(f"no profile of {model} exists; create one with: {command}")
    newest = sorted(profiles, key=lambda profile: profile.created_at, reverse=True)
    if machine is None:
        return newest[0]
    for profile in newest:
        same_features = profile.processor.features == machine.processor.features
        if same_features and profile.cores <= machine.cores:
            return profile
    other = newest[0]
    if other.processor.features == machine.processor.features:
        msg = (
            f"the profile of {model} is for {other.cores} cores, and this machine has "
            f"{machine.cores}; create one with: {command}"
        )
        raise FailedPreconditionError(msg)
    measured_features, current_features = (
        set(other.processor.features),
        set(machine.processor.features),
    )
    differ = ", ".join(
        [f"no {name} here" for name in sorted(measured_features - current_features)]
        + [f"no {name} there" for name in sorted(current_features - measured_features)]
    )
    msg = (
        f"the profile of {model} is of another processor ({other.processor.name}; {differ}), whose "
        f"figures do not apply here; create one with: {command}"
    )
    raise FailedPreconditionError(msg)


def fill(
    entry: Entry, profile: Profile, *, cores: int | None
) -> tuple[dict[str, Any], list[Filled]]:
    """Fill in unset settings of an endpoint's spec; explicit settings stay.

    Args:
        cores: Cores of the machine; None if unknown: the number of replicas stays.
    """
    recommended = profile.recommendation
    reasons = {reason.name: reason.why for reason in profile.recommendation.reasons}
    batching = dict(entry.get("batching") or {})
    settings: dict[str, Any] = {
        "max_batch_size": recommended.max_batch_size,
        "max_concurrent_runs": recommended.max_concurrent_runs,
        "max_queue_delay_s": recommended.max_queue_delay_s,
    }
    if not entry.get("pool"):  # a pool's processes share their threads
        settings["intra_op_threads"] = recommended.intra_op_threads
    filled = []
    for name, value in settings.items():
        if name not in batching:
            batching[name] = value
            filled.append(_filled(entry, f"batching.{name}", value, reasons.get(name, "")))
    padding = recommended.padding
    if padding is not None and "padding" not in batching:
        batching["padding"] = {
            "axis": padding.axis,
            "values": dict(padding.values),
            "max_ratio": padding.max_ratio,
        }
        cause = reasons.get("padding.max_ratio", "")
        filled.append(_filled(entry, "batching.padding.max_ratio", padding.max_ratio, cause))
    result = {**entry, "batching": batching}
    copies = recommended.replicas
    # A split, an autoscaler or a pool may set the number of copies.
    is_open = not any(entry.get(key) for key in ("replicas", "versions", "autoscale", "pool"))
    if copies is not None and cores is not None and is_open:
        copies = min(copies, max(1, cores // profile.cores))
        result["replicas"] = copies
        filled.append(_filled(entry, "replicas", copies, reasons.get("replicas", "")))
    return result, filled


def _filled(entry: Entry, path: str, value: object, reason: str) -> Filled:
    return Filled(endpoint=str(entry.get("name", "")), path=path, value=value, why=reason)
