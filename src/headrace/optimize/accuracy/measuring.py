"""What did a candidate lose, in figures? Of two models' answers to the same examples. Pure."""

from statistics import NormalDist
from typing import Final

import numpy as np

from headrace.core import Array, InvalidArgumentError
from headrace.optimize.accuracy.asking import Answers
from headrace.optimize.accuracy.paired import (
    POWER,
    SIGNIFICANCE,
    detectable_loss,
    loss_bound,
    loss_interval,
    mcnemar_p,
)
from headrace.optimize.accuracy.scoring import Metric, Values, bootstrap_losses, score
from headrace.optimize.accuracy.verdict import Verdict

LEAST_RESAMPLED: Final = 30
"""Of fewer examples, resamples tell too little about the next ones."""


def comparable(base: Answers, candidate: Answers, output: str) -> Array:
    """Examples that both answered, by index.

    Raises:
        InvalidArgumentError: The baseline answered none.
    """
    of_base = base.has(output)
    if not of_base.any():
        raise InvalidArgumentError(f"the baseline answered no example in output {output!r}")
    return np.flatnonzero(of_base & candidate.has(output))


def why_broken(base: Answers, candidate: Answers, output: str, chosen: Array) -> str:
    """Why a candidate cannot be judged at all by what it answered; empty if it can."""
    failed = sorted(candidate.failures.keys() - base.failures.keys())
    if failed:
        why = candidate.failures[failed[0]][:200]
        return f"it fails on {len(failed):,} examples that the baseline answers: {why}"
    if not len(chosen):
        return f"it answered no example in output {output!r}"
    was, now = base.stacked(output, chosen), candidate.stacked(output, chosen)
    if was is None or now is None or was.shape != now.shape:
        return "its answers have another shape than the baseline's"
    if now.dtype.kind != "f":
        return ""
    spoiled = np.isfinite(was.astype(np.float64)) & ~np.isfinite(now)
    rows = int(spoiled.reshape(len(chosen), -1).any(axis=1).sum())
    return f"it answers {rows:,} examples with what is no finite number" if rows else ""


def measured(
    truth: Values,
    was: Values,
    now: Values,
    metric: Metric,
    *,
    confidence: float,
    rng: np.random.Generator,
) -> Verdict:
    """The figures of a verdict that says no yet.

    Args:
        truth: Labels of the examples, `[n]`.
        was: The baseline's classes or values.
        now: The candidate's.
    """
    if metric is Metric.ACCURACY:
        return _of_classes(truth, was, now, confidence)
    return _of_values(truth, was, now, metric, confidence=confidence, rng=rng)


def flips(truth: Values, was: Values, now: Values) -> tuple[int, int]:
    """How many answers turned wrong, and how many right."""
    before, after = was == truth, now == truth
    return int((before & ~after).sum()), int((~before & after).sum())


def _of_classes(truth: Values, was: Values, now: Values, confidence: float) -> Verdict:
    n = len(truth)
    lost, gained = flips(truth, was, now)
    return Verdict(
        passes=False,
        reason="",
        metric=Metric.ACCURACY,
        accuracy=float((now == truth).mean()),
        base_accuracy=float((was == truth).mean()),
        loss=(lost - gained) / n,
        loss_ci=loss_interval(lost, gained, n, confidence=confidence),
        loss_bound=loss_bound(lost, gained, n, confidence=confidence),
        p_value=mcnemar_p(lost, gained),
        lost=lost,
        gained=gained,
        n=n,
        detectable_loss=detectable_loss((lost + gained) / n, n),
        agreement_ratio=float((was == now).mean()),
    )


def _of_values(
    truth: Values,
    was: Values,
    now: Values,
    metric: Metric,
    *,
    confidence: float,
    rng: np.random.Generator,
) -> Verdict:
    before, after = score(metric, truth, was), score(metric, truth, now)
    after = after if np.isfinite(after) else _worst(metric)  # a correlation of what never varies
    loss = float(metric.loss(before, after))
    losses = bootstrap_losses(metric, truth, was, now, rng)
    losses = losses if len(losses) else np.array([loss])
    tail = (1 - confidence) / 2
    low, high, bound = np.quantile(losses, (tail, 1 - tail, confidence)).tolist()
    fewer = min(int((losses <= 0).sum()), int((losses >= 0).sum()))
    normal = NormalDist()
    seen = normal.inv_cdf(1 - SIGNIFICANCE / 2) + normal.inv_cdf(POWER)
    return Verdict(
        passes=False,
        reason="",
        metric=metric,
        accuracy=after,
        base_accuracy=before,
        loss=loss,
        loss_ci=(low, high),
        loss_bound=bound,
        p_value=min(1.0, 2 * (fewer + 1) / (len(losses) + 1)),
        lost=0,
        gained=0,
        n=len(truth),
        detectable_loss=seen * float(losses.std()),
        agreement_ratio=float((was == now).mean()),
    )


def _worst(metric: Metric) -> float:
    """What answers are worth that say nothing."""
    return 0.5 if metric is Metric.AUC else 0.0
