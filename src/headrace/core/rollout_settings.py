"""How a new version takes over: the strategies of a rollout, and the metrics that judge it.

Durations are seconds, weights percent, ratios 0 to 1. These are the messages between the spec, the
store and the pure state machine in `headrace.rollout`.
"""

from enum import StrEnum
from typing import Final, Literal, TypeAlias

import msgspec


class StrategyName(StrEnum):
    """The ways in which a version may take over."""

    CANARY = "canary"
    BLUE_GREEN = "blue-green"
    AB = "ab"
    SHADOW = "shadow"


OnTimeout = Literal["rollback", "pause", "promote"]
"""What becomes of a rollout that reached `max_duration_s` without a decision.

Unset: it is rolled back, or paused where the requests were too few to decide in that time.
"""
Until = Literal["verdict", "approval"]
"""What a step waits for besides its pause: the metrics' verdict, or a person's `promote`."""


class ErrorsMetric(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Requests that the version failed: HTTP 5xx and 429, and their gRPC counterparts.

    `margin`: by how much the share of failed requests may be higher than the baseline's.
    `max_ratio`: a fixed threshold (SLO) that holds whatever the baseline does; None for none.
    """

    margin: float = 0.005
    max_ratio: float | None = None


class RejectionsMetric(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Requests that the version refused as the caller's mistake: HTTP 4xx other than 429 and 499.

    Both arms get the same callers, so a difference is the version's doing: other inputs, other
    shapes.
    """

    margin: float = 0.01


class LatencyMetric(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A quantile of the latency that the gateway measured.

    `margin_ratio`: how much longer than the baseline's it may be, as a factor. `margin_s`: the same
    in seconds; the larger of both is tolerated. `max_s`: a fixed threshold (SLO) for the quantile;
    None for none.
    """

    quantile: float = 0.99
    margin_ratio: float = 1.25
    margin_s: float = 0.001
    max_s: float | None = None


class PredictionsMetric(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The largest change of a class's share of the answers, or of a score's distribution.

    `margin`: how far a class's share of the answers (or the distribution function of a score) may
    move. `output`: which output is looked at; empty for the first one.
    """

    margin: float = 0.1
    output: str = ""


class DisagreementMetric(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Answers to one and the same request that differ between baseline and shadow.

    `max_ratio`: how many may. Numbers differ when they are further apart than `absolute_tolerance`
    plus `relative_tolerance` times the baseline's; classes (integers, strings) when unequal.
    `output`: the one that is compared; empty for all.
    """

    max_ratio: float = 0.01
    absolute_tolerance: float = 1e-3
    relative_tolerance: float = 1e-2
    output: str = ""


class RewardMetric(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What answers earn, as told by the feedback API; more is better.

    `margin`: how much less than the baseline's mean the candidate's may be. `min_units`: users (or
    requests, where assignment is not sticky) per arm before the asymptotic sequence is read.
    `window_s`: how long after a request its feedback is taken.
    """

    margin: float = 0.0
    min_units: int = 100
    window_s: float = 86_400.0


class CrashesMetric(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Replicas that died by themselves: crashes, kills for memory, exits.

    For strategies that serve both versions at once. It rolls back a version whose replicas die more
    often than the baseline's, and never holds up a promotion.
    """


class MetricsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which metrics judge; None leaves one out. The error budget is split evenly over the rest."""

    errors: ErrorsMetric | None = ErrorsMetric()
    rejections: RejectionsMetric | None = RejectionsMetric()
    latency: LatencyMetric | None = LatencyMetric()
    predictions: PredictionsMetric | None = PredictionsMetric()
    disagreement: DisagreementMetric | None = None
    reward: RewardMetric | None = None
    crashes: CrashesMetric | None = CrashesMetric()


class CanaryStep(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One step: a weight, and how long it is held.

    It ends when `pause_s` has passed and what `until` names has come; with neither, as soon as the
    weight is in force.
    """

    weight: int
    pause_s: float = 0.0
    until: Until | None = None


class _Common(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all strategies have.

    `alpha`: the probability, over the whole rollout and all metrics, that a version as good as the
    baseline is rolled back. `min_samples`: requests per arm and step before a promotion.
    `warmup_s`: how long after a new weight nothing is counted. `ready_timeout_s`: a version that is
    not ready by then is rolled back.
    """

    alpha: float = 0.05
    min_samples: int = 200
    warmup_s: float = 2.0
    max_duration_s: float = 7200.0
    on_timeout: OnTimeout | None = None
    ready_timeout_s: float = 600.0
    metrics: MetricsSettings = MetricsSettings()


class CanarySettings(_Common, tag_field="strategy", tag="canary", frozen=True, kw_only=True):
    """Step by step. `baseline`: compare with fresh copies of the old version at equal weight."""

    steps: tuple[CanaryStep, ...] = (
        CanaryStep(weight=5, until="verdict"),
        CanaryStep(weight=25, until="verdict"),
        CanaryStep(weight=50, until="verdict"),
    )
    baseline: bool = False


BLUE_GREEN_MAX_ERROR_RATIO: Final = 0.05
"""How many requests a version may fail after a blue-green switch, where nothing else is said.

The old version gets no requests then, so there is no rate to compare with, and yesterday's is no
baseline for today's callers. No service that is worth serving fails every twentieth request, and
one that does so is shown to within seconds.
"""


class BlueGreenSettings(_Common, tag_field="strategy", tag="blue-green", frozen=True, kw_only=True):
    """At full size beside the old one, then all at once.

    While it is previewed, requests reach it by its version's own path only. `preview_s`: for how
    long at least. `approval`: whether a person's `promote` is waited for. `keep_s`: how long the
    old version is kept after the switch, so that `rollback` is instant; the metrics are watched as
    long, against fixed thresholds (`errors.max_ratio`, `latency.max_s`): there is no other version
    that gets requests to compare with.
    """

    preview_s: float = 0.0
    approval: bool = False
    keep_s: float = 600.0
    metrics: MetricsSettings = MetricsSettings(
        errors=ErrorsMetric(max_ratio=BLUE_GREEN_MAX_ERROR_RATIO)
    )


class AbSettings(_Common, tag_field="strategy", tag="ab", frozen=True, kw_only=True):
    """Two versions side by side at `weight`, each caller on one; the reward decides.

    `mismatch_alpha`: the level of the sample-ratio alarm.
    """

    weight: int = 50
    mismatch_alpha: float = 0.001


class ShadowSettings(_Common, tag_field="strategy", tag="shadow", frozen=True, kw_only=True):
    """Copies of `mirror_percent` of the requests; the answers are compared and dropped.

    `promotes`: whether a good verdict makes the version the endpoint's; else it ends the rollout
    and the report stands.
    """

    mirror_percent: int = 100
    promotes: bool = False


RolloutSettings: TypeAlias = CanarySettings | BlueGreenSettings | AbSettings | ShadowSettings
