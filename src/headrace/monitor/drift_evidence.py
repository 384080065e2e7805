"""Evidence of drift: sequential tests of a feature's counts that can be checked at any time.

For each edge of a feature's bins, the share of values below it is tested against the largest share
that the reference allows: its own share, widened by its sampling error and by the margin. For a
category it is the category's share; for missing or invalid values, the share of those. An hourly
reference uses its shares of the hours in which the values arrived.

Each test is a bet at the odds of the worst allowed distribution: the likelihood ratio of a larger
share against it multiplies a capital whose expectation does not grow without drift. So the capital
reaches `1 / alpha` with a probability of at most `alpha`, at any time (Ville 1939; Waudby-Smith and
Ramdas, "Estimating means of bounded random variables by betting", JRSS-B 2024, arXiv 2010.09686).
The capital of a feature is the mean over its bets: a mean of such capitals has the same property,
so no bet must be chosen beforehand.

This holds for independent rows. For dependent rows the logarithm of the capital is divided by the
design effect of the rows (`drift_dependence`): to second order, the exponent of a sum whose
variance is `effect` times the binomial variance does not grow in expectation either. This
approximation holds once a span is longer than the dependence.

`distances` measure the size of a difference, not its significance; `why` describes the share with
the most evidence of drift.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from headrace.monitor.drift_reference import HOURS, FeatureReference, events
from headrace.observe.features import FeatureKind, ValueCounts

Floats: TypeAlias = NDArray[np.float64]

_STEPS: Final[Floats] = np.array([0.01, 0.025, 0.06, 0.15, 0.35, 0.7])
"""Alternative shares of the bets, as fractions of the way from the largest allowed share to 1."""
_NEWTON_STEPS: Final = 4
_TINY: Final = 1e-12
_ALMOST: Final = 1.0 - 1e-9
_MIXES: Final = HOURS + 1
"""Mixtures of hours for which the reference's error is bounded: single hours, and whole days."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spans:
    """Counts of one feature over several spans of time, as arrays with a row for each span.

    `bins` is `[spans, bins]`, `wrong` `[spans, 4]` in the order of `VIOLATIONS`, `hours` `[spans,
    24]`: rows by the hour of the day (UTC), zeros where the hours are unknown.
    """

    rows: Floats
    bins: Floats
    wrong: Floats
    hours: Floats

    @classmethod
    def of(
        cls,
        reference: FeatureReference,
        counts: Sequence[ValueCounts],
        hours: Sequence[Sequence[int]] = (),
    ) -> "Spans":
        """Return the spans of `counts`."""
        none = [0] * reference.bins.size
        table = np.array(
            [
                [
                    column_counts.rows,
                    column_counts.missing,
                    column_counts.non_finite,
                    column_counts.out_of_range,
                    column_counts.not_whole,
                    *(column_counts.bins or none),
                ]
                for column_counts in counts
            ],
            dtype=float,
        ).reshape(len(counts), 5 + len(none))
        by_hour = np.zeros((len(counts), HOURS))
        for i, row in enumerate(hours):
            if row:
                by_hour[i] = row
        return cls(rows=table[:, 0], wrong=table[:, 1:5], bins=table[:, 5:], hours=by_hour)

    @property
    def valid(self) -> Floats:
        """Return the number of values in the bins, `[spans]`."""
        return self.rows - self.wrong[:, 0] - self.wrong[:, 1]

    def to_the_end(self) -> "Spans":
        """Return spans from the start of each span to the end of the last one."""
        return self._changed(lambda table: np.cumsum(table[::-1], axis=0)[::-1])

    def only(self, which: "NDArray[np.bool_] | slice") -> "Spans":
        """Return the selected spans."""
        return self._changed(lambda table: table[which])

    def _changed(self, change: Callable[[Floats], Floats]) -> "Spans":
        return Spans(
            rows=change(self.rows),
            bins=change(self.bins),
            wrong=change(self.wrong),
            hours=change(self.hours),
        )

    def counts(self, index: int) -> ValueCounts:
        """Return one span's counts."""
        missing, non_finite, out_of_range, not_whole = (int(x) for x in self.wrong[index])
        return ValueCounts(
            rows=int(self.rows[index]),
            missing=missing,
            non_finite=non_finite,
            out_of_range=out_of_range,
            not_whole=not_whole,
            bins=[int(x) for x in self.bins[index]] if self.rows[index] else [],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedShares:
    """Shares that a reference expects for the hours of some spans."""

    bins: Floats
    """Shares of the bins, `[spans, bins]`."""
    rows: Floats
    """Number of the reference's rows that a share is based on, `[spans]`."""
    unknown: Floats
    """Part of a span in hours that the reference lacks."""


def expected(reference: FeatureReference, hours: Floats) -> ExpectedShares:
    """Return the shares that `reference` expects of spans with these rows per hour, `[spans, 24]`.

    A reference without hours, and a span with unknown hours, use the shares of all hours.
    """
    counts = reference.counts
    total = np.asarray(counts.bins or [0] * reference.bins.size, dtype=float)
    spans = len(hours)
    overall = np.broadcast_to(total / max(counts.valid, 1), (spans, len(total)))
    rows = np.full(spans, float(counts.valid))
    if not reference.hours:
        return ExpectedShares(bins=overall, rows=rows, unknown=np.zeros(spans))
    table = np.asarray(reference.hours, dtype=float)
    in_hour = table.sum(axis=1)
    timed = hours.sum(axis=1)
    weights = (
        np.where(timed[:, None] > 0, hours, in_hour)
        / np.where(timed > 0, timed, in_hour.sum())[:, None]
    )
    is_there = in_hour > 0
    weights = np.where(is_there, weights, 0.0)
    part = weights.sum(axis=1)
    shares = table / np.maximum(in_hour, 1.0)[:, None]
    spread = (weights**2 / np.maximum(in_hour, 1.0)).sum(axis=1)
    return ExpectedShares(
        bins=weights @ shares / np.maximum(part, 1e-12)[:, None],
        rows=part**2 / np.maximum(spread, 1e-12),
        unknown=1.0 - part,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class NullShares:
    """Null hypothesis of no drift: the largest share that each bet allows, `[spans, bets]`.

    1 where every share is allowed.
    """

    largest: Floats
    of_valid: "NDArray[np.bool_]"
    """Whether the share is of valid values; otherwise of all values."""


def nulls_of(
    reference: FeatureReference,
    *,
    alpha: float,
    margin: float,
    violations_margin: float,
    effect: float = 1.0,
    hours: Floats | None = None,
) -> NullShares:
    """Return the null hypotheses of the bets on one feature.

    Args:
        alpha: The chance that the reference is further off than the bets allow.
        effect: The design effect of the reference's rows.
        hours: Rows per hour of the judged spans, `[spans, 24]`; None for one of unknown hours.
    """
    counts = reference.counts
    reference_shares = expected(reference, np.zeros((1, HOURS)) if hours is None else hours)
    below = events(reference, reference_shares.bins)
    bad = np.array([counts.missing, counts.non_finite, counts.out_of_range, counts.not_whole])
    # The bins were made from the same values, and the reference contains no unseen categories: one
    # additional value, and the values seen once, represent what the reference cannot contain.
    extra = _unknown(reference, below.shape[1])
    wrong_extra = np.array([0.0, 0.0, 2.0 + reference.single, 0.0])
    part = alpha / (2 * below.shape[1] + len(bad))
    rows = (reference_shares.rows / effect)[:, None]
    totals = np.array([counts.rows, counts.rows, counts.valid, counts.valid]) / effect
    spans = len(below)
    occurrences = np.concatenate(
        [
            below * rows + 1 + extra,
            (1.0 - below) * rows + 1,
            np.broadcast_to(bad / effect + wrong_extra, (spans, len(bad))),
        ],
        axis=1,
    )
    total = np.concatenate(
        [
            np.broadcast_to(rows, (spans, 2 * below.shape[1])),
            np.broadcast_to(totals, (spans, len(bad))),
        ],
        axis=1,
    )
    largest = _highest(occurrences, total, part / _MIXES if reference.hours else part)
    unknown = reference_shares.unknown[:, None]
    largest[:, : -len(bad)] = (1.0 - unknown) * largest[:, : -len(bad)] + unknown + margin
    largest[:, -len(bad) :] += violations_margin
    of_valid = np.array([True] * (2 * below.shape[1]) + [False, False, True, True])
    return NullShares(largest=np.minimum(largest, 1.0), of_valid=of_valid)


def log_evidence(
    reference: FeatureReference, nulls: NullShares, live: Spans, *, effect: float = 1.0
) -> Floats:
    """Return a feature's log capital against "it has not drifted", `[spans]`.

    Args:
        live: Each span is judged for itself.
        effect: The design effect of the rows.
    """
    capital = _capital(reference, nulls, live) / effect
    maximum = capital.max(axis=(1, 2))
    mean = np.exp(capital - maximum[:, None, None]).mean(axis=(1, 2))
    evidence: Floats = maximum + np.log(mean)
    return evidence


def strongest(reference: FeatureReference, nulls: NullShares, live: Spans) -> int:
    """Return the index of the bet with the largest capital on the first span.

    The bet is on an edge or category (twice, for more and for less), or on a violation.
    """
    return int(_capital(reference, nulls, live)[0].max(axis=1).argmax())


def _capital(reference: FeatureReference, nulls: NullShares, live: Spans) -> Floats:
    """Return the log capital of each bet, `[spans, bets, steps]`."""
    below = events(reference, live.bins)
    valid, rows = live.valid[:, None], live.rows[:, None]
    occurrences = np.concatenate([below, valid - below, live.wrong], axis=1)
    total = np.where(nulls.of_valid, valid, rows)
    worst = np.minimum(nulls.largest, _ALMOST)[:, :, None]
    bets = worst + (1.0 - worst) * _STEPS
    gain = np.log(bets / worst)
    loss = np.log1p(-bets) - np.log1p(-worst)
    capital = occurrences[:, :, None] * gain + (total - occurrences)[:, :, None] * loss
    bounded: Floats = np.where((nulls.largest < 1.0)[:, :, None], capital, 0.0)
    return bounded


def _unknown(reference: FeatureReference, size: int) -> Floats:
    extra = np.zeros(size)
    if reference.bins.kind is not FeatureKind.NUMBERS:
        extra[-1] = reference.single
    return extra


def _highest(occurrences: Floats, total: Floats, alpha: float) -> Floats:
    """Return the largest share at which so few of `total` occur with a probability of `alpha`.

    Chernoff's bound guarantees that the result is never too small. Newton's method begins above the
    root of a convex function, with Bernstein's bound, and stays there: every iterate is a bound
    itself.
    """
    total = np.maximum(total, _TINY)
    share = np.minimum(occurrences / total, 1.0)
    rest = 1.0 - share
    needed = np.log(1.0 / alpha) / total
    entropy = share * np.log(share + _TINY) + rest * np.log(rest + _TINY) - needed
    twice = 2.0 * needed
    middle = 2.0 * share + twice * 4.0 / 3.0
    root = np.sqrt(middle**2 - 4.0 * (1.0 + twice) * (share**2 + twice * share / 3.0))
    bound = (middle + root) / (2.0 * (1.0 + twice))
    for _ in range(_NEWTON_STEPS):
        bound = np.minimum(bound, _ALMOST)
        above = entropy - share * np.log(bound) - rest * np.log1p(-bound)
        step = above * bound * (1.0 - bound) / np.maximum(bound - share, _TINY)
        bound = bound - np.maximum(step, 0.0)
    largest: Floats = np.where(occurrences >= total, 1.0, bound)
    return largest


VIOLATIONS: Final = {
    "missing": "missing",
    "non_finite": "infinite",
    "out_of_range": "beyond the reference's values",
    "not_whole": "no whole numbers",
}
"""Violations of values, in the order of the bets on them."""


def why(feature: FeatureReference, nulls: NullShares, live: Spans) -> str:
    """Return a description of the share that differs from the reference, for a drifted feature.

    Args:
        nulls: Null hypotheses of the span.
        live: Counts of one span.
    """
    names = _names(feature)
    bet = strongest(feature, nulls, live)
    counts = live.counts(0)
    if bet >= 2 * len(names):
        kind = list(VIOLATIONS)[bet - 2 * len(names)]
        expected_count, now, description = (
            ratio(feature.counts, kind),
            ratio(counts, kind),
            VIOLATIONS[kind],
        )
    else:
        event = bet % len(names)
        expected_count = float(events(feature, expected(feature, live.hours).bins)[0, event])
        now = float(events(feature, live.bins)[0, event]) / max(counts.valid, 1)
        description = names[event]
    return f"{now:.1%} {description}, {expected_count:.1%} in the reference"


def ratio(counts: ValueCounts, kind: str) -> float:
    """Return the share of a violation: of all values, or of the present and finite values."""
    violations: int = getattr(counts, kind)
    total = counts.rows if kind in {"missing", "non_finite"} else counts.valid
    return violations / total if total else 0.0


def _names(feature: FeatureReference) -> list[str]:
    if feature.bins.kind is FeatureKind.NUMBERS:
        return [f"below {edge:.4g}" for edge in feature.bins.edges]
    # Values are shown as Python literals: they are callers' texts and may contain anything.
    return [*(repr(category) for category in feature.bins.categories), "other than known"]


_SMOOTHING: Final = 0.5
"""Count that is added to each bin, so that an empty bin causes no infinite difference."""
Counts: TypeAlias = Sequence[float] | NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Distances:
    """Distances between two distributions.

    `psi`: population stability index; `js`: Jensen-Shannon divergence in bits, 0 to 1. `ks`:
    Kolmogorov-Smirnov distance at the bins' edges, or for categories the largest difference of a
    share; 0 to 1.
    """

    psi: float
    js: float
    ks: float


def distances(reference: Counts, live: Counts, *, ordered: bool) -> Distances | None:
    """Return the distances of `live` from `reference`; None if one of them is empty.

    Args:
        ordered: Whether the bins follow each other on a line; else they are categories.
    """
    expected, observed = np.asarray(reference, dtype=float), np.asarray(live, dtype=float)
    if not expected.sum() or not observed.sum():
        return None
    p, q = _smooth(expected), _smooth(observed)
    middle = (p + q) / 2
    exact = observed / observed.sum() - expected / expected.sum()
    moved = np.cumsum(exact) if ordered else exact
    return Distances(
        psi=float(((q - p) * np.log(q / p)).sum()),
        js=float((p * np.log2(p / middle)).sum() / 2 + (q * np.log2(q / middle)).sum() / 2),
        ks=float(np.abs(moved).max()),
    )


def _smooth(counts: Floats) -> Floats:
    smoothed = counts + _SMOOTHING
    shares: Floats = smoothed / smoothed.sum()
    return shares


def fixed_band(rows: float, alpha: float) -> float:
    """Return the largest distance of a sample's distribution from the true one, for one look.

    Dvoretzky, Kiefer and Wolfowitz with Massart's constant (1990).
    """
    return math.sqrt(math.log(2.0 / alpha) / (2.0 * rows)) if rows else 1.0


def uniform_band(rows: float, alpha: float) -> float:
    """Return the same distance, valid at all times while the sample grows.

    Howard and Ramdas, "Sequential estimation of quantiles", Bernoulli 2022 (arXiv 1906.09712).
    """
    if not rows:
        return 1.0
    iterated = math.log(math.log(math.e * max(rows, 1.0)))
    return min(1.0, 0.85 * math.sqrt((iterated + 0.8 * math.log(1612.0 / alpha)) / rows))
