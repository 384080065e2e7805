"""How good are answers, by one number; and by how much does that number vary with the examples?

Each metric is computed for examples with weights, many weightings at once: a bootstrap's resample
is only another weighting, and nothing is sorted twice.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Final, assert_never

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

_AT_ONCE: Final = 4_000_000
"""Weights in memory together."""
_MOST_RESAMPLES: Final = 1_000
_LEAST_RESAMPLES: Final = 400
_WORK: Final = 10_000_000


class Metric(StrEnum):
    """What is measured of answers, given labels."""

    ACCURACY = "accuracy"
    AUC = "auc"
    SPEARMAN = "spearman"
    PEARSON = "pearson"
    R2 = "r2"
    RMSE = "rmse"
    MAE = "mae"

    @property
    def is_error(self) -> bool:
        """Whether less is better; a loss is then relative to the baseline's error."""
        return self in (Metric.RMSE, Metric.MAE)

    def loss(self, base: Values | float, candidate: Values | float) -> Values:
        """How much worse the candidate is: a difference of scores, or a relative one of errors.

        An error where there was none counts as one.
        """
        was, now = np.asarray(base, np.float64), np.asarray(candidate, np.float64)
        if not self.is_error:
            return np.asarray(was - now)
        ratio = now / np.where(was > 0, was, 1.0) - 1.0
        return np.where(was > 0, ratio, np.where(now > 0, 1.0, 0.0) + 0.0 * now)


def score(metric: Metric, labels: Values, scores: Values) -> float:
    """The metric over all examples."""
    return float(weighted_scores(metric, labels, scores)(np.ones((1, len(labels))))[0])


def weighted_scores(  # noqa: PLR0911  # one for each metric
    metric: Metric, labels: Values, scores: Values
) -> Callable[[Values], Values]:
    """The metric as a function of the examples' weights, `[weightings, n]` to `[weightings]`.

    Args:
        labels: Classes, or values.
        scores: Classes for accuracy; values, or scores of class 1, for the others.
    """
    match metric:
        case Metric.ACCURACY:
            right = (labels == scores).astype(np.float64)
            return lambda weights: weights @ right / weights.sum(axis=1)
        case Metric.RMSE:
            squares = (labels - scores) ** 2
            return lambda weights: np.sqrt(weights @ squares / weights.sum(axis=1))
        case Metric.MAE:
            sizes = np.abs(labels - scores)
            return lambda weights: weights @ sizes / weights.sum(axis=1)
        case Metric.R2:
            squares = (labels - scores) ** 2
            return lambda weights: 1.0 - weights @ squares / _spread(weights, labels)
        case Metric.PEARSON:
            return lambda weights: _correlation(weights, labels, scores)
        case Metric.SPEARMAN:
            first, second = _ranks(labels), _ranks(scores)
            return lambda weights: _correlation(weights, first(weights), second(weights))
        case Metric.AUC:
            ranks, positive = _ranks(scores), labels > labels.min()
            return lambda weights: _auc(weights, ranks(weights), positive)
        case _:
            assert_never(metric)


def bootstrap_losses(
    metric: Metric,
    labels: Values,
    base: Values,
    candidate: Values,
    rng: np.random.Generator,
    *,
    resamples: int | None = None,
) -> Values:
    """Losses over resamples of the examples, the same ones for both models: a paired bootstrap.

    Efron and Tibshirani 1993, "An Introduction to the Bootstrap". Resamples on which the metric is
    not defined (one class only, say) are left out.

    Args:
        resamples: How many; None for 1,000, or 400 of very many examples.
    """
    n = len(labels)
    usual = int(np.clip(_WORK // max(n, 1), _LEAST_RESAMPLES, _MOST_RESAMPLES))
    resamples = resamples or usual
    of_base = weighted_scores(metric, labels, base)
    of_candidate = weighted_scores(metric, labels, candidate)
    found = []
    at_once = max(1, min(resamples, _AT_ONCE // n))
    with np.errstate(divide="ignore", invalid="ignore"):
        for start in range(0, resamples, at_once):
            rows = min(at_once, resamples - start)
            drawn = rng.integers(0, n, (rows, n)) + n * np.arange(rows)[:, None]
            counts = np.bincount(drawn.reshape(-1), minlength=rows * n).reshape(rows, n)
            weights = counts.astype(np.float64)
            found.append(metric.loss(of_base(weights), of_candidate(weights)))
    losses = np.concatenate(found)
    kept: Values = losses[~np.isnan(losses)]
    return kept


def _spread(weights: Values, values: Values) -> Values:
    """Weighted sum of squares about the weighted mean."""
    total = weights.sum(axis=1)
    mean = (weights * values).sum(axis=1) / total
    found: Values = (weights * (values - mean[:, None]) ** 2).sum(axis=1)
    return found


def _correlation(weights: Values, first: Values, second: Values) -> Values:
    """Pearson's, weighted; not a number where one of both does not vary."""
    total = weights.sum(axis=1, keepdims=True)
    a = first - (weights * first).sum(axis=1, keepdims=True) / total
    b = second - (weights * second).sum(axis=1, keepdims=True) / total
    together = (weights * a * b).sum(axis=1)
    apart = np.sqrt((weights * a * a).sum(axis=1) * (weights * b * b).sum(axis=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Values = together / apart
    return found


def _ranks(values: Values) -> Callable[[Values], Values]:
    """Mid-ranks as they would be if each value stood there as often as its weight says."""
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    last = np.flatnonzero(np.diff(group[order], append=-1))

    def ranks(weights: Values) -> Values:
        until = np.cumsum(weights[:, order], axis=1)[:, last]
        before = np.concatenate([np.zeros((len(weights), 1)), until[:, :-1]], axis=1)
        middle: Values = (before + until + 1.0) / 2
        return middle[:, group]

    return ranks


def _auc(weights: Values, ranks: Values, positive: NDArray[np.bool_]) -> Values:
    """Mann and Whitney's statistic: the chance that a positive one is scored above a negative."""
    ours = weights[:, positive].sum(axis=1)
    theirs = weights[:, ~positive].sum(axis=1)
    above = (weights * ranks)[:, positive].sum(axis=1) - ours * (ours + 1) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Values = above / (ours * theirs)
    return found
