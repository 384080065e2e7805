"""Test for a difference of two rates that exceeds the tolerance from some moment on.

Evidence over a whole rollout favours a version that fails after a good half hour: the bold gamblers
of `betting` have lost their capital by then. So new ones enter once a minute and whenever a step
begins, with a part of the initial capital that was reserved for them: 1 / (k (k + 1)) of the
minutes' or of the steps' part for the `k`-th. The total capital still does not grow in expectation
while the null hypothesis holds, at any time. Such a mixture over the moment of change goes back to
Shiryaev; Shin, Ramdas and Rinaldo, "E-detectors", 2023 (arXiv 2203.03532) use it with bets.

The null hypothesis is that the difference was always within the tolerance. The worst intervals of
each hour do not count (`forgiving`).
"""

from typing import Final

import msgspec
import numpy as np

from headrace.rollout.bernoulli import FORGIVEN, trimmed_capitals
from headrace.rollout.betting import STAKES, WEIGHTS, Array, log_growth
from headrace.rollout.rate_difference import CELLS, Stratum
from headrace.rollout.readings import ONE_SECOND, When

_ENTRY_S: Final = 60.0
_HOUR_S: Final = 3600.0
_MINUTES_PART: Final = 0.4
_STEPS_PART: Final = 0.6
_FORGETS_A_SECOND: Final = 0.97


class ChangeDetector(msgspec.Struct):
    """Tests of differences against the tolerance, `[tests]`, with late starts."""

    tolerated: float
    capitals: Array
    """Logarithms of the entered capital, by number of left-out intervals, `[tests, stakes, 1 +
    forgiven]`."""
    lately: Array
    """Exponentially decaying counts of about the last half minute, in the cells of
    `rate_difference`, `[tests, cells]`."""
    step: Array
    """Rollout step that was counted last; `steps` is the number of steps that began after the
    first, `[tests]`."""
    steps: Array
    minutes: int = 0
    """Number of entries by time."""
    counted_s: float = 0.0
    hours: int = 0
    part: Array = msgspec.field(default_factory=lambda: np.ones(1))
    """Part as in `RateDifferences`, `[tests]` or one for all."""

    @classmethod
    def start(cls, tests: int, tolerated: float) -> "ChangeDetector":
        """Return the state without counts."""
        return cls(
            tolerated=tolerated,
            capitals=np.full((tests, len(STAKES), 1 + FORGIVEN), -np.inf),
            lately=np.zeros((tests, CELLS)),
            step=np.full(tests, np.nan),
            steps=np.zeros(tests),
        )

    def add(
        self,
        share: float,
        candidate: tuple[Array, Array],
        baseline: tuple[Array, Array],
        when: When = ONE_SECOND,
    ) -> None:
        """Count one interval, as in `RateDifferences`; stakes depend only on earlier intervals."""
        if not 0.0 < share < 1.0:
            return
        (yes_b, all_b), (yes_a, all_a) = candidate, baseline
        cells = np.stack([yes_b, all_b - yes_b, yes_a, all_a - yes_a], axis=-1).astype(float)
        while self.counted_s >= _ENTRY_S * self.minutes:
            self.minutes += 1
            self._enter(_MINUTES_PART / (self.minutes * (self.minutes + 1)))
        counted = cells.any(axis=-1)
        starts = counted & (self.step != when.step) & ~np.isnan(self.step)
        self.step = np.where(counted, when.step, self.step)
        self.steps = self.steps + starts
        with np.errstate(divide="ignore"):
            self._enter(
                np.where(starts, _STEPS_PART / np.maximum(self.steps * (self.steps + 1), 1), 0.0)
            )
        stratum = Stratum(share, 0, cells)
        growth = log_growth(stratum.values(), stratum.scale, np.asarray(self.tolerated), above=True)
        part = np.broadcast_to(self.part, counted.shape)[:, None]
        self.capitals = trimmed_capitals(self.capitals, part * (cells @ growth))
        self.lately = self.lately * _FORGETS_A_SECOND**when.duration_s + cells
        self.counted_s += when.duration_s
        if self.counted_s >= _HOUR_S * (self.hours + 1):
            self.hours += 1
            self.capitals = np.repeat(self.capitals[..., -1:], 1 + FORGIVEN, axis=-1)

    def log_evidence(self) -> Array:
        """Return the log evidence against "never worse than tolerated", `[tests]`."""
        aside = np.log(_MINUTES_PART / (self.minutes + 1) + _STEPS_PART / (self.steps + 1))
        evidence: Array = np.logaddexp(aside, np.logaddexp.reduce(self.capitals[..., -1], axis=-1))
        return evidence

    def _enter(self, capital: Array | float) -> None:
        """Distribute new capital, `[tests]` or one for all, over the stakes."""
        entry = np.log(np.multiply.outer(np.broadcast_to(capital, self.steps.shape), WEIGHTS))
        self.capitals = np.logaddexp(self.capitals, entry[..., None])

    def rates_lately(self) -> tuple[float, float]:
        """Return the first test's rates of the last half minute: candidate's, baseline's."""
        yes_b, no_b, yes_a, no_a = self.lately[0]
        return float(yes_b / max(yes_b + no_b, 1e-12)), float(yes_a / max(yes_a + no_a, 1e-12))
