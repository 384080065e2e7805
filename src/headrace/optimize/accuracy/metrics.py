"""By which output and which number is a model judged? Chosen by the labels and the answers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from headrace.core import Array, InvalidArgumentError
from headrace.optimize.accuracy.asking import Answers
from headrace.optimize.accuracy.examples import Examples
from headrace.optimize.accuracy.pair_requests import Texts
from headrace.optimize.accuracy.readings import Read, class_reads, value_reads
from headrace.optimize.accuracy.scoring import Metric, Values, score

_FLAWLESS: Final = 1 - 1e-9
"""An error of nothing cannot grow by a per cent."""
RARE_RATIO: Final = 0.1
"""Of two classes, one that is rarer is hardly seen in the accuracy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricChoice:
    """By what candidates are judged.

    `why`: for people. `warning`: why the baseline's own answers make the labels doubtful; empty if
    they do not. `read`: an output's answers as classes for accuracy, else as values.
    """

    metric: Metric
    output: str
    why: str
    read: Read
    warning: str = ""

    def score(self, labels: Array, scores: Values) -> float:
        """The metric, of what `read` gave."""
        return score(self.metric, labels.astype(np.float64), scores)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fit:
    """A way to read an output, and how good the baseline is by it."""

    choice: MetricChoice
    baseline: float


def choose_metric(
    labels: Array, base: Answers, wish: str = "", *, names: Sequence[str] = ()
) -> MetricChoice:
    """What fits labels and answers best, by the answers of the baseline.

    Classes are judged by accuracy, in the output by which the baseline is right most often; rare
    ones of two classes by AUC, because a model that never finds them is nearly always right.
    Values are judged by the RMSE where the baseline's answers are on their scale, else by the rank
    correlation.

    Args:
        labels: int64 for classes, float64 for values, `[n]`.
        base: The baseline's answers, in all outputs.
        wish: A metric, an output, or `metric:output`; empty to choose.
        names: Of the classes, where an output answers with them.

    Raises:
        InvalidArgumentError: No output fits, or the wish is none.
    """
    wished, output = _parse(wish, base)
    if len(labels) != base.n:
        raise InvalidArgumentError(f"{len(labels)} labels for {base.n} examples")
    are_classes = labels.dtype.kind in "iu"
    outputs = [output] if output else list(base.rows)
    asked = [wished] if wished else [Metric.ACCURACY] * are_classes
    fits = [f for name in outputs for m in asked for f in _fits(name, m, labels, base, names)]
    if wished is None and (not fits or not are_classes):
        by_value = (Metric.R2, Metric.SPEARMAN)
        values = [f for name in outputs for m in by_value for f in _fits(name, m, labels, base, ())]
        if values:
            return _choose_value(values)
    if not fits:
        raise _no_fit(labels, base, outputs)
    best = max(
        fits, key=lambda fit: fit.baseline if not fit.choice.metric.is_error else -fit.baseline
    )
    if wished:
        return replace(best.choice, why=f"{wished} of output '{best.choice.output}', as asked")
    return _with_rare_classes(best, labels, base)


def usual_metric(examples: Examples) -> Metric | None:
    """By what pairs of texts are judged; None where labels and answers decide.

    A score of two texts is of use for their order only, and a cosine is on no scale of labels.
    """
    labels = examples.labels
    if labels is None or examples.texts is Texts.ONE:
        return None
    if labels.dtype.kind == "f":
        return Metric.SPEARMAN
    if examples.texts is Texts.TOGETHER:
        return None
    return Metric.AUC if len(np.unique(labels)) == 2 else Metric.SPEARMAN  # noqa: PLR2004  # alike, or not


def _parse(wish: str, base: Answers) -> tuple[Metric | None, str]:
    if not wish:
        return None, ""
    first, _, second = wish.partition(":")
    metric = next((one for one in Metric if one == first.strip().lower()), None)
    output = second.strip() if metric else wish.strip()
    if output and output not in base.rows:
        told = ", ".join(base.rows) or "none"
        metrics = ", ".join(Metric)
        msg = f"{output!r} is no output ({told}) and no metric ({metrics}); say METRIC:OUTPUT"
        raise InvalidArgumentError(msg)
    return metric, output


def _fits(
    name: str, metric: Metric, labels: Array, base: Answers, names: Sequence[str]
) -> list[_Fit]:
    """How an output can be read so that the metric is defined; empty if it cannot."""
    known = np.flatnonzero(base.has(name))
    stacked = base.stacked(name, known)
    if stacked is None:
        return []
    mine = labels[known]
    reads = class_reads(stacked, mine, names) if metric is Metric.ACCURACY else value_reads(stacked)
    found = []
    if metric is Metric.AUC and len(np.unique(mine)) != 2:  # noqa: PLR2004  # AUC is of two classes
        return []
    for read, how in reads:
        values = read(stacked)
        if not np.isfinite(values).all():
            continue
        baseline = score(metric, mine.astype(np.float64), values)
        if not np.isnan(baseline):
            why = f"{metric} of {how} '{name}'"
            choice = MetricChoice(metric=metric, output=name, why=why, read=read)
            found.append(_Fit(choice=choice, baseline=baseline))
    return found


def _choose_value(fits: Sequence[_Fit]) -> MetricChoice:
    """RMSE where an output predicts better than the labels' mean would, else rank correlation."""
    explained = [fit for fit in fits if fit.choice.metric is Metric.R2 and fit.baseline > 0]
    if explained:
        best = max(explained, key=lambda fit: fit.baseline)
        if best.baseline > _FLAWLESS:
            why = (
                f"the baseline makes no error in output '{best.choice.output}': explained variance"
            )
            return replace(best.choice, why=why)
        why = (
            f"labels are values, and output '{best.choice.output}' is on their scale (the "
            f"baseline explains {best.baseline:.0%} of their variance): root mean squared error"
        )
        return replace(best.choice, metric=Metric.RMSE, why=why)
    ranked = [fit for fit in fits if fit.choice.metric is Metric.SPEARMAN]
    best = max(ranked or fits, key=lambda fit: fit.baseline)
    why = (
        f"labels are values, and output '{best.choice.output}' is on another scale: rank "
        "correlation"
    )
    warning = ""
    if best.baseline <= 0:
        warning = (
            f"the baseline's answers do not follow the labels (rank correlation "
            f"{best.baseline:.2f}): do they belong to this model?"
        )
    return replace(best.choice, metric=Metric.SPEARMAN, why=why, warning=warning)


def _with_rare_classes(best: _Fit, labels: Array, base: Answers) -> MetricChoice:
    """AUC instead where one of two classes is rare; a doubt where the baseline is only guessing."""
    _, counts = np.unique(labels, return_counts=True)
    most = float(counts.max() / counts.sum())
    if len(counts) == 2 and most > 1 - RARE_RATIO:  # noqa: PLR2004  # two classes
        found = [f for name in base.rows for f in _fits(name, Metric.AUC, labels, base, ())]
        if found:
            auc = max(found, key=lambda fit: fit.baseline)
            why = (
                f"area under the ROC curve of output '{auc.choice.output}': only {1 - most:.1%} "
                "of the labels are of the rarer class, which accuracy hardly sees"
            )
            return replace(auc.choice, why=why)
    warning = ""
    if best.baseline <= most and len(counts) > 1:
        warning = (
            f"the baseline is right in {best.baseline:.1%}, no more often than by always saying "
            f"the commonest class ({most:.1%}): do these labels belong to this model?"
        )
    return replace(best.choice, warning=warning)


def _no_fit(labels: Array, base: Answers, outputs: Sequence[str]) -> InvalidArgumentError:
    kind = "classes" if labels.dtype.kind in "iu" else "values"
    told = []
    for name in outputs:
        stacked = base.stacked(name, np.flatnonzero(base.has(name)))
        shape = (
            "of varying shape" if stacked is None else f"{stacked.dtype} {list(stacked.shape[1:])}"
        )
        told.append(f"{name} ({shape} a row)")
    span = f"{labels.min():g} to {labels.max():g}" if len(labels) else "none"
    msg = (
        f"no output answers with what the labels are ({kind}, {span}): "
        f"{', '.join(told) or 'the model answered nothing'}; check the labels, or name a metric "
        "and output (METRIC:OUTPUT)"
    )
    return InvalidArgumentError(msg)
