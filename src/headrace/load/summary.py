"""What does a run say? Figures with intervals from what became of each request. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from headrace.load.intervals import (
    Floats,
    Interval,
    quantile_interval,
    quantile_intervals,
    wilson_interval,
)
from headrace.load.plan import LoadPlan
from headrace.load.record import LEFT_OUT, NOT_SENT, Sample
from headrace.load.slo import Judgement, Objective, Verdict, judge

QUANTILES: Final = (0.5, 0.9, 0.95, 0.99, 0.999)
_OWN_SHARE: Final = 0.2
"""The share of a latency that may be the generator's lag before it counts as the limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lag:
    """How late the generator sent, in seconds. `share_p50` and `share_p99`: by how much the
    quantile of the latency falls when the lag is taken off; 0 to 1.
    """  # noqa: D205  # one sentence a field

    p50_s: float
    p99_s: float
    max_s: float
    share_p50: float
    share_p99: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """A run's figures; the warm-up is in none of them.

    Attributes:
        plan: What was asked for.
        seconds: How long was measured; less than planned if somebody ended it.
        requests: Those that were due in that time and seen to their end.
        achieved_per_s: Good answers that came in that time, per second of it.
        latency_s: By quantile, of good answers, from the intended time.
        latency_of_all_s: The same where a request that failed counts as slower than any other.
        error_ratio: Failed requests of all; None of none.
        errors: Failed requests by kind, the most frequent first.
        lag: The generator's; None if nothing was sent.
        not_sent: Requests that the generator was too slow to send.
        left_out: Requests that were under way when somebody ended the run.
        connections: Connections that were opened.
        waited: Requests that waited for one because as many as allowed were busy.
        interrupted: Whether somebody ended it.
        limited_by: Why the generator may have been the limit; empty if the server was.
        judgements: What became of each objective.
        sample: All requests that were measured, in order of their intended time.
    """

    plan: LoadPlan
    seconds: float
    requests: int
    achieved_per_s: float
    latency_s: Mapping[float, Interval | None]
    latency_of_all_s: Mapping[float, Interval | None]
    error_ratio: Interval | None
    errors: Mapping[str, int]
    lag: Lag | None
    not_sent: int
    left_out: int
    connections: int
    waited: int
    interrupted: bool
    limited_by: str
    judgements: Sequence[Judgement]
    sample: Sample

    @property
    def failed(self) -> int:
        """Requests that failed."""
        return sum(self.errors.values())

    @property
    def verdict(self) -> Verdict | None:
        """The worst of all objectives; None of none."""
        verdicts = {judgement.verdict for judgement in self.judgements}
        worst_first = (Verdict.MISSED, Verdict.UNKNOWN, Verdict.MET)
        return next((verdict for verdict in worst_first if verdict in verdicts), None)


def summarize(
    sample: Sample,
    plan: LoadPlan,
    *,
    objectives: Sequence[Objective] = (),
    stopped_at_s: float | None = None,
    connections: int = 0,
    waited: int = 0,
) -> LoadResult:
    """The figures of a run.

    Args:
        sample: All of its requests, those of the warm-up too; times in seconds from the start.
        stopped_at_s: When somebody ended it; None for nobody.
    """
    end_s = plan.total_s if stopped_at_s is None else min(stopped_at_s, plan.total_s)
    seconds = max(end_s - plan.warm_up_s, 0.0)
    due = sample.where((sample.intended >= plan.warm_up_s) & (sample.intended < end_s))
    measured = due.where(due.over)
    in_time = (sample.done >= plan.warm_up_s) & (sample.done < end_s)
    came = int(np.count_nonzero(sample.succeeded & in_time))
    latency_s = measured.latency_s
    lag = _lag(measured)
    not_sent = int(np.count_nonzero(due.code == NOT_SENT))
    shortfall = _shortfall(not_sent, len(due))
    error_ratio = wilson_interval(~measured.succeeded)
    return LoadResult(
        plan=plan,
        seconds=seconds,
        requests=len(measured),
        achieved_per_s=came / seconds if seconds else 0.0,
        latency_s=quantile_intervals(latency_s[np.isfinite(latency_s)], QUANTILES),
        latency_of_all_s=quantile_intervals(latency_s, QUANTILES),
        error_ratio=error_ratio,
        errors=_errors(measured),
        lag=lag,
        not_sent=not_sent,
        left_out=int(np.count_nonzero(due.code == LEFT_OUT)),
        connections=connections,
        waited=waited,
        interrupted=stopped_at_s is not None,
        limited_by=shortfall or _doubt(lag),
        judgements=[
            _judged(objective, measured, error_ratio, shortfall) for objective in objectives
        ],
        sample=measured,
    )


def _judged(
    objective: Objective, measured: Sample, error_ratio: Interval | None, shortfall: str
) -> Judgement:
    if objective.quantile is None:
        return judge(objective, error_ratio, shortfall=shortfall)
    return judge(
        objective,
        quantile_interval(measured.latency_s, objective.quantile),
        slower=wilson_interval(measured.latency_from_sent_s > objective.limit),
        shortfall=shortfall,
    )


def _errors(sample: Sample) -> dict[str, int]:
    counts = np.bincount(sample.code, minlength=len(sample.kinds))
    found = {kind: int(count) for kind, count in zip(sample.kinds, counts, strict=True)}
    failed = {kind: count for kind, count in list(found.items())[1:] if count}
    return dict(sorted(failed.items(), key=lambda item: -item[1]))


def _lag(sample: Sample) -> Lag | None:
    lag_s = sample.lag_s
    if not len(lag_s):
        return None
    good = sample.where(sample.succeeded)
    from_intended, from_sent = good.latency_s, good.latency_from_sent_s
    return Lag(
        p50_s=float(np.quantile(lag_s, 0.5)),
        p99_s=float(np.quantile(lag_s, 0.99)),
        max_s=float(lag_s.max()),
        share_p50=_share(from_intended, from_sent, 0.5),
        share_p99=_share(from_intended, from_sent, 0.99),
    )


def _share(from_intended: Floats, from_sent: Floats, quantile: float) -> float:
    if not len(from_intended):
        return 0.0
    whole = float(np.quantile(from_intended, quantile))
    own = whole - float(np.quantile(from_sent, quantile))
    return min(max(own / whole, 0.0), 1.0) if whole > 0 else 0.0


def _shortfall(not_sent: int, due: int) -> str:
    if not not_sent:
        return ""
    return (
        f"the generator could not keep up: {not_sent:,} of {due:,} requests were never sent; "
        "lower the rate, or spread it over several generators"
    )


def _doubt(lag: Lag | None) -> str:
    if lag is None or max(lag.share_p50, lag.share_p99) <= _OWN_SHARE:
        return ""
    which, share = max(("p50", lag.share_p50), ("p99", lag.share_p99), key=lambda pair: pair[1])
    return (
        f"the generator was late: {share:.0%} of the {which} is its own lag, not the server's; "
        "give it a core, or another machine"
    )
