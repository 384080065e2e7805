"""What may stand under `rollout`, `sticky` and `slo` of an endpoint."""

from typing import Annotated, Any, Final, Literal, Self, TypeVar

import msgspec
from msgspec.structs import replace
from pydantic import Field, Strict, model_validator

from headrace.core.rollout_settings import (
    BLUE_GREEN_MAX_ERROR_RATIO,
    AbSettings,
    BlueGreenSettings,
    CanarySettings,
    CanaryStep,
    CrashesMetric,
    DisagreementMetric,
    ErrorsMetric,
    LatencyMetric,
    MetricsSettings,
    OnTimeout,
    PredictionsMetric,
    RejectionsMetric,
    RewardMetric,
    RolloutSettings,
    ShadowSettings,
    Until,
)
from headrace.core.spec_base import SpecModel
from headrace.core.upstream_settings import StickySettings

_Settings = TypeVar("_Settings", bound=msgspec.Struct)

Ratio = Annotated[float, Field(ge=0.0, le=1.0)]
Weight = Annotated[int, Field(ge=0, le=100)]
_MAX_STEPS: Final = 100
_YEAR_S: Final = 366 * 86_400.0


class ErrorsSpec(SpecModel):
    """Requests that the version failed: HTTP 5xx and 429, and their gRPC counterparts."""

    margin: Ratio = Field(
        default=ErrorsMetric().margin,
        description="By how much the share of failed requests may be above the baseline's.",
    )
    max_ratio: Ratio | None = Field(
        default=None,
        description="A fixed threshold beside the margin; null for none. Unset: what the "
        "endpoint's slo promises as availability; without one 0.05 for blue-green, where no other "
        "version gets requests to compare with.",
    )


class RejectionsSpec(SpecModel):
    """Requests that the version refused as the caller's mistake (other HTTP 4xx)."""

    margin: Ratio = Field(
        default=RejectionsMetric().margin,
        description="By how much the share of refused requests may be above the baseline's.",
    )


class LatencySpec(SpecModel):
    """A quantile of the latency that the gateway measured."""

    quantile: float = Field(
        default=LatencyMetric().quantile, gt=0.0, lt=1.0, description="0.99 for p99."
    )
    margin_ratio: float = Field(
        default=LatencyMetric().margin_ratio,
        ge=1.0,
        le=100.0,
        description="How much longer than the baseline's it may be, as a factor.",
    )
    margin_s: float = Field(
        default=LatencyMetric().margin_s,
        ge=0.0,
        le=86_400.0,
        description="Or by how much; the larger of both is tolerated. Unit: seconds.",
    )
    max_s: float | None = Field(
        default=None,
        gt=0.0,
        le=86_400.0,
        description="A fixed threshold for the quantile; null takes the endpoint's slo, if any. "
        "Unit: seconds.",
    )


class PredictionsSpec(SpecModel):
    """The largest change of a class's share of the answers, or of a score's distribution."""

    margin: Ratio = Field(
        default=PredictionsMetric().margin, description="How far a share of the answers may move."
    )
    output: str = Field(default="", max_length=256, description="Empty for the first output.")


class DisagreementSpec(SpecModel):
    """Answers to one and the same request that differ between baseline and shadow."""

    max_ratio: Ratio = Field(
        default=DisagreementMetric().max_ratio, description="How many answers may differ."
    )
    absolute_tolerance: float = Field(
        default=DisagreementMetric().absolute_tolerance,
        ge=0.0,
        description="Numbers this close are equal.",
    )
    relative_tolerance: float = Field(
        default=DisagreementMetric().relative_tolerance,
        ge=0.0,
        description="And this much of the baseline's number is added to it.",
    )
    output: str = Field(
        default="",
        max_length=256,
        description="The output that is compared; empty for all. Models that were trained anew "
        "seldom agree on probabilities: name the class.",
    )


class RewardSpec(SpecModel):
    """What answers earn, as the feedback API is told; more is better."""

    margin: float = Field(
        default=RewardMetric().margin,
        ge=0.0,
        description="How much less than the baseline's mean the new version's may be.",
    )
    min_units: int = Field(
        default=RewardMetric().min_units,
        ge=2,
        le=10_000_000,
        description="Users (or requests) per arm before it is judged.",
    )
    window_s: float = Field(
        default=RewardMetric().window_s,
        gt=0.0,
        le=_YEAR_S,
        description="How long after a request its feedback is taken. Unit: seconds.",
    )


class CrashesSpec(SpecModel):
    """Replicas that died by themselves; for strategies that serve both versions at once."""


class MetricsSpec(SpecModel):
    """What judges the new version; null leaves a metric out. They share one error budget."""

    errors: ErrorsSpec | None = Field(default=ErrorsSpec(), description="See ErrorsSpec.")
    rejections: RejectionsSpec | None = Field(
        default=RejectionsSpec(), description="See RejectionsSpec."
    )
    latency: LatencySpec | None = Field(default=LatencySpec(), description="See LatencySpec.")
    predictions: PredictionsSpec | None = Field(
        default=PredictionsSpec(), description="See PredictionsSpec."
    )
    disagreement: DisagreementSpec | None = Field(
        default=None, description="See DisagreementSpec; a shadow has it unless it is set null."
    )
    reward: RewardSpec | None = Field(
        default=None, description="See RewardSpec; an A/B test has it unless it is set null."
    )
    crashes: CrashesSpec | None = Field(
        default=CrashesSpec(),
        description="`{}` rolls back a version whose replicas die more often than the baseline's.",
    )

    def settings(self, *, adds: str = "") -> MetricsSettings:
        """The message; `adds` names the metric that a strategy has by default."""
        found = {
            "errors": _as(ErrorsMetric, self.errors),
            "rejections": _as(RejectionsMetric, self.rejections),
            "latency": _as(LatencyMetric, self.latency),
            "predictions": _as(PredictionsMetric, self.predictions),
            "disagreement": _as(DisagreementMetric, self.disagreement),
            "reward": _as(RewardMetric, self.reward),
            "crashes": _as(CrashesMetric, self.crashes),
        }
        if adds == "disagreement" and adds not in self.model_fields_set:
            found[adds] = DisagreementMetric()
        if adds == "reward" and adds not in self.model_fields_set:
            found[adds] = RewardMetric()
        return MetricsSettings(**found)  # type: ignore[arg-type]  # each by its own name


class _RolloutSpec(SpecModel):
    alpha: float = Field(
        default=0.05,
        gt=0.0,
        lt=1.0,
        description="Probability that a version as good as the old one is rolled back, over the "
        "whole rollout and all metrics.",
    )
    min_samples: int = Field(
        default=200,
        ge=1,
        le=100_000_000,
        description="Requests per version and step before a promotion; a roll back waits for none.",
    )
    warmup_s: float = Field(
        default=2.0,
        ge=0.0,
        le=86_400.0,
        description="How long after a new weight nothing is counted. Unit: seconds.",
    )
    max_duration_s: float = Field(
        default=7200.0, gt=0.0, le=_YEAR_S, description="Then `on_timeout` holds. Unit: seconds."
    )
    on_timeout: OnTimeout | None = Field(
        default=None,
        description="What becomes of a rollout without a decision. Null: rollback; pause where too "
        "few requests came to decide about a version as good as the old one in that time.",
    )
    ready_timeout_s: float = Field(
        default=600.0,
        gt=0.0,
        le=86_400.0,
        description="A version not ready by then is rolled back. Unit: seconds.",
    )
    metrics: MetricsSpec = Field(default=MetricsSpec(), description="See MetricsSpec.")


class CanaryStepSpec(SpecModel):
    """One step: its weight, and how long it is held."""

    weight: int = Field(ge=1, le=100, description="The new version's share. Unit: percent.")
    pause_s: float = Field(
        default=0.0, ge=0.0, le=_YEAR_S, description="Held at least this long. Unit: seconds."
    )
    until: Until | None = Field(
        default=None, description="And until the metrics' verdict, or a person's approval."
    )


class CanarySpec(_RolloutSpec):
    """Step by step."""

    strategy: Literal["canary"] = Field(description="What chooses this kind of rollout.")
    steps: Annotated[tuple[CanaryStepSpec, ...], Strict(strict=False)] | None = Field(
        default=None,
        min_length=1,
        max_length=_MAX_STEPS,
        description="Null for 5, 25 and 50 percent, each until the verdict.",
    )
    baseline: bool = Field(
        default=False,
        description="Compare with fresh copies of the old version at the new one's weight.",
    )

    @model_validator(mode="after")
    def _steps_fit(self) -> Self:
        most = 50 if self.baseline else 100
        for before, step in zip((None, *(self.steps or ())), self.steps or (), strict=False):
            if before is not None and step.weight < before.weight:
                msg = f"steps go up, but {before.weight} is followed by {step.weight}"
                raise ValueError(msg)
            if step.weight > most:
                msg = f"a step of {step.weight} leaves no room for a baseline of equal size"
                raise ValueError(msg)
        return self

    def settings(self) -> CanarySettings:
        """The message to the state machine."""
        given: dict[str, Any] = _common(self)
        if self.steps is not None:
            given["steps"] = tuple(_step(step) for step in self.steps)
        return CanarySettings(**given, baseline=self.baseline, metrics=self.metrics.settings())


class BlueGreenSpec(_RolloutSpec):
    """At full size beside the old version, then all at once."""

    strategy: Literal["blue-green"] = Field(description="What chooses this kind of rollout.")
    preview_s: float = Field(
        default=0.0,
        ge=0.0,
        le=_YEAR_S,
        description="How long it is reached by its own path only. Unit: seconds.",
    )
    approval: bool = Field(default=False, description="Whether `promote` by hand is waited for.")
    keep_s: float = Field(
        default=600.0,
        ge=0.0,
        le=_YEAR_S,
        description="How long the old version is kept for an instant way back. Unit: seconds.",
    )

    def settings(self) -> BlueGreenSettings:
        """The message to the state machine."""
        return BlueGreenSettings(
            preview_s=self.preview_s,
            approval=self.approval,
            keep_s=self.keep_s,
            **_common(self),
            metrics=self.metrics.settings(),
        )


class AbSpec(_RolloutSpec):
    """Two versions side by side, each caller on one; the reward decides."""

    strategy: Literal["ab"] = Field(description="What chooses this kind of rollout.")
    weight: int = Field(
        default=50, ge=1, le=99, description="The new version's share. Unit: percent."
    )
    mismatch_alpha: float = Field(
        default=0.001, gt=0.0, lt=1.0, description="Level of the sample-ratio alarm."
    )

    def settings(self) -> AbSettings:
        """The message to the state machine."""
        return AbSettings(
            weight=self.weight,
            mismatch_alpha=self.mismatch_alpha,
            **_common(self),
            metrics=self.metrics.settings(adds="reward"),
        )


class ShadowSpec(_RolloutSpec):
    """Copies of requests; the answers are compared and dropped."""

    strategy: Literal["shadow"] = Field(description="What chooses this kind of rollout.")
    mirror_percent: int = Field(
        default=100, ge=1, le=100, description="Share of the requests copied. Unit: percent."
    )
    promotes: bool = Field(
        default=False, description="Whether a good verdict makes it the endpoint's version."
    )

    def settings(self) -> ShadowSettings:
        """The message to the state machine."""
        return ShadowSettings(
            mirror_percent=self.mirror_percent,
            promotes=self.promotes,
            **_common(self),
            metrics=self.metrics.settings(adds="disagreement"),
        )


RolloutSpec = Annotated[
    CanarySpec | BlueGreenSpec | AbSpec | ShadowSpec, Field(discriminator="strategy")
]


class StickySpec(SpecModel):
    """What keeps a caller on the version it saw: a header, a cookie or a token's claim."""

    header: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9-]{1,128}$", description="For instance x-user-id."
    )
    cookie: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9_-]{1,128}$", description="A cookie's name."
    )
    claim: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9_-]{1,128}$",
        description="A claim of the bearer token, for instance sub.",
    )

    @model_validator(mode="after")
    def _has_one(self) -> Self:
        given = [name for name in ("header", "cookie", "claim") if getattr(self, name) is not None]
        if len(given) != 1:
            msg = f"needs exactly one of header, cookie and claim, has {', '.join(given) or 'none'}"
            raise ValueError(msg)
        return self

    def settings(self, *, salt: str = "") -> StickySettings:
        """The message to the gateway."""
        return StickySettings(
            header=(self.header or "").lower(),
            cookie=self.cookie or "",
            claim=self.claim or "",
            salt=salt,
        )


class SloSpec(SpecModel):
    """What callers were promised; replica counts, admission and verdicts follow from it."""

    latency_s: float | None = Field(
        default=None, gt=0.0, le=86_400.0, description="For the 99th percentile. Unit: seconds."
    )
    availability: float | None = Field(
        default=None, gt=0.0, lt=1.0, description="Share of requests answered, such as 0.999."
    )
    alert_window_ratio: float = Field(
        default=1.0,
        gt=0.0,
        le=1.0,
        description="Length of the alerts' windows over the usual ones; below 1 for trying them.",
    )


def _step(spec: CanaryStepSpec) -> CanaryStep:
    return CanaryStep(weight=spec.weight, pause_s=spec.pause_s, until=spec.until)


def _common(spec: _RolloutSpec) -> dict[str, Any]:
    names = ("alpha", "min_samples", "warmup_s", "max_duration_s", "on_timeout", "ready_timeout_s")
    return {name: getattr(spec, name) for name in names}


def _as(kind: type[_Settings], spec: SpecModel | None) -> _Settings | None:
    return None if spec is None else kind(**spec.model_dump())


def error_threshold(
    rollout: CanarySpec | BlueGreenSpec | AbSpec | ShadowSpec, slo: SloSpec | None
) -> float | None:
    """The `errors.max_ratio` of a rollout: its own, else the promise's, else the strategy's."""
    errors = rollout.metrics.errors
    if errors is None or "max_ratio" in errors.model_fields_set:
        return None if errors is None else errors.max_ratio
    if slo is not None and slo.availability is not None:
        return 1.0 - slo.availability
    return BLUE_GREEN_MAX_ERROR_RATIO if isinstance(rollout, BlueGreenSpec) else None


def rollout_settings(
    rollout: CanarySpec | BlueGreenSpec | AbSpec | ShadowSpec, slo: SloSpec | None
) -> RolloutSettings:
    """The message to the state machine, with what the endpoint promises as thresholds."""
    settings = rollout.settings()
    errors, latency = settings.metrics.errors, settings.metrics.latency
    if errors is not None:
        errors = replace(errors, max_ratio=error_threshold(rollout, slo))
    if latency is not None and latency.max_s is None and slo is not None:
        latency = replace(latency, max_s=slo.latency_s)
    return replace(settings, metrics=replace(settings.metrics, errors=errors, latency=latency))
