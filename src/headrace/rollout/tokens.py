"""Tests of a language model's answers: the time of an output token, and how many there are.

A streamed answer is one observation of the time: the mean of its tokens after the first. Numbers of
tokens are a distribution as that of a score (`prediction_shift`), cut at `LENGTHS`. The time to the
first token is the latency of a stream.
"""

from bisect import bisect_left
from collections.abc import Mapping
from typing import Final

import msgspec

from headrace.core.spec.rollout import MetricsSpec
from headrace.rollout import judge
from headrace.rollout.bernoulli import Rate
from headrace.rollout.judge_fixed import Budget
from headrace.rollout.latency_ratio import MEDIAN, LatencyMargin, LatencyRatios
from headrace.rollout.outcomes import MetricVerdict, Names
from headrace.rollout.prediction_shift import PredictionShift
from headrace.rollout.readings import ArmCounts, When

_TIME: Final = "time_per_output_token"
_LENGTH: Final = "output_tokens"
TOKEN_METRICS: Final = (_TIME, _LENGTH)
LENGTHS: Final = (1, *(factor << exponent for exponent in range(22) for factor in (2, 3)))
"""Edges of the numbers of output tokens: 1, 2, 3, 4, 6, 8, 12 and so on."""


def by_length(answers: Mapping[int, int]) -> dict[float, int]:
    """Return counts of answers by their number of tokens as counts by the next of `LENGTHS`."""
    counts: dict[float, int] = {}
    for tokens, count in answers.items():
        edge = float(LENGTHS[min(bisect_left(LENGTHS, tokens), len(LENGTHS) - 1)])
        counts[edge] = counts.get(edge, 0) + count
    return counts


class TokenTests(msgspec.Struct):
    """Tests of the metrics that are judged; without counts for the others."""

    times: tuple[LatencyRatios, ...] = ()
    """Quantiles of the time of an output token: that of the settings, and the median."""
    lengths: PredictionShift | None = None

    @classmethod
    def start(cls, metrics: MetricsSpec) -> "TokenTests":
        """Return the tests of these metrics without counts."""
        times: tuple[LatencyRatios, ...] = ()
        if metrics.time_per_output_token is not None:
            reach = LatencyMargin(metrics.time_per_output_token.margin_ratio)
            quantiles = dict.fromkeys((metrics.time_per_output_token.quantile, MEDIAN))
            times = tuple(LatencyRatios.start(quantile, reach) for quantile in quantiles)
        lengths = None if metrics.output_tokens is None else PredictionShift.start()
        return cls(times=times, lengths=lengths)

    def add(self, share: float, baseline: ArmCounts, candidate: ArmCounts, when: When) -> None:
        """Count one interval."""
        for ratios in self.times:
            ratios.add(share, baseline.per_token, candidate.per_token, when)
        if self.lengths is not None:
            arms = by_length(baseline.output_tokens), by_length(candidate.output_tokens)
            self.lengths.add(share, *arms, step=when.step)

    def weigh(self, part: float, independent: float) -> None:
        """Reduce the weight of requests that depend on one another.

        Args:
            part: Independent observations per request.
            independent: Number of independent observations.
        """
        for ratios in self.times:
            ratios.weigh(part)
        if self.lengths is not None:
            self.lengths.tests.part = min(1.0, independent / max(self.lengths.answers, 1))

    def without_data(self) -> dict[str, str]:
        """Return the metrics that no answer has so far, with the reason.

        Embeddings have no output tokens, and only streams have a time between tokens.
        """
        missing = {}
        if not any(arm.total for r in self.times for arm in (r.baseline, r.candidate)):
            missing[_TIME] = "no version has streamed tokens yet"
        if self.lengths is None or not self.lengths.answers:
            missing[_LENGTH] = "no version has reported output tokens yet"
        return missing

    def judge(
        self, metric: str, metrics: MetricsSpec, *, budget: Budget, names: Names
    ) -> MetricVerdict:
        """Return the verdict of one of both metrics."""
        if metric == _TIME:
            assert metrics.time_per_output_token is not None, "only metrics in use are judged"
            return judge.judge_latency(
                metric,
                self.times,
                metrics.time_per_output_token,
                slow=Rate(),
                budget=budget,
                names=names,
            )
        assert metrics.output_tokens is not None, "only metrics in use are judged"
        assert self.lengths is not None, "only metrics in use are judged"
        return judge.judge_shift(
            metric, self.lengths, metrics.output_tokens, budget=budget, names=names
        )
