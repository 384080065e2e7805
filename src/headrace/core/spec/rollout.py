"""Spec parts `rollout`, `sticky` and `slo` of an endpoint.

Durations are seconds, weights percent, ratios 0 to 1.
"""

from typing import Annotated, Final, Literal, TypeAlias

from msgspec import Meta
from msgspec.structs import replace

from headrace.core.spec.part import DERIVED, FileOnly, SpecPart

_Ratio = Annotated[float, Meta(ge=0.0, le=1.0)]
_MAX_STEPS: Final = 100
_YEAR_S: Final = 366 * 86_400.0
BLUE_GREEN_MAX_ERROR_RATIO: Final = 0.05
"""Default limit of the share of failed requests after a blue-green switch.

The old version gets no requests then, so there is no rate to compare with, and yesterday's rate is
no baseline for today's callers. No production service fails every twentieth request, and one that
does so is detected within seconds.
"""


OnTimeout = Literal["rollback", "pause", "promote"]
"""Outcome of a rollout that reached `max_duration_s` without a decision.

Unset: rollback, or pause if the requests were too few to decide in that time.
"""
Until = Literal["verdict", "approval"]
"""Condition of a step besides its pause: the metrics' verdict, or a person's `promote`."""


class ErrorsSpec(SpecPart, frozen=True, kw_only=True):
    """Requests that the version failed: HTTP 5xx and 429, and their gRPC counterparts."""

    margin: _Ratio = 0.005
    """Tolerated difference to the baseline's share of failed requests."""
    max_ratio: _Ratio | None = None
    """Fixed threshold besides the margin; null for none. Unset: the availability of the endpoint's
    slo; without one 0.05 for blue-green, where no other version gets requests to compare with.
    """


class RejectionsSpec(SpecPart, frozen=True, kw_only=True):
    """Requests that the version refused as the caller's mistake (other HTTP 4xx)."""

    margin: _Ratio = 0.01
    """Tolerated difference to the baseline's share of refused requests."""


class LatencySpec(SpecPart, frozen=True, kw_only=True):
    """A quantile of the latency that the gateway measured."""

    quantile: Annotated[float, Meta(gt=0.0, lt=1.0)] = 0.99
    """0.99 for p99."""
    margin_ratio: Annotated[float, Meta(ge=1.0, le=100.0)] = 1.25
    """Tolerated ratio to the baseline's latency."""
    margin_s: Annotated[float, Meta(ge=0.0, le=86400.0)] = 0.001
    """Tolerated difference to the baseline's latency; the larger tolerance applies. Unit: seconds.
    """
    max_s: Annotated[float, Meta(gt=0.0, le=86400.0)] | None = None
    """A fixed threshold for the quantile; null takes the endpoint's slo, if any. Unit: seconds."""


class PredictionsSpec(SpecPart, frozen=True, kw_only=True):
    """The largest change of a class's share of the answers, or of a score's distribution."""

    margin: _Ratio = 0.1
    """Tolerated change of a share of the predictions."""
    output: Annotated[str, Meta(max_length=256)] = ""
    """Empty for the first output."""


class DisagreementSpec(SpecPart, frozen=True, kw_only=True):
    """Responses to the same request that differ between baseline and shadow."""

    max_ratio: _Ratio = 0.01
    """Tolerated share of responses that differ."""
    absolute_tolerance: Annotated[float, Meta(ge=0.0)] = 1e-3
    """Numbers this close are equal."""
    relative_tolerance: Annotated[float, Meta(ge=0.0)] = 1e-2
    """This share of the baseline's number is added to the tolerance."""
    max_cosine_distance: Annotated[float, Meta(ge=0.0, le=2.0)] | None = None
    """Vectors this close agree too, for embeddings: the rows of floats of a response. The cosine
    distance is 0 for the same direction and 1 for vectors at right angles.
    """
    output: Annotated[str, Meta(max_length=256)] = ""
    """The output that is compared; empty for all. Retrained models seldom agree on probabilities:
    name the class.
    """


class TimePerOutputTokenSpec(SpecPart, frozen=True, kw_only=True):
    """Quantile of the streamed answers' mean time of an output token after the first.

    The time to the first token is the latency of a stream.
    """

    quantile: Annotated[float, Meta(gt=0.0, lt=1.0)] = 0.5
    """0.5 for the median."""
    margin_ratio: Annotated[float, Meta(ge=1.0, le=100.0)] = 1.1
    """Tolerated ratio to the baseline's time."""


class OutputTokensSpec(SpecPart, frozen=True, kw_only=True):
    """The largest change of the share of answers up to any number of output tokens.

    Longer or shorter answers to the same callers are a sign of a wrong chat template.
    """

    margin: _Ratio = 0.1
    """Tolerated change of a share of the answers."""


class RewardSpec(SpecPart, frozen=True, kw_only=True):
    """Reward of responses, as reported to the feedback API; more is better."""

    margin: Annotated[float, Meta(ge=0.0)] = 0.0
    """Tolerated difference of the new version's mean below the baseline's."""
    min_units: Annotated[int, Meta(ge=2, le=10000000)] = 100
    """Users (or requests) per arm before a verdict."""
    window_s: Annotated[float, Meta(gt=0.0, le=_YEAR_S)] = 86_400.0
    """How long after a request its feedback is accepted. Unit: seconds."""


class CrashesSpec(SpecPart, frozen=True, kw_only=True):
    """Replicas that crashed; for strategies that serve both versions at once."""


class MetricsSpec(SpecPart, frozen=True, kw_only=True):
    """Metrics that judge the new version; null leaves a metric out. They share one error budget."""

    errors: ErrorsSpec | None = ErrorsSpec()
    """See ErrorsSpec."""
    rejections: RejectionsSpec | None = RejectionsSpec()
    """See RejectionsSpec."""
    latency: LatencySpec | None = LatencySpec()
    """See LatencySpec."""
    predictions: PredictionsSpec | None = PredictionsSpec()
    """See PredictionsSpec."""
    disagreement: DisagreementSpec | None = None
    """See DisagreementSpec; a shadow has it unless it is set null or of a language model."""
    reward: RewardSpec | None = None
    """See RewardSpec; an A/B test has it unless it is set null."""
    crashes: CrashesSpec | None = CrashesSpec()
    """`{}` rolls back a version whose replicas die more often than the baseline's."""
    time_per_output_token: TimePerOutputTokenSpec | None = None
    """See TimePerOutputTokenSpec; a language model has it unless it is set null."""
    output_tokens: OutputTokensSpec | None = None
    """See OutputTokensSpec; a language model has it unless it is set null."""


class _RolloutSpec(SpecPart, frozen=True, kw_only=True):
    """Settings of all strategies."""

    alpha: Annotated[float, Meta(gt=0.0, lt=1.0)] = 0.05
    """Probability that a version as good as the old one is rolled back, over the whole rollout and
    all metrics."""
    min_samples: Annotated[int, Meta(ge=1, le=100000000)] = 200
    """Requests per version and step before a promotion; a rollback needs none."""
    warmup_s: Annotated[float, Meta(ge=0.0, le=86400.0)] = 2.0
    """Time after a weight change in which nothing is counted. Unit: seconds."""
    max_duration_s: Annotated[float, Meta(gt=0.0, le=_YEAR_S)] = 7200.0
    """Time after which `on_timeout` applies. Unit: seconds."""
    on_timeout: OnTimeout | None = None
    """Outcome of a rollout without a decision. Null: rollback; pause if too few requests came to
    decide about a version as good as the old one in that time.
    """
    ready_timeout_s: Annotated[float, Meta(gt=0.0, le=86400.0)] = 600.0
    """A version that is not ready by then is rolled back. Unit: seconds."""
    metrics: MetricsSpec = MetricsSpec()
    """See MetricsSpec."""

    @property
    def strategy(self) -> str:
        """Return the name that selects this strategy."""
        return str(self.__struct_config__.tag)


class CanaryStepSpec(SpecPart, frozen=True, kw_only=True):
    """One step: its weight, and how long it lasts."""

    weight: Annotated[int, Meta(ge=1, le=100)]
    """Share of the new version. Unit: percent."""
    pause_s: Annotated[float, Meta(ge=0.0, le=_YEAR_S)] = 0.0
    """Minimum duration. Unit: seconds."""
    until: Until | None = None
    """Further condition: the metrics' verdict, or a person's approval."""


class CanarySpec(_RolloutSpec, tag_field="strategy", tag="canary", frozen=True, kw_only=True):
    """Gradual traffic shift, step by step."""

    steps: Annotated[
        tuple[CanaryStepSpec, ...], FileOnly(null=True, min_length=1, max_length=_MAX_STEPS)
    ] = (
        CanaryStepSpec(weight=5, until="verdict"),
        CanaryStepSpec(weight=25, until="verdict"),
        CanaryStepSpec(weight=50, until="verdict"),
    )
    """Null for 5, 25 and 50 percent, each until the verdict."""
    baseline: bool = False
    """Whether to compare with new replicas of the old version at the new version's weight."""

    def __post_init__(self) -> None:
        maximum = 50 if self.baseline else 100
        for before, step in zip((None, *self.steps), self.steps, strict=False):
            if before is not None and step.weight < before.weight:
                msg = f"steps must increase, but {before.weight} is followed by {step.weight}"
                raise ValueError(msg)
            if step.weight > maximum:
                msg = f"a step of {step.weight} leaves no room for a baseline of equal size"
                raise ValueError(msg)


class BlueGreenSpec(
    _RolloutSpec, tag_field="strategy", tag="blue-green", frozen=True, kw_only=True
):
    """New version at full size beside the old one, then a complete switch."""

    preview_s: Annotated[float, Meta(ge=0.0, le=_YEAR_S)] = 0.0
    """Time in which the new version is reachable only by its own path. Unit: seconds."""
    approval: bool = False
    """Whether the switch waits for a manual `promote`."""
    keep_s: Annotated[float, Meta(ge=0.0, le=_YEAR_S)] = 600.0
    """How long the old version is kept for an immediate rollback. Unit: seconds."""


class AbSpec(_RolloutSpec, tag_field="strategy", tag="ab", frozen=True, kw_only=True):
    """Two versions side by side, with each caller on one of them; the reward decides."""

    weight: Annotated[int, Meta(ge=1, le=99)] = 50
    """Share of the new version. Unit: percent."""
    mismatch_alpha: Annotated[float, Meta(gt=0.0, lt=1.0)] = 0.001
    """Level of the sample-ratio alarm."""


class ShadowSpec(_RolloutSpec, tag_field="strategy", tag="shadow", frozen=True, kw_only=True):
    """Copies of requests to the new version; its responses are compared and dropped.

    Of a language model, the tokens, times and failures of both versions are compared.
    """

    mirror_percent: Annotated[int, Meta(ge=1, le=100)] = 100
    """Share of the requests that are copied. Unit: percent."""
    promotes: bool = False
    """Whether a good verdict makes it the endpoint's version."""
    counts_copies: Annotated[bool, DERIVED] = False
    """Whether copies are counted as requests of the new version: those for a language model."""


class StickySpec(SpecPart, frozen=True, kw_only=True):
    """Key that keeps a caller on one version: a header, a cookie or a claim of the token."""

    header: Annotated[str, str.lower, FileOnly(null=True, pattern=r"^[A-Za-z0-9-]{1,128}$")] = ""
    """Name of a header, for example x-user-id."""
    cookie: Annotated[str, FileOnly(null=True, pattern=r"^[A-Za-z0-9_-]{1,128}$")] = ""
    """Name of a cookie."""
    claim: Annotated[str, FileOnly(null=True, pattern=r"^[A-Za-z0-9_-]{1,128}$")] = ""
    """Claim of the bearer token, for example sub."""
    salt: Annotated[str, DERIVED] = ""
    """Makes two experiments on one key independent; empty takes one per rollout."""

    def __post_init__(self) -> None:
        sources = [name for name in ("header", "cookie", "claim") if getattr(self, name)]
        if len(sources) != 1:
            msg = (
                f"needs exactly one of header, cookie and claim, has {', '.join(sources) or 'none'}"
            )
            raise ValueError(msg)


class SloSpec(SpecPart, frozen=True, kw_only=True):
    """Service level objectives; replica counts, admission and verdicts follow from them."""

    latency_s: Annotated[float, Meta(gt=0.0, le=86400.0)] | None = None
    """99th percentile of the latency. Unit: seconds."""
    availability: Annotated[float, Meta(gt=0.0, lt=1.0)] | None = None
    """Share of requests that are answered, such as 0.999."""
    alert_window_ratio: Annotated[float, Meta(gt=0.0, le=1.0)] = 1.0
    """Length of the alerts' windows relative to the default; below 1 for tests."""


RolloutSpec: TypeAlias = CanarySpec | BlueGreenSpec | AbSpec | ShadowSpec


def error_threshold(rollout: RolloutSpec, slo: SloSpec | None) -> float | None:
    """Return the `errors.max_ratio` of a rollout: its own, else the slo's, else the strategy's."""
    errors = rollout.metrics.errors
    if errors is None or "max_ratio" in errors.model_fields_set:
        return None if errors is None else errors.max_ratio
    if slo is not None and slo.availability is not None:
        return 1.0 - slo.availability
    return BLUE_GREEN_MAX_ERROR_RATIO if isinstance(rollout, BlueGreenSpec) else None


def compares_answers(rollout: RolloutSpec) -> bool:
    """Whether each response is compared with that to its copy, and not the counts of versions."""
    return isinstance(rollout, ShadowSpec) and not rollout.counts_copies


def needs_assignments(rollout: RolloutSpec) -> bool:
    """Whether the arm of each request is stored for later feedback."""
    return rollout.metrics.reward is not None or isinstance(rollout, AbSpec)


def judged_by(rollout: RolloutSpec, slo: SloSpec | None, *, generates: bool = False) -> RolloutSpec:
    """Return `rollout` with its strategy's metric, and the endpoint's slo as thresholds.

    Args:
        generates: Whether the endpoint's models generate tokens, which have metrics of their own.
    """
    metrics = rollout.metrics
    errors, latency = metrics.errors, metrics.latency
    if errors is not None:
        errors = replace(errors, max_ratio=error_threshold(rollout, slo))
    if latency is not None and latency.max_s is None and slo is not None:
        latency = replace(latency, max_s=slo.latency_s)
    metrics = replace(metrics, errors=errors, latency=latency)
    set_fields = rollout.metrics.model_fields_set
    if isinstance(rollout, ShadowSpec):
        rollout = replace(rollout, counts_copies=generates)
    if compares_answers(rollout) and "disagreement" not in set_fields:
        metrics = replace(metrics, disagreement=DisagreementSpec())
    if isinstance(rollout, AbSpec) and "reward" not in set_fields:
        metrics = replace(metrics, reward=RewardSpec())
    if generates and "time_per_output_token" not in set_fields:
        metrics = replace(metrics, time_per_output_token=TimePerOutputTokenSpec())
    if generates and "output_tokens" not in set_fields:
        metrics = replace(metrics, output_tokens=OutputTokensSpec())
    return replace(rollout, metrics=metrics)
