"""Sequential test of replica deaths of both arms.

A replica that exits by itself (SIGSEGV, out of memory, an exit) is a fault that requests show
poorly: few of them are affected, all in one moment, and a restart hides it. So the deaths
themselves are counted. The null hypothesis is that the versions are equal: then a death belongs to
the candidate with that arm's share of the requests, the test of Lindon and Malek (NeurIPS 2022,
arXiv 2011.03567) for counts. A gambler who stakes a fraction `f` of the capital on the candidate
has, at fair odds, `1 - f + f / share` times as much after one of its deaths and `1 - f` times after
one of the baseline's. Deaths are few, so the stakes are large; no worst intervals are left out, as
each death is one.

Deaths that depend on time and not on requests (a leak in a library, another process that uses the
memory) affect equal replicas equally. Once a replica of the baseline has died too, the null
hypothesis uses the larger of the candidate's share of the requests and of the ready replicas.
"""

import math
from collections.abc import Iterable
from typing import Final

import msgspec
import numpy as np

from headrace.core.text import number_text
from headrace.rollout.judge_fixed import Budget
from headrace.rollout.outcomes import MetricVerdict, Names, Outcome
from headrace.rollout.readings import ArmCounts

STAKES: Final = np.array([0.25, 0.5, 0.95])
WEIGHTS: Final = np.array([0.2, 0.3, 0.5])
"""Each gambler's part of the initial capital."""
DEATHS: Final = "deaths"
_MAX_NAMES: Final = 1000


class ReplicaDeaths(msgspec.Struct, frozen=True, kw_only=True):
    """Deaths of one replica's process since its first start, without requested stops."""

    name: str
    is_candidate: bool
    deaths: int = 0
    is_ready: bool = False
    reason: str = ""
    """Reason of the last death."""


class Crashes(msgspec.Struct, kw_only=True):
    """Deaths of both arms since the first observation; pairs are baseline, candidate."""

    counted: dict[str, int] = {}
    """Deaths by replica that are already counted, or occurred before the rollout."""
    deaths: tuple[int, int] = (0, 0)
    requests: tuple[int, int] = (0, 0)
    failed: tuple[int, int] = (0, 0)
    ready: tuple[int, int] = (0, 0)
    """Ready replicas at the last observation."""
    log_capitals: tuple[float, ...] = (0.0,) * len(STAKES)
    has_baseline_died: bool = False
    """Whether a baseline replica died during or before the rollout."""
    is_begun: bool = False
    last_reason: str = ""
    """Reason of the last death of a candidate replica."""

    def note(self, replicas: Iterable[ReplicaDeaths], *, share: float) -> bool:
        """Count new deaths; return whether there were any.

        Args:
            replicas: All of both arms, running or not.
            share: The candidate's share of the requests at that time; 0 and 1 carry no evidence.
        """
        replicas = list(replicas)
        new = [0, 0]
        for replica in replicas:
            before = self.counted.get(replica.name, 0 if self.is_begun else replica.deaths)
            self.counted[replica.name] = replica.deaths
            more = max(replica.deaths - before, 0)
            new[replica.is_candidate] += more
            if more and replica.is_candidate:
                self.last_reason = replica.reason
            self.has_baseline_died |= replica.deaths > 0 and not replica.is_candidate
        if len(self.counted) > _MAX_NAMES:
            present = {replica.name for replica in replicas}
            self.counted = {name: n for name, n in self.counted.items() if name in present}
        self.is_begun = True
        self.deaths = (self.deaths[0] + new[0], self.deaths[1] + new[1])
        if 0.0 < share < 1.0 and any(new):
            if self.has_baseline_died and any(self.ready):
                share = max(share, self.ready[1] / sum(self.ready))
            growth = new[0] * np.log1p(-STAKES) + new[1] * np.log(1.0 - STAKES + STAKES / share)
            self.log_capitals = tuple((np.array(self.log_capitals) + growth).tolist())
        self.ready = (
            sum(replica.is_ready for replica in replicas if not replica.is_candidate),
            sum(replica.is_ready for replica in replicas if replica.is_candidate),
        )
        return any(new)

    def add(self, baseline: ArmCounts, candidate: ArmCounts) -> None:
        """Count the outcomes of one interval, for the explanation."""
        (a, b), (failed_a, failed_b) = self.requests, self.failed
        self.requests = (a + baseline.requests, b + candidate.requests)
        self.failed = (failed_a + baseline.errors, failed_b + candidate.errors)

    def log_evidence(self) -> float:
        """Return the log evidence against "the candidate dies no more often"."""
        return float(np.logaddexp.reduce(np.log(WEIGHTS) + np.array(self.log_capitals)))

    def judge(self, *, budget: Budget, names: Names) -> MetricVerdict:
        """Roll back if deaths are shown to be more frequent; no deaths never delay a promotion."""
        is_worse = self.log_evidence() >= -math.log(budget.back)
        (deaths_a, deaths_b), last = self.deaths, self.last_reason
        closing = "within what is tolerated"
        if is_worse:
            closing = "it dies more often than the baseline, worse than tolerated"
        failed = [
            f"{number_text(count)} of {number_text(requests)}"
            for count, requests in zip(self.failed, self.requests, strict=True)
        ]
        reason = (
            f"crashes: {_deaths(deaths_b)} of {names.candidate}"
            f"{f' (the last {last})' if deaths_b and last else ''} against {_deaths(deaths_a)} of "
            f"{names.baseline}; {failed[1]} requests failed on {names.candidate}, {failed[0]} on "
            f"{names.baseline}: {closing}"
        )
        return MetricVerdict(
            metric="crashes",
            outcome=Outcome.ROLL_BACK if is_worse else Outcome.PROMOTE,
            reason=reason,
            unit=DEATHS,
            baseline=float(deaths_a),
            candidate=float(deaths_b),
            alpha=budget.back,
            samples=self.requests,
        )


def _deaths(number: int) -> str:
    return "1 replica death" if number == 1 else f"{number_text(number)} replica deaths"
