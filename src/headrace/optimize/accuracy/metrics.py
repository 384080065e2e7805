"""Quality metrics: selection of metric and output, and weighted computation.

Metrics are computed over weighted examples, for many weightings at once: a bootstrap resample is
another weighting, and nothing is sorted twice.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, assert_never

import numpy as np
from numpy.typing import NDArray

from headrace.core import Array, InvalidArgumentError
from headrace.optimize.accuracy.examples import Examples, RowTexts
from headrace.optimize.accuracy.inference import ModelAnswers

Values = NDArray[np.float64]
_MAX_CONCURRENT: Final = 4_000_000
"""Most weights in memory at once."""
_MAX_RESAMPLES: Final = 1_000
_MIN_RESAMPLES: Final = 400
_WORK: Final = 10_000_000


class Metric(StrEnum):
    """Quality metric of answers, given labels."""

    ACCURACY = "accuracy"
    AUC = "auc"
    SPEARMAN = "spearman"
    PEARSON = "pearson"
    R2 = "r2"
    RMSE = "rmse"
    MAE = "mae"

    @property
    def is_error(self) -> bool:
        """Whether lower is better; the loss is then relative to the baseline's error."""
        return self in (Metric.RMSE, Metric.MAE)

    def loss(self, base: Values | float, candidate: Values | float) -> Values:
        """Return the candidate's loss: a difference of scores, or a relative growth of errors.

        An error where the baseline has none counts as a loss of 1.
        """
        reference, now = np.asarray(base, np.float64), np.asarray(candidate, np.float64)
        if not self.is_error:
            return np.asarray(reference - now)
        ratio = now / np.where(reference > 0, reference, 1.0) - 1.0
        return np.where(reference > 0, ratio, np.where(now > 0, 1.0, 0.0) + 0.0 * now)


def score(metric: Metric, labels: Values, scores: Values) -> float:
    """Return the metric over all examples."""
    return float(weighted_scores(metric, labels, scores)(np.ones((1, len(labels))))[0])


def weighted_scores(  # noqa: PLR0911  # one for each metric
    metric: Metric, labels: Values, scores: Values
) -> Callable[[Values], Values]:
    """Return the metric as a function of weights, `[weightings, n]` to `[weightings]`.

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
) -> Values:
    """Return losses over paired bootstrap resamples of the examples.

    Efron and Tibshirani 1993, "An Introduction to the Bootstrap". Resamples on which the metric is
    undefined (such as one class only) are left out.
    """
    n = len(labels)
    resamples = int(np.clip(_WORK // max(n, 1), _MIN_RESAMPLES, _MAX_RESAMPLES))
    of_base = weighted_scores(metric, labels, base)
    of_candidate = weighted_scores(metric, labels, candidate)
    chunks = []
    at_once = max(1, min(resamples, _MAX_CONCURRENT // n))
    with np.errstate(divide="ignore", invalid="ignore"):
        for start in range(0, resamples, at_once):
            rows = min(at_once, resamples - start)
            drawn = rng.integers(0, n, (rows, n)) + n * np.arange(rows)[:, None]
            counts = np.bincount(drawn.reshape(-1), minlength=rows * n).reshape(rows, n)
            weights = counts.astype(np.float64)
            chunks.append(metric.loss(of_base(weights), of_candidate(weights)))
    losses = np.concatenate(chunks)
    defined: Values = losses[~np.isnan(losses)]
    return defined


def _spread(weights: Values, values: Values) -> Values:
    """Return the weighted sum of squares about the weighted mean."""
    total = weights.sum(axis=1)
    mean = (weights * values).sum(axis=1) / total
    squares: Values = (weights * (values - mean[:, None]) ** 2).sum(axis=1)
    return squares


def _correlation(weights: Values, first: Values, second: Values) -> Values:
    """Return the weighted Pearson correlation; NaN if one side is constant."""
    total = weights.sum(axis=1, keepdims=True)
    a = first - (weights * first).sum(axis=1, keepdims=True) / total
    b = second - (weights * second).sum(axis=1, keepdims=True) / total
    covariance = (weights * a * b).sum(axis=1)
    norm = np.sqrt((weights * a * a).sum(axis=1) * (weights * b * b).sum(axis=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation: Values = covariance / norm
    return correlation


def _ranks(values: Values) -> Callable[[Values], Values]:
    """Return a function that computes mid-ranks with weights as multiplicities."""
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
    """Return the AUC by the Mann-Whitney statistic."""
    positive_weight = weights[:, positive].sum(axis=1)
    negative_weight = weights[:, ~positive].sum(axis=1)
    above = (weights * ranks)[:, positive].sum(axis=1) - positive_weight * (positive_weight + 1) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        auc: Values = above / (positive_weight * negative_weight)
    return auc


UNKNOWN: Final = -1.0
"""Class number of names that no label has."""
_HALF: Final = 0.5
_PAIR: Final = 2
_TWO_CLASSES: Final = ({0}, {1}, {0, 1}, {-1, 1})
Read = Callable[[Array], Values]
"""Converts answers `[examples, ...]` of an output to a class or value per example."""


def class_reads(answers: Array, labels: Array, names: Sequence[str]) -> list[tuple[Read, str]]:
    """Return ways to read the answers as classes, with descriptions.

    Args:
        answers: The baseline's, `[examples, ...]`.
        labels: Numbers of classes.
        names: Of the classes; empty where they have none.
    """
    width = int(np.prod(answers.shape[1:]))
    if width == 1 and answers.dtype.kind in "iub":
        return [(_plain, "output")]
    if width == 1 and answers.dtype.kind in "OSU" and names:
        numbers = {name: float(number) for number, name in enumerate(names)}
        return [(lambda outputs: _named(outputs, numbers), "the names in output")]
    if answers.dtype.kind != "f":
        return []
    present = set(np.unique(labels).tolist())
    if width == 1 and present in _TWO_CLASSES:
        in_unit = bool(((answers >= 0) & (answers <= 1)).all())
        cut, low = (_HALF if in_unit else 0.0), min(0.0, *present)
        return [
            (lambda outputs: np.where(_plain(outputs) > cut, 1.0, low), f"above {cut:g} in output")
        ]
    is_row = max(answers.shape[1:], default=1) == width
    if width > 1 and is_row and labels.min() >= 0 and labels.max() < width:
        return [(_largest, "the largest score in output")]
    return []


def value_reads(answers: Array) -> list[tuple[Read, str]]:
    """Return ways to read the answers as one number each; for two scores, their difference."""
    width = int(np.prod(answers.shape[1:]))
    if width == 1 and answers.dtype.kind in "fiub":
        return [(_plain, "output")]
    if width == _PAIR and answers.dtype.kind == "f":
        return [(_second_over_first, "the second score over the first in output")]
    return []


def _plain(outputs: Array) -> Values:
    values: Values = outputs.reshape(len(outputs)).astype(np.float64)
    return values


def _largest(outputs: Array) -> Values:
    classes: Values = outputs.reshape(len(outputs), -1).argmax(axis=1).astype(np.float64)
    return classes


def _second_over_first(outputs: Array) -> Values:
    two = outputs.reshape(len(outputs), _PAIR).astype(np.float64)
    over: Values = two[:, 1] - two[:, 0]
    return over


def _named(outputs: Array, numbers: Mapping[str, float]) -> Values:
    texts = [
        value.decode(errors="replace") if isinstance(value, bytes) else str(value)
        for value in outputs.reshape(len(outputs)).tolist()
    ]
    return np.array([numbers.get(text, UNKNOWN) for text in texts], np.float64)


_FLAWLESS: Final = 1 - 1e-9
"""R2 above which the baseline counts as exact, as no error can grow relatively then."""
RARE_RATIO: Final = 0.1
"""Share below which the rarer of two classes hardly affects the accuracy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricChoice:
    """Selected metric and output."""

    metric: Metric
    output: str
    why: str
    """Text for the report."""
    read: Read
    """Reads an output's answers as classes (accuracy) or values."""
    warning: str = ""
    """Warning if the baseline's answers contradict the labels; else empty."""

    def score(self, labels: Array, scores: Values) -> float:
        """Return the metric of values that `read` returned."""
        return score(self.metric, labels.astype(np.float64), scores)


_Fit = tuple[float, MetricChoice]
"""Baseline score by a choice, and the choice."""


def _best(fits: Iterable[_Fit]) -> _Fit:
    return max(fits, key=lambda fit: -fit[0] if fit[1].metric.is_error else fit[0])


def choose_metric(
    labels: Array, base: ModelAnswers, requested: str = "", *, names: Sequence[str] = ()
) -> MetricChoice:
    """Choose the metric and output that fit the labels and the baseline's answers best.

    Classes are judged by accuracy, in the output by which the baseline is right most often; rare
    ones of two classes by AUC, because a model that never predicts them is nearly always right.
    Values are judged by the RMSE where the baseline's answers are on their scale, else by the rank
    correlation.

    Args:
        labels: int64 for classes, float64 for values, `[n]`.
        base: The baseline's answers, in all outputs.
        requested: A metric, an output, or `metric:output`; empty to choose.
        names: Of the classes, where an output answers with them.

    Raises:
        InvalidArgumentError: No output fits, or the requested metric is unknown.
    """
    requested_metric, output = _parse(requested, base)
    if len(labels) != base.n:
        raise InvalidArgumentError(f"{len(labels)} labels for {base.n} examples")
    are_classes = labels.dtype.kind in "iu"
    outputs = [output] if output else list(base.rows)
    metrics = [requested_metric] if requested_metric else [Metric.ACCURACY] * are_classes
    fits = [f for name in outputs for m in metrics for f in _fits(name, m, labels, base, names)]
    if requested_metric is None and (not fits or not are_classes):
        by_value = (Metric.R2, Metric.SPEARMAN)
        values = [f for name in outputs for m in by_value for f in _fits(name, m, labels, base, ())]
        if values:
            return _choose_value(values)
    if not fits:
        raise _no_fit(labels, base, outputs)
    baseline, best = _best(fits)
    if requested_metric:
        return replace(best, why=f"{requested_metric} of output '{best.output}', as requested")
    return _with_rare_classes(baseline, best, labels, base)


def usual_metric(examples: Examples) -> Metric | None:
    """Return the usual metric of text pairs; None if labels and answers decide.

    Scores of text pairs are used for ranking, and cosines are not on the labels' scale.
    """
    labels = examples.labels
    if labels is None or examples.texts is RowTexts.SINGLE:
        return None
    if labels.dtype.kind == "f":
        return Metric.SPEARMAN
    if examples.texts is RowTexts.CROSS_ENCODER:
        return None
    return Metric.AUC if len(np.unique(labels)) == 2 else Metric.SPEARMAN  # noqa: PLR2004  # equal or not


def _parse(requested: str, base: ModelAnswers) -> tuple[Metric | None, str]:
    if not requested:
        return None, ""
    first, _, second = requested.partition(":")
    metric = next((member for member in Metric if member == first.strip().lower()), None)
    output = second.strip() if metric else requested.strip()
    if output and output not in base.rows:
        outputs = ", ".join(base.rows) or "none"
        metrics = ", ".join(Metric)
        msg = (
            f"{output!r} is neither an output ({outputs}) nor a metric ({metrics}); "
            "use METRIC:OUTPUT"
        )
        raise InvalidArgumentError(msg)
    return metric, output


def _fits(
    name: str, metric: Metric, labels: Array, base: ModelAnswers, names: Sequence[str]
) -> list[_Fit]:
    """Return the ways to read an output for which the metric is defined."""
    answered = np.flatnonzero(base.has(name))
    stacked = base.stacked(name, answered)
    if stacked is None:
        return []
    answered_labels = labels[answered]
    reads = (
        class_reads(stacked, answered_labels, names)
        if metric is Metric.ACCURACY
        else value_reads(stacked)
    )
    fits = []
    if metric is Metric.AUC and len(np.unique(answered_labels)) != 2:  # noqa: PLR2004  # AUC is of two classes
        return []
    for read, how in reads:
        values = read(stacked)
        if not np.isfinite(values).all():
            continue
        baseline = score(metric, answered_labels.astype(np.float64), values)
        if not np.isnan(baseline):
            reason = f"{metric} of {how} '{name}'"
            choice = MetricChoice(metric=metric, output=name, why=reason, read=read)
            fits.append((baseline, choice))
    return fits


def _choose_value(fits: Sequence[_Fit]) -> MetricChoice:
    """Choose RMSE if an output beats the labels' mean, else the rank correlation."""
    explained = [fit for fit in fits if fit[1].metric is Metric.R2 and fit[0] > 0]
    if explained:
        ratio, best = _best(explained)
        if ratio > _FLAWLESS:
            reason = f"the baseline has no error in output '{best.output}': explained variance"
            return replace(best, why=reason)
        reason = (
            f"labels are values, and output '{best.output}' is on their scale (the "
            f"baseline explains {ratio:.0%} of their variance): root mean squared error"
        )
        return replace(best, metric=Metric.RMSE, why=reason)
    ratio, best = _best([fit for fit in fits if fit[1].metric is Metric.SPEARMAN] or fits)
    reason = f"labels are values, and output '{best.output}' is on another scale: rank correlation"
    warning = ""
    if ratio <= 0:
        warning = (
            f"the baseline's answers do not follow the labels (rank correlation "
            f"{ratio:.2f}): do they belong to this model?"
        )
    return replace(best, metric=Metric.SPEARMAN, why=reason, warning=warning)


def _with_rare_classes(
    baseline: float, best: MetricChoice, labels: Array, base: ModelAnswers
) -> MetricChoice:
    """Use AUC if one of two classes is rare; warn if the baseline is no better than guessing."""
    _, counts = np.unique(labels, return_counts=True)
    maximum = float(counts.max() / counts.sum())
    if len(counts) == 2 and maximum > 1 - RARE_RATIO:  # noqa: PLR2004  # two classes
        fits = [f for name in base.rows for f in _fits(name, Metric.AUC, labels, base, ())]
        if fits:
            _, auc = _best(fits)
            reason = (
                f"area under the ROC curve of output '{auc.output}': only {1 - maximum:.1%} "
                "of the labels are of the rarer class, which accuracy hardly sees"
            )
            return replace(auc, why=reason)
    warning = ""
    if baseline <= maximum and len(counts) > 1:
        warning = (
            f"the baseline is right in {baseline:.1%}, no more often than by always saying "
            f"the commonest class ({maximum:.1%}): do these labels belong to this model?"
        )
    return replace(best, warning=warning)


def _no_fit(labels: Array, base: ModelAnswers, outputs: Sequence[str]) -> InvalidArgumentError:
    kind = "classes" if labels.dtype.kind in "iu" else "values"
    shapes = []
    for name in outputs:
        stacked = base.stacked(name, np.flatnonzero(base.has(name)))
        shape = (
            "of varying shape" if stacked is None else f"{stacked.dtype} {list(stacked.shape[1:])}"
        )
        shapes.append(f"{name} ({shape} a row)")
    span = f"{labels.min():g} to {labels.max():g}" if len(labels) else "none"
    msg = (
        f"no output matches the labels ({kind}, {span}): "
        f"{', '.join(shapes) or 'the model answered nothing'}; check the labels, or name a metric "
        "and output (METRIC:OUTPUT)"
    )
    return InvalidArgumentError(msg)
