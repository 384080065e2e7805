"""Words for a drift: the share that speaks most against "nothing has drifted"."""

from typing import Final

from headrace.monitor.drift_evidence import Nulls, Spans, expected, strongest
from headrace.monitor.drift_reference import FeatureReference, events
from headrace.observe.feature_counts import FeatureCounts, FeatureKind

VIOLATIONS: Final = {
    "missing": "missing",
    "non_finite": "infinite",
    "out_of_range": "beyond the reference's values",
    "not_whole": "no whole numbers",
}
"""What may be wrong with values, in the order of the bets on it."""


def why(one: FeatureReference, nulls: Nulls, live: Spans) -> str:
    """Which share is other than in the reference; of a feature that has drifted.

    Args:
        nulls: Of the span.
        live: One span.
    """
    names = _names(one)
    bet = strongest(one, nulls, live)
    counts = live.counts(0)
    if bet >= 2 * len(names):
        kind = list(VIOLATIONS)[bet - 2 * len(names)]
        was, now, what = ratio(one.counts, kind), ratio(counts, kind), VIOLATIONS[kind]
    else:
        event = bet % len(names)
        was = float(events(one, expected(one, live.hours).bins)[0, event])
        now = float(events(one, live.bins)[0, event]) / max(counts.valid, 1)
        what = names[event]
    return f"{now:.1%} {what}, {was:.1%} in the reference"


def ratio(counts: FeatureCounts, kind: str) -> float:
    """The share of a violation: of all values, or of those that are there and finite."""
    seen: int = getattr(counts, kind)
    total = counts.rows if kind in {"missing", "non_finite"} else counts.valid
    return seen / total if total else 0.0


def _names(one: FeatureReference) -> list[str]:
    if one.bins.kind is FeatureKind.NUMBERS:
        return [f"below {edge:.4g}" for edge in one.bins.edges]
    # As Python writes them: they are callers' texts, and may hold anything.
    return [*(repr(category) for category in one.bins.categories), "other than known"]
