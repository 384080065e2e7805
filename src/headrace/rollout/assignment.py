"""Test of whether the split assigned each arm its share. All other statistics depend on it.

A broken cookie, a cache in front of one version, or a crash that loses only slow responses first
shows as a sample ratio mismatch. Sequential multinomial test of Lindon and Malek, "Anytime-valid
inference for multinomial count data", NeurIPS 2022 (arXiv 2011.03567), for two arms: under the plan
the counts are binomial with the share in force; the alternative is a beta mixture around it.
"""

import math
from typing import Final

import msgspec

_CONCENTRATION: Final = 100.0
"""Concentration of the alternative around the plan: a mismatch within about five points."""


class Assignments(msgspec.Struct):
    """Units per arm by planned share: the baseline's, the candidate's."""

    counts: dict[float, tuple[int, int]] = {}
    worst: float = 0.0
    """Largest evidence against the plan so far, in nats. It never decreases: wrong assignments
    remain in the other statistics."""

    def add(self, share: float, baseline: int, candidate: int) -> None:
        """Count units that were assigned while the candidate's planned share was `share`."""
        share = round(share, 12)
        if not 0.0 < share < 1.0:
            return
        before = self.counts.get(share, (0, 0))
        self.counts[share] = (before[0] + baseline, before[1] + candidate)
        self.worst = max(self.worst, self.log_evidence())

    def replace(self, counts: dict[float, tuple[int, int]]) -> None:
        """Replace all counts with `counts`, which are stored elsewhere and contain all units."""
        self.counts = {share: both for share, both in counts.items() if 0.0 < share < 1.0}
        self.worst = max(self.worst, self.log_evidence())

    def log_evidence(self) -> float:
        """Return the log evidence against the plan; evidence of several shares multiplies."""
        return sum(_log_evidence(share, *counts) for share, counts in self.counts.items())

    @property
    def totals(self) -> tuple[int, int]:
        """Return the units so far: the baseline's, the candidate's."""
        counts = self.counts.values()
        return sum(c[0] for c in counts), sum(c[1] for c in counts)

    @property
    def planned(self) -> float:
        """Return the candidate's planned share, over all units so far."""
        total = sum(self.totals)
        return sum(share * sum(c) for share, c in self.counts.items()) / max(total, 1)


def _log_evidence(share: float, baseline: int, candidate: int) -> float:
    prior_b, prior_a = _CONCENTRATION * share, _CONCENTRATION * (1 - share)
    return (
        _log_beta(prior_b + candidate, prior_a + baseline)
        - _log_beta(prior_b, prior_a)
        - candidate * math.log(share)
        - baseline * math.log1p(-share)
    )


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
