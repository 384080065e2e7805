"""What was found out about a candidate's accuracy, and what people read of it."""

from dataclasses import dataclass, replace

from headrace.optimize.accuracy.scoring import Metric


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a candidate may be accepted, and why.

    `accuracy` and `base_accuracy`: in `metric`. `loss`: by how much the candidate is worse: points
    of accuracy or correlation (0.01 is one point), or the relative growth of an error.
    `loss_ci`: two-sided. `loss_bound`: one-sided, above the loss with the same confidence.
    `p_value`: two-sided, of no difference. `lost`, `gained`: answers that turned wrong and right;
    0 where answers are neither. `detectable_loss`: the smallest true loss that these examples show
    in four of five cases. `agreement_ratio`: equal answers. `needed`: about how many labels would
    do, where there are too few. `warning`: what to know though it passes.
    """

    passes: bool
    reason: str
    metric: Metric
    accuracy: float
    base_accuracy: float
    loss: float
    loss_ci: tuple[float, float]
    loss_bound: float
    p_value: float
    lost: int
    gained: int
    n: int
    detectable_loss: float
    agreement_ratio: float
    needed: int | None = None
    warning: str = ""


def rejected(why: str, metric: Metric, *, n: int) -> Verdict:
    """A verdict on what cannot even be measured: all is lost."""
    return Verdict(
        passes=False,
        reason=why,
        metric=metric,
        accuracy=0.0,
        base_accuracy=0.0,
        loss=1.0,
        loss_ci=(1.0, 1.0),
        loss_bound=1.0,
        p_value=0.0,
        lost=0,
        gained=0,
        n=n,
        detectable_loss=0.0,
        agreement_ratio=0.0,
    )


def worse(a: Verdict, b: Verdict) -> Verdict:
    """The one that counts of two verdicts: one that rejects, else that with the larger loss.

    A candidate may have been calibrated on inputs of the judged file. It is then judged on all of
    them and on those that it has not seen, and has to pass both.
    """
    if a.passes != b.passes:
        return b if a.passes else a
    return a if a.loss >= b.loss else b


def said_loss(loss: float, metric: Metric) -> str:
    """`0.48 points`, or `1.20 %` of an error."""
    return f"{loss * 100:.2f} %" if metric.is_error else f"{loss * 100:.2f} points"


def figures(verdict: Verdict) -> str:
    """What was measured, in a line: for every verdict, whatever it says."""
    low, high = verdict.loss_ci
    metric = verdict.metric
    what = f"{_value(verdict.base_accuracy, metric)} to {_value(verdict.accuracy, metric)} {metric}"
    flips = f"{verdict.lost} lost, {verdict.gained} gained of {verdict.n:,}"
    told = flips if metric is Metric.ACCURACY else f"n = {verdict.n:,}"
    return (
        f"{what}, a loss of {said_loss(verdict.loss, metric)} "
        f"[{low * 100:+.2f}, {high * 100:+.2f}] (p = {verdict.p_value:.2g}; {told}; a loss of "
        f"{said_loss(verdict.detectable_loss, metric)} would be seen in four of five cases)"
    )


def because(verdict: Verdict, why: str) -> Verdict:
    """The verdict with its reason: why, then the figures."""
    return replace(verdict, reason=f"{why}: {figures(verdict)}")


def _value(value: float, metric: Metric) -> str:
    return f"{value:.2%}" if metric is Metric.ACCURACY else f"{value:.4f}"
