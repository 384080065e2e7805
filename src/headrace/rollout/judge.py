"""Verdict of one metric, with its explanation.

Each metric has three outcomes: shown to be worse than the margin, shown to be within it, or
undecided. Harm is tested with the evidence of the whole rollout. That a version is within the
margin must show in the current step alone, so that a promotion is a statement about the current
step.

A version that is within all margins is rolled back if *any* metric is wrong, so the metrics share
`alpha` for that. A version that is beyond a margin is promoted only if *that* metric is wrong, so
each has the whole of `alpha` for this (an intersection-union test, Berger 1982). Evidence over the
whole rollout and evidence of a change for the worse (`turn`) are bets against the same null
hypothesis, so their capitals are added, half of each. A fixed threshold gets a quarter of the level
for a rollback.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from headrace.core.spec.rollout import (
    ErrorsSpec,
    LatencySpec,
    OutputTokensSpec,
    PredictionsSpec,
    RejectionsSpec,
    RewardSpec,
    TimePerOutputTokenSpec,
)
from headrace.core.text import duration_text, number_text, percent_text
from headrace.rollout.assignment import Assignments
from headrace.rollout.bernoulli import FORGIVEN, Rate
from headrace.rollout.betting import Array
from headrace.rollout.change_detector import ChangeDetector
from headrace.rollout.judge_fixed import (
    Budget,
    is_above,
    judge_slow,
    judge_threshold,
    outcome_of,
    quantile_name,
)
from headrace.rollout.latency_ratio import LatencyRatios, cliff_margin
from headrace.rollout.outcomes import (
    MetricVerdict,
    Names,
    Outcome,
    confidence,
    ending,
    points,
    waiting,
)
from headrace.rollout.prediction_shift import PredictionShift
from headrace.rollout.rate_difference import RateDifferences
from headrace.rollout.reward import RewardDifference

RATIO: Final = "ratio difference"
TIMES: Final = "times"
REWARD: Final = "reward"
_TURNED_PART: Final = 0.5
_THRESHOLD_PART: Final = 0.25
MEDIAN_PART: Final = 0.25
"""Part of the latency's level for a rollback; the rest is for the other quantile."""
_TUNED_FOR_UNITS: Final = 20
"""Multiple of `min_units` at which the reward's bounds are narrowest."""


def worse_level(level: float, *, has_threshold: bool) -> float:
    """Return the level at which the lower bound over the whole rollout decides by itself."""
    return (1.0 - _TURNED_PART) * _relative_level(level, has_threshold=has_threshold)


def is_worse(
    over_all: Array | float, turned: Array, level: float, *, has_threshold: bool = False
) -> NDArray[np.bool_]:
    """Whether the candidate is worse than tolerated, or has become so, `[tests]`.

    Args:
        over_all: Logarithm of the evidence over the whole rollout, `[tests]`.
        turned: Logarithm of the evidence of a change for the worse, `[tests]`.
        level: The metric's part of `alpha`.
        has_threshold: Whether a fixed threshold has a part of it.
    """
    both = np.logaddexp(np.log1p(-_TURNED_PART) + over_all, np.log(_TURNED_PART) + turned)
    worse: NDArray[np.bool_] = both >= -math.log(
        _relative_level(level, has_threshold=has_threshold)
    )
    return worse


def _relative_level(level: float, *, has_threshold: bool) -> float:
    return level * (1.0 - _THRESHOLD_PART) if has_threshold else level


def _for_threshold(budget: Budget) -> Budget:
    return Budget(back=_THRESHOLD_PART * budget.back, on=budget.on)


def judge_difference(
    metric: str,
    event: str,
    tests: RateDifferences,
    settings: ErrorsSpec | RejectionsSpec,
    *,
    turn: ChangeDetector,
    own: Rate,
    budget: Budget,
    names: Names,
    step: int,
) -> MetricVerdict:
    """Judge errors or rejections: the difference of the arms' rates, and the SLO if set."""
    yes_b, all_b, yes_a, all_a = (float(total[0]) for total in tests.totals())
    maximum = settings.max_ratio if isinstance(settings, ErrorsSpec) else None
    level_low = worse_level(budget.back, has_threshold=maximum is not None)
    if maximum is not None and is_above(own, maximum, _for_threshold(budget).back):
        return judge_threshold(
            metric, event, own, maximum, budget=_for_threshold(budget), names=names, is_harm=True
        )
    if not all_a or not all_b:
        missing = names.candidate if all_a else names.baseline
        return waiting(metric, f"no requests to {missing} counted yet", alpha=budget.on)
    beyond = is_worse(
        tests.log_evidence_of_harm(),
        turn.log_evidence(),
        budget.back,
        has_threshold=maximum is not None,
    )
    within = tests.log_evidence(settings.margin, above=False, step=step)[0] >= -math.log(budget.on)
    outcome = outcome_of(beyond=bool(beyond[0]), within=bool(within))
    low = float(tests.lower_bounds(level_low)[0])
    high = max(low, float(tests.upper_bounds(budget.on, step=step)[0]))
    closing = _harm_ending(
        outcome, is_worse_so_far=low > settings.margin, turned=_turned_ending(turn, names)
    )
    effect = min(max(float(tests.differences()[0]), low), high)
    reason = (
        f"{metric}: {percent_text(yes_b / all_b)} of {number_text(all_b)} requests {event} on "
        f"{names.candidate} against {percent_text(yes_a / all_a)} of {number_text(all_a)} on "
        f"{names.baseline}: difference {points(effect)} points, between {points(low)} and "
        f"{points(high)} with {confidence(budget.on)}; "
        f"{points(settings.margin, signed=False)} points are tolerated: {closing}"
    )
    return MetricVerdict(
        metric=metric,
        outcome=outcome,
        reason=reason,
        unit=RATIO,
        baseline=yes_a / all_a,
        candidate=yes_b / all_b,
        effect=effect,
        low=low,
        high=high,
        margin=settings.margin,
        alpha=budget.on,
        samples=(int(all_a), int(all_b)),
    )


def judge_latency(
    metric: str,
    quantiles: Sequence[LatencyRatios],
    settings: LatencySpec | TimePerOutputTokenSpec,
    *,
    slow: Rate,
    budget: Budget,
    names: Names,
) -> MetricVerdict:
    """Judge a latency: ratios of both arms' quantiles, and the SLO if there is one.

    Args:
        metric: `latency` or `time_per_output_token`.
        quantiles: The one of `settings`, and the median unless it is that; any of them rolls back,
            and all must be within what is tolerated.
        settings: The margins.
        slow: Rate of the candidate's requests that took longer than `max_s`.
        budget: The metric's, which the quantiles share.
        names: Display names of the two arms.
    """
    has_threshold = isinstance(settings, LatencySpec) and settings.max_s is not None
    fixed = _for_threshold(budget)
    if (
        isinstance(settings, LatencySpec)
        and has_threshold
        and is_above(slow, 1.0 - settings.quantile, fixed.back)
    ):
        return judge_slow(quantiles[0], settings, slow=slow, budget=fixed, names=names)
    parts = (1.0 - MEDIAN_PART, MEDIAN_PART) if len(quantiles) > 1 else (1.0,)
    back = _relative_level(budget.back, has_threshold=has_threshold)
    verdicts = [
        _judge_quantile(metric, ratios, level_back=part * back, level_on=budget.on, names=names)
        for part, ratios in zip(parts, quantiles, strict=True)
    ]
    for outcome in (Outcome.ROLL_BACK, Outcome.WAIT):
        for verdict in verdicts:
            if verdict.outcome is outcome:
                return verdict
    return verdicts[0]


def _judge_quantile(
    metric: str, ratios: LatencyRatios, *, level_back: float, level_on: float, names: Names
) -> MetricVerdict:
    a, b = ratios.baseline.quantile(ratios.quantile), ratios.candidate.quantile(ratios.quantile)
    if a is None or b is None:
        missing = names.baseline if a is None else names.candidate
        return waiting(metric, f"no requests to {missing} timed yet", alpha=level_on)
    name, margin = quantile_name(ratios.quantile), ratios.reach.factor(a)
    edge, tail = ratios.cliff
    is_cliff, needed = not math.isnan(tail), -math.log(level_on)
    within = tail < 1.0 or ratios.log_evidence_of_tolerance() >= needed
    low, high = ratios.bounds(worse_level(level_back, has_threshold=False), level_on, margin=margin)
    ratio = b / a if a > 0.0 else math.inf
    effect = min(max(ratio, low or 0.0), high or math.inf)
    comparison = (
        f"{name} is {duration_text(b)} in {number_text(ratios.candidate.total)} requests to "
        f"{names.candidate} against {duration_text(a)} in {number_text(ratios.baseline.total)} to "
        f"{names.baseline}"
    )
    if is_cliff:
        tolerated = cliff_margin(ratios.quantile)
        beyond = bool(ratios.beyond.log_evidence_of_harm()[0] >= -math.log(level_back))
        within &= ratios.beyond.log_evidence(tolerated, above=False, step=ratios.step)[1] >= needed
        yes_b, all_b, yes_a, all_a = (float(total[1]) for total in ratios.beyond.totals())
        compared = (
            f"there is a cliff at {name}, so the requests beyond "
            f"{duration_text(float(edge[0]))} are compared, "
            f"{percent_text(yes_b / max(all_b, 1.0))} against "
            f"{percent_text(yes_a / max(all_a, 1.0))}; "
            f"{points(tolerated, signed=False)} points are tolerated"
        )
    else:
        harm_evidence, turned = ratios.log_evidence_of_harm(), ratios.turn.log_evidence()
        beyond = bool(is_worse(harm_evidence, turned, level_back)[0])
        compared = f"{_between(low, high, level_on)}; {margin:.3g} times are tolerated"
    outcome = outcome_of(beyond=beyond, within=within)
    closing = _harm_ending(
        outcome,
        is_worse_so_far=is_cliff or (low is not None and low >= margin),
        turned="it has become slower than that",
    )
    return MetricVerdict(
        metric=metric,
        outcome=outcome,
        reason=f"{metric}: {comparison}: {effect:.3g} times, {compared}: {closing}",
        unit=TIMES,
        baseline=a,
        candidate=b,
        effect=effect if math.isfinite(effect) else None,
        low=low,
        high=high,
        margin=margin,
        alpha=level_on,
        samples=(int(ratios.baseline.total), int(ratios.candidate.total)),
    )


def judge_shift(
    metric: str,
    shift: PredictionShift,
    settings: PredictionsSpec | OutputTokensSpec,
    *,
    budget: Budget,
    names: Names,
) -> MetricVerdict:
    """Judge the largest change of a class's share, or of a distribution function."""
    yes_b, all_b, yes_a, all_a = (total[1:] for total in shift.tests.totals())
    if not shift.labels or not all_a[0] or not all_b[0]:
        return waiting(metric, "no answers of both versions counted yet", alpha=budget.on)
    moved, within = shift.refuted(settings.margin, budget.back, budget.on)
    outcome = outcome_of(beyond=bool(moved.any()), within=bool(within.all()))
    differences = shift.tests.differences()[1:]
    which = int(np.argmax(np.abs(differences) + (1.0 if moved.any() else 0.0) * moved))
    low, high = shift.bounds(budget.back, budget.on)
    effect = min(max(abs(float(differences[which])), low), high)
    part_a, part_b = float(yes_a[which] / all_a[which]), float(yes_b[which] / all_b[which])
    closing = "they have changed" if outcome is Outcome.ROLL_BACK else ending(outcome)
    label = shift.labels[which]
    if isinstance(settings, OutputTokensSpec):
        description = f"have at most {label:g} tokens"
    else:
        description = f"are '{label}'" if isinstance(label, str) else f"score at most {label:g}"
    reason = (
        f"{metric}: {percent_text(part_b)} of {number_text(all_b[which])} answers "
        f"{description} on "
        f"{names.candidate} against {percent_text(part_a)} of {number_text(all_a[which])} on "
        f"{names.baseline}, the largest change of {len(shift.labels)}: "
        f"{points(effect, signed=False)} points, between {points(low, signed=False)} and "
        f"{points(high, signed=False)} with {confidence(budget.on)}; "
        f"{points(settings.margin, signed=False)} points are tolerated: {closing}"
    )
    return MetricVerdict(
        metric=metric,
        outcome=outcome,
        reason=reason,
        unit=RATIO,
        baseline=part_a,
        candidate=part_b,
        effect=effect,
        low=low,
        high=high,
        margin=settings.margin,
        alpha=budget.on,
        samples=(int(all_a[which]), int(all_b[which])),
    )


def judge_reward(
    rewards: RewardDifference, settings: RewardSpec, *, budget: Budget, names: Names
) -> MetricVerdict:
    """Judge the rewards of the responses; more is better."""
    a, b = rewards.baseline, rewards.candidate
    if min(a.units, b.units) < settings.min_units:
        cause = (
            f"{number_text(a.units)} units of {names.baseline} and {number_text(b.units)} of "
            f"{names.candidate} have a reward, and {number_text(settings.min_units)} of each are "
            "needed"
        )
        return waiting("reward", cause, alpha=budget.on)
    # More is better: the lower bound promotes, and the upper one rolls back.
    bounds = rewards.bounds(budget.on, budget.back, tuned_for=_TUNED_FOR_UNITS * settings.min_units)
    if bounds is None:
        is_finite = math.isfinite(a.squares + b.squares + rewards.difference)
        cause = "all rewards are equal so far" if is_finite else "stored rewards are not finite"
        return waiting("reward", cause, alpha=budget.on)
    left_out = a.left_out + b.left_out
    low, high = bounds
    outcome = outcome_of(beyond=high < -settings.margin, within=low >= -settings.margin)
    reason = (
        f"reward: {b.mean:.4g} on average of {number_text(b.units)} units on "
        f"{names.candidate} against {a.mean:.4g} of {number_text(a.units)} on "
        f"{names.baseline}: difference {rewards.difference:+.3g}, between {low:+.3g} and "
        f"{high:+.3g} with {confidence(budget.on)} (asymptotic); {settings.margin:g} less is "
        "tolerated"
        f"{f'; {number_text(left_out)} units left out, beyond any reward' if left_out else ''}: "
        f"{ending(outcome)}"
    )
    return MetricVerdict(
        metric="reward",
        outcome=outcome,
        reason=reason,
        unit=REWARD,
        baseline=a.mean,
        candidate=b.mean,
        effect=rewards.difference,
        low=low,
        high=high,
        margin=settings.margin,
        alpha=budget.on,
        samples=(a.units, b.units),
    )


def judge_assignment(
    assignments: Assignments, *, counted: str, is_off: bool, level: float, names: Names
) -> MetricVerdict:
    """Judge the assignment: arms without their shares invalidate all other statistics."""
    a, b = assignments.totals
    if not a + b:
        return waiting("assignment", "no caller is assigned to either version yet", alpha=level)
    ratio = b / (a + b)
    closing = (
        "the split is not what was planned, so the other numbers cannot be trusted; look for "
        "lost requests, caches or a changed key"
        if is_off
        else "as planned"
    )
    return MetricVerdict(
        metric="assignment",
        outcome=Outcome.WAIT if is_off else Outcome.PROMOTE,
        reason=f"assignment: {percent_text(ratio)} of {number_text(a + b)} {counted} went to "
        f"{names.candidate}, {percent_text(assignments.planned)} were planned: {closing}",
        unit=RATIO,
        baseline=assignments.planned,
        candidate=ratio,
        effect=ratio - assignments.planned,
        alpha=level,
        samples=(a, b),
    )


def _harm_ending(outcome: Outcome, *, is_worse_so_far: bool, turned: str) -> str:
    """Return the end of a harm's sentence, which depends on whether the worst intervals count."""
    if outcome is Outcome.ROLL_BACK and not is_worse_so_far:
        return turned
    if outcome is Outcome.WAIT and is_worse_so_far:
        return f"worse in its {FORGIVEN} worst moments an hour only, {ending(outcome)}"
    return ending(outcome)


def _turned_ending(turn: ChangeDetector, names: Names) -> str:
    candidate, baseline = turn.rates_lately()
    return (
        f"it has become worse than that, lately {percent_text(candidate)} on "
        f"{names.candidate} against {percent_text(baseline)} on {names.baseline}"
    )


def _between(low: float | None, high: float | None, level: float) -> str:
    if low is None and high is None:
        return "with no bound yet"
    if low is None:
        return f"less than {high:g} with {confidence(level)}"
    if high is None:
        return f"more than {low:g} with {confidence(level)}"
    return f"between {low:g} and {high:g} with {confidence(level)}"
