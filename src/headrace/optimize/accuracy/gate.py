"""Quality gate that accepts or rejects a candidate by its answers to the examples.

A candidate is rejected if

1. it fails, or returns non-finite numbers or another shape, where the baseline does not;
2. its loss is significant (p < 0.05): by the exact McNemar test for classes, by a paired bootstrap
   for everything else;
3. its measured loss exceeds `max_loss`;
4. there are too few labels: the one-sided bound of its loss is not below `max_loss`, and a loss of
   `max_loss` would not have been detected in four of five cases.

Guarantees of the fourth rule: the bound is the strict test of non-inferiority, and a candidate that
changes nothing passes it from about 270 labels on (for one point). The detection criterion is
weaker: a candidate whose true loss is exactly `max_loss` passes it in one of five cases, one whose
loss is 1.5 times as large in one of a hundred. Users who require the bound alone find it in the
verdict (`loss_bound`, and a warning if it is above the limit); but then a candidate with no loss at
all would need four times the labels that its small number of changed answers requires, and a user
with 2,700 labels could not accept a candidate that lost half a point, which may be chance. The
field's practice, rule 3 alone (MLPerf's 99 % of the baseline), accepts a loss of `max_loss` in one
of two cases.

The second rule is strict on purpose: with very many labels it detects losses far below `max_loss`,
and rejects candidates although their loss is proved to be within the limit (the reason says so). An
accepted candidate has no measurable loss.

If all answers are the same and all numbers differ by rounding only, the candidate computes the same
as the baseline, and a lack of labels is only a warning.

Interim looks come at doubling numbers of randomly drawn examples. A candidate that lost a sixth of
its accuracy is rejected after some hundred examples of thousands. A trial may pause at a look and
continue later, so that many candidates are screened before one is evaluated fully.
"""

from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Final

import numpy as np

from headrace.core import Array, InvalidArgumentError
from headrace.optimize.accuracy.examples import ORDER_SEED, Examples
from headrace.optimize.accuracy.fidelity import only_rounding
from headrace.optimize.accuracy.inference import ModelAnswers, Run, answers
from headrace.optimize.accuracy.metrics import Metric, MetricChoice, bootstrap_losses
from headrace.optimize.accuracy.verdict import (
    MIN_RESAMPLED,
    SIGNIFICANCE,
    QualityVerdict,
    breakage_reason,
    comparable,
    describe_figures,
    flips,
    format_loss,
    is_refuted,
    measure_quality,
    needed_examples,
    with_reason,
)

ALPHA: Final = 1e-3
"""Probability that a candidate within `max_loss` is rejected early."""
_MIN_FOR_EARLY: Final = 100
_STYLES: Final = 16


def judge(
    base: ModelAnswers,
    candidate: ModelAnswers,
    labels: Array,
    *,
    metric: MetricChoice,
    max_loss: float,
    rng: np.random.Generator,
) -> QualityVerdict:
    """Judge a candidate by the rules above.

    Args:
        base: The baseline's answers to the same examples.
        labels: `[n]`.
        max_loss: 0.01 for one point of accuracy, AUC or correlation, or for one per cent more of
            an error, relative to the baseline's.
        rng: Draws the resamples.

    Raises:
        InvalidArgumentError: Answers and labels do not match, or the limit is out of range.
    """
    if not 0 <= max_loss < 1:
        raise InvalidArgumentError(f"a loss limit of {max_loss:g} is invalid; use 0 to below 1")
    if not base.n == candidate.n == len(labels):
        msg = f"{base.n} and {candidate.n} answers for {len(labels)} labels"
        raise InvalidArgumentError(msg)
    selected = comparable(base, candidate, metric.output)
    broken = breakage_reason(base, candidate, metric.output, selected)
    if broken:
        return QualityVerdict(passes=False, reason=broken, metric=metric.metric, n=len(selected))
    reference, now = (
        base.stacked(metric.output, selected),
        candidate.stacked(metric.output, selected),
    )
    assert reference is not None  # else it was rejected as broken
    assert now is not None
    expected = labels[selected].astype(np.float64)
    measurement = measure_quality(
        expected, metric.read(reference), metric.read(now), metric.metric, rng
    )
    has_flips = measurement.metric is Metric.ACCURACY and measurement.agreement_ratio < 1.0
    is_same = not has_flips and only_rounding(base, candidate)
    verdict = _decide(measurement, max_loss, is_same=is_same)
    if len(selected) < base.n and candidate.stopped:
        note = f"judged on {len(selected):,} of {base.n:,} examples, as {candidate.stopped}"
        return replace(verdict, warning="; ".join(filter(None, (verdict.warning, note))))
    return verdict


def is_hopeless(
    base: ModelAnswers,
    candidate: ModelAnswers,
    labels: Array,
    *,
    metric: MetricChoice,
    max_loss: float,
    rng: np.random.Generator,
) -> bool:
    """Return whether a partly evaluated candidate can be rejected early.

    For classes, fewer than one in 1,000 candidates whose loss is within `max_loss` is rejected
    early, for any number of looks: see `is_refuted`. For other metrics this holds approximately,
    for up to 16 looks from 100 examples on: each look uses a sixteenth of the risk (Bonferroni),
    and the loss is assumed to be normally distributed. A candidate that fails where the baseline
    does not is rejected at once.
    """
    selected = comparable(base, candidate, metric.output)
    if not len(selected) and not candidate.failures:
        return False
    if breakage_reason(base, candidate, metric.output, selected):
        return True
    reference, now = (
        base.stacked(metric.output, selected),
        candidate.stacked(metric.output, selected),
    )
    assert reference is not None  # else it was rejected as broken
    assert now is not None
    expected, first, second = (
        labels[selected].astype(np.float64),
        metric.read(reference),
        metric.read(now),
    )
    if metric.metric is Metric.ACCURACY:
        lost, gained = flips(expected, first, second)
        return is_refuted(lost, gained, len(selected), max_loss=max_loss, alpha=ALPHA)
    if len(selected) < _MIN_FOR_EARLY:
        return False
    losses = bootstrap_losses(metric.metric, expected, first, second, rng)
    z = NormalDist().inv_cdf(1 - ALPHA / _STYLES)
    return bool(len(losses)) and float(losses.mean() - z * losses.std()) > max_loss


def _decide(measurement: QualityVerdict, max_loss: float, *, is_same: bool) -> QualityVerdict:
    """Apply rules 2 to 4 to a measurement."""
    limit = format_loss(max_loss, measurement.metric)
    if measurement.loss > 0 and measurement.p_value < SIGNIFICANCE:
        within = f", though within {limit}" if measurement.loss_bound <= max_loss else ""
        return with_reason(measurement, f"significantly worse{within}")
    if measurement.loss > max_loss:
        return with_reason(measurement, f"the loss exceeds {limit}, though not significantly")
    is_bounded = measurement.loss_bound <= max_loss
    is_detectable = measurement.detectable_loss <= max_loss
    has_enough = measurement.metric is Metric.ACCURACY or measurement.n >= MIN_RESAMPLED
    if has_enough and (is_bounded or is_detectable):
        passed = with_reason(replace(measurement, passes=True), "no significant loss")
        if is_bounded:
            return passed
        bound = format_loss(measurement.loss_bound, measurement.metric)
        warning = f"its loss is below {bound} with 95 % confidence, not below {limit}"
        return replace(passed, warning=warning)
    needed = _needed(measurement, max_loss)
    shortage = f"n = {measurement.n:,}, and a limit of {limit} needs "
    shortage += f"about {needed:,}" if needed else "more labels than any data set has"
    if is_same:
        passed = with_reason(replace(measurement, passes=True, needed=needed), "the same answers")
        warning = f"not enough labels for a proof ({shortage}); all numbers differ by rounding only"
        return replace(passed, warning=warning)
    return with_reason(replace(measurement, needed=needed), f"not enough labels: {shortage}")


def _needed(measurement: QualityVerdict, max_loss: float) -> int | None:
    if measurement.metric is Metric.ACCURACY:
        changed = (measurement.lost + measurement.gained) / measurement.n
        return needed_examples(changed, measurement.loss, max_loss)
    if max_loss < measurement.detectable_loss * 1e-6:
        return None
    by_test = measurement.n * (measurement.detectable_loss / max_loss) ** 2 if max_loss else 0.0
    return max(MIN_RESAMPLED, int(np.ceil(by_test)))


FIRST_CHECK: Final = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class GateTrial:
    """Evaluation of a candidate so far: its answers, the verdict and the progress."""

    answers: ModelAnswers
    verdict: QualityVerdict
    examples_used: int
    """Number of examples evaluated."""
    given_up: bool = False
    """Whether it was rejected early."""
    is_part: bool = False
    """Whether only the first examples were evaluated, so that the trial can continue."""


def try_candidate(
    run: Run,
    examples: Examples,
    base: ModelAnswers,
    *,
    metric: MetricChoice,
    max_loss: float,
    rng: np.random.Generator,
    threads: int = 1,
    deadline: float | None = None,
    maximum: int | None = None,
    started: GateTrial | None = None,
) -> GateTrial:
    """Evaluate a candidate on the baseline's examples, and judge it.

    Args:
        most: Limit of the examples to evaluate; None for all.
        begun: Earlier part of the same trial, to be continued.

    Raises:
        InvalidArgumentError: The examples have no labels, or are not those of the baseline.
    """
    labels = examples.labels
    if labels is None:
        raise InvalidArgumentError("examples without labels cannot measure accuracy; use fidelity")
    order = np.random.default_rng(ORDER_SEED).permutation(np.flatnonzero(base.has(metric.output)))
    total = len(order)
    until = total if maximum is None else min(maximum, total)
    merged, done = (
        (started.answers, started.examples_used)
        if started
        else (ModelAnswers(n=base.n, rows={}), 0)
    )
    given_up = False
    while done < until and not given_up and not merged.stopped:
        part = order[done : min(max(2 * done, FIRST_CHECK), until)]
        more = answers(run, examples, threads=threads, deadline=deadline, only=part)
        merged, done = merged.merged(more), done + len(part)
        if done < total or merged.stopped:
            given_up = is_hopeless(base, merged, labels, metric=metric, max_loss=max_loss, rng=rng)
    verdict = judge(base, merged, labels, metric=metric, max_loss=max_loss, rng=rng)
    is_part = not given_up and (done < total or bool(merged.stopped))
    if given_up:
        reason = f"rejected early, after {done:,} of {total:,} examples: {verdict.reason}"
        verdict = replace(verdict, passes=False, reason=reason)
    elif is_part:
        description = (
            f"on the first {verdict.n:,} of {total:,} examples, {describe_figures(verdict)}"
        )
        verdict = replace(verdict, reason=description)
    return GateTrial(
        answers=merged, verdict=verdict, examples_used=done, given_up=given_up, is_part=is_part
    )
