"""Evidence of one rollout: all counts, and the resulting verdict.

One object per rollout holds every test. Its verdict may be read at any time, because the tests are
sequential (`betting`). It consists of counts, so it survives a restart exactly.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Final, TypeVar

import msgspec
import numpy as np

from headrace.core.errors import FailedPreconditionError
from headrace.core.spec.rollout import (
    AbSpec,
    BlueGreenSpec,
    CanarySpec,
    ErrorsSpec,
    LatencySpec,
    RejectionsSpec,
    RolloutSpec,
    ShadowSpec,
    compares_answers,
)
from headrace.rollout import judge, judge_fixed
from headrace.rollout.assignment import Assignments
from headrace.rollout.bernoulli import Rate
from headrace.rollout.betting import Array
from headrace.rollout.change_detector import ChangeDetector
from headrace.rollout.crashes import DEATHS, Crashes, ReplicaDeaths
from headrace.rollout.latency_ratio import MEDIAN, LatencyBuckets, LatencyMargin, LatencyRatios
from headrace.rollout.outcomes import MetricVerdict, Names, Outcome, RolloutVerdict, explanation
from headrace.rollout.prediction_shift import PredictionShift, by_length
from headrace.rollout.rate_difference import RateDifferences
from headrace.rollout.readings import ArmCounts, Increment, UnitTally, When
from headrace.rollout.reward import RewardDifference
from headrace.rollout.sequences import Narrow, Sequences

_FORMAT: Final = 3
_DEFAULT_NAMES: Final = Names()
_SHARE_LEVEL: Final = 0.001
"""Probability of a false alarm about a correct canary split."""
_NO_TOKENS: Final = {
    "time_per_output_token": "no version has streamed tokens yet",
    "output_tokens": "no version has reported output tokens yet",
}
"""Why a metric is left out: embeddings have no output tokens, and only streams have times."""
_Metric = TypeVar("_Metric")


class _Counts(msgspec.Struct):
    """All counts; `candidate_*` are the candidate's own rates."""

    format: int
    latency: LatencyRatios
    median: LatencyRatios
    errors: RateDifferences
    rejections: RateDifferences
    errors_turn: ChangeDetector
    rejections_turn: ChangeDetector
    predictions: PredictionShift
    candidate_errors: Rate
    candidate_slow: Rate
    unanswered: Rate
    disagreement: Rate
    units: Assignments
    requests: Assignments
    reward: RewardDifference
    distance_sum: float = 0.0
    baseline_requests: int = 0
    candidate_requests: int = 0
    intervals: int = 0
    counted_s: float = 0.0
    step: int = 0
    left_out: dict[str, str] = {}
    # Counts of an earlier version lack these: they begin with the next evaluation.
    sequences: Sequences = msgspec.field(default_factory=Sequences.start)
    crashes: Crashes = msgspec.field(default_factory=Crashes)
    unit_requests: int = 0
    unit_squares: int = 0
    per_token: tuple[LatencyRatios, ...] = ()
    """Quantiles of the time of an output token: that of the settings, and the median. A streamed
    answer is one observation: the mean of its tokens after the first."""
    lengths: PredictionShift | None = None


class RolloutEvidenceState:
    """All tests of one rollout. Mutable; not thread-safe."""

    def __init__(self, settings: RolloutSpec, counts: _Counts) -> None:
        self._settings = settings
        self._counts = counts

    @classmethod
    def start(cls, settings: RolloutSpec) -> "RolloutEvidenceState":
        """Return the state without counts."""
        latency = settings.metrics.latency or LatencySpec()
        errors = settings.metrics.errors or ErrorsSpec()
        rejections = settings.metrics.rejections or RejectionsSpec()
        reach = LatencyMargin(latency.margin_ratio, latency.margin_s)
        counts = _Counts(
            format=_FORMAT,
            latency=LatencyRatios.start(latency.quantile, reach),
            median=LatencyRatios.start(MEDIAN, reach),
            errors=RateDifferences.start(1, watched=errors.margin),
            rejections=RateDifferences.start(1, watched=rejections.margin),
            errors_turn=ChangeDetector.start(1, errors.margin),
            rejections_turn=ChangeDetector.start(1, rejections.margin),
            predictions=PredictionShift.start(),
            candidate_errors=Rate(watched=errors.max_ratio),
            candidate_slow=Rate(watched=1.0 - latency.quantile),
            unanswered=Rate(watched=_most_errors(errors)),
            disagreement=Rate(),
            units=Assignments(),
            requests=Assignments(),
            reward=RewardDifference(),
        )
        per_token = settings.metrics.time_per_output_token
        if per_token is not None:
            reach = LatencyMargin(per_token.margin_ratio)
            quantiles = dict.fromkeys((per_token.quantile, MEDIAN))
            counts.per_token = tuple(LatencyRatios.start(q, reach) for q in quantiles)
        if settings.metrics.output_tokens is not None:
            counts.lengths = PredictionShift.start()
        return cls(settings, counts)

    @classmethod
    def decode(cls, settings: RolloutSpec, data: bytes) -> "RolloutEvidenceState":
        """Decode the output of `encode`, for the same settings.

        Raises:
            FailedPreconditionError: The data has another format version, or is damaged.
        """
        try:
            counts = _DECODER.decode(data)
        except (msgspec.DecodeError, ValueError) as error:
            msg = f"the evidence of the rollout cannot be read ({error}); start the rollout again"
            raise FailedPreconditionError(msg) from error
        if counts.format != _FORMAT:
            msg = (
                f"the evidence of the rollout has format {counts.format}, and this version of "
                f"Headrace reads {_FORMAT}; start the rollout again"
            )
            raise FailedPreconditionError(msg)
        return cls(settings, counts)

    def encode(self) -> bytes:
        """Encode the complete state as bytes, without loss."""
        return _ENCODER.encode(self._counts)

    def leave_out(self, metric: str, reason: str) -> None:
        """Exclude a metric that can never have data from the verdict, with the reason.

        For instance predictions of a model whose output is neither a class nor a score. The error
        budget of the others is unchanged.
        """
        self._counts.left_out[metric] = reason

    def add(self, increment: Increment) -> None:
        """Count one interval. The order matters only for choices made from the past."""
        counts, metrics = self._counts, self._settings.metrics
        a, b, share = increment.baseline, increment.candidate, increment.share
        when = When(step=increment.step, duration_s=increment.duration_s)
        counts.step = increment.step
        self._weigh()
        counts.intervals += 1
        counts.counted_s += increment.duration_s
        counts.baseline_requests += a.requests
        counts.candidate_requests += b.requests
        if not increment.is_sticky:
            counts.requests.add(share, a.requests, b.requests)
        counts.crashes.add(a, b)
        if metrics.errors is not None:
            arms = _rate(b.errors, b), _rate(a.errors, a)
            counts.errors.add(share, *arms, when)
            counts.errors_turn.add(share, *arms, when)
            counts.candidate_errors.add(
                min(b.errors, b.requests), b.requests, duration_s=increment.duration_s
            )
        if metrics.rejections is not None:
            arms = _rate(b.rejections, b), _rate(a.rejections, a)
            counts.rejections.add(share, *arms, when)
            counts.rejections_turn.add(share, *arms, when)
        if metrics.latency is not None:
            for ratios in self._ratios(metrics.latency):
                ratios.add(share, a.latency, b.latency, when)
            if metrics.latency.max_s is not None:
                timed = LatencyBuckets.of(b.latency)
                slow = timed.above(np.array([metrics.latency.max_s]), whole=False)
                counts.candidate_slow.add(
                    float(slow[0]), timed.total, duration_s=increment.duration_s
                )
        if metrics.predictions is not None:
            counts.predictions.add(share, _answers(a), _answers(b), step=increment.step)
        self._add_tokens(increment, when)
        self._add_pairs(increment)
        if increment.baseline_reward is not None:
            counts.reward.baseline = increment.baseline_reward
        if increment.candidate_reward is not None:
            counts.reward.candidate = increment.candidate_reward

    def note_units(self, tally: UnitTally) -> None:
        """Replace the counts of callers with the stored ones; see `Assignments`."""
        counts = self._counts
        counts.units.replace(tally.first)
        counts.unit_requests, counts.unit_squares = tally.requests, tally.squares

    def note_deaths(self, replicas: Iterable[ReplicaDeaths], *, share: float) -> bool:
        """Count new replica deaths, as `Crashes.note`."""
        return self._counts.crashes.note(replicas, share=share)

    def verdict(self, at: float, names: Names = _DEFAULT_NAMES) -> RolloutVerdict:
        """Return the joint verdict of all metrics, `at` seconds since 1970.

        Any metric that says roll back decides; to promote, all must agree. `min_samples` is not
        checked here: the caller knows to which step the samples belong.

        Args:
            at: The time of the last reading.
            names: Display names of the two arms.
        """
        used, left_out = metrics_in_use(self._settings)
        missing = self._metrics_without_tokens()
        left_out |= {metric: missing[metric] for metric in used if metric in missing}
        left_out |= self._counts.left_out
        alpha = self._settings.alpha
        budget = judge_fixed.Budget(back=alpha / max(len(used), 1), on=alpha)
        self._weigh()
        judged = [metric for metric in used if metric not in left_out]
        if not any(self._counts.crashes.deaths):
            judged = [metric for metric in judged if metric != "crashes"]  # no deaths to report
        metrics = [self._judge(metric, budget, names) for metric in judged]
        outcome = _overall_outcome(metrics)
        if metrics and isinstance(self._settings, AbSpec | CanarySpec):
            assignment = self._judge_assignment(names)
            is_off = assignment.outcome is Outcome.WAIT and any(self._assignments.totals)
            if is_off or isinstance(self._settings, AbSpec):
                metrics.append(assignment)
            # Crashes and fixed thresholds concern only the candidate, whatever the split was.
            is_worse_alone = any(
                metric.outcome is Outcome.ROLL_BACK
                and (metric.metric == "crashes" or metric.unit == judge_fixed.SHARE)
                for metric in metrics
            )
            if is_off and not is_worse_alone and not self._is_worse_at_observed_shares(alpha):
                outcome = Outcome.WAIT
        verdict = RolloutVerdict(outcome=outcome, at=at, metrics=tuple(metrics))
        return msgspec.structs.replace(verdict, explanation=explanation(verdict, left_out))

    def note(self, verdict: RolloutVerdict) -> None:
        """Record a verdict's intervals for the chart over time."""
        intervals = tuple(metric for metric in verdict.metrics if metric.unit != DEATHS)
        self._counts.sequences.add(msgspec.structs.replace(verdict, metrics=intervals))

    @property
    def sequences(self) -> Sequences:
        """Return the recorded intervals of the metrics."""
        return self._counts.sequences

    def summary(self) -> Mapping[str, int | float]:
        """Return the counts for a status."""
        counts = self._counts
        return {
            "intervals": counts.intervals,
            "counted_s": counts.counted_s,
            "baseline_requests": counts.baseline_requests,
            "candidate_requests": counts.candidate_requests,
            "independent_requests": self._independent_requests,
            "baseline_units": counts.units.totals[0],
            "candidate_units": counts.units.totals[1],
            "answers": counts.predictions.answers,
            "pairs": int(counts.disagreement.trials),
            "disagreements": int(counts.disagreement.yes),
            "unanswered": int(counts.unanswered.yes),
            "baseline_deaths": counts.crashes.deaths[0],
            "candidate_deaths": counts.crashes.deaths[1],
            "baseline_failed": counts.crashes.failed[0],
            "candidate_failed": counts.crashes.failed[1],
            "mean_distance": counts.distance_sum / max(counts.disagreement.trials, 1.0),
        }

    def _add_tokens(self, increment: Increment, when: When) -> None:
        counts, share = self._counts, increment.share
        a, b = increment.baseline, increment.candidate
        for ratios in counts.per_token:
            ratios.add(share, a.per_token, b.per_token, when)
        if counts.lengths is not None:
            arms = by_length(a.output_tokens), by_length(b.output_tokens)
            counts.lengths.add(share, *arms, step=when.step)

    def _add_pairs(self, increment: Increment) -> None:
        counts, pairs = self._counts, increment.pairs
        counts.distance_sum += pairs.distance_sum
        counts.unanswered.add(pairs.unanswered, pairs.pairs + pairs.unanswered)
        if self._settings.metrics.errors is None:  # then a failed copy counts as different
            counts.disagreement.add(
                pairs.disagreements + pairs.unanswered, pairs.pairs + pairs.unanswered
            )
        else:
            counts.disagreement.add(pairs.disagreements, pairs.pairs)

    @property
    def _independent_requests(self) -> float:
        """Return the number of independent requests with the same information as the counted ones.

        With sticky assignment, all requests of a user are one observation together, and a few users
        may send most of them. The equivalent number of users with equal traffic is the squared
        number of requests divided by the sum of the squared numbers of each user (Kish, "Survey
        Sampling", 1965).
        """
        counts = self._counts
        if counts.unit_squares:
            return counts.unit_requests**2 / counts.unit_squares
        return counts.baseline_requests + counts.candidate_requests

    def _weigh(self) -> None:
        """Reduce the weight of requests that depend on one another."""
        counts, independent = self._counts, self._independent_requests
        requests = counts.baseline_requests + counts.candidate_requests
        part = min(1.0, independent / requests) if requests else 1.0
        counts.errors.part = counts.rejections.part = part
        counts.errors_turn.part = counts.errors.parts
        counts.rejections_turn.part = counts.rejections.parts
        for ratios in (counts.latency, counts.median, *counts.per_token):
            ratios.weigh(part)
        counts.candidate_errors.part = counts.candidate_slow.part = part
        if requests:
            for shift in filter(None, (counts.predictions, counts.lengths)):
                shift.tests.part = min(1.0, independent / max(shift.answers, 1))

    def _metrics_without_tokens(self) -> dict[str, str]:
        """Return the metrics of tokens that no answer has so far, with the reason."""
        counts = self._counts
        arms = [arm for ratios in counts.per_token for arm in (ratios.baseline, ratios.candidate)]
        has_data = (
            any(arm.total for arm in arms),
            counts.lengths is not None and counts.lengths.answers > 0,
        )
        return {
            metric: reason
            for (metric, reason), has in zip(_NO_TOKENS.items(), has_data, strict=True)
            if not has
        }

    def _judge(  # noqa: C901  # a metric each
        self, metric: str, budget: judge_fixed.Budget, names: Names
    ) -> MetricVerdict:
        counts, metrics = self._counts, self._settings.metrics
        match metric:
            case "errors" if self._has_one_arm:
                metric_verdict = self._judge_errors_alone(budget, names)
            case "latency" if isinstance(self._settings, BlueGreenSpec):
                metric_verdict = judge_fixed.judge_slow(
                    counts.latency,
                    _required(metrics.latency),
                    slow=counts.candidate_slow,
                    budget=budget,
                    names=names,
                )
            case "errors":
                metric_verdict = judge.judge_difference(
                    metric,
                    "failed",
                    counts.errors,
                    _required(metrics.errors),
                    turn=counts.errors_turn,
                    own=counts.candidate_errors,
                    budget=budget,
                    names=names,
                    step=counts.step,
                )
            case "rejections":
                metric_verdict = judge.judge_difference(
                    metric,
                    "were refused",
                    counts.rejections,
                    _required(metrics.rejections),
                    turn=counts.rejections_turn,
                    own=Rate(),
                    budget=budget,
                    names=names,
                    step=counts.step,
                )
            case "latency":
                metric_verdict = judge.judge_latency(
                    metric,
                    self._ratios(_required(metrics.latency)),
                    _required(metrics.latency),
                    slow=counts.candidate_slow,
                    budget=budget,
                    names=names,
                )
            case "time_per_output_token":
                metric_verdict = judge.judge_latency(
                    metric,
                    counts.per_token,
                    _required(metrics.time_per_output_token),
                    slow=Rate(),
                    budget=budget,
                    names=names,
                )
            case "output_tokens":
                metric_verdict = judge.judge_shift(
                    metric,
                    _required(counts.lengths),
                    _required(metrics.output_tokens),
                    budget=budget,
                    names=names,
                )
            case "predictions":
                settings = _required(metrics.predictions)
                metric_verdict = judge.judge_shift(
                    metric, counts.predictions, settings, budget=budget, names=names
                )
            case "disagreement":
                metric_verdict = judge_fixed.judge_disagreement(
                    counts.disagreement, _required(metrics.disagreement), budget=budget, names=names
                )
            case "crashes":
                metric_verdict = counts.crashes.judge(budget=budget, names=names)
            case _:
                metric_verdict = judge.judge_reward(
                    counts.reward, _required(metrics.reward), budget=budget, names=names
                )
        return metric_verdict

    @property
    def _has_one_arm(self) -> bool:
        """Whether the candidate's errors have no concurrent rate of the baseline beside them."""
        return isinstance(self._settings, BlueGreenSpec) or compares_answers(self._settings)

    def _judge_errors_alone(self, budget: judge_fixed.Budget, names: Names) -> MetricVerdict:
        errors = _required(self._settings.metrics.errors)
        is_shadow = compares_answers(self._settings)
        return judge_fixed.judge_threshold(
            "errors",
            "failed",
            self._counts.unanswered if is_shadow else self._counts.candidate_errors,
            _most_errors(errors),
            budget=budget,
            names=names,
            trials="copied requests" if is_shadow else "requests",
        )

    def _judge_assignment(self, names: Names) -> MetricVerdict:
        assignments, settings = self._assignments, self._settings
        if isinstance(settings, AbSpec):
            # Wrong assignments remain in the other statistics, so this alarm remains, too.
            evidence, level = assignments.worst, settings.mismatch_alpha
        else:
            # Requests of a slow version end later than they were sent: requests in flight at the
            # beginning of a step are missing for a while.
            evidence, level = assignments.log_evidence(), _SHARE_LEVEL
        return judge.judge_assignment(
            assignments,
            counted="units" if assignments is self._counts.units else "requests",
            is_off=evidence >= -math.log(level),
            level=level,
            names=names,
        )

    @property
    def _assignments(self) -> Assignments:
        """Return the assignments: of callers if they are known, else of requests."""
        counts = self._counts
        return counts.units if any(counts.units.totals) else counts.requests

    def _is_worse_at_observed_shares(self, alpha: float) -> bool:
        """Whether harm shows even if each arm was meant to get the share that it got.

        So a version that fails outright is rolled back whatever the split was.
        """
        counts = self._counts
        harm_evidence = max(
            float(tests.log_evidence_at_observed_shares(_watched(tests))[-1])
            for tests in (
                counts.errors,
                counts.rejections,
                counts.latency.slower,
                counts.median.slower,
                *(ratios.slower for ratios in counts.per_token),
            )
        )
        return harm_evidence >= -math.log(_SHARE_LEVEL * alpha)

    def _ratios(self, settings: LatencySpec) -> tuple[LatencyRatios, ...]:
        """Return the judged quantiles: the one of the settings, and the median."""
        counts = self._counts
        is_median = settings.quantile == MEDIAN
        return (counts.latency,) if is_median else (counts.latency, counts.median)


def metrics_in_use(settings: RolloutSpec) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the metrics that a strategy can judge, and reasons for the other requested ones."""
    metrics = settings.metrics
    requested = [name for name in metrics.__struct_fields__ if getattr(metrics, name) is not None]
    if isinstance(settings, BlueGreenSpec | ShadowSpec):  # the two arms share no requests
        requested = [metric for metric in requested if metric != "crashes"]
    left_out: dict[str, str] = {}
    if isinstance(settings, BlueGreenSpec):
        reason = (
            "before and after a switch there is only one version to count, and no threshold is set"
        )
        errors, latency = metrics.errors, metrics.latency
        fixed = {
            "errors": errors is not None and errors.max_ratio is not None,
            "latency": latency is not None and latency.max_s is not None,
        }
        left_out = {metric: reason for metric in requested if not fixed.get(metric, False)}
    elif compares_answers(settings):
        reason = (
            "responses to copies reach no caller: a shadow is judged by its predictions and its "
            "failures"
        )
        left_out = {m: reason for m in requested if m not in {"errors", "disagreement"}}
    return tuple(metric for metric in requested if metric not in left_out), left_out


def _overall_outcome(metrics: list[MetricVerdict]) -> Outcome:
    outcomes = {metric.outcome for metric in metrics}
    if Outcome.ROLL_BACK in outcomes:
        return Outcome.ROLL_BACK
    # The absence of deaths is no evidence by itself.
    is_shown = any(metric.metric != "crashes" for metric in metrics)
    return Outcome.PROMOTE if is_shown and outcomes == {Outcome.PROMOTE} else Outcome.WAIT


def _rate(yes: int, arm: ArmCounts) -> tuple[Array, Array]:
    # Counters that are read a moment apart may count the end of a request before the request.
    return np.array([float(min(yes, arm.requests))]), np.array([float(arm.requests)])


def _watched(tests: RateDifferences) -> float:
    assert tests.watched is not None, "harm is looked for"
    return tests.watched


def _most_errors(errors: ErrorsSpec) -> float:
    """Return the error limit without another version to compare with."""
    return errors.margin if errors.max_ratio is None else errors.max_ratio


def _answers(arm: ArmCounts) -> dict[str | float, int]:
    return dict([*arm.classes.items(), *arm.scores.items()])


def _required(metric: _Metric | None) -> _Metric:
    assert metric is not None, "only metrics in use are judged"
    return metric


def _encode_array(value: object) -> object:
    assert isinstance(value, np.ndarray)
    is_narrow = value.dtype == np.float32
    return [list(value.shape), value.astype("<f4" if is_narrow else "<f8").tobytes()]


def _decode_array(kind: type, value: object) -> Array | Narrow:
    shape, data = msgspec.convert(value, tuple[list[int], bytes])
    if kind == Narrow:
        return np.frombuffer(data, "<f4").reshape(shape).astype(np.float32)
    return np.frombuffer(data, "<f8").reshape(shape).astype(float)


_ENCODER: Final = msgspec.msgpack.Encoder(enc_hook=_encode_array)
_DECODER: Final = msgspec.msgpack.Decoder(_Counts, dec_hook=_decode_array)
