"""Verdict of a candidate against a fixed number, independent of another version.

It serves SLOs (`max_ratio`, `max_s`), shadows, whose responses are compared one by one, and
blue-green, where only one version runs at a time.
"""

import math
from typing import Final

import msgspec

from headrace.core.spec.rollout import DisagreementSpec, LatencySpec
from headrace.core.text import duration_text, number_text, percent_text
from headrace.rollout.bernoulli import Rate
from headrace.rollout.latency_ratio import LatencyRatios
from headrace.rollout.outcomes import MetricVerdict, Names, Outcome, confidence, ending, waiting

SHARE: Final = "ratio"


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """Error levels of a metric: `back` is the probability of rolling back a tolerable version."""

    back: float
    on: float
    """Probability of promoting a version beyond the margin, up to the rollout's whole `alpha`."""


def outcome_of(*, beyond: bool, within: bool) -> Outcome:
    """Return the outcome: beyond the margin, within it, or neither.

    Both only if a version was within it for long and is beyond it now.
    """
    if beyond:
        return Outcome.ROLL_BACK
    return Outcome.PROMOTE if within else Outcome.WAIT


def judge_threshold(
    metric: str,
    event: str,
    own: Rate,
    maximum: float,
    *,
    budget: Budget,
    names: Names,
    is_harm: bool = False,
    trials: str = "requests",
) -> MetricVerdict:
    """Judge the candidate's own rate against a fixed number, whatever the baseline does."""
    if own.estimate is None:
        return waiting(metric, f"no {trials} of {names.candidate} counted yet", alpha=budget.on)
    within = bool(own.log_evidence(maximum, above=False)[0] >= -math.log(budget.on))
    outcome = outcome_of(beyond=is_above(own, maximum, budget.back), within=within)
    low, high = own.bounds(budget.back)[0], own.bounds(budget.on)[1]
    closing = ending(outcome)
    if outcome is Outcome.ROLL_BACK:
        closing = "more than the fixed threshold" if is_harm else "more than tolerated"
    reason = (
        f"{metric}: {percent_text(own.estimate)} of {number_text(own.trials)} {trials} "
        f"{event} on {names.candidate}, between {percent_text(low)} and "
        f"{percent_text(high)} with {confidence(budget.on)}; at most {percent_text(maximum)} are "
        f"tolerated: {closing}"
    )
    return MetricVerdict(
        metric=metric,
        outcome=outcome,
        reason=reason,
        unit=SHARE,
        candidate=own.estimate,
        effect=own.estimate,
        low=low,
        high=high,
        margin=maximum,
        alpha=budget.on,
        samples=(0, int(own.trials)),
    )


def judge_slow(
    ratios: LatencyRatios, settings: LatencySpec, *, slow: Rate, budget: Budget, names: Names
) -> MetricVerdict:
    """Judge the candidate's latency quantile against a fixed number of seconds."""
    assert settings.max_s is not None
    name, maximum = quantile_name(settings.quantile), 1.0 - settings.quantile
    if slow.estimate is None:
        return waiting("latency", f"no requests to {names.candidate} timed yet", alpha=budget.on)
    within = bool(slow.log_evidence(maximum, above=False)[0] >= -math.log(budget.on))
    outcome = outcome_of(beyond=is_above(slow, maximum, budget.back), within=within)
    low, high = slow.bounds(budget.back)[0], slow.bounds(budget.on)[1]
    own = ratios.candidate.quantile(settings.quantile)
    closing = "too slow" if outcome is Outcome.ROLL_BACK else ending(outcome)
    reason = (
        f"latency: {name} is {duration_text(own)} in {number_text(slow.trials)} requests to "
        f"{names.candidate}; {percent_text(slow.estimate)} took longer than the fixed threshold of "
        f"{duration_text(settings.max_s)}, between {percent_text(low)} and "
        f"{percent_text(high)} with {confidence(budget.on)}, where "
        f"{percent_text(maximum)} may: {closing}"
    )
    return MetricVerdict(
        metric="latency",
        outcome=outcome,
        reason=reason,
        unit=SHARE,
        candidate=own,
        effect=slow.estimate,
        low=low,
        high=high,
        margin=maximum,
        alpha=budget.on,
        samples=(0, int(slow.trials)),
    )


def judge_disagreement(
    own: Rate, settings: DisagreementSpec, *, budget: Budget, names: Names
) -> MetricVerdict:
    """Judge the share of response pairs to the same request that differ."""
    return judge_threshold(
        "disagreement",
        "differ",
        own,
        settings.max_ratio,
        budget=budget,
        names=names,
        trials="pairs of answers",
    )


def quantile_name(quantile: float) -> str:
    """Return the quantile's name: `p99`, `p99.9`."""
    return f"p{100 * quantile:g}"


def is_above(own: Rate, maximum: float, level: float) -> bool:
    """Whether the candidate's own rate is shown to be above `most`.

    The worst intervals are left out if it is watched for harm.
    """
    if own.watched is None:
        return bool(own.log_evidence(maximum, above=True)[0] >= -math.log(level))
    assert own.watched == maximum, "a rate is watched against one number"
    return own.log_evidence_of_harm() >= -math.log(level)
